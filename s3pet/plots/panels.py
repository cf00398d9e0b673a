"""Maps of several searches side by side, with one grid, one colour scale and one legend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from s3pet.errors import PlotError, shown
from s3pet.plots.frame import colour_bar, wrapped
from s3pet.plots.maps import LABELS, MAP_COLUMNS, Grid, draw_map, fit_labels, gate_cells, make_grid
from s3pet.plots.style import as_table, figure_of, new_figure, style, styled, value_limits


@styled
def plot_gate_panels(
    gates: Mapping[str, Any],
    *,
    value: str = "prob",
    columns: int | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> list[Axes]:
    """Maps of several searches side by side, with one grid and one colour scale; returns the Axes in order.

    ``gates`` has the title of each panel and its gate table, or object with ``.gates``; ``value`` is as in
    `plot_gates`; ``columns`` is the number of panels in a row (None: as many as fit on a page).
    """
    if not isinstance(gates, Mapping) or not gates:
        raise PlotError(f"Expected panels as {{title: gate table}}; got {shown(gates)}.")
    tables = {name: as_table(table, [*MAP_COLUMNS, value]) for name, table in gates.items()}
    grid = make_grid(pd.concat([table[[*MAP_COLUMNS]] for table in tables.values()]))
    cells = {name: gate_cells(table, value, grid=grid) for name, table in tables.items()}
    norm, n = Normalize(*value_limits(*tables.values(), value=value)), len(tables)
    axes, handles = panel_axes([*tables], grid, columns, figure), list[Any]()
    for ax, name in zip(axes.flat, tables, strict=False):
        first = ax.get_subplotspec().is_first_col()
        handles += draw_map(ax, grid, cells[name], style().colours(value), norm, "chosen", first)[1]
    colour_bar(ScalarMappable(norm, style().colours(value)), axes, LABELS.get(value, value))
    return finish_panels([*axes.flat[:n]], grid, handles, title, 3)


def panel_axes(titles: list[str], grid: Grid, columns: int | None, figure: Figure | None, below: float = 0) -> Any:
    """Titled Axes for maps with one grid, [rows, columns], and ``below`` them space for bars, in inches.

    ``columns`` None: as many as fit on a page.
    """
    n, inner = len(titles), style().widest - 1.75  # inches of a paper without row names and colour bar
    rows = -(-n // (columns or max(1, int(inner / (0.105 * grid.size[0] + 0.1)))))
    columns = columns or -(-n // rows)
    width = float(np.clip(inner / columns, 0.085 * grid.size[0] + 0.1, 0.2 * grid.size[0] + 0.1))
    figure = new_figure(1.75 + columns * width, rows * (0.65 + 0.145 * grid.size[1]) + 0.35 + below, figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, name in zip(axes.flat, titles, strict=False):
        ax.set_title(wrapped([name], width * style().scale), size=style().font)
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    return axes


def finish_panels(
    axes: list[Axes], grid: Grid, handles: list[Any], title: str | None, ncols: int, caption: str | None = None
) -> list[Axes]:
    """Title, one legend of what is in any map, under a ``caption``, and labels that fit the cells; returns the Axes."""
    figure, once = figure_of(axes[0]), {handle.get_label(): handle for handle in handles}
    look: dict[str, Any] = {"loc": "outside lower left", "ncols": ncols, "title": caption, "alignment": "left"}
    figure.legend(handles=[*once.values()], **look)
    figure.suptitle(title or "")
    for ax in axes:
        fit_labels(ax, grid)
    return axes
