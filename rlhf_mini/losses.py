"""One function per published loss; all are to be minimised.

The first ones take one common shape [...] and an optional mask: [B] for a bandit
(an action is a sequence of length 1), [B, T] for tokens. They end in one mean over all
unmasked entries, so a long answer weighs more than a short one; only `grpo_loss` means
over answers, as it was published. The preference losses
return one number per example, [B]: take the mean yourself. Only the policy's own
`logp`, `values` or scores carry a gradient; all that was sampled, estimated or frozen
(advantages, returns, old, behaviour and reference quantities) is a constant.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_mini.checks import (
    check_between,
    check_finite,
    check_index,
    check_inputs,
    check_ndim,
    check_positive,
)
from rlhf_mini.logprobs import sequence_sum
from rlhf_mini.masking import masked_mean, masked_var, zero_pads


def _exp(log_ratio: Tensor, name: str) -> Tensor:
    """Ratio of probabilities; overflow raises, since clamping would hide its cause."""
    ratio = log_ratio.exp()
    if not torch.isfinite(ratio).all():
        where = [int(i) for i in (~torch.isfinite(ratio)).nonzero()[0]]
        found = f"the log-ratio is {log_ratio[tuple(where)].item():.6g} at {where}"
        raise ValueError(f"ratio {name} overflows: {found}")
    return ratio


def _clipped(ratio: Tensor, advantages: Tensor, clip_eps: float) -> Tensor:
    """−min(ρA, clip(ρ, 1±ε)A), elementwise."""
    clipped_ratio = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    return torch.maximum(-ratio * advantages, -clipped_ratio * advantages)


def reinforce_loss(
    logp: Tensor, advantages: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Surrogate whose gradient is the policy gradient, for actions drawn from π.

    L = −mean A log π(a|s)
    Its value means nothing: only its gradient does, and only on fresh samples.

    Args:
      logp: log π of the actions in nats, [...].
      advantages: [...], reward units, a constant.
      mask: 0/1, [...], or None for all ones.

    Returns:
      Scalar, with gradient in logp.

    Raises:
      ValueError: shapes differ, the mask is empty, or an unmasked entry is not finite.

    Source: Williams (1992), "Simple statistical gradient-following algorithms".

    >>> logp = torch.tensor([0.5, 0.25]).log()
    >>> round(reinforce_loss(logp, torch.tensor([2.0, 0.0])).item(), 4)  # 2 ln 2 / 2
    0.6931
    """
    check_inputs(mask, logp=logp, advantages=advantages)
    logp, advantages = zero_pads(mask, logp, advantages.detach())
    return masked_mean(-advantages * logp, mask)


def ppo_clip_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    clip_eps: float = 0.2,
) -> Tensor:
    """PPO's clipped surrogate.

    L = −mean min(ρA, clip(ρ, 1−ε, 1+ε)A),  where ρ = π/π_old
    The clip is no constraint: it only silences samples that have already moved too far
    in the direction they ask for. Nothing pulls them back.

    Args:
      logp: log π of the actions in nats, [...].
      old_logp: log π_old, of the policy that sampled, [...], a constant.
      advantages: [...], reward units, a constant.
      mask: 0/1, [...], or None for all ones.
      clip_eps: ε > 0.

    Returns:
      Scalar, with gradient in logp.

    Raises:
      ValueError: shapes differ, the mask is empty, an unmasked entry is not finite,
        clip_eps ≤ 0, or a ratio overflows.

    Source: Schulman et al. (2017), arXiv 1707.06347, eq. 7.

    >>> logp, old_logp = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> round(ppo_clip_loss(logp, old_logp, torch.tensor([10.0])).item(), 4)
    -12.0
    """
    check_inputs(mask, logp=logp, old_logp=old_logp, advantages=advantages)
    check_positive(clip_eps=clip_eps)
    logp, old_logp, advantages = zero_pads(
        mask, logp, old_logp.detach(), advantages.detach()
    )
    ratio = _exp(logp - old_logp, "π/π_old")
    return masked_mean(_clipped(ratio, advantages, clip_eps), mask)


def ppo_decoupled_loss(
    logp: Tensor,
    prox_logp: Tensor,
    behaviour_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    clip_eps: float = 0.2,
) -> Tensor:
    """PPO whose clip is centred on one policy while another one sampled.

    L = −mean (π_prox/π_behav) min(ρA, clip(ρ, 1−ε, 1+ε)A),  where ρ = π/π_prox
    The weight stands outside the clip and is never clipped: its variance is yours.

    Args:
      logp: log π of the actions in nats, [...].
      prox_logp: log π_prox, the policy to stay near, [...], a constant.
      behaviour_logp: log π_behav, the policy that sampled, [...], a constant.
      advantages: [...], reward units, a constant.
      mask: 0/1, [...], or None for all ones.
      clip_eps: ε > 0.

    Returns:
      Scalar, with gradient in logp; ppo_clip_loss if π_prox = π_behav.

    Raises:
      ValueError: as ppo_clip_loss.

    Source: Hilton et al. (2021), arXiv 2110.00641.

    >>> half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    >>> round(ppo_decoupled_loss(half, half, quarter, torch.ones(1)).item(), 4)
    -2.0
    """
    check_inputs(
        mask,
        logp=logp,
        prox_logp=prox_logp,
        behaviour_logp=behaviour_logp,
        advantages=advantages,
    )
    check_positive(clip_eps=clip_eps)
    logp, prox_logp, behaviour_logp, advantages = zero_pads(
        mask, logp, prox_logp.detach(), behaviour_logp.detach(), advantages.detach()
    )
    weight = _exp(prox_logp - behaviour_logp, "π_prox/π_behav")
    ratio = _exp(logp - prox_logp, "π/π_prox")
    return masked_mean(weight * _clipped(ratio, advantages, clip_eps), mask)


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    beta: float = 0.04,
    clip_eps: float = 0.2,
) -> Tensor:
    """GRPO's loss as published: PPO's clip, plus k3 with a gradient, mean by answer.

    L = (1/B) Σᵢ (1/|yᵢ|) Σₜ {−min(ρA, clip(ρ, 1−ε, 1+ε)A) + β k3},
    where ρ = π/π_old and k3 = π_ref/π − 1 − log(π_ref/π)
    The penalty does not descend KL(π‖π_ref): the gradient of k3 is that of KL(π_ref‖π)
    at the prefixes sampled. And 1/|yᵢ| makes a token of a long answer count less.

    Args:
      logp: log π of the tokens in nats, [B, T].
      old_logp: log π_old, of the policy that sampled, [B, T], a constant.
      ref_logp: log π_ref, [B, T], a constant.
      advantages: [B, T], one number for all tokens of an answer, a constant.
      mask: 0/1, [B, T], or None for all ones; a row without a 1 is left out.
      beta: > 0; per unit of advantage, so in *standard deviations* of the reward if
        the advantages are `group_normalized`.
      clip_eps: ε > 0.

    Returns:
      Scalar, with gradient in logp.

    Raises:
      ValueError: not two axes, shapes differ, the mask is empty, an unmasked entry is
        not finite, beta or clip_eps ≤ 0, or a ratio overflows.

    Source: Shao et al. (2024), arXiv 2402.03300, eq. 3 and 4; β as there.

    >>> logp, ref_logp = torch.tensor([[0.25]]).log(), torch.tensor([[0.5]]).log()
    >>> loss = grpo_loss(logp, logp, ref_logp, torch.zeros(1, 1), beta=1.0)
    >>> round(loss.item(), 4)  # 2 − 1 − ln 2
    0.3069
    """
    check_inputs(
        mask, logp=logp, old_logp=old_logp, ref_logp=ref_logp, advantages=advantages
    )
    check_ndim(2, logp=logp)
    check_positive(beta=beta, clip_eps=clip_eps)
    keep = torch.ones_like(logp).bool() if mask is None else mask.bool()
    logp, old_logp, ref_logp, advantages = zero_pads(
        keep, logp, old_logp.detach(), ref_logp.detach(), advantages.detach()
    )
    ratio = _exp(logp - old_logp, "π/π_old")
    k3 = _exp(ref_logp - logp, "π_ref/π") - 1 - (ref_logp - logp)
    per_token = _clipped(ratio, advantages, clip_eps) + beta * k3
    per_answer = sequence_sum(per_token, keep) / keep.sum(-1).clamp(min=1)  # [B]
    return masked_mean(per_answer, keep.any(-1))


def value_clip_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor | None = None,
    clip_eps: float = 0.2,
) -> Tensor:
    """Squared error of the critic, with a speed limit.

    L = ½ mean max{(V − R)², (V_old + clip(V − V_old, ±ε) − R)²}
    ε is in reward units: with rewards near 5 and ε = 0.2, the critic needs 25 refreshes
    of V_old to get there. `returns` must not be whitened.

    Args:
      values: V(s), [...], reward units.
      old_values: V(s) when the batch was sampled, [...], a constant.
      returns: what V should predict, [...], a constant.
      mask: 0/1, [...], or None for all ones.
      clip_eps: ε > 0, reward units.

    Returns:
      Scalar, squared reward units, with gradient in values.

    Raises:
      ValueError: shapes differ, the mask is empty, an unmasked entry is not finite, or
        clip_eps ≤ 0.

    Source: `ppo2` in openai/baselines; Ziegler et al. (2019).

    >>> values, old_values = torch.tensor([1.0]), torch.tensor([0.0])
    >>> value_clip_loss(values, old_values, torch.tensor([1.0]), clip_eps=0.5).item()
    0.125
    """
    check_inputs(mask, values=values, old_values=old_values, returns=returns)
    check_positive(clip_eps=clip_eps)
    values, old_values, returns = zero_pads(
        mask, values, old_values.detach(), returns.detach()
    )
    clipped_values = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    error, clipped_error = values - returns, clipped_values - returns
    return masked_mean(torch.maximum(error.square(), clipped_error.square()) / 2, mask)


def clip_fraction(
    logp: Tensor,
    old_logp: Tensor,
    mask: Tensor | None = None,
    clip_eps: float = 0.2,
) -> Tensor:
    """Share of tokens whose ratio π/π_old lies outside [1−ε, 1+ε].

    mean 1[|ρ − 1| > ε]
    Outside is not silenced: the loss clips only those that A pushes further out.

    Args:
      logp: log π of the actions in nats, [...].
      old_logp: log π_old, [...].
      mask: 0/1, [...], or None for all ones.
      clip_eps: ε > 0.

    Returns:
      Scalar from 0 to 1, detached.

    Raises:
      ValueError: as ppo_clip_loss.

    Source: the metric `clipfrac` of openai/baselines and cleanrl.

    >>> logp, old_logp = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.25]).log()
    >>> clip_fraction(logp, old_logp).item()
    0.5
    """
    check_inputs(mask, logp=logp, old_logp=old_logp)
    check_positive(clip_eps=clip_eps)
    logp, old_logp = zero_pads(mask, logp.detach(), old_logp.detach())
    ratio = _exp(logp - old_logp, "π/π_old")
    return masked_mean(((ratio - 1).abs() > clip_eps).to(ratio.dtype), mask)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Share of the variance of the returns that the critic predicts.

    1 − Var(R − V)/Var(R)
    1 is perfect, 0 a constant, negative worse than a constant.

    Args:
      values: V(s), [...], reward units.
      returns: R, [...], reward units.
      mask: 0/1, [...], or None for all ones.

    Returns:
      Scalar ≤ 1, detached; NaN if all returns are equal, where it has no meaning.

    Raises:
      ValueError: shapes differ, the mask is empty, or an unmasked entry is not finite.

    Source: the metric `explained_variance` of openai/baselines and cleanrl.

    >>> returns = torch.tensor([0.0, 2.0])
    >>> explained_variance(values=returns / 2, returns=returns).item()  # 1 − ¼
    0.75
    """
    check_inputs(mask, values=values, returns=returns)
    values, returns = zero_pads(mask, values.detach(), returns.detach())
    variance = masked_var(returns, mask)
    if variance == 0:
        return torch.full_like(variance, torch.nan)
    return 1 - masked_var(returns - values, mask) / variance


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Cross-entropy of a two-way preference.

    L = −log σ(r_w − r_l)
    Only the difference counts: the scores of one prompt share a free constant.

    Args:
      chosen: score of the preferred answer, [B], nats.
      rejected: score of the other one, [B], nats.

    Returns:
      Nats, [B], with gradient in both.

    Raises:
      ValueError: not one axis, shapes differ, or an entry is not finite.

    Source: Bradley and Terry (1952); Stiennon et al. (2020), arXiv 2009.01325, §3.4.

    >>> bradley_terry_loss(torch.tensor([3.0]).log(), torch.zeros(1)).exp()  # 4/3
    tensor([1.3333])
    """
    check_inputs(chosen=chosen, rejected=rejected)
    check_ndim(1, chosen=chosen)
    return -F.logsigmoid(chosen - rejected)


def all_pairs_loss(scores: Tensor, preference: Tensor) -> Tensor:
    """Cross-entropy of every pair in a batch of B answers, with soft labels.

    L = mean over i < j of −[q_ij log σ(r_i − r_j) + q_ji log σ(r_j − r_i)]
    Each answer is scored once for all its B − 1 pairs. The pairs share answers, so
    they are not B·(B − 1)/2 independent labels.

    Args:
      scores: one score per answer, [B], nats.
      preference: q_ij, the share of judges who prefer i to j, [B, B], a constant;
        q_ij + q_ji = 1, and a tie counts ½ on either side. The diagonal is not read.

    Returns:
      Nats, a scalar, with gradient in scores; log 2 where all scores are equal.

    Raises:
      ValueError: shapes do not fit, B < 2, an entry is not finite, or preference
        leaves [0, 1] or does not add up to 1 with its transpose.

    Source: Ouyang et al. (2022), arXiv 2203.02155, eq. 1, with soft labels.

    >>> q = torch.tensor([[0.5, 0.75], [0.25, 0.5]])
    >>> all_pairs_loss(torch.tensor([3.0, 1.0]).log(), q).exp()  # entropy of (¾, ¼)
    tensor(1.7548)
    """
    check_inputs(scores=scores)
    check_ndim(1, scores=scores)
    n = len(scores)
    if n < 2 or preference.shape != (n, n):
        found = f"scores {list(scores.shape)}, preference {list(preference.shape)}"
        raise ValueError(f"want [B] and [B, B] with B ≥ 2, found {found}")
    preference = preference.to(scores).detach()
    first, second = torch.triu_indices(n, n, 1, device=scores.device)
    q, back = preference[first, second], preference[second, first]
    check_finite(preference=q)
    if q.min() < 0 or q.max() > 1 or (q + back - 1).abs().max() > 1e-4:
        raise ValueError("preference: want q_ij in [0, 1] and q_ij + q_ji = 1")
    margin = scores[first] - scores[second]
    return F.binary_cross_entropy_with_logits(margin, q)


def _check_slate(scores: Tensor) -> None:
    """Raise unless scores are [B, K] with K ≥ 2 and finite."""
    check_ndim(2, scores=scores)
    check_inputs(scores=scores)
    if scores.shape[1] < 2:
        raise ValueError(f"scores: want K ≥ 2, found shape {list(scores.shape)}")


def best_of_k_loss(scores: Tensor, choice: Tensor) -> Tensor:
    """Cross-entropy of one answer chosen among K.

    L = −log exp(r_b) / Σᵢ exp(rᵢ)

    Args:
      scores: [B, K], nats.
      choice: which was preferred, [B], integers from 0 to K − 1.

    Returns:
      Nats, [B], with gradient in scores.

    Raises:
      ValueError: shapes do not fit, K < 2, an entry is not finite, or a choice is out
        of range or no integer.

    Source: Ziegler et al. (2019), arXiv 1909.08593, eq. 1.

    >>> best_of_k_loss(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([4.])
    """
    _check_slate(scores)
    check_index(scores.shape[1], choice=choice)
    if choice.shape != scores.shape[:1]:
        found = f"scores {list(scores.shape)}, choice {list(choice.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    return F.cross_entropy(scores, choice.long(), reduction="none")


def plackett_luce_loss(scores: Tensor, ranking: Tensor) -> Tensor:
    """Cross-entropy of a full ranking: choose the best, then the best of the rest, ….

    L = −Σᵢ log exp(r_σᵢ) / Σⱼ≥ᵢ exp(r_σⱼ),  where σ = ranking
    `ranking` lists answers from best to worst; the *rank of each answer* is its
    inverse permutation, and passing that instead raises no error.

    Args:
      scores: [B, K], nats.
      ranking: indices of the answers, best first, [B, K].

    Returns:
      Nats, [B], with gradient in scores.

    Raises:
      ValueError: shapes differ, K < 2, an entry is not finite, or a row of ranking is
        no permutation of 0 … K − 1.

    Source: Plackett (1975), "The analysis of permutations".

    >>> plackett_luce_loss(torch.zeros(1, 3), torch.tensor([[2, 0, 1]])).exp()  # 3!
    tensor([6.])
    """
    _check_slate(scores)
    check_index(scores.shape[1], ranking=ranking)
    if ranking.shape != scores.shape:
        found = f"scores {list(scores.shape)}, ranking {list(ranking.shape)}"
        raise ValueError(f"shapes differ: {found}")
    permuted = ranking.long().sort(-1).values
    repeats = (permuted != torch.arange(scores.shape[1], device=permuted.device)).any(
        -1
    )
    if repeats.any():
        found = ranking[repeats][0].tolist()
        raise ValueError(f"ranking: want a permutation, found {found}")
    ordered = scores.gather(-1, ranking.long())  # [B, K], best first
    # what is left after i choices; the last choice is no choice
    rest = [ordered[:, i:].logsumexp(-1) for i in range(scores.shape[1] - 1)]
    return (torch.stack(rest, -1) - ordered[:, :-1]).sum(-1)


def _margin(**sums: Tensor) -> Tensor:
    """h = log-ratio of the chosen minus log-ratio of the rejected answer, [B], nats."""
    check_inputs(**sums)
    check_ndim(1, **sums)
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = sums.values()
    return (policy_chosen - ref_chosen.detach()) - (
        policy_rejected - ref_rejected.detach()
    )


def dpo_loss(
    policy_chosen_logp: Tensor,
    policy_rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    beta: float,
) -> Tensor:
    """Direct preference optimisation: Bradley-Terry on the implied reward.

    L = −log σ(βh),  h = log π(y_w)/π_ref(y_w) − log π(y_l)/π_ref(y_l)
    All four are *sums* over the tokens of an answer (`sequence_sum`), never means.

    Args:
      policy_chosen_logp: log π(y_w|x) in nats, [B].
      policy_rejected_logp: log π(y_l|x), [B].
      ref_chosen_logp: log π_ref(y_w|x), [B], a constant.
      ref_rejected_logp: log π_ref(y_l|x), [B], a constant.
      beta: reward per nat, > 0; larger stays closer to π_ref.

    Returns:
      Nats, [B], with gradient in the policy's; ln 2 where π = π_ref.

    Raises:
      ValueError: not one axis, shapes differ, an entry is not finite, or beta ≤ 0.

    Source: Rafailov et al. (2023), arXiv 2305.18290, eq. 7.

    >>> ref = torch.zeros(1)
    >>> dpo_loss(torch.tensor([9.0]).log(), ref, ref, ref, beta=0.5).exp()  # 1 + 1/3
    tensor([1.3333])
    """
    check_positive(beta=beta)
    h = _margin(
        policy_chosen_logp=policy_chosen_logp,
        policy_rejected_logp=policy_rejected_logp,
        ref_chosen_logp=ref_chosen_logp,
        ref_rejected_logp=ref_rejected_logp,
    )
    return -F.logsigmoid(beta * h)


def cdpo_loss(
    policy_chosen_logp: Tensor,
    policy_rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    beta: float,
    flip: float,
) -> Tensor:
    """Conservative DPO: a share of the labels is believed to be upside down.

    L = −(1−ε) log σ(βh) − ε log σ(−βh),  smallest at h = log((1−ε)/ε)/β

    Args:
      policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp:
        sequence sums in nats, [B], as in dpo_loss.
      beta: reward per nat, > 0; larger stays closer to π_ref.
      flip: ε, probability that a label is wrong, 0 ≤ ε < ½.

    Returns:
      Nats, [B], with gradient in the policy's; dpo_loss if flip = 0.

    Raises:
      ValueError: as dpo_loss, or flip outside [0, ½).

    Source: Mitchell (2023), "A note on DPO with noisy preferences".

    >>> ref = torch.zeros(1)
    >>> cdpo_loss(ref, ref, ref, ref, beta=1.0, flip=0.25).exp()  # ln 2 at any flip
    tensor([2.])
    """
    check_positive(beta=beta)
    check_between(0, 0.5, flip=flip)
    if flip == 0.5:
        raise ValueError("flip: want flip < 0.5, found 0.5: such labels say nothing")
    h = _margin(
        policy_chosen_logp=policy_chosen_logp,
        policy_rejected_logp=policy_rejected_logp,
        ref_chosen_logp=ref_chosen_logp,
        ref_rejected_logp=ref_rejected_logp,
    )
    return -(1 - flip) * F.logsigmoid(beta * h) - flip * F.logsigmoid(-beta * h)


def ipo_loss(
    policy_chosen_logp: Tensor,
    policy_rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    tau: float,
) -> Tensor:
    """Identity preference optimisation: drive the margin to a finite goal.

    L = (h − 1/(2τ))²,  h as in dpo_loss
    Deterministic labels push DPO's margin to infinity at any β; this one stops.

    Args:
      policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp:
        sequence sums in nats, [B], as in dpo_loss.
      tau: > 0; larger stays closer to π_ref.

    Returns:
      Squared nats, [B], with gradient in the policy's.

    Raises:
      ValueError: not one axis, shapes differ, an entry is not finite, or tau ≤ 0.

    Source: Azar et al. (2023), arXiv 2310.12036, eq. 17.

    >>> ref = torch.zeros(1)
    >>> ipo_loss(ref, ref, ref, ref, tau=0.25).tolist()
    [4.0]
    """
    check_positive(tau=tau)
    h = _margin(
        policy_chosen_logp=policy_chosen_logp,
        policy_rejected_logp=policy_rejected_logp,
        ref_chosen_logp=ref_chosen_logp,
        ref_rejected_logp=ref_rejected_logp,
    )
    return (h - 1 / (2 * tau)).square()
