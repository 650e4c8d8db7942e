"""`make backflip`: the bar, the end, and one line where MuJoCo is missing."""

import argparse
import subprocess
import sys
from dataclasses import replace

import pytest

from rlhf_mini.control import __main__ as control
from rlhf_mini.control import hopper, recorded, runs

NEEDS_MUJOCO = pytest.mark.skipif(
    not hopper.available(), reason="MuJoCo is not installed"
)


def arguments(tmp_path, **other):
    given = {
        "job": "careful", "seed": 0, "threads": 1, "votes": recorded.VOTES,
        "out": tmp_path,
    }  # fmt: skip
    return argparse.Namespace(**given | other)


@pytest.fixture
def short(monkeypatch):
    job = replace(runs.JOBS["careful"], comparisons=8, first=4, iterations=3)
    monkeypatch.setitem(runs.JOBS, "careful", job)
    monkeypatch.setattr(runs, "EVERY", 1)


@NEEDS_MUJOCO
def test_the_bar_counts_iterations_and_tells_comparisons_and_turns(
    short, tmp_path, capsys
):
    found = control.main(arguments(tmp_path))
    bar = capsys.readouterr().err
    assert "3/3" in bar and "8 comparisons" in bar and "turns" in bar
    assert found["folder"].endswith("careful_seed0")
    assert set(found["evaluation"]) == set(runs.measure(runs.torch.zeros(1, 2, 6)))


@NEEDS_MUJOCO
def test_after_a_kill_the_bar_starts_where_the_run_goes_on(
    short, tmp_path, capsys, monkeypatch
):
    place = runs.folder_of(tmp_path, "careful", 0)

    def kill(row):
        if row["comparisons"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(runs.JOBS["careful"], 0, place, tell=kill)
    steps = []
    monkeypatch.setattr(
        control.tqdm, "update", lambda bar, n=1: steps.append(n), raising=True
    )
    control.main(arguments(tmp_path))
    assert steps == [2, 1]
    capsys.readouterr()


def test_without_mujoco_it_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(SystemExit) as stopped:
        control.main(arguments(tmp_path))
    assert stopped.value.code == hopper.MISSING


def test_the_help_names_every_job():
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_mini.control", "--help"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert all(job in text for job in runs.JOBS)
