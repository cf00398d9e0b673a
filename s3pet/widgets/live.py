"""A search while it runs: how far it is, its gates so far, and a button that stops it and keeps the result.

`s3pet.search` runs in its cell. Meanwhile a subshell of the kernel handles the button (JupyterLab 4.4 with ipykernel 7,
or newer); interrupting the kernel (■) works everywhere. `watch` runs a search in the background, and its button works
everywhere. In the end the figure of :func:`s3pet.plots.overview.plot_search` replaces the widget.
"""

from __future__ import annotations

import functools
import html
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict
from threading import Event, Thread
from typing import Any

import ipywidgets as W
from IPython.display import display
from matplotlib.figure import Figure
from tqdm import tqdm

from s3pet.errors import SearchError
from s3pet.files.kinds import CALLABLE
from s3pet.plots.overview import plot_search
from s3pet.progress import View, describe_state
from s3pet.result import SearchResult
from s3pet.widgets.environment import at_least, in_notebook
from s3pet.widgets.panel import WRAP, Picture, static_twin

EVERY = 5.0  # seconds between two pictures of a running search
METER = "step {n_fmt} of {total_fmt}, {remaining} left"


def notebook_view() -> Live | None:
    """The view of a search in a notebook; None where there is no notebook or no ipywidgets 8."""
    return Live() if in_notebook() and at_least("ipywidgets", 8) else None


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Decorator: an error in showing the search is shown, and the search goes on."""

    @functools.wraps(method)
    def guarded(self: Live, *args: Any) -> None:
        try:
            method(self, *args)
        except Exception as error:
            self.complain(error)

    return guarded


class Live(View):
    """The live view of one search. Make it in the thread that runs the cells; only that thread draws.

    Attributes:
        panel: the widget. button, bar, text, picture: its parts.
        started: set when the search has started or failed.
    """

    def __init__(self) -> None:
        self.started, self._stop, self._display = Event(), Event(), None
        self.button = W.Button(description="Stop and keep", icon="stop", tooltip="stop here and keep the result so far")
        self.button.on_click(lambda _: self.stop())
        self.bar, self.text = W.IntProgress(0, 0, 1, layout={"width": "30%"}), W.HTML("getting ready …")
        self.picture = Picture(self.complain, Exception)
        self.panel = W.VBox([W.HBox([self.button, self.bar, self.text], layout=WRAP), self.picture])
        self._state, self._told, self._drawn = "…", 0.0, 0.0

    def stop(self) -> None:
        """Stop the search after the current step and keep its result."""
        self._stop.set()
        self.button.disabled, self.button.description = True, "stopping …"

    def conduct(self, function: Callable[[], Any]) -> Any:
        self.show()
        return function()

    @_harmless
    def show(self) -> None:
        """Display the widget, unless that has been done."""
        self._display = self._display or display(self.panel, display_id=True)
        # ipykernel 7.4 would send the click to the shell that the button last spoke from, that of the busy cell.
        # Without this note the front end chooses, and JupyterLab chooses a subshell.
        getattr(self.button.comm, "__dict__", {}).pop("_reply_subshell_id", None)

    @_harmless
    def start(self, searcher: Any) -> None:
        self.started.set()
        self._begin, self._first = time.perf_counter(), searcher.step
        self.bar.max, self.bar.value = searcher.settings.steps, searcher.step

    def advance(self, searcher: Any) -> bool:
        if time.perf_counter() - self._told > 0.2:
            self._tell(searcher)
        return self._stop.is_set()

    @_harmless
    def _tell(self, searcher: Any) -> None:
        self._told, self.bar.value = time.perf_counter(), searcher.step
        counts = {"n": searcher.step, "total": self.bar.max, "initial": self._first, "bar_format": METER}
        self.text.value = f"{tqdm.format_meter(elapsed=self._told - self._begin, **counts)} · {self._state}"

    @_harmless
    def record(self, searcher: Any) -> None:
        self._state = describe_state(searcher)
        if time.perf_counter() - self._drawn > EVERY:
            self._draw(searcher.result({**asdict(searcher.settings), "budget": searcher.budget.n_params}, {}))

    @_harmless
    def end(self) -> None:
        self.button.disabled = True

    @_harmless
    def finish(self, result: SearchResult) -> None:
        why = f", {result.metrics['stopped']}" if result.metrics.get("stopped") else ""
        text = f"{result.metrics['steps']} steps{why}: {result.structure()!r}"  # no time: it is kept in notebooks
        self.text.value = html.escape(f"{text}; {tqdm.format_interval(result.cost.seconds)}")
        self.bar.value = result.metrics["steps"]
        self._draw(result, lambda: self._replace(text))

    def _replace(self, text: str) -> None:
        """Put the picture in the place of the widget, for good."""
        if self._display is not None:
            data, metadata = static_twin(self.picture.value, self.picture.figure, text)
            self._display.update(data, metadata=metadata, raw=True)

    def complain(self, error: BaseException) -> None:
        """Show an error beside the progress."""
        with suppress(Exception):
            self.text.value = f"<b>{html.escape(f'{type(error).__name__}: {error}')}</b>"

    def _draw(self, result: SearchResult, then: Callable[[], None] = lambda: None) -> None:
        def draw(figure: Figure) -> str:
            plot_search(result, figure=figure)
            return f"search, step {len(result.history)}"

        self._drawn = time.perf_counter()
        self.picture.ask(draw, then)
        self.picture.refresh()  # now, if the search runs in the thread that draws


class Watch(Live):
    """The live view of a search in the background, and its result; made by :func:`watch`."""

    def __init__(self) -> None:
        super().__init__()
        self.future: Future[SearchResult] = Future()

    @property
    def done(self) -> bool:
        """Whether the search has ended."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> SearchResult:
        """Wait for the result; an interrupt stops the waiting, not the search.

        Args:
            timeout: seconds; None: without limit.

        Raises:
            TimeoutError: the search is still running. Any error that the search raised.
        """
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not self.done and time.monotonic() < end:
            wait([self.future], 0.1)
            self.picture.refresh()
        if not self.done:
            raise TimeoutError(f"the search is still running after {timeout} s; .stop() stops it and keeps its result")
        self.picture.refresh()
        return self.future.result()

    def __repr__(self) -> str:
        return f"Watch(step {self.bar.value} of {self.bar.max}, {'done' if self.done else 'running'})"


def watch(search: Callable[..., SearchResult], *args: Any, **kwargs: Any) -> Watch:
    """Run a search in the background and show it; the cell ends when the search has started.

    ::

        watched = s3pet.widgets.watch(s3pet.search, model, task, space, budget="0.2%")
        watched.result().structure()  # in a later cell; waits if it must

    Leave ``model`` alone while it runs, because the candidates are attached to it. Other code that draws from torch's
    global random state meanwhile changes the dropout of the search. Callbacks run in the thread of the search.

    Args:
        search: `s3pet.search`, or a function that passes ``progress`` on to it and returns its result.
        *args, **kwargs: its arguments.

    Returns:
        A handle with ``.result()``, ``.stop()`` and ``.done``.

    Raises:
        Exception: what the search raises before its first step, such as BudgetError for a budget that cannot be read.
    """
    CALLABLE.check(SearchError, search=search)
    watched = Watch()

    def run() -> None:
        try:
            watched.future.set_result(search(*args, **{**kwargs, "progress": watched}))
        except BaseException as error:
            watched.complain(error)
            watched.future.set_exception(error)
        finally:
            watched.started.set()

    watched.show()
    thread = Thread(target=run, name="s3pet-watch", daemon=True)
    thread.start()
    try:
        watched.started.wait()
    except BaseException:  # interrupted: nobody gets the handle, so the search must end
        watched.stop()
        thread.join()
        raise
    if watched.done:
        watched.result()
    return watched
