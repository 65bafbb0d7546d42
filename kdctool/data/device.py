"""The last step before the model, on its device: int16 and uint8 become filter banks and normalised frames."""

import torch
from torch import Tensor

from kdctool.batch import Batch
from kdctool.data.augment import mix, noise_and_roll, spec_aug
from kdctool.data.clips import WINDOW_SHIFT, WINDOW_SIZE, Raw
from kdctool.data.fbank import log_mel, model_input
from kdctool.data.frames import normalise
from kdctool.data.patches import erase, paste
from kdctool.recipe import Finetune, Recipe


class ToBatch:
    """Turns what the loader yields into a `Batch` on `device`. Without state: equal input gives equal output."""

    def __init__(
        self, recipe: Recipe, device: torch.device, *, training: bool, finetune: Finetune | None = None
    ) -> None:
        self.recipe, self.device = recipe, device
        self.augments = training and recipe.data.noise
        self.freq_mask, self.time_mask = (finetune.freq_mask, finetune.time_mask) if finetune else (0, 0)

    @torch.no_grad()
    def __call__(self, raw: Raw) -> Batch:
        raw = {name: value.to(self.device, non_blocking=True) for name, value in raw.items()}
        data = self.recipe.data
        batch = {"clip": raw["clip"], "row": raw["row"]}
        if "waveform" in raw:
            batch["fbank"] = self._augmented(self._filter_bank(self._sound(raw), raw["samples"]), raw["seed"])
        if "frame" in raw:
            batch["frame"] = self._pictures(raw)
        if "frames" in raw:
            count = raw["frame_count"]
            own = torch.arange(raw["frames"].shape[1], device=self.device)[None] < count[:, None]  # (B, N)
            frames = normalise(raw["frames"], data.image_mean, data.image_std)
            batch["frames"] = frames.masked_fill(~own[:, :, None, None, None], 0.0)
            batch["frame_count"] = count
        if "label" in raw:
            batch["label"] = raw["label"]
            if "mix_label" in raw:
                batch["label"] = raw["label"].clone()  # On the CPU it is still the caller's.
                _mix_rows(batch["label"], raw["mix_label"], raw)
        return batch

    def _pictures(self, raw: Raw) -> Tensor:
        """Normalised frames (B, C, H, W): each erased for itself, then mixed, as timm's loader and Mixup do it."""
        data = self.recipe.data
        frame, other = (
            normalise(raw[name], data.image_mean, data.image_std) if name in raw else None
            for name in ("frame", "mix_frame")
        )
        assert frame is not None
        if "erase_row" in raw:
            erase(frame, raw["erase_row"], raw["erase_box"], raw["erase_key"])
        if other is not None:
            if "mix_erase_row" in raw:
                erase(other, raw["mix_erase_row"], raw["mix_erase_box"], raw["mix_erase_key"])
            if "mix_box" in raw:
                first, box = frame[raw["mix_row"]], raw["mix_box"]
                is_cut = (box[:, 2:] > 0).all(dim=1).view(-1, 1, 1, 1)
                blended = mix(first, other, raw["mix_weight"])
                frame[raw["mix_row"]] = torch.where(is_cut, paste(first, other, box), blended)
            else:
                _mix_rows(frame, other, raw)
        return frame

    def _sound(self, raw: Raw) -> Tensor:
        """Centred waveforms (B, S), those that have a partner mixed with it as the reference does.

        The partner is centred by its own mean, then cut or padded to the first clip's length: what lies past its end
        `_filter_bank` does not look at. The reference also takes the mean out of the sum; that is a constant, which
        the filter bank takes out of every window.
        """
        wave = _centred(raw["waveform"], raw["mean"])
        if "mix_waveform" in raw:
            other = _centred(raw["mix_waveform"], raw["mix_mean"])
            beyond = torch.arange(other.shape[1], device=self.device)[None] >= raw["mix_samples"][:, None]
            _mix_rows(wave, other.masked_fill_(beyond, 0.0), raw)
        return wave

    def _augmented(self, fbank: Tensor, seeds: Tensor) -> Tensor:
        if self.freq_mask or self.time_mask:
            # The reference masks with 0 before it normalises.
            blank = float(torch.zeros(()).sub_(self.recipe.data.fbank_mean).div_(self.recipe.data.fbank_std))
            fbank = spec_aug(fbank, seeds, self.freq_mask, self.time_mask, blank)
        return noise_and_roll(fbank, seeds) if self.augments else fbank

    def fbank(self, waveform: Tensor, samples: Tensor, mean: Tensor) -> Tensor:
        """Normalised model input (B, T, F) of int16 waveforms (B, S) whose first `samples` (B,) are sound.

        `mean` (B,) is the mean of the whole clip, which the reference subtracts. Frames past a clip's own end
        hold 0 before normalisation, as the reference pads them.
        """
        return self._filter_bank(_centred(waveform, mean), samples)

    def _filter_bank(self, wave: Tensor, samples: Tensor) -> Tensor:
        model, data = self.recipe.model, self.recipe.data
        fbank = log_mel(wave, num_mel_bins=model.mel_bins)  # (B, T, F)
        own = 1 + (samples - WINDOW_SIZE) // WINDOW_SHIFT
        beyond = torch.arange(fbank.shape[1], device=fbank.device)[None] >= own[:, None]
        fbank = fbank.masked_fill_(beyond[:, :, None], 0.0)
        return model_input(fbank, model.audio_frames, data.fbank_mean, data.fbank_std)


def _centred(waveform: Tensor, mean: Tensor) -> Tensor:
    """int16 (B, S) minus mean (B,), as floats in [-1, 1)."""
    return waveform.float().sub_(mean[:, None]).div_(32768)  # int16 came in: float() made a copy


def _mix_rows(first: Tensor, second: Tensor, raw: Raw) -> None:
    """Mix `second` (M, ...) into the rows of `first` (B, ...) that have a partner, in place."""
    rows = raw["mix_row"]
    first[rows] = mix(first[rows], second, raw["mix_weight"])
