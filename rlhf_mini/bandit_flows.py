"""How long gradient ascent needs to find a rare good arm: exact times, no sampling.

A softmax bandit has K arms; one pays 1, all others pay 0, and the good one starts with
probability p₀. Time is that of the flow dθ/dt = (direction of ascent): a learning rate
η takes about time/η steps. The half-time T½ is when the good arm has probability ½.
If the other arms start equal they stay equal, and all of it happens in one number,
the log-odds z = log p/(1−p). What is given for K arms holds for them.

Simulations to hold against these times are in bandits.py.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq
from torch import Tensor

from rlhf_mini.checks import (
    check_between,
    check_finite,
    check_positive,
    check_times,
)


class SampledTime(NamedTuple):
    """The law of the number of pulls that sampled REINFORCE needs."""

    mean: float  # pulls
    std: float  # pulls
    hits: int  # draws of the good arm among them; the same in every run


def gradient_time(p0: Tensor | float, arms: int = 2) -> Tensor:
    """Half-time of the policy gradient: about 1/p₀.

    dp/dt = K/(K−1) · p²(1−p)²
    T½ = (K−1)/K · [1/p₀ − 1/(1−p₀) + 2 ln((1−p₀)/p₀)]
    One factor p is the chance of drawing the arm, the other is the softmax's slope.
    Any unbiased estimate of the gradient has this T½ as its step goes to 0.

    Args:
      p0: starting probability of the good arm, [...], 0 < p0 ≤ ½.
      arms: K ≥ 2.

    Returns:
      T½, [...], float64; steps × learning rate.

    Raises:
      ValueError: p0 is not in (0, ½], or arms is not a whole number ≥ 2.

    Source: separate the variables of Sutton and Barto (2018), eq. 2.12.

    >>> round(gradient_time(0.2).item(), 4)   # ½ (5 − 1.25 + 2 ln 4)
    3.2613
    """
    p, share = _start(p0), _share(arms)
    return share * (1 / p - 1 / (1 - p) - 2 * _log_odds(p))


def natural_time(p0: Tensor | float) -> Tensor:
    """Half-time of the natural gradient, which has no plateau.

    dz/dt = 1,  T½ = ln((1−p₀)/p₀)
    The inverse Fisher matrix divides by the probability; rewards are left: dθ/dt = r.

    Args:
      p0: starting probability of the good arm, [...], 0 < p0 ≤ ½.

    Returns:
      T½, [...], float64; the same for every number of arms.

    Raises:
      ValueError: p0 is not in (0, ½].

    Source: Kakade (2001), "A natural policy gradient", for a softmax table.

    >>> round(natural_time(0.2).item(), 4)   # ln 4
    1.3863
    """
    return -_log_odds(_start(p0))


def imitation_time(p0: Tensor | float, arms: int = 2) -> Tensor:
    """Half-time of ascent on log π(good arm): injection with weight 1, or SFT.

    dz/dt = K/(K−1) · (1−p),  T½ = (K−1)/K · [ln((1−p₀)/p₀) + 2 − 1/(1−p₀)]
    It climbs another objective, which knows no rewards: it would learn a bad arm too.

    Args:
      p0: starting probability of the arm, [...], 0 < p0 ≤ ½.
      arms: K ≥ 2.

    Returns:
      T½, [...], float64.

    Raises:
      ValueError: p0 is not in (0, ½], or arms is not a whole number ≥ 2.

    Source: the gradient 1 − p of log-likelihood, integrated.

    >>> round(imitation_time(0.2).item(), 4)   # ½ (ln 4 + 2 − 1.25)
    1.0681
    """
    p, share = _start(p0), _share(arms)
    return share * (2 - _log_odds(p) - 1 / (1 - p))


def curriculum_time(p0: Tensor | float, arms: int = 2) -> Tensor:
    """Half-time with a hint that is withdrawn so that the good arm stays at ½.

    A hint of h nats makes the policy answer with log-odds z + h. With h = −z,
    dz/dt = K/(K−1) · ½ · ½,  so  T½ = 4 (K−1)/K · ln((1−p₀)/p₀)
    It assumes that what is learnt with the hint holds without: one shared z.

    Args:
      p0: probability of the good arm without any hint, [...], 0 < p0 ≤ ½.
      arms: K ≥ 2.

    Returns:
      T½, [...], float64.

    Raises:
      ValueError: p0 is not in (0, ½], or arms is not a whole number ≥ 2.

    Source: as `gradient_time`, with p held at ½.

    >>> round(curriculum_time(0.2).item(), 4)   # 2 ln 4
    2.7726
    """
    return -4 * _share(arms) * _log_odds(_start(p0))


def slope_time(p0: float, slope: Callable[[float], float]) -> float:
    """Half-time of gradient ascent on any objective J(p) of a bandit with two arms.

    T½ = ∫ dz / (2 p(1−p) J′(p)),  from z₀ = ln(p₀/(1−p₀)) to 0
    J′ = 1 is the plain bandit. Entropy τH adds τ ln((1−p)/p) to J′, and a penalty
    β KL(π‖π_ref) takes β (z − z_ref) away.

    Args:
      p0: starting probability of the good arm, 0 < p0 ≤ ½.
      slope: J′(p), reward per unit of probability.

    Returns:
      T½, by quadrature to about 10 digits.

    Raises:
      ValueError: p0 is not in (0, ½]; or the slope is not positive (or not finite)
        somewhere on the way, where the flow stands still or turns back.

    Source: the chain rule, dz/dt = 2 · p(1−p) J′(p).

    >>> round(slope_time(0.2, lambda p: 0.5), 4)   # half the reward, twice the time
    6.5226
    """
    start = float(_log_odds(_start(p0)))

    def seconds(z):
        p = 1 / (1 + math.exp(-z))
        drift = slope(p)
        if not (math.isfinite(drift) and drift > 0):
            raise ValueError(f"slope: want > 0 up to p = ½, found {drift:g} at {p:g}")
        return 1 / (2 * p * (1 - p) * drift)

    return quad(seconds, start, 0.0, epsabs=0.0, epsrel=1e-11, limit=500)[0]


def sampled_time(p0: float, lr: float, arms: int = 2) -> SampledTime:
    """Exact mean and standard deviation of the pulls of sampled REINFORCE.

    z ← z + η K/(K−1) (1−p)  at each draw of the good arm, and nothing otherwise;
    so p runs through fixed values p₀, p₁, … and the waits are geometric:
    E[T] = Σ 1/p_k,  Var[T] = Σ (1−p_k)/p_k²,  over all p_k < ½.
    One pull per update and no baseline; the other arms pay exactly 0.

    Args:
      p0: starting probability of the good arm, 0 < p0 ≤ ½.
      lr: η, the learning rate of plain gradient ascent.
      arms: K ≥ 2.

    Returns:
      (mean, std, hits).

    Raises:
      ValueError: p0 is not in (0, ½], lr is not > 0, or arms is not ≥ 2.

    Source: Williams (1992), REINFORCE, on this bandit.

    >>> law = sampled_time(0.25, lr=10.0)   # one hit is enough: a geometric wait
    >>> law.hits, round(law.mean, 4), round(law.std, 4)   # 1, 4, √12
    (1, 4.0, 3.4641)
    """
    check_positive(lr=lr)
    z, share = float(_log_odds(_start(p0))), _share(arms)
    mean = variance = hits = 0
    while z < 0:
        p = 1 / (1 + math.exp(-z))
        mean, variance, hits = mean + 1 / p, variance + (1 - p) / p**2, hits + 1
        z += lr * (1 - p) / share
    return SampledTime(mean, math.sqrt(variance), hits)


def best_of_n_rounds(p0: float, n: int) -> int:
    """Rounds of best-of-n and refitting until the good arm has probability ½.

    1 − p → (1 − p)ⁿ each round,  rounds = ⌈log_n(ln 2 / −ln(1−p₀))⌉ ≈ log_n(1/p₀)
    On the exact law. With N samples the arm must be drawn before it can be kept.

    Args:
      p0: starting probability of the good arm, 0 < p0 ≤ ½.
      n: draws of which the best is kept, ≥ 2.

    Returns:
      Whole rounds.

    Raises:
      ValueError: p0 is not in (0, ½], or n is not a whole number ≥ 2.

    Source: `exact.best_of_n` of two levels, iterated.

    >>> best_of_n_rounds(0.3, n=2)   # 0.3, then 0.51
    1
    """
    p0 = float(_start(p0))
    _whole(n=n)
    rounds, log_rest = 0, math.log1p(-p0)
    while log_rest > -math.log(2):
        rounds, log_rest = rounds + 1, n * log_rest
    return rounds


def gradient_flow(logp: Tensor, rewards: Tensor, times: Tensor) -> Tensor:
    """The path of exact policy gradient, dθ/dt = ∇E[r], for any arms and rewards.

    dθ_a/dt = π(a) (r(a) − E_π r)
    Its time scale is 1/π: integrate far enough, and with times on a log grid.

    Args:
      logp: log π at time 0, nats, [K].
      rewards: r, reward units, [K].
      times: increasing, ≥ 0, [N].

    Returns:
      log π at those times, nats, [N, K], float64.

    Raises:
      ValueError: shapes differ, an entry is not finite (an arm of probability 0 never
        moves), or times are not increasing from ≥ 0.

    Source: Sutton and Barto (2018), eq. 2.12, in expectation.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> path = gradient_flow(half, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 9.0]))
    >>> path.exp()[:, 0].round(decimals=3)
    tensor([0.5000, 0.9280], dtype=torch.float64)
    """
    start, r = _bandit(logp, rewards)
    t = check_times(times).numpy()
    path = _integrate(start, r, t[-1], evaluate=t).y
    return torch.from_numpy(path.T.copy()).log_softmax(-1)


def natural_flow(logp: Tensor, rewards: Tensor, times: Tensor) -> Tensor:
    """The path of the natural gradient, in closed form.

    dθ/dt = r,  so  π_t(a) ∝ π₀(a) exp(r(a) t)
    It is the path of π* as 1/β grows: `exact.optimal_policy` with β = 1/t.

    Args:
      logp: log π at time 0, nats, [K].
      rewards: r, reward units, [K].
      times: increasing, ≥ 0, [N].

    Returns:
      log π at those times, nats, [N, K], float64.

    Raises:
      ValueError: as `gradient_flow`.

    Source: Kakade (2001), for a softmax table.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> r, times = torch.tensor([3.0, 1.0]).log(), torch.tensor([1.0])
    >>> natural_flow(half, r, times).exp()
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    start, r = _bandit(logp, rewards)
    t = check_times(times).numpy()[:, None]
    return torch.from_numpy(start + t * r).log_softmax(-1)


def gradient_flow_time(logp: Tensor, rewards: Tensor, max_time: float = 1e12) -> float:
    """When exact policy gradient gives the best arm probability ½.

    With three arms or more, the best one may lose probability first: an arm that is
    nearly as good, and common, pulls it down with it before the best comes back.

    Args:
      logp, rewards: as `gradient_flow`; the best arm is the argmax of the rewards.
      max_time: give up there.

    Returns:
      The time, to about 8 digits; inf if it is later than max_time.

    Raises:
      ValueError: as `gradient_flow`, or max_time is not > 0.

    Source: Mei et al. (2020), "Escaping the gravitational pull of softmax", for the
    name and the effect.

    >>> start = torch.tensor([0.2, 0.8]).log()
    >>> round(gradient_flow_time(start, torch.tensor([1.0, 0.0])), 4)
    3.2613
    """
    check_positive(max_time=max_time)
    start, r = _bandit(logp, rewards)
    best = int(r.argmax())
    if _advantage(start, best) >= 0:
        return 0.0
    found = _integrate(start, r, max_time, arm=best).t_events[0]
    return float(found[0]) if len(found) else math.inf


def natural_flow_time(logp: Tensor, rewards: Tensor) -> float:
    """When the natural gradient gives the best arm probability ½.

    Args:
      logp, rewards: as `gradient_flow`; the best arm must be the only one.

    Returns:
      The time, to 12 digits.

    Raises:
      ValueError: as `gradient_flow`, or two arms share the highest reward.

    Source: `natural_flow`, solved for ½.

    >>> start = torch.tensor([0.2, 0.8]).log()
    >>> round(natural_flow_time(start, torch.tensor([1.0, 0.0])), 4)   # ln 4
    1.3863
    """
    start, r = _bandit(logp, rewards)
    best = int(r.argmax())
    gaps = np.delete(r[best] - r, best)
    if gaps.min() <= 0:
        raise ValueError("rewards: want one best arm, found several")
    if _advantage(start, best) >= 0:
        return 0.0
    # by then the smallest gap alone has made up for all that is missing
    latest = (math.log(len(r)) - start[best]) / gaps.min() + 1
    return brentq(lambda t: _advantage(start + t * r, best), 0, latest, xtol=1e-12)


def _start(p0) -> Tensor:
    """p₀ as float64; at 0 the flow stands still for ever."""
    p = torch.as_tensor(p0, dtype=torch.float64)
    bad = ~((p > 0) & (p <= 0.5))
    if bad.any():
        raise ValueError(f"p0: want 0 < p0 ≤ 0.5, found {p[bad][0].item():g}")
    return p


def _log_odds(p: Tensor) -> Tensor:
    return p.log() - torch.log1p(-p)


def _share(arms: int) -> float:
    """(K−1)/K."""
    _whole(arms=arms)
    return (arms - 1) / arms


def _whole(**numbers: int) -> None:
    for name, n in numbers.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 2:
            raise ValueError(f"{name}: want a whole number ≥ 2, found {n!r}")


def _bandit(logp: Tensor, rewards: Tensor):
    """Log-law and rewards as float64 arrays [K]."""
    for name, x in {"logp": logp, "rewards": rewards}.items():
        if not isinstance(x, Tensor) or x.ndim != 1 or len(x) < 2:
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name}: want a tensor [K], K ≥ 2, found {found}")
    if logp.shape != rewards.shape:
        found = f"logp {list(logp.shape)}, rewards {list(rewards.shape)}"
        raise ValueError(f"shapes differ: {found}")
    check_finite(logp=logp, rewards=rewards)
    check_between(-1e-3, 1e-3, log_of_the_sum=logp.detach().logsumexp(-1).item())
    return logp.detach().double().numpy(), rewards.detach().double().numpy()


def _advantage(theta: np.ndarray, arm: int) -> float:
    """Log-odds of one arm against all others."""
    return theta[arm] - np.logaddexp.reduce(np.delete(theta, arm))


def _integrate(start, rewards, end, evaluate=None, arm=None):
    def gradient(_, theta):
        p = np.exp(theta - np.logaddexp.reduce(theta))
        return p * (rewards - p @ rewards)

    events = None
    if arm is not None:

        def events(_, theta):
            return _advantage(theta, arm)

        events.terminal = True
    # nothing moves at time 0 if that is all that is asked for
    span = (0.0, max(float(end), 1e-12))
    return solve_ivp(
        gradient, span, start, method="LSODA", rtol=1e-11, atol=1e-13,
        t_eval=evaluate, events=events,
    )  # fmt: skip
