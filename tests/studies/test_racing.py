"""Races: the worse members are dropped, the best is kept, and what it cost is counted."""

import pandas as pd
import pytest
from tiny import tiny_t5
from toy import toy_task

from s3pet import make_space, manual_structure, random_structure, search, trainer
from s3pet.errors import RunError, SearchError
from s3pet.studies.interventions import solo_utility
from s3pet.studies.population import Population
from s3pet.studies.racing import proposals, race
from s3pet.studies.selectors import sampled_structure

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


@pytest.mark.parametrize("end", [1, 4, 5, 8, 10])  # the first step, at a rung, between two, the last
def test_a_race_goes_on_where_it_was_cut_off(end, monkeypatch, tmp_path):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    entries = {f"random {n}": random_structure(space, 300, seed=n) for n in range(4)}
    how = {"lrs": (3e-3, 1e-2), "rungs": {0.4: 0.5, 0.8: 0.2}, "test": True, **QUICK}
    whole, real, steps = race(model, task, entries, **how), Population.advance, []
    monkeypatch.setattr(trainer, "PAUSE", 0)  # a checkpoint after every step

    def advance(self):
        if len(steps) == end:
            raise KeyboardInterrupt
        steps.append(self.step)
        return real(self)

    monkeypatch.setattr(Population, "advance", advance)
    if end < QUICK["steps"]:
        with pytest.raises(KeyboardInterrupt):
            race(model, task, entries, checkpoints=tmp_path, **how)
        with pytest.raises(RunError, match=r"unfinished race with other settings \(seed 0 → 1\).*remove it"):
            race(model, task, entries, checkpoints=tmp_path, seed=1, **how)
    else:
        race(model, task, entries, checkpoints=tmp_path, **how)
    monkeypatch.setattr(Population, "advance", lambda self: steps.append(self.step) or real(self))
    again = race(model, task, entries, checkpoints=tmp_path, **how)
    assert steps == [*range(QUICK["steps"])]
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert (again.structure, again.lr, again.validation, again.test, again.rows) == (
        whole.structure, whole.lr, whole.validation, whole.test, whole.rows)  # fmt: skip


def test_bad_races_are_refused():
    model, task = tiny_t5(), toy_task()
    proposals = {"one": random_structure(make_space(model, "mixed"), 300)}
    with pytest.raises(SearchError, match="proposals must be a mapping"):
        race(model, task, {}, **QUICK)
    with pytest.raises(SearchError, match="rungs"):
        race(model, task, proposals, rungs={1.5: 0.5}, **QUICK)
    with pytest.raises(SearchError, match="race takes lrs, a list, instead of lr, got lr"):
        race(model, task, proposals, lr=0.01, **QUICK)
    with pytest.raises(SearchError, match="a utility takes seeds, a list, instead of seed, got seed=3"):
        solo_utility(model, task, make_space(model, "mixed"), seed=3)
    with pytest.raises(SearchError, match="every member of the race diverged"):
        race(model, task, proposals, lrs=(1e30,), **QUICK)


def test_proposals_differ_and_hold_the_budget():
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    runs = [search(model, task, space, budget=300, steps=4, seed=seed, progress=False) for seed in (0, 1)]
    chosen = proposals(runs, 200, 9, seed=3)
    assert len(chosen) == 9 and len({frozenset(s.names) for s in chosen.values()}) == 9
    assert all(s.n_params <= 200 for s in chosen.values())
    assert {name.split()[0] for name in chosen} == {"cut", "covered", "sampled"}
    assert chosen["cut 1"].names == runs[1].structure(200).names
    assert {n: s.names for n, s in proposals(runs, 200, 9, seed=3).items()} == {n: s.names for n, s in chosen.items()}
    assert proposals(runs[0], 200, 5, seed=4).keys() == proposals(runs[0], 200, 5, seed=3).keys()
    norms = search(model, task, make_space(model, [{"pet": "lnfit"}]), budget=130, steps=2, progress=False)
    assert {name.split()[0] for name in proposals(norms, 130, 4)} == {"cut", "random", "sampled"}
    alone = proposals(space, 200, 8, seed=3)
    assert [name.split()[0] for name in alone] == ["covered", "random"] * 4
    assert len({frozenset(s.names) for s in alone.values()}) == 8 and all(s.n_params <= 200 for s in alone.values())
    assert [name.split()[0] for name in proposals(norms.space, 130, 3)] == ["random"] * 3


def test_a_sampled_structure_follows_the_gates():
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    run = search(model, task, space, budget=300, steps=2, progress=False)
    sure = space.names[5], space.names[9]
    run.gates["prob"] = [1.0 if name in sure else 1e-12 for name in space.names]
    drawn = [set(sampled_structure(run, 300, seed=seed).names) for seed in range(6)]
    assert all(set(sure) <= names for names in drawn)
    assert len(set(map(frozenset, drawn))) > 1
    run.gates["prob"] = [0.9 if name == sure[0] else 0.1 / len(space) for name in space.names]
    cheap = space.candidates[5].n_params
    first = [set(sampled_structure(run, cheap, seed=seed).names) == {sure[0]} for seed in range(60)]
    assert 40 < sum(first) < 60
