"""Choices made on validation scores: a learning rate, or the best of several runs. Test scores are never looked at.

The tables are those of :mod:`s3pet.studies.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from s3pet.errors import StudyError
from s3pet.files.kinds import whole
from s3pet.studies.statistics import checked


def choose_lr(table: pd.DataFrame, *, by: Sequence[str] = ("task", "structure")) -> pd.DataFrame:
    """Keep the runs at the learning rate that is best on validation, in their order.

    The best rate has the highest mean ``validation`` over those (index, seed) that were run at every rate; of equal
    rates the smallest is kept. A rate is never chosen if one of its runs failed (:func:`failed_runs`).

    Args:
        table: one row per run: ``task, structure, seed, lr, validation`` and, where there are several structures of a
            name, ``index``. Rows without ``lr`` stay.
        by: columns that define what has a rate of its own; add ``"index"`` for a rate per structure.

    Raises:
        StudyError: a column is missing, no (index, seed) has every rate, or every rate has a failed run.
    """
    original, table = table, checked(table, ("task", "structure", "seed", "lr", "validation"), finite=(), by=by)
    table["failed"] = failed_runs(table)
    rated, keep = table[table["lr"].notna()].copy(), table["lr"].isna()

    def over(*names: str) -> Any:
        return rated.groupby([*dict.fromkeys([*by, *names])], sort=False, observed=True)

    rated["complete"] = over("index", "seed")["lr"].transform("nunique").eq(over()["lr"].transform("nunique"))
    failed = over("lr")["failed"].transform("any")  # also in runs that lack a partner
    rated["usable"] = rated["validation"].where(rated["complete"] & ~failed)
    rated["mean"] = over("lr")["usable"].transform("mean").round(12)
    for column, fine in (("complete", rated["complete"]), ("mean", rated["mean"].notna())):
        rated["fine"] = fine
        if len(bad := rated[~over()["fine"].transform("any")]):
            place = bad[[*by]].iloc[:1].to_dict("records")[0]
            where = ", ".join(f"{name} {value!r}" for name, value in place.items())
            if column == "mean":
                what = f"every learning rate of {where} has a run without a validation score, or one that diverged"
                raise StudyError(f"{what}; add lower rates, or raise lr_warmup")
            rates = sorted(bad.loc[(bad[[*by]] == pd.Series(place)).all(axis=1), "lr"].unique().tolist())
            raise StudyError(
                f"no (index, seed) of {where} has all its {len(rates)} learning rates, {rates}: they cannot be "
                "compared; run the missing ones, or drop a rate"
            )
    rated["best"] = rated["lr"].where(rated["mean"] == over()["mean"].transform("max"))
    keep[rated.index] = rated["lr"] == over()["best"].transform("min")  # of equals the smallest
    return original[keep.to_numpy()]


def failed_runs(table: pd.DataFrame) -> pd.Series:
    """Which runs diverged, or have a validation score that is missing, NaN or infinite: none of them is chosen."""
    return table["diverged"] | ~np.isfinite(table["validation"].astype(float))


def best_of(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """Compute the expected test score of making k runs of a structure and keeping the one that is best on validation.

    The mean over all subsets of k of n runs: with runs in ascending order of ``validation``, the i-th is kept from
    C(i − 1, k − 1) of C(n, k) subsets. Equal ones are kept equally often. So structures with different numbers of runs
    can be compared.

    Args:
        table: one row per run, at one learning rate (`choose_lr`): ``task, structure, seed, validation, score``.
        k: runs made, ≥ 1; 1 gives plain means.

    Returns:
        ``task, structure, score, runs`` (n), best first within a task; where there are at least k runs.

    Raises:
        StudyError: a column is missing, a score is nan, or k < 1.

    Source:
        Dodge et al. 2019 (arXiv:1909.03004), who draw with replacement and report the validation score itself.
    """
    rows = []
    for (task, structure), runs in _compared(table, k).groupby(["task", "structure"], sort=False, observed=True):
        scores = runs.groupby("validation")["score"].transform("mean")[runs["validation"].sort_values().index]
        if len(scores) >= k:
            times_kept = [math.comb(i, k - 1) for i in range(len(scores))]
            rows.append([task, structure, float(np.dot(times_kept, scores)) / math.comb(len(scores), k), len(scores)])
    result = pd.DataFrame(rows, columns=["task", "structure", "score", "runs"])
    return result.sort_values(["task", "score"], ascending=[True, False], ignore_index=True)


def keep_best(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """Keep, of each k consecutive seeds, the run that is best on validation.

    Seeds 0 to k − 1 are the first group, and so on; groups with fewer than k runs are left out. `best_of` gives one
    number; these rows can be compared in pairs. They have the number of their group as ``index`` and ``seed``; of equal
    ones the first seed is kept. The table is that of `best_of`, without repeats.

    Raises:
        StudyError: as `best_of`, or a seed occurs twice.
    """
    table = _compared(table, k)
    for row in table[table.duplicated(["task", "structure", "seed"])].to_dict("records"):
        raise StudyError(f"seed {row['seed']} of {row['structure']!r} on {row['task']!r} occurs twice; drop repeats")
    table = table.sort_values("seed", ignore_index=True).assign(index=lambda rows: rows["seed"] // k)
    groups = table.groupby(["task", "structure", "index"], sort=False)["validation"]
    kept = table.loc[groups.idxmax()[groups.size() == k]]
    return kept.assign(seed=kept["index"]).reset_index(drop=True)


def _compared(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """The checked runs that did not diverge."""
    if not whole(1).holds(k):
        raise StudyError(f"expected at least one run to keep the best of, got k={k!r}")
    table = checked(table, ("task", "structure", "seed"), finite=("validation", "score"))
    return table[~table["diverged"]]
