"""The interval of a mean: against scipy's own tests, and its coverage by simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from s3pet.plots.intervals import mean_interval

RUNS = Path(__file__).parents[2] / "data" / "runs"


def test_one_task_is_students_interval():
    runs = np.random.default_rng(0).normal(0.8, 0.05, 4)
    expected = stats.ttest_1samp(runs, 0).confidence_interval(0.9)
    assert mean_interval([runs], confidence=0.9) == pytest.approx(tuple(expected))


def test_the_mean_of_two_tasks_by_hand():
    """Sum of two independent means is, for the t interval, their Welch difference with one of them negated."""
    one, two = np.array([0.9, 0.8, 0.85]), np.array([0.5, 0.7, 0.65, 0.4])
    low, high = stats.ttest_ind(one, -two, equal_var=False).confidence_interval(0.95)
    assert mean_interval([one, two]) == pytest.approx((low / 2, high / 2))


def test_too_few_runs_give_nan_and_equal_scores_give_the_mean():
    assert np.isnan(mean_interval([np.array([0.5])])).all()
    assert np.isnan(mean_interval([np.array([0.5, 0.6]), np.array([0.5])])).all()
    assert np.isnan(mean_interval([])).all()
    assert mean_interval([np.full(3, 0.5), np.full(2, 0.25)]) == (0.375, 0.375)


def test_it_is_the_same_on_every_call_and_in_any_order():
    runs = np.array([0.9, 0.7, 0.75])
    assert mean_interval([runs]) == mean_interval([runs]) == pytest.approx(mean_interval([runs[::-1]]))


def coverage(draw, mean: float, n: int, draws: int = 1000) -> float:
    """How often the interval of ``n`` runs contains the mean of the population."""
    intervals = np.array([mean_interval([draw(n)]) for _ in range(draws)])
    return float(((intervals[:, 0] <= mean + 1e-12) & (mean - 1e-12 <= intervals[:, 1])).mean())


@pytest.mark.parametrize("n", [3, 5])
def test_coverage_is_nominal_for_normal_scores(n):
    rng = np.random.default_rng(2)
    assert coverage(lambda n: rng.normal(0.8, 0.05, n), 0.8, n) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize(("n", "lowest", "highest"), [(3, 0.82, 0.92), (5, 0.87, 0.95)])
def test_coverage_of_real_scores_is_what_the_docstring_says(n, lowest, highest):
    rng, rates = np.random.default_rng(3), []
    for study in ("ablation", "minilm"):
        table = pd.read_parquet(RUNS / study / "rows.parquet", columns=["task", "kind", "score"])
        for _, runs in table.groupby(["task", "kind"]):
            scores = runs["score"].to_numpy()
            if len(scores) >= 8:
                rates.append(coverage(lambda n, scores=scores: rng.choice(scores, n), scores.mean(), n, 100))
    assert len(rates) >= 15 and lowest < np.median(rates) < highest and min(rates) < 0.8
