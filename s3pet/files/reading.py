"""Read files: one door per format.

Each door takes a regular file (no pipe, device or folder) of bounded size, parses it strictly, and checks it. Whatever
is wrong becomes one error with the path and the reason: libraries raise many undocumented types for damaged files.
Formats in which few bytes can stand for much memory (nested JSON, compressed or repeated values of parquet, aliases of
YAML) are measured before they are expanded.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from s3pet.errors import RunError, S3PetError
from s3pet.files.kinds import PATH, Kind, check_record

if TYPE_CHECKING:  # importing this module must be quick: tasks are read without torch
    import pandas as pd
    import pyarrow as pa
    import torch

MB = 2**20
LARGEST = 4096 * MB  # of a file of rows
MEMORY = 90 * MB  # what the values of a file may need beyond its size
DEPTH = 40  # of nested lists and objects
KINDS_OF_FILE = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}


def path_of(value: Any, error: type[S3PetError] = RunError, name: str = "path") -> Path:
    """A path that was passed as an argument; an ``error`` for what is none, and for an empty text."""
    PATH.check(error, **{name: value})
    return Path(value)


@contextmanager
def reading(path: Any, error: type[S3PetError] = RunError, what: str = "", hint: str = "") -> Iterator[None]:
    """Turn anything that goes wrong inside into ``error``, with the path and the reason."""
    try:
        yield
    except Exception as problem:
        if isinstance(problem, S3PetError) and (type(problem) is not error or str(path) in str(problem)):
            raise
        reason = f"no {problem}" if isinstance(problem, KeyError) else getattr(problem, "strerror", None) or problem
        reason = f"it is not UTF-8 text: {problem}" if isinstance(problem, UnicodeDecodeError) else reason
        reason = " ".join(f"{reason or type(problem).__name__}".split())
        reason = "its values are nested too deeply" if isinstance(problem, RecursionError) else f"{reason:.300}"
        said = f"is not {what}" if what else "cannot be read"
        raise error(f"{path} {said}: {reason}{hint and f'. {hint}'}") from problem


@contextmanager
def regular(path: str | Path, most: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most so many bytes; raises OSError or ValueError."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe must not wait for a writer
    with open(os.open(path, flags), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            kind = next((word for test, word in KINDS_OF_FILE.items() if test(state.st_mode)), "a device")
            raise ValueError(f"it is {kind}, not a regular file")
        if state.st_size > most:
            raise ValueError(f"it has {state.st_size:,} bytes; at most {most:,} are read")
        yield file


def read_bytes(path: str | Path, most: int) -> bytes:
    """Read all of a regular file."""
    with regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # files of /proc say 0 and never end


def parse_json(data: bytes, *, nan: bool = False) -> Any:
    """Parse strict JSON of bounded depth and memory; ``nan``: NaN and Infinity are numbers. Raises ValueError."""
    need = (2 if data.isascii() else 8) * len(data)  # the text and its strings
    need += 72 * data.count(b"[") + 240 * data.count(b"{") + 230 * data.count(b",")
    if need > MEMORY + 8 * MB:
        raise ValueError(f"its values need {need / MB:,.0f} MB of memory")

    def no_number(text: str) -> float:
        raise ValueError(f"{text:.20} is not a finite number")

    def decimal(text: str) -> float:
        return value if math.isfinite(value := float(text)) else no_number(text)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(record := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r:.60} is there twice")
        return record

    text = data.decode("utf-8-sig")
    how: dict[str, Any] = {} if nan else {"parse_constant": no_number, "parse_float": decimal}
    value = json.loads(text, object_pairs_hook=unique, **how)
    _check_plain(value, DEPTH, "\\ud" in text or "\\uD" in text)
    return value


def _check_plain(value: Any, depth: int, surrogates: bool) -> None:
    """Bounded depth; no half of a surrogate pair, which cannot be written again."""
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"its values are nested more than {DEPTH} deep")
        if isinstance(value, dict) and surrogates:
            _check_plain([*value], depth, surrogates)
        for part in value.values() if isinstance(value, dict) else value:
            _check_plain(part, depth - 1, surrogates)
    elif type(value) is int and abs(value) >= 10**300:
        raise ValueError(f"a number has {len(str(value))} digits")
    elif surrogates and isinstance(value, str):
        value.encode()


def read_json(path: str | Path, kinds: Mapping[str, Kind] | None = None, required: Any = ()) -> Any:
    """Read a JSON file, and with ``kinds`` check the object in it; inside :func:`reading`."""
    value = parse_json(read_bytes(path, 16 * MB))
    return value if kinds is None else check_record(value, kinds, required)


def read_yaml(path: str | Path) -> Any:
    """Read YAML of plain values: no aliases (a few lines of them can stand for gigabytes), no other tags."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*); write the values out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if doubles := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"line {node.start_mark.line + 1} has {min(doubles)!r} twice")
            return super().construct_mapping(node, deep)

    value = yaml.load(read_bytes(path, MB // 4).decode("utf-8-sig"), Loader)
    plain = json.dumps(value, allow_nan=False)  # dates, sets and keys that are no texts go no further
    return parse_json(plain.encode())


def read_lines(path: str | Path, *, nan: bool = False) -> Iterator[tuple[int, Any, bool]]:
    """Parse a file of one JSON object per line: number of the line, object, whether the line has its end.

    What follows the last newline may be cut off: where it is no object, None is yielded for it.
    """
    with regular(path, LARGEST) as file:
        for n, line in enumerate(iter(lambda: file.readline(16 * MB + 1), b""), 1):
            complete, line = line.endswith(b"\n"), line.removeprefix(b"\xef\xbb\xbf") if n == 1 else line
            if not line.strip():
                continue
            try:
                row = parse_json(line, nan=nan)
            except (ValueError, RecursionError) as error:
                if not complete and len(line) <= 16 * MB:
                    yield n, None, False
                    return
                raise ValueError(f"line {n} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {n} is not a JSON object")
            yield n, row, complete


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV file, or TSV as GLUE writes it (no quoting); every cell is a string, and every row has all cells."""
    quoting: Any = csv.QUOTE_NONE if (tabs := Path(path).suffix == ".tsv") else csv.QUOTE_MINIMAL
    text = io.StringIO(read_bytes(path, LARGEST).decode("utf-8-sig"), newline="")
    lines = csv.reader(text, delimiter="\t" if tabs else ",", quoting=quoting, strict=True)
    header, rows = next(lines, []), []
    if doubles := [name for name in header if header.count(name) > 1][:1] if len(header) < 1000 else ["…"]:
        raise ValueError(f"its header has the column {doubles[0]!r} twice, or more than 1,000 columns")
    for n, cells in enumerate((cells for cells in lines if cells), 1):
        if len(cells) > len(header):
            raise ValueError(f"Expected {len(header)} fields in line {lines.line_num}, saw {len(cells)}")
        if len(cells) < len(header):
            raise ValueError(f"row {n} has fewer cells than the header {header}")
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def read_arrow(path: str | Path, *, most: int = 64 * MB) -> pa.Table:
    """Read a parquet file whose values, expanded, need bounded memory: checks and copies need some times as much."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    data = read_bytes(path, most)
    room, source = MEMORY // 4 + 8 * len(data), pa.BufferReader(data)
    about = pq.read_metadata(source, decryption_properties=None)
    groups = [about.row_group(n).column(k) for n in range(about.num_row_groups) for k in range(about.num_columns)]
    texts = [column.path_in_schema for column in groups if column.physical_type == "BYTE_ARRAY"]
    cells = max(about.num_rows * about.num_columns, sum(column.num_values for column in groups))
    if max(8 * cells, sum(column.total_uncompressed_size for column in groups)) > room or len(groups) > 100_000:
        raise ValueError(f"its {cells:,} values need more than {room / MB:.0f} MB of memory")
    if len(set(names := about.schema.to_arrow_schema().names)) < len(names):
        raise ValueError("a column is there twice")
    file = pq.ParquetFile(source, read_dictionary=[*dict.fromkeys(texts)], metadata=about)  # each text once
    batches = []
    for batch in file.iter_batches(65536, use_threads=False):
        for column in batch.columns:
            values = column.flatten() if pa.types.is_list(column.type) else column
            room -= values.nbytes
            if pa.types.is_dictionary(values.type):
                width = pc.binary_length(values.dictionary) if len(values.dictionary) else pa.array([0])
                room -= (pc.sum(pc.take(width, values.indices)).as_py() or 0) if len(values) else 0
        if room < 0:
            raise ValueError(f"its texts need more than {MEMORY / MB / 4:.0f} MB of memory")
        plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        batches.append(pa.RecordBatch.from_arrays(plain, names=batch.schema.names))
    if not batches:
        return file.schema_arrow.empty_table().replace_schema_metadata(None)
    return pa.Table.from_batches(batches)


def read_table(path: str | Path, kinds: Mapping[str, Kind], required: Any = None) -> pd.DataFrame:
    """Read a parquet table whose columns are checked; others are kept if they hold texts, numbers or flags.

    Raises ValueError for a column that is missing (of ``required``, by default all of ``kinds``) or of another type, an
    empty cell or a value that is not allowed; inside :func:`reading`.
    """
    import pandas as pd
    import pyarrow as pa

    table = read_arrow(path)
    if missing := [name for name in (kinds if required is None else required) if name not in table.column_names]:
        raise ValueError(f"it has no column {', '.join(missing)}")
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind, t = kinds.get(name), column.type
        tests = {"whole": pa.types.is_integer(t), "flag": pa.types.is_boolean(t), "number": pa.types.is_floating(t)}
        tests |= {"text": pa.types.is_string(t) or pa.types.is_large_string(t), "list": pa.types.is_list(t)}
        tests["number"] |= tests["whole"] and kind is not None
        blank = column.null_count == len(column)  # of any type
        if not (blank or any(tests.values())) or (
            kind and not tests[kind.column] and not (blank and (kind.empty or not len(column)))
        ):
            raise ValueError(f"column {name} holds {t}; expected {kind.what if kind else 'texts, numbers or flags'}")
        if kind:
            for start in range(0, len(column), 10_000):  # a list of all values would take much memory
                values = column.slice(start, 10_000).to_pylist()
                if kind.empty and kind.column == "number":
                    values = [None if v is not None and math.isnan(v) else v for v in values]
                if wrong := [v for v in values if not kind.holds(v)][:1]:
                    raise ValueError(f"column {name} holds {wrong[0]!r:.60}; expected {kind.what}")
        if kind and kind.empty and kind.column == "whole":
            columns[name] = column.cast(pa.int64()).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        else:
            columns[name] = column.to_pandas()
    return pd.DataFrame(columns)


def read_tensors(path: str | Path, *, finite: bool = True) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file; with ``finite``, NaN and infinity are refused."""
    import torch
    from safetensors import safe_open

    with regular(path, 2**40) as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if not 2 <= length <= 16 * MB:
            raise ValueError("its header is damaged")
        header = parse_json(file.read(length))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or len(header) > 200_000:
            raise ValueError("its header is damaged")
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    for name, tensor in tensors.items():
        if finite and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name} has values that are not finite")
    return tensors, metadata
