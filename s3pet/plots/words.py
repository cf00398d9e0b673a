"""Gate tables in words: alt text for readers who cannot see a figure, and a summary in plain language."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from s3pet.plots.grid import MAP_COLUMNS, ROLES, cut_and_start
from s3pet.plots.style import PETS, as_table, flag

PARTS = {"q": "queries", "k": "keys", "v": "values", "o": "outputs", "in": "inputs", "out": "outputs", "gate": "gates"}
MODULES = PETS | {"lowrank_adapter": "low-rank adapters", "adapter": "bottleneck adapters"}
BLOCKS = {"attn": "attention", "cross": "cross-attention", "ffn": "FFN", "embed": "embedding", "final": "final"}


def describe(gates: Any, *, top: int = 3) -> str:
    """A gate table in plain language, as alt text: what was chosen, where it lies, how far the gates separated.

    Args:
        gates: a gate table, or an object with ``.gates``, with all columns of a search; ``margin`` may be missing. For
            a search it also says how far the loss fell.
        top: how many kinds of modules, and how many of the most probable candidates, to name.

    Returns:
        Sentences whose numbers are all computed from the table.
    """
    table = as_table(gates, ["site", *MAP_COLUMNS, "n_params", "prob", "chosen"])
    chosen = table[flag(table, "chosen")]
    total, used, n_sites = int(table["n_params"].sum()), int(chosen["n_params"].sum()), table["site"].nunique()
    text = [f"{len(table):,} candidates at {n_sites:,} sites with {total:,} parameters;"]
    text += [f"{len(chosen):,} chosen with {used:,} parameters ({100 * used / total:.3g} %)."]
    if used:
        text.append(_kinds(chosen, used, top))
        sizes = chosen.groupby("pet", observed=True)["n_params"].sum().sort_values(ascending=False, kind="stable")
        shares = [f"{MODULES.get(str(pet), pet)} {100 * size / used:.0f} %" for pet, size in sizes.items()]
        text.append(f"By module: {', '.join(shares)}.")
    for stack, part in chosen.dropna(subset="layer").groupby("stack", observed=True, sort=False):
        layers, last = part["layer"].astype(int), int(table.loc[table["stack"] == stack, "layer"].max())
        depth = np.average(layers, weights=part["n_params"])
        text.append(f"In the {stack}, {_layers(layers)} of 0 to {last}, mean depth {depth:.1f}.")
    best = table.nlargest(top, "prob")[["site", "pet", "prob"]].to_dict("records")
    text.append("Most probable: " + ", ".join(f"{row['site']} {row['pet']} {row['prob']:.3g}" for row in best) + ".")
    separation = {"highest probability": table["prob"].max()} | cut_and_start(table)
    text.append("Separation: " + ", ".join(f"{name} {number:.3g}" for name, number in separation.items()) + ".")
    expected = table["prob"] * table["n_params"]
    if used and expected.sum() > 0:
        inside = 100 * expected[chosen.index].sum() / expected.sum()
        text.append(f"{inside:.0f} % of the parameters that the gates expect lie on what was chosen.")
    drop = getattr(gates, "loss_drop", float("nan"))
    if np.isfinite(drop):
        text.append(f"The search's loss on held-out rows {'fell' if drop >= 0 else 'rose'} by {100 * abs(drop):.0f} %.")
    return " ".join(text)


def _kinds(chosen: pd.DataFrame, used: int, top: int) -> str:
    """The kinds of modules, stack × role × PET module, with the most parameters."""
    groups = chosen.groupby(["stack", "role", "pet"], observed=True, sort=False)
    shares = (100 * groups["n_params"].sum() / used).sort_values(ascending=False, kind="stable")
    kinds = []
    for stack, role, pet, share in shares.iloc[:top].reset_index().itertuples(index=False):
        layers = groups.get_group((stack, role, pet))["layer"]
        where = f", {_layers(layers)}" if layers.notna().all() else ""
        kinds.append(f"{MODULES.get(str(pet), pet)} on {stack} {_place(role)}{where} ({share:.0f} %)")
    rest = shares.iloc[top:]
    tail = f"; {len(rest)} other kind{'s' * (len(rest) > 1)} take the remaining {rest.sum():.0f} %" if len(rest) else ""
    return f"The parameters go to {', '.join(kinds)}{tail}."


def _place(role: str) -> str:
    block, _, part = role.partition(".")
    name = BLOCKS.get(block, block)
    if part == "norm":
        return f"{name} norms" if block in ("attn", "cross", "ffn") else f"{name} norm"
    return f"{name} {PARTS.get(part, part)}" if role in ROLES and part else f"{name} blocks" if role in ROLES else role


def _layers(layers: pd.Series) -> str:
    """``layer 3``, ``layers 0, 2 and 5-7``."""
    numbers = pd.Series(sorted(set(layers.astype(int))))
    runs = [(int(run.min()), int(run.max())) for _, run in numbers.groupby(numbers - numbers.index)]
    names = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"layer{'s' * (len(numbers) > 1)} {listed}"
