"""The long runs kept under data/: every method over three seeds, with date and minutes.

`tools/record_full_runs.py` writes them; notebook 11 and the README show them beside
what a reader's own machine does in minutes.
"""

import json
from pathlib import Path

import numpy as np

RECORD = Path(__file__).resolve().parents[2] / "data" / "gpt2_rlhf" / "full_runs.json"


def load(path: Path = RECORD) -> dict:
    """The record: `date`, `machine`, `reward_model`, `runs`, `best_of_n`.

    Raises:
      ValueError: there is none, or it is not whole.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: no record of full runs ({error}); tools/record_full_runs.py "
            "makes one"
        ) from error


def runs(record: dict, job: str) -> list[dict]:
    """The runs of one job, a seed each.

    Raises:
      ValueError: none was recorded under this name; those that were are listed.
    """
    found = [row for row in record["runs"] if row["job"] == job]
    if not found:
        known = sorted({row["job"] for row in record["runs"]})
        raise ValueError(f"job: want one of {known}, found {job!r}")
    return found


def final(record: dict, job: str, name: str, who: str = "policy") -> np.ndarray:
    """A number of the evaluation on held-out prompts, [seeds]."""
    return np.array([row[who][name] for row in runs(record, job)])


def curve(record: dict, job: str, name: str) -> np.ndarray:
    """A number of every training batch, [seeds, steps]."""
    return np.array([row["curve"][name] for row in runs(record, job)])


def best_of_n(record: dict, name: str) -> np.ndarray:
    """A number of the best-of-n curve for n = 1, 2, 4, …, [seeds, sizes]."""
    return np.array([[r[name] for r in row["curve"]] for row in record["best_of_n"]])


def frontier(record: dict, name: str = "gold") -> dict:
    """What each method bought with its KL: {method: (kl, value, half interval)}.

    One point per trained run; methods without a run are left out. Best-of-n is the
    mean over seeds, at the bound of its KL, without n = 1.
    """
    jobs = {"ppo": ["ppo", "ppo at the KL of best-of-16"], "rloo": ["rloo"]}
    points = {}
    known = {row["job"] for row in record["runs"]}
    for method, names in (jobs | {"dpo": ["dpo"]}).items():
        names = [job for job in names if job in known]
        if not names:
            continue
        columns = [
            np.concatenate([final(record, job, key) for job in names])
            for key in ("kl_to_ref", name, name + "_ci")
        ]
        points[method] = tuple(columns)
    columns = [best_of_n(record, key)[:, 1:] for key in ("kl_bound", name)]
    spread = best_of_n(record, name + "_ci")[:, 1:]
    # seeds have reward models and answers of their own, but the same prompts
    points["best_of_n"] = (*(c.mean(0) for c in columns), spread.mean(0))
    return points
