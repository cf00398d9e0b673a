"""What validation chooses: rates, and the best of several runs; never by the test score."""

import itertools

import numpy as np
import pandas as pd
import pytest
from rows import rows

from s3pet.errors import StudyError
from s3pet.studies.statistics import over_tasks
from s3pet.studies.validation import best_of, choose_lr, keep_best

# --- learning rates ---------------------------------------------------------------------------------------------------


def rates(validation, score=None, **columns):
    """Three seeds at each rate."""
    tables = [rows("mine", score or [0.5] * 3, validation=given, lr=lr) for lr, given in validation.items()]
    return pd.concat(tables).assign(**columns)


def test_the_rate_is_chosen_on_validation_never_on_test():
    table = rates({1e-2: [0.9, 0.7, 0.7], 1e-3: [0.8, 0.8, 0.8], 1e-4: [0.1, 0.2, 0.3]})
    assert set(choose_lr(table)["lr"]) == {1e-3}
    for scores in (np.nan, np.arange(9.0), -np.arange(9.0)):
        assert set(choose_lr(table.assign(score=scores))["lr"]) == {1e-3}
    assert len(choose_lr(table.drop(columns="score"))) == 3
    kept = choose_lr(table.assign(extra="x"))
    assert list(kept) == [*table, "extra"] and len(kept) == 3


def test_each_of_several_structures_may_have_its_own_rate():
    table = pd.concat([rates({1e-2: 0.9, 1e-3: 0.5}), rates({1e-2: 0.1, 1e-3: 0.6}).assign(index=1)])
    kept = choose_lr(table, by=("task", "structure", "index"))
    assert dict(zip(kept["index"], kept["lr"], strict=True)) == {0: 1e-2, 1: 1e-3}
    assert set(choose_lr(table)["lr"]) == {1e-3}  # 0.55 on average, against 0.5


def test_rates_are_compared_on_the_same_seeds():
    table = rates({1e-2: [0.9, 0.1, 0.1], 1e-3: [0.8, 0.8, 0.8]})
    table = table[~((table["lr"] == 1e-2) & (table["seed"] > 0))]  # the worse rate ran on its lucky seed only
    assert set(choose_lr(table)["lr"]) == {1e-2}  # on seed 0 it is the better one
    with pytest.raises(
        StudyError, match=r"no \(index, seed\) of task 'a', structure 'mine' has all its 2 learning rates"
    ):
        choose_lr(table[~((table["lr"] == 1e-3) & (table["seed"] == 0))])


def test_ties_divergence_and_rows_without_a_rate():
    assert set(choose_lr(rates({1e-2: [0.6, 0.8, 0.7], 1e-3: [0.7, 0.7, 0.7]}))["lr"]) == {1e-3}
    assert set(choose_lr(rates({1e-2: [0.9, np.nan, 0.9], 1e-3: [0.1] * 3}))["lr"]) == {1e-3}
    table = pd.concat([rates({1e-2: [0.9] * 3, 1e-3: [0.1] * 3}), rows("zero-shot", [0.5], lr=np.nan)])
    assert len(choose_lr(table)) == 4
    other = rates({1e-2: [0.1] * 3, 1e-3: [0.9] * 3}, task="b")
    found = choose_lr(pd.concat([table, other])).groupby("task")["lr"].max()
    assert found.to_dict() == {"a": 1e-2, "b": 1e-3}
    with pytest.raises(StudyError, match="every learning rate of task 'a', structure 'mine' has a run without"):
        choose_lr(rates({1e-2: [np.nan] * 3, 1e-3: [np.nan] * 3}))


def test_a_rate_with_a_diverged_run_is_never_chosen():
    table = rates({1e-2: [0.9, 0.9, 0.9], 1e-3: [0.1] * 3}).assign(diverged=False)
    table.loc[table["lr"].eq(1e-2) & table["seed"].eq(1), "diverged"] = True  # whatever its scores say
    assert set(choose_lr(table)["lr"]) == {1e-3}
    lone = pd.concat([table[~table["diverged"]], rows("mine", [0.5], seeds=[7], lr=1e-2, diverged=True)])
    assert set(choose_lr(lone)["lr"]) == {1e-3}  # also where the diverged run has no partner at the other rate


# --- the best of several ----------------------------------------------------------------------------------------------


def test_keeping_the_best_of_k_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    table = rows("mine", rng.random(6), validation=rng.permutation(6) / 6)
    for k in (1, 2, 3, 6):
        subsets = [table.iloc[[*picks]] for picks in itertools.combinations(range(6), k)]
        kept = [part.loc[part["validation"].idxmax(), "score"] for part in subsets]
        assert best_of(table.reset_index(drop=True), k)["score"].item() == pytest.approx(np.mean(kept))
    assert best_of(table, 1)["score"].item() == pytest.approx(table["score"].mean())


def test_equal_validation_scores_are_kept_equally_often():
    table = rows("mine", [0.0, 1.0, 0.5], validation=[0.7, 0.7, 0.2])
    for order in itertools.permutations(range(3)):
        # of the three pairs one holds both good ones (0.5), the others one of them (0 and 1)
        assert best_of(table.iloc[[*order]], 2)["score"].item() == pytest.approx(0.5)


def test_the_best_of_more_runs_than_there_are_is_left_out():
    table = pd.concat([rows("few", [0.5, 0.6]), rows("many", [0.5, 0.6, 0.7], validation=[0.1, 0.2, 0.3])])
    found = best_of(table, 3)
    assert found.to_dict("records") == [{"task": "a", "structure": "many", "score": 0.7, "runs": 3}]
    with pytest.raises(StudyError, match="k=0"):
        best_of(table, 0)
    with pytest.raises(StudyError, match="validation is not a number in runs of"):
        best_of(table.assign(validation=np.nan), 1)


def test_the_best_of_each_three_seeds_is_kept_by_validation():
    validation = [0.1, 0.3, 0.2, 0.5, 0.5, 0.4, 0.9]
    table = pd.concat([rows("mine", [0, 1, 2, 3, 4, 5, 6.0], validation=validation), rows("few", [0.5, 0.6])])
    kept = keep_best(table.sample(frac=1, random_state=0), 3)
    assert kept["structure"].eq("mine").all()  # the seventh run, and two of another, are no three
    assert dict(zip(kept["seed"], kept["score"], strict=True)) == {0: 1, 1: 3}
    assert kept["index"].tolist() == kept["seed"].tolist() and {*table} <= {*kept}
    alone = keep_best(table, 1)
    assert alone.sort_values(["structure", "seed"])["score"].tolist() == [0.5, 0.6, 0, 1, 2, 3, 4, 5, 6]


def test_what_is_kept_can_be_compared_in_pairs():
    tables = [rows(name, [0.5 + more] * 6, task=task) for name, more in (("mine", 0.1), ("other", 0)) for task in "ab"]
    found = over_tasks(keep_best(pd.concat(tables), 3), baseline="other").set_index("structure").loc["mine"]
    assert found["pairs"] == 4 and found["difference"] == pytest.approx(0.1)


def test_the_best_of_what_cannot_be_told_apart_is_refused():
    with pytest.raises(StudyError, match="k=0"):
        keep_best(rows("mine", [0.5]), 0)
    with pytest.raises(StudyError, match="seed 1 of 'mine' on 'a' occurs twice"):
        keep_best(rows("mine", [0.5, 0.6, 0.7], seeds=[0, 1, 1]), 2)
    with pytest.raises(StudyError, match="validation is not a number in runs of"):
        keep_best(rows("mine", [0.5], validation=np.nan), 1)
