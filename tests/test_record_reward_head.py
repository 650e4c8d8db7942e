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


class Sentences:
    """Made-up sentences that say how good they are."""

    def __init__(self, seed=0):
        g = seeding.make(seed)
        values = torch.randint(-3, 4, (N,), generator=g).tolist()
        words = {-3: "bad bad", -2: "bad", -1: "dull", 0: "a film", 1: "end"}
        words |= {2: "good", 3: "good good"}
        self.texts = [f"{words[v]} film number {i}" for i, v in enumerate(values)]
        self.ratings = [(v, v, min(v + 1, 4)) for v in values]
        self.means = torch.tensor([sum(r) / 3 for r in self.ratings]).double()
        self.shares = rating_shares(self.ratings)

    def some(self, rows):
        return [self.texts[i] for i in rows]


@pytest.fixture
def small(monkeypatch, model_folder, tokenizer):
    """The tool on the made-up model and sentences."""
    monkeypatch.setattr(tool, "SHIPPED", model_folder)
    monkeypatch.setattr(tool, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(tool, "TEST", 30)
    reviews = tool.HeadSettings(steps=4, batch=16)
    monkeypatch.setattr(tool, "SETTINGS", {"reviews": reviews})
    monkeypatch.setattr(tool, "CURVE", [1])
    monkeypatch.setattr(tool, "Texts", lambda domain: Sentences(len(domain)))
    labels = torch.nn.functional.one_hot(torch.arange(64) % 2, 2).double()
    texts = [("a good film", "a bad film")[i % 2] for i in range(64)]
    monkeypatch.setattr(tool, "passages_of_reviews", lambda: (texts, labels))
    linear = tool.fit_linear_reward  # slates that fit ninety sentences
    monkeypatch.setattr(
        tool, "fit_linear_reward", lambda *a, **k: linear(*a, slate=16, **k)
    )


def arguments(out, **changes):
    given = {"out": out, "seeds": [0, 1], "heads": 1, "only": ["plain", "reviewed"]}
    return type("Arguments", (), given | changes)


QUICK = {k: tool.HeadSettings(steps=2, batch=8) for k in ("plain", "reviewed")}


@pytest.fixture
def recorded(small, tmp_path):
    tool.record(arguments(tmp_path), QUICK)
    return tmp_path


def test_every_split_has_both_kinds_of_head(recorded):
    names = {p.relative_to(recorded).as_posix() for p in recorded.rglob("seed*/*")}
    assert names == {f"seed{s}/{k}0.json" for s in (0, 1) for k in ("head", "reviewed")}


def test_the_record_can_be_computed_again_from_its_scores(recorded):
    table = tool.gather(recorded)
    movies = Sentences(len("movieReview"))
    for row in table["seeds"]:
        held = split_by_sentence(movies.texts, row["seed"], 30).test
        for kind, rung in (("plain", "head"), ("reviewed", "head, reviewed")):
            scores = torch.tensor(row[kind]["test"])
            again = pair_accuracy(scores, movies.means[held])
            assert row["ladder"][rung]["accuracy"] == pytest.approx(again, abs=0.02)


def test_the_record_says_what_was_run(recorded):
    table = tool.gather(recorded)
    kinds = {k: vars(s) for k, s in (QUICK | tool.SETTINGS).items()}
    assert table["settings"] == kinds and table["model"] == tool.sha256()
    assert table["passages"] == 64 and table["review_minutes"] > 0
    assert [r["seed"] for r in table["seeds"]] == [0, 1]
    assert [c["steps"] for c in table["seeds"][0]["plain"]["curves"][0]] == [1, 2]
    assert all(m > 0 for r in table["seeds"] for m in r["plain"]["minutes"])


def test_no_text_is_written(recorded, tmp_path):
    tool.write(tmp_path / "table.json", tool.gather(recorded))
    assert "film" not in (tmp_path / "table.json").read_text()


def test_what_is_finished_is_not_fitted_again(recorded, monkeypatch):
    def never(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(tool, "fit_head", never)
    tool.record(arguments(recorded), QUICK)


def test_heads_of_other_weights_are_fitted_anew_and_not_gathered(recorded):
    file = recorded / "seed0" / "head0.json"
    other = json.loads(file.read_text()) | {"model": "of yesterday"}
    file.write_text(json.dumps(other))
    kinds = [set(r) & {"plain", "reviewed"} for r in tool.gather(recorded)["seeds"]]
    assert kinds == [{"reviewed"}, {"plain", "reviewed"}]
    tool.record(arguments(recorded), QUICK)
    assert json.loads(file.read_text())["model"] == tool.sha256()


def test_a_split_without_any_head_is_not_gathered(recorded):
    for file in (recorded / "seed1").iterdir():
        file.unlink()
    assert [r["seed"] for r in tool.gather(recorded)["seeds"]] == [0]


def test_the_ends_of_reviews_quote_no_rated_sentence(monkeypatch):
    long = " ".join(["word"] * 40)
    reviews = [
        Review(f"{long} and I loved every minute of it", 1, "imdb"),
        Review(f"Not a film that I liked: {long}", 0, "imdb"),
        Review("What a waste of time this was!", 0, "imdb"),
    ]
    rated = {"movieReview": "A waste of time.", "amazonReview": "Loved it a lot."}
    monkeypatch.setattr(tool, "load_reviews", lambda part: reviews)
    monkeypatch.setattr(
        tool, "load_ratings", lambda domain: [RatedText(rated[domain], (1,))]
    )
    texts, shares = tool.passages_of_reviews()
    by_text = dict(zip(texts, shares.tolist(), strict=True))
    assert len(texts) == 2 and all(len(t.split()) == 25 for t in texts)
    assert [by_text[t] for t in texts if "loved" in t] == [[0, 1]]
    assert [by_text[t] for t in texts if "loved" not in t] == [[1, 0]]


def test_a_killed_recording_leaves_no_half_file(small, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tool.record(arguments(tmp_path, only=["plain"]), QUICK)
    assert not list(tmp_path.rglob("*.json"))


def test_the_review_stage_runs_once_and_can_be_loaded(recorded, tokenizer):
    folder, minutes = tool.review_stage(recorded, tool.sha256())
    assert minutes > 0 and folder.parent == recorded
    TokenScorer.load(folder, tokenizer)


def test_a_reviewed_head_begins_where_the_reviews_ended(recorded, small):
    movies = Sentences()
    split = split_by_sentence(movies.texts, 0, 30)
    folder, _ = tool.review_stage(recorded, tool.sha256())
    still = tool.HeadSettings(steps=1, batch=8, lr=1e-12)
    scores = [
        tool.score_texts(
            tool.fit_head(movies, split.train, split.test, 0, still, begin)[0],
            [[5, 0], [7, 9, 0]],
            0,
        )
        for begin in (folder, None)
    ]
    tokenizer = tool.load_tokenizer(None)
    loaded = TokenScorer.load(folder, tokenizer)
    expected = tool.score_texts(loaded, [[5, 0], [7, 9, 0]], 0)
    torch.testing.assert_close(scores[0], expected, atol=1e-4, rtol=0)
    assert not torch.allclose(scores[1], expected, atol=1e-2)


# --- the ladder ---------------------------------------------------------------


def test_the_ladder_holds_the_human_against_the_others_and_all_else_against_all():
    g = seeding.make(0)
    truth = torch.randn(80, generator=g).double()
    others = -truth
    scores = {"linear": truth, "head": -truth, "human": others}
    found = tool.ladder(scores, truth, others, g)
    assert found["linear"]["accuracy"] == 1 and found["head"]["accuracy"] == 0
    assert found["human"]["accuracy"] == 1


def test_the_difference_to_the_linear_model_has_its_sign():
    g = seeding.make(0)
    truth = torch.randn(80, generator=g).double()
    better = truth + 0.3 * torch.randn(80, generator=g)
    worse = truth + 2.0 * torch.randn(80, generator=g)
    found = tool.ladder({"linear": worse, "head": better}, truth, truth, g)
    assert found["head"]["over_linear"][0] > 0
    assert found["linear"]["over_linear"] == [0, 0]
    low, high = (found["head"][k] for k in ("low", "high"))
    assert low < found["head"]["accuracy"] < high


def test_rungs_average_heads_of_one_kind():
    known = {k: torch.arange(3.0) for k in ("vader", "linear", "human")}
    heads = [torch.tensor([0.0, 2.0, 4.0]), torch.tensor([2.0, 2.0, 2.0])]
    found = tool.rungs(known, {"plain": heads, "long": []})
    assert found["head: mean of 2"].tolist() == [1, 2, 3]
    names = ["vader", "linear", "head", "head, and linear", "head: mean of 2", "human"]
    assert list(found) == names


def test_a_head_and_the_linear_model_count_the_same_in_their_sum():
    known = {k: torch.zeros(3) for k in ("vader", "human")}
    known["linear"] = torch.tensor([10.0, 30.0, 20.0])
    found = tool.rungs(known, {"long": [torch.tensor([0.0, 1.0, 2.0])]})
    assert found["head, long, and linear"].tolist() == [-2, 1, 1]


def test_lists_of_numbers_stand_on_one_line(tmp_path):
    table = {"a": [1.5, -2.0, 3e-05], "b": [{"c": [1]}]}
    tool.write(tmp_path / "x" / "t.json", table)
    text = (tmp_path / "x" / "t.json").read_text()
    assert "[1.5, -2.0, 3e-05]" in text.replace("[ ", "[").replace(" ]", "]")
    assert json.loads(text) == table


def test_the_development_comparison_writes_nothing(small, tmp_path, capsys):
    args = arguments(tmp_path / "out", only=["plain"])
    tool.compare_on_development(args, QUICK)
    assert not (tmp_path / "out").exists()
    assert "linear" in capsys.readouterr().out
