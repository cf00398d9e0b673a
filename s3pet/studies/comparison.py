"""A few structures on one task as one tidy table, row by row, resumable; a whole grid is a :mod:`s3pet.studies.study`.

Every structure gets the same recipe. Rows already in the file are not computed again, so a long comparison can be cut
off and go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from s3pet.errors import RunError
from s3pet.structure import Structure
from s3pet.tasks import Task
from s3pet.tuning import TunedModel, retrain

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Entry = Structure | str


def compare(
    model: nn.Module,
    task: Task,
    structures: Mapping[str, Entry | Sequence[Entry]],
    *,
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    progress: bool = True,
    **recipe: Any,
) -> pd.DataFrame:
    """Retrain several structures in the same way and put their scores in one table.

    Args:
        model: the backbone.
        task: the task; scores are its main metric on the test split.
        structures: name → a structure, a reference (``"full"``, ``"head"``, ``"zero-shot"``), or several of them
            (five random ones, one search per seed).
        seeds: retraining seeds; every structure is retrained with each.
        out: JSON-lines file that rows are appended to as they are done; rows in it are not computed again.
        progress: show one bar over all rows.
        **recipe: as in :func:`s3pet.retrain`.

    Returns:
        One row per structure and seed: ``task, structure, kind, index, seed, n_params, head_params, validation, score,
        metric, passes, rows, seconds``.
    """
    import pandas as pd

    path = Path(out) if out is not None else None
    done = read_rows(path)
    rows = []
    plan = list(_plan(structures, seeds))
    with tqdm(total=len(plan), desc=f"compare on {task.name}", disable=not progress) as bar:
        for name, index, entry, seed in plan:
            key = _key(task, name, index, entry, seed, recipe)
            if key not in done:
                bar.set_postfix_str(name)
                tuned = retrain(model, task, entry, seed=seed, **recipe)
                row = {"task": task.name, "structure": name, "kind": _kind(entry), "index": index, "seed": seed}
                done[key] = row = row | measured(tuned)
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"key": key, **row}) + "\n")
            rows.append(done[key])
            bar.update()
    return pd.DataFrame(rows)


def measured(tuned: TunedModel) -> dict[str, Any]:
    """What a retraining adds to its row: size, scores, cost."""
    metrics = tuned.metrics | tuned.cost.to_dict()
    row = {"n_params": metrics["n_params"] or metrics["backbone_params"], "head_params": metrics["head_params"]}
    row |= {"validation": metrics["validation"], "score": metrics["test"], "metric": metrics["metric"]}
    return row | {"passes": metrics["passes"], "rows": metrics["rows"], "seconds": metrics["seconds"]}


def _plan(structures: Mapping[str, Any], seeds: Sequence[int]) -> Iterator[tuple[str, int, Entry, int]]:
    for name, given in structures.items():
        entries = [given] if isinstance(given, (str, Structure)) else list(given)
        for index, entry in enumerate(entries):
            for seed in seeds:
                yield name, index, entry, seed


def _kind(entry: Entry) -> str:
    return "reference" if isinstance(entry, str) else str(entry.origin.get("kind", "custom"))


def _key(task: Task, name: str, index: int, entry: Entry, seed: int, recipe: Mapping[str, Any]) -> str:
    what = entry if isinstance(entry, str) else list(entry.names)
    text = json.dumps([task.fingerprint, name, index, what, seed, dict(recipe)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(path: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of a JSON-lines file by their key; none where there is no file."""
    if path is None or not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found[row.pop("key")] = row
        except (ValueError, KeyError, AttributeError) as error:
            raise RunError(f"{path}, line {number} is not a row of a comparison ({error}); remove the line") from error
    return found
