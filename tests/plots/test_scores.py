"""Scores against parameters: the data in the artists, never pixels."""

from __future__ import annotations

import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from gate_tables import by_gid, contrast, legend_texts, overlaps

from s3pet.errors import PlotError
from s3pet.plots.intervals import mean_interval
from s3pet.plots.scores import plot_budget_curve, plot_comparison, score_range, summarize_scores
from s3pet.plots.style import figure_style, save_figure

pytestmark = pytest.mark.filterwarnings("error")

BACKBONE = 1_000_000
BUDGETS = (100, 200, 500, 1000, 2000, 5000, 10000)
MANUAL = {"bitfit": (8960, 0.80), "lora_qv": (4096, 0.90), "lora_all": (14336, 0.915), "all": (32448, 0.93)}


def make_curve(seed: int = 0, n_seeds: int = 3) -> pd.DataFrame:
    """Searched and random structures at seven budgets, a second search at one, manual structures, references."""
    rng, rows = np.random.default_rng(seed), []
    for i, budget in enumerate(BUDGETS):
        for kind, n, top in (("searched", n_seeds, 0.93), ("random", n_seeds + 2, 0.88)):
            for k in range(n):
                score = top - 0.4 * np.exp(-i / 2) + rng.normal(0, 0.02)
                rows.append((f"{kind} {100 * budget / BACKBONE:g} %", kind, budget - 3 * k, k, score, budget))
    rows += [("searched at 0.05%", "searched", 498, k, 0.8 + rng.normal(0, 0.02), 500) for k in range(n_seeds)]
    rows += [(name, "manual", n_params, 0, score, np.nan) for name, (n_params, score) in MANUAL.items()]
    rows += [("full", "reference", BACKBONE, k, 0.94 + rng.normal(0, 0.006), np.nan) for k in range(n_seeds)]
    rows.append(("zero-shot", "reference", 0, 0, 0.5, np.nan))
    table = pd.DataFrame(rows, columns=["structure", "kind", "n_params", "seed", "score", "budget"])
    return table.assign(backbone_params=BACKBONE)


def curves(ax) -> dict:
    return {line.get_label(): line for line in by_gid(ax, "curve")}


def overlapping(ax) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other, of those around the Axes."""
    ax.figure.draw_without_rendering()
    texts = [*ax.get_legend().get_texts(), ax.title, ax.xaxis.label, ax.yaxis.label]
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        texts += [
            label for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high
        ]
    return overlaps(texts)


# ------------------------------------------------------------------------------------------------ the numbers


def test_intervals_are_those_of_the_library_also_for_two_runs_and_one():
    table = pd.DataFrame({"structure": list("aaabbc"), "kind": "manual", "n_params": [1, 10, 100, 5, 5, 7]})
    table["score"] = [0.8, 0.9, 0.85, 0.5, 0.7, 0.6]
    means = summarize_scores(table).set_index("structure")
    for name, runs in table.groupby("structure")["score"]:
        assert means.loc[name, ["low", "high"]].tolist() == pytest.approx(mean_interval([runs]), nan_ok=True)
    assert means["n"].tolist() == [3, 2, 1] and means.loc["c", ["low", "high"]].isna().all()
    assert means["n_params"].tolist() == pytest.approx([10, 5, 7])  # geometric means


def test_summary_and_figures_give_the_same_interval():
    from s3pet.studies.statistics import summary

    table = make_curve().assign(task="a", index=0)
    table = table[table["kind"].isin(["searched", "random"])].drop(columns="budget")
    of_study = summary(table).set_index("structure")[["low", "high"]].sort_index()
    of_figures = summarize_scores(table).set_index("structure")[["low", "high"]].sort_index()
    np.testing.assert_allclose(of_figures, of_study.astype(float))


def test_the_range_of_a_metric_is_used_only_where_the_scores_agree_with_it():
    scores = pd.DataFrame({"score": [0.2, 0.9]})
    assert score_range(scores, metric="test accuracy") == (0, 1)
    assert score_range(scores.assign(metric="pearson")) == (-1, 1)
    assert score_range(scores, metric="perplexity") == score_range(100 * scores, metric="accuracy") == (-np.inf, np.inf)


# ------------------------------------------------------------------------------------------------ budget curves


def test_lines_join_means_over_budgets():
    table = make_curve()
    ax = plot_budget_curve(table, metric="accuracy")
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "accuracy"
    assert set(curves(ax)) == {"searched", "random"}
    for name, line in curves(ax).items():
        runs = table[table["structure"].str.match(f"{name} [0-9]")]
        np.testing.assert_allclose(line.get_ydata(), runs.groupby("budget")["score"].mean())
        sizes = np.exp(np.log(runs["n_params"]).groupby(runs["budget"]).mean())
        np.testing.assert_allclose(line.get_xdata(), sizes, rtol=0.1)
        assert np.ptp(line.get_xdata() / sizes) < 1e-9, "a line is moved as a whole, beside the others"
    assert sum(len(dots.get_offsets()) for dots in by_gid(ax, "runs")) == (table["kind"] != "reference").sum()


def strokes(ax) -> list:
    """Ends of all intervals, the lower one first."""
    return [part.vertices[:, 1] for lines in by_gid(ax, "intervals") for part in lines.get_paths()]


def test_strokes_are_the_interval_and_never_leave_the_range_of_the_metric():
    table = make_curve()
    drawn = strokes(plot_budget_curve(table))
    for budget in BUDGETS:
        scores = table.loc[table["structure"] == f"searched {100 * budget / BACKBONE:g} %", "score"]
        assert any(np.allclose(ends, mean_interval([scores])) for ends in drawn)
    high = table.assign(score=(table["score"] + 0.06).clip(upper=1))
    assert max(ends[1] for ends in strokes(plot_budget_curve(high, metric="points"))) > 1
    ax = plot_budget_curve(high, metric="accuracy")
    assert np.nanmax([ends[1] for ends in strokes(ax)]) == pytest.approx(1)
    assert "nominal 95 % t interval of the mean" in legend_texts(ax)


def test_the_legend_names_everything_in_the_order_of_the_kinds():
    mean = make_curve().query("structure == 'full'")["score"].mean()
    ax = plot_budget_curve(make_curve())
    assert legend_texts(ax) == [
        *("searched", "searched at 0.05%", "bitfit", "lora_qv", "lora_all", "all", "random"),
        *(f"full {mean:.3g}", "zero-shot 0.5", "one run", "nominal 95 % t interval of the mean"),
    ]
    points = {line.get_label(): line for line in by_gid(ax, "means")}
    for name, (n_params, score) in MANUAL.items():
        assert points[name].get_ydata()[0] == score and points[name].get_xdata()[0] == pytest.approx(n_params, rel=0.2)
    looks = [(line.get_color(), line.get_marker()) for line in [*points.values(), *curves(ax).values()]]
    assert len(set(looks)) == len(looks)


def test_references_are_lines_and_only_the_full_one_is_strong():
    table = make_curve()
    ax = plot_budget_curve(table)
    (full,), (zero,) = by_gid(ax, "reference"), by_gid(ax, "baseline")
    assert full.get_ydata()[0] == pytest.approx(table.loc[table["structure"] == "full", "score"].mean())
    assert zero.get_ydata()[0] == 0.5 and zero.get_linestyle() != full.get_linestyle()
    (low, high) = mean_interval([table.loc[table["structure"] == "full", "score"]])
    assert any(np.allclose(ends, (low, high)) for ends in strokes(ax))
    assert len(by_gid(plot_budget_curve(table, full="zero-shot"), "baseline")) == 1


def test_without_budgets_names_group_the_runs():
    table = make_curve()
    one, other = plot_budget_curve(table), plot_budget_curve(table.drop(columns="budget"))
    assert set(curves(one)) == set(curves(other))
    for name, line in curves(one).items():
        np.testing.assert_allclose(line.get_data(), curves(other)[name].get_data())


def test_a_budget_pools_names_and_a_family_separates_them():
    table = make_curve()
    random = table["kind"] == "random"
    numbered = table.assign(structure=table["structure"].where(~random, "random " + table["seed"].astype(str)))
    one, other = (curves(plot_budget_curve(each))["random"] for each in (table, numbered))
    np.testing.assert_allclose(one.get_data(), other.get_data())
    halves = table.assign(family=np.where(random, np.where(table["seed"] % 2, "odd", "even"), None))
    lines = curves(plot_budget_curve(halves))
    assert set(lines) == {"even", "odd", "searched"}
    odd = table[random & (table["seed"] % 2 == 1)].groupby("budget")["score"].mean()
    np.testing.assert_allclose(lines["odd"].get_ydata(), odd)
    assert lines["odd"].get_linestyle() != lines["even"].get_linestyle()


def test_the_upper_axis_is_the_share_of_the_backbone():
    ax = plot_budget_curve(make_curve())
    (top,) = ax.child_axes
    ax.figure.draw_without_rendering()
    assert list(top.get_xlim()) == pytest.approx([100 * end / BACKBONE for end in ax.get_xlim()])
    assert len([tick for tick in top.get_xticks() if top.get_xlim()[0] <= tick <= top.get_xlim()[1]]) > 1
    assert not plot_budget_curve(make_curve().drop(columns="backbone_params")).child_axes


@pytest.mark.parametrize("smallest", [1.0, 2.1, 5.2])
@pytest.mark.parametrize("ratio", [1, 1.2, 2, 3, 6, 9, 20, 300])
def test_both_axes_of_parameters_have_three_ticks_or_more(smallest, ratio):
    rows = [("random a", 1000 * smallest, 0.7), ("random b", 1000 * smallest * ratio, 0.8)]
    table = pd.DataFrame(rows, columns=["structure", "n_params", "score"]).assign(kind="random", seed=0)
    ax = plot_budget_curve(table.assign(backbone_params=BACKBONE))
    assert not overlapping(ax)
    for axes in (ax, *ax.child_axes):
        low, high = axes.get_xlim()
        assert 3 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 9
    plt.close("all")


# ------------------------------------------------------------------------------------------------ comparisons


def test_structures_of_one_size_stand_side_by_side():
    table = make_curve().query("budget == 500 or kind == 'reference'").assign(n_params=500)
    ax = plot_comparison(table)
    places = [line.get_xdata()[0] for line in by_gid(ax, "means")]
    assert len(set(places)) == 3 and places[0] == pytest.approx(500)
    assert np.abs(np.log(np.array(places) / 500)).max() < 0.05
    for line, dots in zip(by_gid(ax, "means"), by_gid(ax, "runs"), strict=True):
        np.testing.assert_allclose(dots.get_offsets()[:, 0], line.get_xdata()[0])
    assert len(by_gid(ax, "reference")) == 2
    assert len({line.get_linestyle() for line in by_gid(ax, "reference")}) == 2


def test_many_structures_of_one_size_do_not_cover_each_other():
    rows = [(f"rule {i}", "manual", 500 + i % 2, seed, 0.8) for i in range(8) for seed in range(3)]
    ax = plot_comparison(pd.DataFrame(rows, columns=["structure", "kind", "n_params", "seed", "score"]))
    ax.figure.draw_without_rendering()
    means = by_gid(ax, "means")
    pixels = sorted(ax.transData.transform(line.get_xydata())[0, 0] for line in means)
    assert min(np.diff(pixels)) > means[0].get_markersize() * ax.figure.dpi / 72
    assert max(abs(np.log(line.get_xdata()[0] / 500)) for line in means) < 0.08
    assert ax.get_xlim()[0] < 500 / 1.1 and ax.get_xlim()[1] > 500 * 1.1


# ------------------------------------------------------------------------------------------------ looks and errors


@pytest.mark.parametrize("draw", [plot_budget_curve, plot_comparison])
@pytest.mark.parametrize("name", ["paper", "notebook"])
def test_texts_do_not_overlap_and_are_legible_on_dark_ground(draw, name):
    with figure_style(name, dark=True) as style:
        ax = draw(make_curve(), title="sentiment")
        texts = [*ax.get_legend().get_texts(), *ax.get_xticklabels(), ax.title, ax.xaxis.label]
        assert not overlapping(ax) and min(contrast(text.get_color(), style.ground) for text in texts) > 4.5
        given = plt.subplots(figsize=(4, 5), layout="constrained")[1]
        assert draw(make_curve(), ax=given) is given and not overlapping(given)


def test_what_cannot_be_drawn_is_refused():
    table = make_curve()
    with pytest.raises(PlotError, match="mixes 2 values of 'task'"):
        plot_budget_curve(pd.concat([table.assign(task="a"), table.assign(task="b")]))
    with pytest.raises(PlotError, match="mixes 2 values of 'backbone_params'"):
        plot_budget_curve(pd.concat([table, table.assign(backbone_params=7)]))
    with pytest.raises(PlotError, match=r"n_params must be > 0 .*bitfit"):
        plot_budget_curve(table.assign(n_params=table["n_params"].mask(table["structure"] == "bitfit", 0)))
    with pytest.raises(PlotError, match="no column 'kind'"):
        plot_comparison(table.drop(columns="kind"))
    with pytest.raises(PlotError, match="references only"):
        plot_comparison(table[table["kind"] == "reference"])


def test_one_run_each_and_one_kind_only_can_be_drawn():
    table = make_curve()
    one = table[table["seed"] == 0].drop(columns="backbone_params")
    assert set(curves(plot_budget_curve(one))) == {"searched", "random"}
    manual = plot_budget_curve(table[table["kind"] == "manual"])
    assert not curves(manual) and {*MANUAL} <= {*legend_texts(manual)}
    alone = plot_budget_curve(table[table["structure"] == "all"])
    low, high = alone.get_xlim()
    assert low < 32448 < high and len([tick for tick in alone.get_xticks() if low <= tick <= high]) > 1


def test_files_are_vector(tmp_path):
    (pdf,) = save_figure(plot_budget_curve(make_curve()), tmp_path / "curve", ("pdf",))
    assert not re.search(rb"/Subtype\s*/Image", pdf.read_bytes())
