"""Build PET-Bench: train many structures alike, and keep every row. Resumable.

    python data/bench/build.py pocket                       # train what is missing
    python data/bench/build.py pocket --worker 0 --of 2     # one of two processes that share the work
    python data/bench/build.py pocket --write               # collect finished rows into the tables of data/bench/pocket
    python data/bench/build.py pocket --drop                # train all candidates together, take out each: drop.parquet

Finished chunks are appended to ``runs/bench/<name>/``; what is in the tables already is not trained again. The plan is
in an order in which the bench can stop at any point and has some of every kind, task and budget. One structure in four
is trained with two more seeds, at the rate that validation chose. Nothing is chosen by test scores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import s3pet
from s3pet.backbones import backbone_checksum
from s3pet.files.writing import write_json, write_table
from s3pet.objectives import ObjectiveSettings
from s3pet.records import versions
from s3pet.space import Rule, Space
from s3pet.structure import Structure, parse_budget, select_structure
from s3pet.studies.bench_files import FORMAT, VERSION, structure_hash
from s3pet.studies.interventions import drop_utility, probe_inert, solo_utility
from s3pet.studies.population import Member, Population
from s3pet.studies.selectors import covered_structure, depth_structure, sampled_structure
from s3pet.trainer import Recipe
from s3pet.transfer import average_gates
from s3pet.utility import candidate_names

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "runs" / "bench"
SEARCHES = ROOT / "data" / "runs" / "ablation" / "searches"
TOGETHER = 3  # structures in a population; each is there once for every rate

TASKS = ("number", "ending", "sentiment")
BUDGETS = ("0.1%", "0.05%")
RATES = (3e-3, 1e-2, 3e-2)
RECIPE: dict[str, Any] = {"steps": 250, "batch_size": 8, "lr_warmup": 25, "evaluations": 3}
NOW: dict[str, dict[str, Any]] = {  # searches made here
    "shared": {"alpha_optimizer": "shared", "warmup": 50, "steps": 200},
    "adamw": {"steps": 300},  # the default
    "adamw short": {"steps": 175},  # as many passes as "shared"
}
BRIEF = {"steps": 100}  # three of them cost one "adamw"
COUNTS = {  # for each task and budget
    "random": 35,
    "covered": 20,
    "searched": 20,
    "even": 8,
    "cut": 7,
    "sampled": 9,
    "mutated": 9,
    "averaged": 1,
}
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
        return structure_hash(self.structure.names)


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
                "cut": cuts(model, tasks[task], space, budget),
                "sampled": sampled(model, tasks[task], space, budget),
                "mutated": mutated(model, tasks[task], space, budget),
                "averaged": averaged(model, tasks[task], space, budget),
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
    for seed, (kind, settings) in ((seed, item) for seed in range(3) for item in NOW.items()):
        yield finished_search(model, task, space, kind, settings, seed).structure(budget), f"{kind} {seed}"
    for seed in range(3):
        for kind in KINDS:
            folder = SEARCHES / kind / name / f"seed{seed}"
            if (folder / "config.json").is_file():
                yield s3pet.load_run(folder).structure(budget), f"{kind}, older, {seed}"


def probabilities(model: Any, task: Any, space: Space) -> list[Tensor]:
    """Gate probabilities of the searches with one step size per gate, [n_candidates] each."""
    runs = [finished_search(model, task, space, "adamw", NOW["adamw"], seed) for seed in range(3)]
    return [torch.tensor(by_name(run.gates, "prob", space)) for run in runs]


def by_name(table: pd.DataFrame, column: str, space: Space) -> Any:
    """A column of a gate or utility table in the order of the space."""
    return table.set_axis(candidate_names(table))[column].reindex([*space.names]).to_numpy(float)


def cuts(model: Any, task: Any, space: Space, budget: str) -> Iterator[tuple[Structure, str]]:
    """Cuts that give less to layers that have something, of gates, their average and of solo utilities."""
    probs = probabilities(model, task, space)
    ranks = {"average": torch.stack(probs).mean(0)}
    table = pd.read_parquet(HERE / "pocket" / "solo.parquet")
    utility = by_name(table[table["task"].eq(task.name.rpartition("/")[2])], "utility", space)
    ranks["solo utility"] = torch.tensor(utility).nan_to_num(0.0).clamp(min=0.0)
    for name, values in ranks.items():
        yield select_structure(space, values, budget), f"{name}, plain cut"
    for name, values in ({str(seed): p for seed, p in enumerate(probs)} | ranks).items():
        yield select_structure(space, discounted(space, values, parse_budget(space, budget).n_params), budget), name


def discounted(space: Space, values: Tensor, budget: int, factor: float = 0.5) -> Tensor:
    """Ranks for a cut in which each candidate taken from a layer multiplies the values of its others by a factor."""
    places = [(c.stack, c.layer) for c in space]
    left, worth, ranks = budget, values.clone(), torch.zeros_like(values)
    for rank in range(len(space), 0, -1):
        fits = (space.costs <= left) & ranks.eq(0)
        if not bool(fits.any()):
            break
        index = int(torch.where(fits, worth, -1.0).argmax())
        ranks[index] = rank
        left -= space.candidates[index].n_params
        worth *= torch.tensor([factor if place == places[index] else 1.0 for place in places], dtype=worth.dtype)
    return ranks


def sampled(model: Any, task: Any, space: Space, budget: str) -> Iterator[tuple[Structure, str]]:
    """Structures drawn from the gates."""
    runs = [finished_search(model, task, space, "adamw", NOW["adamw"], seed) for seed in range(3)]
    for draw in range(9):
        yield sampled_structure(runs[draw % 3], budget, seed=draw), f"gates {draw % 3}, draw {draw}"


def averaged(model: Any, task: Any, space: Space, budget: str) -> Iterator[tuple[Structure, str]]:
    """Cuts of the mean gates of three short searches."""
    for number in range(3):
        seeds = range(3 * number, 3 * number + 3)
        runs = [finished_search(model, task, space, "adamw brief", BRIEF, seed) for seed in seeds]
        yield average_gates(runs).structure(budget), f"adamw brief, seeds {seeds[0]} to {seeds[-1]}"


def mutated(model: Any, task: Any, space: Space, budget: str) -> Iterator[tuple[Structure, str]]:
    """Searched structures with one or two candidates exchanged for random ones."""
    for draw in range(9):
        rng, kind = np.random.default_rng(draw), [*NOW][draw % 2]
        parent = finished_search(model, task, space, kind, NOW[kind], draw % 3).structure(budget)
        out = set(rng.permutation([*parent.names])[: 1 + draw % 2])
        ranks = torch.tensor(rng.random(len(space)))
        ranks += torch.tensor([2.0 * (c.name in parent.names) - 3.0 * (c.name in out) for c in space])
        child = select_structure(space, ranks - ranks.min(), budget)
        yield child, f"{structure_hash(parent.names)} with {len(out)} exchanged"


def finished_search(model: Any, task: Any, space: Space, kind: str, settings: dict[str, Any], seed: int) -> Any:
    """A search, from its folder if it is finished."""
    place = Path("searches") / kind / task.name.rpartition("/")[2] / f"seed{seed}"
    for folder in (HERE / "pocket" / place, WORK / "pocket" / place):
        if (folder / "config.json").is_file():
            return s3pet.load_run(folder)
    return s3pet.search(model, task, space, budget="0.1%", seed=seed, out=folder, progress=False, **settings)


def train(model: Any, task: Any, runs: list[tuple[Proposal, float, int]]) -> list[dict[str, Any]]:
    """One row for each (proposal, learning rate, seed)."""
    members = [Member(p.structure.candidates, rate, seed) for p, rate, seed in runs]
    with Population(model, task, members, Recipe(**RECIPE)) as population:
        population.train()
        _, scores = population.evaluate(task.test, best=True)
    rows = []
    for k, (p, rate, seed) in enumerate(runs):
        steps, validation, losses = zip(*population.curves[k], strict=True)
        best = population.best_step[k]
        own = {"task": p.task, "structure": p.key, "kind": p.kind, "origin": p.origin, "budget": p.structure.budget}
        own |= {"n_params": p.structure.n_params, "lr": rate, "seed": seed, "best_step": best, "diverged": best == 0}
        own |= {"validation": population.best[k] if best else None, "score": scores[k] if best else None}
        own |= {"validation_loss": losses[steps.index(best)] if best else None}
        own |= {"curve": [round(v, 4) for v in validation], "curve_loss": [round(v, 4) for v in losses]}
        rows.append(own | {"candidates": list(p.structure.names)})
    return rows


def read(name: str) -> pd.DataFrame:
    """Every row that was ever finished: those of the tables and those of the workers."""
    lines = [line for path in sorted((WORK / name).glob("rows-*.jsonl")) for line in path.open(encoding="utf-8")]
    rows = pd.DataFrame([json.loads(line) for line in lines])
    if (HERE / name / "rows.parquet").is_file():
        names = pd.read_parquet(HERE / name / "structures.parquet").set_index("structure")["candidates"]
        table = pd.read_parquet(HERE / name / "rows.parquet")
        rows = pd.concat([table.assign(candidates=table["structure"].map(names)), rows], ignore_index=True)
    return rows.drop_duplicates(["task", "structure", "lr", "seed"], ignore_index=True) if len(rows) else rows


def run(name: str, worker: int, of: int, solo: bool) -> None:
    """Train what is missing, every ``of``-th chunk."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space, folder = s3pet.make_space(model, "mixed"), WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {task: s3pet.load_task(f"pocket/{task}", tokenizer) for task in TASKS}
    inert = {name: probe_inert(model, task, space) for name, task in tasks.items()}
    if solo:
        for seed, task in ((seed, task) for seed in range(3) for task in TASKS):
            path = folder / f"solo-{task}.jsonl"
            solo_utility(model, tasks[task], space, seeds=(seed,), inert=inert[task], out=path, progress=False)
            print(f"{time.strftime('%H:%M:%S')} solo {task} seed {seed}", flush=True)
        return
    waiting: dict[tuple[str, str], list[Proposal]] = {}
    chunks = []
    for proposal in plan(model, tasks, space, inert):
        chunk = waiting.setdefault((proposal.task, proposal.budget), [])
        chunk.append(proposal)
        if len(chunk) == TOGETHER:
            chunks.append(waiting.pop((proposal.task, proposal.budget)))
    chunks += waiting.values()
    print(f"{sum(map(len, chunks))} structures", flush=True)
    finished = read(name)
    done = set(zip(finished["task"], finished["structure"], strict=True)) if len(finished) else set()
    for number, whole in enumerate(chunks):
        chunk = [p for p in whole if (p.task, p.key) not in done]
        if number % of != worker or not chunk:
            continue
        start, task = time.time(), tasks[chunk[0].task]
        rows = train(model, task, [(p, rate, 0) for p in chunk for rate in RATES])
        repeated = chunk[(number // (of * len(TASKS) * len(BUDGETS))) % len(chunk)]
        own = [row for row in rows if row["structure"] == repeated.key and not row["diverged"]]
        if own:
            rate = max(own, key=lambda row: (row["validation"], -row["lr"]))["lr"]
            rows += train(model, task, [(repeated, rate, seed) for seed in (1, 2)])
        with (folder / f"rows-{worker}.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        best = {row["structure"]: row for row in sorted(rows[: len(chunk) * 3], key=lambda row: row["validation"] or 0)}
        what = ", ".join(f"{row['kind']} {row['score']}" for row in best.values())
        what = f"{chunk[0].task} {chunk[0].budget}: {what} ({time.time() - start:.0f} s)"
        print(f"{time.strftime('%H:%M:%S')} {number}/{len(chunks)} {what}", flush=True)


def write(name: str) -> None:
    """Write the tables of a bench from all finished rows."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space, out, rows = s3pet.make_space(model, "mixed"), HERE / name, read(name)
    tasks = {task: s3pet.load_task(f"pocket/{task}", tokenizer) for task in TASKS}
    out.mkdir(exist_ok=True)
    first = rows[rows["seed"].eq(0)]
    complete = first.groupby(["task", "structure"])["lr"].transform("nunique").eq(len(RATES))
    keys = set(zip(first["task"][complete], first["structure"][complete], strict=True))
    rows = rows[[key in keys for key in zip(rows["task"], rows["structure"], strict=True)]]
    solo = []
    for task, loaded in tasks.items():
        path = WORK / name / f"solo-{task}.jsonl"
        lines = [json.loads(line) for line in path.open(encoding="utf-8")] if path.is_file() else []
        inert = probe_inert(model, loaded, space)
        full = len(space) - len(inert) + 1
        seeds = [seed for seed in range(3) if sum(line["seed"] == seed for line in lines) == full]
        if seeds:
            solo.append(solo_utility(model, loaded, space, seeds=seeds, inert=inert, out=path, progress=False))
    if solo:
        table = pd.concat(solo, ignore_index=True)
        write_table(table.assign(task=table["task"].str.rpartition("/")[2]), out / "solo.parquet")
    for path in sorted((WORK / name / "searches").glob("*/*/*/config.json")):
        copy = out / "searches" / path.parent.relative_to(WORK / name / "searches")
        copy.mkdir(parents=True, exist_ok=True)
        for file in ("gates.parquet", "history.parquet", "structure.json", "metrics.json", "config.json"):
            shutil.copy(path.parent / file, copy / file)
        steps = pd.read_parquet(path.parent / "trajectory.parquet")
        kept = sorted(steps["step"].unique())[-1::-10]  # about six, the last one among them
        write_table(steps[steps["step"].isin(kept)], copy / "trajectory.parquet")
    write_bench(name, model, space, tasks, rows, RECIPE, RATES, {}, versions())


def drop(name: str) -> None:
    """Measure what each candidate is worth when all others are there too, about a minute for each task."""
    model, tokenizer = s3pet.load_backbone("pocket-t5")
    space, tables = s3pet.make_space(model, "mixed"), []
    for task in TASKS:
        table = drop_utility(model, s3pet.load_task(f"pocket/{task}", tokenizer), space, progress=False)
        tables.append(table.assign(task=task))
    write_table(pd.concat(tables, ignore_index=True), HERE / name / "drop.parquet")


def write_bench(
    name: str,
    model: Any,
    space: Space,
    tasks: dict[str, Any],
    rows: pd.DataFrame,
    recipe: Any,
    rates: Any,
    objective: Any,
    made_by: Any,
    **more: Any,
) -> None:
    """Write rows (with the candidates of their structures) and facts of a bench."""
    out = HERE / name
    out.mkdir(exist_ok=True)
    rows = rows.sort_values(["task", "structure", "seed", "lr"], ignore_index=True)
    structures = rows.drop_duplicates("structure")[["structure", "n_params", "candidates"]].sort_values("structure")
    write_table(structures.reset_index(drop=True), out / "structures.parquet")
    write_table(rows.drop(columns="candidates"), out / "rows.parquet")
    facts = {"name": name, "model": space.model_id, "model_hash": backbone_checksum(model)}
    facts |= {"backbone_params": space.backbone_params, "space_name": space.name, "space": [asdict(c) for c in space]}
    used = {task: tasks[task] for task in rows["task"].unique()}
    facts["tasks"] = {task: {"fingerprint": t.fingerprint, "metric": t.metric} for task, t in used.items()}
    facts |= {"recipe": recipe, "rates": rates, "objective": asdict(ObjectiveSettings.of(objective)), **more}
    write_json({"format": FORMAT, "version": VERSION, **facts, "versions": made_by}, out / "bench.json")
    print(f"{len(structures)} structures, {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=("pocket",))
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--solo", action="store_true", help="train single candidates instead of structures")
    parser.add_argument("--drop", action="store_true", help="take single candidates out of all")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        write(options.name)
    elif options.drop:
        drop(options.name)
    else:
        run(options.name, options.worker, options.of, options.solo)


if __name__ == "__main__":
    main()
