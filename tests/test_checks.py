"""checks.py: every message names the argument and says what was found."""

import math

import pytest
import torch

from rlhf_mini import checks

NAN, INF = math.nan, math.inf


def raises(text, function, *args, **kwargs):
    """The call raises ValueError with exactly this text."""
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    assert str(error.value) == text


def test_equal_shapes_pass_and_none_is_passed_over():
    checks.check_same_shape(a=torch.zeros(2, 3), b=None, c=torch.ones(2, 3))


def test_every_shape_is_listed_when_one_differs():
    raises(
        "shapes differ: logp [4], old_logp [3], advantages [4]",
        checks.check_same_shape,
        logp=torch.zeros(4),
        old_logp=torch.zeros(3),
        advantages=torch.zeros(4),
    )


def test_shapes_that_would_broadcast_do_not_pass():
    raises(
        "shapes differ: values [4, 1], returns [4]",
        checks.check_same_shape,
        values=torch.zeros(4, 1),
        returns=torch.zeros(4),
    )


def test_a_list_is_no_tensor():
    raises("logp: want a tensor, found list", checks.check_same_shape, logp=[1.0])
    raises("logp: want a tensor, found list", checks.check_ndim, 1, logp=[1.0])
    raises("mask: want a tensor, found list", checks.check_mask, [1], torch.ones(1))
    raises("z: want a tensor, found list", checks.check_logits, z=[1.0])
    raises("tokens: want a tensor, found list", checks.check_index, 2, tokens=[1])


def test_the_number_of_axes_is_checked():
    checks.check_ndim(2, logp=torch.zeros(2, 3))
    found = "logp: want 2 axes, found shape [6]"
    raises(found, checks.check_ndim, 2, logp=torch.zeros(6))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_masks_of_every_dtype_pass(dtype):
    checks.check_mask(torch.tensor([0, 1]).to(dtype), torch.zeros(2))


def test_no_mask_passes_unless_the_input_is_empty():
    checks.check_mask(None, torch.zeros(1))
    raises("empty input: shape [0, 3]", checks.check_mask, None, torch.zeros(0, 3))


def test_a_mask_of_another_shape_raises():
    found = "shapes differ: mask [2], input [2, 2]"
    raises(found, checks.check_mask, torch.ones(2), torch.zeros(2, 2))


@pytest.mark.parametrize("bad", [2.0, 0.5, -1.0, NAN, INF])
def test_a_mask_with_other_values_raises(bad):
    mask = torch.tensor([1.0, bad])
    found = "mask: want only 0 and 1, found other values"
    raises(found, checks.check_mask, mask, torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_an_empty_mask_raises(dtype):
    mask = torch.zeros(2, dtype=dtype)
    found = "mask: empty, no entry is unmasked"
    raises(found, checks.check_mask, mask, torch.zeros(2))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_place_of_an_entry_that_is_not_finite_is_named(bad):
    x = torch.tensor([[0.0, 0.0], [0.0, bad]])
    raises(f"values: found {bad} at [1, 1]", checks.check_finite, values=x)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_pads_are_never_looked_at(bad):
    mask = torch.tensor([1, 0])
    checks.check_finite(mask, values=torch.tensor([0.0, bad]))
    checks.check_logits(mask, logits=torch.tensor([[0.0, 1.0], [bad, bad]]))
    checks.check_index(3, mask, tokens=torch.tensor([2, -100]))


def test_a_dtype_that_is_not_floating_raises():
    x = torch.zeros(2, dtype=torch.int64)
    found = "want a floating dtype, found torch.int64"
    raises(f"rewards: {found}", checks.check_finite, rewards=x)
    raises(f"logits: {found}", checks.check_logits, logits=x)


def test_check_finite_passes_over_none():
    checks.check_finite(None, values=None)


def test_check_inputs_looks_at_shape_mask_dtype_and_values():
    good = torch.zeros(2)
    checks.check_inputs(torch.tensor([1, 0]), a=good, b=torch.tensor([1.0, NAN]))
    found = "shapes differ: a [2], b [3]"
    raises(found, checks.check_inputs, None, a=good, b=torch.zeros(3))
    found = "mask: empty, no entry is unmasked"
    raises(found, checks.check_inputs, good, a=good)
    found = "b: found nan at [1]"
    raises(found, checks.check_inputs, None, a=good, b=torch.tensor([0.0, NAN]))


def test_a_banned_action_is_fine_in_logits():
    checks.check_logits(logits=torch.tensor([[0.0, -INF], [-INF, 1.0]]))


@pytest.mark.parametrize("row, largest", [([0, NAN], NAN), ([0, INF], INF)])
def test_a_row_of_logits_that_is_no_distribution_raises(row, largest):
    logits = torch.tensor([[0.0, 0.0], row])
    found = f"logits: the largest entry of row [1] is {largest}"
    raises(found, checks.check_logits, logits=logits)


def test_a_row_of_logits_with_every_action_banned_raises():
    found = "logits: the largest entry of row [] is -inf"
    raises(found, checks.check_logits, logits=torch.full((2,), -INF))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_logits_without_actions_raise(shape):
    found = f"logits: want logits [..., V], found {list(shape)}"
    raises(found, checks.check_logits, logits=torch.zeros(shape))


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_index_out_of_range_raises(bad):
    tokens = torch.tensor([[0, bad]])
    found = f"tokens: want 0 to 2, found {bad} at [0, 1]"
    raises(found, checks.check_index, 3, tokens=tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_an_index_that_is_no_integer_raises(dtype):
    tokens = torch.zeros(1).to(dtype)
    found = f"tokens: want an integer dtype, found {dtype}"
    raises(found, checks.check_index, 3, tokens=tokens)


@pytest.mark.parametrize("x", [1, 0.5, True, torch.tensor(2.0), 1e-300])
def test_positive_numbers_of_every_kind_pass(x):
    checks.check_positive(beta=x)


@pytest.mark.parametrize("x", [0.0, -1.0, NAN, INF, -INF])
def test_other_numbers_are_not_positive(x):
    raises(f"beta: want a number > 0, found {x}", checks.check_positive, beta=x)


@pytest.mark.parametrize("x", [None, "1", [1.0], {}])
@pytest.mark.parametrize(
    "check",
    [
        checks.check_positive,
        checks.check_number,
        lambda **numbers: checks.check_between(0, 1, **numbers),
    ],
    ids=["positive", "number", "between"],
)
def test_what_is_no_number_raises(check, x):
    raises(f"beta: want a number, found {x!r}", check, beta=x)


def test_a_tensor_with_two_entries_is_no_number():
    with pytest.raises(ValueError, match="beta: want a number, found tensor"):
        checks.check_positive(beta=torch.ones(2))


@pytest.mark.parametrize("x", [NAN, INF, -INF])
def test_check_number_wants_it_finite(x):
    checks.check_number(kl=-3.5)
    raises(f"kl: want a finite number, found {x}", checks.check_number, kl=x)


@pytest.mark.parametrize("x", [0, 0.5, 1])
def test_the_ends_of_an_interval_belong_to_it(x):
    checks.check_between(0, 1, gamma=x)


@pytest.mark.parametrize("x", [-0.1, 1.1, NAN, INF])
def test_a_number_outside_the_interval_raises(x):
    found = f"gamma: want 0 ≤ gamma ≤ 1, found {x}"
    raises(found, checks.check_between, 0, 1, gamma=x)


def test_laws_pass_and_may_forbid_outcomes():
    checks.check_law(ref_logp=torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log())


def test_logits_are_no_law():
    found = "logp: want a law (log_softmax), found probabilities that sum to 4"
    raises(found, checks.check_law, logp=torch.zeros(4))


@pytest.mark.parametrize("x", [NAN, INF])
def test_a_log_value_that_is_no_number_raises(x):
    found = f"logp: found {x} at [1]"
    raises(found, checks.check_log_values, logp=torch.tensor([0.0, x]))
    checks.check_log_values(logp=torch.tensor([0.0, -INF]))


def test_a_law_needs_an_axis():
    raises("logp: want shape [..., K], found []", checks.check_law, logp=torch.ones(()))
    raises("logp: want a tensor, found list", checks.check_law, logp=[0.0])


def test_outcomes_share_their_last_axis_and_broadcast_the_others():
    checks.check_outcomes(logp=torch.zeros(5, 3), rewards=torch.zeros(3))
    found = "shapes do not fit: logp [3], rewards [1]"
    raises(found, checks.check_outcomes, logp=torch.zeros(3), rewards=torch.zeros(1))
    found = "shapes do not fit: logp [2, 3], rewards [5, 3]"
    raises(
        found, checks.check_outcomes, logp=torch.zeros(2, 3), rewards=torch.zeros(5, 3)
    )


def test_outcomes_are_tensors():
    raises("rewards: want a tensor, found int", checks.check_outcomes, rewards=3)


def test_times_come_back_in_float64():
    t = checks.check_times(torch.tensor([0, 1, 3]))
    assert t.dtype == torch.float64 and t.tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize("bad", [[], [[0.0, 1.0]], [0.0, NAN], [1.0, INF]])
def test_times_that_are_no_row_of_numbers_are_refused(bad):
    with pytest.raises(ValueError, match=r"^times: want finite numbers \[N\], found"):
        checks.check_times(bad)


@pytest.mark.parametrize("bad", [[-1.0, 1.0], [0.0, 2.0, 2.0], [3.0, 1.0]])
def test_times_that_do_not_increase_from_zero_are_refused(bad):
    raises(
        f"times: want them increasing from ≥ 0, found {bad}", checks.check_times, bad
    )
