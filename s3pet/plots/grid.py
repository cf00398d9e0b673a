"""Where candidates lie on a map of layers × module types, and what each cell shows. Nothing is drawn here.

A map has a column for every layer (encoder | decoder) and a row for every pair of role and PET module, in groups.
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
LABELS = {"prob": "gate probability", "alpha": "α", "share": "share of the parameters (%)", "n_params": "parameters"}
LABELS |= {"margin": "margin: probability − cut", "frequency": "share of the searches that chose it"}
LABELS |= {"prob_spread": "spread of the gate probability (standard deviation)", "difference": "difference"}
DIVERGING = ("margin", "difference")  # their scale is symmetric around 0
MAP_COLUMNS = ("stack", "layer", "role", "pet")
GAP, HEADER = 0.7, 1.1  # in cells: space between two stacks, height of a group's heading


@dataclass(frozen=True)
class Grid:
    """Positions of the rows and columns of a map. Cells are 1 × 1 around (x, y), and y grows downwards."""

    rows: dict[tuple[str, str], float]  # (role, pet) → y
    columns: dict[tuple[str, str], float]  # (stack, "0", "1", … or "embed", "final") → x
    headers: dict[str, float]  # group → y of its heading

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, in cells."""
        return max(self.columns.values()) + 1, max(self.rows.values()) + 1


def _columns(table: pd.DataFrame) -> pd.Series:
    """The column of each candidate: its layer, or "embed" or "final" for sites outside the layers."""
    layer = pd.to_numeric(table["layer"]).astype("Int64").astype("string")
    return layer.fillna(table["role"].astype("string").str.partition(".")[0]).astype(object)


def make_grid(candidates: pd.DataFrame) -> Grid:
    """Lay out the map of a table with ``stack, layer, role, pet``.

    Every stack has a column for each layer up to its highest one, also for layers without a candidate, "embed" before
    and "final" after them.
    """
    columns: dict[tuple[str, str], float] = {}
    for stack in sorted(candidates["stack"].unique(), key=lambda name: (name != "encoder", name != "decoder", name)):
        names = set(_columns(candidates[candidates["stack"] == stack]))
        n_layers = max((int(name) + 1 for name in names if name.isdigit()), default=0)
        after = sorted(name for name in names if not name.isdigit() and name != "embed")
        start = max(columns.values()) + 1 + GAP if columns else 0.0
        ordered = ["embed"] * ("embed" in names) + [str(layer) for layer in range(n_layers)] + after
        columns |= {(stack, name): start + i for i, name in enumerate(ordered)}
    rank = {name: i for names in (ROLES, PETS) for i, name in enumerate(names)}
    pairs = set(zip(candidates["role"], candidates["pet"], strict=True))
    rows: dict[tuple[str, str], float] = {}
    headers: dict[str, float] = {}
    for role, pet in sorted(pairs, key=lambda pair: [(rank.get(name, 99), name) for name in pair]):
        headers.setdefault(ROLES.get(role, ("other",))[0], len(rows) + HEADER * len(headers))
        rows[role, pet] = len(rows) + HEADER * len(headers)
    return Grid(rows, columns, headers)


def gate_cells(gates: Any, value: str = "prob", *, grid: Grid | None = None, how: str = "max") -> pd.DataFrame:
    """The occupied cells of a map: ``role, pet, stack, column, value, chosen, inert, n_candidates, x, y``.

    A cell with several candidates (one PET module in several ranks or sizes) shows their maximum, or ``how="sum"``. It
    is chosen if any of them is chosen, and inert if all are inert; without these columns in the table, it is neither.

    Args:
        gates: a gate table, or an object with ``.gates``.
        value: any numeric column.
        grid: the layout; None: that of the table.
    """
    table = as_table(gates, [*MAP_COLUMNS, value])
    if not pd.api.types.is_numeric_dtype(table[value]):
        raise PlotError(f"Column {value!r} holds {table[value].dtype}; a colour needs numbers, as 'prob' has.")
    grid = grid or make_grid(table)
    flags = {name: flag(table, name) for name in ("chosen", "inert")}
    table = table.assign(column=_columns(table), value=table[value].astype(float), **flags)
    groups = table.groupby(["role", "pet", "stack", "column"], sort=False, observed=True)
    columns = {"value": ("value", how), "chosen": ("chosen", "any"), "inert": ("inert", "all")}
    cells = groups.agg(**columns, n_candidates=("value", "size")).reset_index()
    cells["x"] = [grid.columns[key] for key in zip(cells["stack"], cells["column"], strict=True)]
    cells["y"] = [grid.rows[key] for key in zip(cells["role"], cells["pet"], strict=True)]
    return cells


def value_limits(*tables: Any, value: str = "prob") -> tuple[float, float]:
    """Colour limits ``(vmin, vmax)`` that several maps can share.

    They begin at 0 for values that are never negative, and are symmetric around 0 for margins and differences.
    """
    columns = [as_table(table, [value], one=())[value] for table in tables]
    values = np.concatenate([column.to_numpy(float, na_value=np.nan) for column in columns])
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = min(0.0, float(np.nanmin(values))), float(np.nanmax(values))
    if value == "frequency":
        high = 1.0
    if value in DIVERGING:
        low, high = -max(high, -low), max(high, -low)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def cut_and_start(gates: pd.DataFrame) -> dict[str, float]:
    """The lowest probability among the chosen, if known, and that of all candidates at uniform α (Σ c·p / Σ c)."""
    known = "margin" in gates and gates["margin"].notna().any()
    cut = {"cut": float((gates["prob"] - gates["margin"]).median())} if known else {}
    return cut | {"uniform start": float((gates["prob"] * gates["n_params"]).sum() / gates["n_params"].sum())}
