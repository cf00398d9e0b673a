"""How figures look: three sizes, light or dark, colours that colour-blind readers can tell apart, vector files.

A style changes s3pet's figures only; matplotlib's own settings are never touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s3pet.errors import PlotError, nearest

# Okabe and Ito (2008): told apart by readers with any of the usual colour deficiencies, on white and on black.
PET_COLOURS = {"lora": "#0072B2", "lnfit": "#009E73", "bitfit": "#E69F00", "lowrank_adapter": "#D55E00"}
PET_COLOURS |= {"adapter": "#CC79A7"}
KINDS = {
    "searched": ("o", "#0072B2"),
    "manual": ("^", "#D55E00"),
    "rules": ("^", "#D55E00"),
    "random": ("s", "#7F7F7F"),
    "sensitivity": ("v", "#CC79A7"),
    "heuristic": ("P", "#8C6D1F"),
    "adalora": ("X", "#56B4E9"),
}
OTHER = ("D", "#009E73")
PETS = {"lora": "LoRA", "lnfit": "LNFit", "bitfit": "BitFit", "lowrank_adapter": "low-rank", "adapter": "bottleneck"}

SEARCH = ("step", "seed", "task", "budget")  # a figure shows one search, so one value of each

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Style:
    """Sizes and colours of figures.

    Attributes:
        name: "paper", "talk" or "notebook".
        font: size of tick labels, in points; everything else follows.
        column, page: widths of a narrow and of the widest figure, in inches.
        dark: light ink on a dark ground.
    """

    name: str
    font: float
    column: float
    page: float
    dark: bool = False

    @property
    def scale(self) -> float:
        """Lengths relative to those of a paper."""
        return self.font / 7.5

    @property
    def ground(self) -> str:
        """Background."""
        return "#16191D" if self.dark else "white"

    @property
    def ink(self) -> str:
        """Text and outlines."""
        return "#F0F0F0" if self.dark else "black"

    @property
    def grey(self) -> str:
        """Axes, rules and leaders."""
        return "#A8ADB3" if self.dark else "#5A5A5A"

    @property
    def faint(self) -> str:
        """Hatching and grids."""
        return "#565C64" if self.dark else "#B0B0B0"

    @property
    def pale(self) -> str:
        """Areas that say: here, but nothing."""
        return "#262B31" if self.dark else "#F2F2F2"

    @property
    def settings(self) -> dict[Any, Any]:
        """The style as matplotlib's rcParams."""
        made: dict[Any, Any] = dict.fromkeys(("font.size", "xtick.labelsize", "ytick.labelsize"), self.font)
        made |= {"legend.fontsize": self.font, "axes.labelsize": 1.07 * self.font, "axes.titlesize": 1.27 * self.font}
        made |= {"legend.frameon": False, "legend.borderaxespad": 0, "legend.labelspacing": 0.3}
        made |= {"hatch.linewidth": 0.5 * self.scale, "lines.linewidth": 1.2 * self.scale}
        made |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.ground)
        made |= dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), self.ink
        )
        return made | {"axes.edgecolor": self.grey, "axes.spines.top": False, "axes.spines.right": False}


STYLES = {
    "paper": Style("paper", 7.5, 3.35, 6.9),
    "notebook": Style("notebook", 9.0, 5.0, 9.6),
    "talk": Style("talk", 13.0, 6.4, 12.8),
}
_now = STYLES["notebook"]
_drawing = RLock()


class _Restore(AbstractContextManager["Style"]):
    def __init__(self, style: Style, before: Style):
        self.style, self.before = style, before

    def __enter__(self) -> Style:
        return self.style

    def __exit__(self, *exception: Any) -> None:
        global _now
        _now = self.before


def figure_style(name: str = "notebook", *, dark: bool = False) -> AbstractContextManager[Style]:
    """Choose how s3pet's figures look: from now on, or inside a ``with`` block only.

    ::

        with s3pet.figure_style("paper") as style:
            ax = plt.subplots(figsize=(style.column, 3), layout="constrained")[1]
            s3pet.plot_gates(result, ax=ax)

    Args:
        name: ``"paper"`` (7.5 points; a column of 3.35 inches, a page of 6.9), ``"notebook"`` (9 points, 5.0 and 9.6
            inches; the default), ``"talk"`` (13 points, 6.4 and 12.8 inches).
        dark: light ink on a dark ground, for a dark JupyterLab or dark slides.

    Raises:
        PlotError: unknown name.
    """
    global _now
    if name not in STYLES:
        raise PlotError(f"Figure style {name!r} is not known; {nearest(name, STYLES)}.")
    before, _now = _now, replace(STYLES[name], dark=dark)
    return _Restore(_now, before)


def style() -> Style:
    """The style in use."""
    return _now


def styled(function: Function) -> Function:
    """Decorator: draw in the style in use, leaving matplotlib's settings as they were.

    One figure at a time: a search that is watched draws in a thread of its own.
    """

    @functools.wraps(function)
    def drawn(*args: Any, **options: Any) -> Any:
        with _drawing, mpl.rc_context(_now.settings):
            if isinstance(ax := options.get("ax"), Axes) and _now.dark:
                _darken(ax)
            return function(*args, **options)

    return drawn  # type: ignore[return-value]


def _darken(ax: Axes) -> None:
    """The ground and ink of the style on Axes that were made without it."""
    figure_of(ax).set_facecolor(_now.ground)
    ax.set_facecolor(_now.ground)
    ax.tick_params(which="both", color=_now.ink, labelcolor=_now.ink)
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        text.set_color(_now.ink)
    for spine in ax.spines.values():
        spine.set_edgecolor(_now.grey)


def new_axes(width: float | None = None, height: float = 3.0) -> Axes:
    """Axes of a new figure; ``width`` (None: a column of the style) and ``height`` in inches at the size of a paper."""
    wide = _now.column if width is None else width * _now.scale
    return plt.subplots(figsize=(wide, height * _now.scale), layout="constrained")[1]


def new_figure(width: float, height: float, figure: Figure | None = None) -> Figure:
    """An empty figure of this size in inches at the size of a paper, or ``figure``, emptied and resized."""
    size = width * _now.scale, height * _now.scale
    if figure is None:
        return plt.figure(figsize=size, layout="constrained")
    figure.clear()
    figure.set_layout_engine("constrained")
    figure.set_size_inches(size)
    figure.set_facecolor(_now.ground)
    return figure


def figure_of(ax: Axes) -> Figure:
    """The figure an Axes belongs to, through any nesting of subfigures."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def as_table(given: Any, columns: Iterable[str], *, at: str = "gates", one: Iterable[str] = SEARCH) -> pd.DataFrame:
    """The table ``given`` or at its attribute; it has all ``columns`` and no two values in a column of ``one``."""
    table = given if isinstance(given, pd.DataFrame) else getattr(given, at, None)
    table = table() if callable(table) else table
    if not isinstance(table, pd.DataFrame):
        raise PlotError(f"Expected a DataFrame or an object with .{at}, got {type(given).__name__}.")
    missing = [f"{name!r} ({nearest(name, map(str, table))})" for name in columns if name not in table]
    if missing or table.empty:
        lack = f"has no column {', '.join(missing)}" if missing else "is empty"
        raise PlotError(f"The table {lack}: {len(table)} rows with columns {list(table)}.")
    for name in one:
        if name in table and (n := table[name].nunique()) > 1:
            last = table[name].tolist()[-1]
            raise PlotError(f"The table mixes {n} values of {name!r}; pick one: table[table[{name!r}] == {last!r}].")
    return table


def flag(table: pd.DataFrame, name: str) -> pd.Series:
    """A boolean column; False where it is missing."""
    return table[name].fillna(False).astype(bool) if name in table else pd.Series(False, table.index)


def save_figure(
    figure: Axes | Figure, path: str | Path, formats: Sequence[str] = ("png", "pdf"), *, alt: str | None = None
) -> list[Path]:
    """Save to ``path`` in each format (a known suffix of ``path`` is dropped) and return the files; PNG at 200 dpi.

    PDF embeds TrueType fonts (type 42; publishers refuse type 3). SVG keeps text as text, to be searched, edited and
    read aloud, at the price of the viewer's font: take PDF where the look must not change. The same
    drawing gives the same bytes. ``alt``, such as `describe` gives, is kept in the file, as its description (PNG,
    SVG) or subject (PDF).
    """
    figure = figure_of(figure) if isinstance(figure, Axes) else figure
    known, base = figure.canvas.get_supported_filetypes(), Path(path)
    if isinstance(formats, str) or not set(formats) <= set(known):
        raise PlotError(f"Expected a list of formats out of {', '.join(known)}; got {formats!r}.")
    base = base.with_suffix("") if base.suffix[1:].lower() in known else base
    base.parent.mkdir(parents=True, exist_ok=True)
    paths = [base.with_name(f"{base.name}.{name}") for name in formats]
    about: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    if alt:
        about["pdf"]["Subject"] = about["svg"]["Description"] = about["png"]["Description"] = alt
    with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "s3pet"}):
        for name, file in zip(formats, paths, strict=True):
            ground = figure.get_facecolor()
            figure.savefig(file, dpi=200, bbox_inches="tight", facecolor=ground, metadata=about.get(name))
    return paths
