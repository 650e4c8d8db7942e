"""kl.py: every expectation is a sum over all actions or sequences, never a sample."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from rlhf_mini.kl import (
    AdaptiveKL,
    approx_kl,
    exact_kl,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_surrogate,
    shape_rewards,
)
from rlhf_mini.logprobs import sequence_sum, token_logp

NAN, INF = math.nan, math.inf
# KL(π‖π_ref) = 0.89 and KL(π_ref‖π) = 1.82: a swap cannot hide
PI = torch.tensor([0.90, 0.07, 0.02, 0.01], dtype=torch.float64)
REF = torch.tensor([0.30, 0.10, 0.10, 0.50], dtype=torch.float64)
ESTIMATORS = [kl_k1, kl_k2, kl_k3]
MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])


def close(found, expected, atol=1e-10):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def gradient(value, leaf):
    return torch.autograd.grad(value, leaf, retain_graph=True)[0]


def bandit():
    """A leaf of logits with law PI, its log-probabilities, and log REF."""
    logits = (PI.log() + 0.7).requires_grad_()
    return logits, logits.log_softmax(-1), REF.log()


def tree(seed=0):
    """All sequences over {0 = end, 1, 2} of at most 3 tokens, laws that see the prefix.

    Returns theta (the leaf), logp [N, T], ref_logp [N, T], mask [N, T].
    """
    prefixes = [y for t in range(3) for y in itertools.product((1, 2), repeat=t)]
    endings = [(*y, 0) for y in prefixes] + list(itertools.product((1, 2), repeat=3))
    generator = torch.Generator().manual_seed(seed)
    size = (len(prefixes), 3)
    theta = torch.randn(size, generator=generator, dtype=torch.float64).mul(1.5)
    ref = torch.randn(size, generator=generator, dtype=torch.float64).mul(1.5)
    theta.requires_grad_()
    tokens = torch.tensor([[*y, *[0] * (3 - len(y))] for y in endings])
    mask = torch.tensor([[1] * len(y) + [0] * (3 - len(y)) for y in endings])
    row = torch.tensor(
        [
            [prefixes.index(y[:t]) if t < len(y) else 0 for t in range(3)]
            for y in endings
        ]
    )
    logp, ref_logp = (token_logp(z[row], tokens, mask) for z in (theta, ref))
    return theta, logp, ref_logp, mask


# --- k1, k2, k3: their means --------------------------------------------------


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_the_mean_of_the_estimator_is_the_exact_kl(estimator):
    # the defect: log-ratio reversed, so that means are −KL and something else
    exact = sum(
        p * math.log(p / q) for p, q in zip(PI.tolist(), REF.tolist(), strict=True)
    )
    assert (PI * estimator(PI.log(), REF.log())).sum().item() == pytest.approx(
        exact, abs=1e-12
    )


def test_the_two_directions_of_the_test_policies_differ():
    kl = (PI * (PI / REF).log()).sum().item()
    reversed_kl = (REF * (REF / PI).log()).sum().item()
    assert f"{kl:.2f} {reversed_kl:.2f}" == "0.89 1.82"


def test_k2_is_biased_and_the_bias_is_the_known_sum():
    d = (PI / REF).log()
    close((PI * kl_k2(PI.log(), REF.log())).sum(), (PI * d * d).sum() / 2)
    assert abs((PI * (d * d / 2 - d)).sum()) > 0.1


def test_k1_may_be_negative_and_k3_never_is():
    assert kl_k1(PI.log(), REF.log()).min() < 0
    assert kl_k3(PI.log(), REF.log()).min() >= 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimate_at_the_reference_is_exactly_zero(estimator):
    assert estimator(PI.log(), PI.log()).eq(0).all()


def test_k3_keeps_its_digits_near_the_reference():
    # exp(−d) − 1 + d in float32 gives 0 or noise at d = 1e-4; the truth is d²/2
    d = torch.tensor([1e-4])
    assert kl_k3(d, torch.zeros(1)).item() == pytest.approx(5e-9, rel=0.05)


def test_k3_with_support_lost_to_top_p_misses_the_lost_mass():
    # π never takes arm 2; the mean of k3 is then KL + π_ref(support of π) − 1
    pi = torch.tensor([0.75, 0.25], dtype=torch.float64)
    ref = torch.tensor([0.3, 0.5], dtype=torch.float64)  # 0.2 stands elsewhere
    exact = (pi * (pi / ref).log()).sum()
    close((pi * kl_k3(pi.log(), ref.log())).sum(), exact + 0.8 - 1)


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_schulmans_table_in_closed_form(mu):
    # x ~ q = N(0, 1), p = N(mu, 1), KL(q‖p) = mu²/2, by quadrature
    x = torch.linspace(-14, 14, 200_001, dtype=torch.float64)
    weight = torch.exp(-x * x / 2)
    weight /= weight.sum()
    logq, logp = -x * x / 2, -((x - mu) ** 2) / 2
    kl = mu * mu / 2
    mean, std = {}, {}
    for name, estimator in {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}.items():
        k = estimator(logq, logp)
        mean[name] = (weight * k).sum().item()
        std[name] = (weight * (k - mean[name]) ** 2).sum().sqrt().item()
    assert mean["k1"] == pytest.approx(kl, abs=1e-10)
    assert mean["k2"] == pytest.approx(kl * (1 + mu * mu / 4), abs=1e-10)
    assert mean["k3"] == pytest.approx(kl, abs=1e-10)
    assert std["k1"] == pytest.approx(mu, abs=1e-10)
    assert std["k2"] == pytest.approx(math.sqrt((2 * mu**4 + mu**6) / 4), abs=1e-10)
    assert std["k3"] == pytest.approx(
        math.sqrt(math.expm1(mu * mu) - mu * mu), abs=1e-9
    )
    # the published columns std/true: 20, 1.42, 1.42 and 2, 1.73, 1.7
    published = {0.1: (20, 1.42, 1.42), 1.0: (2, 1.73, 1.7)}[mu]
    for name, digits in zip(("k1", "k2", "k3"), published, strict=True):
        assert std[name] / kl == pytest.approx(digits, abs=0.006)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=["bandit", "sequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_estimate_is_elementwise_and_detached(estimator, shape, dtype):
    logp = -torch.arange(1, 7, dtype=dtype).view(shape).requires_grad_()
    ref_logp = (logp.detach() * 0.7).requires_grad_()
    k = estimator(logp, ref_logp)
    one = [
        estimator(a, b) for a, b in zip(logp.flatten(), ref_logp.flatten(), strict=True)
    ]
    assert k.shape == shape and k.dtype == dtype and not k.requires_grad
    # a vectorised exp may differ from a single one in the last bit
    torch.testing.assert_close(k.flatten(), torch.stack(one))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimate_of_other_shapes_raises(estimator):
    with pytest.raises(ValueError, match=r"logp \[4\], ref_logp \[1\]"):
        estimator(torch.zeros(4), torch.zeros(1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimate_of_integers_raises(estimator):
    with pytest.raises(ValueError, match="ref_logp: want a floating dtype"):
        estimator(torch.zeros(4), torch.zeros(4, dtype=torch.int64))


# --- what the estimators do as rewards and as losses --------------------------


def reward_gradient(coefficient, logp):
    """E over a ~ π of coefficient · ∇log π: what a detached penalty descends."""
    return lambda leaf: gradient((logp.exp().detach() * coefficient * logp).sum(), leaf)


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    logits, logp, ref_logp = bandit()
    found = reward_gradient(kl_k1(logp, ref_logp), logp)(logits)
    close(found, gradient(exact_kl(logits, ref_logp), logits))


def test_k3_in_the_reward_has_the_gradient_of_the_difference_of_the_kls():
    logits, logp, ref_logp = bandit()
    found = reward_gradient(kl_k3(logp, ref_logp), logp)(logits)
    difference = exact_kl(logits, ref_logp) - exact_kl(ref_logp, logits)
    close(found, gradient(difference, logits))


def test_k3_in_the_reward_barely_pulls_back_near_the_reference():
    # the share of the true pull goes to 0 in proportion to the distance
    direction = torch.tensor([1.0, -0.3, 0.4, -1.2], dtype=torch.float64)
    share = []
    for step in (1e-2, 1e-3):
        logits = (REF.log() + step * direction).requires_grad_()
        logp = logits.log_softmax(-1)
        pulls = [
            reward_gradient(k(logp, REF.log()), logp)(logits).norm().item()
            for k in (kl_k3, kl_k1)
        ]
        share.append(pulls[0] / pulls[1])
    assert share[0] < 0.02 and share[1] == pytest.approx(share[0] / 10, rel=0.05)


def test_k2_in_the_reward_has_not_the_gradient_of_the_kl():
    logits, logp, ref_logp = bandit()
    found = reward_gradient(kl_k2(logp, ref_logp), logp)(logits)
    assert (found - gradient(exact_kl(logits, ref_logp), logits)).abs().max() > 0.05


def test_k1_as_a_loss_has_expected_gradient_zero():
    # the defect: k1 back-propagated as the KL loss; that published run falls apart
    logits, logp, ref_logp = bandit()
    weight = PI.clone()
    found = gradient((weight * (logp - ref_logp)).sum(), logits)
    close(found, torch.zeros(4, dtype=torch.float64))
    assert gradient(exact_kl(logits, ref_logp), logits).abs().max() > 0.1


def test_k2_as_a_loss_has_the_gradient_of_the_kl():
    logits, logp, ref_logp = bandit()
    found = gradient((PI * (logp - ref_logp) ** 2 / 2).sum(), logits)
    close(found, gradient(exact_kl(logits, ref_logp), logits))


def test_k3_as_a_loss_has_the_gradient_of_the_forward_kl():
    logits, logp, ref_logp = bandit()
    d = logp - ref_logp
    found = gradient((PI * (torch.exp(-d) - 1 + d)).sum(), logits)
    close(found, gradient(exact_kl(ref_logp, logits), logits))
    assert (found - gradient(exact_kl(logits, ref_logp), logits)).abs().max() > 0.1


# --- exact_kl -----------------------------------------------------------------


def test_exact_kl_equals_torch_distributions():
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    ref_logits = logits.roll(1, 0)
    reference = kl_divergence(
        Categorical(logits=logits), Categorical(logits=ref_logits)
    )
    close(exact_kl(logits, ref_logits), reference)


def test_exact_kl_equals_the_functional_of_torch_with_log_target():
    # the defect: F.kl_div without log_target is NaN, and its arguments are swapped
    reference = F.kl_div(REF.log(), PI.log(), reduction="sum", log_target=True)
    close(exact_kl(PI.log(), REF.log()), reference)


def test_exact_kl_is_directed():
    assert abs(exact_kl(PI.log(), REF.log()) - exact_kl(REF.log(), PI.log())) > 0.05


def test_exact_kl_ignores_a_constant_per_row():
    close(exact_kl(PI.log() + 3, REF.log() - 50), exact_kl(PI.log(), REF.log()))


def test_exact_kl_is_differentiable_in_both_arguments():
    logits, ref_logits = PI.log().requires_grad_(), REF.log().requires_grad_()
    assert torch.autograd.gradcheck(exact_kl, (logits, ref_logits))


def test_the_gradient_of_exact_kl_is_the_closed_form():
    # ∂KL/∂zᵥ = π(v) (log π(v)/π_ref(v) − KL)
    logits, logp, ref_logp = bandit()
    d = (logp - ref_logp).detach()
    close(gradient(exact_kl(logits, ref_logp), logits), PI * (d - (PI * d).sum()))


@pytest.mark.parametrize("ref", [-INF, 0.0], ids=["both ban it", "only π bans it"])
def test_an_action_that_pi_never_takes_adds_nothing(ref):
    logits = torch.tensor([0.0, 1.0, -INF]).requires_grad_()
    ref_logits = torch.tensor([1.0, 0.0, ref])
    kl = exact_kl(logits, ref_logits)
    pi, q = torch.tensor([0.0, 1.0]).softmax(-1), ref_logits.softmax(-1)[:2]
    torch.testing.assert_close(kl.detach(), (pi * (pi / q).log()).sum())
    assert torch.isfinite(gradient(kl, logits)).all()


def test_exact_kl_is_infinite_where_the_reference_cannot_follow():
    assert exact_kl(torch.zeros(2), torch.tensor([0.0, -INF])).item() == INF


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
def test_garbage_in_the_pads_changes_no_bit_of_exact_kl(garbage):
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 4, 4, 3, generator=generator, dtype=torch.float64)
    results = []
    for fill in (0.0, garbage):
        filled = pair.masked_fill((MASK == 0).unsqueeze(-1), fill).requires_grad_()
        kl = exact_kl(*filled, mask=MASK)
        results.append((kl.detach(), gradient((kl * torch.arange(4)).sum(), filled)))
    (clean, clean_gradient), (dirty, dirty_gradient) = results
    assert torch.equal(clean, dirty) and torch.equal(clean_gradient, dirty_gradient)
    assert clean[MASK == 0].eq(0).all()


def test_exact_kl_of_other_shapes_raises():
    with pytest.raises(ValueError, match=r"logits \[2, 3\], ref_logits \[3\]"):
        exact_kl(torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize("bad", [NAN, INF])
def test_exact_kl_of_what_is_no_distribution_raises(bad):
    with pytest.raises(ValueError, match=r"the largest entry of row \[1\] is"):
        exact_kl(torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [0, bad, 0]]))


# --- kl_surrogate: the sequence law -------------------------------------------


def expected_surrogate(logp, ref_logp, mask):
    """E over y ~ π of the loss of that one sequence."""
    weight = sequence_sum(logp, mask).exp().detach()
    rows = range(len(logp))
    pick = [slice(y, y + 1) for y in rows]
    losses = [kl_surrogate(logp[y], ref_logp[y], mask[y]) for y in pick]
    return (weight * torch.stack(losses)).sum()


def sequence_kl(logp, ref_logp, mask):
    """KL of the sequence law, differentiable, by enumeration."""
    total, ref_total = sequence_sum(logp, mask), sequence_sum(ref_logp, mask)
    return (total.exp() * (total - ref_total)).sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_surrogates_expected_gradient_is_that_of_the_sequence_kl(seed):
    theta, logp, ref_logp, mask = tree(seed)
    assert sequence_sum(logp, mask).exp().sum().item() == pytest.approx(1, abs=1e-12)
    found = gradient(expected_surrogate(logp, ref_logp, mask), theta)
    close(found, gradient(sequence_kl(logp, ref_logp, mask), theta))


@pytest.mark.parametrize("kind", ["k2 per token", "exact KL per prefix"])
def test_a_kl_loss_per_token_is_only_part_of_the_gradient(kind):
    # the defect: a sum of token losses forgets that a token decides what follows
    theta, logp, ref_logp, mask = tree()
    weight = sequence_sum(logp, mask).exp().detach()
    per_token = (logp - ref_logp) ** 2 / 2
    if kind == "exact KL per prefix":  # the same expected gradient, with k1 · log π
        per_token = (logp - ref_logp).detach() * logp
    found = gradient((weight * (per_token * mask).sum(-1)).sum(), theta)
    truth = gradient(sequence_kl(logp, ref_logp, mask), theta)
    assert (found - truth).norm() / truth.norm() > 0.1
    # the prefixes of full length have no future: there both are right
    close(found[-4:], truth[-4:])


def test_k1_per_token_with_its_reward_to_go_has_the_gradient_of_the_sequence_kl():
    theta, logp, ref_logp, mask = tree()
    weight = sequence_sum(logp, mask).exp().detach()
    penalty = shape_rewards(torch.zeros(len(logp)).double(), logp, ref_logp, mask, 1.0)
    to_go = -penalty.flip(-1).cumsum(-1).flip(-1)
    found = gradient((weight * (to_go * logp * mask).sum(-1)).sum(), theta)
    close(found, gradient(sequence_kl(logp, ref_logp, mask), theta))


def test_the_surrogate_off_policy_is_right_only_with_the_weight():
    theta, logp, ref_logp, mask = tree()
    _, old_logp, _, _ = tree(seed=7)
    old, new = (sequence_sum(x, mask).exp().detach() for x in (old_logp, logp))
    k2 = (sequence_sum(logp, mask) - sequence_sum(ref_logp, mask)) ** 2 / 2
    truth = gradient(sequence_kl(logp, ref_logp, mask), theta)
    close(gradient((old * (new / old) * k2).sum(), theta), truth)
    assert (gradient((old * k2).sum(), theta) - truth).norm() > 0.1


def test_the_surrogate_is_the_mean_over_sequences_of_half_the_squared_sum():
    logp = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]])
    ref_logp = torch.tensor([[-2.0, -4.0, -1.0], [-1.5, -1.0, -0.5]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert kl_surrogate(logp, ref_logp, mask).item() == (9 / 2 + 0) / 2


def test_the_surrogate_of_one_token_is_k2():
    logp, ref_logp = PI.log().view(4, 1), REF.log().view(4, 1)
    close(kl_surrogate(logp, ref_logp, None), kl_k2(logp, ref_logp).mean())


def test_a_row_without_tokens_is_left_out_of_the_surrogate():
    logp, ref_logp = torch.tensor([[-1.0, -2.0]] * 2), torch.zeros(2, 2)
    mask = torch.tensor([[1, 1], [0, 0]])
    whole = kl_surrogate(logp[:1], ref_logp[:1], None)
    assert torch.equal(kl_surrogate(logp, ref_logp, mask), whole)


def test_the_surrogate_gives_the_reference_no_gradient():
    logp, ref_logp = torch.zeros(2, 2, requires_grad=True), torch.ones(2, 2)
    ref_logp.requires_grad_()
    kl_surrogate(logp, ref_logp, None).backward()
    assert ref_logp.grad is None and logp.grad.ne(0).all()


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("function", [kl_surrogate, approx_kl])
def test_garbage_in_the_pads_changes_no_bit(function, garbage):
    generator = torch.Generator().manual_seed(0)
    logp, ref_logp = -torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
    results = []
    for fill in (-1.0, garbage):
        a, b = (x.masked_fill(MASK == 0, fill) for x in (logp, ref_logp))
        a.requires_grad_()
        value = function(a, b, MASK)
        results.append([value.detach()])
        if function is kl_surrogate:
            results[-1].append(gradient(value, a))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("function", [kl_surrogate, approx_kl])
class TestRaises:
    def test_other_shapes(self, function):
        with pytest.raises(
            ValueError, match=r"shapes differ: logp \[2, 3\], \w+ \[2, 1"
        ):
            function(torch.zeros(2, 3), torch.zeros(2, 1), None)

    def test_an_empty_mask(self, function):
        with pytest.raises(ValueError, match="mask: empty"):
            function(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))

    def test_a_mask_of_another_shape(self, function):
        with pytest.raises(ValueError, match=r"mask \[2\]"):
            function(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2))

    @pytest.mark.parametrize("bad", [NAN, -INF])
    def test_an_entry_that_is_not_finite(self, function, bad):
        x = torch.tensor([[0.0, bad]])
        with pytest.raises(ValueError, match=rf"logp: found {bad} at \[0, 1\]"):
            function(x, torch.zeros(1, 2), None)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_the_surrogate_wants_two_axes(shape):
    with pytest.raises(ValueError, match="logp: want 2 axes"):
        kl_surrogate(torch.zeros(shape), torch.zeros(shape), None)


# --- approx_kl ----------------------------------------------------------------


def test_approx_kl_averages_to_the_kl_from_the_old_policy():
    # drawn from π_old, so it is KL(π_old‖π), and not the other direction
    mean = sum(
        p * approx_kl(new.view(1), old.view(1))
        for p, new, old in zip(PI, REF.log(), PI.log(), strict=True)
    )
    close(mean, exact_kl(PI.log(), REF.log()))


def test_approx_kl_is_ratio_minus_one_minus_log_ratio():
    log_ratio = REF.log() - PI.log()
    naive = (log_ratio.exp() - 1 - log_ratio).mean()
    close(approx_kl(REF.log(), PI.log()), naive)


def test_approx_kl_right_after_a_rollout_is_exactly_zero():
    assert approx_kl(PI.log(), PI.log()).item() == 0.0


# --- shape_rewards ------------------------------------------------------------


def shaping(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    logp, ref_logp = -3 * torch.rand(2, 4, 4, generator=generator, dtype=dtype)
    return torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=dtype), logp, ref_logp


def test_shaped_rewards_equal_a_naive_loop_with_pads_on_either_side():
    score, logp, ref_logp = shaping()
    found = shape_rewards(score, logp, ref_logp, MASK, beta=0.3)
    for b in range(4):
        kept = [t for t in range(4) if MASK[b, t]]
        for t in range(4):
            naive = -0.3 * (logp[b, t] - ref_logp[b, t]).item() if t in kept else 0.0
            naive += score[b].item() if t == kept[-1] else 0.0
            assert found[b, t].item() == pytest.approx(naive, abs=1e-12)


def test_the_rewards_of_a_row_sum_to_score_minus_beta_times_the_sequence_log_ratio():
    score, logp, ref_logp = shaping()
    total = shape_rewards(score, logp, ref_logp, MASK, beta=0.3).sum(-1)
    log_ratio = sequence_sum(logp, MASK) - sequence_sum(ref_logp, MASK)
    close(total, score - 0.3 * log_ratio)


def test_the_expected_return_is_the_objective():
    # E[Σ rewards] = E[score] − β KL(π‖π_ref), by enumeration of all sequences
    _, logp, ref_logp, mask = tree()
    score = torch.linspace(-1, 2, len(logp), dtype=torch.float64)
    weight = sequence_sum(logp, mask).exp().detach()
    rewards = shape_rewards(score, logp, ref_logp, mask, beta=0.5)
    kl = sequence_kl(logp, ref_logp, mask).detach()
    close((weight * rewards.sum(-1)).sum(), (weight * score).sum() - 0.5 * kl)


def test_a_token_likelier_than_under_the_reference_is_fined():
    # the defect: the sign of the penalty
    score, logp = torch.zeros(1), torch.tensor([[-1.0, -3.0]])
    rewards = shape_rewards(score, logp, torch.full((1, 2), -2.0), None, beta=2.0)
    assert rewards.tolist() == [[-2.0, 2.0]]


def test_the_score_lands_on_the_last_action_and_not_on_the_pad_after_it():
    # the defect: the score added on the pad after EOS, or always in the last column
    score, zeros = torch.arange(1.0, 5.0), torch.zeros(4, 4)
    found = shape_rewards(score, zeros, zeros, MASK, beta=1.0)
    expected = [[0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 4, 0]]
    assert found.tolist() == expected


def test_shaped_rewards_at_the_reference_are_the_score_alone():
    score, logp, _ = shaping()
    found = shape_rewards(score, logp, logp, None, beta=5.0)
    assert found[:, :-1].eq(0).all() and torch.equal(found[:, -1], score)


def test_shaped_rewards_are_detached():
    # the defect: missing detach, which adds the gradient of the penalty itself
    leaves = [x.requires_grad_() for x in shaping()]
    assert not shape_rewards(*leaves, MASK, beta=1.0).requires_grad


def test_shaping_changes_none_of_its_inputs():
    inputs = shaping()
    before = [x.clone() for x in inputs]
    shape_rewards(*inputs, None, beta=1.0)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_garbage_in_the_pads_changes_no_bit_of_the_rewards(garbage, dtype):
    score, logp, ref_logp = shaping(dtype)
    clean = shape_rewards(score, logp, ref_logp, MASK, beta=0.3)
    dirty = [x.masked_fill(MASK == 0, garbage) for x in (logp, ref_logp)]
    assert torch.equal(shape_rewards(score, *dirty, MASK, beta=0.3), clean)
    assert clean[MASK == 0].eq(0).all() and clean.dtype == dtype


def test_a_row_without_tokens_has_no_place_for_its_score():
    mask = torch.tensor([[1, 0], [0, 0]])
    zeros = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="mask: row 1 has no unmasked token"):
        shape_rewards(torch.zeros(2), zeros, zeros, mask, beta=1.0)


@pytest.mark.parametrize("beta", [0, -0.1, NAN, INF, None])
def test_a_beta_that_is_not_positive_raises(beta):
    with pytest.raises(ValueError, match="beta: want a number"):
        shape_rewards(*shaping(), None, beta=beta)


def test_a_score_per_token_raises():
    _, logp, ref_logp = shaping()
    with pytest.raises(ValueError, match=r"score: want 1 axes, found shape \[4, 4\]"):
        shape_rewards(logp, logp, ref_logp, None, beta=1.0)


def test_a_score_of_another_batch_raises():
    score, logp, ref_logp = shaping()
    with pytest.raises(ValueError, match=r"score \[3\], logp \[4, 4\]"):
        shape_rewards(score[:3], logp, ref_logp, None, beta=1.0)


def test_a_score_that_is_not_finite_raises():
    score, logp, ref_logp = shaping()
    score[2] = NAN
    with pytest.raises(ValueError, match=r"score: found nan at \[2\]"):
        shape_rewards(score, logp, ref_logp, None, beta=1.0)


def test_log_probabilities_that_do_not_fit_raise_when_shaping():
    score, logp, ref_logp = shaping()
    with pytest.raises(ValueError, match=r"logp \[4, 4\], ref_logp \[4, 3\]"):
        shape_rewards(score, logp, ref_logp[:, :3], None, beta=1.0)
    with pytest.raises(ValueError, match="logp: want 2 axes"):
        shape_rewards(score, logp[0], ref_logp[0], None, beta=1.0)
    ref_logp[1, 2] = -INF
    with pytest.raises(ValueError, match=r"ref_logp: found -inf at \[1, 2\]"):
        shape_rewards(score, logp, ref_logp, None, beta=1.0)


# --- AdaptiveKL ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kl, factor",
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 0.05),  # 10 % above
        (5.4, 1 - 0.1 * 0.05),
        (600.0, 1 + 0.2 * 0.05),  # clipped at ±20 %
        (-3.0, 1 - 0.2 * 0.05),  # a sampled mean may be negative
    ],
)
def test_the_controller_multiplies_by_zieglers_factor(kl, factor):
    controller = AdaptiveKL(beta=0.2, target=6.0, horizon=10_000)
    assert controller.update(kl, n=500) == pytest.approx(0.2 * factor, abs=1e-15)
    assert controller.beta == pytest.approx(0.2 * factor, abs=1e-15)


def test_too_much_kl_raises_beta_and_too_little_lowers_it():
    # the defect: a sign that says "β larger = closer" and does the opposite
    assert AdaptiveKL(1.0, 6.0, 100).update(7.0, 10) > 1
    assert AdaptiveKL(1.0, 6.0, 100).update(5.0, 10) < 1


def test_a_closed_loop_finds_the_beta_of_the_target():
    # a policy with KL = 3/β: the controller must settle where KL = 6
    controller = AdaptiveKL(beta=2.0, target=6.0, horizon=100)
    for _ in range(500):
        controller.update(3 / controller.beta, n=10)
    assert controller.beta == pytest.approx(0.5, abs=1e-6)


def test_a_kl_per_token_instead_of_per_sequence_drives_beta_to_nothing():
    # the defect: the mean KL per token fed to the controller (the wrong scale)
    per_sequence, per_token = (AdaptiveKL(0.2, 6.0, 1000) for _ in range(2))
    for _ in range(200):
        per_sequence.update(6.0, n=64)
        per_token.update(6.0 / 24, n=64)  # 24 tokens a sequence
    assert per_sequence.beta == pytest.approx(0.2) and per_token.beta < 0.02


def test_the_controller_takes_a_tensor_and_keeps_a_number():
    controller = AdaptiveKL(1.0, 6.0, 100)
    controller.update(torch.tensor(12.0), n=50)
    assert type(controller.beta) is float and controller.beta == pytest.approx(1.1)


def test_a_resumed_controller_goes_on_as_if_never_stopped():
    straight = AdaptiveKL(0.2, 6.0, 1000)
    straight.update(9.0, 64)
    resumed = AdaptiveKL(1.0, 1.0, 1.0)
    resumed.load_state_dict(straight.state_dict())
    assert resumed.update(4.0, 64) == straight.update(4.0, 64)
    assert resumed.state_dict() == straight.state_dict()


def test_a_saved_state_does_not_move_with_the_controller():
    controller = AdaptiveKL(0.2, 6.0, 1000)
    state = controller.state_dict()
    controller.update(9.0, 64)
    assert state == {"beta": 0.2, "target": 6.0, "horizon": 1000.0}


@pytest.mark.parametrize("name", ["beta", "target", "horizon"])
@pytest.mark.parametrize("bad", [0, -1, NAN, INF, "6"])
def test_a_setting_that_is_not_positive_raises(name, bad):
    settings = {"beta": 1.0, "target": 6.0, "horizon": 100.0} | {name: bad}
    with pytest.raises(ValueError, match=f"{name}: want a number"):
        AdaptiveKL(**settings)
    with pytest.raises(ValueError, match=f"{name}: want a number"):
        AdaptiveKL(1.0, 6.0, 100).load_state_dict(settings)


@pytest.mark.parametrize("kl", [NAN, INF, "6", None])
def test_a_kl_that_is_no_finite_number_raises_and_moves_nothing(kl):
    controller = AdaptiveKL(1.0, 6.0, 100)
    with pytest.raises(ValueError, match="kl: want a"):
        controller.update(kl, 10)
    assert controller.beta == 1.0


@pytest.mark.parametrize("n", [0, -1, NAN])
def test_an_n_that_is_not_positive_raises(n):
    with pytest.raises(ValueError, match="n: want a number > 0"):
        AdaptiveKL(1.0, 6.0, 100).update(6.0, n)


def test_an_n_that_could_turn_beta_negative_raises():
    with pytest.raises(ValueError, match="n: want n < 5 · horizon = 500.0, found 500"):
        AdaptiveKL(1.0, 6.0, 100).update(0.0, 500)


@pytest.mark.parametrize(
    "state", [{}, {"beta": 1.0}, {"beta": 1, "kl": 2, "horizon": 3}]
)
def test_a_state_with_other_keys_raises(state):
    with pytest.raises(ValueError, match="state: want beta, target, horizon, found"):
        AdaptiveKL(1.0, 6.0, 100).load_state_dict(state)
