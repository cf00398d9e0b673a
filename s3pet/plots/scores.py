"""Scores of structures against their trainable parameters, every run beside the mean of its structure.

The tables are tidy, such as that of :func:`s3pet.compare`.
"""

from __future__ import annotations

import re
from itertools import count, cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from s3pet.errors import PlotError
from s3pet.plots.frame import entry, finish_axes, in_order
from s3pet.plots.intervals import summarize_scores
from s3pet.plots.style import KINDS, MARKERS, OTHER, as_table, new_axes, style, styled

JOINED = ("searched", "random", "covered", "sensitivity", "heuristic", "adalora")  # have any budget: a line
RANGES = {"accuracy": (0.0, 1.0), "f1": (0.0, 1.0)} | dict.fromkeys(("matthews", "pearson", "spearman"), (-1.0, 1.0))
# "searched 0.05 %" is "searched", "carried 0.05% from qnli" is "carried from qnli"; "lora r8" stays
AMOUNT = re.compile(r"[\s@=]*(?<![A-Za-z\d.,])\d[\d.,]*\s*[%kM]?(?=$| over | from )")
INTERVAL = "nominal 95 % t interval of the mean"


def score_range(table: pd.DataFrame, score: str = "score", metric: str | None = None) -> tuple[float, float]:
    """Smallest and largest possible score of the metric that ``metric`` or the table's column ``metric`` names.

    Infinite where the metric is unknown, or where the scores contradict it (an accuracy in percent).
    """
    text = " ".join([metric or "", *table.get("metric", pd.Series(dtype=str)).dropna().unique()]).lower()
    ranges = {ends for name, ends in RANGES.items() if name in text}
    low, high = ranges.pop() if len(ranges) == 1 else (-np.inf, np.inf)
    return (low, high) if table[score].min() >= low and table[score].max() <= high else (-np.inf, np.inf)


@styled
def plot_comparison(table: Any, *, ax: Axes | None = None, metric: str | None = None, title: str | None = None) -> Axes:
    """Scores against trainable parameters: every run a small point, every structure a mean with its interval.

    Structures of about the same size stand side by side. Intervals are those of `summarize_scores`, cut at the smallest
    and largest possible score of the metric.

    Args:
        table: one row per run: ``structure`` (name), ``kind`` ("searched", "manual", "random", "reference"),
            ``n_params`` (trainable PET parameters, > 0), ``seed``, ``score``. A reference, such as full fine-tuning, is
            a horizontal line with its interval at the right edge; its ``n_params`` is not used.
        metric: name for the vertical axis, or the column that holds the score.
    """
    table, score = _read(table, metric)
    table["family"] = table["structure"]
    return _draw(ax, table, _means(table, score, metric), score, metric or "score", title)


@styled
def plot_budget_curve(
    table: Any,
    *,
    ax: Axes | None = None,
    metric: str | None = None,
    title: str | None = None,
    full: str = "full",
) -> Axes:
    """Score against trainable parameters, budget by budget.

    Structures made for a budget (searched, random and others) are lines over their budgets. A line is a family: one
    kind, with names that differ only in an amount at the end ("searched 0.05 %", "searched 0.2 %"). Every other
    structure has one size and is a point. The vertical axis shows the runs; a wide interval of few may leave it. Lines
    lie a little beside each other, so that their intervals can be told apart.

    Args:
        table, metric: as for `plot_comparison`. Optional columns: ``budget`` (parameters; nan where there is none),
            which groups the runs of a point, else the name does; ``family``, where names do not tell it;
            ``backbone_params`` (one value), for a second axis with the share of the backbone in %.
        full: the reference to compare with: a dashed line with its interval at the right. Others are dotted lines.
    """
    table, score = _read(table, metric)
    as_table(table, [], one=["backbone_params"])
    names, joined = table["structure"].astype(str), table["kind"].isin(JOINED)
    family = families(table).where(joined, names)
    table = table.assign(family=table["family"].fillna(family) if "family" in table else family)
    # With budgets, all runs of a family at one budget are one point, whatever their names.
    point = table["family"].where(joined & table["budget"].notna(), names) if "budget" in table else names
    ax = _draw(ax, table, _means(table.assign(structure=point), score, metric), score, metric or "score", title, full)
    if "backbone_params" in table:
        size = float(table["backbone_params"].iloc[0])
        functions: Any = (lambda n: 100 * n / size, lambda share: share * size / 100)
        top = ax.secondary_xaxis("top", functions=functions)
        top.set_xlabel("share of the backbone (%)", size=1.07 * style().font)
        _set_log_ticks(ax, top.xaxis, FormatStrFormatter("%g"))
    return ax


def families(table: pd.DataFrame) -> pd.Series:
    """Names of structures without the amount at their end; the kind, where a name is an amount only."""
    names = table["structure"].astype(str).str.replace(AMOUNT, "", regex=True)
    return names.where(names != "", table["kind"])


def _read(table: Any, metric: str | None) -> tuple[pd.DataFrame, str]:
    """The runs of one task that have a score, and the column that holds it; the others are counted."""
    score = metric if metric and metric in getattr(table, "columns", ()) else "score"
    table = as_table(table, ["structure", "kind", "n_params", "seed", score], at="scores", one=["task"])
    scored = table[has_score(table[score])]
    table = scored.assign(without_score=len(table) - len(scored))
    structures = table[table["kind"] != "reference"]
    if structures.empty:
        raise PlotError("The table has scores of references only, and of no structure to compare with them.")
    if len(wrong := structures.loc[~structures["n_params"].between(0, np.inf, "neither"), "structure"].unique()):
        problem = f"n_params must be > 0 and finite in every run of {wrong.tolist()}, or its kind 'reference'"
        raise PlotError(f"{problem}: the axis is a log.")
    return table, score


def has_score(scores: pd.Series) -> pd.Series:
    """Which runs have a finite score; PlotError if none has."""
    if not (finite := np.isfinite(scores.astype("Float64").to_numpy(float, na_value=np.nan))).any():
        raise PlotError("No run has a score: all diverged; lower lr or raise lr_warmup.")
    return pd.Series(finite, scores.index)


def _means(table: pd.DataFrame, score: str, metric: str | None) -> pd.DataFrame:
    """`summarize_scores` with the families, and with intervals cut at what the metric allows."""
    means = summarize_scores(table, score)
    means[["low", "high"]] = means[["low", "high"]].clip(*score_range(table, score, metric))
    return means.merge(table.groupby(["structure", "kind"], sort=False)["family"].first().reset_index(), "left")


def _draw(
    ax: Axes | None, table: Any, means: Any, score: str, unit: str, title: str | None, full: str | None = None
) -> Axes:
    """Runs, intervals and means of every family, and the references. Longest curves come first."""
    ax, bottom, top = ax or new_axes(5.2, 4.0), float(table[score].min()), float(table[score].max())
    means, references = means[means["kind"] != "reference"], means[means["kind"] == "reference"]
    n_unscored = table["without_score"].iloc[0]
    table, scale, handles = table[table["kind"] != "reference"], style().scale, list[Any]()
    low, high = table["n_params"].min(), table["n_params"].max()
    pad = max((high / low) ** 0.1, (1.5 * low / high) ** 0.5)
    width, taken = float(np.log(high / low * pad**2)), np.array([])  # of the axis, in log parameters; places of means
    for kind in in_order(means["kind"], KINDS):
        marker, colour = KINDS.get(kind, OTHER)
        markers = cycle([marker, *MARKERS.replace(marker, "")])
        part = means[means["kind"] == kind]
        sizes = part["family"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
        for i, family in enumerate(sizes.index):
            line = part[part["family"] == family].sort_values("n_params")
            runs = table[table["kind"].eq(kind) & table["family"].eq(family)]
            names, curve, places = runs["structure"].unique(), len(line) > 1, np.log(line["n_params"].to_numpy())
            # a line moves aside so that intervals can be told apart, a point by the width of its marker
            aside = _free_place(places, taken, 0.007 * width if curve else max(0.018 * width, 0.015))
            taken, shift = np.append(taken, places + aside), np.exp(aside)
            x = line["n_params"] * shift
            look: dict[str, Any] = {"color": colour, "alpha": 0.45, "linewidth": 0}
            ax.scatter(runs["n_params"] * shift, runs[score], 6 * scale**2, gid="runs", **look)
            ax.vlines(x, line["low"], line["high"], color=colour, linewidth=1.4 * scale, alpha=0.8, gid="intervals")
            look = {"color": colour, "gid": "curve" if curve else "means", "markersize": 6 * scale}
            look |= {"markeredgecolor": style().ground, "linestyle": ("--" if i else "-") if curve else ""}
            label = str(names[0] if len(names) == 1 else family)
            handles += ax.plot(x, line["mean"], marker=next(markers), label=label, **look)
    handles += _draw_references(ax, references, full)
    handles.append(entry("one run", color=style().grey, marker="o", markersize=2.5 * scale))
    handles.append(entry(INTERVAL, color=style().grey, marker="|", markersize=9 * scale, markeredgewidth=1.4 * scale))
    if n_unscored:
        handles.append(entry(f"{n_unscored} without a score, not shown", color="none"))
    room, low, high = 0.08 * (top - bottom) or 0.05, min(low, np.exp(taken.min())), max(high, np.exp(taken.max()))
    ax.set(xscale="log", xlim=(low / pad, high * pad), ylim=(bottom - room, top + room))
    _set_log_ticks(ax, ax.xaxis, EngFormatter(sep=""))
    return finish_axes(ax, "trainable PET parameters", unit, handles, title)


def _draw_references(ax: Axes, references: pd.DataFrame, full: str | None) -> list[Any]:
    """A line for each; strong, with its interval at the right edge, for the one called ``full`` (None: for all)."""
    lines, edge, wide = list[Any](), ax.get_yaxis_transform(), 1.4 * style().scale
    for i, row in enumerate(references.to_dict("records")):
        look: dict[str, Any] = {"color": style().grey, "linestyle": (":", "-.")[i % 2], "gid": "baseline"}
        if full in (None, row["structure"]):
            look |= {"color": style().ink, "gid": "reference"}
            look["linestyle"] = "--" if full else look["linestyle"]
            ax.vlines(0.99, row["low"], row["high"], style().ink, transform=edge, linewidth=wide, gid="intervals")
        lines.append(ax.axhline(row["mean"], label=f"{row['structure']} {row['mean']:.3g}", zorder=1.5, **look))
    return lines


def _free_place(places: np.ndarray, taken: np.ndarray, step: float) -> float:
    """How far to move points aside, by 0, 1, −1, 2, −2 … steps, until each is a step away from all that are taken."""
    near = np.subtract.outer(places, taken)
    shifts = (sign * n * step for n in count() for sign in (1, -1))
    return next(shift for shift in shifts if (np.abs(near + shift) > 0.99 * step).all())


def _set_log_ticks(ax: Axes, axis: Axis, formatter: Any) -> None:
    """Round numbers within a decade; else the fewer per decade, the more decades there are."""
    decades = np.log10(ax.get_xlim()[1] / ax.get_xlim()[0])
    within = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3)
    digits = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 4 else (1,)
    axis.set_major_locator(within if decades < 1 else LogLocator(subs=digits, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(formatter)
