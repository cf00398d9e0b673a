"""The gates of a few candidates: every number in the figure is computed once more."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from gate_tables import by_gid
from matplotlib.figure import Figure

from s3pet.errors import BudgetError
from s3pet.plots import plot_gate_lab

ALPHA, COSTS, BUDGET = [1.0, 0.0, -1.0], [100, 200, 300], 150

pytestmark = pytest.mark.filterwarnings("error")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_shift_probabilities_and_costs(temperature):
    shift, samples, costs, _ = plot_gate_lab(ALPHA, COSTS, BUDGET, temperature=temperature)
    zeta = by_gid(shift, "shift")[0].get_xdata()[0]
    probs = sigmoid((np.array(ALPHA) - zeta) / temperature)
    assert probs @ COSTS == pytest.approx(BUDGET), "the shift meets the budget"
    assert [by_gid(shift, f"candidate-{i}")[0].get_ydata()[0] for i in range(3)] == pytest.approx([*probs])
    assert [by_gid(samples, f"prob-{i}")[0].get_height() for i in range(3)] == pytest.approx([*probs])
    assert [by_gid(costs, f"cost-0-{i}")[0].get_width() for i in range(3)] == pytest.approx([*probs * COSTS])
    assert by_gid(costs, "budget")[0].get_xdata()[0] == BUDGET
    assert by_gid(costs, "total-0")[0].get_text().strip() == "150"


def test_samples_their_mean_and_what_they_cost():
    _, samples, costs, _ = plot_gate_lab(ALPHA, COSTS, BUDGET)
    probs = np.array([by_gid(samples, f"prob-{i}")[0].get_height() for i in range(3)])
    noise = np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, 200_000)
    means = [sigmoid(np.log(noise / (1 - noise)) + np.log(p / (1 - p))).mean() for p in probs]
    drawn = [by_gid(samples, f"mean-{i}")[0].get_segments()[0][0][1] for i in range(3)]
    assert drawn == pytest.approx(means, abs=0.005)
    assert sum(by_gid(costs, f"cost-1-{i}")[0].get_width() for i in range(3)) == pytest.approx(drawn @ np.array(COSTS))

    def points(**changes):
        return by_gid(plot_gate_lab(ALPHA, COSTS, BUDGET, **changes)[1], "samples-0")[0].get_ydata()

    first = points()
    assert len(first) == 200 and ((first > 0) & (first < 1)).all()
    np.testing.assert_array_equal(first, points())
    assert not np.array_equal(first, points(seed=1))
    assert np.minimum(*(lambda z: (z, 1 - z))(points(sample_temperature=0.05))).mean() < 0.05, "cold samples are 0 or 1"


def test_gradients_in_the_three_modes():
    ax = plot_gate_lab(ALPHA, COSTS, BUDGET, of=1)[3]
    probs = np.array([by_gid(plot_gate_lab(ALPHA, COSTS, BUDGET)[1], f"prob-{i}")[0].get_height() for i in range(3)])
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    own = probs * (1 - probs)
    assert heights["detached"] == pytest.approx([0, own[1], 0])
    implicit = -own[1] * np.array(COSTS) * own / (np.array(COSTS) @ own)
    implicit[1] += own[1]
    assert heights["implicit"] == pytest.approx([*implicit])
    assert list(heights) == ["normalized", "detached", "implicit"] and ax.get_ylabel() == "∂p1 / ∂αj"


def test_a_budget_that_cannot_be_met_leaves_the_figure_as_it_was():
    figure = Figure()
    figure.subplots()
    for budget in (0, 600):
        with pytest.raises(BudgetError):
            plot_gate_lab(ALPHA, COSTS, budget, figure=figure)
    assert len(figure.axes) == 1 and not plt.get_fignums()
