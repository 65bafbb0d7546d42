"""What leaves the house: one file per format, found by name, each checked against the model it was made from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdctool.recipe import Recipe
from kdctool.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from kdctool.models.classifier import AVClassifier
    from kdctool.models.image_classifier import ImageClassifier

exporters = Registry("exporter", __name__)


@dataclass(frozen=True)
class Package:
    """A model in eval mode on the CPU, and everything that must be known of it where the run folder is not."""

    encoder: Any
    """An AVEncoder, or a ViT of timm where `is_image`."""
    classifier: "AVClassifier | ImageClassifier | None"
    recipe: Recipe
    labels: tuple[str, ...]
    multi_label: bool
    kind: str
    """pretrain or finetune."""
    step: int
    source: str
    """Name of the run or export it comes from."""
    source_sha256: str
    """Of the weights file there; `results.json` files carry the same."""
    recipe_digest: str
    data_digest: str
    results: tuple[dict[str, Any], ...] = ()
    """Contents of the `results.json` files of exactly these weights."""
    decoder: "dict[str, Tensor]" = field(default_factory=dict)
    """The pre-training decoder by released names, where it is to be kept."""
    clip: dict[str, Any] = field(default_factory=dict)
    """How the training clips were extracted; {} where nobody knows."""
    teachers: dict[str, Any] = field(default_factory=dict)
    """What the encoder was distilled from: path, sha256 and licence by name."""
    unfinished: str = ""
    """`unfinished: step 26 of 80`; empty of weights that were trained to their end."""

    @property
    def is_image(self) -> bool:
        """Whether the encoder is a plain ViT that sees frames alone."""
        return self.recipe.objective.student_sees_frames_alone


@dataclass(frozen=True)
class Probes:
    """Normalised inputs on which an export must agree with the model."""

    fbank: "Tensor"
    """(M, T, F)."""
    frame: "Tensor"
    """(M, C, H, W)."""
    origin: str
    """Where they come from, for the reader."""


@dataclass(frozen=True)
class Check:
    """The largest difference between an exported file and the model, and what is allowed."""

    name: str
    difference: float
    limit: float


class Exporter(Protocol):
    """A format. `takes` says of which models, "image" or "audio-visual"; one that does not say takes both.

    `owns`, where it has any, are names of files that no other format of the same folder may write too. `write`
    returns the names of the files it made in `folder`; `check` reads them back.
    """

    def write(self, package: Package, folder: Path) -> list[str]: ...

    def check(self, package: Package, folder: Path, probes: Probes) -> list[Check]: ...
