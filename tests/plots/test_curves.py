"""Profiles, trajectories, polarisation: the data in the artists, against the table they came from."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gate_tables import by_gid, legend_texts, make_gates, overlaps
from matplotlib.colors import same_color
from matplotlib.text import Text

from s3pet.errors import PlotError
from s3pet.plots.curves import plot_polarisation, plot_profile, plot_trajectories, polarisation, profile_shares
from s3pet.plots.style import PET_COLOURS, PETS, figure_style, style
from s3pet.space import Candidate

pytestmark = pytest.mark.filterwarnings("error")

SPACES = {"t5-pocket": (4, 4, False), "bert-like": (6, 0, True), "t5-large": (24, 24, False)}


def make_choice(gates: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The gates with ``chosen`` as a search fills it: the most probable first, skipping what does not fit."""
    chosen, left = pd.Series(False, gates.index), budget
    for i in gates["prob"].sort_values(ascending=False, kind="stable").index:
        chosen[i] = gates["n_params"][i] <= left
        left -= gates["n_params"][i] * chosen[i]
    return gates.assign(chosen=chosen)


def make_result(n_encoder=4, n_decoder=4, bert=False, n_steps=50, seed=0) -> SimpleNamespace:
    """A search of a synthetic space: every gate goes from the uniform start to where the gate table has it."""
    gates = make_gates(n_encoder, n_decoder, bert=bert, seed=seed)
    gates = make_choice(gates, gates["n_params"] @ gates["prob"])
    names = [Candidate.from_row({"d_in": 1, "d_out": 1} | row).name for row in gates.to_dict("records")]
    start = (gates["n_params"] @ gates["prob"]) / gates["n_params"].sum()
    rows = []
    for i, step in enumerate(np.linspace(0, 200, n_steps).astype(int)):
        part = {
            "alpha": gates["alpha"] * i / (n_steps - 1),
            "prob": start + (gates["prob"] - start) * i / (n_steps - 1),
        }
        rows.append(pd.DataFrame({"candidate": names, "step": step, **part}))
    return SimpleNamespace(gates=gates, trajectory=pd.concat(rows, ignore_index=True), names=names)


def overlapping(ax) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other, of all that a reader sees."""
    ax.figure.draw_without_rendering()
    texts = [*ax.texts, *ax.get_legend().get_texts(), ax.get_legend().get_title(), ax.title]
    for axis, ends in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
        ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        texts += [axis.label, *(label for at, label in ticks if ends[0] <= at <= ends[1])]
    return overlaps(texts)


def outside(ax) -> list[str]:
    """Texts that the figure cuts off."""
    frame = ax.figure.bbox
    texts = [*ax.texts, *ax.get_legend().get_texts(), ax.title]
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts if text.get_text()]
    return [text for text, box in boxes if box.x0 < frame.x0 or box.x1 > frame.x1 + 1 or box.y1 > frame.y1 + 1]


# ------------------------------------------------------------------------------------------------ profile


@pytest.mark.parametrize("value", ["chosen", "prob"])
@pytest.mark.parametrize("by", ["layer", "role", "stack", "pet"])
def test_shares_are_those_of_the_table(by, value):
    gates = make_gates(3, 2)
    shares = profile_shares(SimpleNamespace(gates=gates), by, value)
    assert shares["share"].sum() == pytest.approx(100) and shares["uniform"].sum() == pytest.approx(100)
    weight = gates["n_params"] * gates[value]
    layer = gates["layer"].astype("string").fillna("final").astype(object)
    keys = [name for name in ("stack", "layer", "role", "pet") if name in shares]
    for row in shares.to_dict("records"):
        mine = np.logical_and.reduce([gates.assign(layer=layer)[key] == row[key] for key in keys])
        assert row["share"] == pytest.approx(100 * weight[mine].sum() / weight.sum())
        assert row["uniform"] == pytest.approx(100 * gates["n_params"][mine].sum() / gates["n_params"].sum())


def test_shares_come_in_the_order_of_the_maps():
    gates = make_gates(12, 2).sample(frac=1, random_state=0)
    layers = profile_shares(gates)[["stack", "layer"]].drop_duplicates().to_numpy().tolist()
    assert layers == [["encoder", str(i)] for i in range(12)] + [["encoder", "final"]] + [
        ["decoder", name] for name in ("0", "1", "final")
    ]
    assert profile_shares(gates, "pet")["pet"].tolist() == ["lora", "lnfit", "bitfit", "lowrank_adapter"]
    roles = profile_shares(gates, "role")["role"].drop_duplicates().tolist()
    assert roles[:4] == ["attn.q", "attn.k", "attn.v", "attn.o"] and roles[-2:] == ["attn", "ffn"]
    assert profile_shares(gates, "stack")["stack"].drop_duplicates().tolist() == ["encoder", "decoder"]


@pytest.mark.parametrize("by", ["layer", "role"])
def test_bars_stack_to_the_share_of_their_group_and_marks_are_at_uniform(by):
    gates = make_gates()
    ax = plot_profile(gates, by=by, value="prob", title="where")
    keys = ["stack", "layer"] if by == "layer" else ["role"]
    totals = profile_shares(gates, by, "prob").groupby(keys, sort=False)[["share", "uniform"]].sum()
    ends: dict[float, float] = {}
    for bars in ax.containers:
        for bar in bars:
            assert same_color(bar.get_facecolor(), PET_COLOURS[bars.get_label()])
            x, start, length = (bar.get_x(), bar.get_y(), bar.get_height())
            x, start, length = (x, start, length) if by == "layer" else (start, bar.get_x(), bar.get_width())
            assert start == pytest.approx(ends.get(round(x, 6), 0.0)) or length == 0
            ends[round(x, 6)] = max(start + length, ends.get(round(x, 6), 0.0))
    np.testing.assert_allclose([ends[x] for x in sorted(ends)], totals["share"])
    (marks,) = by_gid(ax, "uniform")
    at = [segment[0][1 if by == "layer" else 0] for segment in marks.get_segments()]
    np.testing.assert_allclose(at, totals["uniform"])
    assert legend_texts(ax) == ["LoRA", "LNFit", "BitFit", "low-rank", "uniform gates"] and ax.get_title() == "where"


def test_layers_are_under_their_stack_with_a_line_between():
    ax = plot_profile(make_gates(4, 4))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3", "f"] * 2
    (line,), names = by_gid(ax, "stack-separator"), by_gid(ax, "stack")
    assert line.get_xdata()[0] == 4.5 and ax.get_xlabel() == "layer (f: final)"
    assert [(text.get_text(), text.get_position()[0]) for text in names] == [("encoder", 2), ("decoder", 7)]
    alone = plot_profile(make_gates(6, 0, bert=True))
    assert [text.get_text() for text in by_gid(alone, "stack")] == ["encoder"]
    assert not by_gid(alone, "stack-separator") and alone.get_xticklabels()[0].get_text() == "e"


def test_level_bars_have_names_and_numbers():
    gates = make_gates()
    shares = profile_shares(gates, "pet")
    names = [label.get_text() for label in plot_profile(gates, by="pet").get_yticklabels()]
    assert names == [f"{PETS[row.pet]}  {row.share:.0f} %" for row in shares.itertuples()]
    names = [label.get_text().split("  ")[0] for label in plot_profile(gates, by="role").get_yticklabels()]
    assert names[0] == "attention q" and {"FFN in", "cross norm", "final norm", "attn block"} <= set(names)


def test_an_unknown_role_and_module_are_drawn_too():
    gates = make_gates()
    other = gates.iloc[[0]].assign(role="router", pet="prefix", site="encoder.0.router", chosen=True)
    ax = plot_profile(pd.concat([gates, other]), by="role")
    assert ax.get_yticklabels()[-1].get_text().startswith("router") and "prefix" in legend_texts(ax)


# ------------------------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("value", ["prob", "alpha"])
def test_every_candidate_is_a_line_of_its_module_and_choice(value):
    result = make_result()
    ax = plot_trajectories(result, value=value, title="a search")
    wide = result.trajectory.pivot(index="step", columns="candidate", values=value)
    chosen = dict(zip(result.names, result.gates["chosen"], strict=True))
    widths = {}
    for gid in ("chosen", "not chosen"):
        for pet in ("lora", "lnfit", "bitfit", "lowrank_adapter"):
            lines = [line for line in by_gid(ax, gid) if line.get_label() == pet]
            mine = [name for name in result.names if f":{pet}" in name and chosen[name] == (gid == "chosen")]
            assert len(lines) == len(mine)
            for name, line in zip(mine, lines, strict=True):
                np.testing.assert_allclose(line.get_xydata(), np.column_stack([wide.index, wide[name]]))
                assert same_color(line.get_color(), PET_COLOURS[pet])
                widths[gid] = line.get_linewidth()
    assert widths["chosen"] > 2 * widths["not chosen"]
    (cut,) = by_gid(ax, "cut")
    final = wide.iloc[-1]
    assert cut.get_ydata()[0] == pytest.approx(min(final[name] for name in chosen if chosen[name]))
    start = by_gid(ax, "uniform start")
    assert len(start) == (value == "prob")
    if start:
        assert start[0].get_ydata()[0] == pytest.approx(wide.iloc[0].iloc[0])
    assert ax.get_title() == "a search"


def test_the_highest_are_named_in_order_of_height():
    result = make_result()
    ax = plot_trajectories(result, highlight=3)
    gates, markers = result.gates.nlargest(3, "prob"), by_gid(ax, "highlight")
    for row, marker in zip(gates.to_dict("records"), markers, strict=True):
        layer = "" if pd.isna(row["layer"]) else f" {row['layer']}"
        assert marker.get_label() == f"{row['stack'][:3]}{layer} {row['role']} {PETS[row['pet']]}"
        assert marker.get_ydata()[0] == pytest.approx(row["prob"])
    assert {marker.get_label() for marker in markers} < {*legend_texts(ax)}
    assert len({marker.get_marker() for marker in markers}) == 3
    assert not by_gid(plot_trajectories(result, value="alpha", highlight=0), "highlight")


def test_a_name_has_the_rank_only_where_there_are_several():
    result = make_result(2, 0)
    first = result.gates.index[0]
    more = result.gates.loc[[first]].assign(rank=4, prob=0.99)
    gates = pd.concat([result.gates.assign(prob=result.gates["prob"] * 0.9), more], ignore_index=True)
    last = result.trajectory[result.trajectory["candidate"] == result.names[0]]
    last = last.assign(candidate=result.names[0][:-1] + "4", prob=0.99)
    both = SimpleNamespace(gates=gates, trajectory=pd.concat([result.trajectory, last]))
    names = [marker.get_label() for marker in by_gid(plot_trajectories(both, highlight=12), "highlight")]
    assert "enc 0 attn.q LoRA 4" in names and not [name for name in names if "enc 1" in name and name.endswith(" 1")]


def test_a_hollow_marker_was_not_chosen():
    result = make_result()
    result.gates.loc[result.gates["prob"].idxmax(), "chosen"] = False
    first, *others = by_gid(plot_trajectories(result), "highlight")
    assert first.get_markerfacecolor() == style().ground
    assert all(marker.get_markerfacecolor() == marker.get_color() for marker in others)


# ------------------------------------------------------------------------------------------- polarisation


def test_polarisation_by_hand():
    """Budget 20 of 50: a skipped expensive gate is no challenger, the best one that fits is."""
    gates = pd.DataFrame({"n_params": [10, 20, 5, 5, 10], "prob": [0.8, 0.35, 0.3, 0.1, 0.3]})
    gates["chosen"] = [True, False, True, True, False]
    found = polarisation(gates)
    assert gates["n_params"] @ gates["prob"] == 20 and found["uniform"] == pytest.approx(0.4)
    assert (found["max_prob"], found["cut"]) == (0.8, 0.1)
    assert np.isnan(found["challenger"]) and np.isnan(found["margin_at_cut"])  # both are too expensive for 5
    gates.loc[4, ["n_params", "prob"]] = [
        5,
        0.6,
    ]  # now one fits, which makes the margin negative: not a search's choice
    assert polarisation(gates)["margin_at_cut"] == pytest.approx(0.1 - 0.6)
    inside = 10 * 0.8 + 5 * 0.3 + 5 * 0.1
    assert polarisation(gates)["soft_mass_outside"] == pytest.approx(1 - inside / (inside + 7 + 3))


@pytest.mark.parametrize("seed", range(5))
def test_margin_of_a_search_is_never_negative_and_the_challenger_fits(seed):
    result = make_result(seed=seed)
    found, gates = polarisation(result), result.gates
    budget = gates["n_params"] @ gates["prob"]
    last = gates[gates["chosen"]].nsmallest(1, "prob").iloc[0]
    left = budget - gates.loc[gates["chosen"], "n_params"].sum() + last["n_params"]
    fits = gates[~gates["chosen"] & (gates["n_params"] <= left)]
    assert found["margin_at_cut"] == pytest.approx(last["prob"] - fits["prob"].max()) and found["margin_at_cut"] >= 0


def test_polarisation_at_both_ends():
    """Uniform gates: all entropy, no margin, outside = what is not chosen. Decided gates: none of it."""
    costs = make_gates(2, 2)["n_params"]
    gates = make_choice(pd.DataFrame({"n_params": costs, "prob": 0.25}), 0.25 * costs.sum())
    found = polarisation(gates)
    assert found["entropy"] == pytest.approx(1) and found["margin_at_cut"] == 0 and found["n_decided"] == 0
    used = costs[gates["chosen"]].sum() / costs.sum()
    assert found["soft_mass_outside"] == pytest.approx(1 - used)
    found = polarisation(gates.assign(prob=gates["chosen"].astype(float)))
    assert found["entropy"] == 0 and found["soft_mass_outside"] == 0 and found["n_decided"] == len(gates)


@pytest.mark.parametrize("seed", range(5))
def test_no_gates_with_the_same_budget_have_more_entropy_than_uniform_ones(seed):
    rng = np.random.default_rng(seed)
    gates = pd.DataFrame({"n_params": rng.integers(1, 1000, 50), "prob": 0.2 + rng.normal(0, 0.05, 50), "chosen": True})
    assert 0 < polarisation(gates)["entropy"] < 1


def test_gates_are_drawn_from_high_to_low_over_budgets_of_parameters():
    result = make_result()
    ax, gates = plot_polarisation(result, title="one"), result.gates.sort_values("prob", ascending=False)
    budget = gates["n_params"] @ gates["prob"]
    x = gates["n_params"].cumsum() / budget
    for gid, mask in (("chosen", gates["chosen"]), ("not chosen", ~gates["chosen"])):
        (points,) = by_gid(ax, gid)
        np.testing.assert_allclose(points.get_xdata(), x[mask])
        np.testing.assert_allclose(points.get_ydata(), gates["prob"][mask])
        assert same_color(points.get_markerfacecolor(), points.get_color() if gid == "chosen" else style().ground)
    (line,) = by_gid(ax, "gates")
    widths, heights = np.diff([0, *line.get_xdata()[1:]]), line.get_ydata()[1:]
    assert widths @ heights == pytest.approx(1)  # the area under every curve is the budget, as under the ideal
    found = polarisation(result)
    (margin,) = by_gid(ax, "margin")
    assert sorted(margin.get_segments()[0][:, 1]) == pytest.approx([found["challenger"], found["cut"]])
    assert margin.get_segments()[0][0, 0] == pytest.approx(x[gates["chosen"]].iloc[-1])
    assert by_gid(ax, "cut")[0].get_ydata()[0] == found["cut"]
    assert by_gid(ax, "uniform")[0].get_ydata()[0] == pytest.approx(found["uniform"])
    assert ax.get_legend().get_title().get_text().startswith("filled: chosen; margin at the cut")
    assert f"{found['margin_at_cut']:.2g}, {100 * found['soft_mass_outside']:.0f} %" in legend_texts(ax)


def test_several_results_differ_in_colour_and_marker_and_have_their_numbers():
    results = {f"seed {seed}": make_result(seed=seed) for seed in range(3)}
    ax = plot_polarisation(results)
    points = by_gid(ax, "chosen")
    assert len({line.get_color() for line in points}) == len({line.get_marker() for line in points}) == 3
    for name, result in results.items():
        found = polarisation(result)
        text = f"{name}: {found['margin_at_cut']:.2g}, {100 * found['soft_mass_outside']:.0f} %"
        assert text in legend_texts(ax)
    assert not by_gid(ax, "cut") and len(by_gid(ax, "margin")) == 3
    assert len(plot_polarisation({"only": results["seed 0"]}).get_legend().get_texts()) == 3  # with uniform, ideal


# ------------------------------------------------------------------------------------------------ looks

FIGURES = {
    "layers": lambda result, ax: plot_profile(result, ax=ax, title="where"),
    "roles": lambda result, ax: plot_profile(result, by="role", ax=ax, title="where"),
    "pets": lambda result, ax: plot_profile(result, by="pet", value="prob", ax=ax, title="where"),
    "trajectories": lambda result, ax: plot_trajectories(result, ax=ax, highlight=12, title="when"),
    "polarisation": lambda result, ax: plot_polarisation(result, ax=ax, title="whether"),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("look", ["paper", "notebook", "panel"])
def test_no_texts_overlap_or_are_cut_off(name, figure, look):
    result = make_result(*SPACES[name], n_steps=5)
    with figure_style("paper" if look == "paper" else "notebook"):
        ax = None
        if look == "panel":  # Axes from elsewhere, without constrained layout
            ax = plt.subplots(figsize=(4.4, 5), gridspec_kw={"left": 0.34, "bottom": 0.5})[1]
        ax = FIGURES[figure](result, ax)
    assert overlapping(ax) == [] and outside(ax) == []


@pytest.mark.parametrize("figure", FIGURES)
def test_dark_figures_have_light_texts(figure):
    with figure_style("notebook", dark=True) as dark:
        ax = FIGURES[figure](make_result(2, 2), None)
        assert same_color(ax.figure.get_facecolor(), dark.ground)
        texts = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), *ax.get_legend().get_texts(), ax.title]
        assert {text.get_color() for text in texts} == {dark.ink}


# ------------------------------------------------------------------------------------------------ errors


def no_trajectory(result):
    return SimpleNamespace(gates=result.gates)


def empty_trajectory(result):
    return SimpleNamespace(gates=result.gates, trajectory=result.trajectory.iloc[:0])


def two_searches(result):
    return SimpleNamespace(gates=result.gates, trajectory=pd.concat([result.trajectory] * 2))


def another_space(result):
    return SimpleNamespace(gates=result.gates.iloc[1:], trajectory=result.trajectory)


def none_chosen(result):
    return result.gates.assign(chosen=False)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda result: plot_profile(result, by="depth"), r"by is one of \['layer', .*'depth'"),
        (lambda result: plot_profile(result, value="alpha"), r"value of \['chosen', 'prob'\].*'alpha'"),
        (lambda result: plot_profile(result.gates.drop(columns="n_params")), "no column 'n_params'"),
        (lambda result: plot_profile(none_chosen(result)), "No shares to show: 'chosen' is 0 for all"),
        (lambda result: plot_trajectories(result, value="margin"), "value is 'prob' or 'alpha'; got 'margin'"),
        (lambda result: plot_trajectories(no_trajectory(result)), r"a run, with \.trajectory"),
        (lambda result: plot_trajectories(result.gates), "a gate table has the last step only"),
        (lambda result: plot_trajectories(empty_trajectory(result)), "is empty"),
        (lambda result: plot_trajectories(two_searches(result)), "not of one search: 0 candidates .* [0-9]+ rows"),
        (lambda result: plot_trajectories(another_space(result)), "search: 1 candidates .*'encoder.0.attn.q:lora:1'"),
        (lambda result: plot_polarisation(none_chosen(result)), "None of the 20 candidates is chosen"),
        (lambda result: plot_polarisation({}), r"got \{\}"),
        (lambda result: plot_polarisation({"a": result.gates.drop(columns="chosen")}), "no column 'chosen'"),
        (lambda result: plot_polarisation([result]), "got list"),
    ],
)  # fmt: skip
def test_errors_come_before_any_figure(draw, message):
    with pytest.raises(PlotError, match=message):
        draw(make_result(1, 0))
    assert not plt.get_fignums()
