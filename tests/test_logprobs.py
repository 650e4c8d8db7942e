"""logprobs.py: held against torch.distributions, loops and enumeration."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical
from torch.nn import functional as F

from rlhf_mini.logprobs import entropy, log_softmax, sequence_sum, token_logp

NAN, INF = math.nan, math.inf
B, T, V = 4, 3, 5
MASK = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]])


def logits_and_tokens(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(B, T, V, generator=generator, dtype=dtype)
    return logits, torch.randint(V, (B, T), generator=generator)


def gradient_of(function, logits):
    """Gradient of a lopsided sum of function(logits)."""
    logits = logits.clone().requires_grad_()
    value = function(logits)
    weight = torch.arange(1, value.numel() + 1, dtype=value.dtype).view(value.shape)
    (gradient,) = torch.autograd.grad((value * weight).sum(), logits)
    return value.detach(), gradient


# --- token_logp ---------------------------------------------------------------


def test_token_logp_equals_the_categorical_distribution():
    logits, tokens = logits_and_tokens()
    torch.testing.assert_close(
        token_logp(logits, tokens), Categorical(logits=logits).log_prob(tokens)
    )


def test_token_logp_is_minus_the_cross_entropy():
    logits, tokens = logits_and_tokens()
    reference = -F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    torch.testing.assert_close(token_logp(logits, tokens), reference)


def test_token_logp_equals_a_naive_loop():
    logits, tokens = logits_and_tokens()
    found = token_logp(logits, tokens)
    for b, t in itertools.product(range(B), range(T)):
        row = logits[b, t].tolist()
        naive = row[tokens[b, t]] - math.log(math.fsum(map(math.exp, row)))
        assert found[b, t].item() == pytest.approx(naive, abs=1e-12)


def test_logits_at_t_score_the_token_at_t():
    # the defect: the score read one slot late
    logits = torch.full((1, 3, 3), -50.0)
    tokens = torch.tensor([[2, 0, 1]])
    logits[0, torch.arange(3), tokens[0]] = 50.0
    assert token_logp(logits, tokens).eq(0).all()
    assert token_logp(logits, tokens.roll(1)).lt(-90).all()


def test_the_token_probabilities_of_a_row_sum_to_one():
    logits, _ = logits_and_tokens()
    total = sum(token_logp(logits, torch.full((B, T), v)).exp() for v in range(V))
    torch.testing.assert_close(total, torch.ones(B, T, dtype=torch.float64))


def test_sampling_at_one_temperature_and_scoring_at_another_shows_in_the_ratio():
    # the defect: sampled at T = 0.6, scored at T = 1; the first ratio must be 1
    logits, tokens = logits_and_tokens()
    sampled = token_logp(logits / 0.6, tokens)
    same, other = token_logp(logits / 0.6, tokens), token_logp(logits, tokens)
    assert torch.equal((same - sampled).exp(), torch.ones(B, T, dtype=torch.float64))
    assert ((other - sampled).exp() - 1).abs().max() > 0.1


def test_the_score_has_mean_zero_under_the_policy():
    # the fact that baselines and everything else hang on, by enumeration
    logits = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64).repeat(3, 1)
    logits.requires_grad_()
    logp = token_logp(logits, torch.arange(3))  # one row per action
    (gradient,) = torch.autograd.grad((logp.detach().exp() * logp).sum(), logits)
    torch.testing.assert_close(
        gradient.sum(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_a_bandit_takes_logits_of_two_axes():
    logits, tokens = logits_and_tokens()
    sequence = token_logp(logits, tokens)
    bandit = token_logp(logits.view(-1, V), tokens.view(-1))
    assert torch.equal(bandit, sequence.view(-1))


def test_large_logits_lose_no_digits():
    # z − logsumexp(z) in float32 would be off by 1e-3 here
    logits = torch.tensor([[10000.0, 10001.0]])
    expected = -math.log1p(math.exp(-1))
    found = token_logp(logits, torch.tensor([1])).item()
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_scored_in_float32(dtype):
    logits, tokens = logits_and_tokens()
    half = logits.to(dtype)
    found = token_logp(half, tokens)
    assert torch.equal(found, token_logp(half.float(), tokens))
    assert found.dtype == torch.float32


def test_a_banned_token_is_impossible_and_harms_no_other():
    logits = torch.tensor([[0.0, -INF, 0.0]]).repeat(2, 1)
    found, gradient = gradient_of(lambda z: token_logp(z, torch.tensor([0, 2])), logits)
    torch.testing.assert_close(found, torch.full((2,), -math.log(2)))
    assert torch.isfinite(gradient).all() and gradient[:, 1].eq(0).all()
    assert token_logp(logits[:1], torch.tensor([1])).item() == -INF


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e300])
def test_garbage_logits_in_the_pads_change_no_bit_of_logp(garbage):
    logits, tokens = logits_and_tokens()
    pad = MASK == 0
    clean = gradient_of(lambda z: token_logp(z, tokens, MASK), logits)
    ids = tokens.masked_fill(pad, -100)  # the pad id of other libraries' labels
    dirty_logits = logits.masked_fill(pad.unsqueeze(-1), garbage)
    dirty = gradient_of(lambda z: token_logp(z, ids, MASK), dirty_logits)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])


def test_the_mask_changes_no_unmasked_entry():
    logits, tokens = logits_and_tokens()
    expected = torch.where(MASK == 1, token_logp(logits, tokens), 0.0)
    assert torch.equal(token_logp(logits, tokens, MASK), expected)


def test_int32_tokens_work():
    logits, tokens = logits_and_tokens()
    assert torch.equal(token_logp(logits, tokens.int()), token_logp(logits, tokens))


def test_shapes_that_do_not_fit_raise():
    logits, tokens = logits_and_tokens()
    with pytest.raises(ValueError, match=r"logits \[4, 3, 5\], tokens \[4, 2\]"):
        token_logp(logits, tokens[:, :2])


@pytest.mark.parametrize("bad", [-100, -1, V])
def test_a_token_out_of_range_raises(bad):
    logits, tokens = logits_and_tokens()
    tokens[1, 2] = bad
    with pytest.raises(
        ValueError, match=rf"tokens: want 0 to 4, found {bad} at \[1, 2"
    ):
        token_logp(logits, tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_tokens_that_are_no_integers_raise(dtype):
    logits, tokens = logits_and_tokens()
    with pytest.raises(ValueError, match="tokens: want an integer dtype, found"):
        token_logp(logits, tokens.to(dtype))


def test_tokens_that_are_no_tensor_raise():
    with pytest.raises(ValueError, match="tokens: want a tensor, found list"):
        token_logp(torch.zeros(1, 2), [0])


@pytest.mark.parametrize("function", [log_softmax, entropy])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_row_that_is_no_distribution_raises(function, bad):
    logits, _ = logits_and_tokens()
    logits[2, 1, 3] = bad
    with pytest.raises(ValueError, match=rf"logits: .* row \[2, 1\] is {bad}"):
        function(logits)


@pytest.mark.parametrize("function", [log_softmax, entropy])
def test_a_row_with_every_action_banned_raises(function):
    with pytest.raises(ValueError, match=r"row \[0\] is -inf"):
        function(torch.full((1, 3), -INF))


@pytest.mark.parametrize("function", [log_softmax, entropy])
def test_integer_logits_raise(function):
    with pytest.raises(ValueError, match="logits: want a floating dtype"):
        function(torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize("function", [log_softmax, entropy])
def test_a_mask_that_does_not_fit_the_rows_raises(function):
    with pytest.raises(ValueError, match=r"mask \[4\], input \[4, 3\]"):
        function(logits_and_tokens()[0], torch.ones(4))


# --- entropy ------------------------------------------------------------------


def test_entropy_equals_the_categorical_distribution():
    logits, _ = logits_and_tokens()
    torch.testing.assert_close(entropy(logits), Categorical(logits=logits).entropy())


def test_entropy_is_the_mean_surprise():
    logits, _ = logits_and_tokens()
    surprise = sum(
        token_logp(logits, torch.full((B, T), v)).exp()
        * -token_logp(logits, torch.full((B, T), v))
        for v in range(V)
    )
    torch.testing.assert_close(entropy(logits), surprise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_entropy_of_the_uniform_law_is_log_k(k):
    assert entropy(torch.zeros(k)).item() == pytest.approx(math.log(k), abs=1e-6)


def test_a_banned_action_leaves_the_entropy_of_the_others():
    # the defect: 0 · log 0 = NaN, in the value or only in the gradient
    free, gradient = gradient_of(entropy, torch.tensor([[1.0, 2.0]]))
    banned, banned_gradient = gradient_of(entropy, torch.tensor([[1.0, -INF, 2.0]]))
    torch.testing.assert_close(banned, free)
    torch.testing.assert_close(banned_gradient[:, [0, 2]], gradient)
    assert banned_gradient[0, 1].item() == 0


def test_the_gradient_of_the_entropy_passes_a_finite_difference_check():
    logits, _ = logits_and_tokens()
    assert torch.autograd.gradcheck(entropy, logits.requires_grad_())


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e300])
def test_garbage_logits_in_the_pads_change_no_bit_of_the_entropy(garbage):
    logits, _ = logits_and_tokens()
    clean = gradient_of(lambda z: entropy(z, MASK), logits)
    dirty_logits = logits.masked_fill((MASK == 0).unsqueeze(-1), garbage)
    dirty = gradient_of(lambda z: entropy(z, MASK), dirty_logits)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])
    assert clean[0][MASK == 0].eq(0).all()


# --- sequence_sum -------------------------------------------------------------


def test_the_probabilities_of_all_sequences_sum_to_one():
    # a tree of 3 tokens in which each row of logits depends on the prefix
    generator = torch.Generator().manual_seed(1)
    table = {
        prefix: 2 * torch.randn(2, generator=generator, dtype=torch.float64)
        for t in range(3)
        for prefix in itertools.product(range(2), repeat=t)
    }
    sequences = list(itertools.product(range(2), repeat=3))
    logits = torch.stack(
        [torch.stack([table[y[:t]] for t in range(3)]) for y in sequences]
    )  # [8, 3, 2]
    logp = sequence_sum(token_logp(logits, torch.tensor(sequences)), None)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_sequence_sum_equals_a_naive_loop_and_is_no_mean():
    # the defect: DPO with the mean token log-prob while citing the sum
    logp = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert sequence_sum(logp, mask).tolist() == [-3.0, -56.0]


def test_sequence_sum_without_a_mask_counts_every_token():
    assert sequence_sum(torch.tensor([[-1.0, -2.0]]), None).tolist() == [-3.0]


def test_sequence_sum_of_a_row_without_tokens_is_zero():
    mask = torch.tensor([[0, 0], [1, 0]])
    assert sequence_sum(torch.full((2, 2), -1.0), mask).tolist() == [0.0, -1.0]


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e300])
def test_garbage_in_the_pads_changes_no_bit_of_the_sequence_sum(garbage):
    logits, tokens = logits_and_tokens()
    logp = token_logp(logits, tokens)
    clean = gradient_of(lambda x: sequence_sum(x, MASK), logp)
    dirty_logp = logp.masked_fill(MASK == 0, garbage)
    dirty = gradient_of(lambda x: sequence_sum(x, MASK), dirty_logp)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])


def test_longer_padding_changes_no_sequence_sum():
    logp = torch.tensor([[-0.1, -0.2, -0.7]])
    padded = F.pad(logp, (3, 2), value=NAN)
    mask = F.pad(torch.ones(1, 3), (3, 2))
    torch.testing.assert_close(sequence_sum(padded, mask), sequence_sum(logp, None))


@pytest.mark.parametrize("shape", [(4,), (4, 3, 2)])
def test_sequence_sum_wants_two_axes(shape):
    with pytest.raises(ValueError, match="logp: want 2 axes, found shape"):
        sequence_sum(torch.zeros(shape), None)


def test_sequence_sum_with_an_empty_mask_raises():
    with pytest.raises(ValueError, match="mask: empty"):
        sequence_sum(torch.zeros(2, 2), torch.zeros(2, 2))


def test_sequence_sum_with_a_mask_of_another_shape_raises():
    with pytest.raises(ValueError, match=r"mask \[2, 3\], input \[2, 2\]"):
        sequence_sum(torch.zeros(2, 2), torch.ones(2, 3))


def test_sequence_sum_of_an_impossible_token_raises():
    with pytest.raises(ValueError, match=r"logp: found -inf at \[0, 1\]"):
        sequence_sum(torch.tensor([[0.0, -INF]]), None)
