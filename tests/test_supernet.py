"""The supernet: on and off without a trace, only PET tensors trained, gates and weights swapped exactly."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_bert, tiny_llama, tiny_t5

from s3pet import attach, make_space, random_structure
from s3pet.backbones import backbone_checksum
from s3pet.errors import SearchError, StructureMismatchError
from s3pet.modules import PETS
from s3pet.space import Rule
from s3pet.supernet import Supernet


def randomize(supernet, std=0.3):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in supernet.weights:
            weight.normal_(std=std, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pet", PETS)
@torch.no_grad()
def test_attach_and_detach_are_bit_exact(family, pet):
    model = FAMILIES[family]()
    batch, checksum = tiny_batch(model), backbone_checksum(model)
    before = model(**batch)[0]
    with attach(model, make_space(model, [Rule(pet)], cross_attention=True)) as supernet:
        assert torch.equal(model(**batch)[0], before), "fresh modules must be the identity"
        randomize(supernet)
        assert not torch.equal(model(**batch)[0], before), "trained modules must not"
    assert torch.equal(model(**batch)[0], before)
    assert backbone_checksum(model) == checksum
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_only_pet_tensors_get_gradients(family):
    model = FAMILIES[family]()
    flags = [index % 2 == 0 for index, _ in enumerate(model.parameters())]
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    with attach(model, make_space(model, "mixed")) as supernet:
        randomize(supernet, std=0.02)
        model(**tiny_batch(model))[0].float().pow(2).mean().backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in supernet.weights)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert {name.split(".")[0] for name, _ in supernet.named_parameters()} == {"weights"}


def test_a_zero_gate_is_an_absent_candidate_and_one_is_the_default():
    model = tiny_t5()
    space, batch = make_space(model, "mixed"), tiny_batch(model)
    with torch.no_grad(), attach(model, space) as supernet:
        plain = Supernet(model, [])
        randomize(supernet)
        full = model(**batch)[0]
        with supernet.using(torch.ones(len(space))):
            torch.testing.assert_close(model(**batch)[0], full)
        with supernet.using(torch.zeros(len(space))):
            off = model(**batch)[0]
        assert torch.equal(model(**batch)[0], full)
    with torch.no_grad():
        assert torch.equal(off, plain(**batch)[0])


def test_the_mask_gives_the_structure_s_own_output():
    """Gates of 0 and 1 on the supernet equal the chosen structure attached alone, with the same tensors."""
    model = tiny_bert()
    space, batch = make_space(model, "mixed"), tiny_batch(model)
    structure = random_structure(space, 400, seed=2)
    mask = torch.tensor([float(candidate.name in structure.names) for candidate in space])
    supernet, alone = Supernet(model, space), Supernet(model, structure)
    randomize(supernet)
    tensors = supernet.tensors()
    alone.load({key: tensors[key] for key in alone.keys})
    with torch.no_grad():
        with supernet, supernet.using(mask):
            expected = model(**batch)[0]
        torch.testing.assert_close(alone(**batch)[0], expected)


def test_other_weights_for_one_call():
    model = tiny_t5()
    batch = tiny_batch(model)
    with torch.no_grad(), attach(model, make_space(model, "lora")) as supernet:
        before = model(**batch)[0]
        other = [torch.randn_like(weight) for weight in supernet.weights]
        with supernet.using(weights=other):
            swapped = model(**batch)[0]
        assert torch.equal(model(**batch)[0], before)
        supernet.load(dict(zip(supernet.keys, other, strict=True)))
        assert torch.equal(model(**batch)[0], swapped)


def test_fresh_tensors_depend_on_seed_and_candidate_only():
    model = tiny_t5()
    space = make_space(model, "mixed")
    structure = random_structure(space, 300, seed=0)
    whole, part = Supernet(model, space, seed=5).tensors(), Supernet(model, structure, seed=5).tensors()
    assert all(torch.equal(whole[key], tensor) for key, tensor in part.items())
    other = Supernet(model, structure, seed=6).tensors()
    assert any(not torch.equal(other[key], tensor) for key, tensor in part.items())


def test_vectors_are_the_tensors_of_biases_and_norms():
    model = tiny_bert()
    space = make_space(model, [Rule(pet) for pet in PETS])
    supernet = Supernet(model, space)
    expected = {
        id(w) for key, w in zip(supernet.keys, supernet.weights, strict=True) if key.endswith(("bitfit/b", "lnfit/w"))
    }
    assert {id(weight) for weight in supernet.vectors()} == expected and len(expected) > 4


def test_the_flat_vector_is_the_same_tensors():
    model = tiny_t5()
    space, batch = make_space(model, "mixed"), tiny_batch(model)
    supernet = Supernet(model, space)
    randomize(supernet)
    before = [weight.detach().clone() for weight in supernet.weights]
    flat, gates = supernet.flatten(), torch.rand(len(space))
    assert all(torch.equal(one, other) for one, other in zip(supernet.weights, before, strict=True))
    with torch.no_grad(), supernet:
        with supernet.using(gates, flat):
            one = model(**batch)[0]
        with supernet.using(gates, list(supernet.weights)):
            other = model(**batch)[0]
    assert torch.equal(one, other)
    flat.zero_()
    assert all(not weight.any() for weight in supernet.weights), "memory is shared"


def test_a_gate_multiplies_its_delta():
    """A linear map with LoRA and BitFit at gates of 0.3 and 0.7, computed by hand."""
    model = tiny_t5()
    space = make_space(model, [Rule("lora", roles=("attn.q",), layers=(0,), stacks=("encoder",), ranks=(2,)),
                               Rule("bitfit", roles=("attn.q",), layers=(0,), stacks=("encoder",))])  # fmt: skip
    site, x = model.encoder.block[0].layer[0].SelfAttention.q, torch.randn(2, 3, 32)
    with torch.no_grad(), attach(model, space) as supernet:
        randomize(supernet)
        tensors = supernet.tensors()
        a, b = tensors["encoder.0.attn.q:lora:2/A"], tensors["encoder.0.attn.q:lora:2/B"]
        lora, bias = 16 / 2 * (x @ a.T) @ b.T, tensors["encoder.0.attn.q:bitfit/b"]
        with supernet.using(torch.tensor([0.3, 0.7])):
            torch.testing.assert_close(site(x), x @ site.weight.T + 0.3 * lora + 0.7 * bias)


def test_a_backward_pass_outside_the_gates_is_refused_with_checkpointing():
    model = tiny_t5().train()
    space, batch = make_space(model, "lora"), tiny_batch(model)
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")()
    with attach(model, space) as supernet:
        with supernet.using(torch.full((len(space),), 0.5)):
            inside = model(**batch)[0].sum()
            inside.backward()
            outside = model(**batch)[0].sum()
        with pytest.raises(SearchError, match="with other gates than in the forward pass"):
            outside.backward()


def test_two_at_once_are_refused_and_an_error_leaves_no_trace():
    model = tiny_t5()
    space = make_space(model, "lora")
    with attach(model, space), pytest.raises(SearchError, match="another supernet"):
        attach(model, space)
    with pytest.raises(ZeroDivisionError), attach(model, space):
        raise ZeroDivisionError
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())
    with attach(model, space):
        pass


def test_candidates_of_another_model_are_refused():
    with pytest.raises(StructureMismatchError):
        attach(tiny_bert(), make_space(tiny_t5(), "lora"))
    with pytest.raises(StructureMismatchError):
        Supernet(tiny_bert(), random_structure(make_space(tiny_t5(), "lora"), 300))


def test_saved_tensors_of_another_shape_are_refused():
    model = tiny_t5()
    supernet = Supernet(model, make_space(model, "lora"))
    with pytest.raises(StructureMismatchError, match="lack or misshape"):
        supernet.load({key: tensor[:1] for key, tensor in supernet.tensors().items()})


@pytest.mark.parametrize("make_model", [lambda: tiny_t5(std=0.1), tiny_bert, tiny_llama])
def test_a_model_of_half_precision_keeps_float32_modules(make_model):
    """Fresh modules change nothing; trained ones act as in full precision, as far as bfloat16 goes."""
    outputs = []
    for kind in (torch.float32, torch.bfloat16):
        model = make_model().to(kind)
        with torch.no_grad():
            before = model(**tiny_batch(model))[0]
            with attach(model, make_space(model, "mixed")) as supernet:
                assert torch.equal(model(**tiny_batch(model))[0], before)
                assert all(weight.dtype == torch.float32 for weight in supernet.weights)
                randomize(supernet, std=0.1)
                outputs.append(model(**tiny_batch(model))[0] - before)
        assert outputs[-1].dtype == kind
    one, other = (output.float().flatten() for output in outputs)
    assert torch.nn.functional.cosine_similarity(one, other, 0) > 0.95


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_bert, tiny_llama])
def test_autocast_gives_what_full_precision_gives(make_model):
    model = make_model()
    space, batch = make_space(model, "mixed"), tiny_batch(model)
    with torch.no_grad(), attach(model, space) as supernet:
        randomize(supernet, std=0.1)
        full = model(**batch)[0]
        with torch.autocast("cpu", torch.bfloat16):
            narrow = model(**batch)[0]
    assert torch.nn.functional.cosine_similarity(narrow.float().flatten(), full.flatten(), 0) > 0.98
