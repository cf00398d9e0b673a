"""One forward and backward pass that shows what each linear map and norm of a model does."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s3pet.backbones.examples import example_batches
from s3pet.backbones.loans import borrows, preserved
from s3pet.errors import BackboneError

# |Σ g| / Σ |g| of a bias that is cancelled is about 1e-6 (in half precision up to 4 eps), of others > 0.05
INERT_BELOW = 1e-3


class Output(NamedTuple):
    """Which memory a module returned, in which version, and its width; equal for the same tensor, or a view of it."""

    memory: int
    version: int
    width: int

    @classmethod
    def of(cls, tensor: Tensor) -> Output:
        """Of a tensor that is kept alive, so that its memory is not used again."""
        return cls(tensor.untyped_storage()._cdata, tensor._version, tensor.shape[-1])


@dataclass
class Part:
    """A linear map or norm: where it is, and what the pass has shown."""

    path: str
    kind: str
    widths: tuple[int, int]
    stack: str = ""
    layer: int | None = None
    rest: str = ""  # its name within the layer
    role: str = ""
    reason: str | None = None  # why no PET module can act here
    calls: int = 0
    first: int = -1  # number of its first call, among all calls
    reads: int = 0  # memory that it read last
    returns: Output | None = None
    total: Tensor | None = None  # Σ g of the gradients at its output
    absolute: float = 0.0  # Σ |g|
    precision: float = 0.0

    @property
    def block(self) -> str:
        """The part of the layer it belongs to: attn, cross, ffn …"""
        return self.role.split(".")[0]

    @property
    def address(self) -> str:
        """``stack.layer.role``, without the layer outside the layers."""
        return ".".join(str(word) for word in (self.stack, self.layer, self.role) if word is not None)

    @property
    def inert(self) -> bool:
        """Whether a bias at its output has no effect: its gradient, the sum over all positions, cancels."""
        least = max(INERT_BELOW, 6 * self.precision)
        return self.total is not None and float(self.total.abs().sum()) < least * self.absolute

    def hook(self, clock: Iterator[int], anchor: Tensor, alive: list[Tensor]) -> Callable[..., Any]:
        """A forward hook that notes a call, and later the gradient that comes back to its output."""

        def note(module: nn.Module, arguments: tuple, options: Mapping[str, Any], output: Any) -> Any:
            self.calls, self.first = self.calls + 1, self.first if self.calls else next(clock)
            if len(arguments) != 1 or options or not all(isinstance(t, Tensor) for t in (*arguments, output)):
                self.reason = "not called with one tensor alone"
            elif (arguments[0].shape[-1], output.shape[-1]) != self.widths:
                self.reason = f"its tensors are not {self.widths[0]}→{self.widths[1]} wide"
            if self.reason is not None:
                return None
            changed = output + anchor.to(output.device, output.dtype)  # plus 0, so that there is a gradient
            if changed.requires_grad:
                changed.register_hook(self.add)
            alive.extend((arguments[0], changed))  # memory in use is not used again
            self.reads, self.returns = Output.of(arguments[0]).memory, Output.of(changed)
            return changed

        return note

    def add(self, gradient: Tensor) -> None:
        """Add up the gradient of one call."""
        flat, self.precision = gradient.detach().float().flatten(0, -2), torch.finfo(gradient.dtype).eps
        self.total = flat.sum(0) if self.total is None else self.total + flat.sum(0)
        self.absolute += float(flat.abs().sum())


@borrows("looking for sites", short=True, everything=True)
def run(
    model: nn.Module, parts: Iterable[Part], others: Iterable[str], example: Mapping[str, Any] | None
) -> dict[str, Output]:
    """Run a model forward and backward on a small batch.

    Args:
        model: left exactly as it was.
        parts: filled in; those that cannot have PET modules get a reason.
        others: paths of further modules.
        example: keyword arguments of the model; None: the first batch that it can run of those made from its config.

    Returns:
        What each of the others returned last, where that is a tensor (or the first of a tuple).
    """
    tried, parts, others = [], list(parts), list(others)
    for batch in example_batches(model) if example is None else [example]:
        clock, alive, returned = itertools.count(), list[Tensor](), dict[str, Output]()
        for part in parts:
            part.calls, part.first, part.reason, part.total, part.absolute = 0, -1, None, None, 0.0
        try:
            with preserved(model, everything=True), torch.enable_grad():
                torch.manual_seed(0)
                model.requires_grad_(False).eval()
                for module in model.modules():
                    module._forward_hooks.clear()  # the user's own need not see this pass
                anchor = next(model.parameters()).new_zeros((), requires_grad=True, dtype=torch.float32)
                for part in parts:
                    hook = part.hook(clock, anchor, alive)
                    model.get_submodule(part.path).register_forward_hook(hook, with_kwargs=True)
                for path in others:
                    model.get_submodule(path).register_forward_hook(_noting(path, returned, alive))
                outputs = [t for t in _tensors(model(**batch)) if t.is_floating_point() and t.requires_grad]
                generator = torch.Generator().manual_seed(0)
                weights = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
                if outputs:
                    torch.autograd.backward(outputs, weights)
        except Exception as error:  # whatever the code of a model may raise
            shapes = ", ".join(f"{name} {[*t.shape]}" for name, t in batch.items() if isinstance(t, Tensor))
            reason = " ".join(str(error).split())[:120]
            tried.append(f"{shapes or sorted(map(str, batch))}: {type(error).__name__}: {reason}")
            continue
        for part in parts:
            if part.reason is None and part.total is None:
                is_passed_by = part.path.rpartition(".")[0] in returned  # as in nn.MultiheadAttention
                unseen = "not called by the module around it, which may use its weight directly"
                unseen = unseen if is_passed_by else "not reached by the batch"
                part.reason = "no gradient comes back to it" if part.calls else unseen
        return returned
    what = "; ".join(tried) or "nothing: no input that can be made from its config"
    needed = [name for name, p in inspect.signature(model.forward).parameters.items() if p.default is p.empty]
    needed = [name for name in needed if "kwargs" not in name] or [getattr(model, "main_input_name", "input_ids")]
    inputs = ", ".join(f"{name!r}: …" for name in needed)
    how = f"Pass keyword arguments of one forward pass: make_space(model, example={{{inputs}}})"
    raise BackboneError(f"{type(model).__name__} could not be run, so its sites are not known. Tried {what}. {how}")


def _noting(path: str, returned: dict[str, Output], alive: list[Tensor]) -> Callable[..., None]:
    def note(module: nn.Module, arguments: tuple, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.ndim:
            alive.append(first)
            returned[path] = Output.of(first)

    return note


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)
