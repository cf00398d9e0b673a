"""A saved search, ready to be cut again at once: what stands still is computed once.

``Recut(run).gates(step, budget)`` is ``run.gates_at(step, budget)`` in a few milliseconds on a thousand candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from s3pet.gates import Budget
from s3pet.plots.grid import value_limits
from s3pet.result import SearchResult, config_hash
from s3pet.structure import Structure, select_mask, select_structure
from s3pet.transfer import average_gates

QUANTITIES = {"prob": "probability", "alpha": "α", "margin": "margin to the cut"}
OF_AVERAGES = {"frequency": "share of the searches", "prob_spread": "spread of the probability"}


class Recut:
    """One search, or the average of several of one space, at any recorded step and budget.

    Attributes:
        result: the search, or the average.
        searches: names → results whose choices `choices` tells: those averaged, or the searches beside it.
        steps: recorded ones, in order; empty for an average.
        names: of the candidates.
    """

    def __init__(self, searches: Mapping[str, SearchResult], result: SearchResult | None = None):
        self.searches = dict(searches)
        self.averaged = result is None
        self.result = average_gates(self.searches) if result is None else result
        self.names = [candidate.name for candidate in self.result.space]
        self.costs = self.result.space.costs
        self._table = self.result.gates.reset_index(drop=True)
        self._probs = {name: search.probs for name, search in self.searches.items()}
        path = self.result.trajectory
        self.steps: list[int] = [] if path.empty else sorted(int(step) for step in path["step"].unique())

    @functools.cached_property
    def _paths(self) -> dict[str, np.ndarray]:
        """α and probability of every candidate at every recorded step: [n_steps, n_candidates]."""
        path = self.result.trajectory
        wide = {name: path.pivot(index="step", columns="candidate", values=name) for name in ("alpha", "prob")}
        return {name: table[self.names].to_numpy("float64") for name, table in wide.items()}

    @functools.cached_property
    def _kept(self) -> pd.DataFrame:
        return self.result.space.table()

    @property
    def total(self) -> int:
        """Parameters of the whole space."""
        return int(self.costs.sum())

    @property
    def cheapest(self) -> int:
        """Parameters of its cheapest candidate."""
        return int(self.costs.min())

    @property
    def quantities(self) -> dict[str, str]:
        """Columns worth a map, and what to call them."""
        return QUANTITIES | (OF_AVERAGES if self.averaged else {})

    def budget(self, n_params: int) -> Budget:
        """A budget against this backbone."""
        return Budget(n_params, self.result.space.backbone_params)

    def gates(self, step: int | None, n_params: int) -> pd.DataFrame:
        """The gate table at a step (None: the end), with what is chosen and the margins at a budget.

        ``frequency`` of an average is the share of its searches that choose the candidate at this budget.
        """
        alpha, prob = self._at(step)
        mask = select_mask(prob, self.costs, n_params).numpy()
        table = (self._table if step is None else self._kept).copy(deep=False)
        table["alpha"], table["prob"], table["chosen"] = alpha, prob.numpy(), mask
        table["margin"] = table["prob"] - float(table["prob"].to_numpy()[mask].min()) if mask.any() else np.nan
        if self.averaged:
            table["frequency"] = np.mean([*self._masks(n_params).values()], axis=0)
        return table

    def choices(self, n_params: int, candidate: str) -> dict[str, bool]:
        """Which of the searches choose a candidate at a budget, at their ends."""
        at = self.names.index(candidate)
        return {name: bool(mask[at]) for name, mask in self._masks(n_params).items()}

    def structure(self, step: int | None, n_params: int) -> Structure:
        """The structure at a step and budget; where it came from says so."""
        if step is None:
            return self.result.structure(n_params)
        config = self.result.config
        origin: dict[str, Any] = {"kind": "searched", "searched_at": config["budget"], "step": step}
        origin |= {key: config[key] for key in ("task", "seed", "order", "steps") if key in config}
        origin["config_hash"] = config_hash(config)
        return select_structure(self.result.space, self._at(step)[1], n_params, origin=origin)

    def limits(self, value: str) -> tuple[float, float]:
        """Colour limits that hold at every step and budget, so that colours can be compared between them."""
        if value in ("frequency", "prob_spread"):
            return value_limits(self._table, value=value)
        source = "alpha" if value == "alpha" else "prob"
        known = [self._table[source].to_numpy("float64"), *([self._paths[source].ravel()] if self.steps else [])]
        values = np.concatenate(known)
        if value == "margin":
            values = np.array([values.max()])  # no margin is larger
        return value_limits(pd.DataFrame({value: values}), value=value)

    def _at(self, step: int | None) -> tuple[np.ndarray, torch.Tensor]:
        if step is None or step not in self.steps:
            return self._table["alpha"].to_numpy("float64"), torch.tensor(self._table["prob"].to_numpy("float64"))
        row = self.steps.index(step)
        return self._paths["alpha"][row], torch.tensor(self._paths["prob"][row])

    def _masks(self, n_params: int) -> dict[str, np.ndarray]:
        return {name: select_mask(probs, self.costs, n_params).numpy() for name, probs in self._probs.items()}
