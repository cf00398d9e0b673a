"""Folders that are written completely or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3pet.errors import RunError


@contextmanager
def new_folder(path: str | Path, last: str, what: str, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``path``; at the end its files are moved there, the one named ``last`` at last.

    Raises RunError if ``path`` holds ``last`` and ``overwrite`` is not set, or it cannot be a folder. Files that are
    only in the old folder stay, but for old weights (``*.safetensors`` and their index).
    """
    path = Path(path)
    if (path / last).exists() and not overwrite:
        raise RunError(f"{path} holds a {what}; choose another folder or pass overwrite=True")
    try:
        path.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=path))
    except OSError as error:
        raise RunError(f"{path} cannot be a folder for a {what}: {error}") from error
    try:
        yield temporary
        files = sorted(file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file())
        for old in path.glob("*.safetensors*"):
            if Path(old.name) not in files:
                old.unlink()
        for file in sorted(files, key=lambda file: file == Path(last)):
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / file, path / file)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
