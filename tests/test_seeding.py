"""Seeds: the same seed draws the same, and parts of a run do not share a stream."""

import pytest
import torch

from rlhf_mini import seeding


def draw(generator):
    return torch.rand(4, generator=generator)


def test_one_seed_draws_the_same_numbers():
    assert torch.equal(draw(seeding.make(3)), draw(seeding.make(3)))


def test_two_seeds_draw_different_numbers():
    assert not torch.equal(draw(seeding.make(3)), draw(seeding.make(4)))


def test_the_global_seed_is_neither_read_nor_moved():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    draw(seeding.make(5))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("seed", [-1, 1.0, "0", None, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(ValueError, match="seed: want a whole number"):
        seeding.make(seed)


def test_split_is_repeatable():
    first, second = (seeding.split(seeding.make(1), 3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(draw(a), draw(b))


def test_split_parts_differ_from_each_other_and_from_their_parent():
    parent = seeding.make(1)
    draws = [tuple(draw(g).tolist()) for g in [*seeding.split(parent, 5), parent]]
    assert len(set(draws)) == 6


def test_asking_for_more_parts_keeps_the_first_ones():
    few, many = seeding.split(seeding.make(1), 2), seeding.split(seeding.make(1), 4)
    assert torch.equal(draw(few[1]), draw(many[1]))
