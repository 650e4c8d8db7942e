"""The recorded runs of the back-flip, kept under data/: five seeds of every job.

Beside them stand pairs of clips for a reader to judge, and the votes that a simulated
judge cast on them. `tools/record_backflip.py` writes all of it. Nothing here needs
MuJoCo.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlhf_mini import votes
from rlhf_mini.gpt2 import checkpoints

from .hopper import features

FOLDER = Path(__file__).resolve().parents[2] / "data" / "backflip"
RECORD = FOLDER / "runs.json"
PAIRS = FOLDER / "pairs.safetensors"
VOTES = FOLDER / "votes.jsonl"


def load(path: Path = RECORD) -> dict:
    """The record: `machine`, and `jobs`: {job: a row per seed}.

    Raises:
      ValueError: there is none, or it is not whole.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: no record of back-flips ({error}); tools/record_backflip.py "
            "makes one"
        ) from error


def rows(record: dict, job: str) -> list[dict]:
    """The runs of one job, a seed each.

    Raises:
      ValueError: none was recorded under this name; those that were are listed.
    """
    if job not in record["jobs"]:
        raise ValueError(f"job: want one of {sorted(record['jobs'])}, found {job!r}")
    return record["jobs"][job]


def curve(record: dict, job: str, name: str) -> np.ndarray:
    """A number of every iteration, [seeds, iterations]."""
    return np.array([row["curve"][name] for row in rows(record, job)])


def final(record: dict, job: str, name: str) -> np.ndarray:
    """A number of the 20 test episodes on gymnasium's own Hopper, [seeds]."""
    return np.array([row["evaluation"][name] for row in rows(record, job)])


def episode(record: dict, job: str, seed: int) -> Tensor:
    """The test episode of median rotation, [T, 6] qpos."""
    found = {row["seed"]: row["episode"] for row in rows(record, job)}
    return torch.tensor(found[seed], dtype=torch.float64)


def pairs() -> dict[str, Tensor]:
    """Pairs of clips to vote on: `qpos` and `qvel`, [pairs, 2, moments, 6] each.

    Every second moment of clips of 0.8 s, from all stages of one run.
    """
    return {name: x.double() for name, x in checkpoints.load(PAIRS).items()}


def cast(path: Path = VOTES) -> tuple[Tensor, Tensor]:
    """What was voted, as a learner takes it: clips [n, 2, moments, 13], preference [n].

    Skipped pairs are left out.

    Raises:
      ValueError: the file holds no vote but skips, or one that is none.
    """
    shown = pairs()
    p = votes.preferences(votes.load(path), len(shown["qpos"]))
    said = ~p.isnan()
    if not said.any():
        raise ValueError(f"{path}: no vote yet; notebook 16 has the buttons")
    return features(shown["qpos"], shown["qvel"])[said], p[said]
