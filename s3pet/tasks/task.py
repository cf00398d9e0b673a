"""Tasks: load one by name, from a folder or from rows.

A task does not depend on a model: a text-to-text backbone reads ``source`` and answers with a label word; an encoder
reads ``segments`` and gets a head. Choices (search, best checkpoint) are made on train and validation, and the test
split is scored once. Without a test split that has labels, the published validation split becomes the test split and
a new validation split is cut from train, as also where there is none; from rows without splits both are cut, with the
seed of :func:`load_task`. (The authors halve the public validation split with the seed of the run, so their test rows
differ between seeds. Here they are the same for all seeds of a search or a retraining, so that scores can be compared.)
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3pet.backbones import embedded_path
from s3pet.errors import BackboneError, TaskError, UnknownTaskError, nearest
from s3pet.files.kinds import FLAG, PATH, SEED, TEXT, TEXT_OR_NUMBER, TEXTS, instance, many, mapping, optional, whole
from s3pet.files.reading import read_json, reading
from s3pet.tasks.benchmarks import BENCHMARKS, HUB_NAMES
from s3pet.tasks.checks import LEAST, TOKENIZER, note_empty_texts
from s3pet.tasks.labels import (
    FIELD,
    check_options,
    choose_columns,
    choose_label_column,
    encode_label,
    fill_template,
    find_classes,
    printed_values,
    read_label,
    read_text,
)
from s3pet.tasks.metrics import choose_metrics, compute_metric
from s3pet.tasks.rows import Row, name_splits, read_folder, read_hub, read_split
from s3pet.tasks.splits import class_order, complete

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK_FILE = {  # the options of load_task, and what a benchmark's entry has besides
    **dict.fromkeys(("name", "template", "metric", "label_column", "validation", "note"), TEXT),
    **dict.fromkeys(("label_names", "metrics", "text_columns", "fields"), TEXTS),
    **{"regression": FLAG, "hidden_test": FLAG, "classes": mapping(TEXTS), "label_words": many(TEXT_OR_NUMBER)},
}


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        segments: one or two texts, for encoders.
        source: the text-to-text input, with the prompt.
        label: class index, or the value for regression; NaN if it is unknown.
        texts: the text of each column, to shorten a prompt that is too long; empty: its end is cut.
    """

    segments: tuple[str, ...]
    source: str
    label: int | float
    texts: tuple[str, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Task:
    """A task for any backbone.

    Attributes:
        name: ``"pocket/sentiment"``, ``"glue/rte"``, or the name of the folder.
        train, validation, test: the rows.
        label_words: what a text-to-text backbone writes, one per class; for regression the values it may write.
        label_names: names for people, one per class; empty for regression.
        metrics: names, the main one first.
        regression: True if labels are numbers.
        tokenizer: the backbone's tokenizer.
        notes: how the splits were made.
        columns, fields, template: text columns of a row, their names in the prompt, and the prompt.
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
    columns: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    template: str = ""

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return self.metrics[0]

    @property
    def n_labels(self) -> int:
        """Outputs of a head: the number of classes, or 1 for regression."""
        return 1 if self.regression else len(self.label_words)

    @property
    def label_values(self) -> tuple[float, ...]:
        """The numbers that a text-to-text backbone may write for regression; empty for classes."""
        return tuple(float(word) for word in self.label_words) if self.regression else ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of all rows, label words and metrics; the tokenizer and the notes are left out."""
        rows = [[[e.segments, e.source, e.label] for e in part] for part in (self.train, self.validation, self.test)]
        text = json.dumps([rows, self.label_words, self.metrics], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def class_weights(self) -> list[float]:
        """Return a weight per class, by which the training rows of each class count the same; TaskError of values.

        Their mean over the training rows is 1: rows / (classes · rows of the class).
        """
        if self.regression:
            raise TaskError(f"task {self.name!r} is a regression; class weights are for classes")
        counts = Counter(example.label for example in self.train)
        return [len(self.train) / (len(counts) * counts[k]) if counts[k] else 0.0 for k in range(self.n_labels)]

    def search_split(self, seed: int = 0) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """Return two halves of the training split, ``(search_train, search_val)``; the same for the same seed.

        They have no row in common and equal sizes (of an odd number one row is left out). The classes are shared
        evenly, up to one row, and rows keep their order.
        """
        SEED.check(TaskError, seed=seed)
        order = class_order(self.train, f"{seed}-search", stratify=not self.regression)
        end = len(order) // 2 * 2
        # Neighbours in this order have the same class, so taking every second row gives two balanced halves.
        first, second = (tuple(self.train[i] for i in sorted(order[start:end:2])) for start in (0, 1))
        return first, second

    def subsample(
        self, n_train: int | None = None, n_validation: int | None = None, n_test: int | None = None, seed: int = 0
    ) -> Task:
        """Return the task with at most this many random rows in each split; None keeps a split whole.

        Raises:
            TaskError: a number below 1, or fewer than 4 training rows.
        """
        SEED.check(TaskError, seed=seed)
        parts: dict[str, Any] = {}
        notes = list(self.notes)
        for split, limit, least in (("train", n_train, LEAST), ("validation", n_validation, 1), ("test", n_test, 1)):
            rows = getattr(self, split)
            optional(whole(-(2**62))).check(TaskError, **{f"n_{split}": limit})
            if limit is not None and limit < least:
                raise TaskError(f"task {self.name!r}: n_{split}={limit} is too small; at least {least} rows are needed")
            if limit is not None and limit < len(rows):
                parts[split] = tuple(random.Random(f"{seed}-{split}").sample(rows, limit))
                notes.append(f"{split} is {limit} of {len(rows)} rows, drawn with seed {seed}")
        return replace(self, **parts, notes=tuple(notes))

    def score(self, predictions: Iterable[float], labels: Iterable[float]) -> dict[str, float]:
        """Compute all metrics of the task, the main one first; see :func:`s3pet.tasks.metrics.compute_metric`.

        Args:
            predictions: class indices, or values for regression, one per row (a list, array or tensor).
            labels: the true ones, in the same form.

        Raises:
            TaskError: no rows, or not one prediction for each label. DivergedError: a prediction is NaN or infinite.
        """
        parts = {"predictions": predictions, "labels": labels}
        instance(Iterable, "a list of numbers").check(TaskError, **parts)
        predictions, labels = ([getattr(v, "item", lambda v=v: v)() for v in part] for part in parts.values())
        many(instance((int, float), "a number")).check(TaskError, predictions=predictions, labels=labels)
        if len(predictions) != len(labels) or not labels:
            raise TaskError(
                f"task {self.name!r}: {len(predictions)} predictions for {len(labels)} labels; pass one each"
            )
        if any(math.isnan(label) for label in labels):
            raise TaskError(f"task {self.name!r}: rows without labels cannot be scored")
        return {name: compute_metric(name, predictions, labels) for name in self.metrics}

    def __repr__(self) -> str:
        sizes = " / ".join(str(len(part)) for part in (self.train, self.validation, self.test))
        kind = "regression" if self.regression else f"{len(self.label_words)} classes"
        return f"Task({self.name!r}: {kind}, {sizes} rows, {self.metric})"


def list_tasks() -> list[str]:
    """Return the names that :func:`load_task` knows; it also takes any folder with jsonl or csv files."""
    try:
        files = sorted((embedded_path() / "tasks").glob("*/train.*"))
    except BackboneError:  # an installation without the embedded data
        files = []
    return [f"pocket/{file.parent.name}" for file in files] + list(BENCHMARKS)


def load_task(
    source: str | Path | Mapping[str, Any] | Iterable[Row],
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
    """Load a task by name, from a folder or a file, or from rows.

    Arguments are stronger than ``task.json`` or the table of benchmarks, and these are stronger than what the rows say.

    Args:
        source: ``"pocket/<name>"``, ``"glue/<name>"``, ``"superglue/<name>"``; or a folder with files ``train`` and
            ``test`` or ``validation`` (``val``, ``dev``), or all three (.jsonl, .csv, .parquet, or .tsv without
            quoting as in GLUE) and perhaps a ``task.json`` with any of the options below; or one ``datasets.Dataset``,
            table of pandas, list of dicts or file, or a mapping of split names to these. A folder with the name of a
            GLUE task is read as that task. From train alone, test and validation are cut.
        tokenizer: the backbone's tokenizer.
        path: read a benchmark task from this folder instead of the hub.
        n_train: use at most this many training rows (after validation was cut), drawn with ``seed``.
        n_validation: rows of validation; None: all, or, if it is cut from train, a tenth of train, at most 1,000 (as
            many as of a test split that is cut).
        seed: seed of the cuts and of the drawn rows.
        template: text-to-text input with columns in braces; None: ``name column: {column} …``.
        label_words: one per class, in the order of the label ids; for regression the values that may be written.
        label_names: names for people; also the order of text labels if they differ from the label words.
        metric: the main metric: accuracy, f1, f1_macro, matthews, pearson or spearman.
        metrics: all metrics, the main one first.
        text_columns: columns with the texts; None: found by their usual names.
        label_column: None: ``"label"``, or else the only column of named classes (``ClassLabel``) of a ``Dataset``.
        regression: True if labels are numbers; None: decided by the metric.
        name: name of the task in saved runs.

    Returns:
        The task; ``notes`` says how its splits were made.

    Raises:
        UnknownTaskError: no such task; the message lists similar names.
        TaskError: rows or options that cannot be used; the message says which and why.
    """
    optional(PATH).check(TaskError, path=path)
    where, known, rows = _locate(source, path)
    options = {"template": template, "label_words": label_words, "label_names": label_names, "metric": metric,
               "metrics": metrics, "text_columns": text_columns, "label_column": label_column,
               "regression": regression}  # fmt: skip
    spec = known | {option: value for option, value in options.items() if value is not None}
    optional(whole(-(2**62))).check(TaskError, n_train=n_train, n_validation=n_validation)
    SEED.check(TaskError, seed=seed)
    TOKENIZER.check(TaskError, tokenizer=tokenizer)
    optional(FLAG).check(TaskError, regression=regression)
    optional(TEXT).check(TaskError, name=name)
    if template is not None:
        spec.pop("fields", None)  # the names in the benchmark's own template
    try:
        spec = check_options(spec)
        if not isinstance(rows, Mapping):
            rows = read_hub(where) if rows is None else read_folder(rows, spec.get("validation"))
        task = _build(name or where, rows, spec, tokenizer, n_validation, seed)
    except TaskError as error:
        raise TaskError(f"task {name or where!r}: {error}") from error
    task = task.subsample(n_train, n_validation, seed=seed)
    if len(labels := {example.label for example in task.train}) == 1:
        label = labels.pop()
        word = task.label_names[int(label)] if task.label_names else label
        raise TaskError(f"task {task.name!r}: all training rows have the label {word!r}; at least two are needed")
    return task


def _locate(source: Any, path: str | Path | None) -> tuple[str, dict[str, Any], Any]:
    """Return the name of a task, what is known about it, and its rows, the folder to read, or None for the hub."""
    suite, _, short = source.partition("/") if isinstance(source, str) else ("", "", "")
    if suite in HUB_NAMES:
        return source, _benchmark(source), None if path is None else Path(path)
    if path is not None:
        raise TaskError(f"path= goes with a benchmark's name such as 'glue/rte'; pass the folder instead of {source!r}")
    splits = source if isinstance(source, Mapping) else {"train": source}
    is_name = isinstance(source, str | Path)
    if not is_name and not isinstance(source, Iterable):
        how = "pass a name, a folder, a file, rows, or {'train': rows, 'validation': rows}"
        raise TaskError(f"a {type(source).__name__} is not a task; {how}")
    if not is_name or Path(source).is_file():
        features = getattr(splits.get("train"), "features", None) or {}  # of a datasets.Dataset
        classes = {column: names for column, kind in features.items() if (names := getattr(kind, "names", None))}
        rows = {str(split): read_split(part) for split, part in splits.items()}
        return Path(source).stem if is_name else "data", {"classes": classes}, rows
    pocket = suite == "pocket" and short
    folder = embedded_path() / "tasks" / short if pocket else Path(source)
    if not folder.is_dir():
        hint = nearest(str(source), list_tasks())
        raise UnknownTaskError(f"task {str(source)!r} is neither a known name nor a folder or file; {hint}")
    name = str(source) if pocket else folder.resolve().name
    if (file := folder / "task.json").exists():
        with reading(file, TaskError, "JSON with the options of a task"):
            known = read_json(file, TASK_FILE)
        return name if pocket else str(known.get("name", name)), known, folder
    benchmark = "glue/" + name.lower().replace("-", "")  # GLUE's own folders are called SST-2, STS-B, …
    return name, _benchmark(benchmark) if benchmark in BENCHMARKS else {}, folder


def _benchmark(name: str) -> dict[str, Any]:
    if name == "superglue/record":
        raise TaskError(f"{name} is not supported: its answers are entities of each passage, not fixed labels")
    if name not in BENCHMARKS:
        raise UnknownTaskError(f"task {name!r} is not known; {nearest(name, list_tasks())}")
    entry = BENCHMARKS[name]
    return asdict(entry) | {"template": entry.template or _template(name, entry.fields), "hidden_test": True}


def _template(name: str, fields: Sequence[str]) -> str:
    return " ".join([name.split("/")[-1], *(f"{field}: {{{field}}}" for field in fields)])


def _build(name: str, splits: Any, spec: dict[str, Any], tokenizer: Any, n_validation: int | None, seed: int) -> Task:
    """Read all rows, find the classes, and make the splits."""
    parts = name_splits(splits, spec.get("validation"))
    label_column, names = choose_label_column(parts["train"][0], spec)
    spec = {"label_words": names, "label_names": names} | spec if names else spec
    columns, fields = choose_columns(parts["train"][0], spec)
    if label_column in columns:
        raise TaskError(f"column {label_column!r} is the label and a text, so the answer would be in the prompt")
    template = spec.get("template") or _template(name, fields)
    if not (used := set(FIELD.findall(template))) or used - set(fields):
        raise TaskError(f"template {template!r} must name text columns only; these are {list(fields)}")
    metrics, regression = choose_metrics(spec)
    labels = {
        split: [read_label(f"{split} row {i}", row.get(label_column)) for i, row in enumerate(rows, 1)]
        for split, rows in parts.items()
    }
    words, names, index = ((), (), None) if regression else find_classes(labels["train"], spec)
    if "f1" in metrics and len(words) != 2:
        raise TaskError(f"metric 'f1' needs two classes, there are {len(words)}; use f1_macro")
    notes = [spec["note"]] if spec.get("note") else []
    if all(label is None or (label == -1 and -1 not in (index or ())) for label in labels.get("test", [0])):
        if not spec.get("hidden_test"):
            raise TaskError("no test row has a label (−1 or empty); add the labels, or leave the test split out")
        if "validation" not in parts:
            raise TaskError("the test rows have no labels and there is no validation split; add one with labels")
        del parts["test"]
        notes.append("the published test rows have no labels and are not used")
    rows: dict[str, list[Example]] = {split: [] for split in parts}
    for split, part in parts.items():
        for i, (row, label) in enumerate(zip(part, labels[split], strict=True), 1):
            where, value = f"{split} row {i}", encode_label(f"{split} row {i}", label, index)
            rows[split].append(make_example(where, row, columns, fields, template, value))
    notes += note_empty_texts(rows, columns)
    if regression:
        words = printed_values([example.label for example in rows["train"]], spec.get("label_words"))
    notes.append(complete(rows, n_validation, seed, stratify=not regression))
    if len(rows["train"]) < LEAST:
        raise TaskError(f"{len(rows['train'])} training rows are too few; a search needs {LEAST}")
    train, validation, test = (tuple(rows[split]) for split in ("train", "validation", "test"))
    prompt = (tuple(columns), tuple(fields), template)
    return Task(name, train, validation, test, words, names, metrics, regression, tokenizer, tuple(notes), *prompt)


def make_example(
    where: str, row: Row, columns: Sequence[str], fields: Sequence[str], template: str, label: int | float
) -> Example:
    """Return a row as an example; a column without a text is a TaskError that names ``where`` the row is."""
    texts = tuple(read_text(where, row, column) for column in columns)
    segments = (" ".join(texts[:-1]), texts[-1]) if len(texts) > 2 else texts
    return Example(segments, fill_template(template, fields, texts), label, texts)
