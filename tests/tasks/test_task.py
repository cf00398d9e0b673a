"""Tasks: where they come from, their prompts, and splits that never touch the test rows."""

import subprocess
import sys
from collections import Counter

import datasets
import pytest
from task_data import data, sources, write

from s3pet.backbones import loading
from s3pet.errors import BackboneError, TaskError, UnknownTaskError
from s3pet.tasks import list_tasks, load_task
from s3pet.tasks import task as tasks


def test_task_json_decides_and_arguments_win(tmp_path):
    spec = {
        "template": "Is it good? {body}",
        "label_words": ["bad", "good"],
        "metric": "matthews",
        "text_columns": ["body"],
    }
    folder = write(tmp_path / "x", data(column="body"), spec | {"name": "reviews", "description": "…"})
    task = load_task(folder)
    assert (task.name, task.metric, task.label_words) == ("reviews", "matthews", ("bad", "good"))
    assert task.train[1].source == "Is it good? a text 1"
    again = load_task(folder, label_words=("no", "yes"), metric="f1", template="{body} ?", name="mine")
    assert (again.name, again.metrics, again.label_words) == ("mine", ("f1",), ("no", "yes"))
    assert again.train[1].source == "a text 1 ?"


def test_datasets_with_named_classes():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    parts = {k: datasets.Dataset.from_list(v, features=features) for k, v in data(column="text").items()}
    task = load_task(datasets.DatasetDict(parts))
    assert (task.label_words, task.name) == (("no", "yes"), "data")
    plain = {k: datasets.Dataset.from_list(v) for k, v in data(column="text").items()}
    assert load_task(plain).label_words == ("0", "1")


def test_pocket_tasks_are_found_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "embedded_path", lambda: tmp_path)
    write(tmp_path / "tasks" / "sentiment", data(), {"name": "sentiment", "label_words": ["negative", "positive"]})
    (tmp_path / "tasks" / "empty").mkdir()
    assert [name for name in list_tasks() if name.startswith("pocket/")] == ["pocket/sentiment"]
    task = load_task("pocket/sentiment")
    assert (task.name, task.label_words) == ("pocket/sentiment", ("negative", "positive"))
    with pytest.raises(UnknownTaskError, match="nearest: 'pocket/sentiment'"):
        load_task("pocket/sentimental")


def test_absent_pocket_data_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "s3pet" / "backbones" / "loading.py"))
    assert list_tasks()[0] == "glue/cola"
    with pytest.raises(BackboneError, match=r"embedded data .* not here"):
        load_task("pocket/sentiment")


def test_unknown_names():
    with pytest.raises(UnknownTaskError, match="nearest: 'glue/rte'"):
        load_task("glue/rtee")
    with pytest.raises(LookupError):
        load_task("no/such/folder")
    with pytest.raises(TaskError, match="not fixed labels"):
        load_task("superglue/record")


def test_importing_tasks_is_light():
    code = "import sys, s3pet.tasks; print([m for m in ('datasets', 'torch', 'pandas', 'sklearn') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_braces_in_a_text_stay_text():
    splits = {
        s: [{"sentence1": f"{{sentence2}} {s}{i}", "sentence2": "B", "label": i % 2} for i in range(12)]
        for s in ("train", "validation", "test")
    }
    assert load_task(splits).train[0].source == "data sentence1: {sentence2} train0 sentence2: B"


@pytest.mark.parametrize("template", ["{sentense}", "no column at all"])
def test_a_template_must_name_text_columns(template):
    with pytest.raises(TaskError, match=r"template .*these are \['sentence'\]"):
        load_task(data(), template=template)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_words": ("yes", "yes")}, "distinct"),
        ({"label_words": ("yes",)}, "two classes"),
        ({"label_words": ("a", "b"), "label_names": ("x",)}, "two classes"),
        ({"metric": "f2"}, "'f2' is not one of accuracy"),
        ({"metric": "pearson", "regression": False}, "one of accuracy, .* the metrics of a classification"),
        ({"regression": True, "metric": "accuracy"}, "one of pearson, spearman, the metrics of a regression"),
        ({"label_column": "gold"}, r"no column 'gold'; columns are \['label', 'sentence'\]"),
        ({"text_columns": ("body",)}, r"no \['body'\] in columns \['label', 'sentence'\]"),
        ({"n_train": 3}, "at least 4"),
        ({"n_validation": 0}, "n_validation=0"),
        ({"path": "folder"}, "benchmark's name"),
        ({"label_words": {0: "no", 1: "yes"}}, r"label_words must be a list of texts, such as .*; got \{0: 'no'"),
        ({"label_words": "no yes"}, "label_words must be a list of texts"),
        ({"label_words": (None, "yes")}, r"label_words must be a list of texts.*; got \(None, 'yes'\)"),
        ({"label_names": (["a"], "b")}, "label_names must be a list of texts"),
        ({"label_names": (False, True)}, "label_names must be a list of texts"),
        ({"metrics": [["accuracy"]]}, "metrics must be a list of texts"),
        ({"metric": ["accuracy"]}, r"metric must be a text .* got \['accuracy'\]"),
        ({"label_column": 1}, "label_column must be a text .* got 1"),
        ({"n_train": 5.5}, "n_train must be a whole number, or None, got 5.5"),
        ({"seed": "a"}, "seed must be a whole number from 0, got 'a'"),
        (
            {"label_column": "sentence"},
            "column 'sentence' is the label and a text, so the answer would be in the prompt",
        ),
    ],
)
def test_options_that_cannot_be_used(change, message):
    with pytest.raises(TaskError, match=message):
        load_task(data(), **change)


def test_one_column_or_metric_need_not_be_in_a_list():
    one = load_task(data(), text_columns="sentence", metrics="f1")
    assert one == load_task(data(), text_columns=("sentence",), metrics=["f1"])


def test_validation_is_cut_from_train_and_test_is_left_alone():
    splits = data(200, (0, 0, 0, 1), test=False)
    task = load_task(splits, seed=3)
    assert sources(task.test) == {f"data sentence: b text {i}" for i in range(10)}
    assert (len(task.train), len(task.validation)) == (180, 20)
    assert sources(task.train) | sources(task.validation) == {f"data sentence: a text {i}" for i in range(200)}
    assert Counter(e.label for e in task.validation) == {0: 15, 1: 5}
    assert task.notes == ("test is the published validation split; validation is 20 rows cut from train, seed 3",)
    assert task == load_task(splits, seed=3)
    other = load_task(splits, seed=4)
    assert other.validation != task.validation
    assert other.test == task.test  # the seed never reaches the test rows


def test_a_test_split_that_cannot_be_used_is_an_error(tmp_path):
    """Validation must not silently take the place of a test split that is there."""
    with pytest.raises(TaskError, match="split 'test' is empty"):
        load_task(data(test=False) | {"test": []})
    folder = write(tmp_path / "x", data(test=False))
    (folder / "test.jsonl").write_text("")
    with pytest.raises(TaskError, match="split 'test' is empty"):
        load_task(folder)
    (folder / "test.jsonl").rename(folder / "test.json")
    with pytest.raises(TaskError, match=r"test\.json cannot be read"):
        load_task(folder)
    (folder / "test.json").unlink()
    assert len(load_task(folder).test) == 10
    splits = data()
    del splits["test"][1]["label"]
    with pytest.raises(TaskError, match="test row 2 has no label"):
        load_task(splits)
    with pytest.raises(TaskError, match="no test row has a label"):
        load_task(data(labels=(0.0, 1.5)) | {"test": [{"sentence": "?", "label": -1.0}] * 3}, regression=True)


def test_n_train_limits_what_is_left_and_n_validation_what_is_cut():
    task = load_task(data(100, test=False), n_validation=30, n_train=20)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [20, 30, 10]
    assert task.validation == load_task(data(100, test=False), n_validation=30).validation
    assert "train is 20 of 70 rows" in task.notes[-1]
    assert len(load_task(data(), n_validation=4).validation) == 4


def test_cuts_are_not_sorted_by_class():
    task = load_task(data(100, test=False))
    for part in (task.train, task.validation, *task.search_split()):
        labels = [example.label for example in part]
        assert labels != sorted(labels)


@pytest.mark.parametrize("n", [40, 41])
def test_search_halves(n):
    task = load_task(data(n, (0, 0, 1)))
    first, second = task.search_split(seed=1)
    assert len(first) == len(second) == n // 2
    assert not sources(first) & sources(second)
    assert sources(first) | sources(second) <= sources(task.train)
    counts = [Counter(e.label for e in half) for half in (first, second)]
    assert all(abs(counts[0][label] - counts[1][label]) <= 1 for label in (0, 1))
    assert (first, second) == task.search_split(seed=1) != task.search_split(seed=2)


def test_subsample_draws_without_repeats_and_keeps_the_rest():
    task = load_task(data(100))
    small = task.subsample(n_train=10, n_test=3)
    assert [len(part) for part in (small.train, small.validation, small.test)] == [10, 10, 3]
    assert len(sources(small.train)) == 10
    assert task.subsample(n_train=1000) == task
    assert small == task.subsample(n_train=10, n_test=3) != task.subsample(n_train=10, n_test=3, seed=1)


def test_the_fingerprint_sees_rows_words_and_metrics():
    base = load_task(data())
    changed = data()
    changed["test"][0]["sentence"] += "!"
    moved = data()
    moved["validation"].append(moved["train"].pop())
    others = [
        load_task(changed),
        load_task(moved),
        load_task(data(), label_words=("no", "yes")),
        load_task(data(), metric="f1"),
    ]
    assert len({base.fingerprint, *(task.fingerprint for task in others)}) == 5
    assert load_task(data(), tokenizer=str.split).fingerprint == base.fingerprint
    assert len(bytes.fromhex(base.fingerprint)) == 32
