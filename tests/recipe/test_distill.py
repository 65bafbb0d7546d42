"""Recipes of distillation: what contradicts itself or is unknown is told with file, line and fix."""

import re
from pathlib import Path

import pytest

from kdctool import recipe
from kdctool.errors import UsageFault
from kdctool.files import digest
from kdctool.recipe.distill import Distill, Head, TeacherSource, TokenMask
from kdctool.recipe.distill_loss import DistillLoss
from kdctool.recipe.training import Optim, Training
from kdctool.tasks.diagnose import DiagnoseOptions

GOOD = """\
name = "mine"

[objective]
name = "hybrid_distill"

[objective.distill.teachers.clip]
id = "vit_base_patch16_clip_quickgelu_224.openai"
path = "w/clip.safetensors"

[objective.distill.teachers.mae]
id = "vit_base_patch16_224.mae"
path = "w/mae.safetensors"

[objective.distill.student]
arch = "vit_base_patch16_224"

[objective.distill.mask]
policy = "redundancy"
teacher = "mae"

[[objective.distill.losses]]
kind = "feature"
teacher = "clip"

[[objective.distill.losses]]
kind = "relation"
teacher = "mae"
"""


def fault(text: str) -> str:
    with pytest.raises(UsageFault) as caught:
        recipe.loads(text, origin="mine.toml")
    return caught.value.cause


def test_defaults_are_the_papers_to_the_letter() -> None:
    found = recipe.loads(GOOD).objective.distill
    feature, relation = found.losses
    assert (feature.layers, relation.layers) == (((-1,), (-1,)), ((-3, -2), (-3, -2)))
    assert (feature.target_norm, feature.metric, feature.beta, feature.weight) == ("whiten", "smooth_l1", 2.0, 1.0)
    assert (relation.rel, relation.softmax, relation.scale, relation.weight) == (("qk",), False, "none", 1.0)
    assert (relation.metric, relation.beta, relation.over_layers) == ("smooth_l1", 2.0, "mean")
    assert feature.include_cls
    assert relation.include_cls
    assert (found.mask.drop, found.mask.layers, found.mask.side) == (0.3, (), "output")
    assert (found.student.pos, found.student.input, found.student.head.kind) == ("sincos", "visible", "linear")


def test_the_scaled_preset_lies_beneath_what_a_loss_says() -> None:
    first = "[objective.distill.teachers.clip]"
    text = GOOD.replace(first, f"[objective.distill]\npreset = 'scaled'\n\n{first}")
    assert [loss.scale for loss in recipe.loads(text).objective.distill.losses] == ["none", "sqrt_head_dim"]
    own = recipe.loads(text + 'scale = "none"\n').objective.distill
    assert own.losses[1].scale == "none"


def test_a_recipe_survives_being_written() -> None:
    loaded = recipe.loads(GOOD)
    assert recipe.loads(recipe.to_toml(loaded)) == loaded


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        (
            'teacher = "mae"\n\n[[',
            'teacher = "mea"\n\n[[',
            1,
            "mask.teacher = 'mea' is no teacher (did you mean 'mae'?)",
        ),
        (
            'policy = "redundancy"\nteacher = "mae"',
            'policy = "redundancy"',
            1,
            "ranks a teacher's tokens: set mask.teacher",
        ),
        ('policy = "redundancy"', 'policy = "random"', 1, "asks no teacher: remove mask.teacher"),
        (
            'kind = "feature"',
            'kind = "feature"\nsoftmax = true',
            21,
            "softmax = True means nothing to kind = 'feature'",
        ),
        (
            'kind = "relation"',
            'kind = "relation"\nmetric = "kl"',
            25,
            "metric = 'kl' compares distributions: set softmax",
        ),
        ('kind = "relation"', 'kind = "relation"\nmetric = "cos"', 25, "compares features"),
        ('kind = "relation"', 'kind = "relation"\ntarget_norm = "none"', 25, "means nothing to kind = 'relation'"),
        ('kind = "relation"', 'kind = "relation"\nteacher_layers = [0]', 25, "there is no layer 0"),
        ('kind = "relation"', 'kind = "relation"\nteacher_layers = [9]\nstudent_layers = [9, 10]', 25, "are pairs"),
        ('kind = "relation"', 'kind = "relation"\nat = "masked"', 1, "has no relations there: set at = 'visible'"),
        ('kind = "feature"', 'kind = "feature"\nat = "masked"', 1, "set student.head.kind = 'asym'"),
        ('kind = "relation"', 'kind = "relation"\nmodality = "joint"', 1, "needs sound"),
        ('kind = "relation"', 'kind = "relations"', 26, "must be 'feature' or 'relation', got 'relations'"),
        ('kind = "relation"', 'kind = "relation"\nbetta = 1.0', 27, "did you mean objective.distill.losses.1.beta?"),
        ('arch = "vit_base_patch16_224"', 'arch = "x"\npos = "relbias"', 14, "is about all places: set input = 'full'"),
        ('arch = "vit_base_patch16_224"', "drop_path = 0.1", 14, "is for image students"),
        (
            'path = "w/mae.safetensors"',
            'path = "w"\npth = "w"',
            13,
            "did you mean objective.distill.teachers.mae.path?",
        ),
        ('id = "vit_base_patch16_224.mae"\npath = "w/mae.safetensors"', 'source = "file"', 10, "needs path"),
        ('id = "vit_base_patch16_224.mae"', "mean = [0.5]", 10, "one number per channel"),
        ('teacher = "clip"', 'teacher = "mae"', 1, "no loss and no mask uses teachers.clip"),
        (
            'name = "hybrid_distill"',
            'name = "cav_mae"',
            1,
            "objective.distill means nothing to objective.name = 'cav_mae'",
        ),
        ('name = "mine"', 'name = "mine"\nlog = { probe_every_steps = 5 }', 1, "the student sees frames alone"),
    ],
)
def test_what_contradicts_itself_is_told(old: str, new: str, line: int, told: str) -> None:
    assert old in GOOD
    cause = fault(GOOD.replace(old, new, 1))
    assert told in cause
    if line > 1:
        assert f"mine.toml:{line}  " in cause


def test_losses_without_weight_are_no_objective() -> None:
    text = GOOD.replace('kind = "feature"', 'kind = "feature"\nweight = 0.0').replace(
        'kind = "relation"', 'kind = "relation"\nweight = 0.0'
    )
    assert "holds none with a weight" in fault(text)


def test_where_weights_lie_does_not_guard_a_resume_and_what_is_learnt_does() -> None:
    plain = digest(recipe.result_keys(recipe.loads(GOOD)))
    moved = GOOD.replace("w/mae.safetensors", "elsewhere/mae.safetensors")
    assert digest(recipe.result_keys(recipe.loads(moved))) == plain
    for old, new in (
        ('kind = "relation"', 'kind = "relation"\nbeta = 1.0'),
        ('policy = "redundancy"', 'policy = "redundancy"\ndrop = 0.5'),
        ('arch = "vit_base_patch16_224"', 'arch = "vit_small_patch16_224"'),
        ("vit_base_patch16_224.mae", "vit_base_patch16_224.dino"),
    ):
        assert digest(recipe.result_keys(recipe.loads(GOOD.replace(old, new)))) != plain


def test_recipes_without_distillation_have_the_digest_they_had() -> None:
    keys = recipe.result_keys(recipe.loads('name = "mine"\n'))
    assert not [key for key in keys if key.startswith("objective.distill")]


TABLE = Path(__file__).parents[2] / "docs" / "distill.md"
SECTIONS = {
    "preset": Distill.model_fields,
    "losses": DistillLoss.model_fields,
    "mask": TokenMask.model_fields,
    "head": Head.model_fields,
    "teachers": TeacherSource.model_fields,
    "training": Training.model_fields,
    "optim": Optim.model_fields,
}


@pytest.mark.parametrize("number", range(1, 16))
def test_every_choice_that_the_paper_leaves_is_a_key_that_exists(number: int) -> None:
    (row,) = [line for line in TABLE.read_text().splitlines() if line.startswith(f"| A{number} |")]
    said = [text.partition(" = ")[0].split(".") for text in re.findall(r"`([^`]+)`", row.split("|")[4])]
    keys = [(parts[-2] if len(parts) > 1 and parts[-2] in SECTIONS else parts[0], parts[-1]) for parts in said]
    if number == 13:
        assert {text[-1] for text in said} == {"--option clips=1000", "--option renormalise=false"}
        assert {"clips", "renormalise"} <= DiagnoseOptions.model_fields.keys()
        return
    known = [key for section, key in keys if section in SECTIONS and key in SECTIONS[section]]
    known += [key for section, key in keys if section == key == "path"]  # "`teachers.NAME.id` and `path`"
    strange = [
        ".".join(parts)
        for parts, (_, key) in zip(said, keys, strict=True)
        if key not in known and "." in ".".join(parts)
    ]
    assert known
    assert not strange


@pytest.mark.parametrize("likeness", ["mean_cosine", "product", "distance"])
def test_the_reading_of_likeness_is_a_key_of_the_mask(likeness: str) -> None:
    text = GOOD.replace('policy = "redundancy"', f'policy = "redundancy"\nlikeness = "{likeness}"')
    assert recipe.loads(text).objective.distill.mask.likeness == likeness
    assert "objective.distill.mask.likeness" in fault(text.replace(likeness, "euclid"))


def test_without_losses_a_recipe_may_describe_an_image_model_that_has_weights() -> None:
    bare = GOOD.partition("[objective.distill.teachers.clip]")[0] + '[objective.distill.student]\narch = "test_vit"\n'
    assert "holds none with a weight" in fault(bare)
    described = bare.replace('name = "mine"', 'name = "mine"\nmodel = { init = "folder" }', 1)
    assert recipe.loads(described).objective.student_sees_frames_alone
