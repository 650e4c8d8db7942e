"""Recorded runs are read back as they were written; what is not there is named."""

import json

import numpy as np
import pytest

from rlhf_mini.gpt2 import recorded


def run(job, seed, kl, gold):
    policy = {"kl_to_ref": kl, "gold": gold, "gold_ci": 0.1}
    reference = {"kl_to_ref": 0.0, "gold": 0.5, "gold_ci": 0.1}
    return {
        "job": job, "seed": seed, "minutes": 1.0, "policy": policy,
        "reference": reference, "curve": {"gold": [0.0, gold]},
    }  # fmt: skip


@pytest.fixture()
def record():
    ends = {"ppo": 6.0, "ppo at the KL of best-of-16": 1.8, "rloo": 5.0, "dpo": 1.0}
    best = [
        {"n": n, "kl_bound": kl, "gold": gold, "gold_ci": 0.2}
        for n, kl, gold in ((1, 0.0, 0.5), (2, 0.2, 0.7), (4, 0.6, 1.1))
    ]
    return {
        "runs": [
            run(j, seed, kl + seed, 2 * kl) for j, kl in ends.items() for seed in (0, 1)
        ],
        "best_of_n": [{"curve": best}, {"curve": best}],
        "reward_model": [],
    }


def test_a_record_is_read_back(record, tmp_path):
    path = tmp_path / "full_runs.json"
    path.write_text(json.dumps(record))
    assert recorded.load(path) == record


@pytest.mark.parametrize("text", [None, '{"runs": ['])
def test_a_record_that_is_missing_or_cut_short_is_named(tmp_path, text):
    path = tmp_path / "full_runs.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="full_runs.json: no record of full runs"):
        recorded.load(path)


def test_numbers_come_seed_by_seed(record):
    assert recorded.final(record, "ppo", "kl_to_ref").tolist() == [6.0, 7.0]
    assert recorded.final(record, "ppo", "gold", "reference").tolist() == [0.5, 0.5]
    assert recorded.curve(record, "rloo", "gold").tolist() == [[0, 10], [0, 10]]
    assert recorded.best_of_n(record, "n").tolist() == [[1, 2, 4], [1, 2, 4]]


def test_a_job_that_was_not_recorded_is_named_with_those_that_were(record):
    with pytest.raises(ValueError, match=r"job: want one of \['dpo', .* found 'grpo'"):
        recorded.runs(record, "grpo")


def test_the_frontier_has_a_point_per_run_and_one_mean_curve_for_best_of_n(record):
    points = recorded.frontier(record)
    assert set(points) == {"ppo", "rloo", "dpo", "best_of_n"}
    kl, gold, error = points["ppo"]
    assert kl.tolist() == [6.0, 7.0, 1.8, 2.8]
    assert gold.tolist() == [12.0, 12.0, 3.6, 3.6] and set(error) == {0.1}
    some = [row for row in record["runs"] if row["job"] != "dpo"]
    assert set(recorded.frontier(record | {"runs": some})) == set(points) - {"dpo"}
    kl, gold, _ = points["best_of_n"]  # best-of-1 is the reference
    np.testing.assert_allclose(kl, [0.2, 0.6])
    np.testing.assert_allclose(gold, [0.7, 1.1])
