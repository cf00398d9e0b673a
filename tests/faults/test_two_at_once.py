"""Two processes on one folder: the second is refused before its work; the lock of a dead one is free."""

import os
import signal

import pytest
from fault_kinds import SEARCH, model_and_space
from toy import short_task

import s3pet
from s3pet.errors import RunError
from s3pet.files.writing import claim, new_folder
from s3pet.studies import Study


def forked(function):
    """A child that runs a function and then waits to be killed; its number, once the function was called."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        with function():
            os.write(sender, b"x")
            signal.pause()
        os._exit(0)
    assert os.read(receiver, 1) == b"x"
    os.close(receiver)
    os.close(sender)
    return child


def killed(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_second_search_is_refused_and_a_dead_ones_lock_is_taken_over(tmp_path):
    model, space = model_and_space()
    passed = []
    options = {
        **SEARCH,
        "steps": 2,
        "out": tmp_path / "run",
        "callbacks": [lambda searcher: passed.append(searcher.step)],
    }
    child = forked(lambda: claim(tmp_path / "run", "finished run"))
    try:
        with pytest.raises(RunError, match=rf"is in use by process {child} on "):
            s3pet.search(model, short_task(), space, **options)
        assert passed == []
    finally:
        killed(child)
    s3pet.search(model, short_task(), space, **options)
    assert passed == [1, 2] and ".lock" not in os.listdir(tmp_path / "run")


def test_retraining_saving_and_comparing_respect_the_lock(tmp_path):
    model, space = model_and_space()
    child = forked(lambda: claim(tmp_path / "tuned", "tuned model"))
    try:
        with pytest.raises(RunError, match=f"process {child}"):
            s3pet.retrain(model, short_task(), "head", out=tmp_path / "tuned", steps=1)
        with pytest.raises(RunError, match=f"process {child}"), new_folder(tmp_path / "tuned", "x", "thing", True):
            pass
    finally:
        killed(child)
    child = forked(lambda: claim(tmp_path, "table of rows", ".rows.jsonl.lock"))
    try:
        with pytest.raises(RunError, match=f"process {child}"):
            s3pet.compare(model, short_task(), {"head": "head"}, out=tmp_path / "rows.jsonl", progress=False, steps=1)
    finally:
        killed(child)


def test_a_study_is_run_by_one_process(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "backbone: pocket-t5\ntasks: {a: pocket/number}\nstructures: {full: {kind: reference}}\n"
    )
    child = forked(lambda: claim(tmp_path / "s", "study"))
    try:
        with pytest.raises(RunError, match=f"process {child}"):
            Study.load(tmp_path / "s.yaml").run()
    finally:
        killed(child)


def test_a_worker_ends_with_its_study(tmp_path):
    """The child stands for a study, the grandchild for its worker."""
    from s3pet.studies import jobs

    receiver, sender = os.pipe()
    study = os.fork()
    if not study:
        if not os.fork():
            jobs._on_one_thread(os.write, (sender, b"x"), os.getppid())
            signal.pause()
        signal.pause()
    os.close(sender)
    assert os.read(receiver, 1) == b"x"
    killed(study)
    assert os.read(receiver, 1) == b"", "the worker still holds its end of the pipe"
    os.close(receiver)


def test_a_folder_that_was_only_tried_is_gone(tmp_path):
    folder = tmp_path / "a" / "b"
    with claim(folder, "finished run"):
        assert (folder / ".lock").exists()
        with claim(folder, "finished run"):  # the same thread may
            assert (folder / ".lock").exists()
    assert os.listdir(tmp_path) == []
