"""The tables of data/pairs and the football games, to their last count."""

from datetime import date, timedelta

import pytest
import torch

from rlhf_mini import pairs
from rlhf_mini.pairs import load_nfl, load_pairs, parse_games, parse_pairs

HEADER = "first,second,first_wins,second_wins,ties\n"


# ---------------------------------------------------------------- the tables on record


@pytest.mark.parametrize(
    "name, items, listed, choices, ties",
    [
        ("baseball_1987", 7, 42, 273, 0),
        ("citations", 4, 6, 3_727, 0),
        ("german_parties_2009", 6, 15, 2_880, 0),
        ("sound_fields_flute", 8, 28, 140, 22),
        ("sound_quality", 8, 28, 21_924, 0),
    ],
)
def test_a_table_has_its_published_size(name, items, listed, choices, ties):
    table = load_pairs(name)
    assert len(table.names) == items
    assert len((pairs.FOLDER / f"{name}.csv").read_text().splitlines()) == listed + 1
    assert table.wins.sum() + table.ties.sum() / 2 == choices
    assert table.ties.sum() / 2 == ties


@pytest.mark.parametrize(
    "name, per_pair", [("german_parties_2009", 192), ("sound_quality", 783)]
)
def test_everybody_judged_every_pair(name, per_pair):
    wins = load_pairs(name).wins
    games = (wins + wins.T)[~torch.eye(len(wins), dtype=bool)]
    assert (games == per_pair).all()


def test_each_pair_of_sound_fields_was_judged_five_times():
    table = load_pairs("sound_fields_flute")
    games = table.wins + table.wins.T + table.ties
    assert (games[~torch.eye(8, dtype=bool)] == 5).all()


def test_each_pair_of_baseball_teams_met_thirteen_times():
    wins = load_pairs("baseball_1987").wins
    assert ((wins + wins.T)[~torch.eye(7, dtype=bool)] == 13).all()


def test_milwaukee_won_its_games_at_home_against_baltimore():
    table = load_pairs("baseball_1987")
    mil, bal = table.names.index("Milwaukee"), table.names.index("Baltimore")
    assert table.first_wins[mil, bal] == 6 and table.second_wins[bal, mil] == 0
    assert table.first_wins[bal, mil] == 2 and table.second_wins[mil, bal] == 5


def test_an_unknown_table_is_named():
    with pytest.raises(ValueError, match="name: want one of .*citations.* found 'cit'"):
        load_pairs("cit")


# ----------------------------------------------------------------------- reading lines


def test_who_was_listed_first_is_kept():
    table = parse_pairs(HEADER + "a,b,3,1,0\nb,a,5,2,0\n")
    assert table.names == ("a", "b")
    assert table.first_wins.tolist() == [[0, 3], [5, 0]]
    assert table.second_wins.tolist() == [[0, 2], [1, 0]]
    assert table.wins.tolist() == [[0, 5], [6, 0]]


def test_ties_are_symmetric_and_add_up_over_both_orders():
    table = parse_pairs(HEADER + "a,b,1,1,4\nb,a,1,1,2\n")
    assert table.ties.tolist() == [[0, 6], [6, 0]]


def test_a_name_may_hold_a_comma_in_quotes():
    assert parse_pairs(HEADER + '"a, b",c,1,1,0').names == ("a, b", "c")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "votes, line 1: want first,second,.* found nothing"),
        ("a,b,c\n", "votes, line 1: want .* found a,b,c"),
        (HEADER, "votes: want at least one line of counts, found none"),
        (HEADER + "a,b,1,2", "votes, line 2: want 5 fields, found 4"),
        (HEADER + "a,b,1,2,0\na,c,-3,1,0", "line 3: first_wins: want .* found '-3'"),
        (HEADER + "a,b,1,2.5,0", "line 2: second_wins: want .* found '2.5'"),
        (HEADER + "a,b,1,2,", "line 2: ties: want a whole number ≥ 0, found ''"),
        (HEADER + "a,b,1,²,0", "line 2: second_wins: want .* found '²'"),
        (HEADER + "a,a,1,2,0", "line 2: 'a' is compared with itself"),
        (HEADER + "a,b,1,2,0\na,b,1,2,0", "line 3: 'a' and 'b' are there twice"),
    ],
)
def test_a_line_that_does_not_fit_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_pairs(text, "votes")


# ---------------------------------------------------------------------------- football

GAMES = """# date, home, score, away, score
2009-09-10 PIT 13 TEN 10
2009-09-13 TEN  7 ATL 19

2009-09-13 ATL 20 PIT 20
"""


def test_games_are_read_with_their_winners():
    games = parse_games(GAMES)
    assert games.teams == ("ATL", "PIT", "TEN")
    assert games.home.tolist() == [1, 2, 0] and games.away.tolist() == [2, 0, 1]
    assert games.score.tolist() == [1.0, 0.0, 0.5]
    assert games.dates[0] == date(2009, 9, 10)


def test_a_win_counts_for_who_won_and_a_tie_for_both():
    games = parse_games(GAMES)
    assert games.wins().tolist() == [[0, 0.5, 1], [0.5, 0, 1], [0, 0, 0]]


def test_a_part_of_the_games_is_counted_by_mask_or_by_number():
    games = parse_games(GAMES)
    early = torch.tensor([True, True, False])
    assert torch.equal(games.wins(early), games.wins(torch.tensor([0, 1])))
    assert games.wins(early).sum() == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("# nothing", "games: want at least one, found none"),
        ("2009-09-10 PIT 13 TEN", "games, line 1: want date, team, .* found"),
        ("2009-13-10 PIT 13 TEN 1", "games, line 1: want date"),
        ("2009-09-10 PIT x TEN 1", "games, line 1: want date"),
        ("2009-09-10 PIT -3 TEN 1", "games, line 1: no game"),
        ("2009-09-10 PIT 3 PIT 1", "games, line 1: no game"),
        (GAMES + "2009-09-12 ATL 1 PIT 0", "line 6: want order in time, .*09-12 after"),
    ],
)
def test_a_game_that_cannot_be_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_games(text)


@pytest.fixture(scope="module")
def nfl():
    return load_nfl()


def test_all_games_of_ten_seasons_are_there(nfl):
    assert len(nfl.dates) == len(nfl.home) == 2_559 and len(nfl.teams) == 32
    assert nfl.dates[0] == date(2009, 9, 10) and nfl.dates[-1] == date(2018, 12, 30)


def test_games_are_in_their_order_and_most_weeks_apart_from_summer(nfl):
    gaps = [b - a for a, b in zip(nfl.dates, nfl.dates[1:], strict=False)]
    assert min(gaps) >= timedelta(0)
    assert sum(gap > timedelta(days=200) for gap in gaps) == 9  # nine summers


def test_two_teams_lack_one_game_of_their_hundred_and_sixty(nfl):
    played = torch.bincount(nfl.home, minlength=32) + torch.bincount(nfl.away)
    assert sorted(played.tolist()) == [159] * 2 + [160] * 30


def test_the_home_side_wins_more_often_and_seven_games_were_tied(nfl):
    assert (nfl.score == 0.5).sum() == 7
    assert nfl.score.mean().item() == pytest.approx(0.5723, abs=1e-4)


def test_cleveland_lost_all_games_of_2017(nfl):
    season = torch.tensor([d.year - (d.month < 3) for d in nfl.dates])
    wins, cle = nfl.wins(season == 2017), nfl.teams.index("CLE")
    assert wins[cle].sum() == 0 and wins[:, cle].sum() == 16
