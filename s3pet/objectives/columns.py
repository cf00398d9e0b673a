"""Columns of rows: texts that are checked, and numbers as padded tensors."""

from __future__ import annotations

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
