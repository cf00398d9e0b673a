"""Forest plots of differences: the data in the artists, never pixels."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from gate_tables import legend_texts

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


def test_a_part_per_budget_a_row_per_task_and_one_axis():
    table = make_table()
    ax = plot_differences(table)
    tasks, labels = ["cola", "mr", "sst2", "mean of 3"], [label.get_text() for label in ax.get_yticklabels()]
    parts = [f"{budget:,} parameters" for budget in BUDGETS]
    assert labels == [label for part in parts for label in (part, *tasks)]
    bold = [label.get_text() for label in ax.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == parts and ax.get_xlabel() == "difference, points"
    points, bars = by_gid(ax, "differences"), by_gid(ax, "intervals")
    places = [labels.index(part) + 1 + i for part in parts for i in range(4)]
    rows = pd.concat([table[table["structure"] == f"searched {budget}"] for budget in BUDGETS])
    drawn = {point.get_ydata()[0]: point for point in points}
    assert sorted(drawn) == places
    np.testing.assert_allclose([drawn[at].get_xdata()[0] for at in places], 100 * rows["difference"])
    ends = {bar.get_ydata()[0]: bar.get_xdata() for bar in bars}
    np.testing.assert_allclose([ends[at] for at in places], 100 * rows[["difference_low", "difference_high"]])
    assert [drawn[at].get_marker() for at in places[:4]] == ["o", "o", "o", "D"]


def test_filled_is_significant_and_what_could_not_be_is_dotted():
    table = make_table()
    table = table[table["budget"] == BUDGETS[0]]
    ax = plot_differences(table)  # three pairs per task, nine over tasks
    points, bars = by_gid(ax, "differences"), by_gid(ax, "intervals")
    assert [point.get_markerfacecolor() == point.get_color() for point in points] == [False, False, False, True]
    assert [bar.get_linestyle() for bar in bars] == [":", ":", ":", "-"]
    interval = "nominal 95 % t interval of the mean"
    assert legend_texts(ax) == ["searched", "p (Holm) < 0.05", "too few runs for p (Holm) < 0.05", interval]
    assert ax.get_xlabel() == f"difference to random {BUDGETS[0]}, points"
    ax = plot_differences(table.assign(p=0.5, p_floor=0.001), p="p", alpha=0.01)
    assert legend_texts(ax) == ["searched", "p ≥ 0.01", interval]


def test_structures_lie_beside_each_other_in_their_own_colours():
    table = make_table(("searched", "sensitivity", "heuristic", "random"))
    points = by_gid(plot_differences(table[table["budget"] == BUDGETS[0]], scale=1), "differences")
    assert len({point.get_color() for point in points}) == 3
    assert len({point.get_ydata()[0] for point in points}) == len(points) == 12


def test_any_column_divides_the_rows():
    table = make_table().drop(columns="budget").assign(at=lambda rows: rows["structure"].str.replace("searched", "B"))
    labels = [label.get_text() for label in plot_differences(table, by="at").get_yticklabels()]
    assert labels[::5] == list(table["at"][table["difference"].notna()].unique())
    lacking = make_table().assign(at=lambda rows: rows["structure"].where(rows["budget"] != BUDGETS[1]))
    assert "no at" in [label.get_text() for label in plot_differences(lacking, by="at").get_yticklabels()]
    with pytest.raises(PlotError, match="no column 'budget'"):
        plot_differences(table)
    alone = plot_differences(make_table(seeds=1))  # one run: no interval, and no entry for it
    assert "nominal 95 % t interval of the mean" not in legend_texts(alone)


def test_an_interval_that_leaves_the_axis_ends_in_an_arrow():
    table = make_table()
    plain, wide = plot_differences(table), plot_differences(table.assign(difference_high=5.0))
    arrows = [[dots for dots in ax.collections if dots.get_gid() == "beyond"] for ax in (plain, wide)]
    assert [sum(len(dots.get_offsets()) for dots in part) for part in arrows] == [0, 4 * len(BUDGETS)]
    assert {x for dots in arrows[1] for x, _ in dots.get_offsets()} == {wide.get_xlim()[1]}


@pytest.mark.parametrize("name", ["paper", "notebook"])
@pytest.mark.parametrize("kinds", [("searched", "random"), ("searched", "sensitivity", "random")])
def test_the_page_holds_it_and_texts_do_not_overlap(name, kinds):
    with figure_style(name, dark=True) as style:
        ax = plot_differences(make_table(kinds), title="Differences")
    ax.figure.draw_without_rendering()
    assert ax.figure.get_size_inches()[0] <= style.page + 0.01
    texts = [ax.title, ax.xaxis.label, *ax.get_yticklabels(), *ax.get_legend().get_texts()]
    boxes = [text.get_window_extent() for text in texts]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


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
    uneven = table.assign(pairs=table["pairs"].where(table["kind"] != "searched", 1))
    labels = [label.get_text() for label in plot_ranking(uneven).get_yticklabels()]
    assert labels == ["sensitivity (9 pairs)", "searched (1 pair)", "heuristic (9 pairs)"]
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
    ((ranked,), (*_, mean)) = (by_gid(draw(table), "differences") for draw in (plot_ranking, plot_differences))
    for point in (ranked, mean):
        assert point.get_xdata()[0] == pytest.approx(100 * (runs["searched"] - runs["random"]))


def test_intervals_are_cut_at_what_the_metric_allows_and_do_not_stretch_the_axis():
    table = make_table().assign(metric="accuracy", difference_high=5.0)
    for ax in (plot_differences(table), plot_ranking(table[table["budget"] == BUDGETS[0]])):
        assert max(bar.get_xdata()[1] for bar in by_gid(ax, "intervals")) == 100
        assert ax.get_xlim()[1] <= 3 * 100 * table["difference"].max()
