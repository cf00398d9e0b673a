"""The loss and the head that a model of transformers has itself."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING

from s3pet.errors import S3PetError, SearchError, TaskError
from s3pet.files.kinds import CALLABLE, TEXT, mapping, number, optional, several
from s3pet.objectives.columns import IGNORED, Bound, padded, read_list
from s3pet.tasks.checks import check_ids
from s3pet.tasks.plain import class_number

TARGETS = ("labels", "start_positions", "end_positions")


class ModelLoss(Bound):
    """The loss that the model computes itself, ``model(**batch).loss``, with the head it has.

    For multiple choice, ``input_ids`` of a row is [n_choices, length] (and ``make_space`` needs an ``example`` batch):

        from s3pet.tasks.plain import RowTask, exact_match
        rows = [{**tokenizer([question] * 4, choices), "labels": right} for question, choices, right in data]
        task = RowTask("quiz", rows[:900], rows[900:], metrics={"accuracy": exact_match}, label="labels")
        retrain(model, task, structure, objective=ModelLoss(), test=False)

    For question answering a row has ``start_positions`` and ``end_positions`` (tokens), and a prediction is the pair
    (start, end), the most likely one in order. Else a prediction is the class of the row (or of each token; a value, if
    the model has one output and no dimension of choices).

    Args:
        prepare: makes the model's inputs, a dict, of a row; None: rows are such dicts. Other columns are dropped.
        padding: value that fills a column up to the longest row; 0, and −100 for labels, where it is not named.
        head: dotted names of submodules that are trained too; None: all beside the base model but the output embedding.
    """

    decisive: tuple[str, ...] = ("padding", "prepare")
    names: tuple[str, ...] = ()

    def __init__(
        self,
        prepare: Callable[[Any], Mapping[str, Any]] | None = None,
        *,
        padding: Mapping[str, int] | None = None,
        head: Sequence[str] | None = None,
    ):
        optional(CALLABLE).check(TaskError, prepare=prepare)
        optional(mapping(number())).check(TaskError, padding=padding)
        optional(several(TEXT, 0)).check(TaskError, head=head)
        self.prepare, self.padding, self.head = prepare, dict(padding or {}), head

    @property
    def inputs(self) -> frozenset[str]:
        """Names of what the model reads; empty before it is known."""
        return frozenset() if self.model is None else frozenset(inspect.signature(self.model.forward).parameters)

    def heads(self, model: Any) -> Sequence[str]:
        """Submodules that are trained too.

        SearchError if the model computes no loss; TaskError if it has another number of outputs than there are names.
        """
        count = getattr(getattr(model, "config", None), "num_labels", None)
        if self.names and count is not None and count != len(self.names):
            how = f"load it with num_labels={len(self.names)}"
            raise TaskError(f"the model's head has {count} outputs and there are {len(self.names)} names; {how}")
        if not set(TARGETS) & set(inspect.signature(model.forward).parameters):
            what = f"{type(model).__name__} takes no labels, so it has no loss of its own"
            raise SearchError(f"{what}; load the class with a head, such as AutoModelForSequenceClassification")
        if getattr(model.config, "is_encoder_decoder", False) and getattr(model, "can_generate", bool)():
            raise SearchError(f"{type(model).__name__} writes texts; use s3pet.objectives.Generation(tokenizer)")
        return own_heads(model) if self.head is None else self.head

    def encode(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """The columns of each row that the model reads, checked against it."""
        encoded, inputs, named = [], self.inputs, self.numbered(rows)
        for where, row in named:
            columns = row if self.prepare is None else self.prepare(row)
            if not isinstance(columns, Mapping):
                raise TaskError(f"{where} is a {type(columns).__name__}, no dict of the model's inputs; pass prepare=")
            kept = {name: v for name, v in columns.items() if v is not None and (not inputs or name in inputs)}
            if not kept.keys() - set(TARGETS):
                raise TaskError(f"{where} has columns {sorted(columns)}, none of which this model reads; pass prepare=")
            encoded.append(kept | self._targets(where, kept))
        if type(self.model).__name__.endswith("ForMultipleChoice"):
            counts = [len(row.get("input_ids", ())) for row in encoded]
            if others := [(where, n) for (where, _), n in zip(named, counts, strict=True) if n != counts[0]]:
                what = f"{others[0][0]} has {others[0][1]} choices and {named[0][0]} has {counts[0]}"
                raise TaskError(f"{what}; all rows need as many, or empty ones would be predicted")
        return encoded

    def _targets(self, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """The targets of a row as the model reads them; TaskError if they, or the inputs, cannot be right."""
        ids, targets = row.get("input_ids"), dict[str, Any]()
        if ids is not None:
            sequences = [read_list(part) or [] for part in read_list(ids) or [] if read_list(part) is not None]
            sequences = sequences or [read_list(ids) or []]
            if not all(isinstance(n, int) for part in sequences for n in part) or not all(sequences):
                raise TaskError(f"{where}: input_ids must be token numbers, one or more; got {reprlib.repr(ids)}")
            check_ids(where, self.tokenizer, self.model, sequences)
            longest = max(map(len, sequences))
            if self.length is not None and longest > self.length:
                how = "cut it where it is tokenised: tokenizer(…, truncation=True, max_length=…)"
                raise TaskError(f"{where} has {longest} tokens, but the model has positions for {self.length}; {how}")
            for name in ("start_positions", "end_positions"):
                if name in row:
                    targets[name] = class_number(f"{where}: {name}", row[name], (), longest)
            if targets.get("end_positions", longest) < targets.get("start_positions", 0):
                raise TaskError(f"{where}: the answer ends before it starts: {targets}")
        if "labels" in row and self.model is not None:
            targets["labels"] = self._labels(f"{where}: labels", row["labels"], ids)
        return targets

    def _labels(self, where: str, labels: Any, ids: Any) -> Any:
        numbers, n_classes, kind = read_list(labels), self.n_classes, type(self.model).__name__
        if n_classes == 1 or getattr(self.model.config, "problem_type", None) == "regression":
            for value in [labels] if numbers is None else numbers:
                value = value.item() if hasattr(value, "item") else value
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise TaskError(f"{where} is {value!r}; expected a finite number, for a model with one output")
            return float(labels) if numbers is None else [float(value) for value in numbers]
        if numbers is None:
            n_classes = len(read_list(ids) or []) if kind.endswith("ForMultipleChoice") else n_classes
            return class_number(where, labels, self.names, n_classes)
        if kind.endswith("ForTokenClassification"):
            if len(numbers) != len(read_list(ids) or numbers):
                what = f"has {len(numbers)} labels for {len(read_list(ids) or [])} tokens"
                raise TaskError(f"{where} {what}; give one a token, {IGNORED} where none counts")
            return [IGNORED if n == IGNORED else self._class(where, n) for n in numbers]
        if n_classes is not None and (len(numbers) != n_classes or not all(value in (0, 1) for value in numbers)):
            what = f"one class, or for several classes at once a vector of {n_classes} numbers 0.0 or 1.0"
            raise TaskError(f"{where} is {reprlib.repr(labels)}; expected {what}")
        return labels if n_classes is None else [float(value) for value in numbers]

    def _class(self, where: str, value: Any) -> int:
        return class_number(where, value, self.names, self.n_classes)

    def _named(self, where: str, value: Any) -> Any:
        number = self._class(where, value)
        return self.names[number] if self.names else number

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Columns as tensors, [batch, …], filled up on the right in every dimension; those not in all rows left out."""
        columns = [name for name in rows[0] if all(name in row for row in rows)]
        fill = dict.fromkeys(TARGETS, IGNORED) | self.padding
        return {name: padded(name, [row[name] for row in rows], fill.get(name, 0)) for name in columns}

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The model's own loss; SearchError if it returns none."""
        value = getattr(self.output(model, batch), "loss", None)
        if value is None:
            what = f"{type(model).__name__} returned no loss for columns {', '.join(batch)}"
            raise SearchError(f"{what}; rows need labels (of question answering, start_positions and end_positions)")
        return value

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[Any]:
        """What is most likely, one entry a row."""
        output, mask = self.output(model, batch, targets=False), batch.get("attention_mask")
        if getattr(output, "start_logits", None) is not None:
            both = output.start_logits[:, :, None] + output.end_logits[:, None, :]  # [batch, start, end]
            wrong = torch.ones_like(both[0]).tril(-1).bool()  # an end before the start
            wrong = wrong if mask is None else wrong | (mask[:, None, :] == 0)
            best = both.masked_fill(wrong, -torch.inf).flatten(1).argmax(-1)
            return [divmod(int(place), both.shape[-1]) for place in best]
        if (logits := getattr(output, "logits", None)) is None:
            what = f"{type(model).__name__} returns no logits"
            raise SearchError(f"{what}; write an objective of your own, see s3pet.objectives")
        if logits.ndim == 2 and logits.shape[-1] == 1:
            return logits[:, 0].tolist()
        classes = logits.argmax(-1).tolist()
        if logits.ndim == 3 and mask is not None and mask.shape == logits.shape[:2]:  # without the filling
            return [row[:n] for row, n in zip(classes, mask.sum(1).tolist(), strict=True)]
        return classes

    def output(self, model: Any, batch: Mapping[str, Tensor], targets: bool = True) -> Any:
        """The model's output for the columns that it reads, with or without its targets."""
        known = self.inputs or batch.keys()
        inputs = {name: v for name, v in batch.items() if name in known and (targets or name not in TARGETS)}
        config, problem = model.config, getattr(model.config, "problem_type", None)
        try:
            return model(**inputs)
        except (S3PetError, torch.OutOfMemoryError):
            raise
        except (ValueError, TypeError, IndexError, RuntimeError, KeyError) as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise TaskError(f"{type(model).__name__} cannot read a batch of {shapes}: {error}") from error
        finally:
            if hasattr(config, "problem_type"):
                config.problem_type = problem  # which the model notes at its first loss


def own_heads(model: Any) -> tuple[str, ...]:
    """Names of the submodules beside the base model that have parameters, but the output embedding of a language model.

    ``qa_outputs``, ``classifier`` or ``score``; none for T5 and for decoders with a language-model head.
    """
    base, embedding, inner = getattr(model, "base_model", model), model.get_output_embeddings(), set[str]()
    if base is model:  # a bare model, or one whose base model is not a part by itself, as T5ForQuestionAnswering
        bare: Any = MODEL_MAPPING.get(type(getattr(model, "config", None)), None)
        if bare is None:
            return ()
        with torch.device("meta"):
            inner = {name for name, _ in bare(model.config).named_children()}
    beside = [(n, part) for n, part in model.named_children() if n not in inner and part is not base]
    return tuple(n for n, part in beside if [*part.parameters()] and all(p is not embedding for p in part.modules()))
