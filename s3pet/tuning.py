"""Train a structure from fresh and evaluate it; the references too.

The chosen candidates get fresh tensors, gates gone, and are trained on the full training split by
``transformers.Trainer``; the best checkpoint by validation is kept and only then is the test split looked at.
Checkpoints hold trained tensors only (kilobytes). References run through the same code: ``"full"`` fine-tunes a copy
of the backbone, ``"head"`` trains the task head alone, ``"zero-shot"`` trains nothing.

Source: Hu et al. 2022 (arXiv:2206.07382), section 4.2: AdamW without decay, linear decay to 0, gradient norm 2.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from s3pet.result import Cost
from s3pet.errors import RunError, SearchError, StructureMismatchError
from s3pet.objective import Objective, make_objective
from s3pet.result import versions, write_json
from s3pet.structure import Structure
from s3pet.supernet import Supernet
from s3pet.tasks import Example, Task
from s3pet.trainer import DEFAULT_LR, WEIGHTS, Learner, Recipe, train

Reference = Literal["full", "head", "zero-shot"]
REFERENCES: tuple[str, ...] = ("full", "head", "zero-shot")


@dataclass
class TunedModel:
    """A trained structure on its backbone.

    Attributes:
        model: call it like the backbone; the backbone itself stays as it was. For ``"full"`` a tuned copy.
        task: the task.
        structure: what was trained; None for references.
        metrics: ``validation`` and ``test`` (main metric), ``n_params`` (PET), ``head_params``, ``cost``, ….
        config: recipe, task, model, versions.
    """

    model: nn.Module
    task: Task
    structure: Structure | None
    metrics: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    objective: Objective | None = None

    @property
    def cost(self) -> Cost:
        """What the retraining cost: passes, rows, seconds, peak memory."""
        return Cost.of(self.metrics)

    def predict(self, examples: Sequence[Example]) -> list[float]:
        """Class index (or value) for each example of the task."""
        assert self.objective is not None
        with _attached(self.model):
            return self.objective.predict(examples)

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """The task's metrics on examples, the main one first."""
        return self.task.score(self.predict(examples), [example.label for example in examples])

    def tensors(self) -> dict[str, Tensor]:
        """Trained tensors by name: PET and head, or everything for ``"full"``."""
        assert self.objective is not None
        if isinstance(self.model, Supernet):
            tensors = self.model.tensors()
        else:
            trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            tensors = {f"backbone/{name}": p.detach() for name, p in trained.items()}
        head = self.objective.head
        return tensors | ({f"head/{k}": v.detach() for k, v in head.named_parameters()} if head else {})

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write trained tensors (safetensors), structure, metrics and config to a folder.

        Raises:
            RunError: the folder holds a tuned model and ``overwrite`` is not set.
        """
        path = Path(path)
        if (path / WEIGHTS).exists() and not overwrite:
            raise RunError(f"{path} holds a tuned model; choose another folder or pass overwrite=True")
        path.mkdir(parents=True, exist_ok=True)
        save_file({key: value.cpu().contiguous() for key, value in self.tensors().items()}, path / WEIGHTS)
        if self.structure is not None:
            self.structure.to_json(path / "structure.json")
        write_json(self.metrics, path / "metrics.json")
        write_json(self.config, path / "tuned.json")
        return path

    def __repr__(self) -> str:
        name = self.config.get("structure")
        return f"TunedModel({self.task.name}, {name}, test {self.metrics.get('test', float('nan')):.4f})"


def retrain(
    model: nn.Module,
    task: Task,
    structure: Structure | Reference | str,
    *,
    out: str | Path | None = None,
    progress: bool = False,
    test: bool = True,
    **recipe: Any,
) -> TunedModel:
    """Train a structure from fresh on the full training split; best checkpoint by validation; then test.

    Args:
        model: the backbone; left as it was.
        task: the task, with its tokenizer.
        structure: a structure, or ``"full"`` (fine-tune a copy), ``"head"`` (the head alone; of a text-to-text
            backbone the same as zero-shot), ``"zero-shot"``.
        out: folder to save the tuned model to.
        progress: show a bar.
        test: look at the test split; False while something is still to be chosen, and there is no ``test`` then.
        **recipe: fields of :class:`Recipe`: steps, batch_size, lr, seed, ….

    Returns:
        The tuned model; ``.metrics["validation"]`` and ``.metrics["test"]`` are the task's main metric, all metrics
        are under ``validation_all`` and ``test_all``.

    Raises:
        StructureMismatchError: the structure is not for this model. SearchError: another supernet is attached, or an
            unknown reference. RunError: ``out`` holds a tuned model.
    """
    chosen = Recipe(**recipe)
    if not isinstance(structure, Structure) and structure not in REFERENCES:
        raise SearchError(f"structure {structure!r} is neither a Structure nor one of {', '.join(REFERENCES)}")
    if out is not None and (Path(out) / WEIGHTS).exists():
        raise RunError(f"{out} holds a tuned model; choose another folder")
    learner, tuned_model, _ = _learner(model, task, structure, chosen)
    kept = structure if isinstance(structure, Structure) else None
    kind = structure if isinstance(structure, str) else "pet"
    tuned = tune(learner, tuned_model, model, task, chosen, kind, structure=kept, progress=progress, test=test)
    if out is not None:
        tuned.save(out)
    return tuned


def tune(
    learner: Learner,
    tuned_model: nn.Module,
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    kind: str,
    *,
    structure: Structure | None = None,
    progress: bool = False,
    test: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    score_from: int = 0,
) -> TunedModel:
    """Train what a learner holds, score it, and note what it cost: the part every way of tuning shares.

    Args:
        learner: what is trained. tuned_model: what its objective runs. model: the backbone, whose mode is kept.
        task: the task. recipe: how.
        kind: ``"pet"`` for a structure, a reference, or the name of another method; it names the learning rate.
        structure: what is trained, if it is one.
        progress: show a bar.
        test: look at the test split.
        callbacks, score_from: see :func:`s3pet.trainer.train`.
    """
    objective, start, was_training = learner.objective, time.perf_counter(), model.training
    validation = (task.validation, objective.encode(task.validation))
    best_step, log = 0, list[dict[str, float]]()
    try:
        watched = learner.cost.watch_memory(objective.device)
        with isolated_random(recipe.seed), _attached(tuned_model), watched:
            if learner.trained() and kind != "zero-shot":
                rows = objective.encode(task.train)
                options: Any = {"callbacks": callbacks, "score_from": score_from}
                best_step, log = train(learner, rows, validation, recipe, kind, progress, **options)
            objective.model.eval()
            scores = {"validation": objective.evaluate(*validation)}
            scores |= {"test": objective.evaluate(task.test)} if test else {}
    finally:
        model.train(was_training)
    learner.cost.scored, learner.cost.seconds = objective.scored, time.perf_counter() - start
    metrics: dict[str, Any] = {split: next(iter(found.values())) for split, found in scores.items()}
    metrics |= {
        "metric": task.metric,
        "n_params": structure.n_params if structure is not None else 0,
        "backbone_params": sum(p.numel() for p in tuned_model.parameters()) if kind == "full" else 0,
        "head_params": objective.head_params,
        "best_step": best_step,
        "cost": learner.cost.to_dict(),
        **{f"{split}_all": found for split, found in scores.items()},
        "curve": log,
    }
    config = {
        "structure": kind if structure is None else structure.origin.get("kind", "custom"),
        "model": getattr(model, "s3pet_id", type(model).__name__),
        "task": task.name,
        "task_hash": task.fingerprint,
        "label_words": list(task.label_words),
        **asdict(recipe),
        "lr": recipe.lr or DEFAULT_LR.get(kind),
        "versions": versions(),
    }
    return TunedModel(tuned_model, task, structure, metrics, config, objective)


def load_tuned(path: str | Path, model: nn.Module, task: Task) -> TunedModel:
    """Open a saved tuned model on its backbone.

    Raises:
        RunError: no tuned model there. StructureMismatchError: it is not for this model or task.
    """
    path = Path(path)
    missing = [name for name in (WEIGHTS, "tuned.json", "metrics.json") if not (path / name).is_file()]
    if missing:
        raise RunError(f"{path} holds no tuned model: {', '.join(missing)} missing. Make one: tuned.save({path})")
    config = json.loads((path / "tuned.json").read_text(encoding="utf-8"))
    if (config["task"], config["label_words"]) != (task.name, list(task.label_words)):
        raise StructureMismatchError(
            f"{path} was tuned on task {config['task']!r} with label words {config['label_words'][:4]}, not on "
            f"{task.name!r} with {list(task.label_words[:4])}"
        )
    file = path / "structure.json"
    structure: Any = Structure.from_json(file, model) if file.is_file() else config["structure"]
    if isinstance(structure, str) and structure not in REFERENCES:
        raise RunError(f"{path} was tuned by {structure}, whose modules are another library's; tune it again instead")
    chosen = Recipe(**{key: config[key] for key in Recipe.__dataclass_fields__ if key in config})
    learner, tuned_model, objective = _learner(model, task, structure, chosen)
    tensors = load_file(path / WEIGHTS)
    tuned = TunedModel(tuned_model, task, structure if file.is_file() else None, {}, config, objective)
    own = tuned.tensors()
    wrong = [
        key for key in {*own, *tensors} if key not in own or key not in tensors or own[key].shape != tensors[key].shape
    ]
    if wrong:
        raise StructureMismatchError(f"{path} does not fit this model: {', '.join(sorted(wrong)[:3])} differ")
    for key, tensor in own.items():
        tensor.copy_(tensors[key])  # detached views of the live tensors
    tuned.metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    objective.model.eval()
    return tuned


@contextmanager
def isolated_random(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random inside, and give every global random state back afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the Trainer seeds it
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _learner(
    model: nn.Module, task: Task, structure: Structure | str, recipe: Recipe
) -> tuple[Learner, nn.Module, Objective]:
    full = structure == "full"
    target = copy.deepcopy(model) if full else model
    options: Any = {"seed": recipe.seed}

    objective = make_objective(target, task, **options)
    candidates = structure if isinstance(structure, Structure) else ()  # without any, a supernet still freezes
    supernet = None if full else Supernet(target, candidates, seed=recipe.seed)
    return Learner(objective, supernet, full), supernet or target, objective


def _attached(model: nn.Module) -> Any:
    return model if isinstance(model, Supernet) else nullcontext()
