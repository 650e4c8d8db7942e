"""Long runs of every method over several seeds, as one table with minutes and date.

    python tools/record_full_runs.py --out build/full --seeds 0 1 2

Runs every method for every seed through the same command line as a user would, then
writes data/gpt2_rlhf/full_runs.json and the README's figure. What is finished is not
run again, so a killed recording goes on; `--only NAME …` runs some jobs, `--gather`
only writes the files. What the record holds and the work folder does not is kept: it
may have been made on another day.
"""

import argparse
import json
import os
import platform
import re
import time
from datetime import date
from pathlib import Path

import numpy as np

from rlhf_mini import plots
from rlhf_mini.gpt2 import comparisons, pipeline, recorded
from rlhf_mini.gpt2.__main__ import main, prepare
from rlhf_mini.gpt2.recorded import RECORD, frontier
from rlhf_mini.gpt2.settings import Settings
from rlhf_mini.gpt2.world import build_world

LEASH = {"method": "ppo", "steps": 60, "beta": 0.2, "target_kl": 6.0}
# the most urgent first: a recording that is cut short is still worth something
JOBS = {
    "ppo": LEASH,
    # best-of-16 has at most log 16 − 15/16 nats; a run ends some 0.1 from its aim, so
    # aim lower. Many small steps: gold at one KL rises along all of them. 512 prompts
    # would give the KL only to ± 0.2
    "ppo at the KL of best-of-16": {
        "method": "ppo", "steps": 200, "batch": 256, "lr": 3e-5, "beta": 0.32,
        "target_kl": 1.7, "horizon": 4096.0, "eval_prompts": 2048,
    },
    "best-of-n": {"method": "best-of-n", "best_of": 16, "eval_prompts": 256},
    "rloo": {"method": "rloo", "steps": 24},
    "ppo without a leash": {"method": "ppo", "steps": 24, "beta": 0.005},
    # what the reward model's errors cost: none of them, and many more
    "ppo on gold": LEASH | {"reward": "gold"},
    "ppo, 1,024 comparisons": LEASH | {"comparisons": 1024},
    "dpo": {"method": "dpo", "lr": 5e-5, "batch": 64, "steps": 160},
}  # fmt: skip
CURVE = "reward model"
ORDER = [*list(JOBS)[:5], CURVE, *list(JOBS)[5:]]
SIZES = [1024, 4096]  # comparisons of the reward model's learning curve, and all
CURVES = (
    "kl_to_ref", "score", "gold", "positive_reviews", "positive_ratings", "entropy",
    "clipfrac", "approx_kl", "explained_variance", "distinct_2", "beta",
)  # fmt: skip


def settings_of(job: str, seed: int, out: Path) -> Settings:
    folder, changed = out / f"seed{seed}", JOBS[job]
    data = f"data_{changed['comparisons']}" if "comparisons" in changed else "data"
    name = re.sub(r"[^a-z0-9]+", "_", job)
    return Settings(
        seed=seed, data=str(folder / data), out=str(folder / name), resume=True,
        **changed,
    )  # fmt: skip


def timed(folder: Path, work) -> None:
    """Do the work unless `minutes.json` says it is done; add up over kills."""
    note = folder / "minutes.json"
    if note.exists():
        return
    began = time.monotonic()
    work()
    minutes = (time.monotonic() - began) / 60
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"minutes": minutes, "date": date.today().isoformat()}))


def reward_model_curve(seed: int, out: Path) -> None:
    """Agreement with fresh choices after fits to the first n comparisons."""
    s = settings_of("ppo", seed, out)
    world = build_world(s)
    data, last = prepare(world)
    fresh = pipeline.make_comparisons(world, 2048, seed=seed + 20_000)
    rows = []
    for n in [*[n for n in SIZES if n < len(data)], len(data)]:
        began = time.monotonic()
        whole = n == len(data)
        model = last if whole else pipeline.make_reward_model(world, data[:n])
        right, error = comparisons.accuracy(comparisons.predict(model, fresh), fresh)
        rows.append({"comparisons": n, "accuracy": right, "ci": 1.96 * error,
                     "minutes": (time.monotonic() - began) / 60})  # fmt: skip
        print(rows[-1])
    first, second = fresh.gold[:, 0], fresh.gold[:, 1]
    found = {"rows": rows, "ceiling": world.annotator.ceiling(first, second)}
    found["gold_accuracy"] = comparisons.accuracy(fresh.gold, fresh)[0]
    (out / f"seed{seed}" / "reward_model.json").write_text(json.dumps(found))


def gather(out: Path) -> dict:
    """Everything that was left in the folders, as one table."""
    record = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "reward_model": [], "runs": [], "best_of_n": [],
    }  # fmt: skip
    for folder in sorted(out.glob("seed*")):
        seed = int(folder.name.removeprefix("seed"))
        if (found := folder / "reward_model.json").exists():
            record["reward_model"].append(
                {"seed": seed} | json.loads(found.read_text())
            )
        for job in JOBS:
            run = Path(settings_of(job, seed, out).out)
            if not (run / "minutes.json").exists():
                continue
            row = {"job": job, "seed": seed} | json.loads(
                (run / "minutes.json").read_text()
            )
            if (found := run / "best_of_n.json").exists():
                record["best_of_n"].append(
                    row | {"curve": json.loads(found.read_text())}
                )
                continue
            lines = (run / "metrics.jsonl").read_text().splitlines()
            metrics = [json.loads(line) for line in lines]
            row["settings"] = json.loads((run / "settings.json").read_text())
            row["settings"] = {k: row["settings"][k] for k in ("beta", "steps", "lr")}
            row |= json.loads((run / "evaluation.json").read_text())
            row["curve"] = {
                k: [round(m[k], 4) for m in metrics] for k in CURVES if k in metrics[0]
            }
            record["runs"].append(row)
    return record


def merge(old: dict, new: dict) -> dict:
    """The new record, with those rows of the old one that were not made again."""
    if not old:
        return new

    def key(row):
        return row["seed"], list(JOBS).index(row["job"]) if "job" in row else -1

    tables = {
        name: [*{key(r): r for r in old[name] + new[name]}.values()]
        for name in ("reward_model", "runs", "best_of_n")
    }
    return new | {name: sorted(rows, key=key) for name, rows in tables.items()}


def draw(found: dict):
    """The README's figure: what each method bought with its KL, over all seeds."""
    plots.use_style()
    ax = plots.methods_by_kl(frontier(found))
    level = np.mean([r["reference"]["gold"] for r in found["runs"]])
    ax.axhline(level, color=plots.color("ref"))
    ax.text(11, level, plots.NAMES["ref"], va="bottom", color=plots.color("ref"))
    return ax.figure


def record(args) -> None:
    for seed in args.seeds:
        for job in args.only or ORDER:
            print(f"--- seed {seed}: {job}", flush=True)
            if job == CURVE:
                folder = args.out / f"seed{seed}" / "reward_model_curve"
                timed(folder, lambda seed=seed: reward_model_curve(seed, args.out))
            else:
                s = settings_of(job, seed, args.out)
                timed(Path(s.out), lambda s=s: main(s))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/full"), help="work folder")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--only", nargs="+", choices=ORDER, help="some jobs")
    p.add_argument("--gather", action="store_true", help="run nothing")
    arguments = p.parse_args()
    if not arguments.gather:
        record(arguments)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    old = recorded.load() if RECORD.exists() else {}
    found = merge(old, gather(arguments.out))
    RECORD.write_text(json.dumps(found, separators=(",", ":")) + "\n", "utf-8")
    draw(found).savefig(RECORD.with_name("frontier.png"), dpi=150)
    print(f"wrote {RECORD.name} and frontier.png")
