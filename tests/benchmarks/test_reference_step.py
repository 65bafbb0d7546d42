"""The re-created reference computes the released loss, so that it is the same work that is compared."""

import pytest
import torch
from reference_step import ReferenceModel, ReferenceStep
from training_step import recipe_of, synthetic

from kdctool.masking.views import views_from_noise
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.layers import Attention
from kdctool.objectives.kdc_mae import KdcMae
from kdctool.objectives.reconstruction import Decoder

CPU = torch.device("cpu")
CLIPS = 5
TINY = (
    "model.audio_frames=64", "model.mel_bins=32", "model.image_size=32", "model.video_patch=8", "model.width=32",
    "model.heads=2", "model.depth=2", "objective.decoder={width=16, heads=2, depth=2}",
)  # fmt: skip
KINDS = {
    "kdc_mae": ("objective.legacy_view2_order=true",),
    "cav_mae": ('objective.name="cav_mae"', "masking.views=1"),
}


def both(kind: str) -> tuple[KdcMae, ReferenceModel, dict[str, torch.Tensor], list[torch.Tensor]]:
    """Our objective and the reference with the same weights, a batch, and noise per modality."""
    recipe = recipe_of(*KINDS[kind], *TINY)
    torch.manual_seed(3)
    ours = KdcMae(recipe, AVEncoder(recipe.model))
    reference = ReferenceModel(recipe, AVEncoder(recipe.model), Decoder(recipe.model, recipe.objective.decoder))
    reference.load_state_dict(ours.state_dict())
    noise = [torch.rand(CLIPS, tokens) for tokens in (recipe.model.audio_tokens, recipe.model.video_tokens)]
    return ours, reference, synthetic(recipe, CLIPS, CPU), noise


def loss_of_ours(ours: KdcMae, batch: dict[str, torch.Tensor], noise: list[torch.Tensor]) -> torch.Tensor:
    views = [views_from_noise(x, int(x.shape[1] * 0.25), ours.masking.views) for x in noise]
    return ours.loss(batch, *views).total


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_computes_our_loss_and_gradient(kind: str) -> None:
    ours, reference, batch, noise = both(kind)
    mine = loss_of_ours(ours, batch, noise)
    per_clip = reference(batch["fbank"], batch["frame"], *noise)
    assert per_clip.shape == (CLIPS,)
    assert float(per_clip.detach().mean()) == pytest.approx(float(mine.detach()), abs=1e-5)
    mine.backward()
    per_clip.mean().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_release_sums_its_loss_over_clips() -> None:
    _, reference, batch, _ = both("kdc_mae")
    torch.manual_seed(1)
    mean = ReferenceStep(reference, CPU, None)(batch["fbank"], batch["frame"])
    assert 1 < mean < 20  # the step reports the sum over clips divided by their number


def test_the_reference_writes_its_attention_out_and_uses_torchs_own_layers() -> None:
    _, reference, _, _ = both("kdc_mae")
    assert not [part for part in reference.modules() if isinstance(part, Attention)]
    kinds = {type(part) for part in reference.modules() if isinstance(part, torch.nn.Linear)}
    assert kinds == {torch.nn.Linear}


def test_a_reference_step_changes_what_ours_trains_and_nothing_else() -> None:
    ours, reference, batch, _ = both("kdc_mae")
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    ReferenceStep(reference, CPU, None)(batch["fbank"], batch["frame"])
    changed = {name for name, value in reference.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
