"""The map of the gates that people point at: a widget, and a web page of its own that needs no kernel.

::

    s3pet.widgets.gate_map(result)  # hover, click, arrow keys; .selected is the candidate
    s3pet.widgets.save_html(result, "map.html")  # one file, for the supplement of a paper

Both draw the same data (:mod:`s3pet.widgets.map_data`) with the same module, ``gate_map.js``. The page loads nothing:
its security policy allows only its own style and script, by their hashes.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from traitlets import Dict, Unicode, validate

from s3pet.errors import PlotError, RunError, nearest
from s3pet.files.kinds import TEXT, instance, optional
from s3pet.files.reading import path_of
from s3pet.files.writing import finite, write_text
from s3pet.plots import plot_gates
from s3pet.plots.maps import make_grid, map_size
from s3pet.plots.style import as_table, new_figure, styled
from s3pet.plots.words import candidate_names
from s3pet.result import SearchResult
from s3pet.structure import Structure
from s3pet.utility import check_utility
from s3pet.widgets.map_data import MEASURED, map_data
from s3pet.widgets.panel import DPI, picture_of, static_twin
from s3pet.widgets.runs import SavedSearch, find_runs, open_runs

SCRIPT, STYLE = (Path(__file__).with_name(f"gate_map.{kind}") for kind in ("js", "css"))
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="s3pet">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<div id="s3pet-map"></div>
<p>{summary}</p>
<noscript><p>Only this summary is shown, because scripts are switched off.</p></noscript>
</main>
<script type="application/json" id="s3pet-data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""
PAGE_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; background: #FFFFFF; color: #000000; font: 14px/1.5 system-ui, sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 16px; }
main p { max-width: 75ch; padding: 0 12px; }
@media (prefers-color-scheme: dark) { body { background: #16191D; color: #F0F0F0; } }
"""


class GateMap(anywidget.AnyWidget):
    """A map of gates to point at; made by :func:`gate_map`. Without a kernel, a notebook shows it as a figure.

    Attributes:
        selected: name of the selected candidate, such as ``encoder.3.attn.q:lora:1``, or "". Follows clicks and keys.
        value: the column that the colour shows, one of ``data["values"]``.
        data: what is drawn: :func:`s3pet.widgets.map_data.map_data`.
    """

    _esm, _css = SCRIPT, STYLE
    data = Dict().tag(sync=True)
    selected, value = Unicode().tag(sync=True), Unicode().tag(sync=True)

    def __init__(self, data: Mapping[str, Any] | None = None, table: pd.DataFrame | None = None):
        """``table`` is what the figure of the widget is drawn from."""
        super().__init__()
        self._table = table
        if data is not None:
            self.show(data)

    @validate("selected")
    def _known_candidate(self, proposal: Any) -> str:
        if (name := proposal["value"]) and name not in self.data.get("names", ()):
            raise PlotError(f"no candidate is called {name!r}; {nearest(name, self.data['names'])}")
        return name

    @validate("value")
    def _known_value(self, proposal: Any) -> str:
        if (name := proposal["value"]) not in (values := self.data.get("values", {})):
            raise PlotError(f"the map does not show {name!r}; {nearest(name, values)}")
        return name

    def show(self, data: Mapping[str, Any]) -> None:
        """Show these data; the candidate and what the colour shows are kept if they exist there."""
        with self.hold_trait_notifications():
            self.data = dict(data)
            self.selected = self.selected if self.selected in data["names"] else ""
            self.value = self.value if self.value in data["values"] else data["value"]

    def page(self) -> str:
        """The map, as it is shown now, as a web page of its own."""
        return page({**self.data, "value": self.value, "selected": self.selected})

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        if self._table is None:
            return bundle
        figure = Figure(layout="constrained", dpi=DPI)
        _draw(self._table, self.value, self.data["title"], figure)
        data, metadata = static_twin(picture_of(figure), figure, self.data["summary"])
        return bundle[0] | data, bundle[1] | metadata


def gate_map(
    source: Any,
    *,
    value: str = "",
    utility: pd.DataFrame | None = None,
    seeds: Any = None,
    space: Any = None,
    title: str | None = None,
) -> GateMap:
    """A map of gates to point at, for JupyterLab, VS Code, Colab and marimo.

    Pointing at a cell shows its candidate; a click selects it, as do the arrow keys and Enter.

    Args:
        source: a search result or run folder; a list or mapping of several, or a folder with runs below it (their
            average); a gate table; a utility table; or a structure.
        value: the column that the colour shows at first: "prob", "alpha", "margin", "utility", "frequency" (of
            several searches), "share" (of a structure's parameters) or any numeric column; "": the first there is.
        utility: a utility table (:mod:`s3pet.utility`), as a further colour and fact.
        seeds: other searches of the same space, in any form that ``source`` has; the map says which of them choose a
            candidate. Several searches as a ``source`` are named without it.
        space: of a structure: all candidates, as a space or a table, so that the map shows what was not chosen.
        title: the heading; None: task and seed.
    """
    instance(str, "the name of a column").check(PlotError, value=value)
    optional(TEXT).check(PlotError, title=title)
    table, arguments = _read(source, utility, seeds, space)
    arguments |= {} if title is None else {"title": title}
    return GateMap(map_data(table, value=value, **arguments), as_table(table, []))


def save_html(source: Any, path: str | Path, **kwargs: Any) -> Path:
    """Save the map as one self-contained web page, which needs no kernel and loads nothing from anywhere.

    An address that ends in ``#encoder.3.attn.q:lora:1`` opens it at that candidate.

    Args:
        source: as for :func:`gate_map`; or a `GateMap`, whose state is saved.
        path: the file, ``.html``. It is replaced if it exists.
        **kwargs: as for :func:`gate_map`.

    Returns:
        The path. RunError if it cannot be written.
    """
    path = path_of(path)
    path = path if path.suffix else path.with_suffix(".html")
    shown = source if isinstance(source, GateMap) else gate_map(source, **kwargs)
    write_text(shown.page(), path)
    return path


def page(data: Mapping[str, Any]) -> str:
    """The web page of a map."""
    script = SCRIPT.read_text(encoding="utf-8") + "\nopenPage();\n"
    style = STYLE.read_text(encoding="utf-8") + PAGE_STYLE
    policy = f"script-src 'sha256-{_sha256(script)}'; style-src 'sha256-{_sha256(style)}'"
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":  # so that no text can end the element that holds it
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    words = {"title": escape(data["title"] or "Gates of a search"), "summary": escape(data["summary"])}
    return PAGE.format(policy=policy, script=script, style=style, data=text, **words)


def _sha256(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()


@styled
def _draw(table: pd.DataFrame, value: str, title: str, figure: Figure) -> Axes:
    """The map as a figure."""
    return plot_gates(table, value=value, ax=new_figure(*map_size(make_grid(table)), figure).subplots(), title=title)


def _read(source: Any, utility: Any, seeds: Any, space: Any) -> tuple[Any, dict[str, Any]]:
    """A table of candidates, or an object with one, and the arguments of `map_data` that come with it."""
    if isinstance(source, Structure):
        return _of_structure(source, space), {"utility": utility, "title": "structure", "budget": source.budget}
    table = source if isinstance(source, pd.DataFrame) else getattr(source, "gates", None)
    if isinstance(table, pd.DataFrame) and not isinstance(source, SearchResult):
        if MEASURED in table and "prob" not in table:
            return check_utility(table).reset_index(drop=True), {"utility": table, "title": str(table["task"].iloc[0])}
        return source, {"utility": utility}
    own, others = find_runs(source), [] if seeds is None else find_runs(seeds)
    known = [entry.config for entry in own]
    searches = open_runs([*own, *(entry for entry in others if entry.config not in known)])
    search = SavedSearch(searches, own[0].open() if len(own) == 1 else None)
    budget = search.result.budget.n_params
    choices = search.choices(budget) if len(searches) > 1 else None
    table = search.gates(None, budget) if search.averaged else search.result
    return table, {"utility": utility, "choices": choices, "budget": budget, "title": search.title}


def _of_structure(structure: Structure, space: Any) -> pd.DataFrame:
    """All candidates, chosen or not, and the share of the structure's parameters that each takes."""
    where = "gates" if hasattr(space, "gates") else "table"
    context = as_table(structure if space is None else space, ["site", "pet", "rank", "n_params"], at=where)
    if missing := [*set(candidate_names(structure.table())).difference(candidate_names(context))]:
        raise RunError(f"the space does not have {len(missing)} candidates of the structure, such as {missing[0]}")
    chosen = candidate_names(context).isin(structure.names)
    share = (100 * context["n_params"] / structure.n_params).where(chosen)
    plain = context.drop(columns=["alpha", "prob", "margin"], errors="ignore")
    return plain.assign(chosen=chosen, share=share)
