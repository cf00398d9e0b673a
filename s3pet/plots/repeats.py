"""Is it the structure, or the luck of its retraining? Every retraining of every structure, structure by structure."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from s3pet.errors import PlotError
from s3pet.plots.ranking import of_kind
from s3pet.plots.style import as_table, new_axes, style, styled


@styled
def plot_repeats(table: Any, *, metric: str = "score", title: str | None = None, ax: Axes | None = None) -> Axes:
    """Scores of retrainings: a line per structure, a dot per retraining, a stroke at the mean; kinds below each other.

    Where lines lie apart, it is the structures that differ; where they are long and overlap, it is the retrainings.
    :func:`s3pet.studies.variance.variance_components` puts it in numbers.

    Args:
        table: one row per run of one task, at one learning rate for each structure: ``task, structure, kind, index``
            (which of several structures of that name), ``score``. ``study.chosen(repeats=True)`` gives it.
        metric: what the score is called.

    Raises:
        PlotError: a column is missing, there are several tasks, or no structure was retrained twice.
    """
    table = as_table(table, ("task", "structure", "kind", "index", "score"), one=("task",))
    runs = table.groupby(["structure", "index"], sort=False)["score"].agg(["size", "mean", "min", "max"]).reset_index()
    if runs["size"].max() < 2:
        raise PlotError("No structure was retrained twice; give it repeats in its study, or several seeds.")
    order = runs.groupby("structure")["mean"].mean().sort_values(ascending=False, kind="stable").index
    kinds = table.groupby("structure")["kind"].first()
    rows = pd.concat([runs[runs["structure"] == name].sort_values("mean", ascending=False) for name in order])
    letters = max(map(len, order))
    ax = ax or new_axes(
        min(style().page / style().scale, 3.2 + 0.065 * letters), 0.7 + 0.12 * len(rows) + 0.1 * len(order)
    )
    y, middles = 0.0, []
    for name in order:
        colour, places = of_kind(kinds[name]), []
        for row in rows[rows["structure"] == name].to_dict("records"):
            scores = table.loc[table["structure"].eq(name) & table["index"].eq(row["index"]), "score"]
            look: dict[str, Any] = {"color": colour, "markersize": 3.5 * style().scale}
            ax.plot(
                [row["min"], row["max"]], [y, y], color=colour, linewidth=style().scale, alpha=0.6, gid="structures"
            )
            ax.plot(scores, [y] * len(scores), marker="o", linestyle="", alpha=0.75, gid="retrainings", **look)
            ax.plot([row["mean"]], [y], marker="|", color=style().ink, markersize=8 * style().scale, gid="means")
            places.append(y)
            y += 1
        middles.append(sum(places) / len(places))
        y += 0.8
    ax.set_yticks(middles, order)
    ax.set_ylim(y - 1.2, -0.8)
    ax.set_xlabel(metric)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.tick_params("y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_title(title or "")
    return ax
