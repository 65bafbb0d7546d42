"""A recipe of one view for studies."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def one_view(tiny_recipe: Callable[..., Path]) -> Path:
    """CAV-MAE, three steps."""
    return tiny_recipe("objective.name=cav_mae", "training.epochs=1")
