"""What a search leaves: a result in memory and a run folder on disk.

A run folder can be read without the model:

    config.json          everything that repeats the run: model, task, space, budget, settings, versions
    gates.parquet        the gate table: one row per candidate (site … n_params, alpha, prob, chosen, margin)
    history.parquet      one row per step: losses and learning rates
    trajectory.parquet   alpha and prob of every candidate at every recorded step
    structure.json       the structure at the searched budget
    metrics.json         steps done, cost, diagnostics
    checkpoint/          while the search runs: one file from which it continues

Batches, noise and dropout are functions of (seed, step), so α, the weights, the moments of both optimisers, the history
and the records are the whole state of a search. Tables are plain pandas; nothing that is read here is executed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from s3pet.errors import RunError
from s3pet.gates import Budget, BudgetLike
from s3pet.records import Cost, config_hash, write_json, write_table
from s3pet.space import Candidate, Space
from s3pet.structure import Structure, by_gates, parse_budget, select_by_gates, select_structure

STATE = "state.safetensors"
FINISHED = {"finished run": "config.json", "tuned model": "tuned.json"}  # the file that is written last
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
        """Write the run folder; raises RunError if a finished run is there and ``overwrite`` is not set."""
        path = prepare_folder(path, "finished run", overwrite)
        (path / "config.json").unlink(missing_ok=True)  # written last: its presence says that the run is complete
        for name in ("history", "trajectory", "gates"):
            write_table(getattr(self, name), path / f"{name}.parquet")
        self.structure().to_json(path / "structure.json")
        write_json(self.metrics, path / "metrics.json")
        write_json(self.config, path / "config.json")
        self.path = path
        return path

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
    """Open a run folder without the model; raises RunError, which says what is missing, if it is not complete."""
    path = Path(path)
    names = ("config.json", "metrics.json", "gates.parquet", "history.parquet", "trajectory.parquet")
    if missing := ", ".join(name for name in names if not (path / name).is_file()):
        raise RunError(f"{path} is not a finished run: {missing} missing. Make one: search(…, out={path})")
    config, metrics = (json.loads((path / name).read_text(encoding="utf-8")) for name in names[:2])
    gates, history, trajectory = (pd.read_parquet(path / name) for name in names[2:])
    candidates = tuple(Candidate.from_row(row) for row in gates.to_dict("records"))  # type: ignore[arg-type]
    space = Space(candidates, config["space"], config["model"], config["backbone_params"])
    return SearchResult(space, config, gates, history, trajectory, metrics, path)


def prepare_folder(path: str | Path, kind: str, overwrite: bool, make: bool = True) -> Path:
    """Make a folder; raises RunError if it holds a result of this kind that may not be replaced, or cannot be made."""
    path = Path(path)
    if (path / FINISHED[kind]).exists() and not overwrite:
        raise RunError(f"{path} holds a {kind}; choose another folder or pass overwrite=True")
    if not make:
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be a folder for a {kind}: {error}") from error
    return path


def save_state(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], rest: Any) -> None:
    """Write the state of a running search, replacing the last one in one move.

    The config and the ``rest`` travel as JSON in the header of the safetensors file, so that the state is one file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (STATE + ".part")
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(copies, temporary, metadata={"state": json.dumps({"config": _decisive(config), "rest": rest})})
    os.replace(temporary, folder / STATE)


def load_state(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], Any] | None:
    """The state that :func:`save_state` wrote, or None; raises RunError if it is damaged or of another config."""
    if not (path := folder / STATE).is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        saved, rest = state["config"], state["rest"]
    except Exception as error:  # safetensors raises undocumented types for damaged files
        raise RunError(f"{path} cannot be read ({error}); remove it to start this search anew") from error
    now = json.loads(json.dumps(_decisive(config)))
    different = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if different:
        changes = ", ".join(f"{name} {saved.get(name)!r} → {now.get(name)!r}" for name in different)
        raise RunError(
            f"{folder.parent} holds an unfinished search with other settings ({changes}); choose another folder, pass "
            "the same settings to continue, or overwrite=True to start anew"
        )
    return tensors, rest


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run: all of its config but the versions of the libraries."""
    return {name: value for name, value in config.items() if name != "versions"}
