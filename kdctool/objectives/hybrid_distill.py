"""Hybrid Distill (Shi et al., ICLR 2024): one student learns from a contrastive and from a masked teacher.

Features of the last block of the one, products of queries and keys of the two blocks before the last of the other, on
the tokens that are not redundant to the other; nothing else. The paper published no code. FD, dBOT, TinyMIM and plain
feature distillation are other points of the same space. The audio-visual form does it for each modality.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.masking.redundancy import Policy, policies
from kdctool.models import drop_path
from kdctool.models.streams import Heard, Wanted, pick
from kdctool.models.student import streams_of
from kdctool.models.teachers import Teacher, Teachers
from kdctool.objectives import Loss, objectives
from kdctool.objectives.distill_heads import HEADS, Asymmetric
from kdctool.objectives.distill_losses import feature_loss, over_layers, relation, relation_loss, whiten
from kdctool.objectives.distill_plan import JOINT, SINGLE, Lesson, check_guide, lessons, together
from kdctool.recipe import Recipe
from kdctool.recipe.distill import AV

Keep = dict[str, Tensor]
"""Stream -> places (B, K) that the mask leaves; a stream that is not in it is whole."""


@objectives.register("hybrid_distill")
class HybridDistill(nn.Module):
    """`encoder` is the student. Terms are kind_teacher, with _audio or _video where there are both."""

    def __init__(self, recipe: Recipe, encoder: nn.Module, teachers: Mapping[str, Teacher] | None = None) -> None:
        super().__init__()
        self.distill = options = recipe.objective.distill
        given = teachers or {}
        if not any(loss.weight for loss in options.losses):
            raise UsageFault(
                "[[objective.distill.losses]] holds none with a weight: there is nothing to minimise",
                "model.init = FOLDER in a recipe that has losses, such as recipes/hybrid_clip.toml; or finetune it",
            )
        if missing := [name for name in options.used() if name not in given]:
            raise UsageFault(
                f"teachers {', '.join(missing)} of objective.distill were not opened", "name their weights"
            )
        self.encoder = encoder
        self.streams = streams_of(encoder)
        self.teachers = Teachers({name: given[name] for name in options.used()})
        self.lessons = lessons(options, self.streams, {name: given[name].streams for name in options.used()})
        self.weights = {term: weight for lesson in self.lessons for term, weight in _weights(lesson).items()}
        wanted = together([(lesson.stream, lesson.of_student) for lesson in self.lessons])
        self.seen = [name for name in SINGLE if name in wanted or JOINT in wanted]
        """Modalities that the student is fed."""
        self.policies: dict[str, Policy] = self._choose_policies()
        self._listen(wanted)
        masked, sees = options.mask.policy != "none", options.student.input
        self.mask_token = (
            nn.Parameter(torch.empty(1, 1, self.streams.streams["video"].width)) if sees == "mask_token" else None
        )
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        self.drops = masked and sees == "visible"
        """Whether the student has fewer tokens than the teachers."""
        self.heads = nn.ModuleDict(self._make_heads())
        reached = self.streams.reached()
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in reached)
        self.register_load_state_dict_post_hook(_teachers_are_not_missing)

    def forward(
        self, batch: Batch, rng: torch.Generator, global_batch: int, feature_grads: dict[str, Tensor] | None = None
    ) -> Loss:
        """batch: frame (B, C, H, W), row (B,), and fbank (B, T, F) where the student hears. See `Objective`."""
        taught = self.teach(batch)
        keep = self.keep(taught, batch, rng, global_batch)
        drop_path.draw(self.encoder, batch, global_batch, rng)
        seen = self.study(batch, keep)
        terms: dict[str, Tensor] = {}
        for lesson in self.lessons:
            teacher, student = taught[lesson.loss.teacher][lesson.stream], seen[lesson.stream]
            if lesson.stream == JOINT:
                terms |= self._joint(lesson, teacher, student, keep, batch)
            else:
                compare = self._feature if lesson.loss.kind == "feature" else self._relation
                terms[lesson.term] = compare(lesson, teacher, student, keep.get(lesson.stream))
        total = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        raw = {name: value.detach() for name, value in terms.items()}
        return Loss(total, raw, {name: self.weights[name] for name in raw}, embeddings=self._pooled(seen))

    def features(self, batch: Batch, rng: torch.Generator, global_batch: int) -> dict[str, Tensor]:
        """Nothing couples clips."""
        return {}

    def coupled(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nothing couples clips."""
        return {}

    def after_step(self, step: int) -> None:
        """Teachers do not move."""

    def teach(self, batch: Batch) -> dict[str, dict[str, Heard]]:
        """What the teachers make of the whole clips, by teacher and stream."""
        return {name: teacher(batch) for name, teacher in self.teachers.items()}

    @torch.no_grad()
    def keep(
        self, taught: Mapping[str, Mapping[str, Heard]], batch: Batch, rng: torch.Generator, global_batch: int
    ) -> Keep:
        """The mask: one for the student and for what is compared. What is drawn is drawn for audio first."""
        guide, found = self.distill.mask.teacher, Keep()
        for name, policy in self.policies.items():
            tokens: dict[int, Tensor] = {}
            if guide:
                stream = self.teachers.by_name()[guide].streams.streams[name]
                heard = taught[guide][name].outputs
                tokens = {layer: heard[layer][:, stream.prefix :] for layer in policy.guides(stream.layers)}
            kept = policy.keep(tokens, self.streams.streams[name].grid, global_batch, rng, batch["row"])
            if kept is not None:
                found[name] = kept.to(batch["frame"].device)
        return found

    def study(self, batch: Batch, keep: Keep) -> dict[str, Heard]:
        """What the student makes of the tokens it is shown."""
        if self.distill.student.input == "full":
            return self.streams.run(batch, {})
        return self.streams.run(batch, keep, self.mask_token)

    def _feature(self, lesson: Lesson, teacher: Heard, student: Heard, keep: Tensor | None) -> Tensor:
        losses = []
        for place, (of_teacher, of_student) in enumerate(lesson.pairs):
            target = teacher.final if lesson.loss.target_norm.startswith("ln_") else teacher.outputs[of_teacher]
            own = student.final if of_student == lesson.student.layers else student.outputs[of_student]
            assert target is not None
            assert own is not None
            head = self.heads[_head_name(lesson, place)]
            predicted = head(own, keep if self.drops else None)
            at_teacher, at_student = self._places(lesson, keep, target, isinstance(head, Asymmetric))
            with torch.autocast(own.device.type, enabled=False):
                target = pick(target, at_teacher).float()
                target = whiten(target) if lesson.loss.target_norm.endswith("whiten") else target
                losses.append(feature_loss(pick(predicted, at_student).float(), target, lesson.loss))
        return over_layers(losses, lesson.loss.over_layers)

    def _relation(self, lesson: Lesson, teacher: Heard, student: Heard, keep: Tensor | None) -> Tensor:
        losses = []
        for of_teacher, of_student in lesson.pairs:
            theirs, ours = teacher.qkv[of_teacher], student.qkv[of_student]
            at_teacher, at_student = self._places(lesson, keep, theirs.q[:, 0], filled=False)
            with torch.autocast(ours.q.device.type, enabled=False):
                each = [
                    relation_loss(
                        relation(ours, kind, lesson.loss, at_student),
                        relation(theirs, kind, lesson.loss, at_teacher),
                        lesson.loss,
                    )
                    for kind in lesson.loss.rel
                ]
                losses.append(torch.stack(each).sum())
        return over_layers(losses, lesson.loss.over_layers)

    def _joint(self, lesson: Lesson, teacher: Heard, student: Heard, keep: Keep, batch: Batch) -> dict[str, Tensor]:
        """Relations within and between the modalities, each block of the matrix a term."""
        clips, first, device = len(batch["row"]), self.streams.streams["audio"].tokens, batch["frame"].device
        theirs, ours, offset = {}, {}, 0
        for name, before in (("audio", 0), ("video", first)):
            tokens = torch.arange(self.streams.streams[name].tokens, device=device).expand(clips, -1)
            kept = keep.get(name, tokens)
            theirs[name[0]] = before + kept
            ours[name[0]] = (
                offset + torch.arange(kept.shape[1], device=device).expand(clips, -1) if self.drops else (before + kept)
            )
            offset = kept.shape[1]
        terms = {}
        with torch.autocast(device.type, enabled=False):
            for term in _weights(lesson):
                row, column = term[-2], term[-1]
                losses = [
                    relation_loss(
                        relation(student.qkv[s], kind, lesson.loss, ours[row], ours[column]),
                        relation(teacher.qkv[t], kind, lesson.loss, theirs[row], theirs[column]),
                        lesson.loss,
                    )
                    for t, s in lesson.pairs
                    for kind in lesson.loss.rel
                ]
                terms[term] = over_layers(losses, lesson.loss.over_layers)
        return terms

    def _places(self, lesson: Lesson, keep: Tensor | None, like: Tensor, filled: bool) -> tuple[Tensor, Tensor]:
        """Indices (B, N) of the tokens to compare, in the teacher's and in the student's sequence.

        `filled`: a decoder has put the places back that the student did not see.
        """
        everywhere = torch.arange(lesson.teacher.tokens, device=like.device).expand(len(like), -1)
        places = everywhere
        if keep is not None and lesson.loss.at == "visible":
            places = keep
        elif keep is not None and lesson.loss.at == "masked":
            seen = torch.zeros_like(everywhere).scatter(1, keep, 1)
            places = seen.argsort(dim=1, stable=True)[:, : everywhere.shape[1] - keep.shape[1]]
        short = self.drops and not filled
        own = torch.arange(places.shape[1], device=like.device).expand(len(like), -1) if short else places
        return _with_class(places, lesson.teacher.prefix, lesson), _with_class(own, lesson.student.prefix, lesson)

    def _choose_policies(self) -> dict[str, Policy]:
        mask = self.distill.mask
        if mask.teacher:
            check_guide(mask.teacher, self.streams, self.teachers.by_name()[mask.teacher].streams, self.seen)
        floor = mask.floor if self.distill.student.arch == AV else 0
        return {name: policies.get(mask.policy).cls(mask, floor) for name in self.seen}

    def _listen(self, wanted: dict[str, Wanted]) -> None:
        self.streams.listen(wanted)
        mask = self.distill.mask
        for name, teacher in self.teachers.by_name().items():
            wishes = [(lesson.stream, lesson.of_teacher) for lesson in self.lessons if lesson.loss.teacher == name]
            if name == mask.teacher:
                wishes += [
                    (stream, Wanted(frozenset(policy.guides(teacher.streams.streams[stream].layers))))
                    for stream, policy in self.policies.items()
                ]
            teacher.listen(together(wishes))

    def _make_heads(self) -> dict[str, nn.Module]:
        options, made = self.distill.student.head, dict[str, nn.Module]()
        for lesson in self.lessons:
            for place in range(len(lesson.pairs) if lesson.loss.kind == "feature" else 0):
                head = HEADS[options.kind](lesson.student, lesson.teacher.width, options)
                if isinstance(head, Asymmetric):
                    head.mask_token.requires_grad_(self.drops)
                made[_head_name(lesson, place)] = head
        return made

    @torch.no_grad()
    def _pooled(self, seen: Mapping[str, Heard]) -> dict[str, Tensor]:
        """Mean over the last tokens that each modality has, (1, B, D), for the watch over collapse."""
        ends = {name: heard.final for name, heard in seen.items() if name != JOINT}
        return {name: x.detach().float().mean(dim=1)[None] for name, x in ends.items() if x is not None}


def _weights(lesson: Lesson) -> dict[str, float]:
    if lesson.stream != JOINT:
        return {lesson.term: lesson.loss.weight}
    return {f"{lesson.term}_{block}": lesson.loss.weight / 4 for block in ("aa", "vv", "av", "va")}


def _head_name(lesson: Lesson, place: int) -> str:
    return re.sub(r"\W", "_", f"{lesson.term}_{place}")


def _with_class(places: Tensor, prefix: int, lesson: Lesson) -> Tensor:
    """Patches as places in a sequence with a prefix, behind the class token where it is compared."""
    shifted = places + prefix
    return torch.cat((torch.zeros_like(shifted[:, :1]), shifted), dim=1) if lesson.with_class else shifted


def _teachers_are_not_missing(module: nn.Module, incompatible: Any) -> None:
    """A state dict of an objective has no teachers, and that is no fault."""
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if "teachers." not in name]
