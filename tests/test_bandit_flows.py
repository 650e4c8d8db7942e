"""bandit_flows.py: each closed form against an integration or a loop of its own."""

import itertools
import math

import pytest
import torch

from rlhf_mini import bandit_flows as flows
from rlhf_mini import exact

F64 = torch.float64
THREE = torch.tensor([0.001, 0.7, 0.299], dtype=F64).log()
PAYS = torch.tensor([1.0, 0.9, 0.0], dtype=F64)


def march(p0, arms, direction, dt=1e-4):
    """T½ by Runge-Kutta 4 on the logits of a K-armed bandit: no closed form in sight.

    `direction` maps probabilities [K] to dθ/dt [K].
    """
    rest = torch.full((arms - 1,), (1 - p0) / (arms - 1), dtype=F64)
    theta = torch.cat([torch.tensor([p0], dtype=F64), rest]).log()

    def f(theta):
        return direction(theta.softmax(0))

    t, p = 0.0, p0
    while p < 0.5:
        last = p
        k1 = f(theta)
        k2 = f(theta + dt / 2 * k1)
        k3 = f(theta + dt / 2 * k2)
        k4 = f(theta + dt * k3)
        theta = theta + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        t, p = t + dt, theta.softmax(0)[0].item()
    return t - dt * (p - 0.5) / (p - last)  # linear in the last step


def gradient(p):
    """∇E[r] by autograd, the first arm paying 1."""
    theta = p.log().requires_grad_()
    (g,) = torch.autograd.grad(theta.softmax(0)[0], theta)
    return g


def log_likelihood_gradient(p):
    theta = p.log().requires_grad_()
    (g,) = torch.autograd.grad(theta.log_softmax(0)[0], theta)
    return g


def natural_gradient(p):
    """Pseudo-inverse of the Fisher matrix times the gradient."""
    fisher = torch.diag(p) - torch.outer(p, p)
    return torch.linalg.pinv(fisher, rtol=1e-9) @ gradient(p)


@pytest.mark.parametrize("arms", [2, 5])
@pytest.mark.parametrize("p0", [0.07, 0.3])
def test_the_gradient_time_is_that_of_an_integrated_flow(arms, p0):
    found = flows.gradient_time(p0, arms).item()
    assert found == pytest.approx(march(p0, arms, gradient, dt=0.01), abs=1e-4)


@pytest.mark.parametrize("arms", [2, 5])
def test_the_imitation_time_is_that_of_an_integrated_flow(arms):
    wanted = march(0.07, arms, log_likelihood_gradient, dt=0.01)
    assert flows.imitation_time(0.07, arms).item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("arms", [2, 5])
def test_the_natural_time_is_that_of_the_inverse_fisher_matrix(arms):
    wanted = march(0.07, arms, natural_gradient, dt=0.01)
    assert flows.natural_time(0.07).item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("arms", [2, 5])
def test_a_curriculum_climbs_at_the_speed_of_one_half(arms):
    # with the hint the policy stands at ½, whatever it knows without
    z, dt = math.log(0.07 / 0.93), 1e-3
    half = torch.cat([torch.tensor([0.5]), torch.full((arms - 1,), 0.5 / (arms - 1))])
    g = gradient(half.double())
    steps = -z / (dt * (g[0] - g[1]).item())
    assert flows.curriculum_time(0.07, arms).item() == pytest.approx(steps * dt)


def test_the_published_times_of_the_course():
    assert flows.gradient_time(1e-3).item() / 0.1 == pytest.approx(5064.06, abs=0.01)
    assert flows.gradient_time(1e-6).item() == pytest.approx(500_013, abs=1)
    assert flows.imitation_time(1e-3).item() / 0.1 == pytest.approx(39.53, abs=0.005)
    assert flows.natural_time(1e-3).item() == pytest.approx(math.log(999), abs=1e-12)


def test_times_of_many_probabilities_come_in_one_tensor():
    p0 = torch.tensor([[0.1, 0.01], [0.2, 0.5]])
    for time in (flows.gradient_time, flows.imitation_time, flows.natural_time):
        found = time(p0)
        assert found.shape == p0.shape and found.dtype == F64
        assert found[0, 1] > found[0, 0] > found[1, 0] > found[1, 1]


@pytest.mark.parametrize(
    "time",
    [
        flows.gradient_time, flows.imitation_time, flows.natural_time,
        flows.curriculum_time,
    ],
)  # fmt: skip
def test_at_one_half_the_time_is_zero(time):
    assert time(0.5).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("p0", [1e-6, 1e-3, 0.2])
def test_the_quadrature_with_slope_one_is_the_plain_gradient(p0):
    wanted = flows.gradient_time(p0).item()
    assert flows.slope_time(p0, lambda p: 1.0) == pytest.approx(wanted, rel=1e-9)


def test_the_slope_of_log_likelihood_gives_the_imitation_time():
    wanted = flows.imitation_time(0.003).item()
    assert flows.slope_time(0.003, lambda p: 1 / p) == pytest.approx(wanted, rel=1e-9)


def test_the_slope_of_the_natural_gradient_gives_the_natural_time():
    found = flows.slope_time(0.003, lambda p: 0.5 / (p * (1 - p)))
    assert found == pytest.approx(flows.natural_time(0.003).item(), rel=1e-9)


@pytest.mark.parametrize("beta", [0.02, 0.15])
def test_the_quadrature_agrees_with_the_exact_gradient_of_a_kl_penalty(beta):
    p0 = 0.05
    ref_logp = torch.tensor([p0, 1 - p0], dtype=F64).log()
    rewards = torch.tensor([1.0, 0.0], dtype=F64)

    def direction(p):
        return exact.objective_gradient(p.log(), ref_logp, rewards, beta)

    def slope(p):
        return 1 - beta * (math.log(p / (1 - p)) - math.log(p0 / (1 - p0)))

    wanted = march(p0, 2, direction, dt=0.01)
    assert flows.slope_time(p0, slope) == pytest.approx(wanted, abs=1e-3)


def test_entropy_and_kl_change_the_time_as_published():
    def odds(p):
        return math.log(p / (1 - p))

    start = odds(1e-4)
    found = [flows.slope_time(1e-4, lambda p, tau=tau: 1 - tau * odds(p))
             for tau in (0.0, 0.1, 1.0)]  # fmt: skip
    assert found == pytest.approx([5008.71, 2761.36, 554.47], abs=0.01)
    held = flows.slope_time(1e-4, lambda p: 1 - 0.1 * (odds(p) - start))
    assert held == pytest.approx(5682.66, abs=0.01)


def test_a_slope_that_turns_back_is_named():
    with pytest.raises(ValueError, match="slope: want > 0 up to p = ½"):
        flows.slope_time(0.1, lambda p: 0.3 - p)
    with pytest.raises(ValueError, match="slope"):
        flows.slope_time(0.1, lambda p: math.nan)


# ---------------------------------------------------------------- sampled REINFORCE


def test_the_sampled_time_of_the_course():
    found = flows.sampled_time(1e-3, lr=0.1)
    assert found.hits == 40
    assert found.mean == pytest.approx(5577.94, abs=0.005)
    assert found.std == pytest.approx(1742.76, abs=0.005)


@pytest.mark.parametrize("arms", [2, 4])
def test_the_sampled_time_is_the_sum_over_every_way_it_can_go(arms):
    """Follow the law of (hits so far) pull by pull, with softmax and autograd."""
    p0, lr = 0.2, 0.7
    rest = torch.full((arms - 1,), (1 - p0) / (arms - 1), dtype=F64)
    theta = torch.cat([torch.tensor([p0], dtype=F64), rest]).log()
    ladder = []
    while (p := theta.softmax(0)[0].item()) < 0.5:
        ladder.append(p)
        theta = theta + lr * log_likelihood_gradient(theta.softmax(0))
    state = [1.0] + [0.0] * len(ladder)  # probability of each number of hits
    mean = square = 0.0
    for t in range(1, 600):
        moved = [s * p for s, p in zip(state, ladder, strict=False)]
        mean, square = mean + t * moved[-1], square + t * t * moved[-1]
        for k, m in enumerate(moved):
            state[k] -= m
        for k, m in enumerate(moved):
            state[k + 1] += m
    found = flows.sampled_time(p0, lr, arms)
    assert found.hits == len(ladder)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.std == pytest.approx(math.sqrt(square - mean**2), rel=1e-9)


def test_a_small_step_makes_the_sampled_time_the_time_of_the_flow():
    lr = 1e-4
    flow = flows.gradient_time(0.02).item() / lr
    assert flows.sampled_time(0.02, lr).mean == pytest.approx(flow, rel=1e-3)


def test_a_huge_step_leaves_the_wait_for_the_first_hit():
    assert flows.sampled_time(0.01, lr=100.0).mean == pytest.approx(100)


@pytest.mark.parametrize("p0,n", list(itertools.product([1e-6, 0.01, 0.3], [2, 4, 16])))
def test_best_of_n_rounds_iterate_the_exact_law(p0, n):
    law = torch.tensor([p0, 1 - p0], dtype=F64).log()
    rounds = 0
    while law[0] < math.log(0.5):
        law = exact.best_of_n(law, torch.tensor([1.0, 0.0], dtype=F64), n)
        rounds += 1
    assert flows.best_of_n_rounds(p0, n) == rounds


def test_ten_rounds_of_best_of_four_undo_a_millionth():
    assert flows.best_of_n_rounds(1e-6, 4) == 10


# ------------------------------------------------------------------------ K-arm flows


def test_the_gradient_flow_moves_along_the_exact_gradient():
    times = torch.tensor([0.0, 1e-4, 2e-4], dtype=F64)
    path = flows.gradient_flow(THREE, PAYS, times)
    g = exact.objective_gradient(THREE, THREE, PAYS, beta=1.0)  # at π_ref: ∇E[r]
    moved = (path[2] - path[0]) / 2e-4
    change = g - (THREE.exp() * g).sum()  # of log π: logits move, then normalise
    torch.testing.assert_close(moved, change, rtol=1e-3, atol=1e-5)


def test_the_gradient_flow_passes_one_half_at_its_half_time():
    start = torch.tensor([0.01, 0.33, 0.66], dtype=F64)
    start[1:] = 0.495
    t = flows.gradient_time(0.01, arms=3).reshape(1)
    rewards = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    path = flows.gradient_flow(start.log(), rewards, t)
    assert path.exp()[0, 0].item() == pytest.approx(0.5, abs=1e-8)


def test_the_natural_flow_is_the_tilted_optimum_at_beta_one_over_t():
    times = torch.tensor([0.5, 3.0, 40.0], dtype=F64)
    path = flows.natural_flow(THREE, PAYS, times)
    for t, logp in zip(times, path, strict=True):
        wanted = exact.optimal_policy(THREE, PAYS, beta=1 / t.item())
        torch.testing.assert_close(logp, wanted, rtol=0, atol=1e-10)


def test_the_two_times_of_three_arms():
    found = flows.gradient_flow_time(THREE, PAYS)
    assert found == pytest.approx(3.128236e6, rel=1e-6)
    assert flows.natural_flow_time(THREE, PAYS) == pytest.approx(65.5108, abs=1e-4)


@pytest.mark.parametrize("p0", [1e-5, 0.1])
def test_with_two_arms_the_flow_times_are_the_closed_forms(p0):
    start = torch.tensor([p0, 1 - p0], dtype=F64).log()
    rewards = torch.tensor([1.0, 0.0], dtype=F64)
    found = flows.gradient_flow_time(start, rewards)
    assert found == pytest.approx(flows.gradient_time(p0).item(), rel=1e-8)
    found = flows.natural_flow_time(start, rewards)
    assert found == pytest.approx(flows.natural_time(p0).item(), rel=1e-11)


def test_the_best_arm_is_found_wherever_it_stands():
    turned, pays = THREE[[2, 0, 1]], PAYS[[2, 0, 1]]
    found = flows.gradient_flow_time(turned, pays)
    assert found == pytest.approx(flows.gradient_flow_time(THREE, PAYS), rel=1e-7)
    found = flows.natural_flow_time(turned, pays)
    assert found == pytest.approx(flows.natural_flow_time(THREE, PAYS), rel=1e-11)


def test_who_starts_above_one_half_needs_no_time():
    start = torch.tensor([0.6, 0.4], dtype=F64).log()
    rewards = torch.tensor([1.0, 0.0], dtype=F64)
    assert flows.gradient_flow_time(start, rewards) == 0
    assert flows.natural_flow_time(start, rewards) == 0


def test_a_flow_that_is_not_waited_for_takes_infinitely_long():
    assert flows.gradient_flow_time(THREE, PAYS, max_time=1e3) == math.inf


# ----------------------------------------------------------------------------- errors


@pytest.mark.parametrize("p0", [0.0, -0.1, 0.6, math.nan])
@pytest.mark.parametrize(
    "time",
    [
        flows.gradient_time, flows.imitation_time, flows.natural_time,
        flows.curriculum_time, lambda p: flows.slope_time(p, lambda q: 1.0),
        lambda p: flows.sampled_time(p, 0.1), lambda p: flows.best_of_n_rounds(p, 2),
    ],
)  # fmt: skip
def test_a_starting_probability_outside_zero_to_one_half_is_named(time, p0):
    with pytest.raises(ValueError, match=f"p0: want 0 < p0 ≤ 0.5, found {p0:g}"):
        time(p0)


@pytest.mark.parametrize("arms", [1, 2.0, True])
def test_fewer_than_two_arms_are_named(arms):
    with pytest.raises(ValueError, match="arms: want a whole number ≥ 2"):
        flows.gradient_time(0.1, arms)


def test_a_learning_rate_of_zero_is_named():
    with pytest.raises(ValueError, match="lr: want a number > 0"):
        flows.sampled_time(0.1, lr=0.0)


def test_best_of_one_is_refused():
    with pytest.raises(ValueError, match="n: want a whole number ≥ 2, found 1"):
        flows.best_of_n_rounds(0.1, 1)


@pytest.mark.parametrize(
    "logp,rewards,message",
    [
        (torch.tensor([0.0, 1.0]).log(), PAYS[:2], r"logp: found -inf at \[0\]"),
        (THREE, PAYS[:2], r"shapes differ: logp \[3\], rewards \[2\]"),
        (THREE, PAYS * math.nan, "rewards: found nan"),
        (torch.zeros(2), PAYS[:2], "log_of_the_sum"),
        (THREE[:1], PAYS[:1], r"logp: want a tensor \[K\], K ≥ 2, found \[1\]"),
        (THREE, [1, 2, 3], r"rewards: want a tensor \[K\], K ≥ 2, found list"),
    ],
)
def test_what_is_no_bandit_is_named(logp, rewards, message):
    times = torch.tensor([1.0])
    for call in (
        lambda: flows.gradient_flow(logp, rewards, times),
        lambda: flows.natural_flow(logp, rewards, times),
        lambda: flows.gradient_flow_time(logp, rewards),
        lambda: flows.natural_flow_time(logp, rewards),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("times", [[2.0, 1.0], [-1.0, 1.0], [], [math.nan]])
def test_times_must_increase_from_zero(times):
    with pytest.raises(ValueError, match="times"):
        flows.gradient_flow(THREE, PAYS, torch.tensor(times))


def test_a_limit_of_zero_is_named():
    with pytest.raises(ValueError, match="max_time"):
        flows.gradient_flow_time(THREE, PAYS, max_time=0.0)


def test_two_best_arms_are_refused_by_the_natural_time():
    tied = torch.tensor([1.0, 1.0, 0.0], dtype=F64)
    with pytest.raises(ValueError, match="rewards: want one best arm"):
        flows.natural_flow_time(THREE, tied)
