"""advantages.py: against loops, identities and the exact gradient by enumeration."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_mini.advantages import (
    batch_normalized,
    gae,
    group_centered,
    group_normalized,
    leave_one_out,
    reward_to_go,
)
from rlhf_mini.masking import masked_whiten

NAN, INF = math.nan, math.inf
# right pads, left pads, none, a gap between two turns, and a row that is all pads
MASK = torch.tensor(
    [[1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]
)
GROUP = [leave_one_out, group_centered, group_normalized, batch_normalized]


def close(found, expected, atol=1e-10):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 4, generator=generator, dtype=dtype)  # rewards, values


def naive_gae(rewards, values, mask, gamma, lam):
    """Σₗ (γλ)ˡ δₜ₊ₗ over the unmasked tokens only, in plain Python."""
    found = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        kept = [t for t in range(rewards.shape[1]) if mask[b, t]]
        r, v = rewards[b, kept].tolist(), [*values[b, kept].tolist(), 0.0]
        delta = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(r))]
        for i, t in enumerate(kept):
            found[b, t] = sum((gamma * lam) ** k * d for k, d in enumerate(delta[i:]))
    return found


# --- reward_to_go -------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_reward_to_go_equals_a_naive_loop(gamma):
    rewards, _ = batch()
    found = reward_to_go(rewards, MASK, gamma)
    for b in range(len(rewards)):
        kept = [t for t in range(4) if MASK[b, t]]
        for i, t in enumerate(kept):
            naive = sum(gamma**k * rewards[b, s] for k, s in enumerate(kept[i:]))
            assert found[b, t].item() == pytest.approx(float(naive), abs=1e-12)
    assert found[MASK == 0].eq(0).all()


def test_undiscounted_reward_to_go_is_a_reversed_cumulative_sum():
    rewards, _ = batch()
    close(reward_to_go(rewards, None), rewards.flip(-1).cumsum(-1).flip(-1))


def test_the_first_reward_to_go_is_the_return_and_the_last_the_last_reward():
    rewards, _ = batch()
    returns = reward_to_go(rewards, None)
    close(returns[:, 0], rewards.sum(-1))
    assert torch.equal(returns[:, -1], rewards[:, -1])


def test_a_discount_below_one_prefers_the_shorter_answer():
    # γ = .95: one token worth .97 beats two tokens worth 1
    short = reward_to_go(torch.tensor([[0.97]]), None, gamma=0.95)[0, 0]
    long = reward_to_go(torch.tensor([[0.0, 1.00]]), None, gamma=0.95)[0, 0]
    assert long.item() == pytest.approx(0.95) and short > long


# --- gae: loops and identities ------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gae_equals_the_sum_of_td_errors(gamma, lam):
    rewards, values = batch()
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    close(advantages, naive_gae(rewards, values, MASK, gamma, lam))
    close(returns, torch.where(MASK == 1, advantages + values, 0.0))


def test_gae_is_the_weighted_mixture_of_n_step_advantages():
    # (1 − λ) Σₙ λⁿ⁻¹ A⁽ⁿ⁾, where all n beyond the end are the Monte Carlo advantage
    rewards, values = batch()
    gamma, lam, length = 0.9, 0.7, 4
    padded = F.pad(values, (0, 1))
    advantages, _ = gae(rewards, values, None, gamma, lam)
    for b, t in itertools.product(range(5), range(length)):
        mixture = 0.0
        for n in range(1, length - t + 1):
            bootstrap = gamma**n * padded[b, t + n]
            n_step = sum(gamma**k * rewards[b, t + k] for k in range(n)) + bootstrap
            rest = lam ** (n - 1) * ((1 - lam) if n < length - t else 1)
            mixture += rest * (n_step - values[b, t])
        assert advantages[b, t].item() == pytest.approx(float(mixture), abs=1e-12)


def test_gae_with_lambda_one_is_the_return_minus_the_value():
    rewards, values = batch()
    advantages, _ = gae(rewards, values, MASK, gamma=0.9, lam=1.0)
    to_go = reward_to_go(rewards, MASK, gamma=0.9)
    close(advantages, torch.where(MASK == 1, to_go - values, 0.0))


def test_the_returns_at_lambda_one_are_the_monte_carlo_returns():
    # the defect: returns computed after whitening, so value targets are rescaled
    rewards, values = batch()
    advantages, returns = gae(rewards, values, MASK, lam=1.0)
    close(returns, reward_to_go(rewards, MASK))
    rescaled = masked_whiten(advantages, MASK) + values
    assert (rescaled - returns)[MASK == 1].abs().max() > 0.1


def test_gae_with_lambda_zero_is_the_td_error():
    rewards, values = batch()
    advantages, _ = gae(rewards, values, None, gamma=0.9, lam=0.0)
    close(advantages, rewards + 0.9 * F.pad(values, (0, 1))[:, 1:] - values)


def test_gae_without_a_future_is_reward_minus_value():
    rewards, values = batch()
    advantages, _ = gae(rewards, values, None, gamma=0.0, lam=0.7)
    close(advantages, rewards - values)


def test_gae_without_a_critic_at_lambda_one_is_the_reward_to_go():
    rewards, _ = batch()
    advantages, returns = gae(rewards, torch.zeros_like(rewards), MASK, lam=1.0)
    close(advantages, reward_to_go(rewards, MASK))
    assert torch.equal(advantages, returns)


def test_a_critic_that_knows_every_return_leaves_no_advantage():
    rewards, _ = batch()
    values = reward_to_go(rewards, MASK)
    advantages, _ = gae(rewards, values, MASK, lam=0.3)
    close(advantages, torch.zeros_like(rewards))


def test_lambda_is_no_discount():
    # a score sure to come is worth 1 at every token, whatever λ
    rewards = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    exact = torch.ones_like(rewards)
    for lam in (0.0, 0.5, 1.0):
        close(gae(rewards, exact, None, lam=lam)[0], torch.zeros_like(rewards))


# --- gae: the exact gradient --------------------------------------------------


def two_steps():
    """All sequences of two binary tokens: leaf [3, 2], logp and rewards [4, 2]."""
    theta = torch.tensor([[0.4, -0.3], [1.0, 0.2], [-0.8, 0.5]], dtype=torch.float64)
    theta.requires_grad_()
    table = theta.log_softmax(-1)
    pairs = list(itertools.product(range(2), repeat=2))
    logp = torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in pairs])
    rewards = torch.tensor([[0.3, 1.0], [0.3, -0.5], [-0.2, 2.0], [-0.2, 0.7]]).double()
    return theta, logp, rewards


def gradients(values_of_prefix, lam):
    """(E[Σ ∇log π A], ∇J) for a critic valued at (root, after 0, after 1)."""
    theta, logp, rewards = two_steps()
    law = logp.sum(-1).exp()
    root, *after = values_of_prefix
    values = torch.tensor([[root, after[a]] for a in (0, 0, 1, 1)], dtype=torch.float64)
    advantages, _ = gae(rewards, values, None, gamma=1.0, lam=lam)
    estimate = (law.detach() * (advantages * logp).sum(-1)).sum()
    truth = (law * rewards.sum(-1)).sum()
    pair = [
        torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (estimate, truth)
    ]
    return pair


def exact_values():
    _, logp, rewards = two_steps()
    p = logp.exp().detach()
    after = [(p[i : i + 2, 1] * rewards[i : i + 2, 1]).sum().item() for i in (0, 2)]
    first = [p[0, 0].item(), p[2, 0].item()]
    return [
        sum(f * (r + v) for f, r, v in zip(first, (0.3, -0.2), after, strict=True))
    ] + (after)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_with_the_exact_critic_every_lambda_gives_the_true_gradient(lam):
    estimate, truth = gradients(exact_values(), lam)
    close(estimate, truth)


@pytest.mark.parametrize("critic", [[0.0, 0.0, 0.0], [5.0, -3.0, 2.0]])
def test_with_any_critic_lambda_one_gives_the_true_gradient(critic):
    estimate, truth = gradients(critic, lam=1.0)
    close(estimate, truth)


def test_a_wrong_critic_biases_the_gradient_in_proportion_to_one_minus_lambda():
    bias = {}
    for lam in (0.0, 0.5, 0.95):
        estimate, truth = gradients([0.0, -3.0, 2.0], lam)
        bias[lam] = (estimate - truth) / (1 - lam)
    assert bias[0.0].norm() > 0.1
    close(bias[0.5], bias[0.0])
    close(bias[0.95], bias[0.0])


def test_values_read_one_slot_late_would_bias_even_lambda_one():
    # the defect: V(sₜ) read after token t was chosen is no baseline
    theta, logp, rewards = two_steps()
    law = logp.sum(-1).exp()
    late = torch.tensor([[2.0, 0.0], [2.0, 1.0], [-1.0, 0.0], [-1.0, 3.0]]).double()
    advantages, _ = gae(rewards, late, None, lam=1.0)
    estimate = (law.detach() * (advantages * logp).sum(-1)).sum()
    truth = (law * rewards.sum(-1)).sum()
    (a,), (b,) = (
        torch.autograd.grad(x, theta, retain_graph=True) for x in (estimate, truth)
    )
    assert (a - b).norm() > 0.1


# --- pads ---------------------------------------------------------------------


def both(rewards, values, mask):
    return (*gae(rewards, values, mask, 0.9, 0.7), reward_to_go(rewards, mask, 0.9))


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30, -7.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_garbage_in_the_pads_changes_no_bit(garbage, dtype):
    # the defect: padding leaks into the returns
    clean = both(*batch(dtype), MASK)
    dirty = both(*batch(dtype).masked_fill(MASK == 0, garbage), MASK)
    for x, y in zip(clean, dirty, strict=True):
        assert torch.equal(x, y) and x[MASK == 0].eq(0).all() and x.dtype == dtype


@pytest.mark.parametrize("left, right", [(3, 0), (0, 2), (1, 4)])
def test_padding_on_either_side_changes_no_bit(left, right):
    rewards, values = batch()
    short = both(rewards, values, None)
    padded = [F.pad(x, (left, right), value=NAN) for x in (rewards, values)]
    long = both(*padded, F.pad(torch.ones(5, 4), (left, right)))
    for x, y in zip(short, long, strict=True):
        assert torch.equal(F.pad(x, (left, right)), y)


def test_a_masked_gap_is_stepped_over_as_if_cut_out():
    rewards, values = batch()
    gap = torch.tensor([[1, 0, 0, 1]]).expand(5, 4)
    cut = both(rewards[:, [0, 3]], values[:, [0, 3]], None)
    for x, y in zip(cut, both(rewards, values, gap), strict=True):
        assert torch.equal(x, y[:, [0, 3]])


def test_the_token_after_the_last_unmasked_one_is_terminal():
    # the value that stands in the pad must not be bootstrapped from
    rewards, values = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 100.0]])
    advantages, returns = gae(rewards, values, torch.tensor([[1, 0]]), lam=0.0)
    assert advantages.tolist() == [[0.5, 0.0]] and returns.tolist() == [[1.0, 0.0]]


def test_a_row_of_pads_gives_zeros():
    assert all(x[4].eq(0).all() for x in both(*batch(), MASK))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_bool_int_and_float_masks_agree(dtype):
    for x, y in zip(both(*batch(), MASK), both(*batch(), MASK.to(dtype)), strict=True):
        assert torch.equal(x, y)


def test_the_results_carry_no_gradient_and_the_inputs_stay_as_they_were():
    # the defect: missing detach of the values lets the policy loss train the critic
    leaves = [x.clone().requires_grad_() for x in batch()]
    assert not any(x.requires_grad for x in both(*leaves, MASK))
    assert all(torch.equal(x, y) for x, y in zip(leaves, batch(), strict=True))


# --- what raises --------------------------------------------------------------


def call_gae(rewards, mask, gamma):
    return gae(rewards, torch.zeros_like(rewards), mask, gamma)


@pytest.mark.parametrize("function", [reward_to_go, call_gae])
class TestRaises:
    @pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
    def test_not_two_axes(self, function, shape):
        with pytest.raises(ValueError, match="rewards: want 2 axes, found shape"):
            function(torch.zeros(shape), None, 1.0)

    def test_a_mask_of_another_shape(self, function):
        with pytest.raises(ValueError, match=r"mask \[4, 2\], input \[2, 4\]"):
            function(torch.zeros(2, 4), torch.ones(4, 2), 1.0)

    def test_an_empty_mask(self, function):
        with pytest.raises(ValueError, match="mask: empty"):
            function(torch.zeros(2, 4), torch.zeros(2, 4), 1.0)

    @pytest.mark.parametrize("bad", [NAN, INF])
    def test_an_unmasked_entry_that_is_not_finite(self, function, bad):
        rewards = torch.tensor([[0.0, bad, 0.0]])
        with pytest.raises(ValueError, match=rf"rewards: found {bad} at \[0, 1\]"):
            function(rewards, torch.tensor([[1, 1, 0]]), 1.0)

    def test_integer_rewards(self, function):
        with pytest.raises(ValueError, match="rewards: want a floating dtype"):
            function(torch.zeros(2, 4, dtype=torch.int64), None, 1.0)

    @pytest.mark.parametrize("gamma", [-0.1, 1.01, NAN, None])
    def test_a_gamma_outside_zero_and_one(self, function, gamma):
        with pytest.raises(ValueError, match="gamma: want"):
            function(torch.zeros(2, 4), None, gamma)


@pytest.mark.parametrize("lam", [-0.1, 1.01, NAN])
def test_a_lambda_outside_zero_and_one_raises(lam):
    with pytest.raises(ValueError, match="want 0 ≤ lam ≤ 1, found"):
        gae(*batch(), None, lam=lam)


def test_values_of_another_shape_raise():
    # [B, T + 1] values, as other libraries take them, are not what this gae takes
    with pytest.raises(ValueError, match=r"rewards \[2, 3\], values \[2, 4\]"):
        gae(torch.zeros(2, 3), torch.zeros(2, 4), None)


# --- groups -------------------------------------------------------------------


def test_leave_one_out_equals_a_naive_loop():
    rewards = torch.tensor([[1.0, 4.0, -2.0, 0.5], [0.0, 0.0, 1.0, 0.0]]).double()
    found = leave_one_out(rewards)
    for n, i in itertools.product(range(2), range(4)):
        others = [rewards[n, j].item() for j in range(4) if j != i]
        naive = rewards[n, i].item() - sum(others) / 3
        assert found[n, i].item() == pytest.approx(naive, abs=1e-12)


def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_one():
    rewards, _ = batch()
    close(leave_one_out(rewards), group_centered(rewards) * 4 / 3)


def test_group_centered_subtracts_the_mean_of_its_own_row():
    rewards, _ = batch()
    close(group_centered(rewards), rewards - rewards.mean(-1, keepdim=True))


def test_group_normalized_divides_by_the_population_deviation_plus_eps():
    rewards, _ = batch()
    std = rewards.std(-1, correction=0, keepdim=True)
    expected = (rewards - rewards.mean(-1, keepdim=True)) / (std + 0.01)
    close(group_normalized(rewards, eps=0.01), expected)


@pytest.mark.parametrize("function", GROUP)
def test_the_advantages_of_a_group_sum_to_zero(function):
    close(function(batch()[0]).sum(-1), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("function", GROUP)
def test_a_constant_per_prompt_changes_nothing(function):
    # Bradley-Terry leaves c(x) free, so no advantage may depend on it
    rewards, _ = batch()
    shift = torch.tensor([[3.0], [-50.0], [0.0], [7.0], [100.0]])
    close(function(rewards + shift), function(rewards))


@pytest.mark.parametrize("function", GROUP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e-30, 1e7, 16777217.0])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_give_exactly_zero(function, dtype, value, size):
    # the mean of equal numbers may round; all-wrong groups must give no gradient
    assert function(torch.full((2, size), value, dtype=dtype)).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.3, 1e6])
def test_rounding_noise_is_not_blown_up(dtype, value):
    rewards = torch.full((1, 4), value, dtype=dtype)
    rewards[0, 1] = torch.nextafter(rewards[0, 1], torch.tensor(INF, dtype=dtype))
    assert rewards.unique().numel() == 2
    assert group_normalized(rewards, eps=1e-12).eq(0).all()


def test_a_spread_far_below_eps_stays_small():
    # with ε = 1e-8 a spread of 1e-6 would still give advantages of about ±1
    rewards = torch.tensor([[0.5, 0.5 + 1e-6]], dtype=torch.float64)
    assert group_normalized(rewards).abs().max() < 0.01
    assert group_normalized(rewards, eps=1e-8).abs().max() > 0.9


def test_a_degenerate_group_leaves_its_neighbour_alone():
    found = group_normalized(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), eps=1e-12)
    assert found.tolist() == [[0.0, 0.0], [-1.0, 1.0]]


@pytest.mark.parametrize("function", GROUP)
def test_group_advantages_carry_no_gradient(function):
    assert not function(batch()[0].requires_grad_()).requires_grad


def expected_group_gradient(function, rewards, size):
    """(E over groups of the gradient, ∇J) for a bandit, by listing all groups."""
    logits = torch.tensor([0.9, -0.4, 0.1], dtype=torch.float64).requires_grad_()
    logp = logits.log_softmax(-1)
    groups = torch.tensor(list(itertools.product(range(3), repeat=size)))  # [3ᴳ, G]
    weight = logp.detach()[groups].sum(-1).exp()
    advantages = function(rewards[groups])
    estimate = (weight * (advantages * logp[groups]).mean(-1)).sum()
    truth = (logp.exp() * rewards).sum()
    return [
        torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (estimate, truth)
    ]


REWARDS = torch.tensor([0.2, 3.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_leave_one_out_is_unbiased(size):
    estimate, truth = expected_group_gradient(leave_one_out, REWARDS, size)
    close(estimate, truth)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_group_centered_has_the_true_direction_and_is_shorter(size):
    estimate, truth = expected_group_gradient(group_centered, REWARDS, size)
    close(estimate, truth * (size - 1) / size)


def normalized(rewards):
    return group_normalized(rewards, eps=1e-13)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_group_normalized_reweights_a_binary_prompt_by_the_known_factor(size):
    # c_G(p) = E √(K(G−K)) / (G p(1−p)), K ~ Bin(G, p); exactly 1 for G = 2
    binary = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    estimate, truth = expected_group_gradient(normalized, binary, size)
    p = torch.tensor([0.9, -0.4, 0.1], dtype=torch.float64).softmax(-1)[0].item()
    factor = sum(
        math.comb(size, k) * p**k * (1 - p) ** (size - k) * math.sqrt(k * (size - k))
        for k in range(size + 1)
    ) / (size * p * (1 - p))
    close(estimate, factor * truth)
    assert (abs(factor - 1) < 1e-12) == (size == 2)


def test_group_normalized_turns_the_gradient_when_rewards_are_not_binary():
    estimate, truth = expected_group_gradient(normalized, REWARDS, 4)
    assert torch.cosine_similarity(estimate, truth, dim=0) < 0.99


def test_batch_normalized_divides_by_one_deviation_for_all_groups():
    rewards = torch.tensor([[0.0, 1.0, 2.0], [7.0, 7.0, 1.0]], dtype=torch.float64)
    centered = torch.tensor([[-1.0, 0.0, 1.0], [2.0, 2.0, -4.0]], dtype=torch.float64)
    expected = centered / (math.sqrt(26 / 6) + 0.5)
    close(batch_normalized(rewards, eps=0.5), expected)


def test_batch_normalized_does_not_see_what_is_added_to_all_rewards_of_a_prompt():
    rewards = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 1.0]], dtype=torch.float64)
    offset = torch.tensor([[-8.0], [4.0]], dtype=torch.float64)
    close(batch_normalized(rewards + offset), batch_normalized(rewards))


def test_batch_normalized_with_one_group_is_group_normalized():
    rewards = torch.tensor([[0.0, 1.0, 5.0]], dtype=torch.float64)
    close(batch_normalized(rewards, 0.1), group_normalized(rewards, 0.1))


@pytest.mark.parametrize("function", [group_normalized, batch_normalized])
def test_an_eps_that_is_not_finite_raises(function):
    with pytest.raises(ValueError, match="eps: want a number > 0"):
        function(torch.zeros(1, 2), eps=0.0)


@pytest.mark.parametrize("function", GROUP)
class TestGroupRaises:
    @pytest.mark.parametrize("shape", [(4,), (2, 2, 2), ()])
    def test_not_two_axes(self, function, shape):
        with pytest.raises(ValueError, match="rewards: want 2 axes"):
            function(torch.zeros(shape))

    def test_a_group_of_one(self, function):
        with pytest.raises(ValueError, match=r"want G ≥ 2, found shape \[3, 1\]"):
            function(torch.zeros(3, 1))

    def test_no_group(self, function):
        with pytest.raises(ValueError, match="empty input"):
            function(torch.zeros(0, 4))

    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_a_reward_that_is_not_finite(self, function, bad):
        with pytest.raises(ValueError, match=rf"rewards: found {bad} at \[0, 1\]"):
            function(torch.tensor([[0.0, bad]]))

    def test_integer_rewards(self, function):
        with pytest.raises(ValueError, match="rewards: want a floating dtype"):
            function(torch.ones(2, 2, dtype=torch.int64))

    def test_a_list(self, function):
        with pytest.raises(ValueError, match="rewards: want a tensor, found list"):
            function([[0.0, 1.0]])


@pytest.mark.parametrize("eps", [0, -1e-4, NAN])
def test_an_eps_that_is_not_positive_raises(eps):
    with pytest.raises(ValueError, match="eps: want a number > 0"):
        group_normalized(torch.zeros(1, 2), eps=eps)
