"""A discrete choice of candidates: select, random, manual, save, load, compare, retarget.

A structure is what a search is for: a list of candidates whose cost is at most the budget. Selection walks down the
probabilities, takes what still fits, skips what does not, and keeps going; one search therefore ranks all candidates
and can be cut at any budget. Baselines come from the same space: random structures of equal cost, and the manual ones
of the literature.

A structure can be put on another space, such as one of a deeper and wider backbone: every candidate goes to its
counterpart by name or by relative depth, and what that costs there is kept or cut at a new budget.

A structure file is versioned JSON, never executed; loading it against a model names the first mismatches.

Source: Hu et al. 2022 (arXiv:2206.07382), section 3.3; the authors' random baseline can loop for ever once only
already-chosen modules still fit, ours visits every candidate once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from s3pet.errors import BudgetError, SpaceError, StructureMismatchError, nearest
from s3pet.gates import Budget
from s3pet.space import Candidate, Rule, Space, candidate_table, counterparts, find_sites, layers_of, make_space

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "s3pet-structure"
VERSION = 1

MANUAL: dict[str, tuple[Rule, ...]] = {
    "bitfit": (Rule("bitfit"),),
    "lnfit": (Rule("lnfit"),),
    "lora_qv": (Rule("lora", roles=("attn.[qv]",)),),
    "lora_all": (Rule("lora"),),
    "lowrank_adapter": (Rule("lowrank_adapter"),),
    "adapter": (Rule("adapter"),),
}


@dataclass(frozen=True)
class Structure:
    """Chosen candidates, in canonical order.

    Attributes:
        candidates: the chosen candidates.
        model_id: backbone it was made for.
        space: name of the space it was chosen from.
        budget: the budget it was cut at, in parameters; None for manual structures.
        origin: where it came from: ``{"kind": "searched", "task": …, "seed": …}``.
        probs: what each candidate was ranked by when it was selected, for a search its probability; None where there
            was nothing, as in random and manual structures.
        layers: number of layers of each stack in the space it was chosen from; None where unknown.

    ``probs`` and ``layers`` say how it was chosen, not what: structures that differ in them alone are equal.

    Raises:
        StructureMismatchError: not one probability per candidate.
    """

    candidates: tuple[Candidate, ...]
    model_id: str
    space: str = "custom"
    budget: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    probs: tuple[float, ...] | None = field(default=None, compare=False)
    layers: Mapping[str, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.probs is not None and len(self.probs) != len(self.candidates):
            raise StructureMismatchError(
                f"{len(self.probs)} probabilities for {len(self.candidates)} candidates; give one each, or None"
            )

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def n_params(self) -> int:
        """Trainable PET parameters."""
        return sum(candidate.n_params for candidate in self.candidates)

    @property
    def sites(self) -> tuple[str, ...]:
        """Addresses of the sites in use, each once, in canonical order."""
        return tuple(dict.fromkeys(candidate.site for candidate in self.candidates))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates, ``site:pet:rank``."""
        return tuple(candidate.name for candidate in self.candidates)

    def table(self) -> pd.DataFrame:
        """One row per chosen candidate; plain pandas."""
        return candidate_table(self.candidates)

    def jaccard(self, other: Structure) -> float:
        """Shared candidates over all candidates of both, in [0, 1]; two empty structures agree fully (1.0)."""
        mine, theirs = set(self.names), set(other.names)
        return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0

    def retarget(
        self,
        space: Space,
        *,
        by: str = "relative_depth",
        budget: int | float | str | Budget | None = None,
    ) -> Structure:
        """Put the structure on another space, such as that of a backbone of another size.

        Candidates whose counterparts coincide (6 layers on 4) are merged and the largest probability is kept: moving
        one to a free layer further on would spread a structure that sits in one part of the backbone over all of it.
        A deeper backbone leaves gaps, for every candidate goes to one layer.

        Args:
            space: the candidates to put it on.
            by: ``"name"`` (``encoder.3.attn.q:lora:1`` goes to the candidate of that name) or ``"relative_depth"``:
                the same stack, role, PET module and rank in the layer at the nearest relative depth (first on first,
                last on last, the shallower of two equally near). Candidates outside the layers go to such candidates.
            budget: cut at this one, any form :meth:`Budget.parse` reads; the most probable candidates are kept, the
                first ones where probabilities are unknown. None: all are kept, whatever they cost at the new widths.
                For the same share of either backbone: ``structure.n_params / old_space.backbone_params``.

        Returns:
            A structure of ``space``. Its ``budget`` is the new one; without one, it stays on the same backbone and is
            None on another. ``origin`` stays and gains ``from`` (the backbone), ``by`` and three lists of names:
            ``unplaced`` (here, without a counterpart), ``merged`` (here, on the counterpart of a more probable one),
            ``dropped`` (there, over the budget).

        Raises:
            StructureMismatchError: no candidate has a counterpart, or ``by="relative_depth"`` for another backbone
                and a structure that does not know its ``layers``. SpaceError: unknown ``by``. BudgetError: unreadable
                budget, or one below the cheapest counterpart.
        """
        same = space.model_id == self.model_id
        here = layers_of(space) if self.layers is None and same else self.layers
        if here is None and by == "relative_depth":
            raise StructureMismatchError(
                f"this structure does not say how many layers {self.model_id!r} has, so relative depths are unknown. "
                "Read it with its backbone, Structure.from_json(path, model), or use by='name'."
            )
        find = counterparts(space, by, here or {})
        probs = self.probs or (0.0,) * len(self)
        best: dict[str, float] = {}  # counterpart → probability
        unplaced, merged = [], []
        for index in sorted(range(len(self)), key=lambda i: -probs[i]):  # stable: ties in canonical order
            name, there = self.names[index], find(self.candidates[index])
            if there is None:
                unplaced.append(name)
            elif there.name in best:
                merged.append(name)
            else:
                best[there.name] = probs[index]
        placed = [candidate for candidate in space if candidate.name in best]
        if len(self) and not placed:
            more = f" … and {len(unplaced) - 3} more" if len(unplaced) > 3 else ""
            raise StructureMismatchError(
                f"no candidate of this structure has a counterpart in {space!r} by {by}: "
                f"{', '.join(self.names[:3])}{more}. Make a space with such candidates."
            )
        kept, fits = placed, sum(candidate.n_params for candidate in placed) <= (self.budget or 0)
        cut = self.budget if same and fits else None
        if budget is not None:
            cut = Budget.parse(budget, total=space.backbone_params).n_params
            costs = torch.tensor([candidate.n_params for candidate in placed], dtype=torch.float64)
            if placed and cut < costs.min():
                raise BudgetError(
                    f"budget {budget!r} is {cut:,} parameters; the cheapest candidate that this structure puts on "
                    f"{space.model_id!r} costs {int(costs.min()):,}. Take at least {int(costs.min()):,}; "
                    f"{int(costs.sum()):,} keep all."
                )
            mask = select_mask(torch.tensor([best[c.name] for c in placed], dtype=torch.float64), costs, cut).tolist()
            kept = [candidate for candidate, taken in zip(placed, mask, strict=True) if taken]
        left = {candidate.name for candidate in kept}
        origin = {**self.origin, "from": self.model_id, "by": by, "unplaced": unplaced, "merged": merged}
        origin["dropped"] = [candidate.name for candidate in placed if candidate.name not in left]
        known = None if self.probs is None else tuple(best[candidate.name] for candidate in kept)
        return Structure(tuple(kept), space.model_id, space.name, cut, origin, known, layers_of(space))

    def check(self, model: torch.nn.Module) -> None:
        """Raise StructureMismatchError, naming the first mismatches, unless every candidate fits this model."""
        sites = {site.address: site for site in find_sites(model)}
        wrong = []
        for candidate in self.candidates:
            site = sites.get(candidate.site)
            if site is None:
                wrong.append(f"{candidate.site} does not exist ({nearest(candidate.site, sites)})")
            elif (site.path, site.d_in, site.d_out) != (candidate.path, candidate.d_in, candidate.d_out):
                here, there = f"{site.d_in}→{site.d_out}", f"{candidate.d_in}→{candidate.d_out}"
                wrong.append(f"{candidate.site} is {site.path} {here} here, {candidate.path} {there} in the structure")
        if wrong:
            more = f" … and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise StructureMismatchError(
                f"structure made for {self.model_id!r} does not fit this {type(model).__name__}: "
                f"{'; '.join(wrong[:3])}{more}. Load the backbone it was made for."
            )

    def to_json(self, path: str | Path) -> Path:
        """Write the structure as versioned JSON; returns the path."""
        path = Path(path)
        record = {"format": FORMAT, "version": VERSION, **asdict(self), "n_params": self.n_params}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def from_json(cls, path: str | Path, model: torch.nn.Module | None = None) -> Structure:
        """Read a structure file.

        Args:
            path: file written by :meth:`to_json`.
            model: check that it fits this model; its depth is filled in where the file does not say it.

        Raises:
            StructureMismatchError: not a structure file, a newer version, costs that do not add up, or not for this
                model. FileNotFoundError: no such file.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            record = json.loads(text)
            if record.get("format") != FORMAT or int(record["version"]) > VERSION:
                raise ValueError(f"format {record.get('format')!r} version {record.get('version')!r}")
            candidates = tuple(Candidate.from_row(row) for row in record["candidates"])
            probs, layers = record.get("probs"), record.get("layers")  # younger than the others
            made = cls(
                candidates,
                record["model_id"],
                record["space"],
                record["budget"],
                record["origin"],
                None if probs is None else tuple(float(prob) for prob in probs),
                None if layers is None else {stack: int(n) for stack, n in layers.items()},
            )
        except StructureMismatchError as error:
            raise StructureMismatchError(f"{path} holds {error}. Write one with structure.to_json().") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StructureMismatchError(
                f"{path} is not a structure file of version ≤ {VERSION}: {error}. Write one with structure.to_json()."
            ) from error
        if record.get("n_params") != made.n_params:
            raise StructureMismatchError(f"{path} says {record.get('n_params')} parameters, holds {made.n_params}")
        if model is not None:
            made.check(model)
            made = replace(made, layers=layers_of(find_sites(model))) if made.layers is None else made
        return made

    def __repr__(self) -> str:
        kinds: dict[str, int] = {}
        for candidate in self.candidates:
            kinds[candidate.pet] = kinds.get(candidate.pet, 0) + 1
        parts = ", ".join(f"{count} {pet}" for pet, count in kinds.items()) or "empty"
        return f"Structure({self.origin.get('kind', 'custom')}: {parts}; {self.n_params:,} parameters)"


def select_mask(probs: Tensor, costs: Tensor, budget: float) -> Tensor:
    """Choose by probability under a hard budget: take what fits, skip what does not, keep going.

    Args:
        probs: [n_candidates]; higher is chosen first, ties by candidate order.
        costs: [n_candidates], in parameters.
        budget: in parameters; the chosen cost never exceeds it.

    Returns:
        Boolean mask, [n_candidates], on the CPU.

    Raises:
        BudgetError: probs and costs disagree in shape, or the budget is not positive.
    """
    if probs.shape != costs.shape or probs.ndim != 1:
        raise BudgetError(f"probs {tuple(probs.shape)} and costs {tuple(costs.shape)} must be one vector each")
    if not budget > 0:
        raise BudgetError(f"budget must be positive, got {budget}")
    order = torch.sort(probs.detach().cpu(), descending=True, stable=True).indices.tolist()
    return _fill(order, costs.tolist(), budget)


def _fill(order: Sequence[int], costs: Sequence[float], budget: float) -> Tensor:
    mask = torch.zeros(len(costs), dtype=torch.bool)
    left = float(budget)
    for index in order:
        if costs[index] <= left:
            mask[index] = True
            left -= costs[index]
    return mask


def select_structure(
    space: Space, probs: Tensor, budget: int | float | str | Budget, *, origin: Mapping[str, Any] | None = None
) -> Structure:
    """The structure :func:`select_mask` gives for these probabilities.

    Raises:
        BudgetError: unreadable budget, or one below the cheapest candidate.
    """
    parsed = parse_budget(space, budget)
    mask = select_mask(probs, space.costs, parsed.n_params)
    return _structure(space, mask, parsed.n_params, origin or {"kind": "selected"}, probs)


def parse_budget(space: Space, budget: int | float | str | Budget) -> Budget:
    """Read a budget against a space's backbone; it must afford at least the cheapest candidate."""
    parsed = Budget.parse(budget, total=space.backbone_params)
    cheapest = min(candidate.n_params for candidate in space)
    if parsed.n_params < cheapest:
        raise BudgetError(
            f"budget {budget!r} is {parsed.n_params:,} parameters; the cheapest candidate costs {cheapest:,}. "
            f"Take at least {cheapest:,} ({100 * cheapest / space.backbone_params:.4g} %)."
        )
    return parsed


def random_structure(space: Space, budget: int | float | str | Budget, *, seed: int = 0) -> Structure:
    """A random structure of at most this cost, filled until nothing more fits.

    Draws uniformly among the candidates that still fit and are not yet taken, as the authors' baseline does; a uniform
    permutation walked once has the same distribution and always ends.

    Args:
        space: candidates to draw from.
        budget: any form :meth:`Budget.parse` reads.
        seed: of the draw.

    Raises:
        BudgetError: as :func:`select_structure`.
    """
    parsed = parse_budget(space, budget)
    order = np.random.default_rng(seed).permutation(len(space)).tolist()
    mask = _fill(order, space.costs.tolist(), parsed.n_params)
    return _structure(space, mask, parsed.n_params, {"kind": "random", "seed": seed})


def manual_structure(space: Space | torch.nn.Module, name: str) -> Structure:
    """A structure of the literature.

    Args:
        space: a space, whose candidates of that kind are taken; or the model, for kinds the space does not hold.
        name: ``bitfit``, ``lnfit``, ``lora_qv``, ``lora_all``, ``lowrank_adapter``, ``adapter``, or ``all`` (every
            candidate of the space).

    Raises:
        SpaceError: unknown name, or the space holds no such candidate (the message says what to do).
    """
    if name not in MANUAL and name != "all":
        raise SpaceError(f"manual structure {name!r} is not known; {nearest(name, [*MANUAL, 'all'])}")
    if isinstance(space, torch.nn.Module):
        space = make_space(space, "mixed" if name == "all" else MANUAL[name])
    mask = torch.ones(len(space), dtype=torch.bool)
    if name != "all":
        patterns = MANUAL[name]
        mask = torch.tensor([any(_follows(candidate, rule) for rule in patterns) for candidate in space])
    if not bool(mask.any()):
        raise SpaceError(
            f"this space holds no candidate for {name!r}; pass the model instead of the space: "
            f"manual_structure(model, {name!r})"
        )
    return _structure(space, mask, None, {"kind": "manual", "name": name})


def _follows(candidate: Candidate, rule: Rule) -> bool:
    import fnmatch

    if candidate.pet != rule.pet:
        return False
    return rule.roles is None or any(fnmatch.fnmatchcase(candidate.role, pattern) for pattern in rule.roles)


def _structure(
    space: Space, mask: Tensor, budget: int | None, origin: Mapping[str, Any], probs: Tensor | None = None
) -> Structure:
    chosen = tuple(candidate for candidate, taken in zip(space, mask.tolist(), strict=True) if taken)
    known = None if probs is None else tuple(probs.detach().cpu().double()[mask].tolist())
    return Structure(chosen, space.model_id, space.name, budget, dict(origin), known, layers_of(space))
