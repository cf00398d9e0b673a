"""How a running search is shown: a bar in a terminal, a live figure in a notebook, nothing on request.

A view is told of every step and every record. It decides one thing only: whether to stop and keep what was found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from s3pet.result import SearchResult

T = TypeVar("T")


class View:
    """Shows nothing. Other views override what they need; all get the ``Searcher``."""

    def conduct(self, function: Callable[[], T]) -> T:
        """Run the search; a view may choose the thread."""
        return function()

    def start(self, searcher: Any) -> None:
        """Before the first step."""

    def advance(self, searcher: Any) -> bool:
        """After every step; True stops the search, which keeps what it has found."""
        return False

    def record(self, searcher: Any) -> None:
        """After every record: losses, probabilities and ``settled`` are up to date."""

    def end(self) -> None:
        """After the last step, also when an error or an interrupt made it the last."""

    def finish(self, result: SearchResult) -> None:
        """The result is there."""


class Bar(View):
    """A tqdm bar with loss, expected sampled parameters, and how settled the structure is."""

    bar: Any = None

    def start(self, searcher: Any) -> None:
        self.bar = tqdm(total=searcher.settings.steps, initial=searcher.step, desc="search")

    def advance(self, searcher: Any) -> bool:
        self.bar.update()
        return False

    def record(self, searcher: Any) -> None:
        self.bar.set_postfix_str(describe_state(searcher), refresh=False)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()


def describe_state(searcher: Any) -> str:
    """One line: loss, what the sampled gates are expected to cost, how settled the structure is."""
    budget, last = searcher.budget.n_params, searcher.history[-1]
    sampled, warm = searcher.sampling_gap() * budget, searcher.step <= searcher.settings.warmup
    loss = f"warming up, loss {last['loss_train']:.3f}" if warm else f"loss {last['loss_val']:.3f}"
    return f"{loss}, sampled {sampled:,.0f} of {budget:,} parameters, settled {searcher.settled:.2f}"


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, which can show widgets."""
    found = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(found, "kernel", None) is not None


def make_view(progress: bool | View) -> View:
    """The view that ``progress`` asks for: True is a live figure in a notebook, a bar elsewhere.

    The live view is a widget, from a room above this one; it is reached by its name, and only in a notebook.
    """
    if isinstance(progress, View):
        return progress
    if not progress:
        return View()
    return import_module("s3pet.widgets.live").Live() if in_notebook() else Bar()
