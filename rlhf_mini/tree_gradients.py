"""Exact means and variances of policy-gradient estimators on a token tree.

The policy is one softmax per prefix, so a gradient is [..., N, V] as the logits are
(shapes: exact_trees.py). An estimator is Σ_t c_t ∇log π(y_t|y_<t): a coefficient for
each token of each listed answer. Feed it what `advantages.py` returns for all answers
at once, and its mean and variance come out without sampling.
"""

import torch
from torch import Tensor

from rlhf_mini.checks import check_between, check_finite, check_index, check_ndim
from rlhf_mini.exact_trees import (
    _backward,
    _check_fits,
    check_law,
    prefix_logp,
    state_values,
)


def expected_gradient(logp: Tensor, q: Tensor) -> Tensor:
    """The policy gradient whose coefficients have mean q(s, a) after prefix and token.

    E_π[Σ_t c_t ∇log π(y_t|s_t)] = P(s) π(a|s) [q(s, a) − Σ_b π(b|s) q(s, b)]
    With q of `token_values` it is the true gradient of the expected reward.

    Args:
      logp: log π(token | prefix), nats, [..., N, V].
      q: E[c_t | s_t = s, y_t = a], reward units, [..., N, V].

    Returns:
      Gradient with respect to the logits, reward units, [..., N, V].

    Raises:
      ValueError: not a law, or shapes do not fit.

    Source: Sutton et al. (2000), "Policy gradient methods for reinforcement learning
    with function approximation", theorem 1.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> expected_gradient(half, torch.tensor([[0.0, 1.0]]))
    tensor([[-0.2500,  0.2500]])
    """
    centred = q - state_values(logp, q)[..., None]
    return prefix_logp(logp).exp()[..., None] * logp.exp() * centred


def prefix_numbers(tokens: Tensor, vocab: int) -> Tensor:
    """The row of the tree that belongs to the prefix before each token.

    Args:
      tokens: ids, [M, T].
      vocab: V ≥ 2.

    Returns:
      Numbers, [M, T], int64; 0 for the first token.

    Raises:
      ValueError: not two axes, or an id is not in 0 … V − 1.

    >>> prefix_numbers(torch.tensor([[1, 0, 1]]), vocab=2)   # "", "1", "10"
    tensor([[0, 2, 5]])
    """
    check_ndim(2, tokens=tokens)
    check_index(vocab, tokens=tokens)
    number = torch.zeros_like(tokens[:, 0])
    columns = []
    for t in range(tokens.shape[1]):
        columns.append(number)
        number = vocab * number + 1 + tokens[:, t]
    return torch.stack(columns, 1)


def gradient_moments(
    logp: Tensor, tokens: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and total variance of a one-answer estimate of the policy gradient.

    ĝ(y) = Σ_t c_t(y) ∇log π(y_t|y_<t);  mean E ĝ,  variance E‖ĝ‖² − ‖E ĝ‖²
    ‖ĝ‖² needs no cross terms: the tokens of one answer stand at different prefixes.

    Args:
      logp: log π(token | prefix), nats, [..., N, V].
      tokens: every answer that π can give, once, [M, T]; a short one goes on as in
        `SequencePolicy.tree`.
      coefficients: c_t(y), reward units, [..., M, T]; 0 on pads.

    Returns:
      (mean [..., N, V], variance [...]), reward units and their square.

    Raises:
      ValueError: not a law, shapes do not fit, a coefficient is not finite, or the
        answers' probabilities do not sum to 1.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> r = torch.tensor([[0.0], [2.0]])
    >>> mean, variance = gradient_moments(half, torch.tensor([[0], [1]]), r)
    >>> mean, variance.item()   # ½·(2·√½)² − 2·¼
    (tensor([[-0.5000,  0.5000]]), 0.5)
    """
    check_law(logp=logp)
    nodes, score, p = _scores(logp, tokens)
    if coefficients.shape[-2:] != tokens.shape:
        found = f"coefficients {list(coefficients.shape)}, tokens {list(tokens.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    check_finite(coefficients=coefficients)
    g = coefficients.detach()[..., None] * score  # [..., M, T, V]
    weighted = (p[..., None, None] * g).flatten(-3, -2)
    mean = torch.zeros(*weighted.shape[:-2], *logp.shape[-2:], dtype=weighted.dtype)
    mean = mean.index_add(-2, nodes.flatten(), weighted)
    second = (p * g.square().sum((-2, -1))).sum(-1)
    return mean, second - mean.square().sum((-2, -1))


def leave_one_out_variance(
    logp: Tensor, tokens: Tensor, scores: Tensor, group: int
) -> Tensor:
    """Total variance per answer when the baseline is the mean of the group's others.

    G·Var[ĝ] = Var[S (r − E r)] + (E‖S‖² Var r + ‖∇J‖²)/(G − 1),  S = ∇log π(y)
    The first part is that of the exact mean as baseline; the second is the price of
    estimating it from G − 1 answers.

    Args:
      logp: log π(token | prefix), nats, [..., N, V].
      tokens: every answer, [M, T], as in `gradient_moments`.
      scores: r(y), reward units, [..., M].
      group: G ≥ 2 answers to one prompt.

    Returns:
      G times the variance of the group's mean gradient, [...].

    Raises:
      ValueError: as `gradient_moments`, or group < 2.

    Source: own derivation; ĝ is a U-statistic of order two (Hoeffding 1948).

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> arms, r = torch.tensor([[0], [1]]), torch.tensor([0.0, 2.0])
    >>> leave_one_out_variance(half, arms, r, group=2).item()   # 0 + (½·1 + ½)/1
    1.0
    """
    check_between(2, torch.inf, group=group)
    _, _, p = _scores(logp, tokens)
    _check_answers(tokens, scores)
    centred = scores - (p * scores).sum(-1, keepdim=True)
    ones = torch.ones_like(tokens, dtype=scores.dtype)
    mean, variance = gradient_moments(logp, tokens, centred[..., None] * ones)
    _, spread = gradient_moments(logp, tokens, ones)  # E‖S‖², as E S = 0
    price = spread * (p * centred.square()).sum(-1) + mean.square().sum((-2, -1))
    return variance + price / (group - 1)


def optimal_baseline(logp: Tensor, q: Tensor) -> Tensor:
    """The number to subtract at each prefix that makes the variance smallest.

    b(s) = Σ_a π(a|s) ‖∇log π(a|s)‖² Q(s, a) / Σ_a π(a|s) ‖∇log π(a|s)‖²
    It is V(s) only where all tokens have scores of one length, as at ½, ½: a rare token
    has a long score, so its Q counts more here than in the value.

    Args:
      logp: log π(token | prefix), nats, [..., N, V].
      q: Q(s, a), reward units, [..., N, V].

    Returns:
      b, reward units, [..., N].

    Raises:
      ValueError: not a law, or shapes do not fit.

    Source: Greensmith et al. (2004), "Variance reduction techniques for gradient
    estimates in reinforcement learning", for one softmax.

    >>> law = torch.tensor([[0.9, 0.1]]).log()
    >>> optimal_baseline(law, torch.tensor([[0.0, 1.0]]))   # V = 0.1
    tensor([0.9000])
    """
    check_law(logp=logp)
    _check_fits(logp, q=q)
    pi = logp.exp()
    length = 1 - 2 * pi + pi.square().sum(-1, keepdim=True)  # ‖e_a − π‖²
    value = state_values(logp, length * q)
    # where one token is certain there is no score, and any number will do
    return value / state_values(logp, length).clamp(min=torch.finfo(pi.dtype).tiny)


def expected_gae(
    logp: Tensor, rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """What `advantages.gae` gives on average after a prefix and a token.

    Â(s, a) = δ(s, a) + γλ Σ_b π(b|sa) Â(sa, b),  δ(s, a) = r(s, a) + γ V̂(sa) − V̂(s)
    With the exact values it is the exact advantage at every λ.

    Args:
      logp: log π(token | prefix), nats, [..., N, V].
      rewards: r(s, a), reward units, [..., N, V].
      values: the critic V̂(s), right or wrong, [..., N]; 0 where an answer has ended.
      gamma, lam: as `advantages.gae`.

    Returns:
      E[Â | s, a], reward units, [..., N, V].

    Raises:
      ValueError: as `token_values`, or shapes do not fit.

    Source: Schulman et al. (2016), arXiv 1506.02438, eq. 16, in expectation.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> expected_gae(half, torch.tensor([[0.0, 2.0]]), torch.tensor([0.5]))
    tensor([[-0.5000,  1.5000]])
    """
    check_law(logp=logp)
    _check_fits(logp, rewards=rewards)
    check_finite(rewards=rewards, values=values)
    check_between(0, 1, gamma=gamma, lam=lam)
    if values.shape[-1] != logp.shape[-2]:
        found = f"values {list(values.shape)}, logp {list(logp.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    # V̂ of the prefix that each prefix and token lead to, 0 behind the last token
    deeper = values[..., 1:]
    end = torch.zeros_like(values[..., :1]).expand(
        *values.shape[:-1], logp.shape[-2] * logp.shape[-1] - deeper.shape[-1]
    )
    after = torch.cat([deeper, end], -1).unflatten(-1, logp.shape[-2:])
    delta = rewards + gamma * after - values[..., None]

    def decayed_mean(law, a):
        return gamma * lam * (law.exp() * a).sum(-1)

    return _backward(logp, delta, decayed_mean)


def _check_answers(tokens: Tensor, scores: Tensor) -> None:
    if scores.shape[-1:] != tokens.shape[:1]:
        found = f"scores {list(scores.shape)}, tokens {list(tokens.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    check_finite(scores=scores)


def _scores(logp: Tensor, tokens: Tensor):
    """Rows [M, T], ∇log π of each token [..., M, T, V], and π(y) [..., M]."""
    check_law(logp=logp)
    nodes = prefix_numbers(tokens, logp.shape[-1])
    if int(nodes.max()) >= logp.shape[-2]:
        found = f"tokens {list(tokens.shape)}, logp {list(logp.shape)}"
        raise ValueError(f"shapes do not fit: {found}")
    law = logp[..., nodes, :]
    chosen = torch.nn.functional.one_hot(tokens, logp.shape[-1])
    p = law.gather(-1, tokens.expand(law.shape[:-1])[..., None])[..., 0].sum(-1).exp()
    if ((p.sum(-1) - 1).abs() > 1e-6).any():
        found = f"found probabilities that sum to {p.sum(-1).flatten()[0]:.6g}"
        raise ValueError(f"tokens: want every answer of π once, {found}")
    return nodes, chosen - law.exp(), p
