"""Gate tables made in memory, and what tests of figures ask of Axes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.text import Text

from s3pet import plots

SPACES = {"t5-pocket": (4, 4, False), "bert-like": (6, 0, True), "t5-large": (24, 24, False)}


def make_gates(n_encoder: int = 4, n_decoder: int = 4, *, bert: bool = False, seed: int = 0) -> pd.DataFrame:
    """A gate table like a search's on T5 (or BERT): every key bias inert, a fifth of the candidates chosen."""
    rows = []

    def add(stack, layer, role, pet, n_params, inert=False):
        site = f"{stack}.{role}" if layer is None else f"{stack}.{layer}.{role}"
        row = {"site": site, "path": f"hf.{site}", "stack": stack, "layer": layer, "role": role, "pet": pet}
        rows.append(row | {"rank": 1 if pet == "lora" else None, "n_params": n_params, "inert": inert})

    for stack, n_layers in (("encoder", n_encoder), ("decoder", n_decoder)):
        for layer in range(n_layers):
            for role in ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.in", "ffn.out"):
                add(stack, layer, role, "lora", 128)
                add(stack, layer, role, "bitfit", 64, role == "attn.k")
            for role in ("attn.norm", "ffn.norm") + ("cross.norm",) * (stack == "decoder"):
                add(stack, layer, role, "lnfit", 64)
                add(stack, layer, role, "bitfit", 64)
            for role in ("attn", "ffn"):
                add(stack, layer, role, "lowrank_adapter", 198)
        if n_layers:
            for pet in ("lnfit", "bitfit"):
                add(stack, None, "embed.norm" if bert else "final.norm", pet, 64)
    table = pd.DataFrame(rows).astype({"layer": "Int64", "rank": "Int64"})
    alpha = np.random.default_rng(seed).normal(size=len(table))
    prob = 1 / (1 + np.exp(2 - alpha))
    cut = np.quantile(prob, 0.8)
    return table.assign(alpha=alpha, prob=prob, chosen=prob > cut, margin=prob - cut)


def make_structure(gates: pd.DataFrame, budget: int | None = None) -> SimpleNamespace:
    """A structure of the chosen rows."""
    chosen = gates.loc[gates["chosen"], ["site", "stack", "layer", "role", "pet", "rank", "n_params"]]
    return SimpleNamespace(table=lambda: chosen, n_params=int(chosen["n_params"].sum()), budget=budget)


def by_gid(ax, gid: str) -> list:
    """Artists of Axes with this group id."""
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def centres(ax, gid: str) -> set:
    """Middles of the squares of a collection."""
    return {tuple(np.round(path.vertices[:4].mean(0), 6)) for artist in by_gid(ax, gid) for path in artist.get_paths()}


def places(gates, rows) -> set:
    """Where some rows of a gate table lie on its map."""
    cells = plots.gate_cells(gates.assign(chosen=rows), grid=plots.make_grid(gates))
    return {tuple(np.round(place, 6)) for place in cells.loc[cells["chosen"], ["x", "y"]].to_numpy()}


def legend_texts(ax) -> list[str]:
    """Texts of a legend, each on one line."""
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def overlaps(texts) -> list[tuple[str, str]]:
    """Pairs of texts that overlap, in a figure that has been drawn."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts if text.get_text()]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]


def contrast(one, other):
    """Ratio of relative luminances (WCAG 2)."""

    def luminance(colour):
        rgb = np.array(matplotlib.colors.to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def make_utility(gates: pd.DataFrame, *, noise: float = 0.3, seed: int = 0) -> pd.DataFrame:
    """A made-up utility table: half α, half luck; measured with error, and exactly 0 where the gate table is inert."""
    rng = np.random.default_rng(seed)
    error = np.where(gates["inert"], 0.0, noise * rng.uniform(0.5, 1.5, len(gates)))
    true = np.where(gates["inert"], 0.0, gates["alpha"] + rng.normal(size=len(gates)))
    table = gates.drop(columns=["alpha", "prob", "chosen", "margin"])
    table = table.assign(utility=true + error * rng.normal(size=len(gates)), utility_error=error)
    table = table.assign(score_gain=table["utility"].round(1), score_gain_error=0.1, measure="solo", task="made-up")
    return table.assign(steps=100, seeds=3)
