"""baselines.py: against loops over outcomes, and against samples of two."""

import itertools
import math

import pytest
import torch

from rlhf_mini import exact, seeding
from rlhf_mini.advantages import leave_one_out
from rlhf_mini.baselines import gradient_variance, optimal_baseline, softmax_scores
from rlhf_mini.policies import SequencePolicy

PROBS = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
REWARDS = torch.tensor([5.0, 4.0, 9.0, 7.0], dtype=torch.float64)
LOGP = PROBS.log()
SCORES = softmax_scores(LOGP)


def close(found, wanted, atol=1e-12):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def variance_by_hand(logp, rewards, baseline, scores):
    """The definition: list every draw, take the mean, then the squared distances."""
    draws = [(r - baseline) * s for r, s in zip(rewards, scores, strict=True)]
    mean = sum(p * g for p, g in zip(logp.exp(), draws, strict=True))
    return sum(
        p * (g - mean).square().sum() for p, g in zip(logp.exp(), draws, strict=True)
    )


def tree():
    """A policy over 8 sequences: its law, and the scores by differentiation."""
    policy = SequencePolicy(2, 3, dtype=torch.float64)
    with torch.no_grad():
        policy.logits.normal_(generator=seeding.make(0))
    answers = exact.enumerate_sequences(2, 3)
    logp = policy.logp(torch.zeros(8, dtype=torch.long), answers).sum(-1)
    rows = [
        torch.autograd.grad(x, policy.logits, retain_graph=True)[0].flatten()
        for x in logp
    ]
    rewards = torch.randn(8, generator=seeding.make(1), dtype=torch.float64)
    return logp.detach(), rewards, torch.stack(rows)


def test_softmax_scores_are_what_autograd_finds():
    logits = LOGP.clone().requires_grad_()
    for y in range(4):
        (wanted,) = torch.autograd.grad(logits.log_softmax(-1)[y], logits)
        close(SCORES[y], wanted)


@pytest.mark.parametrize("baseline", [-3.0, 0.0, 4.6, 10.0])
def test_the_variance_is_that_of_the_listed_draws(baseline):
    found = gradient_variance(LOGP, REWARDS, baseline, SCORES)
    close(found, variance_by_hand(LOGP, REWARDS, baseline, SCORES))


def test_the_variance_of_a_sequence_policy_is_that_of_the_listed_draws():
    logp, rewards, scores = tree()
    found = gradient_variance(logp, rewards, 0.3, scores)
    close(found, variance_by_hand(logp, rewards, 0.3, scores))


@pytest.mark.parametrize("case", ["bandit", "sequences"])
def test_every_other_baseline_is_noisier(case):
    arguments = (LOGP, REWARDS, SCORES) if case == "bandit" else tree()
    logp, rewards, scores = arguments
    best = optimal_baseline(*arguments)
    around = best + torch.tensor([-1.0, -1e-3, 0.0, 1e-3, 1.0])
    noise = gradient_variance(logp, rewards, around, scores)
    assert noise.argmin() == 2
    close(noise[1], noise[3], atol=1e-9)  # a parabola about it


def test_the_optimum_is_not_the_mean_reward():
    mean = (PROBS * REWARDS).sum()
    assert (optimal_baseline(LOGP, REWARDS, SCORES) - mean).abs() > 0.1


@pytest.mark.parametrize("p", [0.5, 0.9, 0.999])
def test_with_two_arms_the_optimum_swaps_the_probabilities_and_has_no_noise(p):
    logp = torch.tensor([p, 1 - p], dtype=torch.float64).log()
    rewards = torch.tensor([2.0, -1.0], dtype=torch.float64)
    scores = softmax_scores(logp)
    best = optimal_baseline(logp, rewards, scores)
    close(best, 2 * (1 - p) - p)
    close(gradient_variance(logp, rewards, best, scores), 0.0)


def test_a_shift_of_the_rewards_shifts_the_optimum_and_keeps_its_noise():
    best = optimal_baseline(LOGP, REWARDS, SCORES)
    moved = optimal_baseline(LOGP, REWARDS + 1e6, SCORES)
    close(moved - 1e6, best, atol=1e-6)
    noise = gradient_variance(LOGP, REWARDS + 1e6, moved, SCORES)
    close(noise, gradient_variance(LOGP, REWARDS, best, SCORES), atol=1e-6)


def test_at_the_regularised_optimum_the_noise_can_be_taken_away():
    ref_logp, beta = torch.full((4,), 0.25).double().log(), 0.7
    logp = exact.optimal_policy(ref_logp, REWARDS, beta)
    penalised = REWARDS - beta * (logp - ref_logp)
    scores, value = (
        softmax_scores(logp),
        beta * exact.log_partition(ref_logp, REWARDS, beta),
    )
    close(optimal_baseline(logp, penalised, scores), value, atol=1e-10)
    close(gradient_variance(logp, penalised, value, scores), 0.0)


def test_leave_one_out_of_two_keeps_the_mean_of_the_gradient():
    truth = PROBS * (REWARDS - (PROBS * REWARDS).sum())
    mean = torch.zeros(4, dtype=torch.float64)
    for a, b in itertools.product(range(4), repeat=2):
        advantages = leave_one_out(REWARDS[[a, b]][None])[0]
        mean += PROBS[a] * PROBS[b] * (advantages[:, None] * SCORES[[a, b]]).mean(0)
    close(mean, truth)


def test_an_outcome_without_mass_changes_nothing():
    wide = torch.cat([PROBS, torch.zeros(1, dtype=torch.float64)]).log()
    rewards = torch.cat([REWARDS, torch.tensor([1e9], dtype=torch.float64)])
    scores = softmax_scores(wide)
    best = optimal_baseline(LOGP, REWARDS, SCORES)
    close(optimal_baseline(wide, rewards, scores), best)
    found = gradient_variance(wide, rewards, 1.0, scores)
    close(found, gradient_variance(LOGP, REWARDS, 1.0, SCORES))


def test_a_curve_of_baselines_keeps_its_shape():
    b = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    found = gradient_variance(LOGP, REWARDS, b, SCORES)
    assert found.shape == (2, 3)
    close(found[1, 2], gradient_variance(LOGP, REWARDS, 1.0, SCORES))


def test_a_policy_that_cannot_learn_has_no_best_baseline():
    sure = torch.tensor([1.0, 0.0], dtype=torch.float64).log()
    with pytest.raises(ValueError, match="scores: found all zero"):
        optimal_baseline(sure, REWARDS[:2], softmax_scores(sure))


@pytest.mark.parametrize(
    "f", [optimal_baseline, lambda p, r, s: gradient_variance(p, r, 0.0, s)]
)
def test_baselines_name_what_is_wrong(f):
    with pytest.raises(ValueError, match=r"shapes do not fit: .*rewards \[3\]"):
        f(LOGP, REWARDS[:3], SCORES)
    with pytest.raises(ValueError, match="logp: want a law"):
        f(PROBS, REWARDS, SCORES)
    with pytest.raises(ValueError, match="rewards: found nan"):
        f(LOGP, REWARDS * math.nan, SCORES)
    with pytest.raises(ValueError, match="scores: want mean zero, found"):
        f(LOGP, REWARDS, torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="scores: want 2 axes"):
        f(LOGP, REWARDS, SCORES[0])


def test_a_baseline_that_is_no_number_raises():
    with pytest.raises(ValueError, match="baseline: found nan"):
        gradient_variance(LOGP, REWARDS, torch.tensor(math.nan), SCORES)
