"""AV-Digits as its protocol says: draws, pictures and sound, on made-up recordings; the real ones where they are."""

import collections
import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from avdigits import build, drawing, protocol, sound, truth
from avdigits.protocol import SPLITS, Clip
from avdigits.sources import LONGEST_S, Sources, read
from avdigits_made_up import made_up

from kdctool.errors import DataFault, UsageFault
from kdctool.files import sha256_file
from kdctool.shards import index as shard_index

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "avdigits"
COUNTS: dict[str, int | None] = {"train": 4, "val": 2, "test": 3, "test_hard": 3}
needs_the_sources = pytest.mark.skipif(
    not (REAL / "fsdd-recordings.tar.gz").exists(), reason="the two sources are not in ../shared/data/avdigits"
)


@pytest.fixture(scope="module")
def sources() -> Sources:
    return made_up()


def drawn(sources: Sources, split: str, count: int | None, seed: int = 0) -> list[Clip]:
    return list(protocol.plan_split(sources, SPLITS[split], count, seed))


def test_the_same_seed_draws_the_same_clips_and_another_others(sources: Sources) -> None:
    assert drawn(sources, "train", 20) == drawn(sources, "train", 20)
    assert drawn(sources, "train", 20) != drawn(sources, "train", 20, seed=1)


def test_a_clip_does_not_depend_on_how_many_there_are(sources: Sources) -> None:
    assert drawn(sources, "train", 30)[:10] == drawn(sources, "train", 10)


def test_the_two_digits_never_share_class_or_speaker(sources: Sources) -> None:
    for clip in drawn(sources, "train", 300) + drawn(sources, "test", None):
        assert clip.sounding.digit != clip.silent.digit
        assert clip.sounding.speaker != clip.silent.speaker


def test_boxes_at_full_pulse_neither_meet_nor_leave_the_picture(sources: Sources) -> None:
    for clip in drawn(sources, "train", 500) + drawn(sources, "test_hard", None):
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = (drawing.box(d, 1.0) for d in (clip.sounding, clip.silent))
        assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0
        assert min(ax0, ay0, bx0, by0) >= 0
        assert max(ax1, ay1, bx1, by1) <= protocol.SIDE


def test_splits_share_neither_recordings_nor_images(sources: Sources) -> None:
    seen = {}
    for split, count in (("train", 200), ("val", 100), ("test", 100)):
        digits = [digit for clip in drawn(sources, split, count) for digit in (clip.sounding, clip.silent)]
        seen[split] = ({digit.recording for digit in digits}, {digit.image for digit in digits})
        first, end = SPLITS[split].recordings
        assert all(first <= int(name.rpartition("_")[2]) < end for name in seen[split][0])
    for a, b in itertools.combinations(seen.values(), 2):
        assert not a[0] & b[0]
        assert not a[1] & b[1]


def test_nothing_that_is_seen_depends_on_which_digit_sounds(sources: Sources) -> None:
    """Size, hue, place and onset have one distribution for both: means of 3,000 clips within four standard errors."""
    clips = drawn(sources, "train", 3000)
    for name in ("size", "x", "y", "onset_s", "digit", "gain", "image"):
        heard, silent = (np.array([getattr(getattr(c, role), name) for c in clips]) for role in ("sounding", "silent"))
        error = math.sqrt((heard.var() + silent.var()) / len(clips))
        assert abs(heard.mean() - silent.mean()) < 4 * error, name
    for role in ("sounding", "silent"):
        speakers = collections.Counter(getattr(clip, role).speaker for clip in clips)
        assert max(speakers.values()) < 1.3 * min(speakers.values())


def test_places_do_not_depend_on_sizes(sources: Sources) -> None:
    """Otherwise the gain, which is heard, would tell something about the place."""
    clips = drawn(sources, "train", 3000)
    edges = {}
    for size in protocol.SIZES:
        own = [abs(c.sounding.x - 56) for c in clips if c.sounding.size == size]
        other = [abs(c.silent.x - 56) for c in clips if c.sounding.size == size]
        edges[size] = abs(np.mean(own) - np.mean(other)) / math.sqrt((np.var(own) + np.var(other)) / len(own))
    assert max(edges.values()) < 4


def test_onsets_gains_hues_and_noise_are_drawn_as_said(sources: Sources) -> None:
    clips = drawn(sources, "train", 2000)
    onsets = np.array([clip.sounding.onset_s for clip in clips])
    assert 0.1 <= onsets.min() < 0.12
    assert 0.98 < onsets.max() <= 1.0
    assert np.mean([clip.snr_db for clip in clips]) == pytest.approx(7.5, abs=0.5)
    for digit in (role for clip in clips for role in (clip.sounding, clip.silent)):
        assert digit.size == protocol.SIZES[digit.gain]
        place = sources.speakers.index(digit.speaker) / 6
        away = (digit.hue - place + 0.5) % 1 - 0.5
        assert abs(away) <= 10 / 360 + 1e-9


def test_test_has_every_recording_at_every_gain_once(sources: Sources) -> None:
    clips = drawn(sources, "test", None)
    assert len(clips) == 6 * 10 * 5 * 3
    cells = collections.Counter((clip.sounding.recording, clip.sounding.gain) for clip in clips)
    assert set(cells.values()) == {1}


def test_a_smaller_test_split_takes_whole_recordings(sources: Sources) -> None:
    cells = collections.defaultdict(set)
    for clip in drawn(sources, "test", 30):
        cells[clip.sounding.recording].add(clip.sounding.gain)
    assert len(cells) == 10
    assert set(map(len, cells.values())) == {3}


def test_test_hard_is_test_with_one_hue_and_one_size(sources: Sources) -> None:
    for easy, hard in zip(drawn(sources, "test", 90), drawn(sources, "test_hard", 90), strict=True):
        assert (hard.silent.hue, hard.silent.size) == (hard.sounding.hue, hard.sounding.size)
        assert (easy.sounding.recording, easy.sounding.onset_s, easy.sounding.image, easy.snr_db, easy.seed) == (
            hard.sounding.recording, hard.sounding.onset_s, hard.sounding.image, hard.snr_db, hard.seed
        )  # fmt: skip
        assert (easy.silent.recording, easy.silent.image) == (hard.silent.recording, hard.silent.image)


def test_without_recordings_for_a_split_nothing_is_drawn() -> None:
    with pytest.raises(DataFault, match="recordings 10-49 that train needs"):
        drawn(made_up(range(3)), "train", 1)


def test_the_sound_stands_at_its_onset_with_its_gain_and_ratio(sources: Sources) -> None:
    for clip in drawn(sources, "train", 40):
        heard = sound.sound(clip, sources) / 32767
        first = round(clip.sounding.onset_s * 16000)
        length = 2 * len(sources.named[clip.sounding.recording].sound)
        outside = np.concatenate([heard[: first - 200], heard[first + length + 200 :]])
        level = 0.06 * 10 ** (protocol.GAINS_DB[clip.sounding.gain] / 20)
        noise = level * 10 ** (-clip.snr_db / 20)
        assert sound.rms(outside) == pytest.approx(noise, rel=0.5)
        assert sound.rms(heard[first : first + length]) == pytest.approx(math.hypot(level, noise), rel=0.25)


def test_pink_noise_has_equal_power_in_every_octave() -> None:
    noise = sound.pink(64_000, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(len(noise), 1 / 16000)
    octaves = [power[(hertz >= low) & (hertz < 2 * low)].sum() for low in (125, 250, 500, 1000, 2000, 4000)]
    assert max(octaves) < 1.3 * min(octaves)
    assert sound.rms(noise) == pytest.approx(1.0)


def test_upsampling_keeps_a_tone_and_adds_no_image_of_it() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    spectrum = np.abs(np.fft.rfft(sound.upsample(tone)))
    assert spectrum.argmax() == 1000
    assert spectrum[6900:7100].max() < 0.01 * spectrum[1000]
    assert np.abs(sound.upsample(tone)[200:-200:2] - tone[100:-100]).max() < 0.01


def test_both_digits_pulse_with_their_own_recording(sources: Sources) -> None:
    for clip in drawn(sources, "train", 30):
        for digit, pulse in zip((clip.sounding, clip.silent), sound.envelopes(clip, sources), strict=True):
            length = len(sources.named[digit.recording].sound) / 8000
            frames = np.arange(25) / 12.5
            outside = (frames < digit.onset_s - 0.05) | (frames > digit.onset_s + length + 0.05)
            assert pulse[outside].max(initial=0) < 0.05
            assert 0.7 < pulse.max() <= 1.0


def test_a_digit_grows_by_a_third_and_doubles_its_brightness(sources: Sources) -> None:
    clip = drawn(sources, "train", 1)[0]
    still, full = (drawing.draw(clip, sources.images, (np.full(25, v), np.zeros(25)), [0])[0] for v in (0.0, 1.0))
    x, y = clip.sounding.x, clip.sounding.y
    assert full[y - 6 : y + 6, x - 6 : x + 6].max() == pytest.approx(255, abs=2)
    assert still[y - 6 : y + 6, x - 6 : x + 6].max() == pytest.approx(128, abs=6)
    x0, _, x1, _ = drawing.box(clip.sounding, 1.0)
    assert x1 - x0 == round(clip.sounding.size * 4 / 3) <= protocol.LARGEST
    changed = np.argwhere((still.astype(int) - full).any(-1))
    assert (changed[:, 1].min(), changed[:, 1].max() + 1) >= (x0, 0)
    assert changed[:, 1].max() < x1


def test_backgrounds_are_dim_and_differ_between_clips(sources: Sources) -> None:
    one, other = (drawing.background(np.random.default_rng([c.seed, 0])) for c in drawn(sources, "train", 2))
    assert one.max() < 127
    assert np.abs(one - other).mean() > 5


def build_small(sources: Sources, out: Path, workers: int = 1) -> build.Built:
    return build.build(sources, out, COUNTS, 0, workers)


@pytest.fixture(scope="module")
def built(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("avdigits") / "a b"
    build_small(sources, out)
    return out


def test_building_ends_in_shards_with_labels_and_splits(built: Path) -> None:
    index = shard_index.load(built / "shards")
    assert index.splits == COUNTS
    assert set(index.labels) <= set("0123456789")
    rows = [json.loads(line) for line in (built / "extracted" / "manifest.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"ok"}
    assert {(len(row["frames"]), row["width"], row["height"]) for row in rows} == {(10, 112, 112)}
    assert {row["duration_s"] for row in rows} == {2.0}


def test_truth_has_a_row_per_clip_that_a_localisation_can_read(built: Path, sources: Sources) -> None:
    rows = {row["file"]: row for row in map(json.loads, (built / "videos" / truth.TRUTH).read_text().splitlines())}
    manifest = [json.loads(line) for line in (built / "extracted" / "manifest.jsonl").read_text().splitlines()]
    assert {row["source"] for row in manifest} == rows.keys()
    with open(built / "videos" / truth.LABELS, newline="") as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    for row in rows.values():
        assert row["label"] == labels[row["file"]] == str(row["sounding"]["class"])
        assert (row["width"], row["height"], row["fps"]) == (112, 112, 12.5)
        for role in ("sounding", "silent"):
            assert np.array(row[role]["boxes"]).shape == (25, 4)
        assert 0 <= row["gain"] <= 2
        assert row["onset_s"] + row["duration_s"] <= 2.0


def test_galleries_hold_each_test_clip_once_by_index_of_recording(built: Path) -> None:
    rows = [json.loads(line) for line in (built / "extracted" / "manifest.jsonl").read_text().splitlines()]
    for split in ("test", "test_hard"):
        listed = [
            uid
            for path in (built / "videos" / truth.GALLERIES).glob(f"{split}-[0-9].txt")
            for uid in path.read_text().split()
        ]
        assert sorted(listed) == sorted(row["uid"] for row in rows if row["source"].startswith(f"{split}/"))


def test_the_same_seed_gives_the_same_bytes_on_one_process_or_two(
    built: Path, sources: Sources, tmp_path: Path
) -> None:
    build_small(sources, tmp_path, workers=2)
    files = sorted(path.relative_to(built) for path in (built / "videos").rglob("*") if path.is_file())
    assert len([name for name in files if name.suffix == ".mp4"]) == 12
    for name in [*files, Path("shards/index.json")]:
        assert sha256_file(built / name) == sha256_file(tmp_path / name), name


def test_a_build_that_was_stopped_makes_only_what_is_missing(built: Path, sources: Sources) -> None:
    lost, kept = built / "videos" / "train" / "00001.mp4", built / "videos" / "train" / "00002.mp4"
    before, written = sha256_file(lost), kept.stat().st_mtime_ns
    lost.unlink()
    clips = protocol.plan(sources, COUNTS, 0)
    build.make_videos(built / "videos", sources, clips, 1)
    assert sha256_file(lost) == before
    assert kept.stat().st_mtime_ns == written


def test_other_clips_are_not_mixed_into_a_folder(built: Path, sources: Sources) -> None:
    others = protocol.plan(sources, COUNTS, 1)
    with pytest.raises(UsageFault, match="differ in: seed"):
        build.begin(built / "videos", sources, others, 1)


@needs_the_sources
def test_the_real_sources_are_what_the_protocol_counts() -> None:
    found = read(REAL / "fsdd-recordings.tar.gz", REAL)
    assert len(found.recordings) + found.left_out == 3000
    assert len(found.speakers) == 6
    assert max(len(recording.sound) for recording in found.recordings) <= LONGEST_S * 8000
    assert found.images.shape == (10_000, 28, 28)
    assert len(drawn(found, "test", None)) == 894


def test_missing_and_damaged_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"nothing\.tar\.gz does not exist"):
        read(tmp_path / "nothing.tar.gz", tmp_path)
    (tmp_path / "0_ann_0.wav").write_bytes(b"RIFFxxxx")
    with pytest.raises(DataFault, match="is no wav file"):
        read(tmp_path, tmp_path)
    (tmp_path / "broken.tar.gz").write_bytes(b"\x1f\x8bnot a tar")
    with pytest.raises(DataFault, match="cannot be read as a tar archive"):
        read(tmp_path / "broken.tar.gz", tmp_path)
