"""The errors of s3pet. Each message says what was passed, what was expected, and how to get it.

Every error is an :class:`S3PetError` and also the builtin error a user would expect, so that both
``except s3pet.S3PetError`` and ``except ValueError`` catch it.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable
from typing import Any


class S3PetError(Exception):
    """Base class of all errors that s3pet raises on purpose."""


class BudgetError(S3PetError, ValueError):
    """A parameter budget that cannot be read or cannot be met."""


class SpaceError(S3PetError, ValueError):
    """A search space or rule that does not fit the model."""


class UnknownSiteError(S3PetError, LookupError):
    """A site, role or PET module that does not exist; the message lists similar names."""


class UnknownTaskError(S3PetError, LookupError):
    """A task name that does not exist; the message lists similar names."""


class TaskError(S3PetError, ValueError):
    """Task data that cannot be used: an empty split, a missing column, an unreadable label."""


class BackboneError(S3PetError, ValueError):
    """A backbone that cannot be loaded, or that has no sites."""


class StructureMismatchError(S3PetError, ValueError):
    """A structure that does not belong to this model; the message lists the first differences."""


class SearchError(S3PetError, RuntimeError):
    """A search or a retraining that cannot start, or that diverged; finished steps are kept."""


class DivergedError(SearchError):
    """Numbers that became NaN or infinite: a loss, scores, predictions; nothing is chosen by them.

    ``tuned`` is the best model before it, ``result`` the last good state of a search; None without one.
    """

    def __init__(self, message: str, *, tuned: Any = None, result: Any = None):
        super().__init__(message)
        self.tuned, self.result = tuned, result


class RunError(S3PetError, OSError):
    """A run folder that is missing, incomplete, or would be overwritten."""


class StudyError(S3PetError, ValueError):
    """A study or a table of runs that cannot be used: a missing column, a duplicated run, nothing to compare."""


class ExportError(S3PetError, ValueError):
    """A structure or model that cannot be written in, or read from, another library's format."""


class PlotError(S3PetError, ValueError):
    """A table that cannot be drawn: a missing column, several runs in one table, no rows."""


def check_finite(what: str, value: Any, hint: str = "") -> None:
    """Raise DivergedError unless a number is finite: this decides everywhere what has diverged."""
    if not math.isfinite(value):
        raise DivergedError(f"{what} NaN or infinite{hint}")


def shown(value: Any) -> str:
    """Return a value as error messages show it: numbers, texts and lists in short, of others the type."""
    plain = value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict | range)
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def nearest(word: Any, names: Iterable[str], n: int = 3) -> str:
    """Return the ``n`` names most similar to ``word``, as part of a sentence for error messages."""
    names = list(map(str, names))
    if similar := difflib.get_close_matches(str(word), names, n=n, cutoff=0.3):
        return "nearest: " + ", ".join(map(repr, similar))
    return "known: " + ", ".join(map(repr, sorted(names)[:12])) + (" …" if len(names) > 12 else "")
