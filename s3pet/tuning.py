"""Train a structure from fresh PET tensors, evaluate it, save it and load it.

The chosen candidates are trained without gates on the full training split. The weights with the best validation score
are kept, and only then is the test split scored. References run through the same code: ``"full"`` fine-tunes a copy
of the backbone, ``"head"`` trains the task head alone, ``"zero-shot"`` trains nothing.

Source: Hu et al. 2022 (arXiv:2206.07382), section 4.2: AdamW without decay, linear decay to 0, gradient norm 2.
"""

from __future__ import annotations

import copy
import json
import reprlib
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from s3pet.backbones.frozen import backbone_checksum, check_model, n_parameters, unwrapped
from s3pet.backbones.loading import name_of, tokenizer_of
from s3pet.backbones.loans import borrows, preserved, refuse_attached
from s3pet.errors import DivergedError, RunError, SearchError, StructureMismatchError, TaskError, shown
from s3pet.files import kinds
from s3pet.files.kinds import FLAG, RECORD, RECORDS, TEXT, TEXTS, mapping, number, optional, whole
from s3pet.files.reading import path_of, read_json, read_tensors, reading
from s3pet.files.writing import carried, destination, new_folder, saved_files, write_json, write_tensors
from s3pet.objectives import OwnObjective
from s3pet.objectives.own import Own, checked, objective_of
from s3pet.objectives.processes import Processes
from s3pet.objectives.ready import rebuilt
from s3pet.objectives.texts import ObjectiveSettings
from s3pet.records import Cost, recorded, settings_of, versions
from s3pet.structure import Structure
from s3pet.supernet import Supernet
from s3pet.tasks import Example, Task
from s3pet.tasks.checks import TOKENIZER
from s3pet.tasks.forms import FORM, form_of, read_records, task_of
from s3pet.tasks.plain import NamedTask, RowTask, exact_match
from s3pet.tasks.rows import read_split
from s3pet.trainer import Bar, Learner, Recipe, train

REFERENCES = ("full", "head", "zero-shot")
DEFAULT_LR = {"pet": 3e-3, "head": 3e-3, "full": 5e-4, "adalora": 3e-3}
WEIGHTS, CONFIG, TUNED = "weights.safetensors", "tuned.json", "tuned model"
CONFIG_FIELDS = {
    **dict.fromkeys(("structure", "model", "model_hash", "task", "task_hash"), TEXT),
    **{"label_words": TEXTS, "regression": FLAG, "objective": RECORD, "form": optional(FORM)},
    **{"lr": optional(number(0))},
    **{name: whole(1) for name in ("steps", "batch_size", "evaluations")},
    **{"seed": whole(), "lr_warmup": whole(), "vector_lr": number(0), "dropout": FLAG, "versions": mapping(TEXT)},
}
METRICS = {
    **{"metric": TEXT, "validation": optional(number()), "test": optional(number()), "cost": RECORD, "curve": RECORDS},
    **{name: whole() for name in ("n_params", "backbone_params", "head_params", "best_step")},
}


@dataclass
class TunedModel:
    """A trained structure on its backbone.

    Attributes:
        model: call it like the backbone; PET modules, and a trained head that the backbone has itself, are in place
            during the call only. For ``"full"`` a tuned copy.
        task, structure: the task, and what was trained; None for references.
        learner: holds the trained tensors.
        metrics: ``validation`` and ``test`` (the main metric), ``n_params`` (PET), ``head_params``, ``cost``, …
        config: what decided the result: recipe, ``objective``, hashes of backbone and task, versions.
    """

    model: nn.Module
    task: Any
    structure: Structure | None
    learner: Learner
    metrics: dict[str, Any]
    config: dict[str, Any]

    @property
    def cost(self) -> Cost:
        """What the retraining cost: passes, rows, seconds, peak memory."""
        return Cost.of(self.metrics)

    @borrows("a prediction", short=True, of=lambda tuned: tuned.learner.backbone)
    def predict(self, records: Iterable[Any], *, proba: bool = False) -> list[Any] | pd.DataFrame:
        """Label name (or value) of each record; with ``proba`` a table with the probability of each label instead.

        Args:
            records: new texts, or other records as in :func:`s3pet.tasks.forms.read_records`; they need no labels. For
                an objective of your own, rows that it encodes; what it predicts is returned.
            proba: return a DataFrame, [n_records, n_labels], with the label names as columns.

        Raises:
            TaskError: records that the task cannot read, or ``proba`` of a regression. DivergedError: a score is NaN.
        """
        FLAG.check(TaskError, proba=proba)
        if isinstance(self.learner.objective, Own):
            if proba:
                raise TaskError(f"{self.config['objective']['own']} predicts no probabilities; call without proba")
            if isinstance(records, str | Mapping):
                raise TaskError(f"expected a list of rows; pass [{reprlib.repr(records)}]")
            with self.learner.attached():
                return self.learner.objective.predict(read_split(records))
        examples, names = read_records(self.task, records), self.task.label_names
        if proba and self.task.regression:
            raise TaskError(f"task {self.task.name!r} is a regression, which has values and no probabilities")
        with self.learner.attached():
            if not proba:
                values = self.learner.objective.predict(examples)
                return values if self.task.regression else [names[int(value)] for value in values]
            scores = self.learner.objective.score_rows(examples) if examples else torch.zeros(0, len(names))
        return pd.DataFrame(scores.softmax(-1).cpu().numpy(), columns=list(names))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``model.generate`` of transformers, with the PET modules on."""
        generate: Any = self.model.generate
        return generate(*args, **kwargs)

    @borrows("a prediction", short=True, of=lambda tuned: tuned.learner.backbone)
    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """The task's metrics on examples, the main one first."""
        if isinstance(self.task, Task):
            kinds.many(kinds.instance(Example, "an example, as task.test has them")).check(TaskError, examples=examples)
        with self.learner.attached():
            return self.learner.objective.evaluate(examples)

    def tensors(self) -> dict[str, Tensor]:
        """Trained tensors by name: those of the PET modules and the head, or all for ``"full"``."""
        return {name: w.detach() for name, w in zip(self.learner.names, self.learner.weights, strict=True)}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write trained tensors (safetensors), structure, metrics and config to a folder, all files or none.

        Raises RunError if the folder holds a tuned model and ``overwrite`` is not set, or it cannot be written to.
        """
        with new_folder(path, CONFIG, TUNED, overwrite) as folder:
            self.write(folder)
        return Path(path)

    def write(self, folder: Path) -> None:
        """Write the files of :meth:`save` to an empty folder."""
        write_tensors(self.tensors(), folder / WEIGHTS)
        write_json(self.metrics, folder / "metrics.json")
        if self.structure is not None:
            self.structure.to_json(folder / "structure.json")
        write_json(self.config, folder / CONFIG)

    def __repr__(self) -> str:
        split = "test" if "test" in self.metrics else "validation"
        return f"TunedModel({self.task.name}, {self.config['structure']}, {split} {self.metrics[split]:.4f})"


TUNED_MODEL = kinds.instance(TunedModel, "a tuned model, as retrain(…) and load_tuned(…) return it")


@borrows("a retraining", seeds=True)
def retrain(
    model: nn.Module,
    task: Task | RowTask,
    structure: Structure | str,
    *,
    objective: ObjectiveSettings | Mapping[str, Any] | OwnObjective | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    test: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoints: str | Path | None = None,
    **recipe: Any,
) -> TunedModel:
    """Train a structure from fresh tensors, keep the best weights by validation, and score the test split.

    Returns a tuned model whose ``metrics`` hold the task's main metric as ``validation`` and ``test``.

    Args:
        model, task: the backbone, left as it was after any exit, and the task, with its tokenizer if it needs one.
        structure: a structure, ``"full"``, ``"head"`` (for a text-to-text backbone the same as zero-shot) or
            ``"zero-shot"``.
        objective: :class:`s3pet.objectives.ObjectiveSettings`, or a mapping of some of its fields; or an object of your
            own, see :mod:`s3pet.objectives`.
        out: folder to save the tuned model to; with it, the retraining writes checkpoints and continues where it was
            cut off. progress: show a bar.
        test: score the test split; use False while something is still to be chosen.
        callbacks: Hugging Face callbacks, for early stopping, logging and the like.
        checkpoints: without ``out``: folder for checkpoints alone; remove it when its result is kept.
        **recipe: fields of :class:`Recipe`: steps, batch_size, lr, seed, …

    Raises:
        StructureMismatchError: the structure is not for this model. RunError: ``out`` holds a tuned model, or an
            unfinished retraining with other settings; another process works there; or it cannot be written to (found
            before the work; after it, ``error.tuned`` is the tuned model).
        SearchError: bad settings, or an attached supernet. DivergedError: a loss or score is NaN or infinite; the
            attribute ``tuned`` of the error is the best model scored before, or None.
    """
    chosen, objective = settings_of(Recipe, recipe, "retrain"), checked(objective)
    check_model(model)
    FLAG.check(SearchError, progress=progress, test=test)
    callback = kinds.instance((TrainerCallback, type), "a callback of transformers")
    kinds.many(callback).check(SearchError, callbacks=callbacks)
    own_place = None if checkpoints is None else path_of(checkpoints, name="checkpoints")
    processes = Processes(next(model.parameters()).device)
    with ExitStack() as kept:
        folder = processes.first(lambda: kept.enter_context(destination(out, CONFIG, TUNED, overwrite=False)))
        folder = None if folder is None else Path(folder)
        learner = _make_learner(model, task, structure, objective, chosen.seed)
        place = folder / "checkpoint" if folder is not None else own_place
        options: Any = {"progress": progress, "test": test, "callbacks": callbacks, "checkpoints": place}
        tuned = tune(learner, model, chosen, structure, **options)
        if folder is not None:
            with carried("tuned", lambda: tuned):
                processes.first(lambda: str(tuned.save(folder)))
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return tuned


def tune(
    learner: Learner,
    model: nn.Module,
    recipe: Recipe,
    structure: Structure | str,
    *,
    progress: bool = False,
    test: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    score_from: int = 0,
    checkpoints: Path | None = None,
) -> TunedModel:
    """Train what a learner holds, score it and record what it cost; all ways of tuning share this function.

    Args:
        learner, model, recipe: what is trained, the backbone as the user has it, and how it is trained.
        structure, progress, test, callbacks: as for :func:`retrain`; a structure may be the name of another method.
        score_from: first step at which the validation split may be scored and weights kept.
        checkpoints: folder for checkpoints, from the last of which training continues; None: none are kept.
    """
    objective, started = learner.objective, time.perf_counter()
    task, target, rows = objective.task, learner.target, objective.encode(objective.task.validation)
    objective.batch_size = min(objective.batch_size, 4 * recipe.batch_size)  # without gradients more rows fit
    kept, kind = (structure, "pet") if isinstance(structure, Structure) else (None, structure)
    lr = recipe.lr or DEFAULT_LR.get(kind)
    learner.dropout = kind == "full" if recipe.dropout is None else recipe.dropout
    config = {
        "structure": kind if kept is None else kept.origin.get("kind", "custom"),
        **{"model": name_of(model), "model_hash": backbone_checksum(model, objective.heads)},
        **{"task": task.name, "task_hash": task.fingerprint},
        **{"label_words": list(task.label_words), "regression": task.regression},
        "form": form_of(task) if isinstance(task, Task) else None,
        **{"objective": objective.declared(), **recorded(recipe)},
        **{"lr": lr, "dropout": learner.dropout, "versions": versions()},
    }
    best_step, curve, failure, scores = 0, list[dict[str, float]](), None, dict[str, dict[str, float]]()
    watched, processes = learner.cost.watch_memory(objective.device), Processes(objective.device)
    processes.check_same(json.dumps(config, sort_keys=True, default=str), "backbone, task or recipe")
    with preserved(model, target, objective), learner.attached(), watched:
        torch.manual_seed(processes.seed(recipe.seed))
        if len(learner.weights) and kind != "zero-shot":
            hooks = [*callbacks, Bar()] if progress else callbacks
            rate, about = float(lr or 0), {**config, "names": learner.names}
            best_step, curve, failure = train(learner, rows, recipe, rate, hooks, score_from, checkpoints, about)
        try:
            if failure is None or best_step:
                scores["validation"] = processes.first(lambda: objective.evaluate(task.validation, rows))
            if failure is None and test:
                scores["test"] = processes.first(lambda: objective.evaluate(task.test))
        except DivergedError as error:
            failure = error
    learner.cost.scored, learner.cost.seconds = objective.scored, learner.cost.seconds + time.perf_counter() - started
    metrics = {
        **{split: values[task.metric] for split, values in scores.items()},
        "metric": task.metric,
        "n_params": kept.n_params if kept is not None else 0,
        "backbone_params": n_parameters(target) if kind == "full" else 0,
        "head_params": objective.head_params,
        "best_step": best_step,
        "cost": learner.cost.to_dict(),
        **{f"{split}_all": values for split, values in scores.items()},
        "curve": curve,
        **({"processes": processes.count} if processes.count > 1 else {}),
    }
    tuned = TunedModel(target, task, kept, learner, metrics, config)
    if failure is not None:
        failure.tuned = tuned if "validation" in scores else None
        raise failure
    return tuned


def load_tuned(
    path: str | Path,
    model: nn.Module,
    task: Task | RowTask | None = None,
    *,
    tokenizer: Any = None,
    objective: OwnObjective | None = None,
) -> TunedModel:
    """Open a saved tuned model on its backbone.

    Args:
        path, model: the folder, and the backbone it was tuned on.
        task: only to score its rows again (and to merge, with an object of :mod:`s3pet.objectives`); warns if it was
            tuned on others. None: the task without rows, as it was saved (prompt, label words, metrics), is enough to
            predict.
        tokenizer: of the backbone; None: the one that was loaded with it.
        objective: the object that it was tuned with, if that cannot be made from its settings: one of your own, one
            with an image processor, or one with a function.

    Raises:
        RunError: no complete tuned model there, one whose modules belong to another library, no tokenizer, or not the
            objective that it was tuned with.
        StructureMismatchError: another backbone, or a task with other labels. TaskError: another tokenizer.
    """
    path, how = path_of(path), f"Make one: tuned.save({path})"
    check_model(model)
    TOKENIZER.check(TaskError, tokenizer=tokenizer)
    optional(kinds.instance((Task, RowTask), "a task, as load_task(…) returns it")).check(TaskError, task=task)
    files = saved_files(path, TUNED, (WEIGHTS, "metrics.json", CONFIG), how)
    with reading(path / CONFIG):
        config = read_json(files[CONFIG], CONFIG_FIELDS, ("structure", "task", "task_hash", "objective", "seed"))
    with reading(path / "metrics.json"):
        metrics = read_json(files["metrics.json"], METRICS, ("metric", "n_params", "head_params"))
        Cost.of(metrics)
    with reading(path / WEIGHTS):
        saved, _ = read_tensors(files[WEIGHTS])
    kind, file = config["structure"], files.get("structure.json")
    if "model_hash" not in config:
        raise RunError(f"{path} was saved by an earlier version that did not record the backbone; tune it again")
    if file is None and kind not in REFERENCES:
        raise RunError(f"{path} was tuned by {kind}, whose modules are another library's; tune it again instead")
    own = config["objective"].get("own")
    if tokenizer is None and (task is None or (own and objective is None)):
        tokenizer = tokenizer_of(model)
    if own and objective is None:
        objective = rebuilt(path, config["objective"], tokenizer)
    if own != (None if objective is None else type(objective).__qualname__):
        how = f"load_tuned(…, objective={own}(…))" if own else "load_tuned without objective="
        what = own or "an objective of s3pet, whose settings it holds"
        raise RunError(f"{path} was tuned with {what}, got objective={shown(objective)}; use {how}")
    if config["model_hash"] != (checksum := backbone_checksum(model, config["objective"].get("head", ()))):
        there = f"{config['model']!r} with checksum {config['model_hash'][:12]}"
        raise StructureMismatchError(
            f"{path} was tuned on backbone {there}, not on this {type(model).__name__} with {checksum[:12]}"
        )
    if task is None and own and config.get("form") is None:
        task = NamedTask(config["task"], (), (), metrics={metrics["metric"]: exact_match})
    if task is None and config.get("form") is None:
        raise RunError(f"{path} was saved by an earlier version without the task's prompt; pass the task")
    if task is None and tokenizer is None:
        raise RunError(f"no tokenizer came with this backbone; pass it: load_tuned({path}, model, tokenizer=…)")
    task = task_of(config["form"], tokenizer) if task is None else task
    if (config["regression"], config["label_words"]) != (task.regression, list(task.label_words)):
        there = f"{config['task']!r} with label words {config['label_words'][:4]}"
        here = f"{task.name!r} with {list(task.label_words[:4])}"
        raise StructureMismatchError(f"{path} was tuned on task {there}, not on {here}; load that task")
    if len(task.train) and config["task_hash"] != task.fingerprint:
        warnings.warn(f"{path} was tuned on other rows of {config['task']!r}; its metrics are of those", stacklevel=2)
    structure = None if file is None else Structure.from_json(file, model)
    if metrics["n_params"] != (0 if structure is None else structure.n_params):
        raise RunError(f"{path} says {metrics['n_params']} parameters in PET modules; its structure is {structure!r}")
    what = kind if structure is None else structure
    learner = _make_learner(model, task, what, objective or config["objective"], config["seed"])
    learner.objective.batch_size = min(learner.objective.batch_size, 4 * config["batch_size"])
    if own and (declared := learner.objective.declared()) != config["objective"]:
        raise StructureMismatchError(f"{path} was tuned with objective {config['objective']}, not with {declared}")
    tuned = TunedModel(learner.target, task, structure, learner, metrics, config)
    if {name: (t.shape, t.dtype) for name, t in saved.items()} != {
        n: (t.shape, t.dtype) for n, t in tuned.tensors().items()
    }:
        raise StructureMismatchError(f"{path / WEIGHTS} does not hold the tensors of its structure; tune it again")
    for name, tensor in tuned.tensors().items():
        tensor.copy_(saved[name])
    return tuned


def _make_learner(
    model: nn.Module, task: Task | RowTask, structure: Structure | str, settings: Any, seed: int
) -> Learner:
    """Fresh tensors on the backbone, or for ``"full"`` on a copy of it."""
    if not isinstance(structure, Structure) and not kinds.one_of(REFERENCES).holds(structure):
        raise SearchError(f"structure {shown(structure)} is neither a Structure nor one of {', '.join(REFERENCES)}")
    refuse_attached(model)
    target = copy.deepcopy(unwrapped(model)).eval() if structure == "full" else model
    objective = objective_of(target, task, settings, seed=seed)
    if structure == "full":
        target.requires_grad_(False)
        objective.unfreeze()
        learner = Learner(objective, backbone=target)
        if isinstance(objective, Own):
            objective.keep_head()
        return learner
    supernet = Supernet(model, structure if isinstance(structure, Structure) else (), seed=seed)
    if isinstance(objective, Own):
        supernet.__dict__["also"] = objective.with_head
    return Learner(objective, supernet)
