"""Explore a saved search: cut it at any budget, go through its steps, look at single candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from s3pet.errors import S3PetError
from s3pet.plots.cuts import CutFigure, candidate_facts, plot_cut
from s3pet.plots.style import PETS, figure_of
from s3pet.plots.words import describe
from s3pet.structure import Structure
from s3pet.widgets.canvas import Canvas, Panel
from s3pet.widgets.parts import (
    NAMED,
    FileRow,
    Message,
    budget_slider,
    describe_budget,
    export_figure,
    facts_table,
    set_budgets,
    set_range,
    whole,
)
from s3pet.widgets.recut import Recut
from s3pet.widgets.shelf import FIELDS, Entry, find_runs

AVERAGE = "average"
FIELD_NAMES = {"budget": "searched at"}


class Explorer(Panel):
    """Controls and figure of :func:`explore`. Set ``.value`` of any control to drive it from code.

    Attributes:
        selectors: a dropdown for what tells the runs apart: "task", "seed", and where they differ "model", "space",
            "budget" and "run". The seed may be "average".
        quantity, budget, step, pets, layers: what to show, and where to cut.
        candidate, earlier, later: which candidate to look at; the buttons go through the chosen ones.
        saving, exporting: where to write (``.path``, ``.formats``) and ``.button``.
        message, card, spent: what was written or went wrong; the candidate; the budget in words.
        recut: the search in view.
    """

    recut: Recut

    def __init__(self, runs: Any):
        self._entries = find_runs(runs)
        self._known: dict[Any, Recut] = {}
        self._busy = True
        self.message, self.card, self.spent = Message(), W.HTML(), W.HTML()
        self._make_selectors()
        self.recut = self._open()
        self._make_controls()
        self.canvas = Canvas()
        self._drawn: CutFigure
        super().__init__(self._arrange())
        self._follow_run()
        self._watch()

    # ------------------------------------------------------------------------------------------ what is shown

    @property
    def n_params(self) -> int:
        """The budget of the slider, in parameters."""
        return whole(self.budget, self.recut.cheapest, self.recut.total)

    @property
    def at_step(self) -> int | None:
        """The recorded step in view; None: the end of the search."""
        return None if not self.recut.steps or self.step.value == self.recut.steps[-1] else self.step.value

    @property
    def gates(self) -> pd.DataFrame:
        """The gate table in view: at the step, cut at the budget."""
        return self.recut.gates(self.at_step, self.n_params)

    @property
    def structure(self) -> Structure:
        """The structure in view."""
        return self.recut.structure(self.at_step, self.n_params)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`s3pet.plots.plot_cut` that draw what is shown from `gates`."""
        low, high = self.recut.limits(self.quantity.value)
        return {"value": self.quantity.value, "vmin": low, "vmax": high, **self._moved()}

    def figure(self, figure: Figure | None = None) -> Figure:
        """What is shown, as a figure of its own in the style in use: ``plot_cut(explorer.gates, **arguments)``."""
        return figure_of(plot_cut(self.gates, figure=figure or Figure(), **self.arguments)[0])

    def _moved(self) -> dict[str, Any]:
        pets = None if set(self.pets.value) == set(self._all_pets()) else tuple(self.pets.value)
        layers = None if self.layers.value == (self.layers.min, self.layers.max) else self.layers.value
        known = self.candidate.value if self.candidate.value in self.recut.names else None
        made: dict[str, Any] = {"budget": self.n_params, "pets": pets, "layers": layers, "candidate": known}
        return made | {"title": self._title(pets, layers)}

    def _title(self, pets: Any, layers: Any) -> str:
        config, share = self.recut.result.config, self.recut.budget(self.n_params).fraction
        task, seed = str(config.get("task", "search")).rpartition("/")[2], config.get("seed")
        whose = f"mean of {len(self.recut.searches)} searches" if self.recut.averaged else f"seed {seed}"
        parts = [f"{task}, {whose}" if seed is not None else task]
        parts += [f"step {self.step.value}"] if self.recut.steps else []
        parts += [f"budget {self.n_params:,} ({100 * share:.3g} %)"]
        parts += ["shown: " + (", ".join(PETS.get(pet, pet) for pet in pets) or "none")] if pets is not None else []
        parts += [f"layers {layers[0]}-{layers[1]}"] if layers is not None else []
        return " · ".join(parts)

    # ------------------------------------------------------------------------------------------- the controls

    def _make_selectors(self) -> None:
        entries = self._entries
        fields = [name for name in FIELDS if len({entry.value(name) for entry in entries}) > 1]
        fields = [name for name in FIELDS if name in fields or name in ("task", "seed")]
        keys = [tuple(entry.value(name) for name in fields) for entry in entries]
        fields += ["run"] if len(set(keys)) < len(keys) else []
        self.selectors = {
            name: W.Dropdown(description=FIELD_NAMES.get(name, name), layout=W.Layout(width="250px"), **NAMED)
            for name in fields
        }
        self._refill(0)

    def _matching(self, n_fields: int) -> list[Entry]:
        """Entries that agree with the first selectors."""
        found = self._entries
        for name, control in [*self.selectors.items()][:n_fields]:
            if control.value != AVERAGE:
                found = [entry for entry in found if _key(entry, name) == control.value]
        return found

    def _refill(self, start: int) -> None:
        """Options of the selectors from ``start`` on, given those before; a value that still exists is kept."""
        for place, (name, control) in enumerate([*self.selectors.items()][start:], start):
            found = {_key(entry, name): entry for entry in self._matching(place)}
            options = [(entry.name if name == "run" else entry.label(name), key) for key, entry in found.items()]
            numbers = all(key.isdigit() for _, key in options)
            options.sort(key=lambda option: int(option[1]) if numbers else option[0])
            if name == "seed" and len(options) > 1:
                options.append((f"average over {len(options)} seeds", AVERAGE))
            before = control.value
            control.options = options
            control.value = before if before in [key for _, key in options] else options[0][1]
            control.disabled = len(options) == 1

    def _open(self) -> Recut:
        key = tuple(control.value for control in self.selectors.values())
        if key not in self._known:
            names = [*self.selectors]
            beside = self._matching(names.index("seed"))
            alike = {_key(entry, "space") + _key(entry, "model") + _key(entry, "budget") for entry in beside}
            named = {f"seed {entry.label('seed')}": entry for entry in beside}
            if len(named) < len(beside) or len(alike) > 1:
                named = {entry.name: entry for entry in beside}
            searches = {name: entry.open() for name, entry in named.items()}
            average = self.selectors["seed"].value == AVERAGE
            (one, *_) = self._matching(len(names))
            self._known[key] = Recut(searches, None if average else one.open())
        return self._known[key]

    def _make_controls(self) -> None:
        recut = self.recut
        self.quantity = W.Dropdown(description="show", options=[("", "prob")], layout=W.Layout(width="250px"), **NAMED)
        self.budget = budget_slider(recut.cheapest, recut.total, self._searched(), readout=False, **NAMED)
        self.step = W.SelectionSlider(options=[0], description="step", layout=W.Layout(width="420px"), **NAMED)
        self.pets = W.SelectMultiple(description="modules", rows=5, layout=W.Layout(width="200px"), **NAMED)
        self.layers = W.IntRangeSlider(min=0, max=1, description="layers", layout=W.Layout(width="280px"), **NAMED)
        search: dict[str, Any] = {"ensure_option": True, "placeholder": "type an address", "continuous_update": False}
        self.candidate = W.Combobox(description="candidate", layout=W.Layout(width="290px"), **search, **NAMED)
        narrow = W.Layout(width="140px")
        self.earlier = W.Button(description="chosen before", icon="arrow-left", layout=narrow)
        self.later = W.Button(description="chosen next", icon="arrow-right", layout=narrow)
        self.saving = FileRow("save structure", "structure.json", self._save, self.message)
        self.exporting = FileRow("export figure", "figures/map", self._export, self.message, formats=True)

    def _arrange(self) -> list[W.Widget]:
        wrap = W.Layout(flex_flow="row wrap", align_items="center")
        row = W.HBox([*self.selectors.values(), self.quantity], layout=wrap)
        look = W.VBox(
            [self.candidate, W.HBox([self.earlier, self.later]), self.card], layout=W.Layout(flex="0 0 310px")
        )
        files = W.HBox([self.saving, self.exporting], layout=wrap)
        self.canvas.widget.layout.flex, self.canvas.widget.layout.min_width = "0 1 auto", "420px"
        picture = W.HBox([self.canvas.widget, look])  # side by side: where there is little room, the picture shrinks
        show = W.HBox([self.pets, self.layers], layout=wrap)
        sliders = W.VBox([W.HBox([self.budget, self.spent], layout=wrap), self.step])
        return [row, W.HBox([sliders, show], layout=wrap), self.message, picture, files]

    def _watch(self) -> None:
        for control in self.selectors.values():
            control.observe(self._on_run, "value")
        self.quantity.observe(self._on_quantity, "value")
        for control in (self.budget, self.step, self.pets, self.layers, self.candidate):
            control.observe(self._on_move, "value")
        self.earlier.on_click(lambda _: self._go(-1))
        self.later.on_click(lambda _: self._go(1))

    # ------------------------------------------------------------------------------------------ what happens

    def _on_run(self, change: Any) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            self._refill([*self.selectors.values()].index(change["owner"]) + 1)
            self.recut = self._open()
        except (S3PetError, OSError) as error:
            self.message.complain(error)
            return
        finally:
            self._busy = False
        self._follow_run()

    def _follow_run(self) -> None:
        """Controls and figure of another search; what still makes sense of the old settings is kept."""
        self._busy, recut = True, self.recut
        try:
            quantities = recut.quantities
            kept = self.quantity.value if self.quantity.value in quantities else "prob"
            self.quantity.options = [(label, value) for value, label in quantities.items()]
            self.quantity.value = kept
            set_budgets(self.budget, recut.cheapest, recut.total, self._searched())
            self.step.options = recut.steps or [0]
            self.step.value = self.step.options[-1]
            self.step.disabled = len(recut.steps) < 2
            pets, last = self._all_pets(), int(recut.result.gates["layer"].max())
            if tuple(value for _, value in self.pets.options) != pets:
                self.pets.options = [(PETS.get(pet, pet), pet) for pet in pets]
                self.pets.value = pets
            if self.layers.max != last:
                set_range(self.layers, 0, last, (0, last))
            if self.candidate.value not in recut.names:
                self.candidate.value = ""
            self.candidate.options = recut.names
        finally:
            self._busy = False
        self._redraw()

    def _on_quantity(self, change: Any) -> None:
        if not self._busy:
            self._redraw()

    def _on_move(self, change: Any) -> None:
        if not self._busy:
            self._move()

    def _redraw(self) -> None:
        """Everything anew: another search or another quantity."""
        gates = self.gates
        low, high = self.recut.limits(self.quantity.value)
        with self.canvas.look():
            self._drawn = CutFigure(
                gates,
                budget=self.n_params,
                value=self.quantity.value,
                vmin=low,
                vmax=high,
                title=" ",
                figure=self.canvas.figure,
            )
            self._drawn.move(gates, **self._moved())
            self.canvas.show(self._drawn.moving, alt=describe(gates))
        self._tell(gates)

    def _move(self) -> None:
        """Another cut of the same search: only what changes."""
        gates = self.gates
        with self.canvas.look():
            self._drawn.move(gates, **self._moved())
            self.canvas.move(alt=self._moved()["title"])
        self._tell(gates)

    def _tell(self, gates: pd.DataFrame) -> None:
        self.message.clear()
        mine = gates["chosen"].to_numpy(bool)
        used = int(gates["n_params"].to_numpy()[mine].sum())
        self.spent.value = describe_budget(self.recut.budget(self.n_params), used, int(mine.sum()))
        name = self.candidate.value
        if not name:
            self.card.value = "<i>Choose a candidate, or go through the chosen ones.</i>"
            return
        try:
            facts = candidate_facts(gates, name, self._choices(name))
        except S3PetError as error:
            self.card.value = ""
            self.message.complain(error)
            return
        self.card.value = facts_table(facts)

    def _choices(self, name: str) -> dict[str, bool] | None:
        if name not in self.recut.names or len(self.recut.searches) < 2:
            return None
        return self.recut.choices(self.n_params, name)

    def _go(self, by: int) -> None:
        """To the next chosen candidate in the order of the probabilities, or the one before."""
        gates = self.gates
        order = np.argsort(-gates["prob"].to_numpy(float), kind="stable")
        mine = order[gates["chosen"].to_numpy(bool)[order]]
        place = {int(row): i for i, row in enumerate(order)}
        at = -1 if by > 0 else len(order)
        if self.candidate.value in self.recut.names:
            at = place[self.recut.names.index(self.candidate.value)]
        beyond = [row for row in mine if by * (place[int(row)] - at) > 0]
        row = (beyond[0] if by > 0 else beyond[-1]) if beyond else (mine[0] if by > 0 else mine[-1])
        self.candidate.value = self.recut.names[int(row)]

    def _save(self, path: Path) -> str:
        structure = self.structure
        structure.to_json(path)
        return f"wrote {path}: {len(structure)} candidates, {structure.n_params:,} parameters of {structure.budget:,}"

    def _export(self, path: Path) -> str:
        return export_figure(self.figure(), path, describe(self.gates))

    def _searched(self) -> int:
        return min(max(int(self.recut.result.budget.n_params), self.recut.cheapest), self.recut.total)

    def _all_pets(self) -> tuple[str, ...]:
        found = self.recut.result.gates["pet"].unique()
        rank = {name: i for i, name in enumerate(PETS)}
        return tuple(sorted(map(str, found), key=lambda name: (rank.get(name, 99), name)))


def _key(entry: Entry, field: str) -> str:
    return entry.name if field == "run" else entry.value(field)


def explore(runs: Any) -> Explorer:
    """Explore saved searches: the map of the gates at any budget and step, and every candidate in it.

    Moving the budget cuts the saved search again; nothing is searched anew. Filters veil, they never change the choice.
    The picture is :func:`s3pet.plots.plot_cut` of ``explorer.gates``; ``explorer.figure()`` draws it once more as a
    figure of its own. A structure or figure is saved on a button, never over a file that exists; figures are saved in
    the figure style in use then.

    Args:
        runs: a run folder, a folder with runs below it, a search result, or a list or mapping of these. Searches that
            differ only in their seed can be averaged.

    Raises:
        RunError: there is no run; the message says how to make one.
    """
    return Explorer(runs)
