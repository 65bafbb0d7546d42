"""Turn published weights into a folder that `model.init`, finetune, eval and export open. All of it or nothing."""

import re
from pathlib import Path

import torch
from torch import nn

from kdctool import recipe as recipes
from kdctool.errors import UsageFault
from kdctool.export import Package
from kdctool.files import digest, sha256_file
from kdctool.models.assemble import assemble
from kdctool.models.av_encoder import AVEncoder
from kdctool.models.classifier import AVClassifier
from kdctool.models.layouts import HEADS, Layout, Mapped, Sizes, State, layout
from kdctool.models.positions import TABLES, fit_positions
from kdctool.models.weights import load_strict, merge_state, split_state
from kdctool.objectives.reconstruction import Decoder
from kdctool.progress import say
from kdctool.recipe import Recipe, result_keys
from kdctool.seeds import fold
from kdctool.stages import import_image
from kdctool.stages.imported import Choices, Imported, label_names, multi_label, write
from kdctool.stages.read_weights import read_weights
from kdctool.stages.run_folder import SECTIONS
from kdctool.stages.whole_folder import appearing, refuse_existing


def run(
    weights: Path, as_layout: str, out: Path, choices: Choices | None = None, *, overwrite: bool = False
) -> Imported:
    """Import `weights`, stored as `as_layout`, to the folder `out`, which appears when all of it is right.

    A ViT of timm with `choices.tower` = "image" stays an image model; all else becomes audio-visual.
    UsageFault when a name or shape does not fit, VerificationFault when a value is not finite or the file is not
    sound.
    """
    choices = choices or Choices()
    refuse_existing(out, overwrite)
    if as_layout == "timm" and choices.tower == "image":
        return import_image.run(weights, out, choices)
    how = layout(as_layout, timm_model=choices.timm_model, tower=choices.tower)
    if not weights.is_file():
        raise UsageFault(f"there are no weights at {weights}", "give a .safetensors, .pth or .pt file")
    sha256 = sha256_file(weights)
    say(f"importing {weights}, sha256 {sha256[:12]}, as {as_layout}")
    state = read_weights(weights)
    sizes = how.sizes(state)
    recipe = _recipe(how, sizes, weights, out, choices)
    mapped, position_notes = _translate(how, state, recipe, choices)
    head = label_names(choices, sizes.classes) if sizes.classes else ()
    encoder, decoder, classifier = _modules(recipe, mapped, len(head))
    wanted = {
        name: value.shape for name, value in merge_state(encoder, decoder, classifier and classifier.mlp_head).items()
    }
    whole = assemble(mapped, state, wanted, lambda: _initial(recipe, decoder is not None))
    used, unused = mapped.used, mapped.unused
    del state, mapped  # A second copy of the weights would be most of a GB.
    encoder_state, decoder_state, head_state = split_state(whole.state)
    load_strict(encoder, encoder_state, "encoder", assign=True)
    if classifier is not None:
        load_strict(classifier.mlp_head, head_state, "head", assign=True)
    kind = "finetune" if classifier is not None else "pretrain"
    package = Package(
        encoder=encoder,
        classifier=classifier,
        recipe=recipe,
        labels=head,
        multi_label=multi_label(choices, len(head)),
        kind=kind,
        step=0,
        source=weights.name,
        source_sha256=sha256,
        recipe_digest=digest(result_keys(recipe, SECTIONS[kind])),
        data_digest="",
        decoder=decoder_state,
    )
    done = Imported(
        out, weights, sha256, recipe, kind, used, unused, whole.fresh,
        (*whole.notes, *position_notes, *_heads_note(sizes, recipe)), how.licence,
        sum(value.numel() for value in whole.state.values()),
        sum(value.numel() for name, value in whole.state.items() if name not in TABLES), head,
    )  # fmt: skip
    with appearing(out) as folder:
        write(folder, package, done, as_layout, whole.state)
    return done


def _translate(how: Layout, state: State, recipe: Recipe, choices: Choices) -> tuple[Mapped, list[str]]:
    """The file's tensors under our names, positions fitted, the decoder left out where that is asked for."""
    mapped = how.translate(state, recipe.model)
    kept, unused = mapped.state, dict(mapped.unused)
    used = mapped.used
    if not choices.decoder:
        away = set(split_state(kept)[1])
        kept = {name: value for name, value in kept.items() if name not in away}
        used = {name: left for name, targets in used.items() if (left := tuple(t for t in targets if t not in away))}
        unused |= {name: "--no-decoder" for name in mapped.used if name not in used}
    fitted, notes = fit_positions(kept, recipe.model)
    return Mapped(fitted, used, unused, mapped.fresh, mapped.notes), notes


def _recipe(how: Layout, sizes: Sizes, weights: Path, out: Path, choices: Choices) -> Recipe:
    """The given recipe, or one whose model has the sizes of the weights; overrides on top of either."""
    if choices.recipe is not None:
        tree = choices.recipe.model_dump(mode="json")
    else:
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", weights.stem).strip("-") or "imported"
        tree = {"name": name, "objective": {"name": how.preset}, "model": dict(sizes.model)}
        tree["objective"] |= {"decoder": sizes.decoder} if sizes.decoder else {}
    tree["model"]["init"] = str(out)  # Where its own weights will lie: the recipe in the folder goes on from them.
    if sizes.classes:
        tree["finetune"] = {**tree.get("finetune", {}), "modality": choices.modality, "head": "linear"}
    recipe = recipes.validate(tree, list(choices.overrides), origin=str(weights))
    told = any(override.partition("=")[0].strip() == "model.heads" for override in choices.overrides)
    heads, width = sizes.model.get("heads"), sizes.model["width"]
    known = sizes.heads_are_sure or (width in HEADS and not told)
    if known and heads != recipe.model.heads:
        raise UsageFault(
            f"model.heads = {recipe.model.heads}, but these weights have {heads}: the shapes of attn.qkv are the same, "
            "what they mean is not",
            f"set model.heads = {heads}"
            + ("" if sizes.heads_are_sure else "; --set model.heads=N insists, for weights of your own"),
        )
    return recipe


def _heads_note(sizes: Sizes, recipe: Recipe) -> tuple[str, ...]:
    if sizes.heads_are_sure or (sizes.model.get("heads") == recipe.model.heads and sizes.model["width"] in HEADS):
        return ()
    return (f"shapes do not show attention heads: {recipe.model.heads} are taken",)


def _modules(recipe: Recipe, mapped: Mapped, classes: int) -> tuple[AVEncoder, nn.Module | None, AVClassifier | None]:
    """The model without memory: its names and shapes are what the file must fill."""
    with torch.device("meta"):
        encoder = AVEncoder(recipe.model)
        has_decoder = bool(split_state(mapped.state)[1]) and not classes
        decoder = Decoder(recipe.model, recipe.objective.decoder) if has_decoder else None
        classifier = AVClassifier(encoder, classes, recipe.finetune.modality) if classes else None
    return encoder, decoder, classifier


def _initial(recipe: Recipe, decoder: bool) -> State:
    """Values of a fresh model; the same for every import."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(0, "import"))
        encoder = AVEncoder(recipe.model)
        return merge_state(encoder, Decoder(recipe.model, recipe.objective.decoder) if decoder else None)
