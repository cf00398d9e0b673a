"""The comparison: set ``.value`` and look at the artists; the numbers are computed again from the saved runs."""

import numpy as np
import pandas as pd
import pytest
from artists import ONE, RUNS, SEEDS
from gate_tables import by_gid, centres, places

import s3pet
from s3pet.errors import RunError
from s3pet.transfer import agreement
from s3pet.widgets import compare


def test_panels_share_one_scale_and_are_cut_at_one_budget():
    results = [s3pet.load_run(path) for path in SEEDS]
    widget = compare(SEEDS)
    widget.budget.value = 1200
    axes = widget.picture.figure.axes[:3]
    assert len({by_gid(ax, "gates")[0].get_clim() for ax in axes}) == 1
    for ax, result in zip(axes, results, strict=True):
        names = set(result.structure(1200).names)
        rows = np.array([candidate.name in names for candidate in result.space])
        assert centres(ax, "chosen") == places(result.gates, rows)
    assert [ax.get_title() for ax in axes] == ["sentiment 0", "sentiment 1", "sentiment 2"]
    widget.quantity.value = "alpha"
    values = [by_gid(ax, "gates")[0].get_array().sum() for ax in widget.picture.figure.axes[:3]]
    assert values == pytest.approx([result.gates["alpha"].sum() for result in results])


def test_difference_of_the_two_selected():
    results = [s3pet.load_run(path) for path in SEEDS]
    widget = compare(SEEDS)
    widget.view.value = "difference"
    widget.one.value, widget.other.value = "sentiment 1", "sentiment 2"
    widget.budget.value = 900
    ax = widget.picture.figure.axes[0]
    one, other = results[1].gates["prob"], results[2].gates["prob"]
    np.testing.assert_allclose(by_gid(ax, "gates")[0].get_array().sum(), (one - other).sum())
    first, second = (set(results[i].structure(900).names) for i in (1, 2))
    assert len(by_gid(ax, "only_one")[0].get_xdata()) == len(first - second)
    assert len(centres(ax, "chosen")) == len(first & second)
    assert widget.measure.disabled and not widget.one.disabled


def cells(matrix):
    """The different numbers in a matrix of pairs."""
    values = np.ma.masked_invalid(by_gid(matrix, "cells")[0].get_array()).compressed()
    return set(np.round(values, 6))


def test_overlap_stands_beside_chance():
    results = {f"sentiment {i}": s3pet.load_run(path) for i, path in enumerate(SEEDS)}
    widget = compare(SEEDS, draws=20)
    widget.view.value = "overlap"
    wanted = agreement(results, budget=widget.n_params, draws=20)
    pd.testing.assert_frame_equal(widget.agreement, wanted)
    matrix, points = widget.picture.figure.axes[:2]
    assert cells(matrix) == set(wanted["jaccard"].round(6))
    assert by_gid(points, "chance")
    widget.measure.value = "spearman"
    matrix = widget.picture.figure.axes[0]
    assert cells(matrix) == set(wanted["spearman"].round(6))


def test_table_of_who_chose_what():
    results = [s3pet.load_run(path) for path in SEEDS]
    widget = compare(SEEDS)
    widget.budget.value = 700
    chosen = {f"sentiment {i}": set(result.structure(700).names) for i, result in enumerate(results)}
    choices = widget.choices
    assert set(choices.index) == set.union(*chosen.values())
    for name, mine in chosen.items():
        assert set(choices.index[choices[name]]) == mine
    assert choices["chosen_by"].is_monotonic_decreasing
    assert widget.table.value.count("●") == sum(map(len, chosen.values()))


def test_runs_can_be_selected_and_one_is_too_few():
    widget = compare(f"{RUNS}/pocket-t5")
    assert len(widget.runs.value) == 4 and len(widget.runs.options) == 32
    widget.runs.value = widget.runs.options[5:7]
    assert len(widget.picture.figure.axes) == 3
    before = widget.picture.value
    widget.runs.value = widget.runs.options[:1]
    assert "Select two runs or more" in widget.message.value and widget.picture.value == before


def test_compare_refuses_one_run_and_two_spaces():
    with pytest.raises(RunError, match=r"two runs or more.*got \['sentiment 0'\]"):
        compare(ONE)
    with pytest.raises(RunError, match=r"different spaces.*retarget_gates"):
        compare(RUNS)


def test_comparison_exports_what_it_shows(tmp_path):
    widget = compare(SEEDS, draws=20)
    for view in ("panels", "difference", "overlap"):
        widget.view.value = view
        widget.exporting.path.value = str(tmp_path / f"{view}.svg")
        widget.exporting.button.click()
        assert "wrote" in widget.message.value
        assert "<image" not in (tmp_path / f"{view}.svg").read_text(encoding="utf-8")
