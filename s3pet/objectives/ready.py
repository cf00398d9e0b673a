"""Ready objectives from the settings that a saved folder holds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from s3pet.errors import RunError, S3PetError
from s3pet.objectives.generation import Generation
from s3pet.objectives.heads import ModelLoss
from s3pet.objectives.labels import MultiLabel, TokenClassification

READY = {kind.__name__: kind for kind in (Generation, ModelLoss, MultiLabel, TokenClassification)}


def can_be_rebuilt(declared: Mapping[str, Any]) -> bool:
    """Whether settings say all of an objective: a ready one, without a function that prepares rows or images."""
    name, settings = declared["own"], declared.get("settings")
    known = declared.get("ready") is True and isinstance(name, str) and name in READY
    return known and isinstance(settings, Mapping) and settings.get("prepare") is None


def rebuilt(where: Any, declared: Mapping[str, Any], tokenizer: Any) -> Any:
    """The objective of a saved folder, made of its settings and the tokenizer of the backbone.

    Args:
        where: the folder, for messages. declared: what its config says of the objective.

    Raises:
        RunError: it was written by the user, or holds what no file can: a function that prepares rows, an image
            processor; or there is no tokenizer, or the settings are damaged.
    """
    name = declared["own"]
    if not can_be_rebuilt(declared):
        what = "an objective that cannot be made from its settings"
        raise RunError(f"{where} was tuned with {name}, {what}; use load_tuned(…, objective={name}(…))")
    kind: Any = READY[name]
    names, options = inspect.signature(kind).parameters, dict(declared["settings"])
    if "tokenizer" in names:
        if tokenizer is None:
            raise RunError(f"no tokenizer came with this backbone; pass it: load_tuned({where}, model, tokenizer=…)")
        options["tokenizer"] = tokenizer
    if "head" in names:
        options["head"] = declared.get("head")
    try:
        return kind(**options)
    except (S3PetError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{where} has settings from which {name} cannot be made: {error}") from error
