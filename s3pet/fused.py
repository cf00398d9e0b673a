"""A site's output with all its candidates in one go: the sums of :mod:`s3pet.modules` in fewer passes over memory.

A candidate's delta is cheap to count and dear to move: made by itself it is a tensor the size of the site's output,
written, read and added. Here a linear map gets its BitFit as a bias and its LoRAs added in place,

    y = x Wᵀ + (c + b)        y += (x Aᵀ) (s·B)ᵀ

with all LoRAs of a site side by side in A and B; a norm gets LNFit and BitFit as its own weight and bias. Only x and
the [tokens, rank] product are kept for the backward pass. Products of small rank are laid out with the rank first,
which a CPU's matrix kernels run up to twenty times faster than the other way round.

Known are plain ``nn.Linear``, ``nn.LayerNorm`` and the RMS norms of the families; any other site takes the general way
(:class:`s3pet.supernet.Supernet` adds the deltas behind it), which is also the definition the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3pet.families import RMS_NORMS
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
    if "forward" in vars(site) or not set(pets) <= {"lora", "bitfit", "lnfit"}:
        return None
    weight = getattr(site, "weight", None)
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        return None
    if type(site) is nn.Linear:
        return lambda x: _linear(site, pets, tensors(), x)
    if type(site) is nn.LayerNorm:
        return lambda x: F.layer_norm(x, site.normalized_shape, *_affine(site, pets, tensors()), site.eps)
    if type(site).__name__ in RMS_NORMS and type(site).__module__.startswith("transformers."):
        return lambda x: _RmsNorm.apply(x, *_affine(site, pets, tensors()), site.variance_epsilon)
    return None


def _affine(site: Any, pets: Sequence[str], tensors: list[Tensors]) -> tuple[Tensor, Tensor | None]:
    weight, bias = site.weight, getattr(site, "bias", None)
    for pet, own in zip(pets, tensors, strict=True):
        if pet == "lnfit":
            weight = weight + own["w"]
        elif pet == "bitfit":
            bias = own["b"] if bias is None else bias + own["b"]
    return weight, bias


def _linear(site: nn.Linear, pets: Sequence[str], tensors: list[Tensors], x: Tensor) -> Tensor:
    weight, bias = _affine(site, pets, tensors)
    loras = [own for pet, own in zip(pets, tensors, strict=True) if pet == "lora"]
    if not loras:
        return F.linear(x, weight, bias)
    if len(loras) == 1:
        a, b = loras[0]["A"], loras[0]["B"]
        return _Lora.apply(x, weight, bias, a, b.T, LORA_ALPHA / len(a))
    a = torch.cat([own["A"] for own in loras])
    b = torch.cat([own["B"].T * (LORA_ALPHA / len(own["A"])) for own in loras])
    return _Lora.apply(x, weight, bias, a, b, 1.0)


class _Lora(torch.autograd.Function):
    """x Wᵀ + bias + s (x Aᵀ) B for A [rank, d_in], B [rank, d_out]; W is frozen.

    The backward pass is made of differentiable operations, so it can be differentiated again; the product kept from
    the forward pass is then made anew, because autograd does not know where it came from.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        inner = _rows(x).to(y.dtype) @ a.to(y.dtype).T  # under autocast y is narrower than the small tensors
        y.view(-1, y.shape[-1]).addmm_(inner, b.to(y.dtype), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
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
            found_bias = _total(g)
        if of_b:
            if torch.is_grad_enabled():
                inner = rows @ small_a.T
            found_b = (inner.T @ g) * ctx.scale
        return found_x, None, found_bias, found_a, found_b, None


class _RmsNorm(torch.autograd.Function):
    """weight · x/√(mean x² + ε) + bias, in the stock modules' order of operations; keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:  # type: ignore[override]
        factor = _factor(x, epsilon)
        y = weight * (x * factor).to(weight.dtype)
        if bias is not None:
            y += bias
        ctx.save_for_backward(x, weight, factor)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, factor = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            factor = _factor(x, ctx.epsilon)
        found_x = found_weight = found_bias = None
        normal = x * factor
        product = gradient * normal
        if of_x:
            along = (product @ weight.to(product.dtype)).unsqueeze(-1) / x.shape[-1]
            found_x = (gradient * weight).addcmul_(normal, along, value=-1).mul_(factor)
        if of_weight:
            found_weight = _total(_rows(product))
        if of_bias:
            found_bias = _total(_rows(gradient))
        return found_x, found_weight, found_bias, None


def _factor(x: Tensor, epsilon: float) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _total(rows: Tensor) -> Tensor:
    return (rows.new_ones(1, len(rows)) @ rows).squeeze(0)  # a product, faster on a CPU than sum(0)
