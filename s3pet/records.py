"""Records of runs: settings that are checked, and costs that are counted. Nothing here knows the method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import psutil
import torch

from s3pet.errors import SearchError, shown
from s3pet.files.kinds import FLAG, check_record, is_whole, number, optional, whole

T = TypeVar("T")
Choices = Mapping[str, Sequence[Any]]
AT_MOST = 60.0  # seconds of a long run that a kill may cost: checkpoints are written at least so often
LATER = {"later": True}  # metadata of an option, None by default, that early runs did not have
EXPECTED = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a string", NoneType: "None"}


def check_fields(
    record: Any, positive: Sequence[str] = (), least: Mapping[str, int] | None = None, choices: Choices | None = None
) -> None:
    """Check types and ranges of a frozen dataclass in its ``__post_init__``; NumPy numbers become Python's.

    Fields are annotated bool, int, float or str, alone or with None; a boolean is not a number. Those in ``positive``
    must be above 0; ``least`` and ``choices`` hold the smallest value and the allowed values, by field. Raises
    SearchError.
    """
    for name, hint in get_type_hints(type(record)).items():
        value, kinds = getattr(record, name), get_args(hint) or (hint,)
        if bool in kinds and FLAG.holds(value):
            object.__setattr__(record, name, bool(value))
        elif int in kinds and is_whole(value):
            object.__setattr__(record, name, int(value))
        elif float in kinds and number().holds(value):
            object.__setattr__(record, name, float(value))
        elif isinstance(value, Real) or not isinstance(value, kinds):
            raise SearchError(f"{name} must be {' or '.join(EXPECTED[kind] for kind in kinds)}, got {shown(value)}")
        if name == "seed" and value >= 2**32:
            raise SearchError(f"seed must be below 2**32, got {value}")
        if name in positive and value is not None and value <= 0:
            raise SearchError(f"{name} must be > 0, got {value}")
        if least and name in least and value is not None and value < least[name]:
            raise SearchError(f"{name} must be >= {least[name]}, got {value}")
        if choices and name in choices and value not in choices[name]:
            raise SearchError(f"{name}={value!r} is not one of {', '.join(map(str, choices[name]))}")


def settings_of(record: type[T], values: Mapping[str, Any], what: str, lists: Mapping[str, str] | None = None) -> T:
    """A record of these settings; SearchError for one that ``what``, which takes them, does not have.

    ``lists`` names the settings of which it takes a list, under another name: ``{"seed": "seeds"}``.
    """
    known = [field.name for field in fields(record)]  # type: ignore[arg-type]
    for name, plural in (lists or {}).items():
        if name in values:
            raise SearchError(f"{what} takes {plural}, a list, instead of {name}, got {name}={shown(values[name])}")
    if unknown := ", ".join(str(name) for name in values if name not in known):
        raise SearchError(f"{what} has no setting {unknown}; it has {', '.join(known)}")
    return record(**values)


def recorded(record: Any) -> dict[str, Any]:
    """Fields of a record of settings; one marked as ``later`` only if it is set, so that keys of earlier runs stay."""
    values = {field.name: getattr(record, field.name) for field in fields(record) if not field.metadata.get("later")}
    return values | {name: value for name, value in vars(record).items() if name not in values and value is not None}


COST = dict.fromkeys(("passes", "rows", "scored"), whole()) | {"seconds": number(0), "peak_memory": optional(whole())}


@dataclass
class Cost:
    """What a search or a retraining cost.

    Attributes:
        passes, rows: forward and backward passes of one batch through the backbone, and rows in these passes.
        scored: rows that went forward only, to be scored.
        seconds: wall clock.
        peak_memory: bytes. On a GPU: the most that torch had allocated. On a CPU: the largest resident size of the
            whole process that was seen at the start, after a step, or at the end.
    """

    passes: int = 0
    rows: int = 0
    scored: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Cost:
        """The cost in a run's metrics; early versions wrote passes and seconds only. ValueError if it is none."""
        if "cost" in metrics:
            check_record(metrics["cost"], COST)
            return cls(**metrics["cost"])
        return cls(passes=metrics.get("passes", 0), seconds=metrics.get("seconds", 0.0))

    def to_dict(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}

    def note_memory(self, device: torch.device) -> None:
        """Raise ``peak_memory`` to what is in use now."""
        on_gpu = device.type == "cuda"
        used = torch.cuda.max_memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
        self.peak_memory = max(used, self.peak_memory or 0)

    @contextmanager
    def watch_memory(self, device: torch.device) -> Iterator[None]:
        """Note the memory at the start and at the end."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.note_memory(device)
        try:
            yield
        finally:
            self.note_memory(device)

    def __str__(self) -> str:
        counts = {"passes": self.passes, "rows": self.rows, "rows scored": self.scored}
        parts = [f"{number:,} {name}" for name, number in counts.items() if number] + [f"{self.seconds:.1f} s"]
        parts += [] if self.peak_memory is None else [f"peak {self.peak_memory / 1e6:,.0f} MB"]
        return ", ".join(parts)


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with anything in the config."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of the libraries that compute."""
    numbers = {}
    for name in ("s3pet", "torch", "transformers", "numpy"):
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:  # a source tree on the path, not installed
            numbers[name] = "source"
    return numbers
