"""An adapter folder gives equal logits in PEFT, and PEFT's own folders give equal logits here."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny_batch, tiny_bert, tiny_llama, tiny_roberta, tiny_t5
from toy import short_task
from transformers import BertForSequenceClassification, RobertaForSequenceClassification
from tuned import logits, structure_of, tuned_at_random

from s3pet import Structure, from_peft, make_space, to_peft
from s3pet.errors import ExportError, RunError, S3PetError, StructureMismatchError

peft = pytest.importorskip("peft", reason="PEFT is not installed")
pytestmark = [  # 2026-11: PEFT 0.21 asks transformers 5.23 by an old name, and doubts that it can tune a norm
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]


def mixed_ranks(model):
    """LoRA of rank 1 and 3, on every second linear map."""
    space = make_space(model, [{"pet": "lora", "ranks": (1, 3)}], cross_attention=True)
    return Structure(tuple(c for n, c in enumerate(space) if n % 4 in (0, 3) or n % 8 == 1), space.model_id)


def classifier(model, n_labels):
    """The class for sequence classification on the same encoder, as AutoModel would load it."""
    kind = BertForSequenceClassification if "Bert" in type(model).__name__ else RobertaForSequenceClassification
    model.config.num_labels = n_labels
    whole = kind(model.config).eval()
    whole.base_model.load_state_dict(model.state_dict(), strict=False)
    return whole


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", ["lora", "ranks", "lora+norms", "norms"])
def test_peft_loads_it_with_equal_logits(family, what, tmp_path):
    model = FAMILIES[family]()
    pets = {"lora": ["lora"], "lora+norms": ["lora", "lnfit"], "norms": ["lnfit"]}.get(what)
    if pets and "bert" in family and what != "lora":
        pets = [*pets, "bitfit"]  # their norms have a bias
    structure = mixed_ranks(model) if pets is None else structure_of(
        model, *pets, keep=lambda c: c.pet != "bitfit" or c.role.endswith(".norm")
    )  # fmt: skip
    tuned = tuned_at_random(model, structure, short_task(3))
    assert to_peft(tuned, tmp_path / "out") == tmp_path / "out"
    batch, base = tiny_batch(model), FAMILIES[family]()
    head, objective = tuned.learner.objective.head, tuned.learner.objective.eval()
    with torch.no_grad(), tuned.learner.attached():
        expected = model(**batch)[0] if head is None else objective.scores(batch)
    loaded = peft.PeftModel.from_pretrained(base if head is None else classifier(base, 3), tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
    again = from_peft(tmp_path / "out", FAMILIES[family]())
    own = logits(tuned.model, batch)
    torch.testing.assert_close(logits(again.supernet, batch), own, rtol=0, atol=5e-5 * float(own.abs().max()))
    assert {key.partition(".")[0] for key in again.head} == (set() if head is None else {"classifier"})
    if what == "lora":
        assert again.structure.names == structure.names
        assert all(torch.equal(again.supernet.tensors()[k], t) for k, t in tuned.model.tensors().items())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == len({c.path for c in structure if c.pet == "lora" or what == "norms"})
    with pytest.raises(RunError, match="holds a PEFT adapter"):
        to_peft(tuned, tmp_path / "out")


def test_another_pooling_keeps_its_head_beside_the_adapter(tmp_path):
    model = tiny_bert()
    tuned = tuned_at_random(model, structure_of(model, "lora"), objective={"pooling": "mean"})
    to_peft(tuned, tmp_path)
    batch = tiny_batch(model)
    loaded = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    torch.testing.assert_close(logits(loaded, batch), logits(tuned.model, batch), rtol=0, atol=1e-4)
    assert torch.equal(load_file(tmp_path / "head.safetensors")["weight"], tuned.tensors()["head/out.weight"])


@pytest.mark.parametrize(
    ("make_model", "pets", "named", "how"),
    [
        (tiny_t5, ["lora", "bitfit"], "attn.q:bitfit", r"s3pet.merge\(tuned\)"),
        (tiny_bert, ["lora", "adapter"], "attn:adapter:8", "search a space without them"),
        (tiny_bert, ["bitfit"], "attn.q:bitfit", r"s3pet.merge\(tuned\)"),
        (tiny_llama, ["bitfit"], "attn.q:bitfit", r"s3pet.merge\(tuned\)"),
    ],
)
def test_what_cannot_go_is_named_and_a_way_is_offered(make_model, pets, named, how, tmp_path):
    model = make_model()
    tuned = tuned_at_random(model, structure_of(model, *pets))
    with pytest.raises(ExportError, match=f"cannot hold .*{named}.*in all.*{how}"):
        to_peft(tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="'head' has no structure"):
        to_peft(tuned_at_random(model, "head"), tmp_path / "out")


@pytest.mark.parametrize("make_model", [tiny_t5, tiny_roberta, tiny_llama])
@pytest.mark.parametrize(
    "options",
    [{"lora_alpha": 5}, {"use_rslora": True}, {"rank_pattern": {"0.*": 2}, "alpha_pattern": {"1.*": 3}}, None],
)
def test_adapters_of_peft_are_read(make_model, options, tmp_path):
    model, generator = make_model(), torch.Generator().manual_seed(1)
    paths = [c.path for c in make_space(model, "lora")]
    norms = [c.path for c in make_space(model, [{"pet": "lnfit"}])]
    config = peft.LNTuningConfig(target_modules=norms)
    if options is not None:
        norms = [path for path in norms if "layer.1" in path or "layers.1" in path]
        config = peft.LoraConfig(r=4, target_modules=paths, modules_to_save=norms, **options)
    wrapped = peft.get_peft_model(make_model(), config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name or "ln_tuning_layers" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(tmp_path)
    adapter, batch = from_peft(tmp_path, model), tiny_batch(model)
    expected = logits(wrapped, batch)
    torch.testing.assert_close(
        logits(adapter.supernet, batch), expected, rtol=0, atol=5e-5 * float(expected.abs().max())
    )
    assert (expected - logits(model, batch)).abs().max() > 0.01
    assert adapter.structure.origin["kind"] == "peft" and not adapter.head
    assert {c.pet for c in adapter.structure} >= ({"lnfit"} if options is None else {"lora", "lnfit"})


def test_foreign_and_damaged_folders_are_named_errors(tmp_path):
    model = tiny_t5()
    to_peft(tuned_at_random(model, structure_of(model, "lora", "lnfit")), tmp_path)
    config, file = json.loads((tmp_path / "adapter_config.json").read_text()), tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    first = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    cases = [
        ({"peft_type": "IA3"}, {}, ExportError, "is IA3; expected LORA or LN_TUNING"),
        ({"use_dora": True}, {}, ExportError, "uses {'use_dora': True}; expected plain LoRA"),
        ({"bias": "lora_only"}, {}, ExportError, "uses {'bias': 'lora_only'}"),
        ({}, {"base_model.model.shared.lora_embedding_A": torch.ones(1, 64)}, ExportError, "lora_embedding_A"),
        ({}, {first: torch.ones(1, 31)}, StructureMismatchError, "lack or misshape"),
        ({}, {first: None}, StructureMismatchError, "lacks lora_A of encoder.block.0.layer.0.SelfAttention.q"),
        ({}, {first.replace("block.0", "block.7"): torch.ones(1, 32)}, StructureMismatchError, "block.7.*has not"),
        (
            {},
            {"base_model.model.encoder.final_layer_norm.weight": torch.ones(7)},
            StructureMismatchError,
            "no such tensor",
        ),
    ]
    for options, extra, error, message in cases:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | options))
        save_file({k: t for k, t in (tensors | extra).items() if t is not None}, file)
        with pytest.raises(error, match=message):
            from_peft(tmp_path, model)
    save_file(tensors, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for other in (tiny_bert(), tiny_llama()):
        with pytest.raises(S3PetError):
            from_peft(tmp_path, other)
    for name, text in (("adapter_config.json", "[]"), ("adapter_config.json", "{"), (file.name, "no weights")):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text(text)
        with pytest.raises(RunError, match="cannot be read: "):
            from_peft(tmp_path, model)
        (tmp_path / name).write_bytes(before)
    file.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(RunError, match=r"adapter_model.safetensors missing. Pickles, .bin, are not read"):
        from_peft(tmp_path, model)
