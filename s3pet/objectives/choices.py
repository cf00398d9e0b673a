"""Label words after a prompt of a decoder, all in one pass: the prompt is read once, not once per word.

The words are a tree of tokens: words with a common beginning share it. Its inner nodes follow the prompt in one
sequence, in which a node sees the prompt and the nodes above it. Logits are computed only at the end of the prompt and
at the nodes. For n tokens of prompt and k nodes a pass costs about n + k tokens instead of (n + 1) · words.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s3pet.backbones import preserved

WINDOWS = ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size")  # of local attention


class WordTree:
    """The first ``n`` tokens of words, as a tree; without inner nodes (n = 1) the prompt alone is read."""

    def __init__(self, words: Sequence[Sequence[int]], n: int):
        cut = [tuple(word[:n]) for word in words]
        nodes = list(dict.fromkeys(word[:k] for k in range(1, n) for word in cut if len(word) > k))
        row = {prefix: index for index, prefix in enumerate([(), *nodes])}  # 0 is the end of the prompt
        self.tokens = torch.tensor([node[-1] for node in nodes], dtype=torch.long)
        self.depth = torch.tensor([len(node) - 1 for node in nodes], dtype=torch.long)
        self.above = torch.tensor([[a == b[: len(a)] for a in nodes] for b in nodes], dtype=torch.bool).view(
            len(nodes), len(nodes)
        )
        steps = [[(row[word[:k]], word[k]) if k < len(word) else (0, -1) for k in range(n)] for word in cut]
        self.places, self.targets = torch.tensor(steps).unbind(-1)  # [n_words, n]; target -1: after the word's end

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
        if "logits_to_keep" in inspect.signature(objective.model.forward).parameters:
            logits = objective.run(**inputs, logits_to_keep=keep, use_cache=False).logits
        else:
            logits = objective.run(**inputs, use_cache=False).logits[:, keep]
        end = logits[torch.arange(rows, device=device), torch.searchsorted(last, ends - 1)]
        table = (
            torch.cat([end[:, None], logits[:, len(last) :]], 1).float().log_softmax(-1)
        )  # [batch, 1 + nodes, vocab]
        places, targets = self.places.to(device), self.targets.to(device)
        return table[:, places, targets.clamp(min=0)].masked_fill(targets < 0, 0.0).sum(-1)

    @torch.no_grad()
    def fits(self, objective: Any) -> bool:
        """Whether the backbone reads the tree as it reads each word alone; measured, on two short prompts."""
        if not len(self.tokens):
            return True
        model, names = objective.model, inspect.signature(objective.model.forward).parameters
        sizes = (getattr(model.config, name, None) or math.inf for name in WINDOWS)
        is_narrow = min(sizes) < objective.settings.max_length + len(self.tokens)  # its layers may count the nodes
        if is_narrow or not {"position_ids", "attention_mask"} <= set(names):
            return False
        ids = [token for word in objective.words for token in word][:6]
        batch = objective.collate([{"input_ids": part, "target": 0} for part in (ids, ids[:2])])
        with preserved(model):
            model.eval()
            try:
                scores = self.scores(objective, batch)
            except (TypeError, ValueError, RuntimeError, IndexError):
                return False
            alone = objective.scores_alone(batch)
        exact = scores.dtype == model.dtype and objective.settings.precision == "float32"
        return torch.allclose(scores, alone, rtol=1e-3, atol=1e-3 if exact else 0.1)
