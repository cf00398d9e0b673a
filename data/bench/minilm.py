"""Make the bench ``minilm`` from archived rows: real tasks on a real encoder. Nothing is trained here.

    S3PET_ENCODER=… S3PET_SHARED=… python data/bench/minilm.py

The rows are those of ``data/runs/steady``: made by an earlier version of the library, with dropout in the backbone. The
structures are made again from what was declared there; each must have exactly the parameters that its row says, and a
searched one the candidates that were saved with its search.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import build
import pandas as pd
import torch
import yaml

from s3pet.structure import Structure
from s3pet.studies import Study, jobs
from s3pet.studies.bench_files import structure_hash

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "runs" / "steady"
KINDS = {"random": "random", "heuristic": "even", "rules": "even", "searched": "searched"}
KINDS |= {"sensitivity": "gradient", "transfer": "transferred", "average": "averaged"}


def declared() -> Study:
    """The study as today's library declares it."""
    facts = yaml.safe_load((SOURCE / "declared.yaml").read_text(encoding="utf-8"))
    old = {"pooling", "precision"}  # what is a part of the objective now
    objective = {"pooling": facts["retrain"]["pooling"]}
    for name in ("retrain", "search"):
        facts[name] = {key: value for key, value in facts[name].items() if key not in old}
    return Study(**facts, objective=objective, path=SOURCE)


def made(study: Study, row: dict[str, Any]) -> Structure:
    """The structure of a row, checked against what is known of it."""
    model, task, space = jobs._open(study, row["task"])
    structure = jobs._make_structure(study, row, model, task, space)
    saved = study.folder(row["task"], "small", row["index"]) / "structure.json"
    same = row["entry"] != "searched" or row["budget"] != 2271 or structure.names == Structure.from_json(saved).names
    if not same or structure.n_params != row["n_params"]:
        raise SystemExit(f"{row['structure']} {row['index']} on {row['task']} is not the structure that was trained")
    return structure


def archived(study: Study, rates: list[float]) -> pd.DataFrame:
    """The rows in the form of a bench's.

    The first seed of a structure is trained at every rate and becomes seed 0. Others, its repeats and the same
    structure from elsewhere, become seeds 1, 2, … and are kept at the rate that validation chose for seed 0.
    """
    rows = pd.concat([pd.read_parquet(SOURCE / f"{name}.parquet") for name in ("every_rate", "rows")])
    rows = rows[rows["kind"].isin([*KINDS])].astype({"source": object, "budget": object})
    rows = rows.where(rows.notna(), None).drop_duplicates(["task", "structure", "index", "seed", "lr"])
    structures: dict[tuple[Any, ...], Structure] = {}
    kept: dict[tuple[str, str], dict[tuple[int, float], dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        place = row["task"], row["structure"], row["index"]
        structure = structures[place] = structures.get(place) or made(study, row)
        key = structure_hash(structure.names)
        own = {"task": row["task"], "structure": key, "kind": KINDS[row["kind"]]}
        own |= {"origin": f"{row['structure']}, {row['index']}", "budget": row["budget"] or 2271}
        own |= {name: row[name] for name in ("n_params", "lr", "seed", "validation", "score")}
        own |= {"best_step": None, "diverged": False, "validation_loss": None, "candidates": list(structure.names)}
        kept.setdefault((row["task"], key), {}).setdefault((row["seed"], row["lr"]), own)
    table = []
    for runs in kept.values():
        seeds = sorted({seed for seed, _ in runs})
        first = next(seed for seed in seeds if all((seed, rate) in runs for rate in rates))
        lr = max(rates, key=lambda rate: (runs[first, rate]["validation"], -rate))
        table += [{**runs[first, rate], "seed": 0} for rate in rates]
        others = [runs[seed, lr] for seed in seeds if seed != first and (seed, lr) in runs]
        table += [{**run, "seed": number} for number, run in enumerate(others, start=1)]
    return pd.DataFrame(table)


def main() -> None:
    torch.set_num_threads(1)
    study = declared()
    rates = list(study.lr["pet"])
    tasks = {name: jobs._open(study, name)[1] for name in study.tasks}
    model, _, space = jobs._open(study, "stsb")
    recipe = {**study.retrain, "dropout": True}
    more = {"recipes": dict(study.recipes), "source": "data/runs/steady, archived rows"}
    solo = HERE / "minilm" / "solo.parquet"
    versions = json.loads((study.folder("stsb", "small", 0) / "config.json").read_text(encoding="utf-8"))["versions"]
    rows = archived(study, rates)
    build.write_bench("minilm", model, space, tasks, rows, recipe, rates, study.objective, versions, **more)
    print(f"solo utilities: {solo.is_file()}")


if __name__ == "__main__":
    main()
