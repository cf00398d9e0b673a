"""A task of texts and labels on a backbone: batches, loss and predictions.

A text-to-text backbone (encoder-decoder or decoder) learns to write the word of the right label. It is scored by
comparing the likelihoods of all label words, each up to the token that tells it from all others, in one pass on nearly
all backbones (:mod:`s3pet.objectives.choices`). Only PET tensors are trained. An encoder gets a head on its pooled
output, which is trained too; its parameters are reported beside the budget, never as part of it.

A text-to-text backbone is trained with one of two losses: ``"choice"``, the cross-entropy over those likelihoods, or
``"lm"``, the authors' language-model loss on the right word, which first teaches that a label word comes next.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from s3pet.backbones import backbone_kind, borrows, check_model, preserved
from s3pet.errors import BackboneError, SearchError, TaskError, check_finite, shown
from s3pet.files.kinds import SEED
from s3pet.objectives.choices import WordTree
from s3pet.objectives.columns import IGNORED, scored_logits, word_loss, written_inputs, written_logits
from s3pet.objectives.pooling import pooled, pooled_width
from s3pet.objectives.streams import Row, in_batches
from s3pet.records import LATER, check_fields, recorded
from s3pet.tasks import Example, Task
from s3pet.tasks.checks import label_tokens
from s3pet.tasks.tokens import Reader

Batch = dict[str, Tensor]
CHOICES = {"pooling": (None, "pooler", "first", "mean"), "loss": ("choice", "lm"), "precision": ("float32", "bfloat16")}
CHOICES |= {"class_weights": (None, "balanced")}  # type: ignore[dict-item]


@dataclass(frozen=True)
class ObjectiveSettings:
    """How a task is put to a backbone; searches, retraining and baselines take it as ``objective=``.

    Attributes:
        max_length: tokens of an input, at least 2; longer inputs are cut.
        pooling: what the head of an encoder reads: ``"pooler"`` (the backbone's own, on the first token), ``"first"``
            (the first token) or ``"mean"`` (over all real tokens). None takes the pooler if the backbone was loaded
            with weights for it, else the mean. Other backbones have no head.
        loss: of a text-to-text backbone, ``"choice"`` or ``"lm"``, see the description of the module.
        precision: of the backbone: ``"float32"`` runs it as it is, ``"bfloat16"`` under autocast. Trained tensors,
            heads and losses keep their type.
        class_weights: ``"balanced"`` weighs the loss of each training row so that all classes count the same.
    """

    max_length: int = 128
    pooling: str | None = None
    loss: str = "choice"
    precision: str = "float32"
    class_weights: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        check_fields(self, least={"max_length": 2}, choices=CHOICES)
        if self.class_weights and self.loss == "lm":
            raise SearchError("class_weights go with loss='choice', which compares the classes; 'lm' sees one word")

    @classmethod
    def of(cls, settings: ObjectiveSettings | Mapping[str, Any] | None) -> ObjectiveSettings:
        """Settings from a mapping of some fields; None gives the defaults. Raises SearchError for anything else."""
        if isinstance(settings, ObjectiveSettings):
            return settings
        names = [entry.name for entry in fields(cls)]
        if not isinstance(settings, Mapping | None) or not set(settings or {}) <= set(names):
            what = f"objective must be a mapping of some of {', '.join(names)}; got {shown(settings)}"
            raise SearchError(f"{what}. An object of your own goes to search, retrain and load_tuned only")
        return cls(**(settings or {}))


class Objective(nn.Module):
    """How a backbone learns a task; :func:`make_objective` makes one of the three kinds.

    Attributes:
        model, task: the backbone (not a submodule) and the task.
        settings: the settings used; ``pooling`` is never None for an encoder.
        head, scored: the task head of an encoder, else None; the number of rows predicted so far.
        batch_size, n_sequences: sequences of a batch that is only scored, and how many one row needs.
        heads: submodules of the model that the head stands for; none, if it is a fresh one.
    """

    model: Any
    head: Any
    words: Any
    _word_loss: Any  # of a writer: the mean language-model loss of the right words
    class_weights: Any
    heads: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, task: Any, settings: ObjectiveSettings):
        super().__init__()
        self.__dict__["model"] = model
        self.task, self.tokenizer, self.settings = task, task.tokenizer, settings
        self.head, self.scored, self.batch_size, self.n_sequences = None, 0, 128, 1
        self.reader = Reader(task, model, settings.max_length, segments=isinstance(self, Encoder))
        weights = torch.tensor(task.class_weights()) if settings.class_weights and task.train else None
        self.register_buffer("class_weights", None if weights is None else weights.to(self.device), persistent=False)

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenised rows: ``input_ids`` (a list of token numbers), ``target``, and what else the tokenizer gives."""
        return [{**row, "target": self._target(e)} for row, e in zip(self.reader(examples), examples, strict=True)]

    def scores(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        """Log-likelihoods or logits [batch, n_labels], of a regression head values [batch, 1]; of any head weights."""
        raise NotImplementedError

    def loss(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        """Mean training loss of a batch, a scalar."""
        if self.settings.loss == "lm":
            return self._word_loss(batch)
        return self.losses(self.scores(batch, head_weights), batch["target"], "mean")

    def losses(self, scores: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
        """Loss of each row [batch] by its scores [batch, n_labels], or their ``"mean"``; not the ``"lm"`` loss."""
        if self.task.regression and self.head is not None:
            return F.mse_loss(scores.squeeze(-1), target, reduction=reduction)
        if self.settings.class_weights is None:
            return F.cross_entropy(scores, target, reduction=reduction)
        losses = F.cross_entropy(scores, target, self.class_weights, reduction="none")
        return losses.mean() if reduction == "mean" else losses

    def terms(self, rows: Sequence[Row]) -> int:
        """How many terms the mean loss of some rows has: one a row, of ``"lm"`` one a token of their words."""
        return sum(len(self.words[row["target"]]) for row in rows) if self.settings.loss == "lm" else len(rows)

    def declared(self) -> dict[str, Any]:
        """What decides this objective, for the config of a run."""
        return recorded(self.settings)

    def unfreeze(self) -> None:
        """Let the whole backbone be trained."""
        self.model.requires_grad_(True)

    def prepare(self, dropout: bool) -> None:
        """Get backbone and head ready for training, with their dropout or without."""
        self.model.train(dropout)
        self.train(dropout)
        for part in self.model.modules():  # a layer is only checkpointed in training mode; its submodules need not be
            part.training |= isinstance(part, GradientCheckpointingLayer) and part.gradient_checkpointing

    def run(self, call: Any = None, **inputs: Any) -> Any:
        """Output of the backbone (or of ``call``, a part of it) at the chosen precision; unknown inputs are dropped."""
        call = call or self.model
        names = inspect.signature(call.forward).parameters  # FNet takes no mask
        if not any(taken.kind is taken.VAR_KEYWORD for taken in names.values()):
            inputs = {name: value for name, value in inputs.items() if name in names}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            return call(**inputs)

    @property
    def device(self) -> torch.device:
        """The device of the backbone and of the batches."""
        return next(self.model.parameters()).device

    @property
    def head_weights(self) -> list[Tensor]:
        """Trainable tensors of the head; empty without a head."""
        return [] if self.head is None else list(self.head.parameters())

    @property
    def head_params(self) -> int:
        """Number of trainable parameters of the head; never part of the budget."""
        return sum(weight.numel() for weight in self.head_weights)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """One padded batch of encoded rows, on the backbone's device."""
        padding = {"input_ids": self.tokenizer.pad_token_id or 0}
        batch = {k: _pad([row[k] for row in rows], padding.get(k, 0)) for k in rows[0] if k != "target"}
        batch["attention_mask"] = _pad([[1] * len(row["input_ids"]) for row in rows], 0)
        kind = torch.float32 if self.task.regression and self.head is not None else torch.long
        batch["target"] = torch.tensor([row["target"] for row in rows], dtype=kind)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    @torch.no_grad()
    def predict(
        self, examples: Sequence[Example], rows: Sequence[Row] | None = None, *, batch_size: int | None = None
    ) -> list[float]:
        """Class index (or value) of each example; ``rows`` are the examples, already encoded.

        Raises DivergedError if a score is NaN or infinite, as after a training that diverged.
        """
        return self.decide(self.score_rows(examples, rows, batch_size=batch_size)) if examples else []

    @torch.no_grad()
    def score_rows(
        self, examples: Sequence[Example], rows: Sequence[Row] | None = None, *, batch_size: int | None = None
    ) -> Tensor:
        """The :meth:`scores` of examples (one or more) [n, n_labels], in their order; raises as :meth:`predict`."""
        encoded = self.encode(examples) if rows is None else rows
        batches = in_batches(encoded, max(1, (batch_size or self.batch_size) // self.n_sequences))
        parts = list[Tensor]()
        with preserved(self, self.model, seeded=False):
            self.model.eval()
            self.eval()
            for numbers in batches:
                scores = self.scores(self.collate([encoded[number] for number in numbers])).float()
                self.scored += len(scores)
                self.check_scores(scores)
                parts.append(scores)
        order = torch.tensor([number for numbers in batches for number in numbers])
        return torch.cat(parts)[order.argsort().to(parts[0].device)]  # in the order of the rows

    def check_scores(self, scores: Tensor, what: str = "scores") -> None:
        """Raise DivergedError unless all are finite; the argmax of NaN is 0, a plausible class."""
        check_finite(f"{what} on task {self.task.name!r} are", scores.abs().sum(), ", so nothing is predicted")

    def decide(self, scores: Tensor) -> list[float]:
        """Class index (or value) of each row by its scores [batch, n_labels]."""
        if self.task.regression and self.head is not None:
            return scores.squeeze(-1).tolist()
        chosen, values = scores.argmax(-1).tolist(), self.task.label_values
        return [values[index] for index in chosen] if values else chosen

    def evaluate(self, examples: Sequence[Example], rows: Sequence[Row] | None = None) -> dict[str, float]:
        """The task's metrics on these examples, the main one first; raises as :meth:`predict`."""
        return self.task.score(self.predict(examples, rows), [example.label for example in examples])

    def _target(self, example: Example) -> int | float:
        if math.isnan(example.label):  # a row to be predicted
            return 0
        if not self.task.regression or self.head is not None:
            return example.label
        values = self.task.label_values  # a text-to-text backbone writes the nearest printed value
        return min(range(len(values)), key=lambda index: abs(values[index] - float(example.label)))


class Writer(Objective):
    """A backbone that writes the label word.

    Attributes:
        words, scored_words: tokens of the label words, and of each those up to the one that tells it from all others.
        n_distinct, tree: the most tokens that are scored, and all of them as a tree.
        in_one_pass: whether the backbone reads the tree.
    """

    def __init__(self, model: nn.Module, task: Task, settings: ObjectiveSettings, words: Sequence[Sequence[int]]):
        super().__init__(model, task, settings)
        self.words, self.scored_words = label_tokens(task, model, words)
        self.n_distinct = max(map(len, self.scored_words))
        self.tree = WordTree(self.scored_words)
        self.in_one_pass = self.tree.fits(self)
        alike = max(1, len(self.tree.tokens) // self.n_distinct)  # words alone with as many logits as the tree
        self.n_sequences = alike if self.in_one_pass else len(self.words)

    def scores(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        return self.scores_at_once(batch) if self.in_one_pass else self.scores_alone(batch)

    def scores_at_once(self, batch: Batch) -> Tensor:
        """As :meth:`scores`, with all words in one sequence."""
        return (self.tree.written_scores if self.model.config.is_encoder_decoder else self.tree.scores)(self, batch)

    def scores_alone(self, batch: Batch) -> Tensor:
        """As :meth:`scores`, with a sequence for each word: slow, for backbones that cannot read a tree of words."""
        raise NotImplementedError


class SequenceToSequence(Writer):
    """Encoder-decoder: the decoder writes the label word."""

    def __init__(self, model: nn.Module, task: Task, settings: ObjectiveSettings):
        words = cast(Any, task.tokenizer)(text_target=list(task.label_words))["input_ids"]
        super().__init__(model, task, settings, words)

    @cached_property
    def start(self) -> int:
        """The token with which the decoder begins to write."""
        return int(written_inputs(self.model, torch.tensor(self.words[:1], device=self.device))[0, 0])

    def _word_loss(self, batch: Batch) -> Tensor:
        labels = _pad([self.words[int(word)] for word in batch["target"]], IGNORED).to(self.device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return word_loss(written_logits(self.run, self.model, inputs, labels), labels)

    def scores_alone(self, batch: Batch) -> Tensor:
        ids, mask, n_labels = batch["input_ids"], batch["attention_mask"], len(self.words)
        hidden = self.run(self.model.get_encoder(), input_ids=ids, attention_mask=mask)
        hidden.last_hidden_state = hidden.last_hidden_state.repeat_interleave(n_labels, 0)
        words = (self.scored_words, [[self.start, *word[:-1]] for word in self.scored_words])  # of row 0, then row 1, …
        labels, written = (_pad(part, IGNORED).to(self.device).repeat(len(mask), 1) for part in words)
        both = {"input_ids": ids.repeat_interleave(n_labels, 0), "decoder_input_ids": written.clamp(min=0)}
        both["attention_mask"] = mask.repeat_interleave(n_labels, 0)
        logits = self.run(encoder_outputs=hidden, **both, use_cache=False).logits
        return _likelihood(logits, labels).view(-1, n_labels)


class Causal(Writer):
    """Decoder: it continues the prompt with the label word."""

    def __init__(self, model: nn.Module, task: Task, settings: ObjectiveSettings):
        tokenizer = cast(Any, task.tokenizer)
        words = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in task.label_words]
        super().__init__(model, task, settings, [ids[: settings.max_length // 2] for ids in words])
        self.reader = Reader(task, model, settings.max_length, words=self.words)

    def _word_loss(self, batch: Batch) -> Tensor:
        return word_loss(*self._continued(batch, [[self.words[int(word)]] for word in batch["target"]]))

    def scores_alone(self, batch: Batch) -> Tensor:
        rows = len(batch["target"])
        return _likelihood(*self._continued(batch, [self.scored_words] * rows)).view(rows, -1)

    def _continued(self, batch: Batch, chosen: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
        """Logits of each row's prompt with its words where a word goes on, and labels, −100 except on the word."""
        ids, labels = [], []
        for padded, mask, words in zip(batch["input_ids"], batch["attention_mask"], chosen, strict=True):
            prompt = padded[mask.bool()].tolist()
            ids += [[*prompt, *word] for word in words]
            labels += [[IGNORED] * len(prompt) + [*word] for word in words]
        padding = self.tokenizer.pad_token_id or 0  # on the right, where a causal mask never looks
        inputs = {"input_ids": _pad(ids, padding).to(self.device)}
        return scored_logits(self.run, self.model, inputs, _pad(labels, IGNORED).to(self.device))


class Encoder(Objective):
    """Encoder with a fresh head (dropout, one linear map): cross-entropy, or for regression the squared error."""

    def __init__(self, model: nn.Module, task: Task, settings: ObjectiveSettings, seed: int):
        has_pooler = getattr(model, "pooler", None) is not None
        if settings.pooling == "pooler" and not has_pooler:
            raise SearchError("this backbone has no pooler; use pooling='first' or 'mean'")
        usual = "pooler" if has_pooler and not getattr(model, "s3pet_pooler_is_fresh", False) else "mean"
        super().__init__(model, task, replace(settings, pooling=settings.pooling or usual))
        config, width = cast(Any, model.config), pooled_width(self)
        dropout: Any = getattr(config, "classifier_dropout", None)
        dropout = getattr(config, "hidden_dropout_prob", 0.1) if dropout is None else dropout
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            out = nn.Linear(width, task.n_labels)
            nn.init.normal_(out.weight, std=getattr(config, "initializer_range", 0.02))
            nn.init.zeros_(out.bias)
        if task.regression and task.train:  # start at the mean; otherwise the first hundred steps learn little else
            nn.init.constant_(out.bias, sum(float(example.label) for example in task.train) / len(task.train))
        self.head = nn.Sequential(OrderedDict(dropout=nn.Dropout(dropout), out=out)).to(self.device)

    def scores(self, batch: Batch, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        output = self.run(**{name: tensor for name, tensor in batch.items() if name != "target"})
        states = pooled(output, cast(str, self.settings.pooling), batch["attention_mask"])
        weights = self.head_weights if head_weights is None else head_weights
        named = dict(zip(self.head.state_dict(), weights, strict=True))
        return torch.func.functional_call(self.head, named, states.to(self.head.out.weight.dtype))


@borrows("looking at how it learns", short=True)
def make_objective(
    model: nn.Module, task: Task, settings: ObjectiveSettings | Mapping[str, Any] | None = None, *, seed: int = 0
) -> Objective:
    """How this backbone learns this task.

    Args:
        model, task: a backbone (of one with a classification head only the encoder is used); a task with a tokenizer.
        settings, seed: a record, or a mapping of some of its fields; the seed of a fresh head.

    Raises:
        SearchError: bad settings, or settings that this backbone does not use. TaskError: no tokenizer, or no task.
    """
    check_model(model)
    SEED.check(SearchError, seed=seed)
    chosen, kind = ObjectiveSettings.of(settings), backbone_kind(model)
    if not isinstance(task, Task):
        what = f"a {type(task).__name__} is not a task of texts and labels, which load_task makes"
        raise TaskError(f"{what}; rows of another form need objective=, an object: see s3pet.objectives")
    if getattr(model, "config", None) is None:
        what = f"model must be one of transformers with a config, got a {type(model).__name__}; others need objective="
        raise BackboneError(f"{what}, see s3pet.objectives")
    if task.tokenizer is None:
        raise TaskError(f"task {task.name!r} has no tokenizer; give one: load_task({task.name!r}, tokenizer)")
    if kind == "encoder":
        if chosen.loss != "choice":
            raise SearchError(f"loss={chosen.loss!r} is for text-to-text backbones; an encoder learns by its head")
        return Encoder(getattr(model, "base_model", model), task, chosen, seed)  # type: ignore[arg-type]
    if chosen.pooling is not None:
        raise SearchError(f"pooling={chosen.pooling!r} is for encoders; this {kind} backbone has no head")
    return (SequenceToSequence if kind == "encoder-decoder" else Causal)(model, task, chosen)


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)


def _likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of the labels of each row (−100 is ignored): [rows]."""
    return -word_loss(logits, labels, "none").view(labels.shape).sum(-1)
