"""Widgets around the figures of :mod:`s3pet.plots`, made of ipywidgets and anywidget.

``widget.figure()`` draws the figure of a widget anew. Without a kernel, as on GitHub, a widget shows its last picture.

    live         watch: a search while it runs
    explorer     explore: a saved search at any budget and step, candidate by candidate
    comparison   compare: several searches of one space
    lab          gate_lab: a few gates, for teaching
    interactive  gate_map: the map to point at; save_html: the same as a web page of its own
    map_data     the map in numbers and words, which both draw
    runs         the saved searches that a widget shows
    panel        what the widgets share: a picture, its controls, a budget slider, files
    environment  environment_report: what the widgets need
"""

from s3pet.widgets.comparison import Comparison as compare
from s3pet.widgets.environment import environment_report
from s3pet.widgets.explorer import Explorer as explore
from s3pet.widgets.interactive import gate_map, save_html
from s3pet.widgets.lab import GateLab as gate_lab
from s3pet.widgets.live import watch

__all__ = ["compare", "environment_report", "explore", "gate_lab", "gate_map", "save_html", "watch"]
