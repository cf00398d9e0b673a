"""A tabular benchmark of structures: the test scores of many trained structures, to look up instead of to train.

    bench = Bench.load("pocket")
    bench.lookup(structure, "sentiment").score            # was trained: mean of its retrainings
    score, error = bench.predict(structure, "sentiment")  # was not: a surrogate
    bench.judge({"mine": structures, "random": others}, "sentiment")

A bench is a folder (``data/bench/<name>``):

    bench.json          model, space, tasks, recipe, learning rates, versions
    structures.parquet  structure (hash of its candidates), n_params, candidates (their names)
    rows.parquet        one training each: task, structure, kind, budget, lr, seed, validation, score (test) …
    solo.parquet        optional: utility tables of all tasks

Retraining seed 0 was run at every learning rate; validation chooses one of them, and repeats (seed 1, 2, …) were run at
that one. A structure that is not in the table is an error, never a silent guess.

Source: Ying et al. 2019 (arXiv:1902.09635), tables; Zela et al. 2022 (arXiv:2008.09777), surrogates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from s3pet.errors import StructureMismatchError, StudyError, nearest, shown
from s3pet.files.kinds import FLAG, instance, one_of
from s3pet.files.reading import read_json, read_table, reading
from s3pet.space import Space, layers_of
from s3pet.structure import Structure
from s3pet.studies.bench_files import VERSION, check_tables, find_folder, read_space, structure_hash
from s3pet.studies.surrogate import MODEL, MODELS, Surrogate, families, jaccard, presence
from s3pet.studies.validation import choose_lr, failed_runs

DRAWS = 2000  # of the repeated structures, for the interval of a ceiling


@dataclass(frozen=True)
class Record:
    """What the table says about a structure on a task, at the learning rate that validation chose.

    Attributes:
        score, error: mean test score of its retrainings, and its standard error.
        error_from: ``"repeats"`` of this structure, or ``"noise"``: it was trained once, and the error is the standard
            deviation between retrainings of the whole bench (`Bench.noise`; nan if nothing was repeated).
        retrainings, validation, lr: how many, their mean validation score, and their learning rate.
        rows: all rows of the structure on this task, at every learning rate.
    """

    structure: str
    task: str
    score: float
    error: float
    error_from: str
    retrainings: int
    validation: float
    lr: float
    rows: pd.DataFrame = field(repr=False, compare=False)


@dataclass(frozen=True)
class Prediction:
    """An estimated score; unpacks as ``score, error``. ``warning`` says how it extrapolates, None if it does not."""

    score: float
    error: float
    warning: str | None = None

    def __iter__(self) -> Iterator[float]:
        return iter((self.score, self.error))


@dataclass(frozen=True)
class Noise:
    """How much the scores of a task differ, and what that allows a prediction.

    Attributes:
        structures, repeated: how many, and how many of them were retrained more than once; without any, the rest is
            nan.
        between, within: standard deviations between structures, and between retrainings of one structure.
        r2: what perfect knowledge of every structure's mean would reach against scores of one retraining each, which is
            the share of variance that is between structures.
        r2_low, r2_high: 95 % of draws of the repeated structures; wide where they are few.
        spearman: the same as a rank correlation, 6/π · asin(√r2 / 2), which holds for normal scores.
    """

    structures: int
    repeated: int
    between: float = math.nan
    within: float = math.nan
    r2: float = math.nan
    r2_low: float = math.nan
    r2_high: float = math.nan
    spearman: float = math.nan


@dataclass(frozen=True, eq=False)
class Bench:
    """A table of trained structures.

    Attributes:
        name, path: of the bench, and its folder.
        space: the candidates that structures are made of. tasks: name → fingerprint and metric.
        recipe, rates: how structures were trained: keywords of :func:`s3pet.retrain`, and the learning rates.
        rows, structures, solo: the tables; ``solo`` is None if the bench has none.
        config: all of ``bench.json``.
    """

    name: str
    path: Path
    space: Space
    tasks: Mapping[str, Mapping[str, Any]]
    recipe: Mapping[str, Any]
    rates: tuple[float, ...]
    rows: pd.DataFrame = field(repr=False)
    structures: pd.DataFrame = field(repr=False)
    solo: pd.DataFrame | None = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    _surrogates: dict[tuple[str, str], Surrogate] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def load(cls, path_or_name: str | Path) -> Bench:
        """Open a bench and check it: format, columns, hashes, costs and scores.

        Args:
            path_or_name: a folder, or the name of one in ``data/bench``.

        Raises:
            RunError: no such bench, or a file that is missing or cannot be read.
            StudyError: its tables are not those of a bench, or contradict each other.
        """
        path = find_folder(path_or_name)
        with reading(path / "bench.json", hint="Copy the folder again"):
            config = read_json(path / "bench.json")
        names = ["structures", "rows", *(["solo"] if (path / "solo.parquet").exists() else [])]
        tables = dict[str, pd.DataFrame]()
        for name in names:
            with reading(path / f"{name}.parquet", hint="Copy the folder again"):
                tables[name] = read_table(path / f"{name}.parquet", {})
        structures, rows, solo = tables["structures"], tables["rows"], tables.get("solo")
        with reading(path, StudyError, f"a bench of version ≤ {VERSION}"):
            space = read_space(config)
            check_tables(config, space, structures, rows, solo)
        rates = tuple(float(rate) for rate in config["rates"])
        return cls(
            config["name"], path, space, config["tasks"], config["recipe"], rates, rows, structures, solo, config
        )

    def choose(self, task: str | None = None) -> pd.DataFrame:
        """The retrainings at each structure's best rate by validation, a part of ``rows``; None: of all tasks.

        Structures of which every rate has a diverged training are left out.
        """
        return self._chosen.copy() if task is None else self._chosen[self._chosen["task"].eq(self._task(task))]

    def structure(self, key: str) -> Structure:
        """The structure with this hash, to look at, draw or retrain."""
        names = set(self.structures["candidates"].iloc[self._number(key)])
        chosen = tuple(candidate for candidate in self.space if candidate.name in names)
        origin = {"kind": "bench", "bench": self.name, "structure": key}
        return Structure(chosen, self.space.model_id, self.space.name, None, origin, layers=layers_of(self.space))

    def lookup(self, structure: Structure | str, task: str) -> Record:
        """What the table says about a structure, given as such or by its hash.

        Raises:
            StudyError: it was not trained on this task (the message names the nearest one that was), each of its rates
                diverged, or no such task.
            StructureMismatchError: a structure of another backbone or space.
        """
        (key, own), rows = self._resolve(structure), self.rows[self.rows["task"].eq(self._task(task))]
        rows, chosen = (part[part["structure"].eq(key)] for part in (rows, self.choose(task)))
        if rows.empty:
            raise StudyError(self._unknown(own, key, task))
        if chosen.empty:
            raise StudyError(f"of {key} on {task!r} a training diverged at every learning rate; it has no score")
        n, within = len(chosen), self.noise(task).within
        error = float(chosen["score"].std() / math.sqrt(n)) if n > 1 else within
        score, validation = (float(chosen[name].mean()) for name in ("score", "validation"))
        source = "repeats" if n > 1 else "noise"
        return Record(key, task, score, error, source, n, validation, float(chosen["lr"].iloc[0]), rows)

    def noise(self, task: str) -> Noise:
        """How much scores differ between structures and between retrainings, and what that allows a prediction.

        The variance between retrainings is pooled over the repeated structures, as if it were the same for all. The one
        between structures is that of their means, less the part that retrainings have in it.
        """
        runs = self.choose(self._task(task)).groupby("structure")["score"].agg(["mean", "var", "size"])
        repeated = runs[runs["size"] > 1]
        if repeated.empty or len(runs) < 2:
            return Noise(len(runs), len(repeated))
        draws = np.random.default_rng(0).integers(len(repeated), size=(DRAWS, len(repeated)))
        draws = np.vstack([np.arange(len(repeated)), draws])  # the first: all of them, once
        freedom = repeated["size"].to_numpy() - 1
        within = (repeated["var"].to_numpy() * freedom)[draws].sum(1) / freedom[draws].sum(1)
        between = np.maximum(runs["mean"].var() - within * (1 / runs["size"]).mean(), 0.0)
        total = between + within
        r2 = between / np.where(total > 0, total, 1.0)
        low, high = np.quantile(r2[1:], [0.025, 0.975])
        spearman = 6 / math.pi * math.asin(math.sqrt(r2[0]) / 2)
        numbers = [float(n) for n in (between[0] ** 0.5, within[0] ** 0.5, r2[0], low, high, spearman)]
        return Noise(len(runs), len(repeated), *numbers)

    def predict(
        self, structure: Structure | str, task: str, *, extrapolate: bool = False, model: str = MODEL
    ) -> Prediction:
        """Estimate a score from the scores of other structures (:mod:`s3pet.studies.surrogate`).

        Args:
            structure, task: as for :meth:`lookup`; a structure of the table should be looked up.
            extrapolate: also where the table has nothing alike; the prediction then carries a warning, and its error
                is too small.
            model: one of :data:`s3pet.studies.surrogate.MODELS`; the first use fits it, in seconds.

        Returns:
            The expected test score of one retraining, and its standard error.

        Raises:
            StudyError: the structure is unlike those of the table: it has more or fewer parameters than all of them, or
                it shares less with the most similar one than 99 % of them do, in how parameters are distributed over
                stacks, roles and PET modules.
            StructureMismatchError: a structure of another backbone or space.
        """
        _, own = self._resolve(structure)
        FLAG.check(StudyError, extrapolate=extrapolate)
        surrogate, has = self.surrogate(self._task(task), model=model), presence(self.space, [own.names])
        sizes, reasons = surrogate.has @ self.space.costs.numpy(), list[str]()
        low, high = int(sizes.min()), int(sizes.max())
        if not low <= own.n_params <= high:
            reasons.append(f"it has {own.n_params:,} parameters, those of the table {low:,} to {high:,}")
        if (distance := float(surrogate.distance(has)[0])) > surrogate.limit:
            what = f"{distance:.0%} of its parameters are at other places than those of the most similar structure"
            reasons.append(f"{what}, which in the table happens to 1 % ({surrogate.limit:.0%} or more)")
        warning = f"{structure!r} is unlike the structures of bench {self.name!r} on {task!r}: {'; '.join(reasons)}"
        if reasons and not extrapolate:
            raise StudyError(f"{warning}. Retrain it, or pass extrapolate=True for a prediction of unknown error.")
        score, error = (float(part[0]) for part in surrogate.predict(has))
        return Prediction(score, error, warning if reasons else None)

    def surrogate(self, task: str, *, model: str = MODEL) -> Surrogate:
        """The fitted surrogate of a task, with its held-out predictions; made once."""
        one_of(MODELS).check(StudyError, model=model)
        if (task, model) not in self._surrogates:
            scores = self.choose(task).groupby("structure", sort=False)["score"].mean()
            has = self._has[[self._number(key) for key in scores.index]]
            family = families(has, self._parents(task, list(scores.index)))
            solo = None if self.solo is None else self.solo[self.solo["task"].eq(task)]
            solo = None if solo is None or solo.empty else solo
            fitted = Surrogate(self.space, has, scores.to_numpy(float), family, solo=solo, model=model)
            self._surrogates[task, model] = fitted
        return self._surrogates[task, model]

    def report(self, *, models: Sequence[str] = (MODEL,)) -> pd.DataFrame:
        """How far scores of the tasks can be predicted, and how far the surrogate predicts them.

        Returns:
            A row per task and model: ``task, model``; the columns of `Noise` (``r2`` … ``spearman`` as
            ``ceiling_r2`` …); of held-out predictions ``r2, spearman, rmse, coverage`` (share of scores within
            1.96 standard errors); ``families`` that were held out; and ``rule_r2, rule_spearman``, of a line through
            the number of layers with a LoRA in the first stack, held out likewise.
        """
        reports = []
        for task in self.tasks:
            noise = asdict(self.noise(task))
            noise |= {f"ceiling_{name}": noise.pop(name) for name in ("r2", "r2_low", "r2_high", "spearman")}
            for model in models:
                reports.append({"task": task, "model": model, **noise, **self.surrogate(task, model=model).quality()})
        return pd.DataFrame(reports)

    def judge(
        self, methods: Mapping[str, Sequence[Structure | str]], task: str, *, extrapolate: bool = False
    ) -> pd.DataFrame:
        """Score structures that search methods found: from the table, else predicted.

        Args:
            methods: name → its structures, one for each seed of the method.
            task: of the bench. extrapolate: as for :meth:`predict`.

        Returns:
            A row per structure, in the form of :func:`s3pet.compare`, so that
            :func:`s3pet.studies.statistics.summary` compares the methods: ``task, structure`` (the method), ``kind,
            index, seed`` (which of its structures), ``n_params, score, error, source`` ("table" or "surrogate"),
            ``warning`` (None unless extrapolated), ``key`` (the structure's hash) and ``diverged`` (every rate of the
            table diverged: it has no score, and is not predicted).

        Raises:
            StudyError: as :meth:`predict`, if a structure is not in the table.
        """
        scored, judged = set(self.choose(self._task(task))["structure"]), []
        trained = set(self.rows.loc[self.rows["task"].eq(task), "structure"])
        FLAG.check(StudyError, extrapolate=extrapolate)
        if not isinstance(methods, Mapping) or not methods:
            raise StudyError(f"methods must be a mapping of names to lists of structures, got {shown(methods)}")
        for method, structures in methods.items():
            is_list = isinstance(structures, Iterable) and not isinstance(structures, (str, Structure))
            if not is_list or not len([*structures]):
                raise StudyError(f"method {method!r} must have a list of structures, not {structures!r}")
            for seed, (key, structure) in enumerate(map(self._resolve, structures)):
                score: Any = Prediction(math.nan, math.nan)  # of one that diverged at every rate
                if key in scored:
                    score = self.lookup(key, task)
                elif key not in trained:
                    score = self.predict(structure, task, extrapolate=extrapolate)
                row = {"task": task, "structure": method, "kind": structure.origin.get("kind", "custom"), "index": seed}
                row |= {"seed": seed, "n_params": structure.n_params, "score": score.score, "error": score.error}
                row |= {"source": "table" if key in trained else "surrogate"}
                row |= {"warning": getattr(score, "warning", None), "key": key, "diverged": key in trained - scored}
                judged.append(row)
        return pd.DataFrame(judged)

    def __repr__(self) -> str:
        counts = f"{len(self.structures):,} structures, {len(self.rows):,} trainings, tasks {', '.join(self.tasks)}"
        return f"Bench({self.name!r}: {self.space.model_id}, {counts})"

    # -- the tables, indexed

    @cached_property
    def _chosen(self) -> pd.DataFrame:
        """See `choose`."""
        failed = failed_runs(self.rows).rename("failed")
        places = [self.rows[name] for name in ("task", "structure")]
        by_rate = failed.groupby([*places, self.rows["lr"]]).transform("any")
        return choose_lr(self.rows[~by_rate.groupby(places).transform("all")])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.structures["structure"])}

    @cached_property
    def _has(self) -> np.ndarray:
        return presence(self.space, list(self.structures["candidates"]))

    def _task(self, task: str) -> str:
        if not one_of(self.tasks).holds(task):
            raise StudyError(f"bench {self.name!r} has no task {task!r}; {nearest(task, self.tasks)}")
        return task

    def _number(self, key: str) -> int:
        if not isinstance(key, str) or key not in self._numbers:
            how = "pass a Structure, or one of bench.structures"
            raise StudyError(f"bench {self.name!r} has no structure {key!r}; {how}")
        return self._numbers[key]

    def _resolve(self, structure: Structure | str) -> tuple[str, Structure]:
        """The hash of a structure, known or not, and itself; raises an error if it is not of this bench's space."""
        if isinstance(structure, str):
            return structure, self.structure(structure)
        instance(Structure, "a structure, or its hash in bench.structures").check(StudyError, structure=structure)
        here = {c.name: (c.path, c.n_params, c.d_in, c.d_out) for c in self.space}
        wrong = [c.name for c in structure if here.get(c.name) != (c.path, c.n_params, c.d_in, c.d_out)]
        if wrong or structure.model_id != self.space.model_id:
            what = f"{len(wrong)} candidates that are not in its space ({', '.join(wrong[:3])})"
            raise StructureMismatchError(
                f"bench {self.name!r} is about {self.space.model_id!r}; {structure!r} was made for "
                f"{structure.model_id!r}, its candidates: {what if wrong else 'all there'}. "
                "structure.retarget(bench.space) carries it over."
            )
        return structure_hash(structure.names), structure

    def _unknown(self, structure: Structure, key: str, task: str) -> str:
        """What to say of a structure that was not trained on a task."""
        there = [self._number(other) for other in self.choose(task)["structure"].unique()]
        overlap = jaccard(presence(self.space, [structure.names]), self._has[there])[0]
        other = self.structures["structure"].iloc[there[int(overlap.argmax())]]
        return (
            f"structure {key} was not trained on {task!r} in bench {self.name!r}; the nearest that was is {other} "
            f"(Jaccard {overlap.max():.2f}). bench.predict(structure, {task!r}) estimates its score."
        )

    def _parents(self, task: str, keys: list[str]) -> list[int | None]:
        """Index of the structure whose hash stands in the origin of each, None without one."""
        numbers = {key: number for number, key in enumerate(keys)}
        origins = self.choose(task).drop_duplicates("structure").set_index("structure")["origin"].astype(str)
        words = [origins[key].split() for key in keys]
        return [next((numbers[word] for word in part if word in numbers), None) for part in words]
