"""Which rows of a task are in which split; each class keeps its share, and the same seed cuts the same rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from s3pet.errors import TaskError
from s3pet.tasks.checks import LEAST

MOST = 1000  # rows of a split that is cut from train where no number was given


def complete(splits: dict[str, list[Any]], n_validation: int | None, seed: int, *, stratify: bool) -> str:
    """Make train, validation and test of what there is, in place, and return a note that says how.

    Without ``test`` the validation split becomes it; without both, the test split is cut from train, too.

    Raises:
        TaskError: too few training rows.
    """
    if "test" in splits and "validation" in splits:
        return "splits are used as given"
    usual, origin = max(1, min(MOST, len(splits["train"]) // 10)), "the test split as given"
    if len(splits) == 1:
        more = LEAST + (usual if n_validation is None else max(1, n_validation))
        splits["train"], splits["test"] = _cut(splits["train"], usual, f"{seed}-test", "test", more, stratify)
        origin = f"{usual} rows cut from train"
    elif "test" not in splits:
        splits["test"], origin = splits["validation"], "the published validation split"
    count = usual if n_validation is None else n_validation
    parts = _cut(splits["train"], count, f"{seed}-validation", "validation", LEAST, stratify)
    splits["train"], splits["validation"] = parts
    return f"test is {origin}; validation is {count} rows cut from train, seed {seed}"


def _cut(rows: list[Any], count: int, key: str, name: str, kept: int, stratify: bool) -> tuple[list[Any], list[Any]]:
    """Cut a split from the training rows, of which so many must be kept."""
    if not 1 <= count <= len(rows) - kept:
        how = "add rows or a test split, or lower n_validation"
        raise TaskError(f"{len(rows)} training rows cannot give {count} for {name} and keep {kept}; {how}")
    order = class_order(rows, key, stratify=stratify)
    picks = {order[round(k * len(order) / count)] for k in range(count)}
    return [row for i, row in enumerate(rows) if i not in picks], [rows[i] for i in sorted(picks)]


def class_order(rows: Sequence[Any], key: str, *, stratify: bool) -> list[int]:
    """Return row numbers in random order; stratified: grouped by class, so that every stretch has its share of each."""
    order = list(range(len(rows)))
    random.Random(key).shuffle(order)
    return sorted(order, key=lambda i: rows[i].label) if stratify else order
