"""`eval` on real shards: what it reads, what it writes, and what it refuses."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from kdctool.cli import run as kdctool
from kdctool.errors import DataFault, UsageFault
from kdctool.files import read_json, sha256_file
from kdctool.models.av_encoder import AVEncoder
from kdctool.stages import evaluate
from kdctool.tasks import Metric, Result

KEYS = {
    "task",
    "protocol",
    "metrics",
    "n_scored",
    "n_total",
    "missing",
    "recipe_digest",
    "data_digest",
    "weights_sha256",
}


def with_recipe(study, source, folder, old, new):
    """A copy of a run whose recipe says `new` where it said `old`."""
    shutil.copytree(source, folder)
    text = (folder / "recipe.toml").read_text()
    assert old in text
    (folder / "recipe.toml").write_text(text.replace(old, new))
    return folder


def test_retrieval_writes_results_json_beside_the_run_and_says_first_what_it_scores(study, capsys):
    done = evaluate.run(study.pretrained, task="retrieval")
    written = read_json(study.pretrained / "eval" / "retrieval" / "results.json")
    assert set(written) == KEYS
    assert (written["task"], written["protocol"]) == ("retrieval", "retrieval/frame-mid@1")
    assert (written["n_scored"], written["n_total"], written["missing"]) == (10, 10, {})
    assert set(written["metrics"]["a2v_r5"]) == {"value", "low", "high", "chance"}
    assert written["metrics"]["a2v_r5"]["chance"] == 0.5
    about = read_json(study.pretrained / "run.json")
    assert written["recipe_digest"] == about["recipe_digest"]
    assert written["data_digest"] == about["data_digest"]
    weights = study.pretrained / "checkpoints" / "step-00000007" / "model.safetensors"
    assert written["weights_sha256"] == sha256_file(weights)
    assert done.payload == written
    said = capsys.readouterr().err.splitlines()
    assert "step 7" in said[0]
    assert written["weights_sha256"][:12] in said[0]
    assert "10 clips of split 'test'" in said[1]


def test_results_do_not_depend_on_batch_size_workers_or_a_second_run(study, tmp_path):
    first = evaluate.run(study.finetuned, task="classification", out=tmp_path / "a", batch_size=1)
    second = evaluate.run(study.finetuned, task="classification", out=tmp_path / "b", batch_size=4, workers=1)
    assert first.payload == second.payload
    assert list(first.result.metrics) == ["top1", "map", "auc", "d_prime"]
    assert (tmp_path / "a" / "results.json").read_bytes() == (tmp_path / "b" / "results.json").read_bytes()


def test_training_clips_are_scored_only_when_told(study, tmp_path):
    own = with_recipe(study, study.pretrained, tmp_path / "r", 'eval_split = "test"', 'eval_split = "train"')
    with pytest.raises(UsageFault, match="training split") as caught:
        evaluate.run(own, task="retrieval", out=tmp_path / "o")
    assert "--split train" in caught.value.next_step
    assert not (tmp_path / "o").exists()
    told = evaluate.run(own, task="retrieval", split="train", out=tmp_path / "o")
    assert told.result.n_total == 8


def test_without_a_path_the_newest_finished_run_that_fits_is_scored(study, tmp_path, monkeypatch):
    shutil.copytree(study.folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for second, name in enumerate(["fine", "pre"]):
        os.utime(tmp_path / "runs" / name / "status.json", (1e9 + second, 1e9 + second))
    assert evaluate.run(None, task="retrieval").path.name == "pre"
    assert evaluate.run(None, task="classification").path.name == "fine"
    shutil.rmtree(tmp_path / "runs" / "fine")
    with pytest.raises(UsageFault, match="needs a classifier") as caught:
        evaluate.run(None, task="classification")
    assert "kdctool finetune" in caught.value.next_step


def test_a_run_without_a_classifier_cannot_be_classified(study):
    with pytest.raises(UsageFault, match="has no classifier") as caught:
        evaluate.run(study.pretrained, task="classification")
    assert "kdctool finetune" in caught.value.next_step


def test_a_split_that_is_missing_or_shards_without_labels_say_what_to_do(study, tmp_path, make_shards, clip):
    with pytest.raises(DataFault, match="no split 'val'"):
        evaluate.run(study.pretrained, task="retrieval", split="val")
    plain = make_shards(tmp_path / "plain", {"test": [clip(1, [], "v")]}, labels=())
    with pytest.raises(DataFault, match="has no labels") as caught:
        evaluate.run(study.finetuned, task="classification", shards=plain)
    assert "labels.csv" in caught.value.next_step
    other = make_shards(tmp_path / "other", {"test": [clip(1, ["cat"], "v")]}, labels=("cat",))
    with pytest.raises(DataFault, match="first 'cat'"):
        evaluate.run(study.finetuned, task="classification", shards=other)


def test_an_empty_split_is_a_data_fault(study, tmp_path, make_shards, clip):
    shards = make_shards(tmp_path / "s", {"train": [clip(1, ["dog"], "v")], "test": []})
    with pytest.raises(DataFault, match="is empty") as caught:
        evaluate.run(study.pretrained, task="retrieval", shards=shards)
    assert "train (1)" in caught.value.next_step


def test_labels_in_another_order_or_fewer_of_them_reach_the_right_columns(study, tmp_path, make_shards, clip):
    clips = [clip(100 + i, [("bell", "dog")[i % 2]], f"v{i}") for i in range(6)]
    known = make_shards(tmp_path / "a", {"test": clips}, labels=("bell", "dog", "rain"))
    turned = make_shards(tmp_path / "b", {"test": clips}, labels=("dog", "bell"))
    one, two = (
        evaluate.run(study.finetuned, task="classification", shards=shards, out=tmp_path / "o").result
        for shards in (known, turned)
    )
    assert one == two
    assert "left out: rain" in one.notes[0]


def test_a_model_in_memory_is_scored_like_the_run_it_comes_from(study, tmp_path):
    done = evaluate.run(study.pretrained, task="retrieval", out=tmp_path)
    encoder = evaluate.open_model(study.pretrained).encoder
    assert evaluate.score(encoder, "retrieval", study.recipe, study.shards) == done.result
    torch.manual_seed(0)
    untrained = evaluate.score(AVEncoder(study.recipe.model), "retrieval", study.recipe, study.shards)
    assert untrained != done.result


def test_a_number_that_is_not_finite_is_null_in_the_json(study):
    metric = Metric(float("inf"), float("nan"), float("inf"), 0.0)
    result = Result("t", "t/x@1", {"d_prime": metric}, 1, 1, {})
    written = evaluate.results(result, "", "", "")["metrics"]["d_prime"]
    assert written == {"value": None, "low": None, "high": None, "chance": 0.0}


def test_the_command_prints_chance_intervals_and_the_published_value(study, tmp_path, capsys):
    assert kdctool(["eval", str(study.pretrained), "--task", "retrieval", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "scored" in out
    assert "10 of 10" in out
    line = next(line for line in out.splitlines() if line.strip().startswith("a2v_r1 "))
    assert "0.100" in line
    assert "0.302" in line
    assert "next: kdctool finetune" in out


def test_the_command_gives_programs_the_contents_of_results_json(study, tmp_path, capsys):
    arguments = ["eval", str(study.pretrained), "--out", str(tmp_path), "--format", "json"]
    assert kdctool(arguments) == 0
    assert json.loads(capsys.readouterr().out) == read_json(tmp_path / "results.json")


def test_an_unknown_task_ends_with_exit_code_2_and_a_suggestion(study, capsys):
    assert kdctool(["eval", str(study.pretrained), "--task", "retreival"]) == 2
    assert "did you mean 'retrieval'?" in capsys.readouterr().err


def members(clip, *lacking):
    """The clip without members of these kinds."""
    key, parts = clip
    return key, [(name, data) for name, data in parts if not name.endswith(lacking)]


def overlapping(study, folder, make_shards, clip):
    """A test split of six clips: one uid of training, one copy of another, two of a training video, two new ones."""
    copied = clip(1, ["dog"], "video77")
    own = [
        clip(0, ["bell"], "video70"),
        ("clip-copy", copied[1]),
        clip(50, ["dog"], "video3"),
        clip(51, ["rain"], "video3"),
        clip(52, ["bell"], "video71"),
        clip(53, ["dog"], "video72"),
    ]
    return make_shards(folder, {"test": own})


def test_test_clips_that_occur_in_training_are_refused_unless_allowed(study, tmp_path, make_shards, clip):
    shards = overlapping(study, tmp_path / "s", make_shards, clip)
    told = r"4 of 6 clips occur in training \(same uid 1, same content 2, same source video 2\)"
    with pytest.raises(DataFault, match=told) as caught:
        evaluate.run(study.pretrained, task="retrieval", shards=shards, out=tmp_path / "o")
    assert "--allow-overlap" in caught.value.next_step
    assert not (tmp_path / "o").exists()
    done = evaluate.run(study.pretrained, task="retrieval", shards=shards, out=tmp_path / "o", allow_overlap=True)
    assert done.result.n_scored == 6
    assert "4 of 6 clips occur in training" in read_json(tmp_path / "o" / "details.json")["notes"][0]


def test_an_overlap_with_the_training_split_of_the_same_shards_is_found_too(study, tmp_path, make_shards, clip):
    clips = [clip(60 + i, ["dog"], f"video9{i // 2}") for i in range(6)]
    shards = make_shards(tmp_path / "s", {"train": clips[:3], "test": clips[3:]})
    with pytest.raises(DataFault, match=r"1 of 3 clips occur in training .* source video 1"):
        evaluate.run(study.pretrained, task="retrieval", shards=shards, out=tmp_path / "o")


def test_training_shards_that_are_gone_are_said_not_to_have_been_compared(study, tmp_path, make_shards, clip):
    own = with_recipe(study, study.pretrained, tmp_path / "r", str(study.shards), str(tmp_path / "gone"))
    about = read_json(own / "run.json")
    about.pop("shards", None)
    (own / "run.json").write_text(json.dumps(about))
    shards = make_shards(tmp_path / "s", {"test": [clip(80 + i, ["dog"], f"new{i}") for i in range(3)]})
    notes = evaluate.run(own, task="retrieval", shards=shards, out=tmp_path / "o").result.notes
    assert "not compared with the clips the model was trained on" in notes[0]


def test_training_clips_that_were_asked_for_are_noted(study, tmp_path):
    notes = evaluate.run(study.pretrained, task="retrieval", split="train", out=tmp_path / "o").result.notes
    assert notes[0] == "all clips are training clips: split 'train' was asked for"


def test_only_the_chosen_clips_are_read_and_the_rest_of_a_list_is_missing(study, tmp_path, make_shards, clip):
    clips = [clip(90 + i, [("bell", "dog")[i % 2]], f"w{i}") for i in range(6)]
    clips[1] = members(clips[1], "flac")
    clips[3] = (clips[3][0], [(name, data if name == "json" else b"damaged") for name, data in clips[3][1]])
    shards = make_shards(tmp_path / "s", {"test": clips})
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join([clips[0][0], clips[1][0], "w2", "nobody"]))
    done = evaluate.run(
        study.pretrained, task="retrieval", shards=shards, out=tmp_path / "o", options={"list": str(ids)}
    ).result
    assert (done.n_scored, done.n_total) == (2, 4)
    assert done.missing == {"no_audio": 1, "not_in_shards": 1}
    assert done.per_clip.uids == (clips[0][0], clips[2][0])
    with pytest.raises(DataFault, match="cannot be decoded"):
        evaluate.run(study.pretrained, task="retrieval", shards=shards, out=tmp_path / "o")


def test_clips_per_class_come_from_the_command_line(study, tmp_path, capsys):
    arguments = ["eval", str(study.pretrained), "--out", str(tmp_path), "--option", "per_class=2"]
    assert kdctool(arguments) == 0
    out = capsys.readouterr().out
    assert "retrieval/frame-mid-2-per-class@1" in out
    assert "6 of 6" in out
    assert read_json(tmp_path / "results.json")["n_total"] == 6
    assert kdctool([*arguments, "--option", "per_clas=2"]) == 2
    assert kdctool([*arguments, "--option", "per_class=-1"]) == 2


@pytest.mark.parametrize(
    ("present", "lacking", "reason"), [("audio", "jpg", "no_audio"), ("video", "flac", "no_video")]
)
def test_clips_that_lack_what_is_not_asked_for_are_scored(study, tmp_path, make_shards, clip, present, lacking, reason):
    own = study.finetuned
    clips = [clip(90 + i, [("bell", "dog", "rain")[i % 3]], f"w{i}") for i in range(6)]
    shards = make_shards(tmp_path / "a", {"test": clips})
    whole = evaluate.run(own, task="classification", shards=shards, out=tmp_path / "o", options={"present": present})
    other = {"jpg": "flac", "flac": "jpg"}[lacking]
    bare = [members(one, lacking) for one in clips[:5]] + [members(clips[5], other)]
    shards = make_shards(tmp_path / "b", {"test": bare})
    part = evaluate.run(own, task="classification", shards=shards, out=tmp_path / "o", options={"present": present})
    assert (part.result.n_scored, part.result.missing) == (5, {reason: 1})
    scores = (each.result.per_clip.columns["scores"] for each in (whole, part))
    assert np.array_equal(next(scores)[:5], next(scores))


def test_what_is_written_clip_by_clip_needs_no_pickle_and_fits_the_results(study, tmp_path):
    done = evaluate.run(study.finetuned, task="classification", out=tmp_path)
    with np.load(tmp_path / "per_clip.npz", allow_pickle=False) as held:
        assert len(held["uids"]) == len(held["sources"]) == done.result.n_scored
        assert held["column.top1"].mean() == done.result.metrics["top1"].value
        assert held["column.scores"].shape == held["column.targets"].shape == (10, 3)
    details = read_json(tmp_path / "details.json")["details"]
    assert np.sum(details["confusion"]["counts"]) == 10
    assert [row["label"] for row in details["per_class"]] == ["bell", "dog", "rain"]


def test_a_modality_that_the_model_does_not_have_is_refused_before_any_clip_is_read(study, tmp_path, capsys):
    own = with_recipe(study, study.finetuned, tmp_path / "r", 'modality = "both"', 'modality = "audio"')
    arguments = ["eval", str(own), "--task", "classification", "--option", "present=video"]
    assert kdctool([*arguments, "--shards", str(tmp_path / "nowhere")]) == 2
    assert "finetuned on audio, so it cannot be scored on video" in capsys.readouterr().err
