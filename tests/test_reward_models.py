"""reward_models.py on made-up texts whose best weights are known."""

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.human_pairs import pair_accuracy, preference, rating_shares
from rlhf_mini.losses import (
    all_pairs_loss,
    best_of_k_loss,
    bradley_terry_loss,
    plackett_luce_loss,
)
from rlhf_mini.reward_models import (
    LinearReward,
    WordFeatures,
    fit_linear_reward,
    fit_linear_to_slates,
    vader_scores,
)

TEXTS = ["a good film", "a good cast", "a bad film", "good and bad", "a bad cast"]


def binary_world(n=256, seed=0):
    """[n, 3] features of 0 and 1, and rating shares that follow true weights.

    Ratings 0 and 1 only: a share p of ones, with log-odds of the true score.
    """
    g = seeding.make(seed)
    x = (torch.rand(n, 3, generator=g) < 0.5).float()
    true = torch.tensor([1.5, -1.0, 0.0])
    p = torch.sigmoid(x @ true).double()
    return x, torch.stack([1 - p, p], 1), true


def test_the_word_list_scores_each_text_between_minus_one_and_one():
    scores = vader_scores(["Great, wonderful, superb!", "Chairs.", "Horrible!"])
    assert scores[0] > 0.8 and scores[1] == 0 and -1 <= scores[2] < 0


# --- features -----------------------------------------------------------------


def test_rows_have_length_one_and_unknown_words_give_zero():
    features = WordFeatures(TEXTS, min_texts=1)
    rows = features(["a good film", "zebra"]).to_dense()
    torch.testing.assert_close(rows.norm(dim=1), torch.tensor([1.0, 0.0]))


def test_a_word_in_too_few_texts_is_no_feature():
    assert WordFeatures(TEXTS, min_texts=3).names == ["bad", "good"]
    assert "good film" in WordFeatures(TEXTS, min_texts=1).names


def test_the_features_are_those_of_the_training_texts():
    features = WordFeatures(TEXTS, min_texts=1)
    assert features(["brand new words"]).shape[1] == len(features.names)


def test_features_agree_with_a_hand_count():
    """One text of two words with equal document counts: two equal weights."""
    features = WordFeatures(["good bad"] * 3, min_texts=3)
    row = features(["good bad"]).to_dense()[0]
    torch.testing.assert_close(row, torch.full((3,), 3**-0.5))  # good, bad, the pair


# --- the fit ------------------------------------------------------------------


def test_a_linear_reward_is_a_weighted_sum():
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    found = LinearReward(torch.tensor([0.5, 3.0])).score(x)
    assert found.tolist() == [6.5, -3.0]


def test_the_fit_minimises_the_stated_objective():
    """The gradient of the loss, written anew with all_pairs_loss, is 0 there."""
    x, shares, _ = binary_world(96)
    model = fit_linear_reward(x, shares, seeding.make(1), l2=0.5, slate=32, steps=100)
    theta = model.weight.double().requires_grad_()
    dealt = torch.randperm(96, generator=seeding.make(1)).view(3, 32)
    losses = [
        all_pairs_loss(x[d].double() @ theta, preference(shares[d], shares[d]))
        for d in dealt
    ]
    total = torch.stack(losses).mean() + 0.5 / (2 * 96) * theta.square().sum()
    (slope,) = torch.autograd.grad(total, theta)
    assert slope.abs().max() < 1e-4
    # and the penalty counts: without it the same point is no optimum
    bare = slope - 0.5 / 96 * theta.detach()
    assert bare.abs().max() > 1e-3


def test_the_fit_finds_the_signs_and_the_order_of_the_true_weights():
    x, shares, true = binary_world()
    model = fit_linear_reward(x, shares, seeding.make(0), l2=0.01)
    good, bad, nothing = model.weight.tolist()
    assert good > 0.3 and bad < -0.2 and abs(nothing) < 0.05
    assert pair_accuracy(model.score(x), x @ true) > 0.99


def test_turning_the_preferences_round_turns_the_weights_round():
    x, shares, _ = binary_world()
    model, turned = (
        fit_linear_reward(x, s, seeding.make(0)) for s in (shares, shares.flip(1))
    )
    torch.testing.assert_close(model.weight, -turned.weight, atol=1e-3, rtol=0)


def test_more_penalty_gives_smaller_weights():
    x, shares, _ = binary_world()
    sizes = [
        fit_linear_reward(x, shares, seeding.make(0), l2=l2).weight.norm()
        for l2 in (0.1, 10.0, 1000.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_sparse_and_dense_features_give_one_fit():
    x, shares, _ = binary_world()
    a = fit_linear_reward(x, shares, seeding.make(0)).weight
    b = fit_linear_reward(x.to_sparse(), shares, seeding.make(0)).weight
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_words_that_people_like_get_positive_weight():
    texts = ["a good film", "a bad film"] * 40
    ratings = [(2, 3, 1), (-2, -1, -3)] * 40
    features = WordFeatures(texts)
    model = fit_linear_reward(
        features(texts), rating_shares(ratings), seeding.make(0), slate=16
    )
    weight = dict(zip(features.names, model.weight.tolist(), strict=True))
    assert weight["good"] > 0 > weight["bad"] and abs(weight["film"]) < weight["good"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"l2": 0.0}, "l2"),
        ({"steps": 0}, "steps"),
        ({"slate": 300}, "≥ 300"),
        ({"shares": torch.ones(5, 2) / 2}, r"shares \[5, 2\]"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, found):
    x, shares, _ = binary_world()
    given = {"features": x, "shares": shares, "generator": seeding.make(0)} | change
    with pytest.raises(ValueError, match=found):
        fit_linear_reward(**given)


# --- labels on slates ---------------------------------------------------------


def first_wins(scores):
    return best_of_k_loss(scores, torch.zeros(len(scores), dtype=torch.int64))


def in_order(scores):
    order = torch.arange(scores.shape[1]).expand(scores.shape)
    return plackett_luce_loss(scores, order)


def ranked_slates(labels=4000, k=4, seed=0):
    """Slates of K of 256 texts in an order drawn from Plackett–Luce, best first."""
    x, _, true = binary_world()
    g = seeding.make(seed)
    slates = torch.randint(256, (labels, k), generator=g)
    noise = -torch.empty(labels, k).exponential_(generator=g).log()
    place = ((x @ true)[slates] + noise).argsort(-1, descending=True)
    return x, slates.gather(1, place), true


@pytest.mark.parametrize("loss", [first_wins, in_order])
def test_labels_on_slates_give_the_true_weights_back(loss):
    x, slates, true = ranked_slates()
    model = fit_linear_to_slates(x, slates, loss, l2=0.01)
    torch.testing.assert_close(model.weight, true, atol=0.15, rtol=0)


def test_worst_first_gives_the_weights_with_the_other_sign():
    x, slates, true = ranked_slates()
    model = fit_linear_to_slates(x, slates.flip(1), in_order)
    assert (model.weight[:2] * true[:2] < 0).all()


def test_two_ways_to_say_a_pair_are_one_fit():
    x, slates, _ = ranked_slates(k=2)
    a, b = (fit_linear_to_slates(x, slates, f).weight for f in (first_wins, in_order))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_the_prior_is_that_of_the_objective():
    """Gradient of Σ loss + l2/2·|θ|² is 0 at the fit."""
    x, slates, _ = ranked_slates(labels=300)
    model = fit_linear_to_slates(x, slates, in_order, l2=20.0, steps=100)
    theta = model.weight.double().requires_grad_()
    total = in_order((x.double() @ theta)[slates]).sum() + 10 * theta.square().sum()
    (slope,) = torch.autograd.grad(total, theta)
    assert slope.abs().max() < 1
    penalty = 20 * theta.detach()
    assert (slope - penalty).abs().max() > 5  # so it counts


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"slates": torch.tensor([[0, 256]])}, "slates"),
        ({"slates": torch.tensor([0, 1])}, "slates"),
        ({"l2": 0.0}, "l2"),
    ],
)
def test_slates_that_do_not_fit_are_refused(change, found):
    x, slates, _ = ranked_slates(labels=10)
    given = {"slates": slates} | change
    with pytest.raises(ValueError, match=found):
        fit_linear_to_slates(x, loss=in_order, **given)


def test_sparse_and_dense_features_give_the_same_fit():
    generator = torch.Generator().manual_seed(5)
    dense = torch.randn(40, 6, generator=generator)
    dense = dense * (torch.rand(dense.shape, generator=generator) < 0.4)
    slates = torch.randint(40, (300, 2), generator=generator)
    loss = lambda s: bradley_terry_loss(s[:, 0], s[:, 1])  # noqa: E731
    a, b = (
        fit_linear_to_slates(x, slates, loss, l2=0.5, steps=100).weight
        for x in (dense, dense.to_sparse_coo())
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert a.abs().max() > 0.01
