"""The clips of the demo: real files, held-out combinations that were never seen, the same from the same seed."""

import csv
import hashlib
from collections import Counter

import av
import numpy as np
import pytest

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.stages import demo_clips
from kdctool.stages.demo_clips import COLOURS, MOTIONS, PITCHES_HZ, PULSES_PER_S, SHAPES, DemoClip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo clips")
    return demo_clips.make_clips(folder, seed=3, clips=8, held_out=2, seconds=1.2)


def frames_of(path):
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def sound_of(path):
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])


@pytest.mark.parametrize("seed", range(5))
def test_held_out_combinations_are_absent_from_training_and_balanced(seed):
    clips = demo_clips.plan(seed)
    test = [(c.colour, c.shape, c.motion) for c in clips if c.split == "test"]
    train = [(c.colour, c.shape, c.motion) for c in clips if c.split == "train"]
    assert (len(train), len(test)) == (120, 40)
    assert len(set(train) | set(test)) == 160
    assert set(Counter(colour for colour, _, _ in test).values()) == {5}
    assert set(Counter(shape for _, shape, _ in test).values()) == {10}
    assert set(Counter(motion for _, _, motion in test).values()) == {8}
    for place, values in enumerate((COLOURS, SHAPES, MOTIONS)):
        assert {item[place] for item in train} == set(range(len(values)))


def test_another_seed_holds_out_other_combinations_or_another_order():
    assert demo_clips.combinations(0) != demo_clips.combinations(1)
    assert demo_clips.plan(0) == demo_clips.plan(0)


def test_every_clip_is_h264_and_aac_of_the_right_length(made):
    with open(made, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows].count("test") == 2
    for row in rows:
        assert row["label"] in COLOURS
        assert row["path"].startswith(row["label"])
        with av.open(str(made.parent / row["path"])) as file:
            video, audio = file.streams.video[0], file.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, float(video.average_rate)) == (128, 128, 12.5)
            assert float(video.duration * video.time_base) == pytest.approx(1.2, abs=0.01)
            assert float(audio.duration * audio.time_base) == pytest.approx(1.2, abs=0.05)


def test_the_file_shows_what_was_drawn(made):
    clip = demo_clips.plan(3, 8, 2)[0]
    drawn, sound = demo_clips.draw(clip, 1.2)
    seen = frames_of(made.parent / clip.name)
    assert seen.shape == drawn.shape
    assert np.abs(seen.astype(float) - drawn).mean() < 6
    heard = sound_of(made.parent / clip.name)[: len(sound)]
    assert np.corrcoef(heard, sound[: len(heard)] / 32_768)[0, 1] > 0.95


def test_the_same_seed_gives_the_same_bytes(made, tmp_path):
    again = demo_clips.make_clips(tmp_path, seed=3, clips=8, held_out=2, seconds=1.2)
    hashes = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in labels.parent.iterdir()}
        for labels in (made, again)
    ]
    assert hashes[0] == hashes[1]


def test_no_two_clips_of_one_combination_are_copies():
    a, b = (demo_clips.draw(DemoClip("x.mp4", "train", 1, 2, 3, seed), 1.0) for seed in (1, 2))
    assert np.abs(a[0].astype(float) - b[0]).mean() > 3
    assert not np.array_equal(a[1], b[1])


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_pitch_goes_with_the_colour(shape):
    for colour, hertz in enumerate(PITCHES_HZ):
        _, sound = demo_clips.draw(DemoClip("x.mp4", "train", colour, shape, 1, 5), 2.0)
        power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        frequencies = np.fft.rfftfreq(len(sound), 1 / demo_clips.SAMPLE_RATE)
        if SHAPES[shape] == "cross":  # FM puts energy beside the carrier: half of it lies on either side
            middle = frequencies[np.searchsorted(np.cumsum(power), power.sum() / 2)]
            assert 0.6 * hertz < middle < 1.4 * hertz
        else:
            assert frequencies[power.argmax()] == pytest.approx(hertz, rel=0.03)


def test_the_rhythm_goes_with_the_motion():
    """Pulses counted in the sound, and turns counted in the picture, are the same rate."""
    for motion, rate in enumerate(PULSES_PER_S):
        frames, sound = demo_clips.draw(DemoClip("x.mp4", "train", 7, 0, motion, 11), 4.0)
        loud = np.abs(sound.astype(float)).reshape(-1, 441).max(axis=1)  # 10 ms
        above = loud > 0.5 * loud.max()
        assert (above[1:] & ~above[:-1]).sum() == pytest.approx(4 * rate, abs=1.2)
        if MOTIONS[motion] in ("horizontal", "vertical"):
            bright = (frames.min(axis=-1) > 190).astype(float)  # the white shape itself, not its trail
            axis = 1 if MOTIONS[motion] == "horizontal" else 2
            position = (bright.sum(axis=axis) * np.arange(demo_clips.SIZE)).sum(-1) / bright.sum(axis=(1, 2))
            turns = (np.diff(np.sign(np.diff(position))) != 0).sum()
            assert turns == pytest.approx(4 * rate, abs=1.2)


def test_a_folder_that_is_complete_is_left_alone(made):
    before = {path.name: path.stat().st_mtime_ns for path in made.parent.iterdir()}
    demo_clips.make_clips(made.parent, seed=3, clips=8, held_out=2, seconds=1.2)
    assert {path.name: path.stat().st_mtime_ns for path in made.parent.iterdir()} == before


def test_clips_of_another_seed_are_replaced_and_other_files_stay(tmp_path):
    demo_clips.make_clips(tmp_path, seed=1, clips=2, held_out=1, seconds=0.4)
    first = {path.name for path in tmp_path.glob("*.mp4")}
    (tmp_path / "mine.mp4").write_bytes(b"not ours")
    demo_clips.make_clips(tmp_path, seed=2, clips=2, held_out=1, seconds=0.4)
    now = {path.name for path in tmp_path.glob("*.mp4")}
    assert "mine.mp4" in now
    assert len(now) == 3
    assert not first & now


def test_more_held_out_clips_than_combinations_are_refused():
    with pytest.raises(UsageFault, match="41 held out"):
        demo_clips.plan(0, 160, 41)


def test_without_any_ffmpeg_the_fault_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCTOOL_FFMPEG", str(tmp_path / "none"))
    with pytest.raises(EnvironmentFault) as fault:
        demo_clips.make_clips(tmp_path / "videos", seed=0, clips=2, held_out=1)
    assert fault.value.exit_code == 4
    assert fault.value.next_step
    assert not (tmp_path / "videos").exists()


def test_an_ffmpeg_without_h264_is_passed_over_for_the_bundled_one(tmp_path, monkeypatch):
    poor = tmp_path / "ffmpeg"
    poor.write_text("#!/bin/sh\necho ' A....D flac FLAC'\n")
    poor.chmod(0o755)
    monkeypatch.delenv("KDCTOOL_FFMPEG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert demo_clips.candidates()[0] == str(poor)
    assert demo_clips.encoder() != str(poor)
