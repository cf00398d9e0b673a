"""Averages, differences, agreement with its chance level, and gates carried to another backbone."""

import numpy as np
import pytest
import torch
from tiny import meta_t5, tiny_t5

from s3pet import load_run, make_space, random_structure
from s3pet.errors import BudgetError, RunError
from s3pet.gates import shifted_sigmoid
from s3pet.result import SearchResult, gate_table
from s3pet.transfer import agreement, average_gates, gate_difference, retarget_gates


@pytest.fixture(scope="module")
def space():
    return make_space(tiny_t5(), "mixed")


def make_result(space, seed=0, budget=None, task="a", alpha=None):
    """A search as it would be on random gates."""
    budget = budget or space.n_params // 8
    if alpha is None:
        alpha = torch.tensor(np.random.default_rng(seed).normal(size=len(space)))
    probs = shifted_sigmoid(alpha, space.costs, budget)
    config = {"model": space.model_id, "backbone_params": space.backbone_params, "task": task, "seed": seed}
    config |= {"space": space.name, "budget": budget, "steps": 10}
    gates = gate_table(space, alpha, probs, budget)
    history = gates[[]].head(0)
    return SearchResult(space, config, gates, history, history)


def test_the_average_is_the_mean_and_is_cut_like_any_search(space, tmp_path):
    results = [make_result(space, seed) for seed in range(3)]
    average = average_gates(results)
    probs = np.stack([result.gates["prob"] for result in results])
    np.testing.assert_allclose(average.gates["prob"], probs.mean(0))
    np.testing.assert_allclose(average.gates["prob_spread"], probs.std(0))
    np.testing.assert_allclose(average.gates["frequency"], sum(result.gates["chosen"] for result in results) / 3)
    assert (average.gates["prob"] * average.gates["n_params"]).sum() == pytest.approx(average.budget.n_params)
    order = np.argsort(-probs.mean(0), kind="stable")
    assert average.gates["chosen"].iloc[order[0]]
    structure = average.structure()
    assert structure.n_params <= average.budget.n_params and structure.origin["kind"] == "searched"
    assert average.structure(budget=2 * average.budget.n_params).n_params > structure.n_params
    assert average.config["seed"] == ["0", "1", "2"] and average.config["task"] == "a"
    average.save(tmp_path / "average")
    assert load_run(tmp_path / "average").gates["frequency"].tolist() == average.gates["frequency"].tolist()


def test_the_average_of_one_search_is_that_search(space):
    result = make_result(space)
    average = average_gates([result])
    np.testing.assert_allclose(average.gates["prob"], result.gates["prob"])
    assert average.structure().names == result.structure().names


def test_averages_need_one_space_and_one_budget(space):
    results = [make_result(space, 0), make_result(space, 1, budget=space.n_params // 4)]
    with pytest.raises(RunError, match=r"budgets of \[.*say where to cut"):
        average_gates(results)
    assert average_gates(results, budget=100).budget.n_params == 100
    other = make_space(tiny_t5(), "lora")
    with pytest.raises(RunError, match="searched different spaces"):
        average_gates([results[0], make_result(other)])
    with pytest.raises(RunError, match="no search was given"):
        average_gates([])


def test_difference_by_hand(space):
    one, other = make_result(space, 0), make_result(space, 1)
    shuffled = other.gates.sample(frac=1, random_state=0)  # rows are matched by candidate, not by place
    table = gate_difference(one, shuffled)
    np.testing.assert_allclose(table["difference"], one.gates["prob"] - other.gates["prob"])
    a, b = one.gates["chosen"], other.gates["chosen"]
    for name, expected in (("chosen", a & b), ("only_one", a & ~b), ("only_other", b & ~a)):
        assert table[name].tolist() == expected.tolist()
    with pytest.raises(RunError, match="different spaces: 1 candidates"):
        gate_difference(one, other.gates.iloc[1:])
    with pytest.raises(RunError, match="no column probability"):
        gate_difference(one, other, "probability")


def test_agreement_finds_the_same_and_not_the_random(space):
    same, noise = make_result(space, 0), [make_result(space, seed, task="b") for seed in range(1, 13)]
    pairs = agreement([same, make_result(space, 0, task="b"), *noise], draws=200)
    assert len(pairs) == 14 * 13 // 2 and set(pairs["group"]) == {"same task", "other task"}
    twins = pairs[pairs["jaccard"] == 1.0]
    assert len(twins) == 1 and twins["spearman"].iloc[0] == pytest.approx(1.0)
    rest = pairs.drop(twins.index)
    assert rest["jaccard"].mean() == pytest.approx(rest["jaccard_chance"].mean(), abs=0.03)
    for name in ("jaccard", "spearman"):  # one in twenty random pairs lies above the 95 % quantile
        assert 0.0 < (rest[name] > rest[f"{name}_chance_high"]).mean() < 0.15
        assert (rest[f"{name}_chance"] < rest[f"{name}_chance_high"]).all()


def test_chance_is_that_of_random_structures(space):
    one, other = make_result(space, 0), make_result(space, 1)
    row = agreement([one, other], draws=1500).iloc[0]
    random = [
        one.structure().jaccard(random_structure(space, other.budget, seed=seed)) for seed in range(10_000, 11_500)
    ]
    assert row["jaccard_chance"] == pytest.approx(np.mean(random), abs=0.01)


def test_agreement_on_kinds_alone_is_chance_within_kinds(space):
    """Both searches love LoRA and shuffle its places: above chance in all, at chance within PET modules."""

    def lover(seed):
        noise = torch.tensor(np.random.default_rng(seed).normal(size=len(space)))
        return make_result(
            space, seed, budget=space.n_params // 4, alpha=noise + 6 * torch.tensor([c.pet == "lora" for c in space])
        )

    results = [lover(seed) for seed in range(6)]
    free, within = (agreement(results, within=kind, draws=200).mean(numeric_only=True) for kind in (None, "pet"))
    assert free["jaccard"] > 1.5 * free["jaccard_chance"]
    assert within["jaccard"] == pytest.approx(within["jaccard_chance"], abs=0.1)
    assert free["spearman"] > 0.4 and abs(within["spearman"]) < 0.2


def test_a_budget_recuts_all_pairs(space):
    results = [make_result(space, 0), make_result(space, 1)]
    row = agreement(results, budget=space.n_params, draws=10).iloc[0]
    assert row["jaccard"] == 1.0 and row["jaccard_chance"] == 1.0
    with pytest.raises(RunError, match="two searches or more"):
        agreement(results[:1])


def test_gates_come_back_from_their_own_space(space):
    result = make_result(space)
    for by in ("name", "relative_depth"):
        back = retarget_gates(result, space, by=by)
        np.testing.assert_allclose(back.gates["alpha"], result.gates["alpha"])
        assert back.structure().names == result.structure().names and back.metrics["unplaced"] == []


def test_relative_depth_interpolates_between_layers():
    small, large = make_space(meta_t5("small"), "lora"), make_space(meta_t5("base"), "lora")  # 6 and 12 layers
    layer = torch.tensor([float(candidate.layer) for candidate in small])
    carried = retarget_gates(make_result(small, alpha=layer), large)
    expected = [5 * candidate.layer / 11 for candidate in large]
    np.testing.assert_allclose(carried.gates["alpha"], expected)
    share = carried.budget.n_params / large.backbone_params
    assert share == pytest.approx(small.n_params // 8 / small.backbone_params, rel=1e-3)
    expected_cost = (carried.gates["prob"] * carried.gates["n_params"]).sum()
    assert expected_cost == pytest.approx(carried.budget.n_params)


def test_the_structure_of_a_search_moves_with_its_probabilities():
    small, large = make_space(meta_t5("small"), "lora"), make_space(meta_t5("base"), "lora")  # 6 and 12 layers
    structure = make_result(small).structure()
    there = structure.retarget(large, budget=structure.n_params)  # the wider backbone costs more
    assert there.n_params <= structure.n_params and there.origin["dropped"] and there.origin["kind"] == "searched"
    nearest = {layer: round(11 * layer / 5) for layer in range(6)}
    pairs = zip(structure.candidates, structure.probs, strict=True)
    moved = {(c.stack, nearest[c.layer], c.role): prob for c, prob in pairs}
    for candidate, prob in zip(there.candidates, there.probs, strict=True):
        assert moved[candidate.stack, candidate.layer, candidate.role] == prob


def test_what_has_no_counterpart_is_chosen_last_and_named(space):
    lora = make_space(tiny_t5(), "lora")
    carried = retarget_gates(make_result(lora), space)
    assert set(carried.metrics["unplaced"]) == {c.name for c in space if c.pet != "lora"}
    unplaced = carried.gates["pet"] != "lora"
    assert carried.gates.loc[unplaced, "prob"].max() == pytest.approx(carried.gates["prob"].min())
    with pytest.raises(RunError, match=r"no candidate of .* has a counterpart"):
        retarget_gates(make_result(lora), make_space(tiny_t5(), [{"pet": "bitfit"}]))
    with pytest.raises(RunError, match="'depth' is not one of name, relative_depth"):
        retarget_gates(make_result(lora), space, by="depth")
    with pytest.raises(BudgetError):
        retarget_gates(make_result(lora), space, budget=1)
