"""Full runs of the reward head over several splits, as one file with minutes and date.

    python tools/record_reward_head.py                  # three splits
    python tools/record_reward_head.py --seeds 0 --only reviewed
    python tools/record_reward_head.py --development    # to compare settings

For each seed: split by sentence, fit the linear model and the heads, score the held-out
sentences and the product reviews. Then data/reward_models/full_run.json is written,
with the scores themselves, so that a reader can compute whatever they like from them.

Three kinds of head: "plain" goes from the pretrained weights to human preferences at
once; "long" does the same for more steps; "reviewed" first learns to tell the last
words of positive from those of negative IMDB reviews, of the part that the model was
pretrained on (its text, not its labels). Ends that hold a rated sentence word for word
are left out of that, and so are those that hold a grade, such as 8/10. What is finished
is not fitted again, so a killed recording goes on; --gather only writes the file. No
text is written.

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
from rlhf_mini.datasets import load_ratings, load_reviews, quotes
from rlhf_mini.gpt2.models import SHIPPED, TokenScorer, load_tokenizer
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
CURVE = [25, 50, 100, 200, 400, 700]  # steps, and the last one
CURVE_EVERY = 4  # every fourth held-out sentence: the file is sorted by label
LAST_WORDS = 25  # of a review: where it says what it thinks
KINDS = {"head": "plain", "reviewed": "reviewed", "long": "long"}  # file name: kind
RUNGS = {"plain": "head", "reviewed": "head, reviewed", "long": "head, long"}
# Many a review ends in its own grade: who has seen "8/10" need not read the rest.
GRADES = re.compile(r"[\d*]|\b(stars?|out of|rat(e|ed|ing)|grade[ds]?)\b", re.I)
SETTINGS = {
    "reviews": HeadSettings(steps=450, bfloat16=True),
    "plain": HeadSettings(steps=400, bfloat16=True),
    "reviewed": HeadSettings(steps=400, bfloat16=True),
    "long": HeadSettings(
        steps=1000, bfloat16=True, lr=7e-4, dropout=0.3, weight_decay=0.1
    ),
}


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


def passages_of_reviews() -> tuple[list[str], torch.Tensor]:
    """The end of each review, with its label as "rating shares", [count, 2].

    Those that hold a rated sentence or a grade are left out.
    """
    reviews = load_reviews("pretrain")
    ends = [" ".join(r.text.split()[-LAST_WORDS:]) for r in reviews]
    domains = ("movieReview", "amazonReview")
    rated = [r.text for domain in domains for r in load_ratings(domain)]
    told = quotes(ends, rated)
    told = [known or GRADES.search(e) for known, e in zip(told, ends, strict=True)]
    kept = torch.tensor([i for i, known in enumerate(told) if not known])
    order = kept[torch.randperm(len(kept), generator=seeding.make(0))].tolist()
    labels = torch.tensor([reviews[i].label for i in order])
    shares = torch.nn.functional.one_hot(labels, 2).double()
    return [ends[i] for i in order], shares


def review_stage(out: Path, weights: str) -> tuple[Path, float]:
    """The folder of a head that can tell positive from negative passages; minutes.

    It sees no rated sentence, so one serves all splits.
    """
    folder = out / f"reviews_{weights[:12]}"
    note = folder / "minutes.json"
    if not note.exists():
        tokenizer = load_tokenizer(SHIPPED)
        texts, shares = passages_of_reviews()
        generator = seeding.make(77)
        scorer = TokenScorer.from_language_model(SHIPPED, tokenizer, generator)
        began = time.process_time()
        fit_reward_head(
            scorer, encode(tokenizer, texts), shares, tokenizer.eos_token_id,
            SETTINGS["reviews"], generator,
        )  # fmt: skip
        minutes = (time.process_time() - began) / 60
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
    some = held[::CURVE_EVERY]
    away = [rows[i] for i in some]
    truth, curve = movies.means[some], []
    began, aside = time.process_time(), 0.0

    def on_step(step, loss):
        nonlocal aside
        if step not in CURVE and step != settings.steps:
            return
        paused = time.process_time()
        right = pair_accuracy(score_texts(scorer, away, start).double(), truth)
        aside += time.process_time() - paused
        seconds = time.process_time() - began - aside
        curve.append({"steps": step, "seconds": seconds, "accuracy": right})
        print(f" seed {seed}: step {step}, {right:.4f}", flush=True)

    fit_reward_head(
        scorer, [rows[i] for i in known], movies.shares[known], start, settings,
        generator, on_step,
    )  # fmt: skip
    return scorer, (time.process_time() - began - aside) / 60, curve


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


def rungs(known: dict, heads: dict[str, list]) -> dict[str, torch.Tensor]:
    """Scores of every rung on the held-out sentences.

    Args:
      heads: scores of the heads of each kind; a kind without any makes no rung.
    """
    names = ("vader", "linear", "linear, reviewed")
    found = {name: known[name] for name in names if name in known}
    for kind, scores in heads.items():
        name = RUNGS[kind]
        if scores:
            found[name] = scores[0]
            both = standard(scores[0]) + standard(known["linear"])
            found[f"{name}, and linear"] = both
        if len(scores) > 1:
            found[f"{name}: mean of {len(scores)}"] = torch.stack(scores).mean(0)
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
        "curve_every": CURVE_EVERY,
        "settings": {"reviews": vars(SETTINGS["reviews"])},
        "seeds": [],
    }
    note = out / f"reviews_{weights[:12]}" / "minutes.json"
    reviews = passages_of_reviews() if note.exists() else None
    if note.exists():
        record["review_minutes"] = json.loads(note.read_text(encoding="utf-8"))
        record["passages"] = len(reviews[0])
    for folder in sorted(out.glob("seed*"), key=lambda f: int(f.name[4:])):
        seed = int(folder.name.removeprefix("seed"))
        runs = {k: finished(folder, f, weights) for f, k in KINDS.items()}
        if not any(runs.values()):
            continue
        split = split_by_sentence(movies.texts, seed, TEST)
        known = baselines(movies, products, split, seed, reviews)
        tests = {k: [torch.tensor(r["test"]) for r in runs[k]] for k in runs}
        scores = rungs(known, tests)
        found = ladder(
            scores, movies.means[split.test], known["others"], seeding.make(seed)
        )
        away = {n: known[f"{n}_products"] for n in ("vader", "linear")}
        for kind, heads in runs.items():
            if heads:
                away[RUNGS[kind]] = torch.tensor(heads[0]["products"])
        draws = bootstrap_pair_accuracy(
            torch.stack([away[n].double() for n in away]), products.means,
            seeding.make(seed), 500,
        )  # fmt: skip
        shift = {
            n: [pair_accuracy(away[n].double(), products.means), *interval(d)]
            for n, d in zip(away, draws, strict=True)
        }
        row = {"seed": seed, "ladder": found, "products": shift}
        for kind, heads in runs.items():
            if heads:
                record["settings"][kind] = heads[0]["settings"]
                row[kind] = {
                    "minutes": [r["minutes"] for r in heads],
                    "curves": [r["curve"] for r in heads],
                    "test": [round(x, 3) for x in heads[0]["test"]],
                    "products": [round(x, 3) for x in heads[0]["products"]],
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


def record(args, settings: dict[str, HeadSettings]) -> None:
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
                    movies, split.train, split.test, 1000 * head + seed,
                    settings[KINDS[kind]], begin,
                )  # fmt: skip
                start = tokenizer.eos_token_id
                found = {
                    "minutes": minutes, "curve": curve,
                    "settings": vars(settings[KINDS[kind]]),
                    "test": score_texts(scorer, held, start).tolist(),
                    "products": score_texts(scorer, away, start).tolist(),
                    "model": weights,
                }  # fmt: skip
                file.parent.mkdir(parents=True, exist_ok=True)
                beside = file.with_suffix(".tmp")
                beside.write_text(json.dumps(found), encoding="utf-8")
                os.replace(beside, file)


def compare_on_development(args, settings: dict[str, HeadSettings]) -> None:
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
        fit_head(movies, known, held, 0, settings[KINDS[kind]], begin)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/reward_head"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--heads", type=int, default=1, help="heads per split and kind")
    p.add_argument("--only", nargs="+", default=[*KINDS.values()], help="kinds of head")
    p.add_argument("--gather", action="store_true", help="fit nothing")
    p.add_argument("--development", action="store_true", help="compare settings")
    arguments = p.parse_args()
    torch.set_num_threads(1)
    if arguments.development:
        compare_on_development(arguments, SETTINGS)
    else:
        if not arguments.gather:
            record(arguments, SETTINGS)
        write(RECORD, gather(arguments.out))
        print(f"wrote {RECORD.name}")
