"""The training of a structure by Hugging Face's ``Trainer``.

The Trainer sees a module whose only parameters are the trained tensors (:class:`Learner`), so its checkpoints hold
nothing else (kilobytes). In a lasting folder they also hold the optimiser and the random states, every 2 % of the
steps and at least every minute, and training continues exactly where it was cut off, because batch t depends only on
the seed and t. A checkpoint counts once it has its manifest.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from s3pet.backbones import quiet_transformers
from s3pet.errors import DivergedError, SearchError, check_finite
from s3pet.files.kinds import RECORD
from s3pet.files.reading import read_json, read_tensors, reading
from s3pet.files.states import check_same, decisive
from s3pet.files.writing import saved_files, seal, write_json
from s3pet.objectives.processes import Processes
from s3pet.objectives.streams import Row, Stream
from s3pet.objectives.texts import Objective
from s3pet.records import AT_MOST, LATER, Cost, check_fields
from s3pet.supernet import Supernet

ABOUT = "s3pet.json"  # of a checkpoint
PAUSE = 20.0  # after a checkpoint, wait so many times as long as it took, at most a minute


@dataclass(frozen=True)
class Recipe:
    """How a structure is trained; every field is a keyword of :func:`retrain`.

    Attributes:
        steps, batch_size: optimiser steps, and examples per step; at most four times as many are scored at once.
        lr: learning rate of AdamW; None takes 3e-3 for PET modules and heads, 5e-4 for full fine-tuning.
        vector_lr: learning rate of BitFit and LNFit as a multiple of ``lr``; at 10 a step of AdamW changes the output
            of a bias about as much as that of a LoRA.
        lr_warmup: steps over which the learning rate rises from 0.
        evaluations: how often the validation split is scored, evenly spaced.
        seed: of fresh tensors, order of batches and dropout.
        dropout: whether the backbone and the head drop activations while training, at the rates of the model's
            config; None: in full fine-tuning only. A few thousand parameters do not overfit, and in a frozen backbone
            dropout is noise that they cannot remove.
        patience: stop after this many evaluations in a row without a better validation score; None: run all ``steps``.
            The learning rate falls as for all steps.
    """

    steps: int = 300
    batch_size: int = 32
    lr: float | None = None
    vector_lr: float = 1.0
    lr_warmup: int = 0
    evaluations: int = 10
    seed: int = 0
    dropout: bool | None = None
    patience: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        check_fields(
            self, ("steps", "batch_size", "lr", "vector_lr", "evaluations", "patience"), {"lr_warmup": 0, "seed": 0}
        )
        if self.lr_warmup > self.steps:
            raise SearchError(f"lr_warmup must be at most steps ({self.steps}), got {self.lr_warmup}")


class Learner(nn.Module):
    """The trained tensors as one module for the Trainer; a call gives the loss of a batch.

    Args:
        objective, supernet: compute the loss; the head of the one and the PET tensors of the other are trained.
        backbone: a copy of the user's backbone; its parameters that require gradients are trained.

    Attributes:
        names, weights: the trained tensors. target: the supernet, or else the copy. cost: passes and rows so far.
        dropout: whether training uses it.
    """

    objective: Objective
    target: nn.Module

    def __init__(self, objective: Objective, supernet: Supernet | None = None, backbone: nn.Module | None = None):
        super().__init__()
        # Not submodules, so that the trained tensors are all that parameters() and state_dict() hold.
        self.__dict__ |= {"objective": objective, "target": supernet if supernet is not None else backbone}
        tensors = {} if supernet is None else dict(zip(supernet.keys, supernet.weights, strict=True))
        head, rest = (dict(module.named_parameters()) if module else {} for module in (objective.head, backbone))
        tensors |= {f"head/{name}": parameter for name, parameter in head.items()}
        tensors |= {f"backbone/{name}": parameter for name, parameter in rest.items() if parameter.requires_grad}
        self.names, self.weights = tuple(tensors), nn.ParameterList(tensors.values())
        self.vectors = [] if supernet is None else supernet.vectors()  # of BitFit and LNFit
        self.cost, self.dropout = Cost(), supernet is None

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """``{"loss": scalar}`` of a collated batch."""
        weight, n_rows = batch.pop("share", (1.0, len(batch["target"])))  # see get_train_dataloader
        self.cost.passes += 1
        self.cost.rows += n_rows
        loss = self.objective.loss(batch)
        return {"loss": loss if weight == 1 else loss * weight}

    def train(self, mode: bool = True) -> Learner:
        """Also prepares backbone and head."""
        self.objective.prepare(self.dropout and mode)
        return super().train(mode)

    @property
    def backbone(self) -> nn.Module:
        """The model that computes: the user's, or a copy of it."""
        return self.target.model if isinstance(self.target, Supernet) else self.target

    def attached(self) -> Any:
        """A context with the PET modules on the backbone; does nothing without a supernet."""
        return self.target if isinstance(self.target, Supernet) else nullcontext()

    def optimizer(self, args: TrainingArguments, vector_lr: float) -> torch.optim.Optimizer:
        """The Trainer's own optimiser, with another learning rate for biases and norms."""
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        vectors = {id(parameter) for parameter in self.vectors}
        others = [parameter for parameter in self.weights if id(parameter) not in vectors]
        quick = {"params": self.vectors, "lr": vector_lr * options["lr"]}
        return kind([{"params": others}, quick], weight_decay=0.0, **options)


class PetTrainer(Trainer):
    """Hugging Face's Trainer with the batches of a :class:`Stream` and the task's metrics; ``model`` is a Learner."""

    control: Any
    about: Mapping[str, Any] | None = None  # config of a retraining that lasts
    best: tuple[int, dict[str, Tensor]] | None = None  # step and weights of a checkpoint that could not be written
    _saved = 0  # step of the last checkpoint
    _pause, _latest = 0.0, 0.0  # when there may be another one, and when there must be

    def __init__(self, model: Learner, *args: Any, **options: Any):
        self.processes = Processes(model.objective.device)
        super().__init__(model, *args, **options)

    def get_train_dataloader(self) -> DataLoader:
        """This process's shares of batches 0, 1, 2, … of the stream; the Trainer takes the mean over processes."""
        stream = Stream(self.train_dataset, self.args.per_device_train_batch_size, self.args.seed)

        def shared_out(steps: list[int]) -> dict[str, Any]:
            share = self.processes.share(stream(steps[0]), self.model.objective.terms)
            batch = self.model.objective.collate(share.rows)
            return {**batch, "share": (share.weight * self.processes.count, share.n_rows)}

        return DataLoader(range(self.args.max_steps), batch_size=1, collate_fn=shared_out)  # type: ignore[arg-type]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer's; a loss that is not finite raises DivergedError before the optimiser uses its gradient."""
        loss = super().training_step(*args, **kwargs)
        check_finite("the training loss is", self.processes.total(loss))
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer's, sealed; if it cannot be written, that is a warning, and the best weights stay in memory."""
        started, step = time.perf_counter(), self.state.global_step
        path = Path(self.args.output_dir or "") / f"checkpoint-{step}"
        try:
            super()._save_checkpoint(model, trial)
            if self.about is not None and self.processes.is_first:
                cost = self.model.cost.to_dict() | {"scored": self.model.objective.scored}
                write_json({"config": decisive(self.about), "cost": cost}, path / ABOUT)
                state = json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
                write_json(state | {"best_model_checkpoint": None}, path / TRAINER_STATE_NAME)  # a path of this machine
                (path / "training_args.bin").unlink(missing_ok=True)  # holds paths, too
                seal(path)
        except Exception as error:  # torch, safetensors and the system have their own types for a full disk
            shutil.rmtree(path, ignore_errors=True)
            if step == self.state.best_global_step:
                self.best = step, {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}
            warnings.warn(f"training goes on without checkpoint {step}: {error}", stacklevel=2)
        now = time.perf_counter()
        self._saved, self._pause, self._latest = step, now + min(AT_MOST, PAUSE * (now - started)), now + AT_MOST

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        """As the Trainer's; a checkpoint that is due is also written where the score is no better."""
        due = bool(self.control.should_save)
        return super()._determine_best_metric(metrics, trial) or due

    def best_weights(self) -> Mapping[str, Tensor] | None:
        """The weights at the best step; None if no score was better than none."""
        if not (step := self.state.best_global_step):
            return None
        if self.best is not None and self.best[0] == step:
            return self.best[1]
        path = Path(self.args.output_dir or "") / f"checkpoint-{step}" / SAFE_WEIGHTS_NAME
        with reading(path):
            return read_tensors(path, finite=False)[0]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The task's metrics on the validation split, which the first process scores."""
        objective = self.model.objective
        scores = self.processes.first(lambda: objective.evaluate(objective.task.validation, self.eval_dataset))
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Bar(ProgressCallback):
    """The Trainer's progress bar without its lines of logs."""

    on_log = TrainerCallback.on_log


class Often(TrainerCallback):
    """Asks for a checkpoint every 2 % of the steps, but for no more than a twentieth of the time, and every minute."""

    def __init__(self, trainer: PetTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer."""
        now, due = time.perf_counter(), state.global_step - self.trainer._saved >= max(1, state.max_steps // 50)
        if self.trainer.processes.count == 1:  # clocks differ between processes, and all of them must save
            due = now >= self.trainer._latest or (due and now >= self.trainer._pause)
        control.should_save |= due and state.global_step < state.max_steps


def last_checkpoint(folder: Path, config: Mapping[str, Any], learner: Learner) -> str | None:
    """The last complete checkpoint, whose cost the learner takes over; incomplete ones are removed.

    Raises RunError if it is damaged or of other settings.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: -int(path.name.rpartition("-")[2])):
        if not (path / "files.json").exists():
            shutil.rmtree(path, ignore_errors=True)
            continue
        hint = f"Remove {folder} to start this retraining anew"
        files = saved_files(path, "checkpoint", (ABOUT,), hint)
        with reading(path / ABOUT, hint=hint):
            about = read_json(files[ABOUT], {"config": RECORD, "cost": RECORD}, ("config", "cost"))
            cost = Cost.of(about)
        check_same(folder.parent, about["config"], config, "retraining")
        learner.cost, learner.objective.scored = cost, cost.scored
        return str(path)
    return None


def train(
    learner: Learner,
    rows: list[Row],
    recipe: Recipe,
    lr: float,
    callbacks: Sequence[TrainerCallback],
    score_from: int,
    folder: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[int, list[dict[str, float]], DivergedError | None]:
    """Run the Trainer and leave the best weights in the learner; their step, the validation curve, and any failure.

    With a ``folder``, its checkpoints lie there, and training goes on after the last one of the same ``config``.
    """
    task, failure, every = learner.objective.task, None, max(1, recipe.steps // recipe.evaluations)
    lasting, processes, start = folder is not None and config is not None, Processes(learner.objective.device), None
    if folder is not None and config is not None:
        start = processes.first(partial(last_checkpoint, folder, config, learner))
    with tempfile.TemporaryDirectory() as temporary, quiet_transformers():
        args = TrainingArguments(
            output_dir=str(folder) if lasting and processes.is_first else temporary,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=lr,
            warmup_steps=recipe.lr_warmup,
            max_grad_norm=2.0,  # as in the paper
            seed=recipe.seed,
            eval_strategy="steps",
            eval_steps=every,
            eval_delay=score_from,
            save_strategy="best",
            save_only_model=not lasting,
            save_total_limit=3 if lasting else 1,  # the best, the last, and the one that is being written
            metric_for_best_model=task.metric,
            logging_steps=every,
            report_to=[],
            disable_tqdm=True,
            use_cpu=learner.objective.device.type == "cpu",
            ddp_find_unused_parameters=True,
        )
        trainer = PetTrainer(
            model=learner,
            args=args,
            train_dataset=learner.objective.encode(task.train),
            eval_dataset=rows,
            callbacks=[*callbacks, *([EarlyStoppingCallback(recipe.patience)] if recipe.patience else [])],
            optimizers=(learner.optimizer(args, recipe.vector_lr), None),
        )
        trainer.remove_callback(PrinterCallback)
        if lasting:
            trainer.about, trainer._latest = config, time.perf_counter() + AT_MOST
            trainer.add_callback(Often(trainer))
        try:
            trainer.train(resume_from_checkpoint=start)
        except DivergedError as error:
            what = f"training diverged at step {trainer.state.global_step}: {error}. Lower lr (now {lr:g}) or raise"
            failure = DivergedError(f"{what} lr_warmup. The best model before it, if any, is error.tuned")
            failure.__cause__ = error
        if processes.is_first and (best := trainer.best_weights()) is not None:
            learner.load_state_dict(best)
        with torch.no_grad():
            processes.copy_first([*learner.weights])
    name = f"eval_{task.metric}"
    curve = [{"step": log["step"], "score": log[name]} for log in trainer.state.log_history if name in log]
    return int(trainer.state.best_global_step or 0), curve, failure
