"""Where in the picture does the sound come from: the cosine of a clip's sound with each place of its middle frame.

Protocol `localization/TRUTH-AGREEMENT@1`: nothing masked, the joint block with each modality's own norms, the mean of
the audio tokens against every visual token of frame N // 2. Beside every score stand what a picture without a model
scores (a disc in the middle, everything, either of two rivals) and what the model makes of silence, of noise and of
another clip's sound.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.registry import Section
from kdctool.tasks import Choice, EvalData, PerClip, Result, tasks
from kdctool.tasks.annotated import Annotated, annotated, asked_of
from kdctool.tasks.clip_scores import Scores, metrics
from kdctool.tasks.heatmaps import Heatmaps
from kdctool.tasks.localization_scores import compared, curve, floors, of_maps, with_success
from kdctool.tasks.maps import RULES, stretched
from kdctool.tasks.metrics import Floats
from kdctool.tasks.pairs import Pairing, partners
from kdctool.tasks.retrieval import unit_embedding
from kdctool.tasks.scoring import evaluating, read_batches
from kdctool.tasks.sounds import silence, white_noise

SHOWN_SCORE = "iou_top50"


def similarity_map(encoder: Any, fbank: Tensor, frame: Tensor) -> Tensor:
    """Cosine of a clip's sound with each place of its frame, (B, rows, columns) of the video tokens, float32.

    fbank: (B, T, F), frame: (B, C, H, W), both as the model takes them.
    """
    return _cosines(_heard(encoder, fbank), _seen(encoder, frame), encoder.options.video_grid)


class LocalizationOptions(Section):
    """Which boxes are the truth."""

    truth: str = ""
    """File or folder of annotations; empty: the boxes that `kdctool shard` put beside the clips."""
    format: Literal["auto", "vggss", "flickr", "avdigits"] = "auto"
    """What the file holds."""
    agreement: Literal["auto", "union", "consensus"] = "auto"
    """Several boxes: union marks what is in any, consensus counts one annotator's word half. auto: consensus for
    Flickr-SoundNet, else union."""
    negatives: bool = True
    """Score the maps of silence, noise and another clip's sound too: one more pass through the audio tower."""
    seed: int = 0
    """Of the noise, and of which clip lends its sound."""


@tasks.register("localization", LocalizationOptions)
class Localization:
    """cIoU and AUC under three threshold rules, pointing game, two-choice accuracy against a silent rival."""

    protocol = "localization/boxes-union@1"
    needs: tuple[str, ...] = ("audio", "video", "about")
    wants: Literal["encoder", "classifier", "objective"] = "encoder"
    frames: Literal["mid", "all"] = "mid"

    def __init__(self, options: LocalizationOptions | None = None) -> None:
        self.options = options or LocalizationOptions()
        self._file = Path(self.options.truth) if self.options.truth else None

    def prepare(self, model: Any) -> None:
        """Refuse a model without one of the modalities."""
        for name in ("embed_audio", "embed_video"):
            if not hasattr(model, name):
                raise UsageFault(
                    f"{type(model).__name__} has no {name}: localization compares sound with picture",
                    "name a run or an export of an audio-visual encoder",
                )

    def choose(self, uids: list[str], sources: list[str], abouts: list[dict[str, Any]]) -> Choice:
        """The annotated clips; annotations of clips that are not there are missing as `not_in_split`."""
        return asked_of(self._file, self.options.format, uids, abouts)

    def run(self, model: Any, data: EvalData) -> Result:
        """`model` offers embed_audio(fbank) and embed_video(frame), each (B, L, D), and options.video_grid."""
        self.prepare(model)
        if data.collages:
            raise UsageFault(
                "this model is shown collages of four frames (data.tiling = true); boxes are about one frame",
                "localize with a model that is shown single frames",
            )
        truth = annotated(self._file, self.options.format, self.options.agreement, data)
        pictures, sounds = Heatmaps(truth, data), _Sounds(self.options, truth, data)
        scores: dict[str, Scores] = {}
        with evaluating(model):
            for batch in read_batches(data):
                rows = [row for row, clip in enumerate(batch["clip"].tolist()) if clip in truth.clips]
                if not rows:
                    continue
                batch = {name: batch[name][rows] for name in ("clip", "fbank", "frame")}
                clips = batch["clip"].tolist()
                seen, heard = _seen(model, batch["frame"]), _heard(model, batch["fbank"])
                maps = _cosines(heard, seen, model.options.video_grid)
                pictures.add(clips, batch["frame"], maps)
                places = truth.part(clips)
                scores.setdefault("", Scores()).add(clips, of_maps(_full(maps), *places))
                for name, found in floors(*places).items():
                    scores.setdefault(name, Scores()).add(clips, found)
                for name, whose, wrong in sounds.maps(model, batch, heard, seen):
                    scored = of_maps(_full(wrong), *truth.part(whose))
                    scores.setdefault(name, Scores()).add(whose, scored)
        return self._result(data, truth, scores, pictures, sounds)

    def _result(
        self, data: EvalData, truth: Annotated, scores: dict[str, Scores], pictures: Heatmaps, sounds: "_Sounds"
    ) -> Result:
        clips = sorted(truth.clips)
        found = {name: with_success(held.columns(clips)) for name, held in scores.items()}
        columns, chance = compared(found)
        sources = [data.sources[clip] for clip in clips]
        details = {
            "truth": truth.about,
            "agreement": truth.agreement,
            "box_area": float(np.nanmean(found["all_ones"]["iou"])),
            "mean_iou": {f"{rule}_{name}".rstrip("_"): _mean(found, name, f"iou_{rule}")
                         for name in found for rule in RULES if f"iou_{rule}" in found[name]},
            "thresholds": {name: curve(found[""][f"iou_{name}"]) for name in RULES},
            "score": SHOWN_SCORE,
        }  # fmt: skip
        shown = dict(zip(clips, found[""][SHOWN_SCORE].tolist(), strict=True))
        return Result(
            "localization",
            f"localization/{truth.format}-{truth.agreement}@1",
            metrics(columns, sources, chance),
            len(clips),
            data.n_total,
            truth.missing,
            (*self._notes(found), *sounds.notes),
            details,
            PerClip(tuple(data.uids[clip] for clip in clips), tuple(sources), columns),
            pictures.arrays(shown),
        )

    def _notes(self, found: dict[str, dict[str, Floats]]) -> list[str]:
        choice = found[""]["two_choice"]
        unknown = int(np.isnan(choice).sum())
        if 0 < unknown < len(choice):
            return [f"two_choice over {len(choice) - unknown} of {len(choice)} clips; the others have no silent rival"]
        return []


class _Sounds:
    """The wrong sounds: silence, noise, and the sound of another clip once that has come by."""

    def __init__(self, options: LocalizationOptions, truth: Annotated, data: EvalData) -> None:
        self._options, self._data = options, data
        self._silence: Tensor | None = None
        self._pairing: Pairing[tuple[Tensor, Tensor]] | None = None
        self.notes: tuple[str, ...] = ()
        if not options.negatives:
            return
        clips = sorted(truth.clips)
        lent = partners([data.uids[clip] for clip in clips], [data.sources[clip] for clip in clips], options.seed)
        if lent is None:
            self.notes = ("no shuffled sound: all clips are of one source video",)
        else:
            self._pairing = Pairing({clip: clips[other] for clip, other in zip(clips, lent, strict=True)})

    def maps(self, model: Any, batch: Batch, heard: Tensor, seen: Tensor) -> list[tuple[str, list[int], Tensor]]:
        """(name of the sound, clips, their maps), for this batch and for clips that waited for it."""
        if not self._options.negatives:
            return []
        clips, grid = batch["clip"].tolist(), model.options.video_grid
        if self._silence is None:
            self._silence = _heard(model, silence(batch["fbank"], self._data))
        uids = [self._data.uids[clip] for clip in clips]
        noise = _heard(model, white_noise(batch["fbank"], uids, self._options.seed, self._data))
        found = [("silence", clips, _cosines(self._silence.expand_as(heard), seen, grid)),
                 ("noise", clips, _cosines(noise, seen, grid))]  # fmt: skip
        if self._pairing is None:
            return found
        paired = [
            (other, lent[0], own[1])
            for row, clip in enumerate(clips)
            for other, own, lent in self._pairing.add(clip, (heard[row].cpu(), seen[row].cpu()))
        ]
        if paired:
            whose, theirs, pictures = zip(*paired, strict=True)
            found.append(("shuffled", list(whose), _cosines(torch.stack(theirs), torch.stack(pictures), grid)))
        return found


def _heard(encoder: Any, fbank: Tensor) -> Tensor:
    """(B, D) unit vectors."""
    return unit_embedding(encoder.embed_audio(fbank))


def _seen(encoder: Any, frame: Tensor) -> Tensor:
    """(B, L, D) unit vectors."""
    return F.normalize(encoder.embed_video(frame).float(), dim=-1)


def _cosines(heard: Tensor, seen: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, D) and (B, L, D) -> (B, rows, columns)."""
    return (seen @ heard.unsqueeze(-1)).squeeze(-1).unflatten(1, grid)


def _full(maps: Tensor) -> Floats:
    return stretched(maps.cpu().numpy())


def _mean(found: dict[str, dict[str, Floats]], name: str, score: str) -> float:
    return float(np.nanmean(found[name][score]))
