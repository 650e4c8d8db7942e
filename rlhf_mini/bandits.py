"""Bandits as gymnasium environments, and learning on many of them at once.

`rlhf_mini/RareRewardBandit-v0` has one state and K arms that pay fixed rewards. One of
them may be rare: `ref_probs` is the law that a policy starts from, part of the problem
as a reference model is part of RLHF. A pull is an episode, as an answer is in RLHF:
an action is a sequence of length one, and every step ends with terminated=True. The
observation is the number of the only state, 0, and serves as the policy's `prompts`.

Exact times to hold the simulations against are in bandit_flows.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .checks import check_between, check_index, check_number, check_same_shape
from .policies import TabularPolicy, draw

ENV_ID = "rlhf_mini/RareRewardBandit-v0"


class RareRewardBandit(gym.Env):
    """One state, K arms, fixed rewards; the law that a policy starts from comes along.

    r = rewards[action]; every step terminates. All randomness is the policy's.

    Args:
      rewards: what each arm pays, reward units, [K].
      ref_probs: the starting law of a policy, [K], each > 0, sum 1.

    Raises:
      ValueError: fewer than two arms, lengths differ, a reward is not finite, a
        probability is not > 0, they do not sum to 1, or an action is no arm.

    >>> env = RareRewardBandit(rewards=(1.0, 0.0), ref_probs=(0.01, 0.99))
    >>> env.reset(seed=0)[0], env.step(0)[:3]
    (0, (0, 1.0, True))
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        rewards: Iterable[float] = (1.0, 0.0),
        ref_probs: Iterable[float] = (0.001, 0.999),
        render_mode: str | None = None,
    ):
        self.rewards, self.ref_probs = _arms(rewards, ref_probs)
        self.render_mode = render_mode
        self.observation_space = spaces.Discrete(1)
        self.action_space = spaces.Discrete(len(self.rewards))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: int):
        action = _actions(np.asarray([action]), len(self.rewards))[0]
        return 0, float(self.rewards[action]), True, False, {}


class RareRewardBanditVector(VectorEnv):
    """`num_envs` copies of RareRewardBandit in one array: one step pulls all of them.

    Autoreset is SAME_STEP, so that no step is spent on resetting.

    Args:
      num_envs: S ≥ 1.
      rewards, ref_probs: as `RareRewardBandit`.

    Raises:
      ValueError: as `RareRewardBandit`; actions are not [S].

    >>> envs = RareRewardBanditVector(3, rewards=(5.0, 0.0))
    >>> observations, _ = envs.reset(seed=0)
    >>> envs.step(np.array([1, 0, 1]))[1]
    array([0., 5., 0.])
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        rewards: Iterable[float] = (1.0, 0.0),
        ref_probs: Iterable[float] = (0.001, 0.999),
        render_mode: str | None = None,
    ):
        check_between(1, math.inf, num_envs=num_envs)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.rewards, self.ref_probs = _arms(rewards, ref_probs)
        self.single_observation_space = spaces.Discrete(1)
        self.single_action_space = spaces.Discrete(len(self.rewards))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended = np.ones(num_envs, dtype=bool)

    def _state(self) -> np.ndarray:
        return np.zeros(self.num_envs, dtype=np.int64)

    def reset(self, *, seed=None, options: dict | None = None):
        super().reset(seed=seed)
        return self._state(), {}

    def step(self, actions):
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            found = f"[{self.num_envs}], found {list(actions.shape)}"
            raise ValueError(f"actions: want shape {found}")
        rewards = self.rewards[_actions(actions, len(self.rewards))]
        # what SAME_STEP asks for: the last observation of each episode that ended
        infos = {"final_obs": self._state(), "_final_obs": self._ended.copy()}
        return self._state(), rewards, self._ended.copy(), ~self._ended, infos


def _arms(rewards, ref_probs):
    """Rewards and starting law as float64 arrays [K], checked."""
    r, p = (np.array(list(x), dtype=np.float64) for x in (rewards, ref_probs))
    if r.ndim != 1 or len(r) < 2 or r.shape != p.shape:
        found = f"rewards {list(r.shape)}, ref_probs {list(p.shape)}"
        raise ValueError(f"want two arms or more, and one number per arm: {found}")
    for arm in range(len(r)):
        check_number(**{f"rewards[{arm}]": r[arm]})
        if not p[arm] > 0:
            # a softmax cannot hold it, and its gradient would be 0 for ever
            found = f"found {p[arm]:g} at [{arm}]"
            raise ValueError(f"ref_probs: want every probability > 0, {found}")
    if abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"ref_probs: want sum 1, found {p.sum():.6g}")
    return r, p / p.sum()


def _actions(actions: np.ndarray, arms: int) -> np.ndarray:
    if not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(f"action: want an integer dtype, found {actions.dtype}")
    if actions.min() < 0 or actions.max() >= arms:
        bad = actions[(actions < 0) | (actions >= arms)][0]
        raise ValueError(f"action: want 0 to {arms - 1}, found {bad}")
    return actions


if ENV_ID not in gym.registry:
    gym.register(
        id=ENV_ID,
        entry_point="rlhf_mini.bandits:RareRewardBandit",
        vector_entry_point="rlhf_mini.bandits:RareRewardBanditVector",
    )


def starting_policy(envs: RareRewardBandit | RareRewardBanditVector) -> TabularPolicy:
    """A table at the environment's `ref_probs`: one row for each copy, float64.

    θ = log π_ref. The row of copy s is state s, so that S seeds train in one tensor.

    Args:
      envs: the environment, or any wrapper around it.

    Returns:
      A `TabularPolicy` with logits [S, 1, K].

    >>> starting_policy(RareRewardBandit()).probs().detach().numpy().round(3)
    array([[0.001, 0.999]])
    """
    world = envs.unwrapped
    states = getattr(world, "num_envs", 1)
    policy = TabularPolicy(len(world.rewards), states, dtype=torch.float64)
    with torch.no_grad():
        policy.logits[:] = torch.from_numpy(world.ref_probs).log()
    return policy


def reinforce_coefficients(actions: Tensor, rewards: Tensor, arms: int) -> Tensor:
    """One sample of the policy gradient, as a coefficient for each arm's score.

    ĝ = Σ_k c_k ∇log π(k),  here  c_k = r·1[k = a]
    `losses.reinforce_loss(logp, c)` over all K arms has the gradient −ĝ/K.

    Args:
      actions: arms that were drawn from π, [S].
      rewards: what they paid, [S].
      arms: K.

    Returns:
      c, reward units, [S, K], no gradient.

    Raises:
      ValueError: shapes differ, or an action is no arm.

    Source: Williams (1992), "Simple statistical gradient-following algorithms".

    >>> reinforce_coefficients(torch.tensor([2]), torch.tensor([5.0]), arms=3)
    tensor([[0., 0., 5.]])
    """
    check_same_shape(actions=actions, rewards=rewards)
    check_index(arms, actions=actions)
    c = torch.zeros(*actions.shape, arms, dtype=rewards.dtype)
    return c.scatter_(-1, actions[..., None], rewards.detach()[..., None])


def inject(c: Tensor, probs: Tensor, arm: int, reward: float) -> Tensor:
    """Replace what was drawn of one arm by its expectation, which is known.

    c_arm ← π(arm) · r(arm),  the others stay as drawn
    Unbiased because draws of the arm are dropped; if they stay, it counts twice.

    Args:
      c: coefficients of the draws, [S, K].
      probs: π, [S, K], a constant.
      arm: the arm whose reward is known.
      reward: r(arm), reward units.

    Returns:
      c, [S, K], a new tensor.

    Raises:
      ValueError: shapes differ, or arm is no arm.

    Source: stratified sampling: one stratum is summed, the rest is sampled.

    >>> inject(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.1, 0.9]]), 0, reward=2.0)
    tensor([[0.2000, 0.0000]])
    """
    check_same_shape(c=c, probs=probs)
    check_between(0, c.shape[-1] - 1, arm=arm)
    c = c.clone()
    c[..., arm] = probs.detach()[..., arm] * reward
    return c


def balance_weight(logp: Tensor, other_logp: Tensor, alpha: float) -> Tensor:
    """Importance weight for draws from a mixture of the policy and another law.

    w = π / ((1−α) π + α μ) ≤ 1/(1−α)
    Bounded however rare the action is under π, unlike π/μ, and no draw is dropped.

    Args:
      logp: log π of what was drawn from the mixture, nats, [...].
      other_logp: log μ of the same, [...]; −inf where μ never goes.
      alpha: share α of draws from μ, 0 ≤ α < 1.

    Returns:
      w, [...], no gradient; its mean over the mixture is 1.

    Raises:
      ValueError: shapes differ, or alpha is not in [0, 1).

    Source: Veach and Guibas (1995), the balance heuristic.

    >>> logp, other = torch.tensor([0.25, 0.75]).log(), torch.tensor([1.0, 0.0]).log()
    >>> balance_weight(logp, other, alpha=0.5)   # ¼/⅝ and ¾/⅜
    tensor([0.4000, 2.0000])
    """
    check_same_shape(logp=logp, other_logp=other_logp)
    check_between(0, math.nextafter(1, 0), alpha=alpha)
    pi, mu = logp.detach().exp(), other_logp.detach().exp()
    return pi / ((1 - alpha) * pi + alpha * mu)


def learn(
    envs: VectorEnv,
    policy: TabularPolicy,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    pulls: int,
    estimate: Callable[[Tensor, Tensor], Tensor] = lambda c, probs: c,
) -> Iterator[Tensor]:
    """Pull once in each copy, step along the estimated gradient; yield π before it.

    θ.grad = −(c − π Σ_k c_k),  which is what autograd makes of `reinforce_loss`;
    written out, because it is many times faster than building a graph per pull.

    Args:
      envs: S copies, from `gym.make_vec`.
      policy: one row per copy, as `starting_policy` makes it; trained in place.
      optimizer: over policy.logits.
      generator: draws the actions.
      pulls: at most so many.
      estimate: (c [S, K], probs [S, K]) → c [S, K]; the identity is REINFORCE.

    Yields:
      probs, [S, K], before each pull and once after the last.

    Raises:
      ValueError: a policy that is no longer a law, or coefficients of a wrong shape.

    Source: Williams (1992), one sample per update.

    >>> envs = RareRewardBanditVector(2, ref_probs=(0.5, 0.5))
    >>> policy = starting_policy(envs)
    >>> sgd = torch.optim.SGD(policy.parameters(), lr=1.0)
    >>> steps = list(learn(envs, policy, sgd, torch.Generator().manual_seed(0), 5))
    >>> len(steps), steps[-1].shape
    (6, torch.Size([2, 2]))
    """
    envs.reset()
    for _ in range(pulls):
        logits = policy.logits.detach()[:, 0]
        probs = logits.softmax(-1)
        yield probs
        actions = draw(logits, generator)
        rewards = torch.from_numpy(envs.step(actions.numpy())[1])
        c = reinforce_coefficients(actions, rewards, probs.shape[-1])
        c = estimate(c, probs)
        check_same_shape(coefficients=c, probs=probs)
        policy.logits.grad = (probs * c.sum(-1, keepdim=True) - c)[:, None]
        optimizer.step()
    yield policy.probs().detach()


def first_time(steps: Iterable[Tensor], arm: int, level: float = 0.5) -> Tensor:
    """The first step at which each copy gives the arm this probability.

    Args:
      steps: probs [S, K] after 0, 1, 2, … pulls, such as `learn` yields; it is read
        no further than needed.
      arm: which arm.
      level: the probability to be reached.

    Returns:
      Pulls, [S], float64; inf where the steps ended before.

    Raises:
      ValueError: there are no steps.

    >>> steps = [torch.tensor([[0.1, 0.9]]), torch.tensor([[0.6, 0.4]])]
    >>> first_time(steps, arm=0)
    tensor([1.], dtype=torch.float64)
    """
    found = None
    for t, probs in enumerate(steps):
        if found is None:
            found = torch.full(probs.shape[:1], math.inf, dtype=torch.float64)
        found[(probs[:, arm] >= level) & found.isinf()] = t
        if found.isfinite().all():
            break
    if found is None:
        raise ValueError("steps: empty")
    return found
