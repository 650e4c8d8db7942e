"""Claims and exercise checks: a line when they hold, words when they do not."""

import math


def claim(name: str, value: float, lower: float = -math.inf, upper: float = math.inf):
    """Raise unless lower ≤ value ≤ upper; print a line that is the same everywhere.

    Trained numbers differ between processors, so the band is printed, not the value:
    print the value in a cell of its own.

    Raises:
      AssertionError: the value is outside, or NaN; it says by how much.

    >>> claim("share judged positive", 0.93, lower=0.9)
    share judged positive: ≥ 0.9 ok
    >>> claim("gap", 0.2, upper=0.1)
    Traceback (most recent call last):
    ...
    AssertionError: gap: want ≤ 0.1, found 0.2
    """
    value = float(value)
    if lower == -math.inf and upper == math.inf:
        raise ValueError("claim: give lower, upper or both")
    if lower == -math.inf:
        band = f"≤ {upper:g}"
    elif upper == math.inf:
        band = f"≥ {lower:g}"
    else:
        band = f"in [{lower:g}, {upper:g}]"
    if not lower <= value <= upper:
        raise AssertionError(f"{name}: want {band}, found {value:.6g}")
    print(f"{name}: {band} ok")


def check(name: str, value, expected, mistakes: dict | None = None, tolerance=1e-6):
    """Compare an exercise's answer with the right one; name the mistake it looks like.

    Args:
      value, expected: numbers or tensors of one shape.
      mistakes: {what was done wrong, in words: the answer that it gives}.

    Raises:
      AssertionError: the answer is another one; it says which, if it is known.

    >>> check("KL", 2.0, 2.0)
    KL: right
    >>> check("KL", -2.0, 2.0, {"the ratio is upside down": -2.0})
    Traceback (most recent call last):
    ...
    AssertionError: KL: the ratio is upside down
    """
    if value is None:
        raise AssertionError(f"{name}: nothing was returned")
    found, right = _shape(value), _shape(expected)
    if found != right:
        raise AssertionError(f"{name}: want shape {right}, found {found}")
    if _close(value, expected, tolerance):
        print(f"{name}: right")
        return
    for words, wrong in (mistakes or {}).items():
        if _shape(wrong) == found and _close(value, wrong, tolerance):
            raise AssertionError(f"{name}: {words}")
    raise AssertionError(f"{name}: want {expected}, found {value}")


def _shape(x) -> list[int]:
    return list(getattr(x, "shape", ()))


def _close(a, b, tolerance) -> bool:
    gap = abs(a - b)
    # written so that NaN is never close
    return (
        bool((gap <= tolerance * (1 + abs(b))).all())
        if _shape(gap)
        else (gap <= tolerance * (1 + abs(b)))
    )
