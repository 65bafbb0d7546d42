"""A tiny recipe, model and batch for every test of this room."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdctool.batch import Batch
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.teachers import About, Seen, Teacher
from kdctool.objectives import build
from kdctool.recipe import Recipe, validate

MODEL = {
    "audio_frames": 32, "mel_bins": 16, "image_size": 16, "audio_patch": 8, "video_patch": 4,
    "width": 16, "heads": 2, "depth": 1,
}  # fmt: skip
DECODER = {"width": 8, "heads": 2, "depth": 1}
DISTILL = {
    "teachers": {"c": {"path": "opened by the test"}, "m": {"path": "opened by the test"}},
    "mask": {"policy": "random", "keep": 0.5, "floor": 1},
    "losses": [{"kind": "feature", "teacher": "c"}, {"kind": "relation", "teacher": "m", "teacher_layers": [1]}],
}
NEEDS: dict[str, dict[str, Any]] = {"hybrid_distill": {"objective": {"distill": DISTILL}}}
"""What an objective cannot do without."""


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def random_teacher(recipe: Recipe) -> Teacher:
    """An audio-visual encoder of the recipe's own sizes that has learnt nothing."""
    seen = Seen.of(recipe.data)
    return Teacher(AVEncoder(recipe.model), About("random", "", "", ""), seen, seen, fbank=True)


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A tiny recipe of the objective called `name`; further sections by keyword."""

    def make(name: str, **changes: Any) -> Recipe:
        base = {"name": "tiny", "model": MODEL, "objective": {"name": name, "decoder": DECODER}}
        return validate(merged(merged(base, NEEDS.get(name, {})), changes))

    return make


@pytest.fixture
def make_objective(make_recipe: Callable[..., Recipe]) -> Callable[..., Any]:
    """The objective of `make_recipe`, always with the same weights."""

    def make(name: str, **changes: Any) -> Any:
        recipe = make_recipe(name, **changes)
        torch.manual_seed(0)
        taught = {teacher: random_teacher(recipe) for teacher in recipe.objective.distill.used()}
        torch.manual_seed(0)
        return build(recipe, AVEncoder(recipe.model), **({"teachers": taught} if taught else {}))

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Clips `rows` of one fixed global batch."""

    def make(rows: list[int]) -> Batch:
        rng = torch.Generator().manual_seed(1)
        fbank, frame = torch.randn(8, 32, 16, generator=rng), torch.randn(8, 3, 16, 16, generator=rng)
        place = torch.tensor(rows)
        return {"clip": place + 100, "row": place, "fbank": fbank[place], "frame": frame[place]}

    return make
