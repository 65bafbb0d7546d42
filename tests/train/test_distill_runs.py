"""Distillation on several ranks, in micro batches and resumed: the curve of one process, whose teachers stay still."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distilling import ARCH, vit, write
from training_runs import assert_same_curve, command, curve, finish, rows, weights

from kdctool import recipe as recipes
from kdctool.files import sha256_file
from kdctool.stages import pretrain

STEADY = ("training.epochs=4", "optim.eps=1e-3")
"""A larger epsilon: Adam would blow gradients that are rounding noise up to full steps."""
LOSSES = '[{ kind = "feature", teacher = "c" }, { kind = "relation", teacher = "m" }]'
MASKS = {
    "redundancy": '{ policy = "redundancy", teacher = "m", floor = 2 }',
    "random": '{ policy = "random", keep = 0.5, floor = 2 }',
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two image models in files."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate("cm", start=1):
        write(folder / f"{name}.safetensors", vit(seed, side=64))
    return folder


@pytest.fixture
def settings(tiny_recipe: Callable[..., Path], tmp_path: Path, teachers: Path) -> Callable[[str, str], tuple[str, ...]]:
    """What makes the tiny recipe one of distillation: `image` (with stochastic depth) or `av`, with a mask."""

    def make(student: str, mask: str) -> tuple[str, ...]:
        if student == "image":
            named = ", ".join(f'{n} = {{ id = "{ARCH}", path = "{teachers / n}.safetensors" }}' for n in "cm")
            section, sizes = f', student = {{ arch = "{ARCH}", drop_path = 0.3 }}', ("model.image_size=64",)
        else:
            for name, objective in (("c", "cav"), ("m", "mae")):
                deeper = tiny_recipe(f"objective.name={objective}", "model.depth=3", "training.epochs=1")
                pretrain.run(recipes.load(deeper), out=tmp_path / name, device_name="cpu")
            named = ", ".join(f'{n} = {{ path = "{tmp_path / n}" }}' for n in "cm")
            section, sizes = "", ("model.depth=2",)
        distill = f"objective.distill={{ teachers = {{ {named} }}, mask = {MASKS[mask]}, losses = {LOSSES}{section} }}"
        return ("objective.name=hybrid_distill", distill, *sizes, *STEADY)

    return make


@pytest.mark.parametrize(("student", "mask"), [("image", "random"), ("av", "redundancy")])
def test_micro_batches_of_a_distillation_give_the_curve_of_one_batch(
    settings: Callable[[str, str], tuple[str, ...]],
    tiny_recipe: Callable[..., Path],
    tmp_path: Path,
    student: str,
    mask: str,
) -> None:
    changes = settings(student, mask)
    for name, micro in (("whole", 0), ("split", 2)):
        recipe = recipes.load(tiny_recipe(*changes, f"training.micro_batch={micro}"))
        pretrain.run(recipe, out=tmp_path / name, device_name="cpu")
    assert_same_curve(tmp_path / "whole", tmp_path / "split")


@pytest.mark.dist
@pytest.mark.parametrize(
    ("student", "mask", "mode", "more"),
    [
        ("image", "redundancy", "ddp", ()),
        ("image", "random", "fsdp", ("training.micro_batch=2",)),
        ("av", "random", "ddp", ("training.micro_batch=2", "log.gradient_norms_every=3")),
        ("av", "redundancy", "fsdp", ("parallel.checkpoint_activations=true", "log.gradient_norms_every=3")),
    ],
)
def test_a_distillation_on_two_ranks_gives_the_curve_of_one_process(
    settings: Callable[[str, str], tuple[str, ...]],
    tiny_recipe: Callable[..., Path],
    tmp_path: Path,
    student: str,
    mask: str,
    mode: str,
    more: tuple[str, ...],
) -> None:
    recipe = tiny_recipe(*settings(student, mask), *more, f"parallel.mode={mode}")
    pretrain.run(recipes.load(recipe, ["training.micro_batch=0"]), out=tmp_path / "one", device_name="cpu")
    assert finish(command(recipe, tmp_path / "two", "--nproc", "2")) == 0
    assert {name for row in rows(tmp_path / "one") for name in row if name.startswith(("feature_", "relation_"))} == (
        {"feature_c", "relation_m"}
        if student == "image"
        else {"feature_c_audio", "feature_c_video", "relation_m_audio", "relation_m_video"}
    )
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        gradients = {name: value for name, value in one.items() if name.startswith("gradient/")}
        assert {name: two[name] for name in gradients} == pytest.approx(gradients, rel=1e-3)
        assert bool(gradients) == (student == "av" and one["step"] % 3 == 0)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 5e-6


@pytest.mark.dist
@pytest.mark.parametrize(("student", "nproc", "mode"), [("image", 1, "auto"), ("image", 2, "fsdp"), ("av", 2, "ddp")])
def test_a_distillation_goes_on_bit_for_bit(
    settings: Callable[[str, str], tuple[str, ...]],
    tiny_recipe: Callable[..., Path],
    tmp_path: Path,
    student: str,
    nproc: int,
    mode: str,
) -> None:
    """The newest checkpoints are taken away, and the same command makes them again."""
    changes = (f"parallel.mode={mode}", "log.checkpoint_every_steps=5", "log.keep=9")
    recipe, run = tiny_recipe(*settings(student, "redundancy"), *changes), tmp_path / "run"
    assert finish(command(recipe, run, "--nproc", str(nproc))) == 0
    before, told = weights(run), curve(run)
    for step in (10, 12):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    newest = sha256_file(run / "checkpoints" / "step-00000005" / "model.safetensors")
    assert finish(command(recipe, run, "--nproc", str(nproc))) == 0
    assert sha256_file(run / "checkpoints" / "step-00000005" / "model.safetensors") == newest
    assert curve(run) == told
    after = weights(run)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
