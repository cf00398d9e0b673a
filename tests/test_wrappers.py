"""What is wrapped around a model, and what a supernet is put into: it works, or is refused by name."""

import pytest
import torch
from tiny import tiny_batch, tiny_bert, tiny_llama, tiny_t5
from toy import short_task, toy_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)
from tuned import structure_of, tuned_at_random

from s3pet import attach, make_space, retrain
from s3pet.backbones import n_parameters
from s3pet.errors import BackboneError, SearchError
from s3pet.objectives import ModelLoss
from s3pet.supernet import Supernet
from s3pet.tasks.plain import RowTask, exact_match


def test_a_compiled_model_is_refused_and_a_supernet_can_be_compiled():
    model, batch = tiny_t5(), tiny_batch(tiny_t5())
    structure = structure_of(model, "lora")
    compiled = torch.compile(model, backend="eager")
    retrained = (lambda m, s: retrain(m, short_task(), s), lambda m, s: retrain(m, short_task(), "full"))
    for call in (attach, *retrained, lambda m, s: make_space(m)):
        with pytest.raises(BackboneError, match=r"compiled.*model._orig_mod"):
            call(compiled, structure)
    supernet = Supernet(model, structure)
    for tensor in supernet.tensors().values():
        tensor.normal_(std=0.1)
    with torch.no_grad(), supernet:
        expected = supernet(**batch).logits
        torch._dynamo.reset()
        late = torch.compile(supernet, backend="eager")
        torch.testing.assert_close(late(**batch).logits, expected)
    model.compile(backend="eager")
    with pytest.raises(BackboneError, match="compiled"):
        attach(model, structure)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # 2026-11: PEFT 0.21
def test_a_model_in_pefts_hands_is_refused():
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model, structure = tiny_t5(), structure_of(tiny_t5(), "lnfit")
    wrapped = peft.get_peft_model(tiny_t5(), peft.LoraConfig(target_modules=["q"]))
    inside = tiny_t5()
    inside.add_adapter(peft.LoraConfig(target_modules=["q"]))
    for one in (wrapped, inside):
        with pytest.raises(BackboneError, match="modules of PEFT"):
            make_space(one)
        with pytest.raises(BackboneError, match=r"modules of PEFT; pass model.merge_and_unload\(\)"):
            attach(one, structure)
    with attach(wrapped.merge_and_unload(), structure):
        pass
    assert n_parameters(model) == n_parameters(wrapped.merge_and_unload())


class Packed(torch.nn.Linear):
    """As 4-bit weights are kept: two numbers in a byte."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight = torch.nn.Parameter(
            torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False
        )


def test_parameters_of_packed_weights_are_counted_as_unpacked():
    model = tiny_llama()
    expected = n_parameters(model)
    assert expected == sum(p.numel() for p in model.parameters())
    layer = model.model.layers[0]
    layer.self_attn.q_proj = Packed(layer.self_attn.q_proj)
    buffered = torch.nn.Module()  # as GPTQ keeps them, in buffers
    buffered.in_features, buffered.out_features = layer.mlp.up_proj.in_features, layer.mlp.up_proj.out_features
    buffered.register_buffer("qweight", torch.zeros(7, dtype=torch.int32))
    layer.mlp.up_proj = buffered
    assert sum(p.numel() for p in model.parameters()) < expected == n_parameters(model)
    assert n_parameters(model.half()) == expected


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_llama])
def test_generation_has_the_modules_on(make_model):
    model = make_model()
    tuned = tuned_at_random(model, structure_of(model, "lora", "lnfit"), std=0.3)
    inputs = {"input_ids": tiny_batch(model)["input_ids"], "max_new_tokens": 5, "do_sample": False}
    written = tuned.generate(**inputs)
    with tuned.model:
        assert torch.equal(model.generate(**inputs), written)
    assert not torch.equal(model.generate(**inputs), written)
    if make_model is tiny_llama:
        pipe = pipeline("text-generation", model=tuned.model, tokenizer=toy_tokenizer())
        with tuned.model:
            plain = pipeline("text-generation", model=model, tokenizer=toy_tokenizer())
            expected = plain("w1 w2 w3", max_new_tokens=4, do_sample=False)
        assert pipe("w1 w2 w3", max_new_tokens=4, do_sample=False) == expected


def test_a_supernet_is_not_saved_as_a_plain_model(tmp_path):
    supernet = attach(tiny_bert(), structure_of(tiny_bert(), "lora"))
    with pytest.raises(SearchError, match=r"not saved as a plain model: see s3pet.merge"):
        supernet.save_pretrained(tmp_path)
    with pytest.raises(SearchError, match=r"not saved as a plain model"):
        supernet.model.save_pretrained(tmp_path)
    supernet.detach()
    supernet.model.save_pretrained(tmp_path)
    assert supernet.config is supernet.model.config
    with pytest.raises(AttributeError, match="no attribute 'configg'"):
        _ = supernet.configg


def classifier():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    return BertForSequenceClassification(config).eval()


@pytest.mark.parametrize("structure", ["pet", "full"])
def test_a_pipeline_of_a_tuned_classifier_has_its_head_and_modules(structure):
    model, tokenizer = classifier(), toy_tokenizer()
    before = {name: p.clone() for name, p in model.named_parameters()}
    texts = [f"w{k % 2} w{k}" for k in range(24)]
    rows = [{**tokenizer(text), "labels": k % 2} for k, text in enumerate(texts)]
    task = RowTask("mine", rows[:16], rows[16:], metrics={"accuracy": exact_match}, label="labels")
    structure = structure_of(model, "lora") if structure == "pet" else structure
    tuned = retrain(
        model, task, structure, objective=ModelLoss(), steps=4, batch_size=8, evaluations=1, lr=0.05, test=False
    )
    pipe = pipeline("text-classification", model=tuned.model, tokenizer=tokenizer, top_k=None)
    scores = [{entry["label"]: entry["score"] for entry in row}["LABEL_1"] for row in pipe(texts[16:])]
    assert [int(score > 0.5) for score in scores] == tuned.predict(rows[16:])
    objective = tuned.learner.objective
    with torch.no_grad(), tuned.learner.attached(), objective.with_head():
        batch = objective.collate(objective.encode(rows[16:]))["inputs"]
        logits = objective.model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    assert scores == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5) and max(scores) - min(scores) > 0.01
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.config.problem_type is None, "which its loss would have noted"
    if not isinstance(structure, str):
        attached = pipeline("text-classification", model=model, tokenizer=tokenizer)
        plain = attached(texts[16])[0]["score"]
        with tuned.model:
            assert attached(texts[16])[0]["score"] == pytest.approx(max(scores[0], 1 - scores[0]), abs=1e-5)
        assert attached(texts[16])[0]["score"] == plain


@pytest.mark.parametrize("all_parameters", [False, True])
def test_training_the_backbone_itself_with_modules_on_it_is_refused(tmp_path, all_parameters):
    model, tokenizer = classifier(), toy_tokenizer()
    rows = [{**tokenizer(f"w{k % 2} w3"), "label": k % 2} for k in range(8)]
    options = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = TrainingArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=4, **options)
    with attach(model, structure_of(model, "lora")) as supernet:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0) if all_parameters else None
        trainer = Trainer(model, args, DataCollatorWithPadding(tokenizer), rows, optimizers=(optimizer, None))
        with pytest.raises(
            SearchError, match=r"only the frozen backbone, so it trains nothing.*Trainer\(model=supernet"
        ):
            trainer.train()
        other = torch.nn.Parameter(torch.ones(1))
        for step in (torch.optim.SGD([other], lr=1.0), torch.optim.SGD(supernet.weights, lr=1.0)):
            step.step()
    torch.optim.SGD(model.parameters(), lr=1.0).step()  # nothing is attached any more


def test_a_trainer_trains_the_modules_of_a_supernet_and_nothing_else(tmp_path):
    model, tokenizer = classifier(), toy_tokenizer()
    before = {name: p.clone() for name, p in model.named_parameters()}
    rows = [{**tokenizer(f"w{k % 2} w3"), "label": k % 2, "other": "text"} for k in range(16)]
    from datasets import Dataset

    supernet = Supernet(model, structure_of(model, "lora", "bitfit"))
    start = {key: t.clone() for key, t in supernet.tensors().items()}
    options = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = TrainingArguments(str(tmp_path), max_steps=3, learning_rate=1e-2, per_device_train_batch_size=8, **options)
    trainer = Trainer(
        supernet, args, DataCollatorWithPadding(tokenizer), Dataset.from_list(rows), Dataset.from_list(rows)
    )
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert any(not torch.equal(t, start[key]) for key, t in supernet.tensors().items())
    assert "eval_loss" in trainer.evaluate()
