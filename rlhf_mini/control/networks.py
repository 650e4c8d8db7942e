"""Small networks, many copies at once: one batched product trains every seed.

A parameter has a leading axis of S copies, which never meet: copy s sees row s of the
input and its own gradient. That is how a page of experiments over twenty seeds and
eight conditions fits into a minute on one core.
"""

import math

import torch
from torch import Tensor, nn

from rlhf_mini.checks import check_ndim, check_same_shape

LOG_2PI = math.log(2 * math.pi)
ALL = slice(None)


class StackedMLP(nn.Module):
    """S separate networks with tanh layers, [S, N, inputs] → [S, N, outputs]."""

    def __init__(
        self,
        copies: int,
        sizes: tuple[int, ...],
        generator: torch.Generator,
        last_gain: float = 1.0,
    ):
        """
        Args:
          copies: S.
          sizes: inputs, hidden layers, outputs.
          generator: draws the weights.
          last_gain: factor on the last layer's first weights; a small one starts every
            copy at an output near 0.
        """
        super().__init__()
        self.copies = copies
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (rows, columns) in enumerate(zip(sizes, sizes[1:], strict=False)):
            gain = last_gain if i == len(sizes) - 2 else 1.0
            w = torch.randn(copies, rows, columns, generator=generator)
            self.weights.append(nn.Parameter(w * gain / rows**0.5))
            self.biases.append(nn.Parameter(torch.zeros(copies, 1, columns)))

    def forward(self, x: Tensor, copies: slice = ALL) -> Tensor:
        """Of all copies, or of some: then x has a row for each of those."""
        check_ndim(3, x=x)
        last = len(self.weights) - 1
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(b[copies], x, w[copies])  # [S, N, columns]
            x = x if i == last else torch.tanh(x)
        return x


class GaussianPolicy(nn.Module):
    """a ~ N(μ(s), σ²): the mean from a network, one σ for each action.

    The environment clips an action to its range. The policy does not know of it, and
    must not: `logp` is that of the action before clipping, in sampling and in training.
    """

    def __init__(
        self,
        copies: int,
        observations: int,
        actions: int,
        generator: torch.Generator,
        hidden: tuple[int, ...] = (64, 64),
        std: float = 0.6,
    ):
        super().__init__()
        sizes = (observations, *hidden, actions)
        self.mean = StackedMLP(copies, sizes, generator, last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((copies, 1, actions), math.log(std)))

    def logp(self, observations: Tensor, actions: Tensor) -> Tensor:
        """log N(a; μ(s), σ²) in nats, [S, N], of [S, N, O] and [S, N, A].

        log π(a|s) = −½ Σ_i ((aᵢ − μᵢ)/σᵢ)² − Σ_i log σᵢ − (A/2) log 2π
        A density: it may be above 0.

        Raises:
          ValueError: the actions' shape is not that of the mean.
        """
        mean = self.mean(observations)
        check_same_shape(mean=mean, actions=actions)
        z = (actions - mean) * torch.exp(-self.log_std)
        return (-0.5 * (z.square() + LOG_2PI) - self.log_std).sum(-1)

    @torch.no_grad()
    def sample(
        self, observations: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """(actions [S, N, A], logp [S, N]); without a generator the mean itself."""
        mean = self.mean(observations)
        z = torch.zeros_like(mean)
        if generator is not None:
            z = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        actions = mean + z * self.log_std.exp()
        logp = (-0.5 * (z.square() + LOG_2PI) - self.log_std).sum(-1)
        return actions, logp

    def entropy(self) -> Tensor:
        """Of the law at any state, nats, [S]: Σ_i log σᵢ + (A/2) log 2πe."""
        each = self.log_std + 0.5 * (LOG_2PI + 1)
        return each.sum((-2, -1)).detach()
