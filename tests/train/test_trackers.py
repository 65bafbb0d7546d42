"""Numbers go where the recipe says, and a missing package is answered with its pip command."""

import sys
from pathlib import Path

import pytest

from kdctool.errors import EnvironmentFault
from kdctool.files import read_json
from kdctool.recipe import Log
from kdctool.train.trackers import IDS, open_trackers


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for tracker in open_trackers(Log(), tmp_path, 0):
        tracker.write(3, {"loss": 0.5})
        tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_pip_command(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentFault, match=f"log.{name} = true, but {name} is not installed") as fault:
        open_trackers(Log.model_validate({name: True, "tensorboard": False}), tmp_path, 0)
    assert f"pip install {name}" in fault.value.next_step


def test_wandb_works_offline_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is optional and not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = set()
    for step in (0, 1):
        (tracker,) = open_trackers(Log(wandb=True, tensorboard=False), tmp_path, step)
        tracker.write(step, {"loss": 1.0 - step / 2})
        tracker.close()
        ids.add(read_json(tmp_path / IDS)["wandb"])
    assert len(ids) == 1
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_mlflow_works_offline_and_goes_on_under_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is optional and not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for step in (0, 1):
        (tracker,) = open_trackers(Log(mlflow=True, tensorboard=False), tmp_path, step)
        tracker.write(step, {"probe/loss": 1.0 - step / 2})
        tracker.close()
    history = mlflow.MlflowClient().get_metric_history(read_json(tmp_path / IDS)["mlflow"], "probe.loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5)]
