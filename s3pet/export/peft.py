"""Adapter folders of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``, written and read without PEFT.

    s3pet                        PEFT
    LoRA, scale 16/r             LoRA with lora_alpha = 16; ranks that differ in rank_pattern
    LNFit, BitFit on a norm      the whole norm in modules_to_save (without any LoRA: LN tuning)
    a model's own head           in modules_to_save
    head of an encoder           classifier in modules_to_save, if transformers has the class (see merging)

Everything else has no place in one PEFT adapter: adapters, and a bias where the module has none or is a linear map.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from s3pet.backbones import backbone_kind, check_model, name_of
from s3pet.backbones.norms import norm_form
from s3pet.errors import ExportError, StructureMismatchError
from s3pet.export.merging import HEAD, SEARCH_PLAIN, classifier_of
from s3pet.export.places import Place, structure_at
from s3pet.files.kinds import TEXTS, Kind, number, optional, whole
from s3pet.files.reading import path_of, read_json, read_tensors, reading
from s3pet.files.writing import new_folder, saved_files, write_json, write_tensors
from s3pet.modules import LORA_ALPHA
from s3pet.space import find_sites
from s3pet.structure import Structure
from s3pet.supernet import Supernet
from s3pet.tuning import TUNED_MODEL, TunedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TASK_TYPES = {"encoder-decoder": "SEQ_2_SEQ_LM", "decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}
_PLAIN = {"use_dora": False, "lora_bias": False, "bias": "none", "target_parameters": None, "layer_replication": None,
          "trainable_token_indices": None, "alora_invocation_tokens": None}  # fmt: skip
_NAME = re.compile(r"(?:[\w^$-]|\\?\.(?:\*(?=[^*]*\*?[^*]*$))?)+")  # of a module, with at most two ".*": quick to match
_RANKS = Kind(
    "an object of names and numbers",
    lambda v: isinstance(v, dict) and all(_NAME.fullmatch(k) and number(0, 2**16).holds(v[k]) for k in v),
)
KINDS = {
    **{"r": optional(whole(1, 2**16)), "lora_alpha": optional(number()), "modules_to_save": optional(TEXTS)},
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), optional(_RANKS)),
}
_KEY = re.compile(
    r"base_model\.model\.(?P<path>.+?)(?:\.(?P<lora>lora_[AB])(?:\.default)?|\.ln_tuning_layers(?:\.default)?"
    r"|\.modules_to_save(?:\.default)?)?\.(?P<name>weight|bias)"
)


class Adapter(NamedTuple):
    """What an adapter folder holds, on a model.

    Attributes:
        structure, supernet: what is trained where, and the trained tensors; call the supernet like the model.
        head: tensors of a task head by their names in the file; empty for models without one.
    """

    structure: Structure
    supernet: Supernet
    head: dict[str, Tensor]


@torch.no_grad()
def to_peft(tuned: TunedModel, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a tuned structure as an adapter that ``PeftModel.from_pretrained(model, path)`` reads, with equal logits.

    ``model`` is the backbone. If the head of an encoder reads the pooler, it is the backbone's class for sequence
    classification instead, with ``num_labels`` of the task; with another pooling the head lies in ``head.safetensors``.

    Raises:
        ExportError: no structure, or modules that PEFT cannot take, which are named; ``merge`` takes most of them.
        RunError: the folder holds an adapter and ``overwrite`` is not set.
    """
    TUNED_MODEL.check(ExportError, tuned=tuned)
    objective, supernet = tuned.learner.objective, tuned.learner.target
    if tuned.structure is None or not isinstance(supernet, Supernet):
        raise ExportError(f"{tuned.config['structure']!r} has no structure; PEFT takes one with LoRA or norms")
    modules, tensors = dict(supernet.model.named_modules()), supernet.tensors()
    active = [c for c in tuned.structure if not c.inert]
    norms = {c.path for c in active if c.pet != "lora" and norm_form(modules[c.path]) is not None}
    biased = {name for name, module in modules.items() if getattr(module, "bias", None) is not None}
    fits = {c.name: c.pet in ("lora", "lnfit") or c.path in norms & biased for c in active}
    if not active or not all(fits.values()):
        names = ", ".join([name for name, takes in fits.items() if not takes][:3]) or "a structure without effect"
        what = f"one PEFT adapter cannot hold {names} ({len(fits) - sum(fits.values())} in all)"
        how = "s3pet.merge(tuned) merges biases, too"
        if any(c.pet not in ("lora", "lnfit", "bitfit") for c in active):
            how = f"Adapters cannot be merged either; {SEARCH_PLAIN}"
        raise ExportError(f"{what}; it holds LoRA, LNFit and a norm's own bias. {how}")
    state, ranks = dict[str, Tensor](), dict[str, int]()
    for site in dict.fromkeys(c.path for c in active if c.pet == "lora"):
        parts = [c for c in active if c.path == site and c.pet == "lora"]
        a = torch.cat([tensors[f"{c.name}/A"] for c in parts])
        scales = [len(a) / (c.rank or 1) for c in parts]  # to the common scale 16 / rank
        b = torch.cat([tensors[f"{c.name}/B"] * scale for c, scale in zip(parts, scales, strict=True)], 1)
        state |= {f"{site}.lora_A.weight": a, f"{site}.lora_B.weight": b}
        ranks[site] = len(a)
    suffix = "" if ranks else ".ln_tuning_layers"
    for site in sorted(norms):
        own = {name: tensor.clone() for name, tensor in modules[site].state_dict().items()}
        for c in active:
            if c.path == site:
                own["weight" if c.pet == "lnfit" else "bias"] += tensors[f"{c.name}/{'w' if c.pet == 'lnfit' else 'b'}"]
        state |= {f"{site}{suffix}.{name}": tensor for name, tensor in own.items()}
    heads = dict(zip(objective.heads, objective.head.children() if objective.heads else (), strict=True))
    state |= {f"{path}.{name}": tensor for path, own in heads.items() for name, tensor in own.state_dict().items()}
    _check_exact([*modules], [*ranks], sorted({*norms, *heads}))
    saved, prefix, head = sorted(norms) + [*heads], "", dict[str, Tensor]()
    if objective.head is not None and not heads:
        head = objective.head.out.state_dict()
        classifier = classifier_of(tuned, copy.deepcopy(supernet.model))
        if classifier is not None:
            own_name = f"{classifier.base_model_prefix}."
            prefix = own_name if getattr(supernet.model, "base_model", supernet.model) is supernet.model else ""
            state = {prefix + name: tensor for name, tensor in state.items()}
            state |= {f"classifier.{name}": tensor for name, tensor in classifier.classifier.state_dict().items()}
            saved, heads, head = [prefix + name for name in saved] + ["classifier"], {"classifier": classifier}, {}
    common = Counter(ranks.values()).most_common(1)[0][0] if ranks else None
    config: dict[str, Any] = {
        "peft_type": "LORA" if ranks else "LN_TUNING",
        "task_type": None if objective.heads else "SEQ_CLS" if heads else TASK_TYPES[backbone_kind(supernet.model)],
        "base_model_name_or_path": name_of(supernet.model),
        "inference_mode": True,
        "target_modules": [prefix + name for name in ranks or sorted(norms)],
        "modules_to_save": (saved if ranks else [*heads]) or None,
    }
    if ranks:
        config |= {"r": common, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0, "bias": "none", "alpha_pattern": {}}
        config["rank_pattern"] = {prefix + name: rank for name, rank in ranks.items() if rank != common}
        config["fan_in_fan_out"] = any(isinstance(modules[name], Conv1D) for name in ranks)
    with new_folder(path, CONFIG, "PEFT adapter", overwrite, foreign=[HEAD]) as folder:
        write_tensors({PREFIX + name: tensor for name, tensor in state.items()}, folder / WEIGHTS)
        if head:
            write_tensors(head, folder / HEAD)
        write_json(config, folder / CONFIG)
    return Path(path)


def from_peft(path: str | Path, model: nn.Module) -> Adapter:
    """Read an adapter folder of PEFT, LoRA or LN tuning, as a structure with its weights on this model.

    Norms in ``modules_to_save`` become LNFit and BitFit. Our LoRA has the scale 16/r, so B takes up another one.

    Raises:
        RunError: no adapter there, or damaged files. ExportError: another method, or options of LoRA that change what
            it computes. StructureMismatchError: an adapter of another model, missing tensors, or wrong shapes.
    """
    check_model(model)
    config, tensors = _read(path_of(path))
    scales, places, head = dict[str, float](), dict[tuple[str, str], Tensor](), dict[str, Tensor]()
    modules = dict(model.named_modules())
    sites = {site.path: site.kind for site in find_sites(model) if site.kind != "block"}
    own = f"{getattr(model, 'base_model_prefix', '')}."
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key) if tensor.ndim else None
        if match is None:
            raise ExportError(f"{path}: {key!r} is a tensor of PEFT that has no counterpart here; LoRA and norms have")
        there = match["path"]
        where = next((p for p in (there, there.removeprefix(own), own + there) if p in sites), "")
        if where:
            places[where, match["lora"] or match["name"]] = tensor
            scales[where] = _scale(config, there)
        elif any(f".{name}." in f".{there}." for name in config["modules_to_save"] or ()):
            head[key.removeprefix(PREFIX)] = tensor
        else:
            raise StructureMismatchError(f"{path} has modules on {there}, which {type(model).__name__} has not")
    wanted, weights = list[Place](), dict[tuple[str, str], dict[str, Tensor]]()
    for (where, name), tensor in places.items():
        if name.startswith("lora"):
            a, b = (places.get((where, f"lora_{part}")) for part in "AB")
            if a is None or b is None:
                raise StructureMismatchError(f"{path} lacks lora_{'A' if a is None else 'B'} of {where}")
            wanted.append((where, "lora", len(a)))
            weights[where, "lora"] = {"A": a, "B": b * (scales[where] * len(a) / LORA_ALPHA)}
        else:
            before, shape = getattr(modules[where], name, None), tuple(tensor.shape)
            if sites[where] != "norm" or before is None or before.shape != shape:
                raise StructureMismatchError(f"{path} has {name} {shape} on {where}, which has no such tensor")
            pet, own_name = ("lnfit", "w") if name == "weight" else ("bitfit", "b")
            delta = tensor.float() - before.detach().cpu().float()
            if pet == "lnfit" or bool(delta.any()):
                wanted.append((where, pet, None))
                weights[where, pet] = {own_name: delta}
    structure = structure_at(model, list(dict.fromkeys(wanted)), {"kind": "peft", "from": Path(path).name})
    supernet = Supernet(model, structure)
    supernet.load({f"{c.name}/{k}": t for c in structure for k, t in weights[c.path, c.pet].items()})
    return Adapter(structure, supernet, head)


def _check_exact(names: list[str], targets: list[str], saved: list[str]) -> None:
    """PEFT takes every module whose name ends like an entry; refuse entries that would take others, too."""
    for entries, dot in ((targets, "."), (saved, "")):
        taken = [name for name in names if any(name == entry or name.endswith(dot + entry) for entry in entries)]
        if others := sorted({*taken} - {*entries}):
            raise ExportError(f"PEFT would also take {others[0]}, whose name ends like a chosen one; use s3pet.merge")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a folder, with the options that are supported."""
    files = saved_files(path, "PEFT adapter", (CONFIG, WEIGHTS), "Pickles, .bin, are not read.")
    with reading(path / CONFIG):
        config = read_json(files[CONFIG], KINDS, ["peft_type"])
    with reading(path / WEIGHTS):
        tensors, _ = read_tensors(files[WEIGHTS])
    kind = config["peft_type"]
    if kind not in ("LORA", "LN_TUNING"):
        raise ExportError(f"{path} is {kind}; expected LORA or LN_TUNING, which have a counterpart here")
    options = {name: config.get(name) for name in _PLAIN}
    if wrong := {name: value for name, value in options.items() if value not in (None, [], {}, _PLAIN[name])}:
        raise ExportError(f"{path} uses {wrong}; expected plain LoRA. Merge it with PEFT: model.merge_and_unload()")
    return {"modules_to_save": None, **config}, tensors


def _scale(config: Mapping[str, Any], path: str) -> float:
    """The factor of B A at a module, by the numbers that PEFT reads: alpha / r, or alpha / sqrt(r)."""

    def at(patterns: str, default: str) -> float:
        values = (v for p, v in (config.get(patterns) or {}).items() if re.match(rf"(.*\.)?({p})$", path))
        return float(next(values, config.get(default) or 8))

    rank = at("rank_pattern", "r")
    return at("alpha_pattern", "lora_alpha") / (rank**0.5 if config.get("use_rslora") else rank)
