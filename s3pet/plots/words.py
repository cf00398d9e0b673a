"""Figures in words: alt text for readers who cannot see them, and a plain-language summary for everybody."""

from __future__ import annotations

from typing import Any

import numpy as np

from s3pet.plots.maps import MAP_COLUMNS, cut_and_start
from s3pet.plots.style import as_table, flag


def describe(gates: Any, *, top: int = 3) -> str:
    """A gate table in plain language, as alt text: what was chosen, where it lies, how far the gates separated.

    Args:
        gates: a gate table, or an object with ``.gates``; all columns of a search but ``margin`` are needed.
        top: how many of the most probable candidates to name.
    """
    table = as_table(gates, ["site", *MAP_COLUMNS, "n_params", "prob", "chosen"])
    mine = table[flag(table, "chosen")]
    total, used, n_sites = int(table["n_params"].sum()), int(mine["n_params"].sum()), table["site"].nunique()
    text = [f"{len(table):,} candidates at {n_sites:,} sites with {total:,} parameters;"]
    text += [f"{len(mine):,} chosen with {used:,} parameters ({100 * used / total:.3g} %)."]
    for name, column in (("module", "pet"), ("role", "role"), ("stack", "stack")) if used else ():
        sizes = mine.groupby(column, observed=True)["n_params"].sum().sort_values(ascending=False, kind="stable")
        shares = ", ".join(f"{key} {100 * size / used:.0f} %" for key, size in sizes.items())
        text.append(f"Share of the chosen parameters by {name}: {shares}.")
    for stack, part in mine.dropna(subset="layer").groupby("stack", observed=True, sort=False):
        layers, last = part["layer"].astype(int), int(table.loc[table["stack"] == stack, "layer"].max())
        depth = np.average(layers, weights=part["n_params"])
        text.append(f"In the {stack}, layers {layers.min()} to {layers.max()} of 0 to {last}, mean depth {depth:.1f}.")
    best = table.nlargest(top, "prob")[["site", "pet", "prob"]].to_dict("records")
    text.append("Most probable: " + ", ".join(f"{row['site']} {row['pet']} {row['prob']:.3g}" for row in best) + ".")
    separation = {"highest probability": table["prob"].max()} | cut_and_start(table)
    text.append("Separation: " + ", ".join(f"{name} {number:.3g}" for name, number in separation.items()) + ".")
    return " ".join(text)
