"""Interventions on single modules: inert ones, trained alone, taken out of all."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_bert, tiny_t5
from toy import toy_task

from s3pet import load_backbone, load_task, make_space, retrain, trainer
from s3pet.errors import SpaceError
from s3pet.objectives import make_objective
from s3pet.structure import Structure
from s3pet.studies import comparison, interventions
from s3pet.studies.interventions import drop_utility, probe_inert, solo_utility
from s3pet.studies.population import Population
from s3pet.supernet import Supernet

QUICK = {"steps": 5, "batch_size": 8, "lr_warmup": 0, "progress": False}


def small_space(model, n=5):
    space = make_space(model, "mixed", keep_inert=True)
    active = [
        c for c in space if not c.inert and (c.stack, c.role) not in {("decoder", "attn.q"), ("decoder", "attn.k")}
    ]
    picked = [c for c in space if c.inert][:1] + active[:: len(active) // n]
    return replace(space, candidates=tuple(c for c in space if c in picked))


def mean_loss(model, task, learned):
    with torch.no_grad():
        rows = [learned.collate([row]) for row in learned.encode(task.validation)]
        return sum(float(learned.loss(row)) for row in rows) / len(rows)


@pytest.mark.parametrize("make", [tiny_t5, tiny_bert])
def test_what_cannot_act_is_inert_and_nothing_else(make):
    model, task = make(), toy_task()
    space = make_space(model, "mixed", keep_inert=True)
    one_token = ("attn.q", "attn.k") if make is tiny_t5 else ()  # the decoder's self-attention has one key to read
    expected = [c.name for c in space if c.inert or (c.stack == "decoder" and c.role in one_token)]
    assert any(c.inert for c in space)
    assert probe_inert(model, task, space) == expected
    assert not space.without(expected).table().inert.any()
    left = space.without(expected, "inert for the task")
    assert len(left) == len(space) - len(expected)
    assert f"{len(expected)} candidates left out: inert for the task" in repr(left)
    assert space.without([]) == space and "candidates left out" not in repr(space.without([]))
    with pytest.raises(SpaceError, match=r"'encoder.0.attn.w:lora:1' is not in .*nearest"):
        space.without(["encoder.0.attn.w:lora:1"])


def test_queries_and_keys_of_the_decoder_do_nothing_where_labels_are_one_token():
    model, tokenizer = load_backbone("pocket-t5")
    inert = probe_inert(model, load_task("pocket/number", tokenizer), make_space(model, "mixed"))
    roles = {name.split(":")[0].split(".", 2)[2] for name in inert}
    assert roles == {"attn.q", "attn.k"}
    assert all(name.startswith("decoder") for name in inert)
    assert len(inert) == 12


@pytest.mark.parametrize("make", [tiny_t5, tiny_bert])
def test_solo_utility_is_what_a_module_gains_alone(make, tmp_path, monkeypatch):
    model, task = make(), toy_task()
    space, out = small_space(model), tmp_path / "solo.jsonl"
    table = solo_utility(model, task, space, seeds=(0, 1), out=out, lr=1e-2, **QUICK)
    assert list(table.path) == [c.path for c in space]
    assert (table.measure == "solo").all()
    assert table.inert.tolist() == [c.inert for c in space]
    assert (table.utility[table.inert] == 0).all()
    active = table[~table.inert]
    assert (active.utility != 0).all()
    assert (active.utility_error > 0).all()
    gains = []
    for seed in (0, 1):
        number = int(active.index[0])
        structure = Structure((space.candidates[number],), space.model_id)
        recipe = {"steps": 5, "batch_size": 8, "lr": 1e-2, "evaluations": 1, "seed": seed}
        tuned = retrain(model, task, structure, **recipe)
        with tuned.learner.attached():
            with_it = mean_loss(model, task, tuned.learner.objective.eval())
        without = make_objective(model, task, seed=seed).eval()
        if make is tiny_bert:  # what the module adds to a head that is trained alone
            without = retrain(model, task, "head", **recipe).learner.objective.eval()
        gains.append(mean_loss(model, task, without) - with_it)
    assert table.utility[number] == pytest.approx(sum(gains) / 2, abs=2e-4)
    assert table.utility_error[number] == pytest.approx(abs(gains[0] - gains[1]) / 2, abs=2e-4)

    monkeypatch.setattr(interventions, "Population", None)  # nothing is trained again
    again = solo_utility(model, task, space, seeds=(0, 1), out=out, lr=1e-2, **QUICK)
    assert again.equals(table)


@pytest.mark.parametrize("make", [tiny_t5, tiny_bert])
def test_drop_utility_is_what_is_lost_without_a_module(make):
    model, task = make(), toy_task()
    space = small_space(model)
    table = drop_utility(model, task, space, lr=1e-2, **QUICK)
    assert (table.measure == "drop").all()
    structure = Structure(space.candidates, space.model_id)
    tuned = retrain(model, task, structure, steps=5, batch_size=8, lr=1e-2, evaluations=1)
    learned = tuned.learner.objective.eval()
    with tuned.learner.attached():
        together = mean_loss(model, task, learned)
    for number in [int(table.index[~table.inert][0]), int(table.index[~table.inert][-1])]:
        rest = tuple(c for n, c in enumerate(space) if n != number)
        with Supernet(model, rest) as supernet:
            supernet.load({name: t for name, t in tuned.tensors().items() if not name.startswith("head")})
            without = mean_loss(model, task, learned)
        assert table.utility[number] == pytest.approx(without - together, abs=2e-4)
    assert table.utility[~table.inert].abs().max() > 1e-3


def test_solo_utility_goes_on_where_a_row_was_cut_off(tmp_path):
    """The candidates of a layer are trained together again, and only the row that is missing is added."""
    model, task, out = tiny_t5(), toy_task(), tmp_path / "solo.jsonl"
    space = make_space(model, [{"pet": "lora", "stacks": ["encoder"], "layers": [0], "roles": ["attn.[qv]"]}])
    whole = solo_utility(model, task, space, inert=[], out=out, **QUICK)
    lines = out.read_text()
    out.write_text(lines[: lines.rstrip().rindex("\n") + 1])
    assert len(space) == 2 and solo_utility(model, task, space, inert=[], out=out, **QUICK).equals(whole)
    assert out.read_text() == lines


def test_a_rate_of_none_is_that_of_a_retraining():
    model, task = tiny_t5(), toy_task()
    space = make_space(model, [{"pet": "lora", "stacks": ["encoder"], "layers": [0], "roles": ["attn.q"]}])
    tables = [solo_utility(model, task, space, inert=[], lr=lr, **QUICK) for lr in (None, 3e-3)]
    assert tables[0].equals(tables[1])


def test_drop_utility_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    model, task = tiny_t5(), toy_task()
    space, out = small_space(model), tmp_path / "drop.jsonl"
    whole, real, steps, written = drop_utility(model, task, space, **QUICK), Population.advance, [], []
    monkeypatch.setattr(trainer, "PAUSE", 0)  # a checkpoint after every step
    keep = comparison.append_row

    def advance(self):
        if self.step == 3 and steps.count(2) == 1 and 3 not in steps:
            steps.append(3)
            raise KeyboardInterrupt
        steps.append(self.step)
        return real(self)

    def append(path, row):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(row["candidate"])
        keep(path, row)

    monkeypatch.setattr(Population, "advance", advance)
    monkeypatch.setattr(comparison, "append_row", append)
    for _ in range(2):  # in training, and between two candidates
        with pytest.raises(KeyboardInterrupt):
            drop_utility(model, task, space, out=out, **QUICK)
    assert steps == [0, 1, 2, 3, 3, 4] and len(written) == 4
    monkeypatch.setattr(comparison, "append_row", lambda path, row: (written.append(row["candidate"]), keep(path, row)))
    again = drop_utility(model, task, space, out=out, **QUICK)
    assert again.equals(whole) and len(written) == len(set(written)) == 1 + (~whole.inert).sum()
    assert [path.name for path in tmp_path.iterdir()] == ["drop.jsonl"]
    monkeypatch.setattr(interventions, "Population", None)  # nothing is trained again
    assert drop_utility(model, task, space, out=out, **QUICK).equals(whole)
