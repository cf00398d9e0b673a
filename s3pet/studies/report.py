"""A study as people read it: what is done, the table of scores, the figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3pet.errors import StudyError
from s3pet.result import SearchResult, load_run
from s3pet.studies.statistics import over_tasks, summary
from s3pet.studies.study import KINDS, Study
from s3pet.studies.validation import best_of
from s3pet.studies.variance import variance_components
from s3pet.transfer import agreement

if TYPE_CHECKING:
    import pandas as pd

KEPT = 3  # runs of which a report keeps the best


def random_baselines(study: Study) -> dict[str, str]:
    """Every structure that is made for a budget → the random structures of that budget, if the study has any."""
    random = [name for name, entry in study.structures.items() if entry["kind"] == "random" and "halving" not in entry]
    found = {}
    for row in study.rows():
        if random and row["budget"] is not None and row["entry"] != random[0]:
            found[row["structure"]] = f"{random[0]} {row['budget']}"
    return found


def summarize(study: Study, **options: Any) -> pd.DataFrame:
    """The summary of a study's chosen rows, task by task and over all tasks that every structure has.

    Args:
        study: what was declared; its finished rows are read.
        **options: of :func:`s3pet.studies.statistics.summary`; ``baseline`` defaults to random structures of the same budget.

    Raises:
        StudyError: no structure has been run at all its learning rates.
    """
    import pandas as pd

    table = study.chosen()
    if not len(table):
        raise StudyError(f"nothing of {study.path} is finished; run it: python -m s3pet study run {study.path}.yaml")
    here = set(table["structure"])
    known = {one: other for one, other in random_baselines(study).items() if {one, other} <= here}
    options = {"baseline": known or None, **options}
    found = [summary(table, **options)]
    everywhere = table.groupby("structure")["task"].nunique().eq(table["task"].nunique())
    shared = table[table["structure"].map(everywhere)]
    if table["task"].nunique() > 1 and len(shared):
        baseline, here = options["baseline"], set(shared["structure"])
        if isinstance(baseline, dict):
            baseline = {one: other for one, other in baseline.items() if {one, other} <= here} or None
        elif baseline not in here:  # it lacks a task, and has differences on the others only
            baseline = None
        found.append(over_tasks(shared, **{**options, "baseline": baseline}))
    return pd.concat(found, ignore_index=True)


def score_table(study: Study, found: pd.DataFrame) -> pd.DataFrame:
    """Scores as a reader wants them: a row per structure, a column per task with mean ± standard deviation (runs).

    Args:
        study: for the order of tasks and structures.
        found: what `summarize` gives.

    Returns:
        ``structure, parameters``, the tasks, and where a structure has all tasks ``mean`` and ``kept`` (of "full").
    """
    import pandas as pd

    tasks = [name for name in study.tasks if name in set(found["task"])]
    cells = {}
    for row in found.to_dict("records"):
        spread = "" if pd.isna(row["spread"]) else f" ± {row['spread']:.3f}"
        cells[row["structure"], row["task"]] = f"{row['score']:.3f}{spread} ({row['runs']})"
    order = [name for name in dict.fromkeys(row["structure"] for row in study.rows()) if name in {*found["structure"]}]
    means = found[found["task"].str.startswith("mean of")].set_index("structure")
    sizes = found.groupby("structure")["n_params"].mean()
    table = pd.DataFrame({"structure": order, "parameters": [f"{sizes[name]:,.0f}" for name in order]})
    for task in tasks:
        table[task] = [cells.get((name, task), "") for name in order]
    if len(means) and len(tasks) > 1:
        table["mean"] = [f"{means['score'][name]:.3f}" if name in means.index else "" for name in order]
        kept = means["kept"].reindex(order)
        table["kept"] = ["" if pd.isna(share) else f"{share:.1%}" for share in kept]
    return table


def difference_table(found: pd.DataFrame) -> pd.DataFrame:
    """The differences of a summary with their intervals and tests, as text; empty without any."""
    if "difference" not in found:
        return found.iloc[:0, :0]
    found = found[found["difference"].notna()]
    table = found[["task", "structure", "baseline"]].copy()
    for name in ("difference", "difference_low", "difference_high"):
        table[name.removeprefix("difference_")] = found[name].map("{:+.3f}".format)
    table["pairs"] = found["pairs"]
    for name in ("p", "p_floor", "p_holm"):
        table[name] = found[name].map("{:.3g}".format)
    return table


def best_table(study: Study, k: int = 3) -> pd.DataFrame:
    """What to expect of making k runs of a structure and keeping the one that validation likes best.

    Args:
        study: its finished rows are read.
        k: see :func:`s3pet.studies.validation.best_of`.

    Returns:
        ``structure``, a column per task, and ``mean`` where a structure has all tasks; empty without k runs of any.
    """
    import pandas as pd

    found = best_of(study.chosen(), k)
    order = [name for name in dict.fromkeys(row["structure"] for row in study.rows()) if name in {*found["structure"]}]
    scores = found.pivot(index="structure", columns="task", values="score").reindex(index=order)
    table = scores[[name for name in study.tasks if name in scores]].copy()
    if table.shape[1] > 1:
        table["mean"] = table.mean(axis=1, skipna=False)
    text = table.map(lambda score: "" if pd.isna(score) else f"{score:.3f}")
    return text.rename_axis(columns=None).reset_index()


def agreement_table(study: Study, draws: int = 100) -> pd.DataFrame:
    """How far the finished searches of a task agree, for each declared search: means over pairs of seeds and tasks.

    Args:
        study: the study.
        draws: random structures per pair, for the level of chance.

    Returns:
        ``search, searches, overlap`` (Jaccard), ``chance, rank correlation`` (of all gates), ``within kinds`` (of ranks
        within module types); a row per search with two seeds or more on some task.
    """
    import pandas as pd

    rows = []
    for search in study.searches:
        pairs, n = [], 0
        for task in study.tasks:
            runs = _finished(study, task, search)
            n += len(runs)
            if len(runs) > 1:
                inner = agreement(runs, within="pet", draws=1)["spearman"]
                pairs.append(agreement(runs, draws=draws).assign(inner=inner))
        if pairs:
            means = pd.concat(pairs)[["jaccard", "jaccard_chance", "spearman", "inner"]].mean().map("{:.2f}".format)
            rows.append([search, n, *means])
    columns = ["search", "searches", "overlap", "chance", "rank correlation", "within kinds"]
    return pd.DataFrame(rows, columns=columns)


def drop_table(study: Study) -> pd.DataFrame:
    """How far the loss of the finished searches fell (:attr:`s3pet.result.SearchResult.loss_drop`), mean ± deviation.

    Args:
        study: the study.

    Returns:
        ``search``, and a column per task, with the number of searches; a row per search that was run.
    """
    import pandas as pd

    cells = {}
    for search in study.searches:
        for task in study.tasks:
            drops = pd.Series([run.loss_drop for run in _finished(study, task, search)], dtype="float64")
            if len(drops):
                spread = f" ± {drops.std():.3f}" if len(drops) > 1 else ""
                cells[search, task] = f"{drops.mean():.3f}{spread} ({len(drops)})"
    if not cells:
        return pd.DataFrame({"search": []})
    table = pd.Series(cells).unstack(sort=False).fillna("").reindex(columns=[*study.tasks], fill_value="")
    return table.rename_axis(index="search", columns=None).reset_index()


def _finished(study: Study, task: str, search: str) -> list[SearchResult]:
    """The searches of a task that are there, by seed."""
    return [load_run(path.parent) for path in sorted(study.folder(task, search, 0).parent.glob("*/config.json"))]


def repeat_table(study: Study) -> pd.DataFrame:
    """Is it the structure or the luck of its retraining? Where a study declares ``repeats``.

    Args:
        study: its finished rows are read.

    Returns:
        What :func:`s3pet.studies.variance.variance_components` says, as text: task by task, then over the tasks together;
        empty without any repeated run.
    """
    import pandas as pd

    rows = study.chosen(repeats=True)
    found = [variance_components(rows, by=by) for by in (("task", "structure"), ("structure",))]
    found[1] = found[1].assign(task="together")[found[0].columns]
    whole = found[0]["structure"].value_counts()
    found[1] = found[1][found[1]["structure"].map(whole).gt(1)]
    table = pd.concat([part for part in found if len(part)] or found[:1], ignore_index=True)
    for name, form in (("between", "{:.3f}"), ("within", "{:.3f}"), ("icc", "{:.2f}"), ("p", "{:.3g}")):
        table[name] = table[name].map(form.format)
    return table


def show(study: Study, *, baseline: str | None = None, markdown: bool = False) -> str:
    """What is done and what it says, as text or as Markdown.

    Args:
        study: the study.
        baseline: the structure all others are compared with; None: random structures of each one's budget.
        markdown: tables as Markdown.
    """
    plan, done = study.rows(), study.chosen(repeats=True)
    runs = len({(row["task"], row["structure"], row["index"], row["seed"]) for row in plan})
    parts = [f"{study.path.name}: {len(done)} of {runs} runs are done"]
    if len(done):
        found = summarize(study, **({"baseline": baseline} if baseline else {}))
        parts += ["Test scores: mean ± standard deviation (runs)", as_text(score_table(study, found), markdown)]
        tests, what = difference_table(found), baseline or "random structures of the same budget"
        if len(tests):
            what = f"Differences to {what}, paired by seed; exact permutation tests, two-sided"
            parts += [what, as_text(tests, markdown)]
        kept = best_table(study, KEPT)
        if len(kept):
            parts += [f"Test score expected of keeping the best of {KEPT} by validation", as_text(kept, markdown)]
        repeated = repeat_table(study)
        if len(repeated):
            what = "Standard deviations between structures, and between retrainings of one (icc: share of the first)"
            parts += [f"{what}; exchanged at random, p", as_text(repeated, markdown)]
    drops = drop_table(study)
    if len(drops):
        what = "How far the loss of the searches fell on held-out rows: mean ± standard deviation (searches)"
        parts += [what, as_text(drops, markdown)]
    agreed = agreement_table(study)
    if len(agreed):
        parts += [
            "Agreement of the searches of one task: means over pairs of seeds and tasks",
            as_text(agreed, markdown),
        ]
    return "\n\n".join(parts)


def as_text(table: pd.DataFrame, markdown: bool = True) -> str:
    """A table of texts as Markdown or in columns."""
    if not markdown:
        return table.to_string(index=False)
    rows = [list(map(str, table.columns)), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_figures(study: Study, out: Path | None = None) -> list[Path]:
    """Figures of all that is done: budget curves (where sizes differ), differences, rankings, repeats, transfers.

    Args:
        study: the study. out: folder; None: ``figures`` beside its rows.

    Returns:
        The PNG files; a PDF lies beside each.
    """
    from matplotlib import pyplot as plt

    from s3pet.plots import plot_budget_curve, plot_differences, plot_ranking, plot_repeats, plot_transfer, save_figure

    out, table, made = out or study.path / "figures", study.chosen(), []
    if not len(table):
        raise StudyError(f"nothing of {study.path} is finished; run it: python -m s3pet study run {study.path}.yaml")

    def save(ax: Any, name: str) -> None:
        save_figure(ax, out / name)
        plt.close(ax.figure)
        made.append(out / f"{name}.png")

    for task, rows in table.groupby("task", sort=False):
        kinds = rows["kind"].isin([name for name in KINDS if name not in ("transfer", "average")])
        rows = rows[kinds & ~((rows["kind"] == "reference") & (rows["structure"] == "zero-shot"))]
        if rows.loc[rows["kind"] != "reference", "n_params"].nunique() > 1:  # else there is no curve
            save(plot_budget_curve(rows, metric=str(rows["metric"].iloc[0]), title=str(task)), f"budget-{task}")
    found = summarize(study)
    if "difference" in found and found["difference"].notna().any():
        save(plot_differences(found[found["kind"] == "searched"])[0], "differences")
        for budget, rows in found[found["difference"].notna()].groupby("budget"):
            if rows["task"].nunique() == 1 or rows["task"].str.startswith("mean of ").any():
                save(plot_ranking(rows, title=f"{budget:,} parameters"), f"ranking-{budget}")
    again = study.chosen(repeats=True)
    again = again[again["entry"].map(lambda name: "repeats" in study.structures[name])]
    for task, rows in again.groupby("task", sort=False):
        if rows.groupby(["structure", "index"]).size().max() > 1:
            several = rows.groupby("structure")["index"].transform(lambda index: index.duplicated().any())
            save(plot_repeats(rows[several], metric=str(rows["metric"].iloc[0]), title=str(task)), f"repeats-{task}")
    for budget, rows in table[table["kind"] == "transfer"].groupby("budget"):
        save(plot_transfer(_transfers(study, table[table["budget"] == budget], rows)), f"transfer-{budget}")
    return made


def _transfers(study: Study, table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """What a transfer matrix shows at one budget: own searches, those of other tasks, averages, random structures."""
    import pandas as pd

    searches = {study.structures[name]["search"] for name in rows["entry"].unique()}
    mine = table["entry"].map(lambda name: study.structures[name].get("search") in searches)
    own = table[mine & table["kind"].eq("searched")]
    rest = table[table["kind"].isin(["average", "random"])]
    every = pd.concat([own.assign(source=own["task"]), rows, rest.assign(source=rest["entry"])])
    return every.assign(target=every["task"])
