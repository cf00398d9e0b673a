"""Variance components: the closed form by hand, estimates and test over many simulated tables, what is refused."""

import numpy as np
import pandas as pd
import pytest

from s3pet.errors import StudyError
from s3pet.studies.variance import variance_components


def runs(scores, task="t", name="random"):
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
        tables.append(runs(of_structure + rng.normal(0, within, (structures, retrainings)), task=str(task)))
    return pd.concat(tables)


def test_balanced_table_by_hand():
    # means 1, 3, 5; mean squares: within ((0.5² · 2) · 3) / 3 = 0.5, between 2 · (4 + 0 + 4) / 2 = 8
    (row,) = variance_components(runs([[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]])).to_dict("records")
    assert (row["task"], row["structure"], row["structures"], row["runs"]) == ("t", "random", 3, 6)
    assert row["within"] ** 2 == pytest.approx(0.5)
    assert row["between"] ** 2 == pytest.approx((8 - 0.5) / 2)
    assert row["icc"] == pytest.approx(3.75 / 4.25)
    # of the 15 ways to pair six runs one is this, and no other has a mean square as large
    assert row["p"] == pytest.approx(1 / 15, abs=0.01)


def test_unequal_numbers_of_retrainings():
    table = runs([[0.0, 2.0], [5.0], [9.0, 11.0, 10.0]])
    (row,) = variance_components(table).to_dict("records")
    sizes, means, grand = np.array([2, 1, 3]), np.array([1.0, 5.0, 10.0]), table["score"].mean()
    within = (2 + 0 + 2) / 3
    between = (sizes * (means - grand) ** 2).sum() / 2
    n0 = (6 - 14 / 6) / 2
    assert row["within"] == pytest.approx(within**0.5)
    assert row["between"] == pytest.approx(((between - within) / n0) ** 0.5)


def test_nothing_between_is_zero_and_no_spread_is_nan():
    (row,) = variance_components(runs([[0.0, 1.0], [1.0, 0.0]])).to_dict("records")
    assert row["between"] == 0 and row["icc"] == 0 and row["p"] == 1
    (row,) = variance_components(runs([[0.5, 0.5], [0.5, 0.5]])).to_dict("records")
    assert np.isnan(row["icc"]) and row["p"] == 1


def test_estimates_are_unbiased_and_the_test_holds_its_level():
    rng = np.random.default_rng(0)
    found = pd.concat(variance_components(simulated(rng, 0.05, 0.03), by=("structure",), draws=100) for _ in range(200))
    assert (found["structures"] == 9).all() and (found["runs"] == 27).all()
    assert (found["between"] ** 2).mean() == pytest.approx(0.05**2, rel=0.15)
    assert (found["within"] ** 2).mean() == pytest.approx(0.03**2, rel=0.1)
    assert (found["p"] < 0.05).mean() > 0.8
    same = pd.concat(variance_components(simulated(rng, 0.0, 0.03), by=("structure",), draws=100) for _ in range(200))
    assert 0.01 < (same["p"] <= 0.05).mean() < 0.1


def test_groups_without_repeats_are_left_out_and_tasks_are_kept_apart():
    table = pd.concat(
        [runs([[1.0, 2.0], [3.0, 4.0]], "a"), runs([[11.0, 12.0], [13.0, 14.0]], "b"), runs([[1.0], [2.0]], "a", "one")]
    )
    found = variance_components(table)
    assert found["task"].tolist() == ["a", "b"]
    pooled = variance_components(table, by=("structure",)).iloc[0]
    assert pooled["between"] == pytest.approx(found["between"][0]) and pooled["runs"] == 8


@pytest.mark.parametrize("scores", [[[1.0], [2.0]], [[1.0, 2.0]]])
def test_without_repeats_there_is_nothing_to_tell(scores):
    found = variance_components(runs(scores))
    assert len(found) == 0 and list(found.columns)[-4:] == ["between", "within", "icc", "p"]


def test_bad_tables_are_refused():
    with pytest.raises(StudyError, match="no column 'score'"):
        variance_components(runs([[1.0, 2.0], [3.0, 4.0]]).drop(columns="score"))
    with pytest.raises(StudyError, match="score is not a number"):
        variance_components(runs([[1.0, float("nan")], [3.0, 4.0]]))
