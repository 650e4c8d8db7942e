"""losses.py: values by loop, gradients by enumeration, and every identity between."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from rlhf_mini.advantages import group_normalized
from rlhf_mini.exact import enumerate_sequences, optimal_policy
from rlhf_mini.kl import exact_kl
from rlhf_mini.logprobs import sequence_sum
from rlhf_mini.losses import (
    all_pairs_loss,
    best_of_k_loss,
    bradley_terry_loss,
    cdpo_loss,
    clip_fraction,
    dpo_loss,
    explained_variance,
    grpo_loss,
    ipo_loss,
    plackett_luce_loss,
    ppo_clip_loss,
    ppo_decoupled_loss,
    reinforce_loss,
    value_clip_loss,
)
from rlhf_mini.policies import SequencePolicy

NAN, INF = math.nan, math.inf
MASKED = {  # name: function and how many tensors it takes
    "reinforce": (reinforce_loss, 2),
    "ppo": (ppo_clip_loss, 3),
    "decoupled": (ppo_decoupled_loss, 4),
    "value": (value_clip_loss, 3),
}
METRICS = {
    "clip_fraction": (clip_fraction, 2),
    "explained_variance": (explained_variance, 2),
}
EVERY = [*MASKED.values(), *METRICS.values()]
NAMES = [*MASKED, *METRICS]


def close(found, expected, atol=1e-10):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def gradient(value, leaf):
    return torch.autograd.grad(value, leaf, retain_graph=True)[0]


def draw(count, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *shape, generator=generator, dtype=dtype).unbind(0)


def bandit():
    """Logits, log π, log π_old and rewards of 4 arms; nothing is symmetric."""
    logits = torch.tensor([0.9, -0.4, 0.1, -1.3], dtype=torch.float64).requires_grad_()
    old = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    rewards = torch.tensor([0.2, 3.0, -1.0, 0.5], dtype=torch.float64)
    return logits, logits.log_softmax(-1), old, rewards


def expected(loss_of_arm, law):
    """E over arms ~ law of the loss of that one arm."""
    return sum(p * loss_of_arm(slice(a, a + 1)) for a, p in enumerate(law.detach()))


# --- one interface: [B], [B, T], masked, garbage in the pads ------------------


@pytest.mark.parametrize("function, count", EVERY, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30, -1e30])
@pytest.mark.parametrize("shape", [(6,), (3, 4)], ids=["bandit", "sequence"])
def test_garbage_in_the_pads_changes_no_bit(function, count, dtype, garbage, shape):
    # the defect: padded and unpadded batches disagree, or NaN · 0 enters the gradient
    inputs = draw(count, *shape, dtype=dtype)
    mask = torch.tensor([1, 1, 0, 1] * 3)[: math.prod(shape)].view(shape)
    results = []
    for fill in (0.3, garbage):
        filled = [x.masked_fill(mask == 0, fill) for x in inputs]
        filled[0].requires_grad_()
        value = function(*filled, mask=mask)
        results.append([value.detach()])
        if value.requires_grad:
            results[-1].append(gradient(value, filled[0]))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert results[0][0].dtype == dtype and results[0][0].shape == ()


@pytest.mark.parametrize("function, count", EVERY, ids=NAMES)
def test_a_sequence_batch_equals_the_bandit_of_its_tokens(function, count):
    inputs = draw(count, 3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    tokens = [x[mask == 1] for x in inputs]
    close(function(*inputs, mask=mask), function(*tokens))


@pytest.mark.parametrize("function, count", EVERY, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_every_dtype_agree_and_none_means_all_ones(function, count, dtype):
    inputs = draw(count, 3, 4)
    ones = torch.ones(3, 4, dtype=dtype)
    assert torch.equal(function(*inputs, mask=ones), function(*inputs))


@pytest.mark.parametrize("function, count", MASKED.values(), ids=MASKED)
def test_only_the_first_argument_gets_a_gradient(function, count):
    # the defect: a missing detach
    inputs = [x.clone().requires_grad_() for x in draw(count, 3, 4)]
    function(*inputs).backward()
    assert inputs[0].grad is not None
    assert all(x.grad is None for x in inputs[1:])


@pytest.mark.parametrize("function, count", METRICS.values(), ids=METRICS)
def test_metrics_are_detached(function, count):
    assert not function(*[x.requires_grad_() for x in draw(count, 5)]).requires_grad


@pytest.mark.parametrize("function, count", MASKED.values(), ids=MASKED)
def test_the_gradient_passes_a_finite_difference_check(function, count):
    first, *rest = draw(count, 3, 4)
    assert torch.autograd.gradcheck(
        lambda x: function(x, *rest), first.requires_grad_()
    )


@pytest.mark.parametrize("function, count", EVERY, ids=NAMES)
class TestRaises:
    def test_other_shapes(self, function, count):
        inputs = [torch.zeros(4)] * (count - 1) + [torch.zeros(4, 1)]
        with pytest.raises(ValueError, match=r"shapes differ: \w+ \[4\], .*\[4, 1\]"):
            function(*inputs)

    def test_a_mask_that_would_broadcast(self, function, count):
        with pytest.raises(ValueError, match=r"mask \[4\], input \[3, 4\]"):
            function(*draw(count, 3, 4), mask=torch.ones(4))

    def test_an_empty_mask(self, function, count):
        with pytest.raises(ValueError, match="mask: empty"):
            function(*draw(count, 4), mask=torch.zeros(4))

    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_an_unmasked_entry_that_is_not_finite(self, function, count, bad):
        # the defect: `if not loss.isfinite(): continue`
        for i in range(count):
            inputs = [x.clone() for x in draw(count, 4)]
            inputs[i][2] = bad
            with pytest.raises(ValueError, match=rf"\w+: found {bad} at \[2\]"):
                function(*inputs, mask=torch.tensor([1, 1, 1, 0]))

    def test_integers(self, function, count):
        inputs = [torch.zeros(4, dtype=torch.int64)] * count
        with pytest.raises(ValueError, match="want a floating dtype"):
            function(*inputs)


@pytest.mark.parametrize(
    "function, count", [*list(MASKED.values())[1:], METRICS["clip_fraction"]]
)
@pytest.mark.parametrize("clip_eps", [0, -0.2, NAN, INF, None])
def test_a_clip_range_that_is_not_positive_raises(function, count, clip_eps):
    with pytest.raises(ValueError, match="clip_eps: want a number"):
        function(*draw(count, 4), clip_eps=clip_eps)


# --- reinforce ----------------------------------------------------------------


def test_reinforce_has_the_exact_policy_gradient_in_expectation():
    logits, logp, _, rewards = bandit()
    loss = expected(lambda a: reinforce_loss(logp[a], rewards[a]), logp.exp())
    close(gradient(loss, logits), -gradient((logp.exp() * rewards).sum(), logits))


@pytest.mark.parametrize("baseline", [-7.0, 0.4, 100.0])
def test_a_baseline_leaves_the_expected_gradient_of_reinforce(baseline):
    logits, logp, _, rewards = bandit()
    plain, shifted = (
        expected(lambda a, r=r: reinforce_loss(logp[a], r[a]), logp.exp())
        for r in (rewards, rewards - baseline)
    )
    close(gradient(plain, logits), gradient(shifted, logits))


def test_reinforce_on_samples_of_another_policy_is_wrong():
    logits, logp, old, rewards = bandit()
    loss = expected(lambda a: reinforce_loss(logp[a], rewards[a]), old.exp())
    truth = -gradient((logp.exp() * rewards).sum(), logits)
    assert (gradient(loss, logits) - truth).norm() > 0.1


def test_reinforce_equals_a_naive_loop():
    logp, advantages = draw(2, 3, 4)
    pairs = zip(logp.flatten().tolist(), advantages.flatten().tolist(), strict=True)
    naive = -sum(a * lp for lp, a in pairs) / 12
    assert reinforce_loss(logp, advantages).item() == pytest.approx(naive, abs=1e-12)


# --- ppo ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (0.5, 1, -0.5, -0.5),  # worse than before and A > 0: not clipped
        (0.9, 1, -0.9, -0.9),
        (1.1, 1, -1.1, -1.1),
        (1.5, 1, -1.2, 0),  # already moved far enough
        (0.5, -1, 0.8, 0),  # already moved far enough
        (0.9, -1, 0.9, 0.9),
        (1.1, -1, 1.1, 1.1),
        (1.5, -1, 1.5, 1.5),  # moved the wrong way: the full pull back
        (1.5, 0, 0, 0),
    ],
)
def test_ppo_by_hand(ratio, advantage, loss, slope):
    # slope is dL/dlogp = −A ρ, or 0 exactly where clipped
    old_logp = torch.tensor([-2.0], dtype=torch.float64)
    logp = (old_logp + math.log(ratio)).requires_grad_()
    found = ppo_clip_loss(logp, old_logp, torch.tensor([float(advantage)]).double())
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert gradient(found, logp).item() == pytest.approx(slope, abs=1e-12)
    assert slope != 0 or gradient(found, logp).item() == 0.0


@pytest.mark.parametrize("shape", [(4,), (4, 3)], ids=["bandit", "sequence"])
def test_ppo_at_the_old_policy_is_minus_the_mean_advantage(shape):
    logp, advantages = draw(2, *shape)
    close(ppo_clip_loss(logp, logp, advantages), -advantages.mean())


@pytest.mark.parametrize("shape", [(4,), (4, 3)], ids=["bandit", "sequence"])
def test_ppo_at_the_old_policy_has_the_gradient_of_reinforce(shape):
    logp, advantages = draw(2, *shape)
    logp.requires_grad_()
    ppo = gradient(ppo_clip_loss(logp, logp.detach(), advantages), logp)
    close(ppo, gradient(reinforce_loss(logp, advantages), logp))


def test_ppo_equals_a_naive_loop():
    logp, old_logp, advantages = draw(3, 3, 4)
    rows = (x.flatten().tolist() for x in (logp, old_logp, advantages))
    terms = []
    for new, old, a in zip(*rows, strict=True):
        ratio = math.exp(new - old)
        terms.append(-min(ratio * a, min(max(ratio, 0.7), 1.3) * a))
    found = ppo_clip_loss(logp, old_logp, advantages, clip_eps=0.3)
    assert found.item() == pytest.approx(sum(terms) / 12, abs=1e-12)


def test_ppo_that_never_clips_has_the_exact_gradient_off_policy():
    # E over π_old of ρ A has the gradient of J at every π
    logits, logp, old, rewards = bandit()
    loss = expected(
        lambda a: ppo_clip_loss(logp[a], old[a], rewards[a], clip_eps=1e6), old.exp()
    )
    close(gradient(loss, logits), -gradient((logp.exp() * rewards).sum(), logits))


def test_the_mean_is_over_tokens_and_not_over_answers():
    # a long answer weighs more; the mean of row means would give −3
    zeros, mask = torch.zeros(2, 3), torch.tensor([[1, 0, 0], [1, 1, 1]])
    advantages = torch.tensor([[6.0, 9.0, 9.0], [0.0, 0.0, 0.0]])
    assert ppo_clip_loss(zeros, zeros, advantages, mask).item() == -1.5


def test_a_ratio_that_overflows_raises_and_names_the_log_ratio():
    logp, old_logp = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -100.0]])
    ones = torch.ones(1, 2)
    found = r"ratio π/π_old overflows: the log-ratio is 100 at \[0, 1\]"
    with pytest.raises(ValueError, match=found):
        ppo_clip_loss(logp, old_logp, ones)
    with pytest.raises(ValueError, match=found):
        clip_fraction(logp, old_logp)
    with pytest.raises(ValueError, match="π_prox/π_behav overflows"):
        ppo_decoupled_loss(logp, logp, old_logp, ones)
    with pytest.raises(ValueError, match="π/π_prox overflows"):
        ppo_decoupled_loss(logp, old_logp, old_logp, ones)


def test_a_large_ratio_is_not_clamped_in_silence():
    logp, old_logp = torch.zeros(1).double(), torch.tensor([-80.0]).double()
    found = ppo_clip_loss(logp, old_logp, torch.tensor([-1.0]).double())
    assert found.item() == pytest.approx(math.exp(80), rel=1e-12)


def test_a_term_that_overflows_raises():
    logp, old_logp = torch.zeros(1), torch.tensor([-88.0])
    with pytest.raises(ValueError, match="found inf"):
        ppo_clip_loss(logp, old_logp, torch.tensor([-1e30]))


def test_a_ratio_that_underflows_is_zero():
    logp, old_logp = torch.tensor([-500.0]), torch.zeros(1)
    assert ppo_clip_loss(logp, old_logp, torch.ones(1)).item() == 0.0


# --- ppo, decoupled -----------------------------------------------------------


def test_decoupled_ppo_with_one_policy_is_ppo():
    logp, old_logp, advantages = draw(3, 3, 4)
    found = ppo_decoupled_loss(logp, old_logp, old_logp, advantages)
    close(found, ppo_clip_loss(logp, old_logp, advantages))


def test_decoupled_ppo_at_the_proximal_policy_is_the_weighted_policy_gradient():
    # sampled from the behaviour policy, exact in expectation
    logits, logp, behaviour, rewards = bandit()
    prox = logp.detach()
    loss = expected(
        lambda a: ppo_decoupled_loss(logp[a], prox[a], behaviour[a], rewards[a]),
        behaviour.exp(),
    )
    close(gradient(loss, logits), -gradient((logp.exp() * rewards).sum(), logits))


def test_decoupled_ppo_equals_a_naive_loop():
    inputs = draw(4, 3, 4)
    rows = (x.flatten().tolist() for x in inputs)
    terms = []
    for new, prox, behaviour, a in zip(*rows, strict=True):
        ratio = math.exp(new - prox)
        clipped = min(max(ratio, 0.9), 1.1)
        terms.append(-math.exp(prox - behaviour) * min(ratio * a, clipped * a))
    found = ppo_decoupled_loss(*inputs, clip_eps=0.1)
    assert found.item() == pytest.approx(sum(terms) / 12, abs=1e-11)


def test_decoupled_ppo_clips_around_the_proximal_policy_and_not_the_behaviour():
    half, tenth = torch.tensor([0.5]).log(), torch.tensor([0.1]).log()
    logp = half.clone().requires_grad_()
    near = ppo_decoupled_loss(logp, half, tenth, torch.ones(1))
    far = ppo_decoupled_loss(logp, tenth, tenth, torch.ones(1))
    assert near.item() == pytest.approx(-5) and far.item() == pytest.approx(-1.2)
    assert gradient(near, logp).item() == pytest.approx(-5)
    assert gradient(far, logp).item() == 0.0


# --- GRPO ---------------------------------------------------------------------


def answers_of(length=2, vocab=3):
    """A policy far from its reference, all its answers, and their log-probs, [M, T]."""
    answers = enumerate_sequences(vocab, length)
    prompts = torch.zeros(len(answers)).long()
    pair = []
    for noise in draw(2, 1, 4, 3):
        policy = SequencePolicy(vocab, length, dtype=torch.float64)
        policy.logits.data = 2 * noise
        pair.append(policy)
    policy, reference = pair
    return policy, reference, prompts, answers


def test_grpo_equals_a_naive_loop():
    logp, old, ref, _ = draw(4, 3, 4)
    a = draw(5, 3)[4]
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
    rows = []
    for i in range(3):
        terms = []
        for t in mask[i].nonzero()[:, 0].tolist():
            ratio, d = (logp[i, t] - old[i, t]).exp(), ref[i, t] - logp[i, t]
            clipped = min(max(ratio.item(), 0.7), 1.3)
            k3 = d.exp() - 1 - d
            terms.append(-min(ratio * a[i], clipped * a[i]) + 0.3 * k3)
        rows.append(sum(terms) / len(terms))
    found = grpo_loss(logp, old, ref, a[:, None].expand(3, 4), mask, 0.3, 0.3)
    close(found, sum(rows) / 3)


def test_the_penalty_of_grpo_descends_the_forward_kl_at_the_prefixes_seen():
    # E over answers of π, no advantage: (β/T) Σ_s d(s) ∇KL(π_ref(·|s)‖π(·|s))
    policy, reference, prompts, answers = answers_of()
    logp = policy.logp(prompts, answers)
    ref = reference.logp(prompts, answers).detach()
    chance = logp.detach().sum(-1).exp()
    total = sum(
        p * grpo_loss(logp[i : i + 1], logp[i : i + 1], ref[i : i + 1],
                      torch.zeros(1, 2), beta=0.7)
        for i, p in enumerate(chance)
    )  # fmt: skip
    seen = torch.cat([torch.ones(1), policy.tree()[0, 0].detach().exp()])  # d(s)
    forward = exact_kl(reference.logits.detach(), policy.logits)[0]
    want = gradient(0.7 / 2 * (seen * forward).sum(), policy.logits)
    close(gradient(total, policy.logits), want)
    reverse = exact_kl(policy.logits, reference.logits.detach())[0]
    other = gradient(0.7 / 2 * (seen * reverse).sum(), policy.logits)
    assert (want - other).abs().max() > 0.05  # the directions are told apart


def test_grpo_without_pads_at_the_old_policy_has_the_gradient_of_reinforce():
    leaf = draw(1, 4, 3)[0].requires_grad_()
    a = group_normalized(draw(1, 1, 4)[0]).view(-1, 1).expand(4, 3)
    # at the reference too, where k3 is flat
    found = gradient(grpo_loss(leaf, leaf, leaf.detach(), a, beta=5.0), leaf)
    close(found, gradient(reinforce_loss(leaf, a), leaf))


def test_a_token_of_a_long_answer_counts_less_in_grpo():
    leaf = draw(1, 2, 4)[0].requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    slope = gradient(grpo_loss(leaf, leaf, leaf.detach(), torch.ones(2, 4), mask), leaf)
    close(slope[0], torch.full((4,), -1 / 8).double())
    close(slope[1], torch.tensor([-1 / 2, 0, 0, 0]).double())


@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
def test_pads_and_empty_rows_change_nothing_in_grpo(garbage):
    inputs = list(draw(4, 3, 4))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    first = grpo_loss(*inputs, mask)
    spoilt = [x.masked_fill(mask == 0, garbage) for x in inputs]
    assert torch.equal(grpo_loss(*spoilt, mask), first)
    assert torch.equal(grpo_loss(*(x[:2] for x in inputs), mask[:2]), first)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: [x[0][0], *x[1:]], "shapes differ"),
        (lambda x: [y[0] for y in x], "logp: want 2 axes"),
        (lambda x: [*x[:2], x[2] * NAN, x[3]], "ref_logp: found nan"),
        (lambda x: [*x[:2], x[2] + 1e4, x[3]], "ratio π_ref/π overflows"),
        (lambda x: [x[0] + 1e4, *x[1:]], "ratio π/π_old overflows"),
    ],
)
def test_grpo_names_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        grpo_loss(*change(list(draw(4, 3, 4))))


@pytest.mark.parametrize("name", ["beta", "clip_eps"])
def test_grpo_wants_a_weight_and_a_range_above_zero(name):
    with pytest.raises(ValueError, match=f"{name}: want a number > 0"):
        grpo_loss(*draw(4, 3, 4), **{name: 0.0})


def test_grpo_refuses_an_empty_mask():
    with pytest.raises(ValueError, match="mask: empty"):
        grpo_loss(*draw(4, 3, 4), torch.zeros(3, 4))


# --- value loss ---------------------------------------------------------------


@pytest.mark.parametrize(
    "value, loss, slope",
    [
        (0.1, 0.9**2 / 2, -0.9),  # within the range: plain squared error
        (0.5, 0.8**2 / 2, 0),  # moved more than ε towards R: silenced
        (-0.5, 1.5**2 / 2, -1.5),  # moved away: the full pull back
        (3.0, 2.0**2 / 2, 2.0),  # beyond R by more than the clipped value lacks
    ],
)
def test_the_value_loss_by_hand(value, loss, slope):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old_values, returns = torch.zeros(1).double(), torch.ones(1).double()
    found = value_clip_loss(values, old_values, returns, clip_eps=0.2)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert gradient(found, values).item() == pytest.approx(slope, abs=1e-12)


def test_the_value_loss_with_a_wide_range_is_half_the_squared_error():
    values, old_values, returns = draw(3, 3, 4)
    found = value_clip_loss(values, old_values, returns, clip_eps=1e6)
    close(found, F.mse_loss(values, returns) / 2)


def test_the_value_loss_is_the_larger_of_two_and_so_never_below_the_plain_one():
    values, old_values, returns = draw(3, 50)
    for v, o, r in zip(values, old_values, returns, strict=True):
        clipped = o + min(max(v - o, -0.2), 0.2)
        naive = max((v - r) ** 2, (clipped - r) ** 2) / 2
        close(value_clip_loss(v.view(1), o.view(1), r.view(1)), naive)
        assert naive >= (v - r) ** 2 / 2


def test_the_value_clip_is_a_speed_limit_in_reward_units():
    # 5 reward units at ε = 0.2 take 25 refreshes of V_old, however many steps each
    old_value, refreshes = 0.0, 0

    def slope(value):
        values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        old_values = torch.tensor([old_value], dtype=torch.float64)
        loss = value_clip_loss(values, old_values, torch.full_like(values, 5.0))
        return gradient(loss, values).item()

    while old_value < 5 - 1e-9:
        edge = old_value + 0.2  # pulled up to here and no further
        assert slope(edge - 1e-6) < 0
        assert slope(edge + 1e-6) == 0 or edge > 5 - 1e-6
        old_value, refreshes = edge, refreshes + 1
    assert refreshes == 25


# --- metrics ------------------------------------------------------------------


def test_clip_fraction_counts_ratios_outside_the_range():
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 9.0], dtype=torch.float64)
    found = clip_fraction(ratio.log(), torch.zeros(7).double())
    assert found.item() == pytest.approx(4 / 7)


def test_clip_fraction_right_after_a_rollout_is_zero():
    # sampling at one temperature and scoring at another would show here
    (logp,) = draw(1, 3, 4)
    assert clip_fraction(logp, logp).item() == 0.0
    scored_at_another = (logp / 0.6).log_softmax(-1)
    assert clip_fraction(scored_at_another, logp.log_softmax(-1)).item() > 0


def test_explained_variance_equals_its_definition():
    values, returns = draw(2, 3, 4)
    naive = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    close(explained_variance(values, returns), naive)


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant():
    (returns,) = draw(1, 7)
    assert explained_variance(returns + 3, returns).item() == pytest.approx(1)
    constant = torch.full_like(returns, -4.0)
    assert explained_variance(constant, returns).item() == pytest.approx(0, abs=1e-12)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_explained_variance_of_equal_returns_is_nan(value):
    returns = torch.full((7,), value)
    assert explained_variance(torch.arange(7.0), returns).isnan()


# --- reward models ------------------------------------------------------------


def test_bradley_terry_is_the_logistic_cross_entropy():
    chosen, rejected = draw(2, 9)
    reference = F.binary_cross_entropy_with_logits(
        chosen - rejected, torch.ones(9).double(), reduction="none"
    )
    close(bradley_terry_loss(chosen, rejected), reference)


def test_the_two_outcomes_of_a_comparison_have_total_probability_one():
    a, b = draw(2, 9)
    total = (-bradley_terry_loss(a, b)).exp() + (-bradley_terry_loss(b, a)).exp()
    close(total, torch.ones(9).double())


def test_bradley_terry_of_far_scores_stays_finite():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(2))
    assert loss.tolist() == [0.0, 1e4]
    assert gradient(loss.sum(), chosen).tolist() == [0.0, -1.0]


@pytest.mark.parametrize("k", [2, 4])
def test_the_choice_among_k_is_the_softmax_cross_entropy(k):
    (scores,) = draw(1, 5, k)
    choice = torch.tensor([0, 1, k - 1, 1, 0])
    naive = [
        math.log(sum(math.exp(s) for s in row)) - row[c]
        for row, c in zip(scores.tolist(), choice.tolist(), strict=True)
    ]
    close(best_of_k_loss(scores, choice), torch.tensor(naive, dtype=torch.float64))


def test_the_choice_between_two_is_bradley_terry():
    scores = torch.stack(draw(2, 5), -1)
    close(
        best_of_k_loss(scores, torch.ones(5, dtype=torch.int64)),
        bradley_terry_loss(scores[:, 1], scores[:, 0]),
    )


def test_a_ranking_of_two_is_bradley_terry():
    scores = torch.stack(draw(2, 5), -1)
    ranking = torch.tensor([[1, 0]]).expand(5, 2)
    close(
        plackett_luce_loss(scores, ranking),
        bradley_terry_loss(scores[:, 1], scores[:, 0]),
    )


SCORES = torch.tensor([0.3, -1.1, 2.0, 0.7], dtype=torch.float64)
RANKINGS = torch.tensor(list(itertools.permutations(range(4))))  # [24, 4]


def law_of_rankings():
    return (-plackett_luce_loss(SCORES.expand(24, 4), RANKINGS)).exp()


def test_a_ranking_equals_a_naive_product_of_choices():
    for ranking, p in zip(RANKINGS.tolist(), law_of_rankings().tolist(), strict=True):
        worth = [math.exp(SCORES[i]) for i in ranking]
        naive = math.prod(worth[i] / sum(worth[i:]) for i in range(4))
        assert p == pytest.approx(naive, abs=1e-12)


def test_the_probabilities_of_all_rankings_sum_to_one():
    assert law_of_rankings().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_top_of_a_ranking_is_the_choice_among_k():
    for b in range(4):
        top = law_of_rankings()[RANKINGS[:, 0] == b].sum()
        choice = best_of_k_loss(SCORES.view(1, 4), torch.tensor([b]))
        close(top, (-choice).exp().squeeze())


def test_every_pair_inside_a_ranking_is_bradley_terry():
    place = RANKINGS.argsort(-1)  # place[:, i] is the rank of answer i
    for i, j in itertools.permutations(range(4), 2):
        ahead = law_of_rankings()[place[:, i] < place[:, j]].sum()
        close(ahead, torch.sigmoid(SCORES[i] - SCORES[j]))


def test_the_likeliest_ranking_lists_answers_best_first():
    # the rank of each answer, [3, 0, 2, 1], would raise nothing: pin the direction
    scores = torch.tensor([0.0, 3.0, 1.0, 2.0])
    losses = plackett_luce_loss(scores.expand(24, 4), RANKINGS)
    assert RANKINGS[losses.argmin()].tolist() == [1, 3, 2, 0]


def slate_losses(scores):
    return {
        "pair": bradley_terry_loss(scores[:, 0], scores[:, 1]),
        "choice": best_of_k_loss(scores, torch.tensor([2])),
        "ranking": plackett_luce_loss(scores, torch.tensor([[2, 0, 3, 1]])),
    }


@pytest.mark.parametrize("name", ["pair", "choice", "ranking"])
def test_a_constant_per_prompt_is_free_and_gradients_sum_to_zero(name):
    scores = SCORES.view(1, 4).clone().requires_grad_()
    loss = slate_losses(scores)[name]
    close(slate_losses(scores + 17)[name], loss)
    assert gradient(loss, scores).sum().item() == pytest.approx(0, abs=1e-12)
    assert loss.shape == (1,)


def test_the_information_of_a_label_at_equal_scores():
    # Fisher eigenvalue among 4 answers: random pair 1/6, choice 1/4, ranking 23/36
    zeros = torch.zeros(4, dtype=torch.float64)
    pairs = list(itertools.combinations(range(4), 2))
    losses = {
        1 / 6: lambda s: torch.cat(
            [bradley_terry_loss(s[i : i + 1], s[j : j + 1]) for i, j in pairs]
        ).mean(0, True),
        1 / 4: lambda s: best_of_k_loss(s.view(1, 4), torch.tensor([1])),
        23 / 36: lambda s: plackett_luce_loss(s.expand(24, 4), RANKINGS).mean(0, True),
    }
    for information, loss in losses.items():
        hessian = torch.autograd.functional.hessian(lambda s, f=loss: f(s).sum(), zeros)
        eigenvalues = torch.linalg.eigvalsh(hessian)
        close(eigenvalues, torch.tensor([0, *[information] * 3], dtype=torch.float64))


PREFERENCE = torch.tensor(
    [[0.5, 0.9, 0.3], [0.1, 0.5, 0.65], [0.7, 0.35, 0.5]], dtype=torch.float64
)


def test_all_pairs_is_the_mean_of_both_outcomes_weighted_by_the_judges():
    (scores,) = draw(1, 3)
    naive = []
    for i, j in itertools.combinations(range(3), 2):
        won, lost = scores[i].view(1), scores[j].view(1)
        q = PREFERENCE[i, j]
        naive.append(
            q * bradley_terry_loss(won, lost) + (1 - q) * bradley_terry_loss(lost, won)
        )
    close(all_pairs_loss(scores, PREFERENCE), torch.cat(naive).mean())


def test_all_pairs_with_hard_labels_is_the_mean_of_bradley_terry():
    scores = SCORES.clone()
    above = (scores[:, None] > scores).double()  # whoever scores more has won
    won, lost = above.nonzero().T
    close(
        all_pairs_loss(scores, above),
        bradley_terry_loss(scores[won], scores[lost]).mean(),
    )


def test_all_pairs_is_least_where_the_odds_are_those_of_the_judges():
    best = torch.tensor([0.8, -0.3, 0.1, 1.7], dtype=torch.float64).requires_grad_()
    judges = torch.sigmoid(best[:, None] - best).detach()
    slope = gradient(all_pairs_loss(best, judges), best)
    close(slope, torch.zeros(4).double())
    assert all_pairs_loss(best + torch.arange(4), judges) > all_pairs_loss(best, judges)


def test_all_pairs_of_equal_scores_is_log_2_and_ignores_a_constant():
    close(
        all_pairs_loss(torch.full((3,), 4.0), PREFERENCE.float()),
        torch.tensor(math.log(2)),
        atol=1e-6,
    )
    (scores,) = draw(1, 3)
    close(all_pairs_loss(scores + 5, PREFERENCE), all_pairs_loss(scores, PREFERENCE))


@pytest.mark.parametrize(
    "scores, preference, found",
    [
        (torch.zeros(3), torch.zeros(3, 2), r"scores \[3\], preference \[3, 2\]"),
        (torch.zeros(1), torch.zeros(1, 1), "B ≥ 2"),
        (torch.zeros(3, 1), PREFERENCE, "scores: want 1 axes"),
        (torch.tensor([0.0, NAN, 0.0]), PREFERENCE, "scores: found nan"),
        (torch.zeros(3), PREFERENCE * NAN, "preference: found nan"),
        (torch.zeros(3), PREFERENCE + 1, "q_ij in"),
        (torch.zeros(3), PREFERENCE.triu(), "q_ji = 1"),
    ],
)
def test_all_pairs_refuses_what_does_not_fit(scores, preference, found):
    with pytest.raises(ValueError, match=found):
        all_pairs_loss(scores, preference)


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_bradley_terry_wants_one_axis(shape):
    with pytest.raises(ValueError, match="chosen: want 1 axes, found shape"):
        bradley_terry_loss(torch.zeros(shape), torch.zeros(shape))


def test_bradley_terry_raises_on_other_shapes_and_nan():
    with pytest.raises(ValueError, match=r"chosen \[4\], rejected \[1\]"):
        bradley_terry_loss(torch.zeros(4), torch.zeros(1))
    with pytest.raises(ValueError, match=r"rejected: found nan at \[1\]"):
        bradley_terry_loss(torch.zeros(2), torch.tensor([0.0, NAN]))


CHOICE, RANKING = torch.tensor([0, 1]), torch.tensor([[0, 1, 2], [2, 0, 1]])


@pytest.mark.parametrize(
    "loss, label", [(best_of_k_loss, CHOICE), (plackett_luce_loss, RANKING)]
)
class TestSlateRaises:
    def test_scores_without_two_axes(self, loss, label):
        with pytest.raises(ValueError, match=r"scores: want 2 axes, found shape \[6\]"):
            loss(torch.zeros(6), label)

    def test_a_slate_of_one(self, loss, label):
        with pytest.raises(
            ValueError, match=r"scores: want K ≥ 2, found shape \[2, 1\]"
        ):
            loss(torch.zeros(2, 1), label)

    @pytest.mark.parametrize("bad", [NAN, -INF])
    def test_a_score_that_is_not_finite(self, loss, label, bad):
        scores = torch.tensor([[0.0, 0, 0], [0, 0, bad]])
        with pytest.raises(ValueError, match=rf"scores: found {bad} at \[1, 2\]"):
            loss(scores, label)

    def test_a_label_of_another_shape(self, loss, label):
        with pytest.raises(ValueError, match=r"scores \[3, 3\], \w+ \[2"):
            loss(torch.zeros(3, 3), label)

    @pytest.mark.parametrize("bad", [-1, 3])
    def test_a_label_out_of_range(self, loss, label, bad):
        label = label.clone()
        label[1] = bad
        with pytest.raises(ValueError, match=f"want 0 to 2, found {bad} at"):
            loss(torch.zeros(2, 3), label)

    def test_a_label_that_is_no_integer(self, loss, label):
        with pytest.raises(
            ValueError, match="want an integer dtype, found torch.float"
        ):
            loss(torch.zeros(2, 3), label.float())


def test_a_ranking_that_repeats_an_answer_raises():
    with pytest.raises(ValueError, match=r"want a permutation, found \[2, 0, 2\]"):
        plackett_luce_loss(torch.zeros(2, 3), torch.tensor([[0, 1, 2], [2, 0, 2]]))


# --- direct preference losses -------------------------------------------------

DIRECT = {
    "dpo": lambda *sums: dpo_loss(*sums, beta=0.3),
    "cdpo": lambda *sums: cdpo_loss(*sums, beta=0.3, flip=0.1),
    "ipo": lambda *sums: ipo_loss(*sums, tau=0.3),
}


def test_dpo_is_bradley_terry_on_the_implied_reward():
    sums = draw(4, 6)
    chosen, rejected = (0.3 * (sums[i] - sums[i + 2]) for i in (0, 1))
    close(dpo_loss(*sums, beta=0.3), bradley_terry_loss(chosen, rejected))


@pytest.mark.parametrize("beta", [0.01, 1.0, 50.0])
def test_dpo_at_the_reference_is_log_two(beta):
    chosen, rejected = draw(2, 6)
    found = dpo_loss(chosen, rejected, chosen, rejected, beta=beta)
    close(found, torch.full((6,), math.log(2), dtype=torch.float64))


def test_dpo_takes_the_brute_force_sums_of_the_tokens_and_not_their_means():
    # the defect: the mean token log-prob, while citing the equation that sums
    token_logps = [x.abs().neg() for x in draw(4, 3, 5)]
    lengths = torch.tensor([[1, 3, 5], [4, 2, 5]])  # chosen, rejected
    masks = 2 * [(torch.arange(5) < n.view(3, 1)).long() for n in lengths]
    pairs = list(zip(token_logps, masks, strict=True))
    found = dpo_loss(*[sequence_sum(x, m) for x, m in pairs], beta=0.5)
    for b in range(3):
        w, lo, ref_w, ref_lo = (
            sum(x[b, t].item() for t in range(5) if m[b, t]) for x, m in pairs
        )
        margin = 0.5 * ((w - ref_w) - (lo - ref_lo))
        naive = math.log1p(math.exp(-margin))
        assert found[b].item() == pytest.approx(naive, abs=1e-12)
    means = dpo_loss(*[sequence_sum(x, m) / m.sum(-1) for x, m in pairs], beta=0.5)
    assert (found - means).abs().min() > 1e-3


def population_gradient(logp, ref_logp, rewards, beta):
    """Gradient in logp of E[DPO] over all pairs, labelled by Bradley-Terry."""
    leaf = logp.detach().clone().requires_grad_()
    law = leaf.log_softmax(-1)
    i, j = torch.tensor(list(itertools.permutations(range(len(logp)), 2))).T
    weight = torch.sigmoid(rewards[i] - rewards[j])  # i is preferred to j
    loss = dpo_loss(law[i], law[j], ref_logp[i], ref_logp[j], beta=beta)
    return gradient((weight * loss).sum(), leaf)


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_the_tilted_policy_is_a_stationary_point_of_dpo(beta):
    _, logp, ref_logp, rewards = bandit()
    optimum = optimal_policy(ref_logp, rewards, beta)
    close(
        population_gradient(optimum, ref_logp, rewards, beta), torch.zeros(4).double()
    )
    assert population_gradient(logp, ref_logp, rewards, beta).norm() > 1e-3


def test_a_larger_beta_ends_closer_to_the_reference():
    # the defect: text that says both "β larger = closer" and the opposite
    _, _, ref_logp, rewards = bandit()
    distance = []
    i, j = torch.tensor(list(itertools.permutations(range(4), 2))).T
    weight = torch.sigmoid(rewards[i] - rewards[j])
    for beta in (0.5, 1.0, 2.0, 4.0):
        logits = ref_logp.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [logits], max_iter=200, line_search_fn="strong_wolfe"
        )

        def closure(optimizer=optimizer, logits=logits, beta=beta):
            optimizer.zero_grad()
            law = logits.log_softmax(-1)
            losses = dpo_loss(law[i], law[j], ref_logp[i], ref_logp[j], beta=beta)
            loss = (weight * losses).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        law = logits.detach().log_softmax(-1)
        close(law, optimal_policy(ref_logp, rewards, beta), atol=1e-4)
        distance.append((law.exp() * (law - ref_logp)).sum().item())
    assert distance == sorted(distance, reverse=True) and distance[-1] < distance[0] / 5


def test_cdpo_without_flips_is_dpo():
    sums = draw(4, 6)
    close(cdpo_loss(*sums, beta=0.3, flip=0.0), dpo_loss(*sums, beta=0.3))


def test_cdpo_is_the_mean_of_dpo_over_flipped_labels():
    chosen, rejected, ref_chosen, ref_rejected = sums = draw(4, 6)
    flipped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=0.3)
    mean = 0.9 * dpo_loss(*sums, beta=0.3) + 0.1 * flipped
    close(cdpo_loss(*sums, beta=0.3, flip=0.1), mean)


def slope_at(margin, loss):
    """dL/dh where the log-ratio margin is h."""
    chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    return gradient(loss(chosen, zero, zero, zero).sum(), chosen).item()


def test_cdpo_stops_at_the_log_odds_of_a_right_label():
    goal = math.log(0.9 / 0.1) / 0.3
    assert slope_at(goal, DIRECT["cdpo"]) == pytest.approx(0, abs=1e-12)
    assert slope_at(goal - 1, DIRECT["cdpo"]) < 0 < slope_at(goal + 1, DIRECT["cdpo"])


def test_ipo_stops_at_one_over_two_tau():
    goal = 1 / (2 * 0.3)
    assert slope_at(goal, DIRECT["ipo"]) == pytest.approx(0, abs=1e-12)
    assert slope_at(goal - 1, DIRECT["ipo"]) == pytest.approx(-2)
    assert slope_at(goal + 1, DIRECT["ipo"]) == pytest.approx(2)


def test_dpo_on_a_label_that_is_always_right_never_stops():
    assert all(slope_at(h, DIRECT["dpo"]) < 0 for h in (0.0, 10.0, 100.0))


def test_the_slope_of_dpo_at_the_reference_is_half_of_beta():
    assert slope_at(0.0, DIRECT["dpo"]) == pytest.approx(-0.15, abs=1e-12)


@pytest.mark.parametrize("loss", DIRECT.values(), ids=DIRECT)
def test_a_direct_loss_is_one_number_per_pair(loss):
    sums = draw(4, 6)
    found = loss(*sums)
    each = [loss(*[x[b : b + 1] for x in sums]) for b in range(6)]
    assert found.shape == (6,)
    close(found, torch.cat(each))


@pytest.mark.parametrize("loss", DIRECT.values(), ids=DIRECT)
def test_a_direct_loss_gives_the_reference_no_gradient(loss):
    sums = [x.clone().requires_grad_() for x in draw(4, 6)]
    loss(*sums).sum().backward()
    assert sums[0].grad.ne(0).all() and torch.equal(sums[0].grad, -sums[1].grad)
    assert sums[2].grad is None and sums[3].grad is None


@pytest.mark.parametrize("loss", DIRECT.values(), ids=DIRECT)
def test_a_direct_loss_sees_only_log_ratios(loss):
    sums = draw(4, 6)
    close(loss(*[x + 40 for x in sums]), loss(*sums))


@pytest.mark.parametrize("loss", [DIRECT["dpo"], DIRECT["cdpo"]], ids=["dpo", "cdpo"])
def test_a_far_margin_stays_finite(loss):
    far, zero = torch.tensor([-1e4, 1e4], requires_grad=True), torch.zeros(2)
    found = loss(far, zero, zero, zero)
    assert torch.isfinite(found).all()
    assert torch.isfinite(gradient(found.sum(), far)).all()


@pytest.mark.parametrize("loss", DIRECT.values(), ids=DIRECT)
class TestDirectRaises:
    def test_log_probabilities_per_token(self, loss):
        # the defect again: tokens where a sequence sum belongs
        found = r"policy_chosen_logp: want 1 axes, found shape \[6, 3\]"
        with pytest.raises(ValueError, match=found):
            loss(*draw(4, 6, 3))

    def test_other_shapes(self, loss):
        sums = [*draw(3, 6), torch.zeros(5).double()]
        with pytest.raises(
            ValueError, match=r"shapes differ: .*ref_rejected_logp \[5\]"
        ):
            loss(*sums)

    @pytest.mark.parametrize("bad", [NAN, -INF])
    def test_a_sum_that_is_not_finite(self, loss, bad):
        sums = [x.clone() for x in draw(4, 6)]
        sums[2][3] = bad
        with pytest.raises(ValueError, match=rf"ref_chosen_logp: found {bad} at \[3\]"):
            loss(*sums)

    def test_no_pair(self, loss):
        with pytest.raises(ValueError, match="empty input"):
            loss(*[torch.zeros(0)] * 4)


@pytest.mark.parametrize("bad", [0, -0.1, NAN, INF, None])
def test_a_weight_that_is_not_positive_raises(bad):
    sums = draw(4, 6)
    with pytest.raises(ValueError, match="beta: want a number"):
        dpo_loss(*sums, beta=bad)
    with pytest.raises(ValueError, match="beta: want a number"):
        cdpo_loss(*sums, beta=bad, flip=0.1)
    with pytest.raises(ValueError, match="tau: want a number"):
        ipo_loss(*sums, tau=bad)


@pytest.mark.parametrize("flip", [-0.1, 0.5, 0.7, NAN, None])
def test_a_flip_outside_zero_and_one_half_raises(flip):
    with pytest.raises(ValueError, match="flip"):
        cdpo_loss(*draw(4, 6), beta=0.3, flip=flip)
