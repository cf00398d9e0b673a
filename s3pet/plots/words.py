"""Gate tables in words: a summary in plain language, also as alt text, and the facts about one candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from s3pet.errors import PlotError, nearest
from s3pet.files.kinds import FLAG, mapping, whole
from s3pet.plots.frame import in_order
from s3pet.plots.maps import MAP_COLUMNS, cut_and_start
from s3pet.plots.style import PETS, as_table, flag
from s3pet.utility import candidate_names as names_of
from s3pet.utility import check_utility, disagreement, faithfulness

FACTS = ["site", *MAP_COLUMNS, "rank", "n_params", "alpha", "prob", "chosen"]
PARTS = {"q": "queries", "k": "keys", "v": "values", "o": "outputs", "in": "inputs", "out": "outputs", "gate": "gates"}
PARTS |= {"qkv": "queries, keys and values", "kv": "keys and values", "gate_in": "gates and inputs"}
MODULES = PETS | {"lowrank_adapter": "low-rank adapters", "adapter": "bottleneck adapters"}
BLOCKS = {"attn": "attention", "cross": "cross-attention", "ffn": "FFN", "mixer": "mixer"}
BLOCKS |= {"embed": "embedding", "final": "final"}


def candidate_names(gates: Any) -> pd.Series:
    """``site:pet:rank`` of every row, as :attr:`s3pet.space.Candidate.name`."""
    return names_of(as_table(gates, ["site", "pet", "rank"]))


def short_name(row: Any) -> str:
    """The candidate of a row for a figure: ``encoder.3.attn.q LoRA``, with its rank if this is not 1."""
    rank = row.get("rank")
    return f"{row['site']} {PETS.get(row['pet'], row['pet'])}" + (f" {rank}" if pd.notna(rank) and rank != 1 else "")


def position_of(candidate: str, table: pd.DataFrame) -> int:
    """Row of the candidate of this name."""
    names = candidate_names(table).tolist()
    if candidate not in names:
        raise PlotError(f"no candidate is called {candidate!r}; {nearest(candidate, names)}")
    return names.index(candidate)


def candidate_facts(
    gates: Any, candidate: str, chosen_in: Mapping[str, bool] | None = None, *, utility: pd.DataFrame | None = None
) -> dict[str, str]:
    """What a gate table says about the ``candidate`` of this name, such as ``encoder.3.attn.q:lora:1``.

    With ``chosen_in`` (names of other searches → whether they choose it), also which of them do; with a ``utility``
    table, also what was measured.
    """
    table = as_table(gates, FACTS)
    mapping(FLAG).check(PlotError, chosen_in={} if chosen_in is None else chosen_in)
    at, choices = position_of(candidate, table), pd.DataFrame(dict(chosen_in or {}), index=[candidate])
    facts = candidate_table(table, choices, utility=utility).iloc[at]
    return {str(name): fact for name, fact in facts.items() if pd.notna(fact)}


def candidate_table(
    gates: Any, choices: pd.DataFrame | None = None, *, utility: pd.DataFrame | None = None
) -> pd.DataFrame:
    """`candidate_facts` of all candidates: their names × facts, as texts, or None for what does not apply.

    Args:
        gates: a gate table, or a table of candidates without gates, whose facts are then fewer.
        choices: whether a search (column) chooses a candidate (its name is the index).
        utility: a utility table.
    """
    table = as_table(gates, ["site", *MAP_COLUMNS, "rank"])
    table = table.set_axis(candidate_names(table))
    chosen, margin = flag(table, "chosen"), table.get("margin", pd.Series(np.nan, table.index))
    size = pd.MultiIndex.from_frame(table[["site", "pet"]])
    other = pd.Series(size.map(dict(zip(size[chosen], table["rank"][chosen], strict=True))), table.index)
    answer = chosen.map({True: "yes", False: "no"})
    answer = answer.mask(~chosen & margin.ge(0), "no, too expensive for what was left")
    answer = answer.mask(~chosen & other.notna() & table["rank"].notna(), _written("no, but with rank {:.0f}", other))
    place = table["prob"].rank(method="first", ascending=False) if "prob" in table else None
    facts: dict[str, Any] = {
        "address": table["site"],
        "module": table.get("path"),
        "PET module": table["pet"].astype(object).replace(PETS),
        "rank": table["rank"].astype("string").fillna("—"),
        "cost": _written("{:,} parameters", table.get("n_params")),
        "α": _written("{:.4g}", table.get("alpha")),
        "probability": _written("{:.4g}", table.get("prob")),
        "spread": _written("{:.3g}", table.get("prob_spread")),
        "margin to the cut": None if place is None else _written("{:+.4g}", margin).fillna("—"),
        "in the order": _written(f"{{:.0f}} of {len(table)}", place),
        "chosen": answer if "chosen" in table else None,
        "chosen in": _written("{:.0%} of the searches", table.get("frequency")),
        "inert": flag(table, "inert").map({True: "cannot change the model", False: None}),
        "can add the same": table.get("redundant"),
    }
    if choices is not None and len(choices.columns):
        rows = choices.astype(bool).itertuples(index=False, name=None)
        named = [[str(name) for name, choice in zip(choices, row, strict=True) if choice] for row in rows]
        words = [f"{len(names)} of {choices.shape[1]}: {', '.join(names)}".rstrip(": ") for names in named]
        facts["chosen in"] = pd.Series(words, choices.index).reindex(table.index)
    if utility is not None:
        measured = check_utility(utility).dropna(subset=["utility"])
        ranks, error = measured["utility"].rank(method="min", ascending=False), measured["utility_error"]
        effect = _written("{:+.4g}", measured["utility"]) + _written(" ± {:.2g}", error).fillna("") + " nats"
        effect = effect.mask(measured["inert"], "no score changes") + _written(f", {{:.0f}} of {len(ranks)}", ranks)
        facts[f"{utility['measure'].iloc[0]} utility"] = effect.reindex(table.index)
    columns = {name: fact.astype(object).where(fact.notna(), None) for name, fact in facts.items() if fact is not None}
    return pd.DataFrame(columns, table.index)


def _written(form: str, numbers: pd.Series | None) -> Any:
    """Numbers as texts; None for those that are unknown."""
    if numbers is None:
        return None
    return pd.Series([form.format(x) if pd.notna(x) else None for x in numbers], numbers.index, dtype=object)


def describe(gates: Any, *, top: int = 3, utility: pd.DataFrame | None = None) -> str:
    """A gate table in plain language, as alt text: what was chosen, where it lies, how far the gates separated.

    ``gates`` is a gate table or an object with ``.gates``; for a search, the text also says how far the loss fell.
    ``top`` is how many kinds of modules, and how many of the most probable candidates, to name. With a ``utility``
    table, the text also says how faithful the gates are to it (:func:`s3pet.utility.faithfulness`).
    """
    table = as_table(gates, ["site", *MAP_COLUMNS, "n_params", "prob", "chosen"])
    whole().check(PlotError, top=top)
    chosen = table[flag(table, "chosen")]
    total, used, n_sites = int(table["n_params"].sum()), int(chosen["n_params"].sum()), table["site"].nunique()
    text = [f"{len(table):,} candidates at {n_sites:,} sites with {total:,} parameters;"]
    text += [f"{len(chosen):,} chosen with {used:,} parameters ({100 * used / max(total, 1):.3g} %)."]
    if used:
        text.append(_kinds(chosen, used, top))
        sizes = chosen.groupby("pet", observed=True)["n_params"].sum().sort_values(ascending=False, kind="stable")
        shares = [f"{MODULES.get(str(pet), pet)} {100 * size / used:.0f} %" for pet, size in sizes.items()]
        text.append(f"By module: {', '.join(shares)}.")
        text += _ranks(table, chosen)
    for stack, part in chosen.dropna(subset="layer").groupby("stack", observed=True, sort=False):
        layers, last = part["layer"].astype(int), int(table.loc[table["stack"] == stack, "layer"].max())
        depth = np.average(layers, weights=part["n_params"])
        text.append(f"In the {stack}, {_layers(layers)} of 0 to {last}, mean depth {depth:.1f}.")
    several = table.duplicated(["site", "pet"], keep=False)  # then the rank belongs to the name
    best = table.assign(size=_sizes(table).where(several, "")).nlargest(top, "prob").to_dict("records")
    names = [f"{row['site']} {row['pet']}{row['size']} {row['prob']:.3g}" for row in best]
    text.append(f"Most probable: {', '.join(names)}.")
    separation = {"highest probability": table["prob"].max()} | cut_and_start(table)
    text.append("Separation: " + ", ".join(f"{name} {number:.3g}" for name, number in separation.items()) + ".")
    expected = table["prob"] * table["n_params"]
    if used and expected.sum() > 0:
        inside = 100 * expected[chosen.index].sum() / expected.sum()
        text.append(f"{inside:.0f} % of the parameters that the gates expect lie on what was chosen.")
    drop = getattr(gates, "loss_drop", float("nan"))
    if np.isfinite(drop):
        text.append(f"The search's loss on held-out rows {'fell' if drop >= 0 else 'rose'} by {100 * abs(drop):.0f} %.")
    text += [] if utility is None else _faithfulness(gates, utility, top)
    return " ".join(text)


def correlation_words(gates: Any, utility: pd.DataFrame, value: str = "utility") -> str:
    """The rank correlation of gates with utility in one line: interval, ceiling, within PET modules."""
    table = faithfulness(gates, utility, value=value).set_index("scope")
    rho, low, high, ceiling = table.loc["all", ["spearman", "low", "high", "ceiling"]]
    inside = f"95 % interval {_number(low)} to {_number(high)}, ceiling {_number(ceiling)}"
    within = table.loc["within PET modules", "spearman"]
    return f"rank correlation {_number(rho)} ({inside}), within PET modules {_number(within)}"


def _number(value: Any) -> str:
    return f"{value:.2f}".replace("-", "−") if pd.notna(value) else "unknown"


def _faithfulness(gates: Any, utility: pd.DataFrame, top: int) -> list[str]:
    """Sentences about faithfulness."""
    measures, ranks = faithfulness(gates, utility).set_index("scope"), disagreement(gates, utility)
    rho = {str(scope): _number(value) for scope, value in measures["spearman"].items()}
    low, high, ceiling, chance = measures[["low", "high", "ceiling", "spearman_chance_high"]].map(_number).loc["all"]
    pets = [f"{MODULES.get(pet, pet)} {rho[pet]}" for pet in in_order(ranks["pet"], PETS)]
    text = [
        f"Gates and {utility['measure'].iloc[0]} utility on {utility['task'].iloc[0]}, {len(ranks):,} candidates:",
        f"rank correlation {rho['all']} (95 % interval {low} to {high}; 95 % of shuffled gates stay below {chance}).",
        f"The ceiling that the errors of the utility set is {ceiling}.",
        f"Within PET modules {rho['within PET modules']} ({', '.join(pets)});",
        f"between layers {rho['between layers']}, within layers {rho['within layers']}.",
    ]
    places = {name: ranks[name].rank(method="min", ascending=False).astype(int) for name in ("prob", "utility")}
    ranks = ranks.assign(**places)
    for what, part in (("over", ranks[ranks["difference"] > 0]), ("under", ranks[ranks["difference"] < 0][::-1])):
        rows = part.head(top).to_dict("records")
        names = [f"{short_name(row)} (gate {row['prob']}, utility {row['utility']})" for row in rows]
        text += [f"Most {what}-valued, with places out of {len(ranks):,}: {', '.join(names)}."] * bool(rows)
    alone = {name: len(ranks.attrs[f"only_{name}"]) for name in ("gates", "utility")}
    rest = f"Left out: {alone['gates']:,} candidates without a utility and {alone['utility']:,} without a gate."
    text += [rest] * any(alone.values())
    return text


def _kinds(chosen: pd.DataFrame, used: int, top: int) -> str:
    """The kinds of modules, stack × role × PET module, with the most parameters."""
    groups = chosen.groupby(["stack", "role", "pet"], observed=True, sort=False)
    shares = (100 * groups["n_params"].sum() / used).sort_values(ascending=False, kind="stable")
    kinds = []
    for stack, role, pet, share in shares.iloc[:top].reset_index().itertuples(index=False):
        layers = groups.get_group((stack, role, pet))["layer"]
        where = f", {_layers(layers)}" if layers.notna().all() else ""
        kinds.append(f"{MODULES.get(str(pet), pet)} on {stack} {place_words(role)}{where} ({share:.0f} %)")
    rest = shares.iloc[top:]
    tail = f"; {len(rest)} other kind{'s' * (len(rest) > 1)} take the remaining {rest.sum():.0f} %" if len(rest) else ""
    return f"The parameters go to {', '.join(kinds)}{tail}."


def _sizes(table: pd.DataFrame) -> pd.Series:
    """``:4`` for a candidate of rank 4; empty without a rank."""
    names = candidate_names(table) if "rank" in table else pd.Series("", table.index)
    return names.str.extract(r"(:\d+)$")[0].fillna("")


def _ranks(table: pd.DataFrame, chosen: pd.DataFrame) -> list[str]:
    """Sentences on which sizes were chosen, of the PET modules that the table has in several."""
    several = table.groupby("pet", observed=True)["rank"].nunique() if "rank" in table else pd.Series(dtype=int)
    sentences = []
    for pet, own in chosen[chosen["pet"].isin(several.index[several > 1])].groupby("pet", observed=True):
        counts = own["rank"].value_counts().sort_index()
        sites = ", ".join(f"{rank} at {n} {'sites' if n > 1 else 'site'}" for rank, n in counts.items())
        sentences.append(f"Ranks of {MODULES.get(str(pet), pet)}: {sites}.")
    return sentences


def place_words(role: str) -> str:
    """A role in plain words: ``attention queries`` for ``attn.q``."""
    block, _, part = role.partition(".")
    name = BLOCKS.get(block, block)
    if part == "norm":
        return f"{name} norms" if block in ("attn", "cross", "ffn") else f"{name} norm"
    if block not in BLOCKS:
        return role
    return f"{name} {PARTS.get(part, part.replace('_', ' '))}" if part else f"{name} blocks"


def _layers(layers: pd.Series) -> str:
    """``layer 3``, ``layers 0, 2 and 5-7``."""
    numbers = pd.Series(sorted(set(layers.astype(int))))
    runs = [(int(run.min()), int(run.max())) for _, run in numbers.groupby(numbers - numbers.index)]
    names = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"layer{'s' * (len(numbers) > 1)} {listed}"
