"""A search in one figure, finished or running: gates, losses, cost of the sampled gates, changes of the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s3pet.errors import PlotError, shown
from s3pet.gates import expected_gates
from s3pet.plots.maps import plot_gates
from s3pet.plots.style import GREY, new_figure, style, styled
from s3pet.structure import select_by_gates

BACK = 10  # records between the two choices that `settled` compares


def search_diagnostics(result: Any) -> pd.DataFrame:
    """Numbers that tell how a search (its result or run, with ``.trajectory``) went, one row per recorded step.

    Returns:
        ``step``; ``expected``, Σ n_params · p over the budget (1 up to rounding); ``sampled``, Σ n_params · E[gate]
        over the budget, the mean cost of the gates that the search trains with; ``settled``, the Jaccard overlap of
        the structure with that of ten records before, or of the first record (nan in the first row).
    """
    if getattr(result, "trajectory", None) is None or result.trajectory.empty:
        raise PlotError(f"Expected a search result or a run with a trajectory; {shown(result)} has none.")
    path = result.trajectory.pivot(index="step", columns="candidate", values="prob")
    probs = torch.tensor(path[[candidate.name for candidate in result.space]].to_numpy("float64"))
    costs, budget = result.space.costs.double(), result.budget.n_params
    curve = torch.sigmoid(torch.linspace(-16, 16, 513, dtype=torch.float64))  # E[gate]/p is smooth: interpolate it
    ratio = torch.tensor(np.interp(torch.logit(probs), torch.logit(curve), expected_gates(curve) / curve))
    masks = [select_by_gates(result.space, row, budget) for row in probs]
    pairs = zip(masks[1:], [*masks[:1] * (BACK - 1), *masks], strict=False)
    expected, sampled = ((gates @ costs / budget).numpy() for gates in (probs, ratio * probs))
    settled = [np.nan, *(float((a & b).sum() / (a | b).sum()) for a, b in pairs)]
    return pd.DataFrame({"step": path.index, "expected": expected, "sampled": sampled, "settled": settled})


@styled
def plot_search(result: Any, *, figure: Figure | None = None, title: str | None = None) -> list[Axes]:
    """The map of the gates, and beside it the losses, the sampled cost over the budget, and how settled the choice is.

    ``result`` is a search result or a run, also of a search that still runs; see `search_diagnostics`.
    """
    table, scale, history = search_diagnostics(result), style().scale, result.history
    figure = new_figure(style().widest, 4.6, figure)
    spec = figure.add_gridspec(3, 2, width_ratios=(2.4, 1))
    gates, losses, cost, choice = (figure.add_subplot(spec[place]) for place in ((slice(3), 0), (0, 1), (1, 1), (2, 1)))
    plot_gates(result, ax=gates, title=title)
    for name, colour in (("loss_train", GREY), ("loss_val", style().ink)):
        if name in history:
            smooth = history[name].astype(float).rolling(10, min_periods=1).mean()
            losses.plot(history["step"], smooth, color=colour, label=name.replace("loss", "search"), gid=name)
            losses.legend(loc="best", fontsize=0.9 * style().font)
    cost.plot(table["step"], table["sampled"], color=style().ink, gid="sampled")
    cost.axhline(1, color=style().ink, linestyle="--", linewidth=scale, gid="budget")
    choice.plot(table["step"], table["settled"], color=style().ink, gid="settled")
    names = ("loss\n(mean of 10)", "sampled cost\n(× budget)", "overlap with\nearlier choice")
    for ax, name in zip((losses, cost, choice), names, strict=True):
        ax.set(xlim=(0, result.config.get("steps") or table["step"].max()), ylabel=name)
        ax.tick_params(labelbottom=ax is choice)
    cost.set_ylim(0, 1.08 * max(1.0, table["sampled"].max()))
    choice.set(ylim=(-0.03, 1.05), xlabel="step")
    return [gates, losses, cost, choice]
