"""A named task: rows in three splits, label words, metric; the search's halves are cut from train.

A task knows nothing of models: a text-to-text backbone reads ``source`` and answers with a label word, an encoder reads
``segments`` and gets a head. Rules of the splits, the same everywhere: choices (best checkpoint, search) are made on
train and validation; the test split is scored once. Where no labelled test split exists, the published validation
split *is* the test split, and a validation split is cut from train.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s3pet.backbones import embedded_path
from s3pet.errors import BackboneError, TaskError, UnknownTaskError, nearest
from s3pet.glue import BENCHMARKS, HUB_NAMES, REGRESSION_RANGE, Entry

Row = Mapping[str, Any]
_COLUMNS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("sentence1",), ("sentence",), ("text",),
)  # fmt: skip
_ENDINGS = (".jsonl", ".csv", ".tsv")
METRICS = ("accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman")


@dataclass(frozen=True)
class Example:
    """One row: raw texts for encoders, the prompted text for text-to-text backbones, and the label."""

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
        label_names: for people.
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
    tokenizer: Any = None
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
        """The numbers a text-to-text backbone may write for a regression task."""
        return tuple(float(word) for word in self.label_words) if self.regression else ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all rows, label words and metrics."""
        rows = [[e.segments, e.source, e.label] for part in (self.train, self.validation, self.test) for e in part]
        text = json.dumps([rows, self.label_words, self.metrics], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def search_split(self, seed: int = 0) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """Halves of the training split, ``(search_train, search_val)``: disjoint, equal, balanced by class."""
        order = _shuffled(self.train, seed, "search", stratify=not self.regression)
        half = len(order) // 2
        # Neighbours in a stratified order share a class, so every second row gives two balanced halves.
        return tuple(order[0 : 2 * half : 2]), tuple(order[1 : 2 * half : 2])

    def subsample(
        self, n_train: int | None = None, n_validation: int | None = None, n_test: int | None = None, seed: int = 0
    ) -> Task:
        """The same task with at most so many rows in each split, drawn at random."""
        limits = {"train": n_train, "validation": n_validation, "test": n_test}
        cut, notes = {}, list(self.notes)
        for split, limit in limits.items():
            rows = getattr(self, split)
            if limit is not None and limit < len(rows):
                cut[split] = tuple(random.Random(f"{seed}-{split}").sample(rows, limit))
                notes.append(f"{split} is {limit} of {len(rows)} rows, drawn with seed {seed}")
        return replace(self, **cut, notes=tuple(notes))

    def score(self, predictions: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
        """All metrics of the task, the main one first; constant predictions give 0 where a correlation has none."""
        return {name: _metric(name, predictions, labels) for name in self.metrics}

    def __repr__(self) -> str:
        sizes = " / ".join(str(len(part)) for part in (self.train, self.validation, self.test))
        kind = "regression" if self.regression else f"{len(self.label_words)} classes"
        return f"Task({self.name!r}: {kind}, {sizes} rows, {self.metric})"


def list_tasks() -> list[str]:
    """Names :func:`load_task` knows; any folder of jsonl or csv files is a task too."""
    try:
        pocket = sorted(f"pocket/{path.parent.name}" for path in (embedded_path() / "tasks").glob("*/task.json"))
    except BackboneError:
        pocket = []
    return pocket + [f"{suite}/{name}" for suite, entries in BENCHMARKS.items() for name in entries]


def load_task(
    source: str | Path | Mapping[str, Any],
    tokenizer: Any = None,
    *,
    path: str | Path | None = None,
    n_train: int | None = None,
    n_validation: int | None = None,
    seed: int = 0,
    **given: Any,
) -> Task:
    """Load a task by name, from a folder, or from data.

    Args:
        source: ``"pocket/<name>"``, ``"glue/<name>"``, ``"superglue/<name>"``; a folder with ``train``, ``validation``
            and perhaps ``test`` files (.jsonl, .csv, .tsv) and perhaps a ``task.json``; or a mapping of split names to
            ``datasets.Dataset`` objects or lists of dicts.
        tokenizer: of the backbone.
        path: read a benchmark task from this folder instead of the hub.
        n_train: use at most so many training rows (after validation was cut), drawn with ``seed``.
        n_validation: rows of a validation split cut from train; None takes a tenth, at most 1,000.
        seed: of everything drawn here.
        **given: what the table or ``task.json`` does not say or says otherwise: ``label_words``, ``label_names``,
            ``text_columns``, ``template``, ``metrics``, ``label_column``, ``regression``, ``name``.

    Raises:
        UnknownTaskError: no such task; names the nearest. TaskError: rows that cannot be used; says which and why.
    """
    spec: dict[str, Any] = {}
    if isinstance(source, Mapping):
        splits, name = {split: list(rows) for split, rows in source.items()}, "data"
    else:
        name = str(source)
        suite, _, short = name.partition("/")
        if suite in BENCHMARKS and not (suite and Path(name).is_dir()):
            spec = _benchmark(suite, short)
            splits = _read_folder(Path(path)) if path is not None else _read_hub(suite, short)
        else:
            folder = embedded_path() / "tasks" / short if suite == "pocket" else Path(name)
            if not folder.is_dir():
                raise UnknownTaskError(f"task {name!r} is neither known nor a folder; {nearest(name, list_tasks())}")
            splits = _read_folder(folder)
            name = name if suite == "pocket" else folder.resolve().name
            if (folder / "task.json").is_file():
                spec = _json(folder / "task.json")
                spec.pop("name", None)
            elif name in BENCHMARKS["glue"]:
                spec = _benchmark("glue", name)
    columns, rows = spec.get("text_columns"), splits.get("train")
    if "validation" in spec and rows and not set(columns) <= set(rows[0]):
        spec["text_columns"] = None  # a benchmark's rows under other column names: find them by name
    known = {"label_words", "label_names", "text_columns", "template", "metrics", "label_column", "regression", "name"}
    if unknown := sorted(set(given) - known):
        raise TypeError(f"load_task got unexpected {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    spec |= given
    task = _build(spec.get("name", name), splits, spec, tokenizer, n_validation, seed)
    return task.subsample(n_train, seed=seed)


def _benchmark(suite: str, name: str) -> dict[str, Any]:
    if name == "record":
        raise TaskError("superglue/record has no fixed labels (its answers are entities of each passage): not supported")
    entry: Entry | None = BENCHMARKS[suite].get(name)
    if entry is None:
        raise UnknownTaskError(f"task '{suite}/{name}' is not known; {nearest(f'{suite}/{name}', list_tasks())}")
    template = entry.prompt or " ".join([name, *(f"{column}: {{{column}}}" for column in entry.columns)])
    return {
        "label_words": entry.label_words or None,
        "text_columns": entry.columns,
        "template": template,
        "metrics": entry.metrics,
        "regression": not entry.label_words,
        "validation": entry.validation,
    }


def _build(
    name: str, splits: dict[str, list[Row]], spec: dict[str, Any], tokenizer: Any, n_validation: int | None, seed: int
) -> Task:
    renamed = {"dev": "validation", "valid": "validation", spec.get("validation", "validation"): "validation"}
    splits = {renamed.get(split, split): rows for split, rows in splits.items()}
    label = spec.get("label_column", "label")
    for split in ("train", "validation"):
        if not splits.get(split):
            raise TaskError(f"task {name!r}: split {split!r} is empty or absent; found {sorted(splits)}")
    rows = splits["train"]
    if label not in rows[0]:
        raise TaskError(f"task {name!r}: no column {label!r}; columns are {sorted(rows[0])}. Pass label_column=…")
    columns = _columns(name, rows[0], spec, label)
    template = spec.get("template") or " ".join([name.split("/")[-1], *(f"{c}: {{{c}}}" for c in columns)])
    if not all("{" + column + "}" in template for column in columns):  # the table's prompt names other columns
        template = " ".join([name.split("/")[-1], *(f"{c}: {{{c}}}" for c in columns)])
    metrics = tuple(spec.get("metrics") or ([spec["metric"]] if spec.get("metric") else ["accuracy"]))
    if wrong := [metric for metric in metrics if metric not in METRICS]:
        raise TaskError(f"task {name!r}: metric {wrong[0]!r} is not one of {', '.join(METRICS)}")
    regression = bool(spec.get("regression", metrics[0] in ("pearson", "spearman")))
    words, names, index = _labels(name, rows, spec, label, regression)
    made = {}
    for split in ("train", "validation", "test"):
        made[split] = [_example(name, split, i, row, columns, template, label, index) for i, row in
                       enumerate(splits.get(split, []))]  # fmt: skip
    notes = []
    if not made["test"] or all(example is None for example in made["test"]):
        made["test"] = made["validation"]
        count = n_validation or max(1, min(1000, len(rows) // 10))
        if count > len(rows) - 4:
            raise TaskError(f"task {name!r}: {len(rows)} training rows cannot give {count} for validation; add rows")
        order = _shuffled(made["train"], seed, "validation", stratify=not regression)
        picks = {round(k * len(order) / count) for k in range(count)}  # evenly through the classes
        made["validation"] = [example for k, example in enumerate(order) if k in picks]
        made["train"] = [example for k, example in enumerate(order) if k not in picks]
        notes.append(f"test is the published validation split; validation is {len(picks)} rows cut from train, seed {seed}")
    for split, examples in made.items():
        if any(example is None for example in examples):
            raise TaskError(f"task {name!r}, split {split!r}: some rows have no label (−1 or empty); remove them")
    if len(made["train"]) < 4:
        raise TaskError(f"task {name!r}: {len(made['train'])} training rows are too few; a search needs at least 4")
    parts = (tuple(made[split]) for split in ("train", "validation", "test"))
    return Task(name, *parts, words, names, metrics, regression, tokenizer, tuple(notes))


def _columns(name: str, row: Row, spec: dict[str, Any], label: str) -> tuple[str, ...]:
    columns = tuple(spec.get("text_columns") or ())
    if not columns:
        columns = next((found for found in _COLUMNS if all(column in row for column in found)), ())
    if not columns or (missing := [column for column in columns if column not in row]):
        wanted = missing if columns else "a text column (sentence, text, sentence1, …)"
        raise TaskError(f"task {name!r}: no {wanted} in columns {sorted(row)}. Pass text_columns=(…)")
    return columns


def _labels(name: str, rows: list[Row], spec: dict[str, Any], label: str, regression: bool) -> tuple:
    """(label words, label names, value in the file → class index)."""
    if regression:
        low, high, step = REGRESSION_RANGE
        count = round((high - low) / step) + 1
        words = tuple(spec.get("label_words") or (f"{low + k * step:.1f}" for k in range(count)))
        return words, (), None
    values = sorted({row[label] for row in rows if row[label] not in (-1, None, "")}, key=lambda v: (str(type(v)), v))
    digits = all(isinstance(v, int) or str(v).isdigit() for v in values)
    n = max(int(v) for v in values) + 1 if digits and values else len(values)
    words = tuple(spec.get("label_words") or (map(str, range(n)) if digits else map(str, values)))
    if len(set(words)) < len(words):
        raise TaskError(f"task {name!r}: label words {words} are not distinct")
    if n > len(words) or len(words) < 2:
        raise TaskError(f"task {name!r}: labels {values[:8]} need at least {max(n, 2)} label words, got {words}")
    index = {str(k): k for k in range(len(words))} if digits else {str(v): k for k, v in enumerate(values)}
    if spec.get("label_names") and not digits:
        index = {str(v): k for k, v in enumerate(spec["label_names"])}
    return words, tuple(spec.get("label_names") or words), index


def _example(
    name: str, split: str, i: int, row: Row, columns: tuple[str, ...], template: str, label: str, index: Any
) -> Example | None:
    where = f"task {name!r}, {split} row {i + 1}"
    if label not in row or any(row.get(column) is None for column in columns):
        raise TaskError(f"{where}: needs columns {[*columns, label]}, has {sorted(row)}")
    texts = [str(row[column]).strip() for column in columns]
    segments = (" ".join(texts[:-1]), texts[-1]) if len(texts) > 2 else tuple(texts)
    source = template
    for column, text in zip(columns, texts, strict=True):
        source = source.replace("{" + column + "}", text)
    value = row[label]
    if value in (-1, None, "", "-1"):
        return None
    if index is None:
        try:
            return Example(segments, source, float(value))
        except (TypeError, ValueError):
            raise TaskError(f"{where}: label {value!r} is not a number") from None
    if str(value) not in index:
        raise TaskError(f"{where}: label {value!r} is not one of {list(index)}")
    return Example(segments, source, index[str(value)])


def _read_folder(folder: Path) -> dict[str, list[Row]]:
    if not folder.is_dir():
        raise TaskError(f"{folder} is not a folder; expected one with train.jsonl and validation.jsonl (or .csv, .tsv)")
    files = {path.stem: path for ending in _ENDINGS for path in sorted(folder.glob(f"*{ending}"))}
    if "train" not in files:
        raise TaskError(f"{folder} has no train file of {', '.join(_ENDINGS)}; it holds {sorted(files) or 'nothing'}")
    return {split: _read_file(path) for split, path in files.items()}


def _read_file(path: Path) -> list[Row]:
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise TaskError(f"{path}, line {number} is not JSON: {error}") from error
                if not isinstance(rows[-1], dict):
                    raise TaskError(f"{path}, line {number} is not a JSON object")
        return rows
    import pandas as pd

    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise TaskError(f"{path} cannot be read: {error}") from error
    return table.to_dict("records")


def _read_hub(suite: str, name: str) -> dict[str, list[Row]]:
    from datasets import load_dataset

    try:
        data = load_dataset(HUB_NAMES[suite], name)
    except Exception as error:  # datasets raises many kinds when the hub cannot be reached
        reason = " ".join(str(error).split())[:200]
        raise TaskError(
            f"task '{suite}/{name}' could not be fetched from the hub ({reason}). Give a folder with its train and "
            f"validation files: load_task('{suite}/{name}', tokenizer, path=…)"
        ) from error
    return {split: list(rows) for split, rows in data.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TaskError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise TaskError(f"{path} must hold a JSON object")
    return found


def _shuffled(rows: Sequence[Any], seed: int, purpose: str, stratify: bool) -> list[Any]:
    """Rows in a seeded order; stratified: grouped by class, so that every stretch holds its share of each."""
    order = list(rows)
    random.Random(f"{seed}-{purpose}").shuffle(order)
    return sorted(order, key=lambda example: example.label) if stratify else order


def _metric(name: str, predictions: Sequence[float], labels: Sequence[float]) -> float:
    from scipy import stats
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predictions))
    if name == "f1":
        return float(metrics.f1_score(labels, predictions, zero_division=0))
    if name == "f1_macro":
        return float(metrics.f1_score(labels, predictions, average="macro", zero_division=0))
    if name == "matthews":
        return float(metrics.matthews_corrcoef(labels, predictions)) if len(set(labels)) > 1 else 0.0
    if len(set(predictions)) < 2 or len(set(labels)) < 2:
        return 0.0
    correlate = stats.pearsonr if name == "pearson" else stats.spearmanr
    return float(correlate(predictions, labels).statistic)
