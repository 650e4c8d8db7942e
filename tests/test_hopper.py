"""Many Hoppers at once are gymnasium's Hopper, decision by decision."""

import gymnasium as gym
import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control import hopper

pytestmark = pytest.mark.skipif(
    not hopper.available(), reason="MuJoCo is not installed"
)


def test_with_its_integrator_every_decision_is_gymnasiums():
    envs = hopper.Hoppers(1, 1, integrator="RK4")
    envs.reset(seeding.make(0))
    own = gym.make(
        "Hopper-v5", terminate_when_unhealthy=False, frame_skip=hopper.SUBSTEPS
    ).unwrapped
    own.reset(seed=0)
    own.set_state(envs._state[0, 1:7], envs._state[0, 7:])
    for k in range(20):
        u = torch.tensor([[[0.9, -0.7, 0.3]]]) * (1 - 2 * (k // 5 % 2))
        envs.step(u)
        own.step(u[0, 0].numpy())
        want = torch.from_numpy(own.data.qpos.copy())
        torch.testing.assert_close(envs.hidden()["qpos"][0, 0], want, atol=1e-5, rtol=0)


def test_features_and_time_left_have_the_shapes_they_say():
    envs = hopper.Hoppers(1, 3, length=10)
    envs.reset(seeding.make(0))
    assert envs.observe().shape == (1, 3, envs.observations)
    assert envs.reached().shape == (1, 3, envs.seen)
    envs.step(torch.zeros(1, 3, 3))
    assert envs.observe()[0, 0, -1].item() == pytest.approx(0.9)
