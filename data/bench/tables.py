"""Write the tables of README.md from the benches beside it; the text between them is ours.

    python data/bench/tables.py

A table stands between ``<!-- its name -->`` and ``<!-- end -->``. A test compares file and benches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from s3pet.studies.bench import Bench
from s3pet.studies.report import as_text, finished_searches
from s3pet.studies.surrogate import MODEL, MODELS
from s3pet.transfer import agreement, average_gates
from s3pet.utility import candidate_names, faithfulness

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- (?!end)([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@cache
def benches() -> list[Bench]:
    """All benches beside this file."""
    return [Bench.load(path.parent) for path in sorted(HERE.glob("*/bench.json"))]


def numbers(values: pd.Series) -> str:
    """A few whole numbers, or their range."""
    values = sorted(set(values.dropna().astype(int)))
    return ", ".join(f"{v:,}" for v in values) if len(values) < 6 else f"{values[0]:,} to {values[-1]:,}"


def overview() -> list[dict[str, Any]]:
    """What is in each bench, on each task."""
    rows = []
    for bench in benches():
        for task, facts in bench.tasks.items():
            part, noise = bench.rows[bench.rows["task"].eq(task)], bench.noise(task)
            row = {"bench": bench.name, "backbone": bench.space.model_id, "task": task, "metric": facts["metric"]}
            row |= {"structures": f"{noise.structures:,}", "repeated": f"{noise.repeated:,}"}
            row |= {"trainings": f"{len(part):,}", "diverged": f"{part['diverged'].sum():,}"}
            rows.append(row | {"budgets (parameters)": numbers(part["budget"])})
    return rows


def kinds() -> list[dict[str, Any]]:
    """Which structures they are: how many of each kind, and their scores at the chosen rate."""
    rows = []
    for bench in benches():
        chosen = bench.choose().groupby(["kind", "structure", "task"], as_index=False)["score"].mean()
        for kind, part in chosen.groupby("kind"):
            by_task = part.groupby("task")["score"]
            cells = {
                task: f"{scores.median():.3f} ({scores.min():.3f} to {scores.max():.3f})" for task, scores in by_task
            }
            count = f"{part['structure'].nunique():,}"
            text = "; ".join(f"{task} {cells[task]}" for task in bench.tasks if task in cells)
            rows.append({"bench": bench.name, "kind": kind, "structures": count, "median (lowest to highest)": text})
    return rows


def prediction(models: tuple[str, ...] = (MODEL,)) -> list[dict[str, Any]]:
    """The report of each bench."""
    rows = []
    for bench in benches():
        for row in bench.report(models=models).to_dict("records"):
            ceiling = f"{row['ceiling_r2']:.2f} ({row['ceiling_r2_low']:.2f} to {row['ceiling_r2_high']:.2f})"
            cells = {"bench": bench.name, "task": row["task"], "noise": f"{row['within']:.3f}", "ceiling R²": ceiling}
            cells |= {"ceiling ρ": f"{row['ceiling_spearman']:.2f}", "R²": f"{row['r2']:.2f}"}
            cells |= {"ρ": f"{row['spearman']:.2f}", "rmse": f"{row['rmse']:.3f}"}
            cells |= {"coverage": f"{row['coverage']:.0%}", "families": str(row["families"])}
            rows.append(cells | {"rule R²": f"{row['rule_r2']:.2f}", "rule ρ": f"{row['rule_spearman']:.2f}"})
    return rows


def models() -> list[dict[str, Any]]:
    """Held-out R² and rank correlation of every model."""
    rows = []
    for bench in benches():
        report = bench.report(models=[*MODELS])
        for task, part in report.groupby("task", sort=False):
            pairs = zip(part["model"], part["r2"], part["spearman"], strict=True)
            cells = {model: f"{r2:.2f} / {rank:.2f}" for model, r2, rank in pairs}
            rows.append({"bench": bench.name, "task": task, **cells})
    return rows


FAITHFUL = {  # folders of searches
    "pocket": {
        "runs/ablation/searches/long": "`paper`, 300 steps, dropout",
        "runs/ablation/searches/shared warm": "warm-up, one step size, dropout",
        "bench/pocket/searches/adamw": "default: `paper` without dropout, 300 steps",
        "bench/pocket/searches/adamw short": "the same, 175 steps",
        "bench/pocket/searches/adamw brief": "the same, 100 steps",
        "bench/pocket/searches/shared": "warm-up, one step size",
    },
    "minilm": {
        "bench/minilm/searches/default": "default, 300 steps",
        "runs/steady/searches/small": "warm-up, one step size, dropout, 200 steps",
        "runs/steady/searches/vector": "the same, at 0.04 %",
    },
}


def faithful(name: str) -> list[dict[str, Any]]:
    """Rank correlation of the gates of saved searches with solo utility: means over searches, by kind."""
    rows = []
    for bench in benches():
        solo = dict(iter(bench.solo.groupby("task", sort=False))) if bench.solo is not None else {}
        for folder, search in FAITHFUL[name].items() if bench.name == name else ():
            place, values = HERE.parent / folder, []
            for _, task, runs in finished_searches(place.parent, [place.name], [*solo]):
                for kind, searches in (("one", runs), ("average", [average_gates(runs)])):
                    for run in searches:
                        ranks = faithfulness(run, solo[task]).set_index("scope")
                        columns = {
                            "all": "all",
                            "lora": "LoRA",
                            "within PET modules": "within",
                            "between layers": "layers",
                        }
                        values += [(kind, task, what, ranks["spearman"][scope]) for scope, what in columns.items()]
                        values.append((kind, task, "ceiling", ranks["ceiling"]["all"]))
                pairs = agreement(runs, draws=20)["spearman"].mean() if len(runs) > 1 else float("nan")
                values.append(("one", task, "between seeds", pairs))
            if not values:
                continue
            table = pd.DataFrame(values, columns=["kind", "task", "what", "value"])
            means = table.groupby(["kind", "task", "what"])["value"].mean()
            mean = {
                what: {task: means.get(("one", task, what), np.nan) for task in solo} for what in ("all", "ceiling")
            }
            cells = {task: "–" if np.isnan(value) else f"{value:.2f}" for task, value in mean["all"].items()}
            over = table.groupby(["kind", "what"])["value"].mean()
            cells |= {"within PET modules": f"{over['one', 'within']:.2f}", "LoRA": f"{over['one', 'LoRA']:.2f}"}
            cells["between layers"] = f"{over['one', 'layers']:.2f}"
            cells["average of the seeds"] = f"{over['average', 'all']:.2f}"
            cells["ceiling"] = " / ".join(f"{value:.2f}" for value in mean["ceiling"].values() if value == value)
            between = over.get(("one", "between seeds"), float("nan"))
            rows.append({"search": search, **cells, "between seeds": "–" if np.isnan(between) else f"{between:.2f}"})
    return rows


def signs() -> list[dict[str, Any]]:
    """What tells a good structure before it is trained: rank correlations with its score, within a task and budget."""
    bench, columns = next(bench for bench in benches() if bench.name == "pocket"), {}
    assert bench.solo is not None
    names, place = [*bench.space.names], HERE / "pocket" / "searches"
    covered = [c.pet == "lora" and c.stack == "encoder" for c in bench.space]
    for task in bench.tasks:
        solo = bench.solo[bench.solo["task"].eq(task)]
        solo = solo.set_axis(candidate_names(solo))["utility"].reindex(names).fillna(0.0).to_numpy()
        gates = {}
        for kind in ("adamw", "shared"):
            runs = next(runs for _, name, runs in finished_searches(place, [kind], [*bench.tasks]) if name == task)
            gates[kind] = [run.gates.set_axis(candidate_names(run.gates))["prob"].reindex(names) for run in runs]
        rows = bench.rows[bench.rows["task"].eq(task) & bench.rows["seed"].eq(0)]
        for budget, cell in rows.groupby("budget"):
            third = cell.assign(third=cell["curve_loss"].str[0]).groupby("structure")["third"].min()
            best = bench.choose(task).query("seed == 0 and budget == @budget").set_index("structure")
            chosen = bench.structures.set_index("structure")["candidates"].reindex(best.index)
            has = np.array([[name in set(own) for name in names] for own in chosen])
            layers = [
                len({c.layer for c, there, fits in zip(bench.space, own, covered, strict=True) if there and fits})
                for own in has
            ]
            signs = {
                "encoder layers with a LoRA": [np.array(layers)],
                "gates, step size per gate, 300 steps: sum": [has @ p.to_numpy() for p in gates["adamw"]],
                "gates, shared step size: sum": [has @ p.to_numpy() for p in gates["shared"]],
                "solo utility: sum": [has @ solo],
                "solo utility: largest": [(has * solo).max(1)],
                "validation loss after a third of the training": [-third.reindex(best.index).to_numpy()],
            }
            for sign, values in signs.items():
                ranks = [pd.Series(v, best.index).corr(best["score"], method="spearman") for v in values]
                share = "0.05 %" if budget == 675 else "0.1 %"
                columns.setdefault(sign, {})[f"{share} {task}"] = f"{np.mean(ranks):.2f}"
    return [{"known before": sign, **dict(sorted(cells.items()))} for sign, cells in columns.items()]


CHOICES = {  # name → (rows of its searches, pools to draw from, how many, go on after each third)
    "one at random": (0, {"random": 1}, (1, 1)),
    "one covered at random": (0, {"covered": 1}, (1, 1)),
    "one rule": (0, {"even": 1}, (1, 1)),
    "one search, shared step size": (11_200, {"shared": 1}, (1, 1)),
    "one search, step size per gate": (11_200, {"adamw short": 1}, (1, 1)),
    "one search, step size per gate, 300 steps": (19_200, {"adamw": 1}, (1, 1)),
    "race of 8 at random": (0, {"random": 8}, (3, 1)),
    "race of 8 covered": (0, {"covered": 8}, (3, 1)),
    "race of 16, random and covered": (0, {"random": 8, "covered": 8}, (5, 2)),
    "race of 8: cut, sampled, covered": (19_200, {"adamw": 1, "sampled": 3, "covered": 4}, (3, 1)),
}
DRAWS = 300  # of each choice, from the structures of a task and budget


def races() -> list[dict[str, Any]]:
    """What ways to choose a structure reach, played again from the curves of the pocket: means over draws."""
    bench = next(bench for bench in benches() if bench.name == "pocket")
    rows = bench.rows[bench.rows["seed"].eq(0) & bench.rows["lr"].eq(0.01)]
    searched = rows["origin"].str.rsplit(" ", n=1).str[0]
    rows = rows.assign(pool=rows["kind"].mask(rows["kind"].eq("searched"), searched))
    table = []
    for name, (search_rows, pools, keep) in CHOICES.items():
        cells, spent = {}, 0.0
        for (budget, task), cell in rows.groupby(["budget", "task"]):
            parts = {pool: cell[cell["pool"].eq(pool)].to_dict("records") for pool in pools}
            if all(len(parts[pool]) >= n for pool, n in pools.items()):
                rng = np.random.default_rng(0)
                draws = [
                    [parts[pool][i] for pool, n in pools.items() for i in rng.permutation(len(parts[pool]))[:n]]
                    for _ in range(DRAWS)
                ]
                cells[budget, task] = np.mean([raced(members, keep)["score"] for members in draws])
            spent = (sum(pools.values()) + sum(keep)) / 3 * 2_000
        row = {"choice": name, "rows of searches": f"{search_rows:,}", "rows of trainings": f"{spent:,.0f}"}
        for budget, share in ((675, "0.05 %"), (1351, "0.1 %")):
            own = [cells.get((budget, task), float("nan")) for task in bench.tasks]
            columns = dict(zip([*bench.tasks, "mean"], [*own, np.mean(own)], strict=True))
            row |= {f"{share} {name}": "–" if np.isnan(v) else f"{v:.3f}" for name, v in columns.items()}
        table.append(row)
    return table


def raced(members: list[dict[str, Any]], keep: tuple[int, ...]) -> dict[str, Any]:
    """The row that is left when so many go on after each third of the steps; equals are told apart by their loss."""
    for third, n in enumerate(keep):
        order = sorted(members, key=lambda row: (-max(row["curve"][: third + 1]), row["curve_loss"][third]))
        members = order[:n]
    return min(members, key=lambda row: (-row["validation"], row["validation_loss"]))


TABLES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "overview": overview,
    "kinds": kinds,
    "prediction": prediction,
    "models": models,
    "faithful": partial(faithful, "pocket"),
    "faithful minilm": partial(faithful, "minilm"),
    "races": races,
    "signs": signs,
}


def filled(text: str) -> str:
    """The text with all its tables written again."""

    def table(block: re.Match[str]) -> str:
        rows = TABLES[block[2]]()
        written = as_text(pd.DataFrame(rows)) if rows else "*There is no bench in this folder yet.*"
        return f"{block[1]}{written}\n{block[4]}"

    return BLOCK.sub(table, text)


if __name__ == "__main__":
    path = HERE / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
