"""What validation chooses: a learning rate, the best of several runs. Test scores are reported, never looked at.

Reads the tidy table of :func:`s3pet.compare`, like :mod:`s3pet.studies.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from s3pet.errors import StudyError
from s3pet.studies.statistics import checked

if TYPE_CHECKING:
    import pandas as pd


def choose_lr(table: pd.DataFrame, *, by: Sequence[str] = ("task", "structure")) -> pd.DataFrame:
    """Keep, for every task and structure, the runs at the learning rate that is best on validation.

    The best has the highest mean ``validation``, over those (index, seed) that were run at every rate; of equal ones it
    is the smallest. With ``"index"`` in ``by`` each of several structures of a name has a rate of its own. A rate with
    a nan among them (a run that diverged) is never chosen. Test scores are not looked at.

    Args:
        table: one row per run: ``task, structure, seed, lr, validation`` and, where there are several structures of a
            name, ``index``. Rows without ``lr`` stay.
        by: columns of what has a rate.

    Returns:
        The rows kept, in their order, also those at the chosen rate that lack a partner at another.

    Raises:
        StudyError: a column is missing, no (index, seed) has every rate, or no rate has all its validation scores.
    """
    given, table = table, checked(table, ("task", "structure", "seed", "lr", "validation"), finite=())
    rated, keep = table[table["lr"].notna()], table["lr"].isna()
    for place, runs in rated.groupby([*by], sort=False, observed=True):
        rates = runs["lr"].nunique()
        n = runs.groupby(["index", "seed"])["lr"].transform("nunique")
        complete = runs[n == rates]
        where = ", ".join(f"{name} {value!r}" for name, value in zip(by, place, strict=True))
        if complete.empty:
            raise StudyError(
                f"no (index, seed) of {where} has all its {rates} learning rates, {sorted(runs['lr'].unique())}: they "
                "cannot be compared; run the missing ones, or drop a rate"
            )
        means = complete.groupby("lr")["validation"].agg(lambda scores: scores.mean(skipna=False)).round(12)
        if means.isna().all():
            raise StudyError(f"every learning rate of {where} has a run without a validation score; drop these runs")
        keep |= table.index.isin(runs.index[runs["lr"] == means.idxmax()])  # the first of equals: rates ascend
    return given[keep.to_numpy()]


def best_of(table: pd.DataFrame, k: int, *, by: Sequence[str] = ("task", "structure")) -> pd.DataFrame:
    """Test score to be expected of making k runs and keeping the one that is best on validation.

    The mean over all subsets of k of a group's n runs: of runs in ascending order of ``validation`` the i-th is kept
    from C(i − 1, k − 1) of C(n, k). Equal ones are kept equally often. So groups of more runs compare with groups of
    fewer, at the same effort; only validation chooses.

    Args:
        table: one row per run, at one learning rate (`choose_lr`): ``task, structure, validation, score``.
        k: runs made, ≥ 1; 1 gives plain means.
        by: columns of a group.

    Returns:
        ``by``, ``score, runs`` (n), best first within a task; groups of fewer than k runs are left out.

    Raises:
        StudyError: a column is missing, a score is nan, or k < 1.

    Source:
        Dodge et al. 2019 (arXiv:1909.03004), who draw with replacement and look at the validation score itself.
    """
    import pandas as pd

    if k < 1:
        raise StudyError(f"expected at least one run to keep the best of, got k={k}")
    table, rows = checked(table, ("task", *by, "validation", "score"), finite=("validation", "score")), []
    for key, runs in table.groupby([*by], sort=False, observed=True):
        scores = runs.groupby("validation")["score"].transform("mean")[runs["validation"].sort_values().index]
        kept = [math.comb(i, k - 1) for i in range(len(scores))]
        if len(scores) >= k:
            score = float(np.dot(kept, scores)) / math.comb(len(scores), k)
            rows.append(dict(zip(by, key, strict=True)) | {"score": score, "runs": len(scores)})
    found = pd.DataFrame(rows, columns=[*by, "score", "runs"])
    order = [name for name in by if name != "structure"]
    return found.sort_values([*order, "score"], ascending=[True] * len(order) + [False], ignore_index=True)


def keep_best(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """Of each k seeds in a row the run that is best on validation, as a row of its own.

    Seeds 0 to k − 1 are the first such group, and so on; what has fewer than k runs in a group is left out of it. Where
    `best_of` gives one number, these rows can be compared in pairs: the best of three with the best of three.

    Args:
        table: one row per run, at one learning rate (`choose_lr`): ``task, structure, seed, validation, score``; of
            structures made anew for each seed, one run each.
        k: runs made, ≥ 1.

    Returns:
        The rows kept, with the number of the group as ``index`` and ``seed``; of equal ones the first seed.

    Raises:
        StudyError: a column is missing, a validation score is nan, a seed is there twice, or k < 1.
    """
    if k < 1:
        raise StudyError(f"expected at least one run to keep the best of, got k={k}")
    table = checked(table, ("task", "structure", "seed", "validation", "score"), finite=("validation",))
    twice = table[table.duplicated(["task", "structure", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise StudyError(f"seed {row['seed']} of {row['structure']!r} on {row['task']!r} is there twice; drop repeats")
    table = table.sort_values("seed", ignore_index=True).assign(index=lambda rows: rows["seed"] // k)
    groups = table.groupby(["task", "structure", "index"], sort=False)["validation"]
    kept = table.loc[groups.idxmax()[groups.size() == k]]
    return kept.assign(seed=kept["index"]).reset_index(drop=True)
