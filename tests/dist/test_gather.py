"""The contrastive loss over the global batch has one gradient, on any number of ranks."""

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

WORKER = """
import sys
from pathlib import Path
import torch
from kdctool import dist
from kdctool.objectives.contrastive import info_nce, similarity
from kdctool.objectives.self_distillation import between_views
dist.init(torch.device("cpu"))
rank, ranks = dist.world()
folder = Path(sys.argv[1])
torch.manual_seed(0)
audio, video = torch.randn(2, 16, 32), torch.randn(2, 16, 32)
own = slice(rank * 16 // ranks, (rank + 1) * 16 // ranks)
a, v = audio[:, own].clone().requires_grad_(), video[:, own].clone().requires_grad_()
everyone_a, everyone_v = dist.gather(a, dim=1), dist.gather(v, dim=1)
loss = info_nce(similarity(everyone_a, everyone_v, 0.05), "both").sum() + between_views(everyone_a, "global").mean()
loss.backward()
torch.save({"loss": loss.detach(), "a": a.grad / ranks, "v": v.grad / ranks}, folder / f"{ranks}-{rank}.pt")
dist.shutdown()
"""


def run(folder: Path, ranks: int) -> dict[str, torch.Tensor]:
    run_ranks(ranks, "-c", WORKER, str(folder))
    found = [torch.load(folder / f"{ranks}-{rank}.pt", weights_only=True) for rank in range(ranks)]
    assert all(torch.equal(part["loss"], found[0]["loss"]) for part in found)
    return {"loss": found[0]["loss"], **{name: torch.cat([part[name] for part in found], dim=1) for name in "av"}}


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_loss_and_gradient_are_those_of_one_process(tmp_path: Path, ranks: int) -> None:
    one, many = run(tmp_path, 1), run(tmp_path, ranks)
    assert torch.allclose(one["loss"], many["loss"], rtol=1e-6)
    for name in "av":
        assert torch.allclose(one[name], many[name], atol=1e-6)
