"""What a run costs, by the same ledger for a search and a retraining: passes, rows, seconds, peak memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Cost:
    """The ledger of one run.

    Attributes:
        passes: forward + backward passes of one batch through the backbone.
        rows: rows those passes went over; a row counts once per pass.
        scored: rows that went forward only, to be scored.
        seconds: wall clock.
        peak_memory: bytes: on a GPU what torch had allocated at most, elsewhere the largest resident size of the whole
            process, libraries and backbone included (where the system cannot forget an older peak, since its start).
    """

    passes: int = 0
    rows: int = 0
    scored: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Cost:
        """The ledger in a run's metrics; runs of earlier versions noted passes and seconds only."""
        if "cost" in metrics:
            return cls(**metrics["cost"])
        return cls(passes=metrics.get("passes", 0), seconds=metrics.get("seconds", 0.0))

    def to_dict(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}

    @contextmanager
    def watch_memory(self, device: torch.device) -> Iterator[None]:
        """Raise ``peak_memory`` to the peak inside."""
        _forget_peak(device)
        try:
            yield
        finally:
            found = _peak(device)
            self.peak_memory = max((n for n in (found, self.peak_memory) if n is not None), default=None)

    def __add__(self, other: Cost) -> Cost:
        """Of two runs, one after the other."""
        peak = max((n for n in (self.peak_memory, other.peak_memory) if n is not None), default=None)
        passes, rows, scored = self.passes + other.passes, self.rows + other.rows, self.scored + other.scored
        return Cost(passes, rows, scored, self.seconds + other.seconds, peak)

    def __str__(self) -> str:
        shown = {"passes": self.passes, "rows": self.rows, "rows scored": self.scored}
        parts = [f"{number:,} {name}" for name, number in shown.items() if number] + [f"{self.seconds:.1f} s"]
        parts += [] if self.peak_memory is None else [f"peak {self.peak_memory / 1e6:,.0f} MB"]
        return ", ".join(parts)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from today's size


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
