"""From structural parameters α to gates that meet a parameter budget.

Candidate i has one structural parameter α_i and c_i trainable parameters. The shifted global sigmoid turns α into
probabilities whose expected cost is exactly the budget B,

    p_i = σ((α_i − ζ) / β)     with ζ such that  Σ_i c_i p_i = B,

and a binary-concrete sample turns probabilities into gates,

    z_i = σ((logit u_i + logit p_i) / τ),     u_i ~ U(0, 1).

All functions are pure, run on the device of their tensors, and accept leading batch dimensions.

Sizes of one module at one site exclude each other in a structure, but their gates are drawn independently. Each has its
full cost in Σ c p = B. Of several that are open at once the largest holds the others, so the expected cost of what a
draw builds, Σ over sizes of (c_k − c_{k−1}) · P(size k or a larger one is open), is at most B, and close to it at small
probabilities.

Departures from the authors' code: the root is bracketed (they start ``fsolve`` from the last value), and the gradient
through the shift can be chosen. Samples can be hard (straight-through), because at τ = 1 the mean of a sampled gate is
well above p (:func:`expected_gates`).

Source: Hu et al. 2022 (arXiv:2206.07382), shifted global sigmoid; Maddison et al. 2017, binary concrete.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from s3pet.errors import BudgetError, shown
from s3pet.files.kinds import POSITIVE, instance, is_real, is_whole, number, whole

GRADIENT_MODES: tuple[str, ...] = ("normalized", "detached", "implicit")

_SECTIONS, _ROUNDS = 64, 10  # each round divides the bracket by 64, all together by 64 ** 10 = 2 ** 60
_POINTS = 2048  # of the midpoint rule in expected_gates
_UNITS = {"%": 1e-2, "‰": 1e-3, "‱": 1e-4}


@dataclass(frozen=True)
class Budget:
    """A number of trainable PET parameters, ``n_params`` ≥ 1; a task head is never part of it.

    ``total`` is the number of parameters of the frozen backbone, which fractions refer to.
    """

    n_params: int
    total: int

    def __post_init__(self) -> None:
        whole(1).check(BudgetError, n_params=self.n_params, total=self.total)

    @property
    def fraction(self) -> float:
        """The budget as a share of the backbone's parameters."""
        return self.n_params / self.total

    def __str__(self) -> str:
        share = f"{100 * self.fraction:.4g} % = {1e4 * self.fraction:.4g} ‱"
        return f"{self.n_params:,} parameters = {share} of {self.total:,}"

    @classmethod
    def parse(cls, value: BudgetLike, *, total: int) -> Budget:
        """Read a budget in any of its usual forms.

        Args:
            value: a whole number is a number of parameters (``2048``, ``"2048"``, ``"2,048"``); a number below 1 is a
                fraction of the backbone (``0.0001``, ``"1.39e-4"``); a string may end in ``%``, ``‰`` or ``‱``
                (``"0.01%"``, ``"1.39‱"``). A comma is never a decimal point.
            total: parameters of the backbone.

        Returns:
            The budget, rounded down to a whole parameter. Raises BudgetError, which says how to write one.

        >>> print(Budget.parse("0.01%", total=20_480_000))
        2,048 parameters = 0.01 % = 1 ‱ of 20,480,000
        """
        how = 'Give parameters (2048), a fraction (0.0001, "1.39e-4"), or a share ("0.01%", "1.39‱").'
        amount, unit = (value.n_params if isinstance(value, Budget) else value), ""
        whole(1).check(BudgetError, total=total)
        if not isinstance(amount, str) and not is_real(amount):
            raise BudgetError(f"budget {shown(value)} is a {type(value).__name__}. {how}")
        if isinstance(amount, str):
            text = amount.strip()
            text = text.replace(",", "") if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", text) else text
            match = re.fullmatch(r"([+-]?[\d_]*\.?\d+(?:[eE][+-]?\d+)?)\s*([%‰‱]?)", text)
            if match is None:
                raise BudgetError(f"budget {value!r} is not a number. {how}")
            text, unit = match[1].replace("_", ""), match[2]
            amount = int(text) if re.fullmatch(r"[+-]?\d{1,300}", text) else float(text)
        if not 0 < amount < 1e300:  # not isfinite(), which fails for integers beyond the floats
            raise BudgetError(f"budget {value!r} must be positive and finite. {how}")
        if unit:
            exact = amount * _UNITS[unit] * total
        elif is_whole(amount) or (amount > 1 and float(amount).is_integer()):
            exact = float(amount)
        elif amount < 1:
            exact = float(amount) * total
        else:
            raise BudgetError(f"budget {value!r} is neither whole parameters nor a fraction below 1. {how}")
        n_params = math.floor(exact + 1e-6)
        if n_params < 1:
            raise BudgetError(f"budget {value!r} is {exact:.3g} of {total:,} parameters, less than one. {how}")
        if n_params > total:
            raise BudgetError(f"budget {value!r} is {n_params:,} parameters; the backbone has only {total:,}. {how}")
        return cls(n_params, total)


BudgetLike = int | float | str | Budget  # what Budget.parse reads


def solve_shift(alpha: Tensor, costs: Tensor, budget: float, *, temperature: float = 1.0, check: bool = True) -> Tensor:
    """The shift ζ at which the expected number of trainable parameters equals the budget.

    Solves Σ_i costs_i · σ((alpha_i − ζ)/temperature) = budget. The left side falls in ζ, and the root lies between
    min(alpha) and max(alpha), both moved by temperature · logit(budget/Σ costs), so bracketing cannot fail.

    Args:
        alpha: structural parameters, [..., n_candidates], any float dtype; not differentiated through.
        costs: trainable parameters of each candidate, [n_candidates].
        budget: in parameters, 0 < budget < costs.sum().
        temperature: width β of the sigmoid, in units of alpha, > 0.
        check: validate the inputs first, which waits for the device.

    Returns:
        ζ, float64 [...] (a scalar for one vector alpha), on alpha's device; residual below 1e-6 · budget. Raises
        BudgetError for a budget outside (0, costs.sum()), or if alpha is not finite.
    """
    instance(Tensor, "a tensor [n_candidates]").check(BudgetError, alpha=alpha, costs=costs)
    alpha = alpha.detach().double()
    costs = costs.detach().to(alpha.device, torch.float64)
    total = costs.sum()
    if check:
        if alpha.shape[-1:] != costs.shape:
            raise BudgetError(f"alpha {tuple(alpha.shape)} and costs {tuple(costs.shape)} disagree in candidates")
        POSITIVE.check(BudgetError, temperature=temperature)
        number().check(BudgetError, budget=budget)
        if not bool(torch.isfinite(costs).all()):
            raise BudgetError("costs must be finite, got NaN or infinity among them")
        if not 0 < budget < float(total):
            what = f"budget {budget:,} parameters is not between 0 and the {float(total):,.0f} parameters of all"
            raise BudgetError(f"{what} {len(costs)} candidates together; take a smaller budget or a larger space")
        if not bool(torch.isfinite(alpha).all()):
            raise BudgetError("alpha has values that are not finite; the search diverged (lower alpha_lr or lr)")
    level = torch.logit(budget / total)  # σ(level) is the probability of every candidate at uniform alpha
    low = alpha.amin(-1, keepdim=True) - temperature * level  # here the cost is ≥ budget
    high = alpha.amax(-1, keepdim=True) - temperature * level  # here it is ≤ budget
    steps = torch.linspace(0, 1, _SECTIONS + 1, dtype=torch.float64, device=alpha.device)
    for _ in range(_ROUNDS):
        grid = low + (high - low) * steps  # [..., K + 1]
        spent = (torch.sigmoid((alpha.unsqueeze(-2) - grid.unsqueeze(-1)) / temperature) * costs).sum(-1)
        index = (spent > budget).sum(-1, keepdim=True).clamp(1, _SECTIONS)  # first point at or under the budget
        low, high = grid.gather(-1, index - 1), grid.gather(-1, index)
    return ((low + high) / 2).squeeze(-1)


def shifted_sigmoid(
    alpha: Tensor,
    costs: Tensor,
    budget: float,
    *,
    temperature: float = 1.0,
    gradient: str = "normalized",
    check: bool = True,
) -> Tensor:
    """Probabilities whose expected cost is the budget, differentiable in alpha.

    Args:
        alpha, costs, budget, temperature, check: as for :func:`solve_shift`.
        gradient: how the gradient passes the shift; the value is the same in all three modes.
            ``"normalized"``: ζ is constant, then p · sg(Σp)/Σp, so that Σp cannot grow (the authors' ``shift_detach``);
            ``"detached"``: ζ is constant;
            ``"implicit"``: the exact derivative of the root, so the expected cost is constant to first order.

    Returns:
        probs, [..., n_candidates], in alpha's dtype. Raises BudgetError as :func:`solve_shift`.
    """
    if gradient not in GRADIENT_MODES:
        raise BudgetError(f"gradient {gradient!r} is not one of {', '.join(GRADIENT_MODES)}")
    shift = solve_shift(alpha, costs, budget, temperature=temperature, check=check).unsqueeze(-1).to(alpha.dtype)
    probs = torch.sigmoid((alpha - shift) / temperature)
    if gradient == "normalized":
        sums = probs.sum(-1, keepdim=True)
        return probs * (sums.detach() / sums)
    if gradient == "implicit":
        # dζ/dα_j = c_j p'_j / Σ c p': ζ gets this derivative by adding (spent − sg(spent)) / slopes, whose value is 0
        slopes = (costs * probs * (1 - probs)).detach().sum(-1, keepdim=True) / temperature
        spent = (costs * probs).sum(-1, keepdim=True)
        shift = shift + (spent - spent.detach()) / slopes
        return torch.sigmoid((alpha - shift) / temperature)
    return probs


def sample_gates(probs: Tensor, noise: Tensor, *, temperature: float = 1.0, hard: bool = False) -> Tensor:
    """Relaxed Bernoulli (binary concrete) gates, in the shape of probs.

    Args:
        probs: [..., n_candidates], in (0, 1).
        noise: uniform in (0, 1), broadcastable to probs.
        temperature: τ > 0; a lower one gives gates closer to 0 or 1. P(gate > ½) = p at every τ.
        hard: 0 or 1 in the forward pass, the relaxed gradient in the backward pass (straight-through).
    """
    if temperature <= 0:
        raise ValueError(f"sampling temperature must be > 0, got {temperature}")
    tiny = torch.finfo(probs.dtype).eps
    soft = torch.sigmoid((torch.logit(noise, tiny) + torch.logit(probs, tiny)) / temperature)
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach() if hard else soft


def expected_gates(probs: Tensor, *, temperature: float = 1.0, hard: bool = False) -> Tensor:
    """Mean of the sampled gate for each probability, in the shape of probs. It is *not* the probability.

    At τ = 1 it is o(o − 1 − ln o)/(o − 1)² with o = p/(1 − p): 3.4 × p at p = 0.0136. It is computed by the midpoint
    rule, which works for every τ. A hard sample has mean p exactly.
    """
    if hard:
        return probs.clone()
    noise = (torch.arange(_POINTS, dtype=torch.float64, device=probs.device) + 0.5) / _POINTS
    return sample_gates(probs.double().unsqueeze(-1), noise, temperature=temperature).mean(-1).to(probs.dtype)


def sampling_gap(probs: Tensor, costs: Tensor, *, temperature: float = 1.0, hard: bool = False) -> float:
    """Expected cost of the *sampled* supernet divided by Σ c p, the expected cost that the budget controls.

    1 means that training meets the budget; at τ = 1 and small budgets it is 2 to 4.
    """
    mean = expected_gates(probs, temperature=temperature, hard=hard)
    return float((costs * mean).sum() / (costs * probs).sum())
