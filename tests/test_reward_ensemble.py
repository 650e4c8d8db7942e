"""A reward from comparisons: it finds the rule, and refuses what does not fit."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_mini import seeding
from rlhf_mini.control.reward_ensemble import (
    ComparisonBuffer,
    RewardEnsemble,
    preference_loss,
)
from rlhf_mini.losses import bradley_terry_loss

SUMS = torch.tensor([[1.0, -0.5], [0.2, 2.0], [-1.0, -1.3]])


def filled(n=200):
    buffer = ComparisonBuffer(2, n, 3, 2)
    clips = torch.randn(n, 2, 3, 2, generator=seeding.make(0))
    better = clips[..., 0].sum(-1)  # copy 0 likes the first feature, copy 1 dislikes it
    won = (better[:, 0] > better[:, 1]).float()
    buffer.add(0, clips, won)
    buffer.add(1, clips, 1 - won)
    return buffer


def some(n=5):
    return torch.randn(n, 2, 3, 2, generator=seeding.make(2))


# ------------------------------------------------------------------------------ loss


def test_a_sure_preference_costs_what_bradley_terry_says():
    first = bradley_terry_loss(SUMS[:, 0], SUMS[:, 1])
    torch.testing.assert_close(preference_loss(SUMS, torch.ones(3)), first)
    tie = preference_loss(torch.zeros(1, 2), torch.full((1,), 0.5))
    assert tie.item() == pytest.approx(math.log(2))


def test_a_soft_preference_costs_torchs_cross_entropy():
    p = torch.tensor([0.9, 0.25, 0.5])
    want = F.binary_cross_entropy_with_logits(
        SUMS[:, 0] - SUMS[:, 1], p, reduction="none"
    )
    torch.testing.assert_close(preference_loss(SUMS, p), want)


def test_exchanging_the_clips_and_the_preference_costs_the_same():
    p = torch.tensor([0.9, 0.25, 0.5])
    torch.testing.assert_close(
        preference_loss(SUMS, p), preference_loss(SUMS.flip(-1), 1 - p)
    )


def test_a_tie_pulls_two_sums_together():
    sums = torch.tensor([[2.0, -1.0]], requires_grad=True)
    preference_loss(sums, torch.tensor([0.5])).sum().backward()
    assert sums.grad[0, 0] > 0 > sums.grad[0, 1]


def test_the_cheapest_sums_are_the_log_odds_of_the_preference():
    gap = torch.linspace(-5, 5, 10_001)
    sums = torch.stack([gap, torch.zeros_like(gap)], -1)
    cheapest = gap[preference_loss(sums, torch.full((10_001,), 0.8)).argmin()]
    assert cheapest.item() == pytest.approx(math.log(4), abs=1e-3)


def test_a_loss_of_other_shapes_raises():
    with pytest.raises(ValueError, match="shapes differ"):
        preference_loss(SUMS, torch.ones(2))
    with pytest.raises(ValueError, match="found inf"):
        preference_loss(SUMS / 0, torch.ones(3))


# ---------------------------------------------------------------------------- buffer


def test_the_buffer_keeps_what_was_added_in_order_and_apart():
    buffer = ComparisonBuffer(2, 4, 3, 2)
    a, b = some(3), some(5)[3:4]
    buffer.add(1, a, torch.tensor([1.0, 0.5, 0.0]))
    buffer.add(1, b, torch.tensor([1.0]))
    buffer.add(0, b, torch.tensor([0.0]))
    assert buffer.count.tolist() == [1, 4]
    assert torch.equal(buffer.clips[1], torch.cat([a, b]))
    assert buffer.preference[1].tolist() == [1.0, 0.5, 0.0, 1.0]
    assert torch.equal(buffer.clips[0, :1], b)


def test_adding_nothing_is_allowed():
    buffer = ComparisonBuffer(1, 4, 3, 2)
    buffer.add(0, some(0), torch.zeros(0))
    assert buffer.count.tolist() == [0]


def test_what_does_not_fit_raises():
    buffer = ComparisonBuffer(1, 2, 3, 2)
    with pytest.raises(ValueError, match="clips"):
        buffer.add(0, torch.zeros(1, 2, 4, 2), torch.ones(1))
    for wrong in (1.5, -0.1, torch.nan):
        with pytest.raises(ValueError, match="preference"):
            buffer.add(0, torch.zeros(1, 2, 3, 2), torch.tensor([wrong]))
    with pytest.raises(ValueError, match="capacity"):
        buffer.add(0, torch.zeros(3, 2, 3, 2), torch.ones(3))
    assert buffer.count.tolist() == [0]


# -------------------------------------------------------------------------- ensemble


def test_each_copy_learns_the_taste_of_its_own_judge():
    reward = RewardEnsemble(2, 2, seeding.make(1))
    reward.fit(filled(), steps=80)
    x = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]).expand(2, 2, 2)
    low, high = reward.reward(x).unbind(1)
    assert high[0] > low[0] and high[1] < low[1]


def test_the_learnt_probabilities_predict_comparisons_never_seen():
    reward = RewardEnsemble(2, 2, seeding.make(1))
    reward.fit(filled(), steps=150)
    clips = torch.randn(500, 2, 3, 2, generator=seeding.make(9))
    gap = clips[..., 0].sum(-1)
    won = gap[:, 0] > gap[:, 1]
    for copy, right in ((0, won), (1, ~won)):
        said = reward.probabilities(copy, clips).mean(0) > 0.5
        assert (said == right).double().mean() > 0.93


def test_fitting_lowers_the_loss():
    reward = RewardEnsemble(2, 2, seeding.make(1))
    start = reward.fit(filled(), steps=1, batch=400)
    assert start > 0.4 > reward.fit(filled(), steps=80, batch=400)


def test_a_copy_without_comparisons_stays_as_it_is():
    buffer = ComparisonBuffer(2, 9, 3, 2)
    buffer.add(1, some(9), torch.ones(9))
    reward = RewardEnsemble(2, 2, seeding.make(1), weight_decay=0.0)
    before = [p.detach().clone() for p in reward.net.parameters()]
    reward.fit(buffer, steps=5)
    for old, new in zip(before, reward.net.parameters(), strict=True):
        moved = (old != new).flatten(1).any(1)
        assert not moved[:3].any() and moved[3:].all()  # three members a copy


def test_the_probability_is_the_sigmoid_of_the_difference_of_sums():
    reward = RewardEnsemble(2, 2, seeding.make(1), members=4)
    clips = some()
    for member in range(4):
        net = torch.zeros(5, 2)
        for side in range(2):
            x = clips[:, side].flatten(0, 1).expand(8, -1, -1)  # every network
            r = reward.net(x)[4 + member, :, 0].view(5, 3)  # copy 1's networks
            net[:, side] = r.sum(-1) * 10 / 3
        want = torch.sigmoid(net[:, 0] - net[:, 1])
        torch.testing.assert_close(reward.probabilities(1, clips)[member], want)


def test_exchanging_the_clips_exchanges_the_probability():
    reward = RewardEnsemble(1, 2, seeding.make(1))
    p, q = (reward.probabilities(0, c) for c in (some(), some().flip(1)))
    torch.testing.assert_close(p, 1 - q)


def test_a_constant_on_every_reward_changes_no_probability():
    reward = RewardEnsemble(1, 2, seeding.make(1))
    before = reward.probabilities(0, some())
    with torch.no_grad():
        reward.net.biases[-1] += 3.0
    torch.testing.assert_close(reward.probabilities(0, some()), before)


def test_disagreement_is_the_spread_of_the_members():
    reward = RewardEnsemble(2, 2, seeding.make(1), members=4)
    p = reward.probabilities(1, some())
    assert p.shape == (4, 5)
    want = (p - p.mean(0)).square().mean(0).sqrt()
    torch.testing.assert_close(reward.disagreement(1, some()), want)
    alone = RewardEnsemble(2, 2, seeding.make(1), members=1)
    assert (alone.disagreement(0, some()) == 0).all()


def test_the_standardised_reward_has_mean_0_and_variance_1():
    reward = RewardEnsemble(2, 2, seeding.make(1))
    x = torch.randn(2, 50, 2, generator=seeding.make(2))
    reward.standardise(x)
    r = reward.reward(x)
    torch.testing.assert_close(r.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(r.std(1), torch.ones(2))


def test_a_reward_that_is_the_same_everywhere_is_not_blown_up():
    reward = RewardEnsemble(1, 2, seeding.make(1))
    same = torch.ones(1, 50, 2)
    reward.standardise(same)
    assert reward.reward(same).abs().max() < 1e-2


def test_the_reward_is_the_mean_of_the_members_in_any_shape():
    reward = RewardEnsemble(2, 2, seeding.make(1), members=3)
    x = torch.randn(2, 4, 6, 2, generator=seeding.make(2))
    each = reward.net(x.flatten(1, 2).repeat_interleave(3, 0))[..., 0]
    want = each.view(2, 3, 4, 6).mean(1)
    torch.testing.assert_close(reward.reward(x), want)


def test_an_ensemble_of_nobody_raises():
    with pytest.raises(ValueError, match="members"):
        RewardEnsemble(1, 2, seeding.make(0), members=0)
    with pytest.raises(ValueError, match="clips"):
        RewardEnsemble(1, 2, seeding.make(0)).probabilities(0, torch.zeros(2, 3, 2))
