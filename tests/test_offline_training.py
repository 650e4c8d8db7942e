"""offline_training.py: steps on data that are there, on tables with exact answers.

A token world of two states and two tokens; float64 where a number is to be exact.
"""

import math
from functools import partial

import pytest
import torch
from test_training import (
    ANSWERS,
    BETA,
    REWARDS,
    STATES,
    UNCLIPPED,
    Still,
    T,
    V,
    gaps,
    law,
    make_policy,
    make_reference,
)
from torch import nn

from rlhf_mini import seeding
from rlhf_mini.annotators import BradleyTerryAnnotator
from rlhf_mini.losses import cdpo_loss, ipo_loss, reinforce_loss
from rlhf_mini.offline_training import dpo_step, reward_model_step, sft_step
from rlhf_mini.training import PPOSettings, linear_decay


def all_pairs():
    """Every state with every ordered pair of different answers, [M]."""
    n = V**T
    s, i, j = torch.meshgrid(STATES, torch.arange(n), torch.arange(n), indexing="ij")
    keep = i != j
    return s[keep], i[keep], j[keep]


def test_dpo_on_bradley_terry_labels_approaches_the_optimum():
    # as many labels of each pair as its chance says: P(i ≻ j) = σ(r_i − r_j)
    reference, generator = make_reference(), seeding.make(0)
    states, i, j = (x.repeat(2) for x in all_pairs())
    annotator = BradleyTerryAnnotator(slope=1.0)
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    ref = law(reference)
    every = torch.ones(len(i), T).bool()
    for step in range(300):
        linear_decay(optimizer, step, 300)
        choice = annotator.choose(
            torch.stack([REWARDS[states, i], REWARDS[states, j]], -1), generator
        )
        won, lost = torch.where(choice == 0, i, j), torch.where(choice == 0, j, i)
        chosen, rejected = ((ANSWERS[y], every, ref[states, y]) for y in (won, lost))
        dpo_step(policy, states, chosen, rejected, optimizer, BETA, UNCLIPPED)
    left, attainable = gaps(policy)
    assert left <= 0.01 * attainable, (left, attainable)


@pytest.mark.parametrize("k", [2, 4])
def test_a_reward_model_recovers_the_differences_of_scores(k):
    generator = seeding.make(0)
    true = REWARDS[0] - REWARDS[0].mean()
    scores = nn.Parameter(torch.zeros_like(true))
    optimizer = torch.optim.Adam([scores], lr=0.1)
    annotator = BradleyTerryAnnotator(slope=1.0)
    for step in range(300):
        linear_decay(optimizer, step, 300)
        slate = torch.rand(512, len(true), generator=generator).argsort(-1)[:, :k]
        choice = annotator.choose(true[slate], generator)
        reward_model_step(scores[slate], choice, optimizer, PPOSettings())
    found = scores.detach() - scores.detach().mean()  # the constant is free
    assert (found - true).abs().max().item() < 0.15


def test_the_first_dpo_update_is_ln_two_and_pulls_the_two_answers_apart():
    policy, reference = make_policy(), make_reference()
    optimizer, ref, every = Still(policy.parameters()), law(reference), torch.ones(1, T)
    chosen = (ANSWERS[4:5], every.bool(), ref[0, 4:5])
    rejected = (ANSWERS[7:8], every.bool(), ref[0, 7:8])
    row = dpo_step(policy, STATES[:1], chosen, rejected, optimizer, BETA, UNCLIPPED)
    assert row["dpo_loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert row["margin"] == pytest.approx(0, abs=1e-12)
    assert row["chosen_logp"] == pytest.approx(ref[0, 4].item())
    assert row["rejected_logp"] == pytest.approx(ref[0, 7].item())
    # ∇ = −β σ(0) (∇ log π(y_w) − ∇ log π(y_l))
    h = law(policy)[0, 4] - law(policy)[0, 7]
    (want,) = torch.autograd.grad(-BETA * h / 2, policy.logits)
    torch.testing.assert_close(optimizer.seen[0][0], want, rtol=0, atol=1e-12)


def test_dpo_with_a_larger_beta_stays_closer_to_the_reference():
    kl, ref = [], law(make_reference())
    for beta in (0.1, 0.5, 2.0):
        policy = make_policy()
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
        states, i, j = all_pairs()
        won = torch.where(REWARDS[states, i] > REWARDS[states, j], i, j)
        lost = torch.where(won == i, j, i)
        every = torch.ones(len(i), T).bool()
        for _ in range(40):
            dpo_step(
                policy, states, (ANSWERS[won], every, ref[states, won]),
                (ANSWERS[lost], every, ref[states, lost]), optimizer, beta, UNCLIPPED,
            )  # fmt: skip
        kl.append((law(policy).exp() * (law(policy) - ref)).sum().item())
    assert kl[0] > kl[1] > kl[2]


def test_a_reward_model_step_descends_the_cross_entropy_of_the_choice():
    scores = nn.Parameter(torch.tensor([[0.5, -1.0, 0.2], [0.0, 2.0, 0.3]]))
    choice, optimizer = torch.tensor([0, 2]), Still([scores])
    row = reward_model_step(scores * 1, choice, optimizer, UNCLIPPED)
    want = nn.functional.cross_entropy(scores, choice)
    assert row["loss"] == pytest.approx(want.item())
    assert row["accuracy"] == 0.5
    (gradient,) = torch.autograd.grad(want, scores)
    torch.testing.assert_close(optimizer.seen[0][0], gradient)


@pytest.mark.parametrize(
    "loss, goal",
    [(ipo_loss, 1 / (2 * BETA)), (partial(cdpo_loss, flip=0.2), math.log(4) / BETA)],
    ids=["ipo", "cdpo"],
)
def test_deterministic_labels_end_at_the_goal_of_the_loss(loss, goal):
    # one pair, always labelled the same way: the margin h stops where it should
    policy, ref = make_policy(), law(make_reference())
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    every = torch.ones(1, T).bool()
    sides = [(ANSWERS[k : k + 1], every, ref[0, k : k + 1]) for k in (4, 7)]
    for step in range(400):
        linear_decay(optimizer, step, 400)
        row = dpo_step(
            policy, STATES[:1], *sides, optimizer, BETA, UNCLIPPED, loss_of_pairs=loss
        )
    h = (law(policy) - ref)[0]
    assert (h[4] - h[7]).item() == pytest.approx(goal, abs=1e-4)
    assert row["margin"] == pytest.approx(BETA * goal, abs=1e-3)


def test_a_supervised_step_is_reinforce_with_an_advantage_of_one():
    policy, tokens = make_policy(), ANSWERS[[1, 5, 5]]
    prompts = torch.tensor([0, 1, 1])
    mask = torch.tensor([[1, 0], [1, 1], [1, 1]]).bool()
    optimizer = Still(policy.parameters())
    row = sft_step(policy, prompts, tokens, mask, optimizer, UNCLIPPED)
    logp = policy.logp(prompts, tokens)
    by_hand = -(logp * mask).sum() / 5  # a mean over five tokens
    assert row["sft_loss"] == pytest.approx(by_hand.item())
    (want,) = torch.autograd.grad(by_hand, policy.logits, retain_graph=True)
    torch.testing.assert_close(optimizer.seen[0][0], want, rtol=0, atol=1e-12)
    as_reward = reinforce_loss(logp, torch.ones_like(logp), mask)
    assert row["sft_loss"] == pytest.approx(as_reward.item())


def test_supervised_steps_end_at_the_frequencies_of_the_answers():
    counts = torch.tensor([3, 1, 0, 4, 2, 2, 0, 1, 7])
    answers = ANSWERS.repeat_interleave(counts, dim=0)
    policy, prompts = make_policy(), torch.ones(len(answers)).long()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    mask = torch.ones_like(answers).bool()
    for step in range(800):
        linear_decay(optimizer, step, 800)
        sft_step(policy, prompts, answers, mask, optimizer, UNCLIPPED)
    found = law(policy)[1].exp()
    assert (found - counts / counts.sum()).abs().max() < 2e-3
    torch.testing.assert_close(law(policy)[0], law(make_reference())[0])  # never asked


def test_a_supervised_step_on_an_empty_mask_raises():
    policy = make_policy()
    with pytest.raises(ValueError, match="mask: empty"):
        sft_step(
            policy, STATES, ANSWERS[:2], torch.zeros(2, T).bool(),
            torch.optim.Adam(policy.parameters()), UNCLIPPED,
        )  # fmt: skip
