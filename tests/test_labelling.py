"""The voting buttons, clicked without a browser."""

import pytest
from ipywidgets import Label

from rlhf_mini import labelling, votes
from rlhf_mini.labelling import VoteBox


@pytest.fixture
def path(tmp_path):
    return tmp_path / "votes.jsonl"


@pytest.fixture
def box(path):
    return VoteBox(3, lambda n: Label(f"pair {n}"), path, by="a test")


def shown(box):
    return [child.value for child in box.place.children]


def test_the_first_pair_shows_at_once_and_nothing_is_written(box, path):
    assert shown(box) == ["pair 0"] and not path.exists()


@pytest.mark.parametrize("key", votes.PREFERENCE)
def test_every_button_casts_its_own_vote(box, path, key):
    box.buttons[key].click()
    assert votes.load(path) == [votes.Vote(0, key, "a test")]
    assert shown(box) == ["pair 1"]


def test_there_is_a_button_for_every_vote():
    assert set(labelling.BUTTONS) == set(votes.PREFERENCE)


def test_a_vote_is_on_disk_before_the_next_pair_is_drawn(path):
    on_disk = []
    box = VoteBox(
        3, lambda n: on_disk.append(len(votes.load(path))) or Label(f"{n}"), path
    )
    box.buttons["A"].click()
    box.buttons["tie"].click()
    assert on_disk == [0, 1, 2]


def test_a_vote_that_could_not_be_written_does_not_move_on(box, monkeypatch):
    def full(path, vote):
        raise OSError("no space left")

    monkeypatch.setattr(votes, "append", full)
    with pytest.raises(OSError, match="no space"):
        box._say("A")
    assert shown(box) == ["pair 0"] and box.label.value.startswith("0 of 3")


def test_after_the_last_pair_the_buttons_are_off_and_clicks_do_nothing(box, path):
    for _ in range(3):
        box.buttons["B"].click()
    assert shown(box) == [] and box.label.value.startswith("3 of 3")
    assert all(button.disabled for button in box.buttons.values())
    box.buttons["B"].click()
    assert len(votes.load(path)) == 3


def test_another_day_goes_on_with_the_pairs_that_are_left(box, path):
    box.buttons["A"].click()
    votes.append(path, votes.Vote(2, "skip", "a test"))
    assert shown(VoteBox(3, lambda n: Label(f"pair {n}"), path)) == ["pair 1"]


def test_a_half_written_vote_is_shown_again(box, path):
    box.buttons["A"].click()
    path.write_bytes(path.read_bytes() + b'{"pair": 1, "vo')
    later = VoteBox(3, lambda n: Label(f"pair {n}"), path)
    assert shown(later) == ["pair 1"]
    later.buttons["B"].click()
    assert [v.vote for v in votes.load(path)] == ["A", "B"]


def test_a_pair_that_was_shown_is_closed(box):
    (first,) = box.place.children
    box.buttons["A"].click()
    assert first.comm is None


def test_a_page_without_a_kernel_shows_words(box, monkeypatch):
    notes = []
    monkeypatch.setattr(
        labelling, "display", lambda view, raw: notes.append((view, raw))
    )
    box.show()
    ((view, raw),) = notes
    assert raw and any("widget-view" in mime for mime in view)
    assert view["text/plain"] == "(with a running kernel: buttons to vote with)"


def test_no_pairs_and_files_of_something_else_are_refused(path):
    with pytest.raises(ValueError, match="pairs"):
        VoteBox(0, Label, path)
    path.write_text("not a vote\n", "utf-8")
    with pytest.raises(ValueError, match="line 1: no vote"):
        VoteBox(3, lambda n: Label(), path)
