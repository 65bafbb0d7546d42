"""The encoder: counted as published, all views in one pass, and no parameter that waits for a gradient in vain."""

from itertools import chain, combinations

import pytest
import torch

from kdctool.models.av_encoder import PASSES, AVEncoder, Encoded
from kdctool.models.weights import count
from kdctool.objectives import build
from kdctool.recipe import Model, Recipe

TINY = Model(audio_frames=32, mel_bins=16, image_size=16, audio_patch=8, video_patch=8, width=16, heads=2, depth=2)
SUBSETS = [frozenset(s) for s in chain.from_iterable(combinations(sorted(PASSES), n) for n in (1, 2, 3))]


def make(options: Model = TINY) -> AVEncoder:
    torch.manual_seed(0)
    return AVEncoder(options)


def inputs(clips: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(clips, 32, 16, generator=rng), torch.randn(clips, 3, 16, 16, generator=rng)


def test_the_full_size_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        recipe = Recipe(name="base")
        encoder = AVEncoder(recipe.model)
        objective = build(recipe, encoder)
    total, trainable = count(objective)
    as_published = sum(p.numel() for name, p in objective.named_parameters() if "pos_embed" not in name)
    dead = 167_936  # norms of a modality outside the joint block: 22 encoder and 8 decoder blocks, 4 norms each
    assert total == 191_036_160
    assert as_published == 190_129_920
    assert trainable == as_published - dead
    assert count(encoder)[0] == 164_500_224


def test_frozen_are_the_position_tables_and_the_dead_norms_and_nothing_else() -> None:
    frozen = {name for name, p in make().named_parameters() if not p.requires_grad}
    norms = {
        f"blocks_{t}.{i}.norm{n}_{m}.{kind}"
        for t in "av" for i in range(2) for n in (1, 2) for m in "av" for kind in ("weight", "bias")
    }  # fmt: skip
    assert frozen == norms | {"pos_embed_a", "pos_embed_v"}


@pytest.mark.parametrize("passes", SUBSETS, ids=lambda s: "+".join(sorted(s)))
@pytest.mark.parametrize("positions", [False, True])
def test_trainable_is_exactly_what_gets_a_gradient(passes: frozenset[str], positions: bool) -> None:
    encoder = make()
    encoder.train_passes(passes, positions=positions)
    trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
    encoder.requires_grad_(True)  # what would get a gradient if nothing were frozen
    encoded = encoder(*inputs())
    sum(getattr(encoded, name).square().mean() for name in passes).backward()
    reached = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert trainable == {name for name in reached if positions or not name.startswith("pos_embed")}


def test_views_in_one_pass_equal_views_one_by_one() -> None:
    encoder = make()
    rng = torch.Generator().manual_seed(2)
    keep_a = torch.rand(3, 3, 8, generator=rng).argsort(dim=2)[..., :3]
    keep_v = torch.rand(3, 3, 4, generator=rng).argsort(dim=2)[..., :2]
    together = encoder(*inputs(), keep_a, keep_v)
    for view in range(3):
        alone = encoder(*inputs(), keep_a[view : view + 1], keep_v[view : view + 1])
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours.unflatten(0, (3, 3))[view], theirs, atol=1e-6, rtol=0)


def test_audio_tokens_are_frequency_major() -> None:
    encoder, fbank = make(), inputs(1)[0]
    before = encoder.audio_tokens(fbank)
    fbank[0, 2 * 8 + 3, 1 * 8 + 5] += 1.0  # time patch 2, mel patch 1, of 4 x 2
    changed = (encoder.audio_tokens(fbank) != before).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_an_unmasked_pass_equals_the_retrieval_path() -> None:
    encoder, (fbank, frame) = make(), inputs()
    encoded = encoder(fbank, frame)
    torch.testing.assert_close(encoded.audio, encoder.embed_audio(fbank))
    torch.testing.assert_close(encoded.video, encoder.embed_video(frame))


def test_the_released_order_differs_only_with_several_joint_blocks() -> None:
    for depth, same in ((1, True), (2, False)):
        options = TINY.model_copy(update={"joint_depth": depth})
        ours: Encoded = make(options)(*inputs())
        released: Encoded = make(options.model_copy(update={"released_joint_order": True}))(*inputs())
        assert torch.equal(ours.joint, released.joint)
        assert torch.equal(ours.audio, released.audio) == same
        assert torch.equal(ours.video, released.video) == same


def test_a_pass_that_is_not_asked_for_does_not_run() -> None:
    encoder = make()
    assert encoder(*inputs(), joint=False).joint is None
    encoded = encoder(*inputs(), single=False)
    assert encoded.audio is None
    assert encoded.video is None


def test_the_joint_block_runs_through_call_so_that_hooks_fire() -> None:
    encoder, calls = make(), []
    encoder.blocks_u[0].register_forward_hook(lambda *_: calls.append(1))
    encoder(*inputs())
    encoder.embed_audio(inputs()[0])
    assert len(calls) == 4


def test_weights_follow_from_the_callers_seed() -> None:
    first, second = make(), make()
    torch.manual_seed(1)
    third = AVEncoder(TINY)
    same = [torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.modality_a, third.modality_a)
    assert not torch.equal(first.blocks_a[0].attn.qkv.weight, third.blocks_a[0].attn.qkv.weight)
