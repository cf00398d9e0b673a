"""A registry: a folder of structures with what each of them scored, to list, to load and to share.

    index.json           one entry for each structure: model, task, budget, score, how it was chosen and trained
    number-1351.json     a structure, as ``structure.to_json`` writes it; the index has its SHA-256

One comes with s3pet; others are local folders, or datasets of the Hugging Face hub. What is read is checked, and
nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from s3pet.backbones import backbone_checksum, embedded_path
from s3pet.backbones.frozen import n_parameters
from s3pet.errors import ExportError, RunError, nearest
from s3pet.files.kinds import FLAG, RECORDS, TEXT, Kind, check_record, many, number, optional, whole
from s3pet.files.reading import MB, path_of, read_bytes, read_json, reading
from s3pet.files.states import changed_settings, decisive
from s3pet.files.writing import claim, digest, refuse_finished, write_json
from s3pet.structure import Structure
from s3pet.tuning import TUNED_MODEL, TunedModel

INDEX, FORMAT, VERSION = "index.json", "s3pet-registry", 1


def _matching(what: str, pattern: str) -> Kind:
    return Kind(what, lambda v: isinstance(v, str) and v.isprintable() and bool(re.fullmatch(pattern, v, re.A)))


NAME = _matching("a name of letters, digits, '.', '-' and '_', not 'index'", r"(?!(?i:index)$)[A-Za-z0-9][\w.-]{0,79}")
LINE, HASH = _matching("a line of at most 200 characters", ".{1,200}"), _matching("a SHA-256", "[0-9a-f]{64}")
ENTRY: dict[str, Kind] = {  # fields of an entry, which are the columns of the table
    **{"name": NAME, "model": LINE, "task": LINE, "metric": LINE, "budget": optional(whole(1)), "n_params": whole()},
    **{"backbone_params": whole(1), "score": number(), "error": optional(number(0)), "retrainings": whole(1)},
    **{"validation": optional(number()), "method": LINE, "space": LINE, "lr": optional(number(0)), "steps": whole(1)},
    **{"batch_size": whole(1), "date": optional(LINE), "s3pet": LINE},
    **{"task_hash": optional(LINE), "model_hash": optional(LINE), "sha256": HASH},
}
TYPES = {name: {"whole": "Int64", "number": "float"}.get(kind.column, "object") for name, kind in ENTRY.items()}


def list_structures(
    source: str | Path | None = None, *, revision: str | None = None, local_files_only: bool = False
) -> pd.DataFrame:
    """The structures of a registry.

    Args:
        source: a folder; ``"owner/name"``, a dataset on the hub; None: the registry that comes with s3pet.
        revision, local_files_only: branch, tag or commit of a dataset on the hub; never contact the hub.

    Returns:
        One row for each: ``name, model, task, metric``; ``budget`` (of the choice) and ``n_params``, of
        ``backbone_params``; ``score`` (test) and ``validation``, means over ``retrainings``, and ``error``, the
        standard error of the score (NaN for one retraining); ``method`` and ``space`` of the choice; ``lr, steps,
        batch_size``; ``date, s3pet`` (version), and hashes. Raises RunError for no registry, or a damaged one.
    """
    return pd.DataFrame([*_read(_folder(source, revision, local_files_only)).values()], columns=[*ENTRY]).astype(TYPES)


def load_structure(
    name: str,
    model: nn.Module | None = None,
    *,
    source: str | Path | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Structure:
    """A structure of a registry.

    Args:
        name: of :func:`list_structures`, which explains the other arguments, too.
        model: the backbone to check it against; it warns if the weights are not those that the score is of.

    Raises:
        RunError: no such registry or structure, or a file that is damaged or not the one of the index.
        StructureMismatchError: the file is no structure, or it does not fit the model.
    """
    NAME.check(RunError, name=name)
    folder = _folder(source, revision, local_files_only, f"{name}.json")
    if (entry := (entries := _read(folder)).get(name)) is None:
        raise RunError(f"registry {source or 'of s3pet'} has no structure {name!r}; {nearest(name, entries)}")
    with reading(path := folder / f"{name}.json", hint=f"It is in {INDEX}; copy or save it again"):
        if hashlib.sha256(read_bytes(path, 16 * MB)).hexdigest() != entry["sha256"]:
            raise ValueError(f"it is not the file that {INDEX} lists")
        structure = Structure.from_json(path, model)
        own = {"model": structure.model_id, **_own(structure)}
        if wrong := [field for field, value in own.items() if entry[field] != value]:
            raise ValueError(f"its {wrong[0]} is {own[wrong[0]]}, in {INDEX} {entry[wrong[0]]}")
    if model is not None and entry["model_hash"] not in (None, checksum := backbone_checksum(model)):
        what = f"checksum {entry['model_hash'][:12]}; this one has {checksum[:12]}"
        warnings.warn(f"the score of {name!r} is of weights of {entry['model']!r} with {what}", stacklevel=2)
    return structure


def save_structure(
    tuned: TunedModel | Sequence[TunedModel], path: str | Path, name: str, *, overwrite: bool = False
) -> Path:
    """Add the structure of a tuned model to a registry, with its test score; returns the path of its file.

    Args:
        tuned: a tuned model; or several of one structure, trained alike with different seeds, for a mean and an error.
        path, name: folder of the registry, made if it is not there, and name of the entry.
        overwrite: replace an entry of this name.

    Raises ExportError for no structure, no test score, or models that were not trained alike; RunError if the entry is
    there, or the folder cannot be written to.
    """
    listed = [tuned] if isinstance(tuned, TunedModel) else tuned
    many(TUNED_MODEL).check(ExportError, tuned=listed)
    structures = [one.structure for one in listed if one.structure is not None and "test" in one.metrics]
    if not listed or len(structures) < len(listed):
        raise ExportError(f"tuned must be structures with test scores (retrain(…, test=True)), got {[*listed]!s:.99}")
    first, structure, scores = listed[0], structures[0], [one.metrics["test"] for one in listed]
    pairs = zip(listed, structures, strict=True)
    alike = [decisive({**one.config, "seed": None, "candidates": [*own.names]}) for one, own in pairs]
    if unlike := sorted({change for config in alike for change in changed_settings(alike[0], config)}):
        raise ExportError(f"tuned must be trained alike, got other settings: {', '.join(unlike):.300}")
    if len({one.config["seed"] for one in listed}) < len(listed):
        raise ExportError("tuned must have different seeds, got the same one twice")
    heads = first.learner.objective.heads  # their weights are in the checksum of the config
    entry = {
        **{"name": name, "model": structure.model_id, "date": datetime.now(timezone.utc).date().isoformat()},
        **{key: first.config[key] for key in ("task", "task_hash", "lr", "steps", "batch_size")},
        **{"model_hash": None if heads else first.config["model_hash"], "metric": first.metrics["metric"]},
        **{"backbone_params": n_parameters(first.learner.backbone), "retrainings": len(scores)},
        **{"score": statistics.mean(scores), "validation": statistics.mean(o.metrics["validation"] for o in listed)},
        "error": statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None,
        **{"method": str(structure.origin.get("kind", "custom")), "s3pet": first.config["versions"]["s3pet"]},
    }
    return add(structure, entry, path, overwrite)


def add(structure: Structure, entry: Mapping[str, Any], path: str | Path, overwrite: bool = False) -> Path:
    """Write a structure and its entry; what the structure says itself is taken from it."""
    NAME.check(RunError, name=entry["name"])
    with claim(folder := path_of(path), "registry"):
        entries, file = _read(folder) if (folder / INDEX).exists() else {}, folder / f"{entry['name']}.json"
        refuse_finished(folder, file.name, f"structure {entry['name']!r}", overwrite)
        record = {**entry, **_own(structure), "sha256": "0" * 64}
        with reading(file, ExportError, "a structure that can be listed"):
            check_record(record, ENTRY, ENTRY)
        record["sha256"] = digest(structure.to_json(file))
        entries[entry["name"]] = {name: record[name] for name in ENTRY}
        write_json({"format": FORMAT, "version": VERSION, "structures": [*entries.values()]}, folder / INDEX)
    return file


def _own(structure: Structure) -> dict[str, Any]:
    return {"budget": structure.budget, "n_params": structure.n_params, "space": structure.space}


def _folder(source: Any, revision: Any, local_files_only: bool, *files: str) -> Path:
    """The folder of a registry; of one on the hub, the index and these files are downloaded."""
    optional(TEXT).check(RunError, revision=revision)
    FLAG.check(RunError, local_files_only=local_files_only)
    folder = embedded_path().parent / "registry" if source is None else path_of(source, name="source")
    if folder.is_dir():
        return folder
    if not _matching("", r"[\w-][\w.-]*/[\w-][\w.-]*").holds(source):
        raise RunError(f"source {folder} is no folder; pass one with {INDEX}, or a dataset on the hub as 'owner/name'")
    from huggingface_hub import snapshot_download

    how: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "local_files_only": local_files_only}
    with reading(source, what="a folder, nor a dataset that the hub gives", hint="Check its name and the connection"):
        return Path(snapshot_download(source, allow_patterns=[INDEX, *files], **how))


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a registry by name."""
    with reading(folder / INDEX, what=f"the index of a registry of version ≤ {VERSION}"):
        index = read_json(folder / INDEX, {"version": whole(1), "structures": RECORDS}, ("version", "structures"))
        if index.get("format") != FORMAT or index["version"] > VERSION:
            raise ValueError(f"format {index.get('format')!r} version {index.get('version')}")
        entries = {entry["name"]: entry for entry in index["structures"] if check_record(entry, ENTRY, ENTRY)}
        if len(entries) < len(index["structures"]):
            raise ValueError("a name is there twice")
        return entries
