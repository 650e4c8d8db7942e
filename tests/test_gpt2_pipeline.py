"""gpt2/pipeline.py: the stages on a tiny world; a killed run loses nothing."""

import json

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.gpt2 import checkpoints, pipeline
from rlhf_mini.gpt2.pipeline import (
    FixedKL,
    adam,
    make_comparisons,
    make_reward_model,
    run_dpo,
    run_ppo,
    run_rloo,
)
from rlhf_mini.kl import AdaptiveKL

STEP = {"ppo": "ppo_step", "rloo": "rloo_step", "dpo": "dpo_step"}


@pytest.fixture(scope="module")
def data(make_world):
    return make_comparisons(make_world(), 24)


@pytest.fixture
def run(data, reward_model):
    def start(method, world, **options):
        if method == "dpo":
            return run_dpo(world, data, **options)
        return {"ppo": run_ppo, "rloo": run_rloo}[method](
            world, reward_model, **options
        )

    return start


def timeless(rows):
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows
    ]


def read_rows(folder):
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# --- comparisons and reward model ---------------------------------------------


def test_comparisons_are_answers_of_the_reference_judged_by_gold(make_world):
    world = make_world(answers=3, seed=7)
    data = make_comparisons(world, 20)
    assert data.tokens.shape[1:] == (3, 5)
    logp = world.reference.logp(data.prompts, data.tokens[:, 2], data.mask[:, 2])
    torch.testing.assert_close(logp.sum(-1), data.ref_logp[:, 2], atol=1e-4, rtol=0)
    again, other = make_comparisons(world, 20), make_comparisons(world, 20, seed=8)
    assert torch.equal(data.tokens, again.tokens)
    assert not torch.equal(data.prompts[:10], other.prompts[:10])


def test_comparisons_can_be_of_another_policy(make_world):
    world = make_world()
    policy = world.policy()
    policy.model.lm_head.weight.data[5:20] *= 1.5
    data = make_comparisons(world, 20, policy)
    logp = policy.logp(data.prompts, data.tokens[:, 0], data.mask[:, 0])
    torch.testing.assert_close(logp.sum(-1), data.ref_logp[:, 0], atol=1e-4, rtol=0)


def test_a_reward_model_is_frozen_and_normalised_on_fresh_answers(make_world, data):
    world = make_world()
    scorer = make_reward_model(world, data)
    assert not any(p.requires_grad for p in scorer.parameters())
    prompts = world.draw_prompts(800, seeding.make(99))
    scores = scorer.score(world.reference.sample(prompts, seeding.make(99)))
    assert abs(scores.mean().item()) < 0.2
    assert scores.std().item() == pytest.approx(1, abs=0.15)


def test_a_reward_model_can_go_on_from_another_which_stays_as_it_is(
    make_world, data, reward_model
):
    before = {k: v.clone() for k, v in reward_model.state_dict().items()}
    scorer = make_reward_model(make_world(), data, start=reward_model)
    assert not same_weights(scorer, reward_model)
    after = reward_model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert reward_model.model.config.reward_shift == 0.0


# --- runs ---------------------------------------------------------------------

KEYS = {
    "ppo": {
        "score", "kl_to_ref", "objective", "entropy", "length", "beta", "policy_loss",
        "value_loss", "approx_kl", "clipfrac", "explained_variance", "gold",
        "seconds_judges", "first_ratio_error", "distinct_2",
    },
    "rloo": {"score", "kl_to_ref", "objective", "policy_loss", "first_ratio_error"},
    "dpo": {"dpo_loss", "margin", "accuracy", "chosen_logp", "rejected_logp"},
}  # fmt: skip


@pytest.mark.parametrize("method", KEYS)
def test_a_run_moves_the_policy_and_logs_every_step(run, make_world, method, tmp_path):
    world = make_world(method=method)
    policy, rows = run(method, world, folder=tmp_path)
    assert not same_weights(policy, world.reference)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row.keys() >= KEYS[method] for row in rows)
    assert read_rows(tmp_path) == rows
    if method == "dpo":
        assert rows[0]["dpo_loss"] == pytest.approx(0.6931, abs=1e-4)
    else:  # step 0: the policy is the reference
        assert rows[0]["kl_to_ref"] == pytest.approx(0, abs=1e-4)
        assert max(row["first_ratio_error"] for row in rows) < 1e-4


@pytest.mark.parametrize("method", KEYS)
def test_a_run_of_one_seed_is_one_run(run, make_world, method):
    world = make_world(method=method, steps=2)
    (first, rows), (second, again) = run(method, world), run(method, world)
    other, _ = run(method, world.change(seed=1))
    assert same_weights(first, second) and not same_weights(first, other)
    assert timeless(rows) == timeless(again)


def test_the_batch_of_rloo_is_counted_in_answers(run, make_world, monkeypatch):
    seen = []
    inner = pipeline.rloo_step
    monkeypatch.setattr(
        pipeline, "rloo_step", lambda *a: (seen.append((len(a[3]), a[6])), inner(*a))[1]
    )
    run("rloo", make_world(method="rloo", steps=1, batch=12, group=3))
    assert seen == [(4, 3)]


def test_a_run_can_start_from_a_given_policy(run, make_world):
    world = make_world(method="dpo", steps=1)
    start = world.policy()
    policy, _ = run("dpo", world, policy=start)
    assert policy is start


def test_the_critic_starts_as_the_reward_model_and_leaves_it_alone(
    run, make_world, reward_model
):
    before = {k: v.clone() for k, v in reward_model.state_dict().items()}
    run("ppo", make_world(steps=1))
    after = reward_model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_the_learning_rate_falls_to_zero(run, make_world, monkeypatch):
    rates = []
    inner = pipeline.ppo_step
    monkeypatch.setattr(
        pipeline, "ppo_step",
        lambda *a: (rates.append([g["lr"] for g in a[5].param_groups]), inner(*a))[1],
    )  # fmt: skip
    run("ppo", make_world(lr=1e-3, critic_lr=2e-3))
    want = [[1e-3 * (1 - i / 4), 2e-3 * (1 - i / 4)] for i in range(4)]
    assert rates == [pytest.approx(w) for w in want]


@pytest.mark.parametrize("target, moves", [(0.0, False), (0.05, True)])
def test_beta_moves_only_towards_a_target(run, make_world, target, moves):
    _, rows = run("ppo", make_world(target_kl=target, horizon=64.0))
    assert (len({row["beta"] for row in rows}) > 1) == moves


def test_adam_has_a_group_for_each_module_and_the_published_epsilon():
    a, b = torch.nn.Linear(2, 3), torch.nn.Linear(4, 1)
    optimizer = adam([a, b], [0.1, 0.2])
    groups = optimizer.param_groups
    assert [g["lr"] for g in groups] == [0.1, 0.2]
    assert [len(g["params"]) for g in groups] == [2, 2]
    assert all(g["eps"] == 1e-5 and g["weight_decay"] == 0 for g in groups)


def test_a_fixed_weight_has_the_interface_of_the_adaptive_one():
    fixed, adaptive = FixedKL(0.3), AdaptiveKL(0.3, 6.0, 100.0)
    fixed.update(50.0, 10)
    adaptive.update(50.0, 10)
    assert fixed.beta == 0.3 < adaptive.beta
    other = FixedKL(9.0)
    other.load_state_dict(fixed.state_dict())
    assert other.beta == 0.3


# --- kill and resume ----------------------------------------------------------


def killed(monkeypatch, method, after):
    """The method's step is killed when it is called once more than `after` times."""
    calls, inner = [], getattr(pipeline, STEP[method])

    def step(*args):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return inner(*args)

    monkeypatch.setattr(pipeline, STEP[method], step)


@pytest.mark.parametrize(
    "method, options, after",
    [
        ("ppo", {}, 3),  # between two checkpoints
        ("ppo", {"target_kl": 0.05, "horizon": 64.0}, 2),  # just after one
        ("rloo", {}, 3),
        ("dpo", {}, 3),
        ("dpo", {}, 1),  # before the first
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(
    run, make_world, monkeypatch, tmp_path, method, options, after
):
    world = make_world(method=method, **options)
    whole, rows = run(method, world, folder=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed(patch, method, after)
        run(method, world, folder=tmp_path / "cut")
    assert len(read_rows(tmp_path / "cut")) == after
    resumed, again = run(method, world.change(resume=True), folder=tmp_path / "cut")
    assert same_weights(whole, resumed)
    assert timeless(rows) == timeless(again) == timeless(read_rows(tmp_path / "cut"))


def test_a_finished_run_has_nothing_to_resume(run, make_world, monkeypatch, tmp_path):
    world = make_world(method="dpo", steps=3)  # no multiple of checkpoint_every
    first, rows = run("dpo", world, folder=tmp_path)
    killed(monkeypatch, "dpo", 0)
    again, logged = run("dpo", world.change(resume=True), folder=tmp_path)
    assert same_weights(first, again) and logged == rows


def test_without_resume_a_run_begins_anew(run, make_world, tmp_path):
    world = make_world(method="dpo", steps=2)
    first, rows = run("dpo", world, folder=tmp_path)
    again, logged = run("dpo", world, folder=tmp_path)
    assert same_weights(first, again) and timeless(rows) == timeless(logged)
    assert len(read_rows(tmp_path)) == 2


def test_a_resume_from_a_damaged_checkpoint_names_it(run, make_world, tmp_path):
    world = make_world(method="dpo", steps=2)
    run("dpo", world, folder=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="checkpoint.safetensors: not a whole"):
        run("dpo", world.change(resume=True), folder=tmp_path)


def test_a_checkpoint_knows_all_that_a_run_needs(run, make_world, tmp_path):
    run("ppo", make_world(steps=2), folder=tmp_path)
    saved = checkpoints.load(tmp_path / "checkpoint.safetensors")
    assert set(saved) == {
        "policy", "critic", "optimizer", "controller", "generator", "rows",
    }  # fmt: skip


def test_a_run_without_a_folder_leaves_nothing(run, make_world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("dpo", make_world(method="dpo", steps=2))
    assert list(tmp_path.iterdir()) == []
