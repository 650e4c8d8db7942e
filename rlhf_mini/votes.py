"""A reader's votes between two answers, kept on disk as they are cast.

A file of votes has one JSON object a line and is only ever appended to:

    {"pair": 3, "vote": "A", "by": "a reader"}

So a closed window loses nothing. A pair may be voted on again: its last line counts.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

# a vote as P(A is preferred); a skipped pair says nothing
PREFERENCE = {"A": 1.0, "B": 0.0, "tie": 0.5, "skip": math.nan}


@dataclass(frozen=True)
class Vote:
    """What someone said of one pair.

    Args:
      pair: the pair's number, from 0.
      vote: "A", "B", "tie" or "skip".
      by: who said it; a simulated judge has to say that it is one.

    Raises:
      ValueError: a field is not what it should be; it is named.
    """

    pair: int
    vote: str
    by: str

    def __post_init__(self):
        if type(self.pair) is not int or self.pair < 0:
            raise ValueError(f"pair: want a number ≥ 0, found {self.pair!r}")
        if self.vote not in PREFERENCE:
            raise ValueError(f"vote: want one of {[*PREFERENCE]}, found {self.vote!r}")
        if not isinstance(self.by, str) or not self.by:
            raise ValueError(f"by: want a name, found {self.by!r}")


def append(path: Path, vote: Vote) -> None:
    """Add a vote to the file; when this returns, it is on disk.

    Call `load` once before: a line that was left half-written would swallow this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write(json.dumps(asdict(vote)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> list[Vote]:
    """All votes of a file, oldest first; of a file that is not there, none.

    A last line without its end was being written when the power went: it is cut off,
    on disk too, and every whole line before it is kept.

    Raises:
      ValueError: a whole line is no vote; it is named by its number.
    """
    if not path.exists():
        return []
    *lines, half = path.read_bytes().split(b"\n")
    if half:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - len(half))
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Vote(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: no vote ({error})") from error
    return found


def preferences(votes: list[Vote], pairs: int) -> Tensor:
    """P(A is preferred) for each of the pairs, [pairs]; NaN: skipped or never shown.

    Raises:
      ValueError: a vote is about a pair that is not there.

    >>> cast = [Vote(0, "B", "me"), Vote(2, "tie", "me"), Vote(0, "A", "me")]
    >>> preferences(cast, pairs=3)
    tensor([1.0000,    nan, 0.5000])
    """
    p = torch.full((pairs,), math.nan)
    for vote in votes:
        if vote.pair >= pairs:
            raise ValueError(f"votes: want pairs 0 … {pairs - 1}, found {vote.pair}")
        p[vote.pair] = PREFERENCE[vote.vote]
    return p
