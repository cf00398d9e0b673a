"""Structures chosen without a search: by one-pass sensitivity, or by a rule of thumb about depth.

They are what a searched structure has to beat, since both cost next to nothing. A *sensitivity* is one number per
candidate from a few batches of the training split, before anything is trained:

    gradient    ‖ E ∂L/∂θ ‖²       θ: the candidate's fresh tensors; the squared norm of the mean gradient
    fisher      E ‖ ∂L/∂θ ‖²       of one example at a time: the trace of the empirical Fisher information
    weight      Σ | w · E ∂L/∂w |  w: the frozen tensor the candidate adapts (SNIP)

``weight`` looks at the backbone because fresh PET tensors are zero, or meet zeros, so that their own products vanish.
A rule of *depth* is what people do by hand: LoRA on queries and values, of every n-th layer or of the last layers.

Source: Lee et al. 2019 (arXiv:1810.02340), SNIP; Sung et al. 2021 (arXiv:2111.09839), FISH mask; Hu et al. 2021
(arXiv:2106.09685), table 5: LoRA on queries and values, and of the two rather on values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from s3pet.batches import Stream, derive
from s3pet.errors import SearchError, SpaceError, nearest
from s3pet.gates import Budget
from s3pet.objective import Objective, make_objective
from s3pet.space import LAST_PROJECTION, Candidate, Space, find_sites
from s3pet.structure import Structure, parse_budget, select_structure
from s3pet.supernet import Supernet
from s3pet.tasks import Task

SCORES = ("gradient", "fisher", "weight")
DEPTHS = ("uniform", "top")
HEAD_LR = 3e-3


def sensitivity(
    model: nn.Module,
    task: Task,
    space: Space,
    *,
    score: str,
    batches: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    max_length: int = 128,
    pooling: str | None = None,
    loss: str = "choice",
    head_steps: int = 0,
) -> Tensor:
    """How much the loss feels each candidate before anything is trained.

    All candidates are attached at gates of 1 and the model runs without dropout. The LoRA of a candidate starts at the
    tensors the same seed would retrain, so its gradient is one through a random projection, and carries LoRA's scale
    of 16/r. Costs ``batches`` passes for ``"gradient"`` and ``"weight"``, and ``batches · batch_size`` passes of one
    row each for ``"fisher"``.

    An encoder's head is fresh as well: drawn from N(0, 0.02²) by the seed, as a retraining starts with it. Gradients
    through it do not vanish but have random directions; ``head_steps`` trains it alone first.

    What ``"weight"`` scores, w being the tensor adapted: LoRA, the weight of the linear map (LoRAs of two ranks on one
    site score alike); LNFit, the norm's weight; BitFit, the bias; a block's adapter, the weight of the block's last
    projection. Where there is no bias to adapt (T5's and Llama's maps and norms), Σ |h̄ · E ∂L/∂b| of a bias b at 0
    stands in for it, h̄ being the module's mean output over batches and positions: the bias it has in effect.

    Args:
        model: the backbone; left exactly as it was, ``requires_grad`` flags and modes included.
        task: the task, with its tokenizer; only its training split is looked at.
        space: the candidates.
        score: ``"gradient"``, ``"fisher"`` or ``"weight"``.
        batches: how many, ≥ 1.
        batch_size: rows of each, ≥ 1.
        seed: of batches, fresh tensors and head.
        max_length: tokens per input.
        pooling: of an encoder's head, see :func:`s3pet.objective.make_objective`.
        loss: of text-to-text backbones, ``"choice"`` or ``"lm"``.
        head_steps: steps of AdamW (3e-3) the head of an encoder is trained before, as many passes more.

    Returns:
        float64 [n_candidates] on the CPU, ≥ 0; larger is more sensitive. Not divided by the cost.

    Raises:
        SearchError: unknown score, no batches, a supernet is attached, a gradient is not finite, or ``"weight"`` of a
            quantised backbone. StructureMismatchError: the space is not this model's.

    Source:
        Lee et al. 2019 (arXiv:1810.02340), equation 5; Sung et al. 2021 (arXiv:2111.09839), equation 4.
    """
    if score not in SCORES:
        raise SearchError(f"score {score!r} is not known; {nearest(score, SCORES)}")
    if batches < 1 or batch_size < 1 or head_steps < 0:
        given = f"batches={batches}, batch_size={batch_size}, head_steps={head_steps}"
        raise SearchError(f"{given}: expected at least one batch of one row, and no fewer than 0 steps")
    Structure(space.candidates, space.model_id).check(model)
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), _evaluating(model):
        torch.manual_seed(seed)
        objective = make_objective(model, task, max_length=max_length, seed=seed, pooling=pooling, loss=loss)
        objective.eval()
        rows = Stream(objective.encode(task.train), batch_size, derive(seed, 0))
        _train_head(model, objective, rows, head_steps)
        drawn = [rows(head_steps + step) for step in range(batches)]
        found = (_of_weights if score == "weight" else _of_fresh)(model, objective, space, drawn, seed, score)
    if not bool(found.isfinite().all()):
        worst = space.candidates[int((~found.isfinite()).nonzero()[0])].name
        raise SearchError(f"the gradient at {worst} is not finite; load the backbone in float32, or try another seed")
    return found


def sensitive_structure(
    model: nn.Module,
    task: Task,
    space: Space,
    budget: int | float | str | Budget,
    *,
    score: str = "gradient",
    per_param: bool = True,
    **options: Any,
) -> Structure:
    """The structure that sensitivity chooses.

    Args:
        model: the backbone; left as it was.
        task: the task, with its tokenizer.
        space: the candidates.
        budget: any form :meth:`s3pet.gates.Budget.parse` reads.
        score: see :func:`sensitivity`.
        per_param: rank by sensitivity per parameter, as a knapsack's greedy rule does; False by sensitivity, which
            favours large candidates.
        **options: further keywords of :func:`sensitivity`.

    Returns:
        The structure, walked down as :func:`s3pet.structure.select_mask` does: take what fits, skip what does not.

    Raises:
        BudgetError: unreadable budget, or one below the cheapest candidate. Else as :func:`sensitivity`.
    """
    parsed = parse_budget(space, budget)
    found = sensitivity(model, task, space, score=score, **options)
    ranked = found / space.costs if per_param else found
    origin = {"kind": "sensitivity", "task": task.name, "score": score, "per_param": per_param}
    return select_structure(space, ranked, parsed, origin=origin | {"seed": options.get("seed", 0)})


def depth_structure(space: Space, budget: int | float | str | Budget, where: str) -> Structure:
    """LoRA on queries and values over the depth or at the top, the rest filled with LNFit, then BitFit.

    Depth counts through the whole network: of an encoder-decoder first the encoder's layers, then the decoder's, whose
    last one is the top. Four passes by the same rule fill the budget: LoRA of the smallest rank on self-attention's
    q and v, LNFit, BitFit, then what else the space holds. ``"top"`` walks from the last layer down. ``"uniform"``
    takes as many whole layers as the budget affords, evenly spread (of n layers m: those at ⌊(i + ½) n/m⌋), then
    single candidates, each from the layer farthest from those taken. Of q and v, v comes first.

    Args:
        space: the candidates.
        budget: any form :meth:`s3pet.gates.Budget.parse` reads.
        where: ``"uniform"`` or ``"top"``.

    Returns:
        A structure within the budget to which no other candidate of the space can be added. Nothing is random.

    Raises:
        SpaceError: unknown ``where``. BudgetError: unreadable budget, or one below the cheapest candidate.

    Source:
        Hu et al. 2021 (arXiv:2106.09685), section 7.1, for q and v; depth is practitioners' custom.
    """
    if where not in DEPTHS:
        raise SpaceError(f"where {where!r} is not one of {', '.join(DEPTHS)}")
    parsed = parse_budget(space, budget)
    depths = {place: depth for depth, place in enumerate(sorted({_place(c) for c in space}))}
    ranks: dict[str, int] = {}
    for c in space:
        if c.pet == "lora":
            ranks[c.site] = min(c.rank or 1, ranks.get(c.site, c.rank or 1))
    passes: tuple[Callable[[Candidate], bool], ...] = (
        lambda c: c.pet == "lora" and c.role in ("attn.q", "attn.v") and c.rank == ranks[c.site],
        lambda c: c.pet == "lnfit",
        lambda c: c.pet == "bitfit",
        lambda c: True,
    )
    probs, left = torch.zeros(len(space), dtype=torch.float64), parsed.n_params
    for belongs in passes:
        layers: list[list[int]] = [[] for _ in depths]
        for index, c in enumerate(space):
            if belongs(c) and not probs[index]:
                layers[depths[_place(c)]].append(index)
        pools = [sorted(layer, key=lambda i: space.candidates[i].role != "attn.v") for layer in layers if layer]
        for index in _walk(pools, [c.n_params for c in space], left, where):
            probs[index] = 1.0
            left -= space.candidates[index].n_params
    # the four passes leave nothing that fits, so the selection takes exactly what they took
    return select_structure(space, probs, parsed, origin={"kind": "heuristic", "where": where})


def _place(candidate: Candidate) -> tuple[bool, float]:
    """Sorts by depth: the encoder first; before its layers the embeddings' norm, behind them the final norm."""
    outside = -1.0 if candidate.role.startswith("embed") else float("inf")
    return candidate.stack != "encoder", outside if candidate.layer is None else float(candidate.layer)


def _walk(layers: Sequence[Sequence[int]], costs: Sequence[int], left: int, where: str) -> list[int]:
    """Candidates taken from these layers, bottom to top, with this much of the budget left."""
    taken: list[int] = []
    depths: list[int] = []  # of layers with something taken
    if where == "uniform":
        for m in range(len(layers), 0, -1):
            chosen = [(2 * i + 1) * len(layers) // (2 * m) for i in range(m)]
            whole = [index for depth in chosen for index in layers[depth]]
            if sum(costs[index] for index in whole) <= left:
                taken, depths = whole, chosen
                break
        left -= sum(costs[index] for index in taken)
    waiting = {depth: [i for i in layer if i not in taken] for depth, layer in enumerate(layers)}
    while True:
        fitting = {depth: [i for i in layer if costs[i] <= left] for depth, layer in waiting.items()}
        open_ = [depth for depth, layer in fitting.items() if layer]
        if not open_:
            return taken

        def distance(depth: int) -> int:
            return min((abs(depth - other) for other in depths), default=0) if where == "uniform" else 0

        depth = max(open_, key=lambda depth: (distance(depth), depth))
        index = fitting[depth][0]
        taken.append(index)
        depths.append(depth)
        left -= costs[index]
        waiting[depth].remove(index)


def _of_fresh(
    model: nn.Module, objective: Objective, space: Space, drawn: Sequence[list], seed: int, score: str
) -> Tensor:
    """``gradient`` or ``fisher`` of the candidates' fresh tensors, float64 [n_candidates]."""
    numbers = {c.name: number for number, c in enumerate(space)}
    with Supernet(model, space, seed=seed) as supernet:

        def gradient(rows: list) -> list[Tensor]:
            return _gradients(objective, rows, list(supernet.weights))

        if score == "fisher":
            singles = [row for rows in drawn for row in rows]
            squares = [torch.stack([g.square().sum() for g in gradient([row])]) for row in singles]
            per_tensor = torch.stack(squares).mean(0)
        else:
            per_tensor = torch.stack([g.square().sum() for g in _mean(gradient, drawn)])
    owners = torch.tensor([numbers[key.rpartition("/")[0]] for key in supernet.keys])
    return torch.zeros(len(space), dtype=torch.float64).index_add_(0, owners, per_tensor.cpu())


def _of_weights(
    model: nn.Module, objective: Objective, space: Space, drawn: Sequence[list], seed: int, score: str
) -> Tensor:
    """``weight`` of the frozen tensors the candidates adapt, float64 [n_candidates]."""
    paths = {site.address: site.path for site in find_sites(model)}
    adapted = [_adapted(model, c, paths) for c in space]
    bare = [c for c, tensor in zip(space, adapted, strict=True) if tensor is None]
    frozen = list({id(tensor): tensor for tensor in adapted if tensor is not None}.values())
    with Supernet(model, bare, seed=seed) as supernet:  # puts a bias of zeros where there is none, freezes the rest
        for tensor in frozen:
            tensor.requires_grad_(True)  # the supernet gives every flag back
        outputs = [_MeanOutput(model.get_submodule(c.path)) for c in bare]
        wanted = [*frozen, *supernet.weights]
        try:
            means = _mean(lambda rows: _gradients(objective, rows, wanted), drawn)
        finally:
            for output in outputs:
                output.handle.remove()
    values = [tensor.detach().double() for tensor in frozen] + [output.mean for output in outputs]
    products = [float((value * g).abs().sum()) for value, g in zip(values, means, strict=True)]
    places = {id(tensor): place for place, tensor in enumerate(frozen)}
    rest = iter(range(len(frozen), len(wanted)))
    return torch.tensor(
        [products[places[id(tensor)] if tensor is not None else next(rest)] for tensor in adapted], dtype=torch.float64
    )


def _adapted(model: nn.Module, candidate: Candidate, paths: dict[str, str]) -> Tensor | None:
    """The frozen tensor a candidate adapts; None for a bias that is not there."""
    path = candidate.path
    if candidate.role in LAST_PROJECTION:
        path = paths[candidate.site.removesuffix(candidate.role) + LAST_PROJECTION[candidate.role]]
    tensor = getattr(model.get_submodule(path), "bias" if candidate.pet == "bitfit" else "weight", None)
    if tensor is None and candidate.pet == "bitfit":
        return None
    if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        raise SearchError(
            f"score 'weight' needs the weights of {path} as floating-point parameters; load the backbone unquantised, "
            "or use score='gradient'"
        )
    return tensor


class _MeanOutput:
    """Mean output of a module over all positions it sees, float64 [d_out]."""

    def __init__(self, site: nn.Module):
        self.total: Any = 0.0
        self.count = 0
        self.handle = site.register_forward_hook(self._add)

    def _add(self, site: nn.Module, inputs: tuple, output: Tensor) -> None:
        rows = output.detach().reshape(-1, output.shape[-1]).double()
        self.total, self.count = self.total + rows.sum(0), self.count + len(rows)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count


def _gradients(objective: Objective, rows: list, tensors: Sequence[Tensor]) -> list[Tensor]:
    loss = objective.loss(objective.collate(rows))
    found = torch.autograd.grad(loss, list(tensors), allow_unused=True, materialize_grads=True)
    return [gradient.double() for gradient in found]


def _mean(gradient: Callable[[list], list[Tensor]], drawn: Sequence[list]) -> list[Tensor]:
    """Mean over rows: batches of an epoch's end are smaller, and weigh less."""
    total: list[Tensor] = []
    n_rows = sum(len(rows) for rows in drawn)
    for rows in drawn:
        scaled = [g * (len(rows) / n_rows) for g in gradient(rows)]
        total = [a.add_(b) for a, b in zip(total, scaled, strict=True)] if total else scaled
    return total


def _train_head(model: nn.Module, objective: Objective, rows: Stream, steps: int) -> None:
    if not steps or not objective.head_weights:
        return
    optimizer = torch.optim.AdamW(objective.head_weights, lr=HEAD_LR, weight_decay=0.0)
    with Supernet(model, []):  # freezes the backbone
        for step in range(steps):
            gradients = torch.autograd.grad(objective.loss(objective.collate(rows(step))), objective.head_weights)
            for weight, gradient in zip(objective.head_weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
