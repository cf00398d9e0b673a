"""What a field of a record or a column of a table may hold; small enough to be written beside the reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """Whether a value is allowed, and how that is said; ``column`` is the kind of a table's column."""

    what: str
    holds: Callable[[Any], bool]
    column: str = "text"
    empty: bool = False


def whole(least: int = 0, most: int = 2**62) -> Kind:
    """A whole number within limits; True is none."""
    return Kind(f"a whole number from {least}", lambda v: type(v) is int and least <= v <= most, "whole")


def number(low: float = -math.inf, high: float = math.inf) -> Kind:
    """A finite number within limits."""
    limits = "" if math.inf in (-low, high) and math.isinf(low + high) else f" from {low:g} to {high:g}"
    return Kind(
        f"a finite number{limits}",
        lambda v: type(v) in (int, float) and abs(v) < math.inf and low <= v <= high,
        "number",
    )


def optional(kind: Kind) -> Kind:
    """The kind, or None."""
    return Kind(f"{kind.what}, or null", lambda v: v is None or kind.holds(v), kind.column, True)


def one_or_texts(kind: Kind) -> Kind:
    """The kind, or a list of texts: several values at once."""
    return Kind(f"{kind.what}, or a list of texts", lambda v: kind.holds(v) or TEXTS.holds(v))


def many(kind: Kind) -> Kind:
    """A list of such values."""
    return Kind(f"a list, each {kind.what}", lambda v: isinstance(v, list) and all(map(kind.holds, v)), "list")


def mapping(kind: Kind) -> Kind:
    """An object with such values."""
    return Kind(f"an object, each {kind.what}", lambda v: isinstance(v, dict) and all(map(kind.holds, v.values())))


TEXT = Kind("a text that is not empty", lambda v: isinstance(v, str) and v != "")
FLAG = Kind("true or false", lambda v: type(v) is bool, "flag")
TEXTS = many(TEXT)
ANY_NUMBER = Kind("a number", lambda v: v is None or type(v) in (int, float), "number")
TEXT_OR_NUMBER = Kind("a text or a number", lambda v: TEXT.holds(v) or type(v) in (int, float))
RECORD = Kind("an object", lambda v: isinstance(v, dict))
RECORDS = many(RECORD)


def check_record(record: Any, kinds: Mapping[str, Kind], required: Collection[str] = ()) -> dict[str, Any]:
    """Raise ValueError at the first field that is missing or not of its kind; other fields are left alone."""
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}, not an object")
    if missing := [name for name in required if name not in record]:
        raise ValueError(f"it has no {', '.join(missing)}")
    for name, kind in kinds.items():
        if name in record and not kind.holds(record[name]):
            raise ValueError(f"{name} is {record[name]!r:.60}; expected {kind.what}")
    return record
