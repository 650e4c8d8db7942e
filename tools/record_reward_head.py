"""Full runs of the reward head over several splits, as one file with minutes and date.

    python tools/record_reward_head.py                  # three splits
    python tools/record_reward_head.py --seeds 0 --only reviewed
    python tools/record_reward_head.py --development    # to compare settings

For each seed: split by sentence, fit the linear model and the heads, score the held-out
sentences and the product reviews. Then data/reward_models/full_run.json is written,
with the scores themselves, so that a reader can compute whatever they like from them.

Two kinds of head: "plain" goes from the pretrained weights to human preferences at
once; "reviewed" first learns to tell passages of positive from passages of negative
IMDB reviews, of the part that the model was pretrained on (its text, not its labels).
No rated sentence is in there. What is finished is not fitted again, so a killed
recording goes on; --gather only writes the file. No text is written.

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
from rlhf_mini.datasets import load_ratings, load_reviews
from rlhf_mini.gpt2.models import SHIPPED, TokenScorer, load_tokenizer
from rlhf_mini.gpt2.reviews import passages
from rlhf_mini.gpt2.text_reward import (
    HeadSettings,
    encode,
    fit_reward_head,
    score_texts,
)
from rlhf_mini.human_pairs import (
    Split,
    bootstrap_pair_accuracy,
    interval,
    one_rater,
    pair_accuracy,
    rating_shares,
    split_by_sentence,
)
from rlhf_mini.reward_models import WordFeatures, fit_linear_reward, vader_scores

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "data" / "reward_models" / "full_run.json"
TEST = 2500  # held-out sentences of each split
CURVE = [20, 50, 100, 200, 400, 700, 1000, 1500, 2000]  # steps
PASSAGES = 16_000  # of reviews
KINDS = {"head": "plain", "reviewed": "reviewed"}  # file name: kind


class Texts:
    """The rated sentences of one domain."""

    def __init__(self, domain: str):
        rated = load_ratings(domain)
        self.texts = [r.text for r in rated]
        self.ratings = [r.ratings for r in rated]
        self.means = torch.tensor([r.mean for r in rated], dtype=torch.float64)
        self.shares = rating_shares(self.ratings)

    def some(self, rows) -> list[str]:
        return [self.texts[i] for i in rows]


def passages_of_reviews(count: int) -> tuple[list[str], torch.Tensor]:
    """Short passages, each with its review's label as "rating shares", [count, 2]."""
    cut = passages(load_reviews("pretrain"), words=25)
    order = torch.randperm(len(cut), generator=seeding.make(0))[:count]
    picked = [cut[i] for i in order.tolist()]
    labels = torch.tensor([p.label for p in picked])
    return [p.text for p in picked], torch.nn.functional.one_hot(labels, 2).double()


def review_stage(out: Path, weights: str) -> tuple[Path, float]:
    """The folder of a head that can tell positive from negative passages; minutes.

    It sees no rated sentence, so one serves all splits.
    """
    folder = out / f"reviews_{weights[:12]}"
    note = folder / "minutes.json"
    if not note.exists():
        tokenizer = load_tokenizer(SHIPPED)
        texts, shares = passages_of_reviews(PASSAGES)
        generator = seeding.make(77)
        scorer = TokenScorer.from_language_model(SHIPPED, tokenizer, generator)
        settings = HeadSettings(steps=PASSAGES // HeadSettings().batch)
        began = time.monotonic()
        fit_reward_head(
            scorer, encode(tokenizer, texts), shares, tokenizer.eos_token_id,
            settings, generator,
        )  # fmt: skip
        minutes = (time.monotonic() - began) / 60
        scorer.save(folder)
        note.write_text(json.dumps(minutes), encoding="utf-8")
    return folder, json.loads(note.read_text(encoding="utf-8"))


def fit_head(movies, known, held, seed: int, settings, begin: Path | None):
    """(head, minutes, learning curve on the held-out sentences) of one fit.

    Args:
      known, held: numbers of the training and the held-out sentences.
      begin: folder of a head to begin with; None for a fresh one on GPT-2.
    """
    tokenizer = load_tokenizer(SHIPPED)
    start = tokenizer.eos_token_id
    rows = encode(tokenizer, movies.texts)
    generator = seeding.make(seed)
    if begin is None:
        scorer = TokenScorer.from_language_model(SHIPPED, tokenizer, generator)
    else:
        scorer = TokenScorer.load(begin, tokenizer)
    away = [rows[i] for i in held]
    truth, curve = movies.means[held], []
    began, aside = time.monotonic(), 0.0

    def on_step(step, loss):
        nonlocal aside
        if step not in CURVE and step != settings.steps:
            return
        paused = time.monotonic()
        right = pair_accuracy(score_texts(scorer, away, start).double(), truth)
        aside += time.monotonic() - paused
        seconds = time.monotonic() - began - aside
        curve.append({"steps": step, "seconds": seconds, "accuracy": right})
        print(f" seed {seed}: step {step}, {right:.4f}", flush=True)

    fit_reward_head(
        scorer, [rows[i] for i in known], movies.shares[known], start, settings,
        generator, on_step,
    )  # fmt: skip
    return scorer, (time.monotonic() - began - aside) / 60, curve


def baselines(movies, products, split: Split, seed: int, reviews) -> dict:
    """Scores of the word list and of linear models; one human's ratings."""
    known, held = movies.some(split.train), movies.some(split.test)
    features = WordFeatures(known)
    shares = movies.shares[split.train]
    model = fit_linear_reward(features(known), shares, seeding.make(seed))
    drawn, others = one_rater(
        [movies.ratings[i] for i in split.test], seeding.make(seed)
    )
    found = {
        "vader": vader_scores(held),
        "linear": model.score(features(held)),
        "human": drawn,
        "others": others,
        "vader_products": vader_scores(products.texts),
        "linear_products": model.score(features(products.texts)),
    }
    if reviews:  # the same passages for the linear model
        texts, labels = reviews
        first = fit_linear_reward(features(texts), labels, seeding.make(seed))
        taught = first.score(features(held))
        found["linear, reviewed"] = standard(found["linear"]) + standard(taught)
    return found


def standard(scores: torch.Tensor) -> torch.Tensor:
    return (scores - scores.mean()) / scores.std()


def rungs(known: dict, plain: list, reviewed: list) -> dict[str, torch.Tensor]:
    """Scores of every rung on the held-out sentences."""
    names = ("vader", "linear", "linear, reviewed")
    found = {name: known[name] for name in names if name in known}
    for name, heads in (("head", plain), ("head, reviewed", reviewed)):
        if heads:
            found[name] = heads[0]
        if len(heads) > 1:
            found[f"{name}: mean of {len(heads)}"] = torch.stack(heads).mean(0)
    return found | {"human": known["human"]}


def ladder(scores: dict, truth, others, generator) -> dict:
    """Accuracy of each rung with its interval, and what it has over the linear one.

    The human is held against the mean of the *other* raters, all else against the
    mean of all.
    """
    names = list(scores)
    table = torch.stack([scores[n].double() for n in names])
    truths = torch.stack([others if n == "human" else truth for n in names])
    draws = bootstrap_pair_accuracy(table, truths, generator, 2000)
    found = {}
    for i, name in enumerate(names):
        low, high = interval(draws[i])
        ahead = interval(draws[i] - draws[names.index("linear")])
        right = pair_accuracy(table[i], truths[i])
        found[name] = {
            "accuracy": right, "low": low, "high": high, "over_linear": list(ahead)
        }  # fmt: skip
    return found


def finished(folder: Path, kind: str, weights: str) -> list[dict]:
    """The heads of one kind in a split's folder that belong to these weights."""
    files = sorted(folder.glob(f"{kind}*.json"))
    runs = [json.loads(f.read_text(encoding="utf-8")) for f in files]
    return [r for r in runs if r["model"] == weights and "settings" in r]


def gather(out: Path) -> dict:
    """Everything that was left in the folder, as one table."""
    movies, products = Texts("movieReview"), Texts("amazonReview")
    weights = sha256()
    record = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "model": weights,
        "test_sentences": TEST,
        "passages": PASSAGES,
        "seeds": [],
    }
    note = out / f"reviews_{weights[:12]}" / "minutes.json"
    reviews = passages_of_reviews(PASSAGES) if note.exists() else None
    if note.exists():
        record["review_minutes"] = json.loads(note.read_text(encoding="utf-8"))
    for folder in sorted(out.glob("seed*"), key=lambda f: int(f.name[4:])):
        seed = int(folder.name.removeprefix("seed"))
        plain, reviewed = (finished(folder, k, weights) for k in KINDS)
        if not plain:
            continue
        record["settings"] = plain[0]["settings"]
        split = split_by_sentence(movies.texts, seed, TEST)
        known = baselines(movies, products, split, seed, reviews)
        scores = rungs(
            known,
            [torch.tensor(r["test"]) for r in plain],
            [torch.tensor(r["test"]) for r in reviewed],
        )
        found = ladder(
            scores, movies.means[split.test], known["others"], seeding.make(seed)
        )
        away = {n: known[f"{n}_products"] for n in ("vader", "linear")}
        away["head"] = torch.tensor(plain[0]["products"])
        if reviewed:
            away["head, reviewed"] = torch.tensor(reviewed[0]["products"])
        draws = bootstrap_pair_accuracy(
            torch.stack([away[n].double() for n in away]), products.means,
            seeding.make(seed), 500,
        )  # fmt: skip
        shift = {
            n: [pair_accuracy(away[n].double(), products.means), *interval(d)]
            for n, d in zip(away, draws, strict=True)
        }
        row = {"seed": seed, "ladder": found, "products": shift}
        for kind, runs in zip(KINDS.values(), (plain, reviewed), strict=True):
            if runs:
                row[kind] = {
                    "minutes": [r["minutes"] for r in runs],
                    "curves": [r["curve"] for r in runs],
                    "test": [round(x, 3) for x in runs[0]["test"]],
                    "products": [round(x, 3) for x in runs[0]["products"]],
                }
        record["seeds"].append(row)
    return record


def sha256() -> str:
    """Of the weights that the heads stand on."""
    return hashlib.sha256((SHIPPED / "model.safetensors").read_bytes()).hexdigest()


def write(path: Path, table: dict) -> None:
    """Indented JSON, lists of numbers on one line."""
    text = json.dumps(table, indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda m: " ".join(m[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def record(args, settings: HeadSettings) -> None:
    movies, products = Texts("movieReview"), Texts("amazonReview")
    tokenizer, weights = load_tokenizer(SHIPPED), sha256()
    away = encode(tokenizer, products.texts)
    for kind in [k for k in KINDS if KINDS[k] in args.only]:
        begin = review_stage(args.out, weights)[0] if kind == "reviewed" else None
        for seed in args.seeds:
            split = split_by_sentence(movies.texts, seed, TEST)
            held = encode(tokenizer, movies.some(split.test))
            for head in range(args.heads):
                file = args.out / f"seed{seed}" / f"{kind}{head}.json"
                if file.exists() and json.loads(file.read_text())["model"] == weights:
                    continue  # a head of other weights is fitted anew
                print(f"split {seed}, {KINDS[kind]} head {head}", flush=True)
                scorer, minutes, curve = fit_head(
                    movies, split.train, split.test, 1000 * head + seed, settings, begin
                )
                start = tokenizer.eos_token_id
                found = {
                    "minutes": minutes, "curve": curve, "settings": vars(settings),
                    "test": score_texts(scorer, held, start).tolist(),
                    "products": score_texts(scorer, away, start).tolist(),
                    "model": weights,
                }  # fmt: skip
                file.parent.mkdir(parents=True, exist_ok=True)
                beside = file.with_suffix(".tmp")
                beside.write_text(json.dumps(found), encoding="utf-8")
                os.replace(beside, file)


def compare_on_development(args, settings: HeadSettings) -> None:
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
    for kind in [k for k in KINDS if KINDS[k] in args.only]:
        print(KINDS[kind], flush=True)
        begin = review_stage(args.out, sha256())[0] if kind == "reviewed" else None
        fit_head(movies, known, held, 0, settings, begin)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/reward_head"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--heads", type=int, default=1, help="heads per split and kind")
    p.add_argument("--only", nargs="+", default=[*KINDS.values()], help="kinds of head")
    p.add_argument("--steps", type=int, default=HeadSettings().steps)
    p.add_argument("--gather", action="store_true", help="fit nothing")
    p.add_argument("--development", action="store_true", help="compare settings")
    arguments = p.parse_args()
    chosen = HeadSettings(steps=arguments.steps)
    if arguments.development:
        compare_on_development(arguments, chosen)
    else:
        if not arguments.gather:
            record(arguments, chosen)
        write(RECORD, gather(arguments.out))
        print(f"wrote {RECORD.name}")
