"""Whatever ends a search, a retraining or a prediction: afterwards the model is what it was."""

import pytest
import torch
from tiny import state_of, tiny_bert, tiny_t5
from toy import toy_task

from s3pet import attach, make_space, manual_structure, random_structure, retrain, search
from s3pet.errors import S3PetError
from s3pet.objectives import Objective
from s3pet.space import Space
from s3pet.studies.selectors import sensitivity
from s3pet.supernet import Supernet


def odd_model(make_model):
    """A model whose flags and modes are not all alike, so that 'train(mode)' cannot restore them."""
    model = make_model()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    return model


class Boom(Exception):
    pass


def fail_at(n, error):
    """A function that raises at its n-th call."""
    calls = []

    def fail(*_, **__):
        calls.append(1)
        if len(calls) == n:
            raise error

    return fail


def broken(monkeypatch, owner, name, n, error):
    """Make a method fail at its n-th call."""
    fail, method = fail_at(n, error), getattr(owner, name)

    def call(*args, **kwargs):
        fail()
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def do_search(model, task, space, **options):
    return search(model, task, space, budget=300, steps=6, batch_size=8, progress=False, **options)


def do_retrain(model, task, space, **options):
    return retrain(model, task, random_structure(space, 300), steps=4, batch_size=8, evaluations=2, **options)


def do_full(model, task, space, **options):
    return retrain(model, task, "full", steps=2, batch_size=8, evaluations=1, **options)


def do_predict(model, task, space):
    return do_retrain(model, task, space).predict(task.test)


def do_attach(model, task, space):
    with torch.random.fork_rng(), attach(model, space) as supernet, supernet.using(torch.ones(len(space))):
        supernet(input_ids=torch.ones(1, 3, dtype=torch.long), decoder_input_ids=torch.ones(1, 2, dtype=torch.long))


def do_sensitivity(model, task, space):
    return sensitivity(model, task, space, score="gradient", batches=2, batch_size=8)


def bad_space(model, space):
    """The last candidate sits on a module that the model does not have: attaching fails halfway."""
    from dataclasses import replace

    wrong = replace(space.candidates[-1], path="encoder.nowhere")
    return Space((*space.candidates[:-1], wrong), space.name, space.model_id, space.backbone_params)


ACTIONS = {
    "search": do_search, "retrain": do_retrain, "full": do_full, "predict": do_predict, "attach": do_attach,
    "sensitivity": do_sensitivity,
}  # fmt: skip
EXITS = {
    "to its end": lambda patch: None,
    "error in a forward pass": lambda patch: broken(patch, torch.nn.Linear, "forward", 40, Boom("forward")),
    "interrupt in a forward pass": lambda patch: broken(patch, torch.nn.Linear, "forward", 40, KeyboardInterrupt()),
    "error in the loss": lambda patch: broken(patch, Objective, "collate", 2, Boom("collate")),
    "interrupt in the loss": lambda patch: broken(patch, Objective, "collate", 2, KeyboardInterrupt()),
    "error while scoring": lambda patch: broken(patch, Objective, "predict", 1, Boom("predict")),
    "error while attaching": lambda patch: broken(patch, torch.nn.Module, "register_forward_hook", 5, Boom("hook")),
    "interrupt while attaching": lambda patch: broken(
        patch, torch.nn.Module, "register_forward_hook", 5, KeyboardInterrupt()
    ),
    "error while detaching flags": lambda patch: broken(patch, Supernet, "use", 3, Boom("use")),
}


@pytest.mark.parametrize("way", EXITS)
@pytest.mark.parametrize("action", ACTIONS)
def test_every_exit_leaves_the_model_as_it_was(action, way, monkeypatch):
    model, task = odd_model(tiny_t5), toy_task()
    space = make_space(model, "mixed")
    before = state_of(model)
    with monkeypatch.context() as patch:
        EXITS[way](patch)
        try:
            ACTIONS[action](model, task, space)
        except (Boom, KeyboardInterrupt, S3PetError):
            assert way != "to its end"
    assert state_of(model) == before


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_errors_in_callbacks_leave_the_model_as_it_was(error):
    model, task = odd_model(tiny_bert), toy_task()
    space, before = make_space(model, "mixed"), state_of(model)
    if error is KeyboardInterrupt:
        result = do_search(model, task, space, callbacks=[fail_at(2, error())])
        assert result.metrics["stopped"] == "interrupted"
    else:
        with pytest.raises(error):
            do_search(model, task, space, callbacks=[fail_at(2, error())])
    assert state_of(model) == before
    with pytest.raises(error):
        do_retrain(model, task, space, callbacks=[failing_trainer_callback(error())])
    assert state_of(model) == before


def failing_trainer_callback(error):
    from transformers import TrainerCallback

    class Failing(TrainerCallback):
        def on_step_end(self, *_, **__):
            raise error

    return Failing()


def test_a_candidate_that_does_not_fit_leaves_the_model_as_it_was():
    model, task = odd_model(tiny_t5), toy_task()
    space, before = make_space(model, "mixed"), state_of(model)
    wrong = bad_space(model, space)
    only_wrong = Space(wrong.candidates[-1:], "custom", space.model_id, space.backbone_params)
    for action, candidates in ((do_search, wrong), (do_attach, wrong), (do_retrain, only_wrong)):
        with pytest.raises(S3PetError):
            action(model, task, candidates)
        assert state_of(model) == before


def test_a_divergence_and_a_stop_leave_the_model_as_it_was():
    model, task = odd_model(tiny_t5), toy_task()
    space, before = make_space(model, "mixed"), state_of(model)

    def poison(searcher):
        with torch.no_grad():
            searcher.weights[0].fill_(float("nan"))

    with pytest.raises(S3PetError, match="diverged"):
        do_search(model, task, space, callbacks=[poison])
    assert do_search(model, task, space, callbacks=[lambda _: True]).metrics["stopped"] == "stopped"
    assert state_of(model) == before


@pytest.mark.parametrize("action", [do_search, do_retrain, do_full, do_sensitivity])
def test_nothing_runs_on_a_model_with_a_supernet(action):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    with attach(model, manual_structure(space, "bitfit")):
        before = state_of(model)
        with pytest.raises(S3PetError, match="supernet is attached"):
            action(model, task, space)
        assert state_of(model) == before
