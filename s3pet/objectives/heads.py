"""The loss and the head that a model of transformers has itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING

from s3pet.errors import SearchError, TaskError
from s3pet.objectives.columns import IGNORED, padded

TARGETS = ("labels", "start_positions", "end_positions")


class ModelLoss:
    """The loss that the model computes itself, ``model(**batch).loss``, with the head it has.

    For multiple choice, ``input_ids`` of a row is [n_choices, length] (and ``make_space`` needs an ``example`` batch):

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

    def __init__(
        self,
        prepare: Callable[[Any], Mapping[str, Any]] | None = None,
        *,
        padding: Mapping[str, int] | None = None,
        head: Sequence[str] | None = None,
    ):
        self.prepare, self.padding, self.head = prepare, dict(padding or {}), head
        self.inputs: frozenset[str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, for the config of a run."""
        return {"padding": self.padding}

    def heads(self, model: Any) -> Sequence[str]:
        """Submodules that are trained too; SearchError if the model computes no loss."""
        names = inspect.signature(model.forward).parameters
        if not set(TARGETS) & set(names):
            what = f"{type(model).__name__} takes no labels, so it has no loss of its own"
            raise SearchError(f"{what}; load the class with a head, such as AutoModelForSequenceClassification")
        self.inputs = frozenset(names)
        return own_heads(model) if self.head is None else self.head

    def encode(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """The columns of each row that the model reads."""
        encoded = []
        for n, row in enumerate(rows, 1):
            columns = dict(row if self.prepare is None else self.prepare(row))
            kept = {
                name: v for name, v in columns.items() if v is not None and (not self.inputs or name in self.inputs)
            }
            if not kept.keys() - set(TARGETS):
                raise TaskError(f"row {n} has columns {sorted(columns)}, none of which this model reads; pass prepare=")
            encoded.append(kept)
        return encoded

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
        return model(**inputs)


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
