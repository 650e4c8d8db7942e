"""Whole runs: a killed one goes on to the very numbers of one that was not killed."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from rlhf_mini import votes
from rlhf_mini.control import body, hopper, judges, recorded, runs

NEEDS_MUJOCO = pytest.mark.skipif(
    not hopper.available(), reason="MuJoCo is not installed"
)
SHORT = replace(runs.JOBS["careful"], comparisons=12, first=6, iterations=2)
WITHOUT_CLOCK = ("cpu_minutes", "date")


def killed_at(iteration, folder, job=SHORT):
    """Run a job until the end of this iteration, where it is killed."""
    told = []

    def kill(row):
        told.append(row)
        if len(told) == iteration:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(job, 0, folder, tell=kill)


def known(found):
    return {k: v for k, v in found.items() if k not in WITHOUT_CLOCK}


# ------------------------------------------------------------------- jobs and folders


def test_every_job_has_a_folder_of_its_own(tmp_path):
    places = {runs.folder_of(tmp_path, job, 0) for job in runs.JOBS}
    assert len(places) == len(runs.JOBS)
    assert all(place.parent == tmp_path for place in places)


@NEEDS_MUJOCO
@pytest.mark.parametrize("name", runs.JOBS)
def test_a_job_asks_at_most_seven_hundred_times_or_is_given_something(name):
    made = runs.make(runs.JOBS[name], 0)
    asked, job = sum(made.asks[0]), runs.JOBS[name]
    assert asked == job.comparisons <= 700 and len(made.asks[0]) == job.iterations
    cast = int(made.buffer.count[0])
    assert [asked > 0, cast > 0, bool(made.given[0])].count(True) == 1
    assert made.s.iterations == job.iterations


@NEEDS_MUJOCO
def test_a_judge_sees_positions_and_the_learner_none_of_its_scores():
    made = runs.make(SHORT, 0)
    seen = []

    def score(rule, qpos):
        seen.append((rule, tuple(qpos.shape)))
        return torch.zeros(qpos.shape[:2])

    original = judges.score
    judges.score = score
    try:
        made.step()
    finally:
        judges.score = original
    assert seen == [("careful", (6, 2, 50, 6))]
    assert set(made.buffer.preference[0, :6].tolist()) <= {0.0, 1.0}


@NEEDS_MUJOCO
def test_the_votes_job_learns_from_the_file_it_is_given(tmp_path):
    path = tmp_path / "votes.jsonl"
    for number, vote in ((3, "A"), (1, "skip"), (0, "B"), (5, "tie")):
        votes.append(path, votes.Vote(number, vote, "a test"))
    made = runs.make(runs.JOBS["votes"], 0, votes=path)
    assert made.buffer.count.tolist() == [3]
    assert made.buffer.preference[0, :3].tolist() == [0.0, 1.0, 0.5]
    shown = recorded.pairs()
    want = hopper.features(shown["qpos"][0], shown["qvel"][0])
    torch.testing.assert_close(made.buffer.clips[0, 0], want)


# --------------------------------------------------------------------- what is measured


def test_an_episode_is_measured_from_its_first_moment():
    qpos = torch.tensor(body.STANDING).double().repeat(2, 20, 1)
    qpos[0, :, 1] = 4.0  # high up, and three turns back
    qpos[0, :, 2] = -2 * math.pi * torch.linspace(0, 3, 20)
    found = runs.measure(qpos)
    assert found["turns"] == pytest.approx(1.5)
    assert found["turns_in_the_air"] == pytest.approx(1.5)
    assert found["full_turn"] == 0.5 and found["flip_that_stands"] == 0.0
    assert found["others_touch"] == 0.0
    qpos[1, :, 1] = 0.3
    assert runs.measure(qpos)["others_touch"] == 0.5


@NEEDS_MUJOCO
def test_the_test_is_on_gymnasiums_integrator_with_the_mean_action():
    made = runs.make(SHORT, 0)
    qpos = runs.evaluate(made, seed=0, episodes=3)
    assert qpos.shape == (3, hopper.LENGTH, 6)
    assert torch.equal(qpos, runs.evaluate(made, seed=0, episodes=3))
    assert not torch.equal(qpos, runs.evaluate(made, seed=1, episodes=3))


# -------------------------------------------------------------------- kill and resume


@NEEDS_MUJOCO
def test_a_killed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "EVERY", 1)
    killed_at(2, tmp_path / "killed")
    spared = []
    resumed = runs.run(SHORT, 0, tmp_path / "killed", resumed=spared.append)
    whole = runs.run(SHORT, 0, tmp_path / "whole")
    assert spared == [1]  # the second was killed before its checkpoint
    assert known(resumed) == known(whole)


@NEEDS_MUJOCO
def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    killed_at(1, tmp_path)
    told = []
    runs.run(SHORT, 0, tmp_path, tell=told.append)
    assert len(told) == 2


@NEEDS_MUJOCO
def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    found = runs.run(SHORT, 0, tmp_path)
    told = []
    assert runs.run(SHORT, 0, tmp_path, tell=told.append) == found and not told
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == found


@NEEDS_MUJOCO
def test_what_is_recorded_is_whole(tmp_path):
    told = []
    found = runs.run(SHORT, 3, tmp_path, tell=told.append)
    assert found["seed"] == 3 and found["steps"] == 2 * 32 * hopper.LENGTH
    assert found["curve"]["comparisons"] == [6.0, 12.0]
    assert found["curve"]["turns"] == [round(row["turns"], 4) for row in told]
    assert len(found["turns"]) == 20 and len(found["episode"]) == hopper.LENGTH
    mean = sum(found["turns"]) / 20
    assert found["evaluation"]["turns"] == pytest.approx(mean, abs=0.01)
    assert list(tmp_path.glob("*.tmp")) == []


@NEEDS_MUJOCO
def test_a_snapshot_restored_into_another_learner_makes_them_one():
    one, other = runs.make(SHORT, 0), runs.make(SHORT, 9)
    one.step()
    runs.restore(other, copy.deepcopy(runs.snapshot(one)))
    (row, batch), (again, twin) = one.step(), other.step()
    assert row == again and torch.equal(batch.actions, twin.actions)


@NEEDS_MUJOCO
def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "run.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="run.safetensors: not a whole checkpoint"):
        runs.run(SHORT, 0, tmp_path)
