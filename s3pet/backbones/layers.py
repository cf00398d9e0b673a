"""The layers of a transformer: items of repeated module lists, in stacks such as encoder and decoder."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from s3pet.backbones.frozen import backbone_kind
from s3pet.backbones.norms import norm_form

LARGE = 2**23  # elements of a weight


class Layer(NamedTuple):
    """Where a module is: the stack, the number of the layer, and what to put before the names of its parts."""

    stack: str
    number: int
    prefix: str


def find_layers(
    model: nn.Module, linears: Sequence[str], block_of: Callable[[str], str]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers of a model by their paths, and the path of the module list of each stack.

    A list counts if all its items hold linear maps. Where nearly all of these are in lists of like modules right below,
    as in stages of layers, the inner lists count. Lists side by side, of attentions, FFNs and norms, make one stack.

    Args:
        model, linears: the model, and the paths of its linear maps.
        block_of: from the name of a linear map in a layer to its block.
    """
    modules = dict(model.named_modules())

    def inside(path: str) -> list[str]:
        return [name.removeprefix(f"{path}.") for name in linears if name.startswith(f"{path}.")]

    def items(path: str) -> list[str]:
        return [f"{path}.{name}" for name, _ in modules[path].named_children()]

    def is_list(path: str) -> bool:
        is_container = isinstance(modules.get(path), (nn.ModuleList, nn.Sequential))  # shared modules are there once
        return is_container and len(items(path)) > 0 and all(map(inside, items(path)))

    lists: dict[str, list[str]] = {}  # path of a list → its layers
    groups: dict[tuple[str, int], list[str]] = {}  # lists side by side, by the path of their parent and their length
    for path, module in modules.items():
        if is_list(path) and not any(path.startswith(f"{other}.") for other in lists):
            inner = [p for item in items(path) for p in (item, *items(item)) if is_list(p)]
            inner = [p for p in inner if len({type(modules[item]) for item in items(p)}) == 1]
            is_staged = 4 * sum(len(inside(p)) for p in inner) >= 3 * len(inside(path))
            lists[path] = [item for p in (inner if is_staged else [path]) for item in items(p)]
        if path in lists or (isinstance(module, nn.ModuleList) and len(module) and all(map(norm_form, module))):
            groups.setdefault((path.rpartition(".")[0], len(items(path))), []).append(path)
    stacks: dict[str, list[str]] = {}  # first list of a stack → all its lists
    for group in groups.values():
        own = [path for path in group if path in lists]
        blocks = [{block_of(f"{path.rpartition('.')[2]}.{rest}") for rest in inside(path)} for path in own]
        is_one = len(own) > 1 and sum(map(len, blocks)) == len(set().union(*blocks))
        stacks |= {own[0]: group} if is_one else {path: [path] for path in own}
    homes = dict(zip(_names(model, [*stacks]), stacks, strict=True))
    layers: dict[str, Layer] = {}
    for name, home in homes.items():
        for path in stacks[home]:
            prefix = f"{path.rpartition('.')[2]}." if len(stacks[home]) > 1 else ""
            layers |= {layer: Layer(name, n, prefix) for n, layer in enumerate(lists.get(path) or items(path))}
    return layers, homes


def _names(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """A name for each stack: encoder, decoder, or the first word in which its path differs from the others."""
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    causal, masked = (getattr(modeling_auto, f"MODEL_FOR_{kind}_LM_MAPPING_NAMES") for kind in ("CAUSAL", "MASKED"))
    is_decoder = backbone_kind(model) == "decoder" or (model_type in causal and model_type not in masked)
    words = [re.findall("encoder|decoder", path) for path in paths]
    usual = "decoder" if is_decoder else "encoder"
    names = [word[-1] if word else usual for word in words]
    if len(set(names)) < len(names):  # an encoder that serves as decoder
        names = [word[0] if word else usual for word in words]
    if len(set(names)) < len(names):
        split = [path.split(".") for path in paths]
        own = [[word for word in path if not all(word in other for other in split)] for path in split]
        names = [re.sub("_(model|tower|layers?)$", "", w[0]) if w else n for w, n in zip(own, names, strict=True)]
    return [n if names.count(n) == 1 else f"{n}{names[:k].count(n) + 1}" for k, n in enumerate(names)]


def with_weights(model: nn.Module, homes: Sequence[str]) -> nn.Module:
    """A copy of a model on the meta device with random weights, and two layers in each of these lists."""
    twin = copy.deepcopy(model)
    for home in homes:
        layers: Any = twin.get_submodule(home)
        del layers[2:]
    twin._apply(_zeros)
    for parameter in twin.parameters():  # of a large one some rows are enough
        part = parameter if parameter.numel() < LARGE else parameter.detach()[:512]
        nn.init.normal_(part, float(parameter.ndim == 1), 0.05)
    for buffer in twin.buffers():  # frequencies of rotary positions are not 0, or a bias on keys would seem inert
        buffer.uniform_(0.5, 1) if buffer.is_floating_point() else buffer.zero_()
    return twin


def _zeros(tensor: Tensor) -> Tensor:
    """Zeros on the CPU, in float32 if the tensor is of a floating type; memory is taken where something is written."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.from_numpy(np.zeros(tensor.numel() * kind.itemsize, np.uint8)).view(kind).view(tensor.shape)


def same_in_all_layers(path: str, homes: Mapping[str, int]) -> list[tuple[str, int | None]]:
    """This path, and if it is in layer 1 of a list, its like in the later ones; each with its layer, None elsewhere.

    ``homes`` has the number of layers of each list.
    """
    home = next((home for home in homes if path.startswith(f"{home}.1.")), None)
    if home is None:
        return [(path, None)]
    return [(path.replace(f"{home}.1.", f"{home}.{n}.", 1), n) for n in range(1, homes[home])]
