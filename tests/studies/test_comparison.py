"""Comparisons: one row per structure and seed, resumed row by row; what decides a row, and damaged files."""

import json

import pandas as pd
import pytest
import torch
from tiny import tiny_bert, tiny_t5
from toy import toy_task

from s3pet import compare, make_space, manual_structure, random_structure
from s3pet.errors import RunError, SearchError
from s3pet.studies import comparison
from s3pet.studies.statistics import summary

QUICK = {"steps": 4, "batch_size": 8, "evaluations": 1, "progress": False}


def test_one_row_per_structure_and_seed():
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    structures = {
        "random": [random_structure(space, 300, seed=seed) for seed in range(2)],
        "lnfit": manual_structure(space, "lnfit"),
        "full": "full",
        "zero-shot": "zero-shot",
    }
    table = compare(model, task, structures, seeds=(0, 1), **QUICK)
    assert table.groupby("structure").size().to_dict() == {"random": 4, "lnfit": 2, "full": 2, "zero-shot": 2}
    assert set(table.kind) == {"random", "manual", "reference"}
    full = table[table.structure == "full"].iloc[0]
    assert full.n_params == space.backbone_params
    found = summary(table).set_index("structure")
    rows = table[table.structure == "random"].score
    assert found.score["random"] == pytest.approx(rows.mean())
    assert found.spread["random"] == pytest.approx(rows.std())
    assert found.runs["random"] == 4


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
def test_structures_trained_together_have_the_scores_of_those_trained_alone(make_model, tmp_path, monkeypatch):
    model, task, path = make_model(), toy_task(), tmp_path / "rows.jsonl"
    space = make_space(model, "mixed")
    structures = {"random": [random_structure(space, 300, seed=seed) for seed in range(3)], "head": "head"}
    options = {"steps": 6, "batch_size": 8, "evaluations": 3, "lr": 1e-2, "seeds": (0, 1), "progress": False}
    alone = compare(model, task, structures, **options)
    together = compare(model, task, structures, together=4, out=path, **options)
    same = [
        "task",
        "structure",
        "kind",
        "index",
        "seed",
        "n_params",
        "head_params",
        "metric",
        "passes",
        "rows",
        "diverged",
    ]
    assert together[same].equals(alone[same])
    assert together.score.tolist() == pytest.approx(alone.score.tolist(), abs=0.011)  # one row of 100 may differ
    assert together.validation.tolist() == pytest.approx(alone.validation.tolist(), abs=0.011)
    assert together.score.nunique() > 1
    monkeypatch.setattr(comparison, "Population", None)  # everything is in the file
    assert compare(model, task, structures, together=4, out=path, **options).equals(together)


def test_one_that_diverges_is_a_row_among_those_trained_together():
    model, task = tiny_t5(), toy_task()
    structures = {"random": [random_structure(make_space(model, "mixed"), 300, seed=seed) for seed in range(2)]}
    options = {"steps": 6, "evaluations": 3, "lr": 1e30, "progress": False}
    table, alone = (compare(model, task, structures, together=n, **options) for n in (2, 1))
    assert table.diverged.any()
    assert table.diverged.tolist() == alone.diverged.tolist() == table.score.isna().tolist()
    assert table.n_params.tolist() == alone.n_params.tolist()


@pytest.fixture
def two_random(tmp_path):
    """Backbone, task, two structures, a file of their two rows, and the table."""
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    structures = {"random": [random_structure(space, 300, seed=seed) for seed in range(2)]}
    path = tmp_path / "rows.jsonl"
    return model, task, structures, path, compare(model, task, structures, out=path, **QUICK)


def count_retrainings(monkeypatch):
    calls, real = [], comparison.retrain

    def counted(*arguments, **options):
        calls.append(options)
        return real(*arguments, **options)

    monkeypatch.setattr(comparison, "retrain", counted)
    return calls


def test_finished_rows_are_not_computed_again(two_random, monkeypatch):
    model, task, structures, path, first = two_random
    calls = count_retrainings(monkeypatch)
    pd.testing.assert_frame_equal(first, compare(model, task, structures, out=path, **QUICK))
    renamed = compare(model, task, {"drawn": structures["random"]}, out=path, **QUICK)
    assert not calls and set(renamed["structure"]) == {"drawn"} and renamed["score"].equals(first["score"])


@pytest.mark.filterwarnings("ignore:.*tokens and are cut:UserWarning")
def test_whatever_decides_a_row_is_in_its_key(two_random, monkeypatch):
    model, task, structures, path, _ = two_random
    calls = count_retrainings(monkeypatch)

    def computed(backbone=model, on=task, **changes):
        before = len(calls)
        for _ in range(2):  # the second time from the file
            compare(backbone, on, structures, out=path, **QUICK | changes)
        return len(calls) - before

    assert computed(tiny_t5(seed=1)) == 2  # a backbone of the same shape
    assert computed(on=toy_task(seed=1)) == 2  # data of the same name
    assert computed(steps=5) == computed(lr=1e-2) == computed(objective={"max_length": 5}) == 2
    assert computed(lr=None, seeds=[0]) == computed(objective={"max_length": 128}) == 0  # the defaults
    assert computed(seeds=[0, 1]) == 2
    monkeypatch.setattr(comparison, "RESULTS_VERSION", comparison.RESULTS_VERSION + 1)
    assert computed() == 2


ROW = {"task": "t", "structure": "s", "seed": 0, "n_params": 3, "score": 1.0}


def test_an_unfinished_last_line_is_dropped_with_a_warning(two_random, monkeypatch):
    model, task, structures, path, first = two_random
    whole = path.read_text()
    calls = count_retrainings(monkeypatch)
    path.write_text(whole[:-30])
    with pytest.warns(UserWarning, match="last line is unfinished"):
        again = compare(model, task, structures, out=path, **QUICK)
    assert len(calls) == 1 and again["score"].equals(first["score"])
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == [
        json.loads(line)["key"] for line in whole.splitlines()
    ]
    path.write_text(whole.rstrip("\n"))  # also a line that lacks nothing but its newline
    comparison.append_row(path, {"key": "more", **ROW})
    assert [*comparison.read_rows(path)] == [json.loads(whole.splitlines()[0])["key"], "more"]


@pytest.mark.parametrize("damage", ["not a row", '{"score": 1}', '{"key": "c", "score": 1}', "[1, 2]", "3"])
def test_other_damage_is_named_by_file_and_line(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"key": "a", **ROW}) + f"\n{damage}\n" + json.dumps({"key": "b", **ROW}) + "\n")
    with pytest.raises(RunError, match=r"rows\.jsonl cannot be read: line 2 is not"):
        comparison.read_rows(path)
    assert comparison.read_rows(tmp_path / "none.jsonl") == {}


def test_a_diverged_retraining_is_a_row(two_random, monkeypatch):
    model, task, structures, path, _ = two_random
    both, options = {**structures, "full": "full"}, {**QUICK, "objective": {"loss": "lm"}, "out": path}
    with torch.no_grad():  # its embeddings overflow in every forward pass
        weight = model.shared.weight.clone()
        model.shared.weight.fill_(float("inf"))
    table = compare(model, task, both, **options)
    assert table["diverged"].all() and table[["score", "validation"]].isna().all(axis=None)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    assert table["n_params"].tolist() == [*(each.n_params for each in structures["random"]), n_params]
    calls = count_retrainings(monkeypatch)
    pd.testing.assert_frame_equal(table, compare(model, task, both, **options))
    assert not calls
    with torch.no_grad():
        model.shared.weight.copy_(weight)
    assert not compare(model, task, both, **options)["diverged"].any()
    with pytest.raises(SearchError, match="compare takes seeds, a list, instead of seed, got seed=1"):
        compare(model, task, both, seed=1, **QUICK)
    with pytest.raises(SearchError, match="must be a structure or one of full"):
        compare(model, task, {"x": "nothing"}, **QUICK)
