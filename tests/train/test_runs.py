"""Whole training runs on tiny shards: resume, ranks, accumulation, and what a changed recipe may not do."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import assert_same_curve, command, curve, finish, power_cut, rows, rows_so_far, start, weights

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.stages import finetune, pretrain


@pytest.fixture
def undisturbed(tiny_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    run = tmp_path / "undisturbed"
    pretrain.run(recipes.load(tiny_recipe("training.epochs=4")), out=run, device_name="cpu")
    return run


def test_a_run_that_stopped_goes_on_bit_for_bit(
    tiny_recipe: Callable[..., Path], tmp_path: Path, undisturbed: Path
) -> None:
    recipe = recipes.load(tiny_recipe("training.epochs=4", "log.checkpoint_every_steps=5"))
    run = tmp_path / "resumed"
    with power_cut(8):
        pretrain.run(recipe, out=run, device_name="cpu")
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    done = pretrain.run(recipe, out=run, device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.resumed_from == 5
    assert curve(run) == curve(undisturbed)
    assert [row["step"] for row in rows(run)] == list(range(12))
    before, after = weights(undisturbed), weights(run)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(
    tiny_recipe: Callable[..., Path], tmp_path: Path, undisturbed: Path, workers: int
) -> None:
    run = tmp_path / "workers"
    pretrain.run(recipes.load(tiny_recipe("training.epochs=4")), out=run, device_name="cpu", workers=workers)
    assert curve(run) == curve(undisturbed)


@pytest.mark.parametrize("shift", ["global", "sample"])
def test_micro_batches_give_the_curve_of_one_batch(
    tiny_recipe: Callable[..., Path], tmp_path: Path, shift: str
) -> None:
    changes = (f"objective.self_distillation.shift={shift}", "training.epochs=4", "optim.eps=1e-3")
    for name, micro in (("whole", 0), ("split", 2)):
        recipe = recipes.load(tiny_recipe(*changes, f"training.micro_batch={micro}"))
        pretrain.run(recipe, out=tmp_path / name, device_name="cpu")
    assert_same_curve(tmp_path / "whole", tmp_path / "split")


@pytest.mark.dist
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "changes",
    [
        ("objective.self_distillation.shift=global",),
        ("objective.self_distillation.shift=sample", "training.micro_batch=2"),
        ("objective.name=cav_mae", "parallel.checkpoint_activations=true"),
    ],
)
def test_two_ranks_give_the_curve_of_one_process(
    tiny_recipe: Callable[..., Path], tmp_path: Path, mode: str, changes: tuple[str, ...]
) -> None:
    # A larger epsilon: Adam would blow gradients that are rounding noise up to full steps.
    recipe = tiny_recipe(*changes, f"parallel.mode={mode}", "training.epochs=7", "optim.eps=1e-3")
    pretrain.run(recipes.load(recipe, ["training.micro_batch=0"]), out=tmp_path / "one", device_name="cpu")
    assert finish(command(recipe, tmp_path / "two", "--nproc", "2")) == 0
    assert len(curve(tmp_path / "one")) == 21
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 5e-6


@pytest.mark.dist
def test_a_checkpoint_of_two_sharded_ranks_goes_on_in_one_process(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    changes = (
        "training.epochs=4",
        "optim.eps=1e-3",
        "log.checkpoint_every_steps=6",
        "log.keep=9",
        "parallel.mode=fsdp",
    )
    recipe = tiny_recipe(*changes)
    pretrain.run(recipes.load(recipe), out=tmp_path / "one", device_name="cpu")
    assert finish(command(recipe, tmp_path / "two", "--nproc", "2")) == 0
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000012")
    done = pretrain.run(recipes.load(recipe), out=tmp_path / "two", device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.resumed_from == 6
    assert_same_curve(tmp_path / "one", tmp_path / "two")


@pytest.mark.dist
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_finetuning_on_two_ranks_gives_the_curve_of_one_process(
    tiny_recipe: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    recipe = tiny_recipe("training.epochs=1", f"parallel.mode={mode}", "finetune.optim.eps=1e-3")
    pretrain.run(recipes.load(recipe), out=tmp_path / "pre", device_name="cpu")
    finetune.run(tmp_path / "pre", out=tmp_path / "one", device_name="cpu")
    assert finish(start("finetune", str(tmp_path / "pre"), "--out", str(tmp_path / "two"), "--nproc", "2")) == 0
    assert len(curve(tmp_path / "one")) > 2
    assert_same_curve(tmp_path / "one", tmp_path / "two")


@pytest.mark.dist
def test_local_negatives_would_be_noticed(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tiny_recipe("objective.contrastive.negatives=local")
    pretrain.run(recipes.load(recipe), out=tmp_path / "one", device_name="cpu")
    assert finish(command(recipe, tmp_path / "two", "--nproc", "2")) == 0
    assert abs(rows(tmp_path / "one")[0]["contrastive"] - rows(tmp_path / "two")[0]["contrastive"]) > 1e-2


@pytest.mark.dist
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("nproc", ["1", "2"])
def test_a_signal_saves_and_the_same_command_goes_on(
    tiny_recipe: Callable[..., Path], tmp_path: Path, number: signal.Signals, code: int, nproc: str
) -> None:
    recipe, run = tiny_recipe("training.epochs=300"), tmp_path / "run"
    process = command(recipe, run, "--nproc", nproc)
    deadline = time.monotonic() + 90
    while not ((run / "metrics.jsonl").exists() and len(rows_so_far(run)) > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.1)
    process.send_signal(number)
    assert finish(process) == code
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", code)
    assert max((run / "checkpoints").iterdir()).name == f"step-{status['step']:08d}"


def test_a_changed_recipe_is_refused_key_by_key(tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain.run(recipes.load(tiny_recipe("training.epochs=1")), out=run, device_name="cpu")
    with pytest.raises(UsageFault) as fault:
        pretrain.run(
            recipes.load(tiny_recipe("training.epochs=1", "optim.lr=0.5", "seed=3")), out=run, device_name="cpu"
        )
    assert "optim.lr: 0.001 -> 0.5" in fault.value.cause
    assert "seed: 0 -> 3" in fault.value.cause
    relaxed = tiny_recipe("training.epochs=1", "log.every_steps=7", "data.workers=1", "training.micro_batch=4")
    pretrain.run(recipes.load(relaxed), out=run, device_name="cpu")


def test_a_second_start_of_a_finished_run_changes_nothing(undisturbed: Path, tiny_recipe: Callable[..., Path]) -> None:
    before = curve(undisturbed)
    done = pretrain.run(recipes.load(tiny_recipe("training.epochs=4")), out=undisturbed, device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.resumed_from == done.fitted.step == 12
    assert curve(undisturbed) == before


def test_a_batch_that_does_not_divide_is_refused_with_a_size_that_does(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageFault, match="not a multiple of micro_batch x ranks = 3 x 1"):
        pretrain.run(recipes.load(tiny_recipe("training.micro_batch=3")), out=tmp_path / "run", device_name="cpu")
    assert not (tmp_path / "run").exists()
