"""Hybrid Distill on pictures: what is compared is what the paper says, and costs what it says."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from distilling import FEATURE, RELATION, frames, image_objective, image_recipe, objective_of, rng

from kdctool.models.vit_streams import VitStreams
from kdctool.objectives.distill_cost import bill
from kdctool.objectives.distill_losses import relation, relation_loss
from kdctool.objectives.hybrid_distill import HybridDistill
from kdctool.recipe.distill_loss import DistillLoss
from kdctool.recipe.machine import Parallel
from kdctool.train.optim import build as build_optimizer
from kdctool.train.parallel import blocks, wrap
from kdctool.train.step import Trainer, train_step

MASK = {"policy": "redundancy", "teacher": "m"}
FULL = {"arch": "test_vit", "input": "full"}


def terms(objective: HybridDistill, clips: int = 4) -> dict[str, float]:
    loss = objective(frames(clips), rng(), clips)
    return {name: float(value) for name, value in loss.terms.items()}


def copy_teacher(objective: HybridDistill, name: str = "m") -> None:
    """The student becomes the teacher, positions and all, and sees with its eyes."""
    teacher = objective.teachers[name]
    objective.encoder.load_state_dict(teacher.encoder.state_dict())
    teacher.scale.fill_(1.0)
    teacher.shift.zero_()


def test_a_copy_of_the_masked_teacher_has_a_relation_loss_of_zero(tmp_path: Path) -> None:
    objective = image_objective(tmp_path, losses=[RELATION])
    assert terms(objective)["relation_m"] > 0.01
    copy_teacher(objective)
    assert terms(objective)["relation_m"] == 0


def test_a_copy_without_a_head_has_a_feature_loss_of_zero_where_the_target_is_its_own_final_norm(
    tmp_path: Path,
) -> None:
    loss = {**FEATURE, "teacher": "m", "target_norm": "ln_affine", "metric": "mse"}
    objective = image_objective(tmp_path, losses=[loss], student={**FULL, "head": {"kind": "none"}})
    copy_teacher(objective)
    assert terms(objective)["feature_m"] == 0


def test_with_a_mask_relations_of_the_first_block_are_the_gathered_ones_and_deeper_ones_are_not(
    tmp_path: Path,
) -> None:
    """Queries and keys of the first block know no context, so dropping tokens changes nothing for those that stay."""
    for layer, same in ((1, True), (3, False)):
        loss = {**RELATION, "teacher_layers": [layer]}
        objective = image_objective(tmp_path, losses=[loss], mask=MASK)
        copy_teacher(objective)
        found = terms(objective)["relation_m"]
        assert (found < 1e-9) if same else (found > 1e-4)


@pytest.mark.parametrize("policy", ["redundancy", "direct"])
def test_the_student_computes_on_the_kept_tokens_and_the_class_token_alone(tmp_path: Path, policy: str) -> None:
    objective = image_objective(tmp_path, mask={**MASK, "policy": policy, "keep": 0.35})
    seen: list[int] = []
    objective.encoder.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(output.shape[1]))
    terms(objective)
    assert seen == [1 + (16 if policy == "redundancy" else 17)]  # 49 -> 34 -> 23 -> 16; int(49 * 0.35)


def test_what_the_student_is_shown_does_not_depend_on_who_else_is_in_the_batch(tmp_path: Path) -> None:
    objective, batch = image_objective(tmp_path, mask=MASK), frames(4)
    together = objective.keep(objective.teach(batch), batch, rng(), 4)["video"]
    for place in range(4):
        alone = {name: value[place : place + 1] for name, value in batch.items()}
        assert torch.equal(objective.keep(objective.teach(alone), alone, rng(), 4)["video"][0], together[place])


def test_the_feature_loss_is_the_papers_arithmetic(tmp_path: Path) -> None:
    objective, batch = image_objective(tmp_path, losses=[FEATURE, RELATION], mask=MASK), frames(4)
    objective.eval()
    taught = objective.teach(batch)
    keep = objective.keep(taught, batch, rng(), 4)
    seen = objective.study(batch, keep)["video"]
    places = torch.cat((torch.zeros(4, 1, dtype=torch.int64), keep["video"] + 1), dim=1)
    target = taught["c"]["video"].outputs[6].gather(1, places[..., None].expand(-1, -1, 64))
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    predicted = objective.heads["feature_c_0"].layers[0](seen.final)
    error = (predicted - target).abs()
    expected = torch.where(error < 2, error**2 / 4, error - 1).mean()
    losses = []
    for layer in (4, 5):
        theirs, ours = taught["m"]["video"].qkv[layer], seen.qkv[layer]
        whole = theirs.q @ theirs.k.transpose(-2, -1)  # (B, heads, 50, 50)
        chosen = torch.stack([matrix[:, rows][:, :, rows] for matrix, rows in zip(whole, places, strict=True)])
        losses.append(F.smooth_l1_loss(ours.q @ ours.k.transpose(-2, -1), chosen, beta=2.0))
    loss = objective(batch, rng(), 4)
    torch.testing.assert_close(loss.terms["feature_c"], expected.detach())
    torch.testing.assert_close(loss.terms["relation_m"], torch.stack(losses).mean().detach())
    torch.testing.assert_close(loss.total.detach(), loss.terms["feature_c"] + loss.terms["relation_m"])


def test_teachers_never_learn_and_heads_never_leave(tmp_path: Path) -> None:
    objective = image_objective(tmp_path, student={"arch": "test_vit", "drop_path": 0.2}, mask=MASK)
    assert any(part.drop_prob for part in objective.encoder.modules() if hasattr(part, "drop_prob"))
    assert not any(part.training for teacher in objective.teachers.values() for part in teacher.modules())
    objective(frames(), rng(), 4).total.backward()
    assert all(p.grad is None for p in objective.teachers.parameters())
    trained = {id(p) for group in build_optimizer(objective, image_recipe(tmp_path).optim).param_groups
               for p in group["params"]}  # fmt: skip
    own = {id(p) for part in (objective.encoder, objective.heads) for p in part.parameters() if p.requires_grad}
    assert trained == own
    tops = {name.split(".")[0] for name in objective.state_dict()}
    assert tops == {"encoder", "heads"}
    assert objective.encoder.state_dict().keys() == objective.teachers["c"].encoder.state_dict().keys()


def test_a_state_dict_without_teachers_loads_strictly(tmp_path: Path) -> None:
    objective = image_objective(tmp_path)
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.load_state_dict(state, strict=True)
    del state["encoder.norm.weight"]
    with pytest.raises(RuntimeError, match=r"encoder\.norm\.weight"):
        objective.load_state_dict(state, strict=True)


def test_a_teacher_stops_after_the_last_block_that_is_used_and_sees_whole_pictures(tmp_path: Path) -> None:
    objective = image_objective(tmp_path, mask=MASK)
    calls: list[tuple[str, int, int]] = []
    for name in ("c", "m"):
        for number, block in enumerate(objective.teachers[name].encoder.blocks, start=1):
            block.register_forward_hook(
                lambda block, inputs, output, name=name, number=number: calls.append((name, number, output.shape[1]))
            )
    terms(objective)
    assert calls == [("c", n, 50) for n in range(1, 7)] + [("m", n, 50) for n in range(1, 6)]


def test_a_teacher_whose_losses_weigh_nothing_is_not_opened(tmp_path: Path) -> None:
    objective = image_objective(tmp_path, losses=[FEATURE, {**RELATION, "weight": 0.0}])
    assert list(objective.teachers) == ["c"]
    assert objective.weights == {"feature_c": 1.0}


def test_a_step_at_base_size_costs_what_the_paper_s_masks_save() -> None:
    """17.56 G multiply-adds for all 197 tokens; 1.69 x less a step at K = 30 % counts no embedding of dropped patches.

    Here all patches are embedded, which is 0.6 % of the whole, and the two figures differ by that.
    """
    import timm

    from kdctool.models.streams import Wanted

    with torch.device("meta"):
        base = VitStreams(timm.create_model("vit_base_patch16_224", num_classes=0), "base")
    stream = base.streams["video"]
    assert sum(p.numel() for p in base.vit.parameters()) == 85_798_656
    assert stream.gmacs(196, 12) == pytest.approx(17.56, abs=0.01)
    assert stream.gmacs(66, 12) == pytest.approx(5.81, abs=0.08)
    assert stream.gmacs(142, 12) == pytest.approx(12.61, abs=0.04)

    def step(tokens: int) -> float:
        return (
            3 * stream.gmacs(tokens, 12) + stream.gmacs(196, 12) + stream.gmacs(196, Wanted(qkv=frozenset({11})).last)
        )

    assert step(196) == pytest.approx(86.4, abs=0.1)
    assert step(196) / step(66) == pytest.approx(1.69, abs=0.012)
    assert step(196) / step(142) == pytest.approx(1.21, abs=0.005)


def test_the_bill_is_what_torch_counts(tmp_path: Path) -> None:
    """The counter also sees heads and relations, which are small, and knows that pixels need no gradient."""
    from kdctool.train.flops import per_clip

    for mask in ({"policy": "none"}, MASK):
        objective = image_objective(tmp_path, mask=mask)
        counted = per_clip(objective, {"frame": (3, 112, 112)}) / 2e9
        estimated = bill(objective).step
        head = 3 * 64 * 64 * (50 if mask["policy"] == "none" else 17) / 1e9
        embedding = 49 * 768 * 64 / 1e9
        assert estimated + head - embedding == pytest.approx(counted, rel=0.03)
    assert bill(objective).tokens == {"video": (16, 49)}
    assert bill(objective).step < bill(objective, masked=False).step


def test_both_losses_and_the_gradient_of_each_are_logged(tmp_path: Path) -> None:
    recipe = image_recipe(tmp_path, mask=MASK)
    objective = objective_of(recipe)
    trainer = Trainer(
        objective, objective, build_optimizer(objective, recipe.optim), torch.amp.GradScaler("cpu", enabled=False),
        torch.device("cpu"), None, 4, 0.0, 0, gradient_norms_every=1,
    )  # fmt: skip
    row = train_step(trainer, [frames()], 0)
    for term in ("feature_c", "relation_m"):
        assert row[term] > 0
        assert row[f"weighted/{term}"] == row[term]
        assert row[f"gradient/{term}"] > 0


def test_learning_lowers_both_losses(tmp_path: Path) -> None:
    objective, batch = image_objective(tmp_path, mask=MASK), frames(4)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    first = objective(batch, rng(), 4).terms
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch, rng(), 4).total.backward()
        optimizer.step()
    last = objective(batch, rng(), 4).terms
    assert last["feature_c"] < 0.7 * first["feature_c"]
    assert last["relation_m"] < 0.7 * first["relation_m"]


def test_scaled_relations_are_raw_ones_over_the_root_of_the_heads_width() -> None:
    generator = rng()
    from kdctool.models.streams import Qkv

    qkv = Qkv(*torch.randn(3, 2, 4, 5, 16, generator=generator))
    raw, scaled = (
        relation(qkv, "qk", DistillLoss(kind="relation", teacher="m", scale=scale), None)
        for scale in ("none", "sqrt_head_dim")
    )
    torch.testing.assert_close(scaled, raw / 4)
    kl = DistillLoss(kind="relation", teacher="m", softmax=True, metric="kl")
    other = torch.randn(2, 4, 5, 5, generator=generator)
    expected = F.kl_div(other.log_softmax(-1), raw.softmax(-1), reduction="none").sum(-1).mean()
    torch.testing.assert_close(relation_loss(other, raw, kl), expected)


@pytest.mark.parametrize("how", ["compiled", "recomputed"])
def test_compiled_and_recomputed_blocks_are_heard_like_plain_ones(tmp_path: Path, how: str) -> None:
    """Compiled blocks share their code: one that is listened to must not be served that of one that is not."""

    def outcome(wrapped: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        objective = image_objective(tmp_path, mask=MASK)
        if wrapped and how == "compiled":
            torch.compiler.reset()
            for block in blocks(objective):
                block.compile(backend="eager")
        elif wrapped:
            wrap(objective, torch.device("cpu"), Parallel(mode="none", compile="off", checkpoint_activations=True))
        loss = objective(frames(), rng(), 4)
        loss.total.backward()
        grads = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in objective.named_parameters()}
        return loss.total.detach(), {name: grad for name, grad in grads.items() if grad is not None}

    (plain, expected), (found, grads) = outcome(False), outcome(True)
    torch.testing.assert_close(found, plain)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6, msg=name)
