"""Input transforms: waveform to filter bank, frame to image."""

import re

import torch
from golden_case import IMAGE, Case
from torch import Tensor

from kdctool.data.fbank import FRAME_LENGTH_MS, FRAME_SHIFT_MS, centre, log_mel, model_input
from kdctool.data.frames import normalise, resize_crop, tile

FLOOR = -8.0
"""Below this, bins hold rounding noise of the spectrum."""
ABOVE, BELOW = 1e-4, 1e-2


def audio(case: Case) -> None:
    config = case.config
    if (config["frame_length_ms"], config["frame_shift_ms"]) != (FRAME_LENGTH_MS, FRAME_SHIFT_MS):
        raise ValueError(f"windows of {config['frame_length_ms']} ms every {config['frame_shift_ms']} ms are not ours")
    mean, std = config["dataset_mean"], config["dataset_std"]

    def bank(waveform: Tensor) -> Tensor:
        return log_mel(waveform[None], config["sample_rate"], config["num_mel_bins"])

    def compare(name: str, waveform: Tensor) -> None:
        fbank = bank(waveform)
        if f"fbank{name}" in case.tensors:
            split_close(case, f"fbank{name}", fbank[0], case.tensors[f"fbank{name}"], 1.0, 0.0)
        got = model_input(fbank, config["target_length"], mean, std)[0]
        split_close(case, f"input{name}", got, case.tensors[f"input{name}"], std, mean)

    waves = {name.removeprefix("wave"): case.input(name) for name in case.tensors if re.fullmatch(r"wave\d+", name)}
    for name, samples in waves.items():
        compare(name, centre(samples))
    if "wave_stereo" in case.tensors:
        compare("_stereo", centre(case.input("wave_stereo"), dims=(-2, -1))[0])
    for name in [name for name in case.tensors if re.fullmatch(r"input_mix\d\d", name)]:
        first, second = (centre(waves[digit]) for digit in name[-2:])
        second = torch.nn.functional.pad(second, (0, max(0, len(first) - len(second))))[: len(first)]
        share = case.scalars["mix_lambda"]
        case.seen.add("mix_lambda")
        mixed = share * first + (1 - share) * second
        compare(name.removeprefix("input"), mixed - mixed.mean())


def split_close(case: Case, name: str, got: Tensor, want: Tensor, std: float, mean: float) -> None:
    """Compare log-mel values above and near the floor with a tolerance each; std and mean undo a normalisation."""
    if got.shape != want.shape:
        case.close(name, got, want, ABOVE)
        return
    high = want * std + mean >= FLOOR
    case.close(f"{name} (>= {FLOOR:g})", got[high], want[high], ABOVE)
    if (~high).any():
        case.close(f"{name} (< {FLOOR:g})", got[~high], want[~high], BELOW)
    case.seen.add(name)


def image(case: Case) -> None:
    config = case.config
    found: dict[str, Tensor] = {}
    for name in [name for name in case.tensors if re.fullmatch(r"frame\d+", name)]:
        small = torch.from_numpy(resize_crop(case.input(name).numpy(), config["im_res"])).permute(2, 0, 1)
        found[name.replace("frame", "input")] = normalise(small, config["mean"], config["std"])
    for name in [name for name in case.tensors if re.fullmatch(r"input_mix\d\d", name)]:
        share = case.scalars["mix_lambda"]
        case.seen.add("mix_lambda")
        found[name] = share * found[f"input{name[-2]}"] + (1 - share) * found[f"input{name[-1]}"]
    case.all_close(found, IMAGE)


def tiles(case: Case) -> None:
    config = case.config
    normalisation = case.other("data_image").config if "mean" not in config else config
    frames = [case.input(f"frame{i}").numpy() for i in range(4)]
    collage = torch.from_numpy(tile(frames, config["tile"])).permute(2, 0, 1)
    case.all_close({"input": normalise(collage, normalisation["mean"], normalisation["std"])}, IMAGE)


CASES = {"data_audio": audio, "data_image": image, "data_image_tiles": tiles}
