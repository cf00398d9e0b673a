"""A process that is killed at a write leaves the old or the new, never a mixture, and the call can be repeated."""

import pytest
from fault_kills import all_scenes


@pytest.mark.parametrize(
    ("name", "every"),
    [("a run saved over", 6), ("a smaller one saved over", 5), ("an adapter saved over", 4), ("retrain(out)", 40)],
)
def test_a_kill_leaves_old_or_new(tmp_path, name, every):
    [(_, counts)] = all_scenes(tmp_path, every, [name])
    assert counts["bad"] == counts["not"] == 0, counts
    assert counts["old"] + counts["new"] + counts["unfinished"] == counts["repeated"] > 1
