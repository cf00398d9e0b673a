"""Scores of structures: against their parameters, as differences to a baseline, and repeated retrainings of one.

All read tidy tables, such as that of :func:`s3pet.compare`, and show every run beside the mean. A difference is
structure − baseline everywhere. Filled markers are significant; open ones are not, which is no evidence of equality;
small ones on a dotted line could not have been significant with so few runs.
"""

from __future__ import annotations

import re
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from s3pet.errors import PlotError, nearest
from s3pet.files.kinds import number
from s3pet.plots.frame import entry, finish_axes, in_order, kind_colours, wrapped
from s3pet.plots.intervals import summarize_scores
from s3pet.plots.style import KINDS, OTHER, PALETTE, as_table, new_axes, new_figure, style, styled

JOINED = ("searched", "random", "sensitivity", "heuristic", "adalora")  # kinds that exist at any budget: a line
MARKERS = "os^DvPX<>phd"
RANGES = {"accuracy": (0.0, 1.0), "f1": (0.0, 1.0)} | dict.fromkeys(("matthews", "pearson", "spearman"), (-1.0, 1.0))
# "searched 0.05 %" is "searched", "carried 0.05% from qnli" is "carried from qnli"; "lora r8" stays
AMOUNT = re.compile(r"[\s@=]*(?<![A-Za-z\d.,])\d[\d.,]*\s*[%kM]?(?=$| over | from )")
COLUMNS = ("task", "structure", "kind", "baseline", "difference", "difference_low", "difference_high", "p_floor")
MEAN = "mean of "  # tasks with this prefix are means over tasks


def score_range(table: pd.DataFrame, score: str = "score", metric: str | None = None) -> tuple[float, float]:
    """Smallest and largest possible score of the metric that ``metric`` or the table's column ``metric`` names.

    Infinite where the metric is unknown, or where the scores contradict it (an accuracy in percent).
    """
    text = " ".join([metric or "", *table.get("metric", pd.Series(dtype=str)).dropna().unique()]).lower()
    ranges = {ends for name, ends in RANGES.items() if name in text}
    low, high = ranges.pop() if len(ranges) == 1 else (-np.inf, np.inf)
    return (low, high) if table[score].min() >= low and table[score].max() <= high else (-np.inf, np.inf)


@styled
def plot_comparison(table: Any, *, ax: Axes | None = None, metric: str | None = None, title: str | None = None) -> Axes:
    """Scores against trainable parameters: every run a small point, every structure a mean with its interval.

    Structures of about the same size stand side by side. Intervals are those of `summarize_scores`, cut at the smallest
    and largest possible score of the metric.

    Args:
        table: one row per run: ``structure`` (name), ``kind`` ("searched", "manual", "random", "reference"),
            ``n_params`` (trainable PET parameters, > 0), ``seed``, ``score``. A reference, such as full fine-tuning, is
            a horizontal line with its interval as a band; its ``n_params`` is not used.
        metric: name for the vertical axis, or the column that holds the score.
    """
    table, score = _read(table, metric)
    table["family"] = table["structure"]
    return _draw(ax, table, _means(table, score, metric), score, metric or "score", title)


@styled
def plot_budget_curve(
    table: Any,
    *,
    ax: Axes | None = None,
    metric: str | None = None,
    title: str | None = None,
    full: str = "full",
    relative: bool = False,
) -> Axes:
    """Score against trainable parameters, budget by budget.

    Structures made for a budget (searched, random and others) are lines over their budgets. A line is a family: one
    kind, with names that differ only in an amount at the end ("searched 0.05 %", "searched 0.2 %"). Every other
    structure has one size and is a point. The vertical axis shows the runs; a wide interval of few may leave it.

    Args:
        table, metric: as for `plot_comparison`. Optional columns: ``budget`` (parameters; nan where there is none),
            which groups the runs of a point, else the name does; ``family``, where names do not tell it;
            ``backbone_params`` (one value), for a second axis with the share of the backbone in %.
        full: the reference to compare with: a dashed line with its interval as a band. Others are dotted lines.
        relative: scores in % of the mean of ``full``, which must be positive.
    """
    table, score = _read(table, metric)
    as_table(table, [], one=["backbone_params"])
    names, joined = table["structure"].astype(str), table["kind"].isin(JOINED)
    family = _families(table).where(joined, names)
    table = table.assign(family=table["family"].fillna(family) if "family" in table else family)
    # With budgets, all runs of a family at one budget are one point, whatever their names.
    point = table["family"].where(joined & table["budget"].notna(), names) if "budget" in table else names
    means, unit = _means(table.assign(structure=point), score, metric), metric or "score"
    if relative:
        references = means[means["kind"] == "reference"].set_index("structure")["mean"]
        whole = references.get(full, np.nan)
        if not whole > 0:
            hint = nearest(full, references.index)
            raise PlotError(f"relative=True needs a reference {full!r} with a positive score; {hint}.")
        table, unit = table.assign(**{score: 100 * table[score] / whole}), f"{unit}, % of {full}"
        means[["mean", "low", "high"]] *= 100 / whole
    ax = _draw(ax, table, means, score, unit, title, full)
    if "backbone_params" in table:
        size = float(table["backbone_params"].iloc[0])
        functions: Any = (lambda n: 100 * n / size, lambda share: share * size / 100)
        top = ax.secondary_xaxis("top", functions=functions)
        top.set_xlabel("share of the backbone (%)", size=1.07 * style().font)
        _set_log_ticks(ax, top.xaxis, FormatStrFormatter("%g"))
    return ax


def _families(table: pd.DataFrame) -> pd.Series:
    """Names of structures without the amount at their end; the kind, where a name is an amount only."""
    names = table["structure"].astype(str).str.replace(AMOUNT, "", regex=True)
    return names.where(names != "", table["kind"])


def _read(table: Any, metric: str | None) -> tuple[pd.DataFrame, str]:
    """The runs of one task that have a score, and the column that holds it; the others are counted."""
    score = metric if metric and metric in getattr(table, "columns", ()) else "score"
    table = as_table(table, ["structure", "kind", "n_params", "seed", score], at="scores", one=["task"])
    scored = table[_has_score(table[score])]
    table = scored.assign(without_score=len(table) - len(scored))
    structures = table[table["kind"] != "reference"]
    if structures.empty:
        raise PlotError("The table has scores of references only, and of no structure to compare with them.")
    if len(wrong := structures.loc[~structures["n_params"].gt(0), "structure"].unique()):
        problem = f"n_params must be > 0 in every run of {wrong.tolist()}, or its kind 'reference'"
        raise PlotError(f"{problem}: the axis is a log.")
    return table, score


def _has_score(scores: pd.Series) -> pd.Series:
    """Which runs have a finite score; PlotError if none has."""
    if not (finite := np.isfinite(scores.astype("Float64").to_numpy(float, na_value=np.nan))).any():
        raise PlotError("No run has a score: all diverged; lower lr or raise lr_warmup.")
    return pd.Series(finite, scores.index)


def _means(table: pd.DataFrame, score: str, metric: str | None) -> pd.DataFrame:
    """`summarize_scores` with the families, and with intervals cut at what the metric allows."""
    means = summarize_scores(table, score)
    means[["low", "high"]] = means[["low", "high"]].clip(*score_range(table, score, metric))
    return means.merge(table.groupby(["structure", "kind"], sort=False)["family"].first().reset_index(), "left")


def _draw(
    ax: Axes | None, table: Any, means: Any, score: str, unit: str, title: str | None, full: str | None = None
) -> Axes:
    """Runs, intervals and means of every family, and the references. Longest curves come first, then the best mean."""
    ax, bottom, top = ax or new_axes(5.2, 4.0), float(table[score].min()), float(table[score].max())
    means, references = means[means["kind"] != "reference"], means[means["kind"] == "reference"]
    n_unscored = table["without_score"].iloc[0]
    table, scale, handles = table[table["kind"] != "reference"], style().scale, list[Any]()
    low, high = table["n_params"].min(), table["n_params"].max()
    width, sizes = max(float(np.log(high / low)), 1.0), list[float]()  # in log parameters; of the points drawn so far
    for kind in in_order(means["kind"], KINDS):
        marker, colour = KINDS.get(kind, OTHER)
        markers = cycle([marker, *MARKERS.replace(marker, "")])
        part = means[means["kind"] == kind].sort_values("n_params")
        order = part.groupby("family")["mean"].agg(["size", "max"]).sort_values(["size", "max"], ascending=False).index
        for i, family in enumerate(order):
            line, runs = part[part["family"] == family], table[table["kind"].eq(kind) & table["family"].eq(family)]
            names, curve, shift = runs["structure"].unique(), len(line) > 1, 1.0
            if not curve:  # the k-th point at a size goes 0, 1, -1, 2, -2 … steps aside
                k = sum(abs(np.log(line["n_params"].iloc[0] / size)) < 0.02 * width for size in sizes)
                shift = np.exp(0.016 * width * ((k + 1) // 2) * (-1) ** (k + 1))
            sizes += [*line["n_params"]]
            x = line["n_params"] * shift
            look: dict[str, Any] = {"color": colour, "alpha": 0.45, "linewidth": 0}
            ax.scatter(runs["n_params"] * shift, runs[score], 6 * scale**2, gid="runs", **look)
            if curve:
                ax.fill_between(x, line["low"], line["high"], gid="band", **look | {"alpha": 0.15})
            else:
                ax.vlines(x, line["low"], line["high"], color=colour, linewidth=1.4 * scale, gid="intervals")
            look = {"color": colour, "gid": "curve" if curve else "means", "markersize": 6 * scale}
            look |= {"markeredgecolor": style().ground, "linestyle": ("--" if i else "-") if curve else ""}
            label = str(names[0] if len(names) == 1 else family)
            handles += ax.plot(x, line["mean"], marker=next(markers), label=label, **look)
    for i, row in enumerate(references.to_dict("records")):
        strong = full in (None, row["structure"])
        if strong and np.isfinite(row["low"]):
            ax.axhspan(row["low"], row["high"], color=style().ink, alpha=0.1, linewidth=0, gid="reference-band")
        look = {"color": style().ink if strong else style().grey, "gid": "reference" if strong else "baseline"}
        look |= {"linestyle": "--" if row["structure"] == full else (":", "-.")[i % 2], "zorder": 1.5}
        handles.append(ax.axhline(row["mean"], label=f"{row['structure']} {row['mean']:.3g}", **look))
    handles.append(entry("one run", color=style().grey, marker="o", markersize=2.5 * scale))
    handles.append(Patch(color=style().grey, alpha=0.3, linewidth=0, label="95 % t interval of the mean"))
    if n_unscored:
        handles.append(entry(f"{n_unscored} without a score, not shown", color="none"))
    pad, room = max((high / low) ** 0.1, (3 * low / high) ** 0.5), 0.08 * (top - bottom) or 0.05  # at least two ticks
    ax.set(xscale="log", xlim=(low / pad, high * pad), ylim=(bottom - room, top + room))
    _set_log_ticks(ax, ax.xaxis, EngFormatter(sep=""))
    return finish_axes(ax, "trainable PET parameters", unit, handles, title)


def _set_log_ticks(ax: Axes, axis: Axis, formatter: Any) -> None:
    """Fewer ticks per decade where there are more decades."""
    decades = np.log10(ax.get_xlim()[1] / ax.get_xlim()[0])
    digits = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4 else (1,)
    axis.set_major_locator(LogLocator(subs=digits, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(formatter)


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

    The panels have one scale: at most three times the largest difference, so a wide interval of few runs leaves it.

    Args:
        table: as `s3pet.studies.statistics.summary` returns it with a baseline; rows of `over_tasks` may be added
            (tasks named "mean of …"). Rows without a difference are left out. Without a ``budget``, each structure has
            its own panel. With a column ``metric``, intervals are cut at the largest possible difference.
        p: the column compared with ``alpha``: "p_holm" or "p".
        scale: factor of the differences; 100 turns scores between 0 and 1 into points.
    """
    table = _read_differences(table, p, alpha)
    budget = pd.to_numeric(table.get("budget", pd.Series(np.nan, table.index))).astype("Float64")
    table = table.assign(budget=budget, panel=budget.astype(object).where(budget.notna(), table["structure"]))
    duplicates = table[table.duplicated(["task", "panel", "structure"])]
    if len(duplicates):
        name, task = duplicates.iloc[0][["structure", "task"]]
        raise PlotError(f"{name!r} has two rows for {task!r}; pass one row for each.")
    table = table.assign(name=_families(table))
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
        part = part.assign(y=part["task"].map(tasks.index) + shift)
        handles |= _draw_rows(_row_axes(ax, tasks, 0), part, p, alpha, scale)
        finish_axes(ax, "difference" + ", points" * bool(scale == 100), "", [], None)
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
    """
    table = as_table(table, ("task", "structure", "kind", "index", "score"), one=("task",))
    table = table[_has_score(table["score"])]
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


def _read_differences(table: Any, p: str, alpha: float) -> pd.DataFrame:
    """The rows that have a difference, with intervals cut at what the metric allows."""
    number(0, 1).check(PlotError, alpha=alpha)
    table = as_table(table, [*COLUMNS, p], one=())
    table = table[table["difference"].notna()].reset_index(drop=True)
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
