"""Simulated judges of clips: a rule that the learner never sees, and human noise.

A rule maps what is hidden from the learner (positions of the body) to one score per
clip. The judge then chooses as a person does, by `BradleyTerryAnnotator`: the larger
the difference the surer, and a share of clicks is careless.
"""

import torch
from torch import Tensor

from rlhf_mini.annotators import BradleyTerryAnnotator

from . import body


def _made(qpos: Tensor) -> Tensor:
    """Backward turns made from one moment of a clip to the next, [..., L]; first 0."""
    turned = body.turns(qpos)
    return torch.diff(turned, dim=-1, prepend=turned[..., :1])


def any_turn(qpos: Tensor) -> Tensor:
    """Careless: how far it turned backwards, however. In turns a moment, [..., L]."""
    return _made(qpos)


def turn_in_the_air(qpos: Tensor) -> Tensor:
    """Careful: only what is turned while nothing touches the floor. In turns.

    Rocking is paid: back in the air, forward again on the floor, and so on.
    """
    free = body.clearance(qpos).amin(-1) > body.TOUCH
    return _made(qpos) * free


def flip_and_stand(qpos: Tensor) -> Tensor:
    """One turn, not two; then stand. In turns.

    Progress towards exactly one backward turn; minus a little for every moment that
    anything but the foot touches; plus something for every moment of standing after
    the turn.
    """
    way = -(body.turns(qpos) - 1).abs()
    each = torch.diff(way, dim=-1, prepend=way[..., :1])
    fallen = body.others_touch(qpos).double()
    standing = body.stands(qpos) & (body.turns(qpos) > 0.9)
    return each + (3.0 * standing - 0.3 * fallen) / 60


RULES = {
    "careless": any_turn,
    "careful": turn_in_the_air,
    "standing": flip_and_stand,
}


def moments(rule: str, qpos: Tensor) -> Tensor:
    """What a rule gives each moment, [..., L, 6] → [..., L] turns; the sum scores.

    Raises:
      ValueError: there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule: want one of {sorted(RULES)}, found {rule!r}")
    return RULES[rule](qpos)


def score(rule: str, qpos: Tensor) -> Tensor:
    """A clip's score, [..., L, 6] → [...] turns."""
    return moments(rule, qpos).sum(-1)


def compare(
    scores: Tensor, annotator: BradleyTerryAnnotator, generator: torch.Generator
) -> Tensor:
    """1 where the first of two clips was chosen, 0 where the second, [n, 2] → [n]."""
    return 1.0 - annotator.choose(scores, generator).to(scores.dtype)
