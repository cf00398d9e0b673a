"""Intervals and tests from a few runs, by resampling them.

Intervals are expanded percentile bootstraps (Hesterberg 2015, arXiv:1411.5279, section 5.3): of the means of resampled
runs, the quantiles Φ(∓ t·√(n/(n−1))) instead of Φ(∓ z), because a plain percentile interval of few runs is too narrow.
For a mean over tasks, runs are resampled within each task, t has Satterthwaite's degrees of freedom, and √(n/(n−1))
becomes the ratio of the unbiased to the resampled standard error. No such interval leaves the range of the runs, so for
one task it covers at most 1 − 2^(1−n) of the time: 75 % with 3 runs, 94 % with 5.

Tests permute: they assume no distribution, but few runs cannot give a small p. With n pairs it is at least 2^−n
(two-sided 2^(1−n)): 3 pairs never get below 0.125 (0.25), 5 not below 0.031 (0.063). Every row carries this bound as
``p_floor``; where it is above the level of the test, "not significant" says nothing about the structures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

EXACT = 2**18  # permutations: up to so many are all counted, of more a sample is drawn
Null = tuple[np.ndarray, bool]  # differences under permutation, and whether these are all there are


def holm(p: Any) -> np.ndarray:
    """Holm's correction: p values that may be compared with the level of the whole family; nan stays and counts not.

    The i-th smallest of m becomes the largest of (m − j + 1)·p_j over j ≤ i, at most 1.

    >>> holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
    [0.03, 0.06, 0.06, 0.02]

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6.
    """
    p = np.array(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # nan come last
    p[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return p


def interval(
    ours: list[np.ndarray], theirs: Sequence[np.ndarray] = (), *, confidence: float, draws: int, seed: int
) -> tuple[float, float]:
    """Expanded percentile interval of the mean over tasks, or of the difference of two such means.

    Args:
        ours, theirs: runs of each task, [n_runs] each, resampled independently; ``theirs`` is empty or has as many.
        confidence: level, in (0, 1).
        draws, seed: of the bootstrap.

    Returns:
        low, high; nan if a task has one run only.
    """
    from scipy import stats  # type: ignore[import-untyped]

    samples = [*ours, *theirs]
    if min(map(len, samples)) < 2:
        return np.nan, np.nan
    n = np.array([len(part) for part in samples])
    error = np.array([part.var(ddof=1) for part in samples]) / n  # of each mean, squared
    weights = np.array([1 / len(ours)] * len(ours) + [-1 / len(ours)] * len(theirs))
    if not error.sum() > 0:
        centre = float(weights @ [part.mean() for part in samples])
        return centre, centre
    freedom = error.sum() ** 2 / (error**2 / (n - 1)).sum()
    wider = math.sqrt(error.sum() / (error * (n - 1) / n).sum())
    level = 1 - 2 * stats.norm.sf(wider * stats.t.isf((1 - confidence) / 2, freedom))

    def mean(*parts: np.ndarray, axis: int = -1) -> Any:
        return sum(weight * part.mean(axis=axis) for weight, part in zip(weights, parts, strict=True))

    rng = np.random.default_rng(seed)
    found = stats.bootstrap(
        samples, mean, n_resamples=draws, confidence_level=level, method="percentile", random_state=rng
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def flips(pairs: np.ndarray, draws: int, rng: np.random.Generator) -> Null:
    """Means of paired differences under all changes of sign (or draws of them), and whether it is all."""
    if 2 ** len(pairs) > EXACT:
        return rng.choice([-1.0, 1.0], (draws, len(pairs))) @ pairs / len(pairs), False
    sums = np.zeros(1)
    for value in pairs:
        sums = np.concatenate([sums + value, sums - value])
    return sums / len(pairs), True


def splits(one: np.ndarray, other: np.ndarray, draws: int, rng: np.random.Generator) -> Null:
    """Differences of means under all exchanges between two samples (or draws of them), and whether it is all."""
    pool, n = np.concatenate([one, other]), len(one)
    exact = math.comb(len(pool), n) <= EXACT
    if exact:
        first = pool[np.array([*combinations(range(len(pool)), n)])].sum(1)
    else:
        first = rng.permuted(np.tile(pool, (draws, 1)), axis=1)[:, :n].sum(1)
    return first / n - (pool.sum() - first) / len(other), exact


def p_value(
    observed: float, nulls: list[Null], alternative: str, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The p of the mean over tasks, permuted independently in each, and the smallest p there could be.

    Args:
        observed: mean over tasks of the difference.
        nulls: for each task, what `flips` or `splits` gives.
        alternative: ``"two-sided"`` (twice the smaller one-sided p), ``"greater"``, ``"less"``.
        draws, rng: where the permutations of all tasks are more than `EXACT`; p is then (1 + hits)/(1 + draws).
    """
    exact = all(whole for _, whole in nulls) and math.prod(len(part) for part, _ in nulls) <= EXACT
    if exact or len(nulls) == 1:
        null = nulls[0][0]
        for part, _ in nulls[1:]:
            null = np.add.outer(null, part).ravel()
    else:
        null = sum((rng.choice(part, draws) for part, _ in nulls), np.zeros(draws))
    null = null / len(nulls)
    slack = 1e-12 * max(abs(observed), float(np.abs(null).max()))  # equal but for the order of summation
    own, n = int(not exact), len(null) + int(not exact)
    upper = (np.count_nonzero(null >= observed - slack) + own) / n
    lower = (np.count_nonzero(null <= observed + slack) + own) / n
    if alternative == "two-sided":
        return min(1.0, 2 * min(upper, lower)), min(1.0, 2 / n)
    return (upper if alternative == "greater" else lower), 1 / n
