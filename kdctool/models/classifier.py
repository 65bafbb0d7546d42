"""The encoder with a classification head, as finetuning trains it and export ships it."""

from typing import Literal

from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.models.av_encoder import PASSES, AVEncoder
from kdctool.models.layers import init_weights, layer_norm

Present = Literal["audio", "video", "both"]


class AVClassifier(nn.Module):
    """Mean of the encoder's tokens, a norm and a linear layer.

    `both` reads the joint pass; `audio` and `video` read their own pass and never run the other tower. As in the
    reference, finetuning trains the positional tables too. What the chosen pass does not reach is frozen.
    """

    def __init__(self, encoder: AVEncoder, num_classes: int, modality: Present) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.modality = modality
        width = encoder.options.width
        self.mlp_head = nn.Sequential(layer_norm(width), nn.Linear(width, num_classes))
        init_weights(self.mlp_head)
        self.train_encoder(True)

    def train_encoder(self, trainable: bool) -> None:
        """Train what the classifier's pass reaches, or freeze the encoder for a linear probe."""
        used = {"audio": {"audio"}, "video": {"video"}, "both": {"joint"}}[self.modality]
        self.encoder.train_passes(PASSES & used if trainable else frozenset(), positions=True)

    def forward(self, batch: Batch) -> Tensor:
        """batch: fbank (B, T, F) and / or frame (B, C, H, W), as the modality needs -> logits (B, classes)."""
        if self.modality == "audio":
            return self.mlp_head(self.encoder.embed_audio(batch["fbank"]).mean(dim=1))
        if self.modality == "video":
            return self.mlp_head(self.encoder.embed_video(batch["frame"]).mean(dim=1))
        joint = self.encoder(batch["fbank"], batch["frame"], single=False).joint
        assert joint is not None
        return self.mlp_head(joint.mean(dim=1))

    def with_missing(self, batch: Batch, present: Literal["audio", "video"]) -> Tensor:
        """Logits (B, classes) of a model finetuned with both modalities when only one is there.

        The mean of two embeddings of it, one through the joint norms and one through its own.
        """
        if present == "audio":
            own = self.encoder.embed_audio(batch["fbank"])
            joint = self.encoder.embed_audio_as_joint(batch["fbank"])
        else:
            own = self.encoder.embed_video(batch["frame"])
            joint = self.encoder.embed_video_as_joint(batch["frame"])
        return self.mlp_head((own.mean(dim=1) + joint.mean(dim=1)) / 2)
