"""Write the tables, the numbers in the text and the figures of RESULTS.md from the archived rows beside it.

    python data/runs/results.py

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``, a number between ``<!--=NAME-->`` and ``<!--/-->``,
here and in the project's README. The text around them is written by hand; a test compares all of it with the rows.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image

from s3pet.plots import figure_style, plot_differences, plot_overlap, plot_ranking, plot_transfer, save_figure
from s3pet.plots.intervals import mean_interval
from s3pet.studies.report import as_text, finished_searches
from s3pet.studies.statistics import holm, over_tasks, permutation_test, summary
from s3pet.studies.validation import choose_lr, keep_best
from s3pet.transfer import agreement

HERE = Path(__file__).resolve().parent
PAGES = (HERE / "RESULTS.md", HERE.parents[1] / "README.md")
TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"<!--=([^ >]+)-->[^<]*<!--/-->")
TASKS = {"qnli": "QNLI", "sst2": "SST-2", "stsb": "STS-B"}  # of MiniLM: those on which structures differ
FORMS = {"difference": "+.3f", "kept": ".0%", "overlap": ".2f", "overlap_other": ".2f", "chance": ".2f"}
FORMS |= {"rank": ".2f", "rank_other": ".2f", "searches": ".0f", "pairs": ".0f", "cost": ".1f"}


@cache
def rows(study: str, file: str = "rows") -> pd.DataFrame:
    """The archived rows of a study; of `minilm`, those of the tasks that are shown."""
    table = pd.read_parquet(HERE / study / f"{file}.parquet")
    return table[table["task"].isin(TASKS)] if study == "minilm" else table


def once(study: str) -> pd.DataFrame:
    """The rows without repeated retrainings."""
    return rows(study)[lambda table: ~table["repeat"]]


def text(name: str, value: float) -> str:
    """A number of the column ``name`` as it is printed; p never as a power of ten."""
    if name.startswith("p_") or name == "p":
        return np.format_float_positional(value, 2, fractional=False, trim="-")
    return format(value, FORMS.get(name, ".3f")).replace("-0.000", "+0.000") if np.isfinite(value) else "–"


def cell(row: Any, difference: bool = True) -> str:
    """A difference with its interval, p (the smallest possible p) and, for a mean over tasks, p after Holm."""
    half = (row["difference_high"] - row["difference_low"]) / 2 if difference else np.nan
    phrase = f"{text('difference', row['difference'])}±{half:.3f} " if difference else ""
    phrase += f"p={text('p', row['p'])} ({text('p_floor', row['p_floor'])})"
    return phrase + (f" Holm={text('p_holm', row['p_holm'])}" if np.isfinite(row["p_holm"]) else "")


def compare(table: pd.DataFrame, one: str, other: str, **places: Any) -> pd.DataFrame:
    """The differences one − other of each task that both have, and of the mean over these tasks, paired by seed."""
    both = table[table["structure"].isin([one, other])]
    both = both[both.groupby("task")["structure"].transform("nunique").eq(2)]
    differences = pd.concat([summary(both, baseline=other), over_tasks(both, baseline=other)])
    scores = differences[differences["structure"].eq(other)].set_index("task")["score"]
    return differences[differences["structure"].eq(one)].assign(
        other_score=lambda part: part["task"].map(scores), **places
    )


def corrected(differences: pd.DataFrame) -> pd.DataFrame:
    """Holm's correction over the means over tasks: the family of a question. ``p_every`` is over all rows instead."""
    differences = differences.reset_index(drop=True).assign(p_every=holm(differences["p"]))
    return differences.assign(p_holm=holm(differences["p"].where(differences["task"].str.startswith("mean"))))


def means(differences: pd.DataFrame) -> pd.DataFrame:
    return differences[differences["task"].str.startswith("mean")].set_index("at")


RULES = {"random": "random", "even": "even LoRA", "norms": "five norms"}  # what needs no search


@cache
def worth() -> pd.DataFrame:
    """Searched structures beside those that need no search, at each budget."""
    steady, budgets, every = once("steady"), once("budgets"), rows("steady", "every_rate")
    one, rule = "searched 0.01%", {"random": "random {}", "even": "uniform {}"}
    three = keep_best(steady[steady["structure"].isin([one, "uniform 0.01%"])], 3)
    one_rate = choose_lr(every[every["structure"].eq(one) & every["seed"].eq(every["index"])])
    cases = [
        ("0.002%", steady, "searched 0.002%", {"random": "random {}"}),
        ("0.01%", steady, one, rule | {"norms": "norms", "adalora": "adalora {}"}),
        ("0.01%×3", three, one, {"even": "uniform 0.01%"}),
        ("0.04%", budgets, "searched 0.04%", rule),
        ("0.1%", budgets, "searched large 0.1%", rule),
        ("one-rate", pd.concat([one_rate, steady[steady["structure"].ne(one)]]), one, {"even": "uniform 0.01%"}),
    ]
    parts = [
        compare(table, searched, name.format(at), at=at, against=against)
        for at, table, searched, others in cases
        for against, name in others.items()
    ]
    return corrected(pd.concat(parts))


def worth_table() -> pd.DataFrame:
    differences, lines = worth()[lambda table: table["at"].ne("one-rate")], {}
    for row in differences[~(differences["at"].str.contains("×") & differences["task"].isin(TASKS))].to_dict("records"):
        task = TASKS.get(row["task"], "mean")
        if row["against"] in RULES:
            line = lines.setdefault((row["at"], task), {"budget": row["at"], "task": task})
            line["searched"] = text("score", row["score"])
            line[RULES[row["against"]]] = f"{text('score', row['other_score'])}: {cell(row)}"
    return pd.DataFrame(lines.values()).fillna("")


def worth_figure() -> Any:
    differences = worth()[lambda table: table["against"].isin(RULES) & table["at"].str.endswith("%")]
    kinds = differences["against"].map({"random": "random", "even": "heuristic", "norms": "manual"})
    names = "searched − " + differences["against"].map(RULES)
    return plot_differences(in_words(differences).assign(kind=kinds, structure=names), by="at", p="p")


def in_words(differences: pd.DataFrame) -> pd.DataFrame:
    """Tasks as people write them, and no baseline: it is in the names."""
    tasks = differences["task"].replace(TASKS).str.replace("mean of.*", "mean of tasks", regex=True)
    return differences.assign(task=tasks, baseline=differences["structure"])


WAYS = {  # ways of choosing a structure; those without a search first
    "random": "random", "covered": "covered", "one-pass gradient": "one-pass gradient",
    "even LoRA": "even LoRA", "even LoRA without inert places": "even, inert out", "AdaLoRA": "AdaLoRA",
    "brief search": "search, 100 steps", "search": "search (default)",
    "race of 8 covered": "race of 8 covered", "race of 16 random and covered": "race of 16, both",
    "race of 12 after a brief search": "race of 12 after 100 steps",
    "race of 8 after a search": "race of 8 after search",
}  # fmt: skip
PAIRS = [  # what is compared: each way that decides something with the rule, and races with and without gates
    *((name, "even LoRA") for name in [*WAYS][5:]),
    *[("search", "covered"), ("race of 8 after a search", "race of 8 covered")],
    *[("race of 12 after a brief search", "search"), ("race of 16 random and covered", "search")],
]


@cache
def tried(backbone: str = "pocket") -> pd.DataFrame:
    """The rows of ``methods.csv`` on a backbone, without dropout, as rows of a study."""
    table = pd.read_csv(HERE / "methods.csv").query("backbone == @backbone")
    table = table.rename(columns={"method": "structure", "budget": "share"})
    rows_used = table["rows_searched"] + table["rows_trained"]
    return table.assign(index=0, kind="way of choosing", n_params=0, rows_used=rows_used)


@cache
def ways() -> pd.DataFrame:
    """The pairs, at each budget."""
    parts = [
        compare(table, one, other, at=f"{budget}/{one}", against=other)
        for budget, table in tried().groupby("share", sort=False)
        for one, other in PAIRS
    ]
    return corrected(pd.concat(parts))


def ways_table() -> pd.DataFrame:
    table, differences, lines = tried()[lambda rows: rows["share"].eq("0.1%")], means(ways()), []
    for name, phrase in WAYS.items():
        part = table[table["structure"].eq(name)]
        line = {"choice": phrase, "rows": f"{part['rows_used'].mean():,.0f}"}
        by_task = part.groupby("task")["score"].mean()
        line |= {"number": text("score", by_task["number"]), "mean of three": text("score", by_task.mean())}
        against = differences.query("at == '0.1%/' + @name and against == 'even LoRA'")
        line["− even LoRA"] = cell(against.iloc[0]) if len(against) else ""
        lines.append(line)
    return pd.DataFrame(lines)


def ways_figure() -> Any:
    differences = ways()[lambda table: table["against"].eq("even LoRA") & table["at"].str.startswith("0.1%")]
    names = differences["at"].str.partition("/")[2]
    kinds = names.map(lambda name: "searched" if "search" in name else "adalora" if name == "AdaLoRA" else "random")
    return plot_ranking(differences.assign(structure=names.map(WAYS), baseline="even LoRA", kind=kinds))


SEARCHES = {
    ("ablation", "long"): "pocket, paper, 300 steps", ("ablation", "shared warm"): "pocket, one size",
    ("pooling", "warm"): "MiniLM, 0.04%", ("steady", "small"): "MiniLM, 0.01%",
}  # fmt: skip


@cache
def agreed() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Agreement of searches of the same and of different tasks: means by search, and all pairs.

    p: two-sided, of exchanging the searches between the tasks.
    """
    every, lines, rng, draws = [], [], np.random.default_rng(0), 2000
    for (study, search), name in SEARCHES.items():
        runs = [run for _, _, group in finished_searches(HERE / study / "searches", [search]) for run in group]
        pairs = agreement(runs, draws=20).assign(name=name)
        tasks, (first, second) = np.array([run.config["task"] for run in runs]), np.triu_indices(len(runs), 1)
        orders = np.array([tasks, *(rng.permutation(tasks) for _ in range(draws))])
        weights = orders[:, first] == orders[:, second]  # [draws + 1, pairs]: of the same task
        weights = weights / weights.sum(1, keepdims=True) - ~weights / (~weights).sum(1, keepdims=True)
        null = np.round(weights @ pairs["spearman"].to_numpy(), 12)
        p = min(1.0, 2 * min(np.mean(null >= null[0]), np.mean(null <= null[0])))
        same, other = (pairs[pairs["group"].eq(f"{group} task")].mean(numeric_only=True) for group in ("same", "other"))
        line = {"at": f"{study}/{search}", "task": "mean", "search": name, "searches": len(runs)}
        line |= {"overlap": same["jaccard"], "overlap_other": other["jaccard"], "chance": same["jaccard_chance"]}
        line |= {"rank": same["spearman"], "rank_other": other["spearman"], "p": p, "p_floor": 2 / (draws + 1)}
        lines.append(line)
        every.append(pairs.sort_values("group", ascending=False, kind="stable"))  # "same task" first
    return corrected(pd.DataFrame(lines)), pd.concat(every)


def agreed_table() -> pd.DataFrame:
    differences = agreed()[0]
    phrase = differences.apply(lambda row: cell(row, difference=False), axis=1)
    names = ["overlap, same task", "other tasks", "chance", "gates, same task", "other tasks "]
    columns = ["overlap", "overlap_other", "chance", "rank", "rank_other"]
    table = differences[columns].map("{:.2f}".format).set_axis(names, axis=1)
    return pd.concat([differences[["search", "searches"]], table, phrase.rename("p")], axis=1)


def agreed_figure() -> Any:
    pairs = agreed()[1][lambda table: table["name"].ne("MiniLM, 0.04%")]
    pairs = pairs.assign(group=pairs["name"] + ": " + pairs["group"])
    ax = plt.subplots(figsize=(6.9, 3.4), layout="constrained")[1]
    return plot_overlap(pairs, value="spearman", by="group", ax=ax)


CHANGES = {  # those of the recipe first
    "rate": "rate: chosen − next", "pooling": "pooling: mean − own", "warm-up": "rising rate − constant",
    "random": "another random structure", "searched": "another searched structure", "retraining": "another seed",
}  # fmt: skip


@cache
def changes() -> pd.DataFrame:
    """Pairs of runs that differ in one thing: ``at`` (which), ``task`` and the ``change`` of the test score."""
    key = ["task", "structure", "index", "seed"]
    mean, steady, every = once("pooling"), once("steady"), rows("steady", "every_rate")
    grid = sorted(every.loc[every["kind"].ne("reference"), "lr"].unique())
    near = steady.merge(every, on=key).query("lr_x in @grid and lr_y in @grid")
    near = near[near["lr_x"].map(grid.index).sub(near["lr_y"].map(grid.index)).abs().eq(1)]
    near = near.groupby([*key, "kind_x"], as_index=False)[["score_x", "score_y"]].mean()
    renamed = mean.replace({"structure": {"searched warm 0.01%": "searched plain 0.01%"}})
    parts = {"rate": near, "pooling": mean.merge(once("minilm"), on=key)}
    parts["warm-up"] = steady.merge(renamed, on=key)
    for name in ("random", "searched"):
        table = steady[steady["structure"].eq(f"{name} 0.01%")]
        parts[name] = table.merge(table, on="task").query("index_x < index_y")
    repeated = rows("steady").groupby(key[:3]).head(3)
    parts["retraining"] = repeated.merge(repeated, on=key[:3]).query("seed_x < seed_y")
    parts = {name: part[part["kind_x"].ne("reference")] for name, part in parts.items()}
    return pd.concat([part.assign(at=name, change=part["score_x"] - part["score_y"]) for name, part in parts.items()])


@cache
def recipe() -> pd.DataFrame:
    """Mean absolute change by what differs; for the recipe also the mean change and its test."""
    lines = []
    for at, part in changes().groupby("at", sort=False):
        by_task, sizes = part.groupby("task")["change"], part["change"].abs().groupby(part["task"]).mean()
        line = {"at": at, "task": "mean", "size": sizes.mean(), **sizes, "pairs": len(part), "p": np.nan}
        if at in [*CHANGES][:3]:
            samples = [values.to_numpy() for _, values in by_task]
            line |= dict(zip(("difference_low", "difference_high"), mean_interval(samples), strict=True))
            line |= dict(zip(("p", "p_floor"), permutation_test(samples), strict=True))
            line["difference"] = by_task.mean().mean()
        lines.append(line)
    return corrected(pd.DataFrame(lines))


def recipe_table() -> pd.DataFrame:
    differences = recipe()
    table = differences[[*TASKS, "size"]].map("{:.3f}".format).set_axis([*TASKS.values(), "mean"], axis=1)
    phrase = [cell(row) if np.isfinite(row["p"]) else "" for row in differences.to_dict("records")]
    return pd.concat([differences["at"].map(CHANGES).rename("differs in"), differences["pairs"], table], axis=1).assign(
        change=phrase
    )


def recipe_figure() -> Any:
    differences = changes().assign(
        size=lambda table: table["change"].abs(), name=lambda table: table["at"].map(CHANGES)
    )
    ax = plt.subplots(figsize=(5.6, 3.0), layout="constrained")[1]
    look = {
        "showfliers": False,
        "whis": (5, 95),
        "showmeans": True,
        "linewidth": 0.8,
        "palette": ["#4D4D4D", "#999999", "#D9D9D9"],
    }
    look["meanprops"] = {"marker": "|", "markeredgecolor": "black", "markersize": 7}
    differences = differences.assign(task=differences["task"].replace(TASKS))
    sns.boxplot(differences, x="size", y="name", hue="task", gap=0.15, ax=ax, **look)
    ax.set(xlabel="absolute change of the test score", ylabel="")
    return ax


CARRIED = {
    "random 0.01%": "random, 0.01%", "carried": "another task's, 0.01%", "searched 0.01%": "searched, 0.01%",
    "lnfit": "LNFit, 0.022%", "lora_qv": "LoRA-qv, 0.041%", "random 0.1%": "random, 0.1%",
    "searched large 0.1%": "searched, 0.1%",
}  # fmt: skip


@cache
def transfer() -> tuple[pd.DataFrame, pd.DataFrame]:
    """All beside fine-tuning, and carried structures beside own and random ones; and the rows compared."""
    table = pd.concat([once("steady"), once("budgets").query("structure in @CARRIED and budget == 22713")])
    source = table["source"].where(table["kind"].eq("transfer"))
    index = table["index"] + 10 * source.map({task: k for k, task in enumerate(TASKS, 1)}).fillna(0).astype(int)
    table = table.assign(index=index, structure=table["structure"].mask(source.notna(), "carried"), source=source)
    parts = [compare(table, name, "full", at=name) for name in CARRIED]
    parts = [part.assign(kept=part["score"] / part["other_score"]) for part in parts]
    parts += [compare(table, "carried", f"{kind} 0.01%", at=f"carried-{kind}") for kind in ("searched", "random")]
    return corrected(pd.concat(parts)), table


def transfer_table() -> pd.DataFrame:
    differences, table = transfer()
    scores = table.groupby(["structure", "task"])["score"].mean().unstack().loc[[*CARRIED, "full"], [*TASKS]]
    lines = scores.map(lambda score: text("score", score)).set_axis([*TASKS.values()], axis=1)
    lines["− fine-tuning"] = means(differences).loc[[*CARRIED]].apply(cell, axis=1)
    lines["share"] = means(differences).loc[[*CARRIED], "kept"].map("{:.0%}".format)
    return lines.fillna("").rename(CARRIED | {"full": "fine-tuning"}).rename_axis("structure").reset_index()


def transfer_figure() -> Any:
    table = transfer()[1].query("structure in ['searched 0.01%', 'random 0.01%', 'full', 'carried']")
    own = table["structure"].replace({"random 0.01%": "random", "full": "fine-tuning"})
    source = table["source"].fillna(own.mask(own.eq("searched 0.01%"), table["task"])).replace(TASKS)
    return plot_transfer(table.assign(source=source, target=table["task"].replace(TASKS), budget=0))


QUESTIONS = {  # with the format in which the figure is small
    "worth": (worth_table, worth_figure, "svg"), "ways": (ways_table, ways_figure, "svg"),
    "agreed": (agreed_table, agreed_figure, "png"), "recipe": (recipe_table, recipe_figure, "svg"),
    "transfer": (transfer_table, transfer_figure, "png"),
}  # fmt: skip


@cache
def numbers() -> dict[str, str]:
    """Every number that a text may use, as printed: question/row/task/column, and a few more."""
    differences, values = {"worth": worth(), "ways": ways(), "agreed": agreed()[0], "recipe": recipe()}, {}
    for question, table in (differences | {"transfer": transfer()[0]}).items():
        for row in table.to_dict("records"):
            place = [question, row["at"], *([row["against"]] if "against" in row else []), row["task"].split()[0]]
            for column, value in row.items():
                if isinstance(value, (int, float)) and np.isfinite(value):
                    values["/".join([*place, column]).replace(" ", "-")] = text(column, value)
        values[f"{question}/family"] = str(table["p_holm"].count())
    steady = once("steady").groupby("structure")[["score", "search_seconds", "seconds"]].mean().T
    real = tried("minilm")
    values["minilm/pairs"] = str(len(real[["task", "seed"]].drop_duplicates()))
    values["minilm/tasks"] = str(real["task"].nunique())
    for name, score in real.groupby(["structure", "task"])["score"].mean().groupby("structure").mean().items():
        values[f"minilm/{name}".replace(" ", "-")] = text("score", score)
        if name != "even LoRA":
            row = compare(real, str(name), "even LoRA").iloc[-1]  # the mean over tasks
            for column in ("difference", "p", "p_floor"):
                values[f"minilm/{name}/{column}".replace(" ", "-")] = text(column, row[column])
    values["cost"] = text("cost", steady["searched 0.01%"]["search_seconds"] / steady["searched 0.01%"]["seconds"])
    return values


def filled(page: str) -> str:
    """A page with all its tables and numbers written again; KeyError for a name that does not exist."""
    page = TABLE.sub(lambda block: f"{block[1]}{as_text(QUESTIONS[block[2]][0]())}\n{block[3]}", page)
    return NUMBER.sub(lambda number: f"<!--={number[1]}-->{numbers()[number[1]]}<!--/-->", page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    with figure_style("paper"):
        for name, (_, draw, form) in QUESTIONS.items():
            (path,) = save_figure(draw(), HERE / "figures" / name, [form])
            if form == "png":
                Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
