"""Stochastic depth that belongs to the clip, and not to the process that happens to compute it."""

import pytest
import torch
from distilling import frames, vit
from timm.layers import DropPath as TimmDropPath

from kdctool.batch import Batch
from kdctool.models.drop_path import DropPath, draw, set_drop_path
from kdctool.models.image_classifier import ImageClassifier


def rng(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier(rate: float = 0.5) -> ImageClassifier:
    model = vit(1)
    set_drop_path(model, rate)
    torch.manual_seed(0)
    return ImageClassifier(model, 3).train()


def part(batch: Batch, rows: list[int]) -> Batch:
    return {name: value[rows] for name, value in batch.items()}


def outputs(model: ImageClassifier, batch: Batch, seed: int = 3, clips: int = 8) -> torch.Tensor:
    draw(model, batch, clips, rng(seed))
    with torch.no_grad():
        return model(batch)


def test_it_rises_to_its_rate_and_leaves_the_first_block_alone() -> None:
    model = classifier(0.5).encoder
    found = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert found == pytest.approx([0.1 * i for i in range(6)])
    assert not any(isinstance(part, TimmDropPath) for part in model.modules())
    set_drop_path(model, 0.0)
    assert not any(isinstance(part, DropPath) for part in model.modules())


@pytest.mark.parametrize("split", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[5], [0, 7, 2], [6, 1, 3, 4]]])
def test_a_clip_loses_the_same_branches_in_any_micro_batch(split: list[list[int]]) -> None:
    model, batch = classifier(), frames(8)
    whole = outputs(model, batch)
    for rows in split:
        torch.testing.assert_close(outputs(model, part(batch, rows)), whole[rows], atol=1e-5, rtol=1e-5)
    plain = model.eval()(batch)
    assert ((whole - plain).abs().amax(dim=1) > 1e-3).sum() >= 6, "nearly every clip should lose something"


def test_steps_differ_and_a_step_repeats() -> None:
    model, batch = classifier(), frames(8)
    first = outputs(model, batch)
    assert torch.equal(first, outputs(model, batch))
    assert not torch.allclose(first, outputs(model, batch, seed=4))


def test_the_global_generators_decide_nothing() -> None:
    model, batch = classifier(), frames(8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = outputs(model, batch)
    assert torch.equal(torch.get_rng_state(), state), "nothing was taken from them"
    torch.manual_seed(2)
    assert torch.equal(first, outputs(model, batch))


def test_masks_stay_what_they_are() -> None:
    used = rng()
    draw(classifier(), frames(8), 8, used)
    assert torch.equal(torch.rand(5, generator=used), torch.rand(5, generator=rng()))


def test_branches_are_left_out_at_their_rate_and_keep_their_mean() -> None:
    path = DropPath(0.3).train()
    rows = torch.arange(20_000)
    draw(path, {"row": rows}, len(rows), rng())
    out = path(torch.ones(len(rows), 2, 1))
    assert out[:, 0, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(out.mean()) == pytest.approx(1, abs=0.03)


def test_branches_of_a_clip_are_left_out_independently() -> None:
    paths = torch.nn.ModuleList(DropPath(0.5) for _ in range(6)).train()
    draw(paths, {"row": torch.arange(4000)}, 4000, rng())
    gone = torch.stack([path.factor == 0 for path in paths]).float()
    apart = torch.corrcoef(gone) - torch.eye(6)
    assert apart.abs().max() < 0.08


def test_low_precision_stays_low() -> None:
    path = DropPath(0.5).train()
    draw(path, {"row": torch.arange(2)}, 2, rng())
    assert path(torch.ones(2, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_in_evaluation_nothing_is_drawn_and_nothing_missing() -> None:
    model, batch = classifier().eval(), frames(4)
    draw(model, {"frame": batch["frame"]}, 4, rng())
    plain = vit(1)
    torch.manual_seed(0)
    assert torch.equal(model(batch), ImageClassifier(plain, 3).eval()(batch))


def test_a_forgotten_draw_is_an_error_and_not_a_model_without_depth() -> None:
    with pytest.raises(AssertionError, match="draw comes before"):
        classifier()(frames(2))
