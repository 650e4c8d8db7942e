"""Full runs of the reward head over several splits, as one file with minutes and date.

    python tools/record_reward_head.py                # three splits, two heads each
    python tools/record_reward_head.py --development  # to compare settings

For each split by sentence: fit heads that differ in their seed, with a learning curve,
and score the held-out sentences and the product reviews. These scores are what
data/reward_models/full_run.json holds, so that a reader can compute whatever they like
from them. No text is written. What is finished is not fitted again, so a killed
recording goes on; --gather only writes the file.

Minutes are CPU minutes on one thread: they do not grow when the machine is busy.

Settings may be compared on the development sentences, which are in no test set:
--development fits without them, prints the accuracy on them, and writes nothing.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import time
from datetime import date
from pathlib import Path

import torch

from rlhf_mini import seeding
from rlhf_mini.datasets import load_ratings
from rlhf_mini.gpt2.models import SHIPPED, TokenScorer, load_tokenizer
from rlhf_mini.gpt2.text_reward import (
    HeadSettings,
    encode,
    fit_reward_head,
    score_texts,
)
from rlhf_mini.human_pairs import pair_accuracy, rating_shares, split_by_sentence
from rlhf_mini.reward_models import WordFeatures, fit_linear_reward

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "data" / "reward_models" / "full_run.json"
TEST = 2500  # held-out sentences of each split
CURVE = [25, 50, 100, 200, 400]  # steps, and the last one
CURVE_EVERY = 4  # every fourth held-out sentence: the file is sorted by label
SETTINGS = HeadSettings(bfloat16=True)


class Texts:
    """The rated sentences of one domain."""

    def __init__(self, domain: str):
        rated = load_ratings(domain)
        self.texts = [r.text for r in rated]
        self.means = torch.tensor([r.mean for r in rated], dtype=torch.float64)
        self.shares = rating_shares([r.ratings for r in rated])

    def some(self, rows) -> list[str]:
        return [self.texts[i] for i in rows]


def fit_head(movies: Texts, known, held, seed: int, settings: HeadSettings):
    """(head, CPU minutes, learning curve on the held-out sentences) of one fit.

    Args:
      known, held: numbers of the training and the held-out sentences.
    """
    tokenizer = load_tokenizer(SHIPPED)
    start, rows = tokenizer.eos_token_id, encode(tokenizer, movies.texts)
    generator = seeding.make(seed)
    scorer = TokenScorer.from_language_model(SHIPPED, tokenizer, generator)
    some = held[::CURVE_EVERY]
    curve, began, aside = [], time.process_time(), 0.0

    def on_step(step, loss):
        nonlocal aside
        if step not in (*CURVE, settings.steps):
            return
        paused = time.process_time()
        scores = score_texts(scorer, [rows[i] for i in some], start).double()
        right = pair_accuracy(scores, movies.means[some])
        seconds = paused - began - aside
        curve.append({"steps": step, "seconds": seconds, "accuracy": right})
        print(f" seed {seed}: step {step}, {right:.4f}", flush=True)
        aside += time.process_time() - paused

    fit_reward_head(
        scorer, [rows[i] for i in known], movies.shares[known], start, settings,
        generator, on_step,
    )  # fmt: skip
    return scorer, (time.process_time() - began - aside) / 60, curve


def sha256() -> str:
    """Of the weights that the heads stand on."""
    return hashlib.sha256((SHIPPED / "model.safetensors").read_bytes()).hexdigest()


def recipe(settings: HeadSettings) -> dict:
    """What a finished fit must have been made of to be kept."""
    return {"model": sha256(), "settings": vars(settings)}


def finished(file: Path, settings: HeadSettings) -> dict | None:
    """What a fit left, if it is of these settings and weights."""
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    same = all(found.get(k) == v for k, v in recipe(settings).items())
    return found if same else None


def record(out: Path, seeds, heads: int, settings: HeadSettings) -> None:
    """Leave one file per split and head in the folder: all first heads come first."""
    movies, products = Texts("movieReview"), Texts("amazonReview")
    tokenizer = load_tokenizer(SHIPPED)
    start, away = tokenizer.eos_token_id, encode(tokenizer, products.texts)
    for head in range(heads):
        for seed in seeds:
            file = out / f"seed{seed}" / f"head{head}.json"
            if finished(file, settings):
                continue
            print(f"split {seed}, head {head}", flush=True)
            split = split_by_sentence(movies.texts, seed, TEST)
            scorer, minutes, curve = fit_head(
                movies, split.train, split.test, 1000 * head + seed, settings
            )
            held = encode(tokenizer, movies.some(split.test))
            scores = {
                "test": score_texts(scorer, held, start).tolist(),
                "products": score_texts(scorer, away, start).tolist(),
            }
            found = {"minutes": minutes, "curve": curve} | scores | recipe(settings)
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_suffix(".tmp")
            beside.write_text(json.dumps(found), encoding="utf-8")
            os.replace(beside, file)


def gather(out: Path, settings: HeadSettings) -> dict:
    """Everything that was left in the folder, as one table."""
    splits = []
    for folder in sorted(out.glob("seed*"), key=lambda f: int(f.name[4:])):
        runs = [finished(f, settings) for f in sorted(folder.glob("head*.json"))]
        heads = [
            {
                "minutes": run["minutes"],
                "curve": run["curve"],
                "test": [round(x, 3) for x in run["test"]],
                "products": [round(x, 3) for x in run["products"]],
            }
            for run in runs
            if run
        ]
        if heads:
            splits.append({"seed": int(folder.name[4:]), "heads": heads})
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "test_sentences": TEST,
        "curve_every": CURVE_EVERY,
        **recipe(settings),
        "splits": splits,
    }


def write(path: Path, table: dict) -> None:
    """Indented JSON, lists of numbers on one line."""
    text = json.dumps(table, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda m: " ".join(m[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def compare_on_development(settings: HeadSettings) -> None:
    """Accuracy on the development sentences of fits that did not see them."""
    movies = Texts("movieReview")
    split = split_by_sentence(movies.texts, 0, TEST)
    rest = torch.ones(len(movies.texts), dtype=torch.bool)
    rest[split.test] = rest[split.development] = False
    known, held = rest.nonzero()[:, 0], split.development
    features = WordFeatures(movies.some(known))
    model = fit_linear_reward(
        features(movies.some(known)), movies.shares[known], seeding.make(0)
    )
    linear = model.score(features(movies.some(held))).double()
    print(f"linear {pair_accuracy(linear, movies.means[held]):.4f}", flush=True)
    scorer, minutes, _ = fit_head(movies, known, held, 0, settings)
    tokenizer = load_tokenizer(SHIPPED)
    rows = encode(tokenizer, movies.some(held))
    scores = score_texts(scorer, rows, tokenizer.eos_token_id).double()
    right = pair_accuracy(scores, movies.means[held])
    print(f"head {right:.4f}, {minutes:.1f} CPU minutes")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/reward_head"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--heads", type=int, default=2, help="heads per split")
    p.add_argument("--gather", action="store_true", help="fit nothing")
    p.add_argument("--development", action="store_true", help="compare settings")
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.development:
        compare_on_development(SETTINGS)
    else:
        if not args.gather:
            record(args.out, args.seeds, args.heads, SETTINGS)
        write(RECORD, gather(args.out, SETTINGS))
        print(f"wrote {RECORD.name}")
