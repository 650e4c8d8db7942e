"""What a constant subtracted from the reward does to the noise of policy gradient.

The estimate from one draw y ~ π is (r(y) − b) ∇log π(y). Its mean does not depend on b,
because the score ∇log π has mean zero; its variance does, and is computed here exactly.
`scores` has one row ∇log π(y) per outcome, for whatever parameters the policy has.
"""

import torch
from torch import Tensor

from rlhf_mini.checks import check_finite, check_law, check_ndim


def softmax_scores(logp: Tensor) -> Tensor:
    """The score ∇log π(y) of each outcome, with respect to softmax logits.

    ∂ log π(y)/∂θ_a = 1[y = a] − π(a)

    Args:
      logp: log π, nats, [K].

    Returns:
      [K, K], row y is the score of y; no gradient.

    Raises:
      ValueError: not one axis, or no law.

    Source: Sutton and Barto (2018), "Reinforcement learning", eq. 2.12 and its proof.

    >>> softmax_scores(torch.tensor([0.75, 0.25]).log())
    tensor([[ 0.2500, -0.2500],
            [-0.7500,  0.7500]])
    """
    check_ndim(1, logp=logp)
    check_law(logp=logp)
    probs = logp.detach().exp()
    return torch.eye(len(probs), dtype=probs.dtype, device=probs.device) - probs


def optimal_baseline(logp: Tensor, rewards: Tensor, scores: Tensor) -> Tensor:
    """The constant that makes policy gradient least noisy.

    b* = E_π[r ‖∇log π‖²] / E_π[‖∇log π‖²]
    Not the mean reward: what has a long score, which is what is rare, counts more.

    Args:
      logp: log π, nats, [K].
      rewards: of each outcome, the KL penalty included, reward units, [K].
      scores: ∇log π(y), one row per outcome, [K, P].

    Returns:
      b*, reward units, scalar, no gradient.

    Raises:
      ValueError: shapes do not fit; no law; an entry is not finite; scores whose mean
        under π is not zero; or all scores are zero, where every baseline is as good.

    Source: Weaver and Tao (2001), "The optimal reward baseline for gradient-based
    reinforcement learning"; Greensmith, Bartlett and Baxter (2004).

    >>> logp, r = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.0, 1.0])
    >>> optimal_baseline(logp, r, softmax_scores(logp)).item()   # the mean is 0.25
    0.75
    """
    weight = _weighted_squares(logp, rewards, scores)
    if not weight.sum() > 0:
        raise ValueError("scores: found all zero where π has mass: nothing to learn")
    return (weight * rewards.detach()).sum() / weight.sum()


def gradient_variance(
    logp: Tensor, rewards: Tensor, baseline: Tensor | float, scores: Tensor
) -> Tensor:
    """Variance of the one-draw policy gradient, summed over its components.

    Var = E_π[(r − b)² ‖∇log π‖²] − ‖E_π[r ∇log π]‖²
    A parabola in b with its minimum at `optimal_baseline`. A mean of n draws has 1/n
    of it.

    Args:
      logp: log π, nats, [K].
      rewards: of each outcome, the KL penalty included, reward units, [K].
      baseline: b, reward units, a number or any shape [...].
      scores: ∇log π(y), one row per outcome, [K, P].

    Returns:
      Total variance, [...], reward units squared, no gradient.

    Raises:
      ValueError: as `optimal_baseline`, but for zero scores; or b is not finite.

    Source: Greensmith, Bartlett and Baxter (2004), "Variance reduction techniques for
    gradient estimates in reinforcement learning".

    >>> logp, r = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.0, 1.0])
    >>> scores = softmax_scores(logp)
    >>> gradient_variance(logp, r, torch.tensor([0.25, 0.75]), scores)  # mean, best
    tensor([0.0938, 0.0000])
    """
    weight = _weighted_squares(logp, rewards, scores)
    rewards, probs = rewards.detach(), logp.detach().exp()
    baseline = torch.as_tensor(baseline, dtype=rewards.dtype, device=rewards.device)
    check_finite(baseline=baseline)
    # subtracting the mean first changes no moment and saves digits
    centre = (probs * rewards).sum()
    mean = (probs * (rewards - centre)) @ scores.detach()
    squares = (rewards - baseline.detach()[..., None]).square()
    return (weight * squares).sum(-1) - mean.square().sum()


def _weighted_squares(logp: Tensor, rewards: Tensor, scores: Tensor) -> Tensor:
    """π(y) ‖∇log π(y)‖², [K], after all checks."""
    check_ndim(1, logp=logp, rewards=rewards)
    check_ndim(2, scores=scores)
    check_law(logp=logp)
    check_finite(rewards=rewards, scores=scores)
    if not len(logp) == len(rewards) == len(scores):
        shapes = {"logp": logp, "rewards": rewards, "scores": scores}
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in shapes.items())
        raise ValueError(f"shapes do not fit: {found}")
    probs, scores = logp.detach().exp(), scores.detach()
    mean = (probs @ scores).abs().max()
    if mean > 1e-4 * (1 + scores.abs().max()):
        found = f"a mean of up to {mean.item():.3g} under π"
        raise ValueError(f"scores: want mean zero, found {found}")
    return probs * scores.square().sum(-1)
