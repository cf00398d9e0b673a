"""What a search costs on a GPU beside its frozen backbone: time, memory, waits for the device. T5 of the paper's sizes.

    python tests/benchmarks/gpu.py [--size large] [--rows 32] [--rounds 15]        # no GPU: says so and ends
    python tests/benchmarks/gpu.py --device cpu --size tiny --rounds 2             # that the script itself runs

Random weights, 64 tokens a row, the language-model loss, both floating-point types. ``plain``, *pass* and *step* are
those of ``speed.py``; every timing waits for the device before and after. *Waits* are what torch reports in its
synchronisation debug mode during one call.
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
    """A frozen T5 of random weights on the device, in training mode."""
    d_model, d_ff, layers, heads = SIZES[size]
    torch.manual_seed(0)
    sizes = {"d_model": d_model, "d_ff": d_ff, "d_kv": d_model // heads, "num_layers": layers, "num_heads": heads}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    return model.to(device, kind).requires_grad_(False).train()


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds, the device's own work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def waits(run: Callable[[], Any], device: torch.device) -> int | None:
    """How often one call makes the processor wait for the device."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def peak(run: Callable[[], Any], device: torch.device) -> float | None:
    """MB allocated at most during one call, the model included."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) / 1e6


def measure(size: str, device: torch.device, kind: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """One row per case."""
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
        found = {"made": time.strftime("%Y-%m-%d"), "gpu": torch.cuda.get_device_name(), "rows": rows}
        (RESULTS / "gpu.json").write_text(json.dumps(found | {"torch": torch.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
