"""Which gates should the search train with? Settings against each other on pocket tasks, judged on validation only.

    python tests/benchmarks/sampling.py                       # resumable

For every setting, task and seed: one search at 0.2 % of the backbone, its structure retrained at 0.2 % and, cut from
the same search, at 0.05 %; the validation score of both, the gap between the sampled supernet's cost and the budget,
and how far the gates separated. Random structures of the same cost stand beside them. The test split is never scored.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import RESULTS

import s3pet

RECIPE = {"steps": 200, "batch_size": 16, "evaluations": 5}
SETTINGS: dict[str, dict[str, Any]] = {
    "concrete τ=1": {},
    "concrete τ=0.3": {"sample_temperature": 0.3},
    "hard": {"sampling": "hard"},
    "mean": {"sampling": "mean"},
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["number", "ending"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/sampling"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space = s3pet.make_space(model, "mixed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.tasks:
        task = s3pet.load_task(f"pocket/{name}", tokenizer)
        for seed in range(arguments.seeds):
            for setting, options in {**SETTINGS, "random": None}.items():
                path = arguments.out / f"{name}-{seed}-{setting.replace(' ', '_')}.json"
                if not path.is_file():
                    path.write_text(json.dumps(_row(model, task, space, seed, setting, options)))
                rows.append(json.loads(path.read_text()))
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    RESULTS.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS / "sampling.csv", index=False)
    columns = ["validation 0.2%", "validation 0.05%", "sampling_gap", "max_prob"]
    print(table.groupby("setting", sort=False)[columns].mean().round(3).to_string())


def _row(model: Any, task: Any, space: Any, seed: int, setting: str, options: dict | None) -> dict[str, Any]:
    row: dict[str, Any] = {"task": task.name, "seed": seed, "setting": setting, "sampling_gap": None, "max_prob": None}
    if options is None:
        structures = {budget: s3pet.random_structure(space, budget, seed=seed) for budget in ("0.2%", "0.05%")}
    else:
        result = s3pet.search(
            model, task, space, budget="0.2%", steps=200, batch_size=16, seed=seed, progress=False, **options
        )
        structures = {budget: result.structure(budget) for budget in ("0.2%", "0.05%")}
        row |= {key: result.metrics[key] for key in ("sampling_gap", "max_prob")}
    for budget, structure in structures.items():
        tuned = s3pet.retrain(model, task, structure, seed=seed, **RECIPE)
        row[f"validation {budget}"] = tuned.metrics["validation"]
    return row


if __name__ == "__main__":
    main()
