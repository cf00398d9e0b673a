"""What diverged is a named error or a marked row, wherever it happens, and nothing is chosen among it."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from rows import rows
from tiny import tiny_bert, tiny_t5
from toy import short_task
from transformers import TrainerCallback

from s3pet import compare, make_space, manual_structure, random_structure, retrain, search
from s3pet.errors import DivergedError, PlotError, SearchError
from s3pet.objectives.texts import Objective
from s3pet.plots import plot_comparison
from s3pet.studies import comparison
from s3pet.studies.interventions import drop_utility, solo_utility
from s3pet.studies.population import Population
from s3pet.studies.racing import race
from s3pet.studies.report import finished_searches
from s3pet.studies.validation import choose_lr
from s3pet.tasks.plain import RowTask

QUICK = {"steps": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def place():
    model = tiny_t5()
    return model, short_task(), make_space(model, "mixed")


class Sizes:
    """A regression of any model: rows are numbers; ``predicted`` is what it predicts, or None for its own values."""

    def __init__(self, predicted=None):
        self.predicted = predicted

    def encode(self, rows):
        return [{"input_ids": [5, 6, 7], "y": row["label"]} for row in rows]

    def collate(self, rows):
        return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "y")}

    def loss(self, model, batch):
        return ((self.values(model, batch) - batch["y"]) ** 2).mean()

    def predict(self, model, batch):
        values = self.values(model, batch).tolist()
        return values if self.predicted is None else [self.predicted] * len(values)

    def values(self, model, batch):
        return model(input_ids=batch["input_ids"]).last_hidden_state.mean((1, 2))


def sizes_task(metric):
    data = [{"label": float(k)} for k in range(4)]
    return RowTask("sizes", data, data, data, metrics={"closeness": metric})


def closeness(predictions, labels):
    return -float(np.square(np.subtract(predictions, labels)).mean())


@pytest.mark.parametrize(
    ("predicted", "metric", "message"),
    [
        (math.nan, closeness, "predictions on task 'sizes' are NaN or infinite"),
        (math.inf, closeness, "predictions on task 'sizes' are NaN or infinite"),
        (None, lambda *_: math.inf, "metric 'closeness' is NaN or infinite; if the predictions are fine"),
        (None, lambda *_: math.nan, "metric 'closeness' is NaN or infinite"),
    ],
)
def test_values_and_scores_of_an_objective_of_ones_own(predicted, metric, message):
    model, task = tiny_bert(), sizes_task(metric)
    structure = manual_structure(model, "lnfit")
    with pytest.raises(DivergedError, match=message) as caught:
        retrain(model, task, structure, objective=Sizes(predicted), **QUICK)
    assert caught.value.tuned is None
    assert retrain(model, sizes_task(closeness), structure, objective=Sizes(), **QUICK).metrics["test"] < 0


def test_another_error_is_not_called_a_divergence(place):
    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise SearchError("something else")

    model, task, space = place
    with pytest.raises(SearchError, match="something else") as caught:
        retrain(model, task, manual_structure(space, "lnfit"), callbacks=[Stop()], **QUICK)
    assert type(caught.value) is SearchError


def test_a_search_notices_a_loss_between_two_records(place, monkeypatch):
    """100 steps have a record at every second one; the loss of step 3 only is NaN, and its gradient is not."""
    model, task, space = place
    real, calls = Objective.loss, []

    def loss(self, batch, weights=None):
        calls.append(None)
        value = real(self, batch, weights)
        return value + (math.nan if len(calls) == 5 else 0.0)  # two passes a step

    monkeypatch.setattr(Objective, "loss", loss)
    with pytest.raises(DivergedError, match="diverged after step 2") as caught:
        search(model, task, space, budget=300, steps=100, batch_size=4, warmup=1, progress=False)
    assert caught.value.result.metrics["stopped"] == "diverged" and caught.value.result.structure().n_params <= 300


def test_a_member_without_a_score_is_a_diverged_row(place, monkeypatch, tmp_path):
    """Together as alone: at one evaluation its scores are not finite."""
    model, task, space = place
    structures = {"random": [random_structure(space, 300, seed=seed) for seed in range(2)]}
    real, seen = Population.evaluate, []

    def evaluate(self, examples, rows=None, *, best=False):
        losses, scores = real(self, examples, rows, best=best)
        seen.append(None)
        return losses, [math.nan, *scores[1:]] if len(seen) == 1 else scores

    monkeypatch.setattr(Population, "evaluate", evaluate)
    options = {"evaluations": 2, "progress": False, "out": tmp_path / "rows.jsonl", **QUICK}
    table = compare(model, task, structures, together=2, **options)
    assert table["diverged"].tolist() == table["score"].isna().tolist() == [True, False]
    monkeypatch.setattr(comparison, "Population", None)
    pd.testing.assert_frame_equal(table, compare(model, task, structures, together=2, **options))


def test_a_race_drops_a_member_that_diverged_after_the_best_score(place, monkeypatch):
    model, task, space = place
    proposals = {f"random {n}": random_structure(space, 300, seed=n) for n in range(3)}
    real, leader = Population.advance, []

    def advance(self):
        losses = real(self)
        if self.step == 5:
            self.best[1] = 2.0  # better than all others
            with torch.no_grad():
                self.theta[self.owner == 1] = math.nan
            leader.append(self.members[1])
        return losses

    monkeypatch.setattr(Population, "advance", advance)
    result = race(model, task, proposals, rungs={0.4: 1.0, 0.8: 0.5}, steps=10, batch_size=4, evaluations=10)
    assert leader and result.structure.candidates != leader[0].candidates and result.validation <= 1
    lost = result.table[result.table["diverged"]]
    assert lost["name"].tolist() == ["random 1"] and lost["validation"].isna().all() and lost["steps"].tolist() == [8]
    assert result.table.index[result.table["diverged"]].tolist() == [2]  # the last of the table


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_rate_is_never_chosen_for_a_score_that_is_no_number(bad):
    table = pd.concat([rows("mine", [0.5] * 2, validation=v, lr=lr) for lr, v in ((0.1, [bad, 0.9]), (0.01, 0.2))])
    assert set(choose_lr(table)["lr"]) == {0.01}


def test_utilities_of_what_diverged(place, tmp_path, monkeypatch):
    model, task, space = place
    few = make_space(model, [{"pet": "lnfit"}])
    real, wild = Population.__init__, few.names[1]

    def init(self, model, task, members, *rest):
        real(self, model, task, members, *rest)
        with torch.no_grad():
            for number, member in enumerate(self.members):
                if wild in [c.name for c in member.candidates]:
                    self.theta[self.owner == number] = math.nan

    monkeypatch.setattr(Population, "__init__", init)
    options = {"inert": [], "progress": False, "lr_warmup": 0, **QUICK}
    table = solo_utility(model, task, few, out=tmp_path / "solo.jsonl", **options)
    assert table["utility"].isna().tolist() == table["score_gain"].isna().tolist() == [n == wild for n in few.names]
    pd.testing.assert_frame_equal(table, solo_utility(model, task, few, out=tmp_path / "solo.jsonl", **options))
    with pytest.raises(DivergedError, match=r"all candidates trained together diverged; lower lr \(now 0.003\)"):
        drop_utility(model, task, few, **options)


def test_a_diverged_search_is_in_no_report(place, tmp_path):
    model, task, space = place
    for seed, stopped in ((0, None), (1, "diverged")):
        result = search(model, task, space, budget=300, steps=1, batch_size=4, seed=seed, progress=False)
        result.metrics["stopped"] = stopped
        result.save(tmp_path / "ours" / "a" / f"seed{seed}")
    ((_, _, runs),) = finished_searches(tmp_path)
    assert [run.config["seed"] for run in runs] == [0]


def test_figures_leave_out_what_has_no_score_and_say_so():
    table = rows("mine", [0.5, math.inf, 0.6, math.nan], kind="random").assign(n_params=[100, 100, 200, 200])
    ax = plot_comparison(table)
    (points,) = [part for part in ax.collections if part.get_gid() == "runs"]
    assert sorted(points.get_offsets()[:, 1]) == [0.5, 0.6]
    assert "2 without a score, not shown" in [text.get_text() for text in ax.get_legend().get_texts()]
    with pytest.raises(PlotError, match="all diverged"):
        plot_comparison(table.assign(score=math.nan))
