"""Checkpoints of a run in safetensors: weights, optimizer, generator, counters.

One file holds everything: tensors as tensors, the rest as JSON in the header. It is
written beside its place and moved there, so that a kill leaves the old one whole.
"""

import json
import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def save(path: Path, state: dict) -> None:
    """Write nested dicts and lists of tensors, numbers, strings and None."""
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(state, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    save_file(tensors, beside, metadata={"state": json.dumps(skeleton)})
    os.replace(beside, path)


def load(path: Path) -> dict:
    """What `save` wrote.

    Raises:
      ValueError: the file is damaged or is not a checkpoint; it is named.
    """
    try:
        with safe_open(path, framework="pt") as file:
            skeleton = json.loads(file.metadata()["state"])
            return _unflatten(skeleton, file)
    except Exception as error:
        raise ValueError(f"{path}: not a whole checkpoint ({error})") from error


def _flatten(x, name, tensors):
    if isinstance(x, Tensor):
        name = f"{len(tensors)}{name}"  # "a/b" may be two keys or one with a slash
        # a copy: safetensors refuses tensors that share memory, as tied weights do
        tensors[name] = x.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(x, dict):
        pairs = [[k, _flatten(v, f"{name}/{k}", tensors)] for k, v in x.items()]
        return {"dict": pairs}  # as pairs: JSON would turn number keys into strings
    if isinstance(x, list | tuple):
        return {"list": [_flatten(v, f"{name}/{i}", tensors) for i, v in enumerate(x)]}
    if x is None or isinstance(x, bool | int | float | str):
        return {"plain": x}
    raise ValueError(f"{name}: cannot save a {type(x).__name__}")


def _unflatten(node, file):
    ((kind, x),) = node.items()
    if kind == "tensor":
        return file.get_tensor(x)
    if kind == "dict":
        return {k: _unflatten(v, file) for k, v in x}
    if kind == "list":
        return [_unflatten(v, file) for v in x]
    return x
