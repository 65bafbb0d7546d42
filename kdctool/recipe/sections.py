"""Every key of a recipe, with its meaning, type and default. Torch-free.

A key marked `NOT_A_RESULT` may change between two starts of one run: it moves no number, so the digest that
guards a resume does not contain it.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from kdctool.registry import Section

NOT_A_RESULT: dict[str, JsonValue] = {"result": False}


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Ratio = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Betas = Annotated[tuple[Ratio, Ratio], BeforeValidator(_as_tuple)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(_as_tuple)]


class Data(Section):
    """Which shards are read and how a clip becomes tensors."""

    shards: str = Field("shards", json_schema_extra=NOT_A_RESULT)
    """Folder of shards, relative to the working directory; `--shards` overrides it."""
    workers: NonNegative = Field(2, json_schema_extra=NOT_A_RESULT)
    """Processes that read and decode; 0 works in the training process."""
    train_split: str = "train"
    """Split that pretrain and finetune read."""
    eval_split: str = "test"
    """Split that eval reads."""
    frame: Literal["random", "cycle"] = "random"
    """Which stored frame a training step sees: drawn per clip and epoch (CAV-MAE), or epoch modulo N (KDC-MAE)."""
    noise: bool = True
    """CAV-MAE's training augmentation: uniform noise on the filter bank and a circular roll along time."""
    fbank_mean: float = -5.081
    """Subtracted from the log-mel filter bank; -5.081 is CAV-MAE's constant for AudioSet and VGGSound."""
    fbank_std: PositiveFloat = 4.4849
    """The filter bank is divided by it; 4.4849 is CAV-MAE's."""
    image_mean: Triple = (0.485, 0.456, 0.406)
    """Per channel, of frames in 0-1."""
    image_std: Triple = (0.229, 0.224, 0.225)
    """Per channel, of frames in 0-1."""


class Model(Section):
    """The audio-visual encoder: two towers and a joint block. Defaults are CAV-MAE base."""

    audio_frames: Positive = 1024
    """Filter-bank frames (10 ms each) that the model sees; shorter clips are padded, longer ones cut."""
    mel_bins: Positive = 128
    """Mel bins of the filter bank."""
    image_size: Positive = 224
    """Side of the square frame in pixels."""
    audio_patch: Positive = 16
    """Side of a patch of the filter bank."""
    video_patch: Positive = 16
    """Side of a patch of the frame."""
    width: Positive = 768
    """Width of the towers and the joint block."""
    heads: Positive = 12
    """Attention heads; divides width."""
    depth: Positive = 11
    """Blocks of each tower."""
    joint_depth: Positive = 1
    """Blocks of the joint encoder, shared by the joint, the audio and the video pass."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP over `width`."""
    init: str = Field("", json_schema_extra=NOT_A_RESULT)
    """Weights to start from: a run, an export, a .safetensors or a published CAV-MAE checkpoint; empty = random."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Model":
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")
        if self.width % 4:
            raise ValueError(f"width = {self.width} is not a multiple of 4, which the sine-cosine positions need")
        for name, size, patch in (
            ("audio_frames", self.audio_frames, self.audio_patch),
            ("mel_bins", self.mel_bins, self.audio_patch),
            ("image_size", self.image_size, self.video_patch),
        ):
            if size % patch:
                raise ValueError(
                    f"{name} = {size} is not a multiple of its patch size {patch}; "
                    f"try {name} = {max(1, round(size / patch)) * patch}"
                )
        return self

    @property
    def audio_grid(self) -> tuple[int, int]:
        """(frequency, time) tokens of the filter bank; tokens are frequency-major."""
        return self.mel_bins // self.audio_patch, self.audio_frames // self.audio_patch

    @property
    def video_grid(self) -> tuple[int, int]:
        """(rows, columns) tokens of a frame."""
        return self.image_size // self.video_patch, self.image_size // self.video_patch

    @property
    def audio_tokens(self) -> int:
        return self.audio_grid[0] * self.audio_grid[1]

    @property
    def video_tokens(self) -> int:
        return self.video_grid[0] * self.video_grid[1]


class Masking(Section):
    """Which tokens each view sees."""

    audio: str = "random"
    """Masking of the audio tokens: random, time, freq, tf, or a plugin's."""
    video: str = "random"
    """Masking of the video tokens; the papers always use random."""
    audio_ratio: Ratio = 0.75
    """Share of audio tokens that are removed from a view; int(L * (1 - ratio)) are kept."""
    video_ratio: Ratio = 0.75
    """Share of video tokens that are removed from a view."""
    views: Annotated[int, Field(ge=1, le=3)] = 2
    """Masked views of each clip: 1 is CAV-MAE, 2 is KDC-MAE."""
    complementary: bool = True
    """Views see disjoint tokens (KDC-MAE); false draws every view on its own."""
    audio_options: dict[str, Any] = {}
    """Options of the audio masking, where it has any."""
    video_options: dict[str, Any] = {}
    """Options of the video masking, where it has any."""


class Decoder(Section):
    """The joint decoder, thrown away after pre-training."""

    width: Positive = 512
    """Width of the decoder."""
    heads: Positive = 16
    """Attention heads; divides width."""
    depth: Positive = 8
    """Blocks."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Decoder":
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width = {self.width} must be a multiple of heads = {self.heads} and of 4")
        return self


class Reconstruction(Section):
    """Masked-patch regression of both modalities."""

    weight: NonNegativeFloat = 1.0
    """Weight of the sum of the audio and the video loss of each view; 0 leaves the decoder out."""
    norm_pix: bool = True
    """Normalise each target patch by its own mean and variance; false for a model that shall inpaint."""


class Contrastive(Section):
    """InfoNCE between pooled audio and video latents."""

    weight: NonNegativeFloat = 0.01
    """Weight of each view's loss."""
    temperature: PositiveFloat = 0.05
    """Cosine similarities are divided by it."""
    direction: Literal["v2a", "both"] = "v2a"
    """v2a: each video finds its audio (CAV-MAE); both: the mean of the two directions."""
    negatives: Literal["global", "local"] = "global"
    """Negatives of the whole global batch, or of this rank's micro batch as the reference has."""


class SelfDistillation(Section):
    """Divergence between the pooled joint latents of the views."""

    weight: NonNegativeFloat = 10.0
    """Weight of the mean divergence over clips and pairs of views."""
    shift: Literal["global", "sample", "local"] = "global"
    """Whose minimum makes latents positive: the global batch's, the clip's own, or the micro batch's (released)."""


class Objective(Section):
    """What a pre-training step minimises. A preset (`name`) sets defaults; every key can still be turned."""

    name: str = "kdc_mae"
    """Preset: kdc_mae, cav_mae, mae, cav; or the name of a registered objective."""
    reconstruction: Reconstruction = Reconstruction()
    """Masked-patch regression."""
    contrastive: Contrastive = Contrastive()
    """Audio against video."""
    self_distillation: SelfDistillation = SelfDistillation()
    """View against view."""
    decoder: Decoder = Decoder()
    """The joint decoder."""
    options: dict[str, Any] = {}
    """Options of a registered objective outside the family."""


class Optim(Section):
    """Optimiser and learning-rate schedule. The learning rate is never scaled by the batch or the world size."""

    name: Literal["adam", "adamw"] = "adam"
    """adam couples the weight decay into the gradient, as CAV-MAE does; adamw decouples it."""
    lr: PositiveFloat = 1e-4
    """Learning rate after warm-up, at the recipe's global batch."""
    betas: Betas = (0.95, 0.999)
    """Adam's moment decays."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 5e-7
    """Weight decay; with adamw not applied to biases, norms and embeddings."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """step: times `step_gamma` from epoch `step_start` on, every `step_every` epochs; cosine: down to `min_lr`."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Linear warm-up; fractions are allowed."""
    step_start: Positive = 10
    """First epoch (1-based, finished) after which the step schedule decays."""
    step_every: Positive = 5
    """Epochs between decays."""
    step_gamma: PositiveFloat = 0.5
    """Factor of each decay."""
    min_lr: NonNegativeFloat = 0.0
    """Where the cosine ends."""
    grad_clip: NonNegativeFloat = 0.0
    """Largest gradient norm; 0 does not clip."""


class Training(Section):
    """How long, how large a batch, in which precision."""

    epochs: Positive = 25
    """Passes over the training split; a tail smaller than the global batch is dropped."""
    global_batch: Positive = 120
    """Clips per optimiser step over all ranks. Negatives of the contrastive loss come from all of them."""
    micro_batch: NonNegative = Field(0, json_schema_extra=NOT_A_RESULT)
    """Clips per forward pass on one rank; 0 = the rank's whole share. Smaller values accumulate gradients."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the forward pass; parameters stay fp32."""


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
    tensorboard: bool = Field(True, json_schema_extra=NOT_A_RESULT)
    """Write TensorBoard events to RUN/tb."""


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
    """Classification on top of a pre-trained encoder."""

    modality: Literal["audio", "video", "both"] = "both"
    """Which towers classify."""
    loss: Literal["auto", "ce", "bce"] = "auto"
    """ce for one label per clip, bce for several; auto looks at the labels."""
    freeze_encoder: bool = False
    """Train the head alone (linear probe)."""
    head_lr_scale: PositiveFloat = 10.0
    """Learning rate of the head over that of the encoder."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread over all classes."""
    optim: FinetuneOptim = FinetuneOptim()
    """Optimiser of finetuning."""
    training: FinetuneTraining = FinetuneTraining()
    """Length and batch of finetuning."""


class Expected(Section):
    """A number somebody published or measured for this recipe; eval prints ours beside it."""

    task: str
    """retrieval or classification."""
    metric: str
    """Name in results.json, for example a2v_r1 or top1."""
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
    log: Log = Log()
    finetune: Finetune = Finetune()
    expected: Annotated[tuple[Expected, ...], BeforeValidator(_as_tuple), Field(json_schema_extra=NOT_A_RESULT)] = ()

    @model_validator(mode="after")
    def _views_fit(self) -> "Recipe":
        for modality, tokens, ratio in (
            ("audio", self.model.audio_tokens, self.masking.audio_ratio),
            ("video", self.model.video_tokens, self.masking.video_ratio),
        ):
            kept = int(tokens * (1 - ratio))
            if kept < 1:
                raise ValueError(f"masking.{modality}_ratio = {ratio} keeps none of {tokens} tokens; lower it")
            views = self.masking.views
            if self.masking.complementary and views * kept > tokens:
                raise ValueError(
                    f"masking.{modality}_ratio = {ratio} with {views} complementary views needs {views} x {kept} of "
                    f"{tokens} tokens: raise the ratio to {1 - 1 / views:.3g} or set masking.complementary = false"
                )
        return self
