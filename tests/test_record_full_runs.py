"""tools/record_full_runs.py: a record made in pieces loses none of them."""

import record_full_runs as tool

from rlhf_mini.gpt2 import recorded

EMPTY = {"date": "today", "reward_model": [], "runs": [], "best_of_n": []}


def row(job, seed, day):
    return {"job": job, "seed": seed, "date": day}


def test_rows_made_again_replace_the_old_ones_and_the_others_stay():
    old = EMPTY | {
        "date": "yesterday",
        "reward_model": [{"seed": 0, "date": "old"}, {"seed": 1, "date": "old"}],
        "runs": [row("ppo", 0, "old"), row("dpo", 0, "old"), row("ppo", 1, "old")],
    }
    new = EMPTY | {
        "reward_model": [{"seed": 1, "date": "new"}],
        "runs": [row("ppo", 1, "new"), row("rloo", 0, "new")],
        "best_of_n": [row("best-of-n", 0, "new")],
    }
    found = tool.merge(old, new)
    assert found["date"] == "today"
    assert [r["date"] for r in found["reward_model"]] == ["old", "new"]
    assert found["runs"] == [
        row("ppo", 0, "old"), row("rloo", 0, "new"), row("dpo", 0, "old"),
        row("ppo", 1, "new"),
    ]  # fmt: skip
    assert found["best_of_n"] == [row("best-of-n", 0, "new")]


def test_the_first_record_is_taken_as_it_is():
    assert tool.merge({}, EMPTY) == EMPTY


def test_nothing_made_again_leaves_the_tables_of_the_record(tmp_path):
    kept = recorded.load()
    found = tool.merge(kept, tool.gather(tmp_path))
    for name in ("reward_model", "runs", "best_of_n"):
        assert found[name] == kept[name]
