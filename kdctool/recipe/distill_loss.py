"""What of a teacher a student shall reproduce: features or relations, of which blocks, compared how."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kdctool.recipe.kinds import NonNegative, NonNegativeFloat, PositiveFloat, as_tuple
from kdctool.registry import Section

Layers = Annotated[tuple[int, ...], BeforeValidator(as_tuple)]
Kinds = Annotated[tuple[Literal["qk", "vv"], ...], BeforeValidator(as_tuple), Field(min_length=1)]

LAST: Layers = (-1,)
BEFORE_LAST: Layers = (-3, -2)
"""The two blocks before the last: 10 and 11 of 12."""
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "scaled": {"relation": {"scale": "sqrt_head_dim"}},
}
"""Defaults beneath the losses of each kind. paper: the literal reading. scaled: relations as attention computes them,
over the root of the head's width; an implementation from timm's attention would have come out so."""
_OF_FEATURES = ("target_norm",)
_OF_RELATIONS = ("rel", "softmax", "scale", "relation_heads")


class DistillLoss(Section):
    """One thing of a teacher that the student shall reproduce."""

    kind: Literal["feature", "relation"]
    """feature: tokens after a block; relation: the products of queries and keys (or of values) within a block."""
    teacher: str
    """Name of one of the teachers."""
    name: str = ""
    """What the log calls it; empty: kind_teacher."""
    modality: Literal["each", "audio", "video", "joint"] = "each"
    """each: all that student and teacher share, every modality a term of its own; joint (relation, audio-visual): the
    joint block over both modalities, with one term each for audio-audio, video-video, audio-video, video-audio, and a
    quarter of the weight each, so that the larger modality does not lead."""
    teacher_layers: Layers = ()
    """Blocks of the teacher; empty: the last for features and the joint modality, the two before it for relations."""
    student_layers: Layers = ()
    """Blocks of the student, one per block of the teacher; empty: the same numbers."""
    over_layers: Literal["mean", "sum"] = "mean"
    """How the losses of several blocks come together."""
    target_norm: Literal["whiten", "none", "ln_affine", "ln_whiten"] = "whiten"
    """Of features. whiten: every token minus its mean, over its standard deviation; ln_affine: the teacher's final norm
    with its scale and shift; ln_whiten: that, then whiten (FD). Not stated in the paper; whiten is its codebase's."""
    rel: Kinds = ("qk",)
    """Which relations: queries with keys, values with values, or both, added up."""
    softmax: bool = False
    """Compare relations after the softmax over keys; the paper compares them before it."""
    scale: Literal["none", "sqrt_head_dim"] = "none"
    """Divide relations by the root of the head's width. none is what the paper writes; raw values are larger by 8 at
    64 channels a head, so watch weighted/ and gradient/ in the log."""
    relation_heads: NonNegative = 0
    """Cut queries, keys and values of both sides into so many heads first (MiniLMv2), which lets head counts and widths
    differ; 0: the heads as they are."""
    metric: Literal["smooth_l1", "mse", "cos", "kl"] = "smooth_l1"
    """cos (features): 1 - cosine per token; kl (relations after softmax): KL(teacher || student) summed over keys."""
    beta: PositiveFloat = 2.0
    """Error up to which smooth_l1 is quadratic."""
    weight: NonNegativeFloat = 1.0
    """Weight of each of its terms; 0 leaves it out. The paper has 1 and 1."""
    at: Literal["visible", "masked", "all"] = "visible"
    """Which tokens are compared."""
    include_cls: bool = True
    """Compare the class token too, where the student has one."""

    @model_validator(mode="after")
    def _kind_has_these_keys(self) -> "DistillLoss":
        for key in _OF_RELATIONS if self.kind == "feature" else _OF_FEATURES:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} = {getattr(self, key)!r} means nothing to kind = '{self.kind}': remove it")
        if self.kind == "feature" and self.metric == "kl":
            raise ValueError("metric = 'kl' compares relations after softmax: use smooth_l1, mse or cos for features")
        if self.kind == "relation" and self.metric == "kl" and not self.softmax:
            raise ValueError("metric = 'kl' compares distributions: set softmax = true")
        if self.kind == "relation" and self.metric == "cos":
            raise ValueError("metric = 'cos' compares features: use smooth_l1, mse or kl for relations")
        return self

    @model_validator(mode="after")
    def _layers_fit(self) -> "DistillLoss":
        of_teacher, of_student = self.layers
        if 0 in of_teacher + of_student:
            raise ValueError("layers are counted from 1, or from the end as -1, -2, ...: there is no layer 0")
        if len(of_teacher) != len(of_student):
            raise ValueError(
                f"teacher_layers = {list(of_teacher)} and student_layers = {list(of_student)} are pairs: "
                "give as many of the one as of the other"
            )
        if self.target_norm.startswith("ln_") and of_teacher != LAST:
            raise ValueError(f"target_norm = '{self.target_norm}' is the final norm: set teacher_layers = [-1]")
        if self.modality == "joint" and self.kind == "feature":
            raise ValueError("modality = 'joint' is about relations: set kind = 'relation'")
        if self.modality == "joint" and self.softmax:
            raise ValueError("modality = 'joint' compares parts of the relations: set softmax = false")
        return self

    @property
    def layers(self) -> tuple[Layers, Layers]:
        """Blocks of the teacher and of the student, defaults filled in."""
        usual = BEFORE_LAST if self.kind == "relation" and self.modality != "joint" else LAST
        of_teacher = self.teacher_layers or usual
        return of_teacher, self.student_layers or of_teacher

    @property
    def term(self) -> str:
        """What the log calls it."""
        return self.name or f"{self.kind}_{self.teacher}"
