"""GLUE and SuperGLUE as rows of a table; how rows, columns and labels are read; how a metric is computed.

Errors here are :class:`RowsError`; :mod:`s3pet.tasks` raises them as ``TaskError`` with the task's name.

Prompts are in T5's style (task name, then field names); label words are natural ones, in the order of the hub's
label ids. Metrics follow the benchmarks: where a task has several, the first is the main one. ReCoRD has no fixed
labels and is not supported.
"""

from __future__ import annotations

import csv
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
_COLUMNS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "passage"), ("text1", "text2"), ("sentence1",), ("sentence",), ("text",), ("question",),
)  # fmt: skip
SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "valid": "validation", "test": "test"}
ENDINGS = (".jsonl", ".csv", ".tsv")

CLASS_METRICS = ("accuracy", "f1", "f1_macro", "matthews")
VALUE_METRICS = ("pearson", "spearman")
METRICS = CLASS_METRICS + VALUE_METRICS


class RowsError(ValueError):
    """Rows or options that cannot be used, and why."""


@dataclass(frozen=True)
class Entry:
    """One task of a benchmark.

    Attributes:
        columns: text columns, in order.
        label_words: one per class; empty for regression.
        metrics: names, the main one first.
        prompt: text-to-text input, with the columns as fields; None builds "name column: …".
        validation: name of the published validation split.
        note: what a reader of the score must know; goes into ``Task.notes``.
    """

    columns: tuple[str, ...]
    label_words: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    prompt: str | None = None
    validation: str = "validation"
    note: str = ""


_NLI = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, Entry] = {
    "cola": Entry(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": Entry(("sentence",), ("negative", "positive")),
    "mrpc": Entry(_PAIR, ("different", "equivalent"), ("f1", "accuracy")),
    "qqp": Entry(("question1", "question2"), ("different", "duplicate"), ("f1", "accuracy")),
    "stsb": Entry(_PAIR, (), ("pearson", "spearman")),
    "mnli": Entry(
        ("premise", "hypothesis"), _NLI, validation="validation_matched", note="scored on the matched validation rows"
    ),
    "qnli": Entry(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Entry(_PAIR, ("entailment", "not_entailment")),
    "wnli": Entry(_PAIR, ("not_entailment", "entailment")),
}

SUPERGLUE: dict[str, Entry] = {
    "boolq": Entry(("question", "passage"), ("no", "yes")),
    "cb": Entry(
        ("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"),
        ("accuracy", "f1_macro"),
        note="SuperGLUE averages accuracy and macro-F1; accuracy is the main metric here, both are reported",
    ),
    "copa": Entry(
        ("premise", "question", "choice1", "choice2"),
        ("choice1", "choice2"),
        prompt="copa premise: {premise} question: {question} choice1: {choice1} choice2: {choice2}",
    ),
    "multirc": Entry(
        ("paragraph", "question", "answer"),
        ("no", "yes"),
        ("f1", "accuracy"),
        prompt="multirc question: {question} answer: {answer} paragraph: {paragraph}",
        note="f1 is over all answers (F1a); the exact match per question is not computed",
    ),
    "rte": Entry(("premise", "hypothesis"), ("entailment", "not_entailment")),
    "wic": Entry(
        ("word", "sentence1", "sentence2"),
        ("different", "same"),
        prompt="wic word: {word} sentence1: {sentence1} sentence2: {sentence2}",
    ),
    "wsc": Entry(
        ("text", "span1_text", "span2_text"),
        ("no", "yes"),
        prompt="wsc does {span2_text} mean {span1_text}: {text}",
    ),
}

BENCHMARKS: dict[str, dict[str, Entry]] = {"glue": GLUE, "superglue": SUPERGLUE}
HUB_NAMES = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}
REGRESSION_RANGE = (0.0, 5.0, 0.2)  # lowest, highest, step of the values a text-to-text backbone may write for STS-B


def compute_metric(name: str, predictions: Sequence[float], labels: Sequence[float]) -> float:
    """One metric by name; a correlation that does not exist (constant predictions or labels) is 0.

    Args:
        name: one of ``CLASS_METRICS`` (class indices; ``f1`` takes class 1 as positive) or ``VALUE_METRICS``.
        predictions: one per row.
        labels: one per row, as many.

    Returns:
        The value, in [-1, 1]; NaN if a prediction is not finite.
    """
    from scipy import stats
    from sklearn import metrics

    if not all(math.isfinite(value) for value in predictions):
        return math.nan
    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predictions))
    if name in ("f1", "f1_macro"):
        average = "binary" if name == "f1" else "macro"
        return float(metrics.f1_score(labels, predictions, average=average, zero_division=0))
    if len(set(predictions)) < 2 or len(set(labels)) < 2:
        return 0.0
    if name == "matthews":
        return float(metrics.matthews_corrcoef(labels, predictions))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant predictions: the value is still the best there is
        value = float((stats.pearsonr if name == "pearson" else stats.spearmanr)(predictions, labels).statistic)
    return value if math.isfinite(value) else 0.0


def read_folder(folder: Path, validation: str | None = None) -> dict[str, list[Row]]:
    """Rows of every file called after a split; other files of the folder are left alone.

    Args:
        folder: with train.jsonl and so on.
        validation: one more name the validation split may have.

    Raises:
        RowsError: no folder, no train file, two files for one split, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise RowsError(f"{folder} is not a folder; expected one with train.jsonl and validation.jsonl (or .csv, .tsv)")
    names = dict.fromkeys([*SPLITS, validation or "validation"])
    found = [path for split in names for ending in ENDINGS if (path := folder / f"{split}{ending}").is_file()]
    files = {path.stem: path for path in found}
    if len(files) < len(found):
        raise RowsError(f"{folder} has two files for one split: {', '.join(path.name for path in found)}; keep one")
    if "train" not in files:
        held = sorted(path.name for path in folder.iterdir())[:8]
        raise RowsError(f"{folder} has no train file of {', '.join(ENDINGS)}; it holds {held or 'nothing'}")
    return {split: _read_file(path) for split, path in files.items()}


def name_splits(splits: dict[str, list[Row]], validation: str | None = None) -> dict[str, list[Row]]:
    """Splits under our three names; test may be empty. ``validation`` as in :func:`read_folder`."""
    known = {**SPLITS, validation or "validation": "validation"}
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for split, rows in splits.items():
        if (ours := known.get(split)) and rows:
            if parts[ours]:
                raise RowsError(f"{sorted(splits)} hold {ours!r} under two names; keep one")
            parts[ours] = rows
    for split in ("train", "validation"):
        if not parts[split]:
            raise RowsError(f"split {split!r} is empty or absent; found {sorted(splits)}")
    return parts


def _read_file(path: Path) -> list[Row]:
    """JSON lines, CSV, or TSV as GLUE writes it: tabs and no quoting. Every cell of a table is a string."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
            if path.suffix == ".jsonl":
                rows: list[Row] = []
                for number, line in enumerate(file, 1):
                    if line.strip():
                        rows.append(json.loads(line))
                        if not isinstance(rows[-1], dict):
                            raise RowsError(f"{path}, line {number} is not a JSON object")
                return rows
            tabs = path.suffix == ".tsv"
            quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
            reader = csv.DictReader(file, delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
            rows = []
            for row in reader:
                number = reader.line_num
                if None in row or None in row.values():
                    raise RowsError(f"{path}, line {number} has not as many cells as the header {reader.fieldnames}")
                rows.append(row)
            return rows
    except UnicodeDecodeError as error:
        raise RowsError(f"{path} is not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise RowsError(f"{path}, line {number} is not JSON: {error}") from error
    except csv.Error as error:
        raise RowsError(f"{path}, after line {number}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RowsError: it is not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise RowsError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RowsError(f"{path} must hold a JSON object")
    return found


def read_hub(suite: str, name: str) -> dict[str, list[Row]]:
    """All splits of a benchmark task through ``datasets``.

    Raises:
        RowsError: the hub cannot be reached and the task is not in the local cache.
    """
    from datasets import load_dataset

    try:
        data = load_dataset(HUB_NAMES[suite], name)
    except Exception as error:  # datasets raises many kinds when the hub cannot be reached
        reason = " ".join(str(error).split())[:200]
        raise RowsError(
            f"task '{suite}/{name}' could not be fetched from the hub ({reason}). Give a folder with its train and "
            f"validation files: load_task('{suite}/{name}', tokenizer, path=…)"
        ) from error
    return {split: list(rows) for split, rows in data.items()}


def find_columns(row: Row, spec: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(columns of the rows, their names in the prompt): a benchmark's rows may use other names than the table."""
    fields = tuple(spec.get("fields") or ())
    columns = tuple(spec.get("text_columns") or ())
    if not columns and fields and set(fields) <= set(row):
        columns = fields
    columns = columns or next((found for found in _COLUMNS if set(found) <= set(row)), ())
    missing = [column for column in columns if column not in row]
    if missing or not columns or (fields and len(columns) != len(fields)):
        wanted = missing or list(fields) or "text column (sentence, text, sentence1, …)"
        raise RowsError(f"no {wanted} in columns {sorted(row)}. Pass text_columns=(…)")
    return columns, fields or columns


def plain_label(value: Any) -> Any:
    """A label as one of int, str, float or None, however the file wrote it: True, 1.0 and "1" are 1."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch(r"-?[0-9]+", value) else value or None
    return value if value is None else int(value) if isinstance(value, int) else str(value)


def printed_values(labels: list[Any], spec: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], None]:
    """(the values that may be written, no names, no index) of a regression."""
    if spec.get("label_words"):
        words = tuple(map(str, spec["label_words"]))
    elif spec.get("fields"):
        low, high, step = REGRESSION_RANGE
        words = tuple(f"{low + k * step:.1f}" for k in range(round((high - low) / step) + 1))
    else:  # as many steps over the range of the training labels
        values = [number_label(f"train row {i + 1}", label) for i, label in enumerate(labels)]
        low, high = min(values), max(values)
        words = tuple(f"{low + k * (high - low) / 25:.4g}" for k in range(26))
    found = {number_label("label_words", word) for word in words}
    if len(found) < max(len(words), 2):
        raise RowsError(f"values to be written {words[:6]} are not distinct numbers, two or more")
    return words, (), None


def find_classes(labels: list[Any], spec: dict[str, Any]) -> tuple:
    """(label words, label names, label in the file → class index).

    Integers are read by position among the label words (or by value, where all words are integers); strings by name.
    """
    words = tuple(map(str, spec.get("label_words") or ()))
    names = tuple(map(str, spec.get("label_names") or ()))
    keys = [[plain_label(word) for word in known] for known in (names, words) if known]
    named = {key for known in keys for key in known}
    values = {value for value in map(plain_label, labels) if value is not None and (value != -1 or -1 in named)}
    if odd := [value for value in values if not isinstance(value, int | str)]:
        raise RowsError(f"label {odd[0]!r} is no class; pass regression=True if labels are numbers")
    kinds = {type(value) for value in values}
    if len(kinds) != 1:
        raise RowsError(f"labels must be all integers or all strings; got {sorted(map(str, values))[:8]}")
    if not keys:
        keys = [sorted(values)]
        words = tuple(map(str, keys[0]))
    fitting = [known for known in keys if all(isinstance(key, kind) for key in known for kind in kinds)]
    by_name = next((known for known in fitting if values <= set(known)), None)
    words, names = words or names, names or words
    if by_name is None and kinds == {int} and not fitting:
        by_name = list(range(len(words)))
    if len(set(words)) < len(words) or not all(word.strip() for word in words):
        raise RowsError(f"label words {words} must be distinct and not empty")
    if len(names) != len(words) or len(set(names)) < len(names) or len(words) < 2:
        raise RowsError(f"needs two classes or more, with distinct names; words {words}, names {names}")
    if by_name is None:
        raise RowsError(
            f"labels {sorted(values)[:8]} are not among {keys[0]}; pass label_names=(…) with the labels "
            "in the order of the label words"
        )
    return words, names, {key: k for k, key in enumerate(by_name)}


def number_label(where: str, value: Any) -> float:
    """A finite number, or a RowsError that begins with ``where``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RowsError(f"{where}: label {value!r} is not a number") from None
    if not math.isfinite(number):
        raise RowsError(f"{where}: label {value!r} is not a finite number")
    return number


def find_metrics(spec: dict[str, Any]) -> tuple[tuple[str, ...], bool]:
    """(metrics, whether the task is a regression), checked against each other."""
    main = [spec["metric"]] if spec.get("metric") else []
    regression = spec.get("regression")
    default = "pearson" if regression else "accuracy"
    metrics = tuple(dict.fromkeys([*main, *(spec.get("metrics") or ([] if main else [default]))]))
    if wrong := [metric for metric in metrics if metric not in METRICS]:
        raise RowsError(f"metric {wrong[0]!r} is not one of {', '.join(METRICS)}")
    regression = metrics[0] in VALUE_METRICS if regression is None else bool(regression)
    fitting = VALUE_METRICS if regression else CLASS_METRICS
    if wrong := [metric for metric in metrics if metric not in fitting]:
        kind = "a regression" if regression else "a classification"
        raise RowsError(f"this is {kind}: metric {wrong[0]!r} does not fit; use {', '.join(fitting)}")
    return metrics, regression
