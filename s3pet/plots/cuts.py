"""A search cut at a budget: its map beside what the budget is spent on, and one candidate in facts.

`plot_cut` makes a figure once; :class:`CutFigure` is the same figure kept, whose artists follow another cut, step or
filter without drawing the rest anew: that is what a slider needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from s3pet.errors import PlotError, nearest
from s3pet.plots.grid import MAP_COLUMNS, cell_of, cut_and_start, gate_cells, make_grid
from s3pet.plots.maps import _size, _squares, plot_gates
from s3pet.plots.style import PET_COLOURS, PETS, as_table, flag, new_axes, new_figure, style, styled

COLUMNS = ["site", *MAP_COLUMNS, "rank", "n_params", "alpha", "prob", "chosen"]
VEILED = 0.18  # how much of what a filter leaves out is still seen
PICK = "#E8112D"  # seen on both ends of the maps' colours


def candidate_names(gates: Any) -> pd.Series:
    """``site:pet:rank`` of every row, as :attr:`s3pet.space.Candidate.name`."""
    table = as_table(gates, ["site", "pet", "rank"])
    rank = table["rank"].astype("Int64").astype("string").radd(":").fillna("")
    return (table["site"] + ":" + table["pet"] + rank).astype(object)


def select_rows(gates: Any, pets: Iterable[str] | None = None, layers: tuple[int, int] | None = None) -> pd.Series:
    """Which candidates a filter lets through.

    Args:
        gates: a gate table, or an object with ``.gates``.
        pets: PET modules; None: all.
        layers: first and last layer of every stack; None: all. What lies before the layers goes with layer 0, what
            lies after them with the last layer of its stack.

    Raises:
        PlotError: a PET module that the table does not have.
    """
    table = as_table(gates, MAP_COLUMNS)
    found = pd.Series(True, table.index)
    if pets is not None:
        wanted, known = set(pets), set(table["pet"])
        if wanted - known:
            name = sorted(wanted - known)[0]
            raise PlotError(f"no candidate has the PET module {name!r}; {nearest(name, known)}")
        found &= table["pet"].isin(wanted)
    if layers is not None:
        layer = pd.to_numeric(table["layer"]).astype("Float64").astype(float)
        outside = np.where(table["role"].str.startswith("embed"), 0, layer.groupby(table["stack"]).transform("max"))
        found &= layer.fillna(pd.Series(outside, table.index)).fillna(0).between(*layers)
    return found


def candidate_facts(gates: Any, candidate: str, chosen_in: Mapping[str, bool] | None = None) -> dict[str, str]:
    """All that a gate table says of one candidate.

    Args:
        gates: a gate table, or an object with ``.gates``.
        candidate: its name, ``encoder.3.attn.q:lora:1``.
        chosen_in: whether other searches choose it, by their names.

    Raises:
        PlotError: no such candidate; the message has the nearest names.
    """
    table = as_table(gates, COLUMNS)
    names = candidate_names(table).tolist()
    if candidate not in names:
        raise PlotError(f"no candidate is called {candidate!r}; {nearest(candidate, names)}")
    at = names.index(candidate)
    row, n = table.iloc[at], len(table)
    order = np.argsort(-table["prob"].to_numpy(float), kind="stable")
    place = int(np.flatnonzero(order == at)[0]) + 1
    facts = {"address": str(row["site"])}
    facts |= {"module": str(row["path"])} if "path" in table else {}
    facts["PET module"] = PETS.get(str(row["pet"]), str(row["pet"]))
    facts["rank"] = "—" if pd.isna(row["rank"]) else f"{int(row['rank'])}"
    facts["cost"] = f"{int(row['n_params']):,} parameters"
    facts |= {"α": f"{row['alpha']:.4g}", "probability": f"{row['prob']:.4g}"}
    facts |= {"spread": f"{row['prob_spread']:.3g}"} if "prob_spread" in table else {}
    margin = f"{row['margin']:+.4g}" if "margin" in table and pd.notna(row["margin"]) else "—"
    facts |= {"margin to the cut": margin, "in the order": f"{place} of {n}"}
    taken = bool(flag(table, "chosen").iloc[at])
    facts["chosen"] = "yes" if taken else "no, too expensive for what was left" if margin.startswith("+") else "no"
    if chosen_in:
        mine = [name for name, wanted in chosen_in.items() if wanted]
        facts["chosen in"] = f"{len(mine)} of {len(chosen_in)}" + (f": {', '.join(mine)}" if mine else "")
    facts |= {"inert": "cannot change the model"} if bool(flag(table, "inert").iloc[at]) else {}
    twin = row.get("redundant")
    return facts | ({"can add the same": str(twin)} if pd.notna(twin) else {})


@styled
def plot_budget_bar(gates: Any, *, budget: int | None = None, ax: Axes | None = None, title: str | None = None) -> Axes:
    """What a budget is spent on, by PET module: bars in % of it, a mark for what uniform gates would give.

    Args:
        gates: a gate table, or an object with ``.gates``.
        budget: in parameters; None: what the chosen cost together.

    Raises:
        PlotError: a column is missing, or there is no budget because nothing is chosen.
    """
    table = as_table(gates, ["pet", "n_params", "chosen"])
    used = _spent(table, budget)
    ax = ax or new_axes(None, 0.7 + 0.19 * len(used))
    at = np.arange(len(used))
    names = [PETS.get(str(name), str(name)) for name in used.index]
    for y, name in enumerate(used.index):
        colour = PET_COLOURS.get(str(name), style().faint)
        ax.barh(y, 0, 0.7, color=colour, gid=f"budget-{name}", linewidth=0)
        ax.text(103, y, "", va="center", gid=f"number-{name}")
    for gid, colour, width in (("halo", style().ground, 2.8), ("uniform", style().ink, 1.3)):  # seen on any bar
        for y in at[:-1]:
            ax.plot([0, 0], [y - 0.42, y + 0.42], color=colour, linewidth=width * style().scale, gid=f"{gid}-{y}")
    ax.set(xlim=(0, 165), ylim=(len(used) - 0.5, -0.5))
    ax.set_xlabel("share of the budget (%)", x=50 / 165)
    ax.set_xticks(range(0, 101, 20))
    ax.spines["bottom"].set_bounds(0, 100)
    ax.set_yticks(at, names)
    ax.tick_params("y", length=0)
    mark = Line2D([], [], color=style().ink, marker="|", linestyle="", markersize=9 * style().scale)
    ax.legend([mark], ["uniform gates"], loc="lower right", bbox_to_anchor=(100 / 165, 1.0), handletextpad=0.1)
    ax.set_title(title or "", loc="left")
    _move_bar(ax, used)
    return ax


def _spent(table: pd.DataFrame, budget: int | None) -> pd.DataFrame:
    """Parameters, candidates, share and uniform share by PET module, and what is left over."""
    mine, cost = flag(table, "chosen").to_numpy(), table["n_params"].to_numpy(float)
    total = float(budget or cost[mine].sum())
    if not total > 0:
        raise PlotError(f"None of the {len(table)} candidates is chosen, so there is no budget to share out.")
    rank, pet = {name: i for i, name in enumerate(PETS)}, table["pet"].astype(str)
    kinds = sorted(set(pet), key=lambda name: (rank.get(name, 99), name))
    code = pet.map({name: i for i, name in enumerate(kinds)}).to_numpy(int)
    params, all_params, left = np.bincount(code, cost * mine), np.bincount(code, cost), total - cost[mine].sum()
    found = {"params": [*params, left], "chosen": [*np.bincount(code, mine), 0], "all": [*np.bincount(code), 0]}
    made = pd.DataFrame(found, index=[*kinds, "not used"])
    made["uniform"] = [*(100 * all_params / cost.sum()), np.nan]
    return made.assign(share=100 * made["params"] / total)


def _move_bar(ax: Axes, used: pd.DataFrame) -> None:
    parts = {artist.get_gid(): artist for artist in (*ax.patches, *ax.texts, *ax.lines)}
    for y, (name, row) in enumerate(used.iterrows()):
        parts[f"budget-{name}"].set_width(max(row["share"], 0))  # type: ignore[attr-defined]
        number = f"{row['params']:,.0f}" + (f" · {row['chosen']:.0f} of {row['all']:.0f}" if row["all"] else "")
        parts[f"number-{name}"].set_text(number)  # type: ignore[attr-defined]
        if row["all"]:
            for gid in ("halo", "uniform"):
                parts[f"{gid}-{y}"].set_xdata([row["uniform"]] * 2)  # type: ignore[attr-defined]


@styled
def plot_cut(
    gates: Any,
    *,
    budget: int | None = None,
    value: str = "prob",
    vmin: float | None = None,
    vmax: float | None = None,
    pets: Sequence[str] | None = None,
    layers: tuple[int, int] | None = None,
    candidate: str | None = None,
    title: str | None = None,
    figure: Figure | None = None,
) -> tuple[Axes, Axes]:
    """A search cut at a budget: the map of `plot_gates` and, beside or below it, the bars of `plot_budget_bar`.

    ::

        s3pet.plots.plot_cut(run.gates_at(step=100, budget=2048), budget=2048, layers=(0, 3))

    Args:
        gates: a gate table, or an object with ``.gates``; ``run.gates_at(step, budget)`` makes one.
        budget: in parameters; None: what the chosen cost together.
        value, vmin, vmax: as in `plot_gates`.
        pets, layers: what to show, as in `select_rows`; the rest is veiled. The choice stays as it is.
        candidate: name of one to frame.
        title: over both.
        figure: emptied, resized and drawn in; None makes one.

    Returns:
        The Axes of the map and of the bars.

    Raises:
        PlotError: as `plot_gates`, `plot_budget_bar`, `select_rows` and `candidate_facts`.
    """
    made = CutFigure(gates, budget=budget, value=value, vmin=vmin, vmax=vmax, title=title, figure=figure)
    made.move(gates, budget=budget, pets=pets, layers=layers, candidate=candidate, title=title)
    return made.map, made.bar


class CutFigure:
    """The figure of `plot_cut`, whose artists can follow another cut of the same candidates.

    Attributes:
        map, bar: the Axes. figure: theirs.
        moving: the artists that `move` changes, in the order in which to draw them.
    """

    @styled
    def __init__(
        self,
        gates: Any,
        *,
        budget: int | None = None,
        value: str = "prob",
        vmin: float | None = None,
        vmax: float | None = None,
        title: str | None = None,
        figure: Figure | None = None,
    ):
        table = as_table(gates, COLUMNS + [value])
        spent, grid = _spent(table, budget), make_grid(table)
        (width, height), low = _size(grid, True), 0.55 + 0.19 * len(spent)
        beside, page = 3.3, style().page / style().scale
        if 2 + 0.14 * grid.size[0] + beside <= page:
            width = min(width, page - beside)
            self.figure = new_figure(width + beside, height + 0.3, figure)
            ratios: dict[str, Any] = {"width_ratios": (width, beside), "height_ratios": (low, max(height - low, 0.1))}
            places = self.figure.add_gridspec(2, 2, **ratios)
            axes = self.figure.add_subplot(places[:, 0]), self.figure.add_subplot(places[0, 1])
        else:
            self.figure = new_figure(width, height + low + 0.4, figure)
            axes = tuple(self.figure.subplots(2, 1, height_ratios=(height, low)))
        self.value = value
        self.map = plot_gates(table, value=value, ax=axes[0], vmin=vmin, vmax=vmax)
        self.colour_bar = self.figure.axes[-1]
        self.bar = plot_budget_bar(table, budget=budget, ax=axes[1])
        self._heading = self.figure.suptitle(title or "", size=1.1 * style().font)
        cells = gate_cells(table, value, grid=grid)
        self._places, self._cell = cells[["x", "y"]].to_numpy(float), cell_of(table, cells)
        self._names = candidate_names(table).tolist()
        self._filter: Any = (None, None)
        self._seen = np.ones(len(table), bool)
        self._parts = {artist.get_gid(): artist for artist in self.map.get_children()}
        for gid, order in (("chosen-halo", 1.1), ("chosen", 1.1), ("inert", 1.2)):
            if gid in self._parts:
                self._parts[gid].set_zorder(order)  # over the veil
        veil: dict[str, Any] = {"facecolor": style().ground, "alpha": 1 - VEILED, "linewidth": 0}
        self._veil = _squares(self.map, [], "veiled", 0.0, **veil)
        frames = (("picked-halo", "white", 4.0), ("picked", PICK, 2.0))
        self._picked = [
            _squares(self.map, [], gid, -0.06, facecolor="none", edgecolor=colour, linewidth=wide, clip_on=False)
            for gid, colour, wide in frames
        ]

    @property
    def moving(self) -> list[Artist]:
        """What `move` changes."""
        over = [self._parts[gid] for gid in ("chosen-halo", "chosen", "inert") if gid in self._parts]
        legend = self.map.get_legend()
        assert legend is not None
        bars = [*self.bar.patches, *self.bar.lines, *self.bar.texts]
        return [
            self._parts["gates"],
            self._veil,
            *over,
            *self._picked,
            legend,
            *self.colour_bar.lines,
            *bars,
            self._heading,
        ]

    def move(
        self,
        gates: Any,
        *,
        budget: int | None = None,
        pets: Sequence[str] | None = None,
        layers: tuple[int, int] | None = None,
        candidate: str | None = None,
        title: str | None = None,
    ) -> None:
        """Let the artists follow; arguments as in `plot_cut`, the candidates and their order as before."""
        table = as_table(gates, COLUMNS + [self.value])
        n, chosen = len(self._places), flag(table, "chosen").to_numpy()
        shown = np.full(n, -np.inf)
        np.fmax.at(shown, self._cell, table[self.value].to_numpy(float, na_value=np.nan))
        values = np.where(np.isneginf(shown), np.nan, shown)
        self._parts["gates"].set_array(np.ma.masked_invalid(values))  # type: ignore[attr-defined]
        if self._filter != (pets, layers):
            self._filter, self._seen = (pets, layers), select_rows(table, pets, layers).to_numpy()
        veiled = np.bincount(self._cell, self._seen, n) == 0
        self._set(self._veil, veiled, 0.0)
        faint = np.where(veiled, VEILED, 1.0)
        outlined = np.bincount(self._cell, chosen, n) > 0
        for gid, colour in (("chosen-halo", "white"), ("chosen", "black")):
            if gid in self._parts:
                self._set(self._parts[gid], outlined, 0.07)
                self._parts[gid].set_edgecolor([to_rgba(colour, a) for a in faint[outlined]])  # type: ignore[attr-defined]
        if "inert" in self._parts:
            inert = np.bincount(self._cell, ~flag(table, "inert").to_numpy(), n) == 0
            bright = self._parts["gates"].to_rgba(values[inert])[:, :3] @ [0.299, 0.587, 0.114] > 0.5  # type: ignore[attr-defined]
            looks = zip(np.where(bright, "black", "white"), faint[inert], strict=True)
            self._parts["inert"].set_color([to_rgba(str(colour), a) for colour, a in looks])  # type: ignore[attr-defined]
        picked = np.zeros(n, bool)
        if candidate is not None:
            if candidate not in self._names:
                raise PlotError(f"no candidate is called {candidate!r}; {nearest(candidate, self._names)}")
            picked[self._cell[self._names.index(candidate)]] = True
        for frame in self._picked:
            self._set(frame, picked, -0.06)
        self._relabel(table, chosen)
        _move_bar(self.bar, _spent(table, budget))
        self._heading.set_text(title or "")

    def _set(self, squares: Any, where: np.ndarray, inset: float) -> None:
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.5 - inset)
        squares.set_verts(self._places[where][:, None, :] + corners)

    def _relabel(self, table: pd.DataFrame, chosen: np.ndarray) -> None:
        """Numbers in the legend, marks on the colour bar."""
        cost = int(table["n_params"].to_numpy()[chosen].sum())
        words = {"chosen": f"chosen: {chosen.sum():,} of {len(table):,}, {cost:,} parameters"}
        for name, at in cut_and_start(table).items():
            words[name] = f"{name} {at:.3g}"
            for line in self.colour_bar.lines:
                if line.get_gid() == name:
                    line.set_ydata([at, at])
        legend = self.map.get_legend()
        for text in legend.get_texts() if legend else []:
            for name, new in words.items():
                if text.get_text().startswith((f"{name} ", f"{name}:")):
                    text.set_text(new)
