"""tools/record_backflip.py gathers what is finished and loses nothing."""

import json

import record_backflip

from rlhf_mini.control import runs


def finish(out, job, seed):
    place = runs.folder_of(out, job, seed)
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps({"seed": seed}), "utf-8")


def test_every_finished_seed_of_every_job_is_gathered_in_order(tmp_path):
    for job in runs.JOBS:
        for seed in (10, 2, 0):
            finish(tmp_path, job, seed)
    found = record_backflip.gather(tmp_path)["jobs"]
    assert list(found) == list(runs.JOBS)
    for rows in found.values():
        assert [row["seed"] for row in rows] == [0, 2, 10]


def test_a_run_that_is_not_finished_is_left_out(tmp_path):
    finish(tmp_path, "careful", 0)
    place = runs.folder_of(tmp_path, "careful", 1)
    place.mkdir()
    (place / "run.safetensors").write_bytes(b"half")
    found = record_backflip.gather(tmp_path)["jobs"]
    assert found == {"careful": [{"seed": 0}]}
