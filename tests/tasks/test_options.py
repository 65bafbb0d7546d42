"""Options of classification and retrieval: other frames, other clips, a modality less; each under its own protocol."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.recipe import Model
from kdctool.tasks import EvalData, tasks
from kdctool.tasks.ranking import Known, rank_all

CLIPS, FRAMES, WIDTH = 20, 3, 32
LABELS = ("bell", "dog", "rain", "tap")
TINY = Model(
    audio_frames=64, mel_bins=16, image_size=16, audio_patch=8, video_patch=8, width=16, heads=2, depth=1, joint_depth=1
)


def new(name, **options):
    return tasks.get(name).cls(tasks.options(name, options))


def clips(frames=None, count=None, label=None, labels_of=None, multi_label=False, batch_size=6):
    """CLIPS clips, two per video; by default every frame and the sound of a clip are the same one-hot vector."""
    eye = torch.eye(CLIPS, WIDTH)
    frames = eye[:, None, None].repeat(1, FRAMES, 1, 1) if frames is None else frames  # (B, N, 1, D)
    count = torch.full((CLIPS,), FRAMES) if count is None else count
    batches = []
    for first in range(0, CLIPS, batch_size):
        rows = slice(first, first + batch_size)
        own = frames[rows][:, : int(count[rows].max())]
        batch = {"clip": torch.arange(CLIPS)[rows], "fbank": eye[rows, None].repeat(1, 2, 1)}
        batch |= {"frame": frames[rows][:, FRAMES // 2], "frames": own, "frame_count": count[rows]}
        if label is not None:
            batch["label"] = label[rows]
        batches.append(batch)
    names = [f"clip-{i:02}" for i in range(CLIPS)]
    abouts = [{"labels": labels_of(i)} for i in range(CLIPS)] if labels_of else []
    return EvalData(
        batches,
        names,
        [f"v{i // 2}" for i in range(CLIPS)],
        CLIPS,
        labels=LABELS,
        multi_label=multi_label,
        abouts=abouts,
    )


class Plain(nn.Module):
    """Tokens are the input; logits are the frame's first entries."""

    def embed_audio(self, fbank):
        return fbank

    def embed_video(self, frame):
        return frame

    def forward(self, batch):
        return batch["frame"][:, 0, : len(LABELS)]


def logits_frames(per_frame):
    """Frames that `Plain` turns into these logits, (CLIPS, N, classes)."""
    frames = torch.zeros(CLIPS, per_frame.shape[1], 1, WIDTH)
    frames[:, :, 0, : len(LABELS)] = per_frame
    return frames


def one_label():
    return torch.eye(len(LABELS))[torch.arange(CLIPS) % len(LABELS)]


def test_every_option_has_a_protocol_of_its_own(tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("clip-01\n# a comment\n\nv4\n")
    turned = tmp_path / "turned.txt"
    turned.write_text("v4\nclip-01\nclip-01\n")
    other = tmp_path / "other.txt"
    other.write_text("v4\n")
    given = [
        {}, {"frames": "mean"}, {"frames": "diagonal"}, {"per_class": 5}, {"per_class": 5, "seed": 1}, {"group": True},
        {"list": str(ids)}, {"list": str(other)}, {"per_class": 4},
    ]  # fmt: skip
    protocols = [new("retrieval", **options).protocol for options in given]
    assert len(set(protocols)) == len(given)
    assert protocols[0] == "retrieval/frame-mid@1"
    assert protocols[3] == "retrieval/frame-mid-5-per-class@1"
    assert new("retrieval", list=str(turned)).protocol == protocols[6]
    assert new("classification").protocol == "classification/frame-mid@1"


@pytest.mark.parametrize(("multi_label", "activation"), [(False, "softmax"), (True, "sigmoid")])
def test_all_frames_are_the_mean_of_the_probabilities(multi_label, activation):
    generator = torch.Generator().manual_seed(0)
    per_frame = torch.randn(CLIPS, FRAMES, len(LABELS), generator=generator) * 3
    count = torch.tensor([1 + i % FRAMES for i in range(CLIPS)])
    data = clips(logits_frames(per_frame), count, one_label(), multi_label=multi_label)
    result = new("classification", frames="all").run(Plain(), data)
    assert result.protocol == f"classification/frames-3-mean-{activation}@1"
    assert "1 to 3 frames" in result.notes[0]
    given = per_frame.double().sigmoid() if multi_label else per_frame.double().softmax(-1)
    expected = np.stack([given[i, : count[i]].mean(0).numpy() for i in range(CLIPS)])
    np.testing.assert_allclose(result.per_clip.columns["scores"], expected, atol=1e-6)


def test_each_frame_is_scored_apart_over_the_clips_that_have_it():
    right = one_label()
    per_frame = torch.stack([right, 1 - right, right], dim=1)
    count = torch.tensor([3] * 10 + [2] * 10)
    result = new("classification", frames="each").run(Plain(), clips(logits_frames(per_frame), count, right))
    assert [result.metrics[f"top1_frame{i}"].value for i in range(3)] == [1.0, 0.0, 1.0]
    assert result.metrics["map_frame0"].value == 1.0 > result.metrics["map_frame1"].value
    column = result.per_clip.columns["top1_frame2"]
    assert np.isnan(column[10:]).all()
    assert (column[:10] == 1).all()
    assert result.protocol == "classification/frames-3-each@1"


def test_equal_frames_give_the_middle_frames_ranking():
    generator = torch.Generator().manual_seed(1)
    per_frame = torch.randn(CLIPS, 1, len(LABELS), generator=generator).repeat(1, FRAMES, 1)
    frames = logits_frames(per_frame)
    mid, each = (
        new("classification", frames=kind).run(Plain(), clips(frames, label=one_label())).metrics
        for kind in ("mid", "each")
    )
    for name in ("top1", "map"):
        assert {mid[name].value} == {each[f"{name}_frame{i}"].value for i in range(FRAMES)}


def real(modality):
    torch.manual_seed(0)
    return AVClassifier(AVEncoder(TINY), len(LABELS), modality).eval()


def real_clips():
    data = clips(label=one_label())
    generator = torch.Generator().manual_seed(2)
    for batch in data.batches:
        size = len(batch["clip"])
        batch["fbank"] = torch.randn(size, 64, 16, generator=generator)
        batch["frames"] = torch.randn(size, FRAMES, 3, 16, 16, generator=generator)
        batch["frame"] = batch["frames"][:, 1]
    return data


@pytest.mark.parametrize(("present", "gone"), [("audio", "frame"), ("video", "fbank")])
def test_a_model_of_both_is_scored_on_one_and_never_reads_the_other(present, gone):
    data, model = real_clips(), real("both")
    expected = torch.cat([model.with_missing(batch, present) for batch in data.batches]).detach().numpy()
    for batch in data.batches:
        del batch[gone]
    task = new("classification", present=present)
    result = task.run(model, data)
    lacking = {"audio": "video", "video": "audio"}[present]
    assert result.protocol == f"classification/frame-mid-without-{lacking}@1"
    assert task.needs == (present, "label")
    np.testing.assert_allclose(result.per_clip.columns["scores"], expected, atol=1e-6)


def test_a_model_without_the_modality_asked_for_is_refused():
    for modality, asked in (("audio", "video"), ("audio", "both"), ("video", "audio")):
        with pytest.raises(UsageFault, match=f"finetuned on {modality}, so it cannot be scored on {asked}") as caught:
            new("classification", present=asked).run(real(modality), real_clips())
        assert f"finetune.modality={asked}" in caught.value.next_step
    with pytest.raises(UsageFault, match="looks at no frame"):
        new("classification", frames="all").run(real("audio"), real_clips())
    same = new("classification", present="audio").run(real("audio"), real_clips())
    assert same.protocol == "classification/frame-mid@1"


def test_details_hold_every_class_and_a_confusion_that_adds_up():
    scores = one_label() * 2
    scores[0] = torch.tensor([0.0, 3.0, 0.0, 0.0])  # A bell taken for a dog.
    result = new("classification").run(
        Plain(), clips(logits_frames(scores[:, None].repeat(1, 3, 1)), label=one_label())
    )
    confusion = np.array(result.details["confusion"]["counts"])
    assert confusion.sum() == result.n_scored == CLIPS
    assert confusion[0, 1] == 1
    assert np.trace(confusion) == CLIPS - 1 == result.metrics["top1"].value * CLIPS
    rows = {row["label"]: row for row in result.details["per_class"]}
    assert [row["positives"] for row in rows.values()] == [5, 5, 5, 5]
    assert rows["bell"]["recall"] == 0.8
    assert np.mean([row["ap"] for row in rows.values()]) == pytest.approx(result.metrics["map"].value, abs=1e-15)
    assert np.mean([row["auc"] for row in rows.values()]) == pytest.approx(result.metrics["auc"].value, abs=1e-15)


def test_a_class_without_positives_has_no_number_of_its_own():
    label = one_label()
    label[label[:, 2] == 1] = torch.eye(len(LABELS))[0]
    result = new("classification").run(Plain(), clips(logits_frames(label[:, None].repeat(1, 3, 1)), label=label))
    row = result.details["per_class"][2]
    assert (row["positives"], row["ap"], row["auc"], row["recall"]) == (0, None, None, None)


def test_columns_give_the_metrics_back():
    generator = torch.Generator().manual_seed(3)
    frames = logits_frames(torch.randn(CLIPS, FRAMES, len(LABELS), generator=generator))
    result = new("classification").run(Plain(), clips(frames, label=one_label()))
    assert result.per_clip.columns["top1"].mean() == result.metrics["top1"].value
    found = new("retrieval").run(Plain(), clips(torch.randn(CLIPS, FRAMES, 2, WIDTH, generator=generator)))
    for name, values in found.per_clip.columns.items():
        assert values.mean() == pytest.approx(found.metrics[name].value, abs=1e-12)
    assert len(found.per_clip.uids) == CLIPS


def test_the_mean_over_frames_is_the_normalised_mean_of_unit_embeddings():
    generator = torch.Generator().manual_seed(4)
    frames = torch.randn(CLIPS, FRAMES, 2, WIDTH, generator=generator)
    count = torch.tensor([1 + i % FRAMES for i in range(CLIPS)])
    result = new("retrieval", frames="mean").run(Plain(), clips(frames, count))
    assert result.protocol == "retrieval/frames-3-mean@1"
    assert "1 to 3 frames" in result.notes[0]
    units = torch.nn.functional.normalize(frames.mean(2), dim=-1)
    mean = torch.stack([torch.nn.functional.normalize(units[i, : count[i]].mean(0), dim=0) for i in range(CLIPS)])
    sound = torch.eye(CLIPS, WIDTH)
    rank = rank_all(sound.double().numpy(), mean.double().numpy(), Known()).places.rank()
    assert result.metrics["a2v_mean_rank"].value == pytest.approx(rank.mean())


def test_the_diagonal_pairs_each_frame_with_its_own_part_of_the_sound():
    encoder = AVEncoder(TINY).eval()
    data = real_clips()
    result = new("retrieval", frames="diagonal").run(encoder, data)
    assert result.protocol == "retrieval/frames-3-diagonal@1"
    rows, columns = TINY.audio_grid
    sounds, sights = [], []
    with torch.no_grad():
        for batch in data.batches:
            tokens = encoder.embed_audio(batch["fbank"]).reshape(-1, rows, columns, TINY.width).mean(1)
            part = [[t for t in range(columns) if t * FRAMES // columns == n] for n in range(FRAMES)]
            sounds.append(torch.stack([tokens[:, places].mean(1) for places in part], dim=1))
            sights.append(torch.stack([encoder.embed_video(batch["frames"][:, n]).mean(1) for n in range(3)], dim=1))
    a, v = torch.cat(sounds), torch.cat(sights)
    cosine = torch.nn.functional.cosine_similarity(a[:, None], v[None], dim=-1).mean(-1)
    rank = 1 + (cosine > cosine.diagonal()[:, None]).sum(1)
    assert result.metrics["a2v_mean_rank"].value == pytest.approx(rank.double().mean().item())


def test_the_diagonal_refuses_clips_with_unequal_numbers_of_frames():
    data = real_clips()
    data.batches[0]["frame_count"] = data.batches[0]["frame_count"] - 1
    with pytest.raises(DataFault, match="2 to 3 frames"):
        new("retrieval", frames="diagonal").run(AVEncoder(TINY), data)
    wide = Model(**{**TINY.model_dump(), "audio_frames": 16})
    with pytest.raises(UsageFault, match="2 tokens along time"):
        new("retrieval", frames="diagonal").run(AVEncoder(wide), _with_fbank(real_clips(), 16))


@pytest.mark.parametrize(("name", "model"), [("retrieval", AVEncoder(TINY)), ("classification", Plain())])
def test_single_frames_are_not_shown_to_a_model_of_collages(name, model):
    data = replace(real_clips(), collages=True)
    with pytest.raises(UsageFault, match="collages of four frames"):
        new(name, frames={"retrieval": "mean", "classification": "all"}[name]).run(model, data)


def _with_fbank(data, frames):
    for batch in data.batches:
        batch["fbank"] = batch["fbank"][:, :frames]
    return data


def test_clips_of_one_video_are_no_rivals_when_grouped():
    frames = torch.eye(CLIPS, WIDTH)[torch.arange(CLIPS) ^ 1][:, None, None].repeat(1, FRAMES, 1, 1)  # The twin's.
    alone, grouped = (new("retrieval", group=group).run(Plain(), clips(frames)) for group in (False, True))
    assert alone.metrics["a2v_r1"].value == 0.0
    # Without the twin all candidates score 0, the own one too.
    assert grouped.metrics["a2v_r1"].value == pytest.approx(1 / (CLIPS - 1))
    assert grouped.metrics["a2v_r1"].chance == pytest.approx(1 / (CLIPS - 1))
    assert grouped.metrics["a2v_median_rank"].chance == CLIPS / 2
    assert grouped.protocol == "retrieval/frame-mid-grouped@1"


@pytest.mark.parametrize("group", [False, True])
def test_a_constant_model_scores_exactly_chance_with_labels_and_groups(group):
    class Constant(Plain):
        def embed_audio(self, fbank):
            return torch.ones_like(fbank)

        embed_video = embed_audio

    data = clips(labels_of=lambda i: [LABELS[i % 3]] if i % 7 else [])
    result = new("retrieval", group=group).run(Constant(), data)
    assert "a2v_label_p1" in result.metrics
    for name, metric in result.metrics.items():
        assert metric.value == pytest.approx(metric.chance, abs=1e-12), name
    assert "over the 17 of 20 clips" in result.notes[0]


def test_label_precision_counts_the_labels_of_the_best_candidates():
    frames = torch.eye(CLIPS, WIDTH)[(torch.arange(CLIPS) + 4) % CLIPS][:, None, None].repeat(1, FRAMES, 1, 1)
    same = new("retrieval").run(Plain(), clips(frames, labels_of=lambda i: [LABELS[i % 4]]))
    assert same.metrics["a2v_r1"].value == 0.0
    assert same.metrics["a2v_label_p1"].value == 1.0
    assert same.metrics["a2v_label_p1"].chance == 0.25
    other = new("retrieval").run(Plain(), clips(frames, labels_of=lambda i: [LABELS[i // 5]]))
    assert other.metrics["v2a_label_p1"].value == pytest.approx(4 / CLIPS)


def test_the_best_candidates_are_kept_for_the_report_in_falling_order():
    generator = torch.Generator().manual_seed(5)
    result = new("retrieval").run(Plain(), clips(torch.randn(CLIPS, FRAMES, 2, WIDTH, generator=generator)))
    for way in ("a2v", "v2a"):
        query, top = result.assets[f"gallery.query_{way}"], result.assets[f"gallery.top_{way}"]
        score, rank = result.assets[f"gallery.score_{way}"], result.assets[f"gallery.rank_{way}"]
        assert len(query) == CLIPS
        assert top.shape == score.shape == (CLIPS, 5)
        assert (np.diff(score) <= 0).all()
        for row in range(CLIPS):
            place = np.flatnonzero(top[row] == query[row])
            assert place.tolist() == ([int(rank[row]) - 1] if rank[row] <= 5 else [])


def test_fewer_than_five_candidates_leave_empty_places():
    data = clips()
    first = {key: value[:2] for key, value in data.batches[0].items()}
    result = new("retrieval").run(Plain(), EvalData([first], data.uids, data.sources, 2))
    assert result.assets["gallery.top_a2v"].tolist() == [["clip-00", "clip-01", "", "", ""],
                                                         ["clip-01", "clip-00", "", "", ""]]  # fmt: skip
    assert np.isnan(result.assets["gallery.score_a2v"][:, 2:]).all()


def test_nan_in_one_frame_of_many_stops():
    frames = torch.eye(CLIPS, WIDTH)[:, None, None].repeat(1, FRAMES, 1, 1)
    frames[3, 0] = math.nan
    with pytest.raises(VerificationFault, match="NaN or infinite") as caught:
        new("retrieval", frames="mean").run(Plain(), clips(frames))
    assert caught.value.exit_code == 5


def chosen(task, labels_of=lambda i: [LABELS[i % 4]]):
    uids, sources = [f"clip-{i:02}" for i in range(CLIPS)], [f"v{i // 2}" for i in range(CLIPS)]
    return task.choose(uids, sources, [{"labels": labels_of(i)} for i in range(CLIPS)])


def test_clips_per_class_are_the_same_every_time_and_in_any_order():
    choice = chosen(new("retrieval", per_class=2))
    assert choice.keep.sum() == 8
    assert all(choice.keep[label::4].sum() == 2 for label in range(4))
    assert (chosen(new("retrieval", per_class=2)).keep == choice.keep).all()
    assert (chosen(new("retrieval", per_class=2, seed=1)).keep != choice.keep).any()
    uids = [f"clip-{i:02}" for i in range(CLIPS)]
    back = new("retrieval", per_class=2).choose(
        uids[::-1], uids, [{"labels": [LABELS[i % 4]]} for i in reversed(range(CLIPS))]
    )
    assert (back.keep[::-1] == choice.keep).all()


def test_small_classes_are_named_and_clips_of_two_classes_count_once():
    choice = chosen(new("retrieval", per_class=5), lambda i: ["dog", "rain"] if i < 3 else ["dog"] if i < 9 else [])
    assert choice.keep[:3].all()
    assert 5 <= choice.keep.sum() <= 8
    assert not choice.keep[9:].any()
    assert "1 classes have fewer than 5 clips: rain" in choice.notes[1]
    with pytest.raises(DataFault, match="no clip of the split has a label"):
        chosen(new("retrieval", per_class=5), lambda i: [])


def test_a_list_names_clips_or_videos_and_unknown_ids_are_missing(tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("clip-01\nv4\n# not this one\n\nnobody\nnothing\nv4\n")
    choice = chosen(new("retrieval", list=str(ids)))
    assert np.flatnonzero(choice.keep).tolist() == [1, 8, 9]
    assert choice.missing == {"not_in_shards": 2}
    ids.write_text("nobody\n")
    with pytest.raises(DataFault, match="none of the 1 ids"):
        chosen(new("retrieval", list=str(ids)))
    ids.write_text("# nothing\n")
    with pytest.raises(UsageFault, match="has no ids"):
        new("retrieval", list=str(ids))
    with pytest.raises(UsageFault, match="cannot be read"):
        new("retrieval", list=str(tmp_path / "gone.txt"))
    with pytest.raises(UsageFault, match="not both"):
        new("retrieval", list=str(ids), per_class=5)
