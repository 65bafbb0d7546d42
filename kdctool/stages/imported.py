"""What an import is asked for and what it leaves: choices, the account of every tensor, and the folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from kdctool import __version__
from kdctool.errors import UsageFault, VerificationFault
from kdctool.export import Package, exporters
from kdctool.export.about import WEIGHTS
from kdctool.export.card import PREPROCESSOR, RECIPE, preprocessor
from kdctool.files import write_bytes, write_json
from kdctool.models.layouts import State
from kdctool.recipe import Recipe, to_toml
from kdctool.shards.labels import read_class_names, read_label_list
from kdctool.stages.whole_folder import write_manifest

REPORT = "import.json"
AUDIOSET_CLASSES = 527
"""A head of this size answers AudioSet's question: several labels per clip."""


@dataclass(frozen=True)
class Choices:
    """What a file of weights does not say about itself."""

    tower: str = "both"
    """Which tower a single vision transformer becomes: audio, video or both; image: it stays the model it is."""
    timm_model: str = ""
    labels: Path | None = None
    """Label names of a head, one a line or as class_labels_indices.csv; without it those that a folder of timm's has
    beside the weights, else numbers."""
    multi_label: bool | None = None
    modality: Literal["audio", "video", "both"] = "both"
    """What a finetuned model was finetuned on."""
    recipe: Recipe | None = None
    """Whose [model] the weights shall fit; without it the weights' own sizes."""
    overrides: tuple[str, ...] = ()
    decoder: bool = True
    """Keep the decoder, where the file has one."""


@dataclass(frozen=True)
class Imported:
    """What became of a file of weights."""

    folder: Path
    source: Path
    sha256: str
    recipe: Recipe
    kind: str
    used: dict[str, tuple[str, ...]]
    """Name in the file -> names in the model."""
    unused: dict[str, str]
    """Name in the file -> why."""
    fresh: dict[str, str]
    """Name in the model that the file does not fill -> why."""
    notes: tuple[str, ...]
    licence: str
    parameters: int
    reference_trained: int
    """As published tables count: all but the positional tables."""
    labels: tuple[str, ...]


def label_names(choices: Choices, classes: int, beside: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of a head's `classes`: the file's that was given, else those found `beside` the weights, else numbers."""
    if choices.labels is None and len(beside) == classes:
        return beside
    if choices.labels is None:
        digits = len(str(classes - 1))
        return tuple(f"class-{number:0{digits}d}" for number in range(classes))
    with open(choices.labels, encoding="utf-8", errors="replace") as file:
        is_table = "display_name" in file.readline()
    names = read_class_names(choices.labels).names if is_table else read_label_list(choices.labels)
    if len(names) != classes:
        raise UsageFault(
            f"{choices.labels} names {len(names)} labels, the head of the weights has {classes}",
            "give the label list the weights were finetuned with, in its order",
        )
    return names


def multi_label(choices: Choices, classes: int) -> bool:
    """Whether a clip may have several labels, where nobody said so."""
    return classes == AUDIOSET_CLASSES if choices.multi_label is None else choices.multi_label


def write(folder: Path, package: Package, done: Imported, as_layout: str, state: State) -> None:
    """Fill the folder of an import; `state` is what must lie in its weights, bit for bit."""
    files = exporters.get("hf").cls(None).write(package, folder)
    with safe_open(folder / WEIGHTS, framework="pt") as written:  # Tensor by tensor: a second copy would be a GB.
        if set(written.keys()) != set(state):
            raise VerificationFault(f"{WEIGHTS} does not hold the tensors that were written", "check the disk")
        for name, value in state.items():
            if not torch.equal(written.get_tensor(name), value):
                raise VerificationFault(f"{WEIGHTS}: {name} reads back with other bits", "check the disk")
    write_json(folder / PREPROCESSOR, preprocessor(package))
    write_bytes(folder / RECIPE, to_toml(package.recipe).encode())
    write_json(folder / REPORT, report(done, as_layout))
    write_bytes(folder / "README.md", _card(done, as_layout).encode())
    write_manifest(folder, [*files, PREPROCESSOR, RECIPE, REPORT, "README.md"])


def report(done: Imported, as_layout: str) -> dict[str, Any]:
    """import.json: every name of the file and of the model, and what became of it."""
    return {
        "kdctool": __version__,
        "source": done.source.name,
        "source_sha256": done.sha256,
        "layout": as_layout,
        "kind": done.kind,
        "used": {name: list(targets) for name, targets in done.used.items()},
        "unused": done.unused,
        "fresh": done.fresh,
        "notes": list(done.notes),
        "parameters": done.parameters,
        "parameters_trained_as_published": done.reference_trained,
        "licence": done.licence,
    }


def _card(done: Imported, as_layout: str) -> str:
    model = done.recipe.model
    student = done.recipe.objective.distill.student
    what = (
        f"width {model.width}, {model.depth} blocks per tower, {model.joint_depth} "
        f"joint; sound of {model.audio_frames} x {model.mel_bins}, frames of {model.image_size} x {model.image_size}."
    )
    if done.recipe.objective.student_sees_frames_alone:
        what = f"timm's {student.arch} for frames of {model.image_size} x {model.image_size}."
    lines = [
        f"# {done.recipe.name}",
        f"Imported by kdctool {__version__} from `{done.source.name}` (sha256 {done.sha256}), layout `{as_layout}`.",
        f"{done.parameters:,} parameters, {what}",
        f"{len(done.used)} tensors of the file used, {len(done.unused)} unused, {len(done.fresh)} tensors of the model "
        f"fresh: `{REPORT}` names them all.",
        "\n".join(f"- {note}" for note in done.notes),
        f"Licence: {done.licence}.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"
