"""Turn published weights into a folder that `model.init`, finetune, eval and export open. All of it or nothing."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import nn

from kdctool import __version__
from kdctool import recipe as recipes
from kdctool.errors import UsageFault, VerificationFault
from kdctool.export import Package, exporters
from kdctool.export.card import PREPROCESSOR, RECIPE, preprocessor
from kdctool.export.huggingface import WEIGHTS
from kdctool.files import digest, sha256_file, write_bytes, write_json
from kdctool.models.assemble import Assembled, assemble
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.layouts import HEADS, Layout, Mapped, Sizes, State, layout
from kdctool.models.positions import TABLES, fit_positions
from kdctool.models.weights import load_strict, merge_state, split_state
from kdctool.objectives.reconstruction import Decoder
from kdctool.progress import say
from kdctool.recipe import Recipe, result_keys, to_toml
from kdctool.seeds import fold
from kdctool.shards.labels import read_class_names, read_label_list
from kdctool.stages.read_weights import read_weights
from kdctool.stages.run_folder import SECTIONS
from kdctool.stages.whole_folder import appearing, refuse_existing, write_manifest

REPORT = "import.json"
AUDIOSET_CLASSES = 527
"""A head of this size answers AudioSet's question: several labels per clip."""


@dataclass(frozen=True)
class Choices:
    """What a file of weights does not say about itself."""

    tower: str = "both"
    """Which tower a single vision transformer becomes: audio, video or both."""
    timm_model: str = ""
    labels: Path | None = None
    """Label names of a head, one a line or as class_labels_indices.csv; without it they are numbered."""
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


def run(
    weights: Path, as_layout: str, out: Path, choices: Choices | None = None, *, overwrite: bool = False
) -> Imported:
    """Import `weights`, stored as `as_layout`, to the folder `out`, which appears when all of it is right.

    UsageFault when a name or shape does not fit, VerificationFault when a value is not finite or the file is not
    sound.
    """
    choices = choices or Choices()
    refuse_existing(out, overwrite)
    how = layout(as_layout, timm_model=choices.timm_model, tower=choices.tower)
    if not weights.is_file():
        raise UsageFault(f"there are no weights at {weights}", "give a .safetensors, .pth or .pt file")
    sha256 = sha256_file(weights)
    say(f"importing {weights}, sha256 {sha256[:12]}, as {as_layout}")
    state = read_weights(weights)
    sizes = how.sizes(state)
    recipe = _recipe(how, sizes, weights, out, choices)
    mapped, position_notes = _translate(how, state, recipe, choices)
    head = _labels(choices, sizes.classes) if sizes.classes else ()
    encoder, decoder, classifier = _modules(recipe, mapped, len(head))
    wanted = {
        name: value.shape for name, value in merge_state(encoder, decoder, classifier and classifier.mlp_head).items()
    }
    whole = assemble(mapped, state, wanted, lambda: _initial(recipe, decoder is not None))
    used, unused = mapped.used, mapped.unused
    del state, mapped  # A second copy of the weights would be most of a GB.
    encoder_state, decoder_state, head_state = split_state(whole.state)
    load_strict(encoder, encoder_state, "encoder", assign=True)
    if classifier is not None:
        load_strict(classifier.mlp_head, head_state, "head", assign=True)
    kind = "finetune" if classifier is not None else "pretrain"
    package = Package(
        encoder=encoder,
        classifier=classifier,
        recipe=recipe,
        labels=head,
        multi_label=_multi_label(choices, len(head)),
        kind=kind,
        step=0,
        source=weights.name,
        source_sha256=sha256,
        recipe_digest=digest(result_keys(recipe, SECTIONS[kind])),
        data_digest="",
        decoder=decoder_state,
    )
    done = Imported(
        out, weights, sha256, recipe, kind, used, unused, whole.fresh,
        (*whole.notes, *position_notes, *_heads_note(sizes, recipe)), how.licence,
        sum(value.numel() for value in whole.state.values()),
        sum(value.numel() for name, value in whole.state.items() if name not in TABLES), head,
    )  # fmt: skip
    with appearing(out) as folder:
        _write(folder, package, done, as_layout, whole)
    return done


def _translate(how: Layout, state: State, recipe: Recipe, choices: Choices) -> tuple[Mapped, list[str]]:
    """The file's tensors under our names, positions fitted, the decoder left out where that is asked for."""
    mapped = how.translate(state, recipe.model)
    kept, unused = mapped.state, dict(mapped.unused)
    used = mapped.used
    if not choices.decoder:
        away = set(split_state(kept)[1])
        kept = {name: value for name, value in kept.items() if name not in away}
        used = {name: left for name, targets in used.items() if (left := tuple(t for t in targets if t not in away))}
        unused |= {name: "--no-decoder" for name in mapped.used if name not in used}
    fitted, notes = fit_positions(kept, recipe.model)
    return Mapped(fitted, used, unused, mapped.fresh, mapped.notes), notes


def _recipe(how: Layout, sizes: Sizes, weights: Path, out: Path, choices: Choices) -> Recipe:
    """The given recipe, or one whose model has the sizes of the weights; overrides on top of either."""
    if choices.recipe is not None:
        tree = choices.recipe.model_dump(mode="json")
    else:
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", weights.stem).strip("-") or "imported"
        tree = {"name": name, "objective": {"name": how.preset}, "model": dict(sizes.model)}
        tree["objective"] |= {"decoder": sizes.decoder} if sizes.decoder else {}
    tree["model"]["init"] = str(out)  # Where its own weights will lie: the recipe in the folder goes on from them.
    if sizes.classes:
        tree["finetune"] = {**tree.get("finetune", {}), "modality": choices.modality, "head": "linear"}
    recipe = recipes.validate(tree, list(choices.overrides), origin=str(weights))
    told = any(override.partition("=")[0].strip() == "model.heads" for override in choices.overrides)
    heads, width = sizes.model.get("heads"), sizes.model["width"]
    known = sizes.heads_are_sure or (width in HEADS and not told)
    if known and heads != recipe.model.heads:
        raise UsageFault(
            f"model.heads = {recipe.model.heads}, but these weights have {heads}: the shapes of attn.qkv are the same, "
            "what they mean is not",
            f"set model.heads = {heads}"
            + ("" if sizes.heads_are_sure else "; --set model.heads=N insists, for weights of your own"),
        )
    return recipe


def _heads_note(sizes: Sizes, recipe: Recipe) -> tuple[str, ...]:
    if sizes.heads_are_sure or (sizes.model.get("heads") == recipe.model.heads and sizes.model["width"] in HEADS):
        return ()
    return (f"shapes do not show attention heads: {recipe.model.heads} are taken",)


def _labels(choices: Choices, classes: int) -> tuple[str, ...]:
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


def _multi_label(choices: Choices, classes: int) -> bool:
    return classes == AUDIOSET_CLASSES if choices.multi_label is None else choices.multi_label


def _modules(recipe: Recipe, mapped: Mapped, classes: int) -> tuple[AVEncoder, nn.Module | None, AVClassifier | None]:
    """The model without memory: its names and shapes are what the file must fill."""
    with torch.device("meta"):
        encoder = AVEncoder(recipe.model)
        has_decoder = bool(split_state(mapped.state)[1]) and not classes
        decoder = Decoder(recipe.model, recipe.objective.decoder) if has_decoder else None
        classifier = AVClassifier(encoder, classes, recipe.finetune.modality) if classes else None
    return encoder, decoder, classifier


def _initial(recipe: Recipe, decoder: bool) -> State:
    """Values of a fresh model; the same for every import."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(0, "import"))
        encoder = AVEncoder(recipe.model)
        return merge_state(encoder, Decoder(recipe.model, recipe.objective.decoder) if decoder else None)


def _write(folder: Path, package: Package, done: Imported, as_layout: str, whole: Assembled) -> None:
    files = exporters.get("hf").cls(None).write(package, folder)
    with safe_open(folder / WEIGHTS, framework="pt") as written:  # Tensor by tensor: a second copy would be a GB.
        if set(written.keys()) != set(whole.state):
            raise VerificationFault(f"{WEIGHTS} does not hold the tensors that were written", "check the disk")
        for name, value in whole.state.items():
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
    lines = [
        f"# {done.recipe.name}",
        f"Imported by kdctool {__version__} from `{done.source.name}` (sha256 {done.sha256}), layout `{as_layout}`.",
        f"{done.parameters:,} parameters, width {model.width}, {model.depth} blocks per tower, {model.joint_depth} "
        f"joint; sound of {model.audio_frames} x {model.mel_bins}, frames of {model.image_size} x {model.image_size}.",
        f"{len(done.used)} tensors of the file used, {len(done.unused)} unused, {len(done.fresh)} tensors of the model "
        f"fresh: `{REPORT}` names them all.",
        "\n".join(f"- {note}" for note in done.notes),
        f"Licence: {done.licence}.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"
