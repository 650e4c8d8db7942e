"""masking.py: what stands in a pad changes neither a value nor a gradient."""

import math

import pytest
import torch

from rlhf_mini.masking import (
    masked_mean,
    masked_sum,
    masked_var,
    masked_whiten,
    zero_pads,
)

NAN, INF = math.nan, math.inf
# right pads after EOS, left pads before a prompt, and a row that is all pads
MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
X = torch.tensor(
    [[0.5, -1.0, 9.0, 9.0], [9.0, 9.0, 2.5, 4.0], [0.1, 0.2, 0.3, 0.7], [9.0] * 4],
    dtype=torch.float64,
)
KEPT = [0.5, -1.0, 2.5, 4.0, 0.1, 0.2, 0.3, 0.7]
REDUCTIONS = [masked_sum, masked_mean, masked_var]


def value_and_gradient(function, x, mask, **options):
    """f(x) and the gradient of a lopsided sum of it, so that no term cancels."""
    x = x.clone().requires_grad_()
    value = function(x, mask, **options)
    weight = torch.arange(1, value.numel() + 1, dtype=value.dtype).view(value.shape)
    (gradient,) = torch.autograd.grad((value * weight).sum(), x)
    return value.detach(), gradient


def test_zero_pads_passes_everything_through_without_a_mask():
    assert zero_pads(None, X)[0] is X


def test_zero_pads_turns_nan_into_zero_and_keeps_the_rest():
    (x,) = zero_pads(MASK, X.masked_fill(MASK == 0, NAN))
    assert torch.equal(x, torch.where(MASK == 1, X, 0.0))


def test_zero_pads_lets_no_gradient_into_a_pad():
    # the defect: NaN · 0 is NaN, so masking *after* the maths poisons the weights
    x = X.masked_fill(MASK == 0, NAN).requires_grad_()
    (gradient,) = torch.autograd.grad(zero_pads(MASK, x)[0].exp().sum(), x)
    assert torch.equal(gradient, torch.where(MASK == 1, X.exp(), 0.0))


def test_masked_sum_equals_a_naive_loop():
    assert masked_sum(X, MASK).item() == pytest.approx(math.fsum(KEPT), abs=1e-12)


def test_masked_mean_equals_a_naive_loop():
    naive = math.fsum(KEPT) / len(KEPT)
    assert masked_mean(X, MASK).item() == pytest.approx(naive, abs=1e-12)


def test_masked_mean_weighs_entries_and_not_rows():
    # the defect: a mean of row means is another objective than a mean over tokens
    x, mask = (
        torch.tensor([[1.0, 1.0, 1.0], [5.0, 0, 0]]),
        torch.tensor([[1] * 3, [1, 0, 0]]),
    )
    assert masked_mean(x, mask).item() == 2.0  # 8/4, where the row means give 3


def test_masked_mean_divides_by_the_tokens_and_not_by_the_size():
    assert masked_mean(torch.tensor([6.0, 0.0]), torch.tensor([1, 0])).item() == 6.0


def test_masked_var_is_the_population_variance():
    reference = torch.tensor(KEPT, dtype=torch.float64).var(correction=0)
    torch.testing.assert_close(masked_var(X, MASK), reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1e6], ids=["small", "large"])
def test_masked_var_of_equal_entries_is_exactly_zero(scale):
    assert masked_var(torch.full((7,), scale), None).item() == 0.0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5,), (5, 3)], ids=["bandit", "sequence"])
def test_no_mask_means_all_ones(reduction, shape):
    x = torch.linspace(-1, 2, math.prod(shape)).view(shape).square()
    assert torch.equal(reduction(x, None), reduction(x, torch.ones(shape)))


@pytest.mark.parametrize("reduction", [*REDUCTIONS, masked_whiten])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_bool_int_and_float_masks_agree(reduction, dtype):
    assert torch.equal(reduction(X, MASK.to(dtype)), reduction(X, MASK.bool()))


@pytest.mark.parametrize("reduction", [*REDUCTIONS, masked_whiten])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_input_is_kept(reduction, dtype):
    assert reduction(X.to(dtype), MASK).dtype == dtype


@pytest.mark.parametrize("reduction", [*REDUCTIONS, masked_whiten])
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e300, -7.0])
@pytest.mark.parametrize("shape", [(16,), (4, 4)], ids=["bandit", "sequence"])
def test_garbage_in_the_pads_changes_no_bit(reduction, garbage, shape):
    # the defect: padded and unpadded batches disagree
    x, mask = X.view(shape), MASK.view(shape)
    clean = value_and_gradient(reduction, x, mask)
    dirty = value_and_gradient(reduction, x.masked_fill(mask == 0, garbage), mask)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_padded_batch_equals_its_tokens_in_a_row(reduction):
    tokens = torch.tensor(KEPT, dtype=torch.float64)
    torch.testing.assert_close(
        reduction(X, MASK), reduction(tokens, None), rtol=0, atol=1e-12
    )


def test_the_gradient_of_the_mean_is_one_over_the_count():
    _, gradient = value_and_gradient(masked_mean, X, MASK)
    assert torch.equal(gradient, MASK.double() / 8)


@pytest.mark.parametrize("reduction", [masked_var, masked_whiten])
def test_the_gradient_passes_a_finite_difference_check(reduction):
    x = X[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reduction(x, MASK[:3]), x)


def test_whitened_entries_have_mean_zero_and_variance_one():
    white = masked_whiten(X, MASK)[MASK == 1]
    assert white.mean().item() == pytest.approx(0, abs=1e-12)
    # 1 up to the 1e-8 that is added to the variance
    assert white.var(correction=0).item() == pytest.approx(1, abs=1e-7)


def test_whitening_equals_the_published_example():
    # the whitening of openai/lm-human-preferences, mean kept, population variance:
    # (1.2 − 1.6)/√(0.6/9) + 1.6 = 0.0508 …, and 3.1492 at the other end
    x = torch.arange(12, 21, dtype=torch.float64).view(3, 3) / 10
    white = masked_whiten(x, None, shift_mean=False)
    assert white[0, 0].item() == pytest.approx(1.6 - 0.4 / math.sqrt(0.6 / 9), abs=1e-6)
    assert white[2, 2].item() == pytest.approx(1.6 + 0.4 / math.sqrt(0.6 / 9), abs=1e-6)
    assert f"{white[0, 0]:.4f} {white[2, 2]:.4f}" == "0.0508 3.1492"


def test_whitening_with_the_sample_variance_would_be_noticed():
    x = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    sample = (x - x.mean()) / x.std()
    assert (masked_whiten(x, None) - sample).abs().max() > 0.1


def test_keeping_the_mean_shifts_by_the_masked_mean_and_leaves_pads_at_zero():
    # the defect: the mean added back to the advantages, or to the pads
    kept, shifted = masked_whiten(X, MASK, shift_mean=False), masked_whiten(X, MASK)
    expected = torch.where(MASK == 1, shifted + masked_mean(X, MASK), 0.0)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, 1e6, -3.3e7])
def test_whitening_equal_entries_gives_exactly_zero(value):
    # the mean of equal float32 numbers may round, and 1/σ would blow that up
    assert masked_whiten(torch.full((7,), value), None).eq(0).all()


def test_whitening_equal_entries_with_the_mean_kept_gives_the_mean():
    x = torch.full((3,), 0.1)
    assert torch.equal(masked_whiten(x, None, shift_mean=False), x)


def test_whitening_forgets_shift_and_scale():
    torch.testing.assert_close(
        masked_whiten(X * 50 - 3, MASK), masked_whiten(X, MASK), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("reduction", [*REDUCTIONS, masked_whiten])
class TestRaises:
    def test_a_mask_of_another_shape(self, reduction):
        with pytest.raises(ValueError, match=r"mask \[3\], input \[4\]"):
            reduction(torch.ones(4), torch.ones(3))

    def test_a_mask_that_would_broadcast(self, reduction):
        with pytest.raises(ValueError, match="shapes differ: mask"):
            reduction(torch.ones(4, 3), torch.ones(3))

    def test_an_empty_mask(self, reduction):
        with pytest.raises(ValueError, match="mask: empty"):
            reduction(torch.ones(4), torch.zeros(4))

    def test_an_empty_input(self, reduction):
        with pytest.raises(ValueError, match=r"empty input: shape \[0\]"):
            reduction(torch.ones(0), None)

    @pytest.mark.parametrize("bad", [0.5, 2.0, -1.0, NAN])
    def test_a_mask_with_other_values(self, reduction, bad):
        with pytest.raises(ValueError, match="mask: want only 0 and 1"):
            reduction(torch.ones(3), torch.tensor([1.0, 1.0, bad]))

    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_an_unmasked_entry_that_is_not_finite(self, reduction, bad):
        with pytest.raises(ValueError, match=rf"x: found {bad} at \[1\]"):
            reduction(torch.tensor([1.0, bad, 2.0]), torch.tensor([1, 1, 0]))

    def test_an_integer_input(self, reduction):
        with pytest.raises(ValueError, match="x: want a floating dtype, found torch.i"):
            reduction(torch.ones(3, dtype=torch.int64), None)

    def test_a_list(self, reduction):
        with pytest.raises(ValueError, match="x: want a tensor, found list"):
            reduction([1.0, 2.0], None)


def test_whitening_a_single_entry_raises():
    with pytest.raises(ValueError, match="at least 2 unmasked entries, found 1"):
        masked_whiten(torch.ones(3), torch.tensor([0, 1, 0]))
