"""What one process of a study does: a search, or the retraining of one row.

Backbone and tasks are opened once per process. Several processes share the cores, so each computes on one thread.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

from tqdm.auto import tqdm

from s3pet.backbones import backbone_checksum, load_backbone
from s3pet.errors import RunError, S3PetError, SearchError, StudyError
from s3pet.objective import make_objective
from s3pet.result import config_hash
from s3pet.searcher import search as search_structure
from s3pet.space import make_space
from s3pet.structure import Structure, manual_structure, parse_budget, random_structure
from s3pet.studies.adalora import allocated_structure, retrain_adalora
from s3pet.studies.comparison import Entry, measure
from s3pet.studies.selectors import depth_structure, sensitive_structure
from s3pet.tasks import Task, load_task
from s3pet.transfer import average_gates
from s3pet.tuning import retrain

Row = dict[str, Any]


@lru_cache(maxsize=2)
def _load_model(backbone: str, space: str) -> tuple[Any, Any, Any]:
    model, tokenizer = load_backbone(backbone)
    return model, tokenizer, make_space(model, json.loads(space))


@lru_cache(maxsize=32)
def _load_task(backbone: str, space: str, declared: str) -> Task:
    options = json.loads(declared)
    options = {"path": options} if isinstance(options, str) else options
    return load_task(options.pop("path"), _load_model(backbone, space)[1], **options)


def _open(study: Any, task: str) -> tuple[Any, Task, Any]:
    where = _expanded(study.backbone), json.dumps(study.space)
    model, _, space = _load_model(*where)
    return model, _load_task(*where, _expanded(json.dumps(study.tasks[task]))), space


def _expanded(text: str) -> str:
    text = os.path.expandvars(text)
    if "${" in text:
        name = text.partition("${")[2].partition("}")[0]
        raise StudyError(f"the study needs ${{{name}}}, which the environment does not set; set it and run again")
    return text


def open_facts(study: Any, tasks: Sequence[str]) -> dict[str, Any]:
    """Open backbone and tasks, and return what keys of rows and searches depend on besides the declaration.

    Returns:
        ``declared`` (:meth:`s3pet.studies.Study.declared`), ``backbone`` (checksum), ``backbone_params``, ``space`` (hash
        of its candidates), ``objective`` (all fields), and ``tasks``: name → ``declared``, ``fingerprint``. Tasks that
        were noted for the same declaration and are not among ``tasks`` stay.
    """
    noted = dict(study.facts.get("tasks", {}))
    facts: dict[str, Any] = {"declared": study.declared()}
    for name in dict.fromkeys(tasks):
        model, task, space = _open(study, name)
        noted[name] = {"declared": study.tasks[name], "fingerprint": task.fingerprint}
        if "backbone" not in facts:
            facts |= {"backbone": backbone_checksum(model), "backbone_params": space.backbone_params}
            facts["space"] = config_hash({"candidates": [candidate.name for candidate in space]})
            facts["objective"] = asdict(make_objective(model, task, study.objective).settings)
    return facts | {"tasks": noted}


def run_search(study: Any, task: str, search: str, seed: int) -> tuple[tuple[str, str, int], str | None]:
    """Run one search of a study into its folder; returns (task, search, seed) and what went wrong, or None."""
    model, opened, space = _open(study, task)
    out, settings = study.folder(task, search, seed), study.settings(search, seed)
    run = partial(
        search_structure, model, opened, space, objective=study.objective, out=out, progress=False, **settings
    )
    try:
        try:
            result = run(overwrite=(out / "config.json").is_file())
        except RunError:  # there is a checkpoint of other settings
            result = run(overwrite=True)
    except SearchError as error:
        if not hasattr(error, "result"):  # it did not diverge: something is wrong with its settings
            raise StudyError(f"search {search!r} on {task!r}, seed {seed}: {error}") from error
        return (task, search, seed), str(error)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # weights of the supernet, which nobody needs
    if result.metrics.get("stopped") == "interrupted":
        raise KeyboardInterrupt
    return (task, search, seed), None


def run_row(study: Any, row: Row, key: str) -> Row:
    """Retrain one row's structure; returns the finished row."""
    model, task, space = _open(study, row["task"])
    entry, budget = study.structures[row["entry"]], row["budget"]
    recipe = {**study.recipe(row["task"]), "seed": row["seed"], "lr": row["lr"], "objective": study.objective}
    adalora = partial(retrain_adalora, model, task, budget, **_options(entry)) if budget is not None else None
    structure: Entry | None = None
    try:
        costs = [study.result(*need).cost for need in study.needs(row)]
        if entry["kind"] == "adalora" and adalora is not None:
            train: Callable = partial(adalora, **recipe)
        else:
            if entry["kind"] == "allocated" and adalora is not None:
                first = adalora(**{**recipe, "seed": row["index"]})
                structure, costs = allocated_structure(model, first), [first.cost]
            else:
                structure = _make_structure(study, row, model, task, space)
            train = partial(retrain, model, task, structure, **recipe)
        measured = measure(train, model, task, structure)
    except S3PetError as error:
        raise StudyError(f"{row['structure']!r} on {row['task']!r}, seed {row['seed']}: {error}") from error
    finished = {"key": key, **row, **measured}
    finished = {
        name: value for name, value in finished.items() if name not in ("decides", "repeat")
    }  # part of the plan
    if budget is not None:
        finished["budget"] = parse_budget(space, budget).n_params
    return finished | {"search_rows": sum(c.rows for c in costs), "search_seconds": sum(c.seconds for c in costs)}


def _make_structure(study: Any, row: Row, model: Any, task: Task, space: Any) -> Entry:
    entry, kind, budget = study.structures[row["entry"]], row["kind"], row["budget"]
    if kind == "reference":
        return entry.get("name", row["entry"])
    if kind == "manual":
        return manual_structure(space, entry.get("name", row["entry"]))
    if kind == "rules":
        return manual_structure(make_space(model, entry["rules"]), "all")
    if kind == "random":
        return random_structure(space, budget, seed=row["index"])
    if kind == "heuristic":
        return depth_structure(space, budget, **_options(entry))
    if kind == "sensitivity":
        size = study.recipe(row["task"]).get("batch_size", 32)
        options = {"batch_size": size, "seed": row["index"], "objective": study.objective, **_options(entry)}
        return sensitive_structure(model, task, space, budget, **options)
    results = [study.result(*need) for need in study.needs(row)]
    return average_gates(results).structure(budget) if kind == "average" else results[0].structure(budget)


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("kind", "budgets", "seeds", "repeats")}


def each(function: Any, arguments: Sequence[tuple], jobs: int, what: str) -> Iterator[Any]:
    """Yield results as they are finished, in any order, with a bar.

    Args:
        function: called with each of ``arguments``.
        jobs: processes.
        what: description of the bar.
    """
    from joblib import Parallel, delayed

    results: Any = (function(*values) for values in arguments)
    if jobs > 1 and len(arguments) > 1:
        parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        results = parallel(delayed(_on_one_thread)(function, values) for values in arguments)
    yield from tqdm(results, total=len(arguments), desc=what, disable=not arguments)


def _on_one_thread(function: Any, arguments: tuple) -> Any:
    import torch

    torch.set_num_threads(1)
    return function(*arguments)
