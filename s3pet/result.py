"""What a search leaves: a result in memory and a run folder on disk.

A run folder can be read without the model:

    config.json          everything that repeats the run: model, task, space, budget, settings, versions
    gates.parquet        the gate table: one row per candidate (site … n_params, alpha, prob, chosen, margin)
    history.parquet      one row per step: losses and learning rates
    trajectory.parquet   alpha and prob of every candidate at every recorded step
    structure.json       the structure at the searched budget
    metrics.json         steps done, cost, diagnostics
    files.json           hashes of the above, which belong together
    checkpoint/          while the search runs: one file from which it continues

Batches, noise and dropout are functions of (seed, step), so α, the weights, the moments of both optimisers, the history
and the records are the whole state of a search. Tables are plain pandas; nothing that is read here is executed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from s3pet.errors import RunError
from s3pet.files.kinds import ANY_NUMBER, FLAG, RECORD, TEXT, Kind, mapping, number, one_or_texts, optional, whole
from s3pet.files.reading import path_of, read_json, read_table, reading
from s3pet.files.states import STATE
from s3pet.files.writing import new_folder, saved_files, write_json, write_table
from s3pet.gates import Budget, BudgetLike
from s3pet.records import Cost, config_hash
from s3pet.space import CANDIDATE, Candidate, Space
from s3pet.structure import Structure, by_gates, check_candidates, parse_budget, select_by_gates, select_structure

CONFIG, FINISHED = "config.json", "finished run"
_PROB, _RATES = number(0, 1), {"lr": number(0), "alpha_lr": number(0)}
TABLES: dict[str, dict[str, Kind]] = {
    "gates": {**CANDIDATE, "alpha": number(), "prob": _PROB, "chosen": FLAG, "margin": optional(number())},
    "history": {"step": whole(1), **_RATES, **dict.fromkeys(("loss_train", "loss_val"), ANY_NUMBER)},
    "trajectory": {"candidate": TEXT, "step": whole(), "alpha": number(), "prob": _PROB},
}
OPTIONAL = ("calls", "inert", "redundant", "lr", "alpha_lr", "loss_train", "loss_val")  # columns that may be missing
CONFIG_FIELDS = {
    **dict.fromkeys(("model", "space", "model_hash", "task_hash", "space_hash", "order", "gradient"), TEXT),
    **{name: whole(1) for name in ("backbone_params", "budget", "batch_size", "results_version")},
    **{"task": one_or_texts(TEXT), "seed": one_or_texts(whole()), "steps": one_or_texts(whole(1))},  # of an average
    **{"warmup": whole(), **_RATES, "versions": mapping(TEXT)},
}
METRICS = {
    **{"stopped": optional(TEXT), "steps": whole(), "head_params": whole(), "cost": RECORD, "passes": whole()},
    **{name: optional(number(0)) for name in ("seconds", "settled", "max_prob", "uniform_prob", "sampling_gap")},
}
RESULTS_VERSION = 2  # raised when the same config gives other numbers


@dataclass
class SearchResult:
    """The result of a search.

    Attributes:
        space, config: the candidates that were searched, and everything that repeats the search.
        gates, history: the gate table, one row per candidate; and one row per step.
        trajectory: one row per recorded step and candidate (``candidate, step, alpha, prob``).
        metrics: cost and diagnostics; ``stopped`` says why a search ended early, None if it did not.
        path: the run folder, if saved.
    """

    space: Space
    config: dict[str, Any]
    gates: pd.DataFrame
    history: pd.DataFrame
    trajectory: pd.DataFrame
    metrics: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def budget(self) -> Budget:
        """The budget of the search."""
        return Budget(self.config["budget"], self.space.backbone_params)

    @property
    def cost(self) -> Cost:
        """What the search cost."""
        return Cost.of(self.metrics)

    @property
    def probs(self) -> torch.Tensor:
        """Probability of each candidate, float64 [n_candidates]."""
        return torch.tensor(self.gates["prob"].to_numpy(dtype="float64"))

    @property
    def loss_drop(self) -> float:
        """1 − (mean loss on search_val in the last quarter of steps) / (mean on search_train in the first twentieth).

        Near 0 the supernet has learned nothing that holds on other rows, and α followed noise: try another ``lr`` or
        more steps. NaN without a history, or if the search ended during the warm-up.
        """
        if not len(self.history):
            return math.nan
        first = self.history["loss_train"].iloc[: max(1, len(self.history) // 20)].mean()
        return float(1 - self.history["loss_val"].iloc[-max(1, len(self.history) // 4) :].mean() / first)

    def structure(self, budget: BudgetLike | None = None) -> Structure:
        """The structure at a budget: one search ranks all candidates, so it can be cut at any budget.

        Args:
            budget: any form that :meth:`s3pet.Budget.parse` reads, at least the cost of the cheapest candidate (else
                BudgetError); None: the budget of the search.
        """
        origin = {"kind": "searched", "searched_at": self.config["budget"]}
        origin |= {key: self.config[key] for key in ("task", "seed", "order") if key in self.config}
        steps = self.metrics.get("steps", self.config.get("steps"))
        origin |= {} if steps is None else {"steps": steps}
        origin["config_hash"] = config_hash(self.config)
        ranked = by_gates(self.space, self.probs)
        return select_structure(self.space, ranked, self.budget if budget is None else budget, origin=origin)

    def gates_at(self, step: int | None = None, budget: BudgetLike | None = None) -> pd.DataFrame:
        """The gate table at a recorded step, or cut at another budget.

        Args:
            step: a step of the trajectory (RunError if it was not recorded); None: the end of the search.
            budget: what ``chosen`` and ``margin`` refer to, as for :meth:`structure`; None: that of the search.
        """
        table = self.gates
        optional(whole()).check(RunError, step=step)
        if step is not None:
            steps = sorted(set(self.trajectory["step"]))
            if step not in steps:
                hint = f"recorded are {', '.join(f'{s:g}' for s in steps)}" if steps else "it has no trajectory"
                raise RunError(f"step {step} was not recorded; {hint}")
            table = self.trajectory[self.trajectory["step"] == step].set_index("candidate").loc[[*self.space.names]]
        alpha, prob = (torch.tensor(table[name].to_numpy("float64")) for name in ("alpha", "prob"))
        cut = parse_budget(self.space, self.budget if budget is None else budget)
        gates = gate_table(self.space, alpha, prob, cut.n_params)
        extra = [name for name in self.gates if name not in gates]
        return pd.concat([gates, self.gates[extra]], axis=1) if extra and step is None else gates

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the run folder, all files or none.

        Raises RunError if a finished run is there and ``overwrite`` is not set, or the folder cannot be written to.
        """
        with new_folder(path, CONFIG, FINISHED, overwrite) as folder:
            for name in TABLES:
                write_table(getattr(self, name), folder / f"{name}.parquet")
            self.structure().to_json(folder / "structure.json")
            write_json(self.metrics, folder / "metrics.json")
            write_json(self.config, folder / CONFIG)
        self.path = Path(path)
        return self.path

    def __repr__(self) -> str:
        where = f", {self.path}" if self.path else ""
        return f"SearchResult({self.config.get('task')}, {self.space!r}, budget {self.budget}{where})"


def gate_table(space: Space, alpha: torch.Tensor, probs: torch.Tensor, budget: int) -> pd.DataFrame:
    """The table of the space with ``alpha, prob, chosen, margin`` (prob minus the smallest one among the chosen).

    Of several sizes of a module at a site, margin is about the probability of this size or a larger one, by which they
    are chosen (:func:`s3pet.structure.by_gates`). A candidate that was skipped because it was too expensive, or because
    a larger size of it was chosen, can have a positive margin.
    """
    mask, ranked = select_by_gates(space, probs, budget), by_gates(space, probs).double().numpy()
    cut = float(ranked[mask.numpy()].min()) if bool(mask.any()) else math.nan
    a, p = (tensor.detach().cpu().double().numpy() for tensor in (alpha, probs))
    return space.table().assign(alpha=a, prob=p, chosen=mask.numpy(), margin=ranked - cut)


def load_run(path: str | Path) -> SearchResult:
    """Open a run folder without the model.

    Raises RunError, with the path and the reason, if it is not complete, or its files are damaged or not of one run.
    """
    path = path_of(path)
    unfinished = os.path.exists(path / "checkpoint" / STATE)
    how = f"Call search(…, out={path}) {'again to continue it' if unfinished else 'to make one'}."
    files = saved_files(path, FINISHED, (CONFIG, "metrics.json", *(f"{name}.parquet" for name in TABLES)), how)
    with reading(path / CONFIG):
        config = read_config(files[CONFIG])
    with reading(path / "metrics.json"):
        metrics = read_json(files["metrics.json"], METRICS)
        Cost.of(metrics)
    tables = []
    for name, kinds in TABLES.items():
        with reading(path / f"{name}.parquet"):
            required = [column for column in kinds if column not in OPTIONAL]
            tables.append(read_table(files[f"{name}.parquet"], kinds, required))
    gates, history, trajectory = tables
    with reading(path / "gates.parquet"):
        candidates = tuple(Candidate.from_row(row) for row in gates.to_dict("records"))  # type: ignore[arg-type]
        check_candidates(candidates, None)
        space = Space(candidates, config["space"], config["model"], config["backbone_params"])
        if not candidates or config["budget"] > max(space.n_params, space.backbone_params):
            raise ValueError(f"{len(space)} candidates of {space.n_params} parameters for a budget {config['budget']}")
        if config.get("space_hash", names := space_hash(space)) != names:
            raise ValueError(f"its candidates are not those of {CONFIG}")
        alpha, probs = (torch.tensor(gates[name].to_numpy("float64")) for name in ("alpha", "prob"))
        cut = gate_table(space, alpha, probs, config["budget"])
        if not (cut["chosen"].equals(gates["chosen"]) and np.allclose(cut["margin"], gates["margin"], equal_nan=True)):
            raise ValueError("chosen or margin do not follow from prob, costs and budget")
    with reading(path / "history.parquet"):
        if (history["step"].diff().iloc[1:] <= 0).any():
            raise ValueError("its steps do not rise")
    with reading(path / "trajectory.parquet"):
        steps = trajectory.groupby("step")["candidate"].agg(["size", "nunique"])
        if not trajectory["candidate"].isin([*space.names]).all() or not (steps == len(space)).all(axis=None):
            raise ValueError("a step does not have every candidate of the gate table once")
    return SearchResult(space, config, gates, history, trajectory, metrics, path)


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run; inside :func:`s3pet.files.reading`."""
    return read_json(path, CONFIG_FIELDS, ("model", "backbone_params", "space", "budget"))


def space_hash(space: Space) -> str:
    """Hash of the names of the candidates."""
    return config_hash({"candidates": space.names})
