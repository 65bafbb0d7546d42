"""Parameters and matrix products of pre-training, part by part: arithmetic from the recipe alone. Torch-free.

Checked against torch's FLOP counter and against the parameters of the real modules. Learned maskings are not in it:
their networks are a few thousandths of a model.
"""

from dataclasses import dataclass

from kdctool.recipe import Model, Recipe


@dataclass(frozen=True)
class Part:
    """One line of the bill, per clip, for all views."""

    name: str
    forward: float
    """GFLOP of the forward pass; a multiply-add is two."""
    train: float
    """GFLOP of forward and backward."""
    kept: float = 0.0
    """Tokens times width times blocks whose activations wait for the backward pass."""


@dataclass(frozen=True)
class Parameters:
    """How many numbers there are."""

    total: int
    trained: int
    """Those that get a gradient."""
    reference: int
    """As published tables count trainable ones: encoder and decoder without the positional tables."""


@dataclass(frozen=True)
class Seen:
    """Tokens of one modality."""

    tokens: int
    kept: int
    """Visible in each view."""
    own: int
    """Visible in the pass that contrast has of its own; 0 without one."""
    asked: int
    """Removed tokens of a view that the decoder is asked for."""


@dataclass(frozen=True)
class Passes:
    """What runs on the masked views."""

    joint: bool
    single: bool
    """Each modality alone through the joint block."""
    own: bool
    """Contrast has a pass of its own."""
    teacher: bool
    decodes: bool

    @property
    def views(self) -> bool:
        return self.joint or self.single


def passes(recipe: Recipe) -> Passes:
    """Which passes the weights of the terms ask for."""
    objective = recipe.objective
    decodes, contrasts = objective.reconstruction.weight > 0, objective.contrastive.weight > 0
    distils = objective.self_distillation.weight > 0
    own = contrasts and objective.contrastive.own_ratio > 0
    return Passes(
        joint=decodes or distils,
        single=(contrasts and not own) or (distils and objective.self_distillation.per_modality),
        own=own,
        teacher=distils and objective.self_distillation.stop_gradient == "teacher",
        decodes=decodes,
    )


def seen(recipe: Recipe) -> tuple[Seen, Seen]:
    """Audio and video tokens, visible and not."""
    masking, objective = recipe.masking, recipe.objective
    own_ratio = objective.contrastive.own_ratio if passes(recipe).own else 1.0
    found = []
    for tokens, ratio in (
        (recipe.model.audio_tokens, masking.audio_ratio),
        (recipe.model.video_tokens, masking.video_ratio),
    ):
        kept = int(tokens * (1 - ratio))
        light = objective.decoder.kind == "light"
        asked = max(1, int(objective.decoder.share * (tokens - kept))) if light else tokens - kept
        found.append(Seen(tokens, kept, int(tokens * (1 - own_ratio)), asked))
    return found[0], found[1]


def parts(recipe: Recipe) -> list[Part]:
    """The bill of one clip; parts that do not run are left out."""
    model, views, run = recipe.model, recipe.masking.views, passes(recipe)
    audio, video = seen(recipe)
    bill: list[Part] = []
    if run.views:
        bill.append(_embedding(model))
        bill.append(_blocks("audio encoder", model, model.depth, views, [audio.kept]))
        bill.append(_blocks("video encoder", model, model.depth, views, [video.kept]))
    if run.joint:
        bill.append(_blocks("joint block", model, model.joint_depth, views, [audio.kept + video.kept]))
    if run.single:
        bill.append(_blocks("contrastive passes", model, model.joint_depth, views, [audio.kept, video.kept]))
    if run.own:
        one = [audio.own, video.own]
        own = [_embedding(model), _blocks("", model, model.depth + model.joint_depth, 1, one)]
        bill.append(_sum("contrast's own pass", own))
    if run.teacher:
        pairs = [audio.kept, video.kept]
        blocks = [
            _blocks("", model, model.depth, views, pairs),
            _blocks("", model, model.joint_depth, views, [sum(pairs)]),
        ]
        if recipe.objective.self_distillation.per_modality:
            blocks.append(_blocks("", model, model.joint_depth, views, pairs))
        forward = sum(part.forward for part in (_embedding(model), *blocks))
        bill.append(Part("teacher, no gradient", forward, forward))
    return bill + (_decoder(recipe, audio, video) if run.decodes else [])


def total(bill: list[Part]) -> Part:
    """The sum of all parts."""
    return _sum("all", bill)


def parameters(recipe: Recipe) -> Parameters:
    """Of the encoder, the decoder, a teacher and a learned temperature."""
    model, objective, run = recipe.model, recipe.objective, passes(recipe)
    width, tokens = model.width, model.audio_tokens + model.video_tokens
    patches = model.audio_patch**2 + 3 * model.video_patch**2
    block = _block_parameters(width, model.mlp_ratio)
    # Patch embeddings with their biases, two modality embeddings, three final norms.
    encoder = (2 * model.depth + model.joint_depth) * block + width * (patches + tokens + 10)
    joint, audio = run.joint, run.single or run.own
    dead = 2 * model.depth * 8 * width
    dead += 0 if joint else model.joint_depth * 4 * width + 2 * width
    dead += 0 if audio else model.joint_depth * 8 * width + 4 * width
    count, trained, reference = encoder, encoder - tokens * width - dead, encoder - tokens * width
    if run.decodes:
        decoder = objective.decoder
        inner, light = decoder.width, decoder.kind == "light"
        # A light block has two norms instead of six, and one more norm serves all of them.
        blocks = decoder.depth * (_block_parameters(inner, model.mlp_ratio) - (8 * inner if light else 0))
        rest = inner * (width + tokens + 6) + patches * (inner + 1) + (2 * inner if light else 0)
        count += blocks + rest
        reference += blocks + rest - tokens * inner
        trained += blocks + rest - tokens * inner - (0 if light else decoder.depth * 8 * inner)
    if run.teacher:
        count += encoder
    if objective.contrastive.weight > 0 and objective.contrastive.learn_temperature:
        count, trained, reference = count + 1, trained + 1, reference + 1
    return Parameters(count, trained, reference)


def _block_parameters(width: int, mlp_ratio: float) -> int:
    """Attention, MLP and three pairs of norms."""
    hidden = int(width * mlp_ratio)
    return 4 * width**2 + 4 * width + 2 * width * hidden + hidden + width + 12 * width


def _embedding(model: Model) -> Part:
    cells = model.audio_tokens * model.audio_patch**2 + model.video_tokens * 3 * model.video_patch**2
    forward = 2 * model.width * cells / 1e9
    return Part("patch embedding", forward, 2 * forward)  # No gradient with respect to the input.


def _blocks(name: str, model: Model, depth: int, views: int, sequences: list[int]) -> Part:
    """Self-attention blocks on each of some sequences: (8 + 4 r) n d^2 + 4 n^2 d a block."""
    width, ratio = model.width, model.mlp_ratio
    each = sum((8 + 4 * ratio) * n * width**2 + 4 * n * n * width for n in sequences)
    forward = views * depth * each / 1e9
    return Part(name, forward, 3 * forward, views * depth * sum(sequences) * width)


def _decoder(recipe: Recipe, audio: Seen, video: Seen) -> list[Part]:
    model, decoder, views = recipe.model, recipe.objective.decoder, recipe.masking.views
    width, ratio, visible = decoder.width, model.mlp_ratio, audio.kept + video.kept
    if decoder.kind == "light":
        places_a, places_v = audio.asked, video.asked
        n = places_a + places_v
        each = (4 + 4 * ratio) * n * width**2 + 4 * visible * width**2 + 4 * n * visible * width
        name = f"light decoder, {n} queries"
    else:
        places_a, places_v = audio.tokens, video.tokens
        n = places_a + places_v
        each = (8 + 4 * ratio) * n * width**2 + 4 * n * n * width
        name = f"decoder, {n} tokens"
    cells = places_a * model.audio_patch**2 + places_v * 3 * model.video_patch**2
    products = (
        ("decoder projection", 2.0 * model.width * width * visible, 0.0),
        (name, decoder.depth * each, float(decoder.depth * n * width)),
        ("prediction heads", 2.0 * width * cells, 0.0),
    )
    return [Part(name, views * work / 1e9, 3 * views * work / 1e9, views * kept) for name, work, kept in products]


def _sum(name: str, bill: list[Part]) -> Part:
    return Part(
        name,
        sum(part.forward for part in bill),
        sum(part.train for part in bill),
        sum(part.kept for part in bill),
    )
