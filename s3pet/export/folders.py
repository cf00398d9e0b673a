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
def new_folder(path: str | Path, last: str, what: str, overwrite: bool, *old: str) -> Iterator[Path]:
    """A temporary folder inside ``path``; at the end its files are moved up, the one named ``last`` at last.

    Raises RunError if ``path`` holds ``last`` and ``overwrite`` is not set, or it cannot be a folder. Of the files that
    are only in the old folder, those that fit the patterns ``old`` are removed and the others stay.
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
        files = sorted((file.name for file in temporary.iterdir()), key=lambda name: name == last)
        for stale in {file for pattern in old for file in path.glob(pattern) if file.name not in files}:
            stale.unlink()
        for name in files:
            os.replace(temporary / name, path / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
