"""Attach candidates to a frozen model, and take them off without a trace.

A supernet owns the PET tensors of its candidates and nothing of the backbone, which is bit for bit what it was once the
supernet is detached. While attached, a forward hook makes the output of every site

    h + Σ_i z_i · δ_i(x, h)

with gates z set by :meth:`Supernet.use` (all 1 without it, which is how a structure is retrained). Only PET tensors get
gradients. As in the authors' code, all candidates of a projection or norm read the input and output of the site
itself; the adapter of a block reads the output of the block with what the candidates of its projections have added.

δ is linear in the last tensors of each PET module, so the gates multiply those, not activations. For one product with
all gates the PET tensors are seen as one vector (:meth:`Supernet.flatten`), tensors without gates first.

Sizes of one module at one site can be **nested** (Valipour et al. 2022, DyLoRA, arXiv:2210.07558; Kusupati et al. 2022,
Matryoshka, arXiv:2205.13147): they share the tensors of the largest one, of which size r uses the first r rows and
columns. A site then costs one pass, whatever the number of sizes. Column j of B has the gate

    Σ_{k: r_k > j} z_k · s(r_k) / s(R),      s(r) = 16/r for LoRA, 1 for an adapter; R: the largest size

so that a gate of 1 for one size, and 0 for the others, is exactly the module of this size that a structure retrains.

A backbone with gradient checkpointing runs forward again in the backward pass. The gates must still be in effect then:
call ``backward`` inside ``with supernet.using(…)``; outside, an error says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from s3pet.backbones import unwrapped
from s3pet.backbones.loans import Loan, attached_to, claimed, detach, is_in_use, lent
from s3pet.errors import SearchError, StructureMismatchError
from s3pet.files.kinds import SEED
from s3pet.modules import PETS, pet_module
from s3pet.space import Candidate, Candidates, checked_candidates

__all__ = ["Supernet", "attach", "detach", "fresh_tensors", "is_attached"]


class Supernet(nn.Module):
    """Candidates on a frozen backbone. Calling it runs the backbone with the candidates on.

    It also serves as ``model=`` of Hugging Face's pipelines and Trainer, which then trains the PET tensors: what it
    does not have itself (``config``, …) is the backbone's. To save it as a plain model, merge it.

    Args:
        model: the backbone, frozen while the supernet is attached; BackboneError if it is compiled or PEFT's.
        candidates: a space, a structure (StructureMismatchError if it does not fit the model), or other candidates.
        seed: of the fresh PET tensors. The tensors of a candidate depend only on the seed and its name, so the same
            candidate starts the same in every structure.
        nested: sizes of one module at one site share tensors, as a search has them; False: each has its own.

    Attributes:
        weights, keys: all PET tensors, in candidate order, and their names, ``"<candidate>/<tensor>"``; of nested sizes
            those of the largest.
        also: makes a context that is entered while the supernet is attached, such as one with a trained head.
    """

    model: Any  # kept out of the submodules: state_dict() and parameters() hold PET tensors only
    also: Any

    def __init__(self, model: nn.Module, candidates: Iterable[Candidate], *, seed: int = 0, nested: bool = False):
        super().__init__()
        self.__dict__["model"] = unwrapped(model)
        SEED.check(SearchError, seed=seed)
        if isinstance(candidates, Candidates):
            candidates.check(model)
        self.candidates = checked_candidates(candidates)
        device, modules = next(model.parameters()).device, dict(model.named_modules())
        sizes = _nested_sizes(self.candidates) if nested else {}
        largest = {n: group[-1] for group in sizes.values() for n in group}
        owners = [n for n in range(len(self.candidates)) if largest.get(n, n) == n]  # of tensors
        numbered = [(n, name, t) for n in owners for name, t in fresh_tensors(self.candidates[n], seed).items()]
        self.keys = [f"{self.candidates[n].name}/{name}" for n, name, _ in numbered]
        where = [_device_of(modules.get(self.candidates[n].path), device) for n, _, _ in numbered]
        self.weights = nn.ParameterList(nn.Parameter(t.to(d)) for (_, _, t), d in zip(numbered, where, strict=True))
        self._slots: list[dict[str, int]] = [{} for _ in self.candidates]  # name of each tensor → index in weights
        for slot, (n, name, _) in enumerate(numbered):
            self._slots[n][name] = slot
        is_gated = [name in PETS[self.candidates[n].pet].gated for n, name, _ in numbered]
        self._order = sorted(range(len(numbered)), key=is_gated.__getitem__)  # of the tensors in the flat vector
        self._n_ungated = is_gated.count(False)
        gate_of = [self._gates_of(*numbered[s], sizes.get(numbered[s][0], [])) for s in self._order[self._n_ungated :]]
        self._gate_of = torch.cat([torch.zeros(0, dtype=torch.long), *gate_of]).to(device)  # of each gated element
        self._shares = self._find_shares(sizes.values(), device) if sizes else None
        self._active: Sequence[Tensor] = list(self.weights)  # what the hooks use: gates multiplied in
        self._last_forward: Sequence[Tensor] | None = None
        self.__dict__["also"], self._loan = nullcontext, cast(Loan | None, None)
        self._is_lasting = False  # attached for longer than the call of a function that borrows the model

    @property
    def is_nested(self) -> bool:
        """Whether candidates share tensors."""
        return self._shares is not None

    def attach(self) -> Supernet:
        """Put the candidates on and freeze the backbone.

        Raises SearchError if another supernet is attached, another thread searches or trains on the model, or it uses
        reentrant gradient checkpointing; and StructureMismatchError if a site is not in the model.
        """
        _refuse_reentrant_checkpointing(self.model)
        with claimed(self.model, "attach"):
            self._loan = loan = Loan(self.model, f"a supernet of {len(self.candidates)} candidates")
            try:
                loan.take()
                sites = dict(self.model.named_modules())
                indexed = enumerate(self.candidates)
                for (path, _), group in groupby(indexed, key=lambda pair: (pair[1].path, "." not in pair[1].role)):
                    if path not in sites:
                        raise StructureMismatchError(f"{path!r} is not in {type(self.model).__name__}")
                    sites[path].register_forward_hook(partial(self._add_deltas, [index for index, _ in group]))
                loan.undo.append(register_optimizer_step_pre_hook(self._check_optimizer).remove)
                also = self.also()
                leave = partial(also.__exit__, None, None, None)
                also.__enter__()
                loan.undo.append(leave)
                loan.undo.append(partial(setattr, self, "_is_lasting", False))
                self._is_lasting = not is_in_use(self.model)
            except BaseException:  # an interrupt, too
                self.detach()
                raise
        return self

    def detach(self) -> None:
        """Take the candidates off and give the backbone its requires_grad flags back. Safe to call twice."""
        if self._loan is not None:
            self._loan.end()
            self._last_forward = None

    @property
    def is_attached(self) -> bool:
        """Whether the candidates are on the model now."""
        return self._loan is not None and self._loan.is_live

    def __enter__(self) -> Supernet:
        with claimed(self.model, "attach"):
            if not self.is_attached:
                self.attach()
            cast(Loan, self._loan).entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        loan = cast(Loan, self._loan)
        with loan.lock:
            try:
                del loan.entered[-1:]
            finally:
                try:
                    loan.leave()
                finally:  # an interrupt may have cut it short
                    loan.leave()

    def flatten(self) -> Tensor:
        """All PET tensors as one vector that shares their memory from now on; :meth:`use` takes it as weights.

        It lies on the model's first device; its parts go to the devices of their sites in each pass.
        """
        ordered = [self.weights[slot] for slot in self._order]
        flat = torch.cat([weight.detach().reshape(-1).to(self._gate_of.device) for weight in ordered])
        for weight, part in zip(ordered, flat.split([weight.numel() for weight in ordered]), strict=True):
            weight.data = part.view(weight.shape)
        return flat

    def vectors(self) -> list[nn.Parameter]:
        """The tensors of BitFit and LNFit, the modules without a size."""
        pairs = zip(self.candidates, self._slots, strict=True)
        return [self.weights[slot] for c, slots in pairs if PETS[c.pet].default_rank is None for slot in slots.values()]

    def use(self, gates: Tensor | None = None, weights: Tensor | Sequence[Tensor] | None = None) -> None:
        """Run with these gates and weights from now on; without arguments, with gates of 1 and the supernet's weights.

        Args:
            gates: [n_candidates]; None: gates of 1, of nested sizes the largest alone.
            weights: tensors in the shapes of ``self.weights``, or one vector in the order of :meth:`flatten`.
        """
        flat = list(self.weights) if weights is None else weights
        if gates is None and not isinstance(flat, Tensor):
            self._active = flat
            return
        if not isinstance(flat, Tensor):
            flat = torch.cat([flat[slot].reshape(-1) for slot in self._order])
        ungated, gated = flat.split([flat.numel() - len(self._gate_of), len(self._gate_of)])
        if gates is not None:
            if self._shares is not None:  # from the gate of each size to that of the columns it has and the smaller not
                sources, targets, factors = self._shares
                shares = gates.index_select(0, sources) * factors.to(gates.dtype)
                gates = torch.zeros_like(gates).index_add(0, targets, shares)
            gated = gated * gates.index_select(0, self._gate_of)
        sizes = [self.weights[slot].numel() for slot in self._order]
        parts = [*ungated.split(sizes[: self._n_ungated]), *gated.split(sizes[self._n_ungated :])]
        by_slot = sorted(zip(self._order, parts, strict=True), key=lambda pair: pair[0])
        self._active = [part.view(self.weights[slot].shape) for slot, part in by_slot]

    @contextmanager
    def using(self, gates: Tensor | None = None, weights: Tensor | Sequence[Tensor] | None = None) -> Iterator[None]:
        """:meth:`use` inside a ``with``; what was in effect before is restored afterwards."""
        before = self._active
        self.use(gates, weights)
        try:
            yield
        finally:
            self._active = before

    def forward(  # inputs are named, because a Trainer drops columns that are not
        self, *args, input_ids=None, attention_mask=None, token_type_ids=None, pixel_values=None, labels=None, **more
    ) -> Any:
        """The output of the backbone, with the candidates on for this call."""
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        named |= {"pixel_values": pixel_values, "labels": labels}
        inputs = {name: value for name, value in named.items() if value is not None}
        return self._call(partial(self.model, *args, **inputs, **more))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the backbone generates with the candidates on."""
        return self._call(partial(self.model.generate, *args, **kwargs))

    def _call(self, function: Callable[[], Any]) -> Any:
        """Call the model with the candidates on: as it is, if they are attached for longer, or else for this call."""

        def within() -> Any:
            with self:
                return function()

        return function() if self._is_lasting else lent(self.model, "a prediction", within, short=True)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused with SearchError: the file of a backbone has no place for candidates."""
        raise SearchError("a supernet is not saved as a plain model: see s3pet.merge and s3pet.to_peft, or tuned.save")

    push_to_hub = save_pretrained

    def __getattr__(self, name: str) -> Any:
        """What the supernet does not have itself, such as ``config``, is the backbone's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "model" not in self.__dict__:
                raise
        return getattr(self.__dict__["model"], name)

    def tensors(self) -> dict[str, Tensor]:
        """PET tensors by name; they share memory with the supernet's."""
        return {key: weight.detach() for key, weight in zip(self.keys, self.weights, strict=True)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy saved PET tensors in; raises StructureMismatchError naming what is missing or of another shape."""
        mine = self.tensors()
        wrong = [key for key in mine if key not in tensors or tensors[key].shape != mine[key].shape]
        if wrong:
            raise StructureMismatchError(f"saved PET tensors lack or misshape {wrong[:3]} ({len(wrong)} in all)")
        for key, tensor in mine.items():
            tensor.copy_(tensors[key])

    def _gates_of(self, owner: int, name: str, tensor: Tensor, sizes: list[int]) -> Tensor:
        """The candidate whose gate multiplies each element: of nested sizes the smallest that has it."""
        axis = PETS[self.candidates[owner].pet].size_axis.get(name) if sizes else None
        if axis is None:
            return torch.full((tensor.numel(),), sizes[0] if sizes else owner)
        ranks = torch.tensor([self.candidates[n].rank for n in sizes])
        smallest = torch.tensor(sizes)[torch.bucketize(torch.arange(tensor.shape[axis]), ranks, right=True)]
        shape = [-1 if n == axis else 1 for n in range(tensor.ndim)]
        return smallest.view(shape).expand(tensor.shape).reshape(-1)

    def _find_shares(self, groups: Iterable[list[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates k and n, and by what factor z_k enters the gate of the elements that n has and a smaller has not.

        k is n, or a larger size of the same module at the same site.
        """
        shares = [(n, n, 1.0) for n in set(range(len(self.candidates))) - {n for group in groups for n in group}]
        for group in groups:
            scale, ranks = PETS[self.candidates[group[0]].pet].scale, [self.candidates[n].rank or 1 for n in group]
            for i, n in enumerate(group):
                pairs = zip(group[i:], ranks[i:], strict=True)
                shares += [(k, n, scale(rank) / scale(ranks[-1])) for k, rank in pairs]
        sources, targets, factors = zip(*shares, strict=True)
        return tuple(torch.tensor(part, device=device) for part in (sources, targets, factors))  # type: ignore[return-value]

    def _add_deltas(self, indices: Sequence[int], site: nn.Module, inputs: tuple, output: Any) -> Any:
        """A forward hook that adds the deltas of these candidates."""
        self._check_recomputation()
        h = output[0] if isinstance(output, tuple) else output
        x = inputs[0] if inputs else h
        changed = h
        for index in indices:
            if not self._slots[index]:  # a size within a larger one
                continue
            tensors = {name: self._active[slot].to(h.device, h.dtype) for name, slot in self._slots[index].items()}
            delta = PETS[self.candidates[index].pet].delta(tensors, x, h, site)
            if delta.dtype != changed.dtype:
                changed = changed + delta.to(changed.dtype)  # the layers after it expect the type that they have
            elif changed is not h:  # adding in place, where the tensor is ours, needs less memory
                changed.add_(delta)
            elif delta.shape == h.shape and not delta._is_view():
                changed = delta.add_(h)
            else:
                changed = h + delta
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _check_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Refuse the step of an optimiser that has nothing but the frozen backbone, as one of a Trainer of it would."""
        has = [p for group in optimizer.param_groups for p in group["params"]]
        frozen = {id(parameter) for parameter, _ in self._loan.flags} if self._loan is not None else set()
        if self.candidates and all(not p.requires_grad and id(p) in frozen for p in has):
            what = "this optimiser has only the frozen backbone, so it trains nothing and none of the PET modules on it"
            how = "pass the supernet instead of the model, as in Trainer(model=supernet, …), or use s3pet.retrain"
            raise SearchError(f"{what}; {how}")

    def _check_recomputation(self) -> None:
        """Refuse a forward pass inside a backward pass with other gates or weights than the pass it repeats."""
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass; torch's own checkpointing asks the same
            self._last_forward = self._active
        elif self._active is not self._last_forward:
            what = "gradient checkpointing ran the model again with other gates than in the forward pass"
            raise SearchError(f"{what}; call backward inside `with supernet.using(...)`, or switch checkpointing off")


def _device_of(site: nn.Module | None, default: torch.device) -> torch.device:
    """Where a site computes."""
    return next((parameter.device for parameter in site.parameters()), default) if site is not None else default


def _nested_sizes(candidates: Sequence[Candidate]) -> dict[int, list[int]]:
    """Where a module has several sizes at a site, which nest: the index of the largest → all of them, by size."""
    groups: dict[tuple[str, str], list[int]] = {}
    for n, c in enumerate(candidates):
        if PETS[c.pet].size_axis:
            groups.setdefault((c.site, c.pet), []).append(n)
    ordered = [sorted(group, key=lambda n: candidates[n].rank or 1) for group in groups.values() if len(group) > 1]
    return {group[-1]: group for group in ordered}


def attach(model: nn.Module, candidates: Iterable[Candidate], *, seed: int = 0) -> Supernet:
    """Put fresh candidates on a frozen model, see :meth:`Supernet.attach`; in a ``with``, they come off at its end."""
    return Supernet(model, candidates, seed=seed).attach()


def is_attached(model: nn.Module) -> bool:
    """Whether a supernet is attached to this model, to a part of it or to a model around it."""
    return attached_to(model) is not None


def _refuse_reentrant_checkpointing(model: nn.Module) -> None:
    """Reentrant checkpointing makes no graph where no input needs a gradient, so PET tensors would not be trained."""
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if getattr(module, "gradient_checkpointing", False) and getattr(function, "keywords", {}).get("use_reentrant"):
            what = "reentrant gradient checkpointing gives no gradients of PET modules on a frozen model"
            raise SearchError(f"{what}; enable it with {{'use_reentrant': False}}, the default of transformers")


def fresh_tensors(candidate: Candidate, seed: int) -> dict[str, Tensor]:
    """The tensors a candidate starts with, on the CPU; the same in every structure."""
    digest = hashlib.sha256(f"{seed}:{candidate.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return pet_module(candidate.pet).init(candidate.d_in, candidate.d_out, candidate.rank or 1, generator)
