"""Which labels does a clip have: a finetuned model against the labels of the split.

Protocol `classification/frame-mid@1`: one frame per clip (N // 2), raw logits. With one label per clip: top-1,
top-5, mAP, AUC, d'; with several: mAP, AUC, d'. mAP and AUC are means over the classes that can be scored.
Options change the protocol and its id: which frames, and which modalities the model is given.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdctool.batch import Batch
from kdctool.errors import DataFault, UsageFault
from kdctool.registry import Section
from kdctool.tasks import EvalData, Metric, PerClip, Result, tasks
from kdctool.tasks.classes import Scored, accuracy, details, ranking
from kdctool.tasks.metrics import Floats, auc, average_precision, d_prime, finite, top_k
from kdctool.tasks.scoring import check_frames, clusters, evaluating, own_frames, read_batches

__all__ = ["Classification", "auc", "average_precision", "d_prime", "top_k"]

LACKING = {"audio": "video", "video": "audio"}


class Options(Section):
    """What the classifier is shown of a clip."""

    frames: Literal["mid", "each", "all"] = "mid"
    """mid: frame N // 2. each: a score per frame. all: mean over the frames of the softmax, with several labels per
    clip of the sigmoid, as CAV-MAE tests."""
    present: Literal["trained", "both", "audio", "video"] = "trained"
    """trained: what the model was finetuned on. audio or video: a model finetuned on both without the other one."""


@tasks.register("classification", options=Options)
class Classification:
    """Accuracy and ranking quality of a classifier, for one label per clip or several."""

    wants: Literal["encoder", "classifier", "objective"] = "classifier"

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.needs: tuple[str, ...] = ("audio", "video", "label")
        self.frames: Literal["mid", "all"] = "mid" if self.options.frames == "mid" else "all"
        self.missing: Literal["audio", "video", ""] = ""
        self.protocol = self._protocol("N", "")

    def _protocol(self, count: str, mean_of: str) -> str:
        kinds = {"mid": "frame-mid", "each": f"frames-{count}-each", "all": f"frames-{count}-mean{mean_of}"}
        lacking = f"-without-{self.missing}" if self.missing else ""
        return f"classification/{kinds[self.options.frames]}{lacking}@1"

    def prepare(self, model: Any) -> None:
        """UsageFault for a model that was not finetuned on what `present` asks for."""
        trained = getattr(model, "modality", "both")
        asked = trained if self.options.present == "trained" else self.options.present
        if asked != trained and trained != "both":
            raise UsageFault(
                f"the classifier was finetuned on {trained}, so it cannot be scored on {asked}",
                f"kdctool finetune RUN --set finetune.modality={asked} makes one that can",
            )
        if asked == "audio" and self.frames == "all":
            raise UsageFault(
                f"frames = {self.options.frames} changes nothing: the classifier looks at no frame",
                "leave the option out",
            )
        self.missing = LACKING[asked] if asked != trained else ""  # type: ignore[assignment]
        self.needs = ("audio", "video", "label") if asked == "both" else (asked, "label")
        self.protocol = self._protocol("N", "")

    def run(self, model: Any, data: EvalData) -> Result:
        """`model(batch)` gives logits (B, classes); batch["label"] (B, classes) is 1 where the clip has the class."""
        self.prepare(model)
        if self.frames == "all":
            check_frames(data)
        outputs, targets, clip, counts = [], [], [], []
        with evaluating(model):
            for batch in read_batches(data):
                if "label" not in batch:
                    raise DataFault("these shards carry no labels", "give kdctool shard a labels.csv")
                outputs.append(self._outputs(model, batch, data.multi_label))
                targets.append(batch["label"].cpu())
                clip.append(batch["clip"].cpu())
                counts.append(batch["frame_count"].cpu() if self.frames == "all" else torch.ones(len(clip[-1])))
        if not clip:
            raise DataFault("no clip can be classified: the split has none that could be read", "try another --split")
        most = max(output.shape[1] for output in outputs)
        padded = [torch.nn.functional.pad(output, (0, 0, 0, most - output.shape[1])) for output in outputs]
        scores = finite(torch.cat(padded).numpy(), "logits")  # (N, M, classes)
        truth = torch.cat(targets).numpy() > 0
        if scores.shape[2] != truth.shape[1]:
            raise UsageFault(
                f"the classifier knows {scores.shape[2]} classes, the labels have {truth.shape[1]}",
                "evaluate on shards with the labels it was finetuned on",
            )
        return self._scored(scores, truth, torch.cat(clip), torch.cat(counts).numpy(), data)

    def _scored(self, scores: Floats, truth: Any, clip: Tensor, count: Any, data: EvalData) -> Result:
        labelled = truth.any(1)
        missing = dict(data.missing)
        if not labelled.all():
            missing["no_label"] = missing.get("no_label", 0) + int((~labelled).sum())
        if not labelled.any():
            raise DataFault(f"none of {len(truth)} clips has a label", "give kdctool shard a labels.csv")
        scores, truth, clip, count = (
            scores[labelled],
            truth[labelled],
            clip[torch.from_numpy(labelled)],
            count[labelled],
        )
        sources = clusters(data, clip)
        single = not (data.multi_label or (truth.sum(1) > 1).any())
        notes: tuple[str, ...] = ()
        if self.frames == "all" and count.min() < count.max():
            notes = (f"clips have {int(count.min())} to {int(count.max())} frames",)
        if self.options.frames == "each":
            found = _each(scores, truth, sources, count, single, data.labels)
        else:
            found = _once(scores[:, 0], truth, sources, single, data.labels)
        told = PerClip(tuple(data.uids[int(i)] for i in clip), tuple(sources), found.columns)
        protocol = self._protocol(str(int(count.max())), "-sigmoid" if data.multi_label else "-softmax")
        notes = (*notes, *found.notes)
        return Result(
            "classification", protocol, found.metrics, len(sources), data.n_total, missing, notes, found.details, told
        )

    def _outputs(self, model: Any, batch: Batch, several: bool) -> Tensor:
        """(B, M, classes) on the CPU: logits of the middle frame, of each frame, or the mean of probabilities."""
        if self.options.frames == "mid":
            return self._logits(model, batch)[:, None].float().cpu()
        num = batch["frames"].shape[1]
        each = torch.stack([self._logits(model, {**batch, "frame": batch["frames"][:, n]}) for n in range(num)], dim=1)
        own = own_frames(batch)[:, :, None]
        if self.options.frames == "each":
            return each.float().cpu()
        answer = each.double().sigmoid() if several else each.double().softmax(-1)
        return ((answer * own).sum(1, keepdim=True) / own.sum(1, keepdim=True)).float().cpu()

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        logits = model.with_missing(batch, LACKING[self.missing]) if self.missing else model(batch)
        assert isinstance(logits, Tensor)
        return logits


def _once(scores: Floats, truth: Any, sources: list[str], single: bool, labels: tuple[str, ...]) -> Scored:
    metrics: dict[str, Metric] = {}
    columns: dict[str, Any] = {}
    if single:
        accuracy(scores, truth, sources, metrics, columns)
    found, notes, areas = ranking(scores, truth, sources, labels)
    columns |= {"scores": scores.astype(np.float32), "targets": truth.astype(np.uint8)}
    return Scored(metrics | found, notes, details(scores, truth, areas, single, labels), columns)


def _each(scores: Floats, truth: Any, sources: list[str], count: Any, single: bool, labels: tuple[str, ...]) -> Scored:
    """Every frame by itself, over the clips that have it; columns are NaN for the others."""
    metrics: dict[str, Metric] = {}
    columns: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    share = scores.shape[1]
    for frame in range(scores.shape[1]):
        has = count > frame
        own, hits, videos = scores[has, frame], truth[has], [sources[i] for i in np.flatnonzero(has)]
        here: dict[str, Metric] = {}
        per_clip: dict[str, Any] = {}
        if single:
            accuracy(own, hits, videos, here, per_clip)
        found, notes, _ = ranking(own, hits, videos, labels, share)
        here["map"] = found["map"]
        metrics |= {f"{name}_frame{frame}": metric for name, metric in here.items()}
        for name, values in per_clip.items():
            columns[f"{name}_frame{frame}"] = np.full(len(has), np.nan)
            columns[f"{name}_frame{frame}"][has] = values
    return Scored(metrics, notes, {"labels": list(labels)}, columns)
