"""rollouts.py: rows stay together, and a wrong shape is refused where it enters."""

from dataclasses import fields

import pytest
import torch

from rlhf_mini import seeding
from rlhf_mini.policies import SequenceCritic, SequencePolicy
from rlhf_mini.rollouts import Rollout, collect, concatenate


def rollout(rows=3, length=2, **changed):
    """A rollout in which every number names its row and column."""
    row = torch.arange(rows, dtype=torch.float64)[:, None]
    grid = row + torch.arange(length) / 10
    given = {
        "prompts": torch.arange(rows) + 100,
        "tokens": (10 * grid).long(),
        "mask": torch.tensor([[1, 1], [1, 0], [1, 1]])[:rows, :length].bool(),
        "logp": -grid,
        "entropy": grid + 1,
        "ref_logp": -2 * grid,
        "values": grid + 3,
        "scores": row[:, 0] + 5,
    }
    return Rollout(**(given | changed))


def random_policy(seed=0):
    policy = SequencePolicy(3, 2, states=2, dtype=torch.float64)
    policy.logits.data = torch.randn(
        policy.logits.shape, generator=seeding.make(seed), dtype=torch.float64
    )
    return policy


@pytest.mark.parametrize(
    "index, rows",
    [
        (slice(1, 3), [1, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor([False, True, True]), [1, 2]),
    ],
    ids=["slice", "numbers", "bools"],
)
def test_indexing_takes_the_same_rows_of_every_field(index, rows):
    whole, part = rollout(), rollout()[index]
    for f in fields(Rollout):
        assert torch.equal(getattr(part, f.name), getattr(whole, f.name)[rows])
    assert len(part) == len(rows)


def test_indexing_leaves_absent_fields_absent():
    part = rollout(ref_logp=None, values=None, scores=None)[:2]
    assert part.ref_logp is None and part.values is None and part.scores is None


def test_concatenation_undoes_a_split():
    whole = rollout()
    again = concatenate([whole[:1], whole[1:]])
    for f in fields(Rollout):
        assert torch.equal(getattr(again, f.name), getattr(whole, f.name))


def test_concatenation_leaves_absent_fields_absent():
    part = rollout(values=None)
    assert concatenate([part, part]).values is None
    assert len(concatenate([part, part])) == 6


def test_the_kl_of_an_answer_is_the_sum_of_its_log_ratios_without_pads():
    # row 0: 0 + 0.1; row 1: 1 and a pad; row 2: 2 + 2.1, as logp − ref_logp = grid
    found = rollout().kl_to_ref()
    assert found.tolist() == pytest.approx([0.1, 1.0, 4.1])


def test_a_pad_may_hold_anything_and_the_kl_does_not_move():
    ref_logp = rollout().ref_logp.clone()
    ref_logp[1, 1] = torch.nan
    assert torch.equal(rollout(ref_logp=ref_logp).kl_to_ref(), rollout().kl_to_ref())


def test_a_copy_on_a_device_is_the_same_rollout():
    copy = rollout(values=None).to("cpu")
    assert torch.equal(copy.tokens, rollout().tokens) and copy.values is None


@pytest.mark.parametrize("name", ["mask", "logp", "entropy", "ref_logp", "values"])
def test_a_field_of_another_shape_is_named(name):
    with pytest.raises(ValueError, match=rf"shapes differ: .*{name} \[3, 1\]"):
        rollout(**{name: torch.zeros(3, 1)})


@pytest.mark.parametrize("shape", [(3, 1), (2,)])
def test_scores_must_be_one_number_per_row(shape):
    # the defect: [B, 1] broadcasts against [B] to [B, B], and nothing complains
    with pytest.raises(ValueError, match=rf"scores \[{shape[0]}.*rows \[3\]"):
        rollout(scores=torch.zeros(shape))


def test_tokens_must_have_a_time_axis():
    with pytest.raises(ValueError, match=r"tokens: want 2 axes, found shape \[3\]"):
        rollout(tokens=torch.zeros(3).long())


def test_collect_without_helpers_leaves_their_fields_absent():
    found = collect(random_policy(), torch.tensor([0, 1]), seeding.make(0))
    assert found.ref_logp is None and found.values is None and found.scores is None


def test_collect_asks_each_helper_about_the_sampled_answers():
    policy, reference = random_policy(0), random_policy(1)
    critic = SequenceCritic(policy)
    critic.table.data = torch.randn(critic.table.shape, dtype=torch.float64)
    found = collect(
        policy, torch.tensor([0, 1] * 20), seeding.make(0), reference=reference,
        critic=critic, score=lambda r: r.tokens[:, 0].double() + r.prompts,
    )  # fmt: skip
    batch = found.prompts, found.tokens, found.mask
    assert torch.equal(found.logp, policy.logp(*batch).detach())
    assert torch.equal(found.ref_logp, reference.logp(*batch).detach())
    assert torch.equal(found.values, critic(*batch).detach())
    assert torch.equal(found.scores, found.tokens[:, 0].double() + found.prompts)
    for f in fields(Rollout):
        assert not getattr(found, f.name).requires_grad


def test_collect_asks_in_parts_of_the_batch_size_and_keeps_the_order():
    sizes, prompts = [], torch.tensor([0, 1, 1, 0, 1, 0, 0])

    def score(r):
        sizes.append(len(r))
        return r.prompts.double()

    found = collect(
        random_policy(), prompts, seeding.make(0), score=score, batch_size=3
    )
    assert sizes == [3, 3, 1]
    assert torch.equal(found.prompts, prompts)
    assert torch.equal(found.scores, prompts.double())


def test_the_same_seed_collects_the_same():
    prompts = torch.tensor([0, 1] * 10)
    first, second = (
        collect(random_policy(), prompts, seeding.make(3)) for _ in range(2)
    )
    assert torch.equal(first.tokens, second.tokens)
