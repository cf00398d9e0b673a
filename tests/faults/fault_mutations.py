"""Seeded damage to files: bytes, places, JSON, YAML, JSON lines, CSV, parquet tables and safetensors."""

import json
import os
import re
import shutil
import struct

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

DEEP = 100_000
WEIRD = [
    *(
        "null",
        "true",
        "-1",
        "0",
        "2.5",
        "1e999",
        "NaN",
        "-Infinity",
        "9" * 400,
        "9" * 5000,
        "1" + "0" * 30,
        '""',
        '"x"',
    ),
    *("[]", "{}", '["a"]', '{"a": 1}', '"../../x"', '"\\ud800"', '"\\u0000"', "1e-400", "3.0", '"3"', "[[1]]", "false"),
    *("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[" + "[]," * 3_000_000 + "0]", "1." + "1" * 100_000),
]
SEEDS = ["-1", "true", "2.5", ".nan", "9" * 5000, "null", "0", "[1]", "x", "{}"]
WORDS = ["null", "-1", "[]", "{}", ".nan", "~", "!!set {a}", "*x"]


def damage(draw, path, canary):
    """Change one file in place; what was done, in words."""
    kinds = [in_place, in_bytes, in_bytes]
    kinds += {".json": [in_json] * 6, ".jsonl": [in_lines] * 6, ".csv": [in_csv] * 6, ".yaml": [in_yaml] * 8}.get(
        path.suffix, []
    )
    kinds += {".parquet": [in_table] * 7, ".safetensors": [in_tensors] * 6}.get(path.suffix, [])
    how = draw.choice(kinds)
    return f"{path.name}: {how(draw, path, canary)}"


def in_place(draw, path, canary):
    what = draw.choice(["missing", "folder", "pipe", "endless", "loop", "empty", "pickle"])
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "endless":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "empty":
        path.touch()
    elif what == "pickle":
        path.write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    return what


def in_bytes(draw, path, canary):
    data, what = bytearray(path.read_bytes()), draw.choice(["flip", "cut", "zeros", "twice", "noise", "tail"])
    at, size = draw.randrange(max(1, len(data))), draw.randrange(1, 64)
    if what == "flip":
        for _ in range(draw.randrange(1, 5)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif what == "cut":
        del data[at:]
    elif what == "zeros":
        data[at : at + size] = bytes(size)
    elif what == "twice":
        data[at:at] = data[at : at + size]
    elif what == "noise":
        data[at : at + size] = bytes(draw.randrange(256) for _ in range(size))
    else:
        data += bytes(draw.randrange(256) for _ in range(size))
    path.write_bytes(bytes(data))
    return f"{what} at {at}"


def places(value, path=()):
    """Paths of all values inside a parsed one."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        yield from places(part, (*path, name))


def changed_json(draw, value):
    """Text of JSON with one value changed, removed or there twice; what was done."""
    path = draw.choice([p for p in places(value) if p])
    mark, holder = "\ue000mark\ue000", value
    for name in path[:-1]:
        holder = holder[name]
    what = draw.choice(["weird"] * 6 + ["removed", "twice", "swapped"])
    old = holder[path[-1]]
    if what == "removed":
        del holder[path[-1]]
        return json.dumps(value), f"{path} removed"
    if what == "swapped":
        other = draw.choice([p for p in places(value) if p])
        source = value
        for name in other:
            source = source[name]
        new = json.dumps(source)
        text = f"{path} from {other}"
    elif what == "twice" and isinstance(holder, dict):
        new, text = f"{json.dumps(old)}, {json.dumps(path[-1])}: {draw.choice(WEIRD[:13])}", f"{path} twice"
    else:
        new = draw.choice(WEIRD)
        text = f"{path} = {new:.30}"
    holder[path[-1]] = mark
    return json.dumps(value).replace(json.dumps(mark), new, 1), text


def in_json(draw, path, canary):
    text, what = changed_json(draw, json.loads(path.read_text(encoding="utf-8")))
    path.write_text(text, encoding="utf-8")
    return what


def in_lines(draw, path, canary):
    lines = path.read_text(encoding="utf-8").splitlines()
    n = draw.randrange(len(lines))
    if draw.random() < 0.2:
        lines.insert(n, draw.choice([lines[n], "[1]", "{}", "null", "x" * 100, '{"key": 1}']))
        what = f"line {n} inserted"
    else:
        lines[n], what = changed_json(draw, json.loads(lines[n]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {n}, {what}"


def in_csv(draw, path, canary):
    text = path.read_text(encoding="utf-8")
    lines, n = text.splitlines(), 0
    n = draw.randrange(len(lines))
    what, lines[n] = draw.choice([
        ("more cells", lines[n] + ",x,y"), ("fewer cells", lines[n].split(",")[0]), ("quote", '"' + lines[n]),
        ("nul", lines[n] + "\0"), ("wide", lines[n] + "," * 300_000), ("long", lines[n] + "x" * 2_000_000),
        ("empty", ""), ("header again", lines[0]), ("infinite", "w1,inf"), ("nan", "w1,nan"),
        ("digits", "w1," + "9" * 5000),
    ])  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {n}, {what}"


def in_yaml(draw, path, canary):
    text = path.read_text(encoding="utf-8")
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 9)
    )
    changes = [
        ("alias bomb", bomb + text),
        ("alias", text.replace("seeds: 3", "seeds: &n 3").replace("seeds: 5", "seeds: *n")),
        ("python tag", text.replace("seeds: 3", f"seeds: !!python/object/apply:os.system ['touch {canary}']")),
        ("python tag 2", text + f"x: !!python/object/new:os.system ['touch {canary}']\n"),
        ("task outside", text.replace("{one:", '{"../../outside":')),
        ("search outside", text.replace("ours", "../../outside")),
        ("absolute", text.replace("ours", "/tmp/outside")),
        ("dots", text.replace("ours", '".."')),
        ("deep", text + "x: " + "[" * 20000 + "]" * 20000 + "\n"),
        ("rate is text", text.replace("1.0e-3", "1e-3")),
        ("rate is nan", text.replace("1.0e-3", ".nan")),
        ("rate is infinite", text.replace("1.0e-3", ".inf")),
        ("rate is true", text.replace("[5.0e-4]", "[true]")),
        (
            "seeds",
            text.replace("seeds: 3", f"seeds: {draw.choice(['-1', 'true', '2.5', '.nan', '9' * 5000, 'null', '0'])}"),
        ),
        ("seeds 2", text.replace("seeds: 5", f"seeds: {draw.choice(SEEDS)}")),
        ("key twice", text + "seeds: 7\n"),
        ("key is a list", text + "[1, 2]: 3\n"),
        ("date", text.replace("seeds: 3", "seeds: 2024-99-99")),
        ("binary", text.replace("seeds: 3", "seeds: !!binary xxx")),
        ("sixty", text.replace("steps: 30", "steps: " + "1:" * 2000 + "1", 1)),
        ("merge", text.replace("full: {kind: reference}", "full: {<<: {kind: reference}, <<: 3}")),
    ]
    for old, new in (
        ("pocket-t5", "[]"),
        ("reference", "3"),
        ("random,", "null,"),
        ("max_length: 64", "max_length: x"),
    ):
        changes.append((f"{old} → {new}", text.replace(old, new)))
    words = [*re.finditer(r"[\w.%/-]+", text)]
    word = draw.choice(words)
    changes += [("word", text[: word.start()] + draw.choice(WORDS) + text[word.end() :])] * 6
    what, text = draw.choice(changes)
    path.write_text(text, encoding="utf-8")
    return what


def in_table(draw, path, canary):
    table = pq.read_table(path).replace_schema_metadata(None)
    frame, n = table.to_pandas(), draw.randrange(table.num_rows)
    column = draw.choice([name for name in frame if name != "candidates"] or [*frame])
    ways = (
        "drop,rename,text,nan,infinite,negative,huge,rows twice,rows gone,empty,nested,null column,shuffle,more rows,"
    )
    what = draw.choice((ways + "wide cell,bomb,text bomb,float").split(","))
    numbers = [name for name in frame if frame[name].dtype.kind in "fiu"]
    if what == "drop":
        frame = frame.drop(columns=column)
    elif what == "rename":
        frame = frame.rename(columns={column: f"{column}x"})
    elif what == "text":
        frame[column] = frame[column].astype(str)
    elif what == "float":
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    elif what in ("nan", "infinite", "negative", "huge") and numbers:
        column = draw.choice(numbers)
        frame[column] = frame[column].astype(float)
        frame.loc[n, column] = {"nan": np.nan, "infinite": np.inf, "negative": -1.0, "huge": 1e300}[what]
    elif what == "rows twice":
        frame = pd.concat([frame, frame.iloc[n : n + 3]])
    elif what == "rows gone":
        frame = frame.drop(index=n)
    elif what == "empty":
        frame = frame.iloc[:0]
    elif what == "nested":
        frame[column] = [{"a": 1}] * len(frame)
    elif what == "null column":
        frame[column] = None
    elif what == "shuffle":
        frame[column] = frame[column].sample(frac=1, random_state=draw.randrange(100)).to_numpy()
    elif what == "wide cell" and frame[column].dtype.kind not in "fiub":
        frame.loc[n, column] = "x" * 3_000_000
    if what in ("more rows", "bomb", "text bomb"):
        copies = 30_000_000 // 100 if what != "more rows" else 50
        text = "x" * 2000 if what == "text bomb" else "x"
        columns = {
            name: pa.DictionaryArray.from_arrays(pa.array(np.zeros(copies, np.int32)), pa.array([text]))
            if pa.types.is_string(t) or pa.types.is_large_string(t)
            else pa.array(np.zeros(copies), t if pa.types.is_floating(t) else pa.float64())
            for name, t in zip(table.column_names, table.schema.types, strict=True)
        }
        bomb = pa.table(columns)
        pq.write_table(bomb, path, compression="zstd")
        return f"{what}: {copies:,} rows"
    path.unlink()
    frame.to_parquet(path, index=False)
    return f"{what} {column}"


def in_tensors(draw, path, canary):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    what = draw.choice(["length", "header", "header", "dtype", "nan", "drop", "shape", "huge", "more", "swap", "deep"])
    if what == "length":
        path.write_bytes(struct.pack("<Q", draw.choice([0, 1, 2**31, 2**63, length - 1, length + 1])) + data[8:])
        return what
    if what == "dtype":
        header[name]["dtype"] = draw.choice(["I32", "F16", "BF16", "U8", "X", "F64", "BOOL"])
    elif what == "nan":
        start, _ = header[name]["data_offsets"]
        rest[start : start + 4] = struct.pack("<f", draw.choice([float("nan"), float("inf")]))
    elif what == "drop":
        del header[name]
    elif what == "shape":
        header[name]["shape"] = draw.choice([[], [0], [1, *header[name]["shape"]], header[name]["shape"][::-1], [-1]])
    elif what == "huge":
        header[name]["shape"] = draw.choice([[2**62], [2**40, 2**40], [10**30], [1e300]])
    elif what == "more":
        header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(rest), len(rest) + 4]}
        rest += bytes(4)
    elif what == "swap":
        other = draw.choice(names)
        header[name], header[other] = header[other], header[name]
    text = json.dumps(header)
    if what == "header":
        text, where = changed_json(draw, header)
        what = f"header {where}"
    elif what == "deep":
        text = '{"a":' + "[" * DEEP + "]" * DEEP + "}"
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + bytes(rest))
    return f"{what} of {name}"


def without_hashes(folder):
    """The same folder as an earlier version wrote it, without hashes: what is left is what the schema sees."""
    (folder / "files.json").unlink(missing_ok=True)
    for file in folder.rglob("*.json*"):
        if file.suffix == ".json" and file.name != "bench.json":
            record = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(record, dict) and record.pop("hash", None):
                file.write_text(json.dumps(record), encoding="utf-8")
        elif file.suffix == ".jsonl":
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            lines = [{key: value for key, value in line.items() if key != "hash"} for line in lines]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def copied(folder, target, hashes):
    shutil.copytree(folder, target)
    if not hashes:
        without_hashes(target)
    return sorted(file for file in target.rglob("*") if file.is_file() and not file.name.endswith((".lock", ".md")))
