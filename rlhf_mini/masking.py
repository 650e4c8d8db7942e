"""Sums, means and whitening over the tokens that count.

A mask is 1 where the token is an action of the policy and 0 where it is a pad or
part of the prompt; `None` counts every entry. Two decisions, kept by every module:
pads become 0 *before* any arithmetic, because NaN · 0 is NaN and so is its gradient;
and a mean is over entries, so a long answer weighs more than a short one (a mean per
answer first is another objective: notebook 09).
"""

import torch
from torch import Tensor

from rlhf_mini.checks import check_inputs


def zero_pads(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Put 0 where the mask is 0, so that no pad reaches a value or a gradient.

    Args:
      mask: 1 where the entry counts, [...] or None; not checked here.
      *tensors: anything, [...].

    Returns:
      As many tensors, [...], with gradient (exactly 0 at pads).

    >>> x, = zero_pads(torch.tensor([1, 0]), torch.tensor([2.0, float("nan")]))
    >>> x.tolist()
    [2.0, 0.0]
    """
    if mask is None:
        return tensors
    pad = ~mask.bool()
    return tuple(x.masked_fill(pad, 0) for x in tensors)


def masked_sum(x: Tensor, mask: Tensor | None) -> Tensor:
    """Sum over all unmasked entries.

    Σᵢ mᵢ xᵢ

    Args:
      x: any unit, [...]; pads may hold anything, NaN included.
      mask: 0/1, [...], or None for all ones.

    Returns:
      Scalar in the unit of x, with gradient.

    Raises:
      ValueError: shapes differ, the mask is empty, or an unmasked entry is not finite.

    >>> masked_sum(torch.tensor([1.0, 2.0, 99.0]), torch.tensor([1, 1, 0])).item()
    3.0
    """
    check_inputs(mask, x=x)
    (x,) = zero_pads(mask, x)
    return x.sum()


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all unmasked entries.

    Σᵢ mᵢ xᵢ / Σᵢ mᵢ
    One mean over the whole batch, not a mean of row means.

    Args:
      x: any unit, [...]; pads may hold anything, NaN included.
      mask: 0/1, [...], or None for all ones.

    Returns:
      Scalar in the unit of x, with gradient.

    Raises:
      ValueError: shapes differ, the mask is empty, or an unmasked entry is not finite.

    >>> masked_mean(torch.tensor([1.0, 2.0, 99.0]), torch.tensor([1, 1, 0])).item()
    1.5
    """
    total = masked_sum(x, mask)
    return total / (x.numel() if mask is None else mask.bool().sum())


def _center(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """x minus its masked mean, and that mean; equal entries give exactly 0.

    One entry is subtracted first: the mean of equal numbers may round, 0 does not.
    """
    pivot = (x if mask is None else x[mask.bool()]).detach().flatten()[0]
    shifted = x - pivot
    shift = masked_mean(shifted, mask)
    return shifted - shift, pivot + shift


def masked_var(x: Tensor, mask: Tensor | None) -> Tensor:
    """Population variance of the unmasked entries.

    σ² = Σᵢ mᵢ (xᵢ − μ)² / Σᵢ mᵢ

    Args:
      x: any unit, [...]; pads may hold anything, NaN included.
      mask: 0/1, [...], or None for all ones.

    Returns:
      Scalar in the squared unit of x, with gradient; exactly 0 if entries are equal.

    Raises:
      ValueError: as masked_mean.

    >>> masked_var(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1, 1, 0])).item()
    1.0
    """
    check_inputs(mask, x=x)
    (x,) = zero_pads(mask, x)
    centered, _ = _center(x, mask)
    return masked_mean(centered.square(), mask)


def masked_whiten(x: Tensor, mask: Tensor | None, shift_mean: bool = True) -> Tensor:
    """Scale the unmasked entries to variance 1 and, by default, shift them to mean 0.

    wᵢ = (xᵢ − μ) / √(σ² + 10⁻⁸), and + μ again when shift_mean is False.
    Whiten advantages *after* the returns are taken from them: a critic trained on
    whitened targets learns the wrong scale.

    Args:
      x: any unit, [...]; pads may hold anything, NaN included.
      mask: 0/1, [...], or None for all ones.
      shift_mean: True for advantages; False, for rewards, keeps the mean.

    Returns:
      Unitless, [...], with gradient; pads are 0, equal entries exactly 0 (or μ).

    Raises:
      ValueError: as masked_mean, or fewer than two entries are unmasked.

    Source: Ziegler et al. (2019), `whiten` in openai/lm-human-preferences.

    >>> masked_whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1, 1, 0])).tolist()
    [-1.0, 1.0, 0.0]
    """
    check_inputs(mask, x=x)
    count = x.numel() if mask is None else int(mask.bool().sum())
    if count < 2:
        raise ValueError(f"mask: want at least 2 unmasked entries, found {count}")
    (x,) = zero_pads(mask, x)
    centered, mean = _center(x, mask)
    white = centered * torch.rsqrt(masked_mean(centered.square(), mask) + 1e-8)
    (white,) = zero_pads(mask, white if shift_mean else white + mean)
    return white
