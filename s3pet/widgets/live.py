"""A search while it runs: how far it is, what it found so far, and a button that stops and keeps.

The search runs in a thread of its own. While a cell waits for it (`s3pet.search`), a click on the button arrives where
the front end sends such messages past the waiting cell, to a subshell (JupyterLab 4.4 with ipykernel 7, or newer);
everywhere, interrupting the kernel (■) does the same. `watch` does not wait, so its button works in every front end.

When the search is over, the widget gives way to the static figure of :func:`s3pet.plots.overview.plot_search`, which is
what a saved notebook keeps.
"""

from __future__ import annotations

import html
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict
from threading import Event, Thread
from typing import Any, TypeVar

import ipywidgets as W

from s3pet.plots.overview import plot_search
from s3pet.plots.style import style
from s3pet.progress import View, describe_state
from s3pet.result import SearchResult
from s3pet.widgets.canvas import Canvas

T = TypeVar("T")
SHARE = 0.1  # of the time at most is spent on drawing


class Live(View):
    """The live view of one search.

    Attributes:
        panel: the widget. button, bar, text: its parts. canvas: the figure.
        stopped: whether somebody asked to stop.
    """

    def __init__(self, *, background: bool = False):
        self.background, self._stop, self.ready = background, Event(), Event()
        self.button = W.Button(description="Stop and keep", icon="stop", tooltip="end here, with what was found so far")
        self.button.on_click(lambda _: self.stop())
        self.bar = W.IntProgress(0, 0, 1, layout=W.Layout(width="30%"))
        self.text = W.HTML("getting ready …")
        self.canvas = Canvas(8.0 * style().scale, 4.6 * style().scale)
        controls = W.HBox(
            [self.button, self.bar, self.text], layout=W.Layout(align_items="center", flex_flow="row wrap")
        )
        self.panel = W.VBox([controls, self.canvas.widget])
        self._handle: Any = None
        self._state = "…"  # as of the last record: it costs a pass over all candidates
        self._started, self._first, self._told, self._drawn, self._cost = 0.0, 0, 0.0, 0.0, 0.0

    @property
    def stopped(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End after the current step and keep what was found."""
        self._stop.set()
        self.button.disabled, self.button.description = True, "stopping …"

    def show(self) -> None:
        """Display the widget; in a cell."""
        from IPython.display import display

        self._handle = display(self.panel, display_id=True)
        _answer_in_subshell(self.button)

    def conduct(self, function: Callable[[], T]) -> T:
        """Run in a thread and wait, unless this is a thread in the background already."""
        if self.background:
            return function()
        self.show()
        found: dict[str, Any] = {}
        thread = Thread(target=_into, args=(function, found), name="s3pet-search", daemon=True)
        thread.start()
        while thread.is_alive():
            try:
                thread.join(0.2)
            except KeyboardInterrupt:
                self.stop()
        if "error" in found:
            raise found["error"]
        return found["value"]

    def start(self, searcher: Any) -> None:
        self._started, self._first = time.perf_counter(), searcher.step
        self.bar.max, self.bar.value = searcher.settings.steps, searcher.step
        self.ready.set()

    def advance(self, searcher: Any) -> bool:
        now = time.perf_counter()
        if now - self._told > 0.2:
            self._told, self.bar.value = now, searcher.step
            left = (now - self._started) / (searcher.step - self._first) * (searcher.settings.steps - searcher.step)
            self.text.value = f"step {searcher.step} of {searcher.settings.steps}, {_clock(left)} left · {self._state}"
        return self.stopped

    def record(self, searcher: Any) -> None:
        start, self._state = time.perf_counter(), describe_state(searcher)
        if start - self._drawn < self._cost / SHARE:
            return
        config = {**asdict(searcher.settings), "budget": searcher.budget.n_params}
        self.draw(searcher.result(config, {}))
        self._drawn = time.perf_counter()
        self._cost = self._drawn - start

    def draw(self, result: SearchResult) -> None:
        """Draw what has been found so far."""
        plot_search(result, figure=self.canvas.clear())
        self.canvas.show(alt=f"search, step {len(result.history)}")

    def end(self) -> None:
        """The last step is done: nothing is left to stop."""
        self.button.disabled = True
        self.ready.set()

    def finish(self, result: SearchResult) -> None:
        """Give way to the static figure."""
        self.draw(result)
        self.bar.value = result.metrics["steps"]
        why = f", {result.metrics['stopped']}" if result.metrics.get("stopped") else ""
        steps, seconds = f"{result.metrics['steps']} steps{why}", _clock(result.cost.seconds)
        self.text.value = html.escape(f"{steps}, {seconds}: {result.structure()!r}")
        self.panel.children = [self.text, self.canvas.widget]
        if self._handle is not None:
            picture = b64encode(self.canvas.png(9)).decode()
            self._handle.update({"image/png": picture, "text/plain": f"{steps}: {result.structure()!r}"}, raw=True)

    def fail(self, error: BaseException) -> None:
        """Say what went wrong, where the search would have been."""
        self.end()
        message = f"{type(error).__name__}: {error}"
        self.text.value = f"<b>{html.escape(message)}</b>"
        if self._handle is not None:
            self._handle.update({"text/plain": message}, raw=True)


class Watch:
    """A search in the background; made by :func:`watch`."""

    def __init__(self, live: Live, thread: Thread, found: dict[str, Any]):
        self.live, self._thread, self._found = live, thread, found

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End after the current step and keep what was found; as the button does."""
        self.live.stop()

    def result(self, timeout: float | None = None) -> SearchResult:
        """Wait for the result.

        Args:
            timeout: seconds; None: as long as it takes. Interrupting the kernel stops waiting, not the search.

        Raises:
            TimeoutError: still running. Or whatever the search raised.
        """
        self._thread.join(timeout)
        if not self.done:
            raise TimeoutError(
                f"the search is still running after {timeout} s; .stop() ends it and keeps what it found"
            )
        if "error" in self._found:
            raise self._found["error"]
        return self._found["value"]

    def __repr__(self) -> str:
        bar = self.live.bar
        return f"Watch(step {bar.value} of {bar.max}, {'done' if self.done else 'running'})"


def watch(search: Callable[..., SearchResult], *args: Any, **options: Any) -> Watch:
    """Run a search in the background and watch it; the cell ends at once, and others can be run meanwhile.

    ::

        watched = s3pet.widgets.watch(s3pet.search, model, task, space, budget="0.2%")
        watched.result().structure()  # in a later cell; waits if it must

    While it runs, leave ``model`` alone: it carries the candidates. Other code that draws from torch's global random
    state meanwhile changes the search's dropout.

    Args:
        search: `s3pet.search`, or a function that passes ``progress`` on to it and returns its result.
        *args, **options: its arguments.

    Returns:
        A handle with ``.result()``, ``.stop()`` and ``.done``.

    Raises:
        What the search raises before its first step, such as a budget that cannot be read.
    """
    live, found = Live(background=True), dict[str, Any]()

    def run() -> None:
        _into(lambda: search(*args, **{**options, "progress": live}), found)
        if "error" in found:
            live.fail(found["error"])
        live.ready.set()

    thread = Thread(target=run, name="s3pet-watch", daemon=True)
    live.show()
    thread.start()
    live.ready.wait()
    if "error" in found:
        raise found["error"]
    return Watch(live, thread, found)


def _answer_in_subshell(widget: Any) -> None:
    """Let the front end choose where a click on the widget is handled.

    ipykernel 7.4 sends it to the shell that the widget spoke from last. That is the one that waits for the search, so
    the click would be heard when nothing is left to stop. Without that note the kernel does as the front end asks.
    """
    if "_reply_subshell_id" in getattr(widget.comm, "__dict__", {}):
        del widget.comm._reply_subshell_id


def _into(function: Callable[[], Any], found: dict[str, Any]) -> None:
    try:
        found["value"] = function()
    except BaseException as error:
        found["error"] = error


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
