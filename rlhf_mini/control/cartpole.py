"""Gymnasium's CartPole, many at once and never ended early.

The equations and constants are those of `CartPole-v1`, step by step; the tests compare
them. What differs is the episode: it has a fixed length and goes on after the pole has
fallen, as Christiano et al. (2017) ask for. An episode that ends on failure tells the
learner through its length what the reward should have told it.

The hidden reward is gymnasium's own: 1 for each moment inside the limits, from the
start to the first time that pole or cart leaves them.
"""

import math

import torch
from torch import Tensor

from rlhf_mini.checks import check_between

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
ANGLE_LIMIT, TRACK_LIMIT = 12 * 2 * math.pi / 360, 2.4


def advance(state: Tensor, push_right: Tensor) -> Tensor:
    """One step of 0.02 s, [..., 4] and bool [...] → [..., 4].

    The state is (x, ẋ, θ, θ̇); the integrator is Euler's, as in gymnasium.

    Raises:
      ValueError: the state's last axis is not 4.

    >>> [round(v, 4) for v in advance(torch.zeros(4), torch.tensor(True)).tolist()]
    [0.0, 0.1951, 0.0, -0.2927]
    """
    if state.shape[-1:] != (4,):
        raise ValueError(f"state: want [..., 4], found {list(state.shape)}")
    x, x_dot, theta, theta_dot = state.unbind(-1)
    force = torch.where(push_right, FORCE, -FORCE).to(state.dtype)
    cos, sin = theta.cos(), theta.sin()
    mass, moment = CART + POLE, POLE * HALF_LENGTH
    temp = (force + moment * theta_dot.square() * sin) / mass
    theta_acc = (GRAVITY * sin - cos * temp) / (
        HALF_LENGTH * (4 / 3 - POLE * cos.square() / mass)
    )
    x_acc = temp - moment * theta_acc * cos / mass
    return torch.stack(
        [
            x + TAU * x_dot, x_dot + TAU * x_acc,
            theta + TAU * theta_dot, theta_dot + TAU * theta_acc,
        ],
        -1,
    )  # fmt: skip


def inside(state: Tensor) -> Tensor:
    """Whether gymnasium would let the episode go on, [..., 4] → [...] bool."""
    pole = state[..., 2].abs() <= ANGLE_LIMIT
    return pole & (state[..., 0].abs() <= TRACK_LIMIT)


def true_return(state: Tensor) -> Tensor:
    """Moments before the first one outside, [..., T, 4] → [...]."""
    return inside(state).double().cumprod(-1).sum(-1)


class CartPoles:
    """S·N CartPoles, an episode of a fixed number of steps each.

    The action is one number: above 0 pushes right, else left.

    Args:
      copies, count: S and N.
      length: steps of an episode.
      spread: starting states are uniform within ± this, gymnasium's 0.05.
    """

    actions, seen, observations = 1, 5, 6

    def __init__(self, copies: int, count: int, length: int = 100, spread=0.05):
        check_between(1, math.inf, copies=copies, count=count, length=length)
        self.copies, self.count, self.length, self.spread = (
            copies,
            count,
            length,
            spread,
        )
        self.state = torch.zeros(copies, count, 4, dtype=torch.float64)
        self.t = 0

    def reset(self, generator: torch.Generator) -> None:
        """New episodes for all."""
        u = torch.rand(self.state.shape, generator=generator, dtype=torch.float64)
        self.state, self.t = (2 * u - 1) * self.spread, 0

    def step(self, actions: Tensor) -> None:
        """Push each, [S, N, 1]."""
        self.state = advance(self.state, actions[..., 0] > 0)
        self.t += 1

    def reached(self) -> Tensor:
        """What is seen, [S, N, 5]: x, ẋ, θ, θ̇ in units of their limits, and cos θ."""
        x, x_dot, theta, theta_dot = self.state.unbind(-1)
        parts = [x / TRACK_LIMIT, x_dot / 2, theta / ANGLE_LIMIT, theta_dot / 2]
        return torch.stack([*parts, theta.cos()], -1).clamp(-5, 5).float()

    def observe(self) -> Tensor:
        """The same and the share of the episode that is left, [S, N, 6]."""
        left = torch.full((self.copies, self.count, 1), 1 - self.t / self.length)
        return torch.cat([self.reached(), left], -1)

    def hidden(self) -> dict[str, Tensor]:
        """What a judge looks at: the state, [S, N, 4]."""
        return {"state": self.state.clone()}
