"""The gates of a few candidates, for teaching. All numbers come from :mod:`s3pet.gates`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from s3pet.gates import GRADIENT_MODES, expected_gates, sample_gates, shifted_sigmoid, solve_shift
from s3pet.plots.style import PALETTE, new_figure, style, styled

COLOURS = PALETTE[:8]  # one per candidate
DRAWS = 200


@styled
def plot_gate_lab(
    alpha: Sequence[float],
    costs: Sequence[float],
    budget: float,
    *,
    temperature: float = 1.0,
    sample_temperature: float = 1.0,
    of: int = 0,
    seed: int = 0,
    figure: Figure | None = None,
) -> list[Axes]:
    """Four views of up to eight gates; returns their Axes.

    The shifted sigmoid with the candidates on it; sampled gates with their mean and the probability; expected
    parameters Σ c p, which the budget controls, and those of the sampled gates, Σ c E[z]; the gradients ∂p_of/∂α_j in
    the three gradient modes, which show whether raising one α lowers the other probabilities.

    Args:
        alpha, costs: α and parameters of each candidate.
        budget: expected parameters.
        temperature: β, the width of the sigmoid.
        sample_temperature: τ of the binary concrete distribution.
        of: index of the candidate whose probability is differentiated.
        seed: of the samples.
        figure: emptied, resized and drawn in; None makes one.

    Raises:
        BudgetError: the budget is not between 0 and the sum of the costs.
    """
    a, c = torch.tensor(alpha, dtype=torch.float64, requires_grad=True), torch.tensor(costs, dtype=torch.float64)
    shift = float(solve_shift(a.detach(), c, budget, temperature=temperature))
    gradients = {}
    for mode in GRADIENT_MODES:
        probs = shifted_sigmoid(a, c, budget, temperature=temperature, gradient=mode)  # type: ignore[arg-type]
        gradients[mode] = torch.autograd.grad(probs[of], a)[0].numpy()
    probs = probs.detach()  # the same in all modes
    noise = torch.rand(DRAWS, len(a), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gates = sample_gates(probs, noise, temperature=sample_temperature)
    means = expected_gates(probs, temperature=sample_temperature)
    figure = new_figure(6.2, 4.9, figure)
    figure.set_layout_engine("none")  # the axes keep their places while a slider moves
    margins = {"left": 0.105, "right": 0.985, "bottom": 0.09, "top": 0.94, "wspace": 0.27, "hspace": 0.42}
    axes = list(figure.subplots(2, 2, gridspec_kw=margins).flat)
    _draw_shift(axes[0], a.tolist(), probs, shift, temperature)
    _draw_samples(axes[1], probs, gates, means, seed)
    _draw_costs(axes[2], {"Σ c p": c * probs, "Σ c E[z]": c * means}, budget)
    _draw_gradients(axes[3], gradients, f"∂p{of} / ∂αj")
    return axes


def _draw_shift(ax: Axes, alpha: list[float], probs: Tensor, shift: float, temperature: float) -> None:
    ends = (min(*alpha, shift) - 2, max(*alpha, shift) + 2)
    x = np.linspace(*ends, 200)
    ax.plot(x, 1 / (1 + np.exp(-(x - shift) / temperature)), color=style().grey, gid="sigmoid")
    ax.axvline(shift, color=style().ink, linestyle="--", linewidth=style().scale, gid="shift")
    ax.text(shift, 1.02, f" shift {shift:.2f} ", ha="right" if shift > sum(ends) / 2 else "left")
    for i, (at, prob) in enumerate(zip(alpha, probs, strict=True)):
        ax.plot(at, prob, "o", color=COLOURS[i], mec=style().ink, ms=6 * style().scale, gid=f"candidate-{i}")
    ax.set(xlim=ends, ylim=(-0.03, 1.12), xlabel="α", ylabel="probability")


def _draw_samples(ax: Axes, probs: Tensor, gates: Tensor, means: Tensor, seed: int) -> None:
    aside, scale = np.random.default_rng(seed).permutation(np.linspace(-0.32, 0.32, len(gates))), style().scale
    for i, prob in enumerate(probs.tolist()):
        ax.bar(i, prob, 0.8, color=COLOURS[i], alpha=0.35, gid=f"prob-{i}")
        ax.plot(i + aside, gates[:, i], ".", color=COLOURS[i], markersize=2.2 * scale, gid=f"samples-{i}")
        ax.hlines(float(means[i]), i - 0.4, i + 0.4, color=style().ink, linewidth=1.4 * scale, gid=f"mean-{i}")
    ax.set(ylim=(-0.03, 1.03), xticks=range(len(probs)), xlabel="candidate", ylabel="gate")
    ax.set_title("bar: p · points: sampled z · line: mean of z", fontsize=style().font)


def _draw_costs(ax: Axes, costs: dict[str, Tensor], budget: float) -> None:
    for row, (name, values) in enumerate(costs.items()):
        ends = np.cumsum([0.0, *values.tolist()])
        for i, cost in enumerate(values.tolist()):
            ax.barh(name, cost, 0.7, ends[i], color=COLOURS[i], gid=f"cost-{row}-{i}")
        ax.text(ends[-1], row, f" {ends[-1]:,.0f}", va="center")
    ax.axvline(budget, color=style().ink, linestyle="--", linewidth=style().scale, gid="budget")
    ax.set(ylim=(1.5, -0.5), xlabel="parameters (dashed: budget)")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlim(0, 1.18 * max(budget, *(float(values.sum()) for values in costs.values())))


def _draw_gradients(ax: Axes, gradients: dict[str, np.ndarray], label: str) -> None:
    bars = pd.DataFrame(gradients).plot.bar(ax=ax, width=0.8, color=style().pale, edgecolor=style().ink, rot=0)
    for container, hatch in zip(bars.containers, ("", "////", "...."), strict=True):
        for bar in container:
            bar.set(hatch=hatch, linewidth=0.7 * style().scale, gid=f"gradient-{container.get_label()}")
    ax.axhline(0, color=style().grey, linewidth=0.7 * style().scale)
    ax.set(xlabel="candidate j", ylabel=label)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, columnspacing=1, handlelength=1.4, handletextpad=0.5)
