"""docs/extend.md, as it stands: its files are written, its recipes loaded, and two steps trained with each."""

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.masking import build, maskings
from kdctool.masking.views import draw
from kdctool.objectives import objectives
from kdctool.recipe.write import flat
from kdctool.stages import pretrain

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
RECIPES = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files on the import path; what they register is forgotten afterwards."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (objectives, maskings):
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    return tmp_path


def changes(tree: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in flat(tree)]


def curve(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_page_has_two_files_under_sixty_lines_and_a_recipe_for_each() -> None:
    assert set(FILES) == {"lab_siglip.py", "lab_block.py"}
    assert all(len(text.splitlines()) < 60 for text in FILES.values())
    assert [tree["plugins"] for tree in RECIPES] == [["lab_siglip"], ["lab_block"]]


@pytest.mark.parametrize("tree", RECIPES, ids=lambda tree: tree["plugins"][0])
def test_two_steps_train_and_micro_batches_change_nothing(
    tree: dict[str, Any], written: Path, tiny_recipe: Callable[..., Path]
) -> None:
    steps = ("training.global_batch=12", "training.epochs=1", "optim.eps=1e-3")
    for name, micro in (("whole", 0), ("split", 4)):
        path = tiny_recipe(*changes(tree), *steps, f"training.micro_batch={micro}")
        done = pretrain.run(recipes.load(path), out=written / name, device_name="cpu")
        assert done.fitted is not None
        assert done.fitted.step == 2
    assert curve(written / "whole") == pytest.approx(curve(written / "split"), rel=1e-5)
    assert len(set(curve(written / "whole"))) == 2


def test_the_pages_mask_removes_its_rectangle(written: Path) -> None:
    importlib.import_module("lab_block")
    views = draw(build("block", {"side": 0.5}), 20, (6, 8), 0.5, 1, True, torch.Generator().manual_seed(0))
    removed = views.mask[0].reshape(20, 6, 8)
    whole = removed.unfold(1, 3, 1).unfold(2, 4, 1).flatten(3).all(dim=3)  # every 3 x 4 rectangle of every clip
    assert whole.flatten(1).any(dim=1).all()


def test_a_wrong_option_of_the_pages_objective_is_refused(written: Path, tiny_recipe: Callable[..., Path]) -> None:
    path = tiny_recipe(*changes(RECIPES[0]), "objective.options={ scael = 1.0 }")
    with pytest.raises(UsageFault, match="objective 'siglip', option scael"):
        pretrain.run(recipes.load(path), out=written / "run", device_name="cpu")
    assert not (written / "run").exists()
