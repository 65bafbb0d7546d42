"""From the losses of a recipe to pairs of blocks, checked against the teachers and the student that are there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

from kdctool.errors import UsageFault
from kdctool.models.streams import Stream, Streams, Wanted, resolve
from kdctool.recipe.distill import Distill
from kdctool.recipe.distill_loss import DistillLoss

SINGLE = ("audio", "video")
JOINT = "joint"


@dataclass(frozen=True)
class Lesson:
    """One loss on one stream: blocks of the teacher beside blocks of the student, counted from 1."""

    term: str
    loss: DistillLoss
    stream: str
    pairs: tuple[tuple[int, int], ...]
    """(block of the teacher, block of the student)."""
    teacher: Stream
    student: Stream

    @property
    def with_class(self) -> bool:
        """Whether the class token is compared."""
        return self.loss.include_cls and self.student.has_class

    @property
    def of_teacher(self) -> Wanted:
        """What it listens to in the teacher."""
        blocks = frozenset(pair[0] for pair in self.pairs)
        if self.loss.kind == "relation":
            return Wanted(qkv=blocks)
        return Wanted(blocks, final=self.loss.target_norm.startswith("ln_"))

    @property
    def of_student(self) -> Wanted:
        """What it listens to in the student; its last block's features are taken after the final norm."""
        blocks = frozenset(pair[1] for pair in self.pairs)
        if self.loss.kind == "relation":
            return Wanted(qkv=blocks)
        return Wanted(blocks, final=self.student.layers in blocks)


def lessons(distill: Distill, student: Streams, teachers: Mapping[str, Streams]) -> list[Lesson]:
    """Every loss with a weight on every stream it is about; UsageFault where the two sides do not fit together."""
    found = []
    for loss in distill.losses:
        if not loss.weight:
            continue
        for name in _streams(loss, student, teachers[loss.teacher]):
            taught, learns = teachers[loss.teacher].streams[name], student.streams[name]
            _check_grid(f"teacher '{loss.teacher}'", loss.teacher, name, teachers[loss.teacher], student)
            _check_class(loss, taught, learns)
            (_check_relation if loss.kind == "relation" else _check_feature)(loss, taught, learns, distill)
            alone = [stream for stream in student.streams if stream != JOINT] == ["video"]
            pairs = tuple(_pairs(loss, taught, learns))
            found.append(Lesson(loss.term + ("" if alone else f"_{name}"), loss, name, pairs, taught, learns))
    return found


def check_guide(name: str, student: Streams, guide: Streams, streams: list[str]) -> None:
    """UsageFault where the teacher that ranks tokens has other tokens than the student."""
    for stream in streams:
        if stream not in guide.streams:
            raise UsageFault(
                f"objective.distill.mask.teacher = '{name}' has no {stream} stream to rank tokens in",
                "name an audio-visual teacher, or set objective.distill.mask.policy = 'random'",
            )
        _check_grid(f"mask teacher '{name}'", name, stream, guide, student)


def together(wishes: list[tuple[str, Wanted]]) -> dict[str, Wanted]:
    """Wishes by stream."""
    names = dict.fromkeys(name for name, _ in wishes)
    return {name: reduce(Wanted.__or__, (w for stream, w in wishes if stream == name)) for name in names}


def _streams(loss: DistillLoss, student: Streams, teacher: Streams) -> list[str]:
    wanted = SINGLE if loss.modality == "each" else (loss.modality,)
    shared = [name for name in wanted if name in student.streams and name in teacher.streams]
    if not shared:
        raise UsageFault(
            f"{loss.term}: student and teacher '{loss.teacher}' share no {'stream' if len(wanted) > 1 else wanted[0]} "
            f"(student: {', '.join(student.streams)}; teacher: {', '.join(teacher.streams)})",
            "name another teacher, or another modality",
        )
    return shared


def _pairs(loss: DistillLoss, teacher: Stream, student: Stream) -> Iterator[tuple[int, int]]:
    of_teacher, of_student = loss.layers
    for t, s in zip(of_teacher, of_student, strict=True):
        try:
            yield resolve(t, teacher), resolve(s, student)
        except ValueError as error:
            raise UsageFault(f"{loss.term}, teacher_layers = {list(of_teacher)}, student_layers = {list(of_student)}: "
                             f"{error}", "count from 1, or from the end with -1, -2, ...") from error  # fmt: skip


def _check_grid(who: str, key: str, name: str, teacher: Streams, student: Streams) -> None:
    theirs, ours = teacher.streams[name].grid, student.streams[name].grid
    if theirs == ours:
        return
    fix = "give both the same model.audio_frames, mel_bins and audio_patch"
    if name == "video":
        patch = teacher.side // theirs[0]
        fix = f"set objective.distill.teachers.{key}.image_size = {ours[0] * patch} (patches of {patch} pixels)"
        if set(teacher.streams) != {"video"}:
            fix = "give both the same model.image_size and video_patch"
    raise UsageFault(
        f"{who} has a grid of {theirs[0]} x {theirs[1]} {name} tokens, the student one of {ours[0]} x {ours[1]}", fix
    )


def _check_class(loss: DistillLoss, teacher: Stream, student: Stream) -> None:
    if loss.include_cls and student.has_class and not teacher.has_class:
        raise UsageFault(
            f"{loss.term}: the student has a class token, teacher '{loss.teacher}' has none", "set include_cls = false"
        )


def _check_feature(loss: DistillLoss, teacher: Stream, student: Stream, distill: Distill) -> None:
    if distill.student.head.kind == "none" and teacher.width != student.width:
        raise UsageFault(
            f"{loss.term}: teacher '{loss.teacher}' has features of width {teacher.width}, the student {student.width}",
            "set objective.distill.student.head.kind = 'linear'",
        )


def _check_relation(loss: DistillLoss, teacher: Stream, student: Stream, distill: Distill) -> None:
    heads, fit = loss.relation_heads, _common_heads(teacher, student)
    if heads and (teacher.width % heads or student.width % heads):
        raise UsageFault(
            f"{loss.term}: relation_heads = {heads} does not divide the widths {teacher.width} and {student.width}",
            f"set relation_heads = {fit}",
        )
    if not heads and teacher.heads != student.heads:
        raise UsageFault(
            f"{loss.term}: teacher '{loss.teacher}' has {teacher.heads} heads, the student {student.heads}, and no "
            "rule says which belong together",
            f"set relation_heads = {fit} and scale = 'sqrt_head_dim' to regroup both sides (MiniLMv2)",
        )
    if loss.scale == "none" and not loss.softmax and teacher.width != student.width:
        of_head = [stream.width // (heads or stream.heads) for stream in (teacher, student)]
        raise UsageFault(
            f"{loss.term}: a head of teacher '{loss.teacher}' is {of_head[0]} wide, one of the student {of_head[1]}, "
            "so their products have different scales",
            "set scale = 'sqrt_head_dim'",
        )


def _common_heads(teacher: Stream, student: Stream) -> int:
    """The largest number of heads up to the teacher's that divides both widths."""
    limit = max(teacher.heads, student.heads)
    return max(n for n in range(1, limit + 1) if teacher.width % n == 0 and student.width % n == 0)
