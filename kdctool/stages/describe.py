"""A recipe's objective in words: what is seen, what is compared, what is added up, and what it costs. Torch-free."""

from kdctool.recipe import Recipe
from kdctool.recipe.presets import PRESETS
from kdctool.stages import cost


def describe(recipe: Recipe) -> list[str]:
    """Lines for a person."""
    if recipe.objective.name not in PRESETS:
        return [
            f"objective: '{recipe.objective.name}', of a plugin: what it minimises and costs stands in its own file",
            *_rows([("views", _views(recipe)), *_tokens(recipe)]),
        ]
    rows = [("views", _views(recipe)), *_tokens(recipe), *_terms(recipe), *_parameters(recipe)]
    return [f"objective: {recipe.objective.name}, a sum over the views of each clip", *_rows(rows), *_bill(recipe)]


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {name:<12} {text}" for name, text in rows]


def _views(recipe: Recipe) -> str:
    masking = recipe.masking
    kinds = masking.audio if masking.audio == masking.video else f"{masking.audio} (audio), {masking.video} (video)"
    if masking.views == 1:
        return f"1 masked view of each clip; masks: {kinds}"
    how = "complementary: no token in two views" if masking.complementary else "independent: each its own draw"
    return f"{masking.views} masked views of each clip, {how}; masks: {kinds}"


def _tokens(recipe: Recipe) -> list[tuple[str, str]]:
    rows = []
    for name, tokens in zip(("audio", "video"), cost.seen(recipe), strict=True):
        views, share = recipe.masking.views, tokens.kept / tokens.tokens
        covered = views * share if recipe.masking.complementary else 1 - (1 - share) ** views
        expected = "" if recipe.masking.complementary or views == 1 else "on average "
        rows.append(
            (
                name,
                f"{tokens.kept} of {tokens.tokens} tokens visible in a view ({share:.1%}), "
                f"{expected}{round(covered * tokens.tokens)} in some view ({covered:.1%} covered)",
            )
        )
    return rows


def _terms(recipe: Recipe) -> list[tuple[str, str]]:
    objective, run = recipe.objective, cost.passes(recipe)
    rows = []
    if run.decodes:
        rows.append(
            ("loss", f"{objective.reconstruction.weight:g} x (audio + video) reconstruction: {_predicts(recipe)}")
        )
    if objective.contrastive.weight > 0:
        rows.append(("+" if rows else "loss", f"{objective.contrastive.weight:g} x contrastive: {_contrasts(recipe)}"))
        rows.append(("negatives", _negatives(recipe)))
    if objective.self_distillation.weight > 0:
        rows.append(("+" if rows else "loss", _distils(recipe)))
    return rows


def _predicts(recipe: Recipe) -> str:
    objective = recipe.objective
    counted = "all patches" if objective.reconstruction.patches == "all" else "removed patches"
    pixels = "normalised per patch" if objective.reconstruction.norm_pix else "as they are"
    text = f"mean squared error of {counted}, pixels {pixels}"
    if objective.decoder.kind == "light":
        audio, video = cost.seen(recipe)
        text += f", {audio.asked} + {video.asked} of them per view by a light decoder"
    return text + (
        ", later views decoded in the first one's order (released slip)" if objective.legacy_view2_order else ""
    )


def _contrasts(recipe: Recipe) -> str:
    options = recipe.objective.contrastive
    who = {
        "v2a": "each video finds its audio",
        "a2v": "each audio finds its video",
        "both": "each audio finds its video and back (mean)",
    }[options.direction]
    heat = f"temperature {options.temperature:g}" + (", learned" if options.learn_temperature else "")
    if not options.own_ratio:
        return f"{who}, {heat}, per view"
    audio, video = cost.seen(recipe)
    return f"{who}, {heat}, in a pass of its own over {audio.own} audio and {video.own} video tokens"


def _negatives(recipe: Recipe) -> str:
    training = recipe.training
    if recipe.objective.contrastive.negatives == "global":
        return f"{training.global_batch - 1} per query, the rest of the global batch on any number of ranks"
    if training.micro_batch:
        return f"{training.micro_batch - 1} per query, the rest of the micro batch"
    return f"{training.global_batch - 1} per query on one rank, the rest of the rank's share on several"


def _distils(recipe: Recipe) -> str:
    options = recipe.objective.self_distillation
    what = {
        "js": "Jensen-Shannon divergence",
        "kl": "Kullback-Leibler divergence KL(p || q)",
        "kl_reverse": "Kullback-Leibler divergence KL(q || p)",
        "sym_kl": "mean of both Kullback-Leibler divergences",
    }[options.divergence]
    over = "joint, audio and video latents" if options.per_modality else "joint latents"
    how = (
        f"softmax at temperature {options.temperature:g}"
        if options.distribution == "softmax"
        else f"shifted by the minimum of the {_SHIFTS[options.shift]}"
    )
    stop = {
        "none": "",
        "first": ", no gradient to the earlier view",
        "second": ", no gradient to the later view",
        "teacher": f", against a moving average ({options.momentum:g})",
    }[options.stop_gradient]
    return f"{options.weight:g} x self-distillation: {what} of the views' {over}, {how}{stop}"


_SHIFTS = {"global": "global batch", "sample": "clip", "local": "micro batch"}


def _parameters(recipe: Recipe) -> list[tuple[str, str]]:
    count = cost.parameters(recipe)
    dead = count.reference - count.trained
    text = f"{count.total:,}; {count.trained:,} trained, {count.reference:,} as the reference counts"
    return [("parameters", text + (f" (with {dead:,} that get no gradient)" if dead else ""))]


def _bill(recipe: Recipe) -> list[str]:
    bill = cost.parts(recipe)
    whole = cost.total(bill)
    lines = [f"  {'GFLOP per clip':<32} {'forward':>9} {'train':>9} {'share':>7}"]
    for part in [*bill, whole]:
        lines.append(f"    {part.name:<30} {part.forward:>9.2f} {part.train:>9.2f} {part.train / whole.train:>7.1%}")
    return lines
