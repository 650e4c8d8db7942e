"""token_world.py: listed answers are all answers; the environment pays what the list
says; the tabular policy and the training steps run on it."""

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlhf_mini import exact, seeding, token_world
from rlhf_mini.exact_trees import (
    soft_policy,
    state_values,
    token_values,
)
from rlhf_mini.kl import AdaptiveKL
from rlhf_mini.rollouts import collect
from rlhf_mini.token_world import ENV_ID, TokenWorld, TokenWorldEnv, feeling, negations
from rlhf_mini.training import PPOSettings, ppo_step, rloo_step
from rlhf_mini.tree_gradients import gradient_moments

F64 = torch.float64
WORLD = negations()


def fixed_length():
    """Three words, no end, two steps: nine answers."""
    logits = torch.randn(1, 4, 3, generator=seeding.make(0), dtype=F64)
    return TokenWorld("abc", 2, lambda s, words: words.count("a") - 0.5, logits)


worlds = pytest.mark.parametrize(
    "world", [WORLD, negations(length=2), fixed_length()], ids=["4", "2", "fixed"]
)

# ------------------------------------------------------------------------- the list


def test_answers_are_those_that_stop_at_their_end():
    """By the slow way: grow answers word by word."""
    growing, listed = [()], set()
    for _ in range(4):
        grown = [a + (w,) for a in growing for w in range(4)]
        listed |= {a for a in grown if a[-1] == 0}
        growing = [a for a in grown if a[-1] != 0]
    listed |= set(growing)
    found = {
        tuple(row[m].tolist()) for row, m in zip(WORLD.tokens, WORLD.mask, strict=True)
    }
    assert found == listed and len(WORLD.tokens) == len(listed) == 121


@worlds
def test_the_probabilities_of_the_listed_answers_sum_to_one(world):
    policy = world.policy(copies=2)
    policy.logits.data += torch.randn(
        policy.logits.shape, generator=seeding.make(1), dtype=F64
    )
    law = world.law(policy.tree())
    torch.testing.assert_close(law.exp().sum(-1), torch.ones(len(law), dtype=F64))


@worlds
def test_the_law_of_answers_is_the_policys_own_log_probability(world):
    policy = world.policy()
    policy.logits.data += torch.randn(
        policy.logits.shape, generator=seeding.make(1), dtype=F64
    )
    for s, law in enumerate(world.law(policy.tree())):
        asked = torch.full((len(world.tokens),), s)
        slow = policy.logp(asked, world.tokens, world.mask).sum(-1)
        torch.testing.assert_close(law, slow)


@worlds
def test_rewards_on_the_tree_have_the_mean_of_the_listed_scores(world):
    tree = world.reference().tree()
    v = state_values(tree, token_values(tree, world.rewards))[:, 0]
    right = (world.law(tree).exp() * world.scores).sum(-1)
    torch.testing.assert_close(v, right)


def test_each_answer_is_paid_once_and_by_its_last_word():
    policy = WORLD.policy()
    paid = WORLD.rewards[:, policy.nodes(WORLD.tokens), WORLD.tokens]
    torch.testing.assert_close(paid.sum(-1), WORLD.scores)
    last = WORLD.mask.sum(-1) - 1
    at_last = paid.gather(-1, last.expand(2, -1)[..., None])[..., 0]
    torch.testing.assert_close(at_last, WORLD.scores)


@worlds
def test_the_optimum_on_the_tree_is_the_optimum_over_the_list(world):
    tree = world.reference().tree()
    found = world.law(soft_policy(tree, world.rewards, beta=0.5))
    right = exact.optimal_policy(world.law(tree), world.scores, beta=0.5)
    torch.testing.assert_close(found, right)


def test_answers_know_their_place():
    order = torch.randperm(121, generator=seeding.make(0))
    found = WORLD.answer_numbers(WORLD.tokens[order])
    assert torch.equal(found, order)


def test_what_goes_on_behind_its_end_is_no_answer():
    with pytest.raises(ValueError, match="row 1 goes on behind its end"):
        WORLD.answer_numbers(torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0]]))


@pytest.mark.parametrize(
    "words,value",
    [
        ("good .", 1),
        ("not good .", -1),
        ("very not good .", -2),
        ("not not very good", 2),
        ("not good good", 0),
        ("very .", 0),
        ("good very good .", 3),
    ],
)
def test_a_feeling_is_what_the_words_say(words, value):
    assert feeling(words.split()) == value


def test_the_prompt_decides_which_feeling_is_paid():
    assert WORLD.prompts == ("praise", "complain")
    texts = [WORLD.text(row) for row in WORLD.tokens]
    at = texts.index("not very good .")
    assert WORLD.scores[:, at].tolist() == [-2.0, 2.0]
    assert torch.equal(WORLD.scores[0], -WORLD.scores[1])


def test_the_reference_follows_its_table():
    tree = WORLD.reference().tree()[0].exp()
    nodes = WORLD.policy().nodes(torch.tensor([[2, 3, 1, 0]]))[0]
    for node, before in zip(nodes, ["", "very", "not", "good"], strict=True):
        right = torch.tensor(token_world.AFTER[before], dtype=F64)
        torch.testing.assert_close(tree[node], right)


# ----------------------------------------------------------------- policies and steps


def test_samples_end_where_their_mask_ends():
    rollout = WORLD.policy().sample(WORLD.ask(500), seeding.make(0))
    ended = (rollout.tokens == 0) & rollout.mask
    assert (ended.sum(-1) <= 1).all() and ended.any(-1).double().mean() > 0.5
    assert (rollout.tokens[~rollout.mask] == 0).all()
    assert not rollout.logp[~rollout.mask].any()
    assert not rollout.entropy[~rollout.mask].any()
    WORLD.answer_numbers(rollout.tokens)  # all of them are on the list


def test_samples_have_the_listed_law():
    rollout = WORLD.policy().sample(WORLD.ask(20_000), seeding.make(0))
    law = WORLD.law(WORLD.reference().tree())[0].exp()
    share = WORLD.answer_numbers(rollout.tokens).bincount(minlength=121) / 40_000
    assert (share - law).abs().max() < 4 * (0.25 / 40_000) ** 0.5


def test_the_first_forward_repeats_the_log_probabilities_of_sampling():
    policy = WORLD.policy()
    r = policy.sample(WORLD.ask(50), seeding.make(0))
    again = policy.logp(r.prompts, r.tokens, r.mask)
    torch.testing.assert_close(again, r.logp)
    slow = WORLD.law(policy.tree())[r.prompts, WORLD.answer_numbers(r.tokens)]
    torch.testing.assert_close(r.logp.sum(-1), slow)


def test_a_rollout_is_paid_by_its_prompt_in_every_copy():
    rollout = WORLD.policy(copies=3).sample(WORLD.ask(4, copies=3), seeding.make(0))
    scores = WORLD.score(rollout)
    for i in range(24):
        words = WORLD.text(rollout.tokens[i]).split()
        sign = 1 if (i // 4) % 2 == 0 else -1
        assert scores[i] == sign * feeling(words)


def test_copies_start_alike_and_train_apart():
    policy = WORLD.policy(copies=2)
    assert torch.equal(policy.logits[:2], policy.logits[2:])
    r = policy.sample(torch.tensor([3, 3]), seeding.make(0))
    policy.logp(r.prompts, r.tokens, r.mask).sum().backward()
    assert policy.logits.grad[3].any() and not policy.logits.grad[:3].any()


def test_pads_get_no_gradient():
    policy = WORLD.policy()
    end_first = torch.zeros(1, 4, dtype=torch.long)
    policy.logp(torch.tensor([0]), end_first, end_first == 0).sum().backward()
    assert policy.logits.grad[0, 0].any() and not policy.logits.grad[0, 1:].any()


def test_the_reference_is_frozen():
    assert not any(p.requires_grad for p in WORLD.reference().parameters())


def still(beta):
    """A controller that leaves β alone."""
    return AdaptiveKL(beta, target=1.0, horizon=1e12)


def test_ppo_comes_near_the_optimum():
    policy, critic, ref = WORLD.policy(), WORLD.critic(), WORLD.reference()
    parts = [(policy, 0.1), (critic, 0.2)]
    adam = torch.optim.Adam([{"params": m.parameters(), "lr": r} for m, r in parts])
    settings = PPOSettings(
        lam=1.0, minibatches=1, whiten=False, max_grad_norm=1e9, value_clip=1e9,
        value_weight=1.0,
    )  # fmt: skip
    law = WORLD.law(ref.tree())
    generator, beta = seeding.make(0), still(0.5)
    for _ in range(60):
        row = ppo_step(policy, critic, ref, WORLD.score, WORLD.ask(64), adam, beta,
                       settings, generator)  # fmt: skip
        assert row["first_ratio_error"] < 1e-12
    gap = exact.gap(WORLD.law(policy.tree()), law, WORLD.scores, 0.5)
    assert (gap < 0.15).all(), gap  # 1.4 and 1.9 at the start
    assert 1 <= row["length"] <= 4 and row["kl_to_ref"] > 1


def test_rloo_climbs():
    policy, ref = WORLD.policy(), WORLD.reference()
    adam = torch.optim.Adam(policy.parameters(), lr=0.1)
    settings, generator = PPOSettings(max_grad_norm=1e9), seeding.make(0)
    law = WORLD.law(ref.tree())
    for _ in range(60):
        rloo_step(policy, ref, WORLD.score, WORLD.ask(4), adam, 0.5, 16, settings,
                  generator)  # fmt: skip
    gap = exact.gap(WORLD.law(policy.tree()), law, WORLD.scores, 0.5)
    assert (gap < 0.3).all(), gap


def test_the_mean_update_of_many_samples_is_the_exact_gradient():
    """Sampled REINFORCE against enumeration, on masked answers of unequal length."""
    policy = WORLD.policy()
    r = collect(policy, WORLD.ask(40_000), seeding.make(0), score=WORLD.score)
    logp = policy.logp(r.prompts, r.tokens, r.mask)
    (2 * (logp * r.scores[:, None]).sum(-1).mean()).backward()
    c = WORLD.scores[..., None] * WORLD.mask
    mean, variance = gradient_moments(policy.tree().detach(), WORLD.tokens, c)
    off = (policy.logits.grad - mean).square().sum((-2, -1))
    assert (off < 2 * variance / 40_000).all()


# -------------------------------------------------------------------- the environment


@pytest.mark.parametrize("arguments", [{}, {"world": fixed_length()}])
def test_the_environment_is_clean_under_gymnasiums_own_checker(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ENV_ID, **arguments).unwrapped)


def test_the_environment_is_made_by_name_where_the_module_was_not_imported():
    name = f"rlhf_mini.token_world:{ENV_ID}"
    code = f"import gymnasium as g; print(g.make('{name}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "TokenWorld" in done.stdout, done.stderr


@worlds
def test_the_environment_pays_what_the_list_says(world):
    env = gym.make(ENV_ID, world=world)
    for prompt in range(len(world.prompts)):
        for number, (row, mask) in enumerate(
            zip(world.tokens, world.mask, strict=True)
        ):
            env.reset(options={"prompt": prompt})
            steps = [env.step(int(a)) for a in row[mask]]
            ends = [ended for _, _, ended, _, _ in steps]
            assert ends == [False] * (len(steps) - 1) + [True]
            paid = [reward for _, reward, *_ in steps]
            assert paid[-1] == world.scores[prompt, number] and not any(paid[:-1])


def test_the_observation_is_the_prompt_and_the_words_so_far():
    env = TokenWorldEnv(render_mode="ansi")
    env.reset(seed=0, options={"prompt": 1})
    env.step(3)
    observation, *_ = env.step(np.int64(1))
    assert observation["prompt"] == 1
    assert observation["tokens"].tolist() == [3, 1, 4, 4]
    assert env.render() == "complain: not good"


def test_a_seed_chooses_the_prompt_and_both_turn_up():
    env = TokenWorldEnv()
    first = [env.reset(seed=s)[0]["prompt"] for s in range(20)]
    again = [env.reset(seed=s)[0]["prompt"] for s in range(20)]
    assert first == again and set(first) == {0, 1}


def test_the_environment_names_wrong_arguments():
    env = TokenWorldEnv()
    env.reset(seed=0)
    for action in (4, -1, 0.5, "good"):
        with pytest.raises(ValueError, match="action: want 0 to 3"):
            env.step(action)
    env.step(0)
    with pytest.raises(ValueError, match="the answer has ended"):
        env.step(1)
    with pytest.raises(ValueError, match="prompt: want 0"):
        env.reset(options={"prompt": 2})
    assert env.render() is None


@pytest.mark.parametrize(
    "change,message",
    [
        ({"words": ["a"]}, "vocab"),
        ({"end": 2}, "end: want 0"),
        ({"ref_logits": torch.zeros(1, 3, 3)}, r"want shape \[1, 3, 2\]"),
        ({"ref_logits": torch.full((1, 3, 2), torch.nan)}, "ref_logits: the largest"),
        ({"score": lambda s, words: float("nan")}, r"score\(0, .*: want a finite"),
        ({"length": 0}, "length"),
    ],
)
def test_a_wrong_world_is_refused(change, message):
    arguments = {
        "words": ["a", "b"],
        "length": 2,
        "score": lambda s, words: 1.0,
        "ref_logits": torch.zeros(1, 3, 2),
        "end": 0,
    }
    with pytest.raises(ValueError, match=message):
        TokenWorld(**{**arguments, **change})
