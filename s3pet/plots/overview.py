"""A search in one figure: its gates, its losses, the cost of its sampled gates, and whether its choice still changes.

It works on a search that still runs as well: all it needs is a result with what has been recorded so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s3pet.errors import PlotError
from s3pet.gates import expected_gates
from s3pet.plots.maps import plot_gates
from s3pet.plots.style import BLUE, ORANGE, new_figure, style, styled
from s3pet.structure import select_mask

BACK = 10  # records between the two choices that `settled` compares


def search_diagnostics(result: Any) -> pd.DataFrame:
    """Numbers that tell how a search went, record by record.

    Args:
        result: a search result or a run, with ``.trajectory``, ``.space`` and ``.budget``.

    Returns:
        One row per recorded step: ``step``; ``expected``, Σ n_params · p over the budget (1 up to rounding);
        ``sampled``, Σ n_params · E[gate] over the budget, the mean cost of the gates that the search trains with;
        ``settled``, the Jaccard overlap of the structure with that of ten records before, or of the first record (nan
        in the first row).

    Raises:
        PlotError: there is no trajectory.
    """
    if getattr(result, "trajectory", None) is None or result.trajectory.empty:
        raise PlotError("Expected a search result or a run with a trajectory; this one has none.")
    names = [candidate.name for candidate in result.space]
    path = result.trajectory.pivot(index="step", columns="candidate", values="prob")[names]
    probs, costs, budget = torch.tensor(path.to_numpy("float64")), result.space.costs.double(), result.budget.n_params
    curve = torch.sigmoid(torch.linspace(-16, 16, 513, dtype=torch.float64))  # E[gate]/p is smooth: interpolate it
    ratio = torch.tensor(np.interp(torch.logit(probs), torch.logit(curve), expected_gates(curve) / curve))
    masks = [select_mask(row, costs, budget) for row in probs]
    settled = [float((a & b).sum() / (a | b).sum()) for a, b in zip(masks, [*masks[:1] * BACK, *masks], strict=False)]
    expected, sampled = ((gates @ costs / budget).numpy() for gates in (probs, ratio * probs))
    table = pd.DataFrame({"step": path.index, "expected": expected, "sampled": sampled, "settled": settled})
    table.loc[0, "settled"] = np.nan
    return table


@styled
def plot_search(result: Any, *, figure: Figure | None = None, title: str | None = None) -> list[Axes]:
    """The map of the gates, and beside it the losses, the sampled cost over the budget, and how settled the choice is.

    Args:
        result: a search result or a run, also of a search that still runs.
        figure: emptied, resized and drawn in; None makes one.
        title: of the map.

    Returns:
        The Axes of the map, of the losses, of the cost and of the choice.

    Raises:
        PlotError: there is no trajectory.
    """
    table, scale, history = search_diagnostics(result), style().scale, result.history
    figure = new_figure(8.0, 4.6, figure)
    spec = figure.add_gridspec(3, 2, width_ratios=(2.4, 1))
    plot_gates(result, ax=figure.add_subplot(spec[:, 0]), title=title)
    losses, cost, choice = (figure.add_subplot(spec[row, 1]) for row in range(3))
    for name, colour in (("loss_train", ORANGE), ("loss_val", BLUE)):
        if name in history:
            smooth = history[name].astype(float).rolling(10, min_periods=1).mean()
            losses.plot(history["step"], smooth, color=colour, label=name.replace("loss", "search"), gid=name)
            losses.legend(loc="upper right", fontsize=0.9 * style().font)
    cost.plot(table["step"], table["sampled"], color=BLUE, gid="sampled")
    cost.axhline(1, color=style().ink, linestyle="--", linewidth=scale, gid="budget")
    cost.set_ylim(0, 1.08 * max(1.0, table["sampled"].max()))
    choice.plot(table["step"], table["settled"], color=BLUE, gid="settled")
    choice.set(ylim=(-0.03, 1.05), xlabel="step")
    names = ("loss\n(mean of 10)", "sampled cost\n(× budget)", "overlap with\nearlier choice")
    for ax, name in zip((losses, cost, choice), names, strict=True):
        ax.set(xlim=(0, result.config.get("steps") or table["step"].max()), ylabel=name)
        ax.tick_params(labelbottom=ax is choice)
    return [figure.axes[0], losses, cost, choice]
