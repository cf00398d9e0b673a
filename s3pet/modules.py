"""The PET modules: from the input and output of a site to a delta that starts at zero.

A site is a module m of the frozen backbone with input x and output h = m(x). A candidate replaces h by
h + z · δ(x, h), where z is its gate. The table :data:`PETS` has one row for each kind of module:

    lora              δ = s · (x Aᵀ) Bᵀ,  s = 16/r     r (d_in + d_out) parameters
    lnfit             δ = w ⊙ norm(x)                   d
    bitfit            δ = b                             d_out
    lowrank_adapter   δ = up(gelu(down(h))), rank 1     3 d + 3 m,  m = max(1, d // 32)
    adapter           δ = W₂ gelu(W₁ h + b₁) + b₂       2 d k + d + k

A delta is a pure function of its tensors, so a search can evaluate any weights without changing a parameter. Every
delta is linear in its last tensors; multiplying those by z is cheaper than multiplying the activations.

Departures from the authors' code: all four factors of their low-rank adapter start at random values, which changes the
model; here the last one starts at 0. Their bottleneck d // 32 is 0 below d = 32; here it is at least 1.

Source: Hu et al. 2022 (arXiv:2206.07382), table 1; Hu et al. 2021 (LoRA); Ben Zaken et al. 2022 (BitFit);
Houlsby et al. 2019 (adapters); Karimi Mahabadi et al. 2021 (low-rank adapters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3pet.backbones.norms import normalize
from s3pet.errors import UnknownSiteError, nearest

LORA_ALPHA = 16.0  # the scale is LORA_ALPHA / r; 16 is the default of the authors' LoRA library

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class PetModule:
    """One kind of PET module.

    Attributes:
        name, fits: as users write it; the kinds of site it fits on: ``"linear"``, ``"norm"``, ``"block"``.
        default_rank: rank (LoRA, low-rank adapter) or bottleneck width (adapter); None for modules without a size.
        shapes: (d_in, d_out, rank) → shape of each tensor.
        bounds: (d_in, d_out, rank) → half-width of the uniform initial distribution; tensors not listed start at 0.
        delta: (tensors, x, h, site module) → δ, in a shape that adds to h.
        gated: the last tensors, in which δ is linear: multiplied by z they give z · δ.
        size_axis: the axis of each tensor that grows with the size, where a module of size r is the first r rows or
            columns of a larger one; empty where it is not: a low-rank adapter's size lies inside its nonlinearity.
        scale: size → the factor that δ has for it.
    """

    name: str
    fits: tuple[str, ...]
    default_rank: int | None
    shapes: Callable[[int, int, int], Shapes]
    bounds: Callable[[int, int, int], dict[str, float]]
    delta: Callable[[Tensors, Tensor, Tensor, nn.Module], Tensor]
    gated: tuple[str, ...]
    size_axis: Mapping[str, int] = field(default_factory=dict)
    scale: Callable[[int], float] = lambda rank: 1.0

    def cost(self, d_in: int, d_out: int, rank: int) -> int:
        """Number of trainable parameters."""
        return sum(math.prod(shape) for shape in self.shapes(d_in, d_out, rank).values())

    def init(self, d_in: int, d_out: int, rank: int, generator: torch.Generator) -> Tensors:
        """Fresh float32 tensors on the generator's device; their delta is exactly zero."""
        shapes, bounds = self.shapes(d_in, d_out, rank), self.bounds(d_in, d_out, rank)
        tensors = {name: torch.zeros(shape, device=generator.device) for name, shape in shapes.items()}
        for name, bound in bounds.items():
            tensors[name].uniform_(-bound, bound, generator=generator)
        return tensors


def pet_module(name: str) -> PetModule:
    """The PET module of this name; raises UnknownSiteError, which names the nearest ones."""
    if name not in PETS:
        raise UnknownSiteError(f"PET module {name!r} is not known; {nearest(name, PETS)}")
    return PETS[name]


# Each module below: its delta, the shapes of its tensors, and the bounds of those that do not start at 0.


def _lora(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return F.linear(F.linear(x, t["A"]), t["B"] * _lora_scale(len(t["A"])))


def _lora_scale(rank: int) -> float:
    return LORA_ALPHA / rank


def _lnfit(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return normalize(site, x) * t["w"]


def _bitfit(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return t["b"]


def _vector(name: str) -> Callable[[int, int, int], Shapes]:
    return lambda d_in, d_out, r: {name: (d_out,)}


def _lowrank(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    down = F.linear(F.linear(h, t["down_in"]), t["down_out"], t["down_bias"])
    return F.linear(F.linear(F.gelu(down, approximate="tanh"), t["up_in"]), t["up_out"], t["up_bias"])


def _lowrank_shapes(d_in: int, d: int, r: int) -> Shapes:
    m = max(1, d // 32)
    down = {"down_in": (r, d), "down_out": (m, r), "down_bias": (m,)}
    return down | {"up_in": (r, m), "up_out": (d, r), "up_bias": (d,)}


def _lowrank_bounds(d_in: int, d: int, r: int) -> dict[str, float]:
    shapes = _lowrank_shapes(d_in, d, r)  # Glorot-uniform with gain √2
    return {name: math.sqrt(2) * math.sqrt(6 / sum(shapes[name])) for name in ("down_in", "down_out", "up_in")}


def _adapter(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return F.linear(F.gelu(F.linear(h, t["W1"], t["b1"])), t["W2"], t["b2"])


def _kaiming(name: str) -> Callable[[int, int, int], dict[str, float]]:
    return lambda d_in, d_out, r: {name: 1 / math.sqrt(d_in)}  # Kaiming-uniform with a = √5; a block's d is its d_in


def _adapter_shapes(d_in: int, d: int, k: int) -> Shapes:
    return {"W1": (k, d), "b1": (k,), "W2": (d, k), "b2": (d,)}


_ROWS = (  # candidates of one site are listed in this order
    PetModule("lora", ("linear",), 1, lambda d_in, d, r: {"A": (r, d_in), "B": (d, r)}, _kaiming("A"), _lora, ("B",),
              {"A": 0, "B": 1}, _lora_scale),
    PetModule("lnfit", ("norm",), None, _vector("w"), lambda *_: {}, _lnfit, ("w",)),
    PetModule("bitfit", ("linear", "norm"), None, _vector("b"), lambda *_: {}, _bitfit, ("b",)),
    PetModule("lowrank_adapter", ("block",), 1, _lowrank_shapes, _lowrank_bounds, _lowrank, ("up_out", "up_bias")),
    PetModule("adapter", ("block",), 8, _adapter_shapes, _kaiming("W1"), _adapter, ("W2", "b2"),
              {"W1": 0, "b1": 0, "W2": 1}),
)  # fmt: skip
PETS: dict[str, PetModule] = {pet.name: pet for pet in _ROWS}
