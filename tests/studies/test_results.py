"""What is written about the studies is what their rows say."""

import importlib.util
import re
from pathlib import Path

import pandas as pd
import pytest

RUNS = Path(__file__).resolve().parents[2] / "data" / "runs"
NUMBER = re.compile(r"[+-]?\d+\.\d+")


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", RUNS / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(ours, theirs):
    """Equal but for the last digits: intervals are drawn at random, by versions of libraries that may differ."""
    assert NUMBER.sub("#", ours).splitlines() == NUMBER.sub("#", theirs).splitlines()
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (ours, theirs)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.006)


def test_the_tables_of_the_results_are_those_of_the_rows(results):
    text = (RUNS / "RESULTS.md").read_text(encoding="utf-8")
    written = [block[2] for block in results.BLOCK.finditer(text)]
    assert sorted(written) == sorted(results.TABLES), "a table is not shown, or shown twice"
    assert text.count("<!-- end -->") == len(written)
    same(text, results.filled(text))


def test_a_table_that_is_not_of_the_rows_is_noticed(results):
    text = (RUNS / "RESULTS.md").read_text(encoding="utf-8")
    cell = re.search(r"\| random \| (0\.\d+) ±", text)
    wrong = text[: cell.start(1)] + "0.999" + text[cell.end(1) :]
    assert results.filled(wrong) == results.filled(text) != wrong
    with pytest.raises(AssertionError):
        same(wrong, results.filled(wrong))


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in RUNS.glob("*/rows.parquet")))
def test_chosen_rows_are_a_part_of_every_row(folder):
    rows, every = (pd.read_parquet(RUNS / folder / f"{name}.parquet") for name in ("rows", "every_rate"))
    columns = [name for name in every.columns if name in rows.columns]
    assert len(columns) == len(every.columns) and len(rows) <= len(every)
    both = rows[columns].merge(every[columns], how="left", on="key", suffixes=("", " again"), validate="one_to_one")
    for name in ("score", "validation", "lr", "seed", "structure"):
        assert both[name].equals(both[f"{name} again"]), name
