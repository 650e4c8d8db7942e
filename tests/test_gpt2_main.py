"""python -m rlhf_mini.gpt2: end to end on a tiny world, for every method."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rlhf_mini import seeding
from rlhf_mini.gpt2 import __main__ as command
from rlhf_mini.gpt2 import checkpoints
from rlhf_mini.gpt2.comparisons import Comparisons
from rlhf_mini.gpt2.models import load_policy
from rlhf_mini.gpt2.settings import Settings


@pytest.fixture(autouse=True)
def tiny(monkeypatch, make_world):
    monkeypatch.setattr(command, "build_world", make_world)


@pytest.fixture(scope="module")
def settings_of(make_world):
    return lambda **changes: make_world(**changes).settings


@pytest.fixture(scope="module")
def finished(make_world, settings_of, tmp_path_factory):
    """The folder of a whole PPO run; others take preferences and reward from it."""
    out = tmp_path_factory.mktemp("ppo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "build_world", make_world)
        command.main(settings_of(out=str(out)))
    return out


def read(path):
    return json.loads(path.read_text("utf-8"))


def check_run(out, settings, finished):
    """What the issue asks of every run that trains a policy."""
    policy = AutoModelForCausalLM.from_pretrained(out / "policy")
    tokenizer = AutoTokenizer.from_pretrained(out / "policy")
    text = tokenizer("a good film", return_tensors="pt")
    assert policy.generate(**text, max_new_tokens=3).shape[1] > 3
    start = AutoModelForCausalLM.from_pretrained(settings.model)
    assert not torch.equal(policy.lm_head.weight, start.lm_head.weight)
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))

    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(settings.steps))

    results = read(out / "evaluation.json")
    assert set(results) == {"reference", "policy"}
    assert results["reference"].keys() == results["policy"].keys()
    assert results["reference"]["kl_to_ref"] == pytest.approx(0, abs=1e-4)
    assert results["policy"]["answers"] == settings.eval_prompts

    rows = read(out / "samples.json")
    assert len(rows) == settings.eval_prompts
    assert all(
        list(row) == ["prompt", "before", "after", "before_gold", "after_gold"]
        for row in rows
    )
    assert read(out / "settings.json")["method"] == settings.method


# --- every method -------------------------------------------------------------


def test_ppo_leaves_everything_in_its_own_folder(finished, settings_of):
    check_run(finished, settings_of(out=str(finished)), finished)
    model = AutoModelForSequenceClassification.from_pretrained(
        finished / "reward_model"
    )
    AutoTokenizer.from_pretrained(finished / "reward_model")
    assert model.config.num_labels == 1 and model.config.reward_shift != 0
    lines = (finished / "preferences.jsonl").read_text("utf-8").splitlines()
    assert 24 <= len(lines) <= 48
    assert all(
        list(json.loads(line)) == ["prompt", "chosen", "rejected"] for line in lines
    )


@pytest.mark.parametrize("method", ["rloo", "dpo"])
def test_other_methods_share_preferences_and_reward_model(
    finished, settings_of, tmp_path, method, monkeypatch
):
    for stage in ("make_comparisons", "make_reward_model"):  # nothing is made twice
        monkeypatch.setattr(command, stage, None)
    settings = settings_of(out=str(tmp_path), data=str(finished), method=method)
    command.main(settings)
    check_run(tmp_path, settings, finished)
    assert not (tmp_path / "reward_model").exists()


def test_best_of_n_leaves_its_curve(finished, settings_of, tmp_path, capsys):
    settings = settings_of(out=str(tmp_path), data=str(finished), method="best-of-n")
    command.main(settings)
    rows = read(tmp_path / "best_of_n.json")
    assert [row["n"] for row in rows] == [1, 2, 4]
    assert {"gold", "gold_ci", "reward_model", "kl_bound"} <= rows[0].keys()
    assert rows[0]["kl_bound"] == 0
    assert "n 4.000" in capsys.readouterr().out


def test_the_policy_that_was_left_is_the_one_that_was_evaluated(
    finished, settings_of, make_world
):
    world = make_world(settings_of(out=str(finished)))
    policy = load_policy(
        finished / "policy", world.tokenizer, max_new_tokens=world.settings.new_tokens
    )
    rollout = policy.sample(world.eval_prompts, seeding.make(10_000))
    gold = world.gold()(rollout).tolist()
    assert [row["after_gold"] for row in read(finished / "samples.json")] == (
        pytest.approx(gold, abs=1e-4)
    )


def test_a_run_prints_what_it_found(finished, settings_of, tmp_path, capsys):
    settings = settings_of(out=str(tmp_path), data=str(finished), method="dpo", steps=1)
    command.main(settings)
    shown = capsys.readouterr().out
    assert "reward model: agrees with the annotator on" in shown
    results = read(tmp_path / "evaluation.json")
    (line,) = [x for x in shown.splitlines() if x.startswith("gold ")]
    want = [f"{results[who]['gold']:.3f}" for who in ("reference", "policy")]
    assert line.split() == ["gold", *want]


# --- data of other settings ---------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 3}, {"new_tokens": 4}, {"comparisons": 32}, {"answers": 3},
        {"flip": 0.1}, {"rm_lr": 1e-4}, {"rm_epochs": 3}, {"rm_batch": 8},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_data_of_other_settings_are_refused_by_name(
    finished, settings_of, tmp_path, make_world, changes
):
    settings = settings_of(out=str(tmp_path), data=str(finished), **changes)
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name}: .* this run wants {value}"):
        command.prepare(make_world(settings))


@pytest.mark.parametrize("changes", [{"lr": 0.1}, {"beta": 1.0}, {"steps": 9}])
def test_data_do_not_depend_on_how_the_policy_is_trained(
    finished, settings_of, tmp_path, make_world, changes
):
    settings = settings_of(out=str(tmp_path), data=str(finished), **changes)
    data, scorer = command.prepare(make_world(settings))
    assert len(data) > 20 and not any(p.requires_grad for p in scorer.parameters())


# --- killed between the stages ------------------------------------------------


def files_of(out):
    return {
        "comparisons": Comparisons(**checkpoints.load(out / "comparisons.safetensors")),
        "lines": (out / "preferences.jsonl").read_text("utf-8"),
        "reward": (out / "reward_model" / "model.safetensors").read_bytes(),
    }


@pytest.mark.parametrize(
    "stage", ["make_comparisons", "write_json", "make_reward_model", "run_ppo"]
)
def test_a_run_killed_in_a_stage_goes_on_to_the_same_end(
    finished, settings_of, make_world, tmp_path, monkeypatch, stage
):
    def kill(*args, **_):
        raise KeyboardInterrupt

    settings = settings_of(out=str(tmp_path))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(command, stage, kill)
        command.prepare(make_world(settings))
        command.main(settings)
    command.main(settings_of(out=str(tmp_path), resume=True))
    for name in ("evaluation.json", "samples.json"):
        assert read(tmp_path / name) == read(finished / name)
    found, want = files_of(tmp_path), files_of(finished)
    assert found["lines"] == want["lines"] and found["reward"] == want["reward"]
    for name, x in vars(found["comparisons"]).items():
        assert torch.equal(x, getattr(want["comparisons"], name))


def test_a_half_saved_reward_model_is_made_again(
    finished, settings_of, make_world, tmp_path, monkeypatch
):
    world = make_world(settings_of(out=str(tmp_path)))
    inner = command.TokenScorer.save

    def half(self, folder):
        inner(self, folder)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(command.TokenScorer, "save", half)
        command.prepare(world)
    command.prepare(world)
    want = (finished / "reward_model" / "model.safetensors").read_bytes()
    assert (tmp_path / "reward_model" / "model.safetensors").read_bytes() == want


# --- from the command line ----------------------------------------------------


def test_the_command_names_a_bad_option_before_it_leaves_anything(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_mini.gpt2", "--beta", "-1"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "beta: want a number > 0, found -1.0" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_with_other_settings_names_the_first_that_differs(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    killed = Settings(out=str(out), lr=1e-4)
    (out / "settings.json").write_text(json.dumps(asdict(killed)))
    command.check_resume(replace(killed, resume=True))
    command.check_resume(replace(killed, lr=2e-4))  # not resumed: starts anew
    with pytest.raises(ValueError, match="lr: .*0.0001.*0.0002"):
        command.check_resume(replace(killed, lr=2e-4, resume=True))
