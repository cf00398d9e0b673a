"""From places that a file names to a structure on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from s3pet.errors import SpaceError, StructureMismatchError, UnknownSiteError, nearest
from s3pet.space import Rule, find_sites, layers_of, make_space
from s3pet.structure import Structure

Place = tuple[str, str, int | None]  # dotted path, PET module, rank


def structure_at(model: nn.Module, places: Sequence[Place], origin: Mapping[str, Any]) -> Structure:
    """The structure with these candidates, in canonical order.

    Raises StructureMismatchError, naming the first ones, if there is no such site or the module does not fit on it.
    """
    if not places:
        raise StructureMismatchError("the file places no module; a structure needs at least one")
    ranks: dict[str, set[int | None]] = {}
    for _, pet, rank in places:
        ranks.setdefault(pet, set()).add(rank)
    rules = [Rule(pet, ranks=None if None in sizes else tuple(sizes)) for pet, sizes in ranks.items()]  # type: ignore[arg-type]
    try:
        space = make_space(model, rules, keep_inert=True, cross_attention=True)
        candidates = {(c.path, c.pet, c.rank): c for c in space}
    except (SpaceError, UnknownSiteError) as error:
        raise StructureMismatchError(f"the modules of this file do not fit this model: {error}") from error
    if missing := [f"{pet} on {path}" for path, pet, rank in places if (path, pet, rank) not in candidates]:
        hint = nearest(missing[0].split(" on ")[1], {path for path, _, _ in candidates})
        what = f"{type(model).__name__} has no place for {', '.join(missing[:3])} ({len(missing)} in all; {hint})"
        raise StructureMismatchError(f"{what}. Load the backbone that the file was made for")
    wanted = set(places)
    chosen = tuple(c for key, c in candidates.items() if key in wanted)
    return Structure(chosen, space.model_id, origin=dict(origin), layers=layers_of(find_sites(model)))
