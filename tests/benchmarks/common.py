"""Shared by the benchmarks: one search per seed, retrainings in one table, results as files. Finished runs are kept."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import s3pet
from s3pet.result import SearchResult
from s3pet.searcher import PRESETS
from s3pet.studies.statistics import summary

RESULTS = Path(__file__).resolve().parent / "results"
MANUAL = ("bitfit", "lnfit", "lora_qv", "lora_all", "lowrank_adapter")


def shared_folder() -> Path:
    """Return the folder with real data: S3PET_SHARED, or ``shared`` beside the repository."""
    return Path(os.environ.get("S3PET_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def read_arguments(description: str | None, tasks: Sequence[str], name: str) -> argparse.Namespace:
    """Read the command line of a benchmark, and set the number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=tasks)
    parser.add_argument("--settings", choices=tuple(PRESETS), default="default", help="of the searches")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks") / name)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def run_searches(model, task, space, budget, seeds, folder: Path, **settings: Any) -> list[SearchResult]:
    """Run one search per seed; a finished one is opened, an interrupted one is continued."""
    results = []
    for seed in seeds:
        out = folder / f"seed{seed}"
        if (out / "config.json").is_file():
            results.append(s3pet.load_run(out))
        else:
            results.append(
                s3pet.search(model, task, space, budget=budget, seed=seed, out=out, progress=False, **settings)
            )
        structure = results[-1].structure()
        print(f"{task.name} {budget} seed {seed}: {structure} {structure.names[:8]}", flush=True)
    return results


def searched_and_random(
    model, task, space, budgets: Mapping[str, str], seeds, folder: Path, **settings: Any
) -> dict[str, Any]:
    """Structures of one search per seed, and five random ones, of each budget (its name in tables as the value)."""
    structures = {}
    for budget, label in budgets.items():
        runs = run_searches(model, task, space, budget, seeds, folder / budget.strip("%"), **settings)
        structures[f"searched {label}"] = [run.structure() for run in runs]
        structures[f"random {label}"] = [s3pet.random_structure(space, budget, seed=seed) for seed in range(5)]
    return structures


def retrain_all(model, task, structures, out: Path, seeds, lrs=(None,), **recipe: Any) -> pd.DataFrame:
    """Retrain every structure at every learning rate; keep, per structure, the rate that is best on validation."""
    tables = []
    for lr in lrs:
        table = s3pet.compare(model, task, structures, seeds=seeds, out=out, progress=False, lr=lr, **recipe)
        tables.append(table.assign(lr=lr))
        print(summary(table).to_string(index=False), flush=True)
    rows = pd.concat(tables)
    if len(lrs) == 1:
        return rows
    scores = rows.groupby(["structure", "lr"]).validation.mean().reset_index()
    best = scores.loc[scores.groupby("structure").validation.idxmax(), ["structure", "lr"]]
    return rows.merge(best)


def write_results(name: str, table: pd.DataFrame, **settings: Any) -> None:
    """Write the rows as CSV, and their summary with the settings and the machine as JSON."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS / f"{name}.csv", index=False)
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__}
    record = {"made": time.strftime("%Y-%m-%d"), "machine": machine, **settings}
    record["summary"] = json.loads(summary(table).to_json(orient="records"))
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(summary(table).to_string(index=False))
