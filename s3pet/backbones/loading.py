"""Load a pre-trained model (the backbone) with its tokenizer, frozen and in evaluation mode.

Weights are read from safetensors files only. No code from a model folder is executed, and no pickle is opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from s3pet.backbones.frozen import CAUSAL
from s3pet.errors import BackboneError, nearest, shown
from s3pet.files.kinds import FLAG, PATH, TEXT, optional

if TYPE_CHECKING:  # s3pet.tasks reads from this room without torch
    import torch

EMBEDDED = {"pocket-t5": "model", "pocket-t5-deep": "model-deep"}


class Backbone(NamedTuple):
    """A frozen model in evaluation mode, and its tokenizer."""

    model: Any
    tokenizer: Any


def embedded_path() -> Path:
    """Return the folder ``data/pocket``: next to the package (in a checkout) or inside it (in a wheel)."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "data" / "pocket", package / "data" / "pocket"):
        if folder.is_dir():
            return folder
    raise BackboneError("the embedded data (data/pocket) is not here; install s3pet from a full checkout or a wheel")


def list_backbones() -> list[str]:
    """Return the names of the embedded backbones; :func:`load_backbone` also takes a local folder or a hub id."""
    return sorted(EMBEDDED)


def load_backbone(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Backbone:
    """Load a frozen backbone in evaluation mode, and its tokenizer.

    Args:
        name: ``"pocket-t5"`` or ``"pocket-t5-deep"`` (small embedded models for teaching), a local folder, or a hub id
            of an encoder (loaded without a head: the task adds one), a decoder or an encoder-decoder.
        device: where to put the model; None: the CPU; ``"auto"``: a GPU if there is one, for each process of
            ``accelerate launch`` its own.
        dtype: type of the weights, such as ``"bfloat16"`` or ``torch.bfloat16``; None: float32, whatever the file has.
        attn_implementation: passed to transformers; ``order="unrolled_exact"`` needs ``"eager"``.
        device_map: instead of ``device``: how transformers spreads the layers over several devices, ``"auto"`` or
            module → device. PET modules are where their site is. Weights must not be offloaded.
        revision: branch, tag or commit of a hub model.
        local_files_only: never contact the hub.

    Returns:
        ``(model, tokenizer)``. ``model.s3pet_id`` is the name in saved runs (of a folder only the last two parts).
        ``model.s3pet_pooler_is_fresh`` is True if the checkpoint has no weights for the pooler; they are then drawn
        with a fixed seed, and :func:`backbone_checksum` leaves them out.

    Raises:
        BackboneError: the backbone cannot be loaded; the message says why and what to do.
    """
    import torch
    from transformers import AutoTokenizer

    name, where = _located(name)
    FLAG.check(BackboneError, local_files_only=local_files_only)
    optional(TEXT).check(BackboneError, attn_implementation=attn_implementation, revision=revision)
    kind: Any = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if not (kind is None or (isinstance(kind, torch.dtype) and kind.is_floating_point)):
        raise BackboneError(f"dtype must be a floating type of torch, such as 'bfloat16', got {shown(dtype)}")
    if device_map is not None and device is not None:
        raise BackboneError(f"device={shown(device)} and device_map={shown(device_map)}: give one of them")
    is_mapping = isinstance(device_map, Mapping) and len(device_map) > 0 and all(isinstance(m, str) for m in device_map)
    if not (is_mapping or device_map in (None, "auto", "balanced", "sequential")):
        raise BackboneError(f"device_map must be 'auto', or a mapping of modules to devices, got {shown(device_map)}")
    if isinstance(device, str) and device == "auto":
        from accelerate import PartialState

        device = PartialState(cpu=not (torch.cuda.is_available() or torch.xpu.is_available())).device
    _check_device("device", device)
    for module, place in device_map.items() if isinstance(device_map, Mapping) else ():
        _check_device(f"device_map[{module!r}]", None if place == "disk" else place)
    if is_folder := name in EMBEDDED or Path(where).is_dir():
        if lacking := [file for file in ("config.json", "model*.safetensors") if not any(Path(where).glob(file))]:
            raise BackboneError(
                f"{where} holds no {' and no '.join(lacking)}. s3pet reads no pickles (.bin); convert one "
                "that you trust with TheClassInConfigJson.from_pretrained(folder).save_pretrained(folder)"
            )
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise BackboneError(f"{name!r} is not a folder; pass a folder with config.json, or a hub id such as 't5-small'")
    hub: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    weights: dict[str, Any] = {"dtype": kind or torch.float32}
    weights |= {} if device_map is None else {"device_map": device_map}
    if attn_implementation is not None:
        weights["attn_implementation"] = attn_implementation
    needs = "config.json, model.safetensors and a tokenizer"
    with _loading(f"backbone {name!r}", name, needs), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that are not in the file are the same at every load
        config = _read_config(where, name, hub)
        model, info = _auto_class(config, name).from_pretrained(
            where, config=config, use_safetensors=True, output_loading_info=True, **weights, **hub
        )
        tokenizer = AutoTokenizer.from_pretrained(where, config=config, **hub)
    # Without tokenizer files, transformers silently makes a tokenizer of special tokens only (T5: and a space).
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)) + 1:
        raise BackboneError(
            f"backbone {name!r} comes without a tokenizer (no tokenizer.json or vocabulary file); save the original "
            "tokenizer in the same folder: AutoTokenizer.from_pretrained(original).save_pretrained(folder)"
        )
    missing = info.get("missing_keys", ())
    if lacking := sorted(key for key in missing if "pooler" not in key):
        raise BackboneError(f"backbone {name!r} lacks {len(lacking)} weights, {lacking[:3]} …; its file is incomplete")
    if away := sum(parameter.is_meta for parameter in model.parameters()):
        how = "a smaller dtype, more devices, or another device_map"
        raise BackboneError(f"backbone {name!r} has {away} weights offloaded; s3pet needs them in memory; try {how}")
    model.s3pet_pooler_is_fresh = bool(missing)
    model.s3pet_id = "/".join(Path(where).resolve().parts[-2:]) if name not in EMBEDDED and is_folder else name
    model.s3pet_tokenizer = _with_padding(tokenizer)
    model.requires_grad_(False).eval()
    return Backbone(model.to(device) if device is not None else model, tokenizer)


def _located(name: str | Path) -> tuple[str, str]:
    """The name of a backbone, and its folder or hub id."""
    PATH.check(BackboneError, name=name)
    name = str(name)
    return name, str(embedded_path() / EMBEDDED[name]) if name in EMBEDDED else name


@contextmanager
def _loading(what: str, name: str, needs: str) -> Iterator[None]:
    """Keep transformers quiet, and turn its errors into a BackboneError with the reason."""
    from safetensors import SafetensorError

    kinds = (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, AssertionError, SafetensorError)
    try:
        with quiet_transformers():
            yield
    except BackboneError:
        raise
    except kinds as error:
        reason = " ".join(str(error).split())[:300]
        raise BackboneError(
            f"{what} could not be loaded: {reason}. Pass one of {', '.join(EMBEDDED)}, a local folder with {needs}, "
            f"or a hub id while online ({nearest(name, EMBEDDED)})"
        ) from error


def _check_device(what: str, device: Any) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (TypeError, RuntimeError, AssertionError) as error:
        where = f"{what} must be one that is here, such as 'cpu', got {shown(device)} ({error!s:.99})"
        raise BackboneError(where) from error


def backbone_shapes(name: str | Path) -> Any:
    """The model that :func:`load_backbone` loads, without weights (on the meta device): only its config is read.

    Raises BackboneError for a name without a config, and for models that do not read text.
    """
    import torch

    name, where = _located(name)
    with _loading(f"the config of backbone {name!r}", name, "config.json"), torch.device("meta"):
        config = _read_config(where, name, {})
        model: Any = _auto_class(config, name).from_config(config, dtype=torch.float32)
    model.s3pet_id = name
    return model.eval()


def name_of(model: Any) -> str:
    """Return a model's name in saved files: what it was loaded by (of a folder the last two parts), or its class."""
    name = getattr(model, "s3pet_id", None) or getattr(getattr(model, "config", None), "_name_or_path", "")
    return "/".join(Path(name or type(model).__name__).parts[-2:]).strip("/")


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer that was loaded with the backbone, or lies where its weights came from; None if nowhere."""
    from transformers import AutoTokenizer

    where = getattr(getattr(model, "config", None), "_name_or_path", "")
    if (tokenizer := getattr(model, "s3pet_tokenizer", None)) is not None or not where:
        return tokenizer
    try:
        return _with_padding(AutoTokenizer.from_pretrained(where))
    except (OSError, ValueError, LookupError, TypeError):  # moved away, or weights only
        return None


def _with_padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read_config(where: str, name: str, hub: dict[str, Any]) -> Any:
    """Read the config; refuse a model that needs its own code, before transformers asks on the terminal to run it."""
    from transformers import CONFIG_MAPPING, TOKENIZER_MAPPING, AutoConfig, PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from transformers.utils import find_adapter_config_file

    raw, _ = PreTrainedConfig.get_config_dict(where, **hub)
    config = None
    if "auto_map" not in raw or raw.get("model_type") in CONFIG_MAPPING:
        config = AutoConfig.from_pretrained(where, **hub)
    if config is None or ("auto_map" in get_tokenizer_config(where, **hub) and type(config) not in TOKENIZER_MAPPING):
        raise BackboneError(
            f"backbone {name!r} needs code from its own repository, which s3pet never runs; pass a model of a family "
            "that transformers itself supports"
        )
    if find_adapter_config_file(where, **hub) is not None:
        raise BackboneError(
            f"backbone {name!r} has an adapter_config.json, and transformers would add that adapter without a message; "
            "pass a folder with the backbone without the adapter, or with the adapter merged into the weights"
        )
    config.__dict__.pop("auto_map", None)  # a supported family: use the classes of transformers and ask nothing
    return config


def _auto_class(config: Any, name: str) -> Any:
    """Return the Auto class that loads this config; refuse models that do not read text."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto import modeling_auto as auto

    family, model_class = config.model_type, auto.MODEL_MAPPING.get(type(config), None)
    if getattr(model_class, "main_input_name", "") != "input_ids" or hasattr(config, "vision_config"):
        raise BackboneError(
            f"backbone {name!r} is a {family!r} model, which does not read text alone; pass a text encoder (BERT, "
            "RoBERTa, …), decoder (Llama, GPT-2, …) or encoder-decoder (T5, BART, …)"
        )
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    # A family of language models only is a decoder, even if the checkpoint was saved without its head.
    is_decoder = (family in causal and family not in masked) or any(
        saved_as.endswith(CAUSAL) for saved_as in getattr(config, "architectures", None) or ()
    )
    return AutoModelForCausalLM if is_decoder else AutoModel


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars and loading reports of transformers; s3pet checks for missing weights itself."""
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
