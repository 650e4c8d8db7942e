"""When a better score means a worse answer: exact curves, published forms, refits.

Decisions:
- Distances are d = √KL(π‖π_ref), in √nats, as Gao et al. (2022) have them; gains are
  gold rewards minus the gold reward of π_ref.
- The Gaussian world, in which all is known: under π_ref an answer is one number
  z ~ N(0, 1), the gold reward is a·z − b·z²/2, and the reward model knows only lines.
  `slope` is a, `curvature` is b > 0.
- A policy that is KL-optimal for some line there is N(mean, 1), and d = |mean|/√2.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_between,
    check_finite,
    check_law,
    check_number,
    check_outcomes,
    check_positive,
    check_same_shape,
)


def gaussian_gold(distance: Tensor, slope: float, curvature: float) -> Tensor:
    """Gold gain of the KL-optimal policies of a line, when the truth is a parabola.

    R(d) = d(√2·a − b·d),  with its peak a²/(2b) at d = a/(√2·b)
    Every one of these policies is optimal for the proxy at its KL. A KL penalty
    chooses a point of this curve and does not change the curve.

    Args:
      distance: d = √KL(π‖π_ref) ≥ 0, √nats, [...].
      slope: a, reward per standard deviation of z.
      curvature: b > 0.

    Returns:
      Gold gain, reward units, [...], differentiable.

    Raises:
      ValueError: a distance is negative or not finite, curvature ≤ 0, or slope is
        not finite.

    Source: derived in notebook 10; the form is that of Gao et al. (2022), arXiv
    2210.10760, for best-of-n.

    >>> gaussian_gold(torch.tensor([0.0, 1.0]), slope=2**0.5, curvature=1.0).tolist()
    [0.0, 1.0]
    """
    _check_world(slope, curvature)
    _check_distance(distance)
    return distance * (math.sqrt(2) * slope - curvature * distance)


class GaussianBest(NamedTuple):
    """Best-of-n in the Gaussian world, exactly."""

    kl: float  # KL(best-of-n‖π_ref), nats
    mean: float  # E max of n normal numbers: the proxy gain per unit of slope
    gold: float  # gold gain, reward units


def gaussian_best_of_n(n: int, slope: float, curvature: float) -> GaussianBest:
    """What the best of n by a line is worth, when the truth is a parabola.

    KL = log n − (n−1)/n,  R = a·m₁ − b(m₂ − 1)/2,  m_k = E[(max of n normals)^k]
    A chosen z is less spread than one of N(mean, 1), which is not KL-optimal for the
    proxy and is kinder to the gold.

    Args:
      n: draws, a whole number ≥ 1.
      slope: a > 0; the draw with the largest a·z is kept.
      curvature: b > 0.

    Raises:
      ValueError: n is not a whole number ≥ 1; slope or curvature is not > 0.

    Source: order statistics; KL of Beirami et al. (2024), arXiv 2401.01879.

    >>> best = gaussian_best_of_n(2, slope=1.0, curvature=1.0)
    >>> round(best.gold, 6) == round(math.pi**-0.5, 6)   # E max = 1/√π, E max² = 1
    True
    """
    _check_world(slope, curvature)
    check_positive(slope=slope)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n: want a whole number ≥ 1, found {n!r}")
    # equal steps over a smooth density that ends in zeros: exact to rounding
    z = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    log_density = -z.square() / 2 + (n - 1) * torch.special.log_ndtr(z)
    p = torch.softmax(log_density, 0)
    mean, square = (p @ z).item(), (p @ z.square()).item()
    gold = slope * mean - curvature * (square - 1) / 2
    return GaussianBest(math.log(n) - (n - 1) / n, mean, gold)


class Refits(NamedTuple):
    """Rounds of fitting the reward model on the policy's own answers."""

    means: Tensor  # [rounds + 1], the policy is N(means[k], 1) after k refits
    fixed_point: float  # a/(β + b): the KL-optimal mean for the *gold* reward
    multiplier: float  # what the distance to it is multiplied by in each round


def refit_path(
    slope: float, curvature: float, beta: float, rounds: int, damping: float = 1.0
) -> Refits:
    """Fit a line to the gold where the policy stands, move to its optimum, repeat.

    line:  a − b·m_k   (least squares of a·z − b·z²/2 on z ~ N(m_k, 1))
    m_{k+1} = (1 − η)·m_k + η·(a − b·m_k)/β,  m_0 = 0
    The distance to a/(β + b) is multiplied by 1 − η(1 + b/β) in each round. Undamped,
    η = 1, that is −b/β: it converges if and only if b < β.

    Args:
      slope: a.
      curvature: b > 0.
      beta: β > 0, reward per nat.
      rounds: refits, ≥ 1.
      damping: η, share of the way that is gone, 0 < η ≤ 1.

    Returns:
      `Refits`, float64.

    Raises:
      ValueError: a number is out of its range.

    Source: derived in notebook 10.

    >>> refit_path(slope=1.0, curvature=1.0, beta=2.0, rounds=3).means.tolist()
    [0.0, 0.5, 0.25, 0.375]
    """
    _check_world(slope, curvature)
    check_positive(beta=beta, rounds=rounds, damping=damping)
    check_between(0, 1, damping=damping)
    means = [0.0]
    for _ in range(rounds):
        target = (slope - curvature * means[-1]) / beta
        means.append((1 - damping) * means[-1] + damping * target)
    return Refits(
        torch.tensor(means, dtype=torch.float64),
        slope / (beta + curvature),
        1 - damping * (1 + curvature / beta),
    )


def choice_slope(
    mean: Tensor, slope: float, curvature: float, sharpness: float
) -> Tensor:
    """The line that *choices* teach at N(mean, 1), from as many of them as one likes.

    P(z ≻ z′) = σ(s·(gold(z) − gold(z′))) is fitted with σ(s·w·(z − z′)):
      M(w) = E_S M(a − b·S),  S ~ N(mean, ½),  M(w) = E[D·σ(s·w·D)],  D ~ N(0, 2)
    For vague judges, s → 0, w = a − b·mean, as least squares has it. Sharp ones bend
    the line: S is the midpoint of the pair, and pairs that straddle the top of the
    parabola answer in both directions.

    Args:
      mean: where the policy stands, [...].
      slope: a.
      curvature: b > 0.
      sharpness: s > 0, nats of log-odds per unit of gold reward.

    Returns:
      w in gold units per standard deviation, [...], float64, no gradient.

    Raises:
      ValueError: a mean is not finite, sharpness or curvature ≤ 0; or the labels are
        so sure (more than 100 nats) that no slope can be told from a steeper one.

    Source: the population fit of Bradley and Terry (1952); derived in notebook 10.

    >>> vague = choice_slope(torch.tensor([0.0, 1.0]), 1.0, 0.5, sharpness=1e-3)
    >>> vague.round(decimals=4).tolist()   # a − b·mean
    [1.0, 0.5]
    """
    _check_world(slope, curvature)
    check_positive(sharpness=sharpness)
    check_finite(mean=mean)
    d = torch.linspace(-12, 12, 4_801, dtype=torch.float64) * math.sqrt(2)
    weight = torch.softmax(-d.square() / 4, 0)

    def pull(w):  # M(w), of w [...]; D·tanh is what an even weight leaves of D·σ
        return (d * torch.tanh(sharpness * w[..., None] * d / 2) / 2) @ weight

    nodes, parts = np.polynomial.hermite.hermgauss(64)  # for exp(−x²): N(0, ½)
    nodes, parts = torch.tensor(nodes), torch.tensor(parts) / math.sqrt(math.pi)
    flat = mean.detach().double().reshape(-1)
    wanted = pull(slope - curvature * (flat[:, None] + nodes)) @ parts
    # the fitted line lies between the steepest lines that any pair saw
    high = abs(slope) + curvature * (flat.abs() + nodes.max())
    if (sharpness * high > 100).any():
        found = f"up to {(sharpness * high).max().item():.3g} nats"
        raise ValueError(f"mean, sharpness: want labels that can err, found {found}")
    low = -high
    for _ in range(60):
        middle = (low + high) / 2
        less = pull(middle) < wanted
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return ((low + high) / 2).reshape(mean.shape)


class Expansion(NamedTuple):
    """Gold gain = linear·d + quadratic·d² + O(d³) along the optima of the proxy."""

    linear: Tensor  # [...], reward per √nat
    quadratic: Tensor  # [...], reward per nat


def gold_expansion(ref_logp: Tensor, proxy: Tensor, gold: Tensor) -> Expansion:
    """How the gold reward begins to move when the proxy is optimised, for any law.

    linear    = √2·Cov(g, r)/σ_r = √2·σ_g·corr(g, r)
    quadratic = κ(g, r, r)/σ_r² − ⅔·Cov(g, r)·κ(r, r, r)/σ_r⁴
    Cumulants are those of π_ref. So the first of Gao's two numbers is a correlation,
    and only third moments can make the gold bend: the scale of the proxy is of no
    account, and noise that is jointly Gaussian with the gold makes no peak.

    Args:
      ref_logp: log π_ref, nats, [..., K]; may be −inf.
      proxy, gold: r and g, reward units, [..., K], finite.

    Returns:
      `Expansion`, no gradient.

    Raises:
      ValueError: shapes do not fit, no law, a reward that is not finite, or a proxy
        that is constant on the support.

    Source: cumulants of the tilt π_ref·exp(t·r); derived in notebook 10.

    >>> law = torch.tensor([0.25, 0.5, 0.25]).log()
    >>> z = torch.tensor([-1.0, 0.0, 1.0])   # symmetric, standard deviation √½
    >>> gold_expansion(law, 9 * z, z - z**2)
    Expansion(linear=tensor(1.), quadratic=tensor(-0.5000))
    """
    check_law(ref_logp=ref_logp)
    check_outcomes(ref_logp=ref_logp, proxy=proxy, gold=gold)
    check_finite(proxy=proxy, gold=gold)
    p, r, g = ref_logp.detach().exp(), proxy.detach(), gold.detach()
    r = r - (p * r).sum(-1, keepdim=True)
    g = g - (p * g).sum(-1, keepdim=True)
    variance = (p * r.square()).sum(-1)
    if (variance <= 0).any():
        raise ValueError("proxy: want one that varies on the support, found a constant")
    with_gold = (p * g * r).sum(-1)
    linear = math.sqrt(2) * with_gold / variance.sqrt()
    bend = (p * g * r.square()).sum(-1) / variance
    skew = (p * r**3).sum(-1) / variance.square()
    return Expansion(linear, bend - 2 / 3 * with_gold * skew)


class FormFit(NamedTuple):
    """A two-number curve through (d, gain), by least squares."""

    alpha: Tensor  # [...]
    beta: Tensor  # [...]
    r2: Tensor  # [...], share of the variance of the gains that is explained
    peak: Tensor  # [...], the d of its maximum; inf where it never turns

    def curve(self, columns: tuple[Tensor, Tensor]) -> Tensor:
        """α·columns[0] − β·columns[1], e.g. of `square_columns(d)`."""
        return self.alpha[..., None] * columns[0] - self.beta[..., None] * columns[1]


def square_columns(distance: Tensor) -> tuple[Tensor, Tensor]:
    """(d, d²): the best-of-n form d(α − β·d) is α·d − β·d²."""
    return distance, distance.square()


def log_columns(distance: Tensor) -> tuple[Tensor, Tensor]:
    """(d, d·log d): the RL form d(α − β·log d)."""
    return distance, distance * distance.log()


def fit_square_form(distance: Tensor, gain: Tensor) -> FormFit:
    """Gao's best-of-n form, R(d) = d(α − β·d), by least squares.

    A β that is not above 0 says that the gold has not begun to turn.

    Args:
      distance: d > 0, √nats, [..., N], N ≥ 3.
      gain: gold gain, [..., N].

    Returns:
      `FormFit`, a fit per leading index; its peak is at α/(2β).

    Raises:
      ValueError: shapes differ, N < 3, a distance ≤ 0, an entry is not finite, or
        distances that are all equal.

    Source: Gao, Schulman and Hilton (2022), arXiv 2210.10760, R_bon.

    >>> d = torch.tensor([1.0, 2.0, 3.0])
    >>> fit = fit_square_form(d, d * (6 - d))
    >>> round(fit.alpha.item(), 4), round(fit.beta.item(), 4), round(fit.peak.item(), 4)
    (6.0, 1.0, 3.0)
    """
    alpha, beta, r2 = _least_squares(distance, gain, square_columns)
    return FormFit(alpha, beta, r2, _where_it_turns(alpha / (2 * beta), alpha, beta))


def fit_log_form(distance: Tensor, gain: Tensor) -> FormFit:
    """Gao's form for reinforcement learning, R(d) = d(α − β·log d), by least squares.

    Args:
      distance, gain: as `fit_square_form`.

    Returns:
      `FormFit`; its peak is at exp(α/β − 1).

    Raises:
      ValueError: as `fit_square_form`.

    Source: Gao, Schulman and Hilton (2022), arXiv 2210.10760, R_RL: found by
    experiment, not derived.

    >>> d = torch.tensor([1.0, 2.0, 3.0])
    >>> fit = fit_log_form(d, d * (2 - 2 * d.log()))
    >>> round(fit.alpha.item(), 4), round(fit.beta.item(), 4), round(fit.peak.item(), 4)
    (2.0, 2.0, 1.0)
    """
    alpha, beta, r2 = _least_squares(distance, gain, log_columns)
    return FormFit(alpha, beta, r2, _where_it_turns((alpha / beta - 1).exp(), 1, beta))


def _least_squares(distance: Tensor, gain: Tensor, columns) -> tuple[Tensor, ...]:
    check_same_shape(distance=distance, gain=gain)
    check_finite(distance=distance, gain=gain)
    if distance.ndim == 0 or distance.shape[-1] < 3:
        raise ValueError(f"distance: want [..., N ≥ 3], found {list(distance.shape)}")
    if (distance <= 0).any():
        raise ValueError(f"distance: want > 0, found {distance.min().item()}")
    if (distance == distance[..., :1]).all(-1).any():
        raise ValueError("distance: want at least two that differ")
    distance, gain = distance.double(), gain.double()
    u, v = columns(distance)
    design = torch.stack([u, -v], -1)
    found = torch.linalg.lstsq(design, gain[..., None]).solution
    left = (gain - (design @ found)[..., 0]).square().sum(-1)
    about_mean = (gain - gain.mean(-1, keepdim=True)).square().sum(-1)
    return found[..., 0, 0], found[..., 1, 0], 1 - left / about_mean


def _where_it_turns(peak: Tensor, alpha: Tensor | float, beta: Tensor) -> Tensor:
    turns = (beta > 0) & (torch.as_tensor(alpha) > 0)
    return torch.where(turns, peak, math.inf)


def _check_world(slope: float, curvature: float) -> None:
    check_number(slope=slope)
    check_positive(curvature=curvature)


def _check_distance(distance: Tensor) -> None:
    check_finite(distance=distance)
    if (distance < 0).any():
        raise ValueError(f"distance: want ≥ 0, found {distance.min().item()}")
