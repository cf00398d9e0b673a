"""Populations: members learn what they would learn alone, and do not influence each other."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_bert, tiny_t5
from toy import toy_task

from s3pet import attach, make_space, random_structure, retrain
from s3pet.errors import SearchError
from s3pet.objectives import Stream, make_objective
from s3pet.space import Rule
from s3pet.studies.population import Member, Population
from s3pet.supernet import Supernet, is_attached
from s3pet.trainer import Recipe

INERT = tuple(f"decoder.{layer}.attn.{role}" for layer in (0, 1) for role in "qk")  # where labels are one token
RECIPE = Recipe(steps=6, batch_size=8, evaluations=2, lr_warmup=2, vector_lr=3.0)


def calm(model):
    """Without dropout, so that trainings can be compared number by number."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def some_structures(model, n=3):
    space = make_space(model, "mixed")
    return [random_structure(space, 500, seed=seed) for seed in range(n)]


def randomise(theta, seed=0):
    with torch.no_grad():
        theta.add_(torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)


@pytest.mark.parametrize("family", [*FAMILIES])
def test_gradients_are_those_of_each_member_alone(family):
    model = calm(FAMILIES[family]()).double()
    task, structures = toy_task(), some_structures(model)
    members = [Member(structures[0].candidates, seed=0), Member(structures[1].candidates, seed=1)]
    members.append(Member(structures[0].candidates, lr=1e-2, seed=2))
    with Population(model, task, members, RECIPE) as population:
        randomise(population.theta)
        batches = [population.streams[member.seed](0) for member in members]
        losses = population.objective.losses(*population._scores(batches)).view(3, -1).mean(1)
        (gradient,) = torch.autograd.grad(losses.sum(), population.theta)
        tensors = [population.tensors(k, best=False) for k in range(3)]
    rows = make_objective(model, task).encode(task.train)
    for k, member in enumerate(members):
        learned = make_objective(model, task, seed=member.seed)
        with attach(model, member.candidates, seed=member.seed) as supernet:
            supernet.load({name: t for name, t in tensors[k].items() if not name.startswith("head")})
            if learned.head is not None:
                learned.head.load_state_dict({n[5:]: t for n, t in tensors[k].items() if n.startswith("head/")})
                learned.head.eval()
            loss = learned.loss(learned.collate(Stream(rows, 8, member.seed)(0)))
            alone = torch.autograd.grad(loss, [*supernet.weights, *learned.head_weights])
        assert loss.item() == pytest.approx(losses[k].item(), rel=1e-6)
        mine = gradient[population.owner == k].double().square().sum().sqrt()
        assert mine == pytest.approx(sum(g.double().square().sum() for g in alone).sqrt().item(), rel=1e-4)
        assert mine > 1e-3


@pytest.mark.parametrize("make", [tiny_t5, tiny_bert])
def test_members_learn_what_retrain_teaches(make):
    model, task = calm(make()), toy_task()
    structures = some_structures(model)
    members = [Member(structures[0].candidates, 1e-2, 0), Member(structures[1].candidates, 3e-3, 0)]
    members.append(Member(structures[0].candidates, 1e-2, 1))
    with Population(model, task, members, RECIPE) as population:
        if population.objective.head is not None:
            population.objective.head.dropout.p = 0.0
        population.train()
        _, test = population.evaluate(task.test, best=True)
    for k, member in enumerate(members):
        structure = structures[1] if k == 1 else structures[0]
        recipe = {"steps": 6, "batch_size": 8, "evaluations": 2, "lr_warmup": 2, "vector_lr": 3.0}
        if make is tiny_bert:
            model.config.classifier_dropout = 0.0
        tuned = retrain(model, task, structure, lr=member.lr, seed=member.seed, **recipe)
        assert [score for _, score, _ in population.curves[k]] == [point["score"] for point in tuned.metrics["curve"]]
        assert population.best_step[k] == tuned.metrics["best_step"]
        assert test[k] == tuned.metrics["test"]
        mine = population.tensors(k)
        assert set(mine) == set(tuned.tensors())
        # what AdamW makes of the rounding errors of modules that do nothing here is not compared
        names = [name for name in mine if not name.startswith(INERT)]
        moved = {name: tuned.tensors()[name] for name in names if name.endswith(("/B", "/b", "/w", "weight"))}
        for name, tensor in moved.items():
            assert torch.allclose(mine[name], tensor, atol=2e-4), name


def test_a_dropped_member_changes_nothing_for_the_others():
    model, task = calm(tiny_t5()), toy_task()
    members = [Member(s.candidates, 1e-2, 0) for s in some_structures(model, 4)]

    def train(numbers, keep_at=None):
        with Population(model, task, [members[n] for n in numbers], RECIPE) as population:
            population.train(3)
            if keep_at:
                population.keep(keep_at)
            population.train()
            return population.curves, [population.tensors(k) for k in range(len(population.members))]

    curves, tensors = train([0, 1, 2, 3], keep_at=[1, 3])
    alone_curves, alone = train([1, 3])
    for one, other in zip(curves, alone_curves, strict=True):
        assert [point[:2] for point in one] == [point[:2] for point in other]
    for one, other in zip(tensors, alone, strict=True):
        assert all(torch.allclose(one[n], other[n], atol=2e-4) for n in other if not n.startswith(INERT))


def test_layers_below_all_sites_run_once_for_all_members():
    model, task = calm(tiny_t5()), toy_task()
    space = make_space(
        model, [Rule("lora", stacks=("decoder",), layers=(1,)), Rule("bitfit", stacks=("decoder",), layers=1)]
    )
    members = [Member((c,), 1e-2, 0) for c in space]
    with Population(model, task, members, RECIPE) as population:
        randomise(population.theta)
        shared = population._shared_blocks
        assert shared == [*model.encoder.block, model.decoder.block[0]]
        batches = [population.streams[0](0)] * len(members)
        rows_seen = []
        hook = (
            model.encoder.block[0]
            .layer[0]
            .SelfAttention.q.register_forward_hook(lambda module, inputs, output: rows_seen.append(len(output)))
        )
        quick, target = population._scores(batches)
        hook.remove()
        population._shared_blocks = []
        slow, _ = population._scores(batches)
    assert rows_seen == [len(batches[0])]
    assert torch.allclose(quick, slow, atol=1e-5)
    assert len({tuple(part.flatten().tolist()) for part in quick.unflatten(0, (len(members), -1))}) > 1


def test_a_member_that_diverges_harms_no_other():
    model, task = calm(tiny_t5()), toy_task()
    one, other = some_structures(model, 2)
    with Population(model, task, [Member(one.candidates, 1e30), Member(other.candidates, 1e-2)], RECIPE) as population:
        population.train()
        _, scores = population.evaluate(task.test)
    assert population.best[0] == -float("inf") or scores[0] != scores[0]
    with Population(model, task, [Member(other.candidates, 1e-2)], RECIPE) as alone:
        alone.train()
    assert [p[1] for p in population.curves[1]] == [p[1] for p in alone.curves[0]]


def test_the_backbone_is_as_it_was(monkeypatch):
    model, task = tiny_t5(), toy_task()
    model.requires_grad_(True).train()
    before = model(**tiny_batch(model.eval())).logits
    model.train()
    population = Population(model, task, [Member(s.candidates) for s in some_structures(model)], RECIPE)
    with population:
        assert is_attached(model)
        with pytest.raises(SearchError, match="another supernet"):
            Supernet(model, some_structures(model)[0]).attach()
        monkeypatch.setattr(population.objective, "losses", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            population.advance()
    assert not is_attached(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert torch.equal(model(**tiny_batch(model.eval())).logits, before)


def test_bad_populations_are_refused():
    model, task = tiny_t5(), toy_task()
    with pytest.raises(SearchError, match="at least one member"):
        Population(model, task, [], RECIPE)
    with pytest.raises(SearchError, match="'lm'"):
        Population(model, task, [Member(())], RECIPE, {"loss": "lm"})
