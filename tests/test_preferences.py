"""preferences.py against published tables, closed forms and other solvers."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linprog, minimize
from sklearn.linear_model import LogisticRegression

from rlhf_mini import elo, preferences, seeding
from rlhf_mini.pairs import load_pairs
from rlhf_mini.preferences import (
    deviance,
    fit_bradley_terry,
    fit_bradley_terry_home,
    fit_davidson,
    fit_plackett_luce,
)


def close(found, wanted, atol=1e-10):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def table(names, pairs):
    """Wins from lines such as "A B 3 5": A beat B 3 times and lost 5 times."""
    wins = torch.zeros(len(names), len(names), dtype=torch.float64)
    for line in pairs.split(";"):
        a, b, won, lost = line.split()
        wins[names.index(a), names.index(b)] += float(won)
        wins[names.index(b), names.index(a)] += float(lost)
    return wins


def random_wins(seed, items=5, games=9):
    generator = seeding.make(seed)
    s = torch.randn(items, generator=generator, dtype=torch.float64)
    p = torch.sigmoid(s[:, None] - s)
    upper = torch.binomial(torch.full_like(p, games), p, generator=generator).triu(1)
    return upper + (games * torch.ones_like(p).triu(1) - upper).T


def pair_deviance(fit, wins):
    """G² of a Bradley-Terry fit over all pairs."""
    games = wins + wins.T
    return deviance(wins, games * torch.sigmoid(fit.strength[:, None] - fit.strength))


# ------------------------------------------------------- published tables, typed here

# the tables are those of data/pairs; where they come from is in data/README.md
CITATIONS = load_pairs("citations").wins
BASEBALL = load_pairs("baseball_1987")
BASEBALL_HOME, BASEBALL_AWAY = BASEBALL.first_wins, BASEBALL.second_wins
SOUND = load_pairs("sound_quality").wins
PARTIES = load_pairs("german_parties_2009").wins
FLUTE = load_pairs("sound_fields_flute")
FLUTE_WINS, FLUTE_TIES = FLUTE.wins, FLUTE.ties

# 2,880 human choices between 6 faces; Strobl, Wickelmaier and Zeileis (2011)
FACES = table(
    ["Ba", "An", "Ha", "Fi", "Ma", "Aj"],
    "Ba An 121 71;Ba Ha 98 94;An Ha 75 117;Ba Fi 101 91;An Fi 81 111;Ha Fi 113 79;"
    "Ba Ma 130 62;An Ma 114 78;Ha Ma 130 62;Fi Ma 131 61;Ba Aj 123 69;An Aj 112 80;"
    "Ha Aj 130 62;Fi Aj 119 73;Ma Aj 92 100",
)


def test_citations_have_their_published_strengths():
    fit = fit_bradley_terry(CITATIONS, reference=0)
    close(fit.strength, [0, -2.9491, -0.4796, 0.2690], atol=1e-4)


def test_citations_have_their_published_standard_errors():
    fit = fit_bradley_terry(CITATIONS, reference=0)
    close(fit.stderr, [0, 0.1025, 0.0606, 0.0708], atol=1e-4)


def test_baseball_has_its_published_strengths():
    fit = fit_bradley_terry(BASEBALL_HOME + BASEBALL_AWAY, reference=0)
    wanted = [0, 1.1077, 0.6839, 1.4364, 1.5814, 1.2476, 1.2945]
    close(fit.strength, wanted, atol=1e-4)
    assert fit.stderr[1:].min() > 0.3318 and fit.stderr.max() < 0.3434


def test_baseball_at_home_has_its_published_strengths_and_advantage():
    fit = fit_bradley_terry_home(BASEBALL_HOME, BASEBALL_AWAY, reference=0)
    wanted = [0, 1.1438, 0.7047, 1.4754, 1.6196, 1.2813, 1.3271]
    close(fit.strength, wanted, atol=1e-4)
    close([fit.home, fit.home_stderr], [0.3023, 0.1309], atol=1e-4)


def baseball_deviance(fit):
    """G² over the 42 ordered pairs."""
    games = BASEBALL_HOME + BASEBALL_AWAY.T
    p = torch.sigmoid(fit.strength[:, None] - fit.strength + (fit.home or 0.0))
    observed = torch.stack([BASEBALL_HOME, BASEBALL_AWAY.T])
    return deviance(observed, torch.stack([games * p, games * (1 - p)]))


def test_baseball_has_its_published_deviance_without_home_advantage():
    fit = fit_bradley_terry(BASEBALL.wins)
    close(baseball_deviance(fit), 44.053, atol=1e-3)


def test_baseball_has_its_published_deviance_with_home_advantage():
    fit = fit_bradley_terry_home(BASEBALL_HOME, BASEBALL_AWAY)
    close(baseball_deviance(fit), 38.643, atol=1e-3)


def test_sound_quality_has_the_strengths_that_r_finds():
    fit = fit_bradley_terry(SOUND, reference=7)
    wanted = [-2.47575, -1.89289, 0.13567, -0.18606, 0.00382, -0.12210, -0.36585, 0]
    close(fit.strength, wanted, atol=1e-5)


def test_faces_have_the_strengths_that_r_finds():
    fit = fit_bradley_terry(FACES, reference=5)
    close(fit.strength, [0.67916, 0.24887, 0.71948, 0.52721, -0.10719, 0], atol=1e-5)


def test_parties_have_the_strengths_that_r_finds():
    fit = fit_bradley_terry(PARTIES, reference=5)
    close(fit.strength, [-0.37556, -0.61607, 1.18576, 0.81310, 0.17562, 0], atol=1e-5)


@pytest.mark.parametrize("wins, wanted", [(SOUND, 24.2), (FACES, 4.3), (PARTIES, 24.2)])
def test_the_deviance_is_what_r_finds(wins, wanted):
    close(pair_deviance(fit_bradley_terry(wins), wins), wanted, atol=0.05)


def test_flute_sound_fields_have_their_published_strengths():
    # the published table prints half the log-worth
    fit = fit_davidson(FLUTE_WINS, FLUTE_TIES)
    wanted = [-0.581, -1.039, 0.347, 0.205, 0.276, 0.347, 0.311, 0.135]
    close(fit.strength / 2, wanted, atol=1e-3)
    close(fit.tie, 0.4553, atol=1e-4)


# --------------------------------------------------------------------- Bradley-Terry


def test_the_likelihood_is_the_product_of_the_games():
    s = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    wins = torch.tensor([[0, 2, 1], [0, 0, 3], [1, 0, 0]], dtype=torch.float64)
    total = 0.0
    for i in range(3):
        for j in range(3):
            p = math.exp(s[i]) / (math.exp(s[i]) + math.exp(s[j]))
            total += wins[i, j].item() * math.log(p)
    close(preferences.bradley_terry_log_likelihood(s, wins), total)


def test_two_items_have_a_closed_form():
    fit = fit_bradley_terry(torch.tensor([[0, 7], [2, 0]]), reference=1)
    close(fit.strength[0], math.log(7 / 2))
    close(fit.stderr[0], math.sqrt(1 / 7 + 1 / 2))
    close(fit.log_likelihood, 7 * math.log(7 / 9) + 2 * math.log(2 / 9))


def test_on_a_tree_every_difference_is_its_own_log_odds():
    edges = [(0, 1, 5, 2), (1, 2, 1, 4), (1, 3, 9, 8), (3, 4, 3, 7)]
    wins = torch.zeros(5, 5)
    for i, j, won, lost in edges:
        wins[i, j], wins[j, i] = won, lost
    s = fit_bradley_terry(wins).strength
    for i, j, won, lost in edges:
        close(s[i] - s[j], math.log(won / lost))


def test_a_symmetric_cycle_has_no_winner():
    # rock, paper, scissors at 80 %: the fit is a coin, and loses log 2 per game
    wins = torch.tensor([[0, 8, 2], [2, 0, 8], [8, 2, 0]])
    fit = fit_bradley_terry(wins)
    close(fit.strength, [0.0, 0.0, 0.0])
    close(fit.log_likelihood, -30 * math.log(2))


def test_in_a_cycle_the_winner_depends_on_who_was_compared_most():
    # A–B sampled ten times more than B–C and C–A: A above C by .57, though C beats A
    wins = torch.tensor([[0, 80, 2], [20, 0, 8], [8, 2, 0]])
    s = fit_bradley_terry(wins).strength
    close(s[0] - s[2], 0.57, atol=0.005)


def test_with_one_baseline_every_strength_is_its_log_odds_against_it():
    star = torch.zeros(4, 4)
    star[0, 1:], star[1:, 0] = torch.tensor([3.0, 5.0, 2.0]), torch.tensor([1, 6, 9.0])
    wanted = [0, math.log(1 / 3), math.log(6 / 5), math.log(9 / 2)]
    close(fit_bradley_terry(star, reference=0).strength, wanted)


@pytest.mark.parametrize("seed", range(4))
def test_at_the_fit_expected_wins_are_observed_wins(seed):
    wins = random_wins(seed)
    s = fit_bradley_terry(wins).strength
    expected = ((wins + wins.T) * torch.sigmoid(s[:, None] - s)).sum(1)
    close(expected, wins.sum(1), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_newton_and_the_minorise_maximise_algorithm_agree(seed):
    wins = random_wins(seed)
    worth = torch.ones(5, dtype=torch.float64)
    for _ in range(5000):  # Zermelo's iteration
        pair = (wins + wins.T) / (worth[:, None] + worth)
        worth = wins.sum(1) / pair.sum(1)
        worth = worth / worth.log().mean().exp()
    close(fit_bradley_terry(wins).strength, worth.log(), atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_logistic_regression_finds_the_same_strengths(seed):
    wins = random_wins(seed)
    rows, weights = [], []
    for i, j in (wins > 0).nonzero().tolist():
        row = [0.0] * 5
        row[i], row[j] = 1.0, -1.0
        rows += [row[1:], [-x for x in row[1:]]]  # item 0 is the reference
        weights += [wins[i, j].item()] * 2
    model = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-12)
    model.fit(rows, [1, 0] * (len(rows) // 2), sample_weight=weights)
    wanted = [0.0, *model.coef_[0]]
    close(fit_bradley_terry(wins, reference=0).strength, wanted, atol=1e-5)


@pytest.mark.parametrize("reference", [None, 0, 3])
def test_the_normalisation_is_the_one_asked_for(reference):
    fit = fit_bradley_terry(random_wins(1), reference)
    origin = fit.strength.mean() if reference is None else fit.strength[reference]
    close(origin, 0.0, atol=1e-12)
    assert reference is None or fit.stderr[reference] == 0


def test_the_reference_changes_no_difference_and_no_error_of_a_difference():
    wins = random_wins(2)
    mean, first = fit_bradley_terry(wins), fit_bradley_terry(wins, reference=0)
    close(mean.strength - mean.strength[0], first.strength)
    c = mean.covariance
    close((c.diagonal() + c[0, 0] - 2 * c[0]).clamp(min=0).sqrt(), first.stderr)


def test_the_standard_error_is_the_spread_of_fits_of_repeated_data():
    truth = torch.tensor([0.6, 0.0, -0.6], dtype=torch.float64)
    p, games = torch.sigmoid(truth[:, None] - truth), 400.0
    generator, found = seeding.make(0), []
    for _ in range(300):
        up = torch.binomial(torch.full_like(p, games), p, generator=generator).triu(1)
        found.append(fit_bradley_terry(up + (games - up).T.tril(-1)).strength)
    claimed = fit_bradley_terry(games * (p - torch.diag(p.diagonal()))).stderr
    close(torch.stack(found).std(0) / claimed, [1.0] * 3, atol=0.15)


def test_counts_in_ten_times_more_data_shrink_the_error_by_root_ten():
    few, many = fit_bradley_terry(SOUND), fit_bradley_terry(10 * SOUND)
    close(many.strength, few.strength)
    close(many.stderr * math.sqrt(10), few.stderr)


def test_strong_favourites_do_not_stop_newton():
    fit = fit_bradley_terry(torch.tensor([[0, 1e6, 0], [1, 0, 1e6], [0, 1, 0]]))
    close(fit.strength, [math.log(1e6), 0.0, -math.log(1e6)], atol=1e-6)


def test_lists_and_whole_numbers_will_do():
    close(fit_bradley_terry([[0, 3], [3, 0]]).strength, [0.0, 0.0])


def test_twins_who_win_three_of_four_at_home_have_the_log_odds_as_advantage():
    home, away = torch.tensor([[0, 3], [3, 0]]), torch.tensor([[0, 1], [1, 0]])
    fit = fit_bradley_terry_home(home, away)
    close(fit.strength, [0.0, 0.0])
    close(fit.home, math.log(3))


def test_without_a_home_advantage_both_models_agree():
    wins = random_wins(3)
    fit = fit_bradley_terry_home(wins, wins)
    close(fit.home, 0.0)
    close(fit.strength, fit_bradley_terry(2 * wins).strength)


# -------------------------------------------------------------------------- Davidson


def test_the_three_outcomes_of_davidson_sum_to_one():
    s, nu = torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor(0.8).double()
    none, won = torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    outcomes = [(won, none), (won.T, none), (none, won + won.T)]
    total = sum(
        preferences.davidson_log_likelihood(s, nu.log(), wins, ties).exp()
        for wins, ties in outcomes
    )
    close(total, 1.0)


def test_two_items_with_ties_have_a_closed_form():
    # wins, losses and ties are fitted exactly: e^s = 8/2, ν = 6/√(8·2)
    wins, ties = torch.tensor([[0, 8], [2, 0]]), torch.tensor([[0, 6], [6, 0]])
    fit = fit_davidson(wins, ties, reference=1)
    close(fit.strength[0], math.log(8 / 2))
    close(fit.tie, 6 / math.sqrt(16))
    close(fit.tie_stderr, fit.tie * math.sqrt(1 / 6 + (1 / 8 + 1 / 2) / 4))
    wanted = sum(c * math.log(c / 16) for c in (8, 2, 6))
    close(fit.log_likelihood, wanted)


def test_an_outside_optimiser_finds_the_same_davidson_fit():
    def loss(x):
        at = torch.tensor(x, requires_grad=True)
        s = torch.cat([at.new_zeros(1), at[:-1]])
        value = -preferences.davidson_log_likelihood(s, at[-1], FLUTE_WINS, FLUTE_TIES)
        value.backward()
        return value.item(), at.grad.numpy()

    wanted = minimize(loss, [0.0] * 8, jac=True, tol=1e-12)
    fit = fit_davidson(FLUTE_WINS, FLUTE_TIES, reference=0)
    close(fit.strength[1:], wanted.x[:-1], atol=1e-5)
    close(fit.tie, math.exp(wanted.x[-1]), atol=1e-5)


def test_at_the_davidson_fit_expected_points_and_ties_are_the_observed_ones():
    fit = fit_davidson(FLUTE_WINS, FLUTE_TIES)
    worth = fit.strength.exp()
    tie = fit.tie * (worth[:, None] * worth).sqrt()
    total = worth[:, None] + worth + tie
    games = FLUTE_WINS + FLUTE_WINS.T + FLUTE_TIES
    points = (games * (worth[:, None] + tie / 2) / total).sum(1)
    close(points, (FLUTE_WINS + FLUTE_TIES / 2).sum(1), atol=1e-9)
    close((games * tie / total).sum(), FLUTE_TIES.sum(), atol=1e-9)


def test_ties_as_half_wins_give_smaller_strengths_in_nearly_the_same_order():
    halves = fit_bradley_terry(FLUTE_WINS + FLUTE_TIES / 2).strength
    davidson = fit_davidson(FLUTE_WINS, FLUTE_TIES).strength
    assert (halves.abs() < davidson.abs()).all()
    assert torch.corrcoef(torch.stack([halves, davidson]))[0, 1] > 0.9999


# --------------------------------------------------------------------- Plackett-Luce


def test_the_probabilities_of_all_rankings_sum_to_one():
    s = torch.tensor([0.5, -1.0, 0.2, 0.0], dtype=torch.float64)
    rankings = torch.tensor(
        [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    )
    distinct = [r for r in rankings if len(set(r.tolist())) == 3]
    for subset in ({0, 1, 2}, {0, 2, 3}):
        total = sum(
            preferences.plackett_luce_log_likelihood(s, r[None]).exp()
            for r in distinct
            if set(r.tolist()) == subset
        )
        close(total, 1.0)


def test_rankings_of_two_are_bradley_terry():
    wins = random_wins(0)
    rankings = [p for p in wins.nonzero().tolist() for _ in range(int(wins[tuple(p)]))]
    found, wanted = fit_plackett_luce(torch.tensor(rankings)), fit_bradley_terry(wins)
    close(found.strength, wanted.strength)
    close(found.stderr, wanted.stderr)


def test_rankings_drawn_from_known_strengths_give_them_back():
    truth = torch.tensor([1.0, 0.3, 0.0, -1.3], dtype=torch.float64)
    generator = seeding.make(0)
    noise = torch.rand(20_000, 4, generator=generator, dtype=torch.float64)
    rankings = (truth - (-noise.log()).log()).argsort(-1, descending=True)  # Gumbel
    fit = fit_plackett_luce(rankings)
    assert ((fit.strength - truth).abs() < 4 * fit.stderr).all()


def test_a_ranking_of_four_equals_is_worth_three_point_eight_pairs():
    # Fisher information per label at s = 0: 23/36 for a ranking, 1/6 for a random pair
    all_24 = torch.tensor(list(itertools.permutations(range(4))))
    pairs = torch.ones(4, 4) - torch.eye(4)
    ranking = fit_plackett_luce(all_24).covariance * 24
    pair = fit_bradley_terry(pairs).covariance * pairs.sum()
    close(pair / ranking, [[(23 / 36) / (1 / 6)] * 4] * 4)


def test_the_plackett_luce_fit_of_winners_only_needs_no_full_ranking():
    # three of five items at a time, fitted with scipy as the reference
    rankings = torch.tensor(
        [[0, 1, 2], [1, 3, 4], [2, 4, 0], [3, 0, 1], [4, 2, 3], [0, 3, 4], [1, 2, 0]]
    )

    def loss(x):
        at = torch.tensor(x, requires_grad=True)
        s = torch.cat([at.new_zeros(1), at])
        value = -preferences.plackett_luce_log_likelihood(s, rankings)
        value.backward()
        return value.item(), at.grad.numpy()

    wanted = minimize(loss, [0.0] * 4, jac=True, tol=1e-12).x
    found = fit_plackett_luce(rankings, reference=0).strength
    close(found, [0.0, *wanted], atol=1e-5)


# ---------------------------------------------------------------------------- errors


def test_the_names_of_elo_are_also_here():
    assert preferences.elo_update is elo.elo_update
    assert preferences.expected_score is elo.expected_score


GOOD = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 2.0], [1.0, 1.0, 0.0]])
NONE = torch.zeros(3, 3)


def with_entry(i, j, value):
    bad = GOOD.clone()
    bad[i, j] = value
    return bad


BAD_TABLES = [
    (GOOD[:2], r"want a square table \[N, N\], N ≥ 2, found \[2, 3\]"),
    (GOOD[0], r"want a square table .* found \[3\]"),
    (GOOD[:1, :1], "want a square table"),
    (with_entry(0, 1, math.nan), r"want finite counts, found nan at \[0, 1\]"),
    (with_entry(2, 0, math.inf), r"want finite counts, found inf at \[2, 0\]"),
    (with_entry(1, 2, -1.0), r"want counts ≥ 0, found -1 at \[1, 2\]"),
    (with_entry(1, 1, 4.0), r"want a zero diagonal, found 4 at \[1, 1\]"),
]


@pytest.mark.parametrize("bad, message", BAD_TABLES)
@pytest.mark.parametrize(
    "name, fit",
    [
        ("wins", fit_bradley_terry),
        ("wins", lambda bad: fit_davidson(bad, GOOD + GOOD.T)),
        ("ties", lambda bad: fit_davidson(GOOD, bad)),
        ("home_wins", lambda bad: fit_bradley_terry_home(bad, GOOD)),
        ("away_wins", lambda bad: fit_bradley_terry_home(GOOD, bad)),
    ],
)
def test_a_bad_table_is_named(name, fit, bad, message):
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        fit(bad)


@pytest.mark.parametrize(
    "fit",
    [
        lambda reference: fit_bradley_terry(GOOD, reference),
        lambda reference: fit_bradley_terry_home(GOOD, GOOD, reference),
        lambda reference: fit_davidson(GOOD, GOOD + GOOD.T, reference),
        lambda reference: fit_plackett_luce(torch.tensor([[0, 1], [1, 0]]), reference),
    ],
)
def test_a_reference_that_is_no_item_is_named(fit):
    with pytest.raises(ValueError, match="reference: want an item below .*, found -1"):
        fit(-1)


def has_a_way_to_infinity(rows, size):
    """Whether some direction other than a shift lowers no likelihood: rows @ d ≥ 0."""
    for k in range(1, size):  # d[0] = 0 forbids the shift
        for sign in (1, -1):
            cost = [-sign * (i == k) for i in range(size)]
            box = [(0, 0)] + [(-1, 1)] * (size - 1)
            best = linprog(
                cost, [[-x for x in row] for row in rows], [0] * len(rows), bounds=box
            )
            if best.fun < -1e-9:
                return True
    return False


def direction(i, j, extra=None, size=3):
    """The row of s_i − s_j (+ extra · the last parameter)."""
    row = [float(k == i) - float(k == j) for k in range(size)]
    return row if extra is None else [*row, extra]


def sparse_tables(seed):
    generator = seeding.make(seed)
    first, second = (torch.rand(2, 3, 3, generator=generator) < 0.45).double()
    return first - torch.diag(first.diagonal()), second - torch.diag(second.diagonal())


def refuses(fit, *tables):
    try:
        fit(*tables)
    except ValueError as error:
        assert "no finite maximum" in str(error) or "never met" in str(error)
        return True
    return False


def test_bradley_terry_refuses_exactly_what_linear_programming_finds_unbounded():
    verdicts = []
    for seed in range(30):
        wins, _ = sparse_tables(seed)
        rows = [direction(i, j) for i, j in wins.nonzero().tolist()]
        verdicts.append(refuses(fit_bradley_terry, wins))
        assert verdicts[-1] == has_a_way_to_infinity(rows or [[0.0] * 3], 3)
    assert True in verdicts and False in verdicts


def test_the_home_fit_refuses_exactly_what_linear_programming_finds_unbounded():
    verdicts = []
    for seed in range(30):
        home, away = sparse_tables(seed)
        rows = [direction(i, j, 1.0) for i, j in home.nonzero().tolist()]
        rows += [direction(i, j, -1.0) for i, j in away.nonzero().tolist()]
        verdicts.append(refuses(fit_bradley_terry_home, home, away))
        assert verdicts[-1] == has_a_way_to_infinity(rows, 4)
    assert True in verdicts and False in verdicts


def test_davidson_refuses_exactly_what_linear_programming_finds_unbounded():
    verdicts = []
    for seed in range(60):
        wins, ties = sparse_tables(seed)
        ties = (ties.triu() + ties.triu().T) * (seed % 3 > 0)
        rows = [direction(i, j, x) for i, j in wins.nonzero().tolist() for x in (0, -2)]
        rows += [direction(i, j, 2.0) for i, j in ties.nonzero().tolist()]
        verdicts.append(refuses(fit_davidson, wins, ties))
        assert verdicts[-1] == has_a_way_to_infinity(rows or [[0.0] * 4], 4)
    assert True in verdicts and False in verdicts


def test_the_item_that_never_lost_is_named():
    wins = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 0]])
    message = r"nobody else beat items \[0\]; items \[1, 2\] beat nobody else"
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry(wins)


def test_the_item_that_never_won_is_named():
    wins = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
    message = r"nobody else beat items \[0, 1\]; items \[2\] beat nobody else"
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry(wins)


def test_groups_that_never_met_are_named():
    wins = torch.zeros(4, 4)
    wins[0, 2] = wins[2, 0] = wins[1, 3] = wins[3, 1] = 1
    message = r"never met cannot be compared: \[0, 2\], \[1, 3\]"
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry(wins)
    with pytest.raises(ValueError, match=message):
        fit_bradley_terry_home(wins, wins)
    with pytest.raises(ValueError, match=message):
        fit_davidson(wins, wins)
    with pytest.raises(ValueError, match=message):
        fit_plackett_luce((wins > 0).nonzero())


@pytest.mark.parametrize("won, lost", [(1, 1e-60), (1, 1e-300), (1e16, 1), (1e40, 1)])
def test_an_absurdly_rare_loss_is_a_failure_not_a_number(won, lost):
    with pytest.raises(ValueError, match="counts too extreme"):
        fit_bradley_terry(torch.tensor([[0, won], [lost, 0]], dtype=torch.float64))


def test_tables_of_two_sizes_are_named():
    two = torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"wins \[3, 3\], ties \[2, 2\]"):
        fit_davidson(GOOD, two)
    with pytest.raises(ValueError, match=r"home_wins \[3, 3\], away_wins \[2, 2\]"):
        fit_bradley_terry_home(GOOD, two)


def test_a_table_of_ties_that_is_not_symmetric_is_named():
    message = r"ties: want a symmetric table, found 3 at \[0, 1\] and 2 at \[1, 0\]"
    with pytest.raises(ValueError, match=message):
        fit_davidson(GOOD, GOOD)


def test_no_ties_or_nothing_but_ties_has_no_davidson_fit():
    with pytest.raises(ValueError, match="^ties: no finite maximum, found none at all"):
        fit_davidson(GOOD, NONE)
    with pytest.raises(ValueError, match="^wins: no finite maximum, found none at all"):
        fit_davidson(NONE, GOOD + GOOD.T)


def test_wins_that_nothing_contradicts_have_no_davidson_fit():
    # 0 beats 1 or ties: gap and ν grow together for ever, and losses never happen
    wins, ties = torch.tensor([[0, 3], [0, 0]]), torch.tensor([[0, 2], [2, 0]])
    with pytest.raises(ValueError, match="ever larger gaps and ties"):
        fit_davidson(wins, ties)


def test_an_item_that_never_lost_nor_tied_has_no_davidson_fit():
    wins = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 0]])
    ties = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match=r"nobody else beat or tied items \[0\]"):
        fit_davidson(wins, ties)


@pytest.mark.parametrize("home, away, side", [(2, 0, "home"), (0, 2, "away")])
def test_a_side_that_always_wins_has_no_fit(home, away, side):
    circle = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    both = circle + circle.T
    with pytest.raises(ValueError, match=f"ever larger advantage of the {side} side"):
        fit_bradley_terry_home(home * both, away * both)


@pytest.mark.parametrize(
    "rankings, message",
    [
        (torch.tensor([[0.0, 1.0]]), r"want int64 \[M, K\], found torch.float32"),
        (torch.tensor([0, 1]), r"want int64 \[M, K\], found torch.int64 \[2\]"),
        (torch.zeros(0, 3, dtype=torch.int64), r"found torch.int64 \[0, 3\]"),
        (torch.tensor([[0], [1]]), "want K ≥ 2 and item numbers ≥ 0, found K = 1"),
        (torch.tensor([[0, -1]]), "found K = 2, smallest number -1"),
        (torch.tensor([[0, 1, 0]]), r"twice in a row, found \[0, 1, 0\]"),
        (torch.tensor([[0, 1, 2]]), r"nobody else stood above items \[0\]"),
    ],
)
def test_rankings_that_cannot_be_fitted_are_named(rankings, message):
    with pytest.raises(ValueError, match=f"^rankings: .*{message}"):
        fit_plackett_luce(rankings)
