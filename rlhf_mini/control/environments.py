"""The worlds of this rung as gymnasium environments, one episode at a time.

    gym.make("rlhf_mini.control.environments:rlhf_mini/BackflipHopper-v0")
    gym.make("rlhf_mini.control.environments:rlhf_mini/FixedLengthCartPole-v0")

Nobody has written a reward for them: it is always 0. Episodes never terminate; after
a fixed number of decisions they are truncated, the only length there is. `info` holds
what a judge looks at. The learner runs many of the same at once (`hopper.Hoppers`,
`cartpole.CartPoles`); the tests compare the two.
"""

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from rlhf_mini import seeding

from .cartpole import CartPoles
from .hopper import LENGTH, Hoppers

BACKFLIP_ID = "rlhf_mini/BackflipHopper-v0"
CARTPOLE_ID = "rlhf_mini/FixedLengthCartPole-v0"


class Unrewarded(gym.Env):
    """One environment out of a batch of one.

    Args:
      worlds: `Hoppers` or `CartPoles` with copies = count = 1.

    Raises:
      ValueError: there are several of them.
    """

    metadata = {"render_modes": []}

    def __init__(self, worlds: Hoppers | CartPoles, render_mode: str | None = None):
        if (worlds.copies, worlds.count) != (1, 1):
            raise ValueError(
                f"worlds: want 1 × 1, found {worlds.copies} × {worlds.count}"
            )
        self.worlds, self.render_mode = worlds, render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (worlds.observations,))
        self.action_space = spaces.Box(-1.0, 1.0, (worlds.actions,))

    def _seen(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        hidden = {k: x[0, 0].numpy() for k, x in self.worlds.hidden().items()}
        return self.worlds.observe()[0, 0].numpy(), hidden

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.worlds.reset(seeding.make(int(self.np_random.integers(2**31))))
        return self._seen()

    def step(self, action: np.ndarray):
        self.worlds.step(torch.as_tensor(action).view(1, 1, -1))
        observation, hidden = self._seen()
        return observation, 0.0, False, self.worlds.t >= self.worlds.length, hidden


def backflip_hopper(
    length: int = LENGTH, integrator: str = "RK4", render_mode: str | None = None
) -> Unrewarded:
    """MuJoCo's Hopper, by default with gymnasium's own integrator.

    Raises:
      ImportError: MuJoCo is missing.
    """
    return Unrewarded(Hoppers(1, 1, length, integrator), render_mode)


def fixed_length_cartpole(
    length: int = 100, render_mode: str | None = None
) -> Unrewarded:
    """Gymnasium's CartPole that goes on after the pole has fallen."""
    return Unrewarded(CartPoles(1, 1, length), render_mode)


for name, entry in (
    (BACKFLIP_ID, "backflip_hopper"),
    (CARTPOLE_ID, "fixed_length_cartpole"),
):
    if name not in gym.registry:
        gym.register(id=name, entry_point=f"{__name__}:{entry}")
