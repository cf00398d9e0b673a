"""The interactive map as data: what :mod:`s3pet.widgets.interactive` and a web page draw, in numbers and words.

Layout, colours and words are those of the figures (:mod:`s3pet.plots`); the browser only places them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from s3pet.errors import PlotError, nearest
from s3pet.plots.cuts import budget_shares
from s3pet.plots.faithfulness import INERT, utility_scale
from s3pet.plots.maps import LABELS, MAP_COLUMNS, Grid, columns_of, cut_and_start, gate_cells, make_grid, row_name
from s3pet.plots.sizes import chosen_words, rank_words
from s3pet.plots.style import DARK, DIVERGING, PET_COLOURS, PETS, STYLES, as_table, flag, value_limits
from s3pet.plots.words import candidate_names, candidate_table, describe
from s3pet.utility import check_utility

FACT = {"prob": "probability", "alpha": "α", "margin": "margin to the cut", "prob_spread": "spread"}  # column → fact
FACT |= {"frequency": "chosen in", "n_params": "cost", "share": "cost"}
MEASURED, FIRST = "utility", ("prob", "share", "utility")  # FIRST: what a map shows if it is not told
THEMES = {"light": STYLES["notebook"], "dark": replace(STYLES["notebook"], dark=True, **DARK)}
CHOSEN, IS_INERT, VEILED = 1, 2, 4  # bits of a cell's state
N_COLOURS = 256


def map_data(
    gates: Any,
    *,
    value: str = "",
    choices: pd.DataFrame | None = None,
    utility: pd.DataFrame | None = None,
    limits: Callable[[str], tuple[float, float]] | None = None,
    budget: int | None = None,
    shown: pd.Series | None = None,
    title: str = "",
) -> dict[str, Any]:
    """A gate table as an interactive map, in JSON: layout, colours and words of every candidate.

    Args:
        gates: a gate table, a table of candidates with some number, or an object with ``.gates``.
        value: what the colour shows at first; "": the first column that there is of ``prob``, ``share``, ``utility``.
        choices: which searches (columns) choose which candidates (names).
        utility: a utility table; its ``utility`` can be shown too.
        limits: a function of a column that returns its colour limits; None: those of `value_limits`.
        budget: in parameters, for the bars; None: what the chosen candidates cost together.
        shown: whether each row passes a filter; cells without such a row are veiled.
        title: the heading.
    """
    table = as_table(gates, [*MAP_COLUMNS, "site", "rank"])
    table = table.assign(name=candidate_names(table).to_numpy(), chosen=flag(table, "chosen"))
    fact = dict(FACT)
    if utility is not None:
        measured = check_utility(utility)
        fact[MEASURED] = f"{measured['measure'].iloc[0]} utility"
        table = table.assign(**{MEASURED: measured[MEASURED].reindex(table["name"]).to_numpy()})
    numbers = [name for name in dict.fromkeys((*fact, value)) if name in table and name != "n_params"]
    numbers = [name for name in numbers if pd.api.types.is_numeric_dtype(table[name])]
    if not numbers or value not in ("", *numbers):
        hint = f"no column {value!r} of numbers; {nearest(value, numbers)}" if value else "no numbers such as prob"
        raise PlotError(f"A map colours its cells by a column. The table has {hint}. Its columns are {list(table)}.")
    facts = candidate_table(
        table if "chosen" in as_table(gates, []) else table.drop(columns="chosen"), choices, utility=utility
    )
    for name in numbers:
        if fact.setdefault(name, LABELS.get(name, name)) not in facts:
            texts = [f"{number:.4g}" if pd.notna(number) else None for number in table[name]]
            facts[fact[name]] = pd.Series(texts, facts.index, dtype=object)
    grid, key = make_grid(table), next((name for name in FIRST if name in numbers), numbers[0])
    table["x"] = [grid.columns[place] for place in zip(table["stack"], columns_of(table), strict=True)]
    table["y"] = [grid.rows[place] for place in zip(table["role"], table["pet"], strict=True)]
    table["shown"] = True if shown is None else shown.to_numpy()
    one, spots = gate_cells(table, key, grid=grid), table.groupby(["x", "y"])
    places = [*zip(one["x"], one["y"], strict=True)]
    tops, seen = spots[numbers].max().loc[places], spots["shown"].any().loc[places].to_numpy()
    ranked = table.reset_index(drop=True).sort_values(["chosen", key], ascending=False, kind="stable")
    order, inside = ranked.index[ranked["chosen"]].tolist(), ranked.groupby(["x", "y"]).groups
    state = CHOSEN * one["chosen"] + IS_INERT * one["inert"] + VEILED * ~seen
    bars, shares = [], []
    if order and "n_params" in table:
        bars, cost = _bars(budget_shares(table, budget)), table["n_params"]
        shares = (100 * cost / float(budget or cost[table["chosen"]].sum())).round(3).tolist()
    inert = INERT if "prob" not in table else "inert: cannot act"
    values = {name: _colours(table, tops[name], name, fact, limits) for name in numbers}
    palettes = {str(name) for each in values.values() for name in each["colours"].values()}
    return {
        "title": title,
        "summary": describe(gates) if {"prob", "n_params"} <= set(table) and order else f"{len(table):,} candidates.",
        "value": value or key,
        "values": values,
        "colours": {name: _palette(name) for name in sorted(palettes)},
        "grid": _layout(grid),
        "cells": {
            "x": one["x"].round(3).tolist(),
            "y": one["y"].round(3).tolist(),
            "state": state.astype(int).tolist(),
            "rank": _coded(one["rank"]),
            "candidates": [inside[place].tolist() for place in places],  # the first is shown
        },
        "names": table["name"].tolist(),
        "pets": _coded(table["pet"]),
        "facts": {name: _coded(column) for name, column in facts.items() if column.notna().any()},
        "order": order,
        "bars": bars,
        "shares": shares,
        "legend": {
            "chosen": chosen_words(table) if order else "",
            "inert": inert if one["inert"].any() else "",
            "rank": rank_words(one[one["rank"].ne("")]) if one["rank"].ne("").any() else "",
        },
    }


def _layout(grid: Grid) -> dict[str, Any]:
    """The rows, columns and headings of a grid, each as its place and its name."""
    return {
        "size": [round(length, 3) for length in grid.size],
        "rows": [[round(y, 3), row_name(*row)] for row, y in grid.rows.items()],
        "headers": [[round(y, 3), name] for name, y in grid.headers.items()],
        "columns": [[round(x, 3), name] for (_, name), x in grid.columns.items()],
        "stacks": [[name, round(xs[0], 3), round(xs[-1], 3)] for name, xs in grid.stacks.items()],
    }


def _colours(table: pd.DataFrame, cells: pd.Series, name: str, fact: Mapping[str, str], limits: Any) -> dict[str, Any]:
    """How a column is coloured: label, limits, colour maps and the colour of each cell; −1 without a number."""
    marks, label, extend = dict[str, float](), LABELS.get(name, name), "neither"
    if name == MEASURED:
        norm, _, extend = utility_scale(table[name].dropna() if table[name].notna().any() else pd.Series([0.0]))
        low, high, label = float(norm.vmin or 0), float(norm.vmax or 1), f"{fact[name]} (nats)"
    else:
        low, high = limits(name) if limits else value_limits(table, value=name)
    if name == "prob" and "n_params" in table:
        marks = {mark: at for mark, at in cut_and_start(table).items() if low <= at <= high}
    diverging = name in DIVERGING or (name == MEASURED and low < 0)
    maps = {theme: style.colours("margin" if diverging else "prob") for theme, style in THEMES.items()}
    place = (cells.to_numpy(float) - low) / (high - low) * N_COLOURS  # as matplotlib does
    index = np.where(np.isnan(place), -1, np.clip(np.nan_to_num(place), 0, N_COLOURS - 1)).astype(int)
    about = {"label": label, "fact": fact[name], "limits": [low, high], "extend": extend, "marks": marks}
    return about | {"colours": maps, "index": index.tolist()}


def _palette(name: str) -> str:
    """The colours of a colour map, as one hexadecimal text of six letters each."""
    return "".join(to_hex(colour)[1:] for colour in mpl.colormaps[name](np.arange(N_COLOURS)))


def _bars(shares: pd.DataFrame) -> list[dict[str, Any]]:
    """`s3pet.plots.plot_budget_bar` as data."""
    bars = []
    for pet, row in shares.rename(index=str).iterrows():
        bar: dict[str, Any] = {"pet": pet, "label": PETS.get(str(pet), pet), "share": round(row["share"], 3)}
        bar |= {"uniform": round(row["uniform"], 3) if row["all"] else None, "text": row["words"]}
        bars.append(bar | {"colour": PET_COLOURS.get(str(pet), STYLES["notebook"].faint)})
    return bars


def _coded(texts: Iterable[Any]) -> Any:
    """Texts as a list or, if few differ, as the different ones and the place of each among them."""
    listed = [None if pd.isna(text) else str(text) for text in texts]
    different = [*dict.fromkeys(listed)]
    if 4 * len(different) > len(listed):
        return listed
    place = {text: i for i, text in enumerate(different)}
    return {"of": different, "at": [place[text] for text in listed]}
