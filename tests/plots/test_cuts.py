"""Searches cut at a budget: spending, filters, facts, the veiled map, and who chose what."""

from __future__ import annotations

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gate_tables import by_gid, centres, make_gates, places
from matplotlib.figure import Figure

import s3pet
from s3pet import plots
from s3pet.errors import PlotError

pytestmark = pytest.mark.filterwarnings("error")


def test_budget_bar_by_hand():
    rows = [("lora", 100, True), ("lora", 100, False), ("bitfit", 50, True), ("unknown", 150, False)]
    table = pd.DataFrame(rows, columns=["pet", "n_params", "chosen"])
    ax = plots.plot_budget_bar(table, budget=200, ax=Figure().subplots())
    widths = {bar.get_gid(): bar.get_width() for bar in ax.patches}
    assert widths == {"budget-lora": 50, "budget-bitfit": 25, "budget-unknown": 0, "budget-not used": 25}
    assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([50, 100 / 8, 37.5])
    assert [text.get_text() for text in ax.texts] == ["100 · 1 of 2", "50 · 1 of 1", "0 · 0 of 1", "50"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LoRA", "BitFit", "unknown", "not used"]
    with pytest.raises(PlotError, match="None of the 4 candidates is chosen"):
        plots.plot_budget_bar(table.assign(chosen=False))


def test_sites_outside_the_layers_belong_to_the_first_or_last_layer():
    rows = [("encoder", None, "embed.norm"), ("encoder", 0, "attn.q"), ("encoder", 3, "attn.q")]
    rows += [("encoder", None, "final.norm"), ("decoder", 1, "attn.q"), ("decoder", None, "final.norm")]
    table = pd.DataFrame(rows, columns=["stack", "layer", "role"]).assign(pet="bitfit").astype({"layer": "Int64"})
    assert plots.select_rows(table, layers=(0, 0)).tolist() == [True, True, False, False, False, False]
    assert plots.select_rows(table, layers=(2, 3)).tolist() == [False, False, True, True, False, False]
    assert plots.select_rows(table, layers=(1, 1)).tolist() == [False, False, False, False, True, True]
    assert plots.select_rows(table).all() and not plots.select_rows(table, pets=[]).any()
    with pytest.raises(PlotError, match=r"PET module 'lorra'.*nearest"):
        plots.select_rows(table.assign(pet="lora"), pets=["lorra"])


def test_names_are_those_of_the_space():
    run = s3pet.load_run(s3pet.__path__[0] + "/../data/runs/searches/pocket-t5/sentiment/0.2/seed0")
    assert plots.candidate_names(run).tolist() == [candidate.name for candidate in run.space]


def test_facts_are_those_of_the_table():
    table = make_gates(2, 2)
    names = plots.candidate_names(table)
    assert names[0] == "encoder.0.attn.q:lora:1" and names[1] == "encoder.0.attn.q:bitfit"
    best = int(table["prob"].argmax())
    facts = plots.candidate_facts(table.assign(prob_spread=0.25), names[best], {"a": True, "b": False, "c": True})
    row = table.loc[best]
    expected = {"address": row["site"], "module": row["path"], "cost": f"{row['n_params']} parameters"}
    expected |= {"probability": f"{row['prob']:.4g}", "margin to the cut": f"{row['margin']:+.4g}", "spread": "0.25"}
    expected |= {"in the order": f"1 of {len(table)}", "chosen": "yes", "chosen in": "2 of 3: a, c"}
    assert {name: facts[name] for name in expected} == expected
    lora = plots.candidate_facts(table, names[0])
    assert lora["PET module"] == "LoRA" and lora["rank"] == "1" and not {"inert", "spread", "chosen in"} & {*lora}
    assert plots.candidate_facts(table, names[1])["rank"] == "—"
    assert plots.candidate_facts(table, names[1], {"a": False})["chosen in"] == "0 of 1"


def test_facts_name_what_cannot_act_and_what_was_too_expensive():
    table = make_gates(2, 2)
    names = plots.candidate_names(table)
    facts = plots.candidate_facts(table.assign(redundant=names[1]), "encoder.0.attn.k:bitfit")
    assert facts["inert"] == "cannot change the model" and facts["can add the same"] == names[1]
    best = int(table["prob"].argmax())
    table.loc[best, "chosen"] = False
    assert plots.candidate_facts(table, names[best])["chosen"].startswith("no, too expensive")
    assert plots.candidate_facts(table, names[int(table["prob"].argmin())])["chosen"] == "no"
    with pytest.raises(PlotError, match="no candidate is called"):
        plots.candidate_facts(table, "nothing")
    with pytest.raises(PlotError, match="no candidate is called"):
        plots.plot_cut(table, candidate="nothing")
    assert not plt.get_fignums(), "the error comes before the figure"


def test_filters_veil_and_never_change_the_choice():
    gates = make_gates()
    everything, bars = plots.plot_cut(gates, title="a title")
    assert not centres(everything, "veiled") and not centres(everything, "picked")
    assert everything.figure.get_suptitle() == "a title" and len(bars.patches) == 5
    name = "encoder.1.attn.q:lora:1"
    ax, _ = plots.plot_cut(gates, pets=["lora"], layers=(2, 3), candidate=name)
    visible = plots.select_rows(gates, ["lora"], (2, 3))
    assert centres(ax, "veiled") == places(gates, ~visible)
    assert centres(ax, "picked") == places(gates, plots.candidate_names(gates) == name)
    assert centres(ax, "chosen") == centres(everything, "chosen") == places(gates, gates["chosen"])
    above = [by_gid(ax, gid)[0].get_zorder() for gid in ("chosen", "veiled", "picked")]
    assert above == sorted(set(above)), "the veil lies over the outlines, the red frame over the veil"


@pytest.mark.parametrize("layers", [(4, 4), (24, 24)])
@pytest.mark.parametrize("name", ["paper", "notebook", "talk"])
def test_map_and_bars_fit_the_page_and_keep_apart(layers, name):
    with plots.figure_style(name) as style:
        figure = Figure()
        ax, bars = plots.plot_cut(make_gates(*layers), title="a title", figure=figure)
        figure.draw_without_rendering()
        assert figure.get_figwidth() <= style.page + 0.01
        numbers = [text.get_window_extent() for text in bars.texts]
        assert max(box.x1 for box in numbers) <= figure.bbox.x1
        assert not any(box.overlaps(ax.get_tightbbox()) for box in numbers)


# ------------------------------------------------------------------------------------------------ choices


def test_choice_table_by_hand():
    one, two = make_gates(2, 0, seed=0), make_gates(2, 0, seed=1)
    table = plots.choice_table({"a": one, "b": two.iloc[::-1]})
    names = plots.candidate_names(one)
    assert set(table.index) == set(names[one["chosen"] | two["chosen"]])
    assert table["a"].to_dict() == one.set_axis(names)["chosen"].loc[table.index].to_dict()
    assert table["b"].to_dict() == two.set_axis(names)["chosen"].loc[table.index].to_dict()
    assert (table["chosen_by"] == table["a"].astype(int) + table["b"]).all()
    mean = ((one["prob"] + two["prob"]) / 2).set_axis(names)
    assert table["mean_prob"].to_dict() == pytest.approx(mean.loc[table.index].to_dict())
    order = list(zip(table["chosen_by"], table["mean_prob"], strict=True))
    assert order == sorted(order, reverse=True)


def test_choices_need_the_same_candidates():
    gates = make_gates(1, 1)
    with pytest.raises(PlotError, match=r"got \{\}"):
        plots.choice_table({})
    with pytest.raises(PlotError, match="different candidates"):
        plots.choice_table({"a": gates, "b": gates.iloc[1:]})
    with pytest.raises(PlotError, match="no search is called 'c'"):
        plots.plot_two({"a": gates, "b": gates}, "a", "c")
    assert math.isclose(plots.choice_table({"a": gates})["mean_prob"].iloc[0], gates["prob"].max())


def test_two_of_several_searches():
    gates = {name: make_gates(seed=seed) for seed, name in enumerate("abc")}
    ax = plots.plot_two(gates, "c", "a")
    np.testing.assert_allclose(
        by_gid(ax, "gates")[0].get_array().sum(), (gates["c"]["prob"] - gates["a"]["prob"]).sum()
    )
    assert ax.figure.axes[-1].get_ylabel() == "gate probability: c − a"


def test_agreement_shows_the_pairs_twice():
    rows = [("a", "b", "same"), ("a", "c", "other"), ("b", "c", "other")]
    pairs = pd.DataFrame(rows, columns=["first", "second", "group"])
    pairs = pairs.assign(jaccard=[0.5, 0.2, 0.1], jaccard_chance=0.1, jaccard_chance_high=0.15)
    matrix, points = plots.plot_agreement(pairs)
    assert matrix.figure is points.figure
    assert {label.get_text() for label in matrix.get_xticklabels()} == {"a", "b", "c"}
    assert len(points.get_xticks()) == 2


@pytest.mark.parametrize("name", ["paper", "notebook", "talk"])
@pytest.mark.parametrize("n_searches", [6, 20])
def test_agreement_fits_the_page(name, n_searches):
    ends = [*itertools.combinations([f"search {i}" for i in range(n_searches)], 2)]
    pairs = pd.DataFrame(ends, columns=["first", "second"]).assign(group="same", jaccard=0.5)
    with plots.figure_style(name) as style:
        matrix, _ = plots.plot_agreement(pairs.assign(jaccard_chance=0.1, jaccard_chance_high=0.15))
        assert matrix.figure.get_figwidth() <= style.page + 0.01
