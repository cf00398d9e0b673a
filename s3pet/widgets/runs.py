"""The saved searches that a widget shows: finding them, naming them, cutting them at another step and budget."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from s3pet.errors import RunError
from s3pet.files.reading import path_of, reading
from s3pet.plots import value_limits
from s3pet.result import SearchResult, load_run, read_config
from s3pet.structure import Structure, by_gates, select_by_gates, select_structure
from s3pet.transfer import average_gates

QUANTITIES = {"prob": "probability", "alpha": "α", "margin": "margin to the cut"}
EXPECTED = (
    "Expected a run folder, a folder with runs below it, a search result, or a list or mapping of these; to make a "
    "run: s3pet.search(…, out='runs/demo')."
)


class Entry(NamedTuple):
    """A run that is not read yet: its name, the config of the search, and a function that returns the result."""

    name: str
    config: Mapping[str, Any]
    open: Callable[[], SearchResult]

    def value(self, field: str) -> str:
        """A field of the config as text, or the name as "run"."""
        value = self.name if field == "run" else self.config.get(field, "—")
        return value if isinstance(value, str) else json.dumps(value)


def find_runs(runs: Any, name: str = "") -> list[Entry]:
    """List the runs in what the user passed to a widget; ``name`` is put before their names.

    Raises:
        RunError: there is none.
    """
    if isinstance(runs, SearchResult):
        return [Entry(name or (runs.path.name if runs.path else "search"), runs.config, lambda: runs)]
    if isinstance(runs, (str, Path)):
        return _folders(path_of(runs, name="runs"), name)
    if isinstance(runs, Mapping):
        entries = [entry for key, part in runs.items() for entry in find_runs(part, f"{name} {key}".strip())]
    elif isinstance(runs, Iterable):
        entries = [entry for part in runs for entry in find_runs(part, name)]
    else:
        raise RunError(f"{type(runs).__name__} {runs!r:.80} is no run. {EXPECTED}")
    if not entries:
        raise RunError(f"the {type(runs).__name__} of runs is empty. {EXPECTED}")
    return entries


def _folders(root: Path, name: str) -> list[Entry]:
    files = [file for file in sorted(root.rglob("config.json")) if (file.parent / "gates.parquet").is_file()]
    if not files:
        what = "holds no finished run (config.json and gates.parquet)" if root.exists() else "does not exist"
        raise RunError(f"{root} {what}. {EXPECTED}")
    entries = []
    for file in files:
        below = "" if file.parent == root else file.parent.relative_to(root).as_posix()
        with reading(file, hint="Run this search again, or leave it out"):
            config = read_config(file)
        opener = functools.cache(functools.partial(load_run, file.parent))
        entries.append(Entry(f"{name} {below}".strip() or root.name, config, opener))
    return entries


def open_runs(entries: Sequence[Entry]) -> dict[str, SearchResult]:
    """Open runs and name them: by their seeds if these differ, else by their own names, numbered if need be."""
    choices = [f"seed {entry.value('seed')}" for entry in entries], [entry.name for entry in entries]
    numbered = [f"{i} {entry.name}" for i, entry in enumerate(entries, 1)]
    names = next((names for names in choices if len({*names}) == len(names)), numbered)
    return {name: entry.open() for name, entry in zip(names, entries, strict=True)}


class SavedSearch:
    """A saved search, or the average of several, that can be cut at any recorded step and any budget.

    Attributes:
        result: the search, or the average. averaged: which of the two.
        searches: names → results: those that are averaged, or the same search with other seeds.
        steps: recorded steps, in order; empty for an average. names: of the candidates.
        title: task and seed.
    """

    def __init__(self, searches: Mapping[str, SearchResult], result: SearchResult | None = None):
        """Without a ``result``, the searches are averaged."""
        self.searches, self.averaged = searches, result is None
        self.result = average_gates(searches) if result is None else result
        self.names = [candidate.name for candidate in self.result.space]
        self.steps = sorted(map(int, self.result.trajectory["step"].unique()))
        task, seed = (self.result.config.get(field, "—") for field in ("task", "seed"))
        whose = f"mean of {len(searches)} searches" if self.averaged else f"seed {seed}"
        self.title = f"{str(task).rpartition('/')[2]}, {whose}"

    def gates(self, step: int | None, n_params: int) -> pd.DataFrame:
        """The gate table at a step (None: the end) and a budget, which the ``frequency`` of an average is for, too."""
        table = self.result.gates_at(step, n_params)
        return table.assign(frequency=self.choices(n_params).mean(axis=1).to_numpy()) if self.averaged else table

    def choices(self, n_params: int) -> pd.DataFrame:
        """Which of the searches choose which candidate at a budget: candidates × searches."""
        space = self.result.space
        masks = {name: select_by_gates(space, search.probs, n_params) for name, search in self.searches.items()}
        return pd.DataFrame({name: mask.numpy() for name, mask in masks.items()}, index=self.names)

    def structure(self, step: int | None, n_params: int) -> Structure:
        """The structure at a step (None: the end) and a budget; its ``origin`` says so."""
        structure = self.result.structure(n_params)
        if step is None:
            return structure
        probs = torch.tensor(self.gates(step, n_params)["prob"].to_numpy("float64"))
        space, origin = self.result.space, {**structure.origin, "step": step}
        return select_structure(space, by_gates(space, probs), n_params, origin=origin)

    def limits(self, value: str) -> tuple[float, float]:
        """Colour limits that hold at every step and budget, so that colours can be compared between them."""
        column = "prob" if value == "margin" else value
        tables = [table for table in (self.result.gates, self.result.trajectory) if column in table]
        values = np.concatenate([table[column].to_numpy("float64") for table in tables])
        if value == "margin":
            values = values.max(keepdims=True)  # no margin is larger than the largest probability
        return value_limits(pd.DataFrame({value: values}), value=value)
