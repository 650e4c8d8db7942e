"""tools/record_reward_head.py: what is written, and that it is what was measured."""

import json

import pytest
import record_reward_head as tool
import torch

from rlhf_mini import seeding
from rlhf_mini.datasets import RatedText, Review
from rlhf_mini.gpt2.models import TokenScorer
from rlhf_mini.human_pairs import pair_accuracy, rating_shares, split_by_sentence

N = 120
QUICK = tool.HeadSettings(steps=2, batch=8)
BOTH = ("plain", "taught")


class Sentences:
    """Made-up sentences that say how good they are."""

    def __init__(self, seed=0):
        g = seeding.make(seed)
        values = torch.randint(-3, 4, (N,), generator=g).tolist()
        words = {-3: "bad bad", -2: "bad", -1: "dull", 0: "a film", 1: "end"}
        words |= {2: "good", 3: "good good"}
        self.texts = [f"{words[v]} film number {i}" for i, v in enumerate(values)]
        ratings = [(v, v, min(v + 1, 4)) for v in values]
        self.means = torch.tensor([sum(r) / 3 for r in ratings]).double()
        self.shares = rating_shares(ratings)

    def some(self, rows):
        return [self.texts[i] for i in rows]


def ends():
    texts = ["a good film" if i % 2 else "a bad film" for i in range(64)]
    votes = torch.nn.functional.one_hot(torch.arange(64) % 2, 2).double()
    return texts, votes


@pytest.fixture
def small(monkeypatch, model_folder, tokenizer):
    """The tool on the made-up model and sentences."""
    monkeypatch.setattr(tool, "SHIPPED", model_folder)
    monkeypatch.setattr(tool, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(tool, "TEST", 30)
    monkeypatch.setattr(tool, "CURVE", [0, 1])
    monkeypatch.setattr(tool, "SETTINGS", {k: QUICK for k in (*BOTH, "lesson")})
    monkeypatch.setattr(tool, "Texts", lambda domain: Sentences(len(domain)))
    monkeypatch.setattr(tool, "ends_of_reviews", ends)
    linear = tool.fit_linear_reward  # slates that fit ninety sentences
    monkeypatch.setattr(
        tool, "fit_linear_reward", lambda *a, **k: linear(*a, slate=16, **k)
    )


@pytest.fixture
def recorded(small, tmp_path):
    tool.record(tmp_path, [0, 1], 2, BOTH)
    return tmp_path


def heads_of(table):
    return [head for split in table["splits"] for k in BOTH for head in split[k]]


def test_every_split_has_its_heads_and_one_lesson(recorded):
    found = {p.relative_to(recorded).as_posix() for p in recorded.glob("*/*")}
    names = {f"{k}{h}.json" for k in BOTH for h in (0, 1)} | {"lesson"}
    assert found == {f"seed{s}/{name}" for s in (0, 1) for name in names}


def test_all_heads_of_all_splits_differ(recorded):
    heads = heads_of(tool.gather(recorded))
    assert len({tuple(head["test"]) for head in heads}) == 8


def test_the_curve_can_be_computed_again_from_the_scores(recorded):
    """Its last point, from every fourth of the scores that were written."""
    movies, every = Sentences(len("movieReview")), tool.CURVE_EVERY
    for split in tool.gather(recorded)["splits"]:
        some = split_by_sentence(movies.texts, split["seed"], 30).test[::every]
        for head in split["plain"] + split["taught"]:
            scores = torch.tensor(head["test"])[::every].double()
            right = pair_accuracy(scores, movies.means[some])
            assert right == pytest.approx(head["curve"][-1]["accuracy"], abs=0.1)


def test_the_record_says_what_was_run(recorded):
    table = tool.gather(recorded)
    assert table["settings"] == {k: vars(QUICK) for k in (*BOTH, "lesson")}
    assert table["model"] == tool.sha256()
    assert [s["seed"] for s in table["splits"]] == [0, 1]
    heads = heads_of(table)
    assert len(heads) == 8 and all(head["minutes"] > 0 for head in heads)
    assert all(len(h["test"]) == 30 and len(h["products"]) == N for h in heads)
    assert [c["steps"] for c in heads[0]["curve"]] == [0, 1, 2]
    seconds = [c["seconds"] for c in heads[0]["curve"]]
    assert 0 <= seconds[0] < seconds[1] < seconds[2] <= 60 * heads[0]["minutes"]
    first = table["splits"][0]
    assert [h["lesson_minutes"] for h in first["plain"]] == [0, 0]
    one, other = (h["lesson_minutes"] for h in first["taught"])
    assert one == other > 0


def test_no_text_is_written(recorded, tmp_path):
    tool.write(tmp_path / "table.json", tool.gather(recorded))
    assert "film" not in (tmp_path / "table.json").read_text()


def test_what_is_finished_is_not_fitted_again(recorded, monkeypatch):
    def never(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(tool, "fit_reward_head", never)
    tool.record(recorded, [0, 1], 2, BOTH)
    split = tool.Texts("movieReview")
    tool.lesson(recorded / "seed0" / "lesson", split, [0], 0)


@pytest.mark.parametrize(
    "other", [{"model": "of yesterday"}, {"settings": vars(QUICK) | {"steps": 3}}]
)
def test_heads_of_another_recipe_are_fitted_anew_and_not_gathered(recorded, other):
    file = recorded / "seed0" / "plain0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    splits = tool.gather(recorded)["splits"]
    assert [len(s["plain"]) for s in splits] == [1, 2]
    tool.record(recorded, [0], 1, BOTH)
    assert tool.finished(file, QUICK)


def test_a_split_without_any_head_is_not_gathered(recorded):
    for file in (recorded / "seed1").glob("*.json"):
        file.unlink()
    assert [s["seed"] for s in tool.gather(recorded)["splits"]] == [0]


def test_a_killed_recording_leaves_no_half_file(small, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tool.record(tmp_path, [0], 1, ["plain"])
    assert not list(tmp_path.rglob("*.json"))


# --- the lesson ---------------------------------------------------------------


def test_the_ends_of_reviews_quote_no_rated_sentence_and_hold_no_grade(monkeypatch):
    long = " ".join(["word"] * 40)
    reviews = [
        Review(f"{long} and I loved every minute of it", 1, "imdb"),
        Review(f"Not a film that I liked: {long}", 0, "imdb"),
        Review("What a waste of time this was!", 0, "imdb"),
        Review(f"{long} but I give it 8/10", 1, "imdb"),
        Review(f"{long} and that is two stars", 0, "imdb"),
    ]
    rated = {"movieReview": "What a waste of time.", "amazonReview": "Loved it a lot."}
    monkeypatch.setattr(tool, "load_reviews", lambda part: reviews)
    monkeypatch.setattr(
        tool, "load_ratings", lambda domain: [RatedText(rated[domain], (1,))]
    )
    texts, votes = tool.ends_of_reviews()
    assert texts == [" ".join(reviews[i].text.split()[-25:]) for i in (0, 1)]
    assert votes.tolist() == [[0, 1], [1, 0]]


def test_the_lesson_has_two_raters_the_author_and_the_linear_model(
    small, tmp_path, monkeypatch
):
    given = {}

    def spy(scorer, rows, shares, start, settings, generator):
        given.update(rows=rows, shares=shares)

    monkeypatch.setattr(tool, "fit_reward_head", spy)
    movies = tool.Texts("movieReview")
    known = torch.arange(90)
    tool.lesson(tmp_path / "lesson", movies, known, 0)
    texts, votes = ends()
    likes = torch.sigmoid(tool.linear_model(movies, known)(texts))
    assert len(given["rows"]) == 64
    torch.testing.assert_close(given["shares"].sum(1), torch.ones(64).double())
    torch.testing.assert_close(given["shares"][:, 1], (votes[:, 1] + likes) / 2)
    assert likes[1] > 0.5 > likes[0]  # it has learnt what is good and bad


def test_a_taught_head_begins_where_its_lesson_ended(recorded, monkeypatch, tokenizer):
    still = tool.HeadSettings(steps=1, batch=8, lr=1e-12)
    movies = Sentences()
    split = split_by_sentence(movies.texts, 0, 30)
    folder, rows = recorded / "seed0" / "lesson", [[5, 0], [7, 9, 0]]
    scores = [
        tool.score_texts(
            tool.fit_head(movies, split.train, split.test, 0, still, begin)[0], rows, 0
        )
        for begin in (folder, None)
    ]
    expected = tool.score_texts(TokenScorer.load(folder, tokenizer), rows, 0)
    torch.testing.assert_close(scores[0], expected, atol=1e-4, rtol=0)
    assert not torch.allclose(scores[1], expected, atol=1e-2)


# --- the rest -----------------------------------------------------------------


def test_lists_of_numbers_stand_on_one_line(tmp_path):
    table = {"a": [1.5, -2.0, 3e-05], "b": [{"c": [1]}]}
    tool.write(tmp_path / "x" / "t.json", table)
    text = (tmp_path / "x" / "t.json").read_text()
    assert "[1.5, -2.0, 3e-05]" in text.replace("[ ", "[").replace(" ]", "]")
    assert json.loads(text) == table


def test_development_sentences_are_neither_fitted_nor_in_a_test_set(
    small, monkeypatch, tmp_path, capsys
):
    asked, fit = [], tool.fit_head

    def spy(movies, known, held, *rest):
        asked.append((set(known.tolist()), set(held.tolist())))
        return fit(movies, known, held, *rest)

    monkeypatch.setattr(tool, "fit_head", spy)
    tool.compare_on_development(tmp_path, BOTH)
    texts = Sentences(len("movieReview")).texts
    tests = set(split_by_sentence(texts, 0, 30).test.tolist())
    for known, held in asked:
        assert held and not held & (known | tests) and not known & tests
    assert len(asked) == 2 and "linear" in capsys.readouterr().out
    assert not list(tmp_path.glob("seed*"))
