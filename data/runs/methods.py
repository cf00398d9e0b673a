"""Confirm ways of choosing a structure by retraining, on seeds that decided nothing before. Resumable.

    python data/runs/methods.py                      # all tasks and seeds
    python data/runs/methods.py --worker 0 --of 2    # one of two processes that share the work
    python data/runs/methods.py --write              # collect finished rows into data/runs/methods.csv

Pocket tasks, no dropout, the recipe of the bench (250 steps of 8 rows), one learning rate for everything that is
trained, the one that validation chose most often in the bench; AdaLoRA has the best of three by validation. A race
chooses by validation. The test split is scored once for each row and decides nothing. ``rows_searched`` and
``rows_trained`` are rows passed forward and backward, of a search in both of its passes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import s3pet
from s3pet.studies import probe_inert, proposals, race
from s3pet.studies.adalora import retrain_adalora
from s3pet.studies.population import Member, Population
from s3pet.studies.selectors import covered_structure, depth_structure, sensitive_structure
from s3pet.trainer import Recipe

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "runs" / "methods"
TASKS, BUDGETS, SEEDS = ("number", "ending", "sentiment"), ("0.1%", "0.05%"), range(10, 14)
RATE, RATES = 1e-2, (3e-3, 1e-2, 3e-2)
RECIPE: dict[str, Any] = {"steps": 250, "batch_size": 8, "lr_warmup": 25, "evaluations": 3}
SEARCH = 300  # steps of the default search
BRIEF = 100


def rows(model: Any, task: Any, space: Any, budget: str, seed: int) -> Iterator[dict[str, Any]]:
    """Every row of a task, budget and seed; searches are made once, and cut at both budgets."""
    name = task.name.rpartition("/")[2]
    searches = {
        steps: finished_search(model, task, space, WORK / f"{name}-{seed}-{steps}", steps, seed)
        for steps in (SEARCH, BRIEF)
    }
    inert = probe_inert(model, task, space)
    singles = {
        "search": searches[SEARCH].structure(budget),
        "brief search": searches[BRIEF].structure(budget),
        "even LoRA": depth_structure(space, budget, "uniform"),
        "even LoRA without inert places": depth_structure(space.without(inert), budget, "uniform"),
        "one-pass gradient": sensitive_structure(model, task, space, budget, seed=seed),
        "random": s3pet.random_structure(space, budget, seed=1000 * seed),
        "covered": covered_structure(space, budget, seed=1000 * seed),
    }
    of_search = {name: searches[SEARCH].cost.rows if name == "search" else 0 for name in singles}
    of_search["brief search"] = searches[BRIEF].cost.rows
    members = [Member(structure.candidates, RATE, seed) for structure in singles.values()]
    with Population(model, task, members, Recipe(**RECIPE)) as population:
        population.train()
        _, scores = population.evaluate(task.test, best=True)
        trained = population.rows // len(members)
        for k, (name, structure) in enumerate(singles.items()):
            yield {
                **{"budget": budget, "method": name, "validation": population.best[k], "score": scores[k]},
                **{"rows_searched": of_search[name], "rows_trained": trained, "lr": RATE},
                "candidates": " ".join(structure.names),
            }
    for name, entries, before in races(space, budget, searches, seed):
        won = race(model, task, entries, lrs=(RATE,), seed=seed, test=True, **RECIPE)
        yield {
            **{"budget": budget, "method": name, "validation": won.validation, "score": won.test},
            **{"rows_searched": before, "rows_trained": won.rows, "lr": RATE},
            "candidates": " ".join(won.structure.names),
        }
    tuned = [retrain_adalora(model, task, budget, seed=seed, lr=lr, **RECIPE | {"evaluations": 5}) for lr in RATES]
    best = max(tuned, key=lambda one: one.metrics["validation"])
    yield {
        **{"budget": budget, "method": "AdaLoRA", "validation": best.metrics["validation"]},
        **{"score": best.metrics["test"], "rows_searched": 0, "rows_trained": sum(one.cost.rows for one in tuned)},
        **{"lr": RATES[tuned.index(best)], "candidates": ""},
    }


def finished_search(model: Any, task: Any, space: Any, folder: Path, steps: int, seed: int) -> Any:
    """A search, from its folder if it is finished."""
    if (folder / "config.json").is_file():
        return s3pet.load_run(folder)
    return s3pet.search(model, task, space, budget=BUDGETS[0], seed=seed, steps=steps, out=folder, progress=False)


def races(space: Any, budget: str, searches: dict[int, Any], seed: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, structures and rows of the search before it."""
    first = 1000 * seed
    covered = {f"covered {n}": covered_structure(space, budget, seed=first + n) for n in range(8)}
    drawn = {f"random {n}": s3pet.random_structure(space, budget, seed=first + n) for n in range(8)}
    yield "race of 8 covered", covered, 0
    yield "race of 16 random and covered", {**covered, **drawn}, 0
    for name, steps, n in (("race of 8 after a search", SEARCH, 8), ("race of 12 after a brief search", BRIEF, 12)):
        yield name, proposals(searches[steps], budget, n, seed=seed), searches[steps].cost.rows


def run(worker: int, of: int) -> None:
    """Train what is missing: every ``of``-th cell of task, budget and seed."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space = s3pet.make_space(model, "mixed")
    WORK.mkdir(parents=True, exist_ok=True)
    cells = [(task, budget, seed) for budget in BUDGETS for seed in SEEDS for task in TASKS]
    for name, budget, seed in cells[worker::of]:
        path, start = WORK / f"{name}-{budget}-{seed}.json", time.time()
        if not path.is_file():
            done = list(rows(model, s3pet.load_task(f"pocket/{name}", tokenizer), space, budget, seed))
            path.write_text(json.dumps([{"task": name, "seed": seed, **row} for row in done]), encoding="utf-8")
            what = ", ".join(f"{row['method']} {row['score']:.3f}" for row in done)
            print(
                f"{time.strftime('%H:%M:%S')} {name} {budget} {seed} ({time.time() - start:.0f} s): {what}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        done = [row for path in sorted(WORK.glob("*.json")) for row in json.loads(path.read_text(encoding="utf-8"))]
        pd.DataFrame(done).to_csv(HERE / "methods.csv", index=False)
    else:
        run(options.worker, options.of)


if __name__ == "__main__":
    main()
