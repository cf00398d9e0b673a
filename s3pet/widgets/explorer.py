"""Explore a saved search: cut it at any budget, go through its steps, look at single candidates."""

from __future__ import annotations

from typing import Any

import ipywidgets as W
import pandas as pd
from matplotlib.figure import Figure

from s3pet.files.writing import json_text
from s3pet.plots import describe, plot_cut, select_rows
from s3pet.plots.style import PETS
from s3pet.structure import Structure
from s3pet.utility import candidate_names, check_utility
from s3pet.widgets.environment import on_page
from s3pet.widgets.interactive import GateMap
from s3pet.widgets.map_data import MEASURED, map_data
from s3pet.widgets.panel import IDLE, WRAP, BudgetSlider, FileRow, Panel, control
from s3pet.widgets.runs import Entry, SavedSearch, find_runs, open_runs

FIELDS = ("model", "space", "task", "budget", "seed")
AVERAGE = "average"


class Explorer(Panel):
    """Explore saved searches: the map of the gates at any budget and step, and every candidate in it.

    Moving the budget cuts the saved search again; nothing is searched anew. Filters fade candidates; they never change
    the choice. Point at a cell of the map to see its candidate; click it, or walk with the arrow keys, to select it.
    The figure, which a saved notebook shows, is :func:`s3pet.plots.plot_cut` of ``explorer.gates`` with
    ``explorer.arguments``. Buttons save the structure, and the figure, in the figure style in use then, or (``.html``)
    the map as a web page; they never overwrite a file.

    Args:
        runs: a run folder, a folder with runs below it, a search result, or a list or mapping of these. Searches that
            differ only in their seed can be averaged.
        utility: a utility table (:mod:`s3pet.utility`) of this backbone, of one or several tasks; the card then says
            what was measured for a candidate. StudyError if it is none.

    Attributes:
        selectors: dropdowns "task", "seed" (or "average") and, where the runs differ in it, "model", "space", "budget"
            and "run". Set ``.value`` of a control to use it from code.
        map: the map, with bars and facts (`GateMap`): ``.selected`` is the candidate, ``.value`` what the colour shows.
        budget, step, pets, layers: where to cut, and what to show.
        saving, exporting: where to write (``.path``), and the ``.button`` that writes.
        spent: the budget in words. search: the search that is shown.

    Raises:
        RunError: there is no run; the message says how to make one.
    """

    def __init__(self, runs: Any, *, utility: pd.DataFrame | None = None):
        super().__init__()
        self._utility = dict[str, pd.DataFrame]()
        if utility is not None:
            has_tasks = isinstance(utility, pd.DataFrame) and len(utility) and "task" in utility
            parts = utility.groupby("task") if has_tasks else [("", utility)]
            self._utility = {str(task): check_utility(part) for task, part in parts}
        self._entries, self._opened = find_runs(runs), dict[Any, SavedSearch]()
        differ = {field for field in FIELDS if len({entry.value(field) for entry in self._entries}) > 1}
        fields = [field for field in FIELDS if field in differ | {"task", "seed"}]
        if len({tuple(map(entry.value, fields)) for entry in self._entries}) < len(self._entries):
            fields.append("run")
        self.selectors = {field: control(W.Dropdown, field) for field in fields}
        self._refill(0)
        self.search = self._open()
        self.budget = BudgetSlider(self.search.result)
        self.step = control(W.SelectionSlider, "step", 420, options=[0])
        self.pets = control(W.SelectMultiple, "modules", 200)
        self.layers = control(W.IntRangeSlider, "layers", 280, min=0, max=1)
        self.saving = FileRow("save structure", "structure.json", self._save, self)
        self.exporting = FileRow("export figure", "figures/map.pdf", self._export, self)
        self.spent = W.HTML()
        self.map = GateMap()
        sliders = W.VBox([W.HBox([self.budget, self.spent], layout=WRAP), self.step])
        self.children = [
            W.HBox([*self.selectors.values()], layout=WRAP),
            W.HBox([sliders, self.pets, self.layers], layout=WRAP),
            self.message,
            self.map,
            W.HBox([self.saving, self.exporting, *([W.HTML(IDLE)] if on_page() else [])], layout=WRAP),
        ]
        self._listen(*self.selectors.values(), self.budget, self.step, self.pets, self.layers)

    @property
    def gates(self) -> pd.DataFrame:
        """The gate table that is shown: at the step, cut at the budget."""
        gates = self.search.gates(self._step(), self.n_params)
        if self._measured is None:
            return gates
        return gates.assign(**{MEASURED: self._measured[MEASURED].reindex(candidate_names(gates)).to_numpy()})

    @property
    def structure(self) -> Structure:
        """The structure at the step and budget."""
        return self.search.structure(self._step(), self.n_params)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`s3pet.plots.plot_cut` that draw what is shown from `gates`."""
        value, (pets, layers) = self.map.value, self._filters()
        low, high = self.map.data["values"][value]["limits"]
        where = {"budget": self.n_params, "pets": pets, "layers": layers, "candidate": self.map.selected or None}
        return {"value": value, "vmin": low, "vmax": high, "title": self._title(), **where}

    def _title(self) -> str:
        """The search, the step, the budget and the filters."""
        pets, layers = self._filters()
        title = [self.search.title, *[f"step {self.step.value}"] * bool(self.search.steps), f"budget {self.n_params:,}"]
        if pets is not None:
            title.append(f"shown: {', '.join(PETS.get(pet, pet) for pet in pets) or 'none'}")
        if layers is not None:
            title.append(f"layers {layers[0]}-{layers[1]}")
        return " · ".join(title)

    def _filters(self) -> tuple[tuple[str, ...] | None, tuple[int, int] | None]:
        """PET modules and layers that are shown; None: all."""
        pets, layers = self.pets.value, self.layers.value
        ends = (self.layers.min, self.layers.max)
        return None if len(pets) == len(self.pets.options) else pets, None if layers == ends else layers

    @property
    def _measured(self) -> pd.DataFrame | None:
        """The utility table of the task that is shown."""
        return self._utility.get(str(self.search.result.config.get("task")))

    def _data(self) -> dict[str, Any]:
        """The map at the step and budget."""
        gates = self.gates
        choices = self.search.choices(self.n_params) if len(self.search.searches) > 1 else None
        return map_data(
            gates,
            choices=choices,
            utility=self._measured,
            limits=self.search.limits,
            budget=self.n_params,
            shown=select_rows(gates, *self._filters()),
            title=self._title(),
        )

    def _step(self) -> int | None:
        """The recorded step that is shown; None: the end of the search."""
        return None if self.step.value == self.step.options[-1] else self.step.value

    def _matching(self, n_selectors: int) -> list[Entry]:
        """The runs that agree with the first selectors."""
        values = {field: each.value for field, each in [*self.selectors.items()][:n_selectors] if each.value != AVERAGE}
        return [entry for entry in self._entries if all(entry.value(field) == v for field, v in values.items())]

    def _refill(self, start: int) -> None:
        """Set the options of the selectors from ``start`` on by those before it; a value that still exists is kept."""
        for place, (field, selector) in enumerate([*self.selectors.items()][start:], start):
            values = {entry.value(field) for entry in self._matching(place)}
            options = [(value, value) for value in sorted(values, key=lambda v: (int(v) if v.isdigit() else 0, v))]
            if field == "seed" and len(options) > 1:
                options.append((f"average over {len(options)} seeds", AVERAGE))
            before, selector.options = selector.value, options
            selector.value = before if before in [value for _, value in options] else options[0][1]
            selector.disabled = len(options) == 1

    def _open(self) -> SavedSearch:
        """The search that the selectors say, with the searches of the other seeds."""
        key = tuple(selector.value for selector in self.selectors.values())
        if key not in self._opened:
            seeds = self._matching([*self.selectors].index("seed"))
            average = self.selectors["seed"].value == AVERAGE
            self._opened[key] = SavedSearch(open_runs(seeds), None if average else self._matching(len(key))[0].open())
        return self._opened[key]

    def _update(self, control: Any) -> None:
        selectors = [*self.selectors.values()]
        if control in selectors:
            self._refill(selectors.index(control) + 1)
            self.search = self._open()
            self._follow_search()
        chosen = self.gates[self.gates["chosen"]]
        used = f"{len(chosen):,} candidates use {chosen['n_params'].sum():,}"
        self.spent.value = f"{self._spent(self.search.result)}; {used}"

    def _show(self) -> None:
        self.map.show(self._data())

    def _follow_search(self) -> None:
        """Set the controls for another search; settings that still make sense are kept."""
        search, gates = self.search, self.search.result.gates
        self.budget.fit(search.result)
        self.step.options = search.steps or [0]
        self.step.value = self.step.options[-1]
        self.step.disabled = len(search.steps) < 2
        pets = tuple((PETS.get(pet, pet), pet) for pet in gates["pet"].unique())
        if self.pets.options != pets:
            self.pets.options, self.pets.value = pets, [pet for _, pet in pets]
        if self.layers.max != (last := int(gates["layer"].max())):
            self.layers.max, self.layers.value = last, (0, last)

    def _draw(self, figure: Figure) -> str:
        gates = self.gates
        plot_cut(gates, figure=figure, **self.arguments)
        return describe(gates)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self.picture.ask(self._draw)
        return super()._repr_mimebundle_(**kwargs)

    def _export(self, kind: str) -> tuple[bytes, str]:
        if kind.lower() != "html":
            return super()._export(kind)
        content = self.map.page().encode()
        return content, f"{len(content) / 1024:,.0f} KB"

    def _save(self, kind: str) -> tuple[bytes, str]:
        structure = self.structure
        what = f"{len(structure)} candidates, {structure.n_params:,} parameters of {structure.budget:,}"
        return json_text(structure.record()).encode(), what
