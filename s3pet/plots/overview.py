"""A search at a glance: its gates, its losses, what its sampled gates cost, and whether its choice has come to rest.

Works on a search that still runs as on a finished one: all it needs is a result with what has been recorded so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s3pet.errors import PlotError
from s3pet.plots.maps import plot_gates
from s3pet.plots.style import style, styled

BACK = 10  # records: how far back `settled` looks, as the search's own


def search_diagnostics(result: Any) -> pd.DataFrame:
    """What a search says about itself, record by record.

    Args:
        result: a search result or a run, with ``.trajectory``, ``.gates``, ``.config`` and ``.budget``.

    Returns:
        One row per recorded step: ``step``; ``expected``, Σ n_params · p over the budget (1 up to rounding);
        ``sampled``, Σ n_params · E[gate] over the budget, what the supernet trains at; ``settled``, the overlap
        (Jaccard) of the structure with that of ten records before (of the first one, if there are fewer; nan for that).

    Raises:
        PlotError: there is no trajectory.
    """
    import torch

    from s3pet.gates import expected_gates
    from s3pet.structure import select_mask

    if getattr(result, "trajectory", None) is None or result.trajectory.empty:
        raise PlotError("Expected a search result or a run with a trajectory; this one has none.")
    order = [candidate.name for candidate in result.space]
    probs = result.trajectory.pivot(index="step", columns="candidate", values="prob")[order]
    costs, budget, config = result.space.costs.double(), result.budget.n_params, result.config
    p = torch.tensor(probs.to_numpy("float64"))
    sampling = config.get("sampling", "concrete")
    if sampling == "mean":
        gates = p
    else:  # the mean of a gate is a smooth function of p: tabulated once, read off for every candidate and step
        grid = torch.sigmoid(torch.linspace(-16, 16, 513, dtype=torch.float64))
        options: Any = {"temperature": config.get("sample_temperature", 1.0), "hard": sampling == "hard"}
        mean = np.interp(torch.logit(p), torch.logit(grid), expected_gates(grid, **options) / grid)
        gates = p * torch.tensor(mean)
    masks = [select_mask(row, costs, budget) for row in p]
    then = [masks[max(0, i - BACK)] for i in range(len(masks))]
    settled = [float((a & b).sum() / (a | b).sum()) for a, b in zip(masks, then, strict=True)]
    settled[0] = float("nan")  # nothing before it
    found = {"expected": (p @ costs) / budget, "sampled": (gates @ costs) / budget}
    return pd.DataFrame({"step": probs.index, **{k: v.numpy() for k, v in found.items()}, "settled": settled})


@styled
def plot_search(result: Any, *, figure: Figure | None = None, title: str | None = None) -> list[Axes]:
    """The gate map, and beside it losses, expected parameters over the budget, and how settled the choice is.

    Args:
        result: a search result or a run; also one of a search that still runs.
        figure: an empty figure to draw in; None: a new one of pyplot.
        title: over the map.

    Returns:
        The Axes of the map, of the losses, of the parameters and of the choice.

    Raises:
        PlotError: there is no trajectory.
    """
    import matplotlib.pyplot as plt

    found, scale = search_diagnostics(result), style().scale
    if figure is None:
        figure = plt.figure(figsize=(8.0 * scale, 4.6 * scale), layout="constrained")
    spec = figure.add_gridspec(3, 2, width_ratios=(2.4, 1))
    axes = [figure.add_subplot(spec[:, 0])]
    axes += [figure.add_subplot(spec[i, 1]) for i in range(3)]
    plot_gates(result, ax=axes[0], title=title)
    steps = result.config.get("steps") or int(found["step"].max())
    history, drawn = result.history, False
    for name, colour in (("loss_train", "#E69F00"), ("loss_val", "#0072B2")):
        if name in history:
            smooth, drawn = history[name].astype(float).rolling(10, min_periods=1).mean(), True
            label = name.replace("loss_", "search_")
            axes[1].plot(history["step"], smooth, color=colour, linewidth=scale, gid=name, label=label)
    if drawn:
        axes[1].legend(loc="upper right", fontsize=0.9 * style().font)
    axes[2].plot(found["step"], found["sampled"], color="#0072B2", gid="sampled")
    axes[2].axhline(1, color=style().ink, linestyle="--", linewidth=scale, gid="budget")
    axes[3].plot(found["step"], found["settled"], color="#0072B2", gid="settled")
    names = ("loss\n(mean of 10)", "sampled cost\n(× budget)", "overlap with the\nchoice before")
    for ax, name in zip(axes[1:], names, strict=True):
        ax.set(xlim=(0, steps), ylabel=name)
        ax.tick_params(labelbottom=ax is axes[3])
    axes[2].set_ylim(0, 1.08 * max(1.0, float(found["sampled"].max())))
    axes[3].set(ylim=(-0.03, 1.05), xlabel="step")
    return axes
