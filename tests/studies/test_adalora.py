"""AdaLoRA as a baseline: within the budget, on a copy, by our recipe; and PEFT's LoRA trained so is ours."""

import builtins
import copy

import pytest
import torch
from tiny import tiny_batch, tiny_bert, tiny_classifier, tiny_t5
from toy import easy_task, toy_task

from s3pet import attach, load_tuned, make_space, manual_structure, retrain
from s3pet.backbones import backbone_checksum
from s3pet.errors import BudgetError, RunError, SearchError
from s3pet.objectives import make_objective
from s3pet.trainer import PetTrainer
from s3pet.tuning import Learner, Recipe, tune

pytest.importorskip("peft", reason="the optional extra s3pet[peft] is not installed")
from s3pet.studies.adalora import _Allocation, orthogonality, retrain_adalora

QUICK = {"steps": 30, "batch_size": 16, "evaluations": 3}
BUDGET = 500


def values(tuned):
    return {k: v for k, v in tuned.model.named_parameters() if "lora_E" in k}


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_classifier])
def test_the_backbone_stays_and_the_budget_is_held(make_model):
    model, task = make_model(), toy_task()
    checksum, state, names = backbone_checksum(model), torch.get_rng_state(), [n for n, _ in model.named_modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    tuned = retrain_adalora(model, task, BUDGET, **QUICK)
    assert backbone_checksum(model) == checksum
    assert [name for name, _ in model.named_modules()] == names
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    reference = retrain(model, task, "head", **QUICK).metrics
    assert set(reference) < set(tuned.metrics) and set(reference["cost"]) == set(tuned.metrics["cost"])
    assert tuned.metrics["head_params"] == reference["head_params"]
    assert tuned.metrics["test"] == tuned.evaluate(task.test)["accuracy"]
    assert (tuned.cost.passes, tuned.cost.rows) == (30, 480)
    space = make_space(model, "lora")
    widths = {c.path: c.d_in + c.d_out + 1 for c in space}
    sizes = {path: int((tuned.model.get_submodule(path).lora_E["default"] != 0).sum()) for path in widths}
    left = sum(size * widths[path] for path, size in sizes.items())
    assert tuned.metrics["n_params"] == left <= BUDGET
    assert BUDGET - left < min(widths.values()), "what fits is taken"
    assert tuned.metrics["ranks"] == {c.site: sizes[c.path] for c in space if sizes[c.path]}
    assert tuned.metrics["initial_params"] == 2 * sum(widths.values())
    with torch.no_grad():
        assert not torch.equal(tuned.model(**tiny_batch(model))[0], model(**tiny_batch(model))[0])
    for name, parameter in tuned.model.named_parameters():
        if "lora_" not in name and "ranknum" not in name:
            assert torch.equal(parameter, model.get_parameter(name.replace(".base_layer", ""))), name


def test_nothing_above_the_budget_is_scored_or_kept(monkeypatch):
    seen, evaluate = [], PetTrainer.evaluate

    def spy(self, *args, **kwargs):
        left = [v for k, v in zip(self.model.names, self.model.weights, strict=True) if "lora_E" in k]
        seen.append((self.state.global_step, sum(int((v != 0).sum()) for v in left)))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(PetTrainer, "evaluate", spy)
    tuned = retrain_adalora(tiny_bert(), toy_task(), BUDGET, steps=40, evaluations=10, batch_size=8)
    n_left = sum(tuned.metrics["ranks"].values())
    assert {step for step, _ in seen} == {28, 32, 36, 40}, "the last allocation is made in step 25"
    assert tuned.metrics["trained_from"] == 25
    assert {count for _, count in seen} == {n_left}
    assert tuned.metrics["best_step"] in (28, 32, 36, 40)
    assert [point["step"] for point in tuned.metrics["curve"]] == [28, 32, 36, 40]


def test_ranks_fall_while_training_and_the_last_cut_follows_importance(monkeypatch):
    counts, cuts, update, pattern = [], [], _Allocation.on_optimizer_step, _Allocation._pattern

    def spy(self, args, state, control, **kwargs):
        update(self, args, state, control, **kwargs)
        counts.append(sum(self.ranks().values()))

    def cut(self):
        found = pattern(self)
        allocator = self.allocator
        cuts.append((found, copy.deepcopy(allocator.exp_avg_ipt), copy.deepcopy(allocator.exp_avg_unc)))
        return found

    monkeypatch.setattr(_Allocation, "on_optimizer_step", spy)
    monkeypatch.setattr(_Allocation, "_pattern", cut)
    model = tiny_bert()
    retrain_adalora(model, toy_task(), BUDGET, steps=40, evaluations=4, batch_size=8)
    assert counts[3] == 24, "twelve sites of rank 2"
    assert counts[15] < 24 and counts[10] >= counts[15] >= counts[23]
    assert set(counts[24:]) == {counts[-1]}
    (found, smooth, unsure), ranked = cuts[0], []
    for c in make_space(model, "lora"):
        for row in range(2):
            e, a, b = ((smooth[k] * unsure[k]) for k in (f"{c.path}.lora_{part}.default" for part in "EAB"))
            ranked.append((float(e[row] + a[row].mean() + b[:, row].mean()), c.path, row, c.d_in + c.d_out + 1))
    left, kept = BUDGET, set()
    for _, path, row, cost in sorted(ranked, reverse=True):
        if cost <= left:
            left -= cost
            kept.add((path, row))
    assert {(key.split(".lora_E")[0], row) for key, rows in found.items() for row, on in enumerate(rows) if on} == kept


def test_it_learns_and_seeds_repeat_it():
    model, task = tiny_t5(std=0.15), easy_task()
    runs = [retrain_adalora(model, task, BUDGET, steps=150, lr=1e-2, batch_size=16, seed=seed) for seed in (0, 0)]
    assert runs[0].metrics["test"] > 0.9
    first, again = (run.tensors() for run in runs)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert {key.split(".")[-2] for key in first} == {"lora_A", "lora_B", "lora_E"}
    other = retrain_adalora(model, task, BUDGET, seed=1, **QUICK).tensors()
    assert not torch.equal(next(iter(other.values())), next(iter(first.values())))


def test_the_regulariser_is_the_one_peft_adds():
    import peft

    model, batch = tiny_t5(), tiny_batch(tiny_t5())
    batch["labels"] = batch.pop("decoder_input_ids").contiguous()
    config = peft.AdaLoraConfig(init_r=2, target_r=1, total_step=9, target_modules=["q", "wo"], orth_reg_weight=0.7)
    wrapped = peft.AdaLoraModel(model, {"default": config}, "default").eval()
    with torch.no_grad():
        bare, added = model(**batch).loss, wrapped(**batch).loss
        torch.testing.assert_close(added, bare + 0.7 * orthogonality(model))
    kept = [(k, v) for k, v in model.named_parameters() if "lora_A" in k or "lora_B" in k]
    with torch.no_grad():
        for name, tensor in kept:
            q, _ = torch.linalg.qr(tensor if "lora_B" in name else tensor.T)
            tensor.copy_(q if "lora_B" in name else q.T)
        assert float(orthogonality(model)) < 1e-5, "orthonormal vectors are not penalised"


def test_the_regulariser_is_trained_for():
    model, task = tiny_bert(), toy_task()
    options = {**QUICK, "lr": 1e-2}
    with_it, without = (retrain_adalora(model, task, BUDGET, regularizer=g, **options) for g in (0.5, 0.0))
    assert orthogonality(with_it.model) < 0.7 * orthogonality(without.model)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
def test_peft_lora_trained_by_our_recipe_is_our_lora(make_model):
    """Same tensors at the start, same recipe: the same tensors at the end."""
    import peft

    model, task, recipe = make_model(), toy_task(), Recipe(**QUICK)
    structure = manual_structure(make_space(model, "lora"), "lora_qv")
    ours = retrain(model, task, structure, **QUICK).tensors()
    target = copy.deepcopy(model)
    config = peft.LoraConfig(r=1, lora_alpha=16, target_modules=[c.path for c in structure.candidates])
    peft.inject_adapter_in_model(config, target)
    with attach(model, structure) as fresh, torch.no_grad():
        start = fresh.tensors()
    for c in structure.candidates:
        target.get_submodule(c.path).lora_A["default"].weight.data.copy_(start[f"{c.name}/A"])
    learner = Learner(make_objective(target, task), None, target)
    theirs = tune(learner, model, recipe, "pet")
    for c in structure.candidates:
        for part in "AB":
            weight = getattr(target.get_submodule(c.path), f"lora_{part}")["default"].weight
            torch.testing.assert_close(weight.detach(), ours[f"{c.name}/{part}"], rtol=1e-3, atol=1e-4)
    assert theirs.metrics["best_step"] > 0


def test_a_budget_above_everything_cuts_nothing():
    tuned = retrain_adalora(tiny_bert(), toy_task(), 5000, **QUICK)
    assert tuned.metrics["n_params"] == tuned.metrics["initial_params"] <= 5000


def test_it_is_saved_but_not_reopened(tmp_path):
    model, task = tiny_bert(), toy_task()
    tuned = retrain_adalora(model, task, BUDGET, **QUICK)
    tuned.save(tmp_path)
    assert tuned.config["structure"] == "adalora" and tuned.config["budget"] == BUDGET
    with pytest.raises(RunError, match="tuned by adalora"):
        load_tuned(tmp_path, model, task)


def test_bad_input_is_refused(monkeypatch):
    model, task = tiny_bert(), toy_task()
    with pytest.raises(BudgetError, match="the cheapest triplet costs 65"):
        retrain_adalora(model, task, 64, **QUICK)
    with pytest.raises(BudgetError, match="the cheapest candidate costs 64"):
        retrain_adalora(model, task, 10, **QUICK)
    with pytest.raises(SearchError, match="steps=9"):
        retrain_adalora(model, task, BUDGET, steps=9)
    with pytest.raises(SearchError, match="init_rank=0"):
        retrain_adalora(model, task, BUDGET, init_rank=0, **QUICK)
    with attach(model, []), pytest.raises(SearchError, match="supernet is attached"):
        retrain_adalora(model, task, BUDGET, **QUICK)
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 's3pet\[peft\]'"):
        retrain_adalora(model, task, BUDGET, **QUICK)


@pytest.mark.parametrize("end", [12, 25])  # before the last cut, and after it
def test_it_continues_bit_for_bit(tmp_path, monkeypatch, end):
    monkeypatch.setattr("s3pet.trainer.PAUSE", 0.0)  # a checkpoint after every step
    model, task, done, real = tiny_bert(), toy_task(), [], PetTrainer.training_step

    def step(self, *args, **kwargs):
        if len(done) == end:
            raise ZeroDivisionError
        done.append(None)
        return real(self, *args, **kwargs)

    whole = retrain_adalora(model, task, BUDGET, **QUICK)
    monkeypatch.setattr(PetTrainer, "training_step", step)
    with pytest.raises(ZeroDivisionError):
        retrain_adalora(model, task, BUDGET, checkpoints=tmp_path / "c", **QUICK)
    done.extend([None])
    rest = retrain_adalora(model, task, BUDGET, checkpoints=tmp_path / "c", **QUICK)
    assert len(done) == 1 + QUICK["steps"]
    assert all(torch.equal(tensor, rest.tensors()[name]) for name, tensor in whole.tensors().items())
    assert rest.metrics["ranks"] == whole.metrics["ranks"] and rest.metrics["curve"] == whole.metrics["curve"]
