"""AdaLoRA with our recipe: rank that is allocated while training, as a baseline of searched structures.

PEFT's AdaLoRA puts P Λ Q on every linear site: Q is [rank, d_in], Λ diagonal, P [d_out, rank]. While it trains it sets
the least important triplets (a singular value with its two vectors, d_in + d_out + 1 parameters) to zero until the
budget is met. The regulariser γ · mean over all P, Q of ‖Pᵀ P − I‖_F and ‖Q Qᵀ − I‖_F is added to the loss. All else
is as in :func:`s3pet.retrain`.

PEFT's target is a number of triplets, whatever they cost. Here its schedule goes down to about as many as the budget
affords, and the last allocation selects by its importances what fits into the budget in parameters. Until then it
exceeds the budget, so no weights from before are scored or kept.

Source: Zhang et al. 2023 (arXiv:2303.10512), equations 4, 7–10 and 13; PEFT's implementation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from s3pet.backbones import borrows, check_model, preserved
from s3pet.backbones.loans import refuse_attached
from s3pet.errors import BudgetError, SearchError
from s3pet.files.kinds import FLAG, POSITIVE, number, optional, whole
from s3pet.files.reading import path_of
from s3pet.gates import BudgetLike
from s3pet.modules import LORA_ALPHA
from s3pet.objectives.processes import refuse_processes
from s3pet.objectives.texts import Objective, ObjectiveSettings, make_objective
from s3pet.records import settings_of
from s3pet.space import Candidate, Space, make_space
from s3pet.structure import parse_budget, select_mask
from s3pet.tasks import Task
from s3pet.tuning import Learner, Recipe, TunedModel, tune

_NAME = "default"  # PEFT's name of an adapter
MIN_STEPS = 10
WARMUP, FINAL = 0.1, 0.4  # shares of the steps before the first cut, and after the last one: only these are scored
SCALE = 4 * LORA_ALPHA  # of the deltas, by default


@borrows("a retraining", seeds=True)
def retrain_adalora(
    model: nn.Module,
    task: Task,
    budget: BudgetLike,
    *,
    init_rank: int = 2,
    regularizer: float = 0.5,
    alpha: float | None = None,
    objective: ObjectiveSettings | Mapping[str, Any] | None = None,
    progress: bool = False,
    checkpoints: str | Path | None = None,
    **recipe: Any,
) -> TunedModel:
    """Tune with AdaLoRA on all linear sites, within a budget after the last allocation.

    Args:
        model, task, objective, progress, checkpoints: as for :func:`s3pet.retrain`.
        budget: any form :meth:`s3pet.gates.Budget.parse` reads; parameters of the triplets that stay.
        init_rank: rank of every site at the start, ≥ 1; a budget above all triplets together is not used up.
        regularizer: γ above, PEFT's ``orth_reg_weight`` (0.5 there).
        alpha: PEFT's ``lora_alpha``; deltas are scaled by alpha / init_rank. None: 64 · init_rank, four times the scale
            of our LoRA, because singular values start at 0 and vectors at 0.02. Choose it and ``lr`` on validation.
        **recipe: fields of :class:`s3pet.tuning.Recipe`: steps, batch_size, lr (3e-3), seed, …

    Returns:
        A tuned model on a copy of the backbone. ``metrics`` has the keys of :func:`s3pet.retrain`, with ``n_params`` of
        what is left, and ``ranks`` (site → rank left, where any), ``initial_params`` (of all triplets) and
        ``trained_from`` (steps done when the budget was met).

    Raises:
        ImportError: PEFT is not installed. BudgetError: unreadable budget, or one below the cheapest triplet.
        SearchError: a supernet is attached, no rank, or too few steps.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("AdaLoRA needs PEFT; install it: pip install 's3pet[peft]'") from error
    refuse_processes("AdaLoRA")
    chosen = settings_of(Recipe, recipe, "retrain_adalora")
    check_model(model)
    number(0).check(SearchError, regularizer=regularizer)
    optional(POSITIVE).check(SearchError, alpha=alpha)
    FLAG.check(SearchError, progress=progress)
    whole(-(2**62)).check(SearchError, init_rank=init_rank)
    first, cut_at = int(WARMUP * chosen.steps), chosen.steps - int(FINAL * chosen.steps)
    if init_rank < 1 or chosen.steps < MIN_STEPS:
        raise SearchError(f"init_rank={init_rank}, steps={chosen.steps}: expected at least 1, and {MIN_STEPS} steps")
    space = make_space(model, "lora")
    widths = {c.site: c.d_in + c.d_out + 1 for c in space}
    n_budget, cheapest = parse_budget(space, budget).n_params, min(widths.values())
    if n_budget < cheapest:
        raise BudgetError(f"budget {budget!r} is {n_budget:,} parameters; the cheapest triplet costs {cheapest:,}")
    refuse_attached(model)
    target = copy.deepcopy(model)
    with preserved():  # only the random state: PEFT sets the flags of the copy
        torch.manual_seed(chosen.seed)
        config = peft.AdaLoraConfig(
            init_r=init_rank,
            target_r=0,
            lora_alpha=SCALE * init_rank if alpha is None else alpha,
            target_modules=[c.path for c in space],
            tinit=first,
            tfinal=chosen.steps - cut_at,
            total_step=chosen.steps,
            deltaT=max(1, chosen.steps // 100),
            orth_reg_weight=regularizer,
        )
        tuner = peft.AdaLoraModel(target, {_NAME: config}, _NAME)
    allocation = _Allocation(tuner, space, n_budget, cut_at)
    learner = _AdaLearner(make_objective(target, task, objective, seed=chosen.seed), target, regularizer)
    learner.__dict__["allocation"] = allocation
    options: Any = {"progress": progress, "callbacks": [allocation], "score_from": cut_at + 1}
    options["checkpoints"] = None if checkpoints is None else path_of(checkpoints, name="checkpoints")
    tuned = tune(learner, model, chosen, "adalora", **options)
    ranks = allocation.ranks()
    n_params, initial = sum(rank * widths[site] for site, rank in ranks.items()), init_rank * sum(widths.values())
    tuned.metrics |= {"n_params": n_params, "initial_params": initial, "trained_from": cut_at + 1, "ranks": ranks}
    tuned.config |= {"init_rank": init_rank, "regularizer": regularizer, "alpha": config.lora_alpha, "budget": n_budget}
    return tuned


class _AdaLearner(Learner):
    """PEFT's modules on a copy of the backbone, and the head; the regulariser is added to the loss."""

    allocation: _Allocation

    def __init__(self, objective: Objective, backbone: nn.Module, regularizer: float):
        super().__init__(objective, None, backbone)
        self.regularizer = regularizer

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        loss = super().forward(**batch)["loss"]
        return {"loss": loss + self.regularizer * orthogonality(self.target)}

    def get_extra_state(self) -> Tensor:
        """For checkpoints: the importances that PEFT averages over the steps."""
        return self.allocation.averages()

    def set_extra_state(self, state: Tensor) -> None:
        """Take them from a checkpoint."""
        self.allocation.set_averages(state)


def orthogonality(model: nn.Module) -> Tensor:
    """The mean of ‖Pᵀ P − I‖_F and ‖Q Qᵀ − I‖_F over PEFT's AdaLoRA modules of a model, a scalar.

    Q is ``lora_A`` [rank, d_in], P is ``lora_B`` [d_out, rank]. The norm is not squared, as in both implementations.
    """
    norms = []
    for name, tensor in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = tensor @ tensor.T if "lora_A" in name else tensor.T @ tensor
            norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    return torch.stack(norms).mean()


class _Allocation(TrainerCallback):
    """Calls PEFT's allocator after every optimiser step, while gradients are still there; makes the last cut."""

    def __init__(self, tuner: Any, space: Space, budget: int, cut_at: int):
        self.tuner, self.space, self.budget, self.cut_at = tuner, space, budget, cut_at
        self.costs = [c.d_in + c.d_out + 1 for c in space]
        self.allocator: Any = tuner.rankallocator
        # the schedule's end, in triplets of mean cost; PEFT's threshold needs at least one triplet below it
        n_triplets = int(budget * len(self.costs) / sum(self.costs))
        self.allocator.target_bgt = max(0, min(n_triplets, self.allocator.init_bgt - 1))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where training continues after the last cut, the triplets that are left are those that stay."""
        if state.global_step > self.cut_at:
            pattern = {f"{c.path}.lora_E.{_NAME}": self._left(c).tolist() for c in self.space}
            self.tuner.peft_config[_NAME].rank_pattern = pattern

    def averages(self) -> Tensor:
        """PEFT's averages of importances and of their uncertainties, as one vector; zeros before the first step."""
        parts = [
            known.get(name, torch.zeros_like(tensor))
            for known in (self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc)
            for name, tensor in self._tensors().items()
        ]
        return torch.cat([part.detach().flatten() for part in parts])

    def set_averages(self, vector: Tensor) -> None:
        """The opposite of :meth:`averages`."""
        tensors = self._tensors()
        values = iter(vector.split([tensor.numel() for tensor in tensors.values()] * 2))
        for known in (self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc):
            known.update({name: next(values).view_as(tensor).to(tensor) for name, tensor in tensors.items()})
        self.allocator.ipt = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.tuner.model.named_parameters() if "lora_" in name}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Allocate; ``state.global_step`` counts the steps before this one."""
        if state.global_step == self.cut_at:
            self.tuner.peft_config[_NAME].rank_pattern = self._pattern()
            self.allocator.mask_using_rank_pattern(self.tuner.model, self.tuner.peft_config[_NAME].rank_pattern)
        else:
            self.tuner.update_and_allocate(state.global_step)

    def ranks(self) -> dict[str, int]:
        """Number of singular values that are not 0, by site, where there are any."""
        return {c.site: count for c in self.space if (count := int(self._left(c).sum()))}

    def _left(self, candidate: Candidate) -> Tensor:
        """Which singular values of a site are not 0, bool [rank]."""
        return (self.tuner.model.get_submodule(candidate.path).lora_E[_NAME] != 0).view(-1)

    def _pattern(self) -> dict[str, list[bool]]:
        """Which triplets stay: by PEFT's importances, what fits into the budget."""
        keys = [f"{c.path}.{{}}.{_NAME}" for c in self.space]
        scores = [self._importance(key) for key in keys]
        costs = [torch.full((len(s),), cost, dtype=torch.float64) for s, cost in zip(scores, self.costs, strict=True)]
        mask = select_mask(torch.cat(scores), torch.cat(costs), self.budget)
        parts = mask.split([len(score) for score in scores])
        return {key.format("lora_E"): part.tolist() for key, part in zip(keys, parts, strict=True)}

    def _importance(self, key: str) -> Tensor:
        """Of a site's triplets, float64 [rank]: sensitivity × uncertainty of λ, and their means over both vectors."""
        e, a, b = (self.allocator._element_score(key.format(f"lora_{part}")).double().cpu() for part in "EAB")
        return e.view(-1) + a.mean(1) + b.mean(0)
