"""What the notebooks on budgets and evidence share: tables of the stored rows, and one figure over all of them.

    sys.path.append("../data/runs")
    from evidence import lead, lead_figure

The comparisons and their tests are those of ``results.py``, so that notebooks and RESULTS.md say the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd
from results import HERE, compare, corrected, in_words, once, tried

from s3pet.plots import plot_differences
from s3pet.studies import Bench

MINILM = 22_713_216  # parameters of the backbone
RULES = {"random": "random", "uniform": "even LoRA"}  # made for any budget without a search
REAL = {  # structures of the studies of MiniLM, and the lines of the budget curve that they belong to
    **{f"{name} {at}": line for at in ("0.01%", "0.04%", "0.1%") for name, line in RULES.items()},
    **{"random 0.002%": "random", "searched 0.002%": "searched", "searched 0.01%": "searched"},
    **{"searched 0.04%": "searched", "searched large 0.1%": "searched"},
    **{
        "norms": "five norms",
        "lnfit": "LNFit",
        "lora_qv": "LoRA on q and v",
        "lora_all": "LoRA on all",
        "full": "full",
    },
}
POCKET = {"adamw": "searched", "random": "random", "covered": "covered random"}
EVEN = {"LoRA on q and v": "even LoRA", "LoRA in the encoder": "even LoRA, encoder"}


@cache
def real_curves() -> pd.DataFrame:
    """Scores on MiniLM by budget, each structure at its best rate by validation: ``family`` is the line of the curve.

    Structures made for a budget have it in ``budget``.
    """
    table = pd.concat(
        [once("steady"), once("budgets")[lambda rows: rows["budget"].notna() | rows["structure"].eq("lora_all")]]
    )
    table = table[table["structure"].isin(REAL)].reset_index(drop=True)
    line = table["structure"].map(REAL)
    table["kind"] = table["kind"].mask(line.eq("five norms"), "heuristic")
    names = line.where(table["budget"].isna(), table["structure"])
    return table.assign(family=line, structure=names, backbone_params=MINILM)


@cache
def pocket_curves() -> pd.DataFrame:
    """Scores on the pocket at two budgets, each structure at its best rate by validation, trained once each.

    Searches are those of the default settings; a rule is one structure.
    """
    bench = Bench.load(HERE.parent / "bench" / "pocket")
    table = bench.choose().query("seed == 0 and budget in (675, 1351)")
    origin = table["origin"].str.replace(r" \d+$", "", regex=True)
    family = origin.map(EVEN).where(
        table["kind"].eq("even"), origin.where(table["kind"].eq("searched"), table["kind"]).map(POCKET)
    )
    table = table.assign(family=family, index=0).dropna(subset="family")
    draw = table["origin"].str.extract(r"^(?:adamw|seed) (\d+)$")[0].fillna(0).astype(int)
    kinds = table["kind"].replace({"even": "heuristic", "covered": "random"})
    size, name = bench.space.backbone_params, table["family"] + table["budget"].map({675: " 0.05%", 1351: " 0.1%"})
    return table.assign(seed=draw, kind=kinds, structure=name, backbone_params=size).reset_index(drop=True)


@cache
def lead(by: str = "validation") -> pd.DataFrame:
    """Searched structures beside the best rule, on every task and at every budget that the studies have.

    The best rule is the one with the highest mean of the column ``by`` on that task; ``rule`` names it.
    """
    steady, budgets, pocket = once("steady"), once("budgets"), pocket_curves()

    def made(at: str) -> dict[str, str]:
        return {f"{name} {at}": rule for name, rule in RULES.items()}

    share = {f"{name} 0.05%": name for name in ("random", "covered random")}
    cases: list[tuple[str, pd.DataFrame, str, dict[str, str]]] = [
        ("MiniLM, 0.002%", steady, "searched 0.002%", {"random 0.002%": "random"}),
        ("MiniLM, 0.01%", steady, "searched 0.01%", made("0.01%") | {"norms": "five norms"}),
        ("MiniLM, 0.04%", budgets, "searched 0.04%", made("0.04%")),
        ("MiniLM, 0.1%", budgets, "searched large 0.1%", made("0.1%")),
        ("pocket, 0.05%", pocket, "searched 0.05%", share),
        (
            "pocket, 0.1%",
            tried(),
            "search",
            {"random": "random", "covered": "covered random", "even LoRA": "even LoRA"},
        ),
    ]
    parts = []
    for at, table, searched, rules in cases:
        mine = table[table["structure"].eq(searched)]
        known = table[table["structure"].isin(rules) & table["task"].isin(mine["task"])]
        best = known.groupby(["task", "structure"])[by].mean().groupby("task").idxmax().str[1]
        known = known[known["structure"].eq(known["task"].map(best))].assign(structure="best rule")
        found = compare(pd.concat([mine, known]), searched, "best rule", at=at)
        parts.append(found.assign(rule=found["task"].map(best).map(rules).fillna("best of each")))
    return corrected(pd.concat(parts))


def lead_figure(ax: Any = None) -> Any:
    """The differences of `lead`: a part per backbone and budget, a row per task with its rule, the mean below."""
    table = in_words(lead())
    rows = table["task"].where(table["task"].eq("mean of tasks"), table["task"] + " (" + table["rule"] + ")")
    return plot_differences(table.assign(task=rows, structure="searched − best rule"), by="at", p="p", ax=ax)
