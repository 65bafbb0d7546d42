"""Opening a second model beside the one that is diagnosed: only where both see the clips alike."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.stages import evaluate


def opened(tmp_path: Path, name: str, text: str = "") -> SimpleNamespace:
    path = tmp_path / f"{name}.toml"
    path.write_text(f'name = "{name}"\n{text}')
    model = {"path": tmp_path / name, "encoder": f"encoder of {name}", "is_image": False}
    return SimpleNamespace(recipe=recipes.load(path), **model)


def test_a_model_of_other_sizes_on_the_same_inputs_is_opened(tmp_path, monkeypatch):
    small = opened(tmp_path, "small", "[model]\nwidth = 192\nheads = 3\ndepth = 2\n")
    monkeypatch.setattr(evaluate, "open_model", lambda path, images: {small.path: small}[path])
    assert evaluate._beside(opened(tmp_path, "base"), small.path) == "encoder of small"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[model]\naudio_frames = 512\n", "model.audio_frames = 512"),
        ("[model]\nimage_size = 112\n", "model.image_size = 112"),
        ("[data]\nfbank_mean = -4.0\n", "data.fbank_mean = -4.0"),
        ("[data]\nimage_std = [0.5, 0.5, 0.5]\n", "data.image_std"),
    ],
)
def test_a_model_that_sees_other_inputs_is_refused_by_the_key_that_differs(tmp_path, monkeypatch, text, key):
    other = opened(tmp_path, "other", text)
    monkeypatch.setattr(evaluate, "open_model", lambda path, images: {other.path: other}[path])
    with pytest.raises(UsageFault, match=key):
        evaluate._beside(opened(tmp_path, "base"), other.path)
