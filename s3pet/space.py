"""Where a PET module may go: HF module names → sites; sites × PET modules → candidates with costs.

A site's address is ``stack.layer.role`` (``encoder.3.attn.q``), the same for every family of architectures, so that
rules, structures and figures read alike; its ``path`` is the dotted Hugging Face name (:mod:`s3pet.families`).

Candidates come in one canonical order, which on T5 is the paper's: all projections and norms in ``named_modules()``
order (LoRA, LNFit, BitFit within one site), then the block adapters in the same order.

Where we depart from the authors' code: a bias on attention keys without rotary positions adds the same number to all
of a query's scores, which the softmax cancels; such candidates are marked ``inert`` and left out unless
``keep_inert=True`` (48 of T5-large's 916). Gated FFNs (``wi_0``/``wi_1``) are in the space; theirs drops them silently.

Source: Hu et al. 2022 (arXiv:2206.07382), section 4.1 (S³PET-M and S³PET-L).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from s3pet.backbones import n_parameters
from s3pet.errors import BackboneError, SpaceError, UnknownSiteError, nearest
from s3pet.families import bias_on_keys_matters, family_of
from s3pet.modules import PETS, pet_module

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Site:
    """A place in a frozen backbone where PET modules may act.

    Attributes:
        address: ``stack.layer.role``, the family-independent name.
        path: dotted Hugging Face module name.
        stack: ``"encoder"`` or ``"decoder"``.
        layer: index within the stack; None outside the layers.
        role: ``attn.q`` … ``ffn.norm``, or ``attn``, ``cross``, ``ffn`` for a block's output.
        kind: ``"linear"``, ``"norm"`` or ``"block"``.
        d_in: width of the input, in features.
        d_out: width of the output, in features.
    """

    address: str
    path: str
    stack: str
    layer: int | None
    role: str
    kind: str
    d_in: int
    d_out: int


@dataclass(frozen=True)
class Candidate:
    """Site × PET module × size. ``n_params`` is its cost; ``redundant`` names a candidate that can add the same."""

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

    @property
    def name(self) -> str:
        """Unique within a space: ``encoder.3.attn.q:lora:1``."""
        return f"{self.site}:{self.pet}" + (f":{self.rank}" if self.rank is not None else "")

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """From one row of a table or JSON object; missing values become None, further columns are ignored."""
        found: dict[str, Any] = {}
        for field in fields(cls):
            value: Any = row.get(field.name, field.default)
            value = None if value is None or value != value or str(value) == "<NA>" else value
            number = field.name in ("layer", "rank", "n_params", "d_in", "d_out") and value is not None
            found[field.name] = int(value) if number else value
        return cls(**{**found, "inert": bool(found["inert"])})


@dataclass(frozen=True)
class Rule:
    """Which PET module goes on which sites.

    Attributes:
        pet: name of the PET module.
        roles: patterns of roles (``"attn.[qv]"``, ``"*.norm"``); None: every role the module fits, without the
            cross-attention projections and blocks unless the space asks for them.
        stacks: patterns of stacks.
        layers: layer indices; None means all.
        ranks: sizes, one candidate each; None: the module's default.
    """

    pet: str
    roles: tuple[str, ...] | None = None
    stacks: tuple[str, ...] = ("*",)
    layers: tuple[int, ...] | None = None
    ranks: tuple[int, ...] | None = None

    @classmethod
    def of(cls, given: Rule | Mapping[str, Any]) -> Rule:
        """A rule from a mapping (as in a JSON file), with lists or single values; raises SpaceError."""
        if isinstance(given, Rule):
            return given
        if not isinstance(given, Mapping):
            raise SpaceError(f"a rule is a Rule or a mapping such as {{'pet': 'lora'}}, not {given!r}")
        names = [field.name for field in fields(cls)]
        unknown = [key for key in given if key not in names]
        if unknown or "pet" not in given:
            raise SpaceError(f"rule {dict(given)!r} has keys {sorted(given)}; expected 'pet' and some of {names[1:]}")
        many: dict[str, Any] = {k: (v,) if isinstance(v, (str, int)) else v for k, v in given.items() if k != "pet"}
        lists: dict[str, Any] = {k: tuple(v) if v is not None else None for k, v in many.items()}
        return cls(pet=given["pet"], **lists)

    def ranks_of(self) -> tuple[int | None, ...]:
        """Sizes this rule makes."""
        return self.ranks or (pet_module(self.pet).default_rank,)

    def matches(self, site: Site, cross_attention: bool) -> bool:
        """Whether the rule puts its module on this site."""
        if site.kind not in pet_module(self.pet).fits or (self.layers is not None and site.layer not in self.layers):
            return False
        if not any(fnmatch.fnmatchcase(site.stack, pattern) for pattern in self.stacks):
            return False
        if self.roles is None:
            return cross_attention or site.kind == "norm" or not site.role.startswith("cross")
        return any(fnmatch.fnmatchcase(site.role, pattern) for pattern in self.roles)


LAST_PROJECTION = {"attn": "attn.o", "cross": "cross.o", "ffn": "ffn.out"}  # of each block, by role
SPACES: dict[str, tuple[Rule, ...]] = {
    "mixed": (Rule("lora"), Rule("lnfit"), Rule("bitfit"), Rule("lowrank_adapter")),
    "lora": (Rule("lora"),),
}


@dataclass(frozen=True)
class Space:
    """All candidates of a search, in canonical order.

    Attributes:
        candidates: the candidates.
        name: ``"mixed"``, ``"lora"`` or ``"custom"``.
        model_id: where the backbone came from.
        backbone_params: its parameters; what budgets given as fractions refer to.
    """

    candidates: tuple[Candidate, ...]
    name: str
    model_id: str
    backbone_params: int

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    @property
    def n_params(self) -> int:
        """Trainable parameters of all candidates together."""
        return sum(candidate.n_params for candidate in self.candidates)

    @property
    def costs(self) -> Tensor:
        """Trainable parameters of each candidate, float64 [n_candidates]."""
        return torch.tensor([candidate.n_params for candidate in self.candidates], dtype=torch.float64)

    def table(self) -> pd.DataFrame:
        """One row per candidate: site, path, stack, layer, role, pet, rank, n_params, inert, …; plain pandas."""
        return candidate_table(self.candidates)

    def __repr__(self) -> str:
        kinds = {pet: sum(c.pet == pet for c in self.candidates) for pet in PETS}
        parts = ", ".join(f"{count} {pet}" for pet, count in kinds.items() if count)
        return f"Space({self.name!r}: {len(self)} candidates ({parts}), {self.n_params:,} parameters)"


def candidate_table(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Candidates as a tidy DataFrame; ``layer`` and ``rank`` are nullable integers."""
    import pandas as pd

    columns = [field.name for field in fields(Candidate)]
    table = pd.DataFrame([asdict(candidate) for candidate in candidates], columns=columns)
    return table.astype({"layer": "Int64", "rank": "Int64", "inert": bool})


def layers_of(places: Iterable[Candidate | Site]) -> dict[str, int]:
    """Number of layers of each stack, as far as these candidates or sites reach; stacks without layers are left out.

    Relative depth, here and for gates, is layer / (layers − 1): the first layer lies at 0, the last one at 1.
    """
    found: dict[str, int] = {}
    for place in places:
        if place.layer is not None:
            found[place.stack] = max(found.get(place.stack, 0), place.layer + 1)
    return found


def counterparts(space: Space, by: str, layers: Mapping[str, int]) -> Callable[[Candidate], Candidate | None]:
    """A function from the candidates of another space to the nearest ones of this space; None where there is none.

    Args:
        space: the space they are looked for in.
        by: ``"name"``, or ``"relative_depth"``: same stack, role, PET module and rank, in the layer at the nearest
            relative depth, the shallower of two equally near; outside the layers only if the other is outside them.
        layers: number of layers of each stack in the other space (:func:`layers_of`).

    Raises:
        SpaceError: unknown ``by``.
    """
    if by not in ("name", "relative_depth"):
        raise SpaceError(f"by={by!r} is not one of name, relative_depth")
    named = {candidate.name: candidate for candidate in space}
    if by == "name":
        return lambda candidate: named.get(candidate.name)
    there, groups = layers_of(space), dict[Any, list[Candidate]]()
    for candidate in space:
        groups.setdefault(_alike(candidate), []).append(candidate)

    def find(candidate: Candidate) -> Candidate | None:
        found = groups.get(_alike(candidate), [])
        depth, last, its = candidate.layer or 0, *(max(n.get(candidate.stack, 1) - 1, 1) for n in (there, layers))
        # |layer / last − depth / its|, times both: whole numbers, so that ties are ties; min takes the first
        return min(found, key=lambda c: (abs((c.layer or 0) * its - depth * last), c.layer or 0), default=None)

    return find


def _alike(candidate: Candidate) -> tuple:
    """What a candidate shares with its counterpart at another depth."""
    return candidate.stack, candidate.role, candidate.pet, candidate.rank, candidate.layer is None


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """All sites of a model, in ``named_modules()`` order; a module with two roles gives two sites.

    Args:
        model: a Hugging Face model of a known family, with or without weights (meta device is enough).

    Raises:
        BackboneError: unknown family, or none of its names is there.
    """
    family = family_of(model)
    patterns = family.compiled()
    sites: list[Site] = []
    for path, module in model.named_modules():
        for pattern, role in patterns:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            found = match.groupdict()
            stack = found.get("stack") or family.stack
            layer = int(found["layer"]) if found.get("layer") else None
            kind = "norm" if role.endswith(".norm") else "linear" if "." in role else "block"
            d_in, d_out = _widths(module, kind, model)
            address = ".".join(str(part) for part in (stack, layer, role) if part is not None)
            sites.append(Site(address, path, stack, layer, role, kind, d_in, d_out))
    if not sites:
        raise BackboneError(f"{type(model).__name__} has none of the module names of its family")
    return tuple(sites)


def make_space(
    model: nn.Module,
    rules: str | Sequence[Rule | Mapping[str, Any]] = "mixed",
    *,
    keep_inert: bool = False,
    cross_attention: bool = False,
) -> Space:
    """The candidates of a search.

    Args:
        model: the backbone.
        rules: ``"mixed"`` (S³PET-M), ``"lora"`` (S³PET-L), or a list of rules.
        keep_inert: keep candidates that cannot change the model's output (a bias on attention keys).
        cross_attention: add the cross-attention projections and blocks, which the paper's spaces do not hold. Rules
            that name their roles say so themselves.

    Returns:
        The space, in canonical order.

    Raises:
        SpaceError: unknown name, malformed rule, or a rule that matches nothing. UnknownSiteError: unknown PET module
            or a role pattern that no site of this model has. BackboneError: unknown family.

    Source:
        Hu et al. 2022 (arXiv:2206.07382), section 4.1.
    """
    if isinstance(rules, str):
        if rules not in SPACES:
            raise SpaceError(f"space {rules!r} is not known; {nearest(rules, SPACES)}, or give a list of rules")
        name, chosen = rules, SPACES[rules]
    else:
        name, chosen = "custom", tuple(Rule.of(rule) for rule in rules)
    if not chosen:
        raise SpaceError("a space needs at least one rule, such as Rule('lora')")
    sites = find_sites(model)
    keys_matter = bias_on_keys_matters(model)
    found: dict[tuple, Candidate] = {}
    for rule in chosen:
        matched = [(i, site) for i, site in enumerate(sites) if rule.matches(site, cross_attention)]
        if not matched:
            _explain_empty(rule, sites)
        for i, site in matched:
            for rank in rule.ranks_of():
                key = (site.kind == "block", i, list(PETS).index(rule.pet), rank or 0)
                found[key] = _candidate(site, rule.pet, rank, keys_matter)
    ordered = [found[key] for key in sorted(found)]
    kept = [candidate for candidate in ordered if keep_inert or not candidate.inert]
    if not kept:
        raise SpaceError("every candidate of these rules is inert (a bias on attention keys); use keep_inert=True")
    model_id = getattr(model, "s3pet_id", None) or getattr(model.config, "_name_or_path", "") or type(model).__name__
    return Space(_name_redundant(kept), name, model_id, n_parameters(model))


def _candidate(site: Site, pet: str, rank: int | None, keys_matter: bool) -> Candidate:
    if rank is not None and rank < 1:
        raise SpaceError(f"{pet} on {site.address}: rank {rank} must be at least 1")
    cost = pet_module(pet).cost(site.d_in, site.d_out, rank or 1)
    inert = pet == "bitfit" and site.role.endswith(".k") and not keys_matter
    where = (site.address, site.path, site.stack, site.layer, site.role)
    return Candidate(*where, pet, rank, cost, site.d_in, site.d_out, inert)


def _name_redundant(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """A bias on a block's last projection and the up-bias of that block's adapter add at the same place."""
    biases = {candidate.site: candidate.name for candidate in candidates if candidate.pet == "bitfit"}
    named = []
    for candidate in candidates:
        if candidate.role in LAST_PROJECTION:
            beside = f"{candidate.site.removesuffix(candidate.role)}{LAST_PROJECTION[candidate.role]}"
            candidate = Candidate(**{**asdict(candidate), "redundant": biases.get(beside)})
        named.append(candidate)
    return tuple(named)


def _explain_empty(rule: Rule, sites: Sequence[Site]) -> None:
    roles = sorted({site.role for site in sites})
    for pattern in rule.roles or ():
        if not fnmatch.filter(roles, pattern):
            raise UnknownSiteError(f"no site of this model has role {pattern!r}; {nearest(pattern, roles)}")
    fitting = sorted({site.role for site in sites if site.kind in pet_module(rule.pet).fits})
    raise SpaceError(f"{rule} matches no site; {rule.pet} fits on {', '.join(fitting) or 'nothing here'}")


def _widths(module: Any, kind: str, model: Any) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return (module.out_features,) * 2 if kind == "block" else (module.in_features, module.out_features)
    if kind == "norm":
        return (module.weight.shape[-1],) * 2
    return (getattr(model.config, "d_model", None) or model.config.hidden_size,) * 2
