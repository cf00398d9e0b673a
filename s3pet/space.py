"""Which PET modules may go where: sites × PET modules → candidates with costs.

A site's ``address`` is ``stack.layer.role`` (``encoder.3.attn.q``) in every family of architectures; its ``path`` is
the dotted Hugging Face name (:mod:`s3pet.backbones.sites`). Candidates have one canonical order, on T5 the paper's: all
projections and norms in ``named_modules()`` order (LoRA, LNFit, BitFit within one site), then the adapters on blocks.

Departures from the authors' code: a bias on attention keys without rotary positions adds the same number to all scores
of a query, which the softmax cancels. Such candidates are ``inert`` and left out unless ``keep_inert=True`` (48 of
T5-large's 916). Gated FFNs (``wi_0``, ``wi_1``), which the authors' code leaves out, are in the space.

Source: Hu et al. 2022 (arXiv:2206.07382), section 4.1 (S³PET-M and S³PET-L).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from s3pet.backbones import n_parameters, name_of, unwrapped
from s3pet.backbones.sites import LeftOut, Site, has_widths, survey
from s3pet.backbones.sites import find_sites as find_sites
from s3pet.errors import SpaceError, StructureMismatchError, UnknownSiteError, nearest, shown
from s3pet.files.kinds import FLAG, TEXT, instance, optional, several, whole
from s3pet.modules import PETS, pet_module


@dataclass(frozen=True)
class Candidate:
    """Site × PET module × size. ``n_params`` is its cost; ``redundant`` names a candidate that can add the same.

    ``calls`` says how often a forward pass runs its site: more than once where layers share their weights.
    """

    site: str
    path: str
    stack: str
    layer: int | None
    role: str
    pet: str
    rank: int | None
    n_params: int
    d_in: int
    d_out: int
    inert: bool = False
    redundant: str | None = None
    calls: int = 1

    @property
    def name(self) -> str:
        """Unique within a space: ``encoder.3.attn.q:lora:1``."""
        return f"{self.site}:{self.pet}" + (f":{self.rank}" if self.rank is not None else "")

    @property
    def across_layers(self) -> tuple:
        """What it shares with its like in other layers: stack, role, PET module, rank, whether it is in a layer."""
        return self.stack, self.role, self.pet, self.rank, self.layer is None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """From one row of a table or JSON object. Missing values become None; other columns are ignored."""
        values: Any = {f.name: None if pd.isna(row[f.name]) else row[f.name] for f in fields(cls) if f.name in row}
        names = ("layer", "rank", "n_params", "d_in", "d_out", "calls")
        numbers = {name: int(values[name]) for name in names if values.get(name) is not None}
        return cls(**{"calls": 1} | {**values, **numbers, "inert": bool(values.get("inert"))})


CANDIDATE = {  # what its fields hold in a file; later versions added the last three
    **dict.fromkeys(("site", "path", "stack", "role", "pet"), TEXT),
    **{"layer": optional(whole()), "rank": optional(whole(1))},
    **{name: whole(1) for name in ("n_params", "d_in", "d_out", "calls")},
    **{"inert": FLAG, "redundant": optional(TEXT)},
}
CANDIDATE_REQUIRED = [name for name in CANDIDATE if name not in ("calls", "inert", "redundant")]


def checked_candidates(candidates: Any) -> tuple[Candidate, ...]:
    """Candidates that a user passed, each once; StructureMismatchError for anything else."""
    items = tuple(candidates) if isinstance(candidates, Iterable) else (candidates,)
    kind = several(instance(Candidate, "one of those that a space or a structure holds"), 0)
    kind.check(StructureMismatchError, candidates=items)
    return items


class Candidates:
    """Candidates in canonical order: what a space and a structure have in common."""

    candidates: tuple[Candidate, ...]
    model_id: str

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    @property
    def n_params(self) -> int:
        """Trainable parameters of all candidates together."""
        return sum(candidate.n_params for candidate in self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates, ``site:pet:rank``."""
        return tuple(candidate.name for candidate in self)

    @property
    def groups(self) -> Tensor:
        """Number of each candidate's group, int64 [n_candidates]: sizes of one PET module at one site are a group.

        They exclude each other: a selection takes one size of a group or none.
        """
        numbers: dict[tuple, int] = {}
        return torch.tensor([numbers.setdefault((c.site, c.pet), len(numbers)) for c in self], dtype=torch.long)

    def check(self, model: nn.Module) -> None:
        """Raise StructureMismatchError, naming the first mismatches, unless every candidate fits this model.

        Paths and widths are compared, which needs no forward pass; the sites are found only to name what differs.
        """
        modules = dict(unwrapped(model).named_modules())
        if all(c.path in modules and has_widths(modules[c.path], c.d_in, c.d_out) for c in self):
            return
        sites, wrong = {site.address: site for site in find_sites(model)}, []
        for c in self:
            if (site := sites.get(c.site)) is None:
                wrong.append(f"{c.site} does not exist ({nearest(c.site, sites)})")
            elif (site.path, site.d_in, site.d_out) != (c.path, c.d_in, c.d_out):
                here = f"{site.path} {site.d_in}→{site.d_out} here"
                wrong.append(f"{c.site} is {here}, {c.path} {c.d_in}→{c.d_out} in the {type(self).__name__.lower()}")
        if wrong:
            what = (
                f"{type(self).__name__.lower()} made for {self.model_id!r} does not fit this {type(model).__name__}: "
            )
            what += "; ".join(wrong[:3]) + (f" … and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise StructureMismatchError(f"{what}. Load the backbone it was made for.")

    def table(self) -> pd.DataFrame:
        """One row for each candidate, its fields as columns; ``layer`` and ``rank`` are Int64."""
        table = pd.DataFrame([asdict(c) for c in self], columns=[f.name for f in fields(Candidate)])
        return table.astype({"layer": "Int64", "rank": "Int64", "inert": bool})


@dataclass(frozen=True)
class Rule:
    """Which PET module goes on which sites. A single value or a list becomes a tuple; wrong types raise SpaceError.

    Attributes:
        pet: name of the PET module.
        roles: patterns of roles (``"attn.[qv]"``, ``"*.norm"``); None: every role that the module fits, without the
            cross-attention projections and blocks unless the space asks for them.
        stacks, layers: patterns of stacks; layer indices, ``range(4, 8)`` or one number, None for all.
        ranks: sizes, at least 1, one candidate each, of which a structure takes one; None: the module's default. As
            JSON: ``{"pet": "lora", "ranks": [1, 2, 4, 8]}``.
        exclude: patterns of roles that the rule leaves out.
    """

    pet: str
    roles: tuple[str, ...] | None = None
    stacks: tuple[str, ...] = ("*",)
    layers: tuple[int, ...] | None = None
    ranks: tuple[int, ...] | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.pet, str):
            raise SpaceError(f"pet of a rule must be the name of a PET module, not {self.pet!r}")
        kinds = {"roles": str, "stacks": str, "layers": Integral, "ranks": Integral, "exclude": str}
        for name, kind in kinds.items():
            value: Any = getattr(self, name)
            if (value is None and name not in ("stacks", "exclude")) or (name == "exclude" and value == ()):
                continue
            single = isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable)
            values = (value,) if single else tuple(value)
            valid = values and all(isinstance(v, kind) and not isinstance(v, bool) and v != "" for v in values)
            if not valid or (name == "ranks" and min(values) < 1):
                what = {"layers": "whole numbers", "ranks": "whole numbers of at least 1"}.get(name, "patterns")
                raise SpaceError(f"{name} of a rule must be {what}, not {value!r}")
            object.__setattr__(self, name, values if kind is str else tuple(int(v) for v in values))

    def covers(self, place: Site | Candidate) -> bool:
        """Whether stack, layer and role are among those of the rule."""
        patterns = ((place.stack, self.stacks), (place.role, self.roles or ("*",)), (place.role, self.exclude))
        stack, role, excluded = (any(fnmatch.fnmatchcase(word, p) for p in group) for word, group in patterns)
        return stack and role and not excluded and (self.layers is None or place.layer in self.layers)


Rules = Sequence[Rule | Mapping[str, Any]]
_MIXED = ("lora", "lnfit", "bitfit", "lowrank_adapter")
SPACES = {"mixed": tuple(Rule(pet) for pet in _MIXED), "lora": (Rule("lora"),)}


@dataclass(frozen=True)
class Space(Candidates):
    """All candidates of a search, in canonical order. Budgets given as fractions refer to ``backbone_params``.

    ``left_out`` has a ``path`` and a ``reason`` for each linear map, norm, raw matrix and head of the model that is not
    in it (``pd.DataFrame(space.left_out)`` is a table); ``notes`` names the rules of a named space that match nothing.
    """

    candidates: tuple[Candidate, ...]
    name: str
    model_id: str
    backbone_params: int
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def costs(self) -> Tensor:
        """Trainable parameters of each candidate, float64 [n_candidates]."""
        return torch.tensor([candidate.n_params for candidate in self], dtype=torch.float64)

    def without(self, names: Iterable[str], reason: str = "as asked") -> Space:
        """The space without these candidates, such as those that are inert for a task; its name stays.

        ``reason`` is noted in ``notes``. Raises SpaceError for a name that is not in the space.
        """
        TEXT.check(SpaceError, reason=reason)
        several(TEXT, 0).check(SpaceError, names=names)
        left_out = set(names)
        if unknown := sorted(left_out - set(self.names)):
            raise SpaceError(f"candidate {unknown[0]!r} is not in {self!r}; {nearest(unknown[0], self.names)}")
        notes = (*self.notes, f"{len(left_out)} candidates left out: {reason}") if left_out else self.notes
        return replace(self, candidates=tuple(c for c in self if c.name not in left_out), notes=notes)

    def __repr__(self) -> str:
        counts = {pet: sum(c.pet == pet for c in self) for pet in PETS}
        parts = ", ".join(f"{count} {pet}" for pet, count in counts.items() if count)
        places = [f"{n} place{'s' * (n > 1)} left out"] if (n := len(self.left_out)) else []
        rest = "".join(f"; {note}" for note in (*places, *self.notes))
        return f"Space({self.name!r}: {len(self)} candidates ({parts}), {self.n_params:,} parameters{rest})"


def layers_of(places: Iterable[Candidate | Site]) -> dict[str, int]:
    """Number of layers of each stack that these candidates or sites reach; stacks without layers are left out."""
    counts = [(place.stack, place.layer + 1) for place in places if place.layer is not None]
    return dict(sorted(counts, key=lambda pair: pair[1]))  # the last one of each stack, the largest, is kept


def counterparts(space: Space, by: str, layers: Mapping[str, int]) -> Callable[[Candidate], Candidate | None]:
    """A function from a candidate of another space, with these ``layers``, to its counterpart in ``space``, or None.

    The counterpart has the same name, or ``by="relative_depth"`` the same stack, role, PET module and rank in the layer
    at the nearest relative depth, layer / (layers − 1); the lower one of two equally near. A candidate outside the
    layers has a counterpart outside the layers. Raises SpaceError for an unknown ``by``.
    """
    if by not in ("name", "relative_depth"):
        raise SpaceError(f"by={by!r} is not one of name, relative_depth")
    attribute = "name" if by == "name" else "across_layers"
    layers_here, groups = layers_of(space), dict[Any, list[Candidate]]()
    for candidate in space:
        groups.setdefault(getattr(candidate, attribute), []).append(candidate)

    def find(other: Candidate) -> Candidate | None:
        layer, last, here = other.layer or 0, *(max(n.get(other.stack, 1) - 1, 1) for n in (layers, layers_here))

        def distance(c: Candidate) -> tuple[int, int]:  # |c.layer/here − layer/last| times both: exact integers
            return abs((c.layer or 0) * last - layer * here), c.layer or 0

        return min(groups.get(getattr(other, attribute), []), key=distance, default=None)

    return find


def make_space(
    model: nn.Module,
    rules: str | Rules = "mixed",
    *,
    keep_inert: bool = False,
    cross_attention: bool = False,
    example: Mapping[str, Any] | None = None,
) -> Space:
    """The candidates of a search, for any transformer.

    Sites are found by structure and checked by one forward and backward pass (:mod:`s3pet.backbones.sites`). What is in
    no space is listed in ``space.left_out`` with the reason.

    Args:
        model: the backbone, left exactly as it was.
        rules: ``"mixed"`` (S³PET-M), ``"lora"`` (S³PET-L), or a list of rules, also as mappings (from a JSON file). A
            rule of a named space that matches nothing is skipped, and ``space.notes`` says so.
        keep_inert: keep candidates that cannot change the model's output (a bias on attention keys).
        cross_attention: for rules without ``roles``, add cross-attention, which is not in the paper's spaces.
        example: keyword arguments of one forward pass of the model; None: a small batch is made from its config.

    Raises:
        SpaceError: unknown name, malformed rule, a layer out of range, or a rule that matches nothing.
        UnknownSiteError: unknown PET module or role.
        BackboneError: no sites, or the model cannot be run; the message says what was tried.
    """
    if isinstance(rules, str) and rules not in SPACES:
        raise SpaceError(f"space {rules!r} is not known; {nearest(rules, SPACES)}, or give a list of rules")
    try:
        named = SPACES[rules] if isinstance(rules, str) else rules
        chosen = [rule if isinstance(rule, Rule) else Rule(**rule) for rule in named]
    except TypeError as error:
        how = f"got {shown(rules)} ({error})"
        raise SpaceError(f"a rule is a Rule or a mapping such as {{'pet': 'lora', 'layers': [0]}}; {how}") from error
    FLAG.check(SpaceError, keep_inert=keep_inert, cross_attention=cross_attention)
    optional(instance(Mapping, "the keyword arguments of a forward pass")).check(SpaceError, example=example)
    if not chosen:
        raise SpaceError("a space needs at least one rule, such as Rule('lora')")
    (sites, left_out), notes = survey(model, example), list[str]()
    candidates: dict[tuple, Candidate] = {}  # by canonical order
    for rule in chosen:
        fits = pet_module(rule.pet).fits
        if isinstance(rules, str) and not any(site.kind in fits for site in sites):
            notes.append(f"nothing for {rule.pet}: this model has no {' or '.join(fits)} site")
            continue
        for i in _matching(rule, sites, cross_attention):
            s, pet = sites[i], pet_module(rule.pet)
            inert = rule.pet == "bitfit" and s.inert
            if inert and not keep_inert:
                continue
            for rank in rule.ranks or (pet.default_rank,):
                where, cost = (s.address, s.path, s.stack, s.layer, s.role), pet.cost(s.d_in, s.d_out, rank or 1)
                order = (s.kind == "block", i, [*PETS].index(rule.pet), rank or 0)
                candidates[order] = Candidate(*where, rule.pet, rank, cost, s.d_in, s.d_out, inert, calls=s.calls)
    if not candidates:
        what = "; ".join(notes) or "every candidate of these rules is inert (a bias on attention keys)"
        raise SpaceError(f"{what}; use keep_inert=True, or other rules")
    ordered = [candidates[order] for order in sorted(candidates)]
    biases = {c.site: c.name for c in ordered if c.pet == "bitfit"}  # add at the same place as the bias of an adapter
    last = {site.address: site.last for site in sites}
    ordered = [replace(c, redundant=biases.get(last[c.site] or "")) for c in ordered]
    used = {c.path for c in ordered}
    for site in sites:
        if site.kind != "block" and site.path not in used:
            asked = "cross-attention is not in the paper's spaces; cross_attention=True adds it"
            is_cross = site.role.startswith("cross") and not cross_attention
            left_out += (LeftOut(site.path, asked if is_cross else "no rule of this space covers it"),)
    name = rules if isinstance(rules, str) else "custom"
    return Space(tuple(ordered), name, name_of(model), n_parameters(model), left_out, tuple(notes))


def _matching(rule: Rule, sites: Sequence[Site], cross_attention: bool) -> list[int]:
    """Indices of the sites that the rule matches; raises an error if it, or one of its layers, matches none."""
    if rule.ranks and pet_module(rule.pet).default_rank is None:
        raise SpaceError(f"{rule.pet} has no size, so a rule for it cannot have ranks={rule.ranks}")
    roles = sorted({site.role for site in sites})
    for pattern in (*(rule.roles or ()), *rule.exclude):
        if not fnmatch.filter(roles, pattern):
            raise UnknownSiteError(f"no site of this model has role {pattern!r}; {nearest(pattern, roles)}")
    fitting = [i for i, site in enumerate(sites) if site.kind in pet_module(rule.pet).fits]
    if rule.roles is None and not cross_attention:
        fitting = [i for i in fitting if sites[i].kind == "norm" or not sites[i].role.startswith("cross")]
    in_any_layer = replace(rule, layers=None)
    indices = [i for i in fitting if in_any_layer.covers(sites[i])]
    if not indices:
        fits = ", ".join(sorted({sites[i].role for i in fitting})) or "nothing here"
        stacks = ", ".join(sorted({site.stack for site in sites}))
        raise SpaceError(f"{rule} matches no site; {rule.pet} fits on {fits}; stacks here: {stacks}")
    missing = sorted({*(rule.layers or ())} - {sites[i].layer for i in indices})
    if missing:
        ranges = [f"{stack} has layers 0 to {n - 1}" for stack, n in layers_of(sites[i] for i in indices).items()]
        where = ", ".join(ranges) or "its sites are outside the layers"
        raise SpaceError(f"{rule} matches no site in layer {', '.join(map(str, missing))}: {where}")
    return [i for i in indices if rule.covers(sites[i])]
