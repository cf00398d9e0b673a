"""Score against budget: the data in the artists, never pixels."""

from __future__ import annotations

import itertools
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from s3pet.errors import PlotError
from s3pet.plots.scores import plot_budget_curve, plot_comparison
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


def by_gid(ax, gid: str) -> list:
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def curves(ax) -> dict:
    return {line.get_label(): line for line in by_gid(ax, "curve")}


def labels(ax) -> list[str]:
    return [text.get_text() for text in by_gid(ax, "label")]


def test_lines_join_means_over_budgets():
    table = make_curve()
    ax = plot_budget_curve(table, metric="accuracy")
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "accuracy"
    for name, line in curves(ax).items():
        runs = table[table["structure"].str.match(f"{name} [0-9]" if name != "searched at 0.05%" else name)]
        groups = runs.groupby("budget")
        np.testing.assert_allclose(line.get_ydata(), groups["score"].mean())
        np.testing.assert_allclose(line.get_xdata(), np.exp(np.log(runs["n_params"]).groupby(runs["budget"]).mean()))
    assert set(curves(ax)) == {"searched", "random", "searched at 0.05%"}
    assert sum(len(line.get_xdata()) for line in by_gid(ax, "runs")) == (table["kind"] != "reference").sum()


def test_band_is_the_t_interval():
    from scipy import stats

    table = make_curve()
    band, _ = by_gid(plot_budget_curve(table), "band")
    corners = band.get_paths()[0].vertices
    for budget in BUDGETS:
        scores = table.loc[table["structure"] == f"searched {100 * budget / BACKBONE:g} %", "score"]
        ends = stats.t.interval(0.95, len(scores) - 1, loc=scores.mean(), scale=stats.sem(scores))
        assert all(np.isclose(corners[:, 1], end).any() for end in ends)


def test_every_other_structure_is_a_named_point():
    ax = plot_budget_curve(make_curve())
    (points,) = by_gid(ax, "means")
    np.testing.assert_allclose(sorted(zip(*points.get_data(), strict=True)), sorted(MANUAL.values()))
    assert set(labels(ax)) == {*MANUAL, "searched", "random", "searched at 0.05%"}


def test_references_are_lines_and_only_the_full_one_is_strong():
    table = make_curve()
    ax = plot_budget_curve(table)
    (full,), (zero,) = by_gid(ax, "reference"), by_gid(ax, "baseline")
    assert full.get_ydata()[0] == pytest.approx(table.loc[table["structure"] == "full", "score"].mean())
    assert zero.get_ydata()[0] == 0.5 and zero.get_linewidth() < full.get_linewidth()
    assert len(by_gid(ax, "reference-band")) == 1
    assert [text.get_text().split()[0] for text in by_gid(ax, "reference-label")] == ["full", "zero-shot"]
    assert len(by_gid(plot_budget_curve(table, full="zero-shot"), "baseline")) == 1


def test_relative_is_percent_of_the_full_mean():
    table = make_curve()
    plain, relative = plot_budget_curve(table), plot_budget_curve(table, relative=True, metric="accuracy")
    whole = table.loc[table["structure"] == "full", "score"].mean()
    for name, line in curves(relative).items():
        np.testing.assert_allclose(line.get_ydata(), 100 * curves(plain)[name].get_ydata() / whole)
    assert by_gid(relative, "reference")[0].get_ydata()[0] == pytest.approx(100)
    assert (
        relative.get_ylabel() == "accuracy, % of full"
        and by_gid(relative, "reference-label")[0].get_text() == "full 100 %"
    )
    with pytest.raises(PlotError, match=r"needs a reference 'ful' .* nearest: 'full'"):
        plot_budget_curve(table, relative=True, full="ful")


def test_without_budgets_names_group_the_runs():
    table = make_curve()
    one, other = plot_budget_curve(table), plot_budget_curve(table.drop(columns="budget"))
    assert set(curves(one)) == set(curves(other))
    for name, line in curves(one).items():
        np.testing.assert_allclose(line.get_data(), curves(other)[name].get_data())


def test_a_budget_pools_names_and_a_family_parts_them():
    table = make_curve()
    random = table["kind"] == "random"
    numbered = table.assign(structure=table["structure"].where(~random, "random " + table["seed"].astype(str)))
    one, other = (curves(plot_budget_curve(given))["random"] for given in (table, numbered))
    np.testing.assert_allclose(one.get_data(), other.get_data())
    even = table.assign(family=np.where(random, np.where(table["seed"] % 2, "odd", "even"), None))
    lines = curves(plot_budget_curve(even))
    assert set(lines) == {"even", "odd", "searched", "searched at 0.05%"}
    odd = table[random & (table["seed"] % 2 == 1)].groupby("budget")["score"].mean()
    np.testing.assert_allclose(lines["odd"].get_ydata(), odd)
    assert lines["odd"].get_linestyle() != lines["even"].get_linestyle()


def test_the_upper_axis_is_the_share_of_the_backbone():
    (top,) = plot_budget_curve(make_curve()).child_axes
    low, high = top.get_xlim()
    shown = {tick: label.get_text() for tick, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True)}
    bottom = top.get_figure().axes[0].get_xlim()
    assert (low, high) == pytest.approx((100 * bottom[0] / BACKBONE, 100 * bottom[1] / BACKBONE))
    assert {"0.1 %", "1 %"} <= {text for tick, text in shown.items() if low < tick < high}
    assert not plot_budget_curve(make_curve().drop(columns="backbone_params")).child_axes


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(5.2, 3.4), (3.35, 2.6)])
def test_labels_do_not_overlap(size, dark):
    with figure_style("paper" if size[0] < 4 else "notebook", dark=dark):
        ax = plot_budget_curve(make_curve(), ax=plt.subplots(figsize=size, layout="constrained")[1], title="A task")
    ax.figure.draw_without_rendering()
    inside = [*by_gid(ax, "label"), *by_gid(ax, "reference-label")]
    others = [axis.label for axis in (ax.xaxis, ax.yaxis, ax.child_axes[0].xaxis)] + [ax.title]
    for axes in (ax, *ax.child_axes):
        ends = sorted(axes.get_xlim())
        others += [x for x in axes.get_xticklabels() if x.get_text() and ends[0] <= x.get_position()[0] <= ends[1]]
    others += [y for y in ax.get_yticklabels() if ax.get_ylim()[0] <= y.get_position()[1] <= ax.get_ylim()[1]]
    boxes = {text.get_text(): Text.get_window_extent(text) for text in (*inside, *others)}
    assert not [(a, b) for (a, one), (b, two) in itertools.combinations(boxes.items(), 2) if one.overlaps(two)]
    assert all(ax.bbox.padded(1).contains(*corner) for x in inside for corner in Text.get_window_extent(x).corners())


def test_labels_stand_off_the_markers():
    ax = plot_budget_curve(make_curve(), ax=plt.subplots(figsize=(5.2, 3.4), layout="constrained")[1])
    ax.figure.draw_without_rendering()
    points = np.concatenate([line.get_xydata() for gid in ("curve", "means") for line in by_gid(ax, gid)])
    for text in by_gid(ax, "label"):
        box = Text.get_window_extent(text)
        assert not [point for point in ax.transData.transform(points) if box.contains(*point)], text.get_text()


def test_dark_labels_are_legible():
    from test_plots import contrast

    for dark in (False, True):
        with figure_style("paper", dark=dark) as style:
            ax = plot_budget_curve(make_curve())
            assert min(contrast(text.get_color(), style.ground) for text in ax.texts) > 4.5


def test_what_cannot_be_drawn_is_refused():
    table = make_curve()
    with pytest.raises(PlotError, match="mixes 2 values of 'task'"):
        plot_budget_curve(pd.concat([table.assign(task="a"), table.assign(task="b")]))
    with pytest.raises(PlotError, match="mixes 2 values of 'backbone_params'"):
        plot_budget_curve(pd.concat([table, table.assign(backbone_params=7)]))
    with pytest.raises(PlotError, match=r"n_params must be > 0 .*bitfit"):
        plot_budget_curve(table.assign(n_params=table["n_params"].mask(table["structure"] == "bitfit", 0)))
    with pytest.raises(PlotError, match="no column 'kind'"):
        plot_budget_curve(table.drop(columns="kind"))
    with pytest.raises(PlotError, match="references only"):
        plot_budget_curve(table[table["kind"] == "reference"])
    with pytest.raises(PlotError, match="positive score"):
        plot_budget_curve(table.assign(score=0.0), relative=True)


def test_one_run_each_and_one_kind_only_can_be_drawn():
    table = make_curve()
    one = table[table["seed"] == 0].drop(columns="backbone_params")
    assert set(curves(plot_budget_curve(one))) == {"searched", "random", "searched at 0.05%"}
    manual = plot_budget_curve(table[table["kind"] == "manual"])
    assert not curves(manual) and set(labels(manual)) == set(MANUAL)
    alone = plot_budget_curve(table[table["structure"] == "all"])
    low, high = alone.get_xlim()
    assert low < 32448 < high and len([tick for tick in alone.get_xticks() if low <= tick <= high]) > 1


def test_files_are_vector(tmp_path):
    (pdf,) = save_figure(plot_budget_curve(make_curve()), tmp_path / "curve", ("pdf",))
    assert not re.search(rb"/Subtype\s*/Image", pdf.read_bytes())


def test_comparison_names_its_references_off_the_points():
    table = make_curve().drop(columns="budget")
    ax = plot_comparison(table[table["kind"].isin(["manual", "reference"])])
    ax.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert len(by_gid(ax, "reference")) == len(by_gid(ax, "reference-label")) == 2
