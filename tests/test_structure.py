"""Structures: selection against brute force, baselines that end and fill, files that are checked."""

import json

import pytest
import torch
from tiny import meta_t5, tiny_bert, tiny_llama, tiny_t5

from s3pet import Structure, make_space, manual_structure, random_structure, select_structure
from s3pet.errors import BudgetError, SpaceError, StructureMismatchError
from s3pet.structure import select_mask


def test_select_takes_skips_and_fills():
    probs = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    costs = torch.tensor([5.0, 6, 3, 2, 1])
    assert select_mask(probs, costs, 10).tolist() == [True, False, True, True, False]


def test_select_breaks_ties_by_order():
    assert select_mask(torch.full((4,), 0.5), torch.ones(4), 2).tolist() == [True, True, False, False]


@pytest.mark.parametrize("seed", range(20))
def test_select_never_exceeds_the_budget_and_leaves_nothing_that_fits(seed):
    generator = torch.Generator().manual_seed(seed)
    probs, costs = torch.rand(30, generator=generator), torch.randint(1, 40, (30,), generator=generator).double()
    budget = int(torch.randint(1, 300, (1,), generator=generator))
    mask = select_mask(probs, costs, budget)
    left = budget - float(costs[mask].sum())
    assert left >= 0
    assert not bool((costs[~mask] <= left).any())


@pytest.mark.parametrize("seed", range(10))
def test_random_structures_fill_the_budget(seed):
    space = make_space(meta_t5("small"), "mixed", keep_inert=True)
    structure = random_structure(space, "1.39‱", seed=seed)
    left = 8410 - structure.n_params
    assert left >= 0
    taken = set(structure.names)
    assert all(candidate.n_params > left for candidate in space if candidate.name not in taken)
    assert structure.names == random_structure(space, "1.39‱", seed=seed).names
    assert structure.names != random_structure(space, "1.39‱", seed=seed + 1).names


def test_random_structures_fill_like_the_paper_s():
    space = make_space(meta_t5("small"), "mixed", keep_inert=True)
    fills = [random_structure(space, "1.39‱", seed=seed).n_params / 8410 for seed in range(200)]
    assert sum(fills) / 200 == pytest.approx(0.979, abs=0.01)  # the authors' baseline fills 97.9 %


def test_random_ends_where_only_taken_candidates_would_fit():
    space = make_space(tiny_t5(), "mixed")
    assert random_structure(space, space.n_params, seed=0).n_params == space.n_params


def test_manual_structures():
    space = make_space(tiny_t5(), "mixed")
    costs = {candidate.pet: 0 for candidate in space}
    for candidate in space:
        costs[candidate.pet] += candidate.n_params
    for name in ("bitfit", "lnfit", "lowrank_adapter"):
        assert manual_structure(space, name).n_params == costs[name]
    assert manual_structure(space, "lora_all").n_params == costs["lora"]
    assert {candidate.role for candidate in manual_structure(space, "lora_qv").candidates} == {"attn.q", "attn.v"}
    assert manual_structure(space, "all").n_params == space.n_params
    with pytest.raises(SpaceError, match="pass the model"):
        manual_structure(space, "adapter")
    assert manual_structure(tiny_t5(), "adapter").candidates[0].pet == "adapter"
    with pytest.raises(SpaceError, match="nearest: 'bitfit'"):
        manual_structure(space, "bitfitt")


def test_jaccard():
    space = make_space(tiny_t5(), "lora")
    first, second = (select_structure(space, probs, space.candidates[0].n_params * 4) for probs in
                     (torch.linspace(1, 0, len(space)), torch.linspace(0, 1, len(space))))  # fmt: skip
    assert first.jaccard(first) == 1
    assert first.jaccard(second) == 0
    assert Structure((), "x").jaccard(Structure((), "x")) == 1


def test_files_round_trip(tmp_path):
    model = tiny_t5()
    structure = random_structure(make_space(model, "mixed"), 500, seed=3)
    again = Structure.from_json(structure.to_json(tmp_path / "a" / "structure.json"), model)
    assert again == structure
    assert json.loads((tmp_path / "a" / "structure.json").read_text())["version"] == 1


def test_a_structure_for_another_model_names_the_mismatch(tmp_path):
    path = random_structure(make_space(tiny_t5(), "mixed"), 500).to_json(tmp_path / "s.json")
    for other in (tiny_bert(), tiny_llama(), meta_t5("small")):
        with pytest.raises(StructureMismatchError, match=r"does not fit this .*Load the backbone"):
            Structure.from_json(path, other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "s3pet-structure", "version": 99}', "not json"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(StructureMismatchError, match="is not a structure file"):
        Structure.from_json(tmp_path / "s.json")


def test_edited_costs_are_noticed(tmp_path):
    path = random_structure(make_space(tiny_t5(), "mixed"), 500).to_json(tmp_path / "s.json")
    record = json.loads(path.read_text())
    record["candidates"] = record["candidates"][1:]
    path.write_text(json.dumps(record))
    with pytest.raises(StructureMismatchError, match="parameters, holds"):
        Structure.from_json(path)


def test_a_budget_below_the_cheapest_candidate_is_refused():
    space = make_space(tiny_t5(), "mixed")
    with pytest.raises(BudgetError, match="the cheapest candidate costs"):
        random_structure(space, 2)
    with pytest.raises(BudgetError):
        select_mask(torch.ones(3), torch.ones(3), 0)
    with pytest.raises(BudgetError):
        select_mask(torch.ones(3), torch.ones(4), 5)
