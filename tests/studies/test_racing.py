"""Races: the worse members are dropped, the best is kept, and what it cost is counted."""

import pytest
from tiny import tiny_t5
from toy import toy_task

from s3pet import make_space, manual_structure, random_structure
from s3pet.errors import SearchError
from s3pet.studies.population import Population
from s3pet.studies.racing import race

QUICK = {"steps": 10, "batch_size": 8, "evaluations": 5}


def test_a_race_keeps_the_best_by_validation(monkeypatch):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    proposals = {f"random {n}": random_structure(space, 300, seed=n) for n in range(4)} | {
        "all": manual_structure(space, "all")
    }
    kept, real = [], Population.keep

    def counted(self, numbers):
        kept.append((self.step, [self.best[k] for k in range(len(self.best))], sorted(numbers)))
        return real(self, numbers)

    monkeypatch.setattr(Population, "keep", counted)
    result = race(model, task, proposals, lrs=(3e-3, 1e-2), rungs={0.4: 0.5, 0.8: 0.2}, test=True, **QUICK)
    assert [(step, len(best), len(numbers)) for step, best, numbers in kept] == [(4, 10, 5), (8, 5, 2), (10, 2, 1)]
    for _, best, numbers in kept:
        dropped = [score for k, score in enumerate(best) if k not in numbers]
        assert min(best[k] for k in numbers) >= max(dropped)
    assert result.rows == 8 * (4 * 10 + 4 * 5 + 2 * 2)
    assert len(result.table) == 10
    assert result.table.steps.tolist() == [10] * 2 + [8] * 3 + [4] * 5
    assert result.validation == result.table.validation[result.table.steps == 10].max()
    assert result.structure == proposals[result.table.name[0]]
    assert 0 <= result.test <= 1


def test_bad_races_are_refused():
    model, task = tiny_t5(), toy_task()
    proposals = {"one": random_structure(make_space(model, "mixed"), 300)}
    with pytest.raises(SearchError, match="needs proposals"):
        race(model, task, {}, **QUICK)
    with pytest.raises(SearchError, match="rungs"):
        race(model, task, proposals, rungs={1.5: 0.5}, **QUICK)
    with pytest.raises(SearchError, match="every member of the race diverged"):
        race(model, task, proposals, lrs=(1e30,), **QUICK)
