"""Where things lie on a map of layers × module types, and what each cell shows. Nothing is drawn here.

A column for every layer (encoder | decoder), a row for every role × PET pair, in groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from s3pet.errors import PlotError
from s3pet.plots.style import PETS, as_table, flag

_BLOCKS = (("attn", "attention", "q k v o"), ("cross", "cross-attention", "q k v o"), ("ffn", "FFN", "in gate out"))
ROLES = {f"{block}.{part}": (group, part) for block, group, parts in _BLOCKS for part in parts.split()}
ROLES |= {f"{block}.norm": ("norms", block) for block in ("attn", "cross", "ffn", "embed", "final")}
ROLES |= {block: ("block adapters", block) for block in ("attn", "cross", "ffn")}
LABELS = {"prob": "gate probability", "margin": "margin: probability − cut", "share": "share of the parameters (%)"}
LABELS |= {"alpha": "α", "frequency": "share of the searches that chose it", "difference": "difference"}
LABELS |= {"prob_spread": "spread of the gate probability (standard deviation)", "n_params": "parameters"}
DIVERGING = ("margin", "difference")  # 0 is the middle of their scale
MAP_COLUMNS = ("stack", "layer", "role", "pet")
_CELL = ["role", "pet", "stack", "column"]
GAP, HEADER = 0.7, 1.1  # in cells: between two stacks, height of a group's heading


@dataclass(frozen=True)
class Grid:
    """Where the rows and columns of a map lie, in cells of 1 × 1 centred on (x, y); y grows downwards."""

    rows: dict[tuple[str, str], float]  # (role, pet) → y
    columns: dict[tuple[str, str], float]  # (stack, "0", "1", … or "embed", "final") → x
    headers: dict[str, float]  # group → y of its heading

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return max(self.columns.values()) + 1, max(self.rows.values()) + 1


def _columns(table: pd.DataFrame) -> pd.Series:
    """The column of each candidate: its layer, or for sites outside the layers "embed" or "final"."""
    layer = pd.to_numeric(table["layer"]).astype("Int64").astype("string")
    return layer.fillna(table["role"].astype("string").str.partition(".")[0]).astype(object)


def make_grid(candidates: pd.DataFrame) -> Grid:
    """Lay out the map of a table with ``stack, layer, role, pet``.

    Rows are the role × PET pairs in the table, by group. Columns are, per stack, every layer up to the highest (one
    without candidates keeps its column, so that a hole in the space is seen), "embed" before and "final" after them.
    """
    columns: dict[tuple[str, str], float] = {}
    for stack in sorted(candidates["stack"].unique(), key=lambda name: (name != "encoder", name != "decoder", name)):
        here = set(_columns(candidates[candidates["stack"] == stack]))
        n_layers = max((int(name) + 1 for name in here if name.isdigit()), default=0)
        outside = sorted(name for name in here if not name.isdigit() and name != "embed")
        start = max(columns.values()) + 1 + GAP if columns else 0.0
        names = ["embed"] * ("embed" in here) + [str(i) for i in range(n_layers)] + outside
        columns |= {(stack, name): start + i for i, name in enumerate(names)}
    rank = {name: i for names in (ROLES, PETS) for i, name in enumerate(names)}
    pairs = set(zip(candidates["role"], candidates["pet"], strict=True))
    rows: dict[tuple[str, str], float] = {}
    headers: dict[str, float] = {}
    for role, pet in sorted(pairs, key=lambda pair: [(rank.get(name, 99), name) for name in pair]):
        headers.setdefault(ROLES.get(role, ("other",))[0], len(rows) + HEADER * len(headers))
        rows[role, pet] = len(rows) + HEADER * len(headers)
    return Grid(rows, columns, headers)


def gate_cells(gates: Any, value: str = "prob", *, grid: Grid | None = None, how: str = "max") -> pd.DataFrame:
    """One row per occupied cell of the map: what it shows and where.

    Several candidates in one cell (one PET module in several ranks or sizes) are shown by their maximum (``how``:
    "max", or "sum" for parameters); the cell is chosen if any of them is, inert if all are.

    Args:
        gates: a gate table, or an object with ``.gates``; ``chosen`` and ``inert`` count as False where absent.
        value: any numeric column.

    Returns:
        ``role, pet, stack, column, value, chosen, inert, n_candidates, x, y``.
    """
    table = as_table(gates, [*MAP_COLUMNS, value])
    if not pd.api.types.is_numeric_dtype(table[value]):
        raise PlotError(
            f"Column {value!r} holds {table[value].dtype}; a colour needs numbers, as in 'prob' or 'alpha'."
        )
    grid = grid or make_grid(table)
    flags = {name: flag(table, name) for name in ("chosen", "inert")}
    table = table.assign(column=_columns(table), value=table[value].astype(float), **flags)
    cells = table.groupby(_CELL, sort=False, observed=True)
    each = {"value": ("value", how), "chosen": ("chosen", "any"), "inert": ("inert", "all")}
    frame = cells.agg(**each, n_candidates=("value", "size")).reset_index()
    frame["x"] = [grid.columns[key] for key in zip(frame["stack"], frame["column"], strict=True)]
    frame["y"] = [grid.rows[key] for key in zip(frame["role"], frame["pet"], strict=True)]
    return frame


def cell_of(gates: Any, cells: pd.DataFrame) -> np.ndarray:
    """The row of ``cells``, as `gate_cells` made them, that each candidate falls into: [n_candidates]."""
    table = as_table(gates, MAP_COLUMNS)
    at = {key: i for i, key in enumerate(zip(*(cells[name] for name in _CELL), strict=True))}
    table = table.assign(column=_columns(table))
    return np.array([at[key] for key in zip(*(table[name] for name in _CELL), strict=True)])


def value_limits(*tables: Any, value: str = "prob") -> tuple[float, float]:
    """``(vmin, vmax)`` that maps can share: from 0 for what is never negative, symmetric around 0 for what diverges."""
    values = np.concatenate(
        [as_table(table, [value], one=())[value].to_numpy(float, na_value=np.nan) for table in tables]
    )
    if np.isnan(values).all():
        return 0.0, 1.0
    high, low = float(np.nanmax(values)), min(0.0, float(np.nanmin(values)))
    if value == "frequency":
        high = 1.0
    if value in DIVERGING:
        high, low = max(high, -low), -max(high, -low)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def cut_and_start(gates: pd.DataFrame) -> dict[str, float]:
    """The probability that decided, if known, and the one that all candidates share at uniform alpha (Σ c·p / Σ c)."""
    known = "margin" in gates and gates["margin"].notna().any()
    cut = {"cut": float((gates["prob"] - gates["margin"]).median())} if known else {}
    return cut | {"uniform start": float((gates["prob"] * gates["n_params"]).sum() / gates["n_params"].sum())}
