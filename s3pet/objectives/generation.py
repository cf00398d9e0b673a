"""Texts as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3pet.errors import SearchError, TaskError
from s3pet.objectives.columns import IGNORED, padded, read_text


class Generation:
    """A text that the model writes: the loss of the target's tokens; predictions by greedy generation.

        rows = [{"source": "translate: rain", "target": "pluie"}, …]
        task = RowTask("words", rows[:900], rows[900:], metrics={"rouge_l": rouge_l}, label="target")
        retrain(model, task, structure, objective=Generation(tokenizer), test=False)

    An encoder-decoder (T5, BART) reads the source; a decoder continues it, and the target ends with its end token.

    Args:
        tokenizer: of the model. source, target: columns. max_length: tokens of a source; of longer ones a decoder reads
            the end, an encoder-decoder the start. max_target: tokens of a target, with its end; also the most that are
            written.
    """

    def __init__(
        self, tokenizer: Any, *, source: str = "source", target: str = "target", max_length: int = 256,
        max_target: int = 64,
    ):  # fmt: skip
        self.tokenizer, self.columns = tokenizer, (source, target)
        self.max_length, self.max_target = max_length, max_target

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result, for the config of a run."""
        return {"columns": list(self.columns), "max_length": self.max_length, "max_target": self.max_target}

    def heads(self, model: Any) -> Sequence[str]:
        """None; SearchError for a model that writes nothing."""
        if not getattr(model, "can_generate", bool)():
            what = f"{type(model).__name__} writes no text"
            raise SearchError(f"{what}; load it by AutoModelForSeq2SeqLM or AutoModelForCausalLM")
        return ()

    def encode(self, rows: Sequence[Any]) -> list[dict[str, list[int]]]:
        """Token numbers of the source as both kinds of models read it, and of the target if there is one."""
        encoded, (source, target), tokenizer = [], self.columns, self.tokenizer
        for n, row in enumerate(rows, 1):
            text = read_text(n, row, source)
            entry = {"source": tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]}
            entry |= {"input_ids": entry["source"], "prompt": tokenizer(text)["input_ids"][-self.max_length :]}
            if target in row:
                words, end = read_text(n, row, target), tokenizer.eos_token_id
                entry["target"] = tokenizer(text_target=words, truncation=True, max_length=self.max_target)["input_ids"]
                more = tokenizer(" " + words, add_special_tokens=False)["input_ids"]
                entry["continuation"] = [*more[: self.max_target - 1], *([] if end is None else [end])]
            if not entry["prompt"]:
                raise TaskError(f"row {n}: {text!r} has no tokens for this tokenizer; put a prompt before it")
            encoded.append(entry)
        return encoded

    def collate(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        """Tensors [batch, longest], filled up with −100 on the right."""
        names = [name for name in rows[0] if name != "input_ids" and all(name in row for row in rows)]
        return {name: padded(name, [row[name] for row in rows], IGNORED) for name in names}

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the tokens of the targets; TaskError without targets."""
        if "target" not in batch:
            raise TaskError(f"rows need a column {self.columns[1]!r} to be learned; pass target=, the name of yours")
        if model.config.is_encoder_decoder:
            return model(**self._inputs(batch["source"]), labels=batch["target"], use_cache=False).loss
        both = [(a[a >= 0], b[b >= 0]) for a, b in zip(batch["prompt"], batch["continuation"], strict=True)]
        ids = padded("prompt", [torch.cat(pair) for pair in both], IGNORED)
        labels = padded("prompt", [torch.cat([torch.full_like(a, IGNORED), b]) for a, b in both], IGNORED)
        logits = model(**self._inputs(ids), use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)

    def predict(self, model: Any, batch: Mapping[str, Tensor]) -> list[str]:
        """The texts that the model writes."""
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.max_target, "pad_token_id": self._pad}
        if model.config.is_encoder_decoder:
            written = model.generate(**self._inputs(batch["source"]), **options)
        else:
            prompts = [row[row >= 0].flip(0) for row in batch["prompt"]]  # filled up on the left
            ids = padded("prompt", prompts, IGNORED).flip(1)
            written = model.generate(**self._inputs(ids), **options)[:, ids.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    @property
    def _pad(self) -> int:
        return (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id or 0
        )

    def _inputs(self, ids: Tensor) -> dict[str, Tensor]:
        return {"input_ids": ids.masked_fill(ids < 0, self._pad), "attention_mask": (ids >= 0).long()}
