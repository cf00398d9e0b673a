"""Can few parameters adapt the embedded backbone, and do searched structures beat random ones on it?

    python tests/benchmarks/pocket.py sentiment number ...     # default: every pocket task

An interrupted run continues where it was. Per task: zero-shot, full fine-tuning and all candidates (one retraining per
seed), the manual structures, five random structures of each budget, and one search per seed and budget. Every
structure gets the same recipe: 300 steps of 16, AdamW, linear decay, best of five validations; lr 3e-3 for PET modules,
5e-4 for full fine-tuning.
"""

from __future__ import annotations

import pandas as pd
from common import MANUAL, read_arguments, retrain_all, searched_and_random, write_results

import s3pet
from s3pet.tasks import list_tasks

RECIPE = {"steps": 300, "batch_size": 16, "evaluations": 5}
SEARCH = {"steps": 200, "batch_size": 16}
BUDGETS = {"0.05%": "0.05 %", "0.2%": "0.2 %"}


def main() -> None:
    """Command line."""
    names = [name.removeprefix("pocket/") for name in list_tasks() if name.startswith("pocket/")]
    arguments = read_arguments(__doc__, names, "pocket")
    search = {"settings": arguments.settings, **SEARCH}
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space = s3pet.make_space(model, "mixed")
    for name in arguments.tasks:
        task = s3pet.load_task(f"pocket/{name}", tokenizer)
        folder, seeds = arguments.out / arguments.settings / name, range(arguments.seeds)
        rows = folder / "rows.jsonl"
        structures = searched_and_random(model, task, space, BUDGETS, seeds, folder, **search)
        structures |= {kind: s3pet.manual_structure(space, kind) for kind in MANUAL}
        structures["zero-shot"] = "zero-shot"
        upper = {"all": s3pet.manual_structure(space, "all"), "full": "full"}
        once = retrain_all(model, task, structures, rows, (0,), **RECIPE)
        repeated = retrain_all(model, task, upper, rows, seeds, **RECIPE)
        write_results(f"pocket_{name}", pd.concat([once, repeated]), recipe=RECIPE, search=search)


if __name__ == "__main__":
    main()
