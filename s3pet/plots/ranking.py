"""Forest plots of differences to a baseline, and the scores of structures that were retrained several times.

A difference is structure − baseline everywhere. Filled markers are significant; open ones are not, which is no evidence
of equality; small ones on a dotted line could not have been significant with so few runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s3pet.errors import PlotError
from s3pet.plots.frame import entry, finish_axes, in_order, kind_colours, wrapped
from s3pet.plots.scores import AMOUNT, score_range
from s3pet.plots.style import KINDS, OTHER, PALETTE, as_table, new_axes, new_figure, style, styled

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

    Returns:
        The Axes of the panels, by budget, in one figure, with one scale: at most three times the largest difference,
        so that a wide interval of few runs leaves it.

    Raises:
        PlotError: no row has a difference, or a structure has two rows for a task and budget.
    """
    table = _read(table, p)
    budget = pd.to_numeric(table.get("budget", pd.Series(np.nan, table.index))).astype("Float64")
    table = table.assign(budget=budget, panel=budget.astype(object).where(budget.notna(), table["structure"]))
    duplicates = table[table.duplicated(["task", "panel", "structure"])]
    if len(duplicates):
        name, task = duplicates.iloc[0][["structure", "task"]]
        raise PlotError(f"{name!r} has two rows for {task!r}; pass one row for each.")
    family = table["structure"].str.replace(AMOUNT, "", regex=True)
    table = table.assign(name=family.where(family != "", table["kind"]))
    colours: dict[str, str] = {}
    for name, kind in table.drop_duplicates("name").set_index("name")["kind"].items():
        unused = [colour for colour in [*kind_colours([kind]), *PALETTE] if colour not in colours.values()]
        colours[name] = [*unused, OTHER[1]][0]
    table = table.assign(colour=table["name"].map(colours))
    panels = list(table.sort_values("budget", kind="stable")["panel"].unique())
    tasks = list(dict.fromkeys(sorted(table["task"], key=lambda task: task.startswith(MEAN))))
    beside = int(table.groupby(["task", "panel"])["structure"].size().max())
    margin = 0.35 + 0.065 * max(map(len, tasks))  # inches of a paper, for the names of the tasks
    wide = float(np.clip((style().page / style().scale - margin) / len(panels), 1.1, 2.4))
    figure = new_figure(margin + wide * len(panels), 1.7 + (0.12 + 0.12 * beside) * len(tasks), figure)
    axes = list(figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table["panel"] == panel]
        names, baselines = list(part["structure"].unique()), part["baseline"].unique()
        shift = 0.7 * ((part["structure"].map(names.index) + 0.5) / len(names) - 0.5)
        handles |= _draw(_row_axes(ax, tasks, 0), part.assign(y=part["task"].map(tasks.index) + shift), p, alpha, scale)
        finish_axes(ax, "difference" + ", points" * (scale == 100), "", [], None)
        lines = [names[0] if len(names) == 1 else f"{panel:,.0f} parameters"]
        lines += [f"− {baselines[0]}"] if len(baselines) == 1 else []
        ax.set_title(wrapped(lines, wide * style().scale), size=style().font)
    _set_limits(axes[0], tasks, table["difference"], scale)
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
        PlotError: no row has a difference, there are several tasks without a mean, or a structure has two rows.
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
    ax = _row_axes(ax, names, 1.6 + 0.17 * len(names))
    look: dict[str, Any] = {"c": kind_colours(tasks["kind"]), "marker": "|", "alpha": 0.7, "gid": "tasks"}
    ax.scatter(scale * tasks["difference"], tasks["structure"].map(names.index), 25 * style().scale ** 2, **look)
    rows = ranked.assign(y=range(len(names)), name=ranked["kind"], colour=kind_colours(ranked["kind"]))
    handles = _draw(ax, rows, p, alpha, scale)
    labels = [AMOUNT.sub("", name) or name for name in names]
    labels = labels if len(set(labels)) == len(names) else names
    if "pairs" in ranked and ranked["pairs"].nunique() > 1:
        labels = [f"{label} ({n} pairs)" for label, n in zip(labels, ranked["pairs"], strict=True)]
    _set_limits(ax, labels, pd.concat([ranked, tasks])["difference"], scale)
    against = ", ".join(ranked["baseline"].unique())
    return finish_axes(ax, f"difference to {against}" + ", points" * (scale == 100), "", _sorted(handles), title)


@styled
def plot_repeats(table: Any, *, metric: str = "score", title: str | None = None, ax: Axes | None = None) -> Axes:
    """A line per structure from its lowest to its highest score, a dot per retraining, a stroke at the mean.

    Lines that lie apart show a difference between structures; long lines that overlap show a spread between retrainings
    of one structure. :func:`s3pet.studies.variance_components` gives the numbers. The best name is on top.

    Args:
        table: one row per run of one task, at one learning rate for each structure: ``task, structure, kind, index``
            (which of several structures of that name), ``score``. ``study.chosen(repeats=True)`` gives it.
        metric: name of the score, for the axis.

    Raises:
        PlotError: there are several tasks, or no structure was retrained twice.
    """
    table = as_table(table, ("task", "structure", "kind", "index", "score"), one=("task",))
    runs = table.groupby(["structure", "index"], sort=False)
    rows = runs["score"].agg(["size", "mean", "min", "max"]).assign(kind=runs["kind"].first()).reset_index()
    if rows["size"].max() < 2:
        raise PlotError("No structure was retrained twice; give it repeats in its study, or several seeds.")
    level = rows["mean"].groupby(rows["structure"]).transform("mean")
    rows = rows.assign(level=level).sort_values(["level", "structure", "mean"], ascending=[False, True, False])
    names = list(rows["structure"].unique())
    rows["y"] = np.arange(len(rows)) + 0.8 * rows["structure"].map(names.index)  # a gap between names
    rows["colour"] = kind_colours(rows["kind"])
    dots = table.merge(rows[["structure", "index", "y", "colour"]], on=["structure", "index"])
    ax, scale = _row_axes(ax, names, 1.1 + 0.12 * len(rows) + 0.1 * len(names)), style().scale
    ax.hlines(rows["y"], rows["min"], rows["max"], rows["colour"], linewidth=scale, alpha=0.6, gid="structures")
    ax.scatter(dots["score"], dots["y"], 12 * scale**2, dots["colour"], alpha=0.75, zorder=3, gid="retrainings")
    ax.scatter(rows["mean"], rows["y"], 64 * scale**2, style().ink, marker="|", zorder=4, gid="means")
    ax.set_yticks(rows.groupby("structure")["y"].mean()[names], names)
    ax.set_ylim(rows["y"].max() + 0.8, -0.8)
    handles = [
        entry(kind, color=kind_colours([kind])[0], linewidth=3 * scale) for kind in in_order(rows["kind"], KINDS)
    ]
    look: dict[str, Any] = {"linestyle": "-", "linewidth": scale, "color": style().grey}
    handles.append(
        entry("retrainings of a structure, from lowest to highest", marker="o", markersize=3.5 * scale, **look)
    )
    handles.append(entry("their mean", marker="|", markersize=8 * scale, color=style().ink))
    return finish_axes(ax, metric, "", handles, title)


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
    return handles


def _row_axes(ax: Axes | None, names: list[str], height: float) -> Axes:
    """Axes for rows with these names: with space for them, and without a line at the left."""
    ax = ax or new_axes(min(style().page / style().scale, 3.2 + 0.065 * max(map(len, names))), height)
    ax.tick_params("y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


def _set_limits(ax: Axes, names: list[str], differences: pd.Series, scale: float) -> None:
    """Name the rows; a wide interval of few runs stretches the axis to three times the largest difference at most."""
    low, high = ax.get_xlim()
    edge = 3 * scale * float(differences.abs().max()) or scale
    ax.set(xlim=(max(low, -edge), min(high, edge)), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)


def _sorted(handles: dict[str, Any]) -> list[Any]:
    """Handles of a legend: names in the order of the kinds, then the results of the tests."""
    results = sorted(label for label in handles if handles[label].get_marker() == "o")
    return [handles[label] for label in [*in_order({*handles} - {*results}, KINDS), *results]]
