"""A merged model computes what the tuned one does, in memory and after from_pretrained, or it is not saved."""

import pytest
import torch
from tiny import FAMILIES, tiny_batch, tiny_bert, tiny_classifier, tiny_llama, tiny_roberta, tiny_t5
from toy import short_task
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel, pipeline
from tuned import logits, structure_of, tuned_at_random
from zoo import zoo_model

from s3pet import make_space, merge
from s3pet.backbones import backbone_checksum
from s3pet.errors import ExportError, RunError
from s3pet.export.merging import merge_into
from s3pet.space import Candidate
from s3pet.supernet import Supernet

PETS = ("lora", "lnfit", "bitfit")


def untied_t5():
    model = tiny_t5(gated=True)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)
    return model


MODELS = {**FAMILIES, "t5_untied": untied_t5}


def scores_of(tuned, batch):
    """Of the task head; a fresh one is in training mode."""
    objective = tuned.learner.objective.eval()
    with torch.no_grad(), tuned.learner.attached():
        return objective.scores(batch)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("pet", PETS)
def test_logits_are_equal_and_none_of_the_modules_is_idle(family, pet):
    model = MODELS[family]()
    before, batch = backbone_checksum(model), tiny_batch(model)
    tuned = tuned_at_random(model, structure_of(model, pet))
    tensors = backbone_checksum(tuned.model)
    merged = merge(tuned)
    expected = logits(tuned.model, batch)
    if tuned.learner.objective.head is not None:
        assert type(merged.model).__name__.endswith("ForSequenceClassification") and merged.head is None
        expected = scores_of(tuned, batch)
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits(merged.model, batch), expected, rtol=0, atol=5e-5 * max(scale, 1))
    assert merged.difference <= 5e-5 * max(scale, 1)
    assert backbone_checksum(tuned.model) == tensors, "the tuned model keeps its tensors"
    difference = (logits(tuned.model, batch) - logits(model, batch)).abs().max()
    assert difference > 0.01, "the modules change the logits by far more than merging does"
    assert backbone_checksum(model) == before and not hasattr(model, "_s3pet_attached")
    assert not any(part._forward_hooks for part in merged.model.modules())


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama, tiny_bert, tiny_roberta])
def test_all_modules_together_are_saved_and_loaded_with_equal_logits(make_model, tmp_path):
    model = make_model()
    pets = ("lora", "lnfit") if make_model is tiny_t5 else ("lora", "lnfit", "bitfit")
    has_place = lambda c: c.pet != "bitfit" or c.site != "decoder.final.norm"  # noqa: E731
    tuned = tuned_at_random(model, structure_of(model, *pets, keep=has_place))
    merged = merge(tuned)
    assert merged.save(tmp_path / "out") == tmp_path / "out"
    again = type(merged.model).from_pretrained(tmp_path / "out").eval()
    batch = tiny_batch(model)
    assert torch.equal(logits(again, batch), logits(merged.model, batch))
    with pytest.raises(RunError, match="holds a model; choose another folder or pass overwrite=True"):
        merged.save(tmp_path / "out")
    (tmp_path / "out" / "model-00001-of-00002.safetensors").write_text("of the old model")
    (tmp_path / "out" / "notes.txt").write_text("the user's")
    merged.save(tmp_path / "out", overwrite=True)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"notes.txt", "model.safetensors"} <= names and "model-00001-of-00002.safetensors" not in names
    assert not [*(tmp_path / "out").glob(".part*")]
    if make_model is tiny_llama:
        assert again.config.attention_bias and again.config.mlp_bias, "the biases have a place in the config"
        assert {"q_proj", "gate_proj"} <= {n.split(".")[-2] for n, p in again.named_parameters() if n.endswith("bias")}
        text = pipeline("text-generation", str(tmp_path / "out"))("w1 w2", max_new_tokens=2, do_sample=False)
        assert text[0]["generated_text"].startswith("w1 w2")


@pytest.mark.parametrize("make_model", [tiny_bert, tiny_roberta])
def test_the_pipeline_gives_the_predictions_by_name(make_model, tmp_path):
    model, task = make_model(), short_task(3)
    tuned = tuned_at_random(model, structure_of(model, *PETS), task)
    merge(tuned).save(tmp_path)
    texts = ["w1 w2 w3", "w9", "w30 w31"]
    expected = tuned.predict(texts, proba=True)
    for row, scores in enumerate(pipeline("text-classification", str(tmp_path), top_k=None)(texts)):
        assert {entry["label"]: entry["score"] for entry in scores} == pytest.approx(dict(expected.iloc[row]), abs=1e-5)


def test_switches_of_a_config_give_norms_and_linear_maps_a_bias(tmp_path):
    model = zoo_model("modernbert-decoder")
    tuned = tuned_at_random(model, structure_of(model, "lora", "bitfit", keep=lambda c: "final" not in c.role))
    merged = merge(tuned)
    merged.save(tmp_path)
    batch, again = tiny_batch(model), type(merged.model).from_pretrained(tmp_path).eval()
    assert again.config.norm_bias and again.config.attention_bias and again.model.layers[1].mlp_norm.bias.any()
    torch.testing.assert_close(logits(again, batch), logits(merged.model, batch), rtol=0, atol=1e-6)


def test_a_model_without_a_config_is_merged_in_place():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    batch = {"src": torch.randn(2, 5, 16)}
    space = make_space(model, [{"pet": pet} for pet in PETS], example=batch)
    assert "not called by the module around it" in dict(space.left_out)["layers.0.self_attn.out_proj"]
    supernet = Supernet(model, space)
    for tensor in supernet.tensors().values():
        tensor.normal_(std=0.1)
    with torch.no_grad():
        expected = supernet(**batch)
        merge_into(model, space, supernet.tensors(), batch)
        torch.testing.assert_close(model(**batch), expected, rtol=0, atol=1e-5)


def test_a_regression_and_another_pooling_are_merged_too(tmp_path):
    model = tiny_bert()
    tuned = tuned_at_random(model, structure_of(model, "lora"), short_task(3, regression=True))
    merge(tuned).save(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.num_labels == 1
    with torch.no_grad():
        values = [again(**tuned.task.tokenizer(t, return_tensors="pt")).logits.item() for t in ("w1", "w2 w3")]
    assert values == pytest.approx(tuned.predict(["w1", "w2 w3"]), abs=1e-4)
    mean = tuned_at_random(model, structure_of(model, "lora"), objective={"pooling": "mean"})
    merged = merge(mean)
    merged.save(tmp_path / "mean")
    with torch.no_grad():
        state = merged.model(**mean.task.tokenizer("w1 w2", return_tensors="pt")).last_hidden_state.mean(1)
        scores = merged.head(state).softmax(-1)
    assert scores[0].tolist() == pytest.approx(mean.predict(["w1 w2"], proba=True).iloc[0].tolist(), abs=1e-5)
    assert (tmp_path / "mean" / "head.safetensors").is_file()


def test_a_classifier_of_the_user_gives_its_encoder():
    model = tiny_classifier()
    tuned = tuned_at_random(model, structure_of(model, "lora", "bitfit"))
    batch = tiny_batch(model)
    expected = scores_of(tuned, batch)
    torch.testing.assert_close(logits(merge(tuned).model, batch), expected, rtol=0, atol=1e-4)


def test_biases_that_from_pretrained_would_lose_are_not_saved(tmp_path):
    for make_model, name in ((tiny_t5, "q.bias"), (tiny_llama, "lm_head.bias")):
        model = make_model()
        merged = merge(tuned_at_random(model, structure_of(model, "bitfit")))
        assert any(key.endswith(name) for key in merged.model.state_dict())
        with pytest.raises(ExportError, match=r"from_pretrained would lose .* biases"):
            merged.save(tmp_path / "out")
        with pytest.raises(ExportError, match="search a space without them: make_space"):
            merged.model.save_pretrained(tmp_path)
        assert not (tmp_path / "out").exists(), "nothing is half written"


def test_what_cannot_be_merged_is_named():
    model = tiny_t5()
    tuned = tuned_at_random(model, structure_of(model, "lora", "adapter", "lowrank_adapter"))
    with pytest.raises(
        ExportError, match=r"adapters cannot be merged.*attn:.*\(\d+ in all\).*load_tuned.*make_space\(model, "
    ):
        merge(tuned)
    tuned = tuned_at_random(model, structure_of(model, "lora"))
    with tuned.model, pytest.raises(ExportError, match="a supernet is attached"):
        merge(tuned)
    tuned.structure, tuned.config["structure"] = None, "adalora"
    with pytest.raises(ExportError, match="modules of adalora are another library's"):
        merge(tuned)


@pytest.mark.parametrize("what", ["full", "head", "zero-shot"])
def test_references_are_plain_models(what):
    model, batch = tiny_bert(), tiny_batch(tiny_bert())
    tuned = tuned_at_random(model, what)
    expected = scores_of(tuned, batch)
    torch.testing.assert_close(logits(merge(tuned).model, batch), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_single(dtype):
    model = tiny_t5(std=0.1).to(dtype)
    merged = merge(tuned_at_random(model, structure_of(model, *PETS), std=0.05))
    assert 0 < merged.difference < 0.1 and merged.model.dtype == dtype


def gpt2_candidates(model):
    roles = {"attn.c_attn": "attn.qkv", "mlp.c_fc": "ffn.in", "mlp.c_proj": "ffn.out", "ln_1": "attn.norm"}
    for path, role in [(f"transformer.h.{n}.{path}", role) for n in (0, 1) for path, role in roles.items()]:
        weight = model.get_submodule(path).weight
        for pet, rank in [("lnfit", None)] if role == "attn.norm" else [("lora", 2)]:
            yield Candidate(path, path, "decoder", 0, role, pet, rank, 1, weight.shape[0], weight.shape[-1])
        yield Candidate(path, path, "decoder", 0, role, "bitfit", None, 1, weight.shape[0], weight.shape[-1])


def test_gpt2_has_transposed_weights():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=40)).eval()
    supernet, batch = Supernet(model, gpt2_candidates(model)), tiny_batch(model)
    for tensor in supernet.tensors().values():
        tensor.normal_(std=0.1)
    expected, before = logits(supernet, batch), logits(model, batch)
    with torch.no_grad():
        merge_into(model, supernet.candidates, supernet.tensors(), batch)
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=1e-5)
    assert (expected - before).abs().max() > 0.01


def test_weights_that_are_shared_or_quantised_are_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=40)).eval()
    head = Candidate("head", "lm_head", "decoder", None, "head", "lora", 1, 96, 32, 64)
    supernet = Supernet(model, [head])
    with pytest.raises(ExportError, match="lm_head is shared with another module"):
        merge_into(model, [head], supernet.tensors(), tiny_batch(model))
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ExportError, match=r"lm_head is quantised \(Linear\)"):
        merge_into(model, [head], supernet.tensors(), tiny_batch(model))
