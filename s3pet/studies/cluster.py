"""The jobs of a study in processes: on this machine, or on a Dask cluster whose machines share no disk.

On a cluster a job carries what it needs and returns its result. The declaration, the row and, for a structure made
from searches, the files of their run folders go to a worker, which opens them in a temporary folder; a row, or the
files of a finished search, come back. Only the study's own process reads and writes the study's folder. If a worker
dies, Dask gives its job to another one, which begins it anew; what has come back stays.

Each worker process runs one job at a time (random states are global), on as many threads as the worker has. It opens
backbone and tasks by itself, in its own environment, and refuses a job unless they are those of the study's process.
Dask sends its messages as pickles, so whoever can reach a scheduler can run code on its machines.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm.auto import tqdm

from s3pet.errors import S3PetError, StudyError
from s3pet.files.states import changed_settings
from s3pet.files.writing import new_folder, saved_files
from s3pet.result import CONFIG, FINISHED
from s3pet.studies.jobs import each, forget, hashes, open_facts, run_search

CONNECT, WORKERLESS = 10, 120  # seconds to wait for a scheduler, and for a worker while there is none
LOOK = 1.0  # seconds between looks at which workers there are
KEPT = "finished rows and searches are kept, and the same command continues"
LOST = f"the connection to the scheduler was lost; {KEPT}"
_ALONE = threading.Lock()

Each = Callable[[Any, Sequence[tuple], str], Iterator[Any]]


@contextmanager
def processes(jobs: int | None, scheduler: str | None) -> Iterator[Each]:
    """Give a function that calls a job with each tuple of arguments and yields results as they come.

    Args:
        jobs: how many jobs at a time; None: one here, and one for each worker of a cluster.
        scheduler: address of a Dask scheduler; None: processes of this machine.

    Raises:
        StudyError: Dask is not installed, or no scheduler answers.
    """
    if scheduler is None:
        yield partial(each, jobs=jobs or 1)
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise StudyError('a study on a cluster needs Dask; install it: pip install "s3pet[cluster]"') from error
    try:
        client = Client(scheduler, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        how = "expected the address that dask scheduler prints, such as tcp://host:8786"
        raise StudyError(f"no scheduler answers at {scheduler!r} ({error}); {how}") from error
    log, level = logging.getLogger("distributed.client"), logging.getLogger("distributed.client").level
    log.setLevel(logging.CRITICAL)  # errors are raised here
    try:
        with client:
            yield partial(_each_on_cluster, client, jobs)
    finally:
        log.setLevel(level)


def _each_on_cluster(
    client: Any, jobs: int | None, function: Any, arguments: Sequence[tuple], what: str
) -> Iterator[Any]:
    results = _results(client, jobs or len(arguments), function, arguments)
    yield from tqdm(results, total=len(arguments), desc=what, disable=not arguments)


def _results(client: Any, jobs: int, function: Any, arguments: Sequence[tuple]) -> Iterator[Any]:
    waiting, running, ended = [*reversed(arguments)], {}, SimpleQueue()  # type: ignore[var-annotated]
    seen, known = time.monotonic(), set()  # type: ignore[var-annotated]
    try:
        while waiting or running:
            workers = _workers(client, known)
            busy = {worker for _, _, worker in running.values()}
            for worker in [worker for worker in workers if worker not in busy][: max(0, jobs - len(running))]:
                if waiting:
                    job = waiting.pop()
                    future = _submit(client, worker, function, *job)
                    running[future.key] = (future, job, worker)
                    future.add_done_callback(ended.put)
            seen = time.monotonic() if workers else seen
            if time.monotonic() - seen > WORKERLESS:
                raise StudyError(f"the cluster has had no worker for {WORKERLESS} s; {KEPT}")
            futures = []
            try:
                futures.append(ended.get(timeout=LOOK))
                while True:
                    futures.append(ended.get_nowait())
            except Empty:
                pass
            for future in sorted(futures, key=lambda future: future.status != "finished"):  # rows before an error
                _, job, _ = running.pop(future.key)
                if (returned := _returned(future, function, *job)) is None:
                    waiting.append(job)
                else:
                    yield returned
    finally:
        client.cancel([future for future, _, _ in running.values()], force=True)


def _workers(client: Any, known: set[str]) -> list[str]:
    """Addresses of the workers that the cluster has now; new ones must have the version of s3pet of this process."""
    try:
        workers = {*client.nthreads()}
        new = {} if workers <= known else client.get_versions(packages=["s3pet"])
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise StudyError(LOST) from error
    for name, about in {"scheduler": new.get("scheduler"), **new.get("workers", {})}.items():
        if about and (other := about["packages"].get("s3pet")) != (own := new["client"]["packages"].get("s3pet")):
            where = name if name == "scheduler" else f"worker {name}"
            raise StudyError(f"the {where} has s3pet {other}, and this process {own}; install the same version there")
    known |= workers
    return sorted(workers)


def _submit(client: Any, worker: str, function: Any, study: Any, *arguments: Any) -> Any:
    """Send a job to a worker; if that is gone, Dask chooses another one."""
    from dask import config

    where = arguments if function is run_search else (arguments[0]["task"],)
    needs = [] if function is run_search else study.needs(arguments[0])
    runs = {need: pack(study.folder(*need)) for need in dict.fromkeys(needs)}
    sent = (study.facts, replace(study, path="", part=None), where[0], runs, function, arguments)
    with config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):  # the runs are in it on purpose
        return client.submit(on_worker, *sent, workers=[worker], allow_other_workers=True, pure=False)


def _returned(future: Any, function: Any, study: Any, *arguments: Any) -> Any:
    """What a job returned; the files of a search are written into the study's folder.

    None if its worker died after it had finished, and before this came here: it must be done again.
    """
    from distributed import KilledWorker

    if future.status == "cancelled":
        raise StudyError(LOST)
    if future.status == "lost":
        return None
    try:
        result, files = future.result(timeout=WORKERLESS)
    except KilledWorker as error:
        row = {} if function is run_search else arguments[0]
        what = [row[n] for n in ("structure", "task", "seed")] if row else [f"search {arguments[1]}", *arguments[::2]]
        name, how = "{!r} on {!r}, seed {}".format(*what), "it may need more memory than they have, see their logs"
        raise StudyError(f"each worker that began {name} died ({error.allowed_failures + 1}); {how}; {KEPT}") from error
    except (TimeoutError, asyncio.TimeoutError):
        if future.status == "error":  # the job's own
            raise
        return None
    except ImportError as error:
        raise StudyError(f"a worker lacks a package: {error}; all need the same packages as this process") from error
    if function is run_search:
        unpack(files, study.folder(*arguments))
    return result


def on_worker(
    facts: Mapping[str, Any],
    study: Any,
    task: str,
    runs: Mapping[tuple[str, str, int], Mapping[str, bytes]],
    function: Any,
    arguments: Sequence[Any],
) -> tuple[Any, dict[str, bytes]]:
    """Run one job in a temporary folder of this machine.

    Args:
        facts: :attr:`Study.facts` of the study's process.
        study, task: the declaration, and the task that the job opens.
        runs: (task, search, seed) → files of the finished searches that the job reads.
        function, arguments: the job.

    Returns:
        What it returned, and the files of its run folder if it is a search.

    Raises:
        StudyError: it failed, or backbone or task differ here; the message names the machine.
    """
    from distributed import get_worker

    worker = get_worker()
    try:
        with _ALONE, TemporaryDirectory(dir=worker.local_directory) as folder:
            torch.set_num_threads(worker.state.nthreads)
            study = replace(study, path=Path(folder))
            for need, files in runs.items():
                unpack(files, study.folder(*need))
            _check_same(study, task, facts)
            result = function(study, *arguments)
            return result, pack(study.folder(*arguments)) if function is run_search else {}
    except S3PetError as error:
        raise StudyError(f"worker {worker.address} on {socket.gethostname()}: {error}") from error


def _check_same(study: Any, task: str, facts: Mapping[str, Any]) -> None:
    """Raise StudyError if this process opens another backbone or other rows than the study's process."""
    for _ in range(2):
        differ = changed_settings(hashes(facts, task), hashes(open_facts(study, [task]), task))
        if not differ:
            return
        forget()  # the files may have changed since this process opened them
    how = "put the same files on all machines"
    raise StudyError(f"it opens another backbone or task {task!r} than the study ({', '.join(differ)}); {how}")


def pack(folder: Path) -> dict[str, bytes]:
    """The files of a saved run by name; raises RunError if it is damaged."""
    return {name: path.read_bytes() for name, path in saved_files(folder, FINISHED, (CONFIG,)).items()}


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of a run, all or none; raises RunError."""
    with new_folder(folder, CONFIG, FINISHED, overwrite=True) as new:
        for name, content in files.items():
            (new / Path(name).name).write_bytes(content)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of an earlier start on this machine
