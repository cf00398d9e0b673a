"""Scores of structures: who wins, with how many parameters, and how surely.

Reads the tidy table of :func:`s3pet.compare`, one row per run; draws every run, not only the mean, because a difference
smaller than the spread between seeds is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Annotation, Text
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Transform

from s3pet.errors import PlotError, nearest
from s3pet.plots.style import KINDS, OTHER, as_table, figure_of, new_axes, style, styled

JOINED = (
    "searched",
    "random",
    "sensitivity",
    "heuristic",
    "adalora",
)  # kinds that exist at any budget: a line; all others have a cost of their own
# "searched 0.05 %" is "searched", "carried 0.05% from qnli" is "carried from qnli"; "lora r8" stays
AMOUNT = re.compile(r"[\s@=]*(?<![A-Za-z\d.,])\d[\d.,]*\s*[%kM]?(?=$| over | from )")


class _Label(NamedTuple):
    text: str
    colour: str
    anchors: list[tuple[float, float]]  # the points it may name, in data


def summarize_scores(table: pd.DataFrame, score: str = "score") -> pd.DataFrame:
    """Mean and interval over the runs of each structure (and budget), one row each, in the table's order.

    Returns:
        ``structure, kind, n_params, mean, low, high, n``. The interval is the 95 % t-interval of the mean from three
        runs on, and the range of fewer; ``n_params`` is the geometric mean (its axis is logarithmic), nan unless > 0.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    names = ["structure", "kind"] + ["budget"] * ("budget" in table)
    table = table.assign(_log=np.log(table["n_params"].astype(float).where(table["n_params"] > 0)))
    groups = table.groupby(names, sort=False, dropna=False, observed=True)
    means = groups[score].agg(mean="mean", low="min", high="max", n="size")
    many, n = means["n"] > 2, means["n"].clip(lower=2)
    half = groups[score].std() / np.sqrt(n) * t.ppf(0.975, n - 1)
    means = means.assign(low=means["low"].where(~many, means["mean"] - half))
    means = means.assign(high=means["high"].where(~many, means["mean"] + half))
    means["n_params"] = np.exp(groups["_log"].agg(lambda logs: logs.mean(skipna=False)))
    return means.reset_index()


def _read(table: Any, metric: str | None) -> tuple[pd.DataFrame, str]:
    """The runs of one task, and the column that holds the score."""
    score = metric if metric and metric in getattr(table, "columns", ()) else "score"
    table = as_table(table, ["structure", "kind", "n_params", "seed", score], at="scores", one=["task"])
    known = table["kind"].eq("reference") | table["n_params"].gt(0)
    if table["kind"].eq("reference").all():
        raise PlotError("The table has references only; nothing to set beside them.")
    if not known.all():
        names = table.loc[~known, "structure"].unique().tolist()
        raise PlotError(f"n_params must be > 0 in every run of {names}, or its kind 'reference': the axis is a log.")
    return table, score


@styled
def plot_comparison(table: Any, *, ax: Axes | None = None, metric: str | None = None, title: str | None = None) -> Axes:
    """Scores against trainable parameters: every run a point, every structure a mean with its interval over seeds.

    Args:
        table: one row per run: ``structure`` (name), ``kind`` ("searched", "manual", "random", "reference"),
            ``n_params`` (trainable PET parameters), ``seed``, ``score``. A reference, such as full fine-tuning, is a
            horizontal line with its interval as a band; its ``n_params`` is not used.
        metric: name for the vertical axis, or the column that holds the score.

    Raises:
        PlotError: a column is missing, several tasks are mixed, or a structure has a run without parameters.
    """
    table, score = _read(table, metric)
    means = summarize_scores(table, score)
    lines, means = means[means["kind"] == "reference"], means[means["kind"] != "reference"]
    ax = ax or new_axes(5.2, 3.4)
    labels: list[_Label] = []
    for kind, group in means.groupby("kind", sort=False):
        labels += _draw_points(ax, table[table["kind"] == kind], group, str(kind), score)
    for row in lines.to_dict("records"):
        _draw_reference(ax, row)
    _lay_out(ax, means["n_params"], metric or "score")
    ax.margins(y=0.12)
    ax.set_title(title or "", pad=18)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handletextpad=0.2)
    _place_labels(ax, _references(lines, "{:.3g}"), sorted(labels, key=lambda label: -label.anchors[0][1]))
    return ax


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
    """Score against trainable parameters, budget by budget: how little is enough.

    Searched, random and other structures made for a budget are lines over their budgets, each a family: of one kind,
    with names that differ only in an amount at the end ("searched 0.05 %", "searched 0.2 %"). A band is the interval of
    `summarize_scores`, a faint point a run. Every other structure has one cost and is a point with its name. The
    vertical axis fits the runs; a
    band that few seeds leave wide may run out of it.

    Args:
        table: one row per run: ``structure``, ``kind`` ("searched", "random", "manual", "reference"), ``n_params``
            (trainable PET parameters), ``seed``, ``score``. Optional: ``budget`` (parameters; nan for what has none),
            which groups the runs of a point, else the name does; ``family``, where names do not tell;
            ``backbone_params`` (one value), for a second axis with the share of the backbone in %.
        metric: name for the vertical axis, or the column that holds the score.
        full: the reference to compare with: a line with its interval as a band. Others are thin lines.
        relative: scores in % of the mean of ``full``.

    Raises:
        PlotError: a column is missing, several tasks or backbones are mixed, a structure has a run without
            parameters, or ``relative`` without a positive ``full``.
    """
    table, score = _read(table, metric)
    as_table(table, [], one=["backbone_params"])
    table, means = _curves(table, score, full if relative else None)
    lines, points = means[means["kind"] == "reference"], means[means["kind"] != "reference"]
    ax = ax or new_axes(5.2, 3.4)
    labels, names, seen = [], [], set()  # names of lines come last: they have many places
    for (kind, family), part in points[points["kind"].isin(JOINED)].groupby(["kind", "family"], sort=False):
        runs = table[(table["kind"] == kind) & (table["family"] == family)]
        names.append(_draw_curve(ax, runs, part.sort_values("n_params"), str(kind), score, first=kind not in seen))
        seen.add(kind)
    for kind, part in points[~points["kind"].isin(JOINED)].groupby("kind", sort=False):
        labels += _draw_points(ax, table[table["kind"] == kind], part, str(kind), score)
    for row in lines.to_dict("records"):
        _draw_reference(ax, row, strong=row["structure"] == full)
    _lay_out(
        ax,
        points["n_params"],
        f"{'' if metric is None else metric + ', '}% of {full}" if relative else metric or "score",
    )
    drawn = np.array([*table.loc[table["kind"] != "reference", score], *lines["mean"]])
    pad = 0.08 * float(np.ptp(drawn)) or 0.05
    ax.set_ylim(float(np.min(drawn)) - pad, float(np.max(drawn)) + pad)
    if "backbone_params" in table:
        _share_axis(ax, float(table["backbone_params"].iloc[0]))
    ax.set_title(title or "")
    _place_labels(ax, _references(lines, "{:.0f} %" if relative else "{:.3g}"), labels + names)
    return ax


def _curves(table: pd.DataFrame, score: str, full: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs with their ``family``, and the points of the figure; both in % of ``full``, if given."""
    names, joined = table["structure"].astype(str), table["kind"].isin(JOINED)
    bare = names.str.replace(AMOUNT, "", regex=True)
    bare = bare.where(bare != "", table["kind"]).where(joined, names)
    table = table.assign(family=table["family"].fillna(bare) if "family" in table else bare)
    if full is not None:
        whole = table.loc[(table["structure"] == full) & (table["kind"] == "reference"), score].mean()
        if not whole > 0:
            known = table.loc[table["kind"] == "reference", "structure"].unique()
            raise PlotError(f"relative=True needs a reference {full!r} with a positive score; {nearest(full, known)}.")
        table = table.assign(**{score: 100 * table[score] / whole})
    # with budgets, all runs of a family at one budget are one point, whatever their names
    point = table["family"].where(joined & table["budget"].notna(), names) if "budget" in table else names
    family = table.assign(structure=point).groupby(["structure", "kind"], sort=False)["family"].first().reset_index()
    return table, summarize_scores(table.assign(structure=point), score).merge(family, "left")


def _draw_points(ax: Axes, runs: pd.DataFrame, means: pd.DataFrame, kind: str, score: str) -> list[_Label]:
    """Runs, intervals and means of structures of one kind; their labels, best first."""
    marker, colour = KINDS.get(kind, OTHER)
    look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": ""}
    ax.plot(
        runs["n_params"], runs[score], markersize=3.5 * style().scale, alpha=0.45, markeredgewidth=0, gid="runs", **look
    )
    ax.vlines(
        means["n_params"], means["low"], means["high"], color=colour, linewidth=1.4 * style().scale, gid="intervals"
    )
    look |= {"markersize": 7 * style().scale, "markeredgecolor": style().ground, "label": kind}
    ax.plot(means["n_params"], means["mean"], gid="means", **look)
    rows = means.sort_values("mean", ascending=False).to_dict("records")
    return [_Label(str(row["structure"]), colour, [(row["n_params"], row["mean"])]) for row in rows]


def _draw_curve(ax: Axes, runs: pd.DataFrame, means: pd.DataFrame, kind: str, score: str, *, first: bool) -> _Label:
    """Runs, band and means of a family; only the ``first`` of its kind is a solid line with filled markers."""
    marker, colour = KINDS.get(kind, OTHER)
    x, names = means["n_params"], runs["structure"].unique()
    label = str(names[0]) if len(names) == 1 else str(runs["family"].iloc[0])
    look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": ""}
    ax.plot(
        runs["n_params"], runs[score], markersize=2.5 * style().scale, alpha=0.45, markeredgewidth=0, gid="runs", **look
    )
    if len(means) > 1:
        ax.fill_between(x, means["low"], means["high"], color=colour, alpha=0.15, linewidth=0, gid="band")
    else:
        ax.vlines(x, means["low"], means["high"], color=colour, linewidth=1.4 * style().scale, gid="intervals")
    look |= {"markerfacecolor": colour if first else style().ground, "markersize": 5.5 * style().scale, "label": label}
    look |= {"markeredgecolor": style().ground if first else colour, "linestyle": "-" if first else "--"}
    ax.plot(x, means["mean"], gid="curve", **look)
    return _Label(label, colour, [*zip(x, means["mean"], strict=True)][::-1])


def _draw_reference(ax: Axes, row: dict[Any, Any], *, strong: bool = True) -> None:
    if strong:
        ax.axhspan(row["low"], row["high"], color=style().ink, alpha=0.1, linewidth=0, gid="reference-band")
        ax.axhline(row["mean"], color=style().ink, linewidth=style().scale, linestyle="--", gid="reference")
    else:
        ax.axhline(row["mean"], color=style().grey, linewidth=0.7, linestyle=":", gid="baseline")


def _lay_out(ax: Axes, n_params: pd.Series, unit: str) -> None:
    """Both axes, in the sizes of the style even where the Axes came from elsewhere."""
    ends = np.log([n_params.min(), n_params.max()])
    pad = max(0.12 * np.ptp(ends), (math.log(3) - np.ptp(ends)) / 2)  # a factor of 3 has two ticks or more
    ax.set_xscale("log")
    ax.set_xlim(*np.exp(ends + np.array([-pad, pad])))
    ax.set_xlabel("trainable PET parameters", size=1.07 * style().font)
    ax.set_ylabel(unit, size=1.07 * style().font)
    ax.tick_params(labelsize=style().font)
    ax.spines[["top", "right"]].set_visible(False)
    _log_ticks(ax, ax.xaxis, EngFormatter(sep=""), 0.32)


def _share_axis(ax: Axes, whole: float) -> None:
    """A second horizontal axis, on top: the share of a backbone of ``whole`` parameters, in %."""
    functions: Any = (lambda n: 100 * n / whole, lambda share: share * whole / 100)
    top = ax.secondary_xaxis("top", functions=functions)
    top.set_xlabel("share of the backbone")
    _log_ticks(ax, top.xaxis, FuncFormatter(lambda share, _: f"{share:g} %"), 0.45)


def _log_ticks(ax: Axes, axis: Axis, formatter: Formatter, room: float) -> None:
    """As many ticks per decade as fit, ``room`` inches of a paper each."""
    low, high = ax.get_xlim()
    inches = ax.get_position().width * figure_of(ax).get_figwidth() / style().scale
    fit = (subs for subs in ((1, 2, 5), (1, 3), (1,)) if len(subs) * math.log10(high / low) * room < inches)
    axis.set_major_locator(LogLocator(subs=next(fit, (1,)), numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(formatter)


def _references(lines: pd.DataFrame, number: str) -> list[tuple[str, float]]:
    return [(f"{row['structure']} {number.format(row['mean'])}", row["mean"]) for row in lines.to_dict("records")]


def _readable(colour: str) -> str:
    """The colour, nearer to the ink: text needs more contrast than a marker."""
    red, green, blue = 0.65 * np.array(to_rgb(colour)) + 0.35 * np.array(to_rgb(style().ink))
    return to_hex((red, green, blue))


def _place_labels(ax: Axes, references: Iterable[tuple[str, float]], labels: Iterable[_Label]) -> None:
    """Name lines and points where a name covers no point, line or other name; points on a thin leader."""
    figure_of(ax).draw_without_rendering()  # settles the layout, so that the extents below are final
    taken, look = _obstacles(ax), dict[str, Any]()
    along = np.array([(x, 0.0) for x in (1, 0, 0.75, 0.5, 0.25) for _ in (0, 1)])
    sides = np.array([({1: -2, 0: 2}.get(x, 0), y) for x in along[::2, 0] for y in (2, -2)])
    for text, y in references:
        there, look = ax.get_yaxis_transform(), {"textcoords": "offset points", "gid": "reference-label"}
        label = ax.annotate(text, (1, y), (0, 0), there, **look)
        taken = _put(label, there, along + [0, y], sides, taken)
    angles = [math.radians(angle) for angle in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)]
    around = np.array([(r * math.cos(a), r * math.sin(a)) for r in (8, 14, 20, 28, 38, 50, 64) for a in angles])
    look = {"textcoords": "offset points", "gid": "label"}
    look["arrowprops"] = {
        "arrowstyle": "-",
        "color": style().grey,
        "linewidth": 0.5 * style().scale,
        "shrinkA": 0,
        "shrinkB": 3,
    }
    for text, colour, anchors in labels:
        label = ax.annotate(text, anchors[0], (8, 0), color=_readable(colour), xycoords=ax.transData, **look)
        at, by = np.tile(anchors, (len(around), 1)), np.repeat(around, len(anchors), 0)
        taken = _put(label, ax.transData, at, by, taken)


def _obstacles(ax: Axes) -> np.ndarray:
    """What labels keep off, markers, lines and intervals, as boxes in pixels: left, bottom, right, top."""
    pad = 4 * figure_of(ax).dpi / 72
    boxes = [np.empty((0, 4))]
    for line in ax.lines:
        ends = line.get_transform().transform(np.column_stack(line.get_data(orig=False)).astype(float))
        if line.get_gid() in ("reference", "baseline"):
            boxes.append(np.hstack([ends.min(0), ends.max(0) + 1])[None])
            continue
        if line.get_gid() == "curve":
            steps = [np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / pad)) for a, b in pairwise(ends)]
            boxes += [np.hstack([at - pad / 2, at + pad / 2]) for at in steps]
        boxes.append(np.hstack([ends - pad, ends + pad]))
    for bars in ax.collections:
        if bars.get_gid() == "intervals":
            for path in bars.get_paths():
                ends = ax.transData.transform(np.asarray(path.vertices))
                boxes.append(np.hstack([ends.min(0) - 1, ends.max(0) + 1])[None])
    return np.concatenate(boxes)


def _put(label: Annotation, there: Transform, at: np.ndarray, by: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Move a label to the best of ``[n, 2]`` places, ``by`` points from ``at`` (in ``there``); what is taken then.

    Best: inside, free, near, its leader across little.
    """
    ax, leader = label.axes, label.arrow_patch is not None
    assert isinstance(ax, Axes)
    dot, size, start = figure_of(ax).dpi / 72, np.array(Text.get_window_extent(label).size), there.transform(at)
    shift = np.where(by > 1, 0, np.where(by < -1, 1, 0.5))  # of its own size: it grows away from the point
    shift[:, 1] = 0.5 if leader else shift[:, 1]
    low = start + by * dot - shift * size
    boxes, frame = np.hstack([low, low + size]), np.array(ax.bbox.extents)
    outside = (boxes[:, :2] < frame[:2] - 0.5).any(1) | (boxes[:, 2:] > frame[2:] + 0.5).any(1)
    cost = 10.0 * outside + _overlaps(boxes + np.array([-2, -1, 2, 1]) * dot, taken).sum(1)
    ends = np.clip(start, boxes[:, :2], boxes[:, 2:])
    lines = start[:, None] + (ends - start)[:, None] * np.linspace(0, 1, 12)[:, None]  # [n, 12, 2]
    if leader:
        points = np.concatenate([lines, lines], 2)
        own = _overlaps(points[:, 0], taken)
        crossed = np.array([_overlaps(line, taken).any(0) for line in points]) & ~own
        cost += 0.2 * crossed.sum(1) + np.hypot(*by.T) / 60
    best = int(cost.argmin())
    label.xy = tuple(at[best])
    ha, va = {0: "left", 0.5: "center", 1: "right"}, {0: "bottom", 0.5: "center", 1: "top"}
    label.set(position=tuple(by[best]), ha=ha[shift[best, 0]], va=va[shift[best, 1]])
    mine = [np.repeat(boxes[best : best + 1], 5, 0)]  # worse to cross than a line
    mine += [np.hstack([lines[best], lines[best]])] * leader
    return np.concatenate([taken, *mine])


def _overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which boxes ``[n, 4]`` overlap which ``[m, 4]``: ``[n, m]``."""
    return np.all((one[:, None, :2] < other[:, 2:]) & (one[:, None, 2:] > other[:, :2]), axis=2)
