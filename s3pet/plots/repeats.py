"""Scores of structures that were retrained several times, structure by structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from s3pet.errors import PlotError
from s3pet.plots.frame import entry, finish_axes, in_order, kind_colours
from s3pet.plots.style import KINDS, as_table, new_axes, style, styled


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
        PlotError: a column is missing, there are several tasks, or no structure was retrained twice.
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
    wide = min(style().page / style().scale, 3.2 + 0.065 * max(map(len, names)))
    ax, scale = ax or new_axes(wide, 1.1 + 0.12 * len(rows) + 0.1 * len(names)), style().scale
    ax.hlines(rows["y"], rows["min"], rows["max"], rows["colour"], linewidth=scale, alpha=0.6, gid="structures")
    ax.scatter(dots["score"], dots["y"], 12 * scale**2, dots["colour"], alpha=0.75, zorder=3, gid="retrainings")
    ax.scatter(rows["mean"], rows["y"], 64 * scale**2, style().ink, marker="|", zorder=4, gid="means")
    ax.set_yticks(rows.groupby("structure")["y"].mean()[names], names)
    ax.set_ylim(rows["y"].max() + 0.8, -0.8)
    ax.tick_params("y", length=0)
    ax.spines["left"].set_visible(False)
    kinds = in_order(set(rows["kind"]), KINDS)
    handles = [entry(kind, color=c, linewidth=3 * scale) for kind, c in zip(kinds, kind_colours(kinds), strict=True)]
    dot: dict[str, Any] = {"marker": "o", "markersize": 3.5 * scale, "linewidth": scale, "color": style().grey}
    handles.append(entry("retrainings of a structure, from lowest to highest", **dot))
    handles.append(entry("their mean", marker="|", markersize=8 * scale, linestyle="", color=style().ink))
    finish_axes(ax, metric, "", handles, title)
    return ax
