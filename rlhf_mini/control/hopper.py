"""MuJoCo's Hopper with nothing but its body: no reward, no early end.

Many at once, as tensors. For learning they integrate with MuJoCo's `implicitfast`, a
quarter of the work of the Runge-Kutta rule in gymnasium's file. What was learnt is
tested with `integrator="RK4"`: then every decision is gymnasium's own Hopper-v5 with
`frame_skip=8`, as the tests show, and a world that the policy has never seen.

MuJoCo is needed here, and nowhere else in the library.
"""

import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rlhf_mini.checks import check_between

from . import body

MISSING = (
    "MuJoCo is not installed: pip install 'gymnasium[mujoco]' (the rest of "
    "notebook 16 runs on recorded results)"
)
LENGTH = 150  # decisions of an episode
SUBSTEPS = 8  # of 0.002 s


def available() -> bool:
    """Whether MuJoCo can be imported."""
    try:
        import mujoco  # noqa: F401
    except ImportError:
        return False
    return True


def features(qpos: Tensor, qvel: Tensor) -> Tensor:
    """What learner and reward model see, [..., 6] twice → [..., 13], about unit size.

    Height; torso angle, unwrapped, in turns, its sine and cosine; three joint angles;
    six velocities, clipped as gymnasium does (at twice its limit).
    """
    angle = qpos[..., 2:3]
    parts = [
        qpos[..., 1:2] - 1.0, -angle / (2 * math.pi), angle.sin(), angle.cos(),
        qpos[..., 3:], qvel.clamp(-20, 20) / 5,
    ]  # fmt: skip
    return torch.cat(parts, -1).float()


class Hoppers:
    """S·N Hoppers, an episode of a fixed number of decisions each.

    Args:
      copies, count: S and N.
      length: decisions of an episode.
      integrator: MuJoCo's name; gymnasium's file says "RK4".
      threads: cores that simulate.

    Raises:
      ImportError: MuJoCo is missing; the message says what to install.
    """

    actions = 3
    seen = 13  # features that a reward model is given

    def __init__(
        self,
        copies: int = 1,
        count: int = 32,
        length: int = LENGTH,
        integrator: str = "implicitfast",
        threads: int = 1,
    ):
        try:
            import mujoco
            from mujoco import rollout
        except ImportError as error:
            raise ImportError(MISSING) from error
        check_between(1, math.inf, copies=copies, count=count, length=length)
        self.copies, self.count, self.length = copies, count, length
        self.observations = self.seen + 1  # and the time that is left
        file = Path(gym.__file__).parent / "envs" / "mujoco" / "assets" / "hopper.xml"
        self._model = mujoco.MjModel.from_xml_path(str(file))
        kind = getattr(mujoco.mjtIntegrator, "mjINT_" + integrator.upper())
        self._model.opt.integrator = kind
        self._data = [mujoco.MjData(self._model) for _ in range(threads)]
        self._rollout = rollout.rollout
        self._state = np.zeros((copies * count, 13))  # time, qpos, qvel
        self.t = 0

    def reset(self, generator: torch.Generator) -> None:
        """Stand all of them up, give or take gymnasium's 5 millimetres."""
        shape = (len(self._state), 12)
        noise = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.01
        self._state[:, 0] = 0
        self._state[:, 1:] = noise.numpy() - 0.005
        self._state[:, 2] += body.STANDING[1]
        self.t = 0

    def step(self, actions: Tensor) -> None:
        """One decision of each, [S, N, 3]; motors take −1 to 1."""
        u = actions.detach().clamp(-1, 1).double().numpy().reshape(-1, 1, 3)
        control = np.repeat(u, SUBSTEPS, axis=1)
        states, _ = self._rollout(self._model, self._data, self._state, control)
        self._state = states[:, -1]
        self.t += 1

    def _part(self, first: int) -> Tensor:
        x = torch.from_numpy(self._state[:, first : first + 6].copy())
        return x.view(self.copies, self.count, 6)

    def reached(self) -> Tensor:
        """`features` of the present state, [S, N, 13]."""
        return features(self._part(1), self._part(7))

    def observe(self) -> Tensor:
        """`features` and the share of the episode that is left, [S, N, 14]."""
        left = torch.full((self.copies, self.count, 1), 1 - self.t / self.length)
        return torch.cat([self.reached(), left], -1)

    def hidden(self) -> dict[str, Tensor]:
        """What a judge looks at: positions and velocities, [S, N, 6] each."""
        return {"qpos": self._part(1), "qvel": self._part(7)}
