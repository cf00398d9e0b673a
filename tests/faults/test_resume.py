"""Studies, comparisons and retrainings that are killed, or stopped by hand, go on from where they were."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from fault_cases import in_child
from tiny import tiny_t5
from toy import short_task, toy_rows, toy_tokenizer

import s3pet
from s3pet import trainer
from s3pet.searcher import Searcher
from s3pet.studies import Study
from s3pet.studies.population import Population
from s3pet.trainer import PetTrainer

STEPS = 40  # of the search and of each of two rows
ROOT = Path(__file__).resolve().parents[2]


def declare(folder, **changes):
    """A study of one search and two rows."""
    tiny_t5().save_pretrained(folder / "model")
    toy_tokenizer().save_pretrained(folder / "model")
    (folder / "task").mkdir()
    for split, n in (("train", 40), ("validation", 8), ("test", 8)):
        lines = "".join(json.dumps(row) + "\n" for row in toy_rows(n, n))
        (folder / "task" / f"{split}.jsonl").write_text(lines)
    content = {
        "backbone": str(folder / "model"),
        "tasks": {"one": {"path": str(folder / "task"), "label_words": ["no", "yes"]}},
        "budgets": [300],
        "seeds": 1,
        "retrain": {"steps": STEPS, "batch_size": 4, "evaluations": 4},
        "searches": {"ours": {"budget": 300, "steps": STEPS, "batch_size": 4}},
        "structures": {"lnfit": {"kind": "manual"}, "searched": {"kind": "searched", "search": "ours"}},
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(content | changes))
    return Study.load(folder / "s.yaml")


def noting(step, log, end, how):
    def noted(*args, **kwargs):
        with open(log, "ab") as file:
            file.write(b".")
        if log.stat().st_size == end:
            os.kill(os.getpid(), how)
        return step(*args, **kwargs)

    return noted


def counted(log, function, end=None, how=signal.SIGKILL):
    """Run a function in a child that notes every step in a file, and gets a signal at one of them; how it ended."""

    def run():
        trainer.PAUSE = 0.0  # checkpoints however long they take
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        for kind, name in ((Searcher, "advance"), (PetTrainer, "training_step"), (Population, "advance")):
            setattr(kind, name, noting(getattr(kind, name), log, end, how))
        try:
            function()
        except KeyboardInterrupt:
            return "interrupted"
        return "done"

    return in_child(run, wait=300)[0]


def values(study):
    columns = ["structure", "validation", "score", "n_params", "passes", "rows", "search_rows", "diverged"]
    return study.table()[columns].to_dict("records")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of a study that nobody stopped, and its steps."""
    folder = tmp_path_factory.mktemp("whole")
    study = declare(folder)
    assert counted(folder / "log", study.run) == "done"
    return values(study), (folder / "log").stat().st_size


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_goes_on_where_it_was_stopped(tmp_path, whole, how):
    """In its search, in its first row, in its second: each time at most the step is done again that was cut off."""
    study, log = declare(tmp_path), tmp_path / "log"
    rows, steps = whole
    assert steps == 3 * STEPS
    for n, end in enumerate((17, STEPS + 10, 2 * STEPS + 30)):
        ended = counted(log, study.run, end + n, how)
        assert ended == ("interrupted" if how == signal.SIGINT else "died of signal 9")
        assert len(study.table()) == max(0, n - 1)
    assert list((study.path / "unfinished").iterdir())
    assert counted(log, study.run) == "done"
    assert log.stat().st_size <= steps + 3
    assert values(study) == rows
    assert not (study.path / "unfinished").exists() and not list(study.path.rglob("checkpoint*"))


@pytest.mark.parametrize(("together", "end", "steps"), [(1, STEPS + 30, 2 * STEPS), (2, 30, STEPS)])
def test_a_comparison_goes_on_where_it_was_killed(tmp_path, together, end, steps):
    model, task = tiny_t5(), short_task()
    structures = {"lnfit": s3pet.manual_structure(model, "lnfit"), "bitfit": s3pet.manual_structure(model, "bitfit")}
    options = {"steps": STEPS, "batch_size": 4, "evaluations": 4, "progress": False, "together": together}

    def run(out):
        return lambda: s3pet.compare(model, task, structures, out=out, **options)

    assert counted(tmp_path / "a", run(tmp_path / "whole.jsonl")) == "done"
    out = tmp_path / "rows.jsonl"
    assert counted(tmp_path / "b", run(out), end) == "died of signal 9"
    assert counted(tmp_path / "b", run(out)) == "done"
    assert (tmp_path / "b").stat().st_size <= steps + 1
    tables = [run(path)() for path in (tmp_path / "whole.jsonl", out)]
    assert tables[0].drop(columns="seconds").equals(tables[1].drop(columns="seconds"))
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []


def started(study, jobs):
    """A study that runs in a process of its own, with its workers, once it has noted its first row."""
    command = [sys.executable, "-m", "s3pet", "study", "run", str(study.path.with_suffix(".yaml")), f"--jobs={jobs}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JOBLIB_TEMP_FOLDER": str(study.path.parent)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=heard, **quiet)
    rows, end = study.path / "rows.jsonl", time.monotonic() + 300
    while not (rows.exists() and rows.stat().st_size):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.1)
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_study_and_its_rows_stay(tmp_path, how):
    study = declare(tmp_path, seeds=40, structures={"random": {"kind": "random"}}, searches={})
    process, workers = started(study, 2)
    assert len(workers) >= 2
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as Ctrl-C in a terminal
    else:
        os.kill(process.pid, how)
    _, said = process.communicate(timeout=300)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert psutil.wait_procs(workers, timeout=120)[1] == [], "workers are left"
    if how == signal.SIGINT:
        assert b"Traceback" not in said and b"the same command continues" in said
    done = len(study.table())
    assert 0 < done < 40
    few = Study.load(study.path.with_suffix(".yaml"))
    object.__setattr__(few, "seeds", done + 1)
    assert len(few.run()) >= done + 1
