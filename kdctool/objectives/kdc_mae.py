"""The KDC-MAE family: a weighted sum of reconstruction, contrast and self-distillation over masked views.

CAV-MAE is this with one view and no self-distillation; the masked autoencoder and the contrastive model are its
corners. It is one code path: a term whose weight is 0 is not computed, and what only that term needs is neither
run nor trained.
"""

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.dist import gather
from kdctool.errors import UsageFault
from kdctool.masking import Views, build
from kdctool.masking.views import draw
from kdctool.models.av_encoder import AVEncoder, Encoded
from kdctool.objectives import Loss, objectives
from kdctool.objectives.contrastive import accuracy, info_nce, similarity
from kdctool.objectives.reconstruction import Decoder, audio_patches, masked_mse, normalise_patches, patchify
from kdctool.objectives.self_distillation import between_views
from kdctool.recipe import Recipe
from kdctool.recipe.presets import PRESETS

FEATURES = {"contrastive": ("audio", "video"), "self_distillation": ("joint",)}
"""Which pooled latents a term compares."""


class KdcMae(nn.Module):
    """All views of all clips in one pass; losses summed over views, means over clips, in float32.

    `legacy_view2_order` decodes every view with the first view's restore order, as the KDC-MAE release does:
    tokens of later views then land at foreign places. For replication only.
    """

    def __init__(self, recipe: Recipe, encoder: AVEncoder, *, legacy_view2_order: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.model, self.masking, self.options = recipe.model, recipe.masking, recipe.objective
        self.legacy_view2_order = legacy_view2_order
        self.weights = _weights(recipe)
        self.audio_masking = build(recipe.masking.audio, recipe.masking.audio_options)
        self.video_masking = build(recipe.masking.video, recipe.masking.video_options)
        self.decoder = Decoder(recipe.model, self.options.decoder) if self.options.reconstruction.weight else None
        self.coupled_terms = tuple(name for name in FEATURES if name in self.weights and self._is_coupled(name))
        self.local_terms = tuple(name for name in FEATURES if name in self.weights and name not in self.coupled_terms)
        self.runs_joint = self.decoder is not None or "self_distillation" in self.weights
        self.runs_single = "contrastive" in self.weights
        passes = ({"joint"} if self.runs_joint else set()) | ({"audio", "video"} if self.runs_single else set())
        encoder.train_passes(frozenset(passes))

    def forward(
        self, batch: Batch, rng: torch.Generator, global_batch: int, feature_grads: dict[str, Tensor] | None = None
    ) -> Loss:
        """batch: fbank (B, T, F), frame (B, C, H, W), row (B,). See `Objective`."""
        audio, video = self.draw(batch, rng, global_batch)
        return self.loss(batch, audio, video, feature_grads)

    def draw(self, batch: Batch, rng: torch.Generator, global_batch: int) -> tuple[Views, Views]:
        """The views of this micro batch, audio drawn first; a clip's follow from its place in the global batch."""
        masking, rows, device = self.masking, batch["row"], batch["fbank"].device
        how = (masking.views, masking.complementary, rng, rows)
        audio = draw(self.audio_masking, global_batch, self.model.audio_grid, masking.audio_ratio, *how)
        video = draw(self.video_masking, global_batch, self.model.video_grid, masking.video_ratio, *how)
        return audio.to(device), video.to(device)

    def loss(self, batch: Batch, audio: Views, video: Views, feature_grads: dict[str, Tensor] | None = None) -> Loss:
        """The loss for given views; `forward` draws them."""
        encoded = self.encode(batch, audio, video, joint=self.runs_joint, single=self.runs_single)
        predicted = self.decode(encoded, audio, video) if self.decoder is not None else None
        with torch.autocast(batch["fbank"].device.type, enabled=False):
            pooled = _pool(encoded, views=len(audio.ids_keep))
            terms, meters = self._terms(self.local_terms, pooled)
            if predicted is not None:
                terms.update(self._reconstruction(batch, predicted, audio, video))
            if feature_grads is None:
                everyone = {name: gather(pooled[name], dim=1) for name in _needed(self.coupled_terms)}
                coupled, seen = self._terms(self.coupled_terms, everyone)
                terms.update(coupled)
                meters.update(seen)
            parts = [self.weights[name] * value for name, value in terms.items()]
            parts += [(pooled[name] * grad).sum() for name, grad in (feature_grads or {}).items()]
            total = torch.stack(parts).sum()
        raw = {name: value.detach() for name, value in terms.items()}
        return Loss(total, raw, {name: self.weights[name] for name in raw}, meters)

    def features(self, batch: Batch, rng: torch.Generator, global_batch: int) -> dict[str, Tensor]:
        """Pooled latents (J, B, D) of the coupled terms; {} when no term couples clips."""
        names = _needed(self.coupled_terms)
        if not names:
            return {}
        audio, video = self.draw(batch, rng, global_batch)
        encoded = self.encode(batch, audio, video, joint="joint" in names, single="audio" in names)
        pooled = _pool(encoded, views=len(audio.ids_keep))
        return {name: pooled[name] for name in names}

    def coupled(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Coupled terms of the whole global batch's features (J, G, D)."""
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return self._terms(self.coupled_terms, features)[0]

    def after_step(self, step: int) -> None:
        """Nothing moves between steps: no teacher, no schedule."""

    def encode(self, batch: Batch, audio: Views, video: Views, *, joint: bool = True, single: bool = True) -> Encoded:
        """All views of the batch through the encoder, view-major."""
        keep = (audio.ids_keep, video.ids_keep)
        return self.encoder(batch["fbank"], batch["frame"], *keep, joint=joint, single=single)

    def decode(self, encoded: Encoded, audio: Views, video: Views) -> tuple[Tensor, Tensor]:
        """Predictions of every patch in natural order, (J, B, L, E) for audio and for video."""
        assert self.decoder is not None
        assert encoded.joint is not None
        views, clips, num_audio = audio.ids_keep.shape
        restore_a, restore_v = audio.ids_restore, video.ids_restore
        if self.legacy_view2_order:
            restore_a, restore_v = restore_a[:1].expand_as(restore_a), restore_v[:1].expand_as(restore_v)
        a, v = self.decoder(encoded.joint, num_audio, restore_a.flatten(0, 1), restore_v.flatten(0, 1))
        return a.unflatten(0, (views, clips)), v.unflatten(0, (views, clips))

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the decoder should predict, (B, L, E) for audio and for video."""
        a = audio_patches(batch["fbank"].float(), self.model.audio_patch)
        v = patchify(batch["frame"].float(), self.model.video_patch)
        return (normalise_patches(a), normalise_patches(v)) if self.options.reconstruction.norm_pix else (a, v)

    def _reconstruction(
        self, batch: Batch, predicted: tuple[Tensor, Tensor], audio: Views, video: Views
    ) -> dict[str, Tensor]:
        target_a, target_v = self.targets(batch)
        return {
            "reconstruction_audio": masked_mse(predicted[0].float(), target_a, audio.mask).sum(),
            "reconstruction_video": masked_mse(predicted[1].float(), target_v, video.mask).sum(),
        }

    def _terms(self, names: tuple[str, ...], pooled: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Raw terms and meters of pooled latents (J, any number of clips, D)."""
        terms: dict[str, Tensor] = {}
        meters: dict[str, Tensor] = {}
        if "contrastive" in names:
            options = self.options.contrastive
            sim = similarity(pooled["audio"], pooled["video"], options.temperature)  # (J, G, G)
            terms["contrastive"] = info_nce(sim, options.direction).sum()
            meters["contrastive_accuracy"] = accuracy(sim, options.direction).mean()
        if "self_distillation" in names:
            terms["self_distillation"] = between_views(pooled["joint"], self.options.self_distillation.shift).mean()
        return terms, meters

    def _is_coupled(self, name: str) -> bool:
        if name == "contrastive":
            return self.options.contrastive.negatives == "global"
        return self.options.self_distillation.shift == "global"


def _weights(recipe: Recipe) -> dict[str, float]:
    """Weight of every term that is computed; UsageFault where the knobs contradict each other."""
    objective = recipe.objective
    if objective.options:
        raise UsageFault(
            f"objective.options = {objective.options} means nothing to objective.name = '{objective.name}'",
            "remove it; the knobs are in objective.reconstruction, .contrastive and .self_distillation",
        )
    if objective.self_distillation.weight > 0 and recipe.masking.views < 2:
        raise UsageFault(
            f"objective.self_distillation.weight = {objective.self_distillation.weight:g} compares views, "
            f"but masking.views = {recipe.masking.views}",
            "set masking.views = 2, or objective.self_distillation.weight = 0",
        )
    weights = {
        "reconstruction_audio": objective.reconstruction.weight,
        "reconstruction_video": objective.reconstruction.weight,
        "contrastive": objective.contrastive.weight,
        "self_distillation": objective.self_distillation.weight,
    }
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    if not weights:
        raise UsageFault(
            "objective.reconstruction.weight, .contrastive.weight and .self_distillation.weight are all 0",
            "nothing is left to minimise: raise one of them",
        )
    return weights


def _needed(terms: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(feature for term in terms for feature in FEATURES[term])


def _pool(encoded: Encoded, views: int) -> dict[str, Tensor]:
    """Mean over tokens of every pass that ran: (J * B, K, D) -> (J, B, D), float32."""
    found = encoded._asdict().items()
    return {name: x.float().mean(dim=1).unflatten(0, (views, -1)) for name, x in found if x is not None}


for _name in PRESETS:
    objectives.register(_name)(KdcMae)
