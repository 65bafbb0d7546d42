"""Meters, with a clock that the test turns."""

import pytest
import torch

from kdctool.train import clock as module
from kdctool.train.clock import WARMUP_STEPS, Clock

CPU = torch.device("cpu")


def run(clock: Clock, monkeypatch: pytest.MonkeyPatch, steps: int, wait: float, work: float) -> None:
    now = 0.0

    def tick() -> float:
        return now

    monkeypatch.setattr(module.time, "monotonic", tick)
    for step in range(steps):
        slow = 100.0 if step < WARMUP_STEPS else 1.0
        clock.before_data()
        now += wait * slow
        clock.before_step()
        now += work * slow
        clock.after_step()


def test_first_steps_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(global_batch=10)
    run(clock, monkeypatch, WARMUP_STEPS, 1.0, 1.0)
    assert clock.rate == 0.0
    run(clock, monkeypatch, 4, 0.0, 0.0)
    clock = Clock(global_batch=10)
    run(clock, monkeypatch, WARMUP_STEPS + 8, 0.62, 0.38)
    assert clock.rate == pytest.approx(10.0)
    assert clock.wait_share == pytest.approx(0.62)


def test_a_starved_run_is_told_so_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    starved, busy = Clock(10), Clock(10)
    run(starved, monkeypatch, WARMUP_STEPS + 8, 0.62, 0.38)
    run(busy, monkeypatch, WARMUP_STEPS + 8, 0.1, 0.9)
    told = "62% of the time was spent waiting for data: raise data.workers, or set data.hold"
    assert starved.advice() == told
    assert busy.advice() == ""


def test_flops_become_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(10, flops_per_clip=2e12)
    run(clock, monkeypatch, WARMUP_STEPS + 8, 0.0, 1.0)
    row = clock.row(CPU)
    assert row["clips_per_s"] == pytest.approx(10.0)
    assert row["tflops_per_rank"] == pytest.approx(20.0)
    assert "mfu" not in row
