"""Hugging Face names of the places in each family of architectures. Data rather than code.

Each family is one row of :data:`FAMILIES`: patterns of dotted module names, each with a *role*. A role is the name of
a place inside a layer, the same in all families: ``attn.q``, ``ffn.in``, ``cross.norm``. The roles ``attn``, ``cross``
and ``ffn`` are the outputs of whole blocks, where adapters are placed.
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
        model_types: the values of ``config.model_type`` it covers.
        sites: pairs of (pattern, role). A pattern matches the end of a dotted name; ``{stack}`` and ``{layer}`` are
            placeholders. One module may have two roles (a projection that is also its block's output).
        stack: the stack of sites whose pattern has no ``{stack}``.
        rotary: whether keys are rotated after their projection, so that a bias on them has an effect.
    """

    model_types: tuple[str, ...]
    sites: tuple[tuple[str, str], ...]
    stack: str = "encoder"
    rotary: bool = False

    def compiled(self) -> list[tuple[re.Pattern[str], str]]:
        """The patterns as regular expressions for complete dotted names, each with its role."""
        parts = {"stack": "(?P<stack>encoder|decoder)", "layer": r"(?P<layer>\d+)"}
        return [(re.compile(r"(?:.+\.)?" + p.replace(".", r"\.").format(**parts)), role) for p, role in self.sites]


def _rows(prefix: str, block: str, names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """One row for each part of a block: ``_rows("mlp", "ffn", {"out": "down"})`` is ``(("mlp.down", "ffn.out"),)``."""
    return tuple((f"{prefix}.{name}", f"{block}.{part}") for part, name in names.items())


_T5 = "{stack}.block.{layer}.layer"
_T5_SITES = (
    *_rows(f"{_T5}.0.SelfAttention", "attn", {"q": "q", "k": "k", "v": "v", "o": "o"}),
    *_rows(f"{_T5}.1.EncDecAttention", "cross", {"q": "q", "k": "k", "v": "v", "o": "o"}),
    *_rows(f"{_T5}.[12].DenseReluDense", "ffn", {"gate": "wi_0", "in": "wi(?:_1)?", "out": "wo"}),
    (f"{_T5}.0.layer_norm", "attn.norm"),
    ("(?P<stack>decoder).block.{layer}.layer.1.layer_norm", "cross.norm"),
    ("(?P<stack>encoder).block.{layer}.layer.1.layer_norm", "ffn.norm"),
    ("(?P<stack>decoder).block.{layer}.layer.2.layer_norm", "ffn.norm"),
    ("{stack}.final_layer_norm", "final.norm"),
    (f"{_T5}.0.SelfAttention", "attn"),
    (f"{_T5}.1.EncDecAttention", "cross"),
    (f"{_T5}.[12].DenseReluDense", "ffn"),
)
_BERT = "encoder.layer.{layer}"
_BERT_SITES = (
    ("embeddings.LayerNorm", "embed.norm"),
    *_rows(f"{_BERT}.attention.self", "attn", {"q": "query", "k": "key", "v": "value"}),
    *_rows(f"{_BERT}.attention.output", "attn", {"o": "dense", "norm": "LayerNorm"}),
    (f"{_BERT}.intermediate.dense", "ffn.in"),
    *_rows(f"{_BERT}.output", "ffn", {"out": "dense", "norm": "LayerNorm"}),
    (f"{_BERT}.attention.output.dense", "attn"),  # adapters act before dropout and residual
    (f"{_BERT}.output.dense", "ffn"),
)
_LLAMA_SITES = (
    *_rows("layers.{layer}.self_attn", "attn", {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}),
    *_rows("layers.{layer}.mlp", "ffn", {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}),
    ("layers.{layer}.input_layernorm", "attn.norm"),
    ("layers.{layer}.post_attention_layernorm", "ffn.norm"),
    ("norm", "final.norm"),
    ("layers.{layer}.self_attn", "attn"),
    ("layers.{layer}.mlp", "ffn"),
)
FAMILIES: dict[str, Family] = {
    "t5": Family(("t5", "mt5"), _T5_SITES),
    "bert": Family(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT_SITES),
    "llama": Family(("llama", "mistral", "qwen2"), _LLAMA_SITES, stack="decoder", rotary=True),
}


def family_of(model: nn.Module) -> Family:
    """The row of :data:`FAMILIES` for this model; raises BackboneError, which lists the known model types."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES.values() for kind in family.model_types)
    where = f"model_type {model_type!r} ({type(model).__name__}); known: {known}"
    raise BackboneError(f"no search space is known for {where}. A new family is one row of s3pet.families.FAMILIES.")


def bias_on_keys_matters(model: nn.Module) -> bool:
    """Whether a bias on attention keys can change the output, see :mod:`s3pet.space`.

    It can where keys are rotated afterwards or multiplied with relative position embeddings.
    """
    return family_of(model).rotary or "relative_key" in str(getattr(model.config, "position_embedding_type", ""))
