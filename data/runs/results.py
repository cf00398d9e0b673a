"""Write the tables of RESULTS.md anew, from the rows of the studies beside it; the words between them are ours.

    python data/runs/results.py

A table stands between ``<!-- its name -->`` and ``<!-- end -->``. A test compares file and rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from s3pet.studies.report import agreement_table, as_text, best_table, drop_table, repeat_table, score_table, summarize
from s3pet.studies.statistics import over_tasks
from s3pet.studies.study import Study
from s3pet.studies.validation import best_of, keep_best

HERE = Path(__file__).resolve().parent
# tasks that are shown: those that the encoder learns, those that were run
SHOWN = {"minilm": ("sst2", "stsb", "qnli"), "budgets": ("stsb", "sst2")}
SAME = {"searched warm 0.01%": "searched plain 0.01%"}  # structures of "pooling" that "steady" calls otherwise
BLOCK = re.compile(r"(<!-- (?!end)([a-z ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@cache
def study(name: str) -> Study:
    """A study of this folder, with those of its tasks that are shown."""
    found = Study.load(HERE / f"{name}.yaml")
    return found.only(tasks=SHOWN[name]) if name in SHOWN else found


@cache
def summed(name: str) -> pd.DataFrame:
    """The summary of a study."""
    return summarize(study(name))


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
    table = score_table(study("ablation"), summed("ablation")).set_index("structure")
    return named(table.loc[mean_over_tasks("ablation").index].drop(columns=["parameters", "kept"], errors="ignore"))


def kept_best(name: str, *, tasks: bool = False) -> pd.DataFrame:
    """One structure, and of three the one that validation likes best.

    Args:
        name: of the study.
        tasks: also the best of three on each task.
    """
    best = best_table(study(name)).set_index("structure")
    one = mean_over_tasks(name)["score"].map("{:.3f}".format)
    parts = {task: best[task] for task in study(name).tasks} if tasks else {}
    table = pd.DataFrame({"one": one, **parts, "best of three": best["mean"][best["mean"] != ""]})
    table = table.rename_axis("structure").dropna()
    return named(table.sort_values("best of three", ascending=False, kind="stable"))


def differences(name: str, *baselines: str, budget: int = 2271, also: tuple[str, str] | None = None) -> pd.DataFrame:
    """Differences of the mean over tasks to some baselines, of what was made for a budget and ran on all tasks.

    Args:
        name: of the study. baselines: structures. budget: parameters.
        also: another study and a structure of it, to compare, too.
    """
    rows = study(name).chosen()
    if also:
        other = study(also[0]).chosen()
        rows = pd.concat([rows, other[other["structure"].eq(also[1]) & other["task"].isin(study(name).tasks)]])
    rows = rows[rows["budget"].eq(budget)]
    rows = rows[rows["structure"].map(rows.groupby("structure")["task"].nunique()).eq(len(study(name).tasks))]
    columns, titles = [], []
    for baseline in baselines:
        found = over_tasks(rows, baseline=baseline).set_index("structure")
        columns += [found["pairs"].astype(object).fillna("–"), found["difference"].map("{:+.3f}".format)]
        columns += [found[name].map("{:.2g}".format) for name in ("p", "p_holm")]
        titles += ["pairs", f"− {baseline}", "p", "Holm"]
    table = pd.concat(columns, axis=1).set_axis(titles, axis=1).loc[found.index]
    return named(table.replace({"nan": "–", "+nan": "–"}))


def threes() -> pd.DataFrame:
    """What three searches are worth: averaged, or the best of three by validation; beside three of the rule."""
    rows = study("steady").chosen()
    rows = rows[rows["budget"].eq(2271)]
    best = keep_best(rows[rows["entry"].isin(["searched", "uniform"])], 3)
    best = best.assign(structure=best["entry"] + ", best of three")
    both = pd.concat([best, rows[rows["entry"].eq("averaged")].assign(structure="searched, average of three")])
    scores = both.groupby(["structure", "task"])["score"].agg(["mean", "std", "size"])
    told = [f"{row.mean:.3f} ± {row.std:.3f} ({row.size})" for row in scores.itertuples(index=False, name="Row")]
    told = pd.Series(told, scores.index).unstack("task")[[*study("steady").tasks]]
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
    one, other = (study(name).chosen() for name in names)
    one = one.assign(structure=one["structure"].replace(renamed or {}))
    both, cells = one.merge(other, on=["task", "structure", "index", "seed"]), {}
    for (task, structure), rows in both.groupby(["task", "structure"], sort=False):
        told = [f"{rows[side].mean():.3f} ± {rows[side].std():.3f} ({len(rows)})" for side in ("score_x", "score_y")]
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
        rows, of = study(name).chosen(), study(name).structures
        plain = rows["entry"].map(lambda entry, of=of: not {"per_param", "halving"} & set(of[entry]))
        rows = rows[rows["kind"].eq("searched") & rows["budget"].eq(budget) & plain].reset_index(drop=True)
        places = zip(rows["task"], rows["entry"], rows["index"], strict=True)
        found = [study(name).result(task, of[entry]["search"], index) for task, entry, index in places]
        rows = rows.assign(validation=[result.loss_drop for result in found])  # in place of a validation score
        rows = rows[rows.groupby(["task", "structure"])["seed"].transform("size") > 2]
        plainly = [part["validation"].corr(part["score"], method="spearman") for _, part in rows.groupby("task")]
        kinds = rows.groupby(["task", "structure"])
        drop, score = (
            (rows[part] - kinds[part].transform("mean")).rank().to_numpy() for part in ("validation", "score")
        )
        within, drawn, order = np.corrcoef(drop, score)[0, 1], [], np.arange(len(rows))
        for _ in range(2000):
            for members in kinds.indices.values():
                order[members] = rng.permutation(members)
            drawn.append(np.corrcoef(drop, score[order])[0, 1])
        p = (1 + (np.abs(drawn) >= abs(within)).sum()) / (1 + len(drawn))
        one, three = (best_of(rows, k)["score"].mean() for k in (1, 3))
        numbers = [f"{value:.{digits}f}" for value, digits in ((np.mean(plainly), 2), (within, 2), (p, 4), (one, 3))]
        told.append([name, len(rows), *numbers, f"{three:.3f}"])
    columns = ["study", "searches", "rank correlation", "within kinds", "p", "one search", "of three by its loss"]
    return pd.DataFrame(told, columns=columns)


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "ablation": ablation,
    "ablation differences": lambda: differences("ablation", "random 0.1%", "default 0.1%", budget=1351),
    "ablation agreement": lambda: agreement_table(study("ablation")),
    "ablation best of three": lambda: kept_best("ablation"),
    "encoder": lambda: score_table(study("minilm"), summed("minilm")),
    "encoder differences": lambda: differences("minilm", "random 0.01%", "searched warm 0.01%"),
    "encoder agreement": lambda: agreement_table(study("minilm")),
    "mean": lambda: score_table(study("pooling"), summed("pooling")),
    "mean differences": lambda: differences("pooling", "random 0.01%", "searched warm 0.01%"),
    "mean agreement": lambda: agreement_table(study("pooling")),
    "mean repeats": lambda: repeat_table(study("pooling")),
    "heads": lambda: beside(("minilm", "pooling"), ("own pooler", "mean")),
    "recipes": lambda: beside(("pooling", "steady"), ("before", "steadier"), SAME),
    "others": lambda: score_table(study("others"), summed("others")).drop(columns=["mean", "kept"]),
    "lora": lambda: score_table(study("lora"), summed("lora")),
    "lora differences": lambda: differences("lora", "searched lora 0.01%", also=("steady", "uniform 0.01%")),
    "steady": lambda: score_table(study("steady"), summed("steady")),
    "steady differences": lambda: differences("steady", "random 0.01%", "searched 0.01%"),
    "steady drops": lambda: drop_table(study("steady")),
    "drops": drops,
    "steady agreement": lambda: agreement_table(study("steady")),
    "steady repeats": lambda: repeat_table(study("steady")),
    "steady threes": threes,
    "steady best of three": lambda: kept_best("steady", tasks=True),
    "budgets": lambda: score_table(study("budgets"), summed("budgets")),
    "budgets middle": lambda: differences("budgets", "random 0.04%", "searched 0.04%", budget=9085),
    "budgets large": lambda: differences("budgets", "random 0.1%", "searched 0.1%", budget=22713),
    "pocket differences": lambda: differences("pocket", "random 0.1%", "searched 0.1%", budget=1351),
    "pocket": lambda: score_table(study("pocket"), summed("pocket")),
}


def filled(text: str) -> str:
    """The text with all its tables made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{as_text(TABLES[block[2]]())}\n{block[4]}", text)


if __name__ == "__main__":
    path = HERE / "RESULTS.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
