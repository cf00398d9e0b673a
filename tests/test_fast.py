"""Every fast path gives what the general one gives, delta by delta: outputs, gradients, second derivatives."""

import pytest
import torch
from tiny import FAMILIES, VOCABULARY, tiny_batch, tiny_bert, tiny_llama, tiny_t5
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import toy_task
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from s3pet import Rule, attach, make_space
from s3pet import supernet as supernet_module
from s3pet.fused import fused_forward
from s3pet.searcher import Searcher
from s3pet.settings import Settings
from s3pet.structure import parse_budget
from s3pet.supernet import Supernet

SPACES = {
    "mixed": "mixed",
    "loras": [Rule("lora", ranks=(1, 3))],
    "linear": [Rule("lora", ranks=(2, 1)), Rule("bitfit")],
    "adapters": [Rule("adapter"), Rule("lowrank_adapter")],
}


@pytest.fixture
def exact_norms(monkeypatch):
    """Stock RMS norms compute in float32 even in a float64 model; these do not."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    for norm in (T5LayerNorm, MT5LayerNorm, LlamaRMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


@pytest.fixture
def general(monkeypatch):
    """From its call on, supernets go the general way."""
    return lambda: monkeypatch.setattr(supernet_module, "fused_forward", lambda *_: None)


def prepared(make_model, rules, kind=torch.float64):
    model = make_model().to(kind)
    space = make_space(model, rules, cross_attention=True)
    supernet = Supernet(model, space).to(kind)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in supernet.weights:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    gates = torch.rand(len(space), generator=generator, dtype=torch.float64).to(kind)
    return model, supernet, gates


def measured(model, supernet, gates, flat):
    """Output and gradients in gates, PET tensors and the embedded input."""
    weights = supernet.flatten().requires_grad_() if flat else list(supernet.weights)
    gates = None if gates is None else gates.clone().requires_grad_()
    seen = []
    words = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == VOCABULARY]
    hooks = [m.register_forward_hook(lambda _, __, output: seen.append(output.requires_grad_())) for m in words]
    with supernet, supernet.using(gates, weights):
        output = model(**tiny_batch(model))[0]
        fused = sum("forward" in vars(module) for module in model.modules())
        wanted = [*([weights] if flat else weights), *([] if gates is None else [gates]), *seen]
        found = torch.autograd.grad(output.tanh().pow(2).sum(), wanted, allow_unused=True, materialize_grads=True)
    for hook in hooks:
        hook.remove()
    return [output.detach(), *found], fused


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rules", SPACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_general_way(family, rules, gated, flat, exact_norms, general):
    def run():
        model, supernet, gates = prepared(FAMILIES[family], SPACES[rules])
        return measured(model, supernet, gates if gated else None, flat)

    fast, fused = run()
    general()
    slow, none = run()
    assert none == 0 and bool(fused) == (rules != "adapters")
    for ours, theirs in zip(fast, slow, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_second_derivatives_are_those_of_the_general_way(make_model, exact_norms, general):
    def run():
        model, supernet, gates = prepared(make_model, "mixed")
        model.set_attn_implementation("eager")  # fused attention has no second derivative on a CPU
        weights, gates = supernet.flatten().requires_grad_(), gates.requires_grad_()
        with supernet, supernet.using(gates, weights):
            loss = model(**tiny_batch(model))[0].tanh().pow(2).mean()
            (first,) = torch.autograd.grad(loss, weights, create_graph=True)
            return torch.autograd.grad(first.pow(2).sum(), [weights, gates])

    fast = run()
    general()
    for ours, theirs in zip(fast, run(), strict=True):
        assert theirs.abs().max() > 1e-8
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make_site", [lambda: nn.Linear(5, 4), lambda: nn.LayerNorm(5), lambda: T5LayerNorm(5)])
def test_derivatives_are_those_of_finite_differences(make_site, exact_norms):
    site = make_site().double().requires_grad_(False)
    pets = ["lora", "lora", "bitfit"] if isinstance(site, nn.Linear) else ["lnfit", "bitfit"]
    shapes = {"lora": {"A": (2, 5), "B": (4, 2)}, "lnfit": {"w": (5,)}, "bitfit": {"b": (site.weight.shape[0],)}}
    names = [(pet, name) for pet in pets for name in shapes[pet]]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shapes[p][n], generator=generator, dtype=torch.float64).requires_grad_() for p, n in names]
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).requires_grad_()

    def run(x, *tensors):
        left = iter(tensors)
        given = [{name: next(left) for name in shapes[pet]} for pet in pets]
        return fused_forward(site, pets, lambda: given)(x)

    assert torch.autograd.gradcheck(run, (x, *tensors))
    assert torch.autograd.gradgradcheck(run, (x, *tensors))


def test_what_is_not_known_goes_the_general_way():
    class Quantised(nn.Linear):
        """A linear map whose arithmetic is its own."""

        def forward(self, x):
            return super().forward(x).round()

    patched = nn.Linear(3, 3)
    patched.forward = lambda x: x
    integer = nn.Linear(3, 3)
    integer.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)
    for site in (Quantised(3, 3), patched, integer, nn.Conv1d(3, 3, 1), nn.RMSNorm(3)):
        assert fused_forward(site, ["bitfit"], list) is None
    assert fused_forward(nn.Linear(3, 3), ["adapter"], list) is None
    assert fused_forward(nn.Linear(3, 3), ["lora"], list) is not None


@pytest.mark.parametrize("make_model", [lambda: tiny_t5(std=0.1), tiny_bert, tiny_llama])
def test_a_model_of_half_precision_is_searched_too(make_model, general):
    """bfloat16 weights, float32 PET tensors: fresh ones change nothing, and both ways agree as far as bfloat16 goes."""

    def run():
        model, supernet, gates = prepared(make_model, "mixed", torch.bfloat16)
        return measured(model, supernet.float(), gates.float(), True)[0]

    model = make_model().bfloat16()
    with torch.no_grad():
        before = model(**tiny_batch(model))[0]
        with attach(model, make_space(model, "mixed")):
            assert torch.equal(model(**tiny_batch(model))[0], before)
    fast = run()
    assert fast[0].dtype == torch.bfloat16 and fast[1].dtype == torch.float32
    general()
    for ours, theirs in zip(fast, run(), strict=True):
        assert torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.float().flatten(), 0) > 0.99


def test_a_bias_alone_on_a_norm_of_half_precision():
    """The norm's weight is bfloat16 and its bias float32, a pair that torch itself refuses."""
    model = tiny_bert().bfloat16()
    norms = make_space(model, [Rule("bitfit", roles=("*.norm",))])
    before = model(**tiny_batch(model))[0]
    with attach(model, norms) as supernet, torch.no_grad():
        assert torch.equal(model(**tiny_batch(model))[0], before)
        for weight in supernet.weights:
            assert weight.dtype == torch.float32
            weight.fill_(0.5)
        shifted = model(**tiny_batch(model))[0]
    assert shifted.dtype == torch.bfloat16
    torch.testing.assert_close((shifted - before).float().mean(), torch.tensor(0.5), atol=0.1, rtol=0)


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_autocast_gives_what_full_precision_gives(make_model):
    model, supernet, gates = prepared(make_model, "mixed", torch.float32)
    full = measured(model, supernet, gates, True)[0]
    with torch.autocast("cpu", torch.bfloat16):
        narrow = measured(model, supernet, gates, True)[0]
    for ours, theirs in zip(narrow, full, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), 0) > 0.98


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
def test_a_step_reads_nothing_back_from_the_device_beyond_what_the_backbone_does(make_model, order, passes):
    model = make_model()
    space = make_space(model, "mixed")
    searcher = Searcher(model, toy_task(), space, parse_budget(space, 300), Settings(order=order, batch_size=4))
    for optimizer in (searcher.weight_optimizer, searcher.alpha_optimizer):
        optimizer.step = lambda: None  # AdamW reads its step count, which it keeps with the processor
    batch = searcher.objective.collate(searcher.train(0))
    with HostReads() as plain:
        searcher.objective.loss(batch)
    with searcher.supernet, HostReads() as step:
        searcher.advance()
    assert step.count == passes * plain.count
    with HostReads() as read:
        float(searcher.alpha.sum())
    assert read.count == 1, "it does count"
