"""Retrieval and classification metrics in double precision."""

import numpy as np
import torch
from golden_case import METRIC, Case
from torch import Tensor

from kdctool.tasks.classification import auc, average_precision, d_prime, top_k
from kdctool.tasks.retrieval import ranks

KS = (1, 5, 10)


def retrieval(case: Case) -> None:
    unit = {m: torch.nn.functional.normalize(case.input(f"emb_{m}").double(), dim=1).numpy() for m in "av"}
    for way, (queries, gallery) in {"a2v": ("a", "v"), "v2a": ("v", "a")}.items():
        similarity, stored = unit[queries] @ unit[gallery].T, case.tensors[f"sim_{way}"]
        case.close(f"sim_{way}", similarity, stored, precision(stored))
        rank = ranks(stored.numpy())
        found = {f"rank_{way}": rank, **{f"{way}.R{k}": (rank <= k).mean() for k in KS}}
        found |= {f"{way}.MR": np.median(rank), f"{way}.mean_rank": rank.mean()}
        case.all_close(found, METRIC)
        case.close(f"rank_{way} from the embeddings", ranks(similarity), case.tensors[f"rank_{way}"], METRIC)
    if "ties.sim" in case.tensors:
        with_ties(case)


def precision(stored: Tensor) -> float:
    """Tolerance of cosines: where all are float32 numbers in a float64 tensor, they were computed in float32."""
    return METRIC if (stored.float().double() - stored).any() else torch.finfo(torch.float32).eps


def with_ties(case: Case) -> None:
    """The reference enters a query whose target ties with m - 1 others m times, once per place of the tie group."""
    similarity = case.input("ties.sim").numpy()
    best, worst = ranks(similarity, ties="best"), ranks(similarity, ties="worst")
    middle = ranks(similarity, ties="mid")
    entries = np.concatenate([np.arange(low, high + 1) for low, high in zip(best, worst, strict=True)])
    found = {f"ties.R{k}": (entries <= k).mean() for k in KS}
    found |= {"ties.MR": np.median(entries)}
    found |= {"ties.R1_optimistic": (best <= 1).mean(), "ties.R1_pessimistic": (worst <= 1).mean()}
    case.all_close(found, METRIC)
    case.close("ties: mid rank is the middle of best and worst", middle, (best + worst) / 2, METRIC)


def classification(case: Case) -> None:
    for prefix, targets in (("", "targets"), ("single.", "single.targets"), ("single_tied.", "single.targets")):
        if f"{prefix}logits" not in case.tensors:
            continue
        scores = case.input(f"{prefix}logits").double().numpy()
        truth = case.input(targets).double().numpy()
        precision, area = average_precision(scores, truth), auc(scores, truth)
        found = {"ap": precision, "auc": area, "mAP": precision.mean(), "mAUC": area.mean()}
        found["d_prime"] = d_prime(float(area.mean()))
        found["acc"] = top_k(scores, truth.argmax(axis=1), 1, ties="first").mean()
        case.all_close(found, METRIC, prefix=prefix)


CASES = {"metrics_retrieval": retrieval, "metrics_classification": classification}
