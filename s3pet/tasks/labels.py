"""Read the columns of a row: which ones hold texts, and which class or value a label stands for."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from typing import Any

from s3pet.errors import TaskError
from s3pet.files.kinds import TEXT, is_real, optional
from s3pet.tasks.rows import Row

FIELD = re.compile(r"\{([^{}]+)\}")  # of a template
Label = int | float | str | None
MANY = 20  # distinct labels; more than these must repeat, or be declared, to be classes
_USUAL_COLUMNS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "passage"), ("text1", "text2"), ("sentence1",), ("sentence",), ("text",), ("question",),
)  # fmt: skip


def check_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a task with tuples of texts where these are meant; TaskError for anything else.

    Numbers are texts, too; one column or metric need not be in a list. A mapping has no order, so it is refused.
    """
    checked = dict(spec)
    for name in ("label_words", "label_names", "text_columns", "metrics"):
        value: Any = spec.get(name)
        if value is None:
            continue
        if isinstance(value, str) and name in ("text_columns", "metrics"):
            value = (value,)
        is_list = isinstance(value, Iterable) and not isinstance(value, str | Mapping | Set)
        texts = tuple(value) if is_list else ()
        if not texts or not all(isinstance(v, str) or (is_real(v) and v == v) for v in texts):
            raise TaskError(f"{name} must be a list of texts, such as ('no', 'yes'); got {reprlib.repr(value)}")
        checked[name] = tuple(map(str, texts))
    single = {name: spec.get(name) for name in ("metric", "label_column", "template")}
    optional(TEXT).check(TaskError, **single)
    return checked


def choose_columns(row: Row, spec: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the text columns of the rows and their names in the prompt; a benchmark's file may use other names."""
    fields, columns = tuple(spec.get("fields") or ()), tuple(spec.get("text_columns") or ())
    if not columns:
        candidates = (fields, *_USUAL_COLUMNS) if fields else _USUAL_COLUMNS
        columns = next((names for names in candidates if set(names) <= set(row)), ())
    missing = [column for column in columns if column not in row]
    if missing or not columns or (fields and len(columns) != len(fields)):
        expected = missing or list(fields) or "text column (sentence, text, sentence1, …)"
        raise TaskError(f"no {expected} in columns {sorted(row)}. Pass text_columns=(…)")
    return columns, fields or columns


def choose_label_column(row: Row, spec: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    """Return the column of the labels, and the names of its classes where the data set has them (``classes``)."""
    classes = spec.get("classes") or {}
    usual = "label" if "label" in row or len(classes) != 1 else next(iter(classes))
    column = spec.get("label_column") or usual
    if column not in row:
        raise TaskError(f"no column {column!r}; columns are {sorted(row)}. Pass label_column=…")
    return column, classes.get(column, ())


def read_text(where: str, row: Row, column: str) -> str:
    """Return the text of a cell without surrounding blanks. A number is text too; anything else is a TaskError."""
    value = row.get(column)
    if isinstance(value, str) or (isinstance(value, Real) and math.isfinite(value)):
        return str(value).strip()
    problem = f"holds {reprlib.repr(value)}" if column in row else f"is missing (the row has {sorted(row)})"
    raise TaskError(f"{where}: column {column!r} {problem}; expected a text")


def fill_template(template: str, fields: Sequence[str], texts: Sequence[str]) -> str:
    """Return the prompt; in one pass, so that braces in a text stay text."""
    by_field = dict(zip(fields, texts, strict=True))
    return FIELD.sub(lambda match: by_field[match[1]], template)


def read_label(where: str, value: Any) -> Label:
    """Return a label as int, float or str, and None if it is missing: True, 1.0, "1" and 1 are all 1.

    A tensor or array without dimensions is the number in it. Anything else (a list, an image, …) is a TaskError.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch(r"-?[0-9]{1,300}", value) else value or None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return None if math.isnan(number) else int(number) if number.is_integer() else number
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas' missing cells
        return None
    kind = f"{reprlib.repr(value)} is a {type(value).__name__}, neither a number nor a text"
    what = "Pass label_column=… with one class (or, with regression=True, number)"
    raise TaskError(f"{where}: the label {kind}. {what}; for several labels, or others, see s3pet.objectives")


def encode_label(where: str, label: Label, index: Mapping[Label, int] | None) -> int | float:
    """Return the class index of a label or, without an index, its value; a missing label is a TaskError."""
    if index is not None and label in index:
        return index[label]
    if label is None or (index is not None and label == -1):
        raise TaskError(f"{where} has no label ({label}); remove the row")
    if index is not None:
        raise TaskError(f"{where}: label {label!r} is not one of {list(index)}")
    return _number(where, label)


def find_classes(
    labels: Sequence[Label], spec: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...], dict[Label, int]]:
    """Return label words, label names, and the class index of each label.

    Labels of the rows are label names, label words, or, if these are all texts, positions among them.
    """
    for n, label in enumerate(labels, 1):
        encode_label(f"train row {n}", label, None if label is None else {label: 0})
    words, names = (tuple(map(str, spec.get(key) or ())) for key in ("label_words", "label_names"))
    orders: list[Sequence[Label]] = [[read_label("", text) for text in texts] for texts in (names, words) if texts]
    listed = {label for order in orders for label in order}
    values = {label for label in labels if label is not None and (label != -1 or -1 in listed)}
    shown = sorted(map(str, values))[:8]
    if {type(value) for value in values} not in ({int}, {str}):
        raise TaskError(f"labels must be all integers or all texts, not {shown}; pass regression=True for numbers")
    if not orders:
        _check_undeclared(labels, values)
        orders = [sorted(values)]  # type: ignore[type-var]
        words = tuple(map(str, orders[0]))
    elif not any(isinstance(label, int) for label in listed):
        orders.append(range(len(orders[0])))
    words, names = words or names, names or words
    distinct = len(set(words)) == len(words) == len(names) == len(set(names))
    if not distinct or len(words) < 2 or not all(word.strip() for word in words):
        raise TaskError(f"a task needs two classes or more with distinct words and names: words {words}, names {names}")
    order = next((order for order in orders if values <= set(order)), None)
    if order is None:
        raise TaskError(f"labels {shown} are not among {orders[0]}; pass label_names=(…) in the order of the words")
    return words, names, {label: position for position, label in enumerate(order)}


def _check_undeclared(labels: Sequence[Label], values: Collection[Label]) -> None:
    """Refuse labels that are hardly classes where nothing was declared: numbers, free texts, "nan"."""
    texts = [value for value in values if isinstance(value, str)]
    for n, label in enumerate(labels, 1):
        if isinstance(label, str) and label.lower() == "nan":
            raise TaskError(f"train row {n}: the label is {label!r}; remove it or name the class in label_names=(…)")
    if texts and all(_is_number(text) for text in texts) and any(float(text) % 1 for text in texts):
        what = f"labels {sorted(texts)[:4]} are numbers with decimals; pass regression=True"
    elif len(values) > MANY and 2 * len(values) > len(labels):
        what = (
            f"{len(values)} distinct labels in {len(labels)} rows are hardly classes; pass regression=True for numbers"
        )
    else:
        return
    raise TaskError(f"{what}, or label_names=(…) if they are the names of classes")


def printed_values(values: Sequence[float], label_words: Sequence[Any] | None) -> tuple[str, ...]:
    """Return what a text-to-text backbone may write for a regression: the label words, or 26 steps over the values."""
    low, step = min(values), (max(values) - min(values)) / 25
    words = tuple(map(str, label_words or [f"{low + k * step:.4g}" for k in range(26)]))
    if len({_number("label_words", word) for word in words}) < max(len(words), 2):
        raise TaskError(f"the values to be written, {words[:6]}, must be two or more distinct numbers")
    return words


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _number(where: str, value: Any) -> float:
    if not _is_number(value):
        raise TaskError(f"{where}: label {value!r} is not a number")
    return float(value)
