"""What one process of a study does: a search, or the retraining of one row.

Backbone and tasks are opened once per process. Several processes share the cores, so each computes on one thread.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from s3pet.backbones import backbone_checksum, load_backbone
from s3pet.errors import DivergedError, RunError, S3PetError, SearchError, StudyError
from s3pet.objectives.texts import make_objective
from s3pet.records import config_hash, recorded
from s3pet.searcher import search as search_structure
from s3pet.space import make_space
from s3pet.structure import manual_structure, parse_budget, random_structure
from s3pet.studies.adalora import retrain_adalora
from s3pet.studies.comparison import Entry, measure
from s3pet.studies.declaration import KINDS
from s3pet.studies.selectors import depth_structure, sensitive_structure
from s3pet.tasks import Task, load_task
from s3pet.transfer import average_gates
from s3pet.tuning import retrain

Row = dict[str, Any]


@lru_cache(maxsize=2)
def _load_model(backbone: str, declared: str, space: str) -> tuple[Any, Any, Any]:
    options = json.loads(backbone)
    model, tokenizer = load_backbone(options.pop("path"), **options)
    if declared != backbone:
        model.s3pet_id = json.loads(declared)["path"]  # saved files hold nothing of what the environment says
    return model, tokenizer, make_space(model, json.loads(space))


@lru_cache(maxsize=32)
def _load_task(backbone: str, declared: str, space: str, task: str) -> Task:
    options = json.loads(task)
    return load_task(options.pop("path"), _load_model(backbone, declared, space)[1], **options)


def _open(study: Any, task: str) -> tuple[Any, Task, Any]:
    plain = json.dumps({"path": study.backbone} if isinstance(study.backbone, str) else study.backbone)
    where = _expanded(plain), plain, json.dumps(study.space)
    model, _, space = _load_model(*where)
    declared = study.tasks[task]
    options = {"name": task, **({"path": declared} if isinstance(declared, str) else declared)}
    return model, _load_task(*where, _expanded(json.dumps(options))), space


@cache
def _end_with(study: int) -> None:
    """Let this process end soon after the study that started it, also if that was killed."""

    def watch() -> None:
        while os.getppid() == study:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _expanded(text: str) -> str:
    text = os.path.expandvars(text)
    if "${" in text:
        name = text.partition("${")[2].partition("}")[0]
        raise StudyError(f"the study needs ${{{name}}}, which the environment does not set; set it and run again")
    return text


def open_facts(study: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """Open backbone and tasks, and return what keys depend on besides the declaration; also of tasks opened before."""
    model, task, space = _open(study, tasks[0])
    noted = dict(study.facts.get("tasks", {}))
    for name in dict.fromkeys(tasks):
        noted[name] = {"declared": study.tasks[name], "fingerprint": _open(study, name)[1].fingerprint}
    return {
        "declared": study.declared(),
        "backbone": backbone_checksum(model),
        "backbone_params": space.backbone_params,
        "space": config_hash({"candidates": [candidate.name for candidate in space]}),  # as in the config of a search
        "objective": recorded(make_objective(model, task, study.objective).settings),
        "tasks": noted,
    }


def hashes(facts: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What the facts say about a task, by the names that the config of a search has for it."""
    content = {"model_hash": facts["backbone"], "task_hash": facts["tasks"][task]["fingerprint"]}
    return {**content, "space_hash": facts["space"], "objective": facts["objective"]}


def run_search(study: Any, task: str, search: str, seed: int) -> tuple[tuple[str, str, int], str | None]:
    """Run one search of a study into its folder; returns (task, search, seed) and, if it diverged, why."""
    model, opened, space = _open(study, task)
    how = {**study.settings(search, seed), "objective": study.objective, "progress": False}
    how |= {"out": study.folder(task, search, seed), "overwrite": True}  # one with the same settings is continued
    try:
        result = search_structure(model, opened, space, **how)
    except DivergedError as error:
        return (task, search, seed), str(error)
    except (RunError, SearchError) as error:
        raise StudyError(f"search {search!r} on {task!r}, seed {seed}: {error}") from error
    if result.metrics.get("stopped") == "interrupted":
        raise KeyboardInterrupt
    return (task, search, seed), None


def run_row(study: Any, row: Row, key: str) -> Row:
    """Retrain one row's structure; returns the finished row."""
    model, task, space = _open(study, row["task"])
    budget, structure = row["budget"], None
    recipe = {**study.recipe(row["task"]), "seed": row["seed"], "lr": row["lr"], "objective": study.objective}
    recipe["checkpoints"] = study.unfinished(key)
    try:
        if row["kind"] == "adalora":
            train = partial(retrain_adalora, model, task, budget, **_options(study, row))
        else:
            structure = _make_structure(study, row, model, task, space)
            train = partial(retrain, model, task, structure)
        measured = measure(partial(train, **recipe), model, task, structure)
        costs = [study.result(*need).cost for need in study.needs(row)]
    except S3PetError as error:
        raise StudyError(f"{row['structure']!r} on {row['task']!r}, seed {row['seed']}: {error}") from error
    finished = {name: value for name, value in row.items() if name not in ("decides", "repeat")}  # parts of the plan
    if budget is not None:
        finished["budget"] = parse_budget(space, budget).n_params
    spent = {"search_rows": sum(cost.rows for cost in costs), "search_seconds": sum(cost.seconds for cost in costs)}
    return {"key": key, **finished, **measured, **spent}


def _make_structure(study: Any, row: Row, model: Any, task: Task, space: Any) -> Entry:
    options, kind, budget, seed = _options(study, row), row["kind"], row["budget"], row["index"]
    name = str(options.get("name", row["entry"]))
    if kind == "reference":
        return name
    if kind == "manual":
        return manual_structure(space, name)
    if kind == "rules":
        return manual_structure(make_space(model, options["rules"]), "all")
    if kind == "random":
        return random_structure(space, budget, seed=seed)
    if kind == "heuristic":
        return depth_structure(space, budget, **options)
    if kind == "sensitivity":
        options |= {"batch_size": study.recipe(row["task"]).get("batch_size", 32), "objective": study.objective}
        return sensitive_structure(model, task, space, budget, seed=seed, **options)
    return average_gates([study.result(*need) for need in study.needs(row)]).structure(budget)


def _options(study: Any, row: Row) -> dict[str, Any]:
    entry = study.structures[row["entry"]]
    return {name: entry[name] for name in KINDS[row["kind"]].options if name in entry}


def forget() -> None:
    """Drop what this process has opened; the next job opens it anew."""
    _load_model.cache_clear()
    _load_task.cache_clear()


def each(function: Any, arguments: Sequence[tuple], what: str, *, jobs: int) -> Iterator[Any]:
    """Call a function with each of ``arguments`` in so many processes; yields results as they come, with a bar."""
    results: Any = (function(*values) for values in arguments)
    if jobs > 1 and len(arguments) > 1:
        parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        results = parallel(delayed(_on_one_thread)(function, values, os.getpid()) for values in arguments)
    yield from tqdm(results, total=len(arguments), desc=what, disable=not arguments)


def _on_one_thread(function: Any, arguments: tuple, study: int) -> Any:
    if os.getppid() == study:
        _end_with(study)
    torch.set_num_threads(1)
    return function(*arguments)
