"""Attach candidates to a frozen model, and take them off without a trace.

A supernet owns the PET tensors of its candidates, nothing of the backbone: one frozen backbone serves every supernet,
one after the other, and is bit for bit what it was once they are gone. While attached, every site's output is

    h + Σ_i z_i · δ_i(x, h)

with the gates z given by :meth:`Supernet.using` (all 1 without it, which is how a chosen structure is retrained). Only
PET tensors get gradients; autograd builds no graph below the first site.

As in the authors' code, all candidates of a projection or norm read the site's own input and output; a block's
adapter reads the block's output with what its projections' candidates have added. Where :mod:`s3pet.fused` knows the
site, its forward is replaced while attached; elsewhere a forward hook adds the deltas one by one.

Gates multiply the smallest tensors, all of them in one product: for that the PET tensors are thought of as one vector,
those that no gate touches first. A search keeps them so (:meth:`Supernet.flatten`), and gets one gradient back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from s3pet.errors import SearchError, StructureMismatchError
from s3pet.fused import fused_forward, split
from s3pet.modules import PETS, pet_module
from s3pet.space import Candidate, Space
from s3pet.structure import Structure

_MARK = "_s3pet_attached"


class Supernet(nn.Module):
    """Candidates on a frozen backbone. Calling it runs the backbone with them on.

    Args:
        model: the backbone; it is frozen while the supernet is attached.
        candidates: a space, a structure, or a sequence of candidates.
        seed: of the fresh PET tensors. Each candidate's tensors depend only on the seed and its name, so the same
            candidate starts the same in every structure.

    Attributes:
        weights: all PET tensors, in candidate order.
        keys: their names, ``"<candidate>/<tensor>"``.
    """

    model: Any  # kept out of the submodules, so nn.Module's own attribute types do not apply

    def __init__(self, model: nn.Module, candidates: Space | Structure | Sequence[Candidate], *, seed: int = 0):
        super().__init__()
        if isinstance(candidates, Structure):
            candidates.check(model)
        chosen = candidates.candidates if isinstance(candidates, (Space, Structure)) else candidates
        self.candidates = tuple(chosen)
        self.__dict__["model"] = model  # not a submodule: state_dict() and parameters() hold PET tensors only
        self.keys: list[str] = []
        self._slots: list[list[tuple[str, int]]] = []
        fresh: list[nn.Parameter] = []
        free: list[int] = []
        gated: list[int] = []
        owners: list[int] = []  # of each gated tensor, its candidate
        device = next(model.parameters()).device
        for number, candidate in enumerate(self.candidates):
            slots = []
            for name, tensor in self._fresh(candidate, seed).items():
                slots.append((name, len(fresh)))
                if name in PETS[candidate.pet].gated:
                    gated.append(len(fresh))
                    owners.append(number)
                else:
                    free.append(len(fresh))
                self.keys.append(f"{candidate.name}/{name}")
                fresh.append(nn.Parameter(tensor.to(device)))
            self._slots.append(slots)
        self.weights = nn.ParameterList(fresh)
        self._order, self._n_free = [*free, *gated], len(free)
        sizes = torch.tensor([fresh[slot].numel() for slot in gated], dtype=torch.long)
        self._owners = torch.tensor(owners, dtype=torch.long).repeat_interleave(sizes).to(device)  # of each element
        self._gates: Tensor | None = None
        self._given: Tensor | Sequence[Tensor] = list(self.weights)
        self._now: Sequence[Tensor] = list(self.weights)  # as given, gates multiplied in
        self._undo: list[Callable[[], None]] = []
        self._flags: list[bool] = []

    @staticmethod
    def _fresh(candidate: Candidate, seed: int) -> dict[str, Tensor]:
        digest = hashlib.sha256(f"{seed}:{candidate.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return pet_module(candidate.pet).init(candidate.d_in, candidate.d_out, candidate.rank or 1, generator)

    @property
    def n_params(self) -> int:
        """Trainable PET parameters."""
        return sum(weight.numel() for weight in self.weights)

    def attach(self) -> Supernet:
        """Put the candidates on and freeze the backbone; raises SearchError if another supernet is on."""
        if getattr(self.model, _MARK, False):
            raise SearchError("another supernet is attached to this model; detach it first (or use `with`)")
        parameters = list(self.model.parameters())
        self._flags = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(False)
        setattr(self.model, _MARK, True)
        indexed = enumerate(self.candidates)
        for (path, _), group in groupby(indexed, key=lambda pair: (pair[1].path, _is_block(pair[1]))):
            try:
                site = self.model.get_submodule(path)
            except AttributeError as error:
                self.detach()
                raise StructureMismatchError(f"{path!r} is not in {type(self.model).__name__}") from error
            self._put_on(site, [index for index, _ in group])
        return self

    def detach(self) -> None:
        """Take the candidates off and give the backbone its own requires_grad flags back. Safe to call twice."""
        if not self._flags:
            return
        for undo in self._undo:
            undo()
        self._undo = []
        for parameter, flag in zip(self.model.parameters(), self._flags, strict=True):
            parameter.requires_grad_(flag)
        self._flags = []
        delattr(self.model, _MARK)

    def __enter__(self) -> Supernet:
        return self if self._flags else self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def flatten(self) -> Tensor:
        """All PET tensors as one vector that shares their memory from now on; :meth:`using` takes it as weights."""
        flat = torch.cat([self.weights[slot].detach().reshape(-1) for slot in self._order])
        own = [self.weights[slot] for slot in self._order]
        for weight, part in zip(own, flat.split([weight.numel() for weight in own]), strict=True):
            weight.data = part.view(weight.shape)
        return flat

    def vectors(self) -> list[nn.Parameter]:
        """The tensors of BitFit and LNFit."""
        of = zip(self.candidates, self._slots, strict=True)
        return [self.weights[slot] for c, slots in of if PETS[c.pet].is_vector for _, slot in slots]

    def rates(self, vector_lr: float) -> Tensor:
        """Factor on the learning rate of each element of :meth:`flatten`: ``vector_lr`` for :meth:`vectors`, else 1."""
        quick = {id(weight) for weight in self.vectors()}
        own = [self.weights[slot] for slot in self._order]
        return torch.cat([torch.full_like(w, vector_lr if id(w) in quick else 1.0).reshape(-1) for w in own])

    @contextmanager
    def using(self, gates: Tensor | None = None, weights: Tensor | Sequence[Tensor] | None = None) -> Iterator[None]:
        """Run with these gates and weights instead of 1 and the supernet's own; restored afterwards.

        Args:
            gates: [n_candidates].
            weights: tensors in the shapes of ``self.weights``, or one vector in the order of :meth:`flatten`.
        """
        before = self._gates, self._given, self._now
        self._gates = self._gates if gates is None else gates
        self._given = self._given if weights is None else weights
        self._now = self._gated()
        try:
            yield
        finally:
            self._gates, self._given, self._now = before

    def _gated(self) -> Sequence[Tensor]:
        """The given weights, each in its shape, the gates multiplied in."""
        given = self._given
        if self._gates is None and not isinstance(given, Tensor):
            return given
        flat = given if isinstance(given, Tensor) else torch.cat([given[slot].reshape(-1) for slot in self._order])
        parts = list(flat.split([flat.numel() - len(self._owners), len(self._owners)]))
        if self._gates is not None:
            parts[1] = parts[1] * self._gates.index_select(0, self._owners)
        shapes = [self.weights[slot].shape for slot in self._order]
        tensors = (*split(parts[0], shapes[: self._n_free]), *split(parts[1], shapes[self._n_free :]))
        found = dict(zip(self._order, tensors, strict=True))
        return [found[slot] for slot in range(len(self.weights))]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's own output, with the candidates on for this call."""
        if self._flags:
            return self.model(*args, **kwargs)
        with self:
            return self.model(*args, **kwargs)

    def tensors(self) -> dict[str, Tensor]:
        """PET tensors by name, for saving."""
        return {key: weight.detach() for key, weight in zip(self.keys, self.weights, strict=True)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy saved PET tensors in; raises StructureMismatchError naming what is missing or of another shape."""
        own = dict(zip(self.keys, self.weights, strict=True))
        wrong = [key for key in own if key not in tensors or tensors[key].shape != own[key].shape]
        if wrong:
            raise StructureMismatchError(f"saved PET tensors lack or misshape {wrong[:3]} ({len(wrong)} in all)")
        with torch.no_grad():
            for key, weight in own.items():
                weight.copy_(tensors[key])

    def _put_on(self, site: nn.Module, indices: list[int]) -> None:
        pets = [self.candidates[index].pet for index in indices]
        slots = [self._slots[index] for index in indices]

        def tensors() -> list[dict[str, Tensor]]:
            return [{name: self._now[slot] for name, slot in row} for row in slots]

        def add_deltas(site: nn.Module, inputs: tuple, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            x = inputs[0] if inputs else h
            changed = h
            for pet, own in zip(pets, tensors(), strict=True):
                cast = {name: tensor.to(h.dtype) for name, tensor in own.items()}
                changed = changed + PETS[pet].delta(cast, x, h, site)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        forward = fused_forward(site, pets, tensors)
        if forward is None:
            self._undo.append(site.register_forward_hook(add_deltas).remove)
        else:
            site.forward = forward  # type: ignore[assignment]
            self._undo.append(partial(delattr, site, "forward"))


def attach(model: nn.Module, candidates: Space | Structure | Sequence[Candidate], *, seed: int = 0) -> Supernet:
    """Fresh candidates on a frozen model; a context manager that takes them off without a trace.

    >>> with attach(model, space) as supernet:  # doctest: +SKIP
    ...     logits = model(**batch).logits

    Raises:
        SearchError: a supernet is already attached. StructureMismatchError: a candidate does not fit the model.
    """
    return Supernet(model, candidates, seed=seed).attach()


def _is_block(candidate: Candidate) -> bool:
    return "." not in candidate.role
