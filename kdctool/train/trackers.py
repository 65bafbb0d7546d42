"""Where numbers go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow. Four methods each, all optional."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from kdctool.errors import EnvironmentFault
from kdctool.files import read_json, write_json
from kdctool.recipe import Log as LogOptions

IDS = "trackers.json"
"""Run ids that the services gave, in the run's folder: a resumed run goes on under the same id."""


class Tracker(Protocol):
    """One place numbers go to."""

    def write(self, step: int, row: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def open_trackers(options: LogOptions, run: Path, start_step: int) -> list[Tracker]:
    """The trackers a recipe asks for; EnvironmentFault with the pip command where a package is missing."""
    wanted: dict[str, Callable[[Path, int], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "mlflow": MLflow,
    }
    found: list[Tracker] = []
    for name, tracker in wanted.items():
        if not getattr(options, name):
            continue
        try:
            found.append(tracker(run, start_step))
        except ImportError as error:
            raise EnvironmentFault(
                f"log.{name} = true, but {error.name or name} is not installed",
                f"pip install {name}, or --set log.{name}=false",
            ) from error
    return found


class TensorBoard:
    """Event files in RUN/tb; rows after `start_step` of an earlier try are hidden."""

    def __init__(self, run: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tb"), purge_step=start_step)

    def write(self, step: int, row: dict[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, run: Path, start_step: int) -> None:
        import wandb

        self._run = wandb.init(project="kdctool", name=run.name, dir=str(run), id=_known(run, "wandb"), resume="allow")
        _remember(run, "wandb", self._run.id)

    def write(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run, at the tracking URI of the environment or in RUN/mlruns."""

    def __init__(self, run: Path, start_step: int) -> None:
        import os

        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{(run / 'mlflow.db').absolute()}")
        self._mlflow: Any = mlflow
        started = mlflow.start_run(run_id=_known(run, "mlflow"), run_name=run.name)
        _remember(run, "mlflow", started.info.run_id)

    def write(self, step: int, row: dict[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("/", "."): value for name, value in row.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def _known(run: Path, service: str) -> str | None:
    path = run / IDS
    return read_json(path).get(service) if path.exists() else None


def _remember(run: Path, service: str, identity: str) -> None:
    path = run / IDS
    write_json(path, {**(read_json(path) if path.exists() else {}), service: identity})
