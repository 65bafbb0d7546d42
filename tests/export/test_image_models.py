"""Image models out of the house and in again: timm's folder, ours, and ONNX, each with the numbers of the run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from distilling import ARCH
from image_runs import SIDE, exported, pretrained, recipe_for
from safetensors.torch import load_file
from training_runs import weights

import kdctool
from kdctool.cli import run as command
from kdctool.errors import UsageFault, VerificationFault
from kdctool.export import Check, exporters, parity
from kdctool.export.onnx import ImageGraph, graphs
from kdctool.files import read_json, sha256_file
from kdctool.stages import embed, evaluate, export, finetune
from kdctool.stages.load import open_model

RELATIVE = {"student": {"arch": ARCH, "pos": "relbias", "input": "full"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of pictures, a pre-trained and a finetuned run, and the timm export of each."""
    return exported(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def graphed(place: Path) -> export.Exported:
    return export.run(place / "tuned", out=place / "graphs", to=("timm", "onnx"), shards=place / "shards")


def scores(path: Path, task: str, out: Path, **options: Any) -> tuple[Any, bytes]:
    """The result, and what was written of it."""
    done = evaluate.run(path, task=task, out=out, device_name="cpu", options=options, allow_overlap=True)
    payload = {key: value for key, value in done.payload.items() if key != "weights_sha256"}
    return done.result.metrics, json.dumps([payload, done.result.details], default=str).encode()


@pytest.mark.parametrize("name", ["run", "tuned"])
def test_a_timm_export_opens_as_the_model_it_was_bit_for_bit(place: Path, name: str) -> None:
    before, after = (open_model(place / each, images=True) for each in (name, f"{name}-timm"))
    assert (after.kind, after.step, after.labels, after.recipe) == (before.kind, 7, before.labels, before.recipe)
    assert (after.multi_label, after.data_digest, after.teachers) == (False, before.data_digest, before.teachers)
    ours, theirs = ((x.classifier or x.encoder).state_dict() for x in (before, after))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert after.weights_sha256 == sha256_file(place / f"{name}-timm" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "task", "options"),
    [
        ("run", "diagnose", {}),
        ("run", "probe", {"present": "video", "labels": "all"}),
        ("tuned", "classification", {}),
        ("tuned", "probe", {"present": "video", "labels": "all"}),
    ],
)
def test_a_timm_export_scores_exactly_as_its_run(
    place: Path, tmp_path: Path, name: str, task: str, options: dict[str, str]
) -> None:
    ours, written = scores(place / name, task, tmp_path / "a", **options)
    theirs, again = scores(place / f"{name}-timm", task, tmp_path / "b", **options)
    assert ours == theirs
    assert written == again
    assert ours or b"ahd_mean" in written


def test_embeddings_of_run_and_export_are_the_same_bytes(place: Path, tmp_path: Path) -> None:
    for name in ("run", "run-timm"):
        done = embed.run(place / name, place / "shards", tmp_path / f"{name}.npy", device_name="cpu", workers=0)
        assert (done.n_embedded, done.n_total, done.parts) == (24, 24, ("video",))
    assert (tmp_path / "run.npy").read_bytes() == (tmp_path / "run-timm.npy").read_bytes()
    values = np.load(tmp_path / "run.npy")
    assert values.shape == (24, 1, 64)
    assert np.abs(np.linalg.norm(values, axis=2) - 1).max() < 1e-5
    assert json.loads((tmp_path / "run.npy.json").read_text())["vectors"] == ["video"]


def test_finetuning_from_the_export_is_finetuning_from_the_run(place: Path, tmp_path: Path) -> None:
    for name in ("run", "run-timm"):
        finetune.run(place / name, out=tmp_path / name, device_name="cpu")
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "run-timm")
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert read_json(tmp_path / "run-timm" / "run.json")["teachers"]["c"]["licence"] == "CC-BY-NC-4.0"


def test_python_opens_the_export(place: Path) -> None:
    picture = next((place / "pictures" / "green").glob("*.jpg"))
    one, two = (kdctool.load(place / name) for name in ("tuned", "tuned-timm"))
    assert one.classify(picture) == two.classify(picture)
    assert np.array_equal(one.embed_video(picture), two.embed_video(picture))


def test_an_export_is_exported_over_itself_with_the_same_weights(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "tuned-timm", tmp_path / "x")
    export.run(tmp_path / "x", out=tmp_path / "x", overwrite=True)
    for name in ("model.safetensors", "norm.safetensors"):
        assert sha256_file(tmp_path / "x" / name) == sha256_file(place / "tuned-timm" / name)


def test_a_damaged_norm_does_not_open(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "tuned-timm", tmp_path / "x")
    data = bytearray((tmp_path / "x" / "norm.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x" / "norm.safetensors").write_bytes(data)
    with pytest.raises(VerificationFault, match=r"norm\.safetensors does not match"):
        open_model(tmp_path / "x", images=True)


def test_callers_that_need_sound_refuse_the_export_as_they_refuse_the_run(place: Path) -> None:
    for name in ("run", "run-timm"):
        with pytest.raises(UsageFault, match=rf"is an image model \({ARCH}\)"):
            open_model(place / name)


@pytest.mark.parametrize("name", ["run", "tuned"])
def test_our_own_folder_holds_an_image_model_too(place: Path, tmp_path: Path, name: str) -> None:
    done = export.run(place / name, out=tmp_path / "hf", to=("hf",))
    assert [check.difference for check in done.checks] == [0.0, 0.0]
    ours, theirs = (open_model(path, images=True) for path in (place / name, done.folder))
    one, two = ((x.classifier or x.encoder).state_dict() for x in (ours, theirs))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    config = read_json(done.folder / "config.json")
    assert (config["model_type"], config["arch"], config["image_size"]) == ("kdctool-vit", ARCH, SIDE)
    assert ("audio_frames" in config, config.get("labels", [])) == (False, list(theirs.labels))


def test_what_timm_cannot_name_leaves_in_our_own_folder(place: Path, tmp_path: Path) -> None:
    relative = pretrained(tmp_path / "run", recipe_for(place, distill=RELATIVE))
    with pytest.raises(UsageFault, match="relbias") as caught:
        export.run(relative, out=tmp_path / "timm")
    assert "--to hf" in caught.value.next_step
    export.run(relative, out=tmp_path / "hf", to=("hf",))
    probing = {"present": "video", "labels": "all"}
    ours = scores(relative, "probe", tmp_path / "a", **probing)
    assert ours == scores(tmp_path / "hf", "probe", tmp_path / "b", **probing)


def test_two_formats_of_the_same_files_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"--to hf and --to timm both write model\.safetensors"):
        export.run(place / "run", out=tmp_path / "x", to=("hf", "timm"))
    assert not (tmp_path / "x").exists()


def test_graphs_take_any_batch_and_agree_with_eager(place: Path, graphed: export.Exported) -> None:
    assert {check.name for check in graphed.checks} >= {"image.onnx", "classifier.onnx"}
    assert all(check.difference <= 1e-5 for check in graphed.checks)
    assert {"model.safetensors", "kdctool.json", "norm.safetensors"} <= graphed.files.keys()
    opened = open_model(place / "tuned", images=True)
    frame = torch.randn(7, 3, SIDE, SIDE)
    assert opened.classifier is not None
    with torch.inference_mode():
        logits = opened.classifier({"frame": frame}).numpy()
        tokens = opened.encoder.forward_features(frame)[:, 1:]
        features = torch.nn.functional.normalize(tokens.mean(1), dim=-1).numpy()
    for name, wanted in (("classifier.onnx", logits), ("image.onnx", features)):
        session = onnxruntime.InferenceSession(str(graphed.folder / name))
        assert [entry.name for entry in session.get_inputs()] == ["frame"]
        np.testing.assert_allclose(session.run(None, {"frame": frame.numpy()})[0], wanted, atol=1e-5)


def test_graphs_say_how_their_input_is_normalised(place: Path, graphed: export.Exported) -> None:
    session = onnxruntime.InferenceSession(str(graphed.folder / "classifier.onnx"))
    told = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert told["kdctool.image_mean"] == [0.485, 0.456, 0.406]
    assert told["kdctool.image_std"] == [0.2, 0.25, 0.3]
    assert told["kdctool.image_size"] == SIDE
    assert told["kdctool.labels"] == ["blue", "green", "red"]
    assert told["kdctool.weights_sha256"] == open_model(place / "tuned", images=True).weights_sha256
    assert b".py" not in (graphed.folder / "classifier.onnx").read_bytes()
    image = onnx.load(graphed.folder / "image.onnx")
    assert "kdctool.labels" not in {entry.key for entry in image.metadata_props}


def test_a_graph_of_other_weights_is_caught(place: Path, graphed: export.Exported) -> None:
    frame = parity.noise(open_model(place / "run", images=True).recipe.model).frame
    own, other = (ImageGraph(open_model(place / name, images=True).encoder) for name in ("tuned", "run"))
    path = graphed.folder / "image.onnx"
    assert parity.graph_difference(path, own, {"frame": frame}) < 1e-5
    found = parity.graph_difference(path, other, {"frame": frame})
    with pytest.raises(VerificationFault, match=r"image\.onnx differs"):
        parity.gate([Check("image.onnx", found, parity.LIMIT)])


def test_a_model_without_a_head_has_one_graph(place: Path) -> None:
    assert list(graphs(export._package(open_model(place / "run", images=True)))) == ["image.onnx"]


def test_the_code_on_the_card_runs(
    place: Path, graphed: export.Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(graphed.folder, tmp_path / "x")
    text = (tmp_path / "x" / "README.md").read_text()
    ours, theirs, graph = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copy(next((place / "pictures" / "red").glob("*.jpg")), tmp_path / "x" / "picture.jpg")
    monkeypatch.chdir(tmp_path / "x")
    names: dict[str, Any] = {"frame": torch.randn(2, 3, SIDE, SIDE)}
    exec(ours, names)
    assert names["vector"].shape == (64,)
    exec(theirs, names)
    assert names["model"](names["frame"]).shape == (2, 3)
    names = {"frame": np.zeros((2, 3, SIDE, SIDE), dtype=np.float32)}
    exec(graph, names)
    assert names["embedding"].shape == (2, 64)
    assert "library_name: timm" in text


def test_the_command_ends_with_the_next_one(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["export", str(place / "run"), "--out", str(tmp_path / "x")]) == 0
    assert f"kdctool eval {tmp_path / 'x'} --task diagnose" in " ".join(capsys.readouterr().out.split())


def test_the_weights_of_an_export_are_those_timm_reads(place: Path) -> None:
    state = load_file(place / "tuned-timm" / "model.safetensors")
    assert {"fc_norm.weight", "head.weight"} <= state.keys()
    assert not {"norm.weight", "mlp_head.0.weight"} & state.keys()
    assert load_file(place / "tuned-timm" / "norm.safetensors").keys() == {"norm.weight", "norm.bias"}
    assert "norm.safetensors" in read_json(place / "tuned-timm" / "manifest.json")["files"]
    assert set(exporters.names()) >= {"hf", "onnx", "timm"}
