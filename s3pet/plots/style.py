"""How figures look: paper, notebook or talk size, light or dark, colours for colour-blind readers, vector files.

Line widths and sizes are those of seaborn's contexts. Plotting functions draw in the style in use and leave
matplotlib's settings as they were; only `figure_style` changes these.

The colours of all figures follow one grammar, in which a colour has one meaning:

- **How much** (probabilities, shares, overlaps, utilities, scores): cividis, from dark (low) to bright (high), on light
  and dark pages alike. Pale cells have no value; hatched places have no candidate.
- **More or less** (margins, differences): orange above 0, purple below, the colour of the page at 0. Nothing else is
  orange.
- **PET modules**: `PET_COLOURS`. **Kinds of structures**: `KINDS`, each with a marker too; red is what a search found,
  grey is random. The two share no colour.
- **Outlines**: black for what was chosen, red for the one candidate that the reader picked.
- **Chance**: grey; a band reaches as far as 95 % of what chance gives.
- **Lines without a meaning of their own** (seeds, made-up candidates): ink and grey or, if there are many, `PALETTE`,
  which a legend must name.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from s3pet.errors import PlotError, nearest
from s3pet.files.columns import checked_columns
from s3pet.files.kinds import FLAG, POSITIVE, SEED, TEXT, Kind, instance, number, one_of, optional, several, whole
from s3pet.files.reading import path_of

PALETTE = ["#0173B2", "#029E73", "#A8326E", "#CC78BC", "#CA9161", "#949494", "#C9B800", "#56B4E9"]  # no orange
PET_COLOURS = {"lora": "#0173B2", "lnfit": "#029E73", "bitfit": "#CC78BC", "lowrank_adapter": "#56B4E9"}
PET_COLOURS |= {"adapter": "#00767A"}
GREY = "#949494"
KINDS = {"searched": ("o", "#C4262E"), "manual": ("^", "#8A8A1F"), "rules": ("^", "#8A8A1F"), "random": ("s", GREY)}
KINDS |= {"sensitivity": ("v", "#CA9161"), "heuristic": ("P", "#B59B00"), "adalora": ("X", "#4F6B7D")}
OTHER = ("D", "#8FA6B2")
MARKERS = "os^DvPX<>phd"  # of lines without a meaning of their own
PICKED = "#E8112D"  # the frame of the candidate that the reader picked
PETS = {"lora": "LoRA", "lnfit": "LNFit", "bitfit": "BitFit", "lowrank_adapter": "low-rank", "adapter": "bottleneck"}
DIVERGING = ("margin", "difference")  # columns with colours and limits that are symmetric around 0
SEARCH = ("step", "seed", "task", "budget")  # a figure shows one search, so a table has one value of each

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Style:
    """Sizes and colours of figures."""

    name: str  # of seaborn's context
    font: float  # size of tick labels, in points
    column: float  # width of a narrow figure, in inches
    page: float  # width of the widest figure
    ground: str = "white"  # background
    ink: str = "black"  # text
    grey: str = "#5A5A5A"  # axes
    faint: str = "#B0B0B0"  # hatching
    pale: str = "#F2F2F2"  # empty areas
    dark: bool = False

    @property
    def scale(self) -> float:
        """Lengths in this style divided by those in a paper."""
        return self.font / 7.5

    @property
    def widest(self) -> float:
        """Width of the widest figure in inches of a paper, which `new_figure` scales."""
        return self.page / self.scale

    def colours(self, value: str) -> str:
        """Name of the colours for a column."""
        return "cividis" if value not in DIVERGING else DARK_DIFFERENCES if self.dark else "PuOr_r"

    @property
    def hatching(self) -> dict[str, Any]:
        """Look of a place without a value."""
        return {"facecolor": "none", "edgecolor": self.faint, "linewidth": 0, "hatch": "//////"}

    @property
    def band(self) -> dict[str, Any]:
        """Look of the range that chance gives."""
        return {"color": self.ink, "alpha": 0.13, "linewidth": 0}

    @property
    def settings(self) -> dict[Any, Any]:
        """The style as matplotlib's rcParams, without a font: that is looked up only when a figure is saved."""
        size = self.font / sns.plotting_context(self.name)["xtick.labelsize"]
        settings = sns.plotting_context(self.name, font_scale=size) | sns.axes_style("ticks")
        settings = {name: value for name, value in settings.items() if name not in ("font.family", "font.sans-serif")}
        settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "patch.edgecolor"), self.ground)
        settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), self.ink)
        settings |= dict.fromkeys(("xtick.major.size", "ytick.major.size"), 3 * self.scale)
        settings |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
        settings |= {"font.size": self.font, "axes.titlesize": 1.27 * self.font, "legend.title_fontsize": self.font}
        settings |= {"axes.edgecolor": self.grey, "grid.color": self.faint, "hatch.linewidth": 0.5 * self.scale}
        settings |= {"legend.borderaxespad": 0, "legend.labelspacing": 0.3, "image.cmap": "cividis"}
        return settings | {"patch.force_edgecolor": False}


STYLES = {
    "paper": Style("paper", 7.5, 3.35, 6.9),
    "notebook": Style("notebook", 9.0, 5.0, 9.6),
    "talk": Style("talk", 13.0, 6.4, 12.8),
}
DARK: dict[str, Any] = {"ground": "#16191D", "ink": "#F0F0F0", "grey": "#A8ADB3", "faint": "#565C64", "pale": "#262B31"}
DARK_DIFFERENCES = "purple_dark_orange"
_parts = [mpl.colormaps["PuOr_r"](0.25), DARK["ground"], mpl.colormaps["PuOr_r"](0.72)]  # the light ones, without white
mpl.colormaps.register(LinearSegmentedColormap.from_list(DARK_DIFFERENCES, _parts), force=True)
_current = STYLES["notebook"]
_lock = RLock()  # matplotlib's settings are shared by all threads


class _Use(AbstractContextManager[Style]):
    """Use a style. Leaving the block restores the one before and those of matplotlib's settings that have changed."""

    def __init__(self, style: Style):
        global _current
        self.style, self.before, settings = style, _current, style.settings
        self.settings = {name: mpl.rcParams[name] for name in settings}
        _current = style
        mpl.rcParams.update(settings)

    def __enter__(self) -> Style:
        return self.style

    def __exit__(self, *exception: Any) -> None:
        global _current
        _current = self.before
        mpl.rcParams.update(self.settings)


def figure_style(name: str = "notebook", *, dark: bool = False) -> AbstractContextManager[Style]:
    """Choose how figures look: from now on, or inside a ``with`` block only.

    Figures of your own get the same look, because this also changes matplotlib's settings, except for the font. ::

        with s3pet.plots.figure_style("paper") as style:
            ax = plt.subplots(figsize=(style.column, 3), layout="constrained")[1]
            s3pet.plot_gates(result, ax=ax)

    Args:
        name: ``"paper"`` (7.5 points; a column of 3.35 inches, a page of 6.9), ``"notebook"`` (9 points, 5.0 and 9.6
            inches; in use from the start) or ``"talk"`` (13 points, 6.4 and 12.8 inches).
        dark: light text on a dark background.
    """
    FLAG.check(PlotError, dark=dark)
    if not one_of(STYLES).holds(name):
        raise PlotError(f"Figure style {name!r} is not known; {nearest(name, STYLES)}.")
    return _Use(replace(STYLES[name], dark=True, **DARK) if dark else STYLES[name])


def style() -> Style:
    """The style in use."""
    return _current


ARGUMENTS: dict[str, Kind] = {  # of all figures, by name
    "ax": optional(instance(Axes, "Axes of matplotlib")),
    "names": Kind("two texts", lambda v: isinstance(v, tuple | list) and len(v) == 2 and all(map(TEXT.holds, v))),
    "figure": optional(instance(Figure, "a figure of matplotlib")),
    **dict.fromkeys(("title", "metric"), optional(instance(str, "a text"))),
    **dict.fromkeys(("cbar", "relative", "ranks"), FLAG),
    **dict.fromkeys(("vmin", "vmax"), optional(number())),
    **dict.fromkeys(("budget", "columns"), optional(whole(1))),
    **{"top": whole(), "highlight": whole(), "scale": POSITIVE, "limit": optional(POSITIVE)},
    **{"temperature": POSITIVE, "sample_temperature": POSITIVE, "of": whole(), "seed": SEED, "full": TEXT},
}


def styled(function: Function) -> Function:
    """Decorator: check arguments that figures share, and draw in the style in use.

    The function returns Axes, or several in one figure.
    """

    @functools.wraps(function)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs.keys() & ARGUMENTS.keys():
            ARGUMENTS[name].check(PlotError, **{name: kwargs[name]})
        with _lock, _Use(_current):
            if isinstance(ax := kwargs.get("ax"), Axes) and _current.dark:
                _darken(ax)
            axes = function(*args, **kwargs)
            for ax in figure_of(np.ravel(axes)[0]).axes:
                for axis in (ax.xaxis, ax.yaxis):  # most ticks are made when the figure is saved, as copies of these
                    axis.get_minor_ticks(1)
                    axis.set_tick_params(labelsize=axis.get_major_ticks(1)[0].label1.get_fontsize())
        return axes

    return drawn  # type: ignore[return-value]


def _darken(ax: Axes) -> None:
    """Give Axes that were made without the style its colours; light text needs a dark background."""
    figure_of(ax).set_facecolor(_current.ground)
    ax.set_facecolor(_current.ground)
    ax.tick_params(which="both", colors=_current.ink)
    ax.spines[:].set_edgecolor(_current.grey)
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        text.set_color(_current.ink)


def new_axes(width: float | None = None, height: float = 3.0) -> Axes:
    """Axes of a new figure; ``width`` (None: a column) and ``height`` in inches of a paper, scaled by the style."""
    return new_figure(_current.column / _current.scale if width is None else width, height).subplots()


def new_figure(width: float, height: float, figure: Figure | None = None) -> Figure:
    """An empty figure of this size in inches of a paper, scaled by the style; or ``figure``, emptied and resized."""
    figure = plt.figure() if figure is None else figure
    figure.clear()
    figure.set_layout_engine("constrained")
    figure.set_size_inches(width * _current.scale, height * _current.scale)
    figure.set_facecolor(_current.ground)
    return figure


def figure_of(ax: Axes) -> Figure:
    """The figure that Axes belong to, also through subfigures."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def as_table(source: Any, columns: Iterable[str], *, at: str = "gates", one: Iterable[str] = SEARCH) -> pd.DataFrame:
    """Read a table, ``source`` or its attribute or method ``at``, and check that the columns ``one`` have one value."""
    table = source if isinstance(source, pd.DataFrame) else getattr(source, at, None)
    table = table() if callable(table) else table
    if not isinstance(table, pd.DataFrame):
        raise PlotError(f"Expected a DataFrame or an object with .{at}, got {type(source).__name__}.")
    missing = [f"{name!r} ({nearest(name, map(str, table))})" for name in columns if name not in [*table]]
    if missing or table.empty:
        problem = f"has no column {', '.join(missing)}" if missing else "is empty"
        raise PlotError(f"The table {problem}: {len(table)} rows with columns {list(table)}.")
    table = checked_columns(table, PlotError, [*columns, *one, "metric", "budget", "pairs", "score"])
    for name in one:
        if name in table and (n := table[name].nunique()) > 1:
            last = table[name].tolist()[-1]
            raise PlotError(f"The table mixes {n} values of {name!r}; pick one: table[table[{name!r}] == {last!r}].")
    return table


def flag(table: pd.DataFrame, name: str) -> pd.Series:
    """A Boolean column; False where it is missing."""
    return table[name].fillna(False).astype(bool) if name in table else pd.Series(False, table.index)


def value_limits(*tables: Any, value: str = "prob") -> tuple[float, float]:
    """Colour limits ``(vmin, vmax)`` that several maps can share, from 0 or, for margins and differences, around 0."""
    columns = [as_table(table, [value], one=())[value] for table in tables]
    values = np.concatenate([column.to_numpy(float, na_value=np.nan) for column in columns])
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = min(0.0, float(np.nanmin(values))), 1.0 if value == "frequency" else float(np.nanmax(values))
    if value in DIVERGING:
        low, high = -max(high, -low), max(high, -low)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def save_figure(
    figure: Axes | Figure, path: str | Path, formats: Sequence[str] = ("png", "pdf"), *, alt: str | None = None
) -> list[Path]:
    """Save to ``path``.<format> for each format and return the files. The same drawing gives the same bytes.

    PNG has 200 dots per inch; PDF embeds its fonts; SVG keeps text as text, in a font of the viewer. ``alt``, such as
    `describe` returns, is kept in the file as its description (PNG, SVG) or subject (PDF).
    """
    instance((Axes, Figure), "a figure, or Axes in it").check(PlotError, figure=figure)
    optional(TEXT).check(PlotError, alt=alt)
    figure = figure_of(figure) if isinstance(figure, Axes) else figure
    known, base = figure.canvas.get_supported_filetypes(), path_of(path, PlotError)
    several(one_of(known)).check(PlotError, formats=formats)
    base = base.with_suffix("") if base.suffix[1:].lower() in known else base
    base.parent.mkdir(parents=True, exist_ok=True)
    paths = [base.with_name(f"{base.name}.{name}") for name in formats]
    for name, file in zip(formats, paths, strict=True):
        file.write_bytes(figure_file(figure, name, alt))
    return paths


def figure_file(figure: Figure, name: str, alt: str | None = None) -> bytes:
    """The content of a file of one format, as `save_figure` writes it; PlotError for an unknown format."""
    if name not in (known := figure.canvas.get_supported_filetypes()):
        raise PlotError(f"Expected a format out of {', '.join(known)}; got {name!r}.")
    metadata: dict[str, dict[str, Any]] = {"png": {"Description": alt}, "svg": {"Date": None, "Description": alt}}
    metadata["pdf"] = {"CreationDate": None, "Subject": alt}
    with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "s3pet"}):
        ground, file = figure.get_facecolor(), io.BytesIO()
        figure.savefig(file, format=name, dpi=200, bbox_inches="tight", facecolor=ground, metadata=metadata.get(name))
    return file.getvalue()
