"""Batches of encoded rows, of similar length; those to be trained on depend only on the seed and the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Row = dict[str, Any]
POOL = 8  # number of batches whose rows are sorted by length together


class Stream:
    """Shuffled batches of rows of similar length; the batch of a step depends only on the seed and the step.

    Shuffled rows are sorted by length within pools of a few batches, to avoid padding, and the batches are shuffled
    again. Every row comes once an epoch, with different rows each time; one batch of an epoch may be smaller.
    """

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: int):
        self.rows, self.size, self.seed = rows, min(batch_size, len(rows)), seed
        self._epoch, self._batches = -1, list[list[int]]()

    def __call__(self, step: int) -> list[Row]:
        """Rows of the batch at this step."""
        return [self.rows[row] for row in self.indices(step)]

    def indices(self, step: int) -> list[int]:
        """Row numbers of the batch at this step."""
        epoch, index = divmod(step, -(-len(self.rows) // self.size))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(derive(self.seed, epoch))
        return self._batches[index]

    def _shuffled(self, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.rows), generator=generator).tolist()
        pool = self.size * max(1, min(POOL, len(order) // (4 * self.size)))  # at least four pools, so that rows mix
        batches = []
        for start in range(0, len(order), pool):
            rows = sorted(order[start : start + pool], key=lambda row: row_length(self.rows[row]))
            batches += [rows[first : first + self.size] for first in range(0, len(rows), self.size)]
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def in_batches(rows: Sequence[Any], size: int) -> list[list[int]]:
    """Numbers of all rows, the shortest first, in batches of this size."""
    order = sorted(range(len(rows)), key=lambda number: row_length(rows[number]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def derive(*numbers: int) -> int:
    """A well-mixed 62-bit seed from integers."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = ((state ^ (int(number) + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9) % 2**64
        state ^= state >> 31
    return state % 2**62


def row_length(row: Any) -> int:
    """Tokens of an encoded row; 0 for all rows without ``input_ids``, which then keep their order."""
    return len(row["input_ids"]) if isinstance(row, Mapping) and "input_ids" in row else 0
