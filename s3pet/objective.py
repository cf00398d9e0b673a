"""A task on a backbone: batches, a loss, and predictions.

The same task is learnt in two ways. A text-to-text backbone (encoder-decoder or decoder) learns to write the label's
word and is scored by comparing the likelihoods of all label words; nothing but PET tensors is trained. An encoder gets
a head on its pooled output, whose parameters are trained with the PET tensors and reported beside the budget, never in
it. Rows are tokenised once; evaluation runs in order of length.

A text-to-text backbone can learn by either of two losses. ``"choice"`` (default) is the cross-entropy over the label
words' likelihoods, the very comparison that scores it; ``"lm"`` is the authors' language-model loss on the right word,
which first of all teaches that *some* label word comes, and under a small budget may teach nothing else.

The head may be run with weights from outside (``head_weights``), so that the search can evaluate any w'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3pet.backbones import backbone_kind
from s3pet.batches import Row
from s3pet.errors import TaskError
from s3pet.tasks import Example, Task

Batch = dict[str, Tensor]
POOLINGS = ("pooler", "first", "mean")
LOSSES = ("choice", "lm")
PRECISIONS = ("float32", "bfloat16")


class Objective(nn.Module):
    """Base of the three ways a backbone learns a task.

    Attributes:
        model: the backbone (not a submodule).
        task: the task.
        head: the task head, or None.
        device: where batches go.
        scored: rows predicted so far.
        precision: ``"float32"``: the backbone runs as it is; ``"bfloat16"``: under autocast. What is trained stays as
            it is, and heads and losses are always computed in it.
    """

    model: Any
    task: Task
    head: Any
    words: Any

    def __init__(self, model: nn.Module, task: Task, max_length: int):
        super().__init__()
        if task.tokenizer is None:
            raise TaskError(f"task {task.name!r} has no tokenizer; give one: load_task({task.name!r}, tokenizer)")
        self.__dict__["model"] = model
        self.head = None
        self.task, self.tokenizer, self.max_length = task, task.tokenizer, max_length
        self.scored, self.precision = 0, "float32"

    def run(self, call: Any = None, **inputs: Any) -> Any:
        """The backbone's output (or of a part of it), computed at the objective's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return (call or self.model)(**inputs)

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return next(self.model.parameters()).device

    @property
    def head_weights(self) -> list[Tensor]:
        """Trainable tensors of the head, none for text-to-text backbones."""
        return [] if self.head is None else list(self.head.parameters())

    @property
    def head_params(self) -> int:
        """Trainable parameters of the head; never part of the budget."""
        return sum(weight.numel() for weight in self.head_weights)

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenise once: rows of ``input_ids`` (list of int) and ``target``."""
        raise NotImplementedError

    def loss(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        """Mean training loss of a batch, a scalar; the head may run with weights from outside."""
        raise NotImplementedError

    def scores(self, batch: Batch) -> Tensor:
        """[batch, n_labels] log-likelihoods or logits; [batch, 1] predicted values for a regression head."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pad a list of encoded rows to a batch on the backbone's device."""
        filler = {"input_ids": self.tokenizer.pad_token_id or 0}
        batch = {k: _pad([row[k] for row in rows], filler.get(k, 0)) for k in rows[0] if k != "target"}
        batch["attention_mask"] = _pad([[1] * len(row["input_ids"]) for row in rows], 0)
        kind = torch.float32 if self.task.regression and self.head is not None else torch.long
        batch["target"] = torch.tensor([row["target"] for row in rows], dtype=kind)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @torch.no_grad()
    def predict(self, examples: Sequence[Example] | Sequence[Row], batch_size: int = 128) -> list[float]:
        """Class index (or value) for each example, in evaluation mode and without gradients."""
        rows = examples if examples and isinstance(examples[0], dict) else self.encode(examples)  # type: ignore[arg-type]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))  # type: ignore[call-overload,index]
        modes = {module: module.training for module in (self, self.model)}
        for module in modes:
            module.eval()
        found: list[float] = [0.0] * len(rows)
        self.scored += len(rows)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            scores = self.scores(self.collate([rows[index] for index in part])).float()  # type: ignore[misc]
            picks = scores.squeeze(-1) if self.task.regression and self.head else scores.argmax(-1)
            for index, pick in zip(part, picks.tolist(), strict=True):
                found[index] = pick
        for module, mode in modes.items():
            module.train(mode)
        if self.task.regression and self.head is None:
            return [self.task.label_values[int(pick)] for pick in found]
        return found

    def evaluate(self, examples: Sequence[Example], rows: Sequence[Row] | None = None) -> dict[str, float]:
        """The task's metrics on these examples, the main one first."""
        labels = [example.label for example in examples]
        return self.task.score(self.predict(rows or examples), labels)

    def _target(self, example: Example) -> int | float:
        if not self.task.regression or self.head is not None:
            return example.label
        values = self.task.label_values  # a text-to-text backbone writes the nearest printed value
        return min(range(len(values)), key=lambda index: abs(values[index] - float(example.label)))

    def _sources(self, examples: Sequence[Example]) -> list[list[int]]:
        texts = [example.source for example in examples]
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]


class LabelWords(Objective):
    """A text-to-text backbone: learns and is scored by its label words."""

    def __init__(self, model: nn.Module, task: Task, max_length: int, loss: str):
        super().__init__(model, task, max_length)
        if loss not in LOSSES:
            raise ValueError(f"loss {loss!r} is not one of {', '.join(LOSSES)}")
        self.kind = loss

    def loss(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        if self.kind == "choice":
            return F.cross_entropy(self.scores(batch), batch["target"])
        return self.word_loss(batch)

    def word_loss(self, batch: Batch) -> Tensor:
        """Language-model loss on the right label word, mean over its tokens."""
        raise NotImplementedError


class SequenceToSequence(LabelWords):
    """Encoder-decoder: the decoder writes the label word."""

    def __init__(self, model: nn.Module, task: Task, max_length: int, loss: str):
        super().__init__(model, task, max_length, loss)
        words = self.tokenizer(text_target=list(task.label_words))["input_ids"]
        self.register_buffer("words", _pad(words, -100).to(self.device))  # [n_labels, length], with the end token

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        pairs = zip(self._sources(examples), examples, strict=True)
        return [{"input_ids": ids, "target": self._target(example)} for ids, example in pairs]

    def word_loss(self, batch: Batch) -> Tensor:
        labels = self.words[batch["target"]]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return self.run(**inputs, labels=labels, use_cache=False).loss

    def scores(self, batch: Batch) -> Tensor:
        mask = batch["attention_mask"]
        hidden = self.run(self.model.get_encoder(), input_ids=batch["input_ids"], attention_mask=mask)
        n_labels, n_rows = len(self.words), len(mask)
        hidden.last_hidden_state = hidden.last_hidden_state.repeat_interleave(n_labels, 0)
        labels = self.words.repeat(n_rows, 1)  # row-major: all label words of row 0, then of row 1, …
        mask = mask.repeat_interleave(n_labels, 0)
        logits = self.run(encoder_outputs=hidden, attention_mask=mask, labels=labels, use_cache=False).logits
        return _likelihood(logits, labels).view(n_rows, n_labels)


class Causal(LabelWords):
    """Decoder: the prompt is continued by the label word."""

    def __init__(self, model: nn.Module, task: Task, max_length: int, loss: str):
        super().__init__(model, task, max_length, loss)
        words = [
            self.tokenizer(" " + word, add_special_tokens=False)["input_ids"][: max_length // 2]
            for word in task.label_words
        ]
        if len({tuple(word) for word in words}) < len(words):
            raise TaskError(f"label words {task.label_words} are not distinct tokens for this tokenizer")
        self.words = words

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        room = self.max_length - max(map(len, self.words))
        texts = [example.source for example in examples]
        prompts = [ids[-room:] for ids in self.tokenizer(texts)["input_ids"]]  # the prompt's end is what matters
        return [{"input_ids": p, "target": self._target(e)} for p, e in zip(prompts, examples, strict=True)]

    def word_loss(self, batch: Batch) -> Tensor:
        ids, labels = self._continued(batch, [[int(pick)] for pick in batch["target"]])
        logits = self.run(input_ids=ids, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)

    def scores(self, batch: Batch) -> Tensor:
        every = list(range(len(self.words)))
        ids, labels = self._continued(batch, [every] * len(batch["target"]))
        logits = self.run(input_ids=ids, use_cache=False).logits[:, :-1]
        return _likelihood(logits, labels[:, 1:]).view(-1, len(every))

    def _continued(self, batch: Batch, picks: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Prompt + label word, padded on the right (a causal mask never looks there), and labels on the word only."""
        ids, labels = [], []
        for prompt, mask, chosen in zip(batch["input_ids"], batch["attention_mask"], picks, strict=True):
            kept = prompt[mask.bool()].tolist()
            for pick in chosen:
                ids.append(kept + self.words[pick])
                labels.append([-100] * len(kept) + self.words[pick])
        return _pad(ids, self.tokenizer.pad_token_id or 0).to(self.device), _pad(labels, -100).to(self.device)


class Head(nn.Module):
    """Dropout and one linear map on the pooled output: with ``"pooler"`` the standard BERT classification head.

    Args:
        width: hidden size. n_labels: outputs. dropout: probability. pooling: ``"pooler"`` (the backbone's own, on the
            first token), ``"first"`` token, or ``"mean"`` over real tokens.
    """

    def __init__(self, width: int, n_labels: int, dropout: float, pooling: str):
        super().__init__()
        self.pooling, self.dropout, self.out = pooling, nn.Dropout(dropout), nn.Linear(width, n_labels)

    def forward(self, output: Any, mask: Tensor) -> Tensor:
        """[batch, n_labels] from the backbone's output and the attention mask."""
        if self.pooling == "pooler":
            pooled = output.pooler_output
        elif self.pooling == "first":
            pooled = output.last_hidden_state[:, 0]
        else:
            weight = mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
            pooled = (output.last_hidden_state * weight).sum(1) / weight.sum(1)
        return self.out(self.dropout(pooled.to(self.out.weight.dtype)))


class Encoder(Objective):
    """Encoder with a fresh head: cross-entropy, or squared error from the mean of the training split's values on."""

    def __init__(self, model: nn.Module, task: Task, max_length: int, seed: int, pooling: str | None):
        super().__init__(model, task, max_length)
        config: Any = model.config
        has_pooler = getattr(model, "pooler", None) is not None and not getattr(model, "s3pet_pooler_is_fresh", False)
        pooling = pooling or ("pooler" if has_pooler else "mean")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
        dropout: Any = getattr(config, "classifier_dropout", None)
        dropout = getattr(config, "hidden_dropout_prob", 0.1) if dropout is None else dropout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = Head(config.hidden_size, task.n_labels, dropout, pooling)
            nn.init.normal_(head.out.weight, std=getattr(config, "initializer_range", 0.02))
            nn.init.zeros_(head.out.bias)
        if task.regression:  # else the first hundred steps learn the mean, and little else
            nn.init.constant_(head.out.bias, sum(float(example.label) for example in task.train) / len(task.train))
        self.head = head.to(self.device)

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        columns = [list(column) for column in zip(*(example.segments for example in examples), strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        return [{**row, "target": self._target(example)} for row, example in zip(rows, examples, strict=True)]

    def loss(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        logits, target = self._logits(batch, head_weights), batch["target"]
        if self.task.regression:
            return F.mse_loss(logits.squeeze(-1), target)
        return F.cross_entropy(logits, target)

    def scores(self, batch: Batch) -> Tensor:
        return self._logits(batch)

    def _logits(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        output = self.run(**{name: tensor for name, tensor in batch.items() if name != "target"})
        inputs = (output, batch["attention_mask"])
        if head_weights is None:
            return self.head(*inputs)  # type: ignore[misc]
        names = [name for name, _ in self.head.named_parameters()]  # type: ignore[union-attr]
        return torch.func.functional_call(self.head, dict(zip(names, head_weights, strict=True)), inputs)  # type: ignore[arg-type]


def make_objective(
    model: nn.Module,
    task: Task,
    *,
    max_length: int = 128,
    seed: int = 0,
    pooling: str | None = None,
    loss: str = "choice",
    precision: str = "float32",
) -> Objective:
    """How this backbone learns this task.

    Args:
        model: from :func:`s3pet.load_backbone`, or any Hugging Face model of a known family. Of a model that carries
            its own classification head only the encoder is used.
        task: with its tokenizer.
        max_length: tokens of an input, longer ones are cut.
        seed: of a fresh head.
        pooling: for encoders: ``"pooler"``, ``"first"`` or ``"mean"``; None takes the backbone's own pooler where its
            weights came with it, else the mean.
        loss: for text-to-text backbones: ``"choice"`` or ``"lm"``.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast), see :class:`Objective`.

    Returns:
        An objective without trained state, but for a fresh head.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    kind = backbone_kind(model)
    objective: Objective
    if kind == "encoder-decoder":
        objective = SequenceToSequence(model, task, max_length, loss)
    elif kind == "decoder":
        objective = Causal(model, task, max_length, loss)
    else:
        objective = Encoder(getattr(model, "base_model", model), task, max_length, seed, pooling)
    objective.precision = precision
    return objective


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)


def _likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of each row's labels (−100 is ignored): [rows]."""
    flat = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none")
    return -flat.view(labels.shape).sum(-1)


# --- temporary stand-ins until the rewritten objective is merged ---
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402

from s3pet.batches import Stream, derive  # noqa: E402, F401

_make_objective = make_objective


@dataclass(frozen=True)
class ObjectiveSettings:
    """Stand-in."""

    max_length: int = 128
    pooling: str | None = None
    loss: str = "choice"
    precision: str = "float32"

    @classmethod
    def of(cls, given: Any) -> Any:
        """Stand-in."""
        return given if isinstance(given, cls) else cls(**(given or {}))


def make_objective(model: nn.Module, task: Task, settings: Any = None, *, seed: int = 0) -> Any:
    """Stand-in."""
    s = ObjectiveSettings.of(settings)
    o = _make_objective(model, task, seed=seed, max_length=s.max_length, pooling=s.pooling, loss=s.loss, precision=s.precision)
    o.settings = replace(s, pooling=o.head.pooling if o.head else None)
    return o


def check_fields(record: Any, *, positive: Any = (), choices: Any = None) -> None:
    """Stand-in."""
    from s3pet.errors import SearchError

    for name, allowed in (choices or {}).items():
        if getattr(record, name) not in allowed:
            raise SearchError(f"{name}={getattr(record, name)!r} is not one of {', '.join(map(str, allowed))}")
    for name in positive:
        if not getattr(record, name) > 0:
            raise SearchError(f"{name} must be > 0, got {getattr(record, name)}")


@contextmanager
def preserved_modes(model: nn.Module) -> Any:
    """Stand-in."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for m, t in modes:
            m.training = t
