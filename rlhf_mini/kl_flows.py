"""Where a KL penalty drives a policy: exact gradients and flows, and Schulman's table.

A penalty enters training in two ways. *In the reward* its value at a sample multiplies
∇log π(a). *In the loss* it is differentiated itself. On one categorical policy both are
a sum over actions, so what they do on average is computed here without a sample.

Write d = log π(a) − log π_ref(a). For a penalty f(d) both ways are one formula with a
coefficient c(d): c = f in the reward, c = f′ in the loss. It pulls π back to π_ref from
everywhere if c grows with d: then it descends a divergence (`fdivergence_generator`).

`kl.py` has k1, k2 and k3 as values, detached. `ESTIMATES` here has the same three as
functions of d that can be differentiated, because the question is what that does.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor

from rlhf_mini.checks import (
    check_between,
    check_finite,
    check_number,
    check_positive,
    check_same_shape,
    check_times,
)

Penalty = Callable[[Tensor], Tensor]  # of d in nats, elementwise

ESTIMATES: dict[str, Penalty] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.expm1(-d) + d,
}


class GaussianTable(NamedTuple):
    """Exact mean and standard deviation of one sample's k1, k2, k3, in nats."""

    kl: Tensor  # [...]
    mean: Tensor  # [..., 3]
    std: Tensor  # [..., 3]


def gaussian_table(gap: Tensor | float) -> GaussianTable:
    """What k1, k2, k3 estimate, and how noisily, between two unit Gaussians.

    a ~ π = N(0, 1), π_ref = N(μ, 1):  KL(π‖π_ref) = μ²/2
    E k1 = E k3 = μ²/2,  E k2 = μ²/2 + μ⁴/8
    Var k1 = μ²,  Var k2 = (2μ⁴ + μ⁶)/4,  Var k3 = e^{μ²} − 1 − μ²
    k3's variance beats k1's for a small gap only: it grows like e^{μ²}.

    Args:
      gap: μ, the distance of the means, [...] or a number; 0 is allowed.

    Returns:
      (kl [...], mean [..., 3], std [..., 3]), float64; the last axis is k1, k2, k3.

    Raises:
      ValueError: gap is not finite, or μ² > 700, where e^{μ²} overflows.

    Source: Schulman (2020), "Approximating KL divergence", whose table is a simulation
    of gap 0.1 and 1; the moments follow from d ~ N(μ²/2, μ²).

    >>> table = gaussian_table(1.0)
    >>> table.kl.item(), table.mean.tolist()   # ½; ½, ½ + ⅛, ½
    (0.5, [0.5, 0.625, 0.5])
    >>> (table.std / table.kl).round(decimals=3).tolist()   # 2, √3, 2 √(e − 2)
    [2.0, 1.732, 1.695]
    """
    mu = torch.as_tensor(gap, dtype=torch.float64)
    check_finite(gap=mu)
    if (mu.square() > 700).any():
        raise ValueError(f"gap: want gap² ≤ 700, found gap {mu.abs().max().item():g}")
    kl = mu.square() / 2
    mean = torch.stack([kl, kl + mu**4 / 8, kl], -1)
    rest = torch.expm1(2 * kl) - 2 * kl
    variance = torch.stack([2 * kl, (2 * mu**4 + mu**6) / 4, rest], -1)
    return GaussianTable(kl, mean, variance.clamp(min=0).sqrt())


def moments(logp: Tensor, ref_logp: Tensor, penalty: Penalty) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of a penalty over actions drawn from π.

    E_π f(d)  and  √(E_π f(d)² − (E_π f(d))²),  d = log π − log π_ref

    Args:
      logp: log π in nats, [K], all finite.
      ref_logp: log π_ref in nats, [K], all finite.
      penalty: f, a function of d, elementwise.

    Returns:
      (mean, std), scalars in nats, detached.

    Raises:
      ValueError: shapes differ, an entry is not finite, a law does not sum to 1, or
        the penalty is not finite somewhere.

    >>> pi, ref = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> mean, std = moments(pi, ref, ESTIMATES["k1"])
    >>> round(mean.item(), 4), round(std.item(), 4)   # ½ ln(4/3), ½ ln 3
    (0.1438, 0.5493)
    """
    logp, d = _log_ratio(logp, ref_logp)
    f, probs = _values(penalty, d), logp.exp()
    mean = (probs * f).sum()
    return mean, (probs * (f - mean).square()).sum().sqrt()


def reward_gradient(logp: Tensor, ref_logp: Tensor, penalty: Penalty) -> Tensor:
    """Expected gradient of a penalty *in the reward*, for the logits of a softmax.

    E_π[f(d) ∇log π(a)]  =  π(a) [f(d_a) − E_π f(d)]
    This is what a run descends (its reward is −β f). The mean of f plays no part: only
    how f differs between actions does.

    Args:
      logp, ref_logp, penalty: as `moments`.

    Returns:
      Nats, [K], detached; it sums to 0.

    Raises:
      ValueError: as `moments`.

    Source: Williams (1992), REINFORCE, in expectation.

    >>> pi, ref = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> reward_gradient(pi, ref, ESTIMATES["k1"]).round(decimals=4)  # ±¼ ln 3
    tensor([ 0.2747, -0.2747])
    """
    logp, d = _log_ratio(logp, ref_logp)
    f, probs = _values(penalty, d), logp.exp()
    return probs * (f - (probs * f).sum())


def loss_gradient(logp: Tensor, ref_logp: Tensor, penalty: Penalty) -> Tensor:
    """Expected gradient of a penalty *as a loss*, for the logits of a softmax.

    E_π[∇ f(d)]  =  π(a) [f′(d_a) − E_π f′(d)]
    The samples are drawn first and are constants: ∇ does not act on the law they come
    from. So this is not the gradient of the mean of f.

    Args:
      logp, ref_logp, penalty: as `moments`; f is differentiated by autograd.

    Returns:
      Nats, [K], detached; it sums to 0.

    Raises:
      ValueError: as `moments`.

    Source: the equivalence of a loss f with a coefficient f′, arXiv 2510.01555.

    >>> pi, ref = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> loss_gradient(pi, ref, ESTIMATES["k1"])   # f′ = 1: nothing at all
    tensor([0., 0.])
    """
    return reward_gradient(logp, ref_logp, slope(penalty))


def slope(penalty: Penalty) -> Penalty:
    """f′, as a function of d: the coefficient of a penalty that is used as a loss.

    >>> slope(ESTIMATES["k2"])(torch.tensor([3.0]))   # (d²/2)′ = d
    tensor([3.])
    """

    def derivative(d: Tensor) -> Tensor:
        with torch.enable_grad():
            d = d.detach().requires_grad_()
            (g,) = torch.autograd.grad(penalty(d).sum(), d)
        return g

    return derivative


def fdivergence_generator(w: float, coefficient: Penalty) -> float:
    """F(w) of the divergence Σ π_ref F(π/π_ref) that a coefficient c(d) descends.

    F(w) = ∫₁ʷ c(log u) du,  so that  E_π[c(d) ∇log π] = ∇ Σ π_ref F(π/π_ref)
    F is convex, and the sum a divergence, exactly if c never falls.

    Args:
      w: π(a)/π_ref(a) > 0.
      coefficient: c, a function of d = log w.

    Returns:
      F(w) in nats, by quadrature to about 10 digits.

    Raises:
      ValueError: w is not > 0.

    Source: π ∇log π = π_ref ∇(π/π_ref), and the chain rule.

    >>> round(fdivergence_generator(2.0, ESTIMATES["k1"]), 4)   # 2 ln 2 − 1
    0.3863
    """
    check_positive(w=w)

    def integrand(u):
        return coefficient(torch.tensor(u, dtype=torch.float64).log()).item()

    return quad(integrand, 1.0, float(w), epsabs=1e-12, epsrel=1e-11)[0]


def exact_flow(
    logp: Tensor,
    ref_logp: Tensor,
    penalty: Penalty,
    times: Tensor,
    rewards: Tensor | None = None,
    beta: float = 1.0,
) -> Tensor:
    """The path of a softmax policy under r − β f(d) in the reward, without noise.

    dθ_a/dt = π(a) [R(a) − E_π R],  R = r − β f(d)
    A loss takes the same path with slope(f) for f. Time is steps × learning rate.

    Args:
      logp: log π at time 0, nats, [K], all finite.
      ref_logp: log π_ref, nats, [K], all finite.
      penalty: f, a function of d, elementwise.
      times: increasing, ≥ 0, [N].
      rewards: r, reward units, [K]; None for no task at all.
      beta: reward per nat, > 0.

    Returns:
      log π at those times, nats, [N, K], float64, detached.

    Raises:
      ValueError: as `moments`; times do not increase from ≥ 0; rewards have another
        shape or are not finite; or beta ≤ 0.

    Source: the mean of REINFORCE's step, Williams (1992), as its size goes to 0.

    >>> start, ref = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> path = exact_flow(start, ref, ESTIMATES["k1"], torch.tensor([0.0, 40.0]))
    >>> path.exp().round(decimals=4)
    tensor([[0.9000, 0.1000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    start, _ = _log_ratio(logp, ref_logp)
    ref = ref_logp.detach().double()
    check_positive(beta=beta)
    r = torch.zeros_like(ref) if rewards is None else rewards
    check_same_shape(logp=logp, rewards=r)
    check_finite(rewards=r)
    r = r.detach().double()
    t = check_times(times).numpy()

    def velocity(_, theta):
        now = torch.from_numpy(theta).log_softmax(-1)
        probs = now.exp()
        # e⁻ᵈ must not overflow; an action below e⁻⁶⁰⁰ of its π_ref may stand still
        value = r - beta * _values(penalty, (now - ref).clamp(min=-600))
        return (probs * (value - (probs * value).sum())).numpy()

    # nothing moves at time 0 if that is all that is asked for
    span = (0.0, max(float(t[-1]), 1e-12))
    path = solve_ivp(
        velocity, span, start.double().numpy(), method="LSODA",
        rtol=1e-10, atol=1e-12, t_eval=t,
    )  # fmt: skip
    return torch.from_numpy(path.y.T.copy()).log_softmax(-1)


def top_p(logp: Tensor, mass: float) -> Tensor:
    """The law that nucleus (top-p) sampling really draws from.

    π_S(a) = π(a)/π(S) for a in S, else 0; S: the likeliest actions, as few as reach
    the mass. Its log-probabilities are not those of π: they lack −log π(S).

    Args:
      logp: log π in nats, [..., K].
      mass: top-p's p, in (0, 1]; 1 keeps everything.

    Returns:
      log π_S, [..., K], −inf where nothing is ever drawn; equal to logp at mass 1.

    Raises:
      ValueError: mass is not in (0, 1], or logp is not finite.

    Source: Holtzman et al. (2020), "The curious case of neural text degeneration", §3.

    >>> top_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.7).exp()   # 5/8, 3/8, 0
    tensor([0.6250, 0.3750, 0.0000])
    """
    check_number(mass=mass)
    if not 0 < mass <= 1:
        raise ValueError(f"mass: want 0 < mass ≤ 1, found {mass}")
    check_finite(logp=logp)
    if mass == 1:
        return logp.clone()
    ordered, order = logp.sort(-1, descending=True)
    # keep an action if those before it do not reach the mass yet
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.where(before < mass - 1e-9, ordered, -torch.inf)
    return torch.empty_like(logp).scatter(-1, order, kept).log_softmax(-1)


def _log_ratio(logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, Tensor]:
    """log π and d, detached; both laws checked."""
    check_same_shape(logp=logp, ref_logp=ref_logp)
    if logp.ndim != 1 or len(logp) < 2:
        raise ValueError(f"logp: want [K], K ≥ 2, found {list(logp.shape)}")
    check_finite(logp=logp, ref_logp=ref_logp)
    for name, law in {"logp": logp, "ref_logp": ref_logp}.items():
        total = law.detach().logsumexp(-1).exp().item()
        check_between(0.999, 1.001, **{f"sum_of_exp_{name}": total})
    return logp.detach(), (logp - ref_logp).detach()


def _values(penalty: Penalty, d: Tensor) -> Tensor:
    f = penalty(d)
    check_same_shape(penalty=f, d=d)
    check_finite(penalty=f)
    return f.detach()
