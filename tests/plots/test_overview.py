"""A search in one figure, and the numbers behind it."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from gate_tables import by_gid

import s3pet
from s3pet.errors import PlotError
from s3pet.gates import sampling_gap
from s3pet.plots import figure_style, plot_search, search_diagnostics

RUN = s3pet.__path__[0] + "/../data/runs/searches/pocket-t5/sentiment/0.2/seed0"

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def run():
    return s3pet.load_run(RUN)


def probs_at(run, step):
    path = run.trajectory[run.trajectory["step"] == step].set_index("candidate")["prob"]
    return torch.tensor(path.loc[[candidate.name for candidate in run.space]].to_numpy("float64"))


def test_diagnostics_are_those_of_the_trajectory(run):
    table = search_diagnostics(run)
    steps = sorted(run.trajectory["step"].unique())
    assert table["step"].tolist() == steps
    np.testing.assert_allclose(table["expected"], 1, atol=1e-3)
    costs, budget = run.space.costs.double(), run.budget.n_params
    for row in (0, len(steps) // 2, len(steps) - 1):
        odds = probs_at(run, steps[row]) / (1 - probs_at(run, steps[row]))
        mean = odds * (odds - 1 - odds.log()) / (odds - 1) ** 2  # of a relaxed gate at temperature 1, in closed form
        sampled = float(costs @ mean) / budget
        assert table["sampled"][row] == pytest.approx(sampled, rel=1e-3)
    assert table["sampled"].iloc[-1] == pytest.approx(sampling_gap(run.probs, costs), rel=1e-3)


def test_settled_compares_with_the_choice_of_ten_records_before(run):
    table = search_diagnostics(run)
    steps = table["step"].tolist()
    structures = [set(greedy_choice(run, step)) for step in steps]
    for row in (1, 5, 10, 11, len(steps) - 1):
        before, now = structures[max(0, row - 10)], structures[row]
        assert table["settled"][row] == pytest.approx(len(before & now) / len(before | now))
    assert np.isnan(table["settled"][0])


def greedy_choice(run, step):
    """The greedy choice at a step, written once more: by falling probability, skip what does not fit."""
    left, names = run.budget.n_params, []
    probs, costs = probs_at(run, step).tolist(), run.space.costs.tolist()
    for i in sorted(range(len(probs)), key=lambda i: -probs[i]):
        if costs[i] <= left:
            left, names = left - costs[i], [*names, i]
    return names


def test_the_figure_shows_the_diagnostics(run):
    axes = plot_search(run, title="a search")
    table, figure = search_diagnostics(run), axes[0].figure
    lines = {line.get_gid(): line for ax in axes for line in ax.lines}
    for name in ("sampled", "settled"):
        np.testing.assert_array_equal(lines[name].get_ydata(), table[name])
    smooth = run.history["loss_val"].rolling(10, min_periods=1).mean()
    np.testing.assert_allclose(lines["loss_val"].get_ydata(), smooth)
    assert lines["budget"].get_ydata()[0] == 1 and axes[0].get_title() == "a search"
    np.testing.assert_allclose(by_gid(axes[0], "gates")[0].get_array().sum(), run.gates["prob"].sum())
    assert plot_search(run, figure=figure)[0].figure is figure and len(figure.axes) == 5


@pytest.mark.parametrize("name", ["paper", "notebook", "talk"])
def test_the_figure_fits_the_page(run, name):
    with figure_style(name) as style:
        assert plot_search(run)[0].figure.get_figwidth() <= style.page + 0.01


def test_a_search_without_a_trajectory_is_refused():
    with pytest.raises(PlotError, match="has none"):
        plot_search(SimpleNamespace(trajectory=None))
    with pytest.raises(PlotError, match="has none"):
        plot_search(s3pet.average_gates([s3pet.load_run(RUN), s3pet.load_run(RUN.replace("seed0", "seed1"))]))
    assert not plt.get_fignums()
