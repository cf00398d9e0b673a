"""What the widgets share: a figure in an Image widget, controls around it, a budget slider, and files to write.

matplotlib's settings are shared by all threads, but a search in the background has its own thread, and JupyterLab may
handle sliders and buttons in another thread than the one that runs the cells. A picture is therefore drawn only in the
thread that made it, while no cell runs there. A request that is overtaken by a newer one is never drawn.
"""

from __future__ import annotations

import asyncio
import io
import math
import mimetypes
import textwrap
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W
import matplotlib as mpl
from matplotlib.figure import Figure
from traitlets import Unicode

from s3pet.errors import RunError, S3PetError
from s3pet.files.writing import writing
from s3pet.plots.style import figure_file, figure_style, style
from s3pet.result import SearchResult
from s3pet.widgets.environment import on_page

IDLE = "<i>A page that is not used for some minutes no longer answers; then load it again.</i>"
WRAP = W.Layout(flex_flow="row wrap", align_items="center")
DPI = 96  # pixels of a page for an inch of a figure
DENSITY = 2  # pixels of a file for each of these, so that pictures are sharp on today's screens
Draw = Callable[[Figure], str]  # draws in an empty figure and returns what that shows, in words


def picture_of(figure: Figure) -> bytes:
    """A figure as a PNG file, as large as its widget shows it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI * DENSITY, pil_kwargs={"compress_level": 1})
    return file.getvalue()


def static_twin(picture: bytes, figure: Figure, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata that stand for a widget without a kernel: its picture, the size of that, and words."""
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    data = {"image/png": b64encode(picture).decode(), "text/plain": text}
    return data, {"image/png": {"width": width, "height": height}}


class Picture(W.Image):
    """An Image widget that shows a figure, in the figure style in use when it was made.

    Attributes:
        figure: what is shown. alt: the same in words; the tooltip is its beginning, for screen readers.
    """

    description = Unicode("").tag(sync=True)  # ipywidgets 8 cannot show a tooltip on a widget without a description

    def __init__(self, report: Callable[[Exception], None], errors: type[Exception] = S3PetError):
        """Errors of this type in drawing are passed to ``report``; the picture then stays as it was."""
        super().__init__(
            format="png", layout={"max_width": "100%", "object_fit": "contain", "align_self": "flex-start"}
        )
        self.figure, self.alt, self._style, self._report, self._errors = Figure(), "", style(), report, errors
        self._requests: deque[tuple[Draw, Callable[[], None]]] = deque(maxlen=1)
        self._thread, self._loop = threading.get_ident(), None
        with suppress(RuntimeError):  # there is no event loop outside a notebook
            self._loop = asyncio.get_running_loop()

    def ask(self, draw: Draw, then: Callable[[], None] = lambda: None) -> None:
        """Ask for a new picture, from any thread; ``then`` is called when it is shown."""
        self._requests.append((draw, then))
        self.call(self.refresh)

    def call(self, function: Callable[[], None]) -> None:
        """Call a function that draws when the event loop of the notebook is free; without a loop, at once."""
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(function)
        else:
            function()

    def refresh(self) -> None:
        """Draw the newest request now. Without one, or in another thread, do nothing."""
        if threading.get_ident() != self._thread or not self._requests:
            return
        draw, then = self._requests.pop()
        with figure_style(self._style.name, dark=self._style.dark), mpl.rc_context(self._style.settings):
            try:
                figure = Figure(layout="constrained", dpi=DPI)
                alt = draw(figure)
                picture = picture_of(figure)
            except self._errors as error:
                self._report(error)
                return
        self.width = str(round(DPI * figure.get_figwidth()))  # on the page
        self.figure, self.alt, self.value = figure, alt, picture
        self.tooltip = textwrap.shorten(alt, 200, placeholder=" …") or None
        then()


class Panel(W.VBox):
    """Controls and a picture. GitHub, nbconvert and readers without a kernel see the picture.

    Subclasses have ``_update(control)``, which sets everything but the picture after a control has changed, and
    ``_draw(figure)``, which draws what the controls say and returns it in words.

    Attributes:
        picture: shows the figure. message: what was written, or what went wrong.
    """

    def __init__(self) -> None:
        self.message, self._busy = W.HTML(), False
        self.picture = Picture(self._complain)
        super().__init__()

    @property
    def n_params(self) -> int:
        """The budget of the slider, in parameters."""
        return self.budget.n_params

    def figure(self) -> Figure:
        """Draw what is shown as a new figure, in the figure style in use."""
        figure = Figure()
        self._draw(figure)
        return figure

    def _listen(self, *controls: W.Widget) -> None:
        """Follow the controls, as if the first had just changed."""
        for control in controls:
            control.observe(lambda change: self._follow(change["owner"]), "value")
        self._follow(controls[0])

    def _follow(self, control: W.Widget) -> None:
        if self._busy:  # the change of a control changes others, which needs no answer
            return
        self._busy, self.message.value = True, ""
        try:
            self._update(control)
            self._show()
        except S3PetError as error:
            self._complain(error)
        finally:
            self._busy = False

    def _show(self) -> None:
        self.picture.ask(self._draw)

    def _complain(self, error: BaseException) -> None:
        self.message.value = f"<span style='color:#D55E00;font-weight:bold'>{escape(str(error))}</span>"

    def _spent(self, result: SearchResult) -> str:
        share = 100 * self.n_params / result.space.backbone_params
        return f"<b>{self.n_params:,}</b> parameters = {share:.3g} % of the backbone"

    def _export(self, kind: str) -> tuple[bytes, str]:
        figure = Figure()
        content = figure_file(figure, kind, self._draw(figure))
        return content, f"{len(content) / 1024:,.0f} KB"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self.picture.refresh()
        bundle = super()._repr_mimebundle_(**kwargs)
        if not self.picture.value:
            return bundle
        data, metadata = static_twin(self.picture.value, self.picture.figure, self.picture.alt)
        return bundle | data, metadata


def control(kind: type[W.Widget], description: str, width: int = 250, label: str = "initial", **kwargs: Any) -> Any:
    """A control of some kind; its description is shown in full. ``width`` is in pixels, ``label`` the description's."""
    look = {} if kind is W.Button else {"description_width": label}
    return kind(description=description, style=look, layout={"width": f"{width}px"}, **kwargs)


class BudgetSlider(W.FloatLogSlider):
    """A budget in parameters on a log scale, from the cheapest candidate to the whole space of a search."""

    def __init__(self, result: SearchResult, **kwargs: Any):
        super().__init__(1, min=0, max=20, description="budget", readout=False, layout={"width": "420px"}, **kwargs)
        self.fit(result)

    def fit(self, result: SearchResult) -> None:
        """Take the limits and the budget of a search. The steps meet it, because a front end rounds to steps."""
        self._limits = int(result.space.costs.min()), int(result.space.costs.sum())
        low, high = map(math.log10, self._limits)
        start = min(max(result.budget.n_params, self._limits[0]), self._limits[1])
        with self.hold_trait_notifications():
            self.min, self.max, self.value = low, high, start
        above = math.log10(start) - low
        self.step = above / max(1, round(above / 0.01)) if above > 0 else (high - low) / 200 or 0.01

    @property
    def n_params(self) -> int:
        """The budget in whole parameters."""
        return min(max(round(self.value), self._limits[0]), self._limits[1])


class FileRow(W.HBox):
    """A ``button`` and the ``path`` that it writes to. A file that exists is never overwritten.

    On a web page there is no ``path`` (None): the button gives a link to download the file, and nothing is written.
    """

    def __init__(self, label: str, start: str, make: Callable[[str], tuple[bytes, str]], panel: Panel):
        """``make`` gets a format (the suffix of the path, or of ``start``); returns the file, and what it is."""
        self.button, self._start = control(W.Button, label, 150, icon="save"), Path(start)
        self.path = None if on_page() else control(W.Text, "to", 300, value=start)
        self._make, self._panel = make, panel
        self.button.on_click(lambda _: panel.picture.call(self._write))
        super().__init__([self.button] if self.path is None else [self.button, self.path])

    def _write(self) -> None:
        try:
            self._panel.message.value = self._link() if self.path is None else escape(self._save(self.path.value))
        except (S3PetError, OSError) as error:
            self._panel._complain(error)

    def _save(self, where: str) -> str:
        path = Path(where.strip()).expanduser()
        if not path.name:
            raise RunError("give a path to write to, such as figures/map.pdf")
        path = path if path.suffix else path.with_suffix(self._start.suffix)
        if path.exists():
            raise RunError(f"{path} exists already and was not changed; choose another name")
        content, what = self._make(path.suffix[1:])
        with writing(path), path.open("xb") as file:
            file.write(content)
        return f"wrote {path}: {what}"

    def _link(self) -> str:
        (content, what), name = self._make(self._start.suffix[1:]), self._start.name
        data = f"data:{mimetypes.guess_type(name)[0]};base64,{b64encode(content).decode()}"
        return f'<a download="{name}" href="{data}"><b>download {name}</b></a>: {escape(what)}'
