"""A task without its rows: what reads and names new rows, as JSON, and the reading of new rows."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s3pet.errors import TaskError
from s3pet.files.kinds import FLAG, TEXT, TEXTS, Kind, check_record, instance, many, one_of, several, whole
from s3pet.tasks.metrics import CLASS_METRICS, VALUE_METRICS
from s3pet.tasks.rows import read_split
from s3pet.tasks.task import Example, Task, make_example

_FIELDS = {  # of a task, in the order of the file
    **{"name": TEXT, "label_words": TEXTS, "label_names": TEXTS},
    **{"metrics": several(one_of((*CLASS_METRICS, *VALUE_METRICS))), "regression": FLAG},
    **{"columns": TEXTS, "fields": TEXTS, "template": TEXT},
}
_KINDS = _FIELDS | {"probe": many(whole())}
FORM = Kind("the form of a task", lambda v: isinstance(v, dict) and bool(check_record(v, _KINDS, _KINDS)))  # in a file


def form_of(task: Task) -> dict[str, Any]:
    """Return all of a task but its rows and notes, and the numbers of some tokens, which tell tokenizers apart."""
    values = {name: getattr(task, name) for name in _FIELDS}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()} | {"probe": _probe(task)}


def task_of(form: Mapping[str, Any], tokenizer: Any) -> Task:
    """Return the task of a form, with no rows; a tokenizer other than the one that it was used with is a TaskError."""
    pairs = ((name, form[name]) for name in _FIELDS)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in pairs}
    task = Task(train=(), validation=(), test=(), tokenizer=tokenizer, **values)
    if _probe(task) != form["probe"]:
        raise TaskError(f"task {task.name!r} was used with another tokenizer than this one; pass the backbone's own")
    return task


def _probe(task: Task) -> list[int]:
    text = " ".join([task.template, *task.label_words])
    return [] if task.tokenizer is None else list(task.tokenizer(text)["input_ids"])


def read_records(task: Task, records: Any) -> tuple[Example, ...]:
    """Return new rows as examples whose labels are unknown.

    Args:
        task: of whose form they are.
        records: texts, tuples of texts in the order of the task's columns, mappings with these columns (other columns,
            such as a label, are ignored), examples (returned as they are), or a table of pandas.

    Raises:
        TaskError: one text instead of several records, a missing column, or something that is not a text.
    """
    instance(Iterable, "a list of records").check(TaskError, records=records)
    if isinstance(records, str | Mapping):
        raise TaskError(f"task {task.name!r}: expected a list of records; pass [{reprlib.repr(records)}]")
    examples, columns = list[Example](), list(task.columns)
    for n, record in enumerate(read_split(records), 1):
        if isinstance(record, Example):
            examples.append(record)
            continue
        row, texts = record, (record,) if isinstance(record, str) else record
        if isinstance(texts, Sequence) and len(texts) == len(columns):
            row = dict(zip(columns, texts, strict=True))
        if not isinstance(row, Mapping) or not columns:
            what = f"record {n} is {reprlib.repr(record)}; expected a dict with columns {columns}"
            raise TaskError(f"task {task.name!r}: {what}, or a tuple of {len(columns)} texts in this order")
        where = f"task {task.name!r}: record {n}"
        examples.append(make_example(where, row, task.columns, task.fields, task.template, math.nan))
    return tuple(examples)
