"""The probe task on toy features: separable is 1, uninformative is chance, and what cannot be learned is counted."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder, Encoded
from kdctool.recipe import Model
from kdctool.tasks import EvalData, tasks
from kdctool.tasks.embeddings import pooled
from kdctool.tasks.probe import Probe, ProbeOptions
from kdctool.tasks.probe_scores import Judge

CLASSES, TRAIN, TEST, WIDTH = 4, 80, 40, 8
TINY = Model(
    audio_frames=32, mel_bins=16, image_size=16, audio_patch=8, video_patch=8, width=16, heads=2, depth=1, joint_depth=1
)


class Toy(nn.Module):
    """Tokens are the inputs: audio (B, L, D), frames (B, D, 1, 1)."""

    def embed_audio(self, fbank):
        return fbank

    def embed_video(self, frame):
        return frame.flatten(1)[:, None]

    def forward(self, fbank, frame, single=True):
        assert not single
        return Encoded(torch.cat([fbank, frame.flatten(1)[:, None]], dim=1), None, None)


class Constant(Toy):
    def embed_audio(self, fbank):
        return torch.full_like(fbank, 0.37)

    def embed_video(self, frame):
        return torch.full_like(frame.flatten(1)[:, None], 0.11)

    def forward(self, fbank, frame, single=True):
        return Encoded(self.embed_audio(fbank), None, None)


class Broken(Toy):
    def forward(self, fbank, frame, single=True):
        return Encoded(torch.where(torch.arange(len(fbank))[:, None, None] == 1, math.nan, fbank), None, None)


def kinds(clips):
    return torch.arange(clips) % CLASSES


def half(name, clips, seed, spread, batch_size=16, label=None, order=None, source=None, **other):
    """Clips of one split: class centres plus noise, three frames each."""
    centre = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99)) * (spread < 100)
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return centre[kinds(clips)] + spread * torch.randn(clips, WIDTH, generator=generator)

    fbank = torch.stack([draw(), draw()], dim=1)  # Two tokens.
    frames = torch.stack([draw() for _ in range(3)], dim=1)[:, :, :, None, None]
    label = torch.eye(CLASSES)[kinds(clips)] if label is None else label
    order = torch.arange(clips) if order is None else order
    batches = []
    for first in range(0, clips, batch_size):
        rows = order[first : first + batch_size]
        batches.append(
            {
                "clip": rows,
                "fbank": fbank[rows],
                "frame": frames[rows, 1],
                "frames": frames[rows],
                "frame_count": torch.full((len(rows),), 3),
                "label": label[rows],
            }
        )
    given = {
        "uids": [f"{name}-{i}" for i in range(clips)],
        "sources": [f"{name}-video-{i // 2 if source is None else source}" for i in range(clips)],
        "n_total": clips,
        "labels": tuple("abcdefgh"[: label.shape[1]]),
    }
    return EvalData(batches=batches, **{**given, **other})


def evaluation(spread=0.05, train=None, **other):
    train = {"name": "train", "clips": TRAIN, "seed": 0, "spread": spread, **(train or {})}
    return half("test", TEST, 1, spread, **{"train": half(**train), **other})


def new(**options):
    return Probe(ProbeOptions(**{"draws": 3, **options}))


@pytest.mark.parametrize("features", [{}, {"both": "concat"}, {"present": "audio"}, {"present": "video"}])
def test_separable_classes_score_one_and_constant_features_score_chance(features):
    perfect = new(**features).run(Toy(), evaluation()).metrics
    assert list(perfect) == ["linear_k10_top1", "linear_top1", "knn5_top1", "knn20_top1"]
    for name, metric in perfect.items():
        assert (metric.value, metric.low, metric.high, metric.chance) == (1.0, 1.0, 1.0, 1 / CLASSES), name
    for name, metric in new(**features).run(Constant(), evaluation()).metrics.items():
        assert metric.value == pytest.approx(metric.chance, abs=1e-12), name


def test_labels_that_mean_nothing_score_about_chance():
    label = torch.eye(CLASSES)[torch.randint(CLASSES, (TRAIN,), generator=torch.Generator().manual_seed(5))]
    found = new(draws=10).run(Toy(), evaluation(spread=3.0, train={"label": label})).metrics
    for name, metric in found.items():
        assert 0.05 < metric.value < 0.5, name


def test_more_labels_help_and_the_curve_tells_every_draw():
    result = new(labels="k1,k5,0.5,all", draws=5).run(Toy(), evaluation(spread=2.0))
    curve = {point["labels"]: point for point in result.details["curve"]}
    assert list(curve) == ["k1", "k5", "share0.5", "all"]
    assert [point["train_clips"] for point in curve.values()] == [4, 20, 40, 80]
    assert [len(point["draws"]) for point in curve.values()] == [5, 5, 5, 1]
    assert curve["k1"]["value"] < curve["k5"]["value"] < curve["all"]["value"]
    assert curve["k1"]["value"] == pytest.approx(np.mean(curve["k1"]["draws"]))
    assert curve["k1"]["std_over_draws"] > 0
    assert curve["all"]["std_over_draws"] is None
    assert list(result.metrics)[:4] == ["linear_k1_top1", "linear_k5_top1", "linear_share0.5_top1", "linear_top1"]


def test_columns_of_single_clips_average_to_the_metrics_and_intervals_hold_them():
    result = new(labels="k1,all").run(Toy(), evaluation(spread=2.0))
    assert list(result.per_clip.columns) == list(result.metrics)
    assert result.per_clip.uids[:2] == ("test-0", "test-1")
    assert result.per_clip.sources[:3] == ("test-video-0", "test-video-0", "test-video-1")
    for name, metric in result.metrics.items():
        assert result.per_clip.columns[name].mean() == pytest.approx(metric.value)
        assert metric.low < metric.value < metric.high


def test_one_source_video_says_nothing_about_the_spread():
    metric = new().run(Toy(), evaluation(source=0)).metrics["linear_top1"]
    assert math.isnan(metric.low)
    assert math.isnan(metric.high)


@pytest.mark.parametrize("features", [{}, {"both": "concat", "frames": "all"}])
def test_results_depend_neither_on_the_order_of_clips_nor_on_batches(features):
    spread = 2.0
    plain = new(**features).run(Toy(), evaluation(spread))
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(1))
    train = {"order": order, "batch_size": 7}
    other = new(**features).run(Toy(), evaluation(spread, train=train, batch_size=1, order=torch.arange(TEST).flip(0)))
    assert other.metrics.keys() == plain.metrics.keys()
    for name, metric in plain.metrics.items():
        assert other.metrics[name].value == pytest.approx(metric.value, abs=1e-12), name
    assert other.details["curve"][0]["draws"] == pytest.approx(plain.details["curve"][0]["draws"])


def test_the_embedding_of_a_clip_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    encoder = AVEncoder(TINY).eval()
    batch = {
        "fbank": torch.randn(6, 32, 16),
        "frame": torch.randn(6, 3, 16, 16),
        "frames": torch.randn(6, 3, 3, 16, 16),
        "frame_count": torch.tensor([3, 1, 2, 3, 3, 2]),
    }
    for features in ("audio", "video", "joint", "concat"):
        for every in (False, True):
            whole = torch.cat(pooled(encoder, batch, features, every), dim=1)
            for i in range(6):
                single = {name: value[i : i + 1] for name, value in batch.items()}
                alone = torch.cat(pooled(encoder, single, features, every), dim=1)
                assert torch.allclose(alone[0], whole[i], atol=1e-5), (features, every)


def test_all_frames_are_the_mean_over_the_frames_a_clip_has():
    batch = next(iter(evaluation(2.0).batches))
    batch["frame_count"] = torch.tensor([3, 2] + [3] * 14)
    (found,) = pooled(Toy(), batch, "video", True)
    assert torch.allclose(found[0], batch["frames"][0].mean(0).flatten())
    assert torch.allclose(found[1], batch["frames"][1, :2].mean(0).flatten())


def test_the_protocol_names_features_and_frames():
    assert new().protocol == "probe/joint-frame-mid@1"
    assert new(both="concat", frames="all").protocol == "probe/concat-frames-all@1"
    assert new(present="video", both="concat").protocol == "probe/video-frame-mid@1"
    assert new(present="audio").protocol == "probe/audio@1"
    assert new(present="audio").needs == ("audio", "label", "train")
    assert new(frames="all").frames == "all"
    with pytest.raises(UsageFault, match="sound alone"):
        new(present="audio", frames="all")
    with pytest.raises(UsageFault, match="no number of labels"):
        new(labels="many")


def test_the_command_line_finds_the_task_and_checks_its_options():
    assert tasks.get("probe").cls is Probe
    assert tasks.options("probe", {"labels": 0.1}).labels == 0.1
    with pytest.raises(UsageFault, match="option draws"):
        tasks.options("probe", {"draws": 0})


def test_several_labels_are_scored_by_mean_average_precision():
    def label(clips):
        one = torch.eye(CLASSES)[kinds(clips)]
        return torch.cat([one, (one[:, :1] + one[:, 1:2])], dim=1)

    data = evaluation(train={"label": label(TRAIN)}, label=label(TEST))
    result = new().run(Toy(), data)
    assert list(result.metrics) == ["linear_k10_map", "linear_map", "knn5_map", "knn20_map"]
    for name, metric in result.metrics.items():
        assert metric.value == pytest.approx(1.0), name
        assert metric.chance == pytest.approx((4 * 0.25 + 0.5) / 5)
    assert result.per_clip.columns["linear_map.scores"].shape == (TEST, 5)
    constant = new().run(Constant(), evaluation(train={"label": label(TRAIN)}, label=label(TEST)))
    for name, metric in constant.metrics.items():
        assert metric.value == pytest.approx(metric.chance), name


def test_a_class_without_training_clip_is_left_out_counted_and_named():
    label = torch.eye(CLASSES)[kinds(TRAIN)]
    label[kinds(TRAIN) == 2] = 0
    result = new().run(Toy(), evaluation(train={"label": label}))
    assert (result.n_scored, result.n_total) == (30, TEST)
    assert result.missing == {"class_without_training_clip": 10}
    assert any("1 classes without a training clip left out: c" in note for note in result.notes)
    assert any("20 of 80 training clips have no label" in note for note in result.notes)
    assert result.details["labels"] == ["a", "b", "d"]
    assert result.metrics["linear_top1"].value == 1.0
    assert result.metrics["linear_top1"].chance == 1 / 3


def test_unlabelled_test_clips_and_missing_ones_are_counted_by_reason():
    label = torch.eye(CLASSES)[kinds(TEST)]
    label[:3] = 0
    result = new().run(Toy(), evaluation(label=label, n_total=TEST + 2, missing={"no_audio": 2}))
    assert (result.n_scored, result.missing) == (TEST - 3, {"no_audio": 2, "no_label": 3})
    assert result.n_scored + sum(result.missing.values()) == result.n_total


def test_one_class_alone_gives_nothing_to_tell_apart():
    only = torch.eye(CLASSES)[torch.zeros(TRAIN, dtype=torch.long)]
    with pytest.raises(DataFault, match="same label"):
        new().run(Toy(), evaluation(train={"label": only}))
    tested = torch.eye(CLASSES)[torch.zeros(TEST, dtype=torch.long)]
    assert 0 <= new().run(Toy(), evaluation(label=tested)).metrics["linear_top1"].value <= 1


def test_data_that_cannot_be_probed_is_refused_with_the_reason():
    with pytest.raises(DataFault, match="training clips, and there are none"):
        new().run(Toy(), half("test", TEST, 1, 1.0))
    with pytest.raises(DataFault, match="none of 80 training clips has a label"):
        new().run(Toy(), evaluation(train={"label": torch.zeros(TRAIN, CLASSES)}))
    with pytest.raises(DataFault, match="none of 40 clips has a label"):
        new().run(Toy(), evaluation(label=torch.zeros(TEST, CLASSES)))
    unlabelled = evaluation()
    for batch in unlabelled.batches:
        del batch["label"]
    with pytest.raises(DataFault, match="no labels"):
        new().run(Toy(), unlabelled)
    empty = EvalData([], [], [], 0)
    with pytest.raises(DataFault, match="no clip"):
        new().run(Toy(), EvalData([], [], [], 0, train=empty))


def test_a_model_of_collages_is_not_asked_about_single_frames():
    with pytest.raises(UsageFault, match="collages"):
        new(frames="all").run(Toy(), evaluation(collages=True))
    assert new().run(Toy(), evaluation(collages=True)).metrics["linear_top1"].value == 1.0


def test_a_nan_stops_with_exit_code_5():
    with pytest.raises(VerificationFault, match="NaN or infinite") as caught:
        new().run(Broken(), evaluation())
    assert caught.value.exit_code == 5


def test_fewer_clips_than_the_budget_are_told():
    result = new(labels="k30,all").run(Toy(), evaluation())
    assert any("k30: 4 of 4 classes have fewer training clips" in note for note in result.notes)
    assert result.metrics["linear_k30_top1"].value == result.metrics["linear_top1"].value


def test_answering_the_commonest_class_is_told_beside_the_scores():
    label = torch.eye(CLASSES)[torch.zeros(TRAIN, dtype=torch.long)]
    label[:20] = torch.eye(CLASSES)[kinds(20)]
    assert new().run(Constant(), evaluation(train={"label": label})).details["majority"] == 0.25


def test_the_interval_over_draws_is_wider_than_over_clips_alone():
    rng = np.random.default_rng(0)
    truth = np.eye(4, dtype=bool)[np.arange(200) % 4]
    right = truth + 0.0
    wrong = np.roll(right, 1, axis=1)
    judge = Judge(truth, [str(i) for i in range(200)], several=False)
    draws = [np.where(rng.random((200, 1)) < share, right, wrong) for share in (0.4, 0.6, 0.8, 1.0)]
    mixed = judge(draws)
    same = judge([np.where(rng.random((200, 1)) < 0.7, right, wrong)] * 4)
    assert mixed.metric.high - mixed.metric.low > 1.5 * (same.metric.high - same.metric.low)
    assert mixed.metric.low < mixed.metric.value < mixed.metric.high


def test_a_real_encoder_is_probed_and_left_in_training_mode():
    torch.manual_seed(0)
    encoder = AVEncoder(TINY).train()
    data = evaluation()
    for part in (data, data.train):
        for batch in part.batches:
            size = len(batch["clip"])
            batch["fbank"], batch["frame"] = torch.randn(size, 32, 16), torch.randn(size, 3, 16, 16)
    result = new().run(encoder, data)
    assert encoder.training
    assert result.details["dimensions"] == 16
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(math.isfinite(metric.value) for metric in result.metrics.values())
