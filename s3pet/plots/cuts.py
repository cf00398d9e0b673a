"""Searches cut at a budget: map and spending of one, the facts about a candidate, what several searches chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from s3pet.errors import PlotError, nearest
from s3pet.plots.frame import entry, in_order
from s3pet.plots.grid import MAP_COLUMNS, gate_cells, make_grid
from s3pet.plots.maps import map_size, outline, plot_difference, plot_gates, squares
from s3pet.plots.matrices import plot_overlap
from s3pet.plots.style import PET_COLOURS, PETS, as_table, flag, new_axes, new_figure, style, styled

COLUMNS = ["site", *MAP_COLUMNS, "rank", "n_params", "alpha", "prob", "chosen"]


def candidate_names(gates: Any) -> pd.Series:
    """``site:pet:rank`` of every row, as :attr:`s3pet.space.Candidate.name`."""
    table = as_table(gates, ["site", "pet", "rank"])
    rank = table["rank"].astype("Int64").astype("string").radd(":").fillna("")
    return (table["site"] + ":" + table["pet"] + rank).astype(object)


def _position(table: pd.DataFrame, candidate: str) -> int:
    names = candidate_names(table).tolist()
    if candidate not in names:
        raise PlotError(f"no candidate is called {candidate!r}; {nearest(candidate, names)}")
    return names.index(candidate)


def select_rows(gates: Any, pets: Iterable[str] | None = None, layers: tuple[int, int] | None = None) -> pd.Series:
    """Whether each candidate passes a filter, as a Boolean column.

    Args:
        gates: a gate table, or an object with ``.gates``.
        pets: PET modules; None: all.
        layers: first and last layer of every stack; None: all. An embedding belongs to layer 0, other sites outside the
            layers belong to the last layer of their stack.

    Raises:
        PlotError: a PET module that the table does not have.
    """
    table = as_table(gates, MAP_COLUMNS)
    rows = pd.Series(True, table.index)
    if pets is not None:
        for unknown in sorted(set(pets) - set(table["pet"])):
            raise PlotError(f"no candidate has the PET module {unknown!r}; {nearest(unknown, set(table['pet']))}")
        rows &= table["pet"].isin([*pets])
    if layers is not None:
        layer = pd.to_numeric(table["layer"]).astype("Float64").astype(float)
        outside = layer.groupby(table["stack"]).transform("max").mask(table["role"].str.startswith("embed"), 0)
        rows &= layer.fillna(outside).fillna(0).between(*layers)
    return rows


def candidate_facts(gates: Any, candidate: str, chosen_in: Mapping[str, bool] | None = None) -> dict[str, str]:
    """What a gate table says about the ``candidate`` of this name, such as ``encoder.3.attn.q:lora:1``.

    With ``chosen_in`` (names of other searches → whether they choose it), also which of them do.

    Raises:
        PlotError: no such candidate; the message has the nearest names.
    """
    table, others = as_table(gates, COLUMNS), chosen_in or {}
    at = _position(table, candidate)
    row, place = table.iloc[at], int(table["prob"].rank(method="first", ascending=False).iloc[at])
    margin, choosers = row.get("margin"), [name for name, choice in others.items() if choice]
    not_chosen = "no, too expensive for what was left" if pd.notna(margin) and margin >= 0 else "no"
    facts = {
        "address": row["site"],
        "module": row.get("path"),
        "PET module": PETS.get(row["pet"], row["pet"]),
        "rank": row["rank"] if pd.notna(row["rank"]) else "—",
        "cost": f"{row['n_params']:,} parameters",
        "α": f"{row['alpha']:.4g}",
        "probability": f"{row['prob']:.4g}",
        "spread": f"{row['prob_spread']:.3g}" if "prob_spread" in table else None,
        "margin to the cut": f"{margin:+.4g}" if pd.notna(margin) else "—",
        "in the order": f"{place} of {len(table)}",
        "chosen": "yes" if flag(table, "chosen").iloc[at] else not_chosen,
        "chosen in": f"{len(choosers)} of {len(others)}: {', '.join(choosers)}".rstrip(": ") if others else None,
        "inert": "cannot change the model" if flag(table, "inert").iloc[at] else None,
        "can add the same": row.get("redundant"),
    }
    return {name: str(fact) for name, fact in facts.items() if pd.notna(fact)}


def _spending(table: pd.DataFrame, budget: int | None) -> pd.DataFrame:
    """By PET module, and for what is left over: parameters and candidates chosen, shares of the budget in %."""
    chosen, cost = flag(table, "chosen"), table["n_params"].astype(float)
    total = float(budget or cost[chosen].sum())
    if not total > 0:
        raise PlotError(f"None of the {len(table)} candidates is chosen, so there is no budget to share out.")
    rows = pd.DataFrame({"params": cost * chosen, "chosen": chosen, "all": 1, "uniform": 100 * cost / cost.sum()})
    spending = rows.groupby(table["pet"].astype(str)).sum()
    spending = spending.loc[in_order(spending.index, PETS)]
    spending.loc["not used"] = [total - spending["params"].sum(), 0, 0, np.nan]
    return spending.assign(share=(100 * spending["params"] / total).clip(lower=0))


@styled
def plot_budget_bar(gates: Any, *, budget: int | None = None, ax: Axes | None = None, title: str | None = None) -> Axes:
    """What a budget is spent on, by PET module: bars in % of it, and a mark at the share with uniform gates.

    The ``budget`` is in parameters; None: what the chosen candidates cost together.

    Raises:
        PlotError: a column is missing, or there is no budget because nothing is chosen.
    """
    spending, scale = _spending(as_table(gates, ["pet", "n_params", "chosen"]), budget), style().scale
    ax = ax or new_axes(None, 0.7 + 0.19 * len(spending))
    look: dict[str, Any] = {"color": style().ink, "linewidth": 1.3 * scale}
    look["path_effects"] = [withStroke(linewidth=2.8 * scale, foreground=style().ground)]
    for y, (name, row) in enumerate(spending.iterrows()):
        ax.barh(y, row["share"], 0.7, color=PET_COLOURS.get(str(name), style().faint), gid=f"budget-{name}")
        number = f"{row['params']:,.0f}" + (f" · {row['chosen']:.0f} of {row['all']:.0f}" if row["all"] else "")
        ax.text(103, y, number, va="center", gid=f"number-{name}")
        if row["all"]:
            ax.plot([row["uniform"]] * 2, [y - 0.42, y + 0.42], gid=f"uniform-{y}", **look)
    ax.set(xlim=(0, 165), ylim=(len(spending) - 0.5, -0.5), xticks=range(0, 101, 20))
    ax.set_xlabel("share of the budget (%)", x=50 / 165)
    ax.spines["bottom"].set_bounds(0, 100)
    ax.set_yticks(range(len(spending)), [PETS.get(str(name), name) for name in spending.index])
    ax.tick_params("y", length=0)
    mark = entry("uniform gates", color=style().ink, marker="|", linestyle="", markersize=9 * scale)
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
        title: of the figure.
        figure: emptied, resized and drawn in; None makes one.

    Raises:
        PlotError: as `plot_gates`, `plot_budget_bar`, `select_rows` and `candidate_facts`.
    """
    table = as_table(gates, [*COLUMNS, value])
    grid, n_bars = make_grid(table), len(_spending(table, budget))
    veiled = gate_cells(table.assign(chosen=select_rows(table, pets, layers)), value).query("not chosen")
    picked = table.iloc[[] if candidate is None else [_position(table, candidate)]]
    (width, height), low, page = map_size(grid), 0.55 + 0.19 * n_bars, style().page / style().scale
    if 2 + 0.14 * grid.size[0] + 3.3 <= page:
        width = min(width, page - 3.3)
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
        squares(ax, gate_cells(picked, grid=grid), "picked", 0, **outline("#E8112D", 2), clip_on=False, zorder=4)
    figure.suptitle(title or "", size=1.1 * style().font)
    return ax, bars


def choice_table(gates: Mapping[str, Any]) -> pd.DataFrame:
    """Which search chose which candidate. ``gates`` maps the name of each search to its table, of the same candidates.

    Returns:
        One row per candidate that any search chose, by name: ``n_params``, a Boolean column per search, ``chosen_by``
        (how many) and ``mean_prob``; sorted by the last two, highest first.

    Raises:
        PlotError: no searches, a column is missing, or the candidates differ.
    """
    if not gates:
        raise PlotError("Expected searches as {name: gate table}; got none.")
    columns = ["site", "pet", "rank", "n_params", "prob", "chosen"]
    tables = {name: as_table(table, columns).set_axis(candidate_names(table)) for name, table in gates.items()}
    first, *others = tables.values()
    if any(set(table.index) != set(first.index) for table in others):
        raise PlotError("The tables hold different candidates, so their choices cannot be compared in one table.")
    chosen = pd.DataFrame({name: flag(table, "chosen") for name, table in tables.items()}).loc[first.index]
    prob = pd.DataFrame({name: table["prob"] for name, table in tables.items()}).mean(axis=1)
    choices = pd.concat([first["n_params"], chosen], axis=1)
    choices = choices.assign(chosen_by=chosen.sum(axis=1), mean_prob=prob).query("chosen_by > 0")
    return choices.rename_axis("candidate").sort_values(["chosen_by", "mean_prob"], ascending=False, kind="stable")


@styled
def plot_two(
    gates: Mapping[str, Any], one: str, other: str, *, value: str = "prob", figure: Figure | None = None
) -> Axes:
    """`plot_difference` of two of several searches, by their names; ``figure`` is emptied, resized and drawn in.

    Raises:
        PlotError: an unknown name, or as `plot_difference`.
    """
    for name in (one, other):
        if name not in gates:
            raise PlotError(f"no search is called {name!r}; {nearest(name, gates)}")
    figure = new_figure(*map_size(make_grid(as_table(gates[one], MAP_COLUMNS))), figure)
    return plot_difference(gates[one], gates[other], value=value, names=(one, other), ax=figure.subplots())


@styled
def plot_agreement(pairs: Any, *, value: str = "jaccard", figure: Figure | None = None) -> tuple[Axes, Axes]:
    """Both views of `plot_overlap`, a matrix and points: which pairs agree, and how all pairs compare with chance.

    Arguments and errors as in `plot_overlap`; ``figure`` is emptied, resized and drawn in.
    """
    table = as_table(pairs, ["first", "second", "group"], one=())
    names, groups = len({*table["first"], *table["second"]}), table["group"].nunique()
    widths = min(3.9 + 0.14 * max(names - 4, 0), 6.0), 3.35 + 0.5 * (groups - 1)
    figure = new_figure(sum(widths), min(3.2 + 0.1 * names, 4.8), figure)
    matrix, points = figure.subplots(1, 2, width_ratios=widths)
    plot_overlap(table, value=value, ax=matrix)
    plot_overlap(table, value=value, by="group", ax=points)
    return matrix, points
