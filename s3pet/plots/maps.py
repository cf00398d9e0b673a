"""Maps of layers × module types: gates, the difference of two searches, several searches side by side, structures.

A map has a column for every layer (encoder | decoder) and a row for every pair of role and PET module, in groups. A
place without a candidate is hatched, because it is not a zero; a candidate that cannot change the model is crossed; the
colour bar marks the cut and the uniform start, so that gates which hardly separated are recognised. The cells are
squares and not seaborn's heat map because of the gaps between stacks and groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Patch

from s3pet.errors import PlotError
from s3pet.files.kinds import one_of
from s3pet.plots.frame import cell_size, colour_bar, entry, finish_axes, font_for, in_order, readable_on, rim
from s3pet.plots.sizes import chosen_words, shown_ranks, write_ranks
from s3pet.plots.style import PETS, as_table, figure_of, flag, new_axes, style, styled, value_limits
from s3pet.transfer import gate_difference

_ATTENTION, _FFN = "q k v qkv kv o", "in gate gate_in out"
_BLOCKS = (("attn", "attention", _ATTENTION), ("cross", "cross-attention", _ATTENTION), ("ffn", "FFN", _FFN))
ROLES = {f"{block}.{part}": (group, part) for block, group, parts in _BLOCKS for part in parts.split()}
ROLES |= {f"{block}.norm": ("norms", block) for block in ("attn", "cross", "ffn", "embed", "final")}
ROLES |= {block: ("block adapters", block) for block in ("attn", "cross", "ffn")}
_GROUPS = ("attention", "cross-attention", "mixer", "FFN", "norms", "block adapters", "other")
STACKS = ("encoder", "decoder")
LABELS = {"prob": "gate probability", "alpha": "α", "share": "share of the parameters (%)", "n_params": "parameters"}
LABELS |= {"margin": "margin: probability − cut", "frequency": "share of the searches that chose it"}
LABELS |= {"prob_spread": "spread of the gate probability (standard deviation)", "difference": "difference"}
MAP_COLUMNS, GAP, HEADER = ("stack", "layer", "role", "pet"), 0.7, 1.1  # in cells: space of stacks, of a heading


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

    @property
    def stacks(self) -> dict[str, list[float]]:
        """The x of the columns of each stack."""
        names = dict.fromkeys(stack for stack, _ in self.columns)
        return {name: [x for (stack, _), x in self.columns.items() if stack == name] for name in names}


def columns_of(table: pd.DataFrame) -> pd.Series:
    """The column of each candidate: its layer, or "embed" or "final" for sites outside the layers."""
    layer = pd.to_numeric(table["layer"]).astype("Int64").astype("string")
    return layer.fillna(table["role"].astype("string").str.partition(".")[0]).astype(object)


def place_of(role: str) -> tuple[str, str]:
    """The group of a role on a map, and its name there: ``attn.q`` is q in attention, ``attn.post_norm`` a norm."""
    block, _, part = role.partition(".")
    groups = {block: group for block, group, _ in _BLOCKS} | {"mixer": "mixer"}
    if role in ROLES:
        return ROLES[role]
    if role.endswith("norm"):
        return "norms", re.sub(r"[._]+", " ", role.removesuffix("norm")).strip()
    if part and block in groups:
        return groups[block], part
    return "block adapters" if role in groups else "other", role


def roles_in_order(roles: Iterable[str]) -> list[str]:
    """Roles as a map lists them: by group, in the order of a layer, then by name."""
    rank = {role: i for i, role in enumerate(ROLES)}
    return sorted(set(roles), key=lambda role: (_GROUPS.index(place_of(role)[0]), rank.get(role, len(rank)), role))


def row_name(role: str, pet: str) -> str:
    """The name of a row: ``q  LoRA``."""
    return f"{place_of(role)[1].replace('ffn', 'FFN')}  {PETS.get(pet, pet)}"


def make_grid(candidates: pd.DataFrame) -> Grid:
    """Lay out the map of a table with ``stack, layer, role, pet``; layers without a candidate have columns too."""
    candidates = as_table(candidates, MAP_COLUMNS, one=())
    columns: dict[tuple[str, str], float] = {}
    for stack in in_order(candidates["stack"], STACKS):
        names = set(columns_of(candidates[candidates["stack"] == stack]))
        n_layers = max((int(name) + 1 for name in names if name.isdigit()), default=0)
        after = sorted(name for name in names if not name.isdigit() and name != "embed")
        start = max(columns.values()) + 1 + GAP if columns else 0.0
        ordered = ["embed"] * ("embed" in names) + [str(layer) for layer in range(n_layers)] + after
        columns |= {(stack, name): start + i for i, name in enumerate(ordered)}
    rows, headers = dict[tuple[str, str], float](), dict[str, float]()
    for role in roles_in_order(candidates["role"]):
        headers.setdefault(place_of(role)[0], len(rows) + HEADER * len(headers))
        for pet in in_order(candidates.loc[candidates["role"] == role, "pet"], PETS):
            rows[role, pet] = len(rows) + HEADER * len(headers)
    return Grid(rows, columns, headers)


def gate_cells(
    gates: Any, value: str = "prob", *, grid: Grid | None = None, how: str = "max", space: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The occupied cells of a map: ``role, pet, stack, column, value, chosen, inert, n_candidates, x, y, rank``.

    A cell with several candidates (one PET module in several sizes) shows their maximum, or ``how="sum"``. It is chosen
    if any of them is, and inert if all are. ``value`` is any numeric column. ``rank`` is a text: the size that was
    chosen, else the most probable one; empty for a PET module that ``space`` (None: the table) has in one size.
    """
    table = as_table(gates, [*MAP_COLUMNS, value])
    one_of(("max", "sum", "mean")).check(PlotError, how=how)
    if not pd.api.types.is_numeric_dtype(table[value]):
        raise PlotError(f"Column {value!r} holds {table[value].dtype}; a colour needs numbers, as 'prob' has.")
    grid, flags = grid or make_grid(table), {name: flag(table, name) for name in ("chosen", "inert")}
    table = table.assign(column=columns_of(table), value=table[value].astype(float), **flags)
    keys = ["role", "pet", "stack", "column"]
    columns = {"value": ("value", how), "chosen": ("chosen", "any"), "inert": ("inert", "all")}
    cells = table.groupby(keys, sort=False, observed=True).agg(**columns, n_candidates=("value", "size")).reset_index()
    cells["x"] = [grid.columns[key] for key in zip(cells["stack"], cells["column"], strict=True)]
    cells["y"] = [grid.rows[key] for key in zip(cells["role"], cells["pet"], strict=True)]
    shown = shown_ranks(table, keys, table if space is None else space)
    return cells.assign(rank=[shown.get(key, "") for key in cells[keys].itertuples(index=False, name=None)])


def cut_and_start(gates: pd.DataFrame) -> dict[str, float]:
    """The lowest probability among the chosen, if known, and that of all candidates at uniform α (Σ c·p / Σ c).

    Where a module has several sizes at a site, the highest probability of these counts, which is what a map shows.
    """
    known = "margin" in gates and gates["margin"].notna().any()
    cut = {"cut": float((gates["prob"] - gates["margin"]).median())} if known else {}
    if known and {"site", "pet"} <= set(gates) and gates.duplicated(["site", "pet"]).any():
        sizes = gates.assign(chosen=flag(gates, "chosen")).groupby(["site", "pet"], observed=True)
        cut = {"cut": float(sizes["prob"].max()[sizes["chosen"].any()].min())}
    return cut | {"uniform start": float((gates["prob"] * gates["n_params"]).sum() / gates["n_params"].sum())}


def squares(ax: Axes, cells: pd.DataFrame, gid: str, inset: float = 0.03, **look: Any) -> PolyCollection:
    """Draw a square at the ``x, y`` of each row, smaller than its cell by ``inset`` on each side."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.5 - inset)
    collection = PolyCollection(list(cells[["x", "y"]].to_numpy(float)[:, None] + corners), gid=gid, **look)
    ax.add_collection(collection, autolim=False)
    return collection


def outline(colour: str, width: float) -> dict[str, Any]:
    """An outline with a white rim, which is visible on every colour; ``width`` in points of a paper."""
    look: dict[str, Any] = {"facecolor": "none", "edgecolor": colour, "linewidth": width * style().scale}
    return look | {"path_effects": rim(2.2 * width, "white")}


def map_size(grid: Grid) -> tuple[float, float]:
    """Width and height of a figure for one map with a colour bar, in inches of a paper."""
    cell = float(np.clip((style().widest - 2) / grid.size[0], 0.09, 0.34))  # 4 + 4 layers fill a column, 24 + 24 a page
    return max(2 + cell * grid.size[0], 3.35), 1.1 + 0.165 * grid.size[1]


def _draw_frame(ax: Axes, grid: Grid, names: bool) -> None:
    """Limits, names of layers, rows (with ``names``), groups and stacks, and the lines between them."""
    ax.set(xlim=(-0.5, grid.size[0] - 0.5), ylim=(grid.size[1] - 0.5, -0.5))
    width, height = figure_of(ax).get_size_inches() * ax.get_position().size * 72 / grid.size  # points per cell, about
    font = font_for(height)
    rows = [row_name(*row) for row in grid.rows]
    ax.set_yticks([*grid.rows.values(), *grid.headers.values()] * names, [*rows, *grid.headers] * names)
    for label in ax.get_yticklabels()[len(rows) :]:
        label.set_fontweight("bold")
    _name_layers(ax, grid, width, font)
    top = ax.secondary_xaxis("top")
    top.set_xticks([float(np.mean(xs)) for xs in grid.stacks.values()], [*grid.stacks], weight="bold")
    for axes in (ax, top):
        axes.tick_params(length=0, pad=2, labelsize=font)
        axes.spines[:].set_visible(False)
    for left, right in ((xs[0] - 0.5, xs[-1] + 0.5) for xs in grid.stacks.values()):
        ax.hlines(-0.5, left, right, color=style().ink, linewidth=1, clip_on=False)
        ax.hlines([*grid.headers.values()][1:], left, right, color=style().faint, linewidth=0.5)
        if left > 0:
            ax.axvline(left - 0.35, color=style().ink, linewidth=1, gid="stack-separator")


def _name_layers(ax: Axes, grid: Grid, width: float, font: float) -> None:
    """Name every layer, or every second, fourth, …, so that texts of this size do not touch; ``width`` of a cell."""
    need = 0.3 + 0.64 * max((len(name) for _, name in grid.columns if name.isdigit()), default=1)
    every = next((n for n in (1, 2, 4, 5, 10) if n * width >= need * font), 20)
    layers = {x: name for (_, name), x in grid.columns.items() if not name.isdigit() or int(name) % every == 0}
    ax.set_xticks([*layers], [*layers.values()])
    for label in ax.get_xticklabels():
        label.set_rotation(0 if label.get_text().isdigit() or width > 2.6 * font else 90)


def fit_labels(ax: Axes, grid: Grid) -> None:
    """Names of layers and rows in a size and number that fit the cells, once the layout is settled."""
    width, height = cell_size(ax)
    _name_layers(ax, grid, width, font_for(height))
    ax.tick_params(labelsize=font_for(height))


def draw_map(
    ax: Axes,
    grid: Grid,
    cells: pd.DataFrame,
    colours: str,
    norm: Normalize,
    chosen: str,
    names: bool = True,
    *,
    inert: str = "inert: cannot act",
) -> tuple[PolyCollection, list[Any]]:
    """Draw frame and cells, outline the chosen, cross the inert, and return legend handles, which say these words."""
    _draw_frame(ax, grid, names)
    absent = _places(grid).difference(pd.MultiIndex.from_frame(cells[["x", "y"]])).to_frame()
    squares(ax, absent, "absent", **style().hatching)
    handles: list[Any] = [Patch(label="no candidate here", **style().hatching)] if len(absent) else []
    mesh = squares(ax, cells, "gates", norm=norm, cmap=mpl.colormaps[colours].with_extremes(bad=style().pale))
    mesh.set(linewidth=0, array=np.ma.masked_invalid(cells["value"].to_numpy(float)))
    if cells["chosen"].any():
        squares(ax, cells[cells["chosen"]], "chosen", 0.07, **outline("black", 1))
        handles.append(Patch(label=chosen, **outline("black", 1)))
    crossed, scale = cells[cells["inert"]], style().scale
    if len(crossed):
        colour = readable_on(mesh.to_rgba(crossed["value"].to_numpy(float)))
        ax.scatter(crossed["x"], crossed["y"], 9 * scale**2, colour, marker="x", linewidths=0.8 * scale, gid="inert")
        handles.append(entry(inert, color=style().ink, marker="x", markersize=4 * scale))
    return mesh, handles + write_ranks(ax, cells, mesh, grid.size)


def _places(grid: Grid) -> pd.MultiIndex:
    return pd.MultiIndex.from_product([grid.columns.values(), grid.rows.values()], names=["x", "y"])


def finish_map(ax: Axes, grid: Grid, handles: list[Any], title: str | None) -> Axes:
    """Title and legend, and then tick labels that fit the cells."""
    finish_axes(ax, "layer", "", handles, title)
    fit_labels(ax, grid)
    return ax


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

    Chosen cells are outlined, inert ones crossed. A cell with several candidates (ranks or sizes of one PET module)
    has the colour of their maximum; the number in it is the rank that was chosen, else the most probable one. For
    probabilities, the colour bar marks the cut and the uniform start, which all gates had.

    Args:
        gates: a gate table, or an object with ``.gates`` (a search result, a run, an average).
        value: "prob", "alpha", "margin", "frequency" (of an average: the share of the searches that chose it) or any
            numeric column.
        cbar: whether to draw a colour bar.
        vmin, vmax: colour limits; `value_limits` returns some that several maps can share.
    """
    cells, table = gate_cells(gates, value), as_table(gates, [])
    low, high = value_limits(table, value=value)
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    levels = cut_and_start(table) if value == "prob" and "n_params" in table else {}
    grid, label = make_grid(table), chosen_words(table)
    ax = ax or new_axes(*map_size(grid))
    mesh, handles = draw_map(ax, grid, cells, style().colours(value), Normalize(low, high), label)
    if cbar:
        marks = {name: at for name, at in levels.items() if low <= at <= high}
        handles += colour_bar(mesh, ax, LABELS.get(value, value), marks)
    return finish_map(ax, grid, handles, title)


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
    """Map of one search minus another of the same space, with colours that diverge around 0 and reach to ``limit``.

    ``one`` and ``other`` are gate tables or objects with ``.gates``, called ``names`` in the legend. What both chose is
    outlined; a triangle up marks what only ``one`` chose, a triangle down what only ``other`` did. Of several sizes of
    a module, the highest values are compared, and a number is the rank that both chose ("1/4": by ``one``, by
    ``other``).

    Raises:
        RunError: the two searched different spaces.
    """
    first, second = (as_table(gates, [*MAP_COLUMNS, "site", value]) for gates in (one, other))
    grid = make_grid(gate_difference(first, second, value))  # raises unless they have the same candidates
    a, b = (gate_cells(table, value, grid=grid).set_index(["x", "y"]) for table in (first, second))
    b = b.loc[a.index]
    both = a["chosen"] & b["chosen"]
    ranks = a["rank"].mask(a["rank"].ne(b["rank"]), a["rank"] + "/" + b["rank"]).where(both, "")
    cells = a.assign(value=a["value"] - b["value"], chosen=both, rank=ranks).reset_index()
    limits = value_limits(cells[["value"]].rename(columns={"value": "difference"}), value="difference")
    norm = Normalize(*limits if limit is None else (-limit, limit))
    ax = ax or new_axes(*map_size(grid))
    mesh, handles = draw_map(ax, grid, cells, style().colours("difference"), norm, f"chosen by both: {both.sum()}")
    sides = (("only_one", names[0], "^", a["chosen"]), ("only_other", names[1], "v", b["chosen"]))
    for column, name, marker, chosen in sides:
        alone = cells[(chosen & ~both).to_numpy()]
        size, label = 5.5 * style().scale, f"chosen by {name} only: {len(alone)}"
        handles += ax.plot(alone["x"], alone["y"], "k" + marker, mec="white", mew=0.6, ms=size, gid=column, label=label)
    colour_bar(mesh, ax, f"{LABELS.get(value, value)}: {names[0]} − {names[1]}")
    return finish_map(ax, grid, handles, title)


@styled
def plot_structure(structure: Any, *, space: Any = None, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Map of a chosen structure: the colour is each cell's share of its parameters, the number at the right each row's.

    Where ranks or sizes of a PET module differ, the number in a cell is the one that was chosen.

    Args:
        structure: an object with ``.table()`` of the chosen candidates, or that table. A ``.budget`` is shown.
        space: all candidates (a table, or an object with ``.table()`` or ``.gates``), for the rows, columns and hatched
            places of `plot_gates`. Without it, the map has only the rows and layers in use.
    """
    table, context = as_table(structure, [*MAP_COLUMNS, "n_params"], at="table"), space
    if space is not None:
        context = as_table(space, MAP_COLUMNS, at="gates" if hasattr(space, "gates") else "table")
    grid, total = make_grid(pd.concat([context, table])[[*MAP_COLUMNS]]), table["n_params"].sum()
    rows = table.assign(share=100 * table["n_params"] / total, chosen=True)
    shares = gate_cells(rows, "share", grid=grid, how="sum", space=pd.concat([context, table]))
    shares, places = shares.set_index(["x", "y"]), _places(grid)
    if space is not None:
        places = pd.MultiIndex.from_frame(gate_cells(context.assign(one=1.0), "one", grid=grid)[["x", "y"]])
    for row in shares[~shares.index.isin(places)].to_dict("records"):
        name = f"{row['role']} {row['pet']} in {row['stack']} {row['column']}"
        raise PlotError(f"The structure uses {name}, which the space does not have.")
    cells = shares.reindex(places).reset_index()
    cells[["chosen", "inert"]] = cells[["chosen", "inert"]].eq(True)
    budget = getattr(structure, "budget", None)
    label = f"chosen: {len(table):,} candidates, {total:,} parameters"
    label += f"\nof a budget of {int(budget):,}" if isinstance(budget, (int, float)) else ""
    ax = ax or new_axes(*map_size(grid))
    norm = Normalize(0, shares["value"].max())
    mesh, handles = draw_map(ax, grid, cells, style().colours("share"), norm, label)
    size = ax.get_xticklabels()[0].get_fontsize()
    for y, share in shares.groupby("y")["value"].sum().reset_index().to_numpy():
        ax.text(grid.size[0] - 0.3, y, f"{share:.0f} %" if share >= 1 else "< 1 %", va="center", size=size)
    colour_bar(mesh, ax, LABELS["share"])
    return finish_map(ax, grid, handles, title)
