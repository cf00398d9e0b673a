"""Curves of searches: where the parameters go, how the gates changed over the steps, and how far they separated.

Each figure also shows what uniform gates would give, for comparison: a tall bar may only belong to a layer with many
parameters, and a structure can be cut even from gates that hardly differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from s3pet.errors import PlotError, shown
from s3pet.files.kinds import one_of
from s3pet.plots.frame import entry, finish_axes, in_order, rim
from s3pet.plots.maps import LABELS, MAP_COLUMNS, STACKS, cut_and_start, gate_cells, place_of, roles_in_order
from s3pet.plots.style import MARKERS, PALETTE, PET_COLOURS, PETS, as_table, figure_of, flag, new_axes, style, styled
from s3pet.plots.words import candidate_names

PROFILES = {"layer": ["stack", "layer", "pet"], "role": ["role", "pet"], "stack": ["stack", "pet"], "pet": ["pet"]}
SHARES = {"chosen": "share of the chosen\nparameters (%)", "prob": "share of the expected\nparameters (%)"}


def profile_shares(gates: Any, by: str = "layer", value: str = "chosen") -> pd.DataFrame:
    """Shares of the parameters by layer, role, stack or PET module, and what uniform gates would give.

    Args:
        gates: a gate table, or an object with ``.gates``.
        by: "layer" (of each stack; sites outside the layers are "embed" and "final"), "role", "stack" or "pet".
        value: "chosen" (parameters of the structure) or "prob" (expected parameters, Σ n_params · prob).

    Returns:
        The columns of the group, ``pet``, ``share`` and ``uniform`` (in %, both sum to 100), in the order of the maps.
    """
    if not one_of(PROFILES).holds(by) or not one_of(SHARES).holds(value):
        raise PlotError(f"by is one of {[*PROFILES]} and value of {[*SHARES]}; got {by!r} and {value!r}.")
    table = as_table(gates, [*MAP_COLUMNS, "n_params", value])
    weight = table["n_params"] * (flag(table, "chosen") if value == "chosen" else table["prob"])
    if not weight.sum() > 0:
        raise PlotError(f"No shares to show: {value!r} is 0 for all {len(table)} candidates.")
    table = table.assign(share=100 * weight / weight.sum(), uniform=100 * table["n_params"] / table["n_params"].sum())
    cells = gate_cells(table, "share", how="sum").rename(columns={"value": "share", "column": "layer"})
    cells["uniform"] = gate_cells(table, "uniform", how="sum")["value"]  # the same cells in the same order
    names = [*in_order(cells["stack"], STACKS), *roles_in_order(cells["role"]), *PETS]
    order = {name: i for i, name in enumerate(names)}
    keys = ["x", "pet"] if by == "layer" else PROFILES[by]
    cells = cells.sort_values(keys, key=lambda names: names if names.name == "x" else names.map(order))
    return cells.groupby(PROFILES[by], sort=False)[["share", "uniform"]].sum().reset_index()


@styled
def plot_profile(
    gates: Any, *, by: str = "layer", value: str = "chosen", ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Where the parameters go, as bars stacked by PET module; a mark on each bar shows the share with uniform gates.

    The mark is the group's share of all parameters of the space. A bar beyond its mark has more than its size explains.
    Arguments are those of `profile_shares`, which has the numbers; ``by="layer"`` gives upright bars, else level ones.
    """
    shares, upright = profile_shares(gates, by, value), by == "layer"
    keys = [name for name in PROFILES[by] if name != "pet"] or ["pet"]
    pets = in_order(shares["pet"], PETS)
    totals = shares.groupby(keys, sort=False)[["share", "uniform"]].sum()
    bars = shares.pivot_table("share", keys, shares["pet"].rename("module")).loc[totals.index, pets].fillna(0)
    n, scale, high = len(bars), style().scale, 1.06 * float(totals.to_numpy().max())
    ax = ax or (new_axes(float(np.clip(0.8 + 0.15 * n, 3.35, 6.9)), 2.8) if upright else new_axes(None, 1.2 + 0.17 * n))
    colours = [PET_COLOURS.get(pet, style().grey) for pet in pets]
    bars.plot(kind="bar" if upright else "barh", stacked=True, width=0.8, color=colours, ax=ax, legend=False, rot=0)
    mark: Any = ax.hlines if upright else ax.vlines
    look: dict[str, Any] = {"color": style().ink, "linewidth": 1.2 * scale}
    mark(totals["uniform"], np.arange(n) - 0.46, np.arange(n) + 0.46, gid="uniform", path_effects=rim(2.6), **look)
    handles: list[Any] = [Patch(color=c, label=PETS.get(pet, pet)) for pet, c in zip(pets, colours, strict=True)]
    handles = handles * (by != "pet") + [entry("uniform gates", **look)]
    ax.tick_params("x" if upright else "y", length=0)
    if not upright:
        ax.set(xlim=(0, high), ylim=(n - 0.4, -0.6))
        names = [_role(name) if by == "role" else PETS.get(name, name) for name in totals.index]
        ax.set_yticklabels([f"{name}  {share:.0f} %" for name, share in zip(names, totals["share"], strict=True)])
        return finish_axes(ax, SHARES[value].replace("\n", " "), "", handles, title)
    stacks, layers = (totals.index.get_level_values(i) for i in (0, 1))
    ax.set(xlim=(-0.7, n - 0.3), ylim=(0, 1.09 * high))  # the names of the stacks lie above the bars
    every = int(np.ceil(1.5 * style().font * n / (ax.bbox.width * 72 / figure_of(ax).dpi)))  # bars between labels
    labels = [name[0] if not name.isdigit() else name if int(name) % every == 0 else "" for name in layers]
    labels = ["" if every > 2 and i and labels[i - 1].isalpha() else label for i, label in enumerate(labels)]
    ax.set_xticklabels(labels)
    for stack in stacks.unique():
        places = np.flatnonzero(stacks == stack)
        look = {"ha": "center", "va": "top", "size": style().font, "weight": "bold", "gid": "stack"}
        ax.text(places.mean(), 0.99, stack, transform=ax.get_xaxis_transform(), **look)
        if places[0]:
            ax.axvline(places[0] - 0.5, color=style().grey, linewidth=0.7, gid="stack-separator")
    outside = ", ".join(sorted({f"{name[0]}: {name}" for name in layers if not name.isdigit()}))
    return finish_axes(ax, f"layer ({outside})" if outside else "layer", SHARES[value], handles, title)


@styled
def plot_trajectories(
    result: Any, *, value: str = "prob", highlight: int = 6, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Every candidate over the steps of a search: when the gates separated, and whether they still move.

    A line per candidate, thick if it was chosen. The cut is the lowest final value among the chosen. The legend names
    the candidates with the highest final values; one with a hollow marker was not chosen, because it cost more than
    what was left of the budget.

    Args:
        result: an object with ``.trajectory`` (``candidate, step, alpha, prob``) and ``.gates``.
        value: "prob", or "alpha", which shows candidates with a small probability better.
        highlight: how many candidates to name, highest final value first; at most 12.
    """
    if value not in ("prob", "alpha"):
        raise PlotError(f"value is 'prob' or 'alpha'; got {value!r}.")
    if getattr(result, "trajectory", None) is None:
        what = f"a gate table has the last step only; got {shown(result)}"
        raise PlotError(f"Expected a search result or a run, with .trajectory; {what}.")
    gates = as_table(result, [*MAP_COLUMNS, "n_params", "prob", "chosen"])
    gates = gates.set_axis(candidate_names(gates))
    steps = as_table(result.trajectory, ["candidate", "step", value], one=("seed", "task", "budget"))
    duplicates, unmatched = steps.duplicated(["candidate", "step"]).sum(), set(gates.index) ^ set(steps["candidate"])
    if duplicates or unmatched:
        reason = f"{len(unmatched)} candidates are in one only, {duplicates} rows of the trajectory are duplicates"
        raise PlotError(f"Trajectory and gates are not of one search: {reason} {sorted(unmatched)[:3] or ''}")
    paths = steps.pivot(index="step", columns="candidate", values=value)[[*gates.index]]
    final, chosen, scale, handles = paths.iloc[-1], flag(gates, "chosen"), style().scale, list[Any]()
    ax = ax or new_axes(None, 3.4)
    thin = float(np.clip(150 / len(gates), 0.35, 1)) ** 0.5  # thinner where there are many
    colours = {pet: PET_COLOURS.get(pet, style().grey) for pet in in_order(gates["pet"], PETS)}
    for pet, colour in colours.items():
        for gid, width, alpha in (("not chosen", 0.6, 0.45 * thin), ("chosen", 1.6, 1.0)):
            names = gates.index[(gates["pet"] == pet) & (chosen == (gid == "chosen"))]
            look: dict[str, Any] = {"linewidth": width * thin * scale, "zorder": 2 + (gid == "chosen") / 2, "gid": gid}
            ax.plot(paths.index, paths[names], color=colour, alpha=alpha, label=pet, **look)
        handles.append(entry(PETS.get(pet, pet), color=colour, linewidth=1.6 * scale))
    handles.append(entry("not chosen", color=style().grey, linewidth=0.6 * scale))
    levels = {"cut": (float(final[chosen].min()), "--")} if chosen.any() else {}
    levels |= {"uniform start": (cut_and_start(gates)["uniform start"], ":")} if value == "prob" else {}
    for name, (y, dashes) in levels.items():
        handles.append(ax.axhline(y, color=style().ink, linestyle=dashes, gid=name, label=f"{name} {y:.3g}"))
    several = gates.groupby(["site", "pet"])["n_params"].transform("size") > 1  # then the rank belongs to the name
    end, step = paths.index[-1], 0.025 * (paths.index[-1] - paths.index[0])
    for i, (name, marker) in enumerate(zip(final.nlargest(max(highlight, 0)).index, MARKERS, strict=False)):
        row = gates.loc[name]
        parts = [row["stack"][:3], row["layer"], row["role"], PETS.get(row["pet"], row["pet"])]
        label = " ".join(str(part) for part in [*parts, *[row.get("rank")] * int(several[name])] if pd.notna(part))
        look = {"color": colours[row["pet"]], "markersize": 5 * scale, "linestyle": "", "gid": "highlight"}
        look["markerfacecolor"] = look["color"] if chosen[name] else style().ground
        handles += ax.plot([end + step * (1 + i % 4)], [final[name]], marker=marker, label=label, **look)
    return finish_axes(ax, "step", LABELS[value], handles, title)


def polarisation(result: Any) -> dict[str, float]:
    """How far the gates of a search (its table, or an object with ``.gates``) are between uniform and decided.

    Returns:
        ``max_prob``; ``cut``, the lowest probability among the chosen; ``uniform``, that of all at the start;
        ``challenger``, the highest probability among those that would fit if the last one chosen were left out;
        ``margin_at_cut``, cut − challenger (nan without a challenger); ``soft_mass_outside``, the share of the expected
        parameters Σ n_params · prob (which are the budget) on candidates that are not chosen; ``n_decided``, how many
        gates are above 0.9 or below a tenth of ``uniform``; ``entropy``, Σ n_params · H(prob) relative to its maximum
        at this budget, which uniform gates have.
    """
    from scipy.special import entr  # type: ignore[import-untyped]

    table = as_table(result, ["n_params", "prob", "chosen"])
    prob, cost, chosen = *table[["prob", "n_params"]].to_numpy(float).T, flag(table, "chosen").to_numpy()
    if not chosen.any():
        raise PlotError(f"None of the {len(table)} candidates is chosen, so there is no cut to compare with.")
    budget, uniform, last = cost @ prob, cost @ prob / cost.sum(), np.where(chosen, prob, np.inf).argmin()
    left = budget - cost[chosen].sum() + cost[last] + 1e-3  # gates meet their budget up to rounding
    module: Any = [table[name] for name in ("site", "pet") if name in table] or [table.index]
    out = flag(table, "chosen").groupby(module).transform("any").to_numpy()  # where one size is chosen, all are out
    cut, challenger = prob[last], max(prob[~out & (cost <= left)], default=np.nan)
    numbers = {
        "max_prob": prob.max(),
        "cut": cut,
        "uniform": uniform,
        "challenger": challenger,
        "margin_at_cut": cut - challenger,
        "soft_mass_outside": 1 - cost[chosen] @ prob[chosen] / budget,
        "n_decided": ((prob > 0.9) | (prob < 0.1 * uniform)).sum(),
        "entropy": cost @ (entr(prob) + entr(1 - prob)) / (cost.sum() * (entr(uniform) + entr(1 - uniform))),
    }
    return {name: float(number) for name, number in numbers.items()}


@styled
def plot_polarisation(results: Any, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Probabilities of the gates from high to low, over the parameters they belong to: did the gates separate?

    The horizontal axis adds up parameters in units of the budget, so that the ideal is the same step for all searches:
    1 up to the budget, 0 beyond. Chosen candidates are filled, others hollow. The thick bar spans the margin, from the
    last one chosen to the one that would take its place. ``results`` is one search or a mapping of names to them, each
    as for `polarisation`, which explains the numbers in the legend.
    """
    tables = results if isinstance(results, Mapping) else {"": results}
    numbers = {name: polarisation(result) for name, result in tables.items()}
    if not numbers:
        raise PlotError(f"Expected results as {{name: result}}; got {shown(results)}.")
    ax, handles, ends, scale = ax or new_axes(None, 3.1), list[Any](), [0.5, 2.0], style().scale
    for (name, at), colour, marker in zip(numbers.items(), cycle(PALETTE), cycle(MARKERS), strict=False):
        table = as_table(tables[name], []).sort_values("prob", ascending=False, kind="stable")
        chosen, prob = flag(table, "chosen"), table["prob"]
        x = table["n_params"].cumsum() / float(np.dot(table["n_params"], prob))
        ends += [0.6 * x.iloc[0], 1.15 * x.iloc[-1]]
        ax.step([1e-9, *x], [prob.iloc[0], *prob], where="pre", color=colour, linewidth=0.8 * scale, gid="gates")
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "markersize": 3.4 * scale}
        hollow: dict[str, Any] = {"markerfacecolor": style().ground, "markevery": 0.02}  # as many as can be told apart
        ax.plot(x[~chosen], prob[~chosen], gid="not chosen", **look, **hollow)
        margin, outside = f"{at['margin_at_cut']:.2g}".replace("nan", "–"), f"{100 * at['soft_mass_outside']:.0f} %"
        label = f"{name}: {margin}, {outside}" if name else f"{margin}, {outside}"
        handles += ax.plot(x[chosen], prob[chosen], gid="chosen", label=label, **look)
        ax.vlines(x[chosen].iloc[-1], at["challenger"], at["cut"], color=colour, linewidth=3 * scale, gid="margin")
    uniform = sorted({float(f"{at['uniform']:.6g}") for at in numbers.values()})
    cuts = [numbers[""]["cut"]] if "" in numbers else []
    for gid, levels, dashes in (("cut", cuts, "--"), ("uniform", uniform, ":")):
        label = f"{gid} {', '.join(f'{level:.3g}' for level in levels)}"
        lines = [ax.axhline(y, color=style().ink, linestyle=dashes, zorder=1.5, gid=gid, label=label) for y in levels]
        handles += lines[:1]
    low, high = min(ends), max(ends)
    ax.set(xlim=(low, high), ylim=(-0.04, 1.1), xscale="log", yticks=np.linspace(0, 1, 6))
    handles += ax.plot([low, 1, 1, high], [1, 1, 0, 0], color=style().faint, zorder=1, gid="ideal", label="ideal")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    caption = "filled: chosen; margin at the cut,\nexpected parameters not chosen:"
    return finish_axes(ax, "parameters, most probable first (× budget)", LABELS["prob"], handles, title, caption)


def _role(role: str) -> str:
    """A role in words: "attention q", "attn norm", "FFN block"."""
    group, part = place_of(role)
    part = part.replace("ffn", "FFN")
    return {"other": part, "norms": f"{part} norm", "block adapters": f"{part} block"}.get(group, f"{group} {part}")
