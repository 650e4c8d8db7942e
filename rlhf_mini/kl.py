"""KL(π‖π_ref): its estimates, its exact value, and its two honest uses.

The estimates k1, k2, k3 are values to report or to put into a reward, so they carry
no gradient. What may be descended is `kl_surrogate`; what may be added to a reward is
k1 (`shape_rewards`). Use one of the two in a run, not both: the penalty would count
twice. Throughout, d = log π(a) − log π_ref(a) for actions a drawn from π.
"""

import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_finite,
    check_inputs,
    check_ndim,
    check_number,
    check_positive,
    check_same_shape,
)
from rlhf_mini.logprobs import log_softmax, sequence_sum
from rlhf_mini.masking import masked_mean, zero_pads


def _log_ratio(**pair: Tensor) -> Tensor:
    """First minus second, detached; not checked for NaN, as there is no mask here."""
    check_same_shape(**pair)
    for name, x in pair.items():
        if not x.is_floating_point():
            raise ValueError(f"{name}: want a floating dtype, found {x.dtype}")
    first, second = pair.values()
    return (first - second).detach()


def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-sample k1 estimate of KL(π‖π_ref), for actions drawn from π.

    k1 = d = log π(a) − log π_ref(a)
    A single value may be negative; only its average is the KL. It is the one estimate
    that is right inside a reward; as a loss its expected gradient is exactly zero.

    Args:
      logp: log π(a|s) in nats, [...].
      ref_logp: log π_ref(a|s) in nats, same shape.

    Returns:
      Estimate in nats, [...], detached.

    Raises:
      ValueError: the two shapes differ, or a dtype is no floating one.

    Source: Schulman (2020), "Approximating KL divergence".

    >>> half, quarter = torch.tensor([0.5, 0.25]).log()
    >>> round(kl_k1(half, quarter).item(), 4)  # ln 2
    0.6931
    """
    return _log_ratio(logp=logp, ref_logp=ref_logp)


def kl_k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-sample k2 estimate of KL(π‖π_ref), for actions drawn from π.

    k2 = d²/2
    Biased: its mean is the KL only to second order in π − π_ref. With a gradient and
    on whole sequences it is the right loss, which is `kl_surrogate`.

    Args:
      logp: log π(a|s) in nats, [...].
      ref_logp: log π_ref(a|s) in nats, same shape.

    Returns:
      Estimate in nats, [...], detached.

    Raises:
      ValueError: the two shapes differ, or a dtype is no floating one.

    Source: Schulman (2020), "Approximating KL divergence".

    >>> half, quarter = torch.tensor([0.5, 0.25]).log()
    >>> round(kl_k2(half, quarter).item(), 4)  # (ln 2)²/2
    0.2402
    """
    return _log_ratio(logp=logp, ref_logp=ref_logp).square() / 2


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-sample k3 estimate of KL(π‖π_ref), for actions drawn from π.

    k3 = e⁻ᵈ − 1 + d
    Never negative, and its average over a ~ π is the KL exactly (if π can do all that
    π_ref can). Not a loss (its gradient is that of the *reversed* KL) and not a reward
    (it does not pull back): notebook 05.

    Args:
      logp: log π(a|s) in nats, [...].
      ref_logp: log π_ref(a|s) in nats, same shape.

    Returns:
      Estimate in nats, [...], detached; inf where e⁻ᵈ overflows.

    Raises:
      ValueError: the two shapes differ, or a dtype is no floating one.

    Source: Schulman (2020), "Approximating KL divergence".

    >>> half, quarter = torch.tensor([0.5, 0.25]).log()
    >>> round(kl_k3(half, quarter).item(), 4)  # 1/2 − 1 + ln 2
    0.1931
    """
    d = _log_ratio(logp=logp, ref_logp=ref_logp)
    return torch.expm1(-d) + d


def approx_kl(logp: Tensor, old_logp: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far the policy has moved from the one that sampled: mean k3 of KL(π_old‖π).

    mean of ρ − 1 − log ρ,  where ρ = π/π_old and the tokens were drawn from π_old.
    This is about PPO's step. It is not the distance to π_ref that β pays for.

    Args:
      logp: log π in nats, [...].
      old_logp: log π_old in nats, same shape.
      mask: 0/1, same shape, or None for all ones.

    Returns:
      Scalar in nats, detached.

    Raises:
      ValueError: shapes differ, the mask is empty, or an unmasked entry is not finite.

    Source: Schulman (2020); the metric `approx_kl` of cleanrl.

    >>> half, quarter = torch.tensor([0.5, 0.25]).log()
    >>> round(approx_kl(quarter, half).item(), 4)  # 1/2 − 1 + ln 2
    0.1931
    """
    check_same_shape(logp=logp, old_logp=old_logp)
    check_inputs(mask, logp=logp, old_logp=old_logp)
    return masked_mean(kl_k3(old_logp, logp), mask)


def exact_kl(logits: Tensor, ref_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(π‖π_ref) of each row, by summing over all actions.

    KL(π‖π_ref) = Σᵥ π(v) [log π(v) − log π_ref(v)]
    Averaged over sampled prefixes and descended, it is only part of the gradient of
    the sequence KL: it does not see that a token changes which prefixes come next.

    Args:
      logits: of π, [..., V]; log-probabilities are logits too.
      ref_logits: of π_ref, same shape.
      mask: 0/1, [...], or None for all ones.

    Returns:
      Nats, [...], with gradient in both arguments; pads 0; inf where π can do what
      π_ref cannot.

    Raises:
      ValueError: shapes differ, or an unmasked row holds NaN, +inf or only −inf.

    >>> pi, ref = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()
    >>> round(exact_kl(pi, ref).item(), 4)  # 1 · ln(1 / ½)
    0.6931
    """
    check_same_shape(logits=logits, ref_logits=ref_logits)
    logp, ref_logp = log_softmax(logits, mask), log_softmax(ref_logits, mask)
    # an action π never takes adds 0 · (−∞) = 0, whatever π_ref thinks of it
    log_ratio = (logp - ref_logp).masked_fill(logp == -torch.inf, 0)
    (kl,) = zero_pads(mask, (logp.exp() * log_ratio).sum(-1))
    return kl


def kl_surrogate(logp: Tensor, ref_logp: Tensor, mask: Tensor | None) -> Tensor:
    """Loss whose expected gradient, for sequences drawn from π, is ∇KL(π‖π_ref).

    mean over sequences of S²/2,  where S = Σₜ mₜ [log π(yₜ|sₜ) − log π_ref(yₜ|sₜ)]
    E_π[∇ S²/2] = E_π[S ∇log π(y)] = ∇KL of the sequence law. The square is of the
    *sequence* sum: squaring each token first forgets that a token decides which
    prefixes follow. Off-policy samples need the weight π/π_old too.

    Args:
      logp: log π of each sampled token in nats, [B, T].
      ref_logp: log π_ref of the same tokens, [B, T]; a constant here.
      mask: 0/1, [B, T], or None for all ones; a row without a 1 is left out.

    Returns:
      Scalar in nats, with gradient in logp. Its value is k2: report another one.

    Raises:
      ValueError: not two axes, shapes differ, the mask is empty, or an unmasked entry
        is not finite.

    Source: k2 as a loss, Schulman (2020); sequences, Tang and Munos (arXiv 2506.09477).

    >>> logp, ref_logp = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -3.0]])
    >>> kl_surrogate(logp, ref_logp, None).item()  # (1 + 1)²/2
    2.0
    """
    check_inputs(mask, logp=logp, ref_logp=ref_logp)
    check_ndim(2, logp=logp)
    log_ratio = sequence_sum(logp, mask) - sequence_sum(ref_logp, mask).detach()  # [B]
    return masked_mean(log_ratio.square() / 2, None if mask is None else mask.any(-1))


def shape_rewards(
    score: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor | None, beta: float
) -> Tensor:
    """Per-token rewards: a k1 penalty on each token, the score on the last one.

    rₜ = −β [log π(yₜ|sₜ) − log π_ref(yₜ|sₜ)] + 1[t is the last unmasked token] · score
    Their sum over a sequence is score − β log π(y)/π_ref(y). The score belongs on the
    last *unmasked* token, wherever the pads stand, not on the last column.

    Args:
      score: of the whole sequence, [B], reward units.
      logp: log π of the tokens, from the policy that sampled them, in nats, [B, T].
      ref_logp: log π_ref of the same tokens, [B, T].
      mask: 0/1, [B, T], or None for all ones.
      beta: reward per nat, > 0; larger stays closer to π_ref.

    Returns:
      Reward units, [B, T], detached; pads 0.

    Raises:
      ValueError: shapes do not fit, a row has no unmasked token, an unmasked entry is
        not finite, or beta ≤ 0.

    Source: Ziegler et al. (2019), `compute_rewards` in openai/lm-human-preferences.

    >>> logp, ref_logp = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -2.0]])
    >>> shape_rewards(torch.tensor([3.0]), logp, ref_logp, None, beta=0.5).tolist()
    [[-0.5, 3.0]]
    """
    check_inputs(mask, logp=logp, ref_logp=ref_logp)
    check_ndim(2, logp=logp)
    check_ndim(1, score=score)
    check_finite(score=score)
    check_positive(beta=beta)
    batch, length = logp.shape
    if len(score) != batch:
        found = f"score {list(score.shape)}, logp {list(logp.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    keep = torch.ones_like(logp).bool() if mask is None else mask.bool()
    if not keep.any(-1).all():
        row = int((~keep.any(-1)).nonzero()[0])
        raise ValueError(f"mask: row {row} has no unmasked token for the score")
    logp, ref_logp = zero_pads(keep, logp.detach(), ref_logp.detach())
    rewards = beta * (ref_logp - logp)
    last = torch.where(keep, torch.arange(length, device=keep.device), -1).amax(-1)
    rewards[torch.arange(batch, device=keep.device), last] += score.detach()
    return rewards


class AdaptiveKL:
    """Ziegler's controller: move β until the KL to the reference meets a target.

    β ← β · (1 + clip(KL/target − 1, ±0.2) · n/horizon)
    The KL must be that of whole *sequences*: a mean per token is smaller by the length
    and drives β towards 0. β never stops moving, so the objective moves with it.

    Args:
      beta: first weight, reward per nat, > 0.
      target: wanted KL(π‖π_ref) per sequence in nats, > 0.
      horizon: number of sequences over which β may change by about 20 %, > 0.

    Raises:
      ValueError: an argument is not a finite number > 0.

    Source: Ziegler et al. (2019), §2.2, with target 6 and horizon 10 000.

    >>> controller = AdaptiveKL(beta=1.0, target=6.0, horizon=100)
    >>> controller.update(kl=12.0, n=50)  # 1 + 0.2 · 50/100
    1.1
    """

    def __init__(self, beta: float, target: float, horizon: float) -> None:
        check_positive(beta=beta, target=target, horizon=horizon)
        self.beta = float(beta)
        self.target = float(target)
        self.horizon = float(horizon)

    def update(self, kl: float, n: int) -> float:
        """Take the mean sequence KL (nats, may be negative) of n sequences; new β.

        Raises:
          ValueError: kl is not finite, or n is not in (0, 5 · horizon): a larger n
            could make β negative.
        """
        check_number(kl=kl)
        check_positive(n=n)
        if n >= 5 * self.horizon:
            raise ValueError(f"n: want n < 5 · horizon = {5 * self.horizon}, found {n}")
        error = min(max(float(kl) / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * n / self.horizon
        return self.beta

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must keep so that a resumed run has the same β."""
        return {"beta": self.beta, "target": self.target, "horizon": self.horizon}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a saved state.

        Raises:
          ValueError: the keys are not beta, target, horizon, or a value is not > 0.
        """
        if set(state) != {"beta", "target", "horizon"}:
            raise ValueError(f"state: want beta, target, horizon, found {list(state)}")
        self.__init__(**state)
