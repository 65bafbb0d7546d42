"""Finetuning's objective: the two losses, soft labels, smoothing, and what it trains."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdctool.errors import UsageFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.objectives.classification import ClassificationObjective, smooth
from kdctool.recipe import Finetune, Model

TINY = Model(audio_frames=32, mel_bins=16, image_size=16, audio_patch=8, video_patch=8, width=16, heads=2, depth=1)
CLASSES = 5


def make(multi_label: bool = False, modality: str = "both", **options: object) -> ClassificationObjective:
    torch.manual_seed(0)
    classifier = AVClassifier(AVEncoder(TINY), CLASSES, modality)
    return ClassificationObjective(Finetune(**options), classifier, CLASSES, multi_label)


def batch(clips: int = 4) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    label = F.one_hot(torch.arange(clips) % CLASSES, CLASSES).float()
    fbank, frame = torch.randn(clips, 32, 16, generator=rng), torch.randn(clips, 3, 16, 16, generator=rng)
    return {"fbank": fbank, "frame": frame, "label": label, "row": torch.arange(clips)}


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("modality", ["audio", "video", "both"])
def test_it_keeps_the_objectives_contract(multi_label: bool, modality: str) -> None:
    objective = make(multi_label, modality)
    loss = objective(batch(), torch.Generator(), 4)
    assert torch.isfinite(loss.total)
    assert torch.equal(loss.total.detach(), sum(loss.weights[k] * v for k, v in loss.terms.items()))
    assert objective.weights == loss.weights == {"classification": 1.0}
    assert objective.features(batch(), torch.Generator(), 4) == objective.coupled({}) == {}
    assert objective.encoder is objective.classifier.encoder
    loss.total.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


@pytest.mark.parametrize("multi_label", [False, True])
def test_micro_batches_average_to_one_pass(multi_label: bool) -> None:
    objective, whole = make(multi_label), batch()
    expected = objective(whole, torch.Generator(), 4).total
    parts = [objective({k: x[i : i + 2] for k, x in whole.items()}, torch.Generator(), 4, {}).total for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, expected)


def test_auto_looks_at_the_labels_and_a_named_loss_is_obeyed() -> None:
    assert make(multi_label=False).loss == "ce"
    assert make(multi_label=True).loss == "bce"
    assert make(multi_label=False, loss="bce").loss == "bce"


def test_cross_entropy_takes_soft_labels_and_smoothing_like_torch() -> None:
    objective, given = make(label_smoothing=0.1), batch()
    given["label"] = 0.3 * given["label"] + 0.7 * given["label"].roll(1, dims=0)
    logits = objective.classifier(given)
    expected = F.cross_entropy(logits, given["label"], label_smoothing=0.1)
    torch.testing.assert_close(objective(given, torch.Generator(), 4).total, expected)


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    target = smooth(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 0.2)
    torch.testing.assert_close(target, torch.tensor([[0.85, 0.05, 0.05, 0.05]]))


def test_accuracy_is_metered_for_one_label_per_clip() -> None:
    objective, given = make(), batch()
    with torch.no_grad():
        objective.classifier.mlp_head[1].weight.zero_()
        objective.classifier.mlp_head[1].bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0]))
    assert float(objective(given, torch.Generator(), 4).meters["accuracy"]) == 0.25
    assert make(multi_label=True)(given, torch.Generator(), 4).meters == {}


def test_a_frozen_encoder_leaves_the_head() -> None:
    objective = make(freeze_encoder=True)
    assert {n for n, p in objective.named_parameters() if p.requires_grad} == {
        f"classifier.mlp_head.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


def test_an_untrained_head_scores_chance_in_cross_entropy() -> None:
    objective = make(label_smoothing=0.0)
    with torch.no_grad():
        objective.classifier.mlp_head[1].weight.zero_()
    assert float(objective(batch(), torch.Generator(), 4).total.detach()) == pytest.approx(math.log(CLASSES), abs=1e-6)


def test_a_label_list_of_another_length_is_refused() -> None:
    classifier = AVClassifier(AVEncoder(TINY), CLASSES, "both")
    with pytest.raises(UsageFault, match="has 5 classes, the labels have 7"):
        ClassificationObjective(Finetune(), classifier, 7, False)
