"""Open a run or an export: the encoder, the classifier if there is one, and where the weights came from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdctool import recipe as recipes
from kdctool.errors import UsageFault, VerificationFault
from kdctool.files import read_json, sha256_file
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.weights import load_encoder, load_state
from kdctool.recipe import Recipe
from kdctool.stages.run_folder import RECIPE_FILE, RUN_FILE
from kdctool.train import checkpoint

EXPORT_FILE = "kdctool.json"
ENCODER, CLASSIFIER = "encoder.", "classifier."


@dataclass(frozen=True)
class Opened:
    """A model ready to be evaluated or exported, in eval mode on the CPU."""

    encoder: AVEncoder
    classifier: AVClassifier | None
    recipe: Recipe
    labels: tuple[str, ...]
    multi_label: bool
    weights_sha256: str
    step: int
    path: Path
    kind: str
    """pretrain or finetune."""
    data_digest: str

    def said(self) -> str:
        """One line: what is about to be scored."""
        return f"{self.path} ({self.kind}), step {self.step}, weights sha256 {self.weights_sha256[:12]}"


def open_model(path: Path) -> Opened:
    """Open a run folder (its newest complete checkpoint) or an export folder."""
    if (path / RUN_FILE).exists():
        return _open_run(path)
    if (path / EXPORT_FILE).exists():
        return _open_export(path)
    raise UsageFault(
        f"{path} is neither a run nor an export of kdctool" if path.exists() else f"{path} does not exist",
        "a run is a folder under runs/; an export is what kdctool export writes",
    )


def initial_state(path: Path) -> dict[str, Tensor]:
    """Weights to start from, by released names: a run, an export, a .safetensors or a published .pth file."""
    if not path.is_dir():
        return load_state(path)
    if (path / RUN_FILE).exists():
        return _released_names(load_state(_newest(path).folder / checkpoint.MODEL))
    if (path / "model.safetensors").exists():
        return load_state(path / "model.safetensors")
    raise UsageFault(f"model.init = {path} holds no weights", "name a run, an export or a weights file")


def _newest(run: Path) -> checkpoint.Checkpoint:
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise UsageFault(f"{run} has no complete checkpoint", "type its command again: it starts where it can")
    return found


def _open_run(run: Path) -> Opened:
    found = _newest(run)
    about = read_json(run / RUN_FILE)
    recipe = recipes.load(run / RECIPE_FILE)
    path = found.folder / checkpoint.MODEL
    state = _released_names(load_state(path))
    labels = tuple(about.get("labels", []))
    return _build(recipe, about["kind"], labels, state).opened(
        weights_sha256=sha256_file(path),
        step=found.step,
        path=run,
        multi_label=bool(about.get("multi_label", False)),
        data_digest=about["data_digest"],
    )


def _open_export(folder: Path) -> Opened:
    about = read_json(folder / EXPORT_FILE)
    path = folder / "model.safetensors"
    found = sha256_file(path)
    if found != about["weights_sha256"]:
        raise VerificationFault(f"{path} does not match the sha256 in {EXPORT_FILE}", "export again, or fetch it again")
    recipe = recipes.validate(about["recipe"], origin=str(folder / EXPORT_FILE))
    return _build(recipe, about["kind"], tuple(about["labels"]), load_state(path)).opened(
        weights_sha256=found,
        step=about["step"],
        path=folder,
        multi_label=about["multi_label"],
        data_digest=about["data_digest"],
    )


@dataclass(frozen=True)
class _Built:
    encoder: AVEncoder
    classifier: AVClassifier | None
    recipe: Recipe
    labels: tuple[str, ...]
    kind: str

    def opened(self, **rest: object) -> Opened:
        return Opened(self.encoder, self.classifier, self.recipe, self.labels, kind=self.kind, **rest)  # type: ignore[arg-type]


def _build(recipe: Recipe, kind: str, labels: tuple[str, ...], state: dict[str, Tensor]) -> _Built:
    with torch.random.fork_rng(devices=[]):
        encoder = AVEncoder(recipe.model)
        head = {name: value for name, value in state.items() if name.startswith("mlp_head.")}
        classifier = AVClassifier(encoder, len(labels), recipe.finetune.modality) if head else None
    encoder_keys = set(encoder.state_dict())
    load_encoder(encoder, {name: value for name, value in state.items() if name in encoder_keys})
    if classifier is not None:
        classifier.mlp_head.load_state_dict({name.removeprefix("mlp_head."): value for name, value in head.items()})
        classifier.eval()
    encoder.eval()
    return _Built(encoder, classifier, recipe, labels, kind)


def _released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's names (encoder.X, decoder.X, classifier.encoder.X, classifier.mlp_head.X) without our modules."""
    names = {}
    for name, value in state.items():
        for prefix in ("classifier.", "encoder.", "decoder."):
            name = name.removeprefix(prefix)
        names[name] = value
    return names
