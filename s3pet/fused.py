"""A site's output with all its candidates in one go: the sums of :mod:`s3pet.modules` in fewer passes over memory.

A candidate's delta is cheap to count and dear to move: made by itself it is a tensor the size of the site's output,
written, read and added. Here a linear map gets its BitFit as a bias and its LoRAs added in place,

    y = x Wᵀ + (c + b)        y += (x Aᵀ) (s·B)ᵀ

with all LoRAs of a site side by side in A and B; a norm gets LNFit and BitFit as its own weight and bias. Only x and
the [tokens, rank] product are kept for the backward pass. Products of small rank are laid out with the rank first,
which a CPU's matrix kernels run several times faster than the other way round.

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
    weight, kind = getattr(site, "weight", None), type(site)
    if "forward" in vars(site) or type(weight) is not nn.Parameter or not weight.is_floating_point():
        return None
    if kind is nn.Linear and set(pets) <= {"lora", "bitfit"}:
        return lambda x: _linear(site, tensors(), x)
    if not set(pets) <= {"lnfit", "bitfit"}:
        return None
    if kind is nn.LayerNorm:
        return lambda x: _layer_norm(site, *_affine(site, tensors()), x)
    if kind.__name__ in RMS_NORMS and kind.__module__.startswith("transformers."):
        return lambda x: _RmsNorm.apply(x, *_affine(site, tensors()), site.variance_epsilon, site.weight.dtype)
    return None


def split(flat: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """One vector as tensors of these shapes, in one node of autograd's graph."""
    return _Split.apply(flat, shapes) if shapes else ()


def _affine(site: Any, tensors: list[Tensors]) -> tuple[Tensor, Tensor | None]:
    """The site's weight and bias with LNFit and BitFit added."""
    weight, bias = site.weight, getattr(site, "bias", None)
    for own in tensors:
        if "w" in own:
            weight = weight + own["w"]
        if "b" in own:
            bias = own["b"] if bias is None else bias + own["b"]
    return weight, bias


def _layer_norm(site: Any, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    kind = weight.dtype if bias is None else torch.promote_types(weight.dtype, bias.dtype)
    if kind == site.weight.dtype:
        return F.layer_norm(x, site.normalized_shape, weight, bias, site.eps)
    bias = None if bias is None else bias.to(kind)
    return F.layer_norm(x.to(kind), site.normalized_shape, weight.to(kind), bias, site.eps).to(x.dtype)


def _linear(site: Any, tensors: list[Tensors], x: Tensor) -> Tensor:
    weight, bias = _affine(site, tensors)
    bias = None if bias is None else bias.to(weight.dtype)
    loras = [(t["A"], t["B"].T, LORA_ALPHA / len(t["A"])) for t in tensors if "A" in t]
    if not loras:
        return F.linear(x, weight, bias)
    if len(loras) == 1:
        return _Lora.apply(x, weight, bias, *loras[0])
    a, b = torch.cat([a for a, _, _ in loras]), torch.cat([b * scale for _, b, scale in loras])
    return _Lora.apply(x, weight, bias, a, b, 1.0)


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
            found_bias = _total(g)
        if of_b:
            found_b = ((_read(rows, a, kind) if torch.is_grad_enabled() else inner).T @ g) * ctx.scale
        return found_x, None, found_bias, found_a, found_b, None


class _RmsNorm(torch.autograd.Function):
    """weight · x/√(mean x² + ε) + bias, in the stock modules' order of operations; keeps x and one number a row."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, kind: torch.dtype
    ) -> Tensor:
        factor = _factor(x, epsilon)
        y = weight * (x * factor).to(kind)
        if bias is not None:
            y += bias
        ctx.save_for_backward(x, weight, factor)
        ctx.epsilon = epsilon
        return y.to(kind)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, factor = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            factor = _factor(x, ctx.epsilon)
        found_x = found_weight = found_bias = None
        wide, weight = gradient.to(factor.dtype), weight.to(factor.dtype)
        normal = x * factor
        product = wide * normal
        if of_x:
            along = (product @ weight).unsqueeze(-1) / x.shape[-1]
            found_x = (wide * weight).addcmul_(normal, along, value=-1).mul_(factor)
        if of_weight:
            found_weight = _total(_rows(product))
        if of_bias:
            found_bias = _total(_rows(wide))
        return found_x, found_weight, found_bias, None, None


def _factor(x: Tensor, epsilon: float) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)


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


def _total(rows: Tensor) -> Tensor:
    return (rows.new_ones(1, len(rows)) @ rows).squeeze(0)  # a product, faster on one core than sum(0)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
