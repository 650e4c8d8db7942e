"""Advantages: how much better than expected an action was.

Per token from rewards and a critic (`reward_to_go`, `gae`), or per answer from the
other answers to the same prompt (`leave_one_out`, `group_centered`,
`group_normalized`, `batch_normalized`). All results are constants of the loss and
carry no gradient.
Time counts unmasked tokens only: pads on the left, on the right, and a masked gap (a
tool's output between two turns) are stepped over, neither discounted nor bootstrapped.
"""

import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_between,
    check_finite,
    check_inputs,
    check_ndim,
    check_positive,
)
from rlhf_mini.masking import zero_pads


def reward_to_go(rewards: Tensor, mask: Tensor | None, gamma: float = 1.0) -> Tensor:
    """Discounted sum of this reward and all later ones.

    Gₜ = rₜ + γ Gₜ₊₁,  and 0 after the last unmasked token.
    γ < 1 discounts the score at the end but not the token's own KL penalty: short
    answers win, and β grows towards the front (notebook 06).

    Args:
      rewards: per token, [B, T], reward units.
      mask: 0/1, [B, T], or None for all ones.
      gamma: discount per token, 0 ≤ γ ≤ 1.

    Returns:
      Returns, [B, T], reward units, detached; pads 0.

    Raises:
      ValueError: not two axes, shapes differ, the mask is empty, an unmasked entry is
        not finite, or gamma outside [0, 1].

    >>> reward_to_go(torch.tensor([[1.0, 2.0, 4.0]]), None, gamma=0.5).tolist()
    [[3.0, 4.0, 4.0]]
    """
    check_inputs(mask, rewards=rewards)
    check_ndim(2, rewards=rewards)
    check_between(0, 1, gamma=gamma)
    (rewards,) = zero_pads(mask, rewards.detach())
    keep = torch.ones_like(rewards).bool() if mask is None else mask.bool()
    returns = torch.zeros_like(rewards)
    total = torch.zeros_like(rewards[:, 0])  # [B], the return of the next token
    for t in reversed(range(rewards.shape[1])):
        total = torch.where(keep[:, t], rewards[:, t] + gamma * total, total)
        returns[:, t] = total
    (returns,) = zero_pads(mask, returns)
    return returns


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns a critic should learn.

    Aₜ = δₜ + γλ Aₜ₊₁,  δₜ = rₜ + γ Vₜ₊₁ − Vₜ,  returns = A + V
    After the last unmasked token V and A are 0: an answer cut off by the length limit
    is treated as finished. λ is no discount: it trades the variance of the return
    (λ = 1) for the bias of the critic (λ = 0). Whiten A after this call, not before:
    the returns must keep the scale of the rewards.

    Args:
      rewards: per token, [B, T], reward units.
      values: V(sₜ), *before* token t is chosen, [B, T], reward units.
      mask: 0/1, [B, T], or None for all ones; a row of zeros gives zeros.
      gamma: discount per token, 0 ≤ γ ≤ 1.
      lam: weight λ of later TD errors, 0 ≤ λ ≤ 1.

    Returns:
      (advantages, returns), each [B, T], reward units, detached; pads 0.

    Raises:
      ValueError: not two axes, shapes differ, the mask is empty, an unmasked entry is
        not finite, or gamma or lam outside [0, 1].

    Source: Schulman et al. (2016), arXiv 1506.02438, eq. 16.

    >>> rewards, values = torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 2.0]])
    >>> [x.tolist() for x in gae(rewards, values, None, lam=0.5)]
    [[[2.0, 2.0]], [[3.0, 4.0]]]
    """
    check_inputs(mask, rewards=rewards, values=values)
    check_ndim(2, rewards=rewards)
    check_between(0, 1, gamma=gamma, lam=lam)
    rewards, values = zero_pads(mask, rewards.detach(), values.detach())
    keep = torch.ones_like(rewards).bool() if mask is None else mask.bool()
    advantages = torch.zeros_like(rewards + values)
    next_value = next_advantage = torch.zeros_like(advantages[:, 0])  # [B]
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        # a pad hands on what stands behind it
        next_advantage = torch.where(keep[:, t], advantage, next_advantage)
        next_value = torch.where(keep[:, t], values[:, t], next_value)
        advantages[:, t] = next_advantage
    (advantages,) = zero_pads(mask, advantages)
    return advantages, advantages + values


def _check_group(rewards: Tensor) -> None:
    """Raise unless rewards are [N, G], G ≥ 2, floating and finite."""
    check_ndim(2, rewards=rewards)
    check_inputs(rewards=rewards)
    check_finite(rewards=rewards)
    if rewards.shape[1] < 2:
        raise ValueError(f"rewards: want G ≥ 2, found shape {list(rewards.shape)}")


def group_centered(rewards: Tensor) -> Tensor:
    """Reward minus the mean reward of its group.

    Aᵢ = rᵢ − (1/G) Σⱼ rⱼ
    The mean contains the answer itself, so the expected gradient is (G−1)/G of the
    true one: the right direction, a smaller step.

    Args:
      rewards: [N, G], N prompts with G answers each, reward units.

    Returns:
      Advantages, [N, G], reward units, detached; equal rewards give exactly 0.

    Raises:
      ValueError: not two axes, G < 2, or an entry is not finite.

    Source: Liu et al. (2025), "Dr. GRPO", arXiv 2503.20783.

    >>> group_centered(torch.tensor([[1.0, 2.0, 6.0]])).tolist()
    [[-2.0, -1.0, 3.0]]
    """
    _check_group(rewards)
    shifted = rewards.detach() - rewards.detach()[:, :1]  # so that equal means 0
    return shifted - shifted.mean(-1, keepdim=True)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Reward minus the mean reward of the *other* answers in its group (RLOO).

    Aᵢ = rᵢ − 1/(G−1) Σⱼ≠ᵢ rⱼ = G/(G−1) (rᵢ − mean r)
    The baseline does not contain the answer itself, so the policy gradient is unbiased.

    Args:
      rewards: [N, G], N prompts with G answers each, reward units.

    Returns:
      Advantages, [N, G], reward units, detached; equal rewards give exactly 0.

    Raises:
      ValueError: not two axes, G < 2, or an entry is not finite.

    Source: Kool et al. (2019); Ahmadian et al. (2024), arXiv 2402.14740.

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).tolist()
    [[-3.0, -1.5, 4.5]]
    """
    group = rewards.shape[-1] if isinstance(rewards, Tensor) and rewards.ndim else 0
    return group_centered(rewards) * (group / max(group - 1, 1))


def group_normalized(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """Reward minus the group's mean, over the group's standard deviation (GRPO).

    Aᵢ = (rᵢ − mean r) / (std r + ε),  std with 1/G
    Dividing by the std reweights prompts (those almost always or almost never solved
    count more), so it is not the gradient of the mean reward. Where rewards barely
    differ it would blow noise up to ±1: ε = 10⁻⁴ keeps a spread well below ε small (an
    ε of 10⁻⁸ would not), and a spread within rounding error counts as none at all.

    Args:
      rewards: [N, G], N prompts with G answers each, reward units.
      eps: ε in reward units, > 0; choose it above the noise of the reward.

    Returns:
      Advantages, [N, G], unitless, detached; equal rewards give exactly 0.

    Raises:
      ValueError: not two axes, G < 2, an entry is not finite, or eps ≤ 0.

    Source: Shao et al. (2024), arXiv 2402.03300, §4.1.2; ε as in TRL.

    >>> group_normalized(torch.tensor([[0.0, 2.0]]), eps=1.0).tolist()
    [[-0.5, 0.5]]
    """
    check_positive(eps=eps)
    centered = group_centered(rewards)
    std = centered.square().mean(-1, keepdim=True).sqrt()
    high, low = rewards.amax(-1, keepdim=True), rewards.amin(-1, keepdim=True)
    size = rewards.abs().amax(-1, keepdim=True)
    rounding = 4 * torch.finfo(rewards.dtype).eps * size
    return (centered / (std + eps)).masked_fill((high - low) <= rounding, 0).detach()


def batch_normalized(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """Reward minus its group's mean, over one standard deviation for the whole batch.

    Aᵢ = (rᵢ − mean r)/(σ + ε),  σ² = mean over the batch of (r − mean r)²
    All prompts are divided by one number, so their weights stay (almost) equal. It is
    still a step whose size grows as the batch gets solved and σ goes to 0.

    Args:
      rewards: [N, G], N prompts with G answers each, reward units.
      eps: ε in reward units, > 0.

    Returns:
      Advantages, [N, G], unitless, detached; groups of equal rewards give exactly 0.

    Raises:
      ValueError: not two axes, G < 2, an entry is not finite, or eps ≤ 0.

    Source: Hu et al. (2025), "REINFORCE++", arXiv 2501.03262, the variant with
    baseline. TRL's scale_rewards="batch" takes the std of the rewards themselves,
    which holds the differences between prompts too.

    >>> batch_normalized(torch.tensor([[0.0, 2.0], [5.0, 7.0]]), eps=1.0).tolist()
    [[-0.5, 0.5], [-0.5, 0.5]]
    """
    check_positive(eps=eps)
    centered = group_centered(rewards)
    return centered / (centered.square().mean().sqrt() + eps)
