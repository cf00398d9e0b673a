"""A matplotlib figure in an Image widget.

No pyplot and no JavaScript of our own: the figure is drawn with Agg, so that a background thread may do it, and sent
as PNG. What moves while a slider is dragged is drawn over a kept background, which takes milliseconds where drawing the
whole figure takes tenths of a second.
"""

from __future__ import annotations

import io
import textwrap
from base64 import b64encode
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import ipywidgets as W
import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from traitlets import Unicode

from s3pet.plots.style import figure_style, style

DPI = 96


class Picture(W.Image):
    """An Image that may have a tooltip: ipywidgets 8 fails to show one on a widget without a description."""

    description = Unicode("").tag(sync=True)


class Canvas:
    """A figure and the widget that shows it.

    Attributes:
        figure: draw in it, inside ``with canvas.look():``, then call `show`.
        widget: the ``ipywidgets.Image``.
        alt: what it shows, in words.
    """

    def __init__(self, width: float = 6.4, height: float = 4.8):
        self._style = style()
        self.figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=style().ground)
        self._agg = FigureCanvasAgg(self.figure)
        self.alt = ""
        self.widget = Picture(
            format="png", layout=W.Layout(max_width="100%", object_fit="contain", align_self="flex-start")
        )
        self._moving: Sequence[Artist] = ()
        self._background: Any = None

    def clear(self) -> Figure:
        """An empty figure."""
        self.figure.clear()
        self.figure.set_layout_engine("constrained")
        self.figure.set_facecolor(style().ground)
        return self.figure

    def look(self) -> AbstractContextManager[Any]:
        """The figure style in which this canvas was made, whatever is in use now: one picture has one style."""
        return figure_style(self._style.name, dark=self._style.dark)

    def show(self, moving: Sequence[Artist] = (), *, alt: str = "") -> None:
        """Draw everything and send it; ``moving`` artists are those that `move` will draw again.

        Args:
            moving: artists of the figure, drawn last, in this order.
            alt: what the picture shows, in words; its beginning is the tooltip, which screen readers read.
        """
        for artist in moving:
            artist.set_animated(True)
        self._moving = moving
        with mpl.rc_context(self._style.settings):  # ticks are made when they are drawn
            self._agg.draw()
        self.figure.set_layout_engine("none")  # settled: moving artists must not shift the rest
        self._background = self._agg.copy_from_bbox(self.figure.bbox)
        self.move(alt=alt)

    def move(self, *, alt: str = "") -> None:
        """Draw the moving artists anew over the kept background and send the picture."""
        self._agg.restore_region(self._background)
        for artist in self._moving:
            if artist.axes is not None:
                artist.axes.draw_artist(artist)
            else:
                self.figure.draw_artist(artist)
        self.alt, self.widget.tooltip = alt, textwrap.shorten(alt, 200, placeholder=" …") or None
        self.widget.value = self.png()

    def png(self, compression: int = 1) -> bytes:
        """What is shown now, as PNG: quick to make (1) or small (9)."""
        from PIL import Image

        file = io.BytesIO()
        image = Image.fromarray(np.asarray(self._agg.buffer_rgba())).convert("RGB")
        image.save(file, "PNG", compress_level=compression)
        return file.getvalue()


class Panel(W.VBox):
    """A widget whose saved form is its picture.

    A front end that runs widgets shows the widget; GitHub, nbconvert and a reader without the kernel get what its
    canvas showed when the cell ended.
    """

    canvas: Canvas

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None and self.canvas.widget.value:
            data["image/png"] = b64encode(self.canvas.widget.value).decode()
            data["text/plain"] = self.canvas.alt or f"{type(self).__name__}()"
        return bundle
