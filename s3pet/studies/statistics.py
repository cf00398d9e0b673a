"""Summaries of a table of retrainings: means, intervals, tests against a baseline, and two sources of variance.

The table is the one of :func:`s3pet.compare`, with one row per retraining: ``task, structure, kind``, ``index`` (which
of several structures of that name), ``seed`` (of the retraining), ``n_params``, ``score`` (on the test split) and, if
known, ``budget, head_params, lr, validation, seconds, diverged``. Other columns are ignored.

**Intervals** are 95 % Student t intervals, as in all figures; :func:`s3pet.plots.intervals.mean_interval` says how
often they cover real scores. With two runs they reach 12.7 standard errors to each side, with three 4.3, with five 2.8.

**Tests** flip the signs of paired differences. They assume no distribution, but few runs cannot give a small p: n pairs
give at least 2/2^n, so 3 pairs never go below 0.25, 5 never below 0.063. Every row states this bound as ``p_floor``.
Where it is above your level, "not significant" says nothing about the structures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats  # type: ignore[import-untyped]

from s3pet.errors import StudyError, nearest
from s3pet.files.columns import ANY, checked_columns
from s3pet.files.kinds import SEED, TEXT, Kind, one_of, optional, several, whole
from s3pet.plots.intervals import mean_interval

EXACT = 2**16  # up to so many permutations are all counted; of more, a sample is drawn
RUN = ["task", "structure", "index", "seed"]  # columns that tell runs apart
COMPARED = ("baseline", "difference", "difference_low", "difference_high", "pairs", "p", "p_floor", "p_holm")
DEFAULTS = {"index": 0, "budget": None, "head_params": np.nan, "seconds": np.nan, "lr": np.nan, "diverged": False}
NUMBERS = ("score", "validation", "n_params", "head_params", "seconds", "lr")
KINDS = {**dict.fromkeys(NUMBERS, ANY), "budget": optional(whole())}
Baseline = str | Mapping[str, str]


def summary(
    table: pd.DataFrame, *, baseline: Baseline | None = None, draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Compute mean and interval of each task and structure and, with a baseline, differences and their tests.

    Runs of one task and retraining seed are pairs; several runs of a side with the same seed are averaged first. The
    test is about *these* structures: would another retraining change the order?

    Args:
        table: one row per run, at one learning rate (:func:`s3pet.studies.validation.choose_lr`).
        baseline: a structure's name, or a mapping from structures to their own baselines
            (``{"searched 0.01%": "random 0.01%"}``; others are not compared).
        draws, seed: of permutations, where there are more than 2^16; p is then (1 + hits)/(1 + draws).

    Returns:
        One row per task and structure, best first: ``task, structure, kind, budget, n_params`` (mean), ``head_params,
        score, spread`` (standard deviation over runs; of a mean over tasks, that with one run on each), ``low, high``
        (interval; nan if a task has one run only), ``kept`` (score / score of "full"; nan without it or if it is not
        > 0), ``runs``, ``diverged`` (how many of them; all other columns leave these out, and are nan where nothing is
        left) and ``seconds`` (mean). With a baseline also ``baseline, difference`` (mean over pairs; nan without any),
        ``difference_low, difference_high, pairs``, two-sided ``p``, ``p_floor`` (the smallest p that so many pairs can
        give) and ``p_holm`` (corrected for all comparisons in this table).

    Raises:
        StudyError: a column is missing, a score is nan, a run occurs twice (as with several learning rates), or the
            baseline is unknown.
    """
    return _summarize(table, ["task", "structure"], baseline, draws, seed)


def over_tasks(
    table: pd.DataFrame, *, baseline: Baseline | None = None, draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Compute the same for the mean over the tasks that all structures of a table share, each with the same weight.

    Arguments, columns and errors are those of `summary`; ``task`` is "mean of 6", and ``kept`` a ratio of means.

    Raises:
        StudyError: no task is shared by all.
    """
    table = checked(table, ("task", "structure"), finite=())
    runs = table.groupby(["structure", "task"], sort=False, observed=True).size().unstack()
    shared = runs.columns[runs.notna().all()]
    if not len(shared):
        lacks = [f"{name} lacks {', '.join(runs.columns[row.isna()])}" for name, row in runs.iterrows()]
        raise StudyError(f"no task was run with all structures: {'; '.join(lacks)}; leave out some structures")
    result = _summarize(table[table["task"].isin(shared)], ["structure"], baseline, draws, seed)
    result.insert(0, "task", f"mean of {len(shared)}")
    return result


def _summarize(table: Any, by: list[str], baseline: Baseline | None, draws: int, seed: int) -> pd.DataFrame:
    """The summary of groups defined by the columns ``by``."""
    table = checked(table, ("task", "structure", "kind", "seed", "n_params"))
    _check_draws(draws, seed)
    named = Kind("the name of a structure, or a mapping of names to names", lambda v: isinstance(v, str | Mapping))
    optional(named).check(StudyError, baseline=baseline)
    sizes = table.groupby(RUN, observed=True).size()
    if sizes.max() > 1:
        run = ", ".join(f"{name} {value}" for name, value in zip(RUN, sizes.idxmax(), strict=True))
        hint = "drop the duplicates, number index, or keep one learning rate: s3pet.studies.validation.choose_lr(table)"
        raise StudyError(f"{sizes.max()} rows are the same run ({run}); {hint}")
    names = [str(name) for name in table["structure"].unique()]
    baselines = dict.fromkeys(names, baseline) if isinstance(baseline, str) else dict(baseline or {})
    for name in [*baselines, *baselines.values()]:
        if not one_of(names).holds(name):
            raise StudyError(f"the table has no structure {name!r}; {nearest(name, names)}")
    full = table[table["structure"] == "full"].groupby("task", observed=True)["score"].mean()
    rows = []
    for key, runs in table.groupby(by, sort=False, observed=True):
        row = dict(zip(by, key, strict=True)) | _describe(runs, full)
        if baseline is not None:
            other = baselines.get(row["structure"])
            other = None if other == row["structure"] else other
            row |= dict.fromkeys(COMPARED, np.nan) | {"baseline": other, "pairs": None}
            if other is not None:
                against = table[(table["structure"] == other) & table["task"].isin(runs["task"])]
                row |= _difference(runs, against, draws, seed)
        rows.append(row)
    result = pd.DataFrame(rows).astype({"budget": "Int64"})
    if baseline is not None:
        result = result.astype({"pairs": "Int64"}).assign(p_holm=holm(result["p"]))
    order = [*by[:-1], "score"]
    return result.sort_values(order, ascending=[name != "score" for name in order], ignore_index=True)


def holm(p: Any) -> np.ndarray:
    """Correct p values for the number of comparisons (Holm 1979); nan values are ignored and returned unchanged.

    The i-th smallest of m becomes the largest of (m − j + 1)·p_j over j ≤ i, at most 1.

    >>> holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
    [0.03, 0.06, 0.06, 0.02]
    """
    p = np.array(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # nan are sorted last
    p[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return p


def permutation_test(samples: Sequence[np.ndarray], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Test, two-sided, whether a mean over tasks of paired differences is 0, by flipping their signs.

    ``samples`` has the differences of each task, [n_pairs]. Returns p (twice the smaller one-sided p), and the smallest
    p that so many pairs can give.
    """
    pairs = np.concatenate([part / len(part) for part in samples])  # weighted by their task
    exact = 2 ** len(pairs) <= EXACT
    floor = min(1.0, 2 / (2 ** len(pairs) if exact else draws + 1))
    pairs = pairs if len(pairs) > 1 else np.append(pairs, 0.0)  # SciPy wants two values; a zero changes nothing
    test = stats.permutation_test(
        (pairs,),
        lambda values, axis: np.round(values.mean(axis=axis), 12),  # equal in any order of summation
        permutation_type="samples",
        n_resamples=np.inf if exact else draws,
        random_state=np.random.default_rng(seed),
    )
    return float(test.pvalue), floor


def variance_components(
    table: pd.DataFrame, *, by: Sequence[str] = ("task", "structure"), draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Estimate two standard deviations: between structures, and between retrainings of one structure.

    A one-way analysis of variance with random effects, score = mean + structure + retraining, where structures were
    retrained several times (``repeats`` in a study). An estimate below 0 is given as 0. The standard deviation of few
    structures is uncertain (of 3 by half of itself), so each estimate comes with a test.

    Args:
        table: one row per run, at one learning rate for each structure: ``task, structure, index, seed, score``.
        by: columns that define a group. Without ``"task"`` sums of squares are added over tasks; structures of
            different tasks are never compared with each other.
        draws, seed: of the permutation test.

    Returns:
        One row per group with at least two structures and a repeated retraining: ``by, structures, runs, between,
        within`` (standard deviations), ``icc`` (share of the variance that is between structures, in [0, 1]; nan if all
        scores are equal) and ``p``: how often exchanging runs between the structures of a task gives a mean square
        between them at least as large, (1 + hits)/(1 + draws).

    Source:
        Searle, Casella & McCulloch 1992, Variance Components, chapter 3 (unequal numbers: their n₀).
    """
    _check_draws(draws, seed)
    table, rows = checked(table, ("task", "structure", "seed"), by=by), []
    for key, runs in table[~table["diverged"]].groupby([*by], sort=False, observed=True):
        parts = [part for _, part in runs.groupby("task", observed=True) if part["index"].nunique() > 1]
        if any(part["index"].duplicated().any() for part in parts):
            rows.append(dict(zip(by, key, strict=True)) | _components(parts, draws, np.random.default_rng(seed)))
    return pd.DataFrame(rows, columns=[*by, "structures", "runs", "between", "within", "icc", "p"])


def _components(parts: list[pd.DataFrame], draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """One row of `variance_components`; ``parts``: the runs of a group on each task."""
    between, total, nulls, freedom, weight = 0.0, 0.0, np.zeros(draws), 0, 0.0
    for part in parts:
        one_hot = part["index"].to_numpy()[:, None] == part["index"].unique()[None, :]  # [runs, structures]
        sizes = one_hot.sum(0)
        scores = part["score"].to_numpy() - part["score"].mean()
        between += float(((scores @ one_hot) ** 2 / sizes).sum())
        nulls += ((rng.permuted(np.tile(scores, (draws, 1)), axis=1) @ one_hot) ** 2 / sizes).sum(1)
        total += float((scores**2).sum())
        freedom += len(sizes) - 1
        weight += len(part) - (sizes**2).sum() / len(part)
    runs, structures = sum(map(len, parts)), freedom + len(parts)
    within = max(total - between, 0.0) / (runs - structures)
    extra = max(between / freedom - within, 0.0) / (weight / freedom)
    return {
        "structures": structures,
        "runs": runs,
        "between": extra**0.5,
        "within": within**0.5,
        "icc": extra / (extra + within) if extra + within > 0 else np.nan,
        "p": (1 + np.count_nonzero(nulls >= between * (1 - 1e-12))) / (1 + draws),
    }


def _check_draws(draws: int, seed: int) -> None:
    whole(1).check(StudyError, draws=draws)
    SEED.check(StudyError, seed=seed)


def checked(
    table: Any, columns: Iterable[str], finite: Iterable[str] = ("score",), by: Sequence[str] = ("task",)
) -> pd.DataFrame:
    """Copy a table of runs, with optional columns added and numbers as floats; ``by`` is an argument: more columns.

    Raises StudyError if it is not a table or empty, lacks one of ``columns`` or ``finite``, or one of ``finite`` is nan
    in a run that did not diverge.
    """
    if not isinstance(table, pd.DataFrame) or table.empty:
        what = "an empty table" if isinstance(table, pd.DataFrame) else type(table).__name__
        raise StudyError(f"expected a DataFrame with one row per run, as s3pet.compare gives, got {what}")
    several(TEXT).check(StudyError, by=by)
    needed = [name for name in dict.fromkeys([*columns, *finite, *by]) if name not in {*table, *DEFAULTS}]
    missing = [f"{name!r} ({nearest(name, map(str, table))})" for name in needed]
    if missing:
        raise StudyError(f"the table of runs has no column {', '.join(missing)}; it has {', '.join(map(str, table))}")
    table = checked_columns(table.reset_index(drop=True), StudyError, [*RUN, "kind", "diverged"], KINDS)
    for name, value in DEFAULTS.items():
        table[name] = table.get(name, value)
    table["diverged"] = table["diverged"].astype(object).fillna(False).astype(bool)
    table["budget"] = table["budget"].astype("Int64")
    for name in {*NUMBERS} & {*table}:
        table[name] = table[name].astype("Float64").to_numpy(float, na_value=np.nan)
    for name in finite:
        wrong = table.loc[~np.isfinite(table[name]) & ~table["diverged"], "structure"].unique().tolist()
        if wrong:
            raise StudyError(f"{name} is not a number in runs of {wrong}; drop these runs, or give them a score")
    return table


def _describe(runs: pd.DataFrame, full: pd.Series) -> dict[str, Any]:
    """Columns of a group; ``full``: mean score of full fine-tuning by task."""
    by_task = runs.groupby("task", observed=True)
    means, budgets = by_task["score"].mean(), runs["budget"].unique()
    low, high = mean_interval([part.dropna().to_numpy() for _, part in by_task["score"]])
    score, whole = means.mean(skipna=False), full.reindex(means.index).mean(skipna=False)
    return {
        "kind": ", ".join(map(str, runs["kind"].unique())),
        "budget": budgets[0] if len(budgets) == 1 else pd.NA,
        "n_params": by_task["n_params"].mean().mean(),
        "head_params": runs["head_params"].iloc[0],
        "score": score,
        "spread": math.sqrt(by_task["score"].var().sum(skipna=False)) / len(means),
        "low": low,
        "high": high,
        "kept": score / whole if whole > 0 else np.nan,
        "runs": len(runs),
        "diverged": int(runs["diverged"].sum()),
        "seconds": runs["seconds"].mean(),
    }


def _difference(runs: pd.DataFrame, against: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    """Difference to a baseline, its interval and its test; only the number of pairs where a task has none."""
    one, other = (side.groupby(["task", "seed"], observed=True)["score"].mean() for side in (runs, against))
    by_task = [part.to_numpy() for _, part in (one - other).dropna().groupby("task")]
    pairs = {"pairs": sum(map(len, by_task))}
    if len(by_task) < runs["task"].nunique():
        return pairs
    low, high = mean_interval(by_task)
    p, floor = permutation_test(by_task, draws=draws, seed=seed)
    difference = np.mean([part.mean() for part in by_task])
    return {"difference": difference, "difference_low": low, "difference_high": high, "p": p, "p_floor": floor} | pairs
