"""Columns of rows: texts that are checked and cut, and numbers as padded tensors."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3pet.errors import TaskError, shown
from s3pet.files.kinds import is_whole
from s3pet.objectives.choices import kept_logits, precise
from s3pet.tasks.checks import check_ids, position_limit, say_cut
from s3pet.tasks.plain import RowTask

IGNORED = -100  # of a label: not part of the loss


def padded(name: str, rows: Sequence[Any], value: float) -> Tensor:
    """Rows of one column as a tensor, [n_rows, …]; shorter ones are filled up on the right of every dimension.

    So are lists of different lengths within a row. TaskError for what is no number, and for rows of different depths.
    """

    def tensor_of(row: Any) -> Tensor:
        is_nested = isinstance(row, list | tuple) and any(isinstance(part, list | tuple) for part in row)
        return row if isinstance(row, Tensor) else padded(name, row, value) if is_nested else torch.as_tensor(row)

    try:
        tensors = [tensor_of(row) for row in rows]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"column {name!r} cannot be a tensor: {error}; it must hold numbers or lists") from error
    if len({tensor.ndim for tensor in tensors}) > 1:
        raise TaskError(f"column {name!r} has rows of {sorted({t.ndim for t in tensors})} dimensions; give the same")
    sizes = [max(size) for size in zip(*(tensor.shape for tensor in tensors), strict=True)]
    fills = [[(0, most - size) for size, most in zip(t.shape, sizes, strict=True)] for t in tensors]
    pairs = zip(tensors, fills, strict=True)
    return torch.stack([F.pad(t, [n for pair in reversed(fill) for n in pair], value=value) for t, fill in pairs])


def read_text(where: str, row: Any, column: str) -> str:
    """The text in a column of a row; a TaskError if there is none."""
    text = row.get(column) if isinstance(row, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        problem = f"must hold a text; got {reprlib.repr(text)}"
        if not isinstance(row, Mapping):
            problem = f"cannot be read of a {type(row).__name__}; rows are dicts"
        elif column not in row:
            problem = f"is missing (the row has {sorted(map(str, row))})"
        raise TaskError(f"{where}: column {column!r} {problem}")
    return text


def read_list(value: Any) -> list[Any] | None:
    """A list, tuple, array or tensor as a list; None for anything else."""
    has_length = hasattr(value, "tolist") and bool(getattr(value, "ndim", False))
    value = value.tolist() if has_length else value
    return list(value) if isinstance(value, list | tuple) else None


class Bound:
    """What ready objectives share: once they know their model and task, rows are checked against these.

    Attributes:
        model, task: None before :meth:`bound`. max_length: tokens of an input; longer ones are cut.
        decisive: names of the arguments, kept as attributes, that decide the result.
    """

    model: Any = None
    task: Any = None
    tokenizer: Any = None
    max_length: int | None = None
    decisive: tuple[str, ...] = ()
    _said = False

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, for the config of a run; of a function its name."""

        def plain(value: Any) -> Any:
            if callable(value):
                return getattr(value, "__qualname__", type(value).__qualname__)
            return list(value) if isinstance(value, tuple) else value

        return {name: plain(getattr(self, name)) for name in self.decisive}

    def bound(self, model: Any, task: Any) -> Any:
        """A copy for this model and this task; TaskError for a task without rows of its own form."""
        if task is not None and not isinstance(task, RowTask):
            how = "make one: s3pet.tasks.RowTask(name, train, validation, test, metrics={…})"
            raise TaskError(f"{type(self).__name__} reads the rows of a RowTask, not those of {task!r}; {how}")
        other = copy.copy(self)
        other.model, other.task, other._said = model, task, False
        return other

    def check_options(self, **least: int) -> None:
        """TaskError if there is no tokenizer, or an attribute is no whole number of at least so many."""
        if not callable(self.tokenizer):
            raise TaskError(f"{type(self).__name__} needs the model's tokenizer; got {shown(self.tokenizer)}")
        for name, most in least.items():
            value = getattr(self, name)
            if not is_whole(value) or value < most:
                raise TaskError(f"{name} must be a whole number of at least {most}; got {shown(value)}")
            setattr(self, name, int(value))

    @property
    def length(self) -> int | None:
        """The largest number of tokens of an input; None: any."""
        limits = [n for n in (self.max_length, position_limit(self.model)) if n is not None]
        return min(limits, default=None)

    @property
    def n_classes(self) -> int | None:
        """Outputs of the model's head, if it is a classifier's."""
        kinds = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
        return self.model.config.num_labels if type(self.model).__name__.endswith(kinds) else None

    def numbered(self, rows: Sequence[Any]) -> list[tuple[str, Any]]:
        """Rows with their names for messages."""
        named = [(f"row {n}", row) for n, row in enumerate(rows, 1)]
        return named if self.task is None else self.task.numbered(rows)

    def encode(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Token numbers of rows, of at most :attr:`length`; how many are longer is said once, with their share."""
        named, length = self.numbered(rows), self.length
        encoded = [self._read(where, row, None) for where, row in named]
        is_long = [length is not None and len(entry["input_ids"]) > length for entry in encoded]
        if any(is_long):
            self._say_cut(length, is_long)
            pairs = zip(named, encoded, is_long, strict=True)
            encoded = [self._read(*pair, length) if long else entry for pair, entry, long in pairs]
        name = type(self).__name__ if self.task is None else f"task {self.task.name!r}"
        check_ids(name, self.tokenizer, self.model, [entry["input_ids"] for entry in encoded])
        return encoded

    def _read(self, where: str, row: Any, length: int | None) -> dict[str, Any]:
        """One encoded row, by its name for messages; cut to a length, or None: whole."""
        raise NotImplementedError

    def _say_cut(self, length: Any, is_long: list[bool]) -> None:
        if self._said:
            return
        self._said, name = True, ""
        if self.task is not None:
            name, task = f"task {self.task.name!r}: ", self.task
            try:
                whole = [self._read(where, row, None) for part in (task.train, task.validation, task.test)
                         for where, row in task.numbered(part)]  # fmt: skip
                in_task = [len(entry["input_ids"]) > length for entry in whole]
                is_long = in_task if any(in_task) else is_long  # of new rows
            except TaskError:  # of a row that is read later, and refused then
                pass
        more = f"{type(self).__name__}(…, max_length=…) reads more"
        say_cut(name, is_long, length, more if length == self.max_length else "the model has no more positions")


def word_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of labels, [rows, length], by the logits before them; −100 is ignored."""
    return F.cross_entropy(precise(logits.flatten(0, 1)), labels.flatten(), ignore_index=IGNORED, reduction=reduction)


def written_logits(call: Any, model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Logits of an encoder-decoder before each label, [rows, length, vocabulary]; arguments as for scored_logits."""
    return call(**inputs, decoder_input_ids=written_inputs(model, labels), use_cache=False).logits


def written_inputs(model: Any, labels: Tensor) -> Tensor:
    """What the decoder of an encoder-decoder reads to write these labels (−100 is ignored), [rows, length]."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels.clone())  # FSMT writes into its argument
    start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
    return torch.cat([start, labels[:, :-1].clamp(min=0)], 1)


def scored_logits(call: Any, model: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a decoder before each label, [rows, kept, vocabulary], and these labels.

    Places before which no row has a label are left out.

    Args:
        call: runs the model. inputs: of the model. labels: [rows, length] of the inputs; −100 is ignored.
    """
    keep = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    return kept_logits(call, model, inputs, keep), labels[:, keep + 1]
