"""The cut-down language model: everything listed, and every number against the list."""

from itertools import product

import pytest
import torch

from rlhf_mini import exact, seeding
from rlhf_mini.gpt2 import enumerable
from rlhf_mini.gpt2.enumerable import make_enumerable
from rlhf_mini.gpt2.models import load_policy
from rlhf_mini.rollouts import collect
from rlhf_mini.training import PPOSettings

PLAIN = PPOSettings(epochs=2, minibatches=2, whiten=False)


@pytest.fixture(scope="module")
def world(make_world):
    return make_world()


@pytest.fixture()
def small(world, reward_model):
    prompt = world.eval_prompts[:1]
    return make_enumerable(world, reward_model, prompt, beta=0.5, tokens=4, length=2)


def test_all_answers_are_listed_once_in_counting_order(small):
    listed = [tuple(a.tolist()) for a in small.answers]
    assert listed == list(product(small.allowed.tolist(), repeat=2))


def test_the_tokens_are_the_likeliest_ones_but_for_end_and_pad(world, small):
    with torch.no_grad():
        logits = world.reference.model(small.prompt).logits[0, -1]
    special = [world.tokenizer.eos_token_id, world.tokenizer.pad_token_id]
    order = [i for i in logits.argsort(descending=True).tolist() if i not in special]
    assert sorted(small.allowed.tolist()) == sorted(order[:4])


def test_the_reference_law_is_a_hand_made_product_of_restricted_softmaxes(world, small):
    for row in range(len(small.answers)):
        ids, total = small.prompt, 0.0
        for token in small.answers[row]:
            with torch.no_grad():
                logits = world.reference.model(ids).logits[0, -1, small.allowed]
            slot = small.allowed.tolist().index(token.item())
            total += logits.double().log_softmax(-1)[slot].item()
            ids = torch.cat([ids, token.view(1, 1)], dim=1)
        assert abs(total - small.ref_logp[row].item()) < 1e-5


def test_the_listed_law_is_the_policy_s_own_log_probability(small):
    prompts = small.prompt.expand(len(small.answers), -1)
    mask = torch.ones_like(small.answers)
    with torch.no_grad():
        want = small.policy.logp(prompts, small.answers, mask).double().sum(-1)
    torch.testing.assert_close(small.logp(small.policy), want, rtol=0, atol=1e-5)


def test_rewards_have_mean_0_and_variance_1_under_the_reference(small):
    law = small.ref_logp.exp()
    mean = (law * small.rewards).sum()
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    variance = (law * small.rewards**2).sum()
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_rewards_rank_answers_as_the_reward_model_does(small, reward_model):
    mask = torch.ones_like(small.answers).bool()
    prompts = small.prompt.expand(len(mask), -1)
    with torch.no_grad():
        raw = reward_model.last(prompts, small.answers, mask)
    assert torch.equal(raw.argsort(), small.rewards.argsort())


def test_its_reward_model_gives_the_standardised_rewards(small, reward_model):
    # PPO's critic starts from it: on another scale its first values would be far off
    config = reward_model.model.config
    before = config.reward_shift, config.reward_scale
    mask = torch.ones_like(small.answers).bool()
    prompts = small.prompt.expand(len(mask), -1)
    with torch.no_grad():
        scores = small.reward_model.last(prompts, small.answers, mask).double()
    torch.testing.assert_close(scores, small.rewards, rtol=0, atol=1e-4)
    assert (config.reward_shift, config.reward_scale) == before


def test_sampled_answers_get_the_listed_reward(small):
    rollout = collect(
        small.policy, small.prompt.expand(64, -1), seeding.make(0), score=small.score
    )
    table = {
        tuple(a.tolist()): r
        for a, r in zip(small.answers, small.rewards.float(), strict=True)
    }
    wanted = torch.stack([table[tuple(t.tolist())] for t in rollout.tokens])
    assert torch.equal(rollout.scores, wanted)


def test_the_attainable_gain_is_beta_log_z(small):
    """J(π_ref) is the mean reward, which is 0."""
    log_z = exact.log_partition(small.ref_logp, small.rewards, small.beta).item()
    assert small.attainable() == pytest.approx(small.beta * log_z, abs=1e-10)
    assert small.share() == pytest.approx(1.0, abs=1e-5)  # float32 forward


@pytest.mark.parametrize("method", ["rloo", "ppo"])
def test_policy_gradients_close_most_of_the_gap(small, method):
    generator = seeding.make(1)
    if method == "rloo":
        shares = list(enumerable.climb_rloo(small, 60, 64, 3e-3, generator))
    else:
        shares = list(enumerable.climb_ppo(small, 40, 64, 3e-3, generator, PLAIN))
    assert shares[-1] < 0.05 < shares[0]


def test_dpo_closes_more_of_the_gap_with_more_pairs(world, reward_model):
    ends = []
    for pairs in (8, 4000):
        prompt = world.eval_prompts[:1]
        small = make_enumerable(
            world, reward_model, prompt, beta=0.5, tokens=4, length=2
        )
        shares = enumerable.climb_dpo(small, pairs, 80, 64, 3e-3, seeding.make(2))
        ends.append(list(shares)[-1])
    assert ends[1] < 0.5 * ends[0]
    assert ends[1] < 0.2


def test_looking_less_often_at_the_gap_changes_nothing_else(world, reward_model):
    def climb(every):
        small = enumerable.make_enumerable(
            world, reward_model, world.eval_prompts[:1], beta=0.5, tokens=3
        )
        return list(enumerable.climb_rloo(small, 6, 8, 1e-3, seeding.make(5), every))

    always, sometimes = climb(1), climb(3)
    assert len(always) == 6 and sometimes == always[2::3]


def test_a_climb_leaves_reference_and_critic_as_they_were(small, reward_model):
    before = [p.clone() for p in reward_model.parameters()]
    ref = small.logp(small.reference)
    mine = small.reward_model.model.config.to_dict()
    list(enumerable.climb_ppo(small, 2, 16, 1e-2, seeding.make(3), PLAIN))
    after = list(reward_model.parameters())
    assert small.reward_model.model.config.to_dict() == mine
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(ref, small.logp(small.reference))


@pytest.fixture()
def plain(world, small):
    """The same weights and tokens as `small.policy`, reading every row."""
    return load_policy(
        world.settings.model, world.tokenizer, max_new_tokens=2, allowed=small.allowed
    )


def test_reading_each_prefix_once_changes_no_law_and_no_gradient(small, plain):
    generator = seeding.make(6)
    order = torch.randint(len(small.answers), (50,), generator=generator)
    answers, weight = small.answers[order], torch.rand(50, 2, generator=generator)
    prompts, mask = small.prompt.expand(50, -1), torch.ones_like(answers).bool()
    found = []
    for policy in (small.policy, plain):
        logp = policy.logp(prompts, answers, mask)
        (weight * logp).sum().backward()
        found.append((logp, [p.grad for p in policy.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


def test_reading_each_prefix_once_draws_the_same_answers(small, plain):
    prompts = small.prompt.expand(200, -1)
    one, other = (p.sample(prompts, seeding.make(7)) for p in (small.policy, plain))
    assert torch.equal(one.tokens, other.tokens) and one.mask.all()
    for name in ("logp", "entropy"):
        a, b = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_one_row_is_read_for_each_prefix():
    def network(prompts, tokens, mask):
        seen.append(len(prompts))
        return tokens.cumsum(1) - tokens + 10 * prompts  # of what stands before

    seen = []
    prompts = torch.tensor([[1], [1], [2], [1], [2]])
    tokens = torch.tensor([[3, 4], [3, 5], [3, 4], [6, 4], [3, 9]])
    found = enumerable.read_once(network, prompts, tokens, tokens > 0)
    assert seen == [3]
    assert found.tolist() == [[10, 13], [10, 13], [20, 23], [10, 16], [20, 23]]


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"tokens": 1}, "≥ 2 tokens"),
        ({"length": 0}, "length ≥ 1"),
        ({"beta": 0.0}, "beta"),
        ({"prompt": torch.zeros(2, 4, dtype=torch.long)}, r"prompt: .*\[2, 4\]"),
    ],
)
def test_bad_input_is_named(world, reward_model, wrong, words):
    options = {"prompt": world.eval_prompts[:1], "beta": 1.0} | wrong
    with pytest.raises(ValueError, match=words):
        make_enumerable(world, reward_model, **options)
