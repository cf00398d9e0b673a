"""The doors of the files room: what is no regular file, too large when expanded, or of another form is one error."""

import json
import os
import struct

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from s3pet.errors import RunError, StudyError
from s3pet.files.kinds import FLAG, TEXT, check_record, number, optional, whole
from s3pet.files.reading import (
    parse_json,
    read_csv,
    read_json,
    read_lines,
    read_table,
    read_tensors,
    read_yaml,
    reading,
)
from s3pet.files.writing import MANIFEST, check_signature, new_folder, saved_files, signed, write_json, write_table

DOORS = {
    "json": read_json,
    "yaml": read_yaml,
    "csv": read_csv,
    "tsv": read_csv,
    "jsonl": lambda path: list(read_lines(path)),
    "parquet": lambda path: read_table(path, {}),
    "safetensors": read_tensors,
}


def said(path, door, **options):
    with pytest.raises(RunError) as caught, reading(path):
        door(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", DOORS)
def test_only_regular_files_are_read(tmp_path, ending):
    door = DOORS[ending]
    assert "No such file" in said(tmp_path / f"none.{ending}", door)
    (folder := tmp_path / f"folder.{ending}").mkdir()
    assert "folder" in said(folder, door).lower() or "directory" in said(folder, door)
    os.mkfifo(pipe := tmp_path / f"pipe.{ending}")
    assert "it is a named pipe" in said(pipe, door)
    (endless := tmp_path / f"endless.{ending}").symlink_to("/dev/zero")
    assert "it is a device" in said(endless, door)
    (tmp_path / f"noise.{ending}").write_bytes(b"\x80\x81\xfe\n" * 40)
    said(tmp_path / f"noise.{ending}", door)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "NaN is not a finite number"),
        ("[1e999]", "1e999 is not a finite number"),
        ("9" * 5000, "digits"),
        ("9" * 400, "a number has 400 digits"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('["\\ud800"]', "surrogates"),
        ("[" * 100_000, "nested|recursion|Expecting"),
        ("[" * 60 + "]" * 60, "nested more than 40 deep"),
        ("[" + "[]," * 3_000_000 + "0]", "MB of memory"),
        ('{"a": 1} x', "Extra data"),
    ],
)
def test_json_is_strict_and_bounded(text, message):
    with pytest.raises((ValueError, RecursionError), match=message):
        parse_json(text.encode())


def test_yaml_is_plain(tmp_path):
    path = tmp_path / "x.yaml"
    for text, message in {
        "a: &x [1]\nb: *x": "line 2 has an alias",
        "a: 1\na: 2": "line 2 has 'a' twice|line 1 has 'a' twice",
        "a: !!python/object/apply:os.system ['true']": "could not determine a constructor",
        "a: 2024-01-02": "not JSON serializable",
        "a: .nan": "not JSON compliant",
        "a: " + "[" * 5000 + "]" * 5000: "nested too deeply",
        "? [1]\n: 2": "cannot be read",
    }.items():
        path.write_text(text)
        assert any(part in said(path, read_yaml) for part in message.split("|")), message
    path.write_text("a: [1, 2.5, x]\n3: {b: null}")
    assert read_yaml(path) == {"a": [1, 2.5, "x"], "3": {"b": None}}


def test_records_and_tables_hold_what_was_declared(tmp_path):
    kinds = {"n": whole(1), "p": number(0, 1), "name": TEXT, "flag": FLAG, "rank": optional(whole(1))}
    good = {"n": 1, "p": 0.5, "name": "x", "flag": True, "rank": None}
    assert check_record(good, kinds, kinds) == good
    for name, wrong in [
        ("n", True),
        ("n", 1.0),
        ("n", 0),
        ("p", 2),
        ("p", None),
        ("name", ""),
        ("flag", 1),
        ("rank", 0),
    ]:
        with pytest.raises(ValueError, match=rf"{name} is .*; expected"):
            check_record({**good, name: wrong}, kinds)
        table = pd.DataFrame([{**good, name: wrong}]).astype({"rank": "Int64"})
        table.to_parquet(tmp_path / "t.parquet")
        if type(wrong) is not bool or name != "n":  # a column of flags is not one of numbers
            assert f"column {name} holds" in said(tmp_path / "t.parquet", lambda path: read_table(path, kinds))
    write_table(pd.DataFrame([good, good | {"rank": 2}]).astype({"rank": "Int64"}), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", kinds)
    assert table["rank"].dtype == "Int64" and table["n"].dtype == "int64" and table["flag"].dtype == bool
    assert "has no column more" in said(tmp_path / "t.parquet", lambda path: read_table(path, {**kinds, "more": TEXT}))


@pytest.mark.parametrize("text", ["x", "x" * 2000])
def test_few_bytes_of_a_table_do_not_become_much_memory(tmp_path, text):
    n = 30_000_000 if len(text) == 1 else 300_000
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([text]))
    pq.write_table(pa.table({"a": words}), tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 1_000_000
    assert "MB of memory" in said(tmp_path / "t.parquet", DOORS["parquet"])


def test_tensors_are_finite_and_their_header_is_bounded(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.tensor([1.0, float("nan")])}, path)
    assert "tensor a has values that are not finite" in said(path, read_tensors)
    assert read_tensors(path, finite=False)[0]["a"].isnan().any()
    for header in (
        b"{" * 100,
        b'{"a":' + b"[" * 10_000,
        json.dumps({"a": {"dtype": "F32", "shape": [2**62]}}).encode(),
    ):
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        said(path, read_tensors)
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    assert "its header is damaged" in said(path, read_tensors)


def test_csv_rows_have_all_cells_and_headers_are_bounded(tmp_path):
    path = tmp_path / "x.csv"
    for text, message in {
        "a,a\n1,2": "twice",
        "a,b\n1,\0,2": "line",
        "," * 100_000 + "\n" + "\n".join("1" * 9): "columns",
    }.items():
        path.write_text(text)
        assert message in said(path, read_csv)


def test_a_changed_record_is_noticed(tmp_path):
    record = signed({"a": 1.5, "b": [np.float64(0.1), float("nan")], "c": {2: "x", 10: "y"}})
    write_json(record, tmp_path / "r.json")
    again = read_json(tmp_path / "r.json")
    check_signature(again)
    check_signature({"a": 1})  # of an earlier version
    with pytest.raises(ValueError, match="changed after it was written"):
        check_signature(again | {"a": 1.25})


def write(folder, value, overwrite=False, **options):
    with new_folder(folder, "last.json", "thing", overwrite, **options) as new:
        write_json({"value": value}, new / "last.json")
        if value != "short":
            write_json({"value": value}, new / "more.json")


def values(folder):
    files = saved_files(folder, "thing", ["last.json"])
    return {name: read_json(file)["value"] for name, file in files.items() if name.endswith(".json")}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "f"
    write(folder, 1)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds a thing"):
        write(folder, 2)
    write(folder, "short", overwrite=True)
    assert values(folder) == {"last.json": "short"} and not (folder / "more.json").exists()
    with pytest.raises(TypeError, match="serializable"):
        write(folder, object(), overwrite=True)  # fails after its folder was made
    assert values(folder) == {"last.json": "short"} and (folder / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(folder)) == [MANIFEST, "last.json", "notes.txt"]
    (folder / "last.json").write_text('{"value": 4}')
    with pytest.raises(RunError, match=r"last\.json cannot be read: it is not the file that was saved with this thing"):
        values(folder)
    (folder / MANIFEST).unlink()  # as an earlier version, or changed on purpose
    assert values(folder)["last.json"] == 4


def test_errors_of_readers_are_of_the_kind_that_was_asked_for(tmp_path):
    with (
        pytest.raises(StudyError, match=r"x is not a study: no 'a'\. Write one"),
        reading("x", StudyError, "a study", "Write one"),
    ):
        {}["a"]
