"""Judges: what each rule pays for, and that the careless one can be gamed."""

import math

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.annotators import BradleyTerryAnnotator
from rlhf_mini.control import judges


def turning(height):
    """Half a backward turn in 11 moments with the torso's middle at this height."""
    qpos = torch.zeros(11, 6, dtype=torch.float64)
    qpos[:, 1] = height
    qpos[:, 2] = -torch.linspace(0, math.pi, 11, dtype=torch.float64)
    return qpos


def test_in_the_air_careful_and_careless_agree():
    for rule in ("careful", "careless"):
        assert judges.score(rule, turning(4.0)).item() == pytest.approx(0.5)


def test_only_the_careless_judge_pays_for_rolling_on_the_floor():
    assert judges.score("careless", turning(0.05)).item() == pytest.approx(0.5)
    assert judges.score("careful", turning(0.05)).item() == pytest.approx(0.0)


def test_the_standing_judge_wants_one_turn_and_not_two():
    one = turning(4.0)
    two = one.clone()
    two[:, 2] -= 2 * math.pi
    assert judges.score("standing", one) > 0 > judges.score("standing", two)


def test_a_sure_judge_chooses_the_higher_score():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    sure = BradleyTerryAnnotator(slope=100.0)
    assert judges.compare(scores, sure, seeding.make(0)).tolist() == [1.0, 0.0]


def test_an_unknown_rule_raises():
    with pytest.raises(ValueError, match="rule"):
        judges.score("kind", turning(1.0))
