"""Maps of layers × module types: gates, the difference of two searches, several searches side by side, structures.

What heat maps usually hide is drawn: a place without a candidate is hatched (it is not a zero), a candidate that cannot
change the model is crossed, and the colour bar marks the cut and the uniform start, so that gates which hardly
separated look like it. All of it is vector.
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
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from s3pet.errors import PlotError
from s3pet.plots.grid import (
    DIVERGING,
    GAP,
    LABELS,
    MAP_COLUMNS,
    ROLES,
    Grid,
    cut_and_start,
    gate_cells,
    make_grid,
    value_limits,
)
from s3pet.plots.style import PETS, as_table, figure_of, flag, new_axes, new_figure, style, styled
from s3pet.transfer import gate_difference

Entries = dict[str, Any]  # label → legend handle


def _squares(ax: Axes, places: Any, gid: str, inset: float = 0.03, **look: Any) -> PolyCollection:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.5 - inset)
    squares = PolyCollection([np.array(place) + corners for place in places], gid=gid, **look)
    ax.add_collection(squares, autolim=False)
    return squares


def _size(grid: Grid, wide: bool) -> tuple[float, float]:
    """Width and height of a figure for one map, in inches of a paper: 4 + 4 layers fill a column, 24 + 24 a page."""
    frame, page = 1.25 + 0.75 * wide, style().page / style().scale
    cell = float(np.clip((page - frame) / grid.size[0], 0.09, 0.34))
    return max(frame + cell * grid.size[0], 3.35), 0.9 + 0.165 * grid.size[1]


def _draw_grid(ax: Axes, grid: Grid, occupied: pd.DataFrame, *, hatch: bool = True, names: bool = True) -> Entries:
    """Tick labels (of rows only with ``names``), headings, stack names and the places without a candidate."""
    ax.set(xlim=(-0.5, grid.size[0] - 0.5), ylim=(grid.size[1] - 0.5, -0.5))
    taken = set(zip(occupied["x"], occupied["y"], strict=True))
    absent = [(x, y) for y in grid.rows.values() for x in grid.columns.values() if (x, y) not in taken]
    entries: Entries = {}
    if absent and hatch:
        look: dict[str, Any] = {"facecolor": "none", "linewidth": 0, "hatch": "//////", "edgecolor": style().faint}
        _squares(ax, absent, "absent", **look)
        entries["no candidate here"] = Patch(**look)
    elif absent:
        _squares(ax, absent, "free", facecolor=style().pale, linewidth=0)
    step_x, step_y = figure_of(ax).get_size_inches() * ax.get_position().size * 72 / grid.size  # points per cell, about
    font = float(np.clip(0.8 * step_y, 0.6 * style().font, style().font))
    every = next((n for n in (1, 2, 4, 5, 10) if n * step_x >= 1.6 * font), 20)
    ticks = {x: name for (_, name), x in grid.columns.items() if not name.isdigit() or int(name) % every == 0}
    ax.set_xticks([*ticks], ticks.values(), fontsize=font)
    for label in ax.get_xticklabels():
        label.set_rotation(0 if label.get_text().isdigit() or step_x > 2.6 * font else 90)
    if names:
        rows = [f"{ROLES.get(role, ('', role))[1]}  {PETS.get(pet, pet)}" for role, pet in grid.rows]
        rows = [*(row.replace("ffn", "FFN") for row in rows), *grid.headers]
        ax.set_yticks([*grid.rows.values(), *grid.headers.values()], rows, fontsize=font)
        for label in ax.get_yticklabels()[len(grid.rows) :]:
            label.set_fontweight("bold")
        place: Any = {"textcoords": "offset points", "ha": "right", "va": "top", "size": font}
        ax.annotate("layer ", (0, 0), (0, -2), "axes fraction", **place)
    else:
        ax.set_yticks([])
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
    for stack, group in groupby(grid.columns.items(), key=lambda item: item[0][0]):
        xs = [x for _, x in group]
        ax.text((xs[0] + xs[-1]) / 2, -0.6, stack, ha="center", va="bottom", fontsize=font + 1, fontweight="bold")
        ax.hlines(-0.5, xs[0] - 0.5, xs[-1] + 0.5, color=style().ink, linewidth=1, clip_on=False)
        ax.hlines([*grid.headers.values()][1:], xs[0] - 0.5, xs[-1] + 0.5, color=style().faint, linewidth=0.5)
        if xs[0] > 0:
            ax.axvline(xs[0] - 0.5 - GAP / 2, color=style().ink, linewidth=1, gid="stack-separator")
    return entries


def _draw_cells(
    ax: Axes, cells: pd.DataFrame, cmap: str, norm: Normalize, chosen: str
) -> tuple[PolyCollection, Entries]:
    """Colours, outlines of what is chosen (named ``chosen`` in the legend), crosses on what is inert."""
    colormap = mpl.colormaps[cmap].with_extremes(bad=style().faint)
    mesh = _squares(ax, cells[["x", "y"]].to_numpy(), "gates", cmap=colormap, norm=norm, linewidth=0)
    mesh.set_array(np.ma.masked_invalid(cells["value"].to_numpy(float)))
    entries: Entries = {}
    outlined = cells.loc[cells["chosen"], ["x", "y"]].to_numpy()
    if len(outlined):  # white under black is seen on both ends of the colour map, and on both grounds
        _squares(ax, outlined, "chosen-halo", 0.07, facecolor="none", edgecolor="white", linewidth=2 * style().scale)
        _squares(ax, outlined, "chosen", 0.07, facecolor="none", edgecolor="black", linewidth=style().scale)
        looks = (("white", 3.0), ("black", 1.0))
        entries[chosen] = tuple(Patch(facecolor="none", edgecolor=colour, linewidth=width) for colour, width in looks)
    inert = cells[cells["inert"]]
    if len(inert):
        bright = mesh.to_rgba(inert["value"].to_numpy(float))[:, :3] @ [0.299, 0.587, 0.114] > 0.5
        colours = np.where(bright, "black", "white")
        ax.scatter(
            inert["x"],
            inert["y"],
            s=9 * style().scale ** 2,
            c=colours,
            marker="x",
            linewidths=0.8 * style().scale,
            gid="inert",
        )
        entries["inert: cannot act"] = Line2D(
            [], [], color=style().ink, marker="x", linestyle="", markersize=4 * style().scale
        )
    return mesh, entries


def _colour_bar(mesh: Any, axes: Any, value: str, marks: dict[str, float]) -> Entries:
    """A colour bar beside the Axes, all vector, with marks."""
    first = np.ravel(axes)[0]
    bar = figure_of(first).colorbar(mesh, ax=axes, aspect=30, pad=0.02, fraction=0.05, label=LABELS.get(value, value))
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face")  # no hairlines between its steps in PDF
    bar.outline.set_visible(False)
    entries: Entries = {}
    lines: tuple[Any, Any] = ("-", ":")
    for (name, at), line in zip(marks.items(), lines, strict=False):
        bar.ax.plot([0, 1], [at, at], "w-", linewidth=2.4, gid=name)
        bar.ax.plot([0, 1], [at, at], "k" + line, linewidth=1.2, gid=name)
        entries[f"{name} {at:.3g}"] = Line2D([], [], color=style().ink, linestyle=line, linewidth=1.2)
    return entries


def _legend(ax: Axes, entries: Entries) -> None:
    """The legend, under the map."""
    inches = ax.get_position().width * figure_of(ax).get_figwidth() / style().scale
    drop = -0.32 if any(label.get_rotation() for label in ax.get_xticklabels()) else -0.22
    shift = ScaledTranslation(-0.8 * style().scale, drop * style().scale, figure_of(ax).dpi_scale_trans)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": ax.transAxes + shift}
    place |= {"ncols": 1 if inches < 3.4 else 2, "handler_map": {tuple: HandlerTuple(ndivide=1)}}
    letters = int(
        (72 * figure_of(ax).get_figwidth() - 5 * style().font) / (0.58 * style().font)
    )  # in the figure's width
    legend = ax.legend(entries.values(), [textwrap.fill(name, max(letters, 20)) for name in entries], **place)
    legend.set_visible(bool(entries))


def _chosen(table: pd.DataFrame) -> str:
    mine, costed = table[flag(table, "chosen")], "n_params" in table
    return f"chosen: {len(mine):,} of {len(table):,}" + (
        f", {int(mine['n_params'].sum()):,} parameters" if costed else ""
    )


def _colours(value: str) -> str:
    return ("berlin" if style().dark else "PuOr_r") if value in DIVERGING else "cividis"


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
        gates: a gate table, or an object with ``.gates`` (a search result, a run, an average).
        value: "prob", "alpha", "margin" (diverging around 0), "frequency" (of an average: the share of the searches
            that chose it) or any numeric column.
        ax: where to draw; None makes a figure that fits the number of layers and rows.
        cbar: whether to draw a colour bar; leave it out in panels that share one.
        vmin, vmax: colour limits; `value_limits` finds some to share between panels.

    Raises:
        PlotError: a column is missing or not numeric, or the table mixes several steps, seeds, tasks or budgets.
    """
    cells, table = gate_cells(gates, value), as_table(gates, [])
    low, high = value_limits(table, value=value)
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    grid = make_grid(table)
    ax = ax or new_axes(*_size(grid, cbar))
    entries = _draw_grid(ax, grid, cells)
    mesh, more = _draw_cells(ax, cells, _colours(value), Normalize(low, high), _chosen(table))
    if cbar:
        known = cut_and_start(table) if value == "prob" and "n_params" in table else {}
        more |= _colour_bar(mesh, ax, value, {name: at for name, at in known.items() if low <= at <= high})
    if title:
        ax.set_title(title, pad=16 * style().scale)
    _legend(ax, more | entries)
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
    """Map of one search minus another of the same space, on a scale that diverges around 0.

    What both chose is outlined; a triangle up marks what only ``one`` chose, a triangle down what only ``other`` did.

    Args:
        one, other: gate tables, or objects with ``.gates``.
        value: the numeric column to compare.
        names: what to call the two in the legend.
        limit: the scale reaches from −limit to limit; None: the largest difference.

    Raises:
        PlotError: a column is missing. RunError: the two searched different spaces.
    """
    first, second = (as_table(given, [*MAP_COLUMNS, "site", "pet", value]) for given in (one, other))
    table = gate_difference(first, second, value)
    cells, grid = gate_cells(table, "difference"), make_grid(table)
    ax = ax or new_axes(*_size(grid, True))
    low, high = value_limits(table, value="difference") if limit is None else (-limit, limit)
    entries = _draw_grid(ax, grid, cells)
    mesh, more = _draw_cells(
        ax, cells, _colours("difference"), Normalize(low, high), f"chosen by both: {table['chosen'].sum()}"
    )
    for column, name, marker in (("only_one", names[0], "^"), ("only_other", names[1], "v")):
        mine = gate_cells(table[table[column]], "difference", grid=grid) if table[column].any() else cells.iloc[:0]
        look: dict[str, Any] = {"color": "black", "marker": marker, "linestyle": "", "markersize": 5.5 * style().scale}
        look |= {"markeredgecolor": "white", "markeredgewidth": 0.6}
        ax.plot(mine["x"], mine["y"], gid=column, **look)
        more[f"chosen by {name} only: {len(mine)}"] = Line2D([], [], **look)
    entries |= _colour_bar(mesh, ax, "difference", {})
    figure_of(ax).axes[-1].set_ylabel(f"{LABELS.get(value, value)}: {names[0]} − {names[1]}")
    if title:
        ax.set_title(title, pad=16 * style().scale)
    _legend(ax, more | entries)
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
    """Maps of several searches side by side, with one grid and one colour scale.

    Args:
        gates: title of each panel → gate table, or object with ``.gates``. Rows and layers are those of any of them.
        value: as in `plot_gates`.
        columns: panels in a row; None: as many as a page holds.
        figure: emptied, resized and drawn in; None makes one.

    Returns:
        The Axes of the panels, in order, in one figure.

    Raises:
        PlotError: none given, or as `plot_gates`.
    """
    if not gates:
        raise PlotError("Expected panels as {title: gate table}; got none.")
    tables = {name: as_table(given, [*MAP_COLUMNS, value]) for name, given in gates.items()}
    grid = make_grid(pd.concat([table[[*MAP_COLUMNS]] for table in tables.values()]))
    norm = Normalize(*value_limits(*tables.values(), value=value))
    names, bar, gap = 1.05, 0.7, 0.1  # inches of a paper: the rows' names stand once, and so does the colour bar
    room = style().page / style().scale - names - bar
    fit = max(1, int(room / (0.105 * grid.size[0] + gap)))
    columns = columns or -(-len(tables) // -(-len(tables) // fit))  # rows of about equal length
    cell = float(np.clip((room / columns - gap) / grid.size[0], 0.085, 0.2))
    rows = -(-len(tables) // columns)
    size = names + bar + columns * (cell * grid.size[0] + gap), rows * (0.55 + 0.145 * grid.size[1]) + 0.45
    figure = new_figure(*size, figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    entries: Entries = {}
    for ax, (name, table) in zip(axes.flat, tables.items(), strict=False):
        cells = gate_cells(table, value, grid=grid)
        entries |= _draw_grid(ax, grid, cells, names=ax.get_subplotspec().is_first_col())
        entries = _draw_cells(ax, cells, _colours(value), norm, "chosen")[1] | entries
        letters = 72 * (cell * grid.size[0] + gap) * style().scale / 0.62  # that fit over a panel in one point
        font = float(np.clip(letters / max(map(len, tables)), 0.85 * style().font, 1.27 * style().font))
        ax.set_title(textwrap.fill(name, max(int(letters / font), 6)), size=font, pad=14 * style().scale)
    for ax in axes.flat[len(tables) :]:
        ax.set_axis_off()
    _colour_bar(ScalarMappable(norm, _colours(value)), axes, value, {})
    place: dict[str, Any] = {"loc": "outside lower left", "ncols": 3, "handler_map": {tuple: HandlerTuple(ndivide=1)}}
    figure.legend(entries.values(), entries, **place)
    figure.suptitle(title or "")
    return [*axes.flat[: len(tables)]]


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
    ax = ax or new_axes(*_size(grid, True))
    entries = _draw_grid(ax, grid, known, hatch=space is not None)
    if space is not None:
        _squares(ax, known[["x", "y"]].to_numpy(), "free", facecolor=style().pale, linewidth=0)
    budget = getattr(structure, "budget", None)
    within = f" of a budget of {int(budget):,}" if isinstance(budget, (int, float)) else ""
    label = f"chosen: {len(table):,} candidates, {total:,} parameters{within}"
    mesh, more = _draw_cells(ax, cells, "cividis_r", Normalize(0, float(cells["value"].max())), label)
    for y in grid.rows.values():
        share = cells.loc[cells["y"] == y, "value"].sum()
        percent = f"{share:.0f} %" if share >= 1 else "< 1 %" if share > 0 else ""
        ax.text(grid.size[0] - 0.3, y, percent, va="center", fontsize=ax.get_yticklabels()[0].get_fontsize())
    more |= _colour_bar(mesh, ax, "share", {})
    if title:
        ax.set_title(title, pad=16 * style().scale)
    _legend(ax, more | entries)
    return ax
