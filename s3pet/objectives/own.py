"""An objective of the user's own: what it must be able to do, and how searches and retraining use it.

If it names heads, submodules of the model that are trained too, copies of them are trained; they are in place whenever
``loss`` and ``predict`` run, and the model keeps its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from s3pet.backbones import borrows, check_model, preserved
from s3pet.errors import SearchError, TaskError, check_finite, nearest
from s3pet.objectives.columns import Bound
from s3pet.objectives.streams import in_batches
from s3pet.objectives.texts import Objective, ObjectiveSettings, make_objective
from s3pet.tasks import Task
from s3pet.tasks.plain import RowTask

METHODS = ("encode", "collate", "loss", "predict")


class OwnObjective(Protocol):
    """How any model learns any rows: four methods.

    Three more attributes are optional. ``heads(model)``, called once at the start, names submodules of the model that
    are trained too, from the weights that they have. ``labels(values)`` returns the labels of a task in the form of
    predictions. ``settings`` is a mapping of plain numbers, texts and lists that decide the result; it is part of the
    config of a run.

    Rows are batched by the length of their ``input_ids``, if they are mappings with such a column.
    """

    def encode(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Encoded rows, one for each row of a task; they are kept in memory."""

    def collate(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        """One batch of encoded rows; its tensors are moved to the model's device."""

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Mean loss of a batch, a scalar that can be differentiated."""

    def predict(self, model: Any, batch: Mapping[str, Any]) -> Sequence[Any]:
        """One prediction for each row of a batch, as the metrics of the task read it."""


class Own(Objective):
    """The objective of a user's object.

    Attributes:
        own, heads: the object; dotted names of the submodules that are trained, whose copies ``head`` holds.
    """

    own: Any

    def __init__(self, model: nn.Module, task: Any, own: Any):
        super().__init__(model, task, ObjectiveSettings())
        self.__dict__["own"] = own = own.bound(model, task) if isinstance(own, Bound) else own
        if isinstance(own, nn.Module) and any(weight.requires_grad for weight in own.parameters()):
            how = "make them a submodule of the model and name it in heads(model)"
            raise SearchError(f"{self.name} has parameters of its own, which would not be trained; {how}")
        self.heads = tuple(own.heads(model)) if hasattr(own, "heads") else ()
        modules = dict(model.named_modules())
        if unknown := [path for path in self.heads if path not in modules or not path]:
            raise SearchError(f"the model has no submodule {unknown[0]!r} as its head; {nearest(unknown[0], modules)}")
        if self.heads:
            keys = {path.replace(".", "_"): path for path in self.heads}
            self.head = nn.ModuleDict({key: copy.deepcopy(modules[path]) for key, path in keys.items()})
            self.head.requires_grad_(True)
        self._slots = []  # where each trained tensor of the head goes in the model
        for name, _ in self.head.named_parameters() if self.heads else ():
            key, _, inner = name.partition(".")
            path, _, leaf = f"{keys[key]}.{inner}".rpartition(".")
            self._slots.append((modules[path]._parameters, leaf))
        self.declared()  # raises if it cannot be recorded

    def declared(self) -> dict[str, Any]:
        settings = dict(getattr(self.own, "settings", {}))
        try:
            settings = json.loads(json.dumps(settings, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise SearchError(f"settings of an objective must be plain numbers, texts and lists: {error}") from error
        kind = type(self.own)
        ready = kind.__module__.startswith("s3pet.objectives.")  # not a user's class of the same name
        return {"own": kind.__qualname__, "ready": ready, "head": list(self.heads), "settings": settings}

    def unfreeze(self) -> None:
        super().unfreeze()
        for slots, leaf in self._slots:
            slots[leaf].requires_grad_(False)  # replaced by the head's

    def keep_head(self) -> None:
        """Put the trained tensors of the head into the model for good, which is a copy that nobody else has."""
        for (slots, leaf), weight in zip(self._slots, self.head_weights, strict=True):
            slots[leaf] = weight  # type: ignore[assignment]

    def encode(self, examples: Sequence[Any]) -> list[Any]:
        rows = list(self.own.encode(examples))
        if len(rows) != len(examples):
            raise TaskError(f"{self.name}.encode must return one row for each of {len(examples)}; got {len(rows)}")
        return rows

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = self.own.collate(rows)
        if not isinstance(batch, Mapping):
            raise TaskError(f"{self.name}.collate must return a mapping of tensors; got a {type(batch).__name__}")
        moved = {key: v.to(self.device) if isinstance(v, Tensor) else v for key, v in batch.items()}
        return {"inputs": moved, "target": torch.arange(len(rows))}  # the Trainer would read a "labels" of its own

    def scores(self, batch: Any, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        raise SearchError(f"{self.name} is an objective of your own, which has no scores of labels")

    def loss(self, batch: Any, head_weights: Sequence[Tensor] | None = None) -> Tensor:
        with self.with_head(head_weights):
            value = self.own.loss(self.model, batch["inputs"])
        if not isinstance(value, Tensor) or value.ndim:
            what = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise SearchError(f"{self.name}.loss must return a scalar tensor, the mean over the rows; got {what}")
        return value

    @torch.no_grad()
    def predict(self, examples: Sequence[Any], rows: Any = None, *, batch_size: int | None = None) -> list[Any]:
        encoded = self.encode(examples) if rows is None else rows
        predictions = list[Any]([None] * len(encoded))
        check = self.model.register_forward_hook(self._check_output)
        with check, preserved(self, self.model), self.with_head():
            self.model.eval()
            for part in in_batches(encoded, batch_size or min(32, self.batch_size)):
                batch = self.collate([encoded[index] for index in part])["inputs"]
                values = list(self.own.predict(self.model, batch))
                if len(values) != len(part):
                    what = f"one prediction for each of {len(part)} rows; got {len(values)}"
                    raise TaskError(f"{self.name}.predict must return {what}")
                self.scored += len(part)
                for index, value in zip(part, values, strict=True):
                    if isinstance(value, Real):
                        check_finite(f"predictions on task {self.task.name!r} are", value)
                    predictions[index] = value
        return predictions

    def evaluate(self, examples: Sequence[Any], rows: Any = None) -> dict[str, float]:
        task = self.task
        labels = task.labels(examples) if isinstance(task, RowTask) else [example.label for example in examples]
        labels = self.own.labels(labels) if hasattr(self.own, "labels") else labels
        return task.score(self.predict(examples, rows), labels)

    @property
    def name(self) -> str:
        """The class of the object."""
        return type(self.own).__name__

    @contextmanager
    def with_head(self, weights: Sequence[Tensor] | None = None) -> Iterator[None]:
        """Put the trained tensors of the head into the model."""
        before = [(slots, {leaf: slots[leaf]}) for slots, leaf in self._slots]
        try:
            new = self.head_weights if weights is None else weights
            for (slots, leaf), weight in zip(self._slots, new, strict=True):
                slots[leaf] = weight  # type: ignore[assignment]
            yield
        finally:
            for slots, own in before:
                slots.update(own)

    def _check_output(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """See :meth:`check_scores`."""
        for name, value in output.items() if isinstance(output, Mapping) else ():
            if "logits" in name and isinstance(value, Tensor):
                self.check_scores(value, name)


@borrows("looking at how it learns", short=True)
def objective_of(model: nn.Module, task: Any, objective: Any = None, *, seed: int = 0) -> Objective:
    """How this backbone learns this task: by an object of the user's own, or as :func:`make_objective` says.

    Raises TaskError for something that is not a task, and what :func:`checked` and :func:`make_objective` raise.
    """
    objective = checked(objective)
    check_model(model)
    if isinstance(objective, ObjectiveSettings):
        return make_objective(model, task, objective, seed=seed)
    if not isinstance(task, Task | RowTask):
        how = "s3pet.tasks.RowTask(name, train, validation, test, metrics={…})"
        raise TaskError(f"a {type(task).__name__} is not a task; pass load_task(…) or {how}")
    return Own(model, task, objective)


def checked(objective: Any) -> Any:
    """An object with the four methods, or settings; SearchError for anything else, which says why."""
    methods = [name for name in METHODS if callable(getattr(objective, name, None))]
    if methods and isinstance(objective, type):
        raise SearchError(f"objective {objective.__name__} is a class; pass an object of it: {objective.__name__}(…)")
    if lacking := ", ".join(name for name in METHODS if methods and name not in methods):
        what = f"objective {type(objective).__name__} lacks the methods {lacking}"
        raise SearchError(f"{what}; see s3pet.objectives.OwnObjective")
    return objective if methods else ObjectiveSettings.of(objective)
