"""The demonstration of ``python -m s3pet demo``: structures of one search beside controls, and what was found in words.

The controls need no search: LoRA spread evenly over the depth, random structures with a LoRA in every encoder layer,
and random ones. All are trained by the recipe of the bench ``pocket``, three times each, with new random structures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from s3pet.result import SearchResult
from s3pet.space import Space
from s3pet.structure import random_structure
from s3pet.studies import comparison, statistics
from s3pet.studies.bench import Bench
from s3pet.studies.selectors import covered_structure, depth_structure
from s3pet.tasks import Task
from s3pet.utility import faithfulness

BUDGETS = ("0.02%", "0.05%", "0.1%")
RUNS = 3
RECIPE: dict[str, Any] = {"steps": 250, "batch_size": 8, "lr": 1e-2, "lr_warmup": 25, "evaluations": 3}
CONTROLS = ("covered", "even LoRA", "random")


def compare_budgets(model: nn.Module, task: Task, space: Space, result: SearchResult, out: Path) -> pd.DataFrame:
    """Retrain the structures of a search and the controls at every budget; the table of :func:`s3pet.studies.compare`.

    Args:
        model, task, space, result: of the search. out: JSON-lines file; rows that are in it are not computed again.
    """
    tables = []
    for seed in range(RUNS):
        structures: dict[str, Any] = {}
        for budget in BUDGETS:
            structures[f"searched {budget}"] = result.structure(budget)
            structures[f"even LoRA {budget}"] = depth_structure(space, budget, "uniform")
            structures[f"covered {budget}"] = covered_structure(space, budget, seed=seed)
            structures[f"random {budget}"] = random_structure(space, budget, seed=seed)
        how: dict[str, Any] = {"seeds": (seed,), "out": out, "together": len(structures), **RECIPE}
        tables.append(comparison.compare(model, task, structures, **how))
    return pd.concat(tables, ignore_index=True)


def measured_utility(task: Task) -> pd.DataFrame | None:
    """What each module gains when it is trained alone, as the bench ``pocket`` has it; None for tasks it lacks."""
    bench = Bench.load("pocket")
    names = [name for name, about in bench.tasks.items() if about["fingerprint"] == task.fingerprint]
    return bench.solo[bench.solo["task"].isin(names)] if names and bench.solo is not None else None


def findings(result: SearchResult, table: pd.DataFrame, utility: pd.DataFrame | None) -> str:
    """What a search and its comparison show, and how sure that is, in a few sentences."""
    lines = []
    if utility is not None:
        row = faithfulness(result, utility).iloc[0]  # of all modules
        bounds = f"1 would be the same order, {row['spearman_chance_high']:.2f} is what chance rarely passes"
        lines.append(f"Gates beside what modules gain alone: rank correlation {row['spearman']:.2f} ({bounds}).")
    for budget in BUDGETS:
        names = [f"{name} {budget}" for name in ("searched", *CONTROLS)]
        runs = table[table["structure"].isin(names)]
        scores = {str(row["structure"]): row for row in statistics.summary(runs, baseline=names[0]).to_dict("records")}
        parts = ", ".join(f"{name.removesuffix(f' {budget}')} {scores[name]['score']:.3f}" for name in names)
        best = max(names[1:], key=lambda name: scores[name]["score"])
        gap, low, high = (-scores[best][f"difference{end}"] for end in ("", "_high", "_low"))
        sure = "which is more than these runs differ by" if low * high > 0 else "so these runs cannot tell them apart"
        lines.append(
            f"{budget} ({scores[names[0]]['n_params']:,.0f} parameters): {parts}. Searched − "
            f"{best.removesuffix(f' {budget}')}: {gap:+.3f} (95 % from {low:+.3f} to {high:+.3f}), {sure}."
        )
    lines.append(
        f"This is one search (another seed may choose otherwise) and {RUNS} trainings of each on a teaching task; "
        "data/runs/RESULTS.md has many."
    )
    return "\n".join(f"- {line}" for line in lines)
