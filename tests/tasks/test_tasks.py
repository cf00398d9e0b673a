"""Tasks: reading, labels, splits that never touch the test rows, metrics against closed forms."""

import json
import math
import subprocess
import sys
from collections import Counter

import datasets
import pytest

from s3pet.tasks import benchmarks as glue
from s3pet.tasks import task as tasks
from s3pet.errors import TaskError, UnknownTaskError
from s3pet.tasks import Example, list_tasks, load_task


def rows(n, labels=(0, 1), column="sentence", tag=""):
    return [{column: f"{tag} text {i}", "label": labels[i % len(labels)]} for i in range(n)]


def data(n=40, labels=(0, 1), test=True, **options):
    splits = {"train": rows(n, labels, tag="a", **options), "validation": rows(10, labels, tag="b", **options)}
    return splits | ({"test": rows(8, labels, tag="c", **options)} if test else {})


def write(folder, splits, task=None, ending="jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        if ending == "jsonl":
            lines = [json.dumps(row, ensure_ascii=False) for row in part]
        else:
            mark = "," if ending == "csv" else "\t"
            lines = [mark.join(part[0]), *(mark.join(map(str, row.values())) for row in part)]
        (folder / f"{split}.{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if task is not None:
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return folder


def sources(examples):
    return {example.source for example in examples}


# --- where rows come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_a_folder_reads_the_same_in_every_format(tmp_path, ending):
    task = load_task(write(tmp_path / "mine", data(), ending=ending))
    assert task.fingerprint == load_task(data(), name="mine").fingerprint
    assert (task.name, task.label_words, task.metric, task.n_labels) == ("mine", ("0", "1"), "accuracy", 2)
    assert task.train[0] == Example(("a text 0",), "mine sentence: a text 0", 0)
    assert task.notes == ("splits are used as given",)


def test_dev_is_validation_and_other_files_are_left_alone(tmp_path):
    folder = write(tmp_path / "x", {"train": rows(40), "dev": rows(5), "test": rows(5)})
    (folder / "predictions.jsonl").write_text("not json")
    assert len(load_task(folder).validation) == 5


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
    monkeypatch.setattr(tasks, "_pocket", lambda: tmp_path)
    write(tmp_path / "sentiment", data(), {"name": "sentiment", "label_words": ["negative", "positive"]})
    (tmp_path / "empty").mkdir()
    assert [name for name in list_tasks() if name.startswith("pocket/")] == ["pocket/sentiment"]
    task = load_task("pocket/sentiment")
    assert (task.name, task.label_words) == ("pocket/sentiment", ("negative", "positive"))
    with pytest.raises(UnknownTaskError, match="nearest: 'pocket/sentiment'"):
        load_task("pocket/sentimental")


def test_absent_pocket_data_say_so(monkeypatch):
    monkeypatch.setattr(tasks, "_pocket", lambda: None)
    assert list_tasks()[0] == "glue/cola"
    with pytest.raises(UnknownTaskError, match=r"embedded data .* not here"):
        load_task("pocket/sentiment")


def test_the_hub_and_a_folder_give_the_same_task(tmp_path, monkeypatch):
    """The hub path is the same code after loading: its rows, with -1 in test, against a folder with other columns."""
    hub = {
        s: [{"question": f"{s}{i}?", "sentence": f"{s}{i}.", "label": i % 2, "idx": i} for i in range(40)]
        for s in ("train", "validation")
    }
    unlabelled = [{"question": "q", "sentence": "s", "label": -1, "idx": 0}]
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in {**hub, "test": unlabelled}.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub = load_task("glue/qnli")
    assert asked == [("nyu-mll/glue", "qnli")]
    local = {
        s: [{"sentence1": r["question"], "sentence2": r["sentence"], "label": r["label"]} for r in part]
        for s, part in hub.items()
    }
    from_folder = load_task("glue/qnli", path=write(tmp_path / "anything", local))
    assert from_hub.fingerprint == from_folder.fingerprint == load_task(write(tmp_path / "QNLI", local)).fingerprint
    assert from_hub.name == from_folder.name == "glue/qnli"
    first = from_folder.test[0]
    assert (first.source, first.segments) == (
        "qnli question: validation0? sentence: validation0.",
        ("validation0?", "validation0."),
    )


def test_mnli_uses_the_matched_rows(tmp_path):
    splits = {"train": rows(40, (0, 1, 2)), "validation_matched": rows(9, (0, 1, 2), tag="m")}
    for part in splits.values():
        for row in part:
            row |= {"premise": row.pop("sentence"), "hypothesis": "h"}
    task = load_task("glue/mnli", path=write(tmp_path, splits))
    assert (len(task.test), task.label_words[2]) == (9, "contradiction")
    assert "matched" in task.notes[0]


def test_an_unreachable_hub_says_to_give_a_folder(monkeypatch):
    def load_dataset(*names):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(TaskError, match=r"reach the hub.*path=…"):
        load_task("glue/rte")


def test_copa_shows_the_question_and_gives_encoders_two_segments(tmp_path):
    row = {"premise": "It rained.", "question": "effect", "choice1": "wet", "choice2": "dry", "label": 0}
    part = [row | {"premise": f"It rained {i}.", "label": i % 2} for i in range(12)]
    example = load_task("superglue/copa", path=write(tmp_path, {"train": part, "validation": part})).test[1]
    assert example.source == "copa premise: It rained 1. question: effect choice1: wet choice2: dry"
    assert example.segments == ("It rained 1. effect wet", "dry")


def test_every_table_entry_can_be_read():
    for suite, entries in glue.BENCHMARKS.items():
        for name, entry in entries.items():
            values = range(len(entry.label_words)) if entry.label_words else (0.0, 2.5, 5.0)
            part = [{c: f"{c}{i}" for c in entry.columns} | {"label": values[i % len(values)]} for i in range(30)]
            task = tasks._build(
                f"{suite}/{name}", {"train": part, entry.validation: part}, tasks._benchmark(suite, name), None, None, 0
            )
            assert task.metrics == entry.metrics
            assert all(f"{c}1" in task.test[1].source for c in entry.columns)
            assert len(task.test[0].segments) <= 2
            assert task.n_labels == (len(entry.label_words) or 1)


def test_importing_tasks_is_light():
    code = "import sys, s3pet.tasks; print([m for m in ('datasets', 'torch', 'pandas', 'sklearn') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


# --- text -----------------------------------------------------------------------------------------------------------


def test_braces_in_a_text_stay_text():
    splits = {
        s: [{"sentence1": f"{{sentence2}} {s}{i}", "sentence2": "B", "label": i % 2} for i in range(12)]
        for s in ("train", "validation", "test")
    }
    assert load_task(splits).train[0].source == "data sentence1: {sentence2} train0 sentence2: B"


def test_a_line_separator_inside_a_row_is_text(tmp_path):
    splits = data()
    splits["train"][0]["sentence"] = "one\u2028two\x85three"
    assert load_task(write(tmp_path, splits)).train[0].segments == ("one\u2028two\x85three",)


def test_a_quote_in_a_tsv_is_text_and_in_a_csv_a_quote(tmp_path):
    part = [f'"No, she said\t{i % 2}' for i in range(8)]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *part]))
    assert load_task(tmp_path).train[0].segments == ('"No, she said',)
    other = tmp_path / "csv"
    other.mkdir()
    for split in ("train", "validation", "test"):
        (other / f"{split}.csv").write_text(
            "sentence,label\n" + "\n".join(f'"No, she\nsaid",{i % 2}' for i in range(8))
        )
    assert load_task(other).train[0].segments == ("No, she\nsaid",)


@pytest.mark.parametrize("template", ["{sentense}", "no column at all"])
def test_a_template_must_name_text_columns(template):
    with pytest.raises(TaskError, match=r"template .*text columns are \['sentence'\]"):
        load_task(data(), template=template)


# --- labels ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_words": ("yes", "yes")}, "distinct"),
        ({"label_words": ("yes",)}, "two classes"),
        ({"label_words": ("a", "b"), "label_names": ("x",)}, "two classes"),
        ({"metric": "f2"}, "'f2' is not one of accuracy"),
        ({"metric": "pearson", "regression": False}, "does not fit"),
        ({"regression": True, "metric": "accuracy"}, "does not fit"),
        ({"label_column": "gold"}, r"no column 'gold'; columns are \['label', 'sentence'\]"),
        ({"text_columns": ("body",)}, r"no \['body'\] in columns \['label', 'sentence'\]"),
        ({"n_train": 3}, "at least 4"),
        ({"n_validation": 0}, "n_validation=0"),
        ({"path": "folder"}, "benchmark's name"),
    ],
)
def test_options_that_cannot_be_used(change, message):
    with pytest.raises(TaskError, match=message):
        load_task(data(), **change)


def test_labels_that_cannot_be_used():
    with pytest.raises(TaskError, match="f1' needs two classes"):
        load_task(data(labels=(0, 1, 2)), metric="f1")
    with pytest.raises(TaskError, match="regression=True"):
        load_task(data(labels=(0.5, 1.5)))
    with pytest.raises(TaskError, match="all integers or all strings"):
        load_task(data(labels=(0, "one")))
    splits = data()
    splits["validation"][3]["label"] = 2
    with pytest.raises(TaskError, match="validation row 4: label 2 is not one of"):
        load_task(splits)
    splits["validation"][3]["label"] = -1
    with pytest.raises(TaskError, match="validation: 1 rows have no label"):
        load_task(splits)
    splits = data(test=False)
    splits["train"][0]["label"] = None
    with pytest.raises(TaskError, match="train: 1 rows have no label"):
        load_task(splits)


# --- broken data ----------------------------------------------------------------------------------------------------


def test_broken_files_are_named_with_their_line(tmp_path):
    folder = write(tmp_path / "x", data())
    train = (folder / "train.jsonl").read_text().splitlines()
    for line, message in (("{'sentence'", "train.jsonl, line 3 is not JSON"), ("[1]", "line 3 is not a JSON object")):
        (folder / "train.jsonl").write_text("\n".join([*train[:2], line]))
        with pytest.raises(TaskError, match=message):
            load_task(folder)
    (folder / "train.csv").write_text("sentence,label\nx,0\n")
    with pytest.raises(TaskError, match="two files for one split"):
        load_task(folder)
    (folder / "train.jsonl").unlink()
    (folder / "train.csv").write_text("sentence,label\nx,0\ny,1,z\n")
    with pytest.raises(TaskError, match="line 3 has not as many cells"):
        load_task(folder)
    (folder / "train.csv").write_bytes(b"sentence,label\n\xff\xfe,0\n")
    with pytest.raises(TaskError, match="not UTF-8"):
        load_task(folder)
    (folder / "train.csv").unlink()
    with pytest.raises(TaskError, match="no train file"):
        load_task(folder)
    (folder / "task.json").write_text("{")
    with pytest.raises(TaskError, match=r"task\.json is not JSON"):
        load_task(folder)


def test_splits_that_cannot_be_used():
    with pytest.raises(TaskError, match="'validation' is empty or absent"):
        load_task({"train": rows(40)})
    with pytest.raises(TaskError, match="'train' is empty or absent"):
        load_task({"train": [], "validation": rows(4)})
    with pytest.raises(TaskError, match="under two names"):
        load_task({"train": rows(40), "validation": rows(4), "dev": rows(4)})
    with pytest.raises(TaskError, match="cannot give 1 for validation"):
        load_task({"train": rows(4), "validation": rows(4)})
    with pytest.raises(TaskError, match="too few"):
        load_task({"train": rows(3), "validation": rows(4), "test": rows(4)})
    with pytest.raises(TaskError, match="a row is a str"):
        load_task({"train": ["text"], "validation": ["text"]})
    with pytest.raises(TaskError, match="a list is not a task"):
        load_task(rows(40))
    splits = data()
    del splits["train"][5]["sentence"]
    with pytest.raises(TaskError, match=r"train row 6: needs columns \['sentence', 'label'\], has \['label'\]"):
        load_task(splits)


def test_unknown_names():
    with pytest.raises(UnknownTaskError, match="nearest: 'glue/rte'"):
        load_task("glue/rtee")
    with pytest.raises(LookupError):
        load_task("no/such/folder")
    with pytest.raises(TaskError, match="not a fixed-label task"):
        load_task("superglue/record")


# --- splits ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("hidden", [{"label": -1}, {"label": None}, {}])
def test_an_unlabelled_test_split_is_no_test_split(hidden):
    splits = data() | {"test": [{"sentence": "?"} | hidden] * 5}
    assert load_task(splits).test == load_task(data(test=False)).test


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
    assert load_task(data(), tokenizer=object()).fingerprint == base.fingerprint
    assert len(bytes.fromhex(base.fingerprint)) == 32


# --- regression and metrics -----------------------------------------------------------------------------------------


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
    with pytest.raises(TaskError, match="not distinct numbers"):
        load_task(data(labels=(1.0,)), regression=True)
    assert load_task(data()).label_values == ()


def test_metrics_against_closed_forms():
    tp, fp, fn, tn = 6, 2, 3, 9
    predictions, labels = [1] * (tp + fp) + [0] * (fn + tn), [1] * tp + [0] * fp + [1] * fn + [0] * tn
    f1, f0 = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    expected = {
        "accuracy": (tp + tn) / 20,
        "f1": f1,
        "f1_macro": (f1 + f0) / 2,
        "matthews": (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
    }
    for name, value in expected.items():
        assert load_task(data(), metric=name).score(predictions, labels) == {name: pytest.approx(value)}
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 12.0]
    task = load_task(data(labels=(0.0, 1.5)), metrics=("pearson", "spearman"))
    assert task.score(x, y) == {"pearson": pytest.approx(19 / math.sqrt(5 * 73)), "spearman": pytest.approx(1.0)}
    assert list(load_task(data(), metrics=("f1", "accuracy"), metric="accuracy").score([1], [1])) == ["accuracy", "f1"]


def test_scores_of_degenerate_predictions():
    assert load_task(data(), metrics=("matthews", "f1")).score([0] * 4, [0, 1, 0, 1]) == {"matthews": 0.0, "f1": 0.0}
    assert load_task(data(), metric="matthews").score([1] * 4, [1] * 4) == {"matthews": 0.0}
    task = load_task(data(labels=(0.0, 1.5)), metrics=("pearson", "spearman"))
    assert task.score([2.5] * 4, [0.0, 1.0, 2.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert task.score([1.0, 1.0 + 1e-16, 1.0 + 3e-16, 1.0], [0.0, 1.0, 2.0, 3.0])["pearson"] == pytest.approx(0, abs=1)
    assert math.isnan(task.score([math.nan, 1.0], [0.0, 1.0])["pearson"])
    with pytest.raises(TaskError, match="1 predictions for 2 labels"):
        task.score([1.0], [1.0, 2.0])
    with pytest.raises(TaskError, match="0 predictions"):
        task.score([], [])


def test_scores_take_arrays_and_tensors():
    import numpy as np
    import torch

    task = load_task(data())
    assert task.score(torch.tensor([0, 1]), np.array([0, 0])) == {"accuracy": 0.5}


# --- real rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "metric", "majority"),
    [
        ("sst2", (3600, 400, 872), "accuracy", 444 / 872),
        ("mrpc", (3302, 366, 408), "f1", 2 * 279 / (2 * 279 + 129)),
        ("cola", (3600, 400, 1000), "matthews", 0.0),
        ("rte", (2241, 249, 277), "accuracy", 146 / 277),
        ("qnli", (3600, 400, 1000), "accuracy", 535 / 1000),
        ("stsb", (3600, 400, 1000), "pearson", 0.0),
    ],
)
def test_real_tasks(shared_dir, name, rows, metric, majority):
    """Sizes and the scores of always answering the commoner label follow from the balance written beside the files."""
    task = load_task(f"glue/{name}", path=shared_dir / "data" / name)
    assert load_task(shared_dir / "data" / name).fingerprint == task.fingerprint
    assert tuple(map(len, (task.train, task.validation, task.test))) == rows
    labels = [example.label for example in task.test]
    common = Counter(labels).most_common(1)[0][0]
    assert next(iter(task.score([common] * len(labels), labels).items())) == (metric, pytest.approx(majority))
    assert task.score(labels, labels)[metric] == pytest.approx(1)
    if not task.regression:
        shares = [Counter(e.label for e in part)[1] / len(part) for part in (task.train, task.validation)]
        assert shares[0] == pytest.approx(shares[1], abs=0.01)
