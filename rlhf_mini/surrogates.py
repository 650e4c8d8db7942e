"""PPO's surrogates without sampling noise: who is silenced, and which mean is taken.

The losses of losses.py take a mean over a batch. Where every outcome can be listed, a
list is a batch: weigh its advantages with the law that would have sampled them
(`weigh_by_law`), and the same loss returns its exact expectation. What a mean over
tokens does to answers of different lengths is computed here too, for any batch size.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_finite,
    check_inputs,
    check_law,
    check_ndim,
    check_outcomes,
    check_positive,
)
from rlhf_mini.losses import _exp
from rlhf_mini.masking import zero_pads

INF = math.inf


def weigh_by_law(advantages: Tensor, logp: Tensor, mask: Tensor | None = None):
    """Advantages with which a list of all outcomes is worth an infinite batch.

    A′ = p(y) · A · n,  n = number of unmasked entries of the list
    A surrogate is homogeneous in A, min(ρ·cA, clip(ρ)·cA) = c·min(ρA, clip(ρ)A) for
    c ≥ 0, so the loss of the weighted list, a mean over n entries, is Σ_y p(y) Σ_t of
    the elementwise loss: per answer, not per token. p is the law that *samples*.

    Args:
      advantages: of the listed outcomes, [M] or [M, T], reward units.
      logp: log p(y) of each listed outcome, a law, nats, [M]; may be −inf.
      mask: 0/1, shaped as the advantages, or None for all ones.

    Returns:
      Weighted advantages, shaped as advantages, detached; pads 0.

    Raises:
      ValueError: shapes do not fit, the mask is empty, logp is no law, or an unmasked
        advantage is not finite.

    Source: the linearity of expectation; notebook 07.

    >>> logp = torch.tensor([0.75, 0.25]).log()
    >>> weigh_by_law(torch.tensor([1.0, 4.0]), logp)   # ¾·1·2, ¼·4·2
    tensor([1.5000, 2.0000])
    """
    check_ndim(1, logp=logp)
    check_law(logp=logp)
    if advantages.ndim not in (1, 2) or len(advantages) != len(logp):
        found = f"advantages {list(advantages.shape)}, logp {list(logp.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    check_inputs(mask, advantages=advantages)
    (advantages,) = zero_pads(mask, advantages.detach())
    count = advantages.numel() if mask is None else int(mask.bool().sum())
    p = logp.detach().exp()
    return count * advantages * (p if advantages.ndim == 1 else p[:, None])


def silenced(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    clip_eps: float = 0.2,
) -> Tensor:
    """Where PPO's clip takes the gradient away.

    (A > 0 and ρ > 1+ε) or (A < 0 and ρ < 1−ε),  where ρ = π/π_old
    Fewer tokens than `losses.clip_fraction` counts: it counts those too that lie
    outside against their advantage, and their gradient is whole.

    Args:
      logp: log π of the actions in nats, [...].
      old_logp: log π_old, [...].
      advantages: [...], reward units.
      mask: 0/1, [...], or None for all ones.
      clip_eps: ε > 0.

    Returns:
      Booleans, [...]; pads False.

    Raises:
      ValueError: as `losses.ppo_clip_loss`.

    Source: Schulman et al. (2017), arXiv 1707.06347, figure 1.

    >>> old_logp = torch.tensor([0.25, 0.25]).log()
    >>> silenced(torch.tensor([0.5, 0.5]).log(), old_logp, torch.tensor([1.0, -1.0]))
    tensor([ True, False])
    """
    check_inputs(mask, logp=logp, old_logp=old_logp, advantages=advantages)
    check_positive(clip_eps=clip_eps)
    logp, old_logp, advantages = zero_pads(
        mask, logp.detach(), old_logp.detach(), advantages.detach()
    )
    ratio = _exp(logp - old_logp, "π/π_old")
    too_high = (advantages > 0) & (ratio > 1 + clip_eps)
    return too_high | ((advantages < 0) & (ratio < 1 - clip_eps))


def token_mean_weights(length_probs: Tensor, batch: int) -> Tensor:
    """What each token of an answer weighs on average in one mean over a batch's tokens.

    w_B(l) = B · E[1/(l + S)],  S = tokens of the other B − 1 answers
    Σᵢ gᵢ/Σⱼ|yⱼ| has the expectation E[w_B(|y|) g(y)]. A batch of one is the mean per
    sequence, w = 1/l; an endless one is a constant, w = 1/E|y|. So a token mean over
    microbatches is not the token mean over their union.

    Args:
      length_probs: P(|y| = 1), …, P(|y| = T) of the policy that samples, [T].
      batch: B ≥ 1 independent answers.

    Returns:
      w_B(1), …, w_B(T), per token, [T].

    Raises:
      ValueError: not one axis, no law, or batch is no whole number ≥ 1.

    Source: own derivation; the losses compared in Liu et al. (2025), arXiv 2503.20783.

    >>> one_or_two = torch.tensor([0.5, 0.5])
    >>> token_mean_weights(one_or_two, batch=1)
    tensor([1.0000, 0.5000])
    >>> token_mean_weights(one_or_two, batch=2)   # 2·(½·½ + ½·⅓), 2·(½·⅓ + ½·¼)
    tensor([0.8333, 0.5833])
    """
    check_ndim(1, length_probs=length_probs)
    check_law(length_probs=length_probs.log())
    if isinstance(batch, bool) or int(batch) != batch or batch < 1:
        raise ValueError(f"batch: want a whole number ≥ 1, found {batch}")
    lengths = np.arange(1, len(length_probs) + 1)
    others = _power(length_probs.detach().double().numpy(), int(batch) - 1)
    total = (batch - 1) + np.arange(len(others))  # the fewest tokens: one each
    weights = batch * (others / (lengths[:, None] + total)).sum(-1)
    return torch.from_numpy(weights).to(length_probs)


def _power(law: np.ndarray, n: int) -> np.ndarray:
    """The law of a sum of n, less its smallest value; by repeated squaring."""
    result, square = np.ones(1), law
    while n:
        if n % 2:
            result = np.convolve(result, square)
        n //= 2
        if n:
            square = np.convolve(square, square)
    return result


class LengthPriced(NamedTuple):
    """An optimum that pays a price per token, and the price."""

    logp: Tensor  # [K], nats
    price: float  # reward units per token; negative: paid to the answer


def sequence_mean_optimum(
    ref_logp: Tensor,
    rewards: Tensor,
    lengths: Tensor,
    beta: float,
    baseline: float = 0.0,
) -> LengthPriced:
    """Where policy gradient stops if each answer's loss is divided by its length.

    π(y) = π_ref(y) exp((r(y) − b − c·|y|)/β),  c fixed by Σ_y π = 1
    There (R − b)/|y| = c for every answer, R = r − β log π/π_ref, and a constant has no
    gradient. c has the sign of E_π[R] − b: it is a tax on length if answers earn more
    than the baseline, a subsidy if less, and 0 (so π = π*) if b = E_π[R].

    Args:
      ref_logp: log π_ref of every answer, nats, [K].
      rewards: r, reward units, [K].
      lengths: |y| ≥ 1 in tokens, [K].
      beta: β, reward units per nat.
      baseline: b, one number that does not move, reward units.

    Returns:
      `LengthPriced`, no gradient.

    Raises:
      ValueError: not one axis, shapes differ, no law, an entry is not finite, a length
        below 1, or beta ≤ 0.

    Source: own derivation; the bias is that of Liu et al. (2025), arXiv 2503.20783.

    >>> half, r = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 0.0])
    >>> short_and_long = torch.tensor([1.0, 2.0])
    >>> found = sequence_mean_optimum(half, r, short_and_long, 1.0, baseline=-1.0)
    >>> found.logp.exp()   # x + x² = 2/e, x = e⁻ᶜ: one token has ½·e·x
    tensor([0.6699, 0.3301])
    """
    check_ndim(1, ref_logp=ref_logp, rewards=rewards, lengths=lengths)
    check_law(ref_logp=ref_logp)
    check_outcomes(ref_logp=ref_logp, rewards=rewards, lengths=lengths)
    check_finite(rewards=rewards, lengths=lengths)
    check_positive(beta=beta)
    if lengths.min() < 1:
        raise ValueError(f"lengths: want all ≥ 1, found {lengths.min().item():g}")
    logits = ref_logp.detach() + (rewards.detach() - baseline) / beta

    def log_mass(price):
        return torch.logsumexp(logits - price * lengths / beta, -1).item()

    # every length is ≥ 1, so a price of β·|log mass| is never too small
    reach = beta * abs(log_mass(0.0)) + 1e-9
    low, high = -reach, reach
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if log_mass(middle) > 0 else (low, middle)
    price = (low + high) / 2
    return LengthPriced((logits - price * lengths / beta).log_softmax(-1), price)


def decay_for_age(age: float) -> float:
    """Decay of an exponentially weighted mean whose weights are `age` steps old.

    x̄ ← d·x̄ + (1 − d)·x has the mean age d/(1 − d) in steps, so d = age/(1 + age)
    When a batch is cut into c parts, a step is c times shorter: ask for c · age.

    Args:
      age: mean age in steps, ≥ 0; 0 is the newest value only.

    Returns:
      d, 0 ≤ d < 1.

    Raises:
      ValueError: age is not a finite number ≥ 0.

    Source: Hilton et al. (2021), arXiv 2110.00641, PPO-EWMA.

    >>> decay_for_age(3)
    0.75
    """
    if not 0 <= age < INF:
        raise ValueError(f"age: want a finite number ≥ 0, found {age}")
    return age / (1 + age)
