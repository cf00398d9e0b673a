"""Time and memory of a search on a GPU beside its frozen backbone, and how often the processor waits for the device.

    python tests/benchmarks/gpu.py [--size large] [--rows 32] [--rounds 15]        # says so if there is no GPU
    python tests/benchmarks/gpu.py --device cpu --size tiny --rounds 2             # checks that the script runs

T5 of the paper's sizes with random weights, 64 tokens a row, the language-model loss, bfloat16 and float32 weights.
``plain``, *pass* and *step* are those of ``speed.py``. Every timing waits for the device before and after. *Waits* are
the synchronisations that torch reports in its debug mode during one call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pandas as pd
import speed
import torch
from common import RESULTS
from transformers import T5Config, T5ForConditionalGeneration

SIZES = {  # d_model, d_ff, layers per stack, heads
    "tiny": (64, 128, 2, 4),
    "small": (512, 2048, 6, 8),
    "base": (768, 3072, 12, 12),
    "large": (1024, 4096, 24, 16),
}


def make_model(size: str, device: torch.device, kind: torch.dtype) -> Any:
    """Make a frozen T5 of random weights on the device, in training mode."""
    d_model, d_ff, layers, heads = SIZES[size]
    torch.manual_seed(0)
    sizes = {"d_model": d_model, "d_ff": d_ff, "d_kv": d_model // heads, "num_layers": layers, "num_heads": heads}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    return model.to(device, kind).requires_grad_(False).train()


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call, the work of the device included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def waits(run: Callable[[], Any], device: torch.device) -> int | None:
    """Count how often one call makes the processor wait for the device."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def peak(run: Callable[[], Any], device: torch.device) -> float | None:
    """Return the peak of allocated MB during one call, the model included."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 1e6


def measure(size: str, device: torch.device, kind: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """Return one row per case."""
    model = make_model(size, device, kind)
    spaces = speed.make_spaces(model)
    searchers = {
        (space, order): speed.make_searcher(model, "t5-lm", spaces[space], order)
        for space, order in (("mixed", "first"), ("lora", "first"), ("mixed", "unrolled"))
    }
    mixed = searchers["mixed", "first"]
    cases: dict[str, tuple[AbstractContextManager[Any], Callable[[], Any]]] = {
        "plain": (nullcontext(), speed.make_plain(mixed))
    }
    for (space, order), searcher in searchers.items():
        if order == "first":
            cases[f"pass {space}"] = (searcher.supernet, speed.make_pass(searcher))
        cases[f"step {space} {order}"] = (searcher.supernet, searcher.advance)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 3):  # three to warm up
        for name, (attached, run) in cases.items():
            with attached:
                seconds = timed(run, device)
            if number > 2:
                times[name].append(seconds)
    rows = []
    for name, (attached, run) in cases.items():
        with attached:
            row = {"MB": peak(run, device), "waits": waits(run, device)}
        ratio = statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True))
        head = {
            "size": size,
            "type": str(kind).removeprefix("torch."),
            "case": name,
            "candidates": len(spaces["mixed"]),
        }
        rows.append(head | {"ms": round(1000 * statistics.median(times[name]), 2), "ratio": round(ratio, 3), **row})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("skipped: no GPU here")
        return
    speed.ROWS = arguments.rows
    rows = [
        row
        for kind in (torch.bfloat16, torch.float32)
        for row in measure(arguments.size, device, kind, arguments.rounds)
    ]
    print(pd.DataFrame(rows).to_string(index=False))
    if device.type == "cuda":
        gpu, made = torch.cuda.get_device_name(), time.strftime("%Y-%m-%d")
        record = {"made": made, "gpu": gpu, "torch": torch.__version__, "rows": rows}
        (RESULTS / "gpu.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
