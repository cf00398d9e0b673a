"""Make the bench ``minilm``: real tasks on a real encoder. Most rows are archived ones. Resumable.

    export S3PET_ENCODER=… S3PET_SHARED=…           # folders: MiniLM, and one with data/stsb and so on
    python data/bench/minilm.py solo                 # train single candidates alone: runs/bench/minilm/solo-*.jsonl
    python data/bench/minilm.py train [1/2]          # train more random structures and rules: rows-*.jsonl there,
                                                     # with 1/2 every second one of them
    python data/bench/minilm.py                      # write the tables from archived and finished rows

The archived rows are those of ``data/runs/steady`` and ``data/runs/budgets``, of one recipe: made by an earlier
version of the library, with dropout in the backbone. The structures are made again from what was declared there; each
must have exactly the parameters that its row says, and a searched one the candidates that were saved with its search.
The rates are those that both have; a fourth one of ``steady``, 3e-2, was best on validation for 2 structures of 112.

What is trained here is random structures and rules, at the recipe of the archived rows, dropout included, as
populations (which are single trainings up to the noise of dropout). Single candidates are those that fit 0.04 %, with
the backbone in bfloat16, 100 steps of 8 rows at 1e-2 (QNLI with its 300 would cost three times as much).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import build
import pandas as pd
import torch
import yaml

import s3pet
from s3pet.files.writing import write_table
from s3pet.structure import Structure
from s3pet.studies import Study, jobs
from s3pet.studies.bench_files import structure_hash
from s3pet.studies.interventions import solo_utility
from s3pet.studies.population import Member, Population
from s3pet.studies.selectors import depth_structure
from s3pet.trainer import Recipe

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs"
WORK = HERE.parents[1] / "runs" / "bench" / "minilm"
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


def more_structures(space: Any) -> dict[str, tuple[Structure, str, str]]:
    """Structures that the archive does not have: name → structure, kind, budget."""
    more = {}
    for number in range(10):
        for budget in ("0.01%", "0.04%"):
            structure = s3pet.random_structure(space, budget, seed=5000 + number)
            more[f"random {budget} seed {5000 + number}"] = structure, "random", budget
    for pet in ("lora", "lnfit", "bitfit", "lowrank_adapter"):
        part = replace(space, candidates=tuple(c for c in space if c.pet == pet))
        for budget, where in (("0.01%", "uniform"), ("0.04%", "uniform"), ("0.01%", "top"), ("0.04%", "top")):
            if min(c.n_params for c in part) <= s3pet.Budget.parse(budget, total=space.backbone_params).n_params:
                more[f"{pet} {where} {budget}"] = depth_structure(part, budget, where), "even", budget
    return more


def train(study: Study, part: str = "1/1") -> None:
    """Train the structures of :func:`more_structures` at every rate, STS-B first."""
    WORK.mkdir(parents=True, exist_ok=True)
    number, parts = map(int, part.split("/"))
    path = WORK / f"rows-{number}.jsonl"
    done = {(row["task"], row["structure"]) for row in [*kept(), *trained()]}
    for name in ("stsb", "sst2"):
        model, task, space = jobs._open(study, name)
        recipe = Recipe(**{**study.recipe(name), "dropout": True})
        mine = list(more_structures(space).items())[number - 1 :: parts]
        for origin, (structure, kind, budget) in mine:
            key, start = structure_hash(structure.names), time.time()
            if (name, key) in done:
                continue
            done.add((name, key))
            members = [Member(structure.candidates, rate, 0) for rate in RATES]
            with Population(model, task, members, recipe, study.objective) as population:
                population.train()
                _, scores = population.evaluate(task.test, best=True)
            own = {"task": name, "structure": key, "kind": kind, "origin": origin, "seed": 0}
            own |= {"budget": s3pet.Budget.parse(budget, total=space.backbone_params).n_params}
            own |= {"n_params": structure.n_params, "candidates": list(structure.names)}
            with path.open("a", encoding="utf-8") as file:
                for k, rate in enumerate(RATES):
                    steps, _, losses = zip(*population.curves[k], strict=True)
                    best = population.best_step[k]
                    row = {"lr": rate, "best_step": best, "diverged": best == 0, "validation_loss": None}
                    if best:
                        row |= {"validation": population.best[k], "score": scores[k]}
                        row |= {"validation_loss": losses[steps.index(best)]}
                    file.write(json.dumps({**own, "validation": None, "score": None, **row}) + "\n")
            print(
                f"{time.strftime('%H:%M:%S')} {name} {origin}: {max(scores):.3f} ({time.time() - start:.0f} s)",
                flush=True,
            )


def solo(study: Study, write: bool = False) -> pd.DataFrame:
    """Train single candidates alone, and give their utilities; to be written, only those that are finished."""
    WORK.mkdir(parents=True, exist_ok=True)
    tables = []
    for name in ("stsb", "sst2", "qnli"):
        path = WORK / f"solo-{name}.jsonl"
        if write and not path.is_file():
            continue
        model, task, space = jobs._open(study, name)
        most = s3pet.Budget.parse("0.04%", total=space.backbone_params).n_params
        space = replace(space, candidates=tuple(c for c in space if c.n_params <= most))
        if write and len(finished(path)) < len(space) + 1:
            continue
        how = dict(study.objective, precision="bfloat16")
        table = solo_utility(model, task, space, inert=[], objective=how, out=path, progress=False)
        tables.append(table.assign(task=name))
        print(f"{time.strftime('%H:%M:%S')} solo {name}", flush=True)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def kept() -> list[dict[str, Any]]:
    """The rows that the bench has."""
    rows, structures = (pd.read_parquet(HERE / "minilm" / f"{name}.parquet") for name in ("rows", "structures"))
    structures = structures.assign(candidates=structures["candidates"].map(list))[["structure", "candidates"]]
    return rows.merge(structures, on="structure").to_dict("records")


def trained() -> list[dict[str, Any]]:
    """The rows that :func:`train` has written."""
    return [row for path in sorted(WORK.glob("rows-*.jsonl")) for row in finished(path)]


def finished(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, if it is there."""
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.is_file() else []


def main() -> None:
    torch.set_num_threads(1)
    studies = [declared(source) for source in SOURCES]
    study = studies[0]
    if sys.argv[1:]:
        {"solo": solo, "train": train}[sys.argv[1]](study, *sys.argv[2:])
        return
    tasks = {name: jobs._open(study, name)[1] for name in study.tasks}
    model, _ = s3pet.load_backbone(os.environ["S3PET_ENCODER"])  # by the name that a user's structures have
    space = s3pet.make_space(model, "mixed")
    recipe = {**study.retrain, "dropout": True}
    source = "archived rows of data/runs: steady, budgets; and rows of minilm.py train"
    more = {"recipes": dict(study.recipes), "source": source}
    if len(utilities := solo(study, write=True)):
        write_table(utilities, HERE / "minilm" / "solo.parquet")
    versions = json.loads((study.folder("stsb", "small", 0) / "config.json").read_text(encoding="utf-8"))["versions"]
    rows = pd.concat([archived(studies), pd.DataFrame([*kept(), *trained()])], ignore_index=True)
    rows = rows.drop_duplicates(["task", "structure", "lr", "seed"], ignore_index=True)
    build.write_bench("minilm", model, space, tasks, rows, recipe, RATES, study.objective, versions, **more)


if __name__ == "__main__":
    main()
