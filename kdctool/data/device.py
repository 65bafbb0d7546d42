"""The last step before the model, on its device: int16 and uint8 become filter banks and normalised frames."""

import torch
from torch import Tensor

from kdctool.batch import Batch
from kdctool.data.augment import noise_and_roll
from kdctool.data.clips import WINDOW_SHIFT, WINDOW_SIZE, Raw
from kdctool.data.fbank import log_mel, model_input
from kdctool.data.frames import normalise
from kdctool.recipe import Recipe


class ToBatch:
    """Turns what the loader yields into a `Batch` on `device`. Without state: equal input gives equal output."""

    def __init__(self, recipe: Recipe, device: torch.device, *, training: bool) -> None:
        self.recipe, self.device = recipe, device
        self.augments = training and recipe.data.noise

    @torch.no_grad()
    def __call__(self, raw: Raw) -> Batch:
        raw = {name: value.to(self.device, non_blocking=True) for name, value in raw.items()}
        data = self.recipe.data
        fbank = self.fbank(raw["waveform"], raw["samples"], raw["mean"])
        if self.augments:
            fbank = noise_and_roll(fbank, raw["seed"])
        batch = {
            "clip": raw["clip"],
            "row": raw["row"],
            "fbank": fbank,
            "frame": normalise(raw["frame"], data.image_mean, data.image_std),
        }
        if "frames" in raw:
            count = raw["frame_count"]
            own = torch.arange(raw["frames"].shape[1], device=self.device)[None] < count[:, None]  # (B, N)
            frames = normalise(raw["frames"], data.image_mean, data.image_std)
            batch["frames"] = frames.masked_fill(~own[:, :, None, None, None], 0.0)
            batch["frame_count"] = count
        if "label" in raw:
            batch["label"] = raw["label"]
        return batch

    def fbank(self, waveform: Tensor, samples: Tensor, mean: Tensor) -> Tensor:
        """Normalised model input (B, T, F) of int16 waveforms (B, S) whose first `samples` (B,) are sound.

        `mean` (B,) is the mean of the whole clip, which the reference subtracts. Frames past a clip's own end
        hold 0 before normalisation, as the reference pads them.
        """
        model, data = self.recipe.model, self.recipe.data
        wave = waveform.float().sub_(mean[:, None]).div_(32768)  # int16 came in: float() made a copy
        fbank = log_mel(wave, num_mel_bins=model.mel_bins)  # (B, T, F)
        own = 1 + (samples - WINDOW_SIZE) // WINDOW_SHIFT
        beyond = torch.arange(fbank.shape[1], device=fbank.device)[None] >= own[:, None]
        fbank = fbank.masked_fill_(beyond[:, :, None], 0.0)
        return model_input(fbank, model.audio_frames, data.fbank_mean, data.fbank_std)
