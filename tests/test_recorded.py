"""The record of the back-flips, and the pairs and votes beside it."""

import pytest
import torch

from rlhf_mini import votes
from rlhf_mini.control import body, hopper, judges, recorded, runs

RECORD = recorded.load()
every_job = pytest.mark.parametrize("job", RECORD["jobs"])


# -------------------------------------------------------------------------------- runs


@every_job
def test_a_job_has_five_seeds_or_more_of_one_length(job):
    rows = recorded.rows(RECORD, job)
    assert [row["seed"] for row in rows][:5] == [0, 1, 2, 3, 4]
    curve = recorded.curve(RECORD, job, "turns")
    assert curve.shape == (len(rows), runs.JOBS[job].iterations)
    assert len(recorded.final(RECORD, job, "turns")) == len(rows)


@every_job
def test_no_more_was_asked_than_the_job_says_and_never_less_than_before(job):
    asked = recorded.curve(RECORD, job, "comparisons")
    cast = 0 if runs.JOBS[job].rule != "votes" else len(recorded.cast()[1])
    assert (asked[:, -1] == runs.JOBS[job].comparisons + cast).all()
    assert (asked[:, 1:] >= asked[:, :-1]).all() and asked.max() <= 700


@every_job
def test_the_share_of_full_turns_is_that_of_the_recorded_turns(job):
    for row in recorded.rows(RECORD, job):
        assert len(row["turns"]) == 20
        share = sum(x >= 1 for x in row["turns"]) / 20
        # measured from the first moment on, which stands a little off upright
        assert share == pytest.approx(row["evaluation"]["full_turn"], abs=0.051)
        mean = sum(row["turns"]) / 20
        assert mean == pytest.approx(row["evaluation"]["turns"], abs=0.02)


@every_job
def test_the_recorded_episode_is_the_one_of_median_rotation(job):
    for row in recorded.rows(RECORD, job):
        qpos = recorded.episode(RECORD, job, row["seed"])
        assert qpos.shape == (hopper.LENGTH, 6)
        median = sorted(row["turns"])[10]
        assert body.turns(qpos)[-1].item() == pytest.approx(median, abs=0.01)


@every_job
def test_no_recorded_body_is_under_the_floor(job):
    """MuJoCo's contacts are soft: a hard landing sinks in by some centimetres."""
    for row in recorded.rows(RECORD, job):
        qpos = recorded.episode(RECORD, job, row["seed"])
        assert body.clearance(qpos).min() > -0.1


def test_the_bar_is_met_in_every_seed():
    """One full backward turn in 80 % of 20 test episodes, from 700 comparisons."""
    share = recorded.final(RECORD, "careful", "full_turn")
    assert len(share) >= 5 and (share >= 0.8).all()


# --------------------------------------------------------------------- pairs and votes


def test_pairs_are_clips_of_the_length_that_a_learner_takes():
    shown = recorded.pairs()
    made = runs.Settings()
    shape = (150, 2, made.clip // made.stride, 6)
    assert shown["qpos"].shape == shown["qvel"].shape == shape
    assert shown["qpos"].dtype == torch.float64


def test_the_velocities_are_those_of_the_positions():
    """Speed between two kept moments against the mean of the two speeds."""
    shown = recorded.pairs()
    gone = shown["qpos"].diff(dim=2) / (2 * body.DECISION)
    mean = (shown["qvel"][:, :, 1:] + shown["qvel"][:, :, :-1]) / 2
    far = (gone[..., 2] - mean[..., 2]).abs()  # of the torso's angle
    assert far.median() < 0.2 * mean[..., 2].abs().median()


def test_the_recorded_votes_say_that_nobody_human_cast_them():
    cast = votes.load(recorded.VOTES)
    assert {vote.by for vote in cast} == {"simulated judge"}
    assert [vote.pair for vote in cast] == list(range(150))


def test_the_recorded_votes_mostly_follow_the_careful_rule():
    qpos = recorded.pairs()["qpos"]
    a, b = judges.score("careful", qpos).unbind(-1)
    p = votes.preferences(votes.load(recorded.VOTES), len(qpos))
    clear = ((a - b).abs() > 0.2) & (p != 0.5)
    agrees = ((a > b) == (p > 0.5))[clear].double().mean()
    assert clear.sum() > 20 and agrees > 0.85


def test_what_was_cast_is_features_and_preferences_in_order_of_pairs(tmp_path):
    path = tmp_path / "votes.jsonl"
    for number, vote in ((7, "B"), (2, "skip"), (3, "A")):
        votes.append(path, votes.Vote(number, vote, "a test"))
    clips, said = recorded.cast(path)
    shown = recorded.pairs()
    assert said.tolist() == [1.0, 0.0]
    want = hopper.features(shown["qpos"], shown["qvel"])[[3, 7]]
    assert torch.equal(clips, want) and clips.shape[-1] == hopper.Hoppers.seen


# ------------------------------------------------------------------------------ errors


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="no record"):
        recorded.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="job: want one of .*'careful'.*found 'other'"):
        recorded.rows({"jobs": {"careful": []}}, "other")


def test_a_record_that_is_cut_short_is_named(tmp_path):
    (tmp_path / "runs.json").write_text('{"jobs": {', "utf-8")
    with pytest.raises(ValueError, match="runs.json: no record of back-flips"):
        recorded.load(tmp_path / "runs.json")


def test_no_vote_yet_is_said_so(tmp_path):
    with pytest.raises(ValueError, match="no vote yet"):
        recorded.cast(tmp_path / "none.jsonl")
    votes.append(tmp_path / "skips.jsonl", votes.Vote(0, "skip", "a test"))
    with pytest.raises(ValueError, match="no vote yet"):
        recorded.cast(tmp_path / "skips.jsonl")
