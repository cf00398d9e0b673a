"""The PET modules: input and output of a site → a delta that starts at zero.

A site is a module m of the frozen backbone with input x and output h = m(x); a candidate replaces h by
h + z · δ(x, h) with its gate z. Each module kind here is a row of one table, :data:`PETS`: which sites it fits on,
what it costs, its fresh tensors, and its delta. Deltas are pure functions of their tensors, so the search can evaluate
any weights w' without touching a parameter; gates are multiplied into the last tensors, never the activations.

    lora              s · (x Aᵀ) Bᵀ, s = 16/r         cost r (d_in + d_out)
    bitfit            b                                 cost d_out
    lnfit             w ⊙ norm(x)                       cost d
    lowrank_adapter   up(gelu(down(h))), rank 1         cost 3 d + 3 m,  m = max(1, d // 32)
    adapter           W₂ gelu(W₁ h + b₁) + b₂           cost 2 d k + d + k

Where we depart from the authors' code: their low-rank adapter is not the identity at initialisation (all four factors
are Glorot); ours starts with the last factor at 0, so attaching a space never changes the model. Their bottleneck
d // 32 is 0 below d = 32; ours is at least 1.

Source: Hu et al. 2022 (arXiv:2206.07382), table 1; Hu et al. 2021 (LoRA); Ben Zaken et al. 2022 (BitFit);
Houlsby et al. 2019 (adapters); Karimi Mahabadi et al. 2021 (low-rank adapters).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3pet.errors import UnknownSiteError, nearest

LORA_ALPHA = 16.0  # the authors never set it, so their LoRA runs at this default of its library: scale 16/r

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class PetModule:
    """One kind of PET module.

    Attributes:
        name: as users write it.
        fits: kinds of site it goes on, of ``"linear"``, ``"norm"``, ``"block"``.
        default_rank: rank (LoRA), bottleneck (adapter) or rank of the factors (low-rank adapter); None if sizeless.
        cost: (d_in, d_out, rank) → trainable parameters, in closed form.
        shapes: (d_in, d_out, rank) → shape of each tensor.
        delta: (tensors, x, h, site module) → δ, in a shape that adds to h.
        gated: the last tensors, in which δ is linear: multiplied by z they give z · δ.
        bounds: (d_in, d_out, rank) → half-width of the uniform initialisation of the tensors not starting at 0.
    """

    name: str
    fits: tuple[str, ...]
    default_rank: int | None
    cost: Callable[[int, int, int], int]
    shapes: Callable[[int, int, int], dict[str, tuple[int, ...]]]
    delta: Callable[[Tensors, Tensor, Tensor, nn.Module], Tensor]
    gated: tuple[str, ...]
    bounds: Callable[[int, int, int], dict[str, float]]

    @property
    def is_vector(self) -> bool:
        """Whether it is one vector that is added or multiplied in (BitFit, LNFit), with no factor before it."""
        return not self.bounds(1, 1, 1)

    def init(self, d_in: int, d_out: int, rank: int, generator: torch.Generator) -> Tensors:
        """Fresh float32 tensors on the generator's device; the delta they give is exactly zero."""
        bounds = self.bounds(d_in, d_out, rank)
        made = {}
        for name, shape in self.shapes(d_in, d_out, rank).items():
            made[name] = torch.zeros(shape, device=generator.device)
            if name in bounds:
                made[name].uniform_(-bounds[name], bounds[name], generator=generator)
        return made


def pet_module(name: str) -> PetModule:
    """The PET module of this name; raises UnknownSiteError naming the nearest ones."""
    if name not in PETS:
        raise UnknownSiteError(f"PET module {name!r} is not known; {nearest(name, PETS)}")
    return PETS[name]


def normalize(site: nn.Module, x: Tensor) -> Tensor:
    """What a norm site computes before its own weight and bias: LayerNorm's or RMSNorm's normalised input.

    Args:
        site: a LayerNorm, or an RMSNorm as T5 and Llama have it (``variance_epsilon`` or ``eps``).
        x: the site's input, [..., d].

    Returns:
        norm(x), [..., d].
    """
    if isinstance(site, nn.LayerNorm):
        return F.layer_norm(x, site.normalized_shape, None, None, site.eps)
    epsilon: Any = getattr(site, "variance_epsilon", None)
    epsilon = getattr(site, "eps", 1e-6) if epsilon is None else epsilon
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _lora(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return F.linear(F.linear(x, t["A"]), t["B"] * (LORA_ALPHA / len(t["A"])))


def _bitfit(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return t["b"]


def _lnfit(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return normalize(site, x) * t["w"]


def _lowrank_adapter(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    down = F.linear(F.linear(h, t["down_in"]), t["down_out"], t["down_bias"])
    return F.linear(F.linear(F.gelu(down, approximate="tanh"), t["up_in"]), t["up_out"], t["up_bias"])


def _adapter(t: Tensors, x: Tensor, h: Tensor, site: nn.Module) -> Tensor:
    return F.linear(F.gelu(F.linear(h, t["W1"], t["b1"])), t["W2"], t["b2"])


def bottleneck(d: int) -> int:
    """Width inside a low-rank adapter on a block of width d."""
    return max(1, d // 32)


def _glorot(fan_in: int, fan_out: int) -> float:
    return math.sqrt(2) * math.sqrt(6 / (fan_in + fan_out))


PETS: dict[str, PetModule] = {
    pet.name: pet
    for pet in (  # in the order in which candidates of one site are listed: parallel ones, then sequential ones
        PetModule(
            "lora",
            ("linear",),
            1,
            cost=lambda d_in, d_out, r: r * (d_in + d_out),
            shapes=lambda d_in, d_out, r: {"A": (r, d_in), "B": (d_out, r)},
            delta=_lora,
            gated=("B",),
            bounds=lambda d_in, d_out, r: {"A": 1 / math.sqrt(d_in)},  # Kaiming-uniform with a = √5
        ),
        PetModule(
            "lnfit",
            ("norm",),
            None,
            cost=lambda d_in, d_out, r: d_out,
            shapes=lambda d_in, d_out, r: {"w": (d_out,)},
            delta=_lnfit,
            gated=("w",),
            bounds=lambda d_in, d_out, r: {},
        ),
        PetModule(
            "bitfit",
            ("linear", "norm"),
            None,
            cost=lambda d_in, d_out, r: d_out,
            shapes=lambda d_in, d_out, r: {"b": (d_out,)},
            delta=_bitfit,
            gated=("b",),
            bounds=lambda d_in, d_out, r: {},
        ),
        PetModule(
            "lowrank_adapter",
            ("block",),
            1,
            cost=lambda d_in, d, r: r * (2 * d + 2 * bottleneck(d)) + bottleneck(d) + d,
            shapes=lambda d_in, d, r: {
                "down_in": (r, d),
                "down_out": (bottleneck(d), r),
                "down_bias": (bottleneck(d),),
                "up_in": (r, bottleneck(d)),
                "up_out": (d, r),
                "up_bias": (d,),
            },
            delta=_lowrank_adapter,
            gated=("up_out", "up_bias"),
            bounds=lambda d_in, d, r: {
                "down_in": _glorot(d, r),
                "down_out": _glorot(r, bottleneck(d)),
                "up_in": _glorot(bottleneck(d), r),
            },
        ),
        PetModule(
            "adapter",
            ("block",),
            8,
            cost=lambda d_in, d, k: 2 * d * k + d + k,
            shapes=lambda d_in, d, k: {"W1": (k, d), "b1": (k,), "W2": (d, k), "b2": (d,)},
            delta=_adapter,
            gated=("W2", "b2"),
            bounds=lambda d_in, d, k: {"W1": 1 / math.sqrt(d)},
        ),
    )
}
