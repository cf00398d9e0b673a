"""A walk through many architectures: each gets a space, is searched, retrained, saved and loaded with equal logits."""

import copy
import functools
import gc
import re

import pytest
import torch
from tiny import state_of
from toy import toy_rows, toy_tokenizer
from zoo import MERGED, OTHER, TEXT, zoo_model

from s3pet import attach, load_task, load_tuned, make_space, retrain, search
from s3pet.backbones import backbone_checksum
from s3pet.backbones.examples import example_batches
from s3pet.backbones.sites import find_sites
from s3pet.errors import BackboneError, ExportError
from s3pet.export.merging import merge_into

NO_SITES = {
    "ibert": "not called with one tensor alone",  # integers and their scale go from module to module
    "squeezebert": "no list of layers with linear maps",  # convolutions, channels first
    "resnet": "no list of layers with linear maps",
}
SITES = {  # sites of models that read no text
    "vit": 21, "vit-classifier": 21, "deit": 21, "beit": 21, "dinov2": 21, "vit-mae": 21, "siglip-vision": 22,
    "clip-vision": 22, "swin": 23, "convnext": 8, "clip": 43, "llava": 34, "whisper": 54, "speech-to-text": 54,
    "wav2vec2": 22, "hubert": 22, "wavlm": 14, "ast": 21, "vivit": 21, "segformer": 25,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick_garbage_collection():
    """The Trainer collects garbage at each start; what exists before it need not be looked at again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@functools.cache
def small_task():
    """Eight rows; a tokenizer that gives ids and a mask alone, which all models take."""
    tokenizer = copy.copy(toy_tokenizer())
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    data = {name: toy_rows(n, seed) for seed, (name, n) in enumerate([("train", 8), ("validation", 4), ("test", 4)])}
    return load_task(data, tokenizer, label_words=("no", "yes"))


def logits(tuned):
    """Scores of the test rows."""
    objective = tuned.learner.objective
    objective.eval()
    with torch.no_grad(), tuned.learner.attached():
        return objective.scores(objective.collate(objective.encode(tuned.task.test)))


@pytest.mark.parametrize("name", [name for name in TEXT if name not in NO_SITES])
def test_a_text_model_from_space_to_saved_structure(name, tmp_path):
    model, task = zoo_model(name), small_task()
    before = state_of(model)
    space = make_space(model, "mixed")
    assert state_of(model) == before
    assert {"lora", "bitfit"} <= {c.pet for c in space} and len(set(space.names)) == len(space)
    assert not {item.path for item in space.left_out} & {c.path for c in space}
    quick = {"steps": 3, "batch_size": 2}
    result = search(model, task, space, budget=space.n_params // 3, progress=False, **quick)
    tuned = retrain(model, task, result.structure(), evaluations=1, test=False, **quick)
    tuned.save(tmp_path / "tuned")
    again = load_tuned(tmp_path / "tuned", zoo_model(name), task)
    torch.testing.assert_close(logits(again), logits(tuned), rtol=0, atol=1e-6)
    assert backbone_checksum(model) == before["tensors"]


@pytest.mark.parametrize("name", NO_SITES)
def test_a_model_without_sites_says_why(name):
    with pytest.raises(BackboneError, match=NO_SITES[name]):
        make_space(zoo_model(name))


@pytest.mark.parametrize("name", [name for name in OTHER if name not in NO_SITES])
def test_other_models_have_their_sites(name):
    model = zoo_model(name)
    before = state_of(model)
    space = make_space(model, "mixed", keep_inert=True, cross_attention=True)
    assert state_of(model) == before
    assert len({candidate.site for candidate in space}) == SITES[name]
    with attach(model, space):
        assert sum(len(module._forward_hooks) > 0 for module in model.modules()) > 0


def first_output(model, batch):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return model(**batch)[0]


def merged_output(model, candidates, batch):
    """First output with random PET tensors attached, and with the same tensors merged into a copy."""
    with attach(model, candidates) as supernet:
        generator = torch.Generator().manual_seed(1)
        for tensor in supernet.tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        expected = first_output(model, batch)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        merge_into(twin, supernet.candidates, supernet.tensors(), batch)
    return expected, first_output(twin, batch)


UNMERGED = {  # have norms without a bias that a scan, stacked experts, rotary positions or a sum read
    "jamba", "granite-hybrid", "qwen3-next", "olmo-hybrid", "minimax", "apertus", "doge", "dots1", "flex-olmo",
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_merging_is_exact_or_refused_by_name(name):
    """Logits within 1e-5 of their largest value (float32); every norm's BitFit alone, then all the rest at once."""
    model, runs = zoo_model(name), []
    space = make_space(model, "mixed", cross_attention=True)
    for batch in example_batches(model):
        try:
            runs = [(batch, first_output(model, batch))]
            break
        except Exception:  # not an input of this model
            continue
    (batch, before), unmerged = runs[0], 0
    norms = [c for c in space if c.pet == "bitfit" and "norm" in c.role]
    others = [c for c in space if c.pet in ("lora", "lnfit", "bitfit") and c not in norms]
    expected, merged = merged_output(model, others, batch)
    pairs = [(expected, merged)]
    assert float((expected - before).abs().max()) > 1e-3
    for norm in norms:
        try:
            pairs.append(merged_output(model, [norm], batch))
        except ExportError as refusal:
            unmerged += norm.path in str(refusal)
    for expected, merged in pairs:
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5 * scale)
    assert len(pairs) + unmerged == 1 + len(norms)
    assert (unmerged > 0) == (name in UNMERGED)


@pytest.mark.parametrize("name", ["modernbert", "bert", "gpt2", "llama"])
def test_norms_have_the_same_role_in_all_layers(name):
    roles = {}
    for site in find_sites(zoo_model(name)):
        if site.layer is not None and site.kind == "norm":
            roles.setdefault(re.sub(r"\.\d+\.", ".N.", site.path), set()).add(site.role)
    assert [len(own) for own in roles.values()] == [1] * len(roles)
    assert {"attn.norm", "ffn.norm"} == set().union(*roles.values())
