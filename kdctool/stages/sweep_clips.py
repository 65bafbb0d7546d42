"""The same contrast over clips: what single clips scored in both arms, averaged over seeds, resampled by cluster."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdctool.errors import DataFault
from kdctool.media import names
from kdctool.recipe.study_parts import Clusters
from kdctool.stages.evaluate import PER_CLIP
from kdctool.stages.sweep_plan import Cell, Plan
from kdctool.tasks import contrasts


@dataclass(frozen=True)
class OverClips:
    """95 % bootstrap interval of a difference, seeds held fixed."""

    low: float
    high: float
    clips: int
    clusters: int


def over_clips(plan: Plan, endpoint: str, a: str, b: str, seeds: tuple[int, ...]) -> OverClips | None:
    """None where a task kept no numbers of single clips, or where arms scored different clips."""
    sums: dict[str, np.ndarray] = {}
    uids: list[str] = []
    sources: list[str] = []
    for arm in (a, b):
        for seed in seeds:
            found = _scores(plan, endpoint, arm, seed)
            if found is None or (uids and found[0] != uids):
                return None
            uids, sources, values = found
            sums[arm] = sums.get(arm, 0) + values / len(seeds)
    clusters = _clusters(plan, plan.study.clusters, uids) if plan.study.clusters else sources
    low, high = contrasts.over_clips(sums[a] - sums[b], clusters)
    return OverClips(low, high, len(uids), len(set(clusters)))


def _scores(plan: Plan, endpoint: str, arm: str, seed: int) -> tuple[list[str], list[str], Any] | None:
    """Clips, their source videos and what each scored; those of several evaluations one after the other."""
    column = "column." + endpoint.partition("/")[2]
    cell = Cell(next(planned for planned in plan.arms if planned.name == arm), seed)
    uids: list[str] = []
    sources: list[str] = []
    values = []
    for item in plan.study.measured_by(endpoint):
        path = plan.folder(cell) / "eval" / item.key / PER_CLIP
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            if column not in file or file[column].ndim != 1 or not np.isfinite(file[column]).all():
                return None
            order = np.argsort(file["uids"], kind="stable")
            uids += file["uids"][order].tolist()
            sources += file["sources"][order].tolist()
            values.append(file[column][order])
    return uids, sources, np.concatenate(values)


def _clusters(plan: Plan, asked: Clusters, uids: list[str]) -> list[str]:
    """The cluster of each clip, from a file that names clips by their video."""
    path = plan.shards / asked.file
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        known = {name: str(row[asked.key]) for row in rows for name in _names(str(row[asked.clip]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFault(
            f"clusters.file = {path} cannot be read: {error!r}", "name a JSON-lines file with a row per clip"
        ) from error
    unknown = [uid for uid in uids if uid not in known]
    if unknown:
        raise DataFault(f"{path} has no row for {len(unknown)} of {len(uids)} clips, the first is {unknown[0]}")
    return [known[uid] for uid in uids]


def _names(clip: str) -> tuple[str, str]:
    """A clip is named by its uid, or by the path of its video."""
    return clip, names.uid(clip, 0)
