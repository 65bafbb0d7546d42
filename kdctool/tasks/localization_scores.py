"""From heat maps to metrics: scores of each clip, and the same scores of pictures that no model drew."""

import numpy as np

from kdctool.tasks.clip_scores import Columns
from kdctool.tasks.maps import (
    RULES,
    THRESHOLDS,
    Bools,
    centre_map,
    marked,
    overlap,
    pointing,
    success,
    success_area,
    to_unit_range,
    two_choice,
)
from kdctool.tasks.metrics import Floats


def of_maps(maps: Floats, sounding: Floats, silent: Floats) -> Columns:
    """Scores of maps (B, 224, 224) of cosines against truth maps of the same size; NaN for a choice without a rival."""
    unit = to_unit_range(maps)
    found = {f"iou_{rule}": overlap(marked(unit, rule), sounding) for rule in RULES}
    return {**found, "pointing": pointing(maps, sounding), "two_choice": two_choice(maps, sounding, silent)}


def floors(sounding: Floats, silent: Floats) -> dict[str, Columns]:
    """Scores of pictures that no model drew: a place near the middle, everything, both rivals alike."""
    centre = np.repeat(centre_map(), len(sounding), axis=0)
    everything = np.ones(sounding.shape, dtype=bool)
    rival = silent.any((1, 2))
    either = _of_marks((sounding > 0) | (silent > 0), sounding)
    return {
        "centre": of_maps(centre, sounding, silent),
        "all_ones": _of_marks(everything, sounding),
        "either": {name: np.where(rival, values, np.nan) for name, values in either.items()},
    }


def with_success(columns: Columns) -> Columns:
    """The columns with ciou_* and auc_* in front of what they are made of."""
    found = {}
    for name, values in columns.items():
        if name.startswith("iou"):
            unknown = np.isnan(values)
            found["c" + name] = np.where(unknown, np.nan, success(np.nan_to_num(values)))
            found["auc" + name.removeprefix("iou")] = np.where(unknown, np.nan, success_area(np.nan_to_num(values)))
    return {**found, **columns}


def compared(found: dict[str, Columns]) -> tuple[Columns, dict[str, float]]:
    """Every score that is reported, and what guessing scores for it.

    found: columns of the model ("") and of what stands beside it, such as "centre" or "silence". A score is called
    after both: ciou_top50_centre. `*_minus_shuffled` is what the right sound adds to another clip's.
    """
    own, columns, chance = found[""], dict[str, Floats](), dict[str, float]()
    scores = [name for name in own if not name.startswith("iou") and not np.isnan(own[name]).all()]
    for score in scores:
        rule = score.partition("_")[0]
        guess = {"pointing": found["all_ones"]["pointing"], "two": np.array([0.5])}.get(rule)
        chance[score] = float(np.nanmean(found["centre"][score] if guess is None else guess))
        columns[score] = own[score]
    for beside, theirs in found.items():
        for score, values in theirs.items():
            if not beside or score.startswith("iou") or np.isnan(values).all():
                continue
            if beside not in ("centre", "all_ones", "either") and score.startswith("auc"):
                continue  # Ten more numbers that nobody would read.
            columns[f"{score}_{beside}"] = values
            chance[f"{score}_{beside}"] = chance.get(score, float(np.nanmean(values)))
    for score in scores if "shuffled" in found else ():
        if f"{score}_shuffled" in columns:
            columns[f"{score}_minus_shuffled"] = own[score] - columns[f"{score}_shuffled"]
            chance[f"{score}_minus_shuffled"] = 0.0
    return columns, chance


def curve(values: Floats) -> list[float]:
    """Share of clips whose overlap reaches each of the 21 thresholds."""
    known = values[~np.isnan(values)]
    return [float((known >= threshold).mean()) for threshold in THRESHOLDS]


def _of_marks(marks: Bools, sounding: Floats) -> Columns:
    """Of a region instead of a map: pointing is the share of its pixels that lie in the truth."""
    inside = (marks & (sounding > 0)).sum((1, 2))
    return {"iou": overlap(marks, sounding), "pointing": inside / np.maximum(marks.sum((1, 2)), 1)}
