"""overoptimization.py: against quadrature, enumeration, sampled fits and known moments.

The Gaussian world is put on a fine grid, where the functions of exact.py and
frontier.py, which know nothing of Gaussians, give the answers by enumeration.
"""

import math

import numpy as np
import pytest
import torch

from rlhf_mini import exact, frontier, seeding
from rlhf_mini.annotators import BradleyTerryAnnotator, fit_choice_slope
from rlhf_mini.overoptimization import (
    choice_slope,
    fit_log_form,
    fit_square_form,
    gaussian_best_of_n,
    gaussian_gold,
    gold_expansion,
    log_columns,
    refit_path,
    square_columns,
)

A, B = 1.3, 0.35
GRID = torch.linspace(-12, 12, 4001, dtype=torch.float64)
NORMAL = torch.log_softmax(-GRID.square() / 2, 0)
PARABOLA = A * GRID - B * GRID.square() / 2
REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
PROXY = torch.tensor([0.0, 1.0, 0.5, 2.0], dtype=torch.float64)
GOLD = torch.tensor([0.3, 1.0, -0.5, 0.2], dtype=torch.float64)


def close(found, wanted, atol=1e-10):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# ------------------------------------------------------------- the Gaussian world


def test_the_parabola_is_the_gold_of_every_optimum_of_the_line():
    points = frontier.reward_kl_frontier(NORMAL, A * GRID, [0.4, 1.0, 7.0])
    gain = points.logp.exp() @ PARABOLA - NORMAL.exp() @ PARABOLA
    close(gaussian_gold(points.kl.sqrt(), A, B), gain)


def test_its_peak_is_where_and_as_high_as_stated():
    top = A / (math.sqrt(2) * B)
    close(gaussian_gold(torch.tensor(top, dtype=torch.float64), A, B), A**2 / (2 * B))
    near = torch.tensor([top - 1e-3, top + 1e-3], dtype=torch.float64)
    assert (gaussian_gold(near, A, B) < A**2 / (2 * B)).all()


def test_the_gold_of_a_distance_is_differentiable():
    d = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    gaussian_gold(d, A, B).sum().backward()
    close(d.grad, [math.sqrt(2) * A - 2 * B * 0.5])


@pytest.mark.parametrize(
    ("n", "mean", "square"),
    [
        (1, 0.0, 1.0),
        (2, math.pi**-0.5, 1.0),
        (3, 1.5 * math.pi**-0.5, 1 + math.sqrt(3) / (2 * math.pi)),
    ],
)
def test_best_of_n_has_the_known_moments(n, mean, square):
    found = gaussian_best_of_n(n, A, B)
    close(found.mean, mean)
    close(found.gold, A * mean - B * (square - 1) / 2)
    close(found.kl, math.log(n) - (n - 1) / n)


@pytest.mark.parametrize("n", [4, 50])
def test_best_of_n_agrees_with_enumeration_on_a_grid(n):
    # cells of width .006 tie, which costs about as much
    law = exact.best_of_n(NORMAL, GRID, n)
    found = gaussian_best_of_n(n, A, B)
    close(found.mean, law.exp() @ GRID, atol=1e-3)
    close(found.gold, law.exp() @ PARABOLA - NORMAL.exp() @ PARABOLA, atol=1e-3)
    close(found.kl, exact.best_of_n_kl(NORMAL, GRID, n), atol=2e-2)


def test_best_of_n_buys_less_proxy_than_the_optimum_of_its_kl():
    for n in (2, 16, 1024, 10**6):
        best = gaussian_best_of_n(n, A, B)
        assert best.mean < math.sqrt(2 * best.kl)


def test_a_very_large_n_is_still_a_number():
    # the maximum of n normals is below √(2 log n), and approaches it slowly
    best = gaussian_best_of_n(10**12, A, B)
    assert 6.5 < best.mean < math.sqrt(2 * math.log(10**12))


# ---------------------------------------------------------------------- the refits


def test_the_line_that_is_fitted_is_that_of_least_squares():
    path = refit_path(A, B, beta=0.5, rounds=4)
    for k in range(4):
        here = torch.log_softmax(-(GRID - path.means[k]).square() / 2, 0).exp()
        z = GRID - here @ GRID
        line = (here * z) @ PARABOLA / ((here * z) @ z)
        close(path.means[k + 1], line / 0.5)


def test_the_policy_that_is_moved_to_is_the_optimum_of_the_line():
    path = refit_path(A, B, beta=0.5, rounds=2)
    line = A - B * path.means[1].item()
    law = exact.optimal_policy(NORMAL, line * GRID, beta=0.5)
    close(path.means[2], law.exp() @ GRID)


@pytest.mark.parametrize("beta", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("damping", [1.0, 0.5, 0.1])
def test_the_distance_to_the_fixed_point_shrinks_by_the_multiplier(beta, damping):
    path = refit_path(A, B, beta, rounds=6, damping=damping)
    away = path.means - path.fixed_point
    close(away, away[0] * path.multiplier ** torch.arange(7, dtype=torch.float64))


def test_the_fixed_point_is_the_mean_of_the_optimum_for_the_gold():
    law = exact.optimal_policy(NORMAL, PARABOLA, beta=0.6)
    close(refit_path(A, B, 0.6, rounds=1).fixed_point, law.exp() @ GRID)


@pytest.mark.parametrize(("beta", "stays"), [(0.36, True), (0.34, False)])
def test_refits_converge_if_and_only_if_the_curvature_is_below_beta(beta, stays):
    path = refit_path(A, 0.35, beta, rounds=2000)
    assert ((path.means[-1] - path.fixed_point).abs() < 1e-6) == stays


def test_half_damping_mends_a_curvature_up_to_three_times_beta():
    assert abs(refit_path(A, 0.74, 0.25, 1, damping=0.5).multiplier) < 1
    assert abs(refit_path(A, 0.76, 0.25, 1, damping=0.5).multiplier) > 1


# --------------------------------------------------------------- what choices teach


def test_vague_choices_teach_the_line_of_least_squares():
    mean = torch.tensor([[-1.0, 0.5], [2.0, 3.0]], dtype=torch.float64)
    close(choice_slope(mean, A, B, sharpness=1e-3), A - B * mean, atol=1e-6)


@pytest.mark.parametrize("mean", [-1.0, 0.7, 3.0])
@pytest.mark.parametrize("sharpness", [0.5, 4.0])
def test_the_line_solves_the_equation_of_the_likelihood(mean, sharpness):
    # E[D(σ(gold gap) − σ(w·D))] = 0, by a plain sum over pairs of a coarse grid
    z = torch.linspace(-8, 8, 801, dtype=torch.float64)
    p = torch.softmax(-z.square() / 2, 0)
    z = z + mean
    gold = A * z - B * z.square() / 2
    w = choice_slope(torch.tensor(mean, dtype=torch.float64), A, B, sharpness)
    gap = z[:, None] - z
    off = torch.sigmoid(sharpness * (gold[:, None] - gold))
    off = off - torch.sigmoid(sharpness * w * gap)
    close((p[:, None] * p * gap * off).sum(), 0.0, atol=1e-7)


def test_the_line_is_that_of_a_fit_to_sampled_choices():
    generator = seeding.make(3)
    z = 0.9 + torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    gold = A * z - B * z.square() / 2
    p = BradleyTerryAnnotator(slope=2.0).probability(gold[:, 0], gold[:, 1])
    first = (torch.rand(p.shape, generator=generator) < p).double()
    slope, error = fit_choice_slope(z[:, 0] - z[:, 1], first)
    w = choice_slope(torch.tensor(0.9, dtype=torch.float64), A, B, sharpness=2.0)
    assert abs(slope / 2.0 - w.item()) < 4 * error / 2.0


def test_it_falls_with_the_mean_and_sharp_judges_make_it_shallow_at_the_top():
    mean = torch.linspace(-2, 8, 21, dtype=torch.float64)
    sharp, vague = (choice_slope(mean, A, B, s) for s in (5.0, 0.01))
    assert (sharp.diff() < 0).all()
    near_the_top = (mean - A / B).abs() < 0.6
    assert (sharp.abs() < vague.abs())[near_the_top].all()


def test_a_mirrored_world_gives_the_opposite_line():
    mean = torch.tensor([0.3, -2.0], dtype=torch.float64)
    close(choice_slope(mean, A, B, 3.0), -choice_slope(-mean, -A, B, 3.0))


# ------------------------------------------------------- how the gold begins to move


def small_steps(ref, proxy, gold):
    """Distances and gold gains of nearly undisturbed tilts, [6] each."""
    points = frontier.reward_kl_frontier(ref, proxy, [1e3, 700, 500, 300, 200, 100])
    return points.kl.sqrt(), points.logp.exp() @ gold - ref.exp() @ gold


def test_the_expansion_is_the_beginning_of_the_curve():
    d, gain = small_steps(REF, PROXY, GOLD)
    found = gold_expansion(REF, PROXY, GOLD)
    rest = gain - found.linear * d - found.quadratic * d.square()
    # what is left is of third order: as small as d³, and growing like it
    assert (rest.abs() < 3 * d**3).all()
    assert (rest[-1] / rest[0]).item() == pytest.approx(
        (d[-1] / d[0]).item() ** 3, rel=0.1
    )


def test_in_the_gaussian_world_the_expansion_is_the_whole_curve():
    found = gold_expansion(NORMAL, -3 * GRID, -PARABOLA)
    close(found.linear, math.sqrt(2) * A)
    close(found.quadratic, B)


def test_the_first_number_is_a_correlation():
    p = REF.exp()
    r, g = PROXY - p @ PROXY, GOLD - p @ GOLD
    corr = (p * r) @ g / ((p * r) @ r * ((p * g) @ g)).sqrt()
    spread = ((p * g) @ g).sqrt()
    close(gold_expansion(REF, PROXY, GOLD).linear, math.sqrt(2) * spread * corr)


def test_scale_and_shift_of_the_proxy_do_not_matter():
    for a, b in zip(
        gold_expansion(REF, 7 * PROXY - 3, GOLD + 5),
        gold_expansion(REF, PROXY, GOLD),
        strict=True,
    ):
        close(a, b)


def test_noise_that_is_jointly_gaussian_bends_nothing():
    # gold z, proxy z + 2e with e independent: on a grid of pairs (z, e)
    axis = GRID[::20]
    square = axis[:, None].square() + axis.square()
    law = torch.log_softmax(-square.reshape(-1) / 2, 0)
    z = axis[:, None].expand(len(axis), len(axis)).reshape(-1)
    e = axis.expand(len(axis), len(axis)).reshape(-1)
    found = gold_expansion(law, z + 2 * e, z)
    close(found.linear, math.sqrt(2) / math.sqrt(5), atol=1e-8)
    close(found.quadratic, 0.0, atol=1e-8)


def test_leading_axes_are_worlds_of_their_own():
    both = gold_expansion(REF, torch.stack([PROXY, GOLD]), GOLD)
    close(both.linear[0], gold_expansion(REF, PROXY, GOLD).linear)
    close(both.quadratic[1], gold_expansion(REF, GOLD, GOLD).quadratic)


def test_what_is_outside_the_support_is_not_counted():
    law = torch.cat([REF, torch.tensor([-math.inf], dtype=torch.float64)])
    wild = torch.tensor([1e6], dtype=torch.float64)
    found = gold_expansion(law, torch.cat([PROXY, wild]), torch.cat([GOLD, wild]))
    close(found.quadratic, gold_expansion(REF, PROXY, GOLD).quadratic)


# ------------------------------------------------------------------- Gao's two forms

D = torch.tensor([0.2, 0.7, 1.1, 1.9, 3.0], dtype=torch.float64)
FORMS = {"square": (fit_square_form, square_columns)}
FORMS |= {"log": (fit_log_form, log_columns)}
form = pytest.mark.parametrize(("fit", "columns"), FORMS.values(), ids=FORMS)


@form
def test_a_curve_of_the_form_is_found_again(fit, columns):
    u, v = columns(D)
    found = fit(D, 1.7 * u - 0.6 * v)
    close([found.alpha, found.beta, found.r2], [1.7, 0.6, 1.0])
    close(found.curve(columns(D)), 1.7 * u - 0.6 * v)


@form
def test_the_peak_is_the_maximum_of_the_curve(fit, columns):
    u, v = columns(D)
    found = fit(D, 1.7 * u - 0.6 * v)
    fine = torch.linspace(0.01, 30, 300_000, dtype=torch.float64)
    top = fine[found.curve(columns(fine)).argmax()]
    close(found.peak, top, atol=2e-4)


@form
def test_a_curve_that_never_turns_has_no_peak(fit, columns):
    u, v = columns(D)
    assert fit(D, 1.7 * u + 0.6 * v).peak == math.inf


@form
def test_the_fit_is_numpys_least_squares(fit, columns):
    generator = seeding.make(0)
    gain = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    found = fit(D.expand(3, 5), gain)
    u, v = columns(D)
    design = np.stack([u, -v], 1)
    for k in range(3):
        (alpha, beta), left, *_ = np.linalg.lstsq(design, gain[k].numpy(), rcond=None)
        close([found.alpha[k], found.beta[k]], [alpha, beta])
        about = ((gain[k] - gain[k].mean()) ** 2).sum()
        close(found.r2[k], 1 - left[0] / about)


def test_the_gaussian_world_has_the_best_of_n_form_and_not_the_other():
    gain = gaussian_gold(D, A, B)
    square = fit_square_form(D, gain)
    close([square.alpha, square.beta], [math.sqrt(2) * A, B])
    close(square.peak, A / (math.sqrt(2) * B))
    assert fit_log_form(D, gain).r2 < 0.999 < square.r2


def test_the_two_forms_are_those_that_are_printed():
    close(square_columns(D)[1], D * D)
    close(log_columns(D)[1], D * D.log())


# ---------------------------------------------------------------------- what raises

ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gaussian_gold(-ONE, A, B), "distance: want ≥ 0"),
        (lambda: gaussian_gold(ONE * math.nan, A, B), "distance: found nan"),
        (lambda: gaussian_gold(ONE, A, 0.0), "curvature: want a number > 0"),
        (lambda: gaussian_gold(ONE, math.inf, B), "slope: want a finite number"),
        (lambda: gaussian_best_of_n(0, A, B), "n: want a whole number"),
        (lambda: gaussian_best_of_n(2.0, A, B), "n: want a whole number"),
        (lambda: gaussian_best_of_n(True, A, B), "n: want a whole number"),
        (lambda: gaussian_best_of_n(2, -A, B), "slope: want a number > 0"),
        (lambda: gaussian_best_of_n(2, A, -B), "curvature: want a number > 0"),
        (lambda: refit_path(A, B, 0.0, 3), "beta: want a number > 0"),
        (lambda: refit_path(A, B, 1.0, 0), "rounds: want a number > 0"),
        (lambda: refit_path(A, B, 1.0, 3, damping=1.5), "damping: want 0"),
        (lambda: refit_path(A, B, 1.0, 3, damping=0.0), "damping: want a number > 0"),
        (lambda: refit_path(A, -B, 1.0, 3), "curvature: want a number > 0"),
        (lambda: choice_slope(ONE * math.inf, A, B, 1.0), "mean: found inf"),
        (lambda: choice_slope(ONE, A, B, 0.0), "sharpness: want a number > 0"),
        (lambda: choice_slope(ONE, A, -B, 1.0), "curvature: want a number > 0"),
        (lambda: choice_slope(400 * ONE, A, B, 1.0), "want labels that can err"),
        (lambda: gold_expansion(REF, PROXY[:3], GOLD), "shapes do not fit"),
        (lambda: gold_expansion(PROXY, PROXY, GOLD), "ref_logp: want a law"),
        (lambda: gold_expansion(REF, PROXY, GOLD * math.nan), "gold: found nan"),
        (lambda: gold_expansion(REF, 0 * PROXY, GOLD), "proxy: want one that varies"),
        (lambda: fit_square_form(D, D[:4]), "shapes differ"),
        (lambda: fit_log_form(D[:2], D[:2]), "N ≥ 3"),
        (lambda: fit_log_form(D - 0.2, D), "distance: want > 0"),
        (lambda: fit_square_form(D * math.inf, D), "distance: found inf"),
        (lambda: fit_square_form(D * 0 + 1, D), "want at least two that differ"),
    ],
)
def test_what_is_wrong_is_named(call, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        call()
