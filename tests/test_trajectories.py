"""Episodes and the PPO update on them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf_mini import seeding
from rlhf_mini.advantages import gae
from rlhf_mini.control import cartpole
from rlhf_mini.control.networks import GaussianPolicy, StackedMLP
from rlhf_mini.control.trajectories import act, clip_each_copy, ppo_update
from rlhf_mini.losses import ppo_clip_loss, value_clip_loss
from rlhf_mini.masking import masked_whiten
from rlhf_mini.training import PPOSettings

ONE = PPOSettings(epochs=1, minibatches=1, max_grad_norm=1e9)


def parts(copies=2):
    env = cartpole.CartPoles(copies, 4, length=6)
    policy = GaussianPolicy(copies, env.observations, 1, seeding.make(0), (8,))
    critic = StackedMLP(copies, (env.observations, 8, 1), seeding.make(1))
    return env, policy, critic, act(env, policy, critic, seeding.make(2))


def update(policy, critic, batch, rewards, settings=ONE, lr=0.01):
    both = [*policy.parameters(), *critic.parameters()]
    adam = torch.optim.SGD(both, lr=lr)
    return ppo_update(policy, critic, batch, rewards, adam, settings, seeding.make(4))


def drawn():
    return torch.randn(2, 4, 6, generator=seeding.make(3))


# ------------------------------------------------------------------------------ acting


def test_sampling_and_scoring_give_one_log_probability():
    _, policy, _, batch = parts()
    again = policy.logp(batch.observations.flatten(1, 2), batch.actions.flatten(1, 2))
    torch.testing.assert_close(again.view(2, 4, 6), batch.logp)


def test_observations_stand_before_a_decision_and_states_after_it():
    _, _, _, batch = parts()
    assert batch.observations.shape == (2, 4, 6, 6)
    assert batch.reached.shape == (2, 4, 6, 5)
    # what was reached is what is observed next, but for the clock
    torch.testing.assert_close(
        batch.observations[:, :, 1:, :5], batch.reached[:, :, :5]
    )
    left = batch.observations[0, 0, :, 5]
    torch.testing.assert_close(left, 1 - torch.arange(6) / 6)


def test_the_recorded_actions_lead_from_state_to_state():
    _, _, _, batch = parts()
    state = batch.hidden["state"]
    push = batch.actions[:, :, 1:, 0] > 0
    again = cartpole.advance(state[:, :, :-1], push)
    torch.testing.assert_close(again, state[:, :, 1:], atol=1e-12, rtol=0)


def test_values_are_the_critics_and_without_one_zero():
    env, policy, critic, batch = parts()
    again = critic(batch.observations.flatten(1, 2))[..., 0].view(2, 4, 6)
    torch.testing.assert_close(batch.values, again.detach())
    assert (act(env, policy, None, seeding.make(0)).values == 0).all()


def test_a_greedy_episode_takes_the_mean_and_differs_by_its_start_only():
    env, policy, _, _ = parts()
    batch = act(env, policy, None, seeding.make(5), greedy=True)
    mean = policy.mean(batch.observations.flatten(1, 2)).view(2, 4, 6, 1)
    torch.testing.assert_close(batch.actions, mean.detach())
    again = act(env, policy, None, seeding.make(5), greedy=True)
    assert torch.equal(batch.actions, again.actions)


# ---------------------------------------------------------------------------- updating


def test_one_step_is_the_librarys_losses_on_each_copy_by_itself():
    _, policy, critic, batch = parts()
    rewards, twin = drawn(), parts()
    update(policy, critic, batch, rewards)
    for copy in range(2):
        adv, ret = gae(rewards[copy], batch.values[copy], None, ONE.gamma, ONE.lam)
        adv = masked_whiten(adv, None)
        o, a = batch.observations.flatten(1, 2), batch.actions.flatten(1, 2)
        logp = twin[1].logp(o, a)[copy].view(4, 6)
        values = twin[2](o)[copy, :, 0].view(4, 6)
        loss = ppo_clip_loss(logp, batch.logp[copy], adv, clip_eps=ONE.clip_eps)
        loss = loss + ONE.value_weight * value_clip_loss(
            values, batch.values[copy], ret, clip_eps=ONE.value_clip
        )
        both = [*twin[1].parameters(), *twin[2].parameters()]
        grads = torch.autograd.grad(loss, both)
        now = [*policy.parameters(), *critic.parameters()]
        for before, grad, after in zip(both, grads, now, strict=True):
            want = before[copy] - 0.01 * grad[copy]
            torch.testing.assert_close(after[copy], want, atol=1e-6, rtol=1e-5)


def test_the_rewards_of_one_copy_do_not_move_the_other():
    moved = []
    for sign in (1.0, -1.0):
        _, policy, critic, batch = parts()
        rewards = drawn()
        rewards[1] *= sign
        update(policy, critic, batch, rewards)
        moved.append(policy.mean.weights[0].detach().clone())
    assert torch.equal(moved[0][0], moved[1][0])
    assert not torch.equal(moved[0][1], moved[1][1])


def test_an_update_makes_what_was_rewarded_likelier():
    _, policy, critic, batch = parts()
    rewards = (batch.actions[..., 0] > 0).float()  # push right, whatever happens
    o, a = batch.observations.flatten(1, 2), batch.actions.flatten(1, 2)
    settings = PPOSettings(epochs=10, minibatches=1, gamma=0.0, max_grad_norm=1e9)
    update(policy, critic, batch, rewards, settings, lr=0.05)
    gained = policy.logp(o, a).detach().view(2, 4, 6) - batch.logp
    assert gained[rewards == 1].mean() > gained[rewards == 0].mean()


def test_the_first_step_clips_nothing_and_without_a_rate_nothing_moves():
    _, policy, critic, batch = parts()
    before = [p.clone() for p in policy.parameters()]
    row = update(policy, critic, batch, drawn(), replace(ONE, epochs=3), lr=0.0)
    assert row["clipfrac"] == 0
    after = policy.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_every_copy_moves_and_the_metrics_are_shares():
    _, policy, critic, batch = parts()
    rewards = drawn()
    rewards[1] = 0.0
    before = policy.log_std.detach().clone()
    row = update(policy, critic, batch, rewards, PPOSettings())
    assert 0 <= row["clipfrac"] <= 1 and row["explained_variance"] <= 1
    assert (policy.log_std != before).all()


def test_rewards_of_another_shape_raise():
    _, policy, critic, batch = parts()
    with pytest.raises(ValueError, match="rewards"):
        update(policy, critic, batch, torch.zeros(2, 24))
    with pytest.raises(ValueError, match="shapes differ"):
        update(policy, critic, batch, torch.zeros(2, 4, 5))


# ------------------------------------------------------------------ gradients by copies


def test_a_long_gradient_is_cut_in_its_own_copy_only():
    p = nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]])
    norms = clip_each_copy([p], 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(p.grad.norm(dim=1), torch.tensor([1.0, 0.5]))


def test_the_norm_is_that_of_all_parameters_together_as_in_torch():
    ps = [nn.Parameter(torch.zeros(1, 3)), nn.Parameter(torch.zeros(1, 2, 2))]
    twins = [nn.Parameter(torch.zeros_like(p)) for p in ps]
    for p, twin in zip(ps, twins, strict=True):
        p.grad = torch.randn(p.shape, generator=seeding.make(1))
        twin.grad = p.grad.clone()
    found = clip_each_copy(ps, 0.7)
    want = torch.nn.utils.clip_grad_norm_(twins, 0.7)
    torch.testing.assert_close(found[0], want)
    for p, twin in zip(ps, twins, strict=True):
        torch.testing.assert_close(p.grad, twin.grad)


def test_a_gradient_that_is_not_finite_raises_and_names_the_copy():
    p = nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.zeros(2, 3)
    p.grad[1, 2] = torch.nan
    with pytest.raises(ValueError, match="gradient: norm nan in copy 1"):
        clip_each_copy([p], 1.0)
