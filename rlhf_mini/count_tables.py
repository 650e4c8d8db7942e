"""Tables of counts: is it one, has a model of it a maximum, does a model fit it?

The first two are asked before anything is fitted, so that a reader is told which
items cannot be compared, and not that a matrix is singular.
"""

import torch
from scipy.sparse import csgraph
from torch import Tensor

from rlhf_mini.checks import check_same_shape


def deviance(observed: Tensor, expected: Tensor) -> float:
    """How far counts lie from those that a model expects: the G² statistic.

    G² = 2 Σ o log(o / e), over all cells; a cell of no count adds nothing
    Give it every outcome: of wins alone, without the losses, it means nothing.
    It is twice the log-likelihood that a free probability for every comparison would
    gain. If the model is true and the comparisons are independent, it is about χ²
    with as many degrees of freedom as comparisons exceed parameters.

    Args:
      observed: o, counts ≥ 0, [...]; every outcome, losses and ties too.
      expected: e, the counts that the model expects, same shape; > 0 where o is.

    Returns:
      G², nats, a number ≥ 0 if both sum to the same.

    Raises:
      ValueError: the shapes differ; a count is negative or not finite; something
        was observed that the model calls impossible.

    Source: Agresti (2002), "Categorical data analysis".

    >>> heads_and_tails = torch.tensor([3.0, 1.0])
    >>> round(deviance(heads_and_tails, torch.tensor([2.0, 2.0])), 4)   # 8 ln 2 − ...
    1.0465
    """
    observed = torch.as_tensor(observed, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    check_same_shape(observed=observed, expected=expected)
    for name, counts in (("observed", observed), ("expected", expected)):
        bad = ~counts.isfinite() | (counts < 0)
        if bad.any():
            raise ValueError(f"{name}: want counts ≥ 0, found {counts[bad][0]:g}")
    impossible = (observed > 0) & (expected == 0)
    if impossible.any():
        found = f"{observed[impossible][0]:g} where none was expected"
        raise ValueError(f"observed: found {found}")
    seen = observed > 0
    return 2 * torch.xlogy(observed[seen], observed[seen] / expected[seen]).sum().item()


def count_table(**named: Tensor) -> Tensor:
    """One table of counts, float64: square, finite, ≥ 0, with a zero diagonal."""
    ((name, table),) = named.items()
    table = torch.as_tensor(table, dtype=torch.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        found = list(table.shape)
        raise ValueError(f"{name}: want a square table [N, N], N ≥ 2, found {found}")
    for what, bad in (
        ("finite counts", ~table.isfinite()),
        ("counts ≥ 0", table < 0),
        ("a zero diagonal", torch.diag(table.diagonal() != 0)),
    ):
        if bad.any():
            i, j = bad.nonzero()[0].tolist()
            found = f"{table[i, j].item():g} at [{i}, {j}]"
            raise ValueError(f"{name}: want {what}, found {found}")
    return table


def check_connected(name: str, edges: Tensor, verb: str) -> None:
    """Raise, naming items, unless every item can be reached from every other."""
    graph = (edges > 0).numpy()
    groups, label = csgraph.connected_components(graph, directed=False)
    if groups > 1:
        parts = ", ".join(
            str((label == g).nonzero()[0].tolist()) for g in range(groups)
        )
        raise ValueError(f"{name}: groups that never met cannot be compared: {parts}")
    groups, label = csgraph.connected_components(graph, connection="strong")
    if groups == 1:
        return
    top, bottom = [], []
    for g in range(groups):
        inside = label == g
        if not graph[~inside][:, inside].any():
            top += inside.nonzero()[0].tolist()
        if not graph[inside][:, ~inside].any():
            bottom += inside.nonzero()[0].tolist()
    raise ValueError(
        f"{name}: no finite maximum: nobody else {verb} items {_some(top)}; "
        f"items {_some(bottom)} {verb} nobody else"
    )


def _some(items: list[int]) -> str:
    """A list of items, cut where it gets too long to read."""
    items = sorted(items)
    if len(items) <= 8:
        return str(items)
    return f"[{', '.join(map(str, items[:6]))}, … {len(items)} in all]"


def has_negative_cycle(minus: Tensor, plus: Tensor) -> bool:
    """Whether a cycle has more `minus` than `plus` edges (strongly connected)."""
    weights = torch.where(minus > 0, -1.0, (plus > 0).double())
    try:
        csgraph.bellman_ford(weights.numpy(), indices=0)
    except csgraph.NegativeCycleError:
        return True
    return False
