"""A reward from comparisons: it finds the rule, and refuses what does not fit."""

import math

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control.reward_ensemble import (
    ComparisonBuffer,
    RewardEnsemble,
    preference_loss,
)
from rlhf_mini.losses import bradley_terry_loss


def filled(n=200):
    buffer = ComparisonBuffer(2, n, 3, 2)
    clips = torch.randn(n, 2, 3, 2, generator=seeding.make(0))
    better = clips[..., 0].sum(-1)  # copy 0 likes the first feature, copy 1 dislikes it
    won = (better[:, 0] > better[:, 1]).float()
    buffer.add(0, clips, won)
    buffer.add(1, clips, 1 - won)
    return buffer


def test_each_copy_learns_the_taste_of_its_own_judge():
    reward = RewardEnsemble(2, 2, seeding.make(1))
    reward.fit(filled(), steps=80)
    x = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]).expand(2, 2, 2)
    low, high = reward.reward(x).unbind(1)
    assert high[0] > low[0] and high[1] < low[1]


def test_the_standardised_reward_has_mean_0_and_variance_1():
    reward = RewardEnsemble(2, 2, seeding.make(1))
    x = torch.randn(2, 50, 2, generator=seeding.make(2))
    reward.standardise(x)
    r = reward.reward(x)
    torch.testing.assert_close(r.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(r.std(1), torch.ones(2))


def test_a_sure_preference_costs_what_bradley_terry_says():
    sums = torch.tensor([[1.0, -0.5], [0.2, 2.0]])
    first = bradley_terry_loss(sums[:, 0], sums[:, 1])
    torch.testing.assert_close(preference_loss(sums, torch.ones(2)), first)
    tie = preference_loss(torch.zeros(1, 2), torch.full((1,), 0.5))
    assert tie.item() == pytest.approx(math.log(2))


def test_disagreement_is_the_spread_of_the_members():
    reward = RewardEnsemble(2, 2, seeding.make(1), members=4)
    clips = torch.randn(5, 2, 3, 2, generator=seeding.make(2))
    p = reward.probabilities(1, clips)
    assert p.shape == (4, 5)
    torch.testing.assert_close(reward.disagreement(1, clips), p.std(0, correction=0))


def test_what_does_not_fit_raises():
    buffer = ComparisonBuffer(1, 2, 3, 2)
    with pytest.raises(ValueError, match="clips"):
        buffer.add(0, torch.zeros(1, 2, 4, 2), torch.ones(1))
    with pytest.raises(ValueError, match="preference"):
        buffer.add(0, torch.zeros(1, 2, 3, 2), torch.tensor([1.5]))
    with pytest.raises(ValueError, match="capacity"):
        buffer.add(0, torch.zeros(3, 2, 3, 2), torch.ones(3))
