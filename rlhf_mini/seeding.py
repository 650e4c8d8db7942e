"""Seeds are arguments: every function that draws takes a `generator`."""

import torch


def make(seed: int) -> torch.Generator:
    """A CPU generator with this seed, to be handed to whatever draws.

    Raises:
      ValueError: the seed is not a whole number ≥ 0.

    >>> torch.equal(*(torch.rand(3, generator=make(7)) for _ in range(2)))
    True
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: want a whole number ≥ 0, found {seed!r}")
    return torch.Generator().manual_seed(seed)


def split(generator: torch.Generator, n: int) -> list[torch.Generator]:
    """n generators seeded from one: independent parts of a run, each repeatable."""
    seeds = torch.randint(2**62, (n,), generator=generator)
    return [make(int(s)) for s in seeds]
