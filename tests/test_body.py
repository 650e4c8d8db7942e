"""The Hopper's body, against hand-made poses, a plain chain and MuJoCo's kinematics."""

import math

import numpy as np
import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control import body, hopper

POSE = torch.tensor([0.3, 1.1, -2.5, -0.4, -0.9, 0.3], dtype=torch.float64)
STANDING = torch.tensor(body.STANDING, dtype=torch.float64)


def some_poses(n=20):
    """Poses as wild as an episode's, [n, 6]."""
    low = torch.tensor([-3.0, 0.1, -15.0, -2.6, -2.6, -0.8], dtype=torch.float64)
    high = torch.tensor([3.0, 2.0, 5.0, 0.0, 0.0, 0.8], dtype=torch.float64)
    u = torch.rand(n, 6, generator=seeding.make(0), dtype=torch.float64)
    return low + u * (high - low)


def chain(qpos):
    """The same ends by complex numbers: x + iz, each limb hung on the one before."""
    x, z, torso, thigh, leg, foot = qpos
    middle = complex(x, z)

    def turned(vector, angle):  # the top leans forward: clockwise
        return vector * np.exp(-1j * angle)

    hip = middle + turned(-0.2j, torso)
    knee = hip + turned(-0.45j, torso - thigh)
    ankle = knee + turned(-0.5j, torso - thigh - leg)
    sole = torso - thigh - leg - foot
    ends = [middle + turned(0.2j, torso), hip, hip, knee, knee, ankle]
    return [*ends, ankle + turned(-0.13, sole), ankle + turned(0.26, sole)]


def turning(turns, moments=12):
    """An episode that turns evenly, its body standing in any other respect."""
    qpos = STANDING.repeat(moments, 1)
    qpos[:, 2] = -2 * math.pi * torch.linspace(0, turns, moments, dtype=torch.float64)
    return qpos


def test_the_standing_body_reaches_from_floor_to_head():
    ends = body.segments(STANDING)
    assert ends[0, 0, 1] == pytest.approx(1.45)
    assert body.clearance(STANDING)[3] == pytest.approx(0.04)


def test_limbs_keep_their_length_in_any_pose():
    ends = body.segments(some_poses())
    length = (ends[..., 0, :] - ends[..., 1, :]).norm(dim=-1)
    want = torch.tensor([0.4, 0.45, 0.5, 0.39], dtype=torch.float64)
    torch.testing.assert_close(length, want.expand(20, 4))


def test_the_segments_are_a_plain_chain_of_rotations():
    for pose in some_poses():
        ends = body.segments(pose).view(8, 2)
        want = torch.tensor([[p.real, p.imag] for p in chain(pose.tolist())])
        torch.testing.assert_close(ends, want.double(), atol=1e-12, rtol=0)


@pytest.mark.skipif(not hopper.available(), reason="MuJoCo is not installed")
def test_the_segments_are_where_mujoco_puts_its_capsules():
    import mujoco

    env = hopper.Hoppers(1, 1)
    data = mujoco.MjData(env._model)
    for pose in some_poses():
        data.qpos[:] = pose.numpy()
        mujoco.mj_kinematics(env._model, data)
        middle = torch.from_numpy(data.geom_xpos[1:][:, [0, 2]].copy())
        torch.testing.assert_close(body.segments(pose).mean(1), middle)


@pytest.mark.skipif(not hopper.available(), reason="MuJoCo is not installed")
def test_the_radii_and_lengths_are_those_of_gymnasiums_file():
    model = hopper.Hoppers(1, 1)._model
    sizes = torch.from_numpy(model.geom_size[1:].copy())
    torch.testing.assert_close(sizes[:, 0], torch.tensor(body.RADII).double())
    ends = body.segments(STANDING)
    length = (ends[:, 0] - ends[:, 1]).norm(dim=-1)
    torch.testing.assert_close(2 * sizes[:, 1], length)


@pytest.mark.skipif(not hopper.available(), reason="MuJoCo is not installed")
def test_what_touches_is_what_mujoco_finds_in_contact():
    import mujoco

    env = hopper.Hoppers(1, 1)
    data = mujoco.MjData(env._model)
    margin = env._model.geom_margin[0] + env._model.geom_margin[1]
    for pose in some_poses(60):
        data.qpos[:] = pose.numpy()
        mujoco.mj_forward(env._model, data)
        pairs = [data.contact[i].geom for i in range(data.ncon)]
        found = {int(max(g)) - 1 for g in pairs if min(g) == 0}  # 0 is the floor
        height = body.clearance(pose)
        sure = (height - margin).abs() > 1e-6
        want = {i for i in range(4) if height[i] < margin}
        assert sure.all() and found == want


def test_moving_sideways_moves_every_end_as_far():
    moved = POSE.clone()
    moved[0] += 2.0
    shift = body.segments(moved) - body.segments(POSE)
    want = torch.tensor([2.0, 0.0], dtype=torch.float64).expand(4, 2, 2)
    torch.testing.assert_close(shift, want)


def test_a_whole_turn_leaves_the_body_where_it_was():
    turned = POSE.clone()
    turned[2] -= 2 * math.pi
    torch.testing.assert_close(body.segments(turned), body.segments(POSE))
    assert body.turns(turned) - body.turns(POSE) == pytest.approx(1.0)
    torch.testing.assert_close(body.upright(turned), body.upright(POSE))


def test_the_clearance_is_that_of_a_capsule_sampled_point_by_point():
    along = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    around = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)
    for pose in some_poses():
        for limb in range(4):
            upper, lower = body.segments(pose)[limb]
            axis = upper + along * (lower - upper)  # [11, 2]
            skin = axis[:, 1:] + body.RADII[limb] * around.sin()  # heights
            lowest = skin.min().item()
            assert body.clearance(pose)[limb].item() == pytest.approx(lowest, abs=1e-4)


def test_a_backward_turn_leans_the_top_backwards():
    leaning = torch.tensor([0.0, 1.25, -0.5, 0, 0, 0])
    assert body.segments(leaning)[0, 0, 0] < 0
    assert body.turns(leaning) == pytest.approx(0.5 / (2 * math.pi))


def test_upside_down_is_not_upright():
    assert body.upright(STANDING) == 1
    assert body.upright(turning(0.5)[-1]) == pytest.approx(-1)


def test_lying_is_not_standing():
    lying = torch.tensor([0.0, 0.05, -math.pi / 2, 0, 0, 0])
    assert body.stands(STANDING) and not body.stands(lying)
    assert body.others_touch(lying) and not body.others_touch(STANDING)


@pytest.mark.parametrize(
    "part, value",
    [(2, 0.7), (2, -0.7), (1, 1.4), (1, 0.6)],
    ids=["leans forward", "leans backward", "is in the air", "is below the floor"],
)
def test_each_condition_of_standing_counts(part, value):
    pose = STANDING.clone()
    pose[part] = value
    assert not body.stands(pose)


def test_standing_after_any_number_of_turns_is_standing():
    for turns in (-1, 1, 2, 3):
        assert body.stands(turning(turns)[-1])
    assert not body.stands(turning(0.5)[-1])


def test_a_full_turn_is_net_and_backward():
    assert body.full_turn(turning(1.0)) and body.full_turn(turning(2.2))
    assert not body.full_turn(turning(0.99)) and not body.full_turn(turning(-1.5))
    there_and_back = torch.cat([turning(1.2), turning(1.2).flip(0)])
    assert not body.full_turn(there_and_back)


def test_a_flip_that_stands_needs_the_turn_and_the_stand():
    episode = STANDING.repeat(12, 1)
    assert not body.flip_that_stands(episode)
    episode[:, 2] = -2 * math.pi
    assert body.flip_that_stands(episode) and body.full_turn(episode)
    episode[-1, 2] -= 1.0
    assert not body.flip_that_stands(episode)


def test_a_flip_that_stands_stands_in_each_of_the_last_moments_and_no_earlier():
    episode = torch.cat([turning(1.0), turning(1.0)[-1:].repeat(9, 1)])
    assert body.flip_that_stands(episode)  # the tenth is the end of the turning
    for moment in range(1, 11):
        fallen = episode.clone()
        fallen[-moment, 1] = 0.3
        assert not body.flip_that_stands(fallen)
    fallen = episode.clone()
    fallen[-11, 1] = 0.3
    assert body.flip_that_stands(fallen)


def test_a_batch_is_judged_as_each_by_itself():
    poses = some_poses(12).view(3, 4, 6)
    for judge in (body.segments, body.clearance, body.stands, body.others_touch):
        each = torch.stack([judge(q) for q in poses.view(12, 6)])
        assert torch.equal(judge(poses), each.view(3, 4, *each.shape[1:]))


@pytest.mark.parametrize("shape", [(5,), (2, 7)])
def test_another_number_of_positions_raises(shape):
    with pytest.raises(ValueError, match=r"qpos: want \[\.\.\., 6\], found"):
        body.segments(torch.zeros(shape))
