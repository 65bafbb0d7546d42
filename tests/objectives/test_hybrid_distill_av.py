"""Audio-visual Hybrid Distill: relations, masks and features of each modality, and of both together."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.student import make_encoder
from kdctool.models.teachers import About, Seen, Teacher
from kdctool.objectives import build
from kdctool.objectives.hybrid_distill import HybridDistill
from kdctool.recipe import Model, Recipe, validate

MODEL: dict[str, Any] = {
    "audio_frames": 64, "mel_bins": 32, "image_size": 32, "audio_patch": 8, "video_patch": 8, "width": 32, "heads": 4,
    "depth": 5,
}  # fmt: skip
FEATURE = {"kind": "feature", "teacher": "c"}
RELATION = {"kind": "relation", "teacher": "m"}
MASK = {"policy": "redundancy", "teacher": "m", "floor": 4}
"""32 audio and 16 video tokens; 0.7 three times: 32 -> 22 -> 15 -> 10 and 16 -> 11 -> 7 -> 4."""


def teacher(seed: int, recipe: Recipe, **model: Any) -> Teacher:
    torch.manual_seed(seed)
    encoder = AVEncoder(Model(**{**MODEL, **model}))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    seen = Seen.of(recipe.data)
    return Teacher(encoder, About(f"teacher {seed}", "", "", ""), seen, seen, fbank=True)


def objective(
    model: dict[str, Any] | None = None, taught: dict[str, Any] | None = None, **section: Any
) -> HybridDistill:
    section = {"losses": [FEATURE, RELATION], **section}
    named = {loss["teacher"] for loss in section["losses"]} | {section.get("mask", {}).get("teacher", "")} - {""}
    section["teachers"] = {name: {"path": "given"} for name in sorted(named) if name}
    recipe = validate(
        {"name": "t", "model": {**MODEL, **(model or {})}, "objective": {"name": "hybrid_distill", "distill": section}}
    )
    teachers = {name: teacher(n, recipe, **(taught or {})) for n, name in enumerate(recipe.objective.distill.used(), 1)}
    torch.manual_seed(0)
    return build(recipe, make_encoder(recipe), teachers=teachers).train()


def batch(clips: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(5)
    rows = torch.arange(clips)
    fbank, frame = torch.randn(clips, 64, 32, generator=rng), torch.randn(clips, 3, 32, 32, generator=rng)
    return {"clip": rows, "row": rows, "fbank": fbank, "frame": frame}


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def terms(made: HybridDistill) -> dict[str, float]:
    return {name: float(value) for name, value in made(batch(), rng(), 3).terms.items()}


def test_each_modality_has_terms_of_its_own() -> None:
    made = objective(mask=MASK)
    assert terms(made).keys() == {"feature_c_audio", "feature_c_video", "relation_m_audio", "relation_m_video"}
    assert set(made.weights.values()) == {1.0}


def test_masks_are_ranked_within_each_modality_and_hold_the_floor() -> None:
    made, clip = objective(mask=MASK), batch()
    keep = made.keep(made.teach(clip), clip, rng(), 3)
    assert {name: ids.shape for name, ids in keep.items()} == {"audio": (3, 10), "video": (3, 4)}
    high = objective(mask={**MASK, "floor": 12})
    keep = high.keep(high.teach(clip), clip, rng(), 3)
    assert {name: ids.shape[1] for name, ids in keep.items()} == {"audio": 12, "video": 12}
    other = {**clip, "frame": clip["frame"].flip(0)}
    again = high.keep(high.teach(other), other, rng(), 3)
    assert torch.equal(again["audio"], keep["audio"])
    assert not torch.equal(again["video"], keep["video"])


def test_features_are_those_after_the_joint_block_run_on_one_modality() -> None:
    made, clip = objective(losses=[FEATURE]), batch()
    with torch.no_grad():
        of_teacher = made.teachers["c"].encoder
        x = of_teacher.audio_tokens(clip["fbank"])
        for block in of_teacher.blocks_a:
            x = block(x)
        target = F.layer_norm(of_teacher.blocks_u[0](x, "a"), (32,), eps=1e-6)
        own = made.encoder.embed_audio(clip["fbank"])  # final norm included
        expected = F.smooth_l1_loss(made.heads["feature_c_audio_0"](own, None), target, beta=2.0)
    torch.testing.assert_close(made(clip, rng(), 3).terms["feature_c_audio"], expected)


@pytest.mark.parametrize("masked", [False, True])
def test_a_copy_of_the_masked_teacher_has_no_relation_loss_but_what_the_mask_makes(masked: bool) -> None:
    for layer in ((-3, -2), (1,)):
        made = objective(losses=[{**RELATION, "teacher_layers": list(layer)}], mask=MASK if masked else {})
        made.encoder.load_state_dict(made.teachers["m"].encoder.state_dict())
        found = terms(made)
        if not masked:
            assert set(found.values()) == {0.0}
        elif layer == (1,):
            assert max(found.values()) < 1e-10
        else:
            assert min(found.values()) > 1e-5


def test_the_masked_teacher_stops_before_its_joint_block() -> None:
    made, ran = objective(mask=MASK), []
    for name in ("c", "m"):
        encoder = made.teachers[name].encoder
        for tower in ("blocks_a", "blocks_v", "blocks_u"):
            for block in getattr(encoder, tower):
                block.register_forward_hook(lambda *_, name=name, tower=tower: ran.append((name, tower)))
    terms(made)
    counts = {key: ran.count(key) for key in dict.fromkeys(ran)}
    assert counts == {
        ("c", "blocks_a"): 5, ("c", "blocks_v"): 5, ("c", "blocks_u"): 2, ("m", "blocks_a"): 5, ("m", "blocks_v"): 5,
    }  # fmt: skip


def test_joint_relations_come_as_four_terms_with_a_quarter_of_the_weight_each() -> None:
    joint = {"kind": "relation", "teacher": "m", "modality": "joint", "name": "joint", "weight": 2.0}
    made, clip = objective(losses=[FEATURE, RELATION, joint], mask=MASK), batch()
    loss = made(clip, rng(), 3)
    assert {name: made.weights[name] for name in made.weights if name.startswith("joint")} == {
        f"joint_joint_{block}": 0.5 for block in ("aa", "vv", "av", "va")
    }
    taught = made.teach(clip)
    keep = made.keep(taught, clip, rng(), 3)
    seen = made.study(clip, keep)["joint"].qkv[6]
    q, k, _ = taught["m"]["joint"].qkv[6]
    whole = q @ k.transpose(-2, -1)
    places = torch.cat((keep["audio"], keep["video"] + 32), dim=1)
    theirs = torch.stack([matrix[:, rows][:, :, rows] for matrix, rows in zip(whole, places, strict=True)])
    ours = seen.q @ seen.k.transpose(-2, -1)
    a, v = slice(0, 10), slice(10, 14)
    for term, rows, columns in (("aa", a, a), ("vv", v, v), ("av", a, v), ("va", v, a)):
        expected = F.smooth_l1_loss(ours[..., rows, columns], theirs[..., rows, columns], beta=2.0)
        torch.testing.assert_close(loss.terms[f"joint_joint_{term}"], expected.detach())


def test_a_copy_that_sees_all_has_no_joint_relation_loss() -> None:
    joint = {"kind": "relation", "teacher": "m", "modality": "joint"}
    made = objective(losses=[joint])
    made.encoder.load_state_dict(made.teachers["m"].encoder.state_dict())
    assert set(terms(made).values()) == {0.0}


CASES: dict[str, dict[str, Any]] = {
    "paper": {"mask": MASK},
    "relations alone": {"losses": [RELATION]},
    "joint relations alone": {"losses": [{**RELATION, "modality": "joint"}], "mask": MASK},
    "video alone": {"losses": [{**FEATURE, "modality": "video"}]},
    "all tokens, masked ones decoded": {
        "losses": [{**FEATURE, "at": "all"}], "mask": {"policy": "random", "keep": 0.5, "floor": 1},
        "student": {"head": {"kind": "asym", "depth": 1, "width": 16, "heads": 2}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_exactly_what_is_reached_is_trained(name: str) -> None:
    made = objective(**CASES[name])
    trainable = {key for key, p in made.named_parameters() if p.requires_grad}
    made.encoder.requires_grad_(True)
    made(batch(), rng(), 3).total.backward()
    assert trainable == {key for key, p in made.named_parameters() if p.grad is not None and "pos_embed" not in key}


def test_a_smaller_student_learns_from_a_larger_teacher() -> None:
    """Fewer blocks and narrower: features through a linear head, relations regrouped into common heads."""
    relation = {**RELATION, "relation_heads": 4, "scale": "sqrt_head_dim"}
    made = objective({"width": 16, "heads": 2, "depth": 2}, {}, losses=[FEATURE, relation], mask=MASK)
    small, large = (sum(p.numel() for p in x.parameters()) for x in (made.encoder, made.teachers["c"].encoder))
    assert small < 0.25 * large
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    first = terms(made)
    for _ in range(40):
        optimizer.zero_grad()
        made(batch(), rng(), 3).total.backward()
        optimizer.step()
    last = terms(made)
    assert all(last[name] < 0.9 * first[name] for name in first)


@pytest.mark.parametrize(
    ("student", "changes", "cause", "fix"),
    [
        ({"heads": 2}, {}, "has 4 heads, the student 2", "relation_heads = 4 and scale"),
        ({"width": 16}, {}, "so their products have different scales", "scale = 'sqrt_head_dim'"),
        (
            {"width": 16, "heads": 2},
            {"losses": [{**RELATION, "relation_heads": 3}]},
            "relation_heads = 3 does not divide",
            "relation_heads = 4",
        ),
        (
            {"width": 16, "heads": 2},
            {"losses": [FEATURE], "student": {"head": {"kind": "none"}}},
            "features of width 32, the student 16",
            "head.kind = 'linear'",
        ),
        ({"depth": 1}, {"losses": [RELATION]}, "layer -3: there are 2 blocks", "count from 1"),
        ({"video_patch": 16}, {}, "grid of 4 x 4 video tokens, the student one of 2 x 2", "same model.image_size"),
        ({"audio_patch": 16}, {}, "grid of 4 x 8 audio tokens, the student one of 2 x 4", "same model.audio_frames"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_fix(
    student: dict[str, Any], changes: dict[str, Any], cause: str, fix: str
) -> None:
    with pytest.raises(UsageFault) as caught:
        objective(student, {}, **changes)
    assert cause in caught.value.cause
    assert fix in caught.value.next_step


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    made, clip = objective(mask={"policy": "random", "keep": 0.5, "floor": 1}), batch(4)
    made(clip, rng(), 4).total.backward()
    whole = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    for rows in ([2, 0], [1, 3]):
        (made({name: value[rows] for name, value in clip.items()}, rng(), 4, {}).total / 2).backward()
    for name, grad in whole.items():
        torch.testing.assert_close(dict(made.named_parameters())[name].grad, grad, atol=1e-6, rtol=1e-4)
