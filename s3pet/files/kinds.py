"""What an argument, a field of a record or a column of a table may hold; small enough to be written beside its use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Hashable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from s3pet.errors import S3PetError, shown


class Kind(NamedTuple):
    """Whether a value is allowed, and how that is said; ``column`` is the kind of a table's column."""

    what: str
    holds: Callable[[Any], bool]
    column: str = "text"
    empty: bool = False

    def check(self, error: type[S3PetError], /, **arguments: Any) -> None:
        """Raise ``error`` at the first argument that is not of this kind; it says which, and what was expected."""
        for name, value in arguments.items():
            if not self.holds(value):
                raise error(f"{name} must be {self.what}, got {shown(value)}")


def whole(least: int = 0, most: int = 2**62) -> Kind:
    """A whole number within limits, also of NumPy; True is none."""
    limits = (f" from {least}" if least > -(2**62) else "") + (f" to {most:,}" if most < 2**62 else "")
    return Kind(f"a whole number{limits}", lambda v: is_whole(v) and least <= v <= most, "whole")


def number(low: float = -math.inf, high: float = math.inf) -> Kind:
    """A finite number within limits, also of NumPy; True is none."""
    limits = (f" from {low:g}" if low > -math.inf else "") + (f" to {high:g}" if high < math.inf else "")
    return Kind(f"a finite number{limits}", lambda v: is_real(v) and abs(v) < math.inf and low <= v <= high, "number")


def optional(kind: Kind) -> Kind:
    """The kind, or None."""
    return Kind(f"{kind.what}, or None", lambda v: v is None or kind.holds(v), kind.column, True)


def instance(kind: type | tuple[type, ...], what: str) -> Kind:
    """An object of a class, or of one of several."""
    return Kind(what, lambda v: isinstance(v, kind))


def one_of(names: Collection[Any]) -> Kind:
    """One of these texts (or None, if it is among them)."""
    return Kind(f"one of {', '.join(map(str, names))}", lambda v: isinstance(v, str | None) and v in names)


def several(kind: Kind, least: int = 1) -> Kind:
    """Different values of a kind in a list, tuple, range or array: an argument."""

    def holds(v: Any) -> bool:
        is_list = hasattr(v, "__len__") and hasattr(v, "__iter__") and not isinstance(v, str | bytes | Mapping)
        unlike = {x if isinstance(x, Hashable) else id(x) for x in v} if is_list else ()
        return is_list and least <= len(v) == len(unlike) and all(map(kind.holds, v))

    return Kind(f"a list of different values, each {kind.what}", holds)


def one_or_texts(kind: Kind) -> Kind:
    """The kind, or a list of texts: several values at once."""
    return Kind(f"{kind.what}, or a list of texts", lambda v: kind.holds(v) or TEXTS.holds(v))


def many(kind: Kind) -> Kind:
    """A list of such values."""
    return Kind(f"a list, each {kind.what}", lambda v: isinstance(v, list | tuple) and all(map(kind.holds, v)), "list")


def mapping(kind: Kind) -> Kind:
    """An object with such values."""

    def holds(v: Any) -> bool:
        return isinstance(v, Mapping) and all(map(kind.holds, v.values())) and all(isinstance(k, str) for k in v)

    return Kind(f"an object, each {kind.what}", holds)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, also of NumPy; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a number, also of NumPy; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


PATH = Kind("a path", lambda v: isinstance(v, str | os.PathLike) and str(v) != "" and "\0" not in str(v))
SEED, POSITIVE = whole(), Kind("a finite number above 0", lambda v: is_real(v) and 0 < v < math.inf)
CALLABLE = Kind("a function", callable)
TEXT = Kind("a text that is not empty", lambda v: isinstance(v, str) and v != "")
FLAG = Kind("true or false", lambda v: type(v).__name__ in ("bool", "bool_"), "flag")  # NumPy's have either name
TEXTS = many(TEXT)
ANY_NUMBER = Kind("a number", lambda v: v is None or is_real(v), "number")
TEXT_OR_NUMBER = Kind("a text or a number", lambda v: TEXT.holds(v) or is_real(v))
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
