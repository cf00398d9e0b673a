"""Rows and folders for the tests of tasks."""

import json

import pandas as pd


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
        elif ending == "parquet":
            pd.DataFrame(part).to_parquet(folder / f"{split}.parquet")
            continue
        else:
            mark = "," if ending == "csv" else "\t"
            lines = [mark.join(part[0]), *(mark.join(map(str, row.values())) for row in part)]
        (folder / f"{split}.{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if task is not None:
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return folder


def sources(examples):
    return {example.source for example in examples}
