"""Figures in words: alt text for readers who cannot see them, and a plain-language summary for everybody."""

from __future__ import annotations

from collections.abc import Sequence
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
        gates: a gate table, or an object with ``.gates``; all columns of a search but ``margin`` are needed. Of a
            search it also says how far the loss fell.
        top: how many kinds of modules, and how many of the most probable candidates, to name.

    Returns:
        Sentences whose every number is computed from the table; no judgement that is not one.
    """
    table = as_table(gates, ["site", *MAP_COLUMNS, "n_params", "prob", "chosen"])
    mine = table[flag(table, "chosen")]
    total, used, n_sites = int(table["n_params"].sum()), int(mine["n_params"].sum()), table["site"].nunique()
    text = [f"{len(table):,} candidates at {n_sites:,} sites with {total:,} parameters;"]
    text += [f"{len(mine):,} chosen with {used:,} parameters ({100 * used / total:.3g} %)."]
    if used:
        text += [_kinds(mine, used, top), _modules(mine, used)]
    for stack, part in mine.dropna(subset="layer").groupby("stack", observed=True, sort=False):
        layers, last = part["layer"].astype(int), int(table.loc[table["stack"] == stack, "layer"].max())
        depth = np.average(layers, weights=part["n_params"])
        text.append(f"In the {stack}, {_layers(layers)} of 0 to {last}, mean depth {depth:.1f}.")
    best = table.nlargest(top, "prob")[["site", "pet", "prob"]].to_dict("records")
    text.append("Most probable: " + ", ".join(f"{row['site']} {row['pet']} {row['prob']:.3g}" for row in best) + ".")
    separation = {"highest probability": table["prob"].max()} | cut_and_start(table)
    text.append("Separation: " + ", ".join(f"{name} {number:.3g}" for name, number in separation.items()) + ".")
    expected = float((table["prob"] * table["n_params"]).sum())
    if used and expected > 0:
        inside = float((mine["prob"] * mine["n_params"]).sum()) / expected
        text.append(f"{100 * inside:.0f} % of the parameters that the gates expect lie on what was chosen.")
    drop = getattr(gates, "loss_drop", float("nan"))
    if np.isfinite(drop):
        text.append(f"The search's loss on held-out rows {'fell' if drop >= 0 else 'rose'} by {100 * abs(drop):.0f} %.")
    return " ".join(text)


def _kinds(mine: pd.DataFrame, used: int, top: int) -> str:
    """Where the budget goes: the dearest stack × role × PET module, in words."""
    groups = mine.groupby(["stack", "role", "pet"], observed=True, sort=False)
    sizes = groups["n_params"].sum().sort_values(ascending=False, kind="stable")
    found = []
    for stack, role, pet in sizes.index[:top]:
        part = mine[(mine["stack"] == stack) & (mine["role"] == role) & (mine["pet"] == pet)]
        where = f", {_layers(part['layer'].dropna().astype(int))}" if part["layer"].notna().all() else ""
        share = 100 * sizes[stack, role, pet] / used
        found.append(f"{MODULES.get(str(pet), pet)} on {stack} {_place(role)}{where} ({share:.0f} %)")
    rest, others = 100 * sizes.iloc[top:].sum() / used, len(sizes) - top
    tail = f"; {others} other kind{'s' * (others > 1)} take the remaining {rest:.0f} %" if others > 0 else ""
    return f"The parameters go to {', '.join(found)}{tail}."


def _modules(mine: pd.DataFrame, used: int) -> str:
    sizes = mine.groupby("pet", observed=True)["n_params"].sum().sort_values(ascending=False, kind="stable")
    shares = [f"{MODULES.get(str(pet), pet)} {100 * size / used:.0f} %" for pet, size in sizes.items()]
    return f"By module: {', '.join(shares)}."


def _place(role: str) -> str:
    block, _, part = role.partition(".")
    name = BLOCKS.get(block, block)
    if part == "norm":
        return f"{name} norms" if block in ("attn", "cross", "ffn") else f"{name} norm"
    return f"{name} {PARTS.get(part, part)}" if role in ROLES and part else f"{name} blocks" if role in ROLES else role


def _layers(layers: Sequence[int] | pd.Series) -> str:
    """``layer 3``, ``layers 0, 2 and 5-7``."""
    found = sorted(set(map(int, layers)))
    runs: list[list[int]] = []
    for layer in found:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    names = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"layer{'s' * (len(found) > 1)} {listed}"
