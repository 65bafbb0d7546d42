"""Before, masked, after: spectrograms and frames of a few clips."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdctool.report.draft import ANSWERS, ASKED_SOUND, Draft, Part
from kdctool.report.inputs import Arrays, Evaluation, strings
from kdctool.report.names import shown
from kdctool.report.pictures import levels, picture, spectrogram

STEPS = ("before", "masked", "after")


@dataclass(frozen=True)
class Filled:
    """One clip: three media ids, in the order of STEPS."""

    name: str
    uid: str
    pictures: tuple[str, str, str]
    removed: str
    """Share that was removed."""
    sound: str = ""
    seconds: float = 0.0


def part(evaluation: Evaluation, draft: Draft, anchor: str) -> Part | None:
    """Triplets of every modality that the task kept."""
    groups: dict[str, list[Filled]] = {}
    if "audio.uids" in evaluation.assets:
        groups["audio"] = _audio(evaluation, draft, anchor)
    if "video.uids" in evaluation.assets:
        groups["video"] = _video(evaluation, draft, anchor)
    if not groups:
        return None
    uids = {name: [one.uid for one in found] for name, found in groups.items()}
    return Part("inpainting.html", {"groups": groups, "steps": STEPS}, {"inpainting": uids})


def _audio(evaluation: Evaluation, draft: Draft, anchor: str) -> list[Filled]:
    found = []
    arrays = _three(evaluation.assets, "audio", ("original", "masked", "filled"))
    for n, uid in enumerate(strings(evaluation.assets, "audio.uids")):
        original, masked, filled = (array[n].astype(np.float32) for array in arrays)
        low, high = levels(original)  # One range for all three, or they could not be compared.
        ids = [
            _add(
                draft,
                f"{anchor} audio {n} {step}",
                n,
                lambda edge, a=array, lo=low, hi=high: spectrogram(a, lo, hi, edge),
            )
            for step, array in zip(STEPS, (original, masked, filled), strict=True)
        ]
        clip = evaluation.clip(uid)
        sound = draft.media.add(f"sound {uid}", "sound", ASKED_SOUND + n, clip.played) if clip.sound is not None else ""
        share = f"{float(np.isnan(masked).mean()):.0%}"
        found.append(
            Filled(shown(clip.name), shown(uid), (ids[0], ids[1], ids[2]), share, sound, round(clip.seconds, 2))
        )
    return found


def _video(evaluation: Evaluation, draft: Draft, anchor: str) -> list[Filled]:
    found = []
    arrays = _three(evaluation.assets, "video", ("original", "masked", "filled"))
    removed = evaluation.assets["video.removed"]
    for n, uid in enumerate(strings(evaluation.assets, "video.uids")):
        ids = [
            _add(draft, f"{anchor} video {n} {step}", n, lambda edge, a=array[n]: picture(a, edge))
            for step, array in zip(STEPS, arrays, strict=True)
        ]
        share = f"{float(np.asarray(removed[n], dtype=bool).mean()):.0%}"
        found.append(Filled(shown(evaluation.clip(uid).name), shown(uid), (ids[0], ids[1], ids[2]), share))
    return found


def _add(draft: Draft, key: str, place: int, make: Any) -> str:
    return draft.media.add(key, "picture", ANSWERS + place, make)


def _three(assets: Arrays, group: str, names: tuple[str, ...]) -> list[Any]:
    arrays = [assets[f"{group}.{name}"] for name in names]
    if any(len(array) != len(assets[f"{group}.uids"]) for array in arrays):
        raise ValueError(f"the arrays of {group}.* differ in length")
    return arrays
