"""No GPU, and still: on one, no two devices would meet in a call, and a step would wait for the device once.

Two stand-ins. `pretend_card` computes on the CPU and minds devices, in whole stages too. torch's fake tensors compute
nothing, but know the card's own autocast: what it would do in bfloat16.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from distilling import ARCH, frames, image_objective
from pretend_card import CUDA, Card, card, on_card
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdctool import recipe as recipes
from kdctool.batch import Batch
from kdctool.data.device import ToBatch
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.objectives import build
from kdctool.objectives.classification import ClassificationObjective
from kdctool.recipe.machine import Parallel
from kdctool.stages import evaluate, finetune, pretrain
from kdctool.train import optim
from kdctool.train.parallel import wrap
from kdctool.train.step import Trainer, train_step

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one: tests/gpu")

RECIPE = """
name = "tiny"
[model]
audio_frames = 64
mel_bins = 32
image_size = 32
audio_patch = 16
video_patch = 8
width = 32
heads = 2
depth = 1
[objective]
decoder = { width = 16, heads = 2, depth = 1 }
"""
CLIPS, CLASSES = 8, 3
ONE_WAIT = ["__bool__"]
"""Whether loss and gradient are finite."""
OBJECTIVES = (
    [], ['objective.name="mae"'], ['objective.name="cav"'], ['objective.name="cav_mae"', "masking.views=1"],
    ["masking.complementary=false", "masking.views=3"],
    ['masking.audio="adaptive"', 'masking.video="adaptive"'], ['masking.audio="pool"', 'masking.video="tf"'],
    ['objective.decoder.kind="light"'], ["objective.contrastive.learn_temperature=true"],
    ["objective.contrastive.own_ratio=0.5", 'objective.contrastive.direction="both"'],
    ['objective.self_distillation.stop_gradient="teacher"', "objective.self_distillation.per_modality=true"],
    ['objective.contrastive.negatives="local"', 'objective.self_distillation.shift="sample"'],
)  # fmt: skip
MASKS: list[dict[str, Any]] = [
    {}, {"mask": {"policy": "random", "keep": 0.3}}, {"mask": {"policy": "redundancy", "teacher": "m"}},
    {"mask": {"policy": "direct", "teacher": "m", "keep": 0.3}, "student": {"arch": ARCH, "input": "mask_token"}},
]  # fmt: skip


@pytest.fixture
def here() -> Iterator[Card]:
    with card() as pretended:
        yield pretended


def batch_of(device: torch.device, classes: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(0)
    batch = {
        "clip": torch.arange(CLIPS),
        "row": torch.arange(CLIPS),
        "fbank": torch.randn(CLIPS, 64, 32, generator=rng),
        "frame": torch.randn(CLIPS, 3, 32, 32, generator=rng),
    }
    if classes:
        batch["label"] = torch.eye(classes)[torch.arange(CLIPS) % classes]
    return {name: value.to(device) for name, value in batch.items()}


def trainer_of(objective: Any, recipe: Any, clips: int = CLIPS, fp16: bool = False) -> Trainer:
    objective.to(CUDA).train()
    return Trainer(
        objective=objective,
        module=wrap(objective, CUDA, Parallel(mode="none", compile="off")),
        optimizer=optim.build(objective, recipe.optim),
        scaler=torch.amp.GradScaler("cuda", enabled=fp16),
        device=CUDA,
        autocast=torch.bfloat16,
        global_batch=clips,
        grad_clip=1.0,
        seed=0,
    )


def halves(batch: Batch) -> list[Batch]:
    middle = len(batch["row"]) // 2
    return [{k: v[:middle] for k, v in batch.items()}, {k: v[middle:] for k, v in batch.items()}]


def waits_of_steps(pretended: Card, trainer: Trainer, batch: Batch) -> list[list[str]]:
    """What a step in one pass and one in two passes waited for, each after one to warm up."""
    found = []
    for micros in ([batch], halves(batch)):
        train_step(trainer, micros, 0)
        pretended.waits.clear()
        row = train_step(trainer, micros, 1)
        found.append([what for what, _ in pretended.waits])
        assert 0 < row["loss"] < 100
    return found


@pytest.mark.parametrize("changes", OBJECTIVES, ids=" ".join)
def test_a_step_of_the_family_stays_on_the_card_and_waits_once(here: Card, changes: list[str]) -> None:
    recipe = recipes.loads(RECIPE, list(changes))
    trainer = trainer_of(build(recipe, AVEncoder(recipe.model)), recipe)
    assert waits_of_steps(here, trainer, batch_of(CUDA)) == [ONE_WAIT, ONE_WAIT]
    assert all(on_card(p) for p in trainer.objective.parameters())


@pytest.mark.parametrize("modality", ["both", "audio", "video"])
@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_a_step_of_finetuning_stays_on_the_card_and_waits_once(here: Card, modality: str, head: str) -> None:
    recipe = recipes.loads(RECIPE, [f'finetune.modality="{modality}"'])
    classifier = AVClassifier(AVEncoder(recipe.model), CLASSES, modality, head)
    objective = ClassificationObjective(recipe.finetune, classifier, CLASSES, multi_label=False)
    batch = batch_of(CUDA, CLASSES)
    assert waits_of_steps(here, trainer_of(objective, recipe), batch) == [ONE_WAIT, ONE_WAIT]


@pytest.mark.parametrize("distill", MASKS, ids=str)
def test_a_step_of_distillation_stays_on_the_card_and_waits_once(
    here: Card, distill: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trainer_of(image_objective(tmp_path, **distill), recipes.loads(RECIPE), clips=4)
    batch = {name: value.to(CUDA) for name, value in frames().items()}
    assert waits_of_steps(here, trainer, batch) == [ONE_WAIT, ONE_WAIT]


def test_a_step_in_fp16_stays_on_the_card(here: Card) -> None:
    recipe = recipes.loads(RECIPE)
    trainer = trainer_of(build(recipe, AVEncoder(recipe.model)), recipe, fp16=True)
    assert waits_of_steps(here, trainer, batch_of(CUDA)) == [ONE_WAIT, ONE_WAIT]


def raw_batch(kind: str) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    raw = {
        "waveform": torch.from_numpy(rng.normal(0, 3000, (CLIPS, 63 * 160 + 400)).astype(np.int16)),
        "samples": torch.full((CLIPS,), 8000),
        "mean": torch.zeros(CLIPS),
        "frame": torch.from_numpy(rng.integers(0, 255, (CLIPS, 3, 32, 32), dtype=np.uint8)),
        "label": torch.eye(CLIPS),
    } | {name: torch.arange(CLIPS) for name in ("clip", "row", "seed")}
    if kind == "mixup":
        partners = {f"mix_{name}": raw[name][:3] for name in ("waveform", "samples", "mean", "frame", "label")}
        erased = {"erase_row": torch.tensor([1, 4]), "erase_box": torch.tensor([[2, 3, 9, 8]] * 2)}
        raw |= erased | {"erase_key": torch.tensor([5, 6]), "mix_box": torch.tensor([[0] * 4, [1, 2, 9, 9], [0] * 4])}
        raw |= partners | {"mix_row": torch.tensor([0, 2, 5]), "mix_weight": torch.tensor([0.2, 0.5, 0.9]).double()}
    if kind == "all frames":
        raw["frames"] = raw["frame"][:, None].repeat(1, 4, 1, 1, 1)
        raw["frame_count"] = torch.arange(CLIPS) % 4 + 1
    return raw


@pytest.mark.parametrize("kind", ["plain", "mixup", "all frames"])
def test_making_a_batch_on_the_card_never_waits_for_it(here: Card, kind: str) -> None:
    recipe = recipes.loads(RECIPE, ["finetune.freq_mask=8", "finetune.time_mask=8"])
    to_batch = ToBatch(recipe, CUDA, training=kind != "all frames", finetune=recipe.finetune)
    to_batch(raw_batch(kind))  # Tables are sent once.
    here.waits.clear()
    batch = to_batch(raw_batch(kind))
    assert here.waits == []
    assert all(on_card(value) for value in batch.values())
    plain = ToBatch(recipe, torch.device("cpu"), training=kind != "all frames", finetune=recipe.finetune)
    for name, value in plain(raw_batch(kind)).items():
        assert torch.allclose(batch[name].cpu(), value, atol=1e-4), name


@pytest.mark.e2e
def test_whole_stages_run_on_the_card(here: Card, tiny_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Probes, measurements of gradients, a resume, held clips, mixup, the average of epochs, and tasks."""
    off = 'parallel.compile="off"'
    meters = ["log.gradient_norms_every=1", "log.collapse_every=1", "log.probe_every_steps=2", "training.micro_batch=4"]
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    short = recipes.load(tiny_recipe(off, *meters, "log.checkpoint_every_steps=2"))
    pretrain.run(short, out=run, device_name="cuda")
    for last in sorted((run / "checkpoints").iterdir())[-1:]:
        (last / "manifest.json").unlink()  # Damaged: the run goes on from the one before.
    assert pretrain.run(short, out=run, device_name="cuda").fitted.resumed_from > 0
    held = recipes.load(tiny_recipe(off, 'data.hold="device"', "training.epochs=1"))
    pretrain.run(held, out=tmp_path / "held", device_name="cuda")
    change = ["finetune.mixup=0.5", "finetune.freq_mask=8", "finetune.time_mask=8", "finetune.average_from=1"]
    finetune.run(run, recipe=recipes.load(tiny_recipe(off, *change)), out=tuned, device_name="cuda")
    for task in ("retrieval", "probe", "diagnose", "inpainting"):
        options = {"labels": "all"} if task == "probe" else {}
        assert evaluate.run(run, task=task, device_name="cuda", options=options).result.n_scored == 20
    assert evaluate.run(tuned, task="classification", device_name="cuda").result.n_scored == 20


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (lambda there, here: there + here, "two devices"),
        (lambda there, here: here[there.long()], "two devices"),
        (lambda there, here: torch.rand(3, generator=torch.Generator(), device=there.device), "generator"),
        (lambda there, here: torch.rand(3, generator=torch.Generator(there.device)), "generator"),
        (lambda there, here: there.numpy(), "can't convert"),
    ],
)
def test_what_a_card_refuses_the_stand_in_refuses(here: Card, what: Callable[..., Any], names: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=names):
        what(torch.zeros(3, device="cuda"), torch.zeros(3))


def test_what_waits_for_a_card_is_written_down(here: Card) -> None:
    there, index = torch.zeros(3, device="cuda"), torch.zeros(2, dtype=torch.int64)
    assert here.waits == []
    float(there.sum())
    there.cpu()
    torch.tensor([1.0], device="cuda")
    torch.zeros(3).to("cuda", non_blocking=True)
    there[there > 0]
    there[index]
    told = [what for what, _ in here.waits]
    assert told == ["__float__", "download", "upload", "index by a mask", "upload of indices"]
    assert all(Path(place.rpartition(":")[0]).name == Path(__file__).name for _, place in here.waits)


class Rounded(TorchDispatchMode):
    """Which operations of a loss took bfloat16."""

    FULL = ("_log_softmax", "log", "exp", "amin", "var_mean", "linalg_vector_norm", "div", "mse", "pow")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.halves = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket.__name__
        if any(x.dtype == torch.bfloat16 for x in given):
            self.halves += name == "addmm"
            self.seen |= {name} if name in self.FULL else set()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", OBJECTIVES, ids=" ".join)
def test_losses_are_float32_under_the_cards_autocast(changes: list[str]) -> None:
    """Logits, softmax, divergences, shifts and norms; products of the layers are bfloat16."""
    recipe = recipes.loads(RECIPE, list(changes))
    rounded = Rounded()
    real = build(recipe, AVEncoder(recipe.model))
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        FakeTensorMode(),
    ):
        objective = copy.deepcopy(real, {id(p): fake(p) for p in (*real.parameters(), *real.buffers())})
        batch = {
            "row": torch.arange(CLIPS, device="cuda"),
            "fbank": torch.empty(CLIPS, 64, 32, device="cuda"),
            "frame": torch.empty(CLIPS, 3, 32, 32, device="cuda"),
        }
        rng = torch.Generator()  # Of the CPU: there is no other, and views are moved to where the clips are.
        with torch.autocast("cuda", dtype=torch.bfloat16), rounded:
            loss = objective(batch, rng, CLIPS)
    assert rounded.halves > 10
    assert rounded.seen == set()
    assert {loss.total.dtype, *(x.dtype for x in loss.terms.values())} == {torch.float32}
    assert {loss.total.device.type, *(x.device.type for x in loss.terms.values())} == {"cuda"}


def fake(tensor: torch.Tensor) -> torch.Tensor:
    there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
    return torch.nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else there
