"""The Hopper's body in the plane: where its four capsules are, and what touches.

Everything that is judged or drawn comes from the six positions `qpos` of MuJoCo's
Hopper, by plane geometry. So recorded runs can be judged again, and drawn, on a machine
without MuJoCo.

qpos = (x, z of the torso's middle; torso angle; thigh, leg, foot angles), metres and
radians. The torso angle is not wrapped: it counts turns. It grows as the top leans
forward, so a backward turn makes it smaller by 2π.
"""

import math

import torch
from torch import Tensor

SEGMENTS = ("torso", "thigh", "leg", "foot")
RADII = (0.05, 0.05, 0.04, 0.06)  # metres, of the capsules
STANDING = (0.0, 1.25, 0.0, 0.0, 0.0, 0.0)  # qpos of the start
DECISION = 0.016  # seconds from one action to the next: 8 steps of 0.002
TOUCH = 0.01  # metres above the floor that still count as touching
FOOT_TOUCH = 0.1  # the same for the foot of one that stands: it tips from heel to toe


def _turned(point: Tensor, angle: Tensor, x: float, z: float) -> Tensor:
    """point + (x, z) rotated by `angle` about the axis into the page, [..., 2]."""
    c, s = angle.cos(), angle.sin()
    return point + torch.stack([x * c + z * s, z * c - x * s], -1)


def segments(qpos: Tensor) -> Tensor:
    """The two ends of each capsule's axis, [..., 6] → [..., 4, 2, 2] metres.

    Axes: torso, thigh, leg, foot; upper and lower end (of the foot: heel and toe);
    x and z.

    Raises:
      ValueError: the last axis is not 6.

    >>> ends = segments(torch.tensor(STANDING))
    >>> [round(h, 2) for h in ends[:, 1, 1].tolist()]  # heights of the lower ends
    [1.05, 0.6, 0.1, 0.1]
    """
    if qpos.shape[-1] != 6:
        raise ValueError(f"qpos: want [..., 6], found {list(qpos.shape)}")
    middle, angle = qpos[..., :2], qpos[..., 2]
    top = _turned(middle, angle, 0.0, 0.2)
    hip = _turned(middle, angle, 0.0, -0.2)
    thigh = angle - qpos[..., 3]  # the other hinges turn the other way
    knee = _turned(hip, thigh, 0.0, -0.45)
    leg = thigh - qpos[..., 4]
    ankle = _turned(knee, leg, 0.0, -0.5)
    foot = leg - qpos[..., 5]
    heel = _turned(ankle, foot, -0.13, 0.0)
    toe = _turned(ankle, foot, 0.26, 0.0)
    pairs = [(top, hip), (hip, knee), (knee, ankle), (heel, toe)]
    return torch.stack([torch.stack(p, -2) for p in pairs], -3)


def clearance(qpos: Tensor) -> Tensor:
    """Height of each capsule's lowest point over the floor, [..., 6] → [..., 4] metres.

    >>> [round(h, 2) for h in clearance(torch.tensor(STANDING)).tolist()]
    [1.0, 0.55, 0.06, 0.04]
    """
    lowest = segments(qpos)[..., 1].amin(-1)
    return lowest - torch.tensor(RADII, dtype=qpos.dtype)


def turns(qpos: Tensor) -> Tensor:
    """Backward turns of the torso since it stood upright, [..., 6] → [...].

    >>> turns(torch.tensor([0.0, 1.0, -2 * math.pi, 0.0, 0.0, 0.0])).item()
    1.0
    """
    return -qpos[..., 2] / (2 * math.pi)


def upright(qpos: Tensor) -> Tensor:
    """Cosine of the torso's angle to the vertical, [...]: 1 upright, −1 upside down."""
    return qpos[..., 2].cos()


def others_touch(qpos: Tensor) -> Tensor:
    """Whether torso, thigh or leg touch the floor, [..., 6] → [...] bool."""
    return clearance(qpos)[..., :3].amin(-1) < TOUCH


def stands(qpos: Tensor) -> Tensor:
    """Whether it stands at this moment, [..., 6] → [...] bool.

    The torso is within a tenth of a turn of upright and higher than 0.85 m, the foot is
    on the floor and nothing else is.
    """
    turned = turns(qpos)
    level = (turned - turned.round()).abs() < 0.1
    ground = clearance(qpos)
    feet = (ground[..., 3] < FOOT_TOUCH) & (ground[..., :3].amin(-1) > TOUCH)
    return level & feet & (qpos[..., 1] > 0.85)


def full_turn(qpos: Tensor) -> Tensor:
    """Whether an episode made one full backward turn at least, [..., T, 6] → [...]."""
    return turns(qpos)[..., -1] >= 1


def flip_that_stands(qpos: Tensor, moments: int = 10) -> Tensor:
    """Whether an episode is a back-flip that ends on the foot, [..., T, 6] → [...].

    It turned backwards, once or more to the nearest whole turn, and stands in each of
    the last `moments` (10 are 0.16 s).
    """
    once = turns(qpos)[..., -1].round() >= 1
    return once & stands(qpos[..., -moments:, :]).all(-1)
