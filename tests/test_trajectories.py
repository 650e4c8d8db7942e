"""Episodes and the PPO update on them."""

import pytest
import torch
from torch import nn

from rlhf_mini import seeding
from rlhf_mini.control import cartpole
from rlhf_mini.control.networks import GaussianPolicy, StackedMLP
from rlhf_mini.control.trajectories import act, clip_each_copy, ppo_update
from rlhf_mini.training import PPOSettings


def test_sampling_and_scoring_give_one_log_probability():
    env = cartpole.CartPoles(2, 3, length=5)
    policy = GaussianPolicy(2, env.observations, 1, seeding.make(0), (8,))
    batch = act(env, policy, None, seeding.make(1))
    again = policy.logp(batch.observations.flatten(1, 2), batch.actions.flatten(1, 2))
    torch.testing.assert_close(again.view(2, 3, 5), batch.logp)


def test_an_update_of_stacked_copies_moves_each_as_if_it_were_alone():
    env = cartpole.CartPoles(2, 4, length=6)
    policy = GaussianPolicy(2, env.observations, 1, seeding.make(0), (8,))
    critic = StackedMLP(2, (env.observations, 8, 1), seeding.make(1))
    batch = act(env, policy, critic, seeding.make(2))
    rewards = torch.randn(2, 4, 6, generator=seeding.make(3))
    rewards[1] = 0.0
    before = policy.log_std.detach().clone()
    parts = [*policy.parameters(), *critic.parameters()]
    adam = torch.optim.Adam(parts, lr=0.01)
    row = ppo_update(
        policy, critic, batch, rewards, adam, PPOSettings(), seeding.make(4)
    )
    assert 0 <= row["clipfrac"] <= 1
    assert (policy.log_std != before).all()


def test_a_long_gradient_is_cut_in_its_own_copy_only():
    p = nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]])
    norms = clip_each_copy([p], 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(p.grad.norm(dim=1), torch.tensor([1.0, 0.5]))


def test_a_gradient_that_is_not_finite_raises():
    p = nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.full((2, 3), torch.nan)
    with pytest.raises(ValueError, match="copy 0"):
        clip_each_copy([p], 1.0)
