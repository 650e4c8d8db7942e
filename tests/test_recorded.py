"""The record of the back-flips."""

import pytest

from rlhf_mini.control import body, recorded


def test_every_recorded_job_has_seeds_of_one_length():
    found = recorded.load()
    for job in found["jobs"]:
        curve = recorded.curve(found, job, "turns")
        assert curve.ndim == 2 and len(curve) == len(
            recorded.final(found, job, "turns")
        )


def test_the_recorded_share_of_full_turns_is_that_of_the_recorded_turns():
    found = recorded.load()
    for job in found["jobs"]:
        for row in recorded.rows(found, job):
            share = sum(x >= 1 for x in row["turns"]) / len(row["turns"])
            assert share == pytest.approx(row["evaluation"]["full_turn"], abs=0.051)


def test_the_recorded_episode_is_the_one_of_median_rotation():
    found = recorded.load()
    row = recorded.rows(found, "careful, 500")[0]
    turned = body.turns(recorded.episode(found, "careful, 500", row["seed"]))[-1].item()
    assert turned == pytest.approx(
        sorted(row["turns"])[len(row["turns"]) // 2], abs=0.01
    )


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="no record"):
        recorded.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="job: want one of"):
        recorded.rows({"jobs": {"careful": []}}, "other")
