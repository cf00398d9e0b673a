"""Structures chosen without a search: by the sensitivity of the loss, or by a rule about depth.

They cost next to nothing, so they are baselines that a searched structure has to beat. A *sensitivity* is one number
per candidate, computed from a few training batches before anything is trained (θ: the candidate's fresh tensors):

    gradient    ‖ E ∂L/∂θ ‖²     the squared norm of the mean gradient
    fisher      E ‖ ∂L/∂θ ‖²     of one example at a time: the trace of the empirical Fisher information

A rule about *depth* is what people do by hand: LoRA on queries and values, in layers spread evenly or in the last ones.
What each candidate gains when it is trained alone (:func:`s3pet.studies.solo_utility`) costs more and says more.

Source: Sung et al. 2021 (arXiv:2111.09839), FISH mask; Hu et al. 2021 (arXiv:2106.09685), for queries and values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from s3pet.backbones import borrows, preserved
from s3pet.errors import RunError, SearchError, SpaceError, StudyError, nearest
from s3pet.files.kinds import FLAG, SEED, one_of, optional, whole
from s3pet.gates import BudgetLike
from s3pet.objectives.streams import Stream, derive
from s3pet.objectives.texts import make_objective
from s3pet.records import config_hash
from s3pet.result import SearchResult
from s3pet.space import Candidate, Space
from s3pet.structure import QUERIES_VALUES, SPACE, Structure, parse_budget, select_structure
from s3pet.supernet import Supernet
from s3pet.tasks import Task
from s3pet.transfer import RESULT
from s3pet.utility import check_utility

SCORES = ("gradient", "fisher")
DEPTHS = ("uniform", "top")


@borrows("a measurement")
def sensitivity(
    model: nn.Module,
    task: Task,
    space: Space,
    *,
    score: str = "gradient",
    batches: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    objective: Any = None,
) -> Tensor:
    """Measure how sensitive the loss is to each candidate, before anything is trained.

    All candidates are attached at gates of 1 and the model runs without dropout. Fresh tensors and an encoder's head
    are those of a retraining with this seed, so the gradient of a LoRA is one through a random projection. Costs
    ``batches`` passes for ``"gradient"``, and ``batches · batch_size`` passes of one row for ``"fisher"``.

    Args:
        model: left exactly as it was. task: only its training split is used. space: the candidates.
        score: ``"gradient"`` or ``"fisher"``.
        batches, batch_size: how many batches of how many rows, ≥ 1. seed: of batches, fresh tensors and head.
        objective: a :class:`s3pet.objectives.ObjectiveSettings`, or a mapping of its fields.

    Returns:
        float64 [n_candidates] on the CPU, ≥ 0; larger is more sensitive. Not divided by the cost.

    Raises:
        SearchError: unknown score, no batches, a supernet is attached, or a gradient is not finite.
        StructureMismatchError: the space is not this model's.
    """
    if not one_of(SCORES).holds(score):
        raise SearchError(f"score {score!r} is unknown; {nearest(score, SCORES)}")
    whole(1).check(SearchError, batches=batches, batch_size=batch_size)
    SEED.check(SearchError, seed=seed)
    SPACE.check(SpaceError, space=space)
    space.check(model)
    numbers = {candidate.name: number for number, candidate in enumerate(space)}
    with preserved(model):
        model.eval()
        torch.manual_seed(seed)
        learned = make_objective(model, task, objective, seed=seed).eval()
        stream = Stream(learned.encode(task.train), batch_size, derive(seed, 0))
        parts = [stream(step) for step in range(batches)]
        n_rows = sum(map(len, parts))  # the last batch of an epoch is smaller, and has less weight
        if score == "fisher":
            parts = [[row] for rows in parts for row in rows]
        with Supernet(model, space, seed=seed) as supernet:
            weights = list(supernet.weights)
            totals = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
            for part in parts:
                loss = learned.loss(learned.collate(part))
                gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
                for total, gradient in zip(totals, gradients, strict=True):
                    share = gradient.double() ** (2 if score == "fisher" else 1)
                    total += share * (len(part) / n_rows)
            per_tensor = torch.stack([t.sum() if score == "fisher" else t.square().sum() for t in totals])
            owners = torch.tensor([numbers[key.rpartition("/")[0]] for key in supernet.keys])
    result = torch.zeros(len(space), dtype=torch.float64).index_add_(0, owners, per_tensor.cpu())
    if not bool(result.isfinite().all()):
        worst = space.candidates[int((~result.isfinite()).nonzero()[0])].name
        raise SearchError(f"the gradient at {worst} is not finite; load the backbone in float32, or try another seed")
    return result


def sensitive_structure(
    model: nn.Module,
    task: Task,
    space: Space,
    budget: BudgetLike,
    *,
    per_param: bool = True,
    score: str = "gradient",
    seed: int = 0,
    **options: Any,
) -> Structure:
    """Choose the most sensitive candidates within a budget.

    Args:
        model, task, space, score, seed: as for :func:`sensitivity`.
        budget: any form :meth:`s3pet.gates.Budget.parse` reads.
        per_param: rank by sensitivity per parameter; False: by sensitivity, which favours large candidates.
        **options: ``batches``, ``batch_size`` and ``objective`` of :func:`sensitivity`.

    Raises:
        BudgetError: unreadable budget, or one below the cheapest candidate. Else as :func:`sensitivity`.
    """
    parsed = parse_budget(space, budget)
    FLAG.check(SearchError, per_param=per_param)
    values = sensitivity(model, task, space, score=score, seed=seed, **options)
    origin = {"kind": "sensitivity", "task": task.name, "score": score, "per_param": per_param, "seed": seed}
    return select_structure(space, values / space.costs if per_param else values, parsed, origin=origin)


def depth_structure(space: Space, budget: BudgetLike, where: str) -> Structure:
    """Place LoRA on queries and values evenly over the depth or at the top; fill the rest with LNFit, then BitFit.

    Depth counts through the whole network: of an encoder-decoder first the encoder's layers, then the decoder's. Four
    passes by the same rule fill the budget: LoRA on self-attention's q and v (or on the one map that holds them, as
    ``attn.qkv`` of GPT-2), LNFit, BitFit, then everything else in the space; of several sizes of a module at a site
    only the smallest. ``"top"`` goes down from the last layer. ``"uniform"`` takes as many whole layers as the budget
    affords, evenly spread (m of n layers: those at ⌊(i + ½) n/m⌋), then single candidates, each from the layer farthest
    from those taken. v comes before q.

    Nothing is random, and no other candidate of the smallest size fits into what is left of the budget.

    Raises:
        SpaceError: unknown ``where``. BudgetError: unreadable budget, or one below the cheapest candidate.
    """
    if not one_of(DEPTHS).holds(where):
        raise SpaceError(f"where {where!r} is not one of {', '.join(DEPTHS)}")
    parsed = parse_budget(space, budget)
    depths = {place: depth for depth, place in enumerate(sorted({_place(c) for c in space}))}
    sizes = {(c.site, c.pet): c.rank for c in sorted(space, key=lambda c: -(c.rank or 0))}  # the smallest comes last
    space = replace(space, candidates=tuple(c for c in space if c.rank == sizes[c.site, c.pet]))
    passes: tuple[Callable[[Candidate], bool], ...] = (
        lambda c: c.pet == "lora" and QUERIES_VALUES.covers(c),
        lambda c: c.pet == "lnfit",
        lambda c: c.pet == "bitfit",
        lambda c: True,
    )
    probs, left = torch.zeros(len(space), dtype=torch.float64), parsed.n_params
    for belongs in passes:
        layers: list[list[int]] = [[] for _ in depths]
        for index, c in sorted(enumerate(space), key=lambda pair: pair[1].role != "attn.v"):
            if belongs(c) and not probs[index]:
                layers[depths[_place(c)]].append(index)
        for index in _walk([layer for layer in layers if layer], space.costs.tolist(), left, where):
            probs[index] = 1.0
            left -= space.candidates[index].n_params
    # the four passes leave nothing that fits, so the selection takes exactly what they took
    return select_structure(space, probs, parsed, origin={"kind": "heuristic", "where": where})


def covered_structure(space: Space, budget: BudgetLike, *, seed: int = 0, stack: str | None = None) -> Structure:
    """A random structure that first puts one LoRA, at a random site, into each layer of a stack.

    Layers come in random order, as far as the budget goes; the rest is filled at random, as a random structure is.

    Args:
        space, budget, seed: as for :func:`s3pet.random_structure`.
        stack: which one is covered; None: the first stack with layers.

    Raises:
        SpaceError: the stack has no LoRA. BudgetError: unreadable budget, or one below the cheapest candidate.
    """
    SEED.check(SearchError, seed=seed)
    parsed, order = parse_budget(space, budget), np.random.default_rng(seed).permutation(len(space))
    places = {c.stack for c in space if c.layer is not None and c.pet == "lora"}
    covered = stack if stack is not None else next((c.stack for c in space if c.stack in places), None)
    ranks, seen = torch.zeros(len(space), dtype=torch.float64), set[int | None]()
    for position, index in enumerate(order.tolist()):
        c = space.candidates[index]
        first = c.pet == "lora" and c.stack == covered and c.layer is not None and c.layer not in seen
        ranks[index] = (2 if first else 1) - position / len(space)
        seen |= {c.layer} if first else set()
    if not seen:
        raise SpaceError(f"stack {covered!r} has no layer with a LoRA; the space has them in {sorted(places)}")
    return select_structure(space, ranks, parsed, origin={"kind": "covered", "stack": covered, "seed": seed})


def sampled_structure(result: SearchResult, budget: BudgetLike, *, seed: int = 0) -> Structure:
    """A random structure by the gates of a search: candidates are drawn one after the other without replacement.

    Each draw takes a candidate with a probability proportional to its gate's, as far as the budget goes. Structures
    differ where the search was unsure, and agree where it was not.

    Args:
        result, budget: a search, and any form that :meth:`s3pet.gates.Budget.parse` reads. seed: of the draw.

    Raises:
        BudgetError: unreadable budget, or one below the cheapest candidate.
    """
    RESULT.check(RunError, result=result)
    SEED.check(SearchError, seed=seed)
    probs = result.probs.clamp(min=1e-300)
    noise = torch.from_numpy(np.random.default_rng(seed).gumbel(size=len(probs)))  # the largest sums are such a draw
    origin = {"kind": "sampled", "seed": seed, "config_hash": config_hash(result.config)}
    return select_structure(result.space, probs.log() + noise, budget, origin=origin)


def useful_structure(space: Space, utility: pd.DataFrame, budget: BudgetLike, *, seed: int | None = None) -> Structure:
    """The candidates that gain most per parameter; what a layer has already makes its others worth less.

    Again and again the candidate is taken that fits and has the largest utility / parameters / 2^m, where m candidates
    of its layer are taken before. Those that gain nothing are never taken, so some of the budget may be left.

    Args:
        space, budget: the candidates, and any form that :meth:`s3pet.Budget.parse` reads.
        utility: a utility table, as :func:`s3pet.studies.solo_utility` makes it.
        seed: draw utilities from normal distributions with their errors, for structures that differ where the
            measurement is unsure; None: take them as measured.

    Raises:
        StudyError: not a utility table, or no candidate that fits gains anything. BudgetError: unreadable budget, or
            one below the cheapest candidate.
    """
    parsed, table = parse_budget(space, budget), check_utility(utility).reindex([*space.names])
    optional(SEED).check(SearchError, seed=seed)
    noise = 0.0 if seed is None else np.random.default_rng(seed).normal(size=len(space))
    worth = ((table["utility"] + noise * table["utility_error"]) / space.costs.numpy()).to_dict()
    left, taken = parsed.n_params, list[Candidate]()
    while True:
        served, shut = Counter((c.stack, c.layer) for c in taken), {(c.site, c.pet) for c in taken}
        fitting = [c for c in space if worth[c.name] > 0 and c.n_params <= left and (c.site, c.pet) not in shut]
        if not fitting:
            break
        taken.append(max(fitting, key=lambda c: worth[c.name] / 2 ** served[c.stack, c.layer]))
        left -= taken[-1].n_params
    if not taken:
        raise StudyError(f"no candidate of at most {parsed.n_params:,} parameters gains anything in this table")
    chosen = replace(space, candidates=tuple(c for c in space if c in taken))
    origin = {"kind": "useful", "task": str(utility["task"].iloc[0]), **({} if seed is None else {"seed": seed})}
    return select_structure(chosen, chosen.costs, parsed, origin=origin)


def _place(candidate: Candidate) -> tuple[bool, float]:
    """Sort key by depth: encoder first; the embeddings' norm before the layers, the final norm after them."""
    outside = -1.0 if candidate.role.startswith("embed") else float("inf")
    return candidate.stack != "encoder", outside if candidate.layer is None else float(candidate.layer)


def _walk(layers: Sequence[Sequence[int]], costs: Sequence[int], left: int, where: str) -> list[int]:
    """Candidates to take; ``layers``: their numbers from bottom to top, ``left``: of the budget, in parameters."""
    taken: list[int] = []
    depths: list[int] = []  # of layers with something taken
    for m in range(len(layers), 0, -1) if where == "uniform" else ():
        spread = [(2 * i + 1) * len(layers) // (2 * m) for i in range(m)]
        whole = [index for depth in spread for index in layers[depth]]
        if sum(costs[index] for index in whole) <= left:
            taken, depths, left = whole, spread, left - sum(costs[index] for index in whole)
            break
    while True:
        waiting = [[i for i in layer if i not in taken and costs[i] <= left] for layer in layers]
        fitting = [depth for depth, layer in enumerate(waiting) if layer]
        if not fitting:
            return taken
        distances = {d: min((abs(d - other) for other in depths), default=0) for d in fitting}
        depth = max(fitting, key=lambda d: (distances[d] if where == "uniform" else 0, d))
        taken.append(waiting[depth][0])
        depths.append(depth)
        left -= costs[waiting[depth][0]]
