"""Study files: which kinds of structures and options they may name, checked when a file is read."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from s3pet.backbones import load_backbone
from s3pet.errors import BudgetError, S3PetError, StudyError, TaskError, shown
from s3pet.files.kinds import FLAG, POSITIVE, RECORD, SEED, TEXT, instance, many, mapping, one_of, several, whole
from s3pet.files.reading import read_yaml, reading
from s3pet.gates import Budget
from s3pet.modules import pet_module
from s3pet.objectives.texts import ObjectiveSettings
from s3pet.searcher import PRESETS, Settings
from s3pet.space import SPACES, Rule
from s3pet.structure import MANUAL
from s3pet.studies.selectors import DEPTHS, SCORES
from s3pet.tasks import load_task
from s3pet.tasks.labels import check_options
from s3pet.tasks.metrics import choose_metrics
from s3pet.tuning import REFERENCES, Recipe

TYPES = {
    "backbone": instance((str, dict), "a name, or a mapping with path"),
    "budgets": several(instance((int, float, str), "a budget"), 0),
    "seeds": whole(1),
}
RATES = several(POSITIVE)


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
OPTIONS = {  # what the options of a structure may be
    **dict.fromkeys(("seeds", "repeats", "batches", "init_rank"), whole(1)),
    **{"per_param": FLAG, "alpha": POSITIVE, "budgets": TYPES["budgets"], "over": one_of(("seeds", "others"))},
    **{"where": one_of(DEPTHS), "score": one_of(SCORES), "rules": many(RECORD)},
}
NEEDED = {"search", "over", "where", "rules"}  # options without a default


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
        kind = TYPES.get(name, RECORD)
        if name != "space" and not kind.holds(value):
            raise StudyError(f"{path}: {name} is {shown(value)}; expected {kind.what}")
    return content


def check_study(study: Any) -> None:
    """Check everything that a study declares; raises StudyError."""
    for what, entries in (("task", study.tasks), ("search", study.searches), ("structure", study.structures)):
        if not entries and what != "search":
            raise StudyError(f"{what}s of a study are empty ({{}}); declare one or more")
        for name, entry in entries.items():
            check_file_name(name, what) if what != "structure" else TEXT.check(StudyError, structures=name)
            if not RECORD.holds(entry) and not (what == "task" and TEXT.holds(entry)):
                raise StudyError(f"{what} {name!r} must be a mapping of its options, got {shown(entry)}")
    if isinstance(study.backbone, str):
        TEXT.check(StudyError, backbone=study.backbone)
    else:
        known = [name for name in inspect.signature(load_backbone).parameters if name != "name"]
        unknown = ", ".join(str(name) for name in study.backbone if name not in ("path", *known))
        if unknown or not TEXT.holds(study.backbone.get("path")):
            what = f"has the unknown options {unknown}" if unknown else "has no path"
            raise StudyError(f"backbone {what}; expected a name or folder as path, and some of {', '.join(known)}")
    _check_space(study.space)
    _check_budgets("budgets", study.budgets)
    for name, task in study.tasks.items():
        _check_task(name, {"path": task} if isinstance(task, str) else task)
    check_names(study.recipes, study.tasks, "task")
    check_names(study.lr, ["pet", "head", "full", *KINDS, *study.structures], "kind or structure")
    _check_fields(ObjectiveSettings, study.objective, "objective")
    mapping(RECORD).check(StudyError, recipes=study.recipes)
    for task in ["", *study.recipes]:
        _check_fields(Recipe, study.recipe(task), f"retrain of {task}" if task else "retrain", without=("seed", "lr"))
    shared = {name: value for name, value in study.search.items() if name not in ("budget", "settings")}
    _check_fields(Settings, shared, "search", without=("seed",))
    for name, changes in study.searches.items():
        settings = {**study.search, **changes}
        if "budget" not in settings or not one_of(PRESETS).holds(preset := settings.pop("settings", "default")):
            what = "has no budget" if "budget" not in settings else f"has settings {shown(preset)}"
            raise StudyError(f"search {name!r} {what}; it needs a budget and may have settings: {' or '.join(PRESETS)}")
        _check_budgets(f"budget of search {name!r}", [settings.pop("budget")])
        _check_fields(Settings, settings, f"search {name!r}", without=("seed",))
    for name, entry in study.structures.items():
        problem = _problem(study, name, entry)
        if problem:
            raise StudyError(f"structure {name!r} {problem}")
    for name, rates in study.lr.items():
        if not RATES.holds(rates):
            how = "different numbers above 0, such as [1.0e-3] (YAML reads 1e-3 as text)"
            raise StudyError(f"lr of {name!r} is {rates!r}; expected {how}")


def _check_space(space: Any, where: str = "space") -> None:
    """Rules of a space, as far as they can be checked without a model."""
    rules = [{"pet": "lora"}] if isinstance(space, str) and space in SPACES else space
    if not isinstance(rules, list) or not rules or not all(map(RECORD.holds, rules)):
        raise StudyError(f"{where} is {shown(space)}; expected one of {', '.join(SPACES)}, or a list of rules")
    for rule in rules:
        try:
            pet_module(Rule(**rule).pet)
        except (TypeError, S3PetError) as error:
            raise StudyError(f"{where} has the rule {shown(rule)}: {error}") from error


def _check_budgets(what: str, budgets: Any) -> None:
    for budget in budgets:
        try:
            Budget.parse(budget, total=2**62)
        except BudgetError as error:
            raise StudyError(f"{what}: {error}") from error


def _check_task(name: str, options: Mapping[str, Any]) -> None:
    """Options of a task, as far as they can be checked without its rows."""
    known = set(inspect.signature(load_task).parameters) - {"source", "tokenizer", "name"}
    if unknown := sorted(map(str, {*options} - known)):
        raise StudyError(f"task {name!r} has the unknown options {', '.join(unknown)}; it may have {', '.join(known)}")
    numbers = {n: whole(1) for n in ("n_train", "n_validation")} | {"seed": SEED, "regression": FLAG, "path": TEXT}
    for option, kind in numbers.items():
        if option in options or option == "path":
            kind.check(StudyError, **{f"task {name!r}: {option}": options.get(option)})
    try:
        choose_metrics(check_options(options))
    except TaskError as error:
        raise StudyError(f"task {name!r}: {error}") from error


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


def _problem(study: Any, name: str, entry: Any) -> str | None:
    """What is wrong with a declared structure."""
    kind: Any = entry.get("kind") if isinstance(entry, dict) else None
    if not one_of(KINDS).holds(kind):
        return f"has kind {kind!r}, not one of {', '.join(KINDS)}"
    options = KINDS[kind].options
    unknown = sorted(set(entry) - {"kind", "budgets", "seeds", "repeats", *options})
    if unknown:
        return f"of kind {kind} has {unknown}; it may have {', '.join(options)}"
    values: dict[Any, Any] = OPTIONS | {"search": one_of([*study.searches]), "sources": several(one_of([*study.tasks]))}
    values |= {"name": one_of([*MANUAL, "all"] if kind == "manual" else REFERENCES)}
    for option, value in {"name": name, **dict.fromkeys(NEEDED & {*options}), **entry}.items():
        if option in values and (option != "name" or "name" in options) and not values[option].holds(value):
            return f"has {option} {shown(value)}; expected {values[option].what}"
    _check_budgets(f"budgets of structure {name!r}", entry.get("budgets", ()))
    if KINDS[kind].per_budget and not study.budgets_of(entry):
        return "is made for a budget, and budgets are []; give one or more"
    if "rules" in entry:
        _check_space(entry["rules"], f"rules of structure {name!r}")
    if "repeats" in entry and not study.is_seeded(entry):
        return "is the same for every seed, so seeds repeat it: give seeds, not repeats"
    return None
