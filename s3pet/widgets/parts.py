"""Controls that several widgets share: a budget on a log scale, a message, a file that is never overwritten."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as W

from s3pet.errors import RunError, S3PetError
from s3pet.gates import Budget
from s3pet.plots.style import save_figure

FORMATS = ("pdf", "svg", "png")
NAMED: dict[str, Any] = {"style": {"description_width": "initial"}}


def budget_slider(low: int, high: int, start: int, **options: Any) -> W.FloatLogSlider:
    """A log slider over budgets in parameters; `whole` reads it."""
    slider = W.FloatLogSlider(start, min=0, max=20, description="budget", layout=W.Layout(width="420px"), **options)
    set_budgets(slider, low, high, start)
    return slider


def set_budgets(slider: W.FloatLogSlider, low: int, high: int, start: int) -> None:
    """Other ends and another value of a budget slider, whose steps meet the value: a front end rounds to steps."""
    ends = math.log10(low), math.log10(high)
    set_range(slider, *ends, start)
    way = math.log10(start) - ends[0]
    slider.step = way / max(1, round(way / 0.01)) if way > 0 else (ends[1] - ends[0]) / 200 or 0.01


def set_range(slider: Any, low: float, high: float, value: Any) -> None:
    """Other ends and another value of a slider, without passing through ends that cross."""
    if low > slider.max:
        slider.max, slider.min = high, low
    else:
        slider.min, slider.max = low, high
    slider.value = value


def whole(slider: W.FloatLogSlider, low: int, high: int) -> int:
    """The budget of a slider, in whole parameters within the ends."""
    return min(max(round(slider.value), low), high)


def describe_budget(budget: Budget, used: int, n_chosen: int) -> str:
    """A budget and what it bought, as HTML."""
    share = f"{100 * budget.fraction:.3g} % of the backbone"
    return f"<b>{budget.n_params:,}</b> parameters = {share}; {n_chosen:,} candidates use {used:,}"


def facts_table(facts: dict[str, str]) -> str:
    """Names and values, as HTML."""
    rows = (
        f"<tr><td style='opacity:.7;padding-right:1em;white-space:nowrap'>{escape(k)}</td><td>{escape(v)}</td></tr>"
        for k, v in facts.items()
    )
    return f"<table style='line-height:1.5;font-size:90%'>{''.join(rows)}</table>"


class Message(W.HTML):
    """What happened, or what is wrong, in a line."""

    def say(self, text: str) -> None:
        """Something went well."""
        self.value = escape(text)

    def complain(self, error: BaseException | str) -> None:
        """Something did not."""
        self.value = f"<span style='color:#D55E00;font-weight:bold'>{escape(str(error))}</span>"

    def clear(self) -> None:
        """Nothing to say."""
        self.value = ""


class FileRow(W.HBox):
    """A path, perhaps a format, and a button that writes there; a file that exists is left alone.

    Attributes:
        path: the text field. formats: a dropdown, or None. button: writes.
    """

    def __init__(self, label: str, start: str, write: Callable[[Path], str], message: Message, formats: bool = False):
        self.path = W.Text(start, description="to", layout=W.Layout(width="300px"), style={"description_width": "20px"})
        self.formats = W.Dropdown(options=FORMATS, layout=W.Layout(width="70px")) if formats else None
        self.button = W.Button(description=label, icon="save", layout=W.Layout(width="150px"))
        self._write, self._message = write, message
        self.button.on_click(self._on_click)
        super().__init__([self.button, self.path, *([self.formats] if self.formats else [])])

    @property
    def target(self) -> Path:
        """Where the button writes: the path, with the suffix of the format."""
        text = self.path.value.strip()
        if not text:
            raise RunError("give a path to write to, such as figures/map")
        path = Path(text).expanduser()
        if self.formats is not None:
            base = path.with_suffix("") if path.suffix[1:].lower() in FORMATS else path
            path = base.with_name(f"{base.name}.{self.formats.value}")
        elif path.suffix != ".json":
            path = path.with_name(f"{path.name}.json")
        return path

    def _on_click(self, button: Any = None) -> None:
        try:
            target = self.target
            if target.exists():
                raise RunError(f"{target} exists already and was not touched; choose another name")
            self._message.say(self._write(target))
        except (S3PetError, OSError) as error:
            self._message.complain(error)


def export_figure(figure: Any, path: Path, alt: str) -> str:
    """Write a figure in the format of the path; what was written, in words."""
    (file,) = save_figure(figure, path, [path.suffix[1:]], alt=alt)
    width, height = figure.get_size_inches()
    return f"wrote {file}: {width:.1f} × {height:.1f} inches, {file.stat().st_size / 1024:,.0f} KB"
