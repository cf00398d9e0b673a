"""The supernet: on and off without a trace, only PET tensors trained, gates and weights swapped exactly."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_bert, tiny_t5

from s3pet import Rule, attach, make_space, random_structure
from s3pet.backbones import backbone_checksum
from s3pet.errors import SearchError, StructureMismatchError
from s3pet.modules import PETS
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


def test_rates_are_for_the_tensors_of_biases_and_norms():
    model = tiny_bert()
    space = make_space(model, [Rule(pet) for pet in PETS])
    assert {pet for pet in PETS if PETS[pet].is_vector} == {"bitfit", "lnfit"}
    supernet = Supernet(model, space)
    with torch.no_grad():
        for key, weight in zip(supernet.keys, supernet.weights, strict=True):
            weight.fill_(7.0 if key.split(":")[1].split("/")[0] in ("bitfit", "lnfit") else 1.0)
    assert torch.equal(supernet.rates(7.0), supernet.flatten())
    assert len(supernet.vectors()) == sum(candidate.pet in ("bitfit", "lnfit") for candidate in space)


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
