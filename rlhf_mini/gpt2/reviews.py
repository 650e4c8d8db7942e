"""Prompts and judges made from reviews: what the language-model rung reads.

Each part of the reviews serves one purpose: `gold` trains the annotator's taste,
`judge` (with the sentences of Rotten Tomatoes) a judge that training never sees,
`prompts` gives the prompts (the reviews of its first half for training, of its second
half for evaluation).
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from torch import Tensor

from ..datasets import RatedText, Review, load_ratings, load_reviews
from ..rollouts import Rollout


@dataclass(frozen=True)
class TextJudge:
    """Scores texts: score = scale·(raw − shift), where raw is the model's output."""

    name: str
    model: Pipeline
    scale: float = 1.0
    shift: float = 0.0

    def score(self, texts: list[str]) -> Tensor:
        """[B] float32; above 0 means that the judge calls the text positive."""
        predict = getattr(self.model, "decision_function", self.model.predict)
        raw = torch.as_tensor(predict(texts), dtype=torch.float32)
        return self.scale * (raw - self.shift)


def _features() -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=3)


def passages(reviews: list[Review], words: int = 40) -> list[Review]:
    """Reviews cut into short passages, each with its review's label.

    Completions are short; a judge trained on whole reviews is poor at them.
    """
    cut = []
    for r in reviews:
        w = r.text.split()
        starts = range(0, len(w), words)
        cut += [replace(r, text=" ".join(w[i : i + words])) for i in starts]
    return cut


def review_judge(name: str, reviews: list[Review]) -> TextJudge:
    """Logistic regression on words and word pairs: log-odds of a positive passage."""
    cut = passages(reviews)
    model = make_pipeline(_features(), LogisticRegression(C=3.0, max_iter=200))
    return TextJudge(name, model.fit([r.text for r in cut], [r.label for r in cut]))


def rating_judge(name: str, rated: list[RatedText]) -> TextJudge:
    """Ridge regression of mean human ratings on words: points, −4 to 4."""
    model = make_pipeline(_features(), Ridge(1.0))
    return TextJudge(name, model.fit([r.text for r in rated], [r.mean for r in rated]))


@dataclass(frozen=True)
class Judges:
    """The annotator's taste (gold), and two judges that no training step sees."""

    gold: TextJudge
    reviews: TextJudge  # trained on reviews that no other part saw
    ratings: TextJudge  # trained on individual human ratings of sentences


@lru_cache
def load_judges() -> Judges:
    """Train the three judges, once a process: about fifteen seconds, mostly reading.

    Gold is put on the scale of human rating points, by spread over the same rated
    sentences, so that the slope of the human choice curve applies to it.
    """
    rated = load_ratings()
    gold = review_judge("gold", load_reviews("gold"))
    raw = gold.score([r.text for r in rated])
    human = torch.tensor([r.mean for r in rated])
    gold = replace(gold, scale=(human.std() / raw.std()).item())
    return Judges(
        gold=gold,
        reviews=review_judge(
            "reviews", load_reviews("judge") + load_reviews(source="rotten_tomatoes")
        ),
        ratings=rating_judge("ratings", rated),
    )


def load_prompts(tokenizer, part: str, length: int = 8) -> Tensor:
    """The first `length` tokens of each sentence of the prompt reviews, [N, length].

    Args:
      part: "train" or "eval": the first or second half of the prompt *reviews*.

    Raises:
      ValueError: another part, a length < 1, or one that no sentence has.
    """
    if part not in ("train", "eval"):
        raise ValueError(f"part: want 'train' or 'eval', found {part!r}")
    if length < 1:
        raise ValueError(f"length: want ≥ 1, found {length}")
    reviews = load_reviews("prompts")
    half = len(reviews) // 2
    chosen = reviews[:half] if part == "train" else reviews[half:]
    sentences = [s for r in chosen for s in re.split(r"(?<=[.!?])\s+|\n", r.text)]
    # spelt as inside a text, without the leading space of a byte-level BPE's words
    rows = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    # at least a word must follow: a prompt should not be a whole sentence
    rows = [r[:length] for r in rows if len(r) > length]
    unique = list(dict.fromkeys(map(tuple, rows)))
    if not unique:
        raise ValueError(f"length: no sentence has more than {length} tokens")
    return torch.tensor(unique)


class TextScorer:
    """A judge as a scorer of rollouts: decodes prompt + answer and scores the text."""

    def __init__(self, judge: TextJudge, tokenizer):
        self.judge, self.tokenizer = judge, tokenizer

    def __call__(self, rollout: Rollout) -> Tensor:
        texts = decode(rollout, self.tokenizer)
        return self.judge.score(texts).to(rollout.tokens.device)


def decode(rollout: Rollout, tokenizer, *, answers_only: bool = False) -> list[str]:
    """The text of each row; pads and the end token are left out."""
    pad = tokenizer.pad_token_id
    tokens = rollout.tokens.where(rollout.mask, pad)
    if not answers_only:
        tokens = torch.cat([rollout.prompts, tokens], dim=1)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)
