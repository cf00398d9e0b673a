"""Small batches of the kind that a model reads, to run it once without any data.

Token ids come from the model's vocabulary, without its special tokens; images, spectrograms and waveforms are noise in
the sizes that the config names. The values are the same at every call.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

LENGTH, DECODER_LENGTH = 9, 6  # tokens
FRAMES = 16  # of a waveform, at least


def example_batches(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Batches that a model may be able to run: all its inputs first, then the main one, then text alone; then one row.

    Token ids are [rows, tokens]; ``pixel_values`` [rows, channels, height, width], of videos
    [rows, frames, channels, height, width]; ``input_values`` [rows, samples] or
    [rows, frames, bins]; ``input_features`` [rows, bins, frames] or [rows, frames, bins].
    """
    names = set(inspect.signature(model.forward).parameters)
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in names else {}
    main, tried = getattr(model, "main_input_name", "input_ids"), list[set[tuple]]()
    for rows in (2, 1):
        for inputs in _inputs(model, rows):
            batch = {name: value for name, value in inputs.items() if name in names}
            if "pixel_values" in batch:  # an image is enough
                batch.pop("pixel_values_videos", None)
            for keep in ({*batch}, {main, "decoder_input_ids"}, {"input_ids"}, {main}):
                part = {name: value for name, value in batch.items() if name in keep}
                shapes = {(name, value.shape) for name, value in part.items()}
                if part and shapes not in tried:
                    tried.append(shapes)
                    yield part | options


def _inputs(model: nn.Module, rows: int) -> Iterator[dict[str, Tensor]]:
    """All inputs that can be made from the config, whatever the model takes; more than once where a shape is open."""
    config, generator = getattr(model, "config", None), torch.Generator().manual_seed(0)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    device = "cpu" if weight.is_meta else weight.device

    def read(*names: str, default: Any = None) -> Any:
        return next((value for name, value in _settings(config) if name in names and value is not None), default)

    def noise(*shape: Any) -> Tensor:  # of no size where the config does not name one: the model refuses it
        sizes = [size if isinstance(size, int) else 0 for size in shape]
        return torch.randn(sizes, generator=generator).to(device, weight.dtype)

    size = read("vocab_size", "src_vocab_size", default=64)
    marks = [value for name, value in _settings(config) if name.endswith(("_token_id", "_token_index"))]
    special = {n for value in marks for n in (value if isinstance(value, (list, tuple)) else [value])}
    usual = torch.tensor([n for n in range(min(size, 1000)) if n not in special] or [0])
    ids, written = (usual[torch.randint(len(usual), (rows, n), generator=generator)] for n in (LENGTH, DECODER_LENGTH))
    ends = getattr(config, "eos_token_id", None)  # a number, or a list of them
    if isinstance(end := ends[0] if isinstance(ends, list) and ends else ends, int) and 0 <= end < size:
        ids[:, -1] = end  # some classifiers read the state at this token
    image, patch = read("image_size", "crop_size", default=64), read("patch_size", default=16)
    height, width = image if isinstance(image, (list, tuple)) else (image, image)
    bins = read("num_mel_bins", "input_feat_per_channel", default=80)
    is_spectrogram = read("frequency_stride") is not None
    frames, channels = read("num_frames", "frames_per_clip"), read("num_channels", "in_channels", "in_chans", default=3)
    strides = read("conv_stride")  # of the feature encoder of a model that reads waveforms
    samples = FRAMES * math.prod(strides) + 400 if isinstance(strides, (list, tuple)) else FRAMES * 320
    batch = {
        "input_ids": ids.to(device),
        "decoder_input_ids": written.to(device),
        "bbox": torch.zeros(rows, LENGTH, 4, dtype=torch.long, device=device),  # where each token is on a page
        "pixel_values": noise(rows, channels, height, width),
        "pixel_values_videos": noise(rows, frames, channels, height, width),
        "input_values": noise(rows, read("max_length"), bins) if is_spectrogram else noise(rows, samples),
    }
    place = read("image_token_id", "image_token_index")  # an image takes the place of such tokens
    if place is not None and place < size:
        places = torch.full((rows, (height // patch) * (width // patch)), place, device=device)
        yield batch | {"input_ids": torch.cat([places, batch["input_ids"]], 1)}
    yield batch | {"input_features": noise(rows, bins, 2 * read("max_source_positions", default=32))}
    yield batch | {"input_features": noise(rows, 64, read("feature_projection_input_dim", default=bins))}
    if frames is not None:
        yield batch | {"pixel_values": batch["pixel_values_videos"]}


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a config, then those of the configs in it."""
    own = dict(vars(config)) if config is not None else {}
    for name, aliased in (getattr(config, "attribute_map", None) or {}).items():
        own.setdefault(name, own.get(aliased))
    yield from ((name, value) for name, value in own.items() if not isinstance(value, PreTrainedConfig))
    for value in own.values():
        if isinstance(value, PreTrainedConfig):
            yield from _settings(value)
