"""Task × task, search × search: the data in the artists, never pixels."""

from __future__ import annotations

import itertools
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gate_tables import by_gid, contrast, legend_texts, overlaps
from matplotlib.colors import to_rgba

from s3pet.errors import PlotError
from s3pet.plots.intervals import mean_interval
from s3pet.plots.matrices import plot_overlap, plot_transfer, transfer_matrix
from s3pet.plots.style import KINDS, figure_style, save_figure

pytestmark = pytest.mark.filterwarnings("error")

TASKS = ("sentiment", "certainty", "number", "ending")
EXTRA = ("random", "average of the others", "deep backbone")


def make_transfer(tasks=TASKS, extra=EXTRA, *, seeds: int = 3, seed: int = 0) -> pd.DataFrame:
    """Own structures best, random ones worst; two pairs were not run."""
    rng, rows = np.random.default_rng(seed), []
    for source, (j, target) in itertools.product((*extra, *reversed(tasks)), enumerate(tasks)):
        base = 0.9 if source == target else 0.6 if source == "random" else 0.86
        rows += [(source, target, k, base - 0.05 * j + 0.02 * rng.normal()) for k in range(seeds)]
    table = pd.DataFrame(rows, columns=["source", "target", "seed", "score"])
    first, last = tasks[0], tasks[-1]
    gone = (table["source"] == tasks[1]) & (table["target"] == first)
    return (
        table[~(gone | ((table["source"] == "deep backbone") & (table["target"] == last)))]
        .sample(frac=1, random_state=1)
        .sort_values("source", key=lambda s: s.map([*extra, *tasks].index), kind="stable")
    )


def make_pairs(tasks=TASKS, *, seeds: int = 3, seed: int = 0) -> pd.DataFrame:
    """Searches of one task agree, of others hardly more than chance."""
    rng, rows = np.random.default_rng(seed), []
    for (task, i), (other, j) in itertools.combinations(itertools.product(tasks, range(seeds)), 2):
        same = task == other
        row = {"first": f"{task} {i}", "second": f"{other} {j}", "group": "same task" if same else "other task"}
        row |= {"jaccard": np.clip((0.4 if same else 0.17) + 0.05 * rng.normal(), 0, 1)}
        row |= {"jaccard_chance": 0.11 + 0.01 * rng.normal(), "jaccard_chance_high": 0.2}
        row |= {"spearman": (0.5 if same else 0.05) + 0.1 * rng.normal(), "spearman_chance": 0.0}
        rows.append(row | {"spearman_chance_high": 0.09})
    return pd.DataFrame(rows)


def cells(ax) -> pd.DataFrame:
    """What the coloured cells show, with the names at the sides; nan where no cell is drawn."""
    (mesh,) = by_gid(ax, "cells")
    rows, columns = ([label.get_text() for label in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
    values = np.ma.filled(mesh.get_array().astype(float), np.nan).reshape(len(rows), len(columns))
    return pd.DataFrame(values, rows, columns)


def places(ax, gid: str) -> set[tuple[str, str]]:
    """Row and column of the marked cells."""
    rows, columns = ([label.get_text() for label in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
    return {(rows[int(patch.get_y())], columns[int(patch.get_x())]) for patch in by_gid(ax, gid)}


def overlapping(ax) -> list[tuple[str, str]]:
    ax.figure.draw_without_rendering()
    texts = [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels(), ax.title, ax.xaxis.label, ax.yaxis.label]
    texts += ax.get_legend().get_texts() if ax.get_legend() else []
    for bar in set(ax.figure.axes) - {ax}:
        low, high = bar.get_ylim()
        texts += [bar.yaxis.label, *(t for t in bar.get_yticklabels() if low <= t.get_position()[1] <= high)]
    return overlaps(texts)


# ---------------------------------------------------------------------------------------------- transfer


def test_transfer_matrix_matches_scipy():
    from scipy import stats

    table = make_transfer()
    pairs = transfer_matrix(table).set_index(["source", "target"])
    runs = table[(table["source"] == "random") & (table["target"] == "number")]["score"]
    own = table[(table["source"] == "number") & (table["target"] == "number")]["score"].mean()
    low, high = stats.t.interval(0.95, 2, loc=runs.mean(), scale=stats.sem(runs))
    row = pairs.loc[("random", "number")]
    assert (row["score"], row["score_half"]) == pytest.approx((runs.mean(), (high - low) / 2))
    assert (row["percent"], row["percent_half"]) == pytest.approx((100 * runs.mean() / own, 50 * (high - low) / own))
    assert all(pairs.loc[(task, task), "percent"] == pytest.approx(100) for task in TASKS)
    gone = pairs.loc[("certainty", "sentiment")]
    assert gone["n"] == 0 and np.isnan(gone["score"]) and pairs["n"].sum() == len(table)
    two = table[table["seed"] < 2]
    runs = two[(two["source"] == "random") & (two["target"] == "number")]["score"]
    low, high = mean_interval([runs])  # the one interval, also for two runs
    row = transfer_matrix(two).set_index(["source", "target"]).loc[("random", "number")]
    assert row["score_half"] == pytest.approx((high - low) / 2)
    assert transfer_matrix(table[table["seed"] < 1])["score_half"].isna().all()


def test_transfer_rows_are_tasks_first_then_the_others_in_the_tables_order():
    table = make_transfer()
    pairs = transfer_matrix(table)
    targets = [*table["target"].unique()]
    assert [*pairs["source"].unique()] == [*targets, *EXTRA] and [*pairs["target"].unique()] == targets
    assert set(pairs.loc[~pairs["is_task"], "source"]) == set(EXTRA)
    ax = plot_transfer(table)
    assert [*cells(ax).index] == [*targets, *EXTRA] and [*cells(ax).columns] == targets
    (line,) = by_gid(ax, "others")
    assert line.get_ydata()[0] == len(TASKS)


@pytest.mark.parametrize("relative", [True, False])
def test_transfer_cells_hold_the_means(relative):
    table = make_transfer()
    means = table.groupby(["source", "target"])["score"].mean()
    ax = plot_transfer(table, relative=relative)
    shown = cells(ax).stack().dropna()
    assert set(shown.index) == set(means.index)
    for (source, target), value in shown.items():
        mean = means[source, target]
        assert value == pytest.approx(100 * mean / means[target, target] if relative else mean)
    texts = [text.get_text().split("\n") for text in by_gid(ax, "number")]
    assert [mean for mean, _ in texts] == [f"{value:{'.0f' if relative else '.2f'}}" for value in shown]
    assert all(half.startswith("±") for _, half in texts)
    assert ax.get_legend().get_title().get_text() == "± half the 95 % t interval of the mean"
    assert places(ax, "own") == {(task, task) for task in TASKS}


def test_pairs_without_a_run_are_hatched_not_zero():
    ax = plot_transfer(make_transfer())
    shown = cells(ax).stack()
    assert set(shown.index[shown.isna()]) == {("certainty", "sentiment"), ("deep backbone", "ending")}
    assert ax.patch.get_hatch() and legend_texts(ax) == ["own search", "no run"]
    table = make_transfer(extra=()).query("source != 'certainty' or target == 'certainty'")
    assert "no run" in legend_texts(plot_transfer(table))
    table = make_transfer(extra=()).query("source != 'sentiment' and target != 'sentiment'")
    assert legend_texts(plot_transfer(table)) == ["own search"]


def test_transfer_scale_is_symmetric_and_says_where_it_is_exceeded():
    table = make_transfer()
    ax = plot_transfer(table)
    low, high = by_gid(ax, "cells")[0].get_clim()
    assert low + high == pytest.approx(200) and low < 100
    worse = table.assign(score=table["score"].mask((table["source"] == "random") & (table["target"] == "number"), 0.01))
    far = plot_transfer(worse)
    assert by_gid(far, "cells")[0].get_clim()[0] > 20 and by_gid(far, "cells")[0].colorbar.extend == "min"
    flat = plot_transfer(table.assign(score=0.5))
    assert by_gid(flat, "cells")[0].get_clim() == (95, 105) and by_gid(flat, "cells")[0].colorbar.extend == "neither"


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_stand_out_from_their_cells(dark):
    with figure_style("paper", dark=dark):
        for ax in (plot_transfer(make_transfer()), plot_transfer(make_transfer(), relative=False)):
            (mesh,) = by_gid(ax, "cells")
            colours = mesh.to_rgba(cells(ax).stack().dropna().to_numpy())
            texts = by_gid(ax, "number")
            assert min(contrast(t.get_color(), c) for t, c in zip(texts, colours, strict=True)) > 4.5


def test_transfer_refuses_what_it_cannot_relate():
    table = make_transfer()
    with pytest.raises(PlotError, match=r"No row with source = target .*\['number'\]; use relative=False"):
        plot_transfer(table[(table["source"] != "number") | (table["target"] != "number")])
    with pytest.raises(PlotError, match=r"score > 0 for \['ending'\]"):
        plot_transfer(table.assign(score=table["score"].mask(table["target"] == "ending", 0.0)))
    with pytest.raises(PlotError, match="no column 'source'"):
        transfer_matrix(table.drop(columns="source"))
    with pytest.raises(PlotError, match="mixes 2 values of 'budget'"):
        transfer_matrix(pd.concat([table.assign(budget=1), table.assign(budget=2)]))
    with pytest.raises(PlotError, match="is empty"):
        transfer_matrix(table.assign(score=np.nan))


# ----------------------------------------------------------------------------------------------- overlap


@pytest.mark.parametrize("value", ["jaccard", "spearman"])
def test_overlap_cells_hold_every_pair_once(value):
    pairs = make_pairs().sample(frac=1, random_state=0)  # in any order, and either way round
    turned = pairs.rename(columns={"first": "second", "second": "first"})
    ax = plot_overlap(pd.concat([pairs.iloc[:30], turned.iloc[30:]]), value=value)
    (mesh,), shown = by_gid(ax, "cells"), cells(ax)
    for row in pairs.to_dict("records"):
        assert shown.loc[row["first"], row["second"]] == shown.loc[row["second"], row["first"]] == row[value]
    assert shown.notna().sum().sum() == 2 * len(pairs) and np.isnan(np.diag(shown)).all()
    assert places(ax, "self") == {(name, name) for name in shown}
    assert mesh.get_clim() == pytest.approx((min(0, pairs[value].min()), pairs[value].max()))
    levels = {line.get_gid(): line.get_ydata()[0] for line in mesh.colorbar.ax.lines if line.get_gid()}
    assert levels["chance"] == pytest.approx(pairs[f"{value}_chance"].mean())
    assert levels["95 % quantile of chance"] == pytest.approx(pairs[f"{value}_chance_high"].mean())
    (dots,) = by_gid(ax, "within-chance")
    assert len(dots.get_offsets()) == 2 * (pairs[value] <= pairs[f"{value}_chance_high"]).sum()


def test_few_names_show_numbers_and_missing_pairs():
    pairs = make_pairs(("seed",), seeds=5)
    ax = plot_overlap(pairs.iloc[1:])
    shown = cells(ax).stack().dropna()
    assert [text.get_text() for text in by_gid(ax, "number")] == [f"{value:.2f}" for value in shown]
    assert ("seed 0", "seed 1") not in shown.index and ax.patch.get_hatch() and "no pair" in legend_texts(ax)
    assert "no pair" not in legend_texts(plot_overlap(pairs)) and not by_gid(plot_overlap(make_pairs()), "number")


def test_lines_separate_the_names_of_different_tasks():
    shuffled = make_pairs().sample(frac=1, random_state=1)
    ax = plot_overlap(shuffled)
    stems = [label.get_text().split()[0] for label in ax.get_yticklabels()]
    assert len([1 for one, other in itertools.pairwise(stems) if one != other]) == 3
    assert sorted({line.get_ydata()[0] for line in by_gid(ax, "group") if line.get_xdata()[0] == 0}) == [3, 6, 9]
    single = make_pairs().replace(r" (\d)$", r"-\1", regex=True)
    assert not by_gid(plot_overlap(single), "group")


def test_strips_show_every_pair_the_mean_and_chance():
    pairs = make_pairs()
    ax = plot_overlap(pairs, by="group")
    ax.figure.draw_without_rendering()
    columns = by_gid(ax, "pairs")
    for i, (name, group) in enumerate(pairs.groupby("group", sort=False)):
        points = columns[i]
        assert sorted(points.get_offsets()[:, 1]) == pytest.approx(sorted(group["jaccard"]))
        assert (abs(points.get_offsets()[:, 0] - i) < 0.5).all()
        assert by_gid(ax, "mean")[i].get_segments()[0][0, 1] == pytest.approx(group["jaccard"].mean())
        assert by_gid(ax, "chance")[i].get_segments()[0][0, 1] == pytest.approx(group["jaccard_chance"].mean())
        heights = by_gid(ax, "chance-band")[i].get_paths()[0].vertices[:, 1]
        assert (heights.min(), heights.max()) == pytest.approx((group["jaccard_chance"].mean(), 0.2))
        above = (group["jaccard"] > 0.2).sum()
        expected = f"{name} mean {group['jaccard'].mean():.2f} {above} of {len(group)} above"
        assert ax.get_xticklabels()[i].get_text().replace("\n", " ") == expected
        filled = (points.get_facecolors() == to_rgba(KINDS["searched"][1])).all(1)
        assert np.broadcast_to(filled, len(group)).sum() == above


def test_a_point_is_filled_where_it_lies_above_the_band():
    """Each pair has its own level of chance, so that a band with one height would contradict the filling."""
    pairs = make_pairs().assign(jaccard=lambda table: table["jaccard"] / 2 + 0.4)
    near = pairs["jaccard"] + np.where(np.arange(len(pairs)) % 2, 0.02, -0.02)
    ax = plot_overlap(pairs.assign(jaccard_chance_high=near), by="group")
    ax.figure.draw_without_rendering()
    for points, band in zip(by_gid(ax, "pairs"), by_gid(ax, "chance-band"), strict=True):
        (path,) = band.get_paths()
        filled = (points.get_facecolors() == to_rgba(KINDS["searched"][1])).all(1)
        assert 0 < filled.sum() < len(filled)
        for (x, y), full in zip(points.get_offsets(), filled, strict=True):
            level = max(path.vertices[path.vertices[:, 0] <= x][:, 1])  # the steps rise
            assert full == (y > level)


def test_strips_are_the_same_on_every_call():
    drawings = []
    for _ in range(2):
        ax = plot_overlap(make_pairs(), by="group")
        ax.figure.draw_without_rendering()
        drawings.append(np.concatenate([dots.get_offsets() for dots in by_gid(ax, "pairs")]))
    np.testing.assert_array_equal(*drawings)


def test_overlap_refuses_pairs_given_twice():
    pairs = make_pairs()
    turned = pairs.iloc[[0]].rename(columns={"first": "second", "second": "first"})
    with pytest.raises(PlotError, match="each once"):
        plot_overlap(pd.concat([pairs, turned]))
    both = pd.concat([pairs.assign(budget=1), pairs.assign(budget=2)])
    with pytest.raises(PlotError, match="see 'sentiment 0' and 'sentiment 1'"):
        plot_overlap(both)
    assert len(by_gid(plot_overlap(both, by="budget"), "mean")) == 2
    with pytest.raises(PlotError, match="two different searches"):
        plot_overlap(pairs.assign(second=pairs["first"]))
    with pytest.raises(PlotError, match="no column 'spearman_chance'"):
        plot_overlap(pairs.drop(columns="spearman_chance"), value="spearman")
    with pytest.raises(PlotError, match=r"no column 'grup' .*'group'"):
        plot_overlap(pairs, by="grup")
    with pytest.raises(PlotError, match="is empty"):
        plot_overlap(pairs.assign(jaccard=np.nan))


# ---------------------------------------------------------------------------------------------- legible

FIGURES = {
    "transfer": lambda ax: plot_transfer(make_transfer(), ax=ax, title="Transfer"),
    "scores": lambda ax: plot_transfer(make_transfer(), relative=False, ax=ax),
    "twelve tasks": lambda ax: plot_transfer(make_transfer([f"task {i}" for i in range(12)]), ax=ax),
    "four seeds": lambda ax: plot_overlap(make_pairs(("seed",), seeds=4), ax=ax),
    "twelve searches": lambda ax: plot_overlap(make_pairs(), ax=ax, title="Agreement"),
    "eight searches": lambda ax: plot_overlap(make_pairs(seeds=2), ax=ax),
    "twenty searches": lambda ax: plot_overlap(make_pairs(seeds=5), value="spearman", ax=ax),
    "strips": lambda ax: plot_overlap(make_pairs(), by="group", ax=ax, title="Agreement"),
    "five strips": lambda ax: plot_overlap(make_pairs(seeds=5).assign(size=[*range(5)] * 38), by="size", ax=ax),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_do_not_overlap(name):
    with figure_style("notebook", dark=True):
        assert not overlapping(FIGURES[name](None))
    with figure_style("paper") as style:
        ax = FIGURES[name](plt.subplots(figsize=(style.column, 4.0), layout="constrained")[1])
        assert not overlapping(ax)
    sizes = {text.get_fontsize() for text in (*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels())}
    assert min(sizes) >= 0.6 * style.font and max(sizes) <= style.font


@pytest.mark.parametrize("name", ["transfer", "twelve searches", "strips"])
def test_files_are_vector(tmp_path, name):
    (pdf,) = save_figure(FIGURES[name](None), tmp_path / "matrix", ("pdf",))
    assert not re.search(rb"/Subtype\s*/Image", pdf.read_bytes())


@pytest.mark.parametrize("name", ["transfer", "twelve searches", "strips"])
def test_dark_figures_have_no_black_outside_coloured_cells(name):
    with figure_style("notebook", dark=True) as style:
        ax = FIGURES[name](None)
    texts = [*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.get_legend().get_texts(), ax.title]
    assert {text.get_color() for text in texts} == {style.ink}
