"""Hypergradients: how α should move when the PET weights w answer to it.

The search solves  min_α L_val(w*(α), α)  with  w*(α) = argmin_w L_train(w, α).  All three functions take α's gradient
*after* a weight step, w' = w − ξ ∇_w L_train(w, α) or any other optimiser's step:

    first order       ∂_α L_val(w', α)
    unrolled          ∂_α L_val(w', α) − ξ · ∂²_{α,w} L_train(w, α) · ∂_{w'} L_val(w', α)
    unrolled_exact    d/dα L_val(w − ξ ∇_w L_train(w, α), α)   by double backward

``unrolled`` replaces the mixed second derivative by a one-sided finite difference along v = ∂_{w'} L_val: since
∂_α L_train(w, α) comes free with the weight step's gradient, only one further pass is needed, three in all (the
authors spend five). Its correction is the derivative of an SGD step of length ξ; behind an AdamW step it is the same
approximation the authors make.

Losses are closures ``loss(alpha, weights) -> scalar``. The closure must use the same noise and the same dropout in
every call with the same weights-batch, or the difference measures noise.

Source: Liu et al. 2019 (DARTS), equations 5–8; Hu et al. 2022 (arXiv:2206.07382), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Weights = Sequence[Tensor]
Loss = Callable[[Tensor, Weights], Tensor]

ORDERS: tuple[str, ...] = ("first", "unrolled", "unrolled_exact")


def gradients(loss: Loss, alpha: Tensor, weights: Weights) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss and its gradients in alpha and weights, from one forward and one backward pass.

    Args:
        loss: closure ``loss(alpha, weights) -> scalar``.
        alpha: [n_candidates].
        weights: tensors of any shape.

    Returns:
        (loss value, ∂α [n_candidates], [∂w in the shapes of weights]); zeros where the loss does not depend.
    """
    alpha = alpha.detach().requires_grad_()
    weights = [weight.detach().requires_grad_() for weight in weights]
    value = loss(alpha, weights)
    found = torch.autograd.grad(value, [alpha, *weights], materialize_grads=True, allow_unused=True)
    return value.detach(), found[0], list(found[1:])


def first_order(val_loss: Loss, alpha: Tensor, new_weights: Weights) -> tuple[Tensor, Tensor]:
    """∂_α L_val(w', α): one pass.

    Args:
        val_loss: closure on the search_val batch.
        alpha: [n_candidates].
        new_weights: w', the weights *after* the weight step.

    Returns:
        (L_val, hypergradient [n_candidates]).
    """
    alpha = alpha.detach().requires_grad_()
    value = val_loss(alpha, [weight.detach() for weight in new_weights])
    (found,) = torch.autograd.grad(value, [alpha], materialize_grads=True, allow_unused=True)
    return value.detach(), found


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
    """DARTS' second order by a one-sided difference: two passes beside the weight step's own.

    Args:
        train_loss: closure on the search_train batch, the one the weight step used, with its noise.
        val_loss: closure on the search_val batch.
        alpha: [n_candidates].
        weights: w, before the weight step.
        new_weights: w', after it.
        train_alpha_gradient: ∂_α L_train(w, α), which the weight step's backward pass gave.
        xi: ξ, the length of the inner step (its learning rate).
        epsilon: norm of the displacement of w, ε·v/‖v‖.

    Returns:
        (L_val, hypergradient [n_candidates]).
    """
    value, direct, v = gradients(val_loss, alpha, new_weights)
    norm = torch.stack([part.double().norm() for part in v]).norm()
    # r·v has norm epsilon; where v vanishes so does the correction, and r stays finite.
    r = (epsilon / norm.clamp_min(1e-12)).to(alpha.dtype)
    moved = [weight.detach() + r * part for weight, part in zip(weights, v, strict=True)]
    _, shifted = first_order(train_loss, alpha, moved)
    mixed = (shifted - train_alpha_gradient) / r  # ≈ ∂²_{α,w} L_train · v, once the division by r (not ε) is done
    return value, direct - xi * mixed


def unrolled_exact(
    train_loss: Loss, val_loss: Loss, alpha: Tensor, weights: Weights, xi: float
) -> tuple[Tensor, Tensor]:
    """d/dα L_val(w − ξ ∇_w L_train(w, α), α) by double backward — the reference, for tests and small models.

    Scaled-dot-product attention kernels have no double backward on CPU: load the backbone with
    ``attn_implementation="eager"``.

    Args:
        train_loss: closure on the search_train batch.
        val_loss: closure on the search_val batch.
        alpha: [n_candidates].
        weights: w.
        xi: ξ, length of the (SGD) inner step.

    Returns:
        (L_val at the virtual w', hypergradient [n_candidates]).
    """
    alpha = alpha.detach().requires_grad_()
    weights = [weight.detach().requires_grad_() for weight in weights]
    inner = torch.autograd.grad(
        train_loss(alpha, weights), weights, create_graph=True, materialize_grads=True, allow_unused=True
    )
    virtual = [weight - xi * part for weight, part in zip(weights, inner, strict=True)]
    value = val_loss(alpha, virtual)
    (found,) = torch.autograd.grad(value, [alpha], materialize_grads=True, allow_unused=True)
    return value.detach(), found


class SharedAdam(torch.optim.Optimizer):
    """Adam with one second moment, the mean of g² over all elements, instead of one for each.

    Adam moves every α about as far, however small its gradient: α of a candidate that hardly matters walks at random as
    far as that of one that decides. Here steps stay in proportion to the gradients; only their common scale is adapted.

    Args:
        params: tensors; each has a moment of its own.
        lr: learning rate. betas: decay of the two moments. eps: added to the root.

    Source:
        The form is Adam's (Kingma and Ba 2015, arXiv:1412.6980); the common second moment is ours.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-12):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step down the gradients."""
        for group in self.param_groups:
            (decay, slow), lr = group["betas"], group["lr"]
            for tensor in (tensor for tensor in group["params"] if tensor.grad is not None):
                state = self.state[tensor]
                if not state:
                    state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(tensor))
                    state.update(exp_avg_sq=torch.zeros_like(tensor.sum()))
                state["step"] += 1
                step = float(state["step"])  # kept with the processor
                state["exp_avg"].lerp_(tensor.grad, 1 - decay)
                state["exp_avg_sq"].lerp_(tensor.grad.square().mean(), 1 - slow)
                scale = (state["exp_avg_sq"] / (1 - slow**step)).sqrt() + group["eps"]
                tensor.sub_(state["exp_avg"] / scale, alpha=lr / (1 - decay**step))


ALPHA_OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.0),
    "shared": SharedAdam,
}
