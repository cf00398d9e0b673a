"""Confirm ways of choosing a structure by retraining, on seeds that decided nothing before. Resumable.

    python data/runs/methods.py pocket                      # all tasks and seeds that are not in the table
    python data/runs/methods.py minilm --worker 0 --of 2    # one of two processes that share the work
    python data/runs/methods.py minilm --group utility      # what single candidates gain decides: rows of their own
    python data/runs/methods.py --write                     # add finished rows to data/runs/methods.csv

No dropout. On the pocket the recipe of the bench (250 steps of 8 rows) and one learning rate for everything that is
trained, the one that validation chose most often in the bench. On real tasks (``S3PET_ENCODER``: a folder with MiniLM,
``S3PET_SHARED``: one with ``data/stsb`` and so on) the recipe of the study ``steady``, and for everything the best of
two rates by validation, in races as well. AdaLoRA has the best of three. A race chooses by validation. The test split
is scored once for each row and decides nothing. ``rows_searched`` and ``rows_trained`` are rows passed forward and
backward, of a search in both of its passes, and of all rates.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

import s3pet
from s3pet.studies import probe_inert, proposals, race, solo_utility
from s3pet.studies.adalora import retrain_adalora
from s3pet.studies.population import Member, Population
from s3pet.studies.selectors import (
    covered_structure,
    depth_structure,
    sampled_structure,
    sensitive_structure,
    useful_structure,
)
from s3pet.trainer import Recipe

HERE = Path(__file__).resolve().parent
TABLE = HERE / "methods.csv"
WORK = HERE.parents[1] / "runs" / "methods"
PLACE = ["backbone", "task", "budget", "seed"]
STEADY = {"vector_lr": 10, "evaluations": 4}


class Setting(NamedTuple):
    """Where ways of choosing are compared: every task, budget and seed is a cell."""

    backbone: str
    tasks: dict[str, dict[str, Any]]  # name → options of load_task
    budgets: tuple[str, ...]
    seeds: range
    rates: tuple[float, ...]
    recipes: dict[str, dict[str, Any]]
    objective: dict[str, Any] | None
    searches: tuple[int, ...]  # steps


BRIEF_RECIPE: dict[str, Any] = {"steps": 250, "batch_size": 8, "lr_warmup": 25, "evaluations": 3}
REAL = {"n_train": 2000, "n_validation": 300}
SETTINGS = {
    "pocket": Setting(
        backbone="pocket-t5",
        tasks={f"pocket/{name}": {} for name in ("number", "ending", "sentiment")},
        budgets=("0.1%", "0.05%"),
        seeds=range(10, 16),
        rates=(1e-2,),
        recipes=dict.fromkeys(("number", "ending", "sentiment"), BRIEF_RECIPE),
        objective=None,
        searches=(300, 100),
    ),
    "minilm": Setting(
        backbone=os.environ.get("S3PET_ENCODER", ""),
        tasks={f"{os.environ.get('S3PET_SHARED', '')}/data/{name}": REAL for name in ("stsb", "sst2", "qnli")},
        budgets=("0.01%",),
        seeds=range(20, 23),
        rates=(3e-3, 1e-2),
        recipes={
            "stsb": {"steps": 100, "batch_size": 32, "lr_warmup": 10, **STEADY},
            "sst2": {"steps": 100, "batch_size": 32, "lr_warmup": 10, **STEADY},
            "qnli": {"steps": 300, "batch_size": 16, "lr_warmup": 30, **STEADY},
        },
        objective={"pooling": "mean", "precision": "bfloat16"},
        searches=(300,),
    ),
}
ADALORA_RATES = (3e-3, 1e-2, 3e-2)
GROUPS = {  # rows that are made together → the method by which a cell shows that it has them
    "gates": "search",
    "utility": "measured utility",
    "utility races": "race of rules and 4 by utility",
}


class Cell:
    """One task, budget and seed: searches are made once, and cut at every budget."""

    def __init__(self, where: str, name: str, model: Any, task: Any, space: Any, budget: str, seed: int):
        self.setting, self.name, self.budget, self.seed = SETTINGS[where], name, budget, seed
        self.model, self.task, self.space = model, task, space
        self.recipe = self.setting.recipes[name]
        self.folder = WORK / where

    @cached_property
    def searches(self) -> dict[int, Any]:
        """Steps → search."""
        return {steps: self.searched(steps) for steps in self.setting.searches}

    def searched(self, steps: int) -> Any:
        """A search, from its folder if it is finished."""
        folder = self.folder / f"{self.name}-{self.seed}-{steps}"
        if (folder / "config.json").is_file():
            return s3pet.load_run(folder)
        return s3pet.search(
            *(self.model, self.task, self.space),
            **{"budget": self.setting.budgets[0], "seed": self.seed, "objective": self.setting.objective},
            **{"steps": steps, "out": folder, "progress": False},
        )

    def singles(self) -> Iterator[tuple[str, Any, int]]:
        """Name, structure and rows of the search for it."""
        options = dict[str, Any](objective=self.setting.objective)
        for name, steps in zip(("search", "brief search"), self.searches, strict=False):
            yield name, self.searches[steps].structure(self.budget), self.searches[steps].cost.rows
        yield "even LoRA", depth_structure(self.space, self.budget, "uniform"), 0
        if self.setting.objective is None:
            inert = probe_inert(self.model, self.task, self.space)
            without = depth_structure(self.space.without(inert), self.budget, "uniform")
            yield "even LoRA without inert places", without, 0
            yield "covered", covered_structure(self.space, self.budget, seed=1000 * self.seed), 0
        else:
            yield "five norms", five_norms(self.space), 0
        gradient = sensitive_structure(self.model, self.task, self.space, self.budget, seed=self.seed, **options)
        yield "one-pass gradient", gradient, 0
        yield "random", s3pet.random_structure(self.space, self.budget, seed=1000 * self.seed), 0

    def races(self) -> Iterator[tuple[str, dict[str, Any], int]]:
        """Name, structures and rows of the search before it."""
        first, space, budget, searches = 1000 * self.seed, self.space, self.budget, self.searches
        drawn = {f"random {n}": s3pet.random_structure(space, budget, seed=first + n) for n in range(8)}
        if self.setting.objective is None:
            covered = {f"covered {n}": covered_structure(space, budget, seed=first + n) for n in range(8)}
            yield "race of 8 covered", covered, 0
            yield "race of 16 random and covered", {**covered, **drawn}, 0
            for name, steps, n in (("race of 8 after a search", 300, 8), ("race of 12 after a brief search", 100, 12)):
                yield name, proposals(searches[steps], budget, n, seed=self.seed), searches[steps].cost.rows
            return
        yield "race of rules and 4 random", self.rules | {k: v for k, v in drawn.items() if int(k.split()[1]) < 4}, 0
        gates = {f"sampled {n}": sampled_structure(searches[300], budget, seed=first + n) for n in range(3)}
        yield (
            "race of rules and 4 of a search",
            self.rules | {"cut": searches[300].structure(budget)} | gates,
            searches[300].cost.rows,
        )

    @cached_property
    def utility(self) -> tuple[Any, Any, int]:
        """What single candidates gain in short trainings of this seed, measured on validation: space, table, rows."""
        brief: dict[str, Any] = {"steps": 25, "batch_size": 8, "lr_warmup": 5}
        brief |= {"vector_lr": self.recipe["vector_lr"]} if "vector_lr" in self.recipe else {}
        most = s3pet.Budget.parse(self.budget, total=self.space.backbone_params).n_params
        space = replace(self.space, candidates=tuple(c for c in self.space if c.n_params <= most))
        place = {"out": self.folder / f"{self.name}-{self.budget}-{self.seed}-solo.jsonl", "progress": False}
        options = {"objective": self.setting.objective, **place, **brief}
        utility = solo_utility(self.model, self.task, space, seeds=[self.seed], **options)
        return space, utility, int((~utility["inert"]).sum() + 1) * brief["steps"] * brief["batch_size"]

    def useful(self, seed: int | None = None) -> Any:
        """The structure that single gains choose; with a seed, gains drawn from their errors."""
        return useful_structure(*self.utility[:2], self.budget, seed=seed)

    @property
    def rules(self) -> dict[str, Any]:
        """Structures that need no measurement."""
        even = {"even LoRA": depth_structure(self.space, self.budget, "uniform")}
        return even if self.setting.objective is None else even | {"five norms": five_norms(self.space)}

    def rows(self, group: str) -> Iterator[dict[str, Any]]:
        """Every row of the cell that belongs to a group."""
        if group == "gates":
            yield from self.trained(list(self.singles()))
            yield from self.raced(self.races())
            yield self.adalora()
        elif group == "utility":
            yield from self.trained([(GROUPS[group], self.useful(), self.utility[2])])
        else:
            drawn = {f"drawn {n}": self.useful(1000 * self.seed + n) for n in range(3)}
            yield from self.raced([(GROUPS[group], self.rules | {"useful": self.useful()} | drawn, self.utility[2])])

    def trained(self, singles: list[tuple[str, Any, int]]) -> Iterator[dict[str, Any]]:
        """Structures that are trained at every rate."""
        rates = self.setting.rates
        members = [Member(structure.candidates, lr, self.seed) for _, structure, _ in singles for lr in rates]
        with Population(self.model, self.task, members, Recipe(**self.recipe), self.setting.objective) as population:
            population.train()
            trained = population.rows * len(rates) // len(members)
            groups = [range(k, k + len(rates)) for k in range(0, len(members), len(rates))]
            population.keep([max(group, key=population.best.__getitem__) for group in groups])
            _, scores = population.evaluate(self.task.test, best=True)
            for k, (name, structure, searched) in enumerate(singles):
                yield {
                    **{"method": name, "validation": population.best[k], "score": scores[k]},
                    **{"rows_searched": searched, "rows_trained": trained, "lr": population.members[k].lr},
                    "candidates": " ".join(structure.names),
                }

    def raced(self, races: Iterable[tuple[str, dict[str, Any], int]]) -> Iterator[dict[str, Any]]:
        """The winners of races."""
        options: dict[str, Any] = {"lrs": self.setting.rates, "objective": self.setting.objective, "test": True}
        for name, entries, before in races:
            won = race(self.model, self.task, entries, seed=self.seed, **options, **self.recipe)
            yield {
                **{"method": name, "validation": won.validation, "score": won.test},
                **{"rows_searched": before, "rows_trained": won.rows, "lr": won.lr},
                "candidates": " ".join(won.structure.names),
            }

    def adalora(self) -> dict[str, Any]:
        """The best of its rates."""
        options = {"objective": self.setting.objective, **self.recipe}
        options |= {"evaluations": 5, "vector_lr": 1.0}  # the last two of five are in its budget
        tuned = [
            retrain_adalora(self.model, self.task, self.budget, seed=self.seed, lr=lr, **options)
            for lr in ADALORA_RATES
        ]
        best = max(range(len(tuned)), key=lambda k: tuned[k].metrics["validation"])
        return {
            **{"method": "AdaLoRA", "validation": tuned[best].metrics["validation"]},
            **{"score": tuned[best].metrics["test"], "rows_searched": 0},
            **{"rows_trained": sum(one.cost.rows for one in tuned), "lr": ADALORA_RATES[best], "candidates": ""},
        }


def five_norms(space: Any) -> Any:
    """LNFit on the norms of all FFNs but the first: five of MiniLM's six, the rule of ``steady``."""
    chosen = tuple(c for c in space if c.pet == "lnfit" and c.role == "ffn.norm" and c.layer)
    return s3pet.Structure(chosen, space.model_id)


def run(where: str, worker: int, of: int, group: str) -> None:
    """Train what is missing of a group of rows: every ``of``-th cell of task, budget and seed."""
    setting = SETTINGS[where]
    model, tokenizer = s3pet.load_backbone(setting.backbone)
    space = s3pet.make_space(model, "mixed")
    (WORK / where).mkdir(parents=True, exist_ok=True)
    cells = [(path, budget, seed) for budget in setting.budgets for seed in setting.seeds for path in setting.tasks]
    table = pd.read_csv(TABLE)
    done = {*table[table["method"].eq(GROUPS[group])][PLACE].itertuples(index=False, name=None)}
    missing = [cell for cell in cells if (where, Path(cell[0]).name, *cell[1:]) not in done]
    for source, budget, seed in missing[worker::of]:
        name, start = Path(source).name, time.time()
        path = WORK / where / f"{name}-{budget}-{seed}-{group}.json"
        if not path.is_file():
            task = s3pet.load_task(source, tokenizer, **setting.tasks[source])
            rows = list(Cell(where, name, model, task, space, budget, seed).rows(group))
            place = dict(zip(PLACE, (where, name, budget, seed), strict=True))
            path.write_text(json.dumps([{**place, **row} for row in rows]), encoding="utf-8")
            scores = ", ".join(f"{row['method']} {row['score']:.3f}" for row in rows)
            seconds = f"{time.time() - start:.0f} s"
            print(f"{time.strftime('%H:%M:%S')} {name} {budget} {seed} ({seconds}): {scores}", flush=True)


def write() -> None:
    """Add finished rows to the table."""
    rows = [pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(WORK.glob("*/*.json"))]
    table = pd.concat([pd.read_csv(TABLE), *rows], ignore_index=True)
    table.drop_duplicates([*PLACE, "method"]).to_csv(TABLE, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("where", choices=SETTINGS, nargs="?", default="pocket")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--group", choices=GROUPS, default="gates")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        write()
    else:
        run(options.where, options.worker, options.of, options.group)


if __name__ == "__main__":
    main()
