"""A model in use: as it was after any exit, for one thread at a time, and freed without a handle.

What s3pet changes on a model is noted as a :class:`State` before, and given back twice after: an interrupt may cut the
first time short. :func:`borrows` does so around a function. While PET modules are attached, a :class:`Loan` lies on all
modules of the model: it says what is attached, refuses copies and pickles, and is what :func:`detach` undoes.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

from s3pet.backbones.frozen import check_model
from s3pet.errors import SearchError

if TYPE_CHECKING:  # s3pet.tasks reads from this room without torch
    from torch import nn

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
MARK = "_s3pet_attached"
OWN = (MARK, "save_pretrained", "forward")  # attributes of modules that s3pet may set
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
OPTIONS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


class State:
    """What s3pet may change on a model, as it is now; :meth:`restore` may be called any number of times.

    Args:
        model: any module. modes: whether training modes and the places of parameters belong to it.
        everything: whether all else that its modules hold belongs to it, also what their own code or the user sets.
    """

    def __init__(self, model: nn.Module, *, modes: bool = True, everything: bool = False):
        self.model, self.flags = model, [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self.hooks = {key for _, key in _own_hooks(model)}
        self.own = [(vars(part), {name: vars(part).get(name) for name in OWN}) for part in model.modules()]
        self.modes = [(part, part.training) for part in model.modules()] if modes else []
        tables = [(n, v) for part in model.modules() for n, v in vars(part).items() if isinstance(v, dict)]
        kept = [table for name, table in tables if everything or (modes and name == "_parameters")]
        self.tables = [(table, dict(table)) for table in kept]
        self.all = [(vars(part), dict(vars(part))) for part in model.modules()] if everything else []

    def restore(self) -> None:
        """Give it all back, and end every loan that was not there."""
        for now, before in self.own:
            if isinstance(loan := now.get(MARK), Loan) and loan is not before[MARK] and loan is not self:
                loan.end()
        for now, before in self.all:
            now.update(before)
            for name in now.keys() - before.keys():
                del now[name]
        for now, before in self.tables:
            if len(now) != len(before) or any(now.get(key) is not value for key, value in before.items()):
                now.clear()
                now.update(before)
        for now, before in self.own:
            for name, value in before.items():
                if now.get(name) is not value and _is_own(now.get(name)):
                    now.pop(name)
                    now.update({} if value is None else {name: value})
        _take_off([hook for hook in _own_hooks(self.model) if hook[1] not in self.hooks])
        for part, mode in self.modes:
            part.training = mode
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)


class Loan(State):
    """What lies on every module of a model while PET modules are attached to it.

    Raises SearchError, which names them, if there are some already, also on a part of the model or a model around it.

    Args:
        model: it is frozen by :meth:`take`, and its ``save_pretrained`` refuses. what: is attached, in words.
    """

    def __init__(self, model: nn.Module, what: str):
        super().__init__(model, modes=False)
        self.what, self.is_live = f"{what} on this {type(model).__name__}", False
        self.entered, self.lock = list[object](), _use_of(model).lock
        self.undo: list[Callable[[], Any]] = []  # further steps; each may run twice
        refuse_attached(model)

    def take(self) -> None:
        """Mark and freeze the model."""
        with _TABLE:  # of two threads one is refused
            refuse_attached(self.model)
            self.is_live = True
            for now, _ in self.own:
                now[MARK] = self
        vars(self.model)["save_pretrained"] = self.save_pretrained
        self.model.requires_grad_(False)

    def leave(self) -> None:
        """End the loan, unless a ``with`` around this one, or in another thread, goes on."""
        if not self.entered:
            self.end()

    def end(self) -> None:
        """Take off what is attached; safe to call twice."""
        try:
            self._end()
        finally:
            self._end()

    def _end(self) -> None:
        try:
            while self.undo:
                self.undo[-1]()
                self.undo.pop()
        finally:
            if self.is_live:
                self.restore()
                self.is_live = False

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Refused with SearchError: the file of a backbone has no place for candidates."""
        if not self.is_live:  # of a shallow copy that outlived them
            return type(self.model).save_pretrained(self.model, *args, **kwargs)  # type: ignore[attr-defined, operator]
        raise SearchError("a supernet is not saved as a plain model: see s3pet.merge and s3pet.to_peft, or tuned.save")

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not self.is_live:
            return type(None), ()  # the copy has nothing attached
        how = "detach it first: s3pet.detach(model), or leave the `with`; tuned.save and s3pet.merge keep its tensors"
        raise SearchError(f"{self.what} is not copied or pickled; {how}")


def attached_to(model: nn.Module) -> Loan | None:
    """What is attached to a model, to a part of it or to a model around it."""
    loans = (vars(part).get(MARK) for part in model.modules())
    return next((loan for loan in loans if isinstance(loan, Loan) and loan.is_live), None)


def refuse_attached(model: nn.Module) -> None:
    """Raise SearchError, which names what is attached, if something is."""
    if (loan := attached_to(model)) is not None:
        how = "detach it first: s3pet.detach(model), or use `with`"
        raise SearchError(f"another supernet is attached to this model: {loan.what}; {how}")


def detach(model: nn.Module) -> int:
    """Take everything off a model that s3pet has put on it, also where the handle is lost; harmless on a clean model.

    Returns:
        How many hooks it took off. Flags of ``requires_grad`` are as before the modules were attached.

    Raises:
        SearchError: a search, training or prediction runs on the model now. BackboneError: not a model.
    """
    check_model(model)
    use = _use_of(model)
    use.refuse("detach", also_own=True)
    with use.lock:
        marks = (vars(part).get(MARK) for part in model.modules())
        loans = list(dict.fromkeys(mark for mark in marks if isinstance(mark, Loan)))
        models = [model, *(loan.model for loan in loans)]
        count = len({key for one in models for _, key in _own_hooks(one)})
        for loan in loans:
            loan.end()
        _take_off([hook for one in models for hook in _own_hooks(one)])
        for part in (part for one in models for part in one.modules()):
            for name in OWN:  # such as those of a shallow copy
                value = vars(part).get(name)
                if isinstance(value, Loan) or isinstance(getattr(value, "__self__", None), Loan):
                    del vars(part)[name]
        return count


# -- one thread at a time


class User(NamedTuple):
    """Who uses a model: in which thread, for what, and whether others wait until the end or are refused."""

    thread: int
    name: str
    what: str
    is_short: bool


class Use:
    """The users of a model, of its parts and of models around it, outermost first; all of the thread with the lock."""

    def __init__(self) -> None:
        self.lock, self.users = threading.RLock(), list[User]()

    def refuse(self, what: str, *, also_own: bool = False) -> None:
        """Raise SearchError if a search or training of another thread runs."""
        own = threading.get_ident()
        for user in [user for user in self.users if also_own or (user.thread != own and not user.is_short)][:1]:
            how = "wait for it, or load the backbone a second time"
            raise SearchError(f"{what} must wait: {user.what} runs on this model in thread {user.name!r}; {how}")


_USES: WeakKeyDictionary[nn.Module, Use] = WeakKeyDictionary()
_TABLE = threading.RLock()


def _use_of(model: nn.Module) -> Use:
    with _TABLE:
        if model not in _USES:
            use = next((_USES[part] for part in model.modules() if part in _USES), None) or Use()
            for part in model.modules():
                _USES.setdefault(part, use)
        return _USES[model]


def claimed(model: nn.Module, what: str) -> Any:
    """The lock of a model, for a ``with``; raises SearchError while another thread searches or trains on it."""
    use = _use_of(model)
    use.refuse(what)
    return use.lock


def is_in_use(model: nn.Module) -> bool:
    """Whether a function that :func:`borrows` the model runs now, in any thread."""
    return bool(_use_of(model).users)


def lent(
    model: nn.Module,
    what: str,
    function: Callable[[], T],
    *,
    short: bool = False,
    everything: bool = False,
    seeds: bool = False,
) -> T:
    """Call a function that uses a model; afterwards the model is as it was, however the call ends.

    Args:
        model, what, function: the model, and what the function does with it, for messages.
        short: other threads wait for its end; False: they are refused by SearchError.
        everything: see :class:`State`. seeds: whether random states of NumPy and Python are given back, as torch's are.
            Where nobody seeds them, they are left alone: other threads may draw from them.
    """
    use, me = _use_of(model), threading.current_thread()
    use.refuse(what)
    with use.lock:  # its exit is one step that nothing interrupts
        depth, state, key = len(use.users), State(model, everything=everything), object()
        pools = (TORCH, OTHERS) if seeds else (TORCH,)

        def give_back() -> None:
            state.restore()
            for pool in pools:
                pool.leave(key)
            del use.users[depth:]

        try:
            try:
                for pool in pools:
                    pool.enter(key)
                use.users.append(User(me.ident or 0, me.name, what, short))
                return function()
            finally:
                give_back()
        finally:
            give_back()


def borrows(what: str, *, of: Callable[[Any], nn.Module] | None = None, **options: Any) -> Callable[[F], F]:
    """Decorator: the function runs as :func:`lent` runs it, with the model that is its first argument.

    Args:
        what: for messages, such as "a search". of: the model of the first argument. options: of :func:`lent`.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def borrowed(*args: Any, **kwargs: Any) -> Any:
            model: Any = args[0] if args else kwargs.get("model", kwargs.get("tuned"))
            with suppress(AttributeError):
                model = of(model) if of is not None else model
            if isinstance(model, type) or not hasattr(model, "named_modules"):  # the function says what is wrong
                return function(*args, **kwargs)
            return lent(model, what, functools.partial(function, *args, **kwargs), **options)

        return cast(F, borrowed)

    return decorate


class preserved:
    """Restore what :class:`State` notes of modules, and torch's random states, at any exit of a ``with``.

    Within a borrowed function (:func:`borrows`), for one part of it. ``seeded=False`` leaves the random states alone:
    for what draws nothing, so that it does not take back what other threads draw. No generator: one whose exit is
    interrupted would restore the inner state when it is collected, after the outer one.
    """

    def __init__(self, *modules: nn.Module, seeded: bool = True, everything: bool = False):
        self.modules, self.seeded, self.everything = modules, seeded, everything

    def __enter__(self) -> None:
        self.random = _read_torch() if self.seeded else None
        self.states = [State(module, everything=self.everything) for module in self.modules]

    def __exit__(self, *_: object) -> None:
        try:
            self._restore()
        finally:  # an interrupt may have cut it short
            self._restore()

    def _restore(self) -> None:
        for state in self.states:
            state.restore()
        if self.random is not None:
            _write_torch(self.random)


class _Random:
    """Random states of the process: the first user's are given back when the last user leaves, in whatever thread."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]):
        self.read, self.write, self.users, self.state = read, write, set[object](), cast(Any, None)

    def enter(self, key: object) -> None:
        """A user comes."""
        with _TABLE:
            self.state = self.read() if not self.users else self.state
            self.users.add(key)

    def leave(self, key: object) -> None:
        """A user goes; it may go twice."""
        with _TABLE:
            if self.users == {key}:
                self.write(self.state)
            self.users.discard(key)


def _read_torch() -> Any:
    import torch

    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _write_torch(states: Any) -> None:
    import torch

    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


def _read_others() -> Any:
    import numpy as np

    return random.getstate(), np.random.get_state()  # noqa: NPY002 - the Trainer seeds the global state


def _write_others(states: Any) -> None:
    import numpy as np

    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


TORCH, OTHERS = _Random(_read_torch, _write_torch), _Random(_read_others, _write_others)


# -- what is s3pet's


def _own_hooks(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """The hooks of s3pet on a model: module and key."""
    for part in model.modules():
        for name in HOOKS:
            for key, hook in [*vars(part).get(name, {}).items()]:
                if _is_own(hook):
                    yield part, key


def _take_off(hooks: Iterable[tuple[nn.Module, int]]) -> None:
    for part, key in hooks:
        for name in (*HOOKS, *OPTIONS):
            vars(part).get(name, {}).pop(key, None)


def _is_own(value: Any) -> bool:
    while isinstance(value, functools.partial):
        value = value.func
    return str(getattr(value, "__module__", "")).split(".")[0] == "s3pet"
