"""What several searches have in common, and what carries over to another task, seed or backbone.

Gates can be averaged over searches, compared, and carried to a backbone of another depth by relative depth. Agreement
must be compared with chance: two random structures share candidates too, and two searches can agree on the *type* of
module while they disagree on every *place* (``within`` of :func:`agreement`).

Source: Hu et al. 2022 (arXiv:2206.07382), section 5, for transfer between tasks; the rest is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch

from s3pet.errors import RunError
from s3pet.files.columns import checked_columns
from s3pet.files.kinds import SEED, instance, many, one_of, optional, whole
from s3pet.gates import BudgetLike, shifted_sigmoid
from s3pet.records import config_hash
from s3pet.result import SearchResult, gate_table
from s3pet.space import Space, layers_of
from s3pet.structure import parse_budget, random_structure

RESULT = instance(SearchResult, "a search result, as search(…) and load_run(path) return it")
Results = Mapping[str, SearchResult] | Sequence[SearchResult]


def average_gates(results: Results, *, budget: BudgetLike | None = None) -> SearchResult:
    """The mean of several searches of one space; it can be cut, drawn and saved like a single one.

    Args:
        results, budget: searches over seeds or tasks, and where to cut; None: at the budget they share.

    Returns:
        A result whose gate table holds the mean ``alpha`` and ``prob``, their standard deviation ``prob_spread``, and
        ``frequency``: the share of the searches that chose the candidate, each at its own budget. Raises RunError
        for no search, different spaces, or different budgets and no ``budget``.
    """
    searches = list(same_space(results).values())
    first, budgets = searches[0], sorted({result.budget.n_params for result in searches})
    if budget is None and len(budgets) > 1:
        raise RunError(f"these searches have budgets of {budgets} parameters; say where to cut: budget=…")
    cut = parse_budget(first.space, budgets[0] if budget is None else budget).n_params
    alpha, prob, chosen = (np.stack([s.gates[name] for s in searches]) for name in ("alpha", "prob", "chosen"))
    config = _config(first, cut, {"average of": [config_hash(result.config) for result in searches]})
    for key in ("task", "seed", "steps"):
        values = [result.config.get(key) for result in searches]
        config[key] = values[0] if all(v == values[0] for v in values) else sorted({str(v) for v in values})
    gates = gate_table(first.space, torch.tensor(alpha.mean(0)), torch.tensor(prob.mean(0)), cut)
    gates = gates.assign(prob_spread=prob.std(0), frequency=chosen.mean(0))
    return _result(first.space, config, gates, {"searches": len(searches)})


def gate_difference(one: Any, other: Any, value: str = "prob") -> pd.DataFrame:
    """Where two searches (results or gate tables) of one space differ: ``difference`` = one − other of a column.

    Returns the first table's candidates with ``difference``, ``chosen`` (by both), ``only_one`` and ``only_other``;
    raises RunError for different candidates or a missing column.
    """
    first, second = (getattr(table, "gates", table) for table in (one, other))
    keys = ["site", "pet", "rank"]
    for table in (first, second):
        instance(pd.DataFrame, "a search result or a gate table").check(RunError, one=first, other=second)
        if missing := ", ".join(str(name) for name in (*keys, "chosen", value) if name not in [*table]):
            raise RunError(f"a gate table has no column {missing}; it has {', '.join(map(str, table))}")
    first, second = (checked_columns(table, RunError) for table in (first, second))
    keys += [name for name in ("stack", "layer", "role") if name in first and name in second]
    whole_ones = {name: "Int64" for name in ("rank", "layer") if name in keys}
    texts = (table[keys].astype(whole_ones).astype("string").fillna("") for table in (first, second))
    names, other_names = (table.agg(":".join, axis=1) for table in texts)
    unshared = sorted(set(names) ^ set(other_names))
    if unshared:
        raise RunError(f"different spaces: {len(unshared)} candidates are in one only, such as {unshared[:3]}")
    second = second.set_axis(other_names).loc[names].set_axis(first.index)  # rows in the order of the first table
    difference = first[value].astype(float) - second[value].astype(float)
    a, b = first["chosen"].astype(bool), second["chosen"].astype(bool)
    kept = first.drop(columns=["alpha", "prob", "margin", "frequency", "prob_spread"], errors="ignore")
    return kept.assign(difference=difference, chosen=a & b, only_one=a & ~b, only_other=b & ~a)


def retarget_gates(
    result: SearchResult, space: Space, *, by: str = "relative_depth", budget: BudgetLike | None = None
) -> SearchResult:
    """Carry the gates of a search to the candidates of another space, such as that of a backbone of another size.

    Args:
        result, space: the search, and the candidates to carry its gates to.
        by: ``"name"``: a candidate keeps its α. ``"relative_depth"``: α is interpolated linearly between the layers of
            the source, at the same layer / (layers − 1), for each stack, role, PET module and rank.
        budget: of the new gates; None: the same share of the backbone's parameters.

    Returns:
        A result on ``space``. Candidates without a counterpart get the lowest α of the source, so that they are
        chosen last; ``metrics["unplaced"]`` names them. Raises RunError for an unknown ``by``, or if no candidate has a
        counterpart; BudgetError for a budget unfit for the space.
    """
    RESULT.check(RunError, result=result)
    if by not in ("name", "relative_depth"):
        raise RunError(f"by={by!r} is not one of name, relative_depth")
    parsed = parse_budget(space, result.budget.fraction if budget is None else budget)
    alpha, unplaced = _carried(result, space, by)
    probs = shifted_sigmoid(torch.tensor(alpha), space.costs, parsed.n_params)
    origin = {"retargeted": config_hash(result.config), "from": result.space.model_id, "by": by}
    new_space = {"model": space.model_id, "backbone_params": space.backbone_params, "space": space.name}
    config = _config(result, parsed.n_params, origin | new_space)
    config.pop("model_hash", None)
    gates = gate_table(space, torch.tensor(alpha), probs, parsed.n_params)
    return _result(space, config, gates, {"unplaced": np.array(space.names)[unplaced].tolist()})


def agreement(
    results: Results, *, budget: BudgetLike | None = None, within: str | None = None, draws: int = 500, seed: int = 0
) -> pd.DataFrame:
    """How far pairs of searches agree, beside the agreement by chance.

    Args:
        results: searches of one space; names → results, or a sequence (named by task and seed).
        budget: cut all at this one; None: each at its own.
        within: a column of the gate table such as ``"pet"``: chance then keeps how much of each kind was chosen and
            shuffles only the places, and ranks are taken within each kind. None: random structures of the same budget.
        draws, seed: number of random structures for each pair, and the seed for them.

    Returns:
        One row for each pair: ``first, second, group`` ("same task" or "other task"), ``jaccard`` of the structures and
        ``spearman`` of the probabilities, each with ``_chance`` (mean) and ``_chance_high`` (95 % quantile of chance).
        Raises RunError for fewer than two results, or different spaces.
    """
    searches = same_space(results)
    whole(1).check(RunError, draws=draws)
    SEED.check(RunError, seed=seed)
    if len(searches) < 2:
        raise RunError("agreement needs two searches or more")
    optional(one_of([*next(iter(searches.values())).gates])).check(RunError, within=within)
    structures = {name: result.structure(budget) for name, result in searches.items()}
    rng, rows = np.random.default_rng(seed), []
    for (first, one), (second, other) in combinations(searches.items(), 2):
        a, b = structures[first], structures[second]
        if within is None:
            limit, seeds = b.budget or b.n_params, rng.integers(2**31, size=draws)
            chance = [a.jaccard(random_structure(one.space, limit, seed=int(s))) for s in seeds]
            ranks = [result.gates["prob"].rank() for result in (one, other)]
        else:
            in_a, in_b = (np.isin(one.space.names, structure.names) for structure in (a, b))
            groups: Any = other.gates.reset_index(drop=True).groupby([within, "n_params"]).indices.values()
            chance = []
            for _ in range(draws):
                mask = in_b.copy()
                for rows_alike in groups:  # of equal kind and cost, so that the total cost stays the same
                    mask[rows_alike] = rng.permutation(in_b[rows_alike])
                chance.append(float((in_a & mask).sum() / (in_a | mask).sum()))
            ranks = [result.gates.groupby(within)["prob"].rank(pct=True) for result in (one, other)]
        group = "same task" if one.config.get("task") == other.config.get("task") else "other task"
        jaccard = (a.jaccard(b), float(np.mean(chance)), float(np.quantile(chance, 0.95)))
        spearman = (float(np.corrcoef(np.stack(ranks))[0, 1]), 0.0, 1.645 / np.sqrt(len(one.space) - 1))  # large sample
        rows.append((first, second, group, *jaccard, *spearman))
    measures = [f"{name}{kind}" for name in ("jaccard", "spearman") for kind in ("", "_chance", "_chance_high")]
    return pd.DataFrame(rows, columns=["first", "second", "group", *measures])


def same_space(results: Results) -> dict[str, SearchResult]:
    """The results by name (task and seed for a sequence); raises RunError unless they are of one space."""
    listed = [*results.values()] if isinstance(results, Mapping) else results
    many(RESULT).check(
        RunError, results=[*listed] if isinstance(listed, Iterable) and not isinstance(listed, str) else listed
    )
    searches: dict[str, SearchResult] = dict(results) if isinstance(results, Mapping) else {}
    for result in [] if isinstance(results, Mapping) else results:
        task, seed = str(result.config.get("task", "search")), result.config.get("seed")
        name = task.rpartition("/")[2] + (f" {seed}" if seed is not None else "")
        searches[name if name not in searches else f"{name} ({len(searches)})"] = result
    if not searches:
        raise RunError("no search was given")
    (first_name, first), *others = searches.items()
    for name, result in others:
        if (result.space.names, result.space.model_id) != (first.space.names, first.space.model_id):
            unshared = sorted(set(first.space.names) ^ set(result.space.names))[:3] or [result.space.model_id]
            what = f"{first_name!r} and {name!r} searched different spaces ({', '.join(unshared)} is not in both)"
            raise RunError(f"{what}; retarget_gates carries gates from one space to another")
    return searches


def _carried(result: SearchResult, space: Space, by: str) -> tuple[np.ndarray, np.ndarray]:
    """α of a search on the candidates of a space [n_candidates], and where it is only the lowest α of the source."""
    attribute = "name" if by == "name" else "across_layers"  # equal in counterparts

    def places(space: Space) -> list[tuple[Any, float]]:
        layers = layers_of(space)  # layer / (layers − 1) is the relative depth, 0 outside the layers
        return [(getattr(c, attribute), (c.layer or 0) / max(layers.get(c.stack, 1) - 1, 1)) for c in space]

    curves: dict[Any, list[tuple[float, float]]] = {}  # points (depth, α) of the source
    for (key, depth), value in zip(places(result.space), result.gates["alpha"], strict=True):
        curves.setdefault(key, []).append((depth, value))
    alpha = np.full(len(space), np.nan)
    for i, (key, depth) in enumerate(places(space)):
        if key in curves:
            alpha[i] = np.interp(depth, *np.array(sorted(curves[key])).T)
    unplaced = np.isnan(alpha)
    if unplaced.all():
        raise RunError(f"no candidate of {space!r} has a counterpart in {result.space!r} by {by}")
    alpha[unplaced] = float(result.gates["alpha"].min())
    return alpha, unplaced


def _config(result: SearchResult, budget: int, origin: Mapping[str, Any]) -> dict[str, Any]:
    keep = ("model", "model_hash", "backbone_params", "task", "space", "seed", "steps", "versions")
    return {**{key: result.config[key] for key in keep if key in result.config}, "budget": budget, **origin}


def _result(space: Space, config: dict[str, Any], gates: pd.DataFrame, metrics: dict[str, Any]) -> SearchResult:
    history = pd.DataFrame(columns=["step"], dtype=int)
    trajectory = pd.DataFrame(columns=["candidate", "step", "alpha", "prob"], dtype=float)
    return SearchResult(space, config, gates, history, trajectory, metrics)
