"""kdctool import."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kdctool.cli.show import Format, Set, summary
from kdctool.errors import quoted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="import")(import_weights)


def import_weights(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .pth, .pt or .safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; model.init, eval and export open it.")],
    layout: Annotated[
        Literal["cav-mae", "kdc-mae", "cav-mae-sync", "cav-mae-finetuned", "imagenet-mae", "timm"],
        typer.Option("--as", help="How the file names its tensors: whose weights they are."),
    ],
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe whose model to fill; default: a model of the sizes of the weights.")
    ] = None,
    tower: Annotated[
        Literal["audio", "video", "both", "image"],
        typer.Option(help="With --as timm: which tower the ViT becomes; image: it stays an image model."),
    ] = "both",
    model: Annotated[str, typer.Option(help="With --as timm: the model's name, e.g. vit_base_patch16_224.")] = "",
    labels: Annotated[
        Path | None,
        typer.Option(help="Finetuned weights: label names, one a line or class_labels_indices.csv; default numbers."),
    ] = None,
    multi_label: Annotated[
        bool | None,
        typer.Option("--multi-label/--single-label", help="Finetuned weights; default: several for 527 classes."),
    ] = None,
    modality: Annotated[
        Literal["audio", "video", "both"], typer.Option(help="What finetuned weights were finetuned on.")
    ] = "both",
    no_decoder: Annotated[bool, typer.Option("--no-decoder", help="Leave the pre-training decoder out.")] = False,
    change: Set = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier import in the same folder.")
    ] = False,
    format: Format = "human",
) -> None:
    """Bring published weights in: CAV-MAE, KDC-MAE, CAV-MAE Sync, ImageNet-MAE, or a ViT of timm.

    The file is read in a limited process, pickles without running code. Every tensor is used, or named as unused
    with the reason; a tensor that is missing, of another shape or not finite ends the command, and nothing is made.
    """
    from kdctool import recipe as recipes

    loaded = recipes.load(recipe) if recipe else None
    from kdctool.stages import import_weights as stage
    from kdctool.stages.imported import REPORT, Choices, report

    choices = Choices(tower, model, labels, multi_label, modality, loaded, tuple(change or ()), decoder=not no_decoder)
    done = stage.run(weights, layout, out, choices, overwrite=overwrite)
    sizes, is_image = done.recipe.model, done.recipe.objective.student_sees_frames_alone
    shape = [
        ("model", f"width {sizes.width}, {sizes.heads} heads, {sizes.depth} + {sizes.joint_depth} blocks"),
        ("input", f"{sizes.audio_frames} x {sizes.mel_bins} filter bank, {sizes.image_size} px frames"),
    ]
    if is_image:
        seen = f"mean {list(done.recipe.data.image_mean)}, std {list(done.recipe.data.image_std)}"
        shape = [("model", done.recipe.objective.distill.student.arch), ("input", f"{sizes.image_size} px, {seen}")]
    rows = [
        ("folder", str(done.folder)),
        ("file", f"{done.source}, sha256 {done.sha256[:12]}"),
        ("used", f"{len(done.used)} tensors of the file"),
        ("unused", _named(done.unused)),
        ("fresh", _named(done.fresh)),
        ("parameters", f"{done.parameters:,} ({done.reference_trained:,} without the positional tables)"),
        *shape,
        *([("labels", f"{len(done.labels)}, {done.recipe.finetune.modality}")] if done.labels else []),
        *(("note", note) for note in done.notes),
        ("licence", done.licence),
        ("all names", str(done.folder / REPORT)),
    ]
    task = "classification" if done.kind == "finetune" else "diagnose" if is_image else "retrieval"
    summary(
        "import",
        rows,
        f"kdctool eval {quoted(done.folder)} --task {task} --shards SHARDS",
        report(done, layout),
        format,
    )


def _named(reasons: dict[str, str]) -> str:
    """`3: a, b, ... (reason)` for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    told = [
        f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({why})"
        for why, names in by_reason.items()
    ]
    return "\n".join(told) or "none"
