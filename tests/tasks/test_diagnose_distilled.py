"""What the paper shows, on constructed teachers: one whose late layers have collapsed, and one whose heads look around.

The student learns features of the first; relations of the second give the two guided layers their diversity back.
"""

import math
from pathlib import Path
from typing import Any

import distilling
import pytest
import timm
import torch
from torch import Tensor, nn

from kdctool.models.layers import sincos_2d
from kdctool.objectives.hybrid_distill import HybridDistill
from kdctool.tasks import EvalData
from kdctool.tasks.diagnose import Diagnose

SIDE, CLIPS, STEPS = 80, 8, 250
"""25 tokens."""
GUIDED, LAST = (3, 4), 5
"""Layers 4, 5 and 6 of 6, counted from 1."""


def pictures(clips: int, seed: int) -> Tensor:
    """Gratings of any direction and frequency behind a coloured spot: (clips, 3, SIDE, SIDE)."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(clips, *more, 1, 1, generator=rng)

    line = torch.linspace(-1, 1, SIDE)
    x, y = line[None, None, :], line[None, :, None]
    angle, cycles, phase = drawn(0, math.pi), drawn(1, 5), drawn(0, 2 * math.pi)
    grating = (math.pi * cycles * (x * angle.cos() + y * angle.sin()) + phase).sin()
    spot = (-((x - drawn(-0.7, 0.7)) ** 2 + (y - drawn(-0.7, 0.7)) ** 2) / drawn(0.2, 0.5) ** 2).exp()
    noise = 0.05 * torch.randn(clips, 3, SIDE, SIDE, generator=rng)
    return 0.7 * (grating * (1 - spot))[:, None] + 2 * spot[:, None] * drawn(-1, 1, 3) + noise


def collapsed() -> Any:
    """From layer 4 on all queries are the same vector, so all rows of attention are."""
    model = distilling.vit(1, side=SIDE)
    with torch.no_grad():
        for block in model.blocks[3:]:
            block.attn.qkv.weight[:64].zero_()
            block.attn.qkv.bias[:64].normal_()
    return model


def diverse() -> Any:
    """Queries are keys: every token attends to those that are like it, in place above all."""
    torch.manual_seed(2)
    model = timm.create_model(distilling.ARCH, num_classes=0, img_size=SIDE).eval()
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[:, 1:] = sincos_2d(64, model.patch_embed.grid_size)
        for block in model.blocks:
            block.attn.qkv.weight[:128] = nn.init.orthogonal_(torch.empty(64, 64)).repeat(2, 1)
    return model


def information(model: Any) -> list[float]:
    """Normalised mutual information of each layer, as `kdctool eval --task diagnose` tells it."""
    uids = [f"picture-{n}" for n in range(CLIPS)]
    data = EvalData([{"clip": torch.arange(CLIPS), "frame": pictures(CLIPS, 99)}], uids, uids, CLIPS)
    return [row["nmi_mean"] for row in Diagnose().run(model, data).details["towers"]["video"]]


def train(objective: HybridDistill) -> dict[str, tuple[float, float]]:
    """First and last value of each term."""
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    rows = torch.arange(CLIPS)
    seen = []
    for step in range(STEPS):
        loss = objective({"clip": rows, "row": rows, "frame": pictures(CLIPS, 1000 + step)}, distilling.rng(), CLIPS)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        seen.append({name: float(value) for name, value in loss.terms.items()})
    return {name: (seen[0][name], seen[-1][name]) for name in seen[0]}


def test_relations_give_the_two_guided_layers_the_information_that_features_alone_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "SIDE", SIDE)
    for name, model in (("c", collapsed()), ("m", diverse())):
        distilling.write(tmp_path / f"{name}.safetensors", model)
    mask = {"policy": "redundancy", "teacher": "m"}
    alone = distilling.image_objective(tmp_path, losses=[distilling.FEATURE])
    hybrid = distilling.image_objective(tmp_path, mask=mask)
    contrastive, masked = (information(hybrid.teachers[name].encoder) for name in ("c", "m"))
    assert max(contrastive[3:]) < 1e-4, "the constructed teacher has collapsed in its last three layers"
    assert min(contrastive[:3]) > 1e-3
    assert min(masked) > 0.05, "the other has not, in any layer"
    assert max(information(alone.encoder)) < 1e-4, "a student that has learnt nothing attends everywhere alike"
    for objective in (alone, hybrid):
        for first, last in train(objective).values():
            assert last < 0.2 * first
    without, with_relations = information(alone.encoder), information(hybrid.encoder)
    for layer in GUIDED:
        assert without[layer] < 0.02
        assert with_relations[layer] > 0.03
        assert with_relations[layer] > 4 * without[layer]
    assert with_relations[LAST] < 0.5 * min(with_relations[layer] for layer in GUIDED), "the last stays like teacher c"
