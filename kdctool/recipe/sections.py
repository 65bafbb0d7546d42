"""Every key of a recipe, with its meaning, type and default. Torch-free.

A key marked `NOT_A_RESULT` may change between two starts of one run: it moves no number, so the digest that
guards a resume does not contain it.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from kdctool.recipe.finetune import Finetune
from kdctool.recipe.kinds import Names, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Range, Triple, as_tuple
from kdctool.recipe.machine import Guard, Parallel
from kdctool.recipe.model import Model
from kdctool.recipe.objective import (
    DISTILL,
    Contrastive,
    Decoder,
    Masking,
    Objective,
    Reconstruction,
    SelfDistillation,
    contradictions,
    distill_contradictions,
)
from kdctool.recipe.presets import PRESETS
from kdctool.recipe.training import Optim, Training
from kdctool.registry import NOT_A_RESULT, ONLY_WHERE_SET, Section

__all__ = [
    "Contrastive",
    "Data",
    "Decoder",
    "Expected",
    "Finetune",
    "Guard",
    "Log",
    "Masking",
    "Model",
    "Objective",
    "Optim",
    "Parallel",
    "Recipe",
    "Reconstruction",
    "SelfDistillation",
    "Training",
]


class Data(Section):
    """Which shards are read and how a clip becomes tensors."""

    shards: str = Field("shards", json_schema_extra=NOT_A_RESULT)
    """Folder of shards, relative to the working directory; `--shards` overrides it."""
    workers: NonNegative = Field(2, json_schema_extra=NOT_A_RESULT)
    """Processes that read and decode; 0 works in the training process."""
    hold: Literal["none", "memory", "device", "auto"] = Field("none", json_schema_extra=NOT_A_RESULT)
    """Decode every training clip once, before the first step, and keep it: in main memory, or on the training device.
    auto: on the device or else in main memory where half of what is free there is enough, else as none."""
    train_split: str = "train"
    """Split that pretrain and finetune read."""
    eval_split: str = "test"
    """Split that eval reads."""
    frame: Literal["random", "cycle"] = "random"
    """Which stored frame a training step sees: drawn per clip and epoch (CAV-MAE), or epoch modulo N (KDC-MAE)."""
    tiling: bool = False
    """Show four frames of the clip as a 2 x 2 collage instead of one (KDC-MAE's `four_tiling`)."""
    noise: bool = True
    """CAV-MAE's training augmentation: uniform noise on the filter bank and a circular roll along time."""
    crop: Literal["center", "random"] = Field("center", json_schema_extra=ONLY_WHERE_SET)
    """What a training step sees of a stored frame that is larger than the model's: its centre, or a random part of it
    (RandomResizedCrop: area from crop_scale, aspect 3/4 to 4/3, bicubic). Evaluation sees the centre."""
    crop_scale: Range = Field((0.2, 1.0), json_schema_extra=ONLY_WHERE_SET)
    """Smallest and largest share of the stored frame's area that crop = "random" shows."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = Field(1.0, json_schema_extra=ONLY_WHERE_SET)
    """Where the centre is seen, so in every evaluation: the model's size over the short side that a frame is resized to
    first. 1 shows the whole short side; 0.875 the centre 224 of 256 pixels, as ImageNet models are evaluated. The
    frames should be stored at that short side or larger. For image models."""
    flip: bool = Field(False, json_schema_extra=ONLY_WHERE_SET)
    """Mirror every other frame left to right in training, at random."""
    fbank_mean: float = -5.081
    """Subtracted from the log-mel filter bank; -5.081 is CAV-MAE's constant for AudioSet and VGGSound."""
    fbank_std: PositiveFloat = 4.4849
    """The filter bank is divided by it; 4.4849 is CAV-MAE's."""
    image_mean: Triple = (0.485, 0.456, 0.406)
    """Per channel, of frames in 0-1."""
    image_std: Triple = (0.229, 0.224, 0.225)
    """Per channel, of frames in 0-1."""

    @model_validator(mode="after")
    def _crop_fits(self) -> "Data":
        low, high = self.crop_scale
        if not low <= high <= 1:
            raise ValueError(f"crop_scale = [{low:g}, {high:g}] are shares of the area: smallest first, at most 1")
        if self.crop == "random" and self.tiling:
            raise ValueError("crop = 'random' shows a part of one frame, tiling = true four whole ones: turn one off")
        return self


class Log(Section):
    """What is written while training, and how often."""

    every_steps: Positive = Field(10, json_schema_extra=NOT_A_RESULT)
    """Steps between rows of metrics.jsonl."""
    checkpoint_every_steps: NonNegative = Field(0, json_schema_extra=NOT_A_RESULT)
    """Steps between checkpoints; 0 = once per epoch."""
    checkpoint_every_minutes: NonNegativeFloat = Field(30.0, json_schema_extra=NOT_A_RESULT)
    """Minutes between checkpoints, whichever comes first; 0 = by steps alone."""
    keep: Positive = Field(2, json_schema_extra=NOT_A_RESULT)
    """Newest checkpoints that stay on disk."""
    keep_every: NonNegative = Field(0, json_schema_extra=NOT_A_RESULT)
    """Checkpoints at multiples of this many steps stay for ever; 0 = none."""
    probe_every_steps: NonNegative = Field(0, json_schema_extra=NOT_A_RESULT)
    """Steps between probes on the evaluation split (retrieval, nearest neighbours); 0 = never."""
    gradient_norms_every: NonNegative = Field(0, json_schema_extra=NOT_A_RESULT)
    """Rows of metrics.jsonl between measurements of each term's own gradient norm; 0 = never. Each costs a forward
    and a backward pass per term."""
    collapse_every: NonNegative = Field(10, json_schema_extra=NOT_A_RESULT)
    """Rows of metrics.jsonl between measurements of the embeddings' rank, alignment and uniformity; 0 = never."""
    tensorboard: bool = Field(True, json_schema_extra=NOT_A_RESULT)
    """Write TensorBoard events to RUN/tb."""
    wandb: bool = Field(False, json_schema_extra=NOT_A_RESULT)
    """Also log to Weights & Biases (pip install wandb); WANDB_MODE=offline keeps it local."""
    mlflow: bool = Field(False, json_schema_extra=NOT_A_RESULT)
    """Also log to MLflow (pip install mlflow), at MLFLOW_TRACKING_URI or in the run's folder."""


class Expected(Section):
    """A number somebody published or measured for this recipe; eval prints ours beside it."""

    task: str
    """retrieval or classification."""
    metric: str
    """Name in results.json, for example a2v_r1 or top1."""
    modality: Literal["", "audio", "video", "both"] = ""
    """Of a classification: what the finetuned model hears and sees; empty = the number holds whatever it does."""
    value: float
    """In the unit of results.json: shares in 0-1."""
    source: str
    """Where the number stands."""


class Recipe(Section):
    """A whole study: data, model, objective, training, finetuning, and the numbers to expect."""

    name: str
    """Short name; run folders begin with it."""
    description: str = Field("", json_schema_extra=NOT_A_RESULT)
    """What it reproduces."""
    seed: NonNegative = 0
    """Everything random follows from it."""
    plugins: Names = ()
    """Python modules that register objectives, maskings, tasks or exporters. Nothing else in a recipe can run code."""
    data: Data = Data()
    model: Model = Model()
    masking: Masking = Masking()
    objective: Objective = Objective()
    optim: Optim = Optim()
    training: Training = Training()
    parallel: Parallel = Field(Parallel(), json_schema_extra=NOT_A_RESULT)
    guard: Guard = Field(Guard(), json_schema_extra=NOT_A_RESULT)
    log: Log = Log()
    finetune: Finetune = Finetune()
    expected: Annotated[tuple[Expected, ...], BeforeValidator(as_tuple), Field(json_schema_extra=NOT_A_RESULT)] = ()

    @model_validator(mode="after")
    def _views_fit(self) -> "Recipe":
        own = self.objective.contrastive.own_ratio
        for modality, tokens, ratio in (
            ("audio", self.model.audio_tokens, self.masking.audio_ratio),
            ("video", self.model.video_tokens, self.masking.video_ratio),
        ):
            kept = _kept(f"masking.{modality}_ratio", tokens, ratio)
            if own:
                _kept("objective.contrastive.own_ratio", tokens, own)
            views = self.masking.views
            if self.masking.complementary and views * kept > tokens:
                raise ValueError(
                    f"masking.{modality}_ratio = {ratio} with {views} complementary views needs {views} x {kept} of "
                    f"{tokens} tokens: raise the ratio to {1 - 1 / views:.3g} or set masking.complementary = false"
                )
        return self

    @model_validator(mode="after")
    def _keys_agree(self) -> "Recipe":
        if self.objective.name in PRESETS and (found := contradictions(self.masking, self.objective)):
            raise ValueError("; ".join(f"{cause}: {fix}" for cause, fix in found))
        if self.objective.name == DISTILL and (
            found := distill_contradictions(self.objective, self.model.init, self.log.probe_every_steps)
        ):
            raise ValueError("; ".join(f"{cause}: {fix}" for cause, fix in found))
        if misfit := self.finetune.misfit(self.model):
            raise ValueError(misfit)
        if self.data.tiling and self.data.frame == "cycle":
            raise ValueError("data.frame = 'cycle' chooses one frame, data.tiling = true shows four: turn one off")
        if self.data.tiling and self.model.image_size % 2:
            raise ValueError(
                f"data.tiling = true needs an even model.image_size, not {self.model.image_size}; "
                f"try {2 * self.model.video_patch * max(1, self.model.image_size // (2 * self.model.video_patch))}"
            )
        return self


def _kept(key: str, tokens: int, ratio: float) -> int:
    """Tokens that a view sees of `tokens`: at least one, and not all."""
    kept = int(tokens * (1 - ratio))
    if kept < 1:
        raise ValueError(f"{key} = {ratio} keeps none of {tokens} tokens; lower it to {1 - 1 / tokens:.3g} or less")
    if kept == tokens:
        raise ValueError(f"{key} = {ratio} removes none of {tokens} tokens; raise it to {1 / tokens:.3g} or more")
    return kept
