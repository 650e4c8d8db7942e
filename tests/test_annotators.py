"""annotators.py: chances by enumeration, a slope against an independent fit."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.linear_model import LogisticRegression

from rlhf_mini import seeding
from rlhf_mini.annotators import (
    BradleyTerryAnnotator,
    fit_choice_slope,
    human_choices,
)

A = torch.tensor([0.3, -1.2, 2.0, 0.0], dtype=torch.float64)
B = torch.tensor([-0.5, 0.7, 1.9, 0.0], dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# --- BradleyTerryAnnotator ----------------------------------------------------


@pytest.mark.parametrize("slope, flip", [(1.0, 0.0), (2.5, 0.1), (0.3, 0.5)])
def test_the_chance_of_a_preference_is_the_formula(slope, flip):
    found = BradleyTerryAnnotator(slope, flip).probability(A, B)
    for p, a, b in zip(found.tolist(), A.tolist(), B.tolist(), strict=True):
        right = sigmoid(slope * (a - b))
        assert p == pytest.approx(right * (1 - flip) + (1 - right) * flip, abs=1e-12)


@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_the_two_chances_of_a_pair_sum_to_one(flip):
    annotator = BradleyTerryAnnotator(1.7, flip)
    both = annotator.probability(A, B) + annotator.probability(B, A)
    torch.testing.assert_close(both, torch.ones_like(A), rtol=0, atol=1e-12)


def test_only_the_difference_of_scores_counts():
    annotator = BradleyTerryAnnotator(1.7, 0.1)
    torch.testing.assert_close(
        annotator.probability(A + 3, B + 3), annotator.probability(A, B)
    )


def test_a_flip_of_one_half_says_nothing():
    assert (BradleyTerryAnnotator(9.0, 0.5).probability(A, B) == 0.5).all()


def choice_law(annotator, gold):
    """P(k) of K answers by the docstring, in plain Python."""
    weights = [math.exp(annotator.slope * g) for g in gold]
    share = 2 * annotator.flip
    return [(1 - share) * w / sum(weights) + share / len(gold) for w in weights]


@pytest.mark.parametrize("flip", [0.0, 0.15])
@pytest.mark.parametrize("gold", [[0.4, -0.9], [1.0, -0.5, 0.2, 0.0]])
def test_choices_come_as_often_as_their_law_says(gold, flip):
    annotator = BradleyTerryAnnotator(1.3, flip)
    table = torch.tensor(gold).expand(20_000, -1)
    seen = torch.bincount(annotator.choose(table, seeding.make(0)))
    assert (
        chisquare(seen.double(), 20_000 * np.array(choice_law(annotator, gold))).pvalue
        > 1e-3
    )


def test_of_two_answers_the_choice_is_the_paired_preference():
    annotator = BradleyTerryAnnotator(1.3, 0.15)
    a, b = torch.tensor([0.4]), torch.tensor([-0.9])
    law = choice_law(annotator, [0.4, -0.9])
    assert annotator.probability(a, b).item() == pytest.approx(law[0], abs=1e-6)


def test_the_same_seed_chooses_the_same():
    gold = torch.randn(200, 4, generator=seeding.make(1))
    annotator = BradleyTerryAnnotator(1.0)
    first, second = (annotator.choose(gold, seeding.make(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.int64 and first.shape == (200,)


@pytest.mark.parametrize("flip", [0.0, 0.1])
def test_the_ceiling_is_the_accuracy_of_the_gold_score_on_its_own_labels(flip):
    annotator = BradleyTerryAnnotator(1.3, flip)
    by_hand = 0.0  # every label of every pair, weighted by its chance
    for a, b in zip(A.tolist(), B.tolist(), strict=True):
        p = sigmoid(1.3 * (a - b)) * (1 - 2 * flip) + flip
        by_hand += (p if a >= b else 1 - p) / len(A)
    assert annotator.ceiling(A, B) == pytest.approx(by_hand, abs=1e-12)


def test_the_ceiling_is_between_a_coin_and_certainty():
    assert BradleyTerryAnnotator(1.0, 0.5).ceiling(A, B) == 0.5
    sure = BradleyTerryAnnotator(1e6).ceiling(A[:3], B[:3])
    assert sure == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"slope": 0.0}, "slope: want a number > 0, found 0.0"),
        ({"slope": math.nan}, "slope"),
        ({"slope": 1.0, "flip": 0.6}, r"flip: want 0.0 ≤ flip ≤ 0.5, found 0.6"),
        ({"slope": 1.0, "flip": -0.1}, "flip"),
    ],
)
def test_an_impossible_annotator_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BradleyTerryAnnotator(**options)


def test_scores_that_do_not_fit_are_named():
    annotator, nan = BradleyTerryAnnotator(1.0), torch.tensor([math.nan])
    with pytest.raises(ValueError, match=r"gold_a \[4\], gold_b \[3\]"):
        annotator.probability(A, B[:3])
    with pytest.raises(ValueError, match=r"gold_b: found nan at \[0\]"):
        annotator.probability(A[:1], nan)
    with pytest.raises(ValueError, match="gold: want 2 axes"):
        annotator.choose(A, seeding.make(0))
    with pytest.raises(ValueError, match="gold: found nan"):
        annotator.choose(nan[None], seeding.make(0))


# --- human_choices ------------------------------------------------------------

RATINGS = [(4, 1, 1), (-2, 0), (3, 3, 2, 0)]


def every_choice(i, j):
    """All (gap, outcome) that two random raters of sentences i and j can give."""
    for a, x in enumerate(RATINGS[i]):
        for b, y in enumerate(RATINGS[j]):
            left = (sum(RATINGS[i]) - x) / (len(RATINGS[i]) - 1)
            right = (sum(RATINGS[j]) - y) / (len(RATINGS[j]) - 1)
            yield (a, b), (left - right, 1.0 if x > y else 0.0 if x < y else 0.5)


@pytest.mark.parametrize("i, j", [(0, 1), (1, 2), (0, 2)])
def test_the_drawn_rater_is_left_out_of_the_mean_and_all_come_equally_often(i, j):
    pairs = torch.tensor([[i, j]]).expand(12_000, 2)
    gap, outcome = human_choices(RATINGS, pairs, seeding.make(0))
    counts = {}
    for _, (g, o) in every_choice(i, j):  # some of them coincide
        key = round(g, 9), o
        counts[key] = counts.get(key, 0) + 1
    found = dict.fromkeys(counts, 0)
    for g, o in zip(gap.tolist(), outcome.tolist(), strict=True):
        found[round(g, 9), o] += 1  # KeyError: a gap that no rater can give
    expected = [12_000 * n / sum(counts.values()) for n in counts.values()]
    assert chisquare(list(found.values()), expected).pvalue > 1e-3


def test_gap_and_outcome_are_float64_and_reproducible():
    pairs = torch.tensor([[0, 1], [2, 0]])
    first, second = (human_choices(RATINGS, pairs, seeding.make(1)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[0].dtype == first[1].dtype == torch.float64


def test_a_sentence_with_one_rating_is_named():
    with pytest.raises(ValueError, match="want ≥ 2 a sentence, sentence 1 has fewer"):
        human_choices([(1, 2), (3,)], torch.tensor([[0, 1]]), seeding.make(0))


# --- fit_choice_slope ---------------------------------------------------------


def labelled(slope, n=4_000, flip=0.0):
    generator = seeding.make(0)
    gap = 2 * torch.randn(n, generator=generator, dtype=torch.float64)
    p = BradleyTerryAnnotator(slope, flip).probability(gap, 0 * gap)
    return gap, (torch.rand(n, generator=generator) < p).double()


@pytest.mark.parametrize("slope", [0.2, 0.9, 3.0])
def test_the_fit_finds_the_slope_that_made_the_labels(slope):
    found, error = fit_choice_slope(*labelled(slope))
    assert abs(found - slope) < 4 * error
    assert 0 < error < 0.1 * slope + 0.05


def test_the_fit_is_that_of_an_independent_logistic_regression():
    gap, outcome = labelled(0.9)
    other = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10)
    other.fit(gap[:, None].numpy(), outcome.numpy())
    found, _ = fit_choice_slope(gap, outcome)
    assert found == pytest.approx(other.coef_[0, 0], rel=1e-5)


def test_the_fit_is_the_top_of_the_likelihood_and_its_error_the_curvature_there():
    gap, outcome = labelled(0.9, n=300)
    outcome[::7] = 0.5  # ties

    def likelihood(b):
        p = torch.sigmoid(b * gap)
        return (outcome * p.log() + (1 - outcome) * (1 - p).log()).sum()

    slope, error = fit_choice_slope(gap, outcome)
    b = torch.tensor(slope, dtype=torch.float64)
    h = 1e-4
    second = (likelihood(b + h) - 2 * likelihood(b) + likelihood(b - h)) / h**2
    assert likelihood(b) >= max(likelihood(b + h), likelihood(b - h))
    assert error == pytest.approx((-second.item()) ** -0.5, rel=1e-4)


def test_a_tie_is_half_a_win_on_either_side():
    gap = torch.tensor([1.0, 2.0, 3.0])
    ties, _ = fit_choice_slope(gap, torch.tensor([1.0, 0.5, 0.0]))
    twice = torch.cat([gap, gap])
    split, _ = fit_choice_slope(twice, torch.tensor([1.0, 1, 0, 1, 0, 0]))
    assert ties == pytest.approx(split, abs=1e-10)


def test_swapping_the_sides_changes_nothing():
    gap, outcome = labelled(0.9, n=200)
    assert fit_choice_slope(-gap, 1 - outcome) == pytest.approx(
        fit_choice_slope(gap, outcome)
    )


@pytest.mark.parametrize(
    "gap, outcome, message",
    [
        ([1.0, 2.0], [1.0], r"gap \[2\], outcome \[1\]"),
        ([1.0, 2.0], [1.5, 0.0], "outcome: want within .*found 0.0 to 1.5"),
        ([1.0, 2.0], [1.0, -0.5], "outcome: want within .*found -0.5 to 1.0"),
        ([math.nan, 2.0], [1.0, 0.0], "gap: found nan"),
        ([1.0, -2.0], [1.0, 0.0], "no finite slope"),  # never an upset
        ([0.0, 0.0], [1.0, 0.0], "no finite slope"),
    ],
)
def test_choices_that_fix_no_slope_are_refused(gap, outcome, message):
    with pytest.raises(ValueError, match=message):
        fit_choice_slope(torch.tensor(gap), torch.tensor(outcome))
