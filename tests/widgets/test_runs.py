"""Runs are found, named, and cut as their results would be."""

import pandas as pd
import pytest
from artists import ONE, RUNS, SEEDS

import s3pet
from s3pet.errors import RunError
from s3pet.widgets import compare, explore
from s3pet.widgets.runs import SavedSearch, find_runs


def test_runs_are_found_in_folders_lists_mappings_and_results():
    run = s3pet.load_run(ONE)
    assert [entry.name for entry in find_runs(ONE)] == ["seed0"]
    assert [entry.name for entry in find_runs({"a": run, "b": SEEDS[:2]})] == ["a", "b", "b"]
    entries = find_runs(f"{RUNS}/pocket-t5")
    assert len(entries) == 32 and len({entry.name for entry in entries}) == 32
    assert entries[0].value("budget").isdigit() and entries[0].value("nothing") == "—"
    assert entries[0].open() is entries[0].open(), "the files are read once"


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("nowhere", r"nowhere does not exist.*Expected a run folder.*search\("),
        (7, "int 7 is no run.*Expected a run folder"),
        ([], "the list of runs is empty"),
        (None, "NoneType None is no run"),
        ([s3pet.__file__], "holds no finished run"),
    ],
)
def test_what_is_no_run_raises(runs, message):
    for widget in (explore, compare):
        with pytest.raises(RunError, match=message):
            widget(runs)


def test_a_folder_without_finished_runs_raises(tmp_path):
    for name in ("", "gates.parquet"):
        (tmp_path / name).touch()
        with pytest.raises(RunError, match=r"holds no finished run"):
            explore(tmp_path)


def test_a_saved_search_is_cut_as_its_result_is():
    run = s3pet.load_run(ONE)
    search = SavedSearch({"one": run}, run)
    for step, budget in ((None, 2703), (0, 700), (100, 1500), (None, 128)):
        pd.testing.assert_frame_equal(search.gates(step, budget), run.gates_at(step, budget))
        names = set(search.structure(step, budget).names)
        table = run.gates_at(step, budget)
        assert names == {name for name, chosen in zip(search.names, table["chosen"], strict=True) if chosen}
    assert search.structure(None, 700) == run.structure(700)
    choices = search.choices(700)["one"]
    assert set(choices.index[choices]) == set(run.structure(700).names)
