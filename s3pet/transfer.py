"""What several searches have in common, and what carries over to another task, seed or backbone.

Gates are averaged over searches, compared with what chance would give, and carried to a backbone of another depth and
width by relative depth. Agreement is only worth as much as its distance from chance: two random structures share
modules too, and two searches may agree on the *type* of module while disagreeing on every *place*; ``within`` tells the
two apart.

Source: the transfer of structures between tasks is Hu et al. 2022 (arXiv:2206.07382), section 5; chance levels, and
transfer between sizes, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from s3pet.errors import RunError, StructureMismatchError
from s3pet.gates import Budget, shifted_sigmoid
from s3pet.result import SearchResult, config_hash, gate_table
from s3pet.space import Space, layers_of
from s3pet.structure import Structure, parse_budget, random_structure

if TYPE_CHECKING:
    import pandas as pd

Results = Mapping[str, SearchResult] | Sequence[SearchResult]


def average_gates(results: Results, *, budget: int | float | str | Budget | None = None) -> SearchResult:
    """The mean of several searches of one space, to be cut, drawn and saved like a single one.

    Args:
        results: searches over seeds or tasks.
        budget: where to cut; None: the budget they share.

    Returns:
        A result whose gate table holds the mean ``alpha`` and ``prob``, their standard deviation ``prob_spread``, and
        ``frequency``: the share of the searches that chose the candidate, each at its own budget.

    Raises:
        RunError: none given, different spaces, or different budgets and no ``budget``.
    """
    named = _same_space(results)
    first, each = next(iter(named.values())), list(named.values())
    budgets = sorted({result.budget.n_params for result in each})
    if budget is None and len(budgets) > 1:
        raise RunError(f"these searches have budgets of {budgets} parameters; say where to cut: budget=…")
    cut = parse_budget(first.space, budgets[0] if budget is None else budget)
    tables = [result.gates for result in each]
    alpha, prob, chosen = (np.stack([table[name] for table in tables]) for name in ("alpha", "prob", "chosen"))
    config = _config(first, cut.n_params, {"average of": [config_hash(result.config) for result in each]})
    config |= {key: _common([result.config.get(key) for result in each]) for key in ("task", "seed", "steps")}
    gates = gate_table(first.space, torch.tensor(alpha.mean(0)), torch.tensor(prob.mean(0)), cut.n_params)
    gates = gates.assign(prob_spread=prob.std(0), frequency=chosen.mean(0))
    return _result(first.space, config, gates, {"searches": len(each)})


def gate_difference(one: Any, other: Any, value: str = "prob") -> pd.DataFrame:
    """Where two searches of one space disagree: a gate table with ``difference`` = one − other.

    Args:
        one, other: gate tables, or results.
        value: the numeric column to compare.

    Returns:
        The first table's candidates with ``difference``; ``chosen`` is what both chose, ``only_one`` and
        ``only_other`` what a single one did.

    Raises:
        RunError: different candidates, or a column they lack.
    """
    mine, theirs = (getattr(given, "gates", given) for given in (one, other))
    keys = ["site", "pet", "rank"]
    for table in (mine, theirs):
        missing = [name for name in (*keys, "chosen", value) if name not in table]
        if missing:
            raise RunError(f"a gate table has no column {', '.join(missing)}; it has {', '.join(map(str, table))}")
    first, second = (table[keys].astype("string").fillna("").agg(":".join, axis=1) for table in (mine, theirs))
    odd = sorted(set(first) ^ set(second))
    if odd:
        raise RunError(f"the two searched different spaces: {len(odd)} candidates are in one only, such as {odd[:3]}")
    theirs = theirs.set_axis(second).loc[first].set_axis(mine.index)
    difference = mine[value].astype(float) - theirs[value].astype(float)
    a, b = mine["chosen"].astype(bool), theirs["chosen"].astype(bool)
    kept = mine.drop(columns=[name for name in ("alpha", "prob", "margin", "frequency", "prob_spread") if name in mine])
    return kept.assign(difference=difference, chosen=a & b, only_one=a & ~b, only_other=b & ~a)


def retarget_gates(
    result: SearchResult,
    space: Space,
    *,
    by: str = "relative_depth",
    budget: int | float | str | Budget | None = None,
) -> SearchResult:
    """Carry the gates of a search to the candidates of another space, such as a backbone of another size.

    Args:
        result: the search.
        space: the candidates to carry them to.
        by: ``"name"`` (``encoder.3.attn.q:lora:1`` keeps its α) or ``"relative_depth"``: α is interpolated linearly
            between the layers of the source at the same relative depth (first on first, last on last), separately for
            every stack, role, PET module and size.
        budget: of the new gates; None: the same share of the backbone's parameters.

    Returns:
        A result on ``space``. Candidates without a counterpart get the lowest α of the source, so that they are
        chosen last; ``metrics["unplaced"]`` names them.

    Raises:
        RunError: unknown ``by``, or no candidate has a counterpart. BudgetError: as :func:`s3pet.search`.
    """
    if by not in ("name", "relative_depth"):
        raise RunError(f"by={by!r} is not one of name, relative_depth")
    parsed = parse_budget(space, result.budget.fraction if budget is None else budget)
    source, target = result.gates, space.table()
    names = [candidate.name for candidate in result.space]
    if by == "name":
        known = dict(zip(names, source["alpha"], strict=True))
        found = [known.get(candidate.name, np.nan) for candidate in space]
    else:
        source, target = (table.assign(**_depth(table, of)) for table, of in ((source, result.space), (target, space)))
        curves = {key: _curve(part) for key, part in source.groupby(_KIND, dropna=False)}
        found = [_read(curves, row) for row in target.to_dict("records")]
    alpha = np.array(found, dtype="float64")
    lost = np.isnan(alpha)
    if lost.all():
        raise RunError(f"no candidate of {space!r} has a counterpart in {result.space!r} by {by}")
    alpha[lost] = float(source["alpha"].min())
    tensor = torch.tensor(alpha)
    probs = shifted_sigmoid(tensor, space.costs, parsed.n_params)
    origin = {"retargeted": config_hash(result.config), "from": result.space.model_id, "by": by}
    config = _config(result, parsed.n_params, origin)
    config |= {"model": space.model_id, "backbone_params": space.backbone_params, "space": space.name}
    config.pop("model_hash", None)
    unplaced = [candidate.name for candidate, gone in zip(space, lost, strict=True) if gone]
    return _result(space, config, gate_table(space, tensor, probs, parsed.n_params), {"unplaced": unplaced})


def agreement(
    results: Results,
    *,
    budget: int | float | str | Budget | None = None,
    within: str | None = None,
    draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """How far pairs of searches agree, beside what chance would give.

    Args:
        results: searches of one space; names → results, or a sequence (named by task and seed).
        budget: cut all at this one; None: each at its own.
        within: None, or a column of the gate table such as ``"pet"``: chance then keeps how much of each kind was
            chosen and shuffles only the places, and ranks are taken within each kind.
        draws: random structures per pair.
        seed: of the draws.

    Returns:
        One row per pair: ``first, second, group`` ("same task" or "other task"), ``jaccard`` of the structures and
        ``spearman`` of the probabilities, each with ``_chance`` (mean) and ``_chance_high`` (95 % quantile of chance).
        Spearman's is the large-sample quantile 1.645 / √(n − 1).

    Raises:
        RunError: fewer than two results, or different spaces.
    """
    import pandas as pd

    named = _same_space(results)
    if len(named) < 2:
        raise RunError("agreement needs two searches or more")
    structures = {name: result.structure(budget) for name, result in named.items()}
    chosen = {name: _mask(named[name].space, structure.names) for name, structure in structures.items()}
    rng, rows = np.random.default_rng(seed), []
    for first, second in combinations(named, 2):
        one, other = named[first], named[second]
        row: dict[str, Any] = {"first": first, "second": second}
        tasks = [result.config.get("task") for result in (one, other)]
        row["group"] = "same task" if tasks[0] == tasks[1] else "other task"
        row["jaccard"] = structures[first].jaccard(structures[second])
        if within is None:
            limit = structures[second].budget or structures[second].n_params
            chance = _random_jaccards(one.space, structures[first], limit, rng.integers(2**31, size=draws))
        else:
            table = other.gates.reset_index(drop=True)
            kinds = [np.asarray(rows) for rows in table.groupby([within, "n_params"]).indices.values()]
            chance = [_jaccard(chosen[first], _shuffled(chosen[second], kinds, rng)) for _ in range(draws)]
        row |= {"jaccard_chance": float(np.mean(chance)), "jaccard_chance_high": float(np.quantile(chance, 0.95))}
        ranks = [_ranks(result.gates, within) for result in (one, other)]
        row |= {"spearman": float(np.corrcoef(np.stack(ranks))[0, 1]), "spearman_chance": 0.0}
        row["spearman_chance_high"] = 1.645 / np.sqrt(len(one.space) - 1)
        rows.append(row)
    return pd.DataFrame(rows)


def jaccard_chance(space: Space, one: Structure, other: Structure, *, draws: int = 500, seed: int = 0) -> float:
    """The Jaccard index that ``one`` would have with a random structure of the other's budget, on average.

    What :meth:`s3pet.Structure.jaccard` is to be held against: two structures share candidates by chance, the more the
    larger they are. Exact where all candidates cost the same (the overlap is hypergeometric), else the mean over
    :func:`s3pet.random_structure` draws.

    Args:
        space: the space both come from.
        one: the structure that stays.
        other: the one that is replaced by random ones of its budget, or of its cost where it has no budget.
        draws: random structures; standard error at most 0.5 / √draws.
        seed: of the draws.

    Raises:
        StructureMismatchError: a candidate of either is not in the space.
    """
    known = {candidate.name for candidate in space}
    odd = [name for name in (*one.names, *other.names) if name not in known]
    if odd:
        raise StructureMismatchError(
            f"{', '.join(odd[:3])} not in {space!r}; chance is counted among the candidates of one space. "
            "structure.retarget(space) puts a structure on it."
        )
    if not len(other):
        return one.jaccard(other)
    limit = parse_budget(space, other.budget or other.n_params).n_params
    costs = {candidate.n_params for candidate in space}
    if len(costs) > 1:
        seeds = np.random.default_rng(seed).integers(2**31, size=draws)
        return float(np.mean(_random_jaccards(space, one, limit, seeds)))
    every, mine, drawn = len(space), len(one), min(limit // costs.pop(), len(space))
    ways = [math.comb(mine, x) * math.comb(every - mine, drawn - x) for x in range(min(mine, drawn) + 1)]
    return sum(x / (mine + drawn - x) * (n / math.comb(every, drawn)) for x, n in enumerate(ways))


_KIND = ["stack", "role", "pet", "size", "outside"]


def _depth(table: pd.DataFrame, space: Space) -> dict[str, Any]:
    """Relative depth in [0, 1] of every candidate, and what else it must share with its counterpart."""
    last = {stack: max(layers - 1, 1) for stack, layers in layers_of(space).items()}
    depth = table["layer"].astype("Float64").astype(float) / table["stack"].map(last).astype(float)
    return {"depth": depth.fillna(0.0), "size": table["rank"].fillna(0), "outside": table["layer"].isna()}


def _curve(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    ordered = part.sort_values("depth")
    return ordered["depth"].to_numpy(float), ordered["alpha"].to_numpy(float)


def _read(curves: Mapping[Any, tuple[np.ndarray, np.ndarray]], row: Mapping[Any, Any]) -> float:
    curve = curves.get(tuple(row[name] for name in _KIND))
    return float("nan") if curve is None else float(np.interp(row["depth"], *curve))


def _same_space(results: Results) -> dict[str, SearchResult]:
    named = dict(results) if isinstance(results, Mapping) else _named(results)
    if not named:
        raise RunError("no search was given")
    (first_name, first), *others = named.items()
    names = [candidate.name for candidate in first.space]
    for name, result in others:
        theirs = [candidate.name for candidate in result.space]
        if theirs != names or result.space.model_id != first.space.model_id:
            odd = sorted(set(names) ^ set(theirs))[:3] or [result.space.model_id]
            raise RunError(
                f"{first_name!r} and {name!r} searched different spaces ({', '.join(odd)} is not in both); "
                "retarget_gates carries gates from one space to another"
            )
    return named


def _named(results: Sequence[SearchResult]) -> dict[str, SearchResult]:
    found: dict[str, SearchResult] = {}
    for result in results:
        task, seed = result.config.get("task", "search"), result.config.get("seed")
        name = str(task).rpartition("/")[2] + (f" {seed}" if seed is not None else "")
        found[name if name not in found else f"{name} ({len(found)})"] = result
    return found


def _mask(space: Space, names: Sequence[str]) -> np.ndarray:
    taken = set(names)
    return np.array([candidate.name in taken for candidate in space])


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 1.0


def _random_jaccards(space: Space, structure: Structure, budget: int, seeds: Iterable[int]) -> list[float]:
    """Jaccard index of a structure with the random structures of these seeds at this budget, in parameters."""
    return [structure.jaccard(random_structure(space, budget, seed=int(seed))) for seed in seeds]


def _shuffled(mask: np.ndarray, kinds: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The mask with its places shuffled among rows of equal kind and cost: the structure costs what it did."""
    made = mask.copy()
    for rows in kinds:
        made[rows] = rng.permutation(mask[rows])
    return made


def _ranks(gates: pd.DataFrame, within: str | None) -> np.ndarray:
    return (gates if within is None else gates.groupby(within))["prob"].rank(pct=within is not None).to_numpy(float)


def _common(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else sorted({str(value) for value in values})


def _config(result: SearchResult, budget: int, origin: Mapping[str, Any]) -> dict[str, Any]:
    keep = ("model", "model_hash", "backbone_params", "task", "space", "seed", "steps", "versions")
    return {**{key: result.config[key] for key in keep if key in result.config}, "budget": budget, **origin}


def _result(space: Space, config: dict[str, Any], gates: pd.DataFrame, metrics: dict[str, Any]) -> SearchResult:
    import pandas as pd

    history = pd.DataFrame({"step": pd.Series(dtype=int)})
    trajectory = pd.DataFrame({name: pd.Series(dtype=float) for name in ("candidate", "step", "alpha", "prob")})
    return SearchResult(space, config, gates, history, trajectory, metrics)
