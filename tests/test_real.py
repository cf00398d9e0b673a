"""Real models and real data, where they are at hand: a 22.7 M encoder and a 260 k Llama-style language model."""

import pytest
import torch

from s3pet import attach, load_backbone, load_task, load_tuned, make_space, random_structure, retrain, search
from s3pet.backbones import backbone_checksum
from s3pet.space import Rule

pytestmark = pytest.mark.slow


def test_minilm_on_real_sentences_from_search_to_a_saved_model(minilm_path, shared_dir, tmp_path):
    model, tokenizer = load_backbone(minilm_path)
    task = load_task(shared_dir / "data" / "sst2", tokenizer, n_train=128, n_validation=32).subsample(n_test=32)
    assert "test is the published validation split" in " ".join(task.notes)
    space, checksum = make_space(model, "mixed"), backbone_checksum(model)
    assert space.backbone_params == 22_713_216
    assert len(make_space(model, "mixed", keep_inert=True)) - len(space) == 6
    result = search(model, task, space, budget="0.01%", steps=4, batch_size=8, progress=False, out=tmp_path / "run")
    structure = result.structure()
    assert 0 < structure.n_params <= 2271
    assert result.metrics["head_params"] == 384 * 2 + 2
    tuned = retrain(model, task, structure, steps=4, batch_size=8, evaluations=1, out=tmp_path / "tuned")
    assert backbone_checksum(model) == checksum
    again = load_tuned(tmp_path / "tuned", load_backbone(minilm_path).model, task)
    assert again.predict(task.test) == tuned.predict(task.test)


@torch.no_grad()
def test_candidates_on_minilm_change_nothing_at_first(minilm_path):
    model, tokenizer = load_backbone(minilm_path)
    batch = tokenizer(["a real sentence", "another , somewhat longer one"], padding=True, return_tensors="pt")
    before = model(**batch).last_hidden_state
    with attach(model, make_space(model, [Rule("adapter"), Rule("lora"), Rule("lnfit"), Rule("bitfit")])):
        assert torch.equal(model(**batch).last_hidden_state, before)


@pytest.mark.filterwarnings("ignore:.*tokens and are cut:UserWarning")
def test_a_real_language_model_is_searched_by_its_label_words(shared_dir):
    folder = shared_dir / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    model, tokenizer = load_backbone(folder)
    task = load_task(shared_dir / "data" / "sst2", tokenizer, n_train=64, n_validation=16).subsample(n_test=16)
    space = make_space(model, "mixed")
    assert not any(candidate.inert for candidate in space), "rotary positions make biases on keys matter"
    assert {candidate.role for candidate in space} >= {"ffn.gate", "attn.k", "final.norm"}
    key, query = (next(c for c in space if c.site == f"decoder.0.attn.{part}" and c.pet == "lora") for part in "kq")
    assert key.d_out == query.d_out // 2, "grouped queries: half as many keys"
    result = search(
        model, task, space, budget="1%", steps=4, batch_size=8, objective={"max_length": 64}, progress=False
    )
    tuned = retrain(model, task, result.structure(), steps=4, batch_size=8, evaluations=1, objective={"max_length": 64})
    assert 0 <= tuned.metrics["test"] <= 1


def test_regression_on_real_pairs(minilm_path, shared_dir):
    model, tokenizer = load_backbone(minilm_path)
    task = load_task(shared_dir / "data" / "stsb", tokenizer, n_train=64, n_validation=32).subsample(n_test=32)
    assert task.regression
    structure = random_structure(make_space(model, "mixed"), "0.01%")
    tuned = retrain(model, task, structure, steps=4, batch_size=8, evaluations=1)
    assert set(tuned.metrics["test_all"]) == {"pearson", "spearman"}
