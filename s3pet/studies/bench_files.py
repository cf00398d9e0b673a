"""The files of a bench: where they are, what is in them, and what must hold (:mod:`s3pet.studies.bench`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from s3pet.backbones import embedded_path
from s3pet.errors import RunError, nearest
from s3pet.files.kinds import RECORD, RECORDS, TEXT, check_record, many, mapping, number, whole
from s3pet.files.reading import path_of
from s3pet.space import Space
from s3pet.structure import read_candidates
from s3pet.studies.statistics import checked

FORMAT, VERSION = "s3pet-bench", 1
FIELDS = ("name", "model", "model_hash", "backbone_params", "space", "tasks", "recipe", "rates", "versions")
KINDS = {
    **dict.fromkeys(("name", "model", "model_hash", "space_name"), TEXT),
    **{"backbone_params": whole(1), "space": RECORDS, "tasks": mapping(RECORD), "recipe": RECORD},
    **{"rates": many(number(0)), "objective": RECORD},
}
STRUCTURE_COLUMNS = ("structure", "n_params", "candidates")
ROW_COLUMNS = (
    *("task", "structure", "kind", "origin", "budget", "n_params", "lr", "seed"),
    *("validation", "score", "diverged"),
)
SOLO_COLUMNS = ("task", "site", "pet", "rank", "utility")


def structure_hash(names: Iterable[str]) -> str:
    """16 hexadecimal digits that identify a set of candidates, given by their names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def find_folder(path_or_name: str | Path) -> Path:
    """The folder of a bench, given as such or by its name; RunError if there is none."""
    place = embedded_path().parent / "bench"
    if (path := path_of(path_or_name, name="path_or_name")).is_dir():
        return path
    if (place / path / "bench.json").is_file():
        return place / path
    names = sorted(file.parent.name for file in place.glob("*/bench.json"))
    raise RunError(f"{path} is no folder of a bench, and none of {place}: {nearest(str(path), names)}")


def read_space(config: Mapping[str, Any]) -> Space:
    """The space of a bench; raises ValueError or KeyError unless this is the ``bench.json`` of one."""
    if config.get("format") != FORMAT or not 1 <= config["version"] <= VERSION:
        raise ValueError(f"bench.json has format {config.get('format')!r}, version {config.get('version')!r}")
    if missing := [name for name in FIELDS if name not in config]:
        raise ValueError(f"bench.json has no {', '.join(missing)}")
    check_record(config, KINDS)
    candidates = read_candidates(config["space"], None)
    return Space(candidates, config.get("space_name", "custom"), config["model"], config["backbone_params"])


def check_tables(
    config: Mapping[str, Any], space: Space, structures: pd.DataFrame, rows: pd.DataFrame, solo: pd.DataFrame | None
) -> None:
    """Raise ValueError or StudyError at the first thing that is wrong with the tables of a bench."""
    tables = {"structures": (structures, STRUCTURE_COLUMNS), "rows": (rows, ROW_COLUMNS)}
    tables |= {} if solo is None else {"solo": (solo, SOLO_COLUMNS)}
    for name, (table, columns) in tables.items():
        if missing := [column for column in columns if column not in table]:
            raise ValueError(f"{name}.parquet has no column {', '.join(missing)}")
    costs, sizes = {c.name: c.n_params for c in space}, {}
    for key, n_params, names in structures[[*STRUCTURE_COLUMNS]].itertuples(index=False):
        if unknown := [name for name in names if name not in costs]:
            raise ValueError(f"structure {key} has {unknown[0]}, which is not in the space")
        if len(set(names)) < len(names) or key in sizes or structure_hash(names) != key:
            raise ValueError(f"structure {key} is there twice, or its hash is not {structure_hash(names)}")
        sizes[key] = sum(costs[name] for name in names)
        if sizes[key] != n_params:
            raise ValueError(f"structure {key} says {n_params} parameters; its candidates have {sizes[key]}")
    checked(rows, ("task", "structure", "kind", "seed", "n_params"), finite=("score", "validation", "lr"))
    run = ["task", "structure", "lr", "seed"]
    firsts: Any = rows[rows["seed"].eq(0)].groupby(["task", "structure"])["lr"].nunique()
    wrongs = {
        "a task or structure that is not declared": ~rows["task"].isin(config["tasks"])
        | ~rows["structure"].isin(sizes),
        "another cost than its structure": rows["n_params"].ne(rows["structure"].map(sizes)),
        "a learning rate that is not one of rates": ~rows["lr"].isin([float(rate) for rate in config["rates"]]),
        "the same training twice": rows.duplicated(run),
        "not all rates of seed 0": pd.MultiIndex.from_frame(rows[run[:2]]).map(firsts).to_numpy()
        != len(config["rates"]),
    }
    for what, wrong in wrongs.items():
        if wrong.any():
            first = ", ".join(f"{name} {rows.loc[wrong, name].iloc[0]}" for name in run)
            raise ValueError(f"{wrong.sum()} rows have {what}; the first: {first}")
