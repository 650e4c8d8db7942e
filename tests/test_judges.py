"""Judges: what each rule pays for, and how it can be gamed."""

import math

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.annotators import BradleyTerryAnnotator
from rlhf_mini.control import body, judges


def turning(height, turns=0.5):
    """Evenly spread turns in 11 moments with the torso's middle at this height."""
    qpos = torch.zeros(11, 6, dtype=torch.float64)
    qpos[:, 1] = height
    qpos[:, 2] = -2 * math.pi * torch.linspace(0, turns, 11, dtype=torch.float64)
    return qpos


def tumbling(n=30, moments=40):
    """Random episodes, some of the time near the floor, [n, moments, 6]."""
    steps = torch.randn(n, moments, 6, generator=seeding.make(0), dtype=torch.float64)
    qpos = steps.cumsum(1) * torch.tensor([0.1, 0.1, 0.4, 0.05, 0.05, 0.05]).double()
    qpos[..., 1] += 1.2
    return qpos


def by_hand(rule, qpos):
    """The rules once more, moment by moment, as their docstrings say them."""
    paid = [0.0] if rule != "standing" else []
    before = body.turns(qpos[0]).item()
    for t, pose in enumerate(qpos):
        now = body.turns(pose).item()
        made, touches = now - before, (body.clearance(pose) <= body.TOUCH).any()
        if rule == "standing":
            gain = abs(before - 1) - abs(now - 1)
            gain -= 0.3 / 60 * bool(body.others_touch(pose))
            gain += 3.0 / 60 * bool(body.stands(pose) and now > 0.9)
            paid.append(gain)
        elif t and rule == "careless":
            paid.append(made)
        elif t and rule == "careful":
            paid.append(0.0 if touches else made)
        before = now
    return torch.tensor(paid, dtype=torch.float64)


@pytest.mark.parametrize("rule", judges.RULES)
def test_each_moment_is_paid_as_the_rule_says(rule):
    for qpos in tumbling():
        want = by_hand(rule, qpos)
        torch.testing.assert_close(judges.moments(rule, qpos), want)


@pytest.mark.parametrize("rule", judges.RULES)
def test_the_score_is_the_sum_over_moments_of_each_clip(rule):
    clips = tumbling(6).view(3, 2, 40, 6)
    want = torch.stack([judges.moments(rule, q).sum() for q in clips.view(6, 40, 6)])
    torch.testing.assert_close(judges.score(rule, clips), want.view(3, 2))


def test_in_the_air_careful_and_careless_agree():
    for rule in ("careful", "careless"):
        assert judges.score(rule, turning(4.0)).item() == pytest.approx(0.5)
        assert judges.score(rule, turning(4.0, -0.5)).item() == pytest.approx(-0.5)


def test_only_the_careless_judge_pays_for_rolling_on_the_floor():
    assert judges.score("careless", turning(0.05)).item() == pytest.approx(0.5)
    assert judges.score("careful", turning(0.05)).item() == pytest.approx(0.0)


def test_the_careful_judge_too_can_be_gamed_by_rocking():
    """Back in the air, forward on the floor: nothing was turned in the end."""
    rocking = torch.cat([turning(4.0), turning(0.05).flip(0)])
    assert judges.score("careful", rocking).item() == pytest.approx(0.5)
    assert judges.score("careless", rocking).item() == pytest.approx(0.0)


def test_the_careless_score_is_the_turn_from_the_first_moment_to_the_last():
    qpos = tumbling()
    net = body.turns(qpos)[:, -1] - body.turns(qpos)[:, 0]
    torch.testing.assert_close(judges.score("careless", qpos), net)


def test_the_place_of_a_clip_pays_nothing():
    qpos, moved = tumbling(), tumbling()
    moved[..., 0] += 5.0
    for rule in judges.RULES:
        a, b = judges.score(rule, qpos), judges.score(rule, moved)
        torch.testing.assert_close(a, b)


def test_the_standing_judge_wants_one_turn_and_not_two():
    one = turning(4.0)
    two = one.clone()
    two[:, 2] -= 2 * math.pi
    assert judges.score("standing", one) > 0 > judges.score("standing", two)


def test_the_standing_judge_pays_for_standing_after_the_turn_only():
    stand = torch.tensor(body.STANDING, dtype=torch.float64).repeat(11, 1)
    turned = stand.clone()
    turned[:, 2] = -2 * math.pi
    assert judges.score("standing", stand).item() == pytest.approx(0.0)
    assert judges.score("standing", turned).item() == pytest.approx(11 * 3 / 60)


def test_a_sure_judge_chooses_the_higher_score():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    sure = BradleyTerryAnnotator(slope=100.0)
    assert judges.compare(scores, sure, seeding.make(0)).tolist() == [1.0, 0.0]


def test_a_judge_chooses_as_often_as_its_annotator_says():
    annotator = BradleyTerryAnnotator(slope=10.0, flip=0.05)
    scores = torch.tensor([[0.3, 0.2]]).expand(20_000, 2)
    share = judges.compare(scores, annotator, seeding.make(0)).double().mean()
    want = annotator.probability(scores[0, 0], scores[0, 1]).item()
    spread = math.sqrt(want * (1 - want) / 20_000)
    assert share.item() == pytest.approx(want, abs=4 * spread)


def test_an_unknown_rule_raises_and_lists_those_there_are():
    with pytest.raises(ValueError, match="rule: want one of .*careful.*found 'kind'"):
        judges.score("kind", turning(1.0))
