"""Texts as token numbers that fit a backbone.

Inputs that are too long are cut: of a prompt with several texts the longest ones are shortened, so that none is lost;
of any other prompt the tokenizer cuts the end, or, for a decoder, which goes on from its end, the beginning is cut.
How many rows are cut is said once, with their share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s3pet.tasks.checks import check_ids, position_limit, say_cut, start_token
from s3pet.tasks.labels import fill_template
from s3pet.tasks.task import Example, Task


class Reader:
    """Reads the examples of a task for one backbone; a call gives a row per example, ``input_ids`` and the like.

    Args:
        task, model: the task, with a tokenizer, and the backbone.
        max_length: tokens of an input.
        segments: read the segments (for encoders) instead of the prompt.
        words: token numbers of the words that may follow a prompt (of decoders); there must be room for them.

    Attributes:
        length: the largest number of tokens of a row: ``max_length`` without the words, or what the backbone has
            positions for.
    """

    def __init__(
        self, task: Task, model: Any, max_length: int, *, segments: bool = False, words: Sequence[Sequence[int]] = ()
    ):
        self.task, self.model, self.segments, self.follows = task, model, segments, bool(words)
        positions = position_limit(model)
        self.capped = positions is not None and positions < max_length
        self.length = max(1, min(max_length, positions or max_length) - max(map(len, words), default=0))
        self._said = False

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Rows of examples; TaskError if a token is not in the backbone's embedding, or there are no tokens at all."""
        rows = self._tokenize(self._texts(examples)) if examples else []
        if long := [n for n, row in enumerate(rows) if len(row["input_ids"]) > self.length]:
            self._say_cut(examples)
            cut = [examples[n] for n in long]
            texts = self._texts(cut) if self.segments else [(prompt,) for prompt in self._shortened(cut)]
            for n, row in zip(long, self._tokenize(texts, cut=True), strict=True):
                rows[n] = row
        ids = [row["input_ids"] for row in rows]
        check_ids(f"task {self.task.name!r}", self.task.tokenizer, self.model, ids)
        for row in rows:
            if not row["input_ids"]:
                row |= {name: [0] for name in row} | {"input_ids": [start_token(self.task)]}
        return rows

    def _texts(self, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        return [example.segments if self.segments else (example.source,) for example in examples]

    def _tokenize(self, texts: Sequence[tuple[str, ...]], cut: bool = False) -> list[dict[str, Any]]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        options: dict[str, Any] = {"truncation": True, "max_length": self.length} if cut and not self.follows else {}
        encoded: Any = self.task.tokenizer(*columns, verbose=False, **options)  # type: ignore[misc]
        if self.follows:  # the end of the prompt matters most
            start = -self.length if cut else None
            return [{"input_ids": ids[start:]} for ids in encoded["input_ids"]]
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]

    def _count(self, prompts: Sequence[str]) -> list[int]:
        return [len(row["input_ids"]) for row in self._tokenize([(prompt,) for prompt in prompts])]

    def _shortened(self, examples: Sequence[Example]) -> list[str]:
        """Prompts that fit: all texts of a row are cut to the largest number of characters at which it does.

        A single text at the end of its prompt is left to the tokenizer, as is a prompt that is too long without texts.
        """
        fields, template = self.task.fields, self.task.template
        whole = [example.source for example in examples]
        is_simple = len(fields) < 2 and template.endswith("}")
        if is_simple or any(len(example.texts) != len(fields) for example in examples):
            return whole

        def write(limits: Sequence[int]) -> list[str]:
            pairs = zip(examples, limits, strict=True)
            texts = [[text[:limit].rstrip() for text in example.texts] for example, limit in pairs]
            return [fill_template(template, fields, row) for row in texts]

        low, high = [0] * len(examples), [max(map(len, example.texts)) for example in examples]
        while any(b - a > 1 for a, b in zip(low, high, strict=True)):
            middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
            fits = [n <= self.length for n in self._count(write(middle))]
            low = [m if fit else a for a, m, fit in zip(low, middle, fits, strict=True)]
            high = [b if fit else m for b, m, fit in zip(high, middle, fits, strict=True)]
        prompts = write(low)
        return [p if n <= self.length else w for p, n, w in zip(prompts, self._count(prompts), whole, strict=True)]

    def _say_cut(self, examples: Sequence[Example]) -> None:
        if self._said:
            return
        self._said, task, is_long = True, self.task, list[bool]()
        for part in ([*task.train, *task.validation, *task.test], examples):  # the task has no long row: new ones do
            rows = self._tokenize(self._texts(part)) if part else []
            if any(is_long := [len(row["input_ids"]) > self.length for row in rows]):
                break
        why = "the backbone has no more positions" if self.capped else "objective={'max_length': …} reads more"
        say_cut(f"task {task.name!r}: ", is_long, self.length, why)
