"""Logistic regression on fixed features: full-batch L-BFGS in float64, the same every time.

Minimises mean loss + decay / 2 * |weights|^2; scikit-learn's C is 1 / (decay * clips). The loss is cross entropy where
a clip has one class, else the sum over classes of binary cross entropies. The bias is as good as free.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kdctool.seeds import fold

DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5)
"""From strong to weak: each fit starts from the one before."""
HELD_OUT = 5
"""One in so many source videos of a class chooses the decay."""
_BIAS_DECAY = 1e-7
"""Keeps the bias of a class that every clip has from growing for ever."""
_MOST_STEPS = 500
_SMALL = 1 << 23
"""Multiply-adds of a product that one thread does faster than several."""


@dataclass(frozen=True)
class Standard:
    """Mean 0 and deviation 1 per feature; a feature that does not vary becomes 0."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Standard":
        """Statistics of features (N, D)."""
        x = features.double()
        mean, deviation = x.mean(0), x.std(0, correction=0)
        # Relative to the feature: float32 values that are all alike still differ in their last bit.
        varies = deviation > 1e-6 * x.abs().amax(0)
        return cls(mean, torch.where(varies, 1 / deviation, 0.0))

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D) float64."""
        return (features.double() - self.mean) * self.scale


@dataclass(frozen=True)
class Linear:
    """A fitted classifier."""

    weight: Tensor
    """(D, classes)."""
    bias: Tensor
    """(classes,)."""
    converged: bool

    def __call__(self, features: Tensor) -> Tensor:
        """Standardised features (N, D) -> logits (N, classes)."""
        return features.double() @ self.weight + self.bias


def loss(logits: Tensor, target: Tensor, several: bool) -> Tensor:
    """Mean over clips. target (N, classes) holds 0 and 1."""
    if several:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(target)
    return F.cross_entropy(logits, target.argmax(1))


def fit(
    features: Tensor,
    target: Tensor,
    decay: float,
    several: bool,
    start: Linear | None = None,
    tolerance: float = 1e-7,
) -> Linear:
    """The optimum for features (N, D) and targets (N, classes); `start` saves steps and changes nothing else.

    `tolerance`: the largest entry of the gradient that counts as none.
    """
    x, y = features.double(), target.to(features.device, torch.float64)
    size = x.shape[1] * y.shape[1]
    flat = torch.zeros(size + y.shape[1], dtype=torch.float64, device=x.device)
    if start is not None:
        flat = torch.cat([start.weight.flatten(), start.bias])
    flat = flat.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [flat],
        max_iter=_MOST_STEPS,
        max_eval=2 * _MOST_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        weight, bias = flat[:size].view(x.shape[1], y.shape[1]), flat[size:]
        penalty = decay * weight.square().sum() + _BIAS_DECAY * bias.square().sum()
        total = loss(x @ weight + bias, y, several) + penalty / 2
        total.backward()
        return total

    with torch.inference_mode(False), torch.enable_grad(), _one_thread_if(x.shape[0] * size < _SMALL):
        optimiser.step(closure)
        closure()
    assert flat.grad is not None
    found = flat.detach()
    # A gradient of 1e-4 is a thousandth of a clip among ten: no answer depends on it.
    converged = float(flat.grad.abs().max()) < 1e-4
    return Linear(found[:size].view(x.shape[1], y.shape[1]), found[size:], converged)


@contextmanager
def _one_thread_if(small: bool) -> Iterator[None]:
    """Small products take longer on several threads: twenty times where the cores are busy."""
    threads = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def held_out(target: NDArray[np.bool_], sources: Sequence[str]) -> NDArray[np.bool_]:
    """(N,) clips on which the decay is chosen: of each class a fifth of its source videos, by a hash of their names.

    All False where no class has five. Classes with few videos come first, and videos held out for one class count
    for the others that they show.
    """
    num_classes = target.shape[1]
    names, member = np.unique(np.asarray(sources), return_inverse=True)
    shows = np.zeros((len(names), num_classes), dtype=bool)
    np.logical_or.at(shows, member, target)
    order = np.argsort([fold(0, "held out", str(name)) for name in names])
    held = np.zeros(len(names), dtype=bool)
    for column in np.argsort(shows.sum(0), kind="stable"):
        of_class = order[shows[order, column]]
        lacking = len(of_class) // HELD_OUT - int(held[of_class].sum())
        held[of_class[~held[of_class]][: max(0, lacking)]] = True
    return held[member]


def choose_decay(features: Tensor, target: Tensor, sources: Sequence[str], several: bool) -> float | None:
    """The decay with the least loss on held-out clips; the stronger one of equals. None where none can be held out."""
    hits = target.cpu().numpy() > 0
    apart = held_out(hits, sources)
    learned = ~apart
    classes = hits[learned].any(0)
    # A class that is only among the held-out clips tells nothing about the decay.
    judged = apart & ~hits[:, ~classes].any(1)
    if not judged.any() or (classes.sum() < 2 and not several):
        return None
    columns = torch.from_numpy(np.flatnonzero(classes)).to(features.device)
    target = target.to(features.device)[:, columns].double()
    mine, theirs = (torch.from_numpy(rows).to(features.device) for rows in (learned, judged))
    losses, model = [], None
    for decay in DECAYS:
        model = fit(features[mine], target[mine], decay, several, model, tolerance=1e-5)
        losses.append(float(loss(model(features[theirs]), target[theirs], several)))
    return DECAYS[int(np.argmin(losses))]


def fit_chosen(features: Tensor, target: Tensor, sources: Sequence[str], several: bool) -> tuple[Linear, float]:
    """Fit with the decay that held-out clips chose, on all clips; decay 1 / clips (C = 1) where none can choose."""
    decay = choose_decay(features, target, sources, several)
    if decay is None:
        decay = 1 / len(features)
    return fit(features, target, decay, several), decay
