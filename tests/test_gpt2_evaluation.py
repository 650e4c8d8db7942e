"""gpt2/evaluation.py: what is reported, against counting by hand."""

import itertools
import math

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.gpt2.evaluation import (
    Scoreboard,
    Watched,
    best_of_n,
    best_of_n_curve,
    distinct,
    evaluate,
    samples,
)
from rlhf_mini.gpt2.reviews import decode
from rlhf_mini.rollouts import Rollout, collect


def answers(rows, mask):
    tokens = torch.tensor(rows)
    zeros = torch.zeros(tokens.shape)
    return Rollout(
        prompts=torch.zeros(len(rows), 1).long(), tokens=tokens,
        mask=torch.tensor(mask).bool(), logp=zeros, entropy=zeros,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(make_world):
    return make_world()


@pytest.fixture(scope="module")
def board(world, reward_model):
    return world.board(reward_model)


@pytest.fixture(scope="module")
def policy(world):
    policy = world.policy()
    policy.model.lm_head.weight.data[5:20] *= 1.5  # not the reference
    return policy


# --- distinct -----------------------------------------------------------------


@pytest.mark.parametrize("n, want", [(1, 4 / 6), (2, 4 / 4), (3, 2 / 2), (4, 0.0)])
def test_distinct_counts_different_n_grams_over_all_of_them(n, want):
    # unigrams 5 6 5 | 6 7 8; bigrams 56 65 | 67 78; trigrams 565 | 678
    rollout = answers([[5, 6, 5, 9], [6, 7, 8, 9]], [[1, 1, 1, 0], [1, 1, 1, 0]])
    assert distinct(rollout, n) == pytest.approx(want)


def test_an_n_gram_does_not_run_from_one_answer_into_the_next():
    rollout = answers([[5, 6], [5, 6]], [[1, 1], [1, 1]])
    assert distinct(rollout, 2) == 1 / 2


# --- the board ----------------------------------------------------------------


def test_the_board_asks_every_judge_about_prompt_and_answer(
    world, board, judges, policy, reward_model
):
    rollout = policy.sample(world.eval_prompts, seeding.make(0))
    texts, columns = decode(rollout, world.tokenizer), board(rollout)
    assert set(columns) == {
        "gold", "positive_reviews", "positive_ratings", "reward_model",
    }  # fmt: skip
    assert columns["gold"].tolist() == pytest.approx(judges.gold.score(texts).tolist())
    liked = [float(x > 0) for x in judges.reviews.score(texts)]
    assert columns["positive_reviews"].tolist() == liked
    want = reward_model.score(rollout).double()
    torch.testing.assert_close(columns["reward_model"], want)
    assert all(x.dtype == torch.float64 and x.shape == (6,) for x in columns.values())


def test_a_board_without_a_reward_model_has_no_such_column(world, judges, policy):
    rollout = policy.sample(world.eval_prompts, seeding.make(0))
    assert "reward_model" not in Scoreboard(judges, None, world.tokenizer)(rollout)


def test_what_is_watched_is_the_whole_batch_though_it_comes_in_parts(
    world, board, policy
):
    # the defect: the log spoke of the last part only
    prompts = world.train_prompts[:10]
    watched = Watched(lambda r: r.mask.sum(-1).float(), board)
    rollout = collect(policy, prompts, seeding.make(0), score=watched, batch_size=4)
    seen = watched.take()
    want = {k: x.mean().item() for k, x in board(rollout).items()}
    want["distinct_2"] = distinct(rollout, 2)
    assert seen.pop("seconds_judges") > 0
    assert seen == pytest.approx(want)
    # training sees the scorer only
    assert torch.equal(rollout.scores, rollout.mask.sum(-1).float())


def test_what_was_taken_is_not_seen_again(world, board, policy):
    watched = Watched(lambda r: r.mask.sum(-1).float(), board)
    for part in world.train_prompts[:8].split(4):
        rollout = policy.sample(part, seeding.make(1))
        watched(rollout)
        assert watched.take()["gold"] == pytest.approx(board(rollout)["gold"].mean())


# --- evaluate -----------------------------------------------------------------


def test_an_evaluation_has_means_and_intervals_of_every_opinion(world, board, policy):
    row, rollout = evaluate(
        policy, world.reference, world.eval_prompts, board, seeding.make(0)
    )
    opinions = {"gold", "positive_reviews", "positive_ratings", "reward_model"}
    with_interval = opinions | {"kl_to_ref"}
    assert set(row) == with_interval | {k + "_ci" for k in with_interval} | {
        "entropy", "distinct_1", "distinct_2", "ref_perplexity", "length", "answers",
    }  # fmt: skip
    assert len(rollout) == row["answers"] == 6
    gold = board(rollout)["gold"].tolist()
    mean = sum(gold) / 6
    spread = math.sqrt(sum((g - mean) ** 2 for g in gold) / 5)
    assert row["gold"] == pytest.approx(mean)
    assert row["gold_ci"] == pytest.approx(1.96 * spread / math.sqrt(6))


def test_kl_is_per_answer_and_perplexity_per_token(world, board, policy):
    row, rollout = evaluate(
        policy, world.reference, world.eval_prompts, board, seeding.make(0)
    )
    ref = world.reference.logp(rollout.prompts, rollout.tokens, rollout.mask)
    kl, surprise, count = [], 0.0, 0
    for b in range(len(rollout)):
        keep = rollout.mask[b]
        kl.append((rollout.logp[b][keep] - ref[b][keep]).sum().item())
        surprise, count = surprise - ref[b][keep].sum().item(), count + int(keep.sum())
    assert row["kl_to_ref"] == pytest.approx(sum(kl) / len(kl), abs=1e-5)
    assert row["ref_perplexity"] == pytest.approx(math.exp(surprise / count), rel=1e-4)
    assert row["length"] == pytest.approx(count / len(rollout))


def test_the_reference_is_at_kl_zero_of_itself(world, board):
    row, _ = evaluate(
        world.reference, world.reference, world.eval_prompts, board, seeding.make(0)
    )
    assert row["kl_to_ref"] == pytest.approx(0, abs=1e-5)


# --- best of n ----------------------------------------------------------------

# 2 prompts × 4 answers; the second prompt's proxy has a tie at the top
PROXY = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.5, 1.5, -2.0, 0.0]).double()
GOLD = torch.tensor([1.0, 5.0, -3.0, 2.0, 7.0, 9.0, 0.0, 4.0]).double()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_best_of_n_is_the_mean_over_all_subsets_of_n(n):
    means = {"reward_model": [], "gold": []}
    for proxy, gold in zip(
        PROXY.view(2, 4).tolist(), GOLD.view(2, 4).tolist(), strict=True
    ):
        subsets = list(itertools.combinations(range(4), n))
        top = [max(proxy[i] for i in s) for s in subsets]
        best = [
            [i for i in s if proxy[i] == high]
            for s, high in zip(subsets, top, strict=True)
        ]
        golds = [sum(gold[i] for i in b) / len(b) for b in best]
        means["reward_model"].append(sum(top) / len(top))
        means["gold"].append(sum(golds) / len(golds))
    columns = {"reward_model": PROXY, "gold": GOLD}
    (row,) = best_of_n_curve(columns, 4, [n])
    for name, (a, b) in means.items():
        assert row[name] == pytest.approx((a + b) / 2)
        # the spread over two prompts: |a − b|/√2, over √2
        assert row[name + "_ci"] == pytest.approx(1.96 * abs(a - b) / 2)
    assert row["n"] == n
    assert row["kl_bound"] == pytest.approx(math.log(n) - (n - 1) / n)


def test_the_curve_begins_at_the_plain_mean_and_never_falls_for_its_own_judge():
    rows = best_of_n_curve({"reward_model": PROXY, "gold": GOLD}, 4, [1, 2, 3, 4])
    assert rows[0]["gold"] == pytest.approx(GOLD.mean().item())
    climb = [row["reward_model"] for row in rows]
    assert climb == sorted(climb)
    assert rows[-1]["reward_model"] == pytest.approx((2.0 + 1.5) / 2)


@pytest.mark.parametrize("n, sizes", [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4])])
def test_best_of_n_goes_up_in_powers_of_two(world, board, n, sizes):
    prompts = world.eval_prompts[:3]
    rows = best_of_n(world.reference, prompts, board, n, seeding.make(0))
    assert [row["n"] for row in rows] == sizes
    rollout = collect(world.reference, prompts.repeat_interleave(n, 0), seeding.make(0))
    mean = board(rollout)["reward_model"].mean().item()
    assert rows[0]["reward_model"] == pytest.approx(mean, abs=1e-5)


# --- samples ------------------------------------------------------------------


def test_samples_show_the_same_prompts_before_and_after(world, board, policy, judges):
    before, after = (
        p.sample(world.eval_prompts, seeding.make(0)) for p in (world.reference, policy)
    )
    rows = samples(before, after, board, 4)
    assert len(rows) == 4
    for i, row in enumerate(rows):
        assert list(row) == ["prompt", "before", "after", "before_gold", "after_gold"]
        assert row["prompt"] == world.tokenizer.decode(world.eval_prompts[i])
        for name in ("before", "after"):
            (gold,) = judges.gold.score([row["prompt"] + row[name]]).tolist()
            assert row[name + "_gold"] == pytest.approx(gold, abs=1e-5)
            assert "<|" not in row[name]  # neither pads nor the end


def test_samples_of_different_prompts_are_refused(world, board, policy):
    before = world.reference.sample(world.eval_prompts[:3], seeding.make(0))
    after = policy.sample(world.eval_prompts[1:4], seeding.make(0))
    with pytest.raises(ValueError, match="want answers to the same prompts"):
        samples(before, after, board, 3)
