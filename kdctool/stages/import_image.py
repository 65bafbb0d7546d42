"""A ViT of timm that stays what it is: an image model, to be probed, diagnosed, finetuned, taught from or exported."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.export import Package
from kdctool.files import digest, sha256_file
from kdctool.media.settings import Settings
from kdctool.models.image_classifier import image_model, of_timm
from kdctool.models.layouts import State
from kdctool.models.student import create, streams_of
from kdctool.models.teachers import DECODER, FRAMES, HEADS, licence, refuse_other_activation
from kdctool.models.weights import differences
from kdctool.progress import say
from kdctool.recipe import Recipe, result_keys
from kdctool.stages.foreign import timm_card
from kdctool.stages.imported import Choices, Imported, label_names, multi_label, write
from kdctool.stages.read_weights import read_weights
from kdctool.stages.run_folder import SECTIONS
from kdctool.stages.whole_folder import appearing

KEY = "--model"


@dataclass(frozen=True)
class _Sorted:
    """A file's tensors by what they belong to, and an account of the names that are not used or not filled."""

    encoder: State
    head: State
    unused: dict[str, str]
    fresh: dict[str, str]


def run(weights: Path, out: Path, choices: Choices) -> Imported:
    """Import `weights` by the names of timm's model `choices.timm_model` to the folder `out`."""
    name = choices.timm_model
    if not name:
        raise UsageFault("--as timm needs the name of the model", f"for example {KEY} vit_base_patch16_224")
    sha256 = sha256_file(weights) if weights.is_file() else ""
    if not sha256:
        raise UsageFault(f"there are no weights at {weights}", "give a .safetensors, .pth or .pt file")
    say(f"importing {weights}, sha256 {sha256[:12]}, as timm's {name}")
    state = read_weights(weights)
    card = _card(name)
    sorted_ = _sort(state, name)
    classes = len(sorted_.head["1.bias"]) if sorted_.head else 0
    recipe = _recipe(state, weights, out, choices, card)
    beside = tuple(timm_card(weights.parent).get("label_names") or ())
    labels = label_names(choices, classes, beside) if classes else ()
    _check(sorted_.encoder, recipe, name)
    encoder, classifier = image_model(recipe, classes, sorted_.encoder, sorted_.head)
    kind = "finetune" if classifier is not None else "pretrain"
    package = Package(
        encoder=encoder,
        classifier=classifier,
        recipe=recipe,
        labels=labels,
        multi_label=multi_label(choices, classes),
        kind=kind,
        step=0,
        source=weights.name,
        source_sha256=sha256,
        recipe_digest=digest(result_keys(recipe, SECTIONS[kind])),
        data_digest="",
        clip=vars(Settings(frames=1, size=recipe.model.image_size, fit="keep", images=True)),
    )
    whole = {**sorted_.encoder, **{f"mlp_head.{place}": value for place, value in sorted_.head.items()}}
    used = _used(state, sorted_, classes > 0)
    tables = sum(value.numel() for place, value in whole.items() if place == "pos_embed")
    total = sum(value.numel() for value in whole.values())
    done = Imported(
        out, weights, sha256, recipe, kind, used, sorted_.unused, sorted_.fresh, (), licence(card.get("license")),
        total, total - tables, labels,
    )  # fmt: skip
    with appearing(out) as folder:
        write(folder, package, done, "timm", whole)
    return done


def _card(name: str) -> dict[str, Any]:
    """What timm knows of published weights: mean, std, licence."""
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    card = known.to_dict() if known is not None else {}
    refuse_other_activation(name, card, KEY)
    return card


def _sort(state: State, name: str) -> _Sorted:
    unused = {key: "the ViT has no decoder" for key in state if DECODER.fullmatch(key)}
    kept = {key: value for key, value in state.items() if key not in unused}
    if "fc_norm.weight" not in kept or "head.bias" not in kept:
        why = "it does not read the mean of the patches, which is what finetuned classifiers of kdctool do"
        unused |= {key: why for key in kept if HEADS.fullmatch(key)}
        return _Sorted(_floats({key: value for key, value in kept.items() if key not in unused}), {}, unused, {})
    encoder, head = of_timm(kept)
    fresh = {}
    if "norm.weight" not in encoder:
        width = len(head["0.weight"])
        encoder |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        fresh = dict.fromkeys(("norm.weight", "norm.bias"), "1 and 0: a classifier of timm has none, features need one")
    return _Sorted(_floats(encoder), _floats(head), unused, fresh)


def _floats(state: State) -> State:
    return {name: value.float().contiguous() for name, value in state.items()}


def _used(state: State, found: _Sorted, classifies: bool) -> dict[str, tuple[str, ...]]:
    """Name in the file -> name in the folder."""
    ours = {"fc_norm.": "mlp_head.0.", "head.": "mlp_head.1."} if classifies else {}
    used: dict[str, tuple[str, ...]] = {}
    for name in state:
        if name not in found.unused:
            prefix = next((prefix for prefix in ours if name.startswith(prefix)), "")
            used[name] = (ours.get(prefix, "") + name.removeprefix(prefix),)
    return used


def _recipe(state: State, weights: Path, out: Path, choices: Choices, card: dict[str, Any]) -> Recipe:
    """The given recipe, or one that says what model this is and how it sees; overrides on top of either."""
    name = choices.timm_model
    if choices.recipe is not None:
        student = choices.recipe.objective.distill.student
        if not choices.recipe.objective.student_sees_frames_alone or student.arch.split(".")[0] != name.split(".")[0]:
            raise UsageFault(
                f"the recipe describes {student.arch}, the weights are said to be timm's {name}",
                "give a recipe with objective.distill.student.arch of that name, or none",
            )
        tree = choices.recipe.model_dump(mode="json")
    else:
        side, patch = _size(state, name)
        tree = {
            "name": re.sub(r"[^A-Za-z0-9_-]+", "-", weights.stem).strip("-") or "imported",
            "data": {
                "image_mean": list(card.get("mean") or FRAMES[0]),
                "image_std": list(card.get("std") or FRAMES[1]),
            },
            "model": {"image_size": side, "video_patch": patch},
            "objective": {
                "name": "hybrid_distill",
                "distill": {"student": {"arch": name, "pos": "learned"}},
            },
            "finetune": {"modality": "video"},
        }
    tree["model"]["init"] = str(out)  # Where its own weights will lie: the recipe in the folder goes on from them.
    return recipes.validate(tree, list(choices.overrides), origin=str(weights))


def _size(state: State, name: str) -> tuple[int, int]:
    """(side of its frames, side of its patches) in pixels, from the positional table."""
    table: Tensor | None = state.get("pos_embed")
    with torch.device("meta"):
        like = create(name, KEY)
    patch = int(like.patch_embed.patch_size[0])
    if table is None:
        return int(like.patch_embed.img_size[0]), patch
    prefix = 0 if getattr(like, "no_embed_class", False) else int(like.num_prefix_tokens)
    return round((table.shape[1] - prefix) ** 0.5) * patch, patch


def _check(encoder: State, recipe: Recipe, name: str) -> None:
    """UsageFault unless the weights fill the recipe's ViT, and it is one whose blocks can be listened to."""
    like = create(name, KEY, img_size=recipe.model.image_size)
    streams_of(like, f"timm's {name}")
    if faults := differences({key: value.shape for key, value in like.state_dict().items()}, encoder):
        told = "; ".join(faults).replace("the recipe makes it", f"{name} has")
        raise UsageFault(f"these weights are not timm's {name}: {told}", f"name the model they are of with {KEY}")
