"""Widgets around the figures of :mod:`s3pet.plots`, made of ipywidgets and anywidget.

``widget.figure()`` draws the figure of a widget anew. Without a kernel, as on GitHub, a widget shows its last picture.

    live         watch: a search while it runs
    explorer     explore: a saved search at any budget and step, candidate by candidate
    comparison   compare: several searches of one space
    questions    ask: a prediction of the reader, its answer and the score
    lab          gate_lab: a few gates, for teaching
    interactive  gate_map: the map to point at; save_html: the same as a web page of its own
    map_data     the map in numbers and words, which both draw
    runs         the saved searches that a widget shows
    panel        what the widgets share: a picture, its controls, a budget slider, files
    environment  environment_report: what the widgets need
    page         the kernels of a web page of widgets
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3pet.widgets.comparison import Comparison as compare
    from s3pet.widgets.environment import environment_report
    from s3pet.widgets.explorer import Explorer as explore
    from s3pet.widgets.interactive import gate_map, save_html
    from s3pet.widgets.lab import GateLab as gate_lab
    from s3pet.widgets.live import watch
    from s3pet.widgets.questions import ask

__all__ = ["ask", "compare", "environment_report", "explore", "gate_lab", "gate_map", "save_html", "watch"]

_PLACES = {"compare": "comparison.Comparison", "explore": "explorer.Explorer", "gate_lab": "lab.GateLab"}
_PLACES |= {"environment_report": "environment.environment_report", "watch": "live.watch", "ask": "questions.ask"}
_PLACES |= {name: f"interactive.{name}" for name in ("gate_map", "save_html")}


def __getattr__(name: str) -> Any:  # so that the server of a page, which needs no figures, stays small
    if name not in _PLACES:
        raise AttributeError(f"module 's3pet.widgets' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(".")
    return getattr(import_module(f"s3pet.widgets.{module}"), attribute)
