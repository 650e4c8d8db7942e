"""Many Hoppers at once are gymnasium's Hopper, decision by decision."""

import sys

import gymnasium as gym
import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control import body, hopper

NEEDS_MUJOCO = pytest.mark.skipif(
    not hopper.available(), reason="MuJoCo is not installed"
)


def walked(envs, decisions=15):
    """Positions after some wild decisions that differ from Hopper to Hopper."""
    generator = seeding.make(7)
    envs.reset(seeding.make(0))
    for _ in range(decisions):
        u = torch.rand(envs.copies, envs.count, 3, generator=generator)
        envs.step(2 * u - 1)
    return envs.hidden()["qpos"]


@NEEDS_MUJOCO
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


@NEEDS_MUJOCO
def test_a_decision_takes_as_long_as_body_says():
    model = hopper.Hoppers(1, 1)._model
    assert model.opt.timestep * hopper.SUBSTEPS == pytest.approx(body.DECISION)


@NEEDS_MUJOCO
def test_the_cheap_integrator_agrees_with_gymnasiums_for_a_moment():
    both = [hopper.Hoppers(1, 4, integrator=i) for i in ("implicitfast", "RK4")]
    one, other = (walked(envs, decisions=3) for envs in both)
    torch.testing.assert_close(one, other, atol=0.01, rtol=0)
    assert not torch.equal(one, other)


@NEEDS_MUJOCO
def test_more_threads_change_no_digit():
    one, two = (hopper.Hoppers(1, 5, threads=n) for n in (1, 2))
    assert torch.equal(walked(one), walked(two))


@NEEDS_MUJOCO
def test_copies_and_count_are_one_list_of_hoppers():
    rows = walked(hopper.Hoppers(1, 6))
    assert torch.equal(walked(hopper.Hoppers(2, 3)).view(1, 6, 6), rows)


@NEEDS_MUJOCO
def test_motors_take_minus_one_to_one():
    found = []
    for size in (1.0, 50.0):
        envs = hopper.Hoppers(1, 1)
        envs.reset(seeding.make(0))
        envs.step(torch.tensor([[[size, -size, size]]]))
        found.append(envs.hidden()["qpos"])
    assert torch.equal(*found)


@NEEDS_MUJOCO
def test_a_reset_stands_them_up_at_different_places():
    envs = hopper.Hoppers(1, 3)
    walked(envs)
    envs.reset(seeding.make(1))
    away = envs.hidden()["qpos"] - torch.tensor(body.STANDING)
    assert away.abs().max() <= 0.005 and len(away[0, :, 0].unique()) == 3
    assert envs.hidden()["qvel"].abs().max() <= 0.005 and envs.t == 0


@NEEDS_MUJOCO
def test_what_the_judge_keeps_does_not_change_with_the_next_step():
    envs = hopper.Hoppers(1, 2)
    envs.reset(seeding.make(0))
    kept = envs.hidden()
    before = {k: x.clone() for k, x in kept.items()}
    envs.step(torch.ones(1, 2, 3))
    assert all(torch.equal(kept[k], before[k]) for k in kept)


@NEEDS_MUJOCO
def test_features_and_time_left_have_the_shapes_they_say():
    envs = hopper.Hoppers(1, 3, length=10)
    envs.reset(seeding.make(0))
    assert envs.observe().shape == (1, 3, envs.observations)
    assert envs.reached().shape == (1, 3, envs.seen)
    envs.step(torch.zeros(1, 3, 3))
    assert envs.observe()[0, 0, -1].item() == pytest.approx(0.9)


@NEEDS_MUJOCO
def test_a_number_below_one_raises():
    with pytest.raises(ValueError, match="count"):
        hopper.Hoppers(1, 0)


def test_features_are_these_thirteen_numbers():
    qpos = torch.tensor([9.0, 1.5, -torch.pi, 0.1, 0.2, 0.3], dtype=torch.float64)
    qvel = torch.tensor([1.0, -2.0, 100.0, -100.0, 0.0, 5.0], dtype=torch.float64)
    want = [0.5, 0.5, 0.0, -1.0, 0.1, 0.2, 0.3, 0.2, -0.4, 4.0, -4.0, 0.0, 1.0]
    found = hopper.features(qpos, qvel)
    torch.testing.assert_close(found, torch.tensor(want), atol=1e-6, rtol=0)


def test_features_do_not_tell_the_place_but_count_the_turns():
    qpos = torch.tensor([0.0, 1.25, -0.3, -0.1, -0.2, 0.1], dtype=torch.float64)
    there, turned = qpos.clone(), qpos.clone()
    there[0] += 7.0
    turned[2] -= 2 * torch.pi
    still = torch.zeros(6, dtype=torch.float64)
    here = hopper.features(qpos, still)
    assert torch.equal(hopper.features(there, still), here)
    gained = hopper.features(turned, still) - here
    want = torch.zeros(13)
    want[1] = 1.0
    torch.testing.assert_close(gained, want, atol=1e-5, rtol=0)


def test_without_mujoco_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # an import of it fails
    assert not hopper.available()
    with pytest.raises(ImportError) as error:
        hopper.Hoppers(1, 1)
    assert str(error.value) == hopper.MISSING and "\n" not in hopper.MISSING
