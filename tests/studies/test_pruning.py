"""Pruning: what is taken out, in which order, and that nothing else changes."""

import pytest
import torch
from tiny import tiny_bert, tiny_t5
from toy import toy_task

from s3pet import make_space
from s3pet.errors import BudgetError, SearchError
from s3pet.studies import prune
from s3pet.studies import pruning as room

QUICK = {"steps": 12, "rounds": 4, "batch_size": 8, "rows": 200, "progress": False}


@pytest.mark.parametrize("make", [tiny_t5, tiny_bert])
def test_what_is_left_holds_the_budget_and_smaller_budgets_lie_within(make):
    model, task = make(), toy_task()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    space = make_space(model, "mixed")
    result = prune(model, task, space, 300, **QUICK)
    structure = result.structure(300)
    left = set(result.table[result.table["round"].isna()].index)
    assert {space.names[index] for index in left} <= set(structure.names)
    assert structure.n_params <= 300
    assert sorted(result.table["order"]) == [*range(1, len(space) + 1)]
    assert result.table["round"].dropna().is_monotonic_increasing is False  # by their drops, not by their place
    by_order = result.table.sort_values("order")["round"].fillna(99)
    assert by_order.is_monotonic_increasing
    assert set(result.structure(150).names) <= {space.names[i] for i in result.table.nlargest(40, "order").index}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    again = prune(model, task, space, 300, **QUICK)
    assert again.structure(300) == structure
    assert again.table["drop"].equals(result.table["drop"])
    assert prune(model, task, space, 300, **QUICK, seed=1).table["drop"].ne(result.table["drop"]).any()


def test_the_cheapest_drop_per_parameter_goes_first(monkeypatch):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    worth = torch.arange(len(space), dtype=torch.float64) * space.costs

    def drops(learned, rows, supernet, gates, left, weights):
        return worth[left]

    monkeypatch.setattr(room, "_drops", drops)
    result = prune(model, task, space, 300, **QUICK)
    assert result.table["order"].tolist() == [*range(1, len(space) + 1)]
    assert result.table["round"].dropna().is_monotonic_increasing
    total = space.n_params
    for turn in (1, 2, 3):
        left = space.costs[torch.tensor((result.table["round"].fillna(99) > turn).to_numpy())]
        size = total * (300 / total) ** (turn / 4)
        assert float(left.sum()) <= size < float(left.sum()) + float(space.costs.max())


def test_a_drop_is_what_the_loss_rises_by():
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    seen = {}
    real = room._drops

    def noted(learned, rows, supernet, gates, left, weights):
        values = real(learned, rows, supernet, gates, left, weights)
        batch, index = learned.collate(rows), left[3]
        with torch.no_grad():
            supernet.use(gates, weights[0])
            whole = float(learned.loss(batch))
            own = gates.clone()
            own[index] = 0
            supernet.use(own, weights[0])
            seen.setdefault("first", (float(values[3]), float(learned.loss(batch)) - whole, len(rows)))
        return values

    room._drops, kept = noted, real
    try:
        prune(model, task, space, 300, **QUICK)
    finally:
        room._drops = kept
    measured, expected, n_rows = seen["first"]
    assert measured == pytest.approx(expected, abs=1e-7) and measured != 0
    assert n_rows == 16


def test_bad_arguments_are_named():
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    with pytest.raises(SearchError, match="rounds=0"):
        prune(model, task, space, 300, **QUICK | {"rounds": 0})
    with pytest.raises(SearchError, match="steps=3"):
        prune(model, task, space, 300, **QUICK | {"steps": 3})
    with pytest.raises(BudgetError):
        prune(model, task, space, 1, **QUICK)
    with pytest.raises(SearchError, match="not finite; lower lr"):
        prune(model, task, space, 300, **QUICK, lr=1e30)
