"""An image model as timm saves one, and the same weights by the names of OpenMMLab's ViTs.

timm.create_model("local-dir:FOLDER", pretrained=True) opens the folder, and so does kdctool, by its kdctool.json. A
classifier of timm has no final norm over tokens: that of ours, which features are taken after, lies in
norm.safetensors. OpenMMLab reads .pth files only:
mmpretrain.pth is for VisionTransformer of MMPretrain and of MMDetection's ViTDet, mmseg.pth for that of MMSegmentation.
"""

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.export import Check, Package, Probes, exporters
from kdctool.export.about import ABOUT, NORM, WEIGHTS, write_about
from kdctool.export.parity import tensor_difference
from kdctool.files import disk_faults, write_bytes, write_json
from kdctool.models.image_classifier import to_timm
from kdctool.models.streams import Wanted
from kdctool.models.student import create, streams_of
from kdctool.models.vit_streams import VIDEO
from kdctool.registry import Section

CONFIG = "config.json"
LIMIT = 1e-5
"""Largest difference in float32 between timm's forward pass and ours."""
_COMMON = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm\.", "ln1."),
    (r"^norm_pre\.", "pre_norm."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.ln\2."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
)
LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "mmpretrain": (*_COMMON, (r"^blocks\.(\d+)\.attn\.", r"layers.\1.attn.")),
    "mmseg": (
        *_COMMON,
        (r"^blocks\.(\d+)\.attn\.qkv\.", r"layers.\1.attn.attn.in_proj_"),
        (r"^blocks\.(\d+)\.attn\.proj\.", r"layers.\1.attn.attn.out_proj."),
    ),
}
"""OpenMMLab package -> (pattern, replacement) of timm's names; cls_token and pos_embed are called the same."""
_KNOWN = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|norm_pre|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))"
    r"\.(weight|bias)"
)


@exporters.register("timm")
class Timm:
    """Writes the folder, opens it with timm and compares the outputs."""

    takes: Literal["image"] = "image"
    owns: ClassVar[tuple[str, ...]] = (WEIGHTS, CONFIG, ABOUT)

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or Section()

    def write(self, package: Package, folder: Path) -> list[str]:
        state = timm_state(package)
        write_bytes(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
        write_json(folder / CONFIG, config(package))
        names = [WEIGHTS, CONFIG]
        if beside := _norm(package):
            write_bytes(folder / NORM, save(beside, metadata={"format": "pt"}))
            names.append(NORM)
        names.append(write_about(package, folder, "timm"))
        backbone = package.encoder.state_dict()
        for layout in layouts(package):
            names.append(f"{layout}.pth")
            with disk_faults(folder / names[-1]):
                torch.save({"state_dict": renamed(backbone, layout)}, folder / names[-1])
        return names

    def check(self, package: Package, folder: Path, probes: Probes) -> list[Check]:
        """What timm computes with the folder, and whether every tensor arrived in each layout."""
        import timm

        state = timm_state(package)
        checks = [Check(f"{WEIGHTS} (tensors)", tensor_difference(state, load_file(folder / WEIGHTS)), 0.0)]
        if beside := _norm(package):
            checks.append(Check(f"{NORM} (tensors)", tensor_difference(beside, load_file(folder / NORM)), 0.0))
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        plain = create(architecture(package), "arch", **model_args(package))
        if package.classifier is not None:
            plain.reset_classifier(len(package.labels))
        plain.load_state_dict(state, strict=True)
        wanted = _output(package, probes.frame)
        models: dict[str, Any] = {"create_model": again, "load_state_dict": plain.eval()}
        for name, model in models.items():
            with torch.inference_mode():
                found = model(probes.frame) if package.classifier else model.forward_features(probes.frame)
                checks.append(Check(f"timm's {name}", float((found - wanted).abs().max()), LIMIT))
        backbone = package.encoder.state_dict()
        for layout in layouts(package):
            theirs = torch.load(folder / f"{layout}.pth", weights_only=True)["state_dict"]
            checks.append(Check(f"{layout}.pth (tensors)", tensor_difference(renamed(backbone, layout), theirs), 0.0))
        return checks


def architecture(package: Package) -> str:
    """timm's name without the tag of published weights; UsageFault for a model that timm cannot build by name."""
    student = package.recipe.objective.distill.student
    if student.pos == "relbias":
        raise UsageFault(
            f"timm builds no {student.arch} with objective.distill.student.pos = 'relbias' by name",
            "--to hf writes a folder that kdctool opens; its tensors are those of timm's VisionTransformerRelPos",
        )
    return student.arch.split(".")[0]


def timm_state(package: Package) -> dict[str, Tensor]:
    """Weights by timm's names. With a classifier, norm and linear layer are fc_norm and head, and `norm` is gone."""
    head = package.classifier.mlp_head.state_dict() if package.classifier is not None else {}
    state = to_timm(package.encoder.state_dict(), head)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _norm(package: Package) -> dict[str, Tensor]:
    """What `timm_state` of a classifier has no place for: the encoder's final norm."""
    if package.classifier is None:
        return {}
    state = package.encoder.state_dict()
    return {name: state[name].detach().cpu().contiguous() for name in state if name.startswith("norm.")}


def model_args(package: Package) -> dict[str, Any]:
    """Arguments of timm.create_model beside name and number of classes."""
    pooled = {"global_pool": "avg"} if package.classifier is not None else {}
    return {"img_size": package.recipe.model.image_size, **pooled}


def config(package: Package) -> dict[str, Any]:
    """config.json as timm's save_for_hf writes it."""
    encoder, data, side = package.encoder, package.recipe.data, package.recipe.model.image_size
    classes = len(package.labels) if package.classifier is not None else 0
    card = {
        "tag": "kdctool",
        "custom_load": False,
        "input_size": [3, side, side],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": data.crop_pct,
        "crop_mode": "center",
        "mean": list(data.image_mean),
        "std": list(data.image_std),
        "num_classes": classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "architecture": architecture(package),
        "num_classes": classes,
        "num_features": encoder.num_features,
        "global_pool": "avg" if package.classifier is not None else encoder.global_pool,
        "model_args": model_args(package),
        **({"label_names": list(package.labels)} if classes else {}),
        "pretrained_cfg": card,
    }


def layouts(package: Package) -> list[str]:
    """OpenMMLab packages that the weights are written for: all, or none where their plain ViT has not all names.

    Backbones of downstream tasks start from pre-training, so a finetuned classifier is not among them.
    """
    known = package.classifier is None and not unmapped(package.encoder.state_dict())
    return list(LAYOUTS) if known else []


def unmapped(state: dict[str, Tensor]) -> list[str]:
    """Names that OpenMMLab's plain ViTs have nothing for, such as layer scales or register tokens."""
    return [name for name in state if not _KNOWN.fullmatch(name)]


def renamed(state: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """timm's names -> those of an OpenMMLab package; the tensors are the same."""
    found = {}
    for name, value in state.items():
        for pattern, replacement in LAYOUTS[layout]:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        found[name] = value.detach()
    return found


@torch.inference_mode()
def _output(package: Package, frame: Tensor) -> Tensor:
    """Our own forward pass: logits, or the tokens after the final norm."""
    if package.classifier is not None:
        logits: Tensor = package.classifier({"frame": frame})
        return logits
    streams = streams_of(package.encoder)
    streams.listen({VIDEO: Wanted(frozenset({streams.streams[VIDEO].layers}), final=True)})
    tokens = streams.run({"frame": frame}, {})[VIDEO].final
    assert tokens is not None
    return tokens
