"""information.py against brute force: score outer products over listed outcomes."""

from itertools import combinations, permutations

import pytest
import torch

from rlhf_mini.information import (
    best_of_k_information,
    of_hardest_contrasts,
    pair_information,
    per_contrast,
    ranking_information,
)
from rlhf_mini.losses import best_of_k_loss, bradley_terry_loss, plackett_luce_loss

SCORES = torch.tensor([1.5, 0.2, -0.7, -2.0], dtype=torch.float64)  # no symmetry
KINDS = {
    "pair": pair_information,
    "best": best_of_k_information,
    "ranking": ranking_information,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def outcomes(kind, r):
    """(chance of being asked, log-probability of the answer) of everything that may
    come out, from the losses of this library."""
    k = len(r)
    if kind == "best":
        for b in range(k):
            yield 1.0, -best_of_k_loss(r[None], torch.tensor([b]))[0]
    if kind == "ranking":
        for order in permutations(range(k)):
            yield 1.0, -plackett_luce_loss(r[None], torch.tensor([order]))[0]
    if kind == "pair":
        pairs = list(combinations(range(k), 2))
        for i, j in pairs:
            for won, lost in ((i, j), (j, i)):
                logp = -bradley_terry_loss(r[won][None], r[lost][None])[0]
                yield 1 / len(pairs), logp


def by_enumeration(kind, scores):
    """E[∇log P ∇log Pᵀ]: the definition, with autograd's gradients."""
    r = scores.clone().requires_grad_()
    total = torch.zeros(len(r), len(r), dtype=r.dtype)
    for asked, logp in outcomes(kind, r):
        (g,) = torch.autograd.grad(logp, r, retain_graph=True)
        total += asked * logp.exp().detach() * torch.outer(g, g)
    return total


@every_kind
@pytest.mark.parametrize("k", [2, 3, 4])
def test_information_is_the_mean_square_of_the_score(kind, k):
    scores = SCORES[:k]
    torch.testing.assert_close(
        KINDS[kind](scores), by_enumeration(kind, scores), rtol=1e-10, atol=1e-12
    )


@every_kind
def test_information_is_minus_the_mean_curvature(kind):
    """The other definition of Fisher's information, from second derivatives."""

    def mean_logp(r):  # weights are held at SCORES, only log P moves
        return sum(
            asked * logp.exp().item() * moved
            for (asked, logp), (_, moved) in zip(
                outcomes(kind, SCORES), outcomes(kind, r), strict=True
            )
        )

    curvature = torch.autograd.functional.hessian(mean_logp, SCORES)
    torch.testing.assert_close(KINDS[kind](SCORES), -curvature, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "exact"), [("pair", 1 / 6), ("best", 1 / 4), ("ranking", 23 / 36)]
)
def test_four_equals_give_one_sixth_one_quarter_and_23_36ths(kind, exact):
    found = per_contrast(KINDS[kind](torch.zeros(4, dtype=torch.float64)))
    assert abs(found.item() - exact) < 1e-12


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_ranking_of_equals_is_worth_k_minus_the_harmonic_number(k):
    harmonic = sum(1 / i for i in range(1, k + 1))
    found = per_contrast(ranking_information(torch.zeros(k, dtype=torch.float64)))
    assert abs(found.item() - (k - harmonic) / (k - 1)) < 1e-12


def test_with_two_answers_all_kinds_are_one():
    two = SCORES[1:3]
    for kind in KINDS.values():
        torch.testing.assert_close(kind(two), pair_information(two))


@every_kind
def test_a_constant_added_to_all_scores_changes_nothing(kind):
    torch.testing.assert_close(KINDS[kind](SCORES + 7), KINDS[kind](SCORES))


@every_kind
def test_the_constant_itself_is_never_seen(kind):
    seen = KINDS[kind](SCORES) @ torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(seen, torch.zeros_like(seen), rtol=0, atol=1e-12)


@every_kind
def test_slates_can_be_stacked(kind):
    both = torch.stack([SCORES, SCORES.flip(0) / 2])
    found = KINDS[kind](both)
    assert found.shape == (2, 4, 4)
    for one, r in zip(found, both, strict=True):
        torch.testing.assert_close(one, KINDS[kind](r))


@every_kind
def test_renaming_the_answers_renames_the_information(kind):
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        KINDS[kind](SCORES[order]), KINDS[kind](SCORES)[order][:, order]
    )


def test_a_ranking_tells_more_than_its_first_place():
    more = ranking_information(SCORES) - best_of_k_information(SCORES)
    assert torch.linalg.eigvalsh(more)[1] > 0  # the first belongs to the constant


def test_far_apart_the_best_of_four_tells_less_than_a_pair_about_the_losers():
    """One slate asked again and again: the reverse of what holds among equals."""
    pair, best = (of_hardest_contrasts(KINDS[k](SCORES)) for k in ("pair", "best"))
    assert best < 0.9 * pair


def test_far_apart_the_best_of_four_still_tells_more_on_average():
    pair, best = (per_contrast(KINDS[k](SCORES)) for k in ("pair", "best"))
    assert best > 1.5 * pair


def test_per_contrast_is_the_mean_of_what_is_seen():
    values = torch.linalg.eigvalsh(pair_information(SCORES))[1:]
    torch.testing.assert_close(per_contrast(pair_information(SCORES)), values.mean())


def test_the_hardest_contrasts_decide_the_harmonic_mean():
    values = torch.linalg.eigvalsh(pair_information(SCORES))[1:]
    found = of_hardest_contrasts(pair_information(SCORES))
    torch.testing.assert_close(found, len(values) / values.reciprocal().sum())
    assert found < per_contrast(pair_information(SCORES))


def test_the_harmonic_mean_predicts_the_variance_of_contrasts():
    """Mean over unit contrasts of the pseudo-inverse's quadratic form."""
    information = ranking_information(SCORES)
    inverse = torch.linalg.pinv(information)
    basis = torch.linalg.eigh(information).eigenvectors[:, 1:]
    variance = torch.einsum("ik,ij,jk->k", basis, inverse, basis).mean()
    torch.testing.assert_close(1 / of_hardest_contrasts(information), variance)


def test_among_equals_both_means_are_one_number():
    zeros = torch.zeros(4, dtype=torch.float64)
    for kind in KINDS.values():
        torch.testing.assert_close(
            per_contrast(kind(zeros)), of_hardest_contrasts(kind(zeros))
        )


def test_what_cannot_be_seen_makes_the_harmonic_mean_zero():
    """Two pairs that are never compared with each other."""
    one = torch.tensor([[0.25, -0.25], [-0.25, 0.25]])
    both = torch.block_diag(one, one)
    assert of_hardest_contrasts(both) == 0
    assert per_contrast(both).item() == pytest.approx(1 / 3)


@every_kind
@pytest.mark.parametrize(
    ("scores", "found"),
    [
        (torch.zeros(1), r"\[1\]"),
        (torch.zeros(4, dtype=torch.int64), "int64"),
        (torch.tensor([0.0, torch.nan]), "scores"),
    ],
)
def test_bad_scores_are_refused_by_name(kind, scores, found):
    with pytest.raises(ValueError, match=found):
        KINDS[kind](scores)


def test_too_many_rankings_are_refused():
    with pytest.raises(ValueError, match="K ≤ 7.*K = 8"):
        ranking_information(torch.zeros(8))


@pytest.mark.parametrize(
    ("information", "found"),
    [
        (torch.zeros(2, 3), r"\[2, 3\]"),
        (torch.eye(3), "sum to 0"),
        (torch.full((2, 2), torch.nan), "information"),
    ],
)
@pytest.mark.parametrize("mean", [per_contrast, of_hardest_contrasts])
def test_what_is_no_information_is_refused(mean, information, found):
    with pytest.raises(ValueError, match=found):
        mean(information)
