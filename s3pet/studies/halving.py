"""Judge a few structures by short trainings before one is chosen: what the gates leave open, training can decide.

A search ranks candidates one by one, under weights that all of them share. Its last choices are often close, and
whether a set works *together* is only seen when it is trained. So: take the cut of a search and its nearest
alternatives, train each for a few steps, drop the worse half, train the rest for longer, and so on. Validation decides;
the test split is never looked at. Random structures can be halved as well, and are what it should be compared with.
On three pocket tasks (``data/runs/ablation.yaml``) it left searches where they were and lifted random structures by
0.05, to 0.08 below the searches.

Source: Jamieson & Talwalkar 2016 (arXiv:1502.07943), successive halving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from s3pet.cost import Cost
from s3pet.errors import SearchError
from s3pet.gates import Budget
from s3pet.result import SearchResult
from s3pet.structure import Structure, parse_budget, select_structure
from s3pet.tasks import Task
from s3pet.tuning import retrain

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


def alternatives(
    result: SearchResult, n: int, budget: int | float | str | Budget | None = None, *, per_param: bool = False
) -> list[Structure]:
    """The cut of a search and the structures next to it.

    An alternative is what the same cut gives when some of the chosen candidates may not be taken: first the cut itself,
    then those that give up the least probability in all (Lawler 1972: the next best differs from the best by at least
    one exclusion). So the least sure choices are exchanged first.

    Args:
        result: a search, or averaged gates.
        n: how many, ≥ 1; fewer are given if there are no more.
        budget: any form :meth:`s3pet.Budget.parse` reads; None: the searched one.
        per_param: cut by the probabilities per parameter.

    Returns:
        Structures, no two alike, the cut itself first.

    Raises:
        SearchError: n < 1. BudgetError: unreadable budget, or one below the cheapest candidate.

    Source:
        Lawler 1972, A procedure for computing the k best solutions, Management Science 18.
    """
    if n < 1:
        raise SearchError(f"expected n ≥ 1 structures, got {n}")
    parsed = parse_budget(result.space, result.budget if budget is None else budget)
    ranks = result.probs / result.space.costs if per_param else result.probs
    places = {candidate.name: place for place, candidate in enumerate(result.space)}
    origin = {**result.structure(parsed, per_param=per_param).origin}
    found: dict[tuple[str, ...], Structure] = {}
    waiting: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    seen = {waiting[0][1]}
    while waiting and len(found) < n:
        given_up, without = heappop(waiting)
        left = ranks.clone()
        left[list(without)] = -1.0  # behind all others
        cut = select_structure(result.space, left, parsed, origin=origin | {"without": len(without)})
        chosen = [places[name] for name in cut.names]
        if {*chosen} & {*without}:
            continue  # nothing else fits any more
        found.setdefault(cut.names, cut)
        for place in chosen:
            more = tuple(sorted((*without, place)))
            if more not in seen:
                seen.add(more)
                heappush(waiting, (given_up + float(result.probs[place]), more))
    return list(found.values())


@dataclass(frozen=True)
class Halving:
    """What successive halving found.

    Attributes:
        structure: the one that is left.
        table: one row per training: ``rung, steps, index`` (of the structure, in the order given without repeats),
            ``n_params, validation, kept``.
        cost: of all these trainings.
    """

    structure: Structure
    table: pd.DataFrame
    cost: Cost


def successive_halving(
    model: nn.Module,
    task: Task,
    structures: Sequence[Structure],
    *,
    steps: Sequence[int] = (50, 100),
    progress: bool = False,
    **recipe: Any,
) -> Halving:
    """Train structures for a few steps, keep the better half by validation, train these for longer, keep one.

    Every training starts from fresh with a learning rate that falls to 0 over its steps, as :func:`s3pet.retrain` does.

    Args:
        model: the backbone; left as it was.
        task: the task; the training split trains, the validation split decides, the test split is not touched.
        structures: as preferred: of equals the earlier one is kept; nan is the worst. Several
            that are the same count once.
        steps: of each round. After each round but the last the better half stays (of five, three).
        progress: show a bar.
        **recipe: fields of :class:`s3pet.trainer.Recipe` but ``steps``: lr, batch_size, seed, …; ``evaluations`` is 1
            if it is not given: what counts is the end.

    Returns:
        The structure that is left, all scores, and what it cost. A single structure is returned untrained.

    Raises:
        SearchError: no structures, or no rounds of at least one step. Else as :func:`s3pet.retrain`.

    Source:
        Jamieson & Talwalkar 2016 (arXiv:1502.07943), with η = 2.
    """
    import pandas as pd

    steps, known = list(steps), list({structure.names: structure for structure in structures}.values())
    if not known or not steps or min(steps) < 1:
        raise SearchError(
            f"{len(structures)} structures and rounds of {steps} steps; expected at least one of each, and steps ≥ 1"
        )
    recipe = {"evaluations": 1, **recipe}
    field, rows, cost = list(enumerate(known)), [], Cost()
    with tqdm(total=_trainings(len(known), len(steps)), desc="successive halving", disable=not progress) as bar:
        for rung, count in enumerate(steps):
            if len(field) == 1:
                break
            scored = []
            for index, structure in field:
                tuned = retrain(model, task, structure, steps=count, test=False, **recipe)
                scored.append((tuned.metrics["validation"], index, structure))
                cost = cost + tuned.cost
                bar.update()
            left = 1 if rung == len(steps) - 1 else (len(field) + 1) // 2
            best = sorted(scored, key=lambda one: math.inf if math.isnan(one[0]) else -one[0])[:left]
            kept = {index for _, index, _ in best}
            for score, index, structure in scored:
                row = {"rung": rung, "steps": count, "index": index, "n_params": structure.n_params}
                rows.append(row | {"validation": score, "kept": index in kept})
            field = [(index, structure) for index, structure in field if index in kept]
    columns = ["rung", "steps", "index", "n_params", "validation", "kept"]
    return Halving(field[0][1], pd.DataFrame(rows, columns=columns), cost)


def _trainings(structures: int, rounds: int) -> int:
    total = 0
    for _ in range(rounds if structures > 1 else 0):
        total, structures = total + structures, (structures + 1) // 2
    return total
