"""The search from end to end: a planted site is ranked first, a seed repeats it, an interrupted search continues."""

import json
import math
import os
import random

import numpy as np
import pytest
import torch
from tiny import tiny_bert, tiny_classifier, tiny_llama, tiny_mt5, tiny_roberta, tiny_t5
from torch.utils._python_dispatch import TorchDispatchMode
from toy import Cut, cut_at, easy_task, toy_task

from s3pet import Structure, average_gates, bilevel, load_run, make_space, retrain, search
from s3pet.backbones import backbone_checksum
from s3pet.errors import BudgetError, RunError, SearchError
from s3pet.searcher import Searcher, Settings, make_settings
from s3pet.space import Rule
from s3pet.structure import parse_budget

QUIET = {"progress": False, "batch_size": 16}


def planted_t5(useful):
    """A T5 whose attentions write nothing (o = 0) except one: value candidates elsewhere cannot help."""
    model = tiny_t5(std=0.15)
    space = make_space(model, [Rule("lora", roles=("attn.v",)), Rule("bitfit", roles=("attn.v",))])
    with torch.no_grad():
        for candidate in space:
            if candidate.site != useful:
                model.get_submodule(candidate.path.replace(".v", ".o")).weight.zero_()
    return model, space


@pytest.mark.parametrize("useful", ["encoder.0.attn.v", "encoder.1.attn.v"])
def test_the_one_useful_site_is_ranked_first_and_retrained_it_solves_the_task(useful):
    model, space = planted_t5(useful)
    lora = next(candidate for candidate in space if candidate.site == useful and candidate.pet == "lora")
    for settings in ({}, {"settings": "paper"}, {"order": "unrolled"}, {"gradient": "implicit"}):
        result = search(model, easy_task(), space, budget=lora.n_params, steps=80, lr=1e-2, **settings, **QUIET)
        best = result.gates.sort_values("prob", ascending=False).iloc[0]
        assert (best.site, best.pet) == (useful, "lora"), settings
        assert best.prob > 1.5 * result.metrics["uniform_prob"], settings
        assert result.structure().names == (lora.name,)
    tuned = retrain(model, easy_task(), result.structure(), steps=150, lr=1e-2, batch_size=16)
    elsewhere = next(candidate for candidate in space if candidate.site != useful and candidate.pet == "lora")
    wrong = retrain(model, easy_task(), Structure((elsewhere,), space.model_id), steps=10, lr=1e-2, batch_size=16)
    assert tuned.metrics["test"] > 0.85
    assert wrong.metrics["test"] < 0.65


@pytest.mark.parametrize("order", ["first", "unrolled", "unrolled_exact"])
def test_a_seed_repeats_bit_for_bit_and_leaves_the_backbone_and_the_random_state_alone(order):
    model = tiny_t5(attn_implementation="eager") if order == "unrolled_exact" else tiny_t5()
    space, checksum = make_space(model, "mixed"), backbone_checksum(model)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    settings = {"budget": 300, "steps": 8, "warmup": 0, "order": order, **QUIET, "batch_size": 8}
    runs = [search(model, toy_task(), space, seed=seed, **settings) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone_checksum(model) == checksum
    assert not model.training
    assert runs[0].gates.equals(runs[1].gates)
    assert runs[0].history.equals(runs[1].history)
    assert not runs[0].gates.equals(runs[2].gates)
    cost = runs[0].cost
    assert (cost.passes, cost.rows) == ((16, 16 * 8) if order == "first" else (24, 24 * 8))
    assert cost.seconds > 0 and cost.peak_memory > 1e6 and cost.scored == 0


def test_a_search_leaves_the_draws_of_other_code_alone():
    """NumPy's and Python's random numbers that a callback draws are not drawn again after the search."""
    draws, model = [], tiny_t5()
    callbacks = [lambda _: draws.append((random.random(), float(np.random.random())))]  # noqa: NPY002
    search(model, toy_task(), make_space(model, "lora"), budget=300, steps=3, callbacks=callbacks, **QUIET)
    again = (random.random(), float(np.random.random()))  # noqa: NPY002
    assert len(draws) == 3 and not {*again} & {number for pair in draws for number in pair}


def test_weights_go_first():
    """At zero deltas the gradient of α is exactly zero; after one weight step it is not."""
    model = tiny_t5()
    result = search(model, toy_task(), make_space(model, "lora"), budget=300, steps=1, **QUIET)
    assert (result.gates.alpha.abs() > 0).all()


def test_encoder_tasks_train_a_head_beside_the_budget():
    model = tiny_bert()
    result = search(model, toy_task(), make_space(model, "mixed"), budget=200, steps=6, **QUIET)
    assert result.metrics["head_params"] == model.config.hidden_size * 2 + 2
    assert result.structure().n_params <= 200


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_mt5, tiny_bert, tiny_roberta, tiny_llama, tiny_classifier])
def test_every_family_goes_the_whole_path(make_model):
    model, task = make_model(), toy_task()
    checksum = backbone_checksum(model)
    result = search(model, task, make_space(model, "mixed"), budget=300, steps=3, **QUIET)
    tuned = retrain(model, task, result.structure(), steps=3, batch_size=8, evaluations=1)
    assert len(tuned.predict(task.test)) == len(task.test)
    assert backbone_checksum(model) == checksum


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_an_interrupted_search_continues_bit_for_bit(tmp_path, preset):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    options = {"budget": 300, "steps": 30, "settings": preset, **QUIET}
    whole = search(model, task, space, **options)
    with pytest.raises(Cut):
        search(model, task, space, out=tmp_path, callbacks=[cut_at(17)], **options)
    with pytest.raises(RunError, match=r"with other settings \(seed 0 → 1\)"):
        search(model, task, space, out=tmp_path, **{**options, "seed": 1})
    steps = []
    rest = search(model, task, space, out=tmp_path, callbacks=[lambda s: steps.append(s.step)], **options)
    assert steps[0] == 17, "it should have gone on after the checkpoint at step 16"
    assert rest.gates.equals(whole.gates)
    assert rest.history.equals(whole.history)
    assert rest.trajectory.reset_index(drop=True).equals(whole.trajectory.reset_index(drop=True))


def test_a_long_search_writes_checkpoints_between_records(tmp_path, monkeypatch):
    monkeypatch.setattr("s3pet.searcher.AT_MOST", 0.0)  # every step is long
    model, task, real = tiny_t5(), toy_task(), Searcher.advance
    space, options = make_space(model, "lora"), {"budget": 300, "steps": 150, **QUIET}
    whole, steps = search(model, task, space, **options), []

    def advance(self):
        steps.append(self.step)
        if steps == [0, 1, 2, 3, 4]:  # records are at every third step
            raise Cut
        real(self)

    monkeypatch.setattr(Searcher, "advance", advance)
    with pytest.raises(Cut):
        search(model, task, space, out=tmp_path, **options)
    rest = search(model, task, space, out=tmp_path, **options)
    assert steps[5] == 4 and len(steps) == 151
    assert rest.gates.equals(whole.gates) and rest.history.equals(whole.history)


def test_an_interrupted_search_is_unfinished_and_overwriting_continues(tmp_path):
    model, task = tiny_t5(), toy_task()
    space, options = make_space(model, "lora"), {"budget": 300, "steps": 8, "out": tmp_path, **QUIET}
    old = search(model, task, space, **options, seed=5)

    def interrupt(searcher):
        if searcher.step == 6:
            raise KeyboardInterrupt

    part = search(model, task, space, overwrite=True, callbacks=[interrupt], **options)
    assert part.metrics["stopped"] == "interrupted" and part.path is None
    assert load_run(tmp_path).config == old.config, "the old run stays until the new one is finished"
    steps = []
    search(model, task, space, overwrite=True, callbacks=[lambda searcher: steps.append(searcher.step)], **options)
    assert steps == [6, 7, 8] and load_run(tmp_path).config["seed"] == 0
    assert "checkpoint" not in os.listdir(tmp_path)


def test_a_failing_callback_leaves_the_result_on_the_error(tmp_path):
    model = tiny_t5()
    with pytest.raises(ZeroDivisionError) as caught:
        search(model, toy_task(), make_space(model, "lora"), budget=300, steps=8, callbacks=[lambda s: 1 / 0], **QUIET)
    assert caught.value.result.metrics["steps"] == 1


def test_a_new_version_of_a_library_does_not_stop_a_search_from_continuing(tmp_path, monkeypatch):
    model, task = tiny_t5(), toy_task()
    options = {"budget": 300, "steps": 30, "out": tmp_path, **QUIET}

    def cut(searcher):
        if searcher.step == 17:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        search(model, task, make_space(model), callbacks=[cut], **options)
    monkeypatch.setattr("s3pet.searcher.versions", lambda: {"torch": "99"})
    result = search(model, task, make_space(model), **options)
    assert result.metrics["steps"] == 30 and result.config["versions"] == {"torch": "99"}
    assert result.cost.passes == 60


@pytest.mark.parametrize("order", ["first", "unrolled"])
def test_a_warm_up_trains_weights_and_leaves_alpha(order):
    """The first steps are those of a search whose α never moves; then both move."""
    model, task = tiny_bert(), toy_task()
    space = make_space(model, "mixed")
    options = {"budget": 300, "steps": 6, "order": order, **QUIET}
    warm, still, plain = (
        search(model, task, space, **options, **more)
        for more in ({"warmup": 4}, {"alpha_lr": 1e-30, "warmup": 0}, {"warmup": 0})
    )
    alpha = warm.trajectory.pivot(index="step", columns="candidate", values="alpha")
    assert (alpha.loc[:4] == 0).all(axis=None) and (alpha.loc[5].abs() > 0).any()
    assert warm.history.loss_train[:5].tolist() == still.history.loss_train[:5].tolist()  # weights of step 4, α of 0
    assert warm.history.loss_train[:5].tolist() != plain.history.loss_train[:5].tolist()
    assert warm.history.loss_val.isna().tolist() == [True] * 4 + [False] * 2
    passes = 1 if order == "first" else 2
    assert (warm.cost.passes, warm.cost.rows) == (6 + 2 * passes, 16 * (6 + 2 * passes))


def test_alphas_gradient_comes_from_search_val(monkeypatch):
    """With a gradient of zero on search_val, α does not move."""
    model = tiny_t5()
    real = bilevel.first_order

    def zeroed(*arguments):
        value, gradient = real(*arguments)
        return value, torch.zeros_like(gradient)

    monkeypatch.setattr(bilevel, "first_order", zeroed)
    result = search(model, toy_task(), make_space(model), budget=300, steps=3, **QUIET)
    assert result.gates.alpha.abs().max() == 0


def test_a_search_says_how_far_its_loss_fell():
    model, space = planted_t5("encoder.1.attn.v")
    options = {"budget": 300, **QUIET, "batch_size": 32}
    learned, still = (search(model, easy_task(), space, steps=80, lr=lr, **options) for lr in (1e-2, 1e-30))
    history = learned.history
    assert learned.loss_drop == pytest.approx(1 - history.loss_val[60:].mean() / history.loss_train[:4].mean())
    assert learned.loss_drop > still.loss_drop + 0.04 and abs(still.loss_drop) < 0.03
    warm = search(model, easy_task(), space, steps=9, warmup=8, callbacks=[lambda searcher: True], **options)
    assert math.isnan(warm.loss_drop)
    assert math.isnan(average_gates([learned, still]).loss_drop)


def test_a_callback_stops_and_keeps(tmp_path):
    model = tiny_t5()
    result = search(
        model, toy_task(), make_space(model, "lora"), budget=300, steps=250, out=tmp_path,
        callbacks=[lambda searcher: searcher.step >= 10], **QUIET,
    )  # fmt: skip
    assert (result.metrics["steps"], result.metrics["stopped"]) == (10, "stopped")
    assert result.structure().n_params <= 300
    assert result.structure().origin["steps"] == 10 == load_run(tmp_path).structure().origin["steps"]
    text = (tmp_path / "metrics.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def checkpointed(model, **options):
    """The model with gradient checkpointing, by the name that the installed transformers prefers."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")(options or None)
    return model


class Interrupted:
    """Raises KeyboardInterrupt at the n-th call of any of the functions that a step is made of."""

    def __init__(self, monkeypatch, n):
        self.calls, self.n, self.where = 0, n, None
        places = [
            (bilevel, "gradients"), (bilevel, "first_order"), (torch.optim.AdamW, "step"),
            (Searcher, "record"), (Searcher, "save"), (torch.nn.utils, "clip_grad_norm_"),
        ]  # fmt: skip
        for owner, name in places:
            for after in (False, True):
                monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name), name, after))

    def wrapped(self, function, name, after):
        def call(*args, **kwargs):
            value = function(*args, **kwargs) if after else None
            self.calls += 1
            if self.calls == self.n:
                self.where = ("after " if after else "before ") + name
                raise KeyboardInterrupt
            return value if after else function(*args, **kwargs)

        return call


def test_an_interrupt_anywhere_in_a_step_keeps_the_result(tmp_path, monkeypatch):
    """Records are two steps apart here, so half of the interrupts come between two records."""
    model, task = tiny_t5(), toy_task()
    space, before = make_space(model, "lora"), backbone_checksum(model)
    places = set()
    for n in range(12, 42):  # the steps before and after the first record, which is a checkpoint, too
        out = tmp_path / str(n)
        with monkeypatch.context() as patch:
            interrupt = Interrupted(patch, n)
            options = {"budget": 300, "steps": 100, "warmup": 0, "out": out, **QUIET, "batch_size": 4}
            result = search(model, task, space, **options)
        places.add(interrupt.where)
        assert result.metrics["stopped"] == "interrupted"
        with pytest.raises(RunError, match="holds no finished run") as refused:
            load_run(out)  # interrupted is unfinished
        assert ("again to continue it" in str(refused.value)) == (out / "checkpoint").exists()
        kept = load_run(result.save(out))
        assert kept.gates.alpha.notna().all() and kept.structure().n_params > 0
        assert np.isfinite(kept.history[["loss_train", "loss_val"]].to_numpy(float)).all()
        assert len(kept.history) == kept.metrics["steps"] == kept.structure().origin["steps"]
        assert not any(module._forward_hooks for module in model.modules()) and not model.training
    assert backbone_checksum(model) == before
    assert len(places) == 12, places  # clip_grad_norm_ and both optimisers' steps have one name each


def test_a_diverging_search_keeps_its_last_good_state(tmp_path):
    model = tiny_t5()

    def poison(searcher):
        if searcher.step == 4:
            with torch.no_grad():
                searcher.weights[0].fill_(float("nan"))

    with pytest.raises(SearchError, match="diverged after step 4") as caught:
        search(
            model,
            toy_task(),
            make_space(model, "lora"),
            budget=300,
            steps=20,
            callbacks=[poison],
            out=tmp_path,
            **QUIET,
        )
    assert caught.value.result.gates.alpha.notna().all()
    assert load_run(tmp_path).metrics["stopped"] == "diverged"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
@pytest.mark.parametrize(
    ("changes", "expected"), [({}, False), ({"dropout": True}, True), ({"settings": "paper"}, True)]
)
def test_dropout_is_the_papers(make_model, changes, expected):
    model, modes = make_model(), set()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            # the width of an encoder's head is taken from a pass without gradients
            module.register_forward_hook(lambda part, *_: modes.add(part.training) if torch.is_grad_enabled() else None)
    result = search(model, toy_task(), make_space(model, "mixed"), budget=300, steps=2, **changes, **QUIET)
    assert modes == {expected}
    assert result.config["dropout"] is expected
    assert not model.training


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert])
@pytest.mark.parametrize("order", ["first", "unrolled"])
def test_gradient_checkpointing_gives_the_same_search(make_model, order):
    """In float64, so that only a wrong gradient could make a difference."""
    runs = []
    for checkpointing in (False, True):
        model = make_model().double()
        model = checkpointed(model) if checkpointing else model
        options = {"budget": 300, "steps": 4, "warmup": 0, "order": order, **QUIET, "batch_size": 8}
        calls = []
        handle = model.get_submodule(make_space(model, "lora").candidates[0].path).register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        runs.append(search(model, toy_task(), make_space(model, "mixed"), **options))
        handle.remove()
        runs[-1].metrics["calls"] = len(calls)
    plain, repeated = runs
    assert repeated.metrics["calls"] > plain.metrics["calls"], "the model was not run again"
    difference = (plain.gates.alpha - repeated.gates.alpha).abs().max()
    assert difference <= 1e-10 * plain.gates.alpha.abs().max()


def test_checkpointing_that_cannot_work_is_refused_by_name():
    model = tiny_t5(attn_implementation="eager")
    space, task = make_space(model, "lora"), toy_task()
    checkpointed(model)
    with pytest.raises(SearchError, match="'unrolled_exact' differentiates twice"):
        search(model, task, space, budget=300, steps=2, order="unrolled_exact", **QUIET)
    checkpointed(model, use_reentrant=True)
    with pytest.raises(SearchError, match="reentrant gradient checkpointing"):
        search(model, task, space, budget=300, steps=2, **QUIET)
    assert search(checkpointed(model), task, space, budget=300, steps=2, **QUIET).metrics["steps"] == 2


def test_a_search_in_bfloat16_trains_float32_and_ranks_alike():
    model = tiny_bert()
    space, kinds = make_space(model, "mixed"), []
    settings = {"budget": 300, "steps": 10, **QUIET}
    narrow = search(
        model, toy_task(), space, objective={"precision": "bfloat16"},
        callbacks=[lambda s: kinds.append(s.weights[0].dtype)], **settings,
    )  # fmt: skip
    full = search(model, toy_task(), space, **settings)
    assert set(kinds) == {torch.float32} and narrow.config["objective"]["precision"] == "bfloat16"
    assert not narrow.gates.alpha.equals(full.gates.alpha)
    assert narrow.gates.alpha.corr(full.gates.alpha) > 0.9
    assert narrow.history.loss_train.sub(full.history.loss_train).abs().max() < 0.02


@pytest.mark.parametrize(
    ("budget", "settings", "error", "message"),
    [
        (0, {}, BudgetError, "must be positive"),
        ("abc", {}, BudgetError, "is not a number"),
        (3, {}, BudgetError, "cheapest candidate"),
        (30_000, {}, BudgetError, "not between 0 and the"),
        (300, {"order": "second"}, SearchError, "is not one of first"),
        (300, {"steps": 0}, SearchError, "steps must be"),
        (300, {"steps": 2.5}, SearchError, "steps"),
        (300, {"steps": True}, SearchError, "steps"),
        (300, {"lr": "0.1"}, SearchError, "lr"),
        (300, {"warmup": 300}, SearchError, "warmup must be below steps"),
        (300, {"warmup": 1.5}, SearchError, "warmup"),
        (300, {"warmup": -1}, SearchError, "warmup must be >= 0"),
        (300, {"settings": "papier"}, SearchError, "is not one of default, paper"),
        (300, {"record_every": -1}, SearchError, "search has no setting record_every; it has steps"),
        (300, {"objective": {"pooling": "max"}}, SearchError, "pooling"),
        (300, {"objective": {"pooling": "mean"}}, SearchError, "pooling"),
    ],
)
def test_bad_input_is_refused_at_the_door(budget, settings, error, message, tmp_path):
    model = tiny_t5()
    options = {**QUIET, "budget": budget, "out": tmp_path / "run", **settings}
    with pytest.raises(error, match=message):
        search(model, toy_task(), make_space(model, "lora"), **options)
    assert not (tmp_path / "run").exists()


def test_settings_and_presets():
    assert make_settings() == Settings() and not Settings().dropout
    assert make_settings("paper") == Settings(dropout=True)
    papers = make_settings("paper", steps=7, warmup=2)
    assert papers == Settings(steps=7, warmup=2, dropout=True)
    assert type(Settings(steps=np.int64(3)).steps) is int


def test_settled_is_one_once_the_chosen_set_no_longer_changes():
    model = tiny_t5()
    space = make_space(model, "lora")
    searcher = Searcher(model, toy_task(), space, parse_budget(space, 300), Settings(steps=20, batch_size=8))
    searcher.history.append({"step": 0, "loss_train": 1.0, "loss_val": 1.0})
    searcher.alpha = torch.linspace(1, 0, len(space))
    assert searcher.record()
    for step in range(12):
        searcher.step = step
        assert searcher.record()
    assert searcher.settled == 1.0


class HostReads(TorchDispatchMode):
    """Counts the operations that make a processor wait for its accelerator."""

    names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in self.names
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("order", "passes"), [("first", 2), ("unrolled", 3)])
@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_a_step_waits_for_the_device_no_more_than_the_backbone_does(make_model, order, passes):
    model = make_model()
    space = make_space(model, "mixed")
    settings = Settings(order=order, batch_size=4, warmup=0)
    searcher = Searcher(model, toy_task(), space, parse_budget(space, 300), settings)
    for optimizer in (searcher.weight_optimizer, searcher.alpha_optimizer):
        optimizer.step = lambda: None  # AdamW reads its step count, which it keeps with the processor
    batch = searcher.objective.collate(searcher.train(0))
    searcher.objective.loss(batch)  # the first call reads the token with which a decoder starts
    with HostReads() as plain:
        searcher.objective.loss(batch)
    with searcher.supernet, HostReads() as step:
        searcher.advance()
    assert step.count == passes * plain.count
    with HostReads() as read:
        float(searcher.alpha.sum())
    assert read.count == 1, "it does count"
