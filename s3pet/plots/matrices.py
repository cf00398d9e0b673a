"""Task × task and search × search: what carries over, and how far searches agree beyond chance.

A missing pair is hatched (it is not a zero), and the level of chance stands in the figure, because two random
structures share modules too. All of it is vector.
"""

from __future__ import annotations

import textwrap
from itertools import groupby
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from s3pet.errors import PlotError
from s3pet.plots.style import KINDS, as_table, figure_of, new_axes, style, styled

GAP = 0.3  # in cells: between groups of rows or columns
MEASURES = {"jaccard": "Jaccard overlap of the structures", "spearman": "rank correlation of the gates"}


def transfer_matrix(table: Any) -> pd.DataFrame:
    """Mean score of every source on every target, with its interval, one row per pair; nan where there was no run.

    Args:
        table: one row per retraining: ``source`` (where the structure comes from), ``target`` (the task it was
            retrained on), ``score``.

    Returns:
        ``source, target, is_task, n, score, score_half, percent, percent_half``. Sources that are tasks (some target
        has their name) come first, in the order of the targets, then the others in the order of the table.
        ``score_half`` is half the 95 % t-interval of the mean from three runs on, half the range of two, nan for one.
        ``percent`` is in % of the target's own search (source = target; its own spread is left out), nan where that is
        missing or not > 0.

    Raises:
        PlotError: a column is missing, or several budgets or backbones are mixed.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    table = as_table(table, ["source", "target", "score"], one=["budget", "backbone"])
    table = as_table(table.dropna(subset=["score"]), [], one=())  # not empty
    targets, given = table["target"].unique(), table["source"].unique()
    sources = [name for name in targets if name in given] + [name for name in given if name not in targets]
    cells = table.groupby(["source", "target"], observed=True)["score"].agg(["mean", "std", "min", "max", "size"])
    cells = cells.reindex(pd.MultiIndex.from_product([sources, targets], names=["source", "target"])).reset_index()
    n, own = cells["size"].fillna(0).astype(int), cells[cells["source"] == cells["target"]].set_index("target")["mean"]
    half = cells["std"] / np.sqrt(n) * t.ppf(0.975, n.clip(lower=2) - 1)
    half = half.where(n > 2, (cells["max"] - cells["min"]) / 2).where(n > 1)
    share = 100 / cells["target"].map(own.where(own > 0)).astype(float)
    found = cells[["source", "target"]].assign(is_task=cells["source"].isin(targets), n=n)
    found = found.assign(score=cells["mean"], score_half=half)
    return found.assign(percent=cells["mean"] * share, percent_half=half * share)


@styled
def plot_transfer(table: Any, *, relative: bool = True, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Structures of every source (rows), retrained on every target (columns).

    A cell holds the mean and, small, half its interval. A target's own search is outlined; sources that are no task,
    such as random structures, are rows below a gap; a pair without a run is hatched. What lies beyond the colour scale
    has the colour of its end, and the bar an arrow there.

    Args:
        table: as for `transfer_matrix`.
        relative: scores in % of the target's own search, on a scale symmetric around 100 %; else scores.

    Raises:
        PlotError: as `transfer_matrix`; or ``relative`` and a target has no own search with a score > 0.
    """
    cells = transfer_matrix(table)
    value = "percent" if relative else "score"
    known = cells["percent"].notna().groupby(cells["target"], sort=False).any()
    if relative and not known.all():
        lost = known.index[~known].tolist()
        raise PlotError(f"No row with source = target and a score > 0 for {lost}; relative=False does without.")
    columns = {name: float(i) for i, name in enumerate(cells["target"].unique())}
    is_task = cells.groupby("source", sort=False)["is_task"].first()
    rows = {name: i + GAP * (task != is_task.iloc[0]) for i, (name, task) in enumerate(is_task.items())}
    places = np.array([(columns[b], rows[a]) for a, b in zip(cells["source"], cells["target"], strict=True)])
    values = cells[value].to_numpy(float)
    own = (cells["source"] == cells["target"]).to_numpy() & np.isfinite(values)
    norm, extend = _limits(values, 100 if relative else None)
    ax = ax or new_axes(float(np.clip(1.4 + 0.45 * len(columns), 3.35, 6.9)), 0.75 + 0.36 * len(rows))
    colours = ("berlin" if style().dark else "PuOr_r") if relative else "cividis"
    mesh = _draw_cells(ax, places, values, colours, norm)
    _squares(ax, places[own], "own", 0.07, edgecolor=_on(mesh, values[own]), facecolor="none", linewidth=1)
    entries = [Patch(label="own search", edgecolor=style().ink, facecolor="none", linewidth=1)] if own.any() else []
    entries += [] if np.isfinite(values).all() else [Patch(label="no run", **_missing())]
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("retrained on", size=1.07 * style().font)
    ax.set_ylabel("structure from", size=1.07 * style().font)
    ax.set_title(title or "")
    _colour_bar(ax, mesh, "score in % of the own search" if relative else "score", extend)
    _legend(ax, entries, loc="upper left", bbox_to_anchor=(0, -0.02), ncols=2)
    ax.set_yticks([*rows.values()], map(str, rows))
    ax.set_xticks([*columns.values()], map(str, columns))
    _fit_names(ax)
    _write(ax, mesh, places, values, cells[f"{value}_half"].to_numpy(float))
    return ax


@styled
def plot_overlap(
    pairs: Any, *, value: str = "jaccard", by: str | None = None, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Agreement between searches, pair by pair, beside what chance would give.

    Without ``by``: a matrix of all pairs, with a mark on those that agree no more than chance (up to the 95 % quantile
    of theirs); the colour bar marks the means of chance and of the quantile. Names that differ in their last word only
    ("topic 0", "topic 1") form groups. With ``by``: every pair a point, filled if above its 95 % quantile, in a column
    per group with the group's mean; the line across is chance, the band reaches up to its 95 % quantile. Pairs share
    searches, so they are not independent, and the mean has no interval.

    Args:
        pairs: one row per unordered pair, as :func:`s3pet.transfer.agreement` returns it: ``first``, ``second``,
            ``<value>``, ``<value>_chance``, ``<value>_chance_high``.
        value: "jaccard", "spearman" or another measure with those three columns.
        by: column of the groups, such as "group".

    Raises:
        PlotError: a column is missing, or a pair is there twice (in one group).
    """
    measures = {value: "value", f"{value}_chance": "chance", f"{value}_chance_high": "high"}
    pairs = as_table(pairs, ["first", "second", *measures, *([by] if by else [])], one=())
    found = pairs[[*measures]].astype(float).rename(columns=measures)
    found[["first", "second"]] = pairs[["first", "second"]].astype(str)
    found = as_table(found.assign(by=pairs[by].astype(str) if by else "").dropna(subset=["value"]), [], one=())
    ordered = pd.DataFrame(np.sort(found[["first", "second"]].to_numpy(str), axis=1)).assign(by=found["by"].to_numpy())
    wrong = (ordered.duplicated() | (ordered[0] == ordered[1])).to_numpy()
    if wrong.any():
        one, other = ordered.loc[wrong, [0, 1]].iloc[0]
        raise PlotError(f"Expected pairs of two different searches, each once (per by=); see {one!r} and {other!r}.")
    draw = _draw_strips if by else _draw_pairs
    return draw(found.assign(above=found["value"] > found["high"]), MEASURES.get(value, value), ax, title)


def _draw_pairs(pairs: pd.DataFrame, label: str, ax: Axes | None, title: str | None) -> Axes:
    """The lower triangle of names × names."""
    names = list(dict.fromkeys(pairs[["first", "second"]].to_numpy().ravel()))
    stems = {name: name.rpartition(" ")[0] for name in names}
    if len(set(stems.values())) in (1, len(names)):  # one group, or as many as names: none
        stems = dict.fromkeys(names, "")
    groups = list(dict.fromkeys(stems.values()))
    names.sort(key=lambda name: groups.index(stems[name]))
    at = {name: i + GAP * groups.index(stems[name]) for i, name in enumerate(names)}
    given = {frozenset((row["first"], row["second"])): row for row in pairs.to_dict("records")}
    cells = [(given.get(frozenset((a, b)), {}), at[a], at[b]) for j, b in enumerate(names) for a in names[:j]]
    places = np.array([cell[1:] for cell in cells])
    values = np.array([row.get("value", np.nan) for row, *_ in cells])
    chance, high = pairs[["chance", "high"]].mean()
    ax = ax or new_axes(*np.clip([1.25 + 0.21 * len(names), 0.85 + 0.19 * len(names)], [3.35, 2.4], 6.9))
    reach = [0.0, high, *pairs["value"]]
    mesh = _draw_cells(ax, places, values, "cividis", Normalize(min(reach), max(reach)))
    ax.set(xlim=(-0.5, max(at.values()) + 0.5), ylim=(max(at.values()) + 0.5, -0.5))  # with the diagonal
    _squares(ax, [(x, x) for x in at.values()], "self", facecolor=style().pale, linewidth=0)
    bar = _colour_bar(ax, mesh, label)
    entries: list[Any] = []
    for text, level, line in (("chance", chance, "-"), ("95 % quantile", high, ":")):
        bar.ax.plot([0, 1], [level, level], "w-", linewidth=2.4)
        bar.ax.plot([0, 1], [level, level], "k" + line, linewidth=1.2, gid=text)
        look: dict[str, Any] = {"color": style().ink, "linestyle": line, "linewidth": 1.2}
        entries.append(Line2D([], [], label=f"{text} {level:.2f}", **look))
    ax.set_title(title or "")
    ticks = [name.removeprefix(stems[name]).strip() or name for name in names] if any(stems.values()) else names
    ax.set_xticks([*at.values()], ticks)
    ax.set_yticks([*at.values()], ticks)
    _fit_names(ax, {stem: [at[name] for name in part] for stem, part in groupby(names, stems.__getitem__) if stem})
    few, low = len(names) <= 8, [i for i, (row, *_) in enumerate(cells) if row and not row["above"]]
    if low:
        corner = np.array([0.34, -0.34]) * few  # beside the number
        look = {"s": 6 * style().scale ** 2, "linewidths": 0, "marker": "o"}
        ax.scatter(*(places[low] + corner).T, color=_on(mesh, values[low]), gid="within-chance", **look)
        look = {"marker": "o", "linestyle": "", "markersize": 2.5 * style().scale, "color": style().ink}
        entries.append(Line2D([], [], label="no more than chance", **look))
    entries += [] if np.isfinite(values).all() else [Patch(label="no pair", **_missing())]
    _legend(ax, entries, loc="upper right", bbox_to_anchor=(1, 1))
    if few:
        _write(ax, mesh, places, values, np.full(len(values), np.nan))
    return ax


def _draw_strips(pairs: pd.DataFrame, label: str, ax: Axes | None, title: str | None) -> Axes:
    """A column of points for every group."""
    ax = ax or new_axes(float(np.clip(0.7 + 0.75 * pairs["by"].nunique(), 3.35, 6.9)), 2.7)
    groups, colour, ticks = pairs.groupby("by", sort=False), KINDS["searched"][1], []
    for i, (name, group) in enumerate(groups):
        across, chance, high = [i - 0.42, i + 0.42], group["chance"].mean(), group["high"].mean()
        ax.fill_between(across, chance, high, color=style().ink, alpha=0.13, linewidth=0, gid="chance-band")
        ax.plot(across, [chance, chance], color=style().grey, linewidth=1, gid="chance")
        x = i + _spread(group["value"].to_numpy())
        look: dict[str, Any] = {"s": 14 * style().scale ** 2, "linewidths": 0.8, "edgecolors": colour, "zorder": 3}
        faces = np.where(group["above"], colour, style().ground)
        ax.scatter(x, group["value"], facecolors=faces, gid="pairs", **look)
        mean = group["value"].mean()
        ax.plot([i - 0.25, i + 0.25], [mean, mean], color=style().ink, linewidth=2, zorder=4, gid="mean")
        ticks.append([str(name), f"mean {mean:.2f}", f"{group['above'].sum()} of {len(group)} above"])
    ax.set_xlim(-0.5, len(ticks) - 0.5)
    low, top = min(0.0, pairs["value"].min()), max(pairs["value"].max(), pairs["high"].max())
    ax.set_ylim(low - 0.04 * (top - low), top + 0.05 * (top - low))
    ax.set_ylabel(label, size=1.07 * style().font)
    ax.tick_params(labelsize=style().font)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title or "", pad=18 * style().scale)
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "color": colour, "markersize": 4 * style().scale}
    band = Patch(color=style().ink, alpha=0.13, linewidth=0, label="chance, up to 95 %")
    above, rest = (Line2D([], [], label=name, **dot) for name in ("above", "not above"))
    rest.set_markerfacecolor(style().ground)
    _legend(ax, [band, above, rest], loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3)
    ax.set_xticks([])
    figure_of(ax).draw_without_rendering()
    letters = int(ax.bbox.width * 72 / figure_of(ax).dpi / len(ticks) / (0.62 * style().font))
    lines = ["\n".join(textwrap.fill(part, max(letters, 4)) for part in parts) for parts in ticks]
    ax.set_xticks(range(len(ticks)), lines)
    return ax


def _spread(values: np.ndarray) -> np.ndarray:
    """Sideways shifts in columns that keep points of about the same value apart."""
    frame = pd.DataFrame({"value": values, "bin": np.round((values - values.min()) / (np.ptp(values) or 1) * 25)})
    rank, n = frame.groupby("bin").cumcount(), frame.groupby("bin")["bin"].transform("size")
    return ((rank - (n - 1) / 2) * min(0.1, 0.76 / n.max())).to_numpy()


def _limits(values: np.ndarray, centre: float | None) -> tuple[Normalize, str]:
    """A colour scale that no single cell stretches, and at which ends it is exceeded; at least 5 around a centre."""
    low, high = np.nanmin(values), np.nanmax(values)
    if centre is None:
        return Normalize(low, high if low < high else low + 1), "neither"
    off = np.abs(values - centre)
    reach = max(5.0, min(np.nanmax(off), 2 * np.nanquantile(off, 0.75)))
    ends = 2 * (low < centre - reach) + (high > centre + reach)
    return Normalize(centre - reach, centre + reach), ("neither", "max", "min", "both")[ends]


def _squares(ax: Axes, places: Any, gid: str, inset: float = 0.02, **look: Any) -> PolyCollection:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.5 - inset)
    squares = PolyCollection([np.array(place) + corners for place in places], gid=gid, **look)
    ax.add_collection(squares, autolim=False)
    return squares


def _draw_cells(ax: Axes, places: np.ndarray, values: np.ndarray, cmap: str, norm: Normalize) -> PolyCollection:
    """Coloured cells, hatched ones where the value is nan; limits and frame of the Axes."""
    (right, bottom), known = places.max(0), np.isfinite(values)
    ax.set(xlim=(-0.5, right + 0.5), ylim=(bottom + 0.5, -0.5))
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(False)
    mesh = _squares(ax, places[known], "cells", cmap=mpl.colormaps[cmap], norm=norm, linewidth=0)
    mesh.set_array(values[known])
    _squares(ax, places[~known], "missing", **_missing())
    return mesh


def _missing() -> dict[str, Any]:
    return {"facecolor": "none", "edgecolor": style().faint, "linewidth": 0, "hatch": "//////"}


def _colour_bar(ax: Axes, mesh: PolyCollection, label: str, extend: str = "neither") -> Any:
    bar = figure_of(ax).colorbar(mesh, ax=ax, aspect=25, pad=0.03, fraction=0.06, extend=extend)
    bar.set_label(label, size=1.07 * style().font)
    bar.ax.tick_params(labelsize=style().font)
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face")  # no hairlines between its steps in PDF
    bar.outline.set_visible(False)
    return bar


def _legend(ax: Axes, entries: list[Any], **place: Any) -> None:
    ax.legend(handles=entries, handlelength=1.4, handletextpad=0.5, columnspacing=1, **place)


def _on(mesh: PolyCollection, values: np.ndarray) -> np.ndarray:
    """Black or white, whichever is read better on the colours of the values (relative luminance, WCAG 2)."""
    rgb = np.asarray(mesh.to_rgba(values))[:, :3]
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    return np.where(light > 0.179, "black", "white")


def _cell_size(ax: Axes) -> np.ndarray:
    """Width and height of a cell, in points."""
    figure_of(ax).draw_without_rendering()  # settles the layout
    spans = abs(np.diff(ax.get_xlim())[0]), abs(np.diff(ax.get_ylim())[0])
    return np.array(ax.bbox.size) / spans * 72 / figure_of(ax).dpi


def _fit_names(ax: Axes, groups: dict[str, list[float]] | None = None) -> None:
    """Tick labels in the size of the cells, upright where they are too wide; names of groups of ticks beside them."""
    size, dot = _cell_size(ax), figure_of(ax).dpi / 72
    font = float(np.clip(0.85 * min(size), 0.6 * style().font, style().font))
    ax.tick_params(labelsize=font)
    for axis, room in zip((ax.xaxis, ax.yaxis), size, strict=True):  # two lines where they fit even on their side
        names = [label.get_text() for label in axis.get_ticklabels()]
        long = 14 if room > 2.6 * font else 999
        axis.set_ticks(axis.get_ticklocs(), [textwrap.fill(name, long, break_long_words=False) for name in names])
    wide = max(label.get_window_extent().width for label in ax.get_xticklabels()) / dot
    ax.tick_params("x", rotation=90 if wide > 0.95 * size[0] else 0)
    left = max(label.get_window_extent().width for label in ax.get_yticklabels()) / dot + 6
    below = max(label.get_window_extent().height for label in ax.get_xticklabels()) / dot + 5
    look: dict[str, Any] = {"textcoords": "offset points", "size": font, "gid": "group"}
    for name, at in (groups or {}).items():
        x, y = (float(np.mean(at)), 0), (0, float(np.mean(at)))
        ax.annotate(name, y, (-left, 0), ax.get_yaxis_transform(), ha="right", va="center", **look)
        label = ax.annotate(name, x, (0, -below), ax.get_xaxis_transform(), ha="center", va="top", **look)
        label.set_rotation(90 if label.get_window_extent().width / dot > 0.95 * len(at) * size[0] else 0)


def _write(ax: Axes, mesh: PolyCollection, places: np.ndarray, values: np.ndarray, halves: np.ndarray) -> None:
    """Numbers in the cells: the value and, small, half its interval; without the latter, or without any, where tiny."""
    (width, height), known = _cell_size(ax), np.isfinite(values)
    form = ".0f" if np.abs(values[known]).max() >= 20 else ".2f"
    font = min(style().font, 0.9 * width / (0.62 * max(len(f"{value:{form}}") for value in values[known])))
    both = min(font, height / 2.3)  # with room for a second line
    small = both >= 0.8 * style().font and np.isfinite(halves).any()
    font = both if small else min(font, height / 1.5)
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center"}
    colours = _on(mesh, values[known])
    for place, value, half, colour in zip(places[known], values[known], halves[known], colours, strict=True):
        look["color"], two = str(colour), small and np.isfinite(half)
        if font >= 0.6 * style().font:
            ax.annotate(f"{value:{form}}", place, (0, 0.45 * font * two), size=font, gid="number", **look)
        if two:
            ax.annotate(f"±{half:{form}}", place, (0, -0.65 * font), size=0.75 * font, gid="half", **look)
