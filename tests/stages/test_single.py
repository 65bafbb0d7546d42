"""`kdctool.load(...)` on single files: maps, fillings and labels, by the numbers of the commands."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import kdctool
from kdctool import recipe as recipes
from kdctool.errors import DataFault, UsageFault
from kdctool.stages import demo_clips, finetune, pretrain
from kdctool.stages.single import Model
from kdctool.tasks.localization import similarity_map

from ..conftest import TINY

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """A pre-trained run that predicts patches as they are."""
    changes = [f"data.shards={tiny_shards}", "training.epochs=1", "objective.reconstruction.norm_pix=false"]
    return pretrain.run(
        recipes.loads(TINY, changes), out=tmp_path_factory.mktemp("single") / "run", device_name="cpu"
    ).run


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return kdctool.load(run)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    demo_clips.make_clips(folder, seed=1, clips=1, held_out=0, seconds=2.0)
    return next(folder.rglob("*.mp4"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "tone.wav"
    time = np.arange(32000) / 16000
    soundfile.write(path, (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), 16000)
    return path


def test_a_map_per_frame_shows_where_the_sound_is(model: Model, video: Path) -> None:
    maps = model.localize(video)
    assert maps.shape == (model.settings().frames, 4, 4)
    assert np.abs(maps).max() <= 1 + 1e-5
    window = model._first(video, "none")
    with torch.inference_mode():
        one = similarity_map(model.encoder, window.heard(), window.frames[2:3])[0].numpy()
    assert np.abs(maps[2] - one).max() < 1e-5


def test_what_was_kept_stays_and_what_was_removed_is_predicted(model: Model, video: Path) -> None:
    for remove, patch in (("audio", 16), ("video", 8)):
        found = model.inpaint(video, remove=remove, ratio=0.5)
        grid = found.removed if remove == "video" else found.removed.T  # (T, F) has time first
        pixels = np.kron(grid, np.ones((patch, patch), dtype=bool))
        changed = np.abs(found.filled - found.original)
        changed = changed.max(2) if remove == "video" else changed
        assert changed[~pixels].max() < 1e-4
        assert changed[pixels].max() > 1e-3
        assert found.removed.mean() == 0.5


def test_everything_of_a_modality_can_be_filled_from_the_other(model: Model, video: Path) -> None:
    assert model.inpaint(video, remove="audio", ratio=1).removed.all()


def test_a_model_of_normalised_patches_says_that_it_cannot_fill(tiny_shards: Path, tmp_path: Path, video: Path) -> None:
    recipe = recipes.loads(TINY, [f"data.shards={tiny_shards}", "training.epochs=1"])
    opened = kdctool.load(pretrain.run(recipe, out=tmp_path / "run", device_name="cpu").run)
    with pytest.raises(UsageFault, match="normalised"):
        opened.inpaint(video)
    assert opened.inpaint(video, statistics="target").filled.shape == (64, 32)


def test_sound_alone_has_an_audio_embedding_and_no_other(model: Model, sound: Path) -> None:
    found = model.embed(sound)
    assert found.video is None
    assert found.joint is None
    assert np.abs(found.audio - model.embed_audio(sound)).max() < 1e-6
    with pytest.raises(DataFault, match="no_video"):
        model.embed_video(sound)


def test_labels_come_with_probabilities(run: Path, tmp_path: Path, video: Path, model: Model) -> None:
    tuned = kdctool.load(finetune.run(run, out=tmp_path / "fine", device_name="cpu").run)
    odds = tuned.classify(video)
    assert set(odds) == set(tuned.labels)
    assert abs(sum(odds.values()) - 1) < 1e-5
    assert list(odds.values()) == sorted(odds.values(), reverse=True)
    with pytest.raises(UsageFault, match="no classifier"):
        model.classify(video)
