"""Retraining: only what should be trained is trained; saved and loaded it answers the same."""

import pytest
import torch
from tiny import tiny_batch, tiny_bert, tiny_t5
from toy import easy_task, toy_regression, toy_task

from s3pet import Structure, load_tuned, make_space, manual_structure, random_structure, retrain
from s3pet.backbones import backbone_checksum
from s3pet.errors import RunError, SearchError, StructureMismatchError
from s3pet.objective import Objective
from s3pet.supernet import Supernet

QUICK = {"steps": 30, "batch_size": 16, "evaluations": 3}


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
@pytest.mark.parametrize("what", ["structure", "full", "head", "zero-shot"])
def test_the_backbone_stays_and_a_copy_is_tuned(make_model, what):
    model, task = make_model(), toy_task()
    structure = random_structure(make_space(model, "mixed"), 400) if what == "structure" else what
    checksum, state = backbone_checksum(model), torch.get_rng_state()
    tuned = retrain(model, task, structure, **QUICK)
    assert backbone_checksum(model) == checksum
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert tuned.metrics["n_params"] == (structure.n_params if what == "structure" else 0)
    assert tuned.metrics["head_params"] == (66 if make_model is tiny_bert else 0)
    assert tuned.metrics["test"] == tuned.evaluate(task.test)["accuracy"]
    passes = 0 if what == "zero-shot" or (what == "head" and make_model is tiny_t5) else 30
    n_scored = len(task.validation) * (4 if passes else 1) + len(task.test)
    assert (tuned.cost.passes, tuned.cost.rows) == (passes, 16 * passes)
    assert tuned.cost.scored == n_scored and tuned.cost.seconds > 0 and tuned.cost.peak_memory > 1e6
    changed = backbone_checksum(tuned.model) != checksum if what == "full" else None
    assert changed in (True, None)


def test_training_learns_and_the_best_step_is_kept():
    model, task = tiny_t5(std=0.15), easy_task()
    structure = manual_structure(make_space(model, "mixed"), "lora_all")
    tuned = retrain(model, task, structure, steps=150, lr=1e-2, batch_size=16)
    curve = [point["score"] for point in tuned.metrics["curve"]]
    assert tuned.metrics["validation"] == max(curve)
    assert tuned.metrics["best_step"] == 15 * (curve.index(max(curve)) + 1)
    assert tuned.metrics["validation"] > 0.9


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
def test_biases_and_norms_have_a_rate_of_their_own(make_model):
    model, first = make_model(), {}
    space = make_space(model, "mixed")
    fresh = Supernet(model, space).tensors()
    for factor in (1.0, 10.0):
        tuned = retrain(model, toy_task(), Structure(space.candidates, space.model_id), steps=1, vector_lr=factor)
        first[factor] = tuned.tensors()
    for key, tensor in first[1.0].items():
        start = fresh.get(key, torch.zeros_like(tensor))
        expected = 10 if ":bitfit" in key or ":lnfit" in key else 1
        if not key.startswith("head"):
            torch.testing.assert_close(first[10.0][key] - start, expected * (tensor - start), rtol=1e-3, atol=1e-6)
    assert any(":bitfit" in key and tensor.any() for key, tensor in first[1.0].items())


def test_the_rate_rises_over_the_warm_up():
    model = tiny_t5()
    structure = manual_structure(make_space(model, "mixed"), "bitfit")
    still = retrain(model, toy_task(), structure, steps=1, lr_warmup=1).tensors()  # the first step has rate 0
    assert not any(tensor.any() for tensor in still.values())
    two = {"steps": 2, "evaluations": 1}  # with more, the first step may be the best
    ends = [retrain(model, toy_task(), structure, lr_warmup=rise, **two).tensors() for rise in (2, 0)]
    steps = [max(float(tensor.abs().max()) for tensor in end.values()) for end in ends]  # 0 + 1/2, and 1 + 1/2
    assert 0 < steps[0] < 0.6 * steps[1]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"vector_lr": 0}, "vector_lr must be > 0"),
        ({"lr_warmup": -1}, "lr_warmup must be 0 to steps"),
        ({"steps": 5, "lr_warmup": 6}, "lr_warmup must be 0 to steps"),
        ({"steps": 0}, "steps must be > 0"),
        ({"lr": -1.0}, "lr must be > 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(recipe, message):
    with pytest.raises(SearchError, match=message):
        retrain(tiny_t5(), toy_task(), "zero-shot", **recipe)


def test_seeds_repeat_it_bit_for_bit():
    model, task = tiny_bert(), toy_task()
    structure = random_structure(make_space(model, "mixed"), 400)
    first, again, other = (retrain(model, task, structure, seed=seed, **QUICK).tensors() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
@pytest.mark.parametrize("what", ["structure", "full"])
def test_in_bfloat16_the_backbone_runs_narrow_and_what_is_trained_stays_wide(make_model, what):
    model, task, seen = make_model(), toy_task(), set()
    structure = random_structure(make_space(model, "mixed"), 400) if what == "structure" else what
    full = retrain(model, task, structure, **QUICK)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    narrow = retrain(model, task, structure, precision="bfloat16", **QUICK)
    handle.remove()
    assert torch.bfloat16 in seen or what == "full"  # a copy is tuned, with its own hook
    assert all(tensor.dtype == torch.float32 for tensor in narrow.tensors().values())
    pairs = [(narrow.tensors()[key], tensor) for key, tensor in full.tensors().items()]
    assert any(not torch.equal(one, other) for one, other in pairs)
    one, other = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    assert torch.nn.functional.cosine_similarity(one, other, 0) > 0.9
    with pytest.raises(ValueError, match="precision 'int8' is not one of"):
        retrain(model, task, structure, precision="int8", **QUICK)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
@pytest.mark.parametrize("what", ["structure", "full"])
def test_saved_and_loaded_it_gives_equal_logits(make_model, what, tmp_path):
    model, task = make_model(), toy_task()
    structure = random_structure(make_space(model, "mixed"), 400) if what == "structure" else "full"
    tuned = retrain(model, task, structure, out=tmp_path / "tuned", **QUICK)
    again = load_tuned(tmp_path / "tuned", make_model(), task)
    batch = tiny_batch(model)
    with torch.no_grad():
        assert torch.equal(again.model(**batch)[0], tuned.model(**batch)[0])
        assert not torch.equal(tuned.model(**batch)[0], model(**batch)[0])
    assert again.predict(task.test) == tuned.predict(task.test)
    assert again.metrics == tuned.metrics
    if what == "structure":
        size = (tmp_path / "tuned" / "weights.safetensors").stat().st_size
        assert size < 4 * (structure.n_params + tuned.metrics["head_params"]) + 4000, "only trained tensors are saved"
    with pytest.raises(RunError, match="holds a tuned model"):
        tuned.save(tmp_path / "tuned")
    with pytest.raises(RunError, match="holds a tuned model"):
        retrain(model, task, structure, out=tmp_path / "tuned", **QUICK)


def test_while_something_is_to_be_chosen_the_test_split_is_not_looked_at(monkeypatch):
    model, task = tiny_t5(), toy_task()
    structure = manual_structure(model, "lnfit")
    whole = retrain(model, task, structure, **QUICK)
    seen, real = [], Objective.evaluate
    monkeypatch.setattr(Objective, "evaluate", lambda self, rows, *more: seen.append(rows) or real(self, rows, *more))
    tuned = retrain(model, task, structure, test=False, **QUICK)
    assert not any(rows is task.test for rows in seen)
    assert {"test", "test_all"} & {*tuned.metrics} == set() and "nan" in repr(tuned)
    assert tuned.metrics["validation_all"] == whole.metrics["validation_all"]


def test_checkpoints_hold_trained_tensors_only(monkeypatch):
    from s3pet.trainer import PetTrainer

    saved = []
    original = PetTrainer._save

    def spy(self, output_dir=None, state_dict=None):
        original(self, output_dir, state_dict)
        from pathlib import Path

        from safetensors.torch import load_file

        saved.append(sum(tensor.numel() for tensor in load_file(Path(output_dir) / "weights.safetensors").values()))
        assert not list(Path(output_dir).glob("*.bin"))

    monkeypatch.setattr(PetTrainer, "_save", spy)
    model = tiny_bert()
    structure = random_structure(make_space(model, "mixed"), 400)
    retrain(model, toy_task(), structure, **QUICK)
    assert set(saved) == {structure.n_params + 66}


def test_regression_is_scored_by_correlation():
    tuned = retrain(tiny_bert(), toy_regression(), "head", **QUICK)
    assert tuned.metrics["metric"] == "pearson"
    assert -1 <= tuned.metrics["test"] <= 1


def test_bad_input_is_refused():
    model, task = tiny_t5(), toy_task()
    with pytest.raises(SearchError, match="neither a Structure nor one of full"):
        retrain(model, task, "fulll")
    with pytest.raises(StructureMismatchError, match="does not fit"):
        retrain(model, task, random_structure(make_space(tiny_bert(), "mixed"), 400))
    with pytest.raises(RunError, match="holds no tuned model"):
        load_tuned("nowhere", model, task)


def test_another_backbone_or_task_is_refused_on_loading(tmp_path):
    model, task = tiny_t5(), toy_task()
    retrain(model, task, random_structure(make_space(model, "mixed"), 400), out=tmp_path, steps=2)
    with pytest.raises(StructureMismatchError):
        load_tuned(tmp_path, tiny_bert(), task)
    with pytest.raises(StructureMismatchError, match="was tuned on task"):
        load_tuned(tmp_path, model, toy_regression())
    empty = Structure((), "tiny")
    assert retrain(model, task, empty, steps=2).metrics["n_params"] == 0
