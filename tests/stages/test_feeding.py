"""Runs whose clips are held train exactly as those that read them, and stop, resume and refuse as any other."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import assert_same_curve, curve, finish, start, weights

from kdctool import recipe as recipes
from kdctool.data import holding
from kdctool.data.held import Held
from kdctool.errors import EnvironmentFault, Interrupted, KdctoolError, UsageFault
from kdctool.stages import finetune, pretrain

HOLD = "data.hold=memory"


def assert_equal_runs(one: Path, two: Path) -> None:
    assert curve(one) == curve(two)
    mine, theirs = weights(one), weights(two)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture
def read_anew(tiny_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    run = tmp_path / "read"
    pretrain.run(recipes.load(tiny_recipe("training.micro_batch=4")), out=run, device_name="cpu")
    return run


class PowerCutError(KdctoolError):
    """Stands for the process ending in the middle of a step."""


def test_a_held_run_that_stopped_within_an_epoch_is_the_one_that_reads(
    tiny_recipe: Callable[..., Path], tmp_path: Path, read_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load(tiny_recipe("training.micro_batch=4", "log.checkpoint_every_steps=2", HOLD))
    run = tmp_path / "held"
    from kdctool.train import loop

    step_as_it_is = loop.train_step

    def cut_at_step_4(trainer: Any, micros: Any, step: int) -> Any:
        if step == 4:
            raise PowerCutError("power cut")
        return step_as_it_is(trainer, micros, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", cut_at_step_4)
        with pytest.raises(PowerCutError):
            pretrain.run(recipe, out=run, device_name="cpu")
    done = pretrain.run(recipe, out=run, device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.resumed_from == 4
    assert_equal_runs(run, read_anew)
    with monkeypatch.context() as patch:
        patch.setattr(Held, "fill", lambda *_: pytest.fail("nothing is left to train, nothing is to be decoded"))
        again = pretrain.run(recipe, out=run, device_name="cpu")
    assert again.fitted is not None
    assert again.fitted.step == 6


def test_a_run_may_go_on_with_its_clips_held(
    tiny_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("log.checkpoint_every_steps=1",)
    pretrain.run(recipes.load(tiny_recipe(*settings)), out=tmp_path / "one", device_name="cpu")
    read = pretrain.run(recipes.load(tiny_recipe(*settings)), out=tmp_path / "two", device_name="cpu")
    for step in (tmp_path / "two" / "checkpoints").iterdir():
        (step / "manifest.json").unlink()  # Damaged: the run starts over, with what its names promised.
    held = pretrain.run(recipes.load(tiny_recipe(*settings, HOLD)), out=tmp_path / "two", device_name="cpu")
    assert read.fitted is not None
    assert held.fitted is not None
    assert held.fitted.resumed_from == 0
    assert_equal_runs(tmp_path / "one", tmp_path / "two")


def test_a_held_finetuning_is_the_one_that_reads(
    tiny_recipe: Callable[..., Path], tmp_path: Path, read_anew: Path
) -> None:
    settings = ("finetune.mixup=0.5", "finetune.balanced=true", "finetune.time_mask=16")
    for name, more in (("a", ()), ("b", (HOLD,))):
        recipe = recipes.load(tiny_recipe(*settings, *more))
        done = finetune.run(read_anew, recipe=recipe, out=tmp_path / name, device_name="cpu")
        assert ("held clips" in dict(done.plan_rows)) == (name == "b")
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.dist
def test_two_ranks_hold_their_clips(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    alone = tmp_path / "read"
    pretrain.run(recipes.load(tiny_recipe()), out=alone, device_name="cpu")
    recipe = tiny_recipe("training.micro_batch=2", HOLD)
    assert finish(start("pretrain", str(recipe), "--out", str(tmp_path / "held"), "--nproc", "2")) == 0
    assert_same_curve(tmp_path / "held", alone)


def test_a_dry_run_says_what_is_held_in_every_process(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = recipes.load(tiny_recipe("data.hold=auto"))
    done = pretrain.run(recipe, out=tmp_path / "none", device_name="cpu", dry_run=True, nproc=2)
    told = dict(done.plan_rows)["held clips"]
    # 24 clips: 3 frames of 3 x 32 x 32 bytes, 63 x 160 + 400 samples of 2 bytes, 12 bytes of length and mean.
    assert told.startswith(f"{24 * (9216 + 20960 + 12) / 1024:.1f} KB of main memory in each of 2 processes: 72 frames")
    assert not (tmp_path / "none").exists()


def test_a_dry_run_refuses_what_cannot_be_held(
    tiny_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"out": tmp_path / "none", "device_name": "cpu", "dry_run": True}
    with pytest.raises(UsageFault, match=r"data\.crop"):
        pretrain.run(recipes.load(tiny_recipe("data.crop=random", HOLD)), **how)
    monkeypatch.setattr(holding, "free_memory", lambda place: 100_000)
    with pytest.raises(EnvironmentFault, match=r"90% of the free 97\.7 KB") as caught:
        pretrain.run(recipes.load(tiny_recipe(HOLD)), **how)
    assert caught.value.exit_code == 4
    read = pretrain.run(recipes.load(tiny_recipe("data.hold=auto")), **how)
    assert dict(read.plan_rows)["held clips"].startswith("none, they are read in every epoch")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_clips_are_decoded_leaves_a_run_that_goes_on(
    tiny_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    recipe, run = recipes.load(tiny_recipe("training.epochs=1", HOLD)), tmp_path / "run"
    keep = Held._keep

    def told_to_stop(held: Held, raw: Any) -> None:
        keep(held, raw)
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Held, "_keep", told_to_stop)
        with pytest.raises(Interrupted, match="decoded") as caught:
            pretrain.run(recipe, out=run, device_name="cpu")
    assert caught.value.exit_code == code
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    done = pretrain.run(recipe, out=run, device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.step == 3
