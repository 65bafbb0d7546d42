"""Clips that lack a modality: sharded with what they have, left out of training with a count, missing in evaluation."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdctool import recipe as recipes
from kdctool.data.whole import whole
from kdctool.errors import DataFault
from kdctool.files import canonical_json
from kdctool.media.audio_file import encode
from kdctool.shards import index as shard_index
from kdctool.shards.read import ShardReader
from kdctool.stages import evaluate, fitting, pretrain, shard, verify
from kdctool.stages.pretrain import build_objective


@pytest.fixture
def partial(tiny_extraction: Path, tmp_path: Path) -> Path:
    """Shards of 44 clips, of which three have no sound and two no picture, and all sound is opus."""
    import soundfile

    out = tmp_path / "out"
    shutil.copytree(tiny_extraction, out)
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        folder = next(out.glob(f"clips/*/{row['uid']}"))
        sound, rate = soundfile.read(folder / "audio.flac", dtype="int16")
        (folder / "audio.flac").unlink()
        row["audio"] = "audio.opus"
        if number % 15 == 0:
            row |= {"audio": "", "modalities": ["video"]}
        else:
            (folder / "audio.opus").write_bytes(encode(sound, rate, "opus"))
        if number % 22 == 7:
            for frame in folder.glob("*.jpg"):
                frame.unlink()
            row |= {"frames": 0, "frame_times": [], "crop": [], "modalities": ["audio"], "width": 0, "height": 0}
    (out / "manifest.jsonl").write_text("".join(canonical_json(row) + "\n" for row in rows))
    shard.run(out, tmp_path / "shards", clips_per_shard=10)
    return tmp_path / "shards"


def test_the_subset_holds_the_same_bytes(partial: Path) -> None:
    assert verify.check(partial).damages == []
    index = shard_index.load(partial)
    lacking = {"no_audio": 0, "no_video": 0}
    for name in index.splits:
        split = index.split(name)
        kept, missing = whole(split)
        for reason, count in missing.items():
            lacking[reason] += count
        assert len(kept) == len(split) - sum(missing.values()) == sum(kept.sizes)
        place_of = {split.key(i): i for i in range(len(split))}
        ours, theirs = ShardReader(kept), ShardReader(split)
        for i in range(len(kept)):
            j = place_of[kept.key(i)]
            names = list(kept.members(i))
            assert {"0.jpg", "opus", "json"} <= set(names)
            assert (kept.members(i), kept.path(i)) == (split.members(j), split.path(j))
            assert ours.read(i, names) == theirs.read(j, names)
    assert lacking == {"no_audio": 3, "no_video": 2}


def test_a_split_of_whole_clips_is_itself(tiny_shards: Path) -> None:
    split = shard_index.load(tiny_shards).split("train")
    assert whole(split) == (split, {})


def test_training_leaves_them_out_and_says_so(
    partial: Path, tmp_path: Path, tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipes.load(tiny_recipe(f"data.shards={partial}", "training.epochs=1"), [])
    split = shard_index.load(partial).split("train")
    kept, missing = whole(split)
    done = pretrain.run(recipe, out=tmp_path / "run", device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.step == len(kept) // 8
    assert f"{len(kept)} of {len(split)} clips have both sound and frames; left out: " in capsys.readouterr().err
    assert sum(missing.values()) > 0


def test_evaluation_counts_them_as_missing(partial: Path, tiny_recipe: Callable[..., Path]) -> None:
    recipe = recipes.load(tiny_recipe(f"data.shards={partial}"), [])
    index = shard_index.load(partial)
    split = index.split("test")
    result = evaluate.score(build_objective(recipe).encoder, "retrieval", recipe, partial)
    kept, missing = whole(split)
    assert (result.n_scored, result.n_total, result.missing) == (len(kept), len(split), missing)


def test_a_split_without_one_whole_clip_is_refused(partial: Path) -> None:
    split = shard_index.load(partial).split("train")
    mute = split.subset(~split.having(lambda names: "opus" in names))
    with pytest.raises(DataFault, match="has both sound and frames"):
        fitting.usable(mute)
