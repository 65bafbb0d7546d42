"""The diagnose task on tiny encoders and a timm ViT: what is measured is what the model computes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kdctool.errors import DataFault, UsageFault, VerificationFault
from kdctool.models.av_encoder import AVEncoder
from kdctool.recipe import Model
from kdctool.tasks import EvalData
from kdctool.tasks import attention as maps
from kdctool.tasks.diagnose import Diagnose, DiagnoseOptions
from kdctool.tasks.towers import Watch, towers_of

CLIPS = 10
# A grid of 2 x 6 for sound: mixed up rows and columns are seen.
TINY = Model(
    audio_frames=48, mel_bins=16, image_size=24, audio_patch=8, video_patch=8, width=16, heads=2, depth=2, joint_depth=1
)


def encoder(seed=0, **other):
    torch.manual_seed(seed)
    return AVEncoder(TINY.model_copy(update=other)).eval()


def evaluation(batch_size=4, **other):
    generator = torch.Generator().manual_seed(1)
    fbank = torch.randn(CLIPS, 48, 16, generator=generator)
    frame = torch.randn(CLIPS, 3, 24, 24, generator=generator)
    batches = [
        {"clip": torch.arange(CLIPS)[rows], "fbank": fbank[rows], "frame": frame[rows]}
        for rows in (slice(first, first + batch_size) for first in range(0, CLIPS, batch_size))
    ]
    given = {"uids": [f"clip-{i}" for i in range(CLIPS)], "sources": [f"video-{i // 2}" for i in range(CLIPS)]}
    return EvalData(batches=batches, **{**given, "n_total": CLIPS, **other})


def run(model, data=None, **options):
    return Diagnose(DiagnoseOptions(**options)).run(model, data or evaluation())


def collapse(model):
    """Every query attends alike: keys without any direction."""
    for block in [*model.blocks_a, *model.blocks_v, *model.blocks_u]:
        nn.init.zeros_(block.attn.qkv.weight)
    return model


def test_layers_count_through_the_joint_block_and_every_head_is_told():
    result = run(encoder())
    towers = result.details["towers"]
    assert list(towers) == ["audio", "video"]
    assert [row["block"] for row in towers["audio"]] == ["blocks_a.0", "blocks_a.1", "blocks_u.0"]
    assert [row["layer"] for row in towers["video"]] == [1, 2, 3]
    for row in towers["audio"]:
        for name in ("ahd", "nmi", "entropy", "time", "frequency"):
            heads = row[f"{name}_heads"]
            assert len(heads) == 2
            assert row[f"{name}_mean"] == pytest.approx(np.mean(heads))
            assert row[f"{name}_std"] == pytest.approx(np.std(heads))
        assert row["singular_top"] == sorted(row["singular_top"])
        assert 1 <= row["effective_rank"] <= 12
    assert "time_mean" not in towers["video"][0]
    assert result.details["units"] == {
        "audio": {"ahd": "fbank cells", "time": "ms", "frequency": "mel bins"},
        "video": {"ahd": "pixels"},
    }
    assert result.details["grid"] == {"audio": [2, 6], "video": [3, 3]}


def test_a_metric_is_the_mean_over_clips_of_the_last_layer():
    result = run(encoder())
    rows = result.details["towers"]["video"]
    assert result.metrics["video_nmi"].value == pytest.approx(rows[-1]["nmi_mean"], abs=1e-6)
    ratio = rows[-1]["ahd_mean"] / result.details["uniform_ahd"]["video"]
    assert result.metrics["video_ahd_ratio"].value == pytest.approx(ratio, abs=1e-5)
    assert result.metrics["video_effective_rank"].value == pytest.approx(rows[-1]["effective_rank"])
    for name, metric in result.metrics.items():
        assert metric.low <= metric.value <= metric.high, name
        assert result.per_clip.columns[name].mean() == pytest.approx(metric.value)
    assert result.protocol == "diagnose/whole-input@1"


def test_attention_that_tells_no_token_apart_scores_what_stands_under_chance():
    result = run(collapse(encoder()))
    for name in ("audio_ahd_ratio", "audio_nmi", "audio_entropy", "video_nmi", "joint_mass_av", "joint_nmi"):
        metric = result.metrics[name]
        assert metric.value == pytest.approx(metric.chance, abs=1e-5), name
    assert result.metrics["joint_mass_av"].chance == pytest.approx(9 / 21)
    assert result.metrics["joint_mass_va"].chance == pytest.approx(12 / 21)


def test_uniform_distances_are_those_of_the_grid_with_the_true_patch():
    result = run(collapse(encoder()))
    first = result.details["towers"]["audio"][0]
    uniform = result.details["uniform"]["audio"]
    columns, rows = np.arange(6), np.arange(2)
    assert uniform["time"] == pytest.approx(80 * np.abs(columns[:, None] - columns).mean())
    assert uniform["frequency"] == pytest.approx(8 * np.abs(rows[:, None] - rows).mean())
    for name in ("ahd", "time", "frequency"):
        assert first[f"{name}_mean"] == pytest.approx(uniform[name], rel=1e-5)


def test_equal_tokens_have_an_effective_rank_of_one():
    model = encoder()
    for norm in (model.blocks_u[0].norm2_v,):
        nn.init.zeros_(norm.weight)
    nn.init.zeros_(model.pos_embed_v)
    data = evaluation()
    for batch in data.batches:
        batch["frame"] = torch.ones_like(batch["frame"]) * torch.rand(len(batch["frame"]), 1, 1, 1)
    metric = run(model, data).metrics["video_effective_rank"]
    assert metric.value == pytest.approx(metric.chance, abs=1e-4)


def test_the_joint_block_tells_its_four_blocks():
    result = run(encoder())
    (row,) = result.details["joint"]
    assert set(row["blocks"]) == {"aa", "av", "va", "vv"}
    for query in "av":
        total = np.array(row["blocks"][f"{query}a"]["mass_heads"]) + row["blocks"][f"{query}v"]["mass_heads"]
        assert np.allclose(total, 1, atol=1e-5)
    assert result.details["uniform_mass"]["va"] == pytest.approx(12 / 21)
    assert "ahd_mean" not in row, "pixels and mel bins have no common plane"


def test_the_maps_of_the_retrieval_path_are_those_of_the_modalitys_norms():
    model, batch = encoder(), evaluation(batch_size=CLIPS).batches[0]
    nn.init.normal_(model.blocks_u[0].norm1_a.weight)
    found = run(model).details["towers"]["audio"][-1]["nmi_heads"]
    with torch.no_grad():
        block = model.blocks_u[0]
        qkv = block.attn.qkv(block.norm1_a(model.tower_audio(batch["fbank"])))
        expected = maps.normalised_mutual_information(maps.weights_of(qkv, block.attn)).mean(0)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_looking_changes_nothing_and_leaves_no_hook():
    model = encoder().train()
    batch = evaluation().batches[0]
    tower = towers_of(model, evaluation())[0]
    with torch.no_grad():
        before = model.embed_audio(batch["fbank"])
        watch = Watch(tower)
        watch.see(batch)
        run(model)
        assert torch.equal(model.embed_audio(batch["fbank"]), before)
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


@pytest.mark.parametrize("batch_size", [1, 3, CLIPS])
def test_results_do_not_depend_on_the_batch_size(batch_size):
    model = encoder()
    whole, parts = run(model), run(model, evaluation(batch_size))
    for name, metric in whole.metrics.items():
        assert parts.metrics[name].value == pytest.approx(metric.value, abs=1e-5), name


def test_cka_between_layers_is_symmetric_with_ones_and_tells_each_layer():
    cka = run(encoder()).details["cka"]
    assert cka["layers"] == ["audio 1", "audio 2", "audio 3", "video 1", "video 2", "video 3", "joint 1"]
    matrix = np.array(cka["matrix"])
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(matrix.diagonal(), 1)
    assert matrix[0, 1] > matrix[0, 3], "layers of one tower are nearer than sound and picture without training"


def test_another_model_is_compared_on_the_same_clips():
    models = {"same": encoder(), "other": encoder(seed=5, depth=1)}
    data = evaluation(open_encoder=models.__getitem__)
    same = run(encoder(), data, other="same")
    for name in ("audio_cka", "video_cka", "joint_cka"):
        assert same.metrics[name].value == pytest.approx(1.0, abs=1e-6)
    found = run(encoder(), evaluation(open_encoder=models.__getitem__), other="other")
    assert found.details["other"]["columns"] == ["audio 1", "audio 2", "video 1", "video 2", "joint 1"]
    assert np.array(found.details["other"]["matrix"]).shape == (7, 5)
    metric = found.metrics["audio_cka"]
    assert metric.value < 1
    assert metric.low < metric.value < metric.high
    assert metric.chance == 0
    with pytest.raises(UsageFault, match="nothing here opens other runs"):
        run(encoder(), other="same")


def vit(**options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.models.vision_transformer.VisionTransformer(**{**sizes, **options}).eval()


@pytest.mark.parametrize(("options", "prefix"), [({}, 1), ({"reg_tokens": 2}, 3), ({"qk_norm": True}, 1)])
def test_a_plain_vit_of_timm_is_measured_without_its_prefix_tokens(options, prefix):
    model = vit(**options)
    result = run(model)
    assert result.details["prefix_tokens"] == {"video": prefix}
    assert list(result.details["towers"]) == ["video"]
    assert "joint" not in result.details
    seen = []
    hook = model.blocks[1].attn.qkv.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        model.forward_features(evaluation(batch_size=CLIPS).batches[0]["frame"])
    hook.remove()
    weights = maps.weights_of(seen[0], model.blocks[1].attn)[:, :, prefix:, prefix:]
    weights = weights / weights.sum(-1, keepdim=True)
    distance = maps.head_distance(weights, maps.token_distance((3, 3), 8.0, 8.0).float())
    row = result.details["towers"]["video"][1]
    assert row["ahd_heads"] == pytest.approx(distance.mean(0).tolist(), abs=1e-4)
    assert row["nmi_heads"] == pytest.approx(maps.normalised_mutual_information(weights).mean(0).tolist(), abs=1e-5)


def test_rows_that_are_left_as_they_are_give_shorter_distances_under_another_protocol():
    plain, raw = run(vit()), run(vit(), renormalise=False)
    assert raw.protocol == "diagnose/raw-rows@1"
    last = [result.details["towers"]["video"][-1]["ahd_mean"] for result in (plain, raw)]
    assert last[1] < last[0]


def test_a_vit_gets_frames_normalised_as_it_was_trained():
    model = vit()
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    seen = []
    model.patch_embed.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    data = evaluation(batch_size=CLIPS, input_mean=(0.1, 0.2, 0.3), input_std=(0.5, 0.5, 0.5))
    frame = data.batches[0]["frame"]
    run(model, data)
    picture = frame * 0.5 + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    assert torch.allclose(seen[0], (picture - 0.5) / 0.25, atol=1e-5)


def test_models_without_known_attention_and_other_sizes_are_refused():
    with pytest.raises(UsageFault, match="no blocks whose attention is known"):
        run(nn.Linear(3, 3))
    with pytest.raises(UsageFault, match="takes 32x32 px, the frames are 24x24 px"):
        run(vit(img_size=32))


def test_a_large_split_is_looked_at_in_part_whatever_its_order():
    task = Diagnose(DiagnoseOptions(clips=3))
    uids = [f"clip-{i}" for i in range(20)]
    choice = task.choose(uids, uids, [{}] * 20)
    assert choice.keep.sum() == 3
    assert "3 of 20 clips" in choice.notes[0]
    back = task.choose(uids[::-1], uids, [{}] * 20)
    assert np.array_equal(back.keep[::-1], choice.keep)
    assert Diagnose().choose(uids, uids, [{}] * 20).keep.all()


def test_few_clips_have_no_cka_and_one_video_no_interval():
    data = evaluation()
    batch = {name: value[:2] for name, value in data.batches[0].items()}
    result = run(encoder(), EvalData([batch], data.uids, data.sources, 3, {"no_audio": 1}))
    assert (result.n_scored, result.n_total, result.missing) == (2, 3, {"no_audio": 1})
    assert math.isnan(result.details["cka"]["matrix"][0][0])
    assert "CKA is unknown" in result.notes[0]
    assert math.isnan(result.metrics["audio_nmi"].low)


def test_a_nan_stops_with_exit_code_5_and_no_clip_is_a_data_fault():
    model = encoder()
    with torch.no_grad():
        model.blocks_v[1].mlp.fc1.weight[0, 0] = math.nan
    with pytest.raises(VerificationFault, match="NaN or infinite") as caught:
        run(model)
    assert caught.value.exit_code == 5
    with pytest.raises(DataFault, match="no clip"):
        run(encoder(), EvalData([], [], [], 0))
