"""Tiny Hugging Face models built from configs in memory: every family the spaces know, and the paper's T5 sizes."""

import random

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from s3pet.backbones import backbone_checksum

VOCABULARY = 64
T5_SIZES = {  # d_model, d_ff, d_kv, layers per stack, heads
    "small": (512, 2048, 64, 6, 8),
    "base": (768, 3072, 64, 12, 12),
    "large": (1024, 4096, 64, 24, 16),
}


def _ready(model, seed=0, std=0.3):
    """Weights large enough that every signal shows, evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std, generator=generator)
            elif "bias" in name:
                parameter.normal_(std=0.1, generator=generator)
    model.s3pet_id = f"tiny-{type(model).__name__}"
    return model.eval()


def _t5(config_class, model_class, seed, std=0.3, **options):
    return _ready(
        model_class(
            config_class(
                vocab_size=VOCABULARY,
                d_model=32,
                d_ff=48,
                d_kv=8,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.1,
                decoder_start_token_id=0,
                **options,
            )
        ),
        seed,
        std,
    )


def tiny_t5(gated=False, seed=0, attn_implementation=None, std=0.3):
    """Two + two layers; ``gated`` gives T5 v1.1's wi_0 and wi_1; with a small ``std`` attention is nearly uniform."""
    kind = "gated-gelu" if gated else "relu"
    return _t5(
        T5Config,
        T5ForConditionalGeneration,
        seed,
        std,
        feed_forward_proj=kind,
        attn_implementation=attn_implementation,
    )


def tiny_mt5(seed=0):
    """As tiny_t5, of the mT5 class (gated)."""
    return _t5(MT5Config, MT5ForConditionalGeneration, seed)


_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def tiny_bert(seed=0):
    """Two layers, bare encoder with pooler."""
    return _ready(BertModel(BertConfig(**_ENCODER)), seed)


def tiny_classifier(seed=0):
    """A BERT that carries a classification head of its own, as users may bring it; only its encoder is used."""
    return _ready(BertForSequenceClassification(BertConfig(**_ENCODER)), seed)


def tiny_roberta(seed=0):
    """Two layers, bare encoder with pooler."""
    return _ready(RobertaModel(RobertaConfig(**_ENCODER, pad_token_id=0)), seed)


def tiny_llama(seed=0):
    """Two layers with grouped-query attention, gated FFN, RMSNorm and rotary positions."""
    config = {key: value for key, value in _ENCODER.items() if key != "max_position_embeddings"}
    return _ready(LlamaForCausalLM(LlamaConfig(**config, num_key_value_heads=2, max_position_embeddings=64)), seed)


FAMILIES = {
    "t5": tiny_t5,
    "t5_gated": lambda: tiny_t5(gated=True),
    "mt5": tiny_mt5,
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "llama": tiny_llama,
}


def tiny_batch(model, rows=3, length=7):
    """Inputs for a forward pass, seeded."""
    ids = torch.randint(5, 45, (rows, length), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :4]
    return batch


def meta_t5(size):
    """T5 of the paper's sizes on the meta device: shapes without weights."""
    d_model, d_ff, d_kv, layers, heads = T5_SIZES[size]
    with torch.device("meta"):
        model = T5ForConditionalGeneration(
            T5Config(d_model=d_model, d_ff=d_ff, d_kv=d_kv, num_layers=layers, num_heads=heads, vocab_size=32128)
        )
    model.s3pet_id = f"t5-{size}"
    return model


def state_of(model):
    """All that must not change: modules, tensors, flags, modes, hooks, attributes, and the global random state."""
    modules = dict(model.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return {
        "modules": {name: id(module) for name, module in modules.items()},
        "tensors": backbone_checksum(model),
        "gradients": [parameter.grad for parameter in model.parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {name: [len(getattr(module, hook)) for hook in hooks] for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "random": [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()],  # noqa: NPY002
    }
