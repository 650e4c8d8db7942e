"""CartPole in one tensor, step by step beside gymnasium's own."""

import gymnasium as gym
import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control import cartpole


def test_every_step_is_gymnasiums():
    env = gym.make("CartPole-v1").unwrapped
    env.reset(seed=3)
    state = torch.tensor(env.state, dtype=torch.float64)
    for action in (1, 1, 0, 1, 0, 0, 1, 1, 1, 0):
        env.step(action)
        state = cartpole.advance(state, torch.tensor(action == 1))
        want = torch.tensor(env.state, dtype=torch.float64)
        torch.testing.assert_close(state, want, atol=1e-12, rtol=0)


def test_the_true_return_is_gymnasiums_return_before_the_step_that_leaves():
    env = gym.make("CartPole-v1")
    env.reset(seed=1)
    states, ended = [], False
    while not ended:
        _, _, ended, _, _ = env.step(1)
        states.append(torch.tensor(env.unwrapped.state))
    assert cartpole.true_return(torch.stack(states)) == len(states) - 1


def test_once_outside_nothing_more_is_counted():
    states = torch.zeros(5, 4)
    states[2, 0] = 3.0
    assert cartpole.true_return(states) == 2


def test_environments_have_the_shapes_they_say():
    env = cartpole.CartPoles(2, 3)
    env.reset(seeding.make(0))
    assert env.observe().shape == (2, 3, env.observations)
    assert env.reached().shape == (2, 3, env.seen)
    assert env.state.abs().max() <= 0.05


def test_a_state_of_another_size_raises():
    with pytest.raises(ValueError, match="state"):
        cartpole.advance(torch.zeros(3), torch.tensor(True))
