"""exact_trees.py: every recursion against the same answer by listing all sequences."""

import math

import pytest
import torch

from rlhf_mini import exact
from rlhf_mini.exact_trees import (
    check_law,
    final_rewards,
    future_kl,
    log_ratio,
    myopic_policy,
    prefix_logp,
    sequence_logp,
    soft_policy,
    soft_values,
    state_values,
    token_values,
)
from rlhf_mini.policies import SequencePolicy
from rlhf_mini.tree_gradients import expected_gradient

F64 = torch.float64
SIZES = [(2, 1), (2, 4), (3, 3), (4, 2)]  # V, T
sizes = pytest.mark.parametrize("vocab,length", SIZES)


def prefixes(vocab, length):
    return (vocab**length - 1) // (vocab - 1)


def tree(vocab, length, seed=0, scale=1.5, batch=()):
    """A law that is far from uniform, different at every prefix."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, prefixes(vocab, length), vocab)
    return (
        scale * torch.randn(shape, generator=generator, dtype=F64)
    ).log_softmax(-1)  # fmt: skip


def numbers(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64)


def on_paths(x, vocab, length):
    """x [N, V] read along every sequence, [Vᵀ, T]: the slow way round."""
    every = exact.enumerate_sequences(vocab, length)
    nodes = SequencePolicy(vocab, length).nodes(every)
    return x[nodes, every]


def close(found, right):
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-11)


# --------------------------------------------------------------- laws and their layout


@sizes
def test_the_law_of_sequences_is_that_of_the_tabular_policy(vocab, length):
    law = tree(vocab, length)
    policy = SequencePolicy(vocab, length, dtype=F64)
    policy.logits.data[0] = law
    every = exact.enumerate_sequences(vocab, length)
    slow = policy.logp(torch.zeros(len(every), dtype=torch.long), every).sum(-1)
    close(sequence_logp(law), slow.detach())


@sizes
def test_the_probability_of_a_prefix_is_that_of_all_sequences_that_begin_so(
    vocab, length
):
    law = tree(vocab, length)
    every = exact.enumerate_sequences(vocab, length)
    nodes = SequencePolicy(vocab, length).nodes(every)
    p = sequence_logp(law).exp()
    for node, found in enumerate(prefix_logp(law).exp()):
        close(found, p[(nodes == node).any(-1)].sum())


@sizes
def test_final_rewards_stand_at_the_last_token_of_their_sequence(vocab, length):
    scores = numbers(vocab**length)
    rewards = on_paths(final_rewards(scores, vocab), vocab, length)
    close(rewards[:, -1], scores)
    assert not rewards[:, :-1].any()


@sizes
def test_values_are_means_of_what_is_still_to_come(vocab, length):
    """Token rewards of all kinds, discounted: Q against a sum over sequences."""
    law, gamma = tree(vocab, length), 0.7
    rewards = numbers(prefixes(vocab, length), vocab)
    q = token_values(law, rewards, gamma)
    every = exact.enumerate_sequences(vocab, length)
    nodes = SequencePolicy(vocab, length).nodes(every)
    p, paid = sequence_logp(law).exp(), on_paths(rewards, vocab, length)
    for t in range(length):
        discount = gamma ** torch.arange(length - t, dtype=F64)
        to_go = (discount * paid[:, t:]).sum(-1)
        for node in nodes[:, t].unique():
            for token in range(vocab):
                rows = (nodes[:, t] == node) & (every[:, t] == token)
                mean = (p * to_go)[rows].sum() / p[rows].sum()
                close(q[node, token], mean)


def test_the_value_of_the_empty_prefix_is_the_expected_reward():
    law, scores = tree(3, 3), numbers(27)
    q = token_values(law, final_rewards(scores, 3))
    expected = (sequence_logp(law).exp() * scores).sum()
    close(state_values(law, q)[0], expected)


def test_advantages_of_a_sequence_add_up_to_its_surprise():
    """Σ_t Q − V telescopes to r − E r on every single sequence."""
    law, scores = tree(2, 4), numbers(16)
    q = token_values(law, final_rewards(scores, 2))
    advantages = q - state_values(law, q)[:, None]
    expected = (sequence_logp(law).exp() * scores).sum()
    close(on_paths(advantages, 2, 4).sum(-1), scores - expected)


# ------------------------------------------------------------------------------- KL


@sizes
def test_token_log_ratios_add_up_to_that_of_the_sequence(vocab, length):
    law, ref = tree(vocab, length), tree(vocab, length, seed=1)
    total = on_paths(log_ratio(law, ref), vocab, length).sum(-1)
    close(total, sequence_logp(law) - sequence_logp(ref))


@sizes
def test_own_and_future_kl_add_up_to_the_kl_of_sequences(vocab, length):
    law, ref = tree(vocab, length), tree(vocab, length, seed=1)
    own, later = log_ratio(law, ref), future_kl(law, ref)
    right = exact.objective(
        sequence_logp(law), sequence_logp(ref), torch.zeros(vocab**length, dtype=F64), 1
    )
    close(-state_values(law, own + later)[0], right)
    assert (later > -1e-12).all()
    assert not later[-(vocab ** (length - 1)) :].any()  # nothing follows the last


def test_future_kl_has_its_direction():
    law, ref = tree(2, 2), tree(2, 2, seed=1)
    assert (future_kl(law, ref) - future_kl(ref, law)).abs().max() > 0.05


# ---------------------------------------------------------------------------- optima


@sizes
@pytest.mark.parametrize("beta", [0.2, 2.0])
def test_the_soft_policy_is_the_optimum_over_sequences(vocab, length, beta):
    ref, scores = tree(vocab, length), numbers(vocab**length)
    found = soft_policy(ref, final_rewards(scores, vocab), beta)
    right = exact.optimal_policy(sequence_logp(ref), scores, beta)
    close(sequence_logp(found), right)


@sizes
def test_the_soft_value_of_the_empty_prefix_is_beta_log_z(vocab, length):
    ref, scores = tree(vocab, length), numbers(vocab**length)
    _, v = soft_values(ref, final_rewards(scores, vocab), 0.5)
    close(v[0], 0.5 * exact.log_partition(sequence_logp(ref), scores, 0.5))


def test_soft_values_with_rewards_on_every_token_are_those_of_their_sum():
    ref, rewards = tree(3, 3), numbers(13, 3)
    total = on_paths(rewards, 3, 3).sum(-1)
    found = soft_policy(ref, rewards, 0.5)
    close(sequence_logp(found), exact.optimal_policy(sequence_logp(ref), total, 0.5))


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_at_the_soft_policy_the_discounted_gradient_is_zero(gamma):
    """The reason why γ stands in `soft_values`: fixed point of what γ makes of PPO."""
    ref, rewards, beta = tree(2, 3), numbers(7, 2), 0.5
    law = soft_policy(ref, rewards, beta, gamma)
    q = token_values(law, rewards - beta * log_ratio(law, ref), gamma)
    assert expected_gradient(law, q).abs().max() < 1e-12
    other = soft_policy(ref, rewards, beta, gamma - 0.5)
    q = token_values(other, rewards - beta * log_ratio(other, ref), gamma)
    assert expected_gradient(other, q).abs().max() > 1e-3


def test_a_last_score_discounted_is_a_larger_beta_at_the_front():
    """γ^(T−t) r with the KL not discounted: β of token t is β γ^−(T−t)."""
    ref, scores, beta, gamma = tree(2, 2), numbers(4), 0.5, 0.6
    # the second token cannot move, so all that counts is the first
    sure = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.0, 1.0]], dtype=F64).log()
    found = soft_policy(sure, final_rewards(scores, 2), beta, gamma)[0]
    right = exact.optimal_policy(sure[0], scores[[0, 3]], beta / gamma)
    close(found, right)
    assert ref.shape == sure.shape


@sizes
def test_the_myopic_policy_is_a_fixed_point_of_the_gradient_without_later_kl(
    vocab, length
):
    ref, beta = tree(vocab, length), 0.5
    rewards = final_rewards(numbers(vocab**length), vocab)
    law = myopic_policy(ref, rewards, beta)
    q = token_values(law, rewards) - beta * log_ratio(law, ref)
    assert expected_gradient(law, q).abs().max() < 1e-12


@sizes
def test_the_myopic_policy_differs_from_the_optimum_but_in_the_last_token(
    vocab, length
):
    ref = tree(vocab, length)
    rewards = final_rewards(numbers(vocab**length), vocab)
    myopic, optimum = (f(ref, rewards, 0.5) for f in (myopic_policy, soft_policy))
    last = vocab ** (length - 1)
    close(myopic[-last:], optimum[-last:])
    if length > 1:
        assert (myopic - optimum)[:-last].abs().max() > 0.05


def test_what_the_myopic_policy_loses_is_beta_times_its_kl_to_the_optimum():
    ref, scores, beta = tree(3, 3, seed=2), numbers(27), 0.5
    rewards, ref_law = final_rewards(scores, 3), sequence_logp(ref)
    law = sequence_logp(myopic_policy(ref, rewards, beta))
    best = sequence_logp(soft_policy(ref, rewards, beta))
    lost = exact.objective(best, ref_law, scores, beta) - exact.objective(
        law, ref_law, scores, beta
    )
    close(lost, exact.gap(law, ref_law, scores, beta))
    assert lost > 1e-3


# ------------------------------------------------- shapes, impossible tokens, gradients


def test_many_trees_cost_one_call():
    ref, scores = tree(2, 3, batch=(5, 2)), numbers(2, 8)
    rewards = final_rewards(scores, 2)
    for f in (soft_policy, myopic_policy):
        together = f(ref, rewards, 0.5)
        for i in range(5):
            for j in range(2):
                close(together[i, j], f(ref[i, j], rewards[j], 0.5))
    close(token_values(ref, rewards)[3, 1], token_values(ref[3, 1], rewards[1]))


def ended_tree():
    """Token 0 ends: behind it only token 0 can follow."""
    law = tree(2, 3)
    law[[1, 3, 5]] = torch.tensor([1.0, 0.0], dtype=F64).log()
    return law


def test_what_cannot_happen_has_no_say():
    law = ended_tree()
    ref = tree(2, 3, seed=1).where(law > -torch.inf, -torch.inf).log_softmax(-1)
    scores = numbers(8)
    garbage = scores.clone()
    garbage[(sequence_logp(law) == -torch.inf)] = 1e6
    for f in (token_values, lambda x, r: soft_policy(x, r, 0.5),
              lambda x, r: myopic_policy(x, r, 0.5)):  # fmt: skip
        clean, dirty = (f(ref, final_rewards(x, 2)) for x in (scores, garbage))
        reached = prefix_logp(ref) > -torch.inf
        assert torch.equal(clean[reached], dirty[reached])
        assert not clean.isnan().any()
    assert log_ratio(law, ref).isfinite().all()
    assert future_kl(law, ref).isfinite().all()


def test_the_soft_value_is_differentiable_and_its_slope_is_the_optimum():
    ref, scores = tree(2, 3), numbers(8).requires_grad_()
    _, v = soft_values(ref, final_rewards(scores, 2), 0.5)
    (slope,) = torch.autograd.grad(v[0], scores)
    right = exact.optimal_policy(sequence_logp(ref), scores.detach(), 0.5).exp()
    close(slope, right)


# ---------------------------------------------------------------------------- errors

HALF = torch.tensor([[0.5, 0.5]] * 3, dtype=F64).log()


@pytest.mark.parametrize(
    "law,message",
    [
        (torch.zeros(4, 2), r"logp: want N = 1 \+ V .* found shape \[4, 2\]"),
        (torch.zeros(3), r"found shape \[3\]"),
        (torch.zeros(3, 1), r"found shape \[3, 1\]"),
        (torch.zeros(3, 2), "a law .* sum to 2"),
        (torch.full((3, 2), math.nan), "logp: found nan"),
        ([[0.5, 0.5]], "logp: want a tensor, found list"),
    ],
)
def test_what_is_no_law_on_a_tree_is_refused(law, message):
    with pytest.raises(ValueError, match=message):
        prefix_logp(law)


def test_a_law_may_hold_minus_infinity():
    check_law(logp=ended_tree())


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: final_rewards(torch.zeros(6), 2), r"want 2\*\*T of them, found 6"),
        (lambda: final_rewards(torch.tensor([0.0, math.inf]), 2), "scores: found inf"),
        (lambda: token_values(HALF, torch.zeros(2, 2)), "rewards: want .*3, 2"),
        (lambda: token_values(HALF, HALF * math.nan), "rewards: found nan"),
        (lambda: token_values(HALF, HALF, gamma=1.1), "gamma: want"),
        (lambda: state_values(HALF, torch.zeros(3)), r"q: want .*found \[3\]"),
        (lambda: soft_values(HALF, HALF, beta=0.0), "beta: want a number > 0"),
        (lambda: soft_policy(HALF, HALF, 1.0, gamma=-0.1), "gamma: want"),
        (lambda: myopic_policy(HALF, HALF, beta=-1.0), "beta: want a number > 0"),
        (lambda: myopic_policy(HALF, [0.0], 1.0), "rewards: want .*found list"),
        (lambda: log_ratio(HALF, tree(2, 3)), "shapes do not fit"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_policy_that_leaves_the_reference_has_no_finite_kl():
    sure = torch.tensor([[1.0, 0.0]] * 3, dtype=F64).log()
    assert log_ratio(sure, HALF)[0].tolist() == pytest.approx([math.log(2), 0])
    with pytest.raises(ValueError, match="there KL is inf"):
        log_ratio(HALF, sure)
