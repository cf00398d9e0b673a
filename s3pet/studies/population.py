"""Many structures trained at once on one frozen backbone: the rows of one batch are shared out among them.

Row r of member k passes the backbone once; at every site only the PET modules of member k are added to it. Small
batches waste most of their time, so K members with b rows each cost much less than K trainings with b rows. The
members do not influence each other: each has its own loss, gradient norm, learning rate and best checkpoint, and what
it learns is what :func:`s3pet.retrain` teaches it, up to rounding (with dropout: up to the noise).

    h[k] ← h[k] + δ(tensors[k], x[k], h[k])        h, x: [K, rows, …]

Blocks below the lowest site of all members give the same output for each of them. If the members also see the same
rows, these blocks run once per row, not K times.

All trained tensors lie in one vector; element e belongs to member ``owner[e]``. So one AdamW serves all members, and
dropping a member is one mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s3pet.backbones import preserved
from s3pet.backbones.loans import Loan
from s3pet.errors import SearchError
from s3pet.modules import PETS
from s3pet.objectives.processes import refuse_processes
from s3pet.objectives.streams import Row, Stream, derive, in_batches
from s3pet.objectives.texts import Batch, Objective, ObjectiveSettings, make_objective
from s3pet.searcher import CLIP
from s3pet.space import Candidate
from s3pet.supernet import fresh_tensors
from s3pet.tasks import Example, Task
from s3pet.trainer import Recipe

ROWS = 256  # rows in a pass of an evaluation, over all members


@dataclass(frozen=True)
class Member:
    """One structure in a population: its candidates, its learning rate, and the seed of its tensors and batches."""

    candidates: tuple[Candidate, ...]
    lr: float = 3e-3
    seed: int = 0


class Key(NamedTuple):
    """A tensor that members may have: where (the path of a site, or "head"), of which module, and its name there."""

    path: str
    is_block: bool
    pet: str
    rank: int | None
    name: str


@dataclass
class Part:
    """One tensor, stacked over the members that have it: ``shape`` is [members, …]; ``index`` holds their numbers."""

    key: Key
    shape: tuple[int, ...]
    index: Tensor
    value: Tensor = field(default_factory=lambda: torch.zeros(0))  # what the hooks use now


class Population:
    """Members in training. Use it in a ``with``: the backbone is frozen and hooked inside, and as before after it.

    Args:
        model, task: the backbone, left exactly as it was, and the task.
        members: who is trained.
        recipe: steps, batch size, warm-up … as for :func:`s3pet.retrain`; ``lr`` and ``seed`` are the members'.
        objective: as for :func:`s3pet.retrain`; ``loss="lm"`` is refused.

    Attributes:
        members, step, rows: who is left, steps done, rows passed forward and backward so far (of all members).
        theta, owner: all trained tensors as one vector, and the member of each element.
        best, best_step, curves: per member the best validation score, its step, and ``(step, score, loss)`` so far.
        finite: per member, whether all its losses and scores were finite; a tensor. One that diverged is never chosen.
    """

    def __init__(self, model: nn.Module, task: Task, members: Sequence[Member], recipe: Recipe, objective: Any = None):
        settings = ObjectiveSettings.of(objective)
        if settings.loss != "choice":
            raise SearchError(f"loss={settings.loss!r} cannot be told apart by row; members are trained by 'choice'")
        if recipe.patience:
            raise SearchError("members of a population train to the last step; patience= is for retrain")
        refuse_processes("training a population")
        if not members:
            raise SearchError("a population needs at least one member")
        self.model, self.task, self.recipe, self.members = model, task, recipe, list(members)
        heads = {m.seed: make_objective(model, task, settings, seed=m.seed) for m in self.members}
        self.objective = heads[self.members[0].seed]
        self.train_rows = self.objective.encode(task.train)
        self.validation_rows = self.objective.encode(task.validation)
        self.streams = {m.seed: Stream(self.train_rows, recipe.batch_size, m.seed) for m in self.members}
        self.step, self.rows = 0, 0
        self.best, self.best_step = [-float("inf")] * len(self.members), [0] * len(self.members)
        self.finite = torch.ones(len(self.members), dtype=torch.bool, device=self.objective.device)
        self.curves: list[list[tuple[int, float, float]]] = [[] for _ in self.members]
        theta, self.owner, self._speed, self._parts = self._lay_out(heads)
        self.theta, self._best_theta = theta.requires_grad_(), theta.detach().clone()
        self._optimizer = torch.optim.AdamW([self.theta], lr=1.0, weight_decay=0.0)  # each element has its own rate
        self._once = False  # rows pass once for all members
        self._shared_blocks: list[nn.Module] = []
        self._undo = ExitStack()

    # -- on and off the backbone

    def __enter__(self) -> Population:
        loan = Loan(self.model, f"a population of {len(self.members)} members")
        with ExitStack() as undo:
            undo.enter_context(preserved(self.model, self.objective))
            undo.callback(loan.end)
            loan.take()
            places = {c.name: c for member in self.members for c in member.candidates}
            before = blocks_before(self.objective, self.model, list(places.values()), self.train_rows[0])
            if not any(getattr(m, "gradient_checkpointing", False) for m in self.model.modules()):  # it runs them again
                self._shared_blocks = min(before.values(), key=len, default=[])
            modules = dict(self.model.named_modules())
            for path, is_block in {part.key[:2] for part in self._parts if part.key.pet}:
                modules[path].register_forward_hook(self._adder(path, is_block))
            if self.objective.head is not None:
                undo.enter_context(self.objective.head.out.register_forward_hook(self._head))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    # -- training

    def advance(self) -> Tensor:
        """One step of every member; returns their losses [members]."""
        recipe = self.recipe
        batches = [self.streams[member.seed](self.step) for member in self.members]
        self.objective.prepare(bool(recipe.dropout))
        torch.manual_seed(derive(self.members[0].seed, 11, self.step))
        losses = self.objective.losses(*self._scores(batches))
        losses = losses.view(len(self.members), -1).mean(1)
        self.finite &= losses.isfinite()
        (gradient,) = torch.autograd.grad(losses.sum(), self.theta)
        norms = torch.zeros(len(self.members), device=gradient.device).index_add_(0, self.owner, gradient.square())
        shrink = (CLIP / (norms.sqrt() + 1e-6)).clamp(max=1.0)
        self.theta.grad = gradient * shrink[self.owner]
        before = self.theta.detach().clone()
        self._optimizer.step()
        warmup = recipe.lr_warmup
        factor = self.step / warmup if self.step < warmup else (recipe.steps - self.step) / (recipe.steps - warmup)
        with torch.no_grad():
            self.theta.copy_(torch.lerp(before, self.theta, self._speed * factor))
        self.step += 1
        self.rows += sum(map(len, batches))
        return losses.detach()

    def train(self, until: int | None = None, after: Any = lambda: None, *, score: bool = True) -> None:
        """Advance to a step (None: the last), and ``score`` the validation split as often as the recipe says.

        ``after`` is called after every step.
        """
        recipe = self.recipe
        every = max(1, recipe.steps // recipe.evaluations)
        while self.step < (recipe.steps if until is None else until):
            self.advance()
            if score and self.step % every == 0:
                self.note()
            after()

    def note(self) -> None:
        """Score the validation split and keep the weights of those members that have never been better."""
        losses, scores = self.evaluate(self.task.validation, self.validation_rows)
        better = torch.zeros(len(self.members), dtype=torch.bool)
        for k, (loss, score) in enumerate(zip(losses.mean(1).tolist(), scores, strict=True)):
            self.curves[k].append((self.step, score, loss))
            self.finite[k] &= math.isfinite(score)
            if score > self.best[k]:  # never true for NaN
                self.best[k], self.best_step[k], better[k] = score, self.step, True
        mask = better.to(self.owner.device)[self.owner]
        self._best_theta = torch.where(mask, self.theta.detach(), self._best_theta)

    def keep(self, numbers: Sequence[int]) -> None:
        """Train only these members from now on; they go on exactly as they would have."""
        numbers = sorted(numbers)
        new = torch.full((len(self.members),), -1, device=self.owner.device)  # number of each member, −1: dropped
        new[numbers] = torch.arange(len(numbers), device=new.device)
        for part in self._parts:
            part.index = new[part.index][new[part.index] >= 0]
            part.shape = (len(part.index), *part.shape[1:])
        self._parts = [part for part in self._parts if len(part.index)]
        mask, self.finite = new[self.owner] >= 0, self.finite[numbers]
        state = self._optimizer.state.pop(self.theta, {})
        self.theta = self.theta.detach()[mask].requires_grad_()
        self.owner, self._speed, self._best_theta = new[self.owner[mask]], self._speed[mask], self._best_theta[mask]
        self._optimizer.param_groups[0]["params"] = [self.theta]
        self._optimizer.state[self.theta] = {n: v[mask] if v.ndim else v for n, v in state.items()}
        for name in ("members", "best", "best_step", "curves"):
            setattr(self, name, [getattr(self, name)[k] for k in numbers])

    # -- scores

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[Example], rows: Sequence[Row] | None = None, *, best: bool = False
    ) -> tuple[Tensor, list[float]]:
        """Losses of the rows [members, rows] and the main metric of each member, NaN where a score is not finite."""
        encoded = self.objective.encode(examples) if rows is None else rows
        batches, parts, losses = in_batches(encoded, max(1, ROWS // len(self.members))), [], []
        self.model.eval()
        self.objective.eval()
        for numbers in batches:
            chunk = [encoded[number] for number in numbers]
            scores, target = self._scores([chunk] * len(self.members), self._best_theta if best else self.theta)
            self.objective.scored += len(scores)
            losses.append(self.objective.losses(scores, target).view(len(self.members), -1))
            parts.append(scores.view(len(self.members), -1, scores.shape[-1]))
        back = torch.tensor([number for numbers in batches for number in numbers]).argsort()
        scores = torch.cat(parts, 1)[:, back]
        labels, metrics = [example.label for example in examples], []
        for own in scores:
            finite = bool(own.isfinite().all())  # the argmax of NaN is 0, a plausible class
            decided = self.objective.decide(own) if finite else []
            metrics.append(self.task.score(decided, labels)[self.task.metric] if finite else float("nan"))
        return torch.cat(losses, 1)[:, back], metrics

    def tensors(self, number: int, *, best: bool = True) -> dict[str, Tensor]:
        """The tensors of one member by the names of :class:`s3pet.supernet.Supernet` and, of a head, ``head/…``."""
        names = {(c.path, "." not in c.role, c.pet, c.rank): c.name for c in self.members[number].candidates}
        self._use(self._best_theta if best else self.theta.detach())
        own = [(part.key, part.value[part.index == number]) for part in self._parts]
        return {f"{names.get(key[:4], 'head')}/{key.name}": value[0].clone() for key, value in own if len(value)}

    def _scores(self, batches: Sequence[Sequence[Row]], theta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores [members × rows, n_labels], member by member, and the targets."""
        self._use(self.theta if theta is None else theta)
        shared: Any = nullcontext()
        if all(batch is batches[0] or batch == batches[0] for batch in batches[1:]):
            single = self.objective.collate(batches[0])
            batch = {name: _repeated(tensor, len(self.members)) for name, tensor in single.items()}
            if self._shared_blocks and len(self.members) > 1:
                shared = self._shared(single)
        else:
            batch = self.objective.collate([row for rows in batches for row in rows])
        with shared:
            return self.objective.scores(batch), batch["target"]

    @contextmanager
    def _shared(self, single: Batch) -> Iterator[None]:
        """The lowest blocks run once on these rows, and only repeat their outputs inside the ``with``."""
        outputs: dict[nn.Module, Any] = {}
        shared = self._shared_blocks

        def remember(block: nn.Module, inputs: tuple, output: Any) -> None:
            outputs[block] = output

        self._once = True
        try:
            with torch.no_grad(), ExitStack() as hooks:
                for block in shared:
                    hooks.enter_context(block.register_forward_hook(remember))
                self.objective.scores(single)
        finally:
            self._once = False
        own = {block: block.__dict__.get("forward") for block in shared}
        try:
            for block in shared:
                block.forward = _replay(outputs[block], len(self.members))  # type: ignore[method-assign]
            yield
        finally:
            for block, forward in own.items():
                block.__dict__.pop("forward", None)
                if forward is not None:
                    block.forward = forward  # type: ignore[method-assign]

    # -- at the sites

    def _adder(self, path: str, is_block: bool) -> Callable[[nn.Module, tuple, Any], Any]:
        def add_deltas(site: nn.Module, inputs: tuple, output: Any) -> Any:
            if self._once:
                return None
            h = output[0] if isinstance(output, tuple) else output
            own, x = (t.unflatten(0, (len(self.members), -1)) for t in (h, inputs[0] if inputs else h))
            changed = own.clone()
            here = [part for part in self._parts if part.key[:2] == (path, is_block)]
            for (pet, _), group in groupby(here, key=lambda part: (part.key.pet, part.key.rank)):
                parts = list(group)
                index, tensors = parts[0].index, {part.key.name: part.value.to(h.dtype) for part in parts}
                whole = len(index) == len(own)

                def delta(tensors: dict[str, Tensor], x: Tensor, h: Tensor, pet: str = pet) -> Tensor:
                    return PETS[pet].delta(tensors, x, h, site)

                value = torch.func.vmap(delta)(tensors, x if whole else x[index], own if whole else own[index])
                value = value.view(len(value), *[1] * (own.ndim - value.ndim), *value.shape[1:])
                changed.index_add_(0, index, value.expand(-1, *own.shape[1:]).to(h.dtype))
            changed = changed.flatten(0, 1)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return add_deltas

    def _head(self, out: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """The output of each member's own head, [members × rows, n_labels]."""
        if self._once:
            return None
        x = inputs[0].unflatten(0, (len(self.members), -1))
        weight, bias = (part.value for part in self._parts if not part.key.pet)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2)).flatten(0, 1)

    # -- layout

    def _lay_out(self, heads: dict[int, Objective]) -> tuple[Tensor, Tensor, Tensor, list[Part]]:
        """Initial values, owner and learning rate of every element, and the parts, those of a site side by side."""
        tensors: dict[Key, list[tuple[int, Tensor, float]]] = {}
        for k, member in enumerate(self.members):
            for c in member.candidates:
                lr = member.lr * (self.recipe.vector_lr if PETS[c.pet].default_rank is None else 1.0)
                for name, tensor in fresh_tensors(c, member.seed).items():
                    tensors.setdefault(Key(c.path, "." not in c.role, c.pet, c.rank, name), []).append((k, tensor, lr))
            head = heads[member.seed].head
            for name, tensor in head.named_parameters() if head is not None else ():
                key = Key("head", False, "", None, name)
                tensors.setdefault(key, []).append((k, tensor.detach().cpu(), member.lr))
        device, parts = self.objective.device, []
        values, owners, rates = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)], [torch.zeros(0)]
        for key in sorted(tensors, key=lambda key: (*key[:3], key.rank or 0)):
            for k, tensor, lr in tensors[key]:
                values.append(tensor.reshape(-1))
                owners.append(torch.full((tensor.numel(),), k))
                rates.append(torch.full((tensor.numel(),), lr))
            index = torch.tensor([k for k, *_ in tensors[key]], device=device)
            parts.append(Part(key, (len(index), *tensors[key][0][1].shape), index))
        return torch.cat(values).to(device), torch.cat(owners).to(device), torch.cat(rates).to(device), parts

    def _use(self, theta: Tensor) -> None:
        """The hooks use these values from now on."""
        pieces = theta.split([torch.Size(part.shape).numel() for part in self._parts])
        for part, piece in zip(self._parts, pieces, strict=True):
            part.value = piece.view(part.shape)


def blocks_before(objective: Objective, model: nn.Module, candidates: Sequence[Candidate], row: Row) -> dict[str, list]:
    """The blocks (layers) that have run before a candidate's site, in order, by the candidate's name.

    It is seen in one forward pass of one row. A block that runs again later, as in a model with shared layers, ends
    the list: its output differs between calls.
    """
    modules = dict(model.named_modules())
    lists = {name for name, module in modules.items() if isinstance(module, nn.ModuleList) and len(module) > 1}
    lists = {name for name in lists if not any(name.startswith(f"{other}.") for other in lists)}
    blocks = {module for name, module in modules.items() if name.rpartition(".")[0] in lists}
    sites, calls = {modules[c.path] for c in candidates}, list[nn.Module]()
    with torch.no_grad(), preserved(model, objective), ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(site.register_forward_pre_hook(lambda site, _: calls.append(site)))
        for block in blocks:
            hooks.enter_context(block.register_forward_hook(lambda block, *_: calls.append(block)))
        model.eval()
        objective.scores(objective.collate([row]))
    before = {}
    for c in candidates:
        first = calls.index(modules[c.path]) if modules[c.path] in calls else len(calls)
        ran = [module for module in calls[:first] if module in blocks]
        again = next((n for n, block in enumerate(ran) if calls.count(block) > 1), len(ran))
        before[c.name] = ran[:again]
    return before


def _repeated(tensor: Tensor, n: int) -> Tensor:
    return tensor.repeat(n, *[1] * (tensor.ndim - 1))


def _replay(output: Any, n: int) -> Callable[..., Any]:
    """A forward that returns an earlier output, repeated for n members."""
    first = output[0] if isinstance(output, tuple) else output

    def repeat(value: Any) -> Any:
        is_batched = isinstance(value, Tensor) and value.ndim and len(value) == len(first)
        return _repeated(value, n) if is_batched else value

    result = tuple(repeat(value) for value in output) if isinstance(output, tuple) else repeat(output)
    return lambda *args, **kwargs: result
