"""gpt2/world.py: the surroundings of a run, built of given pieces."""

import re
from dataclasses import replace

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.annotators import fit_choice_slope, human_choices
from rlhf_mini.datasets import RatedText
from rlhf_mini.gpt2 import world as module
from rlhf_mini.gpt2.settings import Settings
from rlhf_mini.gpt2.world import build_world, human_slope


@pytest.fixture
def world(make_world):
    return make_world()


def test_a_changed_world_shares_all_but_the_settings(world):
    other = world.change(beta=0.7, steps=3)
    assert (other.settings.beta, other.settings.steps) == (0.7, 3)
    assert other.settings == replace(world.settings, beta=0.7, steps=3)
    assert other.reference is world.reference and other.judges is world.judges
    assert world.settings.beta != 0.7


def test_a_change_to_a_bad_option_is_refused(world):
    with pytest.raises(ValueError, match="beta: want a number > 0"):
        world.change(beta=-1.0)


def test_a_policy_is_a_trainable_copy_of_the_reference(world):
    policy = world.policy()
    for p, q in zip(policy.parameters(), world.reference.parameters(), strict=True):
        assert torch.equal(p, q) and p is not q
        assert p.requires_grad and not q.requires_grad
    assert policy.max_new_tokens == world.settings.new_tokens


def test_a_policy_can_start_from_another_folder(world, tmp_path):
    policy = world.policy()
    policy.model.transformer.ln_f.bias.data += 1
    policy.model.save_pretrained(tmp_path)
    found = world.policy(tmp_path).model.transformer.ln_f.bias
    assert torch.equal(found, policy.model.transformer.ln_f.bias)


@pytest.mark.parametrize("reward", ["model", "gold"])
def test_training_maximises_the_reward_that_was_asked_for(world, reward_model, reward):
    world = world.change(reward=reward)
    rollout = world.reference.sample(world.eval_prompts, seeding.make(0))
    scorer = world.scorer(reward_model)
    want = (reward_model.score if reward == "model" else world.gold())(rollout)
    assert torch.equal(scorer(rollout), want)
    # and everybody else watches, whoever is maximised
    others = set(world.board(reward_model)(rollout))
    others -= {"reward_model"} if reward == "model" else set()
    assert set(scorer.take()) == others | {"distinct_2", "seconds_judges"}


def test_prompts_are_drawn_with_replacement_from_the_training_part(world):
    drawn = world.draw_prompts(300, seeding.make(0))
    train = set(map(tuple, world.train_prompts.tolist()))
    assert set(map(tuple, drawn.tolist())) == train  # 300 draws of some twenty
    assert torch.equal(drawn, world.draw_prompts(300, seeding.make(0)))


RATED = [
    RatedText(str(i), tuple(sorted((i % 5 - 2, i % 3 - 1, i % 7 - 3))))
    for i in range(40)
]


def test_the_human_slope_is_fitted_to_pairs_of_different_sentences(monkeypatch):
    monkeypatch.setattr(module, "load_ratings", lambda: RATED)
    pairs = torch.randint(40, (5_000, 2), generator=(generator := seeding.make(4)))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    want = fit_choice_slope(
        *human_choices([r.ratings for r in RATED], pairs, generator)
    )
    assert human_slope(seeding.make(4), pairs=5_000) == want


def test_the_human_slope_of_the_movie_sentences():
    # real ratings: about 20 raters of each of 10 605 sentences
    slope, error = human_slope(seeding.make(0), pairs=40_000)
    other, _ = human_slope(seeding.make(1), pairs=40_000)
    assert 0.5 < slope < 2.0 and 0 < error < 0.05
    assert abs(slope - other) < 5 * 2**0.5 * error


@pytest.fixture
def pieces(monkeypatch, judges, model_folder):
    """`build_world` with what it reads put in place."""
    prompts = {
        "train": torch.arange(2, 32).view(10, 3),
        "eval": torch.arange(2, 47).view(15, 3),
    }
    monkeypatch.setattr(module, "load_prompts", lambda t, part, n: prompts[part][:, :n])
    monkeypatch.setattr(module, "load_judges", lambda: judges)
    monkeypatch.setattr(module, "human_slope", lambda g: (0.8, 0.01))
    return {"model": str(model_folder), "prompt_length": 3, "new_tokens": 5}


def test_a_world_is_built_from_its_settings(pieces, judges):
    settings = Settings(**pieces, eval_prompts=6, flip=0.1, device="cpu")
    world = build_world(settings)
    assert world.settings is settings and world.judges is judges
    assert world.train_prompts.shape == (10, 3)
    assert world.annotator.slope == 0.8 and world.annotator.flip == 0.1
    assert world.reference.max_new_tokens == 5
    assert not any(p.requires_grad for p in world.reference.parameters())
    assert world.device == torch.device("cpu")
    # mixed before the first are taken: sentences come review by review
    taken = world.eval_prompts[:, 0].tolist()
    assert len(set(taken)) == 6 and taken != list(range(2, 20, 3))
    assert torch.equal(build_world(settings).eval_prompts, world.eval_prompts)


def test_the_held_out_prompts_do_not_depend_on_the_seed_of_the_run(pieces):
    # runs of different seeds are judged on the same prompts
    worlds = [build_world(Settings(**pieces, eval_prompts=6, seed=i)) for i in (0, 1)]
    assert torch.equal(worlds[0].eval_prompts, worlds[1].eval_prompts)


def test_a_device_that_is_not_there_is_named(pieces, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device: 'cuda' was asked for"):
        build_world(Settings(**pieces, device="cuda"))
    assert build_world(Settings(**pieces, device="auto")).device.type == "cpu"


def test_a_model_that_is_not_there_is_named(pieces, tmp_path):
    with pytest.raises(ValueError, match=re.escape(repr(str(tmp_path)))):
        build_world(Settings(**(pieces | {"model": str(tmp_path)}), device="cpu"))
