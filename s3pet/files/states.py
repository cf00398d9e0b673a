"""The state of a run that is not finished: one file, from which it continues, and the settings that decide it."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from s3pet.errors import RunError
from s3pet.files.reading import read_tensors, reading
from s3pet.files.writing import write_tensors

STATE = "state.safetensors"
CONTENT = {  # what a hash in the config stands for, in a message
    "model_hash": "the weights of the backbone",
    "task_hash": "the rows of the task",
    "space_hash": "the candidates of the space",
}


def save_state(path: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], rest: Any) -> None:
    """Write the state of a running search in one move; config and ``rest`` lie as JSON in the header of the file.

    If it cannot be written, that is a warning: the search goes on, and the last state stays.
    """
    state = json.dumps({"config": decisive(config), "rest": rest}, sort_keys=True)
    try:
        write_tensors(tensors, path / STATE, {"state": state, "hash": _state_hash(state, tensors)})
    except RunError as error:
        warnings.warn(f"the search goes on without a new checkpoint: {error}", stacklevel=3)


def load_state(
    folder: Path,
    config: Mapping[str, Any],
    own: Mapping[str, torch.Tensor],
    overwrite: bool = False,
    what: str = "search",
) -> tuple[dict[str, torch.Tensor], Any] | None:
    """The state that :func:`save_state` wrote, with tensors of the shapes of ``own``; None if there is none.

    Raises RunError if it is damaged or of another config; with ``overwrite``, that is None, too.
    """
    if not os.path.exists(path := folder / STATE):
        return None
    try:
        with reading(path, hint="Remove it to start this search anew"):
            tensors, about = read_tensors(path, finite=False)  # a history may hold NaN
            if _state_hash(about["state"], tensors) != about["hash"]:
                raise ValueError("it was changed after it was written")
            state = json.loads(about["state"])
        check_same(folder.parent, state["config"], config, what)
        with reading(path, hint="Remove it to start this search anew"):
            if wrong := [name for name, tensor in own.items() if tensors[name].shape != tensor.shape]:
                raise ValueError(f"{wrong[0]} has another shape")
    except RunError:
        if not overwrite:
            raise
        return None
    return tensors, state["rest"]


def check_same(path: Path, saved: Mapping[str, Any], config: Mapping[str, Any], what: str = "search") -> None:
    """Raise RunError, naming the settings that differ, unless an unfinished run was made with this config."""
    now = decisive(config)
    if changes := changed_settings(saved, now):
        raise RunError(
            f"{path} holds an unfinished {what} with other settings ({', '.join(changes)}); pass the same settings to "
            f"continue, choose another folder, or {'pass overwrite=True' if what == 'search' else 'remove it'}"
        )


def changed_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, in words: ``seed 0 → 1``."""
    changes = []
    for name in [name for name in {**saved, **now} if saved.get(name) != now.get(name)]:
        before, after = saved.get(name), now.get(name)
        if name.endswith("_hash"):
            changes.append(CONTENT.get(name, name))
        elif isinstance(before, dict) and isinstance(after, dict):
            changes += [f"{name}.{change}" for change in changed_settings(before, after)]
        else:
            changes.append(f"{name} {before!r:.60} → {after!r:.60}")
    return changes


def _state_hash(state: str, tensors: Mapping[str, torch.Tensor]) -> str:
    value = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        value.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        value.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return value.hexdigest()


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run: all of its config, as JSON, but the versions of the libraries."""
    return json.loads(json.dumps({name: value for name, value in config.items() if name != "versions"}))
