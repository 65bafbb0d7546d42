"""Finetuning as published, through the stages: averages that survive a stop, few clips, probes, and any split."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import assert_same_curve, finish, power_cut, rows, start, weights

from kdctool import cli
from kdctool import recipe as recipes
from kdctool.data import decode
from kdctool.errors import UsageFault
from kdctool.stages import evaluate, export, finetune, fitting, pretrain
from kdctool.stages.load import open_model
from kdctool.train import launch

EVERYTHING = (
    "finetune.mixup=0.5",
    "finetune.freq_mask=8",
    "finetune.time_mask=20",
    "finetune.balanced=true",
    "finetune.layer_decay=0.75",
    "finetune.average_from=2",
    "finetune.label_smoothing=0.1",
    "finetune.optim.name=adamw",
    "finetune.optim.eps=1e-3",
    "finetune.training.epochs=3",
)
EXPECTED = "expected=[" + ", ".join(
    f'{{ task = "classification", metric = "top1", modality = "{modality}", value = 0.5, source = "x" }}'
    for modality in ("both", "audio", "video", "")
) + "]"  # fmt: skip
Recipe = Callable[..., Path]


@pytest.fixture
def pretrained(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    pretrain.run(recipes.load(tiny_recipe("training.epochs=1")), out=tmp_path / "pre", device_name="cpu")
    return tmp_path / "pre"


def classifier_of(run: Path) -> dict[str, torch.Tensor]:
    opened = open_model(run)
    assert opened.classifier is not None
    return opened.classifier.state_dict()


def test_the_result_is_the_mean_of_the_epochs_and_a_stop_changes_no_bit(pretrained: Path, tmp_path: Path) -> None:
    changes = [*EVERYTHING, "log.keep=9"]
    finetune.run(pretrained, overrides=changes, out=tmp_path / "whole", device_name="cpu")
    ends = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert [path.name for path in ends] == ["step-00000003", "step-00000006", "step-00000009"]
    second, third = (load_file(path / "model.safetensors") for path in ends[1:])
    found = classifier_of(tmp_path / "whole")
    assert found.keys() == {name.removeprefix("classifier.") for name in third}
    trained = 0
    for name, last in third.items():
        is_trained = not torch.equal(second[name], last)
        expected = (second[name] + last) / 2.0 if is_trained else last
        assert torch.equal(found[name.removeprefix("classifier.")], expected), name
        trained += is_trained
    assert trained > 20
    opened = open_model(tmp_path / "whole")
    assert "mean of the weights after epochs 2 to 3" in opened.said()

    with power_cut(7):
        finetune.run(pretrained, overrides=changes, out=tmp_path / "cut", device_name="cpu")
    done = finetune.run(pretrained, overrides=changes, out=tmp_path / "cut", device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.resumed_from == 6
    again = classifier_of(tmp_path / "cut")
    assert all(torch.equal(value, again[name]) for name, value in found.items())
    assert open_model(tmp_path / "cut").weights_sha256 == opened.weights_sha256

    result = evaluate.run(tmp_path / "whole", task="classification", device_name="cpu")
    assert result.payload["weights_sha256"] == opened.weights_sha256
    export.run(tmp_path / "whole", out=tmp_path / "export", to=("hf",))
    exported = classifier_of(tmp_path / "export")
    assert all(torch.equal(value, exported[name]) for name, value in found.items())


@pytest.mark.dist
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_and_micro_batches_give_the_curve_of_one_process_with_everything_on(
    pretrained: Path, tmp_path: Path, mode: str
) -> None:
    changes = [part for change in EVERYTHING for part in ("--set", change)]
    arguments = ("finetune", str(pretrained), *changes, "--workers", "0")
    finetune.run(pretrained, overrides=list(EVERYTHING), out=tmp_path / "one", device_name="cpu")
    split = ("--nproc", "2", "--set", "finetune.training.micro_batch=2", "--set", f"parallel.mode={mode}")
    assert finish(start(*arguments, *split, "--out", str(tmp_path / "two"))) == 0
    assert len(rows(tmp_path / "one")) == 9
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    one, two = classifier_of(tmp_path / "one"), classifier_of(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-6


def test_each_kind_of_augmentation_changes_what_is_learnt(pretrained: Path, tmp_path: Path) -> None:
    """Else a comparison of two runs with everything on would compare two runs with nothing on."""
    plain = ["finetune.optim.eps=1e-3", "finetune.training.epochs=1"]
    finetune.run(pretrained, overrides=plain, out=tmp_path / "plain", device_name="cpu")
    before = [row["loss"] for row in rows(tmp_path / "plain")]
    for change in ("mixup=0.5", "freq_mask=8", "time_mask=20", "balanced=true", "layer_decay=0.5"):
        out = tmp_path / change.partition("=")[0]
        finetune.run(pretrained, overrides=[*plain, f"finetune.{change}"], out=out, device_name="cpu")
        assert max(abs(a - row["loss"]) for a, row in zip(before, rows(out), strict=True)) > 1e-6, change


def test_few_shots_train_on_so_many_clips_of_each_class(pretrained: Path, tmp_path: Path) -> None:
    found = {}
    for change in ("per_class=2", "per_class=4", "share=0.5"):
        few = [f"finetune.{change}", "finetune.training.global_batch=2"]
        done = finetune.run(pretrained, overrides=few, out=tmp_path / "x", device_name="cpu", dry_run=True)
        found[change] = dict(done.plan_rows)
    assert found["per_class=2"]["few-shot"] == "6 of 24 clips: 2 per class, seed 0"
    assert found["per_class=2"]["steps"] == "3 per epoch x 1 epochs = 3"
    assert found["per_class=4"]["clips"] == "12"
    # 24 training clips, held out by source video: about 8 of each class.
    assert 12 <= int(found["share=0.5"]["clips"]) <= 14
    few = ["per_class=2", "training.global_batch=3", "balanced=true", "mixup=1.0"]
    changes = [f"finetune.{change}" for change in few]
    finetune.run(pretrained, overrides=changes, out=tmp_path / "few", device_name="cpu")
    assert len(rows(tmp_path / "few")) == 2


def test_an_attentive_probe_trains_its_head_alone_and_opens_again(pretrained: Path, tmp_path: Path) -> None:
    change = ["finetune.head=attentive", "finetune.modality=audio", "finetune.average_from=1", EXPECTED]
    finetune.run(pretrained, overrides=change, out=tmp_path / "probe", device_name="cpu")
    before, after = open_model(pretrained).encoder.state_dict(), open_model(tmp_path / "probe")
    assert all(torch.equal(value, before[name]) for name, value in after.encoder.state_dict().items())
    assert after.classifier is not None
    assert after.classifier.head == "attentive"
    kept = {name for name in weights(tmp_path / "probe") if "mlp_head.pool" in name}
    assert kept
    scored = evaluate.run(tmp_path / "probe", task="classification", device_name="cpu")
    assert scored.result.n_scored == 20
    assert [row.modality for row in scored.expected] == ["audio", ""], "numbers of another modality are no yardstick"
    export.run(tmp_path / "probe", out=tmp_path / "export", to=("hf",))
    exported = classifier_of(tmp_path / "export")
    assert all(torch.equal(value, exported[name]) for name, value in after.classifier.state_dict().items())


@pytest.mark.parametrize(("modality", "untouched"), [("audio", "frame"), ("video", "audio")])
def test_one_modality_reads_nothing_of_the_other(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str, untouched: str
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError(f"{untouched} was decoded")

    monkeypatch.setattr(decode, untouched, never)
    change = [f"finetune.modality={modality}", "finetune.mixup=1.0", "finetune.freq_mask=8"]
    finetune.run(pretrained, overrides=change, out=tmp_path / "fine", device_name="cpu")
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "fine"))


def test_a_recipe_for_a_wider_filter_bank_is_refused_by_key(pretrained: Path, tiny_recipe: Recipe) -> None:
    wide = recipes.load(tiny_recipe("model.mel_bins=64", "finetune.freq_mask=48"))
    with pytest.raises(UsageFault, match=r"finetune\.freq_mask = 48 is wider than the model's filter bank \(32\)"):
        finetune.run(pretrained, recipe=wide, out=pretrained.parent / "fine", device_name="cpu")


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_restarts_and_profiles_are_had_by_both_verbs(
    pretrained: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    first = {"pretrain": recipes.load(tiny_recipe("training.epochs=1")), "finetune": pretrained}[verb]
    stage: Any = {"pretrain": pretrain, "finetune": finetune}[verb]
    stage.run(first, out=tmp_path / "profiled", device_name="cpu", profile=(0, 2))
    assert list((tmp_path / "profiled" / "profile").glob("*.json*"))
    asked = []
    monkeypatch.setattr(launch, "torchrun", lambda *given: asked.append(given) or 7)
    done = stage.run(first, out=tmp_path / "run", device_name="cpu", max_restarts=3, arguments=[verb, "x"])
    assert asked == [(1, [verb, "x"], tmp_path / "run", 3)]
    assert (done.exit_code, done.fitted) == (7, None)


def test_pretraining_goes_on_from_weights_and_two_starts_are_two_runs(
    pretrained: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    plain = recipes.load(tiny_recipe("training.epochs=1"))
    recipe = recipes.load(tiny_recipe("training.epochs=1", f"model.init={pretrained}"))
    expected = open_model(pretrained).encoder.state_dict()
    begun = pretrain.build_objective(recipe).encoder.state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in expected.items())
    assert not all(
        torch.equal(value, expected[n]) for n, value in pretrain.build_objective(plain).encoder.state_dict().items()
    )
    pretrain.run(recipe, out=tmp_path / "own", device_name="cpu")
    assert (
        json.loads((tmp_path / "own" / "run.json").read_text())["keys"]["init"] == open_model(pretrained).weights_sha256
    )
    with pytest.raises(UsageFault, match="init: unset -> "):
        pretrain.run(recipe, out=pretrained, device_name="cpu")
    with pytest.raises(UsageFault, match="there are no weights at nowhere"):
        pretrain.run(recipes.load(tiny_recipe("model.init=nowhere")), out=tmp_path / "no", device_name="cpu")


def test_flags_of_the_command_line_reach_the_stage(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def caught(*given: Any, **named: Any) -> fitting.Trained:
        seen.update(named, given=given)
        return fitting.Trained(tmp_path, None, [("plan", "x")])

    monkeypatch.setattr(pretrain, "run", caught)
    monkeypatch.setattr(finetune, "run", caught)
    odd = tmp_path / 'my "own" weights, 2 = two.pth'
    shared = ["--profile", "3:5", "--max-restarts", "2", "--nproc", "1", "--device", "cpu"]
    command = ["pretrain", str(tiny_recipe()), "--init", str(odd), *shared]
    monkeypatch.setattr("sys.argv", ["kdctool", *command])
    assert cli.run(command) == 0
    assert seen["given"][0].model.init == str(odd)
    assert (seen["profile"], seen["max_restarts"]) == ((3, 5), 2)
    assert seen["arguments"] == ["pretrain", *command[1:6], "--device", "cpu"]
    seen.clear()
    assert cli.run(["finetune", str(tmp_path), *shared]) == 0
    assert (seen["profile"], seen["max_restarts"], seen["device_name"]) == ((3, 5), 2, "cpu")
