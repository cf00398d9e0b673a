"""Damaged files of every kind: each is a clear error, or read as what it was. The long form: ``make faults``."""

import pytest
from fault_cases import Harness, in_child, many_cases
from fault_kinds import KINDS, make_all


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (fixtures := folder / "fixtures").mkdir()
    assert in_child(lambda: make_all(fixtures) or "made", wait=600)[0] == "made"
    return Harness(folder, fixtures)


@pytest.mark.parametrize("hashes", [True, False])
def test_damage_is_a_clear_error(harness, hashes):
    said = []
    counts, _ = many_cases(harness, 2 * len(KINDS), "short", hashes, said.append)
    allowed = (
        {"clear error", "same"} if hashes else {"clear error", "same", "other values"}
    )  # of no hash, no contradiction
    assert set(counts) <= allowed and counts["clear error"] > len(KINDS), said
