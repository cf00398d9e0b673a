"""A bench for gates: move α, costs, budget and temperatures, and see what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as W
from matplotlib.figure import Figure

from s3pet.errors import BudgetError, PlotError
from s3pet.plots.lab import COLOURS, plot_gate_lab
from s3pet.widgets.canvas import Canvas, Panel
from s3pet.widgets.parts import Message, set_range

START = ((1.0, 256), (0.5, 128), (0.0, 256), (-0.5, 396), (-1.0, 128))


class GateLab(Panel):
    """Controls and figure of :func:`gate_lab`. Set ``.value`` of any control to drive it from code.

    Attributes:
        alphas, costs: one slider, one number field per candidate.
        budget, temperature, sample_temperature, of: the other controls.
        again: a button that draws other samples; ``seed`` says which.
        message: what is wrong with the last change, if anything; the figure then stays as it was.
    """

    def __init__(self, candidates: Sequence[tuple[float, int]] = START):
        given = _checked(candidates)
        self.seed, self._busy = 0, False
        self.alphas, self.costs = [], []
        thin: dict[str, Any] = {"style": {"description_width": "25px"}, "layout": W.Layout(width="190px")}
        field: dict[str, Any] = {"style": {"description_width": "30px"}, "layout": W.Layout(width="110px")}
        low, high = min(-4.0, *(alpha for alpha, _ in given)), max(4.0, *(alpha for alpha, _ in given))
        for i, (alpha, cost) in enumerate(given):
            slider = W.FloatSlider(alpha, min=low, max=high, step=0.1, description=f"α{i}", **thin)
            slider.style.handle_color = COLOURS[i % len(COLOURS)]
            self.alphas.append(slider)
            self.costs.append(W.BoundedIntText(cost, min=1, max=10_000_000, description="cost", **field))
        wide: dict[str, Any] = {"style": {"description_width": "95px"}, "layout": W.Layout(width="300px")}
        start = max(1, self.total // 5)
        self.budget = W.IntSlider(start, min=1, max=self.total - 1, description="budget", **wide)
        beta, tau = {"min": -1, "max": 1, "step": 0.02}, {"min": -1.3, "max": 0.5, "step": 0.02}
        self.temperature = W.FloatLogSlider(1.0, **beta, description="temperature β", **wide)
        self.sample_temperature = W.FloatLogSlider(1.0, **tau, description="sampling τ", **wide)
        options = [(f"p of candidate {i}", i) for i in range(len(given))]
        self.of = W.Dropdown(options=options, description="gradient of", **wide)
        self.again = W.Button(description="other samples", icon="refresh", layout=W.Layout(width="150px"))
        self.message = Message()
        rows = [W.HBox(pair) for pair in zip(self.alphas, self.costs, strict=True)]
        rest = [self.budget, self.temperature, self.sample_temperature, self.of, self.again, self.message]
        self.canvas = Canvas()
        left = W.VBox([*rows, *rest], layout=W.Layout(width="312px"))
        super().__init__([W.HBox([left, self.canvas.widget], layout=W.Layout(flex_flow="row wrap"))])
        for control in (*self.alphas, *self.costs, self.budget, self.temperature, self.sample_temperature, self.of):
            control.observe(self._on_change, "value")
        self.again.on_click(self._on_again)
        self._draw()

    @property
    def total(self) -> int:
        """Parameters of all candidates together."""
        return sum(cost.value for cost in self.costs)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`s3pet.plots.plot_gate_lab` that draw what the controls say."""
        given: dict[str, Any] = {"alpha": [slider.value for slider in self.alphas]}
        given |= {"costs": [cost.value for cost in self.costs], "budget": self.budget.value}
        given |= {"temperature": self.temperature.value, "sample_temperature": self.sample_temperature.value}
        return given | {"of": self.of.value, "seed": self.seed}

    def figure(self, figure: Figure | None = None) -> Figure:
        """What is shown, as a figure of its own in the style in use."""
        figure = figure or Figure()
        plot_gate_lab(**self.arguments, figure=figure)
        return figure

    def _on_change(self, change: Any) -> None:
        if self._busy:
            return
        if change["owner"] in self.costs:
            self._busy = True
            try:
                high = max(1, self.total - 1)
                set_range(self.budget, 1, high, min(self.budget.value, high))
            finally:
                self._busy = False
        self._draw()

    def _on_again(self, button: Any = None) -> None:
        self.seed += 1
        self._draw()

    def _draw(self) -> None:
        try:
            with self.canvas.look():
                self.figure(self.canvas.figure)
                self.canvas.show(alt=f"gates of {len(self.alphas)} candidates at {self.budget.value} parameters")
        except BudgetError as error:
            self.message.complain(error)
            return
        self.message.clear()


def _checked(candidates: Any) -> list[tuple[float, int]]:
    how = "Expected (α, cost in parameters) of two to eight candidates, such as [(1.0, 256), (0.0, 128)]"
    try:
        given = [(float(alpha), int(cost)) for alpha, cost in candidates]
    except (TypeError, ValueError) as error:
        raise PlotError(f"{how}; got {candidates!r:.80}.") from error
    if not 2 <= len(given) <= len(COLOURS) or any(cost < 1 for _, cost in given):
        raise PlotError(f"{how}, each cost 1 or more; got {given!r:.80}.")
    return given


def gate_lab(candidates: Sequence[tuple[float, int]] = START) -> GateLab:
    """A bench for teaching gates: move α of a few candidates, their costs, the budget and the temperatures.

    Shows the shift, the probabilities, sampled gates and their mean, the expected parameters against the budget, and
    the gradient of one probability in the three modes. The picture is :func:`s3pet.plots.plot_gate_lab`.

    Args:
        candidates: (α, cost in parameters) of each, two to eight.

    Raises:
        PlotError: anything else.
    """
    return GateLab(candidates)
