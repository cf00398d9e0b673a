"""Grids of runs as one tidy table: tasks × structures × budgets × seeds × learning rates, row by row, resumable.

:func:`s3pet.compare` retrains a few structures on one task. A :class:`Study` is a whole grid, declared in one file:

    backbone: pocket-t5
    tasks: {sentiment: pocket/sentiment, cola: {path: "${DATA}/cola", n_train: 2000}}
    budgets: ["0.05%", "0.2%"]
    seeds: 3
    retrain: {steps: 300, batch_size: 32}
    lr: {pet: [1.0e-3, 3.0e-3], full: [5.0e-4]}        # each structure's is chosen on validation
    searches: {ours: {budget: "0.05%", steps: 300}}
    structures:
      full: {kind: reference}
      lora_qv: {kind: manual}
      random: {kind: random, seeds: 5}                 # one for each budget
      searched: {kind: searched, search: ours}

Every structure gets the same recipe, the same grid of rates, and its own rate, chosen on the validation split; the test
split decides nothing. Seed k of what depends on a seed (searched, random, by sensitivity) is search or draw k,
retrained with seed k: a structure of its own, run at every rate. With ``repeats: n`` it is retrained n times in all, at
its chosen rate with seeds k + 1, k + 2, …: that tells the structure from the luck of its retraining, and is kept out of
the comparisons (:meth:`Study.chosen`). With ``halving: {structures: 8, steps: [50, 100]}`` it is chosen from so many
(:mod:`s3pet.studies.halving`). Of kind ``allocated`` it is what AdaLoRA with seed k leaves, retrained from the start
(:func:`s3pet.studies.adalora.allocated_structure`). The average over all seeds is one structure; with ``of: 3`` seed k is the
average of the k-th three searches. Other structures are one: their first seed is run at every rate, the other seeds at
the chosen one.

Finished rows are kept and never computed again, so a study can be cut off at any time and go on, and its file can
grow. A row is known by all that was declared for it; data that change under the same name are not noticed.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3pet.errors import StudyError
from s3pet.gates import Budget
from s3pet.result import SearchResult, config_hash, load_run, write_table
from s3pet.studies.comparison import read_rows
from s3pet.studies.jobs import Row, each, run_row, run_search
from s3pet.studies.validation import choose_lr

if TYPE_CHECKING:
    import pandas as pd

# of each kind of structure: what its declaration may say, and whether it is made anew for every budget and seed
KINDS: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "reference": ((), False, False),
    "manual": (("name",), False, False),
    "rules": (("rules",), False, False),
    "random": (("halving",), True, True),
    "heuristic": (("where",), True, False),
    "sensitivity": (("score", "per_param", "batches", "head_steps"), True, True),
    "adalora": (("alpha", "init_rank"), True, False),
    "allocated": (("alpha", "init_rank"), True, True),
    "searched": (("search", "per_param", "halving"), True, True),
    "transfer": (("search", "sources"), True, True),
    "average": (("search", "over", "of"), True, True),
}
AVERAGES = ("seeds", "others")


@dataclass(frozen=True)
class Study:
    """A grid of runs, as declared in a file.

    Attributes:
        backbone: what :func:`s3pet.load_backbone` opens.
        tasks: name → what :func:`s3pet.load_task` opens, or its keywords with the name or folder as ``path``.
        structures: name → ``kind`` and its options; ``budgets`` and ``seeds`` (a number, or one for each budget) where
            they differ from the study's; ``repeats`` (likewise) of the retraining, where each seed is a structure of
            its own.
        budgets: as :meth:`s3pet.Budget.parse` reads them.
        seeds: how many.
        space: name or rules of the candidates.
        retrain: keywords of :func:`s3pet.retrain`. recipes: task → those that differ there.
        lr: kind of training (pet, head, full, adalora) or name of a structure → rates, of which validation chooses.
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
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lr: Mapping[str, Sequence[float]] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    searches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Path = Path("study")

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study file. ``${NAME}`` in it is replaced from the environment when rows are run, not before.

        Raises:
            StudyError: not such a file, or an unknown key, kind, option or search.
        """
        import yaml

        path = Path(path)
        if not path.is_file():
            raise StudyError(f"there is no study file {path}; expected YAML with backbone, tasks and structures")
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        study._matching(study.tasks, [*study.recipes], "task")
        known = ["pet", "head", "full", *KINDS, *study.structures]
        study._matching(dict.fromkeys(known), [*study.lr], "kind or structure")
        return study

    def _check(self, name: str, entry: Mapping[str, Any]) -> None:
        kind = entry.get("kind")
        if kind not in KINDS:
            raise StudyError(f"structure {name!r} has kind {kind!r}, not one of {', '.join(KINDS)}")
        unknown = sorted(set(entry) - {"kind", "budgets", "seeds", "repeats", *KINDS[kind][0]})
        if unknown:
            raise StudyError(
                f"structure {name!r} of kind {kind} has {unknown}; it may have {', '.join(KINDS[kind][0])}"
            )
        for what in ("seeds", "repeats"):
            counts, budgets = entry.get(what, 1), entry.get("budgets", self.budgets) if KINDS[kind][1] else [None]
            if not isinstance(counts, int) and len(counts) != len(budgets):
                raise StudyError(
                    f"structure {name!r} has {what} {counts} for {len(budgets)} budgets; give one number each"
                )
        if "repeats" in entry and not self._seeded(entry):
            raise StudyError(f"structure {name!r} is the same for every seed, which repeat it: give seeds, not repeats")
        halving = entry.get("halving", {"structures": 1, "steps": [1]})
        if not isinstance(halving, dict) or set(halving) != {"structures", "steps"}:
            raise StudyError(
                f"structure {name!r} has halving {halving!r}; expected {{structures: 8, steps: [50, 100]}}"
            )
        if kind == "average" and entry.get("over") not in AVERAGES:
            raise StudyError(f"structure {name!r} is over {entry.get('over')!r}; an average is over {AVERAGES}")
        of = entry.get("of", 1)
        if not (isinstance(of, int) and of > 0 and ("of" not in entry or entry["over"] == "seeds")):
            raise StudyError(f"structure {name!r} is of {of!r}; expected a number of searches, with over: seeds")
        if "search" in KINDS[kind][0] and entry.get("search") not in self.searches:
            raise StudyError(
                f"structure {name!r} wants search {entry.get('search')!r}; declared are {', '.join(self.searches)}"
            )

    def only(self, *, tasks: Sequence[str] = ("*",), structures: Sequence[str] = ("*",)) -> Study:
        """The same study with some of its tasks and structures, to look at; rows and searches stay where they are.

        A mean over tasks needs structures that were run on all of them. Of transfers, those from other tasks are left.

        Args:
            tasks, structures: patterns of names.

        Raises:
            StudyError: a pattern fits nothing.
        """
        kept = {name: self.tasks[name] for name in self._matching(self.tasks, tasks, "task")}
        names = self._matching(self.structures, structures, "structure")
        return replace(self, tasks=kept, structures={name: self.structures[name] for name in names})

    def rows(self, tasks: Sequence[str] = ("*",), structures: Sequence[str] = ("*",)) -> list[Row]:
        """What is to be run: one dict per retraining; ``lr`` is None where it is still to be chosen, these come last.

        Args:
            tasks, structures: patterns of names.
        """
        found = []
        for task in self._matching(self.tasks, tasks, "task"):
            for name in self._matching(self.structures, structures, "structure"):
                entry = self.structures[name]
                seeded = self._seeded(entry)
                budgets = entry.get("budgets", self.budgets) if KINDS[entry["kind"]][1] else [None]
                counts = [entry.get("seeds", self.seeds), entry.get("repeats", 1)]
                each = [[count] * len(budgets) if isinstance(count, int) else count for count in counts]
                for budget, seeds, repeats in zip(budgets, *each, strict=True):
                    for source in self._sources(entry, task):
                        told = source and f"{'over' if entry['kind'] == 'average' else 'from'} {source}"
                        told = f"over {entry['of']} {source}" if "of" in entry else told
                        label = " ".join(str(part) for part in (name, budget, told) if part)
                        row: Row = {"task": task, "structure": label, "entry": name, "kind": entry["kind"]}
                        row |= {"budget": budget, "source": source}
                        for seed in range(seeds):
                            place = {**row, "index": seed if seeded else 0, "seed": seed, "tuned": seeded or seed == 0}
                            rates = self._rates(name, entry) if place["tuned"] else [None]
                            found += [{**place, "lr": lr} for lr in rates]
                            for more in range(1, repeats):
                                found.append({**place, "seed": seed + more, "tuned": False, "lr": None})
        return sorted(found, key=lambda row: not row["tuned"])

    def key(self, row: Row) -> str:
        """What a row is known by: a hash of all that was declared for it."""
        entry = self.structures[row["entry"]]
        told = {name: entry[name] for name in ("kind", *KINDS[entry["kind"]][0]) if name in entry}
        told["name"] = entry.get("name", row["entry"]) if entry["kind"] in ("manual", "reference") else None
        if "search" in told:
            told["search"] = self.settings(told["search"])
        if told.get("over") == "seeds" and "of" not in told:
            told["seeds"] = self.seeds
        where: dict[str, Any] = {"backbone": self.backbone, "space": self.space, "task": self.tasks[row["task"]]}
        where |= {"retrain": self.recipe(row["task"]), "structure": told}
        return config_hash({**where, **{name: row[name] for name in ("budget", "source", "index", "seed", "lr")}})

    def recipe(self, task: str) -> dict[str, Any]:
        """Keywords of the retraining on a task."""
        return {**self.retrain, **self.recipes.get(task, {})}

    def settings(self, search: str) -> dict[str, Any]:
        """Keywords of a declared search."""
        return {**self.search, **self.searches[search]}

    @staticmethod
    def _seeded(entry: Mapping[str, Any]) -> bool:
        """Whether every seed is a structure of its own."""
        return KINDS[entry["kind"]][2] and (entry.get("over") != "seeds" or "of" in entry)

    def _sources(self, entry: Mapping[str, Any], task: str) -> Sequence[str | None]:
        """What a structure is carried over from, or averaged over."""
        if entry["kind"] == "average":
            return [entry["over"]]
        if entry["kind"] == "transfer":
            return [name for name in entry.get("sources", self.tasks) if name != task]
        return [None]

    def _rates(self, name: str, entry: Mapping[str, Any]) -> Sequence[float | None]:
        kind = entry["kind"]
        if name == "zero-shot":
            return [None]
        return self.lr.get(name) or self.lr.get(kind) or self.lr.get("pet") or [None]

    @staticmethod
    def _matching(names: Mapping[str, Any], patterns: Sequence[str], what: str) -> list[str]:
        lost = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
        if lost:
            raise StudyError(f"no {what} of this study is called {', '.join(lost)}; it has {', '.join(names)}")
        return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def table(self) -> pd.DataFrame:
        """All finished rows, at every learning rate; :func:`s3pet.studies.validation.choose_lr` keeps the chosen ones."""
        import pandas as pd

        kept = pd.read_parquet(self.path / "study.parquet") if (self.path / "study.parquet").is_file() else None
        rows = [{"key": key, **row} for key, row in read_rows(self.path / "rows.jsonl").items()]
        tables = [table for table in (kept, pd.DataFrame(rows) if rows else None) if table is not None]
        if not tables:
            return pd.DataFrame({"key": []})
        table = pd.concat([_typed(table) for table in tables])
        return table.drop_duplicates("key", ignore_index=True)

    def chosen(self, *, repeats: bool = False) -> pd.DataFrame:
        """Finished rows that are declared now, at the chosen learning rate; none of what lacks a rate of the grid.

        Args:
            repeats: also the repeated retrainings of structures that are made anew for every seed.
        """
        done, plan = self.table(), self.rows()
        have, first = set(done["key"]), dict[tuple, set[str]]()
        for row in (row for row in plan if row["tuned"]):
            first.setdefault((row["task"], row["structure"], row["index"]), set()).add(self.key(row))
        whole = {place: keys for place, keys in first.items() if keys <= have}
        kept = {key for keys in whole.values() for key in keys}
        for row in plan:
            again = self._seeded(self.structures[row["entry"]]) and not repeats
            if not row["tuned"] and not again and (row["task"], row["structure"], row["index"]) in whole:
                kept.add(self.key({**row, "lr": self._chosen(done, row)}))
        found = done[done["key"].isin(kept)]
        return choose_lr(found, by=("task", "structure", "index")) if len(found) else found

    def run(self, *, jobs: int = 1, tasks: Sequence[str] = ("*",), structures: Sequence[str] = ("*",)) -> pd.DataFrame:
        """Run what is not there yet; returns the table.

        Args:
            jobs: processes (joblib's; under ``joblib.parallel_config(backend="dask")`` the workers of a cluster).
            tasks, structures: patterns of names: run only these.
        """
        plan = self.rows(tasks, structures)
        searches = dict.fromkeys(need for row in plan for need in self.needs(row))
        missing = [need for need in searches if not self._searched(*need)]
        self.path.mkdir(parents=True, exist_ok=True)
        for _ in each(run_search, [(self, *need) for need in missing], jobs, "searches"):
            pass
        for tuned in (True, False):
            done = self.table()
            have = set(done["key"])
            stage = [row for row in plan if row["tuned"] == tuned]
            if not tuned:
                stage = [{**row, "lr": self._chosen(done, row)} for row in stage]
            todo = [row for row in stage if self.key(row) not in have]
            for row in each(run_row, [(self, row) for row in todo], jobs, "every rate" if tuned else "chosen rate"):
                with (self.path / "rows.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        table = self.table()
        if len(table):
            write_table(table, self.path / "study.parquet")
        return table

    def _chosen(self, done: pd.DataFrame, row: Row) -> float | None:
        """The rate that is best on validation, with the structure's first seed."""
        first = {**row, "seed": row["index"]}
        rates = self._rates(row["entry"], self.structures[row["entry"]])
        keys = {self.key({**first, "lr": rate}) for rate in rates}
        found = done[done["key"].isin(keys)]
        return None if rates[0] is None else float(choose_lr(found)["lr"].iloc[0])

    def needs(self, row: Row) -> Iterator[tuple[str, str, int]]:
        """(task, search, seed) that a row's structure is made of."""
        entry = self.structures[row["entry"]]
        if entry["kind"] in ("searched", "transfer"):
            yield row["source"] or row["task"], entry["search"], row["index"]
        elif entry["kind"] == "average" and row["source"] == "seeds":
            of = entry.get("of", self.seeds)
            first = row["index"] * of  # seed k is the average of the k-th so many searches
            yield from ((row["task"], entry["search"], seed) for seed in range(first, first + of))
        elif entry["kind"] == "average":
            yield from ((task, entry["search"], row["index"]) for task in self.tasks if task != row["task"])

    def folder(self, task: str, search: str, seed: int) -> Path:
        """Where a search lies."""
        return self.path / "searches" / search / task / f"seed{seed}"

    def _searched(self, task: str, search: str, seed: int) -> bool:
        """Whether this search is there, made with the settings that are declared now."""
        path = self.folder(task, search, seed)
        if not (path / "config.json").is_file():
            return False
        made = json.loads((path / "config.json").read_text(encoding="utf-8"))
        budget = Budget.parse(self.settings(search)["budget"], total=made["backbone_params"]).n_params
        wanted = {**self.settings(search), "budget": budget}
        wrong = {name: made.get(name) for name, value in wanted.items() if made.get(name) != value}
        if wrong:
            raise StudyError(f"{path} was searched with {wrong}, declared is otherwise; remove it to search anew")
        return True

    def result(self, task: str, search: str, seed: int) -> SearchResult:
        """A finished search; raises RunError."""
        return load_run(self.folder(task, search, seed))


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that may be empty, with types that say so."""
    kinds = {"budget": "Int64", "lr": "float64", "source": "string"}
    return table.astype({name: kind for name, kind in kinds.items() if name in table})
