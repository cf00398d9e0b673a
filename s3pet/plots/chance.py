"""What several searches chose, beside what chance would choose: candidate by candidate, and by layer or place.

Chance has one of two forms. It may keep how many modules of each type and cost every search chose and shuffle only
their places (``within="pet"``, the stricter one: searches can agree on types of modules and on nothing else), or draw
random structures of the same budget (``within=None``). Both cost a few seconds for 500 draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch

from s3pet.errors import PlotError
from s3pet.files.kinds import SEED, one_of, whole
from s3pet.plots.curves import PROFILES
from s3pet.plots.frame import colour_bar, entry, finish_axes, in_order
from s3pet.plots.intervals import mean_interval
from s3pet.plots.maps import (
    MAP_COLUMNS,
    STACKS,
    columns_of,
    draw_map,
    finish_map,
    gate_cells,
    make_grid,
    map_size,
    roles_in_order,
)
from s3pet.plots.style import KINDS, MARKERS, PETS, as_table, new_axes, style, styled
from s3pet.plots.words import place_words
from s3pet.structure import select_mask
from s3pet.transfer import Results, same_space

MOST = 5  # tables of shares in one figure
FREQUENCY = ("frequency", "chance", "chance_high", "searches")
SHARE = ("name", "share", "low", "high", "chance", "chance_low", "chance_high", "searches")


def choices_by_chance(results: Results, *, within: str | None = "pet", draws: int = 500, seed: int = 0) -> np.ndarray:
    """What chance would choose in place of each search, as Booleans [draws, n_searches, n_candidates].

    Args:
        results: searches of one space, by name or in a sequence.
        within: a column of the gate table, such as "pet": chance keeps how many candidates of each kind and cost were
            chosen, and shuffles their places. None: random structures of each search's budget.
        draws, seed: how often, and the seed.

    Raises:
        RunError: no search, or different spaces. PlotError: another ``within``, ``draws`` below 1.
    """
    searches = [*same_space(results).values()]
    whole(1).check(PlotError, draws=draws)
    SEED.check(PlotError, seed=seed)
    table, rng = searches[0].gates, np.random.default_rng(seed)
    chance = np.zeros((draws, len(searches), len(table)), bool)
    if within is None:
        space = searches[0].space
        for n, draw in np.ndindex(len(searches), draws):
            order = torch.from_numpy(rng.permutation(len(space)).astype(float))
            mask = select_mask(order, space.costs, searches[n].budget.n_params, space.groups)
            chance[draw, n] = mask.numpy()
        return chance
    one_of([*table]).check(PlotError, within=within)
    for n, search in enumerate(searches):
        chosen = search.gates["chosen"].to_numpy(bool)
        groups = table.reset_index(drop=True).groupby([within, "n_params"], observed=True).indices.values()
        for rows in groups:  # of equal kind and cost, so that the total cost stays the same
            chance[:, n, rows] = rng.permuted(np.tile(chosen[rows], (draws, 1)), axis=1)
    return chance


def choice_frequency(results: Results, *, within: str | None = "pet", draws: int = 500, seed: int = 0) -> pd.DataFrame:
    """How many of several searches chose each candidate, beside chance.

    Args:
        results, within, draws, seed: as for `choices_by_chance`.

    Returns:
        The candidates (``site`` … ``n_params``) with ``frequency``, the share of the searches that chose it, in [0, 1];
        ``chance``, that to expect; ``chance_high``, the 95 % quantile of the *highest* frequency that any candidate
        reaches by chance (the same in every row: it takes into account that one looks at all of them); ``searches``,
        how many there are.
    """
    searches = [*same_space(results).values()]
    drawn = choices_by_chance(results, within=within, draws=draws, seed=seed).mean(1)
    chosen = np.mean([search.gates["chosen"].to_numpy(bool) for search in searches], axis=0)
    known = [name for name in ("site", *MAP_COLUMNS, "rank", "n_params", "inert") if name in searches[0].gates]
    high = float(np.quantile(drawn.max(1), 0.95))
    numbers = {"frequency": chosen, "chance": drawn.mean(0), "chance_high": high, "searches": len(searches)}
    return searches[0].gates[known].assign(**numbers)


@styled
def plot_frequency(frequency: Any, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Map of how often each candidate was chosen; what is above chance is outlined.

    The colour bar counts searches, from none to the highest count or to the level of chance, which it marks: in 95 % of
    draws no candidate is chosen more often than this. A cell with several sizes of a module shows the most frequent.

    Args:
        frequency: as `choice_frequency` returns it.
    """
    table = as_table(frequency, [*MAP_COLUMNS, *FREQUENCY])
    n, high = int(table["searches"].iloc[0]), float(table["chance_high"].iloc[0])
    table = table.assign(chosen=table["frequency"] > high, count=table["frequency"] * n)
    grid, norm = make_grid(table), Normalize(0, max(table["count"].max(), n * high))
    ax = ax or new_axes(*map_size(grid))
    above = f"more often than by chance: {table['chosen'].sum()} of {len(table):,}"
    mesh, handles = draw_map(ax, grid, gate_cells(table, "count"), style().colours("frequency"), norm, above)
    mark = {"95 % of highest counts by chance, up to": n * high}
    handles += colour_bar(mesh, ax, f"chosen by … of {n} searches", mark)
    return finish_map(ax, grid, handles, title)


def choice_shares(
    results: Results, *, by: str = "layer", within: str | None = "pet", draws: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Shares of the chosen parameters by layer, role, stack or PET module: means over searches, beside chance.

    Args:
        by: "layer" (of each stack; sites outside the layers are "embed" and "final"), "role", "stack" or "pet".
        results, within, draws, seed: as for `choices_by_chance`. With ``by="pet"``, ``within`` must not be "pet".

    Returns:
        A row per group, in the order of the maps: ``name``; ``share``, the mean over searches, in %; ``low, high``, its
        95 % t interval (:func:`s3pet.plots.intervals.mean_interval`; if the searches are of several tasks, that of the
        mean over tasks; NaN for one search of a task); ``chance``, the mean by chance, and ``chance_low, chance_high``,
        its 2.5 % and 97.5 % quantiles for as many searches; ``searches``.
    """
    one_of(PROFILES).check(PlotError, by=by)
    if by == within:
        raise PlotError(f"Chance that keeps what was chosen of each {by} says nothing about {by}; use within=None.")
    searches = [*same_space(results).values()]
    table = searches[0].gates.reset_index(drop=True)
    groups, names = _groups(table, by)
    costs = table["n_params"].to_numpy(float)
    member = np.stack([groups.to_numpy() == name for name in names], axis=1) * costs[:, None]

    def shares(masks: np.ndarray) -> np.ndarray:  # [..., n_candidates] → [..., n_groups]
        return 100 * (masks @ member) / np.maximum(masks @ costs, 1)[..., None]

    own = shares(np.stack([search.gates["chosen"].to_numpy(float) for search in searches]))
    drawn = shares(choices_by_chance(results, within=within, draws=draws, seed=seed).astype(float)).mean(1)
    tasks = np.array([str(search.config.get("task")) for search in searches])
    parts = [own[tasks == task] for task in dict.fromkeys(tasks)]
    rows = []
    for i, name in enumerate(names):
        low, high = mean_interval([part[:, i] for part in parts])
        band = np.quantile(drawn[:, i], [0.025, 0.975])
        mean = float(np.mean([part[:, i].mean() for part in parts]))
        rows.append((name, mean, low, high, float(drawn[:, i].mean()), *map(float, band), len(searches)))
    return pd.DataFrame(rows, columns=[*SHARE])


@styled
def plot_shares(shares: Any, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Forest of shares by group: the mean over searches with its interval, on the band that chance would give.

    Args:
        shares: as `choice_shares` returns it, or several by name, such as one per task: a mapping of names to them.
    """
    tables = shares if isinstance(shares, dict) else {"": shares}
    if not 1 <= len(tables) <= MOST:
        raise PlotError(f"Expected one to {MOST} tables of shares; got {len(tables)}.")
    tables = {name: as_table(table, SHARE, one=()) for name, table in tables.items()}
    names = [*dict.fromkeys(name for table in tables.values() for name in table["name"])]
    scale, colour, n = style().scale, KINDS["searched"][1], len(tables)
    ax = ax or new_axes(3.35, 0.9 + (0.09 + 0.09 * n) * len(names))
    handles, step = list[Any](), 0.8 / n
    for i, (title_of, table) in enumerate(tables.items()):
        y = np.array([names.index(name) for name in table["name"]]) - 0.4 + (i + 0.5) * step
        width, left = table["chance_high"] - table["chance_low"], table["chance_low"]
        ax.barh(y, width, 0.92 * step, left=left, gid="chance-band", **style().band)
        ax.vlines(table["chance"], y - step / 2, y + step / 2, color=style().grey, linewidth=scale, gid="chance")
        ax.hlines(y, table["low"], table["high"], color=colour, linewidth=1.1 * scale, gid="interval")
        look: dict[str, Any] = {"color": colour, "marker": MARKERS[i], "markersize": 3.6 * scale}
        ax.plot(table["share"], y, linestyle="", gid="share", **look)
        label = f"{title_of}: mean" if title_of else "mean"
        handles.append(entry(f"{label} of {table['searches'].iloc[0]} searches", **look))
    handles += [
        entry("its 95 % t interval", color=colour, linewidth=1.1 * scale),
        entry("chance", color=style().grey, linewidth=scale),
        Patch(label="95 % of such means by chance", **style().band),
    ]
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, None))
    ax.set_yticks(range(len(names)), names)
    ax.tick_params("y", length=0)
    for row in range(1, len(names)) if n > 1 else ():
        ax.axhline(row - 0.5, color=style().faint, linewidth=0.4 * scale, zorder=0)
    return finish_axes(ax, "share of the chosen parameters (%)", "", handles, title)


def _groups(table: pd.DataFrame, by: str) -> tuple[pd.Series, list[str]]:
    """The name of each candidate's group, and the names in the order of the maps."""
    if by == "layer":
        names, places = table["stack"].astype(str) + " " + columns_of(table).astype(str), make_grid(table).columns
        order = [f"{stack} {layer}" for stack, layer in places if f"{stack} {layer}" in set(names)]
    elif by == "role":
        names = table["role"].map(place_words)
        order = [place_words(role) for role in roles_in_order(table["role"])]
    else:
        known = STACKS if by == "stack" else PETS
        names = table[by].map(lambda name: PETS.get(name, name)).astype(str)
        order = [PETS.get(name, name) for name in in_order(table[by], known)]
    return names, [*dict.fromkeys(order)]
