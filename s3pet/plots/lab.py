"""The gates of a few candidates, for teaching. All numbers come from :mod:`s3pet.gates`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s3pet.errors import PlotError
from s3pet.files.kinds import POSITIVE, many, number, whole
from s3pet.gates import GRADIENT_MODES, expected_gates, sample_gates, shifted_sigmoid, solve_shift
from s3pet.plots.style import new_figure, style, styled

COLOURS = sns.color_palette("Set2", 8).as_hex()  # one per candidate; no colours of modules, which have a meaning
DRAWS = 200
MIDDLE: dict[str, Any] = {"ha": "center", "va": "center_baseline"}


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
    """Four views of up to eight gates, each candidate with its number and colour; returns their Axes.

    The shifted sigmoid with the candidates on it; sampled gates with their mean and the probability; expected
    parameters Σ c p, which the budget controls, and those of the sampled gates, Σ c E[z]; the gradients ∂p_of/∂α_j in
    the three gradient modes, which show whether raising one α lowers the other probabilities.

    Args:
        alpha, costs: α and parameters of each candidate.
        budget: expected parameters.
        temperature, sample_temperature: β, the width of the sigmoid, and τ of the binary concrete distribution.
        of: index of the candidate whose probability is differentiated.
        seed: of the samples.

    Raises:
        BudgetError: the budget is not between 0 and the sum of the costs.
    """
    many(number()).check(PlotError, alpha=[*alpha] if isinstance(alpha, Iterable) else alpha)
    many(POSITIVE).check(PlotError, costs=[*costs] if isinstance(costs, Iterable) else costs)
    if not 1 <= len(alpha) == len(costs) <= len(COLOURS):
        raise PlotError(f"alpha and costs must be as many, 1 to {len(COLOURS)}; got {len(alpha)} and {len(costs)}")
    whole(0, len(alpha) - 1).check(PlotError, of=of)
    a, c = torch.tensor(alpha, dtype=torch.float64, requires_grad=True), torch.tensor(costs, dtype=torch.float64)
    shift = float(solve_shift(a.detach(), c, budget, temperature=temperature))
    gradients = {}
    for mode in GRADIENT_MODES:
        probs = shifted_sigmoid(a, c, budget, temperature=temperature, gradient=mode)  # type: ignore[arg-type]
        gradients[mode] = torch.autograd.grad(probs[of], a)[0].numpy()
    probs = probs.detach()  # the same in all modes
    noise = torch.rand(DRAWS, len(a), generator=torch.Generator().manual_seed(int(seed)), dtype=torch.float64)
    gates = sample_gates(probs, noise, temperature=sample_temperature)
    means = expected_gates(probs, temperature=sample_temperature)

    figure, scale, ink = new_figure(6.2, 4.9, figure), style().scale, style().ink
    figure.set_layout_engine("none")  # the axes keep their places while a slider moves
    margins = {"left": 0.105, "right": 0.985, "bottom": 0.09, "top": 0.94, "wspace": 0.27, "hspace": 0.42}
    sigmoid, samples, spending, slopes = figure.subplots(2, 2, gridspec_kw=margins).flat
    ends = (min(*alpha, shift) - 2, max(*alpha, shift) + 2)
    x = np.linspace(*ends, 200)
    sigmoid.plot(x, 1 / (1 + np.exp(-(x - shift) / temperature)), color=style().grey, gid="sigmoid")
    sigmoid.axvline(shift, color=ink, linestyle="--", linewidth=scale, gid="shift")
    sigmoid.text(shift, 1.02, f" shift {shift:.2f} ", ha="right" if shift > sum(ends) / 2 else "left")
    sigmoid.set(xlim=ends, ylim=(-0.03, 1.12), xlabel="α", ylabel="probability")
    aside = np.random.default_rng(seed).permutation(np.linspace(-0.32, 0.32, DRAWS))
    for i, (prob, mean, colour) in enumerate(zip(probs.tolist(), means.tolist(), COLOURS, strict=False)):
        sigmoid.plot(alpha[i], prob, "o", color=colour, mec=ink, ms=9 * scale, gid=f"candidate-{i}")
        sigmoid.text(alpha[i], prob, i, color="black", fontsize=0.8 * style().font, **MIDDLE)
        samples.bar(i, prob, 0.8, color=colour, alpha=0.35, gid=f"prob-{i}")
        samples.plot(i + aside, gates[:, i], ".", color=colour, markersize=2.2 * scale, gid=f"samples-{i}")
        samples.hlines(mean, i - 0.4, i + 0.4, color=ink, linewidth=1.4 * scale, gid=f"mean-{i}")
    samples.set(ylim=(-0.03, 1.03), xticks=range(len(probs)), xlabel="candidate", ylabel="gate")
    samples.set_title("bar: p · points: sampled z · line: mean of z", fontsize=style().font)
    longest = max(budget, float(c @ probs), float(c @ means))
    for row, (name, parts) in enumerate({"Σ c p": c * probs, "Σ c E[z]": c * means}.items()):
        sums = np.cumsum([0.0, *parts.tolist()])
        for i, part in enumerate(parts.tolist()):
            spending.barh(name, part, 0.7, sums[i], color=COLOURS[i], gid=f"cost-{row}-{i}")
            if part > 0.05 * longest:
                spending.text(sums[i] + part / 2, row, i, color="black", fontsize=0.8 * style().font, **MIDDLE)
        spending.text(sums[-1], row, f" {sums[-1]:,.0f}", va="center", gid=f"total-{row}")
    spending.axvline(budget, color=ink, linestyle="--", linewidth=scale, gid="budget")
    spending.set(xlim=(0, 1.18 * longest), ylim=(1.5, -0.5), xlabel="parameters (dashed: budget)")
    spending.xaxis.set_major_locator(MaxNLocator(4))
    spending.xaxis.set_major_formatter("{x:,.0f}")
    bars = pd.DataFrame(gradients).plot.bar(ax=slopes, width=0.8, color=style().pale, edgecolor=ink, rot=0)
    for container, hatch in zip(bars.containers, ("", "////", "...."), strict=True):
        for bar in container:
            bar.set(hatch=hatch, linewidth=0.7 * scale, gid=f"gradient-{container.get_label()}")
    slopes.axhline(0, color=style().grey, linewidth=0.7 * scale)
    slopes.set(xlabel="candidate j", ylabel=f"∂p{of} / ∂αj")
    slopes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3, columnspacing=1, handlelength=1.4, handletextpad=0.5
    )
    return [sigmoid, samples, spending, slopes]
