"""`export` on tiny runs: the round trip, the checks that must fail when they should, and what is refused."""

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdctool.cli import run as kdctool
from kdctool.errors import UsageFault, VerificationFault
from kdctool.export import Check, Probes, exporters, parity
from kdctool.export.huggingface import released_state
from kdctool.export.onnx import AudioGraph, graphs, write_graph
from kdctool.files import read_json, sha256_file
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.weights import split_state
from kdctool.stages import evaluate, export
from kdctool.stages.load import open_model


@pytest.fixture(scope="module")
def exported(study, tmp_path_factory):
    """The finetuned run in every format, compared on its shards."""
    evaluate.run(study.finetuned, task="classification")
    folder = tmp_path_factory.mktemp("exports") / "model"
    return export.run(study.finetuned, out=folder, shards=study.shards)


@pytest.fixture(scope="module")
def package(study):
    return export._package(open_model(study.finetuned))


def test_the_folder_holds_what_its_manifest_says(exported):
    files = read_json(exported.folder / "manifest.json")["files"]
    assert set(files) == {path.name for path in exported.folder.iterdir()} - {"manifest.json"}
    graphs = {"audio.onnx", "video.onnx", "classifier.onnx"}
    assert set(files) >= {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} | graphs
    for name, expected in files.items():
        assert sha256_file(exported.folder / name) == expected


def test_the_folder_opens_as_the_model_it_was_bit_for_bit(study, exported):
    before, after = open_model(study.finetuned), open_model(exported.folder)
    assert (after.kind, after.step, after.labels, after.recipe) == (before.kind, 7, before.labels, before.recipe)
    ours, theirs = before.classifier.state_dict(), after.classifier.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_an_export_scores_exactly_as_its_run(study, exported, tmp_path):
    for task in ("retrieval", "classification"):
        ours, theirs = (
            evaluate.run(source, task=task, out=tmp_path / task).result for source in (study.finetuned, exported.folder)
        )
        assert ours == theirs


def test_weights_carry_the_released_names_and_no_decoder(study, exported, tmp_path):
    encoder, decoder, head = split_state(load_file(exported.folder / "model.safetensors"))
    assert encoder.keys() == AVEncoder(study.recipe.model).state_dict().keys()
    assert not decoder
    assert head.keys() == {f"{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    done = export.run(study.pretrained, out=tmp_path / "pre", to=("hf",))
    assert set(load_file(done.folder / "model.safetensors")) == set(encoder)
    assert open_model(done.folder).classifier is None


def test_config_and_preprocessor_say_everything_about_model_and_inputs(study, exported):
    config = read_json(exported.folder / "config.json")
    for key in type(study.recipe.model).model_fields:
        if key != "init":
            assert config[key] == getattr(study.recipe.model, key), key
    assert config["model_type"] == "kdctool-cav-mae"
    assert (config["kind"], config["objective"], config["labels"]) == ("finetune", "kdc_mae", ["bell", "dog", "rain"])
    assert config["id2label"] == {"0": "bell", "1": "dog", "2": "rain"}
    inputs = read_json(exported.folder / "preprocessor_config.json")
    assert inputs["sampling_rate"] == 16000
    assert (inputs["audio"]["num_mel_bins"], inputs["audio"]["num_frames"], inputs["audio"]["mean"]) == (16, 32, -5.081)
    assert inputs["image"]["size"] == {"height": 16, "width": 16}
    assert inputs["image"]["std"] == [0.229, 0.224, 0.225]


def test_the_card_names_digests_results_licence_and_its_own_checks(study, exported):
    text = (exported.folder / "README.md").read_text()
    results = read_json(study.finetuned / "eval" / "classification" / "results.json")
    assert results["data_digest"] in text
    assert f"{results['metrics']['map']['value']:.4g}" in text
    assert "opset 18" in text
    assert "random weights" in text
    assert "8 clips of split 'test'" in text
    python = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(python) == 2


def test_the_code_on_the_card_runs(exported, monkeypatch):
    text = (exported.folder / "README.md").read_text()
    monkeypatch.chdir(exported.folder)
    eager, graph = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"fbank": torch.randn(2, 32, 16)}
    exec(eager, names)
    assert names["tokens"].shape == (2, 8, 32)
    names = {"fbank": np.zeros((2, 32, 16), dtype=np.float32)}
    exec(graph, names)
    assert names["embedding"].shape == (2, 32)


def test_a_card_of_initialised_weights_passes_their_licence_on(package):
    model = package.recipe.model.model_copy(update={"init": "/data/mae_pretrain.pth"})
    changed = package.__class__(**{**package.__dict__, "recipe": package.recipe.model_copy(update={"model": model})})
    text = export.card.card(changed, [], [], parity.noise(model))
    assert "mae_pretrain.pth" in text
    assert "CC BY-NC" in text
    assert "/data/" not in text


def test_every_graph_takes_any_batch_and_agrees_with_eager(study, exported):
    differences = {check.name: check.difference for check in exported.checks}
    assert set(differences) >= {"audio.onnx", "video.onnx", "classifier.onnx"}
    assert all(value <= 1e-5 for value in differences.values())
    session = onnxruntime.InferenceSession(str(exported.folder / "classifier.onnx"))
    assert [entry.name for entry in session.get_inputs()] == ["fbank", "frame"]
    fbank, frame = torch.randn(7, 32, 16), torch.randn(7, 3, 16, 16)
    logits = session.run(None, {"fbank": fbank.numpy(), "frame": frame.numpy()})[0]
    with torch.inference_mode():
        expected = open_model(study.finetuned).classifier({"fbank": fbank, "frame": frame})
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


def test_graphs_tell_nothing_about_the_machine_that_made_them(exported):
    for path in exported.folder.glob("*.onnx"):
        data = path.read_bytes()
        assert b"site-packages" not in data
        assert b".py" not in data


def test_graphs_carry_the_normalisation_of_their_own_inputs(study, exported):
    told = {
        name: {entry.key: json.loads(entry.value) for entry in onnx.load(exported.folder / name).metadata_props}
        for name in ("audio.onnx", "classifier.onnx")
    }
    assert told["audio.onnx"]["kdctool.fbank_mean"] == -5.081
    assert "kdctool.image_mean" not in told["audio.onnx"]
    assert told["classifier.onnx"]["kdctool.image_std"] == [0.229, 0.224, 0.225]
    assert told["classifier.onnx"]["kdctool.labels"] == ["bell", "dog", "rain"]
    assert told["classifier.onnx"]["kdctool.weights_sha256"] == open_model(study.finetuned).weights_sha256


def test_a_classifier_of_one_modality_has_one_input(study, tmp_path):
    head = AVClassifier(AVEncoder(study.recipe.model), 3, "video").eval()
    module, inputs, _ = graphs(_with(study, head))["classifier.onnx"]
    probes = parity.noise(study.recipe.model)
    given = {"fbank": probes.fbank, "frame": probes.frame}
    write_graph(tmp_path / "c.onnx", module, {key: given[key][:2] for key in inputs}, "logits")
    assert inputs == ("frame",)
    assert parity.graph_difference(tmp_path / "c.onnx", module, given) < 1e-5


def _with(study, classifier):
    opened = export._package(open_model(study.finetuned))
    return opened.__class__(**{**opened.__dict__, "encoder": classifier.encoder, "classifier": classifier})


def test_a_graph_of_another_model_or_with_a_changed_weight_is_caught(study, exported, tmp_path):
    probes = parity.noise(study.recipe.model)
    graph = exported.folder / "audio.onnx"
    own = AudioGraph(open_model(study.finetuned).encoder)
    assert parity.graph_difference(graph, own, {"fbank": probes.fbank}) < 1e-5
    torch.manual_seed(1)
    other = AudioGraph(AVEncoder(study.recipe.model).eval())
    assert parity.graph_difference(graph, other, {"fbank": probes.fbank}) > parity.LIMIT
    changed = onnx.load(graph)
    weight = next(w for w in changed.graph.initializer if w.name.endswith("patch_embed_a.proj.bias"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] += 0.05
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(changed, tmp_path / "changed.onnx")
    found = parity.graph_difference(tmp_path / "changed.onnx", own, {"fbank": probes.fbank})
    assert found > parity.LIMIT
    with pytest.raises(VerificationFault, match="audio") as caught:
        parity.gate([Check("audio.onnx", found, parity.LIMIT)])
    assert caught.value.exit_code == 5


def test_a_nan_difference_fails_the_gate():
    with pytest.raises(VerificationFault):
        parity.gate([Check("x", float("nan"), 1e-4)])
    parity.gate([Check("x", 1e-4, 1e-4), Check("y", 0.0, 0.0)])


def test_one_changed_bit_in_the_weights_file_is_caught(exported, package, tmp_path):
    state = released_state(package)
    state["norm.bias"] = state["norm.bias"].clone()
    state["norm.bias"][0] = torch.nextafter(state["norm.bias"][0], torch.tensor(9.0))
    save_file(state, tmp_path / "model.safetensors")
    hf = exporters.get("hf").cls()
    checks = hf.check(package, tmp_path, parity.noise(package.recipe.model))
    assert checks[0].difference > 0
    with pytest.raises(VerificationFault, match=r"model\.safetensors"):
        parity.gate(checks)


def test_tensors_of_other_names_or_types_never_count_as_equal():
    a = {"w": torch.zeros(2)}
    assert parity.tensor_difference(a, {"w": torch.zeros(2)}) == 0.0
    assert parity.tensor_difference(a, {"v": torch.zeros(2)}) == float("inf")
    assert parity.tensor_difference(a, {"w": torch.zeros(2).double()}) == float("inf")
    assert parity.tensor_difference(a, {"w": torch.tensor([0.0, float("nan")])}) == float("inf")
    assert parity.tensor_difference(a, {"w": torch.tensor([0.0, 0.5])}) == 0.5


def test_probes_are_compared_in_batches_of_one_two_and_five_and_all_of_them():
    assert [(s.start, s.stop) for s in parity.batches(8)] == [(0, 1), (1, 3), (3, 8)]
    assert [s.stop - s.start for s in parity.batches(32)] == [1, 2, 5, 5, 5, 5, 5, 4]


def test_noise_is_the_same_every_time(study):
    one, two = parity.noise(study.recipe.model), parity.noise(study.recipe.model)
    assert torch.equal(one.fbank, two.fbank)
    assert isinstance(one, Probes)
    assert one.frame.shape == (8, 3, 16, 16)


def test_a_failed_comparison_leaves_nothing_and_ends_with_exit_code_5(study, tmp_path, capsys):
    @exporters.register("crooked")
    class Crooked:
        def __init__(self, options):
            pass

        def write(self, package, folder):
            (folder / "crooked.bin").write_bytes(b"x")
            return ["crooked.bin"]

        def check(self, package, folder, probes):
            return [Check("crooked.bin", 0.2, 1e-4)]

    try:
        out = tmp_path / "out"
        assert kdctool(["export", str(study.pretrained), "--out", str(out), "--to", "crooked"]) == 5
    finally:
        exporters._entries.pop("crooked")
    assert "crooked.bin differs by 0.2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(study, tmp_path, package):
    package.classifier.mlp_head[1].bias.data[1] = float("nan")
    try:
        with pytest.raises(VerificationFault, match=r"mlp_head\.1\.bias"):
            parity.refuse_broken_weights(package)
    finally:
        package.classifier.mlp_head[1].bias.data[1] = 0.0


def test_an_existing_folder_is_replaced_only_when_told_and_only_an_export(study, tmp_path):
    out = tmp_path / "out"
    export.run(study.pretrained, out=out, to=("hf",))
    (out / "stale.txt").write_text("x")
    with pytest.raises(UsageFault, match="exists already") as caught:
        export.run(study.pretrained, out=out, to=("hf",))
    assert "--overwrite" in caught.value.next_step
    export.run(study.pretrained, out=out, to=("hf",), overwrite=True)
    assert not (out / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(UsageFault, match="not an export"):
        export.run(study.pretrained, out=precious, to=("hf",), overwrite=True)
    assert (precious / "thesis.tex").exists()


def test_an_export_can_be_exported_over_itself(study, tmp_path):
    out = tmp_path / "out"
    export.run(study.pretrained, out=out, to=("hf",))
    before = sha256_file(out / "model.safetensors")
    export.run(out, out=out, to=("hf",), overwrite=True)
    assert sha256_file(out / "model.safetensors") == before


def test_equal_runs_export_equal_bytes(study, tmp_path):
    one, two = (export.run(study.pretrained, out=tmp_path / name, to=("hf",)).folder for name in "ab")
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


def test_an_unknown_format_and_a_missing_run_are_usage_errors(study, tmp_path):
    with pytest.raises(UsageFault, match="no exporter is called 'onxx'") as caught:
        export.run(study.pretrained, out=tmp_path / "o", to=("onxx",))
    assert "'onnx'" in caught.value.next_step
    with pytest.raises(UsageFault, match="no format"):
        export.run(study.pretrained, out=tmp_path / "o", to=())
    with pytest.raises(UsageFault, match="does not exist"):
        export.run(tmp_path / "nothing", out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_damaged_export_does_not_open(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported.folder, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(VerificationFault, match="does not match"):
        open_model(copy)


def test_the_command_prints_the_largest_difference_and_is_otherwise_quiet(study, tmp_path, capfd):
    arguments = ["--quiet", "export", str(study.pretrained), "--out", str(tmp_path / "o"), "--format", "json"]
    assert kdctool(arguments) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    payload = json.loads(printed.out)
    assert payload["differences"]["audio.onnx"]["limit"] == 1e-4
    assert 0 <= payload["differences"]["audio.onnx"]["value"] <= 1e-4
    assert "seeded noise" in payload["compared_on"]
    assert set(payload["files"]) == {path.name for path in (tmp_path / "o").iterdir()}
