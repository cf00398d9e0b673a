"""The explorer: set ``.value`` and look at the map; the numbers are computed again from the saved runs."""

import math
import shutil
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
import torch
from artists import ONE, RUNS, SEEDS, cells, facts, pixels, total
from gate_tables import by_gid, centres, places

import s3pet
from s3pet.errors import PlotError, RunError, StudyError
from s3pet.plots.style import style
from s3pet.transfer import average_gates
from s3pet.widgets import compare, explore
from s3pet.widgets.map_data import CHOSEN, VEILED


@pytest.fixture(scope="module")
def run():
    return s3pet.load_run(ONE)


def test_budget_cuts_the_saved_search_again(run):
    widget = explore(run)
    assert widget.n_params == run.budget.n_params
    for budget in (400, 5000, run.space.n_params):
        widget.budget.value = budget
        wanted, data = run.structure(budget), widget.map.data
        rows = np.array([candidate.name in set(wanted.names) for candidate in run.space])
        assert cells(data, CHOSEN) == places(run.gates, rows)
        assert data["legend"]["chosen"] == f"chosen: {len(wanted)} of {len(run.space)}, {wanted.n_params:,} parameters"
        assert data["values"]["prob"]["marks"]["cut"] == pytest.approx(run.gates["prob"][rows].min())
        assert f"<b>{budget:,}</b>" in widget.spent.value and f"{wanted.n_params:,}" in widget.spent.value
        assert f"{100 * budget / run.space.backbone_params:.3g} % of the backbone" in widget.spent.value
        spent = run.gates[rows].groupby("pet")["n_params"].sum()
        bars = {bar["pet"]: bar["share"] for bar in data["bars"]}
        for pet in set(run.gates["pet"]):
            assert bars[pet] == pytest.approx(100 * spent.get(pet, 0) / budget, abs=1e-3)
        assert bars["not used"] == pytest.approx(100 * (budget - wanted.n_params) / budget, abs=1e-3)
        assert widget.structure.names == wanted.names


def test_the_figure_is_the_map_that_is_shown(run):
    widget = explore(SEEDS)
    widget.budget.value, widget.step.value, widget.pets.value = 800, 120, ("lora", "bitfit")
    widget.map.value, widget.map.selected = "alpha", widget.search.names[3]
    figure, data = widget.figure(), widget.map.data
    ax, bars = figure.axes[:2]
    mesh = by_gid(ax, "gates")[0]
    colours = (255 * mesh.to_rgba(mesh.get_array())[:, :3]).round().astype(int)
    palette, index = data["colours"]["cividis"], data["values"]["alpha"]["index"]
    assert ["".join(f"{part:02x}" for part in colour) for colour in colours] == [
        palette[6 * at : 6 * at + 6] for at in index
    ]
    assert centres(ax, "chosen") == cells(data, CHOSEN) and centres(ax, "veiled") == cells(data, VEILED)
    assert centres(ax, "picked") == places(run.gates, np.arange(len(run.gates)) == 3)
    assert [bar["text"] for bar in data["bars"]] == [text.get_text() for text in bars.texts]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert [name for _, name in data["grid"]["rows"] + data["grid"]["headers"]] == names
    assert figure.get_suptitle() == data["title"] and "step 120" in data["title"]
    assert data["legend"]["chosen"] in [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def test_a_front_end_that_rounds_to_steps_keeps_the_searched_budget():
    widget = explore(RUNS)
    for model in ("pocket-t5", "pocket-t5-deep"):
        widget.selectors["model"].value = model
        slider, budget = widget.budget, widget.search.result.budget.n_params
        steps = (math.log10(budget) - slider.min) / slider.step
        assert steps == pytest.approx(round(steps), abs=1e-6) and 0.005 < slider.step < 0.02
        slider.value = 10 ** round(slider.min + round(steps) * slider.step, 7)  # as a browser sends it back
        assert widget.n_params == budget


def test_pictures_have_tooltips_that_a_front_end_can_show():
    picture = compare(SEEDS).picture
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
    assert total(widget.map.data, "probability") == pytest.approx(probs.sum(), rel=1e-3)
    mask = s3pet.structure.select_mask(torch.tensor(probs), run.space.costs, 1000).numpy()
    assert cells(widget.map.data, CHOSEN) == places(run.gates, mask)
    assert f"step {step}" in widget.map.data["title"]
    assert widget.structure.names == s3pet.structure.select_structure(run.space, torch.tensor(probs), 1000).names
    assert widget.structure.origin["step"] == step


def test_colours_keep_their_meaning_over_steps_and_budgets(run):
    widget, limits = explore(run), {"prob": set(), "alpha": set(), "margin": set()}
    for budget, step in ((100, 0), (5000, 100), (100, 200)):
        widget.budget.value, widget.step.value = budget, step
        for name, seen in limits.items():
            seen.add(tuple(widget.map.data["values"][name]["limits"]))
    for name, known in (("prob", run.trajectory["prob"]), ("alpha", run.trajectory["alpha"])):
        ((low, high),) = limits[name]
        assert high == pytest.approx(known.max()) and low == pytest.approx(min(0, known.min()))
    ((low, high),) = limits["margin"]
    assert low == -high
    cut = run.gates["prob"][widget.gates["chosen"]].min()
    assert facts(widget.map.data, "margin to the cut")[widget.search.names[0]] == f"{run.gates['prob'][0] - cut:+.4g}"


def test_filters_veil_and_never_change_the_choice(run):
    widget = explore(run)
    chosen = cells(widget.map.data, CHOSEN)
    assert chosen and not cells(widget.map.data, VEILED)
    widget.pets.value = ("lora", "bitfit")
    table = run.gates
    assert cells(widget.map.data, VEILED) == places(table, ~table["pet"].isin(["lora", "bitfit"]).to_numpy())
    assert "shown: LoRA, BitFit" in widget.map.data["title"]
    widget.pets.value = tuple(value for _, value in widget.pets.options)
    widget.layers.value = (2, 3)
    outside = table["layer"].isna()  # the final norms go with the last layer
    veiled = ~(table["layer"].ge(2).fillna(False).astype(bool) | outside)
    assert cells(widget.map.data, VEILED) == places(table, veiled.to_numpy())
    assert cells(widget.map.data, CHOSEN) == chosen
    widget.pets.value = ()
    assert len(cells(widget.map.data, VEILED)) == len(widget.map.data["cells"]["x"])


def test_the_map_says_what_the_table_says(run):
    data = explore(SEEDS).map.data
    at = s3pet.load_run(SEEDS[1]).gates["prob"].argmax()  # chosen there, so in one search or more
    row, name = run.gates.iloc[at], data["names"][at]
    place = 1 + (run.gates["prob"] > row["prob"]).sum()
    seeds = [f"seed {i}" for i, path in enumerate(SEEDS) if name in s3pet.load_run(path).structure().names]
    wanted = {"address": row["site"], "module": row["path"], "cost": f"{row['n_params']} parameters"}
    wanted |= {"α": f"{row['alpha']:.4g}", "probability": f"{row['prob']:.4g}"}
    wanted |= {"margin to the cut": f"{row['margin']:+.4g}", "in the order": f"{place} of {len(run.gates)}"}
    wanted |= {"chosen in": f"{len(seeds)} of 3: {', '.join(seeds)}"}
    assert {fact: facts(data, fact)[name] for fact in wanted} == wanted


def test_the_chosen_are_in_their_order(run):
    data = explore(run).map.data
    order = run.gates[run.gates["chosen"]].sort_values("prob", ascending=False, kind="stable").index
    assert data["order"] == order.tolist()


def test_a_candidate_stays_selected_where_it_exists(run):
    widget = explore([ONE, f"{RUNS}/pocket-t5-deep/number/0.05/seed0"])
    name = "encoder.3.ffn.in:lora:1"
    widget.map.selected = name
    widget.budget.value = 900
    assert widget.map.selected == name == widget.arguments["candidate"]
    with pytest.raises(PlotError, match=r"no candidate is called 'encoder.0.ffn.in:lra:1'.*encoder.0.ffn.in:lora:1"):
        widget.map.selected = "encoder.0.ffn.in:lra:1"
    assert widget.map.selected == name
    widget.selectors["model"].value = "pocket-t5-deep"  # has it, too
    deep = widget.map.data["names"]
    assert name in deep and widget.map.selected == name
    widget.map.selected = next(one for one in deep if one not in run.space.names)
    widget.selectors["model"].value = "pocket-t5"
    assert widget.map.selected == ""


def test_selectors_offer_what_exists():
    widget = explore(RUNS)
    assert list(widget.selectors) == ["model", "task", "budget", "seed"]
    widget.selectors["model"].value = "pocket-t5"
    widget.selectors["task"].value = "pocket/number"
    widget.selectors["budget"].value = "2703"
    assert [value for _, value in widget.selectors["seed"].options] == ["0", "1", "2", "3", "4", "average"]
    widget.selectors["seed"].value = "3"
    wanted = s3pet.load_run(f"{RUNS}/pocket-t5/number/0.2/seed3")
    assert total(widget.map.data, "probability") == pytest.approx(wanted.gates["prob"].sum(), rel=1e-3)
    assert widget.n_params == 2703
    widget.selectors["model"].value = "pocket-t5-deep"  # whose searches have another budget, fewer seeds, more layers
    assert widget.selectors["task"].value == "pocket/number" and widget.selectors["seed"].value == "0"
    deep = s3pet.load_run(f"{RUNS}/pocket-t5-deep/number/0.05/seed0")
    assert total(widget.map.data, "probability") == pytest.approx(deep.gates["prob"].sum(), rel=1e-3)
    assert widget.layers.max == deep.gates["layer"].max() and widget.n_params == deep.budget.n_params


def test_average_over_seeds():
    results = [s3pet.load_run(path) for path in SEEDS]
    widget = explore(SEEDS)
    assert "frequency" not in widget.map.data["values"]
    widget.selectors["seed"].value = "average"
    data, average = widget.map.data, average_gates(results).gates
    assert total(data, "probability") == pytest.approx(average["prob"].sum(), rel=1e-3)
    widget.map.value = "frequency"
    assert data["values"]["frequency"]["limits"] == [0, 1] and widget.step.disabled
    for budget in (results[0].budget.n_params, 900):
        widget.budget.value = budget
        chosen = [set(result.structure(budget).names) for result in results]
        wanted = [np.mean([name in names for names in chosen]) for name in widget.search.names]
        np.testing.assert_allclose(widget.gates["frequency"], wanted)
        said = facts(widget.map.data, "chosen in").values()
        assert [int(text.split(" ")[0]) for text in said] == [round(3 * share) for share in wanted]
    spread = np.std([result.gates["prob"] for result in results], axis=0)
    assert total(data, "spread") == pytest.approx(spread.sum(), rel=1e-2)
    assert "mean of 3 searches" in data["title"]
    widget.selectors["seed"].value = "1"  # back to one search, which has no spread
    assert widget.map.value == "prob" and not widget.step.disabled


def test_results_that_share_task_and_seed_are_told_apart_by_name(run):
    widget = explore({"mine": run, "yours": s3pet.load_run(SEEDS[0])})
    assert "run" in widget.selectors
    assert [label for label, _ in widget.selectors["run"].options] == ["mine", "yours"]


def test_an_unreadable_run_is_said_and_the_map_stays(tmp_path):
    for name, path in (("a", SEEDS[0]), ("b", f"{RUNS}/pocket-t5/ending/0.2/seed0"), ("c", SEEDS[1])):
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "b" / "gates.parquet").write_bytes(b"PAR1")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("pocket/ending", "pocket/zany"), encoding="utf-8")
    widget = explore([tmp_path / "a", tmp_path / "b"])
    before = widget.map.data
    widget.selectors["task"].value = "pocket/zany"
    assert "b/gates.parquet cannot be read" in widget.message.value and widget.map.data is before
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
    widget.exporting.path.value = str(tmp_path / "map.html")
    widget.exporting.button.click()
    assert "wrote" in widget.message.value and widget.map.data["names"][0] in (tmp_path / "map.html").read_text("utf-8")
    widget.exporting.path.value = str(tmp_path / "map.docx")
    widget.exporting.button.click()
    assert "Expected a format out of" in widget.message.value
    with s3pet.plots.figure_style("paper"):
        assert widget.figure().get_figwidth() <= style().page + 0.2
    assert widget.figure().get_figwidth() > style().page / 2


def test_dark_stays_dark_after_the_block(run):
    with s3pet.plots.figure_style(dark=True) as dark:
        widget = explore(run)
    ground = tuple(int(dark.ground[i : i + 2], 16) for i in (1, 3, 5))
    widget._repr_mimebundle_()
    assert tuple(pixels(widget)[2, 2]) == ground
    assert style().ground == "white"
    assert {text.get_color() for text in widget.picture.figure.axes[1].get_yticklabels()} == {dark.ink}


def test_the_map_says_the_utility_for_the_task_that_is_shown(run):
    table = run.gates.drop(columns=["alpha", "prob", "chosen", "margin"]).assign(measure="solo", inert=False)
    table["utility"], table["utility_error"] = np.arange(len(table)) / 1000, 0.002
    other = table.assign(task="pocket/number", utility=-table["utility"])
    both = pd.concat([table.assign(task="pocket/sentiment"), other])
    widget = explore([f"{RUNS}/pocket-t5/{task}/0.2/seed0" for task in ("sentiment", "number", "ending")], utility=both)
    for task, value, place in (("sentiment", "+0.02", len(table) - 20), ("number", "-0.02", 21), ("ending", None, 0)):
        widget.selectors["task"].value = f"pocket/{task}"
        data = widget.map.data
        assert ("solo utility" in data["facts"]) == ("utility" in data["values"]) == bool(place)
        if place:
            said = facts(data, "solo utility")[widget.search.names[20]]
            assert said == f"{value} ± 0.002 nats, {place} of {len(table)}"
            assert data["values"]["utility"]["label"] == "solo utility (nats)"
            widget.map.value = "utility"
            assert widget.arguments["value"] == "utility" and "utility" in widget.gates
    assert widget.map.value == "prob"  # the last task has no utility
    with pytest.raises(StudyError, match="no column task"):
        explore(run, utility=table)
