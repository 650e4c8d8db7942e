"""gpt2/models.py: folders that transformers loads, and one scalar per token."""

import re

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_mini import seeding
from rlhf_mini.gpt2.models import (
    TokenScorer,
    freeze,
    load_policy,
    load_tokenizer,
)
from rlhf_mini.rollouts import concatenate

PAD = 1
PROMPTS = torch.tensor([[PAD, PAD, 33, 34], [2, 26, 43, 9], [PAD, 20, 36, 12]])


@pytest.fixture
def scorer(model_folder, tokenizer):
    return TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))


@pytest.fixture
def rollout(model_folder, tokenizer):
    policy = load_policy(model_folder, tokenizer, max_new_tokens=6)
    return policy.sample(PROMPTS.repeat(30, 1), seeding.make(0))


def rows(rollout):
    """Each row as a text without pads: [1, length] token ids."""
    for prompt, tokens, mask in zip(
        rollout.prompts, rollout.tokens, rollout.mask, strict=True
    ):
        yield torch.cat([prompt[prompt != PAD], tokens[mask]])[None]


def quoted(path):
    """A path as messages show it, to be matched: Windows has backslashes."""
    return re.escape(repr(str(path)))


# --- loading ------------------------------------------------------------------


def test_the_tokenizer_pads_on_the_left(model_folder):
    tokenizer = load_tokenizer(model_folder)
    ids = tokenizer(["a good film", "the"], padding=True)["input_ids"]
    assert ids[1][:2] == [tokenizer.pad_token_id] * 2 and ids[0][0] != PAD


def test_a_tokenizer_without_a_pad_pads_with_the_end(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    bare = AutoTokenizer.from_pretrained(tmp_path, pad_token=None)
    assert bare.pad_token is None
    bare.save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.pad_token == found.eos_token == tokenizer.eos_token


def test_a_policy_takes_pad_and_end_from_the_tokenizer(model_folder, tokenizer):
    policy = load_policy(model_folder, tokenizer, max_new_tokens=3)
    assert (policy.pad, policy.end) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert policy.max_new_tokens == 3
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_a_policy_can_be_restricted(model_folder, tokenizer):
    allowed = torch.tensor([5, 9, 30])
    policy = load_policy(model_folder, tokenizer, max_new_tokens=2, allowed=allowed)
    found = policy.sample(PROMPTS, seeding.make(0)).tokens
    assert set(found.flatten().tolist()) <= {5, 9, 30}


@pytest.mark.parametrize("what", ["nothing", "no model", "damaged"])
def test_a_folder_without_a_model_is_named(tmp_path, model_folder, tokenizer, what):
    if what != "nothing":
        tokenizer.save_pretrained(tmp_path)
    if what == "damaged":
        (tmp_path / "config.json").write_text(
            (model_folder / "config.json").read_text()
        )
        half = (model_folder / "model.safetensors").read_bytes()[:5000]
        (tmp_path / "model.safetensors").write_bytes(half)
    with pytest.raises(ValueError, match=f"model: cannot load {quoted(tmp_path)}"):
        load_policy(tmp_path, tokenizer, max_new_tokens=2)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"model: no tokenizer in {quoted(tmp_path)}"):
        load_tokenizer(tmp_path)


def test_a_frozen_module_has_no_gradient(scorer):
    assert not any(p.requires_grad for p in freeze(scorer).parameters())


# --- the head -----------------------------------------------------------------


def test_the_head_starts_with_the_published_spread(model_folder, tokenizer):
    # N(0, 1/(d + 1)): 50 heads of 32 weights
    heads = torch.cat(
        [
            TokenScorer.from_language_model(
                model_folder, tokenizer, seeding.make(i)
            ).model.score.weight.flatten()
            for i in range(20)
        ]
    )
    assert heads.std().item() == pytest.approx(33**-0.5, rel=0.1)
    assert abs(heads.mean().item()) < 0.03


def test_the_same_seed_makes_the_same_head(model_folder, tokenizer):
    first, second = (
        TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(5))
        for _ in range(2)
    )
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_score_is_read_at_the_last_real_token(scorer, rollout):
    # the defect: one slot late, on the pad; the end token is a real one
    found = scorer.last(rollout.prompts, rollout.tokens, rollout.mask)
    assert not rollout.mask.all()
    for score, text in zip(found, rows(rollout), strict=True):
        with torch.no_grad():
            hidden = scorer.model.base_model(text).last_hidden_state
            alone = scorer.model.score(hidden)[0, -1, 0]
        assert score.item() == pytest.approx(alone.item(), abs=1e-5)


def test_a_value_is_read_before_its_token_and_a_score_after_the_last(scorer, rollout):
    batch = rollout.prompts, rollout.tokens, rollout.mask
    everywhere, values, last = (
        scorer.scores(*batch),
        scorer(*batch),
        scorer.last(*batch),
    )
    start = rollout.prompts.shape[1]
    for b in range(len(rollout)):
        length = int(rollout.mask[b].sum())
        want = everywhere[b, start - 1 : start - 1 + length]
        assert torch.equal(values[b, :length], want)
        assert last[b] == everywhere[b, start + length - 1]
    assert values.shape == rollout.tokens.shape


def test_a_value_does_not_know_the_token_it_stands_before(scorer, rollout):
    batch = rollout.prompts, rollout.tokens, torch.ones_like(rollout.mask)
    changed = rollout.tokens.clone()
    changed[:, 3] = (changed[:, 3] + 7) % 50
    before, after = scorer(*batch), scorer(batch[0], changed, batch[2])
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3


def test_scoring_keeps_no_gradient_and_last_does(scorer, rollout):
    assert not scorer.score(rollout).requires_grad
    assert scorer.last(rollout.prompts, rollout.tokens, rollout.mask).requires_grad


# --- normalising and saving ---------------------------------------------------


def normalised(scorer, rollout):
    scorer.normalise(rollout, batch_size=32)
    return scorer.score(rollout)


def test_normalised_scores_have_mean_zero_and_variance_one(scorer, rollout):
    before = scorer.score(rollout)
    after = normalised(scorer, rollout)
    assert after.mean().item() == pytest.approx(0, abs=1e-5)
    assert after.std().item() == pytest.approx(1, abs=1e-5)
    # a shift and a scale: the order of answers stays
    torch.testing.assert_close(
        after, (before - before.mean()) / before.std(), rtol=0, atol=1e-5
    )


def test_normalising_twice_is_normalising_once(scorer, rollout):
    once = normalised(scorer, rollout)
    torch.testing.assert_close(normalised(scorer, rollout), once, rtol=0, atol=1e-5)


def test_equal_scores_cannot_be_normalised(scorer, rollout):
    # the defect: a head that was divided by 10⁻⁸
    before = scorer.model.score.weight.clone()
    with pytest.raises(ValueError, match="spread: the scores do not differ"):
        scorer.normalise(concatenate([rollout[:1]] * 4))
    assert torch.equal(scorer.model.score.weight, before)


def test_a_saved_reward_model_scores_the_same(scorer, rollout, tokenizer, tmp_path):
    want = normalised(scorer, rollout)
    scorer.save(tmp_path)
    found = TokenScorer.load(tmp_path, tokenizer)
    torch.testing.assert_close(found.score(rollout), want, rtol=0, atol=1e-6)


def test_transformers_alone_gives_the_score_before_shift_and_scale(
    scorer, rollout, tokenizer, tmp_path
):
    want = normalised(scorer, rollout)
    scorer.save(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    shift, scale = model.config.reward_shift, model.config.reward_scale
    assert shift != 0 and scale != 1 and model.config.num_labels == 1
    for score, text in zip(want, rows(rollout), strict=True):
        if text[0, -1] == PAD:  # a random model may say so; transformers steps over it
            continue
        with torch.no_grad():
            raw = model(text).logits.item()
        assert (raw - shift) / scale == pytest.approx(score.item(), abs=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",  # never a pickle
    ]


def test_the_normalised_scorer_is_also_the_shifted_critic(scorer, rollout):
    batch = rollout.prompts, rollout.tokens, rollout.mask
    before, scores = scorer(*batch).detach(), scorer.score(rollout)
    scorer.normalise(rollout)
    after = scorer(*batch).detach()
    torch.testing.assert_close(
        after, (before - scores.mean()) / scores.std(), rtol=0, atol=1e-5
    )
