"""Columns of rows: texts that are checked, and numbers as padded tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3pet.errors import TaskError

IGNORED = -100  # of a label: not part of the loss


def padded(name: str, rows: Sequence[Any], value: float) -> Tensor:
    """Rows of one column as a tensor, [n_rows, …]; shorter ones are filled up on the right of every dimension."""
    try:
        tensors = [row if isinstance(row, Tensor) else torch.tensor(row) for row in rows]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"column {name!r} cannot be a tensor: {error}; it must hold numbers, or lists of them"
        ) from error
    if len({tensor.ndim for tensor in tensors}) > 1:
        raise TaskError(
            f"column {name!r} has rows with {sorted({t.ndim for t in tensors})} dimensions; give all the same"
        )
    sizes = [max(size) for size in zip(*(tensor.shape for tensor in tensors), strict=True)]
    fills = [[(0, most - size) for size, most in zip(t.shape, sizes, strict=True)] for t in tensors]
    pairs = zip(tensors, fills, strict=True)
    return torch.stack([F.pad(t, [n for pair in reversed(fill) for n in pair], value=value) for t, fill in pairs])


def read_text(n: int, row: Any, column: str) -> str:
    """The text in a column of row n; a TaskError if there is none."""
    text = row.get(column) if isinstance(row, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise TaskError(f"row {n}: column {column!r} must hold a text; got {text!r}")
    return text


def written_inputs(model: Any, labels: Tensor) -> Tensor:
    """What the decoder of an encoder-decoder reads to write these labels (−100 is ignored), [rows, length]."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels.clone())  # FSMT writes into its argument
    start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
    return torch.cat([start, labels[:, :-1].clamp(min=0)], 1)


def scored_logits(call: Any, model: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a decoder before each label, [rows, kept, vocabulary], and these labels; places without any are left out.

    Args:
        call: runs the model. inputs: of the model. labels: [rows, length] of the inputs; −100 is ignored.
    """
    keep = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits = call(**inputs, logits_to_keep=keep, use_cache=False).logits
    else:
        logits = call(**inputs, use_cache=False).logits[:, keep]
    return logits, labels[:, keep + 1]
