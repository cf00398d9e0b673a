"""The sites of a transformer: found by its structure, checked by one forward and backward pass.

1. *Linear maps* are modules with ``in_features`` and ``out_features`` (and transformers' ``Conv1D``); *norms* are
   modules whose form a probe knows (:func:`s3pet.backbones.norms.norm_form`). A width is read, never guessed.
2. *Layers* are the items of repeated module lists. A role such as ``attn.q`` comes from one table of synonyms; where
   none fits, the own name of the module is its role (``attn.pos_proj``).
3. A small batch shows what runs, how often, with which widths and in which order. The order gives norms their roles: in
   layers that begin with a norm, the norm that feeds the queries is the attention's. A *block's output* is the largest
   module that returns the output of the block's last projection as it is.
4. The backward pass shows whether a bias does anything. A bias gets the sum Σ_t g_t of the gradients at all output
   positions; where they cancel (``|Σ_t g_t| ≪ Σ_t |g_t|``), it is *inert*, as a bias on keys is in a softmax.

Cost: one forward and one backward pass of a few tokens. The model is left exactly as it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from s3pet.backbones.frozen import backbone_kind, unwrapped
from s3pet.backbones.layers import Layer, find_layers, same_in_all_layers, with_weights
from s3pet.backbones.norms import norm_form
from s3pet.backbones.probe import Output, Part, run
from s3pet.errors import BackboneError


@dataclass(frozen=True)
class Site:
    """A place in a frozen backbone where PET modules may act.

    Attributes:
        address, path: ``stack.layer.role``, such as ``encoder.3.attn.q``, and the dotted name in the model.
        stack, layer: ``"encoder"``, ``"decoder"``, ``"vision"`` …; the index in it, None outside the layers.
        role, kind: ``attn.q`` … ``ffn.norm``, or ``attn``, ``cross``, ``ffn`` for a block's output; accordingly
            "linear", "norm" or "block".
        d_in, d_out: widths of input and output, in features.
        calls: how often a forward pass runs it; more than once where layers share their weights.
        inert: whether a bias at its output has no effect.
        last: of a block, the address of its last projection, whose bias adds at the same place.
    """

    address: str
    path: str
    stack: str
    layer: int | None
    role: str
    kind: str
    d_in: int
    d_out: int
    calls: int = 1
    inert: bool = False
    last: str | None = None


class LeftOut(NamedTuple):
    """A linear map, norm, raw matrix or head that is in no space, and why."""

    path: str
    reason: str


class Survey(NamedTuple):
    """All sites of a model in ``named_modules()`` order, and what is not one."""

    sites: tuple[Site, ...]
    left_out: tuple[LeftOut, ...]


BLOCKS = {  # what the name of a module within its layer says, in lower case; the first match counts
    "cross": r"cross|enc_?dec|encoder_att",
    "attn": r"att(n|ention)|(^|[._])(self|att)([._]|$)",
    "mixer": r"mixer|mamba|ssm|recurrent|temporal|(^|\.)conv\.",
    "ffn": r"",
}
_ATTENTION = {
    "q": "q query wq q_attn",
    "k": "k key wk",
    "v": "v value values wv",
    "qkv": "qkv wqkv attn query_key_value in w_pack att",
    "kv": "kv key_value",
    "o": "o out wo dense post proj projection output",
}
PARTS = {  # synonyms of projections by block and part, in lower case and without words such as "proj"
    "attn": _ATTENTION,
    "cross": _ATTENTION,
    "mixer": {"in": "in", "out": "out"},
    "ffn": {
        "gate": "gate wi_0 w1",
        "in": "in up wi wi_1 fc1 lin1 linear1 dense1 fc 0 1 h_to_4h intermediate ffn w3 ff1 pwconv1",
        "gate_in": "gate_up",
        "out": "out down wo fc2 lin2 linear2 dense2 proj 2 4h_to_h output ffn_output w2 ff2 pwconv2",
    },
}
_NOISE = re.compile(r"(_(proj|projection|lin|linear|layer|head|dense))+$|^(proj|lin|linear|layer|to|fc|dense|c)_")


def find_sites(model: nn.Module, example: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """All sites of a model, see :func:`survey`."""
    return survey(model, example).sites


def survey(model: nn.Module, example: Mapping[str, Any] | None = None) -> Survey:
    """Find and check the sites of a model.

    Args:
        model: any transformer, left exactly as it was. Of one on the meta device, the first two layers are checked with
            random weights, and the others are taken to be like the second.
        example: keyword arguments of a forward pass; None: a batch of :func:`s3pet.backbones.examples.example_batches`.

    Raises:
        BackboneError: no layers with linear maps, a compiled or wrapped model, or one that cannot be run; the message
            says what was tried.
    """
    model = unwrapped(model)
    modules, left = dict(model.named_modules()), dict[str, str]()
    parts = {path: part for path, module in modules.items() if (part := _part(path, module, left))}
    linears = [path for path, part in parts.items() if part.kind == "linear"]
    layers, homes = find_layers(model, linears, lambda rest: _linear_role(rest)[0])
    if not layers:
        what = f"no list of layers with linear maps in it ({len(linears)} linear maps in all{_counted(left)})"
        raise BackboneError(f"{type(model).__name__} has {what}, so there is no search space")
    if any(parameter.is_meta for parameter in model.parameters()):
        alike = [home for home in homes.values() if f"{home}.1" in layers and _are_alike(home, modules, parts)]
        return _in_all_layers(survey(with_weights(model, alike), example), modules, alike)
    base = f"{getattr(model, 'base_model_prefix', '')}."
    output = getattr(model, "get_output_embeddings", lambda: None)()
    body = base if backbone_kind(model) == "encoder" and base[:-1] in modules and base != "." else ""
    for path, part in list(parts.items()):
        words = path.split(".")
        home = next((home for n in range(len(words) + 1) if (home := ".".join(words[:n])) in layers), None)
        if home is not None:
            part.stack, part.layer, prefix = layers[home]
            part.rest = (prefix + path.removeprefix(home).removeprefix(".")).rstrip(".")
        elif part.kind == "linear" or not path.startswith(body):
            is_head = modules[path] is output
            left[path] = "the output head" if is_head else "outside the layers (a head, a pooler or an embedding)"
            del parts[path]
    above = {path for path in modules if any(path == home or path.startswith(f"{home}.") for home in layers)}
    with torch.device("cpu"):  # whatever the default is; the batch goes to the model's device
        returned = run(model, parts.values(), above - parts.keys(), example)
    left |= {path: part.reason for path, part in parts.items() if part.reason is not None}
    working = sorted((part for part in parts.values() if part.reason is None), key=lambda part: part.first)
    if not any(part.rest for part in working):
        what = f"no linear map or norm in the layers of {type(model).__name__} can have PET modules"
        raise BackboneError(f"{what}{_counted(left)}")
    _name(working, homes)
    sites = [Site(p.address, p.path, p.stack, p.layer, p.role, p.kind, *p.widths, p.calls, p.inert) for p in working]
    sites += _blocks(working, layers, returned)
    raw = _raw_matrices(modules, parts.keys() | left.keys())
    return Survey(_sorted(sites, modules), tuple(LeftOut(path, left[path]) for path in modules if path in left) + raw)


def linear_widths(module: Any) -> tuple[int, int] | None:
    """Width of input and output of a linear map, in features; None for other modules."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    is_leaf = isinstance(module, nn.Linear) or next(module.children(), None) is None
    return widths if is_leaf and all(isinstance(width, int) for width in widths) else None  # type: ignore[return-value]


def has_widths(module: nn.Module, d_in: int, d_out: int) -> bool:
    """Whether a linear map or norm has these widths, or else the last linear map inside a block this output."""
    if (own := linear_widths(module)) is not None:
        return own == (d_in, d_out) or d_in == d_out == own[1]  # the output of a block may be that of its projection
    if norm_form(module) is not None:
        return d_in == d_out == len(module.weight)  # type: ignore[arg-type]
    inside = [pair[1] for part in module.modules() if (pair := linear_widths(part))]
    return d_in == d_out and inside[-1:] == [d_out]


def _part(path: str, module: nn.Module, left: dict[str, str]) -> Part | None:
    """The module as a linear map or norm; norms of other forms, and convolutions, are left out with a reason."""
    if (widths := linear_widths(module)) is not None:
        return Part(path, "linear", widths)
    if norm_form(module) is not None:
        return Part(path, "norm", (len(module.weight),) * 2)  # type: ignore[arg-type]
    has_weights = next(module.parameters(recurse=False), None) is not None
    if "norm" in type(module).__name__.lower() and (has_weights or isinstance(module, nn.LayerNorm)):
        left[path] = "a norm that is neither a LayerNorm nor an RMSNorm with one weight for each feature"
    elif isinstance(module, nn.modules.conv._ConvNd):
        left[path] = "a convolution"
    return None


def _raw_matrices(modules: Mapping[str, nn.Module], known: Set[str]) -> tuple[LeftOut, ...]:
    """Matrices that are parameters of other modules, such as stacked experts."""
    matrices = list[LeftOut]()
    for path, module in modules.items():
        if path not in known and not isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            names = [name for name, weight in module.named_parameters(recurse=False) if weight.ndim >= 2]
            reason = "a raw matrix, not the weight of a linear map"
            matrices += [LeftOut(f"{path}.{name}".strip("."), reason) for name in names]
    return tuple(matrices)


def _counted(left: Mapping[str, str]) -> str:
    return "".join(f"; {n} × {reason}" for reason, n in Counter(left.values()).most_common(3))


def _sorted(sites: Iterable[Site], modules: Mapping[str, Any]) -> tuple[Site, ...]:
    numbers = {path: number for number, path in enumerate(modules)}
    return tuple(sorted(sites, key=lambda site: (numbers[site.path], site.kind == "block")))


def _are_alike(home: str, modules: Mapping[str, nn.Module], parts: Mapping[str, Part]) -> bool:
    """Whether all layers of a list, but perhaps the first, have the same linear maps and norms."""
    layers = [{p.removeprefix(f"{home}.{n}."): part.widths for p, part in parts.items() if p.startswith(f"{home}.{n}.")}
              for n in range(1, len(modules[home]._modules))]  # fmt: skip
    return all(layer == layers[0] for layer in layers)


def _in_all_layers(two: Survey, modules: Mapping[str, nn.Module], homes: Iterable[str]) -> Survey:
    """The survey of a model by that of its first two layers."""
    counts = {home: len(modules[home]._modules) for home in homes}
    left_out = [LeftOut(path, one.reason) for one in two.left_out for path, _ in same_in_all_layers(one.path, counts)]
    sites = []
    for site in two.sites:
        for path, n in same_in_all_layers(site.path, counts):
            address, last = (name.replace(".1.", f".{n}.", 1) for name in (site.address, site.last or ""))
            sites.append(site if n is None else replace(site, path=path, layer=n, address=address, last=last or None))
    return Survey(_sorted(sites, modules), tuple(left_out))


# -- roles


def _linear_role(rest: str) -> tuple[str, str]:
    """Block and part of a linear map by its name within the layer."""
    words = rest.split(".")
    block = next(block for block, pattern in BLOCKS.items() if re.search(pattern, rest.lower()))
    leaf = words[-2] if len(words) > 1 and words[-1] in ("dense", "linear") and block == "ffn" else words[-1]
    synonyms = {word: part for part, line in PARTS[block].items() for word in line.split()}
    exact, short = leaf.lower(), _NOISE.sub("", leaf.lower())
    return block, synonyms.get(exact) or synonyms.get(short) or words[-1]


def _name(parts: Sequence[Part], homes: Mapping[str, str]) -> None:
    """Give roles to parts, which come in the order of their first calls."""
    layers: dict[tuple[str, int], list[Part]] = {}
    starts, ends = dict[str, int](), dict[str, int]()  # of stacks: their first and their last call
    for part in parts:
        if part.layer is not None:
            layers.setdefault((part.stack, part.layer), []).append(part)
            starts.setdefault(part.stack, part.first)
            ends[part.stack] = part.first
    first = Counter((stack, layer[0].kind == "norm") for (stack, _), layer in layers.items())
    for (stack, _), layer in layers.items():
        for part in layer:
            part.role = ".".join(_linear_role(part.rest)) if part.kind == "linear" else ""
        _name_fused(layer)
        _name_norms(layer, first[stack, True] >= first[stack, False])  # the first layer may lack its first norm
    for part in parts:
        if part.layer is None:  # a norm outside the layers
            own = part.path.split(".")
            near = {stack: _n_common(own, homes[stack].split(".")) for stack in starts}
            nearest_ones = [stack for stack in starts if near[stack] == max(near.values())]
            later = [stack for stack in nearest_ones if starts[stack] > part.first]
            part.stack = min(later, key=starts.__getitem__) if later else max(nearest_ones, key=starts.__getitem__)
            part.role = "embed.norm" if later else "final.norm" if part.first > ends[part.stack] else "between.norm"
            part.rest = part.path
    same: dict[tuple, list[Part]] = {}
    for part in parts:
        same.setdefault((part.stack, part.layer, part.role), []).append(part)
    for group in same.values():
        words = [part.rest.split(".") for part in group]
        for part, own in zip(group, words, strict=True) if len(group) > 1 else ():
            block, _, name = part.role.partition(".")
            differing = [w for w in own if not all(w in other for other in words)]
            differing += [] if differing and differing[-1] == own[-1] else [name]
            part.role = ".".join([block, *(w for w in differing if w != block)])
    addresses = Counter(part.address for part in parts)
    for part in parts:
        if addresses[part.address] > 1:
            part.role = f"{part.block}.{part.rest}"


def _n_common(one: Sequence[str], two: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def _name_fused(layer: Sequence[Part]) -> None:
    """An FFN whose first map is twice as wide as its last one reads holds the gate, too."""
    roles = {part.role: part for part in layer}
    if {"ffn.in", "ffn.out"} <= roles.keys() and roles["ffn.in"].widths[1] == 2 * roles["ffn.out"].widths[0]:
        roles["ffn.in"].role = "ffn.gate_in"
    if "ffn.gate" in roles and "ffn.in" not in roles:
        roles["ffn.gate"].role = "ffn.in"


def _name_norms(layer: Sequence[Part], begins_with_norm: bool) -> None:
    """Roles of the norms in a layer, whose parts come in the order of their calls."""

    def around(part: Part) -> str | None:  # the block whose module holds the norm
        home = part.rest.rpartition(".")[0].lower()
        named = (block for block in BLOCKS if BLOCKS[block] and re.search(BLOCKS[block], home))
        return next(named, "ffn" if re.search("ff|mlp|feed_?forward|output", home) else None)

    for n, norm in enumerate(layer):
        if norm.kind != "norm":
            continue
        earlier = next((p for p in layer[:n][::-1] if p.kind == "linear"), None)
        before = None if earlier is None else earlier.block
        after = next((p.block for p in layer[n + 1 :] if p.kind == "linear"), None)
        memory = norm.returns.memory if norm.returns else None
        reader = next((p.block for p in layer if p.kind == "linear" and p.reads == memory), None)
        leaf = re.sub("layer_?norm$", "norm", norm.rest.rpartition(".")[2].lower())
        own_name = leaf if re.search("[a-z0-9]_norm$", leaf) and not re.search("attn|attention|layer", leaf) else None
        if (before is not None and before == after) or (around(norm) and own_name):  # between the maps of one block
            norm.role = f"{around(norm) or before}.{own_name or 'inner_norm'}"
        elif (block := around(norm)) is not None:
            norm.role = f"{block}.norm"
        elif not begins_with_norm:
            norm.role = f"{before or after or 'layer'}.norm"
        elif reader is None and earlier is not None and earlier.returns and norm.reads == earlier.returns.memory:
            norm.role = f"{before}.post_norm"
        else:  # a block may have no linear maps, but raw matrices
            norm.role = f"{reader or after or 'ffn'}.norm"


def _blocks(parts: Sequence[Part], layers: Mapping[str, Layer], returned: Mapping[str, Output]) -> list[Site]:
    """Outputs of blocks: of the largest module that returns what the last projection returned, as it is."""
    last = {(part.stack, part.layer, part.block): part for part in parts if part.kind == "linear"}
    sites = []
    for (stack, number, block), part in last.items():
        words = part.path.split(".")
        above = [".".join(words[:n]) for n in range(1, len(words))]
        home = next(path for path in above if path in layers)
        d, in_home = part.widths[1], above[above.index(home) + (not layers[home].prefix) :]
        others = [p.path for p in parts if p.block != block]
        same = [
            p for p in in_home if returned.get(p) == part.returns and not any(o.startswith(f"{p}.") for o in others)
        ]
        is_expert = re.search(r"\d", part.role) is not None  # one of many; a router is not as wide as its layer
        if not is_expert and (home not in returned or returned[home].width == d):
            address, path = f"{stack}.{number}.{block}", (same or [part.path])[0]
            sites.append(Site(address, path, stack, number, block, "block", d, d, part.calls, last=part.address))
    return sites
