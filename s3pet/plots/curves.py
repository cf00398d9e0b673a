"""Curves of searches: where the parameters go, how the gates came apart over the steps, and how far.

Each has the reference that keeps a reader honest, what uniform gates would give: a layer with a tall bar may only be a
layer with many parameters, and a structure can be cut from gates that hardly differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation

from s3pet.errors import PlotError
from s3pet.plots.grid import LABELS, MAP_COLUMNS, ROLES, cut_and_start, gate_cells, make_grid
from s3pet.plots.style import PET_COLOURS, PETS, as_table, figure_of, flag, new_axes, style, styled

PROFILES = {"layer": ["stack", "layer", "pet"], "role": ["role", "pet"], "stack": ["stack", "pet"], "pet": ["pet"]}
SHARES = {"chosen": "share of the chosen\nparameters (%)", "prob": "share of the expected\nparameters (%)"}
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
OPEN, CLOSED = 0.9, 0.1  # a gate is decided above the first, or below the second times the uniform start

Entries = dict[str, Any]  # label → legend handle


def profile_shares(gates: Any, by: str = "layer", value: str = "chosen") -> pd.DataFrame:
    """Where the parameters go, and where uniform gates would send them.

    Args:
        gates: a gate table, or an object with ``.gates``.
        by: "layer" (of each stack; sites outside the layers are "embed" and "final"), "role", "stack" or "pet".
        value: "chosen" (parameters of the structure) or "prob" (expected parameters, Σ n_params · prob).

    Returns:
        One row per group and PET module of the space, in the order of the maps: the columns of the group, ``pet``,
        ``share`` and ``uniform``, both in % and summing to 100.

    Raises:
        PlotError: unknown ``by`` or ``value``, a column is missing, or there is nothing to share out.
    """
    if by not in PROFILES or value not in SHARES:
        raise PlotError(f"by is one of {[*PROFILES]} and value of {[*SHARES]}; got {by!r} and {value!r}.")
    table = as_table(gates, [*MAP_COLUMNS, "n_params", value])
    weight = table["n_params"] * (flag(table, "chosen") if value == "chosen" else table["prob"])
    if not weight.sum() > 0:
        raise PlotError(f"Nothing to share out: {value!r} is 0 for all {len(table)} candidates.")
    table = table.assign(share=100 * weight / weight.sum(), uniform=100 * table["n_params"] / table["n_params"].sum())
    cells = gate_cells(table, "share", how="sum").rename(columns={"value": "share", "column": "layer"})
    cells["uniform"] = gate_cells(table, "uniform", how="sum")["value"]  # the same cells in the same order
    for name, known in (("stack", ["encoder", "decoder"]), ("role", ROLES), ("pet", PETS)):
        cells[name] = pd.Categorical(cells[name], _in_order(set(cells[name]), known), ordered=True)
    cells = cells.sort_values(["x", "pet"] if by == "layer" else PROFILES[by])
    shares = cells.groupby(PROFILES[by], sort=False, observed=True)[["share", "uniform"]].sum().reset_index()
    return shares.astype(dict.fromkeys(PROFILES[by], object))


@styled
def plot_profile(
    gates: Any, *, by: str = "layer", value: str = "chosen", ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Where the parameters go, as bars stacked by PET module; a mark on each says what uniform gates would give.

    That is each group's share of the parameters of the space: a bar beyond its mark has earned more than its size.

    Args:
        gates, value: as in `profile_shares`, which has the numbers.
        by: "layer" (upright bars, encoder | decoder), "role", "stack" or "pet" (level bars with their numbers).

    Raises:
        PlotError: as `profile_shares`.
    """
    shares, upright = profile_shares(gates, by, value), by == "layer"
    keys = [name for name in PROFILES[by] if name != "pet"] or ["pet"]
    totals = shares.groupby(keys, sort=False)[["share", "uniform"]].sum()
    columns = make_grid(as_table(gates, MAP_COLUMNS)).columns
    at = pd.Series([columns[key] for key in totals.index] if upright else np.arange(len(totals)), totals.index)
    width = float(np.clip(0.6 + 0.13 * len(at), 3.35, 6.9))
    ax = ax or (new_axes(width, 2.8) if upright else new_axes(None, 0.95 + 0.19 * len(at)))
    bar: Any = ax.bar if upright else ax.barh
    mark: Any = ax.hlines if upright else ax.vlines
    ends, entries = pd.Series(0.0, totals.index), Entries()
    for pet in _in_order(set(shares["pet"]), PETS):
        share = shares[shares["pet"] == pet].groupby(keys, sort=False)["share"].sum()
        look: dict[str, Any] = {"color": PET_COLOURS.get(pet, style().grey), "linewidth": 0}
        bar(at[share.index], share, 0.8, ends[share.index], label=pet, **look)
        ends[share.index] += share
        entries |= {PETS.get(pet, pet): Patch(**look)} if by != "pet" else {}
    for gid, colour, width in (("halo", style().ground, 2.6), ("uniform", style().ink, 1.2)):  # seen on any bar
        mark(totals["uniform"], at - 0.46, at + 0.46, color=colour, linewidth=width * style().scale, gid=gid)
    entries["uniform gates"] = Line2D([], [], color=style().ink, linewidth=1.2 * style().scale)
    high = totals.to_numpy().max()
    if upright:
        ax.set_ylim(0, 1.06 * high)
        _finish(ax, "", SHARES[value], entries, title, 4 + 1.3 * style().font)
        _label_layers(ax, columns)
    else:
        ax.set(xlim=(0, 1.22 * high), ylim=(len(at) - 0.4, -0.6))
        ax.set_yticks(at, [_role(name) if by == "role" else PETS.get(name, name) for name in totals.index])
        _finish(ax, SHARES[value].replace("\n", " "), "", entries, title, 2)
        size = min(style().font, 0.8 * ax.bbox.height * 72 / figure_of(ax).dpi / len(at))  # of a row
        ax.tick_params("y", length=0, labelsize=size)
        for y, share in zip(at, totals["share"], strict=True):
            text, place = "<1 %" if 0 < share < 0.5 else f"{share:.0f} %", ax.get_yaxis_transform()
            ax.text(1, y, text, ha="right", va="center", size=size, transform=place, gid="number")
    return ax


@styled
def plot_trajectories(
    result: Any, *, value: str = "prob", highlight: int = 6, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """Every candidate over the steps of a search: when the gates parted, and whether they have come to rest.

    A line per candidate in the colour of its PET module, thick if it was chosen. The dashed line is the cut, the
    lowest final value among the chosen; the dotted one the uniform start (of "prob"). A name in grey was not chosen:
    it was too expensive for what was left of the budget.

    Args:
        result: an object with ``.trajectory`` (``candidate, step, alpha, prob``) and ``.gates``.
        value: "prob", or "alpha", which shows the losers better: probabilities crowd near 0.
        highlight: how many candidates to name, highest final value first; fewer where the Axes are too low.

    Raises:
        PlotError: there is no trajectory, it lacks a column, or its candidates are not those of the gates.
    """
    if value not in ("prob", "alpha"):
        raise PlotError(f"value is 'prob' or 'alpha'; got {value!r}.")
    if getattr(result, "trajectory", None) is None:
        raise PlotError("Expected a search result or a run, with .trajectory; a gate table has the last step only.")
    gates = as_table(result, ["site", *MAP_COLUMNS, "n_params", "prob", "chosen"])
    steps = as_table(result.trajectory, ["candidate", "step", value], one=("seed", "task", "budget"))
    sizes = [f":{rank}" if pd.notna(rank) else "" for rank in gates.get("rank", [None] * len(gates))]
    gates = gates.set_index(gates["site"] + ":" + gates["pet"] + sizes)  # Candidate.name
    twice, strange = steps.duplicated(["candidate", "step"]).sum(), set(gates.index) ^ set(steps["candidate"])
    if twice or strange:
        known = f"{len(strange)} candidates are in one only, {twice} rows of the trajectory come again"
        raise PlotError(f"Trajectory and gates are not of one search: {known} {sorted(strange)[:3] or ''}")
    paths = steps.pivot(index="step", columns="candidate", values=value)[[*gates.index]]
    final, chosen, ends = paths.iloc[-1], flag(gates, "chosen"), (paths.index[0], paths.index[-1])
    ax, entries = ax or new_axes(None, 2.9), Entries()
    few = float(np.clip(150 / len(gates), 0.35, 1)) ** 0.5  # thinner where there are many
    for pet in _in_order(set(gates["pet"]), PETS):
        colour = PET_COLOURS.get(pet, style().grey)
        for gid, width, alpha in (("not chosen", 0.6, 0.45 * few), ("chosen", 1.6, 1.0)):
            names = gates.index[(gates["pet"] == pet) & (chosen == (gid == "chosen"))]
            lines = [np.column_stack([paths.index, paths[name]]) for name in names]
            look: dict[str, Any] = {"color": colour, "linewidth": width * few * style().scale, "alpha": alpha}
            ax.add_collection(LineCollection(lines, gid=gid, label=pet, zorder=2 + (gid == "chosen") / 2, **look))
        entries[PETS.get(pet, pet)] = Line2D([], [], color=colour, linewidth=1.6 * style().scale)
    entries["not chosen"] = Line2D([], [], color=style().grey, linewidth=0.6 * style().scale)
    ax.autoscale_view()
    marks = {"cut": (float(final[chosen].min()), "--")} if chosen.any() else {}
    marks |= {"uniform start": (cut_and_start(gates)["uniform start"], ":")} if value == "prob" else {}
    for name, (y, dashes) in marks.items():
        ax.hlines(y, *ends, linestyle=dashes, color=style().ink, linewidth=style().scale, gid=name, zorder=3)
    labels = [(f"{name} {y:.3g}", y, style().ink, style().grey) for name, (y, _) in marks.items()]
    several = gates.groupby(["site", "pet"])["n_params"].transform("size") > 1
    for name in final.nlargest(max(highlight, 0)).index:
        row, ink = gates.loc[name], style().ink if chosen[name] else style().grey
        labels.append((_name(row, several[name]), final[name], ink, PET_COLOURS.get(row["pet"], style().grey)))
    _finish(ax, "step", LABELS[value], entries, title)
    _label_ends(ax, ends, labels)
    return ax


def polarisation(result: Any) -> dict[str, float]:
    """How far the gates have come apart, between uniform gates and a 0/1 decision.

    Args:
        result: a gate table, or an object with ``.gates``. Its expected parameters Σ n_params · prob count as the
            budget; that is how gates are made.

    Returns:
        ``max_prob``; ``cut``, the lowest probability among the chosen; ``uniform``, that of all at the start;
        ``challenger``, the highest probability among those that would fit if the last one chosen were left out;
        ``margin_at_cut``, cut − challenger (nan without a challenger); ``soft_mass_outside``, the share of the expected
        parameters on candidates that are not chosen, 0 … 1: what the search trained and the structure leaves out;
        ``n_decided``, how many gates are above 0.9 or below a tenth of ``uniform`` (below 0.1 would hold of all of
        them before the search if the budget is small); ``entropy``, Σ n_params · H(prob) relative to its maximum at
        this budget, 0 … 1. Weighted so, its maximum is at uniform gates, because H is concave.

    Raises:
        PlotError: a column is missing, or nothing is chosen.
    """
    from scipy.special import entr  # type: ignore[import-untyped]

    table = as_table(result, ["n_params", "prob", "chosen"])
    prob, cost, chosen = *table[["prob", "n_params"]].to_numpy(float).T, flag(table, "chosen").to_numpy()
    if not chosen.any():
        raise PlotError(f"None of the {len(table)} candidates is chosen, so there is no cut to compare with.")
    budget, uniform, last = cost @ prob, cost @ prob / cost.sum(), np.where(chosen, prob, np.inf).argmin()
    left = budget - cost[chosen].sum() + cost[last] + 1e-3  # gates meet their budget up to rounding
    cut, challenger = prob[last], max(prob[~chosen & (cost <= left)], default=np.nan)
    found = {"max_prob": prob.max(), "cut": cut, "uniform": uniform, "challenger": challenger}
    found |= {"margin_at_cut": cut - challenger, "soft_mass_outside": 1 - cost[chosen] @ prob[chosen] / budget}
    found |= {"n_decided": ((prob > OPEN) | (prob < CLOSED * uniform)).sum()}
    found |= {"entropy": cost @ (entr(prob) + entr(1 - prob)) / (cost.sum() * (entr(uniform) + entr(1 - uniform)))}
    return {name: float(number) for name, number in found.items()}


@styled
def plot_polarisation(results: Any, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Did the gates separate? Probabilities from high to low, over the parameters they lie on.

    The horizontal axis adds up parameters in units of the budget, so that the ideal is the same step for all searches:
    1 up to the budget, 0 beyond. Chosen candidates are filled, others hollow. The thick bar spans the margin, from the
    last one chosen to the one that would take its place. See `polarisation` for the numbers.

    Args:
        results: a gate table or an object with ``.gates``, or a mapping of names to them.

    Raises:
        PlotError: none given, a column is missing, or nothing is chosen.
    """
    given = results if isinstance(results, Mapping) else {"": results}
    found = {name: polarisation(result) for name, result in given.items()}
    if not found:
        raise PlotError("Expected results as {name: result}; got none.")
    ax, entries, ends, thin = ax or new_axes(None, 2.9), Entries(), [0.5, 2.0], style().scale
    for (name, at), (colour, marker) in zip(found.items(), cycle(LOOKS), strict=False):
        table = as_table(given[name], []).sort_values("prob", ascending=False, kind="stable")
        chosen, prob = flag(table, "chosen"), table["prob"]
        x = table["n_params"].cumsum() / float(np.dot(table["n_params"], prob))
        ends += [0.6 * x.iloc[0], 1.15 * x.iloc[-1]]
        ax.step([1e-9, *x], [prob.iloc[0], *prob], where="pre", color=colour, linewidth=0.8 * thin, gid="gates")
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "markersize": 3.4 * thin}
        hollow = look | {"markerfacecolor": style().ground, "markeredgewidth": 0.6 * thin}
        ax.plot(x[~chosen], prob[~chosen], gid="not chosen", markevery=0.02, **hollow)  # as many as can be told apart
        ax.plot(x[chosen], prob[chosen], gid="chosen", **look)
        ax.vlines(x[chosen].iloc[-1], at["challenger"], at["cut"], color=colour, linewidth=3 * thin, gid="margin")
        margin, outside = f"{at['margin_at_cut']:.2g}".replace("nan", "–"), f"{100 * at['soft_mass_outside']:.0f} %"
        entries[f"{name}: {margin}, {outside}" if name else "chosen"] = Line2D([], [], **look)
    one = found.get("")
    entries["not chosen"] = Line2D([], [], **hollow | ({} if one else {"color": style().grey, "marker": "o"}))
    starts = sorted({float(f"{at['uniform']:.6g}") for at in found.values()})
    for gid, ys, dashes in (("cut", [one["cut"]] if one else [], "--"), ("uniform start", starts, ":")):
        look = {"color": style().ink, "linestyle": dashes, "linewidth": thin}
        for y in ys:
            ax.axhline(y, zorder=1.5, gid=gid, **look)
        entries |= {f"{gid} {', '.join(f'{y:.3g}' for y in ys)}": Line2D([], [], **look)} if ys else {}
    low, high = min(ends), max(ends)
    ax.set(xlim=(low, high), ylim=(-0.04, 1.1), xscale="log", yticks=np.linspace(0, 1, 6))
    ax.plot([low, 1, 1, high], [1, 1, 0, 0], color=style().faint, linewidth=2.5 * thin, zorder=1, gid="ideal")
    ax.annotate("ideal", (low, 1), (3, 2), textcoords="offset points", size=style().font)
    ticks = 10.0 ** np.arange(np.ceil(np.log10(low)), np.log10(high))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.tick_params("x", which="minor", labelbottom=False)
    numbers = f"margin at the cut: {margin}\nexpected parameters not chosen: {outside}"
    caption = numbers if one else "margin at the cut, expected parameters not chosen"
    _finish(ax, "parameters, most probable first (× budget)", LABELS["prob"], entries, title, caption=caption)
    return ax


def _in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Sorted as in ``known``; others after them, by name."""
    rank = {name: i for i, name in enumerate(known)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def _role(role: str) -> str:
    """A role in words: "attention q", "attn norm", "FFN block"."""
    group, part = ROLES.get(role, ("", role))
    part = part.replace("ffn", "FFN")
    return {"": part, "norms": f"{part} norm", "block adapters": f"{part} block"}.get(group, f"{group} {part}")


def _name(row: pd.Series, sized: bool) -> str:
    """A candidate in short; with its rank where a site has several of the module."""
    parts = [str(row["stack"])[:3], row["layer"], row["role"], PETS.get(row["pet"], row["pet"])]
    return " ".join(str(part) for part in [*parts, *[row.get("rank")] * int(sized)] if pd.notna(part))


def _label_layers(ax: Axes, columns: Mapping[tuple[str, str], float]) -> None:
    """Layers under upright bars, as many numbers as fit, and stacks over them."""
    high = max(columns.values())
    ax.set_xlim(-0.7, high + 0.7)
    figure_of(ax).draw_without_rendering()
    step = ax.bbox.width * 72 / figure_of(ax).dpi / (high + 1.4)  # points per bar
    every = next((n for n in (1, 2, 5, 10) if n * step >= 1.6 * style().font), 20)
    words = np.array([x for (_, name), x in columns.items() if not name.isdigit()])
    ticks = {}
    for (_, name), x in columns.items():  # a number beside a word that lies on its side needs room
        if not name.isdigit() or (int(name) % every == 0 and (step * abs(words - x) > 0.95 * style().font).all()):
            ticks[x] = name
    ax.set_xticks([*ticks], ticks.values())
    for label in ax.get_xticklabels():
        label.set_rotation(0 if label.get_text().isdigit() or step > 3 * style().font else 90)
    look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "size": style().font, "weight": "bold"}
    for stack in dict.fromkeys(stack for stack, _ in columns):
        xs = [x for (name, _), x in columns.items() if name == stack]
        ax.annotate(stack, (np.mean(xs), 1), (0, 4), ax.get_xaxis_transform(), gid="stack", **look)
        if xs[0] > 0:
            ax.axvline(xs[0] - 0.85, color=style().grey, linewidth=0.7, gid="stack-separator")


def _finish(ax: Axes, x: str, y: str, entries: Entries, title: str | None, lift: float = 4, caption: str = "") -> None:
    """Names of the axes, a legend ``lift`` points over them in as few rows as fit, the title over it."""
    ax.set_xlabel(x, size=1.07 * style().font)
    ax.set_ylabel(y, size=1.07 * style().font)
    ax.tick_params(labelsize=style().font)
    ax.spines[["top", "right"]].set_visible(False)
    figure_of(ax).draw_without_rendering()  # settles the layout, so that the extents below are final
    look: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "handlelength": 1, "handletextpad": 0.4}
    look["bbox_transform"] = ax.transAxes + ScaledTranslation(0, lift / 72, figure_of(ax).dpi_scale_trans)
    look |= {"columnspacing": 0.8, "title": caption or None, "title_fontsize": style().font, "alignment": "left"}
    for rows in range(1, len(entries) + 1):
        box = ax.legend(entries.values(), entries, ncols=-(-len(entries) // rows), **look).get_window_extent()
        if box.width < 0.97 * ax.bbox.width:  # text is wider at other resolutions
            break
    ax.set_title(title or "", size=1.27 * style().font, pad=lift + 4 + box.height * 72 / figure_of(ax).dpi)


def _label_ends(ax: Axes, ends: tuple[float, float], labels: list[tuple[str, float, str, str]]) -> None:
    """Names beside lines over ``ends``: text, height, colours of text and leader; pushed apart as little as it takes.

    They lie inside the Axes, which grow to the right for them, so that panels and any layout keep them.
    """
    from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

    figure_of(ax).draw_without_rendering()
    dot, lead = figure_of(ax).dpi / 72, 14 * style().scale
    gap = 1.3 * style().font * dot
    labels = sorted(labels[: int(ax.bbox.height / gap)], key=lambda label: label[1])
    look: dict[str, Any] = {"va": "center", "size": style().font, "textcoords": "offset points", "gid": "label"}
    line = {"arrowstyle": "-", "linewidth": 0.8, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1}
    texts = [
        ax.annotate(text, (ends[1], y), (lead, 0), color=ink, arrowprops=line | {"color": colour}, **look)
        for text, y, ink, colour in labels
    ]
    wide = max((Text.get_window_extent(text).width + (lead + 2) * dot for text in texts), default=0)
    used = max(1 - wide / ax.bbox.width, 0.2)
    ax.set_xlim(ends[0], ends[0] + (ends[1] - ends[0]) / used)
    ax.set_xticks([tick for tick in ax.get_xticks() if ends[0] <= tick <= ends[1]])
    ax.spines["bottom"].set_bounds(*ends)
    ax.xaxis.label.set_x(used / 2)
    if texts:  # rising places with gaps, nearest to the wanted ones: an isotonic regression
        at, steps = ax.transData.transform([text.xy for text in texts])[:, 1], gap * np.arange(len(texts))
        low, high = ax.bbox.y0 + gap / 2, ax.bbox.y1 - gap / 2 - steps[-1]
        places = np.clip(isotonic_regression(at - steps).x, low, high) + steps
        for text, shift in zip(texts, (places - at) / dot, strict=True):
            text.set_position((lead, shift))
