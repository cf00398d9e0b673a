"""What searches chose beside chance: frequencies, shares by layer and place, and their figures."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from gate_tables import by_gid, centres, legend_texts, overlaps, places
from scipy import stats
from test_transfer import make_result
from tiny import tiny_t5

from s3pet import make_space, plots
from s3pet.errors import PlotError, RunError
from s3pet.plots.chance import choices_by_chance

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def space():
    return make_space(tiny_t5(), "mixed")


@pytest.fixture(scope="module")
def searches(space):
    return [make_result(space, seed, task="ab"[seed % 2]) for seed in range(6)]


def same_choice(space, n):
    """Searches that all choose the same few modules, in layer 0 of the encoder."""
    alpha = torch.tensor([3.0 if (c.stack, c.layer, c.pet) == ("encoder", 0, "lora") else 0.0 for c in space])
    return [make_result(space, seed, budget=100, alpha=alpha.double()) for seed in range(n)]


@pytest.mark.parametrize("within", ["pet", None])
def test_chance_keeps_the_budget_and_with_within_the_modules(searches, within):
    masks = choices_by_chance(searches, within=within, draws=20)
    table = searches[0].gates
    assert masks.shape == (20, 6, len(table)) and masks.dtype == bool
    costs = table["n_params"].to_numpy()
    for n, search in enumerate(searches):
        own = search.gates["chosen"].to_numpy()
        assert (masks[:, n] @ costs <= search.budget.n_params).all()
        if within:
            for pet, cost in table[["pet", "n_params"]].drop_duplicates().to_numpy():
                rows = (table["pet"].eq(pet) & table["n_params"].eq(cost)).to_numpy()
                assert (masks[:, n][:, rows].sum(1) == own[rows].sum()).all()
        assert (masks[:, n] != own).any(), "but in other places"
    again = choices_by_chance(searches, within=within, draws=20)
    np.testing.assert_array_equal(masks, again)


def test_frequency_is_the_share_of_searches_and_chance_that_of_shuffles(searches):
    table = plots.choice_frequency(searches, draws=2000)
    chosen = np.stack([search.gates["chosen"] for search in searches])
    np.testing.assert_allclose(table["frequency"], chosen.mean(0))
    kinds = table.assign(frequency=chosen.mean(0)).groupby(["pet", "n_params"])["frequency"]
    np.testing.assert_allclose(table["chance"], kinds.transform("mean"), atol=0.03)
    assert table["chance_high"].nunique() == 1 and table["chance_high"].iloc[0] >= table["chance"].max()
    assert (table["searches"] == 6).all()


def test_the_same_choice_by_all_is_above_chance_and_random_ones_are_not(space, searches):
    alike = plots.choice_frequency(same_choice(space, 6))
    above = alike["frequency"] > alike["chance_high"]
    assert above.any() and (alike["frequency"][above] == 1).all()
    free = [plots.choice_frequency([make_result(space, 10 * n + seed) for seed in range(5)], seed=n) for n in range(20)]
    assert sum((table["frequency"] > table["chance_high"]).any() for table in free) <= 4  # one is expected


def test_the_map_of_frequencies_outlines_what_is_above_chance(space):
    table = plots.choice_frequency(same_choice(space, 6))
    ax = plots.plot_frequency(table, title="a title")
    above = table["frequency"] > table["chance_high"]
    assert centres(ax, "chosen") == places(table.assign(prob=0.0), above)
    assert f"more often than by chance: {above.sum()} of {len(table)}" in legend_texts(ax)
    (mesh,) = by_gid(ax, "gates")
    assert mesh.get_array().sum() == pytest.approx(6 * table["frequency"].sum())
    assert mesh.get_clim() == (0, 6) and mesh.get_cmap().name == "cividis"
    (mark,) = (line for line in ax.figure.axes[-1].lines if line.get_gid())
    assert mark.get_ydata()[0] == pytest.approx(6 * table["chance_high"].iloc[0])
    assert ax.figure.axes[-1].get_ylabel() == "chosen by … of 6 searches"


@pytest.mark.parametrize("by", ["layer", "role", "stack", "pet"])
def test_shares_are_means_over_searches_and_tasks_with_their_interval(searches, by):
    shares = plots.choice_shares(searches, by=by, within=None, draws=50)
    assert shares["share"].sum() == pytest.approx(100) and shares["chance"].sum() == pytest.approx(100)
    assert (shares["chance_low"] <= shares["chance"]).all() and (shares["chance"] <= shares["chance_high"]).all()
    own = [plots.profile_shares(search, by).groupby(plots.curves.PROFILES[by][0]) for search in searches]
    if by == "stack":
        encoder = np.array([groups["share"].sum()["encoder"] for groups in own])
        row = shares.set_index("name").loc["encoder"]
        assert row["share"] == pytest.approx(encoder.mean())
        tasks = encoder[0::2], encoder[1::2]
        half = np.sqrt(sum(part.var(ddof=1) / 3 for part in tasks)) / 2
        freedom = (half**2) ** 2 / sum((part.var(ddof=1) / 12) ** 2 / 2 for part in tasks)
        assert row["high"] - row["share"] == pytest.approx(half * stats.t.ppf(0.975, freedom))


def test_shares_of_searches_that_agree_lie_outside_chance(space):
    shares = plots.choice_shares(same_choice(space, 4), by="layer").set_index("name")
    assert list(shares.index)[:2] == ["encoder 0", "encoder 1"] and (shares["low"] == shares["share"]).all()
    first = shares.loc["encoder 0"]
    assert (
        first["share"] > first["chance_high"] and shares.loc["encoder 1", "share"] < shares.loc["encoder 1", "chance"]
    )


def test_the_forest_shows_means_intervals_and_chance(searches):
    tables = {name: plots.choice_shares(searches[i::2], draws=50) for i, name in enumerate("ab")}
    ax = plots.plot_shares(tables, title="a title")
    for (name, table), dots, lines, band in zip(
        tables.items(), by_gid(ax, "share"), by_gid(ax, "interval"), (ax.patches[: len(tables["a"])], None), strict=True
    ):
        np.testing.assert_allclose(dots.get_xdata(), table["share"])
        ends = np.array([segment[:, 0] for segment in lines.get_segments()])
        np.testing.assert_allclose(ends, table[["low", "high"]])
        if band:
            reach = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in band]
            np.testing.assert_allclose(reach, table[["chance_low", "chance_high"]])
        assert f"{name}: mean of 3 searches" in legend_texts(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == tables["a"]["name"].tolist()
    assert {"its 95 % t interval", "95 % of such means by chance"} <= set(legend_texts(ax))
    single = plots.plot_shares(tables["a"])
    assert "mean of 3 searches" in legend_texts(single)


@pytest.mark.parametrize("width", [3.35, 6.9])
def test_texts_do_not_overlap(searches, width):
    with plots.figure_style("paper"):
        ax = plt.subplots(figsize=(width, 4), layout="constrained")[1]
        plots.plot_shares(plots.choice_shares(searches, by="role", draws=20), ax=ax, title="a title")
        ax.figure.draw_without_rendering()
        texts = itertools.chain(ax.get_xticklabels(), ax.get_yticklabels(), [ax.title, ax.xaxis.label])
        assert not overlaps([*texts, *ax.get_legend().get_texts()])


def test_bad_arguments_raise_before_anything_is_drawn(space, searches):
    with pytest.raises(PlotError, match="says nothing about pet; use within=None"):
        plots.choice_shares(searches, by="pet")
    with pytest.raises(PlotError, match="by must be"):
        plots.choice_shares(searches, by="depth")
    with pytest.raises(PlotError, match="within must be"):
        plots.choice_frequency(searches, within="kind")
    with pytest.raises(PlotError, match="draws must be"):
        plots.choice_frequency(searches, draws=0)
    with pytest.raises(RunError):
        plots.choice_frequency([])
    with pytest.raises(PlotError, match="no column 'chance'"):
        plots.plot_frequency(plots.choice_frequency(searches, draws=5).drop(columns="chance"))
    with pytest.raises(PlotError, match="one to 5 tables"):
        plots.plot_shares({})
    assert not plt.get_fignums()
