"""Scores of structures side by side: who wins, with how many parameters, and how surely.

Reads the tidy table of :func:`s3pet.compare`, one row per run; draws every run, not only the mean, because a difference
smaller than the spread between seeds is none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from s3pet.errors import PlotError
from s3pet.plots.style import KINDS, OTHER, as_table, figure_of, new_axes, style, styled


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
    score = metric if metric and metric in getattr(table, "columns", ()) else "score"
    table = as_table(table, ["structure", "kind", "n_params", "seed", score], at="scores", one=["task"])
    means = summarize_scores(table, score)
    lines, means = means[means["kind"] == "reference"], means[means["kind"] != "reference"].reset_index(drop=True)
    if means["n_params"].isna().any():
        names = means.loc[means["n_params"].isna(), "structure"].tolist()
        raise PlotError(f"n_params must be > 0 in every run of {names}, or its kind 'reference': the axis is a log.")
    ax = ax or new_axes(5.2, 3.4)
    for kind, group in means.groupby("kind", sort=False):
        marker, colour = KINDS.get(str(kind), OTHER)
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": ""}
        runs = table[table["kind"] == kind]
        ax.plot(runs["n_params"], runs[score], markersize=3.5, alpha=0.45, markeredgewidth=0, gid="runs", **look)
        ax.vlines(group["n_params"], group["low"], group["high"], color=colour, linewidth=1.4, gid="intervals")
        look |= {"markersize": 7, "markeredgecolor": style().ground, "label": str(kind)}
        ax.plot(group["n_params"], group["mean"], gid="means", **look)
    for row in lines.to_dict("records"):
        ax.axhspan(row["low"], row["high"], color=style().ink, alpha=0.1, linewidth=0, gid="reference-band")
        ax.axhline(row["mean"], color=style().ink, linewidth=1, linestyle="--", gid="reference")
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
        ax.annotate(f"{row['structure']} {row['mean']:.3g}", (1, row["mean"]), (0, 2), **place)
    ax.set_xscale("log")
    ax.set_xlabel("trainable PET parameters")
    ax.set_ylabel(metric or "score")
    ax.margins(0.12)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_title(title or "", pad=18)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handletextpad=0.2)
    _place_labels(ax, means)
    return ax


def _place_labels(ax: Axes, means: pd.DataFrame) -> None:
    """Name each mean where its name covers no point, line or other name, on a thin leader."""
    figure_of(ax).draw_without_rendering()  # settles the layout, so that the extents below are final
    pad = 4 * figure_of(ax).dpi / 72
    taken = [text.get_window_extent() for text in ax.texts]
    for line in ax.lines:
        ends = line.get_transform().transform(np.column_stack(line.get_data(orig=False)).astype(float))
        taken += [Bbox([end - pad, end + pad]) for end in ends]
        taken += [Bbox([ends.min(0), ends.max(0) + 1])] * (line.get_gid() == "reference")
    for low, high in zip(*(ax.transData.transform(means[["n_params", end]]) for end in ("low", "high")), strict=True):
        taken.append(Bbox([low - [1, 0], high + [1, 0]]))
    angles = [math.radians(angle) for angle in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)]
    offsets = [(r * math.cos(a), r * math.sin(a)) for r in (8, 14, 20, 28, 38, 50, 64) for a in angles]
    look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "gid": "label"}
    look["arrowprops"] = {"arrowstyle": "-", "color": style().grey, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    for row in means.sort_values("mean", ascending=False).to_dict("records"):
        colour = KINDS.get(row["kind"], OTHER)[1]
        label = ax.annotate(str(row["structure"]), (row["n_params"], row["mean"]), (8, 0), color=colour, **look)
        tried: list[tuple[int, int, Bbox]] = []
        while not tried or (tried[-1][0] and len(tried) < len(offsets)):
            box = _move(label, *offsets[len(tried)])
            outside = Bbox.union([box, ax.bbox]).bounds != ax.bbox.bounds
            tried.append((sum(map(box.overlaps, taken)) + 10 * outside, len(tried), box))
        taken.append(_move(label, *offsets[min(tried, key=lambda trial: trial[:2])[1]]))


def _move(label: Annotation, x: float, y: float) -> Bbox:
    label.set(position=(x, y), ha="left" if x > 1 else "right" if x < -1 else "center")
    label.get_window_extent()  # moves the text; what it returns includes the leader
    return Text.get_window_extent(label)
