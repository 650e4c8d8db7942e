"""CartPole in one tensor, step by step beside gymnasium's own."""

import gymnasium as gym
import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control import cartpole

STATE = torch.tensor([0.4, -1.2, 0.15, 0.8], dtype=torch.float64)


def test_every_step_is_gymnasiums():
    env = gym.make("CartPole-v1").unwrapped
    env.reset(seed=3)
    state = torch.tensor(env.state, dtype=torch.float64)
    for action in (1, 1, 0, 1, 0, 0, 1, 1, 1, 0):
        env.step(action)
        state = cartpole.advance(state, torch.tensor(action == 1))
        want = torch.tensor(env.state, dtype=torch.float64)
        torch.testing.assert_close(state, want, atol=1e-12, rtol=0)


def test_the_limits_are_gymnasiums():
    env = gym.make("CartPole-v1").unwrapped
    assert env.theta_threshold_radians == cartpole.ANGLE_LIMIT
    assert env.x_threshold == cartpole.TRACK_LIMIT


def test_in_a_mirror_the_other_push_does_the_same():
    right = cartpole.advance(STATE, torch.tensor(True))
    left = cartpole.advance(-STATE, torch.tensor(False))
    torch.testing.assert_close(left, -right, atol=1e-12, rtol=0)


def test_many_step_as_each_by_itself():
    states = torch.randn(3, 2, 4, generator=seeding.make(0), dtype=torch.float64)
    push = torch.tensor([[True, False], [False, False], [True, True]])
    many = cartpole.advance(states, push)
    for s in range(3):
        for n in range(2):
            one = cartpole.advance(states[s, n], push[s, n])
            torch.testing.assert_close(many[s, n], one, atol=1e-12, rtol=0)


def test_a_pole_that_hangs_straight_down_stays_upside_down_of_a_balanced_one():
    """θ = 0 and θ = π are both balanced: only the push moves them."""
    for angle in (0.0, torch.pi):
        state = torch.tensor([0.0, 0.0, angle, 0.0], dtype=torch.float64)
        moved = sum(cartpole.advance(state, torch.tensor(b)) for b in (True, False))
        want = 2 * state
        torch.testing.assert_close(moved, want, atol=1e-12, rtol=0)


def test_the_true_return_is_gymnasiums_return_before_the_step_that_leaves():
    env = gym.make("CartPole-v1")
    env.reset(seed=1)
    states, ended = [], False
    while not ended:
        _, _, ended, _, _ = env.step(1)
        states.append(torch.tensor(env.unwrapped.state))
    assert cartpole.true_return(torch.stack(states)) == len(states) - 1


def test_the_true_return_counts_moments_one_by_one():
    states = 0.2 * torch.randn(40, 25, 4, generator=seeding.make(0))
    for episode in states:
        count = 0
        for x, _, theta, _ in episode.tolist():
            if abs(theta) > 12 * 3.141592653589793 / 180 or abs(x) > 2.4:
                break
            count += 1
        assert cartpole.true_return(episode) == count


def test_once_outside_nothing_more_is_counted():
    states = torch.zeros(5, 4)
    states[2, 0] = 3.0
    assert cartpole.true_return(states) == 2


def test_an_action_above_zero_pushes_right():
    env = cartpole.CartPoles(1, 3)
    env.step(torch.tensor([[[0.01], [0.0], [-5.0]]]))
    speed = env.state[0, :, 1]
    assert speed[0] > 0 and speed[1] < 0 and speed[1] == speed[2]


def test_environments_have_the_shapes_they_say():
    env = cartpole.CartPoles(2, 3)
    env.reset(seeding.make(0))
    assert env.observe().shape == (2, 3, env.observations)
    assert env.reached().shape == (2, 3, env.seen)
    assert env.state.abs().max() <= 0.05


def test_an_episode_goes_on_after_the_pole_has_fallen_and_the_clock_runs_down():
    env = cartpole.CartPoles(1, 1, length=80)
    env.reset(seeding.make(0))
    for t in range(80):
        left = env.observe()[0, 0, -1].item()
        assert left == pytest.approx(1 - t / 80)
        env.step(torch.ones(1, 1, 1))
    assert not cartpole.inside(env.state).any()
    assert env.reached().abs().max() <= 5  # what is seen stays bounded
    assert env.observe()[0, 0, -1] == 0


def test_a_reset_starts_all_anew():
    env = cartpole.CartPoles(1, 4)
    env.reset(seeding.make(0))
    first = env.hidden()["state"]
    env.step(torch.ones(1, 4, 1))
    env.reset(seeding.make(0))
    assert torch.equal(env.state, first) and env.t == 0


def test_what_the_judge_keeps_does_not_change_with_the_next_step():
    env = cartpole.CartPoles(1, 1)
    kept = env.hidden()["state"]
    before = kept.clone()
    env.step(torch.ones(1, 1, 1))
    env.state += 1
    assert torch.equal(kept, before)


def test_what_does_not_fit_raises():
    with pytest.raises(ValueError, match="state"):
        cartpole.advance(torch.zeros(3), torch.tensor(True))
    with pytest.raises(ValueError, match="count"):
        cartpole.CartPoles(1, 0)
