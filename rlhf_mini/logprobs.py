"""From logits to the log-probability of what was done.

All logs are natural. `logits[:, t]` scores `tokens[:, t]`: a causal model's output at
position t scores token t + 1, so whoever calls the model does the shift, once. The
logits must be those that sampled (same temperature, same filters), or the first ratio
after a rollout is not 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rlhf_mini.checks import (
    check_finite,
    check_index,
    check_logits,
    check_mask,
    check_ndim,
    check_same_shape,
)
from rlhf_mini.masking import zero_pads


def log_softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-probabilities of every action, with pad rows replaced by uniform ones.

    log π(v) = zᵥ − log Σᵤ exp zᵤ
    Half-precision logits are lifted to float32: bfloat16 keeps 8 bits, and a ratio
    π/π_old made of two such numbers is off by several per cent.

    Args:
      logits: [..., V], nats up to a constant per row; −inf bans an action.
      mask: 0/1, [...], or None for all ones.

    Returns:
      log π in nats, [..., V], with gradient.

    Raises:
      ValueError: no floating dtype, or an unmasked row holds NaN, +inf or only −inf.

    >>> log_softmax(torch.zeros(2)).exp().tolist()
    [0.5, 0.5]
    """
    check_logits(mask, logits=logits)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if mask is not None:
        (logits,) = zero_pads(mask.unsqueeze(-1), logits)
    return F.log_softmax(logits, dim=-1)


def token_logp(logits: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-probability of each token that was taken.

    log π(aₜ|sₜ) = z[t, aₜ] − log Σᵤ exp z[t, u]
    `logits[:, t]` must score `tokens[:, t]`: slice model(x).logits[:, :-1] for
    tokens x[:, 1:].

    Args:
      logits: [B, T, V] (or [B, K] for a bandit).
      tokens: what was taken, [B, T] (or [B]), integers from 0 to V − 1.
      mask: 0/1 as tokens, or None; needed if pads hold NaN logits or ids like −100.

    Returns:
      log π in nats, as tokens, with gradient; pads 0; −inf for a banned action.

    Raises:
      ValueError: shapes do not fit, a token is out of range or no integer, or an
        unmasked row of logits is no distribution.

    >>> logits = torch.tensor([[[0.25, 0.75]]]).log()
    >>> round(token_logp(logits, torch.tensor([[1]])).exp().item(), 4)
    0.75
    """
    for name, x in {"logits": logits, "tokens": tokens}.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(x).__name__}")
    if logits.shape[:-1] != tokens.shape or logits.ndim == 0:
        found = f"logits {list(logits.shape)}, tokens {list(tokens.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    logp_all = log_softmax(logits, mask)  # [B, T, V]
    check_index(logits.shape[-1], mask, tokens=tokens)
    (index,) = zero_pads(mask, tokens.long())
    logp = logp_all.gather(-1, index.unsqueeze(-1)).squeeze(-1)  # [B, T]
    (logp,) = zero_pads(mask, logp)
    return logp


def entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy of each row's distribution.

    H(π(·|s)) = −Σᵥ π(v) log π(v), where 0 · log 0 = 0.

    Args:
      logits: [..., V]; −inf bans an action.
      mask: 0/1, [...], or None for all ones.

    Returns:
      Entropy in nats, [...], with gradient; pads 0.

    Raises:
      ValueError: as log_softmax.

    >>> round(entropy(torch.zeros(4)).item(), 4)  # ln 4
    1.3863
    """
    logp = log_softmax(logits, mask)
    # a banned action has p = 0 and log p = −inf: make the product 0, not NaN
    finite_logp = logp.masked_fill(logp == -torch.inf, 0)
    (h,) = zero_pads(mask, -(logp.exp() * finite_logp).sum(-1))
    return h


def sequence_sum(logp: Tensor, mask: Tensor | None) -> Tensor:
    """Log-probability of each whole sequence.

    log π(y|x) = Σₜ mₜ log π(yₜ | x, y before t)
    A sum and not a mean: the mean is the log of no probability, and DPO on means
    optimises another objective.

    Args:
      logp: log π of each token in nats, [B, T]; pads may hold anything.
      mask: 0/1, [B, T], or None for all ones.

    Returns:
      Nats, [B], with gradient; 0 for a row without any unmasked token.

    Raises:
      ValueError: not two axes, shapes differ, the mask is empty, or an unmasked entry
        is not finite.

    >>> logp = torch.tensor([[-1.0, -2.0, 5.0]])
    >>> sequence_sum(logp, torch.tensor([[1, 1, 0]])).tolist()
    [-3.0]
    """
    check_same_shape(logp=logp)
    check_ndim(2, logp=logp)
    check_mask(mask, logp)
    check_finite(mask, logp=logp)
    (logp,) = zero_pads(mask, logp)
    return logp.sum(-1)
