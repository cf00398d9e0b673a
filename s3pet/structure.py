"""A discrete choice of candidates: select, random, manual, save, load, compare, retarget.

A structure is a list of candidates whose cost is at most the budget. Selection goes through the candidates from the
most to the least probable, takes each one that still fits and skips the others. So one search ranks all candidates and
can be cut at any budget. A structure file is versioned JSON and is checked when it is read.

Of several sizes of one module at one site, a selection takes one. A larger size holds the smaller ones, so it replaces
a smaller one that was taken, if the difference in cost still fits, and never the other way round. A search ranks a size
by the probability that it *or a larger one* is open (:func:`by_gates`), so the rank of a LoRA grows block by block,
at the price of each block. The alternatives are worse: by its own probability alone, rank 1 with p = 0.50 would shut
out rank 4 with 0.49, and listing more sizes would make each of them, and so the site, less probable.

Source: Hu et al. 2022 (arXiv:2206.07382), section 3.3. Their random baseline can loop for ever when only chosen
candidates still fit; here every candidate is visited once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3pet.backbones.sites import find_sites
from s3pet.errors import BudgetError, SearchError, SpaceError, StructureMismatchError, nearest, shown
from s3pet.files import kinds
from s3pet.files.kinds import RECORD, RECORDS, TEXT, Kind, check_record, mapping, optional, whole
from s3pet.files.reading import path_of, read_json, reading
from s3pet.files.writing import check_signature, signed, write_json
from s3pet.gates import Budget, BudgetLike
from s3pet.modules import PETS
from s3pet.space import (
    CANDIDATE,
    CANDIDATE_REQUIRED,
    Candidate,
    Candidates,
    Rule,
    Space,
    checked_candidates,
    counterparts,
    layers_of,
    make_space,
)

FORMAT = "s3pet-structure"
VERSION = 1
_FIELDS = {
    **{"format": TEXT, "version": whole(1), "candidates": RECORDS, "model_id": TEXT, "space": TEXT, "origin": RECORD},
    **{"budget": optional(whole(1)), "n_params": whole(), "layers": optional(mapping(whole(1)))},
    "probs": optional(
        Kind("a list of numbers", lambda v: isinstance(v, list) and all(type(p) in (int, float) for p in v))
    ),
}

SPACE = kinds.instance(Space, "a space, as make_space(model) returns it")
_ALL_OF = ("bitfit", "lnfit", "lowrank_adapter", "adapter")
# Queries and values; of a model that computes them together in one map (GPT-2, Falcon, Phi-3 …), that map.
QUERIES_VALUES = Rule("lora", roles=("attn.[qv]", "attn.qkv", "attn.kv"))
MANUAL = {pet: Rule(pet) for pet in _ALL_OF} | {"lora_all": Rule("lora"), "lora_qv": QUERIES_VALUES}


@dataclass(frozen=True)
class Structure(Candidates):
    """Chosen candidates, in canonical order. Structures that differ only in ``probs`` or ``layers`` are equal.

    Attributes:
        candidates, model_id: what was chosen, and the backbone it was made for.
        space: name of the space it was chosen from. layers: number of layers of each stack in it; None if unknown.
        budget: the budget it was cut at, in parameters; None for manual structures.
        origin: where it came from: ``{"kind": "searched", "task": …, "seed": …}``.
        probs: by which the candidates were ranked, one finite number each; None for random and manual structures.
    """

    candidates: tuple[Candidate, ...]
    model_id: str
    space: str = "custom"
    budget: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    probs: tuple[float, ...] | None = field(default=None, compare=False)
    layers: Mapping[str, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        error, names = StructureMismatchError, kinds.instance(Mapping, "a mapping")
        object.__setattr__(self, "candidates", checked_candidates(self.candidates))
        TEXT.check(error, model_id=self.model_id, space=self.space)
        optional(whole(1)).check(error, budget=self.budget)
        names.check(error, origin=self.origin)
        optional(mapping(whole(1))).check(error, layers=self.layers)
        optional(kinds.many(kinds.instance((int, float), "a number"))).check(error, probs=self.probs)
        infinite = sum(not math.isfinite(prob) for prob in self.probs or ())
        if self.probs is not None and (infinite or len(self.probs) != len(self)):
            what = f"{len(self.probs)} probabilities for {len(self)} candidates, {infinite} of them not finite"
            raise StructureMismatchError(f"{what}; give one each, or None")

    @property
    def sites(self) -> tuple[str, ...]:
        """Addresses of the sites in use, each once, in canonical order."""
        return tuple(dict.fromkeys(candidate.site for candidate in self))

    def jaccard(self, other: Structure) -> float:
        """Shared candidates divided by all candidates of both, in [0, 1]; 1.0 for two empty structures."""
        kinds.instance(Structure, "a structure").check(StructureMismatchError, other=other)
        one, two = set(self.names), set(other.names)
        return len(one & two) / len(one | two) if one | two else 1.0

    def retarget(self, space: Space, *, by: str = "relative_depth", budget: BudgetLike | None = None) -> Structure:
        """Put the structure on another space, such as that of a backbone of another size.

        Each candidate goes to its counterpart (:func:`s3pet.space.counterparts`). On a deeper backbone this leaves
        gaps; on a shallower one, candidates with the same counterpart are merged, the largest probability is kept.

        Args:
            space, by: the candidates to put it on; ``"name"`` or ``"relative_depth"``.
            budget: keep only the most probable candidates (the first ones where probabilities are unknown) within this
                budget; None: keep all. ``structure.n_params / old_space.backbone_params`` gives the same share.

        Returns:
            A structure of ``space``. Without a budget it keeps its own on the same backbone, and has None on another.
            ``origin`` gains ``from``, ``by`` and three lists of names: ``unplaced`` and ``merged`` in the old space,
            ``dropped`` (over the budget, or another size of a module is there) in the new one.

        Raises:
            StructureMismatchError: no candidate has a counterpart, or ``layers`` is needed and unknown.
            SpaceError: unknown ``by``. BudgetError: unreadable budget, or one below the cheapest counterpart.
        """
        SPACE.check(SpaceError, space=space)
        same = space.model_id == self.model_id
        layers = layers_of(space) if self.layers is None and same else self.layers
        if layers is None and by == "relative_depth":
            what = f"this structure does not say how many layers {self.model_id!r} has"
            raise StructureMismatchError(f"{what}; read it with Structure.from_json(path, model), or use by='name'")
        counterpart, probs = counterparts(space, by, layers or {}), self.probs or (0.0,) * len(self)
        best: dict[str, float] = {}  # name of the counterpart → largest probability
        unplaced, merged = [], []
        for prob, candidate in sorted(zip(probs, self, strict=True), key=lambda pair: -pair[0]):  # ties: in order
            if (target := counterpart(candidate)) is None:
                unplaced.append(candidate.name)
            elif target.name in best:
                merged.append(candidate.name)
            else:
                best[target.name] = prob
        if len(self) and not best:
            names = ", ".join(self.names[:3])
            raise StructureMismatchError(f"no candidate ({names}, …) has a counterpart in {space!r} by {by}")
        placed = replace(space, candidates=tuple(candidate for candidate in space if candidate.name in best))
        ranked_by = torch.tensor([best[candidate.name] for candidate in placed], dtype=torch.float64)
        new_budget = self.budget if same and placed.n_params <= (self.budget or 0) else None
        limit = math.inf
        if budget is not None:
            limit = new_budget = parse_budget(placed, budget).n_params
        mask = select_mask(ranked_by, placed.costs, limit, placed.groups)
        dropped = [candidate.name for candidate, taken in zip(placed, mask.tolist(), strict=True) if not taken]
        lists = {"unplaced": unplaced, "merged": merged, "dropped": dropped}
        origin = {**self.origin, "from": self.model_id, "by": by, **lists}
        structure = _structure(placed, mask, new_budget, origin, None if self.probs is None else ranked_by)
        return replace(structure, layers=layers_of(space))

    def to_json(self, path: str | Path) -> Path:
        """Write the structure as versioned JSON; returns the path."""
        write_json(self.record(), path_of(path))
        return Path(path)

    def record(self) -> dict[str, Any]:
        """What :meth:`to_json` writes."""
        return signed({"format": FORMAT, "version": VERSION, **asdict(self), "n_params": self.n_params})

    @classmethod
    def from_json(cls, path: str | Path, model: torch.nn.Module | None = None) -> Structure:
        """Read a file that :meth:`to_json` wrote.

        With a ``model``, check that the structure fits it, and take ``layers`` from it where the file has none.

        Raises:
            StructureMismatchError: no such file or not a structure file, a newer version, a candidate that is there
                twice, a cost that does not follow from module, widths and rank, or a structure for another model.
        """
        path_of(path, StructureMismatchError)
        what = f"a structure file of version ≤ {VERSION}"
        with reading(path, StructureMismatchError, what, "Write one with structure.to_json()."):
            record = read_json(path, _FIELDS, ("format", "version", "candidates", "model_id", "space", "origin"))
            if record["format"] != FORMAT or record["version"] > VERSION:
                raise ValueError(f"format {record['format']!r} version {record['version']}")
            candidates = read_candidates(record["candidates"], record.get("n_params"))
            known = (record["model_id"], record["space"], record.get("budget"), record["origin"])
            probs, layers = record.get("probs"), record.get("layers")  # missing in older files
            structure = cls(candidates, *known, None if probs is None else tuple(map(float, probs)), layers)
            if structure.n_params > (structure.budget or math.inf):
                raise ValueError(f"it says budget {structure.budget}, holds {structure.n_params} parameters")
            if layers and (beyond := [c.site for c in candidates if (c.layer or 0) >= layers.get(c.stack, 1)]):
                raise ValueError(f"it says layers {layers}, holds {beyond[0]}")
            check_signature(record)
        if model is None:
            return structure
        structure.check(model)
        return replace(structure, layers=structure.layers or layers_of(find_sites(model)))

    def __repr__(self) -> str:
        counts = Counter(candidate.pet for candidate in self)
        parts = ", ".join(f"{count} {pet}" for pet, count in counts.items()) or "empty"
        return f"Structure({self.origin.get('kind', 'custom')}: {parts}; {self.n_params:,} parameters)"


def read_candidates(rows: Sequence[Mapping[str, Any]], n_params: int | None) -> tuple[Candidate, ...]:
    """Candidates from the rows of a file or table; raises ValueError, as :func:`check_candidates`."""
    candidates = tuple(Candidate.from_row(check_record(row, CANDIDATE, CANDIDATE_REQUIRED)) for row in rows)
    check_candidates(candidates, n_params)
    return candidates


def check_candidates(candidates: Sequence[Candidate], n_params: int | None) -> None:
    """Raise ValueError for a candidate that is there twice, or costs that do not follow from modules and widths."""
    counts = Counter(c.name for c in candidates)
    for c in candidates:
        cost = PETS[c.pet].cost(c.d_in, c.d_out, c.rank or 1) if c.pet in PETS else "no known number"
        if counts[c.name] > 1:
            raise ValueError(f"it holds {c.name} twice")
        if c.n_params != cost:
            raise ValueError(f"it holds {c.name} with {c.n_params} parameters; {c.d_in}→{c.d_out} needs {cost}")
    if n_params not in (None, total := sum(c.n_params for c in candidates)):
        raise ValueError(f"it says {n_params} parameters, holds {total}")


def select_mask(probs: Tensor, costs: Tensor, budget: float, groups: Tensor | None = None) -> Tensor:
    """Choose by probability within a budget: take what fits, skip what does not, until the end.

    Args:
        probs, costs: [n_candidates] each. Higher probabilities are chosen first, ties in candidate order.
        budget: in parameters, > 0; the chosen cost never exceeds it.
        groups: :attr:`s3pet.space.Space.groups`, [n_candidates]; None: every candidate is its own. Of a group at most
            one is chosen; a costlier one replaces the one that was chosen before, if the difference fits.

    Returns:
        Boolean mask, [n_candidates], on the CPU. Other shapes, or a budget that is not positive, raise BudgetError.
    """
    kinds.instance(Tensor, "a tensor [n_candidates]").check(BudgetError, probs=probs, costs=costs)
    if probs.shape != costs.shape or probs.ndim != 1:
        raise BudgetError(f"probs {tuple(probs.shape)} and costs {tuple(costs.shape)} must be one vector each")
    if not kinds.is_real(budget) or not budget > 0:
        raise BudgetError(f"budget must be positive, got {shown(budget)}")
    if not bool(torch.isfinite(probs).all() and torch.isfinite(costs).all()):
        raise BudgetError("probs and costs must be finite, got NaN or infinity among them")
    if groups is not None and groups.shape != costs.shape:
        raise BudgetError(f"groups {tuple(groups.shape)} and costs {tuple(costs.shape)} must be one vector each")
    mask, left, prices = torch.zeros(len(costs), dtype=torch.bool), float(budget), costs.tolist()
    group_of = range(len(prices)) if groups is None else groups.tolist()
    taken: dict[int, int] = {}  # group → the candidate it has
    for index in torch.sort(probs.detach().cpu(), descending=True, stable=True).indices.tolist():
        smaller = taken.get(group_of[index])
        freed = 0.0 if smaller is None else prices[smaller]
        if (smaller is None or prices[index] > freed) and prices[index] - freed <= left:
            taken[group_of[index]] = index
            left -= prices[index] - freed
    mask[list(taken.values())] = True
    return mask


def select_structure(
    space: Space, probs: Tensor, budget: BudgetLike, *, origin: Mapping[str, Any] | None = None
) -> Structure:
    """The structure that :func:`select_mask` gives for these probabilities; raises as :func:`parse_budget`."""
    parsed = parse_budget(space, budget)
    kinds.instance(Mapping, "a mapping").check(StructureMismatchError, origin={} if origin is None else origin)
    mask = select_mask(probs, space.costs, parsed.n_params, space.groups)
    return _structure(space, mask, parsed.n_params, origin or {"kind": "selected"}, probs)


def by_gates(space: Space, probs: Tensor) -> Tensor:
    """By what a search ranks its candidates: the probability that this size or a larger one of its group is open.

    It is 1 − Π (1 − p) over these sizes, [n_candidates]; for a candidate without other sizes, its probability as it is.
    """
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(space.groups.tolist()):
        groups.setdefault(group, []).append(index)
    ranked = probs.detach().cpu().clone()
    for group in (group for group in groups.values() if len(group) > 1):
        order = sorted(group, key=lambda index: -space.candidates[index].n_params)
        ranked[order] = -torch.expm1(torch.log1p(-ranked[order]).cumsum(0))
    return ranked


def select_by_gates(space: Space, probs: Tensor, budget: float) -> Tensor:
    """The mask of :func:`select_mask` for the probabilities of a search, [n_candidates]."""
    return select_mask(by_gates(space, probs), space.costs, budget, space.groups)


def parse_budget(space: Space, budget: BudgetLike) -> Budget:
    """Read a budget for a space; raises BudgetError if it is unreadable or below the cheapest candidate."""
    SPACE.check(SpaceError, space=space)
    parsed = Budget.parse(budget, total=space.backbone_params)
    cheapest = min((candidate.n_params for candidate in space), default=0)
    if parsed.n_params < cheapest:
        what = f"budget {budget!r} is {parsed.n_params:,} parameters; the cheapest candidate costs {cheapest:,}"
        raise BudgetError(f"{what}. Take at least {cheapest:,} ({100 * cheapest / space.backbone_params:.4g} %).")
    return parsed


def random_structure(space: Space, budget: BudgetLike, *, seed: int = 0) -> Structure:
    """A random structure of at most this cost, filled until nothing more fits; raises as :func:`parse_budget`."""
    parsed = parse_budget(space, budget)
    kinds.SEED.check(SearchError, seed=seed)
    # distributed as the authors' baseline, which draws again and again among the candidates that still fit
    order = np.random.default_rng(seed).permutation(len(space))
    mask = select_mask(-torch.from_numpy(order.argsort()), space.costs, parsed.n_params, space.groups)
    return _structure(space, mask, parsed.n_params, {"kind": "random", "seed": seed})


def manual_structure(space: Space | torch.nn.Module, name: str) -> Structure:
    """A structure of the literature: all candidates of one kind.

    Args:
        space: where the candidates come from; or the model, for kinds that are not in the space.
        name: one of :data:`MANUAL`, or ``"all"`` for every candidate of the space. SpaceError if there is none. Of
            several sizes of a module at a site the largest is taken, which holds the others.

    ``"lora_qv"`` is on the maps of queries and values. Where a model has one map for both (``attn.qkv``), the LoRA is
    on that map, and so acts on keys, too; ``origin["fused"]`` then names its role.
    """
    kinds.instance((Space, torch.nn.Module), "a space or a model").check(SpaceError, space=space)
    if not kinds.one_of([*MANUAL, "all"]).holds(name):
        raise SpaceError(f"manual structure {name!r} is not known; {nearest(name, [*MANUAL, 'all'])}")
    if isinstance(space, torch.nn.Module):
        space = make_space(space, "mixed" if name == "all" else [Rule(MANUAL[name].pet)])
    rule = MANUAL.get(name)
    mask = torch.tensor([rule is None or (c.pet == rule.pet and rule.covers(c)) for c in space])
    if not bool(mask.any()):
        how = f"pass the model instead of the space: manual_structure(model, {name!r})"
        if rule is not None and (roles := sorted({c.role for c in space if c.pet == rule.pet})):
            how = f"its {rule.pet} is on {', '.join(roles)}"
        raise SpaceError(f"this space holds no candidate for {name!r}; {how}")
    mask[mask.clone()] = select_mask(space.costs[mask], space.costs[mask], math.inf, space.groups[mask])
    fused = sorted({c.role for c, taken in zip(space, mask.tolist(), strict=True) if taken} & {"attn.qkv", "attn.kv"})
    origin = {"kind": "manual", "name": name} | ({"fused": fused} if fused and name == "lora_qv" else {})
    return _structure(space, mask, None, origin)


def _structure(
    space: Space, mask: Tensor, budget: int | None, origin: Mapping[str, Any], probs: Tensor | None = None
) -> Structure:
    chosen = tuple(candidate for candidate, taken in zip(space, mask.tolist(), strict=True) if taken)
    ranked_by = None if probs is None else tuple(probs.detach().cpu().double()[mask].tolist())
    return Structure(chosen, space.model_id, space.name, budget, dict(origin), ranked_by, layers_of(space))
