"""Controls around the figures, for JupyterLab: core ipywidgets only, no JavaScript of our own.

A widget draws nothing that a plain function of :mod:`s3pet.plots` does not draw, and ``widget.figure()`` gives that
figure. Without a kernel (GitHub, nbconvert) a saved widget is its last picture.

    live        watch: a search while it runs
    explorer    explore: one saved search at any budget and step, candidate by candidate
    comparison  compare: several searches of one space
    lab         gate_lab: a few gates, for teaching
    recut       a saved search, ready to be cut again at once
    shelf       the runs that a user gives, found and named
    canvas      a matplotlib figure in an Image widget
    parts       controls that several widgets share
"""

from s3pet.widgets.comparison import compare
from s3pet.widgets.explorer import explore
from s3pet.widgets.lab import gate_lab
from s3pet.widgets.live import watch

__all__ = ["compare", "explore", "gate_lab", "watch"]
