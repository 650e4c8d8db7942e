"""One dataclass from sampling to loss, and the function that fills it.

Data flows one way: prompts → `Rollout` → rewards → advantages → loss.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from time import perf_counter

import torch
from torch import Tensor

from .checks import check_ndim, check_same_shape


@dataclass(frozen=True)
class Rollout:
    """A batch of answers and what is known of each token.

    All [B, T] fields speak of the answer's tokens, never of the prompt. `mask` is 1
    where a token was chosen by the policy, the end token included, and 0 on pads.
    """

    prompts: Tensor  # [B, P] token ids, padded on the left; or [B] states of a world
    tokens: Tensor  # [B, T] the actions
    mask: Tensor  # [B, T] bool
    logp: Tensor  # [B, T] nats, of the policy that sampled
    entropy: Tensor  # [B, T] nats, of its law at each token
    ref_logp: Tensor | None = None  # [B, T] nats, of the reference
    values: Tensor | None = None  # [B, T] reward units, before each token
    scores: Tensor | None = None  # [B] reward units, of the whole answer

    def __post_init__(self):
        check_ndim(2, tokens=self.tokens)
        check_same_shape(
            tokens=self.tokens, mask=self.mask, logp=self.logp, entropy=self.entropy,
            ref_logp=self.ref_logp, values=self.values,
        )  # fmt: skip
        # scores [B, 1] would broadcast against [B] to [B, B], in silence
        if self.scores is not None:
            check_same_shape(scores=self.scores, rows=self.tokens[:, 0])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index) -> Rollout:
        """The same rollout for some rows: a slice, or a tensor of row numbers."""
        return self._map(lambda x: x[index])

    def to(self, device) -> Rollout:
        """A copy on the device."""
        return self._map(lambda x: x.to(device))

    def kl_to_ref(self) -> Tensor:
        """Σ_t log π − log π_ref of each answer, [B] nats: k1 of the sequence."""
        return torch.where(self.mask, self.logp - self.ref_logp, 0.0).sum(-1)

    def _map(self, f) -> Rollout:
        given = {k.name: getattr(self, k.name) for k in fields(self)}
        return replace(self, **{k: f(x) for k, x in given.items() if x is not None})


class Clock:
    """Seconds by part: `with clock("sample"): …` adds up under `seconds_sample`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str):
        began = perf_counter()
        yield
        name = f"seconds_{part}"
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - began


def concatenate(rollouts: list[Rollout]) -> Rollout:
    """One rollout of all the rows; fields that are None stay None."""
    names = [f.name for f in fields(Rollout)]
    columns = {n: [getattr(r, n) for r in rollouts] for n in names}
    return Rollout(
        **{n: None if c[0] is None else torch.cat(c) for n, c in columns.items()}
    )


@torch.no_grad()
def collect(
    policy,
    prompts: Tensor,
    generator: torch.Generator,
    *,
    reference=None,
    critic=None,
    score: Callable[[Rollout], Tensor] | None = None,
    batch_size: int = 256,
    clock: Clock | None = None,
) -> Rollout:
    """Sample one answer per prompt, then ask reference, critic and scorer about it.

    No gradient is kept: the log-probabilities are those of the sampling pass itself.

    Args:
      policy: has `.sample(prompts, generator) -> Rollout`.
      prompts: [B, P] or [B]; repeat a row to get several answers to it.
      reference: has `.logp(prompts, tokens, mask) -> [B, T]`.
      critic: called as `critic(prompts, tokens, mask) -> [B, T]`.
      score: called with the rollout, returns [B].
      batch_size: rows that are sampled at once.
      clock: takes the time of each part, if given.
    """
    clock, parts = clock or Clock(), []
    for chunk in prompts.split(batch_size):
        with clock("sample"):
            r = policy.sample(chunk, generator)
        if reference is not None:
            with clock("reference"):
                r = replace(r, ref_logp=reference.logp(r.prompts, r.tokens, r.mask))
        if critic is not None:
            with clock("critic"):
                r = replace(r, values=critic(r.prompts, r.tokens, r.mask))
        if score is not None:
            with clock("score"):
                r = replace(r, scores=score(r))
        parts.append(r)
    return concatenate(parts)
