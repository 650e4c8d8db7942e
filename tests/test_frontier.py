"""frontier.py: against tangents, random policies, numerical ascent and Lagrange."""

import math

import pytest
import torch

from rlhf_mini import exact, frontier, kl, seeding

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARDS = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=torch.float64)
LEAKY = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
LEAKY_REWARDS = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
BETAS = [0.05, 0.5, 3.0]
INF = math.inf


def close(found, wanted, atol=1e-10):
    found = torch.as_tensor(found, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def laws(seed, count, size=4):
    """Random policies [count, size], some of them nearly deterministic."""
    generator = seeding.make(seed)
    logits = torch.randn(count, size, generator=generator, dtype=torch.float64)
    scale = 4 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return (scale * logits).log_softmax(-1)


# ------------------------------------------------------------------- the frontier


def test_each_point_is_the_optimum_of_its_beta():
    points = frontier.reward_kl_frontier(REF.log(), REWARDS, BETAS)
    for i, beta in enumerate(BETAS):
        best = exact.optimal_policy(REF.log(), REWARDS, beta)
        close(points.logp[i], best)
        close(points.kl[i], kl.exact_kl(best, REF.log()))
        close(points.reward[i], (best.exp() * REWARDS).sum())
    close(points.beta, BETAS)


def test_reward_minus_beta_kl_is_beta_log_z():
    points = frontier.reward_kl_frontier(REF.log(), REWARDS, BETAS)
    value = [b * exact.log_partition(REF.log(), REWARDS, b) for b in BETAS]
    close(points.reward - points.beta * points.kl, value)


@pytest.mark.parametrize("beta", BETAS)
def test_the_slope_of_the_frontier_is_beta(beta):
    near = [beta * (1 - 1e-4), beta * (1 + 1e-4)]
    points = frontier.reward_kl_frontier(REF.log(), REWARDS, near)
    slope = (points.reward[1] - points.reward[0]) / (points.kl[1] - points.kl[0])
    assert slope.item() == pytest.approx(beta, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_has_more_reward_at_the_same_kl(seed):
    logp = laws(seed, 20)
    spent = kl.exact_kl(logp, REF.log().expand_as(logp))
    earned = (logp.exp() * REWARDS).sum(-1)
    for x, y in zip(spent.tolist(), earned.tolist(), strict=True):
        if x < math.log(10) - 1e-6:
            beta = frontier.beta_for_kl(REF.log(), REWARDS, x)
            point = frontier.reward_kl_frontier(REF.log(), REWARDS, [beta])
            assert y <= point.reward.item() + 1e-9


def test_what_the_reference_cannot_do_is_not_on_the_frontier():
    points = frontier.reward_kl_frontier(LEAKY.log(), LEAKY_REWARDS, [0.01])
    assert points.logp[0, 2] == -INF
    wild = torch.tensor([0.0, 0.2, math.nan], dtype=torch.float64)
    again = frontier.reward_kl_frontier(LEAKY.log(), wild, [0.01])
    close(points.reward, again.reward)


@pytest.mark.parametrize("beta", [1e-1, 0.37, 1.0, 25.0])
def test_beta_for_kl_undoes_the_frontier(beta):
    spent = frontier.reward_kl_frontier(REF.log(), REWARDS, [beta]).kl.item()
    found = frontier.beta_for_kl(REF.log(), REWARDS, spent)
    assert found == pytest.approx(beta, rel=1e-6)


def test_beta_for_kl_scales_with_the_reward():
    one = frontier.beta_for_kl(REF.log(), REWARDS, 0.3)
    many = frontier.beta_for_kl(REF.log(), 1000 * REWARDS - 7, 0.3)
    assert many == pytest.approx(1000 * one, rel=1e-9)


def test_more_kl_than_the_best_outcome_has_raises():
    with pytest.raises(ValueError, match="kl: want less than .* have 2.30259"):
        frontier.beta_for_kl(REF.log(), REWARDS, math.log(10))


def test_equal_rewards_spend_nothing():
    with pytest.raises(ValueError, match="kl: want less than all that can be spent"):
        frontier.beta_for_kl(REF.log(), torch.ones_like(REF), 0.1)


def test_the_frontier_takes_one_law_and_some_betas():
    with pytest.raises(ValueError, match="ref_logp: want 1 axes"):
        frontier.reward_kl_frontier(REF.log()[None], REWARDS, BETAS)
    with pytest.raises(ValueError, match="betas: want at least one"):
        frontier.reward_kl_frontier(REF.log(), REWARDS, [])
    with pytest.raises(ValueError, match="beta: want a number > 0, found 0.0"):
        frontier.reward_kl_frontier(REF.log(), REWARDS, [0.0])
    with pytest.raises(ValueError, match="kl: want a number > 0"):
        frontier.beta_for_kl(REF.log(), REWARDS, 0.0)


# ------------------------------------------------------- the divergence turned round


def test_the_forward_objective_is_a_plain_sum():
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = frontier.forward_objective(pi.log(), REF.log(), REWARDS, 0.7)
    wanted = sum(
        pi[i] * REWARDS[i] - 0.7 * REF[i] * math.log(REF[i] / pi[i]) for i in range(4)
    )
    close(found, wanted)


def test_the_forward_objective_charges_the_other_divergence():
    pi = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    found = frontier.forward_objective(pi.log(), REF.log(), 0 * REWARDS, 1.0)
    close(found, -kl.exact_kl(REF.log(), pi.log()))


def test_mass_outside_the_support_is_free():
    pi = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    found = frontier.forward_objective(pi.log(), LEAKY.log(), LEAKY_REWARDS, 0.3)
    close(found, 0.25 * 0.2 + 0.5 - 0.3 * math.log(2))


def test_starving_the_reference_costs_everything():
    pi = torch.tensor([0.0, 0.5, 0.3, 0.2], dtype=torch.float64)
    found = frontier.forward_objective(pi.log(), REF.log(), REWARDS, 0.3)
    assert found == -INF


@pytest.mark.parametrize("beta", [0.05, 0.3, 0.888, 0.889, 3.0])
@pytest.mark.parametrize("case", ["inside", "leaky"])
def test_the_forward_optimum_satisfies_lagrange(case, beta):
    """r + β π_ref/π equals the pole where π > 0 and is not above it elsewhere."""
    ref, r = (REF, REWARDS) if case == "inside" else (LEAKY, LEAKY_REWARDS)
    best = frontier.forward_optimum(ref.log(), r, beta)
    probs = best.logp.exp()
    close(probs.sum(), 1.0)
    marginal = r + torch.where(ref > 0, beta * ref / probs.clamp(min=1e-300), 0.0)
    close(marginal[probs > 0], best.pole.expand(int((probs > 0).sum())))
    assert (marginal <= best.pole + 1e-10).all()


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_forward_optimum_is_where_numerical_ascent_ends(beta):
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        solver.zero_grad()
        logp = logits.log_softmax(-1)
        value = -frontier.forward_objective(logp, REF.log(), REWARDS, beta)
        value.backward()
        return value

    solver.step(loss)
    best = frontier.forward_optimum(REF.log(), REWARDS, beta)
    close(logits.softmax(-1).detach(), best.logp.exp(), atol=1e-6)


@pytest.mark.parametrize("ref", [REF, torch.tensor([0.3, 0.5, 0.2, 0.0]).double()])
def test_no_random_policy_beats_the_forward_optimum(ref):
    best = frontier.forward_optimum(ref.log(), REWARDS, 0.4).logp
    top = frontier.forward_objective(best, ref.log(), REWARDS, 0.4)
    others = frontier.forward_objective(laws(0, 500), ref.log(), REWARDS, 0.4)
    assert (others < top).all()


def test_the_leak_is_what_the_hyperbola_leaves():
    best = frontier.forward_optimum(LEAKY.log(), LEAKY_REWARDS, 0.3)
    close(best.logp.exp(), [0.15, 0.1875, 0.6625], atol=1e-12)
    close(best.pole, 1.0)


def test_the_leak_ends_where_the_support_can_hold_all():
    # 1 = β (½/1 + ½/0.8) at the last β that leaks
    last = 1 / (0.5 / 1.0 + 0.5 / 0.8)
    for beta, leaks in ((last - 1e-6, True), (last + 1e-6, False)):
        best = frontier.forward_optimum(LEAKY.log(), LEAKY_REWARDS, beta)
        assert bool(best.logp[2] > -INF) is leaks


def test_a_bad_outcome_outside_the_support_gets_nothing():
    r = torch.tensor([0.0, 0.2, -1.0], dtype=torch.float64)
    assert frontier.forward_optimum(LEAKY.log(), r, 0.3).logp[2] == -INF


def test_equal_outcomes_outside_share_the_leak():
    ref = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    r = torch.tensor([0.0, 0.2, 1.0, 1.0, 0.9], dtype=torch.float64)
    probs = frontier.forward_optimum(ref.log(), r, 0.3).logp.exp()
    close(probs, [0.15, 0.1875, 0.33125, 0.33125, 0.0])


def test_a_shift_moves_the_pole_and_nothing_else():
    one = frontier.forward_optimum(REF.log(), REWARDS, 0.3)
    two = frontier.forward_optimum(REF.log(), REWARDS + 5, 0.3)
    close(one.logp, two.logp)
    close(one.pole + 5, two.pole)


def test_leading_axes_are_solved_one_by_one():
    r = torch.stack([REWARDS, -REWARDS, 0 * REWARDS])
    together = frontier.forward_optimum(REF.log(), r, 0.3)
    for i in range(3):
        close(together.logp[i], frontier.forward_optimum(REF.log(), r[i], 0.3).logp)
    close(together.logp[2].exp(), REF)


def test_a_tiny_beta_keeps_its_digits():
    best = frontier.forward_optimum(REF.log(), REWARDS, 1e-12)
    close(best.logp.exp()[0] / 1e-12, 0.4 / 2, atol=1e-9)


@pytest.mark.parametrize("solve", [True, False])
def test_the_forward_functions_name_what_is_wrong(solve):
    def call(ref_logp=None, rewards=REWARDS, beta=0.3):
        ref_logp = REF.log() if ref_logp is None else ref_logp
        if solve:
            return frontier.forward_optimum(ref_logp, rewards, beta)
        return frontier.forward_objective(REF.log(), ref_logp, rewards, beta)

    with pytest.raises(ValueError, match="beta: want a number > 0"):
        call(beta=-1.0)
    with pytest.raises(ValueError, match="ref_logp: want a law"):
        call(ref_logp=REF)
    with pytest.raises(ValueError, match="shapes do not fit: "):
        call(rewards=REWARDS[:3])
    with pytest.raises(ValueError, match=r"rewards: found inf at \[1\]"):
        call(rewards=torch.tensor([0.0, INF, 0.0, 0.0], dtype=torch.float64))
