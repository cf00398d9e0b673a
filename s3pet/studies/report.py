"""Tables of a study as people read them, and its figures.

The functions take tables: the rows of :meth:`s3pet.studies.Study.chosen` or of a saved ``rows.parquet``, or the folder
of a study's searches. Rows with ``repeat`` true are repeated retrainings; only `repeat_table` looks at them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt

from s3pet.errors import StudyError
from s3pet.plots import plot_budget_curve, plot_differences, plot_ranking, plot_repeats, plot_transfer, save_figure
from s3pet.result import SearchResult, load_run
from s3pet.studies.declaration import check_names
from s3pet.studies.statistics import over_tasks, summary, variance_components
from s3pet.studies.study import Study
from s3pet.studies.validation import best_of
from s3pet.transfer import agreement

BEST_OF = 3  # runs of which a report keeps the best


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without repeated retrainings."""
    return rows[~rows["repeat"].astype(bool)] if "repeat" in rows else rows


def random_baselines(rows: pd.DataFrame) -> dict[str, str]:
    """Map every structure that was made for a budget to the first random structure of that budget."""
    budgets = rows.dropna(subset="budget").drop_duplicates("structure")
    random = budgets[budgets["kind"] == "random"].drop_duplicates("budget")
    pairs = budgets.merge(random, on="budget", suffixes=("", "_random"))[["structure", "structure_random"]]
    return {one: other for one, other in pairs.to_numpy() if one not in set(random["structure"])}


def summarize(
    rows: pd.DataFrame, *, baseline: str | Mapping[str, str] | None = None, draws: int = 10_000
) -> pd.DataFrame:
    """Summarise rows task by task, and below that over all tasks, of structures that have all tasks.

    ``baseline`` and ``draws`` are those of :func:`s3pet.studies.statistics.summary`; without baseline, structures are
    compared with random ones of the same budget. Raises StudyError if there are no rows.
    """
    if not len(rows):
        raise StudyError("no structure is finished at all of its learning rates; run the study: s3pet study run FILE")
    rows = once(rows)
    baseline = random_baselines(rows) or None if baseline is None else baseline
    parts, n_tasks = [summary(rows, baseline=baseline, draws=draws)], rows["task"].nunique()
    shared = rows[rows["structure"].map(rows.groupby("structure")["task"].nunique()).eq(n_tasks)]
    if n_tasks > 1 and len(shared):
        names = set(shared["structure"])
        pairs = dict.fromkeys(names, baseline) if isinstance(baseline, str) else baseline or {}
        pairs = {one: other for one, other in pairs.items() if {one, other} <= names}
        parts.append(over_tasks(shared, baseline=pairs or None, draws=draws))
    return pd.concat(parts, ignore_index=True)


def score_table(rows: pd.DataFrame, summarized: pd.DataFrame | None = None) -> pd.DataFrame:
    """Make a table of scores: a row per structure, a column per task with mean ± standard deviation (runs).

    Structures that have all tasks also have ``mean`` and ``kept`` (of "full"). Tasks and structures are in the order of
    the rows; ``summarized`` is what `summarize` gives, or a part of it; None: that of all rows.
    """
    summarized = summarize(rows) if summarized is None else summarized
    spread = _text(summarized["spread"], " ± {:.3f}")
    diverged = summarized["diverged"].map(lambda count: f", {count} diverged" if count else "")
    cells = summarized["score"].map("{:.3f}".format) + spread + " (" + summarized["runs"].astype(str) + diverged + ")"
    by_task = summarized.assign(cell=cells).pivot(index="structure", columns="task", values="cell").fillna("")
    tasks, order = _in_order(rows, "task", by_task), _in_order(rows, "structure", by_task.index)
    sizes = _text(summarized.groupby("structure")["n_params"].mean(), "{:,.0f}")
    table = by_task.loc[order, tasks]
    table.insert(0, "parameters", sizes)
    means = summarized[summarized["task"].str.startswith("mean of")].set_index("structure")
    if len(means) and len(tasks) > 1:
        table["mean"] = _text(means["score"].reindex(order), "{:.3f}")
        table["kept"] = _text(means["kept"].reindex(order), "{:.1%}")
    return table.rename_axis(columns=None).reset_index()


def _text(numbers: pd.Series, form: str) -> pd.Series:
    """Numbers as text; empty for nan."""
    return numbers.map(form.format, na_action="ignore").astype(object).fillna("")


def _in_order(rows: pd.DataFrame, column: str, names: Collection[Any]) -> list[Any]:
    """Those of the names that a column of the rows has, in its order."""
    return [name for name in rows[column].unique() if name in names]


def difference_table(summarized: pd.DataFrame) -> pd.DataFrame:
    """Show the differences of a summary with their intervals and tests, as text; empty without any."""
    if "difference" not in summarized:
        return summarized.iloc[:0, :0]
    names = ["difference", "difference_low", "difference_high", "pairs", "p", "p_floor", "p_holm"]
    table = summarized.loc[summarized["difference"].notna(), ["task", "structure", "baseline", *names]]
    table[names[:3]] = table[names[:3]].map("{:+.3f}".format)
    table[names[4:]] = table[names[4:]].map("{:.3g}".format)
    return table.rename(columns=lambda name: name.removeprefix("difference_"))


def best_table(rows: pd.DataFrame, k: int = BEST_OF) -> pd.DataFrame:
    """Show :func:`s3pet.studies.validation.best_of`: a column per task, and the mean where there are all tasks."""
    rows = once(rows)
    table = best_of(rows, k).pivot(index="structure", columns="task", values="score")
    table = table.loc[_in_order(rows, "structure", table.index), _in_order(rows, "task", table)]
    if table.shape[1] > 1:
        table["mean"] = table.mean(axis=1, skipna=False)
    return table.apply(_text, form="{:.3f}").rename_axis(columns=None).reset_index()


def repeat_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Show :func:`s3pet.studies.statistics.variance_components`, task by task, then over the tasks together."""
    by_task, together = (variance_components(rows, by=by) for by in (("task", "structure"), ("structure",)))
    n_tasks = by_task["structure"].value_counts()
    together = together.assign(task="together")[by_task.columns]
    together = together[together["structure"].map(n_tasks).gt(1)]
    table = pd.concat([part for part in (by_task, together) if len(part)] or [by_task], ignore_index=True)
    for name, form in (("between", "{:.3f}"), ("within", "{:.3f}"), ("icc", "{:.2f}"), ("p", "{:.3g}")):
        table[name] = table[name].map(form.format)
    return table


def finished_searches(
    folder: Path, searches: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> Iterator[tuple[str, str, list[SearchResult]]]:
    """Open the finished searches in a study's folder ``searches`` that did not diverge: name, task, results by seed.

    They come in the order of ``searches`` and ``tasks``; None: all that are there, sorted.
    """
    for search in searches if searches is not None else sorted(path.name for path in folder.glob("*")):
        for task in tasks if tasks is not None else sorted(path.name for path in (folder / search).glob("*")):
            paths = sorted((folder / search / task).glob("*/config.json"))
            runs = [run for path in paths if (run := load_run(path.parent)).metrics.get("stopped") != "diverged"]
            if runs:
                yield search, task, runs


def agreement_table(
    folder: Path, searches: Sequence[str] | None = None, tasks: Sequence[str] | None = None
) -> pd.DataFrame:
    """Show how far the finished searches of a task agree: means over pairs of seeds and over tasks.

    Arguments are those of `finished_searches`. Columns: ``search, searches, overlap`` (Jaccard index), ``chance`` (of
    random structures), ``rank correlation`` (of all gates), ``within kinds`` (of ranks within module types); a row per
    search with two seeds on some task.
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    counts: Counter[str] = Counter()
    for search, _, runs in finished_searches(folder, searches, tasks):
        counts[search] += len(runs)
        if len(runs) > 1:
            inner = agreement(runs, within="pet", draws=1)["spearman"]
            tables.setdefault(search, []).append(agreement(runs, draws=100).assign(inner=inner))
    values = ["jaccard", "jaccard_chance", "spearman", "inner"]
    means = {search: pd.concat(parts)[values].mean().map("{:.2f}".format) for search, parts in tables.items()}
    columns = ["search", "searches", "overlap", "chance", "rank correlation", "within kinds"]
    return pd.DataFrame([[search, counts[search], *mean] for search, mean in means.items()], columns=columns)


def drop_table(folder: Path, searches: Sequence[str] | None = None, tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Show how far the loss of `finished_searches` fell (:attr:`s3pet.result.SearchResult.loss_drop`)."""
    cells = {}
    for search, task, runs in finished_searches(folder, searches, tasks):
        drops = pd.Series([run.loss_drop for run in runs], dtype="float64")
        spread = f" ± {drops.std():.3f}" if len(drops) > 1 else ""
        cells[search, task] = f"{drops.mean():.3f}{spread} ({len(drops)})"
    if not cells:
        return pd.DataFrame({"search": []})
    table = pd.Series(cells).unstack(sort=False).fillna("")
    table = table if tasks is None else table.reindex(columns=[*tasks], fill_value="")
    return table.rename_axis(index="search", columns=None).reset_index()


def show(study: Study, *, baseline: str | None = None, markdown: bool = False) -> str:
    """Describe what is finished, from the study's folder alone; ``baseline`` as in `summarize`."""
    plan, rows = study.rows(), study.chosen(repeats=True)
    check_names([] if baseline is None else [baseline], list({row["structure"]: row for row in plan}), "structure")
    runs = len({(row["task"], row["structure"], row["index"], row["seed"]) for row in plan})
    parts = [f"{study.path.name}: {len(rows)} of {runs} runs are finished"]

    def add(title: str, table: pd.DataFrame) -> None:
        if len(table):
            parts.extend([title, as_text(table, markdown)])

    if len(rows):
        summarized = summarize(rows, baseline=baseline)
        add("Test scores: mean ± standard deviation (runs)", score_table(rows, summarized))
        what = baseline or "random structures of the same budget"
        add(f"Differences to {what}, paired by seed; two-sided permutation tests", difference_table(summarized))
        add(f"Expected test score of keeping the best of {BEST_OF} runs by validation", best_table(rows))
        what = "Standard deviations between structures, and between retrainings of one (icc: share of the first)"
        add(f"{what}; permutation test", repeat_table(rows))
    which = study.path / "searches", [*study.searches], study.part[0] if study.part else [*study.tasks]
    what = "How far the loss of the searches fell on held-out rows: mean ± standard deviation (searches)"
    add(what, drop_table(*which))
    add("Agreement of the searches of one task: means over pairs of seeds and tasks", agreement_table(*which))
    return "\n\n".join(parts)


def as_text(table: pd.DataFrame, markdown: bool = True) -> str:
    """A table of texts as Markdown or in columns."""
    if not markdown:
        return table.to_string(index=False)
    rows = [list(map(str, table.columns)), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_figures(study: Study) -> list[Path]:
    """Draw what is finished into the study's folder ``figures``; returns the PNG files, with a PDF beside each."""
    every, paths = study.chosen(repeats=True), []
    summarized, rows = summarize(every), once(every)

    def save(ax: Any, name: str) -> None:
        paths.append(save_figure(ax, study.path / "figures" / f"{name}.png")[0])
        plt.close(ax.figure)

    for task, part in rows.groupby("task", sort=False):
        part = part[~part["kind"].isin(["transfer", "average"]) & part["structure"].ne("zero-shot")]
        if part.loc[part["kind"] != "reference", "n_params"].nunique() > 1:  # else there is no curve
            save(plot_budget_curve(part, metric=str(part["metric"].iloc[0]), title=str(task)), f"budget-{task}")
    if "difference" in summarized and summarized["difference"].notna().any():
        compared = summarized[summarized["difference"].notna()]
        save(plot_differences(summarized[summarized["kind"] == "searched"]), "differences")
        for budget, part in compared.groupby("budget"):
            if part["task"].nunique() == 1 or part["task"].str.startswith("mean of ").any():
                save(plot_ranking(part, title=f"{budget:,} parameters"), f"ranking-{budget}")
    repeated = every[every["structure"].isin(every.loc[every["repeat"], "structure"])]
    for task, part in repeated.groupby("task", sort=False):
        save(plot_repeats(part, metric=str(part["metric"].iloc[0]), title=str(task)), f"repeats-{task}")
    for budget, part in rows[rows["kind"] == "transfer"].groupby("budget"):
        searches = {study.structures[name]["search"] for name in part["entry"].unique()}
        names = [name for name, entry in study.structures.items() if entry.get("search") in searches]
        same = rows[rows["budget"] == budget]
        kinds = {"searched": "task", "transfer": "source", "average": "entry", "random": "entry"}
        shown = same[same["kind"].isin(kinds) & (same["entry"].isin(names) | same["kind"].isin(["average", "random"]))]
        source = [row[kinds[row["kind"]]] for row in shown.to_dict("records")]
        save(plot_transfer(shown.assign(source=source, target=shown["task"])), f"transfer-{budget}")
    return paths
