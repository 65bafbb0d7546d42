"""The family's corners: what each knob does, what a view is worth, and where tokens land."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.masking import Views
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives.kdc_mae import KdcMae
from kdctool.recipe.presets import PRESETS

EVERYONE = list(range(8))
ONE_VIEW = {"masking": {"views": 1}, "objective": {"self_distillation": {"weight": 0.0}}}


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kdc_mae_with_one_view_is_cav_mae(make_objective: Callable[..., Any], make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(EVERYONE)
    losses = []
    for objective in (make_objective("kdc_mae", **ONE_VIEW), make_objective("cav_mae")):
        loss = objective(batch, rng(), 8)
        loss.total.backward()
        losses.append((loss.total, objective.encoder.blocks_u[0].attn.qkv.weight.grad))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])


def test_two_views_are_the_sum_of_each_and_their_divergence(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch, objective = make_batch(EVERYONE), make_objective("kdc_mae")
    loss = objective(batch, rng(), 8)
    single = make_objective("cav_mae")
    alone = []
    for view in range(2):
        audio, video = (
            Views(v.ids_keep[view : view + 1], v.ids_restore[view : view + 1], v.mask[view : view + 1])
            for v in objective.draw(batch, rng(), 8)
        )
        alone.append(single.loss(batch, audio, video).terms)
    for term in ("reconstruction_audio", "reconstruction_video", "contrastive"):
        torch.testing.assert_close(loss.terms[term], alone[0][term] + alone[1][term])
    assert loss.weights["self_distillation"] == 10.0
    assert float(loss.terms["self_distillation"]) > 0


@pytest.mark.parametrize(
    ("name", "terms", "without"),
    [
        ("mae", {"reconstruction_audio", "reconstruction_video"}, {"norm_a", "norm_v"}),
        ("cav", {"contrastive"}, {"norm"}),
        ("cav_mae", {"reconstruction_audio", "reconstruction_video", "contrastive"}, set()),
    ],
)
def test_a_term_of_weight_zero_is_neither_computed_nor_trained(
    name: str, terms: set[str], without: set[str], make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective(name)
    assert set(objective(make_batch(EVERYONE), rng(), 8).terms) == terms
    assert (objective.decoder is not None) == ("reconstruction_audio" in terms)
    frozen = {m for m in ("norm", "norm_a", "norm_v") if not getattr(objective.encoder, m).weight.requires_grad}
    assert frozen == without
    calls: list[str | None] = []
    objective.encoder.blocks_u[0].register_forward_hook(lambda _m, args, _o: calls.append((*args, None)[1]))
    objective(make_batch(EVERYONE), rng(), 8)
    assert len(calls) == 3 - len(without)


@pytest.mark.parametrize("name", ["kdc_mae", "cav_mae"])
def test_only_what_compares_clips_globally_is_a_feature(name: str, make_objective: Callable[..., Any]) -> None:
    def names(**changes: Any) -> set[str]:
        return set(make_objective(name, objective=changes).coupled_terms)

    distils = {"self_distillation"} if name == "kdc_mae" else set()
    assert names() == {"contrastive"} | distils
    assert names(contrastive={"negatives": "local"}) == distils
    assert names(self_distillation={"shift": "sample"}) == {"contrastive"}
    assert names(contrastive={"negatives": "local"}, self_distillation={"shift": "local"}) == set()


def test_local_terms_stay_in_the_micro_batch(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    local = {"contrastive": {"negatives": "local"}, "self_distillation": {"shift": "local"}}
    objective, reference = make_objective("kdc_mae", objective=local), make_objective("kdc_mae")
    batch = make_batch([0, 1, 2])
    assert objective.features(batch, rng(), 8) == {}
    loss = objective(batch, rng(), 8, {})
    expected = reference(batch, rng(), 8)  # one micro batch on one process: local and global are the same
    assert loss.terms.keys() == expected.terms.keys()
    torch.testing.assert_close(loss.total, expected.total)


def test_a_clip_in_another_micro_batch_changes_only_coupled_terms(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective = make_objective("kdc_mae", objective={"self_distillation": {"shift": "sample"}})
    small, large = (objective(make_batch(rows), rng(), 8).terms for rows in ([2], [2, 5]))
    apart = objective(make_batch([5]), rng(), 8).terms
    for term in ("reconstruction_audio", "reconstruction_video", "self_distillation"):
        torch.testing.assert_close(large[term], (small[term] + apart[term]) / 2)
    assert float(small["contrastive"]) == 0.0
    assert float(large["contrastive"]) > 0.0


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("legacy", [False, True])
def test_decoder_puts_a_tagged_token_on_its_own_index_in_every_view(
    views: int, legacy: bool, make_recipe: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    changes = {"self_distillation": {"weight": 1.0 if views > 1 else 0.0}, "legacy_view2_order": legacy}
    recipe = make_recipe("kdc_mae", masking={"views": views}, objective=changes)
    objective = KdcMae(recipe, AVEncoder(recipe.model))
    batch = make_batch(EVERYONE)
    tokens, seen = objective.model.audio_tokens, []
    decoder = objective.decoder
    for views_of, part in zip(objective.draw(batch, rng(), 8), ("audio", "video"), strict=True):
        kept = views_of.ids_keep.flatten(0, 1)
        tags = (kept + 1.0).unsqueeze(-1).expand(-1, -1, 8)
        restore = views_of.ids_restore[:1].expand_as(views_of.ids_restore) if legacy else views_of.ids_restore
        with torch.no_grad():
            decoder.mask_token.zero_()
            placed = decoder.unshuffle(tags, restore.flatten(0, 1))[..., 0].unflatten(0, (views, 8))
        tokens = placed.shape[2]
        at_home = placed == torch.arange(1, tokens + 1)
        right = (at_home & ~views_of.mask.bool()).sum(dim=(1, 2)) / (1 - views_of.mask).sum(dim=(1, 2))
        seen.append((part, right.tolist()))
    # The release finds no token of a later view at home.
    expected = [1.0] + [0.0 if legacy else 1.0] * (views - 1)
    assert seen == [("audio", expected), ("video", expected)]


def test_the_decoder_itself_uses_each_views_own_order(
    make_recipe: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(EVERYONE)
    predictions = []
    for legacy in (False, True):
        recipe = make_recipe("kdc_mae", objective={"legacy_view2_order": legacy})
        torch.manual_seed(0)
        objective = KdcMae(recipe, AVEncoder(recipe.model))
        audio, video = objective.draw(batch, rng(), 8)
        predictions.append(objective.decode(objective.encode(batch, audio, video), audio, video)[0])
    assert torch.equal(predictions[0][0], predictions[1][0])
    assert not torch.allclose(predictions[0][1], predictions[1][1], atol=1e-4)


def test_norm_pix_changes_the_target_alone(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(EVERYONE)
    plain = make_objective("mae", objective={"reconstruction": {"norm_pix": False}})
    target_a, target_v = plain.targets(batch)
    # Frequency-major tokens of 8 x 8: token 5 is mel patch 1, time patch 1; element 10 is mel row 1, time column 2.
    assert torch.equal(target_a[:, 5, 10], batch["fbank"][:, 1 * 8 + 2, 1 * 8 + 1])
    # Row-major tokens of 4 x 4: token 6 is row 1, column 2; element 3 * (1 * 4 + 2) + 1 is pixel (1, 2), green.
    assert torch.equal(target_v[:, 6, 19], batch["frame"][:, 1, 1 * 4 + 1, 2 * 4 + 2])
    normal_a, normal_v = make_objective("mae").targets(batch)
    for target in (normal_a, normal_v):
        torch.testing.assert_close(target.mean(dim=-1), torch.zeros(target.shape[:2]), atol=1e-5, rtol=0)
        torch.testing.assert_close(target.std(dim=-1), torch.ones(target.shape[:2]), atol=1e-3, rtol=0)


def test_only_removed_patches_count(make_objective: Callable[..., Any], make_batch: Callable[..., Batch]) -> None:
    objective, batch = make_objective("mae"), make_batch([0])
    audio, _ = objective.draw(batch, rng(), 8)
    visible = int(audio.ids_keep[0, 0, 0])
    removed = int(audio.mask[0, 0].nonzero()[0])
    base = objective.targets(batch)
    for token, counts in ((visible, False), (removed, True)):
        changed = base[0].clone()
        changed[:, token] += 1.0
        objective.targets = lambda _, changed=changed: (changed, base[1])
        moved = objective(batch, rng(), 8).terms["reconstruction_audio"]
        objective.targets = lambda _: base
        assert torch.equal(moved, objective(batch, rng(), 8).terms["reconstruction_audio"]) != counts


@pytest.mark.parametrize(
    ("changes", "said", "fix"),
    [
        ({"masking": {"views": 1}}, "objective.self_distillation.weight = 10 compares views", "masking.views = 2"),
        ({"objective": {"options": {"beta": 1}}}, "objective.options = {'beta': 1} means nothing", "remove"),
        (
            {
                "objective": {
                    "reconstruction": {"weight": 0.0},
                    "contrastive": {"weight": 0.0},
                    "self_distillation": {"weight": 0.0},
                }
            },
            "are all 0",
            "raise one",
        ),
        (
            {"objective": {"decoder": {"kind": "light"}, "reconstruction": {"patches": "all"}}},
            "objective.reconstruction.patches = 'all'",
            "objective.decoder.kind = 'joint'",
        ),
        (
            {"objective": {"decoder": {"kind": "light"}, "legacy_view2_order": True}},
            "objective.legacy_view2_order = true",
            "objective.legacy_view2_order = false",
        ),
        (
            {"objective": {"contrastive": {"learn_temperature": True, "temperature": 2.0}}},
            "temperature = 2 is outside temperature_range = [0.01, 1]",
            "widen the range",
        ),
        (
            {"objective": {"contrastive": {"own_ratio": 1e-17}}},
            "objective.contrastive.own_ratio = 1e-17 removes none of 8 tokens",
            "raise it to 0.125",
        ),
    ],
)
def test_knobs_that_contradict_each_other_are_refused_by_the_recipe(
    changes: dict[str, Any], said: str, fix: str, make_recipe: Callable[..., Any]
) -> None:
    with pytest.raises(UsageFault) as caught:
        make_recipe("kdc_mae", **changes)
    assert said in caught.value.cause
    assert fix in caught.value.cause


def test_an_objective_of_another_name_built_on_the_family_is_checked_too(make_recipe: Callable[..., Any]) -> None:
    recipe = make_recipe("labs_own", masking={"views": 1})
    with pytest.raises(UsageFault, match="compares views") as caught:
        KdcMae(recipe, AVEncoder(recipe.model))
    assert "masking.views = 2" in caught.value.next_step


def test_masks_cannot_learn_without_a_reconstruction(make_objective: Callable[..., Any]) -> None:
    with pytest.raises(UsageFault, match=r"masking.video = 'adaptive' learns from what was badly predicted") as caught:
        make_objective("cav", masking={"video": "adaptive"})
    assert "objective.reconstruction.weight" in caught.value.next_step


def test_all_presets_are_one_class(make_objective: Callable[..., Any]) -> None:
    assert {type(make_objective(name)) for name in PRESETS} == {KdcMae}


def test_three_views_are_a_preset(make_objective: Callable[..., Any], make_batch: Callable[..., Batch]) -> None:
    objective = make_objective("kdc_mae_3")
    audio, _ = objective.draw(make_batch(EVERYONE), rng(), 8)
    assert torch.equal((1 - audio.mask).sum(dim=(0, 2)), torch.full((8,), 3.0 * audio.ids_keep.shape[2]))
    assert float((1 - audio.mask).sum(dim=0).max()) == 1


def test_the_own_pass_of_contrast_sees_what_its_ratio_leaves_and_nothing_else_changes(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(EVERYONE)
    shared = make_objective("kdc_mae")(batch, rng(), 8)
    objective = make_objective("kdc_mae", objective={"contrastive": {"own_ratio": 0.25}})
    seen: list[tuple[int, ...]] = []
    norms = (objective.encoder.norm, objective.encoder.norm_a, objective.encoder.norm_v)
    for norm in norms:
        norm.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[:2])))
    loss = objective(batch, rng(), 8)
    # joint: 2 views of 2 + 4 tokens; contrast: 1 view of 6 of 8 and 12 of 16 tokens.
    assert seen == [(16, 6), (8, 6), (8, 12)]
    for term in ("reconstruction_audio", "reconstruction_video", "self_distillation"):
        assert torch.equal(loss.terms[term], shared.terms[term])
    assert not torch.equal(loss.terms["contrastive"], shared.terms["contrastive"])


def test_all_patches_are_the_removed_and_the_visible_ones(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(EVERYONE)
    removed, everything = (
        make_objective("mae", objective={"reconstruction": {"patches": which}}) for which in ("removed", "all")
    )
    audio, video = removed.draw(batch, rng(), 8)
    visible = Views(audio.ids_keep, audio.ids_restore, 1 - audio.mask)
    parts = [removed.loss(batch, v, video).terms["reconstruction_audio"] for v in (audio, visible)]
    found = everything.loss(batch, audio, video).terms["reconstruction_audio"]
    torch.testing.assert_close(found, 0.75 * parts[0] + 0.25 * parts[1])


def test_each_modality_can_be_distilled_as_well(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(EVERYONE)
    joint = make_objective("kdc_mae")(batch, rng(), 8)
    loss = make_objective("kdc_mae", objective={"self_distillation": {"per_modality": True}})(batch, rng(), 8)
    more = {"self_distillation_audio", "self_distillation_video"}
    assert loss.terms.keys() == joint.terms.keys() | more
    assert all(loss.weights[name] == 10 and float(loss.terms[name]) > 0 for name in more)
    assert torch.equal(loss.terms["self_distillation"], joint.terms["self_distillation"])
