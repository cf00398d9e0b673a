"""S³PET: which parameter-efficient modules where, found by sparse structure search under a budget.

    model, tokenizer = s3pet.load_backbone("pocket-t5")
    task = s3pet.load_task("pocket/sentiment", tokenizer)
    space = s3pet.make_space(model, "mixed")
    result = s3pet.search(model, task, space, budget="0.2%", steps=200)
    tuned = s3pet.retrain(model, task, result.structure())

Names are loaded when first used, so importing the package is quick and has no side effects.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "backbones": ("load_backbone", "list_backbones"),
    "tasks": ("load_task", "list_tasks", "Task"),
    "space": ("make_space", "find_sites", "Rule", "Space"),
    "gates": ("Budget",),
    "structure": ("Structure", "select_structure", "random_structure", "manual_structure"),
    "supernet": ("attach", "Supernet"),
    "search": ("search",),
    "runs": ("SearchResult", "load_run"),
    "retrain": ("retrain", "load_tuned"),
    "comparison": ("compare",),
    "study": ("Study",),
    "transfer": ("average_gates", "retarget_gates", "agreement"),
    "plots": (
        *("plot_gates", "plot_difference", "plot_gate_panels", "plot_structure"),
        *("plot_profile", "plot_trajectories", "plot_polarisation"),
        *("plot_comparison", "plot_budget_curve", "plot_transfer", "plot_overlap"),
        *("figure_style", "save_figure", "describe"),
    ),
    "environment": ("environment_report",),
    "errors": ("S3PetError",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

if TYPE_CHECKING:
    from s3pet import errors, gates, structure
    from s3pet.backbones import list_backbones, load_backbone
    from s3pet.comparison import compare
    from s3pet.environment import environment_report
    from s3pet.errors import S3PetError
    from s3pet.gates import Budget
    from s3pet.plots import (
        describe,
        figure_style,
        plot_budget_curve,
        plot_comparison,
        plot_difference,
        plot_gate_panels,
        plot_gates,
        plot_overlap,
        plot_polarisation,
        plot_profile,
        plot_structure,
        plot_trajectories,
        plot_transfer,
        save_figure,
    )
    from s3pet.retrain import load_tuned, retrain
    from s3pet.runs import SearchResult, load_run
    from s3pet.search import search
    from s3pet.space import Rule, Space, find_sites, make_space
    from s3pet.structure import Structure, manual_structure, random_structure, select_structure
    from s3pet.study import Study
    from s3pet.supernet import Supernet, attach
    from s3pet.tasks import Task, list_tasks, load_task
    from s3pet.transfer import agreement, average_gates, retarget_gates

__all__ = sorted(_HOME)


class _Package(ModuleType):
    """Keeps ``s3pet.search`` the function: importing the room of the same name would rebind it to the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"s3pet.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    try:
        return import_module(f"s3pet.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"s3pet.{name}":
            raise
        raise AttributeError(f"module 's3pet' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
