"""The bi-level search: weights, then α, in turns.

Per step, on a frozen backbone with every candidate attached:

    1. w ← AdamW(w, clip(∇_w L_train(w, α)))      on a batch of search_train, gates sampled with noise u
    2. α ← AdamW(α, clip(hypergradient(w', α)))    on a batch of search_val, at the new weights

The weights go first: at zero deltas α's gradient is exactly zero; ``warmup`` steps lack the second part.
``order="first"`` costs two forward+backward passes per step, ``"unrolled"`` three, ``"unrolled_exact"`` a double
backward. The backbone is never copied.

Everything random is derived from (seed, step): batches, noise and dropout. A search therefore repeats bit for bit on a
CPU, continues bit for bit from a checkpoint, and leaves the global random state alone.

Source: Hu et al. 2022 (arXiv:2206.07382), section 3.3 and algorithm 1. Departures, each an option: the authors spend
five passes on the unrolled form, take α from the step with the best soft validation score (we take the last), and
train with binary-concrete gates at τ = 1, whose mean exceeds p (see ``sampling``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3pet import bilevel
from s3pet.backbones import backbone_checksum
from s3pet.batches import Stream, derive
from s3pet.checkpoint import load_state, save_state
from s3pet.cost import Cost
from s3pet.errors import BudgetError, SearchError
from s3pet.gates import Budget, sample_gates, sampling_gap, shifted_sigmoid, solve_shift
from s3pet.objective import Batch, Objective, make_objective
from s3pet.progress import View, make_view
from s3pet.result import SearchResult, config_hash, gate_table, refuse_finished, versions
from s3pet.settings import Settings
from s3pet.space import Space
from s3pet.structure import parse_budget, select_mask
from s3pet.supernet import Supernet
from s3pet.tasks import Task

Callback = Callable[["Searcher"], Any]


class Searcher:
    """State of a running search; callbacks get it at every record.

    Attributes:
        step: steps done.
        alpha: structural parameters, float32 [n_candidates].
        weights: all PET tensors as one vector, each divided by its rate (``vector_lr``), then the head's.
        settings, space, budget: what it runs on.
        history: one dict per step. records: (step, alpha) of every record.
        settled: overlap (Jaccard) of the chosen set with the one ten records before, in [0, 1].
        cost: what it has cost so far.
    """

    def __init__(self, model: nn.Module, task: Task, space: Space, budget: Budget, settings: Settings):
        self.settings, self.space, self.budget = settings, space, budget
        options: dict[str, Any] = {
            "max_length": settings.max_length,
            "seed": settings.seed,
            "pooling": settings.pooling,
        }
        options |= {"loss": settings.loss, "precision": settings.precision}
        self.objective: Objective = make_objective(model, task, **options)
        self.supernet = Supernet(model, space, seed=settings.seed)
        halves = task.search_split(settings.seed)
        self.train, self.val = (
            Stream(self.objective.encode(half), settings.batch_size, derive(settings.seed, tag))
            for tag, half in enumerate(halves)
        )
        device = self.objective.device
        self.costs = space.costs.to(device, torch.float32)
        self.alpha = torch.zeros(len(space), device=device)
        self.weights = [self.supernet.flatten(), *self.objective.head_weights]
        self.rates = None if settings.vector_lr == 1 else self.supernet.rates(settings.vector_lr)
        self.alpha_optimizer = bilevel.ALPHA_OPTIMIZERS[settings.alpha_optimizer]([self.alpha], lr=settings.alpha_lr)
        self.weight_optimizer = torch.optim.AdamW(self.weights, lr=settings.lr, weight_decay=0.0)
        self.step, self.cost = 0, Cost()
        self.history: list[dict[str, Any]] = []
        self.records: list[tuple[int, Tensor]] = [(0, self.alpha.clone())]
        self.settled = float("nan")
        self._choices: list[Tensor] = []  # of each record, as far as they were asked for

    @property
    def probs(self) -> Tensor:
        """Probability of each candidate now, float64 [n_candidates]."""
        return self._probs(self.alpha.double())

    def advance(self) -> None:
        """One step: weights, then α."""
        start, s = time.perf_counter(), self.settings
        factor = s.rate(self.step)
        for optimizer, lr in ((self.weight_optimizer, s.lr), (self.alpha_optimizer, s.alpha_lr)):
            optimizer.param_groups[0]["lr"] = lr * factor
        rows, xi = self.train(self.step), s.lr * factor
        train_loss = self._closure(self.objective.collate(rows), phase=0)
        train_value, alpha_gradient, gradients = bilevel.gradients(train_loss, self.alpha, self.weights)
        before = [w.detach().clone() for w in self.weights] if s.order != "first" else []
        self._update(self.weight_optimizer, self.weights, gradients)
        self.cost.passes, self.cost.rows = self.cost.passes + 1, self.cost.rows + len(rows)
        val_value: Tensor | float = float("nan")
        if self.step >= s.warmup:
            val_rows = self.val(self.step)
            val_loss = self._closure(self.objective.collate(val_rows), phase=0 if s.order != "first" else 1)
            if s.order == "first":
                val_value, hyper = bilevel.first_order(val_loss, self.alpha, self.weights)
            elif s.order == "unrolled":
                inner = (before, self.weights, alpha_gradient, xi)
                val_value, hyper = bilevel.unrolled(train_loss, val_loss, self.alpha, *inner)
            else:
                val_value, hyper = bilevel.unrolled_exact(train_loss, val_loss, self.alpha, before, xi)
            if s.alpha_split == "both":
                hyper = (hyper + alpha_gradient) / 2
            self._update(self.alpha_optimizer, [self.alpha], [hyper])
            again = s.order != "first"  # the training batch is passed a second time
            self.cost.passes += 1 + again
            self.cost.rows += len(val_rows) + len(rows) * again
        self.step += 1
        self.cost.seconds += time.perf_counter() - start
        row = {"step": self.step, "loss_train": train_value, "loss_val": val_value, "lr": xi}
        self.history.append({**row, "alpha_lr": s.alpha_lr * factor})

    def record(self) -> bool:
        """Note all probabilities; returns False, taking the step back to the last record, if the search diverged."""
        start = time.perf_counter()
        for row in reversed(self.history):  # the only place where losses leave the device
            if not isinstance(row["loss_train"], Tensor):
                break
            row["loss_train"], row["loss_val"] = float(row["loss_train"]), float(row["loss_val"])
        self.cost.seconds += time.perf_counter() - start  # on a GPU, the waiting for all steps since the last record
        losses = ("loss_train",) if self.step <= self.settings.warmup else ("loss_train", "loss_val")
        fine = all(math.isfinite(self.history[-1][key]) for key in losses)
        if not fine or not bool(torch.isfinite(self.alpha).all()):
            self.alpha = self.records[-1][1].clone()
            return False
        self.records.append((self.step, self.alpha.clone()))
        then = self.records[max(0, len(self.records) - 11)][1]
        masks = [self._mask(self.probs), self._mask(self._probs(then.double()))]
        self.settled = float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
        return True

    def steps_unchanged(self) -> int:
        """For how many steps the sets chosen at half, once and twice the budget are the same.

        Steps of the warm-up, and those above the budget, do not count.
        """
        while len(self._choices) < len(self.records):
            probs, budget = self._probs(self.records[len(self._choices)][1].double()), self.budget.n_params
            chosen = (select_mask(probs, self.space.costs, share * budget) for share in (0.5, 1, 2))
            self._choices.append(torch.cat(list(chosen)))
        since = self.step
        for (step, _), choice in zip(reversed(self.records), reversed(self._choices), strict=True):
            if not torch.equal(choice, self._choices[-1]):
                break
            since = step
        return self.step - max(since, self.settings.shrunk)

    def sampling_gap(self) -> float:
        """Expected cost of the sampled supernet over the budget; with ``start_budget``, at this step."""
        s = self.settings
        share = s.share(self.step)
        if s.sampling == "mean":
            return share
        options: Any = {"temperature": s.sample_temperature, "hard": s.sampling == "hard"}
        return share * sampling_gap(self._probs(self.alpha.double(), share), self.costs.double(), **options)

    def result(self, config: dict[str, Any], metrics: dict[str, Any]) -> SearchResult:
        """What has been found so far."""
        import pandas as pd

        names = [candidate.name for candidate in self.space]
        rows = []
        for step, alpha in self.records:
            alpha = alpha.double()
            values = {"alpha": alpha.cpu().numpy(), "prob": self._probs(alpha).cpu().numpy()}
            rows.append(pd.DataFrame({"candidate": names, "step": step, **values}))
        gates = gate_table(self.space, self.alpha, self.probs.cpu(), self.budget.n_params)
        extra = {
            "steps": self.step,
            "cost": self.cost.to_dict(),
            "head_params": self.objective.head_params,
            "sampling_gap": self.sampling_gap(),
            "settled": self.settled,
            "max_prob": float(self.probs.max()),
            "uniform_prob": self.budget.n_params / self.space.n_params,
        }
        history = pd.DataFrame(self.history)
        return SearchResult(self.space, config, gates, history, pd.concat(rows), {**extra, **metrics})

    def _closure(self, batch: Batch, phase: int) -> bilevel.Loss:
        seed = derive(self.settings.seed, 7, self.step, phase)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(self.space), generator=generator).to(self.alpha.device)
        s = self.settings

        def loss(alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
            gates = self._probs(alpha, s.share(self.step))
            if s.sampling != "mean":
                gates = sample_gates(gates, noise, temperature=s.sample_temperature, hard=s.sampling == "hard")
            torch.manual_seed(seed)  # the same dropout in every pass over this batch
            flat = weights[0] if self.rates is None else weights[0] * self.rates  # for AdamW, a rate of each its own
            with self.supernet.using(gates, flat):
                return self.objective.loss(batch, weights[1:] or None)

        return loss

    def _probs(self, alpha: Tensor, share: float = 1.0) -> Tensor:
        """Probabilities at a multiple of the budget."""
        s = self.settings
        options: Any = {"temperature": s.temperature, "gradient": s.gradient, "check": False}
        return shifted_sigmoid(alpha, self.costs.to(alpha.dtype), share * self.budget.n_params, **options)

    def _mask(self, probs: Tensor) -> Tensor:
        return select_mask(probs, self.space.costs, self.budget.n_params)

    def _update(self, optimizer: torch.optim.Optimizer, tensors: list[Tensor], gradients: list[Tensor]) -> None:
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        nn.utils.clip_grad_norm_(tensors, self.settings.clip)
        optimizer.step()
        optimizer.zero_grad()


def search(
    model: nn.Module,
    task: Task,
    space: Space,
    *,
    budget: int | float | str | Budget,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | View = True,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> SearchResult:
    """Find which PET modules where, under a parameter budget.

    Args:
        model: the frozen backbone; it is left exactly as it was.
        task: its training split is halved into search_train and search_val; nothing else of it is touched.
        space: the candidates.
        budget: trainable PET parameters, any form :meth:`Budget.parse` reads.
        out: run folder; with it, the search checkpoints and continues where it was cut off.
        overwrite: replace a finished run in ``out``.
        progress: show how it goes: in a notebook a live figure with a button that stops and keeps, elsewhere a bar; or
            a :class:`s3pet.progress.View` of your own.
        callbacks: called with the :class:`Searcher` at every record; one that returns True stops the search, which
            keeps what it has found. So does an interrupt from the keyboard.
        **settings: fields of :class:`Settings`: steps, order, seed, batch_size, lr, alpha_lr, …

    Returns:
        The result; ``result.structure()`` is the structure at the budget.

    Raises:
        BudgetError: unreadable, below the cheapest candidate, or (``start_budget`` times) above the space.
        SearchError: bad settings, or the search diverged (what was found before is saved in ``out`` and is the error's
            ``result``).
        RunError: a finished run is in ``out``.
    """
    chosen = Settings(**settings)
    parsed = parse_budget(space, budget)
    solve_shift(torch.zeros(len(space)), space.costs, parsed.n_params)  # raises BudgetError above the space
    if not chosen.start_budget * parsed.n_params < space.n_params:
        raise BudgetError(
            f"start_budget={chosen.start_budget:g} times the budget of {parsed.n_params:,} parameters is not below the "
            f"{space.n_params:,} of all candidates; here it can be up to {space.n_params / parsed.n_params:.4g}"
        )
    folder, view = Path(out) if out is not None else None, make_view(progress)
    if folder is not None:
        refuse_finished(folder, overwrite)
    config = {
        "model": space.model_id,
        "model_hash": backbone_checksum(model),
        "backbone_params": space.backbone_params,
        "task": task.name,
        "task_hash": task.fingerprint,
        "space": space.name,
        "space_hash": config_hash({"candidates": [candidate.name for candidate in space]}),
        "budget": parsed.n_params,
        **asdict(chosen),
        "versions": versions(),
    }
    was_training = model.training
    cuda = [next(model.parameters()).device] if next(model.parameters()).is_cuda else []
    with torch.random.fork_rng(devices=cuda):
        searcher = Searcher(model, task, space, parsed, chosen)
        if folder is not None and not overwrite:
            load_state(searcher, folder / "checkpoint", config_hash(config))
        model.train()
        try:
            with searcher.supernet, searcher.cost.watch_memory(searcher.objective.device):
                stopped = view.conduct(lambda: _run(searcher, folder, config_hash(config), view, callbacks))
        finally:
            model.train(was_training)
    result = searcher.result(config, {"stopped": stopped})
    if folder is not None:
        result.save(folder, overwrite=overwrite)
    view.finish(result)
    if stopped == "diverged":
        error = SearchError(
            f"the search diverged after step {searcher.records[-1][0]}: the loss is not finite. Lower lr "
            f"({chosen.lr}) or alpha_lr ({chosen.alpha_lr}). The last good state is "
            + (f"saved in {folder}" if folder else "error.result")
        )
        error.result = result  # type: ignore[attr-defined]
        raise error
    return result


def _run(searcher: Searcher, folder: Path | None, config: str, view: View, callbacks: Sequence[Callback]) -> str | None:
    """Advance to the last step; returns why it ended early, or None."""
    s = searcher.settings
    try:
        view.start(searcher)
        while searcher.step < s.steps:
            searcher.advance()
            stop = view.advance(searcher)
            if not stop and searcher.step % s.every and searcher.step < s.steps:
                continue
            if not searcher.record():
                return "diverged"
            view.record(searcher)
            stops = [callback(searcher) is True for callback in callbacks]  # every one is called
            if stop or any(stops):
                return "stopped"
            if s.stop == "settled" and searcher.steps_unchanged() >= s.window:
                return "settled"
            if folder is not None and len(searcher.records) % 10 == 1:
                save_state(searcher, folder / "checkpoint", config)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        view.end()
    return None
