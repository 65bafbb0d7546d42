"""Find the video of a sound and the sound of a video, among the clips of the split.

Protocol `retrieval/frame-mid@1`: pre-trained weights, one frame per clip (N // 2), nothing masked, the joint
block with each modality's own norms, mean over tokens, cosine; the clip's own partner is the only right answer.
Options change the protocol and its id: which frames, which clips, which of them are candidates.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from kdctool.batch import Batch
from kdctool.errors import DataFault, UsageFault
from kdctool.registry import Section
from kdctool.tasks import Choice, EvalData, Metric, PerClip, Result, tasks
from kdctool.tasks.attributes import Attributes
from kdctool.tasks.intervals import bootstrap, known_mean, weighted_mean, weighted_median
from kdctool.tasks.metrics import Floats, Places, finite, ranks, recall_at
from kdctool.tasks.ranking import Known, Ranking, rank_all
from kdctool.tasks.scoring import check_frames, clusters, evaluating, own_frames, read_batches
from kdctool.tasks.subset import IdList, per_class

__all__ = ["Retrieval", "cosine_places", "ranks", "recall_at", "unit_embedding"]

KS = (1, 5, 10)
SHOWN = 24
"""Queries per direction of which the best candidates are kept for the report."""
PRECISION = "label_p1"


class Options(Section):
    """What is retrieved from what."""

    frames: Literal["mid", "mean", "diagonal"] = "mid"
    """mid: frame N // 2. mean: mean of the frames' embeddings. diagonal: each frame beside its own part of the
    sound, mean of the N cosines."""
    per_class: Annotated[int, Field(ge=0)] = 0
    """Only this many clips of every label; 0: all clips."""
    seed: int = 0
    """Another seed draws other clips per class."""
    list: str = ""
    """File with one uid or source id per line: only these clips."""
    group: bool = False
    """Clips of the same source video are no candidates for each other."""
    attributes: str = ""
    """JSON-lines file with a row per clip: precision is counted by what it says, too, for example by speaker."""
    by: str = ""
    """Which of its keys, for example label,speaker,gain."""


def unit_embedding(tokens: Tensor) -> Tensor:
    """(B, L, D) tokens -> (B, D): mean over tokens, L2-normalised, float32."""
    return F.normalize(tokens.float().mean(1), dim=-1)


def cosine_places(queries: Floats, gallery: Floats) -> Places:
    """Places of gallery item i for query i; both (N, D), unit norm."""
    return rank_all(queries, gallery, Known()).places


@tasks.register("retrieval", options=Options)
class Retrieval:
    """Recall at 1, 5 and 10, median and mean rank, in both directions (a2v: a sound asks for its video)."""

    needs: tuple[str, ...] = ("audio", "video", "about")
    wants: Literal["encoder", "classifier", "objective"] = "encoder"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.frames: Literal["mid", "all"] = "mid" if self.options.frames == "mid" else "all"
        if self.options.list and self.options.per_class:
            raise UsageFault("retrieval takes either per_class or list, not both", "leave one of the options out")
        if self.options.by and not self.options.attributes:
            raise UsageFault(f"by = {self.options.by} of which file?", "--option attributes=FILE")
        self.listed = IdList.read(Path(self.options.list)) if self.options.list else None
        given = self.options.attributes
        self.attributes = Attributes.read(Path(given), self.options.by) if given else None
        self.protocol = self._protocol("mid" if self.frames == "mid" else f"N-{self.options.frames}")

    def _protocol(self, frames: str) -> str:
        chosen = self.options
        parts = [f"frame-{frames}" if frames == "mid" else f"frames-{frames}"]
        if chosen.per_class:
            parts.append(f"{chosen.per_class}-per-class" + (f"-seed-{chosen.seed}" if chosen.seed else ""))
        if self.listed:
            parts.append(f"list-{self.listed.tag}")
        if chosen.group:
            parts.append("grouped")
        if self.attributes:
            parts.append(f"by-{self.attributes.tag}")
        return f"retrieval/{'-'.join(parts)}@1"

    def choose(self, uids: Sequence[str], sources: Sequence[str], abouts: Sequence[dict[str, Any]]) -> Choice:
        """All clips, k per class, or those of the list."""
        if self.listed:
            return self.listed.choose(uids, sources)
        if self.options.per_class:
            return per_class(uids, abouts, self.options.per_class, self.options.seed)
        return Choice(np.ones(len(uids), dtype=bool))

    def run(self, model: Any, data: EvalData) -> Result:
        """`model` offers embed_audio(fbank) and embed_video(frame), each giving (B, L, D) tokens."""
        if self.frames == "all":
            check_frames(data)
        audio, video, clip, counts = [], [], [], set()
        with evaluating(model):
            for batch in read_batches(data):
                a, v = self._embed(model, batch)
                audio.append(a.cpu())
                video.append(v.cpu())
                clip.append(batch["clip"].cpu())
                counts.update(batch["frame_count"].tolist() if self.frames == "all" else [])
        if not clip:
            raise DataFault(
                "no clip has both sound and picture, so there is nothing to retrieve", "try another --split"
            )
        if self.options.frames == "diagonal" and len(counts) > 1:
            raise DataFault(
                f"clips have {min(counts)} to {max(counts)} frames, the diagonal needs the same number in all",
                "--option frames=mean",
            )
        place = torch.cat(clip)
        sources = clusters(data, place)
        known, notes, details = self._known(data, place, sources)
        embedded = {
            "a": finite(torch.cat(audio).numpy(), "audio embedding values"),
            "v": finite(torch.cat(video).numpy(), "video embedding values"),
        }
        uids = [data.uids[int(i)] for i in place]
        metrics: dict[str, Metric] = {}
        columns: dict[str, Floats] = {}
        assets: dict[str, NDArray[Any]] = {}
        for way, queries, gallery in (("a2v", "a", "v"), ("v2a", "v", "a")):
            found = rank_all(embedded[queries], embedded[gallery], known)
            _directed(way, found, sources, metrics, columns)
            assets.update(_shown(way, found, known, uids))
        if counts:
            notes = (*notes, *_frames_note(counts))
        protocol = self.protocol if not counts else self._protocol(f"{max(counts)}-{self.options.frames}")
        told = PerClip(tuple(uids), tuple(sources), columns)
        missing = dict(data.missing)
        return Result("retrieval", protocol, metrics, len(sources), data.n_total, missing, notes, details, told, assets)

    def _embed(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, D'); their dot product is the similarity."""
        if self.options.frames == "mid":
            return unit_embedding(model.embed_audio(batch["fbank"])), unit_embedding(model.embed_video(batch["frame"]))
        frames, own = batch["frames"], own_frames(batch)
        video = torch.stack([unit_embedding(model.embed_video(frames[:, n])) for n in range(frames.shape[1])], dim=1)
        tokens = model.embed_audio(batch["fbank"])
        if self.options.frames == "diagonal":
            parts = _parts(tokens.float(), model.options.audio_grid, frames.shape[1])
            return _side_by_side(parts), _side_by_side(video)
        mean = (video * own[:, :, None]).sum(1) / own.sum(1, keepdim=True)
        return unit_embedding(tokens), F.normalize(mean, dim=-1)

    def _known(
        self, data: EvalData, place: Tensor, sources: list[str]
    ) -> tuple[Known, tuple[str, ...], dict[str, Any]]:
        groups = np.unique(np.asarray(sources), return_inverse=True)[1] if self.options.group else None
        labels, notes = _labels(data, place)
        marks, details = ({PRECISION: labels} if labels is not None else {}), dict[str, Any]()
        if self.attributes:
            rows = [int(i) for i in place]
            found = self.attributes.of([data.uids[i] for i in rows], [data.abouts[i] for i in rows])
            details = {"attributes": self.attributes.about(found)}
            for name, values in found.items():
                marks[f"precision_{name}"] = values.marks
                notes = (*notes, *([f"precision_{name} {values.note}"] if values.note else []))
        shown = np.unique(np.linspace(0, len(sources) - 1, min(SHOWN, len(sources))).astype(np.int64))
        return Known(groups, marks, shown), notes, details


def _parts(tokens: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Frequency-major audio tokens (B, L, D) -> (B, count, D): unit means over equal parts of the time axis."""
    if grid[1] < count:
        raise UsageFault(
            f"the sound has {grid[1]} tokens along time, too few for {count} frames each with its own part",
            "--option frames=mean",
        )
    columns = tokens.reshape(len(tokens), *grid, -1).mean(1)  # (B, time, D)
    part = torch.arange(grid[1], device=tokens.device) * count // grid[1]
    return torch.stack([F.normalize(columns[:, part == n].mean(1), dim=-1) for n in range(count)], dim=1)


def _side_by_side(units: Tensor) -> Tensor:
    """(B, N, D) unit vectors -> (B, N * D): the dot product of two such rows is the mean of their N cosines."""
    return units.flatten(1) / units.shape[1] ** 0.5


def _frames_note(counts: set[int]) -> tuple[str, ...]:
    return (f"clips have {min(counts)} to {max(counts)} frames",) if len(counts) > 1 else ()


def _labels(data: EvalData, place: Tensor) -> tuple[NDArray[np.float32] | None, tuple[str, ...]]:
    told = [data.abouts[int(i)].get("labels", []) for i in place] if data.abouts else []
    column = {label: number for number, label in enumerate(sorted({label for names in told for label in names}))}
    if not column:
        return None, ()
    labels = np.zeros((len(told), len(column)), dtype=np.float32)
    for row, names in enumerate(told):
        labels[row, [column[name] for name in names]] = 1
    num = int(labels.any(1).sum())
    notes = () if num == len(told) else (f"{PRECISION} over the {num} of {len(told)} clips that have a label",)
    return labels, notes


def _directed(
    way: str, found: Ranking, sources: list[str], metrics: dict[str, Metric], columns: dict[str, Floats]
) -> None:
    """Add the metrics of one direction, and their values clip by clip."""
    middle, candidates = found.places.rank("mid"), found.candidates
    values = {f"{way}_r{k}": found.places.within(k) for k in KS} | {f"{way}_mean_rank": middle}
    # Queries are resampled, the gallery stays: recall depends on its size.
    low, high = bootstrap(np.stack(list(values.values()), axis=1), sources, weighted_mean)
    guess = (candidates + 1) / 2
    chances = [float((np.minimum(k, candidates) / candidates).mean()) for k in KS] + [float(guess.mean())]
    found_metrics = {
        name: Metric(float(value.mean()), float(low[i]), float(high[i]), chances[i])
        for i, (name, value) in enumerate(values.items())
    }
    median_low, median_high = bootstrap(middle, sources, weighted_median)
    median = Metric(float(np.median(middle)), float(median_low), float(median_high), float(np.median(guess)))
    last = f"{way}_mean_rank"
    metrics |= {name: metric for name, metric in found_metrics.items() if name != last}
    metrics |= {f"{way}_median_rank": median, last: found_metrics[last]}
    for kind, precision in found.precision.items():
        if np.isnan(precision).all():
            continue
        low, high = bootstrap(precision, sources, known_mean)
        chance = float(np.nanmean(found.precision_chance[kind]))
        values[f"{way}_{kind}"] = precision
        metrics[f"{way}_{kind}"] = Metric(float(np.nanmean(precision)), float(low), float(high), chance)
    columns |= values


def _shown(way: str, found: Ranking, known: Known, uids: list[str]) -> dict[str, NDArray[Any]]:
    names = np.array([*uids, ""])  # The last place, -1, is nobody.
    return {
        f"gallery.query_{way}": names[known.shown],
        f"gallery.top_{way}": names[found.top],
        f"gallery.score_{way}": found.score,
        f"gallery.rank_{way}": found.places.rank("mid")[known.shown],
    }
