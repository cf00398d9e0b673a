"""What a search leaves behind: a result in memory, a run folder on disk.

A run is a folder that can be read without the model:

    config.json          all that repeats it: model id and hash, task, space, budget, settings, seed, versions
    gates.parquet        the gate table: one row per candidate (site … n_params, alpha, prob, chosen, margin)
    history.parquet      one row per step: losses, learning rates
    trajectory.parquet   alpha and prob of every candidate at every recorded step
    structure.json       the structure at the searched budget
    metrics.json         steps, what it cost, gap of the sampled gates, how settled the structure is

Tables are plain pandas; nothing read here is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from s3pet.cost import Cost
from s3pet.errors import RunError
from s3pet.gates import Budget
from s3pet.space import Candidate, Space
from s3pet.structure import Structure, parse_budget, select_mask, select_structure

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class SearchResult:
    """What a search found.

    Attributes:
        space: the candidates it searched.
        config: everything that repeats it.
        gates: the gate table, one row per candidate.
        history: one row per step.
        trajectory: long table, one row per recorded step and candidate (``candidate, step, alpha, prob``).
        metrics: costs and diagnostics.
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
        """The budget the search was run at."""
        return Budget(self.config["budget"], self.space.backbone_params)

    @property
    def cost(self) -> Cost:
        """What the search cost: passes, rows, seconds, peak memory."""
        return Cost.of(self.metrics)

    @property
    def probs(self) -> torch.Tensor:
        """Probability of each candidate, float64 [n_candidates]."""
        return torch.tensor(self.gates["prob"].to_numpy(dtype="float64"))

    @property
    def loss_drop(self) -> float:
        """How far the loss fell: 1 − its mean on search_val, last quarter of the steps, over that of the first steps.

        The first steps are a twentieth of them, on search_train, before much is learned. Near 0 the supernet has
        learned nothing that holds on other rows, and what α followed was noise: try another ``lr``, or more steps.
        nan without a history (averages), or with one that ends in the warm-up.
        """
        if not len(self.history):
            return float("nan")
        first = self.history["loss_train"].iloc[: max(1, len(self.history) // 20)].mean()
        return float(1 - self.history["loss_val"].iloc[-max(1, len(self.history) // 4) :].mean() / first)

    def structure(self, budget: int | float | str | Budget | None = None, *, per_param: bool = False) -> Structure:
        """The structure at the searched budget, or cut at another one: one search ranks all candidates.

        Args:
            budget: any form :meth:`s3pet.Budget.parse` reads; None: the searched one.
            per_param: walk down the probabilities per parameter, which favours cheap candidates, instead of the
                probabilities alone.

        Raises:
            BudgetError: unreadable, or below the cheapest candidate.
        """
        origin = {"kind": "searched", "searched_at": self.config["budget"]}
        origin |= {key: self.config[key] for key in ("task", "seed", "order", "steps") if key in self.config}
        origin["config_hash"] = config_hash(self.config)
        ranked = self.probs / self.space.costs if per_param else self.probs
        origin |= {"per_param": True} if per_param else {}
        return select_structure(self.space, ranked, self.budget if budget is None else budget, origin=origin)

    def gates_at(self, step: int | None = None, budget: int | float | str | Budget | None = None) -> pd.DataFrame:
        """The gate table as it was at a recorded step, or cut at another budget.

        Args:
            step: a step of the trajectory; None: the end of the search.
            budget: what ``chosen`` and ``margin`` are for; None: the searched one.

        Raises:
            RunError: the step was not recorded. BudgetError: as :meth:`structure`.
        """
        import pandas as pd

        alpha, prob = (torch.tensor(self.gates[name].to_numpy("float64")) for name in ("alpha", "prob"))
        if step is not None:
            steps = sorted(set(self.trajectory["step"]))
            if step not in steps:
                known = f"recorded are {', '.join(f'{s:g}' for s in steps)}" if steps else "it has no trajectory"
                raise RunError(f"step {step} was not recorded; {known}")
            then = self.trajectory[self.trajectory["step"] == step].set_index("candidate")
            names = [candidate.name for candidate in self.space]
            alpha, prob = (torch.tensor(then.loc[names, name].to_numpy("float64")) for name in ("alpha", "prob"))
        cut = parse_budget(self.space, self.budget if budget is None else budget)
        table = gate_table(self.space, alpha, prob, cut.n_params)
        more = [name for name in self.gates if name not in table]
        return pd.concat([table, self.gates[more]], axis=1) if more and step is None else table

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the run folder; raises RunError if a finished run is there and ``overwrite`` is not set."""
        path = Path(path)
        refuse_finished(path, overwrite)
        path.mkdir(parents=True, exist_ok=True)
        for name in ("history", "trajectory", "gates"):
            write_table(getattr(self, name), path / f"{name}.parquet")
        self.structure().to_json(path / "structure.json")
        write_json(self.metrics, path / "metrics.json")
        write_json(self.config, path / "config.json")  # last: its presence says that the run is whole
        self.path = path
        return path

    def __repr__(self) -> str:
        where = f", {self.path}" if self.path else ""
        return f"SearchResult({self.config.get('task')}, {self.space!r}, budget {self.budget}{where})"


def gate_table(space: Space, alpha: torch.Tensor, probs: torch.Tensor, budget: int) -> pd.DataFrame:
    """The gate table: the space's table with ``alpha, prob, chosen, margin``.

    ``margin`` is prob minus the cut, the smallest probability among the chosen; a skipped candidate that was too
    expensive can have a positive one.
    """
    mask = select_mask(probs, space.costs, budget)
    cut = float(probs[mask].min()) if bool(mask.any()) else float("nan")
    table = space.table()
    table["alpha"] = alpha.detach().cpu().double().numpy()
    table["prob"] = probs.detach().cpu().double().numpy()
    table["chosen"] = mask.numpy()
    table["margin"] = table["prob"] - cut
    return table


def load_run(path: str | Path) -> SearchResult:
    """Open a run folder without the model.

    Raises:
        RunError: not a finished run; the message says what is missing.
    """
    import pandas as pd

    path = Path(path)
    missing = [n for n in ("config.json", "gates.parquet", "history.parquet") if not (path / n).is_file()]
    if missing:
        raise RunError(f"{path} is not a finished run: {', '.join(missing)} missing. Make one: search(…, out={path})")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    gates = pd.read_parquet(path / "gates.parquet")
    candidates = tuple(Candidate.from_row(row) for row in gates.to_dict("records"))  # type: ignore[arg-type]
    space = Space(candidates, config["space"], config["model"], config["backbone_params"])
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    tables = (gates, pd.read_parquet(path / "history.parquet"), pd.read_parquet(path / "trajectory.parquet"))
    return SearchResult(space, config, *tables, metrics, path)


def refuse_finished(path: Path, overwrite: bool) -> None:
    """Raise RunError if a finished run is at ``path``, unless told to overwrite it."""
    if (path / "config.json").is_file() and not overwrite:
        raise RunError(f"{path} holds a finished run; choose another folder or pass overwrite=True")


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that change with anything in the config."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write parquet atomically."""
    temporary = path.with_name(path.name + ".part")
    table.to_parquet(temporary, index=False)
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("s3pet", "torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            found[name] = "source"
    return found
