"""A back-flip from comparisons: `python -m rlhf_mini.control`, or `make backflip`.

A killed run goes on from its last checkpoint. `--job votes --votes FILE --out FOLDER`
learns from what a reader voted in notebook 16, and asks nothing.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from . import hopper, recorded, runs


def main(arguments: argparse.Namespace) -> dict:
    """Run one job for one seed under a progress bar."""
    if not hopper.available():
        sys.exit(hopper.MISSING)
    torch.set_num_threads(1)  # the networks are small; the simulator takes the threads
    job = runs.JOBS[arguments.job]
    folder = runs.folder_of(arguments.out, arguments.job, arguments.seed)
    bar = tqdm(total=job.iterations, unit="iteration", disable=False)

    def tell(row: dict) -> None:
        bar.set_postfix_str(
            f"{row['comparisons']:.0f} comparisons, {row['turns']:.2f} turns"
        )
        bar.update()

    found = runs.run(
        job, arguments.seed, folder, arguments.threads, arguments.votes,
        tell=tell, resumed=bar.update,
    )  # fmt: skip
    bar.close()
    return found | {"folder": str(folder)}


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--job", choices=list(runs.JOBS), default="careful")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2, help="cores that simulate")
    p.add_argument("--votes", type=Path, default=recorded.VOTES, help="for --job votes")
    p.add_argument("--out", type=Path, default=Path("out/backflip"))
    result = main(p.parse_args())
    print(f"on gymnasium's own Hopper, 20 episodes: {result['evaluation']}")
    print(f"left in {result['folder']}")
