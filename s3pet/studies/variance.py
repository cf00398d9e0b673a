"""Is it the structure, or the luck of its retraining? Two parts of the spread between runs.

A search or a draw gives another structure with every seed, and a retraining of one structure gives another score with
every seed. Where structures were retrained several times (``repeats`` in a study), a random-effects model tells the two
apart: score = mean + structure + retraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from s3pet.studies.statistics import checked

if TYPE_CHECKING:
    import pandas as pd


def variance_components(
    table: pd.DataFrame, *, by: Sequence[str] = ("task", "structure"), draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Standard deviations between structures and between retrainings of one structure, for each kind of structure.

    Estimates are those of the one-way analysis of variance with random effects: of retrainings, the mean square within
    structures; of structures, what the mean square between them is above it, over the number of retrainings of one;
    0 if it is not above. Few structures say little: of 3 the standard deviation is uncertain by half of itself, which
    is why a test comes with it.

    Args:
        table: one row per run, at one learning rate for each structure: ``task, structure, index`` (which of several
            structures of that name), ``seed`` (of the retraining), ``score``.
        by: columns of a group. Without ``"task"`` squares are added up over tasks; structures of different tasks are
            never compared with each other.
        draws, seed: of the permutation test.

    Returns:
        One row per group with two structures or more and a repeated retraining (``repeats: 3`` in a study; other groups
        are left out): ``by, structures, runs, between, within`` (standard deviations, as scores), ``icc`` (share of the
        variance that is the structures', in [0, 1]; nan if no score differs) and ``p``: how often exchanging runs
        between the structures of a task gives a mean square between them at least as large, (1 + hits)/(1 + draws).

    Raises:
        StudyError: a column is missing or a score is nan.

    Source:
        Searle, Casella & McCulloch 1992, Variance Components, chapter 3 (unequal numbers: n₀ of their formula).
    """
    import pandas as pd

    table, rows = checked(table, ("task", "structure", "seed", "score", *by)), []
    for key, runs in table.groupby([*by], sort=False, observed=True):
        parts = [part for _, part in runs.groupby("task", observed=True) if part["index"].nunique() > 1]
        structures = sum(part["index"].nunique() for part in parts)
        if sum(map(len, parts)) > structures:
            rows.append(dict(zip(by, key, strict=True)) | _components(parts, draws, np.random.default_rng(seed)))
    return pd.DataFrame(rows, columns=[*by, "structures", "runs", "between", "within", "icc", "p"])


def _components(parts: list[pd.DataFrame], draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """What `variance_components` returns of one group; ``parts``: its runs on each task."""
    between, whole, nulls, spare, weight = 0.0, 0.0, np.zeros(draws), 0, 0.0
    for part in parts:
        one_hot = part["index"].to_numpy()[:, None] == part["index"].unique()[None, :]  # [runs, structures]
        sizes = one_hot.sum(0)
        scores = part["score"].to_numpy() - part["score"].mean()
        between += float(((scores @ one_hot) ** 2 / sizes).sum())
        nulls += ((rng.permuted(np.tile(scores, (draws, 1)), axis=1) @ one_hot) ** 2 / sizes).sum(1)
        whole += float((scores**2).sum())
        spare += len(sizes) - 1
        weight += len(part) - (sizes**2).sum() / len(part)
    runs, structures = sum(map(len, parts)), spare + len(parts)
    within = max(whole - between, 0.0) / (runs - structures)
    extra = max(between / spare - within, 0.0) / (weight / spare)
    hits = np.count_nonzero(nulls >= between * (1 - 1e-12))
    return {
        "structures": structures,
        "runs": runs,
        "between": extra**0.5,
        "within": within**0.5,
        "icc": extra / (extra + within) if extra + within > 0 else np.nan,
        "p": (1 + hits) / (1 + draws),
    }
