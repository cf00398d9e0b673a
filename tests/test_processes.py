"""Several processes find what one finds, to rounding; what one of them does not survive ends the job, which goes on."""

import json
import os
import subprocess
import sys

import accelerate
import numpy as np
import pytest
import torch
from tiny import tiny_t5
from toy import toy_task

import s3pet
from s3pet.cli import main
from s3pet.errors import SearchError
from s3pet.objectives.processes import Processes, refuse_processes

JOB = str(os.path.join(os.path.dirname(__file__), "job_of_several.py"))
CASES = [
    {"what": "search"},
    {"what": "search", "order": "unrolled"},
    {"what": "search", "order": "unrolled_exact"},
    {"what": "search", "objective": {"loss": "lm"}},
    {"what": "search", "encoder": True, "batch_size": 1},  # fewer rows than processes
    {"what": "retrain"},
    {"what": "retrain", "encoder": True},
]


def job(folder, cases, count, expect=0):
    """Run cases in so many processes; what each found."""
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, JOB, json.dumps(cases), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode == 0) == (expect == 0), done.stderr[-2000:]
    if expect:
        return done.stderr
    return [json.loads((folder / f"process{rank}.json").read_text()) for rank in range(count)]


def same(one, other, within):
    """Whether two processes found the same, numbers within an error."""
    assert one[1] == other[1]
    for name, values in one[0].items():
        np.testing.assert_allclose(other[0][name], values, rtol=0, atol=within, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds."""
    return job(tmp_path_factory.mktemp("jobs") / "alone", CASES, 1)[0]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes find; of more, DDP takes the mean in single precision, at about 1e-8."""
    return job(tmp_path_factory.mktemp("jobs") / "together", CASES, 2)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: "-".join(map(str, CASES[n].values())))
def test_two_processes_give_what_one_gives(number, alone, together):
    """Of the same batches, in float64; α, weights and scores are the same on all to the last bit."""
    facts = alone[number][1]
    assert "error" not in facts, facts
    first = together[0][number]
    for other in together[1:]:
        facts_there = other[number][1] | {name: facts[name] for name in ("rows", "callbacks") if name in facts}
        same([first[0], facts_there], [other[number][0], facts_there], 0)
        assert other[number][1].get("callbacks", 0) == 0  # callbacks are called on the first process
    same(alone[number], first, 1e-9)


@pytest.mark.parametrize("what", ["search", "retrain"])
def test_a_killed_process_ends_the_job_which_goes_on_with_another_number(what, alone, tmp_path):
    message = job(tmp_path, [{"what": what, "kill": 8}], 2, expect=1)
    assert "Signal 9 (SIGKILL)" in message
    assert any((tmp_path / "0" / "checkpoint").iterdir())
    (found, facts), whole = job(tmp_path, [{"what": what}], 1)[0][0], alone[CASES.index({"what": what})]
    calls = facts.pop("callbacks", 0)
    same([whole[0], {name: fact for name, fact in whole[1].items() if name != "callbacks"}], [found, facts], 1e-9)
    assert calls == 0 or calls < whole[1]["callbacks"]  # it did not start anew


def test_one_process_of_several_writes_and_errors_reach_all(tmp_path):
    """A finished run is in the folder: every process says so, and none waits for another."""
    job(tmp_path, [{"what": "search"}], 1)
    found = job(tmp_path, [{"what": "search"}], 2)
    assert all("RunError" in one[0][1]["error"] and "holds a finished" in one[0][1]["error"] for one in found)


def test_shares_of_a_batch_add_up():
    everyone = [Processes(torch.device("cpu")) for _ in range(3)]
    for rank, own in enumerate(everyone):
        own.rank, own.count = rank, 3
    for rows in (list(range(7)), [1, 2], [5]):
        shares = [own.share(rows) for own in everyone]
        assert sum(share.weight for share in shares) == pytest.approx(1)
        assert sorted(row for share in shares if share.weight for row in share.rows) == sorted(rows)
        assert all(share.rows and share.n_rows == len(rows) for share in shares)
    words = [own.share([1, 2, 30], terms=sum).weight for own in everyone]
    assert words == pytest.approx([1 / 33, 2 / 33, 30 / 33])


def test_what_is_not_parallel_refuses_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SearchError, match=r"is work for one process, and WORLD_SIZE says"):
        refuse_processes("this")
    model = tiny_t5()
    with pytest.raises(SearchError, match="work for one process"):
        s3pet.compare(model, toy_task(), {"head": "head"})


def test_processes_that_cannot_be_joined_are_an_error(monkeypatch):
    def state(cpu):
        raise ValueError("no address")

    model = tiny_t5()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", state)
    with pytest.raises(SearchError, match="Start them with torchrun or accelerate launch"):
        s3pet.search(model, toy_task(), s3pet.make_space(model, "lora"), budget="1%", steps=1, progress=False)


def test_the_command_line_runs_in_several_processes_and_reports_once(tmp_path, monkeypatch):
    options = ["--task", "pocket/sentiment", "--budget", "0.1%", "--steps", "2", "--batch-size", "4", "--quiet"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "s3pet", "search", *options, "--dtype", "bfloat16", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    assert done.stdout.count("The run is saved in") == 1
    run = s3pet.load_run(tmp_path / "run")
    assert run.metrics["processes"] == 2 and run.cost.rows == 16
    monkeypatch.setenv("WORLD_SIZE", "2")
    for refused in (["demo", "--out", str(tmp_path / "demo")], ["space"]):
        assert main(refused) == 2
    assert not (tmp_path / "demo").exists()
