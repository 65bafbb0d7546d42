"""Averaging the weights of epochs: the reference's sum and division, sharded or resumed."""

import copy
from pathlib import Path

import torch
from torch import nn

from kdctool.train import checkpoint
from kdctool.train.average import EpochAverage, mean


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.learns = nn.Linear(7, 5)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def reference(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """CAV-MAE's wa_model, line by line."""
    summed = dict(states[0])
    for state in states[1:]:
        for key in summed:
            summed[key] = summed[key] + state[key]
    return {key: value / float(len(states)) for key, value in summed.items()}


def train(module: Small, average: EpochAverage, first: int, last: int, ends: list[dict[str, torch.Tensor]]) -> None:
    """Steps first .. last - 1 with three per epoch; `ends` collects copies of the weights after each epoch."""
    for step in range(first, last):
        rng = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in module.learns.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng))
        average.after_step(step + 1)
        if (step + 1) % 3 == 0:
            ends.append(copy.deepcopy(module.state_dict()))


def test_it_is_the_references_mean_bit_for_bit() -> None:
    module, ends = Small(), []
    average = EpochAverage(module, 3, 3)
    train(module, average, 0, 18, ends)
    assert average.count == 4
    expected = reference(ends[2:])
    found = mean(average.sums, average.count)
    assert found.keys() == {"learns.weight", "learns.bias"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not torch.equal(found["learns.weight"], ends[-1]["learns.weight"])


def test_nothing_is_kept_where_nothing_is_averaged() -> None:
    module = Small()
    average = EpochAverage(module, 0, 3)
    train(module, average, 0, 9, [])
    assert (average.sums, average.count, average.about()) == ({}, 0, {})


def test_a_checkpoint_carries_it_and_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, ends = Small(), []
    undisturbed = EpochAverage(whole, 2, 3)
    train(whole, undisturbed, 0, 15, ends)

    cut = Small()
    optimizer = torch.optim.SGD(cut.learns.parameters(), lr=0.1)
    average = EpochAverage(cut, 2, 3)
    train(cut, average, 0, 11, [])
    checkpoint.write(tmp_path, checkpoint.snapshot(cut, optimizer, {"step": 11}, average))

    again = Small()
    resumed = EpochAverage(again, 2, 3)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.averaged, found.said()) == (2, "mean of the weights after epochs 2 to 3")
    checkpoint.restore(found, again, torch.optim.SGD(again.learns.parameters(), lr=0.1), resumed)
    train(again, resumed, 11, 15, [])
    assert resumed.count == undisturbed.count == 4
    assert all(torch.equal(resumed.sums[name], undisturbed.sums[name]) for name in undisturbed.sums)


def test_the_weights_of_a_checkpoint_are_the_average_and_have_a_digest_of_their_own(tmp_path: Path) -> None:
    module, ends = Small(), []
    optimizer = torch.optim.SGD(module.learns.parameters(), lr=0.1)
    average = EpochAverage(module, 2, 3)
    for last in (3, 9):
        train(module, average, 0 if last == 3 else 3, last, ends)
        checkpoint.write(tmp_path, checkpoint.snapshot(module, optimizer, {"step": last}, average))
    early, late = (
        checkpoint.Checkpoint(path, checkpoint.read_json(path / "state.json")) for path in sorted(tmp_path.iterdir())
    )
    assert not (early.folder / checkpoint.AVERAGE).exists()
    assert all(torch.equal(value, ends[0][name]) for name, value in checkpoint.weights(early).items())
    expected = reference(ends[1:])
    found = checkpoint.weights(late)
    assert all(torch.equal(found[name], expected[name]) for name in ("learns.weight", "learns.bias"))
    assert torch.equal(found["frozen.weight"], ends[0]["frozen.weight"])
    assert checkpoint.weights_sha256(early) == checkpoint.sha256_file(early.folder / checkpoint.MODEL)
    assert checkpoint.weights_sha256(late) not in (
        checkpoint.sha256_file(late.folder / n) for n in (checkpoint.MODEL, checkpoint.AVERAGE)
    )


def test_a_damaged_average_is_noticed(tmp_path: Path) -> None:
    module = Small()
    average = EpochAverage(module, 1, 3)
    train(module, average, 0, 3, [])
    path = checkpoint.write(
        tmp_path, checkpoint.snapshot(module, torch.optim.SGD(module.learns.parameters(), lr=0.1), {"step": 3}, average)
    )
    data = bytearray((path / checkpoint.AVERAGE).read_bytes())
    data[-3] ^= 1
    (path / checkpoint.AVERAGE).write_bytes(bytes(data))
    assert checkpoint.damage(path) == "average.safetensors does not match its sha256"
