"""What a stranger needs beside the weights: how inputs are made (preprocessor_config.json) and a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdctool import __version__
from kdctool.data import fbank
from kdctool.export import Check, Package, Probes
from kdctool.export.onnx import OPSET
from kdctool.files import write_bytes, write_json
from kdctool.recipe import to_toml

CARD, PREPROCESSOR, RECIPE = "README.md", "preprocessor_config.json", "recipe.toml"
SAMPLE_RATE = 16000


def preprocessor(package: Package) -> dict[str, Any]:
    """Every constant between a decoded clip and the two inputs of the model."""
    model, data = package.recipe.model, package.recipe.data
    found = {
        "processor_class": "kdctool",
        "sampling_rate": SAMPLE_RATE,
        "audio": {
            "channels": 1,
            "subtract_mean": True,
            "features": "kaldi log-mel filter bank, htk_compat, no energy, no dither",
            "num_mel_bins": model.mel_bins,
            "frame_length_ms": fbank.FRAME_LENGTH_MS,
            "frame_shift_ms": fbank.FRAME_SHIFT_MS,
            "window": "hanning",
            "preemphasis": fbank.PREEMPHASIS,
            "low_freq_hz": fbank.LOW_FREQUENCY_HZ,
            "high_freq_hz": SAMPLE_RATE / 2,
            "num_frames": model.audio_frames,
            "pad": "zeros at the end, before normalisation",
            "mean": data.fbank_mean,
            "std": data.fbank_std,
        },
        "image": {
            "frame": "N // 2 of the N frames of a clip",
            "size": {"height": model.image_size, "width": model.image_size},
            "resize": "short side, bicubic, then centre crop",
            **({"crop_pct": data.crop_pct} if data.crop_pct < 1 else {}),
            "rescale_factor": 1 / 255,
            "mean": list(data.image_mean),
            "std": list(data.image_std),
        },
    }
    return {key: found[key] for key in ("processor_class", "image")} if package.is_image else found


def write(
    package: Package, folder: Path, files: list[str], checks: list[Check], probes: Probes, formats: Sequence[str]
) -> list[str]:
    """Write the preprocessor, the recipe and the card of an export whose other files are `files`."""
    write_json(folder / PREPROCESSOR, preprocessor(package))
    write_bytes(folder / RECIPE, to_toml(package.recipe).encode())
    write_bytes(folder / CARD, card(package, files, checks, probes, formats).encode())
    return [PREPROCESSOR, RECIPE, CARD]


def card(package: Package, files: list[str], checks: list[Check], probes: Probes, formats: Sequence[str] = ()) -> str:
    """The model card as Markdown with the hub's front matter; `formats` are the names of the exporters that wrote."""
    recipe = package.recipe
    sections = [
        f"# {recipe.name}" + (f"\n\n{recipe.description}" if recipe.description else ""),
        "## What it is\n\n" + _what(package),
        "## How to load\n\n" + _loading(package, files, formats),
        "## Training\n\n" + _training(package),
        "## Results\n\n" + _results(package),
        f"## Checks\n\nOn {probes.origin}:\n\n"
        + _table(
            ("file", "largest difference", "limit"),
            [(check.name, f"{check.difference:.2e}", f"{check.limit:g}") for check in checks],
        ),
        "## Licence\n\n" + _licence(package),
    ]
    return _front_matter(package, "timm" if "timm" in formats else "kdctool") + "\n\n".join(sections) + "\n"


def _front_matter(package: Package, library: str) -> str:
    tags = ["audio-visual", "self-supervised", "cav-mae", package.recipe.objective.name.replace("_", "-")]
    pipeline = "audio-classification"
    if package.is_image:
        tags, pipeline = ["self-supervised", "vit", tags[-1]], "image-classification"
    if package.classifier is None:
        pipeline = "image-feature-extraction" if package.is_image else "feature-extraction"
    lines = [f"library_name: {library}", f"pipeline_tag: {pipeline}", "tags:", *(f"- {tag}" for tag in tags)]
    return "---\n" + "\n".join(lines) + "\n---\n\n"


def _what(package: Package) -> str:
    model = package.recipe.model
    total = sum(p.numel() for p in (package.classifier or package.encoder).parameters())
    seen = f"one frame of {model.image_size} x {model.image_size} pixels"
    if package.is_image:
        arch = package.recipe.objective.distill.student.arch
        text = f"A ViT, timm's {arch} ({total:,} parameters), that sees {seen.removeprefix('one ')}."
    else:
        text = (
            f"An audio-visual encoder ({total:,} parameters, width {model.width}, {model.depth} blocks per tower, "
            f"{model.joint_depth} joint): {model.audio_frames / 100:g} s of sound as a log-mel filter bank of "
            f"{model.audio_frames} x {model.mel_bins}, and {seen}."
        )
    text += f" Pre-training objective: `{package.recipe.objective.name}`."
    if package.classifier is not None:
        kind = "several labels" if package.multi_label else "one label"
        text += (
            f" Finetuned to classify clips by {package.classifier.modality.replace('both', 'sound and frame')} "
            f"into {len(package.labels)} classes, {kind} per clip."
        )
    return text


def _loading(package: Package, files: list[str], formats: Sequence[str]) -> str:
    image, classifies = package.is_image, package.classifier is not None
    parts = []
    if "model.safetensors" in files:
        use = "tokens = model.encoder.embed_audio(fbank)  # (B, T, F) -> (B, tokens, width)"
        if image:
            use = 'vector = model.embed_video("picture.jpg")  # (width,), unit length'
        task = "classification" if classifies else "diagnose" if image else "retrieval"
        parts.append(
            f'```python\nimport kdctool\n\nmodel = kdctool.load(".")  # this folder\n{use}\n```\n\n'
            f"`kdctool eval . --task {task} --shards SHARDS` scores it."
        )
    if "timm" in formats:
        parts.append(_loading_timm(classifies, files))
    graphs = [name for name in files if name.endswith(".onnx")]
    if graphs:
        first, given, shape = graphs[0], "frame" if image else "fbank", "(B, 3, H, W)" if image else "(B, T, F)"
        parts.append(
            f"ONNX graphs (opset {OPSET}, float32, free batch size): {', '.join(f'`{name}`' for name in graphs)}. "
            "Embeddings are means over tokens of unit length, so a dot product is the cosine.\n\n"
            f'```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{first}")\n'
            f'(embedding,) = session.run(None, {{"{given}": {given}}})  # float32 {shape}\n```'
        )
    return "\n\n".join([*parts, f"Inputs are normalised as `{PREPROCESSOR}` says."])


def _loading_timm(classifies: bool, files: list[str]) -> str:
    gives = "logits" if classifies else "pooled features; .forward_features(x) gives the tokens"
    text = (
        '```python\nimport timm\n\nmodel = timm.create_model("local-dir:.", pretrained=True).eval()\n'
        f"model(frame)  # (B, 3, H, W) -> {gives}\n```"
    )
    theirs = [name for name in files if name.endswith(".pth")]
    if theirs:
        text += (
            f"\n\n{' and '.join(f'`{name}`' for name in theirs)} hold the same weights by the names of OpenMMLab: "
            "mmpretrain.pth for `VisionTransformer` of MMPretrain and of MMDetection's ViTDet, mmseg.pth for that of "
            "MMSegmentation (`init_cfg=dict(type='Pretrained', checkpoint=...)`). They were compared by name and shape "
            "alone; COCO and ADE20K were not run."
        )
    return text


def _training(package: Package) -> str:
    rows = [
        ("run", package.source),
        ("step", package.unfinished or str(package.step)),
        ("weights in the run, sha256", package.source_sha256),
        ("recipe digest", package.recipe_digest),
        ("training data digest", package.data_digest),
        ("kdctool", __version__),
    ]
    return _table(("", ""), rows) + f"\n\nThe whole recipe is `{RECIPE}`."


def _results(package: Package) -> str:
    if not package.results:
        return "None were measured on these weights. `kdctool eval` writes them and the next export shows them."
    blocks = []
    for result in package.results:
        rows = [
            (
                name,
                _number(entry["value"]),
                f"{_number(entry['low'])} to {_number(entry['high'])}",
                _number(entry["chance"]),
            )
            for name, entry in result["metrics"].items()
        ]
        blocks.append(
            f"`{result['protocol']}`, {result['n_scored']} of {result['n_total']} clips, "
            f"data digest `{result['data_digest'][:12]}`:\n\n"
            + _table(("metric", "value", "95 % interval", "chance"), rows)
        )
    return "\n\n".join(blocks)


def _licence(package: Package) -> str:
    init = package.recipe.model.init
    if package.teachers:
        told = "; ".join(f"{about['model']}: {about['licence']}" for about in package.teachers.values())
        return (
            f"Distilled from other weights, whose terms carry over to these: {told}. "
            "Terms of the training data may carry over too; they are for whoever publishes this folder to state."
        )
    if not init:
        return (
            "Trained from random weights, so no other weights' licence carries over. "
            "Terms of the training data may; they are for whoever publishes this folder to state."
        )
    return (
        f"Training started from `{Path(init).name}`, whose licence carries over to these weights. The ImageNet-MAE "
        "weights that published CAV-MAE models start from are CC BY-NC 4.0 (no commercial use). Terms of the training "
        "data may carry over too; they are for whoever publishes this folder to state."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
