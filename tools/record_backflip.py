"""The back-flip over five seeds, recorded: who judged, how many comparisons, what came.

    python tools/record_backflip.py --out build/backflip --seeds 0 1 2 3 4

Runs every job of `rlhf_mini.control.runs` for every seed, then writes
data/backflip/runs.json. What is finished is not run again, so a killed recording goes
on; `--only NAME …` runs some jobs, `--gather` only writes the file. `--pairs` first
makes the pairs to vote on, and a simulated judge's votes.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import torch

from rlhf_mini import seeding, votes
from rlhf_mini.control import judges, recorded, runs
from rlhf_mini.control.learner import cut
from rlhf_mini.gpt2 import checkpoints


def write_pairs(count: int = 150, seed: int = 50) -> None:
    """Pairs of clips of a careful run's stages, and a simulated judge's votes on them.

    The careful judge of `runs`, who moreover calls a tie what differs by less than a
    fiftieth of a turn.
    """
    job = runs.JOBS["careful, 500"]
    learner, generator = runs.make(job, seed), seeding.make(seed)
    stages = [learner.step()[1].hidden for _ in range(job.iterations)][::4]
    hidden = {k: torch.cat([stage[k][0] for stage in stages]) for k in stages[0]}
    episodes, length = hidden["qpos"].shape[:2]
    which = torch.randint(episodes, (count, 2), generator=generator)
    last = length - learner.s.clip
    start = torch.randint(last + 1, (count, 2), generator=generator)
    chosen = torch.stack([which, start], -1)
    clips = {k: cut(x, chosen, learner.s.clip) for k, x in hidden.items()}
    qpos = clips["qpos"]
    every = {k: x[:, :, :: learner.s.stride].float() for k, x in clips.items()}
    checkpoints.save(recorded.PAIRS, every)
    scores = judges.score("careful", qpos)
    first = judges.compare(scores, runs.ANNOTATOR, generator)
    recorded.VOTES.unlink(missing_ok=True)
    for number, (a, b) in enumerate(scores.tolist()):
        said = "tie" if abs(a - b) < 0.02 else "A" if first[number] else "B"
        votes.append(recorded.VOTES, votes.Vote(number, said, "simulated judge"))


def gather(out: Path) -> dict:
    """Everything that was finished, as one table, in order of seeds."""
    found = {"machine": f"{os.cpu_count()} CPU cores, {platform.machine()}", "jobs": {}}
    for job in runs.JOBS:
        results = out.glob(runs.folder_of(Path(), job, 0).name[:-1] + "*/result.json")
        rows = [json.loads(path.read_text("utf-8")) for path in results]
        if rows:
            found["jobs"][job] = sorted(rows, key=lambda row: row["seed"])
    return found


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/backflip"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--only", nargs="+", choices=list(runs.JOBS), help="some jobs")
    p.add_argument("--pairs", action="store_true", help="make the pairs anew")
    p.add_argument("--gather", action="store_true", help="run nothing")
    arguments = p.parse_args()
    torch.set_num_threads(1)
    if arguments.pairs:
        write_pairs()
    for name in [] if arguments.gather else arguments.only or runs.JOBS:
        for number in arguments.seeds:
            place = runs.folder_of(arguments.out, name, number)
            row = runs.run(runs.JOBS[name], number, place)
            minutes, shown = row["cpu_minutes"], row["evaluation"]
            print(f"{name}, seed {number}: {minutes} min, {shown}", flush=True)
    recorded.RECORD.parent.mkdir(parents=True, exist_ok=True)
    table = gather(arguments.out)
    recorded.RECORD.write_text(json.dumps(table, separators=(",", ":")) + "\n", "utf-8")
    print(f"wrote {recorded.RECORD.name}")
