"""Texts as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from s3pet.backbones import preserved
from s3pet.errors import SearchError, TaskError
from s3pet.files.kinds import TEXT
from s3pet.objectives.columns import IGNORED, Bound, padded, read_text, scored_logits, word_loss, written_logits
from s3pet.tasks.checks import position_limit


class Generation(Bound):
    """A text that the model writes: the loss of the target's tokens; predictions by greedy generation.

        from s3pet.tasks.plain import RowTask, rouge_l  # or exact_match
        rows = [{"source": "translate: rain", "target": "pluie"}, …]
        task = RowTask("words", rows[:900], rows[900:], metrics={"rouge_l": rouge_l}, label="target")
        retrain(model, task, structure, objective=Generation(tokenizer), test=False)

    ``tuned.predict(["translate: snow"])`` takes plain texts, too.

    An encoder-decoder (T5, BART) reads the source; a decoder continues it, and the target ends with its end token.

    Args:
        tokenizer: of the model. source, target: columns. max_length: tokens of a source; of longer ones a decoder reads
            the end, an encoder-decoder the start. max_target: tokens of a target, with its end; also the most that are
            written. Both are at most what the model has positions for.
    """

    decisive = ("source", "target", "max_length", "max_target")

    def __init__(
        self, tokenizer: Any, *, source: str = "source", target: str = "target", max_length: int = 256,
        max_target: int = 64,
    ):  # fmt: skip
        TEXT.check(TaskError, source=source, target=target)
        self.tokenizer, self.source, self.target = tokenizer, source, target
        self.max_length, self.max_target = max_length, max_target
        self._cache: dict[str, bool] = {}
        self.check_options(max_length=2, max_target=2)

    def heads(self, model: Any) -> Sequence[str]:
        """None; SearchError for a model that writes nothing, TaskError for a text that would have no end.

        Two tokens are written as a trial; a model that cannot keep its states (asymmetric Switch Transformers) computes
        them again for each token.
        """
        if not getattr(model, "can_generate", bool)():
            what = f"{type(model).__name__} writes no text"
            raise SearchError(f"{what}; load it by AutoModelForSeq2SeqLM or AutoModelForCausalLM")
        if not model.config.is_encoder_decoder and self.tokenizer.eos_token_id is None:
            how = "set one: tokenizer.eos_token = …"
            raise TaskError(f"the tokenizer has no end-of-sequence token, at which a decoder stops writing; {how}")
        if not model.config.is_encoder_decoder and (limit := position_limit(model)) and limit <= self.max_target:
            how = f"pass max_target= of less than {limit}"
            raise TaskError(f"max_target={self.max_target} leaves no room for a source in {limit} positions; {how}")
        ids = torch.tensor([self.tokenizer("a", add_special_tokens=False)["input_ids"] or [0]], device=model.device)
        reason: Exception | None = None
        for self._cache in ({}, {"use_cache": False}):
            try:
                with preserved(model), torch.no_grad():
                    model.eval()
                    model.generate(**self._inputs(ids), **self._options(model) | {"max_new_tokens": 2})
                return ()
            except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
                reason = error
        raise SearchError(f"{type(model).__name__} cannot generate: {reason}") from reason

    @property
    def length(self) -> int | None:
        """The largest number of tokens of a source."""
        limit = position_limit(self.model)
        if limit is not None and not self.model.config.is_encoder_decoder:
            limit -= self.max_target
        return min((n for n in (self.max_length, limit) if n is not None), default=None)

    @property
    def target_length(self) -> int:
        """The largest number of tokens of a target."""
        limit = position_limit(self.model, written=True) if self.model is not None else None
        return min(self.max_target, limit or self.max_target)

    def _read(self, where: str, row: Any, length: int | None) -> dict[str, list[int]]:
        """The source as both kinds of models read it, and the target if there is one."""
        tokenizer = self.tokenizer
        row = {self.source: row} if isinstance(row, str) else row
        text = read_text(where, row, self.source)
        whole = tokenizer(text, verbose=False)["input_ids"]
        entry = {"source": whole, "prompt": whole}
        if length is not None:
            entry["source"] = tokenizer(text, truncation=True, max_length=length, verbose=False)["input_ids"]
            entry["prompt"] = whole[-length:]
        entry["input_ids"] = entry["source"]
        if row.get(self.target) is not None:
            words, end, most = read_text(where, row, self.target), tokenizer.eos_token_id, self.target_length
            entry["target"] = tokenizer(text_target=words, truncation=True, max_length=most)["input_ids"]
            more = tokenizer(" " + words, add_special_tokens=False, verbose=False)["input_ids"]
            entry["continuation"] = [*more[: most - 1], *([] if end is None else [end])]
        if not entry["prompt"]:
            raise TaskError(f"{where}: {text!r} has no tokens for this tokenizer; put a prompt before it")
        return entry

    def collate(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Tensors [batch, longest], filled up with −100 on the right."""
        names = [name for name in rows[0] if name != "input_ids" and all(name in row for row in rows)]
        return {name: padded(name, [row[name] for row in rows], IGNORED) for name in names}

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the tokens of the targets; TaskError without targets."""
        if "target" not in batch:
            raise TaskError(f"rows need a column {self.target!r} to be learned; pass target=, the name of yours")
        if model.config.is_encoder_decoder:
            inputs, labels = self._inputs(batch["source"]), batch["target"]
            logits = written_logits(model, model, inputs, labels)
        else:
            both = [(a[a >= 0], b[b >= 0]) for a, b in zip(batch["prompt"], batch["continuation"], strict=True)]
            ids = padded("prompt", [torch.cat(pair) for pair in both], IGNORED)
            labels = padded("prompt", [torch.cat([torch.full_like(a, IGNORED), b]) for a, b in both], IGNORED)
            logits, labels = scored_logits(model, model, self._inputs(ids), labels)
        return word_loss(logits, labels)

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[str]:
        """The texts that the model writes."""
        options = self._options(model)
        if model.config.is_encoder_decoder:
            written = model.generate(**self._inputs(batch["source"]), **options)
        else:
            prompts = [row[row >= 0].flip(0) for row in batch["prompt"]]  # filled up on the left
            ids = padded("prompt", prompts, IGNORED).flip(1)
            written = model.generate(**self._inputs(ids), **options)[:, ids.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def _options(self, model: Any) -> dict[str, Any]:
        """Of greedy generation, which stops at the tokenizer's end token and at the model's."""
        ends = model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.target_length, "pad_token_id": self._pad}
        return options | ({"eos_token_id": sorted(ends)} if ends else {}) | self._cache

    @property
    def _pad(self) -> int:
        padding = self.tokenizer.pad_token_id
        return (self.tokenizer.eos_token_id or 0) if padding is None else padding

    def _inputs(self, ids: Tensor) -> dict[str, Tensor]:
        return {"input_ids": ids.masked_fill(ids < 0, self._pad), "attention_mask": (ids >= 0).long()}
