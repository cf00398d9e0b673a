"""Check the texts of a task, its tokenizer and a backbone against each other, before the first pass.

What cannot work is a TaskError; what is only worth knowing is said once per task, never once per row.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from s3pet.errors import TaskError
from s3pet.files.kinds import Kind

TOKENIZER = Kind("a tokenizer, as load_backbone(…) returns it beside the model", lambda v: v is None or callable(v))
LEAST = 4  # training rows a task needs: two in each half of the search
_POSITIONS = (
    *("position_embeddings", "embed_positions", "position_embedding", "positions_embed", "pos_embed", "wpe"),
    "char_position_embeddings",
)
_FIXED = ("gptj", "codegen", "ctrl", "mpt")  # whose positions are no module


def note_empty_texts(rows: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> list[str]:
    """Return a note that names rows with an empty text, if there are any; a row without any text is a TaskError."""
    places = []
    for split, examples in rows.items():
        for n, example in enumerate(examples, 1):
            empty = [column for column, text in zip(columns, example.texts, strict=True) if not text]
            if empty and len(empty) == len(columns):
                raise TaskError(f"{split} row {n} has no text in {' or '.join(map(repr, columns))}; remove the row")
            places += [f"{split} row {n} ({', '.join(empty)})"] if empty else []
    more = ", …" if len(places) > 3 else ""
    return [f"{len(places)} rows have an empty text: {', '.join(places[:3])}{more}"] if places else []


def position_limit(model: Any, *, written: bool = False) -> int | None:
    """Return the number of tokens for which a model has positions; None: any.

    Of an encoder-decoder those that it reads, or those that its decoder writes.
    """
    if getattr(model, "config", None) is None:
        return None
    stack, limits = model, list[int]()
    if model.config.is_encoder_decoder:
        stack = model.get_decoder() if written else model.get_encoder()
    for name, part in stack.named_modules():
        weight: Any = getattr(part, "weight", None)
        padding = getattr(part, "padding_idx", None)
        if name.rpartition(".")[2] in _POSITIONS and getattr(weight, "ndim", 0) == 2:
            # RoBERTa counts positions from the padding's number on, BART from an offset of 2
            limits.append(len(weight) - (getattr(part, "offset", 0) if padding is None else padding + 1))
    config, names = model.config, ("max_position_embeddings", "max_seq_len")
    declared = [size for name in names if isinstance(size := getattr(config, name, None), int) and size > 0]
    return min(limits + declared) if limits or config.model_type in _FIXED else None


def say_cut(name: str, is_long: Sequence[bool], length: Any, why: str) -> None:
    """Warn that some rows are cut: how many, and their share; ``name`` begins the message."""
    share = f"{sum(is_long):,} of {len(is_long):,} rows ({sum(is_long) / len(is_long):.1%})"
    warnings.warn(f"{name}{share} have more than {length} tokens and are cut; {why}", stacklevel=3)


def check_ids(where: str, tokenizer: Any, model: Any, ids: Sequence[Sequence[int]]) -> None:
    """Raise TaskError if a token's number is not in the embedding of the backbone; ``where`` begins the message."""
    try:
        n_tokens = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # CANINE reads characters, without a vocabulary
        return
    highest, lowest = (end((number for row in ids for number in row), default=0) for end in (max, min))
    if isinstance(n_tokens, int) and (highest >= n_tokens or lowest < 0):
        number = lowest if lowest < 0 else highest
        name = "" if tokenizer is None or lowest < 0 else f" {tokenizer.convert_ids_to_tokens(number)!r}"
        what = f"token{name} has number {number}, but the backbone's embedding ends at {n_tokens - 1}"
        raise TaskError(f"{where}: {what}; load the task with the tokenizer that came with this backbone")


def start_token(task: Any) -> int:
    """Return the token that stands for an empty prompt; TaskError if the tokenizer has none."""
    names = ("bos_token_id", "cls_token_id", "eos_token_id")
    token = next((number for name in names if (number := getattr(task.tokenizer, name, None)) is not None), None)
    if token is None:
        what = f"task {task.name!r}: a prompt has no tokens, and the tokenizer has no beginning-of-sequence token"
        raise TaskError(f"{what}; put words into the prompt: load_task(…, template='text: {{{task.fields[0]}}}')")
    return token


def label_tokens(task: Any, model: Any, words: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens of all label words, and of each of them those up to the first that tells it from all others.

    A word that another one begins with ends with the end token, if it does not yet: else it would always be the
    likelier one. TaskError if two words are the same tokens, or if such an end is needed and the tokenizer has none.
    """
    check_ids(f"task {task.name!r}", task.tokenizer, model, words)
    whole, end = [list(word) for word in words], getattr(task.tokenizer, "eos_token_id", None)
    same = [text for text, word in zip(task.label_words, whole, strict=True) if whole.count(word) > 1 or not word]
    if same:
        tokens = task.tokenizer.convert_ids_to_tokens(whole[[*task.label_words].index(same[0])])
        what = f"label words {same} are not distinct tokens for this tokenizer (the first is {tokens})"
        raise TaskError(f"task {task.name!r}: {what}; pass others: load_task(…, label_words=…)")
    starts = Counter(tuple(word[:k]) for word in whole for k in range(1, len(word) + 1))
    for text, word in zip(task.label_words, whole, strict=True):
        if starts[tuple(word)] > 1:
            if end is None:
                what = f"another label word begins with {text!r}, and the tokenizer has no end-of-sequence token"
                raise TaskError(f"task {task.name!r}: {what}; pass others: load_task(…, label_words=…)")
            word.append(end)
            starts[tuple(word)] += 1
    cut = [next(word[:k] for k in range(1, len(word) + 1) if starts[tuple(word[:k])] == 1) for word in whole]
    return whole, cut
