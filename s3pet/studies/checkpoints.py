"""A population that is trained in a folder: it goes on from its last checkpoint, exactly as it would have."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from s3pet import trainer
from s3pet.files.reading import reading
from s3pet.files.states import STATE, load_state, save_state
from s3pet.studies.population import Population


def train_in(folder: Path | None, population: Population, *, score: bool = True) -> None:
    """:meth:`Population.train` to the last step, from the last checkpoint in a folder; None: no checkpoints.

    The name of the folder stands for all that decides the training. Raises RunError if the checkpoint is damaged.
    """
    after = keep_going(folder, {"key": "" if folder is None else folder.name}, population, {})
    population.train(after=after, score=score)


def keep_going(
    folder: Path | None, config: dict[str, Any], population: Population, notes: dict[str, Any]
) -> Callable[[], None]:
    """Go on from the last checkpoint in a folder; returns what writes one, at least every minute but not all the time.

    Args:
        folder: None: nothing is read or written. config: decides the training. population: inside its ``with``.
        notes: what else belongs to the state, as JSON, updated here; ``left`` are the numbers of the members left.

    Raises:
        RunError: the checkpoint is damaged, or was made with another config.
    """
    if folder is None:
        return lambda: None
    if (state := load_state(folder, config, {}, what="race")) is not None:
        tensors, rest = state
        notes |= rest.pop("notes")
        if "left" in notes:
            population.keep(notes["left"])
        _restore(folder, population, tensors, rest)
    due = time.perf_counter()

    def save() -> None:
        nonlocal due
        if (started := time.perf_counter()) >= due:
            names = ("step", "rows", "best", "best_step", "curves")
            rest = {name: getattr(population, name) for name in names} | {"scored": population.objective.scored}
            save_state(folder, config, _tensors(population), rest | {"notes": notes})
            now = time.perf_counter()
            due = now + min(trainer.AT_MOST, trainer.PAUSE * (now - started))

    return save


def _tensors(population: Population) -> dict[str, torch.Tensor]:
    theta, moments = population.theta.detach(), population._optimizer.state.get(population.theta, {})
    zeros = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(theta), "exp_avg_sq": torch.zeros_like(theta)}
    own = {"theta": theta, "best_theta": population._best_theta, "finite": population.finite}
    return own | {f"optimizer.{name}": moments.get(name, zero) for name, zero in zeros.items()}


def _restore(folder: Path, population: Population, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
    like = _tensors(population)
    with reading(folder / STATE, hint="Remove it to start anew"):
        if wrong := [name for name in like if name not in tensors or tensors[name].shape != like[name].shape]:
            raise ValueError(f"{wrong[0]} has another shape")
    own = {name: tensors[name].to(now.device) for name, now in like.items()}
    with torch.no_grad():
        population.theta.copy_(own["theta"])
    population._best_theta, population.finite = own["best_theta"], own["finite"]
    moments = {name: own[f"optimizer.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
    population._optimizer.state[population.theta] = moments
    population.objective.scored = rest.pop("scored")
    population.curves = [[tuple(point) for point in curve] for curve in rest.pop("curves")]
    for name, value in rest.items():
        setattr(population, name, value)
