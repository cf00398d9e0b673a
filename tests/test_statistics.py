"""Statistics of few runs: against numbers worked out by hand, and against scipy."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from s3pet.errors import StudyError
from s3pet.resampling import holm, interval
from s3pet.statistics import choose_lr, over_tasks, summary, wins


def runs(scores, task="a", structure="x", kind="searched", n_params=100, **more):
    rows = [{"index": seed, "seed": seed, "score": score} for seed, score in enumerate(scores)]
    return pd.DataFrame(rows).assign(task=task, structure=structure, kind=kind, n_params=n_params, **more)


def row_of(found, structure="x"):
    (row,) = found[found["structure"] == structure].to_dict("records")
    return row


def test_five_pairs_on_one_side_give_one_in_thirty_two():
    table = pd.concat([runs([0.9, 0.8, 0.7, 0.9, 0.6]), runs([0.5, 0.6, 0.65, 0.7, 0.5], structure="y", kind="random")])
    row = row_of(summary(table, baseline={"x": "y"}, alternative="greater"))
    assert (row["p"], row["p_floor"], row["pairs"]) == (1 / 32, 1 / 32, 5)
    assert row["difference"] == pytest.approx(np.mean([0.4, 0.2, 0.05, 0.2, 0.1]))
    assert row_of(summary(table, baseline={"x": "y"}))["p"] == 2 / 32
    assert row_of(summary(table, baseline={"x": "y"}, alternative="less"))["p"] == 1.0


def test_paired_and_unpaired_p_are_what_scipy_counts():
    rng = np.random.default_rng(4)
    one, other = rng.normal(0.6, 0.1, 6), rng.normal(0.5, 0.1, 6)
    table = pd.concat([runs(one), runs(other, structure="y")])
    mean = {"vectorized": True, "n_resamples": np.inf, "alternative": "two-sided"}
    paired = stats.permutation_test((one - other,), np.mean, permutation_type="samples", **mean)
    assert row_of(summary(table, baseline={"x": "y"}))["p"] == pytest.approx(paired.pvalue)
    table = pd.concat([runs(one[:3]), runs(other[:5], structure="y")])
    split = stats.permutation_test(
        (one[:3], other[:5]), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type="independent", **mean
    )
    row = row_of(summary(table, baseline={"x": "y"}, paired=False))
    assert row["p"] == pytest.approx(split.pvalue)
    assert row["p_floor"] == pytest.approx(2 / math.comb(8, 3))


def test_pairs_are_runs_of_one_task_and_seed():
    table = pd.concat([runs([0.9, 0.8]), runs([0.1, 0.2, 0.9], structure="y")])
    row = row_of(summary(table, baseline={"x": "y"}))
    assert (row["pairs"], row["difference"]) == (2, pytest.approx(0.7))  # seed 2 of y has no partner


def test_over_tasks_every_task_counts_alike_and_signs_flip_together():
    table = pd.concat(
        [
            runs([0.9] * 6), runs([0.8] * 6, structure="y"),
            runs([0.3, 0.5], task="b"), runs([0.2, 0.4], task="b", structure="y"),
        ]
    )  # fmt: skip
    row = row_of(over_tasks(table, baseline={"x": "y"}, alternative="greater"))
    assert row["task"] == "mean of 2"
    assert row["score"] == pytest.approx((0.9 + 0.4) / 2)  # not the mean of eight runs
    assert (row["p"], row["pairs"]) == (1 / 2**8, 8)
    with pytest.raises(StudyError, match=r"x lacks c"):
        over_tasks(pd.concat([table, runs([0.5], task="c", structure="y")]), tasks=["a", "b", "c"])


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, np.nan, 0.7])[[0, 2]].tolist() == [1.0, 1.0]
    worst = [holm(list(order)).max() for order in itertools.permutations([0.01, 0.02, 0.5])]
    assert worst == [0.5] * 6


def test_intervals_cover_about_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for draw in range(300):
        low, high = interval([rng.normal(0, 1, 8), rng.normal(1, 2, 8)], confidence=0.9, draws=500, seed=draw)
        hits += low <= 0.5 <= high
    assert 0.85 <= hits / 300 <= 0.95
    assert all(np.isnan(interval([np.array([1.0])], confidence=0.9, draws=100, seed=0)))


def test_the_share_kept_is_of_full_fine_tuning_on_the_same_task():
    table = pd.concat([runs([0.6, 0.8]), runs([0.8, 0.8], structure="full", kind="reference")])
    assert row_of(summary(table))["kept"] == pytest.approx(0.7 / 0.8)
    zero = table.assign(score=table["score"].where(table["structure"] != "full", 0.0))
    assert np.isnan(row_of(summary(zero))["kept"])


def test_a_rate_is_chosen_on_validation_and_on_nothing_else():
    grid = [runs([0.0], lr=lr, validation=value) for lr, value in ((1e-3, 0.7), (3e-3, 0.8), (1e-2, 0.8))]
    table = pd.concat([*grid, runs([0.5] * 3, lr=3e-3, validation=0.1).iloc[1:]], ignore_index=True)
    table.loc[table["lr"] == 1e-2, "score"] = 1.0  # the best test score must not matter
    kept = choose_lr(table)
    assert kept["lr"].unique().tolist() == [3e-3]  # the smaller one of equals
    assert len(kept) == 3  # with the seeds that ran at that rate only
    rest = table.assign(validation=table["validation"].where(table["lr"] < 3e-3))
    assert choose_lr(rest)["lr"].unique().tolist() == [1e-3]
    with pytest.raises(StudyError, match=r"no \(index, seed\).*1e-05|no \(index, seed\)"):
        choose_lr(pd.concat([table, runs([0.0, 0.0], lr=1e-5, validation=0.9).iloc[1:]]))


def test_wins_count_tasks_and_say_where_runs_were_too_few():
    parts = []
    for task, n, gain in (("a", 6, 0.1), ("b", 6, -0.1), ("c", 3, 0.1)):
        parts += [runs(gain + 0.5 + 0.01 * np.arange(n), task=task)]
        parts += [runs([0.5] * n, task=task, structure="y")]
    found = wins(pd.concat(parts), "x", "y")
    assert (found.tasks, found.better, found.worse) == (3, 2, 1)
    assert (found.significant, found.significantly_worse, found.attainable) == (1, 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="score"), "no column 'score'"),
        (lambda t: t.assign(score=[np.nan, 0.5]), "not a number"),
        (lambda t: pd.concat([t, t]), "same run"),
        (lambda t: pd.concat([t.assign(lr=1e-3), t.assign(lr=1e-2)]), "choose_lr"),
        (lambda t: t.iloc[:0], "is empty"),
        (lambda t: t.to_dict(), "expected a DataFrame"),
    ],
)
def test_tables_that_cannot_be_summarised_are_refused(change, message):
    with pytest.raises(StudyError, match=message):
        summary(change(runs([0.5, 0.6])))


def test_unknown_options_are_refused():
    table = runs([0.5, 0.6])
    with pytest.raises(StudyError, match="alternative"):
        summary(table, alternative="bigger")
    with pytest.raises(StudyError, match="no structure 'z'"):
        summary(table, baseline={"x": "z"})
    with pytest.raises(StudyError, match="confidence"):
        summary(table, confidence=95)
