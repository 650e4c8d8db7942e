"""elo.py against gradient descent, closed forms, long play, and the batch fit."""

import math

import numpy as np
import pytest
import torch

from rlhf_mini import preferences, seeding
from rlhf_mini.elo import POINTS, elo_gap_law, elo_pass, elo_update, expected_score
from rlhf_mini.losses import bradley_terry_loss
from rlhf_mini.preferences import fit_bradley_terry


def close(found, wanted, atol=1e-10):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# ------------------------------------------------------------------------- one game


def test_one_win_between_equals_moves_sixteen_points():
    assert elo_update(1000, 1000, 1) == (1016.0, 984.0)


def test_a_tie_between_equals_changes_nothing():
    assert elo_update(1000.0, 1000.0, 0.5) == (1000.0, 1000.0)


@pytest.mark.parametrize("a, b, score", [(1500, 1320, 0), (900, 1700.5, 1)])
def test_elo_conserves_the_sum_of_points(a, b, score):
    close(sum(elo_update(a, b, score, k=24.0)), a + b, atol=1e-9)


def test_expected_scores_of_both_sides_sum_to_one():
    close(expected_score(1234, 1500) + expected_score(1500, 1234), 1.0)


def test_a_hopeless_game_does_not_overflow():
    assert expected_score(0.0, 1e9) == 0.0


def test_elo_is_online_gradient_ascent_on_bradley_terry():
    games = [(0, 1, 1.0), (2, 1, 0.0), (0, 2, 1.0), (1, 0, 1.0), (2, 0, 0.5), (1, 2, 0)]
    points, eta = 400 / math.log(10), 0.184
    ratings, s = [1500.0, 1500.0, 1500.0], torch.zeros(3, dtype=torch.float64)
    for a, b, score in games:
        ratings[a], ratings[b] = elo_update(
            ratings[a], ratings[b], score, k=eta * points
        )
        wins = torch.zeros(3, 3, dtype=torch.float64)
        wins[a, b], wins[b, a] = score, 1 - score
        s.requires_grad_()
        value = preferences.bradley_terry_log_likelihood(s, wins)
        (gradient,) = torch.autograd.grad(value, s)
        s = s.detach() + eta * gradient
    close(ratings, 1500 + points * s, atol=1e-9)


def test_many_chains_of_elo_run_at_once():
    a, b = torch.tensor([1000.0, 1400.0]).double(), torch.tensor([1000.0, 1000.0])
    score = torch.tensor([1.0, 0.0])
    found = torch.stack(elo_update(a, b, score), -1)
    close(found, [elo_update(1000, 1000, 1), elo_update(1400, 1000, 0)])


def test_small_steps_of_elo_over_many_passes_end_at_the_fit():
    wins = [[0, 6, 5, 4], [3, 0, 5, 6], [4, 4, 0, 7], [5, 3, 2, 0]]
    pairs = [(i, j) for i in range(4) for j in range(4) for _ in range(wins[i][j])]
    ratings = [0.0] * 4
    for _ in range(200):
        for i, j in pairs + pairs[::-1]:  # there and back, so the order cancels
            ratings[i], ratings[j] = elo_update(ratings[i], ratings[j], 1, k=0.5)
    wanted = fit_bradley_terry(wins).strength * 400 / math.log(10)
    close(ratings, wanted, atol=0.1)  # points


def test_each_game_may_have_a_k_of_its_own():
    k = torch.tensor([8.0, 40.0])
    found = torch.stack(elo_update(torch.zeros(2), torch.zeros(2), 1, k=k), -1)
    close(found, [[4.0, -4.0], [20.0, -20.0]])


# ------------------------------------------------------------------- a list of games

FIRST = torch.tensor([0, 2, 0, 1, 2, 1, 3, 0])
SECOND = torch.tensor([1, 1, 2, 0, 0, 2, 0, 3])
SCORE = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.0], dtype=torch.float64)


def one_by_one(first, second, score, k, ratings):
    """Ratings and forecasts from elo_update alone, game after game."""
    ratings, forecasts = list(ratings), []
    for i, j, outcome in zip(first.tolist(), second.tolist(), score, strict=True):
        forecasts.append(expected_score(ratings[i], ratings[j]))
        ratings[i], ratings[j] = elo_update(ratings[i], ratings[j], outcome.item(), k=k)
    return ratings, forecasts


def test_a_pass_is_one_update_after_the_other():
    ratings, forecasts = elo_pass(FIRST, SECOND, SCORE, k=24.0)
    wanted = one_by_one(FIRST, SECOND, SCORE, 24.0, [1500.0] * 4)
    close(ratings, wanted[0], atol=1e-9)
    close(forecasts, wanted[1])


def test_a_pass_is_sgd_on_the_loss_of_a_reward_model():
    won = torch.where(SCORE == 1, FIRST, SECOND)[SCORE != 0.5]
    lost = torch.where(SCORE == 1, SECOND, FIRST)[SCORE != 0.5]
    s = torch.zeros(4, dtype=torch.float64)
    for w, loser in zip(won.tolist(), lost.tolist(), strict=True):
        s.requires_grad_()
        loss = bradley_terry_loss(s[[w]], s[[loser]]).sum()
        s = (s - 0.2 * torch.autograd.grad(loss, s)[0]).detach()
    score = torch.ones(len(won), dtype=torch.float64)
    ratings, _ = elo_pass(won, lost, score, k=0.2 * POINTS)
    close(ratings, 1500 + POINTS * s, atol=1e-9)


def test_a_forecast_knows_only_the_games_before_it():
    _, before = elo_pass(FIRST, SECOND, SCORE)
    changed = SCORE.clone()
    changed[4:] = 1 - changed[4:]
    _, after = elo_pass(FIRST, SECOND, changed)
    close(after[:5], before[:5])
    assert (after[5:] != before[5:]).any()


def test_many_k_at_once_are_as_many_passes():
    ks = torch.tensor([4.0, 32.0, 90.0])
    columns = [x.expand(3, -1) for x in (FIRST, SECOND, SCORE)]
    ratings, forecasts = elo_pass(*columns, k=ks)
    for row, k in enumerate(ks.tolist()):
        alone = elo_pass(FIRST, SECOND, SCORE, k=k)
        close(ratings[row], alone[0])
        close(forecasts[row], alone[1])


def test_many_orders_and_many_k_at_once_are_as_many_passes():
    order = torch.stack(
        [torch.randperm(8, generator=seeding.make(seed)) for seed in (0, 1)]
    )
    ks = torch.tensor([10.0, 50.0, 70.0])
    columns = [x[order][:, None].expand(2, 3, 8) for x in (FIRST, SECOND, SCORE)]
    ratings, forecasts = elo_pass(*columns, k=ks)
    assert ratings.shape == (2, 3, 4) and forecasts.shape == (2, 3, 8)
    alone = elo_pass(*(x[order[1]] for x in (FIRST, SECOND, SCORE)), k=70.0)
    close(ratings[1, 2], alone[0])
    close(forecasts[1, 2], alone[1])


def test_a_second_pass_starts_where_the_first_ended():
    once, _ = elo_pass(FIRST, SECOND, SCORE)
    twice, _ = elo_pass(FIRST, SECOND, SCORE, start=once)
    doubled = (torch.cat([x, x]) for x in (FIRST, SECOND, SCORE))
    close(twice, elo_pass(*doubled)[0])


def test_the_points_of_all_players_stay_the_same():
    ratings, _ = elo_pass(FIRST, SECOND, SCORE, k=100.0, lead=70.0)
    close(ratings.sum(), 4 * 1500.0, atol=1e-9)


def test_a_lead_counts_in_the_forecast_for_the_first_side():
    _, forecasts = elo_pass(FIRST, SECOND, SCORE, lead=191.0)
    close(forecasts[0], expected_score(1691.0, 1500.0))


def test_a_lead_never_enters_the_rating():
    """When the first side scores just what its lead is worth, nothing moves."""
    even = torch.full((8,), expected_score(60.0, 0.0), dtype=torch.float64)
    close(elo_pass(FIRST, SECOND, even, lead=60.0)[0], [1500.0] * 4, atol=1e-9)


def test_players_who_never_played_keep_their_rating():
    ratings, _ = elo_pass(FIRST, SECOND, SCORE, players=6)
    close(ratings[4:], [1500.0, 1500.0])


def test_passing_does_not_change_the_start_it_was_given():
    start = torch.full((4,), 1500.0, dtype=torch.float64)
    elo_pass(FIRST, SECOND, SCORE, start=start)
    close(start, [1500.0] * 4)


def test_a_falling_k_over_many_passes_ends_at_the_batch_fit():
    wins = torch.tensor([[0, 6, 5, 4], [3, 0, 5, 6], [4, 4, 0, 7], [5, 3, 2, 0]])
    pairs = [p for p in wins.nonzero().tolist() for _ in range(wins[tuple(p)])]
    order = torch.randperm(len(pairs), generator=seeding.make(0))
    first, second = torch.tensor(pairs)[order].T
    ratings, ones = 1500.0, torch.ones(len(pairs))
    for n in range(1, 60):
        ratings, _ = elo_pass(first, second, ones, k=16 / n, start=ratings)
    wanted = 1500 + fit_bradley_terry(wins).strength * POINTS
    close(ratings, wanted, atol=2.0)  # points


# -------------------------------------------------------------- the law of the gap


def moments(p, k):
    """Mean, standard deviation, and E[σ(x)], of the law; points."""
    gap, cdf = elo_gap_law(p, k)
    mass, middle = cdf.diff(), (gap[1:] + gap[:-1]) / 2
    mean = (mass * middle).sum()
    spread = (mass * (middle - mean) ** 2).sum().sqrt()
    return mean.item(), spread.item(), mass, middle / POINTS


@pytest.mark.parametrize("p, k", [(0.76, 32.0), (0.5, 8.0), (0.1, 64.0), (0.97, 20.0)])
def test_the_mean_forecast_is_the_chance_to_win(p, k):
    # in the long run the gap does not drift: E[S − σ(x)] = 0
    *_, mass, x = moments(p, k)
    close((mass * torch.sigmoid(x)).sum(), p, atol=1e-5)


@pytest.mark.parametrize("p, k", [(0.76, 32.0), (0.5, 8.0), (0.1, 64.0), (0.97, 20.0)])
def test_pull_and_noise_balance(p, k):
    # nor does its square: E[x (σ(x) − p)] = η E[(S − σ(x))²]
    *_, mass, x = moments(p, k)
    e = torch.sigmoid(x)
    pull = (mass * x * (e - p)).sum()
    noise = k / POINTS * (mass * (p * (1 - e) ** 2 + (1 - p) * e**2)).sum()
    close(pull / noise, 1.0, atol=1e-3)


def test_the_law_is_that_of_long_play():
    p, k, generator = 0.7, 48.0, seeding.make(0)
    a, b = torch.full((2, 20_000), 1500.0, dtype=torch.float64)
    for _ in range(300):
        won = torch.rand(20_000, generator=generator, dtype=torch.float64) < p
        a, b = elo_update(a, b, won.double(), k=k)
    gap, cdf = elo_gap_law(p, k)
    played = np.sort((a - b).numpy())
    steps = np.arange(20_000) / 20_000
    distance = np.abs(np.interp(played, gap, cdf) - steps).max()
    assert distance < 1.95 / 20_000**0.5  # Kolmogorov-Smirnov, 1 in 1,000


def test_at_k_32_the_gap_keeps_a_noise_of_77_points():
    _, spread, *_ = moments(0.76, 32.0)
    close(spread, 76.7, atol=0.05)


@pytest.mark.parametrize("p", [0.5, 0.76, 0.9])
def test_for_small_k_the_variance_is_eta(p):
    mean, spread, *_ = moments(p, 1.0)
    close(spread**2 / POINTS, 1.0, atol=0.01)
    close(mean, POINTS * math.log(p / (1 - p)), atol=0.5)


def test_the_favourite_is_flattered_on_average():
    mean, *_ = moments(0.76, 32.0)
    assert mean > POINTS * math.log(0.76 / 0.24) + 8


def test_the_weaker_player_has_the_mirrored_law():
    gap, cdf = elo_gap_law(0.8, 32.0)
    other_gap, other = elo_gap_law(0.2, 32.0)
    close(gap, -other_gap.flip(0), atol=1e-8)
    close(cdf, 1 - other.flip(0), atol=1e-8)


def test_a_law_rises_from_zero_to_one():
    gap, cdf = elo_gap_law(0.6, 100.0)
    assert (gap.diff() > 0).all() and (cdf.diff() >= -1e-12).all()
    close(cdf[[0, -1]], [0.0, 1.0], atol=1e-9)


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_a_score_that_is_not_between_zero_and_one_is_named(score):
    with pytest.raises(ValueError, match="score: want 0 ≤ score ≤ 1"):
        elo_update(1000, 1000, score)


@pytest.mark.parametrize("k", [0.0, -1.0, math.nan])
def test_a_k_that_is_not_positive_is_named(k):
    with pytest.raises(ValueError, match="k: want a number > 0"):
        elo_update(1000, 1000, 1, k=k)


@pytest.mark.parametrize("rating", [math.nan, math.inf])
def test_a_rating_that_is_not_finite_is_named(rating):
    for function in (expected_score, lambda a, b: elo_update(a, b, 1)):
        with pytest.raises(ValueError, match="ratings: found"):
            function(rating, 1000.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"second": SECOND[:3]}, r"shapes differ: first \[8\], second \[3\]"),
        ({"score": SCORE + 0.5}, "score: want 0 ≤ score ≤ 1, found 1.5"),
        ({"score": SCORE - 0.5}, "score: want 0 ≤ score ≤ 1, found -0.5"),
        ({"k": -1.0}, "k: want a number > 0, found -1.0"),
        ({"k": torch.tensor([32.0, math.nan])}, "k: want a number > 0, found nan"),
        ({"players": 3}, r"first: want 0 to 2, found 3 at \[6\]"),
        ({"second": FIRST}, r"one player on both sides at \[0\]"),
        ({"lead": math.inf}, "lead: want a finite number"),
        ({"first": FIRST.double()}, "first: want an integer dtype"),
    ],
)
def test_what_is_wrong_with_a_list_of_games_is_named(change, message):
    games = {"first": FIRST, "second": SECOND, "score": SCORE}
    with pytest.raises(ValueError, match=message):
        elo_pass(**(games | change))


def test_no_game_is_an_error():
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"first: want games \[..., M\], found \[0\]"):
        elo_pass(none, none, none.double())


@pytest.mark.parametrize(
    "p, k, message",
    [
        (0.0, 32.0, "p: want"),
        (1.2, 32.0, "p: want .* found 1.2"),
        (0.5, 0.0, "k: want a number > 0"),
        (0.5, 400.0, "k: want 0 ≤ k ≤ 347.*, found 400.0"),
    ],
)
def test_a_law_that_does_not_exist_is_refused(p, k, message):
    with pytest.raises(ValueError, match=message):
        elo_gap_law(p, k)
