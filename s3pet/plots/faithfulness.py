"""Gates beside measured utility: the map of a utility table, where the two disagree, and one against the other.

Disagreement is a difference of ranks (:func:`s3pet.utility.disagreement`), because a probability and a loss have no
common unit. A candidate that changes no score of the task is crossed; one without a measurement is dotted, not 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from s3pet.plots.frame import cell_size, colour_bar, entry, finish_axes, in_order, wrapped
from s3pet.plots.maps import LABELS, MAP_COLUMNS, draw_map, finish_map, gate_cells, make_grid, map_size, squares
from s3pet.plots.panels import finish_panels, panel_axes
from s3pet.plots.style import PET_COLOURS, PETS, as_table, figure_of, new_axes, style, styled, value_limits
from s3pet.plots.words import candidate_names, correlation_words, short_name
from s3pet.utility import check_utility, disagreement

INERT = "inert: changes no score"
UNITS = {"utility": ("utility", " (nats)"), "score_gain": ("gain in the score", "")}


def utility_scale(values: pd.Series) -> tuple[Normalize, str, str]:
    """Colour limits, colours, and arrows of the colour bar, for a column of a utility table.

    Colours reach to the largest size, or only to the 95 % quantile of the sizes if this is less than 2/3 of that, so
    that a few do not hide the others, but more than 1/20, so that what is next to nothing does not look large. They
    start from 0, or diverge around it if a value is below −1/10 of their reach.
    """
    largest, edge = float(values.abs().max()), float(values.abs().quantile(0.95))
    high = (edge if largest / 20 < edge < largest / 1.5 else largest) or 1.0
    diverging = bool(values.min() < -high / 10)
    low = -high if diverging else 0.0
    extend = ("neither", "max", "min", "both")[2 * bool(values.min() < low) + bool(values.max() > high)]
    return Normalize(low, high), style().colours("difference" if diverging else "prob"), extend


@styled
def plot_utility(
    utility: pd.DataFrame, *, value: str = "utility", ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Map of a utility table, with the rows and columns of `plot_gates`: which PET module helps, and where.

    A cell with several candidates shows their maximum. Colours diverge around 0 if some candidates harm; a value beyond
    them has the colour of its end, and the colour bar has an arrow there.

    Args:
        utility, value: a utility table of one measure and task, and its column: "utility" or "score_gain".

    Raises:
        StudyError: it is not a utility table; the message says why.
    """
    table = check_utility(utility, value)
    norm, colours, extend = utility_scale(table[value])
    grid = make_grid(table)
    ax = ax or new_axes(*map_size(grid))
    cells = gate_cells(table, value)
    mesh, handles = draw_map(ax, grid, cells, colours, norm, "chosen", inert=INERT)
    handles += _unmeasured(ax, cells)
    colour_bar(mesh, ax, _label(table, value), extend=extend)
    return finish_map(ax, grid, handles, title)


@styled
def plot_faithfulness(
    gates: Any, utility: pd.DataFrame, *, value: str = "utility", figure: Figure | None = None, title: str | None = None
) -> list[Axes]:
    """Three maps with one grid: the gates, their measured utility, and where the ranks of the two disagree.

    What the search chose is outlined in all of them. The legend's title holds the rank correlation.

    Args:
        gates: a search result or a gate table, whose candidates are shown.
        utility, value: as in `plot_utility`.
    """
    both, table = disagreement(gates, utility, value=value), as_table(gates, [*MAP_COLUMNS, "prob"])
    measured = both[[value, "inert", "difference"]].reindex(candidate_names(table))
    table = table.assign(**{str(name): measured[name].to_numpy() for name in measured})  # NaN: not measured
    grid, cells = make_grid(table), gate_cells(table, "difference", how="mean")
    titles = ["gates", "measured utility", "difference of the ranks"]
    axes = panel_axes(titles, grid, None, figure, below=0.55)
    norm, colours, extend = utility_scale(table[value])
    looks: list[tuple[Any, ...]] = [
        (gate_cells(table), style().colours("prob"), Normalize(*value_limits(table)), LABELS["prob"], "neither"),
        (gate_cells(table, value), colours, norm, _label(utility, value), extend),
        (cells, style().colours("difference"), Normalize(-1, 1), "under- (−) or over-valued (+)", "neither"),
    ]
    handles, where = list[Any](), "bottom" if axes.shape[1] == len(looks) else "right"
    for ax, (shown, name, limits, label, arrows) in zip(axes.flat, looks, strict=True):
        first = ax.get_subplotspec().is_first_col()
        mesh, drawn = draw_map(ax, grid, shown, name, limits, "chosen by the search", first, inert=INERT)
        handles += drawn + colour_bar(mesh, ax, label, extend=arrows, where=where) + _unmeasured(ax, shown)
    words = correlation_words(gates, utility, value)
    return finish_panels([*axes.flat], grid, handles, title, 4, words)


@styled
def plot_gates_against_utility(
    gates: Any,
    utility: pd.DataFrame,
    *,
    value: str = "utility",
    ranks: bool = True,
    top: int = 3,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Every candidate's gate against its measured utility ± standard error, coloured by PET module.

    The ``top`` most over-valued candidates are named at the bottom, the most under-valued ones at the top. The legend's
    title holds the rank correlation, its 95 % interval and its ceiling (:func:`s3pet.utility.faithfulness`).

    Args:
        gates: a search result or a gate table.
        utility, value: as in `plot_utility`.
        ranks: show ranks from 0 (the lowest) to 1, which are what is correlated; a bar then reaches to the ranks of
            utility ± error. False: show probabilities and utilities.
    """
    table = disagreement(gates, utility, value=value)
    ends = np.stack([table[value] - table[f"{value}_error"], table[value] + table[f"{value}_error"]])
    x, y, names = table["prob"], table[value], (LABELS["prob"], _label(utility, value))
    if ranks:
        ordered = np.sort(table[[value, "utility_rank"]].to_numpy(), axis=0)
        x, y, ends = table["prob_rank"], table["utility_rank"], np.interp(ends, *ordered.T)
        names = "rank of the gate", f"rank of the {_label(utility, value, unit=False)}"
    ax, scale = ax or new_axes(4.4, 3.9), style().scale
    line: dict[str, Any] = {"color": style().grey, "linewidth": 0.8 * scale, "linestyle": ":", "zorder": 0}
    ax.plot(*([[0, 1], [0, 1]] if ranks else [[x.min(), x.max()], [0, 0]]), gid="reference", **line)
    handles = [entry("equal ranks" if ranks else "no effect", **line)]
    for pet in in_order(table["pet"], PETS):
        colour = PET_COLOURS.get(pet, style().grey)
        for inert, marker in ((False, "o"), (True, "x")):
            rows = (table["pet"] == pet) & (table["inert"] == inert)
            ax.vlines(x[rows], *ends[:, rows], color=colour, linewidth=0.6 * scale, alpha=0.6, gid=f"error-{pet}")
            look: dict[str, Any] = {"color": colour, "marker": marker, "gid": f"inert-{pet}" if inert else pet}
            ax.scatter(x[rows], y[rows], 10 * scale**2, linewidths=0.8 * scale * inert, **look)
        handles.append(entry(PETS.get(pet, pet), marker="o", markersize=4 * scale, color=colour, markeredgewidth=0))
    if table["inert"].any():
        handles.append(entry(INERT, color=style().ink, marker="x", markersize=4 * scale))
    words = wrapped([correlation_words(gates, utility, value)], ax.bbox.width / figure_of(ax).dpi)
    finish_axes(ax, *names, handles, title, words)
    points = pd.DataFrame({"x": x, "y": y, "label": [short_name(row) for row in table.to_dict("records")]})
    over, under = (table["difference"] > 0).sum(), (table["difference"] < 0).sum()
    _name_points(ax, points.head(min(over, top)), points.tail(min(under, top)))
    return ax


def _name_points(ax: Axes, below: pd.DataFrame, above: pd.DataFrame) -> None:
    """Names below and above all points, each beside the end of a vertical line through its point (``x, y, label``).

    Names start at their lines, and the leftmost is the farthest out; in the right half, they end there, and the
    rightmost is. So no line crosses a name.
    """
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= high])
    lines = cell_size(ax)[1] * (high - low) / (1.25 * style().font)  # of text, in the height of the Axes
    step = (high - low) / max(lines - len(below) - len(above), 1)  # height of a line once the names have their space
    ax.set_ylim(low - len(below) * step, high + len(above) * step)
    look: dict[str, Any] = {"color": style().grey, "linewidth": 0.5 * style().scale, "zorder": 0, "gid": "leader"}
    for edge, away, points in ((low, -step, below), (high, step, above)):
        left = points["x"].mean() < np.mean(ax.get_xlim())
        for i, point in enumerate(points.sort_values("x", ascending=not left).to_dict("records")):
            x, end = point["x"], edge + (i + 0.5) * away
            ax.plot([x, x], [point["y"], end], **look)
            ax.text(x, end, f" {point['label']} ", va="center", ha="left" if left else "right", gid="name")


def _label(utility: pd.DataFrame, value: str, unit: bool = True) -> str:
    name, suffix = UNITS.get(value, (value, ""))
    return f"{utility['measure'].iloc[0]} {name}{suffix * unit}"


def _unmeasured(ax: Axes, cells: pd.DataFrame) -> list[Any]:
    """Dot the cells without a value, and return a legend handle if there are any."""
    look: dict[str, Any] = {"facecolor": style().pale, "edgecolor": style().grey, "linewidth": 0, "hatch": "....."}
    if len(unknown := cells[cells["value"].isna()]):
        squares(ax, unknown, "unmeasured", **look)
    return [Patch(label="not measured", **look)] * bool(len(unknown))
