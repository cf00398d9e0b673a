"""Widgets: set ``.value`` and look at the artists; the numbers are computed again from the saved runs."""

from __future__ import annotations

import io
import json
import math
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import s3pet
from s3pet import plots
from s3pet.errors import PlotError, RunError
from s3pet.plots.style import style
from s3pet.transfer import agreement, average_gates
from s3pet.widgets import compare, explore, gate_lab
from s3pet.widgets.recut import Recut
from s3pet.widgets.shelf import find_runs, short_names

RUNS = s3pet.__path__[0] + "/../data/runs/searches"
ONE = f"{RUNS}/pocket-t5/sentiment/0.2/seed0"
SEEDS = [f"{RUNS}/pocket-t5/sentiment/0.2/seed{seed}" for seed in range(3)]


@pytest.fixture(scope="module")
def run():
    return s3pet.load_run(ONE)


@pytest.fixture(autouse=True)
def _no_pyplot_state():
    plt.close("all")
    yield
    assert not plt.get_fignums()


def by_gid(ax, gid):
    return [artist for artist in ax.get_children() if artist.get_gid() == gid]


def centres(ax, gid):
    """Middles of the squares of a collection, as a set."""
    return {tuple(np.round(path.vertices[:4].mean(0), 6)) for artist in by_gid(ax, gid) for path in artist.get_paths()}


def places(gates, rows):
    cells = plots.gate_cells(gates.assign(chosen=rows), grid=plots.make_grid(gates))
    return {tuple(np.round(place, 6)) for place in cells.loc[cells["chosen"], ["x", "y"]].to_numpy()}


def mesh(widget):
    return np.asarray(by_gid(widget._drawn.map, "gates")[0].get_array())


def legend(widget):
    return [text.get_text() for text in widget._drawn.map.get_legend().get_texts()]


def pixels(widget):
    return np.asarray(Image.open(io.BytesIO(widget.canvas.widget.value)))


# ---------------------------------------------------------------------------------------------- explore: cut


def test_budget_cuts_the_saved_search_again(run):
    widget = explore(run)
    assert widget.n_params == run.budget.n_params
    before = widget.canvas.widget.value
    for budget in (400, 5000, widget.recut.total):
        widget.budget.value = budget
        wanted = run.structure(budget)
        rows = np.array([candidate.name in set(wanted.names) for candidate in run.space])
        assert centres(widget._drawn.map, "chosen") == places(run.gates, rows)
        assert f"chosen: {len(wanted)} of {len(run.space)}, {wanted.n_params:,} parameters" in legend(widget)
        cut = run.gates["prob"][rows].min()
        assert f"cut {cut:.3g}" in legend(widget)
        marks = [line.get_ydata()[0] for line in widget._drawn.colour_bar.lines if line.get_gid() == "cut"]
        assert marks == [cut, cut]
        assert f"<b>{budget:,}</b>" in widget.spent.value and f"{wanted.n_params:,}" in widget.spent.value
        assert f"{100 * budget / run.space.backbone_params:.3g} % of the backbone" in widget.spent.value
        spent = run.gates[rows].groupby("pet")["n_params"].sum()
        bars = {bar.get_gid(): bar.get_width() for bar in widget._drawn.bar.patches}
        for pet in set(run.gates["pet"]):
            assert bars[f"budget-{pet}"] == pytest.approx(100 * spent.get(pet, 0) / budget)
        assert bars["budget-not used"] == pytest.approx(100 * (budget - wanted.n_params) / budget)
        assert widget.structure.names == wanted.names
        assert widget.canvas.widget.value != before


def test_a_front_end_that_rounds_to_steps_keeps_the_searched_budget():
    widget = explore(RUNS)
    for model in ("pocket-t5", "pocket-t5-deep"):
        widget.selectors["model"].value = model
        slider, budget = widget.budget, widget.recut.result.budget.n_params
        steps = (math.log10(budget) - slider.min) / slider.step
        assert steps == pytest.approx(round(steps), abs=1e-6) and 0.005 < slider.step < 0.02
        slider.value = 10 ** round(slider.min + round(steps) * slider.step, 7)  # as a browser sends it back
        assert widget.n_params == budget


def test_pictures_have_tooltips_that_a_front_end_can_show(run):
    picture = explore(run).canvas.widget
    assert 0 < len(picture.tooltip) <= 200
    assert picture.get_state()["description"] == ""  # the front end reads its length


def test_slider_reaches_from_the_cheapest_candidate_to_the_whole_space(run):
    widget = explore(run)
    widget.budget.value = 10**widget.budget.min
    assert widget.n_params == run.gates["n_params"].min() and widget.gates["chosen"].sum() == 1
    widget.budget.value = 10**widget.budget.max
    assert widget.n_params == run.gates["n_params"].sum() and widget.gates["chosen"].all()


@pytest.mark.parametrize("step", [0, 50, 190])
def test_steps_show_the_gates_of_then(run, step):
    widget = explore(run)
    widget.budget.value = 1000
    widget.step.value = step
    then = run.trajectory[run.trajectory["step"] == step].set_index("candidate")["prob"]
    probs = then.loc[widget.recut.names].to_numpy()
    assert mesh(widget).sum() == pytest.approx(probs.sum())
    mask = s3pet.structure.select_mask(torch.tensor(probs), run.space.costs, 1000).numpy()
    assert centres(widget._drawn.map, "chosen") == places(run.gates, mask)
    assert f"step {step}" in widget._drawn._heading.get_text()
    assert widget.structure.names == s3pet.select_structure(run.space, torch.tensor(probs), 1000).names
    assert widget.structure.origin["step"] == step


def test_fast_cuts_are_the_gate_tables_of_the_run(run):
    recut = Recut({"one": run}, run)
    for step, budget in ((None, 2703), (0, 700), (100, 1500), (None, 128)):
        pd.testing.assert_frame_equal(recut.gates(step, budget), run.gates_at(step, budget), check_dtype=False)


def test_colours_keep_their_meaning_over_steps_and_budgets(run):
    widget = explore(run)
    for quantity, known in (("prob", run.trajectory["prob"]), ("alpha", run.trajectory["alpha"])):
        widget.quantity.value = quantity
        limits = {by_gid(widget._drawn.map, "gates")[0].get_clim()}
        assert mesh(widget).sum() == pytest.approx(run.gates[quantity].sum())
        for step in (0, 100, 200):
            widget.step.value = step
            limits.add(by_gid(widget._drawn.map, "gates")[0].get_clim())
        ((low, high),) = limits
        assert high == pytest.approx(known.max()) and low == pytest.approx(min(0, known.min()))
    widget.quantity.value = "margin"
    for budget in (100, 5000):
        widget.budget.value = budget
        cut = run.gates["prob"][widget.gates["chosen"]].min()
        assert mesh(widget).sum() == pytest.approx((run.gates["prob"] - cut).sum())
        low, high = by_gid(widget._drawn.map, "gates")[0].get_clim()
        assert low == -high and np.abs(mesh(widget)).max() <= high


def test_filters_veil_and_never_change_the_choice(run):
    widget = explore(run)
    chosen = centres(widget._drawn.map, "chosen")
    assert not centres(widget._drawn.map, "veiled")
    widget.pets.value = ("lora", "bitfit")
    table = run.gates
    assert centres(widget._drawn.map, "veiled") == places(table, ~table["pet"].isin(["lora", "bitfit"]).to_numpy())
    assert "shown: LoRA, BitFit" in widget._drawn._heading.get_text()
    widget.pets.value = tuple(value for _, value in widget.pets.options)
    widget.layers.value = (2, 3)
    outside = table["layer"].isna()  # the final norms go with the last layer
    veiled = ~(table["layer"].ge(2).fillna(False).astype(bool) | outside)
    assert centres(widget._drawn.map, "veiled") == places(table, veiled.to_numpy())
    assert centres(widget._drawn.map, "chosen") == chosen
    edges = by_gid(widget._drawn.map, "chosen")[0].get_edgecolor()
    assert (edges[:, 3] < 1).sum() == len(chosen & places(table, veiled.to_numpy())) > 0
    widget.pets.value = ()
    assert len(centres(widget._drawn.map, "veiled")) == len(mesh(widget))


def test_what_moved_is_what_a_whole_drawing_shows(run):
    widget = explore(SEEDS)
    for control, value in (("budget", 500), ("step", 60), ("layers", (1, 2)), ("candidate", widget.recut.names[7])):
        getattr(widget, control).value = value
    moved = pixels(widget)
    widget._redraw()
    assert np.array_equal(moved, pixels(widget))


# ------------------------------------------------------------------------------------- explore: single candidates


def test_inspector_says_what_the_table_says(run):
    widget = explore(SEEDS)
    at = s3pet.load_run(SEEDS[1]).gates["prob"].argmax()  # chosen there, so in one search or more
    row, name = run.gates.iloc[at], widget.recut.names[at]
    widget.candidate.value = name
    place = 1 + (run.gates["prob"] > row["prob"]).sum()
    seeds = [f"seed {i}" for i, path in enumerate(SEEDS) if name in s3pet.load_run(path).structure().names]
    wanted = [row["path"], f"{row['n_params']} parameters", f"{row['alpha']:.4g}", f"{row['prob']:.4g}"]
    wanted += [f"{row['margin']:+.4g}", f"{place} of {len(run.gates)}", f"{len(seeds)} of 3: {', '.join(seeds)}"]
    for text in wanted:
        assert f"<td>{text}</td>" in widget.card.value
    assert len(centres(widget._drawn.map, "picked")) == 1
    (picked,) = centres(widget._drawn.map, "picked")
    assert {picked} == places(run.gates, np.array([n == name for n in widget.recut.names]))


def test_buttons_go_through_the_chosen_in_their_order(run):
    widget = explore(run)
    order = run.gates[run.gates["chosen"]].sort_values("prob", ascending=False, kind="stable").index
    wanted, seen = [widget.recut.names[i] for i in order], []
    for _ in wanted:
        widget.later.click()
        seen.append(widget.candidate.value)
    assert seen == wanted
    widget.earlier.click()
    assert widget.candidate.value == wanted[-2]
    widget.later.click()
    widget.later.click()
    assert widget.candidate.value == wanted[0]  # round and round


def test_unknown_candidate_is_said_not_raised(run):
    widget = explore(run)
    widget.candidate.value = "encoder.0.ffn.in:lra:1"
    assert "no candidate is called" in widget.message.value and "encoder.0.ffn.in:lora:1" in widget.message.value
    assert not centres(widget._drawn.map, "picked")


# ------------------------------------------------------------------------------------------ explore: which run


def test_selectors_offer_what_exists():
    widget = explore(RUNS)
    assert list(widget.selectors) == ["model", "task", "budget", "seed"]
    widget.selectors["model"].value = "pocket-t5"
    widget.selectors["task"].value = "pocket/number"
    widget.selectors["budget"].value = "2703"
    assert [value for _, value in widget.selectors["seed"].options] == ["0", "1", "2", "3", "4", "average"]
    widget.selectors["seed"].value = "3"
    wanted = s3pet.load_run(f"{RUNS}/pocket-t5/number/0.2/seed3")
    assert mesh(widget).sum() == pytest.approx(wanted.gates["prob"].sum()) and widget.n_params == 2703
    widget.selectors["model"].value = "pocket-t5-deep"  # whose searches have another budget, fewer seeds, more layers
    assert widget.selectors["task"].value == "pocket/number" and widget.selectors["seed"].value == "0"
    deep = s3pet.load_run(f"{RUNS}/pocket-t5-deep/number/0.05/seed0")
    assert mesh(widget).sum() == pytest.approx(deep.gates["prob"].sum())
    assert widget.layers.max == deep.gates["layer"].max() and widget.n_params == deep.budget.n_params


def test_average_over_seeds():
    results = [s3pet.load_run(path) for path in SEEDS]
    widget = explore(SEEDS)
    assert "frequency" not in [value for _, value in widget.quantity.options]
    widget.selectors["seed"].value = "average"
    assert mesh(widget).sum() == pytest.approx(average_gates(results).gates["prob"].sum())
    widget.quantity.value = "frequency"
    assert by_gid(widget._drawn.map, "gates")[0].get_clim() == (0, 1) and widget.step.disabled
    for budget in (results[0].budget.n_params, 900):
        widget.budget.value = budget
        chosen = [set(result.structure(budget).names) for result in results]
        wanted = [np.mean([name in names for names in chosen]) for name in widget.recut.names]
        np.testing.assert_allclose(widget.gates["frequency"], wanted)
        assert mesh(widget).sum() == pytest.approx(sum(wanted))
    widget.quantity.value = "prob_spread"
    assert mesh(widget).sum() == pytest.approx(np.std([result.gates["prob"] for result in results], axis=0).sum())
    assert "mean of 3 searches" in widget._drawn._heading.get_text()
    widget.selectors["seed"].value = "1"  # back to one search, which has no spread
    assert widget.quantity.value == "prob" and not widget.step.disabled


def test_results_that_share_task_and_seed_are_told_apart_by_name(run):
    widget = explore({"mine": run, "yours": s3pet.load_run(SEEDS[0])})
    assert "run" in widget.selectors
    assert [label for label, _ in widget.selectors["run"].options] == ["mine", "yours"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", r"nowhere does not exist.*search\("),
        (7, "expected a run folder.*got int: 7"),
        ([], "no run was given, only an empty list"),
        (None, "got NoneType"),
        ([s3pet.__file__], "is a file; expected a run folder"),
    ],
)
def test_what_is_no_run_raises_at_the_door(given, message):
    for widget in (explore, compare):
        with pytest.raises(RunError, match=message):
            widget(given)


def test_a_folder_without_finished_runs_raises(tmp_path):
    with pytest.raises(RunError, match=r"holds no finished run.*none"):
        explore(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gates.parquet").touch()
    with pytest.raises(RunError, match="1 unfinished"):
        explore(tmp_path)


def test_an_unreadable_run_is_said_and_the_picture_stays(tmp_path):
    for name, path in (("a", SEEDS[0]), ("b", f"{RUNS}/pocket-t5/ending/0.2/seed0"), ("c", SEEDS[1])):
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "b" / "gates.parquet").write_bytes(b"PAR1")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("pocket/ending", "pocket/zany"), encoding="utf-8")
    widget = explore([tmp_path / "a", tmp_path / "b"])
    before = widget.canvas.widget.value
    widget.selectors["task"].value = "pocket/zany"
    assert "b cannot be read" in widget.message.value and widget.canvas.widget.value == before
    widget.selectors["task"].value = "pocket/sentiment"
    assert not widget.message.value
    (tmp_path / "c" / "gates.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"c cannot be read"):
        explore([tmp_path / "a", tmp_path / "c"])  # it belongs to "chosen in"
    (tmp_path / "a" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"a cannot be read"):
        explore(tmp_path)


def test_short_names_tell_runs_apart():
    names = list(short_names(find_runs(f"{RUNS}/pocket-t5/number")))
    assert names[:2] == ["number (675) 0", "number (675) 1"] and len(set(names)) == 8
    assert list(short_names(find_runs(SEEDS))) == ["sentiment 0", "sentiment 1", "sentiment 2"]


# ----------------------------------------------------------------------------------------- explore: what it leaves


def test_saved_structure_loads_and_is_never_overwritten(run, tmp_path):
    widget = explore(run)
    widget.budget.value = 1500
    widget.saving.path.value = str(tmp_path / "new" / "mine")
    widget.saving.button.click()
    path = tmp_path / "new" / "mine.json"
    loaded = s3pet.Structure.from_json(path)
    assert loaded == run.structure(1500) == widget.structure
    assert f"wrote {path}" in widget.message.value and f"{loaded.n_params:,} parameters" in widget.message.value
    widget.budget.value = 3000
    widget.saving.button.click()
    assert "exists already and was not touched" in widget.message.value
    assert s3pet.Structure.from_json(path) == loaded
    widget.saving.path.value = " "
    widget.saving.button.click()
    assert "give a path" in widget.message.value
    widget.saving.path.value = str(path / "below-a-file.json")
    widget.saving.button.click()
    assert "color:#D55E00" in widget.message.value  # the system's own words, shown


def test_exported_figures_are_vector_in_the_style_in_use(run, tmp_path):
    widget = explore(run)
    for name in ("pdf", "svg", "png"):
        widget.exporting.formats.value = name
        widget.exporting.path.value = str(tmp_path / "map.pdf")  # the format decides
        widget.exporting.button.click()
        assert f"wrote {tmp_path / 'map'}.{name}" in widget.message.value
    assert b"/Subtype /Image" not in (tmp_path / "map.pdf").read_bytes()
    svg = (tmp_path / "map.svg").read_text(encoding="utf-8")
    assert "<image" not in svg and "share of the budget" in svg and "candidates at" in svg
    size = (tmp_path / "map.svg").stat()
    widget.exporting.formats.value = "svg"
    widget.exporting.button.click()
    assert "exists already" in widget.message.value and (tmp_path / "map.svg").stat() == size
    with s3pet.figure_style("paper"):
        assert widget.figure().get_figwidth() <= style().page + 0.2
    assert widget.figure().get_figwidth() > style().page / 2


def test_static_twin_shows_the_same(run):
    widget = explore(SEEDS)
    widget.budget.value, widget.step.value, widget.pets.value = 800, 120, ("lora",)
    widget.candidate.value = widget.recut.names[3]
    ax, bar = widget.figure().axes[:2]
    live = widget._drawn
    for gid in ("chosen", "veiled", "picked"):
        assert centres(ax, gid) == centres(live.map, gid)
    np.testing.assert_array_equal(by_gid(ax, "gates")[0].get_array(), mesh(widget))
    assert [text.get_text() for text in bar.texts] == [text.get_text() for text in live.bar.texts]
    assert widget.figure().get_suptitle() == live._heading.get_text()


def test_dark_stays_dark_after_the_block(run):
    with s3pet.figure_style(dark=True) as dark:
        widget = explore(run)
    ground = tuple(int(dark.ground[i : i + 2], 16) for i in (1, 3, 5))
    widget.budget.value = 600
    widget.quantity.value = "alpha"
    assert tuple(pixels(widget)[2, 2]) == ground
    assert style().ground == "white"
    assert {text.get_color() for text in widget._drawn.bar.get_yticklabels()} == {dark.ink}


def test_without_a_kernel_a_widget_is_its_picture(run):
    for widget in (explore(run), compare(SEEDS), gate_lab()):
        bundle = widget._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        assert data["image/png"].startswith("iVBOR") and len(data["text/plain"]) > 20
        assert "application/vnd.jupyter.widget-view+json" in data
        json.dumps(data)


# ---------------------------------------------------------------------------------------------------- compare


def test_panels_share_one_scale_and_are_cut_at_one_budget():
    results = [s3pet.load_run(path) for path in SEEDS]
    widget = compare(SEEDS)
    widget.budget.value = 1200
    axes = widget.canvas.figure.axes[:3]
    assert len({by_gid(ax, "gates")[0].get_clim() for ax in axes}) == 1
    for ax, result in zip(axes, results, strict=True):
        names = set(result.structure(1200).names)
        rows = np.array([candidate.name in names for candidate in result.space])
        assert centres(ax, "chosen") == places(result.gates, rows)
    assert [ax.get_title() for ax in axes] == ["sentiment 0", "sentiment 1", "sentiment 2"]
    widget.quantity.value = "alpha"
    values = [by_gid(ax, "gates")[0].get_array().sum() for ax in widget.canvas.figure.axes[:3]]
    assert values == pytest.approx([result.gates["alpha"].sum() for result in results])


def test_difference_of_the_two_selected():
    results = [s3pet.load_run(path) for path in SEEDS]
    widget = compare(SEEDS)
    widget.view.value = "difference"
    widget.one.value, widget.other.value = "sentiment 1", "sentiment 2"
    widget.budget.value = 900
    ax = widget.canvas.figure.axes[0]
    one, other = results[1].gates["prob"], results[2].gates["prob"]
    np.testing.assert_allclose(by_gid(ax, "gates")[0].get_array().sum(), (one - other).sum())
    first, second = (set(results[i].structure(900).names) for i in (1, 2))
    assert len(by_gid(ax, "only_one")[0].get_xdata()) == len(first - second)
    assert len(centres(ax, "chosen")) == len(first & second)
    assert widget.measure.disabled and not widget.one.disabled


def test_overlap_stands_beside_chance():
    results = {f"sentiment {i}": s3pet.load_run(path) for i, path in enumerate(SEEDS)}
    widget = compare(SEEDS, draws=20)
    widget.view.value = "overlap"
    wanted = agreement(results, budget=widget.n_params, draws=20)
    pd.testing.assert_frame_equal(widget.agreement, wanted)
    matrix, points = widget.canvas.figure.axes[:2]
    assert sorted(by_gid(matrix, "cells")[0].get_array()) == pytest.approx(sorted(wanted["jaccard"]))
    assert by_gid(points, "chance")[0].get_ydata()[0] == pytest.approx(wanted["jaccard_chance"].mean())
    widget.measure.value = "spearman"
    matrix = widget.canvas.figure.axes[0]
    assert sorted(by_gid(matrix, "cells")[0].get_array()) == pytest.approx(sorted(wanted["spearman"]))


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
    assert len(widget.canvas.figure.axes) == 3 and set(widget.one.options) == set(widget.runs.value)
    before = widget.canvas.widget.value
    widget.runs.value = widget.runs.options[:1]
    assert "Select two runs or more" in widget.message.value and widget.canvas.widget.value == before


def test_compare_refuses_one_run_and_two_spaces():
    with pytest.raises(RunError, match=r"two runs or more.*got 1, 'sentiment 0'"):
        compare(ONE)
    with pytest.raises(RunError, match=r"2 different spaces.*retarget_gates"):
        compare(RUNS)


def test_comparison_exports_what_it_shows(tmp_path):
    widget = compare(SEEDS, draws=20)
    for view in ("panels", "difference", "overlap"):
        widget.view.value = view
        widget.exporting.formats.value = "svg"
        widget.exporting.path.value = str(tmp_path / view)
        widget.exporting.button.click()
        assert "wrote" in widget.message.value
        assert "<image" not in (tmp_path / f"{view}.svg").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------- gate_lab


def lab_axes(widget):
    return widget.canvas.figure.axes


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
    before = widget.canvas.widget.value
    widget.budget.max = 500
    widget.budget.value = 400
    assert "400" in widget.message.value and widget.canvas.widget.value == before
    assert len(lab_axes(widget)) == 4
    widget.budget.value = 50
    assert not widget.message.value and widget.canvas.widget.value != before


@pytest.mark.parametrize("given", [[], [(1.0, 5)], "no", [(1.0, 0), (0.0, 5)], [(1.0,), (2.0,)], [(0.0, 1)] * 9, 3])
def test_lab_refuses_what_are_no_candidates(given):
    with pytest.raises(PlotError, match=r"Expected .* of two to eight candidates"):
        gate_lab(given)


# ------------------------------------------------------------------------------------------- the plain functions


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
        with s3pet.figure_style(name):
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
