"""Statistics: against hand-computed p values, scipy, and distributions whose answer is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from rows import rows
from scipy import stats

from s3pet.errors import S3PetError, StudyError
from s3pet.studies.resampling import flips, holm, interval, p_value, splits
from s3pet.studies.statistics import over_tasks, summary, wins

QUICK = {"draws": 500}
INTERVAL = {"confidence": 0.95, "draws": 2000, "seed": 0}


def five(differences=(0.01, 0.02, 0.03, 0.04, 0.05), task="a"):
    base = np.array([0.6, 0.7, 0.65, 0.72, 0.8])
    return pd.concat([rows("mine", base + differences, task=task), rows("other", base, task=task)])


def row(found, structure="mine"):
    return found[found["structure"] == structure].iloc[0]


# --- tests ------------------------------------------------------------------------------------------------------------


def test_five_positive_pairs_give_one_in_32():
    table = five()
    one = row(summary(table, baseline="other", alternative="greater", **QUICK))
    two = row(summary(table, baseline={"mine": "other"}, **QUICK))
    less = row(summary(table, baseline=lambda name: "other" if name == "mine" else None, alternative="less", **QUICK))
    assert (one["p"], one["p_floor"]) == (1 / 32, 1 / 32)
    assert (two["p"], two["p_floor"]) == (1 / 16, 1 / 16)
    assert less["p"] == 1
    assert (one["pairs"], one["baseline"]) == (5, "other")
    assert one["difference"] == pytest.approx(0.03)


def test_a_negative_pair_counts_as_by_hand():
    # d = (3, 4, −1): sums of sign changes ≥ 6: (3, 4, 1) and (3, 4, −1) → 2 of 8
    found = row(summary(pd.concat([rows("mine", [3, 4, -1.0]), rows("other", [0, 0, 0.0])]), baseline="other", **QUICK))
    assert found["p"] == 4 / 8
    one = pd.concat([rows("mine", [3, 4, -1.0]), rows("other", [0, 0, 0.0])])
    assert row(summary(one, baseline="other", alternative="greater", **QUICK))["p"] == 2 / 8


def test_equal_sides_are_no_evidence():
    found = row(summary(five([0.0] * 5), baseline="other", **QUICK))
    assert (found["difference"], found["p"], found["difference_low"], found["difference_high"]) == (0, 1, 0, 0)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_exact_p_values_are_scipys(alternative):
    rng = np.random.default_rng(1)
    given = rng.normal(0.3, 1, 8)
    theirs = stats.permutation_test(
        (given,), lambda x, axis: x.mean(axis), permutation_type="samples", vectorized=True, alternative=alternative,
        n_resamples=np.inf,
    )  # fmt: skip
    p, floor = p_value(given.mean(), [flips(given, 10, rng)], alternative, 10, rng)
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert floor == (2 if alternative == "two-sided" else 1) / 2**8
    one, other = rng.normal(0.5, 1, 3), rng.normal(0, 1, 5)
    theirs = stats.permutation_test(
        (one, other), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type="independent", vectorized=True,
        alternative=alternative, n_resamples=np.inf,
    )  # fmt: skip
    p, floor = p_value(one.mean() - other.mean(), [splits(one, other, 10, rng)], alternative, 10, rng)
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert floor == (2 if alternative == "two-sided" else 1) / 56


def test_several_tasks_permute_within_each():
    rng = np.random.default_rng(2)
    parts = [rng.normal(0.2, 1, n) for n in (3, 4, 2)]
    observed = np.mean([part.mean() for part in parts])
    hits = 0
    for signs in itertools.product([-1, 1], repeat=9):
        one, two, three = np.split(np.array(signs) * np.concatenate(parts), [3, 7])
        hits += np.mean([one.mean(), two.mean(), three.mean()]) >= observed - 1e-12
    exact, _ = p_value(observed, [flips(part, 10, rng) for part in parts], "greater", 10, rng)
    assert exact == hits / 2**9
    drawn, floor = p_value(observed, [(flips(part, 10, rng)[0], False) for part in parts], "greater", 20_000, rng)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert floor == 1 / 20_001


def test_many_runs_are_sampled_and_repeatable():
    rng = np.random.default_rng(3)
    one, other = rng.normal(0.25, 1, 40), np.zeros(40)
    table = pd.concat([rows("mine", one), rows("other", other)])
    found = [row(summary(table, baseline="other", draws=4000, seed=5)) for _ in range(2)]
    assert found[0]["p"] == found[1]["p"]
    assert found[0]["p"] == pytest.approx(stats.ttest_rel(one, other).pvalue, abs=0.02)
    assert found[0]["p_floor"] == 2 / 4001
    unpaired = row(summary(table, baseline="other", draws=4000, paired=False))
    assert unpaired["p"] == pytest.approx(stats.ttest_ind(one, other).pvalue, abs=0.02)


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(4)
    p = [p_value(d.mean(), [flips(d, 10, rng)], "greater", 10, rng)[0] for d in rng.normal(size=(600, 6))]
    assert set(np.mod(np.array(p) * 64, 1)) == {0}
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


def test_three_searches_against_five_random_structures():
    searched = [rows("mine", [0.9 + i / 100] * 2, index=i) for i in range(3)]
    random = [rows("other", [0.8 + i / 100] * 2, index=i) for i in range(5)]
    found = row(summary(pd.concat(searched + random), baseline="other", paired=False, alternative="greater", **QUICK))
    assert found["p"] == found["p_floor"] == 1 / math.comb(8, 3)
    assert pd.isna(found["pairs"])
    assert found["difference"] == pytest.approx(0.91 - 0.82)
    assert found["difference_low"] < 0.09 < found["difference_high"]
    # without its task, an unpaired baseline is no baseline
    lone = row(summary(pd.concat([*searched, rows("other", [0.5], task="b")]), baseline="other", paired=False, **QUICK))
    assert np.isnan(lone["p"])


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


def test_intervals_cover_what_they_say():
    rng = np.random.default_rng(5)
    options = {"confidence": 0.9, "draws": 400, "seed": 0}
    single = [interval([rng.normal(size=10)], **options) for _ in range(400)]
    tasks = [interval([rng.normal(i, 1 + i, 3) for i in range(4)], **options) for _ in range(400)]
    two = [interval([rng.normal(1, 1, 6)], [rng.normal(0, 2, 8)], **options) for _ in range(400)]
    for found, truth in ((single, 0), (tasks, 1.5), (two, 1)):
        share = np.mean([low < truth < high for low, high in found])
        assert 0.85 < share < 0.95  # four standard errors are 0.06


def test_intervals_of_many_runs_are_those_of_t():
    given = np.random.default_rng(6).normal(size=300)
    ends = stats.t.interval(0.95, 299, given.mean(), stats.sem(given))
    np.testing.assert_allclose(interval([given], confidence=0.95, draws=20_000, seed=0), ends, atol=0.01)


def test_single_runs_have_no_interval_and_no_noise():
    table = pd.concat([rows("mine", [0.8]), rows("other", [0.7]), rows("full", [0.9], kind="reference")])
    found = summary(table, baseline="other", **QUICK)
    assert found[["spread", "low", "high", "difference_low", "difference_high"]].isna().all(axis=None)
    assert row(found)["p"] == row(found)["p_floor"] == 1  # two-sided with one pair
    assert interval([np.array([1.0, 1.0])], **INTERVAL) == (1, 1)
    bare = summary(table.drop(columns=["index", "budget", "head_params", "seconds", "lr", "validation"]), **QUICK)
    assert bare["seconds"].isna().all() and bare["budget"].isna().all()


def test_structures_may_be_the_unit():
    rng = np.random.default_rng(7)
    table = pd.concat([rows("mine", 0.8 + i / 20 + rng.normal(0, 0.001, 6), index=i) for i in range(4)])
    by_run, by_structure = (row(summary(table, unit=unit, **QUICK)) for unit in ("run", "structure"))
    assert by_structure["high"] - by_structure["low"] > 1.5 * (by_run["high"] - by_run["low"])
    alone = table[table["index"] == 0]
    assert summary(alone, unit="run", **QUICK).equals(summary(alone, unit="structure", **QUICK))


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
    assert summary(table, full="nothing", **QUICK)["kept"].isna().all()


def test_a_csv_is_as_good(tmp_path):
    table = pd.concat([five(), rows("mine", [0.2, 0.3], task="b", budget=77)])
    table.to_csv(tmp_path / "rows.csv", index=False)
    again = pd.read_csv(tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(summary(table, **QUICK), summary(again, **QUICK), check_dtype=False)


def test_baselines_are_matched_within_other_groups():
    parts = [rows(name, [top + n / 1e4, top], budget=n) for n in (100, 200) for name, top in (("s", 0.8), ("r", 0.7))]
    table = pd.concat([*parts, rows("lnfit", [0.75, 0.75])])
    found = summary(table, by=("task", "structure", "budget"), baseline={"s": "r"}, **QUICK)
    both = found[found["structure"] == "s"]
    assert both["budget"].tolist() == [100, 200]
    np.testing.assert_allclose(both["difference"], [0.1, 0.1])
    found = summary(table, by=("task", "structure", "budget"), baseline={"s": "lnfit"}, **QUICK)
    np.testing.assert_allclose(found.loc[found["structure"] == "s", "difference"], [0.055, 0.06])
    with pytest.raises(StudyError, match=r"same run .* with several values of budget; add it to by="):
        summary(table, **QUICK)


def test_the_mean_over_tasks():
    table = pd.concat([five(), five([0.2] * 5, "b"), rows("full", [1.0], kind="reference")])
    table = pd.concat([table, rows("full", [0.8], task="b", kind="reference"), rows("other", [0.1], task="c")])
    found = over_tasks(table, baseline={"mine": "other"}, alternative="greater", **QUICK)
    assert set(found["task"]) == {"mean of 2"}  # not c: only one structure was run on it
    mine, per_task = row(found), summary(table, **QUICK)
    scores = per_task[per_task["structure"] == "mine"]
    assert mine["score"] == pytest.approx(scores["score"].mean())
    assert mine["kept"] == pytest.approx(scores["score"].mean() / 0.9)
    assert mine["spread"] == pytest.approx(np.sqrt((scores["spread"] ** 2).sum()) / 2)
    assert mine["runs"] == mine["pairs"] == 10
    assert mine["difference"] == pytest.approx((0.03 + 0.2) / 2)
    assert mine["p"] == mine["p_floor"] == 1 / 2**10
    assert mine["low"] < mine["score"] < mine["high"]
    both = pd.concat([table.assign(budget=1), table.assign(budget=2, score=table["score"] / 2)])
    by_budget = over_tasks(both, by=("task", "structure", "budget"), **QUICK)
    assert len(by_budget) == 6 and list(by_budget)[:3] == ["task", "structure", "budget"]


def test_a_mean_over_different_tasks_is_refused():
    table = pd.concat([five(), five(task="b"), rows("third", [0.1], task="c")])
    with pytest.raises(StudyError, match="mine lacks c; other lacks c; third lacks a, b; leave these out"):
        over_tasks(table, **QUICK)
    with pytest.raises(StudyError, match="third lacks a, b"):
        over_tasks(table, tasks=["a", "b"], **QUICK)
    assert set(over_tasks(table[table["structure"] != "third"], tasks=["a"], **QUICK)["task"]) == {"mean of 1"}


def test_wins_are_counted_and_bounded_by_the_runs():
    differences = {"a": [0.1] * 5, "b": [-0.1, -0.2, -0.1, -0.1, -0.1], "c": [0.1, -0.05, 0, 0.1, 0.1]}
    table = pd.concat([five(given, task) for task, given in differences.items()] + [rows("mine", [0.5], task="d")])
    found = wins(table, "mine", "other", alpha=0.1, **QUICK)
    assert (found.tasks, found.better, found.worse) == (3, 2, 1)
    assert (found.significant, found.significantly_worse, found.significant_holm, found.attainable) == (1, 1, 0, 3)
    assert len(found.table) == 3
    assert "table" not in repr(found)
    assert wins(table, "mine", "other", **QUICK).attainable == 0  # five pairs never get below 1/16
    with pytest.raises(StudyError, match=r"no structure 'othr'; nearest: 'other'"):
        wins(table, "mine", "othr")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t.drop(columns="score"), {}, r"no column 'score' \(nearest"),
        (lambda t: t.drop(columns=["kind", "seed"]), {}, r"no column 'kind' .*, 'seed'"),
        (lambda t: t, {"by": ("task", "strcture")}, r"no column 'strcture' \(nearest: 'structure'"),
        (lambda t: t[:0], {}, "is empty"),
        (lambda t: t.to_dict(), {}, "expected a DataFrame .* got dict"),
        (lambda t: t.assign(score=[np.nan] + [0.5] * 9), {}, r"score is not a number in runs of \['mine'\]"),
        (lambda t: pd.concat([t, t.assign(lr=1)]), {}, r"2 rows are the same run \(task a, .*choose_lr"),
        (lambda t: pd.concat([t, t]), {}, "same run .* drop the duplicates"),
        (lambda t: t, {"baseline": "random"}, "no structure 'random'"),
        (lambda t: t, {"baseline": {"mien": "other"}}, "no structure 'mien'; nearest: 'mine'"),
        (lambda t: t, {"baseline": "other", "by": ["task"]}, "does not tell structures apart"),
        (lambda t: t, {"alternative": "more"}, "alternative='more' is not one of two-sided, greater, less"),
        (lambda t: t, {"unit": "seed"}, "unit='seed' is not one of run, structure"),
        (lambda t: t, {"confidence": 95}, "confidence between 0 and 1"),
    ],
)
def test_what_cannot_be_summarised_is_refused(change, options, message):
    with pytest.raises(StudyError, match=message):
        summary(change(five()), **options)
    assert issubclass(StudyError, S3PetError) and issubclass(StudyError, ValueError)
