"""What the figures share: finished axes with a legend below, colour bars, legible texts, one order of names."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation
from seaborn.utils import relative_luminance

from s3pet.plots.style import KINDS, OTHER, figure_of, style


def entry(label: str, **look: Any) -> Line2D:
    """A marker for a legend, or a line without a ``marker``."""
    return Line2D([], [], label=label, **{"linestyle": "" if "marker" in look else "-"} | look)


def finish_axes(ax: Axes, x: str, y: str, handles: Sequence[Any], title: str | None, caption: str = "") -> Axes:
    """Name the axes and put the legend below them, in as many columns as fit; ``caption`` is the legend's title.

    Sizes are those of the style, also on Axes that were made without it. The legend lies below all that the Axes have
    drawn so far, so call this last.
    """
    ax.set_xlabel(x, size=1.07 * style().font)
    ax.set_ylabel(y, size=1.07 * style().font)
    ax.set_title(title or "", size=1.27 * style().font)
    ax.tick_params(labelsize=style().font)
    ax.spines[["top", "right"]].set_visible(False)
    figure = figure_of(ax)
    figure.draw_without_rendering()  # settles the layout, so that the extents below are final
    frame: Any = ax.get_tightbbox() or ax.bbox  # None if the Axes are invisible
    corner = (frame.x0 - ax.bbox.x0) / figure.dpi, (frame.y0 - ax.bbox.y0) / figure.dpi - 0.05
    below: Any = ax.transAxes + ScaledTranslation(*corner, figure.dpi_scale_trans)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below}
    place |= {"title": caption or None, "title_fontsize": style().font, "alignment": "left", "columnspacing": 1}
    for columns in range(len(handles), 0, -1):
        legend = ax.legend(handles=handles, ncols=columns, handletextpad=0.4, **place)
        if legend.get_window_extent().width <= 0.97 * frame.width:  # text is wider at other resolutions
            break
    return ax


def colour_bar(
    mesh: Any, axes: Any, label: str, marks: Any = None, extend: str = "neither", where: str = "right"
) -> list[Any]:
    """A vector colour bar at the "right" or "bottom" of Axes; returns legend handles of ``marks`` (name → number)."""
    figure = figure_of(np.ravel(axes)[0])
    fraction = 0.05 if where == "right" else 0.02
    look: dict[str, Any] = {"aspect": 30, "pad": 0.02, "fraction": fraction, "extend": extend, "location": where}
    bar = figure.colorbar(mesh, ax=axes, label=label, **look)
    bar.solids.set(rasterized=False, edgecolor="face")  # type: ignore[union-attr]  # no hairlines between steps in PDF
    bar.outline.set_visible(False)
    handles, line = [], bar.ax.axhline if where == "right" else bar.ax.axvline
    for (name, at), dashes in zip((marks or {}).items(), ("-", ":"), strict=False):
        line(at, color="white", linewidth=2.4)
        line(at, color="black", linewidth=1.2, linestyle=dashes, gid=name)
        handles.append(entry(f"{name} {at:.3g}", color=style().ink, linewidth=1.2, linestyle=dashes))
    return handles


def cell_size(ax: Axes) -> tuple[float, float]:
    """Width and height of a unit of the data, such as a cell of a map, in points. Settles the layout."""
    figure_of(ax).draw_without_rendering()
    points = 72 / figure_of(ax).dpi
    width, height = (abs(high - low) for low, high in (ax.get_xlim(), ax.get_ylim()))
    return ax.bbox.width * points / width, ax.bbox.height * points / height


def font_for(points: float) -> float:
    """Size of a text in a line of this height: that of the style, or down to 0.6 of it."""
    return float(np.clip(0.85 * points, 0.6 * style().font, style().font))


def rim(width: float, colour: str | None = None) -> list[Any]:
    """Path effects that set a line of a smaller width apart from what lies below it, by default in the background."""
    return [withStroke(linewidth=width * style().scale, foreground=colour or style().ground)]


def readable_on(colours: Any) -> list[str]:
    """Black or white, whichever is easier to read on each of the colours (WCAG 2)."""
    return ["black" if bright > 0.179 else "white" for bright in np.atleast_1d(relative_luminance(colours))]


def wrapped(lines: Iterable[str], inches: float) -> str:
    """Lines broken so that they fit a width, in inches."""
    letters = max(int(72 * inches / (0.6 * style().font)), 6)
    return "\n".join(textwrap.fill(line, letters) for line in lines)


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Names sorted as in ``known``; names that are not in it follow, in alphabetical order."""
    rank = {name: i for i, name in enumerate(known)}
    return sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name))


def kind_colours(kinds: Iterable[str]) -> list[str]:
    """The colour of each kind of structure."""
    return [KINDS.get(kind, OTHER)[1] for kind in kinds]
