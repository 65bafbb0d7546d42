"""Open a run or an export: the encoder, the classifier if there is one, and where the weights came from."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdctool import dist
from kdctool import recipe as recipes
from kdctool.errors import UsageFault, VerificationFault
from kdctool.files import read_json, sha256_file
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.image_classifier import ImageClassifier, image_model
from kdctool.models.layouts import HEADS, State, detect, layout
from kdctool.models.positions import fit_positions
from kdctool.models.weights import load_state, load_strict, shown, split_state
from kdctool.objectives import build as build_objective
from kdctool.progress import say
from kdctool.recipe import Model, Recipe
from kdctool.stages.read_weights import read_weights
from kdctool.stages.run_folder import RECIPE_FILE, RUN_FILE
from kdctool.train import checkpoint

EXPORT_FILE = "kdctool.json"


@dataclass(frozen=True)
class Opened:
    """A model ready to be evaluated or exported, in eval mode on the CPU."""

    encoder: Any
    """An AVEncoder, or a ViT of timm where `is_image`."""
    classifier: AVClassifier | ImageClassifier | None
    recipe: Recipe
    labels: tuple[str, ...]
    multi_label: bool
    weights_sha256: str
    step: int
    path: Path
    kind: str
    """pretrain or finetune."""
    data_digest: str
    decoder: State = field(default_factory=dict)
    """The pre-training decoder by released names, where the folder has one."""
    clip: dict[str, Any] = field(default_factory=dict)
    """How the training clips were extracted (window, frames, size); {} where the folder does not say."""
    average: str = ""
    """Which weights were averaged, in words; empty = the weights are those of `step`."""
    train_shards: str = ""
    """Where the training shards lay."""
    teachers: dict[str, Any] = field(default_factory=dict)
    """What the encoder was distilled from, as run.json has it: path, sha256 and licence by name."""

    @property
    def is_image(self) -> bool:
        """Whether the encoder is a plain ViT that sees frames alone."""
        return self.recipe.objective.student_sees_frames_alone

    def objective(self) -> Any:
        """Encoder and decoder as pre-training built them, in eval mode; UsageFault where there is no decoder."""
        if not self.decoder:
            raise UsageFault(
                f"{self.path} has no decoder: a finetuned model or an export without one cannot fill anything in",
                "name the pre-training run; kdctool export --decoder keeps it",
            )
        built = build_objective(self.recipe, self.encoder)
        load_strict(built.decoder, self.decoder, "decoder")
        return built.eval()

    def said(self) -> str:
        """One line: what is about to be scored."""
        average = f", {self.average}" if self.average else ""
        return f"{self.path} ({self.kind}), step {self.step}{average}, weights sha256 {self.weights_sha256[:12]}"


def open_model(path: Path, *, images: bool = False) -> Opened:
    """Open a run folder (its newest complete checkpoint) or an export folder.

    UsageFault for a run that trained an image model, unless the caller can do with `images`.
    """
    if (path / RUN_FILE).exists():
        return _open_run(path, images)
    if (path / EXPORT_FILE).exists():
        return _open_export(path)
    raise UsageFault(
        f"{path} is neither a run nor an export of kdctool" if path.exists() else f"{path} does not exist",
        "a run is a folder under runs/; an export is what kdctool export writes",
    )


@dataclass(frozen=True)
class Initial:
    """Weights to start a training from, by released names, made to fit a model's positions."""

    state: State
    fresh: dict[str, str]
    """Regular expression of names that these weights do not fill -> why."""
    notes: tuple[str, ...]


def initial_state(path: Path, model: Model) -> Initial:
    """Weights of a run, of an export or import, or of a file in a layout that its names tell (not timm's)."""
    if path.is_dir():
        source, state = _folder_state(path)
        _check_heads(source.heads, model.heads, f"{path} was trained with", f"--set model.heads={source.heads}")
        fitted, notes = fit_positions(state, model, source)
        return Initial(fitted, {}, tuple(notes))
    state = read_weights(path)
    name = detect(state)
    if not name:
        first = ", ".join(list(state)[:3])
        raise UsageFault(f"model.init = {path} holds no known layout of weights (it begins with {first})",
                         f"kdctool import {path} --as LAYOUT FOLDER, then model.init = FOLDER")  # fmt: skip
    known = layout(name)
    usual = known.sizes(state).model.get("heads", model.heads)
    _tell(f"{path} looks like {name}")
    if known.sizes(state).model["width"] in HEADS:
        fix = f"--set model.heads={usual}; or kdctool import {path} with the other number, and start from that"
        _check_heads(usual, model.heads, f"published models as wide as {path} have", fix)
    mapped = known.translate(state, model)
    fitted, notes = fit_positions(mapped.state, model)
    left = [f"{len(mapped.unused)} tensors unused: {shown(list(mapped.unused))}"] if mapped.unused else []
    return Initial(fitted, mapped.fresh, (*mapped.notes, *left, *notes))


def weights_digest(path: Path) -> str:
    """sha256 that tells the weights of a run, an export or a file apart from others."""
    if not path.is_dir():
        if not path.is_file():
            raise UsageFault(f"there are no weights at {path}", "model.init and --init name a run, an export or a file")
        return sha256_file(path)
    if (path / RUN_FILE).exists():
        return checkpoint.weights_sha256(_newest(path))
    if (path / EXPORT_FILE).exists():
        return str(read_json(path / EXPORT_FILE)["weights_sha256"])
    raise UsageFault(f"model.init = {path} holds no weights", "name a run, an export, an import or a weights file")


def start_from(path: Path, model: Model, encoder: AVEncoder, decoder: nn.Module | None) -> None:
    """Load what `model.init` names into fresh modules; each is filled whole, kept as it is and told, or an error."""
    initial = initial_state(path, model)
    _tell(*initial.notes)
    encoder_state, decoder_state, _ = split_state({name: value.float() for name, value in initial.state.items()})
    load_strict(encoder, _completed(encoder_state, encoder, initial.fresh), "encoder")
    if decoder is None:
        return
    if decoder_state:
        load_strict(decoder, _completed(decoder_state, decoder, initial.fresh), "decoder")
    else:
        _tell(f"{path} has no decoder, so it starts random")


def _tell(*notes: str) -> None:
    for note in notes if dist.is_main() else ():
        say(f"model.init: {note}")


def _completed(state: State, module: nn.Module, fresh: dict[str, str]) -> State:
    """`state` with the module's own values of what a layout never fills."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and any(re.fullmatch(pattern, name) for pattern in fresh)]
    return {**state, **{name: own[name] for name in missing}}


def _folder_state(path: Path) -> tuple[Model, State]:
    if (path / RUN_FILE).exists():
        parts = Parts.of_run(checkpoint.weights(_newest(path)))
        return recipes.load(path / RECIPE_FILE).model, {**parts.encoder, **parts.decoder}
    if (path / EXPORT_FILE).exists():
        about = read_json(path / EXPORT_FILE)
        encoder, decoder, _ = split_state(_exported_state(path, about))
        return recipes.validate(about["recipe"], origin=str(path / EXPORT_FILE)).model, {**encoder, **decoder}
    raise UsageFault(f"model.init = {path} holds no weights", "name a run, an export, an import or a weights file")


def _check_heads(theirs: int, ours: int, who: str, fix: str) -> None:
    if theirs != ours:
        raise UsageFault(
            f"model.heads = {ours}, but {who} {theirs}: the shapes of attn.qkv are the same, what they mean is not", fix
        )


def _newest(run: Path) -> checkpoint.Checkpoint:
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise UsageFault(f"{run} has no complete checkpoint", "type its command again: it starts where it can")
    return found


def _open_run(run: Path, images: bool) -> Opened:
    found = _newest(run)
    about = read_json(run / RUN_FILE)
    recipe = recipes.load(run / RECIPE_FILE)
    if recipe.objective.student_sees_frames_alone and not images:
        raise UsageFault(
            f"{run} trained an image model ({recipe.objective.distill.student.arch}), not an audio-visual encoder",
            "kdctool finetune, eval and export --to timm take it; so does objective.distill.teachers.NAME.path",
        )
    labels = tuple(about.get("labels", []))
    return _build(recipe, about["kind"], labels, Parts.of_run(checkpoint.weights(found))).opened(
        weights_sha256=checkpoint.weights_sha256(found),
        average=found.said(),
        step=found.step,
        path=run,
        multi_label=bool(about.get("multi_label", False)),
        data_digest=about["data_digest"],
        clip=about.get("clip", {}),
        train_shards=about.get("shards", ""),
        teachers=about.get("teachers", {}),
    )


def _open_export(folder: Path) -> Opened:
    about = read_json(folder / EXPORT_FILE)
    parts = Parts.of_export(_exported_state(folder, about))
    recipe = recipes.validate(about["recipe"], origin=str(folder / EXPORT_FILE))
    return _build(recipe, about["kind"], tuple(about["labels"]), parts).opened(
        weights_sha256=about["weights_sha256"],
        step=about["step"],
        path=folder,
        multi_label=about["multi_label"],
        data_digest=about["data_digest"],
        clip=about.get("clip", {}),
    )


def _exported_state(folder: Path, about: dict[str, Any]) -> State:
    path = folder / "model.safetensors"
    if sha256_file(path) != about["weights_sha256"]:
        raise VerificationFault(f"{path} does not match the sha256 in {EXPORT_FILE}", "export again, or fetch it again")
    return load_state(path)


@dataclass(frozen=True)
class Parts:
    """The tensors of a model by what they belong to."""

    encoder: State
    decoder: State
    head: State

    @classmethod
    def of_run(cls, state: State) -> "Parts":
        """Of a checkpoint, which holds an objective: encoder.*, decoder.* or classifier.*.

        What else an objective keeps (a teacher, a temperature) is its own: the model is whole without it.
        """
        prefixes = ("encoder.", "classifier.encoder."), ("decoder.",), ("classifier.mlp_head.",)
        return cls(*(_beneath(state, names) for names in prefixes))

    @classmethod
    def of_export(cls, state: State) -> "Parts":
        return cls(*split_state(state))


def _beneath(state: State, prefixes: tuple[str, ...]) -> State:
    return {
        name.removeprefix(prefix): value
        for prefix in prefixes
        for name, value in state.items()
        if name.startswith(prefix)
    }


@dataclass(frozen=True)
class _Built:
    encoder: Any
    classifier: AVClassifier | ImageClassifier | None
    recipe: Recipe
    labels: tuple[str, ...]
    kind: str
    decoder: State

    def opened(self, **rest: object) -> Opened:
        known = {"kind": self.kind, "decoder": self.decoder, **rest}
        return Opened(self.encoder, self.classifier, self.recipe, self.labels, **known)  # type: ignore[arg-type]


def _build(recipe: Recipe, kind: str, labels: tuple[str, ...], parts: Parts) -> _Built:
    """The model whose weights are `parts`: a tensor too many is an error like one too few."""
    if recipe.objective.student_sees_frames_alone:
        vit, head = image_model(recipe, len(labels), parts.encoder, parts.head)
        return _Built(vit, head, recipe, labels, kind, {})
    with torch.device("meta"):  # No memory and no random draws for weights that are replaced at once.
        encoder = AVEncoder(recipe.model)
        of = recipe.finetune
        classifier = AVClassifier(encoder, len(labels), of.modality, of.head) if parts.head else None
    load_strict(encoder, parts.encoder, "encoder", assign=True)
    if classifier is not None:
        load_strict(classifier.mlp_head, parts.head, "head", assign=True)
        classifier.eval()
    encoder.eval()
    return _Built(encoder, classifier, recipe, labels, kind, parts.decoder)
