"""Maps: layers × module types.

A gate table becomes a *map*: a column for every layer (encoder | decoder), a row for every role × PET pair; `make_grid`
and `gate_cells` compute it, the ``plot_`` functions draw. What heat maps usually hide is drawn: a place without a
candidate is hatched (it is not a zero), a candidate that cannot change the model is crossed, and the colour bar marks
the cut and the uniform start, so that gates which hardly separated look like it. All of it is vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.transforms import ScaledTranslation

from s3pet.errors import PlotError
from s3pet.plots.style import PETS, as_table, figure_of, flag, new_axes, style, styled

_BLOCKS = (("attn", "attention", "q k v o"), ("cross", "cross-attention", "q k v o"), ("ffn", "FFN", "in gate out"))
ROLES = {f"{block}.{part}": (group, part) for block, group, parts in _BLOCKS for part in parts.split()}
ROLES |= {f"{block}.norm": ("norms", block) for block in ("attn", "cross", "ffn", "embed", "final")}
ROLES |= {block: ("block adapters", block) for block in ("attn", "cross", "ffn")}
LABELS = {"prob": "gate probability", "margin": "margin: probability − cut", "share": "share of the parameters (%)"}
MAP_COLUMNS = ("stack", "layer", "role", "pet")
_GAP, _HEADER = 0.7, 1.1  # in cells: between two stacks, height of a group's heading


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
        start = max(columns.values()) + 1 + _GAP if columns else 0.0
        names = ["embed"] * ("embed" in here) + [str(i) for i in range(n_layers)] + outside
        columns |= {(stack, name): start + i for i, name in enumerate(names)}
    rank = {name: i for names in (ROLES, PETS) for i, name in enumerate(names)}
    pairs = set(zip(candidates["role"], candidates["pet"], strict=True))
    rows: dict[tuple[str, str], float] = {}
    headers: dict[str, float] = {}
    for role, pet in sorted(pairs, key=lambda pair: [(rank.get(name, 99), name) for name in pair]):
        headers.setdefault(ROLES.get(role, ("other",))[0], len(rows) + _HEADER * len(headers))
        rows[role, pet] = len(rows) + _HEADER * len(headers)
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
    cells = table.groupby(["role", "pet", "stack", "column"], sort=False, observed=True)
    each = {"value": ("value", how), "chosen": ("chosen", "any"), "inert": ("inert", "all")}
    frame = cells.agg(**each, n_candidates=("value", "size")).reset_index()
    frame["x"] = [grid.columns[key] for key in zip(frame["stack"], frame["column"], strict=True)]
    frame["y"] = [grid.rows[key] for key in zip(frame["role"], frame["pet"], strict=True)]
    return frame


def value_limits(*tables: Any, value: str = "prob") -> tuple[float, float]:
    """``(vmin, vmax)`` that maps can share: from 0 for what is never negative, symmetric around 0 for margins."""
    values = np.concatenate(
        [as_table(table, [value], one=())[value].to_numpy(float, na_value=np.nan) for table in tables]
    )
    high, low = float(np.nanmax(values)), min(0.0, float(np.nanmin(values)))
    if value == "margin":
        high, low = max(high, -low), -max(high, -low)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _squares(ax: Axes, places: Any, gid: str, inset: float = 0.03, **style: Any) -> PolyCollection:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.5 - inset)
    squares = PolyCollection([np.array(place) + corners for place in places], gid=gid, **style)
    ax.add_collection(squares, autolim=False)
    return squares


def _draw_grid(ax: Axes | None, grid: Grid, occupied: pd.DataFrame, *, hatch: bool, wide: bool) -> Axes:
    """Axes with tick labels, headings, stack names and the places without a candidate."""
    width, height = grid.size
    if ax is None:
        frame, page = 1.25 + 0.75 * wide, style().page / style().scale
        cell = float(np.clip((page - frame) / width, 0.09, 0.34))  # inches: 4 + 4 layers fill a column, 24 + 24 a page
        ax = new_axes(max(frame + cell * width, 3.35), 0.9 + 0.165 * height)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    taken = set(zip(occupied["x"], occupied["y"], strict=True))
    absent = [(x, y) for y in grid.rows.values() for x in grid.columns.values() if (x, y) not in taken]
    if absent and hatch:
        _squares(
            ax,
            absent,
            "absent",
            facecolor="none",
            linewidth=0,
            hatch="//////",
            edgecolor=style().faint,
            label="no candidate here",
        )
    elif absent:
        _squares(ax, absent, "free", facecolor=style().pale, linewidth=0)
    step_x, step_y = figure_of(ax).get_size_inches() * ax.get_position().size * 72 / grid.size  # points per cell, about
    font = float(np.clip(0.8 * step_y, 0.6 * style().font, style().font))
    every = next((n for n in (1, 2, 4, 5, 10) if n * step_x >= 1.6 * font), 20)
    ticks = {x: name for (_, name), x in grid.columns.items() if not name.isdigit() or int(name) % every == 0}
    ax.set_xticks([*ticks], ticks.values(), fontsize=font)
    for label in ax.get_xticklabels():
        label.set_rotation(0 if label.get_text().isdigit() or step_x > 2.6 * font else 90)
    names = [f"{ROLES.get(role, ('', role))[1]}  {PETS.get(pet, pet)}".replace("ffn", "FFN") for role, pet in grid.rows]
    ax.set_yticks([*grid.rows.values(), *grid.headers.values()], [*names, *grid.headers], fontsize=font)
    for label in ax.get_yticklabels()[len(names) :]:
        label.set_fontweight("bold")
    ax.annotate("layer ", (0, 0), (0, -2), "axes fraction", textcoords="offset points", ha="right", va="top", size=font)
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
    for stack, group in groupby(grid.columns.items(), key=lambda item: item[0][0]):
        xs = [x for _, x in group]
        ax.text((xs[0] + xs[-1]) / 2, -0.6, stack, ha="center", va="bottom", fontsize=font + 1, fontweight="bold")
        ax.hlines(-0.5, xs[0] - 0.5, xs[-1] + 0.5, color=style().ink, linewidth=1, clip_on=False)
        ax.hlines([*grid.headers.values()][1:], xs[0] - 0.5, xs[-1] + 0.5, color=style().faint, linewidth=0.5)
        if xs[0] > 0:
            ax.axvline(xs[0] - 0.5 - _GAP / 2, color=style().ink, linewidth=1, gid="stack-separator")
    return ax


def _draw_cells(ax: Axes, cells: pd.DataFrame, cmap: str, norm: Normalize, chosen_label: str) -> PolyCollection:
    colormap = mpl.colormaps[cmap].with_extremes(bad="#E0E0E0")
    mesh = _squares(ax, cells[["x", "y"]].to_numpy(), "gates", cmap=colormap, norm=norm, linewidth=0)
    mesh.set_array(np.ma.masked_invalid(cells["value"].to_numpy(float)))
    chosen = cells.loc[cells["chosen"], ["x", "y"]].to_numpy()
    if len(chosen):  # white under black is seen on both ends of the colour map
        _squares(ax, chosen, "chosen-halo", 0.07, facecolor="none", edgecolor="white", linewidth=2)
        _squares(ax, chosen, "chosen", 0.07, facecolor="none", edgecolor="black", linewidth=1, label=chosen_label)
    inert = cells[cells["inert"]]
    if len(inert):
        bright = mesh.to_rgba(inert["value"].to_numpy(float))[:, :3] @ [0.299, 0.587, 0.114] > 0.5
        colours = np.where(bright, "black", "white")
        ax.scatter(inert["x"], inert["y"], s=9, c=colours, marker="x", linewidths=0.8, gid="inert")
        ax.plot([], [], "kx", markersize=4, label="inert: cannot act")
    return mesh


def _finish_map(ax: Axes, mesh: PolyCollection | None, value: str, marks: dict[str, float], title: str | None) -> None:
    """Title, colour bar (unless ``mesh`` is None) with marks, and the legend under the map."""
    if title:
        ax.set_title(title, pad=16)
    if mesh is not None:
        bar = figure_of(ax).colorbar(mesh, ax=ax, aspect=30, pad=0.02, fraction=0.05, label=LABELS.get(value, value))
        assert bar.solids is not None
        bar.solids.set(rasterized=False, edgecolor="face")  # vector, and no hairlines between its steps in PDF
        bar.outline.set_visible(False)
        for (name, at), line in zip(marks.items(), ("k-", "k:"), strict=False):
            bar.ax.plot([0, 1], [at, at], "w-", [0, 1], [at, at], line, linewidth=1.2)
            bar.ax.lines[-2].set_linewidth(2.4)
            ax.plot([], [], line, linewidth=1.2, label=f"{name} {at:.3g}")
    inches = ax.get_position().width * figure_of(ax).get_figwidth()
    drop = -0.32 if any(label.get_rotation() for label in ax.get_xticklabels()) else -0.22
    below = ax.transAxes + ScaledTranslation(-0.8, drop, figure_of(ax).dpi_scale_trans)
    legend = ax.legend(loc="upper left", ncols=1 if inches < 3.4 else 2, bbox_to_anchor=(0, 0), bbox_transform=below)
    legend.set_visible(bool(legend.get_texts()))


def cut_and_start(gates: pd.DataFrame) -> dict[str, float]:
    """The probability that decided, if known, and the one that all candidates share at uniform alpha (Σ c·p / Σ c)."""
    known = "margin" in gates and gates["margin"].notna().any()
    cut = {"cut": float((gates["prob"] - gates["margin"]).median())} if known else {}
    return cut | {"uniform start": float((gates["prob"] * gates["n_params"]).sum() / gates["n_params"].sum())}


@styled
def plot_gates(
    gates: Any,
    *,
    value: str = "prob",
    ax: Axes | None = None,
    title: str | None = None,
    cbar: bool = True,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Axes:
    """Map of a search: which PET module earned how much, where.

    Colour is ``value``; chosen cells are outlined, inert ones crossed, places without a candidate hatched. Where
    several candidates fall into one cell (ranks or sizes of one PET module), it shows their maximum. For "prob" the
    colour bar marks the cut and the uniform start, the probability of every candidate before the search.

    Args:
        gates: a gate table, or an object with ``.gates`` (a search result or run).
        value: "prob", "alpha", "margin" (diverging around 0) or any numeric column.
        ax: where to draw; None makes a figure that fits the number of layers and rows.
        cbar: whether to draw a colour bar; leave it out in panels that share one.
        vmin, vmax: colour limits; `value_limits` finds some to share between panels.

    Raises:
        PlotError: a column is missing or not numeric, or the table mixes several steps, seeds, tasks or budgets.
    """
    cells, table = gate_cells(gates, value), as_table(gates, [])
    low, high = value_limits(table, value=value)
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    ax = _draw_grid(ax, make_grid(table), cells, hatch=True, wide=cbar)
    mine, costed = table[flag(table, "chosen")], "n_params" in table
    spent = f", {int(mine['n_params'].sum()):,} parameters" if costed else ""
    label = f"chosen: {len(mine):,} of {len(table):,}{spent}"
    mesh = _draw_cells(ax, cells, "PuOr_r" if value == "margin" else "cividis", Normalize(low, high), label)
    marks = {k: at for k, at in cut_and_start(table).items() if low <= at <= high} if value == "prob" and costed else {}
    _finish_map(ax, mesh if cbar else None, value, marks, title)
    return ax


@styled
def plot_structure(structure: Any, *, space: Any = None, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Map of a chosen structure: colour is each cell's share of its parameters, the column at the right each row's.

    Args:
        structure: an object with ``.table()`` of the chosen candidates, or that table; a ``.budget`` is shown.
        space: all candidates (a table, or an object with ``.table()`` or ``.gates``) for the rows, columns and hatched
            places of `plot_gates`; without it, only rows and layers in use are known and drawn.

    Raises:
        PlotError: a column is missing, nothing is chosen, or a choice is not in the space.
    """
    table = as_table(structure, [*MAP_COLUMNS, "n_params"], at="table")
    context = space if space is not None else table
    context = as_table(context, MAP_COLUMNS, at="gates" if hasattr(context, "gates") else "table")
    grid, total = make_grid(context), int(table["n_params"].sum())
    shares = table.assign(share=100 * table["n_params"] / total, chosen=True)
    try:
        cells = gate_cells(shares, "share", grid=grid, how="sum")
    except KeyError as error:
        raise PlotError(f"The structure uses {error.args[0]}, which the space does not have.") from error
    known = cells if space is None else gate_cells(context.assign(one=1.0), "one", grid=grid)
    ax = _draw_grid(ax, grid, known, hatch=space is not None, wide=True)
    if space is not None:
        _squares(ax, known[["x", "y"]].to_numpy(), "free", facecolor=style().pale, linewidth=0)
    budget = getattr(structure, "budget", None)
    within = f" of a budget of {int(budget):,}" if isinstance(budget, (int, float)) else ""
    label = f"chosen: {len(table):,} candidates, {total:,} parameters{within}"
    mesh = _draw_cells(ax, cells, "cividis_r", Normalize(0, float(cells["value"].max())), label)
    for y in grid.rows.values():
        share = cells.loc[cells["y"] == y, "value"].sum()
        percent = f"{share:.0f} %" if share >= 1 else "< 1 %" if share > 0 else ""
        ax.text(grid.size[0] - 0.3, y, percent, va="center", fontsize=ax.get_yticklabels()[0].get_fontsize())
    _finish_map(ax, mesh, "share", {}, title)
    return ax
