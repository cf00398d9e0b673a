"""Benchmarks: every row of the table can be read; hidden test labels; the real files."""

from collections import Counter

import pytest
from task_data import data, rows, write

from s3pet.errors import TaskError
from s3pet.tasks import load_task
from s3pet.tasks.benchmarks import BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_read(tmp_path, name):
    entry = BENCHMARKS[name]
    regression = entry.metrics[0] == "pearson"
    values = (0.0, 2.5, 5.0) if regression else range(len(entry.label_words))
    part = [{c: f"{c}{i}" for c in entry.fields} | {"label": values[i % len(values)]} for i in range(30)]
    task = load_task(name, path=write(tmp_path, {"train": part, entry.validation: part}))
    assert (task.name, task.metrics, task.label_words) == (name, entry.metrics, entry.label_words)
    assert task.test[1].source.startswith(name.split("/")[1])
    assert all(f"{c}1" in task.test[1].source for c in entry.fields)
    assert len(task.test[0].segments) <= 2
    assert task.n_labels == (1 if regression else len(entry.label_words))


def test_mnli_uses_the_matched_rows(tmp_path):
    splits = {"train": rows(40, (0, 1, 2)), "validation_matched": rows(9, (0, 1, 2), tag="m")}
    for part in splits.values():
        for row in part:
            row |= {"premise": row.pop("sentence"), "hypothesis": "h"}
    task = load_task("glue/mnli", path=write(tmp_path, splits))
    assert (len(task.test), task.label_words[2]) == (9, "contradiction")
    assert "matched" in task.notes[0]


def test_copa_shows_the_question_and_gives_encoders_two_segments(tmp_path):
    row = {"premise": "It rained.", "question": "effect", "choice1": "wet", "choice2": "dry", "label": 0}
    part = [row | {"premise": f"It rained {i}.", "label": i % 2} for i in range(12)]
    example = load_task("superglue/copa", path=write(tmp_path, {"train": part, "validation": part})).test[1]
    assert example.source == "copa premise: It rained 1. question: effect choice1: wet choice2: dry"
    assert example.segments == ("It rained 1. effect wet", "dry")


@pytest.mark.parametrize("hidden", [{"label": -1}, {"label": None}, {}])
def test_a_benchmark_publishes_its_test_rows_without_labels(tmp_path, hidden):
    """They are left out, and the notes say so; anyone else's test rows without labels are an error."""
    splits = data(test=False)
    expected = load_task("glue/sst2", path=write(tmp_path / "a", splits))
    splits["test"] = [{"sentence": "?"} | hidden] * 5
    task = load_task("glue/sst2", path=write(tmp_path / "b", splits))
    assert task.test == expected.test
    assert any("test rows have no labels" in note for note in task.notes)
    with pytest.raises(TaskError, match=r"no test row has a label.*leave the test split out"):
        load_task(splits)


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
