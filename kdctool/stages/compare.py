"""Two evaluations of one task on the same clips: what differs, and whether that is more than chance.

Paired: every resample draws source videos once and scores both models on them. Loads no torch.
"""

import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.files import read_json
from kdctool.tasks.classes import class_means, resamples
from kdctool.tasks.intervals import known_mean, moved, percentiles, resampled, weighted_median
from kdctool.tasks.metrics import ClassCurves, Floats, d_prime

RESULTS, DETAILS, PER_CLIP = "results.json", "details.json", "per_clip.npz"
NEAR = 1e-6
"""A metric computed again from its clips equals the one in results.json to this, or it is no mean of them."""
SCORES, TARGETS = "scores", "targets"


@dataclass(frozen=True)
class Difference:
    """A metric of both models on the clips they share; `difference` is second minus first."""

    metric: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    """95 % interval of the difference; NaN with one source video."""
    p: float
    """Two-sided: how often a resample puts the difference on the other side of zero, at most 1."""


@dataclass(frozen=True)
class Compared:
    """What `kdctool compare` found."""

    task: str
    protocol: str
    first: Path
    second: Path
    num_clips: int
    num_sources: int
    rows: tuple[Difference, ...]
    notes: tuple[str, ...]

    def payload(self) -> dict[str, Any]:
        """The comparison as plain values; a number that is not finite is null."""
        rows = [
            {
                name: None if isinstance(value, float) and not np.isfinite(value) else value
                for name, value in row.items()
            }
            for row in map(asdict, self.rows)
        ]
        return {
            "task": self.task,
            "protocol": self.protocol,
            "first": str(self.first),
            "second": str(self.second),
            "n_clips": self.num_clips,
            "n_sources": self.num_sources,
            "metrics": rows,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Scored:
    """An evaluation folder, as `kdctool eval` wrote it."""

    folder: Path
    results: dict[str, Any]
    labels: tuple[str, ...]
    uids: list[str]
    sources: list[str]
    columns: dict[str, Any]

    def rows(self, places: list[int]) -> "Scored":
        """Only these clips, in this order."""
        return Scored(
            self.folder,
            self.results,
            self.labels,
            [self.uids[i] for i in places],
            [self.sources[i] for i in places],
            {name: values[places] for name, values in self.columns.items()},
        )

    def value(self, metric: str) -> float:
        """The metric in results.json; NaN where it is null."""
        value = self.results["metrics"][metric]["value"]
        return float("nan") if value is None else float(value)


def run(first: Path, second: Path, *, task: str = "", intersect: bool = False) -> Compared:
    """Compare two runs, exports or evaluation folders; `task` is needed where both runs have several in common.

    UsageFault when their protocols differ, DataFault when their clips do, unless `intersect`.
    """
    one, two = (_read(folder) for folder in _folders(Path(first), Path(second), task))
    protocols = [scored.results["protocol"] for scored in (one, two)]
    if protocols[0] != protocols[1]:
        raise UsageFault(
            f"the protocols differ: {protocols[0]} in {one.folder}, {protocols[1]} in {two.folder}",
            "evaluate one of them again with the options of the other",
        )
    whole = one, two
    one, two, notes = _paired(one, two, intersect)
    rows, further = _rows(one, two, whole)
    if not rows:
        raise DataFault(f"{one.folder} and {two.folder} share no metric that can be paired", *further[:1])
    return Compared(
        one.results["task"],
        protocols[0],
        one.folder,
        two.folder,
        len(one.uids),
        len(set(one.sources)),
        tuple(rows),
        (*notes, *further),
    )


def _folders(first: Path, second: Path, task: str) -> tuple[Path, Path]:
    there = [_tasks(path) for path in (first, second)]
    common = sorted(set(there[0]) & set(there[1]))
    if task:
        common = [name for name in common if name == task]
    if len(common) == 1:
        return there[0][common[0]], there[1][common[0]]
    if common:
        raise UsageFault(f"both have {', '.join(common)}", "--task says which of them to compare")
    told = "; ".join(
        f"{path} has {', '.join(found) or 'no evaluation'}" for path, found in zip((first, second), there, strict=True)
    )
    raise UsageFault(
        f"no evaluation{f' of {task}' if task else ''} in common: {told}", f"kdctool eval RUN --task {task or 'TASK'}"
    )


def _tasks(path: Path) -> dict[str, Path]:
    """Task -> evaluation folder: of a run or an export, or the folder itself."""
    if not path.is_dir():
        raise UsageFault(f"there is no folder {path}", "name a run, an export, or a folder that kdctool eval wrote")
    found = [path / RESULTS] if (path / RESULTS).is_file() else sorted(path.glob(f"eval/*/{RESULTS}"))
    return {read_json(file)["task"]: file.parent for file in found}


def _read(folder: Path) -> Scored:
    again = f"kdctool eval RUN --task {folder.name} writes it"
    if not (folder / PER_CLIP).is_file():
        raise DataFault(f"{folder} has no {PER_CLIP}, so its clips cannot be paired", again)
    try:
        with np.load(folder / PER_CLIP, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        uids, sources = arrays.pop("uids").tolist(), arrays.pop("sources").tolist()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise VerificationFault(f"{folder / PER_CLIP} is damaged: {error}", again) from error
    details = read_json(folder / DETAILS)["details"] if (folder / DETAILS).is_file() else {}
    columns = {name.removeprefix("column."): values for name, values in arrays.items() if name.startswith("column.")}
    return Scored(folder, read_json(folder / RESULTS), tuple(details.get("labels", ())), uids, sources, columns)


def _paired(one: Scored, two: Scored, intersect: bool) -> tuple[Scored, Scored, tuple[str, ...]]:
    """Both with the same clips in the same order."""
    places = [{uid: place for place, uid in enumerate(scored.uids)} for scored in (one, two)]
    common = [uid for uid in one.uids if uid in places[1]]
    notes = []
    if len(common) < max(len(one.uids), len(two.uids)):
        lists = (
            f"{len(common)} clips are in both, {len(one.uids) - len(common)} only in {one.folder}, "
            f"{len(two.uids) - len(common)} only in {two.folder}"
        )
        if not intersect:
            raise DataFault(f"the clip lists differ: {lists}", "--intersect compares on the clips that are in both")
        if not common:
            raise DataFault(f"no clip is in both {one.folder} and {two.folder}", "evaluate both on the same shards")
        notes.append(lists)
        if "a2v_mean_rank" in one.columns:
            notes.append(f"ranks are among {len(one.uids)} and {len(two.uids)} clips: the smaller gallery is easier")
    if one.results["data_digest"] != two.results["data_digest"]:
        notes.append("the shards differ; clips are paired by uid")
    one, two = (scored.rows([place[uid] for uid in common]) for scored, place in zip((one, two), places, strict=True))
    if one.sources != two.sources:
        notes.append(f"the clips' source videos differ; those of {one.folder} are resampled")
    return one, two, tuple(notes)


def _rows(one: Scored, two: Scored, whole: tuple[Scored, Scored]) -> tuple[list[Difference], tuple[str, ...]]:
    rows: list[Difference] = []
    left: list[str] = []
    classes = _classes(one, two, "")
    for metric in sorted(one.results["metrics"], key=_natural):
        ranking = classes.get(metric) or _classes(one, two, f"{metric}.").get("map")
        if ranking:
            rows.append(replace(ranking, metric=metric))
            continue
        column = metric.replace("_median_rank", "_mean_rank")
        if metric not in two.results["metrics"] or column not in one.columns or column not in two.columns:
            left.append(metric)
            continue
        statistic = weighted_median if column != metric else known_mean
        if not all(_told(scored, column, metric, statistic) for scored in whole):
            left.append(metric)
            continue
        values = one.columns[column].astype(np.float64), two.columns[column].astype(np.float64)
        rows.append(_difference(metric, values, one.sources, statistic))
    notes = (f"not compared, as they are no means over clips: {', '.join(left)}",) if left else ()
    return rows, notes


def _natural(name: str) -> list[Any]:
    """r5 before r10: results.json has its keys in the order of the alphabet."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _told(scored: Scored, column: str, metric: str, statistic: Callable[[Floats, Floats], Floats]) -> bool:
    """Whether the column gives the metric of results.json."""
    values = scored.columns[column]
    if values.ndim != 1:
        return False
    value = float(statistic(values.astype(np.float64), np.ones((1, len(values))))[0])
    return bool(np.isclose(value, scored.value(metric), rtol=NEAR, atol=NEAR, equal_nan=True))


def _difference(
    metric: str, values: tuple[Floats, Floats], sources: list[str], statistic: Callable[[Floats, Floats], Floats]
) -> Difference:
    known = ~np.isnan(values[0]) & ~np.isnan(values[1])  # A clip counts where both models have a number for it.
    one, two = (np.where(known, value, np.nan) for value in values)
    at = [float(statistic(value, np.ones((1, len(value))))[0]) for value in (one, two)]
    drawn = resampled((one, two), sources, lambda pair, weight: statistic(pair[1], weight) - statistic(pair[0], weight))
    return _judged(metric, at[0], at[1], drawn)


def _judged(metric: str, first: float, second: float, drawn: Floats) -> Difference:
    """`drawn` (n,) differences of the resamples; none of them known leaves interval and p unknown."""
    low, high = percentiles(drawn)
    drawn = drawn[~np.isnan(drawn)]
    p = float("nan")
    if len(drawn):
        beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
        p = min(1.0, 2 * (int(beyond) + 1) / (len(drawn) + 1))  # Never 0: more resamples could show one.
    return Difference(metric, first, second, second - first, float(low), float(high), p)


def _classes(one: Scored, two: Scored, prefix: str) -> dict[str, Difference]:
    """mAP, AUC and d' from the scores of both; classes without a positive clip among those compared are left out.

    Nothing where one of them has no scores under this prefix.
    """
    if not {prefix + SCORES, prefix + TARGETS} <= set(one.columns) & set(two.columns):
        return {}
    scores, targets = _aligned(one, two, prefix)
    present = targets.any(0)
    curves = [ClassCurves(score[:, present], targets[:, present]) for score in scores]
    value = [class_means(curve, np.ones((1, len(targets))))[0] for curve in curves]
    num = resamples(2 * scores[0].size)
    drawn = [resampled(curve, one.sources, class_means, n=num) for curve in curves]  # The same draws for both.
    centred = [moved(each, at) for each, at in zip(drawn, value, strict=True)]
    found = {}
    for place, metric in enumerate(("map", "auc")):
        pair = value[0][place], value[1][place]
        found[metric] = _judged(metric, float(pair[0]), float(pair[1]), centred[1][:, place] - centred[0][:, place])
    prime = [np.array([d_prime(float(area)) for area in np.clip(each[:, 1], 0, 1)]) for each in centred]
    at = [d_prime(float(each[1])) for each in value]
    with np.errstate(invalid="ignore"):  # Infinite minus infinite, for two perfect models: unknown.
        found["d_prime"] = _judged("d_prime", at[0], at[1], prime[1] - prime[0])
    return found


def _aligned(one: Scored, two: Scored, prefix: str) -> tuple[tuple[Floats, Floats], Floats]:
    """Scores of both with the classes in one order, and the targets that both were scored against."""
    if set(one.labels) != set(two.labels):
        raise UsageFault(
            f"the classifiers know different classes: {len(one.labels)} and {len(two.labels)}, "
            f"{len(set(one.labels) & set(two.labels))} of them in common",
            "compare models that were finetuned on the same labels",
        )
    order = [two.labels.index(label) for label in one.labels]
    targets, others = (each.columns[prefix + TARGETS].astype(np.float64) for each in (one, two))
    others = others[:, order]
    differing = int((targets != others).any(1).sum())
    if differing:
        raise DataFault(f"{differing} of {len(targets)} clips have other labels in {two.folder}", "evaluate both again")
    first, second = (each.columns[prefix + SCORES].astype(np.float64) for each in (one, two))
    return (first, second[:, order]), targets
