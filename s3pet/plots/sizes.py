"""What maps say in numbers: which size of a PET module was chosen, in its cell, and how much was chosen in all."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from s3pet.plots.frame import entry, font_for, readable_on
from s3pet.plots.style import figure_of, flag, style


def chosen_words(table: pd.DataFrame) -> str:
    """How many candidates of a table are chosen, of how many, and their parameters, if known."""
    chosen = table[flag(table, "chosen")]
    cost = f", {chosen['n_params'].sum():,} parameters" if "n_params" in table else ""
    return f"chosen: {len(chosen):,} of {len(table):,}{cost}"


def shown_ranks(table: pd.DataFrame, keys: list[str], space: pd.DataFrame) -> dict[tuple, str]:
    """The size that a cell of a map names, by its values of the columns ``keys``: chosen, else the most probable.

    Only of PET modules with several sizes in the ``space``. Structures of early versions can have several in a cell.
    """
    if "rank" not in table or "rank" not in space:
        return {}
    n_sizes = space.groupby("pet", observed=True)["rank"].nunique()
    several = table[table["pet"].isin(n_sizes.index[n_sizes > 1])].dropna(subset="rank")
    several = several.sort_values("prob" if "prob" in several else "rank", ascending=False, kind="stable")
    ranks: dict[Any, list[int]] = {}
    for chosen in (several[flag(several, "chosen")], several):
        for key, rank in zip(chosen[keys].itertuples(index=False, name=None), chosen["rank"], strict=True):
            if key not in ranks or chosen is not several:
                ranks.setdefault(key, []).append(int(rank))
    return {key: "+".join(map(str, sorted(own))) for key, own in ranks.items()}


def write_ranks(ax: Axes, cells: pd.DataFrame, mesh: Any, size: tuple[float, float]) -> list[Any]:
    """Write the ``rank`` of each cell that has one, in a size that fits; returns its legend handle.

    ``size`` is that of the map, in cells; the text is bold where the cell is chosen.
    """
    if (named := cells[cells["rank"].fillna("").ne("")]).empty:
        return []
    width, height = figure_of(ax).get_size_inches() * ax.get_position().size * 72 / size  # points per cell, about
    for row, colour in zip(named.to_dict("records"), readable_on(mesh.to_rgba(named["value"])), strict=True):
        look: dict[str, Any] = {"color": colour, "weight": "bold" if row["chosen"] else "normal", "gid": "rank"}
        look["size"] = min(font_for(height), 1.15 * width / len(row["rank"]))
        ax.text(row["x"], row["y"], row["rank"], ha="center", va="center_baseline", **look)
    return [entry(rank_words(named), color=style().ink, marker="$n$", markersize=4 * style().scale)]


def rank_words(cells: pd.DataFrame) -> str:
    """What the numbers in the cells of a map are."""
    words = "rank" if cells["chosen"].all() else "rank that was chosen, else the most probable"
    return words + (", a/b: of the first and of the second" if cells["rank"].str.contains("/").any() else "")
