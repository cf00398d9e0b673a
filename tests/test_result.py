"""Run folders: everything comes back, nothing finished is overwritten, files are plain JSON and parquet."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_t5
from toy import toy_task

from s3pet import load_run, make_space, search
from s3pet.errors import BudgetError, RunError
from s3pet.files.states import load_state, save_state
from s3pet.files.writing import write_json
from s3pet.records import Cost

QUIET = {"progress": False, "batch_size": 16}


def test_a_run_folder_holds_everything(tmp_path):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed", keep_inert=True)
    options = {"budget": 300, "steps": 6, "out": tmp_path / "run", **QUIET}
    result = search(model, task, space, **options)
    again = load_run(tmp_path / "run")
    assert again.space == result.space
    assert again.gates.equals(result.gates.astype(again.gates.dtypes))
    assert again.config == result.config
    assert again.structure(500) == result.structure(500)
    columns = "site path stack layer role pet rank n_params alpha prob chosen margin".split()
    assert set(columns) <= set(again.gates)
    table = again.gates
    assert table.n_params[table.chosen].sum() == result.structure().n_params <= 300
    assert float((table.prob * table.n_params).sum()) == pytest.approx(300, rel=1e-5)
    with pytest.raises(RunError, match="holds a finished run"):
        search(model, task, space, **options)
    search(model, task, space, overwrite=True, **options)
    with pytest.raises(RunError, match="holds no finished run"):
        load_run(tmp_path)


def test_gates_of_any_recorded_step_at_any_budget():
    model = tiny_t5()
    result = search(model, toy_task(), make_space(model, "mixed"), budget=300, steps=6, warmup=0, **QUIET)
    assert result.gates_at().equals(result.gates) and result.gates_at(6).equals(result.gates)
    assert result.gates_at(0).prob.nunique() == 1
    table = result.gates_at(4, budget=500)
    probs = result.trajectory[result.trajectory.step == 4].prob.to_numpy()
    assert (table.prob.to_numpy() == probs).all() and table.alpha.nunique() > 1
    left, chosen = 500, set()
    for i in sorted(range(len(table)), key=lambda i: -probs[i]):  # the selection, by hand
        if table.n_params[i] <= left:
            left, chosen = left - table.n_params[i], chosen | {i}
    assert set(table.index[table.chosen]) == chosen
    assert float(table.margin[table.chosen].min()) == 0.0
    names = [c.name for c, is_chosen in zip(result.space, result.gates_at(budget=500).chosen, strict=True) if is_chosen]
    assert result.structure(500).names == tuple(names)
    with pytest.raises(RunError, match="step 7 was not recorded; recorded are 0, 1, 2, 3, 4, 5, 6"):
        result.gates_at(7)
    with pytest.raises(BudgetError, match="cheapest candidate"):
        result.gates_at(budget=1)


def test_json_never_holds_nan(tmp_path):
    record = {"a": math.nan, "b": [1.0, math.inf, {"c": -math.inf}], "d": "NaN", "e": (2, None)}
    write_json(record, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    again = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert again == {"a": None, "b": [1.0, None, {"c": None}], "d": "NaN", "e": [2, None]}


def test_a_state_comes_back_and_names_what_differs(tmp_path):
    config = {"seed": 0, "lr": 3e-3, "versions": {"torch": "1"}}
    tensors = {"alpha": torch.arange(3.0)}
    assert load_state(tmp_path, config, tensors) is None
    save_state(tmp_path, config, tensors, {"step": 4})
    again, rest = load_state(tmp_path, config | {"versions": {"torch": "2"}}, tensors)
    assert torch.equal(again["alpha"], tensors["alpha"]) and rest == {"step": 4}
    with pytest.raises(RunError, match=r"other settings \(seed 0 → 1, order None → 'first'\)"):
        load_state(tmp_path, {"seed": 1, "lr": 3e-3, "order": "first"}, tensors)
    assert load_state(tmp_path, {"seed": 1}, tensors, overwrite=True) is None
    with pytest.raises(RunError, match="alpha has another shape"):
        load_state(tmp_path, config, {"alpha": torch.zeros(4)})


@pytest.mark.parametrize("damage", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"not a tensor file at all"])
def test_a_damaged_state_is_named(tmp_path, damage):
    (tmp_path / "state.safetensors").write_bytes(damage)
    with pytest.raises(RunError, match="cannot be read"):
        load_state(tmp_path, {}, {})
    save_file({"alpha": torch.zeros(1)}, tmp_path / "state.safetensors")  # of another program
    with pytest.raises(RunError, match="cannot be read"):
        load_state(tmp_path, {}, {})


def test_the_cost_of_an_early_version_is_read():
    cost = Cost.of({"passes": 600, "seconds": 20.25})
    assert (cost.passes, cost.seconds, cost.peak_memory) == (600, 20.25, None)
    assert str(cost) == "600 passes, 20.2 s"
    assert str(Cost(2, 16, 4, 1.0, 2_000_000)) == "2 passes, 16 rows, 4 rows scored, 1.0 s, peak 2 MB"
    assert Cost.of({"cost": cost.to_dict()}) == cost
