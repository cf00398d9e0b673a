"""Preloaded by the workers of test_cluster.py: notes what one runs, keeps it off the study's folder, and ends it.

The environment gives ME, a name, and ROOT, a folder. Lines ``name what`` go to ROOT/log; nothing in ROOT/here may be
opened. A file ROOT/dies-NAME makes the worker of that name kill itself when it begins a retraining; if the file names
another worker, after that one has finished a retraining that began later.
"""

import os
import signal
import sys
import time
from pathlib import Path

from s3pet.studies import jobs

ME, ROOT = os.environ["ME"], Path(os.environ["ROOT"])


def note(what):
    """Write one line, whole also beside other processes."""
    with open(ROOT / "log", "ab", buffering=0) as file:
        file.write(f"{ME} {what}\n".encode())


def forbid(event, arguments):
    """For a worker, the study's folder is not there."""
    if any(isinstance(part, (str, os.PathLike)) and str(part).startswith(str(ROOT / "here")) for part in arguments):
        note(f"touched {event}")
        raise PermissionError(f"{event} {arguments}")


def noted(name, function):
    """The function with a line before and after it."""

    def run(*arguments, **options):
        note(name)
        dies = ROOT / f"dies-{ME}"
        if name == "retrain" and dies.exists():
            after, begun = dies.read_text(), (ROOT / "log").read_text().count("ended")
            while after and (ROOT / "log").read_text().count("ended") == begun:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        note("ended")
        return result

    return run


if not hasattr(jobs, "NOTED"):  # Dask loads this file several times
    jobs.NOTED = True
    for name in ("retrain", "search_structure"):
        setattr(jobs, name, noted(name, getattr(jobs, name)))
    sys.addaudithook(forbid)
