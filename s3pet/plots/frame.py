"""What all charts of this package share: names of the axes, title, a legend below, one order of names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from s3pet.plots.style import KINDS, OTHER, figure_of, style


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Names sorted as in ``known``; names that are not in it follow, in alphabetical order."""
    rank = {name: i for i, name in enumerate(known)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def kind_colours(kinds: Iterable[str]) -> list[str]:
    """The colour of each kind of structure."""
    return [KINDS.get(kind, OTHER)[1] for kind in kinds]


def entry(label: str, **look: Any) -> Line2D:
    """A line or marker for a legend."""
    return Line2D([], [], label=label, **look)


def finish_axes(ax: Axes, x: str, y: str, handles: list[Any], title: str | None, caption: str = "") -> None:
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
    frame = ax.get_tightbbox()
    if not handles or frame is None:
        return
    corner = (frame.x0 - ax.bbox.x0) / figure.dpi, (frame.y0 - ax.bbox.y0) / figure.dpi - 0.05
    below: Any = ax.transAxes + ScaledTranslation(*corner, figure.dpi_scale_trans)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below}
    place |= {"title": caption or None, "title_fontsize": style().font, "alignment": "left", "columnspacing": 1}
    for columns in range(len(handles), 0, -1):
        legend = ax.legend(handles=handles, ncols=columns, handletextpad=0.4, **place)
        if legend.get_window_extent().width <= 0.97 * frame.width:  # text is wider at other resolutions
            break
