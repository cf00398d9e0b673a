"""How much better than a baseline, task by task, and how surely."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from s3pet.plots.style import KINDS, OTHER, as_table, new_axes, style, styled


@styled
def plot_differences(
    table: Any, *, alpha: float = 0.05, metric: str | None = None, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Differences of structures to their baseline with intervals, one line each, grouped by structure.

    A filled marker is significant after Holm's correction; a cross had too few runs to be, whatever the difference.

    Args:
        table: as :func:`s3pet.statistics.summary` gives with a baseline: ``task, structure, kind, baseline, difference,
            difference_low, difference_high, p_holm, p_floor``; rows without a difference are left out.
        alpha: level of the test.
        metric: name of the score.

    Raises:
        PlotError: a column is missing, or no row has a difference.
    """
    columns = ["task", "structure", "kind", "baseline", "difference", "difference_low", "difference_high"]
    table = as_table(table, [*columns, "p_holm", "p_floor"], one=())
    table = as_table(table.dropna(subset=["difference"]), [], one=())
    names = table["structure"].unique().tolist()
    table = table.assign(_order=table["structure"].map(names.index)).sort_values("_order", kind="stable")
    gaps = (table["_order"].diff().fillna(0) > 0).cumsum().to_numpy()
    y = np.arange(len(table)) + 1.6 * gaps
    ax = ax or new_axes(5.2, 0.8 + 0.19 * (y[-1] + 2))
    ax.axvline(0, color=style().ink, linewidth=0.8 * style().scale, gid="zero")
    for at, row in zip(y, table.to_dict("records"), strict=True):
        marker, colour = KINDS.get(str(row["kind"]), OTHER)
        ax.hlines(at, row["difference_low"], row["difference_high"], color=colour, linewidth=1.4 * style().scale)
        sure, few = row["p_holm"] < alpha, not row["p_floor"] < alpha
        look: dict[str, Any] = {"color": colour, "marker": "x" if few else marker, "linestyle": ""}
        look |= {"markersize": 6 * style().scale, "markerfacecolor": colour if sure else style().ground}
        ax.plot([row["difference"]], [at], gid="few" if few else "sure" if sure else "unsure", **look)
    for name in names:
        rows = (table["structure"] == name).to_numpy()
        against = table.loc[rows, "baseline"].iloc[0]
        ax.annotate(
            f"{name} − {against}",
            (0, y[rows][0] - 0.75),
            xycoords=("axes fraction", "data"),
            va="bottom",
            size=style().font,
            weight="bold",
            gid="group",
        )
    ax.set_yticks(y, table["task"].astype(str))
    ax.set_ylim(y[-1] + 0.7, -1.7)
    ax.tick_params(labelsize=style().font)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(f"difference in {metric or 'score'}", size=1.07 * style().font)
    ax.set_title(title or "")
    looks: dict[str, dict[str, Any]] = {
        f"p < {alpha:g} (Holm)": {"marker": "o", "markerfacecolor": style().grey},
        f"p ≥ {alpha:g}": {"marker": "o", "markerfacecolor": style().ground},
        "too few runs to tell": {"marker": "x"},
    }
    entries = [Line2D([], [], color=style().grey, linestyle="", label=name, **look) for name, look in looks.items()]
    ax.legend(handles=entries, loc="upper center", bbox_to_anchor=(0.5, -0.9 / (0.19 * (y[-1] + 2) + 0.5)), ncols=3)
    return ax
