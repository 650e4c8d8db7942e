"""Full runs of the reward head over several splits, as one file with minutes and date.

    python tools/record_reward_head.py                        # three splits
    python tools/record_reward_head.py --only taught --heads 2
    python tools/record_reward_head.py --development          # to compare settings

For each split by sentence: fit heads, with a learning curve, and score the held-out
sentences and the product reviews. These scores are what
data/reward_models/full_run.json holds, so that a reader can compute whatever they like
from them. No text is written. What is finished is not fitted again, so a killed
recording goes on; --gather only writes the file.

Two kinds of head. "plain" goes from the pretrained weights to human ratings at once,
and compares the scores at the ends of sentences only. "taught" hides some words and
compares scores all along; and it has a lesson first, on the last words of the reviews
that the model was pretrained on, as if two people had rated these: one is the review's
author, who liked the film or not, the other the linear reward model of the same split.
Ends that hold a rated sentence word for word are left out, and so are those that hold
a grade ("8/10"). The heads of one split share their lesson.

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
from itertools import product
from pathlib import Path

import torch

from rlhf_mini import seeding
from rlhf_mini.datasets import load_ratings, load_reviews, quotes
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
KINDS = ("plain", "taught")
TEST = 2500  # held-out sentences of each split
CURVE = [0, 25, 50, 100, 200, 400]  # steps, and the last one
CURVE_EVERY = 4  # every fourth held-out sentence: the file is sorted by label
LAST_WORDS = 25  # of a review: where it says what it thinks
# Many a review ends in its own grade: who has seen "8/10" need not read the rest.
GRADES = re.compile(r"[\d*]|\b(stars?|out of|rat(e|ed|ing)|grade[ds]?)\b", re.I)
SETTINGS = {
    "plain": HeadSettings(steps=400, hidden=0.0, along_weight=0.0, bfloat16=True),
    "lesson": HeadSettings(steps=400, bfloat16=True),
    "taught": HeadSettings(steps=500, lr=8e-4, bfloat16=True),
}


class Texts:
    """The rated sentences of one domain."""

    def __init__(self, domain: str):
        rated = load_ratings(domain)
        self.texts = [r.text for r in rated]
        self.means = torch.tensor([r.mean for r in rated], dtype=torch.float64)
        self.shares = rating_shares([r.ratings for r in rated])

    def some(self, rows) -> list[str]:
        return [self.texts[i] for i in rows]


def ends_of_reviews() -> tuple[list[str], torch.Tensor]:
    """The last words of each review, and its author's vote as rating shares, [N, 2].

    Those that hold a rated sentence or a grade are left out.
    """
    reviews = load_reviews("pretrain")
    ends = [" ".join(r.text.split()[-LAST_WORDS:]) for r in reviews]
    domains = ("movieReview", "amazonReview")
    rated = [r.text for domain in domains for r in load_ratings(domain)]
    told = quotes(ends, rated)
    kept = [i for i, e in enumerate(ends) if not told[i] and not GRADES.search(e)]
    labels = torch.tensor([reviews[i].label for i in kept])
    return [ends[i] for i in kept], torch.nn.functional.one_hot(labels, 2).double()


def linear_model(movies: Texts, known):
    """The linear reward model of some sentences: texts → scores."""
    texts = movies.some(known)
    features = WordFeatures(texts)
    model = fit_linear_reward(features(texts), movies.shares[known], seeding.make(0))
    return lambda texts: model.score(features(texts)).double()


def lesson(folder: Path, movies: Texts, known, seed: int) -> float:
    """Leave a head that had its lesson in the folder, unless one is there; minutes."""
    settings, note = SETTINGS["lesson"], folder / "minutes.json"
    if found := finished(note, settings):
        return found["minutes"]
    texts, votes = ends_of_reviews()
    likes = torch.sigmoid(linear_model(movies, known)(texts))
    shares = (votes + torch.stack([1 - likes, likes], dim=1)) / 2  # two raters
    tokenizer, generator = load_tokenizer(SHIPPED), seeding.make(seed)
    scorer = TokenScorer.from_language_model(SHIPPED, tokenizer, generator)
    began = time.process_time()
    fit_reward_head(
        scorer, encode(tokenizer, texts), shares, tokenizer.eos_token_id, settings,
        generator,
    )  # fmt: skip
    minutes = (time.process_time() - began) / 60
    scorer.save(folder)
    note.write_text(json.dumps({"minutes": minutes} | recipe(settings)), "utf-8")
    return minutes


def fit_head(movies: Texts, known, held, seed: int, settings, begin: Path | None):
    """(head, CPU minutes, learning curve on the held-out sentences) of one fit.

    Args:
      known, held: numbers of the training and the held-out sentences.
      begin: folder of a head to begin with; None for a fresh one on GPT-2.
    """
    tokenizer, generator = load_tokenizer(SHIPPED), seeding.make(seed)
    start, rows = tokenizer.eos_token_id, encode(tokenizer, movies.texts)
    if begin:
        scorer = TokenScorer.load(begin, tokenizer)
    else:
        scorer = TokenScorer.from_language_model(SHIPPED, tokenizer, generator)
    some = held[::CURVE_EVERY]
    curve, began, aside = [], time.process_time(), 0.0

    def on_step(step, loss=None):
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

    on_step(0)
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


def record(out: Path, seeds, heads: int, kinds) -> None:
    """Leave one file per split and head in the folder; all first heads come first."""
    movies, products = Texts("movieReview"), Texts("amazonReview")
    tokenizer = load_tokenizer(SHIPPED)
    start, away = tokenizer.eos_token_id, encode(tokenizer, products.texts)
    for head, kind, seed in product(range(heads), kinds, seeds):
        file, settings = out / f"seed{seed}" / f"{kind}{head}.json", SETTINGS[kind]
        if finished(file, settings):
            continue
        print(f"split {seed}, {kind} head {head}", flush=True)
        split = split_by_sentence(movies.texts, seed, TEST)
        begin, before = None, 0.0
        if kind == "taught":
            begin = file.parent / "lesson"
            before = lesson(begin, movies, split.train, seed)
        scorer, minutes, curve = fit_head(
            movies, split.train, split.test, 1000 * head + seed, settings, begin
        )
        held = encode(tokenizer, movies.some(split.test))
        found = {
            "minutes": minutes, "lesson_minutes": before, "curve": curve,
            "test": score_texts(scorer, held, start).tolist(),
            "products": score_texts(scorer, away, start).tolist(),
        }  # fmt: skip
        beside = file.with_suffix(".tmp")
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(found | recipe(settings)), encoding="utf-8")
        os.replace(beside, file)


def gather(out: Path) -> dict:
    """Everything that was left in the folder, as one table."""
    splits = []
    for folder in sorted(out.glob("seed*"), key=lambda f: int(f.name[4:])):
        row = {"seed": int(folder.name[4:])}
        for kind in KINDS:
            files = sorted(folder.glob(f"{kind}*.json"))
            runs = [run for f in files if (run := finished(f, SETTINGS[kind]))]
            for run in runs:
                del run["model"], run["settings"]
                for scores in ("test", "products"):
                    run[scores] = [round(x, 3) for x in run[scores]]
            row[kind] = runs
        if any(row[kind] for kind in KINDS):
            splits.append(row)
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "model": sha256(),
        "test_sentences": TEST,
        "curve_every": CURVE_EVERY,
        "settings": {kind: vars(s) for kind, s in SETTINGS.items()},
        "splits": splits,
    }


def write(path: Path, table: dict) -> None:
    """Indented JSON, lists of numbers on one line."""
    text = json.dumps(table, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda m: " ".join(m[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def compare_on_development(out: Path, kinds) -> None:
    """Accuracy on the development sentences of fits that did not see them."""
    movies = Texts("movieReview")
    split = split_by_sentence(movies.texts, 0, TEST)
    rest = torch.ones(len(movies.texts), dtype=torch.bool)
    rest[split.test] = rest[split.development] = False
    known, held = rest.nonzero()[:, 0], split.development
    linear = linear_model(movies, known)(movies.some(held))
    print(f"linear {pair_accuracy(linear, movies.means[held]):.4f}", flush=True)
    tokenizer = load_tokenizer(SHIPPED)
    rows = encode(tokenizer, movies.some(held))
    for kind in kinds:
        begin = None
        if kind == "taught":
            begin = out / "development"
            lesson(begin, movies, known, 0)
        scorer, *_ = fit_head(movies, known, held, 0, SETTINGS[kind], begin)
        scores = score_texts(scorer, rows, tokenizer.eos_token_id).double()
        print(f"{kind} {pair_accuracy(scores, movies.means[held]):.4f}", flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/reward_head"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--heads", type=int, default=1, help="heads per split and kind")
    p.add_argument("--only", nargs="+", default=KINDS, choices=KINDS)
    p.add_argument("--gather", action="store_true", help="fit nothing")
    p.add_argument("--development", action="store_true", help="compare settings")
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.development:
        compare_on_development(args.out, args.only)
    else:
        if not args.gather:
            record(args.out, args.seeds, args.heads, args.only)
        write(RECORD, gather(args.out))
        print(f"wrote {RECORD.name}")
