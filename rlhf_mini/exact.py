"""The right answers, by enumeration: what every method of the course is held against.

The world is a list of K outcomes: the arms of a bandit, or all V**T sequences of a
token world. Laws are log-probabilities [..., K] that sum to 1 over the last axis;
leading axes broadcast, so a path of policies [steps, K] is scored in one call.
−inf in `ref_logp` means "outside the support", and rewards there are never looked
at. Logits are not laws: pass log_softmax. Use float64 where digits matter.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from rlhf_mini.checks import (
    check_finite,
    check_law,
    check_log_values,
    check_outcomes,
    check_positive,
)

INF = math.inf


def log_partition(ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """Log of the partition function, log Z; β log Z is the best attainable objective.

    log Z = log Σ_y π_ref(y) exp(r(y)/β)
    This is log Z, not β log Z: multiply by β to compare it with `objective`.

    Args:
      ref_logp: log π_ref, nats, [..., K]; may be −inf.
      rewards: r, reward units, [..., K].
      beta: β, reward units per nat.

    Returns:
      log Z, [...], differentiable.

    Raises:
      ValueError: shapes do not fit; ref_logp is not a law; a reward inside the
        support is not finite; beta is not > 0.

    Source: Rafailov et al. (2023), "Direct preference optimization", eq. 4.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> round(log_partition(half, torch.tensor([1.0, 2.0]).log(), 1.0).exp().item(), 4)
    1.5
    """
    rewards = _checked(ref_logp, rewards, beta)
    return torch.logsumexp(ref_logp + rewards / beta, -1)


def optimal_policy(ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """The law π* that maximises E[r] − β KL(π‖π_ref), as log-probabilities.

    π*(y) = π_ref(y) exp(r(y)/β) / Z
    A constant added to all rewards changes nothing; scaling them is scaling 1/β.

    Args:
      ref_logp: log π_ref, nats, [..., K]; −inf stays −inf in π*.
      rewards: r, reward units, [..., K].
      beta: β, reward units per nat; larger keeps π* closer to π_ref.

    Returns:
      log π*, nats, [..., K], differentiable.

    Raises:
      ValueError: as `log_partition`.

    Source: Ziegler et al. (2019), "Fine-tuning language models from human
    preferences", §2; Rafailov et al. (2023), eq. 4.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> optimal_policy(half, torch.tensor([1.0, 3.0]).log(), beta=1.0).exp()
    tensor([0.2500, 0.7500])
    """
    rewards = _checked(ref_logp, rewards, beta)
    return torch.log_softmax(ref_logp + rewards / beta, -1)


def objective(logp: Tensor, ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """The RLHF objective J(π): expected reward minus β times the KL to π_ref.

    J(π) = Σ_y π(y) [r(y) − β log(π(y)/π_ref(y))] = β log Z − β KL(π‖π*)
    It is −inf as soon as π puts mass where π_ref has none.

    Args:
      logp: log π, nats, [..., K]; may be −inf (0 log 0 = 0).
      ref_logp: log π_ref, nats, [..., K]; may be −inf.
      rewards: r, reward units, [..., K].
      beta: β, reward units per nat.

    Returns:
      J, reward units, [...], differentiable.

    Raises:
      ValueError: as `log_partition`, or logp is not a law.

    Source: Ziegler et al. (2019), eq. 2, in expectation.

    >>> half, sure = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0]).log()
    >>> r = torch.tensor([0.0, 1.0])
    >>> round(objective(sure, half, r, beta=0.5).item(), 4)   # 1 − ½ ln 2
    0.6534
    """
    rewards = _checked(ref_logp, rewards, beta, logp=logp)
    return (logp.exp() * rewards).sum(-1) - beta * _kl(logp, ref_logp)


def gap(logp: Tensor, ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """How far a policy is from the optimum: J(π*) − J(π), never negative.

    gap(π) = β KL(π‖π*) = β log Z − J(π)
    Computed as the KL, so it keeps its digits when the difference would lose them.

    Args:
      logp, ref_logp, rewards, beta: as `objective`.

    Returns:
      The gap, reward units, [...], differentiable; inf if π leaves the support.

    Raises:
      ValueError: as `objective`.

    Source: completing the square in Rafailov et al. (2023), appendix A.1.

    >>> half, r = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 3.0]).log()
    >>> round(gap(half, half, r, beta=1.0).item(), 4)   # ½ ln 2 + ½ ln ⅔
    0.1438
    """
    _checked(ref_logp, rewards, beta, logp=logp)
    return beta * _kl(logp, optimal_policy(ref_logp, rewards, beta))


def objective_gradient(
    logits: Tensor, ref_logp: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """The exact gradient of J with respect to the logits of a softmax policy.

    ∂J/∂θ_y = π(y) [f(y) − E_π f],  f(y) = r(y) − β log(π(y)/π_ref(y))
    The θ inside f adds nothing, because the score has mean zero: notebook 04.

    Args:
      logits: θ, [..., K]; any finite numbers, −inf for an action that is masked out.
      ref_logp, rewards, beta: as `objective`.

    Returns:
      ∇J, reward units, [..., K].

    Raises:
      ValueError: as `log_partition`; logits hold NaN or +inf; or the policy puts
        mass where π_ref has none, where J = −inf.

    Source: Sutton and Barto (2018), "Reinforcement learning", eq. 2.12, with
    f for the reward.

    >>> half, r = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0])
    >>> objective_gradient(torch.zeros(2), half, r, beta=1.0)   # ½ (r − ½)
    tensor([-0.2500,  0.2500])
    """
    check_log_values(logits=logits)
    logp = torch.log_softmax(logits, -1)
    rewards = _checked(ref_logp, rewards, beta, logp=logp)
    if ((logp > -INF) & (ref_logp == -INF)).any():
        raise ValueError("logits: found mass where ref_logp is -inf, there J is -inf")
    f = rewards - beta * torch.where(logp > -INF, logp - ref_logp, 0.0)
    return logp.exp() * (f - (logp.exp() * f).sum(-1, keepdim=True))


def best_of_n(ref_logp: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The law of the best of n draws from π_ref, ties broken at random.

    P(y) = [F(r)ⁿ − F₋(r)ⁿ] π_ref(y) / π_ref(level of y),
    with F(r) = P_ref(reward ≤ r) and F₋(r) = P_ref(reward < r).
    Not π*: it is a tilt by the rank of the reward, whatever the reward's size.

    Args:
      ref_logp: log π_ref, nats, [..., K]; may be −inf.
      rewards: r, [..., K]; only their order and ties matter.
      n: draws, ≥ 1; n = 1 gives π_ref back.

    Returns:
      Log-law, nats, [..., K], no gradient.

    Raises:
      ValueError: as `log_partition`, or n is not a whole number ≥ 1.

    Source: Beirami et al. (2024), "Theoretical guarantees on the best-of-n
    alignment policy", arXiv 2401.01879.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> best_of_n(half, torch.tensor([0.0, 1.0]), n=2).exp()
    tensor([0.2500, 0.7500])
    """
    _check_whole(n=n)
    rewards = _checked(ref_logp, rewards, beta=1.0)
    ref_logp, rewards = torch.broadcast_tensors(ref_logp.detach(), rewards.detach())
    # the mass of every reward level, worst level first; unused slots hold −inf
    level = _levels(rewards)
    none = torch.full_like(ref_logp, -INF)
    top = none.scatter_reduce(-1, level, ref_logp, "amax")
    top = top.masked_fill(top == -INF, 0.0)
    scaled = (ref_logp - top.gather(-1, level)).exp()
    mass = torch.zeros_like(scaled).scatter_add(-1, level, scaled).log() + top
    # log F from whichever side keeps its digits
    below = torch.cat([none[..., :1], mass.logcumsumexp(-1)], -1)
    above = torch.cat([mass.flip(-1).logcumsumexp(-1).flip(-1), none[..., :1]], -1)
    above = above.clamp(max=0.0)
    log_f = torch.where(above < -math.log(2), torch.log1p(-above.exp()), below)
    log_f, log_f_minus = log_f[..., 1:], log_f[..., :-1]
    # log(Fⁿ − F₋ⁿ) = n log F + log(1 − (F₋/F)ⁿ)
    step = torch.where(
        mass - log_f < -math.log(2),
        torch.log1p(-(mass - log_f).exp().clamp(max=0.5)),
        log_f_minus - log_f,
    )
    law = n * log_f + torch.log(-torch.expm1(n * step))
    law = (law - mass).gather(-1, level) + ref_logp
    return law.masked_fill(ref_logp == -INF, -INF)


def best_of_n_kl(ref_logp: Tensor, rewards: Tensor, n: int) -> Tensor:
    """The exact KL of best-of-n to π_ref, ties and repeated draws included.

    KL(bon‖π_ref) = Σ_y bon(y) log(bon(y)/π_ref(y)) ≤ log n − (n−1)/n
    On finitely many outcomes the bound is strict, since a repeated draw is a tie.

    Args:
      ref_logp, rewards, n: as `best_of_n`.

    Returns:
      KL, nats, [...], no gradient.

    Raises:
      ValueError: as `best_of_n`.

    Source: Beirami et al. (2024), arXiv 2401.01879.

    >>> half = torch.tensor([0.5, 0.5]).log()
    >>> kl = best_of_n_kl(half, torch.tensor([0.0, 1.0]), n=2)
    >>> round(kl.item(), 4)   # ¼ ln ½ + ¾ ln 3/2
    0.1308
    """
    return _kl(best_of_n(ref_logp, rewards, n), ref_logp.detach())


def best_of_n_kl_bound(n: int) -> float:
    """The upper bound on best-of-n's KL, which many papers quote as its value.

    KL(bon‖π_ref) ≤ log n − (n−1)/n
    An equality only if the reward under π_ref has no atoms (a continuous law).

    Args:
      n: draws, ≥ 1.

    Returns:
      The bound, nats.

    Raises:
      ValueError: n is not a whole number ≥ 1.

    Source: Beirami et al. (2024), arXiv 2401.01879.

    >>> round(best_of_n_kl_bound(2), 4)   # ln 2 − ½
    0.1931
    """
    _check_whole(n=n)
    return math.log(n) - (n - 1) / n


def best_of_n_weights(rewards: Tensor, n: int) -> Tensor:
    """Weights that turn N scored samples into unbiased best-of-n averages.

    w(i) = C(i−1, n−1) / C(N, n) for the i-th smallest reward: the chance that it is
    the best of n of the N samples drawn without replacement; ties share equally.
    The same weights average any other quantity of the chosen sample, such as a gold
    score; choose by the proxy reward, not by the gold one.

    Args:
      rewards: r of N independent samples of π_ref, [..., N].
      n: draws, 1 ≤ n ≤ N.

    Returns:
      Weights in the order of `rewards`, [..., N], sum 1, no gradient.

    Raises:
      ValueError: rewards are not finite, n is not a whole number ≥ 1, or n > N.

    Source: the estimator of WebGPT, Nakano et al. (2021), appendix I.

    >>> best_of_n_weights(torch.tensor([5.0, 9.0, 7.0]), n=2)   # of 3 pairs: 0, 2, 1
    tensor([0.0000, 0.6667, 0.3333])
    """
    _check_whole(n=n)
    check_finite(rewards=rewards)
    count = rewards.shape[-1] if rewards.ndim else 0
    if n > count:
        raise ValueError(f"n: want n ≤ the {count} rewards, found {n}")
    # from the top: w(N) = n/N, and w(i) = w(i+1) · (i−n+1)/i
    i = torch.arange(count - 1, 0, -1, dtype=torch.float64, device=rewards.device)
    ratio = ((i - n + 1) / i).clamp(min=0)
    by_rank = torch.cat([ratio.new_tensor([n / count]), ratio]).cumprod(0).flip(0)
    rank, level = rewards.argsort(-1).argsort(-1), _levels(rewards)
    zeros = torch.zeros_like(rewards, dtype=torch.float64)
    share = zeros.scatter_add(-1, level, by_rank[rank])
    share = share / zeros.scatter_add(-1, level, zeros + 1).clamp(min=1)
    return share.gather(-1, level).to(rewards.dtype)


def best_of_n_mean(rewards: Tensor, n: int) -> Tensor:
    """Unbiased estimate of the expected best reward of n, from N ≥ n samples.

    Ê[max of n] = Σ_i r_(i) C(i−1, n−1) / C(N, n)
    Taking the maximum of one block of n is unbiased too, and wastes the rest.

    Args:
      rewards: r of N independent samples of π_ref, [..., N].
      n: draws, 1 ≤ n ≤ N.

    Returns:
      The estimate, reward units, [...].

    Raises:
      ValueError: as `best_of_n_weights`.

    Source: Nakano et al. (2021), appendix I.

    >>> mean = best_of_n_mean(torch.tensor([5.0, 9.0, 7.0]), n=2)
    >>> round(mean.item(), 4)   # (9 + 9 + 7) / 3
    8.3333
    """
    return (best_of_n_weights(rewards, n) * rewards).sum(-1)


def rejection_sample(
    sample: Callable[[int, Generator], Tensor],
    reward: Callable[[Tensor], Tensor],
    beta: float,
    reward_max: float,
    generator: Generator,
    n: int,
    max_proposals: int = 10_000_000,
) -> tuple[Tensor, float]:
    """Exact draws from π*, by accepting draws of π_ref.

    accept y ~ π_ref with probability exp((r(y) − r_max)/β)
    A bound that is too high is only slow. One that is too low would sample another
    law, so it raises; but only a reward that is drawn can give it away.

    Args:
      sample: sample(m, generator) draws m outcomes of π_ref, [m, ...].
      reward: reward(y) scores them, reward units, [m].
      beta: β, reward units per nat.
      reward_max: an upper bound on the reward; the maximum is the fastest.
      generator: source of all randomness; it is passed on to `sample`.
      n: draws wanted.
      max_proposals: give up after so many.

    Returns:
      (draws [n, ...], accepted / proposed). The rate estimates Z exp(−r_max/β).

    Raises:
      ValueError: beta is not > 0; n is not a whole number ≥ 1; rewards of a wrong
        shape or not finite; a drawn reward exceeds reward_max; max_proposals spent.

    Source: Liu et al. (2024), "Statistical rejection sampling improves preference
    optimization", arXiv 2309.06657.

    >>> coin = lambda m, generator: torch.randint(2, (m,), generator=generator)
    >>> y, rate = rejection_sample(
    ...     coin, lambda y: y.double(), 0.1, 1.0, torch.Generator().manual_seed(0), 5)
    >>> y   # a 0 is kept with probability exp(−10)
    tensor([1, 1, 1, 1, 1])
    """
    check_positive(beta=beta)
    check_finite(reward_max=torch.tensor(reward_max, dtype=torch.float64))
    _check_whole(n=n, max_proposals=max_proposals)
    kept, accepted, proposed = [], 0, 0
    while accepted < n:
        if proposed >= max_proposals:
            found = f"{accepted} of {n} accepted after {proposed} proposals"
            raise ValueError(f"beta, reward_max: acceptance too rare, found {found}")
        # enough for what is missing at the rate seen so far, within bounds
        want = 1.1 * (n - accepted) * (proposed + 1) / (accepted + 1)
        m = int(min(max(want, 64), 65_536, max_proposals - proposed))
        y = sample(m, generator)
        r = reward(y)
        if r.shape != (m,):
            raise ValueError(f"reward: want shape [{m}], found {list(r.shape)}")
        check_finite(reward=r)
        if (r > reward_max).any():
            raise ValueError(f"reward_max: {reward_max} < a drawn reward, {r.max()}")
        u = torch.rand(m, generator=generator, dtype=torch.float64, device=r.device)
        keep = u < ((r.double() - reward_max) / beta).exp()
        kept.append(y[keep])
        accepted, proposed = accepted + int(keep.sum()), proposed + m
    return torch.cat(kept)[:n], accepted / proposed


def enumerate_sequences(vocab: int, length: int) -> Tensor:
    """Every sequence of `length` tokens, in the order of counting.

    Args:
      vocab: V, number of tokens.
      length: T, tokens per sequence.

    Returns:
      Token ids, [V**T, T], int64.

    Raises:
      ValueError: vocab or length is not a whole number ≥ 1, or V**T > 10⁷.

    >>> enumerate_sequences(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    _check_whole(vocab=vocab, length=length)
    if vocab**length > 10**7:
        raise ValueError(f"vocab, length: want V**T ≤ 10**7, found {vocab}**{length}")
    place = vocab ** torch.arange(length - 1, -1, -1)
    return torch.arange(vocab**length)[:, None] // place % vocab


def _kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """KL over the last axis; 0 log 0 = 0, and inf where π leaves the support."""
    inside = logp > -INF
    leaves = (inside & (ref_logp == -INF)).any(-1)
    log_ratio = torch.where(inside, logp - ref_logp, 0.0)
    return (logp.exp() * log_ratio).sum(-1).masked_fill(leaves, INF)


def _levels(rewards: Tensor) -> Tensor:
    """Dense rank of each reward along the last axis: 0 is the worst, ties share."""
    ordered, order = rewards.sort(-1)
    new = torch.zeros_like(order)
    new[..., 1:] = (ordered[..., 1:] != ordered[..., :-1]).long()
    return torch.zeros_like(order).scatter(-1, order, new.cumsum(-1))


def _checked(ref_logp: Tensor, rewards: Tensor, beta: float, **laws: Tensor) -> Tensor:
    """Check everything a tilt needs; the rewards, with 0 outside the support."""
    check_positive(beta=beta)
    laws = {**laws, "ref_logp": ref_logp}
    check_law(**laws)
    check_outcomes(**laws, rewards=rewards)
    rewards = torch.where(ref_logp > -INF, rewards, 0.0)
    check_finite(rewards=rewards)
    return rewards


def _check_whole(**numbers: int) -> None:
    """Raise unless every number is an int ≥ 1."""
    for name, n in numbers.items():
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"{name}: want a whole number ≥ 1, found {n!r}")
