"""Compare saved searches of one space: side by side, their difference, their agreement, who chose what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as W
import pandas as pd
from matplotlib.figure import Figure

from s3pet.errors import RunError
from s3pet.files.kinds import whole
from s3pet.plots import choice_table, plot_agreement, plot_gate_panels, plot_two
from s3pet.transfer import agreement, average_gates
from s3pet.widgets.panel import WRAP, BudgetSlider, FileRow, Panel, control
from s3pet.widgets.runs import QUANTITIES, find_runs

VIEWS = ("panels", "difference", "overlap")
MEASURES = [("overlap of the structures", "jaccard"), ("rank correlation of the gates", "spearman")]
SELECTED = 4  # runs that are selected at first


class Comparison(Panel):
    """Compare saved searches of one space, all cut at one budget.

    Panels share a colour scale. The difference of two searches marks what only one of them chose. The overlap is shown
    with its chance level at this budget. The picture is that of :func:`s3pet.plots.plot_gate_panels`, `plot_two` or
    `plot_agreement`. A button saves it, in the figure style in use then, and never overwrites a file.

    Args:
        runs: two or more, as a list or mapping of run folders and search results, or a folder with runs below it.
        draws: random structures per pair, for the chance level.

    Attributes:
        runs: which runs. view: "panels", "difference" or "overlap". Set ``.value`` of a control to use it from code.
        quantity, budget: what to show, and where to cut all of them.
        one, other: the two of the difference. measure: of the overlap.
        table: who chose what, as HTML. exporting: where to write the figure, and the button that writes.

    Raises:
        RunError: fewer than two runs, or different spaces.
    """

    def __init__(self, runs: Any, *, draws: int = 100):
        super().__init__()
        whole(1).check(RunError, draws=draws)
        entries = find_runs(runs)
        names = [f"{entry.value('task').rpartition('/')[2]} {entry.value('seed')}" for entry in entries]
        if isinstance(runs, Mapping) or len(set(names)) < len(names):
            names = [entry.name for entry in entries]
        self._results = {name: entry.open() for name, entry in zip(names, entries, strict=True)}
        if len(self._results) < 2:
            raise RunError(f"expected two runs or more, of different names, got {names}; widgets.explore shows one")
        first = self._results[names[0]]
        average_gates(self._results, budget=first.budget)  # raises RunError if the spaces differ
        self.draws, self._agreements, self.table, self.spent = draws, dict[Any, pd.DataFrame](), W.HTML(), W.HTML()
        rows = min(max(len(names), 3), 8)
        self.runs = control(W.SelectMultiple, "runs", 300, options=names, value=names[:SELECTED], rows=rows)
        self.view = W.ToggleButtons(options=VIEWS, style={"button_width": "100px"})
        self.quantity = control(W.Dropdown, "show", 300, options=[*zip(QUANTITIES.values(), QUANTITIES, strict=True)])
        self.budget = BudgetSlider(first, continuous_update=False)
        self.one = control(W.Dropdown, "difference", 300, options=names)
        self.other = control(W.Dropdown, "minus", 300, options=names, value=names[-1])
        self.measure = control(W.Dropdown, "agreement", 300, options=MEASURES)
        self.exporting = FileRow("export figure", "figures/comparison.pdf", self._export, self)
        what = W.VBox([self.view, self.quantity, W.HBox([self.budget, self.spent], layout=WRAP)])
        controls = W.HBox([self.runs, what, W.VBox([self.one, self.other, self.measure])], layout=WRAP)
        self.children = [controls, self.message, self.picture, self.table, self.exporting]
        self._listen(self.runs, self.view, self.quantity, self.budget, self.one, self.other, self.measure)

    @property
    def gates(self) -> dict[str, pd.DataFrame]:
        """Gate tables of the selected runs, cut at the budget."""
        return self._cut(self.runs.value)

    @property
    def choices(self) -> pd.DataFrame:
        """Who chose what: :func:`s3pet.plots.choice_table` of `gates`."""
        return choice_table(self.gates)

    @property
    def agreement(self) -> pd.DataFrame:
        """Agreement of the selected runs at the budget, and its chance level: :func:`s3pet.transfer.agreement`."""
        key = self.runs.value, self.n_params
        if key not in self._agreements:
            results = {name: self._results[name] for name in self.runs.value}
            self._agreements[key] = agreement(results, budget=self.n_params, draws=self.draws)
        return self._agreements[key]

    def _cut(self, names: Sequence[str]) -> dict[str, pd.DataFrame]:
        return {name: self._results[name].gates_at(budget=self.n_params) for name in names}

    def _update(self, control: Any) -> None:
        if len(self.runs.value) < 2:
            raise RunError("Select two runs or more (hold Ctrl or Shift).")
        self.quantity.disabled, self.measure.disabled = self.view.value == "overlap", self.view.value != "overlap"
        self.one.disabled = self.other.disabled = self.view.value != "difference"
        self.spent.value = f"{self._spent(self._results[self.runs.value[0]])}, for all"
        dots = self.choices.drop(columns="mean_prob").replace({True: "●", False: ""}).reset_index()
        self.table.value = f"<div style='max-height:260px;overflow:auto'>{dots.to_html(index=False, border=0)}</div>"

    def _draw(self, figure: Figure) -> str:
        names, one, other = self.runs.value, self.one.value, self.other.value
        if self.view.value == "overlap":
            plot_agreement(self.agreement, value=self.measure.value, figure=figure)
        elif self.view.value == "difference":
            plot_two(self._cut((one, other)), one, other, value=self.quantity.value, figure=figure)
        else:
            plot_gate_panels(self.gates, value=self.quantity.value, figure=figure)
        chosen_by = self.choices["chosen_by"]
        return (
            f"{self.view.value} of the searches {', '.join(names)}: {len(chosen_by)} candidates are chosen by any, "
            f"{(chosen_by == len(names)).sum()} by all."
        )
