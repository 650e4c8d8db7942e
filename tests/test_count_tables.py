"""count_tables.py on hand-made tables; through the fits, see test_preferences.py."""

import itertools
import math

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.count_tables import (
    check_connected,
    count_table,
    deviance,
    has_negative_cycle,
)


def close(found, wanted, atol=1e-10):
    assert found == pytest.approx(wanted, abs=atol)


# -------------------------------------------------------------------------- deviance


def test_counts_as_expected_have_no_deviance():
    counts = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    assert deviance(counts, counts) == 0.0


def test_the_deviance_is_twice_the_gain_in_log_likelihood():
    observed, p = torch.tensor([7.0, 2.0, 1.0]).double(), torch.tensor([0.5, 0.3, 0.2])
    saturated = (observed * (observed / 10).log()).sum()
    model = (observed * p.double().log()).sum()
    close(deviance(observed, 10 * p), 2 * (saturated - model).item(), atol=1e-6)


def test_observed_and_expected_are_not_exchangeable():
    a, b = torch.tensor([8.0, 2.0]), torch.tensor([5.0, 5.0])
    close(deviance(a, b), 2 * (8 * math.log(1.6) + 2 * math.log(0.4)))
    assert abs(deviance(a, b) - deviance(b, a)) > 0.1


def test_cells_without_a_count_add_nothing():
    observed, expected = torch.tensor([4.0, 0.0]), torch.tensor([3.0, 1.0])
    close(deviance(observed, expected), 8 * math.log(4 / 3), atol=1e-6)


def test_a_true_model_has_the_deviance_of_its_degrees_of_freedom():
    p, generator = torch.tensor([0.5, 0.3, 0.2]), seeding.make(0)
    found = []
    for _ in range(500):
        draws = torch.multinomial(p, 300, True, generator=generator)
        found.append(deviance(torch.bincount(draws, minlength=3), 300 * p.double()))
    mean = sum(found) / 500
    assert abs(mean - 2) < 4 * (4 / 500) ** 0.5  # χ² with 2 has mean 2, variance 4


@pytest.mark.parametrize(
    "observed, expected, message",
    [
        ([1.0, 2.0], [3.0], r"shapes differ: observed \[2\], expected \[1\]"),
        ([-1.0, 2.0], [1.0, 1.0], "observed: want counts ≥ 0, found -1"),
        ([1.0, 2.0], [math.nan, 1.0], "expected: want counts ≥ 0, found nan"),
        ([1.0, 2.0], [3.0, 0.0], "observed: found 2 where none was expected"),
    ],
)
def test_counts_without_a_deviance_are_named(observed, expected, message):
    with pytest.raises(ValueError, match=message):
        deviance(torch.tensor(observed), torch.tensor(expected))


# ------------------------------------------------------------------- what a table is


def test_a_table_of_whole_numbers_becomes_float64():
    table = count_table(wins=[[0, 3], [1, 0]])
    assert table.dtype == torch.float64 and table.tolist() == [[0, 3], [1, 0]]


@pytest.mark.parametrize(
    "table, message",
    [
        ([[0, 1, 2], [1, 0, 1]], r"ties: want a square table .* found \[2, 3\]"),
        ([[0, -2], [1, 0]], r"ties: want counts ≥ 0, found -2 at \[0, 1\]"),
        ([[0, math.nan], [1, 0]], r"ties: want finite counts, found nan at \[0, 1\]"),
        ([[0, 1], [1, 5]], r"ties: want a zero diagonal, found 5 at \[1, 1\]"),
    ],
)
def test_a_table_that_is_none_is_named(table, message):
    with pytest.raises(ValueError, match=message):
        count_table(ties=table)


# ------------------------------------------------------------------------ connection


def reachable(edges, start):
    """Items that can be reached from one along edges, by walking."""
    seen, todo = {start}, [start]
    while todo:
        for j in edges[todo.pop()].nonzero().flatten().tolist():
            if j not in seen:
                seen.add(j)
                todo.append(j)
    return seen


def test_connected_is_what_walking_finds():
    verdicts = []
    for seed in range(40):
        edges = torch.rand(5, 5, generator=seeding.make(seed)) < 0.35
        edges.fill_diagonal_(False)
        wanted = all(len(reachable(edges, i)) == 5 for i in range(5))
        try:
            check_connected("wins", edges.double(), "beat")
            found = True
        except ValueError:
            found = False
        assert found == wanted, seed
        verdicts.append(found)
    assert True in verdicts and False in verdicts


def test_a_long_list_of_items_is_cut():
    wins = torch.ones(32, 32) - torch.eye(32)
    wins[7] = 0  # never won
    message = r"beat items \[0, 1, 2, 3, 4, 5, … 31 in all\]; items \[7\] beat nobody"
    with pytest.raises(ValueError, match=message):
        check_connected("wins", wins, "beat")


def test_the_middle_of_a_ladder_is_neither_top_nor_bottom():
    ladder = torch.zeros(3, 3)
    ladder[0, 1] = ladder[1, 2] = 1
    with pytest.raises(ValueError, match=r"beat items \[0\]; items \[2\] beat nobody"):
        check_connected("wins", ladder, "beat")


def cycle_weights(minus, plus):
    """The weight of every cycle without repetitions, by listing them."""
    n, least = len(minus), []
    edge = torch.where(minus > 0, -1.0, torch.where(plus > 0, 1.0, math.inf))
    for size in range(2, n + 1):
        for tour in itertools.permutations(range(n), size):
            steps = zip(tour, (*tour[1:], tour[0]), strict=True)
            least.append(sum(edge[i, j].item() for i, j in steps))
    return least


def test_a_negative_cycle_is_found_where_listing_all_cycles_finds_one():
    verdicts = []
    for seed in range(60):
        generator = seeding.make(seed)
        minus, plus = (torch.rand(2, 4, 4, generator=generator) < 0.45).double()
        for table in (minus, plus):
            table.fill_diagonal_(0)
        plus[0, 1] = plus[1, 2] = plus[2, 3] = plus[3, 0] = 1  # connected
        verdicts.append(has_negative_cycle(minus, plus))
        assert verdicts[-1] == (min(cycle_weights(minus, plus)) < 0), seed
    assert True in verdicts and False in verdicts
