"""What the light decoder saves and what it costs: FLOPs at full size, and a small model after equal steps.

python benchmarks/light_decoder.py [--quick] [--steps N] [--rounds N] [--out FILE]

CPU only. The small model sees made-up clips (gratings and harmonic tones whose frequencies are known), trains equal
steps from equal weights with each decoder, and is then asked three things on clips it has not seen: the error of all
removed patches, CPU seconds per step, and how much of the clips' frequencies a ridge regression reads from the mean
joint latent of all tokens.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdctool.batch import Batch
from kdctool.masking import Views
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives import build
from kdctool.objectives.reconstruction import masked_mse
from kdctool.recipe import Recipe, validate
from kdctool.train.step import Trainer, train_step

DECODERS: dict[str, dict[str, Any]] = {
    "joint": {"kind": "joint"},
    "light_25": {"kind": "light", "share": 0.25},
}
SMALL = {
    "audio_frames": 96, "mel_bins": 32, "image_size": 48, "audio_patch": 8, "video_patch": 8,
    "width": 64, "heads": 4, "depth": 2,
}  # fmt: skip
BATCH, TRAIN, TEST = 16, 512, 128


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="under a minute, too short to judge quality")
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--rounds", type=int, default=5, help="seeds; the decoders take turns")
    arguments.add_argument("--out", type=Path, help="write the result to this file too")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    steps, rounds = (10, 2) if options.quick else (options.steps, options.rounds)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in DECODERS}
    for seed in range(rounds):
        for name in DECODERS:
            runs[name].append(train(name, seed, steps))
            harness.say(f"round {seed + 1} of {rounds}, {name}: {runs[name][-1]}")
    results, medians = [], {}
    for name in DECODERS:
        for key, unit in (("removed_mse", "1"), ("removed_mse_untrained", "1"), ("probe_r2", "1"), ("step", "CPU s")):
            found = harness.result(f"{name}_{key}", [run[key] for run in runs[name]], unit)
            results.append(found)
            medians[f"{name}_{key}"] = found.value
        flops = full_size_gflop(name)
        medians[f"{name}_gflop"] = flops
        results.append(harness.result(f"{name}_vitb_step_per_clip", [flops], "GFLOP"))
    ratios = {
        f"{name}_{what}_over_joint": medians[f"{name}_{key}"] / medians[f"joint_{key}"]
        for name in ("light_25",)
        for what, key in (("vitb_flops", "gflop"), ("step_time", "step"), ("removed_mse", "removed_mse"))
    }
    harness.finish(harness.report("light_decoder", harness.hardware(), ["torch"], results, ratios), options.out)


def recipe(name: str, **more: Any) -> Recipe:
    decoder = DECODERS[name] | more.pop("decoder", {})
    return validate({"name": "decoder", "objective": {"decoder": decoder, **more.pop("objective", {})}, **more})


def full_size_gflop(name: str) -> float:
    """Forward and backward of one clip, ViT-B and two views, counted on shapes alone."""
    full = recipe(name)
    with FakeTensorMode():
        objective = build(full, AVEncoder(full.model))
        batch = {"fbank": torch.empty(1, 1024, 128), "frame": torch.empty(1, 3, 224, 224)}
        views = []
        for tokens in (512, 196):
            kept = tokens // 4
            asked = max(1, int(full.objective.decoder.share * (tokens - kept)))
            ids = torch.empty(2, 1, tokens, dtype=torch.int64)
            light = ids[..., :asked] if name != "joint" else None
            views.append(Views(ids[..., :kept], ids, torch.empty(2, 1, tokens), light))
        # The counter does not know the fused attention kernel of the CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            objective.loss(batch, *views).total.backward()
    return counter.get_total_flops() / 1e9


def clips(number: int, seed: int) -> tuple[Batch, Tensor]:
    """Gratings and harmonic tones: a batch, and the numbers (clips, 3) that made each clip."""
    rng = torch.Generator().manual_seed(seed)
    factors = torch.rand(number, 3, generator=rng)
    phase = 2 * math.pi * torch.rand(number, 2, 1, 1, generator=rng)
    x = torch.linspace(0, 1, SMALL["image_size"])
    angle, cycles = (math.pi * factors[:, 0])[:, None, None], (0.5 + 1.5 * factors[:, 1])[:, None, None]
    along = x[None, None, :] * angle.cos() + x[None, :, None] * angle.sin()
    grating = (2 * math.pi * cycles * along + phase[:, 0]).sin()
    frame = torch.stack([grating, -grating, grating.square()], dim=1)
    mel = torch.linspace(0, 1, SMALL["mel_bins"])[None, None, :]
    time = torch.linspace(0, 1, SMALL["audio_frames"])[None, :, None]
    pitch, beat = (0.5 + 1.5 * factors[:, 2])[:, None, None], (0.5 + 1.5 * factors[:, 0])[:, None, None]
    fbank = (2 * math.pi * pitch * mel).sin() * (2 * math.pi * beat * time + phase[:, 1]).sin()
    noise = [0.05 * torch.randn(part.shape, generator=rng) for part in (fbank, frame)]
    return {"fbank": fbank + noise[0], "frame": frame + noise[1], "row": torch.arange(number)}, factors


def train(name: str, seed: int, steps: int) -> dict[str, float]:
    """Equal steps from equal encoder weights; then what the model is worth on unseen clips."""
    # Without norm_pix, so that smooth pictures can be learnt in few steps; predicting the mean gives about 0.34.
    pixels = {"reconstruction": {"norm_pix": False}}
    small = recipe(name, model=SMALL, decoder={"width": 48, "heads": 4, "depth": 3}, objective=pixels)
    torch.manual_seed(seed)
    objective = build(small, AVEncoder(small.model))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3, betas=(0.9, 0.95))
    trainer = Trainer(
        objective=objective,
        module=objective,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        autocast=None,
        global_batch=BATCH,
        grad_clip=1.0,
        seed=seed,
    )
    seen, factors = clips(TRAIN, 1000 + seed)
    unseen, truth = clips(TEST, 2000 + seed)
    before = removed_mse(objective, unseen)

    def fit() -> None:
        for step in range(steps):
            rows = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed * 10**6 + step))[:BATCH]
            batch = {key: value[rows] for key, value in seen.items()}
            train_step(trainer, [{**batch, "row": torch.arange(BATCH)}], step)

    seconds = harness.timed(fit, harness.cpu_seconds)
    return {
        "step": seconds / steps,
        "removed_mse_untrained": before,
        "removed_mse": removed_mse(objective, unseen),
        "probe_r2": ridge_r2(embed(objective, seen), factors, embed(objective, unseen), truth),
    }


@torch.no_grad()
def removed_mse(objective: Any, batch: Batch) -> float:
    """Mean error of every removed patch of both modalities, one fixed draw of masks for all decoders."""
    rng = torch.Generator().manual_seed(9)
    audio, video = (replace(view, ids_predict=None) for view in objective.draw(batch, rng, TEST))
    predicted = objective.decode(objective.encode(batch, audio, video), audio, video)
    targets = objective.targets(batch)
    parts = [masked_mse(*one).mean() for one in zip(predicted, targets, (audio.mask, video.mask), strict=True)]
    return float(sum(parts) / 2)


@torch.no_grad()
def embed(objective: Any, batch: Batch) -> Tensor:
    return objective.encoder(batch["fbank"], batch["frame"], single=False).joint.mean(dim=1)


def ridge_r2(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, penalty: float = 1e-2) -> float:
    """Share of the variance of the clips' factors that a linear map of the embedding explains."""
    mean, scale = x.mean(dim=0), x.std(dim=0) + 1e-6
    a, b = (x - mean) / scale, (x_test - mean) / scale
    weight = torch.linalg.solve(a.T @ a + penalty * len(a) * torch.eye(a.shape[1]), a.T @ (y - y.mean(dim=0)))
    residual = y_test - y.mean(dim=0) - b @ weight
    return float(1 - residual.square().sum() / (y_test - y_test.mean(dim=0)).square().sum())


if __name__ == "__main__":
    main()
