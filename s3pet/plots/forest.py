"""Figures with a row per task, structure or retraining: differences to a baseline, and repeated retrainings.

A difference is structure − baseline everywhere. Filled markers are significant; open ones are not, which is no evidence
of equality; small ones on a dotted line could not have been significant with so few runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from s3pet.errors import PlotError
from s3pet.files.kinds import TEXT, number
from s3pet.plots.frame import entry, finish_axes, in_order, kind_colours
from s3pet.plots.scores import AMOUNT, INTERVAL, families, has_score, score_range
from s3pet.plots.style import KINDS, OTHER, PALETTE, as_table, new_axes, style, styled

COLUMNS = ("task", "structure", "kind", "baseline", "difference", "difference_low", "difference_high", "p_floor")
MEAN = "mean of "  # tasks with this prefix are means over tasks


@styled
def plot_differences(
    table: Any,
    *,
    by: str = "budget",
    p: str = "p_holm",
    alpha: float = 0.05,
    scale: float = 100,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Differences to the baseline, all on one axis: a part per budget, in it a row per task, means as diamonds.

    Structures lie beside each other in a row, in the colours of their kinds. The axis ends at three times the largest
    difference at most; an arrow shows that an interval goes on.

    Args:
        table: as `s3pet.studies.statistics.summary` returns it with a baseline; rows of `over_tasks` may be added
            (tasks named "mean of …", drawn last). Rows without a difference are left out. With a column ``metric``,
            intervals are cut at the largest possible difference.
        by: the column that divides the rows: numbers rise from top to bottom, texts stay in the table's order.
        p: the column compared with ``alpha``: "p_holm" or "p".
        scale: factor of the differences; 100 turns scores between 0 and 1 into points.
    """
    TEXT.check(PlotError, by=by)
    table = _read_differences(table, p, alpha, by)
    table = table.assign(part=table[by].astype(object).where(table[by].notna(), f"no {by}"), name=families(table))
    duplicates = table[table.duplicated(["task", "part", "structure"])]
    if len(duplicates):
        name, task = duplicates.iloc[0][["structure", "task"]]
        raise PlotError(f"{name!r} has two rows for {task!r}; pass one for each.")
    colours: dict[str, str] = {}
    for name, kind in table.drop_duplicates("name")[["name", "kind"]].itertuples(index=False):
        wanted = [*kind_colours([kind]), *PALETTE]
        colours[name] = next((colour for colour in wanted if colour not in colours.values()), OTHER[1])
    parts, labels, places = list(table["part"].unique()), list[str](), list[pd.Series]()
    rising = all(isinstance(each, int | float) for each in parts)
    for each in sorted(parts) if rising else parts:
        rows = table[table["part"].eq(each)]
        tasks = list(dict.fromkeys(sorted(rows["task"], key=lambda task: task.startswith(MEAN))))
        names = list(rows["structure"].unique())
        labels.append(f"{each:,.0f} parameters" if rising else str(each))
        shift = 0.7 * ((rows["structure"].map(names.index) + 0.5) / len(names) - 0.5)
        places.append(rows["task"].map(tasks.index) + len(labels) + shift)
        labels += tasks
    table = table.assign(y=pd.concat(places), colour=table["name"].map(colours))
    beside = int(table.groupby(["task", "part"])["structure"].size().max())
    ax = _row_axes(ax, labels, 1.2 + (0.1 + 0.065 * beside) * len(labels))
    handles = _draw_rows(ax, table, p, alpha, scale)
    _set_limits(ax, labels, table, scale)
    for label, text, line in zip(labels, ax.get_yticklabels(), ax.get_ygridlines(), strict=True):
        text.set_fontweight("normal" if label in {*table["task"]} else "bold")
        line.set_visible(label in {*table["task"]})
    against = table["baseline"].unique()
    what = "difference" + f" to {against[0]}" * (len(against) == 1) + ", points" * (scale == 100)
    return finish_axes(ax, what, "", _sorted(handles), title)


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
    different numbers of pairs with the baseline, their names give the number: such rows are less comparable. Arguments
    are those of `plot_differences`, for one budget. With several tasks, the rows named "mean of …" are ranked, and
    structures without one are left out; with one task, its own rows are.
    """
    table = _read_differences(table, p, alpha)
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
    handles = _draw_rows(ax, rows, p, alpha, scale)
    labels = [AMOUNT.sub("", name) or name for name in names]
    labels = labels if len(set(labels)) == len(names) else names
    if "pairs" in ranked and ranked["pairs"].nunique() > 1:
        counts = [f"{n} pair" if n == 1 else f"{n} pairs" for n in ranked["pairs"]]
        labels = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True)]
    _set_limits(ax, labels, pd.concat([rows, tasks.assign(y=np.nan)]), scale)
    against = ", ".join(ranked["baseline"].unique())
    return finish_axes(ax, f"difference to {against}" + ", points" * (scale == 100), "", _sorted(handles), title)


@styled
def plot_repeats(table: Any, *, metric: str = "score", title: str | None = None, ax: Axes | None = None) -> Axes:
    """A line per structure from its lowest to its highest score, a dot per retraining, a stroke at the mean.

    Lines that lie apart show a difference between structures; long lines that overlap show a spread between retrainings
    of one structure. :func:`s3pet.studies.statistics.variance_components` gives the numbers. The best name is on top.

    Args:
        table: one row per run of one task, at one learning rate for each structure: ``task, structure, kind, index``
            (which of several structures of that name), ``score``. ``study.chosen(repeats=True)`` gives it.
        metric: name of the score, for the axis.
    """
    table = as_table(table, ("task", "structure", "kind", "index", "score"), one=("task",))
    table = table[has_score(table["score"])]
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
    kinds = in_order(rows["kind"], KINDS)
    handles = [entry(kind, color=c, linewidth=3 * scale) for kind, c in zip(kinds, kind_colours(kinds), strict=True)]
    dot: dict[str, Any] = {"marker": "o", "markersize": 3.5 * scale, "color": style().grey}
    handles.append(entry("retrainings of a structure, from lowest to highest", linestyle="-", linewidth=scale, **dot))
    handles.append(entry("their mean", marker="|", markersize=8 * scale, color=style().ink))
    return finish_axes(ax, metric, "", handles, title)


def _read_differences(table: Any, p: str, alpha: float, *columns: str) -> pd.DataFrame:
    """The rows that have a difference, with intervals cut at what the metric allows."""
    number(0, 1).check(PlotError, alpha=alpha)
    table = as_table(table, [*COLUMNS, p, *columns], one=())
    table = table.dropna(subset=["difference", "baseline"]).reset_index(drop=True)
    if table.empty:
        raise PlotError("No row has a difference; give the summary a baseline that shares tasks and seeds.")
    low, high = score_range(table, "score" if "score" in table else "difference")
    ends = ["difference_low", "difference_high"]
    return table.assign(**table[ends].clip(low - high, high - low))


def _draw_rows(ax: Axes, rows: pd.DataFrame, p: str, alpha: float, scale: float) -> dict[str, Any]:
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
    if rows[["difference_low", "difference_high"]].notna().any(axis=None):
        handles[INTERVAL] = entry(INTERVAL, color=style().grey, marker="_", markersize=9 * size, markeredgewidth=size)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    return handles


def _row_axes(ax: Axes | None, names: list[str], height: float) -> Axes:
    """Axes for rows with these names: with space for them, and without a line at the left."""
    ax = ax or new_axes(min(style().widest, 3.2 + 0.065 * max(map(len, names))), height)
    ax.tick_params("y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


def _set_limits(ax: Axes, names: list[str], rows: pd.DataFrame, scale: float) -> None:
    """Name the rows; a wide interval of few runs stretches the axis to three times the largest difference at most."""
    low, high = ax.get_xlim()
    edge = 3 * scale * float(rows["difference"].abs().max()) or scale
    ax.set(xlim=(max(low, -edge), min(high, edge)), ylim=(len(names) - 0.4, -0.6))
    ax.set_yticks(range(len(names)), names)
    for end, marker, column in zip(ax.get_xlim(), "<>", ("difference_low", "difference_high"), strict=True):
        beyond = rows[(rows[column] * scale / end).gt(1.0001) & rows["y"].notna()] if end else rows.iloc[:0]
        look: dict[str, Any] = {"marker": marker, "clip_on": False, "zorder": 4, "gid": "beyond"}
        ax.scatter(np.full(len(beyond), end), beyond["y"], 14 * style().scale ** 2, list(beyond["colour"]), **look)


def _sorted(handles: dict[str, Any]) -> list[Any]:
    """Handles of a legend: names in the order of the kinds, then the results of the tests."""
    results = [label for label in handles if handles[label].get_marker() in "o_"]
    results.sort(key=lambda label: (label == INTERVAL, label))
    return [handles[label] for label in [*in_order({*handles} - {*results}, KINDS), *results]]
