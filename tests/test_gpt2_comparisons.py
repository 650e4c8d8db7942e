"""gpt2/comparisons.py: labelled answers, their layout, and what is learnt of them."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from rlhf_mini import seeding
from rlhf_mini.annotators import BradleyTerryAnnotator
from rlhf_mini.gpt2 import comparisons
from rlhf_mini.gpt2.comparisons import (
    Comparisons,
    accuracy,
    compare,
    fit_reward_model,
    predict,
    score_all,
)
from rlhf_mini.gpt2.models import TokenScorer
from rlhf_mini.offline_training import dpo_step
from rlhf_mini.training import PPOSettings

PAD, LIKED = 1, 6  # the annotator of these tests counts one token


@pytest.fixture(scope="module")
def world(make_world):
    return make_world()


def count_liked(rollout):
    return ((rollout.tokens == LIKED) & rollout.mask).sum(-1).float()


@pytest.fixture(scope="module")
def make_data(world):
    def make(n, k=2, seed=0, slope=50.0, gold=count_liked):
        generator = seeding.make(seed)
        prompts = world.draw_prompts(n, generator)
        annotator = BradleyTerryAnnotator(slope)
        return compare(
            world.reference, prompts, gold, annotator, k, generator, progress=False
        )

    return make


def by_hand(k):
    """Two comparisons of k answers; every number names its row and answer."""
    n, t = 2, 3
    which = torch.arange(n)[:, None] * 10 + torch.arange(k)
    tokens = which[..., None] * 10 + torch.arange(t)
    return Comparisons(
        prompts=torch.tensor([[70, 71], [80, 81]]),
        tokens=tokens,
        mask=torch.ones_like(tokens).bool(),
        ref_logp=-which.float(),
        gold=which.float() * 2,
        choice=torch.tensor([1, 0]),
    )


# --- compare ------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 4])
def test_each_prompt_keeps_its_own_answers_scores_and_choice(world, make_data, k):
    data = make_data(40, k, slope=1e6)
    n = len(data)
    assert data.tokens.shape == data.mask.shape == (n, k, 5)
    assert data.ref_logp.shape == data.gold.shape == (n, k)
    counted = ((data.tokens == LIKED) & data.mask).sum(-1).float()
    assert torch.equal(data.gold, counted)
    # so steep an annotator takes one of the best
    assert torch.equal(
        data.gold.gather(1, data.choice[:, None])[:, 0], data.gold.amax(-1)
    )
    for i in range(k):
        logp = world.reference.logp(data.prompts, data.tokens[:, i], data.mask[:, i])
        torch.testing.assert_close(logp.sum(-1), data.ref_logp[:, i], atol=1e-4, rtol=0)


class Repeating:
    """Answers what it is told, whatever the prompt."""

    pad = PAD

    def __init__(self, reference, rows):
        self.reference, self.rows = reference, torch.tensor(rows)

    def sample(self, prompts, generator):
        found = self.reference.sample(prompts, generator)
        return replace(
            found, tokens=F.pad(self.rows, (0, 3), value=99),
            mask=torch.tensor([[1, 1, 0, 0, 0]] * len(self.rows)).bool(),
        )  # fmt: skip


def test_a_prompt_whose_answers_are_all_the_same_is_dropped(world):
    # 99 stands in the pads: it must not count as a difference
    rows = [[5, 6], [5, 6], [5, 6], [5, 7], [8, 6], [8, 6]]
    policy = Repeating(world.reference, rows)
    prompts = world.train_prompts[:3]
    data = compare(
        policy, prompts, count_liked, BradleyTerryAnnotator(1.0), 2, seeding.make(0),
        progress=False,
    )  # fmt: skip
    assert torch.equal(data.prompts, prompts[1:2])
    assert data.tokens[0].tolist() == [[5, 6, 1, 1, 1], [5, 7, 1, 1, 1]]
    assert data.gold.tolist() == [[1.0, 0.0]]


def test_the_same_seed_makes_the_same_comparisons(make_data):
    first, second = make_data(30), make_data(30)
    for name, x in vars(first).items():
        assert torch.equal(x, getattr(second, name)), name
    assert not torch.equal(first.tokens[:20], make_data(30, seed=1).tokens[:20])


def test_one_answer_cannot_be_compared(make_data):
    with pytest.raises(ValueError, match="k: want ≥ 2 answers to compare, found 1"):
        make_data(4, k=1)


def test_more_answers_than_fit_a_batch_can_be_compared(make_data):
    assert make_data(1, k=600).tokens.shape == (1, 600, 5)


# --- pairs --------------------------------------------------------------------


def test_of_two_answers_the_chosen_stands_against_the_other():
    prompts, chosen, rejected = by_hand(2).pairs()
    assert prompts.tolist() == [[70, 71], [80, 81]]
    assert chosen[0][:, 0].tolist() == [10, 100]
    assert rejected[0][:, 0].tolist() == [0, 110]
    assert chosen[2].tolist() == [-1.0, -10.0]
    assert rejected[2].tolist() == [-0.0, -11.0]


def test_of_four_answers_the_chosen_stands_against_each_other_one():
    prompts, chosen, rejected = by_hand(4).pairs()
    assert prompts[:, 0].tolist() == [70] * 3 + [80] * 3
    assert chosen[0][:, 0].tolist() == [10] * 3 + [100] * 3
    assert rejected[0][:, 0].tolist() == [0, 20, 30, 110, 120, 130]
    assert rejected[2].tolist() == [-0.0, -2.0, -3.0, -11.0, -12.0, -13.0]
    assert (
        chosen[1].shape == chosen[0].shape == (6, 3) and chosen[1].dtype == torch.bool
    )


def test_two_equal_answers_make_no_pair():
    data = by_hand(4)
    data.tokens[0, 2] = data.tokens[0, 1]  # of the chosen one
    data.tokens[1, 3] = data.tokens[1, 2]  # of two that lost
    _, chosen, rejected = data.pairs()
    assert chosen[0][:, 0].tolist() == [10] * 2 + [100] * 3
    assert rejected[0][:, 0].tolist() == [0, 30, 110, 120, 120]


def test_the_first_dpo_loss_on_these_pairs_is_ln_two(world, make_data):
    prompts, chosen, rejected = make_data(30, k=3).pairs()
    policy = world.policy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    row = dpo_step(policy, prompts, chosen, rejected, optimizer, 0.5, PPOSettings())
    assert row["dpo_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert row["margin"] == pytest.approx(0, abs=1e-5)


def test_rows_of_comparisons_stay_together():
    part = by_hand(3)[torch.tensor([1])]
    assert len(part) == 1 and part.choice.tolist() == [0]
    assert part.prompts.tolist() == [[80, 81]] and part.tokens[0, 2, 0] == 120


# --- the file -----------------------------------------------------------------


def test_the_file_holds_one_pair_a_line(world, make_data, tmp_path):
    data, path = make_data(25, k=3), tmp_path / "preferences.jsonl"
    data.write_jsonl(path, world.tokenizer)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    prompts, chosen, rejected = data.pairs()
    assert len(lines) == len(prompts)
    for i, line in enumerate(lines):
        assert list(line) == ["prompt", "chosen", "rejected"]
        assert line["prompt"] == world.tokenizer.decode(prompts[i])
        for name, (tokens, mask, _) in (("chosen", chosen), ("rejected", rejected)):
            special = world.tokenizer.all_special_ids  # a random model may say any
            real = [t for t in tokens[i][mask[i]].tolist() if t not in special]
            assert line[name] == world.tokenizer.decode(real)


# --- the reward model ---------------------------------------------------------


def fresh(world):
    name = world.settings.model
    return TokenScorer.from_language_model(name, world.tokenizer, seeding.make(1))


def test_scores_of_a_table_are_those_of_its_answers(world, make_data):
    data, scorer = make_data(12, k=3), fresh(world)
    table = score_all(scorer, data)
    assert table.shape == (len(data), 3) and table.requires_grad
    for i in range(3):
        want = scorer.last(data.prompts, data.tokens[:, i], data.mask[:, i])
        torch.testing.assert_close(table[:, i], want, atol=1e-5, rtol=0)


def test_a_prediction_is_the_softmax_of_the_scores(world, make_data):
    data, scorer = make_data(12, k=3), fresh(world)
    predicted = predict(scorer, data, batch=5)
    want = score_all(scorer, data).softmax(-1)
    torch.testing.assert_close(predicted, want.detach(), atol=1e-5, rtol=0)
    assert not predicted.requires_grad


def test_accuracy_is_the_share_of_choices_named_with_its_standard_error():
    data = by_hand(2)[torch.tensor([0, 0, 1, 0])]  # choices 1 1 0 1
    predicted = torch.tensor([[0.2, 0.8], [0.7, 0.3], [0.6, 0.4], [0.1, 0.9]])
    share, error = accuracy(predicted, data)
    assert share == 0.75
    # s² = 4/3 · ¾ · ¼, over 4
    assert error == pytest.approx(math.sqrt(4 / 3 * 0.75 * 0.25 / 4))


@pytest.mark.parametrize("k", [2, 4])
def test_a_reward_model_learns_a_planted_taste(world, make_data, k):
    # who has more of one token; pairs of equal count are labelled by a coin
    train, held_out = make_data(700, k, seed=1), make_data(300, k, seed=2)
    scorer = fresh(world)
    log = fit_reward_model(
        scorer, train, seeding.make(0), lr=3e-3, epochs=2, progress=False
    )
    assert len(log) == 2 * -(-len(train) // 32)
    top = held_out.gold.sort(-1).values
    clear = held_out[top[:, -1] > top[:, -2]]
    right, error = accuracy(predict(scorer, clear), clear)
    assert right - 2 * error > 0.8, (right, error, len(clear))


def test_fitting_twice_with_one_seed_gives_one_model(world, make_data):
    data, scores = make_data(40), []
    for _ in range(2):
        scorer = fresh(world)
        fit_reward_model(scorer, data, seeding.make(0), lr=1e-3, progress=False)
        scores.append(score_all(scorer, data))
    assert torch.equal(*scores)


def test_every_comparison_is_seen_once_an_epoch(world, make_data, monkeypatch):
    data, seen = make_data(50), []
    inner = comparisons.score_all
    monkeypatch.setattr(
        comparisons, "score_all", lambda s, b: (seen.append(b.prompts), inner(s, b))[1]
    )
    fit_reward_model(
        fresh(world), data, seeding.make(0), lr=1e-3, batch=8, epochs=2, progress=False
    )
    seen = torch.cat(seen)
    assert len(seen) == 2 * len(data)
    first, second = seen[: len(data)], seen[len(data) :]
    assert sorted(first.tolist()) == sorted(second.tolist())
    assert sorted(first.tolist()) == sorted(data.prompts.tolist())
    assert not torch.equal(first, second)


def test_normalising_changes_scores_and_not_what_is_predicted(
    make_world, model_folder, tokenizer
):
    """Scores are put on unit variance; the log-odds that choices taught are kept."""
    world = make_world()
    scorer = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
    generator = seeding.make(0)
    data = compare(
        world.reference, world.train_prompts[:12], world.gold(), world.annotator, 2,
        generator, progress=False,
    )  # fmt: skip
    before = predict(scorer, data)
    scorer.normalise(world.reference.sample(world.train_prompts, generator))
    assert abs(scorer.scale - 1) > 0.05
    torch.testing.assert_close(predict(scorer, data), before, rtol=0, atol=1e-5)


def test_going_on_from_a_normalised_reward_model_goes_on_from_its_log_odds(
    make_world, model_folder, tokenizer
):
    world = make_world()
    scorer = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
    generator = seeding.make(0)
    data = compare(
        world.reference, world.train_prompts[:12], world.gold(), world.annotator, 2,
        generator, progress=False,
    )  # fmt: skip
    first = [
        fit_reward_model(
            copy.deepcopy(s), data, seeding.make(1), lr=1e-4, progress=False
        )
        for s in (scorer, normalised_copy(scorer, world, generator))
    ]
    assert first[0][0]["loss"] == pytest.approx(first[1][0]["loss"], abs=1e-5)


def normalised_copy(scorer, world, generator):
    scorer = copy.deepcopy(scorer)
    scorer.normalise(world.reference.sample(world.train_prompts, generator))
    return scorer
