"""What a pre-training step minimises: masks, terms and decoders, and which keys of them contradict each other."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdctool.recipe.distill import AV, Distill
from kdctool.recipe.kinds import NonNegativeFloat, Positive, PositiveFloat, Range, Ratio
from kdctool.registry import ONLY_WHERE_SET, Section

DISTILL = "hybrid_distill"
"""The objective that reads [objective.distill]."""


class Masking(Section):
    """Which tokens each view sees."""

    audio: str = "random"
    """Masking of the audio tokens: random, time, freq, tf, pool, adaptive, or a plugin's."""
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
    """The decoder, thrown away after pre-training."""

    kind: Literal["joint", "light"] = "joint"
    """joint: self-attention over all places of both modalities (reference); light: the removed patches that are
    predicted look at the visible tokens by cross-attention, and at nothing else."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the removed patches that the light decoder predicts, drawn anew each step; joint predicts all."""
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
    patches: Literal["removed", "all"] = "removed"
    """Which patches of a view count: the removed ones (reference), or the visible ones, too."""


class Contrastive(Section):
    """InfoNCE between pooled audio and video latents."""

    weight: NonNegativeFloat = 0.01
    """Weight of each view's loss."""
    temperature: PositiveFloat = 0.05
    """Cosine similarities are divided by it; where it is learned, it starts here."""
    learn_temperature: bool = False
    """Train the temperature with everything else (CLIP) instead of keeping it."""
    temperature_range: Range = (0.01, 1.0)
    """Where a learned temperature is held."""
    direction: Literal["v2a", "a2v", "both"] = "v2a"
    """v2a: each video finds its audio (CAV-MAE); a2v: each audio its video; both: the mean of the two."""
    negatives: Literal["global", "local"] = "global"
    """Negatives of the whole global batch, or of this rank's micro batch as the reference has."""
    own_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Above 0, contrast has a pass of its own: one view with this share of both modalities' tokens removed, usually
    less than reconstruction wants. 0 contrasts the views that are reconstructed (CAV-MAE, KDC-MAE)."""

    @model_validator(mode="after")
    def _range_holds_the_start(self) -> "Contrastive":
        low, high = self.temperature_range
        if self.learn_temperature and not low <= self.temperature <= high:
            raise ValueError(
                f"temperature = {self.temperature:g} is outside temperature_range = [{low:g}, {high:g}]; "
                "start inside, or widen the range"
            )
        return self


class SelfDistillation(Section):
    """Divergence between the pooled latents of the views."""

    weight: NonNegativeFloat = 10.0
    """Weight of the mean divergence over clips and pairs of views."""
    distribution: Literal["shifted", "softmax"] = "shifted"
    """How latents become distributions: made positive by a shift and divided by their sum (released code), or by a
    softmax over channels (the paper's words)."""
    shift: Literal["global", "sample", "local"] = "global"
    """Whose minimum makes latents positive: the global batch's, the clip's own, or the micro batch's (released)."""
    temperature: PositiveFloat = 1.0
    """Latents are divided by it before the softmax; `shifted` has no temperature."""
    divergence: Literal["js", "kl", "kl_reverse", "sym_kl"] = "js"
    """Of a pair (p, q): js is Jensen-Shannon (released code), kl is KL(p || q), kl_reverse is KL(q || p), sym_kl their
    mean. p is the earlier view; with a teacher p is the teacher's."""
    stop_gradient: Literal["none", "first", "second", "teacher"] = "none"
    """none: both views of a pair learn (released code); first, second: that one is a constant; teacher: each view of
    the encoder is compared with the other views of its moving average, which gets no gradient."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.996
    """Share of the teacher that stays at each step; read with stop_gradient = "teacher" alone."""
    per_modality: bool = False
    """Compare the views' audio and video latents too, each with the same weight as the joint ones."""


class Objective(Section):
    """What a pre-training step minimises. A preset (`name`) sets defaults; every key can still be turned."""

    name: str = "kdc_mae"
    """Preset: kdc_mae, kdc_mae_3, cav_mae, mae, cav; or the name of a registered objective."""
    reconstruction: Reconstruction = Reconstruction()
    """Masked-patch regression."""
    contrastive: Contrastive = Contrastive()
    """Audio against video."""
    self_distillation: SelfDistillation = SelfDistillation()
    """View against view."""
    decoder: Decoder = Decoder()
    """What predicts removed patches."""
    legacy_view2_order: bool = False
    """Decode every view with the first view's order, as the KDC-MAE release does: tokens of later views land at
    foreign places. For replication only."""
    distill: Distill = Field(Distill(), json_schema_extra=ONLY_WHERE_SET)
    """Teachers, student and losses of name = "hybrid_distill"."""
    options: dict[str, Any] = {}
    """Options of a registered objective outside the family."""

    @property
    def student_sees_frames_alone(self) -> bool:
        """Whether what is trained is an image model and not the encoder of [model]."""
        return self.name == DISTILL and self.distill.student.arch != AV


def contradictions(masking: Masking, objective: Objective) -> list[tuple[str, str]]:
    """(cause, fix) of every pair of keys that cannot both hold in the KDC-MAE family."""
    found = []
    if objective.distill != Distill():
        found.append(
            (
                f"objective.distill means nothing to objective.name = '{objective.name}'",
                f"set objective.name = '{DISTILL}', or remove it",
            )
        )
    if objective.options:
        found.append(
            (
                f"objective.options = {objective.options} means nothing to objective.name = '{objective.name}'",
                "remove it; the knobs are in objective.reconstruction, .contrastive and .self_distillation",
            )
        )
    if objective.self_distillation.weight > 0 and masking.views < 2:
        found.append(
            (
                f"objective.self_distillation.weight = {objective.self_distillation.weight:g} compares views, "
                f"but masking.views = {masking.views}",
                "set masking.views = 2, or objective.self_distillation.weight = 0",
            )
        )
    if not (objective.reconstruction.weight or objective.contrastive.weight or objective.self_distillation.weight):
        found.append(
            (
                "objective.reconstruction.weight, .contrastive.weight and .self_distillation.weight are all 0",
                "nothing is left to minimise: raise one of them",
            )
        )
    if objective.decoder.kind == "light" and objective.reconstruction.patches == "all":
        found.append(
            (
                "objective.reconstruction.patches = 'all', but objective.decoder.kind = 'light' predicts removed ones",
                "set objective.decoder.kind = 'joint', or objective.reconstruction.patches = 'removed'",
            )
        )
    if objective.decoder.kind == "light" and objective.legacy_view2_order:
        found.append(
            (
                "objective.legacy_view2_order = true is about the joint decoder, but objective.decoder.kind = 'light'",
                "set objective.decoder.kind = 'joint', or objective.legacy_view2_order = false",
            )
        )
    return found


def distill_contradictions(objective: Objective, init: str, probes: int) -> list[tuple[str, str]]:
    """(cause, fix) of every pair of keys that cannot both hold for objective.name = "hybrid_distill"."""
    found = []
    described = objective.student_sees_frames_alone and init  # An imported image model, which nothing taught.
    if not described and not any(loss.weight for loss in objective.distill.losses):
        found.append(
            (
                f"objective.name = '{DISTILL}', but [[objective.distill.losses]] holds none with a weight",
                "say what to reproduce of which teacher, as recipes/hybrid_clip.toml does",
            )
        )
    if objective.options:
        found.append((f"objective.options means nothing to '{DISTILL}'", "its knobs are in objective.distill"))
    if objective.student_sees_frames_alone and probes:
        found.append((f"log.probe_every_steps = {probes} compares sound with frames, the student sees frames alone",
                      "set it to 0"))  # fmt: skip
    return found
