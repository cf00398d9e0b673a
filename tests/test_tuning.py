"""Retraining: only what should be trained is trained, every exit leaves the model as it was, saved models reload."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import state_of, tiny_batch, tiny_bert, tiny_classifier, tiny_llama, tiny_t5
from toy import easy_task, short_task, toy_regression, toy_rows, toy_task, toy_tokenizer
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from s3pet import Structure, attach, load_task, load_tuned, make_space, manual_structure, random_structure, retrain
from s3pet.backbones import backbone_checksum
from s3pet.errors import DivergedError, RunError, SearchError, StructureMismatchError, TaskError
from s3pet.objectives import Objective, Stream, make_objective
from s3pet.supernet import Supernet
from s3pet.tasks.forms import read_records
from s3pet.trainer import PetTrainer
from s3pet.tuning import Learner, Recipe

QUICK = {"steps": 30, "batch_size": 16, "evaluations": 3}


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
@pytest.mark.parametrize(
    ("what", "dropout", "expected"),
    [("structure", None, False), ("structure", True, True), ("full", None, True), ("full", False, False)],
)
def test_only_full_fine_tuning_has_dropout_unless_it_is_asked_for(make_model, what, dropout, expected):
    model, modes = make_model(), set()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda part, *_: modes.add((torch.is_grad_enabled(), part.training)))
    structure = random_structure(make_space(model, "mixed"), 400) if what == "structure" else what
    tuned = retrain(model, toy_task(), structure, steps=2, batch_size=8, evaluations=1, dropout=dropout)
    assert modes == {(True, expected), (False, False)}
    assert tuned.config["dropout"] is expected


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
        ({"lr_warmup": -1}, "lr_warmup must be >= 0"),
        ({"steps": 5, "lr_warmup": 6}, r"lr_warmup must be at most steps \(5\), got 6"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"lr": "1e-3"}, "lr must be a finite number or None, got '1e-3'"),
        ({"lr": float("inf")}, "lr must be a finite number or None"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32"),
        ({"steps": 0}, "steps must be > 0"),
        ({"lr": -1.0}, "lr must be > 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(recipe, message):
    with pytest.raises(SearchError, match=message):
        retrain(tiny_t5(), toy_task(), "zero-shot", **recipe)
    assert Recipe(steps=np.int64(5), seed=np.int32(3)) == Recipe(steps=5, seed=3)


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
    narrow = retrain(model, task, structure, objective={"precision": "bfloat16"}, **QUICK)
    handle.remove()
    assert torch.bfloat16 in seen or what == "full"  # a copy is tuned, with its own hook
    assert all(tensor.dtype == torch.float32 for tensor in narrow.tensors().values())
    pairs = [(narrow.tensors()[key], tensor) for key, tensor in full.tensors().items()]
    assert any(not torch.equal(one, other) for one, other in pairs)
    one, other = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    assert torch.nn.functional.cosine_similarity(one, other, 0) > 0.9
    assert narrow.config["objective"]["precision"] == "bfloat16"


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
    assert {"test", "test_all"} & {*tuned.metrics} == set() and "validation 0." in repr(tuned)
    assert tuned.metrics["validation_all"] == whole.metrics["validation_all"]


class Spy(TrainerCallback):
    """Runs a function at one event."""

    def __init__(self, event, call):
        setattr(self, event, lambda args, state, control, **kwargs: call(args, state, control))


@pytest.mark.parametrize("what", ["structure", "full"])
def test_checkpoints_hold_trained_tensors_only(what):
    saved, model, space = [], tiny_bert(), make_space(tiny_bert(), "mixed")

    def look(args, state, control):
        tensors = load_file(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "model.safetensors")
        saved.append(sum(tensor.numel() for tensor in tensors.values()))

    structure = random_structure(space, 400)
    tuned = retrain(
        model, toy_task(), structure if what == "structure" else what, callbacks=[Spy("on_save", look)], **QUICK
    )
    n_backbone = sum(parameter.numel() for parameter in model.parameters())
    assert set(saved) == {(structure.n_params if what == "structure" else n_backbone) + 66}
    assert saved and tuned.metrics["backbone_params"] == (n_backbone if what == "full" else 0)


def make_trainer(folder, steps, callbacks=(), **options):
    model, task = tiny_bert(), toy_task()
    objective = make_objective(model, task)
    supernet = Supernet(model, random_structure(make_space(model, "mixed"), 400))
    learner = Learner(objective, supernet)
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=16, learning_rate=1e-2, seed=0, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False, use_cpu=True, logging_strategy="no", **options,
    )  # fmt: skip
    rows = objective.encode(task.train)
    return PetTrainer(
        learner, args, objective.collate, rows, objective.encode(task.validation), callbacks=list(callbacks)
    ), supernet


def test_the_trainer_resumes_from_a_full_checkpoint_bit_for_bit(tmp_path):
    def stop(args, state, control):
        control.should_training_stop = state.global_step == 7

    options = {"save_strategy": "steps", "save_steps": 7, "lr_scheduler_type": "linear"}
    whole, supernet = make_trainer(tmp_path / "whole", 30, **options)
    with supernet:
        whole.train()
    halted, supernet = make_trainer(tmp_path / "cut", 30, [Spy("on_step_end", stop)], **options)
    with supernet:
        halted.train()
    assert halted.state.global_step == 7
    resumed, supernet = make_trainer(tmp_path / "cut", 30, **options)
    with supernet:
        resumed.train(resume_from_checkpoint=True)
    assert resumed.model.cost.passes == 23 and resumed.state.global_step == 30
    for name, one, other in zip(whole.model.names, whole.model.weights, resumed.model.weights, strict=True):
        assert torch.equal(one, other), name


def test_batches_are_those_of_the_stream_and_can_be_shared_by_processes(tmp_path):
    trainer, _ = make_trainer(tmp_path, 30)
    objective, rows = trainer.model.objective, trainer.train_dataset
    stream, batches = Stream(rows, 16, 0), list(trainer.get_train_dataloader())
    assert len(batches) == 30
    for step, batch in enumerate(batches):
        expected = objective.collate(stream(step))
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
        assert batch["share"] == (1.0, len(batch["target"]))
    trainer.processes.count, shares = 2, []
    for trainer.processes.rank in (0, 1):
        shares.append(list(trainer.get_train_dataloader()))
    for batch, one, other in zip(batches, *shares, strict=True):
        assert sorted([*one["target"].tolist(), *other["target"].tolist()]) == sorted(batch["target"].tolist())
        assert one["share"][0] + other["share"][0] == 2  # DDP takes the mean


def test_early_stopping_and_other_callbacks_are_hugging_faces():
    seen, logs = [], []

    def evaluated(args, state, control):
        seen.append(state.global_step)

    callbacks = [EarlyStoppingCallback(2, 1.0), Spy("on_evaluate", evaluated)]
    callbacks += [Spy("on_log", lambda args, state, control: logs.append(state.log_history[-1]))]
    tuned = retrain(tiny_bert(), toy_task(), "head", steps=30, evaluations=10, batch_size=16, callbacks=callbacks)
    assert seen == [3, 6, 9] and [point["step"] for point in tuned.metrics["curve"]] == seen
    assert tuned.cost.passes == 9
    assert any("loss" in log for log in logs) and any("eval_accuracy" in log for log in logs)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_classifier])
@pytest.mark.parametrize("what", ["structure", "full", "head"])
@pytest.mark.parametrize("exit_by", ["return", "callback", "interrupt", "loss", "scores"])
def test_after_any_exit_the_model_is_what_it_was(make_model, what, exit_by, monkeypatch):
    model, task, callbacks, short = make_model(), toy_task(), [], {"steps": 4, "batch_size": 16, "evaluations": 2}
    list(model.modules())[4].train()  # modes and flags of its own
    next(model.parameters()).requires_grad_(False)
    structure = random_structure(make_space(model, "mixed"), 400) if what == "structure" else what
    before, error = state_of(model), {"callback": ZeroDivisionError, "interrupt": KeyboardInterrupt}.get(exit_by)

    def fail(*args, **kwargs):
        raise error

    if error is not None:
        callbacks = [Spy("on_optimizer_step", fail)]
    if exit_by == "loss":
        monkeypatch.setattr(
            Objective, "loss", lambda self, batch, weights=None: self.scores(batch).mean() * float("nan")
        )
    if exit_by == "scores":
        real = type(make_objective(model, task)).scores
        monkeypatch.setattr(
            type(make_objective(model, task)),
            "scores",
            lambda self, batch, *more: real(self, batch) / (torch.is_grad_enabled()),
        )
        error = SearchError
    trained = what != "head" or make_model is not tiny_t5  # a text-to-text backbone has no head
    if exit_by == "return" or (not trained and exit_by != "scores"):
        tuned = retrain(model, task, structure, callbacks=callbacks, **short)
        tuned.predict(task.test[:3])
    else:
        with pytest.raises(error or SearchError):
            retrain(model, task, structure, callbacks=callbacks, **short)
    assert state_of(model) == before
    with attach(model, ()):  # nothing is attached any more
        pass


def test_nothing_is_trained_while_a_supernet_is_attached(tmp_path):
    model, task = tiny_t5(), toy_task()
    structure = manual_structure(model, "lnfit")
    retrain(model, task, "full", out=tmp_path, steps=2)
    with attach(model, structure):
        for what in ("full", "head", "zero-shot", structure):
            with pytest.raises(SearchError, match="another supernet is attached"):
                retrain(model, task, what, **QUICK)
        with pytest.raises(SearchError, match="another supernet is attached"):
            load_tuned(tmp_path, model, task)


def test_a_loss_that_is_not_finite_ends_training_and_the_best_model_is_kept(monkeypatch):
    model, task, calls, real = tiny_bert(), toy_task(), [], Objective.loss
    structure = random_structure(make_space(model, "mixed"), 400)
    best = retrain(model, task, structure, steps=30, evaluations=10, batch_size=16, test=False)

    def loss(self, batch, weights=None):
        calls.append(None)
        return real(self, batch, weights) * (float("nan") if len(calls) == 20 else 1)

    monkeypatch.setattr(Objective, "loss", loss)
    with pytest.raises(
        SearchError, match=r"diverged at step 19: the training loss is NaN.*Lower lr \(now 0.003\)"
    ) as caught:
        retrain(model, task, structure, steps=30, evaluations=10, batch_size=16)
    tuned, curve = caught.value.tuned, best.metrics["curve"][:6]
    assert tuned.metrics["curve"] == curve and "test" not in tuned.metrics
    assert tuned.metrics["validation"] == max(point["score"] for point in curve)
    assert tuned.metrics["best_step"] == max(curve, key=lambda point: point["score"])["step"]
    assert tuned.evaluate(task.validation)["accuracy"] == tuned.metrics["validation"]
    calls += [None] * (18 - len(calls))
    calls[:] = [None] * 18
    with pytest.raises(SearchError, match="diverged at step 1") as caught:
        retrain(model, task, structure, steps=30, evaluations=10, batch_size=16)
    assert caught.value.tuned is None, "nothing was scored before"


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_scores_that_are_not_finite_are_no_accuracy(make_model):
    model, task = make_model(), toy_task()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "norm" in name.lower()).fill_(float("nan"))
    for what in ("zero-shot", "full"):
        with pytest.raises(SearchError, match="NaN or infinite") as caught:
            retrain(model, task, what, **QUICK)
        assert caught.value.tuned is None


def test_scores_that_become_infinite_keep_the_best_model(monkeypatch):
    model, task, calls, real = tiny_t5(), toy_task(), [], Objective.evaluate

    def evaluate(self, examples, rows=None):
        calls.append(None)
        if len(calls) == 3:
            raise DivergedError("scores are NaN or infinite")
        return real(self, examples, rows)

    monkeypatch.setattr(Objective, "evaluate", evaluate)
    with pytest.raises(SearchError, match="diverged at step 30: scores are NaN") as caught:
        retrain(model, task, manual_structure(model, "lnfit"), **QUICK)
    assert caught.value.tuned.metrics["best_step"] in (10, 20)
    assert json.dumps(caught.value.tuned.metrics, allow_nan=False)


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
    tuned = retrain(model, task, random_structure(make_space(model, "mixed"), 400), out=tmp_path, steps=2)
    assert tuned.config["model_hash"] == backbone_checksum(model)
    with pytest.raises(
        StructureMismatchError, match=f"{backbone_checksum(model)[:12]}.*{backbone_checksum(tiny_t5(seed=1))[:12]}"
    ):
        load_tuned(tmp_path, tiny_t5(seed=1), task)
    with pytest.raises(StructureMismatchError):
        load_tuned(tmp_path, tiny_bert(), task)
    with pytest.raises(StructureMismatchError, match="was tuned on task"):
        load_tuned(tmp_path, model, toy_regression())
    data = {name: toy_rows(60, 100 + k) for k, name in enumerate(("train", "validation", "test"))}
    other = load_task(data, toy_tokenizer(), label_words=("no", "yes"))
    with pytest.warns(UserWarning, match="was tuned on other rows"):
        assert load_tuned(tmp_path, model, other).evaluate(other.test) == tuned.evaluate(other.test)
    empty = Structure((), "tiny")
    assert retrain(model, task, empty, steps=2).metrics["n_params"] == 0


@pytest.mark.filterwarnings("ignore:.*tokens and are cut:UserWarning")
def test_what_was_resolved_is_saved_and_used_again(tmp_path):
    model, task = tiny_bert(), toy_task()
    model.s3pet_pooler_is_fresh = True
    tuned = retrain(model, task, "head", objective={"max_length": 5}, out=tmp_path, **QUICK)
    assert tuned.config["objective"] == {"max_length": 5, "pooling": "mean", "loss": "choice", "precision": "float32"}
    assert {
        "steps": 30,
        "seed": 0,
        "lr": 3e-3,
        "structure": "head",
        "task_hash": task.fingerprint,
    }.items() <= tuned.config.items()
    again = load_tuned(tmp_path, model, task)
    assert again.learner.objective.settings == tuned.learner.objective.settings
    assert again.predict(task.test) == tuned.predict(task.test)
    (tmp_path / "files.json").unlink()  # as an earlier version, which wrote none
    config = json.loads((tmp_path / "tuned.json").read_text())
    (tmp_path / "tuned.json").write_text(json.dumps({key: config[key] for key in config if key != "model_hash"}))
    with pytest.raises(RunError, match="earlier version"):
        load_tuned(tmp_path, model, task)


def test_a_folder_is_tried_before_the_work_and_files_are_swapped(tmp_path, monkeypatch):
    model, task = tiny_t5(), toy_task()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Objective, "encode", lambda self, examples: 1 / 0)
    for where in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(RunError, match="cannot be a folder"):
            retrain(model, task, "full", out=where)
    monkeypatch.undo()
    tuned = retrain(model, task, manual_structure(model, "lnfit"), out=tmp_path / "run", steps=2)
    other = retrain(model, task, "full", steps=2)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    monkeypatch.setattr("s3pet.tuning.write_json", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        other.save(tmp_path / "run", overwrite=True)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before, "the old model is whole"
    monkeypatch.undo()
    other.save(tmp_path / "run", overwrite=True)
    assert sorted(os.listdir(tmp_path / "run")) == ["files.json", "metrics.json", "tuned.json", "weights.safetensors"]
    assert load_tuned(tmp_path / "run", model, task).predict(task.test) == other.predict(task.test)
    tuned.save(tmp_path / "run", overwrite=True)
    assert load_tuned(tmp_path / "run", model, task).structure == tuned.structure


@pytest.mark.parametrize(("what", "constant", "value"), [("full", "PAUSE", 0.0), ("lnfit", "AT_MOST", 0.0)])
def test_a_retraining_that_was_cut_off_continues_bit_for_bit(tmp_path, monkeypatch, what, constant, value):
    monkeypatch.setattr(f"s3pet.trainer.{constant}", value)  # a checkpoint after every step
    model, task, out = tiny_bert(), short_task(), tmp_path / "run"
    structure = what if what == "full" else manual_structure(model, what)
    options = {"steps": 9, "batch_size": 4, "evaluations": 3, "dropout": True, "lr": 1e-2}

    class Watch(TrainerCallback):
        def __init__(self, end=None):
            self.steps, self.end = [], end

        def on_step_end(self, args, state, control, **kwargs):
            self.steps.append(state.global_step)
            if state.global_step == self.end:
                raise ZeroDivisionError

    whole = retrain(model, task, structure, **options)
    with pytest.raises(ZeroDivisionError):
        retrain(model, task, structure, out=out, callbacks=[Watch(7)], **options)
    for path in (out / "checkpoint").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), f"{path} holds a path of this machine"
    with pytest.raises(RunError, match=r"unfinished retraining with other settings \(seed 0 → 1\)"):
        retrain(model, task, structure, out=out, seed=1, **options)
    with pytest.raises(RunError, match="holds no tuned model"):
        load_tuned(out, model, task)
    watch = Watch()
    rest = retrain(model, task, structure, out=out, callbacks=[watch], **options)
    assert watch.steps == [7, 8, 9]
    assert all(torch.equal(tensor, rest.tensors()[name]) for name, tensor in whole.tensors().items())
    assert rest.metrics["curve"] == whole.metrics["curve"] and rest.metrics["best_step"] == whole.metrics["best_step"]
    assert (rest.cost.passes, rest.cost.rows) == (whole.cost.passes, whole.cost.rows)
    assert "checkpoint" not in os.listdir(out) and load_tuned(out, model, task).metrics == rest.metrics


def pair_task():
    rows = [{"left": "w1 w2", "right": f"w{k}", "label": ("good", "bad", "fair")[k % 3]} for k in range(24)]
    data = {"train": rows, "validation": rows[:8], "test": rows[:8]}
    words = {"label_words": ("w9", "w8", "w7"), "label_names": ("good", "bad", "fair")}
    return load_task(data, toy_tokenizer(), text_columns=("left", "right"), **words)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_new_texts_get_label_names_and_a_saved_model_needs_no_data(make_model, tmp_path):
    model, task = make_model(), pair_task()
    tuned = retrain(
        model, task, manual_structure(model, "lora_all"), out=tmp_path, objective={"max_length": 24}, **QUICK
    )
    records = [("w1 w2", "w3"), {"left": "w5", "right": "w6 w7", "label": None}, task.test[0]]
    names = tuned.predict(records)
    indices = tuned.learner.objective.predict  # not attached: the plain backbone
    with tuned.learner.attached():
        assert names == [task.label_names[int(i)] for i in indices(read_records(task, records))]
    assert tuned.predict([("w1 w2", f"w{k}") for k in range(8)]) == tuned.predict(task.test), "labels do not matter"
    probabilities = tuned.predict(records, proba=True)
    assert [*probabilities] == ["good", "bad", "fair"] and probabilities.sum(axis=1).to_numpy() == pytest.approx(1)
    assert [*probabilities.idxmax(axis=1)] == names
    assert tuned.predict([]) == [] and tuned.predict([], proba=True).shape == (0, 3)
    model.s3pet_tokenizer = toy_tokenizer()
    again = load_tuned(tmp_path, model)
    assert again.predict(records, proba=True).equals(probabilities)
    assert again.learner.objective.settings == tuned.learner.objective.settings
    assert again.evaluate(task.test) == tuned.evaluate(task.test)
    with pytest.raises(TaskError, match="rows without labels cannot be scored"):
        again.evaluate(read_records(task, records[:1]))


def test_a_saved_regression_gives_values_without_data(tmp_path):
    model, task = tiny_bert(), toy_regression()
    tuned = retrain(model, task, "head", out=tmp_path, **QUICK)
    again = load_tuned(tmp_path, model, tokenizer=toy_tokenizer())
    assert again.predict(["w1 w2", "w3"]) == tuned.predict([{"sentence1": "w1 w2"}, ("w3",)])
    with pytest.raises(TaskError, match="no probabilities"):
        again.predict(["w1"], proba=True)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("w1 w2", r"expected a list of records; pass \['w1 w2'\]"),
        ({"left": "w1", "right": "w2"}, "expected a list of records"),
        (["w1"], r"record 1 is 'w1'; expected a dict with columns \['left', 'right'\], or a tuple of 2 texts"),
        ([("w1", "w2"), ("w1", "w2", "w3")], "record 2 is"),
        ([{"left": "w1"}], "record 1: column 'right' is missing"),
        ([("w1", None)], "column 'right' holds None; expected a text"),
        ([3], "record 1 is 3"),
    ],
)
def test_records_that_cannot_be_read_are_named(records, message):
    with pytest.raises(TaskError, match=message):
        read_records(pair_task(), records)


def test_a_table_is_read_by_rows():
    table = pd.DataFrame({"left": ["w1", "w3"], "right": ["w2", "w4"]})
    task = pair_task()
    assert read_records(task, table) == read_records(task, [("w1", "w2"), ("w3", "w4")])


def test_a_folder_says_what_it_lacks(tmp_path):
    model, task = tiny_t5(), toy_task()
    retrain(model, task, manual_structure(model, "lnfit"), out=tmp_path, **QUICK)
    with pytest.raises(RunError, match="no tokenizer came with this backbone; pass it"):
        load_tuned(tmp_path, model)
    other = copy.deepcopy(toy_tokenizer())
    other.add_tokens(["no yes"])
    with pytest.raises(TaskError, match="another tokenizer"):
        load_tuned(tmp_path, model, tokenizer=other)
    config = json.loads((tmp_path / "tuned.json").read_text())
    (tmp_path / "files.json").unlink()
    del config["form"]
    (tmp_path / "tuned.json").write_text(json.dumps(config))
    assert load_tuned(tmp_path, model, task).predict(task.test)
    with pytest.raises(RunError, match="without the task's prompt; pass the task"):
        load_tuned(tmp_path, model, tokenizer=toy_tokenizer())
    for name in ("weights.safetensors", "tuned.json"):
        (tmp_path / name).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00damaged")
        with pytest.raises(RunError, match=rf"{name} cannot be read: "):
            load_tuned(tmp_path, model, task)


def test_patience_stops_when_validation_no_longer_rises():
    model, task = tiny_bert(), short_task()
    options = {"steps": 40, "batch_size": 4, "evaluations": 20, "lr": 1e-9}
    whole, short = (retrain(model, task, "head", patience=n, **options) for n in (None, 3))
    assert len(whole.metrics["curve"]) == 20
    assert [row["step"] for row in short.metrics["curve"]] == [2, 4, 6, 8], "the first one and three without a rise"
    assert short.metrics["curve"] == whole.metrics["curve"][:4]
    assert (short.config["patience"], "patience" in whole.config) == (3, False)
    assert short.cost.passes == 8
    with pytest.raises(SearchError, match="patience must be > 0, got 0"):
        retrain(model, task, "head", patience=0)
