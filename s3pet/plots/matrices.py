"""Task × task and search × search: which structures transfer, and how far searches agree beyond chance.

A missing pair is hatched, because it is not a zero. The level of chance is shown, because two random structures share
modules too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from s3pet.errors import PlotError
from s3pet.files.columns import ANY, checked_columns
from s3pet.files.kinds import TEXT, optional
from s3pet.plots.frame import cell_size, colour_bar, entry, finish_axes, font_for, readable_on, rim, wrapped
from s3pet.plots.intervals import mean_interval
from s3pet.plots.style import KINDS, as_table, figure_of, new_axes, style, styled

MEASURES = {"jaccard": "Jaccard overlap of the structures", "spearman": "rank correlation of the gates"}


def transfer_matrix(table: Any) -> pd.DataFrame:
    """Mean score of every source on every target, with its interval, one row per pair; nan where there was no run.

    Args:
        table: one row per retraining: ``source`` (where the structure comes from), ``target`` (the task it was
            retrained on), ``score``.

    Returns:
        ``source, target, is_task, n, score, score_half, percent, percent_half``. Sources that are tasks (some target
        has their name) come first. ``score_half`` is half the 95 % t interval of the mean, nan for one run. ``percent``
        is in % of the target's own search (source = target; without the spread of the latter), nan without a score > 0.
    """
    table = as_table(table, ["source", "target", "score"], one=["budget", "backbone"])
    table = as_table(table.dropna(subset=["score"]), [], one=())  # not empty
    targets, sources = table["target"].unique(), table["source"].unique()
    sources = [name for name in targets if name in sources] + [name for name in sources if name not in targets]
    groups = table.groupby(["source", "target"], observed=True)["score"]
    cells = groups.agg(score="mean", n="size")
    cells["score_half"] = [np.diff(mean_interval([runs.to_numpy(float)]))[0] / 2 for _, runs in groups]
    cells = cells.reindex(pd.MultiIndex.from_product([sources, targets], names=["source", "target"])).reset_index()
    own = cells[cells["source"] == cells["target"]].set_index("target")["score"]
    share = 100 / cells["target"].map(own.where(own > 0)).astype(float)
    cells = cells.assign(is_task=cells["source"].isin(targets), n=cells["n"].fillna(0).astype(int))
    cells = cells.assign(percent=cells["score"] * share, percent_half=cells["score_half"] * share)
    return cells[["source", "target", "is_task", "n", "score", "score_half", "percent", "percent_half"]]


@styled
def plot_transfer(table: Any, *, relative: bool = True, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Structures of every source (rows), retrained on every target (columns); ``table`` as for `transfer_matrix`.

    A cell holds the mean and, where there is space, ± half its 95 % t interval: in % of the target's own search, on a
    scale symmetric around 100 %, or (``relative=False``) as scores. A target's own search is outlined; sources that are
    no task, such as random structures, are below a line; a pair without a run is hatched. Values beyond the colour
    scale have the colour of its end, and the colour bar has an arrow there.
    """
    cells, value = transfer_matrix(table), "percent" if relative else "score"
    comparable = cells["percent"].notna().groupby(cells["target"], sort=False).any()
    if relative and not comparable.all():
        missing = comparable.index[~comparable].tolist()
        raise PlotError(f"No row with source = target and a score > 0 for {missing}; use relative=False.")
    rows, columns = list(cells["source"].unique()), list(cells["target"].unique())
    pivot: Any = cells.pivot(index="source", columns="target", values=[value, f"{value}_half"])
    means, halves = (pivot[name].loc[rows, columns] for name in (value, f"{value}_half"))
    ax = ax or new_axes(float(np.clip(1.8 + 0.5 * len(columns), 3.35, 6.9)), 1.3 + 0.36 * len(rows))
    low, high, extend, colours = float(cells[value].min()), float(cells[value].max()), "neither", "cividis"
    if relative:  # at least 5 % around 100 %, and not stretched by a single cell
        off = cells[value].sub(100).abs()
        reach = max(5.0, min(off.max(), 2 * off.quantile(0.75)))
        extend = ("neither", "max", "min", "both")[2 * (low < 100 - reach) + (high > 100 + reach)]
        low, high, colours = 100 - reach, 100 + reach, style().colours("difference")
    label = "score in % of the own search" if relative else "score"
    mesh, _ = _draw_cells(ax, means, label, extend=extend, cmap=colours, vmin=low, vmax=high)
    own = [name for name in columns if name in rows and np.isfinite(means.loc[name, name])]
    for name in own:
        corner, colour = (columns.index(name) + 0.06, rows.index(name) + 0.06), mesh.to_rgba(means.loc[name, name])
        look: dict[str, Any] = {"edgecolor": readable_on(colour)[0], "linewidth": style().scale, "gid": "own"}
        ax.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, **look))
    n_tasks = sum(name in columns for name in rows)
    if 0 < n_tasks < len(rows):
        ax.axhline(n_tasks, color=style().ground, linewidth=4 * style().scale, gid="others")
    handles = [Patch(label="own search", edgecolor=style().ink, facecolor="none")] * bool(own)
    handles += [Patch(label="no run", **style().hatching)] * bool(means.isna().any(axis=None))
    finish_axes(ax, "retrained on", "structure from", handles, title, "± half the 95 % t interval of the mean")
    form = ".0f" if cells[value].abs().max() >= 20 else ".2f"
    numbers = means.map(f"{{:{form}}}".format) + halves.map(f"\n±{{:{form}}}".format).where(halves.notna(), "")
    _write_numbers(ax, mesh, means, numbers)
    return ax


@styled
def plot_overlap(
    pairs: Any, *, value: str = "jaccard", by: str | None = None, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Agreement between searches, pair by pair, beside the agreement expected by chance.

    Without ``by``: a symmetric matrix of all pairs, with a dot on those that agree no more than chance (up to the 95 %
    quantile of chance). Gaps separate names that differ in more than their last word ("topic 0", "topic 1"). With
    ``by``, a column such as "group": every pair is a point, in a column per group. Below each point the band reaches to
    the 95 % quantile of its own chance; points are in the order of these, and filled if above. Pairs share searches, so
    they are not independent, and the mean has no interval.

    Args:
        pairs: one row per unordered pair, as :func:`s3pet.transfer.agreement` returns it.
        value: "jaccard", "spearman" or another measure with the columns ``<value>``, ``<value>_chance`` and
            ``<value>_chance_high``.
    """
    optional(TEXT).check(PlotError, value=value, by=by)
    measures = {value: "value", f"{value}_chance": "chance", f"{value}_chance_high": "high"}
    pairs = as_table(pairs, ["first", "second", *measures, *([by] if by else [])], one=())
    table = checked_columns(pairs, PlotError, kinds=dict.fromkeys(measures, ANY))[[*measures]]
    table = table.astype(float).rename(columns=measures)
    table[["first", "second"]] = pairs[["first", "second"]].astype(str)
    table = as_table(table.assign(by=pairs[by].astype(str) if by else "").dropna(subset=["value"]), [], one=())
    ends = pd.DataFrame(np.sort(table[["first", "second"]].to_numpy(str), axis=1)).assign(by=table["by"].to_numpy())
    wrong = (ends.duplicated() | (ends[0] == ends[1])).to_numpy()
    if wrong.any():
        one, other = ends.loc[wrong, [0, 1]].iloc[0]
        raise PlotError(f"Expected pairs of two different searches, each once (per by=); see {one!r} and {other!r}.")
    draw = _draw_groups if by else _draw_pairs
    return draw(table.assign(above=table["value"] > table["high"]), MEASURES.get(value, value), ax, title)


def _draw_pairs(pairs: pd.DataFrame, label: str, ax: Axes | None, title: str | None) -> Axes:
    """A symmetric matrix of names × names."""
    names = list(dict.fromkeys(pairs[["first", "second"]].to_numpy().ravel()))
    stem = {name: name.rpartition(" ")[0] for name in names}
    stems = list(dict.fromkeys(stem.values()))
    names.sort(key=lambda name: stems.index(stem[name]))
    both = pd.concat([pairs, pairs.rename(columns={"first": "second", "second": "first"})])
    values = both.pivot_table("value", "first", "second").reindex(index=names, columns=names)
    chance, high = pairs[["chance", "high"]].mean()
    few, scale = len(names) <= 8, style().scale
    ax = ax or new_axes(*np.clip([1.6 + 0.22 * len(names), 1.5 + 0.19 * len(names)], [3.35, 2.9], 6.9))
    limits = {"vmin": min(0.0, pairs["value"].min()), "vmax": max(high, pairs["value"].max())}
    marks = {"chance": chance, "95 % quantile of chance": high}
    mesh, handles = _draw_cells(ax, values, label, marks, cmap="cividis", **limits)
    for i, name in enumerate(names):
        ax.add_patch(Rectangle((i, i), 1, 1, facecolor=style().pale, linewidth=0, gid="self"))
        if i and 1 < len(stems) < len(names) and stem[name] != stem[names[i - 1]]:
            for draw in (ax.axhline, ax.axvline):
                draw(i, color=style().ground, linewidth=3 * scale, gid="group")
    within = both[~both["above"]]
    if len(within):
        x, y = (within[name].map(names.index) + (0.85 if few else 0.5) for name in ("second", "first"))
        colours = readable_on(mesh.to_rgba(within["value"].to_numpy()))
        ax.scatter(x, y, 6 * scale**2, colours, linewidths=0, gid="within-chance")
        handles.append(entry("no more than chance", marker="o", markersize=2.5 * scale, color=style().ink))
    handles += [Patch(label="no pair", **style().hatching)] * (len(pairs) < len(names) * (len(names) - 1) / 2)
    finish_axes(ax, "", "", handles, title)
    _write_numbers(ax, mesh, values, values.map(lambda number: f"{number:.2f}" if few else ""))
    return ax


def _draw_groups(pairs: pd.DataFrame, label: str, ax: Axes | None, title: str | None) -> Axes:
    """A column of points for every group, each point above the level of chance of its own pair."""
    groups, colour, scale = pairs.groupby("by", sort=False), KINDS["searched"][1], style().scale
    ax = ax or new_axes(float(np.clip(0.7 + 0.75 * len(groups), 3.35, 6.9)), 3.0)
    inches = ax.bbox.width / figure_of(ax).dpi / groups.ngroups
    ticks = []
    for i, (name, group) in enumerate(groups):
        chance, mean = group[["chance", "value"]].mean()
        group = group.sort_values(["high", "value"])  # so that the levels of chance are a staircase
        edges = i + np.linspace(-0.42, 0.42, len(group) + 1)
        x, high = (edges[1:] + edges[:-1]) / 2, group["high"].to_numpy()
        ax.fill_between(edges, chance, [*high, high[-1]], step="post", gid="chance-band", **style().band)
        faces = np.where(group["above"], colour, style().ground)
        ax.scatter(x, group["value"], 13 * scale**2, faces, edgecolors=colour, linewidths=0.8 * scale, gid="pairs")
        ax.hlines(chance, edges[0], edges[-1], color=style().grey, linewidth=scale, gid="chance")
        look: dict[str, Any] = {"color": style().ink, "linewidth": 2 * scale, "path_effects": rim(4), "zorder": 4}
        ax.hlines(mean, i - 0.25, i + 0.25, gid="mean", **look)
        lines = [str(name), f"mean {mean:.2f}", f"{group['above'].sum()} of {len(group)} above"]
        ticks.append(wrapped(lines, inches))
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set_xlim(-0.5, len(ticks) - 0.5)
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), None)
    handles = [
        entry("mean", color=style().ink, linewidth=2 * scale),
        entry("chance", color=style().grey, linewidth=scale),
        Patch(label="up to 95 % of chance, pair by pair", **style().band),
        entry("pair above", marker="o", color=colour, markersize=4 * scale),
        entry("pair not above", marker="o", color=colour, markersize=4 * scale, markerfacecolor=style().ground),
    ]
    return finish_axes(ax, "", label, handles, title)


def _draw_cells(
    ax: Axes, values: pd.DataFrame, label: str, marks: Any = None, extend: str = "neither", **colours: Any
) -> tuple[Any, list[Any]]:
    """Coloured cells with a colour bar, and legend handles of its ``marks``; missing cells are hatched."""
    sns.heatmap(values.astype(float), cbar=False, ax=ax, xticklabels=True, yticklabels=True, **colours)
    ax.patch.set(**style().hatching)
    ax.tick_params(length=0, pad=2)
    ax.tick_params("y", rotation=0)
    mesh = ax.collections[-1]
    mesh.set_gid("cells")
    handles = colour_bar(mesh, ax, label, marks, extend)
    wide = 0.65 * style().font * max(len(str(name)) for name in values.columns) > cell_size(ax)[0]
    ax.tick_params("x", rotation=90 if wide else 0)
    return mesh, handles


def _write_numbers(ax: Axes, mesh: Any, values: pd.DataFrame, numbers: pd.DataFrame) -> None:
    """Numbers in a readable colour and in a size that fits the cells; what does not fit is left out."""
    (width, height), font = cell_size(ax), style().font
    ax.tick_params(labelsize=font_for(min(width, height)))
    for (i, j), value in np.ndenumerate(values.to_numpy(float)):
        lines = str(numbers.iat[i, j]).split("\n")[: 1 + (height > 2.3 * font)]  # no interval if there is no space
        size = min(font, height / (1.15 * len(lines)), width / (0.72 * max(map(len, lines)) + 0.01))
        if np.isfinite(value) and lines[0] and size >= 0.6 * font:
            colour = readable_on(mesh.to_rgba(value))[0]
            ax.text(j + 0.5, i + 0.5, "\n".join(lines), size=size, color=colour, ha="center", va="center", gid="number")
