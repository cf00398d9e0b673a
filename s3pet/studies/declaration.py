"""Study files: which kinds of structures and options they may name, checked when a file is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from s3pet.errors import S3PetError, StudyError
from s3pet.files.reading import read_yaml, reading
from s3pet.objectives.texts import ObjectiveSettings
from s3pet.searcher import PRESETS, Settings
from s3pet.tuning import Recipe

TYPES = {"backbone": str, "budgets": list, "seeds": int}  # all other parts of a study but its space are mappings


class Kind(NamedTuple):
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
    "searched": Kind(("search",), True, True),
    "transfer": Kind(("search", "sources"), True, True),
    "average": Kind(("search", "over"), True, True),
}


def read_declaration(path: Path, names: Sequence[str], required: Sequence[str]) -> dict[str, Any]:
    """Read a YAML file with these keys; raises StudyError for other keys and types."""
    if not path.exists():
        raise StudyError(f"there is no study file {path}; expected YAML with {', '.join(required)}")
    if not path.suffix:
        raise StudyError(f"{path} needs an ending, such as .yaml: its results go to the folder of this name without it")
    with reading(path, StudyError, "YAML of plain values"):
        content = read_yaml(path)
    content = content if isinstance(content, dict) else {}
    missing, unknown = [n for n in required if n not in content], sorted(str(n) for n in content if n not in names)
    if missing or unknown:
        raise StudyError(f"{path}: missing {missing}, unknown {unknown}; a study may have {', '.join(names)}")
    for name, value in content.items():
        kind = TYPES.get(name, dict)
        if name != "space" and not isinstance(value, kind):
            raise StudyError(f"{path}: {name} is {value!r}; expected {kind.__name__}")
    return content


def check_study(study: Any) -> None:
    """Check everything that a study declares; raises StudyError."""
    for what, names in (("task", study.tasks), ("search", study.searches)):
        for name in names:
            check_file_name(name, what)
    check_names(study.recipes, study.tasks, "task")
    check_names(study.lr, ["pet", "head", "full", *KINDS, *study.structures], "kind or structure")
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
        problem = _problem(study, entry)
        if problem:
            raise StudyError(f"structure {name!r} {problem}")
    for name, rates in study.lr.items():
        if not isinstance(rates, list) or not rates or not all(isinstance(r, (int, float)) and r > 0 for r in rates):
            raise StudyError(
                f"lr of {name!r} is {rates!r}; expected numbers above 0, such as [1.0e-3] (YAML reads 1e-3 as text)"
            )


def check_file_name(name: Any, what: str) -> str:
    """Return a name that may become that of a folder; raises StudyError for one that could lead elsewhere."""
    plain = isinstance(name, str) and name.isprintable() and not {*'/\\:*?"<>|'} & {*name}
    if not plain or not 0 < len(name.encode()) <= 100 or name != name.strip() or name.startswith("."):
        how = "it becomes the name of a folder: up to 100 letters, without / and \\ and no dot at the start"
        raise StudyError(f"{what} {name!r:.60} cannot be called so; {how}")
    return name


def check_names(names: Collection[str], known: Collection[str], what: str) -> None:
    """Raise StudyError for names that the study does not have."""
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


def _problem(study: Any, entry: Any) -> str | None:
    """What is wrong with a declared structure."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind not in KINDS:
        return f"has kind {kind!r}, not one of {', '.join(KINDS)}"
    options = KINDS[kind].options
    unknown = sorted(set(entry) - {"kind", "budgets", "seeds", "repeats", *options})
    if unknown:
        return f"of kind {kind} has {unknown}; it may have {', '.join(options)}"
    for name in ("seeds", "repeats"):
        if not isinstance(entry.get(name, 1), int):
            return f"has {name} {entry[name]!r}; expected a whole number"
    if kind == "average" and entry.get("over") not in ("seeds", "others"):
        return f"is over {entry.get('over')!r}; an average is over seeds or others"
    if "search" in options and entry.get("search") not in study.searches:
        return f"needs search {entry.get('search')!r}; declared are {', '.join(study.searches)}"
    if "repeats" in entry and not study.is_seeded(entry):
        return "is the same for every seed, so seeds repeat it: give seeds, not repeats"
    return None
