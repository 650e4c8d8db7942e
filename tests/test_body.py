"""The Hopper's body, against hand-made poses and MuJoCo's own kinematics."""

import math

import pytest
import torch

from rlhf_mini.control import body, hopper

POSE = torch.tensor([0.3, 1.1, -2.5, -0.4, -0.9, 0.3], dtype=torch.float64)


def test_the_standing_body_reaches_from_floor_to_head():
    ends = body.segments(torch.tensor(body.STANDING))
    assert ends[0, 0, 1] == pytest.approx(1.45)
    assert body.clearance(torch.tensor(body.STANDING))[3] == pytest.approx(0.04)


def test_limbs_keep_their_length_in_any_pose():
    ends = body.segments(POSE)
    length = (ends[:, 0] - ends[:, 1]).norm(dim=-1)
    want = torch.tensor([0.4, 0.45, 0.5, 0.39], dtype=torch.float64)
    torch.testing.assert_close(length, want)


@pytest.mark.skipif(not hopper.available(), reason="MuJoCo is not installed")
def test_the_segments_are_where_mujoco_puts_its_capsules():
    import mujoco

    env = hopper.Hoppers(1, 1)
    data = mujoco.MjData(env._model)
    data.qpos[:] = POSE.numpy()
    mujoco.mj_kinematics(env._model, data)
    middle = torch.from_numpy(data.geom_xpos[1:][:, [0, 2]].copy())
    torch.testing.assert_close(body.segments(POSE).mean(1), middle)


def test_a_backward_turn_leans_the_top_backwards():
    leaning = torch.tensor([0.0, 1.25, -0.5, 0, 0, 0])
    assert body.segments(leaning)[0, 0, 0] < 0
    assert body.turns(leaning) == pytest.approx(0.5 / (2 * math.pi))


def test_lying_is_not_standing():
    standing = torch.tensor(body.STANDING)
    lying = torch.tensor([0.0, 0.05, -math.pi / 2, 0, 0, 0])
    assert body.stands(standing) and not body.stands(lying)
    assert body.others_touch(lying) and not body.others_touch(standing)


def test_a_flip_that_stands_needs_the_turn_and_the_stand():
    episode = torch.tensor(body.STANDING).repeat(12, 1)
    assert not body.flip_that_stands(episode)
    episode[:, 2] = -2 * math.pi
    assert body.flip_that_stands(episode) and body.full_turn(episode)
    episode[-1, 2] -= 1.0
    assert not body.flip_that_stands(episode)


def test_another_number_of_positions_raises():
    with pytest.raises(ValueError, match="qpos"):
        body.segments(torch.zeros(5))
