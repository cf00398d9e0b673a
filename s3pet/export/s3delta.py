"""The files of the authors' code: structures (JSON) and the gates of a search (``final_alphas.txt``).

A structure is a list of configs that are applied one after the other. A config maps names of modules, complete or the
end of dotted ones, to ``{"parallel" or "sequential": {type: options}}``; of several names that fit a module, the first
counts. A line of the gates is ``|name |insert |type |parameters / 2^20 |alpha |p``, with five decimals of p.

Their LoRA has the scale 16/r, as ours; r is 8 where a file does not say. A low-rank adapter has the bottleneck d // 32.

Source: the repository of Hu et al. 2022 (arXiv:2206.07382).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from s3pet.backbones import check_model, n_parameters
from s3pet.errors import ExportError, RunError, StructureMismatchError, nearest
from s3pet.export.places import Place, structure_at
from s3pet.files.kinds import whole
from s3pet.files.reading import MB, path_of, read_bytes, read_json, reading
from s3pet.gates import Budget, BudgetLike
from s3pet.result import gate_table
from s3pet.space import Space
from s3pet.structure import Structure, parse_budget

PETS_OF: dict[str, tuple[str, str | None, int, dict[str, Any]]] = {
    # their name: ours, the option with the rank and its default, the only values of others that compute the same
    "Lora": ("lora", "lora_r", 8, {"lora_alpha": 16, "lora_dropout": 0.0}),
    "BitFitParallel": ("bitfit", None, 0, {}),
    "BitFitSequential": ("bitfit", None, 0, {}),
    "LNFit": ("lnfit", None, 0, {}),
    "LowRankAdapter": ("lowrank_adapter", "low_rank_rank", 1, {"reduction_factor": 32}),
    "Adapter": ("adapter", "bottleneck_dim", 24, {}),
}


def from_s3delta(path: str | Path, model: nn.Module, *, budget: BudgetLike | None = None) -> Structure | pd.DataFrame:
    """Read a file of the authors' code for a model whose modules have T5's names.

    Args:
        path: a structure (``.json``), or the gates of a search (``.txt``).
        model: the backbone it was made for.
        budget: of gates: what ``chosen`` and ``margin`` refer to; None: the expected cost Σ p · parameters, which
            their search keeps at its budget.

    Returns:
        A structure, or a gate table as :func:`s3pet.search` leaves it, with all candidates of the file.

    Raises:
        RunError: no such file, or one of another form. StructureMismatchError: names, or numbers of parameters, that do
            not fit the model. ExportError: types or options that have no counterpart here.
    """
    path = path_of(path)
    check_model(model)
    with reading(path, RunError, "a structure (.json) or final_alphas.txt of the authors' code"):
        if path.suffix == ".txt":
            return _gates(path, read_bytes(path, 16 * MB).decode(), model, budget)
        if budget is not None:
            raise ValueError(f"budget={budget!r} is for the gates of a search (.txt); a structure has its own size")
        configs = read_json(path)
        if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
            raise ValueError("expected a list of configs by names of modules")
        places = [place for config in configs for place in _places(config, model)]
    return structure_at(model, list(dict.fromkeys(places)), {"kind": "s3delta", "from": path.name})


def _places(config: Mapping[str, Any], model: nn.Module) -> Iterator[Place]:
    """The modules of one config, in ``named_modules()`` order."""
    used = set()
    for path, _ in model.named_modules():
        key = next((key for key in config if path == key or path.endswith(f".{key}")), "")
        for insert, types in config.get(key, {}).items():
            if insert not in ("parallel", "sequential"):
                raise ValueError(f"{key} has {insert!r}; expected parallel or sequential")
            for name, options in types.items():
                pet, rank = _pet(name, options)
                yield path, pet, rank
        used.add(key)
    if unused := [key for key in config if key not in used]:
        paths = [path.rpartition("layer.")[2] for path, _ in model.named_modules()]
        what = f"no module of this {type(model).__name__} is called {unused[0]!r} ({len(unused)} such names)"
        raise StructureMismatchError(f"{what}; {nearest(unused[0], set(paths))}. A gated T5 has no DenseReluDense.wi")


def _pet(name: str, options: Mapping[str, Any]) -> tuple[str, int | None]:
    if name not in PETS_OF:
        raise ExportError(f"the authors' {name!r} has no counterpart here; known are {', '.join(PETS_OF)}")
    pet, option, default, only = PETS_OF[name]
    if wrong := {key: options[key] for key, value in only.items() if options.get(key, value) != value}:
        raise ExportError(f"{name} with {wrong} computes something else than {pet} here; expected {only}")
    rank = None if option is None else options.get(option, default)
    if rank is not None and not whole(1, 2**16).holds(rank):
        raise ValueError(f"{option} of {name} is {rank!r:.60}; expected {whole(1).what}")
    return pet, rank


def _gates(path: Path, text: str, model: nn.Module, budget: BudgetLike | None) -> pd.DataFrame:
    rows, modules = {}, dict(model.named_modules())
    for line in (line for line in text.splitlines() if line.startswith("|")):
        key, _, name, size, alpha, prob = (cell.strip() for cell in line.strip("| ").split("|"))
        width = sum(getattr(modules.get(key), "weight", torch.zeros(1)).shape)  # of a linear map: d_in + d_out
        pet, rank = _pet(name, {"lora_r": max(1, round(float(size) * 2**20 / width))})
        rows[key, pet] = float(size) * 2**20, float(alpha), float(prob), rank
    if not rows:
        raise ValueError("no line of the form |name |insert |type |size |alpha |p")
    places = [(key, pet, rank) for (key, pet), (_, _, _, rank) in rows.items()]
    structure = structure_at(model, places, {"kind": "s3delta", "from": path.name})
    sizes, alphas, probs = (torch.tensor([rows[c.path, c.pet][n] for c in structure]).double() for n in (0, 1, 2))
    space = Space(structure.candidates, "s3delta", structure.model_id, n_parameters(model))
    if bool((wrong := (sizes - space.costs).abs() > 1).any()):  # seven decimals of 2^20 parameters
        n = int(wrong.nonzero()[0])
        what = f"{structure.names[n]} costs {structure.candidates[n].n_params} parameters here"
        raise StructureMismatchError(f"{what}, {sizes[n]:.0f} in {path}; load the backbone of that search")
    expected = Budget(round(float((probs * space.costs).sum())), space.backbone_params)
    return gate_table(space, alphas, probs, (expected if budget is None else parse_budget(space, budget)).n_params)
