"""Labels and columns: what a cell means, and which row is named when it means nothing."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from task_data import data, write

from s3pet.errors import TaskError
from s3pet.tasks import load_task


@pytest.mark.parametrize(
    ("labels", "words"),
    [((0, 1), ("0", "1")), ((1, 2, 3), ("1", "2", "3")), ((False, True), ("0", "1")), ((0.0, 1.0), ("0", "1")),
     (("pos", "neg"), ("neg", "pos")), (("0", "1"), ("0", "1"))],
)  # fmt: skip
def test_label_words_are_inferred(labels, words):
    task = load_task(data(labels=labels))
    assert task.label_words == words
    written = [{False: "0", True: "1"}.get(label, str(label)) for label in labels]
    assert [task.label_words[e.label] for e in task.train[: len(labels)]] == written


def test_string_labels_of_a_benchmark_are_read_by_name(tmp_path):
    """Sorted order would make contradiction 0; the table says entailment is."""
    names = ("neutral", "contradiction", "entailment")
    splits = {
        s: [{"premise": f"{s}{i}", "hypothesis": "h", "label": names[i % 3]} for i in range(30)]
        for s in ("train", "validation")
    }
    task = load_task("superglue/cb", path=write(tmp_path, splits))
    assert [task.label_words[e.label] for e in task.test[:3]] == list(names)
    assert [e.label for e in task.test[:3]] == [2, 1, 0]


def test_names_give_the_order_where_words_differ():
    task = load_task(data(labels=("pos", "neg")), label_words=("good", "bad"), label_names=("pos", "neg"))
    assert [task.label_words[e.label] for e in task.train[:2]] == ["good", "bad"]
    with pytest.raises(TaskError, match="pass label_names="):
        load_task(data(labels=("pos", "neg")), label_words=("good", "bad"))


def test_minus_one_is_a_label_where_it_is_named():
    assert load_task(data(labels=(-1, 1)), label_words=("no", "yes"), label_names=("-1", "1")).train[0].label == 0
    with pytest.raises(TaskError, match="two classes"):
        load_task(data(labels=(-1, 1)))


def test_labels_that_cannot_be_used():
    with pytest.raises(TaskError, match="f1' needs two classes"):
        load_task(data(labels=(0, 1, 2)), metric="f1")
    with pytest.raises(TaskError, match="regression=True"):
        load_task(data(labels=(0.5, 1.5)))
    with pytest.raises(TaskError, match="all integers or all texts"):
        load_task(data(labels=(0, "one")))
    splits = data()
    splits["validation"][3]["label"] = 2
    with pytest.raises(TaskError, match="validation row 4: label 2 is not one of"):
        load_task(splits)
    splits["validation"][3]["label"] = -1
    with pytest.raises(TaskError, match=r"validation row 4 has no label \(-1\)"):
        load_task(splits)
    splits = data(test=False)
    splits["train"][0]["label"] = None
    with pytest.raises(TaskError, match=r"train row 1 has no label \(None\)"):
        load_task(splits)


@pytest.mark.parametrize("value", [None, math.nan, ["a", "b"], {"a": 1}, math.inf])
def test_a_cell_that_is_no_text_names_its_row(value):
    splits = data()
    splits["validation"][2]["sentence"] = value
    with pytest.raises(TaskError, match=r"validation row 3: column 'sentence' .*text"):
        load_task(splits)


@pytest.mark.parametrize("value", [None, math.nan, "", ["a"], {"a": 1}])
@pytest.mark.parametrize("regression", [False, True])
def test_a_cell_that_is_no_label_names_its_row(value, regression):
    splits = data(labels=(0.0, 1.5) if regression else (0, 1))
    splits["train"][2]["label"] = value
    with pytest.raises(TaskError, match=r"train row 3.* label"):
        load_task(splits, regression=regression)


def test_one_class_is_no_task():
    with pytest.raises(TaskError, match="two classes"):
        load_task(data(labels=(1,)))
    with pytest.raises(TaskError, match="all training rows have the label 'yes'"):
        load_task(data(labels=(1,)), label_words=("no", "yes"))
    with pytest.raises(TaskError, match=r"all training rows have the label 1\.0"):
        load_task(data(labels=(1.0,)), regression=True, label_words=("0", "1"))


def test_regression_values(tmp_path):
    stsb = {
        s: [{"sentence1": "a", "sentence2": f"{s}{i}", "label": i / 4} for i in range(20)]
        for s in ("train", "validation")
    }
    task = load_task("glue/stsb", path=write(tmp_path, stsb))
    assert (task.n_labels, task.regression, task.metrics) == (1, True, ("pearson", "spearman"))
    assert task.label_words[:2] + task.label_words[-1:] == ("0.0", "0.2", "5.0")
    assert task.label_values[1] == 0.2
    assert task.test[3].label == 0.75
    hidden = {"test": [{"sentence1": "a", "sentence2": "b", "label": -1.0}]}
    assert load_task("glue/stsb", path=write(tmp_path, hidden)).test == task.test
    own = load_task(data(labels=(-10.0, 15.0)), regression=True)
    assert (own.metric, own.label_values[0], own.label_values[-1], len(own.label_values)) == ("pearson", -10, 15, 26)
    assert own.search_split()[0]
    with pytest.raises(TaskError, match="not a number"):
        load_task(data(labels=("much", "more")), regression=True)
    with pytest.raises(TaskError, match="two or more distinct numbers"):
        load_task(data(labels=(1.0,)), regression=True)
    assert load_task(data()).label_values == ()


def labelled(labels, **options):
    splits = {s: [{"text": f"{s} {i}", "label": label} for i, label in enumerate(labels)] for s in ("train", "test")}
    return load_task(splits, **options)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, np.int64])
def test_a_tensor_or_array_with_one_number_is_that_number(kind):
    assert labelled([kind(k % 2) for k in range(20)]).fingerprint == labelled([k % 2 for k in range(20)]).fingerprint


@pytest.mark.parametrize("value", [[0, 1], torch.tensor([0, 1]), np.zeros((2, 2)), {"answer": 1}, b"x", object()])
def test_a_label_of_another_kind_says_what_to_declare(value):
    with pytest.raises(
        TaskError, match=r"test row 3: the label .* is a \w+, neither .*label_column=….*see s3pet.objectives"
    ):
        load_task({"train": [{"text": f"{k}", "label": k % 2} for k in range(20)],
                   "test": [{"text": f"{k}", "label": value if k == 2 else 0} for k in range(4)]})  # fmt: skip


@pytest.mark.parametrize("value", [pd.NA, pd.NaT, np.float32("nan"), torch.tensor(math.nan)])
def test_every_kind_of_missing_label_names_its_row(value):
    for others in ([0, 1] * 8, [0] * 16):
        with pytest.raises(TaskError, match="train row 2 has no label"):
            labelled([0, value, *others])


def test_numbers_and_free_texts_are_no_classes_unless_declared():
    with pytest.raises(TaskError, match="train row 3: the label is 'NaN'; remove it or name the class"):
        labelled(["pos", "neg", "NaN"] * 5)
    with pytest.raises(TaskError, match=r"\['0.5', '1.5'\] are numbers with decimals; pass regression=True"):
        labelled(["0.5", "1.5"] * 8)
    with pytest.raises(TaskError, match="30 distinct labels in 30 rows are hardly classes"):
        labelled([f"a summary of text {k}" for k in range(30)])
    with pytest.raises(TaskError, match="40 distinct labels in 40 rows are hardly classes; pass regression=True"):
        labelled(range(40))
    assert labelled(["0.5", "1.5"] * 8, label_names=("0.5", "1.5")).n_labels == 2
    assert labelled(["0.5", "1.5"] * 8, regression=True).regression
    assert labelled(range(40), label_words=[f"{k}" for k in range(40)]).n_labels == 40
    assert labelled([k % 40 for k in range(80)]).n_labels == 40


def test_rows_with_an_empty_text_are_named_once_and_one_without_any_text_is_refused():
    part = [{"sentence1": f"{k}", "sentence2": "" if k in (3, 5) else "b", "label": k % 2} for k in range(12)]
    task = load_task({"train": part, "validation": part[:4], "test": part[:3]})
    where = "train row 4 (sentence2), train row 6 (sentence2), validation row 4 (sentence2)"
    assert task.notes[0] == f"3 rows have an empty text: {where}"
    part[7]["sentence1"] = part[7]["sentence2"] = " "
    with pytest.raises(TaskError, match="train row 8 has no text in 'sentence1' or 'sentence2'; remove the row"):
        load_task({"train": part, "validation": part[:4]})
