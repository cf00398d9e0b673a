"""A task of any rows, for objectives of the user's own: dicts with texts, images, prepared tensors, …

    task = RowTask("squad", train, validation, test, metrics={"exact_match": exact_match}, label="answer")

A metric is a function of (predictions, labels), two lists with one entry a row; larger is better. :func:`exact_match`,
:func:`rouge_l`, :func:`word_accuracy` and :func:`f1_micro` are here, and any other function will do.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Number
from typing import Any

from s3pet.errors import TaskError, check_finite
from s3pet.files.kinds import CALLABLE, TEXT, Kind, mapping
from s3pet.tasks.checks import LEAST
from s3pet.tasks.rows import read_split

Metric = Callable[[list[Any], list[Any]], float]


class Half(list[Any]):
    """Some rows of a split; ``numbers`` are those of the rows in it, from 1."""

    def __init__(self, rows: Sequence[Any], indices: Sequence[int]):
        super().__init__(rows[index] for index in indices)
        self.numbers = [index + 1 for index in indices]


@dataclass(frozen=True)
class RowTask:
    """Rows of any form, split by the user, with the metrics that score them.

    Attributes:
        name: of the task in saved runs.
        train, validation, test: sequences of rows, such as lists of dicts, ``datasets.Dataset`` or tables of pandas;
            without ``test``, pass ``test=False`` to :func:`s3pet.retrain`.
        metrics: functions by name, the main one first; larger is better.
        label: the column with what a prediction is compared to, or a function of a row that returns it.

    Raises TaskError for splits that are empty or no sequences, fewer than 4 training rows, and metrics that are not
    functions.
    """

    name: str
    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    label: str | Callable[[Any], Any] = "label"
    label_words, label_names, regression, tokenizer, template = (), (), False, None, ""  # as in a task of texts

    def __post_init__(self) -> None:
        TEXT.check(TaskError, name=self.name)
        kind = Kind("a column or a function of a row", lambda v: TEXT.holds(v) or callable(v))
        kind.check(TaskError, label=self.label)
        for split in ("train", "validation", "test"):
            rows = getattr(self, split)
            if hasattr(rows, "iterrows"):
                object.__setattr__(self, split, rows := read_split(rows))
            if isinstance(rows, str | Mapping) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
                what = f"{split} is a {type(rows).__name__}; expected a list of rows, a Dataset or a table of pandas"
                raise TaskError(f"task {self.name!r}: {what}")
        for split, least in (("train", LEAST), ("validation", 1)):
            if (count := len(getattr(self, split))) < least:
                raise TaskError(f"task {self.name!r}: {split} has {count} rows; at least {least} are needed")
        if not isinstance(self.metrics, Mapping) or not self.metrics or not mapping(CALLABLE).holds(self.metrics):
            how = "a mapping of names to functions of (predictions, labels), such as {'exact_match': exact_match}"
            raise TaskError(f"task {self.name!r}: metrics must be {how}; got {self.metrics!r}")
        if falling := [name for name in self.metrics if name.endswith("loss")]:
            raise TaskError(
                f"task {self.name!r}: metric {falling[0]!r} sounds as if smaller were better, but the largest is kept; "
                "pass its negative under another name"
            )

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return next(iter(self.metrics))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of all rows and the names of the metrics."""
        digest = hashlib.sha256(repr(list(self.metrics)).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(b"split")
            for row in split:
                _update(digest, row, self.name)
        return digest.hexdigest()

    def search_split(self, seed: int = 0) -> tuple[list[Any], list[Any]]:
        """Return two random halves of the training rows, ``(search_train, search_val)``; the same for the same seed.

        They have no row in common and equal sizes (of an uneven number one row is left out); rows keep their order.
        """
        order = list(range(len(self.train)))
        random.Random(f"{seed}-search").shuffle(order)
        half = len(order) // 2
        return Half(self.train, sorted(order[:half])), Half(self.train, sorted(order[half : 2 * half]))

    def numbered(self, rows: Sequence[Any]) -> list[tuple[str, Any]]:
        """Rows with their names for messages: ``("train row 3", row)``."""
        splits = (name for name in ("train", "validation", "test") if getattr(self, name) is rows)
        split = "train" if isinstance(rows, Half) else next(splits, "")
        numbers = getattr(rows, "numbers", range(1, len(rows) + 1))
        return [(f"{split} row {n}".strip(), row) for n, row in zip(numbers, rows, strict=True)]

    def labels(self, rows: Sequence[Any]) -> list[Any]:
        """What the predictions of these rows are compared to; TaskError if a row has no such column."""
        if not isinstance(self.label, str):
            return [self.label(row) for row in rows]
        for n, row in enumerate(rows, 1):
            if not isinstance(row, Mapping) or self.label not in row:
                what = f"has columns {sorted(row)}" if isinstance(row, Mapping) else f"is a {type(row).__name__}"
                raise TaskError(f"task {self.name!r}: row {n} {what}; pass label=, a column or a function of a row")
        return [row[self.label] for row in rows]

    def score(self, predictions: Sequence[Any], labels: Sequence[Any]) -> dict[str, float]:
        """Compute all metrics, the main one first.

        Raises TaskError without rows, or if a metric gives no number; DivergedError if one is NaN or infinite.
        """
        predictions, labels = list(predictions), list(labels)
        if len(predictions) != len(labels) or not labels:
            what = f"{len(predictions)} predictions for {len(labels)} labels; pass one each"
            raise TaskError(f"task {self.name!r}: {what}, or retrain(…, test=False) without a test split")
        values = {}
        for name, metric in self.metrics.items():
            try:
                result = metric(predictions, labels)
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
                pair = f"{reprlib.repr(predictions[0])} with {reprlib.repr(labels[0])}"
                what = f"metric {name!r} cannot compare predictions and labels, such as {pair}"
                raise TaskError(f"task {self.name!r}: {what}: {error}") from error
            value = getattr(result, "item", lambda result=result: result)()
            if not isinstance(value, Number) or isinstance(value, complex):
                raise TaskError(f"task {self.name!r}: metric {name!r} must return a number, got {value!r}")
            values[name] = float(value)  # type: ignore[arg-type]
            hint = "; if the predictions are fine, let it return a number where it is undefined"
            check_finite(f"task {self.name!r}: metric {name!r} is", values[name], hint)
        return values

    def __repr__(self) -> str:
        sizes = " / ".join(str(len(part)) for part in (self.train, self.validation, self.test))
        return f"RowTask({self.name!r}: {sizes} rows, {self.metric})"


class NamedTask(RowTask):
    """A task whose rows and metrics are elsewhere: enough to predict; scoring is a TaskError."""

    def __post_init__(self) -> None:
        """It has no rows to check."""

    def labels(self, rows: Sequence[Any]) -> list[Any]:
        raise TaskError(f"task {self.name!r} came without its metrics; to score rows, pass it: load_tuned(…, task)")


def exact_match(predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """The share of predictions that equal their labels; texts are compared without outer spaces.

    >>> exact_match([" yes", 2], ["yes", 3])
    0.5
    """
    pairs = [(_plain(a), _plain(b)) for a, b in zip(predictions, labels, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def rouge_l(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Mean ROUGE-L of texts: the F1 of their longest common subsequence of words, in lower case without punctuation.

    It is 0 where one text has no words and the other has. Source: Lin 2004, with equal weights of recall and precision
    and no stemming.

    >>> round(rouge_l(["the cat sat"], ["The cat was here."]), 3)
    0.571
    """
    scores = []
    for pair in zip(predictions, labels, strict=True):
        first, second = (re.findall(r"\w+", text.lower()) for text in pair)
        lengths = [0] * (len(second) + 1)  # of common subsequences of the words so far and each start of the second
        for word in first:
            diagonal = 0
            for column, other in enumerate(second, 1):
                above = lengths[column]
                lengths[column] = diagonal + 1 if word == other else max(above, lengths[column - 1])
                diagonal = above
        total = len(first) + len(second)
        scores.append(2 * lengths[-1] / total if total else 1.0)
    return sum(scores) / len(scores)


def word_accuracy(predictions: Sequence[Sequence[Any]], labels: Sequence[Sequence[Any]]) -> float:
    """The share of words with the right tag, over all rows; a word that was cut off is predicted as None, so wrong."""
    right = [a == b for row in zip(predictions, labels, strict=True) for a, b in zip(*row, strict=True)]
    return sum(right) / len(right)


def f1_micro(predictions: Sequence[Sequence[Hashable]], labels: Sequence[Sequence[Hashable]]) -> float:
    """The F1 of sets of labels, counted over all rows; 1 if no row has or gets a label."""
    counts = Counter[str]()
    for mine, theirs in ((set(a), set(b)) for a, b in zip(predictions, labels, strict=True)):
        counts.update(both=2 * len(mine & theirs), all=len(mine) + len(theirs))
    return counts["both"] / counts["all"] if counts["all"] else 1.0


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _update(digest: Any, value: Any, name: str) -> None:
    """Add a value of a row to a hash: its type, its size and its content."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()  # a tensor
    if isinstance(value, Mapping):
        digest.update(f"map{len(value)}".encode())
        for key, part in value.items():
            _update(digest, key, name)
            _update(digest, part, name)
    elif isinstance(value, list | tuple):
        digest.update(f"list{len(value)}".encode())
        for part in value:
            _update(digest, part, name)
    elif value is None or isinstance(value, str | bool | int | float):
        text = repr(value).encode()
        digest.update(f"{type(value).__name__}{len(text)}:".encode() + text)
    elif hasattr(value, "tobytes"):  # an array, a number of NumPy, or an image
        kind = [str(getattr(value, part, "")) for part in ("dtype", "shape", "mode", "size")]
        digest.update(repr(kind).encode() + value.tobytes())
    elif hasattr(value, "__dataclass_fields__"):
        _update(digest, vars(value), name)
    else:
        what = f"a {type(value).__name__} in a row cannot be hashed to tell runs apart"
        raise TaskError(f"task {name!r}: {what}; use dicts, lists, texts, numbers, arrays, tensors and images")


def class_number(where: str, value: Any, names: Sequence[str], n_classes: int | None = None) -> int:
    """Return the class of a label: its number, or its place among the names; anything else is a TaskError.

    ``n_classes`` is the number of classes if they have no names; None: any.
    """
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(value, str) and (text := value if value in names else value.strip()) in names:
        return list(names).index(text)
    most = len(names) or n_classes or math.inf
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not is_whole or not 0 <= value < most:
        known = "a number from 0" if most == math.inf else f"a number from 0 to {most - 1}"
        known += f" or one of {', '.join(names[:6])}" if names else ""
        how = ". Names of classes are passed as names=(…)" if isinstance(value, str) and not names else ""
        raise TaskError(f"{where} is {value!r}; expected {known}{how}")
    return int(value)
