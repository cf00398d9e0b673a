"""One vector a row, of what an encoder returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s3pet.backbones import preserved
from s3pet.errors import SearchError


def pooled(output: Any, pooling: str, mask: Tensor) -> Tensor:
    """The vectors, [batch, width]: ``"pooler"``, the ``"first"`` token's, or the ``"mean"`` over the tokens.

    Args:
        output: of the model. mask: 1 for tokens, 0 for the filling, [batch, length].
    """
    name = "pooler_output" if pooling == "pooler" else "last_hidden_state"
    states = getattr(output, name, None)
    if not isinstance(states, Tensor) or states.ndim != (2 if pooling == "pooler" else 3):
        there = sorted(output) if hasattr(output, "keys") else type(output).__name__
        how = "use another pooling, or an objective of your own: see s3pet.objectives"
        raise SearchError(f"pooling={pooling!r} reads {name}, but this encoder returns {there}; {how}")
    if pooling == "pooler":
        return states
    if pooling == "first":
        return states[:, 0]
    if states.shape[1] != mask.shape[1]:
        what = f"this encoder returns {states.shape[1]} states for {mask.shape[1]} tokens"
        raise SearchError(f"{what}, so there is no mean over tokens; use pooling='first'")
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


@torch.no_grad()
def pooled_width(objective: Any) -> int:
    """The width of the vectors of an encoder, taken from one short pass; raises as :func:`pooled`."""
    model = objective.model
    row = {"input_ids": [0] * min(8, objective.reader.length), "target": 0}
    with preserved(model):
        model.eval()
        batch = objective.collate([row])
        try:
            output = objective.run(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):  # it needs more; rows have it
            return model.config.hidden_size
        return pooled(output, objective.settings.pooling, batch["attention_mask"]).shape[-1]
