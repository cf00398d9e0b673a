"""What all charts of this package share: names of the axes, title, a legend below, one order of names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from s3pet.plots.style import figure_of, style


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Names sorted as in ``known``; names that are not in it follow, in alphabetical order."""
    rank = {name: i for i, name in enumerate(known)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def finish_axes(ax: Axes, x: str, y: str, handles: list[Any], title: str | None, caption: str = "") -> None:
    """Name the axes and put the legend below them, in as many columns as fit; ``caption`` is the legend's title.

    Sizes are those of the style, also on Axes that were made without it. The legend lies below all that the Axes have
    drawn so far, so call this last.
    """
    ax.set_xlabel(x, size=1.07 * style().font)
    ax.set_ylabel(y, size=1.07 * style().font)
    ax.set_title(title or "", size=1.27 * style().font)
    ax.tick_params(labelsize=style().font)
    sns.despine(ax=ax)
    figure = figure_of(ax)
    figure.draw_without_rendering()  # settles the layout, so that the extents below are final
    frame = ax.get_tightbbox()
    if not handles or frame is None:
        return
    corner = ScaledTranslation(
        (frame.x0 - ax.bbox.x0) / figure.dpi, (frame.y0 - ax.bbox.y0) / figure.dpi - 0.05, figure.dpi_scale_trans
    )
    for columns in range(len(handles), 0, -1):
        legend = ax.legend(
            handles=handles,
            ncols=columns,
            loc="upper left",
            bbox_to_anchor=(0, 0),
            bbox_transform=ax.transAxes + corner,
            handletextpad=0.4,
            columnspacing=1,
            title=caption or None,
            title_fontsize=style().font,
            alignment="left",
        )
        if legend.get_window_extent().width <= 0.97 * frame.width:  # text is wider at other resolutions
            break
