"""The explorer: set ``.value`` and look at the artists; the numbers are computed again from the saved runs."""

import math
import shutil
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
import torch
from artists import ONE, RUNS, SEEDS, map_of, mesh, pixels
from gate_tables import by_gid, centres, places

import s3pet
from s3pet.errors import RunError, StudyError
from s3pet.plots.style import style
from s3pet.transfer import average_gates
from s3pet.widgets import explore


@pytest.fixture(scope="module")
def run():
    return s3pet.load_run(ONE)


def test_budget_cuts_the_saved_search_again(run):
    widget = explore(run)
    assert widget.n_params == run.budget.n_params
    before = widget.picture.value
    for budget in (400, 5000, run.space.n_params):
        widget.budget.value = budget
        wanted = run.structure(budget)
        legend = [text.get_text() for text in map_of(widget).get_legend().get_texts()]
        rows = np.array([candidate.name in set(wanted.names) for candidate in run.space])
        assert centres(map_of(widget), "chosen") == places(run.gates, rows)
        assert f"chosen: {len(wanted)} of {len(run.space)}, {wanted.n_params:,} parameters" in legend
        cut = run.gates["prob"][rows].min()
        assert f"cut {cut:.3g}" in legend
        marks = [line.get_ydata()[0] for line in widget.picture.figure.axes[-1].lines if line.get_gid() == "cut"]
        assert set(marks) == {cut}
        assert f"<b>{budget:,}</b>" in widget.spent.value and f"{wanted.n_params:,}" in widget.spent.value
        assert f"{100 * budget / run.space.backbone_params:.3g} % of the backbone" in widget.spent.value
        spent = run.gates[rows].groupby("pet")["n_params"].sum()
        bars = {bar.get_gid(): bar.get_width() for bar in widget.picture.figure.axes[1].patches}
        for pet in set(run.gates["pet"]):
            assert bars[f"budget-{pet}"] == pytest.approx(100 * spent.get(pet, 0) / budget)
        assert bars["budget-not used"] == pytest.approx(100 * (budget - wanted.n_params) / budget)
        assert widget.structure.names == wanted.names
        assert widget.picture.value != before


def test_a_front_end_that_rounds_to_steps_keeps_the_searched_budget():
    widget = explore(RUNS)
    for model in ("pocket-t5", "pocket-t5-deep"):
        widget.selectors["model"].value = model
        slider, budget = widget.budget, widget.search.result.budget.n_params
        steps = (math.log10(budget) - slider.min) / slider.step
        assert steps == pytest.approx(round(steps), abs=1e-6) and 0.005 < slider.step < 0.02
        slider.value = 10 ** round(slider.min + round(steps) * slider.step, 7)  # as a browser sends it back
        assert widget.n_params == budget


def test_pictures_have_tooltips_that_a_front_end_can_show(run):
    picture = explore(run).picture
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
    probs = then.loc[widget.search.names].to_numpy()
    assert mesh(widget).sum() == pytest.approx(probs.sum())
    mask = s3pet.structure.select_mask(torch.tensor(probs), run.space.costs, 1000).numpy()
    assert centres(map_of(widget), "chosen") == places(run.gates, mask)
    assert f"step {step}" in widget.picture.figure.get_suptitle()
    assert widget.structure.names == s3pet.structure.select_structure(run.space, torch.tensor(probs), 1000).names
    assert widget.structure.origin["step"] == step


def test_colours_keep_their_meaning_over_steps_and_budgets(run):
    widget = explore(run)
    for quantity, known in (("prob", run.trajectory["prob"]), ("alpha", run.trajectory["alpha"])):
        widget.quantity.value = quantity
        limits = {by_gid(map_of(widget), "gates")[0].get_clim()}
        assert mesh(widget).sum() == pytest.approx(run.gates[quantity].sum())
        for step in (0, 100, 200):
            widget.step.value = step
            limits.add(by_gid(map_of(widget), "gates")[0].get_clim())
        ((low, high),) = limits
        assert high == pytest.approx(known.max()) and low == pytest.approx(min(0, known.min()))
    widget.quantity.value = "margin"
    for budget in (100, 5000):
        widget.budget.value = budget
        cut = run.gates["prob"][widget.gates["chosen"]].min()
        assert mesh(widget).sum() == pytest.approx((run.gates["prob"] - cut).sum())
        low, high = by_gid(map_of(widget), "gates")[0].get_clim()
        assert low == -high and np.abs(mesh(widget)).max() <= high


def test_filters_veil_and_never_change_the_choice(run):
    widget = explore(run)
    chosen = centres(map_of(widget), "chosen")
    assert not centres(map_of(widget), "veiled")
    widget.pets.value = ("lora", "bitfit")
    table = run.gates
    assert centres(map_of(widget), "veiled") == places(table, ~table["pet"].isin(["lora", "bitfit"]).to_numpy())
    assert "shown: LoRA, BitFit" in widget.picture.figure.get_suptitle()
    widget.pets.value = tuple(value for _, value in widget.pets.options)
    widget.layers.value = (2, 3)
    outside = table["layer"].isna()  # the final norms go with the last layer
    veiled = ~(table["layer"].ge(2).fillna(False).astype(bool) | outside)
    assert centres(map_of(widget), "veiled") == places(table, veiled.to_numpy())
    assert centres(map_of(widget), "chosen") == chosen
    widget.pets.value = ()
    assert len(centres(map_of(widget), "veiled")) == len(mesh(widget))


def test_inspector_says_what_the_table_says(run):
    widget = explore(SEEDS)
    at = s3pet.load_run(SEEDS[1]).gates["prob"].argmax()  # chosen there, so in one search or more
    row, name = run.gates.iloc[at], widget.search.names[at]
    widget.candidate.value = name
    place = 1 + (run.gates["prob"] > row["prob"]).sum()
    seeds = [f"seed {i}" for i, path in enumerate(SEEDS) if name in s3pet.load_run(path).structure().names]
    wanted = [row["path"], f"{row['n_params']} parameters", f"{row['alpha']:.4g}", f"{row['prob']:.4g}"]
    wanted += [f"{row['margin']:+.4g}", f"{place} of {len(run.gates)}", f"{len(seeds)} of 3: {', '.join(seeds)}"]
    for text in wanted:
        assert f"<td>{text}</td>" in widget.card.value
    assert len(centres(map_of(widget), "picked")) == 1
    (picked,) = centres(map_of(widget), "picked")
    assert {picked} == places(run.gates, np.array([n == name for n in widget.search.names]))


def test_buttons_go_through_the_chosen_in_their_order(run):
    widget = explore(run)
    order = run.gates[run.gates["chosen"]].sort_values("prob", ascending=False, kind="stable").index
    wanted, seen = [widget.search.names[i] for i in order], []
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
    assert not centres(map_of(widget), "picked")


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
    assert by_gid(map_of(widget), "gates")[0].get_clim() == (0, 1) and widget.step.disabled
    for budget in (results[0].budget.n_params, 900):
        widget.budget.value = budget
        chosen = [set(result.structure(budget).names) for result in results]
        wanted = [np.mean([name in names for names in chosen]) for name in widget.search.names]
        np.testing.assert_allclose(widget.gates["frequency"], wanted)
        assert mesh(widget).sum() == pytest.approx(sum(wanted))
    widget.quantity.value = "prob_spread"
    assert mesh(widget).sum() == pytest.approx(np.std([result.gates["prob"] for result in results], axis=0).sum())
    assert "mean of 3 searches" in widget.picture.figure.get_suptitle()
    widget.selectors["seed"].value = "1"  # back to one search, which has no spread
    assert widget.quantity.value == "prob" and not widget.step.disabled


def test_results_that_share_task_and_seed_are_told_apart_by_name(run):
    widget = explore({"mine": run, "yours": s3pet.load_run(SEEDS[0])})
    assert "run" in widget.selectors
    assert [label for label, _ in widget.selectors["run"].options] == ["mine", "yours"]


def test_an_unreadable_run_is_said_and_the_picture_stays(tmp_path):
    for name, path in (("a", SEEDS[0]), ("b", f"{RUNS}/pocket-t5/ending/0.2/seed0"), ("c", SEEDS[1])):
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "b" / "gates.parquet").write_bytes(b"PAR1")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("pocket/ending", "pocket/zany"), encoding="utf-8")
    widget = explore([tmp_path / "a", tmp_path / "b"])
    before = widget.picture.value
    widget.selectors["task"].value = "pocket/zany"
    assert "b/gates.parquet cannot be read" in widget.message.value and widget.picture.value == before
    widget.selectors["task"].value = "pocket/sentiment"
    assert not widget.message.value
    (tmp_path / "c" / "gates.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"c/gates.parquet cannot be read"):
        explore([tmp_path / "a", tmp_path / "c"])  # it belongs to "chosen in"
    (tmp_path / "a" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"a/config.json cannot be read"):
        explore(tmp_path)


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
    assert "exists already and was not changed" in widget.message.value
    assert s3pet.Structure.from_json(path) == loaded
    widget.saving.path.value = " "
    widget.saving.button.click()
    assert "give a path" in widget.message.value
    widget.saving.path.value = str(path / "below-a-file.json")
    widget.saving.button.click()
    assert "color:#D55E00" in widget.message.value  # the system's own words, shown


def test_on_a_web_page_files_are_downloaded_and_nothing_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setenv("VOILA_BASE_URL", "/")
    monkeypatch.chdir(tmp_path)
    widget = explore(run)
    for row in (widget.saving, widget.exporting):  # no field for a path
        assert row.path is None and list(row.children) == [row.button]
    contents = {}
    for row, name in ((widget.saving, "structure.json"), (widget.exporting, "map.pdf")):
        row.button.click()
        kind, _, content = widget.message.value.partition('href="data:')[2].partition('"')[0].partition(";base64,")
        assert f'download="{name}"' in widget.message.value and kind.endswith(name[-3:].replace("son", "json"))
        contents[name] = b64decode(content)
    (tmp_path / "mine.json").write_bytes(contents["structure.json"])
    assert s3pet.Structure.from_json(tmp_path / "mine.json") == widget.structure
    assert contents["map.pdf"].startswith(b"%PDF")
    widget.budget.value = 3000
    assert "href" not in widget.message.value  # it would be a file of another budget
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_exported_figures_are_vector_in_the_style_in_use(run, tmp_path):
    widget = explore(run)
    for name in ("map", "map.svg", "map.png"):  # the suffix decides; without one it is PDF
        widget.exporting.path.value = str(tmp_path / name)
        widget.exporting.button.click()
        assert f"wrote {tmp_path / name}" in widget.message.value
    assert b"/Subtype /Image" not in (tmp_path / "map.pdf").read_bytes()
    svg = (tmp_path / "map.svg").read_text(encoding="utf-8")
    assert "<image" not in svg and "share of the budget" in svg and "candidates at" in svg
    widget.exporting.path.value = str(tmp_path / "map.docx")
    widget.exporting.button.click()
    assert "Expected a format out of" in widget.message.value
    with s3pet.plots.figure_style("paper"):
        assert widget.figure().get_figwidth() <= style().page + 0.2
    assert widget.figure().get_figwidth() > style().page / 2


def test_figure_draws_what_is_shown_anew(run):
    widget = explore(SEEDS)
    widget.budget.value, widget.step.value, widget.pets.value = 800, 120, ("lora",)
    widget.candidate.value = widget.search.names[3]
    figure, shown = widget.figure(), widget.picture.figure
    assert figure is not shown and figure.get_suptitle() == shown.get_suptitle()
    for gid in ("chosen", "veiled", "picked"):
        assert centres(figure.axes[0], gid) == centres(shown.axes[0], gid)
    np.testing.assert_array_equal(by_gid(figure.axes[0], "gates")[0].get_array(), mesh(widget))
    assert [text.get_text() for text in figure.axes[1].texts] == [text.get_text() for text in shown.axes[1].texts]


def test_dark_stays_dark_after_the_block(run):
    with s3pet.plots.figure_style(dark=True) as dark:
        widget = explore(run)
    ground = tuple(int(dark.ground[i : i + 2], 16) for i in (1, 3, 5))
    widget.budget.value = 600
    widget.quantity.value = "alpha"
    assert tuple(pixels(widget)[2, 2]) == ground
    assert style().ground == "white"
    assert {text.get_color() for text in widget.picture.figure.axes[1].get_yticklabels()} == {dark.ink}


def test_the_card_says_the_utility_for_the_task_that_is_shown(run):
    table = run.gates.drop(columns=["alpha", "prob", "chosen", "margin"]).assign(measure="solo", inert=False)
    table["utility"], table["utility_error"] = np.arange(len(table)) / 1000, 0.002
    other = table.assign(task="pocket/number", utility=-table["utility"])
    both = pd.concat([table.assign(task="pocket/sentiment"), other])
    widget = explore([f"{RUNS}/pocket-t5/{task}/0.2/seed0" for task in ("sentiment", "number", "ending")], utility=both)
    for task, value, place in (("sentiment", "+0.02", len(table) - 20), ("number", "-0.02", 21), ("ending", None, 0)):
        widget.selectors["task"].value = f"pocket/{task}"
        widget.candidate.value = widget.search.names[20]
        assert (f"<td>{value} ± 0.002 nats, {place} of {len(table)}</td>" in widget.card.value) == bool(place)
        assert ("solo utility" in widget.card.value) == bool(place)
    assert "solo utility" not in explore(run).card.value
    with pytest.raises(StudyError, match="no column task"):
        explore(run, utility=table)
