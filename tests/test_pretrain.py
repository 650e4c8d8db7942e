"""The pretraining tool: its measures against slow ones, its schedule, a resume."""

import math
from collections import Counter

import pretrain_gpt2_mini as pretrain
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture()
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=7, n_positions=16, n_embd=64, n_layer=1, n_head=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def witten_bell(train, history, word, vocab):
    """p(word | history) by counting, one order at a time, from the shortest history."""
    p = 1 / vocab
    for n in range(len(history) + 1):
        context = tuple(history[len(history) - n :])
        grams = [tuple(train[i : i + n + 1]) for i in range(len(train) - n)]
        after = Counter(g[-1] for g in grams if g[:-1] == context)
        total, kinds = sum(after.values()), len(after)
        if total:
            p = (after[word] + kinds * p) / (total + kinds)
    return p


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_n_gram_baseline_is_witten_bell_counted_by_hand(order):
    train = [0, 1, 2, 1, 3, 1, 2, 2, 0, 4, 1, 3]
    test = [0, 1, 3, 1, 2, 4]
    bits = 0.0
    for i in range(1, len(test)):
        # what stands before the text counts as token 0, the end token
        before = ([0] * order + test[:i])[-(order - 1) :] if order > 1 else []
        bits -= math.log2(witten_bell(train, before, test[i], 7))
    found = pretrain.ngram_bits_per_character(
        torch.tensor(train), torch.tensor(test), 10, 7, order
    )
    assert found == pytest.approx(bits / 10, abs=1e-12)


def test_bits_per_character_of_a_short_text_are_its_loss(model):
    stream = torch.tensor([0, 3, 1, 4, 1, 5])
    with torch.no_grad():
        nats = model(stream[None], labels=stream[None]).loss.item() * 5
    found = pretrain.bits_per_character(model, stream, 20, 16)
    assert found == pytest.approx(nats / math.log(2) / 20, rel=1e-5)


def test_every_token_is_scored_once_with_half_a_window_of_past(model):
    stream = torch.randint(7, (30,), generator=torch.Generator().manual_seed(0))
    nats = 0.0
    for i in range(1, 30):
        begin = max(0, (i - 1) // 8 * 8 - 8)
        with torch.no_grad():
            law = model(stream[None, begin:i]).logits[0, -1].log_softmax(-1)
        nats -= law[stream[i]].item()
    found = pretrain.bits_per_character(model, stream, 100, 16)
    assert found == pytest.approx(nats / math.log(2) / 100, rel=1e-5)


def test_the_rate_rises_stays_and_falls_to_0():
    args = pretrain.arguments(["--steps", "1000", "--decay", "0.4"])
    rate = [pretrain.learning_rate_factor(i, args) for i in range(1001)]
    assert rate[0] == 0.01 and rate[99:601] == [1.0] * 502 and rate[1000] == 0
    assert rate[800] == pytest.approx(0.5)


def test_every_parameter_has_one_optimizer_and_only_vectors_do_not_decay(model):
    optimizers = pretrain.build_optimizers(model, pretrain.arguments([]))
    groups = [g for o in optimizers for g in o.param_groups]
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    for g in groups:
        assert all((p.ndim == 1) == (g["weight_decay"] == 0) for p in g["params"])


def test_steps_lower_the_loss_and_a_resumed_run_is_the_same_run(model, tmp_path):
    ids = torch.arange(17).remainder(7).repeat(4, 1)
    start = pretrain.mean_loss(model, ids).item()
    optimizers = pretrain.build_optimizers(model, pretrain.arguments([]))
    for _ in range(5):
        pretrain.update(model, optimizers, ids)
    pretrain.save_checkpoint(tmp_path / "c.pt", model, optimizers, 5, 1.5)
    after = [pretrain.update(model, optimizers, ids) for _ in range(3)]
    assert after[-1] < start

    fresh = GPT2LMHeadModel(model.config)
    others = pretrain.build_optimizers(fresh, pretrain.arguments([]))
    assert pretrain.load_checkpoint(tmp_path / "c.pt", fresh, others) == (5, 1.5)
    assert [pretrain.update(fresh, others, ids) for _ in range(3)] == after


def test_a_loss_that_is_not_a_number_stops_the_run(model):
    with torch.no_grad():
        model.transformer.wte.weight.fill_(torch.nan)
    optimizers = pretrain.build_optimizers(model, pretrain.arguments([]))
    with pytest.raises(ValueError, match="loss: found nan"):
        pretrain.update(model, optimizers, torch.zeros(2, 5, dtype=torch.long))
