"""Does a search gain from a start at the mean of searches on other tasks (``search(init=…)``)? Resumable.

    python data/runs/neighbours.py            # all that is missing
    python data/runs/neighbours.py --write    # rows into data/runs/neighbours.csv
    python data/runs/neighbours.py --show     # the table of differences

The pocket, a budget of 0.1 %. The neighbours of a task are the six searches of the bench on the two other tasks
(``data/bench/pocket/searches/adamw``, three seeds each). What a way finds is retrained by the recipe and the rate of
``methods.py``. The same searches without a start are run here for 100 steps ("brief search"); those of 300 steps
("search") are the rows of ``methods.csv``, which come from another CPU: the same code finds other structures here.

1. *choose*: starts at 1, ½ and ¼ of the neighbours' α, 100 steps, a seed that is used nowhere else. The scale with
   the best mean validation score is taken; the test split is not scored.
2. *report*: that scale, on the seeds of ``methods.py`` (of 300 steps the first three), beside the neighbours' own
   structure (cut from their mean gates, without a search). The test split is scored once for each row and decides
   nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from methods import BRIEF_RECIPE, SETTINGS

import s3pet
from s3pet.studies.population import Member, Population
from s3pet.studies.statistics import over_tasks, summary
from s3pet.trainer import Recipe

HERE = Path(__file__).resolve().parent
TABLE, WORK = HERE / "neighbours.csv", HERE.parents[1] / "runs" / "neighbours"
SEARCHES = HERE.parent / "bench" / "pocket" / "searches" / "adamw"
POCKET, BUDGET, LR = SETTINGS["pocket"], "0.1%", 1e-2
SCALES, CHOOSE_SEEDS = (1.0, 0.5, 0.25), (20,)
REPORT = {100: POCKET.seeds, 300: POCKET.seeds[:3]}  # steps: seeds
NAMES = {100: "brief search", 300: "search"}  # in methods.csv
FROM = " from neighbours"


def neighbours(task: str, scale: float = 1.0) -> list[Any]:
    """The searches on the other tasks, their α times ``scale``."""
    others = [s3pet.load_run(path) for path in sorted(SEARCHES.glob("*/seed*")) if path.parent.name != task]
    return [replace(one, gates=one.gates.assign(alpha=one.gates["alpha"] * scale)) for one in others]


def searched(model: Any, task: Any, space: Any, seed: int, steps: int, scale: float | None) -> Any:
    """A search, from its folder if it is finished."""
    name = task.name.rpartition("/")[2]
    folder = WORK / "searches" / f"{name}-{seed}-{steps}-{scale}"
    if (folder / "config.json").is_file():
        return s3pet.load_run(folder)
    init = None if scale is None else neighbours(name, scale)
    options = {"budget": BUDGET, "seed": seed, "steps": steps, "init": init, "out": folder, "progress": False}
    return s3pet.search(model, task, space, **options)


def trained(model: Any, task: Any, structures: dict[str, Any], seed: int, test: bool) -> list[dict[str, Any]]:
    """Rows of the structures, trained together."""
    with Population(
        model, task, [Member(s.candidates, LR, seed) for s in structures.values()], Recipe(**BRIEF_RECIPE)
    ) as population:
        population.train()
        scores = population.evaluate(task.test, best=True)[1] if test else [None] * len(structures)
        validation = population.best
    found = zip(structures.items(), validation, scores, strict=True)
    return [
        {"method": name, "validation": best, "score": score, "candidates": " ".join(structure.names)}
        for (name, structure), best, score in found
    ]


def chosen_scale() -> float:
    """The scale with the best mean validation score."""
    return float(read("choose").groupby("scale")["validation"].mean().idxmax())


def read(part: str) -> pd.DataFrame:
    """Finished rows, newly trained ones and those of the table."""
    rows = [pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(WORK.glob("*.json"))]
    table = pd.concat([*([pd.read_csv(TABLE)] if TABLE.is_file() else []), *rows], ignore_index=True)
    table = table.drop_duplicates(["part", "method", "task", "seed", "scale"])
    return table[table["part"] == part] if part else table


def run() -> None:
    """Train what is missing."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space = s3pet.make_space(model, "mixed")
    tasks = {name: s3pet.load_task(f"pocket/{name}", tokenizer) for name in POCKET.recipes}
    WORK.mkdir(parents=True, exist_ok=True)
    cells = [("choose", seed, 100, name) for seed in CHOOSE_SEEDS for name in tasks]
    cells += [("report", seed, steps, name) for steps, seeds in REPORT.items() for seed in seeds for name in tasks]
    cells += [("plain", seed, 100, name) for seed in POCKET.seeds for name in tasks]
    for part, seed, steps, name in cells:
        path, start = WORK / f"{part}-{seed}-{steps}-{name}.json", time.process_time()
        if path.is_file():
            continue
        scales = SCALES if part == "choose" else (None,) if part == "plain" else (chosen_scale(),)
        key = {scale: f"{NAMES[steps]}{FROM}" + (f" × {scale}" if part == "choose" else "") for scale in scales}
        key = {None: NAMES[steps]} if part == "plain" else key
        found = {key[scale]: searched(model, tasks[name], space, seed, steps, scale).structure() for scale in scales}
        if part == "report" and steps == 100:
            found["structure of neighbours"] = s3pet.average_gates(neighbours(name)).structure()
        rows = trained(model, tasks[name], found, seed, part != "choose")
        of = {label: scale for scale, label in key.items()}
        place = {"part": part, "task": name, "seed": seed}
        rows = [{**place, "scale": of.get(row["method"]), **row} for row in rows]
        path.write_text(json.dumps(rows), encoding="utf-8")
        scores = ", ".join(f"{row['method']} {row['validation']:.3f} {row['score']}" for row in rows)
        seconds = f"{time.process_time() - start:.0f} s of CPU"
        print(f"{time.strftime('%H:%M:%S')} {part} {name} {seed} ({seconds}): {scores}", flush=True)


def differences() -> pd.DataFrame:
    """Mean test scores and paired differences to the same search without a start, for each task and over them."""
    new = pd.concat([read("report"), read("plain")])
    old = pd.read_csv(HERE / "methods.csv").query("backbone == 'pocket' and budget == @BUDGET")
    old = old[old["method"].isin(["even LoRA", NAMES[300]])]
    rows = pd.concat([new, old], ignore_index=True)
    sizes = {c.name: c.n_params for c in s3pet.load_run(next(SEARCHES.glob("*/seed0"))).space}
    costs = rows["candidates"].map(lambda names: sum(sizes[name] for name in names.split()))
    rows = rows.assign(structure=rows["method"], kind="searched", n_params=costs, index=0, budget=None)
    against = {f"{name}{FROM}": name for name in NAMES.values()}
    against |= {"structure of neighbours": NAMES[100], NAMES[300]: NAMES[100]}
    against = {name: other for name, other in against.items() if name in {*rows["structure"]}}
    table = pd.concat([over_tasks(rows, baseline=against), summary(rows, baseline=against)])
    columns = ["task", "structure", "score", "runs", "baseline", "difference", "pairs", "p", "p_floor"]
    return table[columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        read("").to_csv(TABLE, index=False)
    elif options.show:
        print(read("choose").groupby("scale")["validation"].agg(["mean", "count"]).to_string())
        print(differences().to_string(index=False))
    else:
        run()


if __name__ == "__main__":
    main()
