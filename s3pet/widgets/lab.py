"""Gates to play with: change α, costs, budget and temperatures, and see what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as W
from matplotlib.figure import Figure

from s3pet.errors import PlotError
from s3pet.files.kinds import number, whole
from s3pet.plots.lab import COLOURS, plot_gate_lab
from s3pet.widgets.panel import WRAP, Panel, control

START = ((1.0, 256), (0.5, 128), (0.0, 256), (-0.5, 396), (-1.0, 128))


class GateLab(Panel):
    """Change α of a few candidates, their costs, the budget and the temperatures, and see what follows.

    Shows the shift, the probabilities, sampled gates and their mean, the expected parameters and the budget, and the
    gradient of one probability in the three modes: :func:`s3pet.plots.plot_gate_lab`.

    Args:
        candidates: (α, cost in parameters) of each, two to eight.

    Attributes:
        alphas, costs: one slider and one number field per candidate. Set ``.value`` of a control to use it from code.
        budget, temperature, sample_temperature, of: the other controls.
        again: a button that draws other samples. seed: of the samples.

    Raises:
        PlotError: ``candidates`` is something else.
    """

    def __init__(self, candidates: Sequence[tuple[float, int]] = START):
        super().__init__()
        pairs, self.alphas, self.costs, self.seed = _check(candidates), [], [], 0
        for i, (alpha, cost) in enumerate(pairs):
            low, high = min(-4.0, alpha), max(4.0, alpha)
            self.alphas.append(control(W.FloatSlider, f"α{i}", 190, "25px", value=alpha, min=low, max=high, step=0.1))
            self.alphas[-1].style.handle_color = COLOURS[i]
            self.costs.append(control(W.BoundedIntText, "cost", 110, "30px", value=cost, min=1, max=10_000_000))
        log, total = W.FloatLogSlider, sum(cost for _, cost in pairs)
        self.budget = control(W.IntSlider, "budget", 300, "95px", value=max(1, total // 5), min=1, max=total - 1)
        self.temperature = control(log, "temperature β", 300, "95px", value=1, min=-1, max=1, step=0.02)
        self.sample_temperature = control(log, "sampling τ", 300, "95px", value=1, min=-1.3, max=0.5, step=0.02)
        options = [(f"p of candidate {i}", i) for i in range(len(pairs))]
        self.of = control(W.Dropdown, "gradient of", 300, "95px", options=options)
        self.again = control(W.Button, "other samples", 150, icon="refresh")
        rows = [W.HBox(row) for row in zip(self.alphas, self.costs, strict=True)]
        rest = [self.budget, self.temperature, self.sample_temperature, self.of]
        left = W.VBox([*rows, *rest, self.again, self.message], layout={"width": "312px"})
        self.children = [W.HBox([left, self.picture], layout=WRAP)]
        self._listen(*self.alphas, *self.costs, *rest)
        self.again.on_click(self._on_again)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`s3pet.plots.plot_gate_lab` that draw what the controls say."""
        return {
            "alpha": [slider.value for slider in self.alphas],
            "costs": [cost.value for cost in self.costs],
            "budget": self.budget.value,
            "temperature": self.temperature.value,
            "sample_temperature": self.sample_temperature.value,
            "of": self.of.value,
            "seed": self.seed,
        }

    def _on_again(self, button: Any) -> None:
        self.seed += 1
        self._show()

    def _update(self, control: Any) -> None:
        if control in self.costs:  # the budget must stay below the cost of all
            high = max(1, sum(cost.value for cost in self.costs) - 1)
            self.budget.max, self.budget.value = high, min(self.budget.value, high)

    def _draw(self, figure: Figure) -> str:
        plot_gate_lab(**self.arguments, figure=figure)
        return f"gates of {len(self.alphas)} candidates at {self.budget.value} parameters"


def _check(candidates: Any) -> list[tuple[float, int]]:
    try:
        pairs = [(alpha, cost) for alpha, cost in candidates]
    except (TypeError, ValueError):
        pairs = []
    fine = all(number().holds(alpha) and whole(1).holds(cost) for alpha, cost in pairs)
    if not 2 <= len(pairs) <= len(COLOURS) or not fine:
        raise PlotError(
            "Expected (α, cost in parameters) of two to eight candidates, such as [(1.0, 256), (0.0, 128)], each cost "
            f"1 or more; got {candidates!r:.80}."
        )
    return pairs
