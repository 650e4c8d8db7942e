"""human_pairs.py against loops over raters and pairs, written as naively as can be."""

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.human_pairs import (
    bootstrap_pair_accuracy,
    calibrate,
    interval,
    one_rater,
    pair_accuracy,
    preference,
    rating_shares,
    split_by_sentence,
    ties,
)

RATINGS = [(4, 3, 3), (-1, 0, 0, 2), (2, 2), (-4, -3, -3, 1, 0)]  # unequal on purpose
TEXTS = [f"Sentence number {i}." for i in range(400)]


def shares():
    return rating_shares(RATINGS)


# --- the split ----------------------------------------------------------------


def test_no_sentence_is_on_both_sides():
    s = split_by_sentence(TEXTS, seed=0, test=100)
    assert not set(s.train.tolist()) & set(s.test.tolist())
    assert sorted(s.train.tolist() + s.test.tolist()) == list(range(400))


def test_the_test_set_has_the_size_asked_for():
    assert len(split_by_sentence(TEXTS, seed=3, test=100).test) == 100


def test_copies_of_a_sentence_stay_together():
    doubled = TEXTS + [t.upper() + "  " for t in TEXTS]  # case and space do not count
    s = split_by_sentence(doubled, seed=1, test=200)
    held = set(s.test.tolist())
    assert all((i in held) == (i + 400 in held) for i in range(400))


def test_development_sentences_are_in_training_and_in_no_test_set():
    for seed in range(5):
        s = split_by_sentence(TEXTS, seed=seed, test=150)
        known = set(s.development.tolist())
        assert known and known <= set(s.train.tolist())


def test_development_sentences_do_not_depend_on_the_seed_but_the_test_does():
    a, b = (split_by_sentence(TEXTS, seed=seed, test=100) for seed in (0, 1))
    assert torch.equal(a.development, b.development)
    assert not torch.equal(a.test, b.test)


def test_the_development_share_is_about_what_was_asked():
    s = split_by_sentence(TEXTS, seed=0, test=10, development=0.3)
    assert 80 < len(s.development) < 160  # 120 ± 4 standard errors


def test_the_split_belongs_to_the_sentence_not_to_its_place():
    a = split_by_sentence(TEXTS, seed=0, test=100)
    b = split_by_sentence(TEXTS[::-1], seed=0, test=100)
    assert {TEXTS[i] for i in a.test} == {TEXTS[::-1][i] for i in b.test}


@pytest.mark.parametrize("test", [0, 400])
def test_an_impossible_test_size_is_refused(test):
    with pytest.raises(ValueError, match=f"test: .*found {test}"):
        split_by_sentence(TEXTS, seed=0, test=test)


def test_a_development_share_outside_0_1_is_refused():
    with pytest.raises(ValueError, match="development"):
        split_by_sentence(TEXTS, seed=0, test=10, development=1.5)


# --- preferences from ratings -------------------------------------------------


def test_shares_count_the_raters():
    expected = torch.zeros(9, dtype=torch.float64)
    expected[4], expected[3], expected[6] = 2 / 4, 1 / 4, 1 / 4  # ratings 0, −1, 2
    torch.testing.assert_close(shares()[1], expected)


@pytest.mark.parametrize("row", [(), (0, 5), (-5,)])
def test_ratings_out_of_range_or_missing_are_named(row):
    with pytest.raises(ValueError, match="sentence 1"):
        rating_shares([(0,), row])


def naive(a, b, win):
    """Mean over all pairs of a rater of each."""
    return sum(win(x, y) for x in a for y in b) / (len(a) * len(b))


def test_preference_is_the_mean_over_all_pairs_of_raters():
    q = preference(shares(), shares())
    for i, a in enumerate(RATINGS):
        for j, b in enumerate(RATINGS):
            expected = naive(a, b, lambda x, y: (x > y) + 0.5 * (x == y))
            assert abs(q[i, j].item() - expected) < 1e-12


def test_rounding_never_takes_a_preference_out_of_0_1():
    g = seeding.make(0)
    a = torch.rand(500, 9, generator=g) * (torch.rand(500, 9, generator=g) < 0.3)
    a = a[a.sum(1) > 0]
    a = a / a.sum(1, keepdim=True)  # float32
    q = preference(a, a)
    assert q.min() >= 0 and q.max() <= 1


def test_ties_are_counted_over_all_pairs_of_raters():
    t = ties(shares(), shares())
    for i, a in enumerate(RATINGS):
        for j, b in enumerate(RATINGS):
            assert abs(t[i, j].item() - naive(a, b, lambda x, y: x == y)) < 1e-12


def test_two_directions_of_a_preference_add_up_to_one():
    a, b = shares()[:3], shares()[2:]
    torch.testing.assert_close(preference(a, b), 1 - preference(b, a).T)


@pytest.mark.parametrize("function", [preference, ties])
@pytest.mark.parametrize(
    ("b", "found"),
    [
        (torch.ones(2, 3) / 3, "widths differ"),
        (torch.ones(2, 9), "b: want rows of shares"),
        (torch.full((2, 9), torch.nan), "b"),
        (torch.ones(9) / 9, "b"),
    ],
)
def test_what_is_no_share_is_refused(function, b, found):
    with pytest.raises(ValueError, match=found):
        function(shares().float(), b)


def test_one_rater_and_the_others_make_up_the_whole():
    drawn, others = one_rater(RATINGS, seeding.make(0))
    for row, d, o in zip(RATINGS, drawn.tolist(), others.tolist(), strict=True):
        assert d in row
        assert abs(d + o * (len(row) - 1) - sum(row)) < 1e-9


def test_every_rater_is_drawn_as_often():
    many = [(0, 1, 2, 3)] * 4000
    drawn, _ = one_rater(many, seeding.make(0))
    counts = torch.bincount(drawn.long(), minlength=4)
    assert (counts - 1000).abs().max() < 110  # four standard errors of 27.4


def test_a_lone_rater_has_no_others():
    with pytest.raises(ValueError, match="sentence 1"):
        one_rater([(1, 2), (3,)], seeding.make(0))


# --- accuracy -----------------------------------------------------------------


def naive_accuracy(scores, truth):
    right = count = 0
    for i in range(len(truth)):
        for j in range(i):
            if truth[i] == truth[j]:
                continue
            count += 1
            order = (scores[i] - scores[j]) * (truth[i] - truth[j])
            right += 1.0 if order > 0 else 0.5 if order == 0 else 0.0
    return right / count


def noisy(n=60, seed=0):
    g = seeding.make(seed)
    truth = torch.randint(6, (n,), generator=g).double()  # ties in truth
    scores = (truth + 2 * torch.randn(n, generator=g)).round()  # ties in scores
    return scores, truth


def test_pair_accuracy_is_that_of_a_loop_over_pairs():
    scores, truth = noisy()
    assert abs(pair_accuracy(scores, truth) - naive_accuracy(scores, truth)) < 1e-9


def test_the_right_order_is_1_the_reverse_0_and_no_opinion_a_half():
    _, truth = noisy()
    assert pair_accuracy(truth, truth) == 1
    assert pair_accuracy(-truth, truth) == 0
    assert pair_accuracy(torch.zeros_like(truth), truth) == 0.5


def test_only_the_order_of_the_scores_counts():
    scores, truth = noisy()
    stretched = pair_accuracy(3 * scores.exp() + 5, truth)
    assert stretched == pair_accuracy(scores, truth)


def test_where_truth_is_yes_or_no_it_is_the_area_under_the_roc_curve():
    from sklearn.metrics import roc_auc_score

    scores, truth = noisy()
    label = (truth > 2).double()
    expected = roc_auc_score(label.numpy(), scores.numpy())
    assert abs(pair_accuracy(scores, label) - expected) < 1e-9


def test_the_bootstrap_counts_pairs_of_the_sentences_it_drew():
    scores, truth = noisy(n=12)
    draws = bootstrap_pair_accuracy(scores[None], truth, seeding.make(5), 4)[0]
    picked = torch.randint(12, (4, 12), generator=seeding.make(5))
    for value, rows in zip(draws, picked, strict=True):
        right = count = 0
        for a in range(12):
            for b in range(a):
                i, j = rows[a], rows[b]
                if i != j and truth[i] != truth[j]:
                    order = (scores[i] - scores[j]) * (truth[i] - truth[j])
                    count += 1
                    right += 1.0 if order > 0 else 0.5 if order == 0 else 0.0
        assert abs(value.item() - right / count) < 1e-5


def test_the_bootstrap_has_the_spread_that_new_sentences_would_give():
    """Against 300 fresh samples of the same law."""
    fresh = [pair_accuracy(*noisy(100, seed)) for seed in range(1000, 1300)]
    scores, truth = noisy(100)
    draws = bootstrap_pair_accuracy(scores[None], truth, seeding.make(0), 2000)[0]
    ratio = draws.std().item() / torch.tensor(fresh).std().item()
    assert 0.7 < ratio < 1.4


def test_pairs_as_if_independent_would_claim_too_much():
    """The reason to draw sentences: 4950 pairs are not 4950 coins."""
    scores, truth = noisy(100)
    p = pair_accuracy(scores, truth)
    naive_error = (p * (1 - p) / (100 * 99 / 2)) ** 0.5
    draws = bootstrap_pair_accuracy(scores[None], truth, seeding.make(0), 500)[0]
    assert draws.std() > 3 * naive_error


def test_two_scorers_see_the_same_draws():
    scores, truth = noisy()
    both = bootstrap_pair_accuracy(
        torch.stack([scores, 2 * scores]), truth, seeding.make(1), 50
    )
    assert torch.equal(both[0], both[1])


def test_scorers_may_have_truths_of_their_own():
    scores, truth = noisy()
    both = bootstrap_pair_accuracy(
        torch.stack([scores, scores]), torch.stack([truth, -truth]), seeding.make(1), 50
    )
    torch.testing.assert_close(both[0], 1 - both[1])


def test_accuracy_refuses_what_it_cannot_compare():
    scores, truth = noisy()
    with pytest.raises(ValueError, match="truth: no pair differs"):
        pair_accuracy(scores, torch.ones_like(truth))
    with pytest.raises(ValueError, match="shapes differ"):
        pair_accuracy(scores[1:], truth)
    with pytest.raises(ValueError, match="scores"):
        pair_accuracy(torch.full_like(scores, torch.nan), truth)
    with pytest.raises(ValueError, match="scores"):
        bootstrap_pair_accuracy(scores, truth, seeding.make(0))


def test_the_interval_holds_the_middle():
    low, high = interval(torch.arange(1001.0), 0.95)
    assert abs(low - 25) < 1e-6 and abs(high - 975) < 1e-6


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_an_interval_needs_a_level_between(level):
    with pytest.raises(ValueError, match="level"):
        interval(torch.arange(9.0), level)


# --- calibration --------------------------------------------------------------


def binary_judges(n=300, seed=0):
    """Scores, and rating shares under which σ(rᵢ − rⱼ) is q_ij up to a cubic term."""
    r = 0.5 * torch.randn(n, generator=seeding.make(seed), dtype=torch.float64)
    p = torch.sigmoid(2 * r)  # q_ij = ½ + (pᵢ − pⱼ)/2, of slope ¼·(rᵢ − rⱼ) at 0
    return r, torch.stack([1 - p, p], 1)


def test_calibration_is_that_of_a_loop_over_pairs():
    r, shares = binary_judges(40)
    found = calibrate(3 * r, shares, seeding.make(0), bins=3, resamples=10)
    sums = [[0, 0.0, 0.0] for _ in range(3)]
    for i in range(40):
        for j in range(40):
            p = torch.sigmoid(3 * r[i] - 3 * r[j]).item()
            if p > 0.5:
                q = 0.5 + (shares[i, 1] - shares[j, 1]).item() / 2
                at = sums[min(int((p - 0.5) * 6), 2)]
                at[0], at[1], at[2] = at[0] + 1, at[1] + p, at[2] + q
    for b, (count, p, q) in enumerate(sums):
        assert found.predicted[b].item() == pytest.approx(p / count, abs=1e-5)
        assert found.observed[b].item() == pytest.approx(q / count, abs=1e-5)


def test_true_odds_are_calibrated_and_doubled_ones_are_not():
    r, shares = binary_judges()
    found = calibrate(r, shares, seeding.make(0), bins=3)
    assert (found.predicted - found.observed).abs()[:2].max() < 0.02
    sure = calibrate(2 * r, shares, seeding.make(0), bins=3)
    assert (sure.predicted - sure.observed).min() > 0.02


def test_the_order_of_the_sentences_does_not_matter():
    """A file sorted by rating would bias pairs that are taken with i < j only."""
    r, shares = binary_judges()
    order = r.argsort()
    a = calibrate(r, shares, seeding.make(0), bins=3, resamples=5)
    b = calibrate(r[order], shares[order], seeding.make(0), bins=3, resamples=5)
    torch.testing.assert_close(a.observed, b.observed, atol=1e-6, rtol=0)


def test_the_interval_of_a_bin_holds_what_was_observed():
    r, shares = binary_judges()
    found = calibrate(r, shares, seeding.make(0), bins=3)
    assert (found.low < found.observed).all() and (found.observed < found.high).all()


def test_calibration_refuses_an_empty_bin_and_rows_that_do_not_fit():
    r, shares = binary_judges()
    with pytest.raises(ValueError, match="no pair in bin 4 of 5"):
        few = torch.tensor([0.0, 0.1, 0.9, 1.7], dtype=torch.float64)
        calibrate(few, shares[:4], seeding.make(0))
    with pytest.raises(ValueError, match="want 300 rows, found 299"):
        calibrate(r, shares[1:], seeding.make(0))
