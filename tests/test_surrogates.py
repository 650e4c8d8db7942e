"""surrogates.py: against autograd of the losses, enumeration of batches, and flows."""

import itertools
import math

import pytest
import torch

from rlhf_mini import exact, seeding
from rlhf_mini.losses import (
    clip_fraction,
    ppo_clip_loss,
    ppo_decoupled_loss,
    reinforce_loss,
)
from rlhf_mini.surrogates import (
    decay_for_age,
    sequence_mean_optimum,
    silenced,
    token_mean_weights,
    weigh_by_law,
)

F64 = torch.float64


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=seeding.make(seed), dtype=F64)


def law(size, seed=0):
    return numbers(size, seed=seed).log_softmax(-1)


def close(found, wanted, atol=1e-12):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def gradient(f, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


# --------------------------------------------------------------------- weigh_by_law


@pytest.mark.parametrize("eps", [0.1, 0.2, 1e9])
def test_a_weighted_list_is_worth_the_expected_clipped_surrogate(eps):
    old, new, a = law(5, 1), law(5, 2), numbers(5, seed=3)
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - eps, 1 + eps)
    wanted = -(old.exp() * torch.minimum(ratio * a, clipped * a)).sum()
    close(ppo_clip_loss(new, old, weigh_by_law(a, old), clip_eps=eps), wanted)


def test_a_weighted_list_is_the_limit_of_a_sampled_batch():
    old, new, a = law(4, 1), law(4, 2), numbers(4, seed=3)
    counts = torch.tensor([3, 1, 4, 2])  # a batch with exactly these frequencies
    rows = torch.arange(4).repeat_interleave(counts)
    sampled = ppo_clip_loss(new[rows], old[rows], a[rows])
    frequencies = (counts.to(F64) / counts.sum()).log()
    close(ppo_clip_loss(new, old, weigh_by_law(a, frequencies)), sampled)


def test_on_policy_the_weighted_list_has_the_exact_policy_gradient():
    logits, rewards = numbers(6, seed=4), numbers(6, seed=5)
    old = logits.log_softmax(-1)
    weighted = weigh_by_law(rewards, old)
    wanted = exact.objective_gradient(logits, old, rewards, beta=1.0)
    for loss in (
        lambda t: ppo_clip_loss(t.log_softmax(-1), old, weighted),
        lambda t: reinforce_loss(t.log_softmax(-1), weighted),
    ):
        close(-gradient(loss, logits), wanted)


def test_in_expectation_the_decoupled_loss_forgets_who_sampled():
    new, prox, behaviour = law(5, 1), law(5, 2), law(5, 3)
    a = numbers(5, seed=4)
    stale = ppo_decoupled_loss(new, prox, behaviour, weigh_by_law(a, behaviour))
    close(stale, ppo_clip_loss(new, prox, weigh_by_law(a, prox)))


def test_tokens_of_a_listed_answer_share_its_probability():
    p, a = law(3, 1), numbers(3, 4, seed=2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    new, old = numbers(3, 4, seed=3) / 4, numbers(3, 4, seed=4) / 4
    loss = ppo_clip_loss(new, old, weigh_by_law(a, p, mask), mask)
    per_token = torch.stack(
        [
            torch.stack([ppo_clip_loss(n, o, x) for n, o, x in zip(*rows, strict=True)])
            for rows in zip(new, old, a, strict=True)
        ]
    )
    close(loss, (p.exp()[:, None] * per_token * mask).sum())


def test_garbage_on_pads_does_not_matter():
    p, a = law(2, 1), numbers(2, 3, seed=2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    spoilt = a.masked_fill(mask == 0, math.nan)
    close(weigh_by_law(spoilt, p, mask), weigh_by_law(a, p, mask))
    assert weigh_by_law(spoilt, p, mask)[0, 2] == 0


def test_an_outcome_that_is_never_sampled_weighs_nothing():
    p = torch.tensor([0.25, 0.75, 0.0], dtype=F64).log()
    assert weigh_by_law(torch.tensor([1.0, 1.0, 99.0], dtype=F64), p)[2] == 0


def test_weights_carry_no_gradient():
    p, a = law(3, 1).requires_grad_(), numbers(3).requires_grad_()
    assert not weigh_by_law(a, p).requires_grad


@pytest.mark.parametrize(
    "advantages,logp,mask,word",
    [
        (torch.zeros(3), torch.tensor([0.5, 0.5]).log(), None, "shapes do not fit"),
        (torch.zeros(2, 1, 1), torch.tensor([0.5, 0.5]).log(), None, "do not fit"),
        (torch.zeros(2), torch.zeros(2), None, "logp"),
        (torch.zeros(2), torch.zeros(2, 2), None, "logp"),
        (torch.tensor([0.0, math.nan]), torch.tensor([0.5, 0.5]).log(), None, "advant"),
        (torch.zeros(2), torch.tensor([0.5, 0.5]).log(), torch.zeros(2), "mask"),
    ],
)
def test_weigh_by_law_says_what_is_wrong(advantages, logp, mask, word):
    with pytest.raises(ValueError, match=word):
        weigh_by_law(advantages, logp, mask)


# ------------------------------------------------------------------------- silenced


@pytest.mark.parametrize("shape", [(40,), (10, 4)], ids=["bandit", "tokens"])
@pytest.mark.parametrize("eps", [0.1, 0.2])
def test_silenced_is_where_the_loss_has_no_gradient(shape, eps):
    logp, old, a = (numbers(*shape, seed=s) / 3 for s in (1, 2, 3))
    slope = gradient(lambda x: ppo_clip_loss(x, old, a, clip_eps=eps), logp)
    assert torch.equal(silenced(logp, old, a, clip_eps=eps), slope == 0)


def test_silenced_tokens_are_some_of_those_outside():
    logp, old, a = (numbers(200, seed=s) / 3 for s in (1, 2, 3))
    share = silenced(logp, old, a).to(F64).mean()
    assert 0 < share < clip_fraction(logp, old)


def test_at_the_old_policy_nothing_is_silenced():
    logp, a = numbers(20, seed=1), numbers(20, seed=2)
    assert not silenced(logp, logp, a).any()


def test_pads_are_not_silenced():
    logp, old = torch.tensor([[1.0, math.nan]]), torch.zeros(1, 2)
    found = silenced(logp, old, torch.ones(1, 2), torch.tensor([[1, 0]]))
    assert found.tolist() == [[True, False]]


def test_silenced_checks_its_arguments():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="clip_eps"):
        silenced(x, x, x, clip_eps=0.0)
    with pytest.raises(ValueError, match="shapes differ"):
        silenced(x, x, torch.zeros(3))
    with pytest.raises(ValueError, match="mask"):
        silenced(x, x, x, torch.zeros(2))
    with pytest.raises(ValueError, match="advantages"):
        silenced(x, x, torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="overflows"):
        silenced(torch.tensor([1e4, 0.0]), x, x)


# --------------------------------------------------------------- token_mean_weights


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_weights_are_the_expectation_over_all_batches(batch):
    """List every batch of answers; the mean of Σg/Σl must be E[w(l) g]."""
    p, lengths = law(5, 1).exp(), torch.tensor([1, 2, 2, 3, 4])
    g = numbers(5, seed=2)  # one number stands for an answer's summed gradient
    mean = 0.0
    for rows in itertools.product(range(5), repeat=batch):
        rows = torch.tensor(rows)
        mean += p[rows].prod() * g[rows].sum() / lengths[rows].sum()
    length_probs = torch.stack([p[lengths == k].sum() for k in range(1, 5)])
    w = token_mean_weights(length_probs, batch)
    close((p * w[lengths - 1] * g).sum(), mean)


def test_a_batch_of_one_is_the_sequence_mean_and_an_endless_one_a_constant():
    p = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    lengths = torch.arange(1, 4, dtype=F64)
    close(token_mean_weights(p, 1), 1 / lengths)
    constant = (1 / (p * lengths).sum()).expand(3)
    errors = [
        (token_mean_weights(p, n) - constant).abs().max().item() for n in (1, 10, 1000)
    ]
    assert errors[2] < 1e-3 and errors[1] < errors[0] / 5
    close(token_mean_weights(p, 100_000), constant, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_short_answers_weigh_more_and_the_total_is_one(batch):
    p = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    w = token_mean_weights(p, batch)
    assert (w.diff() < 0).all()
    # the mean of a constant is that constant: E[Σl/Σl] = 1
    close((p * w * torch.arange(1, 4)).sum(), torch.tensor(1.0, dtype=F64))


def test_answers_of_one_length_weigh_the_same_in_every_batch():
    p = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    for batch in (1, 5, 33):
        close(token_mean_weights(p, batch)[2], torch.tensor(1 / 3, dtype=F64))


@pytest.mark.parametrize("batch", [0, 1.5, True])
def test_a_batch_is_a_whole_number(batch):
    with pytest.raises(ValueError, match="batch"):
        token_mean_weights(torch.tensor([0.5, 0.5]), batch)


def test_length_probs_must_be_one_law():
    with pytest.raises(ValueError, match="length_probs"):
        token_mean_weights(torch.tensor([0.5, 0.4]), 2)
    with pytest.raises(ValueError, match="length_probs"):
        token_mean_weights(torch.full((2, 2), 0.5), 2)


# ------------------------------------------------------------ sequence_mean_optimum

REF, R = law(7, 1), 2 * numbers(7, seed=2)
LENGTHS = torch.tensor([1, 1, 2, 3, 3, 4, 6], dtype=F64)
BETA = 0.6


def sequence_mean_gradient(logp, baseline):
    """E_π[(R − b)/|y| ∇log π] for softmax logits."""
    c = (R - BETA * (logp - REF) - baseline) / LENGTHS
    return logp.exp() * (c - (logp.exp() * c).sum())


@pytest.mark.parametrize("baseline", [-3.0, 0.0, 0.7, 5.0])
def test_at_the_optimum_the_sequence_mean_has_no_gradient(baseline):
    found = sequence_mean_optimum(REF, R, LENGTHS, BETA, baseline)
    close(found.logp.logsumexp(-1), torch.tensor(0.0, dtype=F64))
    close(sequence_mean_gradient(found.logp, baseline), torch.zeros(7, dtype=F64))


def test_gradient_ascent_ends_there():
    theta = REF.clone()
    for _ in range(5000):
        theta = theta + 0.5 * sequence_mean_gradient(theta.log_softmax(-1), 0.0)
    found = sequence_mean_optimum(REF, R, LENGTHS, BETA)
    close(theta.log_softmax(-1).exp(), found.logp.exp(), atol=2e-3)


def test_with_the_value_as_baseline_it_is_the_true_optimum():
    value = BETA * exact.log_partition(REF, R, BETA)
    found = sequence_mean_optimum(REF, R, LENGTHS, BETA, value.item())
    assert abs(found.price) < 1e-9
    close(found.logp, exact.optimal_policy(REF, R, BETA), atol=1e-9)


def test_answers_of_one_length_have_the_true_optimum_at_any_baseline():
    for baseline in (-2.0, 0.0, 4.0):
        found = sequence_mean_optimum(REF, R, torch.full_like(R, 3), BETA, baseline)
        close(found.logp, exact.optimal_policy(REF, R, BETA))


@pytest.mark.parametrize("baseline", [-3.0, 5.0])
def test_the_price_is_the_surplus_per_token(baseline):
    found = sequence_mean_optimum(REF, R, LENGTHS, BETA, baseline)
    p = found.logp.exp()
    surplus = exact.objective(found.logp, REF, R, BETA) - baseline
    close(surplus, found.price * (p * LENGTHS).sum(), atol=1e-9)
    assert (found.price > 0) == (baseline < 0)


def test_a_higher_price_means_shorter_answers():
    cheap, dear = (
        sequence_mean_optimum(REF, R, LENGTHS, BETA, b).logp.exp() @ LENGTHS
        for b in (5.0, -3.0)
    )
    assert dear < cheap


@pytest.mark.parametrize(
    "change,word",
    [
        ({"lengths": LENGTHS - 1}, "lengths"),
        ({"lengths": LENGTHS[:3]}, "shapes do not fit"),
        ({"rewards": R.clone().fill_(math.nan)}, "rewards"),
        ({"ref_logp": REF + 1}, "ref_logp"),
        ({"ref_logp": REF.expand(2, -1)}, "ref_logp"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_sequence_mean_optimum_says_what_is_wrong(change, word):
    given = {"ref_logp": REF, "rewards": R, "lengths": LENGTHS, "beta": BETA} | change
    with pytest.raises(ValueError, match=word):
        sequence_mean_optimum(**given)


# ------------------------------------------------------------------- decay_for_age


@pytest.mark.parametrize("age", [0.0, 0.5, 3.5, 56.0])
def test_the_weights_of_the_mean_have_the_age_asked_for(age):
    d = decay_for_age(age)
    steps = torch.arange(5000, dtype=F64)
    weights = (1 - d) * d**steps
    close((weights * steps).sum(), torch.tensor(age, dtype=F64), atol=1e-8)


def test_a_mean_of_a_ramp_lags_by_the_age():
    """x rises by 1 a step; its weighted mean ends up `age` steps behind."""
    d, mean = decay_for_age(7.0), 0.0
    for x in range(2000):
        mean = d * mean + (1 - d) * x
    assert abs(1999 - mean - 7.0) < 1e-6


@pytest.mark.parametrize("age", [-1.0, math.inf, math.nan])
def test_an_age_is_a_number_from_zero(age):
    with pytest.raises(ValueError, match="age"):
        decay_for_age(age)
