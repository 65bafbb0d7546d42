"""Every task on toy models: perfect scores one, constant scores chance, and what cannot be scored is counted."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.recipe import Model
from kdctool.tasks import EvalData, tasks

PLAIN = ("classification", "retrieval")
"""Tasks that score any model of the two toys' kind: no boxes, no decoder, nothing learned on the way."""
CLIPS, CLASSES, TOKENS = 24, 8, 3
TINY = Model(
    audio_frames=32, mel_bins=16, image_size=16, audio_patch=8, video_patch=8, width=16, heads=2, depth=1, joint_depth=1
)


class Identity(nn.Module):
    """Tokens are the input itself: clips with equal inputs have equal embeddings."""

    def embed_audio(self, fbank):
        return fbank

    def embed_video(self, frame):
        return frame

    def forward(self, batch):
        return batch["label"] * 4.0 - 2.0


class Constant(Identity):
    """Knows nothing: every clip looks alike."""

    def embed_audio(self, fbank):
        return torch.ones_like(fbank) * 0.37

    def embed_video(self, frame):
        return torch.ones_like(frame) * 0.11

    def forward(self, batch):
        return torch.full_like(batch["label"], 0.5)


class Broken(Identity):
    """Gives one NaN."""

    def embed_audio(self, fbank):
        return torch.where(torch.arange(len(fbank))[:, None, None] == 1, math.nan, fbank)

    def forward(self, batch):
        return self.embed_audio(batch["label"][:, None])[:, 0]


def one_label_each():
    return torch.eye(CLASSES)[torch.arange(CLIPS) % CLASSES]


def evaluation(label=None, batch_size=7, multi_label=False, **other):
    """CLIPS clips from half as many videos whose tokens are one-hot vectors."""
    tokens = torch.eye(CLIPS)[:, None, :].repeat(1, TOKENS, 1)
    batches = []
    for first in range(0, CLIPS, batch_size):
        rows = slice(first, first + batch_size)
        batch = {"clip": torch.arange(CLIPS)[rows], "fbank": tokens[rows], "frame": tokens[rows]}
        if label is not None:
            batch["label"] = label[rows]
        batches.append(batch)
    given = {
        "uids": [f"clip-{i}" for i in range(CLIPS)],
        "sources": [f"video-{i // 2}" for i in range(CLIPS)],
        "n_total": CLIPS,
        "labels": tuple("abcdefgh"),
        "multi_label": multi_label,
    }
    return EvalData(batches=batches, **{**given, **other})


def new(name):
    return tasks.get(name).cls(tasks.options(name, {}))


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_names_its_versioned_protocol_and_what_it_needs(name):
    task = new(name)
    assert task.protocol.startswith(f"{name}/")
    assert task.protocol.rpartition("@")[2].isdigit()
    assert set(task.needs) <= {"audio", "video", "label", "about", "train"}
    assert task.wants in ("encoder", "classifier", "objective")
    assert task.frames in ("mid", "all")


@pytest.mark.parametrize("name", PLAIN)
def test_perfect_features_are_perfect_and_constant_ones_are_chance(name):
    perfect = new(name).run(Identity(), evaluation(one_label_each())).metrics
    constant = new(name).run(Constant(), evaluation(one_label_each())).metrics
    for key, metric in perfect.items():
        best = math.inf if key == "d_prime" else 1.0
        assert metric.value == best, key
    for key, metric in constant.items():
        assert metric.value == pytest.approx(metric.chance, abs=1e-12), key


@pytest.mark.parametrize("name", PLAIN)
def test_every_interval_holds_its_value_and_every_clip_is_counted(name):
    label = one_label_each()
    noise = evaluation(label)
    generator = torch.Generator().manual_seed(0)
    for batch in noise.batches:
        for key in ("fbank", "frame"):
            batch[key] = batch[key] + torch.randn(batch[key].shape, generator=generator) * 0.6
        batch["label"] = batch["label"] + 0.0
    result = new(name).run(Noisy(generator), noise)
    assert result.n_scored == CLIPS
    assert result.n_scored + sum(result.missing.values()) == result.n_total
    for key, metric in result.metrics.items():
        assert metric.low <= metric.value <= metric.high, key
        assert metric.low < metric.high, key


class Noisy(Identity):
    """Right more often than not."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, batch):
        return batch["label"] + torch.randn(batch["label"].shape, generator=self.generator) * 0.7


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("batch_size", [1, 5, CLIPS])
def test_results_do_not_depend_on_the_batch_size(name, batch_size):
    label = one_label_each()
    whole = new(name).run(Identity(), evaluation(label))
    assert new(name).run(Identity(), evaluation(label, batch_size=batch_size)) == whole


@pytest.mark.parametrize("name", PLAIN)
def test_a_nan_stops_with_exit_code_5(name):
    with pytest.raises(VerificationFault, match="NaN or infinite") as caught:
        new(name).run(Broken(), evaluation(one_label_each()))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", PLAIN)
def test_a_split_without_clips_is_a_data_fault(name):
    with pytest.raises(DataFault, match="no clip"):
        new(name).run(Identity(), EvalData(batches=[], uids=[], sources=[], n_total=0))


@pytest.mark.parametrize("name", PLAIN)
def test_clips_that_vanish_or_come_twice_are_refused(name):
    label = one_label_each()
    data = evaluation(label, n_total=CLIPS + 2)
    with pytest.raises(DataFault, match=f"{CLIPS} of {CLIPS + 2} clips were read"):
        new(name).run(Identity(), data)
    twice = evaluation(label)
    with pytest.raises(DataFault, match="clip-0 was read twice"):
        new(name).run(Identity(), _again(twice))


def _again(data):
    return EvalData([*data.batches, data.batches[0]], data.uids, data.sources, data.n_total, data.missing, data.labels)


@pytest.mark.parametrize("name", PLAIN)
def test_missing_clips_stay_in_the_result_with_their_reason(name):
    result = new(name).run(Identity(), evaluation(one_label_each(), n_total=CLIPS + 3, missing={"no_audio": 3}))
    assert (result.n_scored, result.n_total, result.missing) == (CLIPS, CLIPS + 3, {"no_audio": 3})


@pytest.mark.parametrize("name", PLAIN)
def test_a_real_model_is_scored_and_left_in_training_mode(name):
    torch.manual_seed(0)
    encoder = AVEncoder(TINY)
    model = encoder if new(name).wants == "encoder" else AVClassifier(encoder, CLASSES, "both")
    model.train()
    generator = torch.Generator().manual_seed(1)
    data = evaluation(one_label_each())
    for batch in data.batches:
        size = len(batch["clip"])
        batch["fbank"] = torch.randn(size, 32, 16, generator=generator)
        batch["frame"] = torch.randn(size, 3, 16, 16, generator=generator)
    result = new(name).run(model, data)
    assert model.training
    assert all(math.isfinite(metric.value) for metric in result.metrics.values())


def test_a_collapsed_encoder_scores_exactly_chance():
    encoder = AVEncoder(TINY)
    for norm in (encoder.norm_a, encoder.norm_v):
        nn.init.zeros_(norm.weight)
        nn.init.normal_(norm.bias)
    data = evaluation()
    for batch in data.batches:
        batch["fbank"] = torch.randn(len(batch["clip"]), 32, 16)
        batch["frame"] = torch.randn(len(batch["clip"]), 3, 16, 16)
    for key, metric in new("retrieval").run(encoder, data).metrics.items():
        assert metric.value == pytest.approx(metric.chance, abs=1e-12), key


def test_retrieval_reports_both_directions_beside_chance():
    metrics = new("retrieval").run(Identity(), evaluation()).metrics
    names = [f"{way}_{what}" for way in ("a2v", "v2a") for what in ("r1", "r5", "r10", "median_rank", "mean_rank")]
    assert list(metrics) == names
    assert [metrics[f"a2v_r{k}"].chance for k in (1, 5, 10)] == [1 / CLIPS, 5 / CLIPS, 10 / CLIPS]
    assert metrics["v2a_median_rank"].chance == (CLIPS + 1) / 2


def test_directions_differ_when_one_gallery_item_attracts_every_query():
    data = evaluation()
    for batch in data.batches:
        batch["frame"] = batch["frame"].clone()
        batch["frame"][batch["clip"] == 0] = 2.0  # Video 0 is near every sound, without being anyone's nearest.
        batch["frame"][batch["clip"] == 1] = torch.eye(CLIPS)[0]
    metrics = new("retrieval").run(Identity(), data).metrics
    assert metrics["a2v_r1"].value != metrics["v2a_r1"].value


def test_one_clip_is_found_but_its_interval_is_unknown():
    data = evaluation()
    first = {key: value[:1] for key, value in data.batches[0].items()}
    metric = new("retrieval").run(Identity(), EvalData([first], data.uids, data.sources, 1)).metrics["a2v_r1"]
    assert (metric.value, metric.chance) == (1.0, 1.0)
    assert math.isnan(metric.low)


def test_one_label_per_clip_has_accuracies_and_several_have_none():
    single = new("classification").run(Identity(), evaluation(one_label_each()))
    assert list(single.metrics) == ["top1", "top5", "map", "auc", "d_prime"]
    assert (single.metrics["top1"].chance, single.metrics["top5"].chance) == (1 / CLASSES, 5 / CLASSES)
    several = one_label_each()
    several[0, 3] = 1
    multi = new("classification").run(Identity(), evaluation(several))
    assert list(multi.metrics) == ["map", "auc", "d_prime"]
    assert list(new("classification").run(Identity(), evaluation(one_label_each(), multi_label=True)).metrics) == list(
        multi.metrics
    )


def test_a_class_without_positives_is_left_out_counted_and_named():
    label = one_label_each()
    label[label[:, 2] == 1] = torch.eye(CLASSES)[0]
    result = new("classification").run(Identity(), evaluation(label))
    assert result.metrics["map"].value == 1.0
    assert "7 of 8 classes" in result.notes[0]
    assert "left out: c" in result.notes[0]


def test_a_class_that_every_clip_has_leaves_only_the_auc():
    label = one_label_each()
    label[:, 0] = 1
    result = new("classification").run(Constant(), evaluation(label))
    assert result.metrics["auc"].value == 0.5
    assert result.metrics["map"].value == pytest.approx(label.mean(0).mean().item())
    assert "AUC leaves out 1 class" in result.notes[0]


def test_clips_without_a_label_are_missing_with_that_reason():
    label = one_label_each()
    label[5:8] = 0
    result = new("classification").run(Identity(), evaluation(label))
    assert (result.n_scored, result.n_total, result.missing) == (CLIPS - 3, CLIPS, {"no_label": 3})
    with pytest.raises(DataFault, match="has a label"):
        new("classification").run(Identity(), evaluation(torch.zeros(CLIPS, CLASSES)))


def test_unlabelled_shards_and_other_label_lists_are_refused():
    with pytest.raises(DataFault, match="no labels"):
        new("classification").run(Identity(), evaluation())

    class Wider(Identity):
        def forward(self, batch):
            return torch.zeros(len(batch["label"]), CLASSES + 1)

    with pytest.raises(UsageFault, match="knows 9 classes, the labels have 8"):
        new("classification").run(Wider(), evaluation(one_label_each()))


def test_an_unknown_task_is_a_usage_error_with_a_suggestion():
    with pytest.raises(UsageFault) as caught:
        tasks.get("retreival")
    assert "retrieval" in caught.value.next_step


def test_intervals_are_clustered_by_source_video():
    label = one_label_each()
    wide = new("classification").run(
        Noisy(torch.Generator().manual_seed(2)), evaluation(label, sources=["a"] * 12 + ["b"] * 12)
    )
    narrow = new("classification").run(
        Noisy(torch.Generator().manual_seed(2)), evaluation(label, sources=[str(i) for i in range(CLIPS)])
    )
    assert wide.metrics["top1"].value == narrow.metrics["top1"].value
    assert wide.metrics["top1"] != narrow.metrics["top1"]
    assert np.isfinite([wide.metrics["top1"].low, wide.metrics["top1"].high]).all()


def test_the_interval_of_map_holds_its_value_though_repeated_positives_raise_it():
    rng = torch.Generator().manual_seed(4)
    clips, classes = 400, 100

    class Guess(Identity):
        def forward(self, batch):
            return torch.randn(len(batch["clip"]), classes, generator=rng)

    label = torch.eye(classes)[torch.arange(clips) % classes]
    batch = {"clip": torch.arange(clips), "label": label}
    names = [str(i) for i in range(clips)]
    metric = new("classification").run(Guess(), EvalData([batch], names, names, clips)).metrics["map"]
    assert metric.low < metric.value < metric.high


def test_help_names_every_task() -> None:
    from typing import get_args, get_type_hints

    from kdctool.cli.evaluate import evaluate

    told = get_args(get_type_hints(evaluate, include_extras=True)["task"])[1].help
    assert [name for name in tasks.names() if name not in told] == []
