"""Summaries of a table of retrainings: means, intervals, tests against a baseline, and two sources of variance.

The table is the one of :func:`s3pet.compare`, with one row per retraining: ``task, structure, kind``, ``index`` (which
of several structures of that name), ``seed`` (of the retraining), ``n_params``, ``score`` (on the test split) and, if
known, ``budget, head_params, lr, validation, seconds, diverged``. Other columns are ignored.

**Intervals** are 95 % Student t intervals, :func:`s3pet.plots.intervals.mean_interval`, as in all figures. They assume
normal scores; see there how often they cover real ones. With two runs they reach 12.7 standard errors to each side,
with three 4.3, with five 2.8.

**Tests** permute runs (SciPy's ``permutation_test``). They assume no distribution, but few runs cannot give a small p:
n pairs give at least 2/2^n, so 3 pairs never go below 0.25, 5 never below 0.063. Every row states this bound as
``p_floor``. Where it is above your level, "not significant" says nothing about the structures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from s3pet.errors import StudyError, nearest
from s3pet.plots.intervals import mean_interval

if TYPE_CHECKING:
    import pandas as pd

EXACT = 2**16  # up to so many permutations are all counted; of more, a sample is drawn
COMPARED = ("baseline", "difference", "difference_low", "difference_high", "pairs", "p", "p_floor", "p_holm")
Baseline = str | Mapping[str, str]


def summary(
    table: pd.DataFrame,
    *,
    baseline: Baseline | None = None,
    draws: int = 10_000,
    seed: int = 0,
    paired: bool = True,
) -> pd.DataFrame:
    """Compute mean and interval of each task and structure and, with a baseline, differences and their tests.

    A paired test flips the signs of differences between runs of one task and retraining seed; several runs of a side
    with the same seed are averaged first. It is about *these* structures: would another retraining change the order?
    ``paired=False`` exchanges runs between the two sides within a task; where a side has several structures, the runs
    of each are averaged first. It is about *another search* against another random structure.

    Args:
        table: one row per run, at one learning rate (:func:`s3pet.studies.validation.choose_lr`).
        baseline: a structure's name, or a mapping from structures to their own baselines
            (``{"searched 0.01%": "random 0.01%"}``; others are not compared).
        draws, seed: of permutations, where there are more than 2^16; p is then (1 + hits)/(1 + draws).
        paired: see above.

    Returns:
        One row per task and structure, best first: ``task, structure, kind, budget, n_params`` (mean), ``head_params,
        score, spread`` (standard deviation over runs; of a mean over tasks, that with one run on each), ``low, high``
        (interval; nan if a task has one run only), ``kept`` (score / score of "full"; nan without it or if it is not
        > 0), ``runs``, ``diverged`` (how many of them; all other columns leave these out, and are nan where nothing is
        left) and ``seconds`` (mean). With a baseline also ``baseline, difference`` (mean over pairs; nan without any),
        ``difference_low, difference_high, pairs`` (not for unpaired), two-sided ``p`` (nan for an unpaired side with a
        single structure), ``p_floor`` (the smallest p that so many runs can give) and ``p_holm`` (corrected for all
        comparisons in this table).

    Raises:
        StudyError: a column is missing, a score is nan, a run occurs twice (as with several learning rates), or the
            baseline is unknown.
    """
    return _summarize(table, ["task", "structure"], baseline, draws, seed, paired)


def over_tasks(
    table: pd.DataFrame,
    *,
    tasks: Iterable[str] | None = None,
    baseline: Baseline | None = None,
    draws: int = 10_000,
    seed: int = 0,
    paired: bool = True,
) -> pd.DataFrame:
    """Compute the same for the mean over tasks; every task has the same weight.

    Args:
        tasks: which; None: those that every structure of the table was run on.
        table, baseline, draws, seed, paired: as for `summary`.

    Returns:
        As `summary`, with ``task`` = "mean of 6". ``kept`` is a ratio of means.

    Raises:
        StudyError: as `summary`; or no task is shared by all, or a structure lacks one of ``tasks``.
    """
    table = checked(table, ("task", "structure"), finite=())
    groups = {str(name): set(part) for name, part in table.groupby("structure", sort=False, observed=True)["task"]}
    every = list(table["task"].unique())
    wanted = [name for name in every if all(name in names for names in groups.values())] if tasks is None else [*tasks]
    missing = {key: [task for task in (wanted or every) if task not in names] for key, names in groups.items()}
    text = "; ".join(f"{key} lacks {', '.join(names)}" for key, names in missing.items() if names)
    if text or not wanted:
        raise StudyError(f"not all were run on the same tasks: {text}; leave out these structures or these tasks")
    result = _summarize(table[table["task"].isin(wanted)], ["structure"], baseline, draws, seed, paired)
    result.insert(0, "task", f"mean of {len(wanted)}")
    return result


def _summarize(
    table: Any, by: list[str], baseline: Baseline | None, draws: int, seed: int, paired: bool
) -> pd.DataFrame:
    """The summary of groups defined by the columns ``by``."""
    import pandas as pd

    table = checked(table, ("task", "structure", "kind", "seed", "n_params", "score"))
    _refuse_duplicates(table)
    baselines = _baselines(table, baseline)
    full = table[table["structure"] == "full"].groupby("task", observed=True)["score"].mean()
    rows = []
    for key, runs in table.groupby(by, sort=False, observed=True):
        row = dict(zip(by, key, strict=True)) | _describe(runs, full)
        if baseline is not None:
            other = baselines.get(row["structure"])
            row |= dict.fromkeys(COMPARED, np.nan) | {"baseline": other, "pairs": None}
            if other is not None:
                against = table[(table["structure"] == other) & table["task"].isin(runs["task"])]
                row |= _difference(runs, against, paired, draws, seed)
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


def permutation_test(
    samples: Sequence[np.ndarray], minus: Sequence[np.ndarray] = (), *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Test, two-sided, whether a mean over tasks is 0, or whether two are equal, permuting within each task.

    Args:
        samples: for each task its paired differences, [n_pairs], or its runs, [n_runs].
        minus: for each task the runs of the other side; empty for paired differences.
        draws, seed: as for `summary`.

    Returns:
        p (twice the smaller one-sided p), and the smallest p that so many runs can give; nan, nan for two sides with a
        single run in a task.
    """
    from scipy import stats  # type: ignore[import-untyped]

    rng = np.random.default_rng(seed)
    counts = [math.comb(len(a) + len(b), len(a)) for a, b in zip(samples, minus, strict=False)]
    counts = counts or [2 ** sum(map(len, samples))]
    exact = math.prod(counts) <= EXACT
    floor = min(1.0, 2 / (math.prod(counts) if exact else draws + 1))

    def run(data: Any, kind: Any, count: int) -> Any:
        n = np.inf if count <= EXACT else draws
        return stats.permutation_test(data, _gap, permutation_type=kind, n_resamples=n, random_state=rng)

    if not minus:  # flipping signs within each task is flipping the signs of all pairs, weighted by their task
        pairs = np.concatenate([part / len(part) for part in samples])
        pairs = pairs if len(pairs) > 1 else np.append(pairs, 0.0)  # SciPy wants two values; a zero changes nothing
        return float(run((pairs,), "samples", counts[0]).pvalue), floor
    if min(map(len, [*samples, *minus])) < 2:
        return math.nan, math.nan
    tests = [run((a, b), "independent", n) for a, b, n in zip(samples, minus, counts, strict=True)]
    if len(tests) == 1:
        return float(tests[0].pvalue), floor
    # SciPy does not permute within tasks: add up what it gives for each, in all combinations or in a sample of them
    nulls = [test.null_distribution for test in tests]
    null: Any = reduce(np.add.outer, nulls).ravel() if exact else sum(rng.choice(part, draws) for part in nulls)
    above, extra = np.round(null - sum(test.statistic for test in tests), 12), 0 if exact else 1
    hits = min(np.count_nonzero(above >= 0), np.count_nonzero(above <= 0))
    return min(1.0, 2 * (hits + extra) / (len(null) + extra)), floor


def _gap(one: np.ndarray, other: np.ndarray | float = 0.0, *, axis: int) -> Any:
    """The difference of two means, rounded: equal values are then equal in any order of summation."""
    return np.round(one.mean(axis=axis) - np.mean(other, axis=axis if np.ndim(other) else None), 12)


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

    Raises:
        StudyError: a column is missing or a score is nan.

    Source:
        Searle, Casella & McCulloch 1992, Variance Components, chapter 3 (unequal numbers: their n₀).
    """
    import pandas as pd

    table, rows = checked(table, ("task", "structure", "seed", "score", *by)), []
    table = table[~table["diverged"]]
    for key, runs in table.groupby([*by], sort=False, observed=True):
        parts = [part for _, part in runs.groupby("task", observed=True) if part["index"].nunique() > 1]
        structures = sum(part["index"].nunique() for part in parts)
        if sum(map(len, parts)) > structures:
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
    hits = np.count_nonzero(nulls >= between * (1 - 1e-12))
    return {
        "structures": structures,
        "runs": runs,
        "between": extra**0.5,
        "within": within**0.5,
        "icc": extra / (extra + within) if extra + within > 0 else np.nan,
        "p": (1 + hits) / (1 + draws),
    }


def checked(table: Any, columns: Iterable[str], finite: Iterable[str] = ("score",)) -> pd.DataFrame:
    """Copy a table of runs, with optional columns added and numbers as floats.

    Args:
        table: what the user passed.
        columns: those it must have.
        finite: columns that must be numbers, except in rows that diverged.

    Raises:
        StudyError: not a table, empty, a column is missing, or a number is nan.
    """
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
    defaults = {"index": 0, "budget": pd.NA, "head_params": pd.NA, "seconds": np.nan, "lr": np.nan, "diverged": False}
    for name, value in defaults.items():
        table[name] = table.get(name, value)
    table["diverged"] = table["diverged"].astype("boolean").fillna(False).astype(bool)
    table["budget"] = pd.to_numeric(table["budget"]).astype("Int64")
    for name in {"score", "validation", "n_params", "head_params", "seconds", "lr"} & {*table}:
        table[name] = pd.to_numeric(table[name]).astype("Float64").to_numpy(float, na_value=np.nan)
    for name in finite:
        wrong = table.loc[~np.isfinite(table[name]) & ~table["diverged"], "structure"].unique().tolist()
        if wrong:
            raise StudyError(f"{name} is not a number in runs of {wrong}; drop these runs, or give them a score")
    return table


def _refuse_duplicates(table: pd.DataFrame) -> None:
    keys = ["task", "structure", "index", "seed"]
    duplicates = table[table.duplicated(keys, keep=False)]
    if duplicates.empty:
        return
    run = duplicates[duplicates[keys].eq(duplicates[keys].iloc[0]).all(axis=1)]
    what = ", ".join(f"{name} {run[name].iloc[0]}" for name in keys)
    hint = "drop the duplicates, or number index"
    if run["lr"].nunique() > 1:
        hint = "s3pet.studies.validation.choose_lr(table) keeps one of several learning rates"
    raise StudyError(f"{len(run)} rows are the same run ({what}); {hint}")


def _baselines(table: pd.DataFrame, baseline: Baseline | None) -> dict[str, str]:
    """Structure → the structure it is compared with."""
    names = [str(name) for name in table["structure"].unique()]
    pairs = dict.fromkeys(names, baseline) if isinstance(baseline, str) else dict(baseline or {})
    for name in (name for pair in pairs.items() for name in pair):
        if name not in names:
            raise StudyError(f"the table has no structure {name!r}; {nearest(name, names)}")
    return {name: other for name, other in pairs.items() if other != name}


def _describe(runs: pd.DataFrame, full: pd.Series) -> dict[str, Any]:
    """Columns of a group; ``full``: mean score of full fine-tuning by task."""
    import pandas as pd

    scores = [part.dropna().to_numpy() for _, part in runs.groupby("task", observed=True)["score"]]
    score = float(np.mean([part.mean() if len(part) else np.nan for part in scores]))
    variances = [part.var(ddof=1) if len(part) > 1 else np.nan for part in scores]
    low, high = mean_interval(scores)
    whole = full.reindex(runs["task"].unique()).mean(skipna=False)
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
        "kept": score / whole if whole > 0 else np.nan,
        "runs": len(runs),
        "diverged": int(runs["diverged"].sum()),
        "seconds": runs["seconds"].mean(),
    }


def _difference(runs: pd.DataFrame, against: pd.DataFrame, paired: bool, draws: int, seed: int) -> dict[str, Any]:
    """Difference to a baseline, its interval and its test; only the pairs where a task has nothing to compare."""
    if paired:
        one, other = (side.groupby(["task", "seed"], observed=True)["score"].mean() for side in (runs, against))
        ours, theirs = [part.to_numpy() for _, part in (one - other).dropna().groupby("task")], []
    else:
        ours, theirs = _per_structure(runs), _per_structure(against)
    pairs = sum(map(len, ours)) if paired else None
    if (len(ours) if paired else len(theirs)) < runs["task"].nunique():
        return {"pairs": pairs}
    difference = np.mean([part.mean() for part in ours]) - (np.mean([part.mean() for part in theirs]) if theirs else 0)
    low, high = mean_interval(ours, theirs)
    p, floor = permutation_test(ours, theirs, draws=draws, seed=seed)
    values = {"difference": difference, "difference_low": low, "difference_high": high, "p": p, "p_floor": floor}
    return values | {"pairs": pairs}


def _per_structure(runs: pd.DataFrame) -> list[np.ndarray]:
    """For each task the means of its structures, or the runs if there is a single structure."""
    parts = [part for _, part in runs.dropna(subset="score").groupby("task", observed=True)]
    return [
        (part.groupby("index")["score"].mean() if part["index"].nunique() > 1 else part["score"]).to_numpy()
        for part in parts
    ]
