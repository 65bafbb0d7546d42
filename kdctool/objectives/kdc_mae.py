"""The KDC-MAE family: a weighted sum of reconstruction, contrast and self-distillation over masked views.

CAV-MAE is this with one view and no self-distillation; the masked autoencoder and the contrastive model are its
corners. It is one code path: a term whose weight is 0 is not computed, and what only that term needs is neither
run nor trained.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.dist import gather
from kdctool.errors import UsageFault
from kdctool.masking import LearnedMasking, Views, build
from kdctool.masking.views import draw, share_of_removed
from kdctool.models.av_encoder import AVEncoder, Encoded
from kdctool.objectives import Loss, inner_products, objectives
from kdctool.objectives.contrastive import ContrastiveTerm
from kdctool.objectives.light_decoder import LightDecoder
from kdctool.objectives.reconstruction import Decoder, audio_patches, normalise_patches, patchify
from kdctool.objectives.scoring import asked, score
from kdctool.objectives.self_distillation import SelfDistillationTerm
from kdctool.objectives.teacher import Teacher
from kdctool.recipe import Recipe
from kdctool.recipe.objective import contradictions
from kdctool.recipe.presets import PRESETS

MODALITIES = ("audio", "video")
Part = ContrastiveTerm | SelfDistillationTerm
"""A function of pooled latents (J, any number of clips, D): `needs` names them, `couples` says if clips meet."""


class KdcMae(nn.Module):
    """All views of all clips in one pass; losses summed over views, means over clips, in float32."""

    def __init__(self, recipe: Recipe, encoder: AVEncoder) -> None:
        super().__init__()
        for cause, fix in contradictions(recipe.masking, recipe.objective):
            raise UsageFault(cause, fix)
        self.encoder = encoder
        self.model, self.masking, options = recipe.model, recipe.masking, recipe.objective
        self.options = options
        self.audio_masking = build(recipe.masking.audio, recipe.masking.audio_options, recipe.model.width)
        self.video_masking = build(recipe.masking.video, recipe.masking.video_options, recipe.model.width)
        kinds = {"joint": Decoder, "light": LightDecoder}
        decodes = options.reconstruction.weight > 0
        self.decoder = kinds[options.decoder.kind](recipe.model, options.decoder) if decodes else None
        self.contrastive = ContrastiveTerm(options.contrastive) if options.contrastive.weight else None
        self.distillation = (
            SelfDistillationTerm(options.self_distillation) if options.self_distillation.weight else None
        )
        self.weights = self._weigh()
        parts: list[Part] = [part for part in (self.contrastive, self.distillation) if part is not None]
        self.coupled_parts = tuple(part for part in parts if part.couples)
        self.local_parts = tuple(part for part in parts if not part.couples)
        used = {name.removeprefix("own_") for name in _needs(parts)} | ({"joint"} if decodes else set())
        encoder.train_passes(frozenset(used & {"joint", "audio", "video"}))
        has_teacher = self.distillation is not None and self.distillation.has_teacher
        self.teacher = Teacher(encoder, options.self_distillation.momentum) if has_teacher else None

    def forward(
        self, batch: Batch, rng: torch.Generator, global_batch: int, feature_grads: dict[str, Tensor] | None = None
    ) -> Loss:
        """batch: fbank (B, T, F), frame (B, C, H, W), row (B,). See `Objective`."""
        audio, video = self.draw(batch, rng, global_batch)
        return self.loss(batch, audio, video, feature_grads, self.draw_own(batch, rng, global_batch))

    def draw(self, batch: Batch, rng: torch.Generator, global_batch: int) -> tuple[Views, Views]:
        """The views of this micro batch, audio drawn first; a clip's follow from its place in the global batch."""
        masking, rows, device = self.masking, batch["row"], batch["fbank"].device
        odds_a, odds_v = self._log_probs(batch)
        how = (masking.views, masking.complementary, rng, rows)
        grid_a, grid_v = self.model.audio_grid, self.model.video_grid
        audio = draw(self.audio_masking, global_batch, grid_a, masking.audio_ratio, *how, log_prob=odds_a)
        video = draw(self.video_masking, global_batch, grid_v, masking.video_ratio, *how, log_prob=odds_v)
        if self.decoder is not None and self.options.decoder.kind == "light":
            share = self.options.decoder.share
            audio = replace(audio, ids_predict=share_of_removed(audio, share, global_batch, rng, rows))
            video = replace(video, ids_predict=share_of_removed(video, share, global_batch, rng, rows))
        return replace(audio.to(device), log_prob=odds_a), replace(video.to(device), log_prob=odds_v)

    def draw_own(self, batch: Batch, rng: torch.Generator, global_batch: int) -> tuple[Views, Views] | None:
        """The one view that only contrast sees, drawn after those of `draw`; None where contrast has no own pass."""
        ratio = self.options.contrastive.own_ratio
        if self.contrastive is None or not ratio:
            return None
        maskings = ((self.audio_masking, self.model.audio_grid), (self.video_masking, self.model.video_grid))
        views = [draw(masking, global_batch, grid, ratio, 1, True, rng, batch["row"]) for masking, grid in maskings]
        audio, video = (view.to(batch["fbank"].device) for view in views)
        return audio, video

    def loss(
        self,
        batch: Batch,
        audio: Views,
        video: Views,
        feature_grads: dict[str, Tensor] | None = None,
        own: tuple[Views, Views] | None = None,
    ) -> Loss:
        """The loss for given views; `forward` draws them."""
        coupled = _needs(self.coupled_parts)
        if feature_grads is not None:
            coupled = {name for name in coupled if not name.startswith("teacher_")}
        wanted = _needs(self.local_parts) | coupled
        encoded, pooled = self._pooled(batch, audio, video, own, wanted, decodes=self.decoder is not None)
        predicted = self.decode(encoded, audio, video) if self.decoder is not None and encoded is not None else None
        with torch.autocast(batch["fbank"].device.type, enabled=False):
            terms, meters = _evaluate(self.local_parts, pooled)
            meters.update(self.contrastive.state() if self.contrastive is not None else {})
            if predicted is not None:
                terms.update(self._reconstruction(batch, predicted, audio, video))
            if feature_grads is None:
                everyone = {name: gather(pooled[name], dim=1) for name in sorted(coupled)}
                more, seen = _evaluate(self.coupled_parts, everyone)
                terms.update(more)
                meters.update(seen)
            weighted = [self.weights[name] * value for name, value in terms.items()]
            total = torch.stack(weighted).sum() if weighted else torch.zeros((), device=batch["fbank"].device)
            if feature_grads:
                total = total + inner_products(self, pooled, feature_grads)
        raw = {name: value.detach() for name, value in terms.items()}
        seen_by = {name.removeprefix("own_"): x.detach() for name, x in pooled.items() if "teacher_" not in name}
        return Loss(total, raw, {name: self.weights[name] for name in raw}, meters, seen_by)

    def features(self, batch: Batch, rng: torch.Generator, global_batch: int) -> dict[str, Tensor]:
        """Pooled latents (J, B, D) of the coupled terms; {} when no term couples clips."""
        names = _needs(self.coupled_parts)
        if not names:
            return {}
        audio, video = self.draw(batch, rng, global_batch)
        own = self.draw_own(batch, rng, global_batch)
        pooled = self._pooled(batch, audio, video, own, names, decodes=False)[1]
        return {name: pooled[name] for name in sorted(names)}

    def coupled(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Coupled terms of the whole global batch's features (J, G, D)."""
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return _evaluate(self.coupled_parts, features)[0]

    @torch.no_grad()
    def coupled_meters(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the coupled terms tell beside their value, of the same features: the contrastive accuracy."""
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return _evaluate(self.coupled_parts, features)[1]

    def after_step(self, step: int) -> None:
        """Hold a learned temperature in its range and move the teacher."""
        if self.contrastive is not None:
            self.contrastive.hold()
        if self.teacher is not None:
            self.teacher.update(self.encoder)

    @property
    def coupled_terms(self) -> set[str]:
        """Names of the terms that compare clips of the whole global batch."""
        return {name for part in self.coupled_parts for name in _names(part)}

    def encode(self, batch: Batch, audio: Views, video: Views, *, joint: bool = True, single: bool = True) -> Encoded:
        """All views of the batch through the encoder, view-major."""
        keep = (audio.ids_keep, video.ids_keep)
        return self.encoder(batch["fbank"], batch["frame"], *keep, joint=joint, single=single)

    def decode(self, encoded: Encoded, audio: Views, video: Views) -> tuple[Tensor, Tensor]:
        """Predictions (J, B, L, E) for audio and for video: all patches in natural order, or those at `ids_predict`."""
        assert self.decoder is not None
        assert encoded.joint is not None
        views, clips, num_audio = audio.ids_keep.shape
        if isinstance(self.decoder, LightDecoder):
            ids_a, ids_v = (asked(part).flatten(0, 1) for part in (audio, video))
            a, v = self.decoder(encoded.joint, ids_a, ids_v)
        else:
            restore_a, restore_v = audio.ids_restore, video.ids_restore
            if self.options.legacy_view2_order:
                restore_a, restore_v = restore_a[:1].expand_as(restore_a), restore_v[:1].expand_as(restore_v)
            a, v = self.decoder(encoded.joint, num_audio, restore_a.flatten(0, 1), restore_v.flatten(0, 1))
        return a.unflatten(0, (views, clips)), v.unflatten(0, (views, clips))

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the decoder should predict, (B, L, E) for audio and for video."""
        a = audio_patches(batch["fbank"].float(), self.model.audio_patch)
        v = patchify(batch["frame"].float(), self.model.video_patch)
        return (normalise_patches(a), normalise_patches(v)) if self.options.reconstruction.norm_pix else (a, v)

    def _pooled(
        self,
        batch: Batch,
        audio: Views,
        video: Views,
        own: tuple[Views, Views] | None,
        wanted: set[str],
        *,
        decodes: bool,
    ) -> tuple[Encoded | None, dict[str, Tensor]]:
        """What the passes over the views make of the batch, and the pooled latents that are `wanted`."""
        views, pooled, encoded = len(audio.ids_keep), dict[str, Tensor](), None
        joint, single = decodes or "joint" in wanted, bool(wanted & {"audio", "video"})
        if joint or single:
            encoded = self.encode(batch, audio, video, joint=joint, single=single)
            pooled.update(_pool(encoded, views))
        if own is not None and "own_audio" in wanted:
            pooled.update(_pool(self.encode(batch, *own, joint=False), 1, "own_"))
        if self.teacher is not None and (taught := {name for name in wanted if name.startswith("teacher_")}):
            keep = (audio.ids_keep, video.ids_keep)
            seen = self.teacher(batch["fbank"], batch["frame"], *keep, single="teacher_audio" in taught)
            pooled.update(_pool(seen, views, "teacher_"))
        return encoded, pooled

    def _reconstruction(
        self, batch: Batch, predicted: tuple[Tensor, Tensor], audio: Views, video: Views
    ) -> dict[str, Tensor]:
        terms = {}
        targets, which = self.targets(batch), self.options.reconstruction.patches
        for name, views, prediction, target in zip(MODALITIES, (audio, video), predicted, targets, strict=True):
            terms[f"reconstruction_{name}"], sampling = score(prediction.float(), target, views, which)
            if sampling is not None:
                terms[f"masking_{name}"] = sampling
        return terms

    def _log_probs(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """How likely the learned maskings, where there are any, show each token: (B, L) for audio and for video."""
        audio, video = self.audio_masking, self.video_masking
        with torch.no_grad():
            a = self.encoder.audio_tokens(batch["fbank"]) if isinstance(audio, LearnedMasking) else None
            v = self.encoder.video_tokens(batch["frame"]) if isinstance(video, LearnedMasking) else None
        return (
            audio(a) if isinstance(audio, LearnedMasking) else None,
            video(v) if isinstance(video, LearnedMasking) else None,
        )

    def _weigh(self) -> dict[str, float]:
        """Weight of every term that is computed."""
        options, weights = self.options, dict[str, float]()
        if self.decoder is not None:
            weights |= dict.fromkeys(("reconstruction_audio", "reconstruction_video"), options.reconstruction.weight)
        if self.contrastive is not None:
            weights["contrastive"] = options.contrastive.weight
        if self.distillation is not None:
            weights |= dict.fromkeys(self.distillation.names, options.self_distillation.weight)
        for name, masking in zip(MODALITIES, (self.audio_masking, self.video_masking), strict=True):
            if isinstance(masking, LearnedMasking):
                if self.decoder is None:
                    raise UsageFault(
                        f"masking.{name} = '{getattr(self.masking, name)}' learns from what was badly predicted, "
                        f"but objective.reconstruction.weight = {options.reconstruction.weight:g}",
                        f"set masking.{name} = 'random', or raise objective.reconstruction.weight",
                    )
                weights[f"masking_{name}"] = masking.weight
        return weights


def _names(part: Part) -> tuple[str, ...]:
    return part.names if isinstance(part, SelfDistillationTerm) else ("contrastive",)


def _needs(parts: Iterable[Part]) -> set[str]:
    return {name for part in parts for name in part.needs}


def _evaluate(parts: Iterable[Part], pooled: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Raw terms and meters of all parts."""
    terms: dict[str, Tensor] = {}
    meters: dict[str, Tensor] = {}
    for part in parts:
        more, seen = part(pooled)
        terms.update(more)
        meters.update(seen)
    return terms, meters


def _pool(encoded: Encoded, views: int, prefix: str = "") -> dict[str, Tensor]:
    """Mean over tokens of every pass that ran: (J * B, K, D) -> (J, B, D), float32."""
    found = encoded._asdict().items()
    return {prefix + name: x.float().mean(dim=1).unflatten(0, (views, -1)) for name, x in found if x is not None}


for _name in PRESETS:
    objectives.register(_name)(KdcMae)
