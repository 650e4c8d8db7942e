"""The recorded runs of the back-flip, kept under data/: five seeds of every job.

`tools/record_backflip.py` writes them. Nothing here needs MuJoCo.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RECORD = Path(__file__).resolve().parents[2] / "data" / "backflip" / "runs.json"


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
