"""Shipped recipes finetune as the released scripts do, and expect no number that nobody could check."""

from pathlib import Path

import pytest

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.recipe.write import result_keys

SHIPPED = Path(__file__).parents[2] / "recipes"
AUDIOSET_20K = ("bce", 5e-5, 100.0, 36, 15, 5, 3, False)
AUDIOSET_2M = ("bce", 1e-5, 50.0, 48, 10, 2, 1, True)
VGGSOUND = ("ce", 1e-4, 10.0, 48, 10, 2, 3, True)
SCRIPTS = {
    "audioset_kdcmae": AUDIOSET_20K,
    "audioset20k_finetune": AUDIOSET_20K,
    "audioset2m_finetune": AUDIOSET_2M,
    "kinetics_kdcmae": VGGSOUND,
    "vggsound": VGGSOUND,
    "vggsound_cavmae": VGGSOUND,
    "vggsound_finetune": VGGSOUND,
}
"""loss, learning rate, head's factor, batch, epochs, first decay, first epoch averaged, balanced; of egs/*/*_ft*.sh."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_has_the_settings_of_its_released_script(name: str) -> None:
    found = recipes.load(SHIPPED / f"{name}.toml").finetune
    optim, training = found.optim, found.training
    assert SCRIPTS[name] == (
        found.loss, optim.lr, found.head_lr_scale, training.global_batch, training.epochs, optim.step_start,
        found.average_from, found.balanced,
    )  # fmt: skip
    assert (found.mixup, found.mixup_alpha, found.freq_mask, found.time_mask) == (0.5, 10.0, 48, 192)
    assert (found.label_smoothing, found.layer_decay, training.precision) == (0.1, 1.0, "fp16")
    assert (optim.name, optim.betas, optim.weight_decay) == ("adam", (0.95, 0.999), 5e-7)
    assert (optim.schedule, optim.step_every, optim.step_gamma, optim.warmup_epochs) == ("step", 1, 0.5, 0.0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_expected_numbers_name_modality_and_source_once_each(name: str) -> None:
    rows = recipes.load(SHIPPED / f"{name}.toml").expected
    assert len({(row.metric, row.modality) for row in rows}) == len(rows)
    assert all(row.modality and row.source and 0.1 < row.value < 0.7 for row in rows)
    recalled = {0.262, 0.257, 0.248}  # Numbers that are only remembered stand nowhere.
    assert not recalled & {row.value for row in rows}
    assert bool(rows) == (name != "kinetics_kdcmae"), "no Kinetics number could be confirmed"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("finetune.average_from=11", "average_from = 11 is past the last of training.epochs = 10"),
        ("finetune.freq_mask=129", "finetune.freq_mask = 129 is wider than the model's filter bank"),
        ("finetune.time_mask=2000", "finetune.time_mask = 2000 is wider"),
        ("finetune.mixup=1.5", "finetune.mixup"),
        ("finetune.layer_decay=0", "finetune.layer_decay"),
        ("finetune.head=attentiv", "did you mean 'attentive'"),
    ],
)
def test_what_cannot_be_is_refused_by_key(change: str, cause: str) -> None:
    with pytest.raises(UsageFault, match=cause):
        recipes.load(SHIPPED / "vggsound.toml", [change])


@pytest.mark.parametrize(
    "changes",
    [
        ["finetune.per_class=2", "finetune.share=0.5"],
        ["finetune.layer_decay=0.75", "finetune.freeze_encoder=true"],
        ["finetune.layer_decay=0.75", "finetune.head=attentive"],
    ],
)
def test_keys_that_contradict_each_other_are_refused(changes: list[str]) -> None:
    for one in changes:
        recipes.load(SHIPPED / "vggsound.toml", [one])
    with pytest.raises(UsageFault, match="set "):
        recipes.load(SHIPPED / "vggsound.toml", changes)


PICTURES = {
    "imagenet": (1.2e-3, 1e-6, 1024, 100, 0.65, 0.25),
    "cifar100": (7.5e-6 * 768 / 512, 1e-5, 768, 1000, 1.0, 0.25),
    "cars": (7.5e-6 * 768 / 512, 1e-5, 768, 1000, 1.0, 0.25),
    "inat19": (7.5e-6 * 768 / 512, 1e-5, 768, 360, 1.0, 0.1),
}
"""learning rate, its end, batch, epochs, layer decay, erasing; of dBOT's run.sh, main_finetune.py and eval_cls.py."""


@pytest.mark.parametrize("name", PICTURES)
def test_a_recipe_of_pictures_has_the_settings_of_dbots_scripts(name: str) -> None:
    recipe = recipes.load(SHIPPED / f"image_finetune_{name}.toml")
    found, data = recipe.finetune, recipe.data
    optim, training = found.optim, found.training
    lr, *others = PICTURES[name]
    assert optim.lr == pytest.approx(lr)
    assert [optim.min_lr, training.global_batch, training.epochs, found.layer_decay, found.erasing] == others
    assert (optim.name, optim.betas, optim.weight_decay, optim.warmup_epochs) == ("adamw", (0.9, 0.999), 0.05, 5)
    assert (optim.schedule, optim.grad_clip, found.head_lr_scale, found.drop_path) == ("cosine", 0.0, 1.0, 0.1)
    assert (found.mixup, found.mixup_alpha, found.cutmix, found.cutmix_alpha) == (1.0, 0.8, 0.5, 1.0)
    assert (found.rand_augment, found.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.1)
    assert (data.crop, data.crop_scale, data.flip, data.crop_pct) == ("random", (0.08, 1.0), True, 224 / 256)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (["finetune.rand_augment=rand-m9-x3"], "rand_augment = 'rand-m9-x3' is not understood"),
        (["finetune.rand_augment=augmix-m3"], "is not understood"),
        (["finetune.cutmix=1.5"], "finetune.cutmix"),
        (["finetune.mixup=0.0"], "cutmix = 0.5 is a share of the clips that mixup mixes"),
        (["finetune.modality=both"], "cutmix = 0.5 cuts pictures"),
        (["finetune.modality=audio", "finetune.cutmix=0.0"], "modality = 'audio' sees none"),
        (["finetune.erasing=-0.1"], "finetune.erasing"),
        (["data.crop_pct=1.2"], "data.crop_pct"),
        (["data.crop_pct=0.0"], "data.crop_pct"),
    ],
)
def test_augmentation_of_pictures_that_cannot_be_is_refused_by_key(changes: list[str], cause: str) -> None:
    with pytest.raises(UsageFault, match=cause):
        recipes.load(SHIPPED / "image_finetune_cars.toml", changes)


@pytest.mark.parametrize("policy", ["rand", "rand-m7-n3-mstd1-inc0", "rand-m9-p0.7-mmax12", "rand-m15-mstd101"])
def test_policies_of_timm_are_understood(policy: str) -> None:
    assert recipes.load(SHIPPED / "image_finetune_cars.toml", [f"finetune.rand_augment={policy}"])


def test_keys_of_pictures_leave_other_runs_what_they_were() -> None:
    """No run that was started before there were these keys is refused a resume."""
    keys = {"data.crop_pct", "finetune.cutmix", "finetune.cutmix_alpha", "finetune.rand_augment", "finetune.erasing"}
    assert not keys & result_keys(recipes.load(SHIPPED / "vggsound_finetune.toml")).keys()
    assert keys - {"finetune.cutmix_alpha"} <= result_keys(recipes.load(SHIPPED / "image_finetune_cars.toml")).keys()
