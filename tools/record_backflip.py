"""The back-flip over five seeds, recorded: who judged, how many comparisons, what came.

    python tools/record_backflip.py --out build/backflip --seeds 0 1 2 3 4

Runs every job of `rlhf_mini.control.runs` for every seed, then writes
data/backflip/runs.json. What is finished is not run again, so a killed recording goes
on; `--only NAME …` runs some jobs, `--gather` only writes the file.
"""

import argparse
import json
import os
import platform
import re
from pathlib import Path

import torch

from rlhf_mini.control import runs
from rlhf_mini.control.recorded import RECORD


def folder_of(out: Path, job: str, seed: int) -> Path:
    name = re.sub(r"[^a-z0-9]+", "_", job)
    return out / f"{name}_seed{seed}"


def gather(out: Path, seeds) -> dict:
    """Everything that was finished, as one table."""
    found = {"machine": f"{os.cpu_count()} CPU cores, {platform.machine()}", "jobs": {}}
    for job in runs.JOBS:
        results = [folder_of(out, job, seed) / "result.json" for seed in seeds]
        rows = [json.loads(p.read_text("utf-8")) for p in results if p.exists()]
        if rows:
            found["jobs"][job] = rows
    return found


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/backflip"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--only", nargs="+", choices=list(runs.JOBS), help="some jobs")
    p.add_argument("--gather", action="store_true", help="run nothing")
    arguments = p.parse_args()
    torch.set_num_threads(1)
    for name in [] if arguments.gather else arguments.only or runs.JOBS:
        for number in arguments.seeds:
            place = folder_of(arguments.out, name, number)
            row = runs.run(runs.JOBS[name], number, place)
            minutes, shown = row["cpu_minutes"], row["evaluation"]
            print(f"{name}, seed {number}: {minutes} min, {shown}", flush=True)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    table = gather(arguments.out, arguments.seeds)
    RECORD.write_text(json.dumps(table, separators=(",", ":")) + "\n", "utf-8")
    print(f"wrote {RECORD.name}")
