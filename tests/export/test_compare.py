"""`compare`: paired differences of two evaluations on the same clips, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from kdctool.cli import run as kdctool
from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.files import read_json, write_json
from kdctool.stages import compare, evaluate
from kdctool.tasks import EvalData, Metric, PerClip, Result, tasks
from kdctool.tasks.intervals import bootstrap, weighted_mean

CLASSES = ("bell", "dog", "rain")


def evaluation(folder, columns, sources=None, task="toy", protocol="toy/x@1", metrics=None, labels=(), digest="d"):
    """An evaluation folder as `kdctool eval` leaves it, with the columns' means as metrics."""
    num = len(next(iter(columns.values())))
    told = PerClip(tuple(f"clip-{i}" for i in range(num)), tuple(sources or map(str, range(num))), columns)
    means = {name: float(np.nanmean(values)) for name, values in columns.items() if values.ndim == 1}
    found = {name: Metric(value, 0.0, 1.0, 0.0) for name, value in (metrics or means).items()}
    result = Result(task, protocol, found, num, num, {}, details={"labels": list(labels)}, per_clip=told)
    evaluate._write_arrays(folder, result)
    write_json(folder / "details.json", {"details": result.details})
    write_json(folder / "results.json", evaluate.results(result, "r", digest, "w"))
    return folder


def test_the_difference_of_a_mean_has_the_interval_of_the_paired_differences(tmp_path):
    rng = np.random.default_rng(0)
    one = rng.normal(size=120)
    two = one + rng.normal(0.1, 0.3, size=120)
    sources = [str(i // 3) for i in range(120)]
    first = evaluation(tmp_path / "a", {"score": one}, sources)
    second = evaluation(tmp_path / "b", {"score": two}, sources)
    done = compare.run(first, second)
    row = done.rows[0]
    assert (row.first, row.second) == pytest.approx((one.mean(), two.mean()))
    assert row.difference == pytest.approx((two - one).mean())
    assert (row.low, row.high) == pytest.approx(tuple(map(float, bootstrap(two - one, sources, weighted_mean))))
    apart = bootstrap(two, sources, weighted_mean)
    assert row.high - row.low < float(apart[1] - apart[0])  # Pairing is what makes it narrow.
    assert (done.num_clips, done.num_sources) == (120, 40)
    back = compare.run(second, first).rows[0]
    assert (back.difference, back.p) == pytest.approx((-row.difference, row.p))


def test_p_is_below_five_percent_just_when_the_interval_leaves_out_zero(tmp_path):
    rng = np.random.default_rng(1)
    found = set()
    for trial, shift in enumerate(np.linspace(0, 0.5, 12)):
        one = rng.normal(size=60)
        first = evaluation(tmp_path / f"a{trial}", {"score": one})
        second = evaluation(tmp_path / f"b{trial}", {"score": one + rng.normal(shift, 1, size=60)})
        row = compare.run(first, second).rows[0]
        away = row.low > 0 or row.high < 0
        assert (row.p < 0.05) == away or abs(row.p - 0.05) < 0.003
        found.add(away)
    assert found == {True, False}


def test_a_model_compared_with_itself_differs_by_nothing(tmp_path):
    first = evaluation(tmp_path / "a", {"score": np.arange(9.0)})
    row = compare.run(first, first).rows[0]
    assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, 1)


def test_the_order_of_clips_does_not_matter(tmp_path):
    values = np.random.default_rng(2).random(30)
    other = values + np.random.default_rng(3).normal(0, 0.1, 30)
    first = evaluation(tmp_path / "a", {"score": values})
    second = evaluation(tmp_path / "b", {"score": other})
    turned = evaluation(tmp_path / "c", {"score": other[::-1]})
    uids = np.array([f"clip-{i}" for i in range(30)])
    np.savez(turned / "per_clip.npz", **{"uids": uids[::-1], "sources": np.arange(30).astype(str)[::-1],
                                         "column.score": other[::-1]})  # fmt: skip
    assert compare.run(first, turned).rows == compare.run(first, second).rows


def test_one_source_video_says_nothing_about_spread(tmp_path):
    folders = [evaluation(tmp_path / str(i), {"score": np.arange(5.0) + i}, ["v"] * 5) for i in range(2)]
    done = compare.run(*folders)
    assert np.isnan([done.rows[0].low, done.rows[0].p]).all()
    assert done.payload()["metrics"][0]["low"] is None


def ranked(folder, seed, clips=80):
    """A retrieval of noisy copies, by the task itself."""
    noise = torch.randn(clips, 1, 16, generator=torch.Generator().manual_seed(seed))
    sound = torch.randn(clips, 1, 16, generator=torch.Generator().manual_seed(99))
    batch = {"clip": torch.arange(clips), "fbank": sound, "frame": sound + noise}

    class Plain:
        def embed_audio(self, tokens):
            return tokens

        embed_video = embed_audio

    uids = [f"clip-{i}" for i in range(clips)]
    result = (
        tasks.get("retrieval").cls().run(Plain(), EvalData([batch], uids, [f"v{i // 2}" for i in range(clips)], clips))
    )
    evaluate._write_arrays(folder, result)
    write_json(folder / "results.json", evaluate.results(result, "r", "d", "w"))
    return folder, result


def test_every_metric_of_a_retrieval_is_compared_the_median_rank_too(tmp_path):
    first, one = ranked(tmp_path / "a", 0)
    second, two = ranked(tmp_path / "b", 1)
    done = compare.run(first, second)
    order = ["mean_rank", "median_rank", "r1", "r5", "r10"]
    assert [row.metric for row in done.rows] == [f"{way}_{name}" for way in ("a2v", "v2a") for name in order]
    assert {row.metric for row in done.rows} == set(one.metrics)
    for row in done.rows:
        assert row.difference == pytest.approx(two.metrics[row.metric].value - one.metrics[row.metric].value)
        assert row.low <= row.difference <= row.high
    assert not done.notes


def classified(folder, seed, labels=CLASSES, sharp=1.0, clips=60):
    rng = np.random.default_rng(seed)
    targets = np.eye(3)[np.arange(clips) % 3]
    scores = (targets * sharp + rng.normal(size=(clips, 3))).astype(np.float32)
    order = [CLASSES.index(label) for label in labels]
    batch = {
        "clip": torch.arange(clips),
        "label": torch.tensor(targets[:, order]),
        "frame": torch.tensor(scores[:, order]),
    }
    uids = [f"clip-{i}" for i in range(clips)]

    class Given:
        modality = "both"

        def __call__(self, batch):
            return batch["frame"]

    data = EvalData([batch], uids, uids, clips, labels=labels)
    result = tasks.get("classification").cls().run(Given(), data)
    evaluate._write_arrays(folder, result)
    write_json(folder / "details.json", {"details": result.details})
    write_json(folder / "results.json", evaluate.results(result, "r", "d", "w"))
    return folder, result, scores, targets


def test_map_auc_and_d_prime_are_computed_again_on_the_resamples(tmp_path):
    first, one, scores, targets = classified(tmp_path / "a", 0)
    second, two, sharper, _ = classified(tmp_path / "b", 1, sharp=2.5)
    rows = {row.metric: row for row in compare.run(first, second).rows}
    assert list(rows) == ["auc", "d_prime", "map", "top1"]
    for name, row in rows.items():
        assert row.difference == pytest.approx(two.metrics[name].value - one.metrics[name].value)
        assert row.low < row.difference < row.high
        assert row.p < 0.05
    theirs = [average_precision_score(targets, each, average="macro") for each in (scores, sharper)]
    assert (rows["map"].first, rows["map"].second) == pytest.approx(tuple(theirs))


def test_a_ranking_under_another_name_is_compared_too(tmp_path):
    first, one, scores, targets = classified(tmp_path / "a", 0)
    second, two, sharper, _ = classified(tmp_path / "b", 1, sharp=2.5)
    plain = {row.metric: row for row in compare.run(first, second).rows}["map"]
    for folder, given, result in ((tmp_path / "c", scores, one), (tmp_path / "d", sharper, two)):
        columns = {"linear_map.scores": given, "linear_map.targets": targets}
        evaluation(folder, columns, metrics={"linear_map": result.metrics["map"].value}, labels=CLASSES)
    row = compare.run(tmp_path / "c", tmp_path / "d").rows[0]
    assert (row.metric, row.difference, row.low, row.high) == ("linear_map", plain.difference, plain.low, plain.high)


def test_classes_in_another_order_are_put_in_one_and_other_classes_are_refused(tmp_path):
    first, *_ = classified(tmp_path / "a", 0)
    second, *_ = classified(tmp_path / "b", 1)
    turned, *_ = classified(tmp_path / "c", 1, ("rain", "bell", "dog"))
    assert compare.run(first, turned).rows == compare.run(first, second).rows
    details = read_json(turned / "details.json")
    details["details"]["labels"] = ["rain", "bell", "cat"]
    write_json(turned / "details.json", details)
    with pytest.raises(UsageFault, match="know different classes"):
        compare.run(first, turned)


def test_labels_that_changed_between_the_evaluations_are_refused(tmp_path):
    first, *_ = classified(tmp_path / "a", 0)
    second, *_ = classified(tmp_path / "b", 1)
    with np.load(second / "per_clip.npz") as held:
        arrays = dict(held)
    arrays["column.targets"][:2] = arrays["column.targets"][1::-1]
    np.savez(second / "per_clip.npz", **arrays)
    with pytest.raises(DataFault, match="2 of 60 clips have other labels"):
        compare.run(first, second)


def test_other_clips_are_refused_with_their_number_and_intersected_on_request(tmp_path):
    first, _ = ranked(tmp_path / "a", 0, clips=80)
    second, _ = ranked(tmp_path / "b", 1, clips=70)
    with pytest.raises(DataFault, match="70 clips are in both, 10 only in") as caught:
        compare.run(first, second)
    assert "--intersect" in caught.value.next_step
    done = compare.run(first, second, intersect=True)
    assert done.num_clips == 70
    assert "70 clips are in both" in done.notes[0]
    assert "ranks are among 80 and 70 clips" in done.notes[1]
    lone = evaluation(tmp_path / "lone", {"a2v_r1": np.ones(3)}, task="retrieval", protocol="retrieval/frame-mid@1")
    with np.load(lone / "per_clip.npz") as held:
        arrays = {**held, "uids": np.array(["x", "y", "z"])}
    np.savez(lone / "per_clip.npz", **arrays)
    with pytest.raises(DataFault, match="no clip is in both"):
        compare.run(first, lone, intersect=True)


def test_other_protocols_are_refused(tmp_path):
    first = evaluation(tmp_path / "a", {"score": np.ones(4)})
    second = evaluation(tmp_path / "b", {"score": np.ones(4)}, protocol="toy/x@2")
    with pytest.raises(UsageFault, match=r"toy/x@1 in .*toy/x@2 in"):
        compare.run(first, second)


def test_metrics_that_are_no_means_of_clips_are_named_not_guessed(tmp_path):
    columns = {"score": np.arange(6.0), "psnr": np.arange(6.0)}
    metrics = {"score": 2.5, "psnr": 31.0, "bare": 1.0}
    done = compare.run(*(evaluation(tmp_path / name, columns, metrics=metrics) for name in "ab"))
    assert [row.metric for row in done.rows] == ["score"]
    assert "bare, psnr" in done.notes[0]


def test_a_clip_without_a_number_in_one_model_counts_for_neither(tmp_path):
    one, two = np.arange(6.0), np.arange(6.0) + 1
    one[1], two[4] = np.nan, np.nan
    row = compare.run(evaluation(tmp_path / "a", {"s": one}), evaluation(tmp_path / "b", {"s": two})).rows[0]
    assert (row.first, row.second, row.difference) == (2.5, 3.5, 1.0)


def test_folders_that_cannot_be_compared_say_what_to_do(tmp_path):
    first = evaluation(tmp_path / "run" / "eval" / "toy", {"score": np.ones(4)})
    with pytest.raises(UsageFault, match="there is no folder"):
        compare.run(tmp_path / "run", tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageFault, match="has no evaluation"):
        compare.run(tmp_path / "run", tmp_path / "empty")
    evaluation(tmp_path / "run" / "eval" / "other", {"score": np.ones(4)}, task="other")
    with pytest.raises(UsageFault, match="both have other, toy"):
        compare.run(tmp_path / "run", tmp_path / "run")
    assert compare.run(tmp_path / "run", tmp_path / "run", task="toy").task == "toy"
    (first / "per_clip.npz").write_bytes(b"nothing")
    with pytest.raises(VerificationFault, match="damaged"):
        compare.run(first, first)
    (first / "per_clip.npz").unlink()
    with pytest.raises(DataFault, match="has no per_clip"):
        compare.run(first, first)


def test_the_command_compares_two_runs(study, tmp_path, capsys):
    evaluate.run(study.pretrained, task="retrieval")
    other = tmp_path / "other"
    shutil.copytree(study.pretrained, other)
    assert kdctool(["compare", str(study.pretrained), str(other), "--task", "retrieval"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.strip().startswith("a2v_r1 "))
    assert "+0.000 to +0.000" in line
    assert "10 of 5 source videos" in out
    assert kdctool(["compare", str(study.pretrained), str(other), "--task", "retrieval", "--format", "json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["n_clips"] == 10
    assert {"metric", "first", "second", "difference", "low", "high", "p"} == set(payload["metrics"][0])
    assert kdctool(["compare", str(study.pretrained), str(tmp_path), "--task", "retrieval"]) == 2
