"""Is the embedded backbone one that few parameters can adapt, and does the search beat random structures on it?

    python tests/benchmarks/pocket.py sentiment tense ...     # default: every pocket task; resumable

Per task: zero-shot, full fine-tuning and all candidates (one retraining per seed), the manual structures, five random
structures of each budget, and one search per seed at each budget. Recipe, the same for every structure: 300 steps of
16, AdamW, linear decay, best of five validations; lr 3e-3 for PET modules, 5e-4 for full fine-tuning.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from common import MANUAL, rows, searched, write

import s3pet

RECIPE = {"steps": 300, "batch_size": 16, "evaluations": 5}
BUDGETS = {"0.05%": "0.05 %", "0.2%": "0.2 %"}


def main() -> None:
    """Command line."""
    names = [name.removeprefix("pocket/") for name in s3pet.list_tasks() if name.startswith("pocket/")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=names)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/pocket"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space = s3pet.make_space(model, "mixed")
    for name in arguments.tasks:
        task = s3pet.load_task(f"pocket/{name}", tokenizer)
        folder, seeds = arguments.out / name, range(arguments.seeds)
        structures: dict = {}
        for budget, label in BUDGETS.items():
            runs = searched(model, task, space, budget, seeds, folder / budget.strip("%"), steps=200, batch_size=16)
            structures[f"searched {label}"] = [run.structure() for run in runs]
            structures[f"random {label}"] = [s3pet.random_structure(space, budget, seed=seed) for seed in range(5)]
        chosen = rows(model, task, structures, folder / "rows.jsonl", (0,), **RECIPE)
        manual: dict = {kind: s3pet.manual_structure(space, kind) for kind in MANUAL}
        manual["zero-shot"] = "zero-shot"
        fixed = rows(model, task, manual, folder / "rows.jsonl", (0,), **RECIPE)
        ceiling = {"all": s3pet.manual_structure(space, "all"), "full": "full"}
        upper = rows(model, task, ceiling, folder / "rows.jsonl", seeds, **RECIPE)
        table = pd.concat([chosen, fixed, upper])
        write(f"pocket_{name}", table, {"recipe": RECIPE, "search": {"steps": 200, "batch_size": 16}})


if __name__ == "__main__":
    main()
