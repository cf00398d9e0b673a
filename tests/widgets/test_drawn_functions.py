"""Plain functions of s3pet.plots that the widgets draw with."""

import math

import numpy as np
import pandas as pd
import pytest
from artists import ONE, SEEDS
from matplotlib.figure import Figure

import s3pet
from s3pet import plots
from s3pet.errors import PlotError
from s3pet.gates import sampling_gap
from s3pet.plots.overview import plot_search, search_diagnostics
from s3pet.plots.style import style


@pytest.fixture(scope="module")
def run():
    return s3pet.load_run(ONE)


def test_budget_bar_by_hand():
    rows = [("lora", 100, True), ("lora", 100, False), ("bitfit", 50, True), ("odd", 150, False)]
    table = pd.DataFrame(rows, columns=["pet", "n_params", "chosen"])
    ax = plots.plot_budget_bar(table, budget=200, ax=Figure().subplots())
    widths = {bar.get_gid(): bar.get_width() for bar in ax.patches}
    assert widths == {"budget-lora": 50, "budget-bitfit": 25, "budget-odd": 0, "budget-not used": 25}
    uniform = [line.get_xdata()[0] for line in ax.lines if line.get_gid().startswith("uniform")]
    assert uniform == pytest.approx([50, 100 / 8, 37.5])
    assert [text.get_text() for text in ax.texts][:2] == ["100 · 1 of 2", "50 · 1 of 1"]
    with pytest.raises(PlotError, match="None of the 4 candidates is chosen"):
        plots.plot_budget_bar(table.assign(chosen=False))


def test_rows_before_and_after_the_layers_go_with_the_ends():
    rows = [("encoder", None, "embed.norm"), ("encoder", 0, "attn.q"), ("encoder", 3, "attn.q")]
    rows += [("encoder", None, "final.norm"), ("decoder", 1, "attn.q"), ("decoder", None, "final.norm")]
    table = pd.DataFrame(rows, columns=["stack", "layer", "role"]).assign(pet="bitfit").astype({"layer": "Int64"})
    assert plots.select_rows(table, layers=(0, 0)).tolist() == [True, True, False, False, False, False]
    assert plots.select_rows(table, layers=(2, 3)).tolist() == [False, False, True, True, False, False]
    assert plots.select_rows(table, layers=(1, 1)).tolist() == [False, False, False, False, True, True]
    assert plots.select_rows(table).all() and not plots.select_rows(table, pets=[]).any()
    with pytest.raises(PlotError, match=r"PET module 'lorra'.*nearest"):
        plots.select_rows(table.assign(pet="lora"), pets=["lorra"])


def test_facts_name_what_cannot_act_and_what_was_too_dear(run):
    names = plots.candidate_names(run)
    assert names.tolist() == [candidate.name for candidate in run.space]
    table = run.gates.assign(
        inert=lambda t: np.arange(len(t)) == 0, redundant=[names[1], *[None] * (len(run.gates) - 1)]
    )
    facts = plots.candidate_facts(table, names[0])
    assert facts["inert"] == "cannot change the model" and facts["can add the same"] == names[1]
    for i in table.index[~table["chosen"] & (table["margin"] > 0)]:
        assert plots.candidate_facts(table, names[i])["chosen"].startswith("no, too expensive")
    with pytest.raises(PlotError, match="no candidate is called"):
        plots.candidate_facts(table, "nothing")
    with pytest.raises(PlotError, match="no candidate is called"):
        plots.plot_cut(run, candidate="nothing", figure=Figure())


def test_plot_cut_of_large_and_small_spaces_keeps_texts_apart(run):
    for name in ("paper", "notebook", "talk"):
        with plots.figure_style(name):
            figure = Figure()
            ax, bar = plots.plot_cut(run, budget=run.budget.n_params, title="a title", figure=figure)
            figure.canvas.draw()
            assert figure.get_figwidth() <= style().page + 0.01
            numbers = [text.get_window_extent() for text in bar.texts]
            assert max(box.x1 for box in numbers) <= figure.bbox.x1
            assert not any(box.overlaps(ax.get_window_extent()) for box in numbers)


def test_choices_need_the_same_candidates(run):
    with pytest.raises(PlotError, match="got none"):
        plots.choice_table({})
    with pytest.raises(PlotError, match="different candidates"):
        plots.choice_table({"a": run, "b": run.gates.iloc[1:]})
    with pytest.raises(PlotError, match="no search is called 'c'"):
        plots.plot_two({"a": run, "b": run}, "a", "c")
    assert math.isclose(plots.choice_table({"a": run})["mean_prob"].iloc[0], run.gates["prob"].max())


def test_diagnostics_are_those_of_the_search(run):
    table = search_diagnostics(run)
    assert table["step"].tolist() == sorted(run.trajectory["step"].unique())
    assert table["expected"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert table["sampled"].iloc[-1] == pytest.approx(sampling_gap(run.probs, run.space.costs.double()), rel=1e-3)
    assert np.isnan(table["settled"].iloc[0]) and table["settled"].iloc[1:].between(0, 1).all()
    with pytest.raises(PlotError, match="trajectory"):
        plot_search(s3pet.average_gates([s3pet.load_run(path) for path in SEEDS]))


def test_the_overview_shows_gates_losses_cost_and_choice(run):
    gates, loss, cost, choice = plot_search(run, title="pocket")
    lines = {line.get_gid(): line for ax in (loss, cost, choice) for line in ax.lines}
    smooth = run.history["loss_val"].astype(float).rolling(10, min_periods=1).mean()
    assert lines["loss_val"].get_ydata() == pytest.approx(smooth, nan_ok=True)
    assert lines["budget"].get_ydata()[0] == 1 and gates.get_title() == "pocket"
