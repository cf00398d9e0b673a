"""Studies on a Dask cluster: two worker processes with folders of their own, which never see the study's."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from test_study import declare, write_task, write_toys
from tiny import tiny_t5

import s3pet
from s3pet.cli import main
from s3pet.errors import StudyError
from s3pet.studies import cluster as processes
from s3pet.studies import jobs
from s3pet.studies.study import Study

distributed = pytest.importorskip("distributed", reason="the optional extra s3pet[cluster] is not installed")
ROOT = Path(__file__).resolve().parents[2]
LNFIT = {"lnfit": {"kind": "manual"}}
ONE = {"tasks": {"one": "${TOY}/task1"}, "structures": LNFIT, "seeds": 1, "lr": {"pet": [1e-3]}}  # a single row
EVERY = {
    "seeds": 1,
    "lr": {"pet": [1e-3]},
    "structures": {
        "lnfit": {"kind": "manual", "seeds": 2},
        "random": {"kind": "random", "repeats": 2},
        "searched": {"kind": "searched", "search": "ours"},
        "others": {"kind": "average", "search": "ours", "over": "others"},
    },
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A backbone and two tasks."""
    return write_toys(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, toy):
    """A scheduler, and two worker processes, each with a folder and a copy of the toy of its own."""
    root = tmp_path_factory.mktemp("cluster")
    (root / "here").mkdir()
    options = {"n_workers": 0, "host": "127.0.0.1", "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, ExitStack() as started:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
        command += ["--nthreads=1", "--host=127.0.0.1", "--no-dashboard", "--memory-limit=0", "--death-timeout=60"]
        command += ["--local-directory=scratch", f"--preload={Path(__file__).with_name('cluster_worker.py')}"]
        for name in ("one", "two"):
            shutil.copytree(toy, root / name / "toy")
            own = {"ME": name, "ROOT": str(root), "TOY": str(root / name / "toy"), "PYTHONPATH": str(ROOT)}
            said = started.enter_context(open(root / f"{name}.txt", "wb"))
            process = subprocess.Popen(command, cwd=root / name, env=os.environ | own, stdout=said, stderr=said)
            started.callback(process.wait)
            started.callback(process.kill)
        with distributed.Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=300)
        cluster.root = root
        yield cluster


def logged(root, what):
    """Which worker noted this, once for each time."""
    return [line.split()[0] for line in (root / "log").read_text().splitlines() if line.split()[1] == what]


def plain(table):
    """A table without what is never the same twice."""
    kept = [name for name in table if not name.endswith("seconds") and "memory" not in name]
    return table[kept].sort_values("key", ignore_index=True)


def test_a_cluster_gives_the_table_of_one_process(cluster, toy, monkeypatch):
    root, address = cluster.root, cluster.scheduler_address
    monkeypatch.setenv("TOY", str(toy))
    study = Study.load(declare(root / "here" / "grid.yaml", **EVERY))
    alone = Study.load(declare(root / "alone.yaml", **EVERY))
    pd.testing.assert_frame_equal(plain(study.run(scheduler=address, tasks=["one"])), plain(alone.run(tasks=["one"])))
    assert logged(root, "touched") == [] and {*logged(root, "retrain")} == {"one", "two"}
    assert {path.name for path in study.path.iterdir()} == {"facts.json", "rows.jsonl", "rows.parquet", "searches"}
    for task in ("one", "two"):
        ours, theirs = (each.folder(task, "ours", 0) for each in (study, alone))
        assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
        ours, theirs = s3pet.load_run(ours), s3pet.load_run(theirs)
        pd.testing.assert_frame_equal(ours.gates, theirs.gates)
        assert ours.config == theirs.config and ours.structure().names == theirs.structure().names
    before = len(logged(root, "retrain")), len(logged(root, "search_structure"))
    assert main(["study", "run", str(root / "here" / "grid.yaml"), "--scheduler", address, "--tasks", "one"]) == 0
    assert before == (len(logged(root, "retrain")), len(logged(root, "search_structure")))


def test_a_worker_refuses_what_is_not_the_same_there(cluster, toy, tmp_path, monkeypatch):
    address = cluster.scheduler_address
    monkeypatch.setenv("TOY", str(tmp_path / "toy"))
    monkeypatch.setenv("ELSEWHERE", str(toy))
    shutil.copytree(toy, tmp_path / "toy")

    def refused(message, **changes):
        jobs.forget()
        study = Study.load(declare(tmp_path / "s.yaml", **ONE, **changes))
        with pytest.raises(StudyError, match=r"^worker tcp://127.0.0.1:\d+ on .*: " + message):
            study.run(scheduler=address)
        assert len(study.table()) == 0

    write_task(tmp_path / "toy" / "task1", 5)
    refused(r"it opens another backbone or task 'one' than the study \(the rows of the task\)")
    tiny_t5(seed=1).save_pretrained(tmp_path / "toy" / "model")
    refused(r"it opens another .* \(the weights of the backbone, the rows of the task\); put the same files on all")
    refused(r"the study needs \$\{ELSEWHERE\}, which the environment does not set", backbone="${ELSEWHERE}/model")
    versions = distributed.Client.get_versions
    own = {"client": {"packages": {"s3pet": "0.0.7"}}}
    monkeypatch.setattr(distributed.Client, "get_versions", lambda *a, **k: {**versions(*a, **k), **own})
    with pytest.raises(StudyError, match=r"the scheduler has s3pet .*, and this process 0\.0\.7; install the same"):
        Study.load(declare(tmp_path / "s.yaml", **ONE)).run(scheduler=address)


def test_a_worker_opens_again_what_was_changed(cluster, toy, tmp_path, monkeypatch):
    root, address = cluster.root, cluster.scheduler_address
    jobs.forget()
    monkeypatch.setenv("TOY", str(toy))
    study = Study.load(declare(tmp_path / "s.yaml", **ONE))
    study.run(scheduler=address)
    for place in (root / "one" / "toy", root / "two" / "toy", toy):
        write_task(place / "task1", 7)
    jobs.forget()
    assert len(study.run(scheduler=address)) == 2  # of the data before, and of those of now
    jobs.forget()


def test_no_scheduler_or_no_dask(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "CONNECT", 0.5)
    path = declare(tmp_path / "s.yaml")
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        for address in (f"tcp://127.0.0.1:{closed.getsockname()[1]}", "tcp://127.0.0.1", "carrier://pigeon", "nothing"):
            assert main(["study", "run", str(path), "--scheduler", address]) == 2
            said = capsys.readouterr().err
            assert f"no scheduler answers at '{address}'" in said and "tcp://host:8786" in said, said
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StudyError, match=r'needs Dask; install it: pip install "s3pet\[cluster\]"'):
        Study.load(path).run(scheduler="tcp://127.0.0.1:8786")
    with pytest.raises(StudyError, match=r"scheduler must be .*, got 8786"):
        Study.load(path).run(scheduler=8786)


def test_a_result_that_is_lost_with_its_worker_is_told_from_an_error():
    def result(timeout):
        raise TimeoutError

    for future in (SimpleNamespace(status="lost"), SimpleNamespace(status="finished", result=result)):
        assert processes._returned(future, jobs.run_row, None) is None  # a lost one has nothing to wait for
    with pytest.raises(TimeoutError):
        processes._returned(SimpleNamespace(status="error", result=result), jobs.run_row, None)


def test_workers_that_die_lose_no_finished_row(cluster, toy, tmp_path, monkeypatch):
    """The last test: no worker is left."""
    root, address = cluster.root, cluster.scheduler_address
    monkeypatch.setenv("TOY", str(toy))
    declared = ONE | {"structures": {"random": {"kind": "random"}}, "seeds": 4}
    study, alone = (Study.load(declare(path / "kill.yaml", **declared)) for path in (root / "here", tmp_path))
    (root / "dies-one").write_text("two")
    before, returned, lost = len(logged(root, "retrain")), processes._returned, ["the first result"]
    monkeypatch.setattr(processes, "_returned", lambda *job: returned(*job) if not lost else lost.clear())
    pd.testing.assert_frame_equal(plain(study.run(scheduler=address)), plain(alone.run()))
    begun = logged(root, "retrain")[before:]
    assert begun.count("one") == 1 and begun.count("two") == 5  # one died; only the lost result was made again
    more = Study.load(declare(root / "here" / "kill.yaml", **declared | {"seeds": 5}))
    (root / "dies-two").touch()
    cluster.scheduler.allowed_failures = 0
    with pytest.raises(
        StudyError, match=r"each worker that began 'random 300' on 'one', seed 4 died \(1\); it may need"
    ):
        more.run(scheduler=address)
    monkeypatch.setattr(processes, "WORKERLESS", 0)
    with pytest.raises(StudyError, match="the cluster has had no worker for 0 s; finished rows and searches are kept"):
        more.run(scheduler=address)
    assert len(more.table()) == 4 and logged(root, "touched") == []
    look = processes._workers
    monkeypatch.setattr(processes, "_workers", lambda *a: cluster.close() or look(*a))
    with pytest.raises(StudyError, match="the connection to the scheduler was lost; finished rows"):
        more.run(scheduler=address)
