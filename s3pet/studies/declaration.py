"""Study files: which kinds of structures and options they may name, checked when a file is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from s3pet.errors import S3PetError, StudyError
from s3pet.objective import ObjectiveSettings
from s3pet.searcher import PRESETS, Settings
from s3pet.tuning import Recipe

NUMBER_AS_TEXT = re.compile(r"[+-]?\d+(\.\d*)?[eE]\d+|[+-]?\d+[eE][+-]?\d+")  # YAML wants a point and a signed exponent
TYPES = {"backbone": str, "budgets": list, "seeds": int}  # all other parts of a study but its space are mappings


@dataclass(frozen=True)
class Kind:
    """A kind of structure: its options, and whether it is made anew for every budget and for every seed."""

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
    """Read a YAML file with these keys; raises StudyError for other keys, types, and numbers that are read as text."""
    import yaml

    if not path.is_file():
        raise StudyError(f"there is no study file {path}; expected YAML with {', '.join(required)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not YAML: {error}") from error
    content = content if isinstance(content, dict) else {}
    missing, unknown = [n for n in required if n not in content], sorted(str(n) for n in content if n not in names)
    if missing or unknown:
        raise StudyError(f"{path}: missing {missing}, unknown {unknown}; a study may have {', '.join(names)}")
    for place, text in _texts(content):
        if NUMBER_AS_TEXT.fullmatch(text) and not place.startswith("budgets"):
            raise StudyError(f"{path}: {place} is the text {text!r}; YAML reads a number only if it looks like 1.0e-3")
    for name, value in content.items():
        kind = TYPES.get(name, dict)
        if name != "space" and not isinstance(value, kind):
            raise StudyError(f"{path}: {name} is {value!r}; expected {kind.__name__}")
    return content


def _texts(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a YAML document, with their places."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in pairs:
        where = f"{place}.{name}" if place else str(name)
        yield from [(where, value)] if isinstance(value, str) else _texts(value, where)


def check_study(study: Any) -> None:
    """Check everything that a study declares; raises StudyError."""
    _check_known(study.recipes, study.tasks, "task")
    _check_known(study.lr, ["pet", "head", "full", *KINDS, *study.structures], "kind or structure")
    _check_fields(ObjectiveSettings, study.objective, "objective")
    for task in ["", *study.recipes]:
        _check_fields(Recipe, study.recipe(task), f"retrain of {task}" if task else "retrain", without=("seed", "lr"))
    for name, changes in study.searches.items():
        settings = {**study.search, **changes}
        if "budget" not in settings or settings.pop("settings", "default") not in PRESETS:
            raise StudyError(f"search {name!r} needs a budget, and may have settings: {' or '.join(PRESETS)}")
        del settings["budget"]
        _check_fields(Settings, settings, f"search {name!r}", without=("seed",))
    for name, entry in study.structures.items():
        _check_structure(study, name, entry)
    for name, rates in study.lr.items():
        if not isinstance(rates, list) or not rates or not all(isinstance(r, (int, float)) and r > 0 for r in rates):
            raise StudyError(f"lr of {name!r} is {rates!r}; expected a list of numbers above 0, such as [1.0e-3]")


def _check_known(names: Collection[str], known: Collection[str], what: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise StudyError(f"no {what} of this study is called {', '.join(unknown)}; it has {', '.join(known)}")


def _check_fields(record: type, values: Mapping[str, Any], where: str, without: Sequence[str] = ()) -> None:
    """Check that values are fields of a dataclass, which it accepts."""
    names = [field.name for field in fields(record) if field.name not in without]
    unknown = sorted(set(values) - set(names))
    if unknown:
        hint = "; these belong under objective:" if {*unknown} <= {f.name for f in fields(ObjectiveSettings)} else ""
        raise StudyError(f"{where} has the unknown options {', '.join(unknown)}{hint}; it may have {', '.join(names)}")
    try:
        record(**values)
    except S3PetError as error:
        raise StudyError(f"{where}: {error}") from error


def _check_structure(study: Any, name: str, entry: Any) -> None:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind not in KINDS:
        raise StudyError(f"structure {name!r} has kind {kind!r}, not one of {', '.join(KINDS)}")
    options = KINDS[kind].options
    unknown = sorted(set(entry) - {"kind", "budgets", "seeds", "repeats", *options})
    budgets = entry.get("budgets", study.budgets) if KINDS[kind].per_budget else [None]
    wrong = [w for w in ("seeds", "repeats") if not isinstance(entry.get(w, 1), int) and len(entry[w]) != len(budgets)]
    over, of, search = entry.get("over"), entry.get("of", 1), entry.get("search")
    problem = None
    if unknown:
        problem = f"of kind {kind} has {unknown}; it may have {', '.join(options)}"
    elif wrong:
        problem = f"has {wrong[0]} {entry[wrong[0]]} for {len(budgets)} budgets; give one for each"
    elif kind == "average" and over not in ("seeds", "others"):
        problem = f"is over {over!r}; an average is over seeds or others"
    elif not isinstance(of, int) or of < 1 or ("of" in entry and over != "seeds"):
        problem = f"is of {of!r}; expected a number of searches, with over: seeds"
    elif "search" in options and search not in study.searches:
        problem = f"needs search {search!r}; declared are {', '.join(study.searches)}"
    elif "repeats" in entry and not study.is_seeded(entry):
        problem = "is the same for every seed, so seeds repeat it: give seeds, not repeats"
    if problem:
        raise StudyError(f"structure {name!r} {problem}")
