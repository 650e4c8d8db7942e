"""training.py: steps on tables, where π*, J and ∇J are known exactly.

A bandit of two states and a token world of two tokens; float64 where a number is to
be exact, generators with fixed seeds where a run is to arrive.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from rlhf_mini import exact, exact_trees, seeding, training
from rlhf_mini.advantages import gae, group_normalized, leave_one_out
from rlhf_mini.gpt2.pipeline import FixedKL
from rlhf_mini.kl import AdaptiveKL, shape_rewards
from rlhf_mini.logprobs import sequence_sum
from rlhf_mini.losses import grpo_loss, ppo_clip_loss, reinforce_loss
from rlhf_mini.masking import masked_whiten
from rlhf_mini.policies import SequenceCritic, SequencePolicy
from rlhf_mini.rollouts import collect
from rlhf_mini.training import (
    PPOSettings,
    grpo_k1_step,
    grpo_step,
    linear_decay,
    ppo_step,
    reinforce_step,
    rloo_step,
)

V, T, BETA = 3, 2, 0.5
ANSWERS = exact.enumerate_sequences(V, T)
STATES = torch.tensor([0, 1])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeding.make(seed), dtype=torch.float64)


# one reward per state and answer
REWARDS = 0.8 * normal(2, V**T, seed=1)
REWARD_TREE = exact_trees.final_rewards(REWARDS, V)  # paid by the last token


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


class Recorded:
    """Gives answers that are set down instead of sampling some."""

    def __init__(self, policy, tokens):
        self.policy, self.tokens, self.logp = policy, tokens, policy.logp

    def sample(self, prompts, generator):
        found = self.policy.sample(prompts, generator)
        token_logp = self.policy.logp(prompts, self.tokens).detach()
        return replace(found, tokens=self.tokens, logp=token_logp)


def test_the_expected_rloo_gradient_is_the_exact_gradient():
    # rloo_step on each of the 81 possible groups of two, weighted by its chance
    policy, total = make_policy(seed=5), 0.0
    logp = law(policy).detach()

    for state in STATES:
        for i, j, chance in zip(*listed_groups(policy, state), strict=True):
            optimizer = Still(policy.parameters())
            group = Recorded(policy, ANSWERS[torch.stack([i, j])])
            rloo_step(
                group, make_reference(), score, state[None], optimizer, BETA, 2,
                UNCLIPPED, seeding.make(0),
            )  # fmt: skip
            total = total - chance * optimizer.seen[0][0] / len(STATES)
    assert torch.equal(law(policy).detach(), logp)  # Still moved nothing
    torch.testing.assert_close(total, exact_gradient(policy), rtol=0, atol=1e-10)


@pytest.mark.parametrize("baseline", [0.0, 1.7], ids=["none", "a number"])
def test_the_expected_reinforce_gradient_is_the_exact_gradient(baseline):
    policy, total = make_policy(seed=5), 0.0
    chance = law(policy).detach().exp()
    for state in STATES:
        for i in range(V**T):
            optimizer = Still(policy.parameters())
            answer = Recorded(policy, ANSWERS[[i, i]])
            reinforce_step(
                answer, make_reference(), score, state.repeat(2), optimizer, BETA,
                UNCLIPPED, seeding.make(0), baseline=baseline,
            )  # fmt: skip
            total = total - chance[state, i] * optimizer.seen[0][0] / len(STATES)
    torch.testing.assert_close(total, exact_gradient(policy), rtol=0, atol=1e-10)


GROUPS = {"reinforce": reinforce_step, "rloo": rloo_step, "grpo_k1": grpo_k1_step}


@pytest.mark.parametrize("method", ["rloo", "grpo_k1", "baseline", "reinforce"])
def test_at_the_optimum_only_reinforce_without_baseline_is_noisy(method):
    # every penalised reward of a prompt is β log Z there
    star = make_policy()
    tree = exact_trees.soft_policy(make_reference().tree(), REWARD_TREE, BETA)
    star.logits.data = tree.clone()
    log_z = BETA * exact.log_partition(law(make_reference()), REWARDS, BETA)
    optimizer, prompts = Still(star.parameters()), STATES.repeat(8)
    head = star, make_reference(), score, prompts, optimizer, BETA
    if method in ("rloo", "grpo_k1"):
        GROUPS[method](*head, 4, ONCE, seeding.make(0))
    else:
        b = log_z[prompts] if method == "baseline" else 0.0
        reinforce_step(*head, ONCE, seeding.make(0), baseline=b)
    size = optimizer.seen[0][0].abs().max()
    assert size > 0.01 if method == "reinforce" else size < 1e-10


def one_group_update(step, settings=ONCE, group=4):
    """(optimizer, rollout, row, policy) of one iteration from fixed seeds."""
    policy = make_policy(seed=5)  # not the reference: the KL counts
    optimizer, prompts = Still(policy.parameters()), torch.tensor([1, 0, 1])
    row = step(
        policy, make_reference(), score, prompts, optimizer, BETA, group, settings,
        seeding.make(3),
    )  # fmt: skip
    asked = prompts.repeat_interleave(group)
    batch = collect(
        policy, asked, seeding.make(3), reference=make_reference(), score=score
    )
    return optimizer, batch, row, policy


def by_group(x, group=4):
    """Minus the mean and over the std of its own group, by a loop, [B, T]."""
    rows = [
        (g - g.mean()) / (g.square().mean() - g.mean() ** 2).sqrt().add(1e-4)
        for g in x.view(-1, group)
    ]
    return torch.cat(rows)[:, None].expand(-1, T)


def test_grpo_normalises_the_score_alone_and_puts_k3_into_the_loss():
    optimizer, batch, row, policy = one_group_update(grpo_step)
    logp = policy.logp(batch.prompts, batch.tokens)
    d = batch.ref_logp - logp
    k3 = d.exp() - 1 - d
    loss = (-by_group(batch.scores) * (logp - logp.detach()).exp() + BETA * k3).mean()
    (want,) = torch.autograd.grad(loss, policy.logits)
    torch.testing.assert_close(optimizer.seen[0][0], want, rtol=0, atol=1e-12)
    assert row["policy_loss"] == pytest.approx(loss.item())


def test_grpo_with_k1_normalises_the_penalised_reward():
    optimizer, batch, row, policy = one_group_update(grpo_k1_step)
    penalised = batch.scores - BETA * (batch.logp - batch.ref_logp).sum(-1)
    logp = policy.logp(batch.prompts, batch.tokens)
    loss = -(by_group(penalised) * (logp - logp.detach()).exp()).mean()
    (want,) = torch.autograd.grad(loss, policy.logits)
    torch.testing.assert_close(optimizer.seen[0][0], want, rtol=0, atol=1e-12)
    assert row["score"] == pytest.approx(batch.scores.mean().item())


@pytest.mark.parametrize("step", [grpo_step, grpo_k1_step])
def test_a_group_method_goes_over_its_rollout_as_often_as_told(step):
    settings = replace(UNCLIPPED, epochs=3, minibatches=2)
    optimizer, batch, row, _ = one_group_update(step, settings)
    assert len(optimizer.seen) == 6
    assert row["first_ratio_error"] == 0 and row["clipfrac"] == 0  # Still moves nothing
    want = {"score", "kl_to_ref", "objective", "policy_loss", "approx_kl", "clipfrac"}
    assert want <= set(row)


@pytest.mark.parametrize("step", [grpo_step, grpo_k1_step])
def test_a_later_epoch_is_clipped_around_the_policy_that_sampled(step):
    policy = make_policy(seed=5)
    optimizer = torch.optim.SGD(policy.parameters(), lr=5.0)
    prompts, settings = STATES.repeat(4), replace(UNCLIPPED, epochs=2, minibatches=1)
    step(
        policy, make_reference(), score, prompts, optimizer, BETA, 4, settings,
        seeding.make(3),
    )  # fmt: skip
    # the same by hand: two steps on the same rows with the same old log-probs
    other = make_policy(seed=5)
    batch = collect(
        other, prompts.repeat_interleave(4), seeding.make(3),
        reference=make_reference(), score=score,
    )  # fmt: skip
    penalised = batch.scores - BETA * batch.kl_to_ref()
    for _ in range(2):
        logp = other.logp(batch.prompts, batch.tokens)
        if step is grpo_step:
            a = group_normalized(batch.scores.view(-1, 4)).view(-1, 1).expand(-1, T)
            loss = grpo_loss(logp, batch.logp, batch.ref_logp, a, None, BETA)
        else:
            a = group_normalized(penalised.view(-1, 4)).view(-1, 1).expand(-1, T)
            loss = ppo_clip_loss(logp, batch.logp, a)
        (gradient,) = torch.autograd.grad(loss, other.logits)
        other.logits.data -= 5.0 * gradient
    torch.testing.assert_close(policy.logits, other.logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("step", [rloo_step, grpo_step, grpo_k1_step])
@pytest.mark.parametrize("norm", [math.inf, 0.01])
def test_copies_of_a_run_are_independent_if_nothing_is_clipped(step, norm):
    # state 1 plays the part of another seed: its rewards vanish
    ends = []
    for factor in (1.0, 0.0):
        policy = make_policy()
        scale = torch.tensor([1.0, factor], dtype=torch.float64)
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        settings = PPOSettings(max_grad_norm=norm, epochs=2, minibatches=1)
        for i in range(3):
            step(
                policy, make_reference(), lambda r, s=scale: score(r) * s[r.prompts],
                STATES.repeat_interleave(2), optimizer, BETA, 4, settings,
                seeding.make(i),
            )  # fmt: skip
        ends.append(policy.logits.detach()[0])
    moved = (ends[0] - ends[1]).abs().max().item()
    assert moved < 1e-12 if norm == math.inf else moved > 1e-4


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
    training.descend(loss, optimizer, PPOSettings(max_grad_norm=1.0))
    torch.testing.assert_close(actor.data, torch.tensor([-0.6, -0.8]))
    torch.testing.assert_close(critic.data, torch.tensor([-0.3, -0.4]))


def test_the_gradient_of_the_last_update_is_forgotten():
    x = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([x], lr=0.1)
    for _ in range(2):
        training.descend((0.5 * x).sum(), optimizer, PPOSettings())
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
        training.descend(loss(x), optimizer, PPOSettings())
    assert x.tolist() == [1.0, 2.0]


def test_a_norm_of_infinity_clips_nothing():
    x = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([x], lr=1.0)
    loss = (torch.tensor([3e6, 4e6]) * x).sum()
    training.descend(loss, optimizer, PPOSettings(max_grad_norm=math.inf))
    assert x.tolist() == [-3e6, -4e6]


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
        ("max_grad_norm", math.nan), ("max_grad_norm", 0.0),
    ],
)  # fmt: skip
def test_an_impossible_setting_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: want"):
        PPOSettings(**{name: value})
