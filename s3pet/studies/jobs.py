"""What one process of a study does: a search, or the retraining of one row.

Backbone and tasks are opened once per process. A process that shares its machine with others computes on one thread.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from s3pet.backbones import load_backbone
from s3pet.errors import S3PetError, StudyError
from s3pet.searcher import search as search_structure
from s3pet.settings import Settings
from s3pet.space import make_space
from s3pet.structure import Structure, manual_structure, parse_budget, random_structure
from s3pet.studies.adalora import allocated_structure, retrain_adalora
from s3pet.studies.comparison import Entry, measured
from s3pet.studies.halving import alternatives, successive_halving
from s3pet.studies.selectors import depth_structure, sensitive_structure
from s3pet.tasks import Task, load_task
from s3pet.transfer import average_gates
from s3pet.tuning import retrain

if TYPE_CHECKING:
    from torch import nn

Row = dict[str, Any]


@lru_cache(maxsize=2)
def _lab(backbone: str, space: str) -> tuple[Any, Any, Any]:
    model, tokenizer = load_backbone(backbone)
    return model, tokenizer, make_space(model, json.loads(space))


@lru_cache(maxsize=32)
def _task(backbone: str, space: str, told: str) -> Task:
    options = json.loads(told)
    options = {"path": options} if isinstance(options, str) else options
    return load_task(options.pop("path"), _lab(backbone, space)[1], **options)


def _open(study: Any, task: str) -> tuple[Any, Task, Any]:
    where = _expanded(study.backbone), json.dumps(study.space)
    model, _, space = _lab(*where)
    return model, _task(*where, _expanded(json.dumps(study.tasks[task]))), space


def _expanded(text: str) -> str:
    text = os.path.expandvars(text)
    if "${" in text:
        name = text.partition("${")[2].partition("}")[0]
        raise StudyError(f"the study wants ${{{name}}}, which the environment does not set; set it and run again")
    return text


def run_search(study: Any, task: str, search: str, seed: int) -> None:
    """Run one search of a study into its folder."""
    model, opened, space = _open(study, task)
    out = study.folder(task, search, seed)
    settings = study.settings(search)
    settings = {"record_every": max(1, settings.get("steps", Settings().steps) // 5), **settings}  # a table per search
    search_structure(model, opened, space, out=out, seed=seed, progress=False, **settings)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # weights of the supernet: nobody needs them


def run_row(study: Any, row: Row) -> Row:
    """Retrain one row's structure."""
    model, task, space = _open(study, row["task"])
    entry, recipe = study.structures[row["entry"]], {**study.recipe(row["task"]), "seed": row["seed"], "lr": row["lr"]}
    costs = [study.result(*need).cost for need in study.needs(row)]
    try:
        made: Entry | list[Structure] | None = None
        if entry["kind"] == "adalora":
            tuned = retrain_adalora(model, task, row["budget"], **_options(entry), **recipe)
        elif entry["kind"] == "allocated":
            first = retrain_adalora(model, task, row["budget"], **_options(entry), **{**recipe, "seed": row["index"]})
            made, costs = allocated_structure(model, first), [first.cost]
        else:
            made = _make(study, row, model, task, space)
        if isinstance(made, list):
            short = {**recipe, "steps": entry["halving"]["steps"], "evaluations": 1}
            found = successive_halving(model, task, made, **short)
            made, costs = found.structure, [*costs, found.cost]
        if made is not None:
            tuned = retrain(model, task, made, **recipe)
    except S3PetError as error:
        raise StudyError(f"{row['structure']!r} on {row['task']!r}, seed {row['seed']}: {error}") from error
    done = {"key": study.key(row), **row, **measured(tuned)}
    done.pop("tuned")  # a matter of the plan
    if row["budget"] is not None:
        done["budget"] = parse_budget(space, row["budget"]).n_params
    return done | {"search_rows": sum(c.rows for c in costs), "search_seconds": sum(c.seconds for c in costs)}


def _make(study: Any, row: Row, model: nn.Module, task: Task, space: Any) -> Entry | list[Structure]:
    """A row's structure, or those of which halving keeps one."""
    entry, kind, budget = study.structures[row["entry"]], row["kind"], row["budget"]
    several = entry.get("halving", {}).get("structures")
    if kind == "reference":
        return row["entry"]
    if kind == "manual":
        return manual_structure(space, entry.get("name", row["entry"]))
    if kind == "rules":
        return manual_structure(make_space(model, entry["rules"]), "all")
    if kind == "random" and several:
        return [random_structure(space, budget, seed=row["index"] + 1000 * more) for more in range(several)]
    if kind == "random":
        return random_structure(space, budget, seed=row["index"])
    if kind == "heuristic":
        return depth_structure(space, budget, **_options(entry))
    if kind == "sensitivity":
        keep = ("max_length", "pooling", "loss", "batch_size")
        same = {name: value for name, value in study.recipe(row["task"]).items() if name in keep}
        return sensitive_structure(model, task, space, budget, seed=row["index"], **same, **_options(entry))
    results = [study.result(*need) for need in study.needs(row)]
    if kind == "average":
        return average_gates(results).structure(budget)
    per_param = entry.get("per_param", False)
    if several:
        return alternatives(results[0], several, budget, per_param=per_param)
    return results[0].structure(budget, per_param=per_param)


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("kind", "budgets", "seeds", "repeats")}


def each(function: Any, arguments: Sequence[tuple], jobs: int, what: str) -> Iterator[Any]:
    """Results as they come, in any order, with a bar."""
    from joblib import Parallel, delayed

    found: Any = (function(*given) for given in arguments)
    if jobs > 1 and len(arguments) > 1:
        parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        found = parallel(delayed(_alone)(function, given) for given in arguments)
    yield from tqdm(found, total=len(arguments), desc=what, disable=not arguments)


def _alone(function: Any, given: tuple) -> Any:
    import torch

    torch.set_num_threads(1)  # several processes share the cores
    return function(*given)
