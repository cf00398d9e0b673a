"""Grids of runs in one table: tasks × structures × budgets × seeds × learning rates, declared in a YAML file:

    backbone: pocket-t5                                # or {path: …, dtype: bfloat16, device: auto}
    tasks: {sentiment: pocket/sentiment, cola: {path: "${DATA}/cola", n_train: 2000}}
    space: [{pet: lora, ranks: [1, 2, 4, 8]}, {pet: bitfit}]   # or a name; "mixed" without it
    budgets: ["0.05%", "0.2%"]
    seeds: 3
    objective: {max_length: 64, pooling: mean}         # of searches, retrainings and baselines alike
    retrain: {steps: 300, batch_size: 32}
    lr: {pet: [1.0e-3, 3.0e-3], full: [5.0e-4]}        # each structure's rate is chosen on validation
    searches: {ours: {budget: "0.05%", steps: 300}}
    structures:
      full: {kind: reference}
      lora_qv: {kind: manual}
      random: {kind: random, seeds: 5}                 # made for each budget
      searched: {kind: searched, search: ours}

Every structure gets the same recipe and grid of learning rates; its own rate is chosen on the validation split. Kinds
that depend on a seed (searched, random, sensitivity, …) give a structure for each seed: seed k is search or draw k,
retrained with seed k at every rate. With ``repeats: n`` it is retrained n times in all, with seeds k + 1, k + 2, …;
this separates structures from retrainings and is left out of comparisons. Other kinds, and an average over all seeds,
give one structure: its first seed is run at every rate, the others at the chosen one.

Finished rows are never computed again, and unfinished searches and retrainings continue from their checkpoints, so a
study can be interrupted, killed, continued and extended. A row's key holds its
declaration and, from ``facts.json``, the checksums of backbone and data: if these change, rows are made anew.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from s3pet.errors import RunError, StudyError
from s3pet.files.kinds import RECORD, TEXT, check_record, mapping, optional, several, whole
from s3pet.files.reading import path_of, read_json, reading
from s3pet.files.states import changed_settings
from s3pet.files.writing import claim, write_json, write_table
from s3pet.gates import Budget
from s3pet.records import recorded
from s3pet.result import RESULTS_VERSION, SearchResult, load_run
from s3pet.searcher import make_settings
from s3pet.studies.cluster import processes
from s3pet.studies.comparison import append_row, as_table, discard, read_rows, row_key
from s3pet.studies.declaration import KINDS, check_file_name, check_names, check_study, read_declaration
from s3pet.studies.jobs import Row, hashes, open_facts, run_row, run_search
from s3pet.studies.validation import choose_lr
from s3pet.tuning import Recipe

PLACE = ("task", "structure", "index")  # what has a learning rate of its own
FACTS = {"declared": RECORD, "backbone": TEXT, "backbone_params": whole(1), "space": TEXT, "objective": RECORD}
FACTS["tasks"] = mapping(RECORD)


@dataclass(frozen=True)
class Study:
    """A grid of runs, as declared in a file.

    Attributes:
        backbone: what :func:`s3pet.load_backbone` opens, or its keywords (dtype, device, …) with the name as ``path``.
        tasks: name → what :func:`s3pet.load_task` opens, or its keywords with the name or folder as ``path``.
        structures: name → ``kind`` and its options, ``repeats``, and ``budgets`` and ``seeds`` of its own.
        objective, retrain: fields of ``ObjectiveSettings``, and of ``Recipe`` except seed and lr.
        recipes: task → fields of ``retrain`` that differ there.
        lr: kind of training (pet, head, full, adalora) or name of a structure → rates, of which validation chooses.
        searches: name → ``budget`` and fields of :class:`s3pet.searcher.Settings` except seed (``settings: paper`` for
            the preset); ``search``: those that all searches share.
        path: folder of rows, facts and searches: beside the file, with its name.
        part: names of tasks and of structures to look at; None: all.
    """

    backbone: Any
    tasks: Mapping[str, Any]
    structures: Mapping[str, Mapping[str, Any]]
    budgets: Sequence[Any] = ()
    seeds: int = 3
    space: Any = "mixed"
    objective: Mapping[str, Any] = field(default_factory=dict)
    retrain: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lr: Mapping[str, Sequence[float]] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    searches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Path = Path("study")
    part: tuple[Sequence[str], Sequence[str]] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study file. ``${NAME}`` in it is replaced from the environment when rows are run, not before.

        Raises:
            StudyError: no study file, or an unknown or unreadable key, kind, option or search in it.
        """
        path = path_of(path, StudyError)
        names = [name for name in cls.__dataclass_fields__ if name not in ("path", "part")]
        study = cls(**read_declaration(path, names, required=names[:3]), path=path.with_suffix(""))
        check_study(study)
        return study

    def only(self, *, tasks: Sequence[str] = ("*",), structures: Sequence[str] = ("*",)) -> Study:
        """Look at some tasks and structures of the study, by patterns of names; raises StudyError without any match."""
        part = []
        for what, names, patterns in (("task", self.tasks, tasks), ("structure", self.structures, structures)):
            several(TEXT).check(StudyError, **{f"{what}s": patterns})
            check_names([pattern for pattern in patterns if not fnmatch.filter(names, pattern)], names, what)
            part.append([name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)])
        return replace(self, part=(part[0], part[1]))

    def rows(self) -> list[Row]:
        """List what is to be run, one dict per retraining; ``lr`` is None unless rates are compared on it."""
        plan = []
        tasks, names = self.part or (self.tasks, self.structures)
        for name in names:
            entry = self.structures[name]
            seeded, rates = self.is_seeded(entry), self._rates(name)
            for budget, task in product(self.budgets_of(entry), tasks):
                for source, suffix in self._sources(entry, task):
                    label = " ".join(str(part) for part in (name, budget, suffix) if part)  # "moved 0.1% from sst2"
                    place: Row = {"task": task, "structure": label, "entry": name, "kind": entry["kind"]}
                    place |= {"budget": budget, "source": source, "lr": None}
                    for seed in range(entry.get("seeds", self.seeds)):
                        decides, index = seeded or seed == 0, seed if seeded else 0
                        run = {**place, "index": index, "seed": seed, "decides": decides, "repeat": False}
                        plan += [{**run, "lr": lr} for lr in rates] if decides else [run]
                        again = {**run, "decides": False, "repeat": True}
                        plan += [{**again, "seed": seed + more} for more in range(1, entry.get("repeats", 1))]
        return plan

    @property
    def facts(self) -> dict[str, Any]:
        """What :func:`s3pet.studies.jobs.open_facts` noted at the last run; empty for another declaration."""
        path = self.path / "facts.json"
        if not path.exists():
            return {}
        with reading(path, hint="Remove it; the next run writes it anew"):
            facts = read_json(path, FACTS, ("declared",))
            if facts["declared"] != self.declared():
                return {}
            return check_record(facts, FACTS, FACTS)

    def declared(self) -> dict[str, Any]:
        """What the facts belong to: the declared backbone, space and objective."""
        return {"backbone": self.backbone, "space": self.space, "objective": dict(self.objective)}

    def key(self, row: Row, facts: Mapping[str, Any]) -> str:
        """The key of a row, see :func:`s3pet.studies.comparison.row_key`; empty if its tasks were never opened."""
        entry, kind, needs = self.structures[row["entry"]], KINDS[row["kind"]], self.needs(row)
        tasks = facts.get("tasks", {})
        if any(tasks.get(n, {}).get("declared") != self.tasks[n] for n in (row["task"], *(task for task, *_ in needs))):
            return ""
        how = {name: entry[name] for name in ("kind", *kind.options) if name in entry}
        if entry["kind"] in ("manual", "reference"):
            how["name"] = entry.get("name", row["entry"])
        if entry["kind"] == "manual" and self.space != "mixed":  # keys of earlier versions had no space
            how["space"] = facts["space"]
        if kind.per_budget:
            how |= {"space": facts["space"], "budget": row["budget"], "index": row["index"]}
        if "search" in how:
            how["search"] = [self.settings(how["search"], seed) for _, _, seed in needs]
            how["tasks"] = [tasks[task]["fingerprint"] for task, _, _ in needs]
        return row_key(
            backbone=facts["backbone"],
            task=tasks[row["task"]]["fingerprint"],
            structure=how,
            recipe=recorded(Recipe(**self.recipe(row["task"]), seed=row["seed"], lr=row["lr"])),
            objective=facts["objective"],
        )

    def recipe(self, task: str) -> dict[str, Any]:
        """Keywords of the retraining on a task, without seed and learning rate."""
        return {**self.retrain, **self.recipes.get(task, {})}

    def settings(self, search: str, seed: int) -> dict[str, Any]:
        """All settings of a declared search, with its budget."""
        declared = {**self.search, **self.searches[search], "seed": seed}
        budget, preset = declared.pop("budget"), declared.pop("settings", "default")
        return {**asdict(make_settings(preset, **declared)), "budget": budget}

    def table(self) -> pd.DataFrame:
        """Read all rows that were ever run, at every learning rate; also those of earlier declarations."""
        return as_table([{"key": key, **row} for key, row in read_rows(self.path / "rows.jsonl").items()])

    def chosen(self, *, repeats: bool = False) -> pd.DataFrame:
        """Read the finished rows of what is declared now, at the learning rate that validation chose.

        Structures that lack a rate of their grid are left out; of those that diverged at every rate, the rows at the
        first one are kept. Repeated retrainings have ``repeat`` true, and come only with ``repeats=True``.
        """
        finished, rows = read_rows(self.path / "rows.jsonl"), []
        for key, row in self._at_chosen_rates(self.rows(), finished):
            if key in finished and (repeats or not row["repeat"]):
                labels = {name: value for name, value in row.items() if name not in ("budget", "decides")}
                rows.append({"key": key, **finished[key], **labels})
        return as_table(rows)

    def _at_chosen_rates(self, plan: Sequence[Row], finished: Mapping[str, Row]) -> list[tuple[str, Row]]:
        """Keys and rows of the structures that are finished at every rate of their grid, at the chosen rate."""
        facts, runs, rates, compared = self.facts, defaultdict(list), {}, []
        for row in plan:
            if row["decides"]:
                run = finished.get(self.key(row, facts), {})
                runs[_place(row)].append(run | {name: row[name] for name in (*PLACE, "seed", "lr")})
        for place, part in runs.items():
            if all("diverged" in run for run in part):
                rates[place] = part[0]["lr"]  # unless another one is chosen
                compared += [] if all(run["diverged"] for run in part) else [run for run in part if run["lr"]]
        if compared:
            chosen = choose_lr(as_table(compared), by=PLACE)
            rates |= {_place(run): run["lr"] for run in chosen.to_dict("records")}
        rows = [
            {**row, "lr": rates[place]}
            for row in plan
            if (place := _place(row)) in rates and (not row["decides"] or row["lr"] == rates[place])
        ]
        return [(self.key(row, facts), row) for row in rows]

    def run(
        self,
        *,
        jobs: int | None = None,
        scheduler: str | None = None,
        tasks: Sequence[str] = ("*",),
        structures: Sequence[str] = ("*",),
    ) -> pd.DataFrame:
        """Run what is not finished yet and write the chosen rows to ``rows.parquet``; returns `table`.

        A retraining that diverges is a row too, with ``diverged`` true. A search that diverges is reported, and rows
        that need it are left out.

        Args:
            jobs: how many runs at a time, in processes of one thread; None: one, or with a scheduler one a worker.
            scheduler: address of a Dask scheduler, ``tcp://host:port``; its workers run everything, and need no disk
                that is shared with this process (:mod:`s3pet.studies.cluster`). None: this machine.
            tasks, structures: patterns of names: run only these.

        Raises:
            StudyError: a variable of the environment is not set, or a row cannot be run; on a cluster also if no
                scheduler answers, no worker is left, or a worker has another version, backbone or task.
            RunError: another process runs this study, or its folder cannot be written to.
        """
        optional(whole(1)).check(StudyError, jobs=jobs)
        optional(TEXT).check(StudyError, scheduler=scheduler)
        part, path = self.only(tasks=tasks, structures=structures), self.path / "rows.jsonl"
        plan = part.rows()
        with claim(self.path, "study"), processes(jobs, scheduler) as each:
            searches = list(dict.fromkeys(need for row in plan for need in self.needs(row)))
            facts, failed = open_facts(self, [row["task"] for row in plan] + [task for task, _, _ in searches]), set()
            write_json(facts, self.path / "facts.json")
            unsearched = [(self, *need) for need in searches if not self.is_searched(*need)]
            for need, problem in each(run_search, unsearched, "searches"):
                if problem:
                    warnings.warn(f"search {need[1]!r} on {need[0]!r}, seed {need[2]}: {problem}", stacklevel=2)
                    failed.add(need)
            plan = [row for row in plan if failed.isdisjoint(self.needs(row))]
            for what in ("every rate", "chosen rate"):
                finished = read_rows(path)
                stage = [(self.key(row, facts), row) for row in plan if row["decides"]]
                stage = self._at_chosen_rates(plan, finished) if what == "chosen rate" else stage
                unfinished = {key: (self, row, key) for key, row in stage if key not in finished}
                for row in each(run_row, list(unfinished.values()), what):
                    append_row(path, row)
                    discard(self.unfinished(row["key"]))
            table = self.chosen(repeats=True)
            if len(table):
                write_table(table, self.path / "rows.parquet")
            return self.table()

    def needs(self, row: Row) -> list[tuple[str, str, int]]:
        """(task, search, seed) of each search that a row's structure is made from."""
        entry, over = self.structures[row["entry"]], self.structures[row["entry"]].get("over")
        tasks = [row["task"] if over else row["source"] or row["task"]]
        if over == "others":
            tasks = [task for task in self.tasks if task != row["task"]]
        seeds = range(self.seeds) if over == "seeds" else [row["index"]]
        return [(task, entry["search"], seed) for task in tasks for seed in seeds] if "search" in entry else []

    def folder(self, task: str, search: str, seed: int) -> Path:
        """The run folder of a search."""
        names = (check_file_name(name, what) for name, what in ((search, "search"), (task, "task")))
        return self.path.joinpath("searches", *names, f"seed{seed}")

    def unfinished(self, key: str) -> Path:
        """The folder where a row keeps checkpoints until it is finished."""
        return self.path / "unfinished" / key

    def result(self, task: str, search: str, seed: int) -> SearchResult:
        """Open a finished search; raises RunError."""
        return load_run(self.folder(task, search, seed))

    def is_searched(self, task: str, search: str, seed: int) -> bool:
        """Whether a search is finished, and was made with the backbone, data, space and settings of now; else warns."""
        path, facts = self.folder(task, search, seed), self.facts
        try:
            run = load_run(path)
        except RunError as error:
            if (path / "config.json").exists():
                warnings.warn(f"{path} is searched again: {error}", stacklevel=2)
            return False
        stopped, wanted = run.metrics.get("stopped"), self.settings(search, seed) | hashes(facts, task)
        wanted["budget"] = Budget.parse(wanted["budget"], total=facts["backbone_params"]).n_params
        wanted["results_version"] = RESULTS_VERSION
        differ = changed_settings({name: run.config.get(name) for name in wanted}, wanted)
        if stopped or differ:
            why = f"it was {stopped}" if stopped else f"other settings ({', '.join(differ)})"
            warnings.warn(f"{path} is searched again: {why}", stacklevel=2)
        return not (stopped or differ)

    @staticmethod
    def is_seeded(entry: Mapping[str, Any]) -> bool:
        """Whether every seed is a structure of its own."""
        return KINDS[entry["kind"]].per_seed and entry.get("over") != "seeds"

    def budgets_of(self, entry: Mapping[str, Any]) -> Sequence[Any]:
        """The budgets for which a structure is made; one that is None for kinds without budget."""
        return entry.get("budgets", self.budgets) if KINDS[entry["kind"]].per_budget else [None]

    def _sources(self, entry: Mapping[str, Any], task: str) -> list[tuple[str | None, str]]:
        """What a structure is transferred from or averaged over, and how that is written in its name."""
        if entry["kind"] == "transfer":
            return [(name, f"from {name}") for name in entry.get("sources", self.tasks) if name != task]
        return [(entry["over"], f"over {entry['over']}")] if "over" in entry else [(None, "")]

    def _rates(self, name: str) -> Sequence[float | None]:
        if self.structures[name].get("name", name) == "zero-shot":
            return [None]
        return self.lr.get(name) or self.lr.get(self.structures[name]["kind"]) or self.lr.get("pet") or [None]


def _place(row: Mapping[Any, Any]) -> tuple:
    return tuple(row[name] for name in PLACE)
