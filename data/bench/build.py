"""Build PET-Bench: train many structures alike, and keep every row. Resumable.

    python data/bench/build.py pocket                       # train what is missing
    python data/bench/build.py pocket --worker 0 --of 2     # one of two processes that share the work
    python data/bench/build.py pocket --write               # collect finished rows into the tables of data/bench/pocket

Finished chunks are appended to ``runs/bench/<name>/``. The plan is in an order in which the bench can stop at any
point and has some of every kind, task and budget. Nothing is chosen by test scores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch

import s3pet
from s3pet.space import Rule, Space
from s3pet.structure import Structure
from s3pet.studies.interventions import probe_inert, solo_utility
from s3pet.studies.population import Member, Population
from s3pet.studies.selectors import covered_structure, depth_structure
from s3pet.trainer import Recipe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "runs" / "bench"
SEARCHES = ROOT / "data" / "runs" / "ablation" / "searches"
TOGETHER = 4  # structures in a population; each is there once for every rate

TASKS = ("number", "ending", "sentiment")
BUDGETS = ("0.1%", "0.05%")
RATES = (3e-3, 1e-2, 3e-2)
RECIPE: dict[str, Any] = {"steps": 400, "batch_size": 8, "lr_warmup": 40, "evaluations": 4}
COUNTS = {"random": 36, "covered": 26, "searched": 30, "even": 8}  # for each task and budget
KINDS = ("shared warm", "long", "shared warm long", "default", "shared", "warm long", "unrolled", "hard", "shared slow")
KINDS += ("shared mean both",)


class Proposal(NamedTuple):
    """A structure to train on a task, and where it comes from."""

    task: str
    budget: str
    structure: Structure
    kind: str
    origin: str

    @property
    def key(self) -> str:
        """Hash of the names of the candidates."""
        return hashlib.sha256("\n".join(sorted(self.structure.names)).encode()).hexdigest()[:16]


def even_structures(space: Space, budget: str, inert: list[str]) -> Iterator[tuple[Structure, str]]:
    """Rules without a search: LoRA on q and v over the depth, from the top, and one kind of module spread evenly."""
    yield depth_structure(space, budget, "uniform"), "LoRA on q and v"
    yield depth_structure(space.without(inert), budget, "uniform"), "LoRA on q and v, without inert places"
    yield depth_structure(space, budget, "top"), "LoRA on q and v from the top"
    rules = {
        "LoRA in the encoder": Rule("lora", stacks=("encoder",)),
        "LoRA in the decoder": Rule("lora", stacks=("decoder",)),
        "LNFit": Rule("lnfit"),
        "BitFit": Rule("bitfit"),
        "low-rank adapters": Rule("lowrank_adapter"),
    }
    for name, rule in rules.items():
        part = replace(space, candidates=tuple(c for c in space if c.pet == rule.pet and rule.covers(c)))
        yield depth_structure(part, budget, "uniform"), name


def plan(model: Any, tasks: dict[str, Any], space: Space, inert: dict[str, list[str]]) -> Iterator[Proposal]:
    """Every structure of the bench, the kinds of all tasks and budgets in turn."""
    columns = []
    for task in TASKS:
        for budget in BUDGETS:
            kinds: dict[str, Iterator[tuple[Structure, str]]] = {
                "random": ((s3pet.random_structure(space, budget, seed=n), f"seed {n}") for n in range(999)),
                "covered": ((covered_structure(space, budget, seed=n), f"seed {n}") for n in range(999)),
                "searched": searched(model, tasks[task], space, budget),
                "even": even_structures(space, budget, inert[task]),
            }
            rows = [
                (position / COUNTS[kind], Proposal(task, budget, structure, kind, origin))
                for kind, structures in kinds.items()
                for position, (structure, origin) in zip(range(COUNTS[kind]), structures, strict=False)
            ]
            columns.append([proposal for _, proposal in sorted(rows, key=lambda row: row[0])])
    seen = set()
    chunks = [[column[start : start + TOGETHER] for start in range(0, len(column), TOGETHER)] for column in columns]
    for turn in zip_longest(*chunks, fillvalue=[]):
        for proposal in (proposal for chunk in turn for proposal in chunk):
            if (proposal.task, proposal.key) not in seen:
                seen.add((proposal.task, proposal.key))
                yield proposal


def searched(model: Any, task: Any, space: Space, budget: str) -> Iterator[tuple[Structure, str]]:
    """Searches of now, made where they are missing, and saved ones of several older kinds, cut at the budget."""
    name = task.name.rpartition("/")[2]
    for seed in range(3):
        folder = WORK / "pocket" / "searches" / name / f"seed{seed}"
        if not (folder / "config.json").is_file():
            s3pet.search(model, task, space, budget="0.1%", seed=seed, out=folder, progress=False)
        yield s3pet.load_run(folder).structure(budget), f"default {seed}"
    for seed in range(3):
        for kind in KINDS:
            folder = SEARCHES / kind / name / f"seed{seed}"
            if (folder / "config.json").is_file():
                yield s3pet.load_run(folder).structure(budget), f"{kind}, older, {seed}"


def train(model: Any, task: Any, proposals: list[Proposal], rates: Any, seed: int) -> list[dict[str, Any]]:
    """One row for each proposal and rate."""
    members = [Member(p.structure.candidates, rate, seed) for p in proposals for rate in rates]
    with Population(model, task, members, Recipe(**RECIPE)) as population:
        population.train()
        _, scores = population.evaluate(task.test, best=True)
    rows = []
    for k, (proposal, rate) in enumerate((p, rate) for p in proposals for rate in rates):
        steps, validation, losses = zip(*population.curves[k], strict=True)
        diverged = population.best_step[k] == 0
        rows.append(
            {
                "task": f"pocket/{proposal.task}",
                "structure": proposal.key,
                "kind": proposal.kind,
                "origin": proposal.origin,
                "budget": proposal.structure.budget,
                "n_params": proposal.structure.n_params,
                "lr": rate,
                "seed": seed,
                "validation": None if diverged else population.best[k],
                "score": None if diverged else scores[k],
                "validation_loss": losses[steps.index(population.best_step[k])] if not diverged else None,
                "best_step": population.best_step[k],
                "diverged": diverged,
                "curve": [round(value, 4) for value in validation],
                "curve_loss": [round(value, 4) for value in losses],
                "candidates": list(proposal.structure.names),
            }
        )
    return rows


def read(folder: Path) -> list[dict[str, Any]]:
    """Every finished row."""
    return [json.loads(line) for path in sorted(folder.glob("rows-*.jsonl")) for line in path.open(encoding="utf-8")]


def run(name: str, worker: int, of: int, solo: bool) -> None:
    """Train what is missing, every ``of``-th chunk."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space, folder = s3pet.make_space(model, "mixed"), WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {task: s3pet.load_task(f"pocket/{task}", tokenizer) for task in TASKS}
    inert = {name: probe_inert(model, task, space) for name, task in tasks.items()}
    if solo:
        for seed in range(3):
            for task in TASKS:
                path = folder / f"solo-{task}.jsonl"
                solo_utility(model, tasks[task], space, seeds=(seed,), inert=inert[task], out=path, progress=False)
                print(f"{time.strftime('%H:%M:%S')} solo {task} seed {seed}", flush=True)
        return
    proposals = list(plan(model, tasks, space, inert))
    print(f"{len(proposals)} structures", flush=True)
    by_task: dict[tuple[str, str], list[Proposal]] = {}
    chunks = []
    for proposal in proposals:
        chunk = by_task.setdefault((proposal.task, proposal.budget), [])
        chunk.append(proposal)
        if len(chunk) == TOGETHER:
            chunks.append(by_task.pop((proposal.task, proposal.budget)))
    chunks += by_task.values()
    for number, chunk in enumerate(chunks):
        done = {(row["task"], row["structure"], row["seed"]) for row in read(folder)}
        chunk = [p for p in chunk if (f"pocket/{p.task}", p.key, 0) not in done]
        if number % of == worker and chunk:
            start = time.time()
            rows = train(model, tasks[chunk[0].task], chunk, RATES, 0)
            with (folder / f"rows-{worker}.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            best: dict[str, Any] = {}
            for row in sorted(rows, key=lambda row: row["validation"] or 0):
                best[row["structure"]] = f"{row['kind']} {row['score']}"
            what = f"{chunk[0].task} {chunk[0].budget}: {', '.join(best.values())}"
            print(
                f"{time.strftime('%H:%M:%S')} {number}/{len(chunks)} {what} ({time.time() - start:.0f} s)", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=("pocket",))
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--solo", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.name, options.worker, options.of, options.solo)


if __name__ == "__main__":
    main()
