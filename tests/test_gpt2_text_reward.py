"""gpt2/text_reward.py on a made-up language model."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2LMHeadModel

from rlhf_mini import seeding
from rlhf_mini.gpt2.models import TokenScorer
from rlhf_mini.gpt2.text_reward import (
    HeadSettings,
    encode,
    fit_reward_head,
    schedule,
    score_and_read,
    score_rows,
    score_texts,
    set_dropout,
    slates,
)
from rlhf_mini.human_pairs import pair_accuracy, preference, rating_shares
from rlhf_mini.losses import all_pairs_loss

TEXTS = [
    "a good film", "a bad film", "a good cast and a good end", "the cast is bad",
    "the end is good", "a dull end", "a good end with a good cast", "a bad cast",
]  # fmt: skip
RATINGS = [(3, 2), (-3, -2), (4, 4), (-2, -3), (3, 3), (-4, -2), (4, 3), (-1, -3)]


@pytest.fixture
def scorer(model_folder, tokenizer):
    return TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))


@pytest.fixture
def rows(tokenizer):
    return encode(tokenizer, TEXTS)


@pytest.fixture
def start(tokenizer):
    return tokenizer.eos_token_id


# --- rows ---------------------------------------------------------------------


def test_every_row_ends_in_the_end_token_and_says_its_text(rows, tokenizer):
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    assert [tokenizer.decode(row[:-1]) for row in rows] == TEXTS


def test_long_texts_are_cut_and_still_end(tokenizer):
    (row,) = encode(tokenizer, [TEXTS[2]], longest=4)
    assert len(row) == 4 and row[-1] == tokenizer.eos_token_id


def test_a_longest_row_of_less_than_two_is_refused(tokenizer):
    with pytest.raises(ValueError, match="longest: .*found 1"):
        encode(tokenizer, TEXTS, longest=1)


# --- scores -------------------------------------------------------------------


def test_a_score_is_the_head_at_the_last_token(scorer, rows, start):
    """Against the bare network on one unpadded row."""
    ids = torch.tensor([[start, *rows[2]]])
    hidden = scorer.model.base_model(ids).last_hidden_state[0, -1]
    expected = scorer.model.score.weight[0] @ hidden
    torch.testing.assert_close(score_rows(scorer, [rows[2]], start)[0], expected)


def test_company_in_the_batch_changes_no_score(scorer, rows, start):
    alone = torch.cat([score_rows(scorer, [row], start) for row in rows])
    torch.testing.assert_close(score_rows(scorer, rows, start), alone)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_scores_come_back_in_the_order_of_the_rows(scorer, rows, start, batch):
    expected = score_rows(scorer, rows, start).detach()
    found = score_texts(scorer, rows, start, batch)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_scoring_switches_dropout_off_and_back_on(scorer, rows, start):
    set_dropout(scorer.model, 0.5)
    scorer.model.train()
    a, b = (score_texts(scorer, rows, start) for _ in range(2))
    assert torch.equal(a, b) and scorer.model.training


def test_dropout_reaches_the_network(scorer, rows, start):
    set_dropout(scorer.model, 0.5)
    scorer.model.train()
    assert not torch.equal(*(score_rows(scorer, rows, start) for _ in range(2)))


def test_reading_along_gives_the_same_scores(scorer, rows, start):
    scores, *_ = score_and_read(scorer, rows, start)
    torch.testing.assert_close(scores, score_rows(scorer, rows, start))


def test_the_scores_along_a_row_are_averaged_over_its_real_tokens(scorer, rows, start):
    """Against the bare network on one unpadded row."""
    _, along, _ = score_and_read(scorer, rows, start)
    for row, found in zip(rows, along, strict=True):
        ids = torch.tensor([[start, *row]])
        states = scorer.model.base_model(ids).last_hidden_state[0, 1:]
        expected = (states @ scorer.model.score.weight[0]).mean()
        torch.testing.assert_close(found, expected)


def test_a_hidden_token_makes_no_difference_and_the_end_is_never_hidden(
    scorer, rows, start
):
    other = [[*row[-2::-1], row[-1]] for row in rows]
    found = [score_and_read(scorer, r, start, hidden=1.0)[0] for r in (rows, other)]
    torch.testing.assert_close(*found)
    pads = [[scorer.pad] * (len(row) - 1) + [start] for row in rows]
    torch.testing.assert_close(found[0], score_rows(scorer, pads, start))


def test_scores_of_new_units_are_shifted_and_divided_everywhere(scorer, rows, start):
    plain = score_and_read(scorer, rows, start)[:2]
    scorer.model.config.reward_shift, scorer.model.config.reward_scale = 1.0, 4.0
    for a, b in zip(plain, score_and_read(scorer, rows, start)[:2], strict=True):
        torch.testing.assert_close((a - 1) / 4, b)


def test_reading_is_the_cross_entropy_of_every_real_token(
    scorer, rows, start, model_folder
):
    """Against the language model itself, row by row, without a pad."""
    model = GPT2LMHeadModel.from_pretrained(model_folder).eval()
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([[start, *row]])
        logp = model(ids).logits[0, :-1].log_softmax(-1)
        total -= logp[torch.arange(len(row)), torch.tensor(row)].sum().item()
        count += len(row)
    *_, read = score_and_read(scorer, rows, start)
    assert read.item() == pytest.approx(total / count, rel=1e-5)


# --- batches ------------------------------------------------------------------


def test_a_pass_shows_each_sentence_at_most_once():
    found = torch.cat(slates(range(50), 8, seeding.make(0)))
    assert len(found) == 48 == len(set(found.tolist()))


def test_batches_hold_sentences_of_like_length():
    g = seeding.make(1)
    sizes = torch.randint(5, 60, (640,), generator=g)
    spread = torch.stack([sizes[b].max() - sizes[b].min() for b in slates(sizes, 8, g)])
    assert spread.double().mean() < 10  # 8 random ones would spread over 43


def test_passes_differ_and_seeds_repeat():
    a, b, c = (torch.cat(slates(range(64), 8, seeding.make(s))) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_fewer_sentences_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="3 sentences, batch 4"):
        slates(range(3), 4, seeding.make(0))


# --- the fit ------------------------------------------------------------------

QUICK = HeadSettings(
    steps=40, batch=4, lr=3e-3, dropout=0.0, hidden=0.0, along_weight=0.0, lm_weight=0.0
)


def test_the_head_learns_what_people_prefer(scorer, rows, start):
    shares = rating_shares(RATINGS)
    losses = fit_reward_head(scorer, rows, shares, start, QUICK, seeding.make(0))
    means = torch.tensor(RATINGS).double().mean(1)
    assert pair_accuracy(score_texts(scorer, rows, start), means) > 0.85
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_turned_round_preferences_are_learnt_turned_round(scorer, rows, start):
    shares = rating_shares([tuple(-v for v in r) for r in RATINGS])
    fit_reward_head(scorer, rows, shares, start, QUICK, seeding.make(0))
    means = torch.tensor(RATINGS).double().mean(1)
    assert pair_accuracy(score_texts(scorer, rows, start), means) < 0.15


def test_a_fit_can_be_repeated_and_leaves_the_global_seed_alone(
    model_folder, tokenizer, rows, start
):
    shares, found = rating_shares(RATINGS), []
    settings = HeadSettings(steps=3, batch=4, dropout=0.3)
    for _ in range(2):
        s = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
        before = torch.random.get_rng_state()  # loading draws, fitting must not
        fit_reward_head(s, rows, shares, start, settings, seeding.make(5))
        assert torch.equal(before, torch.random.get_rng_state())
        found.append(score_texts(s, rows, start))
    assert torch.equal(*found)


def test_all_weights_learn_and_the_network_ends_without_dropout(scorer, rows, start):
    before = {n: p.clone() for n, p in scorer.named_parameters()}
    fit_reward_head(
        scorer, rows, rating_shares(RATINGS), start,
        HeadSettings(steps=3, batch=8), seeding.make(0),
    )  # fmt: skip
    assert all(not torch.equal(p, before[n]) for n, p in scorer.named_parameters())
    assert not scorer.model.training


def test_without_reading_the_fit_is_another_one(model_folder, tokenizer, rows, start):
    found = []
    for weight in (0.0, 0.3):
        s = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
        settings = HeadSettings(steps=3, batch=8, dropout=0.0, lm_weight=weight)
        shares = rating_shares(RATINGS)
        fit_reward_head(s, rows, shares, start, settings, seeding.make(5))
        found.append(score_and_read(s, rows, start)[2].item())
    assert found[1] < found[0]  # it still predicts the sentences better


def test_comparing_all_along_makes_the_averaged_scores_better(
    model_folder, tokenizer, rows, start
):
    shares, found = rating_shares(RATINGS), []
    for weight in (0.0, 1.0):
        s = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
        settings = replace(QUICK, along_weight=weight, batch=8, steps=10)
        fit_reward_head(s, rows, shares, start, settings, seeding.make(5))
        along = score_and_read(s, rows, start)[1].detach()
        found.append(all_pairs_loss(along, preference(shares, shares)).item())
    assert found[1] < found[0]


def test_sixteen_bits_give_nearly_the_same_fit_and_weights_of_thirty_two(
    model_folder, tokenizer, rows, start
):
    fits = []
    for bfloat16 in (False, True):
        s = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
        settings = HeadSettings(steps=5, batch=8, dropout=0.0, bfloat16=bfloat16)
        losses = fit_reward_head(
            s, rows, rating_shares(RATINGS), start, settings, seeding.make(0)
        )
        assert {p.dtype for p in s.parameters()} == {torch.float32}
        fits.append(torch.tensor(losses))
    torch.testing.assert_close(fits[0], fits[1], atol=0.05, rtol=0)
    assert not torch.equal(fits[0], fits[1])


def test_a_loss_that_is_not_finite_raises(scorer, rows, start):
    scorer.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="nan"):
        fit_reward_head(
            scorer, rows, rating_shares(RATINGS), start, QUICK, seeding.make(0)
        )


def test_each_step_is_reported(scorer, rows, start):
    seen = []
    settings = HeadSettings(steps=5, batch=4)
    losses = fit_reward_head(
        scorer, rows, rating_shares(RATINGS), start, settings, seeding.make(0),
        on_step=lambda step, loss: seen.append((step, loss)),
    )  # fmt: skip
    assert seen == list(zip(range(1, 6), losses, strict=True))


def test_a_stopped_fit_is_the_start_of_the_whole_one(
    model_folder, tokenizer, rows, start
):
    found = []
    for stop in (3, None):
        s = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
        settings = HeadSettings(steps=6, batch=4)
        shares = rating_shares(RATINGS)
        found.append(
            fit_reward_head(
                s, rows, shares, start, settings, seeding.make(5), stop=stop
            )
        )
    assert len(found[0]) == 3 and found[0] == found[1][:3]


def test_rows_and_shares_must_be_of_one_length(scorer, rows, start):
    with pytest.raises(ValueError, match="8 rows, 7 rows of shares"):
        fit_reward_head(
            scorer, rows, rating_shares(RATINGS)[1:], start, QUICK, seeding.make(0)
        )


def test_the_rate_rises_to_one_and_falls_to_zero():
    rates = [schedule(s, 100, 0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[100] == 0
    assert rates.index(max(rates)) == 9


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0}, {"steps": 0}, {"batch": 1}, {"dropout": 1.5}, {"warmup": -0.1},
        {"max_grad_norm": 0.0}, {"lm_weight": -1.0}, {"hidden": 1.1},
        {"along_weight": -1.0},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HeadSettings(**wrong)
