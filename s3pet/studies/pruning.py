"""A structure by taking out: train all candidates together, remove what hurts least, train on, and so on to the budget.

    drop_i = L(without i) − L          on rows of search_val, with the weights of now
    remove the lowest drop_i / c_i     until the size of this round is reached

What a candidate is worth depends on which others are still there; gates rank candidates one by one and cannot say that.
Sizes shrink by the same factor from round to round. Every round passes about as many rows, so drops are coarse while
there are many candidates and precise at the end, where they decide. Weights are inherited, never started anew.

Source: Wang et al. 2021 (arXiv:2108.04392), perturbation-based selection, there of one operation after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from s3pet.backbones import preserved
from s3pet.errors import SearchError
from s3pet.gates import BudgetLike
from s3pet.objective import Objective, Row, Stream, derive, make_objective
from s3pet.searcher import CLIP
from s3pet.space import Space
from s3pet.structure import Structure, parse_budget, select_structure
from s3pet.supernet import Supernet
from s3pet.tasks import Task


@dataclass(frozen=True)
class Pruning:
    """What is left, and in which order the rest went.

    Attributes:
        space: all candidates.
        table: one row per candidate: the columns of ``space.table()``, ``round`` in which it was removed (NA: never),
            ``drop`` (what its removal cost in nats per row, when it was last measured) and ``order`` (of removal; the
            last has the highest).
        origin: where structures come from. rows, scored: rows passed forward and backward, and only forward.
    """

    space: Space
    table: pd.DataFrame
    origin: Mapping[str, Any] = field(repr=False)
    rows: int = 0
    scored: int = 0

    def structure(self, budget: BudgetLike) -> Structure:
        """What was removed last, as far as the budget goes; those of smaller budgets lie within, up to what fits."""
        order = torch.tensor(self.table["order"].to_numpy(float))
        return select_structure(self.space, order, budget, origin=self.origin)


def prune(
    model: nn.Module,
    task: Task,
    space: Space,
    budget: BudgetLike,
    *,
    steps: int = 300,
    rounds: int = 14,
    batch_size: int = 32,
    rows: int = 2000,
    lr: float = 3e-3,
    seed: int = 0,
    objective: Any = None,
    progress: bool = True,
) -> Pruning:
    """Take candidates out of a supernet in training until a budget holds.

    Args:
        model, task, space: the backbone, left as it was; the task, of which only the two halves of the training split
            are used, as by a search; the candidates.
        budget: any form that :meth:`s3pet.Budget.parse` reads.
        steps, rounds: of training, a fifth of them before the first of so many removals, the rest between them.
        batch_size, lr: of the training.
        rows: passed forward in each round, shared among the candidates; each gets at least 16, at most all there are.
        seed: of fresh tensors, batches and rows. objective: as for :func:`s3pet.search`. progress: show a bar.

    Raises:
        BudgetError: unreadable budget, or one below the cheapest candidate. SearchError: no rounds, fewer steps than
            rounds, or a loss that is not finite.
    """
    parsed = parse_budget(space, budget)
    if not 1 <= rounds <= steps:
        raise SearchError(f"rounds={rounds}, steps={steps}: expected at least one round, and a step for each")
    origin = {"kind": "pruned", "task": task.name, "seed": seed, "steps": steps, "rounds": rounds}
    costs, n = space.costs.double(), len(space)
    whole, goal = float(costs.sum()), float(parsed.n_params)
    order, drop, removed = torch.zeros(n), torch.full((n,), math.nan, dtype=torch.float64), [0] * n
    with preserved(model):
        learned = make_objective(model, task, objective, seed=seed)
        halves = [learned.encode(half) for half in task.search_split(seed)]
        stream = Stream(halves[0], batch_size, derive(seed, 0))
        with Supernet(model, space, seed=seed) as supernet:
            learned.prepare(False)
            weights = [supernet.flatten().requires_grad_(), *learned.head_weights]
            optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
            gates, step, passed = torch.ones(n, device=learned.device), 0, 0
            for turn in tqdm(range(rounds), desc=f"pruning on {task.name}", disable=not progress):
                until = steps // 5 + round((steps - steps // 5) * turn / max(1, rounds - 1))
                for step in range(step, until):
                    batch = stream(step)
                    supernet.use(gates, weights[0])
                    _descend(learned.loss(learned.collate(batch), weights[1:] or None), weights, optimizer)
                    passed += len(batch)
                step = until
                left = [int(index) for index in gates.nonzero()]
                per = min(len(halves[1]), max(16, rows // len(left)))
                draw = torch.randperm(len(halves[1]), generator=torch.Generator().manual_seed(derive(seed, 5, turn)))
                drops = _drops(learned, [halves[1][int(i)] for i in draw[:per]], supernet, gates, left, weights)
                drop[left] = drops
                size = whole * (goal / whole) ** ((turn + 1) / rounds)
                for index in sorted(left, key=lambda index: float(drop[index] / costs[index])):
                    if float((gates.cpu() * costs).sum()) <= size:
                        break
                    gates[index], removed[index] = 0.0, turn + 1
                    order[index] = 1 + float(order.max())
            last = [int(index) for index in gates.nonzero()]
            for index in sorted(last, key=lambda index: float(drop[index] / costs[index])):
                order[index] = 1 + float(order.max())
    rounds_of = pd.array([turn or None for turn in removed], dtype="Int64")
    table = space.table().assign(round=rounds_of, drop=drop.numpy(), order=order.long().numpy())
    return Pruning(space, table, origin, passed, learned.scored)


@torch.no_grad()
def _drops(
    learned: Objective, rows: list[Row], supernet: Supernet, gates: Tensor, left: list[int], weights: list[Tensor]
) -> Tensor:
    """What the loss on these rows rises by without each of the candidates that are left, float64 [left]."""
    batch, losses = learned.collate(rows), []
    for index in [None, *left]:
        own = gates.clone()
        if index is not None:
            own[index] = 0.0
        supernet.use(own, weights[0])
        losses.append(float(learned.loss(batch, weights[1:] or None)))
        learned.scored += len(rows)
    if not all(map(math.isfinite, losses)):
        raise SearchError(f"the loss on task {learned.task.name!r} is not finite; lower lr")
    return torch.tensor(losses[1:], dtype=torch.float64) - losses[0]


def _descend(loss: Tensor, weights: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    nn.utils.clip_grad_norm_(weights, CLIP)
    optimizer.step()
