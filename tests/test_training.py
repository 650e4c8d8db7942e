"""training.py: steps on tables, where π*, J and ∇J are known exactly.

A bandit of two states and a token world of two tokens; float64 where a number is to
be exact, generators with fixed seeds where a run is to arrive.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf_mini import exact, seeding, training
from rlhf_mini.advantages import gae, leave_one_out
from rlhf_mini.annotators import BradleyTerryAnnotator
from rlhf_mini.gpt2.pipeline import FixedKL
from rlhf_mini.kl import AdaptiveKL, shape_rewards
from rlhf_mini.logprobs import sequence_sum
from rlhf_mini.losses import reinforce_loss
from rlhf_mini.masking import masked_whiten
from rlhf_mini.policies import SequenceCritic, SequencePolicy
from rlhf_mini.rollouts import collect
from rlhf_mini.training import (
    PPOSettings,
    dpo_step,
    linear_decay,
    ppo_step,
    reward_model_step,
    rloo_step,
)

V, T, BETA = 3, 2, 0.5
ANSWERS = exact.enumerate_sequences(V, T)
STATES = torch.tensor([0, 1])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeding.make(seed), dtype=torch.float64)


# one reward per state and answer
REWARDS = 0.8 * normal(2, V**T, seed=1)


def make_policy(seed=2):
    policy = SequencePolicy(V, T, states=2, dtype=torch.float64)
    policy.logits.data = normal(*policy.logits.shape, seed=seed)
    return policy


def make_reference():
    return make_policy().requires_grad_(False)


def score(rollout):
    return REWARDS[rollout.prompts, rollout.tokens[:, 0] * V + rollout.tokens[:, 1]]


def law(policy):
    """log π(y|s) of all answers, [2, V^T]."""
    rows = [policy.logp(s.expand(V**T), ANSWERS).sum(-1) for s in STATES]
    return torch.stack(rows)


def gaps(policy, beta=BETA):
    """(gap, attainable gain), both summed over the two states."""
    reference = law(make_reference())
    left = exact.gap(law(policy).detach(), reference, REWARDS, beta).sum().item()
    return left, exact.gap(reference, reference, REWARDS, beta).sum().item()


def exact_gradient(policy, beta=BETA):
    """∇J of the policy's own logits, mean over the states, by autograd of the sum."""
    policy.logits.grad = None
    j = exact.objective(law(policy), law(make_reference()), REWARDS, beta).mean()
    return torch.autograd.grad(j, policy.logits)[0]


class Still(torch.optim.SGD):
    """An optimizer that moves nothing and keeps the gradient of each update."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=1.0)
        self.seen = []

    def step(self):
        self.seen.append(
            [
                p.grad.clone()
                for g in self.param_groups
                for p in g["params"]
                if p.grad is not None
            ]
        )


UNCLIPPED = PPOSettings(max_grad_norm=1e9)
ONCE = replace(UNCLIPPED, epochs=1, minibatches=1)


def run_ppo(iterations, *, beta=BETA, seed=0, rows=128, controller=None, lr=0.05):
    policy, generator = make_policy(), seeding.make(seed)
    critic = SequenceCritic(policy)
    optimizer = torch.optim.Adam(
        [{"params": policy.parameters()}, {"params": critic.parameters()}], lr=lr
    )
    controller = controller or FixedKL(beta)
    settings = PPOSettings(value_weight=1.0, value_clip=10.0, epochs=2, minibatches=2)
    log = []
    for i in range(iterations):
        linear_decay(optimizer, i, iterations)
        log.append(
            ppo_step(
                policy,
                critic,
                make_reference(),
                score,
                STATES.repeat(rows // 2),
                optimizer,
                controller,
                settings,
                generator,
            )  # fmt: skip
        )
    return policy, log


def run_rloo(iterations, *, seed=0):
    policy, generator = make_policy(), seeding.make(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    log = []
    for i in range(iterations):
        linear_decay(optimizer, i, iterations)
        log.append(
            rloo_step(
                policy,
                make_reference(),
                score,
                STATES.repeat(16),
                optimizer,
                BETA,
                4,
                PPOSettings(),
                generator,
            )  # fmt: skip
        )
    return policy, log


# --- every method reaches π* --------------------------------------------------


@pytest.mark.parametrize("run, n", [(run_ppo, 120), (run_rloo, 250)])
def test_the_run_ends_within_one_percent_of_the_optimum(run, n):
    policy, _ = run(n)
    left, attainable = gaps(policy)
    assert left <= 0.01 * attainable, (left, attainable)


def all_pairs():
    """Every state with every ordered pair of different answers, [M]."""
    n = V**T
    s, i, j = torch.meshgrid(STATES, torch.arange(n), torch.arange(n), indexing="ij")
    keep = i != j
    return s[keep], i[keep], j[keep]


def test_dpo_on_bradley_terry_labels_approaches_the_optimum():
    # as many labels of each pair as its chance says: P(i ≻ j) = σ(r_i − r_j)
    reference, generator = make_reference(), seeding.make(0)
    states, i, j = (x.repeat(2) for x in all_pairs())
    annotator = BradleyTerryAnnotator(slope=1.0)
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    ref = law(reference)
    every = torch.ones(len(i), T).bool()
    for step in range(300):
        linear_decay(optimizer, step, 300)
        choice = annotator.choose(
            torch.stack([REWARDS[states, i], REWARDS[states, j]], -1), generator
        )
        won, lost = torch.where(choice == 0, i, j), torch.where(choice == 0, j, i)
        chosen, rejected = ((ANSWERS[y], every, ref[states, y]) for y in (won, lost))
        dpo_step(policy, states, chosen, rejected, optimizer, BETA, UNCLIPPED)
    left, attainable = gaps(policy)
    assert left <= 0.01 * attainable, (left, attainable)


@pytest.mark.parametrize("k", [2, 4])
def test_a_reward_model_recovers_the_differences_of_scores(k):
    generator = seeding.make(0)
    true = REWARDS[0] - REWARDS[0].mean()
    scores = nn.Parameter(torch.zeros_like(true))
    optimizer = torch.optim.Adam([scores], lr=0.1)
    annotator = BradleyTerryAnnotator(slope=1.0)
    for step in range(300):
        linear_decay(optimizer, step, 300)
        slate = torch.rand(512, len(true), generator=generator).argsort(-1)[:, :k]
        choice = annotator.choose(true[slate], generator)
        reward_model_step(scores[slate], choice, optimizer, PPOSettings())
    found = scores.detach() - scores.detach().mean()  # the constant is free
    assert (found - true).abs().max().item() < 0.15


# --- gradients ----------------------------------------------------------------


def gradient_of_one_ppo_update(settings, prompts, seed=0):
    policy = make_policy(seed=5)  # not the reference: the KL counts
    critic = SequenceCritic(policy)
    critic.table.data = normal(*critic.table.shape, seed=6)
    optimizer = Still([*policy.parameters(), *critic.parameters()])
    generator = seeding.make(seed)
    row = ppo_step(
        policy, critic, make_reference(), score, prompts, optimizer, FixedKL(BETA),
        settings, generator,
    )  # fmt: skip
    batch = collect(
        policy, prompts, seeding.make(seed), reference=make_reference(),
        critic=critic, score=score,
    )  # fmt: skip
    return policy, critic, batch, optimizer.seen, row


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("lam, gamma", [(0.95, 1.0), (0.5, 0.9)])
def test_the_first_ppo_update_has_the_gradient_of_reinforce(lam, gamma, whiten):
    settings = replace(ONCE, lam=lam, gamma=gamma, whiten=whiten)
    policy, _, batch, seen, row = gradient_of_one_ppo_update(
        settings, STATES.repeat(20)
    )
    rewards = shape_rewards(batch.scores, batch.logp, batch.ref_logp, batch.mask, BETA)
    advantages, _ = gae(rewards, batch.values, batch.mask, gamma, lam)
    logp = policy.logp(batch.prompts, batch.tokens)
    if whiten:
        advantages = masked_whiten(advantages, None)
    loss = reinforce_loss(logp, advantages)
    (want,) = torch.autograd.grad(loss, policy.logits)
    torch.testing.assert_close(seen[0][0], want, rtol=0, atol=1e-12)
    assert row["first_ratio_error"] == 0 and row["clipfrac"] == 0


def test_the_critic_learns_returns_on_the_scale_of_the_rewards():
    # the defect: returns taken after whitening; λ = 1 makes them Monte Carlo returns
    policy, critic, batch, seen, _ = gradient_of_one_ppo_update(
        replace(ONCE, lam=1.0, value_clip=1e9), STATES.repeat(20)
    )
    # by hand: from t on, the score minus β times the log-ratios still to come
    ratio = batch.logp - batch.ref_logp
    returns = torch.stack(
        [batch.scores - BETA * ratio.sum(-1), batch.scores - BETA * ratio[:, 1]], -1
    )
    values = critic(batch.prompts, batch.tokens)
    loss = 0.1 * (values - returns).square().mean() / 2
    (want,) = torch.autograd.grad(loss, critic.table)
    torch.testing.assert_close(seen[0][1], want, rtol=0, atol=1e-12)
    whitened = masked_whiten(returns - values.detach(), None) + values.detach()
    wrong = 0.1 * (critic(batch.prompts, batch.tokens) - whitened).square().mean() / 2
    (bug,) = torch.autograd.grad(wrong, critic.table)
    assert (bug - want).abs().max() > 0.01  # the planted bug would have been seen


def listed_groups(policy, state):
    """Every pair of answers to a state, with its chance under the policy, [M]."""
    p = law(policy)[state].detach().exp()
    i, j = torch.meshgrid(torch.arange(V**T), torch.arange(V**T), indexing="ij")
    i, j = i.flatten(), j.flatten()
    return i, j, p[i] * p[j]


def test_the_expected_rloo_gradient_is_the_exact_gradient():
    # rloo_step on each of the 81 possible groups of two, weighted by its chance
    policy, total = make_policy(seed=5), 0.0
    logp = law(policy).detach()

    class Recorded:
        """Returns a given group instead of sampling one."""

        def __init__(self, state, rows):
            self.state, self.rows = state, rows

        def sample(self, prompts, generator):
            found = policy.sample(prompts, generator)
            tokens = ANSWERS[self.rows]
            token_logp = policy.logp(prompts, tokens).detach()
            return replace(found, tokens=tokens, logp=token_logp)

        logp = staticmethod(policy.logp)

    for state in STATES:
        for i, j, chance in zip(*listed_groups(policy, state), strict=True):
            optimizer = Still(policy.parameters())
            group = Recorded(state, torch.stack([i, j]))
            rloo_step(
                group, make_reference(), score, state[None], optimizer, BETA, 2,
                UNCLIPPED, seeding.make(0),
            )  # fmt: skip
            total = total - chance * optimizer.seen[0][0] / len(STATES)
    assert torch.equal(law(policy).detach(), logp)  # Still moved nothing
    torch.testing.assert_close(total, exact_gradient(policy), rtol=0, atol=1e-10)


def test_rloo_takes_the_baseline_from_the_other_answers_to_the_same_prompt():
    policy, optimizer = make_policy(seed=5), None
    optimizer = Still(policy.parameters())
    prompts = torch.tensor([1, 0, 1])
    rloo_step(
        policy, make_reference(), score, prompts, optimizer, BETA, 4, UNCLIPPED,
        seeding.make(3),
    )  # fmt: skip
    repeated = prompts.repeat_interleave(4)
    batch = collect(policy, repeated, seeding.make(3), reference=make_reference())
    penalised = score(batch) - BETA * batch.kl_to_ref()
    by_hand = torch.stack(
        [
            penalised[i] - penalised[[j for j in near if j != i]].mean()
            for near in torch.arange(12).view(3, 4).tolist()
            for i in near
        ]
    )
    torch.testing.assert_close(
        by_hand, leave_one_out(penalised.view(3, 4)).view(-1), rtol=0, atol=1e-12
    )
    logp = sequence_sum(policy.logp(batch.prompts, batch.tokens), None)
    (want,) = torch.autograd.grad(-(by_hand * logp).mean(), policy.logits)
    torch.testing.assert_close(optimizer.seen[0][0], want, rtol=0, atol=1e-12)


def test_the_first_dpo_update_is_ln_two_and_pulls_the_two_answers_apart():
    policy, reference = make_policy(), make_reference()
    optimizer, ref, every = Still(policy.parameters()), law(reference), torch.ones(1, T)
    chosen = (ANSWERS[4:5], every.bool(), ref[0, 4:5])
    rejected = (ANSWERS[7:8], every.bool(), ref[0, 7:8])
    row = dpo_step(policy, STATES[:1], chosen, rejected, optimizer, BETA, UNCLIPPED)
    assert row["dpo_loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert row["margin"] == pytest.approx(0, abs=1e-12)
    assert row["chosen_logp"] == pytest.approx(ref[0, 4].item())
    assert row["rejected_logp"] == pytest.approx(ref[0, 7].item())
    # ∇ = −β σ(0) (∇ log π(y_w) − ∇ log π(y_l))
    h = law(policy)[0, 4] - law(policy)[0, 7]
    (want,) = torch.autograd.grad(-BETA * h / 2, policy.logits)
    torch.testing.assert_close(optimizer.seen[0][0], want, rtol=0, atol=1e-12)


def test_dpo_with_a_larger_beta_stays_closer_to_the_reference():
    kl, ref = [], law(make_reference())
    for beta in (0.1, 0.5, 2.0):
        policy = make_policy()
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
        states, i, j = all_pairs()
        won = torch.where(REWARDS[states, i] > REWARDS[states, j], i, j)
        lost = torch.where(won == i, j, i)
        every = torch.ones(len(i), T).bool()
        for _ in range(40):
            dpo_step(
                policy, states, (ANSWERS[won], every, ref[states, won]),
                (ANSWERS[lost], every, ref[states, lost]), optimizer, beta, UNCLIPPED,
            )  # fmt: skip
        kl.append((law(policy).exp() * (law(policy) - ref)).sum().item())
    assert kl[0] > kl[1] > kl[2]


def test_a_reward_model_step_descends_the_cross_entropy_of_the_choice():
    scores = nn.Parameter(torch.tensor([[0.5, -1.0, 0.2], [0.0, 2.0, 0.3]]))
    choice, optimizer = torch.tensor([0, 2]), Still([scores])
    row = reward_model_step(scores * 1, choice, optimizer, UNCLIPPED)
    want = nn.functional.cross_entropy(scores, choice)
    assert row["loss"] == pytest.approx(want.item())
    assert row["accuracy"] == 0.5
    (gradient,) = torch.autograd.grad(want, scores)
    torch.testing.assert_close(optimizer.seen[0][0], gradient)


# --- what a step reports ------------------------------------------------------


def test_a_ppo_row_reports_the_rollout_before_the_update():
    _, _, batch, _, row = gradient_of_one_ppo_update(ONCE, STATES.repeat(20))
    kl = (batch.logp - batch.ref_logp).sum(-1)
    assert row["score"] == pytest.approx(batch.scores.mean().item())
    assert row["kl_to_ref"] == pytest.approx(kl.mean().item())
    assert row["objective"] == pytest.approx((batch.scores - BETA * kl).mean().item())
    assert row["entropy"] == pytest.approx(batch.entropy.mean().item())
    assert row["length"] == T and row["beta"] == BETA
    assert row["approx_kl"] == 0
    assert all(type(x) is float for x in row.values()), row


def test_one_epoch_sees_every_row_once_and_the_next_in_another_order(monkeypatch):
    seen, policy = [], make_policy()
    inner = policy.logp
    monkeypatch.setattr(
        policy, "logp", lambda p, t, m: (seen.append(t), inner(p, t, m))[1]
    )
    critic = SequenceCritic(policy)
    optimizer = Still([*policy.parameters(), *critic.parameters()])
    settings = PPOSettings(epochs=2, minibatches=4)
    prompts, generator = STATES.repeat(5), seeding.make(0)
    reference = make_reference()
    ppo_step(
        policy, critic, reference, score, prompts, optimizer, FixedKL(1.0), settings,
        generator,
    )  # fmt: skip
    assert len(seen) == len(optimizer.seen) == 8
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert first.shape == (10, T) and not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


class Recorder(AdaptiveKL):
    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def update(self, kl, n):
        self.calls.append((kl, n))
        return super().update(kl, n)


def test_the_controller_is_fed_the_kl_per_sequence_and_the_number_of_sequences():
    # the defect: a mean per token, smaller by the length
    controller = Recorder(BETA, 3.0, 1_000.0)
    policy, log = run_ppo(3, controller=controller, rows=64)
    assert [c[0] for c in controller.calls] == [row["kl_to_ref"] for row in log]
    assert [c[1] for c in controller.calls] == [64] * 3
    assert log[0]["kl_to_ref"] == pytest.approx(0, abs=1e-12)
    # β of the next row follows Ziegler's rule from the KL of this one
    for row, after in zip(log, log[1:], strict=False):
        error = min(max(row["kl_to_ref"] / 3.0 - 1, -0.2), 0.2)
        assert after["beta"] == pytest.approx(row["beta"] * (1 + error * 0.064))


def test_a_mean_score_kl_is_that_of_whole_answers():
    policy = make_policy(seed=5)
    reference = make_reference()
    batch = collect(policy, STATES.repeat(4_000), seeding.make(0), reference=reference)
    p, q = law(policy).detach(), law(reference)
    truth = (p.exp() * (p - q)).sum(-1).mean().item()
    found = batch.kl_to_ref()
    error = found.std().item() / len(found) ** 0.5
    assert abs(found.mean().item() - truth) < 4 * error


@pytest.mark.parametrize("run", [run_ppo, run_rloo])
def test_the_same_seed_runs_the_same_and_another_does_not(run):
    (first, log), (second, again), (third, _) = run(3), run(3), run(3, seed=1)
    assert torch.equal(first.logits, second.logits)
    assert not torch.equal(first.logits, third.logits)
    for a, b in zip(log, again, strict=True):
        assert {k: v for k, v in a.items() if "seconds" not in k} == {
            k: v for k, v in b.items() if "seconds" not in k
        }


# --- the update itself --------------------------------------------------------


def test_linear_decay_goes_from_the_first_rate_to_zero():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.8}, {"params": [b]}], lr=0.2)
    rates = []
    for step in (0, 1, 2, 4):
        linear_decay(optimizer, step, 4)
        rates.append([g["lr"] for g in optimizer.param_groups])
    want = [[0.8, 0.2], [0.6, 0.15], [0.4, 0.1], [0.0, 0.0]]
    assert rates == [pytest.approx(w) for w in want]


def test_actor_and_critic_are_clipped_apart():
    # one norm for both would let the larger gradient starve the other
    actor, critic = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [actor]}, {"params": [critic]}], lr=1.0)
    loss = (
        torch.tensor([30.0, 40.0]) * actor + torch.tensor([0.3, 0.4]) * critic
    ).sum()
    training._descend(loss, optimizer, PPOSettings(max_grad_norm=1.0))
    torch.testing.assert_close(actor.data, torch.tensor([-0.6, -0.8]))
    torch.testing.assert_close(critic.data, torch.tensor([-0.3, -0.4]))


def test_the_gradient_of_the_last_update_is_forgotten():
    x = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([x], lr=0.1)
    for _ in range(2):
        training._descend((0.5 * x).sum(), optimizer, PPOSettings())
    assert x.item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda x: (x * math.nan).sum(), "loss: found nan; the update was not made"),
        (lambda x: (x / 0).sum(), "loss: found inf"),
        # √0: a finite loss with an infinite slope
        (lambda x: (x - x.detach()).abs().sqrt().sum(), "gradient: norm (nan|inf)"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_a_loss_that_is_not_finite_raises_and_changes_no_parameter(loss, message):
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.Adam([x], lr=0.1)
    with pytest.raises(ValueError, match=message):
        training._descend(loss(x), optimizer, PPOSettings())
    assert x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_score_of_nan_raises_and_changes_no_parameter(method):
    policy, reference = make_policy(), make_reference()
    critic = SequenceCritic(policy)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()])
    nan = lambda r: score(r) * math.nan  # noqa: E731
    tail = optimizer, FixedKL(BETA), PPOSettings(), seeding.make(0)
    with pytest.raises(ValueError, match="found nan"):
        if method == "ppo":
            ppo_step(policy, critic, reference, nan, STATES, *tail)
        else:
            rloo_step(policy, reference, nan, STATES, optimizer, BETA, 2, *tail[2:])
    assert torch.equal(policy.logits, make_policy().logits)


def test_scores_of_a_wrong_shape_raise_before_any_update():
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters())
    with pytest.raises(ValueError, match=r"scores \[4, 1\], rows \[4\]"):
        rloo_step(
            policy, make_reference(), lambda r: score(r)[:, None], STATES, optimizer,
            BETA, 2, PPOSettings(), seeding.make(0),
        )  # fmt: skip


def test_a_group_of_one_has_nobody_to_be_compared_with():
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters())
    with pytest.raises(ValueError, match="want G ≥ 2"):
        rloo_step(
            policy, make_reference(), score, STATES, optimizer, BETA, 1, PPOSettings(),
            seeding.make(0),
        )  # fmt: skip


@pytest.mark.parametrize(
    "name, value",
    [
        ("gamma", 1.1), ("gamma", -0.1), ("lam", 2.0), ("clip_eps", 0.0),
        ("value_clip", -1.0), ("epochs", 0), ("minibatches", 0),
        ("max_grad_norm", math.nan),
    ],
)  # fmt: skip
def test_an_impossible_setting_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: want"):
        PPOSettings(**{name: value})
