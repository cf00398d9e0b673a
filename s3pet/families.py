"""Hugging Face names: how each family of architectures calls its places. The only room that knows them.

A family is one row of :data:`FAMILIES`: patterns of dotted module names with the *role* each plays. A role is the
family-independent name of a place inside a layer — ``attn.q``, ``ffn.in``, ``cross.norm``; plain ``attn``, ``cross``
and ``ffn`` are a block's output, where adapters sit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from s3pet.errors import BackboneError


@dataclass(frozen=True)
class Family:
    """How one family of architectures names its places.

    Attributes:
        model_types: ``config.model_type`` values it serves.
        sites: rows of (pattern, role). In a pattern ``{stack}`` and ``{layer}`` stand for themselves, and any prefix
            may precede it; one module may play two roles (a projection that is also its block's output).
        stack: the stack of sites whose pattern has no ``{stack}``.
        rotary: keys are rotated after their projection, so a bias on them is not inert.
    """

    model_types: tuple[str, ...]
    sites: tuple[tuple[str, str], ...]
    stack: str = "encoder"
    rotary: bool = False

    def compiled(self) -> list[tuple[re.Pattern[str], str]]:
        """The patterns as regular expressions for whole dotted names."""
        return [(re.compile(r"(?:.+\.)?" + _to_regex(pattern)), role) for pattern, role in self.sites]


def _rows(prefix: str, role: str, names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{prefix}.{name}", f"{role}.{part}") for part, name in names.items())


_T5 = "{stack}.block.{layer}.layer"
_QKVO = {part: part for part in "qkvo"}
FAMILIES: dict[str, Family] = {
    "t5": Family(
        ("t5", "mt5"),
        (
            *_rows(f"{_T5}.0.SelfAttention", "attn", _QKVO),
            *_rows(f"{_T5}.1.EncDecAttention", "cross", _QKVO),
            *_rows(f"{_T5}.[12].DenseReluDense", "ffn", {"in": "wi", "out": "wo"}),
            *_rows(f"{_T5}.[12].DenseReluDense", "ffn", {"gate": "wi_0", "in": "wi_1"}),
            (f"{_T5}.0.layer_norm", "attn.norm"),
            ("(?P<stack>decoder).block.{layer}.layer.1.layer_norm", "cross.norm"),
            ("(?P<stack>encoder).block.{layer}.layer.1.layer_norm", "ffn.norm"),
            ("(?P<stack>decoder).block.{layer}.layer.2.layer_norm", "ffn.norm"),
            ("{stack}.final_layer_norm", "final.norm"),
            (f"{_T5}.0.SelfAttention", "attn"),
            (f"{_T5}.1.EncDecAttention", "cross"),
            (f"{_T5}.[12].DenseReluDense", "ffn"),
        ),
    ),
    "bert": Family(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        (
            ("embeddings.LayerNorm", "embed.norm"),
            *_rows("encoder.layer.{layer}.attention", "attn", {"q": "self.query", "k": "self.key", "v": "self.value"}),
            *_rows("encoder.layer.{layer}.attention.output", "attn", {"o": "dense", "norm": "LayerNorm"}),
            ("encoder.layer.{layer}.intermediate.dense", "ffn.in"),
            *_rows("encoder.layer.{layer}.output", "ffn", {"out": "dense", "norm": "LayerNorm"}),
            ("encoder.layer.{layer}.attention.output.dense", "attn"),  # adapters sit before dropout and residual
            ("encoder.layer.{layer}.output.dense", "ffn"),
        ),
    ),
    "llama": Family(
        ("llama", "mistral", "qwen2"),
        (
            *_rows("layers.{layer}.self_attn", "attn", {part: f"{part}_proj" for part in "qkvo"}),
            *_rows("layers.{layer}.mlp", "ffn", {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}),
            ("layers.{layer}.input_layernorm", "attn.norm"),
            ("layers.{layer}.post_attention_layernorm", "ffn.norm"),
            ("norm", "final.norm"),
            ("layers.{layer}.self_attn", "attn"),
            ("layers.{layer}.mlp", "ffn"),
        ),
        stack="decoder",
        rotary=True,
    ),
}


RMS_NORMS = ("T5LayerNorm", "MT5LayerNorm", "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm")


def family_of(model: nn.Module) -> Family:
    """The row of :data:`FAMILIES` for this model; raises BackboneError naming what is known."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES.values() for kind in family.model_types)
    raise BackboneError(
        f"no search space is known for model_type {model_type!r} ({type(model).__name__}); known: {known}. "
        "A new family is one row of s3pet.families.FAMILIES."
    )


def bias_on_keys_matters(model: nn.Module) -> bool:
    """Whether a bias on attention keys can change the output.

    It adds the same number to all scores of a query, which the softmax cancels — unless keys are rotated after it, or
    are multiplied with relative position embeddings.
    """
    return family_of(model).rotary or "relative_key" in str(getattr(model.config, "position_embedding_type", ""))


def _to_regex(pattern: str) -> str:
    escaped = pattern.replace(".", r"\.")
    return escaped.replace("{stack}", "(?P<stack>encoder|decoder)").replace("{layer}", r"(?P<layer>\d+)")
