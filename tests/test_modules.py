"""PET modules: cost equals numel, delta starts at zero, and is the formula once it no longer does."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from s3pet.backbones.norms import normalize
from s3pet.errors import UnknownSiteError
from s3pet.modules import PETS, pet_module

SIZES = {"lora": (48, 64), "bitfit": (48, 64), "lnfit": (64, 64), "lowrank_adapter": (64, 64), "adapter": (64, 64)}


def make_site(pet, d_in, d_out):
    return nn.LayerNorm(d_out) if pet == "lnfit" else nn.Linear(d_in, d_out)


def fresh(pet, rank=None, seed=0, size=None):
    module = pet_module(pet)
    d_in, d_out = size or SIZES[pet]
    rank = rank or module.default_rank or 1
    return module, module.init(d_in, d_out, rank, torch.Generator().manual_seed(seed)), (d_in, d_out, rank)


@pytest.mark.parametrize("pet", PETS)
@pytest.mark.parametrize("rank", [1, 3])
def test_cost_is_the_number_of_trainable_parameters(pet, rank):
    module, tensors, (d_in, d_out, r) = fresh(pet, rank)
    assert module.cost(d_in, d_out, r) == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(("d_in", "d"), [(96, 96), (48, 64), (16, 16)])
def test_costs_are_the_closed_forms(d_in, d, rank):
    m = max(1, d // 32)
    costs = {"lora": rank * (d_in + d), "lnfit": d, "bitfit": d}
    costs |= {"lowrank_adapter": 2 * rank * (d + m) + m + d, "adapter": 2 * d * rank + d + rank}
    assert {name: pet.cost(d_in, d, rank) for name, pet in PETS.items()} == costs


@pytest.mark.parametrize(
    ("pet", "size", "cost"),
    [
        ("lora", (1024, 4096), 5120),
        ("bitfit", (1024, 4096), 4096),
        ("lnfit", (1024, 1024), 1024),
        ("lowrank_adapter", (1024, 1024), 3168),
        ("lowrank_adapter", (512, 512), 1584),
        ("lowrank_adapter", (768, 768), 2376),
        ("lowrank_adapter", (16, 16), 51),
    ],
)
def test_costs_of_the_paper(pet, size, cost):
    assert pet_module(pet).cost(*size, 1) == cost


@pytest.mark.parametrize("pet", PETS)
def test_delta_is_exactly_zero_at_the_start_and_not_after(pet):
    module, tensors, (d_in, d_out, _) = fresh(pet)
    site = make_site(pet, d_in, d_out)
    x, h = torch.randn(2, 3, d_in), torch.randn(2, 3, d_out)
    assert torch.equal(h + module.delta(tensors, x, h, site), h)
    assert any(not tensor.any() for tensor in tensors.values())
    moved = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}
    assert float(module.delta(moved, x, h, site).detach().abs().max()) > 0.01


@pytest.mark.parametrize("pet", PETS)
def test_gate_multiplies_the_delta(pet):
    module, tensors, (d_in, d_out, _) = fresh(pet)
    moved = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}
    x, h, site = torch.randn(2, d_in), torch.randn(2, d_out), make_site(pet, d_in, d_out)
    full = module.delta(moved, x, h, site)
    gated = {name: 0.3 * t if name in module.gated else t for name, t in moved.items()}
    torch.testing.assert_close(module.delta(gated, x, h, site), 0.3 * full, rtol=1e-4, atol=1e-4)


def test_formulas():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x, h, site = draw(5, 6), draw(5, 8), nn.Linear(6, 8)
    lora = {"A": draw(2, 6), "B": draw(8, 2)}
    expected = (16 / 2) * x @ lora["A"].T @ lora["B"].T
    torch.testing.assert_close(PETS["lora"].delta(lora, x, h, site), expected)
    adapter = {"W1": draw(3, 8), "b1": draw(3), "W2": draw(8, 3), "b2": draw(8)}
    expected = F.gelu(h @ adapter["W1"].T + adapter["b1"]) @ adapter["W2"].T + adapter["b2"]
    torch.testing.assert_close(PETS["adapter"].delta(adapter, x, h, site), expected)
    low = {k: draw(*v) for k, v in PETS["lowrank_adapter"].shapes(64, 64, 1).items()}
    h = draw(5, 64)
    down = h @ (low["down_out"] @ low["down_in"]).T + low["down_bias"]
    expected = F.gelu(down, approximate="tanh") @ (low["up_out"] @ low["up_in"]).T + low["up_bias"]
    torch.testing.assert_close(PETS["lowrank_adapter"].delta(low, h, h, site), expected, rtol=1e-4, atol=1e-3)


def test_lnfit_and_bitfit_change_the_norm_s_own_weight_and_bias():
    norm = nn.LayerNorm(8)
    w, b, x = torch.randn(8), torch.randn(8), torch.randn(4, 8)
    h = norm(x)
    changed = h + PETS["lnfit"].delta({"w": w}, x, h, norm) + PETS["bitfit"].delta({"b": b}, x, h, norm)
    torch.testing.assert_close(changed, F.layer_norm(x, (8,), norm.weight + w, norm.bias + b))


def test_rms_norm_is_recognised():
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    norm, x = T5LayerNorm(8), torch.randn(4, 8)
    torch.testing.assert_close(normalize(norm, x), x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6))


def test_fresh_lora_is_within_the_kaiming_bound_and_seeded():
    _, tensors, _ = fresh("lora", seed=3)
    assert float(tensors["A"].abs().max()) <= 1 / math.sqrt(48)
    assert float(tensors["A"].std()) == pytest.approx(1 / math.sqrt(3 * 48), rel=0.3)
    assert torch.equal(tensors["A"], fresh("lora", seed=3)[1]["A"])
    assert not torch.equal(tensors["A"], fresh("lora", seed=4)[1]["A"])


def test_unknown_module_names_the_nearest():
    with pytest.raises(UnknownSiteError, match="nearest: 'lora'"):
        pet_module("lorra")
    with pytest.raises(LookupError):
        pet_module("prefix")
