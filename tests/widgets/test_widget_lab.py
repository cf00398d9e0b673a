"""The gate lab: set ``.value`` and look at the artists; the numbers are computed again by s3pet.gates."""

import numpy as np
import pytest
import torch
from gate_tables import by_gid

import s3pet
from s3pet.errors import PlotError
from s3pet.widgets import gate_lab


def lab_axes(widget):
    return widget.picture.figure.axes


def test_lab_follows_its_controls():
    widget = gate_lab([(1.0, 100), (0.0, 200), (-1.0, 300)])
    widget.budget.value, widget.temperature.value, widget.alphas[1].value = 150, 0.5, 2.0
    widget.costs[2].value = 50
    alpha, costs = torch.tensor([1.0, 2.0, -1.0]).double(), torch.tensor([100.0, 200.0, 50.0]).double()
    shift = float(s3pet.gates.solve_shift(alpha, costs, 150, temperature=0.5))
    probs = s3pet.gates.shifted_sigmoid(alpha, costs, 150, temperature=0.5)
    curve, samples, expected, gradients = lab_axes(widget)
    assert by_gid(curve, "shift")[0].get_xdata()[0] == pytest.approx(shift)
    for i in range(3):
        assert by_gid(curve, f"candidate-{i}")[0].get_ydata()[0] == pytest.approx(float(probs[i]))
        assert by_gid(samples, f"prob-{i}")[0].get_height() == pytest.approx(float(probs[i]))
    total = sum(by_gid(expected, f"cost-0-{i}")[0].get_width() for i in range(3))
    assert total == pytest.approx(150) and by_gid(expected, "budget")[0].get_xdata()[0] == 150
    means = s3pet.gates.expected_gates(probs, temperature=widget.sample_temperature.value)
    total = sum(by_gid(expected, f"cost-1-{i}")[0].get_width() for i in range(3))
    assert total == pytest.approx(float((costs * means).sum()))
    # d p_0 / d α_0 with the shift held: p (1 − p) / β
    detached = by_gid(gradients, "gradient-detached") or [gradients.containers[1][0]]
    assert detached[0].get_height() == pytest.approx(float(probs[0] * (1 - probs[0]) / 0.5))
    widget.of.value = 1
    assert "∂p1" in lab_axes(widget)[3].get_ylabel()


def test_lab_sample_temperature_and_other_samples():
    widget = gate_lab()
    first = by_gid(lab_axes(widget)[1], "samples-0")[0].get_ydata()
    widget.again.click()
    second = by_gid(lab_axes(widget)[1], "samples-0")[0].get_ydata()
    assert not np.array_equal(first, second)
    widget.sample_temperature.value = 0.1
    cold = by_gid(lab_axes(widget)[1], "samples-0")[0].get_ydata()
    assert np.minimum(cold, 1 - cold).mean() < np.minimum(second, 1 - second).mean() / 2  # nearer to 0 and 1


def test_lab_budget_stays_below_the_cost_of_all():
    widget = gate_lab([(1.0, 100), (0.0, 100)])
    widget.budget.value = 180
    widget.costs[0].value = 10
    assert widget.budget.max == 109 and widget.budget.value == 109 and not widget.message.value
    widget.costs[0].value = widget.costs[1].value = 1
    assert widget.budget.value == 1 and not widget.message.value


def test_lab_shows_errors_and_keeps_its_picture():
    widget = gate_lab([(1.0, 100), (0.0, 100)])
    before = widget.picture.value
    widget.budget.max = 500
    widget.budget.value = 400
    assert "400" in widget.message.value and widget.picture.value == before
    assert len(lab_axes(widget)) == 4
    widget.budget.value = 50
    assert not widget.message.value and widget.picture.value != before


@pytest.mark.parametrize("given", [[], [(1.0, 5)], "no", [(1.0, 0), (0.0, 5)], [(1.0,), (2.0,)], [(0.0, 1)] * 9, 3])
def test_lab_refuses_what_are_no_candidates(given):
    with pytest.raises(PlotError, match=r"Expected .* of two to eight candidates"):
        gate_lab(given)


def test_arguments_draw_the_same_with_the_plain_function():
    widget = gate_lab()
    widget.budget.value, widget.of.value = 100, 2
    axes = s3pet.plots.plot_gate_lab(**widget.arguments)
    assert [ax.get_ylabel() for ax in axes] == [ax.get_ylabel() for ax in lab_axes(widget)]
    assert by_gid(axes[2], "budget")[0].get_xdata()[0] == 100
