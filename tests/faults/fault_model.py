"""An exception at any line of s3pet: the model, the global states and the next use must be as before."""

import contextlib
import dis
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tiny import tiny_batch, tiny_bert, tiny_t5
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_post_hook
from toy import short_task, toy_tokenizer
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging as hf_logging
from tuned import structure_of

import s3pet
from s3pet.backbones import backbone_checksum, loans
from s3pet.objectives import ModelLoss
from s3pet.studies import race
from s3pet.studies.interventions import probe_inert, solo_utility
from s3pet.studies.selectors import sensitivity
from s3pet.tasks.plain import RowTask, exact_match

HOOKS = ("forward_pre_hooks", "forward_hooks", "backward_hooks", "backward_pre_hooks", "forward_hooks_with_kwargs",
         "forward_pre_hooks_with_kwargs", "forward_hooks_always_called", "state_dict_hooks", "state_dict_pre_hooks",
         "load_state_dict_pre_hooks", "load_state_dict_post_hooks")  # fmt: skip
SHORT = {"steps": 2, "batch_size": 4, "evaluations": 1}
PLACES = ("/s3pet/", "/contextlib.py", "/torch/utils/hooks.py")  # a signal may come in these files, too


class Fault(RuntimeError):
    """What is injected, besides KeyboardInterrupt."""


# -- what must be as before


def snapshot(model):
    """All of a model that s3pet must not change, and the states of the process that it must give back."""
    parts = {name or "(model)": module for name, module in model.named_modules()}
    plain = (bool, int, float, str, type(None))

    def of_parts(read):
        return {name: read(part) for name, part in parts.items()}

    return {
        "class": of_parts(lambda m: (id(m), type(m))),
        "mode": of_parts(lambda m: m.training),
        "hooks": of_parts(lambda m: [[(k, id(h)) for k, h in getattr(m, f"_{t}").items()] for t in HOOKS]),
        "attributes": of_parts(lambda m: {k: v if isinstance(v, plain) else id(v) for k, v in vars(m).items()}),
        "tables": of_parts(
            lambda m: [[(k, id(v)) for k, v in t.items()] for t in (m._parameters, m._buffers, m._modules)]
        ),
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: id(p.grad) for name, p in model.named_parameters()},
        "values": backbone_checksum(model),
        "config": str(model.config.to_dict()),
        "random state": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),  # noqa: NPY002
        "dtype": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients on": torch.is_grad_enabled(),
        "optimiser hooks": len(_global_optimizer_pre_hooks),
        "locks": [is_free(lock) for lock in (loans._TABLE, loans._use_of(model).lock)],
        "loudness": (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()),
    }


def is_free(lock):
    """Whether another thread could have a lock now."""

    def take():
        if lock.acquire(blocking=False):
            lock.release()
            free.append(lock)

    free = []
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(free)


def differences(before, after, drawn=False):
    """Names of what is not as before; ``drawn``: the use draws random numbers itself."""
    return [name for name in before if before[name] != after[name] and not (drawn and name == "random state")]


# -- what is interrupted


def classifier():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=40, **sizes))


def rows_task():
    rows = [{**toy_tokenizer()(f"w{k % 2} w{k}"), "labels": k % 2} for k in range(16)]
    return RowTask("mine", rows[:8], rows[8:12], rows[12:], metrics={"accuracy": exact_match}, label="labels")


def mixed_up(model):
    """Flags and modes that differ between modules, and hooks and a forward of the user's own."""
    for n, (parameter, module) in enumerate(zip(model.parameters(), model.modules(), strict=False)):
        parameter.requires_grad_(n % 3 > 0)
        module.training = n % 2 > 0
    model.eval()
    for n, module in enumerate(model.modules()):
        module.training = n % 5 == 0 and n > 0
    return model


class Scene:
    """A model with all that one use of it needs; :meth:`use` is what gets interrupted and returns numbers."""

    def __init__(self, make_model, task, use, objective=None, prepare=None):
        self.model, self.task, self.objective = mixed_up(make_model()), task, objective
        self.space = s3pet.make_space(
            self.model, "mixed" if make_model is tiny_t5 else [{"pet": "lora"}, {"pet": "bitfit"}]
        )
        self.structure = s3pet.random_structure(self.space, 800, seed=1)
        self.tuned, self.drawn = None, use in (_forward, _call)
        if prepare is not None:
            self.tuned = s3pet.retrain(
                self.model, task, prepare if isinstance(prepare, str) else self.structure, **SHORT, objective=objective
            )
        self.use = lambda: use(self)  # fmt: skip


def _forward(scene):
    torch.manual_seed(0)
    with s3pet.attach(scene.model, scene.structure):
        return scene.model(**tiny_batch(scene.model))[0].sum().item()


def _search(scene, **options):
    result = s3pet.search(scene.model, scene.task, scene.space, budget=800, steps=2, batch_size=4, progress=False,
                          objective=scene.objective, **options)  # fmt: skip
    if result.metrics["stopped"] == "interrupted":
        raise KeyboardInterrupt
    return result.gates.alpha.sum()


def _retrain(scene, structure=None, **options):
    tuned = s3pet.retrain(
        scene.model, scene.task, structure or scene.structure, objective=scene.objective, **SHORT, **options
    )
    return sum(float(t.sum()) for t in tuned.tensors().values())


def _load(scene):
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        scene.tuned.save(Path(name) / "a")
        return s3pet.load_tuned(Path(name) / "a", scene.model, scene.task).evaluate(scene.task.test)


def _peft(scene):
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        tuned = s3pet.retrain(scene.model, scene.task, structure_of(scene.model, "lora"), test=False, **SHORT)
        s3pet.to_peft(tuned, Path(name) / "a")


def _predict(scene):
    examples = scene.task.test[:5]
    return [float(v == w) for v, w in zip(scene.tuned.predict(examples), scene.tuned.predict(examples), strict=True)]


def _call(scene):
    torch.manual_seed(0)
    inputs = {n: t for n, t in tiny_batch(scene.model).items() if not n.startswith("decoder")}
    return scene.tuned.generate(**inputs, max_new_tokens=2, do_sample=False).tolist()


def _compare(scene):
    chosen = {str(seed): s3pet.random_structure(scene.space, 800, seed=seed) for seed in (1, 2)}
    table = s3pet.compare(scene.model, scene.task, chosen, progress=False, together=2, **SHORT)
    return table.score.tolist()


def _race(scene):
    chosen = {str(seed): s3pet.random_structure(scene.space, 800, seed=seed) for seed in range(3)}
    return race(scene.model, scene.task, chosen, **SHORT).table.validation.tolist()


def _solo(scene):
    few = s3pet.make_space(scene.model, [{"pet": "lnfit"}])
    return solo_utility(
        scene.model, scene.task, few, progress=False, steps=1, batch_size=4, lr_warmup=0
    ).utility.tolist()


SCENES = {
    "attach": lambda: Scene(tiny_t5, short_task(), _forward),
    "make_space": lambda: Scene(tiny_bert, short_task(), lambda s: len(s3pet.make_space(s.model, "mixed"))),
    "search": lambda: Scene(tiny_t5, short_task(), _search),
    "search, unrolled": lambda: Scene(tiny_bert, short_task(), lambda s: _search(s, order="unrolled", dropout=True)),
    "search, own head": lambda: Scene(classifier, rows_task(), _search, ModelLoss()),
    "retrain": lambda: Scene(tiny_bert, short_task(), lambda s: _retrain(s, dropout=True)),
    "retrain, own head": lambda: Scene(classifier, rows_task(), _retrain, ModelLoss()),
    "retrain full": lambda: Scene(tiny_t5, short_task(), lambda s: _retrain(s, "full")),
    "predict": lambda: Scene(tiny_t5, short_task(), _predict, prepare=True),
    "predict, own head": lambda: Scene(classifier, rows_task(), _predict, ModelLoss(), prepare=True),
    "call, generate": lambda: Scene(tiny_t5, short_task(), _call, prepare=True),
    "load_tuned": lambda: Scene(tiny_bert, short_task(), _load, prepare=True),
    "merge": lambda: Scene(tiny_bert, short_task(), lambda s: s3pet.merge(s.tuned).difference, prepare=True),
    "to_peft": lambda: Scene(tiny_bert, short_task(), _peft),
    "compare": lambda: Scene(tiny_t5, short_task(), _compare),
    "race": lambda: Scene(tiny_bert, short_task(), _race),
    "probe_inert": lambda: Scene(tiny_t5, short_task(), lambda s: len(probe_inert(s.model, s.task, s.space))),
    "solo_utility": lambda: Scene(tiny_bert, short_task(), _solo),
    "sensitivity": lambda: Scene(tiny_bert, short_task(), lambda s: sensitivity(s.model, s.task, s.space).sum().item()),
}


# -- where it is interrupted


class Tracer:
    """Notes the lines of s3pet that run in this thread, or raises where Python would first see a signal after one."""

    def __init__(self, at=None, error=None):
        self.at, self.error, self.counts, self.is_due, self.raised = at, error, Counter(), False, False

    def line(self, frame, event, arg):
        if event == "line":
            key = frame.f_code.co_filename, frame.f_lineno
            self.counts[key] += 1
            self.is_due |= self.at is not None and (*key, self.counts[key]) == self.at
        if self.is_due:
            frame.f_trace_opcodes = True
            if sees_signals(frame):
                self.is_due, self.raised = False, True
                raise self.error
        return self.line

    def enter(self, frame, event, arg):
        return self.line if any(place in frame.f_code.co_filename for place in PLACES) else None

    def __enter__(self):
        sys.settrace(self.enter)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


def sees_signals(frame):
    """Whether Python looks for signals at this instruction: a call or a jump back, but not the exit of a ``with``.

    A tracer can raise anywhere, also after a ``with`` and before its exit, where no signal can come: the exit of a lock
    is one call.
    """
    code, here = frame.f_code.co_code, frame.f_lasti
    names = [dis.opname[code[at]] for at in range(0, here + 1, 2)]
    names = [name for name in names[-16:] if name not in ("CACHE", "PRECALL", "EXTENDED_ARG", "SWAP")]
    is_exit = names[-4:-1] == ["LOAD_CONST"] * 3 and code[here + 1] == 2  # __exit__(None, None, None)
    return names[-1] in ("CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD") and not is_exit


def moments(scene, draw, n):
    """n moments of a use: every line once at most, at its first, its last or some other time; and their number."""
    with Tracer() as tracer:
        scene.use()
    lines = sorted(tracer.counts)
    chosen = draw.sample(lines, min(n, len(lines)))
    return [(*key, draw.choice((1, tracer.counts[key], draw.randint(1, tracer.counts[key])))) for key in chosen], lines


@contextlib.contextmanager
def module_forward(at, error):
    """Raises in the at-th forward pass of a module; yields how many there were."""
    count = [0]

    def hook(module, inputs):
        count[0] += 1
        if count[0] == at:
            raise error

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


@contextlib.contextmanager
def optimizer_step(at, error):
    """Raises at the at-th step of any optimiser."""
    count = [0]

    def hook(optimizer, args, kwargs):
        count[0] += 1
        if count[0] == at:
            raise error

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def interrupted(scene, before, expected, context):
    """What is not as before after one interrupted use; and whether the next one gives other numbers."""
    outcome = "no exception"
    try:
        with context:
            scene.use()
    except (KeyboardInterrupt, Exception) as error:
        outcome, error = type(error).__name__, error.with_traceback(None)
        error.__context__ = error.__cause__ = None  # frames keep nothing alive that would tidy up
    changed = differences(before, snapshot(scene.model), scene.drawn)
    if changed:
        return outcome, changed
    if expected is not None:
        try:
            numbers = scene.use()
        except Exception as error:
            return outcome, [f"the next use: {type(error).__name__}: {error}"[:200]]
        if numbers != expected:
            return outcome, ["numbers of the next use"]
        return outcome, differences(before, snapshot(scene.model), scene.drawn)
    return outcome, []


def attack(name, n, seed=0, again=10, files=None):
    """Interrupt one scene at n lines, and in passes and steps; yields (where, outcome, what is not as before).

    Args:
        again: every so many interrupts, the use is repeated and its numbers are compared.
        files: only lines of files whose names end like one of these.
    """
    draw = random.Random(f"{name}{seed}")
    scene = SCENES[name]()
    expected = scene.use()
    before = snapshot(scene.model)
    places, lines = moments(scene, draw, 10**6 if files else n)
    if files:
        places = [place for place in places if place[0].endswith(files)]
        places = draw.sample(places, min(n, len(places)))
    for number, place in enumerate(places):
        error = draw.choice((Fault, KeyboardInterrupt))()
        where = f"{Path(place[0]).name}:{place[1]} #{place[2]}"
        yield where, *interrupted(scene, before, expected if number % again == 0 else None, Tracer(place, error))
        if differences(before, snapshot(scene.model), scene.drawn):
            scene = SCENES[name]()
            scene.use()
            before = snapshot(scene.model)
    for what, context in (("pass", module_forward), ("step", optimizer_step)):
        with context(-1, None) as count:
            scene.use()
        for at in sorted({1, count[0] // 2, count[0]} - {0}):
            yield f"{what} {at}", *interrupted(scene, before, expected, context(at, Fault()))
            if differences(before, snapshot(scene.model), scene.drawn):
                scene = SCENES[name]()
                scene.use()
                before = snapshot(scene.model)


def all_scenes(n, seed=0, say=print):
    """Table of counts by scene; what is not as before is said at once."""
    for name in SCENES:
        counts, kinds = Counter(), Counter()
        for where, outcome, changed in attack(name, n, seed):
            counts["moments"] += 1
            counts["dirty"] += bool(changed)
            kinds.update(changed)
            if changed:
                say(f"  {name}, {where} ({outcome}): {', '.join(changed)}")
        yield name, counts, kinds


def in_threads(*functions):
    """Results of functions that run at the same time, or their exceptions."""
    results, barrier = [None] * len(functions), threading.Barrier(len(functions))

    def run(number):
        barrier.wait()
        try:
            results[number] = functions[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread waits for ever"
    return results
