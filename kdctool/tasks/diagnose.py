"""How attention and representations look, layer by layer: do heads differ, do queries, does a late layer collapse?

Protocol `diagnose/whole-input@1`: evaluation mode, nothing masked, one frame per clip (N // 2); of a larger split the
`clips` clips with the smallest SHA-256 of their uid. A tower's layers are counted through the joint block, which runs
with the modality's own norms as in retrieval; `joint` is the joint block on both together. Maps are measured per clip
and head, then averaged. Class and register tokens are dropped and the rows made to sum to 1 again (with `renormalise =
false` they are not, and the protocol is `diagnose/raw-rows@1`).

Metrics are those of each tower's last layer; chance is what a layer has that tells no token from another: uniform
attention and equal tokens. details["towers"] has every layer.
"""

import hashlib
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt

from kdctool.errors import DataFault, UsageFault
from kdctool.registry import Section
from kdctool.tasks import Choice, EvalData, Metric, PerClip, Result, tasks
from kdctool.tasks.intervals import bootstrap, weighted_mean
from kdctool.tasks.metrics import Floats, finite
from kdctool.tasks.representation import FEWEST, cka_interval, cka_matrix
from kdctool.tasks.scoring import clusters, evaluating, read_batches
from kdctool.tasks.towers import Tower, Watch, towers_of

BLOCKS = ("aa", "av", "va", "vv")


class DiagnoseOptions(Section):
    clips: PositiveInt = 256
    """Most clips to look at."""
    renormalise: bool = True
    """Make rows sum to 1 again after class and register tokens are dropped."""
    other: str = ""
    """Another run or export, whose layers are compared with this model's by CKA on the same clips."""


@tasks.register("diagnose", DiagnoseOptions)
class Diagnose:
    """Average head distance, mutual information, entropy, singular spectrum and CKA of every layer."""

    needs: tuple[str, ...] = ("audio", "video")
    wants: Literal["encoder", "classifier", "objective"] = "encoder"
    frames: Literal["mid", "all"] = "mid"

    def __init__(self, options: DiagnoseOptions | None = None) -> None:
        self.options = options or DiagnoseOptions()
        self.protocol = "diagnose/whole-input@1" if self.options.renormalise else "diagnose/raw-rows@1"

    def prepare(self, model: Any) -> None:
        """An image model hears nothing."""
        self.needs = ("audio", "video") if hasattr(model, "blocks_a") else ("video",)

    def run(self, model: Any, data: EvalData) -> Result:
        """`model`: an AVEncoder, or a plain ViT of timm, which sees the frames only."""
        watches = [Watch(tower, renormalise=self.options.renormalise) for tower in towers_of(model, data)]
        other = self._other(data)
        others = [Watch(tower, pooled_only=True) for tower in towers_of(other, data)] if other is not None else []
        clip = []
        with evaluating(model), evaluating(other):
            for batch in read_batches(data):
                for watch in (*watches, *others):
                    watch.see(batch)
                clip.append(batch["clip"].cpu())
        if not clip:
            raise DataFault("no clip can be looked at: the split has none that could be read", "try another --split")
        place = torch.cat(clip)
        sources = clusters(data, place)
        columns = {name: value for watch in watches for name, (value, _) in _last_layer(watch).items()}
        chances = {name: chance for watch in watches for name, (_, chance) in _last_layer(watch).items()}
        metrics = {name: _metric(column, sources, chances[name]) for name, column in columns.items()}
        details, notes = _details(watches, len(sources))
        if others:
            details["other"], compared = _compared(watches, others, sources, self.options.other)
            metrics.update(compared)
        uids = tuple(data.uids[index] for index in place.tolist())
        told = PerClip(uids, tuple(sources), columns)
        return Result(
            "diagnose", self.protocol, metrics, len(sources), data.n_total, dict(data.missing), notes, details, told
        )

    def choose(self, uids: list[str], sources: list[str], abouts: list[dict[str, Any]]) -> Choice:
        """The same clips whatever the order in which the split holds them."""
        if len(uids) <= self.options.clips:
            return Choice(np.ones(len(uids), dtype=bool))
        first = sorted(uids, key=lambda uid: hashlib.sha256(uid.encode()).hexdigest())[: self.options.clips]
        note = f"{self.options.clips} of {len(uids)} clips, chosen by a hash of their uid (option clips)"
        return Choice(np.isin(uids, first), notes=(note,))

    def _other(self, data: EvalData) -> Any:
        if not self.options.other:
            return None
        if data.open_encoder is None:
            raise UsageFault("nothing here opens other runs", "kdctool eval --task diagnose --option other=RUN does")
        return data.open_encoder(self.options.other)


def _last_layer(watch: Watch) -> dict[str, tuple[Floats, float]]:
    """Metric -> (N,) values of single clips at the tower's last layer, and what equal tokens would have."""
    tower, last = watch.tower, len(watch.tower.blocks) - 1

    def mean_of_heads(name: str) -> Floats:
        return finite(watch.values(last, name).double().mean(1).numpy(), f"{name} values")

    found: dict[str, tuple[Floats, float]] = {}
    if tower.axes:
        uniform = tower.uniform_distance()[tower.axes[0].name]
        if uniform:
            found["ahd_ratio"] = mean_of_heads(tower.axes[0].name) / uniform, 1.0
    found["nmi"] = mean_of_heads("nmi"), 0.0
    found["entropy"] = mean_of_heads("entropy"), 1.0
    found["effective_rank"] = finite(watch.values(last, "rank").numpy(), "effective ranks"), 1.0
    for name in ("av", "va") if tower.num_audio else ():
        found[f"mass_{name}"] = mean_of_heads(f"mass_{name}"), _uniform_mass(watch)[name]
    return {f"{tower.name}_{name}": value for name, value in found.items()}


def _metric(column: Floats, sources: list[str], chance: float) -> Metric:
    low, high = bootstrap(column, sources, weighted_mean)
    return Metric(float(column.mean()), float(low), float(high), chance)


def _uniform_mass(watch: Watch) -> dict[str, float]:
    """Per block: the share of attention that it has when every key gets the same."""
    audio = watch.tower.num_audio / watch.tower.num_tokens
    return {name: audio if name[1] == "a" else 1.0 - audio for name in BLOCKS}


def _details(watches: list[Watch], num_clips: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    towers = [watch for watch in watches if not watch.tower.num_audio]
    details: dict[str, Any] = {
        "towers": {watch.tower.name: _layers(watch) for watch in towers},
        "uniform_ahd": {watch.tower.name: watch.tower.uniform_distance()["ahd"] for watch in towers},
        "uniform": {watch.tower.name: watch.tower.uniform_distance() for watch in towers},
        "units": {watch.tower.name: {axis.name: axis.unit for axis in watch.tower.axes} for watch in towers},
        "grid": {watch.tower.name: list(watch.tower.grid) for watch in towers},
        "prefix_tokens": {watch.tower.name: watch.tower.prefix for watch in towers},
    }
    for watch in watches:
        if watch.tower.num_audio:
            details["joint"] = _layers(watch)
            details["uniform_mass"] = _uniform_mass(watch)
    names, pooled = _pooled(watches)
    details["cka"] = {"layers": names, "matrix": cka_matrix(pooled, pooled).tolist()}
    return details, (f"CKA is unknown: it needs {FEWEST} clips",) if num_clips < FEWEST else ()


def _layers(watch: Watch) -> list[dict[str, Any]]:
    rows = []
    for place, (name, _) in enumerate(watch.tower.blocks):
        row: dict[str, Any] = {"layer": place + 1, "block": name}
        for axis in watch.tower.axes:
            row.update(_of_heads(watch, place, axis.name))
        row.update(_of_heads(watch, place, "nmi"))
        row.update(_of_heads(watch, place, "entropy"))
        if watch.tower.num_audio:
            row["blocks"] = {
                block: {
                    **_of_heads(watch, place, f"mass_{block}", "mass"),
                    **_of_heads(watch, place, f"nmi_{block}", "nmi"),
                }
                for block in BLOCKS
            }
        row["singular_top"] = watch.values(place, "top").mean(0).tolist()
        row["effective_rank"] = float(watch.values(place, "rank").mean())
        rows.append(row)
    return rows


def _of_heads(watch: Watch, place: int, measured: str, name: str = "") -> dict[str, Any]:
    """Mean over clips for each head; mean and (population) deviation over heads."""
    heads = watch.values(place, measured).double().mean(0).numpy()
    name = name or measured
    return {f"{name}_heads": heads.tolist(), f"{name}_mean": float(heads.mean()), f"{name}_std": float(heads.std())}


def _pooled(watches: list[Watch]) -> tuple[list[str], list[torch.Tensor]]:
    """Name and mean token per clip (N, D) of every layer."""
    places = [(watch, place) for watch in watches for place in range(len(watch.tower.blocks))]
    names = [f"{watch.tower.name} {place + 1}" for watch, place in places]
    return names, [watch.values(place, "pooled") for watch, place in places]


def _compared(
    watches: list[Watch], others: list[Watch], sources: list[str], path: str
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """CKA of each layer here with each layer there; as metrics, those of the last layers of towers of one name."""
    (rows, ours), (columns, theirs) = _pooled(watches), _pooled(others)
    matrix = cka_matrix(ours, theirs)
    metrics = {}
    there = {watch.tower.name: watch for watch in others}
    for watch in watches:
        if (match := there.get(watch.tower.name)) is None:
            continue
        i, j = rows.index(_last_name(watch.tower)), columns.index(_last_name(match.tower))
        low, high = cka_interval(ours[i], theirs[j], sources)
        metrics[f"{watch.tower.name}_cka"] = Metric(float(matrix[i, j]), low, high, 0.0)
    return {"path": path, "rows": rows, "columns": columns, "matrix": matrix.tolist()}, metrics


def _last_name(tower: Tower) -> str:
    return f"{tower.name} {len(tower.blocks)}"
