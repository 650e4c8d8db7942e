"""penalties.py: against automatic differentiation and against exact.py."""

import math

import pytest
import torch

from rlhf_mini import exact, seeding
from rlhf_mini.kl import exact_kl
from rlhf_mini.penalties import frozen_objective, penalty_gradient

INF = math.inf
PENALTIES = {
    "k1": lambda u: u,
    "affine": lambda u: 3 * u - 2,
    "k2": lambda u: u.square() / 2,
    "k3": lambda u: torch.expm1(-u) + u,
    "chi-square": lambda u: torch.expm1(u),
    "absolute": torch.abs,
    "clipped": lambda u: u.clamp(-0.5, 0.5),
}


def random_case(seed, size=5):
    """(logits, ref_logp, rewards), no two entries alike."""
    generator = seeding.make(seed)
    logits, ref, rewards = torch.randn(3, size, generator=generator).double()
    return logits, ref.log_softmax(-1), rewards


def close(found, wanted, atol=1e-12):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def gradient(f, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(f(logits.log_softmax(-1)), logits)[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PENALTIES)
def test_the_two_parts_add_up_to_the_gradient(name, seed):
    logits, ref_logp, _ = random_case(seed)
    f = PENALTIES[name]
    parts = penalty_gradient(logits, ref_logp, f)
    whole = gradient(lambda logp: (logp.exp() * f(logp - ref_logp)).sum(), logits)
    close(parts.score + parts.neglected, whole)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_score_part_holds_the_penalty_fixed(name):
    logits, ref_logp, _ = random_case(3)
    f = PENALTIES[name]
    fixed = f(logits.log_softmax(-1) - ref_logp)
    wanted = gradient(lambda logp: (logp.exp() * fixed).sum(), logits)
    close(penalty_gradient(logits, ref_logp, f).score, wanted)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_neglected_part_is_zero_for_log_ratios_and_for_no_other(name):
    logits, ref_logp, _ = random_case(4)
    size = penalty_gradient(logits, ref_logp, PENALTIES[name]).neglected.norm().item()
    if name in ("k1", "affine"):
        assert size < 1e-14
    else:
        assert size > 1e-2


def test_what_k3_neglects_is_the_gradient_of_the_reversed_kl():
    logits, ref_logp, _ = random_case(5)
    wanted = gradient(lambda logp: exact_kl(ref_logp, logp), logits)
    close(penalty_gradient(logits, ref_logp, PENALTIES["k3"]).neglected, wanted)


def test_what_k2_neglects_is_the_gradient_of_the_kl():
    logits, ref_logp, _ = random_case(6)
    wanted = gradient(lambda logp: exact_kl(logp, ref_logp), logits)
    close(penalty_gradient(logits, ref_logp, PENALTIES["k2"]).neglected, wanted)


def test_a_constant_penalty_has_no_gradient():
    logits, ref_logp, _ = random_case(7)
    parts = penalty_gradient(logits, ref_logp, lambda u: torch.full_like(u, 5.0))
    close(parts.score, torch.zeros_like(logits))
    close(parts.neglected, torch.zeros_like(logits))


def test_a_banned_action_gets_no_gradient():
    logits, ref_logp, _ = random_case(8)
    banned = torch.cat([logits, torch.tensor([-INF]).double()])
    wider = torch.cat([ref_logp, torch.tensor([-INF]).double()])
    parts = penalty_gradient(banned, wider, PENALTIES["k3"])
    alone = penalty_gradient(logits, ref_logp, PENALTIES["k3"])
    close(parts.neglected[:-1], alone.neglected)
    assert parts.neglected[-1] == parts.score[-1] == 0


def test_leading_axes_are_policies():
    logits = torch.stack([random_case(seed)[0] for seed in range(3)])
    ref_logp = random_case(9)[1]
    together = penalty_gradient(logits, ref_logp, PENALTIES["k3"]).neglected
    for i in range(3):
        one = penalty_gradient(logits[i], ref_logp, PENALTIES["k3"]).neglected
        close(together[i], one)


def test_penalty_gradient_works_where_gradients_are_off():
    logits, ref_logp, _ = random_case(10)
    with torch.no_grad():
        found = penalty_gradient(logits, ref_logp, PENALTIES["k2"]).neglected
    close(found, penalty_gradient(logits, ref_logp, PENALTIES["k2"]).neglected)


def test_penalty_gradient_names_what_is_wrong():
    logits, ref_logp, _ = random_case(11)
    with pytest.raises(ValueError, match="penalty: want one number per log-ratio"):
        penalty_gradient(logits, ref_logp, torch.sum)
    with pytest.raises(ValueError, match="penalty: found nan"):
        penalty_gradient(logits, ref_logp, torch.log)
    with pytest.raises(ValueError, match="ref_logp: want a law"):
        penalty_gradient(logits, logits, PENALTIES["k1"])
    with pytest.raises(ValueError, match="shapes do not fit"):
        penalty_gradient(logits[:3], ref_logp, PENALTIES["k1"])
    with pytest.raises(ValueError, match="logits: found nan"):
        penalty_gradient(logits * math.nan, ref_logp, PENALTIES["k1"])
    never = torch.tensor([0.5, 0.5, 0, 0, 0]).double().log()
    with pytest.raises(ValueError, match="mass where ref_logp is -inf"):
        penalty_gradient(logits, never, PENALTIES["k1"])


# ------------------------------------------------------------ the frozen objective


def frozen_case(seed):
    logits, ref_logp, rewards = random_case(seed)
    old_logp = random_case(seed + 100)[0].log_softmax(-1)
    return logits, old_logp, ref_logp, rewards


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_freezing_drops_a_kl_to_the_old_policy(beta):
    logits, old_logp, ref_logp, rewards = frozen_case(0)
    logp = logits.log_softmax(-1)
    found = frozen_objective(logp, old_logp, ref_logp, rewards, beta)
    j = exact.objective(logp, ref_logp, rewards, beta)
    close(found, j + beta * exact_kl(logp, old_logp))


def test_the_frozen_objective_is_an_importance_weighted_mean():
    logits, old_logp, ref_logp, rewards = frozen_case(1)
    logp, total = logits.log_softmax(-1), 0.0
    for y in range(5):
        ratio = (logp[y] - old_logp[y]).exp()
        reward = rewards[y] - 0.7 * (old_logp[y] - ref_logp[y])
        total += old_logp[y].exp() * ratio * reward
    close(frozen_objective(logp, old_logp, ref_logp, rewards, 0.7), total)


def test_at_the_old_policy_the_frozen_gradient_is_right():
    logits, _, ref_logp, rewards = frozen_case(2)
    old_logp = logits.log_softmax(-1)
    found = gradient(
        lambda logp: frozen_objective(logp, old_logp, ref_logp, rewards, 0.7), logits
    )
    close(found, exact.objective_gradient(logits, ref_logp, rewards, 0.7))


def test_elsewhere_the_frozen_gradient_misses_that_kl():
    logits, old_logp, ref_logp, rewards = frozen_case(3)
    frozen = gradient(
        lambda logp: frozen_objective(logp, old_logp, ref_logp, rewards, 0.7), logits
    )
    missing = gradient(lambda logp: 0.7 * exact_kl(logp, old_logp), logits)
    truth = exact.objective_gradient(logits, ref_logp, rewards, 0.7)
    close(frozen - missing, truth)
    assert missing.norm() > 0.1


def test_the_frozen_objective_is_linear_in_the_policy():
    logits, old_logp, ref_logp, rewards = frozen_case(4)
    one, two = logits.softmax(-1), old_logp.exp()
    values = [
        frozen_objective(p.log(), old_logp, ref_logp, rewards, 0.7)
        for p in (one, two, 0.3 * one + 0.7 * two)
    ]
    close(values[2], 0.3 * values[0] + 0.7 * values[1])


def test_only_the_new_policy_carries_a_gradient():
    logits, old_logp, ref_logp, rewards = frozen_case(5)
    inputs = [x.clone().requires_grad_() for x in (old_logp, ref_logp, rewards)]
    logp = logits.log_softmax(-1).requires_grad_()
    frozen_objective(logp, *inputs, 0.7).backward()
    assert logp.grad.norm() > 0 and all(x.grad is None for x in inputs)


def test_an_outcome_nobody_samples_is_worth_nothing():
    logits, old_logp, ref_logp, rewards = frozen_case(6)
    more = torch.tensor([-INF]).double()
    wide = [torch.cat([x, more]) for x in (logits.log_softmax(-1), old_logp, ref_logp)]
    found = frozen_objective(*wide, torch.cat([rewards, -more.exp() + 9]), 0.7)
    logp = logits.log_softmax(-1)
    close(found, frozen_objective(logp, old_logp, ref_logp, rewards, 0.7))


def test_the_frozen_objective_names_what_is_wrong():
    logits, old, ref, rewards = frozen_case(7)
    logp = logits.log_softmax(-1)
    never = torch.tensor([0.5, 0.5, 0, 0, 0]).double().log()
    with pytest.raises(ValueError, match="logp: found mass where old_logp is -inf"):
        frozen_objective(logp, never, ref, rewards, 0.7)
    with pytest.raises(ValueError, match="old_logp: found mass where ref_logp is -inf"):
        frozen_objective(logp, old, never, rewards, 0.7)
    with pytest.raises(ValueError, match="beta: want a number > 0"):
        frozen_objective(logp, old, ref, rewards, 0.0)
    with pytest.raises(ValueError, match="logp: want a law"):
        frozen_objective(logits, old, ref, rewards, 0.7)
    with pytest.raises(ValueError, match="shapes do not fit"):
        frozen_objective(logp, old, ref, rewards[:2], 0.7)
    with pytest.raises(ValueError, match=r"rewards: found nan at \[0\]"):
        frozen_objective(logp, old, ref, rewards * math.nan, 0.7)
