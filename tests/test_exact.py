"""exact.py against brute force: enumerate, do not sample; float64; asymmetric laws."""

import itertools
import math

import pytest
import torch

from rlhf_mini import exact, seeding

# a worked example: four answers, two of them tied
REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=torch.float64)
BETA = 0.5
INF = math.inf


def close(found, wanted, atol=1e-10):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def random_case(seed, size=6):
    """A random law, policy logits and rewards, with a tie and a forbidden outcome."""
    generator = seeding.make(seed)
    ref_logits, logits, rewards = torch.randn(
        3, size, generator=generator, dtype=torch.float64
    )
    ref_logits[2] = logits[2] = -INF
    rewards[0] = rewards[4]
    return ref_logits.log_softmax(0), logits, rewards


# ---------------------------------------------------------------- the tilted optimum


def test_the_worked_example_has_its_optimum():
    found = exact.optimal_policy(REF.log(), REWARDS, BETA).exp()
    close(found, [0.0419, 0.2320, 0.1547, 0.5714], atol=5e-5)


def test_the_worked_example_has_its_value():
    best = exact.optimal_policy(REF.log(), REWARDS, BETA)
    close(exact.objective(best, REF.log(), REWARDS, BETA), 1.128498, atol=5e-7)
    close(BETA * exact.log_partition(REF.log(), REWARDS, BETA), 1.128498, atol=5e-7)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_the_optimum_is_the_normalised_product(seed, beta):
    ref_logp, _, rewards = random_case(seed)
    product = ref_logp.exp() * (rewards / beta).exp()
    close(exact.optimal_policy(ref_logp, rewards, beta).exp(), product / product.sum())
    close(exact.log_partition(ref_logp, rewards, beta), product.sum().log())


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_is_a_plain_sum(seed):
    ref_logp, logits, rewards = random_case(seed)
    total = 0.0
    for p, q, r in zip(logits.softmax(0), ref_logp.exp(), rewards, strict=True):
        if p > 0:
            total += p * (r - BETA * math.log(p / q))
    found = exact.objective(logits.log_softmax(0), ref_logp, rewards, BETA)
    close(found, total)


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_completes_the_square(seed):
    ref_logp, logits, rewards = random_case(seed)
    logp = logits.log_softmax(0)
    best = BETA * exact.log_partition(ref_logp, rewards, BETA)
    left = exact.objective(logp, ref_logp, rewards, BETA)
    close(left, best - exact.gap(logp, ref_logp, rewards, BETA))


def test_the_gap_at_the_optimum_is_zero():
    best = exact.optimal_policy(REF.log(), REWARDS, BETA)
    close(exact.gap(best, REF.log(), REWARDS, BETA), 0.0, atol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_no_random_policy_beats_the_optimum(seed):
    ref_logp, _, rewards = random_case(seed)
    logits = torch.randn(200, 6, generator=seeding.make(seed), dtype=torch.float64)
    logits[:, 2] = -INF
    logp = logits.log_softmax(-1)
    assert (exact.gap(logp, ref_logp, rewards, BETA) >= 0).all()


def test_a_constant_added_to_the_rewards_changes_only_the_value():
    shifted = exact.optimal_policy(REF.log(), REWARDS + 7, BETA)
    close(shifted, exact.optimal_policy(REF.log(), REWARDS, BETA))
    value = BETA * exact.log_partition(REF.log(), REWARDS + 7, BETA)
    close(value, 7 + BETA * exact.log_partition(REF.log(), REWARDS, BETA))


def test_scaling_the_rewards_is_scaling_beta():
    scaled = exact.optimal_policy(REF.log(), 3 * REWARDS, BETA)
    close(scaled, exact.optimal_policy(REF.log(), REWARDS, BETA / 3))


def test_a_larger_beta_keeps_the_optimum_closer_to_the_reference():
    kls = []
    for beta in [0.1, 0.3, 1.0, 3.0]:
        logp = exact.optimal_policy(REF.log(), REWARDS, beta)
        kls.append((logp.exp() * (logp - REF.log())).sum().item())
    assert kls == sorted(kls, reverse=True)


def test_outside_the_support_the_optimum_stays_at_zero_whatever_the_reward():
    ref_logp = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    for wild in [1e6, INF, math.nan]:
        rewards = torch.tensor([0.0, 0.2, wild], dtype=torch.float64)
        logp = exact.optimal_policy(ref_logp, rewards, 0.3)
        assert logp[2] == -INF
        close(logp.exp().sum(), 1.0)


def test_a_policy_outside_the_support_is_worth_minus_infinity():
    ref_logp = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    logp = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    rewards = torch.zeros(3, dtype=torch.float64)
    assert exact.objective(logp, ref_logp, rewards, BETA) == -INF
    assert exact.gap(logp, ref_logp, rewards, BETA) == INF


def test_an_underflowing_policy_outside_the_support_is_not_nan():
    ref_logp = torch.tensor([1.0, 0.0], dtype=torch.float64).log()
    logp = torch.tensor([0.0, -800.0], dtype=torch.float64)
    assert exact.objective(logp, ref_logp, torch.zeros(2), BETA) == -INF


def test_a_path_of_policies_is_scored_in_one_call():
    path = torch.randn(5, 4, generator=seeding.make(0), dtype=torch.float64)
    path = path.log_softmax(-1)
    found = exact.objective(path, REF.log(), REWARDS, BETA)
    close(found, [exact.objective(p, REF.log(), REWARDS, BETA) for p in path])


def test_a_batch_of_prompts_is_solved_row_by_row():
    rewards = torch.randn(3, 4, generator=seeding.make(1), dtype=torch.float64)
    found = exact.optimal_policy(REF.log().expand(3, 4), rewards, BETA)
    for row, r in zip(found, rewards, strict=True):
        close(row, exact.optimal_policy(REF.log(), r, BETA))


# ------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_is_what_autograd_finds(seed):
    ref_logp, logits, rewards = random_case(seed)
    logits.requires_grad_()
    value = exact.objective(logits.log_softmax(0), ref_logp, rewards, BETA)
    (wanted,) = torch.autograd.grad(value, logits)
    found = exact.objective_gradient(logits.detach(), ref_logp, rewards, BETA)
    close(found, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_what_finite_differences_find(seed):
    ref_logp, logits, rewards = random_case(seed)
    found = exact.objective_gradient(logits, ref_logp, rewards, BETA)
    for k in [0, 1, 3, 4, 5]:
        step = torch.zeros(6, dtype=torch.float64)
        step[k] = 1e-5
        ahead, behind = (
            exact.objective((logits + s).log_softmax(0), ref_logp, rewards, BETA)
            for s in (step, -step)
        )
        close(found[k], (ahead - behind) / 2e-5, atol=1e-8)


def test_the_gradient_vanishes_at_the_optimum():
    best = exact.optimal_policy(REF.log(), REWARDS, BETA)
    close(exact.objective_gradient(best, REF.log(), REWARDS, BETA), [0.0] * 4)


def test_the_gradient_does_not_see_a_shift_of_the_logits():
    ref_logp, logits, rewards = random_case(0)
    found = exact.objective_gradient(logits + 5, ref_logp, rewards, BETA)
    close(found, exact.objective_gradient(logits, ref_logp, rewards, BETA))


def test_the_gradient_of_a_batch_is_row_by_row():
    logits = torch.randn(3, 4, generator=seeding.make(2), dtype=torch.float64)
    found = exact.objective_gradient(logits, REF.log(), REWARDS, BETA)
    for row, theta in zip(found, logits, strict=True):
        close(row, exact.objective_gradient(theta, REF.log(), REWARDS, BETA))


def test_the_derivative_of_the_best_value_is_the_optimal_policy():
    # ∂(β log Z)/∂r = π*: the optimum is the gradient of its own value
    rewards = REWARDS.clone().requires_grad_()
    value = BETA * exact.log_partition(REF.log(), rewards, BETA)
    (slope,) = torch.autograd.grad(value, rewards)
    close(slope, exact.optimal_policy(REF.log(), REWARDS, BETA).exp())


def test_the_gap_has_no_nan_gradient_beside_a_forbidden_outcome():
    ref_logp, logits, rewards = random_case(3)
    logits.requires_grad_()
    exact.gap(logits.log_softmax(0), ref_logp, rewards, BETA).backward()
    found = -exact.objective_gradient(logits.detach(), ref_logp, rewards, BETA)
    close(logits.grad, found)


# ------------------------------------------------------------------------- best of n


def best_by_enumeration(ref, rewards, n):
    """All K**n ways to draw; the tied best draws share the win equally."""
    law = torch.zeros(len(ref), dtype=torch.float64)
    for draws in itertools.product(range(len(ref)), repeat=n):
        chance = math.prod(ref[i].item() for i in draws)
        top = max(rewards[i].item() for i in draws)
        winners = [i for i in draws if rewards[i] == top]
        for i in winners:
            law[i] += chance / len(winners)
    return law


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_what_enumerating_all_draws_gives(n):
    found = exact.best_of_n(REF.log(), REWARDS, n).exp()
    close(found, best_by_enumeration(REF, REWARDS, n))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [2, 4])
def test_best_of_n_is_right_with_ties_and_forbidden_outcomes(seed, n):
    ref_logp, _, rewards = random_case(seed)
    rewards[2] = 100.0  # outside the support: never drawn, never the best
    wanted = best_by_enumeration(ref_logp.exp(), rewards, n)
    close(exact.best_of_n(ref_logp, rewards, n).exp(), wanted)


def test_best_of_one_is_the_reference():
    ref_logp, _, rewards = random_case(0)
    found = exact.best_of_n(ref_logp, rewards, 1)
    close(found.exp(), ref_logp.exp(), atol=1e-15)


def test_equal_rewards_make_best_of_n_the_reference():
    found = exact.best_of_n(REF.log(), torch.zeros(4), 7).exp()
    close(found, REF, atol=1e-15)


@pytest.mark.parametrize("n", [1, 10, 10**3, 10**6, 10**12])
def test_best_of_n_sums_to_one_for_every_n(n):
    ref_logp, _, rewards = random_case(1)
    close(exact.best_of_n(ref_logp, rewards, n).exp().sum(), 1.0, atol=1e-12)


def test_a_rare_best_answer_keeps_its_digits():
    # 1 − (1 − p)ⁿ at p = 1e-18, where 1 − p rounds to 1
    p, n = 1e-18, 10**6
    ref_logp = torch.tensor([math.log1p(-p), math.log(p)], dtype=torch.float64)
    found = exact.best_of_n(ref_logp, torch.tensor([0.0, 1.0]).double(), n)
    assert found[1].exp().item() == pytest.approx(n * p, rel=1e-11, abs=0)


def test_a_rare_middle_answer_keeps_its_digits():
    # F = 0.8 and F₋ = 0.8 − 1e-20: the difference of the powers is n 0.8ⁿ⁻¹ p
    p, n = 1e-20, 5
    ref_logp = torch.tensor([0.8, p, 0.2], dtype=torch.float64).log()
    found = exact.best_of_n(ref_logp, torch.tensor([0.0, 1.0, 2.0]).double(), n)
    assert found[1].exp().item() == pytest.approx(n * 0.8**4 * p, rel=1e-11, abs=0)


def test_a_hopeless_answer_has_a_finite_log_probability():
    found = exact.best_of_n(REF.log(), REWARDS, 10**4)
    close(found[0], 10**4 * math.log(0.4), atol=1e-7)


def test_as_n_grows_only_the_top_level_is_left_shared_like_the_reference():
    rewards = torch.tensor([0.0, 2.0, 1.0, 2.0], dtype=torch.float64)
    found = exact.best_of_n(REF.log(), rewards, 10**4).exp()
    close(found, [0.0, 0.75, 0.0, 0.25])


def test_best_of_n_sees_only_the_order_of_the_rewards():
    ref_logp, _, rewards = random_case(2)
    found = exact.best_of_n(ref_logp, rewards.exp() * 100, 4)
    close(found.exp(), exact.best_of_n(ref_logp, rewards, 4).exp(), atol=1e-15)


def test_best_of_n_of_a_batch_is_row_by_row():
    rewards = torch.randn(3, 4, generator=seeding.make(3), dtype=torch.float64)
    found = exact.best_of_n(REF.log(), rewards, 3)
    for row, r in zip(found, rewards, strict=True):
        close(row.exp(), best_by_enumeration(REF, r, 3))


@pytest.mark.parametrize("n, kl", [(2, 0.1459), (4, 0.5006), (8, 0.9216), (64, 2.2916)])
def test_best_of_n_kl_of_the_worked_example_is_below_the_bound_by_its_ties(n, kl):
    close(exact.best_of_n_kl(REF.log(), REWARDS, n), kl, atol=5e-5)


@pytest.mark.parametrize(
    "n, bound",
    [(2, 0.193147), (4, 0.636294), (8, 1.204442), (16, 1.835089), (256, 4.549084)],
)
def test_the_bound_on_the_kl_has_its_published_values(n, bound):
    close(exact.best_of_n_kl_bound(n), bound, atol=5e-7)


@pytest.mark.parametrize("n", [2, 8, 64, 10**6])
def test_on_finitely_many_outcomes_the_bound_is_strict(n):
    ref_logp, _, rewards = random_case(4)
    found = exact.best_of_n_kl(ref_logp, rewards, n)
    assert 0 < found < exact.best_of_n_kl_bound(n)


def test_many_fine_outcomes_come_close_to_the_bound():
    size = 20_000
    ref_logp = torch.full((size,), -math.log(size), dtype=torch.float64)
    found = exact.best_of_n_kl(ref_logp, torch.arange(size).double(), 8)
    close(found, exact.best_of_n_kl_bound(8), atol=1e-3)


def test_the_kl_ends_at_minus_the_log_of_the_top_level():
    found = exact.best_of_n_kl(REF.log(), REWARDS, 10**9)
    close(found, -math.log(0.1))


# ----------------------------------------------------------- best of n from N samples


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_weights_count_the_subsets_that_each_sample_wins(n):
    rewards = torch.tensor([3.0, -1.0, 2.0, 2.0, 9.0, 0.0, 2.0], dtype=torch.float64)
    wins, subsets = torch.zeros(7, dtype=torch.float64), 0
    for chosen in itertools.combinations(range(7), n):
        top = max(rewards[i].item() for i in chosen)
        winners = [i for i in chosen if rewards[i] == top]
        wins[winners] += 1 / len(winners)
        subsets += 1
    close(exact.best_of_n_weights(rewards, n), wins / subsets)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_mean_of_the_best_is_unbiased(n):
    # enumerate every data set of N = 4 samples from a law on 3 rewards
    law, values = [0.5, 0.3, 0.2], torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    expected = 0.0
    for data in itertools.product(range(3), repeat=4):
        chance = math.prod(law[i] for i in data)
        expected += chance * exact.best_of_n_mean(values[list(data)], n)
    best = best_by_enumeration(torch.tensor(law, dtype=torch.float64), values, n)
    close(expected, (best * values).sum())


def test_the_weights_average_the_gold_score_of_the_chosen():
    proxy = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    gold = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)
    found = (exact.best_of_n_weights(proxy, 2) * gold).sum()
    close(found, (20 + 20 + 40) / 3)


def test_the_weights_agree_with_binomials_for_large_samples():
    size, n = 1000, 64
    found = exact.best_of_n_weights(torch.arange(size).double(), n)
    wanted = [math.comb(i, n - 1) / math.comb(size, n) for i in range(size)]
    close(found, wanted, atol=1e-14)


def test_the_weights_of_a_batch_are_row_by_row():
    rewards = torch.randn(3, 9, generator=seeding.make(4), dtype=torch.float64).round()
    found = exact.best_of_n_weights(rewards, 4)
    for row, r in zip(found, rewards, strict=True):
        close(row, exact.best_of_n_weights(r, 4))
    close(found.sum(-1), [1.0, 1.0, 1.0])


def test_best_of_one_weights_are_equal_and_best_of_all_takes_the_maximum():
    rewards = torch.tensor([2.0, 7.0, 1.0])
    close(exact.best_of_n_weights(rewards, 1), [1 / 3] * 3, atol=1e-7)
    assert exact.best_of_n_weights(rewards, 3).tolist() == [0.0, 1.0, 0.0]
    assert exact.best_of_n_mean(rewards, 3) == 7


# ---------------------------------------------------------------- rejection sampling


def draw_reference(m, generator):
    return torch.multinomial(REF, m, replacement=True, generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_rejection_sampling_draws_from_the_optimum(seed):
    draws, _ = exact.rejection_sample(
        draw_reference, lambda y: REWARDS[y], BETA, 2.0, seeding.make(seed), 20_000
    )
    wanted = 20_000 * exact.optimal_policy(REF.log(), REWARDS, BETA).exp()
    chi_square = ((draws.bincount(minlength=4) - wanted) ** 2 / wanted).sum()
    assert chi_square < 16.27  # 0.1 % of the chi-square law with 3 degrees


@pytest.mark.parametrize("reward_max", [2.0, 2.7])
def test_the_acceptance_rate_is_the_partition_function(reward_max):
    _, rate = exact.rejection_sample(
        draw_reference, lambda y: REWARDS[y], BETA, reward_max, seeding.make(0), 20_000
    )
    log_z = exact.log_partition(REF.log(), REWARDS, BETA).item()
    wanted = math.exp(log_z - reward_max / BETA)
    assert abs(rate / wanted - 1) < 4 * math.sqrt((1 - wanted) / 20_000)


def test_rejection_sampling_repeats_with_its_seed():
    first, second = (
        exact.rejection_sample(
            draw_reference, lambda y: REWARDS[y], BETA, 2.0, seeding.make(5), 50
        )[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_equal_rewards_are_all_accepted():
    _, rate = exact.rejection_sample(
        draw_reference, lambda y: torch.zeros(len(y)), BETA, 0.0, seeding.make(0), 100
    )
    assert rate == 1.0


def test_sequences_can_be_drawn_too():
    def coins(m, generator):
        return torch.randint(2, (m, 3), generator=generator)

    draws, _ = exact.rejection_sample(
        coins, lambda y: y.sum(-1).double(), BETA, 3.0, seeding.make(0), 10
    )
    assert draws.shape == (10, 3)


def test_a_bound_in_the_reward_dtype_is_not_too_low_by_rounding():
    draws, rate = exact.rejection_sample(
        draw_reference,
        lambda y: torch.full((len(y),), 0.1),
        1.0,
        0.1,
        seeding.make(0),
        3,
    )
    assert rate == pytest.approx(1.0)


# ----------------------------------------------------------------------- enumeration


def test_sequences_come_in_the_order_of_counting():
    found = exact.enumerate_sequences(3, 4).tolist()
    assert found == [list(s) for s in itertools.product(range(3), repeat=4)]


def test_twenty_tokens_twice_are_four_hundred_sequences():
    found = exact.enumerate_sequences(20, 2)
    assert found.shape == (400, 2) and len(found.unique(dim=0)) == 400


# ---------------------------------------------------------------------------- errors

LOGP, R = REF.log(), REWARDS
TILTS = [
    exact.log_partition,
    exact.optimal_policy,
    lambda *a: exact.objective(LOGP, *a),
    lambda *a: exact.gap(LOGP, *a),
    lambda *a: exact.objective_gradient(torch.zeros(4), *a),
    lambda ref_logp, rewards, beta: exact.best_of_n(ref_logp, rewards, 2),
    lambda ref_logp, rewards, beta: exact.best_of_n_kl(ref_logp, rewards, 2),
]


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize(
    "ref_logp, rewards, message",
    [
        (LOGP, R[:3], r"shapes do not fit: .*ref_logp \[4\], rewards \[3\]"),
        (LOGP.expand(2, 4), R.expand(3, 4), "shapes do not fit"),
        (LOGP + 1, R, r"ref_logp: want a law \(log_softmax\), found .* sum to 2.718"),
        (torch.zeros(4, dtype=torch.int64), R, "ref_logp: want a floating dtype"),
        (LOGP * math.nan, R, r"ref_logp: found nan at \[0\]"),
        (torch.full((4,), -INF), R, "ref_logp: want a law"),
        (torch.zeros(()), R, r"ref_logp: want shape \[..., K\], found \[\]"),
        ([0.0], R, "ref_logp: want a tensor, found list"),
        (LOGP, [0.0], "rewards: want a tensor, found list"),
        (LOGP, R * math.nan, r"rewards: found nan at \[0\]"),
        (LOGP, R / 0, "rewards: found"),
    ],
)
def test_a_bad_law_or_reward_is_named(tilt, ref_logp, rewards, message):
    with pytest.raises(ValueError, match=message):
        tilt(ref_logp, rewards, BETA)


@pytest.mark.parametrize("tilt", TILTS[:5])
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, INF])
def test_a_beta_that_is_not_positive_is_named(tilt, beta):
    with pytest.raises(ValueError, match="beta: want a number > 0"):
        tilt(LOGP, R, beta)


@pytest.mark.parametrize("function", [exact.objective, exact.gap])
def test_logits_in_the_place_of_a_law_are_named(function):
    with pytest.raises(ValueError, match="logp: want a law .* sum to 4"):
        function(torch.zeros(4), LOGP, R, BETA)


def test_logits_that_are_nan_or_leave_the_support_are_named():
    with pytest.raises(ValueError, match="logits: found nan"):
        exact.objective_gradient(LOGP * math.nan, LOGP, R, BETA)
    ref_logp = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).log()
    with pytest.raises(ValueError, match="logits: found mass where ref_logp is -inf"):
        exact.objective_gradient(torch.zeros(4), ref_logp, R, BETA)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_an_n_that_is_not_a_count_is_named(n):
    calls = [
        lambda: exact.best_of_n(LOGP, R, n),
        lambda: exact.best_of_n_kl(LOGP, R, n),
        lambda: exact.best_of_n_kl_bound(n),
        lambda: exact.best_of_n_weights(R, n),
        lambda: exact.best_of_n_mean(R, n),
        lambda: exact.rejection_sample(
            draw_reference, lambda y: R[y], BETA, 2.0, seeding.make(0), n
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="n: want a whole number ≥ 1, found"):
            call()


def test_best_of_more_than_the_samples_is_named():
    for function in [exact.best_of_n_weights, exact.best_of_n_mean]:
        with pytest.raises(ValueError, match="n: want n ≤ the 4 rewards, found 5"):
            function(R, 5)
        with pytest.raises(ValueError, match=r"rewards: found nan at \[0\]"):
            function(R * math.nan, 2)


@pytest.mark.parametrize(
    "reward, beta, reward_max, message",
    [
        (lambda y: R[y], 0.0, 2.0, "beta: want a number > 0"),
        (lambda y: R[y], BETA, math.nan, "reward_max: found nan"),
        (lambda y: R[y], BETA, 1.9, r"reward_max: 1.9 < a drawn reward, 2.0"),
        (lambda y: R[y][:-1], BETA, 2.0, r"reward: want shape \[64\], found \[63\]"),
        (lambda y: R[y] * math.nan, BETA, 2.0, "reward: found nan"),
        (lambda y: R[y], BETA, 50.0, "acceptance too rare, found 0 of 5 accepted"),
    ],
)
def test_what_rejection_sampling_cannot_use_is_named(reward, beta, reward_max, message):
    with pytest.raises(ValueError, match=message):
        exact.rejection_sample(
            draw_reference, reward, beta, reward_max, seeding.make(0), 5, 1000
        )


@pytest.mark.parametrize("vocab, length", [(0, 2), (2, 0), (2.0, 2)])
def test_an_empty_world_is_named(vocab, length):
    with pytest.raises(ValueError, match="want a whole number ≥ 1"):
        exact.enumerate_sequences(vocab, length)


def test_a_world_too_large_to_list_is_named():
    with pytest.raises(ValueError, match=r"want V\*\*T ≤ 10\*\*7, found 50257\*\*2"):
        exact.enumerate_sequences(50257, 2)
