"""Errors of s3pet: each says what was given, what was expected, and how to get it.

Every error is an :class:`S3PetError` and also the builtin a user would naturally catch, so both
``except s3pet.S3PetError`` and ``except ValueError`` work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class S3PetError(Exception):
    """Base of all errors raised on purpose by s3pet."""


class BudgetError(S3PetError, ValueError):
    """A parameter budget that cannot be read or cannot be met."""


class SpaceError(S3PetError, ValueError):
    """A search space or rule that does not fit the model."""


class UnknownSiteError(S3PetError, LookupError):
    """A site, role or PET module that does not exist; the message names the nearest ones."""


class UnknownTaskError(S3PetError, LookupError):
    """A task name that is not known; the message names the nearest ones."""


class TaskError(S3PetError, ValueError):
    """Task data that cannot be used: an empty split, a missing column, an unreadable label."""


class BackboneError(S3PetError, ValueError):
    """A backbone that cannot be loaded or is of a family the toolkit does not know."""


class StructureMismatchError(S3PetError, ValueError):
    """A structure that does not belong to this model; the message names the first mismatches."""


class SearchError(S3PetError, RuntimeError):
    """A search that cannot start or diverged; what was finished is kept."""


class RunError(S3PetError, OSError):
    """A run folder that is missing, incomplete, or would be overwritten."""


class StudyError(S3PetError, ValueError):
    """A table of runs that cannot be summarised: a missing column, a run that is there twice, nothing to compare."""


class ExportError(S3PetError, ValueError):
    """A structure that cannot be expressed in the requested format."""


class PlotError(S3PetError, ValueError):
    """A table that cannot be drawn: a missing column, several runs in one table, nothing to show."""


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """The ``n`` names closest to ``word``, as a sentence fragment for error messages."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=n, cutoff=0.3)
    if close:
        return "nearest: " + ", ".join(repr(name) for name in close)
    shown = ", ".join(repr(name) for name in sorted(known)[:12])
    return f"known: {shown}" + (" …" if len(known) > 12 else "")
