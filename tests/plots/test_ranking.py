"""Forest plots of differences: the data in the artists, never pixels."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from s3pet.errors import PlotError
from s3pet.plots import figure_style, plot_differences, plot_ranking
from s3pet.studies.statistics import over_tasks, summary

BUDGETS = (500, 2270, 9000, 22000)
pytestmark = pytest.mark.filterwarnings("error")


def make_runs(kinds=("searched", "random"), seeds=3) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for task, budget, (i, kind), seed in itertools.product(
        ("sst2", "mr", "cola"), BUDGETS, enumerate(kinds), range(seeds)
    ):
        score = 0.8 - 0.02 * i + rng.normal(0, 0.005)
        rows.append((task, f"{kind} {budget}", kind, budget, seed, budget, score))
    return pd.DataFrame(rows, columns="task structure kind budget seed n_params score".split())


def make_table(kinds=("searched", "random"), seeds=3) -> pd.DataFrame:
    runs = make_runs(kinds, seeds)
    baseline = {f"{kind} {budget}": f"random {budget}" for kind in kinds if kind != "random" for budget in BUDGETS}
    return pd.concat([make(runs, baseline=baseline, draws=200) for make in (summary, over_tasks)])


def by_gid(ax, gid: str) -> list:
    return [line for line in ax.lines if line.get_gid() == gid]


def test_a_panel_per_budget_and_a_row_per_task():
    table = make_table()
    axes = plot_differences(table)
    assert [ax.get_title().split("\n")[0].split(" −")[0] for ax in axes] == [f"searched {n}" for n in BUDGETS]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["cola", "mr", "sst2", "mean of 3"]
    for ax, budget in zip(axes, BUDGETS, strict=True):
        rows = table[(table["structure"] == f"searched {budget}")]
        points, bars = by_gid(ax, "differences"), by_gid(ax, "intervals")
        np.testing.assert_allclose([point.get_xdata()[0] for point in points], 100 * rows["difference"])
        ends = 100 * rows[["difference_low", "difference_high"]]
        np.testing.assert_allclose([bar.get_xdata() for bar in bars], ends)
        assert [point.get_ydata()[0] for point in points] == [0, 1, 2, 3]
        assert [point.get_marker() for point in points] == ["o", "o", "o", "D"]


def test_filled_is_significant_and_what_could_not_be_is_dotted():
    (ax, *_) = plot_differences(make_table())  # three pairs per task, nine over tasks
    points, bars = by_gid(ax, "differences"), by_gid(ax, "intervals")
    filled = [point.get_markerfacecolor() == point.get_color() for point in points]
    assert filled == [False, False, False, True]
    assert [bar.get_linestyle() for bar in bars] == [":", ":", ":", "-"]
    texts = {text.get_text() for text in ax.figure.legends[0].get_texts()}
    assert texts == {"searched", "p (Holm) < 0.05", "too few runs for p (Holm) < 0.05"}
    table = make_table().assign(p=0.5, p_floor=0.001)
    (ax, *_) = plot_differences(table, p="p", alpha=0.01)
    assert {text.get_text() for text in ax.figure.legends[0].get_texts()} == {"searched", "p ≥ 0.01"}


def test_structures_lie_beside_each_other_in_their_own_colours():
    (ax, *_) = plot_differences(make_table(("searched", "sensitivity", "heuristic", "random")), scale=1)
    points = by_gid(ax, "differences")
    assert len({point.get_color() for point in points}) == 3
    assert len({point.get_ydata()[0] for point in points}) == len(points) == 12


def test_without_budgets_or_intervals():
    table = make_table(seeds=1).drop(columns="budget")
    axes = plot_differences(table[~table["task"].str.startswith("mean")])
    assert len(axes) == 4 and len(by_gid(axes[0], "differences")) == 3
    assert len(plot_differences(table[table["task"].str.startswith("mean")])) == 4


@pytest.mark.parametrize("name", ["paper", "notebook"])
@pytest.mark.parametrize("kinds", [("searched", "random"), ("searched", "sensitivity", "random")])
def test_the_page_holds_it_and_texts_do_not_overlap(name, kinds):
    with figure_style(name, dark=True) as style:
        axes = plot_differences(make_table(kinds), title="Differences")
    figure = axes[0].figure
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] <= style.page + 0.01
    texts = [text for ax in axes for text in (ax.title, ax.xaxis.label)] + axes[0].get_yticklabels()
    texts += [*figure.legends[0].get_texts(), figure._suptitle]
    boxes = [text.get_window_extent() for text in texts]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert all(figure.bbox.padded(1).contains(*corner) for box in boxes for corner in box.corners())


def test_a_row_per_structure_the_best_on_top():
    table = make_table(("sensitivity", "searched", "heuristic", "random"))
    table = table[table["budget"] == BUDGETS[0]]
    table["p"] = table["p"].where(table["kind"] != "searched", 0.5)
    means = table[table["task"].str.startswith("mean") & table["difference"].notna()]
    means = means.sort_values("difference", ascending=False)
    ax = plot_ranking(table, title="One budget")
    points, bars = by_gid(ax, "differences"), by_gid(ax, "intervals")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sensitivity", "searched", "heuristic"]
    assert [int(point.get_ydata()[0]) for point in points] == [0, 1, 2]
    np.testing.assert_allclose([point.get_xdata()[0] for point in points], 100 * means["difference"])
    np.testing.assert_allclose([bar.get_xdata() for bar in bars], 100 * means[["difference_low", "difference_high"]])
    (tasks,) = [dots for dots in ax.collections if dots.get_gid() == "tasks"]
    assert len(tasks.get_offsets()) == 9 and len({point.get_color() for point in points}) == 3
    filled = [point.get_markerfacecolor() == point.get_color() for point in points]
    assert filled == list(means["p"] < 0.05) and len(set(filled)) == 2
    uneven = table.assign(pairs=table["pairs"].where(table["kind"] != "searched", 2))
    labels = [label.get_text() for label in plot_ranking(uneven).get_yticklabels()]
    assert labels == ["sensitivity (9 pairs)", "searched (2 pairs)", "heuristic (9 pairs)"]
    one = plot_ranking(table[table["task"] == "sst2"], p="p_holm", scale=1)
    assert len(by_gid(one, "differences")) == 3
    assert one.get_xlabel() == "difference to random 500"


def test_a_rank_in_a_name_is_no_budget():
    table = make_table(kinds=("searched", "random"))
    table = table[table["structure"].isin(["searched 500", "searched 2270"])]
    table["structure"] = table["structure"].replace({"searched 500": "lora_qv r8", "searched 2270": "lora_qv 0.05 %"})
    assert {label.get_text() for label in plot_ranking(table).get_yticklabels()} == {"lora_qv r8", "lora_qv"}
    names = {"lora_qv r8": "average 0.01% over 3 seeds", "lora_qv 0.05 %": "carried 500 from qnli"}
    table["structure"] = table["structure"].replace(names)
    labels = {label.get_text() for label in plot_ranking(table).get_yticklabels()}
    assert labels == {"average over 3 seeds", "carried from qnli"}


def test_a_ranking_fits_its_page_and_refuses_what_it_cannot_rank():
    table = make_table(("searched", "sensitivity", "random"))
    small = table[table["budget"] == BUDGETS[0]]
    with figure_style("paper") as style:
        ax = plot_ranking(small, title="One budget")
    ax.figure.draw_without_rendering()
    assert ax.figure.get_size_inches()[0] <= style.page + 0.01
    texts = [ax.title, ax.xaxis.label, *ax.get_yticklabels(), *ax.get_xticklabels(), *ax.get_legend().get_texts()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    with pytest.raises(PlotError, match="No row has a difference"):
        plot_ranking(small.assign(difference=np.nan))
    with pytest.raises(PlotError, match="and no mean; put over_tasks"):
        plot_ranking(small[~small["task"].str.startswith("mean")])
    with pytest.raises(PlotError, match="500' has two rows"):
        plot_ranking(pd.concat([small, small]))
    mixed = plot_ranking(table)  # several budgets: names are not shortened to what they share
    assert len({label.get_text() for label in mixed.get_yticklabels()}) == 8


def test_what_cannot_be_drawn_is_refused():
    table = make_table()
    with pytest.raises(PlotError, match="no column 'difference'"):
        plot_differences(table.drop(columns="difference"))
    with pytest.raises(PlotError, match="No row has a difference; give the summary a baseline"):
        plot_differences(table.assign(difference=np.nan))
    with pytest.raises(PlotError, match=r"'searched .*' has two rows for 'cola'"):
        plot_differences(pd.concat([table, table]))


def test_a_difference_is_structure_minus_baseline_in_both_figures():
    table = make_table()
    table = table[table["budget"] == BUDGETS[0]]
    runs = make_runs().query(f"budget == {BUDGETS[0]}").groupby("kind")["score"].mean()
    ((ranked,), (*_, mean)) = (by_gid(ax, "differences") for ax in (plot_ranking(table), *plot_differences(table)))
    for point in (ranked, mean):
        assert point.get_xdata()[0] == pytest.approx(100 * (runs["searched"] - runs["random"]))


def test_intervals_are_cut_at_what_the_metric_allows_and_do_not_stretch_the_axis():
    table = make_table().assign(metric="accuracy", difference_high=5.0)
    for ax in (plot_differences(table)[0], plot_ranking(table[table["budget"] == BUDGETS[0]])):
        assert max(bar.get_xdata()[1] for bar in by_gid(ax, "intervals")) == 100
        assert ax.get_xlim()[1] <= 3 * 100 * table["difference"].max()
