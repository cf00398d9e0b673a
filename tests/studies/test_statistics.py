"""Statistics: against p values by hand, SciPy, and distributions whose answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from rows import rows
from scipy import stats

from s3pet.errors import S3PetError, StudyError
from s3pet.plots.intervals import mean_interval
from s3pet.studies.statistics import holm, over_tasks, permutation_test, summary, variance_components

QUICK = {"draws": 500}


def five(differences=(0.01, 0.02, 0.03, 0.04, 0.05), task="a"):
    base = np.array([0.6, 0.7, 0.65, 0.72, 0.8])
    return pd.concat([rows("mine", base + differences, task=task), rows("other", base, task=task)])


def row(found, structure="mine"):
    return found[found["structure"] == structure].iloc[0]


# --- tests ------------------------------------------------------------------------------------------------------------


def test_five_positive_pairs_give_one_in_16():
    one, two = (row(summary(five(), baseline=baseline, **QUICK)) for baseline in ("other", {"mine": "other"}))
    assert (one["p"], one["p_floor"]) == (two["p"], two["p_floor"]) == (1 / 16, 1 / 16)
    assert (one["pairs"], one["baseline"]) == (5, "other")
    assert one["difference"] == pytest.approx(0.03)


def test_a_negative_pair_counts_as_by_hand():
    # d = (3, 4, −1): sums of sign changes ≥ 6: (3, 4, 1) and (3, 4, −1) → 2 of 8
    found = row(summary(pd.concat([rows("mine", [3, 4, -1.0]), rows("other", [0, 0, 0.0])]), baseline="other", **QUICK))
    assert found["p"] == 4 / 8


def test_equal_sides_are_no_evidence():
    found = row(summary(five([0.0] * 5), baseline="other", **QUICK))
    assert (found["difference"], found["p"], found["difference_low"], found["difference_high"]) == (0, 1, 0, 0)


def check_against(null, observed, result):
    """Two-sided p and its floor, given the differences under all permutations."""
    smaller = min(np.mean(null >= observed - 1e-12), np.mean(null <= observed + 1e-12))
    assert result == pytest.approx((min(1, 2 * smaller), 2 / len(null)), abs=1e-12)


def test_exact_p_values_by_enumeration():
    rng = np.random.default_rng(1)
    pairs = rng.normal(0.3, 1, 8)
    null = np.array([np.mean(np.array(signs) * pairs) for signs in itertools.product([-1, 1], repeat=8)])
    check_against(null, pairs.mean(), permutation_test([pairs]))


def test_several_tasks_permute_within_each(monkeypatch):
    rng = np.random.default_rng(2)
    parts = [rng.normal(0.2, 1, n) for n in (3, 4, 2)]
    observed, null = np.mean([part.mean() for part in parts]), []
    for signs in itertools.product([-1, 1], repeat=9):
        one, two, three = np.split(np.array(signs) * np.concatenate(parts), [3, 7])
        null.append(np.mean([one.mean(), two.mean(), three.mean()]))
    exact = permutation_test(parts)
    check_against(np.array(null), observed, exact)
    monkeypatch.setattr("s3pet.studies.statistics.EXACT", 100)
    p, floor = permutation_test(parts, draws=20_000)
    assert p == pytest.approx(exact[0], abs=0.02) and floor == 2 / 20_001


def test_many_runs_are_sampled_and_repeatable():
    rng = np.random.default_rng(3)
    one, other = rng.normal(0.25, 1, 40), np.zeros(40)
    table = pd.concat([rows("mine", one), rows("other", other)])
    found = [row(summary(table, baseline="other", draws=4000, seed=5)) for _ in range(2)]
    assert found[0]["p"] == found[1]["p"]
    assert found[0]["p"] == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=0.02)
    assert found[0]["p_floor"] == 2 / 4001


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(4)
    p = [permutation_test([pairs])[0] for pairs in rng.normal(size=(400, 6))]
    assert set(np.mod(np.array(p) * 32, 1)) == {0}
    assert stats.kstest(p, "uniform").statistic < 0.08


def test_pairs_are_task_and_seed_and_several_runs_are_averaged_first():
    mine = pd.concat([rows("mine", [0.8, 0.9], index=0), rows("mine", [0.6, 0.9], index=1)])
    other = rows("other", [0.6, 0.7, 0.1], seeds=[1, 0, 7])
    found = row(summary(pd.concat([mine, other]), baseline="other", **QUICK))
    assert found["pairs"] == 2  # seed 7 has no partner
    assert found["difference"] == pytest.approx(((0.7 - 0.7) + (0.9 - 0.6)) / 2)
    assert found["p"] == 1  # one of the two differences is 0
    apart = row(summary(pd.concat([mine, rows("other", [0.5], seeds=[9])]), baseline="other", **QUICK))
    assert apart["pairs"] == 0
    assert np.isnan([apart["difference"], apart["p"], apart["p_holm"], apart["p_floor"]]).all()


def test_holm_against_a_worked_example():
    # Holm by hand: 0.005·4, then max(0.02, 0.01·3), max(0.03, 0.03·2), max(0.06, 0.04·1)
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_array_equal(holm([0.5, np.nan, 0.7]), [1, np.nan, 1])
    np.testing.assert_array_equal(holm([]), [])
    table = pd.concat([five(task="a"), five([0.1, -0.1, 0, 0.05, 0], task="b")])
    found = summary(table, baseline="other", **QUICK)
    np.testing.assert_allclose(found["p_holm"], holm(found["p"]))
    assert row(found)["p_holm"] == 2 / 16


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_intervals_are_those_of_the_figures():
    rng = np.random.default_rng(5)
    mine, other = [rng.normal(0.8, 0.1, 4) for _ in "ab"], [rng.normal(0.7, 0.1, 3) for _ in "ab"]
    table = pd.concat([rows("mine", scores, task=task) for scores, task in zip(mine, "ab", strict=True)])
    table = pd.concat([table, *(rows("other", scores, task=task) for scores, task in zip(other, "ab", strict=True))])
    by_task, together = row(summary(table)), row(over_tasks(table, baseline="other"))
    assert (by_task["low"], by_task["high"]) == mean_interval(mine[:1])
    assert (together["low"], together["high"]) == mean_interval(mine)
    pairs = [one[:3] - two for one, two in zip(mine, other, strict=True)]
    assert (together["difference_low"], together["difference_high"]) == mean_interval(pairs)


def test_single_runs_have_no_interval():
    table = pd.concat([rows("mine", [0.8]), rows("other", [0.7]), rows("full", [0.9], kind="reference")])
    result = summary(table, baseline="other", **QUICK)
    assert result[["spread", "low", "high", "difference_low", "difference_high"]].isna().all(axis=None)
    assert row(result)["p"] == row(result)["p_floor"] == 1  # two-sided with one pair
    bare = summary(table.drop(columns=["index", "budget", "head_params", "seconds", "lr", "validation"]), **QUICK)
    assert bare["seconds"].isna().all() and bare["budget"].isna().all()


def test_diverged_runs_are_counted_and_left_out():
    table = pd.concat([five(), rows("lost", [np.nan] * 2, diverged=True)])
    table.loc[table["structure"].eq("mine") & table["seed"].eq(4), ["score", "diverged"]] = [np.nan, True]
    result = summary(table, baseline="other", **QUICK)
    mine = row(result)
    assert (mine["runs"], mine["diverged"], mine["pairs"]) == (5, 1, 4)
    assert mine["score"] == pytest.approx(np.mean([0.61, 0.72, 0.68, 0.76])) and mine["difference"] == pytest.approx(
        0.025
    )
    lost = row(result, "lost")
    assert np.isnan(lost[["score", "low", "difference", "p"]].astype(float)).all() and lost["diverged"] == 2
    assert row(result, "other")["diverged"] == 0
    with pytest.raises(StudyError, match="not a number in runs of"):
        summary(table.assign(diverged=False))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_summary_of_a_small_table():
    table = pd.concat([
        rows("mine", [0.8, 0.9], n_params=[100, 110], seconds=[1.0, 3.0], budget=pd.array([120, 120], "Int64")),
        rows("full", [0.9, 1.0], kind="reference", n_params=9000),
        rows("mine", [0.1], task="b"),
        rows("full", [-0.1], task="b", kind="reference"),
        rows("mine", [0.1], task="c"),
    ])  # fmt: skip
    found = summary(table, **QUICK)
    assert found["task"].tolist() == ["a", "a", "b", "b", "c"]
    assert found["structure"].tolist()[:2] == ["full", "mine"]  # best first
    mine = row(found)
    assert mine[["kind", "budget", "n_params", "head_params", "runs"]].tolist() == ["manual", 120, 105, 10, 2]
    assert mine["score"] == pytest.approx(0.85)
    assert mine["spread"] == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert mine["kept"] == pytest.approx(0.85 / 0.95)
    assert mine["seconds"] == 2
    assert found.loc[found["task"] != "a", "kept"].isna().all()  # full not > 0; no full
    assert str(found["budget"].dtype) == "Int64"
    assert "p" not in found
    assert summary(table[table["structure"] != "full"], **QUICK)["kept"].isna().all()


def test_a_csv_is_as_good(tmp_path):
    table = pd.concat([five(), rows("mine", [0.2, 0.3], task="b", budget=77)])
    table.to_csv(tmp_path / "rows.csv", index=False)
    again = pd.read_csv(tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(summary(table, **QUICK), summary(again, **QUICK), check_dtype=False)


def test_the_mean_over_tasks():
    table = pd.concat([five(), five([0.2] * 5, "b"), rows("full", [1.0], kind="reference")])
    table = pd.concat([table, rows("full", [0.8], task="b", kind="reference"), rows("other", [0.1], task="c")])
    found = over_tasks(table, baseline={"mine": "other"}, **QUICK)
    assert set(found["task"]) == {"mean of 2"}  # not c: only one structure was run on it
    mine, per_task = row(found), summary(table, **QUICK)
    scores = per_task[per_task["structure"] == "mine"]
    assert mine["score"] == pytest.approx(scores["score"].mean())
    assert mine["kept"] == pytest.approx(scores["score"].mean() / 0.9)
    assert mine["spread"] == pytest.approx(np.sqrt((scores["spread"] ** 2).sum()) / 2)
    assert mine["runs"] == mine["pairs"] == 10
    assert mine["difference"] == pytest.approx((0.03 + 0.2) / 2)
    assert mine["p"] == mine["p_floor"] == 2 / 2**10
    assert mine["low"] < mine["score"] < mine["high"]


def test_a_mean_over_different_tasks_is_refused():
    table = pd.concat([five(), five(task="b"), rows("third", [0.1], task="c")])
    with pytest.raises(StudyError, match="mine lacks c; other lacks c; third lacks a, b; leave out some structures"):
        over_tasks(table, **QUICK)
    assert set(over_tasks(table[table["structure"] != "third"], **QUICK)["task"]) == {"mean of 2"}


# --- variance components ---------------------------------------------------------------------------------------------


def retrainings_of(scores, task="t", name="random"):
    """Scores [structures][retrainings] as a table."""
    return pd.DataFrame(
        [
            {"task": task, "structure": name, "index": k, "seed": k + r, "score": score}
            for k, row in enumerate(scores)
            for r, score in enumerate(row)
        ]
    )


def simulated(rng, between, within, tasks=3, structures=3, retrainings=3):
    tables = []
    for task in range(tasks):
        of_structure = rng.normal(0.1 * task, between, (structures, 1))  # tasks differ, and must not count
        tables.append(retrainings_of(of_structure + rng.normal(0, within, (structures, retrainings)), task=str(task)))
    return pd.concat(tables)


def test_balanced_table_by_hand():
    # means 1, 3, 5; mean squares: within ((0.5² · 2) · 3) / 3 = 0.5, between 2 · (4 + 0 + 4) / 2 = 8
    (row,) = variance_components(retrainings_of([[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]])).to_dict("records")
    assert (row["task"], row["structure"], row["structures"], row["runs"]) == ("t", "random", 3, 6)
    assert row["within"] ** 2 == pytest.approx(0.5)
    assert row["between"] ** 2 == pytest.approx((8 - 0.5) / 2)
    assert row["icc"] == pytest.approx(3.75 / 4.25)
    # of the 15 ways to pair six runs one is this, and no other has a mean square as large
    assert row["p"] == pytest.approx(1 / 15, abs=0.01)


def test_unequal_numbers_of_retrainings():
    table = retrainings_of([[0.0, 2.0], [5.0], [9.0, 11.0, 10.0]])
    (row,) = variance_components(table).to_dict("records")
    sizes, means, grand = np.array([2, 1, 3]), np.array([1.0, 5.0, 10.0]), table["score"].mean()
    within = (2 + 0 + 2) / 3
    between = (sizes * (means - grand) ** 2).sum() / 2
    n0 = (6 - 14 / 6) / 2
    assert row["within"] == pytest.approx(within**0.5)
    assert row["between"] == pytest.approx(((between - within) / n0) ** 0.5)


def test_nothing_between_is_zero_and_no_spread_is_nan():
    (row,) = variance_components(retrainings_of([[0.0, 1.0], [1.0, 0.0]])).to_dict("records")
    assert row["between"] == 0 and row["icc"] == 0 and row["p"] == 1
    (row,) = variance_components(retrainings_of([[0.5, 0.5], [0.5, 0.5]])).to_dict("records")
    assert np.isnan(row["icc"]) and row["p"] == 1


def test_estimates_are_unbiased_and_the_test_holds_its_level():
    rng = np.random.default_rng(0)
    parts = pd.concat(variance_components(simulated(rng, 0.05, 0.03), by=("structure",), draws=100) for _ in range(200))
    assert (parts["structures"] == 9).all() and (parts["runs"] == 27).all()
    assert (parts["between"] ** 2).mean() == pytest.approx(0.05**2, rel=0.15)
    assert (parts["within"] ** 2).mean() == pytest.approx(0.03**2, rel=0.1)
    assert (parts["p"] < 0.05).mean() > 0.8
    same = pd.concat(variance_components(simulated(rng, 0.0, 0.03), by=("structure",), draws=100) for _ in range(200))
    assert 0.01 < (same["p"] <= 0.05).mean() < 0.1


def test_groups_without_repeats_are_left_out_and_tasks_are_kept_apart():
    table = pd.concat(
        [
            retrainings_of([[1.0, 2.0], [3.0, 4.0]], "a"),
            retrainings_of([[11.0, 12.0], [13.0, 14.0]], "b"),
            retrainings_of([[1.0], [2.0]], "a", "one"),
        ]
    )
    parts = variance_components(table)
    assert parts["task"].tolist() == ["a", "b"]
    pooled = variance_components(table, by=("structure",)).iloc[0]
    assert pooled["between"] == pytest.approx(parts["between"][0]) and pooled["runs"] == 8


@pytest.mark.parametrize("scores", [[[1.0], [2.0]], [[1.0, 2.0]]])
def test_without_repeats_there_is_nothing_to_tell(scores):
    parts = variance_components(retrainings_of(scores))
    assert len(parts) == 0 and list(parts.columns)[-4:] == ["between", "within", "icc", "p"]


def test_bad_tables_of_repeats_are_refused():
    with pytest.raises(StudyError, match="no column 'score'"):
        variance_components(retrainings_of([[1.0, 2.0], [3.0, 4.0]]).drop(columns="score"))
    with pytest.raises(StudyError, match="score is not a number"):
        variance_components(retrainings_of([[1.0, float("nan")], [3.0, 4.0]]))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t.drop(columns="score"), {}, r"no column 'score' \(nearest"),
        (lambda t: t.drop(columns=["kind", "seed"]), {}, r"no column 'kind' .*, 'seed'"),
        (lambda t: t[:0], {}, "got an empty table"),
        (lambda t: t.to_dict(), {}, "expected a DataFrame .* got dict"),
        (lambda t: t.assign(score=[np.nan] + [0.5] * 9), {}, r"score is not a number in runs of \['mine'\]"),
        (lambda t: pd.concat([t, t.assign(lr=1)]), {}, r"2 rows are the same run \(task a, .*choose_lr"),
        (lambda t: pd.concat([t, t]), {}, "same run .* drop the duplicates"),
        (lambda t: t, {"baseline": "random"}, "no structure 'random'"),
        (lambda t: t, {"baseline": {"mien": "other"}}, "no structure 'mien'; nearest: 'mine'"),
    ],
)
def test_what_cannot_be_summarised_is_refused(change, options, message):
    with pytest.raises(StudyError, match=message):
        summary(change(five()), **options)
    assert issubclass(StudyError, S3PetError) and issubclass(StudyError, ValueError)
