"""Rewards that contain log π: what a gradient that treats them as constants forgets.

A penalty is a function f of the log-ratio u = log π(y)/π_ref(y), subtracted from the
reward. The expected penalty depends on θ twice: through the law that is averaged over,
and through f. Policy gradient uses the first part only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_finite,
    check_law,
    check_log_values,
    check_outcomes,
    check_positive,
)

INF = math.inf


class PenaltyGradient(NamedTuple):
    """The two parts of ∇E_π[f]; their sum is the whole gradient. [..., K] each."""

    score: Tensor  # E_π[f ∇log π], what policy gradient uses
    neglected: Tensor  # E_π[∇f], what it leaves out


def penalty_gradient(
    logits: Tensor, ref_logp: Tensor, penalty: Callable[[Tensor], Tensor]
) -> PenaltyGradient:
    """The exact gradient of an expected penalty, in its two parts.

    ∇E_π[f(u)] = E_π[f(u) ∇log π] + E_π[f′(u) ∇log π],  u = log π(y)/π_ref(y)
    For softmax logits E_π[c ∇log π]_y = π(y)[c(y) − E_π c], so the second part is zero
    when f′ is the same number everywhere: f = a·u + b, the KL penalty.

    Args:
      logits: θ, [..., K]; −inf for an action that is masked out.
      ref_logp: log π_ref, nats, [..., K]; finite where π has mass.
      penalty: f, of log-ratios, entry by entry, differentiable; reward units.

    Returns:
      A `PenaltyGradient`, reward units.

    Raises:
      ValueError: shapes do not fit; ref_logp is no law; π has mass where π_ref has
        none; the penalty returns another shape, or its value is not finite.

    Source: the product rule; notebook 04.

    >>> logits, ref_logp = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    >>> penalty_gradient(logits, ref_logp, lambda u: u).neglected   # f′ = 1 everywhere
    tensor([0., 0.])
    >>> penalty_gradient(logits, ref_logp, torch.exp).neglected  # f′ = w = (1½, ½)
    tensor([ 0.1875, -0.1875])
    """
    check_log_values(logits=logits)
    check_law(ref_logp=ref_logp)
    check_outcomes(logits=logits, ref_logp=ref_logp)
    logp = logits.detach().log_softmax(-1)
    ref_logp = ref_logp.detach()
    inside = logp > -INF
    if (inside & (ref_logp == -INF)).any():
        raise ValueError("logits: found mass where ref_logp is -inf: no finite ratio")
    log_ratio = torch.where(inside, logp - ref_logp, 0.0)
    with torch.enable_grad():
        log_ratio.requires_grad_()
        value = penalty(log_ratio)
        if value.shape != log_ratio.shape:
            found = f"{list(value.shape)} from {list(log_ratio.shape)}"
            raise ValueError(f"penalty: want one number per log-ratio, found {found}")
        (slope,) = (
            torch.autograd.grad(value.sum(), log_ratio)
            if value.requires_grad
            else (torch.zeros_like(log_ratio),)  # a constant
        )
    check_finite(penalty=value.detach(), slope=slope)
    return PenaltyGradient(_score(logp, value.detach()), _score(logp, slope))


def frozen_objective(
    logp: Tensor, old_logp: Tensor, ref_logp: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """What PPO climbs when the KL in its reward was computed once, by the old policy.

    L(π) = E_old[(π/π_old) (r − β log π_old/π_ref)] = J(π) + β KL(π‖π_old)
    Linear in π: it has no interior maximum, whatever β. Clipping is left out here.

    Args:
      logp: log π, nats, [..., K]; may be −inf.
      old_logp: log π_old of the policy that sampled, nats, [..., K].
      ref_logp: log π_ref, nats, [..., K].
      rewards: r, reward units, [..., K].
      beta: β, reward per nat.

    Returns:
      L, reward units, [...], differentiable in logp only.

    Raises:
      ValueError: shapes do not fit; no law; a reward is not finite; beta ≤ 0; π has
        mass where π_old has none, or π_old where π_ref has none.

    Source: Schulman et al. (2017), eq. 6, with the reward of Ziegler et al. (2019).

    >>> old, ref = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    >>> r = torch.tensor([0.0, 1.0])
    >>> loss = frozen_objective(ref, old, ref, r, beta=1.0)
    >>> round(loss.item(), 4)   # ½ (0 − ln 3/2) + ½ (1 − ln 1/2)
    0.6438
    """
    check_positive(beta=beta)
    laws = {"logp": logp, "old_logp": old_logp, "ref_logp": ref_logp}
    check_law(**laws)
    check_outcomes(**laws, rewards=rewards)
    check_finite(rewards=rewards)
    if ((logp > -INF) & (old_logp == -INF)).any():
        raise ValueError("logp: found mass where old_logp is -inf: never sampled")
    if ((old_logp > -INF) & (ref_logp == -INF)).any():
        raise ValueError("old_logp: found mass where ref_logp is -inf: infinite KL")
    sampled = old_logp > -INF
    log_ratio = torch.where(sampled, old_logp - ref_logp, 0.0).detach()
    return (logp.exp() * (rewards - beta * log_ratio).detach()).sum(-1)


def _score(logp: Tensor, coefficient: Tensor) -> Tensor:
    """E_π[c ∇log π] for softmax logits: π (c − E_π c)."""
    probs = logp.exp()
    return probs * (coefficient - (probs * coefficient).sum(-1, keepdim=True))
