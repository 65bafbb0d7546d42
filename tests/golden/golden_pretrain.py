"""Pre-training cases: the objective of the product on stored noise, weights and inputs."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from golden_case import OUTPUT, Case
from torch import Tensor

from kdctool.masking import Views
from kdctool.masking.views import views_from_noise
from kdctool.models.av_encoder import AVEncoder, Encoded
from kdctool.models.layers import sincos_2d
from kdctool.models.weights import load_encoder, load_strict, split_state
from kdctool.objectives.contrastive import accuracy, info_nce, similarity
from kdctool.objectives.kdc_mae import KdcMae
from kdctool.objectives.reconstruction import audio_patches, masked_mse, normalise_patches, patchify
from kdctool.objectives.self_distillation import as_distribution, between_views, js, kl
from kdctool.recipe import Model, Recipe
from kdctool.recipe import validate as recipe_from


@dataclass
class Run:
    """A model on the inputs of a case, and what it makes of given noise."""

    objective: KdcMae
    batch: dict[str, Tensor]
    audio: Views
    video: Views

    def encode(self) -> Encoded:
        return self.objective.encode(self.batch, self.audio, self.video)


def model_options(config: dict[str, Any]) -> Model:
    """The recipe's [model] section of a case."""
    if config.get("layer_norm_eps", 1e-5) != 1e-5 or not config.get("qkv_bias", True) or config.get("in_chans", 3) != 3:
        raise ValueError(f"these weights are not of CAV-MAE's architecture: {config}")
    return Model.model_validate(
        {
            "audio_frames": config["audio_length"],
            "mel_bins": config["mel_bins"],
            "image_size": config["img_size"],
            "audio_patch": config["patch_size"],
            "video_patch": config["patch_size"],
            "width": config["embed_dim"],
            "heads": config["num_heads"],
            "depth": config["n_modality_specific_blocks"],
            "joint_depth": config["n_joint_blocks"],
            "mlp_ratio": float(config["mlp_ratio"]),
        }
    )


def recipe_of(config: dict[str, Any], views: int, legacy_view2_order: bool) -> Recipe:
    """The recipe that describes a case.

    The reference never chains its joint blocks in pre-training; with one block there is no difference.
    """
    distils = views > 1
    model = model_options(config)
    return recipe_from(
        {
            "name": "golden",
            "model": {**model.model_dump(), "released_joint_order": model.joint_depth > 1},
            "masking": {
                "views": views,
                "audio_ratio": config["mask_ratio_a"],
                "video_ratio": config["mask_ratio_v"],
            },
            "objective": {
                "name": "kdc_mae" if distils else "cav_mae",
                "legacy_view2_order": legacy_view2_order,
                "reconstruction": {"weight": float(config["mae_loss_weight"]), "norm_pix": config["norm_pix_loss"]},
                "contrastive": {
                    "weight": float(config["contrast_loss_weight"]),
                    "temperature": float(config["temperature"]),
                },
                "self_distillation": {"weight": float(config["kd_weight"]) if distils else 0.0},
                "decoder": {
                    "width": config["decoder_embed_dim"],
                    "heads": config["decoder_num_heads"],
                    "depth": config["decoder_depth"],
                },
            },
        }
    )


def prepare(
    case: Case,
    config: dict[str, Any],
    noise: tuple[Tensor, Tensor],
    inputs: Case,
    views: int = 1,
    legacy_view2_order: bool = False,
) -> Run:
    """Model with the case's weights, its inputs, and the views that the noise decides."""
    recipe = recipe_of(config, views, legacy_view2_order)
    encoder = AVEncoder(recipe.model)
    objective = KdcMae(recipe, encoder)
    state = case.weights()
    load_encoder(encoder, state)
    assert objective.decoder is not None
    load_strict(objective.decoder, split_state(state)[1], "decoder")
    kept = [int(x.shape[1] * (1 - config[f"mask_ratio_{m}"])) for m, x in zip("av", noise, strict=True)]
    audio, video = (views_from_noise(x, k, views) for x, k in zip(noise, kept, strict=True))
    batch = {"fbank": inputs.input("audio"), "frame": inputs.input("imgs")}
    return Run(objective, batch, audio, video)


def pretrain(case: Case) -> None:
    """One view (CAV-MAE), with every intermediate, gradients, optimiser steps and the second run."""
    noise = (case.input("noise_a"), case.input("noise_v"))
    run = prepare(case, case.config, noise, case)
    tables(case, run)
    with torch.no_grad():
        case.all_close(one_view(run), OUTPUT)
        if "chained.latent_c_a" in case.tensors:
            run.objective.encoder.released_joint_order = False
            chained = one_view(run)
            case.all_close(chained, OUTPUT, prefix="chained.")
            run.objective.encoder.released_joint_order = True
    gradients_and_steps(case, run)
    if "alt.loss" in case.scalars:
        second_run(case)


def tables(case: Case, run: Run) -> None:
    """Our own position tables against the stored ones."""
    state, model = case.weights(), run.objective.model
    for name, width in (("pos_embed", model.width), ("decoder_pos_embed", case.config["decoder_embed_dim"])):
        for modality, grid in (("a", model.audio_grid), ("v", model.video_grid)):
            key = f"{name}_{modality}"
            case.close(f"weights.{key}", sincos_2d(width, grid), state[key], OUTPUT)


def one_view(run: Run) -> dict[str, Any]:
    """Everything a one-view case may store, by the names it uses."""
    objective, encoder, batch, a, v = run.objective, run.objective.encoder, run.batch, run.audio, run.video
    options = objective.options
    found: dict[str, Any] = {}
    with captured(encoder) as towers:
        encoded = run.encode()
    found["enc_a"], found["enc_v"] = towers
    for name, views in (("a", a), ("v", v)):
        found[f"ids_keep_{name}"], found[f"ids_restore_{name}"] = views.ids_keep[0], views.ids_restore[0]
        found[f"ids_shuffle_{name}"], found[f"mask_{name}"] = views.ids_restore[0].argsort(dim=1), views.mask[0]
    found["tokens_a"], found["tokens_v"] = encoder.tokens(batch["fbank"], batch["frame"])
    found["latent"], found["latent_c_a"], found["latent_c_v"] = encoded
    found["feat_a"], found["feat_v"] = encoder.embed_audio(batch["fbank"]), encoder.embed_video(batch["frame"])
    pooled = encoded.audio.mean(dim=1), encoded.video.mean(dim=1)
    found["pooled_a"], found["pooled_v"] = pooled
    sim = similarity(*pooled, options.contrastive.temperature)
    found["sim"] = sim
    found["nce_unweighted"], found["nce_bidirectional"] = (info_nce(sim[None], way)[0] for way in ("v2a", "both"))
    found["c_acc"], found["c_acc_bidirectional"] = accuracy(sim[None], "v2a")[0], accuracy(sim[None], "both")[0]
    found["loss_c"] = options.contrastive.weight * found["nce_unweighted"]
    predicted = objective.decode(encoded, a, v)
    targets = objective.targets(batch)
    model = objective.model
    raw = audio_patches(batch["fbank"], model.audio_patch), patchify(batch["frame"], model.video_patch)
    found["target_a"], found["target_v"] = normalise_patches(raw[0]), normalise_patches(raw[1])
    for name, views, prediction, target, plain in zip("av", (a, v), predicted, targets, raw, strict=True):
        found[f"pred_{name}"] = prediction[0]
        found[f"loss_mae_{name}"] = masked_mse(prediction, target, views.mask)[0]
        found[f"loss_mae_{name}_nopixnorm"] = masked_mse(prediction, plain, views.mask)[0]
    found["loss_mae"] = options.reconstruction.weight * (found["loss_mae_a"] + found["loss_mae_v"])
    found["loss"] = objective.loss(batch, a, v).total
    return found


def second_run(case: Case) -> None:
    """The run with other ratios and weights, which stand in the description of its loss."""
    meaning = case.about["scalars"]["alt.loss"]["meaning"]
    number = r"([0-9.]*[0-9])"
    found = re.search(
        rf"mask ratios {number} / {number}, mae_loss_weight {number}, contrast_loss_weight {number}", meaning
    )
    if found is None:
        raise ValueError(f"the second run's settings are not in the description of alt.loss: {meaning}")
    keys = ("mask_ratio_a", "mask_ratio_v", "mae_loss_weight", "contrast_loss_weight")
    config = {**case.config, **dict(zip(keys, map(float, found.groups()), strict=True))}
    run = prepare(case, config, (case.input("alt.noise_a"), case.input("alt.noise_v")), case)
    with torch.no_grad():
        case.all_close(one_view(run), OUTPUT, prefix="alt.")


def gradients_and_steps(case: Case, run: Run) -> None:
    """Gradients of the mean loss, then the loss before each of a few optimiser steps."""
    objective = run.objective
    if "grad_l2_norm" in case.about:
        objective.loss(run.batch, run.audio, run.video).total.backward()
        parts = (objective.encoder, objective.decoder)
        case.gradients({name: p.grad for part in parts for name, p in part.named_parameters()})
    trajectory = case.about.get("optimizer_trajectory")
    if trajectory is None:
        return
    text = trajectory["optimizer"]
    settings = {
        "lr": float(re.search(r"lr ([-+.e\d]+\d)", text)[1]),
        "betas": tuple(float(x) for x in re.search(r"betas \(([^)]*)\)", text)[1].split(",")),
        "eps": float(re.search(r"eps ([-+.e\d]+\d)", text)[1]),
        "weight_decay": float(re.search(r"weight_decay ([-+.e\d]+\d)", text)[1]),
    }
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], **settings)
    for step, want in enumerate(trajectory["loss_before_step"]):
        optimizer.zero_grad()
        loss = objective.loss(run.batch, run.audio, run.video).total
        case.close(f"optimizer_trajectory.{step}", loss, want, trajectory.get("suggested_tolerance", 2e-4))
        loss.backward()
        optimizer.step()


def two_views(case: Case) -> None:
    """Two complementary views; a case that borrows its inputs from another is decoded as released."""
    source = case.other(case.about["other_tensors_from"]) if "other_tensors_from" in case.about else case
    noise = (source.input("noise_a"), source.input("noise_v"))
    shares_restore = torch.equal(case.tensors["ids_restore_a1"], case.tensors["ids_restore_a2"])
    run = prepare(case, case.config, noise, source, views=2, legacy_view2_order=shares_restore)
    with torch.no_grad():
        case.all_close(views_of(run, case.config["kd_weight"], shares_restore), OUTPUT)
    gradients_and_steps(case, run)


def views_of(run: Run, kd_weight: float, shares_restore: bool) -> dict[str, Any]:
    """Everything a two-view case may store, by the names it uses."""
    objective, batch, options = run.objective, run.batch, run.objective.options
    encoded = run.encode()
    views, clips, _ = run.audio.ids_keep.shape
    predicted = objective.decode(encoded, run.audio, run.video)
    targets = objective.targets(batch)
    latents = {key: x.unflatten(0, (views, clips)) for key, x in encoded._asdict().items()}
    pooled = {key: x.mean(dim=2) for key, x in latents.items()}
    sim = similarity(pooled["audio"], pooled["video"], options.contrastive.temperature)
    contrastive = options.contrastive.weight * info_nce(sim, options.contrastive.direction)
    hits = accuracy(sim, options.contrastive.direction)
    mse = [masked_mse(p, t, w.mask) for p, t, w in zip(predicted, targets, (run.audio, run.video), strict=True)]
    found: dict[str, Any] = {}
    for j in range(views):
        for name, picked, which in (("a", run.audio, 0), ("v", run.video, 1)):
            found[f"ids_keep_{name}{j + 1}"] = picked.ids_keep[j]
            found[f"ids_restore_{name}{j + 1}"] = picked.ids_restore[0 if shares_restore else j]
            found[f"mask_{name}{j + 1}"] = picked.mask[j]
            found[f"pred_{name}{j + 1}"] = predicted[which][j]
            found[f"loss_mae_{name}{j + 1}"] = mse[which][j]
        found[f"latent{j + 1}"] = latents["joint"][j]
        found[f"latent_c_a{j + 1}"], found[f"latent_c_v{j + 1}"] = latents["audio"][j], latents["video"][j]
        found[f"loss_mae{j + 1}"] = options.reconstruction.weight * (mse[0][j] + mse[1][j])
        found[f"loss_c{j + 1}"], found[f"c_acc{j + 1}"] = contrastive[j], hits[j]
    p = as_distribution(pooled["joint"], "global")
    found["p1"], found["p2"] = p[0], p[1]
    found["js_joint"], found["kl_12"], found["kl_21"] = js(p[0], p[1]), kl(p[0], p[1]), kl(p[1], p[0])
    per_clip = {key: kd_weight * between_views(x, "global") for key, x in pooled.items()}  # (B,) each
    without = sum(found[f"loss_mae{j + 1}"] + found[f"loss_c{j + 1}"] for j in range(views))
    found["loss_kd"], found["loss"] = per_clip["joint"], without + per_clip["joint"]
    found["loss_sum"] = found["loss"].sum()
    found["loss_mean"] = objective.loss(batch, run.audio, run.video).total
    found["per_modality.loss_kd"] = torch.stack(list(per_clip.values())).sum(dim=0)
    found["per_modality.loss_mean"] = (without + found["per_modality.loss_kd"]).mean()
    return found


def three_views(case: Case) -> None:
    """The distillation term of three views; ratios and inputs are those of the two-view case."""
    source = case.other("kdc_pretrain")
    config = {**source.config, **case.config}
    run = prepare(case, config, (case.input("noise_a"), case.input("noise_v")), source, views=3)
    with torch.no_grad():
        views, clips, _ = run.audio.ids_keep.shape
        latent = run.encode().joint.unflatten(0, (views, clips))
        found = {f"latent{j + 1}": latent[j] for j in range(views)}
        found["loss_kd"] = config["kd_weight"] * between_views(latent.mean(dim=2), "global")
        case.all_close(found, OUTPUT)


@contextmanager
def captured(encoder: AVEncoder) -> Iterator[list[Tensor]]:
    """Collects the output of each tower's last block while the encoder runs: audio, then video."""
    outputs: list[Tensor] = []
    hooks = [
        blocks[-1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for blocks in (encoder.blocks_a, encoder.blocks_v)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


CASES = {
    "cavmae_pretrain": pretrain,
    "cavmae_pretrain_joint2": pretrain,
    "kdc_pretrain": two_views,
    "kdc_pretrain_shared_restore": two_views,
    "kdc_three_views_kd": three_views,
}
