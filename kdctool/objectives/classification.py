"""Finetuning's objective: one label per clip (cross-entropy) or several (binary cross-entropy), soft labels allowed.

It is not registered under a recipe name: finetuning is its own section of the recipe.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.models import drop_path
from kdctool.models.classifier import AVClassifier
from kdctool.models.image_classifier import ImageClassifier
from kdctool.objectives import Loss
from kdctool.recipe import Finetune


class ClassificationObjective(nn.Module):
    """Loss of a classifier's logits against batch["label"] (B, classes); nothing couples clips.

    `multi_label` decides what `loss = "auto"` means. `freeze_encoder` and the attentive head leave the head alone
    trainable. Labels may be soft: mixup makes them so.
    """

    def __init__(
        self, options: Finetune, classifier: AVClassifier | ImageClassifier, num_classes: int, multi_label: bool
    ) -> None:
        super().__init__()
        if classifier.num_classes != num_classes:
            raise UsageFault(
                f"the classifier has {classifier.num_classes} classes, the labels have {num_classes}",
                "finetune on shards with the label list that the classifier was made for",
            )
        self.classifier = classifier
        self.label_smoothing = options.label_smoothing
        self.loss = ("bce" if multi_label else "ce") if options.loss == "auto" else options.loss
        self.weights = {"classification": 1.0}
        classifier.train_encoder(options.trains_encoder)

    @property
    def encoder(self) -> nn.Module:
        return self.classifier.encoder

    def forward(
        self, batch: Batch, rng: torch.Generator, global_batch: int, feature_grads: dict[str, Tensor] | None = None
    ) -> Loss:
        """batch: fbank (B, T, F), frame (B, C, H, W), label (B, classes) in [0, 1]. See `Objective`."""
        drop_path.draw(self.classifier, batch, global_batch, rng)
        logits = self.classifier(batch)
        with torch.autocast(logits.device.type, enabled=False):
            logits, label = logits.float(), batch["label"].float()
            target = smooth(label, self.label_smoothing)
            if self.loss == "ce":
                value = F.cross_entropy(logits, target)
                hits = (logits.argmax(dim=1) == label.argmax(dim=1)).float().mean()
                meters = {"accuracy": hits}
            else:
                value = F.binary_cross_entropy_with_logits(logits, target)
                meters = {}
        return Loss(value, {"classification": value.detach()}, dict(self.weights), meters)

    def features(self, batch: Batch, rng: torch.Generator, global_batch: int) -> dict[str, Tensor]:
        """Nothing couples clips."""
        return {}

    def coupled(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nothing couples clips."""
        return {}

    def after_step(self, step: int) -> None:
        """Nothing moves between steps."""


def smooth(label: Tensor, share: float) -> Tensor:
    """Spread `share` of the target over all classes: (B, classes) -> (1 - share) * label + share / classes.

    The reference sets positives to 1 - share instead, so its targets sum to less by share / classes.
    """
    return (1 - share) * label + share / label.shape[1]
