"""group_expectations.py: held against lists of all ordered groups, and identities."""

import itertools
import math

import pytest
import torch

from rlhf_mini import exact, token_world
from rlhf_mini.advantages import (
    batch_normalized,
    group_centered,
    group_normalized,
    leave_one_out,
)
from rlhf_mini.group_expectations import (
    batch_weights,
    expected_advantages,
    expected_coefficients,
    prompt_objective,
    prompt_weight,
    whitened_weights,
)
from rlhf_mini.masking import masked_whiten
from rlhf_mini.tree_gradients import expected_gradient, gradient_moments

F64 = torch.float64
LAW = torch.tensor([0.5, 0.2, 0.25, 0.05], dtype=F64).log()
REWARDS = torch.tensor([0.0, 1.0, -2.0, 3.5], dtype=F64)
RATES = torch.tensor([1e-6, 0.03, 0.3, 0.5, 0.9], dtype=F64)


def close(found, right, tolerance=1e-10):
    torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)


def grpo(rewards):
    return group_normalized(rewards, eps=1e-14)


def by_listing(logp, coefficients, group):
    """Sums over all K^G ordered groups: the slow way round."""
    numbers = range(len(logp))
    total = torch.zeros_like(logp)
    for others in itertools.product(numbers, repeat=group - 1):
        chance = logp[list(others)].sum().exp()
        for y in numbers:
            c = coefficients(torch.tensor([[y, *others]]))
            total[y] += chance * c[0, 0]
    return total


def mean_gradient(logp, advantages):
    """E[c̄ ∇log π] for the logits of a softmax, [K]."""
    return expected_gradient(logp[None], advantages[None])[0]


# --------------------------------------------------------------- expected coefficients


@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("method", [leave_one_out, group_centered, grpo])
def test_listing_without_order_equals_listing_with_order(method, group):
    def coefficients(y):
        return method(REWARDS[y])

    slow = by_listing(LAW, coefficients, group)
    close(expected_coefficients(LAW, coefficients, group), slow)


def test_the_mean_over_groups_is_that_of_whole_group_gradients():
    """E[1/G Σ c_i ∇log π(y_i)] over ordered groups is E_π[c̄ ∇log π]."""
    group, scores = 3, torch.eye(4, dtype=F64) - LAW.exp()
    total = torch.zeros(4, dtype=F64)
    for y in itertools.product(range(4), repeat=group):
        a = grpo(REWARDS[torch.tensor([y])])[0]
        total += LAW[list(y)].sum().exp() * (a[:, None] * scores[list(y)]).mean(0)
    close(mean_gradient(LAW, expected_advantages(LAW, REWARDS, grpo, group)), total)


def test_coefficients_may_depend_on_more_than_the_reward():
    lengths = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=F64)

    def coefficients(y):
        return leave_one_out(REWARDS[y]) / lengths[y].sum(-1, keepdim=True)

    close(
        expected_coefficients(LAW, coefficients, 3),
        by_listing(LAW, coefficients, 3),
    )


def test_an_outcome_of_probability_zero_never_is_among_the_others():
    law = torch.tensor([0.5, 0.5, 0.0], dtype=F64).log()
    r = torch.tensor([0.0, 1.0, 1e6], dtype=F64)
    found = expected_advantages(law, r, leave_one_out, group=4)
    close(found, r - 0.5)


def test_equal_rewards_are_merged_without_changing_the_result():
    tied = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=F64)
    slow = by_listing(LAW, lambda y: grpo(tied[y]), 3)
    close(expected_advantages(LAW, tied, grpo, 3), slow)


def test_a_large_world_with_few_levels_is_no_work():
    world = token_world.negations()
    law = world.law(world.reference().tree())[0]
    found = expected_advantages(law, world.scores[0], leave_one_out, group=8)
    close(found, world.scores[0] - (law.exp() * world.scores[0]).sum())


# ------------------------------------------------------------- RLOO, the mean, the std


@pytest.mark.parametrize("group", [2, 3, 5])
def test_leave_one_out_is_unbiased(group):
    found = mean_gradient(LAW, expected_advantages(LAW, REWARDS, leave_one_out, group))
    law = torch.zeros(4, dtype=F64).log_softmax(-1)  # no KL: reference = policy
    right = exact.objective_gradient(LAW, law, REWARDS, beta=1e-300)
    close(found, right)


@pytest.mark.parametrize("group", [2, 3, 5])
def test_the_mean_alone_shrinks_the_gradient_and_keeps_its_direction(group):
    one = expected_advantages(LAW, REWARDS, leave_one_out, group)
    mean = expected_advantages(LAW, REWARDS, group_centered, group)
    close(mean, one * (group - 1) / group)


def test_with_two_answers_the_std_leaves_only_who_wins():
    """GRPO at G = 2: P(the other is worse) − P(the other is better)."""
    found = expected_advantages(LAW, REWARDS, grpo, group=2)
    p = LAW.exp()
    better = (REWARDS[:, None] < REWARDS).double() @ p
    worse = (REWARDS[:, None] > REWARDS).double() @ p
    close(found, worse - better)


def test_with_the_std_the_gradient_of_graded_rewards_turns_aside():
    right = mean_gradient(LAW, REWARDS)
    found = mean_gradient(LAW, expected_advantages(LAW, REWARDS, grpo, 8))
    cosine = torch.nn.functional.cosine_similarity(found, right, dim=0)
    assert 0.9 < cosine < 0.999


def test_beside_a_rare_jackpot_the_std_rewards_what_is_below_the_mean():
    """r = 1 is below the mean of 1.49, so its advantage is negative; not with a std."""
    law = torch.tensor([0.5, 0.49, 0.01], dtype=F64).log()
    r = torch.tensor([0.0, 1.0, 100.0], dtype=F64)
    assert expected_advantages(law, r, leave_one_out, 8)[1] < -0.4
    assert expected_advantages(law, r, grpo, 8)[1] > 0.5


def test_on_a_token_tree_the_mean_advantage_gives_the_group_gradient():
    world = token_world.negations()
    tree = world.reference().tree()[0]
    law, r = world.law(tree), world.scores[0]
    a = expected_advantages(law, r, leave_one_out, 4)
    ones = world.mask.double()
    found, _ = gradient_moments(tree, world.tokens, a[:, None] * ones)
    right, _ = gradient_moments(tree, world.tokens, r[:, None] * ones)
    close(found, right)


# ------------------------------------------------------------------ weights of prompts


@pytest.mark.parametrize("group", [2, 3, 8, 16])
def test_the_weight_is_that_of_the_enumerated_gradient(group):
    for p in RATES:
        law = torch.stack([1 - p, p]).log()
        r = torch.tensor([0.0, 1.0], dtype=F64)
        a = expected_advantages(law, r, grpo, group)
        close(prompt_weight(p, group), a[1] - a[0], 1e-9)


def test_the_weight_with_an_epsilon_is_that_of_the_library():
    p = torch.tensor(0.2, dtype=F64)
    law, r = torch.stack([1 - p, p]).log(), torch.tensor([0.0, 1.0], dtype=F64)
    a = expected_advantages(law, r, lambda x: group_normalized(x, eps=0.1), 6)
    close(prompt_weight(p, 6, eps=0.1), a[1] - a[0])


def test_two_answers_weigh_every_prompt_the_same():
    close(prompt_weight(RATES, 2), torch.ones_like(RATES), 1e-12)


def test_the_weight_of_a_hopeless_prompt_is_capped():
    assert prompt_weight(1e-6, 8).item() == pytest.approx(2.6457, abs=5e-5)
    for group in (2, 4, 64):
        assert prompt_weight(0.0, group).item() == pytest.approx(math.sqrt(group - 1))
        assert prompt_weight(1.0, group).item() == pytest.approx(math.sqrt(group - 1))


def test_a_large_group_has_the_weight_of_the_limit():
    p = torch.tensor([0.2, 0.5], dtype=F64)
    close(prompt_weight(p, 900), prompt_weight(p, math.inf), 5e-3)


def test_the_weight_is_the_same_for_right_and_wrong_exchanged():
    close(prompt_weight(RATES, 7), prompt_weight(1 - RATES, 7), 1e-9)


def test_the_objective_is_the_integral_of_the_weight():
    p = RATES[1:].clone().requires_grad_()
    for group in (2, 5, 16, math.inf):
        value = prompt_objective(p, group)
        (slope,) = torch.autograd.grad(value.sum(), p)
        close(slope, prompt_weight(p, group).detach(), 1e-9)
        assert prompt_objective(0.0, group).item() == 0


def test_the_objective_is_the_success_rate_for_two_and_an_angle_for_many():
    close(prompt_objective(RATES, 2), RATES, 1e-12)
    close(prompt_objective(1.0, math.inf), torch.tensor(math.pi, dtype=F64))
    assert prompt_objective(1.0, 900).item() == pytest.approx(math.pi, abs=0.1)


# ------------------------------------------------------------------ weights of batches


def listed_batches(p, group, advantage):
    """Weights from all batches of two prompts, each answer listed by itself."""
    weights = torch.zeros(2, dtype=F64)
    for bits in itertools.product((0.0, 1.0), repeat=2 * group):
        r = torch.tensor(bits, dtype=F64).view(2, group)
        chance = torch.where(r == 1, p[:, None], 1 - p[:, None]).prod()
        pull = (advantage(r) * (r - p[:, None])).mean(-1)
        weights += chance * pull / (p * (1 - p))
    return weights


PAIR = torch.tensor([0.1, 0.6], dtype=F64)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_batch_weights_are_those_of_all_listed_batches(group):
    right = listed_batches(PAIR, group, lambda r: batch_normalized(r, eps=1e-14))
    close(batch_weights(PAIR, group), right)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_whitened_weights_are_those_of_all_listed_batches(group):
    # masked_whiten has a 10⁻⁸ under its root
    right = listed_batches(PAIR, group, lambda r: masked_whiten(r, None))
    close(whitened_weights(PAIR, group), right, 1e-6)


@pytest.mark.parametrize("weights", [batch_weights, whitened_weights])
def test_a_batch_of_one_prompt_is_a_group(weights):
    for group in (2, 5):
        close(weights(PAIR[:1], group), prompt_weight(PAIR[:1], group), 1e-9)


@pytest.mark.parametrize("weights", [batch_weights, whitened_weights])
def test_in_a_larger_batch_the_weights_become_equal(weights):
    small, large = weights(PAIR, 4), weights(PAIR.repeat(8), 4)
    assert (large[0] / large[1] - 1).abs() < 0.5 * (small[0] / small[1] - 1).abs()


def test_the_size_of_all_weights_grows_as_the_batch_gets_solved():
    hard, solved = torch.full((8,), 0.5), torch.full((8,), 0.99)
    assert batch_weights(solved, 8)[0] > 2.5 * batch_weights(hard, 8)[0]


# ------------------------------------------------------------------------------ errors


def test_a_group_needs_two_answers():
    for function in (prompt_weight, prompt_objective):
        with pytest.raises(ValueError, match="group: want a whole number ≥ 2"):
            function(0.5, 1)
    with pytest.raises(ValueError, match="group: want a whole number ≥ 2, found 2.5"):
        expected_advantages(LAW, REWARDS, leave_one_out, 2.5)
    with pytest.raises(ValueError, match="group"):
        batch_weights(PAIR, 1)
    with pytest.raises(ValueError, match="at least two answers"):
        whitened_weights(PAIR[:1], 1)


def test_too_many_groups_are_refused_before_they_are_listed():
    many = torch.zeros(121).log_softmax(-1)
    with pytest.raises(ValueError, match="at most 1000000 groups"):
        expected_coefficients(many, lambda y: y.double(), 8)


def test_coefficients_of_a_wrong_shape_or_not_finite_are_refused():
    with pytest.raises(ValueError, match="coefficients: want one number per answer"):
        expected_coefficients(LAW, lambda y: y.double().sum(-1), 3)
    with pytest.raises(ValueError, match="coefficients: found nan"):
        expected_coefficients(LAW, lambda y: y.double() * math.nan, 3)


def test_laws_and_rewards_are_checked():
    with pytest.raises(ValueError, match="want a law"):
        expected_advantages(LAW + 1, REWARDS, leave_one_out, 2)
    with pytest.raises(ValueError, match="want 1 axes"):
        expected_coefficients(LAW[None], lambda y: y.double(), 2)
    with pytest.raises(ValueError, match="shapes do not fit"):
        expected_advantages(LAW, REWARDS[:2], leave_one_out, 2)
    with pytest.raises(ValueError, match="rewards: found nan"):
        expected_advantages(LAW, REWARDS * math.nan, leave_one_out, 2)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_rate_is_a_probability(p):
    for function in (prompt_weight, prompt_objective):
        with pytest.raises(ValueError, match="p: want 0 ≤ p ≤ 1"):
            function(p, 4)


def test_epsilon_is_not_negative():
    with pytest.raises(ValueError, match="eps"):
        prompt_weight(0.5, 4, eps=-1e-9)


@pytest.mark.parametrize("weights", [batch_weights, whitened_weights])
def test_a_batch_has_one_axis_of_rates_inside_the_interval(weights):
    with pytest.raises(ValueError, match="p: want 0 < p < 1"):
        weights(torch.tensor([0.0, 0.5]), 2)
    with pytest.raises(ValueError, match="p: want 1 axes"):
        weights(PAIR[None], 2)
