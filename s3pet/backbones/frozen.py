"""What a frozen model is: its kind, its size, a checksum of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from s3pet.errors import BackboneError
from s3pet.files.kinds import instance

if TYPE_CHECKING:  # s3pet.tasks reads from this room without torch
    from torch import nn

CAUSAL = ("ForCausalLM", "LMHeadModel")  # how transformers names its decoders with a language-model head


def check_model(model: Any) -> None:
    """Raise BackboneError for what is no model, such as a name, or a model with its tokenizer."""
    import torch

    how = "load_backbone(…) returns one, with its tokenizer: model, tokenizer = load_backbone(…)"
    instance(torch.nn.Module, f"a model of torch ({how})").check(BackboneError, model=model)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself; refuse wrappers in which modules would be placed wrongly or not act at all.

    Raises BackboneError for a compiled model (its compiled code does not see modules that are attached later) and for
    one with modules of PEFT (their places have other names); the message says what to pass instead.
    """
    check_model(model)
    if hasattr(model, "_orig_mod") or any(part._compiled_call_impl is not None for part in model.modules()):
        what = "this model is compiled, and compiled code does not see modules that are attached later"
        raise BackboneError(f"{what}; pass the model from before torch.compile (model._orig_mod), and compile last")
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        how = "model.merge_and_unload(), or model.unload() to drop them; s3pet.from_peft reads a saved adapter"
        raise BackboneError(f"this model holds modules of PEFT; pass {how}")
    return model


def backbone_kind(model: nn.Module) -> str:
    """Return ``"encoder-decoder"``, ``"decoder"`` (with a language-model head) or ``"encoder"``."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "encoder-decoder"
    return "decoder" if type(model).__name__.endswith(CAUSAL) else "encoder"


def n_parameters(model: nn.Module) -> int:
    """Count the parameters of a model; shared (tied) ones count once, the packed weight of a linear map as unpacked."""
    import torch

    total = sum(parameter.numel() for parameter in model.parameters())
    for part in model.modules():  # 4-bit weights lie in smaller tensors, or in buffers that are no parameters
        widths: Any = (getattr(part, "in_features", None), getattr(part, "out_features", None))
        if all(isinstance(width, int) for width in widths):
            own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
            weight: Any = getattr(part, "weight", None)
            if own and not (isinstance(weight, torch.nn.Parameter) and weight.is_floating_point()):
                total += widths[0] * widths[1] - (weight.numel() if isinstance(weight, torch.nn.Parameter) else 0)
    return total


def backbone_checksum(model: nn.Module, heads: Sequence[str] = ()) -> str:
    """Return the SHA-256 (hexadecimal) of all parameters and buffers with their names, shapes and types.

    Tied weights count once. A pooler whose weights are not in the checkpoint (``s3pet_pooler_is_fresh``) is left out,
    and so are ``heads``, names of submodules that are trained and saved elsewhere.
    """
    import torch

    digest = hashlib.sha256()
    fresh = getattr(model, "s3pet_pooler_is_fresh", False)
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        if not (fresh and "pooler" in name) and not name.startswith(tuple(f"{head}." for head in heads)):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
