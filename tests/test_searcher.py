"""The search end to end: a planted site is found, seeds repeat it bit for bit, an interrupted one goes on."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_bert, tiny_classifier, tiny_llama, tiny_mt5, tiny_roberta, tiny_t5
from toy import easy_task, toy_task

from s3pet import Rule, Structure, bilevel, load_run, make_space, retrain, search
from s3pet.backbones import backbone_checksum
from s3pet.cost import Cost
from s3pet.errors import BudgetError, RunError, SearchError
from s3pet.gates import Budget
from s3pet.searcher import Searcher
from s3pet.settings import Settings
from s3pet.supernet import Supernet
from s3pet.transfer import average_gates

QUIET = {"progress": False, "batch_size": 16}


def planted_t5(useful):
    """A T5 whose attentions all write nothing (o = 0), but for one: value candidates elsewhere cannot help."""
    model = tiny_t5(std=0.15)
    space = make_space(model, [Rule("lora", roles=("attn.v",)), Rule("bitfit", roles=("attn.v",))])
    with torch.no_grad():
        for candidate in space:
            if candidate.site != useful:
                model.get_submodule(candidate.path.replace(".v", ".o")).weight.zero_()
    return model, space


SETTINGS = [
    {"order": "first"}, {"order": "unrolled"}, {"sampling": "mean"}, {"alpha_optimizer": "shared"},
    {"alpha_split": "both"},
]  # fmt: skip


@pytest.mark.parametrize("useful", ["encoder.0.attn.v", "encoder.1.attn.v"])
def test_the_one_useful_site_is_ranked_first_and_retrained_it_solves_the_task(useful):
    model, space = planted_t5(useful)
    lora = next(candidate for candidate in space if candidate.site == useful and candidate.pet == "lora")
    for settings in SETTINGS:
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
    settings = {"budget": 300, "steps": 8, "order": order, **QUIET, "batch_size": 8}
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


def test_weights_go_first():
    """At zero deltas α's gradient is exactly zero; after one weight step it is not."""
    model = tiny_t5()
    space = make_space(model, "lora")
    result = search(model, toy_task(), space, budget=300, steps=1, **QUIET)
    assert (result.gates.alpha.abs() > 0).all()


@pytest.mark.parametrize("order", ["first", "unrolled"])
def test_biases_and_norms_move_at_a_rate_of_their_own(order, monkeypatch):
    moved, using = {}, Supernet.using
    for factor in (1.0, 10.0):
        model, seen = tiny_t5(), []
        monkeypatch.setattr(
            Supernet, "using", lambda self, gates, flat, seen=seen: seen.append(flat) or using(self, gates, flat)
        )
        settings = Settings(steps=4, vector_lr=factor, sampling="mean", batch_size=8, order=order)
        searcher = Searcher(model, toy_task(), make_space(model, "mixed"), Budget(500, 5000), settings)
        start = searcher.weights[0].detach().clone()
        with searcher.supernet:
            searcher.advance()
        vector = searcher.supernet.rates(2.0) == 2
        moved[factor] = seen[1].detach() - start  # what the model ran with after the first step, fresh vectors being 0
    stirred = moved[1.0].abs() > 0.9 * 3e-3  # AdamW's first step is as long as its rate where there is a gradient
    assert stirred[vector].float().mean() > 0.9
    both = stirred & (moved[10.0] != 0)
    torch.testing.assert_close(moved[10.0][both & vector], 10 * moved[1.0][both & vector], rtol=0.12, atol=0)
    torch.testing.assert_close(moved[10.0][both & ~vector], moved[1.0][both & ~vector], rtol=0.12, atol=0)


def test_encoder_tasks_train_a_head_beside_the_budget():
    model = tiny_bert()
    space = make_space(model, "mixed")
    result = search(model, toy_task(), space, budget=200, steps=6, **QUIET)
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


def test_a_run_folder_holds_everything(tmp_path):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed", keep_inert=True)
    made = search(model, task, space, budget=300, steps=6, out=tmp_path / "run", **QUIET)
    again = load_run(tmp_path / "run")
    assert again.space == made.space
    assert again.gates.equals(made.gates.astype(again.gates.dtypes))
    assert again.config == made.config
    assert again.structure(500) == made.structure(500)
    table = again.gates
    assert {
        "site",
        "path",
        "stack",
        "layer",
        "role",
        "pet",
        "rank",
        "n_params",
        "alpha",
        "prob",
        "chosen",
        "margin",
    } <= set(table)
    assert table.n_params[table.chosen].sum() == made.structure().n_params <= 300
    assert float((table.prob * table.n_params).sum()) == pytest.approx(300, rel=1e-5)
    with pytest.raises(RunError, match="holds a finished run"):
        search(model, task, space, budget=300, steps=6, out=tmp_path / "run", **QUIET)
    search(model, task, space, budget=300, steps=6, out=tmp_path / "run", overwrite=True, **QUIET)
    with pytest.raises(RunError, match="is not a finished run"):
        load_run(tmp_path)


def test_gates_of_any_recorded_step_at_any_budget():
    model = tiny_t5()
    made = search(model, toy_task(), make_space(model, "mixed"), budget=300, steps=6, record_every=2, **QUIET)
    assert made.gates_at().equals(made.gates) and made.gates_at(6).equals(made.gates)
    assert made.gates_at(0).prob.nunique() == 1
    then = made.gates_at(4, budget=500)
    wanted = made.trajectory[made.trajectory.step == 4].prob.to_numpy()
    assert (then.prob.to_numpy() == wanted).all() and then.alpha.nunique() > 1
    order, left, taken = sorted(range(len(then)), key=lambda i: -wanted[i]), 500, set()
    for i in order:  # the walk with a purse, by hand
        if then.n_params[i] <= left:
            left, taken = left - then.n_params[i], taken | {i}
    assert set(then.index[then.chosen]) == taken
    assert float(then.margin[then.chosen].min()) == 0.0
    assert made.structure(500).names == tuple(
        c.name for c, c_taken in zip(made.space, made.gates_at(budget=500).chosen, strict=True) if c_taken
    )
    with pytest.raises(RunError, match="step 5 was not recorded; recorded are 0, 2, 4, 6"):
        made.gates_at(5)
    with pytest.raises(BudgetError, match="cheapest candidate"):
        made.gates_at(budget=1)


@pytest.mark.parametrize("optimizer", ["adamw", "shared"])
def test_an_interrupted_search_goes_on_bit_for_bit(tmp_path, optimizer):
    model, task = tiny_t5(), toy_task()
    space = make_space(model, "mixed")
    settings = {"budget": 300, "steps": 30, "record_every": 1, "alpha_optimizer": optimizer, **QUIET}
    whole = search(model, task, space, **settings)

    class Cut(Exception):
        pass

    def cut(searcher):
        if searcher.step == 17:
            raise Cut

    with pytest.raises(Cut):
        search(model, task, space, out=tmp_path, callbacks=[cut], **settings)
    with pytest.raises(RunError, match="with other settings"):
        search(model, task, space, out=tmp_path, **{**settings, "seed": 1})
    steps, state = [], tmp_path / "checkpoint" / "state.safetensors"
    kept = state.read_bytes()
    with safe_open(state, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()} | {"weight.0": torch.zeros(3, 7)}  # noqa: SIM118
        save_file(tensors, tmp_path / "other", metadata=file.metadata())
    (tmp_path / "other").replace(state)
    with pytest.raises(RunError, match="of another version"):
        search(model, task, space, out=tmp_path, **settings)
    state.write_bytes(kept)
    rest = search(model, task, space, out=tmp_path, callbacks=[lambda s: steps.append(s.step)], **settings)
    assert steps[0] == 11, "it should have gone on after the checkpoint at step 10"
    assert rest.gates.equals(whole.gates)
    assert rest.history.equals(whole.history)
    assert rest.trajectory.reset_index(drop=True).equals(whole.trajectory.reset_index(drop=True))


def test_a_search_in_bfloat16_trains_float32_and_ranks_alike():
    model = tiny_bert()
    space = make_space(model, "mixed")
    settings = {"budget": 300, "steps": 10, **QUIET}
    kinds = []
    narrow = search(
        model,
        toy_task(),
        space,
        precision="bfloat16",
        callbacks=[lambda s: kinds.append(s.weights[0].dtype)],
        **settings,
    )
    full = search(model, toy_task(), space, **settings)
    assert set(kinds) == {torch.float32} and narrow.config["precision"] == "bfloat16"
    assert not narrow.gates.alpha.equals(full.gates.alpha)
    assert narrow.gates.alpha.corr(full.gates.alpha) > 0.9
    assert narrow.history.loss_train.sub(full.history.loss_train).abs().max() < 0.02


@pytest.mark.parametrize("order", ["first", "unrolled"])
def test_a_warm_up_trains_weights_and_leaves_alpha(order):
    """The first steps are those of a search whose α never moves; then both move."""
    model, task = tiny_bert(), toy_task()
    space = make_space(model, "mixed")
    options = {"budget": 300, "steps": 6, "record_every": 1, "order": order, **QUIET}
    warm, still, plain = (
        search(model, task, space, **options, **more) for more in ({"warmup": 4}, {"alpha_lr": 1e-30}, {})
    )
    alpha = warm.trajectory.pivot(index="step", columns="candidate", values="alpha")
    assert (alpha.loc[:4] == 0).all(axis=None) and (alpha.loc[5].abs() > 0).any()
    assert warm.history.loss_train[:5].tolist() == still.history.loss_train[:5].tolist()  # weights of step 4, α of 0
    assert warm.history.loss_train[:5].tolist() != plain.history.loss_train[:5].tolist()
    assert warm.history.loss_val.isna().tolist() == [True] * 4 + [False] * 2
    passes = 1 if order == "first" else 2
    assert (warm.cost.passes, warm.cost.rows) == (6 + 2 * passes, 16 * (6 + 2 * passes))


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


def test_a_search_goes_on_from_its_warm_up(tmp_path):
    model, task = tiny_t5(), toy_task()
    options = {"budget": 300, "steps": 14, "warmup": 12, "record_every": 1, **QUIET}
    whole = search(model, task, make_space(model), **options)

    def cut(searcher):
        return searcher.step == 11

    def fail(searcher):
        if searcher.step == 11:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        search(model, task, make_space(model), out=tmp_path / "run", callbacks=[fail], **options)
    assert search(model, task, make_space(model), out=tmp_path / "run", **options).gates.equals(whole.gates)
    assert search(model, task, make_space(model), callbacks=[cut], **options).gates.alpha.abs().max() == 0


def test_a_warm_up_is_not_a_settled_search():
    model, task = tiny_t5(), toy_task()
    options = {"budget": 300, "steps": 20, "stop": "settled", "window": 4, "record_every": 1, **QUIET}
    settled = search(model, task, make_space(model), alpha_lr=1e-30, warmup=8, **options)
    assert (settled.metrics["stopped"], settled.metrics["steps"]) == ("settled", 12)


@pytest.mark.parametrize("split", ["val", "both"])
def test_alphas_gradient_comes_from_the_half_it_should(split, monkeypatch):
    """With a gradient of zero on search_val, α moves only if search_train is asked too."""
    model = tiny_t5()
    real = bilevel.first_order
    monkeypatch.setattr(bilevel, "first_order", lambda *given: (real(*given)[0], torch.zeros_like(real(*given)[1])))
    result = search(model, toy_task(), make_space(model), budget=300, steps=3, alpha_split=split, **QUIET)
    assert (result.gates.alpha.abs().max() > 0) == (split == "both")


def test_a_callback_stops_and_keeps():
    model = tiny_t5()
    space = make_space(model, "lora")
    result = search(model, toy_task(), space, budget=300, steps=50, record_every=5,
                    callbacks=[lambda searcher: searcher.step >= 10], **QUIET)  # fmt: skip
    assert (result.metrics["steps"], result.metrics["stopped"]) == (10, "stopped")
    assert result.structure().n_params <= 300


def test_a_cut_per_parameter_walks_down_probability_over_cost():
    model = tiny_t5()
    result = search(model, toy_task(), make_space(model, "mixed"), budget=300, steps=5, **QUIET)
    gates = result.gates.assign(name=[c.name for c in result.space])
    taken, left = [], 200
    for row in gates.assign(each=gates.prob / gates.n_params).sort_values("each", ascending=False).itertuples():
        if row.n_params <= left:
            taken.append(row.name)
            left -= row.n_params
    cut, plain = result.structure(200, per_param=True), result.structure(200)
    assert sorted(cut.names) == sorted(taken) != sorted(plain.names)
    assert cut.origin["per_param"] and "per_param" not in plain.origin


def test_an_interrupt_keeps_what_was_found():
    def interrupt(searcher):
        raise KeyboardInterrupt

    model = tiny_t5()
    result = search(model, toy_task(), make_space(model, "lora"), budget=300, steps=50, callbacks=[interrupt], **QUIET)
    assert result.metrics["stopped"] == "interrupted"


def test_a_diverging_search_keeps_its_last_good_state(tmp_path):
    model = tiny_t5()
    space = make_space(model, "lora")

    def poison(searcher):
        if searcher.step == 4:
            with torch.no_grad():
                searcher.weights[0].fill_(float("nan"))

    with pytest.raises(SearchError, match="diverged after step 4") as caught:
        search(
            model, toy_task(), space, budget=300, steps=20, record_every=2, callbacks=[poison], out=tmp_path, **QUIET
        )
    assert caught.value.result.gates.alpha.notna().all()
    assert load_run(tmp_path).metrics["stopped"] == "diverged"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("budget", "settings", "error", "message"),
    [
        (0, {}, BudgetError, "must be positive"),
        ("abc", {}, BudgetError, "is not a number"),
        (3, {}, BudgetError, "cheapest candidate"),
        (30_000, {}, BudgetError, "not between 0 and the"),
        (300, {"order": "second"}, SearchError, "is not one of first"),
        (300, {"steps": 0}, SearchError, "must be > 0"),
        (300, {"sampling": "gumbel"}, SearchError, "is not one of"),
        (300, {"alpha_optimizer": "sgd"}, SearchError, "is not one of adamw, shared"),
        (300, {"warmup": 300}, SearchError, "warmup must be at least 0 and below steps"),
        (300, {"alpha_split": "test"}, SearchError, "is not one of val, both"),
        (300, {"stop": "early"}, SearchError, "is not one of None, settled"),
        (300, {"window": 0}, SearchError, "window must be > 0"),
    ],
)
def test_bad_input_is_refused_at_the_door(budget, settings, error, message, tmp_path):
    model = tiny_t5()
    with pytest.raises(error, match=message):
        search(
            model, toy_task(), make_space(model, "lora"), budget=budget, out=tmp_path / "run", **{**QUIET, **settings}
        )
    assert not (tmp_path / "run").exists()


def test_settled_is_one_once_the_chosen_set_no_longer_changes():
    model = tiny_t5()
    space = make_space(model, "lora")
    from s3pet.structure import parse_budget

    searcher = Searcher(model, toy_task(), space, parse_budget(space, 300), Settings(steps=20, batch_size=8))
    searcher.history.append({"loss_train": 1.0, "loss_val": 1.0})
    searcher.alpha = torch.linspace(1, 0, len(space))
    assert searcher.record()
    for step in range(12):
        searcher.step = step
        assert searcher.record()
    assert searcher.settled == 1.0


def chosen_sets(result, step):
    budget = result.budget.n_params
    return [set(result.gates_at(step, share).query("chosen").site) for share in (budget // 2, budget, 2 * budget)]


def test_a_settled_search_stops_once_three_sets_have_stayed_for_a_window(tmp_path):
    model, space = planted_t5("encoder.0.attn.v")
    settings = {"budget": 64, "steps": 400, "lr": 1e-2, "stop": "settled", "window": 15, "record_every": 1, **QUIET}
    result = search(model, easy_task(), space, **settings)
    steps = sorted(set(result.trajectory.step))
    assert result.metrics["stopped"] == "settled" and steps[-1] == result.metrics["steps"] < 400
    assert Settings(steps=400, stop="settled", window=15).every == 3, "records are often enough for the window"
    last = chosen_sets(result, steps[-1])
    assert all(chosen_sets(result, step) == last for step in steps if step >= steps[-1] - 15)
    for end in steps[:-1]:  # nor could it have stopped before
        assert (
            any(chosen_sets(result, step) != chosen_sets(result, end) for step in steps if end - 15 <= step) or end < 15
        )

    def cut(searcher):
        if searcher.step == 16:
            raise KeyError

    with pytest.raises(KeyError):
        search(model, easy_task(), space, callbacks=[cut], out=tmp_path, **settings)
    again = search(model, easy_task(), space, out=tmp_path, **settings)
    assert again.gates.equals(result.gates) and again.metrics["stopped"] == "settled"
    assert again.cost.passes == result.cost.passes


def test_a_length_free_schedule_makes_a_short_search_the_beginning_of_a_long_one():
    model = tiny_t5()
    space = make_space(model, "mixed")
    runs = {
        (schedule, steps): search(
            model, toy_task(), space, budget=300, steps=steps, schedule=schedule, timescale=5, record_every=4, **QUIET
        )
        for schedule in ("linear", "inverse_sqrt")
        for steps in (8, 20)
    }
    short, long = (runs["inverse_sqrt", steps] for steps in (8, 20))
    assert torch.equal(short.probs, torch.tensor(long.gates_at(8).prob.to_numpy()))
    assert not torch.equal(runs["linear", 8].probs, torch.tensor(runs["linear", 20].gates_at(8).prob.to_numpy()))
    rates = long.history.lr / long.history.lr[0]
    assert rates[15] == pytest.approx(0.5), "after three timescales, half"


def test_the_ledger_of_an_earlier_version_is_read():
    cost = Cost.of({"passes": 600, "seconds": 20.25})
    assert (cost.passes, cost.seconds, cost.peak_memory) == (600, 20.25, None)
    assert str(cost) == "600 passes, 20.2 s"
    assert str(Cost(2, 16, 4, 1.0, 2_000_000)) == "2 passes, 16 rows, 4 rows scored, 1.0 s, peak 2 MB"
    assert Cost.of({"cost": cost.to_dict()}) == cost
