"""Checks of arguments: every message names the argument and what was found.

All raise ValueError. Pads are never looked at: what stands where the mask is 0
may be anything, NaN included.
"""

import math

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor | None) -> None:
    """Raise unless all tensors (None is passed over) have one shape.

    >>> check_same_shape(logp=torch.zeros(4), old_logp=torch.zeros(3))
    Traceback (most recent call last):
    ...
    ValueError: shapes differ: logp [4], old_logp [3]
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(x).__name__}")
    if len({x.shape for x in given.values()}) > 1:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in given.items())
        raise ValueError(f"shapes differ: {found}")


def check_ndim(ndim: int, **tensors: Tensor) -> None:
    """Raise unless every tensor has `ndim` axes."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(x).__name__}")
        if x.ndim != ndim:
            raise ValueError(f"{name}: want {ndim} axes, found shape {list(x.shape)}")


def check_mask(mask: Tensor | None, like: Tensor) -> None:
    """Raise unless the mask has the shape of `like`, holds 0 and 1, and some 1."""
    if mask is None:
        if like.numel() == 0:
            raise ValueError(f"empty input: shape {list(like.shape)}")
        return
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask: want a tensor, found {type(mask).__name__}")
    if mask.shape != like.shape:
        found = f"mask {list(mask.shape)}, input {list(like.shape)}"
        raise ValueError(f"shapes differ: {found}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask: want only 0 and 1, found other values")
    if not mask.any():
        raise ValueError("mask: empty, no entry is unmasked")


def check_finite(mask: Tensor | None = None, **tensors: Tensor | None) -> None:
    """Raise if an unmasked entry is NaN or infinite, or a dtype is not a float one."""
    for name, x in tensors.items():
        if x is None:
            continue
        if not x.is_floating_point():
            raise ValueError(f"{name}: want a floating dtype, found {x.dtype}")
        bad = ~torch.isfinite(x)
        if mask is not None:
            bad = bad & mask.bool()
        if bad.any():
            where = [int(i) for i in bad.nonzero()[0]]
            raise ValueError(f"{name}: found {x[tuple(where)].item()} at {where}")


def check_inputs(mask: Tensor | None = None, **tensors: Tensor) -> None:
    """One shape, float dtypes, a fitting mask, and finite wherever it is 1."""
    check_same_shape(**tensors)
    check_mask(mask, next(iter(tensors.values())))
    check_finite(mask, **tensors)


def check_logits(mask: Tensor | None = None, **tensors: Tensor) -> None:
    """Raise unless every unmasked row of logits [..., V] is a distribution.

    −inf is a banned action and allowed, so the row's largest entry must be finite.
    """
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(x).__name__}")
        if not x.is_floating_point():
            raise ValueError(f"{name}: want a floating dtype, found {x.dtype}")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"{name}: want logits [..., V], found {list(x.shape)}")
        check_mask(mask, x[..., 0])
        top = x.detach().amax(-1)
        bad = ~torch.isfinite(top)
        if mask is not None:
            bad = bad & mask.bool()
        if bad.any():
            where = [int(i) for i in bad.nonzero()[0]]
            largest = top[tuple(where)].item()
            raise ValueError(f"{name}: the largest entry of row {where} is {largest}")


def check_index(size: int, mask: Tensor | None = None, **tensors: Tensor) -> None:
    """Raise unless every unmasked entry is a whole number from 0 to size − 1.

    >>> check_index(3, tokens=torch.tensor([0, -100]))
    Traceback (most recent call last):
    ...
    ValueError: tokens: want 0 to 2, found -100 at [1]
    """
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(x).__name__}")
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise ValueError(f"{name}: want an integer dtype, found {x.dtype}")
        bad = (x < 0) | (x >= size)
        if mask is not None:
            bad = bad & mask.bool()
        if bad.any():
            where = [int(i) for i in bad.nonzero()[0]]
            found = f"found {x[tuple(where)].item()} at {where}"
            raise ValueError(f"{name}: want 0 to {size - 1}, {found}")


def _number(name: str, x: float) -> float:
    """The number as a float, whatever kind of number it is."""
    try:
        if isinstance(x, str):
            raise TypeError
        return float(x)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: want a number, found {x!r}") from None


def check_number(**numbers: float) -> None:
    """Raise unless every number is finite."""
    for name, x in numbers.items():
        if not math.isfinite(_number(name, x)):
            raise ValueError(f"{name}: want a finite number, found {float(x)}")


def check_positive(**numbers: float) -> None:
    """Raise unless every number is finite and greater than 0.

    >>> check_positive(beta=0.0)
    Traceback (most recent call last):
    ...
    ValueError: beta: want a number > 0, found 0.0
    """
    for name, x in numbers.items():
        x = _number(name, x)
        if not (math.isfinite(x) and x > 0):
            raise ValueError(f"{name}: want a number > 0, found {x}")


def check_between(low: float, high: float, **numbers: float) -> None:
    """Raise unless low ≤ number ≤ high for every number."""
    for name, x in numbers.items():
        x = _number(name, x)
        if not low <= x <= high:
            raise ValueError(f"{name}: want {low} ≤ {name} ≤ {high}, found {x}")


def check_log_values(**tensors: Tensor) -> None:
    """Raise unless float tensors [..., K], K ≥ 1, hold neither NaN nor +inf."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(x).__name__}")
        if x.ndim == 0 or x.numel() == 0:
            raise ValueError(f"{name}: want shape [..., K], found {list(x.shape)}")
        check_finite(mask=x != -math.inf, **{name: x})


def check_law(**laws: Tensor) -> None:
    """Raise unless log-probabilities [..., K] sum to 1 over the last axis.

    >>> check_law(ref_logp=torch.zeros(2))
    Traceback (most recent call last):
    ...
    ValueError: ref_logp: want a law (log_softmax), found probabilities that sum to 2
    """
    check_log_values(**laws)
    for name, law in laws.items():
        total = law.detach().logsumexp(-1).exp().reshape(-1)
        wrong = total[(total - 1).abs() > 1e-3]
        if len(wrong):
            found = f"probabilities that sum to {wrong[0].item():.6g}"
            raise ValueError(f"{name}: want a law (log_softmax), found {found}")


def check_outcomes(**tensors: Tensor) -> None:
    """Raise unless all speak of the same K outcomes: last axes equal, others broadcast.

    >>> check_outcomes(ref_logp=torch.zeros(3), rewards=torch.zeros(5, 2))
    Traceback (most recent call last):
    ...
    ValueError: shapes do not fit: ref_logp [3], rewards [5, 2]
    """
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(x).__name__}")
    shapes = [x.shape for x in tensors.values()]
    try:
        torch.broadcast_shapes(*shapes)
        fit = len({shape[-1:] for shape in shapes}) == 1
    except RuntimeError:
        fit = False
    if not fit:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"shapes do not fit: {found}")


def check_times(times) -> Tensor:
    """Moments of a path, [N] float64; raise unless they increase from ≥ 0.

    >>> check_times([0.0, 2.0, 1.0])
    Traceback (most recent call last):
    ...
    ValueError: times: want them increasing from ≥ 0, found [0.0, 2.0, 1.0]
    """
    t = torch.as_tensor(times).detach().double()
    if t.ndim != 1 or len(t) == 0 or not torch.isfinite(t).all():
        raise ValueError(f"times: want finite numbers [N], found shape {list(t.shape)}")
    if t[0] < 0 or (t.diff() <= 0).any():
        raise ValueError(f"times: want them increasing from ≥ 0, found {t.tolist()}")
    return t
