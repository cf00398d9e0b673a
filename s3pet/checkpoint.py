"""Where a search can be cut off and go on: tensors as safetensors, the rest as JSON, written atomically.

Batches, noise and dropout are functions of (seed, step), so weights, α, both optimisers' moments, the history and the
records are the whole state; a continued search gives bit for bit what an uninterrupted one gives. The state is one
file — its JSON travels in the safetensors header — so it can never be half old and half new.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from s3pet.cost import Cost
from s3pet.errors import RunError

_FILE = "state.safetensors"


def save_state(searcher: Any, folder: Path, config: str) -> None:
    """Write the state of a :class:`~s3pet.searcher.Searcher` to ``folder``, replacing the last one in one move.

    Args:
        searcher: between two steps, all losses already numbers (after a record).
        folder: made if absent.
        config: hash of the run's config; another config will not continue from it.
    """
    tensors = {"alpha": searcher.alpha}
    tensors |= {f"weight.{index}": weight.detach() for index, weight in enumerate(searcher.weights)}
    tensors["records"] = torch.stack([alpha for _, alpha in searcher.records])
    for name, optimizer in _optimizers(searcher).items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value for key, value in state.items()}
    rest = {
        "config": config,
        "step": searcher.step,
        "cost": searcher.cost.to_dict(),
        "history": searcher.history,
        "record_steps": [step for step, _ in searcher.records],
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (_FILE + ".part")
    copies = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(copies, temporary, metadata={"state": json.dumps(rest)})
    os.replace(temporary, folder / _FILE)


def load_state(searcher: Any, folder: Path, config: str) -> bool:
    """Continue from ``folder`` if a state is there; returns whether it did.

    Raises:
        RunError: the state belongs to another config, or cannot be read.
    """
    path = folder / _FILE
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads(file.metadata()["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # safetensors raises its own, undocumented types for damaged files
        raise RunError(f"{path} cannot be read ({error}); remove it to start this search anew") from error
    if rest["config"] != config:
        raise RunError(
            f"{folder.parent} holds an unfinished search with other settings ({rest['config']}, now {config}); "
            "choose another folder, pass the same settings to go on, or overwrite=True to start anew"
        )
    found = {key: tensor.shape for key, tensor in tensors.items() if key.startswith("weight.")}
    if found != {f"weight.{index}": weight.shape for index, weight in enumerate(searcher.weights)}:
        raise RunError(f"{path} is of another version of s3pet; remove it, or overwrite=True, to start anew")
    device = searcher.alpha.device
    with torch.no_grad():
        searcher.alpha.copy_(tensors["alpha"])
        for index, weight in enumerate(searcher.weights):
            weight.copy_(tensors[f"weight.{index}"])
    for name, optimizer in _optimizers(searcher).items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(name + "."):
                _, index, field = key.split(".")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    searcher.step, searcher.cost = rest["step"], Cost(**rest["cost"])
    searcher.history = rest["history"]
    searcher.records = list(zip(rest["record_steps"], tensors["records"].to(device), strict=True))
    return True


def _optimizers(searcher: Any) -> dict[str, torch.optim.Optimizer]:
    return {"alpha_moment": searcher.alpha_optimizer, "weight_moment": searcher.weight_optimizer}
