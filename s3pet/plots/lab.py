"""The gates of a few candidates, for teaching: shift, probabilities, samples, what they cost, and their gradients.

Everything is computed by :mod:`s3pet.gates`; nothing here is a second implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s3pet.gates import GRADIENT_MODES, expected_gates, sample_gates, shifted_sigmoid, solve_shift
from s3pet.plots.style import new_axes, new_figure, style, styled

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F")  # Okabe and Ito


def _tensors(alpha: Sequence[float], costs: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(alpha, dtype=torch.float64), torch.tensor(costs, dtype=torch.float64)


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
    """The four views in one figure: `plot_shift`, `plot_samples`, `plot_expected_costs`, `plot_gate_gradients`.

    Args:
        alpha, costs, budget, temperature, sample_temperature, of, seed: as there.
        figure: emptied, resized and drawn in; None makes one.

    Raises:
        BudgetError: the budget is not between 0 and the cost of all.
    """
    given, beta = (alpha, costs, budget), temperature
    solve_shift(*_tensors(alpha, costs), budget, temperature=beta)  # before anything is wiped
    figure = new_figure(6.2, 4.9, figure)
    figure.set_layout_engine("none")  # places that stay put while a slider moves
    margins = {"left": 0.105, "right": 0.985, "bottom": 0.09, "top": 0.94, "wspace": 0.27, "hspace": 0.42}
    axes = figure.subplots(2, 2, gridspec_kw=margins)
    plot_shift(*given, temperature=beta, ax=axes[0, 0])
    plot_samples(*given, temperature=beta, sample_temperature=sample_temperature, seed=seed, ax=axes[0, 1])
    plot_expected_costs(*given, temperature=beta, sample_temperature=sample_temperature, ax=axes[1, 0])
    plot_gate_gradients(*given, of=of, temperature=beta, ax=axes[1, 1])
    return [*axes.flat]


@styled
def plot_shift(
    alpha: Sequence[float],
    costs: Sequence[float],
    budget: float,
    *,
    temperature: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """The shifted sigmoid: probability over α, the candidates on it, and the shift ζ, where it is one half.

    Args:
        alpha, costs: of each candidate. budget: expected parameters. temperature: β, width of the sigmoid.

    Raises:
        BudgetError: the budget is not between 0 and the cost of all.
    """
    a, c = _tensors(alpha, costs)
    shift = float(solve_shift(a, c, budget, temperature=temperature))
    probs = shifted_sigmoid(a, c, budget, temperature=temperature).numpy()
    ax = ax or new_axes(None, 2.6)
    ends = (min(*alpha, shift) - 2, max(*alpha, shift) + 2)
    x = np.linspace(*ends, 200)
    ax.plot(x, 1 / (1 + np.exp(-(x - shift) / temperature)), color=style().grey, gid="sigmoid")
    ax.axvline(shift, color=style().ink, linestyle="--", linewidth=1, gid="shift")
    side = {"ha": "right", "xytext": (-3, 0)} if shift > sum(ends) / 2 else {"ha": "left", "xytext": (3, 0)}
    ax.annotate(f"shift {shift:.2f}", (shift, 1.02), textcoords="offset points", va="bottom", **side)  # type: ignore[arg-type]
    for i, (at, prob) in enumerate(zip(alpha, probs, strict=True)):
        ax.plot(at, prob, "o", color=COLOURS[i % 8], markeredgecolor=style().ink, markersize=7, gid=f"candidate-{i}")
    ax.set(xlim=ends, ylim=(-0.03, 1.12), xlabel="α", ylabel="probability")
    return ax


@styled
def plot_samples(
    alpha: Sequence[float],
    costs: Sequence[float],
    budget: float,
    *,
    temperature: float = 1.0,
    sample_temperature: float = 1.0,
    draws: int = 200,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Sampled gates: every draw a point, the probability a bar, the mean of the sampled gate a mark.

    Args:
        sample_temperature: τ of the binary concrete. draws, seed: of the points. Others as `plot_shift`.
    """
    a, c = _tensors(alpha, costs)
    probs = shifted_sigmoid(a, c, budget, temperature=temperature)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(draws, len(a), generator=generator, dtype=torch.float64)
    gates = sample_gates(probs, noise, temperature=sample_temperature).numpy()
    means = expected_gates(probs, temperature=sample_temperature).numpy()
    ax = ax or new_axes(None, 2.6)
    spread = np.linspace(-0.32, 0.32, draws)[np.random.default_rng(seed).permutation(draws)]
    for i in range(len(a)):
        ax.bar(i, float(probs[i]), 0.8, color=COLOURS[i % 8], alpha=0.35, linewidth=0, gid=f"prob-{i}")
        ax.plot(i + spread, gates[:, i], ".", color=COLOURS[i % 8], markersize=2.5, gid=f"samples-{i}")
        ax.hlines(means[i], i - 0.4, i + 0.4, color=style().ink, linewidth=1.5, gid=f"mean-{i}")
    ax.set(ylim=(-0.03, 1.03), xticks=range(len(a)), xlabel="candidate", ylabel="gate")
    ax.set_title("bar: p · points: sampled z · line: mean of z", fontsize=style().font)
    return ax


@styled
def plot_expected_costs(
    alpha: Sequence[float],
    costs: Sequence[float],
    budget: float,
    *,
    temperature: float = 1.0,
    sample_temperature: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Expected parameters by candidate: what the budget controls (Σ c p) and what the sampled gates cost (Σ c E[z])."""
    a, c = _tensors(alpha, costs)
    probs = shifted_sigmoid(a, c, budget, temperature=temperature)
    means = expected_gates(probs, temperature=sample_temperature)
    ax = ax or new_axes(None, 1.6)
    for row, values in enumerate(((c * probs).numpy(), (c * means).numpy())):
        left = 0.0
        for i, value in enumerate(values):
            ax.barh(row, value, 0.7, left, color=COLOURS[i % 8], linewidth=0, gid=f"cost-{row}-{i}")
            left += float(value)
        ax.text(left, row, f" {left:,.0f}", va="center")
    ax.axvline(budget, color=style().ink, linestyle="--", linewidth=1, gid="budget")
    ax.set(yticks=(0, 1), yticklabels=("Σ c p", "Σ c E[z]"), ylim=(1.5, -0.5), xlabel="parameters (dashed: budget)")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlim(0, 1.18 * max(float((c * means).sum()), budget))
    return ax


@styled
def plot_gate_gradients(
    alpha: Sequence[float],
    costs: Sequence[float],
    budget: float,
    *,
    of: int = 0,
    temperature: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """∂p_of/∂α_j in the three gradient modes: whether raising one candidate lowers the others.

    Args:
        of: index of the candidate whose probability is differentiated. Others as `plot_shift`.
    """
    ax = ax or new_axes(None, 2.6)
    for place, mode in enumerate(GRADIENT_MODES):
        a, c = _tensors(alpha, costs)
        a.requires_grad_()
        options: dict[str, Any] = {"temperature": temperature, "gradient": mode}
        (gradient,) = torch.autograd.grad(shifted_sigmoid(a, c, budget, **options)[of], a)
        at = np.arange(len(a)) + 0.27 * (place - 1)
        hatch = ("", "////", "....")[place]
        look: dict[str, Any] = {"color": style().pale, "edgecolor": style().ink, "linewidth": 0.8, "hatch": hatch}
        ax.bar(at, gradient.numpy(), 0.25, label=mode, gid=f"gradient-{mode}", **look)
    ax.axhline(0, color=style().grey, linewidth=0.8)
    ax.set(xticks=range(len(alpha)), xlabel="candidate j", ylabel=f"∂p{of} / ∂αj")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, columnspacing=1, handlelength=1.4, handletextpad=0.5)
    return ax
