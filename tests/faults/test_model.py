"""The user's model is never left dirty: after interrupts, lost handles, copies and second threads."""

import copy
import io
import pickle
import threading

import fault_model
import pytest
import torch
from fault_model import attack, differences, in_threads, snapshot
from tiny import tiny_batch, tiny_bert, tiny_t5
from toy import short_task
from tuned import structure_of, tuned_at_random

import s3pet
from s3pet.backbones.loans import is_in_use
from s3pet.errors import SearchError
from s3pet.export import merging
from s3pet.supernet import is_attached


def with_values(supernet):
    for number, tensor in enumerate(supernet.tensors().values()):
        tensor.fill_(0.1 + 0.01 * number)
    return supernet


def attached():
    model = tiny_t5()
    return model, with_values(s3pet.attach(model, structure_of(model, "lora", "lnfit")))


@torch.no_grad()
def output(model):
    return model(**tiny_batch(model))[0]


@pytest.mark.parametrize(("scene", "files"), [
    ("predict", ("loans.py", "supernet.py", "tuning.py", "contextlib.py")), ("make_space", ("loans.py", "probe.py")),
])  # fmt: skip
def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(scene, files):
    cases = [*attack(scene, 8, seed=3, again=4, files=files)]
    assert len(cases) > 8 and {"KeyboardInterrupt", "Fault"} <= {outcome for _, outcome, _ in cases}
    assert [(where, changed) for where, _, changed in cases if changed] == []


def test_a_lost_handle_is_no_loss():
    model = fault_model.mixed_up(tiny_t5())
    before = snapshot(model)
    assert s3pet.detach(model) == 0 and not differences(before, snapshot(model))
    structure = structure_of(model, "lora")
    s3pet.attach(model, structure)  # nobody keeps it
    what = rf"supernet of {len(structure)} candidates on this T5For.*s3pet\.detach\(model\)"
    for part in (model, model.encoder, torch.nn.ModuleDict({"inside": model})):
        with pytest.raises(SearchError, match=what):
            s3pet.attach(part, ())
    assert s3pet.detach(model.decoder) == len({c.path for c in structure})
    assert not differences(before, snapshot(model)) and not is_attached(model)
    model.save_pretrained = keep = lambda *_: None  # the user's own comes back, too
    s3pet.attach(model, structure).detach()
    assert model.save_pretrained is keep


def test_copies_and_pickles_of_an_attached_model_are_refused_and_all_else_is_right(tmp_path):
    model, supernet = attached()
    site = model.get_submodule(supernet.candidates[0].path)
    for thing in (model, model.encoder, site, supernet):
        for act in (copy.deepcopy, pickle.dumps, lambda thing: torch.save(thing, io.BytesIO())):
            with pytest.raises(SearchError, match=r"supernet of .* is not copied or pickled; detach it first"):
                act(thing)
    shallow, expected = copy.copy(model), output(model)
    assert torch.equal(output(shallow), expected) and is_attached(shallow)
    assert model.state_dict().keys() == tiny_t5().state_dict().keys()
    torch.testing.assert_close(output(model.double()), expected.double(), rtol=1e-3, atol=1e-3)
    supernet.detach()
    assert not is_attached(shallow) and torch.equal(output(shallow), output(model))
    shallow.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_a_copy_of_a_supernet_or_a_tuned_model_stands_alone():
    model, supernet = attached()
    supernet.detach()
    tuned = tuned_at_random(tiny_bert(), structure_of(tiny_bert(), "lora", "bitfit"))
    rows = (
        [example.text for example in short_task().test] if hasattr(short_task().test[0], "text") else short_task().test
    )
    for one in (supernet, tuned):
        for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)) if one is supernet else copy.deepcopy(one)):
            ask = output if one is supernet else lambda thing: thing.predict(rows, proba=True).to_numpy().tolist()
            first = ask(one)
            assert torch.equal(torch.as_tensor(first), torch.as_tensor(ask(twin)))
            for tensor in twin.tensors().values():
                tensor.zero_()
            assert torch.equal(torch.as_tensor(first), torch.as_tensor(ask(one)))
            assert not torch.equal(torch.as_tensor(first), torch.as_tensor(ask(twin)))


def test_a_with_inside_a_with_goes_on():
    model, supernet = attached()
    expected = output(model)
    supernet.detach()
    with supernet:
        with supernet:
            pass
        assert torch.equal(output(model), expected)
    assert not is_attached(model)


def test_two_threads_that_predict_get_the_sequential_results():
    model, task = tiny_bert(), short_task()
    model.train()  # each prediction switches it off and on again
    structure = structure_of(model, "lora")
    first = tuned_at_random(model, structure)
    second = tuned_at_random(model, structure_of(model, "bitfit"), seed=5, std=0.5)
    before = snapshot(model)

    def scores(tuned):
        return lambda: [tuned.predict(task.test, proba=True).to_numpy().tolist() for _ in range(3)]

    expected = [scores(first)(), scores(second)()]
    assert expected[0] != expected[1]
    assert in_threads(scores(first), scores(second), scores(first)) == [*expected, expected[0]]
    batch = tiny_batch(model)
    calls = [lambda tuned=tuned: tuned.model.eval()(**batch)[0].sum().item() for tuned in (first, second)]
    model.eval()
    expected = [call() for call in calls]
    assert in_threads(*calls, *calls) == [*expected, *expected]
    model.train()
    assert not differences(before, snapshot(model)) and not is_in_use(model)


def test_while_a_search_runs_other_threads_are_refused_by_name():
    model, task = tiny_t5(), short_task()
    space = s3pet.make_space(model, "lora")
    tuned, other = (tuned_at_random(m, structure_of(m, "lora")) for m in (model, tiny_t5()))
    running, done, before = threading.Event(), threading.Event(), snapshot(model)

    def wait(searcher):
        running.set()
        assert done.wait(60)

    options = {"budget": 200, "steps": 2, "batch_size": 4, "progress": False}
    thread = threading.Thread(
        name="searching", target=s3pet.search, args=(model, task, space), kwargs={**options, "callbacks": [wait]}
    )
    thread.start()
    try:
        assert running.wait(60)
        uses = {
            "a prediction": lambda: tuned.predict(task.test),
            "a retraining": lambda: s3pet.retrain(model, task, "head", steps=1),
            "a search": lambda: s3pet.search(model, task, space, **options),
            "attach": lambda: s3pet.attach(model, ()),
            "detach": lambda: s3pet.detach(model),
            "merging": lambda: merging.merge(tuned),
            "looking for sites": lambda: s3pet.make_space(model, "lora"),
        }
        for what, use in uses.items():
            with pytest.raises(
                SearchError, match=f"{what} must wait: a search runs on this model in thread 'searching'"
            ):
                use()
        assert len(other.predict(task.test)) == len(task.test), "another model is free"
    finally:
        done.set()
        thread.join()
    tuned.predict(task.test)
    assert not differences(before, snapshot(model), drawn=True)
