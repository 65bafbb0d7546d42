"""A recipe in words and numbers, checked against real modules and torch's own counters."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdctool import recipe as recipes
from kdctool.cli import run as kdctool
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.weights import count
from kdctool.objectives import objectives
from kdctool.stages import cost
from kdctool.stages.describe import describe
from kdctool.stages.estimate import estimate

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BILL = {
    "vggsound": {
        "patch embedding": 0.43, "audio encoder": 40.97, "video encoder": 15.42, "joint block": 5.20,
        "contrastive passes": 5.13, "decoder projection": 0.28, "decoder, 708 tokens": 87.70, "prediction heads": 0.58,
    },
    "vggsound_cavmae": {
        "patch embedding": 0.43, "audio encoder": 20.48, "video encoder": 7.71, "joint block": 2.60,
        "contrastive passes": 2.56, "decoder projection": 0.14, "decoder, 708 tokens": 43.85, "prediction heads": 0.29,
    },
}  # fmt: skip
TINY = """
name = "tiny"
[model]
audio_frames = 64
mel_bins = 32
image_size = 48
width = 32
heads = 2
depth = 2
joint_depth = 2
mlp_ratio = 2.0
[objective.decoder]
width = 24
heads = 2
depth = 3
"""
KNOBS = [
    [],
    ['objective.name="cav_mae"'],
    ['objective.name="mae"'],
    ['objective.name="cav"'],
    ['objective.name="kdc_mae_3"'],
    ["masking.complementary=false", "masking.audio_ratio=0.5"],
    ['objective.decoder.kind="light"'],
    ["objective.contrastive.own_ratio=0.5"],
    ['objective.name="cav"', "objective.contrastive.own_ratio=0.25"],
    ["objective.contrastive.learn_temperature=true", 'objective.contrastive.direction="both"'],
    ["objective.reconstruction.weight=0.0", "objective.contrastive.weight=0.0"],
    ["objective.self_distillation.per_modality=true", "objective.contrastive.weight=0.0"],
    ['objective.self_distillation.stop_gradient="teacher"'],
]


@pytest.mark.parametrize(
    ("name", "forward", "train"), [("vggsound", 155.71, 466.68), ("vggsound_cavmae", 78.07, 233.77)]
)
def test_flops_by_part_are_the_measured_ones(name, forward, train):
    recipe = recipes.load(RECIPES / f"{name}.toml")
    bill = cost.parts(recipe)
    assert {part.name: round(part.forward, 2) for part in bill} == BILL[name]
    whole = cost.total(bill)
    assert (round(whole.forward, 2), round(whole.train, 2)) == (forward, train)
    assert estimate(recipe).gflop_per_clip == whole.train


def test_parameters_are_the_published_ones():
    found = cost.parameters(recipes.load(RECIPES / "vggsound.toml"))
    assert (found.total, found.reference, found.trained) == (191_036_160, 190_129_920, 189_961_984)
    assert found.reference - found.trained == 167_936
    assert estimate(recipes.load(RECIPES / "vggsound.toml")).parameters == found.total


@pytest.mark.parametrize("changes", KNOBS, ids=lambda changes: " ".join(changes) or "kdc_mae")
def test_counts_equal_those_of_the_real_modules_at_every_knob(changes):
    recipe = recipes.loads(TINY, changes)
    objective = objectives.get(recipe.objective.name).cls(recipe, AVEncoder(recipe.model))
    found = cost.parameters(recipe)
    assert (found.total, found.trained) == count(objective)
    # In double, and with attention written out: the counter does not know the CPU's fast kernels for float32.
    objective.double()
    fbank, frame = torch.randn(1, 64, 32).double(), torch.randn(1, 3, 48, 48).double()
    batch = {"fbank": fbank, "frame": frame, "row": torch.arange(1)}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = objective(batch, torch.Generator().manual_seed(0), 1).total
    similarity = forward.get_total_flops() / 1e9 - cost.total(cost.parts(recipe)).forward
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # What is left over are the products of pooled vectors in the loss: a few hundred for one clip.
    assert -1e-12 < similarity < 1e-6
    trained = (forward.get_total_flops() + backward.get_total_flops()) / 1e9
    assert trained == pytest.approx(cost.total(cost.parts(recipe)).train, abs=1e-5, rel=0.02)


def test_the_words_say_views_tokens_coverage_negatives_and_terms():
    text = "\n".join(describe(recipes.load(RECIPES / "vggsound.toml")))
    for words in (
        "2 masked views of each clip, complementary: no token in two views",
        "128 of 512 tokens visible in a view (25.0%), 256 in some view (50.0% covered)",
        "49 of 196 tokens visible in a view (25.0%), 98 in some view (50.0% covered)",
        "119 per query, the rest of the global batch",
        "1 x (audio + video) reconstruction: mean squared error of removed patches, pixels normalised per patch",
        "0.01 x contrastive: each video finds its audio, temperature 0.05",
        "10 x self-distillation: Jensen-Shannon divergence of the views' joint latents",
        "191,036,160; 189,961,984 trained, 190,129,920 as the reference counts",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "there", "gone"),
    [
        (['objective.name="cav_mae"'], "1 masked view of each clip", "self-distillation"),
        (['objective.name="cav"'], "loss         0.01 x contrastive", "reconstruction"),
        (["masking.complementary=false"], "on average 7 in some view (43.8% covered)", "no token in two"),
        (["masking.audio_ratio=0.5", "masking.video_ratio=0.5"], "16 in some view (100.0% covered)", "25.0%"),
        (
            ['objective.contrastive.negatives="local"', "training.micro_batch=30"],
            "29 per query, the rest of the micro batch",
            "119",
        ),
        (["objective.contrastive.own_ratio=0.5"], "in a pass of its own over 4 audio and 4 video tokens", "per view\n"),
        (['objective.decoder.kind="light"'], "by a light decoder", "decoder, 17 tokens"),
        (
            ['objective.self_distillation.stop_gradient="teacher"'],
            "against a moving average (0.996)",
            "minimum of the clip",
        ),
        (['objective.self_distillation.shift="sample"'], "shifted by the minimum of the clip", "global batch\n+"),
        (['objective.name="somebodys"'], "of a plugin", "GFLOP"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_knob_changes_the_words(changes, there, gone):
    changes = [*changes, "model.audio_frames=128"] if "covered" in there else changes
    text = "\n".join(describe(recipes.loads(TINY, changes)))
    assert there in text
    assert gone not in text


def test_show_resolved_says_it_as_a_comment_and_stays_a_recipe(capsys):
    path = RECIPES / "vggsound.toml"
    assert kdctool(["recipe", "show", str(path), "--resolved"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# objective: kdc_mae")
    assert "155.71    466.68" in said
    assert recipes.loads(said) == recipes.load(path)
    assert kdctool(["recipe", "show", str(path)]) == 0
    assert "GFLOP" not in capsys.readouterr().out


def test_describing_loads_no_torch():
    code = "import sys; from kdctool.cli import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "recipe", "show", str(RECIPES / "vggsound.toml"), "--resolved"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "GFLOP per clip" in done.stdout
