"""Bad arguments of every public name: each is a clear error, before any work. The long form: ``make faults``."""

import inspect
import warnings

import fault_arguments
import fault_calls
import fault_files
import matplotlib.pyplot as plt
import pytest

import s3pet
from s3pet import plots, studies, widgets

NOT_CALLED = {  # no arguments, results of others, or objects that are made by the functions of the table
    *("S3PetError", "plots.Grid", "widgets.environment_report", "studies.compare", "studies.Bench", "studies.Study"),
}


@pytest.fixture(scope="module")
def g(tmp_path_factory):
    return fault_calls.good_objects(tmp_path_factory.mktemp("arguments"))


@pytest.fixture(scope="module")
def calls(g):
    return [*fault_calls.table(g)]


def test_every_public_name_is_called(calls):
    called = {call.name for call in calls}
    public = set(s3pet.__all__) | {f"plots.{name}" for name in plots.__all__}
    public |= {f"studies.{name}" for name in studies.__all__} | {f"widgets.{name}" for name in widgets.__all__}
    public = {name for name in public if name.partition(".")[2] not in s3pet.__all__}
    assert public - called - NOT_CALLED == set()


def test_every_argument_has_a_kind(calls):
    for call in calls:
        plain = [p for p in inspect.signature(call.function).parameters.values() if p.kind.name[:3] != "VAR"]
        assert {p.name for p in plain} - {*call.kinds} <= fault_calls.FREE, call.name


def test_numbers_of_numpy_are_welcome(calls):
    for name, run in fault_arguments.welcome(calls):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run()
            except Exception as error:
                pytest.fail(f"{name}: {type(error).__name__}: {error}")
        plt.close("all")


@pytest.mark.parametrize("part", ["table", "command line", "study files"])
def test_bad_arguments_are_clear_errors(g, calls, part):
    cases = {
        "table": lambda: fault_arguments.all_cases(g, calls),
        "command line": lambda: fault_files.command_cases(g),
        "study files": lambda: fault_files.study_cases(g),
    }
    judged = [(case, *fault_arguments.judge(case)) for case in cases[part]()]
    wrong = [
        f"{outcome}: {case.call}({case.argument}={case.value!r:.60}): {said[:200]}"
        for case, outcome, said in judged
        if outcome != "clear"
    ]
    assert not wrong, "\n".join(wrong)
    assert len(judged) > {"table": 1500, "command line": 80, "study files": 180}[part]
