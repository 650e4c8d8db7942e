"""Who prefers what: a simulated annotator with human noise, and recorded humans.

Annotators see scores, never models or texts, so one annotator labels bandit arms,
sequences of a token world and movie reviews alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_between, check_finite, check_ndim, check_positive
from .checks import check_same_shape as same_shape


@dataclass(frozen=True)
class BradleyTerryAnnotator:
    """Prefers by noisy comparison of gold scores.

    P(a ≻ b) = (1 − 2·flip)·σ(slope·(g_a − g_b)) + flip

    `slope` is in nats per unit of the gold score. Human choices between movie
    sentences follow this curve: `fit_choice_slope` measures the slope. `flip` is a
    share of labels that are wrong whatever the scores, as a careless click is.
    """

    slope: float
    flip: float = 0.0

    def __post_init__(self):
        check_positive(slope=self.slope)
        check_between(0.0, 0.5, flip=self.flip)

    def probability(self, gold_a: Tensor, gold_b: Tensor) -> Tensor:
        """P(a ≻ b), same shape as the two scores."""
        same_shape(gold_a=gold_a, gold_b=gold_b)
        check_finite(gold_a=gold_a, gold_b=gold_b)
        p = torch.sigmoid(self.slope * (gold_a - gold_b))
        return (1 - 2 * self.flip) * p + self.flip

    def choose(self, gold: Tensor, generator: torch.Generator) -> Tensor:
        """The index of the favourite of K answers, [B, K] scores → [B] int64.

        P(k) = (1 − K·ε)·softmax(slope·g)_k + ε with ε = flip·2/K: a careless click
        falls on any of the answers. For K = 2 this is `probability`.
        """
        check_ndim(2, gold=gold)
        check_finite(gold=gold)
        careless = 2 * self.flip
        p = (1 - careless) * torch.softmax(self.slope * gold.double(), -1)
        p = p + careless / gold.shape[1]
        drawn = torch.multinomial(p.to(generator.device), 1, generator=generator)
        return drawn[:, 0].to(gold.device)

    def ceiling(self, gold_a: Tensor, gold_b: Tensor) -> float:
        """Share of these labels that the gold score itself predicts: E max(p, 1 − p).

        No reward model can be expected to agree with this annotator more often.
        """
        p = self.probability(gold_a, gold_b)
        return torch.maximum(p, 1 - p).mean().item()


def human_choices(
    ratings: Sequence[Sequence[int]], pairs: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What one random rater of each sentence says, against what all others say.

    Raters are anonymous and not aligned over sentences, so the two ratings of a pair
    may be of two people.

    Args:
      ratings: the individual ratings of each of N sentences, at least two of each.
      pairs: [M, 2] sentence numbers.

    Returns:
      (gap, outcome), both [M] float64: the difference between the means of the
      *other* raters, in rating points, and 1, ½ or 0 as the drawn rater of the first
      sentence rated higher, equal or lower than the one of the second.

    Raises:
      ValueError: a sentence with fewer than two ratings.
    """
    if short := [i for i, r in enumerate(ratings) if len(r) < 2]:
        raise ValueError(f"ratings: want ≥ 2 a sentence, sentence {short[0]} has fewer")
    count = torch.tensor([len(r) for r in ratings])
    total = torch.tensor([sum(r) for r in ratings], dtype=torch.float64)
    table = torch.zeros(len(ratings), int(count.max()), dtype=torch.float64)
    for i, row in enumerate(ratings):
        table[i, : len(row)] = torch.tensor(row)
    u = torch.rand(pairs.shape, generator=generator)
    drawn = table[pairs, (u * count[pairs]).long()]
    others = (total[pairs] - drawn) / (count[pairs] - 1)
    outcome = 0.5 + 0.5 * torch.sign(drawn[:, 0] - drawn[:, 1])
    return others[:, 0] - others[:, 1], outcome


def fit_choice_slope(gap: Tensor, outcome: Tensor) -> tuple[float, float]:
    """The slope b of P(first preferred) = σ(b·gap) by maximum likelihood, and its s.e.

    A tie counts as half a win on either side.

    Raises:
      ValueError: shapes differ, outcomes leave [0, 1], or no slope is the likeliest:
        all gaps are 0, or the outcomes follow the gaps without exception.

    >>> slope, _ = fit_choice_slope(torch.tensor([1.0, 1, 1, 1]),
    ...                             torch.tensor([1.0, 1, 1, 0]))
    >>> round(slope, 4)   # three of four: log 3
    1.0986
    """
    same_shape(gap=gap, outcome=outcome)
    check_finite(gap=gap, outcome=outcome)
    if outcome.min() < 0 or outcome.max() > 1:
        found = f"{outcome.min().item()} to {outcome.max().item()}"
        raise ValueError(f"outcome: want within [0, 1], found {found}")
    gap, outcome = gap.double(), outcome.double()
    slope = torch.zeros((), dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(slope * gap)
        information = (p * (1 - p) * gap**2).sum()
        step = ((outcome - p) * gap).sum() / information
        slope = slope + step
        if step.abs() < 1e-12 * (1 + slope.abs()):
            break
    else:
        raise ValueError("gap, outcome: no finite slope fits them best")
    return slope.item(), information.rsqrt().item()
