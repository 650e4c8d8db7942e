"""kl_flows.py: gradients against autograd, flows against Euler, moments integrated."""

import math

import pytest
import torch
from scipy.integrate import quad

from rlhf_mini import exact, kl, seeding
from rlhf_mini import kl_flows as flows

F64 = torch.float64
PI = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=F64).log()  # KL differs by direction
REF = torch.tensor([0.2, 0.3, 0.4, 0.1], dtype=F64).log()
START = torch.tensor([0.7, 0.2, 0.1], dtype=F64).log()
HOME = torch.tensor([0.5, 0.3, 0.2], dtype=F64).log()
NAMES = ("k1", "k2", "k3")


def gradient(of):
    """Autograd with respect to the logits of a softmax, at π = PI; `of` maps log π."""
    theta = (PI + 3.0).clone().requires_grad_()  # a constant in the logits is nothing
    (g,) = torch.autograd.grad(of(theta.log_softmax(-1)), theta)
    return g


def kl_gradient():
    return gradient(lambda logp: kl.exact_kl(logp, REF))


def reversed_kl_gradient():
    return gradient(lambda logp: kl.exact_kl(REF, logp))


# ------------------------------------------------------------------------- estimates


@pytest.mark.parametrize("name", NAMES)
def test_an_estimate_is_that_of_kl_py(name):
    found = flows.ESTIMATES[name](PI - REF)
    torch.testing.assert_close(found, getattr(kl, f"kl_{name}")(PI, REF))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_average_to_the_kl(name):
    mean, _ = flows.moments(PI, REF, flows.ESTIMATES[name])
    torch.testing.assert_close(mean, kl.exact_kl(PI, REF), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_those_of_many_draws(name):
    drawn = torch.multinomial(PI.exp(), 400_000, True, generator=seeding.make(0))
    f = flows.ESTIMATES[name](PI - REF)[drawn]
    mean, std = flows.moments(PI, REF, flows.ESTIMATES[name])
    assert (f.mean() - mean).abs() < 4 * std / math.sqrt(len(f))
    assert f.std() == pytest.approx(std.item(), rel=0.02)


# ---------------------------------------------------------------- Schulman's table


@pytest.mark.parametrize("gap", [0.1, 1.0, 1.7, -0.6])
@pytest.mark.parametrize("row,name", list(enumerate(NAMES)))
def test_the_gaussian_table_is_that_of_an_integral(gap, row, name):
    def expect(g):
        def f(x):
            d = torch.tensor(gap * gap / 2 - gap * x, dtype=F64)
            return g(flows.ESTIMATES[name](d).item()) * math.exp(-x * x / 2)

        return quad(f, -25, 25, limit=200, points=[0])[0] / math.sqrt(2 * math.pi)

    table = flows.gaussian_table(gap)
    mean = expect(lambda k: k)
    variance = expect(lambda k: (k - mean) ** 2)
    assert table.mean[row].item() == pytest.approx(mean, abs=1e-9)
    assert table.std[row].item() == pytest.approx(math.sqrt(variance), rel=1e-7)


def test_the_gaussian_kl_is_that_of_torch():
    normal = torch.distributions.Normal
    pi, ref = normal(torch.zeros(()), 1.0), normal(torch.tensor(1.3), 1.0)
    wanted = torch.distributions.kl_divergence(pi, ref).item()
    assert flows.gaussian_table(1.3).kl.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    "gap,bias,spread",
    [(0.1, [0, 0.002, 0], [20, 1.42, 1.42]), (1.0, [0, 0.25, 0], [2, 1.73, 1.7])],
)
def test_the_gaussian_table_is_the_one_published(gap, bias, spread):
    table = flows.gaussian_table(gap)
    found_bias = table.mean / table.kl - 1
    assert found_bias.tolist() == pytest.approx(bias, abs=6e-4)
    assert (table.std / table.kl).tolist() == pytest.approx(spread, abs=6e-3)


def test_the_gaussian_table_takes_many_gaps_and_none_at_all():
    table = flows.gaussian_table(torch.tensor([[0.0, 0.5, 2.0]]))
    assert table.kl.shape == (1, 3) and table.std.shape == (1, 3, 3)
    assert table.std[0, 0].tolist() == [0, 0, 0]
    assert table.std[0, 1, 2] < table.std[0, 1, 0]  # a small gap: k3 is quieter
    assert table.std[0, 2, 2] > table.std[0, 2, 0]  # a large one: it is not


# ------------------------------------------------------------------ the six gradients


@pytest.mark.parametrize("name", NAMES)
def test_the_reward_gradient_is_autograd_of_the_reinforce_loss(name):
    f = getattr(kl, f"kl_{name}")(PI, REF)  # detached
    wanted = gradient(lambda logp: (PI.exp() * f * logp).sum())
    found = flows.reward_gradient(PI, REF, flows.ESTIMATES[name])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_gradient_is_autograd_of_the_estimate_at_fixed_samples(name):
    def loss(logp):
        return (PI.exp() * flows.ESTIMATES[name](logp - REF)).sum()

    found = flows.loss_gradient(PI, REF, flows.ESTIMATES[name])
    torch.testing.assert_close(found, gradient(loss), rtol=0, atol=1e-14)


def test_k1_in_the_reward_and_k2_as_a_loss_are_the_gradient_of_the_kl():
    in_reward = flows.reward_gradient(PI, REF, flows.ESTIMATES["k1"])
    as_loss = flows.loss_gradient(PI, REF, flows.ESTIMATES["k2"])
    torch.testing.assert_close(in_reward, kl_gradient(), rtol=0, atol=1e-14)
    torch.testing.assert_close(as_loss, kl_gradient(), rtol=0, atol=1e-14)


def test_k1_as_a_loss_has_no_gradient():
    found = flows.loss_gradient(PI, REF, flows.ESTIMATES["k1"])
    torch.testing.assert_close(found, torch.zeros_like(PI), rtol=0, atol=1e-15)


def test_k3_as_a_loss_is_the_gradient_of_the_reversed_kl():
    found = flows.loss_gradient(PI, REF, flows.ESTIMATES["k3"])
    torch.testing.assert_close(found, reversed_kl_gradient(), rtol=0, atol=1e-14)


def test_k3_in_the_reward_is_the_difference_of_the_two_kl_gradients():
    found = flows.reward_gradient(PI, REF, flows.ESTIMATES["k3"])
    wanted = kl_gradient() - reversed_kl_gradient()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_together_are_the_gradient_of_the_mean(name):
    """∇E_π f = E_π[f ∇log π] + E_π[∇f]: the law moves, and what is averaged moves."""
    f = flows.ESTIMATES[name]
    wanted = gradient(lambda logp: (logp.exp() * f(logp - REF)).sum())
    both = flows.reward_gradient(PI, REF, f) + flows.loss_gradient(PI, REF, f)
    torch.testing.assert_close(both, wanted, rtol=0, atol=1e-14)


def test_the_slope_is_a_derivative():
    d = torch.linspace(-2, 2, 9, dtype=F64)
    for f in (*flows.ESTIMATES.values(), lambda d: d.sin() * d):
        numeric = (f(d + 1e-6) - f(d - 1e-6)) / 2e-6
        torch.testing.assert_close(flows.slope(f)(d), numeric, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["reward", "loss"])
def test_a_coefficient_descends_the_divergence_of_its_generator(name, way):
    f = flows.ESTIMATES[name]
    c = f if way == "reward" else flows.slope(f)

    def divergence(theta):
        w = (theta.log_softmax(-1) - REF).exp()
        values = [flows.fdivergence_generator(x, c) for x in w.tolist()]
        return (REF.exp() * torch.tensor(values, dtype=F64)).sum().item()

    step = 1e-4 * torch.eye(4, dtype=F64)
    wanted = [(divergence(PI + e) - divergence(PI - e)) / 2e-4 for e in step]
    found = flows.reward_gradient(PI, REF, c)
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("w", [0.3, 1.0, 2.5])
def test_the_generator_of_k1_is_that_of_the_kl(w):
    found = flows.fdivergence_generator(w, flows.ESTIMATES["k1"])
    assert found == pytest.approx(w * math.log(w) - w + 1, abs=1e-9)


# ------------------------------------------------------------------------------ flows


@pytest.mark.parametrize("name", NAMES)
def test_a_flow_is_the_limit_of_small_steps(name):
    theta, ref, dt = START.clone().requires_grad_(), HOME, 2e-3
    rewards = torch.tensor([0.0, 1.0, 0.5], dtype=F64)
    for _ in range(1000):  # ascent, by autograd, on r − β·estimate as a reward
        logp = theta.log_softmax(-1)
        value = rewards - 0.7 * getattr(kl, f"kl_{name}")(logp, ref)
        surrogate = (logp.detach().exp() * value * logp).sum()
        (g,) = torch.autograd.grad(surrogate, theta)
        theta = (theta + dt * g).detach().requires_grad_()
    times = torch.tensor([2.0])
    f = flows.ESTIMATES[name]
    path = flows.exact_flow(START, HOME, f, times, rewards=rewards, beta=0.7)
    end = theta.detach().softmax(-1)
    torch.testing.assert_close(path[0].exp(), end, rtol=0, atol=3e-4)


def test_a_flow_begins_where_it_is_told_and_keeps_all_its_times():
    times = torch.tensor([0.0, 0.5, 3.0])
    path = flows.exact_flow(START, HOME, flows.ESTIMATES["k3"], times)
    assert path.shape == (3, 3) and path.dtype == F64 and not path.requires_grad
    torch.testing.assert_close(path[0], START, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.logsumexp(-1), torch.zeros(3, dtype=F64))


def test_k1_in_the_reward_comes_home_and_k3_runs_into_a_corner():
    times = torch.tensor([60.0])
    ends = [flows.exact_flow(START, HOME, flows.ESTIMATES[n], times) for n in NAMES]
    k1, k2, k3 = (kl.exact_kl(end[0], HOME).item() for end in ends)
    assert k1 < 1e-8
    assert k3 == pytest.approx(math.log(2), abs=1e-6)
    assert k2 > 0.6


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_with_a_task_k1_reaches_the_optimum(beta):
    rewards = torch.tensor([0.0, 1.0, 0.5], dtype=F64)
    k1 = flows.ESTIMATES["k1"]
    end = flows.exact_flow(START, HOME, k1, torch.tensor([400.0]), rewards, beta)
    assert exact.gap(end[0], HOME, rewards, beta).item() < 1e-9


def test_k2_as_a_loss_takes_the_path_of_k1_in_the_reward():
    times = torch.linspace(0, 9, 4)
    as_loss = flows.slope(flows.ESTIMATES["k2"])
    found = flows.exact_flow(START, HOME, as_loss, times)
    wanted = flows.exact_flow(START, HOME, flows.ESTIMATES["k1"], times)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_a_larger_beta_is_a_faster_clock():
    k3 = flows.ESTIMATES["k3"]
    fast = flows.exact_flow(START, HOME, k3, torch.tensor([2.0]), beta=3.0)
    slow = flows.exact_flow(START, HOME, k3, torch.tensor([6.0]))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-8)


def test_a_flow_lives_on_when_an_action_has_died():
    k3 = flows.ESTIMATES["k3"]
    end = flows.exact_flow(START, HOME, k3, torch.tensor([3000.0]))
    assert torch.isfinite(end).all() and end[0].exp().max() > 1 - 1e-9


# ------------------------------------------------------------------------------ top-p


def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass():
    law = torch.tensor([0.05, 0.4, 0.25, 0.3], dtype=F64)
    kept = {
        mass: (flows.top_p(law.log(), mass) > -math.inf).tolist()
        for mass in (0.1, 0.41, 0.7, 0.71, 0.96)
    }
    assert kept == {
        0.1: [False, True, False, False],
        0.41: [False, True, False, True],
        0.7: [False, True, False, True],  # reached, though 0.4 + 0.3 is inexact
        0.71: [False, True, True, True],
        0.96: [True, True, True, True],
    }


def test_what_is_left_is_the_law_given_that_it_is_drawn():
    found = flows.top_p(PI, 0.8)
    wanted = torch.tensor([0.6, 0.25, 0, 0], dtype=F64) / 0.85
    torch.testing.assert_close(found.exp(), wanted, rtol=0, atol=1e-15)


def test_top_p_works_row_by_row_and_one_changes_nothing():
    rows = torch.stack([PI, REF]).reshape(2, 1, 4)
    found = flows.top_p(rows, 0.5)
    torch.testing.assert_close(found[1, 0], flows.top_p(REF, 0.5))
    torch.testing.assert_close(flows.top_p(rows, 1.0), rows)


def test_k3_misses_the_mass_that_top_p_cuts_from_the_reference():
    drawn = flows.top_p(PI, 0.8)
    support = drawn > -math.inf
    k3 = (drawn.exp()[support] * kl.kl_k3(drawn[support], REF[support])).sum()
    outside = 1 - REF.exp()[support].sum()
    torch.testing.assert_close(k3, kl.exact_kl(drawn, REF) - outside)


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "logp,ref_logp,message",
    [
        (PI, REF[:3], r"shapes differ: logp \[4\], ref_logp \[3\]"),
        (PI[None], REF[None], r"logp: want \[K\], K ≥ 2, found \[1, 4\]"),
        (PI.clone().fill_(math.nan), REF, "logp: found nan"),
        (PI, torch.tensor([0.5, 0.5, 0, 0], dtype=F64).log(), "ref_logp: found -inf"),
        (PI + 1, REF, "sum_of_exp_logp: want 0.999"),
        (PI, REF - 1, "sum_of_exp_ref_logp: want 0.999"),
    ],
)
def test_what_is_no_pair_of_laws_is_named(logp, ref_logp, message):
    k1, times = flows.ESTIMATES["k1"], torch.tensor([1.0])
    for call in (
        lambda: flows.moments(logp, ref_logp, k1),
        lambda: flows.reward_gradient(logp, ref_logp, k1),
        lambda: flows.loss_gradient(logp, ref_logp, k1),
        lambda: flows.exact_flow(logp, ref_logp, k1, times),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_penalty_that_is_not_finite_or_not_elementwise_is_named():
    with pytest.raises(ValueError, match="penalty: found nan"):
        flows.reward_gradient(PI, REF, torch.log)
    with pytest.raises(ValueError, match="shapes differ: penalty"):
        flows.moments(PI, REF, torch.sum)


@pytest.mark.parametrize("times", [[2.0, 1.0], [-1.0, 1.0], [], [math.nan]])
def test_times_must_increase_from_zero(times):
    with pytest.raises(ValueError, match="times"):
        flows.exact_flow(START, HOME, flows.ESTIMATES["k1"], torch.tensor(times))


def test_a_task_must_fit_the_policy():
    k1, times = flows.ESTIMATES["k1"], torch.tensor([1.0])
    with pytest.raises(ValueError, match=r"shapes differ: logp \[3\], rewards \[4\]"):
        flows.exact_flow(START, HOME, k1, times, rewards=torch.zeros(4))
    with pytest.raises(ValueError, match="rewards: found inf"):
        flows.exact_flow(START, HOME, k1, times, rewards=torch.full((3,), math.inf))
    with pytest.raises(ValueError, match="beta: want a number > 0"):
        flows.exact_flow(START, HOME, k1, times, beta=0.0)


@pytest.mark.parametrize("gap", [math.nan, math.inf])
def test_a_gap_that_is_not_finite_is_named(gap):
    with pytest.raises(ValueError, match="gap: found"):
        flows.gaussian_table(gap)


def test_a_gap_whose_variance_overflows_is_named():
    with pytest.raises(ValueError, match="gap: want gap² ≤ 700, found gap 30"):
        flows.gaussian_table(-30.0)


@pytest.mark.parametrize("w", [0.0, -1.0, math.nan])
def test_a_ratio_that_is_not_positive_is_named(w):
    with pytest.raises(ValueError, match="w: want a number > 0"):
        flows.fdivergence_generator(w, flows.ESTIMATES["k1"])


@pytest.mark.parametrize("mass", [0.0, 1.1, math.nan])
def test_a_mass_outside_zero_to_one_is_named(mass):
    with pytest.raises(ValueError, match="mass: want"):
        flows.top_p(PI, mass)


def test_a_law_with_dead_actions_is_refused_by_top_p():
    with pytest.raises(ValueError, match="logp: found -inf"):
        flows.top_p(flows.top_p(PI, 0.8), 0.5)
