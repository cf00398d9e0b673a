"""Read the rows of a task from files or from the hub: each row is a dict of columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from s3pet.errors import TaskError, shown
from s3pet.files.reading import MB, read_arrow, read_csv, read_lines, reading
from s3pet.tasks.benchmarks import HUB_NAMES

Row = Mapping[str, Any]
ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def read_folder(folder: Path, validation: str | None = None) -> dict[str, list[Row]]:
    """Read every file that is named after a split (``validation`` is one more such name); other files are ignored."""
    if not folder.is_dir():
        raise TaskError(f"{folder} is not a folder; expected one with train.jsonl and validation.jsonl (or .csv, .tsv)")
    content = sorted(path for path in folder.iterdir())
    files = {path.name: path for path in content if path.stem in (*SPLITS, validation) and path.suffix in ENDINGS}
    stems = {path.stem for path in files.values()}
    if "train" not in stems:
        names = [path.name for path in content][:8] or "nothing"
        raise TaskError(f"{folder} has no train file of {', '.join(ENDINGS)}; it holds {names}")
    others = [path.name for path in content if path.suffix in ENDINGS and path.stem != "train"]
    if stems == {"train"} and others:
        what = f"{others[:4]} are not named after splits ({', '.join(SPLITS)})"
        raise TaskError(f"{folder}: {what}; rename or remove them")
    if "test" not in stems and (unreadable := [path.name for path in content if path.stem == "test"]):
        raise TaskError(f"{folder}: {unreadable[0]} cannot be read; use {', '.join(ENDINGS)}, or rename the file")
    return {name: _read_file(path) for name, path in files.items()}


def read_hub(name: str) -> dict[str, list[Row]]:
    """Read all splits of a benchmark task such as ``"glue/rte"`` through ``datasets``, or from its cache if offline."""
    from datasets import load_dataset

    suite, _, short = name.partition("/")
    try:
        data = load_dataset(HUB_NAMES[suite], short)
    except Exception as error:  # datasets raises many kinds of errors when the hub cannot be reached
        reason = " ".join(str(error).split())[:200]
        raise TaskError(
            f"it could not be loaded from the hub ({reason}). Pass a folder with its train and validation files: "
            f"load_task({name!r}, tokenizer, path=…)"
        ) from error
    return {split: list(rows) for split, rows in data.items()}


def read_split(rows: Any) -> list[Row]:
    """Read a list of dicts, a ``Dataset``, a table of pandas or a file; texts and numbers are those of Python."""
    if isinstance(rows, str | Path):
        return _read_file(Path(rows))
    if hasattr(rows, "iterrows"):
        if twice := [(name, n) for name, n in Counter(rows.columns).items() if n > 1]:  # one of them would be lost
            raise TaskError(f"column {twice[0][0]!r} is there {twice[0][1]} times; rename or drop the others")
        return rows.to_dict("records")
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise TaskError(f"rows must be a list of dicts, a Dataset, a table of pandas or a file, got {shown(rows)}")
    return list(rows)


def name_splits(splits: Mapping[str, list[Row]], validation: str | None = None) -> dict[str, list[Row]]:
    """Return the rows of ``"train"``, ``"validation"`` and ``"test"``; the last two may be absent.

    A split that is empty or there twice is a TaskError, and so is a row that is not a dict, and a split of an unknown
    name beside train alone, which could be a misspelt one.
    """
    parts: dict[str, list[Row]] = {}
    for name, rows in splits.items():
        stem = str(name).partition(".")[0]  # of a file
        split = "validation" if stem == validation else SPLITS.get(stem)
        if split in parts:
            raise TaskError(f"{sorted(splits)} hold {split!r} under two names; keep one")
        if split is not None:
            parts[split] = rows
    needed = ["train"] if len(splits) == 1 or "test" in parts else ["train", "validation"]
    for split in dict.fromkeys([*needed, *parts]):
        if not parts.get(split):
            raise TaskError(f"split {split!r} is empty or absent; the splits are {sorted(splits)}")
        for row in parts[split]:
            if not isinstance(row, Mapping):
                raise TaskError(f"{split}: a row is a {type(row).__name__}; expected dicts of columns")
    return parts


def _read_file(path: Path) -> list[Any]:
    """Read parquet, JSON lines, CSV, or TSV as GLUE writes it (no quoting). Every cell of a CSV or TSV is a string."""
    if path.suffix not in ENDINGS or not path.exists():
        raise TaskError(f"{path} is not a file of {', '.join(ENDINGS)}")
    with reading(path, TaskError):
        if path.suffix == ".jsonl":
            rows = []
            for number, row, _ in read_lines(path, nan=True):
                if row is None:
                    raise ValueError(f"line {number} is not JSON")
                rows.append(row)
            return rows
        return read_arrow(path, most=1024 * MB).to_pylist() if path.suffix == ".parquet" else read_csv(path)
