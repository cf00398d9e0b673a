"""A population that is trained in a folder: it goes on from its last checkpoint, exactly as it would have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from s3pet import trainer
from s3pet.files.states import load_state, save_state
from s3pet.studies.population import Population


def train_in(folder: Path | None, population: Population, *, score: bool = True) -> None:
    """:meth:`Population.train` to the last step, with checkpoints at least every minute, but not all of the time.

    The name of the folder stands for all that decides the training. None: no checkpoints.

    Raises:
        RunError: the checkpoint is damaged.
    """
    if folder is None:
        population.train(score=score)
        return
    config = {"key": folder.name}
    if (state := load_state(folder, config, _tensors(population))) is not None:
        _restore(population, *state)
    due = time.perf_counter()

    def save() -> None:
        nonlocal due
        if (started := time.perf_counter()) >= due:
            names = ("step", "rows", "best", "best_step", "curves")
            rest = {name: getattr(population, name) for name in names} | {"scored": population.objective.scored}
            save_state(folder, config, _tensors(population), rest)
            now = time.perf_counter()
            due = now + min(trainer.AT_MOST, trainer.PAUSE * (now - started))

    population.train(after=save, score=score)


def _tensors(population: Population) -> dict[str, torch.Tensor]:
    theta, moments = population.theta.detach(), population._optimizer.state.get(population.theta, {})
    zeros = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(theta), "exp_avg_sq": torch.zeros_like(theta)}
    own = {"theta": theta, "best_theta": population._best_theta, "finite": population.finite}
    return own | {f"optimizer.{name}": moments.get(name, zero) for name, zero in zeros.items()}


def _restore(population: Population, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
    own = {name: tensors[name].to(like.device) for name, like in _tensors(population).items()}
    with torch.no_grad():
        population.theta.copy_(own["theta"])
    population._best_theta, population.finite = own["best_theta"], own["finite"]
    moments = {name: own[f"optimizer.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
    population._optimizer.state[population.theta] = moments
    population.objective.scored = rest.pop("scored")
    population.curves = [[tuple(point) for point in curve] for curve in rest.pop("curves")]
    for name, value in rest.items():
        setattr(population, name, value)
