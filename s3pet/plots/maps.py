"""Maps of layers × module types: gates, the difference of two searches, several searches side by side, structures.

A place without a candidate is hatched, because it is not a zero; a candidate that cannot change the model is crossed;
the colour bar marks the cut and the uniform start, so that gates which hardly separated are recognised. The cells are
squares and not seaborn's heat map because of the gaps between stacks and groups.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from seaborn.utils import relative_luminance

from s3pet.errors import PlotError
from s3pet.plots.frame import entry, finish_axes
from s3pet.plots.grid import LABELS, MAP_COLUMNS, ROLES, Grid, cut_and_start, gate_cells, make_grid, value_limits
from s3pet.plots.style import PETS, as_table, colour_bar, figure_of, flag, new_axes, new_figure, style, styled
from s3pet.transfer import gate_difference


def squares(ax: Axes, cells: pd.DataFrame, gid: str, inset: float = 0.03, **look: Any) -> PolyCollection:
    """Draw a square at the ``x, y`` of each row, smaller than its cell by ``inset`` on each side."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.5 - inset)
    collection = PolyCollection(list(cells[["x", "y"]].to_numpy(float)[:, None] + corners), gid=gid, **look)
    ax.add_collection(collection, autolim=False)
    return collection


def outline(colour: str, width: float) -> dict[str, Any]:
    """An outline with a white rim, which is visible on every colour; ``width`` in points of a paper."""
    rim = withStroke(linewidth=2.2 * width * style().scale, foreground="white")
    return {"facecolor": "none", "edgecolor": colour, "linewidth": width * style().scale, "path_effects": [rim]}


def map_size(grid: Grid) -> tuple[float, float]:
    """Width and height of a figure for one map with a colour bar, in inches of a paper."""
    page = style().page / style().scale
    cell = float(np.clip((page - 2) / grid.size[0], 0.09, 0.34))  # 4 + 4 layers fill a column, 24 + 24 a page
    return max(2 + cell * grid.size[0], 3.35), 1.1 + 0.165 * grid.size[1]


def _draw_frame(ax: Axes, grid: Grid, names: bool) -> None:
    """Limits, names of layers, rows (with ``names``), groups and stacks, and the lines between them."""
    ax.set(xlim=(-0.5, grid.size[0] - 0.5), ylim=(grid.size[1] - 0.5, -0.5))
    width, height = figure_of(ax).get_size_inches() * ax.get_position().size * 72 / grid.size  # points per cell, about
    font = float(np.clip(0.69 * height, 0.6 * style().font, style().font))
    every = next((n for n in (1, 2, 4, 5, 10) if n * width >= 1.6 * font), 20)  # so that numbers do not touch
    layers = {x: name for (_, name), x in grid.columns.items() if not name.isdigit() or int(name) % every == 0}
    rows = [f"{ROLES.get(role, ('', role))[1].replace('ffn', 'FFN')}  {PETS.get(pet, pet)}" for role, pet in grid.rows]
    ax.set_xticks([*layers], [*layers.values()])
    ax.set_yticks([*grid.rows.values(), *grid.headers.values()] * names, [*rows, *grid.headers] * names)
    for label in ax.get_yticklabels()[len(rows) :]:
        label.set_fontweight("bold")
    for label in ax.get_xticklabels():
        label.set_rotation(0 if label.get_text().isdigit() or width > 2.6 * font else 90)
    stacks = {name: [x for _, x in part] for name, part in groupby(grid.columns.items(), lambda item: item[0][0])}
    top = ax.secondary_xaxis("top")
    top.set_xticks([float(np.mean(xs)) for xs in stacks.values()], [*stacks], weight="bold")
    for axes in (ax, top):
        axes.tick_params(length=0, pad=2, labelsize=font)
        axes.spines[:].set_visible(False)
    for left, right in ((xs[0] - 0.5, xs[-1] + 0.5) for xs in stacks.values()):
        ax.hlines(-0.5, left, right, color=style().ink, linewidth=1, clip_on=False)
        ax.hlines([*grid.headers.values()][1:], left, right, color=style().faint, linewidth=0.5)
        if left > 0:
            ax.axvline(left - 0.35, color=style().ink, linewidth=1, gid="stack-separator")


def _draw_map(
    ax: Axes, grid: Grid, cells: pd.DataFrame, colours: str, norm: Normalize, chosen: str, names: bool = True
) -> tuple[PolyCollection, list[Any]]:
    """Draw frame and cells, whose outlines the legend calls ``chosen``; return the coloured squares and handles."""
    _draw_frame(ax, grid, names)
    places = pd.MultiIndex.from_product([grid.columns.values(), grid.rows.values()], names=["x", "y"])
    absent = places.difference(pd.MultiIndex.from_frame(cells[["x", "y"]])).to_frame()
    look: dict[str, Any] = {"facecolor": "none", "linewidth": 0, "hatch": "//////", "edgecolor": style().faint}
    squares(ax, absent, "absent", **look)
    handles: list[Any] = [Patch(label="no candidate here", **look)] if len(absent) else []
    mesh = squares(ax, cells, "gates", norm=norm, cmap=mpl.colormaps[colours].with_extremes(bad=style().pale))
    mesh.set(linewidth=0, array=np.ma.masked_invalid(cells["value"].to_numpy(float)))
    if cells["chosen"].any():
        squares(ax, cells[cells["chosen"]], "chosen", 0.07, **outline("black", 1))
        handles.append(Patch(label=chosen, **outline("black", 1)))
    inert, scale = cells[cells["inert"]], style().scale
    if len(inert):
        bright = relative_luminance(mesh.to_rgba(inert["value"].to_numpy(float))) > 0.179
        colour, size = np.where(bright, "black", "white"), 9 * scale**2
        ax.scatter(inert["x"], inert["y"], size, colour, marker="x", linewidths=0.8 * scale, gid="inert")
        cross = entry("inert: cannot act", color=style().ink, marker="x", linestyle="", markersize=4 * scale)
        handles.append(cross)
    return mesh, handles


def _finish(ax: Axes, handles: list[Any], title: str | None) -> None:
    """Title and legend; the tick labels keep the size that fits the cells."""
    font = ax.get_xticklabels()[0].get_fontsize()
    finish_axes(ax, "layer", "", handles, title)
    ax.tick_params(labelsize=font)


def _colours(value: str) -> str:
    return ("berlin" if style().dark else "PuOr_r") if value in ("margin", "difference") else "cividis"


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
    """Map of a search: which PET module got which gate, and where.

    The colour shows ``value``; chosen cells are outlined, inert ones crossed, places without a candidate hatched. A
    cell with several candidates (ranks or sizes of one PET module) shows their maximum. With ``value="prob"`` the
    colour bar marks the cut and the uniform start, the probability of every candidate before the search.

    Args:
        gates: a gate table, or an object with ``.gates`` (a search result, a run, an average).
        value: "prob", "alpha", "margin", "frequency" (of an average: the share of the searches that chose it) or any
            numeric column.
        ax: where to draw; None makes a figure that fits the number of layers and rows.
        cbar: whether to draw a colour bar.
        vmin, vmax: colour limits; `value_limits` returns some that several maps can share.

    Raises:
        PlotError: a column is missing or not numeric, or the table mixes several steps, seeds, tasks or budgets.
    """
    cells, table = gate_cells(gates, value), as_table(gates, [])
    low, high = value_limits(table, value=value)
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    marks = cut_and_start(table) if cbar and value == "prob" and "n_params" in table else {}
    grid, chosen = make_grid(table), table[flag(table, "chosen")]
    label = f"chosen: {len(chosen):,} of {len(table):,}"
    label += f", {chosen['n_params'].sum():,} parameters" if "n_params" in table else ""
    ax = ax or new_axes(*map_size(grid))
    mesh, handles = _draw_map(ax, grid, cells, _colours(value), Normalize(low, high), label)
    bar = colour_bar(mesh, ax, LABELS.get(value, value)) if cbar else None
    for (name, at), line in zip(marks.items(), ("-", ":"), strict=False):
        if bar and low <= at <= high:
            bar.ax.axhline(at, color="white", linewidth=2.4)
            bar.ax.axhline(at, color="black", linewidth=1.2, linestyle=line, gid=name)
            handles.append(entry(f"{name} {at:.3g}", color=style().ink, linewidth=1.2, linestyle=line))
    _finish(ax, handles, title)
    return ax


@styled
def plot_difference(
    one: Any,
    other: Any,
    *,
    value: str = "prob",
    names: tuple[str, str] = ("the first", "the second"),
    ax: Axes | None = None,
    title: str | None = None,
    limit: float | None = None,
) -> Axes:
    """Map of one search minus another of the same space, with colours that diverge around 0.

    What both chose is outlined. A triangle up marks what only ``one`` chose, a triangle down what only ``other`` did.

    Args:
        one, other: gate tables, or objects with ``.gates``.
        value: the numeric column to compare.
        names: what to call the two in the legend.
        limit: the colours reach from −limit to limit; None: the largest difference.

    Raises:
        PlotError: a column is missing.
        RunError: the two searched different spaces.
    """
    first, second = (as_table(gates, [*MAP_COLUMNS, "site", value]) for gates in (one, other))
    table = gate_difference(first, second, value)
    cells, grid = gate_cells(table, "difference"), make_grid(table)
    norm = Normalize(*value_limits(table, value="difference") if limit is None else (-limit, limit))
    ax = ax or new_axes(*map_size(grid))
    label = f"chosen by both: {table['chosen'].sum()}"
    mesh, handles = _draw_map(ax, grid, cells, _colours("difference"), norm, label)
    for column, name, marker in (("only_one", names[0], "^"), ("only_other", names[1], "v")):
        alone = gate_cells(table.assign(chosen=table[column]), "difference").query("chosen")
        size, label = 5.5 * style().scale, f"chosen by {name} only: {len(alone)}"
        handles += ax.plot(alone["x"], alone["y"], "k" + marker, mec="white", mew=0.6, ms=size, gid=column, label=label)
    colour_bar(mesh, ax, f"{LABELS.get(value, value)}: {names[0]} − {names[1]}")
    _finish(ax, handles, title)
    return ax


@styled
def plot_gate_panels(
    gates: Mapping[str, Any],
    *,
    value: str = "prob",
    columns: int | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> list[Axes]:
    """Maps of several searches side by side, with one grid and one colour scale; returns the Axes in order.

    Args:
        gates: title of each panel → gate table, or object with ``.gates``. The grid has the rows and layers of all.
        value: as in `plot_gates`.
        columns: panels in a row; None: as many as fit on a page.
        figure: emptied, resized and drawn in; None makes one.

    Raises:
        PlotError: no panels, or as `plot_gates`.
    """
    if not gates:
        raise PlotError("Expected panels as {title: gate table}; got none.")
    tables = {name: as_table(table, [*MAP_COLUMNS, value]) for name, table in gates.items()}
    grid = make_grid(pd.concat([table[[*MAP_COLUMNS]] for table in tables.values()]))
    cells = {name: gate_cells(table, value, grid=grid) for name, table in tables.items()}
    norm, n = Normalize(*value_limits(*tables.values(), value=value)), len(tables)
    inner = style().page / style().scale - 1.75  # inches of a paper, without the names of the rows and the colour bar
    rows = -(-n // (columns or max(1, int(inner / (0.105 * grid.size[0] + 0.1)))))
    columns = columns or -(-n // rows)
    width = float(np.clip(inner / columns, 0.085 * grid.size[0] + 0.1, 0.2 * grid.size[0] + 0.1))
    figure = new_figure(1.75 + columns * width, rows * (0.65 + 0.145 * grid.size[1]) + 0.35, figure)
    axes, handles = figure.subplots(rows, columns, squeeze=False), dict[str, Any]()
    letters = max(6, int(72 * width * style().scale / (0.62 * style().font)))  # above a panel
    for ax, name in zip(axes.flat, tables, strict=False):
        first = ax.get_subplotspec().is_first_col()
        _, drawn = _draw_map(ax, grid, cells[name], _colours(value), norm, "chosen", first)
        handles |= {handle.get_label(): handle for handle in drawn}
        ax.set_title(textwrap.fill(name, letters), size=style().font)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    colour_bar(ScalarMappable(norm, _colours(value)), axes, LABELS.get(value, value))
    figure.legend(handles=[*handles.values()], loc="outside lower left", ncols=3)
    figure.suptitle(title or "")
    return [*axes.flat[:n]]


@styled
def plot_structure(structure: Any, *, space: Any = None, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Map of a chosen structure: the colour is each cell's share of its parameters, the number at the right each row's.

    Args:
        structure: an object with ``.table()`` of the chosen candidates, or that table. A ``.budget`` is shown.
        space: all candidates (a table, or an object with ``.table()`` or ``.gates``), for the rows, columns and hatched
            places of `plot_gates`. Without it, the map has only the rows and layers in use.

    Raises:
        PlotError: a column is missing, nothing is chosen, or a choice is not in the space.
    """
    table = as_table(structure, [*MAP_COLUMNS, "n_params"], at="table")
    context = (
        table if space is None else as_table(space, MAP_COLUMNS, at="gates" if hasattr(space, "gates") else "table")
    )
    grid, total = make_grid(pd.concat([frame[[*MAP_COLUMNS]] for frame in (context, table)])), table["n_params"].sum()
    shares = gate_cells(table.assign(share=100 * table["n_params"] / total, chosen=True), "share", grid=grid, how="sum")
    places = pd.MultiIndex.from_product([grid.columns.values(), grid.rows.values()], names=["x", "y"]).to_frame(False)
    places = places if space is None else gate_cells(context.assign(one=1.0), "one", grid=grid)[["x", "y"]]
    cells = places.merge(shares, "outer", indicator=True)
    for row in cells[cells["_merge"] == "right_only"].to_dict("records"):
        name = f"{row['role']} {row['pet']} in {row['stack']} {row['column']}"
        raise PlotError(f"The structure uses {name}, which the space does not have.")
    cells[["chosen", "inert"]] = cells[["chosen", "inert"]].eq(True)
    budget = getattr(structure, "budget", None)
    label = f"chosen: {len(table):,} candidates, {total:,} parameters"
    label += f"\nof a budget of {int(budget):,}" if isinstance(budget, (int, float)) else ""
    ax = ax or new_axes(*map_size(grid))
    norm, colours = Normalize(0, shares["value"].max()), "cividis" if style().dark else "cividis_r"  # 0 is pale
    mesh, handles = _draw_map(ax, grid, cells, colours, norm, label)
    for y, share in shares.groupby("y", as_index=False)["value"].sum().itertuples(index=False):
        text, size = f"{share:.0f} %" if share >= 1 else "< 1 %", ax.get_xticklabels()[0].get_fontsize()
        ax.text(grid.size[0] - 0.3, y, text, va="center", size=size)
    colour_bar(mesh, ax, LABELS["share"])
    _finish(ax, handles, title)
    return ax
