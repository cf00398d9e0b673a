"""Rows: every file format gives the same rows, and a broken file or split is named."""

import datasets
import pandas as pd
import pytest
from task_data import data, rows, write

from s3pet.errors import TaskError, UnknownTaskError
from s3pet.tasks import Example, load_task


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
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


def test_an_unreachable_hub_says_to_give_a_folder(monkeypatch):
    def load_dataset(*names):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(TaskError, match=r"reach the hub.*path=…"):
        load_task("glue/rte")


def test_broken_files_are_named_with_their_line(tmp_path):
    folder = write(tmp_path / "x", data())
    train = (folder / "train.jsonl").read_text().splitlines()
    for line, message in (
        ("{'sentence'", "train.jsonl cannot be read: line 3 is not JSON"),
        ("[1]", "line 3 is not a JSON object"),
    ):
        (folder / "train.jsonl").write_text("\n".join([*train[:2], line]))
        with pytest.raises(TaskError, match=message):
            load_task(folder)
    (folder / "train.jsonl").write_text("\n".join(train))
    (folder / "train.csv").write_text("sentence,label\nx,0\n")
    with pytest.raises(TaskError, match=r"'train\.csv', 'train\.jsonl', .* hold 'train' under two names"):
        load_task(folder)
    (folder / "train.jsonl").unlink()
    (folder / "train.csv").write_text("sentence,label\nx,0\ny,1,z\n")
    with pytest.raises(TaskError, match=r"train\.csv cannot be read: Expected 2 fields in line 3, saw 3"):
        load_task(folder)
    (folder / "train.csv").write_text("sentence,label\nx,0,z\ny,1,z\n")  # not a column of row names
    with pytest.raises(TaskError, match=r"train\.csv cannot be read: Expected 2 fields in line 2, saw 3"):
        load_task(folder)
    (folder / "train.csv").write_text("label,sentence\n0,x\n1\n")
    with pytest.raises(TaskError, match="row 2 has fewer cells than the header"):
        load_task(folder)
    (folder / "train.csv").write_text('sentence,label\n"x,0\n')
    with pytest.raises(TaskError, match=r"train\.csv cannot be read: unexpected end of data"):
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
        load_task({"train": rows(40), "valdiation": rows(4)})
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
    with pytest.raises(TaskError, match="a int is not a task; pass a name, a folder, a file, rows"):
        load_task(40)
    for texts in (["text"], {"text"}):
        with pytest.raises(TaskError, match="a row is a str"):
            load_task(texts)
    with pytest.raises(TaskError, match="5 training rows cannot give 1 for test and keep 5"):
        load_task(rows(5))
    splits = data()
    del splits["train"][5]["sentence"]
    with pytest.raises(TaskError, match=r"train row 6: column 'sentence' is missing \(the row has \['label'\]\)"):
        load_task(splits)


def test_empty_cells_and_words_like_na_stay_text(tmp_path):
    """pandas reads them as NaN unless told otherwise; a label column with gaps must not turn 1 into 1.0 either."""
    for ending, mark in (("csv", ","), ("tsv", "\t")):
        for split in ("train", "validation", "test"):
            lines = [("sentence1", "sentence2", "label"), ("", "NA", "no"), ("nan", "", "yes"), ("null", "1.0", "no")]
            text = "\n".join(mark.join(line) for line in [*lines, ("007", "None", "yes")])
            (folder := tmp_path / ending).mkdir(exist_ok=True)
            (folder / f"{split}.{ending}").write_text(text)
        task = load_task(folder)
        assert [example.segments for example in task.train] == [
            ("", "NA"),
            ("nan", ""),
            ("null", "1.0"),
            ("007", "None"),
        ]
        (folder / f"test.{ending}").write_text("\n".join(mark.join(line) for line in [*lines, ("a", "b", "")]))
        with pytest.raises(TaskError, match="test row 4 has no label"):
            load_task(folder)


@pytest.mark.parametrize("kind", ["rows", "generator", "table", "dataset", "file", "name", "folder", "train"])
def test_rows_without_splits_give_all_three(tmp_path, kind):
    whole = [{"sentence": f"text {n}", "label": n % 4 // 3} for n in range(60)]  # a quarter is of class 1
    table = pd.DataFrame(whole)
    table.to_csv(tmp_path / "all.csv", index=False)
    source = {
        "rows": whole,
        "generator": iter(whole),
        "table": table,
        "dataset": datasets.Dataset.from_list(whole),
        "file": tmp_path / "all.csv",
        "name": str(tmp_path / "all.csv"),
        "folder": write(tmp_path / "folder", {"train": whole}),
        "train": {"train": whole},
    }[kind]
    task = load_task(source, seed=3)
    parts = [{example.texts for example in part} for part in (task.train, task.validation, task.test)]
    assert [len(part) for part in parts] == [48, 6, 6]
    assert len(set.union(*parts)) == 60
    assert [sum(e.label for e in part) for part in (task.validation, task.test)] in ([1, 1], [1, 2], [2, 1], [2, 2])
    assert "test is 6 rows cut from train; validation is 6 rows cut from train, seed 3" in task.notes
    same, other = (load_task(whole, seed=seed, name=task.name).fingerprint for seed in (3, 4))
    assert task.fingerprint == same != other
    assert task.name == {"file": "all", "name": "all", "folder": "folder"}.get(kind, "data")


def test_a_cut_test_split_has_at_most_a_thousand_rows():
    task = load_task(rows(12_000), n_validation=20)
    assert (len(task.test), len(task.validation), len(task.train)) == (1000, 20, 10_980)


def test_a_folder_whose_other_files_are_no_splits_is_refused(tmp_path):
    folder = write(tmp_path / "x", {"train": rows(40), "vaild": rows(5)})
    with pytest.raises(TaskError, match=r"'vaild\.jsonl'\] are not named after splits"):
        load_task(folder)
    (tmp_path / "all.xlsx").touch()
    with pytest.raises(TaskError, match=r"all\.xlsx is not a file of \.jsonl"):
        load_task(tmp_path / "all.xlsx")
    with pytest.raises(UnknownTaskError, match="neither a known name nor a folder or file"):
        load_task(tmp_path / "none.csv")


@pytest.mark.parametrize("kind", ["frame", "dataset", "torch", "csv", "parquet"])
def test_every_kind_of_split_gives_the_same_task(tmp_path, kind):
    splits = data()
    if kind in ("csv", "parquet"):
        write(tmp_path, splits, ending=kind)
        parts = {split: tmp_path / f"{split}.{kind}" for split in splits}
    elif kind == "frame":
        parts = {split: pd.DataFrame(part) for split, part in splits.items()}
    else:
        parts = {split: datasets.Dataset.from_list(part) for split, part in splits.items()}
        parts = {split: part.with_format(kind) for split, part in parts.items()} if kind == "torch" else parts
    assert load_task(parts) == load_task(splits)
    with pytest.raises(TaskError, match=r"nowhere\.csv is not a file of \.jsonl"):
        load_task({"train": tmp_path / "nowhere.csv", "test": []})


def test_train_and_test_are_enough_and_validation_has_several_names(tmp_path):
    splits = data(100)
    del splits["validation"]
    task = load_task(splits)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [90, 10, 8]
    assert task.notes == ("test is the test split as given; validation is 10 rows cut from train, seed 0",)
    assert load_task(write(tmp_path / "data", splits)).fingerprint == load_task(splits, name="data").fingerprint
    for name in ("val", "dev", "valid"):
        assert load_task(splits | {name: rows(6)}).validation == load_task(splits | {"validation": rows(6)}).validation
    with pytest.raises(TaskError, match="there is no validation split"):
        load_task("glue/sst2", path=write(tmp_path / "b", {"train": rows(40), "test": [{"sentence": "?"}] * 5}))


@pytest.mark.parametrize("option", [{}, {"label_column": "topic"}])
def test_label_names_come_from_the_column_of_the_labels(option):
    features = datasets.Features({"text": datasets.Value("string"), "topic": datasets.ClassLabel(names=["no", "yes"])})
    part = [{"text": f"{k}", "topic": k % 2} for k in range(20)]
    task = load_task({s: datasets.Dataset.from_list(part, features=features) for s in ("train", "test")}, **option)
    assert (task.label_names, task.label_words) == (("no", "yes"), ("no", "yes"))
    with pytest.raises(TaskError, match="no column 'label'"):
        load_task({"train": part, "test": part})


@pytest.mark.parametrize("kind", ["frame", "csv"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, kind):
    """Of a dict only the last one would be left."""
    table = pd.DataFrame([["a", f"b{k}", k % 2] for k in range(20)], columns=["text", "text", "label"])
    table.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(TaskError, match=r"column 'text' (is there 2 times; rename or drop the others|twice)"):
        load_task(dict.fromkeys(("train", "test"), table if kind == "frame" else tmp_path / "train.csv"))
