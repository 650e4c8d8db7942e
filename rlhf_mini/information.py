"""What one label tells about rewards: the exact Fisher information of comparisons.

A slate of K answers has scores r [K] in nats. A label is an outcome with a law P(·|r),
and its information is I = E[∇log P · ∇log Pᵀ], [K, K], by enumeration here. Rows sum
to 0: no comparison sees a constant that is added to all of r. So only *contrasts* (sums
of r with weights that sum to 0) can be learnt. Divide two kinds' information, and you
know how many labels of one kind replace one of the other, if the model is right.
"""

from itertools import permutations

import torch
from torch import Tensor

from .checks import check_finite


def _law(scores: Tensor) -> Tensor:
    """Softmax over the last axis, after the checks."""
    if scores.ndim == 0 or scores.shape[-1] < 2 or not scores.is_floating_point():
        found = f"{scores.dtype} {list(scores.shape)}"
        raise ValueError(f"scores: want floats [..., K] with K ≥ 2, found {found}")
    check_finite(scores=scores)
    return scores.softmax(-1)


def _spread(p: Tensor) -> Tensor:
    """diag(p) − p·pᵀ over the last axis: the covariance of a one-hot draw."""
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def best_of_k_information(scores: Tensor) -> Tensor:
    """Information of "this one is the best of the K".

    I = diag(p) − p·pᵀ,  p = softmax(r)

    Args:
      scores: [..., K], nats.

    Returns:
      [..., K, K], per nat².

    Raises:
      ValueError: K < 2, or an entry is not finite or no float.

    Source: the covariance of the softmax score; own enumeration in the tests.

    >>> per_contrast(best_of_k_information(torch.zeros(4))).item()
    0.25
    """
    return _spread(_law(scores))


def pair_information(scores: Tensor) -> Tensor:
    """Information of a choice between two of the K, drawn with equal chances.

    I = mean over i < j of p·(1 − p)·(eᵢ − eⱼ)(eᵢ − eⱼ)ᵀ,  p = σ(rᵢ − rⱼ)

    Args:
      scores: [..., K], nats.

    Returns:
      [..., K, K], per nat².

    Raises:
      ValueError: K < 2, or an entry is not finite or no float.

    Source: Bradley and Terry (1952), the information of one comparison.

    >>> pair_information(torch.zeros(2))   # p·(1 − p) = 1/4
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]])
    """
    _law(scores)
    p = torch.sigmoid(scores[..., :, None] - scores[..., None, :])
    doubt = p * (1 - p)
    doubt = doubt - torch.diag_embed(doubt.diagonal(dim1=-2, dim2=-1))
    count = scores.shape[-1] * (scores.shape[-1] - 1) / 2
    return (torch.diag_embed(doubt.sum(-1)) - doubt) / count


def ranking_information(scores: Tensor) -> Tensor:
    """Information of a whole ranking of the K, in the Plackett–Luce model.

    I = Σ_σ P(σ) Σ_k [diag(p) − p·pᵀ],  p = softmax(r) over what is left at stage k
    The K!/2 pairs that a ranking contains are not independent labels: a ranking of
    four equals is worth 3.83 pairs, not 6.

    Args:
      scores: [..., K], nats, K ≤ 7 (all K! rankings are listed).

    Returns:
      [..., K, K], per nat².

    Raises:
      ValueError: K < 2 or K > 7, or an entry is not finite or no float.

    Source: Plackett (1975), "The analysis of permutations".

    >>> rounded = per_contrast(ranking_information(torch.zeros(4).double()))
    >>> round(rounded.item() * 36, 9)   # 23/36
    23.0
    """
    _law(scores)
    k = scores.shape[-1]
    if k > 7:
        raise ValueError(f"scores: want K ≤ 7 to list all K! rankings, found K = {k}")
    total = torch.zeros(*scores.shape, k, dtype=scores.dtype)
    for order in permutations(range(k)):
        chance, stages = torch.ones(scores.shape[:-1], dtype=scores.dtype), 0.0
        taken = torch.zeros(k, dtype=torch.bool)
        for best in order[:-1]:
            p = scores.masked_fill(taken, -torch.inf).softmax(-1)
            stages, chance = stages + _spread(p), chance * p[..., best]
            taken[best] = True
        total = total + chance[..., None, None] * stages
    return total


def per_contrast(information: Tensor) -> Tensor:
    """Mean of the K − 1 eigenvalues that are not the free constant's.

    tr(I)/(K − 1): what a label adds, on average over contrasts. It is the number to
    compare where every label is about a fresh slate, since information adds up.

    Args:
      information: [..., K, K], per nat², rows that sum to 0.

    Returns:
      [...], per nat².

    Raises:
      ValueError: not square, K < 2, not finite, or rows that do not sum to 0.

    Source: own; at r = 0 all contrasts are alike, and it is their eigenvalue.

    >>> per_contrast(torch.tensor([[0.25, -0.25], [-0.25, 0.25]])).item()
    0.5
    """
    _check_information(information)
    trace = information.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace / (information.shape[-1] - 1)


def of_hardest_contrasts(information: Tensor) -> Tensor:
    """Harmonic mean of the same K − 1 eigenvalues.

    (K − 1)/tr(I⁺): n labels of this kind on *one* slate, asked again and again, leave
    a mean variance of 1/(n · this) per contrast. The contrasts that are hard to see
    decide it.

    Args:
      information: [..., K, K], per nat², rows that sum to 0.

    Returns:
      [...], per nat²; 0 if some contrast cannot be seen at all.

    Raises:
      ValueError: not square, K < 2, not finite, or rows that do not sum to 0.

    Source: the A-optimality criterion of experimental design.

    >>> of_hardest_contrasts(torch.tensor([[0.25, -0.25], [-0.25, 0.25]])).item()
    0.5
    """
    _check_information(information)
    size = information.abs().amax()
    seen = torch.linalg.eigvalsh(information)[..., 1:]  # ascending; the first is free
    unseen = (seen <= 1e-7 * size).any(-1)
    mean = (information.shape[-1] - 1) / seen.reciprocal().sum(-1)
    return torch.where(unseen, 0.0, mean)


def _check_information(information: Tensor) -> None:
    if information.ndim < 2 or information.shape[-1] != information.shape[-2]:
        found = list(information.shape)
        raise ValueError(f"information: want [..., K, K], found {found}")
    check_finite(information=information)
    k, off = information.shape[-1], information.sum(-1).abs().max().item()
    if k < 2 or off > 1e-4 * information.abs().amax():
        raise ValueError(f"information: want K ≥ 2 and rows that sum to 0, off {off}")
