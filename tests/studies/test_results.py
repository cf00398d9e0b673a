"""What is written about the studies is what their rows say."""

import importlib.util
import re
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

RUNS = Path(__file__).resolve().parents[2] / "data" / "runs"
DECIMAL = re.compile(r"[+-]?\d+\.\d+")


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", RUNS / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(ours, theirs):
    """Equal but for the last digits: permutations are drawn at random, by versions of libraries that may differ."""
    assert DECIMAL.sub("#", ours).splitlines() == DECIMAL.sub("#", theirs).splitlines()
    numbers = [[float(number) for number in DECIMAL.findall(text)] for text in (ours, theirs)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.006)


def test_tables_and_numbers_are_those_of_the_rows(results):
    pages = [path.read_text(encoding="utf-8") for path in results.PAGES]
    assert [block[2] for block in results.TABLE.finditer("".join(pages))] == [*results.QUESTIONS]
    for page in pages:
        assert page.count("<!-- end -->") == len(results.TABLE.findall(page))
        assert page.count("<!--/-->") == page.count("<!--=") == len(results.NUMBER.findall(page)) > 0
        same(page, results.filled(page))


def test_a_changed_number_is_noticed_in_a_table_and_in_the_text(results):
    page = results.PAGES[0].read_text(encoding="utf-8")
    for number in (r"\| mean \| (0\.\d+)", r"<!--=[^>]*-->\+(0\.\d+)<!--/-->"):
        place = re.search(number, page)
        wrong = page[: place.start(1)] + "0.999" + page[place.end(1) :]
        assert results.filled(wrong) == results.filled(page) != wrong
        with pytest.raises(AssertionError):
            same(wrong, results.filled(wrong))
    with pytest.raises(KeyError):
        results.filled("<!--=worth/none-->0.1<!--/-->")


def test_no_number_of_the_text_is_written_by_hand(results):
    """But budgets and coverage, which are percentages; and a line that begins with a comment would not be Markdown."""
    for path in results.PAGES:
        page = path.read_text(encoding="utf-8")
        page = page[page.index("## What was measured") : page.index("## The method")] if "README" in path.name else page
        text = results.NUMBER.sub("", results.TABLE.sub("", page))
        assert not re.findall(r"\d\.\d+(?![\d.]* ?%)", text)
        assert not re.findall(r"^\s*(?:[-*] |\d\. )?\s*<!--=.*", page, re.MULTILINE)


def test_the_page_is_short_and_its_figures_are_small(results):
    page = results.PAGES[0].read_text(encoding="utf-8")
    assert len(page.split()) <= 1500
    figures = re.findall(r"!\[.+\]\((figures/.+)\)", page)
    assert figures == [f"figures/{name}.{form}" for name, (*_, form) in results.QUESTIONS.items()]
    for path in (RUNS / name for name in figures):
        assert path.stat().st_size <= 60_000
        assert path.suffix == ".png" or "<image" not in path.read_text(encoding="utf-8")


def test_numbers_agree_with_plain_arithmetic(results):
    rows = pd.read_parquet(RUNS / "steady" / "rows.parquet")
    rows = rows[~rows["repeat"]]
    scores = rows.pivot_table(index=["task", "seed"], columns="structure", values="score", observed=True)
    pairs = (scores["searched 0.01%"] - scores["random 0.01%"]).dropna()
    expected = pairs.groupby("task").mean().mean()
    weights = pairs.to_numpy()  # five pairs of each task
    flipped = np.array(list(product([1, -1], repeat=len(pairs)))) @ weights / len(pairs)
    numbers, place = results.numbers(), "worth/0.01%/random/mean/"
    assert float(numbers[place + "difference"]) == pytest.approx(expected, abs=6e-4)
    assert float(numbers[place + "p"]) == pytest.approx(np.mean(np.abs(flipped) >= expected - 1e-12), abs=6e-5)
    assert float(numbers[place + "p_floor"]) == pytest.approx(2 / 2**15, rel=0.01)
    draws = rows[rows["structure"].eq("random 0.01%")].groupby("task")["score"]
    changes = [np.mean([abs(a - b) for a, b in combinations(part, 2)]) for _, part in draws]
    assert float(numbers["recipe/random/mean/size"]) == pytest.approx(np.mean(changes), abs=6e-4)
    carried = rows[rows["kind"].eq("transfer")].groupby(["task", "seed"])["score"].mean()
    difference = (carried - scores["full"]).dropna().groupby("task").mean().mean()
    assert float(numbers["transfer/carried/mean/difference"]) == pytest.approx(difference, abs=6e-4)


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in RUNS.glob("*/rows.parquet")))
def test_chosen_rows_are_a_part_of_every_row(folder):
    rows, every = (pd.read_parquet(RUNS / folder / f"{name}.parquet") for name in ("rows", "every_rate"))
    columns = [name for name in every.columns if name in rows.columns]
    assert len(columns) == len(every.columns) and len(rows) <= len(every)
    both = rows[columns].merge(every[columns], how="left", on="key", suffixes=("", " again"), validate="one_to_one")
    for name in ("score", "validation", "lr", "seed", "structure"):
        assert both[name].equals(both[f"{name} again"]), name
