"""policies.py: laws that sum to 1, draws that follow them, pads that do nothing.

The language model is a random one of two layers. What must be equal to the last bit
is compared with torch.equal; what is summed in another order to 1e-5.
"""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from rlhf_mini import exact, seeding
from rlhf_mini.advantages import gae
from rlhf_mini.gpt2.models import TokenScorer
from rlhf_mini.kl import kl_k1, kl_k2, kl_k3, shape_rewards
from rlhf_mini.logprobs import sequence_sum
from rlhf_mini.losses import clip_fraction, ppo_clip_loss, value_clip_loss
from rlhf_mini.masking import masked_whiten
from rlhf_mini.policies import (
    CausalLMPolicy,
    SequenceCritic,
    SequencePolicy,
    TabularPolicy,
    draw,
    join,
    real,
)
from rlhf_mini.rollouts import collect

END, PAD = 0, 1
# three prompts of different lengths, pads on the left
PROMPTS = torch.tensor([[PAD, PAD, 33, 34], [2, 26, 43, 9], [PAD, 20, 36, 12]])


def random_policy(vocab=3, length=3, states=2, seed=0):
    policy = SequencePolicy(vocab, length, states, dtype=torch.float64)
    noise = torch.randn(
        policy.logits.shape, generator=seeding.make(seed), dtype=torch.float64
    )
    policy.logits.data = 1.5 * noise
    return policy


def language_policy(model, **options):
    options = {"pad": PAD, "end": END, "max_new_tokens": 8} | options
    return CausalLMPolicy(model, **options)


def critic_of(model_folder, tokenizer):
    return TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))


def law_of(policy, prompt, vocab, length):
    """Log-probability of every answer to one prompt, [V^T]."""
    answers = exact.enumerate_sequences(vocab, length)
    prompts = prompt.expand(len(answers), *prompt.shape[1:])
    return answers, policy.logp(prompts, answers).sum(-1)


# --- draw ---------------------------------------------------------------------


def test_draws_come_as_often_as_the_softmax_says():
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0])
    drawn = draw(logits.expand(40_000, -1), seeding.make(0))
    seen = torch.bincount(drawn, minlength=5).double()
    assert chisquare(seen, 40_000 * logits.double().softmax(-1)).pvalue > 1e-3


def test_a_draw_never_hits_an_entry_of_probability_zero():
    logits = torch.full((50_000, 5), -torch.inf)
    logits[:, [1, 3]] = torch.tensor([0.0, -12.0])  # zeros first, between and last
    assert set(draw(logits, seeding.make(0)).tolist()) == {1, 3}


@pytest.mark.parametrize("u, want", [(0.0, 1), (1 - 2**-53, 3)])
def test_even_the_outermost_uniform_numbers_hit_a_possible_entry(monkeypatch, u, want):
    monkeypatch.setattr(
        torch, "rand", lambda size, **_: torch.full(size, u, dtype=torch.float64)
    )
    logits = torch.tensor([[-torch.inf, 0.3, -torch.inf, 0.1, -torch.inf]])
    assert draw(logits, seeding.make(0)).tolist() == [want]


def test_the_same_seed_draws_the_same():
    logits = torch.randn(64, 7, generator=seeding.make(1))
    first, second = (draw(logits, seeding.make(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, draw(logits, seeding.make(6)))


def test_a_row_s_draw_does_not_depend_on_the_other_rows_logits():
    logits = torch.randn(64, 7, generator=seeding.make(1))
    other = logits.clone()
    other[::2] = -other[::2]
    first, second = draw(logits, seeding.make(5)), draw(other, seeding.make(5))
    assert torch.equal(first[1::2], second[1::2])


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6)])
def test_a_draw_takes_away_the_last_axis(shape):
    assert draw(torch.zeros(shape), seeding.make(0)).shape == shape[:-1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_draw_refuses_logits_that_are_no_law(bad):
    with pytest.raises(ValueError, match=r"logits: the largest entry of row \[1\]"):
        draw(torch.tensor([[0.0, 1.0], [bad, 0.0]]), seeding.make(0))


# --- SequencePolicy -----------------------------------------------------------


@pytest.mark.parametrize("vocab, length", [(2, 4), (3, 3), (5, 1)])
@pytest.mark.parametrize("state", [0, 1])
def test_the_probabilities_of_all_sequences_sum_to_one(vocab, length, state):
    policy = random_policy(vocab, length)
    _, logp = law_of(policy, torch.tensor([state]), vocab, length)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("vocab, length", [(2, 4), (3, 3), (4, 2)])
def test_nodes_count_the_prefixes_breadth_first(vocab, length):
    number = {}  # the naive way: list all prefixes, the short ones first
    for t in range(length):
        for row in exact.enumerate_sequences(vocab, t).tolist() if t else [[]]:
            number[tuple(row)] = len(number)
    policy = SequencePolicy(vocab, length)
    answers = exact.enumerate_sequences(vocab, length)
    want = [[number[tuple(y[:t])] for t in range(length)] for y in answers.tolist()]
    assert policy.nodes(answers).tolist() == want
    assert policy.logits.shape[1] == len(number)


def test_the_law_of_a_token_is_the_softmax_at_its_prefix():
    policy = random_policy()
    logp = policy.logp(torch.tensor([1]), torch.tensor([[2, 0, 1]]))
    # the prefixes (), (2) and (2, 0) are numbers 0, 3 and 10 of 1 + 3 + 9
    table = policy.logits[1].log_softmax(-1)
    want = torch.stack([table[0, 2], table[3, 0], table[10, 1]])
    torch.testing.assert_close(logp[0], want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("state", [0, 1])
def test_sequences_are_sampled_as_often_as_their_law_says(state):
    policy = random_policy(vocab=3, length=2)
    answers, logp = law_of(policy, torch.tensor([state]), 3, 2)
    rollout = policy.sample(torch.full((20_000,), state), seeding.make(0))
    which = (rollout.tokens * torch.tensor([3, 1])).sum(-1)
    seen = torch.bincount(which, minlength=9).double()
    assert chisquare(seen, 20_000 * logp.exp().detach()).pvalue > 1e-3


def test_a_sample_carries_its_own_logp_and_the_entropy_of_its_law():
    policy = random_policy()
    rollout = policy.sample(torch.tensor([0, 1, 1, 0]), seeding.make(0))
    logp = policy.logp(rollout.prompts, rollout.tokens)
    assert torch.equal(rollout.logp, logp.detach())
    p = policy.logits[rollout.prompts[:, None], policy.nodes(rollout.tokens)].softmax(
        -1
    )
    torch.testing.assert_close(rollout.entropy, -(p * p.log()).sum(-1).detach())
    assert rollout.mask.all() and rollout.mask.dtype == torch.bool


def test_logp_of_a_table_has_a_gradient_that_sums_to_zero_at_each_prefix():
    # ∂ log π(a)/∂θ = 1[a] − π sums to 0
    policy = random_policy()
    policy.logp(torch.tensor([1]), torch.tensor([[2, 0, 1]])).sum().backward()
    torch.testing.assert_close(
        policy.logits.grad.sum(-1), torch.zeros(2, 13, dtype=torch.float64)
    )
    assert (policy.logits.grad[0] == 0).all()  # the other state
    assert policy.logits.grad[1].any(-1).nonzero().flatten().tolist() == [0, 3, 10]


@pytest.mark.parametrize("size", [(1, 3, 1), (3, 0, 1), (3, 2, 0)])
def test_a_policy_of_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="want vocab ≥ 2, length ≥ 1, states ≥ 1"):
        SequencePolicy(*size)


def test_a_bandit_is_a_sequence_of_length_one():
    bandit = TabularPolicy(4, states=2, dtype=torch.float64)
    bandit.logits.data[1, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    want = torch.tensor([[0.25] * 4, [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(bandit.probs(), want, rtol=0, atol=1e-7)
    logp = bandit.logp(torch.tensor([1]), torch.tensor([[2]]))
    assert logp.exp().item() == pytest.approx(0.3)
    assert bandit.sample(torch.tensor([0, 1, 1]), seeding.make(0)).tokens.shape == (
        3,
        1,
    )


def test_the_critic_of_a_table_has_one_value_for_each_prefix():
    policy = random_policy()
    critic = SequenceCritic(policy)
    critic.table.data = torch.arange(26.0).view(2, 13)
    values = critic(torch.tensor([1, 0]), torch.tensor([[2, 0, 1], [1, 1, 1]]))
    assert values.tolist() == [[13.0, 16.0, 23.0], [0.0, 2.0, 8.0]]


def test_the_critic_starts_at_zero_even_where_an_action_is_banned():
    # the defect: logits · 0 is NaN where they are −inf
    policy = random_policy()
    policy.logits.data[..., 0] = -torch.inf
    assert (SequenceCritic(policy).table == 0).all()


# --- join ---------------------------------------------------------------------


def test_join_gives_pads_no_attention_and_no_position():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    tokens = torch.tensor([[5, 0, 77], [0, -100, 9], [6, 7, 8]])  # garbage in pads
    batch = join(PROMPTS, tokens, mask, PAD)
    assert batch["attention_mask"].tolist() == [
        [0, 0, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 1],
    ]
    assert batch["input_ids"].tolist() == [
        [1, 1, 33, 34, 5, 0, 1],
        [2, 26, 43, 9, 0, 1, 1],
        [1, 20, 36, 12, 6, 7, 8],
    ]
    # the first real token of each row stands at position 0
    seen = batch["attention_mask"].bool()
    for row, where in zip(batch["position_ids"], seen, strict=True):
        assert row[where].tolist() == list(range(int(where.sum())))


def test_join_wants_a_mask_for_the_tokens():
    with pytest.raises(ValueError, match=r"tokens \[3, 2\], mask \[3, 1\]"):
        join(PROMPTS, torch.zeros(3, 2).long(), torch.ones(3, 1), PAD)


def test_only_what_leads_a_prompt_is_a_pad():
    # pad = end token: one inside a prompt is a token like any other
    prompts = torch.tensor([[0, 0, 5, 6], [7, 0, 0, 8]])
    assert real(prompts, pad=0).tolist() == [[False, False, True, True], [True] * 4]


@pytest.mark.parametrize("row", [[5, 6, PAD], [PAD, PAD, PAD]], ids=["right", "all"])
def test_a_prompt_that_ends_in_a_pad_is_refused(model, row):
    prompts, policy = torch.tensor([[3, 4, 5], row]), language_policy(model)
    for act in (
        lambda: policy.sample(prompts, seeding.make(0)),
        lambda: policy.logp(prompts, torch.ones(2, 1).long(), torch.ones(2, 1)),
    ):
        with pytest.raises(ValueError, match="prompts: row 1 ends in a pad"):
            act()


# --- CausalLMPolicy: sampling against scoring ---------------------------------


@pytest.mark.parametrize("pad", [PAD, END], ids=["own pad", "pad is end"])
def test_the_first_forward_after_a_rollout_has_ratio_one(model, pad):
    # sampled token by token with a cache, scored in one pass without
    policy = language_policy(model, pad=pad)
    prompts = PROMPTS.masked_fill(PROMPTS == PAD, pad).repeat(60, 1)
    rollout = policy.sample(prompts, seeding.make(0))
    lengths = rollout.mask.sum(-1)
    assert lengths.min() < 8 and lengths.max() == 8  # some ended early, some did not
    logp = policy.logp(rollout.prompts, rollout.tokens, rollout.mask)
    ratio = (logp - rollout.logp).exp()
    assert (ratio - 1).abs().max().item() < 1e-5
    assert clip_fraction(logp, rollout.logp, rollout.mask, 1e-4) == 0


def test_at_step_zero_the_policy_is_the_reference_to_the_last_bit(model_folder, model):
    policy = language_policy(model)
    reference = language_policy(type(model).from_pretrained(model_folder))
    rollout = policy.sample(PROMPTS.repeat(8, 1), seeding.make(0))
    batch = rollout.prompts, rollout.tokens, rollout.mask
    with torch.no_grad():
        logp, ref_logp = policy.logp(*batch), reference.logp(*batch)
    assert torch.equal(logp, ref_logp)
    assert ((logp - ref_logp).exp() == 1).all()
    for estimator in (kl_k1, kl_k2, kl_k3):
        assert (estimator(logp, ref_logp) == 0).all()
    assert clip_fraction(logp, ref_logp, rollout.mask) == 0


@pytest.mark.parametrize("pad", [PAD, END], ids=["own pad", "pad is end"])
def test_the_end_token_is_an_action_and_nothing_follows_it(model, pad):
    policy = language_policy(model, pad=pad)
    prompts = PROMPTS.masked_fill(PROMPTS == PAD, pad).repeat(60, 1)
    rollout = policy.sample(prompts, seeding.make(0))
    ended = 0
    for tokens, mask in zip(rollout.tokens, rollout.mask, strict=True):
        length = int(mask.sum())
        assert mask[:length].all()  # no hole
        assert END not in tokens[: length - 1]
        assert (tokens[length:] == pad).all()
        assert length == 8 or tokens[length - 1] == END
        ended += length < 8
    assert ended > 3
    assert (rollout.logp[rollout.mask] < 0).all()
    assert (rollout.logp[~rollout.mask] == 0).all()
    assert (rollout.entropy[~rollout.mask] == 0).all()


def test_without_an_end_token_every_answer_is_full_length(model):
    rollout = language_policy(model, end=None).sample(PROMPTS, seeding.make(0))
    assert rollout.mask.all() and rollout.tokens.shape == (3, 8)


def test_an_answer_of_ends_only_is_padded_to_full_length(model):
    policy = language_policy(model, allowed=torch.tensor([END, 7]))
    model.lm_head.weight.data[END] = 0
    model.lm_head.weight.data[7] = 0
    rollout = policy.sample(PROMPTS[1:2], seeding.make(0))
    for seed in range(20):  # until one ends at once, and the loop with it
        rollout = policy.sample(PROMPTS[1:2], seeding.make(seed))
        if rollout.mask.sum() == 1:
            break
    assert rollout.tokens.tolist() == [[END] + [PAD] * 7]
    assert rollout.mask.tolist() == [[True] + [False] * 7]


def test_tokens_are_sampled_as_often_as_the_logits_say(model):
    policy = language_policy(model, max_new_tokens=1, end=None)
    prompt = PROMPTS[:1]
    rollout = policy.sample(prompt.expand(6_000, -1), seeding.make(0))
    with torch.no_grad():
        logits = model(prompt[:, 2:]).logits[0, -1].double()  # no pads before it
    seen = torch.bincount(rollout.tokens[:, 0], minlength=50).double()
    words = torch.arange(50) != PAD  # and none after
    assert seen[PAD] == 0
    assert chisquare(seen[words], 6_000 * logits[words].softmax(-1)).pvalue > 1e-3


def test_the_same_seed_samples_the_same_answers(model):
    policy = language_policy(model)
    first, second = (policy.sample(PROMPTS, seeding.make(4)) for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.logp, second.logp)


def test_sampling_keeps_no_gradient_and_scoring_does(model):
    policy = language_policy(model)
    rollout = policy.sample(PROMPTS, seeding.make(0))
    assert not rollout.logp.requires_grad
    assert policy.logp(PROMPTS, rollout.tokens, rollout.mask).requires_grad


def test_dropout_is_off_in_a_model_that_was_training(model_folder, model):
    model.train()
    policy = language_policy(model)
    rollout = policy.sample(PROMPTS, seeding.make(0))
    again = [policy.logp(PROMPTS, rollout.tokens, rollout.mask) for _ in range(2)]
    assert torch.equal(*again)


def test_an_answer_of_no_token_is_refused(model):
    with pytest.raises(ValueError, match="max_new_tokens: want ≥ 1, found 0"):
        language_policy(model, max_new_tokens=0)


# --- CausalLMPolicy: the shift ------------------------------------------------


def test_each_token_is_scored_by_the_logits_one_slot_before_it(model):
    # a loop that calls the model anew on every prefix, without pads or positions
    policy = language_policy(model)
    rollout = policy.sample(PROMPTS.repeat(4, 1), seeding.make(0))
    logp = policy.logp(rollout.prompts, rollout.tokens, rollout.mask)
    for b, prompt in enumerate(rollout.prompts):
        text = [i for i in prompt.tolist() if i != PAD]
        for t in range(int(rollout.mask[b].sum())):
            token = int(rollout.tokens[b, t])
            with torch.no_grad():
                logits = model(torch.tensor([text])).logits[0, -1]
            logits[PAD] = -torch.inf  # a pad is no action
            law = logits.log_softmax(-1)
            assert logp[b, t].item() == pytest.approx(law[token].item(), abs=1e-5)
            text.append(token)


def test_the_token_k1_sum_to_the_log_ratio_of_the_sequence(model_folder, model):
    reference = language_policy(type(model).from_pretrained(model_folder))
    model.lm_head.weight.data[5:20] *= 1.3
    policy = language_policy(model)
    rollout = policy.sample(PROMPTS.repeat(4, 1), seeding.make(0))
    batch = rollout.prompts, rollout.tokens, rollout.mask
    k1 = kl_k1(rollout.logp, reference.logp(*batch))
    whole = sequence_sum(policy.logp(*batch), rollout.mask) - sequence_sum(
        reference.logp(*batch), rollout.mask
    )
    torch.testing.assert_close(k1.sum(-1), whole, rtol=0, atol=1e-5)
    assert whole.abs().max() > 0.1  # the two laws do differ


# --- padding ------------------------------------------------------------------


def padded_more(rollout):
    """The same rows with three more pads on either side."""
    left = nn.functional.pad(rollout.prompts, (3, 0), value=PAD)
    tokens = nn.functional.pad(rollout.tokens, (0, 3), value=PAD)
    return left, tokens, nn.functional.pad(rollout.mask, (0, 3), value=False)


@pytest.mark.parametrize("what", ["logp", "values", "scores"])
def test_padded_and_unpadded_batches_agree(model, model_folder, tokenizer, what):
    policy, critic = language_policy(model), critic_of(model_folder, tokenizer)
    f = {"logp": policy.logp, "values": critic, "scores": critic.last}[what]
    rollout = policy.sample(PROMPTS.repeat(40, 1), seeding.make(0))
    rollout = rollout[rollout.mask.sum(-1).argsort()[:12]]  # the shortest answers
    together = f(rollout.prompts, rollout.tokens, rollout.mask)
    more = f(*padded_more(rollout))
    for b in range(len(rollout)):
        length = int(rollout.mask[b].sum())
        prompt = rollout.prompts[b][rollout.prompts[b] != PAD][None]
        mask = torch.ones(1, length).bool()
        alone = f(prompt, rollout.tokens[b : b + 1, :length], mask)[0]
        for batch in (together, more):
            found = batch[b] if what == "scores" else batch[b, :length]
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def garbage(rollout):
    """Other ids in every pad of the answers, none of them a token id at all."""
    junk = torch.randint(-100, 10_000, rollout.tokens.shape, generator=seeding.make(8))
    return replace(rollout, tokens=rollout.tokens.where(rollout.mask, junk))


@pytest.mark.parametrize("what", ["logp", "values", "scores"])
def test_garbage_in_pads_changes_nothing_by_one_ulp(
    model, model_folder, tokenizer, what
):
    policy, critic = language_policy(model), critic_of(model_folder, tokenizer)
    f = {"logp": policy.logp, "values": critic, "scores": critic.last}[what]
    clean = policy.sample(PROMPTS.repeat(20, 1), seeding.make(0))
    dirty = garbage(clean)
    assert not torch.equal(clean.tokens, dirty.tokens)
    first, second = (f(r.prompts, r.tokens, r.mask) for r in (clean, dirty))
    assert torch.equal(first, second)


def ppo_loss_and_gradients(policy, critic, rollout, noise):
    """The whole PPO loss as `ppo_step` builds it, with junk in every pad column."""
    mask = rollout.mask
    junk = torch.where(mask, 0.0, noise)
    ref_logp = policy.logp(rollout.prompts, rollout.tokens, mask).detach() - 0.1
    values = critic(rollout.prompts, rollout.tokens, mask).detach()
    score = critic.last(rollout.prompts, rollout.tokens, mask).detach()
    rewards = shape_rewards(score, rollout.logp + junk, ref_logp - junk, mask, beta=0.1)
    advantages, returns = gae(rewards + junk, values + junk, mask)
    advantages = masked_whiten(advantages + junk, mask)
    logp = policy.logp(rollout.prompts, rollout.tokens, mask) + junk
    now = critic(rollout.prompts, rollout.tokens, mask) + junk
    loss = ppo_clip_loss(logp, rollout.logp - junk, advantages + junk, mask)
    loss = loss + 0.1 * value_clip_loss(now, values - junk, returns + junk, mask)
    leaves = [*policy.parameters(), *critic.parameters()]
    return loss, torch.autograd.grad(loss, leaves, allow_unused=True)


@pytest.mark.parametrize("junk", [1.0, 1e20, math.nan])
def test_garbage_in_pads_does_not_reach_the_ppo_loss_or_its_gradient(
    model, model_folder, tokenizer, junk
):
    policy, critic = language_policy(model), critic_of(model_folder, tokenizer)
    rollout = policy.sample(PROMPTS.repeat(20, 1), seeding.make(0))
    rollout = replace(rollout, logp=rollout.logp + 0.05)  # so that ratios are not 1
    assert not rollout.mask.all()
    none = torch.zeros_like(rollout.logp)
    loss, gradients = ppo_loss_and_gradients(policy, critic, rollout, none)
    other, others = ppo_loss_and_gradients(
        policy, critic, garbage(rollout), none + junk
    )
    assert torch.equal(loss, other)
    for g, h in zip(gradients, others, strict=True):
        assert (g is None and h is None) or torch.equal(g, h)


# --- a restricted vocabulary --------------------------------------------------

ALLOWED = torch.tensor([40, 4, 17, 9, 23])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_restricted_law_sums_to_one_over_all_answers(model, length):
    policy = language_policy(model, allowed=ALLOWED, max_new_tokens=length)
    answers = ALLOWED[exact.enumerate_sequences(len(ALLOWED), length)]
    for prompt in PROMPTS:
        prompts = prompt.expand(len(answers), -1)
        logp = policy.logp(prompts, answers, torch.ones_like(answers).bool())
        total = logp.double().sum(-1).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-5)


def test_the_restricted_law_is_the_free_law_renormalised(model):
    free = language_policy(model)
    policy = language_policy(model, allowed=ALLOWED)
    tokens, mask = ALLOWED[:, None], torch.ones(5, 1).bool()
    prompts = PROMPTS[:1].expand(5, -1)
    p = free.logp(prompts, tokens, mask).exp()[:, 0]
    found = policy.logp(prompts, tokens, mask).exp()[:, 0]
    torch.testing.assert_close(found, p / p.sum(), rtol=0, atol=1e-5)


def test_a_restricted_policy_samples_only_what_is_allowed_and_scores_it(model):
    policy = language_policy(model, allowed=ALLOWED, max_new_tokens=4)
    rollout = policy.sample(PROMPTS.repeat(50, 1), seeding.make(0))
    assert set(rollout.tokens.unique().tolist()) == set(ALLOWED.tolist())
    assert rollout.mask.all()  # the end is not allowed, so nothing ends
    logp = policy.logp(rollout.prompts, rollout.tokens, rollout.mask)
    torch.testing.assert_close(logp, rollout.logp, rtol=0, atol=1e-5)


def test_the_order_of_allowed_tokens_does_not_matter_even_if_all_are_allowed(model):
    # the defect: a permutation of the whole vocabulary was taken for no restriction,
    # so that logits and slots were numbered differently
    shuffled = torch.randperm(50, generator=seeding.make(2))
    free, policy = language_policy(model), language_policy(model, allowed=shuffled)
    rollout = policy.sample(PROMPTS.repeat(8, 1), seeding.make(0))
    batch = rollout.prompts, rollout.tokens, rollout.mask
    torch.testing.assert_close(free.logp(*batch), rollout.logp, rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.logp(*batch), rollout.logp, rtol=0, atol=1e-5)


def test_a_token_that_is_not_allowed_cannot_be_scored(model):
    policy = language_policy(model, allowed=ALLOWED)
    tokens, mask = torch.tensor([[40, 5], [4, 17]]), torch.ones(2, 2)
    with pytest.raises(ValueError, match="tokens: found an id outside `allowed`"):
        policy.logp(PROMPTS[:2], tokens, mask)
    mask[0, 1] = 0  # as a pad it may be anything
    assert policy.logp(PROMPTS[:2], tokens, mask)[0, 1] == 0


@pytest.mark.parametrize(
    "allowed, message",
    [
        ([4, 9, 4], "distinct"),
        ([4, 50], "want 0 to 49, found 50"),
        ([-1, 3], "found -1"),
    ],
)
def test_allowed_must_be_distinct_token_ids(model, allowed, message):
    with pytest.raises(ValueError, match=f"allowed.*{message}"):
        language_policy(model, allowed=torch.tensor(allowed))


# --- what collect fills -------------------------------------------------------


def test_a_full_rollout_agrees_with_policy_reference_critic_and_scorer(
    model, model_folder, tokenizer
):
    policy, critic = language_policy(model), critic_of(model_folder, tokenizer)
    prompts = PROMPTS.repeat(3, 1)
    rollout = collect(
        policy, prompts, seeding.make(0), reference=policy, critic=critic,
        score=critic.score, batch_size=4,
    )  # fmt: skip
    batch = rollout.prompts, rollout.tokens, rollout.mask
    for found, f in (("ref_logp", policy.logp), ("values", critic)):
        torch.testing.assert_close(
            getattr(rollout, found), f(*batch), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(rollout.scores, critic.last(*batch), atol=1e-5, rtol=0)
    # the score belongs to the last real token, wherever the pads begin
    everywhere = critic.scores(*batch)
    for b in range(len(rollout)):
        at = prompts.shape[1] + int(rollout.mask[b].sum()) - 1
        assert rollout.scores[b].item() == pytest.approx(
            everywhere[b, at].item(), abs=1e-5
        )


def test_the_pad_is_never_an_action_unless_it_is_the_end(model, tokenizer):
    """Sampled, it would stand in the mask and vanish from the text judges read."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    prompt = torch.tensor([[5, 9, 7]])
    tokens = torch.tensor([[8, 6]])
    mask = torch.ones_like(tokens).bool()
    for ending, possible in ((end, False), (pad, True)):
        policy = CausalLMPolicy(model, pad=pad, end=ending, max_new_tokens=2)
        law = policy.logits(prompt, tokens, mask).softmax(-1)
        assert (law[..., pad] > 0).all() == possible
        torch.testing.assert_close(law.sum(-1), torch.ones(1, 2))
