"""Probes while training: how well the embeddings of held-out clips match, without touching the training."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from kdctool.data.loader import eval_batches
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.shards.index import Index
from kdctool.tasks.metrics import places, ranks, recall_at
from kdctool.tasks.neighbours import votes
from kdctool.train.parallel import gathered

MOST_CLIPS = 1000
"""Clips of the evaluation split that a probe looks at."""
NEIGHBOURS = 5
VOTE_TOLERANCE = 1e-9


def make_probe(
    objective: Any, recipe: Recipe, index: Index, device: torch.device
) -> Callable[[], dict[str, float]] | None:
    """A function that measures the encoder of `objective` on the first clips of the evaluation split, if there is one.

    It runs on every rank alike: a sharded encoder is gathered by all of them together.
    """
    if recipe.log.probe_every_steps == 0:
        return None
    if not index.splits.get(recipe.data.eval_split):
        say(f"no probes: the shards have no split '{recipe.data.eval_split}'")
        return None
    split = index.split(recipe.data.eval_split)
    labelled = bool(index.labels) and not index.multi_label

    @torch.no_grad()
    def probe() -> dict[str, float]:
        encoder = objective.encoder.eval()
        audio, video, label, seen = [], [], [], 0
        for batch in eval_batches(index, split, recipe, device, 32, 0, labels=labelled):
            with gathered(objective):
                audio.append(F.normalize(encoder.embed_audio(batch["fbank"]).float().mean(1), dim=-1))
                video.append(F.normalize(encoder.embed_video(batch["frame"]).float().mean(1), dim=-1))
            if labelled:
                label.append(batch["label"].argmax(1))
            seen += len(batch["clip"])
            if seen >= MOST_CLIPS:
                break
        a, v = torch.cat(audio), torch.cat(video)
        similarity = (a @ v.T).double().cpu().numpy()
        found = {"clips": float(seen)}
        for way, matrix in (("a2v", similarity), ("v2a", similarity.T)):
            for k in (1, 5):
                found[f"{way}_r{k}"] = recall_at(matrix, k)
            found[f"{way}_median_rank"] = float(torch.as_tensor(ranks(matrix)).median())
        if labelled:
            found["knn"] = nearest_neighbours(torch.cat((a, v), dim=1), torch.cat(label))
        return found

    return probe


def nearest_neighbours(embedding: torch.Tensor, label: torch.Tensor) -> float:
    """Accuracy of the majority among the 5 nearest other clips, ties shared: embedding (N, D), label (N,)."""
    target = F.one_hot(label)
    found = votes(embedding, embedding, target, NEIGHBOURS, temperature=None, is_same=True)
    return float(places(found.cpu().numpy(), label.cpu().numpy(), VOTE_TOLERANCE).within(1).mean())
