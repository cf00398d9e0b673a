"""Who chose what: several searches of one space, cut at one budget, as a table and beside chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s3pet.errors import PlotError, nearest
from s3pet.plots.cuts import candidate_names
from s3pet.plots.grid import MAP_COLUMNS, make_grid
from s3pet.plots.maps import _size, plot_difference
from s3pet.plots.matrices import plot_overlap
from s3pet.plots.style import as_table, flag, new_figure, styled


def choice_table(gates: Mapping[str, Any]) -> pd.DataFrame:
    """Candidates × searches: who chose what.

    Args:
        gates: name of each search → gate table, or object with ``.gates``, of the same candidates.

    Returns:
        A row per candidate that any of them chose, by name, those chosen most often first and the more probable ones
        first among them: ``n_params``, a Boolean column per search, ``chosen_by`` (how many) and ``mean_prob``.

    Raises:
        PlotError: none given, a column is missing, or the candidates differ.
    """
    if not gates:
        raise PlotError("Expected searches as {name: gate table}; got none.")
    tables = {}
    for name, given in gates.items():
        table = as_table(given, ["site", "pet", "rank", "n_params", "prob", "chosen"])
        tables[name] = table.set_axis(candidate_names(table))
    first, *others = tables.values()
    if any(set(table.index) != set(first.index) for table in others):
        raise PlotError("The tables hold different candidates, so their choices cannot stand in one table.")
    made = pd.DataFrame({"n_params": first["n_params"]})
    chosen = pd.DataFrame({name: flag(table, "chosen") for name, table in tables.items()}).loc[made.index]
    made = pd.concat([made, chosen], axis=1)
    made["chosen_by"] = chosen.sum(axis=1)
    made["mean_prob"] = pd.DataFrame({name: table["prob"] for name, table in tables.items()}).mean(axis=1)
    made = made[made["chosen_by"] > 0].rename_axis("candidate")
    return made.sort_values(["chosen_by", "mean_prob"], ascending=False, kind="stable")


@styled
def plot_two(
    gates: Mapping[str, Any], one: str, other: str, *, value: str = "prob", figure: Figure | None = None
) -> Axes:
    """`plot_difference` of two searches by their names.

    Args:
        gates: name of each search → gate table, or object with ``.gates``.
        one, other: which to subtract from which.
        value: the numeric column to compare.
        figure: emptied, resized and drawn in; None makes one.

    Raises:
        PlotError: a name that is not there, or as `plot_difference`.
    """
    for name in (one, other):
        if name not in gates:
            raise PlotError(f"no search is called {name!r}; {nearest(name, gates)}")
    figure = new_figure(*_size(make_grid(as_table(gates[one], MAP_COLUMNS)), True), figure)
    return plot_difference(gates[one], gates[other], value=value, names=(one, other), ax=figure.subplots())


@styled
def plot_agreement(pairs: Any, *, value: str = "jaccard", figure: Figure | None = None) -> tuple[Axes, Axes]:
    """Both views of `plot_overlap`: which pairs of searches agree, and how all of them lie to the line of chance.

    Args:
        pairs: as :func:`s3pet.agreement` returns them.
        value: "jaccard" or "spearman".
        figure: emptied, resized and drawn in; None makes one.

    Returns:
        The Axes of the matrix and of the points.

    Raises:
        PlotError: as `plot_overlap`.
    """
    table = as_table(pairs, ["first", "second", "group"], one=())
    names, groups = len({*table["first"], *table["second"]}), table["group"].nunique()
    left, right, low = min(3.9 + 0.14 * max(names - 4, 0), 6.0), 3.35 + 0.5 * (groups - 1), min(3.0 + 0.1 * names, 4.6)
    figure = new_figure(left + right, low, figure)
    one, other = figure.subplots(1, 2, width_ratios=(left, right))
    plot_overlap(table, value=value, ax=one)
    plot_overlap(table, value=value, by="group", ax=other)
    return one, other
