"""What goes wrong in a week: poisoned clips, killed ranks, kills during a save, full disks, stalls."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from training_runs import command, curve, finish, rows, rows_so_far, weights

from kdctool import recipe as recipes
from kdctool.errors import EnvironmentFault
from kdctool.files import read_json
from kdctool.recipe.machine import Guard
from kdctool.stages import pretrain, replay
from kdctool.train import checkpoint, saver
from kdctool.train.guard import NonFiniteError
from kdctool.train.watchdog import Watchdog

Recipe = Callable[..., Path]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make a clip come out of the data as NaN."""

    def clip(number: int) -> None:
        from kdctool.data import device

        as_it_is = device.ToBatch.__call__

        def poisoned(self: Any, raw: Any) -> Any:
            batch = as_it_is(self, raw)
            batch["fbank"][batch["clip"] == number] = float("nan")
            return batch

        monkeypatch.setattr(device.ToBatch, "__call__", poisoned)

    return clip


def test_a_poisoned_clip_stops_the_run_and_replay_names_it(
    tiny_recipe: Recipe, tmp_path: Path, poison: Callable[[int], None]
) -> None:
    poison(7)
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError) as fault:
        pretrain.run(recipes.load(tiny_recipe("log.checkpoint_every_steps=1")), out=run, device_name="cpu")
    capture = run / "nonfinite" / f"step-{fault.value.step:08d}.json"
    assert str(capture) in fault.value.next_step
    assert 7 in read_json(capture)["clips"]
    status = read_json(run / "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert all(torch.isfinite(value).all() for value in weights(run).values()) or fault.value.step == 0

    found = replay.run(capture, device_name="cpu")
    assert math.isnan(found.loss)
    bad = [uid for uid, loss in found.clips if not math.isfinite(loss)]
    index = recipes.load(run / "recipe.toml").data.shards
    from kdctool.shards import index as shard_index

    assert bad == [shard_index.load(Path(index)).split("train").key(7)]


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_bad_step_is_left_out_and_a_resume_leaves_it_out_too(
    tiny_recipe: Recipe, tmp_path: Path, poison: Callable[[int], None], policy: str
) -> None:
    poison(7)
    changes = (f"guard.on_nonfinite={policy}", "log.checkpoint_every_steps=2", "training.epochs=2")
    run = tmp_path / "run"
    done = pretrain.run(recipes.load(tiny_recipe(*changes)), out=run, device_name="cpu").fitted
    assert done is not None
    assert done.step == 6
    assert len(done.skipped) == 2  # The clip comes once in each epoch.
    assert [row["step"] for row in rows(run)] == [step for step in range(6) if step not in done.skipped]
    assert read_json(max((run / "checkpoints").iterdir()) / "state.json")["skipped"] == list(done.skipped)
    assert all(torch.isfinite(value).all() for value in weights(run).values())


def test_too_many_bad_steps_end_the_run(tiny_recipe: Recipe, tmp_path: Path, poison: Callable[[int], None]) -> None:
    poison(7)
    recipe = recipes.load(tiny_recipe("guard.on_nonfinite=skip", "guard.max_skips=1", "training.epochs=3"))
    with pytest.raises(NonFiniteError):
        pretrain.run(recipe, out=tmp_path / "run", device_name="cpu")


def test_a_full_disk_is_survived_and_repeated_failure_ends_with_the_last_checkpoint_intact(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[int] = []
    as_it_is = checkpoint.write

    def full_after_the_first(folder: Path, taken: checkpoint.Snapshot) -> Path:
        if written:
            raise EnvironmentFault("no space left while writing a checkpoint", "free some space")
        written.append(taken.step)
        return as_it_is(folder, taken)

    monkeypatch.setattr(saver.checkpoint, "write", full_after_the_first)
    run = tmp_path / "run"
    recipe = recipes.load(tiny_recipe("log.checkpoint_every_steps=1", "training.epochs=5"))
    with pytest.raises(EnvironmentFault) as fault:
        pretrain.run(recipe, out=run, device_name="cpu")
    assert fault.value.exit_code == 4
    assert "step-00000001 is intact" in capsys.readouterr().err
    assert len(rows(run)) > 3
    found = checkpoint.latest(run / "checkpoints")
    assert found is not None
    assert found.step == written[0]


def test_a_disk_that_is_full_at_the_first_checkpoint_promises_none_before(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path, taken: checkpoint.Snapshot) -> Path:
        raise EnvironmentFault("no space left while writing a checkpoint", "free some space")

    monkeypatch.setattr(saver.checkpoint, "write", full)
    recipe = recipes.load(tiny_recipe("log.checkpoint_every_steps=1", "guard.failed_saves=0"))
    with pytest.raises(EnvironmentFault, match="no space left"):
        pretrain.run(recipe, out=tmp_path / "run", device_name="cpu")
    told = capsys.readouterr().err
    assert "there is none before it, so nothing is saved yet" in told
    assert "intact" not in told


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_is_really_full_gives_exit_4_and_goes_on_after_cleaning(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no tmpfs here: {mount.stderr.decode().strip()}")
    try:
        recipe = recipes.load(tiny_recipe("log.checkpoint_every_steps=1", "guard.failed_saves=0", "training.epochs=2"))
        filler = small / "filler"
        filler.write_bytes(b"x" * 2_500_000)
        with pytest.raises(EnvironmentFault, match=r"no space left .* needs .* free"):
            pretrain.run(recipe, out=small / "run", device_name="cpu")
        assert not list((small / "run" / "checkpoints").glob("*.partial"))
        filler.unlink()
        done = pretrain.run(recipe, out=small / "run", device_name="cpu").fitted
        assert done is not None
        assert done.step == 6
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


@pytest.mark.parametrize("moment", ["model.safetensors", "manifest.json", "replace"])
def test_a_kill_during_a_save_leaves_the_checkpoint_before(tmp_path: Path, moment: str) -> None:
    """The process ends at a chosen point of a save, as kill -9 ends it: nothing is cleaned up."""
    script = f"""
import os, sys
from pathlib import Path
import torch
from kdctool.train import checkpoint
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.Adam([{{"params": list(model.parameters()), "lr_scale": 1.0}}])
model(torch.ones(1, 4)).sum().backward(); optimizer.step()
folder = Path({str(tmp_path)!r})
checkpoint.save(folder, model, optimizer, {{"step": 1}})
replace, sha = os.replace, checkpoint.sha256_file
if {moment!r} == "replace":
    checkpoint.os.replace = lambda a, b: os._exit(9) if str(b).endswith("step-00000002") else replace(a, b)
else:
    checkpoint.write_json = lambda path, value: os._exit(9) if {moment!r} == "manifest.json" else None
    if {moment!r} == "model.safetensors":
        checkpoint.save_file = lambda tensors, path: (path.write_bytes(b"half"), os._exit(9))
checkpoint.save(folder, model, optimizer, {{"step": 2}})
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_during_a_purge_leaves_nothing_that_looks_complete(tmp_path: Path, moment: str) -> None:
    script = f"""
import os
from pathlib import Path
import torch
from kdctool.train import checkpoint
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.Adam([{{"params": list(model.parameters()), "lr_scale": 1.0}}])
model(torch.ones(1, 4)).sum().backward(); optimizer.step()
folder = Path({str(tmp_path)!r})
for step in (1, 2, 3):
    checkpoint.save(folder, model, optimizer, {{"step": step}})
def half(path, *rest):
    if {moment!r} == "after":
        (path / "manifest.json").unlink()
    os._exit(9)
checkpoint.shutil.rmtree = half
checkpoint.purge(folder, keep=1)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 3
    checkpoint.purge(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.dist
def test_kill_9_at_random_moments_costs_nothing(tiny_recipe: Recipe, tmp_path: Path) -> None:
    kill_and_compare(tiny_recipe, tmp_path, kills=3)


@pytest.mark.nightly
@pytest.mark.dist
def test_kill_9_twenty_times_costs_nothing(tiny_recipe: Recipe, tmp_path: Path) -> None:
    kill_and_compare(tiny_recipe, tmp_path, kills=20)


def kill_and_compare(tiny_recipe: Recipe, tmp_path: Path, kills: int) -> None:
    recipe = tiny_recipe("training.epochs=40", "log.checkpoint_every_steps=7")
    assert finish(command(recipe, tmp_path / "undisturbed")) == 0  # With as many threads as those that are killed.
    run = tmp_path / "killed"
    chance = random.Random(kills)
    for _ in range(kills):
        before = len(rows_so_far(run)) if (run / "metrics.jsonl").exists() else 0
        process = command(recipe, run)
        wait_for(partial(moved, run, before), process)
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
    assert finish(command(recipe, run)) == 0
    assert curve(run) == curve(tmp_path / "undisturbed")
    a, b = weights(run), weights(tmp_path / "undisturbed")
    assert all(torch.equal(a[name], b[name]) for name in a)


def moved(run: Path, before: int) -> bool:
    return (run / "metrics.jsonl").exists() and len(rows_so_far(run)) > 2 and len(rows_so_far(run)) != before


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], limit: float = 120) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        if process.poll() is not None:
            return  # It was done before it could be killed; the comparison tells whether that is right.
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.dist
def test_torchrun_restarts_a_killed_rank_three_times_out_of_three(tiny_recipe: Recipe, tmp_path: Path) -> None:
    restart_and_compare(tiny_recipe, tmp_path, times=3)


@pytest.mark.nightly
@pytest.mark.dist
def test_torchrun_restarts_a_killed_rank_twenty_times_out_of_twenty(tiny_recipe: Recipe, tmp_path: Path) -> None:
    restart_and_compare(tiny_recipe, tmp_path, times=20)


def restart_and_compare(tiny_recipe: Recipe, tmp_path: Path, times: int) -> None:
    recipe = tiny_recipe("training.epochs=60", "log.checkpoint_every_steps=5", "optim.eps=1e-3")
    for attempt in range(times):
        run = tmp_path / f"run{attempt}"
        process = command(recipe, run, "--nproc", "2", "--max-restarts", "3")
        wait_for(lambda run=run: (run / "checkpoints" / "step-00000005").exists(), process)  # type: ignore[misc]
        psutil.Process(process.pid).children()[0].children()[1].send_signal(signal.SIGKILL)
        assert finish(process, timeout=300) == 0
        assert [row["step"] for row in rows(run)] == list(range(180))
        assert read_json(run / "status.json")["state"] == "done"


@pytest.mark.dist
def test_a_stopped_rank_is_named(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe, run = tiny_recipe("training.epochs=4000", "guard.stall_s=6"), tmp_path / "run"
    process = command(recipe, run, "--nproc", "2")
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows_so_far(run)) > 3, process)
    stopped = psutil.Process(process.pid).children()[0].children()[1]
    stopped.send_signal(signal.SIGSTOP)
    try:
        assert finish(process) == 1
    finally:
        if stopped.is_running():
            stopped.kill()
    assert "rank 1 is behind" in read_json(run / "status.json")["cause"]


def test_the_watchdog_lets_a_moving_run_live() -> None:
    told: list[str] = []
    with Watchdog(0.5, told.append) as watchdog:
        for step in range(5):
            time.sleep(0.2)
            watchdog.beat(step)
    assert not told


def test_guard_defaults_stop() -> None:
    assert Guard().on_nonfinite == "stop"
    assert json.loads(Guard().model_dump_json())["max_skips"] == 3
