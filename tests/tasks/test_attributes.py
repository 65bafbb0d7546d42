"""Retrieval counted by what a file says of the clips: precision by speaker, and by anything else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdctool.errors import DataFault, UsageFault
from kdctool.tasks import EvalData, tasks

CLIPS, WIDTH = 24, 32
SPEAKERS = ("ann", "bob", "cleo")
WAYS = ("a2v", "v2a")


class Plain(nn.Module):
    """Tokens are the input."""

    def embed_audio(self, fbank):
        return fbank

    def embed_video(self, frame):
        return frame


class Constant(Plain):
    def embed_audio(self, fbank):
        return torch.ones_like(fbank)

    embed_video = embed_audio


def rows(**changes):
    """A row per clip: speaker in turn, gain in blocks. A value of a change is a function of the clip's number."""
    told = {"speaker": lambda i: SPEAKERS[i % 3], "gain": lambda i: i // 8, **changes}
    return [{"file": f"test/{i:03}.mp4", **{key: value(i) for key, value in told.items()}} for i in range(CLIPS)]


def write(folder, lines, name="truth.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def clips(shift=0, order=None, seed=None):
    """Clips whose frame is the sound of the clip `shift` places on; two clips per video of the interval."""
    order = list(range(CLIPS)) if order is None else order
    sound = torch.eye(CLIPS, WIDTH)
    if seed is not None:
        sound = torch.randn(CLIPS, WIDTH, generator=torch.Generator().manual_seed(seed))
    frame = sound.roll(-shift, 0)
    if seed is not None:
        frame = frame + torch.randn(CLIPS, WIDTH, generator=torch.Generator().manual_seed(seed + 1))
    batch = {"clip": torch.arange(CLIPS), "fbank": sound[order][:, None], "frame": frame[order][:, None]}
    uids = [f"uid-{i:03}" for i in order]
    abouts = [{"source": f"test/{i:03}.mp4", "start_s": 0.0, "duration_s": 2.0, "labels": ["x"]} for i in order]
    return EvalData([batch], uids, [f"v{i // 2}" for i in order], CLIPS, abouts=abouts)


def retrieval(path, by="speaker,gain", **options):
    return tasks.get("retrieval").cls(tasks.options("retrieval", {"attributes": path, "by": by, **options}))


def metrics_of(path, data=None, model=None, **options):
    return retrieval(path, **options).run(model or Plain(), data or clips()).metrics


def test_precision_is_counted_by_each_attribute_apart(tmp_path):
    path = write(tmp_path, rows())
    # The best candidate is three places on: the same speaker always, the same gain in five of eight clips.
    found = metrics_of(path, clips(shift=3))
    for way in WAYS:
        assert found[f"{way}_r1"].value == 0.0
        assert found[f"{way}_precision_speaker"].value == 1.0
        assert found[f"{way}_precision_gain"].value == pytest.approx(5 / 8)
        assert found[f"{way}_precision_speaker"].chance == pytest.approx(1 / 3)
        assert found[f"{way}_precision_gain"].chance == pytest.approx(1 / 3)
    low, high = found["a2v_precision_gain"].low, found["a2v_precision_gain"].high
    assert 0.3 < low < 5 / 8 < high < 0.95


def test_columns_average_to_the_metric_and_other_numbers_stay_as_they_are(tmp_path):
    path = write(tmp_path, rows())
    result = retrieval(path).run(Plain(), clips(seed=1))
    plain = tasks.get("retrieval").cls().run(Plain(), clips(seed=1))
    for name, metric in plain.metrics.items():
        assert result.metrics[name] == metric
    for way in WAYS:
        column = result.per_clip.columns[f"{way}_precision_speaker"]
        assert column.shape == (CLIPS,)
        assert column.mean() == result.metrics[f"{way}_precision_speaker"].value


def test_a_constant_model_scores_exactly_chance_whatever_the_attribute(tmp_path):
    path = write(tmp_path, rows(speaker=lambda i: SPEAKERS[min(i // 2, 2)]))
    for group in (False, True):
        found = metrics_of(path, model=Constant(), group=group)
        for way in WAYS:
            for name in ("speaker", "gain"):
                metric = found[f"{way}_precision_{name}"]
                assert metric.value == pytest.approx(metric.chance, abs=1e-12)


def test_two_candidates_at_the_top_share_the_precision(tmp_path):
    sound = torch.eye(CLIPS, WIDTH)
    data = clips()
    data.batches[0]["fbank"] = ((sound + sound.roll(-1, 0)) / 2**0.5)[:, None]  # Its own frame, and the next clip's.
    found = metrics_of(write(tmp_path, rows()), data)
    assert found["a2v_precision_speaker"].value == pytest.approx(0.5)
    assert found["a2v_precision_gain"].value == pytest.approx(1 - 0.5 * 3 / CLIPS)


def test_order_of_rows_order_of_clips_and_names_of_values_change_nothing(tmp_path):
    first = metrics_of(write(tmp_path, rows()), clips(seed=3))
    order = np.random.default_rng(0).permutation(CLIPS).tolist()
    renamed = rows(speaker=lambda i: {"ann": "zoe", "bob": "ann", "cleo": 7}[SPEAKERS[i % 3]], gain=lambda i: -(i // 8))
    for lines, data in (
        (rows()[::-1], clips(seed=3)),
        (renamed, clips(seed=3)),
        (rows(), clips(seed=3, order=order)),
    ):
        found = metrics_of(write(tmp_path, lines, "other.jsonl"), data)
        for name in first:
            assert found[name].value == pytest.approx(first[name].value), name
            assert found[name].chance == pytest.approx(first[name].chance), name


def test_one_value_for_all_clips_tells_nothing_and_one_per_clip_is_recall_at_1(tmp_path):
    path = write(tmp_path, rows(same=lambda i: True, own=lambda i: f"clip {i}"))
    found = metrics_of(path, clips(seed=4), by="same,own")
    for way in WAYS:
        assert (found[f"{way}_precision_same"].value, found[f"{way}_precision_same"].chance) == (1.0, 1.0)
        assert found[f"{way}_precision_own"].value == pytest.approx(found[f"{way}_r1"].value)
        assert found[f"{way}_precision_own"].chance == pytest.approx(found[f"{way}_r1"].chance)


def test_a_list_holds_several_values_and_one_in_common_is_enough(tmp_path):
    path = write(tmp_path, rows(heard=lambda i: ["rain", SPEAKERS[i % 3]] if i % 2 else [SPEAKERS[i % 3]]))
    found = metrics_of(path, clips(shift=2), by="heard")  # Two on: another speaker, rain for every second clip.
    assert found["a2v_precision_heard"].value == pytest.approx(0.5)


def test_clips_without_a_row_or_a_value_are_counted_and_named_and_stay_in_the_ranking(tmp_path):
    lines = rows(speaker=lambda i: None if i == 5 else SPEAKERS[i % 3])
    del lines[7]["gain"]
    result = retrieval(write(tmp_path, lines[1:])).run(Plain(), clips(shift=3))
    assert (result.n_scored, result.missing) == (CLIPS, {})
    speaker, gain = (note for note in result.notes if note.startswith("precision_"))
    assert speaker == (
        "precision_speaker over 22 of 24 clips: truth.jsonl has no row for 1 (uid-000); "
        "truth.jsonl has no speaker for 1 (uid-005)"
    )
    assert gain.startswith("precision_gain over 22 of 24 clips")
    assert "no gain for 1 (uid-007)" in gain
    assert np.isnan(result.per_clip.columns["a2v_precision_speaker"]).sum() == 2
    # Twenty-four candidates remain; those asked by clips 2 and 21 have no speaker, so they are no hits.
    assert result.metrics["a2v_precision_speaker"].value == pytest.approx(20 / 22)
    assert result.metrics["a2v_r1"].chance == pytest.approx(1 / CLIPS)
    about = result.details["attributes"]
    assert about["rows"] == 23
    assert about["by"] == {"speaker": {"clips": 22, "values": 3}, "gain": {"clips": 22, "values": 3}}


def test_many_missing_clips_are_counted_and_three_are_named(tmp_path):
    result = retrieval(write(tmp_path, rows()[10:])).run(Plain(), clips())
    assert "no row for 10 (uid-000, uid-001, uid-002 and 7 more)" in result.notes[0]


def test_an_attribute_that_no_scored_clip_has_gives_no_number_and_a_note(tmp_path):
    lines = [*rows(), {"file": "val/1.mp4", "room": "hall"}]
    result = retrieval(write(tmp_path, lines), by="room,speaker").run(Plain(), clips())
    assert "a2v_precision_room" not in result.metrics
    assert "a2v_precision_speaker" in result.metrics
    assert any(note.startswith("precision_room over 0 of 24 clips") for note in result.notes)


def test_rows_may_name_a_clip_by_its_file_alone_or_by_its_uid(tmp_path):
    first = metrics_of(write(tmp_path, rows()), clips(seed=5))
    for name in ("{i:03}.mp4", "uid-{i:03}"):
        named = [{**line, "file": name.format(i=i)} for i, line in enumerate(rows())]
        found = metrics_of(write(tmp_path, named, "named.jsonl"), clips(seed=5))
        assert found["a2v_precision_speaker"] == first["a2v_precision_speaker"]


def test_the_protocol_says_which_file_and_which_attributes(tmp_path):
    path, other = write(tmp_path, rows()), write(tmp_path, rows()[1:], "other.jsonl")
    ids = [retrieval(path).protocol, retrieval(other).protocol, retrieval(path, by="gain").protocol]
    assert len(set(ids)) == 3
    assert retrieval(path, by="gain , speaker").protocol == ids[0]
    assert ids[0].startswith("retrieval/frame-mid-by-")


@pytest.mark.parametrize("by", ["", "hue", "speaker,hue", "file", "sounding"])
def test_attributes_that_are_not_asked_or_not_there_are_refused_with_those_that_are(tmp_path, by):
    path = write(tmp_path, rows(sounding=lambda i: {"boxes": []}))
    with pytest.raises(UsageFault) as caught:
        retrieval(path, by=by)
    assert "speaker, gain" in caught.value.next_step
    assert "sounding" not in caught.value.next_step


def test_attributes_without_a_file_and_files_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UsageFault, match="of which file"):
        retrieval("")
    with pytest.raises(UsageFault, match="cannot be read"):
        retrieval(str(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"truth\.jsonl:2 is no JSON"),
        ("[1, 2]", r"truth\.jsonl:2 names no clip"),
        ('{"speaker": "ann"}', r"truth\.jsonl:2 names no clip"),
        ('{"file": "test/001.mp4", "speaker": {"name": "ann"}}', r"speaker = .* is no value that clips can share"),
        ('{"file": "test/001.mp4", "speaker": NaN}', r"speaker = NaN is no value"),
        ('{"file": "test/001.mp4", "speaker": [["ann"]]}', r"speaker = .* is no value"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, line, message):
    path = tmp_path / "truth.jsonl"
    path.write_text(json.dumps(rows()[0]) + "\n" + line + "\n")
    with pytest.raises(DataFault, match=message):
        retrieval(str(path), by="speaker")


def test_two_rows_that_contradict_each_other_are_refused_and_equal_ones_are_not(tmp_path):
    twice = [*rows(), rows()[3]]
    assert (
        metrics_of(write(tmp_path, twice))["a2v_precision_speaker"]
        == metrics_of(write(tmp_path, rows()))["a2v_precision_speaker"]
    )
    twice[-1] = {**twice[-1], "speaker": "zoe"}
    with pytest.raises(DataFault, match=r"truth\.jsonl:4 and .*truth\.jsonl:25 are about the same clip"):
        metrics_of(write(tmp_path, twice))


def test_a_file_about_other_clips_is_refused_with_both_names(tmp_path):
    lines = [{**line, "file": line["file"].replace("test", "val").replace(".mp4", "-b.mp4")} for line in rows()]
    with pytest.raises(DataFault, match=r"'val/000-b\.mp4', the first clip is 'test/000\.mp4'"):
        metrics_of(write(tmp_path, lines))


def test_clips_of_one_video_are_resampled_together(tmp_path):
    path = write(tmp_path, rows())
    apart, together = clips(shift=3), replace(clips(shift=3), sources=[f"v{i // 8}" for i in range(CLIPS)])
    widths = []
    for data in (replace(apart, sources=[f"v{i}" for i in range(CLIPS)]), together):
        metric = metrics_of(path, data)["a2v_precision_gain"]
        widths.append(metric.high - metric.low)
    # Every block of eight has five hits: resampling blocks changes nothing.
    assert widths[0] > 0.2
    assert widths[1] == pytest.approx(0.0, abs=1e-9)
