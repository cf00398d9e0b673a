"""Grids of runs as one tidy table: tasks × structures × budgets × seeds × learning rates, row by row, resumable.

:func:`s3pet.compare` retrains a few structures on one task. A :class:`Study` is a whole grid, declared in one YAML file:

    backbone: pocket-t5
    tasks: {sentiment: pocket/sentiment, cola: {path: "${DATA}/cola", n_train: 2000}}
    budgets: ["0.05%", "0.2%"]
    seeds: 3
    retrain: {steps: 300, batch_size: 32}
    lr: {pet: [1.0e-3, 3.0e-3], full: [5.0e-4]}        # chosen on validation, with the first seed
    searches: {ours: {budget: "0.05%", steps: 300}}
    structures:
      full: {kind: reference}
      lora_qv: {kind: manual}
      random: {kind: random, seeds: 5}                 # one for each budget
      searched: {kind: searched, search: ours}

Every structure gets the same recipe and the same grid of rates. The rate is chosen on the validation split with the
first seed, the other seeds run at that rate; the test split decides nothing. Seed k of a structure that depends on a
seed (searched, random, by sensitivity) is search or draw k, retrained with seed k.

Finished rows are kept and never computed again, so a study can be cut off at any time and go on, and its file can
grow. A row is known by all that was declared for it; data that change under the same name are not noticed.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from s3pet.comparison import measured, read_rows
from s3pet.errors import S3PetError, StudyError
from s3pet.retrain import retrain
from s3pet.runs import SearchResult, config_hash, load_run, write_table
from s3pet.statistics import choose_lr
from s3pet.structure import Structure
from s3pet.tasks import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Entry = Structure | str
Row = dict[str, Any]
# of each kind of structure: what its declaration may say, and whether it is made anew for every budget and seed
KINDS: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "reference": ((), False, False),
    "manual": (("name",), False, False),
    "rules": (("rules",), False, False),
    "random": ((), True, True),
    "heuristic": (("where",), True, False),
    "sensitivity": (("score", "per_param", "batches", "head_steps"), True, True),
    "adalora": (("alpha", "init_rank"), True, False),
    "searched": (("search", "per_param"), True, True),
    "transfer": (("search", "sources"), True, True),
    "average": (("search", "over"), True, True),
}
AVERAGES = ("seeds", "others")


@dataclass(frozen=True)
class Study:
    """A grid of runs, as declared in a file.

    Attributes:
        backbone: what :func:`s3pet.load_backbone` opens.
        tasks: name → what :func:`s3pet.load_task` opens, or its keywords with the name or folder as ``path``.
        structures: name → ``kind`` and its options; ``budgets`` and ``seeds`` where they differ from the study's.
        budgets: as :meth:`s3pet.Budget.parse` reads them.
        seeds: how many.
        space: name or rules of the candidates.
        retrain: keywords of :func:`s3pet.retrain`. lr: kind of training (pet, head, full, adalora) → rates.
        searches: name → ``budget`` and keywords of :func:`s3pet.search`; what all share stands in ``search``.
        path: folder of its rows, table and searches: beside the file, named like it.
    """

    backbone: str
    tasks: Mapping[str, Any]
    structures: Mapping[str, Mapping[str, Any]]
    budgets: Sequence[str] = ()
    seeds: int = 3
    space: Any = "mixed"
    retrain: Mapping[str, Any] = field(default_factory=dict)
    lr: Mapping[str, Sequence[float]] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    searches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Path = Path("study")

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study file; ``${NAME}`` is replaced from the environment.

        Raises:
            StudyError: not such a file, an unknown key, kind, option or search, or a variable that is not set.
        """
        import yaml

        path = Path(path)
        if not path.is_file():
            raise StudyError(f"there is no study file {path}; expected YAML with backbone, tasks and structures")
        text = os.path.expandvars(path.read_text(encoding="utf-8"))
        try:
            given = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise StudyError(f"{path} is not YAML: {error}") from error
        known = [name for name in cls.__dataclass_fields__ if name != "path"]
        lost = [name for name in known[:3] if name not in (given or ())] if isinstance(given, dict) else known[:3]
        unknown = sorted(set(given) - set(known)) if isinstance(given, dict) else []
        if lost or unknown:
            raise StudyError(f"{path}: missing {lost}, unknown {unknown}; a study may have {', '.join(known)}")
        study = cls(**given, path=path.with_suffix(""))
        for name, entry in study.structures.items():
            study._check(name, entry)
        if "${" in text:
            raise StudyError(f"{path} wants ${text.split('${')[1].split('}')[0]}, which the environment does not set")
        return study

    def _check(self, name: str, entry: Mapping[str, Any]) -> None:
        kind = entry.get("kind")
        if kind not in KINDS:
            raise StudyError(f"structure {name!r} has kind {kind!r}, not one of {', '.join(KINDS)}")
        unknown = sorted(set(entry) - {"kind", "budgets", "seeds", *KINDS[kind][0]})
        if unknown:
            raise StudyError(
                f"structure {name!r} of kind {kind} has {unknown}; it may have {', '.join(KINDS[kind][0])}"
            )
        if "search" in KINDS[kind][0] and entry.get("search") not in self.searches:
            raise StudyError(
                f"structure {name!r} wants search {entry.get('search')!r}; declared are {', '.join(self.searches)}"
            )

    def rows(self, tasks: Sequence[str] = ("*",), structures: Sequence[str] = ("*",)) -> list[Row]:
        """What is to be run: one dict per retraining, all rates of the first seed first.

        Args:
            tasks, structures: patterns of names.
        """
        found = []
        for task in self._matching(self.tasks, tasks, "task"):
            for name in self._matching(self.structures, structures, "structure"):
                entry = self.structures[name]
                _, cut, seeded = KINDS[entry["kind"]]
                for budget in entry.get("budgets", self.budgets) if cut else [None]:
                    for source in self._sources(entry, task):
                        label = " ".join(part for part in (name, budget, source and f"from {source}") if part)
                        row: Row = {"task": task, "structure": label, "entry": name, "kind": entry["kind"]}
                        row |= {"budget": budget, "source": source}
                        for seed in range(entry.get("seeds", self.seeds)):
                            for lr in self._rates(name, entry) if seed == 0 else [None]:
                                found.append({**row, "index": seed if seeded else 0, "seed": seed, "lr": lr})
        return sorted(found, key=lambda row: row["seed"] > 0)

    def key(self, row: Row) -> str:
        """What a row is known by: a hash of all that was declared for it."""
        entry = self.structures[row["entry"]]
        told = {name: entry[name] for name in ("kind", *KINDS[entry["kind"]][0]) if name in entry}
        told["name"] = entry.get("name", row["entry"]) if entry["kind"] in ("manual", "reference") else None
        if "search" in told:
            told["search"] = self._settings(told["search"])
        where: dict[str, Any] = {
            "backbone": Path(self.backbone).name,
            "space": self.space,
            "retrain": dict(self.retrain),
        }
        where |= {"task": _portable(self.tasks[row["task"]]), "structure": told}
        return config_hash({**where, **{name: row[name] for name in ("budget", "source", "index", "seed", "lr")}})

    def _settings(self, search: str) -> dict[str, Any]:
        return {**self.search, **self.searches[search]}

    def _sources(self, entry: Mapping[str, Any], task: str) -> Sequence[str | None]:
        if entry["kind"] == "average":
            if entry.get("over") not in AVERAGES:
                raise StudyError(f"an average is over {' or '.join(AVERAGES)}, not {entry.get('over')!r}")
            return [entry["over"]]
        return (
            [name for name in entry.get("sources", self.tasks) if name != task]
            if entry["kind"] == "transfer"
            else [None]
        )

    def _rates(self, name: str, entry: Mapping[str, Any]) -> Sequence[float | None]:
        kind = entry["kind"]
        if name == "zero-shot":
            return [None]
        return self.lr.get(name if kind == "reference" else kind) or self.lr.get("pet") or [None]

    @staticmethod
    def _matching(names: Mapping[str, Any], patterns: Sequence[str], what: str) -> list[str]:
        lost = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
        if lost:
            raise StudyError(f"no {what} of this study is called {', '.join(lost)}; it has {', '.join(names)}")
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def table(self) -> pd.DataFrame:
        """All finished rows, at every learning rate; :func:`s3pet.statistics.choose_lr` keeps the chosen ones."""
        import pandas as pd

        files = self.path / "study.parquet", self.path / "rows.jsonl"
        rows = pd.read_parquet(files[0]).to_dict("records") if files[0].is_file() else []
        rows += [{"key": key, **row} for key, row in read_rows(files[1]).items()]
        return pd.DataFrame(rows).drop_duplicates("key", ignore_index=True) if rows else pd.DataFrame({"key": []})

    def run(self, *, jobs: int = 1, tasks: Sequence[str] = ("*",), structures: Sequence[str] = ("*",)) -> pd.DataFrame:
        """Run what is not there yet; returns the table.

        Args:
            jobs: processes (joblib's; under ``joblib.parallel_config(backend="dask")`` the workers of a cluster).
            tasks, structures: patterns of names: run only these.
        """
        plan = self.rows(tasks, structures)
        searches = dict.fromkeys(need for row in plan for need in self._needs(row))
        missing = [need for need in searches if not (self._folder(*need) / "config.json").is_file()]
        self.path.mkdir(parents=True, exist_ok=True)
        for _ in _each(_search, [(self, *need) for need in missing], jobs, "searches"):
            pass
        for first in (True, False):
            done = self.table()
            stage = [row for row in plan if (row["seed"] == 0) == first]
            if not first:
                stage = [{**row, "lr": self._chosen(done, row)} for row in stage]
            todo = [row for row in stage if self.key(row) not in set(done["key"])]
            for row in _each(_row, [(self, row) for row in todo], jobs, "first seed" if first else "other seeds"):
                with (self.path / "rows.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        table = self.table()
        if len(table):
            write_table(table, self.path / "study.parquet")
        return table

    def _chosen(self, done: pd.DataFrame, row: Row) -> float | None:
        """The rate that is best on validation, with the first seed."""
        first = {**row, "index": 0, "seed": 0}
        rates = self._rates(row["entry"], self.structures[row["entry"]])
        keys = {self.key({**first, "lr": rate}) for rate in rates}
        found = done[done["key"].isin(keys)]
        return None if rates[0] is None else float(choose_lr(found)["lr"].iloc[0])

    def _needs(self, row: Row) -> Iterator[tuple[str, str, int]]:
        """(task, search, seed) that a row's structure is made of."""
        entry = self.structures[row["entry"]]
        if entry["kind"] in ("searched", "transfer"):
            yield row["source"] or row["task"], entry["search"], row["index"]
        elif entry["kind"] == "average" and row["source"] == "seeds":
            yield from ((row["task"], entry["search"], seed) for seed in range(self.seeds))
        elif entry["kind"] == "average":
            yield from ((task, entry["search"], row["index"]) for task in self.tasks if task != row["task"])

    def _folder(self, task: str, search: str, seed: int) -> Path:
        return self.path / "searches" / search / task / f"seed{seed}"

    def result(self, task: str, search: str, seed: int) -> SearchResult:
        """A finished search; raises RunError."""
        return load_run(self._folder(task, search, seed))


@lru_cache(maxsize=2)
def _lab(backbone: str, space: str) -> tuple[Any, Any, Any]:
    from s3pet.backbones import load_backbone
    from s3pet.space import make_space

    model, tokenizer = load_backbone(backbone)
    return model, tokenizer, make_space(model, json.loads(space))


@lru_cache(maxsize=32)
def _task(backbone: str, space: str, told: str) -> Task:
    from s3pet.tasks import load_task

    options = json.loads(told)
    options = {"path": options} if isinstance(options, str) else options
    return load_task(options.pop("path"), _lab(backbone, space)[1], **options)


def _open(study: Study, task: str) -> tuple[Any, Task, Any]:
    where = study.backbone, json.dumps(study.space)
    model, _, space = _lab(*where)
    return model, _task(*where, json.dumps(study.tasks[task])), space


def _search(study: Study, task: str, search: str, seed: int) -> None:
    from s3pet.search import search as run_search

    model, opened, space = _open(study, task)
    out = study._folder(task, search, seed)
    run_search(model, opened, space, out=out, seed=seed, progress=False, **study._settings(search))
    shutil.rmtree(out / "checkpoint", ignore_errors=True)  # weights of the supernet: nobody needs them


def _row(study: Study, row: Row) -> Row:
    """Retrain one row's structure."""
    model, task, space = _open(study, row["task"])
    entry, recipe = study.structures[row["entry"]], {**study.retrain, "seed": row["seed"], "lr": row["lr"]}
    try:
        if entry["kind"] == "adalora":
            from s3pet.adalora import retrain_adalora

            tuned = retrain_adalora(model, task, row["budget"], **_options(entry), **recipe)
        else:
            tuned = retrain(model, task, _make(study, row, model, task, space), **recipe)
    except S3PetError as error:
        raise StudyError(f"{row['structure']!r} on {row['task']!r}, seed {row['seed']}: {error}") from error
    found = {"key": study.key(row), **row, **measured(tuned)}
    if row["budget"] is not None:
        from s3pet.structure import parse_budget

        found["budget"] = parse_budget(space, row["budget"]).n_params
    costs = [study.result(*need).cost for need in study._needs(row)]
    return found | {"search_rows": sum(c.rows for c in costs), "search_seconds": sum(c.seconds for c in costs)}


def _make(study: Study, row: Row, model: nn.Module, task: Task, space: Any) -> Entry:
    """A row's structure."""
    from s3pet.selectors import depth_structure, sensitive_structure
    from s3pet.space import make_space
    from s3pet.structure import manual_structure, random_structure, select_structure
    from s3pet.transfer import average_gates

    entry, kind, budget = study.structures[row["entry"]], row["kind"], row["budget"]
    if kind == "reference":
        return row["entry"]
    if kind == "manual":
        return manual_structure(space, entry.get("name", row["entry"]))
    if kind == "rules":
        return manual_structure(make_space(model, entry["rules"]), "all")
    if kind == "random":
        return random_structure(space, budget, seed=row["index"])
    if kind == "heuristic":
        return depth_structure(space, budget, **_options(entry))
    if kind == "sensitivity":
        keep = ("max_length", "pooling", "loss", "batch_size")
        same = {name: study.retrain[name] for name in keep if name in study.retrain}
        return sensitive_structure(model, task, space, budget, seed=row["index"], **same, **_options(entry))
    results = [study.result(*need) for need in study._needs(row)]
    if kind == "average":
        return average_gates(results).structure(budget)
    if entry.get("per_param"):
        return select_structure(space, results[0].probs / space.costs, budget, origin={"kind": "searched"})
    return results[0].structure(budget)


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("kind", "budgets", "seeds")}


def _each(function: Any, arguments: Sequence[tuple], jobs: int, what: str) -> Iterator[Any]:
    """Results as they come, in any order, with a bar."""
    from joblib import Parallel, delayed

    found: Any = (function(*given) for given in arguments)
    if jobs > 1 and len(arguments) > 1:
        parallel = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        found = parallel(delayed(_alone)(function, given) for given in arguments)
    yield from tqdm(found, total=len(arguments), desc=what, disable=not arguments)


def _alone(function: Any, given: tuple) -> Any:
    import torch

    torch.set_num_threads(1)  # several processes share the cores
    return function(*given)


def _portable(task: Any) -> Any:
    """A task's declaration without the folder its data happen to lie in."""
    return task if isinstance(task, str) else {**task, "path": Path(task["path"]).name}
