"""What an objective of the user's own must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from s3pet.errors import SearchError

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


def has_methods(objective: Any) -> bool:
    """Whether an object has the four methods; SearchError for a class, and for an object with some of them only."""
    methods = [name for name in METHODS if callable(getattr(objective, name, None))]
    if methods and isinstance(objective, type):
        raise SearchError(f"objective {objective.__name__} is a class; pass an object of it: {objective.__name__}(…)")
    if lacking := ", ".join(name for name in METHODS if methods and name not in methods):
        what = f"objective {type(objective).__name__} lacks the methods {lacking}"
        raise SearchError(f"{what}; see s3pet.objectives.OwnObjective")
    return bool(methods)
