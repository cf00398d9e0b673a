"""Compare saved searches of one space: side by side, their difference, their agreement, who chose what."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W
import pandas as pd
from matplotlib.figure import Figure

from s3pet.errors import RunError, S3PetError
from s3pet.plots.choices import choice_table, plot_agreement, plot_two
from s3pet.plots.maps import plot_gate_panels
from s3pet.result import SearchResult
from s3pet.transfer import agreement
from s3pet.widgets.canvas import Canvas, Panel
from s3pet.widgets.parts import NAMED, FileRow, Message, budget_slider, export_figure, whole
from s3pet.widgets.recut import QUANTITIES, Recut
from s3pet.widgets.shelf import find_runs, short_names

VIEWS = ("panels", "difference", "overlap")
MEASURES = {"jaccard": "overlap of the structures", "spearman": "rank correlation of the gates"}
AT_FIRST = 4  # runs selected when there are many


class Comparison(Panel):
    """Controls and figure of :func:`compare`. Set ``.value`` of any control to drive it from code.

    Attributes:
        runs: which runs, two or more. view: "panels", "difference" or "overlap".
        quantity, budget: what to show, and where to cut all of them.
        one, other: the two of the difference. measure: of the overlap. draws: random structures per pair.
        table: who chose what, as HTML; `choices` has the data.
        message: what was written or went wrong. exporting: where to write the figure, and its button.
    """

    def __init__(self, runs: Any, draws: int = 100):
        entries = find_runs(runs)
        own = isinstance(runs, Mapping) and len(entries) == len(runs)  # a name for each: the user's
        found = dict(zip(map(str, runs), entries, strict=True)) if own else short_names(entries)
        named = {name: entry.open() for name, entry in found.items()}
        _check_same_space(named)
        self.draws, self._busy = draws, False
        self._recuts = {name: Recut({}, result) for name, result in named.items()}
        self._pairs: dict[Any, pd.DataFrame] = {}
        self.message, self.table, self.spent = Message(), W.HTML(), W.HTML()
        self._make_controls([*named])
        self.canvas = Canvas()
        super().__init__(self._arrange())
        self._on_runs()
        self.runs.observe(self._on_runs, "value")
        for control in (self.view, self.quantity, self.budget, self.one, self.other, self.measure):
            control.observe(self._draw, "value")

    # ------------------------------------------------------------------------------------------ what is shown

    @property
    def n_params(self) -> int:
        """The budget of the slider, in parameters."""
        return whole(self.budget, self._first.cheapest, self._first.total)

    @property
    def gates(self) -> dict[str, pd.DataFrame]:
        """Gate tables of the selected runs, cut at the budget."""
        return {name: self._recuts[name].gates(None, self.n_params) for name in self.runs.value}

    @property
    def choices(self) -> pd.DataFrame:
        """Who chose what: :func:`s3pet.plots.choice_table` of `gates`."""
        return choice_table(self.gates)

    @property
    def agreement(self) -> pd.DataFrame:
        """Pairs of the selected runs beside chance, at the budget: :func:`s3pet.agreement`."""
        key = self.runs.value, self.n_params
        if key not in self._pairs:
            results = {name: self._recuts[name].result for name in self.runs.value}
            self._pairs[key] = agreement(results, budget=self.n_params, draws=self.draws)
        return self._pairs[key]

    def figure(self, figure: Figure | None = None) -> Figure:
        """What is shown, as a figure of its own in the style in use.

        That is :func:`s3pet.plots.plot_gate_panels` of `gates`, `plot_two` of them, or `plot_agreement` of `agreement`.
        """
        figure, value = figure or Figure(), self.quantity.value
        if self.view.value == "overlap":
            plot_agreement(self.agreement, value=self.measure.value, figure=figure)
        elif self.view.value == "difference":
            plot_two(self.gates, self.one.value, self.other.value, value=value, figure=figure)
        else:
            plot_gate_panels(self.gates, value=value, figure=figure)
        return figure

    # ------------------------------------------------------------------------------------------- the controls

    @property
    def _first(self) -> Recut:
        return next(iter(self._recuts.values()))

    def _make_controls(self, names: list[str]) -> None:
        first = self._first
        wide = W.Layout(width="300px")
        rows = min(max(len(names), 3), 8)
        chosen = tuple(names[:AT_FIRST])
        self.runs = W.SelectMultiple(options=names, value=chosen, rows=rows, description="runs", layout=wide, **NAMED)
        self.view = W.ToggleButtons(options=VIEWS, style={"button_width": "100px"})
        options = [(label, value) for value, label in QUANTITIES.items()]
        self.quantity = W.Dropdown(options=options, description="show", layout=wide, **NAMED)
        start = min(max(first.result.budget.n_params, first.cheapest), first.total)
        self.budget = budget_slider(first.cheapest, first.total, start, continuous_update=False, readout=False, **NAMED)
        self.one = W.Dropdown(options=names, value=names[0], description="difference", layout=wide, **NAMED)
        self.other = W.Dropdown(options=names, value=names[-1], description="minus", layout=wide, **NAMED)
        options = [(label, value) for value, label in MEASURES.items()]
        self.measure = W.Dropdown(options=options, description="agreement", layout=wide, **NAMED)
        self.exporting = FileRow("export figure", "figures/comparison", self._export, self.message, formats=True)

    def _arrange(self) -> list[W.Widget]:
        wrap = W.Layout(flex_flow="row wrap", align_items="flex-start")
        what = W.VBox([self.view, self.quantity, W.HBox([self.budget, self.spent], layout=wrap)])
        pair = W.VBox([self.one, self.other, self.measure])
        return [
            W.HBox([self.runs, what, pair], layout=wrap),
            self.message,
            self.canvas.widget,
            self.table,
            self.exporting,
        ]

    # ------------------------------------------------------------------------------------------ what happens

    def _on_runs(self, change: Any = None) -> None:
        """Other runs: the two of the difference are among them."""
        names = [*self.runs.value]
        if len(names) < 2:
            self.message.complain("Select two runs or more (hold Ctrl or Shift).")
            return
        self._busy = True
        try:
            for control, default in ((self.one, names[0]), (self.other, names[-1])):
                kept = control.value if control.value in names else default
                control.options = names
                control.value = kept
            if self.one.value == self.other.value:
                self.other.value = next(name for name in names if name != self.one.value)
        finally:
            self._busy = False
        self._draw()

    def _draw(self, change: Any = None) -> None:
        if self._busy or len(self.runs.value) < 2:
            return
        share = self._first.budget(self.n_params).fraction
        self.spent.value = f"<b>{self.n_params:,}</b> parameters = {100 * share:.3g} % of the backbone, for all"
        used = {"difference": (self.quantity, self.one, self.other), "panels": (self.quantity,)}
        mine = used.get(self.view.value, (self.measure,))
        for control in (self.quantity, self.one, self.other, self.measure):
            control.disabled = control not in mine
        choices = self.choices
        self.table.value = _as_html(choices, self.runs.value)
        try:
            with self.canvas.look():
                self.figure(self.canvas.figure)
                self.canvas.show(alt=self._alt(choices))
        except S3PetError as error:
            self.message.complain(error)
            return
        self.message.clear()

    def _alt(self, choices: pd.DataFrame) -> str:
        runs, common = len(self.runs.value), int((choices["chosen_by"] == len(self.runs.value)).sum())
        cut = f"{runs} searches ({', '.join(self.runs.value)}) cut at {self.n_params:,} parameters"
        return f"{self.view.value} of {cut}: {len(choices)} candidates chosen by any, {common} by all."

    def _export(self, path: Path) -> str:
        return export_figure(self.figure(), path, self._alt(self.choices))


def _check_same_space(named: Mapping[str, SearchResult]) -> None:
    if len(named) < 2:
        only = f", {next(iter(named))!r}" if named else ""
        raise RunError(f"expected two runs or more to compare, got {len(named)}{only}; s3pet.widgets.explore shows one")
    spaces: dict[Any, str] = {}
    for name, result in named.items():
        key = result.space.model_id, tuple(candidate.name for candidate in result.space)
        spaces.setdefault(key, name)
    if len(spaces) > 1:
        known = ", ".join(f"{name!r} on {model} with {len(all_)}" for (model, all_), name in spaces.items())
        raise RunError(
            f"the {len(named)} runs searched {len(spaces)} different spaces ({known} candidates), whose maps cannot be "
            "compared cell by cell. Give runs of one; s3pet.retarget_gates carries gates from one space to another."
        )


def _as_html(choices: pd.DataFrame, names: Any) -> str:
    """The table of who chose what, with a dot for every choice."""
    cell, heads = "<td style='text-align:center;padding:0 .7em'>", ["candidate", "parameters", *names, "chosen by"]
    head = "".join(f"<th style='padding:0 .7em;position:sticky;top:0'>{escape(str(name))}</th>" for name in heads)
    rows = []
    for row in choices.reset_index().to_dict("records"):
        dots = "".join(f"{cell}{'●' if row[name] else ''}</td>" for name in names)
        first = f"<td>{escape(str(row['candidate']))}</td>{cell}{row['n_params']:,}</td>"
        rows.append(f"<tr>{first}{dots}{cell}{row['chosen_by']} of {len(names)}</td></tr>")
    table = f"<table style='font-size:90%;line-height:1.4'><tr>{head}</tr>{''.join(rows)}</table>"
    return f"<div style='max-height:260px;overflow:auto'>{table}</div>"


def compare(runs: Any, *, draws: int = 100) -> Comparison:
    """Compare saved searches of one space, all cut at one budget.

    Panels share a colour scale; the difference of any two diverges around 0 and marks who chose what alone; the overlap
    stands beside what chance would give at this budget. The table says who chose what. ``comparison.figure()`` draws
    what is shown once more as a figure of its own.

    Args:
        runs: two or more, as a list or mapping of run folders and search results, or a folder with runs below it.
        draws: random structures for the chance of each pair.

    Raises:
        RunError: fewer than two runs, or different spaces.
    """
    return Comparison(runs, draws)
