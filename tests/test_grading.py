"""Claims and exercise checks must fail when they should, and say why."""

import math

import pytest
import torch

from rlhf_mini.grading import check, claim


@pytest.mark.parametrize(
    "bounds, inside, outside, line",
    [
        ({"lower": 0.5}, 0.5, 0.4999, "x: ≥ 0.5 ok"),
        ({"upper": 2}, -3.0, 2.0001, "x: ≤ 2 ok"),
        ({"lower": 0, "upper": 1}, 0.7, 1.1, "x: in [0, 1] ok"),
    ],
)
def test_a_claim_prints_its_band_and_never_its_value(
    bounds, inside, outside, line, capsys
):
    claim("x", inside, **bounds)
    assert capsys.readouterr().out == line + "\n"
    with pytest.raises(AssertionError, match="x: want .* found"):
        claim("x", outside, **bounds)


def test_a_claim_about_nan_fails():
    with pytest.raises(AssertionError, match="nan"):
        claim("x", math.nan, lower=0)


def test_a_claim_takes_a_tensor_of_one_number(capsys):
    claim("x", torch.tensor(0.25), upper=1)
    assert "ok" in capsys.readouterr().out


def test_a_claim_that_cannot_fail_is_refused():
    with pytest.raises(ValueError, match="lower, upper or both"):
        claim("x", 1.0)


def test_a_check_names_the_mistake_that_the_answer_looks_like():
    right, upside_down = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])
    with pytest.raises(AssertionError, match="upside down"):
        check("k1", upside_down, right, {"the ratio is upside down": upside_down})


def test_a_check_shows_both_answers_when_the_mistake_is_unknown():
    with pytest.raises(AssertionError, match=r"want 2.0, found 3.0"):
        check("k1", 3.0, 2.0, {"the ratio is upside down": -2.0})


def test_a_check_of_nan_nothing_or_another_shape_fails():
    with pytest.raises(AssertionError):
        check("k1", math.nan, 2.0)
    with pytest.raises(AssertionError, match="nothing was returned"):
        check("k1", None, 2.0)
    with pytest.raises(AssertionError, match=r"want shape \[2\], found \[3\]"):
        check("k1", torch.zeros(3), torch.zeros(2))


def test_a_right_answer_prints_a_line(capsys):
    check("k1", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-9]))
    assert capsys.readouterr().out == "k1: right\n"
