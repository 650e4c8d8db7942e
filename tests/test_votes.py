"""Votes: what was cast is on disk, whatever happens next."""

import json
import os

import pytest
import torch

from rlhf_mini import votes
from rlhf_mini.votes import Vote

CAST = [Vote(0, "A", "me"), Vote(4, "tie", "me"), Vote(2, "skip", "simulated judge")]


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "new folder" / "votes.jsonl"
    for vote in CAST:
        votes.append(place, vote)
    return place


def test_votes_come_back_as_they_were_cast(path):
    assert votes.load(path) == CAST


def test_the_file_is_one_json_object_a_line(path):
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines[1] == {"pair": 4, "vote": "tie", "by": "me"}


def test_a_vote_is_synced_to_disk_before_append_returns(path, monkeypatch):
    synced = []
    monkeypatch.setattr(votes.os, "fsync", lambda fd: synced.append(os.fstat(fd)))
    votes.append(path, Vote(1, "B", "me"))
    assert synced[0].st_size == path.stat().st_size  # all of it, not a part


def test_append_changes_nothing_that_was_written(path):
    before = path.read_bytes()
    votes.append(path, Vote(1, "B", "me"))
    assert path.read_bytes().startswith(before)


def test_no_file_is_no_vote_and_loading_makes_none(tmp_path):
    assert votes.load(tmp_path / "none.jsonl") == []
    assert not (tmp_path / "none.jsonl").exists()


def test_wherever_the_last_line_is_cut_whole_lines_stay_and_new_ones_fit(path):
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1  # of the last line
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert votes.load(path) == CAST[:2]
        assert path.read_bytes() == whole[:start]
        votes.append(path, CAST[2])
        assert votes.load(path) == CAST


def test_a_letter_cut_in_half_is_repaired_too(path):
    path.write_bytes(path.read_bytes() + '{"pair": 1, "by": "é'.encode()[:-1])
    assert votes.load(path) == CAST


def test_loading_a_whole_file_does_not_write(path):
    path.chmod(0o444)
    before = path.stat().st_mtime_ns
    votes.load(path)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "line, why",
    [
        ("nonsense", "Expecting value"),
        ("", "Expecting value"),
        ("[1, 2]", "mapping"),
        ('{"pair": 1, "vote": "A"}', "by"),
        ('{"pair": 1, "vote": "A", "by": "me", "when": 0}', "when"),
        ('{"pair": 1, "vote": "a", "by": "me"}', "vote: want one of"),
        ('{"pair": true, "vote": "A", "by": "me"}', "pair: want a number"),
        ('{"pair": -1, "vote": "A", "by": "me"}', "pair: want a number"),
        ('{"pair": 1, "vote": "A", "by": ""}', "by: want a name"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_left_alone(path, line, why):
    path.write_text(path.read_text("utf-8") + line + "\n", "utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"line 4: no vote.*{why}"):
        votes.load(path)
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_are_a_bad_line(path):
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    with pytest.raises(ValueError, match="line 1: no vote"):
        votes.load(path)


def test_preferences_are_the_chance_that_a_is_better():
    want = torch.tensor([1.0, torch.nan, torch.nan, torch.nan, 0.5, torch.nan])
    found = votes.preferences(CAST, 6)
    torch.testing.assert_close(found, want, equal_nan=True)


def test_the_last_vote_on_a_pair_counts():
    again = [Vote(0, "A", "me"), Vote(0, "skip", "me"), Vote(0, "B", "me")]
    assert votes.preferences(again, 1).tolist() == [0.0]
    assert votes.preferences(again[:2], 1).isnan().all()


def test_a_vote_about_a_pair_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="want pairs 0 … 3, found 4"):
        votes.preferences(CAST, 4)
