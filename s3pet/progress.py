"""How a running search is shown: nothing, a bar, or a view that somebody registered, such as the live figure.

A view hears of every step and every record. It decides one thing only: whether to stop and keep the result. Packages
register views as entry points of group ``s3pet.views``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from s3pet.errors import SearchError
from s3pet.files.kinds import FLAG

T = TypeVar("T")


class View:
    """Shows nothing. Other views override what they need. A view may stop the search, which keeps its result."""

    def conduct(self, function: Callable[[], T]) -> T:
        """Run the search, in this thread, to which the model is lent."""
        return function()

    def start(self, searcher: Any) -> None:
        """Before the first step."""

    def advance(self, searcher: Any) -> bool:
        """After every step; True stops the search."""
        return False

    def record(self, searcher: Any) -> None:
        """After every record; losses, probabilities and ``settled`` are up to date."""

    def end(self) -> None:
        """After the last step, also when an error or an interrupt ended the search."""

    def finish(self, result: Any) -> None:
        """With the result."""


class Bar(View):
    """A tqdm bar with the loss and how stable the choice is."""

    bar: Any = None

    def start(self, searcher: Any) -> None:
        self.bar = tqdm(total=searcher.settings.steps, initial=searcher.step, desc="search")
        if note := busy_note():
            self.bar.write(note)

    def advance(self, searcher: Any) -> bool:
        self.bar.update()
        return False

    def record(self, searcher: Any) -> None:
        self.bar.set_postfix_str(describe_state(searcher), refresh=False)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()


def describe_state(searcher: Any) -> str:
    """One line about a running search: the loss, and how much of the choice stayed over the last ten records."""
    last = searcher.history[-1]
    if searcher.step <= searcher.settings.warmup:
        return f"loss {last['loss_train']:.3f}, warm-up: only weights are trained"
    return f"loss {last['loss_val']:.3f}, {searcher.settled:.0%} of the choice as ten records ago"


def busy_note() -> str | None:
    """A sentence if other processes and torch together want more cores than there are, else None."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads == 1 or load < 0.5 or load + threads <= cores + 0.5:
        return None
    busy = f"This machine is busy (load {load:.1f} on {cores} cores) and torch wants {threads} threads"
    return f"{busy}, which then wait for each other; torch.set_num_threads(1) is probably faster."


def make_view(progress: bool | View) -> View:
    """The view that ``progress`` asks for; for True the first one that an entry point returns, else a bar.

    The entry points of group ``s3pet.views`` are functions that return a view, or None where it cannot be shown.
    """
    if isinstance(progress, View):
        return progress
    FLAG.check(SearchError, progress=progress)
    if not progress:
        return View()
    for entry in entry_points(group="s3pet.views"):
        with suppress(ImportError):  # what the view needs is not installed
            view = entry.load()()
            if view is not None:
                return view
    return Bar()
