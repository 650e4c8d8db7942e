"""The loop: questions in time, and what a judge skips is not learnt from."""

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control import cartpole, learner

SMALL = learner.Settings(
    iterations=3, clip=10, stride=5, candidates=1, hidden=(8,), reward_hidden=(8,),
    fit_steps=2, first_fit_steps=2,
)  # fmt: skip


def make(judge, asks, **other):
    env = cartpole.CartPoles(len(asks), 4, length=20)
    return learner.PreferenceLearner(env, judge, asks, SMALL, seeding.make(0), **other)


@pytest.mark.parametrize("total, first", [(500, 150), (10, 0), (7, 7)])
def test_a_schedule_adds_up_and_never_grows(total, first):
    plan = learner.schedule(total, 20, first, 10.0)
    assert sum(plan) == total and plan[0] == first and len(plan) == 20
    assert min(plan) >= 0 and plan[1] >= plan[-1]


def test_the_judge_sees_pairs_of_clips_and_the_buffer_counts_them():
    shapes = []

    def judge(copy, hidden):
        shapes.append(tuple(hidden["state"].shape))
        return torch.ones(len(hidden["state"]))

    made = make(judge, [[3, 2, 0], [0, 0, 0]])
    for _ in range(3):
        made.step()
    assert shapes == [(3, 2, 10, 4), (2, 2, 10, 4)]
    assert made.buffer.count.tolist() == [5, 0]


def test_a_skipped_pair_is_not_kept():
    def judge(copy, hidden):
        return torch.tensor([1.0, torch.nan, 0.5])

    made = make(judge, [[3, 0, 0]])
    made.step()
    assert made.buffer.count.tolist() == [2]
    assert made.buffer.preference[0, :2].tolist() == [1.0, 0.5]


def test_a_copy_that_is_given_the_reward_does_not_ask():
    def reward(batch):
        return cartpole.inside(batch.hidden["state"]).double()

    made = make(None, [[0, 0, 0]], true_reward=reward, given=torch.tensor([True]))
    row, batch = made.step()
    assert batch.logp.shape == (1, 4, 20) and row["comparisons"] == 0


def test_one_schedule_per_copy_is_wanted():
    env = cartpole.CartPoles(2, 4)
    with pytest.raises(ValueError, match="asks"):
        learner.PreferenceLearner(env, None, [[0]], SMALL, seeding.make(0))
