"""An embedded, local or hub backbone with its tokenizer, ready and frozen.

``"pocket-t5"`` is the embedded teaching backbone (``data/pocket``), ``"pocket-t5-deep"`` its sibling of another depth
and width; everything else is a folder or a hub id of an encoder, decoder or encoder-decoder. Weights are read from
safetensors only; nothing that is read is executed: no pickle, no code of a repository.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from s3pet.errors import BackboneError, nearest

EMBEDDED = {"pocket-t5": "model", "pocket-t5-deep": "model-deep"}
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # how transformers calls its decoders with a language-model head


class Backbone(NamedTuple):
    """A frozen model in evaluation mode, and its tokenizer."""

    model: Any
    tokenizer: Any


def embedded_path() -> Path:
    """The folder ``data/pocket``: beside the package in a checkout, inside it in a wheel.

    Raises:
        BackboneError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "data" / "pocket", package / "data" / "pocket"):
        if folder.is_dir():
            return folder
    raise BackboneError("the embedded data (data/pocket) is not here; install s3pet from a full checkout or a wheel")


def list_backbones() -> list[str]:
    """Names of the embedded backbones; any local folder or hub id works too."""
    return sorted(EMBEDDED)


def load_backbone(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Backbone:
    """Load a backbone, frozen and in evaluation mode, and its tokenizer.

    Args:
        name: ``"pocket-t5"`` or ``"pocket-t5-deep"``, a local folder, or a hub id. Encoder-decoders load with their
            language-model head, decoders too; encoders load bare, since the task brings the head.
        device: where to put it; None leaves it on the CPU.
        dtype: of the weights; None means float32, whatever the file holds.
        attn_implementation: ``"eager"`` is needed for ``order="unrolled_exact"``; None takes the library's default.
        revision: of a hub model.
        local_files_only: never ask the hub.

    Returns:
        ``(model, tokenizer)``. ``model.s3pet_id`` is the name, for records (of a folder its last two parts, so that no
        path of a machine gets into a run); ``model.s3pet_pooler_is_fresh`` says that the checkpoint has no weights for
        the pooler. These are then drawn with a fixed seed, and no part of :func:`backbone_checksum`.

    Raises:
        BackboneError: nothing loadable there; the message says what was tried and how to get it.
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    where, given = str(name), str(name)
    if where in EMBEDDED:
        where = str(embedded_path() / EMBEDDED[where])
    if Path(where).is_dir():
        _check_folder(Path(where))
    elif given in EMBEDDED:
        raise BackboneError(
            f"backbone {given!r} is not in the embedded data; install s3pet from a full checkout or a wheel"
        )
    elif where.count("/") > 1 or where.startswith((".", "/", "~")):
        raise BackboneError(
            f"{where!r} is no folder here; give a folder with config.json, or a hub id such as 't5-small'"
        )
    hub: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    options = {**hub, "dtype": dtype or torch.float32, "use_safetensors": True, "output_loading_info": True}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # weights that are not in the file are the same at every load
            config = _read_config(where, given, hub)
            model, info = _loader(config, given).from_pretrained(where, config=config, **options)
            tokenizer = AutoTokenizer.from_pretrained(where, config=config, **hub)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, BackboneError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"backbone {given!r} could not be loaded: {reason}. Give one of {', '.join(EMBEDDED)}, a local folder with "
            f"config.json, model.safetensors and a tokenizer, or a hub id while online ({nearest(given, EMBEDDED)})"
        ) from error
    # Without tokenizer files transformers makes one up of special tokens alone (T5: and a space), silently.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)) + 1:
        raise BackboneError(
            f"backbone {given!r} comes without a tokenizer (no tokenizer.json or vocabulary); put the files of its "
            "tokenizer in the folder: AutoTokenizer.from_pretrained(original).save_pretrained(folder)"
        )
    missing = info.get("missing_keys", ())
    lost = sorted(key for key in missing if "pooler" not in key)
    if lost:
        raise BackboneError(f"backbone {given!r} lacks weights {lost[:3]} ({len(lost)} in all); its file is not whole")
    model.s3pet_pooler_is_fresh = bool(missing)
    is_own = given not in EMBEDDED and Path(where).is_dir()
    model.s3pet_id = "/".join(Path(where).resolve().parts[-2:]) if is_own else given
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False).eval()
    return Backbone(model.to(device) if device is not None else model, tokenizer)


def backbone_kind(model: nn.Module) -> str:
    """``"encoder-decoder"``, ``"decoder"`` (has a language-model head) or ``"encoder"``."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    return "decoder" if type(model).__name__.endswith(_CAUSAL) else "encoder"


def n_parameters(model: nn.Module) -> int:
    """Parameters of the backbone, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def backbone_checksum(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers with their names, shapes and types, hexadecimal.

    Tied weights count once; a pooler that the checkpoint does not have (``s3pet_pooler_is_fresh``) does not count.
    """
    digest = hashlib.sha256()
    fresh = getattr(model, "s3pet_pooler_is_fresh", False)
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        if fresh and "pooler" in name:
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_config(where: str, given: str, hub: dict[str, Any]) -> Any:
    """The config; what needs code of its repository is refused before transformers asks on the terminal to run it."""
    from transformers import CONFIG_MAPPING, TOKENIZER_MAPPING, AutoConfig, PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    plain, _ = PreTrainedConfig.get_config_dict(where, **hub)
    config = None
    if "auto_map" not in plain or plain.get("model_type") in CONFIG_MAPPING:
        config = AutoConfig.from_pretrained(where, **hub)
    if config is None or ("auto_map" in get_tokenizer_config(where, **hub) and type(config) not in TOKENIZER_MAPPING):
        raise BackboneError(
            f"backbone {given!r} needs code from its own repository, which s3pet never runs; give a model of a family "
            "that transformers itself knows"
        )
    config.__dict__.pop("auto_map", None)  # a known family: the library's own classes, no question asked
    return config


def _loader(config: Any, given: str) -> Any:
    """The Auto class for a config; refuses what does not read text."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto import modeling_auto as auto

    kind = config.model_type
    reads = (
        getattr(auto.MODEL_MAPPING[type(config)], "main_input_name", "") if type(config) in auto.MODEL_MAPPING else ""
    )
    if not isinstance(reads, str) or reads != "input_ids" or hasattr(config, "vision_config"):
        raise BackboneError(
            f"backbone {given!r} is a {kind!r} model, which does not read text alone; give a text encoder (BERT, "
            "RoBERTa, …), decoder (Llama, GPT-2, …) or encoder-decoder (T5, BART, …)"
        )
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    names = getattr(config, "architectures", None) or ()
    # A checkpoint of a family that is only ever a language model is a decoder even if it was saved without its head.
    only_causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return AutoModelForCausalLM if only_causal or any(name.endswith(_CAUSAL) for name in names) else AutoModel


def _check_folder(folder: Path) -> None:
    """A local folder must hold a config and safetensors; pickled weights are refused with the way out."""
    if not (folder / "config.json").is_file():
        raise BackboneError(f"{folder} has no config.json; it is not a Hugging Face model folder")
    if not any(folder.glob("model*.safetensors")):
        pickled = next(folder.glob("*.bin"), None)
        why = f"only {pickled.name}, a pickle" if pickled else "no weights"
        raise BackboneError(
            f"{folder} holds {why}; s3pet reads model.safetensors only. Convert once, if you trust the file, with the "
            "class named in config.json's architectures: ThatClass.from_pretrained(folder).save_pretrained(folder)"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bars and reports from transformers; missing weights are checked here instead."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
