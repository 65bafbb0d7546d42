"""Open a run or an export: the encoder, the classifier if there is one, and where the weights came from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdctool import recipe as recipes
from kdctool.errors import UsageFault, VerificationFault, quoted
from kdctool.export.about import ABOUT, NORM, WEIGHTS
from kdctool.files import read_json, sha256_file
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.image_classifier import ImageClassifier, image_model, of_timm
from kdctool.models.layouts import State
from kdctool.models.weights import load_state, load_strict, split_state
from kdctool.objectives import build as build_objective
from kdctool.recipe import Recipe
from kdctool.stages.foreign import no_model
from kdctool.stages.run_folder import RECIPE_FILE, RUN_FILE, read_about
from kdctool.stages.runs import unfinished
from kdctool.train import checkpoint

EXPORT_FILE = ABOUT


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

    unfinished: str = ""
    """`unfinished: step 26 of 80`; empty of weights that were trained to their end."""

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
        step = self.unfinished or f"step {self.step}"
        return f"{self.path} ({self.kind}), {step}{average}, weights sha256 {self.weights_sha256[:12]}"


def open_model(path: Path, *, images: bool = False) -> Opened:
    """Open a run folder (its newest complete checkpoint) or an export folder.

    UsageFault for an image model, unless the caller can do with `images`.
    """
    if (path / RUN_FILE).exists():
        return _open_run(path, images)
    if (path / EXPORT_FILE).exists():
        return _open_export(path, images)
    raise no_model(path)


def newest_checkpoint(run: Path) -> checkpoint.Checkpoint:
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise UsageFault(
            f"{run} has no complete checkpoint", f"kdctool runs show {quoted(run)} names the command that goes on"
        )
    return found


def _open_run(run: Path, images: bool) -> Opened:
    found = newest_checkpoint(run)
    about = read_about(run)
    recipe = recipes.load(run / RECIPE_FILE)
    _check_kind(run, recipe, images)
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
        unfinished=unfinished(run, found.step),
    )


def _open_export(folder: Path, images: bool) -> Opened:
    about = _about_export(folder)
    recipe = recipes.validate(about["recipe"], origin=str(folder / EXPORT_FILE))
    _check_kind(folder, recipe, images)
    return _build(recipe, about["kind"], tuple(about["labels"]), Parts.of_export(folder, about)).opened(
        weights_sha256=about["weights_sha256"],
        step=about["step"],
        path=folder,
        multi_label=about["multi_label"],
        data_digest=about["data_digest"],
        clip=about.get("clip", {}),
        teachers=about.get("teachers", {}),
        unfinished=about.get("unfinished", ""),
    )


def _about_export(folder: Path) -> dict[str, Any]:
    path = folder / EXPORT_FILE
    keys = {"recipe", "kind", "labels", "weights_sha256", "step", "multi_label", "data_digest"}
    try:
        found = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise VerificationFault(f"{path} is damaged: {error}", "export again, or fetch it again") from error
    if lacking := keys - found.keys():
        raise VerificationFault(f"{path} lacks {', '.join(sorted(lacking))}", "export again, or fetch it again")
    return found


def _check_kind(path: Path, recipe: Recipe, images: bool) -> None:
    if recipe.objective.student_sees_frames_alone and not images:
        raise UsageFault(
            f"{path} is an image model ({recipe.objective.distill.student.arch}), not an audio-visual encoder",
            "kdctool finetune, eval, embed and export take it; so does objective.distill.teachers.NAME.path",
        )


def _sound(path: Path, sha256: str) -> State:
    """Tensors of a file of an export; VerificationFault unless it is the file that was written."""
    if sha256_file(path) != sha256:
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
    def of_export(cls, folder: Path, about: dict[str, Any]) -> "Parts":
        """Of an export, whose kdctool.json is `about`."""
        state = _sound(folder / WEIGHTS, about["weights_sha256"])
        if about.get("names") != "timm":
            return cls(*split_state(state))
        encoder, head = of_timm(state)
        norm = _sound(folder / NORM, about["norm_sha256"]) if "norm_sha256" in about else {}
        return cls({**encoder, **norm}, {}, head)


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
