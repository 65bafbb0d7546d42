"""Classification on top of a pre-trained encoder: who learns, from which clips, and how they are augmented."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdctool.recipe.kinds import NonNegative, Positive, PositiveFloat
from kdctool.recipe.model import Model
from kdctool.recipe.training import Optim, Training
from kdctool.registry import ONLY_WHERE_SET, Section

RAND_AUGMENT = re.compile(r"rand(-(m\d+|n[1-9]\d*|p(0?\.\d+|1(\.0)?)|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]))*")
"""What `rand_augment` may say. timm skips sections that it does not know."""


class FinetuneOptim(Optim):
    """Optimiser of finetuning, with CAV-MAE's VGGSound settings as defaults."""

    step_start: Positive = 2
    """First epoch (1-based, finished) after which the step schedule decays."""
    step_every: Positive = 1
    """Epochs between decays."""


class FinetuneTraining(Training):
    """Length and batch of finetuning, with CAV-MAE's VGGSound settings as defaults."""

    epochs: Positive = 10
    """Passes over the training split."""
    global_batch: Positive = 48
    """Clips per optimiser step over all ranks."""


class Finetune(Section):
    """Classification on top of a pre-trained encoder. Augmentation is off unless the recipe turns it on."""

    modality: Literal["audio", "video", "both"] = "both"
    """Which towers classify."""
    loss: Literal["auto", "ce", "bce"] = "auto"
    """ce for one label per clip, bce for several; auto looks at the labels."""
    head: Literal["linear", "attentive"] = Field("linear", json_schema_extra=ONLY_WHERE_SET)
    """linear: a norm and a linear layer on the mean of the tokens. attentive: the encoder stays frozen and a learned
    query looks at its tokens through one cross-attention block (attentive probe)."""
    freeze_encoder: bool = False
    """Train the head alone (linear probe)."""
    head_lr_scale: PositiveFloat = 10.0
    """Learning rate of the head over that of the encoder."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(1.0, json_schema_extra=ONLY_WHERE_SET)
    """Learning rate of a layer over that of the layer above it; the joint block is the top of the encoder, the patch
    embeddings its bottom. 1 = all alike, as CAV-MAE has it."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, json_schema_extra=ONLY_WHERE_SET)
    """Stochastic depth of an image model, rising over its blocks to this; the pre-training's own does not count."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread over all classes."""
    mixup: Annotated[float, Field(ge=0, le=1)] = Field(0.0, json_schema_extra=ONLY_WHERE_SET)
    """Share of the clips that are mixed with another one: waveforms, frames and labels; CAV-MAE has 0.5."""
    mixup_alpha: PositiveFloat = Field(10.0, json_schema_extra=ONLY_WHERE_SET)
    """The first clip's weight comes from Beta(alpha, alpha); 10 is CAV-MAE's."""
    cutmix: Annotated[float, Field(ge=0, le=1)] = Field(0.0, json_schema_extra=ONLY_WHERE_SET)
    """Share of the clips that `mixup` chose which get a rectangle of the other's picture instead of a blend of both;
    timm's mixup_switch_prob. For frames alone."""
    cutmix_alpha: PositiveFloat = Field(1.0, json_schema_extra=ONLY_WHERE_SET)
    """The share of the first picture comes from Beta(alpha, alpha), before the rectangle is cut at the edges; its
    label then weighs what is left of its area."""
    rand_augment: str = Field("", json_schema_extra=ONLY_WHERE_SET)
    """RandAugment of the picture that is shown, by timm and in its words: rand-m9-mstd0.5-inc1 is MAE's and DeiT's.
    Bicubic; edges are filled with data.image_mean. Empty: none."""
    erasing: Annotated[float, Field(ge=0, le=1)] = Field(0.0, json_schema_extra=ONLY_WHERE_SET)
    """Share of the pictures of which a rectangle, 2 to 33 % of the area, becomes noise (timm's mode "pixel")."""
    freq_mask: NonNegative = Field(0, json_schema_extra=ONLY_WHERE_SET)
    """SpecAug: one band of fewer than so many mel bins is blanked; CAV-MAE has 48. 0 = none."""
    time_mask: NonNegative = Field(0, json_schema_extra=ONLY_WHERE_SET)
    """SpecAug: one stretch of fewer than so many filter-bank frames is blanked; CAV-MAE has 192. 0 = none."""
    balanced: bool = Field(False, json_schema_extra=ONLY_WHERE_SET)
    """Draw an epoch's clips with replacement, weighted by the inverse frequency of their classes (CAV-MAE on
    AudioSet-2M and VGGSound)."""
    average_from: NonNegative = Field(0, json_schema_extra=ONLY_WHERE_SET)
    """First epoch (1-based) whose weights enter the average that is evaluated and exported: the mean over the ends of
    this epoch and all later ones. 0 = the last weights alone."""
    per_class: NonNegative = Field(0, json_schema_extra=ONLY_WHERE_SET)
    """Few-shot: train on so many clips of each class, chosen by the seed; more clips contain fewer. 0 = all."""
    share: Annotated[float, Field(gt=0, le=1)] = Field(1.0, json_schema_extra=ONLY_WHERE_SET)
    """Few-shot: train on this share of each class's clips, at least one; a larger share contains a smaller one."""
    optim: FinetuneOptim = FinetuneOptim()
    """Optimiser of finetuning."""
    training: FinetuneTraining = FinetuneTraining()
    """Length and batch of finetuning."""

    @property
    def trains_encoder(self) -> bool:
        """Whether more than the head learns."""
        return not self.freeze_encoder and self.head == "linear"

    def misfit(self, model: Model) -> str:
        """What of this section a model of other sizes rules out, or nothing."""
        widths = (("freq_mask", self.freq_mask, model.mel_bins), ("time_mask", self.time_mask, model.audio_frames))
        for key, widest, size in widths:
            if widest > size:
                return (
                    f"finetune.{key} = {widest} is wider than the model's filter bank ({size}); set it to {size // 4}"
                )
        return ""

    @model_validator(mode="after")
    def _pictures_are_augmented(self) -> "Finetune":
        if self.cutmix and not self.mixup:
            raise ValueError(f"cutmix = {self.cutmix:g} is a share of the clips that mixup mixes: set mixup = 1.0 too")
        if self.cutmix and self.modality != "video":
            raise ValueError(
                f"cutmix = {self.cutmix:g} cuts pictures, there is no such part of a sound: set cutmix = 0, or "
                "modality = 'video'"
            )
        if self.modality == "audio" and (self.rand_augment or self.erasing):
            raise ValueError("rand_augment and erasing change pictures, modality = 'audio' sees none: leave them out")
        if self.rand_augment and not RAND_AUGMENT.fullmatch(self.rand_augment):
            raise ValueError(
                f"rand_augment = '{self.rand_augment}' is not understood: rand, then any of -mMAGNITUDE, -nLAYERS, "
                "-pPROBABILITY, -mstdDEVIATION, -mmaxLIMIT, -inc1, for example rand-m9-mstd0.5-inc1"
            )
        return self

    @model_validator(mode="after")
    def _keys_agree(self) -> "Finetune":
        if self.average_from > self.training.epochs:
            raise ValueError(
                f"average_from = {self.average_from} is past the last of training.epochs = {self.training.epochs}; "
                f"set average_from = {max(1, self.training.epochs // 3)} or 0"
            )
        if self.per_class and self.share < 1:
            raise ValueError(
                f"per_class = {self.per_class} and share = {self.share:g} both choose clips: set one of them"
            )
        if self.layer_decay < 1 and not self.trains_encoder:
            raise ValueError(
                f"layer_decay = {self.layer_decay:g} is for the layers of an encoder that learns, but it is frozen; "
                "set layer_decay = 1"
            )
        return self
