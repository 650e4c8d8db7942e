"""k3_fixed_points.py: the gradient there is zero, and flows end there."""

import math

import pytest
import torch

from rlhf_mini import exact, exact_trees, token_world, tree_gradients
from rlhf_mini.advantages import group_normalized
from rlhf_mini.frontier import forward_optimum
from rlhf_mini.group_expectations import expected_advantages, prompt_weight
from rlhf_mini.k3_fixed_points import k3_fixed_point, k3_loss_policy

F64 = torch.float64
RATES = torch.tensor([1e-4, 0.03, 0.3, 0.9], dtype=F64)


def close(found, right, tolerance=1e-10):
    torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance)


def k3_gradient(tree, ref):
    """E[Σ_t ∇k3_t], the prefixes drawn from π and held fixed, [..., N, V]."""
    reach = exact_trees.prefix_logp(tree).exp()[..., None]
    return reach * (tree.exp() - ref.exp())


# ------------------------------------------------------------------- rewards 0 and 1


@pytest.mark.parametrize("group", [2, 3, 8, math.inf])
@pytest.mark.parametrize("beta", [0.04, 0.5, 2.0])
def test_reward_and_penalty_balance_at_the_fixed_point(beta, group):
    p = k3_fixed_point(RATES, beta, group)
    pull = prompt_weight(p, group) * p * (1 - p)
    close(pull, beta * (p - RATES), 1e-9)


def test_the_whole_expected_gradient_of_grpo_vanishes_there():
    beta, group, ref = 0.7, 6, torch.tensor([0.8, 0.2], dtype=F64)
    p = k3_fixed_point(0.2, beta, group)
    law = torch.stack([1 - p, p]).log()

    def grpo(r):
        return group_normalized(r, eps=1e-14)

    a = expected_advantages(law, torch.tensor([0.0, 1.0], dtype=F64), grpo, group)
    reward = tree_gradients.expected_gradient(law[None], a[None])
    close(reward, beta * k3_gradient(law[None], ref.log()[None]))


def test_two_answers_and_beta_one_give_a_square_root():
    close(k3_fixed_point(RATES, 1.0, 2), RATES.sqrt())


def test_two_answers_stand_on_the_hyperbola_of_the_forward_kl():
    for ref in RATES:
        law = torch.stack([1 - ref, ref]).log()
        right = forward_optimum(law, torch.tensor([0.0, 1.0], dtype=F64), 0.3)
        close(k3_fixed_point(ref, 0.3, 2), right.logp[1].exp(), 1e-8)


def test_however_rare_the_right_answer_it_is_amplified_beyond_the_optimum():
    """As p_ref → 0 the optimum goes to 0, the fixed point to 1 − β."""
    assert k3_fixed_point(1e-9, 0.5, 2).item() == pytest.approx(0.5, abs=1e-6)
    ref = torch.tensor([1 - 1e-9, 1e-9], dtype=F64).log()
    star = exact.optimal_policy(ref, torch.tensor([0.0, 1.0], dtype=F64), 0.5)
    assert star[1].exp() < 1e-8


def test_a_heavier_penalty_stays_closer_to_the_reference():
    rates = torch.stack([k3_fixed_point(0.1, b, 8) for b in (0.1, 1.0, 10.0, 1e4)])
    assert (rates.diff() < 0).all() and rates[-1] < 0.1001


@pytest.mark.parametrize("ref", [0.0, 1.0, -1.0])
def test_the_reference_must_be_able_to_do_both(ref):
    with pytest.raises(ValueError, match="ref_success: want 0 < p < 1"):
        k3_fixed_point(ref, 1.0, 4)


def test_beta_and_group_are_checked():
    with pytest.raises(ValueError, match="beta: want a number > 0"):
        k3_fixed_point(0.5, 0.0, 4)
    with pytest.raises(ValueError, match="group: want a whole number ≥ 2"):
        k3_fixed_point(0.5, 1.0, 1)


# --------------------------------------------------------------------------- on a tree


def test_on_a_tree_reward_and_penalty_balance_at_every_prefix():
    world, beta = token_world.negations(), 0.8
    ref = world.reference().tree()
    tree = k3_loss_policy(ref, world.rewards, beta)
    q = exact_trees.token_values(tree, world.rewards)
    reward = tree_gradients.expected_gradient(tree, q)
    close(reward, beta * k3_gradient(tree, ref))


def test_with_one_token_it_is_the_hyperbola():
    ref = torch.tensor([[0.5, 0.3, 0.2]], dtype=F64).log()
    r = torch.tensor([[0.0, 1.0, 3.0]], dtype=F64)
    close(k3_loss_policy(ref, r, 0.4), forward_optimum(ref, r, 0.4).logp)


def test_it_is_another_policy_than_the_optimum_and_worse():
    world, beta = token_world.negations(), 1.0
    ref = world.reference().tree()
    law = world.law(k3_loss_policy(ref, world.rewards, beta))
    gap = exact.gap(law, world.law(ref), world.scores, beta)
    assert (gap > 0.1).all()


def test_exact_ascent_from_the_reference_ends_there():
    world, beta = token_world.negations(length=2), 1.0
    ref, policy = world.reference().tree(), world.policy()
    for _ in range(3000):
        tree = policy.tree().detach()
        q = exact_trees.token_values(tree, world.rewards)
        step = tree_gradients.expected_gradient(tree, q)
        policy.logits.data += step - beta * k3_gradient(tree, ref)
    right = world.law(k3_loss_policy(ref, world.rewards, beta))
    close(world.law(policy.tree().detach()), right, 1e-6)


def test_what_the_reference_never_does_stays_at_zero():
    ref = torch.tensor([[0.6, 0.4, 0.0]], dtype=F64).log()
    r = torch.tensor([[0.0, -5.0, 9.0]], dtype=F64)
    law = k3_loss_policy(ref, r, 1.0)
    assert law[0, 2] == -math.inf and law[0, :2].exp().sum() == pytest.approx(1.0)


def test_trees_rewards_and_beta_are_checked():
    ref = torch.tensor([[0.5, 0.5]], dtype=F64).log()
    with pytest.raises(ValueError, match="ref_logp: want a law"):
        k3_loss_policy(ref + 1, torch.zeros(1, 2, dtype=F64), 1.0)
    with pytest.raises(ValueError, match="rewards: want"):
        k3_loss_policy(ref, torch.zeros(1, 3, dtype=F64), 1.0)
    with pytest.raises(ValueError, match="rewards: found nan"):
        k3_loss_policy(ref, torch.full((1, 2), math.nan, dtype=F64), 1.0)
    with pytest.raises(ValueError, match="beta: want a number > 0"):
        k3_loss_policy(ref, torch.zeros(1, 2, dtype=F64), -1.0)
