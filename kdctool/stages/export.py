"""Write a trained model as a folder that others can use, checked against the model before it appears."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool.data.loader import eval_batches
from kdctool.data.whole import BOTH, whole
from kdctool.errors import DataFault, UsageFault
from kdctool.export import Check, Package, Probes, card, exporters, parity
from kdctool.files import read_json
from kdctool.progress import bar, say
from kdctool.registry import load_plugins
from kdctool.shards import index as shard_index
from kdctool.stages import run_folder
from kdctool.stages.evaluate import RESULTS, recipe_digest
from kdctool.stages.load import Opened, open_model
from kdctool.stages.whole_folder import appearing, refuse_existing, write_manifest

DEFAULT = Path("export")


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path
    model: str
    kind: str
    is_image: bool
    files: dict[str, int]
    """Name -> bytes."""
    checks: list[Check]
    origin: str
    """What the checks ran on."""


def run(
    source: Path | None = None,
    *,
    out: Path = DEFAULT,
    to: tuple[str, ...] | None = None,
    shards: Path | None = None,
    overwrite: bool = False,
    decoder: bool = False,
) -> Exported:
    """Export the model of `source` (default: the newest finished run) to `out` in every format of `to`.

    Without `to`: hf and onnx, of an image model timm. hf and timm write files of the same names: one of the two.

    Everything is written and compared beside `out`, which then appears by rename: an export that fails leaves
    nothing. With `shards` the comparison runs on their clips, without on seeded noise. `decoder` keeps the
    pre-training decoder in the safetensors file, so that pre-training can go on from the export.
    """
    opened = open_model(source or run_folder.newest(), images=True)
    refuse_existing(out, overwrite)
    load_plugins(opened.recipe.plugins)
    if to is None:
        to = ("timm",) if opened.is_image else ("hf", "onnx")
    if not to:
        raise UsageFault("no format to export to", f"--to {','.join(exporters.names())}")
    writers = {name: exporters.get(name).cls(exporters.options(name, {})) for name in dict.fromkeys(to)}
    _check_formats(opened, writers)
    if decoder and not opened.decoder:
        raise UsageFault(f"{opened.path} has no decoder to keep", "leave --decoder out")
    package = _package(opened, decoder)
    say(f"exporting {opened.said()}")
    parity.refuse_broken_weights(package)
    probes = _clips(opened, shards) if shards else parity.noise(opened.recipe.model)
    files: list[str] = []
    checks: list[Check] = []
    with appearing(out) as partial:
        with bar("exporting", 2 * len(writers), "steps") as progress:
            for name, writer in writers.items():
                files += writer.write(package, partial)
                progress.advance(note=f"{name} written")
            for name, writer in writers.items():
                checks += writer.check(package, partial, probes)
                progress.advance(note=f"{name} checked")
        parity.gate(checks)
        files += card.write(package, partial, files, checks, probes, tuple(writers))
        sizes = write_manifest(partial, files)
    return Exported(out, opened.said(), opened.kind, opened.is_image, sizes, checks, probes.origin)


def _check_formats(opened: Opened, writers: dict[str, Any]) -> None:
    """UsageFault for a format that cannot hold this kind of model."""
    kind = "image" if opened.is_image else "audio-visual"
    fitting = [name for name in exporters.names() if getattr(exporters.get(name).cls, "takes", kind) == kind]
    for name, writer in writers.items():
        takes = getattr(writer, "takes", kind)
        if takes != kind:
            article = "an" if kind[0] in "ai" else "a"
            raise UsageFault(
                f"--to {name} is for {takes} models, {opened.path} trained {article} {kind} one",
                f"--to one or more of {','.join(fitting)}",
            )
    owners: dict[str, str] = {}
    for name, writer in writers.items():
        for file in getattr(writer, "owns", ()):
            if (other := owners.setdefault(file, name)) != name:
                raise UsageFault(
                    f"--to {other} and --to {name} both write {file}", "export them to two folders, with --out"
                )


def _package(opened: Opened, decoder: bool = False) -> Package:
    found = (read_json(path) for path in sorted((opened.path / "eval").glob(f"*/{RESULTS}")))
    return Package(
        encoder=opened.encoder,
        classifier=opened.classifier,
        decoder=opened.decoder if decoder else {},
        recipe=opened.recipe,
        labels=opened.labels,
        multi_label=opened.multi_label,
        kind=opened.kind,
        step=opened.step,
        source=opened.path.resolve().name,
        source_sha256=opened.weights_sha256,
        recipe_digest=recipe_digest(opened),
        data_digest=opened.data_digest,
        clip=opened.clip,
        teachers=opened.teachers,
        unfinished=opened.unfinished,
        results=tuple(result for result in found if result["weights_sha256"] == opened.weights_sha256),
    )


def _clips(opened: Opened, shards: Path) -> Probes:
    """The first clips of the eval split as the model sees them."""
    index = shard_index.load(shards)
    split = index.split(opened.recipe.data.eval_split)
    if not len(split):
        raise DataFault(f"split '{split.name}' of {shards} is empty", "leave --shards out to check on seeded noise")
    parts = ("video",) if opened.is_image else BOTH
    first, _ = whole(split, parts)
    device = torch.device("cpu")
    batch = next(eval_batches(index, first, opened.recipe, device, parity.CLIPS, 0, labels=False, parts=parts))
    frame = batch["frame"]
    return Probes(
        batch.get("fbank", frame.new_zeros(0)),
        frame,
        f"{len(frame)} clips of split '{split.name}' of the shards {index.digest[:12]}",
    )
