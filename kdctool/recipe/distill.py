"""Distillation: frozen teachers, a student, what it sees, and the losses between them (distill_loss.py).

Defaults are the literal reading of Hybrid Distill (Shi et al., ICLR 2024), which published no code; where the paper
leaves a choice, the docstring of the key says which one was made. Layers are counted from 1 as in the paper, or from
the end: -1 is the last block. Of an audio-visual encoder they count through tower and joint block.
"""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kdctool.recipe.distill_loss import PRESETS, DistillLoss, Layers
from kdctool.recipe.kinds import NonNegative, Positive, Ratio, as_tuple
from kdctool.registry import NOT_A_RESULT, ONLY_WHERE_SET, Section

Channels = Annotated[tuple[float, ...], BeforeValidator(as_tuple)]

AV = "av"
"""The student that [model] describes."""


class TeacherSource(Section):
    """A frozen network and where its weights are. It sees every clip whole, with its own normalisation."""

    source: Literal["auto", "timm", "file", "dir", "run"] = "auto"
    """timm: the hub (or its cache); file: weights of the timm model `id`; dir: a folder as timm saves one
    (config.json); run: a run or an export of kdctool. auto looks at `path`, and takes timm where it is empty."""
    id: str = ""
    """timm's name of the model, for example vit_base_patch16_224.mae; dir and run know it themselves."""
    path: str = Field("", json_schema_extra=NOT_A_RESULT)
    """File or folder of the weights. Their sha256 is recorded and guards a resume; where they lie does not."""
    image_size: NonNegative = 0
    """Side in pixels at which the teacher looks; 0 is model.image_size. A teacher with patches of 14 pixels has the
    14 x 14 grid of a student with 16 at 196; its position table is interpolated."""
    mean: Channels = ()
    """Per channel, what its frames are centred with; empty: as its model card says."""
    std: Channels = ()
    """Per channel, what its frames are divided by; empty: as its model card says."""

    @model_validator(mode="after")
    def _has_an_origin(self) -> "TeacherSource":
        for key, needed in (("path", ("file", "dir", "run")), ("id", ("timm", "file"))):
            if self.source in needed and not getattr(self, key):
                raise ValueError(f"source = '{self.source}' needs {key}")
        if not self.id and not self.path:
            raise ValueError("a teacher needs id (timm's name), path (its weights), or both")
        if any(len(values) not in (0, 3) for values in (self.mean, self.std)):
            raise ValueError("mean and std have one number per channel: 3")
        return self


class Head(Section):
    """What stands between the student and a teacher's features while training; it is thrown away afterwards."""

    kind: Literal["none", "linear", "mlp", "asym"] = "linear"
    """none: the student's own features; linear: one layer; mlp: two with a GELU; asym: a decoder with attention, which
    also fills masked places. The paper says "symmetrical structures", which none and linear are."""
    width: Positive = 512
    """Hidden width of mlp and asym."""
    depth: Positive = 8
    """Blocks of asym."""
    heads: Positive = 16
    """Attention heads of asym; divides width."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Head":
        if self.kind == "asym" and (self.width % self.heads or self.width % 4):
            raise ValueError(f"width = {self.width} must be a multiple of heads = {self.heads} and of 4")
        return self


class Student(Section):
    """What learns, and what is shipped afterwards."""

    arch: str = AV
    """av: the encoder that [model] describes; else timm's name of a plain ViT, built at model.image_size."""
    pos: Literal["sincos", "learned", "relbias"] = "sincos"
    """Positions of an image student: a fixed sine-cosine table, a learned one, or a relative bias that all blocks
    share (FD)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of an image student, rising over the blocks to this."""
    input: Literal["visible", "full", "mask_token"] = "visible"
    """visible: only the tokens that the mask keeps, from the input on (paper); full: all; mask_token: all, removed ones
    replaced by a learned token (SimMIM)."""
    head: Head = Head()
    """Between its features and a teacher's."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Student":
        if self.pos == "relbias" and self.input == "visible":
            raise ValueError("pos = 'relbias' is about all places: set input = 'full' or 'mask_token'")
        if self.arch == AV:
            for name, value, plain in (("pos", self.pos, "sincos"), ("drop_path", self.drop_path, 0.0)):
                if value != plain:
                    raise ValueError(f"{name} = {value!r} is for image students; with arch = 'av' leave it out")
            if self.input == "mask_token":
                raise ValueError("input = 'mask_token' is for image students; with arch = 'av' use 'visible' or 'full'")
        return self


class TokenMask(Section):
    """Which tokens the student sees, each modality for itself. Teachers see all."""

    policy: str = "none"
    """none, random, direct, redundancy, or a plugin's."""
    teacher: str = ""
    """Whose tokens redundancy and direct rank; the paper takes the MAE."""
    drop: Ratio = 0.3
    """redundancy: share of the tokens still kept that falls at each of `layers`; 0.3 keeps 66 of 196. The paper tests
    0.1, 0.3 and 0.5 and does not say which its main results have; 0.3 is the one it singles out."""
    layers: Layers = ()
    """redundancy: blocks of the teacher, counted from 0 as the paper counts here, after which the tokens nearest to the
    mean of those still kept fall; empty: 0, a third and two thirds of its depth (0, 4, 8 of 12)."""
    likeness: Literal["cosine", "mean_cosine", "product", "distance"] = Field(
        "cosine", json_schema_extra=ONLY_WHERE_SET
    )
    """redundancy, direct: how a token resembles the mean of the kept ones. cosine: tokens of length 1 with the mean of
    these; mean_cosine: with the mean of the tokens as they are, to which long ones give more; product: tokens as they
    are with their mean; distance: the nearest in space. Not stated in the paper; cosine is that of the code that it
    follows."""
    side: Literal["output", "input"] = "output"
    """redundancy: rank what these blocks put out (as the code that the paper follows), or what goes into them."""
    keep: Ratio = 0.35
    """random, direct: share of the tokens that stays."""
    of: str = "random"
    """random: the registered masking that draws."""
    floor: NonNegative = 32
    """Tokens of each modality of an audio-visual student that stay whatever `drop` and `keep` say."""


class Distill(Section):
    """Teachers, student, mask and losses of objective.name = "hybrid_distill"."""

    preset: Literal["paper", "scaled"] = "paper"
    """Defaults of the losses: the paper to the letter, or relations divided by the root of the head's width."""
    teachers: dict[str, TeacherSource] = {}
    """Frozen networks by the names that losses and mask give them."""
    student: Student = Student()
    """What learns."""
    mask: TokenMask = TokenMask()
    """What it sees."""
    losses: Annotated[tuple[DistillLoss, ...], BeforeValidator(as_tuple)] = ()
    """What it reproduces; their weighted sum is minimised, and there is no other term."""

    @model_validator(mode="before")
    @classmethod
    def _preset_beneath(cls, given: Any) -> Any:
        known = PRESETS.get(str(given.get("preset", "paper")), {}) if isinstance(given, dict) else {}
        losses = given.get("losses") if known else None
        if not isinstance(losses, list | tuple):
            return given
        beneath = [{**known.get(str(x.get("kind")), {}), **x} if isinstance(x, dict) else x for x in losses]
        return {**given, "losses": beneath}

    @model_validator(mode="after")
    def _parts_fit(self) -> "Distill":
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))
        return self

    def used(self) -> list[str]:
        """Teachers that a loss with a weight, or the mask, asks for, in the order of the recipe."""
        wanted = {loss.teacher for loss in self.losses if loss.weight} | {self.mask.teacher}
        return [name for name in self.teachers if name in wanted]

    def _faults(self) -> Iterator[str]:
        terms = [loss.term for loss in self.losses if loss.weight]
        for term in sorted({term for term in terms if terms.count(term) > 1}):
            yield f"two losses are called {term}: give one of them a name"
        for place, loss in enumerate(self.losses):
            yield from self._unknown(f"losses[{place}].teacher", loss.teacher)
            yield from (f"losses[{place}]: {fault}" for fault in self._misplaced(loss))
        if self.mask.teacher:
            yield from self._unknown("mask.teacher", self.mask.teacher)
        wanted = {loss.teacher for loss in self.losses} | {self.mask.teacher}
        for name in self.teachers:
            if name not in wanted:
                yield f"no loss and no mask uses teachers.{name}: remove it, or add a loss"
        if self.mask.policy in ("redundancy", "direct") and not self.mask.teacher:
            yield f"mask.policy = '{self.mask.policy}' ranks a teacher's tokens: set mask.teacher"
        if self.mask.policy in ("none", "random") and self.mask.teacher:
            yield f"mask.policy = '{self.mask.policy}' asks no teacher: remove mask.teacher"
        if self.mask.policy == "none" and self.student.input == "mask_token":
            yield "student.input = 'mask_token', but mask.policy = 'none' removes nothing: set input = 'full'"

    def _unknown(self, key: str, name: str) -> Iterator[str]:
        if name not in self.teachers:
            close = difflib.get_close_matches(name, self.teachers, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(self.teachers) or 'none'}"
            yield f"{key} = '{name}' is no teacher ({hint})"

    def _misplaced(self, loss: DistillLoss) -> Iterator[str]:
        student, masked = self.student, self.mask.policy != "none"
        if loss.at == "masked" and not masked:
            yield "at = 'masked', but mask.policy = 'none' removes nothing: set a policy, or at = 'all'"
        blind = masked and student.input == "visible" and loss.at != "visible"
        if blind and loss.kind == "relation":
            yield f"at = '{loss.at}', but student.input = 'visible' has no relations there: set at = 'visible'"
        if blind and loss.kind == "feature" and student.head.kind != "asym":
            yield (
                f"at = '{loss.at}', but student.input = 'visible' has no tokens there: set student.head.kind = 'asym', "
                "student.input = 'mask_token', or at = 'visible'"
            )
        if loss.modality in ("audio", "joint") and student.arch != AV:
            yield f"modality = '{loss.modality}' needs sound, student.arch = '{student.arch}' sees frames alone"
