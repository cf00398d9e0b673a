"""Several sizes of one module at a site: nested in a search, one in a structure, exact when retrained and exported."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from gate_tables import by_gid, legend_texts
from test_transfer import make_result
from tiny import meta_t5, tiny_batch, tiny_bert, tiny_t5
from toy import Cut, cut_at, short_task, toy_task
from tuned import tuned_at_random

from s3pet import (
    Structure,
    cli,
    from_peft,
    load_tuned,
    make_space,
    manual_structure,
    merge,
    plots,
    search,
    to_peft,
)
from s3pet.errors import BudgetError, RunError, SpaceError
from s3pet.modules import PETS
from s3pet.result import gate_table
from s3pet.searcher import Searcher, Settings
from s3pet.space import Rule
from s3pet.structure import by_gates, parse_budget, random_structure, select_by_gates, select_mask
from s3pet.studies.racing import proposals
from s3pet.studies.selectors import covered_structure, depth_structure, sampled_structure, sensitive_structure
from s3pet.supernet import Supernet
from s3pet.transfer import agreement, average_gates, retarget_gates

RANKS = {"pet": "lora", "ranks": [1, 2, 4, 8]}
RULES = [RANKS, {"pet": "adapter", "ranks": [2, 5]}, {"pet": "bitfit"}, {"pet": "lowrank_adapter", "ranks": [1, 2]}]


@pytest.fixture(scope="module")
def space():
    return make_space(tiny_t5(), RULES)


def is_exclusive(structure):
    return len({(c.site, c.pet) for c in structure}) == len(structure)


# -- nested in the supernet


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
@torch.no_grad()
def test_gates_of_shared_tensors_give_what_separate_modules_would(make_model):
    """h + Σ z_k δ_k, where module k has the first r_k rows and columns; one-hot gates give the plain module."""
    model = make_model().double()
    space, batch = make_space(model, RULES), tiny_batch(model)
    supernet, apart = Supernet(model, space, nested=True), Supernet(model, space).double()
    flat = supernet.double().flatten().normal_(std=0.3)
    owned = supernet.tensors()
    largest = {(c.site, c.pet): c.name for c in sorted(space, key=lambda c: c.rank or 0)}
    cut = {}
    for c in space:
        axes = PETS[c.pet].size_axis
        for key in (key for key in apart.keys if key.partition("/")[0] == c.name):
            name = key.partition("/")[2]
            whole = owned[f"{largest[c.site, c.pet] if axes else c.name}/{name}"]
            cut[key] = whole.narrow(axes[name], 0, c.rank) if name in axes else whole
    apart.load(cut)
    kinds = {(c.pet, c.rank): n for n, c in enumerate(space)}  # one site of each
    one_hot = torch.eye(len(space), dtype=torch.float64)[[*kinds.values()]]
    for z in (torch.rand(len(space), dtype=torch.float64), *one_hot):
        with apart, apart.using(z):
            expected = model(**batch)[0]
        with supernet, supernet.using(z, flat):
            torch.testing.assert_close(model(**batch)[0], expected, rtol=1e-9, atol=1e-9)
    n_largest = sum(c.n_params for c in space if c.name == largest[c.site, c.pet] or not PETS[c.pet].size_axis)
    assert len(flat) == n_largest, "sizes share the tensors of the largest"


def test_a_gradient_through_one_size_reaches_the_others():
    model = tiny_t5()
    space, batch = make_space(model, [Rule("lora", roles="attn.q", ranks=(1, 4))]), tiny_batch(model)
    with Supernet(model, space, nested=True) as supernet:
        one = torch.tensor([float(c.rank == 1) for c in space])
        flat = supernet.flatten().requires_grad_()
        with supernet.using(one, flat):
            model(**batch)[0].square().mean().backward()
        assert set(supernet.keys) == {f"{c.name}/{name}" for c in space if c.rank == 4 for name in "AB"}
        n_b = sum(weight.numel() for key, weight in zip(supernet.keys, supernet.weights, strict=True) if key[-1] == "B")
        gradient = flat.grad[-n_b:].view(-1, 4)  # rows of all B; the columns are ranks
        assert gradient[:, 0].any() and not gradient[:, 1:].any()
        with torch.no_grad():
            plain = model(**batch)[0]
            flat -= 0.1 * flat.grad
            with supernet.using(1 - one, flat):
                assert not torch.equal(model(**batch)[0], plain), "rank 4 has what rank 1 learned"


def test_one_size_at_a_site_is_computed_as_without_sizes():
    """Bit for bit: the same tensors, the same order, the same products, the same choice."""
    model = tiny_t5()
    space, batch = make_space(model, "mixed"), tiny_batch(model)
    outputs, gates = [], torch.rand(len(space), generator=torch.Generator().manual_seed(2))
    for nested in (False, True):
        supernet = Supernet(model, space, seed=3, nested=nested)
        flat = supernet.flatten().normal_(generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), supernet, supernet.using(gates, flat):
            outputs.append((supernet.keys, flat, model(**batch)[0]))
        assert not supernet.is_nested
    (keys, flat, logits), (others, other_flat, other_logits) = outputs
    assert keys == others and torch.equal(flat, other_flat) and torch.equal(logits, other_logits)
    assert torch.equal(by_gates(space, gates), gates)
    for budget in (100, 400, 3000):
        assert torch.equal(select_by_gates(space, gates, budget), select_mask(gates, space.costs, budget))


# -- one size of a group


@pytest.mark.parametrize("seed", range(20))
def test_of_a_group_one_is_chosen_and_nothing_else_fits(seed):
    generator = torch.Generator().manual_seed(seed)
    probs, costs = torch.rand(30, generator=generator), torch.randint(1, 40, (30,), generator=generator).double()
    groups, budget = torch.randint(9, (30,), generator=generator), int(torch.randint(1, 200, (1,), generator=generator))
    mask = select_mask(probs, costs, budget, groups)
    left = budget - float(costs[mask].sum())
    assert left >= 0 and len(set(groups[mask].tolist())) == int(mask.sum())
    for index in range(30):
        there = float(costs[mask & (groups == groups[index])].sum())
        assert costs[index] <= there or costs[index] - there > left
    assert torch.equal(select_mask(probs, costs, budget, torch.arange(30)), select_mask(probs, costs, budget))
    with pytest.raises(BudgetError, match="groups"):
        select_mask(probs, costs, budget, groups[:3])


def test_a_size_is_ranked_with_the_larger_ones():
    rule = {"pet": "lora", "roles": "attn.q", "stacks": "encoder"}
    space = make_space(tiny_t5(), [rule | {"ranks": [1, 4]}])  # 64 and 256 parameters, in two layers
    probs = torch.tensor([0.5, 0.49, 0.45, 0.01], dtype=torch.float64)
    expected = [1 - 0.5 * 0.51, 0.49, 1 - 0.55 * 0.99, 0.01]
    assert by_gates(space, probs).tolist() == pytest.approx(expected)
    for budget, chosen in ((64, [0]), (255, [0, 2]), (256, [1]), (320, [1, 2]), (512, [1, 3])):
        assert select_by_gates(space, probs, budget).nonzero().flatten().tolist() == chosen, budget
    finer = make_space(tiny_t5(), [rule | {"ranks": [1, 2, 4]}])  # rank 4 is named as two, open as often as it was
    half = 1 - 0.51**0.5
    split = torch.tensor([0.5, half, half, 0.45, 0.005, 0.005], dtype=torch.float64)
    assert by_gates(finer, split)[0] == pytest.approx(expected[0])


def test_every_selection_takes_one_size(space):
    model, result = tiny_t5(), make_result(space)
    budget = space.n_params // 6
    shallow, deep = make_space(tiny_t5(), RULES), make_space(meta_t5("small"), RULES)
    chosen = {
        "search": result.structure(),
        "average": average_gates([result, make_result(space, 1)]).structure(),
        "carried": retarget_gates(result, deep, budget="0.5%").structure(),
        "random": random_structure(space, budget, seed=1),
        "whole": random_structure(space, space.n_params, seed=2),
        "all": manual_structure(space, "all"),
        "lora_all": manual_structure(space, "lora_all"),
        "covered": covered_structure(space, budget, seed=1),
        "uniform": depth_structure(space, budget, "uniform"),
        "top": depth_structure(space, budget, "top"),
        "sampled": sampled_structure(result, budget, seed=1),
        "sensitive": sensitive_structure(model, short_task(), space, budget, batches=1, batch_size=2),
        "moved": random_structure(deep, "0.1%", seed=3).retarget(shallow),  # three layers fall on one
        **proposals([result], budget, 6),
    }
    for name, structure in chosen.items():
        assert len(structure) and is_exclusive(structure), name
    assert chosen["moved"].origin["dropped"] or chosen["moved"].origin["merged"]
    assert {c.rank for c in chosen["lora_all"]} == {8} and {c.rank for c in chosen["uniform"]} <= {1, 2, None}
    assert chosen["whole"].names == chosen["all"].names, "a larger size replaces a smaller one while it fits"
    pairs = agreement([result, make_result(space, 1)], draws=20)
    assert pairs["jaccard"].between(0, 1).all() and pairs["jaccard_chance"].between(0, 1).all()


def test_a_file_with_two_sizes_at_a_site_still_loads(space, tmp_path):
    model = tiny_t5()
    both = Structure(tuple(c for c in space if c.pet == "lora" and c.rank in (1, 4)), space.model_id)
    again = Structure.from_json(both.to_json(tmp_path / "s.json"), model)
    assert again == both and not is_exclusive(again)
    assert sum(weight.numel() for weight in Supernet(model, again).weights) == both.n_params


# -- searches


@pytest.mark.parametrize("order", ["first", "unrolled", "unrolled_exact"])
def test_a_search_meets_the_budget_and_chooses_one_size(order):
    model = tiny_t5(attn_implementation="eager")
    space = make_space(model, RULES)
    result = search(model, toy_task(), space, budget=900, steps=3, order=order, batch_size=4, progress=False)
    gates = result.gates
    assert (gates["prob"] * gates["n_params"]).sum() == pytest.approx(900, abs=0.01)
    assert gates["alpha"].ne(0).all() and result.config["sizes"] == "nested"
    structure = result.structure()
    assert is_exclusive(structure) and structure.n_params <= 900
    assert structure.names == tuple(np.array(space.names)[gates["chosen"]])
    assert float(gates.loc[gates["chosen"], "margin"].min()) == 0


def test_an_unfinished_search_continues_bit_for_bit(tmp_path):
    model, task = tiny_bert(), short_task()
    space = make_space(model, [RANKS])
    options = {"budget": 500, "steps": 12, "batch_size": 4, "progress": False}
    whole = search(model, task, space, **options)
    with pytest.raises(Cut):
        search(model, task, space, out=tmp_path, callbacks=[cut_at(11)], **options)
    steps = []
    rest = search(model, task, space, out=tmp_path, callbacks=[lambda s: steps.append(s.step)], **options)
    assert steps[0] == 11 and rest.gates.equals(whole.gates) and rest.history.equals(whole.history)


def test_a_state_of_an_earlier_version_is_refused_by_name(tmp_path):
    model, task = tiny_bert(), short_task()
    space = make_space(model, [RANKS])
    searcher = Searcher(model, task, space, parse_budget(space, 500), Settings(steps=3))
    searcher.save(tmp_path / "checkpoint", {"budget": 500})
    with pytest.raises(RunError, match="None → 'nested'"):
        searcher.load(tmp_path / "checkpoint", {"budget": 500, "sizes": "nested"})


def test_a_budget_above_the_largest_sizes_is_refused():
    model = tiny_bert()
    space = make_space(model, [RANKS])
    most = manual_structure(space, "all").n_params
    assert most < space.n_params
    with pytest.raises(BudgetError, match=f"between 0 and the {most:,} parameters"):
        search(model, short_task(), space, budget=most, steps=2, progress=False)


# -- from a choice to a file


def test_what_was_chosen_is_retrained_saved_merged_and_exported(tmp_path):
    model = tiny_t5()
    space = make_space(model, [RANKS])
    probs = torch.rand(len(space), generator=torch.Generator().manual_seed(0)).double() * 0.3
    structure = replace(make_result(space), gates=gate_table(space, probs.logit(), probs, 2000)).structure(2000)
    assert len({c.rank for c in structure}) > 1 and is_exclusive(structure)
    tuned, batch = tuned_at_random(model, structure), tiny_batch(model)
    with torch.no_grad():
        expected = tuned.model(**batch)[0]
        loaded = load_tuned(tuned.save(tmp_path / "tuned"), model, tuned.task).model(**batch)[0]
        to_peft(tuned, tmp_path / "peft")
        adapter = from_peft(tmp_path / "peft", tiny_t5())
        outputs = [merge(tuned).model(**batch)[0], adapter.supernet(**batch)[0]]
    assert torch.equal(loaded, expected) and adapter.structure.names == structure.names
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    ranks = {c.path: c.rank for c in structure}
    assert {path: config["rank_pattern"].get(path, config["r"]) for path in config["target_modules"]} == ranks


# -- shown


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
def test_maps_name_the_rank_in_the_cell(make_model):
    space = make_space(make_model(), [RANKS, {"pet": "bitfit"}])
    result = make_result(space)
    gates = result.gates
    ax = plots.plot_gates(result)
    sites = gates[gates["pet"].eq("lora")].groupby("site", sort=False)
    texts = {tuple(text.get_position()): text.get_text() for text in by_gid(ax, "rank")}
    cells = plots.gate_cells(gates).set_index(["role", "pet", "stack", "column"])
    assert len(texts) == sites.ngroups == cells["rank"].ne("").sum()
    for _, own in sites:
        row = own.iloc[0]
        chosen = own[own["chosen"]] if own["chosen"].any() else own.nlargest(1, "prob")
        cell = cells.loc[(row["role"], "lora", row["stack"], str(row["layer"]))]
        assert texts[cell["x"], cell["y"]] == str(chosen["rank"].item())
        assert cell["value"] == own["prob"].max() and cell["chosen"] == own["chosen"].any()
    assert "rank that was chosen, else the most probable" in legend_texts(ax)
    structure = result.structure()
    for context in (None, space):
        ax = plots.plot_structure(structure, space=context)
        ranks = sorted(int(text.get_text()) for text in by_gid(ax, "rank"))
        assert ranks == sorted(c.rank for c in structure if c.pet == "lora")
    plt.close("all")
    assert not by_gid(plots.plot_gates(make_result(make_space(make_model(), "mixed"))), "rank")


def test_a_difference_of_ranks_is_told():
    space = make_space(tiny_t5(), [RANKS])
    tables = [make_result(space, seed).gates.assign(chosen=False) for seed in (0, 1)]
    for table, rank in zip(tables, (1, 4), strict=True):
        table.loc[(table["site"] == "encoder.0.attn.q") & (table["rank"] == rank), "chosen"] = True
        table.loc[(table["site"] == "encoder.1.attn.v") & (table["rank"] == 2), "chosen"] = True
    tables[0].loc[(tables[0]["site"] == "encoder.1.attn.q") & (tables[0]["rank"] == 8), "chosen"] = True
    ax = plots.plot_difference(*tables)
    assert sorted(text.get_text() for text in by_gid(ax, "rank")) == ["1/4", "2"]
    assert {"chosen by both: 2", "chosen by the first only: 1", "chosen by the second only: 0"} <= {*legend_texts(ax)}
    highest = [table.groupby(["site", "pet"], sort=False)["prob"].max().to_numpy() for table in tables]
    np.testing.assert_allclose(by_gid(ax, "gates")[0].get_array(), highest[0] - highest[1])
    assert len(plots.plot_gate_panels({"one": tables[0], "two": tables[1]})) == 2


def test_words_and_tables_name_the_rank():
    space = make_space(tiny_t5(), [RANKS])
    result = make_result(space)
    gates, structure = result.gates, result.structure()
    assert set(structure.table()["rank"]) == set(gates.loc[gates["chosen"], "rank"])
    text = plots.describe(result)
    rank, n = structure.table()["rank"].value_counts().sort_index().reset_index().iloc[0]
    best = gates.loc[gates["prob"].idxmax()]
    assert f"Ranks of LoRA: {rank} at {n} site" in text and f"{best['site']} lora:{best['rank']} " in text
    one = structure.candidates[0]
    other = next(c for c in space if c.site == one.site and c.rank != one.rank)
    assert plots.candidate_facts(gates, other.name)["chosen"] == f"no, but with rank {one.rank}"
    shown = plots.gate_cells(gates)
    drawn = shown.loc[shown["chosen"], "value"].min()
    assert f"cut {drawn:.3g}" in text
    assert plots.polarisation(result)["cut"] == gates.loc[gates["chosen"], "prob"].min()


def test_the_command_line_reads_rules():
    assert cli._rules("mixed") == "mixed" and cli._rules(json.dumps([RANKS])) == [RANKS]
    with pytest.raises(SpaceError, match="is not JSON"):
        cli._rules("[{'pet': 'lora'}]")
