"""The runs a widget can show: found, named, opened when they are first needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3pet.errors import RunError
from s3pet.result import SearchResult, load_run

FIELDS = ("model", "space", "task", "budget", "seed")
MADE_BY = "Make one: s3pet.search(…, out='runs/demo')."


@dataclass(frozen=True)
class Entry:
    """One run that can be opened.

    Attributes:
        name: what the user, or its folder, calls it.
        config: of the search.
        open: gives the result; the first call reads it.
    """

    name: str
    config: Mapping[str, Any]
    open: Callable[[], SearchResult]

    def value(self, field: str) -> str:
        """What tells it from others, as text; "" where the config does not say."""
        found = self.config.get(field)
        return "" if found is None else found if isinstance(found, str) else json.dumps(found)

    def label(self, field: str) -> str:
        """The value of a field for people to read."""
        found = self.config.get(field)
        if field == "budget" and isinstance(found, int):
            total = self.config.get("backbone_params")
            return f"{found:,}" + (f" ({100 * found / total:.3g} %)" if total else "")
        return self.value(field) or "—"


def find_runs(given: Any) -> list[Entry]:
    """All runs in what a user gave.

    Args:
        given: a run folder; a folder with run folders somewhere below it; a search result; a list of any of these, or a
            mapping from names to them.

    Raises:
        RunError: nothing of the kind, or no run in it.
    """
    found = [*_entries(given, "")]
    if not found:
        raise RunError(f"no run was given, only an empty {type(given).__name__}. {MADE_BY}")
    return found


def _entries(given: Any, name: str) -> Iterable[Entry]:
    if isinstance(given, SearchResult):
        yield Entry(name or _title(given), given.config, lambda: given)
    elif isinstance(given, (str, Path)):
        yield from _folders(Path(given), name)
    elif isinstance(given, Mapping):
        for key, part in given.items():
            yield from _entries(part, f"{name} {key}".strip())
    elif isinstance(given, Iterable):
        for part in given:
            yield from _entries(part, name)
    else:
        raise RunError(
            "expected a run folder, a folder with runs below it, a search result, or a list or mapping of these; got "
            f"{type(given).__name__}: {given!r:.80}. {MADE_BY}"
        )


def _title(result: SearchResult) -> str:
    return result.path.name if result.path else "search"


def _folders(root: Path, name: str) -> Iterable[Entry]:
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise RunError(f"{root} {what}; expected a run folder, or a folder with runs below it. {MADE_BY}")
    folders = [path.parent for path in sorted(root.rglob("gates.parquet"))]
    whole = [folder for folder in folders if (folder / "config.json").is_file()]
    if not whole:
        some = f"{len(folders)} unfinished" if folders else "none"
        raise RunError(f"{root} holds no finished run (a folder with config.json and gates.parquet): {some}. {MADE_BY}")
    for folder in whole:
        config = _read(folder, lambda folder: json.loads((folder / "config.json").read_text(encoding="utf-8")))
        below = "" if folder == root else folder.relative_to(root).as_posix()
        label = " ".join(part for part in (name, below) if part) or folder.name
        yield Entry(label, config, functools.cache(functools.partial(_read, folder, load_run)))


def _read(folder: Path, how: Callable[[Path], Any]) -> Any:
    try:
        return how(folder)
    except RunError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RunError(f"{folder} cannot be read: {error}. Make it again, or give the other runs only.") from error


def short_names(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Names that tell the runs apart, as short as that allows: task, what else differs, and the seed last."""
    entries = list(entries)
    differ = [name for name in ("budget", "model", "space") if len({entry.value(name) for entry in entries}) > 1]
    made: dict[str, Entry] = {}
    for entry in entries:
        more = ", ".join(entry.label(name).partition(" (")[0] for name in differ)
        parts = [entry.label("task").rpartition("/")[2], f"({more})" if more else "", entry.value("seed")]
        text = " ".join(part for part in parts if part)
        made[text if text not in made else f"{text} ({entry.name})"] = entry
    return made if len(made) == len(entries) else {f"{entry.name} {i}": entry for i, entry in enumerate(entries)}
