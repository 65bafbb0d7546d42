"""What names of tasks, metrics and curves mean, in words; and which numbers stand on the cards."""

from kdctool.report.names import title

TASKS = {
    "retrieval": ("Retrieval", "Find the video of a sound, and the sound of a video, among all clips of the split."),
    "localization": ("Sound localisation", "Where in the picture is what is heard?"),
    "inpainting": ("Inpainting", "What the model makes of parts it was not shown."),
    "classification": ("Classification", "Which labels does a clip have?"),
    "probe": ("Probe of frozen features", "How much do the features tell with little learning on top?"),
    "diagnose": ("Inside the towers", "How far attention looks, and how much heads and layers differ."),
}
"""Task -> title and question, in the order in which a page shows them."""

HEADLINES = {
    "retrieval": ("a2v_r1", "v2a_r1"),
    "classification": ("top1", "map"),
    "localization": ("ciou_top50", "pointing", "two_choice", "ciou_fixed", "ciou"),
    "inpainting": ("audio_gain", "video_gain"),
    "probe": ("linear_top1", "linear_map", "knn20_top1", "knn20_map"),
    "diagnose": (),
}
"""Metrics of a task that stand on cards, the first two that there are; other tasks show their first two."""

METRICS = {
    "top1": "the first answer is right",
    "top5": "the right answer is among the first five",
    "map": "mean average precision over classes",
    "auc": "area under the ROC curve, mean over classes",
    "d_prime": "separation of the scores, from the AUC",
}
_WAYS = {"a2v": "sound finds its video", "v2a": "video finds its sound"}
_RETRIEVED = {
    "r1": "in first place",
    "r5": "among the first 5",
    "r10": "among the first 10",
    "label_p1": "the first answer has a label of the query",
    "median_rank": "median place",
    "mean_rank": "mean place",
}

_LOCATED = {
    "pointing": "the highest point of the map lies in a box",
    "two_choice": "the box of what sounds beats the silent one",
    "ciou": "overlap of at least one half",
    "auc": "area under the success curve",
} | {
    f"{score}_{rule}": f"{meaning}, {marked}"
    for score, meaning in (("ciou", "overlap of at least one half"), ("auc", "area under the success curve"))
    for rule, marked in (
        ("fixed", "marked from half of the map's range"),
        ("top50", "the brighter half of the map marked"),
        ("top10", "the brightest tenth of the map marked"),
    )
}
BESIDE = {
    "": "",
    "centre": "a disc in the middle",
    "all_ones": "everything marked",
    "either": "either rival",
    "silence": "silence as sound",
    "noise": "noise as sound",
    "shuffled": "another clip's sound",
    "minus_shuffled": "own sound minus another clip's",
}
"""What stands in place of the model's map or of the clip's sound -> in words."""
_INSIDE = {
    "ahd_ratio": "head distance over that of uniform attention",
    "nmi": "mutual information of queries and keys",
    "entropy": "entropy of attention, 1: all tokens alike",
    "effective_rank": "directions that the tokens of a clip take",
    "mass_av": "share of the sound's attention that goes to the picture",
    "mass_va": "share of the picture's attention that goes to the sound",
}
_FILLED = {
    "mse": "error where it was removed, both modalities masked",
    "mse_alone": "error given nothing of the {other}",
    "mse_shuffled": "error given the {other} of another clip",
    "mse_cross": "error given the {other} alone",
    "mse_cross_shuffled": "error given the {other} of another clip alone",
    "mse_mean": "error of the mean of the visible patches, no model",
    "mse_copy": "error of copying the nearest visible patch, no model",
    "mse_cross_mean": "error of a mean patch, no model",
    "gain": "what the {other} is worth: error alone minus error with it",
    "gain_shuffled": "what the {other} of another clip is worth",
    "psnr": "peak signal-to-noise ratio of the whole, dB",
    "ssim": "structural similarity of the whole",
    "lsd": "log-spectral distance, dB",
}

CURVES = {
    "loss": "Loss",
    "reconstruction": "Reconstruction",
    "contrastive": "Contrastive",
    "self_distillation": "Self-distillation",
    "classification": "Classification loss",
    "contrastive_accuracy": "Contrastive accuracy in the batch",
    "accuracy": "Accuracy in the batch",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "clips_per_s": "Clips per second",
    "clips_per_s_per_rank": "Clips per second and rank",
    "data_wait": "Share of time waiting for data",
    "gpu_memory_gb": "GPU memory, GB",
    "tflops_per_rank": "TFLOP/s per rank",
    "mfu": "Model FLOP utilisation",
    "rank": "Effective rank of the embeddings",
    "uniformity": "Uniformity of the embeddings",
    "alignment": "Alignment of pairs",
    "probe": "Probe on held-out clips",
}
MACHINE = ("clips_per_s", "clips_per_s_per_rank", "data_wait", "gpu_memory_gb", "tflops_per_rank", "mfu")
"""Curves that tell of the machine, not of the model."""


def task_title(task: str) -> str:
    return TASKS[task][0] if task in TASKS else title(task)


def metric_meaning(task: str, name: str) -> str:
    """A metric in words; empty where only its name is known."""
    if task == "retrieval":
        return _retrieved(name[:3], name[4:])
    if task == "localization":
        score, beside = located(name)
        words = [_LOCATED.get(score, ""), BESIDE[beside]]
        return ", ".join(word for word in words if word) if words[0] else ""
    if task == "inpainting":
        modality, _, rest = name.partition("_")
        if modality not in ("audio", "video") or rest not in _FILLED:
            return ""
        other = "video" if modality == "audio" else "audio"
        return f"{modality}: {_FILLED[rest].format(other=other)}"
    if task == "diagnose":
        tower, _, rest = name.partition("_")
        return f"{tower}, last layer: {_INSIDE[rest]}" if rest in _INSIDE else ""
    if task == "probe":
        return _probed(name)
    return METRICS.get(name, "") if task == "classification" else ""


def _retrieved(way: str, name: str) -> str:
    shared = name.removeprefix("precision_")
    meaning = f"the first answer has the query's {shared}" if shared != name else _RETRIEVED.get(name, "")
    return f"{_WAYS[way]}, {meaning}" if way in _WAYS and meaning else ""


def _probed(name: str) -> str:
    """linear_k10_top1 -> what learned, from how many labels, and what counts."""
    learner, *budget = name.split("_")
    meaning = METRICS.get(budget.pop(), "") if budget else ""
    if not meaning:
        return ""
    if learner.startswith("knn"):
        return f"{learner.removeprefix('knn')} nearest neighbours, {meaning}"
    if learner != "linear" or len(budget) > 1:
        return ""
    if not budget:
        return f"linear on all labels, {meaning}"
    few = budget[0]
    share = few.removeprefix("share")
    how_many = f"{few[1:]} labels a class" if few.startswith("k") else f"{float(share):g} of the labels"
    return f"linear on {how_many}, {meaning}"


def located(name: str) -> tuple[str, str]:
    """`ciou_top50_centre` -> ('ciou_top50', 'centre'): a score, and what stood in place of the model's map."""
    for beside in sorted(BESIDE, key=len, reverse=True):
        if beside and name.endswith(f"_{beside}"):
            return name.removesuffix(f"_{beside}"), beside
    return name, ""


def curve_title(name: str) -> str:
    return CURVES.get(name) or title(name)
