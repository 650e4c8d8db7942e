"""bandits.py: the environment keeps gymnasium's rules, estimators their expectation."""

import math
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlhf_mini import bandit_flows, bandits, exact, seeding
from rlhf_mini.losses import reinforce_loss

F64 = torch.float64
PROBS = torch.tensor([0.05, 0.6, 0.35], dtype=F64)
REWARDS = torch.tensor([1.0, 0.4, -0.2], dtype=F64)
THREE = {"rewards": REWARDS.tolist(), "ref_probs": PROBS.tolist()}


def many(copies, **arguments):
    return gym.make_vec(
        bandits.ENV_ID,
        num_envs=copies,
        vectorization_mode="vector_entry_point",
        **arguments,
    )


# -------------------------------------------------------------------- the environment


@pytest.mark.parametrize("arguments", [{}, THREE])
def test_the_environment_is_clean_under_gymnasiums_own_checker(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(bandits.ENV_ID, **arguments).unwrapped)


def test_the_environment_is_made_by_name_where_the_module_was_not_imported():
    code = f"import gymnasium as g; print(g.make('rlhf_mini.bandits:{bandits.ENV_ID}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "RareRewardBandit" in done.stdout, done.stderr


def test_each_arm_pays_its_reward_and_ends_the_episode():
    env = gym.make(bandits.ENV_ID, **THREE)
    for arm, reward in enumerate(REWARDS.tolist()):
        observation, _ = env.reset(seed=0)
        assert observation == 0
        assert env.step(arm) == (0, reward, True, False, {})


def test_many_copies_pay_what_one_pays():
    envs = many(4, **THREE)
    observations, _ = envs.reset(seed=0)
    assert observations.tolist() == [0, 0, 0, 0]
    for _ in range(2):  # no pull is lost to a reset
        found, rewards, ended, cut, infos = envs.step(np.array([2, 0, 1, 0]))
        assert rewards.tolist() == REWARDS[[2, 0, 1, 0]].tolist()
        assert ended.all() and not cut.any() and found.tolist() == [0, 0, 0, 0]
        assert infos["final_obs"].tolist() == [0, 0, 0, 0]


def test_many_copies_keep_the_spaces_that_one_has():
    envs, env = many(3, **THREE), gym.make(bandits.ENV_ID, **THREE)
    assert envs.single_action_space == env.action_space
    assert envs.single_observation_space == env.observation_space
    assert envs.reset(seed=1)[0] in envs.observation_space
    assert envs.action_space.shape == (3,)


def test_wrappers_are_told_that_a_reset_costs_no_step():
    same_step = gym.vector.AutoresetMode.SAME_STEP
    assert many(2).metadata["autoreset_mode"] == same_step
    # gymnasium's own wrapper, which refuses to guess, counts one episode per pull
    counted = gym.wrappers.vector.RecordEpisodeStatistics(many(2, **THREE))
    counted.reset(seed=0)
    for pull in (1, 2):
        infos = counted.step(np.array([0, 1]))[-1]
        assert infos["episode"]["r"].tolist() == [1.0, 0.4], pull
        assert infos["episode"]["l"].tolist() == [1, 1], pull


def test_gymnasiums_own_vector_environment_agrees_with_ours():
    ours = many(2, **THREE)
    theirs = gym.make_vec(
        bandits.ENV_ID,
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
        **THREE,
    )
    ours.reset(seed=0), theirs.reset(seed=0)
    for actions in ([0, 2], [1, 1]):
        for a, b in zip(
            ours.step(np.array(actions))[:4],
            theirs.step(np.array(actions))[:4],
            strict=True,
        ):
            assert np.array_equal(a, b)


def test_a_thousand_seeds_of_ten_thousand_pulls_are_a_matter_of_seconds():
    """Counted in processor time, on a tenth of the pulls; the limit is generous."""
    import time

    envs = many(1000)
    policy = bandits.starting_policy(envs)
    sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
    began = time.process_time()
    for _ in bandits.learn(envs, policy, sgd, seeding.make(0), pulls=1000):
        pass
    assert time.process_time() - began < 2.0  # 0.3 s where it was written


@pytest.mark.parametrize(
    "rewards,probs,message",
    [
        ((1, 0, 0), (0.0, 0.5, 0.5), r"ref_probs: want every .* > 0, found 0 at \[0\]"),
        ((1, 0), (0.5, 0.6), "ref_probs: want sum 1, found 1.1"),
        ((1, 0), (math.nan, 1.0), r"ref_probs: .* found nan at \[0\]"),
        ((1, 0, 0), (0.5, 0.5), r"rewards \[3\], ref_probs \[2\]"),
        ((1,), (1.0,), "two arms or more"),
        ((math.inf, 0), (0.5, 0.5), r"rewards\[0\]: want a finite number"),
    ],
)
def test_a_bandit_that_cannot_be_is_refused_by_name(rewards, probs, message):
    for make in (gym.make, lambda *a, **k: many(2, **k)):
        with pytest.raises(ValueError, match=message):
            make(bandits.ENV_ID, rewards=rewards, ref_probs=probs)


def test_an_action_that_is_no_arm_is_refused():
    env = gym.make(bandits.ENV_ID).unwrapped
    with pytest.raises(ValueError, match="action: want 0 to 1, found 2"):
        env.step(2)
    with pytest.raises(ValueError, match="action: want an integer dtype"):
        env.step(0.5)
    envs = many(2)
    with pytest.raises(ValueError, match="action: want 0 to 1, found -1"):
        envs.step(np.array([0, -1]))
    with pytest.raises(ValueError, match=r"actions: want shape \[2\], found \[3\]"):
        envs.step(np.array([0, 1, 0]))


def test_no_copies_are_refused():
    with pytest.raises(ValueError, match="num_envs"):
        bandits.RareRewardBanditVector(0)


def test_the_policy_starts_at_the_reference():
    for envs in (many(4, **THREE), gym.make(bandits.ENV_ID, **THREE)):
        probs = bandits.starting_policy(envs).probs().detach()
        torch.testing.assert_close(probs, PROBS.expand_as(probs), rtol=0, atol=1e-12)


def test_the_policy_has_a_row_per_copy():
    assert bandits.starting_policy(many(4)).logits.shape == (4, 1, 2)
    assert bandits.starting_policy(gym.make(bandits.ENV_ID)).logits.shape == (1, 1, 2)


# ------------------------------------------------------------------------- estimators


def gradient_of(c, logits):
    """Σ_k c_k ∇log π(k), by autograd of the shared loss."""
    theta = logits.expand_as(c).clone().requires_grad_()
    loss = reinforce_loss(theta.log_softmax(-1), c)
    (g,) = torch.autograd.grad(loss, theta)
    return -g * c.numel()


def expectation(estimate, law=PROBS):
    """E[ĝ] over the arm that is drawn, by listing the arms."""
    actions = torch.arange(3)
    c = bandits.reinforce_coefficients(actions, REWARDS, arms=3)
    return law @ gradient_of(estimate(c), PROBS.log())


TRUTH = exact.objective_gradient(PROBS.log(), PROBS.log(), REWARDS, beta=1.0)


def test_the_sampled_gradient_is_right_in_expectation():
    torch.testing.assert_close(expectation(lambda c: c), TRUTH, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arm", [0, 2])
def test_injection_is_right_in_expectation_whichever_arm_is_known(arm):
    def estimate(c):
        return bandits.inject(c, PROBS.expand(3, 3), arm, REWARDS[arm].item())

    torch.testing.assert_close(expectation(estimate), TRUTH, rtol=0, atol=1e-12)


def test_injection_without_dropping_the_draws_counts_the_arm_twice():
    def estimate(c):
        kept = torch.zeros_like(c)
        kept[:, 0] = PROBS[0] * REWARDS[0]
        return c + kept

    doubled = REWARDS.clone()
    doubled[0] *= 2
    wanted = exact.objective_gradient(PROBS.log(), PROBS.log(), doubled, beta=1.0)
    torch.testing.assert_close(expectation(estimate), wanted, rtol=0, atol=1e-12)


def test_injection_of_the_only_arm_that_pays_leaves_no_variance():
    pays = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    c = bandits.reinforce_coefficients(torch.arange(3), pays, arms=3)
    c = bandits.inject(c, PROBS.expand(3, 3), 0, 1.0)
    assert (c == c[0]).all()


def test_injection_leaves_what_it_was_given_alone():
    c = torch.ones(1, 3, dtype=F64)
    bandits.inject(c, PROBS[None], 0, 5.0)
    assert c.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_balance_weights_make_the_mixture_right_in_expectation(alpha):
    other = torch.tensor([0.9, 0.0, 0.1], dtype=F64)
    mixture = (1 - alpha) * PROBS + alpha * other
    w = bandits.balance_weight(PROBS.log(), other.log(), alpha)
    found = expectation(lambda c: c * w[:, None], law=mixture)
    torch.testing.assert_close(found, TRUTH, rtol=0, atol=1e-12)
    assert (mixture @ w).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_balance_weights_are_bounded(alpha):
    logp = torch.linspace(-30, 0, 50, dtype=F64)
    w = bandits.balance_weight(logp, logp.flip(0), alpha)
    assert (w <= 1 / (1 - alpha) + 1e-12).all() and (w >= 0).all()


def test_balance_weights_take_sequences_and_carry_no_gradient():
    logp = torch.zeros(2, 3, requires_grad=True)
    w = bandits.balance_weight(logp, torch.zeros(2, 3), 0.5)
    assert w.shape == (2, 3) and not w.requires_grad


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_a_share_outside_zero_to_one_is_named(alpha):
    with pytest.raises(ValueError, match="alpha"):
        bandits.balance_weight(torch.zeros(2), torch.zeros(2), alpha)


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"actions \[2\], rewards \[3\]"):
        bandits.reinforce_coefficients(torch.zeros(2).long(), torch.zeros(3), 3)
    with pytest.raises(ValueError, match=r"c \[1, 3\], probs \[3\]"):
        bandits.inject(torch.zeros(1, 3), PROBS, 0, 1.0)
    with pytest.raises(ValueError, match=r"logp \[2\], other_logp \[3\]"):
        bandits.balance_weight(torch.zeros(2), torch.zeros(3), 0.5)


def test_an_arm_that_is_none_is_named():
    with pytest.raises(ValueError, match="actions: want 0 to 2, found 3"):
        bandits.reinforce_coefficients(torch.tensor([3]), torch.zeros(1), 3)
    with pytest.raises(ValueError, match="arm"):
        bandits.inject(torch.zeros(1, 3), PROBS[None], 3, 1.0)


# --------------------------------------------------------------------------- learning


def run(pulls, seed=0, copies=5, lr=0.3, optimizer=torch.optim.SGD, **kwargs):
    envs = many(copies, **THREE)
    policy = bandits.starting_policy(envs)
    opt = optimizer(policy.parameters(), lr=lr)
    return list(bandits.learn(envs, policy, opt, seeding.make(seed), pulls, **kwargs))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_learning_is_what_autograd_of_the_shared_loss_does(optimizer):
    """The same draws, through the policy's own sample and logp, and backward."""
    envs, generator = many(5, **THREE), seeding.make(0)
    policy = bandits.starting_policy(envs)
    opt = optimizer(policy.parameters(), lr=0.3)
    state = torch.arange(5)  # each copy is a state of the table
    envs.reset()
    slow = []
    for _ in range(20):
        slow.append(policy.probs().detach().clone())
        rollout = policy.sample(state, generator)
        rewards = torch.from_numpy(envs.step(rollout.tokens[:, 0].numpy())[1])
        logp = policy.logp(rollout.prompts, rollout.tokens, rollout.mask)
        loss = 5 * reinforce_loss(logp, rewards[:, None])  # a sum over the copies
        opt.zero_grad()
        loss.backward()
        opt.step()
    fast = run(20, optimizer=optimizer)
    torch.testing.assert_close(torch.stack(fast[:-1]), torch.stack(slow))


def test_a_seed_repeats_a_run_and_another_one_does_not():
    a, b, c = (torch.stack(run(10, seed=s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_copies_do_not_see_each_other():
    steps = run(30)
    assert len({tuple(row.tolist()) for row in steps[-1]}) > 1
    torch.testing.assert_close(steps[0], PROBS.expand(5, 3), rtol=0, atol=1e-12)


def test_the_estimate_that_is_passed_is_the_one_that_is_followed():
    def exact_one(c, probs):
        return probs * REWARDS

    steps = run(2, estimate=exact_one)
    theta = PROBS.log()
    for probs in steps:
        torch.testing.assert_close(probs[3], theta.softmax(0), rtol=0, atol=1e-12)
        theta = theta + 0.3 * exact.objective_gradient(theta, theta.log_softmax(0),
                                                       REWARDS, beta=1.0)  # fmt: skip


def test_an_estimate_of_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"coefficients \[3\], probs \[5, 3\]"):
        run(1, estimate=lambda c, probs: c[0])


def test_a_policy_that_is_no_law_is_named():
    with pytest.raises(ValueError, match="logits"):
        run(2, estimate=lambda c, probs: c * math.nan)


def test_sampled_pulls_have_their_exact_mean_and_spread():
    envs = many(2000, ref_probs=(0.02, 0.98))
    policy = bandits.starting_policy(envs)
    sgd = torch.optim.SGD(policy.parameters(), lr=0.5)
    steps = bandits.learn(envs, policy, sgd, seeding.make(3), pulls=5000)
    found = bandits.first_time(steps, arm=0)
    law = bandit_flows.sampled_time(0.02, lr=0.5)
    assert abs(found.mean() - law.mean) < 4 * law.std / math.sqrt(2000)
    assert found.std().item() == pytest.approx(law.std, rel=0.1)


def test_first_time_is_the_first_and_stops_reading():
    def steps():
        yield torch.tensor([[0.1, 0.9], [0.5, 0.5]])
        yield torch.tensor([[0.7, 0.3], [0.2, 0.8]])
        raise RuntimeError("read too far")

    assert bandits.first_time(steps(), arm=0).tolist() == [1.0, 0.0]


def test_first_time_is_infinite_for_who_never_gets_there():
    steps = [torch.tensor([[0.1, 0.9], [0.6, 0.4]])] * 3
    assert bandits.first_time(steps, arm=0).tolist() == [math.inf, 0.0]
    assert bandits.first_time(steps, arm=0, level=0.05).tolist() == [0.0, 0.0]


def test_no_steps_have_no_first_time():
    with pytest.raises(ValueError, match="steps: empty"):
        bandits.first_time([], arm=0)
