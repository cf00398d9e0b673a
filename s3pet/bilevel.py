"""Hypergradients: the gradient of α, given that the PET weights w react to α.

The search solves  min_α L_val(w*(α), α)  with  w*(α) = argmin_w L_train(w, α). All three functions take α's gradient
*after* a weight step w', which is w − ξ ∇_w L_train(w, α) or the step of another optimiser:

    first order       ∂_α L_val(w', α)
    unrolled          ∂_α L_val(w', α) − ξ · ∂²_{α,w} L_train(w, α) · ∂_{w'} L_val(w', α)
    unrolled_exact    d/dα L_val(w − ξ ∇_w L_train(w, α), α)   by double backward

``unrolled`` replaces the mixed second derivative by a one-sided finite difference along v = ∂_{w'} L_val. The weight
step's backward pass gives ∂_α L_train(w, α) as well, so one search step needs three passes (the authors use five). The
correction is the derivative of an SGD step of length ξ; after an AdamW step it is an approximation, as theirs is.

A loss is a closure ``loss(alpha, weights) -> scalar``. It must use the same gate noise and the same dropout in every
call on one batch; otherwise the finite difference measures noise.

Source: Liu et al. 2019 (DARTS), equations 5–8; Hu et al. 2022 (arXiv:2206.07382), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Weights = Sequence[Tensor]
Loss = Callable[[Tensor, Weights], Tensor]

ORDERS: tuple[str, ...] = ("first", "unrolled", "unrolled_exact")


def gradients(loss: Loss, alpha: Tensor, weights: Weights) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The loss, ∂α [n_candidates] and [∂w, in the shapes of weights]: one forward and one backward pass.

    A gradient is zero where the loss does not depend on the tensor.
    """
    alpha, weights = _leaf(alpha), [_leaf(weight) for weight in weights]
    value = loss(alpha, weights)
    alpha_gradient, *weight_gradients = _grad(value, [alpha, *weights])
    return value.detach(), alpha_gradient, weight_gradients


def first_order(val_loss: Loss, alpha: Tensor, new_weights: Weights) -> tuple[Tensor, Tensor]:
    """L_val and ∂_α L_val(w', α), [n_candidates]: one pass. ``new_weights`` is w', *after* the weight step."""
    alpha = _leaf(alpha)
    value = val_loss(alpha, [weight.detach() for weight in new_weights])
    return value.detach(), _grad(value, [alpha])[0]


def unrolled(
    train_loss: Loss,
    val_loss: Loss,
    alpha: Tensor,
    weights: Weights,
    new_weights: Weights,
    train_alpha_gradient: Tensor,
    xi: float,
    *,
    epsilon: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """L_val and DARTS' second order by a one-sided difference: two passes besides the one of the weight step.

    Args:
        train_loss, val_loss: closures on the search_train batch of the weight step, and on the search_val batch.
        alpha, weights, new_weights: α [n_candidates], w before the weight step, and w' after it.
        train_alpha_gradient: ∂_α L_train(w, α), from the backward pass of the weight step.
        xi: ξ, the length of the inner step (its learning rate).
        epsilon: norm of the displacement of w, ε·v/‖v‖.
    """
    value, direct, v = gradients(val_loss, alpha, new_weights)
    norm = torch.stack([part.double().norm() for part in v]).norm()
    r = (epsilon / norm.clamp_min(1e-12)).to(alpha.dtype)  # ‖r·v‖ = ε; the clamp keeps r finite where v is 0
    moved = [weight.detach() + r * part for weight, part in zip(weights, v, strict=True)]
    _, moved_gradient = first_order(train_loss, alpha, moved)
    mixed = (moved_gradient - train_alpha_gradient) / r  # ≈ ∂²_{α,w} L_train · v; the divisor is r, not ε
    return value, direct - xi * mixed


def unrolled_exact(
    train_loss: Loss, val_loss: Loss, alpha: Tensor, weights: Weights, xi: float
) -> tuple[Tensor, Tensor]:
    """L_val and d/dα L_val(w − ξ ∇_w L_train(w, α), α) by double backward: a reference for small models.

    Needs a backbone with ``attn_implementation="eager"``: the other kinds have no double backward on the CPU.
    """
    alpha, weights = _leaf(alpha), [_leaf(weight) for weight in weights]
    inner = _grad(train_loss(alpha, weights), weights, create_graph=True)
    value = val_loss(alpha, [weight - xi * part for weight, part in zip(weights, inner, strict=True)])
    return value.detach(), _grad(value, [alpha])[0]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _grad(value: Tensor, tensors: Weights, create_graph: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, tensors, create_graph=create_graph, materialize_grads=True, allow_unused=True)
