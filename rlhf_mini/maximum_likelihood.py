"""One Newton solver for every preference model, and what a fit consists of.

A log-likelihood of strengths does not change when all of them are shifted, so its
Hessian is singular along that direction; the solver adds the shift back, and the
covariance is that of the strengths as normalised.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fit:
    """A maximum-likelihood fit. Everything is as normalised, float64.

    The s.e. of a difference s_i − s_j is not a sum of two entries of `stderr`:
    it is √(C_ii + C_jj − 2 C_ij), with C the covariance.
    """

    strength: Tensor  # [N], nats
    stderr: Tensor  # [N], nats; 0 for the reference item
    covariance: Tensor  # [N, N]
    log_likelihood: float  # nats, without binomial coefficients
    tie: float | None = None  # Davidson's ν
    tie_stderr: float | None = None  # of ν
    home: float | None = None  # advantage of the home side, nats
    home_stderr: float | None = None


def maximise(
    log_likelihood: Callable[[Tensor], Tensor],
    items: int,
    reference: int | None,
    extra: str | None = None,
) -> Fit:
    """Newton's method with step halving; the last parameter may be an extra one."""
    if reference is not None and reference not in range(items):
        raise ValueError(f"reference: want an item below {items}, found {reference}")
    size = items + (extra is not None)
    theta = torch.zeros(size, dtype=torch.float64)
    shift = torch.zeros_like(theta)  # the direction that no comparison can see
    shift[:items] = items**-0.5
    for _ in range(100):
        at = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_likelihood(at), at)
        hessian = torch.autograd.functional.hessian(log_likelihood, theta)
        information = torch.outer(shift, shift) - hessian
        step, info = torch.linalg.solve_ex(information, gradient)
        if info:  # not one outcome is in doubt any more
            raise ValueError("counts too extreme: the information is singular")
        value = log_likelihood(theta)
        floor = value - 1e-12 * value.abs()  # rounding is no reason to halve
        for _ in range(50):
            if log_likelihood(theta + step) >= floor:
                break
            step = step / 2
        theta = theta + step
        if step.abs().max() < 1e-9:
            break
    else:
        raise ValueError("counts too extreme: no maximum found in 100 Newton steps")
    # as normalised: subtract the reference's strength, or the mean; either wipes out
    # what `information` holds along the shift
    normalise = torch.eye(size, dtype=torch.float64)
    origin = shift * items**-0.5 if reference is None else normalise[reference].clone()
    normalise[:items] -= origin
    covariance = normalise @ torch.linalg.inv(information) @ normalise.T
    stderr = covariance.diagonal().clamp(min=0).sqrt()
    found = normalise @ theta
    extras = {}
    if extra == "home":
        extras = {"home": found[-1].item(), "home_stderr": stderr[-1].item()}
    if extra == "tie":  # the fit is of log ν
        nu = found[-1].exp().item()
        extras = {"tie": nu, "tie_stderr": nu * stderr[-1].item()}
    return Fit(
        strength=found[:items],
        stderr=stderr[:items],
        covariance=covariance[:items, :items],
        log_likelihood=log_likelihood(theta).item(),
        **extras,
    )
