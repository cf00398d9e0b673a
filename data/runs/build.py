"""Make the saved runs that notebooks and figures read: searches, and what their structures score when retrained.

    python data/runs/build.py                       # everything, about two hours on two cores; resumable row by row
    python data/runs/build.py transfer --threads 1  # one stage (and the searches it needs)

Stages, all on the embedded backbones and tasks (a teaching lab, not evidence):

    searches  five searches of every task at 0.2 % of the backbone
    budgets   one search cut at seven budgets, against a search per budget, random and manual structures, fine-tuning
    transfer  structures of every task on every task, of the average of the other tasks' gates, and random ones
    sizes     gates of one backbone carried to another of other depth and width, against its own search and random ones

Every structure of a stage gets the same recipe (``RECIPE``). Scores are accuracy on the test split; nothing was chosen
by them. Finished rows are kept in ``runs/data`` until their table is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import s3pet
from s3pet.files.writing import write_json
from s3pet.records import versions
from s3pet.result import SearchResult
from s3pet.tasks import Task

HERE = Path(__file__).resolve().parent
ROWS = HERE.parents[1] / "runs" / "data"
TASKS = ("sentiment", "certainty", "number", "ending")
SEARCH = {"settings": "paper", "steps": 200, "batch_size": 16}
RECIPE = {"steps": 300, "batch_size": 16, "evaluations": 5, "dropout": True}
CUTS = ("0.01%", "0.02%", "0.05%", "0.1%", "0.2%", "0.5%", "1%")  # the first buys a single module
MANUAL = ("bitfit", "lnfit", "lora_qv", "lora_all", "lowrank_adapter", "all")


class Lab:
    """One backbone and its tasks, opened when first asked for."""

    def __init__(self, name: str):
        self.name = name
        self.model, self.tokenizer = s3pet.load_backbone(name)
        self.space = s3pet.make_space(self.model, "mixed")

    def task(self, name: str) -> Task:
        """A pocket task."""
        return s3pet.load_task(f"pocket/{name}", self.tokenizer)

    def searches(self, task: str, budget: str, seeds: int) -> list[SearchResult]:
        """One search per seed; finished ones are opened, unfinished ones continued."""
        results = []
        for seed in range(seeds):
            out = HERE / "searches" / self.name / task / budget.strip("%") / f"seed{seed}"
            if not (out / "config.json").is_file():
                result = s3pet.search(
                    self.model, self.task(task), self.space, budget=budget, seed=seed, out=out, progress=False, **SEARCH
                )
                print(f"{self.name} {task} {budget} seed {seed}: {result.structure()}", flush=True)
            results.append(s3pet.load_run(out))
        return results

    def scores(self, task: str, stage: str, structures: dict, seeds: int = 1) -> pd.DataFrame:
        """Retrain everything; one row per structure and seed."""
        rows = ROWS / stage / f"{self.name}-{task}.jsonl"
        table = s3pet.compare(
            self.model, self.task(task), structures, seeds=range(seeds), out=rows, progress=False, **RECIPE
        )
        print(f"{stage} {self.name} {task}: {len(table)} rows", flush=True)
        return table.assign(backbone=self.name, backbone_params=self.space.backbone_params).drop(
            columns=["passes", "seconds"]
        )


def searches() -> None:
    """Five searches of every task."""
    lab = Lab("pocket-t5")
    for task in TASKS:
        lab.searches(task, "0.2%", 5)


def budgets(tasks: tuple[str, ...] = ("sentiment", "ending")) -> pd.DataFrame:
    """Score against budget: one search cut at many budgets, a search per budget, random, manual, fine-tuning."""
    lab, tables = Lab("pocket-t5"), []
    for task in tasks:
        runs = lab.searches(task, "0.2%", 5)[:3]
        groups: dict = {f"searched {cut}": [run.structure(cut) for run in runs] for cut in CUTS}
        groups["searched at 0.05%"] = [run.structure() for run in lab.searches(task, "0.05%", 3)]
        groups |= {
            f"random {cut}": [s3pet.random_structure(lab.space, cut, seed=seed) for seed in range(5)] for cut in CUTS
        }
        groups |= {name: s3pet.manual_structure(lab.space, name) for name in MANUAL} | {"zero-shot": "zero-shot"}
        limits = {name: entry[0].budget if isinstance(entry, list) else None for name, entry in groups.items()}
        table = pd.concat([lab.scores(task, "budgets", groups), lab.scores(task, "budgets", {"full": "full"}, seeds=3)])
        tables.append(table.assign(budget=table["structure"].map(limits)))
    return pd.concat(tables)


def transfer(budget: str = "0.05%") -> pd.DataFrame:
    """Every task's structures on every task; the average of the other tasks' gates; random structures."""
    lab, tables = Lab("pocket-t5"), []
    runs_of = {task: lab.searches(task, budget, 3) for task in TASKS}
    for target in TASKS:
        groups: dict = {source: [run.structure() for run in runs] for source, runs in runs_of.items()}
        others = [
            s3pet.average_gates([runs[seed] for source, runs in runs_of.items() if source != target])
            for seed in range(3)
        ]
        groups["average of the others"] = [average.structure() for average in others]
        groups["random"] = [s3pet.random_structure(lab.space, budget, seed=seed) for seed in range(5)]
        table = lab.scores(target, "transfer", groups)
        tables.append(table.assign(source=table["structure"], target=target))
    return pd.concat(tables)


def sizes(budget: str = "0.05%") -> pd.DataFrame:
    """Gates found on 4 + 4 layers of width 128, carried to 6 + 6 layers of width 96."""
    small, deep, tables = Lab("pocket-t5"), Lab("pocket-t5-deep"), []
    for task in TASKS:
        carried = [s3pet.retarget_gates(run, deep.space) for run in small.searches(task, budget, 3)]
        groups: dict = {"own search": [run.structure() for run in deep.searches(task, budget, 3)]}
        groups["carried over"] = [run.structure() for run in carried]
        groups["random"] = [s3pet.random_structure(deep.space, budget, seed=seed) for seed in range(5)]
        tables.append(deep.scores(task, "sizes", groups))
    return pd.concat(tables)


STAGES = {"searches": searches, "budgets": budgets, "transfer": transfer, "sizes": sizes}


def write_table(stage: str, table: pd.DataFrame) -> None:
    """The table of a stage, and beside it what repeats it."""
    table.to_csv(HERE / f"{stage}.csv", index=False)
    config = {"stage": stage, "retrain": RECIPE, "search": SEARCH, "rows": len(table), "versions": versions()}
    write_json(config, HERE / f"{stage}.json")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=[*STAGES], help=", ".join(STAGES))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for stage in arguments.stages:
        table = STAGES[stage]()
        if table is None:
            continue
        write_table(stage, table)
        print(table.groupby(["task", "structure"], sort=False)["score"].agg(["mean", "std", "size"]), flush=True)


if __name__ == "__main__":
    main()
