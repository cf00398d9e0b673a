"""A search that starts with open gates: the cost it trains at comes down to the budget, and stays there."""

import pytest
import torch
from tiny import tiny_t5
from toy import toy_task

from s3pet import make_space, search
from s3pet.errors import BudgetError, SearchError
from s3pet.settings import Settings
from s3pet.supernet import Supernet

QUIET = {"progress": False, "batch_size": 16, "record_every": 1}
STEPS = {"steps": 14, "warmup": 4, "start_budget": 8.0}


def costs_while_training(monkeypatch, **settings):
    """Expected cost of each pass of a search of 300 parameters, as a multiple of that; and its result."""
    model, seen, real = tiny_t5(), [], Supernet.using
    space = make_space(model)

    def spy(supernet, gates, weights):
        seen.append(float((space.costs * gates.detach().double()).sum()) / 300)
        return real(supernet, gates, weights)

    monkeypatch.setattr(Supernet, "using", spy)
    return seen, search(model, toy_task(), space, budget=300, sampling="mean", **settings, **QUIET)


def test_gates_start_open_and_meet_the_budget_at_the_end(monkeypatch):
    seen, result = costs_while_training(monkeypatch, **STEPS)
    warm, free = seen[:4], seen[4:]
    assert warm == pytest.approx([8] * 4, rel=1e-4)
    assert free[::2] == pytest.approx(free[1::2], rel=1e-4)  # both passes of a step
    assert free[::2] == pytest.approx([1 + 7 * max(0, 1 - step / 6) ** 3 for step in range(10)], rel=1e-4)
    assert (result.gates.prob * result.gates.n_params).sum() == pytest.approx(300)
    recorded = result.trajectory.pivot(index="step", columns="candidate", values="prob")
    costs = {candidate.name: candidate.n_params for candidate in result.space}
    assert recorded.mul(costs).sum(axis=1).tolist() == pytest.approx([300] * 15)  # what is recorded is at the budget
    assert result.structure().n_params <= 300


def test_without_it_every_pass_costs_the_budget(monkeypatch):
    seen, _ = costs_while_training(monkeypatch, steps=6, warmup=2)
    assert seen == pytest.approx([1] * 10, rel=1e-4)


def test_the_sampled_cost_is_told_of_the_step_that_was_trained():
    shares = []
    options = {
        "budget": 300,
        "sampling": "mean",
        "callbacks": [lambda searcher: shares.append(searcher.sampling_gap())],
    }
    result = search(tiny_t5(), toy_task(), make_space(tiny_t5()), **options, **STEPS, **QUIET)
    assert shares[:4] == [8] * 4 and shares == sorted(shares, reverse=True)
    assert shares[-4:] == [1] * 4 and result.metrics["sampling_gap"] == 1


def test_open_gates_are_not_a_settled_search():
    options = {"stop": "settled", "window": 3, "alpha_lr": 1e-30, "budget": 300, **QUIET}
    result = search(tiny_t5(), toy_task(), make_space(tiny_t5()), **options, **{**STEPS, "steps": 24})
    assert (result.metrics["stopped"], result.metrics["steps"]) == ("settled", 4 + 12 + 3)


def test_it_goes_on_where_it_was_cut_off(tmp_path):
    model, task = tiny_t5(), toy_task()
    whole = search(model, task, make_space(model), budget=300, **STEPS, **QUIET)

    def fail(searcher):
        if searcher.step == 11:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        search(model, task, make_space(model), budget=300, out=tmp_path / "run", callbacks=[fail], **STEPS, **QUIET)
    again = search(model, task, make_space(model), budget=300, out=tmp_path / "run", **STEPS, **QUIET)
    assert again.gates.equals(whole.gates)
    plain = search(model, task, make_space(model), budget=300, **{**STEPS, "start_budget": 1}, **QUIET)
    assert not torch.allclose(*(torch.tensor(found.gates.alpha.to_numpy()) for found in (whole, plain)))


@pytest.mark.parametrize("start", [0.5, float("inf"), float("nan")])
def test_it_is_a_multiple_of_the_budget(start):
    with pytest.raises(SearchError, match="start_budget is a multiple of the budget, at least 1"):
        Settings(start_budget=start)


def test_it_cannot_be_above_the_space():
    model = tiny_t5()
    space = make_space(model)
    with pytest.raises(BudgetError, match=f"not below the {space.n_params:,} of all candidates; here it can be up to"):
        search(model, toy_task(), space, budget=300, start_budget=1000, **QUIET)
