"""tools/record_reward_head.py: what is written, and that it is what was measured."""

import json

import pytest
import record_reward_head as tool
import torch

from rlhf_mini import seeding
from rlhf_mini.human_pairs import pair_accuracy, rating_shares, split_by_sentence

N = 120
QUICK = tool.HeadSettings(steps=2, batch=8)


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


@pytest.fixture
def small(monkeypatch, model_folder, tokenizer):
    """The tool on the made-up model and sentences."""
    monkeypatch.setattr(tool, "SHIPPED", model_folder)
    monkeypatch.setattr(tool, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(tool, "TEST", 30)
    monkeypatch.setattr(tool, "CURVE", [1])
    monkeypatch.setattr(tool, "Texts", lambda domain: Sentences(len(domain)))
    linear = tool.fit_linear_reward  # slates that fit ninety sentences
    monkeypatch.setattr(
        tool, "fit_linear_reward", lambda *a, **k: linear(*a, slate=16, **k)
    )


@pytest.fixture
def recorded(small, tmp_path):
    tool.record(tmp_path, [0, 1], 2, QUICK)
    return tmp_path


def test_every_split_has_its_heads(recorded):
    names = {p.relative_to(recorded).as_posix() for p in recorded.rglob("*.json")}
    assert names == {f"seed{s}/head{h}.json" for s in (0, 1) for h in (0, 1)}


def test_heads_of_one_split_differ(recorded):
    for split in tool.gather(recorded, QUICK)["splits"]:
        first, second = (head["test"] for head in split["heads"])
        assert first != second


def test_the_curve_can_be_computed_again_from_the_scores(recorded):
    """Its last point, from every fourth of the scores that were written."""
    movies = Sentences(len("movieReview"))
    for split in tool.gather(recorded, QUICK)["splits"]:
        some = split_by_sentence(movies.texts, split["seed"], 30).test[
            :: tool.CURVE_EVERY
        ]
        for head in split["heads"]:
            scores = torch.tensor(head["test"])[:: tool.CURVE_EVERY].double()
            last = head["curve"][-1]["accuracy"]
            assert pair_accuracy(scores, movies.means[some]) == pytest.approx(
                last, abs=0.1
            )


def test_the_record_says_what_was_run(recorded):
    table = tool.gather(recorded, QUICK)
    assert table["settings"] == vars(QUICK) and table["model"] == tool.sha256()
    assert [s["seed"] for s in table["splits"]] == [0, 1]
    heads = [head for split in table["splits"] for head in split["heads"]]
    assert len(heads) == 4 and all(head["minutes"] > 0 for head in heads)
    assert all(len(h["test"]) == 30 and len(h["products"]) == N for h in heads)
    assert [c["steps"] for c in heads[0]["curve"]] == [1, 2]
    seconds = [c["seconds"] for c in heads[0]["curve"]]
    assert 0 < seconds[0] < seconds[1] <= 60 * heads[0]["minutes"]


def test_no_text_is_written(recorded, tmp_path):
    tool.write(tmp_path / "table.json", tool.gather(recorded, QUICK))
    assert "film" not in (tmp_path / "table.json").read_text()


def test_what_is_finished_is_not_fitted_again(recorded, monkeypatch):
    def never(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(tool, "fit_head", never)
    tool.record(recorded, [0, 1], 2, QUICK)


@pytest.mark.parametrize(
    "other", [{"model": "of yesterday"}, {"settings": vars(QUICK) | {"steps": 3}}]
)
def test_heads_of_another_recipe_are_fitted_anew_and_not_gathered(recorded, other):
    file = recorded / "seed0" / "head0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | other))
    splits = tool.gather(recorded, QUICK)["splits"]
    assert [len(s["heads"]) for s in splits] == [1, 2]
    tool.record(recorded, [0], 1, QUICK)
    assert tool.finished(file, QUICK)


def test_a_split_without_any_head_is_not_gathered(recorded):
    for file in (recorded / "seed1").iterdir():
        file.unlink()
    assert [s["seed"] for s in tool.gather(recorded, QUICK)["splits"]] == [0]


def test_a_killed_recording_leaves_no_half_file(small, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tool.record(tmp_path, [0], 1, QUICK)
    assert not list(tmp_path.rglob("*.json"))


def test_lists_of_numbers_stand_on_one_line(tmp_path):
    table = {"a": [1.5, -2.0, 3e-05], "b": [{"c": [1]}]}
    tool.write(tmp_path / "x" / "t.json", table)
    text = (tmp_path / "x" / "t.json").read_text()
    assert "[1.5, -2.0, 3e-05]" in text.replace("[ ", "[").replace(" ]", "]")
    assert json.loads(text) == table


def test_development_sentences_are_neither_fitted_nor_in_a_test_set(
    small, monkeypatch, capsys
):
    asked = {}
    fit = tool.fit_head

    def spy(movies, known, held, seed, settings):
        asked.update(known=set(known.tolist()), held=set(held.tolist()))
        return fit(movies, known, held, seed, settings)

    monkeypatch.setattr(tool, "fit_head", spy)
    tool.compare_on_development(QUICK)
    texts = Sentences(len("movieReview")).texts
    tests = set(split_by_sentence(texts, 0, 30).test.tolist())
    assert asked["held"] and not asked["held"] & (asked["known"] | tests)
    assert not asked["known"] & tests
    assert "linear" in capsys.readouterr().out
