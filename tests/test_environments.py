"""Gymnasium's environments of the control rung, under gymnasium's own checker."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlhf_mini import seeding
from rlhf_mini.control import body, environments, hopper
from rlhf_mini.control.cartpole import CartPoles

NEEDS_MUJOCO = pytest.mark.skipif(
    not hopper.available(), reason="MuJoCo is not installed"
)
both = pytest.mark.parametrize(
    "name",
    [
        pytest.param(environments.BACKFLIP_ID, marks=NEEDS_MUJOCO),
        environments.CARTPOLE_ID,
    ],
)


@both
def test_the_environment_is_clean_under_gymnasiums_own_checker(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # speeds have no bound, and the checker would like one
        warnings.filterwarnings("ignore", ".*Box observation space m.*infinity")
        check_env(gym.make(name).unwrapped)


@both
def test_the_environment_is_made_by_name_where_the_module_was_not_imported(name):
    code = (
        "import gymnasium as g; "
        f"print(g.make('rlhf_mini.control.environments:{name}').reset(seed=0)[0].dtype)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "float32\n", done.stderr


@both
def test_no_reward_no_early_end_and_one_length(name):
    env = gym.make(name, length=7)
    env.reset(seed=0)
    env.action_space.seed(0)
    rows = [env.step(env.action_space.sample()) for _ in range(7)]
    assert {row[1] for row in rows} == {0.0}
    assert not any(row[2] for row in rows)
    assert [row[3] for row in rows] == [False] * 6 + [True]


@both
def test_a_seed_tells_the_start_and_the_next_episode_starts_elsewhere(name):
    env = gym.make(name)
    first, second = env.reset(seed=3)[0], env.reset()[0]
    assert np.array_equal(env.reset(seed=3)[0], first)
    assert np.array_equal(env.reset()[0], second)
    assert not np.array_equal(first, second)


def test_one_cartpole_walks_as_one_of_many():
    env = gym.make(environments.CARTPOLE_ID, length=30)
    many = CartPoles(1, 2, 30)
    many.reset(seeding.make(0))
    _, info = env.reset(seed=0)
    many.state[0, 0] = torch.from_numpy(info["state"])
    for k in range(30):
        push = torch.tensor([[[0.3 if k % 3 else -0.8], [1.0]]])
        many.step(push)
        observation, *_, info = env.step(push[0, 0].numpy())
        assert np.array_equal(info["state"], many.hidden()["state"][0, 0].numpy())
        assert np.array_equal(observation, many.observe()[0, 0].numpy())


@NEEDS_MUJOCO
def test_one_hopper_walks_as_gymnasiums_own():
    env = gym.make(environments.BACKFLIP_ID)
    own = gym.make(
        "Hopper-v5", terminate_when_unhealthy=False, frame_skip=hopper.SUBSTEPS
    ).unwrapped
    own.reset(seed=0)
    env.reset(seed=0)
    own.set_state(
        env.unwrapped.worlds._state[0, 1:7], env.unwrapped.worlds._state[0, 7:]
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        *_, info = env.step(action)
        own.step(action)
        np.testing.assert_allclose(info["qpos"], own.data.qpos, atol=1e-5)


@NEEDS_MUJOCO
def test_the_hopper_starts_upright_within_gymnasiums_five_millimetres():
    _, info = gym.make(environments.BACKFLIP_ID).reset(seed=1)
    assert np.abs(info["qpos"] - body.STANDING).max() <= 0.005


def test_several_at_once_are_refused():
    with pytest.raises(ValueError, match="want 1 × 1, found 2 × 3"):
        environments.Unrewarded(CartPoles(2, 3))


def test_without_mujoco_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # an import of it fails
    assert not hopper.available()
    with pytest.raises(ImportError) as error:
        gym.make(environments.BACKFLIP_ID)
    assert str(error.value) == hopper.MISSING
    assert "\n" not in hopper.MISSING and "pip install" in hopper.MISSING
