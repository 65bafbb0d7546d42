"""Fill in what was removed of a clip's sound or frame, and what the other modality adds to that.

Protocol `inpainting/MASKINGS-RATIO@1`: the middle frame, masks from (seed, uid) alone. Per modality:

* `mse`: both modalities masked as in pre-training, error over the removed patches in units of the model's input;
* `mse_alone`: the same mask, nothing of the other modality; `mse_shuffled`: the other modality of another clip;
* `mse_cross`: nothing of the modality itself, the other one whole; `mse_cross_shuffled`: whole, of another clip;
* `mse_mean`, `mse_copy`: floors without a model, the mean of the visible patches and the nearest of them.

`gain` is alone minus both: what the other modality is worth. `gain_shuffled` is what a wrong one is worth: a model
that merely likes more tokens gains by it, too. PSNR and SSIM are of whole frames with the visible pixels pasted in.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdctool.errors import DataFault, UsageFault
from kdctool.registry import Section
from kdctool.tasks import EvalData, Result, tasks
from kdctool.tasks.clip_scores import Scores
from kdctool.tasks.filling import (
    ClipMasks,
    Statistics,
    fill_in,
    mean_patch,
    nearest_patch,
    patches,
    predict,
    predicts_normalised,
    unnormalise,
)
from kdctool.tasks.inpainting_scores import MODALITIES, Pictures, Scale, likeness, masked_error, summarised
from kdctool.tasks.pairs import Pairing, partners
from kdctool.tasks.regions import Regions
from kdctool.tasks.scoring import evaluating, read_batches

__all__ = ["Inpainting", "InpaintingOptions", "fill_in"]

Pair = tuple[Tensor, Tensor]
"""Something of audio and of video."""


class InpaintingOptions(Section):
    """What is removed, and what a model is given to fill it in."""

    audio: str = "random"
    """Masking of the audio tokens: random, time, freq, tf or another that is registered and does not learn."""
    video: str = "random"
    """Masking of the video tokens; time removes columns of the frame, freq rows."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the tokens that is removed, as in pre-training."""
    statistics: Statistics = "own"
    """Of a model that predicts normalised patches: own scores its normalised target alone; target borrows the mean and
    spread of the removed patches from the answer, for the model and for the floors alike."""
    controls: bool = True
    """Score fillings with another clip's sound or frame, too."""
    truth: str = ""
    """AV-Digits' truth.jsonl: count only audio patches below 4 kHz inside the sound, and video patches that touch a
    digit."""
    seed: int = 0
    """Of the masks, and of which clip lends its other half."""


@tasks.register("inpainting", InpaintingOptions)
class Inpainting:
    """Masked error, PSNR, SSIM, log-spectral distance and cross-modal gain of a pre-training model."""

    protocol = "inpainting/random-75@1"
    needs: tuple[str, ...] = ("audio", "video", "about")
    wants: Literal["encoder", "classifier", "objective"] = "objective"
    frames: Literal["mid", "all"] = "mid"

    def __init__(self, options: InpaintingOptions | None = None) -> None:
        self.options = options or InpaintingOptions()
        audio, video = self.options.audio, self.options.video
        named = audio if audio == video else f"{audio}+{video}"
        kinds = ["target-statistics"] * (self.options.statistics == "target") + ["avdigits"] * bool(self.options.truth)
        self.protocol = "-".join([f"inpainting/{named}-{self.options.ratio * 100:g}", *kinds]) + "@1"

    def prepare(self, model: Any) -> None:
        """Refuse a model without a decoder, and options that do not fit it."""
        if getattr(model, "decoder", None) is None:
            raise UsageFault(
                f"{type(model).__name__} has no decoder, so it cannot fill anything in",
                "name a pre-training run whose objective.reconstruction.weight is above 0",
            )
        if self.options.statistics == "target" and not predicts_normalised(model):
            raise UsageFault(
                "statistics = 'target' is for a model with objective.reconstruction.norm_pix = true; this one predicts "
                "pixels as they are",
                "leave the option away",
            )
        self._masks(model)

    def run(self, model: Any, data: EvalData) -> Result:
        """`model` offers encode, decode and targets of the KDC-MAE family, its decoder and its options."""
        self.prepare(model)
        if not data.uids:
            raise DataFault("no clip can be filled in: the split has none that could be read", "try another --split")
        filler = _Filler(model, self.options, self._masks(model), data)
        with evaluating(model):
            for batch in read_batches(data):
                filler.add(batch["clip"].tolist(), batch["fbank"], batch["frame"])
        protocol = self.protocol.replace("@", "-norm-pix@") if filler.scale.normalised else self.protocol
        return summarised(protocol, data, filler.clips, filler.skipped, filler.scores, filler.pictures, filler.notes())

    def _masks(self, model: Any) -> tuple[ClipMasks, ClipMasks]:
        chosen, sizes = self.options, model.model
        return (
            ClipMasks("audio", chosen.audio, sizes.audio_grid, chosen.ratio, chosen.seed),
            ClipMasks("video", chosen.video, sizes.video_grid, chosen.ratio, chosen.seed),
        )


class _Filler:
    """Fills in batch after batch under every condition and keeps the scores."""

    def __init__(
        self, model: Any, options: InpaintingOptions, masks: tuple[ClipMasks, ClipMasks], data: EvalData
    ) -> None:
        self.model, self.data, self.masks, self.borrows = model, data, masks, options.statistics == "target"
        self.scale = Scale.of(data, normalised=predicts_normalised(model) and not self.borrows)
        self.regions = Regions(Path(options.truth), data, model.model) if options.truth else None
        self.clips = [i for i in range(len(data.uids)) if self.regions is None or i in self.regions]
        if not self.clips:
            raise DataFault(
                "no clip is annotated with the time of its sound, crop and frame times", "look at --option truth"
            )
        self.skipped = len(data.uids) - len(self.clips)
        self.scores, self.pictures = Scores(), Pictures(model.model, data, self.clips)
        uids, sources = [data.uids[i] for i in self.clips], [data.sources[i] for i in self.clips]
        lent = partners(uids, sources, options.seed) if options.controls else []
        self.alone = lent is None
        places = {clip: self.clips[other] for clip, other in zip(self.clips, lent, strict=True)} if lent else {}
        self.pairing: Pairing[Pair] | None = Pairing(places) if places else None

    def add(self, clips: list[int], fbank: Tensor, frame: Tensor) -> None:
        """Score a batch, and the clips that waited for one of its clips."""
        rows = [row for row, clip in enumerate(clips) if self.regions is None or clip in self.regions]
        if not rows:
            return
        clips, fbank, frame = [clips[row] for row in rows], fbank[rows], frame[rows]
        keep = self._keep(clips, fbank.device)
        no, all_ = keep[0][:, :0], self._whole(len(clips), fbank.device)
        both = self._say(fbank, frame, *keep)
        self._score(clips, (fbank, frame), "", both, keep, shown=True)
        alone = self._say(fbank, frame, keep[0], no)[0], self._say(fbank, frame, no, keep[1])[1]
        self._score(clips, (fbank, frame), "alone", alone, keep)
        cross = self._say(fbank, frame, no, all_[1])[0], self._say(fbank, frame, all_[0], no)[1]
        self._score(clips, (fbank, frame), "cross", cross, (no, no), shown=True)
        self._floors(clips, (fbank, frame), keep, (no, no))
        if self.pairing is not None:
            pairs = [
                pair
                for row, clip in enumerate(clips)
                for pair in self.pairing.add(clip, (fbank[row].cpu(), frame[row].cpu()))
            ]
            if pairs:
                self._controls(pairs, fbank.device)

    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        found = []
        if self.scale.normalised:
            found.append(
                "this model predicts normalised patches (norm_pix): errors are in units of a patch's own spread, there "
                "is no PSNR, SSIM or log-spectral distance, and pictures borrow each removed patch's mean and spread "
                "from the answer; --option statistics=target scores them so"
            )
        if self.borrows:
            found.append("mean and spread of every removed patch were borrowed from the answer, for the floors, too")
        if self.alone:
            found.append("no shuffled controls: all clips are of one source video")
        return tuple(found)

    def _controls(self, pairs: Sequence[tuple[int, Pair, Pair]], device: torch.device) -> None:
        """Fill in clips with the other modality of their partners."""
        clips = [clip for clip, _, _ in pairs]
        assert self.pairing is not None
        lent = [self.pairing.partner[clip] for clip in clips]
        own_a, own_v = (torch.stack([own[what] for _, own, _ in pairs]).to(device) for what in (0, 1))
        lent_a, lent_v = (torch.stack([theirs[what] for _, _, theirs in pairs]).to(device) for what in (0, 1))
        keep, theirs = self._keep(clips, device), self._keep(lent, device)
        no, all_ = keep[0][:, :0], self._whole(len(clips), device)
        wrong = self._say(own_a, lent_v, keep[0], theirs[1])[0], self._say(lent_a, own_v, theirs[0], keep[1])[1]
        self._score(clips, (own_a, own_v), "shuffled", wrong, keep)
        cross = self._say(own_a, lent_v, no, all_[1])[0], self._say(lent_a, own_v, all_[0], no)[1]
        self._score(clips, (own_a, own_v), "cross_shuffled", cross, (no, no))

    def _floors(self, clips: list[int], given: Pair, keep: Pair, no: Pair) -> None:
        target = self._target(given)
        grids = self.model.model.audio_grid, self.model.model.video_grid
        guesses = {
            "mean": (keep, [mean_patch(x, kept) for x, kept in zip(target, keep, strict=True)]),
            "copy": (keep, [nearest_patch(x, kept, grid) for x, kept, grid in zip(target, keep, grids, strict=True)]),
            "cross_mean": (no, [mean_patch(x, kept) for x, kept in zip(target, no, strict=True)]),
        }
        for name, (seen, (a, v)) in guesses.items():
            self._score(clips, given, name, self._in_units((a, v), given), seen, shown=True)

    def _score(
        self, clips: list[int], given: Pair, name: str, filled: Pair, keep: Pair, *, shown: bool = False
    ) -> None:
        """Keep the errors of `filled` over the patches that are not in `keep`, and with `shown` how alike it looks."""
        raw = patches(*given, self.model.model)
        true = self._target(given) if self.scale.normalised else raw
        suffix = f"_{name}" if name else ""
        removed = [self._removed(clips, place, kept) for place, kept in enumerate(keep)]
        for modality, guess, truth, counted in zip(MODALITIES, filled, true, removed, strict=True):
            self.scores.add(clips, {f"{modality}_mse{suffix}": masked_error(guess, truth, counted).cpu()})
        if shown and not self.scale.normalised:
            found = likeness(filled, raw, keep, removed[0], self.model.model, self.scale)
            self.scores.add(clips, {f"{key}{suffix}": values.cpu() for key, values in found.items()})
        if not name:
            pictures = (
                (unnormalise(filled[0], raw[0]), unnormalise(filled[1], raw[1])) if self.scale.normalised else filled
            )
            self.pictures.add(clips, given, raw, pictures, keep)

    def _say(self, fbank: Tensor, frame: Tensor, keep_a: Tensor, keep_v: Tensor) -> Pair:
        return self._in_units(predict(self.model, fbank, frame, keep_a, keep_v), (fbank, frame))

    def _in_units(self, said: Pair, given: Pair) -> Pair:
        """From the model's units to those that are scored."""
        if not self.borrows:
            return said
        raw = patches(*given, self.model.model)
        return unnormalise(said[0], raw[0]), unnormalise(said[1], raw[1])

    def _target(self, given: Pair) -> Pair:
        """What the model was trained to say."""
        a, v = self.model.targets({"fbank": given[0], "frame": given[1]})
        return a, v

    def _keep(self, clips: list[int], device: torch.device) -> Pair:
        uids = [self.data.uids[clip] for clip in clips]
        return self.masks[0](uids).to(device), self.masks[1](uids).to(device)

    def _whole(self, count: int, device: torch.device) -> Pair:
        sizes = self.model.model
        a, v = (torch.arange(n, device=device).expand(count, n) for n in (sizes.audio_tokens, sizes.video_tokens))
        return a, v

    def _removed(self, clips: list[int], place: int, keep: Tensor) -> Tensor:
        """(B, L) 1 where a patch is removed and counts."""
        tokens = (self.model.model.audio_tokens, self.model.model.video_tokens)[place]
        removed = torch.ones(len(clips), tokens, device=keep.device).scatter_(1, keep, 0.0)
        if self.regions is None:
            return removed
        part = (self.regions.audio, self.regions.video)[place]
        return removed * torch.stack([part(clip) for clip in clips]).to(keep.device)
