"""Stacked networks: copies never meet, and densities are torch's own."""

import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_mini import seeding
from rlhf_mini.control.networks import GaussianPolicy, StackedMLP


def made(*sizes, copies=3, **other):
    return StackedMLP(copies, sizes, seeding.make(0), **other)


X = torch.randn(3, 5, 2, generator=seeding.make(1))


def test_each_copy_is_a_plain_network():
    net = made(2, 4, 3, 1)
    for s in range(3):
        x = X[s]
        for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            x = F.linear(x, w[s].T, b[s, 0])
            x = x if i == 2 else x.tanh()
        torch.testing.assert_close(net(X)[s], x)


def test_a_copy_feels_its_own_input_only():
    net = made(2, 4, 1)
    before, x = net(X), X.clone()
    x[1] += 1
    changed = (net(x) != before).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


def test_a_copy_feels_its_own_loss_only():
    net = made(2, 4, 1)
    net(X)[1].square().sum().backward()
    for p in net.parameters():
        moved = p.grad.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [False, True, False]


def test_some_copies_alone_give_the_same():
    net = made(2, 4, 1)
    torch.testing.assert_close(net(X[1:], slice(1, 3)), net(X)[1:])


def test_copies_start_at_different_places_with_outputs_of_unit_size():
    net = made(50, 1, copies=2000)
    out = net(torch.ones(2000, 1, 50))
    assert len(out.unique()) == 2000
    assert out.std().item() == pytest.approx(1.0, abs=0.05)  # Σ of 50 N(0, 1/50)


def test_a_small_last_gain_starts_near_zero():
    large, small = made(2, 4, 1), made(2, 4, 1, last_gain=0.01)
    torch.testing.assert_close(small(X), 0.01 * large(X))


def test_logp_is_that_of_torchs_normal_law():
    policy = GaussianPolicy(2, 3, 2, seeding.make(0))
    o = torch.randn(2, 4, 3, generator=seeding.make(1))
    a, logp = policy.sample(o, seeding.make(2))
    law = torch.distributions.Normal(policy.mean(o), policy.log_std.exp())
    torch.testing.assert_close(policy.logp(o, a), law.log_prob(a).sum(-1))
    torch.testing.assert_close(policy.logp(o, a), logp)
    entropy = law.entropy()[:, 0].sum(-1)
    torch.testing.assert_close(policy.entropy(), entropy.detach())


def test_the_density_sums_to_one():
    policy = GaussianPolicy(1, 3, 1, seeding.make(0), std=0.4)
    grid = torch.linspace(-4, 4, 4001)[:, None]
    o = torch.ones(1, 1, 3).expand(1, 4001, 3)
    mass = policy.logp(o, grid[None]).exp().sum() * (grid[1] - grid[0])
    assert mass.item() == pytest.approx(1.0, abs=1e-4)


def test_samples_have_the_mean_and_spread_that_they_say():
    policy = GaussianPolicy(1, 3, 2, seeding.make(0), std=0.25)
    o = torch.ones(1, 40_000, 3)
    a, _ = policy.sample(o, seeding.make(3))
    torch.testing.assert_close(a.mean(1), policy.mean(o)[:, 0], atol=0.005, rtol=0)
    torch.testing.assert_close(a.std(1), torch.full((1, 2), 0.25), atol=0.005, rtol=0)


def test_the_entropy_is_minus_the_mean_log_probability():
    policy = GaussianPolicy(1, 3, 2, seeding.make(0), std=0.3)
    _, logp = policy.sample(torch.ones(1, 40_000, 3), seeding.make(3))
    assert policy.entropy().item() == pytest.approx(-logp.mean().item(), abs=0.02)
    narrow = GaussianPolicy(1, 3, 2, seeding.make(0), std=0.03)
    lost = policy.entropy() - narrow.entropy()
    assert lost.item() == pytest.approx(2 * math.log(10))


def test_without_a_generator_the_action_is_the_mean():
    policy = GaussianPolicy(1, 3, 2, seeding.make(0))
    o = torch.ones(1, 4, 3)
    torch.testing.assert_close(policy.sample(o, None)[0], policy.mean(o).detach())


def test_sampling_leaves_no_gradient_and_scoring_does():
    policy = GaussianPolicy(1, 3, 2, seeding.make(0))
    o = torch.ones(1, 4, 3)
    a, logp = policy.sample(o, seeding.make(1))
    assert not a.requires_grad and not logp.requires_grad
    assert policy.logp(o, a).requires_grad


def test_wrong_shapes_raise():
    policy = GaussianPolicy(1, 3, 2, seeding.make(0))
    with pytest.raises(ValueError, match="shapes differ"):
        policy.logp(torch.ones(1, 4, 3), torch.ones(1, 4, 1))
    with pytest.raises(ValueError, match="axes"):
        policy.mean(torch.ones(4, 3))
