"""Right answers on a token tree: values, soft values and two optima, by recursion.

A tree of V tokens and T steps has N = 1 + V + … + Vᵀ⁻¹ prefixes, counted breadth
first as in `policies.SequencePolicy`. What belongs to one more token after a prefix
(a law, a reward, a value Q) is [..., N, V]; what belongs to a prefix is [..., N]; what
belongs to a whole sequence is [..., Vᵀ], in the order of `exact.enumerate_sequences`.
The [Vᵗ, V] block of one depth, flattened, is the list of prefixes one deeper, so every
recursion here is a reshape. Leading axes broadcast: many trees cost one call.

Laws are log-probabilities that sum to 1 over the last axis; −inf is allowed, and what
stands behind a token of probability 0 is never looked at. An answer that ends early is
a path that goes on with a certain token: token_world.py.
"""

import torch
from torch import Tensor

from rlhf_mini.checks import check_between, check_finite, check_positive

INF = torch.inf


def prefix_logp(logp: Tensor) -> Tensor:
    """Log-probability that a sequence begins with each prefix.

    log P(s) = Σ_{t < |s|} log π(s_t | s_<t),  0 at the empty prefix

    Args:
      logp: log π(token | prefix), nats, [..., N, V].

    Returns:
      Nats, [..., N], differentiable.

    Raises:
      ValueError: N is not 1 + V + … + Vᵀ⁻¹, or a row is not a law.

    >>> law = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]).log()
    >>> prefix_logp(law).exp()
    tensor([1.0000, 0.2500, 0.7500])
    """
    check_law(logp=logp)
    reached = [torch.zeros_like(logp[..., 0, :1])]
    for block in _levels(logp)[:-1]:
        reached.append((reached[-1][..., None] + block).flatten(-2))
    return torch.cat(reached, -1)


def sequence_logp(logp: Tensor) -> Tensor:
    """Log-probability of every whole sequence: the law of a bandit with Vᵀ arms.

    log π(y) = Σ_t log π(y_t | y_<t)

    Args:
      logp: log π(token | prefix), nats, [..., N, V].

    Returns:
      Nats, [..., Vᵀ], differentiable.

    Raises:
      ValueError: as `prefix_logp`.

    >>> law = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]).log()
    >>> sequence_logp(law).exp()   # 00, 01, 10, 11
    tensor([0.1250, 0.1250, 0.6750, 0.0750])
    """
    last = _levels(logp)[-1]
    return (prefix_logp(logp)[..., -last.shape[-2] :, None] + last).flatten(-2)


def final_rewards(scores: Tensor, vocab: int) -> Tensor:
    """The score of a whole sequence as a reward of its last token, and 0 before.

    Args:
      scores: r(y), reward units, [..., Vᵀ].
      vocab: V ≥ 2.

    Returns:
      Rewards per prefix and token, [..., N, V].

    Raises:
      ValueError: the last axis is not a power of V.

    >>> final_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), vocab=2)
    tensor([[0., 0.],
            [1., 2.],
            [3., 4.]])
    """
    check_finite(scores=scores)
    leaves, prefixes = vocab, 1
    while vocab > 1 and leaves < scores.shape[-1]:
        prefixes, leaves = prefixes + leaves, leaves * vocab
    if leaves != scores.shape[-1]:
        raise ValueError(f"scores: want {vocab}**T of them, found {scores.shape[-1]}")
    last = scores.reshape(*scores.shape[:-1], -1, vocab)
    zeros = last.new_zeros(*last.shape[:-2], prefixes - last.shape[-2], vocab)
    return torch.cat([zeros, last], -2)


def log_ratio(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """k1 of every token: log π − log π_ref, and 0 where π never goes.

    Args:
      logp, ref_logp: log-laws of one shape, nats, [..., N, V].

    Returns:
      Nats, [..., N, V]; times −β it is the penalty that PPO adds to a token's reward.

    Raises:
      ValueError: not laws; shapes differ; π goes where π_ref does not (KL = ∞).

    >>> half, sure = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    >>> log_ratio(sure, half)
    tensor([[0.6931, 0.0000]])
    """
    check_law(logp=logp, ref_logp=ref_logp)
    possible = logp > -INF
    if (possible & (ref_logp == -INF)).any():
        raise ValueError("ref_logp: found -inf where logp is finite, there KL is inf")
    return torch.where(possible, logp - ref_logp, 0.0)


def state_values(logp: Tensor, q: Tensor) -> Tensor:
    """The mean of anything that depends on prefix and token, over the next token.

    V(s) = Σ_a π(a|s) Q(s, a)

    Args:
      logp: log π(token | prefix), nats, [..., N, V].
      q: Q(s, a), any unit, [..., N, V].

    Returns:
      V, the unit of q, [..., N].

    Raises:
      ValueError: not a law, or shapes do not fit.

    >>> state_values(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[4.0, 0.0]]))
    tensor([1.])
    """
    check_law(logp=logp)
    _check_fits(logp, q=q)
    return (logp.exp() * q).sum(-1)


def token_values(logp: Tensor, rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """What one more token is worth if the policy goes on after it: Q of every prefix.

    Q(s, a) = r(s, a) + γ Σ_b π(b|sa) Q(sa, b)
    With a KL penalty put `scores − beta * log_ratio` here; Q then holds the penalty of
    its own token too.

    Args:
      logp: log π(token | prefix), nats, [..., N, V].
      rewards: r(s, a), reward units, [..., N, V].
      gamma: discount per token, 0 ≤ γ ≤ 1.

    Returns:
      Q, reward units, [..., N, V]. The exact advantage is
      `q - state_values(logp, q)[..., None]`.

    Raises:
      ValueError: not a law, shapes do not fit, a reward is not finite, or gamma
        outside [0, 1].

    Source: Sutton and Barto (2018), "Reinforcement learning", eq. 4.4 with Q.

    >>> law = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]).log()
    >>> token_values(law, final_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2))[0]
    tensor([1.5000, 3.1000])
    """
    check_law(logp=logp)
    _check_rewards(logp, rewards)
    check_between(0, 1, gamma=gamma)

    def mean(law, q):
        return (law.exp() * q).sum(-1)

    return _backward(logp, rewards, lambda law, q: gamma * mean(law, q))


def future_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """KL(π‖π_ref) of the tokens that follow a prefix and one more token.

    KL_{>t}(s, a) = E_π[Σ_{later tokens} log π/π_ref | s, a],  0 after the last token

    Args:
      logp, ref_logp: log-laws of one shape, nats, [..., N, V].

    Returns:
      Nats, [..., N, V], never negative.

    Raises:
      ValueError: as `log_ratio`.

    >>> half = torch.tensor([[0.5, 0.5]] * 3).log()
    >>> law = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]).log()
    >>> future_kl(law, half)[0]
    tensor([0.0000, 0.6931])
    """
    own = log_ratio(logp, ref_logp)
    return token_values(logp, own) - own


def soft_values(
    ref_logp: Tensor, rewards: Tensor, beta: float, gamma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What a token is worth if all later ones are chosen by the KL-regularised optimum.

    Q(s, a) = r(s, a) + γ V(sa),  V(s) = β log Σ_a π_ref(a|s) exp(Q(s, a)/β)
    At γ = 1 the value of the empty prefix is β log Z. The own token's KL is not in Q.

    Args:
      ref_logp: log π_ref(token | prefix), nats, [..., N, V].
      rewards: r(s, a), reward units, [..., N, V].
      beta: β, reward units per nat.
      gamma: discount per token; below 1 this is the fixed point of policy gradient
        with discounted advantages, not the optimum of the objective.

    Returns:
      (Q [..., N, V], V [..., N]), reward units, differentiable.

    Raises:
      ValueError: as `token_values`, or beta is not > 0.

    Source: Haarnoja et al. (2017), arXiv 1702.08165, eq. 4 and 5, with a prior.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> q, v = soft_values(half, torch.tensor([[1.0, 2.0]]).log(), beta=1.0)
    >>> v.exp()
    tensor([1.5000])
    """
    check_law(ref_logp=ref_logp)
    _check_rewards(ref_logp, rewards)
    check_positive(beta=beta)
    check_between(0, 1, gamma=gamma)

    def soft(law, q):
        return beta * torch.logsumexp(law + q / beta, -1)

    q = _backward(ref_logp, rewards, lambda law, q: gamma * soft(law, q))
    return q, soft(ref_logp, q)


def soft_policy(
    ref_logp: Tensor, rewards: Tensor, beta: float, gamma: float = 1.0
) -> Tensor:
    """The optimum π* of E[r] − β KL(π‖π_ref), token by token.

    π*(a|s) = π_ref(a|s) exp((Q(s, a) − V(s))/β) with the soft values Q and V.
    Its law over sequences is `exact.optimal_policy` of the summed rewards (γ = 1).

    Args:
      ref_logp, rewards, beta, gamma: as `soft_values`.

    Returns:
      log π*(token | prefix), nats, [..., N, V], differentiable.

    Raises:
      ValueError: as `soft_values`.

    Source: Haarnoja et al. (2017), arXiv 1702.08165, eq. 6, with a prior.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> soft_policy(half, torch.tensor([[1.0, 3.0]]).log(), beta=1.0).exp()
    tensor([[0.2500, 0.7500]])
    """
    q, _ = soft_values(ref_logp, rewards, beta, gamma)
    return torch.log_softmax(ref_logp + q / beta, -1)


def myopic_policy(ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Where policy gradient stops if each token is charged only for its own KL.

    π(a|s) = π_ref(a|s) exp(E_π[R | s, a]/β) / Z(s),  R without any penalty
    The last token is right; earlier ones do not see what KL they will cause.

    Args:
      ref_logp, rewards, beta: as `soft_values`.

    Returns:
      log π(token | prefix), nats, [..., N, V].

    Raises:
      ValueError: as `soft_values`.

    Source: own derivation (notebook 06); the pitfall is that of Tang and Munos
    (2025), arXiv 2506.09477.

    >>> half = torch.tensor([[0.5, 0.5]]).log()
    >>> myopic_policy(half, torch.tensor([[1.0, 3.0]]).log(), beta=1.0).exp()
    tensor([[0.2500, 0.7500]])
    """
    check_law(ref_logp=ref_logp)
    _check_rewards(ref_logp, rewards)
    check_positive(beta=beta)

    def mean_reward(law, q):
        return (torch.softmax(law + q / beta, -1) * q).sum(-1)

    q = _backward(ref_logp, rewards, mean_reward)
    return torch.log_softmax(ref_logp + q / beta, -1)


def check_law(**laws: Tensor) -> None:
    """Raise unless every tensor is a log-law on a whole tree, [..., N, V].

    >>> check_law(logp=torch.zeros(2, 2))
    Traceback (most recent call last):
    ...
    ValueError: logp: want N = 1 + V + … + Vᵀ⁻¹ rows, found shape [2, 2]
    """
    for name, law in laws.items():
        if not isinstance(law, Tensor):
            raise ValueError(f"{name}: want a tensor, found {type(law).__name__}")
        if law.ndim < 2 or law.shape[-1] < 2 or law.shape[-2] not in _sizes(law):
            found = f"found shape {list(law.shape)}"
            raise ValueError(f"{name}: want N = 1 + V + … + Vᵀ⁻¹ rows, {found}")
        check_finite(mask=law != -INF, **{name: law})
        total = law.detach().exp().sum(-1)
        if ((total - 1).abs() > 1e-3).any():
            wrong = total[(total - 1).abs() > 1e-3][0].item()
            found = f"found probabilities that sum to {wrong:.6g}"
            raise ValueError(f"{name}: want a law (log_softmax) in every row, {found}")
    if len({law.shape[-2:] for law in laws.values()}) > 1:
        found = ", ".join(f"{name} {list(x.shape)}" for name, x in laws.items())
        raise ValueError(f"shapes do not fit: {found}")


def _sizes(law: Tensor) -> list[int]:
    """N of the trees of 1, 2, … steps, as far as needed."""
    sizes = [1]
    while sizes[-1] < law.shape[-2]:
        sizes.append(1 + law.shape[-1] * sizes[-1])
    return sizes


def _levels(x: Tensor) -> list[Tensor]:
    """[..., N, V] cut by depth: [..., 1, V], [..., V, V], [..., V², V], …"""
    vocab = x.shape[-1]
    widths = [vocab**t for t in range(len(_sizes(x)))]
    return list(x.split(widths, -2))


def _backward(law, rewards, value):
    """From the last token to the first: q = r + value(the q one deeper)."""
    law, rewards = torch.broadcast_tensors(law, rewards)
    blocks, behind = [], None
    for block, r in zip(_levels(law)[::-1], _levels(rewards)[::-1], strict=True):
        if behind is not None:  # [..., Vᵗ⁺¹] of the prefixes one deeper
            r = r + behind.unflatten(-1, (-1, law.shape[-1]))
        # nothing behind a token of probability 0 matters
        q = torch.where(block > -INF, r, 0.0)
        behind = value(block, q)
        blocks.append(q)
    return torch.cat(blocks[::-1], -2)


def _check_fits(law: Tensor, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or x.shape[-2:] != law.shape[-2:]:
            found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            want = f"[..., {law.shape[-2]}, {law.shape[-1]}]"
            raise ValueError(f"{name}: want {want} like the law, found {found}")


def _check_rewards(law: Tensor, rewards: Tensor) -> None:
    _check_fits(law, rewards=rewards)
    check_finite(rewards=rewards)
