"""Write the tables of RESULTS.md from the archived rows of the studies beside it; the text between them is ours.

    python data/runs/results.py

A table stands between ``<!-- its name -->`` and ``<!-- end -->``. A test compares file and rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from s3pet.result import load_run
from s3pet.studies.report import agreement_table, as_text, best_table, drop_table, repeat_table, score_table, summarize
from s3pet.studies.statistics import over_tasks
from s3pet.studies.validation import best_of, keep_best

HERE = Path(__file__).resolve().parent
# tasks that are shown: those that the encoder learns, those that were run
SHOWN = {"minilm": ("sst2", "stsb", "qnli"), "budgets": ("stsb", "sst2")}
SAME = {"searched warm 0.01%": "searched plain 0.01%"}  # structures of "pooling" that "steady" calls otherwise
BLOCK = re.compile(r"(<!-- (?!end)([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@cache
def rows(name: str, repeats: bool = False) -> pd.DataFrame:
    """The archived rows of a study, for those of its tasks that are shown."""
    table = pd.read_parquet(HERE / name / "rows.parquet")
    table = table[table["task"].isin(SHOWN[name])] if name in SHOWN else table
    return table if repeats else table[~table["repeat"]]


@cache
def declared(name: str) -> dict[str, Any]:
    """How a study was declared."""
    return yaml.safe_load((HERE / name / "declared.yaml").read_text(encoding="utf-8"))


def searches(name: str) -> tuple[Path, list[str], list[str]]:
    """Folder, names and shown tasks of a study's searches."""
    return HERE / name / "searches", [*declared(name)["searches"]], [*SHOWN.get(name, declared(name)["tasks"])]


@cache
def summed(name: str) -> pd.DataFrame:
    """The summary of a study."""
    return summarize(rows(name))


def mean_over_tasks(name: str) -> pd.DataFrame:
    """Of the summary, the means over all tasks; a row per structure, best first."""
    found = summed(name)
    return found[found["task"].str.startswith("mean of")].set_index("structure")


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Structures without their budget, where it is the same for all."""
    short = re.compile(r" 0\.\d+%")
    table = table.reset_index()
    table.columns = [short.sub("", name) for name in table.columns]
    return table.assign(structure=[short.sub("", name) for name in table["structure"]])


def ablation() -> pd.DataFrame:
    """Scores on the pocket, best first."""
    table = score_table(rows("ablation"), summed("ablation")).set_index("structure")
    return named(table.loc[mean_over_tasks("ablation").index].drop(columns=["parameters", "kept"], errors="ignore"))


def kept_best(name: str, *, tasks: bool = False) -> pd.DataFrame:
    """One structure, and of three the one that validation likes best.

    Args:
        name: of the study.
        tasks: also the best of three on each task.
    """
    best = best_table(rows(name)).set_index("structure")
    one = mean_over_tasks(name)["score"].map("{:.3f}".format)
    parts = {task: best[task] for task in rows(name)["task"].unique()} if tasks else {}
    table = pd.DataFrame({"one": one, **parts, "best of three": best["mean"][best["mean"] != ""]})
    table = table.rename_axis("structure").dropna()
    return named(table.sort_values("best of three", ascending=False, kind="stable"))


def differences(name: str, *baselines: str, budget: int = 2271, also: tuple[str, str] | None = None) -> pd.DataFrame:
    """Differences of the mean over tasks to some baselines, of what was made for a budget and ran on all tasks.

    Args:
        name: of the study. baselines: structures. budget: parameters.
        also: another study and a structure of it, to compare, too.
    """
    table, tasks = rows(name), rows(name)["task"].unique()
    if also:
        other = rows(also[0])
        table = pd.concat([table, other[other["structure"].eq(also[1]) & other["task"].isin(tasks)]])
    table = table[table["budget"].eq(budget)]
    table = table[table["structure"].map(table.groupby("structure")["task"].nunique()).eq(len(tasks))]
    columns, titles = [], []
    for baseline in baselines:
        found = over_tasks(table, baseline=baseline).set_index("structure")
        columns += [found["pairs"].astype(object).fillna("–"), found["difference"].map("{:+.3f}".format)]
        columns += [found[name].map("{:.2g}".format) for name in ("p", "p_holm")]
        titles += ["pairs", f"− {baseline}", "p", "Holm"]
    text = pd.concat(columns, axis=1).set_axis(titles, axis=1).loc[found.index]
    return named(text.replace({"nan": "–", "+nan": "–"}))


def threes() -> pd.DataFrame:
    """What three searches are worth: averaged, or the best of three by validation; beside three of the rule."""
    steady = rows("steady")
    steady = steady[steady["budget"].eq(2271)]
    best = keep_best(steady[steady["entry"].isin(["searched", "uniform"])], 3)
    best = best.assign(structure=best["entry"] + ", best of three")
    both = pd.concat([best, steady[steady["entry"].eq("averaged")].assign(structure="searched, average of three")])
    scores = both.groupby(["structure", "task"])["score"].agg(["mean", "std", "size"])
    told = [f"{row.mean:.3f} ± {row.std:.3f} ({row.size})" for row in scores.itertuples(index=False, name="Row")]
    told = pd.Series(told, scores.index).unstack("task")[steady["task"].unique()]
    found = over_tasks(both, baseline="uniform, best of three").set_index("structure")
    told = told.loc[found.index].assign(mean=found["score"].map("{:.3f}".format))
    told["− uniform"], told["p"] = found["difference"].map("{:+.3f}".format), found["p"].map("{:.2g}".format)
    return told.replace({"nan": "–", "+nan": "–"}).rename_axis("structure").reset_index()


def beside(names: tuple[str, str], titles: tuple[str, str], renamed: dict[str, str] | None = None) -> pd.DataFrame:
    """What two studies share: equal structures and seeds.

    Args:
        names: of the studies. titles: of their columns.
        renamed: structures of the first, as the second calls them.
    """
    one, other = (rows(name) for name in names)
    one = one.assign(structure=one["structure"].replace(renamed or {}))
    both, cells = one.merge(other, on=["task", "structure", "index", "seed"]), {}
    for (task, structure), part in both.groupby(["task", "structure"], sort=False):
        told = [f"{part[side].mean():.3f} ± {part[side].std():.3f} ({len(part)})" for side in ("score_x", "score_y")]
        cells[task, structure] = [part.replace(" ± nan", "") for part in told]
    table = pd.DataFrame([[*place, *told] for place, told in cells.items()])
    return table.set_axis(["task", "structure", *titles], axis=1)


def drops() -> pd.DataFrame:
    """Whether searches whose loss fell further found better structures, at each study's main budget.

    Rank correlation of the drop with the test score, mean of tasks; the same within kinds of search, of both less their
    kind's mean, with a permutation test within kinds; and the test score of one search, and of the one of three (of a
    kind) whose loss fell furthest.
    """
    told, rng = [], np.random.default_rng(0)
    for name, budget in (("ablation", 1351), ("minilm", 2271), ("pooling", 2271), ("steady", 2271)):
        of, table = declared(name)["structures"], rows(name)
        plain = table["entry"].map(lambda entry, of=of: not {"per_param", "halving"} & set(of[entry]))
        table = table[table["kind"].eq("searched") & table["budget"].eq(budget) & plain].reset_index(drop=True)
        places = zip(table["task"], table["entry"], table["index"], strict=True)
        folders = [HERE / name / "searches" / of[entry]["search"] / task / f"seed{k}" for task, entry, k in places]
        table = table.assign(validation=[load_run(folder).loss_drop for folder in folders])  # for a validation score
        table = table[table.groupby(["task", "structure"])["seed"].transform("size") > 2]
        plainly = [part["validation"].corr(part["score"], method="spearman") for _, part in table.groupby("task")]
        kinds = table.groupby(["task", "structure"])
        drop, score = (
            (table[part] - kinds[part].transform("mean")).rank().to_numpy() for part in ("validation", "score")
        )
        within, drawn, order = np.corrcoef(drop, score)[0, 1], [], np.arange(len(table))
        for _ in range(2000):
            for members in kinds.indices.values():
                order[members] = rng.permutation(members)
            drawn.append(np.corrcoef(drop, score[order])[0, 1])
        p = (1 + (np.abs(drawn) >= abs(within)).sum()) / (1 + len(drawn))
        one, three = (best_of(table, k)["score"].mean() for k in (1, 3))
        numbers = [f"{value:.{digits}f}" for value, digits in ((np.mean(plainly), 2), (within, 2), (p, 4), (one, 3))]
        told.append([name, len(table), *numbers, f"{three:.3f}"])
    columns = ["study", "searches", "rank correlation", "within kinds", "p", "one search", "of three by its loss"]
    return pd.DataFrame(told, columns=columns)


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "ablation": ablation,
    "ablation differences": lambda: differences("ablation", "random 0.1%", "default 0.1%", budget=1351),
    "ablation agreement": lambda: agreement_table(*searches("ablation")),
    "ablation best of three": lambda: kept_best("ablation"),
    "encoder": lambda: score_table(rows("minilm"), summed("minilm")),
    "encoder differences": lambda: differences("minilm", "random 0.01%", "searched warm 0.01%"),
    "encoder agreement": lambda: agreement_table(*searches("minilm")),
    "mean": lambda: score_table(rows("pooling"), summed("pooling")),
    "mean differences": lambda: differences("pooling", "random 0.01%", "searched warm 0.01%"),
    "mean agreement": lambda: agreement_table(*searches("pooling")),
    "mean repeats": lambda: repeat_table(rows("pooling", repeats=True)),
    "heads": lambda: beside(("minilm", "pooling"), ("own pooler", "mean")),
    "recipes": lambda: beside(("pooling", "steady"), ("before", "steadier"), SAME),
    "others": lambda: score_table(rows("others"), summed("others")).drop(columns=["mean", "kept"]),
    "lora": lambda: score_table(rows("lora"), summed("lora")),
    "lora differences": lambda: differences("lora", "searched lora 0.01%", also=("steady", "uniform 0.01%")),
    "steady": lambda: score_table(rows("steady"), summed("steady")),
    "steady differences": lambda: differences("steady", "random 0.01%", "searched 0.01%"),
    "steady drops": lambda: drop_table(*searches("steady")),
    "drops": drops,
    "steady agreement": lambda: agreement_table(*searches("steady")),
    "steady repeats": lambda: repeat_table(rows("steady", repeats=True)),
    "steady threes": threes,
    "steady best of three": lambda: kept_best("steady", tasks=True),
    "budgets": lambda: score_table(rows("budgets"), summed("budgets")),
    "budgets middle": lambda: differences("budgets", "random 0.04%", "searched 0.04%", budget=9085),
    "budgets large": lambda: differences("budgets", "random 0.1%", "searched 0.1%", budget=22713),
    "pocket differences": lambda: differences("pocket", "random 0.1%", "searched 0.1%", budget=1351),
    "pocket": lambda: score_table(rows("pocket"), summed("pocket")),
}


@cache
def table_text(name: str) -> str:
    """A table as Markdown."""
    return as_text(TABLES[name]())


def filled(text: str) -> str:
    """The text with all its tables written again."""
    return BLOCK.sub(lambda block: f"{block[1]}{table_text(block[2])}\n{block[4]}", text)


if __name__ == "__main__":
    path = HERE / "RESULTS.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
