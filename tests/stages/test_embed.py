"""Embeddings of folders and of single files: the same numbers, resumable, and independent of their company."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kdctool
from kdctool.data.loader import eval_batches
from kdctool.errors import DataFault, EnvironmentFault, UsageFault, VerificationFault
from kdctool.files import sha256_file
from kdctool.shards import index as shard_index
from kdctool.stages import embed, embed_file, pretrain
from kdctool.stages.load import open_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """A pre-trained run on clips of 0.7 s."""
    from kdctool import recipe as recipes

    from ..conftest import TINY

    loaded = recipes.loads(TINY, [f"data.shards={tiny_shards}", "training.epochs=1"])
    return pretrain.run(loaded, out=tmp_path_factory.mktemp("embed") / "run", device_name="cpu").run


def vectors(path: Path) -> tuple[np.ndarray, list[str]]:
    return np.load(path), json.loads(path.with_name(path.name + ".json").read_text())["rows"]["uid"]


def test_shards_become_unit_vectors_sorted_by_uid(model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    done = embed.run(model, tiny_shards, tmp_path / "f.npy", workers=0)
    values, uids = vectors(done.path)
    assert (done.n_embedded, done.n_total, done.missing) == (44, 44, {})
    assert values.shape == (44, 3, 32)
    assert uids == sorted(uids)
    assert np.abs(np.linalg.norm(values, axis=2) - 1).max() < 1e-5
    assert not (tmp_path / "f.npy.pieces").exists()


def test_vectors_are_those_of_the_encoder(model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    values, uids = vectors(embed.run(model, tiny_shards, tmp_path / "f.npy", split="test", workers=0).path)
    opened = open_model(model)
    index = shard_index.load(tiny_shards)
    split = index.split("test")
    batch = next(eval_batches(index, split, opened.recipe, torch.device("cpu"), 20, 0, labels=False))
    with torch.inference_mode():
        audio = torch.nn.functional.normalize(opened.encoder.embed_audio(batch["fbank"]).mean(1), dim=-1).numpy()
    order = np.argsort([split.key(i) for i in range(len(split))])
    assert uids == [split.key(int(i)) for i in order]
    assert np.abs(values[:, 0] - audio[order]).max() < 1e-5


def test_the_company_of_a_clip_does_not_change_its_vectors(model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    one, _ = vectors(embed.run(model, tiny_shards, tmp_path / "a.npy", batch_size=3, workers=0).path)
    two, _ = vectors(embed.run(model, tiny_shards, tmp_path / "b.npy", batch_size=32, workers=0).path)
    assert np.abs(one - two).max() < 1e-5


def test_an_interrupted_embedding_goes_on(
    model: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PIECE", 10)
    whole = embed.run(model, tiny_shards, tmp_path / "whole.npy", workers=0).path.read_bytes()
    calls = []
    piece = embed._piece

    def stop_at_the_third(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        piece(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(embed, "_piece", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embed.run(model, tiny_shards, tmp_path / "f.npy", workers=0)
    assert not (tmp_path / "f.npy").exists()
    monkeypatch.setattr(embed, "_piece", piece)
    done = embed.run(model, tiny_shards, tmp_path / "f.npy", workers=0)
    assert done.resumed == 20
    assert done.path.read_bytes() == whole


def test_pieces_of_another_model_are_not_used(
    model: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_gathered", lambda pieces: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed.run(model, tiny_shards, tmp_path / "f.npy", workers=0)
    monkeypatch.undo()
    done = embed.run(model, tiny_shards, tmp_path / "f.npy", batch_size=7, workers=0)
    assert done.resumed == 0


def test_weights_that_are_not_finite_write_nothing(model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = max((broken / "checkpoints").iterdir()) / "model.safetensors"
    state = load_file(weights)
    state["encoder.norm_a.weight"] = torch.full_like(state["encoder.norm_a.weight"], float("nan"))
    save_file(state, weights)
    manifest = weights.parent / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(
        json.dumps(json.loads(json.dumps(told).replace(_digest(told), sha256_file(weights))), sort_keys=True)
    )
    with pytest.raises(VerificationFault):
        embed.run(broken, tiny_shards, tmp_path / "f.npy", workers=0)
    assert not (tmp_path / "f.npy").exists()


def _digest(manifest: dict[str, object]) -> str:
    entry = manifest.get("files", manifest)["model.safetensors"]  # type: ignore[index]
    return entry if isinstance(entry, str) else entry["sha256"]


def test_an_existing_file_is_not_replaced_unasked(model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "f.npy").write_bytes(b"mine")
    with pytest.raises(UsageFault, match="exists"):
        embed.run(model, tiny_shards, tmp_path / "f.npy", workers=0)
    assert (tmp_path / "f.npy").read_bytes() == b"mine"
    assert embed.run(model, tiny_shards, tmp_path / "f.npy", workers=0, overwrite=True).n_embedded == 44


def test_a_name_without_a_known_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"\.npy nor \.parquet"):
        embed_file.check(tmp_path / "features.csv")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="pyarrow"):
        embed_file.check(tmp_path / "features.parquet")


def test_parquet_holds_the_same_vectors(model: Path, tiny_shards: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    values, uids = vectors(embed.run(model, tiny_shards, tmp_path / "f.npy", workers=0).path)
    table = parquet.read_table(embed.run(model, tiny_shards, tmp_path / "f.parquet", workers=0).path)
    assert table["uid"].to_pylist() == uids
    assert np.array_equal(np.array(table["joint"].to_pylist(), dtype=np.float32), values[:, 2])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short videos with sound, one of them broken."""
    from kdctool.stages import demo_clips

    folder = tmp_path_factory.mktemp("videos")
    demo_clips.make_clips(folder, seed=1, clips=2, held_out=1, seconds=2.0)
    for extra in folder.glob("*.csv"):
        extra.unlink()
    (folder / "broken.mp4").write_bytes(b"not a video")
    return folder


@pytest.mark.e2e
def test_a_folder_of_videos_and_the_same_file_alone_give_the_same_vectors(
    model: Path, videos: Path, tmp_path: Path
) -> None:
    done = embed.run(model, videos, tmp_path / "f.npy", workers=1)
    values, uids = vectors(done.path)
    assert sum(done.missing.values()) == 1, "the broken file is counted"
    file = next(path for path in sorted(videos.rglob("*.mp4")) if path.name != "broken.mp4")
    place = next(i for i, uid in enumerate(uids) if uid.startswith(file.stem[:20].lower()))
    opened = kdctool.load(model)
    alone = opened.embed(file)
    for part, expected in zip(alone, values[place], strict=True):
        assert np.abs(part - expected).max() < 1e-5
    assert np.abs(opened.embed_audio(file) - values[place, 0]).max() < 1e-5
    assert abs(opened.similarity(file, file) - float(values[place, 0] @ values[place, 1])) < 1e-5


@pytest.mark.e2e
def test_every_window_of_a_video_gets_vectors(model: Path, videos: Path, tmp_path: Path) -> None:
    once = embed.run(model, videos, tmp_path / "once.npy", workers=1)
    often = embed.run(model, videos, tmp_path / "often.npy", workers=1, stride_s=0.7)
    assert often.n_embedded > once.n_embedded
    file = next(path for path in sorted(videos.rglob("*.mp4")) if path.name != "broken.mp4")
    starts = [start for start, _ in kdctool.load(model).embed_windows(file, stride_s=0.7)]
    assert starts == sorted(starts)
    assert len(starts) > 1


@pytest.mark.e2e
def test_a_file_that_cannot_be_read_says_why(model: Path, videos: Path) -> None:
    with pytest.raises(DataFault, match=r"broken\.mp4"):
        kdctool.load(model).embed(videos / "broken.mp4")
    with pytest.raises(UsageFault, match="does not exist"):
        kdctool.load(model).embed(videos / "nothing.mp4")
