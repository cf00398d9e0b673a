"""The training of a structure: ``transformers.Trainer`` on what is trained, and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from s3pet.backbones import quiet_transformers
from s3pet.batches import Row, Stream
from s3pet.result import Cost
from s3pet.errors import SearchError
from s3pet.objective import Batch, Objective
from s3pet.supernet import Supernet

DEFAULT_LR = {"pet": 3e-3, "head": 3e-3, "full": 5e-4, "adalora": 3e-3}
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How a structure is trained; every field is a keyword of :func:`retrain`.

    Attributes:
        steps: optimiser steps.
        batch_size: examples per step.
        lr: AdamW's; None takes 3e-3 for PET modules and heads, 5e-4 for full fine-tuning.
        vector_lr: learning rate of BitFit and LNFit, as a multiple of ``lr``, see :class:`s3pet.settings.Settings`.
        lr_warmup: steps over which the rate rises from 0.
        evaluations: times the validation split is scored, evenly spaced; the best one is kept.
        clip: gradient norm limit.
        seed: of fresh tensors, order of batches, dropout.
        max_length: tokens per input.
        pooling: of an encoder's head.
        loss: of text-to-text backbones, ``"choice"`` or ``"lm"``, see :mod:`s3pet.objective`.
        precision: of the backbone: ``"float32"`` or ``"bfloat16"`` (autocast; what is trained stays float32).
    """

    steps: int = 300
    batch_size: int = 32
    lr: float | None = None
    vector_lr: float = 1.0
    lr_warmup: int = 0
    evaluations: int = 10
    clip: float = 2.0
    seed: int = 0
    max_length: int = 128
    pooling: str | None = None
    loss: str = "choice"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "vector_lr", "evaluations", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SearchError(f"{name} must be > 0, got {value}")
        if not 0 <= self.lr_warmup <= self.steps:
            raise SearchError(f"lr_warmup must be 0 to steps ({self.steps}), got {self.lr_warmup}")


class Learner(nn.Module):
    """What is trained — PET tensors, head, or everything — as one module for the Trainer; calls give the loss."""

    objective: Objective

    def __init__(self, objective: Objective, supernet: Supernet | None, full: bool):
        super().__init__()
        self.__dict__["objective"] = objective
        self.supernet, self.head = supernet, objective.head
        self.cost = Cost()
        if full:
            self.backbone = objective.model
            for parameter in objective.model.parameters():
                parameter.requires_grad_(True)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """``{"loss": scalar}`` of a collated batch."""
        self.cost.passes += 1
        self.cost.rows += len(batch["target"])
        return {"loss": self.objective.loss(batch)}

    def train(self, mode: bool = True) -> Learner:
        """Also switches the frozen backbone's dropout."""
        self.objective.model.train(mode)
        return super().train(mode)

    def trained(self) -> dict[str, Tensor]:
        """Trainable tensors by name, each once."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}


class PetTrainer(Trainer):
    """``transformers.Trainer`` whose checkpoints hold only trained tensors and whose score is the task's metric."""

    def __init__(
        self,
        learner: Learner,
        args: TrainingArguments,
        rows: Sequence[Row],
        validation: tuple,
        vector_lr: float,
        callbacks: Sequence[TrainerCallback],
    ):
        self.vector_lr = vector_lr
        self.validation, self.stream = validation, Stream(rows, args.per_device_train_batch_size, args.seed)
        super().__init__(learner, args, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))

    def get_train_dataloader(self) -> DataLoader:
        """The batches of all steps, as one epoch."""
        return DataLoader(_Steps(self), batch_size=None)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The Trainer's own; BitFit and LNFit in groups with a rate of theirs."""
        optimizer = super().create_optimizer(*args, **kwargs)
        supernet = self.model.supernet
        quick = {id(p) for p in supernet.vectors()} if supernet is not None and self.vector_lr != 1 else set()
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in quick]
            if own:
                group["params"] = [p for p in group["params"] if id(p) not in quick]
                optimizer.add_param_group({**group, "params": own, "lr": group["lr"] * self.vector_lr})
        return optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores the validation split; the Trainer keeps the best, and asks twice for that of the last step."""
        step, known = self.state.global_step, [entry for entry in self.state.log_history if "score" in entry]
        if not known or known[-1]["step"] != step:
            found = self.model.objective.evaluate(*self.validation)
            known.append({"step": step, "score": next(iter(found.values()))})
            self.state.log_history.append(known[-1])
            self.model.train()
        score = known[-1]["score"]
        return {"eval_score": score}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.model.trained().items()}, folder / WEIGHTS)

    def _load_best_model(self) -> None:
        _copy_in(self.model, load_file(Path(self.state.best_model_checkpoint) / WEIGHTS))


class _Steps(Dataset):
    """Batch t of a trainer's stream, t = 0 … steps − 1."""

    def __init__(self, trainer: PetTrainer):
        self.trainer = trainer

    def __len__(self) -> int:
        return self.trainer.args.max_steps

    def __getitem__(self, step: int) -> Batch:
        return self.trainer.model.objective.collate(self.trainer.stream(step))


def train(
    learner: Learner,
    rows: list[Row],
    validation: tuple,
    recipe: Recipe,
    kind: str,
    progress: bool,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    score_from: int = 0,
) -> tuple[int, list[dict[str, float]]]:
    """Run the Trainer and leave the best checkpoint in the learner; returns its step and the validation curve.

    Args:
        learner: what is trained. rows: encoded training rows. validation: examples and their encoded rows.
        recipe: how. kind: for the default learning rate. progress: show a bar.
        callbacks: told of every step.
        score_from: steps before which nothing is scored, and so no checkpoint kept; the last step always is.
    """
    every = max(1, recipe.steps // recipe.evaluations)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        args = TrainingArguments(
            output_dir=folder,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.lr or DEFAULT_LR[kind],
            lr_scheduler_type="linear",
            warmup_steps=recipe.lr_warmup,
            weight_decay=0.0,
            max_grad_norm=recipe.clip,
            seed=recipe.seed,
            eval_strategy="steps",
            eval_steps=every,
            eval_delay=score_from,
            save_strategy="best",
            save_only_model=True,
            save_total_limit=1,
            metric_for_best_model="score",
            greater_is_better=True,
            load_best_model_at_end=True,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=learner.objective.device.type == "cpu",
        )
        bar = [_Bar(args.max_steps)] if progress else []
        trainer = PetTrainer(learner, args, rows, validation, recipe.vector_lr, [*callbacks, *bar])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        curve = [entry for entry in trainer.state.log_history if "score" in entry]
        return int(trainer.state.best_global_step or 0), curve


class _Bar(TrainerCallback):
    """One tqdm bar; the Trainer's own prints too much in a notebook."""

    def __init__(self, steps: int):
        from tqdm.auto import tqdm

        self.bar = tqdm(total=steps, desc="retrain")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def _copy_in(learner: Learner, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
