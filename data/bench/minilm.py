"""Make the bench ``minilm`` from archived rows: real tasks on a real encoder. Nothing is trained here.

    S3PET_ENCODER=… S3PET_SHARED=… python data/bench/minilm.py

The rows are those of ``data/runs/steady`` and ``data/runs/budgets``, of one recipe: made by an earlier version of
the library, with dropout in the backbone. The structures are made again from what was declared there; each must have
exactly the parameters that its row says, and a searched one the candidates that were saved with its search. The rates
are those that both have; a fourth one of ``steady``, 3e-2, was best on validation for 2 structures of 112.
"""

from __future__ import annotations

import json
from dataclasses import replace
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
RUNS = HERE.parent / "runs"
SOURCES = ("steady", "budgets")
RATES = [1e-3, 3e-3, 1e-2]
KINDS = {"random": "random", "heuristic": "even", "rules": "even", "searched": "searched"}
KINDS |= {"sensitivity": "gradient", "transfer": "transferred", "average": "averaged", "manual": "manual"}


def declared(source: str) -> Study:
    """The study as today's library declares it."""
    facts = yaml.safe_load((RUNS / source / "declared.yaml").read_text(encoding="utf-8"))
    old = {"pooling", "precision"}  # what is a part of the objective now
    objective = {"pooling": facts["retrain"]["pooling"]}
    for name in ("retrain", "search"):
        facts[name] = {key: value for key, value in facts[name].items() if key not in old}
    return Study(**facts, objective=objective, path=RUNS / source)


def made(study: Study, row: dict[str, Any]) -> Structure:
    """The structure of a row, checked against what is known of it."""
    if (
        study.path.name == "budgets" and study.structures[row["entry"]].get("search") == "warm"
    ):  # these searches are those of another study
        study = replace(study, path=RUNS / "pooling")
    model, task, space = jobs._open(study, row["task"])
    structure = jobs._make_structure(study, row, model, task, space)
    saved = study.folder(row["task"], "small", row["index"]) / "structure.json"
    same = row["entry"] != "searched" or row["budget"] != 2271 or structure.names == Structure.from_json(saved).names
    if not same or structure.n_params != row["n_params"]:
        raise SystemExit(f"{row['structure']} {row['index']} on {row['task']} is not the structure that was trained")
    return structure


def archived(studies: list[Study]) -> pd.DataFrame:
    """The rows in the form of a bench's.

    The first seed of a structure is trained at every rate and becomes seed 0. Others, its repeats and the same
    structure from elsewhere, become seeds 1, 2, … and are kept at the rate that validation chose for seed 0.
    """
    kept: dict[tuple[str, str], dict[tuple[int, float], dict[str, Any]]] = {}
    for study in studies:
        files = [study.path / f"{name}.parquet" for name in ("every_rate", "rows")]
        rows = pd.concat([pd.read_parquet(file) for file in files])
        rows = rows[rows["kind"].isin([*KINDS]) & rows["lr"].isin(RATES)].astype({"source": object, "budget": object})
        rows = rows.where(rows.notna(), None).drop_duplicates(["task", "structure", "index", "seed", "lr"])
        structures: dict[tuple[Any, ...], Structure] = {}
        for row in rows.to_dict("records"):
            place = row["task"], row["structure"], row["index"]
            structure = structures[place] = structures.get(place) or made(study, row)
            key = structure_hash(structure.names)
            own = {"task": row["task"], "structure": key, "kind": KINDS[row["kind"]]}
            own |= {"origin": f"{row['structure']}, {row['index']}"}
            own |= {"budget": row["budget"] or (2271 if row["kind"] == "rules" else row["n_params"])}
            own |= {name: row[name] for name in ("n_params", "lr", "seed", "validation", "score")}
            own |= {"best_step": None, "diverged": False, "validation_loss": None, "candidates": list(structure.names)}
            kept.setdefault((row["task"], key), {}).setdefault((row["seed"], row["lr"]), own)
    table = []
    for runs in kept.values():
        seeds = sorted({seed for seed, _ in runs})
        first = next((seed for seed in seeds if all((seed, rate) in runs for rate in RATES)), None)
        if first is None:  # lora_all and others that were not trained at every rate
            continue
        lr = max(RATES, key=lambda rate: (runs[first, rate]["validation"], -rate))
        table += [{**runs[first, rate], "seed": 0} for rate in RATES]
        others = [runs[seed, lr] for seed in seeds if seed != first and (seed, lr) in runs]
        table += [{**run, "seed": number} for number, run in enumerate(others, start=1)]
    return pd.DataFrame(table)


def main() -> None:
    torch.set_num_threads(1)
    studies = [declared(source) for source in SOURCES]
    study = studies[0]
    tasks = {name: jobs._open(study, name)[1] for name in study.tasks}
    model, _, space = jobs._open(study, "stsb")
    recipe = {**study.retrain, "dropout": True}
    more = {"recipes": dict(study.recipes), "source": "archived rows of data/runs: steady, budgets"}
    solo = HERE / "minilm" / "solo.parquet"
    versions = json.loads((study.folder("stsb", "small", 0) / "config.json").read_text(encoding="utf-8"))["versions"]
    rows = archived(studies)
    build.write_bench("minilm", model, space, tasks, rows, recipe, RATES, study.objective, versions, **more)
    print(f"solo utilities: {solo.is_file()}")


if __name__ == "__main__":
    main()
