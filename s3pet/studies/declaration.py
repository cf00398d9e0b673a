"""Study files: which kinds of structures and which options they may name, checked when a file is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from s3pet.errors import S3PetError, StudyError
from s3pet.objective import ObjectiveSettings
from s3pet.searcher import PRESETS, Settings
from s3pet.tuning import Recipe

NUMBER_AS_TEXT = re.compile(r"[+-]?\d+(\.\d*)?[eE]\d+|[+-]?\d+[eE][+-]?\d+")  # YAML wants a point and a signed exponent
AVERAGES = ("seeds", "others")


@dataclass(frozen=True)
class Kind:
    """A kind of structure in a study.

    Attributes:
        options: what its declaration may say.
        per_budget, per_seed: whether it is made anew for every budget, and for every seed.
    """

    options: tuple[str, ...] = ()
    per_budget: bool = False
    per_seed: bool = False


KINDS = {
    "reference": Kind(("name",)),
    "manual": Kind(("name",)),
    "rules": Kind(("rules",)),
    "random": Kind((), True, True),
    "heuristic": Kind(("where",), True),
    "sensitivity": Kind(("score", "per_param", "batches"), True, True),
    "adalora": Kind(("alpha", "init_rank"), True),
    "allocated": Kind(("alpha", "init_rank"), True, True),
    "searched": Kind(("search",), True, True),
    "transfer": Kind(("search", "sources"), True, True),
    "average": Kind(("search", "over", "of"), True, True),
}


def read_yaml(path: Path, names: Sequence[str], required: Sequence[str]) -> dict[str, Any]:
    """Read a YAML file with these keys.

    Raises:
        StudyError: no such file, not YAML, a key is unknown or missing, or a number was read as text.
    """
    import yaml

    if not path.is_file():
        raise StudyError(f"there is no study file {path}; expected YAML with {', '.join(required)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not YAML: {error}") from error
    keys = [*content] if isinstance(content, dict) else []
    missing, unknown = [n for n in required if n not in keys], sorted(str(key) for key in keys if key not in names)
    if missing or unknown:
        raise StudyError(f"{path}: missing {missing}, unknown {unknown}; a study may have {', '.join(names)}")
    for place, text in _texts(content):
        if NUMBER_AS_TEXT.fullmatch(text) and not place.startswith("budgets"):
            raise StudyError(f"{path}: {place} is the text {text!r}; YAML reads a number only if it looks like 1.0e-3")
    return content


def _texts(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a YAML document, with their places."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in pairs:
        where = f"{place}.{name}" if place else str(name)
        yield from [(where, value)] if isinstance(value, str) else _texts(value, where)


def check_study(study: Any) -> None:
    """Check everything that a study declares; raises StudyError."""
    for name in ("tasks", "structures", "objective", "retrain", "recipes", "lr", "search", "searches"):
        if not isinstance(getattr(study, name), Mapping):
            raise StudyError(f"{name} is {getattr(study, name)!r}; expected names and values")
    for name, kind in (("budgets", list), ("seeds", int), ("backbone", str)):
        if not isinstance(getattr(study, name), kind | tuple if kind is list else kind):
            raise StudyError(f"{name} is {getattr(study, name)!r}; expected a {kind.__name__}")
    _check_fields(ObjectiveSettings, study.objective, "objective")
    for task in ["", *study.recipes]:
        _check_fields(Recipe, study.recipe(task), f"retrain of {task}" if task else "retrain", ("seed", "lr"))
    for name in study.searches:
        settings = {**study.search, **study.searches[name]}
        if "budget" not in settings or settings.get("settings", "default") not in PRESETS:
            raise StudyError(f"search {name!r} needs a budget, and may have settings: {' or '.join(PRESETS)}")
        _check_fields(Settings, settings, f"search {name!r}", ("seed",), also=("budget", "settings"))
    for name, entry in study.structures.items():
        _check_structure(study, name, entry)
    _check_known(study.recipes, study.tasks, "task")
    _check_known(study.lr, ["pet", "head", "full", *KINDS, *study.structures], "kind or structure")
    for name, rates in study.lr.items():
        if not isinstance(rates, list) or not rates or not all(isinstance(r, (int, float)) and r > 0 for r in rates):
            raise StudyError(f"lr of {name!r} is {rates!r}; expected a list of numbers above 0, such as [1.0e-3]")


def _check_known(names: Any, known: Any, what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise StudyError(f"no {what} of this study is called {', '.join(unknown)}; it has {', '.join(known)}")


def _check_fields(
    record: type, values: Any, where: str, excluded: Sequence[str] = (), also: Sequence[str] = ()
) -> None:
    """Check that values are fields of a dataclass which it accepts; ``also``: further names."""
    names = [field.name for field in fields(record) if field.name not in excluded]
    unknown = sorted(set(values) - {*names, *also})
    if unknown:
        hint = "; these belong under objective:" if {*unknown} <= {f.name for f in fields(ObjectiveSettings)} else ""
        raise StudyError(f"{where} has the unknown options {', '.join(unknown)}{hint}; it may have {', '.join(names)}")
    try:
        record(**{name: value for name, value in values.items() if name in names})
    except S3PetError as error:
        raise StudyError(f"{where}: {error}") from error


def _check_structure(study: Any, name: str, entry: Mapping[str, Any]) -> None:
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    if kind not in KINDS:
        raise StudyError(f"structure {name!r} has kind {kind!r}, not one of {', '.join(KINDS)}")
    options = KINDS[kind].options
    unknown = sorted(set(entry) - {"kind", "budgets", "seeds", "repeats", *options})
    if unknown:
        raise StudyError(f"structure {name!r} of kind {kind} has {unknown}; it may have {', '.join(options)}")
    for what in ("seeds", "repeats"):
        counts, budgets = entry.get(what, 1), entry.get("budgets", study.budgets) if KINDS[kind].per_budget else [None]
        if not isinstance(counts, int) and len(counts) != len(budgets):
            raise StudyError(f"structure {name!r} has {what} {counts} for {len(budgets)} budgets; give one for each")
    if "repeats" in entry and not study.is_seeded(entry):
        raise StudyError(f"structure {name!r} is the same for every seed, so seeds repeat it: give seeds, not repeats")
    if kind == "average" and entry.get("over") not in AVERAGES:
        raise StudyError(f"structure {name!r} is over {entry.get('over')!r}; an average is over {AVERAGES}")
    count = entry.get("of", 1)
    if not (isinstance(count, int) and count > 0 and ("of" not in entry or entry["over"] == "seeds")):
        raise StudyError(f"structure {name!r} is of {count!r}; expected a number of searches, with over: seeds")
    if "search" in options and entry.get("search") not in study.searches:
        raise StudyError(
            f"structure {name!r} needs search {entry.get('search')!r}; declared are {', '.join(study.searches)}"
        )
