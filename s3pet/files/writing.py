"""Write files and folders that are there completely or not at all, and keep a folder for one process.

A file is written beside its place, synced, and moved there. The files of a folder are written to ``.next`` inside it;
the manifest ``files.json``, written last, lists their SHA-256 and makes them count. From then on the folder *is* what
the manifest says, wherever its files lie, and they are moved up. So a kill at any moment leaves the old files or the
new ones, never some of both, and the next one that writes there tidies up. Other files in the folder stay.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s3pet.errors import RunError, S3PetError
from s3pet.files.kinds import FLAG, TEXT, TEXTS, mapping
from s3pet.files.reading import path_of, read_json, reading, regular

try:
    import fcntl
except ImportError:  # Windows has no flock: two processes are not kept apart there
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import pandas as pd
    import torch

MANIFEST, NEXT, LOCK = "files.json", ".next", ".lock"
_MANIFEST = {"files": mapping(TEXT), "old": TEXTS, "foreign": FLAG}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written inside; any failure to write is a RunError."""
    with _refused(f"{path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turn any failure to write into a RunError that begins with ``what``."""
    try:
        yield
    except S3PetError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise RunError(f"{what}: {getattr(error, 'strerror', None) or error}") from error
        raise


@contextmanager
def _in_one_move(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that is synced and takes its place, or is removed."""
    temporary = path.with_name(path.name + ".part")
    with writing(path):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 in one move."""
    with _in_one_move(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Write JSON in one move; numbers that are not finite become null."""
    write_text(json_text(record), path)


def json_text(record: Mapping[str, Any]) -> str:
    """What :func:`write_json` writes."""
    return json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """A record as JSON can hold it: numbers that are not finite are None."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a ``hash`` of itself, by which :func:`check_signature` sees a later change."""
    plain = json.loads(json.dumps(finite(record), allow_nan=False))
    return {**plain, "hash": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]}


def check_signature(record: Mapping[str, Any]) -> None:
    """Raise ValueError if the record has a ``hash`` of something else; those of earlier versions have none."""
    if "hash" in record and signed({k: v for k, v in record.items() if k != "hash"})["hash"] != record["hash"]:
        raise ValueError("it was changed after it was written; remove its hash if you changed it on purpose")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write parquet in one move."""
    with _in_one_move(path) as part:
        table.to_parquet(part, index=False)


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors in one move."""
    from safetensors.torch import save_file

    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _in_one_move(path) as part:
        save_file(copies, part, metadata=dict(metadata) if metadata else None)


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with regular(path, 2**40) as file:
        value = hashlib.sha256()
        while part := file.read(2**20):
            value.update(part)
        return value.hexdigest()


@contextmanager
def new_folder(
    path: str | Path, last: str, what: str, overwrite: bool, *, foreign: Collection[str] | None = None
) -> Iterator[Path]:
    """An empty folder to write to; at the end its files become those of ``path``, all at once.

    Args:
        path, last, what: the folder, the file by which others recognise what it holds, and what that is.
        overwrite: replace what is there; the old files that the new ones lack are removed, others stay.
        foreign: for a folder that other libraries read, patterns of its old files: it gets no manifest, and while it
            is replaced it lacks ``last``, so that nobody reads a mixture.

    Raises:
        RunError: ``path`` holds ``last`` and ``overwrite`` is not set, is in use by another process, or it cannot be
            written to.
    """
    path = path_of(path)
    refuse_finished(path, last, what, overwrite)
    problem = f"{path} cannot be a folder for a {what}"
    with claim(path, what):
        finish_move(path)
        stage = path / NEXT
        with _refused(problem):
            stage.mkdir()
        try:
            yield stage
            with _refused(problem):
                old = sorted({file.name for pattern in foreign or () for file in path.glob(pattern)})
                seal(stage, last, old=old, foreign=foreign is not None)
                finish_move(path)
        finally:
            if not os.path.exists(stage / MANIFEST):
                shutil.rmtree(stage, ignore_errors=True)


def seal(folder: Path, last: str = "", *, old: Sequence[str] = (), foreign: bool = False) -> None:
    """Write the manifest of the files in a folder, which says that they are complete; ``last`` stands last in it."""
    names = sorted((file.name for file in folder.iterdir() if file.is_file()), key=lambda name: (name == last, name))
    for name in names:
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
    files = {name: digest(folder / name) for name in names}
    write_json({"files": files, "old": [*old], "foreign": foreign}, folder / MANIFEST)


def refuse_finished(path: Path, last: str, what: str, overwrite: bool) -> None:
    """Raise RunError if a folder holds something that may not be replaced."""
    FLAG.check(RunError, overwrite=overwrite)
    if not overwrite and any(os.path.exists(place / last) for place in (path, *_complete(path))):
        raise RunError(f"{path} holds a {what}; choose another folder or pass overwrite=True")


@contextmanager
def destination(out: str | Path | None, last: str, what: str, overwrite: bool) -> Iterator[Path | None]:
    """The folder for the result of long work, refused before it or kept for it (:func:`claim`); None for None."""
    if out is None:
        yield None
        return
    refuse_finished(path_of(out, name="out"), last, what, overwrite)
    with claim(out, what) as folder:
        yield folder


@contextmanager
def carried(name: str, value: Callable[[], Any]) -> Iterator[None]:
    """Put a result on any error that happens inside, as the attribute ``name``, so that the work is kept."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):
            setattr(error, name, value())
        raise


def _complete(path: Path) -> list[Path]:
    """The folder with new files if they are complete, and must only be moved."""
    return [path / NEXT] if os.path.exists(path / NEXT / MANIFEST) else []


def finish_move(path: Path) -> None:
    """Move up what another process wrote completely before it was killed, or remove what it had not finished."""
    stage = path / NEXT
    if os.path.exists(stage / MANIFEST):
        manifest = _read_manifest(stage / MANIFEST)
        files, old = manifest["files"], manifest["old"]
        with suppress(RunError):  # there is none, or it is damaged
            old = [*old, *_read_manifest(path / MANIFEST)["files"]]
        last = [*files][-1]
        if manifest["foreign"]:  # its readers know no manifest: from here on they find nothing, then the new files
            (path / MANIFEST).unlink(missing_ok=True)
            if os.path.exists(stage / last):
                (path / last).unlink(missing_ok=True)
        for name in {*old} - {*files}:
            (path / name).unlink(missing_ok=True)
        for name in files:
            if os.path.exists(stage / name):
                os.replace(stage / name, path / name)
        for folder in [entry for entry in stage.iterdir() if entry.is_dir()]:  # such as templates of a tokenizer
            shutil.rmtree(path / folder.name, ignore_errors=True)
            os.replace(folder, path / folder.name)
        if not manifest["foreign"]:
            os.replace(stage / MANIFEST, path / MANIFEST)
    shutil.rmtree(stage, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    with reading(path, RunError, "the list of files of a saved folder"):
        manifest = read_json(path, _MANIFEST, _MANIFEST)
        if wrong := [name for name in (*manifest["files"], *manifest["old"]) if Path(name).name != name]:
            raise ValueError(f"{wrong[0]!r} is no name of a file")
        return manifest


def saved_files(path: str | Path, what: str, required: Collection[str], hint: str = "") -> dict[str, Path]:
    """Where each file of a saved folder lies, all of them checked against its manifest; reading changes nothing.

    A folder of an earlier version has no manifest, and its files are taken as they are.

    Raises:
        RunError: a required file is missing, or one is not the file that was saved with the others.
    """
    path = path_of(path)
    moved = _complete(path)
    manifest = next((place / MANIFEST for place in (*moved, path) if os.path.exists(place / MANIFEST)), None)
    with reading(path, hint=hint):
        if manifest is None:
            digests = {file.name: "" for file in path.iterdir()} if path.is_dir() else {}
        else:
            digests = _read_manifest(manifest)["files"]
    places = {
        name: next((p for p in (*moved, path) if os.path.exists(p / name)), None) for name in (*digests, *required)
    }
    if missing := ", ".join(name for name, place in places.items() if place is None):
        raise RunError(f"{path} holds no {what}: {missing} missing. {hint}".strip())
    files = {name: place / name for name, place in places.items() if place is not None}
    for name, expected in digests.items() if manifest is not None else ():
        with reading(path / name, hint=hint):
            if digest(files[name]) != expected:
                raise ValueError(
                    f"it is not the file that was saved with this {what}, but damaged, changed, or of another one; "
                    f"copy the folder again, or remove {MANIFEST} if you changed it on purpose"
                )
    return files


@contextmanager
def claim(path: str | Path, what: str, lock: str = LOCK) -> Iterator[Path]:
    """Make a folder and keep it for this process while it works there; the lock of a process that died is free.

    What can be tried is tried here, before the work: that the folder can be made and written to. The same thread may
    claim it again inside.

    Raises:
        RunError: it cannot be a folder, cannot be written to, or another process works there; its number is named.
    """
    path = Path(path)
    problem = f"{path} cannot be a folder for a {what}"
    key = (os.getpid(), threading.get_ident(), str(path.absolute() / lock))
    if key in _CLAIMED:
        yield path
        return
    with _refused(problem):
        new = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
        path.mkdir(parents=True, exist_ok=True)
        file = None
        while file is None:
            file = _locked(path / lock, path)
    _CLAIMED.add(key)
    try:
        with _refused(problem):  # a full disk has no room for a page
            file.write(f"{os.getpid()} on {socket.gethostname()}\n".ljust(4096).encode())
            os.fsync(file.fileno())
        yield path
    finally:
        _CLAIMED.discard(key)
        if key[0] == os.getpid():
            with suppress(OSError):
                (path / lock).unlink()
            for folder in new:
                with suppress(OSError):
                    folder.rmdir()  # only what is empty
        file.close()


_CLAIMED: set[tuple[int, int, str]] = set()  # process, thread and lock


def _locked(lock: Path, path: Path) -> Any:
    """The open lock file; None if its owner removed it meanwhile."""
    with ExitStack() as opened:
        file = opened.enter_context(open(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666), "rb+", buffering=0))
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back when its process ends, however it ends
        except BlockingIOError as error:
            owner = file.read(200).decode(errors="replace").strip() or "unknown"
            raise RunError(f"{path} is in use by process {owner}; wait for it or choose another folder") from error
        if os.path.exists(lock) and os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
            file.truncate(0)
            opened.pop_all()  # it stays open
            return file
    return None
