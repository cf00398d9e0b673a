"""S³PET: which parameter-efficient modules where, found by sparse structure search under a budget.

    model, tokenizer = s3pet.load_backbone("pocket-t5")
    task = s3pet.load_task("pocket/sentiment", tokenizer)
    space = s3pet.make_space(model, "mixed")
    result = s3pet.search(model, task, space, budget="0.2%")
    tuned = s3pet.retrain(model, task, result.structure())

Names and modules are imported when they are first used, so importing the package is quick and has no side effects.
Everything else is reached through its module: ``s3pet.plots``, ``s3pet.widgets``, ``s3pet.studies``, ``s3pet.gates`` …
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {
    "backbones": ("load_backbone",),
    "tasks": ("load_task",),
    "space": ("make_space",),
    "gates": ("Budget",),
    "structure": ("Structure", "random_structure", "manual_structure"),
    "supernet": ("attach", "detach"),
    "searcher": ("search",),
    "result": ("load_run",),
    "tuning": ("retrain", "load_tuned"),
    "transfer": ("average_gates", "retarget_gates"),
    "studies": ("compare",),
    "export": ("merge", "to_peft", "from_peft", "from_s3delta"),
    "plots": ("plot_gates", "plot_structure", "save_figure", "describe"),
    "errors": ("S3PetError",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)

# beside the names that most people need
_MODULE_OF |= {"estimate": "studies", "list_structures": "export", "load_structure": "export"}

if TYPE_CHECKING:
    from s3pet.backbones import load_backbone
    from s3pet.errors import S3PetError
    from s3pet.export import from_peft, from_s3delta, merge, to_peft
    from s3pet.gates import Budget
    from s3pet.plots import describe, plot_gates, plot_structure, save_figure
    from s3pet.result import load_run
    from s3pet.searcher import search
    from s3pet.space import make_space
    from s3pet.structure import Structure, manual_structure, random_structure
    from s3pet.studies import compare
    from s3pet.supernet import attach, detach
    from s3pet.tasks import load_task
    from s3pet.transfer import average_gates, retarget_gates
    from s3pet.tuning import load_tuned, retrain


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"s3pet.{_MODULE_OF[name]}"), name)
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
