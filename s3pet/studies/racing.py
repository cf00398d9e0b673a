"""Racing: structures that differ are proposed, trained together, and the worse ones dropped until one is left.

Gates rank candidates one by one, but a structure is a set, and a cheap measurement of sets beats any ranking. At each
rung the members with the best validation scores so far go on, from where they are; the rest is dropped. What is left
at the end is trained already. Members may differ in structure, learning rate and seed, so rates are chosen by the way.

Source: Jamieson and Talwalkar 2016 (arXiv:1502.07943), successive halving; Li et al. 2020, for proposals by a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from s3pet.backbones import backbone_checksum, borrows
from s3pet.errors import DivergedError, RunError, SearchError, shown
from s3pet.files.kinds import FLAG, POSITIVE, SEED, is_real, many, several, whole
from s3pet.files.reading import path_of
from s3pet.gates import BudgetLike
from s3pet.objectives.streams import derive
from s3pet.records import recorded, settings_of
from s3pet.result import SearchResult
from s3pet.space import Space
from s3pet.structure import Structure, random_structure
from s3pet.studies.checkpoints import keep_going
from s3pet.studies.comparison import check_entries
from s3pet.studies.population import Member, Population
from s3pet.studies.selectors import covered_structure, sampled_structure
from s3pet.tasks import Task
from s3pet.trainer import Recipe
from s3pet.transfer import RESULT, average_gates

COLUMNS = ["name", "lr", "seed", "n_params", "validation", "steps", "diverged"]
RUNGS = {0.3: 0.4, 0.6: 0.15}  # share of the steps → share of the members that goes on


@dataclass
class Race:
    """What a race leaves.

    Attributes:
        structure, lr: the winner, and its learning rate.
        validation, test: its scores with the weights it has at the end; ``test`` is None unless asked for.
        table: one row per member, best first: ``name, lr, seed, n_params, validation, steps`` (until dropped),
            ``diverged``. A member that diverged is dropped at the next rung, whatever its scores were.
        rows: rows passed forward and backward, of all members; ``scored``: rows passed forward only.
    """

    structure: Structure
    lr: float
    validation: float
    test: float | None
    table: pd.DataFrame
    rows: int
    scored: int


@borrows("a race")
def race(
    model: nn.Module,
    task: Task,
    proposals: Mapping[str, Structure],
    *,
    lrs: Sequence[float] = (3e-3,),
    rungs: Mapping[float, float] = RUNGS,
    seed: int = 0,
    objective: Any = None,
    test: bool = False,
    checkpoints: str | Path | None = None,
    **recipe: Any,
) -> Race:
    """Train structures together, drop the worse ones at each rung, and keep the best by validation.

    Args:
        model, task: the backbone, left as it was, and the task; the test split is scored at most once, at the end.
        proposals: name → structure; those that differ are worth more than neighbours of one cut.
        lrs: learning rates; each structure starts once for each.
        rungs: share of the steps at which members are dropped → share of all members that goes on, at least one.
        seed, objective: as for :func:`s3pet.retrain`.
        checkpoints: folder from which a race that was cut off continues; remove it when the result is kept.
        **recipe: fields of :class:`s3pet.trainer.Recipe`, except ``lr`` and ``seed``.

    Raises:
        SearchError: nothing to race, or bad rungs. DivergedError: every member diverged. RunError: ``checkpoints`` is
            of a race with other settings, or damaged.
    """
    check_entries(model, proposals, (), "proposals")
    if not isinstance(rungs, Mapping) or not all(
        is_real(at) and is_real(share) and 0 < at < 1 and 0 < share <= 1 for at, share in rungs.items()
    ):
        raise SearchError(f"rungs must be a mapping of shares in (0, 1) to shares in (0, 1], got {shown(rungs)}")
    several(POSITIVE).check(SearchError, lrs=lrs)
    SEED.check(SearchError, seed=seed)
    FLAG.check(SearchError, test=test)
    chosen = settings_of(Recipe, recipe, "race", {"lr": "lrs"})
    entries = [(name, lr) for name in proposals for lr in lrs]
    members = [Member(proposals[name].candidates, lr, seed) for name, lr in entries]
    place = None if checkpoints is None else path_of(checkpoints, name="checkpoints")
    notes: dict[str, Any] = {"left": [*range(len(members))], "rung": 0, "rows": {}}
    with Population(model, task, members, chosen, objective) as population:
        config = {**recorded(chosen), **recorded(population.objective.settings), "lr": [*lrs], "seed": seed}
        config |= {"model_hash": backbone_checksum(model), "task_hash": task.fingerprint, "rungs": [*rungs.items()]}
        config |= {"proposals": {name: [*structure.names] for name, structure in proposals.items()}}
        after, rows = keep_going(place and place / "checkpoint", config, population, notes), notes["rows"]
        for rung, (at, share) in enumerate([*sorted(rungs.items()), (1.0, 0.0)]):
            if rung < notes["rung"]:
                continue
            population.train(round(at * chosen.steps), after)
            if not population.curves[0] or population.curves[0][-1][0] != population.step:
                population.note()
            left = notes["left"]
            for k, number in enumerate(left):
                name, lr = entries[number]
                row = {"name": name, "lr": lr, "seed": seed, "n_params": proposals[name].n_params}
                row |= {"validation": population.best[k], "steps": population.step, "diverged": False}
                if not population.finite[k]:
                    row |= {"validation": None, "diverged": True}
                rows[str(number)] = row
            # by the best score so far; of equals by the last loss
            alive = [k for k in range(len(left)) if population.finite[k]]
            if not alive:
                raise DivergedError("every member of the race diverged; lower lrs or raise lr_warmup")
            order = sorted(alive, key=lambda k: (-population.best[k], population.curves[k][-1][2]))
            keep = sorted(order[: max(1, round(share * len(members)))])
            population.keep(keep)
            notes |= {"left": [left[k] for k in keep], "rung": rung + 1}
        score = population.evaluate(task.test, best=True)[1][0] if test else None
    name, lr = entries[notes["left"][0]]
    table = pd.DataFrame([rows[number] for number in sorted(rows, key=int)], columns=COLUMNS)
    table = table.sort_values(["diverged", "steps", "validation"], ascending=[True, False, False], ignore_index=True)
    return Race(proposals[name], lr, population.best[0], score, table, population.rows, population.objective.scored)


def proposals(
    source: Space | SearchResult | Sequence[SearchResult], budget: BudgetLike, n: int = 16, *, seed: int = 0
) -> dict[str, Structure]:
    """Structures that differ, for a race: in turn one covered at random and a random one; of searches, cuts and draws.

    Without a search they cost nothing, and on the pocket races of them go further (``data/runs/RESULTS.md``). Where no
    LoRA stands in a layer, so that nothing can be covered, all are random.

    Args:
        source: a space; or one search, or several of one space: then in turn a cut of a search, one covered at random
            and one drawn from the gates.
        budget: of every structure; any form that :meth:`s3pet.Budget.parse` reads.
        n, seed: how many, and the seed of what is random.

    Returns:
        name → structure, n of them, all different; fewer in a space that has no more.

    Raises:
        BudgetError: unreadable budget, or one below the cheapest candidate. RunError: no search, or several spaces.
    """
    whole(1).check(SearchError, n=n)
    SEED.check(SearchError, seed=seed)
    results: Any = [] if isinstance(source, Space) else [source] if isinstance(source, SearchResult) else source
    if results is source:
        many(RESULT).check(RunError, source=source)
    space = source if isinstance(source, Space) else average_gates(results, budget=budget).space  # one of all results
    has_lora = any(c.pet == "lora" and c.layer is not None for c in space)
    chosen: dict[str, Structure] = {}

    def add(name: str, structure: Structure) -> None:
        if len(chosen) < n and all(set(structure.names) != set(other.names) for other in chosen.values()):
            chosen[name] = structure

    for turn in range(4 * n):
        if turn < len(results):
            add(f"cut {turn}", results[turn].structure(budget))
        if has_lora:
            add(f"covered {turn}", covered_structure(space, budget, seed=derive(seed, turn)))
        if results:
            result = results[turn % len(results)]
            add(f"sampled {turn}", sampled_structure(result, budget, seed=derive(seed, turn)))
        if not (results and has_lora):
            add(f"random {turn}", random_structure(space, budget, seed=derive(seed, turn)))
    return chosen
