"""The sites of a transformer: found by its structure, checked by one forward and backward pass.

1. *Linear maps* are modules with ``in_features`` and ``out_features`` (and transformers' ``Conv1D``); *norms* are
   modules whose form a probe knows (:func:`s3pet.modules.norm_form`). A width is read, never guessed.
2. *Layers* are the items of repeated module lists. A role such as ``attn.q`` comes from one table of synonyms; where
   none fits, the own name of the module is its role (``attn.pos_proj``).
3. A small batch shows what runs, how often, with which widths and in which order. The order gives norms their roles: in
   layers that begin with a norm, the norm that feeds the queries is the attention's. A *block's output* is the largest
   module that returns the output of the block's last projection as it is.
4. The backward pass shows whether a bias does anything. With g_t the gradient at output position t, a bias gets Σ_t g_t;
   where these cancel (|Σ_t g_t| ≪ Σ_t |g_t|) it is *inert*, such as a bias on attention keys that the softmax removes.

Cost: one forward and one backward pass of a few tokens. The model is left exactly as it was.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from s3pet.backbones import backbone_kind, preserved
from s3pet.errors import BackboneError
from s3pet.examples import example_batches
from s3pet.modules import norm_form


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
    "mixer": r"mixer|mamba|ssm|recurrent|(^|\.)conv\.",
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
INERT_BELOW = 1e-3  # |Σ g| / Σ |g| of a bias that is cancelled is about 1e-6; of others it is above 1e-2


@dataclass
class _Part:
    """A linear map or norm under examination."""

    path: str
    kind: str
    widths: tuple[int, int]
    stack: str = ""
    layer: int | None = None
    rest: str = ""  # its name within the layer
    role: str = ""
    reason: str | None = "not reached by the batch it was checked with"
    calls: int = 0
    first: int = -1  # number of its first call, among all calls
    reads: int = 0  # identity of the memory it reads
    writes: tuple[int, int] = (0, 0)  # identity and version of the memory it returned last
    total: Tensor | None = None  # Σ g and Σ |g| of the gradient at its output
    absolute: float = 0.0

    @property
    def block(self) -> str:
        return self.role.split(".")[0]

    @property
    def address(self) -> str:
        return ".".join(str(word) for word in (self.stack, self.layer, self.role) if word is not None)

    def site(self) -> Site:
        """The finished site."""
        where = (self.address, self.path, self.stack, self.layer, self.role, self.kind)
        return Site(*where, *self.widths, self.calls, self.inert)

    @property
    def inert(self) -> bool:
        return self.total is not None and float(self.total.abs().sum()) < INERT_BELOW * self.absolute

    def problem(self, arguments: tuple, options: Mapping[str, Any], output: Any) -> str | None:
        """Why PET modules cannot act on a call, or None."""
        if len(arguments) != 1 or options or not isinstance(arguments[0], Tensor) or not isinstance(output, Tensor):
            return "not called with one tensor alone"
        here = arguments[0].shape[-1], output.shape[-1]
        return None if here == self.widths else f"its tensors are {here[0]}→{here[1]} wide, its weight says otherwise"

    def hook(self, clock: Iterator[int], anchor: Tensor, alive: list[Tensor]) -> Callable[..., Any]:
        """A forward hook that notes a call, and the gradient that comes back to its output."""

        def note(module: nn.Module, arguments: tuple, options: Mapping[str, Any], output: Any) -> Any:
            problem = self.problem(arguments, options, output)
            self.calls, self.first = self.calls + 1, next(clock) if not self.calls else self.first
            self.reason = problem if self.calls == 1 else self.reason or problem
            if problem is not None:
                return None
            changed = output + anchor.to(output.dtype)  # plus 0, so that there is a gradient
            if changed.requires_grad:
                changed.register_hook(self.add)
            alive.extend((arguments[0], changed))  # memory that is in use is not used again: identities stay unique
            self.reads, self.writes = _identity(arguments[0]), (_identity(changed), changed._version)
            return changed

        return note

    def add(self, gradient: Tensor) -> None:
        """Add up the gradient of one call."""
        flat = gradient.detach().float().reshape(-1, gradient.shape[-1])
        self.total = flat.sum(0) if self.total is None else self.total + flat.sum(0)
        self.absolute += float(flat.abs().sum())


def find_sites(model: nn.Module, example: Mapping[str, Any] | None = None) -> tuple[Site, ...]:
    """All sites of a model, see :func:`survey`."""
    return survey(model, example).sites


def survey(model: nn.Module, example: Mapping[str, Any] | None = None) -> Survey:
    """Find and check the sites of a model.

    Args:
        model: any transformer, left exactly as it was. One on the meta device is run with random weights.
        example: keyword arguments of a forward pass; None: a batch of :func:`s3pet.examples.example_batches`.

    Raises:
        BackboneError: no layers with linear maps, or the model cannot be run; the message says what was tried.
    """
    modules, left = dict(model.named_modules()), dict[str, str]()
    parts = {path: part for path, module in modules.items() if (part := _part(path, module, left))}
    linears = [path for path, part in parts.items() if part.kind == "linear"]
    layers, homes = _layers(model, modules, linears)
    if not layers:
        what = f"{type(model).__name__} has no list of layers with linear maps in it ({len(linears)} linear maps in all)"
        raise BackboneError(f"{what}, so there is no search space")
    if any(p.is_meta for p in model.parameters()) and any(layers.get(f"{home}.2") for home in homes.values()):
        return _by_two_layers(model, modules, [*homes.values()], example)
    prefix = getattr(model, "base_model_prefix", "")
    body = f"{prefix}." if backbone_kind(model) == "encoder" and prefix in modules and prefix else ""
    for path, part in list(parts.items()):
        words = path.split(".")
        home = next((home for n in range(len(words)) if (home := ".".join(words[:n])) in layers), None)
        if home is not None:
            part.stack, part.layer, prefix = layers[home]
            part.rest = prefix + path.removeprefix(f"{home}.")
        elif path in layers:  # a norm that is an item of a list of norms
            part.stack, part.layer, prefix = layers[path]
            part.rest = prefix.rstrip(".")
        elif part.kind == "linear" or not path.startswith(body):
            is_head = modules[path] is _output_embeddings(model)
            left[path] = "the output head" if is_head else "outside the layers (a head, a pooler or an embedding)"
            del parts[path]
    inside = {path for path in modules if any(path == home or path.startswith(f"{home}.") for home in layers)}
    returned = _run(model, modules, parts, inside - parts.keys(), example)
    for part in parts.values():
        if part.reason is None and part.total is None:
            part.reason = "no gradient comes back to it"
    left |= {path: part.reason for path, part in parts.items() if part.reason is not None}
    working = sorted((part for path, part in parts.items() if path not in left), key=lambda part: part.first)
    if not working:
        raise BackboneError(f"no linear map or norm of {type(model).__name__} can have PET modules: {_counted(left)}")
    _named(working, homes)
    sites = [part.site() for part in working] + _blocks(working, layers, returned)
    numbers = {path: number for number, path in enumerate(modules)}
    sites.sort(key=lambda site: (numbers[site.path], site.kind == "block"))
    return Survey(tuple(sites), tuple(LeftOut(path, left[path]) for path in modules if path in left) + _raw(modules, parts, left))


def linear_widths(module: Any) -> tuple[int, int] | None:
    """Width of input and output of a linear map, in features; None for other modules."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    is_leaf = isinstance(module, nn.Linear) or not any(True for _ in module.children())
    return widths if is_leaf and all(isinstance(width, int) for width in widths) else None  # type: ignore[return-value]


def _part(path: str, module: nn.Module, left: dict[str, str]) -> _Part | None:
    """The module as a linear map or norm; a norm of another form is left out."""
    if (widths := linear_widths(module)) is not None:
        return _Part(path, "linear", widths)
    if norm_form(module) is not None:
        return _Part(path, "norm", (len(module.weight),) * 2)  # type: ignore[arg-type]
    own = dict(module.named_parameters(recurse=False))
    if re.search("norm", type(module).__name__, re.IGNORECASE) and (own or isinstance(module, nn.LayerNorm)):
        left[path] = "a norm that is neither LayerNorm nor RMSNorm with a weight"
    elif isinstance(module, nn.modules.conv._ConvNd):
        left[path] = "a convolution"
    return None


def _raw(modules: Mapping[str, nn.Module], parts: Mapping[str, _Part], left: Mapping[str, str]) -> tuple[LeftOut, ...]:
    """Matrices that are parameters of other modules."""
    others = {path: m for path, m in modules.items() if path not in parts and path not in left}
    raw = [
        f"{path}.{name}" if path else name
        for path, module in others.items()
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and linear_widths(module) is None
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 2
    ]
    return tuple(LeftOut(path, "a raw matrix, not the weight of a linear map") for path in raw)


def _output_embeddings(model: Any) -> nn.Module | None:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _counted(left: Mapping[str, str]) -> str:
    return "; ".join(f"{n} × {reason}" for reason, n in Counter(left.values()).most_common(3)) or "there is none"


# -- layers


def _layers(
    model: nn.Module, modules: Mapping[str, nn.Module], linears: Sequence[str]
) -> tuple[dict[str, tuple[str, int, str]], dict[str, str]]:
    """Path of each layer → (stack, number, prefix of the names in it), and each stack → path of its list."""

    def inside(path: str) -> list[str]:
        return [name.removeprefix(f"{path}.") for name in linears if name.startswith(f"{path}.")]

    def items(path: str) -> list[str]:
        return [f"{path}.{name}" for name, _ in modules[path].named_children()]

    def is_list(path: str) -> bool:
        return isinstance(modules[path], (nn.ModuleList, nn.Sequential)) and all(map(inside, items(path)))

    lists: dict[str, list[str]] = {}  # path of a list → its layers
    for path in modules:
        if is_list(path) and items(path) and not any(path.startswith(f"{other}.") for other in lists):
            inner = [p for item in items(path) for p in (item, *items(item)) if is_list(p) and items(p)]
            inner = [p for p in inner if len({type(modules[item]) for item in items(p)}) == 1]
            is_staged = 4 * sum(len(inside(p)) for p in inner) >= 3 * len(inside(path))  # stages or groups of layers
            lists[path] = [item for p in (inner if is_staged else [path]) for item in items(p)]
    groups: dict[tuple[str, int], list[str]] = {}  # a model may keep lists of attentions, of FFNs and of norms
    for path, module in modules.items():
        if path in lists or (isinstance(module, nn.ModuleList) and len(module) and all(map(norm_form, module))):
            groups.setdefault((path.rpartition(".")[0], len(modules[path]._modules)), []).append(path)
    stacks: dict[str, list[str]] = {}  # first list of a stack → all its lists
    for group in groups.values():
        own = [path for path in group if path in lists]
        leaf = {path: path.rpartition(".")[2] for path in own}
        blocks = [{_linear_role(f"{leaf[path]}.{rest}")[0] for rest in inside(path)} for path in own]
        together = len(own) > 1 and sum(map(len, blocks)) == len(set().union(*blocks))
        stacks |= {own[0]: group} if together else {path: [path] for path in own}
    layers, homes = dict[str, tuple[str, int, str]](), dict[str, str]()
    for name, (home, members) in zip(_stack_names(model, [*stacks]), stacks.items(), strict=True):
        homes[name] = home
        for path in members:
            prefix = f"{path.rpartition('.')[2]}." if len(members) > 1 else ""
            layers |= {layer: (name, n, prefix) for n, layer in enumerate(lists.get(path) or items(path))}
    return layers, homes


def _stack_names(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """A name for each list of layers: encoder, decoder, or what its path says."""
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    causal, masked = (getattr(modeling_auto, f"MODEL_FOR_{kind}_LM_MAPPING_NAMES") for kind in ("CAUSAL", "MASKED"))
    is_decoder = backbone_kind(model) == "decoder" or (model_type in causal and model_type not in masked)
    words = [re.findall("encoder|decoder", path) for path in paths]
    names = [found[-1] if found else "decoder" if is_decoder else "encoder" for found in words]
    if len(set(names)) < len(names):  # two towers: the first word in which their paths differ
        split = [path.split(".") for path in paths]
        own = [[word for word in path if not all(word in other for other in split)] for path in split]
        names = [re.sub("_(model|tower|layers?)$", "", path[0]) if path else n for path, n in zip(own, names, strict=True)]
    return [n if names.count(n) == 1 else f"{n}{names[:k].count(n) + 1}" for k, n in enumerate(names)]


# -- roles


def _linear_role(rest: str) -> tuple[str, str]:
    """Block and part of a linear map by its name within the layer."""
    words = rest.split(".")
    block = next(block for block, pattern in BLOCKS.items() if re.search(pattern, rest.lower()))
    leaf = words[-2] if len(words) > 1 and words[-1] in ("dense", "linear") and block == "ffn" else words[-1]
    synonyms = {word: part for part, line in PARTS[block].items() for word in line.split()}
    exact, short = leaf.lower(), _NOISE.sub("", leaf.lower())
    return block, synonyms.get(exact) or synonyms.get(short) or words[-1]


def _named(parts: Sequence[_Part], homes: Mapping[str, str]) -> None:
    """Give roles to parts, which come in the order of their first calls."""
    layers: dict[tuple[str, int], list[_Part]] = {}
    for part in parts:
        if part.layer is not None:
            layers.setdefault((part.stack, part.layer), []).append(part)
    for layer in layers.values():
        for part in layer:
            part.role = ".".join(_linear_role(part.rest)) if part.kind == "linear" else ""
        _name_fused(layer)
        _name_norms(layer)
    starts = {stack: min(p.first for p in parts if p.stack == stack) for stack in homes if any(stack == s for s, _ in layers)}
    for part in parts:
        if part.layer is None:  # a norm outside the layers
            near = {stack: len(os.path.commonprefix([homes[stack].split("."), part.path.split(".")])) for stack in starts}
            nearest_ones = [stack for stack in starts if near[stack] == max(near.values())]
            later = [stack for stack in nearest_ones if starts[stack] > part.first]
            part.stack = min(later, key=starts.__getitem__) if later else max(nearest_ones, key=starts.__getitem__)
            last = max(p.first for p in parts if p.stack == part.stack and p.layer is not None)
            part.role = "embed.norm" if later else "final.norm" if part.first > last else "between.norm"
            part.rest = part.path
    same: dict[tuple, list[_Part]] = {}
    for part in parts:
        same.setdefault((part.stack, part.layer, part.role), []).append(part)
    for group in same.values():
        words = [part.rest.split(".") for part in group]
        for part, own in zip(group, words, strict=True) if len(group) > 1 else ():
            block, _, name = part.role.partition(".")
            differing = [w for w in own if not all(w in other for other in words)]
            differing += [] if differing and differing[-1] == own[-1] else [name]
            part.role = ".".join([block, *(w for w in differing if w != block)])


def _name_fused(layer: Sequence[_Part]) -> None:
    """An FFN whose first map is twice as wide as its last one reads holds the gate, too."""
    roles = {part.role: part for part in layer}
    if {"ffn.in", "ffn.out"} <= roles.keys() and roles["ffn.in"].widths[1] == 2 * roles["ffn.out"].widths[0]:
        roles["ffn.in"].role = "ffn.gate_in"
    if "ffn.gate" in roles and "ffn.in" not in roles:
        roles["ffn.gate"].role = "ffn.in"


def _name_norms(layer: Sequence[_Part]) -> None:
    """Roles of the norms in a layer, whose parts come in the order of their calls."""

    def around(part: _Part) -> str | None:  # the block whose module holds the norm
        home = part.rest.rpartition(".")[0].lower()
        named = (block for block in BLOCKS if BLOCKS[block] and re.search(BLOCKS[block], home))
        return next(named, "ffn" if re.search("ff|mlp|feed_?forward|output", home) else None)

    begins_with_norm = layer[0].kind == "norm" and around(layer[0]) is None
    for n, norm in enumerate(layer):
        if norm.kind != "norm":
            continue
        earlier = next((p for p in layer[:n][::-1] if p.kind == "linear"), None)
        before = None if earlier is None else earlier.block
        after = next((p.block for p in layer[n + 1 :] if p.kind == "linear"), None)
        reader = next((p.block for p in layer if p.kind == "linear" and p.reads == norm.writes[0]), None)
        leaf = re.sub("layer_?norm$", "norm", norm.rest.rpartition(".")[2].lower())
        own_name = leaf if re.search("[a-z0-9]_norm$", leaf) else None
        if (before is not None and before == after) or (around(norm) and own_name):  # between the maps of one block
            norm.role = f"{around(norm) or before}.{own_name or 'inner_norm'}"
        elif (block := around(norm)) is not None:
            norm.role = f"{block}.norm"
        elif not begins_with_norm:
            norm.role = f"{before or after or 'layer'}.norm"
        elif reader is None and earlier is not None and norm.reads == earlier.writes[0]:
            norm.role = f"{before}.post_norm"
        else:  # a block may have no linear maps, but raw matrices
            norm.role = f"{reader or after or 'ffn'}.norm"


def _blocks(parts: Sequence[_Part], layers: Mapping[str, Any], returned: Mapping[str, tuple[int, int, int]]) -> list[Site]:
    """Outputs of blocks: of the largest module that returns what the last projection returned, as it is."""
    last: dict[tuple[str, int | None, str], _Part] = {}
    for part in parts:
        if part.kind == "linear":
            last[part.stack, part.layer, part.block] = part
    sites = []
    for (stack, number, block), part in last.items():
        words = part.path.split(".")
        above = [".".join(words[:n]) for n in range(1, len(words))]
        home = next(path for path in above if path in layers)
        strange = {p.path for p in parts if p.block != block}
        homes = [p for p in above[above.index(home) + (not layers[home][2]) :] if returned.get(p, ())[:2] == part.writes]
        width = returned.get(home, (0, 0, part.widths[1]))[2]
        if not re.search(r"\d", part.role) and width == part.widths[1]:  # else one of many experts, or a router
            path = next((p for p in homes if not any(other.startswith(f"{p}.") for other in strange)), part.path)
            address = ".".join((stack, str(number), block))
            d = part.widths[1]
            sites.append(Site(address, path, stack, number, block, "block", d, d, part.calls, last=part.address))
    return sites


def _by_two_layers(
    model: nn.Module, modules: Mapping[str, nn.Module], homes: Sequence[str], example: Mapping[str, Any] | None
) -> Survey:
    """The survey of a model without weights: its first two layers are checked, the others are like the second one."""
    twin = copy.deepcopy(model)
    for home in homes:
        layers: Any = twin.get_submodule(home)
        del layers[2:]
    sites, left_out = survey(twin, example)

    def deeper(item: Any) -> Iterator[Any]:
        home = next((home for home in homes if item.path.startswith(f"{home}.1.")), None)
        yield item
        for n in range(2, len(modules[home]._modules)) if home else ():
            new = {"path": item.path.replace(f"{home}.1.", f"{home}.{n}.", 1)}
            if isinstance(item, Site):
                new |= {"layer": n, "address": item.address.replace(".1.", f".{n}.", 1)}
                new |= {"last": item.last and item.last.replace(".1.", f".{n}.", 1)}
            yield replace(item, **new) if isinstance(item, Site) else item._replace(**new)

    numbers = {path: number for number, path in enumerate(modules)}
    every = [new for site in sites for new in deeper(site) if new.path in modules]
    every.sort(key=lambda site: (numbers[site.path], site.kind == "block"))
    return Survey(tuple(every), tuple(new for item in left_out for new in deeper(item)))


# -- one pass


def _run(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    parts: Mapping[str, _Part],
    others: Iterable[str],
    example: Mapping[str, Any] | None,
) -> dict[str, tuple[int, int, int]]:
    """Run forward and backward; notes all in the parts, and returns what the other modules returned last."""
    tried = []
    for batch in example_batches(model) if example is None else [example]:
        clock, alive, returned = itertools.count(), list[Tensor](), dict[str, tuple[int, int, int]]()
        for part in parts.values():
            part.calls, part.first, part.total, part.absolute, part.reason = 0, -1, None, 0.0, _Part.reason
        anchor = torch.zeros((), requires_grad=True)
        try:
            with _untouched(model), torch.enable_grad():
                model.requires_grad_(False).eval()
                torch.manual_seed(0)
                weights = _stand_ins(model)
                device = next((t.device for t in (weights or dict(model.named_parameters())).values()), None)
                anchor = torch.zeros((), requires_grad=True, device=device)
                for path, part in parts.items():
                    modules[path].register_forward_hook(part.hook(clock, anchor, alive), with_kwargs=True)
                for path in others:
                    modules[path].register_forward_hook(_note_output(path, returned, alive))
                output = torch.func.functional_call(model, weights, (), dict(batch)) if weights else model(**batch)
                generator = torch.Generator().manual_seed(0)
                terms = [t.float() for t in _tensors(output) if t.is_floating_point() and t.requires_grad]
                sum((t * torch.randn(t.shape, generator=generator).to(t.device)).sum() for t in terms).backward()
            return returned
        except Exception as error:  # whatever the code of a model may raise
            shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in batch.items() if isinstance(v, Tensor))
            tried.append(f"with {shapes}: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
    what = "; ".join(tried) or "no input of this model is known"
    how = "pass a small batch: make_space(model, example={'input_ids': …})"
    raise BackboneError(f"{type(model).__name__} could not be run, so its sites are not known. Tried {what}. {how}")


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore attributes, submodules, buffers and hooks of every module, which the code of a model may exchange."""
    before = [(m, dict(vars(m)), {k: dict(v) for k, v in vars(m).items() if isinstance(v, dict)}) for m in model.modules()]
    try:
        with preserved(model):
            yield
    finally:
        for module, attributes, tables in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, table in tables.items():
                vars(module)[name].clear()
                vars(module)[name].update(table)


def _note_output(path: str, returned: dict[str, tuple[int, int, int]], alive: list[Tensor]) -> Callable[..., None]:
    def note(module: nn.Module, arguments: tuple, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.ndim:
            alive.append(first)
            returned[path] = _identity(first), first._version, first.shape[-1]

    return note


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in an output."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """Random weights for a model on the meta device: overlapping views of one short vector, so they need no memory."""
    result = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta and tensor.ndim:
            strides = (*(7 + 2 * n for n in range(tensor.ndim - 1)), 1)
            length = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True)) + 1
            values = 0.05 * torch.randn(length, generator=torch.Generator().manual_seed(len(result)))
            result[name] = values.as_strided(tensor.shape, strides) + (tensor.ndim == 1)
            if not tensor.is_floating_point():
                result[name] = torch.arange(tensor.shape[-1]).expand(tensor.shape)
    return result
