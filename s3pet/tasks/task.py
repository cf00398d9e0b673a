"""A named task: rows in three splits, label words, metrics; the search's halves are cut from train.

A task knows nothing of models: a text-to-text backbone reads ``source`` and answers with a label word, an encoder reads
``segments`` and gets a head. Rules of the splits, the same everywhere: choices (best checkpoint, search) are made on
train and validation; the test split is scored once. Where no labelled test split exists, the published validation
split *is* the test split, and a validation split is cut from train. (The authors halve the public validation split by
the run's seed, so their test rows differ between seeds; we depart, so that scores of different seeds are comparable.)
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3pet.errors import TaskError, UnknownTaskError, nearest
from s3pet.tasks.benchmarks import (
    BENCHMARKS,
    ENDINGS,
    Entry,
    Row,
    RowsError,
    compute_metric,
    find_classes,
    find_columns,
    find_metrics,
    name_splits,
    number_label,
    plain_label,
    printed_values,
    read_folder,
    read_hub,
    read_json,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIELD = re.compile(r"\{([^{}]+)\}")
_LEAST = 4  # training rows: two for each half of the search


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        segments: one or two raw texts, for encoders.
        source: the text-to-text input, prompt included.
        label: class index, or the value for regression.
    """

    segments: tuple[str, ...]
    source: str
    label: int | float


@dataclass(frozen=True)
class Task:
    """A task, ready for any backbone.

    Attributes:
        name: ``"pocket/sentiment"``, ``"glue/rte"``, or the folder's name.
        train, validation, test: rows.
        label_words: what a text-to-text backbone writes, one per class; for regression the printed values.
        label_names: for people, one per class; empty for regression.
        metrics: names, the main one first.
        regression: the label is a number.
        tokenizer: of the backbone.
        notes: how the splits were made, in plain words.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    label_words: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    regression: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None
    notes: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """The main metric's name."""
        return self.metrics[0]

    @property
    def n_labels(self) -> int:
        """Outputs of a head: classes, or 1 for regression."""
        return 1 if self.regression else len(self.label_words)

    @property
    def label_values(self) -> tuple[float, ...]:
        """The numbers a text-to-text backbone may write for a regression task; empty for classes."""
        return tuple(float(word) for word in self.label_words) if self.regression else ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all rows, label words and metrics, hexadecimal; the tokenizer and the notes do not count."""
        rows = [[[e.segments, e.source, e.label] for e in part] for part in (self.train, self.validation, self.test)]
        text = json.dumps([rows, self.label_words, self.metrics], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def search_split(self, seed: int = 0) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """Halves of the training split, ``(search_train, search_val)``.

        Disjoint, of equal size (an odd row is left out), with each class shared evenly (to one row), rows in their
        order; the same halves for the same seed.
        """
        order = _spread(self.train, f"{seed}-search", stratify=not self.regression)
        end = len(order) // 2 * 2
        # Neighbours in a stratified order share a class, so every second row gives two balanced halves.
        first, second = (tuple(self.train[i] for i in sorted(order[start:end:2])) for start in (0, 1))
        return first, second

    def subsample(
        self, n_train: int | None = None, n_validation: int | None = None, n_test: int | None = None, seed: int = 0
    ) -> Task:
        """The same task with at most so many rows in each split, drawn at random; None keeps a split whole.

        Raises:
            TaskError: a number below 1, or fewer than 4 training rows.
        """
        cut: dict[str, Any] = {}
        notes = list(self.notes)
        for split, limit, least in (("train", n_train, _LEAST), ("validation", n_validation, 1), ("test", n_test, 1)):
            rows = getattr(self, split)
            if limit is not None and limit < least:
                raise TaskError(f"task {self.name!r}: n_{split}={limit} given; at least {least} rows are needed")
            if limit is not None and limit < len(rows):
                cut[split] = tuple(random.Random(f"{seed}-{split}").sample(rows, limit))
                notes.append(f"{split} is {limit} of {len(rows)} rows, drawn with seed {seed}")
        return replace(self, **cut, notes=tuple(notes))

    def score(self, predictions: Iterable[float], labels: Iterable[float]) -> dict[str, float]:
        """All metrics of the task, the main one first; constant predictions give 0 where a correlation has none.

        Args:
            predictions: class indices, or values for regression, one per row (a list, array or tensor).
            labels: the same for the truth.

        Raises:
            TaskError: no rows, or not as many predictions as labels.
        """
        found, truth = ([getattr(v, "item", lambda v=v: v)() for v in values] for values in (predictions, labels))
        if len(found) != len(truth) or not truth:
            raise TaskError(f"task {self.name!r}: {len(found)} predictions for {len(truth)} labels; give one for each")
        return {name: compute_metric(name, found, truth) for name in self.metrics}

    def __repr__(self) -> str:
        sizes = " / ".join(str(len(part)) for part in (self.train, self.validation, self.test))
        kind = "regression" if self.regression else f"{len(self.label_words)} classes"
        return f"Task({self.name!r}: {kind}, {sizes} rows, {self.metric})"


def list_tasks() -> list[str]:
    """Names :func:`load_task` knows; any folder of jsonl or csv files is a task too."""
    folder = _pocket()
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder else []
    pocket = [f"pocket/{path.name}" for path in found if any((path / f"train{ending}").is_file() for ending in ENDINGS)]
    return pocket + [f"{suite}/{name}" for suite, entries in BENCHMARKS.items() for name in entries]


def load_task(
    source: str | Path | Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    path: str | Path | None = None,
    n_train: int | None = None,
    n_validation: int | None = None,
    seed: int = 0,
    template: str | None = None,
    label_words: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    metric: str | None = None,
    metrics: Sequence[str] | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    regression: bool | None = None,
    name: str | None = None,
) -> Task:
    """Load a task by name, from a folder, or from data.

    What is given here wins over ``task.json`` or the benchmark's table, which win over what the rows say.

    Args:
        source: ``"pocket/<name>"``, ``"glue/<name>"``, ``"superglue/<name>"``; a folder with ``train``, ``validation``
            (or ``dev``) and perhaps ``test`` files (.jsonl; .csv; .tsv as GLUE writes it, without quoting) and perhaps
            a ``task.json`` with any of the names below; or a mapping of split names to ``datasets.Dataset`` objects
            or lists of dicts. A folder named as a GLUE task is read as that task.
        tokenizer: of the backbone.
        path: read a benchmark task from this folder instead of the hub.
        n_train: use at most so many training rows (after validation was cut), drawn with ``seed``.
        n_validation: rows of the validation split; None takes all, or, if it is cut from train, a tenth, at most 1,000.
        seed: of everything drawn here.
        template: text-to-text input with columns in braces; None writes ``name column: {column} …``.
        label_words: one per class, in the order of the label ids; for regression the values that may be written.
        label_names: for people; also the order of string labels where they differ from the label words.
        metric: the main one, of accuracy, f1, f1_macro, matthews, pearson, spearman. metrics: all, the main one first.
        text_columns: which columns hold the texts; None finds the usual names.
        label_column: None means ``"label"``.
        regression: the label is a number; None follows the metric.
        name: of the task, for records.

    Returns:
        The task; ``notes`` says how its splits were made.

    Raises:
        UnknownTaskError: no such task; names the nearest.
        TaskError: rows or options that cannot be used; says which and why.
    """
    named = {"template": template, "label_words": label_words, "label_names": label_names, "metric": metric,
             "metrics": metrics, "text_columns": text_columns, "label_column": label_column,
             "regression": regression}  # fmt: skip
    given = {option: value for option, value in named.items() if value is not None}
    found = str(source) if isinstance(source, str | Path) else "data"
    try:
        splits, spec, found = _find(source, path)
        if template is not None:
            spec.pop("fields", None)  # the table's field names belong to the table's prompt
        task = _build(name or found, splits, spec | given, tokenizer, n_validation, seed)
    except RowsError as error:
        raise TaskError(f"task {name or found!r}: {error}") from error
    return task.subsample(n_train, n_validation, seed=seed)


def _find(source: Any, path: str | Path | None) -> tuple[dict[str, list[Row]], dict[str, Any], str]:
    """(rows by split, what is known about them, name)."""
    suite, _, short = source.partition("/") if isinstance(source, str) else ("", "", "")
    if suite in BENCHMARKS:
        spec = _benchmark(suite, short)
        rows = read_folder(Path(path), spec.get("validation")) if path is not None else read_hub(suite, short)
        return rows, spec, str(source)
    if path is not None:
        raise TaskError(f"path= goes with a benchmark's name such as 'glue/rte'; for {source!r} give the folder itself")
    if isinstance(source, Mapping):
        # A datasets.Dataset may know the names, in the order of the ids.
        column = (getattr(source.get("train"), "features", None) or {}).get("label")
        spec = {"label_names": names, "label_words": names} if (names := getattr(column, "names", None)) else {}
        return {str(split): list(rows) for split, rows in source.items()}, spec, "data"
    if not isinstance(source, str | Path):
        raise TaskError(
            f"a {type(source).__name__} is not a task; give a name, a folder, or {{'train': rows, 'validation': rows}}"
        )
    pocket = _pocket() if suite == "pocket" else None
    folder = pocket / short if pocket and short else Path(source)
    if not folder.is_dir():
        raise UnknownTaskError(
            f"task {str(source)!r} is neither known nor a folder; {nearest(str(source), list_tasks())}"
            + ("; the embedded data (data/pocket) is not here" if suite == "pocket" and not pocket else "")
        )
    named = str(source) if pocket else folder.resolve().name
    known = named.lower().replace("-", "")  # GLUE's own folders are called SST-2, STS-B, …
    spec = _benchmark("glue", known) if known in BENCHMARKS["glue"] else {}
    if (folder / "task.json").is_file():
        spec = read_json(folder / "task.json")
        named = named if pocket else str(spec.pop("name", named))
    return read_folder(folder, spec.get("validation")), spec, named


def _benchmark(suite: str, name: str) -> dict[str, Any]:
    if (suite, name) == ("superglue", "record"):
        raise TaskError(
            "superglue/record is not a fixed-label task (answers are entities of each passage): not supported"
        )
    entry: Entry | None = BENCHMARKS[suite].get(name)
    if entry is None:
        raise UnknownTaskError(f"task '{suite}/{name}' is not known; {nearest(f'{suite}/{name}', list_tasks())}")
    return {
        "label_words": entry.label_words or None,
        "fields": entry.columns,
        "template": entry.prompt or _prompt(name, entry.columns),
        "metrics": entry.metrics,
        "regression": not entry.label_words,
        "validation": entry.validation,
        "note": entry.note,
    }


def _prompt(name: str, columns: Iterable[str]) -> str:
    return " ".join([name.split("/")[-1], *(f"{column}: {{{column}}}" for column in columns)])


def _build(
    name: str, splits: dict[str, list[Row]], spec: dict[str, Any], tokenizer: Any, n_validation: int | None, seed: int
) -> Task:
    parts = name_splits(splits, spec.get("validation"))
    rows, label = parts["train"], spec.get("label_column") or "label"
    for split, part in parts.items():
        if wrong := next((row for row in part if not isinstance(row, Mapping)), None):
            raise RowsError(f"{split}: a row is a {type(wrong).__name__}; expected dicts of columns")
    if label not in rows[0]:
        raise RowsError(f"no column {label!r}; columns are {sorted(rows[0])}. Pass label_column=…")
    columns, fields = find_columns(rows[0], spec)
    template = spec.get("template") or _prompt(name, fields)
    if (unknown := set(_FIELD.findall(template)) - set(fields)) or not _FIELD.search(template):
        what = f"names {sorted(unknown)}, which are no text columns" if unknown else "names no column"
        raise RowsError(f"template {template!r} {what}; text columns are {list(fields)}")
    metrics, regression = find_metrics(spec)
    words, names, index = (printed_values if regression else find_classes)([row.get(label) for row in rows], spec)
    if "f1" in metrics and len(words) != 2:
        raise RowsError(f"metric 'f1' needs two classes, there are {len(words)}; use f1_macro")
    made: dict[str, list[Example | None]] = {
        split: [
            _example(f"{split} row {i + 1}", row, columns, fields, template, label, index, split == "test")
            for i, row in enumerate(part)
        ]
        for split, part in parts.items()
    }
    if all(example is None or (regression and example.label == -1) for example in made["test"]):
        made["test"] = []
    full = {split: [example for example in examples if example is not None] for split, examples in made.items()}
    for split, examples in full.items():
        if lost := len(made[split]) - len(examples):
            raise RowsError(f"{split}: {lost} rows have no label (−1 or empty); remove them")
    notes = [spec["note"]] if spec.get("note") else []
    if full["test"]:
        notes.append("splits are used as given")
    else:
        full["test"] = full["validation"]
        count = n_validation if n_validation is not None else max(1, min(1000, len(rows) // 10))
        if not 1 <= count <= len(rows) - _LEAST:
            raise RowsError(
                f"{len(rows)} training rows cannot give {count} for validation and keep {_LEAST}; "
                "add rows or a test split, or lower n_validation"
            )
        order = _spread(full["train"], f"{seed}-validation", stratify=not regression)
        picks = {order[round(k * len(order) / count)] for k in range(count)}  # evenly through the classes
        full["validation"] = [example for i, example in enumerate(full["train"]) if i in picks]
        full["train"] = [example for i, example in enumerate(full["train"]) if i not in picks]
        notes.append(f"test is the published validation split; validation is {count} rows cut from train, seed {seed}")
    if len(full["train"]) < _LEAST:
        raise RowsError(f"{len(full['train'])} training rows are too few; a search needs {_LEAST}")
    train, validation, test = (tuple(full[split]) for split in ("train", "validation", "test"))
    return Task(name, train, validation, test, words, names, metrics, regression, tokenizer, tuple(notes))


def _example(
    where: str,
    row: Row,
    columns: tuple[str, ...],
    fields: tuple[str, ...],
    template: str,
    label: str,
    index: Any,
    test: bool,
) -> Example | None:
    """One row read; None if it has no label."""
    if any(row.get(column) is None for column in columns) or (label not in row and not test):
        raise RowsError(f"{where}: needs columns {[*columns, label]}, has {sorted(row)}")
    texts = [str(row[column]).strip() for column in columns]
    segments = (" ".join(texts[:-1]), texts[-1]) if len(texts) > 2 else tuple(texts)
    by_field = dict(zip(fields, texts, strict=True))
    source = _FIELD.sub(lambda match: by_field[match[1]], template)  # one pass: braces in a text stay text
    value = plain_label(row.get(label))
    if value is None or (value == -1 and index is not None and -1 not in index):
        return None
    if index is None:
        return Example(segments, source, number_label(where, value))
    if value not in index:
        raise RowsError(f"{where}: label {row[label]!r} is not one of {list(index)}")
    return Example(segments, source, index[value])


def _spread(rows: Sequence[Example], key: str, stratify: bool) -> list[int]:
    """Row numbers in a seeded order; stratified: grouped by class, so that every stretch holds its share of each."""
    order = list(range(len(rows)))
    random.Random(key).shuffle(order)
    return sorted(order, key=lambda i: rows[i].label) if stratify else order


def _pocket() -> Path | None:
    """The embedded tasks: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    folders = (root / "data" / "pocket" / "tasks" for root in (package.parent, package))
    return next((folder for folder in folders if folder.is_dir()), None)
