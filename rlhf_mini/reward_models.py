"""Reward models without a language model: a word list, and a linear one.

The linear one is r(text) = Σ_w θ_w·x_w(text), fitted to preferences, where x are TF-IDF
weights of words and word pairs. A language model has to beat it to be worth its cost.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from torch.nn import functional as F
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from .checks import check_index, check_ndim, check_positive
from .human_pairs import preference


def vader_scores(texts: Sequence[str]) -> Tensor:
    """VADER's compound score of each text, [N], −1 to 1: a word list, no training.

    Source: Hutto and Gilbert (2014), "VADER", ICWSM; the package vaderSentiment.

    >>> (vader_scores(["A great film.", "A terrible film."]) > 0).tolist()
    [True, False]
    """
    judge = SentimentIntensityAnalyzer()
    return torch.tensor([judge.polarity_scores(t)["compound"] for t in texts])


class WordFeatures:
    """TF-IDF of words and word pairs that are in at least three training texts."""

    def __init__(self, texts: Sequence[str], min_texts: int = 3):
        self.vectorizer = TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), min_df=min_texts
        ).fit(texts)

    @property
    def names(self) -> list[str]:
        return self.vectorizer.get_feature_names_out().tolist()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[N, V] sparse float32, rows of length 1 (0 where no word is known)."""
        found = self.vectorizer.transform(texts).tocoo()
        at = torch.stack([torch.as_tensor(i).long() for i in (found.row, found.col)])
        values = torch.as_tensor(found.data, dtype=torch.float32)
        size = found.shape
        made = torch.sparse_coo_tensor(at, values, size, check_invariants=True)
        return made.coalesce()


@dataclass(frozen=True)
class LinearReward:
    """θ [V]: nats of log-odds per unit of each feature."""

    weight: Tensor

    def score(self, features: Tensor) -> Tensor:
        """[N] scores of [N, V] features, nats."""
        return features @ self.weight


def fit_linear_reward(
    features: Tensor,
    shares: Tensor,
    generator: torch.Generator,
    *,
    l2: float = 0.3,
    slate: int = 128,
    steps: int = 60,
) -> LinearReward:
    """Bradley–Terry on the human preferences between all sentences of a slate.

    min_θ mean over slates of −[q_ij log σ(r_i − r_j) + q_ji log σ(r_j − r_i)], i < j
          + l2/(2N)·|θ|²
    The sentences are dealt into slates once, so each meets slate − 1 others.

    Args:
      features: [N, V], dense or sparse.
      shares: rating shares, [N, R] (`human_pairs.rating_shares`).
      l2: weight of the penalty, in units of one sentence.
      steps: of L-BFGS.

    Raises:
      ValueError: lengths differ; l2 ≤ 0; fewer sentences than a slate.

    Source: Bradley and Terry (1952), with r linear in features.
    """
    check_positive(l2=l2, steps=steps, slate=slate)
    check_ndim(2, features=features, shares=shares)
    n = len(shares)
    if features.shape[0] != n or n < slate:
        found = f"features {list(features.shape)}, shares {list(shares.shape)}"
        raise ValueError(f"want one row a sentence, ≥ {slate} of them, found {found}")
    dealt = torch.randperm(n, generator=generator)[: n - n % slate].view(-1, slate)
    q = torch.stack([preference(s, s) for s in shares[dealt].float()])
    upper = torch.triu_indices(slate, slate, 1)
    q = q[:, upper[0], upper[1]]  # [slates, pairs]

    score = _scorer(features)

    def objective(theta):
        r = score(theta)[dealt]
        margin = r[:, upper[0]] - r[:, upper[1]]
        loss = F.binary_cross_entropy_with_logits(margin, q)
        return loss + l2 / (2 * n) * theta.square().sum()

    return LinearReward(_minimise(objective, features.shape[1], steps))


def fit_linear_to_slates(
    features: Tensor,
    slates: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    l2: float = 1.0,
    steps: int = 40,
) -> LinearReward:
    """Maximum likelihood of one label on each slate of K texts, with a penalty.

    min_θ [Σ loss(r of the slate) + l2/2·|θ|²] / labels

    Args:
      features: [N, V], dense or sparse.
      slates: text numbers, best first, [labels, K].
      loss: scores [labels, K], best first, → nats per label, [labels].
      l2: 1/variance of a Gaussian prior on each weight.
      steps: of L-BFGS.

    Raises:
      ValueError: slates is not int64 [labels, K] or names a text that is not there;
        l2 ≤ 0.

    Source: `losses.best_of_k_loss` and `losses.plackett_luce_loss`, r linear.
    """
    check_positive(l2=l2, steps=steps)
    check_ndim(2, features=features, slates=slates)
    check_index(features.shape[0], slates=slates)

    score = _scorer(features)

    def objective(theta):
        total = loss(score(theta)[slates]).sum()
        return (total + l2 / 2 * theta.square().sum()) / len(slates)

    return LinearReward(_minimise(objective, features.shape[1], steps))


class _Product(torch.autograd.Function):
    """rows @ theta, with the gradient of theta by a transpose that is given.

    PyTorch would transpose and sort a sparse matrix anew at every step.
    """

    @staticmethod
    def forward(ctx, theta, rows, transposed):
        ctx.transposed = transposed
        return rows @ theta

    @staticmethod
    def backward(ctx, gradient):
        return ctx.transposed @ gradient, None, None


def _scorer(features: Tensor) -> Callable[[Tensor], Tensor]:
    """theta [V] → scores [N], with rows compressed: fifty times as fast."""
    rows, transposed = features, features.t()
    if features.is_sparse:
        with warnings.catch_warnings():  # that the format is in beta
            warnings.filterwarnings("ignore", message="Sparse CSR")
            rows = features.coalesce().to_sparse_csr()
            transposed = transposed.coalesce().to_sparse_csr()
    return lambda theta: _Product.apply(theta, rows, transposed)


def _minimise(objective: Callable[[Tensor], Tensor], size: int, steps: int) -> Tensor:
    """L-BFGS from 0; the objectives here are convex."""
    theta = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = objective(theta)
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()
