"""Human preferences out of human ratings, and how often a score agrees with them.

Decisions:
- A preference between two sentences is made from one rater of each: the higher rating
  wins. Averaged over all pairs of raters it is a soft label, q_ij.
- Sentences are split, never pairs: a pair whose sentences were both seen in training
  measures memory.
- Accuracy is over *all* pairs of the held-out sentences. Their number, some millions,
  says nothing about precision, since each sentence is in thousands of them: intervals
  draw sentences, not pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_between, check_finite, check_ndim
from .checks import check_same_shape as same_shape
from .datasets import text_hash


@dataclass(frozen=True)
class Split:
    """Sentence numbers. `development` is where settings may be compared; it is in
    `train` too, and in no test set of any seed."""

    train: Tensor
    development: Tensor
    test: Tensor


def split_by_sentence(
    texts: Sequence[str], seed: int, test: int, development: float = 0.15
) -> Split:
    """Train and test sentences: copies of one sentence stay on one side.

    The development sentences are chosen by the hash of their text, so they are the
    same for every seed; the test sentences are drawn from the others.

    Args:
      texts: N sentences.
      seed: of the draw.
      test: how many test sentences (a copy may add one).
      development: share of sentences kept out of every test set.

    Raises:
      ValueError: test < 1 or more than there is; development outside [0, 1].
    """
    check_between(0, 1, development=development)
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(text_hash(text), []).append(i)
    # as `part_of`: not the leading digits, by which `rest` is ordered
    kept = {h for h in groups if int(h[-8:], 16) / 16**8 < development}
    rest = sorted(set(groups) - kept)
    if not 1 <= test < len(rest):
        raise ValueError(f"test: want from 1 to {len(rest) - 1}, found {test}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rest), generator=generator).tolist()
    held: list[int] = []
    for g in order:
        if len(held) >= test:
            break
        held += groups[rest[g]]
    mask = torch.zeros(len(texts), dtype=torch.bool)
    mask[held] = True
    known = torch.tensor(sorted(i for h in kept for i in groups[h]), dtype=torch.long)
    return Split((~mask).nonzero()[:, 0], known, mask.nonzero()[:, 0])


def rating_shares(ratings: Sequence[Sequence[int]], low: int = -4, high: int = 4):
    """Share of raters who gave each rating, [N, high − low + 1] float64.

    Raises:
      ValueError: a sentence without ratings, or a rating outside low … high.

    >>> rating_shares([[0, 1, 1, 1]], low=0, high=1)
    tensor([[0.2500, 0.7500]], dtype=torch.float64)
    """
    shares = torch.zeros(len(ratings), high - low + 1, dtype=torch.float64)
    for i, row in enumerate(ratings):
        if not len(row) or min(row) < low or max(row) > high:
            found = f"sentence {i} has {list(row)}"
            raise ValueError(f"ratings: want some from {low} to {high}, {found}")
        given = torch.as_tensor(row) - low
        counts = torch.bincount(given, minlength=high - low + 1)
        shares[i] = counts.double() / len(row)
    return shares


def preference(a: Tensor, b: Tensor) -> Tensor:
    """q_ij: how often a rater of aᵢ goes higher than one of bⱼ; a tie is ½ a win.

    q_ij = Σ_v a_iv·(Σ_{u<v} b_ju + ½·b_jv)

    Args:
      a, b: rating shares, [N, R] and [M, R].

    Returns:
      [N, M]; preference(b, a) is its transpose taken from 1.

    Raises:
      ValueError: not [N, R] and [M, R], not finite, or rows that do not sum to 1.

    Source: the Mann–Whitney statistic of the two sets of ratings.

    >>> a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    >>> preference(a, b)   # half a win, half a tie
    tensor([[0.7500]])
    """
    _check_shares(a=a, b=b)
    below = b.cumsum(-1) - b / 2
    return (a @ below.T).clamp(0, 1)  # rounding may leave 1 + 1e-7


def ties(a: Tensor, b: Tensor) -> Tensor:
    """How often a rater of aᵢ and one of bⱼ give the same rating, [N, M].

    Raises:
      ValueError: as `preference`.

    >>> ties(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]))
    tensor([[0.5000]])
    """
    _check_shares(a=a, b=b)
    return a @ b.T


def _check_shares(a: Tensor, b: Tensor) -> None:
    check_ndim(2, a=a, b=b)
    check_finite(a=a, b=b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a, b: widths differ, {list(a.shape)} and {list(b.shape)}")
    for name, x in (("a", a), ("b", b)):
        if (x.sum(-1) - 1).abs().max() > 1e-4 or x.min() < 0:
            raise ValueError(f"{name}: want rows of shares, ≥ 0 and with sum 1")


def one_rater(ratings: Sequence[Sequence[int]], generator) -> tuple[Tensor, Tensor]:
    """One rater drawn for each sentence, and the mean of all the *others*.

    Returns:
      (drawn, others), both [N] float64, rating points.

    Raises:
      ValueError: a sentence with fewer than two ratings.
    """
    if short := [i for i, r in enumerate(ratings) if len(r) < 2]:
        raise ValueError(f"ratings: want ≥ 2 a sentence, sentence {short[0]} has fewer")
    u = torch.rand(len(ratings), generator=generator).tolist()
    drawn = [r[int(x * len(r))] for r, x in zip(ratings, u, strict=True)]
    others = [(sum(r) - d) / (len(r) - 1) for r, d in zip(ratings, drawn, strict=True)]
    as_tensor = lambda x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    return as_tensor(drawn), as_tensor(others)


def _concordance(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(1, ½, 0 as the pair is in order, tied or not; 1 where truth differs), [N, N]."""
    same_shape(scores=scores, truth=truth)
    check_ndim(1, scores=scores)
    check_finite(scores=scores, truth=truth)
    ahead = torch.sign(truth[:, None] - truth)
    counts = ahead != 0
    if not counts.any():
        raise ValueError("truth: no pair differs in it")
    agree = torch.sign(scores[:, None] - scores) * ahead
    return ((agree + 1) / 2 * counts).float(), counts.float()


def pair_accuracy(scores: Tensor, truth: Tensor) -> float:
    """Share of all pairs that the scores put in the order of the truth.

    Pairs that are equal in truth are left out; equal scores are half right, as a coin
    would be.

    Args:
      scores, truth: [N], any units.

    Raises:
      ValueError: shapes differ, an entry is not finite, or all of truth is equal.

    Source: Kendall's τ without ties is 2·accuracy − 1.

    >>> pair_accuracy(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))
    0.6666666666666666
    """
    agree, counts = _concordance(scores, truth)
    return (agree.double().sum() / counts.double().sum()).item()


def bootstrap_pair_accuracy(
    scores: Tensor, truth: Tensor, generator: torch.Generator, resamples: int = 1000
) -> Tensor:
    """Pair accuracy on sentences drawn again, with replacement, [R, resamples].

    All R rows see the same draws, so the difference of two rows is a draw of the
    difference between two scorers. A sentence drawn twice makes no pair with itself.

    Args:
      scores: R scorers of N sentences, [R, N].
      truth: [N], or [R, N] where scorers are held against different truths.

    Raises:
      ValueError: shapes do not fit, an entry is not finite, all of truth is equal.

    Source: Efron and Tibshirani (1993), *An Introduction to the Bootstrap*.
    """
    check_ndim(2, scores=scores)
    truths = truth.expand(scores.shape) if truth.ndim == 1 else truth
    same_shape(scores=scores, truth=truths)
    n = scores.shape[1]
    drawn = torch.randint(n, (resamples, n), generator=generator)
    times = torch.zeros(resamples, n).scatter_add_(1, drawn, torch.ones(resamples, n))
    found, last = [], None
    for row, against in zip(scores, truths, strict=True):
        agree, counts = _concordance(row, against)
        if last is None or not torch.equal(last, against):  # else the same pairs
            pairs = (times * (times @ counts)).sum(1)
            last = against
        found.append((times * (times @ agree)).sum(1) / pairs)
    return torch.stack(found)


def interval(draws: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap draws [B], as (low, high).

    Raises:
      ValueError: not one axis, not finite, or level outside (0, 1).

    >>> low, high = interval(torch.arange(101.0), level=0.9)
    >>> round(low, 3), round(high, 3)
    (5.0, 95.0)
    """
    check_ndim(1, draws=draws)
    check_finite(draws=draws)
    if not 0 < level < 1:
        raise ValueError(f"level: want within (0, 1), found {level}")
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(draws.double(), edges).tolist()
    return low, high


@dataclass(frozen=True)
class Calibration:
    """Per bin of predicted probability: its mean, the share that came true, and a
    bootstrap interval of that share, all [bins]."""

    predicted: Tensor
    observed: Tensor
    low: Tensor
    high: Tensor


def calibrate(
    scores: Tensor,
    shares: Tensor,
    generator: torch.Generator,
    bins: int = 5,
    resamples: int = 200,
) -> Calibration:
    """How often judges prefer what the scores prefer, by how sure the scores are.

    predicted = σ(rᵢ − rⱼ), observed = q_ij, over all pairs with rᵢ > rⱼ
    Bins are of equal width from ½ to 1. A sentence is in many pairs, so the interval
    draws sentences.

    Args:
      scores: [N], nats of log-odds.
      shares: rating shares of the same sentences, [N, R].

    Raises:
      ValueError: lengths differ, an entry is not finite, or a bin is empty.

    Source: DeGroot and Fienberg (1983), reliability diagrams.
    """
    check_ndim(1, scores=scores)
    check_finite(scores=scores)
    n = len(scores)
    if len(shares) != n:
        raise ValueError(f"shares: want {n} rows, found {len(shares)}")
    p = torch.sigmoid(scores[:, None] - scores).float()
    q = preference(shares, shares).float()
    place = ((p - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    times = torch.zeros(resamples, n).scatter_add_(1, drawn, torch.ones(resamples, n))
    columns = []
    for b in range(bins):
        inside = ((p > 0.5) & (place == b)).float()
        count = inside.double().sum()
        if count == 0:
            raise ValueError(f"scores: no pair in bin {b} of {bins}")
        draws = (times * (times @ (inside * q))).sum(1)
        draws = draws / (times * (times @ inside)).sum(1)
        mean = [(inside * x).double().sum() / count for x in (p, q)]
        known = draws[draws.isfinite()]  # a draw may leave a bin empty
        columns.append([*(m.item() for m in mean), *interval(known)])
    return Calibration(*torch.tensor(columns, dtype=torch.float64).T)
