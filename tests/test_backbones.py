"""Backbones: every family from a folder, frozen and quiet; what cannot be loaded is refused with the way out."""

import json
import warnings

import pytest
import torch
from tiny import tiny_bert, tiny_llama, tiny_t5
from toy import toy_tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

import s3pet
from s3pet.backbones import (
    backbone_checksum,
    backbone_kind,
    embedded_path,
    list_backbones,
    load_backbone,
    loading,
    n_parameters,
)
from s3pet.errors import BackboneError
from s3pet.space import make_space


def save(model, folder, tokenizer=None):
    model.save_pretrained(folder)
    if tokenizer is not False:
        (tokenizer or toy_tokenizer()).save_pretrained(folder)
    return folder


def tiny_gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    )


def tiny_masked_bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForMaskedLM(BertConfig(vocab_size=64, max_position_embeddings=40, **sizes))


FAMILIES = [(tiny_t5, "encoder-decoder", "T5ForConditionalGeneration"), (tiny_llama, "decoder", "LlamaForCausalLM"),
            (tiny_gpt2, "decoder", "GPT2LMHeadModel"), (tiny_bert, "encoder", "BertModel")]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "name"), FAMILIES)
def test_every_family_loads_as_it_was_saved(tmp_path, capfd, caplog, make, kind, name):
    made = make()
    folder = save(made, tmp_path / "models" / "mine")
    capfd.readouterr()  # saving has a progress bar
    model, tokenizer = load_backbone(folder)
    assert (type(model).__name__, backbone_kind(model), backbone_kind(made)) == (name, kind, kind)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.s3pet_id == "models/mine"
    assert not model.s3pet_pooler_is_fresh
    state, loaded = made.state_dict(), model.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    assert tokenizer("w1 w2")["input_ids"] == toy_tokenizer()("w1 w2")["input_ids"]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("given", [None, torch.bfloat16])
def test_half_precision_on_disk_becomes_what_was_asked(tmp_path, given):
    folder = save(tiny_t5().half(), tmp_path)
    options = {} if given is None else {"dtype": given}
    assert {p.dtype for p in load_backbone(folder, **options).model.parameters()} == {given or torch.float32}


def test_device_and_attention(tmp_path):
    model = load_backbone(save(tiny_bert(), tmp_path), device="cpu", attn_implementation="eager").model
    assert model.config._attn_implementation == "eager"
    assert next(model.parameters()).device.type == "cpu"


def test_the_embedded_backbone(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "embedded_path", lambda: tmp_path)
    assert list_backbones() == ["pocket-t5", "pocket-t5-deep"]
    with pytest.raises(BackboneError, match=r"model holds no config\.json"):
        load_backbone("pocket-t5")
    made = tiny_t5().half()
    save(made, tmp_path / "model")
    model = load_backbone("pocket-t5").model
    assert (model.s3pet_id, model.dtype) == ("pocket-t5", torch.float32)
    assert torch.equal(model.shared.weight, made.shared.weight.float())


def test_embedded_path_is_beside_or_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "s3pet"
    package.mkdir()
    monkeypatch.setattr(loading, "__file__", str(package / "backbones" / "loading.py"))
    with pytest.raises(BackboneError, match="data/pocket"):
        embedded_path()
    for place in (package, tmp_path):  # a wheel; a checkout, which wins
        (place / "data" / "pocket").mkdir(parents=True)
        assert embedded_path() == place / "data" / "pocket"


def test_a_pooler_that_is_not_in_the_checkpoint(tmp_path):
    """Drawn the same at every load, without touching the global generator, and no part of the checksum."""
    folder = save(tiny_masked_bert(), tmp_path)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model = load_backbone(folder).model
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.s3pet_pooler_is_fresh
    torch.manual_seed(6)
    again = load_backbone(folder).model
    assert torch.equal(model.pooler.dense.weight, again.pooler.dense.weight)
    checksum = backbone_checksum(model)
    with torch.no_grad():
        model.pooler.dense.weight.add_(1)
    assert backbone_checksum(model) == checksum
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias.add_(1)
    assert backbone_checksum(model) != checksum


def test_the_checksum_sees_every_tensor(tmp_path):
    model = tiny_llama()
    base = backbone_checksum(model)
    assert base == backbone_checksum(tiny_llama()) == backbone_checksum(load_backbone(save(model, tmp_path)).model)
    for tensor in [*model.parameters(), *model.buffers()]:
        with torch.no_grad():
            kept = tensor.clone()
            tensor.view(-1)[-1] += 1
            assert backbone_checksum(model) != base
            tensor.copy_(kept)
    assert backbone_checksum(model) == base
    assert backbone_checksum(model.bfloat16()) != base  # also reads types numpy does not know


def test_tied_parameters_count_once():
    model = tiny_gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    d, layers = 16, 1
    block = 2 * 2 * d + d * 3 * d + 3 * d + d * d + d + d * 4 * d + 4 * d + 4 * d * d + d
    assert n_parameters(model) == 64 * d + 32 * d + layers * block + 2 * d


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    plain = PreTrainedTokenizerFast(
        tokenizer_object=toy_tokenizer().backend_tokenizer, eos_token="</s>", unk_token="<unk>"
    )
    assert load_backbone(save(tiny_llama(), tmp_path, plain)).tokenizer.pad_token == "</s>"


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "~/absent", "a/b/c"])
def test_an_absent_folder(name):
    with pytest.raises(BackboneError, match=r"is not a folder; pass a folder with config\.json, or a hub id"):
        load_backbone(name)


@pytest.mark.parametrize("name", ["poket-t5", "somebody/some-model"])
def test_the_hub_out_of_reach(name):
    with pytest.raises(BackboneError, match=r"could not be loaded: .*local folder with config\.json"):
        load_backbone(name, local_files_only=True)


def test_folders_that_are_not_whole(tmp_path):
    with pytest.raises(BackboneError, match=r"no config\.json"):
        load_backbone(tmp_path)
    folder = save(tiny_bert(), tmp_path / "x")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"holds no model\*\.safetensors\."):
        load_backbone(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"no model\*\.safetensors.*reads no pickles.*convert"):
        load_backbone(folder)
    folder = save(tiny_bert(), tmp_path / "z")
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(folder)


@pytest.mark.parametrize("make", [tiny_bert, tiny_t5, tiny_llama])
def test_a_folder_without_a_tokenizer(tmp_path, make):
    """Of BERT and T5 transformers makes one up, in which every word is unknown."""
    with pytest.raises(BackboneError, match=r"without a tokenizer|could not be loaded: .*tokenizer"):
        load_backbone(save(make(), tmp_path, tokenizer=False))


def test_lost_weights_are_named(tmp_path):
    folder = save(tiny_bert(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BackboneError, match=r"lacks 16 weights, \['encoder\.layer\.2\."):
        load_backbone(folder)
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 70}))
    with pytest.raises(BackboneError, match="could not be loaded"):
        load_backbone(folder)


def test_a_model_that_reads_no_text(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    folder = save(ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes)), tmp_path, tokenizer=False)
    with pytest.raises(BackboneError, match="'vit' model, which does not read text"):
        load_backbone(folder)


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_folder_is_never_run(tmp_path, monkeypatch, place, known):
    """A known family loads with the library's classes, an unknown one is refused; nobody is asked, nothing runs."""
    folder = save(tiny_gpt2(), tmp_path)
    names = {
        "config.json": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.T", None]},
    }
    config = json.loads((folder / place).read_text())
    (folder / place).write_text(json.dumps(config | {"auto_map": names[place]}))
    if not known:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked on the terminal"))
    if known:
        assert type(load_backbone(folder).model) is GPT2LMHeadModel
    else:
        with pytest.raises(
            BackboneError, match="code from its own repository" if place == "config.json" else "could not"
        ):
            load_backbone(folder)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    """With peft installed, transformers would apply it without a word."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = tiny_llama()
    folder = save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers 6 renames
        config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(model, config).save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()
    with pytest.raises(BackboneError, match=r"adapter_config\.json.*without the adapter"):
        load_backbone(folder)


# --- real weights ---------------------------------------------------------------------------------------------------


def test_a_real_encoder(minilm_path):
    model, tokenizer = load_backbone(minilm_path)
    assert (backbone_kind(model), n_parameters(model)) == ("encoder", 22_713_216)
    batch = tokenizer(
        ["A man is eating food.", "A man eats something.", "The stock market fell."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    near, far = (vectors @ vectors.T)[0, 1:]
    assert near > 0.5 > 0.2 > far


def test_a_real_decoder(shared_dir):
    folder = shared_dir / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no stories260K in {folder.parent}")
    model, tokenizer = load_backbone(folder)
    assert (backbone_kind(model), n_parameters(model)) == ("decoder", 260_032)
    batch = tokenizer("Once upon a time, there was a little girl named Lily.", return_tensors="pt")
    with torch.no_grad():
        loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    assert loss < 2.5  # log(512) = 6.2 for an untrained model


def test_types_and_devices_of_a_backbone(monkeypatch, tmp_path):
    """Names of types, a device for each process, a map of devices; what is not in memory is refused."""
    model = load_backbone("pocket-t5", dtype="bfloat16", device="auto").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    names = make_space(load_backbone("pocket-t5").model).names
    for dtype in ("bfloat16", "float16"):  # rounding does not decide which biases are inert
        assert make_space(load_backbone("pocket-t5", dtype=dtype).model).names == names
    assert load_backbone("pocket-t5", device_map={"": "cpu"}).model.device.type == "cpu"
    for options, message in [
        ({"dtype": "int8"}, "dtype must be a floating type of torch"),
        ({"dtype": "nn"}, "dtype must be a floating type of torch"),
        ({"dtype": torch.zeros(1)}, "dtype must be a floating type of torch"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
        ({"device_map": 3}, "device_map must be 'auto', or a mapping"),
        ({"device_map": {"shared": "cpu", "encoder": "cpu", "decoder": "disk", "lm_head": "cpu"}}, "weights offloaded"),
    ]:
        with pytest.raises(BackboneError, match=message):
            load_backbone("pocket-t5", **options)


def test_a_backbone_in_pieces_is_searched_like_one_in_one_piece():
    """As a device map spreads it: with accelerate's hooks around every module, here all on the CPU."""
    from accelerate import dispatch_model

    whole, tokenizer = load_backbone("pocket-t5")
    parts = dict.fromkeys(("shared", "encoder", "decoder", "lm_head"), "cpu")
    pieces = dispatch_model(load_backbone("pocket-t5").model, parts, main_device="cpu", force_hooks=True)
    task, found = s3pet.load_task("pocket/sentiment", tokenizer), []
    for model in (whole, pieces):
        space = make_space(model)
        result = s3pet.search(model, task, space, budget="0.1%", steps=3, batch_size=4, progress=False)
        tuned = s3pet.retrain(model, task, result.structure(), steps=3, batch_size=4, evaluations=1)
        found.append((space.names, result.gates.alpha.tolist(), tuned.metrics["test"], result.config["model_hash"]))
    assert found[0] == found[1]


def test_pet_tensors_are_where_their_site_is():
    """A part of the model on another device, here one without memory."""
    model = load_backbone("pocket-t5").model
    space = make_space(model)
    model.decoder.to("meta")
    supernet = s3pet.supernet.Supernet(model, list(space))
    for key, weight in zip(supernet.keys, supernet.weights, strict=True):
        assert weight.device.type == ("meta" if key.startswith("decoder") else "cpu")


def test_t5_in_half_precision_learns():
    """Transformers keeps its last maps in float32 there; each layer still gets the type it has."""
    model, tokenizer = load_backbone("pocket-t5", dtype="float16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16, torch.float32}
    task = s3pet.load_task("pocket/sentiment", tokenizer)
    result = s3pet.search(model, task, make_space(model), budget="0.1%", steps=10, batch_size=8, progress=False)
    assert result.history.loss_train.iloc[-3:].mean() < result.history.loss_train.iloc[:3].mean()
