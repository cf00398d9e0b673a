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
from matplotlib.ticker import MaxNLocator

from s3pet.errors import PlotError
from s3pet.plots.frame import entry, finish_axes, in_order, kind_colours
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
        table: as `s3pet.studies.statistics.summary` returns it with a baseline; rows of `over_tasks` may be added
            (tasks named "mean of …"). Rows without a difference are left out. Without a ``budget``, each structure has
            its own panel. With a column ``metric``, intervals are cut at the largest possible difference.
        p: the column compared with ``alpha``: "p_holm" or "p".
        scale: factor of the differences; 100 turns scores between 0 and 1 into points.
        figure: emptied, resized and drawn in; None makes one.

    Returns:
        The Axes of the panels, by budget, in one figure, with one scale: at most three times the largest difference,
        so that a wide interval of few runs leaves it.

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
        free = [colour for colour in [KINDS.get(kind, OTHER)[1], *spare] if colour not in colours.values()]
        colours[name] = free[0] if free else OTHER[1]
    table = table.assign(colour=table["name"].map(colours))
    panels = list(table.sort_values("budget", kind="stable")["panel"].unique())
    tasks = list(dict.fromkeys(sorted(table["task"], key=lambda task: task.startswith(MEAN))))
    beside = int(table.groupby(["task", "panel"])["structure"].size().max())
    margin = 0.35 + 0.065 * max(map(len, tasks))  # inches of a paper, for the names of the tasks
    wide = float(np.clip((style().page / style().scale - margin) / len(panels), 1.1, 2.4))
    letters = max(int(72 * wide * style().scale / (0.56 * style().font)), 8)  # in the title of a panel
    figure = new_figure(margin + wide * len(panels), 1.7 + (0.12 + 0.12 * beside) * len(tasks), figure)
    axes = list(figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table["panel"] == panel]
        names, baselines = list(part["structure"].unique()), part["baseline"].unique()
        shift = 0.7 * ((part["structure"].map(names.index) + 0.5) / len(names) - 0.5)
        handles |= _draw(ax, part.assign(y=part["task"].map(tasks.index) + shift), p, alpha, scale)
        finish_axes(ax, "difference" + ", points" * (scale == 100), "", [], None)
        lines = [names[0] if len(names) == 1 else f"{panel:,.0f} parameters"]
        lines += [f"− {baselines[0]}"] if len(baselines) == 1 else []
        ax.set_title("\n".join(textwrap.fill(line, letters) for line in lines), size=style().font)
    _set_limits(axes[0], table["difference"], scale)
    axes[0].set_yticks(range(len(tasks)), tasks)
    axes[0].set_ylim(len(tasks) - 0.4, -0.6)
    columns = max(1, int(figure.get_figwidth() / style().scale / 2))
    figure.legend(handles=_sorted(handles), loc="outside lower left", ncols=columns, handletextpad=0.4)
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
    different numbers of pairs with the baseline, their names give the number: such rows are less comparable.

    Args:
        table: as for `plot_differences`, of one budget. With several tasks, rows named "mean of …" are ranked, and
            structures without one are left out; with one task, its own rows are.
        p, alpha, scale: as for `plot_differences`.

    Raises:
        PlotError: a column is missing, no row has a difference, tasks without a mean, or a structure has two rows.
    """
    table = _read(table, p)
    is_mean = table["task"].str.startswith(MEAN)
    if table["task"].nunique() > 1 and not is_mean.any():
        raise PlotError(f"Tasks {', '.join(table['task'].unique())} and no mean; put over_tasks(…) below the summary.")
    ranked = (table[is_mean] if is_mean.any() else table).sort_values("difference", ascending=False, kind="stable")
    names = list(ranked["structure"])
    if len(set(names)) < len(names):
        raise PlotError(f"{max(names, key=names.count)!r} has two rows; pass one for each structure.")
    tasks = table[~is_mean & table["structure"].isin(names) & is_mean.any()]
    ax = ax or new_axes(min(style().page / style().scale, 3.2 + 0.065 * max(map(len, names))), 1.6 + 0.17 * len(names))
    look: dict[str, Any] = {"c": kind_colours(tasks["kind"]), "marker": "|", "alpha": 0.7, "gid": "tasks"}
    ax.scatter(scale * tasks["difference"], tasks["structure"].map(names.index), 25 * style().scale ** 2, **look)
    rows = ranked.assign(y=range(len(names)), name=ranked["kind"], colour=kind_colours(ranked["kind"]))
    handles = _draw(ax, rows, p, alpha, scale)
    _set_limits(ax, pd.concat([ranked, tasks])["difference"], scale)
    labels = [AMOUNT.sub("", name) or name for name in names]
    labels = labels if len(set(labels)) == len(names) else names
    if "pairs" in ranked and ranked["pairs"].nunique() > 1:
        labels = [f"{label} ({n} pairs)" for label, n in zip(labels, ranked["pairs"], strict=True)]
    ax.set_yticks(range(len(names)), labels)
    ax.set_ylim(len(names) - 0.4, -0.6)
    against = ", ".join(ranked["baseline"].unique())
    finish_axes(ax, f"difference to {against}" + ", points" * (scale == 100), "", _sorted(handles), title)
    return ax


def _read(table: Any, p: str) -> pd.DataFrame:
    """The rows that have a difference, with intervals cut at what the metric allows."""
    table = as_table(table, [*COLUMNS, p], one=())
    table = table[table["difference"].notna()].reset_index(drop=True)
    if table.empty:
        raise PlotError("No row has a difference; give the summary a baseline that shares tasks and seeds.")
    low, high = score_range(table, "score" if "score" in table else "difference")
    ends = ["difference_low", "difference_high"]
    return table.assign(**table[ends].clip(low - high, high - low))


def _draw(ax: Axes, rows: pd.DataFrame, p: str, alpha: float, scale: float) -> dict[str, Any]:
    """Markers and intervals at the heights ``y``, each in its ``colour``; the legend's handles by label."""
    size, ground, handles = style().scale, style().ground, dict[str, Any]()
    ax.axvline(0, color=style().grey, linewidth=0.8 * size, zorder=0, gid="zero")
    ax.grid(axis="y", color=style().pale, linewidth=size)
    ax.set_axisbelow(True)
    level = f"{p.replace('p_holm', 'p (Holm)')} {{}} {alpha:g}"
    for row in rows.to_dict("records"):
        significant, possible, colour, y = row[p] < alpha, row["p_floor"] < alpha, row["colour"], row["y"]
        look: dict[str, Any] = {"linewidth": (1.4 if possible else 0.9) * size, "linestyle": "-" if possible else ":"}
        ends = [scale * row["difference_low"], scale * row["difference_high"]]
        ax.plot(ends, [y, y], color=colour, zorder=2, gid="intervals", **look)
        look = {"linestyle": "", "markersize": (5.5 if possible else 3.5) * size, "markeredgewidth": size}
        marker, face = "D" if row["task"].startswith(MEAN) else "o", colour if significant else ground
        look |= {"marker": marker, "color": colour, "markerfacecolor": face}
        ax.plot([scale * row["difference"]], [y], zorder=3, gid="differences", **look)
        state = level.format("<" if significant else "≥") if possible else f"too few runs for {level.format('<')}"
        look |= {"marker": "o", "color": style().grey, "markerfacecolor": style().grey if significant else ground}
        handles |= {state: entry(state, **look), row["name"]: entry(row["name"], color=colour, linewidth=3 * size)}
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params("y", length=0)
    ax.spines["left"].set_visible(False)
    return handles


def _set_limits(ax: Axes, differences: pd.Series, scale: float) -> None:
    """Limits that a wide interval of few runs cannot stretch: at most three times the largest difference."""
    low, high = ax.get_xlim()
    edge = 3 * scale * float(differences.abs().max()) or scale
    ax.set_xlim(max(low, -edge), min(high, edge))


def _sorted(handles: dict[str, Any]) -> list[Any]:
    """Handles of a legend: names in the order of the kinds, then the results of the tests."""
    results = sorted(label for label in handles if handles[label].get_marker() == "o")
    return [handles[label] for label in [*in_order(set(handles) - {*results}, KINDS), *results]]
