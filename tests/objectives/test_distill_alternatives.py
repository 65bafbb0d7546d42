"""Every documented alternative of Hybrid Distill, and its relatives: finite, and trained exactly where it reaches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distilling import FEATURE, RELATION, frames, image_objective, rng

MASK = {"policy": "redundancy", "teacher": "m"}
FULL = {"arch": "test_vit", "input": "full"}

ALTERNATIVES: dict[str, dict[str, Any]] = {
    "scaled relations": {"preset": "scaled", "mask": MASK},
    "softmax and KL (TinyMIM)": {
        "losses": [{**RELATION, "rel": ["qk", "vv"], "softmax": True, "scale": "sqrt_head_dim", "metric": "kl",
                    "teacher_layers": [4], "student_layers": [-1]}],
        "student": FULL,
    },
    "softmax, smooth L1": {"losses": [{**RELATION, "softmax": True}]},
    "raw features, no head": {
        "losses": [{**FEATURE, "target_norm": "none"}], "student": {"arch": "test_vit", "head": {"kind": "none"}},
    },
    "FD": {
        "losses": [{**FEATURE, "target_norm": "ln_whiten", "at": "all"}],
        "student": {**FULL, "pos": "relbias", "drop_path": 0.3},
    },
    "dBOT": {
        "losses": [{**FEATURE, "at": "masked"}], "mask": {"policy": "random", "keep": 0.25},
        "student": {"arch": "test_vit", "head": {"kind": "asym", "depth": 2, "width": 32, "heads": 4}},
    },
    "SimMIM with features": {
        "losses": [{**FEATURE, "at": "masked"}], "mask": {"policy": "random", "keep": 0.4},
        "student": {"arch": "test_vit", "input": "mask_token", "pos": "learned"},
    },
    "features of both": {"losses": [FEATURE, {**FEATURE, "teacher": "m"}], "student": FULL},
    "features of two blocks": {"losses": [{**FEATURE, "teacher_layers": [-3, -2], "over_layers": "sum"}]},
    "cosine, mlp head": {
        "losses": [{**FEATURE, "metric": "cos"}], "student": {"arch": "test_vit", "head": {"kind": "mlp", "width": 32}},
    },
    "asymmetric head on all tokens": {
        "losses": [{**FEATURE, "at": "all"}],
        "student": {**FULL, "head": {"kind": "asym", "depth": 1, "width": 32, "heads": 4}},
    },
    "no class token, mean squares": {
        "losses": [{**FEATURE, "include_cls": False, "metric": "mse"}, {**RELATION, "include_cls": False}],
        "mask": {**MASK, "side": "input"},
    },
    "regrouped heads": {"losses": [{**RELATION, "relation_heads": 4, "scale": "sqrt_head_dim"}], "mask": MASK},
    "other blocks rank the tokens": {"mask": {**MASK, "layers": [0, 5], "drop": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_alternative_is_finite_and_trains_exactly_what_it_reaches(tmp_path: Path, name: str) -> None:
    objective = image_objective(tmp_path, **ALTERNATIVES[name])
    loss = objective(frames(), rng(), 4)
    assert torch.isfinite(loss.total)
    assert float(loss.total) > 0
    loss.total.backward()
    reached = {key for key, p in objective.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    trainable = {key for key, p in objective.named_parameters() if p.requires_grad}
    # A class token that is not compared still speaks as a key; a bias of keys alone moves no softmax.
    assert trainable == {key for key, p in objective.named_parameters() if p.grad is not None}
    assert trainable - reached <= {"encoder.cls_token"}


def test_masked_places_are_those_that_are_not_kept(tmp_path: Path) -> None:
    objective = image_objective(tmp_path, **ALTERNATIVES["dBOT"])
    keep = torch.tensor([[0, 3, 5], [1, 2, 48]])
    theirs, ours = objective._places(objective.lessons[0], keep, torch.zeros(2, 50, 1), filled=True)
    for row, kept in enumerate(keep.tolist()):
        assert theirs[row].tolist() == [0] + [1 + n for n in range(49) if n not in kept]
    assert torch.equal(theirs, ours)
