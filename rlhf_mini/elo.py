"""Elo ratings: Bradley-Terry, learnt online, one game and one gradient step at a time.

Ratings are in points: R = 1500 + (400/ln 10)·s for strengths s in nats. All the ways
to run it are here: one game, a list of games (or many lists at once), and the law
that the ratings of two players follow when they never stop playing.
"""

import math

import numpy as np
import torch
from torch import Tensor

from rlhf_mini.checks import (
    check_between,
    check_index,
    check_number,
    check_positive,
    check_same_shape,
)

POINTS = 400 / math.log(10)  # Elo points per nat


def expected_score(
    rating_a: float | Tensor, rating_b: float | Tensor
) -> float | Tensor:
    """The score that Elo expects of A against B: a Bradley-Terry probability.

    E_A = 1 / (1 + 10^((R_B − R_A)/400)) = σ((R_A − R_B) · ln 10 / 400)

    Args:
      rating_a, rating_b: Elo points, numbers or tensors of one shape.

    Returns:
      Probability that A wins, ties counted as half; a tensor (float64) if the
      ratings are tensors.

    Raises:
      ValueError: a rating is not finite.

    Source: Elo (1978), "The rating of chessplayers", with the logistic curve.

    >>> round(expected_score(1400, 1000), 4)   # 10 / 11
    0.9091
    """
    lead = torch.as_tensor(rating_a - rating_b, dtype=torch.float64)
    if not lead.isfinite().all():
        raise ValueError(f"ratings: found {rating_a} and {rating_b}")
    expected = torch.sigmoid(lead / POINTS)
    return expected if isinstance(rating_a - rating_b, Tensor) else expected.item()


def elo_update(
    rating_a: float | Tensor,
    rating_b: float | Tensor,
    score: float | Tensor,
    k: float | Tensor = 32.0,
) -> tuple[float | Tensor, float | Tensor]:
    """Both ratings after one game: one SGD step on the Bradley-Terry likelihood.

    R_A ← R_A + K (S − E_A),  R_B ← R_B − K (S − E_A)
    K = η · 400/ln 10 for a learning rate η on strengths. A constant K never
    converges: at K = 32 the gap of two players keeps a noise of ±77 points.

    Args:
      rating_a, rating_b: Elo points, numbers or tensors of one shape.
      score: S, 1 if A won, 0 if B won, ½ for a tie.
      k: K, Elo points; a number or a tensor of the ratings' shape.

    Returns:
      (A's new rating, B's new rating); their sum does not change.

    Raises:
      ValueError: a rating is not finite, score outside [0, 1], k not > 0.

    Source: Elo (1978); as SGD: notebook 02.

    >>> elo_update(1000, 1000, score=1)
    (1016.0, 984.0)
    """
    check_positive(k=torch.as_tensor(k, dtype=torch.float64).min())
    scores = torch.as_tensor(score, dtype=torch.float64).reshape(-1)
    for extreme in (scores.min().item(), scores.max().item()):
        check_between(0, 1, score=extreme)
    change = k * (score - expected_score(rating_a, rating_b))
    return rating_a + change, rating_b - change


def elo_pass(
    first: Tensor,
    second: Tensor,
    score: Tensor,
    k: float | Tensor = 32.0,
    start: float | Tensor = 1500.0,
    lead: float = 0.0,
    players: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Elo through a list of games, in their order; many lists or many K at once.

    For t = 1 … M:  E_t = 1 / (1 + 10^((R_j − R_i − lead)/400)), then
    R_i ← R_i + K (S_t − E_t),  R_j ← R_j − K (S_t − E_t)
    Every E_t is a forecast: it is made before game t is seen, by games before it.

    Args:
      first, second: i and j, the numbers of the two sides of each game, int64,
        [..., M].
      score: S, 1 if the first side won, 0 if the second did, ½ for a tie, [..., M].
      k: K, Elo points, a number or a tensor [...] with one K per list.
      start: Elo points before the first game, a number or [..., players].
      lead: Elo points by which the first side is better than its rating: the home
        advantage; it enters the forecast and never the rating.
      players: how many there are; one more than the largest number if None.

    Returns:
      (ratings after the last game [..., players], forecasts E [..., M]), float64.

    Raises:
      ValueError: the shapes of first, second and score differ, or there is no game;
        a number is no player; a score is outside [0, 1]; k is not > 0; somebody
        plays against himself.

    Source: Elo (1978), "The rating of chessplayers".

    >>> ratings, forecasts = elo_pass(
    ...     torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
    >>> [round(x, 2) for x in forecasts.tolist()]   # equals, then 1484 meets 1516
    [0.5, 0.45]
    >>> ratings.sum().item()
    3000.0
    """
    check_same_shape(first=first, second=second, score=score)
    if first.numel() == 0 or first.ndim == 0:
        raise ValueError(f"first: want games [..., M], found {list(first.shape)}")
    players = int(max(first.max(), second.max())) + 1 if players is None else players
    check_index(players, first=first, second=second)
    if (first == second).any():
        where = (first == second).nonzero()[0].tolist()
        raise ValueError(f"first, second: found one player on both sides at {where}")
    for extreme in (score.min(), score.max()):
        check_between(0, 1, score=extreme)
    k = torch.as_tensor(k, dtype=torch.float64)
    check_positive(k=k.min())
    check_number(lead=lead)
    lists = torch.broadcast_shapes(first.shape[:-1], k.shape)
    ratings = torch.as_tensor(start, dtype=torch.float64).expand(*lists, players)
    ratings, step = ratings.clone(), k.expand(lists)[..., None]
    games = [x.expand(*lists, -1) for x in (first, second, score.double())]
    forecasts = []
    for i, j, outcome in zip(*(x.split(1, -1) for x in games), strict=True):
        gap = ratings.gather(-1, i) + lead - ratings.gather(-1, j)
        forecasts.append(torch.sigmoid(gap / POINTS))
        change = step * (outcome - forecasts[-1])
        ratings.scatter_add_(-1, i, change).scatter_add_(-1, j, -change)
    return ratings, torch.cat(forecasts, -1)


def elo_gap_law(p: float, k: float = 32.0) -> tuple[Tensor, Tensor]:
    """The law of the rating gap of two players who have played for ever.

    With x the gap in nats and η = K·ln 10/400, a win moves x to w(x) = x + 2η(1 − σ(x))
    and a loss to l(x) = x − 2ησ(x). The stationary distribution function solves
    F(x) = p F(w⁻¹(x)) + (1 − p) F(l⁻¹(x)),
    and iterating this converges to it. No sampling: the error is that of a grid.

    Args:
      p: the chance that the first player wins, between 0 and 1.
      k: K, Elo points; below 800/ln 10 = 347, or w and l have no inverse.

    Returns:
      (gap, Elo points, [G], rising; distribution function at it, [G]), float64.

    Raises:
      ValueError: p is not between 0 and 1, or k is not > 0 and < 347.

    Source: existence: Avdeev (2014), "Stationary distribution of the player rating in
    the Elo model with one adversary"; the equation: notebook 02.

    >>> gap, cdf = elo_gap_law(0.5)   # equals: as often ahead as behind
    >>> round(float(np.interp(0.0, gap, cdf)), 6)
    0.5
    """
    check_positive(k=k)
    check_between(1e-6, 1 - 1e-6, p=p)
    check_between(0, 2 * POINTS, k=k)
    eta = k / POINTS
    x = math.log(p / (1 - p)) + 12 * math.sqrt(eta) * np.linspace(-1, 1, 4001)
    expected = 1 / (1 + np.exp(-x))
    won, lost = x + 2 * eta * (1 - expected), x - 2 * eta * expected
    cdf = (np.arange(4001) >= 2000).astype(float)
    for _ in range(100_000):
        old = cdf
        cdf = p * np.interp(x, won, old, left=0) + (1 - p) * np.interp(x, lost, old)
        if np.abs(cdf - old).max() < 1e-12:
            break
    return torch.from_numpy(x * POINTS), torch.from_numpy(cdf)
