"""A study as people read it: what is done, the table of scores, the figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3pet.errors import StudyError
from s3pet.statistics import over_tasks, summary
from s3pet.study import KINDS, Study

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("task", "structure", "n_params", "score", "low", "high", "kept", "runs")
TESTED = ("difference", "p", "p_floor", "p_holm")


def random_baselines(study: Study) -> dict[str, str]:
    """Every structure that is made for a budget → the random structures of that budget, if the study has any."""
    random = [name for name, entry in study.structures.items() if entry["kind"] == "random"]
    found = {}
    for row in study.rows():
        if random and row["budget"] is not None and row["entry"] != random[0]:
            found[row["structure"]] = f"{random[0]} {row['budget']}"
    return found


def summarize(study: Study, **options: Any) -> pd.DataFrame:
    """The summary of a study's chosen rows, task by task and over all tasks that every structure has.

    Args:
        study: what was declared; its finished rows are read.
        **options: of :func:`s3pet.statistics.summary`; ``baseline`` defaults to random structures of the same budget.

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
        baseline = options["baseline"]
        if isinstance(baseline, dict):
            here = set(shared["structure"])
            baseline = {one: other for one, other in baseline.items() if {one, other} <= here} or None
        found.append(over_tasks(shared, **{**options, "baseline": baseline}))
    return pd.concat(found, ignore_index=True)


def show(study: Study) -> str:
    """What is done and what it says, as text."""
    import pandas as pd

    plan, done = study.rows(), study.chosen()
    lines = [f"{study.path}: {len(done)} of {len({(r['task'], r['structure'], r['seed']) for r in plan})} runs"]
    if len(done):
        found = summarize(study)
        found = found[[name for name in SHOWN + TESTED if name in found]]
        with pd.option_context("display.width", 250):
            formats: dict[str, Any] = {"n_params": "{:,.0f}".format, "kept": "{:.1%}".format}
            formats |= dict.fromkeys(SHOWN[3:6] + SHOWN[8:], "{:.3f}".format)
            text = found.to_string(index=False, na_rep="–", formatters={k: v for k, v in formats.items() if k in found})
        lines += [text, "differences and p (paired by seed, two-sided): against random structures of the same budget"]
    return "\n".join(lines)


def write_figures(study: Study, out: Path | None = None) -> list[Path]:
    """Figures of all that is done: a budget curve per task, differences to random structures, transfer matrices.

    Args:
        study: the study. out: folder; None: ``figures`` beside its rows.

    Returns:
        The PNG files; a PDF lies beside each.
    """
    from matplotlib import pyplot as plt

    from s3pet.plots import plot_budget_curve, plot_differences, plot_transfer, save_figure

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
        if not rows["kind"].eq("reference").all():
            save(plot_budget_curve(rows, metric=str(rows["metric"].iloc[0]), title=str(task)), f"budget-{task}")
    found = summarize(study)
    if "difference" in found and found["difference"].notna().any():
        save(plot_differences(found[found["kind"] == "searched"])[0], "differences")
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
