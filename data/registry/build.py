"""The registry that comes with s3pet, made from the rows of the pocket bench.

    python data/registry/build.py            # write data/registry

For each task and budget of the bench, the structure with the best mean *validation* score among those that were
retrained three times or more, each at the learning rate that validation chose. Test scores decide nothing; the entry
has their mean and standard error over the retrainings. The pocket is a teaching model on generated tasks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from s3pet.export.registry import INDEX, add
from s3pet.studies import Bench

HERE = Path(__file__).resolve().parent
LEAST = 3  # retrainings


def build(folder: Path) -> None:
    """Write the registry to a folder."""
    (folder / INDEX).unlink(missing_ok=True)
    bench = Bench.load("pocket")
    runs = bench.choose().groupby(["task", "budget", "structure"])
    table = runs.agg(validation=("validation", "mean"), retrainings=("seed", "size"), kind=("kind", "first"))
    table = table[table["retrainings"] >= LEAST].reset_index()
    best = table.loc[table.groupby(["task", "budget"])["validation"].idxmax()]
    for task, budget, key, kind in best[["task", "budget", "structure", "kind"]].itertuples(index=False):
        record, structure = bench.lookup(key, task), bench.structure(key)
        origin = {"kind": kind, "task": f"pocket/{task}", "bench": bench.name, "structure": key}
        entry = {
            **{"name": f"{task}-{budget}", "model": bench.space.model_id, "model_hash": bench.config["model_hash"]},
            **{"backbone_params": bench.space.backbone_params, "task": f"pocket/{task}", "method": kind},
            **{"task_hash": bench.tasks[task]["fingerprint"], "metric": bench.tasks[task]["metric"]},
            **{"score": round(record.score, 6), "error": round(record.error, 6), "retrainings": record.retrainings},
            **{"validation": round(record.validation, 6), "lr": record.lr, "steps": bench.recipe["steps"]},
            **{"batch_size": bench.recipe["batch_size"], "s3pet": bench.config["versions"]["s3pet"], "date": None},
        }
        add(replace(structure, budget=int(budget), origin=origin), entry, folder, overwrite=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
