"""The boxes of each clip as the model sees it: cropped, in its middle frame; and which clips have none, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdctool.errors import DataFault, UsageFault
from kdctool.shards.extraction import boxes_in_frame
from kdctool.tasks import Choice, EvalData
from kdctool.tasks.maps import Agreement, truth_map
from kdctool.tasks.metrics import Floats
from kdctool.tasks.truth import Annotation, load

IN_SHARDS = "boxes"
"""Name of the format where the boxes come with the shards."""
Corners = list[list[float]]
"""x0, y0, x1, y1 of each box as shares of the stored frame."""


@dataclass(frozen=True)
class Places:
    """Where things are in the frame that is scored."""

    sounding: Corners
    silent: Corners


@dataclass(frozen=True)
class Annotated:
    """The clips that can be scored."""

    format: str
    agreement: Agreement
    clips: dict[int, Places]
    """Index of a clip -> its boxes."""
    missing: dict[str, int]
    """Reason -> clips of the evaluation that cannot be scored."""
    about: dict[str, Any] = field(default_factory=dict)
    """The file of annotations, for details.json."""

    def part(self, clips: Sequence[int]) -> tuple[Floats, Floats]:
        """Truth maps of the sounding thing and of its rival (0 where there is none), (B, 224, 224) each."""
        sounding = [truth_map(self.clips[clip].sounding, self.agreement) for clip in clips]
        silent = [truth_map(self.clips[clip].silent) for clip in clips]
        return np.stack(sounding), np.stack(silent)


def asked_of(path: Path | None, given: str, uids: list[str], abouts: list[dict[str, Any]]) -> Choice:
    """The annotated clips of a split; annotations of clips that are not there are missing as `not_in_split`."""
    if path is None:
        keep = np.array(["boxes" in about for about in abouts], dtype=bool)
        if not keep.any():
            raise _no_truth()
        return Choice(keep)
    found, unmatched = load(path, given).find(uids, abouts)
    keep = np.isin(np.arange(len(uids)), list(found))
    return Choice(keep, {"not_in_split": unmatched} if unmatched else {})


def annotated(
    path: Path | None, given: str, agreement: Literal["auto", "union", "consensus"], data: EvalData
) -> Annotated:
    """The boxes of the clips of an evaluation, in shares of their stored middle frame."""
    missing = Counter(data.missing)
    clips: dict[int, Places] = {}
    name, about, found = IN_SHARDS, dict[str, Any](), dict[int, Annotation]()
    if path is not None:
        truth = load(path, given)
        found, _ = truth.find(data.uids, data.abouts)
        name = truth.format
        about = {"path": str(path), "format": name, "sha256": truth.sha256, "annotations": len(truth.rows)}
    elif not any("boxes" in told for told in data.abouts):
        raise _no_truth()
    for clip, told in enumerate(data.abouts):
        places = _stored(told) if path is None else _mapped(found.get(clip), told)
        if isinstance(places, Places) and not truth_map(places.sounding).any():
            places = "box_under_a_pixel"
        if isinstance(places, Places):
            clips[clip] = places
        else:
            missing[places] += 1
    if not clips:
        raise DataFault(f"no clip has a box that can be scored: {dict(missing)}", "look at the annotations' units")
    counted: Agreement = "consensus" if name == "flickr" else "union"
    return Annotated(name, counted if agreement == "auto" else agreement, clips, dict(missing), about)


def _stored(told: dict[str, Any]) -> Places | str:
    """Boxes that `kdctool shard` has mapped into the frame already."""
    if "boxes" not in told:
        return "not_annotated"
    return Places([list(map(float, box)) for box in told["boxes"]], []) if told["boxes"] else "box_outside_crop"


def _mapped(row: Annotation | None, told: dict[str, Any]) -> Places | str:
    if row is None:
        return "not_annotated"
    if not (told.get("crop") and told.get("width") and told.get("height")):
        return "crop_unknown"
    times = told.get("frame_times") or []
    if row.per_frame and not times:
        return "frame_times_unknown"
    sounding, silent = row.at(float(times[len(times) // 2]) if times else 0.0)
    if not sounding:
        return "no_box_in_frame"
    inside = boxes_in_frame(sounding, told)
    return Places(inside, boxes_in_frame(silent, told)) if inside else "box_outside_crop"


def _no_truth() -> UsageFault:
    return UsageFault(
        "localization needs boxes, and these shards have none",
        "--option truth=FILE (VGG-SS, Flickr-SoundNet or AV-Digits); or kdctool shard with --labels vggss.json",
    )
