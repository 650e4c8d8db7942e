"""Film strips and animations from positions alone."""

import pytest
import torch

from rlhf_mini import film
from rlhf_mini.control import body

EPISODE = torch.tensor(body.STANDING).repeat(20, 1)


def turning():
    qpos = EPISODE.clone()
    qpos[:, 2] = -torch.linspace(0, 7.0, 20)
    return qpos


def test_a_strip_has_four_limbs_a_head_and_one_floor():
    ax = film.strip(EPISODE, [0, 10, 19])
    assert len(ax.lines) == 3 * 5 + 1
    assert ax.get_xlabel() and ax.get_ylabel()


def test_an_animation_is_a_gif():
    assert film.animation([EPISODE, turning()], ["A", "B"], every=10)[:4] == b"GIF8"


def test_the_moments_of_a_turn_end_at_the_first_full_turn():
    qpos = turning()
    last = film.moments_of_a_turn(qpos, 5)[-1]
    assert body.turns(qpos)[last] >= 1 > body.turns(qpos)[last - 1]


def test_without_a_turn_the_moments_are_even():
    assert film.moments_of_a_turn(EPISODE, 2) == [0, 19]


def test_wrong_clips_raise():
    with pytest.raises(ValueError, match="clips"):
        film.animation([EPISODE, EPISODE[:3]], ["A", "B"])
    with pytest.raises(ValueError, match="last"):
        film.strip(EPISODE, [0, 20])
