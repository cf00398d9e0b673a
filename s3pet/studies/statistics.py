"""What a table of retrainings shows, and how surely: means, intervals, paired tests, the share of fine-tuning kept.

Reads the tidy table of :func:`s3pet.compare`, one row per retraining: ``task, structure, kind, index`` (which of
several structures of that name), ``seed`` (of the retraining), ``n_params, score`` (test split), and where there are
any ``budget, head_params, lr, validation, seconds``. Other columns are ignored.

How intervals and tests are made, and what few runs cannot show: :mod:`s3pet.studies.resampling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from s3pet.errors import StudyError, nearest
from s3pet.studies.resampling import flips, holm, interval, p_value, splits

if TYPE_CHECKING:
    import pandas as pd

Baseline = str | Mapping[str, str] | Callable[[str], str | None]

ALTERNATIVES = ("two-sided", "greater", "less")
COMPARED = ("baseline", "difference", "difference_low", "difference_high", "pairs", "p", "p_floor", "p_holm")


def summary(
    table: pd.DataFrame,
    *,
    by: Sequence[str] = ("task", "structure"),
    baseline: Baseline | None = None,
    full: str = "full",
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
    alternative: str = "two-sided",
    paired: bool = True,
    unit: str = "run",
) -> pd.DataFrame:
    """Means and intervals of groups of runs and, with a baseline, paired differences and how surely they are none.

    A paired test flips the signs of differences between runs of one task and retraining seed; several runs of a side
    with the same seed (three searches, five random structures) are averaged first. So it speaks of *these* structures
    under the noise of retraining. ``paired=False`` exchanges runs of the two sides within a task instead; where a
    side has several structures, the runs of each are averaged first. So it speaks of *another search* (against another
    random structure), and its smallest p is one in C(n + m, n): 1/56 for 3 searches and 5 random structures.

    All permutations are counted up to 2^18 of them; of more, ``draws`` are taken and p is (1 + hits)/(1 + draws).
    Two-sided p are twice the smaller one-sided p.

    Args:
        table: one row per run, see above, at one learning rate (:func:`s3pet.studies.validation.choose_lr`).
        by: columns of a group. Without ``"task"``, a group's score is the mean over its tasks of the mean over runs;
            `over_tasks` also sees to it that the tasks are the same for all.
        baseline: what to compare with: a structure's name; or a mapping or function from a structure to its own
            baseline (``{"searched 0.01%": "random 0.01%"}``; structures without one, or with None, are not compared).
            Columns of ``by`` other than task, structure and kind (a budget) have to agree, unless the baseline has no
            value there.
        full: the structure whose mean score on the same tasks is 1 in ``kept``.
        confidence: level of the intervals, in (0, 1).
        draws, seed: of the bootstrap, and of permutations that are too many to count.
        alternative: ``"greater"`` for a one-sided test that the structure beats its baseline, ``"less"``, or both.
        paired: see above.
        unit: what the intervals of scores resample: ``"run"``; or ``"structure"``, where a group has several: their
            means over seeds. Runs of one structure resemble each other, so for a statement about another search the
            first is too narrow. Intervals of differences resample what is permuted: pairs, or the units of a side.

    Returns:
        One row per group, best first within a task: ``by``, ``kind, budget, n_params`` (mean), ``head_params, score,
        spread, low, high, kept, runs, seconds`` (mean). ``spread`` is the standard deviation over runs; of a mean over
        tasks, that with one run on each. ``kept`` is score / score of ``full``, nan without it or if it is not > 0. An
        interval is nan if a task has one run only. With a baseline also ``baseline, difference`` (mean over pairs, then
        over tasks; nan if a task has none), its interval ``difference_low, difference_high``, ``pairs`` (not for
        unpaired), ``p, p_floor`` (the smallest p that so many runs can give) and ``p_holm`` (Holm's correction for all
        comparisons in this table).

    Raises:
        StudyError: a column is missing, a score is nan, a run is there twice (as with several learning rates), or a
            baseline or option is not known.
    """
    import pandas as pd

    by = list(dict.fromkeys(by))
    for name, value, known in (("alternative", alternative, ALTERNATIVES), ("unit", unit, ("run", "structure"))):
        if value not in known:
            raise StudyError(f"{name}={value!r} is not one of {', '.join(known)}")
    if not 0 < confidence < 1 or draws < 1:
        raise StudyError(f"expected a confidence between 0 and 1 and draws ≥ 1, got {confidence} and {draws}")
    table = checked(table, ("task", "structure", "kind", "seed", "n_params", "score", *by))
    _refuse_twice(table, by)
    whole = table[table["structure"] == full].groupby("task", observed=True)["score"].mean()
    options = {"confidence": confidence, "draws": draws, "seed": seed}
    rows, given = [], _baselines(table, by, baseline)
    for key, runs in table.groupby(by, sort=False, dropna=False, observed=True):
        row = dict(zip(by, key, strict=True)) | _describe(runs, whole, unit, options)
        if baseline is not None:
            other = given.get(row["structure"])
            row |= dict.fromkeys(COMPARED, np.nan) | {"baseline": other, "pairs": None}
            if other is not None:
                against = _same(table[table["structure"] == other], row, by)
                row |= _compare(runs, against, paired, alternative, options)
        rows.append(row)
    found = pd.DataFrame(rows)
    found = found.astype({"budget": "Int64"} | ({"pairs": "Int64"} if baseline is not None else {}))
    if baseline is not None:
        found["p_holm"] = holm(found["p"])
    order = [name for name in by if name not in ("structure", "kind")]
    return found.sort_values([*order, "score"], ascending=[True] * len(order) + [False], ignore_index=True)


def over_tasks(table: pd.DataFrame, *, tasks: Iterable[str] | None = None, **options: Any) -> pd.DataFrame:
    """The same for the mean over tasks, every task weighing the same.

    Args:
        table: as for `summary`.
        tasks: which; None: those that every group of the table was run on. How many stands in the column ``task``; to
            keep a structure that ran on few tasks from shortening the list for all, leave it out of the table.
        **options: as for `summary`; ``by`` without ``"task"``.

    Returns:
        As `summary`, with ``task`` = "mean of 6". ``kept`` is a ratio of means.

    Raises:
        StudyError: as `summary`; or there is no task that all have, or a group lacks one of ``tasks``: who lacks which.
    """
    by = [name for name in options.pop("by", ("structure",)) if name != "task"]
    table = checked(table, ("task", *by), finite=())
    given: Any = table.groupby(by, sort=False, dropna=False, observed=True)["task"].unique()
    names = {", ".join(map(str, key if isinstance(key, tuple) else [key])): {*found} for key, found in given.items()}
    every = list(table["task"].unique())
    wanted = [name for name in every if all(name in found for found in names.values())] if tasks is None else [*tasks]
    lacks = {key: [task for task in (wanted or every) if task not in found] for key, found in names.items()}
    text = "; ".join(f"{key} lacks {', '.join(lost)}" for key, lost in lacks.items() if lost)
    if text or not wanted:
        raise StudyError(
            f"not everything was run on the same tasks: {text}; leave these out of the table, or the tasks"
        )
    found = summary(table[table["task"].isin(wanted)], by=by, **options)
    found.insert(0, "task", f"mean of {len(wanted)}")
    return found


@dataclass(frozen=True)
class Wins:
    """On how many tasks a structure is better than its baseline.

    Attributes:
        tasks: on which both were run (paired: with a seed in common).
        better, worse: by the mean difference.
        significant, significantly_worse: of these, with p < alpha.
        significant_holm: of the better ones, with p < alpha after Holm's correction over the tasks.
        attainable: tasks with enough runs for p < alpha. Where it is less than ``tasks``, significant wins are bounded
            by the number of runs, not by the structures.
        table: the rows of `summary` behind these numbers.
    """

    tasks: int
    better: int
    worse: int
    significant: int
    significantly_worse: int
    significant_holm: int
    attainable: int
    table: pd.DataFrame = field(repr=False, compare=False)


def wins(table: pd.DataFrame, structure: str, baseline: str, alpha: float = 0.05, **options: Any) -> Wins:
    """Count the tasks on which a structure is better than a baseline, and significantly so.

    Args:
        table, **options: as for `summary`.
        structure, baseline: names.
        alpha: level of the test on each task.

    Raises:
        StudyError: as `summary`.
    """
    found = summary(table, baseline={structure: baseline}, **options)
    found = found[found["structure"].eq(structure) & found["difference"].notna()].reset_index(drop=True)
    better, worse, sure = found["difference"] > 0, found["difference"] < 0, found["p"] < alpha
    return Wins(
        tasks=len(found),
        better=int(better.sum()),
        worse=int(worse.sum()),
        significant=int((better & sure).sum()),
        significantly_worse=int((worse & sure).sum()),
        significant_holm=int((better & (found["p_holm"] < alpha)).sum()),
        attainable=int((found["p_floor"] < alpha).sum()),
        table=found,
    )


def checked(table: Any, columns: Iterable[str], finite: Iterable[str] = ("score",)) -> pd.DataFrame:
    """A copy with all ``columns``, with those that may be absent, and numbers as plain floats; raises StudyError."""
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise StudyError(
            f"expected a DataFrame with one row per run, as s3pet.compare gives, got {type(table).__name__}"
        )
    missing = [f"{name!r} ({nearest(name, map(str, table))})" for name in dict.fromkeys(columns) if name not in table]
    if missing:
        raise StudyError(f"the table of runs has no column {', '.join(missing)}; it has {', '.join(map(str, table))}")
    if table.empty:
        raise StudyError("the table of runs is empty; expected one row per run, as s3pet.compare gives")
    table = table.reset_index(drop=True)
    for name, value in (("index", 0), ("budget", pd.NA), ("head_params", pd.NA), ("seconds", np.nan), ("lr", np.nan)):
        table[name] = table.get(name, value)
    table["budget"] = pd.to_numeric(table["budget"]).astype("Int64")
    for name in {"score", "validation", "n_params", "head_params", "seconds", "lr"} & {*table}:
        table[name] = pd.to_numeric(table[name]).astype("Float64").to_numpy(float, na_value=np.nan)
    for name in finite:
        lost = table.loc[~np.isfinite(table[name]), "structure"].unique().tolist()
        if lost:
            raise StudyError(f"{name} is not a number in runs of {lost}; drop these runs, or give them a score")
    return table


def _refuse_twice(table: pd.DataFrame, by: list[str]) -> None:
    keys = list(dict.fromkeys(["task", "structure", "index", "seed", *by]))
    twice = table[table.duplicated(keys, keep=False)]
    if twice.empty:
        return
    run = twice[twice[keys].astype(str).eq(twice[keys].astype(str).iloc[0]).all(axis=1)]
    what = ", ".join(f"{name} {run[name].iloc[0]}" for name in ("task", "structure", "index", "seed"))
    differ = [name for name in ("lr", "budget", "kind", "n_params") if run[name].nunique(dropna=False) > 1]
    if "lr" in differ:
        hint = "at several learning rates; s3pet.studies.validation.choose_lr(table) keeps one"
    else:
        hint = (
            f"with several values of {differ[0]}; add it to by=" if differ else "; drop the duplicates, or number index"
        )
    raise StudyError(f"{len(run)} rows are the same run ({what}) {hint}")


def _baselines(table: pd.DataFrame, by: list[str], baseline: Baseline | None) -> dict[str, str]:
    """Structure → what it is compared with."""
    if baseline is None:
        return {}
    if "structure" not in by:
        raise StudyError(f"a baseline is a structure, and by={by} does not tell structures apart; add 'structure'")
    names = [str(name) for name in table["structure"].unique()]
    if isinstance(baseline, str):
        given: dict[str, str | None] = {name: baseline for name in names if name != baseline} or {baseline: baseline}
    elif isinstance(baseline, Mapping):
        given = dict(baseline)
    else:
        given = {name: baseline(name) for name in names}
    for name in (name for pair in given.items() for name in pair):
        if name is not None and name not in names:
            raise StudyError(f"the table has no structure {name!r}; {nearest(name, names)}")
    return {name: other for name, other in given.items() if other is not None and other != name}


def _same(runs: pd.DataFrame, row: Mapping[str, Any], by: Iterable[str]) -> pd.DataFrame:
    """The runs of a baseline that belong to a group."""
    for name in by:
        if name not in ("structure", "kind") and runs[name].notna().any():
            runs = runs[runs[name].eq(row[name]).fillna(False).astype(bool)]
    return runs


def _describe(runs: pd.DataFrame, whole: pd.Series, unit: str, options: Mapping[str, Any]) -> dict[str, Any]:
    import pandas as pd

    scores = [part.to_numpy() for _, part in runs.groupby("task", observed=True)["score"]]
    score = float(np.mean([part.mean() for part in scores]))
    variances = [part.var(ddof=1) if len(part) > 1 else np.nan for part in scores]
    low, high = interval(_units(runs) if unit == "structure" else scores, **options)
    reference = whole.reindex(runs["task"].unique()).mean(skipna=False)
    budgets = runs["budget"].unique()
    return {
        "kind": ", ".join(map(str, runs["kind"].unique())),
        "budget": budgets[0] if len(budgets) == 1 else pd.NA,
        "n_params": runs.groupby("task", observed=True)["n_params"].mean().mean(),
        "head_params": runs["head_params"].iloc[0],
        "score": score,
        "spread": math.sqrt(sum(variances)) / len(scores),
        "low": low,
        "high": high,
        "kept": score / reference if reference > 0 else np.nan,
        "runs": len(runs),
        "seconds": runs["seconds"].mean(),
    }


def _units(runs: pd.DataFrame) -> list[np.ndarray]:
    """Per task, the means of its structures, or the runs if there is a single structure."""
    parts = [part for _, part in runs.groupby("task", observed=True)]
    return [
        (part.groupby("index")["score"].mean() if part["index"].nunique() > 1 else part["score"]).to_numpy()
        for part in parts
    ]


def _compare(
    runs: pd.DataFrame, against: pd.DataFrame, paired: bool, alternative: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Difference to a baseline, its interval and its test; {} where a task has nothing to compare."""
    rng, draws = np.random.default_rng(options["seed"]), options["draws"]
    against = against[against["task"].isin(runs["task"])]
    if paired:
        one, other = (side.groupby(["task", "seed"], observed=True)["score"].mean() for side in (runs, against))
        pairs = (one - other).dropna().groupby("task")
        ours, theirs = [part.to_numpy() for _, part in pairs], []
        nulls = [flips(part, draws, rng) for part in ours]
    else:
        ours, theirs = _units(runs), _units(against)
        nulls = [splits(a, b, draws, rng) for a, b in zip(ours, theirs, strict=False)]
    if len(nulls) < runs["task"].nunique():
        return {"pairs": sum(map(len, ours)) if paired else None}
    difference = np.mean([part.mean() for part in ours]) - (np.mean([part.mean() for part in theirs]) if theirs else 0)
    p, floor = p_value(float(difference), nulls, alternative, draws, rng)
    low, high = interval(ours, theirs, **options)
    found = {"difference": difference, "difference_low": low, "difference_high": high, "p": p, "p_floor": floor}
    return found | {"pairs": sum(map(len, ours)) if paired else None}
