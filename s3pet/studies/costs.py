"""What a search or a retraining costs: memory and passes, counted on a model without weights.

A tensor on the *meta* device has a shape and a type and no numbers, so models of any size run there in seconds. The
model's structure is copied to it, one step of the search is done with the library's own code, and every tensor that
torch makes is followed from its making until it is freed. So no formula per architecture is needed, and the peak is the
peak of the step, not a sum of parts:

    peak = weights of the backbone + the most that was alive at once during a step

Only PET tensors need gradients. Frozen layers below the first candidate keep nothing for the backward pass; above it, a
frozen linear map keeps nothing either, but its LoRA keeps its input.

What is assumed: all rows have the same length; one-token label words (``target_tokens``); attention runs in a fused
kernel where the model asks for ``sdpa``, as on CPUs and GPUs of today, and with ``eager`` as it is written; data
parallel devices, each with the whole backbone. Not counted: what the device itself takes (a CUDA context: several
hundred MB), the workspace inside kernels, and memory lost between blocks.
"""

from __future__ import annotations

import copy
import inspect
import statistics
import time
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from s3pet.backbones import backbone_kind, borrows, check_model, n_parameters, name_of, preserved, unwrapped
from s3pet.errors import BackboneError, S3PetError, SearchError
from s3pet.files.kinds import POSITIVE, Kind, instance, one_of, optional, whole
from s3pet.gates import Budget
from s3pet.objectives.own import objective_of
from s3pet.searcher import CLIP, Searcher, Settings
from s3pet.space import Candidates, Space
from s3pet.supernet import Supernet
from s3pet.tasks.checks import position_limit
from s3pet.tasks.plain import RowTask

PASSES = {"first": 2, "unrolled": 3}  # forward and backward passes of a step of a search; a retraining has one
FLOATING = Kind(
    "a floating type of torch, such as torch.bfloat16", lambda v: isinstance(v, torch.dtype) and v.is_floating_point
)


class _Memory(TorchDispatchMode):
    """Counts the bytes of all meta tensors made inside it that are alive, and their peak."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.live = self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self._note, func(*args, **(kwargs or {})))

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_meta and (key := storage._cdata) not in self._known:
            self._known.add(key)
            self.live += (size := storage.nbytes())
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _Fused(TorchFunctionMode):
    """Attention as one kernel, which torch would not choose on the meta device; what asks for values is told True."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and args[0].is_meta:  # such as: does no row have several texts?
            return True
        return (_attention if func is F.scaled_dot_product_attention else func)(*args, **(kwargs or {}))


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **more: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.requires_grad:  # no kernel has this gradient
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, **more)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(len(q), 1, q.shape[-2], k.shape[-2], dtype=q.dtype, device="meta")
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=more.get("scale"))[0]


class _Batches:
    """An objective on batches of one shape, padded; it notes what a forward pass keeps for the backward pass."""

    def __init__(self, model: nn.Module, tokens: int, target_tokens: int):
        self.kind, self.device, self.memory = backbone_kind(model), next(model.parameters()).device, _Memory(model)
        self.tokens, self.target_tokens, self.kept = tokens, target_tokens, 0

    def encode(self, rows: Sequence[Any]) -> Sequence[Any]:
        return rows

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        return {"rows": len(rows)}

    def predict(self, model: Any, batch: Any) -> Sequence[Any]:
        raise NotImplementedError

    def loss(self, model: Any, batch: Any) -> Tensor:
        before = self.memory.live
        loss = self._loss(model, batch["rows"])
        self.kept = max(self.kept, self.memory.live - before)
        return loss

    def _loss(self, model: Any, rows: int) -> Tensor:
        def ids(n: int) -> Tensor:
            return torch.zeros(rows, n, dtype=torch.long, device=self.device)

        inputs: dict[str, Any] = {"input_ids": ids(self.tokens)}
        if self.kind != "decoder":  # whose words come after the prompt, so that padding is never seen
            inputs["attention_mask"] = torch.ones(rows, 1, 1, self.tokens, dtype=torch.bool, device=self.device)
        if self.kind == "encoder":
            states = getattr(model, "base_model", model)(**inputs).last_hidden_state
            return (states * states.new_ones(rows, self.tokens, 1)).sum(1).float().logsumexp(-1).mean()
        names, n = inspect.signature(model.forward).parameters, self.target_tokens
        inputs |= {"decoder_input_ids": ids(n)} if self.kind == "encoder-decoder" else {}
        inputs |= {"logits_to_keep": n} if "logits_to_keep" in names else {}
        logits = model(**inputs, use_cache=False).logits[:, -n:]
        return F.cross_entropy(logits.flatten(0, 1).float(), ids(n).flatten())


@dataclass(frozen=True)
class Estimate:
    """What one step costs on each device; :meth:`table` shows the numbers. Memory is in bytes.

    Attributes:
        what: was counted, in words.
        rows: of the batch, on each device.
        backbone_params, candidates, pet_params: numbers of parameters, and of candidates.
        passes: forward and backward passes of a step.
        weights: of the backbone. state: of the PET modules: weights, gradients, moments of the optimiser, α, indices.
        activations, peak: kept for the backward pass of one batch; the most in use at once, all together.
        activations_checkpointed, peak_checkpointed: with gradient checkpointing; None if the model has none.
        reduced: gradients that devices exchange in a pass.
        seconds: of a step, ``passes`` × a plain step; None if that was not measured. A pass of a search takes a
            little longer than a plain one, and with checkpointing the forward part runs twice.
    """

    what: str
    rows: int
    backbone_params: int
    candidates: int
    pet_params: int
    passes: int
    weights: int
    state: int
    activations: int
    activations_checkpointed: int | None
    peak: int
    peak_checkpointed: int | None
    reduced: int
    seconds: float | None

    def table(self) -> pd.DataFrame:
        """One row for each number: ``quantity``, ``value`` and ``unit``."""
        numbers = [(name, value) for name, value in vars(self).items() if name != "what" and value is not None]
        units = {"seconds": "s", **dict.fromkeys(("rows", "backbone_params", "candidates", "pet_params", "passes"), "")}
        rows = [(name, value, units.get(name, "bytes")) for name, value in numbers]
        return pd.DataFrame(rows, columns=["quantity", "value", "unit"])

    def __repr__(self) -> str:
        lines = [self.what]
        for name, value, unit in self.table().itertuples(index=False):
            shown = f"{value / 1e6:,.1f} MB" if unit == "bytes" else f"{value:,.6g} s" if unit else f"{value:,.0f}"
            lines.append(f"  {name.replace('_', ' '):<26}{shown:>18}")
        return "\n".join(lines)


def estimate(
    model: nn.Module,
    space: Candidates,
    *,
    batch: int = 32,
    tokens: int = 128,
    target_tokens: int = 1,
    dtype: torch.dtype | None = None,
    devices: int = 1,
    order: str = "first",
    step_seconds: float | None = None,
) -> Estimate:
    """What one step of a search, or of a retraining, costs in memory, passes and time; seconds for models of any size.

    Args:
        model: a text model of transformers, also one without weights (made ``with torch.device("meta")``); it is not
            run, only a copy of its structure.
        space: of a search; or a structure, for its retraining.
        batch, tokens, target_tokens: rows of a batch, on all devices together; tokens of a row; tokens that a
            text-to-text model writes, or whose likelihoods are compared.
        dtype: type of the backbone's weights; None: as they are. PET modules are float32.
        devices: each holds the backbone and the PET modules, and gets its share of the rows.
        order: of the search, ``"first"`` or ``"unrolled"``.
        step_seconds: of a plain forward and backward pass of a device's rows, as :func:`plain_seconds` measures it.

    Raises:
        SearchError: a bad argument. StructureMismatchError: the space is of another model. BackboneError: the model
            does not read text, or cannot be run.
    """
    check_model(model)
    instance(Candidates, "a space (make_space) or a structure").check(SearchError, space=space)
    whole(1).check(SearchError, batch=batch, tokens=tokens, target_tokens=target_tokens, devices=devices)
    optional(FLOATING).check(SearchError, dtype=dtype)
    optional(POSITIVE).check(SearchError, step_seconds=step_seconds)
    one_of((*PASSES,)).check(SearchError, order=order)
    space.check(model)
    _check_text(model, tokens)
    copied, rows = _on_meta(model, dtype), -(-int(batch) // int(devices))
    weights = sum(t.numel() * t.element_size() for t in {*copied.parameters(), *copied.buffers()})
    count = partial(_count, copied, space, order, rows, int(tokens), int(target_tokens))
    state, kept, peak = count()
    kept_again, peak_again = None, None
    if getattr(copied, "supports_gradient_checkpointing", False):
        name = "activation" if hasattr(copied, "activation_checkpointing_enable") else "gradient"
        options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), _Fused())}  # a backward pass leaves it
        getattr(copied, f"{name}_checkpointing_enable")(options)
        _, kept_again, peak_again = count()
    step = f"a step of a search ({order}) of {space.name!r}" if isinstance(space, Space) else f"retraining {space!r}"
    kind, attention = str(next(copied.parameters()).dtype)[6:], getattr(model.config, "_attn_implementation", None)
    on = f"{name_of(model)} ({kind}, {attention} attention), {rows} × {tokens} tokens on each of {devices} devices"
    passes, trained = (PASSES[order], space.n_params + len(space)) if isinstance(space, Space) else (1, space.n_params)
    return Estimate(
        f"{step} on {on}", rows, n_parameters(model), len(space), space.n_params, passes, weights, state, kept,
        kept_again, weights + peak, peak_again and weights + peak_again, 4 * trained,
        step_seconds and passes * step_seconds,
    )  # fmt: skip


def _on_meta(model: nn.Module, dtype: torch.dtype | None) -> Any:
    """A copy of a model without its weights and hooks."""
    memo: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    memo[id(getattr(model, "s3pet_tokenizer", None))] = None  # not copied
    for weight in model.parameters():
        kind = dtype if weight.is_floating_point() else None
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta", dtype=kind), requires_grad=False)
    copied = copy.deepcopy(unwrapped(model), memo)
    for part in copied.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        if getattr(part, "gradient_checkpointing", False):
            part.gradient_checkpointing = False  # type: ignore[assignment]
    return copied


def _check_text(model: nn.Module, tokens: int) -> None:
    """Raise BackboneError for a model that does not read text, SearchError for rows that are too long for it."""
    if getattr(model, "main_input_name", "") != "input_ids" or getattr(model, "config", None) is None:
        what = f"costs are counted for models of transformers that read text (input_ids); got a {type(model).__name__}"
        raise BackboneError(f"{what}. Of others, measure a short search: result.cost")
    if (limit := position_limit(model)) is not None and tokens > limit:
        raise SearchError(f"tokens={tokens}, but the model has positions for {limit}")


def _count(
    model: Any, space: Candidates, order: str, rows: int, tokens: int, target_tokens: int
) -> tuple[int, int, int]:
    """Bytes of a step: the PET modules' state, activations, and the peak without the backbone."""
    batches = _Batches(model, tokens, target_tokens)
    memory = batches.memory
    task = RowTask("rows", range(max(4, 2 * rows)), [0], metrics={"none": lambda predictions, labels: 0.0})
    try:
        with preserved(model), memory, _Fused():
            if isinstance(space, Space):
                settings = Settings(steps=2, order=order, batch_size=rows)
                run: Any = Searcher(model, task, space, Budget(1, space.n_params), settings, batches)
                with run.supernet:
                    run.objective.prepare(False)
                    run.advance()
            else:
                supernet = Supernet(model, space)
                run = _retrain(supernet, objective_of(model, task, batches), rows)
            state = memory.live  # what the supernet and the run hold
    except S3PetError:
        raise
    except Exception as error:  # whatever the code of a model may raise
        what = f"{type(model).__name__} could not be run on {rows} × {tokens} tokens without weights"
        raise BackboneError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    return state + 4 * space.n_params, batches.kept, memory.peak


def _retrain(supernet: Supernet, objective: Any, rows: int) -> torch.optim.Optimizer:
    """Two steps of a retraining; the second has the moments of the optimiser, which it returns."""
    weights = [*supernet.weights]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    with supernet:
        objective.prepare(False)
        for _ in range(2):
            objective.loss(objective.collate(range(rows))).backward()
            nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            optimizer.zero_grad()
    return optimizer


@borrows("measuring a step")
def plain_seconds(model: nn.Module, *, batch: int = 32, tokens: int = 128, target_tokens: int = 1) -> float:
    """Seconds of one forward and backward pass of the frozen model, without PET modules: the median of three.

    Gradients go back to the embeddings. The arguments, and what is raised, are those of :func:`estimate`; ``model``
    has weights, and ``batch`` is the rows of one device.
    """
    check_model(model)
    whole(1).check(SearchError, batch=batch, tokens=tokens, target_tokens=target_tokens)
    if (device := next(model.parameters()).device).type == "meta":
        raise BackboneError("a model on the meta device has no weights to compute with; load it: load_backbone(…)")
    _check_text(model, tokens)
    batches, times = _Batches(model, tokens, target_tokens), list[float]()
    model.requires_grad_(False).eval()
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            part.register_forward_hook(_wanted)
    for _ in range(4):
        start = time.perf_counter()
        batches.loss(model, batches.collate(range(batch))).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one warms up


def _wanted(part: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()
