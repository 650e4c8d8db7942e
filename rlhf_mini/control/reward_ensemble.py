"""A reward learnt from comparisons of clips: a small ensemble for each learner.

The chance that clip a is preferred is σ(Σ_t r̂(a_t) − Σ_t r̂(b_t)): Bradley-Terry on
sums, as the score of an answer is a sum over tokens. A constant added to r̂ changes no
comparison, since all clips have one length; the mean is therefore set, not learnt.
"""

import torch
from torch import Tensor

from rlhf_mini.checks import check_between, check_ndim, check_same_shape
from rlhf_mini.losses import bradley_terry_loss

from .networks import StackedMLP

SUM = 10.0  # a clip's sum is this times its mean: the same model, a scale that fits


class ComparisonBuffer:
    """The comparisons of S learners: two clips each, and which was preferred.

    Args:
      copies: S.
      capacity: most comparisons of one learner.
      clip: moments of a clip, L.
      features: what is seen of a moment, F.
    """

    def __init__(self, copies: int, capacity: int, clip: int, features: int):
        self.clips = torch.zeros(copies, capacity, 2, clip, features)
        self.preference = torch.zeros(copies, capacity)  # P(the first is preferred)
        self.count = torch.zeros(copies, dtype=torch.long)

    def add(self, copy: int, clips: Tensor, preference: Tensor) -> None:
        """Append n comparisons of one learner: clips [n, 2, L, F], preference [n].

        A preference is 1 where the first clip won, 0 where the second did, ½ for a tie.

        Raises:
          ValueError: shapes do not fit, a preference leaves [0, 1], or it is full.
        """
        n, start = len(preference), int(self.count[copy])
        if clips.shape != (n, *self.clips.shape[2:]):
            want = [n, *self.clips.shape[2:]]
            raise ValueError(f"clips: want {want}, found {list(clips.shape)}")
        if n and not ((preference >= 0) & (preference <= 1)).all():
            raise ValueError("preference: want numbers from 0 to 1")
        if start + n > self.clips.shape[1]:
            raise ValueError(f"buffer: {start} + {n} > capacity {self.clips.shape[1]}")
        self.clips[copy, start : start + n] = clips
        self.preference[copy, start : start + n] = preference.float()
        self.count[copy] += n


class RewardEnsemble:
    """E networks for each of S learners, fitted to the learner's comparisons.

    Args:
      copies: S.
      features: F.
      generator: draws weights, and minibatches in `fit`.
      members: E.
      hidden: sizes of the hidden layers.
      lr, weight_decay: of AdamW.
    """

    def __init__(
        self,
        copies: int,
        features: int,
        generator: torch.Generator,
        members: int = 3,
        hidden: tuple[int, ...] = (32, 32),
        lr: float = 3e-3,
        weight_decay: float = 0.01,
    ):
        check_between(1, torch.inf, copies=copies, members=members)
        self.copies, self.members, self.generator = copies, members, generator
        self.net = StackedMLP(copies * members, (features, *hidden, 1), generator)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=lr, weight_decay=weight_decay
        )
        self.mean = torch.zeros(copies, 1)
        self.scale = torch.ones(copies, 1)

    def _raw(self, x: Tensor) -> Tensor:
        """[S, M, F] → [S, E, M], reward units of no particular scale."""
        x = x.repeat_interleave(self.members, 0)  # [S·E, M, F]
        return self.net(x)[..., 0].view(self.copies, self.members, -1)

    @torch.no_grad()
    def reward(self, reached: Tensor) -> Tensor:
        """Mean over the members, standardised, [S, ..., F] → [S, ...]."""
        r = self._raw(reached.flatten(1, -2)).mean(1)
        return ((r - self.mean) / self.scale).view(reached.shape[:-1])

    @torch.no_grad()
    def probabilities(self, copy: int, clips: Tensor) -> Tensor:
        """P(a ≻ b) by each member of one copy, [n, 2, L, F] → [E, n]."""
        check_ndim(4, clips=clips)
        n, _, length, _ = clips.shape
        mine = slice(copy * self.members, (copy + 1) * self.members)
        x = clips.flatten(0, 2).expand(self.members, -1, -1)
        r = self.net(x, mine)[..., 0].view(self.members, n, 2, length)
        sums = r.mean(-1) * SUM
        return torch.sigmoid(sums[..., 0] - sums[..., 1])

    def disagreement(self, copy: int, clips: Tensor) -> Tensor:
        """Standard deviation of P(a ≻ b) over the members of one copy, [n]."""
        return self.probabilities(copy, clips).std(0, correction=0)

    def fit(self, buffer: ComparisonBuffer, steps: int, batch: int = 64) -> float:
        """Some steps on minibatches, each member its own; returns the last loss.

        Copies without a comparison stay as they are.
        """
        s, e, loss = self.copies, self.members, torch.zeros(())
        has = (buffer.count > 0).float()[:, None, None]
        for _ in range(steps):
            u = torch.rand(s, e, batch, generator=self.generator)
            rows = (u * buffer.count[:, None, None]).long()
            picked = torch.arange(s)[:, None, None]
            clips = buffer.clips[picked, rows]  # [S, E, batch, 2, L, F]
            p = buffer.preference[picked, rows]
            length = clips.shape[-2]
            r = self.net(clips.flatten(2, 4).flatten(0, 1))[..., 0]
            sums = r.view(s, e, batch, 2, length).mean(-1) * SUM
            loss = (has * preference_loss(sums, p)).mean()
            self.optimizer.zero_grad(set_to_none=True)
            (loss * s * e).backward()
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def standardise(self, reached: Tensor) -> None:
        """Make the reward of these states mean 0 and variance 1, for each copy."""
        r = self._raw(reached.flatten(1, -2)).mean(1)
        self.mean = r.mean(1, keepdim=True)
        self.scale = r.std(1, keepdim=True).clamp(min=1e-3)


def preference_loss(sums: Tensor, preference: Tensor) -> Tensor:
    """Cross-entropy of soft preferences between two sums, [..., 2] and [...] → [...].

    L = −p log σ(a − b) − (1 − p) log σ(b − a)

    Raises:
      ValueError: shapes do not fit, or an entry is not finite.

    >>> preference_loss(torch.zeros(1, 2), torch.tensor([0.5])).item()  # log 2
    0.6931471824645996
    """
    a, b = sums[..., 0], sums[..., 1]
    check_same_shape(preference=preference, sums=a)
    p, first, second = preference.flatten(), a.flatten(), b.flatten()
    first_won = bradley_terry_loss(first, second)
    second_won = bradley_terry_loss(second, first)
    return (p * first_won + (1 - p) * second_won).view(preference.shape)
