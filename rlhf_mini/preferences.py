"""From comparisons to strengths: Bradley-Terry, Davidson's ties, Plackett-Luce.

A strength is a log-worth s (nats): item i beats item j with probability
σ(s_i − s_j). A reward model is the same thing with s = r(x, y). The data fix
strengths only up to a constant, so every fit is normalised: 0 for a reference item,
or mean 0. Each fit is a published log-likelihood, one Newton solver in float64, and
a check that a finite maximum exists before it is looked for. Elo, which follows the
same gradient one game at a time, is in elo.py, and its names are also here.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_mini.checks import check_same_shape
from rlhf_mini.count_tables import (
    check_connected,
    count_table,
    deviance,
    has_negative_cycle,
)
from rlhf_mini.elo import elo_update, expected_score
from rlhf_mini.maximum_likelihood import Fit, maximise

__all__ = [
    "Fit",
    "bradley_terry_log_likelihood",
    "davidson_log_likelihood",
    "deviance",
    "elo_update",
    "expected_score",
    "fit_bradley_terry",
    "fit_bradley_terry_home",
    "fit_davidson",
    "fit_plackett_luce",
    "plackett_luce_log_likelihood",
]


def bradley_terry_log_likelihood(strength: Tensor, wins: Tensor) -> Tensor:
    """Log-likelihood of a table of wins.

    ℓ(s) = Σ_ij wins_ij log σ(s_i − s_j)

    Args:
      strength: s, nats, [N].
      wins: wins[i, j] = times i beat j, [N, N].

    Returns:
      ℓ, nats, scalar, differentiable; no binomial coefficients.

    Source: Bradley and Terry (1952), "Rank analysis of incomplete block designs".

    >>> wins = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> round(bradley_terry_log_likelihood(torch.zeros(2), wins).item(), 4)   # −2 ln 2
    -1.3863
    """
    return (wins * logsigmoid(strength[:, None] - strength)).sum()


def davidson_log_likelihood(
    strength: Tensor, log_tie: Tensor, wins: Tensor, ties: Tensor
) -> Tensor:
    """Log-likelihood of wins and ties.

    P(i beats j) ∝ e^{s_i},  P(j beats i) ∝ e^{s_j},  P(tie) ∝ ν e^{(s_i + s_j)/2}

    Args:
      strength: s, nats, [N].
      log_tie: log ν, scalar.
      wins: wins[i, j] = times i beat j, [N, N].
      ties: ties[i, j] = ties[j, i] = times i and j tied, [N, N].

    Returns:
      ℓ, nats, scalar, differentiable.

    Source: Davidson (1970), "On extending the Bradley-Terry model to accommodate
    ties in paired comparison experiments".

    >>> once = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> davidson_log_likelihood(   # two wins and a tie, each of probability ⅓
    ...     torch.zeros(2), torch.tensor(0.0), once, once).exp()
    tensor(0.0370)
    """
    half = (strength[:, None] - strength) / 2
    total = torch.logaddexp(torch.logaddexp(half, -half), log_tie)
    return (wins * (half - total)).sum() + (ties * (log_tie - total)).sum() / 2


def plackett_luce_log_likelihood(strength: Tensor, rankings: Tensor) -> Tensor:
    """Log-likelihood of rankings: the best is chosen, then the best of the rest.

    ℓ(s) = Σ_rankings Σ_k [s_{σ_k} − log Σ_{l ≥ k} e^{s_{σ_l}}]

    Args:
      strength: s, nats, [N].
      rankings: item numbers, best first, [M, K].

    Returns:
      ℓ, nats, scalar, differentiable.

    Source: Plackett (1975), "The analysis of permutations".

    >>> one = torch.tensor([[2, 0, 1]])
    >>> plackett_luce_log_likelihood(torch.zeros(3), one).exp()   # 1/3 · 1/2
    tensor(0.1667)
    """
    s = strength[rankings]  # [M, K]
    return (s - s.flip(-1).logcumsumexp(-1).flip(-1)).sum()


def fit_bradley_terry(wins: Tensor, reference: int | None = None) -> Fit:
    """The maximum-likelihood strengths of a table of wins.

    max_s Σ_ij wins_ij log σ(s_i − s_j)
    Finite only if everyone can be reached from everyone along wins: an item that
    never lost has strength +∞, and groups that never met cannot be compared.

    Args:
      wins: wins[i, j] = times i beat j, [N, N]; half a win for a tie is allowed.
      reference: the item of strength 0; None for mean 0.

    Returns:
      A `Fit`: strength [N], stderr [N], covariance, log_likelihood.

    Raises:
      ValueError: wins is not square, has NaN, negative counts or a non-zero
        diagonal; reference is not an item; no finite maximum exists, or counts are
        so lopsided that float64 cannot find it.

    Source: Bradley and Terry (1952); existence: Ford (1957), "Solution of a ranking
    problem from binary comparisons".

    >>> fit = fit_bradley_terry(torch.tensor([[0, 3], [1, 0]]), reference=1)
    >>> round(fit.strength[0].exp().item(), 4)   # worth 3 : 1
    3.0
    >>> round(fit.stderr[0].item() ** 2, 4)   # 1/3 + 1/1
    1.3333
    """
    wins = count_table(wins=wins)
    check_connected("wins", wins, "beat")
    return maximise(
        lambda theta: bradley_terry_log_likelihood(theta, wins), len(wins), reference
    )


def fit_bradley_terry_home(
    home_wins: Tensor, away_wins: Tensor, reference: int | None = None
) -> Fit:
    """Bradley-Terry with an advantage for the home side, or for the answer shown first.

    P(i beats j at i's home) = σ(s_i − s_j + h)
    For judges of text h is the position bias: leave it out and, unless each pair is
    shown both ways equally often, it is booked as strength.

    Args:
      home_wins: home_wins[i, j] = times i beat j at i's home, [N, N].
      away_wins: away_wins[i, j] = times i beat j at j's home, [N, N].
      reference: the item of strength 0; None for mean 0.

    Returns:
      A `Fit` with `.home` = h and `.home_stderr`.

    Raises:
      ValueError: as `fit_bradley_terry`, for the two tables and for their sum; or
        the home side won always, or never.

    Source: Agresti (2002), "Categorical data analysis", §10.6.

    >>> wins = torch.tensor([[0, 3], [3, 0]])   # twins, who win 3 of 4 at home
    >>> fit = fit_bradley_terry_home(wins, torch.tensor([[0, 1], [1, 0]]))
    >>> round(torch.tensor(fit.home).exp().item(), 4)
    3.0
    """
    home_wins, away_wins = (
        count_table(home_wins=home_wins),
        count_table(away_wins=away_wins),
    )
    check_same_shape(home_wins=home_wins, away_wins=away_wins)
    check_connected("wins", home_wins + away_wins, "beat")
    # (δ, h) is a way to infinity if δ_i − δ_j + h ≥ 0 for every home win of i and
    # δ_i − δ_j − h ≥ 0 for every away win; a cycle with Σ ±h < 0 forbids h > 0
    for minus, plus, side in (
        (away_wins, home_wins, "home"),
        (home_wins, away_wins, "away"),
    ):
        if not has_negative_cycle(minus, plus):
            found = f"every game explained by an ever larger advantage of the {side}"
            raise ValueError(f"home_wins: no finite maximum, found {found} side")

    def log_likelihood(theta: Tensor) -> Tensor:
        lead, home = theta[:-1, None] - theta[:-1], theta[-1]
        at_home = home_wins * logsigmoid(lead + home)
        return (at_home + away_wins * logsigmoid(lead - home)).sum()

    return maximise(log_likelihood, len(home_wins), reference, extra="home")


def fit_davidson(wins: Tensor, ties: Tensor, reference: int | None = None) -> Fit:
    """The maximum-likelihood strengths and tie parameter of wins and ties.

    P(i beats j) ∝ e^{s_i},  P(j beats i) ∝ e^{s_j},  P(tie) ∝ ν e^{(s_i + s_j)/2}
    Counting a tie as half a win of each in Bradley-Terry gives smaller strengths.
    Some authors print s/2; here s is the log-worth, as in Bradley-Terry.

    Args:
      wins: wins[i, j] = times i beat j, [N, N].
      ties: ties[i, j] = ties[j, i] = times i and j tied, [N, N].
      reference: the item of strength 0; None for mean 0.

    Returns:
      A `Fit` with `.tie` = ν and `.tie_stderr`.

    Raises:
      ValueError: as `fit_bradley_terry`, for the two tables; ties is not symmetric;
        no wins or no ties; or the wins contradict each other so little that ν = ∞.

    Source: Davidson (1970), "On extending the Bradley-Terry model to accommodate
    ties in paired comparison experiments".

    >>> twice = torch.tensor([[0, 2], [2, 0]])
    >>> round(fit_davidson(twice, twice).tie, 4)   # 2 wins, 2 losses, 2 ties
    1.0
    """
    wins, ties = count_table(wins=wins), count_table(ties=ties)
    check_same_shape(wins=wins, ties=ties)
    if not torch.equal(ties, ties.T):
        i, j = (ties != ties.T).nonzero()[0].tolist()
        found = f"{ties[i, j]:g} at [{i}, {j}] and {ties[j, i]:g} at [{j}, {i}]"
        raise ValueError(f"ties: want a symmetric table, found {found}")
    for name, table in (("wins", wins), ("ties", ties)):
        if not table.any():
            raise ValueError(f"{name}: no finite maximum, found none at all")
    check_connected("wins, ties", wins + ties, "beat or tied")
    # ν = ∞ if strengths exist with a gap ≥ 2 for every win and ≤ 2 for every tie
    if not has_negative_cycle(wins, ties):
        found = "every outcome explained by ever larger gaps and ties"
        raise ValueError(f"wins, ties: no finite maximum, found {found}")
    return maximise(
        lambda theta: davidson_log_likelihood(theta[:-1], theta[-1], wins, ties),
        len(wins),
        reference,
        extra="tie",
    )


def fit_plackett_luce(rankings: Tensor, reference: int | None = None) -> Fit:
    """The maximum-likelihood strengths of rankings, full or of K items at a time.

    max_s Σ_rankings Σ_k [s_{σ_k} − log Σ_{l ≥ k} e^{s_{σ_l}}]
    With K = 2 this is Bradley-Terry. A ranking of four equals is worth 3.83 pairs,
    not the six it contains: fitted as six pairs its stderr would be too small.

    Args:
      rankings: item numbers 0 … N−1, best first, [M, K], int64.
      reference: the item of strength 0; None for mean 0.

    Returns:
      A `Fit`: strength [N], stderr [N], covariance, log_likelihood.

    Raises:
      ValueError: rankings is not an int64 table of two or more columns; a negative
        number; an item twice in a row; reference is not an item; no finite maximum.

    Source: Plackett (1975); existence: Hunter (2004), "MM algorithms for generalized
    Bradley-Terry models", assumption 1.

    >>> fit = fit_plackett_luce(torch.tensor([[0, 1], [0, 1], [0, 1], [1, 0]]))
    >>> round((fit.strength[0] - fit.strength[1]).exp().item(), 4)   # 3 : 1
    3.0
    """
    rankings = torch.as_tensor(rankings)
    if rankings.dtype != torch.int64 or rankings.ndim != 2 or rankings.numel() == 0:
        found = f"{rankings.dtype} {list(rankings.shape)}"
        raise ValueError(f"rankings: want int64 [M, K], found {found}")
    if rankings.shape[1] < 2 or rankings.min() < 0:
        found = f"K = {rankings.shape[1]}, smallest number {rankings.min()}"
        raise ValueError(f"rankings: want K ≥ 2 and item numbers ≥ 0, found {found}")
    ordered = rankings.sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
    if twice.any():
        found = rankings[twice][0].tolist()
        raise ValueError(f"rankings: an item stands twice in a row, found {found}")
    items = int(rankings.max()) + 1
    above = torch.zeros(items, items, dtype=torch.float64)
    for k in range(rankings.shape[1] - 1):  # neighbours suffice: "above" is transitive
        above[rankings[:, k], rankings[:, k + 1]] = 1
    check_connected("rankings", above, "stood above")
    return maximise(
        lambda theta: plackett_luce_log_likelihood(theta, rankings), items, reference
    )
