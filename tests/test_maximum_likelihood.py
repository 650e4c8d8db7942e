"""The Newton solver on likelihoods whose maximum and curvature are known."""

import math

import pytest
import torch

from rlhf_mini.maximum_likelihood import maximise

GAMES = torch.tensor([[0.0, 7.0, 1.0], [2.0, 0.0, 4.0], [3.0, 5.0, 0.0]]).double()


def bradley_terry(theta):
    lead = theta[:, None] - theta
    return (GAMES * torch.nn.functional.logsigmoid(lead)).sum()


def close(found, wanted, atol=1e-9):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def quadratic(theta):
    """Its maximum is at differences (1, 3), with curvature 4 and 9 there."""
    return -2 * (theta[0] - theta[1] - 1) ** 2 - 4.5 * (theta[1] - theta[2] - 3) ** 2


@pytest.mark.parametrize("reference", [0, 1, 2])
def test_a_quadratic_is_solved_in_one_step(reference):
    fit = maximise(quadratic, 3, reference)
    close(fit.strength[:2] - fit.strength[1:], [1.0, 3.0])
    close(fit.log_likelihood, 0.0)


def test_the_covariance_is_the_inverse_of_the_curvature():
    fit = maximise(quadratic, 3, 1)  # the two differences are independent
    close(fit.covariance, [[0.25, 0, 0], [0, 0, 0], [0, 0, 1 / 9]])
    close(fit.stderr, [0.5, 0.0, 1 / 3])


def test_without_a_reference_the_mean_is_zero_and_certain():
    fit = maximise(quadratic, 3, None)
    close(fit.strength.mean(), 0.0)
    close(fit.covariance.sum(), 0.0)
    close(fit.strength, [5 / 3, 2 / 3, -7 / 3])


def test_the_covariance_is_that_of_the_reduced_problem():
    """Item 1 held at 0, and the Hessian of the other two inverted by hand."""
    fit = maximise(bradley_terry, 3, 1)
    free = fit.strength[[0, 2]].clone()

    def reduced(free):
        return bradley_terry(torch.stack([free[0], free.new_zeros(()), free[1]]))

    (a, b), (_, d) = -torch.autograd.functional.hessian(reduced, free)
    wanted = torch.stack([d, -b, -b, a]).view(2, 2) / (a * d - b * b)
    close(fit.covariance[[0, 2]][:, [0, 2]], wanted)


def test_at_the_maximum_the_gradient_is_zero():
    fit = maximise(bradley_terry, 3, None)
    at = fit.strength.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bradley_terry(at), at)
    close(gradient, torch.zeros(3))


def test_an_extra_parameter_is_not_normalised():
    def shifted(theta):
        lead = theta[0] - theta[1] + theta[2]
        return -((theta[2] - 0.7) ** 2) / 2 - (lead - 1.0) ** 2 / 2

    fit = maximise(shifted, 2, 1, extra="home")
    close([fit.home, fit.home_stderr], [0.7, 1.0])
    close(fit.strength, [0.3, 0.0])
    close(fit.stderr[0], math.sqrt(2))


def test_the_tie_parameter_is_reported_on_its_own_scale():
    def of_log_tie(theta):  # s.e. of log ν is 1/2
        return -2 * (theta[2] - math.log(3)) ** 2 - (theta[0] - theta[1]) ** 2

    fit = maximise(of_log_tie, 2, None, extra="tie")
    close([fit.tie, fit.tie_stderr], [3.0, 1.5])


def test_a_far_maximum_is_reached_with_shorter_steps():
    def steep(theta):  # Newton from 0 jumps beyond, where the slope is flat
        d = theta[0] - theta[1]
        return -torch.nn.functional.softplus(d - 30) - torch.nn.functional.softplus(
            30 - d
        )

    fit = maximise(steep, 2, 1)
    close(fit.strength[0], 30.0, atol=1e-6)


def test_no_maximum_is_an_error_and_not_a_number():
    def for_ever(theta):
        return torch.nn.functional.logsigmoid(theta[0] - theta[1])

    with pytest.raises(ValueError, match="counts too extreme"):
        maximise(for_ever, 2, None)


@pytest.mark.parametrize("reference", [-1, 3])
def test_a_reference_that_is_no_item_is_named(reference):
    message = f"reference: want an item below 3, found {reference}"
    with pytest.raises(ValueError, match=message):
        maximise(quadratic, 3, reference)
