"""A site's output with all its candidates in one go: the sums of :mod:`s3pet.modules` in fewer passes over memory.

A candidate's delta is cheap to count and dear to move: made by itself it is a tensor the size of the site's output,
written, read and added. Here a linear map gets its BitFit as a bias and its LoRAs added in place,

    y = x Wᵀ + (c + b)        y += (x Aᵀ) (s·B)ᵀ

with all LoRAs of a site side by side in A and B; a norm gets LNFit and BitFit as its own weight and bias. Only x and
the [tokens, rank] product are kept for the backward pass. Products of small rank are laid out with the rank first,
which a CPU's matrix kernels run up to twenty times faster than the other way round.

Known are plain ``nn.Linear`` and norms with a weight; any other site takes the general way
(:class:`s3pet.supernet.Supernet` adds the deltas behind it), which is also the definition the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3pet.modules import LORA_ALPHA, Tensors

def fused_forward(
    site: nn.Module, pets: Sequence[str], tensors: Callable[[], list[Tensors]]
) -> Callable[[Tensor], Tensor] | None:
    """A forward for this site that has its candidates in it, or None where only the general way is known to be right.

    Args:
        site: a frozen module.
        pets: kinds of its candidates.
        tensors: gives the candidates' tensors, gates multiplied in, when the site runs.
    """
    weight = getattr(site, "weight", None)
    if "forward" in vars(site) or type(weight) is not nn.Parameter or not weight.is_floating_point():
        return None
    if type(site) is nn.Linear and set(pets) <= {"lora", "bitfit"}:
        return lambda x: _linear(site, pets, tensors(), x)
    if weight.dim() == 1 and set(pets) <= {"lnfit", "bitfit"}:
        return lambda x: _norm(site, pets, tensors(), x)
    return None


def split(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """One vector as tensors of these shapes, in one node of autograd's graph."""
    return _Split.apply(flat, shapes) if shapes else ()


def _norm(site: Any, pets: Sequence[str], tensors: list[Tensors], x: Tensor) -> Tensor:
    """The module's own arithmetic with another weight and bias, so nothing is computed anew but these."""
    own, shift = site._parameters, _shift(tensors)
    before = dict(own)
    own["weight"] = sum((t["w"] for t in tensors if "w" in t), before["weight"])
    if shift is not None and before.get("bias") is not None:
        own["bias"], shift = before["bias"] + shift, None
    try:
        y = type(site).forward(site, x)
    finally:
        own.update(before)
    return y if shift is None else y + shift.to(y.dtype)


def _linear(site: nn.Linear, pets: Sequence[str], tensors: list[Tensors], x: Tensor) -> Tensor:
    bias, shift = site.bias, _shift(tensors)
    if shift is not None:
        bias = shift if bias is None else bias + shift
    loras = [(t["A"], t["B"].T, LORA_ALPHA / len(t["A"])) for t in tensors if "A" in t]
    if not loras:
        return F.linear(x, site.weight, bias)
    if len(loras) == 1:
        return _Lora.apply(x, site.weight, bias, *loras[0])
    a, b = torch.cat([a for a, _, _ in loras]), torch.cat([b * scale for _, b, scale in loras])
    return _Lora.apply(x, site.weight, bias, a, b, 1.0)


def _shift(tensors: list[Tensors]) -> Tensor | None:
    biases = [t["b"] for t in tensors if "b" in t]
    return sum(biases[1:], biases[0]) if biases else None


class _Lora(torch.autograd.Function):
    """x Wᵀ + c + s (x Aᵀ) B for A [rank, d_in] and B [rank, d_out]; W is frozen.

    The backward pass is made of differentiable operations, so it can be differentiated again; the product kept from
    the forward pass is then made anew, because autograd does not know where it came from.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        inner = _read(_rows(x), a, y.dtype)  # under autocast y is narrower than the small tensors
        y.view(-1, y.shape[-1]).addmm_(inner, b.to(y.dtype), alpha=scale)
        ctx.scale = scale
        ctx.save_for_backward(x, weight, a, b, inner)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, a, b, inner = ctx.saved_tensors
        of_x, _, of_bias, of_a, of_b, _ = ctx.needs_input_grad
        g, kind = _rows(gradient), gradient.dtype
        rows, small_a = _rows(x).to(kind), a.to(kind)
        found_x = found_bias = found_a = found_b = None
        if of_x or of_a:
            outer = (g @ b.to(kind).T) * ctx.scale  # [tokens, rank]
            if of_x:
                found_x = (g @ weight.to(kind)).addmm_(outer, small_a).view(x.shape)
            if of_a:
                found_a = outer.T @ rows
        if of_bias:
            found_bias = (g.new_ones(1, len(g)) @ g).squeeze(0)  # a product, faster on a CPU than sum(0)
        if of_b:
            found_b = ((_read(rows, a, kind) if torch.is_grad_enabled() else inner).T @ g) * ctx.scale
        return found_x, None, found_bias, found_a, found_b, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:  # type: ignore[override]
        parts = flat.split([shape.numel() for shape in shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # type: ignore[override]
        return torch.cat([gradient.reshape(-1) for gradient in gradients]), None


def _read(rows: Tensor, a: Tensor, kind: torch.dtype) -> Tensor:
    return (a.to(kind) @ rows.to(kind).T).T


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
