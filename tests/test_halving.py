"""Alternatives to a cut, and successive halving: what is tried, what is kept, what is never looked at."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny import tiny_t5
from toy import easy_task, toy_task

from s3pet import Rule, SearchResult, halving, make_space, manual_structure, random_structure, retrain
from s3pet.backbones import backbone_checksum
from s3pet.cost import Cost
from s3pet.errors import BudgetError, SearchError
from s3pet.halving import alternatives, successive_halving
from s3pet.objective import Objective
from s3pet.runs import gate_table
from s3pet.structure import select_structure

SHORT = {"batch_size": 8, "max_length": 16}


def result_of(space, probs, budget):
    probs = torch.as_tensor(probs, dtype=torch.float64)
    empty = pd.DataFrame()
    return SearchResult(space, {"budget": budget}, gate_table(space, probs.logit(), probs, budget), empty, empty)


@pytest.fixture(scope="module")
def searched():
    space = make_space(tiny_t5())
    probs = torch.rand(len(space), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return result_of(space, probs, 300)


def test_the_cut_comes_first_and_the_least_sure_choices_are_exchanged_first(searched):
    found = alternatives(searched, 12)
    assert found[0].names == searched.structure().names
    assert len({structure.names for structure in found}) == 12
    assert all(structure.n_params <= 300 and structure.budget == 300 for structure in found)
    cut = found[0]
    weakest = min(zip(cut.probs, cut.names, strict=True))[1]
    left = torch.tensor([-1.0 if c.name == weakest else p for c, p in zip(searched.space, searched.probs, strict=True)])
    assert found[1].names == select_structure(searched.space, left, 300).names
    given_up = [sum(p for p, name in zip(cut.probs, cut.names, strict=True) if name not in s.names) for s in found]
    assert given_up[0] == 0 < given_up[1]
    assert found[0].origin["without"] == 0 and found[1].origin["without"] == 1
    again = alternatives(searched, 5)
    assert [structure.names for structure in again] == [structure.names for structure in found[:5]]


def test_other_budgets_and_probabilities_per_parameter(searched):
    for budget, per_param in ((150, False), (300, True)):
        first, *_ = alternatives(searched, 3, budget, per_param=per_param)
        assert first.names == searched.structure(budget, per_param=per_param).names


def test_every_way_to_fill_the_budget_is_found_when_all_are_asked_for():
    space = make_space(tiny_t5(), [Rule("bitfit", roles=("attn.q",))])
    assert len({candidate.n_params for candidate in space}) == 1, "all cost the same"
    n, cost = len(space), space.candidates[0].n_params
    found = alternatives(result_of(space, torch.linspace(0.2, 0.9, n), 2 * cost), 1000)
    assert {structure.names for structure in found} == {
        select_structure(space, torch.tensor([float(i in pair) for i in range(n)]), 2 * cost).names
        for pair in ((i, j) for i in range(n) for j in range(i))
    }
    only = alternatives(result_of(space, torch.linspace(0.2, 0.9, n), n * cost), 5)
    assert len(only) == 1, "when all fit there is no other"


def test_halves_are_kept_and_every_training_is_paid(monkeypatch):
    model, task = tiny_t5(), toy_task()
    space, checksum = make_space(model), backbone_checksum(model)
    structures = [random_structure(space, 300, seed=seed) for seed in range(5)]
    looked_at = []
    real = Objective.evaluate
    monkeypatch.setattr(Objective, "evaluate", lambda self, *given: looked_at.append(given[0]) or real(self, *given))
    found = successive_halving(model, task, [*structures, structures[0]], steps=[2, 3, 4], seed=1, lr=1e-2, **SHORT)
    table = found.table
    rungs = table.groupby("rung")["kept"]
    assert rungs.size().tolist() == [5, 3, 2] and rungs.sum().tolist() == [3, 2, 1]
    for (_, rows), (_, after) in pairwise(table.groupby("rung")):
        assert rows.loc[rows["kept"], "validation"].min() >= rows.loc[~rows["kept"], "validation"].max()
        assert set(rows.loc[rows["kept"], "index"]) == set(after["index"])
    assert found.structure == structures[table.iloc[-2:].query("kept")["index"].item()]
    assert found.cost.passes == 5 * 2 + 3 * 3 + 2 * 4 and found.cost.rows == 8 * found.cost.passes
    assert all(rows is task.validation for rows in looked_at)
    assert found.cost.scored == len(looked_at) * len(task.validation)
    assert backbone_checksum(model) == checksum
    last = table.iloc[-1]
    tuned = retrain(model, task, structures[last["index"]], steps=4, seed=1, lr=1e-2, evaluations=1, **SHORT)
    assert tuned.metrics["validation"] == last["validation"]


def test_what_learns_is_kept_and_of_equals_the_earlier(monkeypatch):
    model = tiny_t5(std=0.15)
    structures = [manual_structure(model, name) for name in ("bitfit", "lora_all")]
    found = successive_halving(model, easy_task(), structures, steps=[60], lr=1e-2, batch_size=16)
    assert found.table["validation"][1] > found.table["validation"][0] + 0.1
    assert found.structure == structures[1]
    equal = SimpleNamespace(metrics={"validation": 0.5}, cost=Cost())
    monkeypatch.setattr(halving, "retrain", lambda *args, **options: equal)
    space = make_space(model)
    several = [random_structure(space, 300, seed=seed) for seed in range(6)]
    assert successive_halving(model, easy_task(), several, steps=[1, 1, 1]).structure == several[0]
    scores = iter([math.nan, 0.1, 0.2, math.nan, 0.2, 0.3])
    monkeypatch.setattr(
        halving, "retrain", lambda *args, **options: SimpleNamespace(metrics={"validation": next(scores)}, cost=Cost())
    )
    assert successive_halving(model, easy_task(), several, steps=[1]).structure == several[5]


def test_one_structure_needs_no_training():
    model = tiny_t5()
    structure = manual_structure(model, "lnfit")
    found = successive_halving(model, toy_task(), [structure, structure])
    assert found.structure == structure and found.cost == Cost() and len(found.table) == 0
    assert list(found.table) == ["rung", "steps", "index", "n_params", "validation", "kept"]


@pytest.mark.parametrize(("structures", "steps"), [(0, [5]), (1, []), (2, [5, 0])])
def test_what_cannot_be_halved(structures, steps, searched):
    with pytest.raises(SearchError, match="expected at least one of each"):
        successive_halving(tiny_t5(), toy_task(), alternatives(searched, 2)[:structures], steps=steps)
    with pytest.raises(SearchError, match="n ≥ 1"):
        alternatives(searched, 0)
    with pytest.raises(BudgetError):
        alternatives(searched, 2, 1)


def test_costs_add_up():
    assert Cost(1, 2, 3, 4.0, 50) + Cost(10, 20, 30, 40.0) == Cost(11, 22, 33, 44.0, 50)
    assert (Cost(peak_memory=5) + Cost(peak_memory=7)).peak_memory == 7
