"""Searches cut at a budget: map and spending of one, and what several searches chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s3pet.errors import PlotError, nearest, shown
from s3pet.files.kinds import TEXT, Kind, instance, one_of, optional, several, whole
from s3pet.plots.frame import entry, in_order, rim
from s3pet.plots.maps import MAP_COLUMNS, gate_cells, make_grid, map_size, outline, plot_difference, plot_gates, squares
from s3pet.plots.matrices import plot_overlap
from s3pet.plots.style import PET_COLOURS, PETS, PICKED, as_table, flag, new_axes, new_figure, style, styled
from s3pet.plots.words import FACTS, candidate_names, position_of


def select_rows(gates: Any, pets: Iterable[str] | None = None, layers: tuple[int, int] | None = None) -> pd.Series:
    """Whether each candidate passes a filter, as a Boolean column.

    Args:
        gates: a gate table, or an object with ``.gates``.
        pets: PET modules of the table; None: all.
        layers: first and last layer of every stack; None: all. An embedding belongs to layer 0, other sites outside the
            layers belong to the last layer of their stack.
    """
    table = as_table(gates, MAP_COLUMNS)
    optional(several(TEXT, 0)).check(PlotError, pets=pets)
    ends = Kind(
        "the first and the last layer",
        lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(map(whole().holds, v)) and v[0] <= v[1],
    )
    optional(ends).check(PlotError, layers=layers)
    pets = set(table["pet"]) if pets is None else set(pets)
    for unknown in sorted(pets - set(table["pet"])):
        raise PlotError(f"no candidate has the PET module {unknown!r}; {nearest(unknown, set(table['pet']))}")
    layer = pd.to_numeric(table["layer"]).astype("Float64").astype(float)
    outside = layer.groupby(table["stack"]).transform("max").mask(table["role"].str.startswith("embed"), 0)
    rows = layer.fillna(outside).fillna(0).between(*(layers or (-np.inf, np.inf)))
    return rows & table["pet"].isin(pets)


def budget_shares(table: pd.DataFrame, budget: int | None) -> pd.DataFrame:
    """By PET module, and for what is left over: parameters and candidates chosen, shares of the budget in %, words."""
    chosen, cost = flag(table, "chosen"), table["n_params"].astype(float)
    total = float(budget or cost[chosen].sum())
    if not total > 0:
        raise PlotError(f"None of the {len(table)} candidates is chosen, so there is no budget to share out.")
    rows = pd.DataFrame({"params": cost * chosen, "chosen": chosen, "all": 1, "uniform": 100 * cost / cost.sum()})
    spending = rows.groupby(table["pet"].astype(str)).sum()
    spending = spending.loc[in_order(spending.index, PETS)]
    spending.loc["not used"] = [total - spending["params"].sum(), 0, 0, np.nan]
    counts = " · " + spending["chosen"].map("{:.0f}".format) + " of " + spending["all"].map("{:.0f}".format)
    words = spending["params"].map("{:,.0f}".format) + counts.where(spending["all"] > 0, "")
    return spending.assign(share=(100 * spending["params"] / total).clip(lower=0), words=words)


@styled
def plot_budget_bar(gates: Any, *, budget: int | None = None, ax: Axes | None = None, title: str | None = None) -> Axes:
    """What a budget is spent on, by PET module: bars in % of it, and a mark at the share with uniform gates.

    The ``budget`` is in parameters; None: what the chosen candidates cost together.
    """
    spending, scale = budget_shares(as_table(gates, ["pet", "n_params", "chosen"]), budget), style().scale
    ax = ax or new_axes(None, 0.7 + 0.19 * len(spending))
    look: dict[str, Any] = {"color": style().ink, "linewidth": 1.3 * scale, "path_effects": rim(2.8)}
    for y, (name, row) in enumerate(spending.iterrows()):
        ax.barh(y, row["share"], 0.7, color=PET_COLOURS.get(str(name), style().faint), gid=f"budget-{name}")
        ax.text(103, y, row["words"], va="center", gid=f"number-{name}")
        if row["all"]:
            ax.plot([row["uniform"]] * 2, [y - 0.42, y + 0.42], gid=f"uniform-{y}", **look)
    ax.set(xlim=(0, 165), ylim=(len(spending) - 0.5, -0.5), xticks=range(0, 101, 20))
    ax.set_xlabel("share of the budget (%)", x=50 / 165)
    ax.spines["bottom"].set_bounds(0, 100)
    ax.set_yticks(range(len(spending)), [PETS.get(str(name), name) for name in spending.index])
    ax.tick_params("y", length=0)
    mark = entry("uniform gates", color=style().ink, marker="|", markersize=9 * scale)
    ax.legend(handles=[mark], loc="lower right", bbox_to_anchor=(100 / 165, 1.0), handletextpad=0.1)
    ax.set_title(title or "", loc="left")
    return ax


@styled
def plot_cut(
    gates: Any,
    *,
    budget: int | None = None,
    value: str = "prob",
    vmin: float | None = None,
    vmax: float | None = None,
    pets: Sequence[str] | None = None,
    layers: tuple[int, int] | None = None,
    candidate: str | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> tuple[Axes, Axes]:
    """A search cut at a budget: the map of `plot_gates` and, beside or below it, the bars of `plot_budget_bar`.

    Args:
        gates: a gate table, or an object with ``.gates``; ``run.gates_at(step, budget)`` makes one.
        budget: in parameters; None: what the chosen candidates cost together.
        value, vmin, vmax: as in `plot_gates`.
        pets, layers: what to show, as in `select_rows`. The rest is veiled; the choice does not change.
        candidate: name of one to frame in red.
    """
    table = as_table(gates, [*FACTS, value])
    grid, n_bars = make_grid(table), len(budget_shares(table, budget))
    veiled = gate_cells(table.assign(chosen=select_rows(table, pets, layers)), value).query("not chosen")
    picked = table.iloc[[] if candidate is None else [position_of(candidate, table)]]
    (width, height), low = map_size(grid), 0.55 + 0.19 * n_bars
    if 2 + 0.14 * grid.size[0] + 3.3 <= style().widest:
        width = min(width, style().widest - 3.3)
        figure = new_figure(width + 3.3, height + 0.3, figure)
        spec = figure.add_gridspec(2, 2, width_ratios=(width, 3.3), height_ratios=(low, max(height - low, 0.1)))
        ax, bars = figure.add_subplot(spec[:, 0]), figure.add_subplot(spec[0, 1])
    else:
        figure = new_figure(width, height + low + 0.4, figure)
        ax, bars = figure.subplots(2, 1, height_ratios=(height, low))
    plot_gates(table, value=value, ax=ax, vmin=vmin, vmax=vmax)
    plot_budget_bar(table, budget=budget, ax=bars)
    squares(ax, veiled, "veiled", 0, facecolor=style().ground, alpha=0.82, linewidth=0, zorder=3)
    if len(picked):
        squares(ax, gate_cells(picked, grid=grid), "picked", 0, **outline(PICKED, 2), clip_on=False, zorder=4)
    figure.suptitle(title or "", size=1.1 * style().font)
    return ax, bars


def choice_table(gates: Mapping[str, Any]) -> pd.DataFrame:
    """Which search chose which candidate. ``gates`` maps the name of each search to its table, of the same candidates.

    Returns:
        One row per candidate that any search chose, by name: ``n_params``, a Boolean column per search, ``chosen_by``
        (how many) and ``mean_prob``; sorted by the last two, highest first.
    """
    if not isinstance(gates, Mapping) or not gates:
        raise PlotError(f"Expected searches as {{name: gate table}}; got {shown(gates)}.")
    columns = ["n_params", "prob", "chosen"]
    tables = {name: as_table(table, columns).set_axis(candidate_names(table)) for name, table in gates.items()}
    first, *others = tables.values()
    if any(set(table.index) != set(first.index) for table in others):
        raise PlotError("The tables hold different candidates, so their choices cannot be compared in one table.")
    chosen = pd.DataFrame({name: flag(table, "chosen") for name, table in tables.items()})
    prob = pd.DataFrame({name: table["prob"] for name, table in tables.items()}).mean(axis=1)
    choices = pd.concat([first["n_params"], chosen], axis=1).assign(chosen_by=chosen.sum(axis=1), mean_prob=prob)
    choices = choices[choices["chosen_by"] > 0].rename_axis("candidate")
    return choices.sort_values(["chosen_by", "mean_prob"], ascending=False, kind="stable")


@styled
def plot_two(
    gates: Mapping[str, Any], one: str, other: str, *, value: str = "prob", figure: Figure | None = None
) -> Axes:
    """`plot_difference` of two of several searches, by their names."""
    instance(Mapping, "a mapping of names to gate tables").check(PlotError, gates=gates)
    for name in (one, other):
        if not one_of(gates).holds(name):
            raise PlotError(f"no search is called {name!r}; {nearest(name, gates)}")
    figure = new_figure(*map_size(make_grid(as_table(gates[one], MAP_COLUMNS))), figure)
    return plot_difference(gates[one], gates[other], value=value, names=(one, other), ax=figure.subplots())


@styled
def plot_agreement(pairs: Any, *, value: str = "jaccard", figure: Figure | None = None) -> tuple[Axes, Axes]:
    """Both views of `plot_overlap`, with the same arguments: which pairs agree, and how all compare with chance."""
    table = as_table(pairs, ["first", "second", "group"], one=())
    names, groups = len({*table["first"], *table["second"]}), table["group"].nunique()
    widths = min(3.9 + 0.14 * max(names - 4, 0), 6.0), 3.35 + 0.5 * (groups - 1)
    figure = new_figure(min(sum(widths), style().widest), min(3.2 + 0.1 * names, 4.8), figure)
    matrix, points = figure.subplots(1, 2, width_ratios=widths)
    plot_overlap(table, value=value, ax=matrix)
    plot_overlap(table, value=value, by="group", ax=points)
    return matrix, points
