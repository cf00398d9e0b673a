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
import itertools
import json
import os
import subprocess
import sys
import time
from functools import partial
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
from s3pet.studies.costs import Estimate, estimate

ROWS, TOKENS = 8, 64
RETURN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
SIZES = {
    "tiny": (64, 2, 64),
    "small": (320, 6, 10000),
    "middle": (512, 12, 32000),
    "large": (1024, 12, 32000),
}  # width, layers, vocabulary
LARGE_BATCH = (8, 512)  # rows and tokens of the large models
T5_LARGE = {"vocab_size": 32128, "d_model": 1024, "num_layers": 24, "decoder_start_token_id": 0}
LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8}
LARGE_MODELS: dict[str, Any] = {  # public facts of the architectures
    "T5-large": (T5ForConditionalGeneration, T5Config(d_ff=4096, d_kv=64, num_heads=16, **T5_LARGE)),
    "T5-11B": (T5ForConditionalGeneration, T5Config(d_ff=65536, d_kv=128, num_heads=128, **T5_LARGE)),
    "Llama-3-8B": (
        LlamaForCausalLM,
        LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=14336, **LLAMA),
    ),
    "Llama-3-70B": (
        LlamaForCausalLM,
        LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, intermediate_size=28672, **LLAMA),
    ),
}
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
    texts = [" ".join((WORDS * 2)[: TOKENS - 1 - k % 2]) for k in range(2 * ROWS)]
    rows = [{"sentence1": text, "label": k // 2 % 2} for k, text in enumerate(texts)]
    task = s3pet.load_task(
        {"train": rows, "validation": rows, "test": rows}, toy_tokenizer(), label_words=("no", "yes")
    )
    space = s3pet.make_space(model, "mixed")
    settings = Settings(steps=100, order=order, batch_size=ROWS)
    return Searcher(model, task, space, parse_budget(space, space.n_params // 10), settings)


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
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if torch.is_tensor(t)
    }
    return sum(storages.values())


def warm_up(family: str, order: str) -> None:
    """Run a step of the same kind on a tiny model, so that all libraries are loaded."""
    model = make_model(family, "tiny")
    run_step(model, make_searcher(model, "first" if order == "retrain" else order), order)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def run_step(model: Any, searcher: Searcher, order: str) -> tuple[float, int]:
    """Run two steps, the second under the profiler; returns the resident peak (MB) of the first and the allocated one.

    The peak of what torch has allocated is in bytes, above the tensors that are there before the second step. A
    retraining of all candidates is run twice, as a whole.
    """
    Path("/proc/self/clear_refs").write_text("5")  # making the model had a peak, too
    if order == "retrain":
        structure = s3pet.manual_structure(searcher.space, "all")
        options: dict[str, Any] = {"steps": 2, "evaluations": 1, "batch_size": ROWS, "progress": False, "test": False}
        run = partial(s3pet.retrain, model, searcher.objective.task, structure, **options)
        run()
        resident = resident_size("VmHWM")
        return resident, allocated_peak(run)
    with searcher.supernet:
        searcher.objective.prepare(False)
        searcher.advance()
        resident = resident_size("VmHWM")
        return resident, allocated_peak(searcher.advance)


def measure(family: str, size: str, order: str, checkpointing: bool) -> dict[str, Any]:
    """Measure one case in this process; sizes in MB."""
    torch.set_num_threads(1)
    warm_up(family, order)
    before, tensors_before = resident_size("VmRSS"), live_bytes()
    model = make_model(family, size)
    if checkpointing:
        name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
        getattr(model, f"{name}_checkpointing_enable")()
    searcher = make_searcher(model, "first" if order == "retrain" else order)
    if order == "retrain":  # it makes tensors of its own
        searcher.supernet = searcher.weights = searcher.weight_optimizer = searcher._optimizers = None
        gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    held = live_bytes() - tensors_before
    resident, peak = run_step(model, searcher, order)
    if order != "retrain":  # the moments of the optimiser, made in the first step
        held = live_bytes() - tensors_before
    return {"allocated": round((held + peak) / 1e6, 1), "resident": round(resident - before, 1)}


def predict(family: str, size: str, order: str) -> Estimate:
    """Return what the library says of a case."""
    with torch.device("meta"):
        model = make_model(family, size)
    space: Any = s3pet.make_space(model, "mixed")
    space = s3pet.manual_structure(space, "all") if order == "retrain" else space
    return estimate(model, space, batch=ROWS, tokens=TOKENS, order="first" if order == "retrain" else order)


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
    """Return one row for each case: sizes in MB, predicted and measured, and predicted over measured."""
    rows = []
    for family, size, order in itertools.product(families, sizes, orders):
        if order != "first" and size != "middle":
            continue
        said = predict(family, size, order)
        for checkpointing in (False, True) if order == "first" else (False,):
            seen = run_child([family, size, order, str(int(checkpointing))], allocator)
            peak = (said.peak_checkpointed if checkpointing else said.peak) or 0
            row = {"family": family, "size": size, "parameters": said.backbone_params, "order": order}
            row |= {"checkpointing": checkpointing, "weights": round(said.weights / 1e6, 1)}
            row |= {"predicted": round(peak / 1e6, 1), **seen}
            row |= {f"{name}_ratio": round(peak / 1e6 / seen[name], 3) for name in ("allocated", "resident")}
            print(row, flush=True)
            rows.append(row)
    return rows


def describe_large() -> list[dict[str, Any]]:
    """Return what the library says of large models: one row each, sizes in GB."""
    rows = []
    for name, (model_class, config) in LARGE_MODELS.items():
        with torch.device("meta"):
            model: Any = model_class(config)
        space, (batch, tokens) = s3pet.make_space(model, "mixed"), LARGE_BATCH
        said = estimate(model, space, batch=batch, tokens=tokens, dtype=torch.bfloat16)
        sizes = ("weights", "state", "activations", "activations_checkpointed", "peak", "peak_checkpointed")
        row: dict[str, Any] = {"model": name, "dtype": "bfloat16", "backbone_params": said.backbone_params}
        row |= {"candidates": said.candidates, "pet_params": said.pet_params}
        rows.append(row | {size: round(getattr(said, size) / 1e9, 2) for size in sizes} | {"reduced": said.reduced})
        print(rows[-1], flush=True)
        del model
        gc.collect()
    return rows


def write_page(record: dict[str, Any]) -> None:
    """Write the two tables into the page, between their marks."""
    large = pd.DataFrame(record["large"])
    large["parameters"] = [f"{n / 1e9:.2f} B" for n in large.backbone_params]
    large["PET parameters"] = [f"{n / 1e6:.1f} M" for n in large.pet_params]
    for size in ("weights", "state", "activations", "activations_checkpointed", "peak", "peak_checkpointed"):
        large[size] = [f"{value:.1f}" if value >= 1 else f"{value:.2f}" for value in large[size]]
    names = {name: name.replace("_", ", ") for name in ("activations_checkpointed", "peak_checkpointed")}
    columns = ["model", "parameters", "candidates", "PET parameters", "weights", "state", "activations"]
    large = large[[*columns, "activations_checkpointed", "peak", "peak_checkpointed"]].rename(columns=names)
    small = pd.DataFrame(record["rows"])
    small["parameters"] = [f"{n / 1e6:.0f} M" for n in small.parameters]
    small["checkpointing"] = ["yes" if on else "no" for on in small.checkpointing]
    small["predicted / allocated"] = [f"{ratio:.2f}" for ratio in small.allocated_ratio]
    small["predicted / resident"] = [f"{ratio:.2f}" for ratio in small.resident_ratio]
    for size in ("weights", "predicted", "allocated", "resident"):
        small[size] = [f"{value:,.0f}" for value in small[size]]
    small = small[["family", "parameters", "order", "checkpointing", "weights", "predicted", "allocated", "resident",
                   "predicted / allocated", "predicted / resident"]]  # fmt: skip
    text = PAGE.read_text(encoding="utf-8")
    for mark, table in (("large", large), ("measured", small)):
        n_text = 1 if mark == "large" else 4
        lines = [
            f"| {' | '.join(str(value) for value in row)} |" for row in [tuple(table), *table.itertuples(index=False)]
        ]
        lines.insert(1, "|" + "---|" * n_text + "--:|" * (table.shape[1] - n_text))
        start, end = f"<!-- {mark} -->\n", f"\n<!-- end of {mark} -->"
        before, _, rest = text.partition(start)
        text = before + start + "\n".join(lines) + end + rest.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[*FAMILIES], help="families, or table")
    parser.add_argument("--orders", nargs="+", default=["first", "unrolled", "retrain"])
    parser.add_argument("--sizes", nargs="+", default=["small", "middle", "large"])
    parser.add_argument("--allocator", choices=("return", "default"), default="return")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    arguments = parser.parse_args()
    if arguments.case:
        family, size, order, checkpointing = arguments.case
        print(json.dumps(measure(family, size, order, checkpointing == "1")))
        return
    torch.set_num_threads(1)
    record = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"rows": []}
    if families := [name for name in arguments.what if name != "table"]:
        new = check(families, arguments.orders, arguments.sizes, arguments.allocator)
        done = {(row["family"], row["size"], row["order"]) for row in new}
        kept = [row for row in record["rows"] if (row["family"], row["size"], row["order"]) not in done]
        record |= {"made": time.strftime("%Y-%m-%d"), "machine": machine(), "batch": [ROWS, TOKENS]}
        record |= {"allocator": arguments.allocator, "rows": kept + new}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    if "table" in arguments.what:
        record["large_batch"], record["large"] = LARGE_BATCH, describe_large()
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    if {"rows", "large"} <= set(record) and arguments.out.parent == RESULTS:
        write_page(record)
    print(pd.DataFrame(record["rows"]).to_string(index=False))


if __name__ == "__main__":
    main()
