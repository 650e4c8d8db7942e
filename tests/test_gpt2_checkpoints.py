"""gpt2/checkpoints.py: what is saved comes back, whole or with an error."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rlhf_mini.gpt2 import checkpoints


def same(a, b):
    """Equal all the way down: types of keys, dtypes and bits of tensors included."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def round_trip(folder, state):
    checkpoints.save(folder / "state.safetensors", state)
    return checkpoints.load(folder / "state.safetensors")


@pytest.mark.parametrize(
    "state",
    [
        {"a": 1, "b": 0.1 + 0.2, "c": "é ≻", "d": None, "e": True, "f": 2**60},
        {"rows": [{"step": 0, "x": 1e-300}, {"step": 1, "x": float("inf")}]},
        {0: {"step": torch.tensor(3.0)}, 1: {"step": torch.tensor(4.0)}},
        {"deep": {"er": [{"t": torch.arange(6).view(2, 3)}, []], "none": {}}},
        {"dtypes": [torch.ones(2).to(d) for d in (torch.bfloat16, torch.uint8)]},
        {"empty": torch.zeros(0, 3), "mask": torch.tensor([True, False])},
        {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}},  # one path, two tensors
        {0: torch.ones(1), "0": torch.zeros(1)},
        {},
    ],
    ids=[
        "plain",
        "rows",
        "int keys",
        "deep",
        "dtypes",
        "shapes",
        "slash",
        "0",
        "empty",
    ],
)
def test_what_is_saved_comes_back(tmp_path, state):
    assert same(state, round_trip(tmp_path, state))


def test_a_tuple_comes_back_as_a_list(tmp_path):
    assert round_trip(tmp_path, {"betas": (0.9, 0.999)}) == {"betas": [0.9, 0.999]}


def test_tensors_that_share_memory_are_both_saved(tmp_path):
    # as the embedding and the head of a GPT-2 do
    layer, tied = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    tied.weight = layer.weight
    pair = nn.ModuleDict({"in": layer, "out": tied})
    found = round_trip(tmp_path, pair.state_dict())
    assert torch.equal(found["in.weight"], layer.weight)
    assert torch.equal(found["out.weight"], layer.weight)


def test_a_transposed_tensor_keeps_its_values(tmp_path):
    x = torch.arange(6.0).view(2, 3).T
    assert torch.equal(round_trip(tmp_path, {"x": x})["x"], x)


def test_a_tensor_with_gradient_is_saved_as_a_constant(tmp_path):
    found = round_trip(tmp_path, {"x": nn.Parameter(torch.ones(2)) * 2})
    assert found["x"].tolist() == [2, 2] and not found["x"].requires_grad


def test_an_optimizer_goes_on_as_if_never_stopped(tmp_path):
    def run(steps, stop=None):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for step in range(steps):
            if step == stop:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                state = round_trip(tmp_path, state)
                model = nn.Linear(3, 2)
                optimizer = torch.optim.AdamW(model.parameters(), lr=9.0)
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            optimizer.zero_grad()
            (model(torch.tensor([1.0, -2.0, 0.5])) - 1).square().sum().backward()
            optimizer.step()
        return model.weight

    assert torch.equal(run(6), run(6, stop=3))


def test_a_generator_goes_on_where_it_was(tmp_path):
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    found = round_trip(tmp_path, {"generator": generator.get_state()})
    want, other = torch.rand(4, generator=generator), torch.Generator()
    other.set_state(found["generator"])
    assert torch.equal(torch.rand(4, generator=other), want)


def test_missing_folders_are_made(tmp_path):
    assert round_trip(tmp_path / "a" / "b", {"x": 1}) == {"x": 1}


def test_something_that_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match="/a/1: cannot save a set"):
        checkpoints.save(tmp_path / "s.safetensors", {"a": [0, {1}]})


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_header(path):
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def damage_all(path):
    path.write_bytes(b"")


def other_format(path):
    save_file({"x": torch.ones(1)}, path)  # safetensors, but no checkpoint


def missing(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage", [damage_half, damage_header, damage_all, other_format, missing]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    checkpoints.save(path, {"x": torch.arange(1000.0), "n": 1})
    damage(path)
    with pytest.raises(ValueError, match="state.safetensors: not a whole checkpoint"):
        checkpoints.load(path)


@pytest.mark.parametrize("where", ["writing", "replacing"])
def test_a_kill_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch, where):
    path = tmp_path / "state.safetensors"
    checkpoints.save(path, {"x": torch.zeros(3)})

    def kill(*args, **_):
        if where == "writing":
            args[1].write_bytes(b"half a file")
        raise KeyboardInterrupt

    target = (checkpoints, "save_file") if where == "writing" else (os, "replace")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*target, kill)
        checkpoints.save(path, {"x": torch.ones(3)})
    assert checkpoints.load(path)["x"].tolist() == [0, 0, 0]
    checkpoints.save(path, {"x": torch.ones(3)})  # what the kill left is no obstacle
    assert checkpoints.load(path)["x"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
