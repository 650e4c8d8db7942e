"""Reinforcement learning from comparisons: act, ask, fit the reward, improve.

The loop of Christiano et al. (2017), with all parts in one process and in turns:

1. act: one episode of every environment;
2. ask: cut clips out of the episodes, show pairs to a judge, keep what was preferred;
3. fit: a few steps of the reward ensemble on all comparisons so far;
4. improve: PPO on the learnt reward. The true reward is never looked at.

Most comparisons are asked at the start, fewer later (`schedule`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_mini.checks import check_between
from rlhf_mini.training import PPOSettings, linear_decay

from .networks import GaussianPolicy, StackedMLP
from .reward_ensemble import ComparisonBuffer, RewardEnsemble
from .trajectories import Trajectories, act, ppo_update

Judge = Callable[[int, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Settings:
    """How a learner works; the defaults are those of the Hopper."""

    iterations: int = 60
    clip: int = 50  # decisions of a clip
    stride: int = 2  # every second moment of a clip is given to the reward model
    members: int = 3
    reward_hidden: tuple[int, ...] = (32, 32)
    fit_steps: int = 25
    first_fit_steps: int = 200
    fit_batch: int = 64
    candidates: int = 4  # pairs a question; those that divide the ensemble are asked
    hidden: tuple[int, ...] = (64, 64)
    std: float = 0.6
    lr: float = 1e-3
    reward_scale: float = 0.3
    ppo: PPOSettings = field(
        default_factory=lambda: PPOSettings(
            gamma=0.99, lam=0.95, epochs=6, minibatches=4, value_clip=10.0,
            value_weight=0.5, max_grad_norm=0.5,
        )
    )  # fmt: skip


def schedule(total: int, iterations: int, first: int, half: float) -> list[int]:
    """How many comparisons are asked before each iteration: many first, then fewer.

    `first` at once, and the rest in proportion to half/(half + i), as whole numbers
    that add up to `total`.

    Raises:
      ValueError: first > total, or iterations < 1.

    >>> schedule(total=100, iterations=5, first=40, half=2.0)
    [40, 23, 16, 12, 9]
    """
    check_between(1, torch.inf, iterations=iterations)
    check_between(0, total, first=first)
    if iterations == 1:
        return [total]
    weight = half / (half + torch.arange(iterations - 1).double())
    goal = (weight.cumsum(0) / weight.sum() * (total - first)).round().long()
    rest = torch.diff(goal, prepend=torch.zeros(1, dtype=torch.long))
    return [first, *rest.tolist()]


class PreferenceLearner:
    """S learners at once, each with its own policy, critic, reward and comparisons.

    Args:
      env: batched environments (see `trajectories.act`).
      judge: judge(copy, hidden) is asked with what is hidden of n pairs of clips,
        {name: [n, 2, L, ...]}; it returns [n], 1 where the first clip is preferred, 0
        where the second is, ½ for a tie, NaN for a pair that was skipped.
      asks: [S][iterations] numbers of comparisons.
      settings: see `Settings`.
      generator: every draw of the run.
      true_reward: f(batch) → [S, N, T], a reward for the copies of `given`.
      given: [S] bool; these copies get the true reward, to see what comparisons cost.
      cast: comparisons that every copy begins with, as `ComparisonBuffer.add` takes
        them: what was seen of the clips, [n, 2, moments, F], and preferences, [n].
    """

    def __init__(
        self,
        env,
        judge: Judge,
        asks: list[list[int]],
        settings: Settings,
        generator: torch.Generator,
        true_reward: Callable[[Trajectories], Tensor] | None = None,
        given: Tensor | None = None,
        cast: tuple[Tensor, Tensor] | None = None,
    ):
        self.env, self.judge, self.asks, self.s = env, judge, asks, settings
        self.generator, self.true_reward = generator, true_reward
        copies, sizes = env.copies, (env.observations, *settings.hidden)
        if len(asks) != copies:
            raise ValueError(f"asks: want {copies} schedules, found {len(asks)}")
        self.policy = GaussianPolicy(
            copies, env.observations, env.actions, generator, settings.hidden,
            settings.std,
        )  # fmt: skip
        self.critic = StackedMLP(copies, (*sizes, 1), generator)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(net.parameters()), "lr": settings.lr}
                for net in (self.policy, self.critic)
            ],
            eps=1e-5,
        )
        self.reward = RewardEnsemble(
            copies, env.seen, generator, settings.members, settings.reward_hidden
        )
        moments = -(-settings.clip // settings.stride)
        most = max(1, *(sum(row) for row in asks)) + (len(cast[1]) if cast else 0)
        self.buffer = ComparisonBuffer(copies, most, moments, env.seen)
        for copy in range(copies if cast else 0):
            self.buffer.add(copy, *cast)
        self.given = torch.zeros(copies, dtype=torch.bool) if given is None else given
        self.iteration = 0

    def step(self) -> tuple[dict[str, float], Trajectories]:
        """One iteration of all copies: (metrics, the episodes it learnt from)."""
        s = self.s
        linear_decay(self.optimizer, self.iteration, s.iterations)
        batch = act(self.env, self.policy, self.critic, self.generator)
        asked, first = self.ask(batch), self.iteration == 0
        row = {"comparisons": self.buffer.count.double().mean().item()}
        if asked or (first and self.buffer.count.any()):
            steps = s.first_fit_steps if first else s.fit_steps
            row["loss"] = self.reward.fit(self.buffer, steps, s.fit_batch)
            self.reward.standardise(batch.reached)
        rewards = self.reward.reward(batch.reached)
        if self.given.any():
            truth = self.true_reward(batch).to(rewards.dtype)
            rewards = torch.where(self.given[:, None, None], truth, rewards)
        row |= ppo_update(
            self.policy, self.critic, batch, rewards * s.reward_scale, self.optimizer,
            s.ppo, self.generator,
        )  # fmt: skip
        self.iteration += 1
        return row, batch

    def ask(self, batch: Trajectories) -> int:
        """Put this iteration's questions to the judge; how many were answered."""
        answered = 0
        for copy, asks in enumerate(self.asks):
            n = asks[self.iteration] if self.iteration < len(asks) else 0
            if not n:
                continue
            pairs = self.choose_pairs(batch, copy, n)
            hidden = {
                k: cut(x[copy], pairs, self.s.clip) for k, x in batch.hidden.items()
            }
            seen = cut(batch.reached[copy], pairs, self.s.clip)[:, :, :: self.s.stride]
            p = self.judge(copy, hidden)
            keep = ~torch.isnan(p)
            self.buffer.add(copy, seen[keep], p[keep])
            answered += int(keep.sum())
        return answered

    def choose_pairs(self, batch: Trajectories, copy: int, n: int) -> Tensor:
        """n pairs of (episode, first moment), [n, 2, 2], that divide the ensemble most.

        Before there is any comparison, and with one candidate per question, at random.
        """
        _, episodes, length = batch.logp.shape
        many = n * self.s.candidates if self.buffer.count[copy] > 0 else n
        shape = (many, 2)
        episode = torch.randint(episodes, shape, generator=self.generator)
        start = torch.randint(length - self.s.clip + 1, shape, generator=self.generator)
        pairs = torch.stack([episode, start], -1)
        if many == n:
            return pairs
        seen = cut(batch.reached[copy], pairs, self.s.clip)[:, :, :: self.s.stride]
        spread = self.reward.disagreement(copy, seen)
        return pairs[spread.topk(n).indices]


def cut(x: Tensor, pairs: Tensor, clip: int) -> Tensor:
    """Clips out of episodes: [N, T, ...] and [n, 2, 2] → [n, 2, L, ...].

    >>> cut(torch.arange(10).view(2, 5), torch.tensor([[[0, 1], [1, 3]]]), clip=2)
    tensor([[[1, 2],
             [8, 9]]])
    """
    when = pairs[..., 1:] + torch.arange(clip)  # [n, 2, L]
    return x[pairs[..., :1], when]
