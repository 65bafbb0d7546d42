"""Masks that learn: tokens are shown by the learned odds, the loss moves the odds, and it trains nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdctool.batch import Batch
from kdctool.masking import build
from kdctool.masking.views import draw

EVERYONE = list(range(8))
ADAPTIVE = {"masking": {"audio": "adaptive", "video": "adaptive"}}


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_untrained_it_shows_every_token_alike() -> None:
    torch.manual_seed(0)
    masking = build("adaptive", {}, 16)
    log_prob = masking(torch.randn(3, 12, 16))
    torch.testing.assert_close(log_prob, torch.full((3, 12), 1 / 12).log())


def test_tokens_are_shown_as_often_as_their_odds_say() -> None:
    odds = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().expand(20000, 4)
    views = draw(build("adaptive", {}, 16), 20000, (1, 4), 0.75, 1, True, rng(), log_prob=odds)
    shown = (1 - views.mask[0]).mean(dim=0)
    torch.testing.assert_close(shown, odds[0].exp(), atol=0.015, rtol=0)


def test_no_token_is_ever_given_up() -> None:
    torch.manual_seed(0)
    masking = build("adaptive", {"floor": 0.2}, 16)
    with torch.no_grad():
        masking.logit.weight.fill_(50.0)
    probability = masking(torch.randn(3, 10, 16)).exp()
    torch.testing.assert_close(probability.sum(dim=1), torch.ones(3))
    assert float(probability.detach().min()) >= 0.2 / 10 - 1e-6


def test_the_sampling_loss_is_the_error_times_the_log_odds_of_what_was_removed(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    objective, batch = make_objective("kdc_mae", **ADAPTIVE), make_batch(EVERYONE)
    audio, video = objective.draw(batch, rng(), 8)
    loss = objective.loss(batch, audio, video)
    prediction = objective.decode(objective.encode(batch, audio, video), audio, video)[0]
    error = (prediction - objective.targets(batch)[0]).square().mean(dim=-1).detach()
    odds = audio.log_prob.detach()
    by_hand = sum(
        -sum(
            float(odds[clip, token] * error[view, clip, token])
            for clip in range(8)
            for token in range(8)
            if audio.mask[view, clip, token] == 1
        )
        / (8 * 6)
        for view in range(2)
    )
    assert float(loss.terms["masking_audio"]) == pytest.approx(by_hand, rel=1e-5)
    assert loss.weights["masking_audio"] == 1e-3


def test_it_trains_the_odds_and_nothing_else(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(EVERYONE)
    grads = []
    for weight in (1e-3, 10.0):
        objective = make_objective("kdc_mae", masking={"audio": "adaptive", "audio_options": {"weight": weight}})
        objective(batch, rng(), 8).total.backward()
        grads.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    moved = {name for name in grads[0] if not torch.equal(grads[0][name], grads[1][name])}
    assert moved == {"audio_masking.logit.weight"}  # the layers before it start behind a zero


def test_patches_that_nobody_can_predict_are_shown_more_often_after_training(
    make_objective: Callable[..., Any], make_batch: Callable[..., Batch]
) -> None:
    """The right half of every frame is noise, the left is flat: showing the left is a waste."""
    changes = {"objective": {"reconstruction": {"norm_pix": False}}, "masking": {"video": "adaptive"}}
    objective, generator = make_objective("mae", **changes), rng(3)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=1e-2)

    def batch() -> Batch:
        made = make_batch(EVERYONE)
        frame = torch.randn(8, 3, 16, 16, generator=generator)
        frame[..., :8] = 0.0
        return {**made, "frame": frame}

    def shown_noise() -> float:
        with torch.no_grad():
            _, video = objective.draw(batch(), rng(1), 8)
        odds = video.log_prob.exp().reshape(8, 4, 4)
        return float(odds[..., 2:].sum(dim=(1, 2)).mean())

    assert shown_noise() == pytest.approx(0.5, abs=0.01)
    for step in range(60):
        optimizer.zero_grad()
        objective(batch(), rng(step), 8).total.backward()
        optimizer.step()
    assert shown_noise() > 0.7
