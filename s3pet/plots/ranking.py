"""Forest plots: differences to a baseline with their intervals, a row per task or a row per structure.

A difference is structure − baseline everywhere. Filled markers are significant; open ones are not, which is no evidence
of equality; small ones on a dotted line could not have been significant with so few runs.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from s3pet.errors import PlotError
from s3pet.plots.frame import finish_axes, in_order
from s3pet.plots.scores import AMOUNT, score_range
from s3pet.plots.style import KINDS, OTHER, as_table, new_axes, new_figure, style, styled

COLUMNS = ("task", "structure", "kind", "baseline", "difference", "difference_low", "difference_high", "p_floor")
MEAN = "mean of "  # tasks with this prefix are means over tasks


@styled
def plot_differences(
    table: Any,
    *,
    p: str = "p_holm",
    alpha: float = 0.05,
    scale: float = 100,
    title: str | None = None,
    figure: Figure | None = None,
) -> list[Axes]:
    """Differences to the baseline: a row per task, a panel per budget, means over tasks as diamonds at the bottom.

    Args:
        table: a table as `s3pet.studies.statistics.summary` makes it with a baseline; rows of `over_tasks` may be
            added to it (their tasks are named "mean of …"). Rows without a difference are left out. Structures without
            a ``budget`` have a panel each. With a column ``metric``, intervals are cut at the largest possible
            difference.
        p: the column compared with ``alpha``: "p_holm" or "p".
        scale: factor of the differences; 100 turns scores between 0 and 1 into points.
        figure: emptied, resized and drawn in; None makes one.

    Returns:
        The Axes of the panels, by budget, in one figure, with one scale. Intervals that are more than three times as
        long as the largest difference leave it.

    Raises:
        PlotError: a column is missing, no row has a difference, or a structure has two rows for a task and budget.
    """
    table = _read(table, p)
    budget = pd.to_numeric(table["budget"] if "budget" in table else pd.Series(np.nan, table.index)).astype("Float64")
    table = table.assign(budget=budget, panel=budget.astype(object).where(budget.notna(), table["structure"]))
    duplicates = table[table.duplicated(["task", "panel", "structure"])]
    if len(duplicates):
        name, task = duplicates.iloc[0][["structure", "task"]]
        raise PlotError(f"{name!r} has two rows for {task!r}; pass one row for each.")
    family = table["structure"].str.replace(AMOUNT, "", regex=True)
    table = table.assign(name=family.where(family != "", table["kind"]))
    colours, spare = dict[str, Any](), sns.color_palette("colorblind", 20).as_hex()
    for name, kind in table.drop_duplicates("name")[["name", "kind"]].itertuples(index=False):
        colours[name] = next(
            c for c in [KINDS.get(kind, OTHER)[1], *spare] if c not in colours.values() or c == spare[-1]
        )
    table = table.assign(colour=table["name"].map(colours))
    panels = list(table.sort_values("budget", kind="stable")["panel"].unique())
    tasks = list(dict.fromkeys(sorted(table["task"], key=lambda task: task.startswith(MEAN))))
    beside = int(table.groupby(["task", "panel"])["structure"].size().max())
    margin = 0.35 + 0.065 * max(map(len, tasks))  # inches of a paper, for the names of the tasks
    wide = float(np.clip((style().page / style().scale - margin) / len(panels), 1.1, 2.4))
    figure = new_figure(margin + wide * len(panels), 1.7 + (0.12 + 0.12 * beside) * len(tasks), figure)
    axes = list(figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False).flat)
    handles: dict[str, Line2D] = {}
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table["panel"] == panel]
        names, baselines = part["structure"].unique(), part["baseline"].unique()
        shift = part["structure"].map({name: (i + 0.5) / len(names) - 0.5 for i, name in enumerate(names)})
        handles |= _draw(ax, part.assign(y=part["task"].map(tasks.index) + 0.7 * shift), p, alpha, scale)
        head = names[0] if len(names) == 1 else f"{panel:,.0f} parameters"
        lines = [head, f"− {baselines[0]}"] if len(baselines) == 1 else [head]
        letters = max(int(72 * wide * style().scale / (0.56 * style().font)), 8)
        finish_axes(ax, "difference" + ", points" * (scale == 100), "", [], None)
        ax.set_title("\n".join(textwrap.fill(line, letters) for line in lines), size=style().font)
    _limit(axes[0], table["difference"], scale)
    axes[0].set_yticks(range(len(tasks)), tasks)
    axes[0].set_ylim(len(tasks) - 0.4, -0.6)
    columns = max(1, int(figure.get_figwidth() / style().scale / 2))
    figure.legend(handles=_sorted(handles), loc="outside lower left", ncols=columns, handletextpad=0.2)
    figure.suptitle(title or "", size=1.27 * style().font)
    return axes


@styled
def plot_ranking(
    table: Any,
    *,
    p: str = "p",
    alpha: float = 0.05,
    scale: float = 100,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Differences to one baseline, a row per structure, the best on top, in the colours of the kinds.

    The large marker is the mean over tasks with its interval; the short strokes are the tasks. Where structures share
    different numbers of pairs with the baseline, their names give the number: such rows are of different seeds and
    less comparable.

    Args:
        table: as for `plot_differences`, of one budget. With several tasks, rows named "mean of …" are ranked, and
            structures without one are left out; with one task, its own rows are.
        p: the column compared with ``alpha``: "p" or "p_holm".
        scale: factor of the differences; 100 turns scores between 0 and 1 into points.

    Raises:
        PlotError: a column is missing, no row has a difference, tasks without a mean, or a structure has two rows.
    """
    table = _read(table, p)
    is_mean = table["task"].str.startswith(MEAN)
    if table["task"].nunique() > 1 and not is_mean.any():
        raise PlotError(f"Tasks {', '.join(table['task'].unique())} and no mean; put over_tasks(…) below the summary.")
    ranked = table[is_mean] if is_mean.any() else table
    ranked = ranked.sort_values("difference", ascending=False, kind="stable")
    if ranked["structure"].duplicated().any():
        raise PlotError(f"{ranked['structure'][ranked['structure'].duplicated()].iloc[0]!r} has two rows; pass one.")
    names = list(ranked["structure"])
    ax = ax or new_axes(min(style().page / style().scale, 3.2 + 0.065 * max(map(len, names))), 1.6 + 0.17 * len(names))
    tasks = table[~is_mean & table["structure"].isin(names) & is_mean.any()]
    rows, size = tasks["structure"].map(names.index), 25 * style().scale ** 2
    ax.scatter(scale * tasks["difference"], rows, size, _colours(tasks), "|", alpha=0.7, gid="tasks")
    ranked = ranked.assign(y=range(len(names)), name=ranked["kind"], colour=_colours(ranked))
    handles = _draw(ax, ranked, p, alpha, scale)
    _limit(ax, pd.concat([ranked, tasks])["difference"], scale)
    labels = [AMOUNT.sub("", name) or name for name in names]
    labels = labels if len(set(labels)) == len(names) else names
    if "pairs" in ranked and ranked["pairs"].nunique() > 1:
        labels = [f"{label} ({n} pairs)" for label, n in zip(labels, ranked["pairs"], strict=True)]
    ax.set_yticks(range(len(names)), labels)
    ax.set_ylim(len(names) - 0.4, -0.6)
    against = ", ".join(ranked["baseline"].unique())
    finish_axes(ax, f"difference to {against}" + ", points" * (scale == 100), "", _sorted(handles), title)
    return ax


def _colours(table: pd.DataFrame) -> list[str]:
    return [KINDS.get(kind, OTHER)[1] for kind in table["kind"]]


def _read(table: Any, p: str) -> pd.DataFrame:
    """The rows that have a difference, with intervals cut at what the metric allows."""
    table = as_table(table, [*COLUMNS, p], one=())
    table = table[table["difference"].notna()].reset_index(drop=True)
    if table.empty:
        raise PlotError("No row has a difference; give the summary a baseline that shares tasks and seeds.")
    if {"metric", "score"} <= {*table}:
        low, high = score_range(table["score"], *table["metric"].dropna().unique())
        ends = table[["difference_low", "difference_high"]].clip(low - high, high - low)
        table = table.assign(difference_low=ends["difference_low"], difference_high=ends["difference_high"])
    return table


def _draw(ax: Axes, rows: pd.DataFrame, p: str, alpha: float, scale: float) -> dict[str, Line2D]:
    """Markers and intervals at the heights ``y``, each in its ``colour``; the legend's handles by label."""
    size, handles = style().scale, dict[str, Line2D]()
    ax.axvline(0, color=style().grey, linewidth=0.8 * size, zorder=0, gid="zero")
    ax.grid(axis="y", color=style().pale, linewidth=size)
    ax.set_axisbelow(True)
    level = f"{p.replace('p_holm', 'p (Holm)')} {{}} {alpha:g}"
    for row in rows.to_dict("records"):
        significant, possible = row[p] < alpha, row["p_floor"] < alpha
        ends = [scale * row["difference_low"], scale * row["difference_high"]]
        width, dashes = (1.4, "-") if possible else (0.9, ":")
        ax.plot(ends, [row["y"]] * 2, dashes, color=row["colour"], linewidth=width * size, zorder=2, gid="intervals")
        look: dict[str, Any] = {
            "linestyle": "",
            "markersize": (5.5 if possible else 3.5) * size,
            "markeredgewidth": size,
        }
        face = row["colour"] if significant else style().ground
        marker, at = "D" if row["task"].startswith(MEAN) else "o", scale * row["difference"]
        ax.plot(
            [at], [row["y"]], marker, color=row["colour"], markerfacecolor=face, zorder=3, gid="differences", **look
        )
        state = level.format("<" if significant else "≥") if possible else f"too few runs for {level.format('<')}"
        face = style().grey if significant else style().ground
        handles[state] = Line2D([], [], marker="o", color=style().grey, markerfacecolor=face, label=state, **look)
        handles[row["name"]] = Line2D([], [], color=row["colour"], linewidth=3 * size, label=row["name"])
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params("y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return handles


def _limit(ax: Axes, differences: pd.Series, scale: float) -> None:
    """Limits that a wide interval of few runs cannot stretch: at most three times the largest difference."""
    low, high = ax.get_xlim()
    edge = 3 * scale * float(differences.abs().max()) or scale
    ax.set_xlim(max(low, -edge), min(high, edge))


def _sorted(handles: dict[str, Line2D]) -> list[Line2D]:
    """Handles of a legend: names in the order of the kinds, then the states of the tests."""
    states = sorted(label for label in handles if handles[label].get_marker() == "o")
    return [handles[label] for label in [*in_order(set(handles) - {*states}, KINDS), *states]]
