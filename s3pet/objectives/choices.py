"""All label words in one pass: the input is read once, not once per word.

The words are a tree of tokens: words with a common beginning share it. Its inner nodes follow the prompt of a decoder,
or the start token of an encoder-decoder, in one sequence, in which a node sees what comes before the words and the
nodes above it. Logits are computed only where a word goes on. For n tokens of prompt and k nodes a pass costs about
n + k tokens instead of (n + 1) · words; of an encoder-decoder n tokens in the encoder and k + 1 in the decoder.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from s3pet.backbones import preserved

WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size")  # of local attention


class WordTree:
    """Words, [n_tokens] each, as a tree; without inner nodes (words of one token) the prompt alone is read."""

    def __init__(self, words: Sequence[Sequence[int]]):
        cut, n = [tuple(word) for word in words], max(map(len, words))
        nodes = list(dict.fromkeys(word[:k] for k in range(1, n) for word in cut if len(word) > k))
        row = {prefix: index for index, prefix in enumerate([(), *nodes])}  # 0 is the end of the prompt
        self.tokens = torch.tensor([node[-1] for node in nodes], dtype=torch.long)
        self.depth = torch.tensor([len(node) - 1 for node in nodes], dtype=torch.long)
        above = [[a == b[: len(a)] for a in nodes] for b in nodes]
        self.above = torch.tensor(above, dtype=torch.bool).view(len(nodes), len(nodes))
        steps = [[(row[word[:k]], word[k]) if k < len(word) else (0, -1) for k in range(n)] for word in cut]
        self._steps = torch.tensor(steps).unbind(-1)  # places and targets, [n_words, n]; −1: after the word's end

    def scores(self, objective: Any, batch: dict[str, Tensor]) -> Tensor:
        """Log-likelihoods of the words after each prompt, [batch, n_words]; prompts are padded on the right."""
        ids, mask, device = batch["input_ids"], batch["attention_mask"].bool(), batch["input_ids"].device
        (rows, width), ends = ids.shape, mask.sum(1)
        last = (ends - 1).unique()
        inputs, keep = {"input_ids": ids}, last
        if len(self.tokens):
            tokens, depth, above = (tensor.to(device) for tensor in (self.tokens, self.depth, self.above))
            sees = mask.new_zeros(rows, width + len(tokens), width + len(tokens))
            sees[:, :width, :width] = mask.new_ones(width, width).tril() & mask[:, None]
            sees[:, width:, :width] = mask[:, None]
            sees[:, width:, width:] = above
            dtype = objective.model.get_input_embeddings().weight.dtype
            hidden = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill(~sees, torch.finfo(dtype).min)
            positions = [torch.arange(width, device=device).expand(rows, -1), ends[:, None] + depth]
            inputs = {"input_ids": torch.cat([ids, tokens.expand(rows, -1)], 1), "attention_mask": hidden[:, None]}
            inputs["position_ids"] = torch.cat(positions, 1)
            keep = torch.cat([last, torch.arange(width, width + len(tokens), device=device)])
        logits = kept_logits(objective.run, objective.model, inputs, keep)
        end = logits[torch.arange(rows, device=device), torch.searchsorted(last, ends - 1)]
        return self._likelihoods(torch.cat([end[:, None], logits[:, len(last) :]], 1))

    def written_scores(self, objective: Any, batch: dict[str, Tensor]) -> Tensor:
        """Log-likelihoods of the words as the decoder of an encoder-decoder writes them, [batch, n_words]."""
        ids, n = batch["input_ids"], 1 + len(self.tokens)
        written = torch.cat([torch.tensor([objective.start]), self.tokens]).to(ids.device).expand(len(ids), -1)
        inputs = {"input_ids": ids, "attention_mask": batch["attention_mask"], "decoder_input_ids": written}
        if not len(self.tokens):
            return self._likelihoods(objective.run(**inputs, use_cache=False).logits)
        sees = torch.eye(n, dtype=torch.bool)
        sees[:, 0], sees[1:, 1:] = True, self.above
        depth = torch.cat([torch.zeros(1, dtype=torch.long), 1 + self.depth]).to(ids.device)
        (part,) = _counting_parts(objective.model)
        weight = objective.model.get_input_embeddings().weight
        mask = torch.zeros(1, 1, n, n, dtype=weight.dtype, device=ids.device)
        hook: Any = nullcontext()  # what counts is the position in the word, not in the sequence of nodes
        if hasattr(part, "compute_bias"):
            away = (depth[:, None] - depth).clamp(min=0)  # tokens from a node back to one above it
            bias = part.compute_bias(n, n)  # [1, heads, n, n]
            mask = mask + bias[:, :, away, 0] - bias
        else:
            hook = part.register_forward_hook(lambda _module, _inputs, positions: positions.index_select(-2, depth))
        mask = mask.masked_fill(~sees.to(ids.device), torch.finfo(weight.dtype).min).expand(len(ids), -1, -1, -1)
        with hook:
            return self._likelihoods(objective.run(**inputs, decoder_attention_mask=mask, use_cache=False).logits)

    def _likelihoods(self, logits: Tensor) -> Tensor:
        """Of all words, [batch, n_words], by logits before them and at the nodes, [batch, 1 + n_nodes, vocabulary]."""
        table, places, targets = precise(logits).log_softmax(-1), *(t.to(logits.device) for t in self._steps)
        return table[:, places, targets.clamp(min=0)].masked_fill(targets < 0, 0.0).sum(-1)

    @torch.no_grad()
    def fits(self, objective: Any) -> bool:
        """Whether the backbone reads the tree as it reads each word alone; measured, on two short prompts."""
        if not len(self.tokens):
            return True
        model, names = objective.model, inspect.signature(objective.model.forward).parameters
        sizes = (getattr(model.config, name, None) or math.inf for name in WINDOWS)
        is_narrow = min(sizes) < objective.settings.max_length + len(self.tokens)  # its layers may count the nodes
        if model.config.is_encoder_decoder:
            can_read = len(_counting_parts(model)) == 1
        else:
            can_read = not is_narrow and {"position_ids", "attention_mask"} <= set(names)
        if not can_read:
            return False
        ids = [token for word in objective.words for token in word][:6]
        batch = objective.collate([{"input_ids": part, "target": 0} for part in (ids, ids[:2])])
        with preserved(model):
            model.eval()
            try:
                scores = objective.scores_at_once(batch)
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
                return False
            alone = objective.scores_alone(batch)
        exact = scores.dtype == model.dtype and objective.settings.precision == "float32"
        return torch.allclose(scores, alone, rtol=1e-4, atol=1e-4 if exact else 0.1)


def _counting_parts(model: Any) -> list[Any]:
    """Modules that count positions in the decoder of an encoder-decoder: relative biases (T5) or embeddings (BART).

    T5 has one for all layers; a family in which every layer has its own, or none is found, has words read one by one.
    """
    decoder = model.get_decoder()
    biases = [part for part in decoder.modules() if getattr(part, "has_relative_attention_bias", False)]
    return biases or [part for name, part in decoder.named_modules() if name.endswith("embed_positions")]


def kept_logits(call: Any, model: Any, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
    """Logits of a decoder at these places, [rows, kept, vocabulary]; ``call`` runs the model, with these inputs."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return call(**inputs, logits_to_keep=keep, use_cache=False).logits
    return call(**inputs, use_cache=False).logits[:, keep]


def precise(scores: Tensor) -> Tensor:
    """Scores of a half-precision type as float32, others as they are."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
