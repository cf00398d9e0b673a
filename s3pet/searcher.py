"""The bi-level search: weights and structural parameters α in turns.

Per step, on a frozen backbone with every candidate attached:

    1. w ← AdamW(w, clip(∇_w L_train(w, α)))       on a batch of search_train, with gates sampled from noise u
    2. α ← Optimizer(α, clip(hypergradient(w', α)))  on a batch of search_val, at the new weights w'

The weights go first, because at zero deltas the gradient of α is exactly zero; the first ``warmup`` steps lack part 2.
Both learning rates decay linearly to 0. ``order="first"`` costs two forward and backward passes per step,
``"unrolled"`` three, ``"unrolled_exact"`` a double backward. The backbone is never copied.

Everything random is derived from (seed, step): batches, noise and dropout. So a search repeats bit for bit on a CPU,
continues bit for bit from a checkpoint, and leaves the global random state alone.

Source: Hu et al. 2022 (arXiv:2206.07382), section 3.3 and algorithm 1. Departures: the authors take α from the step
with the best soft validation score (we take the last one) and spend five passes on the unrolled form. Our default has
no dropout in the frozen backbone; ``settings="paper"`` has it.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from s3pet import bilevel
from s3pet.backbones import backbone_checksum, borrows, check_model, preserved
from s3pet.errors import DivergedError, SearchError
from s3pet.files.kinds import CALLABLE, FLAG, many, one_of
from s3pet.files.states import load_state, save_state
from s3pet.files.writing import carried, destination
from s3pet.gates import GRADIENT_MODES, Budget, BudgetLike, sample_gates, sampling_gap, shifted_sigmoid, solve_shift
from s3pet.objectives import OwnObjective
from s3pet.objectives.own import objective_of
from s3pet.objectives.processes import Processes
from s3pet.objectives.streams import Stream, derive
from s3pet.objectives.texts import ObjectiveSettings
from s3pet.progress import View, make_view
from s3pet.records import AT_MOST, Cost, check_fields, settings_of, versions
from s3pet.result import CONFIG, FINISHED, RESULTS_VERSION, SearchResult, gate_table, space_hash
from s3pet.space import Space
from s3pet.structure import parse_budget, select_by_gates, select_mask
from s3pet.supernet import Supernet
from s3pet.tasks import Task
from s3pet.tasks.plain import RowTask

Callback = Callable[["Searcher"], Any]

CLIP = 2.0  # largest norm of the gradient of the weights, and of α (the authors')
HISTORY = ["step", "loss_train", "loss_val", "lr", "alpha_lr"]
PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": {"dropout": True}}


@dataclass(frozen=True)
class Settings:
    """How a search runs; every field is a keyword of :func:`search`.

    Attributes:
        steps: number of steps; each updates the weights and, after the warm-up, α.
        order: hypergradient, ``"first"``, ``"unrolled"`` or ``"unrolled_exact"``, see :mod:`s3pet.bilevel`.
        seed: of batches, noise, dropout and fresh tensors.
        batch_size: examples per batch, in both halves of the training split.
        lr, alpha_lr: learning rates of PET weights and head, and of α (AdamW without weight decay, as the authors').
        warmup: number of initial steps that update only the weights.
        dropout: whether the backbone drops activations, as the authors' does; see :class:`s3pet.trainer.Recipe`.
        gradient: how the gradient of α passes the shift, see :func:`s3pet.gates.shifted_sigmoid`.
    """

    steps: int = 300
    order: str = "first"
    seed: int = 0
    batch_size: int = 32
    lr: float = 3e-3
    alpha_lr: float = 0.1
    warmup: int = 0
    dropout: bool = False
    gradient: str = "normalized"

    def __post_init__(self) -> None:
        choices = {"order": bilevel.ORDERS, "gradient": GRADIENT_MODES}
        check_fields(self, ("steps", "batch_size", "lr", "alpha_lr"), {"seed": 0, "warmup": 0}, choices)
        if self.warmup >= self.steps:
            raise SearchError(f"warmup must be below steps ({self.steps}), got {self.warmup}")


class Searcher:
    """State of a running search; callbacks get it at every record.

    Attributes:
        step, cost: steps done, and what they have cost.
        alpha: structural parameters, float32 [n_candidates]. settings, space, budget: what it runs on.
        weights: all PET tensors as one vector, then those of the head. processes: those that share the work.
        history: one dict per step. records: (step, alpha) of every record.
        settled: overlap (Jaccard index) of the chosen set with that of ten records before, in [0, 1].
    """

    def __init__(
        self, model: nn.Module, task: Any, space: Space, budget: Budget, settings: Settings, objective: Any = None
    ):
        self.settings, self.space, self.budget = settings, space, budget
        self.objective = objective_of(model, task, objective, seed=settings.seed)
        self.supernet = Supernet(model, space, seed=settings.seed, nested=True)
        self.train, self.val = (
            Stream(self.objective.encode(half), settings.batch_size, derive(settings.seed, tag))
            for tag, half in enumerate(task.search_split(settings.seed))
        )
        device = self.objective.device
        self.processes, self.step, self.cost, self.settled = Processes(device), 0, Cost(), math.nan
        self.costs = space.costs.to(device, torch.float32)
        self.alpha = torch.zeros(len(space), device=device)
        self.weights = [self.supernet.flatten(), *self.objective.head_weights]
        self.alpha_optimizer = torch.optim.AdamW([self.alpha], lr=settings.alpha_lr, weight_decay=0.0)
        self.weight_optimizer = torch.optim.AdamW(self.weights, lr=settings.lr, weight_decay=0.0)
        self._optimizers = {"alpha_moment": self.alpha_optimizer, "weight_moment": self.weight_optimizer}
        self.history: list[dict[str, Any]] = []
        self.records: list[tuple[int, Tensor]] = [(0, self.alpha.clone())]

    @property
    def probs(self) -> Tensor:
        """Probability of each candidate now, float64 [n_candidates]."""
        return self._probs(self.alpha.double())

    def advance(self) -> None:
        """One step: weights, then α."""
        start, s = time.perf_counter(), self.settings
        factor, again = 1 - self.step / s.steps, s.order != "first"  # again: the training batch is passed a second time
        for optimizer, lr in ((self.weight_optimizer, s.lr), (self.alpha_optimizer, s.alpha_lr)):
            optimizer.param_groups[0]["lr"] = lr * factor
        rows, xi = self.train(self.step), s.lr * factor
        train_loss = self._loss_on(rows, phase=0)
        train_value, alpha_gradient, gradients = bilevel.gradients(train_loss, self.alpha, self.weights)
        before = [weight.detach().clone() for weight in self.weights] if again else []
        _update(self.weight_optimizer, self.weights, gradients)
        self.cost.passes, self.cost.rows = self.cost.passes + 1, self.cost.rows + len(rows)
        val_value: Tensor | float = math.nan
        if self.step >= s.warmup:
            val_rows, alpha, now = self.val(self.step), self.alpha, self.weights
            val_loss = self._loss_on(val_rows, phase=0 if again else 1)
            if not again:
                val_value, hypergradient = bilevel.first_order(val_loss, alpha, now)
            elif s.order == "unrolled":
                both = train_loss, val_loss
                val_value, hypergradient = bilevel.unrolled(*both, alpha, before, now, alpha_gradient, xi)
            else:
                val_value, hypergradient = bilevel.unrolled_exact(train_loss, val_loss, alpha, before, xi)
            _update(self.alpha_optimizer, [self.alpha], [hypergradient])
            self.cost.passes += 1 + again
            self.cost.rows += len(val_rows) + len(rows) * again
        self.supernet.use()
        self.step += 1
        values = (self.step, train_value, val_value, xi, s.alpha_lr * factor)
        self.history.append(dict(zip(HISTORY, values, strict=True)))
        self.cost.note_memory(self.objective.device)
        self.cost.seconds += time.perf_counter() - start

    def record(self) -> bool:
        """Note all probabilities; if the search diverged, take α back to the last record and return False."""
        start = time.perf_counter()
        self.read_losses(self.processes.total)
        self.cost.seconds += time.perf_counter() - start  # on a GPU, waiting for all steps since the last record
        new, last = self.history[self.records[-1][0] :], self.settings.warmup
        losses = [row[name] for row in new for name in HISTORY[1:3] if name == "loss_train" or row["step"] > last]
        if not all(map(math.isfinite, losses)) or not bool(torch.isfinite(self.alpha).all()):
            self.alpha = self.records[-1][1].clone()
            return False
        self.records.append((self.step, self.alpha.clone()))
        before = self._probs(self.records[max(0, len(self.records) - 11)][1].double())
        now, then = (select_by_gates(self.space, probs, self.budget.n_params) for probs in (self.probs, before))
        self.settled = float((now & then).sum() / (now | then).sum())
        return True

    def read_losses(self, total: Callable[[Tensor], Tensor] = lambda own: own) -> None:
        """Turn the losses of the steps since the last record into numbers; only here do they leave the device.

        ``total`` adds up those of all processes; without it, they are the own share's, as in a failure of this one.
        """
        new = [row for row in self.history[self.records[-1][0] :] if isinstance(row["loss_train"], Tensor)]
        how: Any = {"dtype": torch.float64, "device": self.alpha.device}
        losses = [torch.as_tensor(row[name], **how) for row in new for name in HISTORY[1:3]]
        values = total(torch.stack(losses)).view(-1, 2).tolist() if new else []
        for row, (train, val) in zip(new, values, strict=True):
            row.update(loss_train=train, loss_val=val)

    def result(self, config: dict[str, Any], metrics: dict[str, Any]) -> SearchResult:
        """The result as of now, at any point of a step."""
        self.read_losses()
        if not bool(torch.isfinite(self.alpha).all()):
            self.alpha = self.records[-1][1].clone()
        table = pd.DataFrame({"candidate": self.space.names})
        doubles = [(step, alpha.double().cpu(), self._probs(alpha.double()).cpu()) for step, alpha in self.records]
        trajectory = [table.assign(step=step, alpha=alpha.numpy(), prob=prob.numpy()) for step, alpha, prob in doubles]
        gates = gate_table(self.space, self.alpha, self.probs.cpu(), self.budget.n_params)
        metrics = {
            **{"steps": self.step, "cost": self.cost.to_dict(), "head_params": self.objective.head_params},
            "sampling_gap": sampling_gap(self.probs, self.costs.double()),
            **{"settled": self.settled, "max_prob": float(self.probs.max())},
            "uniform_prob": self.budget.n_params / self.space.n_params,
            **({"processes": self.processes.count} if self.processes.count > 1 else {}) | metrics,
        }
        history = pd.DataFrame(self.history, columns=HISTORY)
        return SearchResult(self.space, config, gates, history, pd.concat(trajectory), metrics)

    def save(self, folder: Path, config: dict[str, Any]) -> None:
        """Write the state, from which :meth:`load` continues. A failure is a warning."""
        self.read_losses()
        tensors = {"alpha": self.alpha, "records": torch.stack([alpha for _, alpha in self.records])}
        tensors["history"] = torch.tensor([[*row.values()] for row in self.history], dtype=torch.float64)
        tensors |= {f"weight.{index}": weight for index, weight in enumerate(self.weights)}
        for name, optimizer in self._optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
        steps = [step for step, _ in self.records]
        save_state(folder, config, tensors, {"step": self.step, "cost": self.cost.to_dict(), "record_steps": steps})

    @torch.no_grad()
    def load(self, folder: Path, config: dict[str, Any], overwrite: bool = False) -> None:
        """Continue from a saved state, if any; RunError if it is of other settings or damaged, unless ``overwrite``."""
        own = {"alpha": self.alpha} | {f"weight.{index}": weight for index, weight in enumerate(self.weights)}
        if (state := load_state(folder, config, own, overwrite)) is None:
            return
        tensors, rest = state
        self.alpha.copy_(tensors["alpha"])
        for index, weight in enumerate(self.weights):
            weight.copy_(tensors[f"weight.{index}"])
        for name, optimizer in self._optimizers.items():
            saved = optimizer.state_dict()
            for key in (key for key in tensors if key.startswith(f"{name}.")):
                saved["state"].setdefault(int(key.split(".")[1]), {})[key.split(".")[2]] = tensors[key]
            optimizer.load_state_dict(saved)
        self.step, self.cost = rest["step"], Cost(**rest["cost"])
        self.history = [dict(zip(HISTORY, [int(row[0]), *row[1:]], strict=True)) for row in tensors["history"].tolist()]
        self.records = list(zip(rest["record_steps"], tensors["records"].to(self.alpha.device), strict=True))

    def _loss_on(self, rows: Sequence[Any], phase: int) -> bilevel.Loss:
        """This process's share of the loss of a batch as a function of α and the weights, whose gradients are whole.

        It has the same noise and dropout in every call.
        """
        share = self.processes.share(rows, self.objective.terms)
        batch, seed = self.objective.collate(share.rows), derive(self.settings.seed, 7, self.step, phase)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(len(self.space), generator=generator).to(self.alpha.device)

        def loss(alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
            alpha, *weights = self.processes.added([alpha, *weights])
            gates = sample_gates(self._probs(alpha), noise)
            torch.manual_seed(self.processes.seed(seed))
            self.supernet.use(gates, weights[0])  # still in effect in the backward pass, see Supernet
            loss = self.objective.loss(batch, weights[1:] or None)
            return loss if share.weight == 1 else loss * share.weight

        return loss

    def _probs(self, alpha: Tensor) -> Tensor:
        costs = self.costs.to(alpha.dtype)
        return shifted_sigmoid(alpha, costs, self.budget.n_params, gradient=self.settings.gradient, check=False)


@borrows("a search")
def search(
    model: nn.Module,
    task: Task | RowTask,
    space: Space,
    *,
    budget: BudgetLike,
    settings: str = "default",
    objective: ObjectiveSettings | Mapping[str, Any] | OwnObjective | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | View = True,
    callbacks: Sequence[Callback] = (),
    **changes: Any,
) -> SearchResult:
    """Find which PET modules where, under a parameter budget.

    Args:
        model, space: the frozen backbone, left exactly as it was however the search ends, and the candidates on it.
        task: its training split is halved into search_train and search_val; no other split is used.
        budget: trainable PET parameters, any form that :meth:`s3pet.Budget.parse` reads. Of several sizes at a site a
            structure has one, but each has its full cost in the expected cost, see :mod:`s3pet.gates`.
        settings: ``"default"``, or ``"paper"`` for dropout in the frozen backbone, as the authors have it.
        objective: how the backbone learns the task: :class:`s3pet.objectives.ObjectiveSettings` or a mapping, or an
            object of your own, see :mod:`s3pet.objectives`.
        out: run folder; with it, the search writes checkpoints and continues where it was cut off or interrupted.
        overwrite: replace a run in ``out``, of unfinished ones those with other settings, once the new one is finished.
        progress: show a live figure with a stop button in a notebook and a bar elsewhere; or a :class:`View`.
        callbacks: called with the :class:`Searcher` at every record; one that returns True stops the search.
        **changes: fields of :class:`Settings` that differ: steps, order, seed, batch_size, lr, alpha_lr, …

    Returns:
        The result; ``result.structure()`` is the structure at the budget. A search that was stopped or interrupted
        returns what it had, as ``result.metrics["stopped"]`` says. An interrupted one is continued by the same call.

    Raises:
        BudgetError: the budget cannot be read, is below the cheapest candidate, or above the space. SearchError: bad
            settings, or a model that cannot be searched. DivergedError: a loss is NaN or infinite; ``error.result`` is
            the result at the last good record, also saved in ``out``.
        RunError: ``out`` holds a finished run, or an unfinished one with other settings; another process works there;
            or it cannot be written to (found before the work; after it, ``error.result`` is the result).
    """
    chosen = make_settings(settings, **changes)
    check_model(model)
    many(CALLABLE).check(SearchError, callbacks=callbacks)
    FLAG.check(SearchError, overwrite=overwrite)
    parsed = parse_budget(space, budget)
    largest = space.costs[select_mask(space.costs, space.costs, math.inf, space.groups)]  # what a structure can spend
    solve_shift(torch.zeros_like(largest), largest, parsed.n_params)  # raises BudgetError above the space
    if chosen.order == "unrolled_exact" and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise SearchError("order='unrolled_exact' differentiates twice, which fails with gradient checkpointing")
    processes = Processes(next(model.parameters()).device)
    view = make_view(progress if processes.is_first else False)
    with ExitStack() as kept, preserved(model):
        folder = processes.first(lambda: kept.enter_context(destination(out, CONFIG, FINISHED, overwrite)))
        searcher = Searcher(model, task, space, parsed, chosen, objective)
        config = {
            **{"model": space.model_id, "model_hash": backbone_checksum(model, searcher.objective.heads)},
            **{"backbone_params": space.backbone_params, "task": task.name, "task_hash": task.fingerprint},
            **{"space": space.name, "space_hash": space_hash(space)},
            **({"sizes": "nested"} if searcher.supernet.is_nested else {}),  # earlier versions did not nest them
            **{"budget": parsed.n_params, **asdict(chosen), "objective": searcher.objective.declared()},
            **{"results_version": RESULTS_VERSION, "versions": versions()},
        }
        processes.check_same(json.dumps(config, sort_keys=True, default=str), "backbone, task, space or settings")
        if folder is not None:
            searcher.load(Path(folder) / "checkpoint", config, overwrite)
        with searcher.supernet, searcher.cost.watch_memory(searcher.objective.device):
            searcher.objective.prepare(chosen.dropout)
            with carried("result", lambda: searcher.result(config, {"stopped": "failed"})):
                stopped = view.conduct(lambda: _run(searcher, folder, config, view, callbacks))
        result = searcher.result(config, {"stopped": stopped})
        if folder is not None and stopped != "interrupted":
            with carried("result", lambda: result):
                processes.first(lambda: result.save(folder, overwrite=overwrite))
            shutil.rmtree(Path(folder) / "checkpoint", ignore_errors=True)  # weights that nobody needs
    view.finish(result)
    if stopped == "diverged":
        what = f"the search diverged after step {searcher.records[-1][0]}: the loss is not finite"
        how = f"Lower lr ({chosen.lr}) or alpha_lr ({chosen.alpha_lr}). The last good state is error.result"
        raise DivergedError(f"{what}. {how}" + (f", saved in {folder}" if folder else ""), result=result)
    return result


def make_settings(preset: str = "default", **changes: Any) -> Settings:
    """A preset with some fields changed; raises SearchError for unknown presets and fields."""
    if not one_of(PRESETS).holds(preset):
        raise SearchError(f"settings={preset!r} is not one of {', '.join(PRESETS)}")
    return settings_of(Settings, {**PRESETS[preset], **changes}, "search")


def _run(
    searcher: Searcher, folder: Path | None, config: dict[str, Any], view: View, callbacks: Sequence[Callback]
) -> str | None:
    """Advance to the last step; returns why the search ended early, or None."""
    steps, saved, processes = searcher.settings.steps, time.perf_counter(), searcher.processes
    alone = processes.count == 1  # of several, all must do the same, so nothing depends on time or on one view
    every = max(1, steps // 50)  # about 50 records in all
    try:
        view.start(searcher)
        while searcher.step < steps:
            searcher.advance()
            stop = view.advance(searcher)
            if due := (stop and alone) or searcher.step % every == 0 or searcher.step == steps:
                if not searcher.record():
                    return "diverged"
                view.record(searcher)
                stops = processes.first(lambda: [callback(searcher) is True for callback in callbacks])  # calls all
                if processes.first(lambda: stop) or any(stops):  # noqa: B023 - called at once
                    return "stopped"
            due |= alone and time.perf_counter() - saved > AT_MOST
            if folder is not None and searcher.step < steps and due and processes.is_first:
                searcher.save(Path(folder) / "checkpoint", config)
                saved = time.perf_counter()
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        view.end()
    return None


def _update(optimizer: torch.optim.Optimizer, tensors: list[Tensor], gradients: list[Tensor]) -> None:
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient
    nn.utils.clip_grad_norm_(tensors, CLIP)
    optimizer.step()
    optimizer.zero_grad()
