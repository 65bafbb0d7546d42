"""A classifier reads the towers it is told to, and trains no more than that."""

import pytest
import torch

from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.recipe import Model

TINY = Model(audio_frames=32, mel_bins=16, image_size=16, audio_patch=8, video_patch=8, width=16, heads=2, depth=1)


def make(modality: str) -> AVClassifier:
    torch.manual_seed(0)
    return AVClassifier(AVEncoder(TINY), 5, modality)


def batch() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {"fbank": torch.randn(2, 32, 16, generator=rng), "frame": torch.randn(2, 3, 16, 16, generator=rng)}


@pytest.mark.parametrize(
    ("modality", "needs"), [("audio", {"fbank"}), ("video", {"frame"}), ("both", {"fbank", "frame"})]
)
def test_a_classifier_needs_exactly_its_modality(modality: str, needs: set[str]) -> None:
    classifier = make(modality)
    logits = classifier({name: x for name, x in batch().items() if name in needs})
    assert logits.shape == (2, 5)
    for missing in needs:
        with pytest.raises(KeyError, match=missing):
            classifier({name: x for name, x in batch().items() if name in needs - {missing}})


@pytest.mark.parametrize("modality", ["audio", "video", "both"])
def test_trainable_is_exactly_what_gets_a_gradient(modality: str) -> None:
    classifier = make(modality)
    trainable = {name for name, p in classifier.named_parameters() if p.requires_grad}
    trains_positions = {m for m in "av" if getattr(classifier.encoder, f"pos_embed_{m}").requires_grad}
    assert trains_positions == {"audio": {"a"}, "video": {"v"}, "both": {"a", "v"}}[modality]
    classifier.requires_grad_(True)  # what would get a gradient if nothing were frozen
    classifier(batch()).square().mean().backward()
    assert trainable == {name for name, p in classifier.named_parameters() if p.grad is not None}


def test_a_linear_probe_trains_the_head_alone() -> None:
    classifier = make("both")
    classifier.train_encoder(False)
    assert {n for n, p in classifier.named_parameters() if p.requires_grad} == {
        f"mlp_head.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


def test_a_missing_modality_is_never_looked_at() -> None:
    classifier = make("both")
    audio, video = ({name: batch()[name]} for name in ("fbank", "frame"))
    assert classifier.with_missing(audio, present="audio").shape == (2, 5)
    assert not torch.equal(classifier.with_missing(audio, "audio"), classifier.with_missing(video, "video"))
