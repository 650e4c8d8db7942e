"""What a group method climbs on average: expectations over whole groups, exactly.

A group method draws G answers to one prompt and gives answer i the coefficient c_i, a
function of the *whole group*. All answers are drawn alike, so the expected gradient is

    E[1/G Σᵢ cᵢ ∇log π(yᵢ)] = E_y[c̄(y) ∇log π(y)],  c̄(y) = E[c₁ | y₁ = y].

So everything a method does on average stands in the function c̄, and c̄ is a finite sum:
over what the other G − 1 answers may be. It may be handed on to `tree_gradients.py`.

For rewards 0 and 1 with success rate p the sum is over one number, how many are right,
and c̄(1) − c̄(0) = w is the *weight of the prompt*: E[ĝ] = w ∇p.
"""

import math
from collections.abc import Callable
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_between,
    check_finite,
    check_law,
    check_ndim,
    check_outcomes,
)

INF = math.inf
MOST = 10**6  # groups that are listed


def expected_coefficients(
    logp: Tensor, coefficients: Callable[[Tensor], Tensor], group: int
) -> Tensor:
    """The mean coefficient of an answer, over all groups that it may stand in.

    c̄(y) = Σ_{y₂…y_G} π(y₂) … π(y_G) c₁(y, y₂, …, y_G)
    The others are listed without their order, so c₁ must not depend on it.

    Args:
      logp: log π over K outcomes, nats, [K]; may be −inf.
      coefficients: maps groups of outcome numbers [M, G] to coefficients [M, G].
      group: G ≥ 2.

    Returns:
      c̄, the unit of the coefficients, [K], no gradient.

    Raises:
      ValueError: not one axis, no law, G not a whole number ≥ 2, more than 10⁶ groups,
        or coefficients of a wrong shape or not finite.

    Source: Kool et al. (2019) for RLOO; the reduction to one answer is own.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> expected_coefficients(half, lambda y: y.sum(-1, keepdim=True) + 0.0 * y, 3)
    tensor([1., 2.])
    """
    check_ndim(1, logp=logp)
    check_law(logp=logp)
    _check_group(group)
    logp = logp.detach()
    alive = (logp > -INF).nonzero()[:, 0]
    count = len(logp) * math.comb(group - 2 + len(alive), group - 1)
    if count > MOST:
        raise ValueError(f"group: want at most {MOST} groups to list, found {count}")
    chosen = list(combinations_with_replacement(alive.tolist(), group - 1))
    others = torch.tensor(chosen, device=logp.device)  # [R, G − 1]
    times = torch.nn.functional.one_hot(others, len(logp)).sum(1).to(logp.dtype)
    orders = math.lgamma(group) - torch.lgamma(times + 1).sum(-1)
    chance = (orders + logp[others].sum(-1)).exp()  # [R]
    me = torch.arange(len(logp), device=logp.device)
    groups = torch.cat(
        [
            me.repeat_interleave(len(others))[:, None],
            others.repeat(len(logp), 1),
        ],
        1,
    )
    c = coefficients(groups)
    if c.shape != groups.shape:
        found = f"{list(c.shape)} from {list(groups.shape)}"
        raise ValueError(f"coefficients: want one number per answer, found {found}")
    check_finite(coefficients=c)
    return c[:, 0].detach().view(len(logp), -1) @ chance.to(c.dtype)


def expected_advantages(
    logp: Tensor, rewards: Tensor, advantage: Callable[[Tensor], Tensor], group: int
) -> Tensor:
    """The mean advantage of each answer under a group method of advantages.py.

    Ā(y) = E[A₁ | y₁ = y];  E[ĝ] = E_π[Ā(y) ∇log π(y)]
    Answers of equal reward are merged first: only levels of reward are listed.

    Args:
      logp: log π, nats, [K]; may be −inf.
      rewards: r(y), reward units, [K].
      advantage: maps rewards of groups [M, G] to advantages [M, G], such as
        `leave_one_out`.
      group: G ≥ 2.

    Returns:
      Ā, the unit of the advantages, [K], no gradient.

    Raises:
      ValueError: as `expected_coefficients`, shapes differ, or a reward is not finite.

    Source: own derivation (notebook 09).

    >>> from rlhf_mini.advantages import group_centered
    >>> third = torch.tensor([1.0, 1.0, 1.0]).log_softmax(-1)
    >>> r = torch.tensor([0.0, 0.0, 3.0])
    >>> expected_advantages(third, r, group_centered, group=2)   # ½ (r − 1)
    tensor([-0.5000, -0.5000,  1.0000])
    """
    check_ndim(1, logp=logp, rewards=rewards)
    check_law(logp=logp)
    check_outcomes(logp=logp, rewards=rewards)
    check_finite(rewards=rewards)
    levels, level = rewards.detach().unique(return_inverse=True)
    mass = torch.zeros_like(levels, dtype=logp.dtype)
    law = mass.index_add(0, level, logp.detach().exp()).log()
    return expected_coefficients(law, lambda y: advantage(levels[y]), group)[level]


def prompt_weight(p: Tensor | float, group: int, eps: float = 0.0) -> Tensor:
    """c_G(p): by what GRPO's std multiplies a prompt's gradient, for rewards 0 and 1.

    E[ĝ] = c_G(p) ∇p,  c_G(p) = E[√(K(G−K))]/(G p(1−p)),  K ~ Bin(G, p)
    1 at G = 2 whatever p; √(G−1) as p → 0 or 1; 1/√(p(1−p)) as G → ∞. RLOO has 1 and
    the mean alone (G−1)/G. With a std of 1/(G−1), as torch.std has it, the weight is
    √((G−1)/G) of this one.

    Args:
      p: success rate of the prompt, [...], 0 ≤ p ≤ 1.
      group: G ≥ 2, or math.inf.
      eps: ε added to the std, ≥ 0.

    Returns:
      The weight, [...], float64, differentiable.

    Raises:
      ValueError: p outside [0, 1], eps < 0, or G not a whole number ≥ 2.

    Source: Mroueh (2025), arXiv 2503.06639, for G = ∞; finite G is own.

    >>> prompt_weight(torch.tensor([0.5, 0.01]), group=2).tolist()
    [1.0, 1.0]
    >>> round(prompt_weight(0.0, group=5).item(), 4)   # √4
    2.0
    """
    p = _rate(p)
    check_between(0, INF, eps=eps)
    if group == INF:
        return 1 / ((p * (1 - p)).sqrt() + eps)
    k, inner = _inner(p, group)
    std = (k * (group - k)).sqrt() / group
    return (inner * std.square() / (std + eps)).sum(-1)


def prompt_objective(p: Tensor | float, group: int) -> Tensor:
    """What GRPO climbs instead of the success rate p: the integral of c_G.

    F_G(p) = ∫₀ᵖ c_G = E[h(M)],  M ~ Bin(G−1, p),  h(m) = Σ_{k≤m} 1/√(k(G−k))
    p itself at G = 2, and 2 arcsin √p as G → ∞. (RLOO climbs p at every G.)

    Args:
      p: success rate, [...], 0 ≤ p ≤ 1.
      group: G ≥ 2, or math.inf.

    Returns:
      F_G, [...], float64, differentiable.

    Raises:
      ValueError: as `prompt_weight`.

    Source: own derivation (notebook 09); 2 arcsin √p is the variance-stabilising
    transform of a rate.

    >>> prompt_objective(0.3, group=2).item()
    0.3
    >>> round(prompt_objective(1.0, group=3).item(), 4)   # 2 · 1/√2
    1.4142
    """
    p = _rate(p)
    if group == INF:
        return 2 * p.sqrt().asin()
    _check_group(group)
    k = torch.arange(1, group, dtype=p.dtype, device=p.device)
    h = torch.cat([k.new_zeros(1), (1 / (k * (group - k)).sqrt()).cumsum(0)])
    return (_binomial(p, group - 1) * h).sum(-1)


def batch_weights(p: Tensor, group: int) -> Tensor:
    """Weights of a batch's prompts: group means subtracted, one std divides.

    E[ĝ_s] = w_s ∇p_s,  w_s = E[K_s(G−K_s)/σ]/(G² p_s(1−p_s)),
    σ² = Σ_s K_s(G−K_s)/(S G²);  a batch without any spread counts 0.
    All weights share one σ, so their ratio goes to 1 as the batch grows; their common
    size is about 1/√(mean of p(1−p)), and grows as the batch gets solved.

    Args:
      p: success rates of the S prompts of the batch, [S], each 0 < p < 1.
      group: G ≥ 2 answers to each.

    Returns:
      The weights, [S], float64, no gradient.

    Raises:
      ValueError: not one axis, a rate outside (0, 1), or G not a whole number ≥ 2.

    Source: REINFORCE++ with baseline, Hu et al. (2025), arXiv 2501.03262, which is
    `advantages.batch_normalized`; the expectation is own.

    >>> round(batch_weights(torch.tensor([0.3]), group=2).item(), 6)   # GRPO itself
    1.0
    """
    p, k = _batch(p, group)
    spread = k * (group - k)  # G² times the variance of a group, a whole number
    chance = _binomial(p, group)  # [S, G + 1]
    laws = p.new_zeros(len(p), int(spread.max()) + 1)
    laws = laws.index_add(1, spread, chance)  # of each prompt's spread
    weights = []
    for s in range(len(p)):
        rest = _sum_law(laws, without=s)
        total = spread[:, None] + torch.arange(len(rest), device=p.device)
        std = (total.to(p.dtype) / len(p)).sqrt() / group
        variance = spread[:, None].to(p.dtype) / group**2
        share = variance / std.masked_fill(total == 0, INF)
        weights.append((chance[s][:, None] * rest * share).sum() / (p[s] * (1 - p[s])))
    return torch.stack(weights)


def whitened_weights(p: Tensor, group: int) -> Tensor:
    """Weights of a batch's prompts: one mean subtracted and one std, both of all.

    E[ĝ_s] = w_s ∇p_s,  A = (r − m)/√(m(1−m)),  m = Σ_s K_s/(S G)
    The ratio of the weights goes to 1, but m is no baseline of any single prompt: a
    constant c(x) that a reward model adds to a prompt's rewards stays in A.

    Args:
      p: success rates of the S prompts of the batch, [S], each 0 < p < 1.
      group: G ≥ 1 answers to each; G·S ≥ 2.

    Returns:
      The weights, [S], float64, no gradient.

    Raises:
      ValueError: as `batch_weights`, but for G.

    Source: REINFORCE++, Hu et al. (2025), arXiv 2501.03262, which is
    `masking.masked_whiten`; the expectation is own.

    >>> round(whitened_weights(torch.tensor([0.3]), group=2).item(), 6)   # GRPO itself
    1.0
    """
    p, k = _batch(p, group, least=1)
    chance = _binomial(p, group)  # [S, G + 1]
    weights = []
    for s in range(len(p)):
        rest = _sum_law(chance, without=s)
        total = k[:, None] + torch.arange(len(rest), device=p.device)
        m = total.to(p.dtype) / (group * len(p))
        std = (m * (1 - m)).sqrt()
        # Σᵢ Aᵢ (rᵢ − p) of the k right and the G − k wrong answers
        pull = k[:, None] * (1 - m) * (1 - p[s]) + (group - k[:, None]) * m * p[s]
        share = pull / group / std.masked_fill(std == 0, INF)
        weights.append((chance[s][:, None] * rest * share).sum() / (p[s] * (1 - p[s])))
    return torch.stack(weights)


def _batch(p: Tensor, group: int, least: int = 2) -> tuple[Tensor, Tensor]:
    """The rates, checked, and 0 … G."""
    p = _rate(p).detach()
    _check_group(group, least)
    check_ndim(1, p=p)
    if group * len(p) < 2 or not ((p > 0) & (p < 1)).all():
        found = f"{p.tolist()} and G = {group}"
        raise ValueError(f"p: want 0 < p < 1, at least two answers, found {found}")
    return p, torch.arange(group + 1, device=p.device)


def _sum_law(laws: Tensor, without: int) -> Tensor:
    """The law of a sum of independent whole numbers, one left out: [S, n] → [m]."""
    total = laws.new_ones(1)
    for s, law in enumerate(laws):
        if s != without:
            total = torch.nn.functional.conv1d(
                total[None, None], law.flip(0)[None, None], padding=len(law) - 1
            )[0, 0]
    return total


def _check_group(group: int, least: int = 2) -> None:
    if isinstance(group, bool) or not isinstance(group, int) or group < least:
        raise ValueError(f"group: want a whole number ≥ {least}, found {group!r}")


def _rate(p: Tensor | float) -> Tensor:
    p = torch.as_tensor(p, dtype=torch.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p: want 0 ≤ p ≤ 1, found another number")
    return p


def _binomial(p: Tensor, n: int) -> Tensor:
    """P(K = k) for K ~ Bin(n, p), k = 0 … n, [..., n + 1]."""
    k = torch.arange(n + 1, dtype=p.dtype, device=p.device)
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    p = p[..., None]
    return (ways + torch.xlogy(k, p) + torch.xlogy(n - k, 1 - p)).exp()


def _inner(p: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """k = 1 … G − 1 and P(K = k)/(p(1−p)): mixed groups only, finite at p = 0 and 1."""
    _check_group(group)
    k = torch.arange(1, group, dtype=p.dtype, device=p.device)
    # C(G, k) = C(G − 2, k − 1) · G(G − 1)/(k(G − k))
    return k, _binomial(p, group - 2) * group * (group - 1) / (k * (group - k))
