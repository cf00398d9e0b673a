"""Is the estimate of memory right? Predicted and measured peaks at three sizes, and a table of large models.

    python tests/benchmarks/memory.py [bert t5 llama] [--out FILE]      # measures these families (minutes)
    python tests/benchmarks/memory.py table                             # writes the tables of docs/scale.md

Each case is a process of its own, with a model of random weights, one thread, 8 rows of 63 or 64 tokens and the mixed
space. It first searches on a tiny model, so that all libraries are loaded, then makes the model and runs two steps of a
search. Two measurements, both with the weights of the model:

- ``allocated``: what torch's own profiler says that its allocator had given out at the peak. The profiler starts after
  the first step; what was there before is counted from the tensors.
- ``resident``: the peak of the resident size of the process above what it held before the model was made (Linux only).
  glibc is told to give every freed block of 64 KB or more back at once; by default it keeps much of it, and a process
  is larger (``--allocator default``).

The large models of the table are made without weights from the public facts of their architectures, and nothing of
them is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import RESULTS
from speed import machine, resident_size
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' toy task
from toy import WORDS, toy_tokenizer

import s3pet
from s3pet.searcher import Searcher, Settings
from s3pet.structure import parse_budget
from s3pet.studies.costs import estimate, plain_seconds

ROWS, TOKENS = 8, 64
RETURN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
SIZES = {"small": (256, 6, 8000), "middle": (512, 12, 32000), "large": (1024, 12, 32000)}  # width, layers, vocabulary
FAMILIES = ("bert", "t5", "llama")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


def make_model(family: str, size: str) -> Any:
    """Make a frozen model of random weights; T5 has half of the layers in each stack."""
    width, layers, vocabulary = SIZES[size]
    heads = width // 64
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "intermediate_size": 4 * width}
    if family == "bert":
        model: Any = BertModel(BertConfig(**shape))
    elif family == "llama":
        shape |= {"num_key_value_heads": max(1, heads // 4), "intermediate_size": 3 * width}
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        sizes = {"d_model": width, "d_ff": 4 * width, "num_layers": layers // 2, "num_heads": heads}
        model = T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **sizes))
    return model.requires_grad_(False).eval()


def make_searcher(model: Any, order: str) -> Searcher:
    """Make a search whose batches hold rows of 63 and of 64 tokens."""
    rows = [{"sentence1": " ".join(WORDS[: TOKENS - 1 - k % 2] * 2), "label": k // 2 % 2} for k in range(2 * ROWS)]
    rows = [row | {"sentence1": " ".join((WORDS * 2)[: TOKENS - 1 - k % 2])} for k, row in enumerate(rows)]
    task = s3pet.load_task({"train": rows, "validation": rows, "test": rows}, toy_tokenizer(), label_words=("no", "yes"))
    space = s3pet.make_space(model, "mixed")
    settings = Settings(steps=100, order=order, batch_size=ROWS)
    return Searcher(model, task, space, parse_budget(space, "0.02%"), settings)


def allocated_peak(run: Any) -> int:
    """Return the most bytes that torch's CPU allocator had given out during a call, above what it had before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    live = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def live_bytes() -> int:
    """Return the bytes of all tensors that Python knows, each memory once."""
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if torch.is_tensor(t)}
    return sum(storages.values())


def measure(family: str, size: str, order: str, checkpointing: bool) -> dict[str, Any]:
    """Measure one case in this process; sizes in MB."""
    torch.set_num_threads(1)
    tiny = BertModel(BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).eval()
    searcher = make_searcher(tiny, order)
    with searcher.supernet:
        searcher.advance()
        allocated_peak(searcher.advance)
    del searcher, tiny
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, tensors_before = resident_size("VmRSS"), live_bytes()
    model = make_model(family, size)
    if checkpointing:
        name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{name}_checkpointing_enable")()
    searcher = make_searcher(model, order)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    with searcher.supernet:
        searcher.objective.prepare(False)
        searcher.advance()
        start = time.perf_counter()
        searcher.advance()
        seconds, resident = time.perf_counter() - start, resident_size("VmHWM") - before
        held = live_bytes() - tensors_before
        allocated = (held + allocated_peak(searcher.advance)) / 1e6
    return {"allocated": round(allocated, 1), "resident": round(resident, 1), "seconds": round(seconds, 2)}


def predict(family: str, size: str, order: str) -> dict[str, Any]:
    """Return what the library says of the same cases, in MB, and the seconds of a plain step."""
    model = make_model(family, size)
    space = s3pet.make_space(model, "mixed")
    plain = plain_seconds(model, batch=ROWS, tokens=TOKENS)
    return vars(estimate(model, space, batch=ROWS, tokens=TOKENS, order=order, step_seconds=plain)) | {"plain": plain}


def run_child(case: list[str], allocator: str) -> dict[str, Any]:
    """Measure a case in a process with the allocator's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = clean | ({} if allocator == "default" else RETURN)
    command = [sys.executable, __file__, "--case", *case]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        raise RuntimeError(process.stderr[-2000:])
    return json.loads(process.stdout.splitlines()[-1])


def check(families: list[str], orders: list[str], sizes: list[str], allocator: str) -> list[dict[str, Any]]:
    """Return one row for each case: predicted, measured, ratios."""
    rows = []
    for family in families:
        for size in sizes:
            for order in orders:
                said = predict(family, size, order)
                for checkpointing in (False, True):
                    seen = run_child([family, size, order, str(int(checkpointing))], allocator)
                    peak = said["peak_checkpointed" if checkpointing else "peak"] / 1e6
                    row = {"family": family, "size": size, "millions": round(said["backbone_params"] / 1e6, 1)}
                    row |= {"order": order, "checkpointing": checkpointing, "weights": round(said["weights"] / 1e6, 1)}
                    row |= {"predicted": round(peak, 1), **seen}
                    for name in ("allocated", "resident"):
                        row[f"{name}_ratio"] = round(peak / seen[name], 3)
                    row |= {"plain_seconds": round(said["plain"], 2), "predicted_seconds": round(said["seconds"], 2)}
                    print(row, flush=True)
                    rows.append(row)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[*FAMILIES])
    parser.add_argument("--orders", nargs="+", default=["first"])
    parser.add_argument("--sizes", nargs="+", default=[*SIZES])
    parser.add_argument("--allocator", choices=("return", "default"), default="return")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    arguments = parser.parse_args()
    if arguments.case:
        family, size, order, checkpointing = arguments.case
        print(json.dumps(measure(family, size, order, checkpointing == "1")))
        return
    torch.set_num_threads(1)
    rows = check(arguments.what, arguments.orders, arguments.sizes, arguments.allocator)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
