"""Whole runs: a killed one goes on to the very numbers of one that was not killed."""

from dataclasses import replace

import pytest

from rlhf_mini.control import hopper, runs

pytestmark = pytest.mark.skipif(
    not hopper.available(), reason="MuJoCo is not installed"
)
SHORT = replace(runs.JOBS["careful"], comparisons=12, first=6, iterations=2)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "EVERY", 1)

    def kill(row):
        if row["comparisons"] == SHORT.comparisons:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.run(SHORT, 0, tmp_path / "killed", tell=kill)
    resumed = runs.run(SHORT, 0, tmp_path / "killed")
    whole = runs.run(SHORT, 0, tmp_path / "whole")
    assert resumed["curve"] == whole["curve"]
    assert resumed["turns"] == whole["turns"]
