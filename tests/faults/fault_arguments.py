"""Bad arguments: every public name is called with one bad value after the other; what comes must be a clear error.

A case is clear if an error of ``s3pet.errors`` names the argument and what was passed, before an optimiser has made a
step. The table of calls is in ``fault_calls``: a good call each, which must work, and the kind of every argument.
"""

import contextlib
import io
import json
import math
import re
import signal
import warnings
from collections import Counter
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from s3pet.errors import S3PetError

OUTCOMES = ("clear", "vague", "late", "foreign", "accepted", "hung")
WAIT = 60  # seconds, far more than any case needs


class Odd:
    """An object that nothing expects."""


class Case(NamedTuple):
    """One bad call: what is called, which argument gets what, and a function that does it."""

    call: str
    argument: str
    value: object
    run: object
    says: str  # a pattern: how a message may name the argument


def bad_values(g):
    """Kind of argument → values that are not of it. None is added where it is not the default."""
    nan, inf, it = math.nan, math.inf, Odd()
    no_number = [True, "3", nan, [1], it]
    whole = [*no_number, 2.5, -1]
    no_object = [5, "nonsense", [], it]
    return {
        "whole": [*whole, inf],  # from 0
        "count": [*whole, 0],  # from 1
        "least 2": [*whole, 0, 1],
        "seed": [*whole, 2**64],
        "positive": [True, "1e-3", nan, inf, [0.1], -1, 0],
        "real": no_number + [inf],
        "not negative": [*no_number, inf, -1],
        "share": [True, "0.5", nan, [0.5], -0.5, 1.5],
        "flag": ["no", 2, [], it, nan],
        "text": [5, [], it, True],
        "title": [5, [], it, True],
        "name": [5, ["nonsense"], {}, "nonsense", "", True],
        "name of an entry": [5, ["one"], {}, "../one", "", True],
        "folder": [5, "", ["a"], True, it, "a\0b", g.folder / "nowhere" / "at all", g.folder / "runs"],
        "fitting model": [*no_object, torch.nn.Linear(2, 2)],
        "column": [5, ["score"], {}, "nonsense", True],
        "path": [5, "", ["a"], True, it, "a\0b"],
        "file": [5, "", ["a"], True, it, "a\0b", g.folder / "nowhere" / "at all"],
        "budget": [True, "lots", "0,1%", "", nan, inf, -1, 0, [600], it, 10**12, "150%", 1.5],
        "task": [*no_object, "pocket/sentiment", {"train": []}, type(g.task)],
        "text task": [*no_object, "pocket/sentiment", g.row_task],
        "module": [*no_object, (g.model, g.tokenizer), type(g.model)],
        "model": [*no_object, (g.model, g.tokenizer), type(g.model), torch.nn.Linear(2, 2)],
        "any model": [*no_object, (g.model, g.tokenizer), type(g.model)],
        "tokenizer": [5, "pocket-t5", it, True],
        "space": [*no_object, "mixed", g.model, g.structure],
        "space or structure": [*no_object, "mixed", g.model, g.elsewhere],
        "space or model": [*no_object, "mixed", g.structure],
        "structure": [*no_object, g.space, [g.structure], g.elsewhere],
        "own structure": [*no_object, g.space, [g.structure]],
        "structures": [5, "full", [], {}, it, [g.structure], {"a": None}, {"a": 5}, {"a": []}, {"a": [5]},
                       {"a": "nonsense"}, {"a": ["full", None]}, {"a": g.elsewhere}, {5: "full"}],
        "proposals": [5, [], {}, it, [g.structure], {"a": None}, {"a": "full"}, {"a": [g.structure]},
                      {"a": g.elsewhere}],
        "own candidates": [5, "mixed", it, ["a"], [5], [g.space.candidates[0]] * 2],
        "names of parts": [5, "classifier", it, [5], [None], {"a": 1}, True],
        "patterns": [5, [], it, [5], [None], {"a": 1}, True, ""],
        "layers or ranks": [2.5, "0", [], it, ["a"], [None], {"a": 1}, True, [True], nan],
        "candidates": [5, "mixed", it, ["a"], [5], [g.space.candidates[0]] * 2, g.elsewhere],
        "result": [5, "runs/one", it, [], g.space, g.result.gates],
        "results": [5, "runs/one", it, [], {}, [None], [5], {"a": None}, [g.result, g.space], [g.result.gates]],
        "tuned": [5, "tuned", it, [], g.model, g.structure],
        "seeds": [5, "01", [], [True], [0.5], [-1], [None], ["0"], [0, 0], it, {}],
        "rates": [0.001, "1e-3", [], [True], [0], [-1.0], [nan], [None], ["1e-3"], [1e-3, 1e-3], it],
        "rungs": [5, [0.5], {0.5: 2}, {2: 0.5}, {"a": 0.5}, {0.5: None}, {0.5: nan}, it, {True: 0.5}],
        "callbacks": [5, "x", [5], [None], ["x"], it, {}],
        "objective": [5, "lm", [], it, {"loss": "nonsense"}, {"unknown": 1}, {"max_length": 1.5}, {"max_length": True},
                      {"max_length": "64"}, {"pooling": 5}, {"class_weights": [1, 2]}, {5: 5}, g.own_objective],
        "own objective": [5, "lm", [], it, {"loss": "choice"}, g.own_objective],
        "rules": [5, "nonsense", [], {}, it, [5], ["lora"], [{}], [{"pet": "nonsense"}], [{"pet": 5}], [None],
                  [{"pet": "lora", "ranks": [0]}], [{"pet": "lora", "ranks": 2.5}], [{"pet": "lora", "rank": 2}],
                  [{"pet": "lora", "roles": [5]}], [{"pet": "lora", "roles": ["nothing"]}], {"pet": "lora"},
                  [{"pet": "lora", "layers": ["0"]}], [{"pet": "lora", "layers": [99]}], [{5: "lora"}]],
        "example": [5, "text", [], it, {"nonsense": 1}, {5: 5}, {}],
        "source": [5, "", "nonsense", it, True, [], {}, [5], {"train": 5}, {"train": "nowhere.csv"}, {"train": []},
                   {"train": g.rows, "test": []}, {"train": g.rows, "test": g.rows[:1] + [{"sentence1": "w1"}]},
                   {"train": g.rows, "tset": g.rows}, {"train": g.rows, "test": [{"text": "w1", "label": 0}]},
                   {"train": g.rows, "validation": g.rows, "test": [5]}, {"train": g.rows, 5: g.rows},
                   {"train": g.rows, "test": None}, {"train": g.rows, "validation": None, "test": g.rows},
                   [row | {"label": 0} for row in g.rows], [row | {"label": nan} for row in g.rows],
                   [row | {"label": [1]} for row in g.rows], [row | {"sentence1": nan} for row in g.rows],
                   [row | {"sentence1": ["w1"]} for row in g.rows], [row | {"sentence1": None} for row in g.rows],
                   g.rows[:3], pd.DataFrame(), pd.DataFrame({"a": [1]})],
        "texts": [5, "no", {"no": 1}, it, True, [5.5, None], [["no"], ["yes"]], ["only"], ["same", "same"], ["", "x"]],
        "columns": [5, {}, it, True, [5], [None], ["nonsense"], []],
        "words": [5, "ab", it, [5], [None], {"a": 1}, True],
        "records": [5, "one text", it, [5], [None], [nan], [["w1", "w2", "w3"]], [{}], {"sentence1": "w1"}, True],
        "examples": [5, "one text", it, [5], [None], [], ["w1"], True],
        "numbers": [5, "x", it, [], [None], ["x"], [[1], [2]]],
        "names": [5, "nonsense", it, ["nonsense"], [5], [None], True],
        "table": [5, "x", it, [], {}, pd.DataFrame(), pd.DataFrame({"a": [1]})],
        "gates": [5, "x", it, [], {}, pd.DataFrame(), pd.DataFrame({"a": [1]}), g.model],
        "utility": [5, "x", it, [], {}, pd.DataFrame(), pd.DataFrame({"a": [1]}), g.result.gates],
        "panels": [5, "x", it, [], {}, {"a": 5}, {"a": pd.DataFrame()}, [g.result]],
        "axes": [5, "x", it, [], g.figure],
        "figure": [5, "x", it, [], g.axes],
        "axes or figure": [5, "x", it, [], g.result],
        "formats": ["png", 5, [5], ["doc"], it, [None], []],
        "cost": [True, "x", nan, [1], -1, 0],
        "limit": [True, "1", nan, inf, [1], it],
        "layers": [5, "01", [0], [0, 1, 2], ["a", "b"], [True, 2.5], it, (3, 1), (nan, 1)],
        "pair": [5, "ab", ["a"], [1, 2], it, {}],
        "alpha": [5, "x", [], [nan, 1.0], [None, 1.0], ["a", 1.0], it, [1.0] * 9],
        "costs": [5, "x", [], [nan, 10], [0, 10], [-1, 10], ["a", 10], it],
        "tensor": [5, "x", [], it, [0.1, 0.2], torch.zeros(1), torch.full((len(g.space),), nan)],
        "pairs": [5, "x", [], it, [(1.0, 5)], [(1.0, "x"), (0.0, 5)], [(nan, 5), (0.0, 5)], [(1.0, 5.5), (0.0, 5)],
                  [(1.0, True), (0.0, 5)], [(1.0, 0), (0.0, 5)]],
        "runs": [5, "", "nowhere", it, [], {}, [5], [None], {"a": None}, True],
        "baseline": [5, "nonsense", it, ["a"], {"a": "nonsense"}, {"nonsense": "a"}, {"a": 5}, True],
        "structure or key": [5, "nonsense", [], it, None, g.structure],
        "methods": [5, [], {}, it, {"a": None}, {"a": "key"}, {"a": [5]}, {"a": []}, {"a": ["nonsense"]}],
        "function": [5, "x", []],
        "metrics": [5, {}, "accuracy", {"a": 5}, {"loss": len}, it, {5: len}, [len]],
        "splits": [5, "rows", {}, it, None, [], g.rows[:0], True],
        "dtype": [5, "nonsense", "int64", it, True, np.float32, torch.int64],
        "device_map": [5.5, "nonsense", it, [], {}, {"": "cuda:99"}, {3: "cpu"}, {"encoder": "nonsense"}],
        "device": [5.5, "nonsense", it, [], "cuda:99"],
        "origin": [5, "searched", [], it, [("a", 1)]],
        "mapping": [5, "a", [], it, {"a": "b"}, {5: 1}],
    }  # fmt: skip


GOOD = {  # numbers of NumPy are as good as Python's
    "whole": [np.int64(1)], "count": [np.int64(2)], "least 2": [np.int32(8)], "seed": [np.int64(1), np.uint8(3)],
    "positive": [np.float64(0.5), np.float32(0.5), 1], "real": [np.float64(0.5), 1], "share": [np.float64(0.5)],
    "flag": [np.bool_(True), np.bool_(False)], "budget": [np.int64(600), np.float64(0.01), "600", "1%", 600.0],
    "seeds": [range(1), np.arange(1), (np.int64(0),)], "limit": [np.float64(0.5), 1],
}  # fmt: skip


def judge(case):
    """The outcome of a case, and what was said."""
    steps = []
    hook = register_optimizer_step_pre_hook(lambda *_: steps.append(1))
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(WAIT)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            case.run()
    except Hung:
        return "hung", f"no answer after {WAIT} s"
    except S3PetError as error:
        text = f"{type(error).__name__}: {error}"
        if steps:
            return "late", text
        return "clear" if _names(case, str(error)) else "vague", text
    except Exception as error:
        return "foreign", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        hook.remove()
    return "accepted", ""


class Hung(BaseException):
    """The time is over."""


def _interrupt(*_):
    raise Hung


def _names(case, message):
    """Whether a message names the argument, and what was passed or its type."""
    if case.call.startswith("study file"):  # an entry, which a message names with its place
        return case.argument in message or case.says in message
    words = "|".join(word for word in (case.argument.strip("-"), case.says) if word)
    if not re.search(rf"\b({words})\b", message):
        return False
    message = message.casefold()
    parts = [case.value]
    with contextlib.suppress(TypeError, ValueError):
        parts.append(json.loads(case.value))  # rules of a space on the command line
    while parts:
        value = parts.pop()
        texts = (str(value), repr(value), f"{value:,}" if type(value) is int else "", type(value).__name__)
        texts = (*texts, getattr(value, "__name__", ""), str(len(value)) if isinstance(value, list) else "")
        texts += tuple(re.findall(r"\w{4,}", value)) if isinstance(value, str) else ()  # of JSON
        empty = hasattr(value, "__len__") and not isinstance(value, torch.nn.Module) and not len(value)
        if empty or isinstance(value, torch.Tensor) or any(text and text[:12].casefold() in message for text in texts):
            return True
        parts += [*value.items()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
        parts += list(value.columns) if isinstance(value, pd.DataFrame) else []
    return False


def all_cases(g, calls):
    """The cases of a table of calls."""
    kinds = bad_values(g)
    for call in calls:
        for argument, kind in call.kinds.items():
            values = list(kinds[kind])
            if call.defaults.get(argument, 0) is not None and not any(value is None for value in values):
                values.append(None)
            for value in values:
                yield Case(call.name, argument, value, call.with_(argument, value), call.says.get(argument, ""))


def welcome(calls):
    """Good calls, and quick ones with numbers of NumPy: pairs of a name and a function."""
    for call in calls:
        plt.close("all")
        yield call.name, call.with_()
        if "model" in call.kinds or call.name.startswith(("plots", "widgets", "Bench", "push", "Study")):
            continue  # the others take the same numbers by the same checks
        for argument, kind in call.kinds.items():
            for value in GOOD.get(kind, ()) if argument not in ("total", "n_train") else ():
                yield f"{call.name}({argument}={value!r})", call.with_(argument, value)


def report(folder, show=print):
    """Judge all cases and print those that are not clear; returns the counts by call."""
    import fault_calls
    import fault_files
    import matplotlib.pyplot as plt

    g = fault_calls.good_objects(folder)
    counts = {}
    for case in [*all_cases(g, fault_calls.table(g)), *fault_files.command_cases(g), *fault_files.study_cases(g)]:
        outcome, said = judge(case)
        counts.setdefault(case.call.split(".")[0], Counter())[outcome] += 1
        plt.close("all")
        if outcome != "clear":
            show(f"{outcome:<9} {case.call}({case.argument}={case.value!r:.60}): {said[:160]!r}")
    return counts
