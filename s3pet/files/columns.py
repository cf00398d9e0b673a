"""What the columns of tables hold that a user passes: tables of candidates, of runs, of pairs of searches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from s3pet.errors import S3PetError
from s3pet.files.kinds import FLAG, TEXT, TEXT_OR_NUMBER, Kind, is_real, number, optional, whole

ANY = Kind("a number below 1e100", lambda v: is_real(v) and not 1e100 < abs(v) < math.inf, "number", True)
FINITE = Kind("a finite number", lambda v: is_real(v) and abs(v) <= 1e100, "number", True)
SIGN = Kind("true or false, or a count", lambda v: FLAG.holds(v) or is_real(v), "flag", True)
CANDIDATES = {  # of tables of candidates; a value may be missing where None is allowed
    **dict.fromkeys(("site", "stack", "role", "pet"), TEXT),
    **{"layer": optional(whole()), "rank": optional(whole(1)), "n_params": optional(number(0, 2**62))},
    **dict.fromkeys(("prob", "alpha", "margin"), FINITE),
    **dict.fromkeys(("chosen", "inert"), SIGN),
}
COLUMNS = CANDIDATES | {  # of tables of runs and of searches
    **dict.fromkeys(("structure", "kind", "task", "name", "candidate", "first", "second"), TEXT),
    **dict.fromkeys(("source", "target", "metric", "measure", "baseline"), optional(TEXT)),
    **{"seed": optional(TEXT_OR_NUMBER), "index": whole(), "budget": optional(TEXT_OR_NUMBER)},
    **{"pairs": optional(whole()), "searches": whole(1), "step": FINITE, "diverged": SIGN},
    **dict.fromkeys(("score", "validation", "low", "high", "share", "frequency", "p", "p_floor", "p_holm"), ANY),
    **dict.fromkeys(("difference", "difference_low", "difference_high", "chance", "chance_low", "chance_high"), ANY),
}


def checked_columns(
    table: Any, error: type[S3PetError], columns: Iterable[str] = (), kinds: Mapping[str, Kind] | None = None
) -> Any:
    """The table (a DataFrame), with numbers as numbers and categories as what they hold.

    Checked are the columns of candidates, those in ``columns`` that are known, and those that have one of ``kinds``;
    others are left alone. Raises ``error`` for a column that holds something else.
    """
    changed, names = {}, [*table]
    for name, kind in (CANDIDATES | {n: COLUMNS[n] for n in columns if n in COLUMNS} | {**(kinds or {})}).items():
        if name not in names:
            continue
        if (column := table[name]).ndim > 1:
            raise error(f"The table has {column.shape[1]} columns {name!r}; keep one of them.")
        values, numeric = column.dropna() if kind.empty else column, column.dtype.kind in "iuf"
        if numeric and not values.isna().any():  # then few values tell
            values = values.agg(["min", "max"]) if kind.column == "number" and len(values) else values.unique()
        for value in values:
            if not kind.holds(int(value) if kind.column == "whole" and is_real(value) and value % 1 == 0 else value):
                raise error(f"Column {name!r} holds {value!r:.60}; expected {kind.what}.")
        if kind.column in ("whole", "number") and not numeric:
            changed[name] = column.mask(column.isna(), math.nan).astype(float)
        elif column.dtype.name == "category":
            changed[name] = column.astype(object)
    return table.assign(**changed) if changed else table
