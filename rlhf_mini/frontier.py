"""What a given KL can buy, in either direction of the KL.

The exact reward–KL frontier of E[r] − β KL(π‖π_ref), and the optimum of the other
objective, E[r] − β KL(π_ref‖π), which is what one gets by turning the divergence round.
Laws are log-probabilities, as in exact.py.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_finite,
    check_law,
    check_ndim,
    check_outcomes,
    check_positive,
)
from rlhf_mini.exact import optimal_policy

INF = math.inf


class Frontier(NamedTuple):
    """Points of the frontier, one per β; the slope of the curve there is β."""

    beta: Tensor  # [n], reward per nat
    logp: Tensor  # [n, K], log π*_β
    kl: Tensor  # [n], KL(π*_β‖π_ref), nats
    reward: Tensor  # [n], E_{π*_β}[r], reward units


def reward_kl_frontier(
    ref_logp: Tensor, rewards: Tensor, betas: Iterable[float]
) -> Frontier:
    """The reward–KL frontier: what π* earns and how far it goes, for each β.

    β ↦ (KL(π*_β‖π_ref), E_{π*_β}[r]),  π*_β ∝ π_ref exp(r/β)
    No policy has more reward at the same KL, and the curve's slope at β is β itself.

    Args:
      ref_logp: log π_ref, nats, [K]; may be −inf.
      rewards: r, reward units, [K].
      betas: weights, each > 0, reward per nat; in any order, which is kept.

    Returns:
      A `Frontier`, no gradient.

    Raises:
      ValueError: not one axis; no β; or as `exact.optimal_policy`.

    Source: the curve "optimal" of Ziegler et al. (2019), "Fine-tuning language models
    from human preferences", by enumeration.

    >>> half, r = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 3.0]).log()
    >>> points = reward_kl_frontier(half, r, [1.0])   # π* = (¼, ¾)
    >>> round(points.kl.item(), 4)   # ¼ ln ½ + ¾ ln 3/2
    0.1308
    """
    check_ndim(1, ref_logp=ref_logp, rewards=rewards)
    ref_logp, rewards = ref_logp.detach(), rewards.detach()
    betas = [float(b) for b in betas]
    if not betas:
        raise ValueError("betas: want at least one, found none")
    logp = torch.stack([optimal_policy(ref_logp, rewards, b) for b in betas])
    probs, inside = logp.exp(), ref_logp > -INF
    kl = (probs * torch.where(inside, logp - ref_logp, 0.0)).sum(-1)
    reward = (probs * torch.where(inside, rewards, 0.0)).sum(-1)
    return Frontier(torch.tensor(betas, dtype=logp.dtype), logp, kl, reward)


def beta_for_kl(ref_logp: Tensor, rewards: Tensor, kl: float) -> float:
    """The β whose optimum spends exactly this KL.

    Solves KL(π*_β‖π_ref) = kl. It falls as β grows, from log 1/π_ref(best) to 0.

    Args:
      ref_logp: log π_ref, nats, [K]; may be −inf.
      rewards: r, reward units, [K]; not all equal where π_ref has mass.
      kl: nats, > 0 and below log 1/π_ref(outcomes of the highest reward).

    Returns:
      β, reward per nat.

    Raises:
      ValueError: no β has this KL; or as `reward_kl_frontier`.

    >>> half, r = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 3.0]).log()
    >>> kl = reward_kl_frontier(half, r, [1.0]).kl.item()
    >>> round(beta_for_kl(half, r, kl), 4)
    1.0
    """
    check_positive(kl=kl)
    ref_logp, rewards = ref_logp.detach().double(), rewards.detach().double()
    reward_kl_frontier(ref_logp, rewards, [1.0])  # every check but that of kl
    inside = ref_logp > -INF
    best = inside & (rewards == rewards[inside].max())
    ceiling = -ref_logp[best].logsumexp(0).item()
    # at least eight digits of distance, or β is lost in rounding
    if not kl < ceiling * (1 - 1e-8):
        found = f"{kl:.6g}, where the best outcomes alone have {ceiling:.6g}"
        raise ValueError(f"kl: want less than all that can be spent, found {found}")
    spread = (rewards[inside].max() - rewards[inside].min()).item()
    ref, r = ref_logp[inside], rewards[inside]
    low, high = math.log(spread) - 40, math.log(spread) + 40  # of log β
    for _ in range(100):
        middle = (low + high) / 2
        logp = torch.log_softmax(ref + r / math.exp(middle), -1)
        spent = (logp.exp() * (logp - ref)).sum().item()
        low, high = (middle, high) if spent > kl else (low, middle)
    return math.exp((low + high) / 2)


def forward_objective(
    logp: Tensor, ref_logp: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """The objective with the divergence turned round: KL(π_ref‖π), not KL(π‖π_ref).

    F(π) = Σ_y π(y) r(y) − β Σ_y π_ref(y) log(π_ref(y)/π(y))
    It charges nothing for mass that π puts where π_ref has none, so all rewards count.

    Args:
      logp: log π, nats, [..., K].
      ref_logp: log π_ref, nats, [..., K]; may be −inf.
      rewards: r, reward units, [..., K], finite outside the support too.
      beta: β, reward per nat.

    Returns:
      F, reward units, [...], differentiable; −inf if π starves what π_ref does.

    Raises:
      ValueError: shapes do not fit, no law, a reward is not finite, or beta ≤ 0.

    >>> half, sure = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    >>> r = torch.tensor([0.0, 1.0])
    >>> forward_objective(half, half, r, beta=3.0).item()   # no KL is spent
    0.5
    >>> forward_objective(half, sure, r, beta=3.0).item()   # ½ − 3 ln 2
    -1.5794415473937988
    """
    _check(beta, rewards, logp=logp, ref_logp=ref_logp)
    inside = ref_logp > -INF
    ratio = torch.where(inside, ref_logp - logp, 0.0)
    return (logp.exp() * rewards).sum(-1) - beta * (ref_logp.exp() * ratio).sum(-1)


class ForwardOptimum(NamedTuple):
    """The optimum of the turned-round objective, and the pole of its hyperbola."""

    logp: Tensor  # [..., K], nats
    pole: Tensor  # [...], reward units: π = β π_ref/(pole − r), pole ≥ every reward


def forward_optimum(ref_logp: Tensor, rewards: Tensor, beta: float) -> ForwardOptimum:
    """The law that maximises E[r] − β KL(π_ref‖π): a hyperbola, and perhaps a leak.

    π(y) = β π_ref(y)/(λ − r(y)) where π_ref(y) > 0,  λ > max r, fixed by Σ π = 1.
    If an outcome *outside* the support pays more than that λ, then λ is its reward, and
    what the hyperbola leaves of the 1 goes there: the divergence does not forbid it.

    Args:
      ref_logp: log π_ref, nats, [..., K]; may be −inf.
      rewards: r, reward units, [..., K], finite outside the support too.
      beta: β, reward per nat.

    Returns:
      A `ForwardOptimum`, no gradient; equal best outcomes outside share equally.

    Raises:
      ValueError: as `forward_objective`.

    Source: Lagrange's conditions; derived in notebook 04.

    >>> half_half_never = torch.tensor([0.5, 0.5, 0.0]).log()
    >>> r = torch.tensor([0.0, 0.2, 1.0])
    >>> forward_optimum(half_half_never, r, beta=0.3).logp.exp()   # .15/1, .15/.8
    tensor([0.1500, 0.1875, 0.6625])
    """
    _check(beta, rewards, ref_logp=ref_logp)
    ref_logp, rewards = torch.broadcast_tensors(ref_logp.detach(), rewards.detach())
    inside = ref_logp > -INF
    top = rewards.masked_fill(~inside, -INF).amax(-1, keepdim=True)
    below = (top - rewards).clamp(min=0.0)  # what an outcome inside lacks of the best
    # λ − max r lies in [β π_ref(best), β]: the sum is ≥ 1 at the one, ≤ 1 at the other
    best = (inside & (below == 0)).to(ref_logp.dtype)
    low = (beta * (ref_logp.exp() * best).sum(-1, keepdim=True)).log()
    high = torch.full_like(low, math.log(beta))
    for _ in range(100):
        middle = (low + high) / 2
        mass = _hyperbola(ref_logp, below, middle, beta).sum(-1, keepdim=True)
        low = torch.where(mass > 1, middle, low)
        high = torch.where(mass > 1, high, middle)
    outside = rewards.masked_fill(inside, -INF).amax(-1, keepdim=True)
    excess = torch.maximum(((low + high) / 2).exp(), outside - top)
    probs = _hyperbola(ref_logp, below, excess.log(), beta).where(inside, 0.0)
    leaks = outside - top >= excess
    total = probs.sum(-1, keepdim=True)
    probs = torch.where(leaks, probs, probs / total)
    paid = (~inside & (rewards == outside)).to(probs.dtype)
    share = (1 - total).clamp(min=0.0) * paid / paid.sum(-1, keepdim=True).clamp(min=1)
    probs = torch.where(leaks, probs + share, probs)
    return ForwardOptimum(probs.log(), (top + excess)[..., 0])


def _hyperbola(ref_logp: Tensor, below: Tensor, log_excess: Tensor, beta: float):
    """β π_ref/(λ − r), with λ − r = (λ − max r) + (max r − r)."""
    return beta * ref_logp.exp() / (log_excess.exp() + below)


def _check(beta: float, rewards: Tensor, **laws: Tensor) -> None:
    check_positive(beta=beta)
    check_law(**laws)
    check_outcomes(**laws, rewards=rewards)
    check_finite(rewards=rewards)
