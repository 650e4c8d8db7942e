"""Stacked networks: copies never meet, and densities are torch's own."""

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control.networks import GaussianPolicy, StackedMLP


def test_a_copy_feels_its_own_input_only():
    net = StackedMLP(3, (2, 4, 1), seeding.make(0))
    x = torch.randn(3, 5, 2, generator=seeding.make(1))
    before = net(x)
    x[1] += 1
    changed = (net(x) != before).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


def test_some_copies_alone_give_the_same():
    net = StackedMLP(3, (2, 4, 1), seeding.make(0))
    x = torch.randn(3, 5, 2, generator=seeding.make(1))
    torch.testing.assert_close(net(x[1:], slice(1, 3)), net(x)[1:])


def test_logp_is_that_of_torchs_normal_law():
    policy = GaussianPolicy(2, 3, 2, seeding.make(0))
    o = torch.randn(2, 4, 3, generator=seeding.make(1))
    a, logp = policy.sample(o, seeding.make(2))
    law = torch.distributions.Normal(policy.mean(o), policy.log_std.exp())
    torch.testing.assert_close(policy.logp(o, a), law.log_prob(a).sum(-1))
    torch.testing.assert_close(policy.logp(o, a), logp)
    entropy = law.entropy()[:, 0].sum(-1)
    torch.testing.assert_close(policy.entropy(), entropy.detach())


def test_without_a_generator_the_action_is_the_mean():
    policy = GaussianPolicy(1, 3, 2, seeding.make(0))
    o = torch.ones(1, 4, 3)
    torch.testing.assert_close(policy.sample(o, None)[0], policy.mean(o).detach())


def test_wrong_shapes_raise():
    policy = GaussianPolicy(1, 3, 2, seeding.make(0))
    with pytest.raises(ValueError, match="shapes differ"):
        policy.logp(torch.ones(1, 4, 3), torch.ones(1, 4, 1))
    with pytest.raises(ValueError, match="axes"):
        policy.mean(torch.ones(4, 3))
