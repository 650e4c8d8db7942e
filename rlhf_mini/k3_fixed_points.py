"""Where GRPO stands still if it has k3 in its loss: the forward KL, not the reverse.

k3 as a loss has the expected gradient ∇KL(π_ref‖π) (notebook 05), token by token. So
reward and penalty balance on a hyperbola, π = β π_ref/(λ − reward), where the optimum
of E[r] − β KL(π‖π_ref) is an exponential. Notebook 09 holds trained runs against the
two fixed points here.
"""

import torch
from torch import Tensor

from rlhf_mini.checks import check_positive
from rlhf_mini.exact_trees import _backward, _check_rewards, check_law
from rlhf_mini.frontier import forward_optimum
from rlhf_mini.group_expectations import prompt_weight

INF = torch.inf


def k3_fixed_point(ref_success: Tensor | float, beta: float, group: int) -> Tensor:
    """The success rate at which GRPO with its k3 loss stands still.

    c_G(p) = β (p − p_ref)/(p(1−p)):  reward against ∇KL(π_ref‖π)
    c_G(p) p(1−p) is the Bernstein polynomial of √(x(1−x)), so it is concave and the
    root is unique. G = 2 is also the answer for RLOO, whose weight is 1. The optimum of
    E[r] − β KL(π‖π_ref) is another: its odds are those of p_ref times e^{1/β}.

    Args:
      ref_success: p_ref, success rate of the reference, [...], 0 < p_ref < 1.
      beta: weight of the k3 loss, reward per nat.
      group: G ≥ 2, or math.inf.

    Returns:
      p, [...], float64, no gradient.

    Raises:
      ValueError: p_ref outside (0, 1), beta ≤ 0, or G not a whole number ≥ 2.

    Source: own derivation (notebook 09); fixed points of GRPO with the reverse KL are
    in Mroueh (2025), arXiv 2503.06639.

    >>> round(k3_fixed_point(0.5, beta=1.0, group=2).item(), 4)   # p² = ½
    0.7071
    """
    ref = torch.as_tensor(ref_success, dtype=torch.float64).detach()
    check_positive(beta=beta)
    if not ((ref > 0) & (ref < 1)).all():
        raise ValueError("ref_success: want 0 < p < 1, found 0 or 1")
    low, high = ref.clone(), torch.ones_like(ref)
    for _ in range(80):
        p = (low + high) / 2
        # the reward still pulls harder than the penalty
        up = prompt_weight(p, group) * p * (1 - p) > beta * (p - ref)
        low, high = torch.where(up, p, low), torch.where(up, high, p)
    return (low + high) / 2


def k3_loss_policy(ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Where policy gradient stops if each token has β k3 as a loss, and no other KL.

    π(a|s) = β π_ref(a|s)/(λ(s) − Q_π(s, a)),  Q_π = E_π[r | s, a]
    A hyperbola at every prefix where `soft_policy` has an exponential; and myopic, as
    Q_π knows nothing of the penalties that come later.

    Args:
      ref_logp: log π_ref(token | prefix), nats, [..., N, V].
      rewards: r(s, a), reward units, [..., N, V].
      beta: weight of the k3 loss, reward per nat.

    Returns:
      log π(token | prefix), nats, [..., N, V].

    Raises:
      ValueError: not a law on a tree, shapes do not fit, a reward is not finite, or
        beta ≤ 0.

    Source: own derivation (notebook 09); k3 per token as in Shao et al. (2024), arXiv
    2402.03300, eq. 4.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> law = k3_loss_policy(half, torch.tensor([[0.0, 1.0]]), beta=1.0)
    >>> round(law[0, 1].exp().item(), 4)   # as `k3_fixed_point`
    0.7071
    """
    check_law(ref_logp=ref_logp)
    _check_rewards(ref_logp, rewards)
    check_positive(beta=beta)

    def optimum(law, q):
        # what π_ref never does a softmax that starts there never does
        q = torch.where(law > -INF, q, q.min())
        return forward_optimum(law, q, beta).logp

    q = _backward(ref_logp, rewards, lambda law, q: (optimum(law, q).exp() * q).sum(-1))
    return optimum(ref_logp, q)
