"""The loop: questions in time, and what a judge skips is not learnt from."""

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.control import cartpole, learner

SMALL = learner.Settings(
    iterations=3, clip=10, stride=5, candidates=1, hidden=(8,), reward_hidden=(8,),
    fit_steps=2, first_fit_steps=2,
)  # fmt: skip


def make(judge, asks, settings=SMALL, **other):
    env = cartpole.CartPoles(len(asks), 4, length=20)
    generator = seeding.make(0)
    return learner.PreferenceLearner(env, judge, asks, settings, generator, **other)


def first_always(copy, hidden):
    return torch.ones(len(hidden["state"]))


def inside(batch):
    return cartpole.inside(batch.hidden["state"]).double()


# ------------------------------------------------------------------- when it is asked


@pytest.mark.parametrize("total, first", [(500, 150), (10, 0), (7, 7)])
def test_a_schedule_adds_up_and_never_grows(total, first):
    plan = learner.schedule(total, 20, first, 10.0)
    assert sum(plan) == total and plan[0] == first and len(plan) == 20
    assert min(plan) >= 0 and plan[1] >= plan[-1]


def test_a_schedule_follows_its_law_to_a_whole_question():
    plan = learner.schedule(10_000, 30, 1000, 5.0)[1:]
    weights = [5 / (5 + i) for i in range(29)]
    for found, weight in zip(plan, weights, strict=True):
        assert abs(found - 9000 * weight / sum(weights)) <= 1


def test_with_one_iteration_everything_is_asked_at_once():
    assert learner.schedule(12, 1, 3, 5.0) == [12]


@pytest.mark.parametrize("iterations, first", [(0, 1), (5, 11), (5, -1)])
def test_a_schedule_that_cannot_be_kept_raises(iterations, first):
    with pytest.raises(ValueError, match="iterations|first"):
        learner.schedule(10, iterations, first, 5.0)


# ----------------------------------------------------------------------- what is asked


def test_clips_are_cut_where_the_pairs_say():
    x = torch.randn(5, 30, 2, generator=seeding.make(0))
    pairs = torch.tensor([[[0, 3], [4, 20]], [[2, 0], [2, 1]], [[1, 7], [3, 7]]])
    found = learner.cut(x, pairs, clip=10)
    assert found.shape == (3, 2, 10, 2)
    for n in range(3):
        for side in range(2):
            episode, start = pairs[n, side].tolist()
            assert torch.equal(found[n, side], x[episode, start : start + 10])


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


def test_what_is_judged_is_what_is_learnt_from():
    """Every stride-th moment of the judged clips stands in the buffer."""
    kept = []

    def judge(copy, hidden):
        kept.append(hidden["state"])
        return torch.ones(len(hidden["state"]))

    made = make(judge, [[6, 0, 0]])
    made.step()
    x = kept[0][:, :, ::5, 0] / cartpole.TRACK_LIMIT
    torch.testing.assert_close(made.buffer.clips[0, :6, :, :, 0], x.float())


def test_the_clips_fit_into_the_episodes_and_reach_both_ends():
    made = make(first_always, [[0, 0, 0]])
    batch = made.step()[1]
    pairs = made.choose_pairs(batch, 0, 500)
    assert pairs[..., 0].unique().tolist() == [0, 1, 2, 3]
    assert pairs[..., 1].min() == 0 and pairs[..., 1].max() == 20 - 10


def test_the_pairs_asked_are_those_that_divide_the_ensemble_most():
    settings = learner.Settings(**{**vars(SMALL), "candidates": 8})
    made = make(first_always, [[4, 0, 0]], settings)
    batch = made.step()[1]
    offered = []

    def disagreement(copy, seen):
        offered.append(torch.rand(len(seen), generator=seeding.make(5)))
        return offered[-1]

    made.reward.disagreement = disagreement
    state = made.generator.get_state()
    chosen = made.choose_pairs(batch, 0, 3)
    assert len(offered[0]) == 24
    made.generator.set_state(state)  # the same candidates again, without a choice
    made.s = SMALL
    candidates = made.choose_pairs(batch, 0, 24)
    assert torch.equal(chosen, candidates[offered[0].argsort(descending=True)[:3]])


def test_a_skipped_pair_is_not_kept():
    def judge(copy, hidden):
        return torch.tensor([1.0, torch.nan, 0.5])

    made = make(judge, [[3, 0, 0]])
    made.step()
    assert made.buffer.count.tolist() == [2]
    assert made.buffer.preference[0, :2].tolist() == [1.0, 0.5]


def test_a_judge_who_skips_all_teaches_nothing():
    made = make(lambda copy, hidden: torch.full((3,), torch.nan), [[3, 0, 0]])
    before = [p.clone() for p in made.reward.net.parameters()]
    row, _ = made.step()
    assert "loss" not in row and made.buffer.count.tolist() == [0]
    after = made.reward.net.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# ------------------------------------------------------------- what is learnt from it


def test_comparisons_cast_before_are_fitted_at_the_start_and_nothing_is_asked():
    clips = torch.randn(7, 2, 2, 5, generator=seeding.make(0))
    said = torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.0])
    made = make(None, [[0, 0, 0], [0, 0, 0]], cast=(clips, said))
    assert made.buffer.count.tolist() == [7, 7]
    first, _ = made.step()
    fitted = [p.clone() for p in made.reward.net.parameters()]
    second, _ = made.step()
    assert "loss" in first and "loss" not in second  # frozen from then on
    now = made.reward.net.parameters()
    assert all(torch.equal(a, b) for a, b in zip(fitted, now, strict=True))
    assert torch.equal(made.buffer.clips[1, :7], clips)


def test_comparisons_cast_before_leave_room_for_the_questions():
    cast = (torch.zeros(7, 2, 2, 5), torch.ones(7))
    made = make(first_always, [[3, 2, 1]], cast=cast)
    for _ in range(3):
        made.step()
    assert made.buffer.count.tolist() == [13]


def test_a_copy_that_is_given_the_reward_does_not_ask():
    made = make(None, [[0, 0, 0]], true_reward=inside, given=torch.tensor([True]))
    row, batch = made.step()
    assert batch.logp.shape == (1, 4, 20) and row["comparisons"] == 0


def test_only_the_copies_that_are_given_the_reward_depend_on_it():
    def after(sign):
        made = make(
            None, [[0] * 3, [0] * 3],
            true_reward=lambda batch: sign * inside(batch),
            given=torch.tensor([True, False]),
        )  # fmt: skip
        for _ in range(2):
            made.step()
        return made.policy.mean.weights[0].detach()

    plus, minus = after(1.0), after(-1.0)
    assert not torch.equal(plus[0], minus[0]) and torch.equal(plus[1], minus[1])


def test_a_run_is_its_seed():
    def after():
        made = make(first_always, [[4, 2, 1]])
        return [made.step()[0] for _ in range(3)]

    assert after() == after()


def test_a_learner_that_is_given_the_reward_gets_better():
    settings = learner.Settings(
        **{**vars(SMALL), "iterations": 12, "std": 1.0, "lr": 0.02}
    )
    made = learner.PreferenceLearner(
        cartpole.CartPoles(4, 8, length=60), None, [[0]] * 4, settings,
        seeding.make(0), inside, torch.ones(4, dtype=torch.bool),
    )  # fmt: skip
    returns = [
        cartpole.true_return(made.step()[1].hidden["state"]).mean().item()
        for _ in range(12)
    ]
    assert returns[-1] > returns[0] + 15


def test_one_schedule_per_copy_is_wanted():
    env = cartpole.CartPoles(2, 4)
    with pytest.raises(ValueError, match="asks: want 2 schedules, found 1"):
        learner.PreferenceLearner(env, None, [[0]], SMALL, seeding.make(0))
