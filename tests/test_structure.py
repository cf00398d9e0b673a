"""Structures: selection against brute force, baselines that end and fill, files that are checked."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import meta_t5, tiny_bert, tiny_llama, tiny_t5
from zoo import zoo_model

from s3pet import Structure, attach, load_backbone, make_space, manual_structure, random_structure
from s3pet.errors import BudgetError, SpaceError, StructureMismatchError
from s3pet.structure import select_mask, select_structure
from s3pet.studies.selectors import depth_structure


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


@pytest.fixture
def edited(tmp_path):
    """A function that writes a structure file with one candidate changed, and gives its path."""
    path = random_structure(make_space(tiny_t5(), "mixed"), 500, seed=1).to_json(tmp_path / "s.json")
    record = json.loads(path.read_text())

    def write(**changes):
        changed = json.loads(json.dumps(record))
        changed["candidates"][0] |= changes
        changed["n_params"] = sum(candidate["n_params"] for candidate in changed["candidates"])
        path.write_text(json.dumps(changed))
        return path

    return write


def test_files_with_a_candidate_twice_are_refused(edited):
    second = json.loads(edited().read_text())["candidates"][1]
    with pytest.raises(StructureMismatchError, match=rf"s\.json is not a .*: it holds {second['site']}:.* twice"):
        Structure.from_json(edited(**second))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_params": 1}, r"with 1 parameters; 32→32 needs \d+"),
        ({"d_out": 33}, r"parameters; 32→33 needs \d+"),
        ({"pet": "prefix", "rank": None}, "prefix with .* no known number"),
        ({"rank": 0}, "rank is 0; expected a whole number from 1"),
        ({"d_in": -32}, "d_in is -32; expected a whole number from 1"),
        ({"rank": None, "d_in": None}, "is not a structure file"),
        ({"layer": [1]}, "is not a structure file"),
    ],
)
def test_files_with_impossible_candidates_are_refused(edited, changes, message):
    with pytest.raises(StructureMismatchError, match=message):
        Structure.from_json(edited(**changes))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_probabilities_are_finite(tmp_path, number):
    structure, _ = chosen_by(make_space(tiny_t5(), "mixed"))
    with pytest.raises(StructureMismatchError, match="1 of them not finite; give one each, or None"):
        replace(structure, probs=(number, *structure.probs[1:]))
    path = structure.to_json(tmp_path / "s.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"probs": [number, *record["probs"][1:]]}))
    with pytest.raises(StructureMismatchError, match=r"s\.json is not a structure file .* is not a finite number"):
        Structure.from_json(path)


def test_files_are_strict_json(tmp_path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    origin = {"kind": "searched", "score": float("nan"), "more": [{"low": float("-inf"), "n": 3}], "pair": (0.5, None)}
    structure = replace(random_structure(make_space(tiny_t5(), "mixed"), 500), origin=origin)
    record = json.loads(structure.to_json(tmp_path / "s.json").read_text(), parse_constant=refuse)
    assert record["origin"] == {"kind": "searched", "score": None, "more": [{"low": None, "n": 3}], "pair": [0.5, None]}


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    space, path = make_space(tiny_t5(), "mixed"), tmp_path / "s.json"
    old, new = random_structure(space, 500, seed=1), random_structure(space, 500, seed=2)
    old.to_json(path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        new.to_json(path)
    assert Structure.from_json(path).names == old.names
    monkeypatch.undo()
    with pytest.raises(TypeError):
        replace(new, origin={"what": object()}).to_json(path)
    assert Structure.from_json(path).names == old.names
    new.to_json(path)
    assert Structure.from_json(path).names == new.names and [file.name for file in tmp_path.iterdir()] == ["s.json"]


def test_a_budget_below_the_cheapest_candidate_is_refused():
    space = make_space(tiny_t5(), "mixed")
    with pytest.raises(BudgetError, match="the cheapest candidate costs"):
        random_structure(space, 2)
    with pytest.raises(BudgetError):
        select_mask(torch.ones(3), torch.ones(3), 0)
    with pytest.raises(BudgetError):
        select_mask(torch.ones(3), torch.ones(4), 5)


@pytest.fixture(scope="module")
def pockets():
    """Two embedded backbones, 4 and 6 layers, 128 and 96 wide, each with its mixed space."""
    models = [load_backbone(name)[0] for name in ("pocket-t5", "pocket-t5-deep")]
    return [(model, make_space(model, "mixed")) for model in models]


def chosen_by(space, seed=0, share=0.2):
    probs = torch.rand(len(space), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return select_structure(space, probs, share * space.n_params / space.backbone_params), probs


def pick(space, layers, role="attn.q", pet="lora", stack="encoder"):
    """One kind of candidate on these layers, the more probable the earlier it is listed."""
    wanted = {f"{stack}.{layer}.{role}": 1 - at / 100 for at, layer in enumerate(layers)}
    probs = torch.tensor([wanted.get(c.site, 0.0) if c.pet == pet else 0.0 for c in space])
    return select_structure(space, probs, sum(c.n_params for c, p in zip(space, probs, strict=True) if p))


def test_structures_know_the_probabilities_and_depths_they_were_chosen_by(tmp_path):
    model = tiny_t5()
    space = make_space(model, "mixed")
    structure, probs = chosen_by(space)
    known = {candidate.name: float(prob) for candidate, prob in zip(space, probs, strict=True)}
    assert structure.probs == tuple(known[name] for name in structure.names)
    assert structure.layers == {"encoder": 2, "decoder": 2}
    again = Structure.from_json(structure.to_json(tmp_path / "s.json"))
    assert (again, again.probs, again.layers) == (structure, structure.probs, structure.layers)
    assert random_structure(space, 500).probs is None and manual_structure(space, "bitfit").probs is None
    assert replace(structure, probs=None, layers=None) == structure  # what was chosen, not how
    with pytest.raises(StructureMismatchError, match=r"1 probabilities for \d+ candidates, .*; give one each"):
        replace(structure, probs=(0.5,))


def test_files_without_probabilities_load_and_bad_ones_are_refused(tmp_path):
    model = tiny_t5()
    structure, _ = chosen_by(make_space(model, "mixed"))
    path = structure.to_json(tmp_path / "s.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in record.items() if key not in ("probs", "layers", "hash")}))
    old = Structure.from_json(path)
    assert old == structure and old.probs is None and old.layers is None
    assert Structure.from_json(path, model).layers == structure.layers
    for key, value, says in (
        ("probs", record["probs"][1:], r"s\.json is not .* \d+ probabilities for \d+ candidates"),
        ("probs", [None] * len(structure), "is not a structure file"),
        ("layers", [2, 2], "is not a structure file"),
    ):
        path.write_text(json.dumps(record | {key: value}))
        with pytest.raises(StructureMismatchError, match=says):
            Structure.from_json(path)


@pytest.mark.parametrize("by", ["name", "relative_depth"])
@pytest.mark.parametrize("seed", range(3))
def test_retargeting_to_itself_is_the_identity(pockets, by, seed):
    for _, space in pockets:
        for structure in (chosen_by(space, seed)[0], random_structure(space, 2000, seed=seed)):
            again = structure.retarget(space, by=by)
            assert (again.candidates, again.probs, again.layers) == (
                structure.candidates,
                structure.probs,
                structure.layers,
            )
            assert (again.model_id, again.space, again.budget) == (space.model_id, space.name, structure.budget)
            assert again.origin["kind"] == structure.origin["kind"]
            assert all(again.origin[key] == [] for key in ("unplaced", "merged", "dropped"))


def test_retargeting_follows_relative_depth(pockets):
    (_, shallow), (_, deep) = pockets
    for role in ("attn.q", "ffn.norm"):
        pet = "lora" if role == "attn.q" else "lnfit"
        for first, second, table in (
            (shallow, deep, {0: 0, 1: 2, 2: 3, 3: 5}),  # 5/3 and 10/3 of the deeper layers
            (deep, shallow, {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3}),  # 0.6, 1.2, 1.8, 2.4
        ):
            for layer, there in table.items():
                moved = pick(first, [layer], role, pet).retarget(second)
                assert moved.names[0].startswith(f"encoder.{there}.{role}:{pet}") and len(moved) == 1
    final = next(c for c in shallow if c.site == "decoder.final.norm" and c.pet == "lnfit")
    moved = Structure((final,), shallow.model_id, layers={"encoder": 4, "decoder": 4}).retarget(deep)
    assert moved.sites == ("decoder.final.norm",) and moved.candidates[0].d_in == 96


def test_the_shallower_of_two_equally_near_layers_is_taken():
    space = make_space(meta_t5("small"), "lora")  # 6 layers
    one = replace(pick(space, [1]), layers={"encoder": 3, "decoder": 3})  # its middle lies at 2.5
    assert one.retarget(space).candidates[0].layer == 2


def test_what_falls_on_one_layer_is_merged_with_the_larger_probability(pockets):
    (_, shallow), (_, deep) = pockets
    structure = pick(deep, [2, 1, 5])  # the second layer is less probable than the third
    moved = structure.retarget(shallow)
    assert moved.names == ("encoder.1.attn.q:lora:1", "encoder.3.attn.q:lora:1")
    assert moved.probs == pytest.approx([1.0, 0.98])
    assert moved.origin["merged"] == ["encoder.1.attn.q:lora:1"] and moved.origin["unplaced"] == []
    early = pick(deep, [0, 1, 2]).retarget(shallow)
    assert {c.layer for c in early.candidates} == {0, 1}  # stays in the first half


def test_retargeted_structures_fit_their_backbone_and_can_be_attached(pockets, tmp_path):
    for (_, space), (model, there) in (pockets, pockets[::-1]):
        structure, _ = chosen_by(space)
        for by in ("name", "relative_depth"):
            moved = structure.retarget(there, by=by)
            moved.check(model)
            names = [candidate.name for candidate in there]
            assert list(moved.names) == sorted(moved.names, key=names.index)
            assert len(moved) + len(moved.origin["merged"]) + len(moved.origin["unplaced"]) == len(structure)
            assert moved.model_id == there.model_id and moved.budget is None and len(moved.probs) == len(moved)
            assert moved.origin["kind"] == "selected" and moved.origin["from"] == space.model_id
            assert Structure.from_json(moved.to_json(tmp_path / "s.json"), model) == moved
            with attach(model, moved) as net:
                assert sum(p.numel() for p in net.parameters()) == moved.n_params
        with pytest.raises(StructureMismatchError):
            structure.check(model)


def test_a_budget_keeps_the_most_probable(pockets):
    (_, space), (_, there) = pockets
    structure, _ = chosen_by(space)
    whole = structure.retarget(there)
    half = whole.n_params // 2
    cut = structure.retarget(there, budget=half)
    probs = dict(zip(whole.names, whole.probs, strict=True))
    left, kept = half, []
    for candidate in sorted(whole.candidates, key=lambda c: -probs[c.name]):
        if candidate.n_params <= left:
            left, kept = left - candidate.n_params, [*kept, candidate.name]
    assert set(cut.names) == set(kept) and cut.n_params <= half == cut.budget
    assert cut.probs == tuple(probs[name] for name in cut.names)
    assert set(cut.origin["dropped"]) == set(whole.names) - set(kept)
    assert structure.retarget(there, budget=whole.n_params).names == whole.names
    blind = replace(structure, probs=None).retarget(there, budget=192 * 2)
    assert blind.probs is None and blind.names[0] == whole.names[0]  # the first ones in canonical order
    share = structure.n_params / space.backbone_params
    assert structure.retarget(there, budget=share).budget == int(share * there.backbone_params)
    cheapest = min(c.n_params for c in whole.candidates)
    with pytest.raises(BudgetError, match=rf"the cheapest candidate costs {cheapest:,}\. Take at least"):
        structure.retarget(there, budget=cheapest - 1)


def test_what_has_no_counterpart_is_named(pockets):
    (_, space), (model, there) = pockets
    structure = random_structure(space, 6000, seed=1)
    lora = make_space(model, "lora")
    moved = structure.retarget(lora)
    assert {name.split(":")[1] for name in moved.names} == {"lora"}
    assert moved.origin["unplaced"] == [c.name for c in structure.candidates if c.pet != "lora"]
    biases = manual_structure(space, "bitfit")
    with pytest.raises(
        StructureMismatchError, match=rf"no candidate \({biases.names[0]}, .*\) has a counterpart in Space"
    ):
        biases.retarget(lora)
    with pytest.raises(SpaceError, match="'depth' is not one of name, relative_depth"):
        structure.retarget(there, by="depth")
    unknown = replace(structure, layers=None)
    with pytest.raises(StructureMismatchError, match=r"how many layers 'pocket-t5' has.*from_json\(path, model\)"):
        unknown.retarget(there)
    assert unknown.retarget(there, by="name").n_params and unknown.retarget(space).names == structure.names
    assert len(Structure((), "x", layers={}).retarget(there, budget=500)) == 0


def test_lora_on_queries_and_values_of_a_fused_map_is_on_that_map():
    """Of GPT-2, GPT-NeoX, Falcon, MPT and Phi-3 one map computes queries, keys and values."""
    for name, role in (("gpt2", "attn.qkv"), ("gpt-neox", "attn.qkv"), ("falcon", "attn.qkv"), ("phi3", "attn.qkv")):
        model = zoo_model(name)
        structure = manual_structure(model, "lora_qv")
        assert {(c.role, c.pet) for c in structure} == {(role, "lora")} and len(structure) == 2
        assert structure.origin["fused"] == [role]
        assert manual_structure(make_space(model, "lora"), "lora_qv").names == structure.names
        even = depth_structure(make_space(model, "mixed"), structure.n_params, "uniform")
        assert set(even.names) == set(structure.names)
    plain = manual_structure(tiny_t5(), "lora_qv")
    assert {c.role for c in plain} == {"attn.q", "attn.v"} and "fused" not in plain.origin
    with pytest.raises(SpaceError, match=r"no candidate for 'lora_qv'; its lora is on mixer.in, mixer.out"):
        manual_structure(zoo_model("mamba"), "lora_qv")
