"""The nearest-neighbour accuracy that pre-training reports on the way."""

import pytest
import torch

from kdctool.stages.probes import nearest_neighbours

LABEL = torch.arange(40) % 4


def test_clips_that_lie_with_their_class_are_all_right():
    embedding = torch.eye(4)[LABEL] + 0.01 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    assert nearest_neighbours(embedding, LABEL) == 1.0


def test_a_collapsed_encoder_is_no_better_than_chance_whatever_the_order_of_clips():
    same = torch.full((40, 6), 0.2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert nearest_neighbours(same, LABEL) == nearest_neighbours(same, LABEL[order])
    # A clip does not vote for itself, so its own class has one vote less than the others.
    assert nearest_neighbours(same, LABEL) == 0.0


def test_a_clip_does_not_vote_for_itself():
    alone = torch.eye(6)
    assert nearest_neighbours(alone, torch.arange(6)) == 0.0


def test_neighbours_that_disagree_share_the_credit():
    embedding = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, -0.01], [0.0, 1.0]])
    # Of the first clip's three others one has its label, the other two one label each.
    assert nearest_neighbours(embedding, torch.tensor([0, 0, 1, 2])) == pytest.approx((1 / 3 + 1 / 3) / 4)
