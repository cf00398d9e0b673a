"""Is the structure better than its baseline, on which tasks, and do the runs suffice to say so?

Forest plots of differences with their intervals: a row per task, or a row per structure. An open marker is no evidence
of equality; with a row per task it has a look of its own where so few runs could not have been significant at all.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from s3pet.errors import PlotError
from s3pet.plots.scores import AMOUNT
from s3pet.plots.style import KINDS, OTHER, PET_COLOURS, as_table, figure_of, new_axes, new_figure, style, styled

COLUMNS = ("task", "structure", "kind", "baseline", "difference", "difference_low", "difference_high", "p_floor")
GAP = 0.4  # in rows: above the mean over tasks


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
    """Paired differences to the baseline: a row per task, a panel per budget, means over tasks as diamonds below.

    A filled marker is significant, an open one is not; a small one on a dotted
    interval could not have been: with so few runs the
    smallest possible p is not below ``alpha`` (before any correction).

    Args:
        table: what :func:`s3pet.studies.statistics.summary` gives with a baseline, and under it, if wanted,
            :func:`s3pet.studies.statistics.over_tasks` (tasks named "mean of …"). Rows without a baseline are left out.
            Structures without a ``budget`` have a panel each.
        p: the column compared with ``alpha``: "p_holm" or "p".
        scale: of the differences; 100 makes points out of scores between 0 and 1.
        figure: emptied, resized and drawn in; None makes one.

    Returns:
        The Axes of the panels, by budget, in one figure, with one scale.

    Raises:
        PlotError: a column is missing, nothing has a baseline, or a structure is there twice for a task and budget.
    """
    table = as_table(table, [*COLUMNS, p], one=())
    table = table[table["difference"].notna()]
    if table.empty:
        raise PlotError("No row has a difference; give the summary a baseline that shares tasks and seeds.")
    budget = table["budget"] if "budget" in table else pd.Series(np.nan, table.index)
    table = table.assign(budget=pd.to_numeric(budget).astype("Float64"))
    table = table.assign(panel=table["budget"].astype(object).where(table["budget"].notna(), table["structure"]))
    if table.duplicated(["task", "panel", "structure"]).any():
        row = table[table.duplicated(["task", "panel", "structure"])].iloc[0]
        raise PlotError(f"{row['structure']!r} is there twice for {row['task']!r}; pass one row for each.")
    family = table["structure"].str.replace(AMOUNT, "", regex=True)
    table = table.assign(family=family.where(family != "", table["kind"]))
    colours = _colours(table)
    panels = list(table.sort_values("budget", kind="stable")["panel"].unique())
    is_mean = table["task"].str.startswith("mean of ")
    tasks, means = (list(part["task"].unique()) for part in (table[~is_mean], table[is_mean]))
    rows = {name: float(i) for i, name in enumerate(tasks)}
    rows |= {name: len(tasks) + i + GAP * bool(tasks) for i, name in enumerate(means)}
    names = 0.35 + 0.065 * max(map(len, rows))  # inches of a paper
    room = style().page / style().scale - names
    wide = float(np.clip(room / len(panels), 1.1, 2.4))
    many = int(table.groupby(["task", "panel"])["structure"].size().max())
    width, height = names + wide * len(panels), 1.4 + (0.12 + 0.12 * many) * max(rows.values())
    figure = new_figure(width, height, figure)
    axes = list(figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False).flat)
    entries: dict[str, Line2D] = {}
    letters = max(int(72 * wide / (0.56 * style().font / style().scale)), 8)
    for ax, panel, text in zip(axes, panels, _titles(table, panels, letters), strict=True):
        part = table[table["panel"] == panel]
        entries |= _draw_panel(ax, part.assign(y=part["task"].map(rows)), colours, p, alpha, scale)
        ax.set_title(text, size=style().font)
        ax.set_xlabel("difference, points" if scale == 100 else "difference")
    axes[0].set_yticks([*rows.values()], rows)
    axes[0].set_ylim(max(rows.values()) + 0.6, -0.6)
    figure.legend(
        handles=[entries[name] for name in sorted(entries)],
        loc="outside lower left",
        ncols=max(1, int(width / 2.2)),
        handletextpad=0.2,
        columnspacing=1,
    )
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
    """Differences to one baseline, a row per structure, the best on top; coloured by kind.

    The large marker is the mean over tasks with its interval, filled if significant; the short strokes are the tasks.
    Where structures share different numbers of pairs with the baseline, names tell them: such rows are of different
    seeds, and their order says less.

    Args:
        table: as for `plot_differences`, of one budget. With several tasks, rows named "mean of …" are ranked, and
            structures without one are left out; with one task, its own rows are.
        p: the column compared with ``alpha``: "p" or "p_holm".
        scale: of the differences; 100 makes points out of scores between 0 and 1.

    Raises:
        PlotError: a column is missing, nothing has a baseline, tasks without a mean, or a structure is there twice.
    """
    table = as_table(table, [*COLUMNS, p], one=())
    table = table[table["difference"].notna()].reset_index(drop=True)  # of summaries put together, labels repeat
    if table.empty:
        raise PlotError("No row has a difference; give the summary a baseline that shares tasks and seeds.")
    is_mean = table["task"].str.startswith("mean of ")
    if table["task"].nunique() > 1 and not is_mean.any():
        raise PlotError(f"Tasks {', '.join(table['task'].unique())} and no mean; put over_tasks(…) below the summary.")
    ranked = table[is_mean if is_mean.any() else is_mean | True]
    ranked = ranked.sort_values("difference", ascending=False, kind="stable")
    if ranked["structure"].duplicated().any():
        raise PlotError(f"{ranked['structure'][ranked['structure'].duplicated()].iloc[0]!r} is there twice.")
    names = list(ranked["structure"])
    families = [AMOUNT.sub("", name) or name for name in names]
    letters = max(map(len, names))
    ax = ax or new_axes(min(style().page / style().scale, 3.2 + 0.065 * letters), 1.0 + 0.17 * len(names))
    ax.axvline(0, color=style().grey, linewidth=0.8 * style().scale, zorder=0, gid="zero")
    ax.grid(axis="y", color=style().pale, linewidth=style().scale)
    ax.set_axisbelow(True)
    parts = table[~is_mean & table["structure"].isin(names) & is_mean.any()]
    for row in parts.to_dict("records"):
        look: dict[str, Any] = {"color": of_kind(row["kind"]), "marker": "|", "markersize": 5 * style().scale}
        ax.plot([scale * row["difference"]], [names.index(row["structure"])], alpha=0.7, zorder=2, gid="tasks", **look)
    entries = {}
    for y, row in enumerate(ranked.to_dict("records")):
        colour, sure = of_kind(row["kind"]), row[p] < alpha
        ends = [scale * row["difference_low"], scale * row["difference_high"]]
        ax.plot(ends, [y, y], color=colour, linewidth=1.4 * style().scale, zorder=3, gid="intervals")
        face = colour if sure else style().ground
        look = {"color": colour, "linestyle": "", "markersize": 5.5 * style().scale, "markeredgewidth": style().scale}
        ax.plot([scale * row["difference"]], [y], marker="D", markerfacecolor=face, zorder=4, gid="differences", **look)
        entries[f"{row['kind']}, {p} {'<' if sure else '≥'} {alpha:g}"] = (colour, face)
    labels = families if len(set(families)) == len(names) else names
    if "pairs" in ranked and ranked["pairs"].nunique() > 1:
        labels = [f"{label} ({n} pairs)" for label, n in zip(labels, ranked["pairs"], strict=True)]
    ax.set_yticks(range(len(names)), labels)
    ax.set_ylim(len(names) - 0.4, -0.6)
    against = ", ".join(ranked["baseline"].unique())
    ax.set_xlabel(f"difference to {against}" + (", points" if scale == 100 else ""))
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params("y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_title(title or "")
    handles = [
        Line2D([], [], label=label, marker="D", linestyle="", color=colour, markerfacecolor=face)
        for label, (colour, face) in sorted(entries.items())
    ]
    below = ScaledTranslation(0, -3.4 * style().font / 72, figure_of(ax).dpi_scale_trans)  # tick labels and label
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=ax.transAxes + below, ncols=2)
    return ax


def of_kind(kind: str) -> str:
    """The colour of a kind of structure."""
    return KINDS.get(kind, OTHER)[1]


def _titles(table: pd.DataFrame, panels: list[Any], letters: int) -> list[str]:
    """What is compared with what, at which budget; all in two lines where one is too long for ``letters``."""
    titles = []
    for panel in panels:
        part = table[table["panel"] == panel]
        names, baselines = part["structure"].unique(), part["baseline"].unique()
        text = names[0] if len(names) == 1 else panel if isinstance(panel, str) else f"{panel:,.0f} parameters"
        titles.append((text, f"− {baselines[0]}" if len(baselines) == 1 else ""))
    if all(len(text) + len(minus) < letters for text, minus in titles):
        return [f"{text} {minus}".strip() for text, minus in titles]
    return ["\n".join(textwrap.fill(line, letters) for line in title if line) for title in titles]


def _colours(table: pd.DataFrame) -> dict[str, str]:
    """Family → colour: that of its kind, if it has one and is the first to claim it."""
    found, rest = dict[str, str](), [OTHER[1], *PET_COLOURS.values()]
    for family, kind in table[["family", "kind"]].drop_duplicates("family").itertuples(index=False):
        own = KINDS[kind][1] if kind in KINDS else OTHER[1]
        free = [colour for colour in [own, *rest] if colour not in found.values()]
        found[family] = free[0] if free else OTHER[1]
    return found


def _draw_panel(
    ax: Axes, part: pd.DataFrame, colours: dict[str, str], p: str, alpha: float, scale: float
) -> dict[str, Line2D]:
    """The rows of a panel, structures of a task beside each other; entries of the legend."""
    ax.axvline(0, color=style().grey, linewidth=0.8 * style().scale, zorder=0, gid="zero")
    ax.grid(axis="y", color=style().pale, linewidth=style().scale)
    ax.set_axisbelow(True)
    names, entries = list(part["structure"].unique()), {}
    for row in part.to_dict("records"):
        y = row["y"] + 0.7 * ((names.index(row["structure"]) + 0.5) / len(names) - 0.5)
        sure, able = row[p] < alpha, row["p_floor"] < alpha
        label = (
            f"{row['family']}: "
            + ("" if able else "too few runs for ")
            + f"p {'≥' if able and not sure else '<'} {alpha:g}"
        )
        look: dict[str, Any] = {"color": colours[row["family"]], "linewidth": (1.4 if able else 0.9) * style().scale}
        ends = [scale * row["difference_low"], scale * row["difference_high"]]
        ax.plot(ends, [y, y], linestyle="-" if able else ":", zorder=2, gid="intervals", **look)
        look = {"color": look["color"], "linestyle": "", "markersize": (5.5 if able else 3.5) * style().scale}
        look |= {"markerfacecolor": look["color"] if sure else style().ground, "markeredgewidth": style().scale}
        marker = "D" if row["task"].startswith("mean of ") else "o"
        ax.plot([scale * row["difference"]], [y], marker=marker, zorder=3, gid="differences", **look)
        entries[label] = Line2D([], [], label=label, marker="o", **look)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params("y", length=0)
    ax.spines["left"].set_visible(False)
    return entries
