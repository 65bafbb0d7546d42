"""The family's corners: what each knob does, what a view is worth, and where tokens land."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.masking import Views
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives.kdc_mae import KdcMae
from kdctool.objectives.self_distillation import as_distribution, between_views, js

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
    distils = {"self_distillation": {"weight": 1.0 if views > 1 else 0.0}}
    recipe = make_recipe("kdc_mae", masking={"views": views}, objective=distils)
    objective = KdcMae(recipe, AVEncoder(recipe.model), legacy_view2_order=legacy)
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
    recipe, batch = make_recipe("kdc_mae"), make_batch(EVERYONE)
    predictions = []
    for legacy in (False, True):
        torch.manual_seed(0)
        objective = KdcMae(recipe, AVEncoder(recipe.model), legacy_view2_order=legacy)
        audio, video = objective.draw(batch, rng(), 8)
        predictions.append(objective.decode(objective.encode(batch, audio, video), audio, video)[0])
    assert torch.equal(predictions[0][0], predictions[1][0])
    assert not torch.allclose(predictions[0][1], predictions[1][1], atol=1e-4)


def test_equal_views_do_not_diverge() -> None:
    pooled = torch.randn(1, 6, 16, generator=rng()).expand(2, 6, 16)
    for shift in ("global", "sample", "local"):
        assert torch.equal(between_views(pooled, shift), torch.zeros(6))


@pytest.mark.parametrize("shift", ["global", "sample"])
def test_divergence_is_symmetric_bounded_and_positive(shift: str) -> None:
    pooled = 5 * torch.randn(2, 200, 16, generator=rng())
    forward, backward = between_views(pooled, shift), between_views(pooled.flip(0), shift)
    torch.testing.assert_close(forward, backward)
    assert float(forward.min()) > 0
    assert float(forward.max()) < math.log(2)
    apart = js(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert float(apart) == pytest.approx(math.log(2), abs=1e-6)


def test_three_views_are_the_mean_of_their_pairs() -> None:
    pooled = torch.randn(3, 5, 16, generator=rng())
    pairs = [between_views(pooled[[i, j]], "global") for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(between_views(pooled, "global"), sum(pairs) / 3)


def test_the_global_shift_couples_clips_and_the_sample_shift_does_not() -> None:
    pooled = torch.randn(2, 4, 8, generator=rng())
    for shift, couples in (("global", True), ("sample", False)):
        leaf = pooled.clone().requires_grad_()
        between_views(leaf, shift)[0].backward()
        others = float(leaf.grad[:, 1:].abs().sum())
        assert (others > 0) == couples
        p = as_distribution(pooled, shift)
        torch.testing.assert_close(p.sum(dim=-1), torch.ones(2, 4))
        assert float(p.min()) >= 0


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
    ],
)
def test_knobs_that_contradict_each_other_are_refused(
    changes: dict[str, Any], said: str, fix: str, make_objective: Callable[..., Any]
) -> None:
    with pytest.raises(UsageFault) as caught:
        make_objective("kdc_mae", **changes)
    assert said in caught.value.cause
    assert fix in caught.value.next_step


def test_all_presets_are_one_class(make_objective: Callable[..., Any]) -> None:
    assert {type(make_objective(name)) for name in ("kdc_mae", "cav_mae", "mae", "cav")} == {KdcMae}
