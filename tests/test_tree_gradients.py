"""tree_gradients.py: means by autograd, variances by listing, GAE by its own loop."""

import itertools

import pytest
import torch
from test_exact_trees import F64, close, ended_tree, numbers, on_paths, tree

from rlhf_mini import exact
from rlhf_mini.advantages import gae, leave_one_out, reward_to_go
from rlhf_mini.exact_trees import (
    final_rewards,
    future_kl,
    log_ratio,
    sequence_logp,
    state_values,
    token_values,
)
from rlhf_mini.policies import SequencePolicy
from rlhf_mini.tree_gradients import (
    expected_gae,
    expected_gradient,
    gradient_moments,
    leave_one_out_variance,
    optimal_baseline,
    prefix_numbers,
)

LAW, EVERY = tree(2, 3), exact.enumerate_sequences(2, 3)


def score_vectors(law, tokens):
    """∇ log π(y) of each answer by autograd, [M, N·V]: the slow way round."""
    policy = SequencePolicy(law.shape[-1], tokens.shape[1], dtype=F64)
    policy.logits.data[0] = law
    rows = []
    for row in tokens:
        logp = policy.logp(torch.tensor([0]), row[None]).sum()
        rows.append(torch.autograd.grad(logp, policy.logits)[0].flatten())
    return torch.stack(rows)


# ------------------------------------------------------------------------------ means


def test_the_exact_gradient_is_that_of_autograd():
    logits, scores = (2 * LAW).requires_grad_(), numbers(8)
    law = logits.log_softmax(-1)
    expected_reward = (sequence_logp(law).exp() * scores).sum()
    (right,) = torch.autograd.grad(expected_reward, logits)
    law = law.detach()
    close(expected_gradient(law, token_values(law, final_rewards(scores, 2))), right)


def test_with_the_penalty_in_the_reward_it_is_the_gradient_of_the_objective():
    logits, scores, ref, beta = (
        LAW.clone().requires_grad_(),
        numbers(8),
        tree(2, 3, 1),
        2,
    )
    law = logits.log_softmax(-1)
    j = exact.objective(sequence_logp(law), sequence_logp(ref), scores, beta)
    (right,) = torch.autograd.grad(j, logits)
    law = law.detach()
    rewards = final_rewards(scores, 2) - beta * log_ratio(law, ref)
    close(expected_gradient(law, token_values(law, rewards)), right)


def test_without_later_kl_it_misses_a_covariance():
    """Bias at s: + β Cov_π(∇ log π(a|s), KL of later tokens)."""
    ref, beta = tree(2, 3, 1), 0.5
    rewards, own = final_rewards(numbers(8), 2), log_ratio(LAW, ref)
    full = expected_gradient(LAW, token_values(LAW, rewards - beta * own))
    partial = expected_gradient(LAW, token_values(LAW, rewards) - beta * own)
    close(partial - full, beta * expected_gradient(LAW, future_kl(LAW, ref)))
    assert (partial - full).norm() > 0.01
    assert (partial - full)[3:].abs().max() < 1e-14  # the last token is right


def test_a_constant_per_prefix_changes_nothing():
    q = token_values(LAW, final_rewards(numbers(8), 2))
    shifted = q + numbers(7, 1, seed=9)
    close(expected_gradient(LAW, shifted), expected_gradient(LAW, q))


def test_listed_answers_have_the_mean_of_the_recursion():
    scores = numbers(8)
    mean, _ = gradient_moments(LAW, EVERY, scores[:, None].expand(8, 3))
    close(mean, expected_gradient(LAW, token_values(LAW, final_rewards(scores, 2))))


def test_the_prefix_numbers_are_those_of_the_tabular_policy():
    every = exact.enumerate_sequences(3, 4)
    assert torch.equal(prefix_numbers(every, 3), SequencePolicy(3, 4).nodes(every))


# -------------------------------------------------------------------------- variances


@pytest.mark.parametrize("kind", ["one number per answer", "one per token"])
def test_the_variance_is_that_of_score_vectors_by_autograd(kind):
    c = numbers(8, 3) if kind == "one per token" else numbers(8, 1).expand(8, 3)
    mean, variance = gradient_moments(LAW, EVERY, c)
    p = sequence_logp(LAW).exp()
    if kind == "one per token":  # the score of each token alone
        policy = SequencePolicy(2, 3, dtype=F64)
        policy.logits.data[0] = LAW
        rows = []
        for row, weight in zip(EVERY, c, strict=True):
            loss = (policy.logp(torch.tensor([0]), row[None])[0] * weight).sum()
            rows.append(torch.autograd.grad(loss, policy.logits)[0].flatten())
        g = torch.stack(rows)
    else:
        g = c[:, :1] * score_vectors(LAW, EVERY)
    right = p @ g
    close(mean.flatten(), right)
    close(variance, p @ (g - right).square().sum(-1))


def variance_with(law, rewards, baseline):
    """Of the reward to go minus a number per prefix."""
    to_go = reward_to_go(on_paths(rewards, 2, 3), None)
    baseline = baseline[prefix_numbers(EVERY, 2)]
    return gradient_moments(law, EVERY, to_go - baseline)[1]


def test_no_baseline_per_prefix_beats_the_optimal_one():
    rewards = numbers(7, 2)
    best = optimal_baseline(LAW, token_values(LAW, rewards))
    least = variance_with(LAW, rewards, best)
    for node in range(7):
        for step in (-0.1, 0.1):
            other = best.clone()
            other[node] += step
            assert variance_with(LAW, rewards, other) > least + 1e-5


def test_the_exact_critic_is_optimal_only_where_all_scores_are_equally_long():
    rewards, half = numbers(7, 2), torch.full((7, 2), 0.5, dtype=F64).log()
    for law in (half, LAW):
        q = token_values(law, rewards)
        v = state_values(law, q)
        assert torch.allclose(optimal_baseline(law, q), v) == (law is half)
    # an exact critic that costs more than one number for the whole prompt
    rewards = final_rewards(numbers(8), 2)
    v = state_values(LAW, token_values(LAW, rewards))
    critic, mean = (variance_with(LAW, rewards, b) for b in (v, v[:1].expand(7)))
    assert critic > 1.01 * mean


@pytest.mark.parametrize("group", [2, 3])
def test_the_price_of_the_group_mean_is_that_of_all_groups(group):
    """Every group of G answers of a tree with four answers, listed with its law."""
    law, every, scores = tree(2, 2), exact.enumerate_sequences(2, 2), numbers(4)
    p, s = sequence_logp(law).exp(), score_vectors(law, every)
    estimates, weights = [], []
    for answers in itertools.product(range(4), repeat=group):
        rows = torch.tensor(answers)
        advantages = leave_one_out(scores[rows][None])[0]
        estimates.append((advantages[:, None] * s[rows]).mean(0))
        weights.append(p[rows].prod())
    g, w = torch.stack(estimates), torch.stack(weights)
    variance = w @ (g - w @ g).square().sum(-1)
    close(leave_one_out_variance(law, every, scores, group), group * variance)


def test_a_large_group_costs_what_the_exact_mean_costs():
    scores = numbers(8)
    mean = (sequence_logp(LAW).exp() * scores).sum()
    _, right = gradient_moments(LAW, EVERY, (scores - mean)[:, None].expand(8, 3))
    found = leave_one_out_variance(LAW, EVERY, scores, 10**12)
    torch.testing.assert_close(found, right, rtol=1e-9, atol=0)
    assert leave_one_out_variance(LAW, EVERY, scores, 2) > 1.05 * right


# -------------------------------------------------------------------------------- GAE


@pytest.mark.parametrize("gamma,lam", [(1.0, 0.95), (1.0, 0.0), (0.9, 0.5), (0.7, 1)])
def test_expected_gae_is_the_mean_of_gae_over_all_answers(gamma, lam):
    rewards, values = numbers(7, 2), numbers(7, seed=8)
    found = expected_gae(LAW, rewards, values, gamma, lam)
    nodes, p = prefix_numbers(EVERY, 2), sequence_logp(LAW).exp()
    a, _ = gae(on_paths(rewards, 2, 3), values[nodes], None, gamma, lam)
    for t in range(3):
        for node in nodes[:, t].unique():
            for token in (0, 1):
                rows = (nodes[:, t] == node) & (EVERY[:, t] == token)
                right = (p * a[:, t])[rows].sum() / p[rows].sum()
                close(found[node, token], right)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_exact_values_every_lambda_gives_the_exact_advantage(lam):
    rewards = numbers(7, 2)
    for gamma in (1.0, 0.8):
        q = token_values(LAW, rewards, gamma)
        v = state_values(LAW, q)
        close(expected_gae(LAW, rewards, v, gamma, lam), q - v[:, None])


def test_at_two_tokens_the_bias_is_one_minus_lambda_times_the_critics_error():
    law, rewards = tree(2, 2), final_rewards(numbers(4), 2)
    q, values = token_values(law, rewards), numbers(3, seed=8)
    error = values - state_values(law, q)
    # V̂ − V of the second prefix, seen from the first token
    after = torch.zeros(3, 2, dtype=F64)
    after[0] = error[1:]
    for lam in (0.0, 0.3, 0.95, 1.0):
        a = expected_gae(law, rewards, values, lam=lam)
        bias = expected_gradient(law, a) - expected_gradient(law, q)
        close(bias, (1 - lam) * expected_gradient(law, after))
    assert expected_gradient(law, after).norm() > 0.1


def test_many_trees_cost_one_call():
    law, rewards = tree(2, 3, batch=(4,)), numbers(7, 2)
    q = token_values(law, rewards)
    values = state_values(law, q)
    close(expected_gradient(law, q)[2], expected_gradient(law[2], q[2]))
    together = expected_gae(law, rewards, values, lam=0.3)
    close(together[2], expected_gae(law[2], rewards, values[2], lam=0.3))
    mean, variance = gradient_moments(law, EVERY, numbers(8, 3))
    assert mean.shape == law.shape and variance.shape == (4,)
    close(variance[2], gradient_moments(law[2], EVERY, numbers(8, 3))[1])
    scores = leave_one_out_variance(law, EVERY, numbers(8), 3)
    close(scores[2], leave_one_out_variance(law[2], EVERY, numbers(8), 3))


def test_answers_that_end_early_are_listed_once():
    law = ended_tree()
    alive = EVERY[sequence_logp(law) > -torch.inf]
    assert alive.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    c = numbers(4, 3)
    mean, variance = gradient_moments(law, alive, c)
    # all eight, four of them of probability 0, with anything for their coefficients
    padded = torch.full((8, 3), 1e6, dtype=F64)
    padded[sequence_logp(law) > -torch.inf] = c
    close(gradient_moments(law, EVERY, padded)[0], mean)
    close(gradient_moments(law, EVERY, padded)[1], variance)
    assert not mean[[1, 3, 5]].any()  # a pad has no score


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: expected_gradient(LAW, torch.zeros(3)), "q: want"),
        (lambda: optimal_baseline(LAW, torch.zeros(3)), "q: want"),
        (lambda: expected_gradient(LAW + 1, LAW), "logp: want a law"),
        (lambda: prefix_numbers(torch.zeros(2, 2), 2), "tokens: want an integer"),
        (lambda: prefix_numbers(torch.tensor([1, 2]), 2), "tokens: want 2 axes"),
        (lambda: prefix_numbers(torch.tensor([[1, 2]]), 2), "tokens: want 0 to 1"),
        (lambda: gradient_moments(LAW, EVERY[1:], torch.zeros(7, 3)), "every answer"),
        (lambda: gradient_moments(LAW, EVERY, torch.zeros(8)), "coefficients .8."),
        (
            lambda: gradient_moments(LAW, EVERY, torch.full((8, 3), torch.nan)),
            "coefficients: found nan",
        ),
        (
            lambda: gradient_moments(LAW, exact.enumerate_sequences(2, 4), LAW),
            "shapes do not fit: tokens",
        ),
        (lambda: leave_one_out_variance(LAW, EVERY, numbers(8), 1), "group: want"),
        (lambda: leave_one_out_variance(LAW, EVERY, numbers(7), 2), r"scores \[7\]"),
        (lambda: expected_gae(LAW, LAW, numbers(6)), r"values \[6\]"),
        (lambda: expected_gae(LAW, LAW[1:], numbers(7)), "rewards: want"),
        (lambda: expected_gae(LAW, LAW, numbers(7) / 0), "values: found"),
        (lambda: expected_gae(LAW, LAW, numbers(7), lam=2.0), "lam: want"),
        (lambda: expected_gae(LAW, LAW, numbers(7), gamma=-1.0), "gamma: want"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
