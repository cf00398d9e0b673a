"""Structures without a search: scores against sums by hand, the model untouched, rules of depth where expected."""

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_bert, tiny_llama, tiny_t5
from toy import toy_regression, toy_task

from s3pet import attach, make_space, retrain
from s3pet.backbones import backbone_checksum
from s3pet.errors import BudgetError, SearchError, SpaceError, StructureMismatchError, StudyError
from s3pet.objectives import Stream, derive, make_objective
from s3pet.space import Rule
from s3pet.studies.selectors import SCORES, depth_structure, sensitive_structure, sensitivity, useful_structure

QUICK = {"batches": 2, "batch_size": 8, "seed": 3}


def drawn(model, task):
    """The objective and batches that sensitivity looks at."""
    objective = make_objective(model, task, seed=3).eval()
    stream = Stream(objective.encode(task.train), 8, derive(3, 0))
    return objective, [stream(0), stream(1)]


def scores_of(model, score, rules="mixed", **options):
    space = make_space(model, rules)
    found = sensitivity(model, toy_task(), space, score=score, **QUICK | options)
    return space, dict(zip((c.name for c in space), found.tolist(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("score", SCORES)
def test_the_model_is_left_exactly_as_it_was_and_scores_repeat(family, score):
    model, task = FAMILIES[family](), toy_task()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    next(model.children()).train()
    modes = [module.training for module in model.modules()]
    space = make_space(model, [*map(Rule, ("lora", "lnfit", "bitfit", "lowrank_adapter", "adapter"))])
    checksum, state = backbone_checksum(model), torch.get_rng_state()
    found = sensitivity(model, task, space, score=score, **QUICK)
    assert backbone_checksum(model) == checksum
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == [i % 2 == 0 for i, _ in enumerate(model.parameters())]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    assert found.dtype == torch.float64 and found.shape == (len(space),)
    # label words of one token: the decoder of T5 attends to its start token alone, so q and k do nothing but rounding
    idle = {f"decoder.{layer}.attn.{role}" for layer in range(9) for role in "qk"}
    assert not [c.name for c, value in zip(space, found, strict=True) if not value > 0 and c.site not in idle]
    assert bool((found >= 0).all())
    torch.rand(3)
    assert torch.equal(sensitivity(model, task, space, score=score, **QUICK), found)
    assert not torch.equal(sensitivity(model, task, space, score=score, **QUICK | {"seed": 4}), found)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
def test_gradient_and_fisher_of_a_lora_by_hand(make_model):
    """With W' = W + 16 B A and B at 0, ∂L/∂B is 16 ∂L/∂W' Aᵀ and ∂L/∂A is 0."""
    model = make_model()
    space, gradient = scores_of(model, "gradient")
    _, fisher = scores_of(model, "fisher")
    chosen = next(c for c in space if c.name == "encoder.1.attn.v:lora:1")
    with attach(model, [chosen], seed=3) as supernet:
        a = supernet.tensors()[f"{chosen.name}/A"].double()
    objective, batches = drawn(model, toy_task())
    weight = model.get_submodule(chosen.path).weight.requires_grad_()

    def of_b(rows):
        return 16 * torch.autograd.grad(objective.loss(objective.collate(rows)), weight)[0].double() @ a.T

    mean = (of_b(batches[0]) + of_b(batches[1])) / 2
    assert gradient[chosen.name] == pytest.approx(float(mean.square().sum()), rel=1e-4)
    singles = [float(of_b([row]).square().sum()) for rows in batches for row in rows]
    assert fisher[chosen.name] == pytest.approx(sum(singles) / 16, rel=1e-4)


def test_gradients_of_bitfit_and_lnfit_are_the_backbones_own():
    model = tiny_bert()
    space, found = scores_of(model, "gradient")
    objective, batches = drawn(model, toy_task())
    norm = model.encoder.layer[0].output.LayerNorm
    for name, tensor in (("encoder.0.ffn.norm:lnfit", norm.weight), ("encoder.0.ffn.norm:bitfit", norm.bias)):
        tensor.requires_grad_()
        of_rows = [torch.autograd.grad(objective.loss(objective.collate(rows)), tensor)[0] for rows in batches]
        assert found[name] == pytest.approx(float(((of_rows[0] + of_rows[1]) / 2).square().sum()), rel=1e-4)


def test_rows_weigh_alike_in_batches_of_any_size():
    """60 rows in batches of 50 and 10 have the mean gradient of all 60 at once."""
    model, task = tiny_bert(), toy_regression()
    space = make_space(model, "mixed")
    parts = sensitivity(model, task, space, score="gradient", batches=2, batch_size=50)
    whole = sensitivity(model, task, space, score="gradient", batches=1, batch_size=60)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=0)


def test_the_objective_is_the_one_asked_for():
    """With other pooling the gradients of an encoder are those of another loss."""
    _, pooler = scores_of(tiny_bert(), "gradient")
    _, mean = scores_of(tiny_bert(), "gradient", objective={"pooling": "mean"})
    assert pooler != mean
    _, rounded = scores_of(tiny_bert(), "gradient", objective={"precision": "bfloat16"})
    assert pooler != rounded and pooler == pytest.approx(rounded, rel=0.3)


@pytest.mark.parametrize("per_param", [True, False])
def test_the_sensitive_structure_is_the_greedy_one(per_param):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    structure = sensitive_structure(model, task, space, 400, score="fisher", per_param=per_param, **QUICK)
    found = sensitivity(model, task, space, score="fisher", **QUICK)
    ranked = sorted(
        zip(space, found.tolist(), strict=True), key=lambda row: -row[1] / (row[0].n_params if per_param else 1)
    )
    names, left = set(), 400
    for candidate, _ in ranked:
        if candidate.n_params <= left:
            names.add(candidate.name)
            left -= candidate.n_params
    assert set(structure.names) == names
    assert structure.n_params <= 400 == structure.budget
    kept = {"kind": "sensitivity", "task": task.name, "score": "fisher", "per_param": per_param, "seed": 3}
    assert dict(structure.origin) == kept
    assert retrain(model, task, structure, steps=2).metrics["n_params"] == structure.n_params


def deep(rules, layers):
    """A bare encoder's space with this many layers; only shapes matter."""
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2)
    config.intermediate_size = 16
    return make_space(BertModel(config), rules)


def chosen_layers(structure, pet):
    return [c.layer for c in structure.candidates if c.pet == pet]


def test_top_walks_down_and_uniform_spreads():
    space = deep("lora", 12)  # q and v cost 16 each
    top, uniform = (depth_structure(space, 4 * 32, where) for where in ("top", "uniform"))
    assert chosen_layers(top, "lora") == [8, 8, 9, 9, 10, 10, 11, 11]
    assert chosen_layers(uniform, "lora") == [1, 1, 4, 4, 7, 7, 10, 10]
    for structure in (top, uniform):
        assert {c.role for c in structure.candidates} == {"attn.q", "attn.v"}
        assert structure.n_params == 128
    assert dict(top.origin) == {"kind": "heuristic", "where": "top"}
    assert depth_structure(space, 16, "top").names == ("encoder.11.attn.v:lora:1",), "of q and v, v comes first"
    odd = depth_structure(space, 48, "uniform")  # one whole layer, the middle, and v of the farthest from it
    assert odd.names == ("encoder.0.attn.v:lora:1", "encoder.6.attn.q:lora:1", "encoder.6.attn.v:lora:1")


def test_what_is_left_is_filled_with_lnfit_then_bitfit():
    space = deep("mixed", 4)  # LNFit costs 8, its norms: embeddings, and two in each layer
    below = depth_structure(space, 15, "top")  # below one LoRA
    assert below.names == ("encoder.3.ffn.norm:lnfit",) or below.names == ("encoder.3.attn.norm:lnfit",)
    structure = depth_structure(space, 4 * 32 + 9 * 8 + 2 * 8, "top")
    assert chosen_layers(structure, "lora") == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sum(c.pet == "lnfit" for c in structure.candidates) == 9
    assert chosen_layers(structure, "bitfit") == [3, 3]


def test_the_decoders_last_layer_is_the_top():
    structure = depth_structure(make_space(tiny_t5(), "lora"), 128, "top")
    assert structure.names == ("decoder.1.attn.q:lora:1", "decoder.1.attn.v:lora:1")
    spread = depth_structure(make_space(tiny_t5(), "lora"), 256, "uniform")
    assert spread.sites == ("encoder.1.attn.q", "encoder.1.attn.v", "decoder.1.attn.q", "decoder.1.attn.v")


@pytest.mark.parametrize("where", ["uniform", "top"])
@pytest.mark.parametrize("family", FAMILIES)
def test_any_budget_is_held_and_filled(family, where):
    space = make_space(FAMILIES[family](), "mixed")
    cheapest = int(space.costs.min())
    for budget in (cheapest, cheapest + 1, 57, 100, 131, 500, 1234, 2900, space.n_params, space.n_params + 5):
        structure = depth_structure(space, budget, where)
        assert structure == depth_structure(space, budget, where)
        left = budget - structure.n_params
        assert left >= 0
        rest = [c.n_params for c in space if c.name not in structure.names]
        assert left < min(rest, default=left + 1)


def test_of_several_ranks_the_smallest_is_spread():
    space = make_space(tiny_bert(), [Rule("lora", ranks=(4, 1))])
    assert {c.rank for c in depth_structure(space, 256, "uniform").candidates} == {1}


def test_bad_input_is_refused():
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    with pytest.raises(SearchError, match="nearest: 'fisher'"):
        sensitivity(model, task, space, score="fischer")
    with pytest.raises(SearchError, match="batches must be a whole number from 1"):
        sensitivity(model, task, space, score="fisher", batches=0)
    with pytest.raises(StructureMismatchError, match="does not fit"):
        sensitivity(model, task, make_space(tiny_llama(), "mixed"))
    with attach(model, []), pytest.raises(SearchError, match="another supernet"):
        sensitivity(model, task, space, score="gradient", **QUICK)
    with pytest.raises(BudgetError, match="the cheapest candidate costs"):
        sensitive_structure(model, task, space, 2)
    with pytest.raises(BudgetError, match="the cheapest candidate costs"):
        depth_structure(space, 2, "top")
    with pytest.raises(SpaceError, match="'bottom' is not one of uniform, top"):
        depth_structure(space, 200, "bottom")
    with torch.no_grad():
        model.encoder.block[0].layer[0].SelfAttention.q.weight.fill_(float("nan"))
    with pytest.raises(SearchError, match="is not finite"):
        sensitivity(model, task, space, score="gradient", **QUICK)


def utilities(space, gains):
    """A utility table in which these candidates gain so much, and all others lose."""
    table = space.table().assign(inert=False, measure="solo", task="toy", utility_error=0.0)
    return table.assign(utility=[gains.get(c.name, -0.1) for c in space])


def test_useful_candidates_are_taken_by_gain_per_parameter_and_a_served_layer_counts_half():
    space = make_space(tiny_t5(), [Rule("lora", roles=("attn.[qv]",), stacks=("encoder",), layers=(0, 1))])
    one = space.candidates[0].n_params
    assert {c.n_params for c in space} == {one}
    gains = {"0.attn.q": 1.0, "0.attn.v": 0.9, "1.attn.q": 0.3, "1.attn.v": 0.5}
    table = utilities(space, {f"encoder.{place}:lora:1": gain for place, gain in gains.items()})
    order = ("encoder.0.attn.q", "encoder.1.attn.v", "encoder.0.attn.v", "encoder.1.attn.q")  # 1, .5, .9/2, .3/2
    for n in range(1, 5):
        structure = useful_structure(space, table, n * one)
        assert set(structure.sites) == set(order[:n])
        assert structure.budget == n * one and structure.origin == {"kind": "useful", "task": "toy"}
    shuffled = table.sample(frac=1, random_state=0)
    assert useful_structure(space, shuffled, 2 * one) == useful_structure(space, table, 2 * one)


def test_a_dear_candidate_needs_a_gain_in_proportion_and_one_that_loses_is_never_taken():
    space = make_space(tiny_t5(), [Rule("lora", roles=("attn.q",), ranks=(1, 4)), Rule("bitfit", roles=("ffn.out",))])
    small, large = (next(c for c in space if c.pet == "lora" and c.rank == rank) for rank in (1, 4))
    table = utilities(space, {small.name: 0.1, large.name: 0.39})
    assert useful_structure(space, table, space.n_params).names == (small.name,)  # and no second size at its site
    table = utilities(space, {small.name: 0.1, large.name: 0.41})
    table["utility"] = table["utility"].where(table["utility"] > 0)  # not measured
    assert useful_structure(space, table, space.n_params).names == (large.name,)
    assert useful_structure(space, table, small.n_params).names == (small.name,)
    with pytest.raises(StudyError, match="gains anything"):
        useful_structure(space, utilities(space, {}), space.n_params)
    with pytest.raises(StudyError, match="not a utility table"):
        useful_structure(space, space.table(), space.n_params)
    with pytest.raises(BudgetError):
        useful_structure(space, table, 1)


def test_drawn_utilities_differ_by_their_errors_only():
    space = make_space(tiny_t5(), "lora")
    budget = 3 * space.candidates[0].n_params
    gains = np.linspace(1, 2, len(space))
    sure = utilities(space, {}).assign(utility=gains)
    unsure = sure.assign(utility_error=0.5)
    assert {useful_structure(space, sure, budget, seed=seed).names for seed in range(5)} == {
        useful_structure(space, sure, budget).names
    }
    drawn = [useful_structure(space, unsure, budget, seed=seed) for seed in range(5)]
    assert len({structure.names for structure in drawn}) > 2
    assert useful_structure(space, unsure, budget, seed=3) == drawn[3]
    assert useful_structure(space, unsure, budget) == useful_structure(space, sure, budget)
