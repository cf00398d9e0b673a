"""Retrain a few structures on one task in one table; a whole grid is a :class:`s3pet.studies.Study`.

Rows are kept in a JSON-lines file, each under a key that holds everything that decided it. A row with the same key is
not computed again, so a long comparison can be interrupted and continued.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from s3pet.backbones import backbone_checksum, borrows, n_parameters
from s3pet.errors import DivergedError, RunError, SearchError, shown
from s3pet.files.kinds import FLAG, SEED, TEXT, Kind, check_record, many, number, optional, several, whole
from s3pet.files.reading import path_of, read_lines, reading
from s3pet.files.writing import check_signature, claim, signed, writing
from s3pet.objectives.processes import refuse_processes
from s3pet.objectives.texts import ObjectiveSettings, make_objective
from s3pet.records import config_hash, recorded, settings_of
from s3pet.result import RESULTS_VERSION
from s3pet.structure import Structure
from s3pet.studies.checkpoints import train_in
from s3pet.studies.population import Member, Population
from s3pet.tasks import Task
from s3pet.tuning import DEFAULT_LR, REFERENCES, Recipe, TunedModel, retrain

Entry = Structure | str
_COUNTS = ("seed", "index", "n_params", "head_params", "passes", "rows", "budget", "search_rows")
ROW = {  # what is checked of a row in a file
    **{"key": TEXT, "task": TEXT, "structure": TEXT, "diverged": FLAG},
    **dict.fromkeys(_COUNTS, optional(whole())),
    **dict.fromkeys(("validation", "score"), optional(number())),
    **dict.fromkeys(("lr", "seconds", "search_seconds"), optional(number(0))),
}


def compare(
    model: nn.Module,
    task: Task,
    structures: Mapping[str, Entry | Sequence[Entry]],
    *,
    seeds: Sequence[int] = (0,),
    objective: ObjectiveSettings | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    together: int = 1,
    **recipe: Any,
) -> pd.DataFrame:
    """Retrain several structures in the same way and collect their scores in one table.

    Args:
        model: the backbone.
        task: the task; scores are its main metric on the test split.
        structures: name → a structure, a reference (``"full"``, ``"head"``, ``"zero-shot"``), or several of them
            (five random ones, one search per seed).
        seeds: retraining seeds; every structure is retrained with each.
        objective: max_length, pooling, loss and precision, see :class:`s3pet.objectives.ObjectiveSettings`.
        out: JSON-lines file to which finished rows are appended; rows in it are not computed again, and a retraining
            that was cut off continues from its checkpoints, which lie in a folder beside it.
        progress: show one bar over all rows.
        together: number of structures that are trained at once as a :class:`s3pet.studies.population.Population`: the
            same scores up to rounding (with dropout, up to its noise), in less time where a batch is small.
        **recipe: fields of :class:`s3pet.tuning.Recipe` except ``seed``.

    Returns:
        One row per structure and seed: ``task, structure, kind, index, seed, n_params, head_params, validation, score,
        metric, passes, rows, seconds, diverged``. A retraining that diverged has ``diverged`` true and nan scores.

    Raises:
        RunError: a line of ``out`` is not a row, another process works with it, or it cannot be written to. Else as
            :func:`s3pet.retrain`.
    """
    settings_of(Recipe, recipe, "compare", {"seed": "seeds"})
    check_entries(model, structures)
    refuse_processes("a comparison")
    several(SEED).check(SearchError, seeds=seeds)
    whole(1).check(SearchError, together=together)
    FLAG.check(SearchError, progress=progress)
    with kept_rows(out) as finished:
        resolved = recorded(make_objective(model, task, objective).settings)
        backbone = backbone_checksum(model)
        plan = [
            (name, index, entry, seed)
            for name, entries in structures.items()
            for index, entry in enumerate([entries] if isinstance(entries, (str, Structure)) else entries)
            for seed in seeds
        ]
        labels, keys, waiting = [], [], dict[str, tuple[Entry, int]]()
        for name, index, entry, seed in plan:
            kind, names = "reference", [str(entry)]
            if isinstance(entry, Structure):
                kind, names = str(entry.origin.get("kind", "custom")), list(entry.names)
            chosen = recorded(Recipe(seed=seed, **recipe))
            key = row_key(backbone=backbone, task=task.fingerprint, structure=names, recipe=chosen, objective=resolved)
            labels.append({"task": task.name, "structure": name, "kind": kind, "index": index, "seed": seed})
            keys.append(key)
            if key not in finished:
                waiting[key] = entry, seed
        alike = [key for key, (entry, _) in waiting.items() if isinstance(entry, Structure)] if together > 1 else []
        chunks = [alike[start : start + together] for start in range(0, len(alike), together)]
        chunks += [[key] for key in waiting if key not in set(alike)]
        with tqdm(
            total=len(plan), initial=len(plan) - len(waiting), desc=f"compare on {task.name}", disable=not progress
        ) as bar:
            for chunk in chunks:
                runs, place = [waiting[key] for key in chunk], finished.place(chunk)
                if chunk[0] in alike:
                    measured = measure_together(model, task, runs, objective, recipe, place)
                else:
                    entry, seed = runs[0]
                    options = {**recipe, "seed": seed, "objective": objective, "checkpoints": place}
                    measured = [measure(partial(retrain, model, task, entry, **options), model, task, entry)]
                for key, row in zip(chunk, measured, strict=True):
                    try:
                        finished.add(key, labels[keys.index(key)] | row)
                    except RunError as error:  # the rows are returned
                        warnings.warn(f"the comparison goes on without saving its rows: {error}", stacklevel=2)
                discard(place)
                bar.update(len(chunk))
        # the same retraining may have another name in the file
        return as_table([{**finished[key], **own} for key, own in zip(keys, labels, strict=True)])


def discard(folder: Path | None) -> None:
    """Remove the checkpoints of finished rows, and the folder around them if it is empty."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()


def check_entries(
    model: nn.Module, structures: Any, references: Collection[str] = REFERENCES, name: str = "structures"
) -> None:
    """Refuse what is no mapping of names to structures of this model or references (or lists of them), before work."""
    how = "a structure" + f" or one of {', '.join(references)}" * bool(references)
    entry = Kind(how, lambda v: isinstance(v, Structure) or (isinstance(v, str) and v in references))
    one_or_more = Kind(f"{how}, or a list", lambda v: entry.holds(v) or (bool(v) and many(entry).holds(v)))
    if not isinstance(structures, Mapping) or not structures:
        raise SearchError(f"{name} must be a mapping of names to structures, got {shown(structures)}")
    for own, value in structures.items():
        TEXT.check(SearchError, **{f"a name in {name}": own})
        (one_or_more if references else entry).check(SearchError, **{f"{name}[{own!r}]": value})
        for structure in [value] if isinstance(value, str | Structure) else value:
            if isinstance(structure, Structure):
                structure.check(model)


@borrows("a comparison")
def measure_together(
    model: nn.Module,
    task: Task,
    runs: Sequence[tuple[Any, int]],
    objective: Any,
    recipe: Mapping[str, Any],
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """What :func:`measure` returns, of several (structure, seed) trained at once; costs are shared out evenly.

    ``folder`` is for checkpoints, see :func:`s3pet.studies.checkpoints.train_in`.
    """
    started, lr = time.perf_counter(), recipe.get("lr") or DEFAULT_LR["pet"]
    for structure, _ in runs:
        structure.check(model)
    members = [Member(structure.candidates, lr, seed) for structure, seed in runs]
    with Population(model, task, members, Recipe(**recipe), objective) as population:
        train_in(folder, population)
        _, scores = population.evaluate(task.test, best=True)
    rows = []
    for k, (structure, _) in enumerate(runs):
        diverged = not population.finite[k] or not math.isfinite(scores[k])
        row = {"n_params": structure.n_params, "head_params": population.objective.head_params, "metric": task.metric}
        row |= {"validation": population.best[k], "score": scores[k], "passes": population.step}
        row |= {"rows": population.rows // len(runs), "seconds": (time.perf_counter() - started) / len(runs)}
        empty = dict.fromkeys(name for name in row if name not in ("n_params", "metric")) if diverged else {}
        rows.append(row | empty | {"diverged": diverged})
    return rows


def row_key(
    *, backbone: str, task: str, structure: Any, recipe: Mapping[str, Any], objective: Mapping[str, Any]
) -> str:
    """Hash everything that decides the scores of a row, :data:`s3pet.result.RESULTS_VERSION` included.

    ``backbone`` is a checksum, ``task`` a fingerprint, ``structure`` names or how it is made; recipe and objective are
    complete.
    """
    parts = {"backbone": backbone, "task": task, "structure": structure, "recipe": recipe, "objective": objective}
    return config_hash({**parts, "results_version": RESULTS_VERSION})


def measure(train: Callable[[], TunedModel], model: nn.Module, task: Task, entry: Entry | None) -> dict[str, Any]:
    """Run a retraining and return what it adds to its row: size, scores, cost, and whether it diverged.

    ``entry`` is None for AdaLoRA, whose size is unknown if it diverges.
    """
    names = ("head_params", "validation", "score", "metric", "passes", "rows", "seconds")
    try:
        tuned = train()
    except DivergedError:
        size = entry.n_params if isinstance(entry, Structure) else n_parameters(model) if entry == "full" else 0
        return {"n_params": size} | dict.fromkeys(names) | {"metric": task.metric, "diverged": True}
    metrics = tuned.metrics | tuned.cost.to_dict() | {"score": tuned.metrics["test"]}
    size = metrics["n_params"] or metrics["backbone_params"]
    return {"n_params": size, **{name: metrics[name] for name in names}, "diverged": False}


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of a JSON-lines file, by their key; none where there is no file.

    What follows the last newline was cut off while it was written: it is ignored, with a warning.

    Raises:
        RunError: a line is not a row, was changed after it was written, or is there twice.
    """
    rows: dict[str, dict[str, Any]] = {}
    if not os.path.exists(path):
        return rows
    with reading(path, hint="Remove the line"):
        for number, row, complete in read_lines(path):
            if not complete:
                warnings.warn(f"{path}: the last line is unfinished and is ignored", stacklevel=2)
                break
            try:
                names = ("task", "structure", "seed", "n_params") if "candidate" not in row else ("losses", "score")
                check_record(row, ROW, ("key", *(() if row.get("diverged") else names)))
                check_signature(row)
            except ValueError as error:
                raise ValueError(f"line {number} is not a row ({error})") from error
            row.pop("hash", None)
            if rows.setdefault(row.pop("key"), row) is not row:
                raise ValueError(f"line {number} is there twice")
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a JSON-lines file, after removing an unfinished last line; RunError if it cannot be written."""
    with writing(path), path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(signed(row), allow_nan=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


class KeptRows(dict[str, dict[str, Any]]):
    """Finished rows by their key: those of a JSON-lines file, and new ones, which are also written to it.

    Without a file (None) there are only the new ones.
    """

    def __init__(self, path: Path | None):
        super().__init__({} if path is None else read_rows(path))
        self.path = path

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row; RunError if it cannot be written, but it is kept here."""
        self[key] = dict(row)
        if self.path is not None:
            append_row(self.path, {"key": key, **row})

    def place(self, keys: Sequence[str]) -> Path | None:
        """The folder beside the file where checkpoints of one or several rows lie until they are finished."""
        name = keys[0] if len(keys) == 1 else config_hash({"keys": [*keys]})
        return None if self.path is None else self.path.parent / f".{self.path.name}.unfinished" / name


@contextmanager
def kept_rows(out: str | Path | None) -> Iterator[KeptRows]:
    """The rows of a file, which is kept for this process and tried before the work."""
    if out is None:
        yield KeptRows(None)
        return
    path = path_of(out, name="out")
    with claim(path.parent, "table of rows", f".{path.name}.lock"):
        rows = KeptRows(path)
        with writing(path):
            path.open("ab").close()
        yield rows


def as_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make a table of rows; columns that may be empty get types that allow it."""
    types = {"budget": "Int64", "source": "string", "lr": "float64", "validation": "float64", "score": "float64"}
    table = pd.DataFrame(rows)
    return table.astype({name: kind for name, kind in types.items() if name in table})
