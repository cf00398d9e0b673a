"""Several processes that compute as one, as ``torchrun`` or ``accelerate launch`` started them.

Each holds the whole backbone, α and the trained tensors, and passes its own share of the rows of every batch. With
n_r of the n terms of a batch's mean loss on process r

    L = Σ_r (n_r / n) · L_r

so small gradients are summed over the processes, as one flat tensor for each backward pass, and all of them take the
same step. Noise and masks depend on the seed alone. One process, the first, writes. Without a launcher there is one
process, and nothing here does anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from s3pet import errors
from s3pet.errors import SearchError
from s3pet.objectives.streams import derive

T = TypeVar("T")


class Share(NamedTuple):
    """What one process passes of a batch: its rows, their part of the mean loss, and the rows of the whole batch."""

    rows: list[Any]
    weight: float
    n_rows: int


class Processes:
    """The processes of this job.

    Attributes:
        rank, count: the number of this one, from 0, and of all.
    """

    rank, count = 0, 1

    def __init__(self, device: torch.device):
        if launched():
            from accelerate import PartialState

            try:
                state = PartialState(cpu=device.type == "cpu")
                if not dist.is_initialized():
                    raise RuntimeError("something before this call made a state of one process")
            except (ValueError, RuntimeError) as error:
                what = f"the environment says WORLD_SIZE={os.environ.get('WORLD_SIZE')}, but processes cannot be joined"
                raise SearchError(f"{what}: {error!s:.200}. Start them with torchrun or accelerate launch") from error
            self.rank, self.count = state.process_index, state.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, rows: Sequence[Any], terms: Callable[[Sequence[Any]], int] = len) -> Share:
        """This process's rows of a batch; one row of weight 0 if there are fewer rows than processes.

        ``terms`` says how many terms some rows contribute to a mean loss.
        """
        own = list(rows[self.rank :: self.count])
        return Share(own, terms(own) / terms(rows), len(rows)) if own else Share([rows[0]], 0.0, len(rows))

    def seed(self, seed: int) -> int:
        """The seed of dropout, another one in each process."""
        return seed if self.rank == 0 else derive(seed, self.rank)

    def added(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same tensors; in a backward pass their gradients are summed over all processes."""
        if self.count == 1:
            return list(tensors)
        learned = [tensor for tensor in tensors if tensor.requires_grad]
        new = iter(_Added.apply(*learned) if learned else ())
        return [next(new) if tensor.requires_grad else tensor for tensor in tensors]

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, without gradients."""
        return value if self.count == 1 else _Sum.apply(value.detach())

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the values that the first one has."""
        for tensor in tensors if self.count > 1 else ():
            tensor.copy_(_broadcast(tensor.detach()))

    def first(self, function: Callable[[], T]) -> T:
        """Call a function on the first process; the others get what it returned, as JSON can hold it, or its error."""
        if self.count == 1:
            return function()
        value, error, text = None, None, b""
        if self.is_first:
            try:
                value = function()
                text = json.dumps([value], default=str).encode()
            except Exception as caught:
                error = caught
                text = json.dumps([type(caught).__name__, str(caught)]).encode()
        size = int(_broadcast(torch.tensor([len(text)])))
        content = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.zeros(size, dtype=torch.uint8)
        heard = json.loads(_broadcast(content).cpu().numpy().tobytes())
        if error is not None:
            raise error
        if len(heard) == 2:
            raise getattr(errors, heard[0], SearchError)(heard[1])
        return cast(T, value if self.is_first else heard[0])

    def check_same(self, text: str, what: str) -> None:
        """Raise SearchError, on all processes, unless they have the same text."""
        differ = self.first(lambda: text) != text
        if bool(self.total(torch.tensor([float(differ)]))):
            raise SearchError(f"processes of this job differ in {what}; each must open the same model, task and space")


def launched() -> bool:
    """Whether this process is one of several of a job."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return os.environ.get("WORLD_SIZE", "1").strip() not in ("", "0", "1")


def is_first() -> bool:
    """Whether this process is the only one of its job, or the first, which writes and reports."""
    return not launched() or not dist.is_initialized() or dist.get_rank() == 0


def refuse_processes(what: str) -> None:
    """Raise SearchError where several processes would each do the whole work, and write to the same place."""
    if launched():
        how = "start it without torchrun or accelerate launch, which are for search and retrain; a study has jobs"
        raise SearchError(f"{what} is work for one process, and WORLD_SIZE says that several were started; {how}")


def _reachable(tensor: Tensor) -> Tensor:
    """On a device that the processes can send from."""
    return tensor.to("cuda") if dist.get_backend() == "nccl" and not tensor.is_cuda else tensor.clone()


def _broadcast(tensor: Tensor) -> Tensor:
    copy = _reachable(tensor)
    dist.broadcast(copy, src=0)
    return copy.to(tensor.device)


class _Sum(torch.autograd.Function):
    """The sum over all processes, which all of them use alike: what is derived by it is already the whole."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = _reachable(tensor)
        dist.all_reduce(total)
        return total.to(tensor.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class _Added(torch.autograd.Function):
    """The identity, whose gradients are those of all processes together."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Any:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat = _Sum.apply(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        return tuple(p.view(g.shape).to(g.dtype) for p, g in zip(parts, gradients, strict=True))
